"""The two consoles of all output: results go to stdout, progress and remarks to stderr."""

from __future__ import annotations

import os

from rich.console import Console


class Output(Console):
    """A console that discards its output when the pipe is closed (`main.py ... | head`); the work continues."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


# No markup: square brackets in a name or a path must stay.
stdout = Output(highlight=False, soft_wrap=True, markup=False, emoji=False)
stderr = Output(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
