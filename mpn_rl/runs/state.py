"""The state of a run. It is read from the experiment's folder alone, so it works while another machine trains it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from model_utils import Experiment
from mpn_rl import arguments
from mpn_rl.config import Config, config_from_dict
from mpn_rl.options import LARGEST, ConfigError
from mpn_rl.storage.regular_files import METRICS_BYTES, open_regular, read_regular

STATES = ("done", "running", "interrupted", "failed", "missing")
STARTED = "sweep: start "  # a line of a log: what follows is of this process
TAIL_BYTES = 2**16  # read from the end of metrics.jsonl and of logs: a state needs only the last rows


class State(NamedTuple):
    """The state of one run.

    Args:
        state: one of STATES.
        share: the completed share of the run, in [0, 1].
        score: the last greedy evaluation's score, None before the first evaluation.
        note: the process that trains, or why the run failed.
    """

    state: str
    share: float = 0.0
    score: float | None = None
    note: str = ""


class MetricsRow(NamedTuple):
    """The entries of a row of metrics.jsonl that tables of runs need."""

    step: int
    episode: int
    is_evaluation: bool
    return_mean: float | None = None  # of a greedy evaluation
    accuracy: float | None = None  # None where the task has no trials
    normalised_score: float | None = None  # of several tasks: the mean, which chooses best_model.pt

    @classmethod
    def read(cls, row: object) -> MetricsRow | None:
        """The entries of a decoded row; None for a row that no run writes."""
        if not isinstance(row, dict):
            return None
        step, episode = row.get("step"), row.get("episode")
        values = row.get("return_mean"), row.get("accuracy"), row.get("normalised_score")
        if (
            type(step) is not int
            or type(episode) is not int
            or not 0 <= min(step, episode) <= max(step, episode) <= LARGEST
        ):
            return None
        if row.get("kind") != "eval":
            return cls(step, episode, False)
        if not all(value is None or (type(value) in (int, float) and abs(value) <= LARGEST) for value in values):
            return None
        return cls(step, episode, values[:2] != (None, None), *values)

    @property
    def score(self) -> float | None:
        """The accuracy, or the return where the task has no trials."""
        return self.return_mean if self.accuracy is None else self.accuracy

    @property
    def rank(self) -> float | None:
        """The highest one, and of equal ones the last, is that of best_model.pt."""
        return self.return_mean if self.normalised_score is None else self.normalised_score


def state_of(experiment: Experiment, args: argparse.Namespace) -> State:
    """The state of the run that a sweep's row asks for: that of its experiment, unless this has other options.

    Args:
        experiment: the row's experiment.
        args: the row's parsed command line.
    """
    if not experiment.config_path.exists():
        failure = failure_of(experiment)
        return State("failed", note=failure) if failure else State("missing")
    try:
        config = arguments.resumed_config(args, experiment.name, config_from_dict(experiment.read_config()))
    except ConfigError as error:
        return State("failed", note=f"not this row's run: {error}")
    return state_of_run(experiment, config)


def state_of_run(experiment: Experiment, config: Config) -> State:
    """The state of an experiment.

    done: the run is complete. running: a process holds the experiment's lock. failed: the run ended with an error.
    interrupted: the run can be continued.

    Args:
        experiment: an experiment with a config.json.
        config: the configuration of the run.
    """
    failure, run, share, score = failure_of(experiment), config.run, 0.0, None
    reached = False
    for row in _last_rows(experiment.metrics_path):
        if run.total_steps is None:
            share = row.episode / run.num_episodes
        elif row.step + config.learner.stride(run.num_envs) > run.total_steps:  # one more would be too many
            share = 1.0
        else:
            share = row.step / run.total_steps
        score = row.score if row.is_evaluation else score
        if row.is_evaluation and row.accuracy is not None and run.target_accuracy is not None:
            reached = row.accuracy >= run.target_accuracy
    final = experiment.checkpoint("final").is_file()
    share = 1.0 if reached and final else min(share, 1.0)
    state = State("interrupted", share, score)
    holder = experiment.holder()
    if holder:
        return state._replace(state="running", note=holder.removeprefix("another process ").strip("()"))
    if final and share >= 1.0:
        return state._replace(state="done")
    return state._replace(state="failed", note=failure) if failure else state


def log_path(experiment: Experiment) -> Path:
    """The file with the output of a row that `sweep run` started."""
    return experiment.root / ".sweep" / f"{experiment.name}.log"


def failure_of(experiment: Experiment) -> str:
    """Why the last process of a row failed; "" if it did not.

    A process that a signal ends writes nothing, so its reason is the last line of the log of `sweep run`. Otherwise it
    is the last line of error.txt, or of what the process printed.
    """
    errors, log = _last_lines(experiment.error_path), _last_lines(log_path(experiment))
    started = max((place for place, line in enumerate(log) if line.startswith(STARTED)), default=-1)
    printed = [line for line in log[started + 1 :] if not line.startswith("sweep: ")]
    ending = re.fullmatch(r"sweep: (exit status \d+|ended by signal .+)", log[-1]) if log else None
    if ending is None or _time(experiment.metrics_path) > _time(log_path(experiment)):
        return errors[-1] if errors else ""  # the row was started in another way since
    if ending[1].startswith("ended by signal"):
        return ending[1]
    return errors[-1] if errors else printed[-1] if printed else ending[1]


def _time(path: Path) -> float:
    """When a file was last written; -1.0 without one."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return -1.0


def _last_lines(path: Path) -> list[str]:
    """The last lines that are not blank; [] if the file cannot be read."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except (ConfigError, OSError):
        return []
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def evaluations(experiment: Experiment) -> list[tuple[int, float]]:
    """(step, score) of the greedy evaluations so far, also while the run writes its metrics.jsonl."""
    try:
        lines = read_regular(experiment.metrics_path, METRICS_BYTES).splitlines()
    except (ConfigError, OSError):
        return []
    return [(row.step, row.score) for row in _rows(lines) if row.is_evaluation and row.score is not None]


def last_step(experiment: Experiment) -> int:
    """The last step in metrics.jsonl; 0 without one."""
    return max((row.step for row in _last_rows(experiment.metrics_path)), default=0)


def _last_rows(path: Path) -> list[MetricsRow]:
    """The last rows of a metrics.jsonl, without lines that are cut off at either end."""
    return _rows(_last_lines(path))


def _rows(lines: Sequence[str | bytes]) -> list[MetricsRow]:
    """The rows of the lines that can be decoded."""
    rows: list[MetricsRow] = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = MetricsRow.read(json.loads(line))
            rows += [row] if row else []
    return rows
