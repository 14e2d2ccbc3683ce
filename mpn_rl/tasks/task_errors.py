"""Errors of other people's tasks, in one line with the place in the task's own code. Stdlib only."""

from __future__ import annotations

import traceback
from pathlib import Path

from mpn_rl.options import ConfigError

_TOOLKIT = Path(__file__).resolve().parents[1]


class TaskError(ConfigError):
    """A task breaks the interface of Gymnasium, or fails in the middle of an episode."""


def own_error(error: BaseException) -> str:
    """An error in one line, such as "ZeroDivisionError: division by zero (my_task.py, line 12)".

    The place is the last one in the task's own code; in an installed package's code where there is no other.
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{what.partition(' (')[0]} ({Path(error.filename).name}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and _TOOLKIT not in Path(frame.filename).resolve().parents
    ]
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts] or frames
    return f"{what} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else what
