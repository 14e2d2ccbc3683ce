"""The state of a row. It is read from the experiment's folder alone, so it works while a pool runs the sweep."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple, TypedDict

from model_utils import Experiment
from mpn_rl import arguments
from mpn_rl.config import config_from_dict
from mpn_rl.options import ConfigError

STATES = ("done", "running", "interrupted", "failed", "missing")
TAIL_BYTES = 2**16  # read from the end of metrics.jsonl and of logs: a state needs only the last rows


class State(NamedTuple):
    """The state of one row.

    Args:
        state: one of STATES.
        share: the completed share of the run, in [0, 1].
        score: the last greedy evaluation's score, None before the first evaluation.
        note: the process that runs the row, or why the row failed.
    """

    state: str
    share: float = 0.0
    score: float | None = None
    note: str = ""


class MetricsRow(TypedDict, total=False):
    """The entries of a row of metrics.jsonl that a state needs."""

    kind: str
    step: int
    episode: int
    return_mean: float
    accuracy: float | None


def state_of(experiment: Experiment, args: argparse.Namespace) -> State:
    """The state of the run that a row's command line asks for.

    done: the run is complete. running: a process holds the experiment's lock. failed: the run ended with an error, or
    the experiment has other options. interrupted: the run can be continued. missing: the run has not started.

    Args:
        experiment: the row's experiment.
        args: the row's parsed command line.
    """
    failure = failure_of(experiment)
    if not experiment.config_path.exists():
        return State("failed", note=failure) if failure else State("missing")
    try:
        config = arguments.resumed_config(args, experiment.name, config_from_dict(experiment.read_config()))
    except ConfigError as error:
        return State("failed", note=f"not this row's run: {error}")
    run, share, score = config.run, 0.0, None
    for row in _last_rows(experiment.metrics_path):
        if run.total_steps is None:
            share = row["episode"] / run.num_episodes
        elif row["step"] + run.num_envs > run.total_steps:  # one more step of all environments would be too many
            share = 1.0
        else:
            share = row["step"] / run.total_steps
        if row.get("kind") == "eval":  # accuracy is null where the task has no trials
            accuracy = row.get("accuracy")
            score = float(row["return_mean"] if accuracy is None else accuracy)
    state = State("interrupted", min(share, 1.0), score)
    holder = experiment.holder()
    if holder:
        return state._replace(state="running", note=holder.removeprefix("another process ").strip("()"))
    if experiment.checkpoint("final").is_file() and share >= 1.0:
        return state._replace(state="done")
    return state._replace(state="failed", note=failure) if failure else state


def log_path(experiment: Experiment) -> Path:
    """The file with the output of a row that `sweep run` started."""
    return experiment.root / ".sweep" / f"{experiment.name}.log"


def failure_of(experiment: Experiment) -> str:
    """The last line of the error that ended a run, from error.txt or the log of `sweep run`; "" without an error."""
    lines = _last_lines(experiment.error_path)
    if lines:
        return lines[-1]
    lines = _last_lines(log_path(experiment))
    status = re.fullmatch(r"sweep: (exit status .*|ended by signal .*)", lines[-1]) if lines else None
    if status is None:
        return ""
    return next((line for line in reversed(lines[:-1]) if not line.startswith("sweep: ")), status[1])


def _last_lines(path: Path) -> list[str]:
    """The last lines that are not blank; [] if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def _last_rows(path: Path) -> list[MetricsRow]:
    """The last rows of a metrics.jsonl, without lines that are cut off at either end."""
    rows: list[MetricsRow] = []
    for line in _last_lines(path):
        with contextlib.suppress(ValueError):
            row: MetricsRow = json.loads(line)
            rows += [row] if isinstance(row, dict) and {"step", "episode"} <= row.keys() else []
    return rows
