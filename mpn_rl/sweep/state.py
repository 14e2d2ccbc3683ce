"""What has become of a row, read from its experiment's folder alone: so it works while a pool runs the sweep."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from model_utils import Experiment
from mpn_rl import arguments
from mpn_rl.config import Config, config_from_dict
from mpn_rl.options import ConfigError

STATES = ("done", "running", "interrupted", "failed", "missing")
TAIL_BYTES = 2**16  # of metrics.jsonl and logs: the last rows are all that a state needs


class State(NamedTuple):
    """One row's state; `share` of the run that is done, the last greedy `score`, a `note` on what is not well."""

    state: str
    share: float = 0.0
    score: float | None = None
    note: str = ""


def state_of(experiment: Experiment, args: argparse.Namespace) -> State:
    """What has become of the run that a row's command line `args` asks for.

    done: the whole run is there. running: a process holds it. failed: it left its error, or is another run.
    interrupted: it may be continued. missing: nothing has begun.
    """
    failure = failure_of(experiment)
    if not experiment.config_path.exists():
        return State("failed", note=failure) if failure else State("missing")
    try:
        config = arguments.resumed_config(args, experiment.name, config_from_dict(experiment.read_config()))
    except ConfigError as error:
        return State("failed", note=f"not this row's run: {error}")
    rows = _tail(experiment.metrics_path)
    share = _share(config, rows[-1]) if rows else 0.0
    scores = [score_of(row) for row in rows if row.get("kind") == "eval"]
    found = State("interrupted", min(share, 1.0), scores[-1] if scores else None)
    holder = experiment.holder()
    if holder:
        return found._replace(state="running", note=holder.removeprefix("another process ").strip("()"))
    if experiment.checkpoint("final").is_file() and share >= 1.0:
        return found._replace(state="done")
    return found._replace(state="failed", note=failure) if failure else found


def score_of(row: dict[str, Any]) -> float:
    """A greedy evaluation's accuracy, its mean return where the task has no trials."""
    return float(row["return_mean"] if row.get("accuracy") is None else row["accuracy"])


def _share(config: Config, row: dict[str, Any]) -> float:
    """The share of a run that a row of metrics.jsonl stands at; 1.0 where it is the end."""
    run = config.run
    if run.total_steps is None:
        return row["episode"] / run.num_episodes
    # A run ends where the next step of all lanes would be one too many.
    return 1.0 if row["step"] + run.num_envs > run.total_steps else row["step"] / run.total_steps


def log_path(experiment: Experiment) -> Path:
    """What a row that `sweep run` started has printed."""
    return experiment.root / ".sweep" / f"{experiment.name}.log"


def failure_of(experiment: Experiment) -> str:
    """The last line of the error that ended a run, "" where none did: error.txt, or the end of its local log."""
    lines = _last_lines(experiment.error_path)
    if lines:
        return lines[-1]
    lines = _last_lines(log_path(experiment))
    status = re.fullmatch(r"sweep: (exit status .*|ended by signal .*)", lines[-1]) if lines else None
    if status is None:
        return ""
    return next((line for line in reversed(lines[:-1]) if not line.startswith("sweep: ")), status[1])


def _last_lines(path: Path) -> list[str]:
    """The last lines that say something; a reader of a disk that others write takes what it gets."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of a metrics.jsonl; lines that are cut at either end do not count."""
    rows = []
    for line in _last_lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"step", "episode"} <= row.keys():
            rows.append(row)
    return rows
