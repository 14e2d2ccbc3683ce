"""Scores of one agent in each of several tasks, beside those of the scripted policies on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mpn_rl import registry
from mpn_rl.contracts import MetricsRow
from mpn_rl.rollout import Evaluation, run_scripted
from mpn_rl.tasks.schedules.task_set import TaskSet, seed_of
from neurogym_wrapper import normalised_score

LEAST_EPISODES = 3  # of each task in an evaluation


class TaskBounds(NamedTuple):
    """Mean returns per trial in one task that count as 0 and as 1; nan where the task has no such policy."""

    random: float
    best: float


class TaskScore(NamedTuple):
    """The results in one task: the agent's, and those of the scripted policies by name."""

    name: str
    result: Evaluation
    scripted: dict[str, Evaluation]


def spread_seeds(draw: Callable[[], int], episodes: int, tasks: int) -> tuple[list[int], list[int]]:
    """Seeds of episodes that go round the tasks, so that each task has as many, and at least LEAST_EPISODES.

    Args:
        draw: returns the next seed.
        episodes: how many at least.
        tasks: K.
    Returns: the seeds, and the task of each.
    """
    order = list(range(tasks)) * max(LEAST_EPISODES, -(-episodes // tasks))
    return [seed_of(draw(), task, tasks) for task in order], order


def scripted_results(env: TaskSet, seeds: Sequence[int], tasks: Sequence[int]) -> list[dict[str, Evaluation]]:
    """The scripted policies of each task on the seeds of this task. Returns: {policy: result} of each task."""
    results = []
    for index in range(len(env.names)):
        member, own = env.member(index), [seed for seed, task in zip(seeds, tasks, strict=True) if task == index]
        results.append({name: run_scripted(policy, member, own) for name, policy in member.scripted.items()})
    return results


def bounds_of(scripted: Mapping[str, Evaluation]) -> TaskBounds:
    """The returns that count as 0 and as 1, from the results of a task's scripted policies."""
    best = registry.scored(scripted)
    return TaskBounds(mean(scripted["random"].trial_returns), mean(scripted[best].trial_returns) if best else np.nan)


def mean(values: np.ndarray) -> float:
    """The mean; nan where there are no values."""
    return float(values.mean()) if len(values) else np.nan


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(known)) if known else None


def evaluation_row(names: Sequence[str], results: Sequence[Evaluation], bounds: Sequence[TaskBounds]) -> MetricsRow:
    """The entries of metrics.jsonl for each task, "accuracy/GoNogo-v0" and so on, and their means over tasks."""
    row: MetricsRow = {}
    scores: dict[str, list[float | None]] = {"return": [], "accuracy": [], "normalised_score": []}
    for name, result, (low, high) in zip(names, results, bounds, strict=True):
        normalised = normalised_score(mean(result.trial_returns), low, high)
        own = {
            "return": float(result.returns.mean()),
            "accuracy": result.accuracy,
            "normalised_score": None if np.isnan(normalised) else normalised,
        }
        for key, value in own.items():
            row[f"{key}/{name}"] = value
            scores[key].append(value)
    return {
        "accuracy": known_mean(scores["accuracy"]),
        "normalised_score": known_mean(scores["normalised_score"]),
        **row,
    }
