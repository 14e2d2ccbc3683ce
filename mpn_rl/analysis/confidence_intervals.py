"""Values with 95 % intervals and n, the error for missing data, and the comparison of several runs.

A measure that the data do not support raises `MissingDataError`. Its text is a sentence for the page: "not available:
the task has no coherence". Where only the interval is unknown, as for a single seed, its ends are nan.

Runs are compared by interquartile means and probabilities of improvement. With five seeds no paired test can reach
p < 0.05 (the smallest Wilcoxon p is 1/16), so the results are intervals, not tests.
Source: Agarwal et al. 2021 (NeurIPS, "Deep reinforcement learning at the edge of the statistical precipice").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata, trim_mean

from mpn_rl.statistics import bootstrap, common_grid

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
T = TypeVar("T")
V = TypeVar("V", float, np.ndarray)
Scores = Mapping[str, ArrayLike]  # {task: scores of the seeds}


class MissingDataError(Exception):
    """The data lack what a measure needs; str() is a sentence that names it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not available: {reason}")


class Estimate(NamedTuple, Generic[V]):
    """A value, the ends of its 95 % interval (nan: unknown) and the number of samples: four numbers or four arrays."""

    value: V
    low: V
    high: V
    n: V


def attempt(compute: Callable[[], T]) -> T | str:
    """What compute() returns, or the sentence of its MissingDataError."""
    try:
        return compute()
    except MissingDataError as missing:
        return str(missing)


def gather(parts: Sequence[Estimate]) -> Estimate[np.ndarray]:
    """Estimates of single numbers as one estimate of arrays (k,)."""
    return Estimate(*(np.array([part[field] for part in parts]) for field in range(4)))


def proportion(successes: ArrayLike, n: ArrayLike) -> Estimate[np.ndarray]:
    """Share k/n with Wilson's 95 % interval (1927), element by element; nan where n = 0.

    Unlike k/n +- 1.96 standard errors, the interval stays inside [0, 1] and has a width at 0 and at 1.

    Args: successes: k. n: number of trials, of the same shape.
    """
    k, n = np.asarray(successes, float), np.asarray(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = k / n
        middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    low, high = np.where(k == 0, 0.0, middle - half), np.where(k == n, 1.0, middle + half)  # exact ends
    return Estimate(share, np.where(n > 0, low, np.nan)[()], np.where(n > 0, high, np.nan)[()], n[()])


def mean(values: ArrayLike) -> Estimate[float]:
    """The mean of all values that are not nan, with a percentile bootstrap interval.

    Args: values: (n,). A single value has no interval.

    Raises: MissingDataError where all values are nan.
    """
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        raise MissingDataError("there is nothing to average")
    low, high = bootstrap(x)
    return Estimate(float(x.mean()), float(low), float(high), len(x))


def mean_score(scores: ArrayLike) -> Estimate[float]:
    """The mean score of trials: Wilson's interval if each trial is right (1) or wrong (0), else as `mean`.

    Args: scores: (n,); nan is left out.

    Raises: MissingDataError where all scores are nan.
    """
    x = np.asarray(scores, float)
    x = x[~np.isnan(x)]
    if len(x) == 0 or not np.isin(x, (0, 1)).all():
        return mean(x)
    share = proportion(x.sum(), len(x))
    return Estimate(float(share.value), float(share.low), float(share.high), len(x))


# --- several runs -------------------------------------------------------------------------------------------


class GroupScore(NamedTuple):
    """One line of a comparison: the interquartile mean of a group in one measure, and its single scores."""

    measure: str
    group: str
    iqm: Estimate[float]
    scores: np.ndarray


class Improvement(NamedTuple):
    """The probability that a run of `group` scores higher than a run of `other`; a tie counts half."""

    measure: str
    group: str
    other: str
    probability: Estimate[float]


def _strata(scores: Scores | ArrayLike) -> list[np.ndarray]:
    """The known scores of every task; a bare array is one task."""
    named = scores if isinstance(scores, Mapping) else {"": scores}
    arrays = [np.atleast_1d(np.asarray(values, float)) for values in named.values()]
    arrays = [values[~np.isnan(values)] for values in arrays]
    if not arrays or min(map(len, arrays)) == 0:
        raise MissingDataError("no scores to compare")
    return arrays


def interquartile_mean(scores: Scores | ArrayLike) -> Estimate[float]:
    """Interquartile mean of all runs (without the lowest and highest quarter, rounded down), stratified bootstrap.

    Args: scores: of one task, (n,), or {task: (n,)}; nan is left out. The interval is nan if a task has one seed.
    """

    def middle(*tasks: np.ndarray, axis: int) -> np.ndarray:
        return trim_mean(np.concatenate(tasks, axis), 0.25, axis)

    strata = _strata(scores)
    low, high = bootstrap(*strata, statistic=middle)
    return Estimate(float(middle(*strata, axis=0)), float(low), float(high), sum(map(len, strata)))


def probability_of_improvement(scores: Scores | ArrayLike, others: Scores | ArrayLike) -> Estimate[float]:
    """P(X > Y) + P(X = Y) / 2 for a run X of `scores` and Y of `others` on the same task, averaged over tasks.

    n counts the runs of both sides. The interval comes from a stratified bootstrap; it is nan if a task has one seed.

    Args: scores, others: of one task, (n,), or {task: (n,)}; only common tasks count.
    """
    if isinstance(scores, Mapping) and isinstance(others, Mapping):
        tasks = [task for task in scores if task in others]
        scores, others = {task: scores[task] for task in tasks}, {task: others[task] for task in tasks}
    ours, theirs = _strata(scores), _strata(others)

    def improvement(*tasks: np.ndarray, axis: int) -> np.ndarray:
        shares = []
        for x, y in zip(tasks[: len(ours)], tasks[len(ours) :], strict=True):
            n, m = x.shape[-1], y.shape[-1]
            ranks = rankdata(np.concatenate([x, y], axis=-1), axis=-1)[..., :n]
            shares.append((ranks.sum(axis=-1) - n * (n + 1) / 2) / (n * m))  # the Mann-Whitney U over n m
        return np.mean(shares, axis=0)

    low, high = bootstrap(*ours, *theirs, statistic=improvement)
    n = sum(map(len, [*ours, *theirs]))
    return Estimate(float(improvement(*ours, *theirs, axis=-1)), float(low), float(high), n)


def compare(measures: Mapping[str, Mapping[str, Scores | ArrayLike]]) -> tuple[list[GroupScore], list[Improvement]]:
    """The interquartile mean of every group in every measure, and the improvement of every pair of groups.

    Args: measures: {measure: {group: scores}}. A group without scores in a measure has no line there.

    Returns: a line per measure and group, and one per measure and pair with a common task.
    """
    rows, pairs = [], []
    for measure, groups in measures.items():
        known = {}
        for group, scores in groups.items():
            try:
                known[group] = np.concatenate(_strata(scores))
            except MissingDataError:
                continue
            rows.append(GroupScore(measure, group, interquartile_mean(scores), known[group]))
        names = list(known)
        for i, group in enumerate(names):
            for other in names[i + 1 :]:
                try:
                    probability = probability_of_improvement(groups[group], groups[other])
                except MissingDataError:  # no task in common
                    continue
                pairs.append(Improvement(measure, group, other, probability))
    return rows, pairs


def learning_band(curves: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[np.ndarray, Estimate[np.ndarray]]:
    """Interquartile mean over seeds at every step, with its 95 % bootstrap band.

    Args: curves: (steps, values) per seed, interpolated to their `common_grid`.

    Returns: the steps (k,), and the estimate, arrays (k,). Raises: MissingDataError where the curves share no step.
    """
    if not curves or min(np.size(steps) for steps, _ in curves) == 0:
        raise MissingDataError("no evaluations were logged")
    grid, values = common_grid(curves)
    if not len(grid):
        raise MissingDataError("the runs' evaluations share no step")
    low, high = bootstrap(values, statistic=partial(trim_mean, proportiontocut=0.25))
    return grid, Estimate(trim_mean(values, 0.25, axis=0), low, high, np.full(len(grid), len(values)))
