"""Values with 95 % intervals and n, the error for missing data, and the comparison of several runs.

A measure that the data do not support raises `MissingDataError`. Its text is a sentence for the page: "not available:
the task has no coherence". Where only the interval is unknown, as for a single seed, its ends are nan.

Runs are compared by interquartile means and probabilities of improvement. With five seeds no paired test can reach
p < 0.05 (the smallest Wilcoxon p is 1/16), so the results are intervals, not tests.
Source: Agarwal et al. 2021 (NeurIPS, "Deep reinforcement learning at the edge of the statistical precipice"). Differs
from Agarwal et al.: t and score intervals, because percentile bootstraps of 3 to 5 seeds hold the truth in 76 to 89 %;
every task has the same weight, whatever its number of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import stdtrit

from mpn_rl.statistics import (
    QUARTER,
    common_grid,
    effective_n,
    mean_interval,
    mean_over,
    score_interval,
    trimmed_mean,
    wilson,
)

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
    """Share k/n with Wilson's 95 % interval (`statistics.wilson`), element by element; nan where n = 0.

    Args: successes: k. n: number of trials, of the same shape.
    """
    k, n = np.asarray(successes, float), np.asarray(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = k / n
    low, high = wilson(k, n)
    return Estimate(share, low[()], high[()], n[()])


def grouped_proportion(hits: ArrayLike, groups: ArrayLike) -> Estimate[float]:
    """Share of hits with Wilson's interval for the number of independent hits (`statistics.effective_n`).

    Args: hits: 0 or 1, (n,), n >= 1. groups: of each hit; those of one group may depend on each other, (n,).

    Returns: the estimate; its n counts the hits and misses.
    """
    share, n = float(np.asarray(hits).mean()), effective_n(hits, groups)
    low, high = wilson(share * n, n)
    return Estimate(share, float(low), float(high), np.size(hits))


def mean(values: ArrayLike) -> Estimate[float]:
    """The mean of all values that are not nan, with Student's interval.

    Args: values: (n,). A single value, or values that are all equal, have no interval.

    Raises: MissingDataError where all values are nan.
    """
    x = _not_nan(values)
    low, high = mean_interval(x)
    return Estimate(float(x.mean()), float(low), float(high), len(x))


def mean_score(scores: ArrayLike) -> Estimate[float]:
    """The mean score of trials: Wilson's interval if each trial is right (1) or wrong (0), else as `mean`.

    Args: scores: (n,); nan is left out.

    Raises: MissingDataError where all scores are nan.
    """
    x = _not_nan(scores)
    return Estimate(float(x.mean()), *score_interval(x), len(x))


def _not_nan(values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        raise MissingDataError("there is nothing to average")
    return x


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
    """The interquartile mean of each task's runs, averaged over tasks with equal weights, and its t interval.

    Of n runs, floor(n / 4) are left out at each end (`statistics.trimmed_mean`). n counts the runs of all tasks.

    Args: scores: of one task, (n,), or {task: (n,)}; nan is left out. The interval is nan if a task has one seed.
    """
    strata = _strata(scores)
    joint = mean_over([trimmed_mean(values, QUARTER) for values in strata])
    low, high = joint.interval()
    return Estimate(float(joint.value), float(low), float(high), sum(map(len, strata)))


def probability_of_improvement(scores: Scores | ArrayLike, others: Scores | ArrayLike) -> Estimate[float]:
    """P(X > Y) + P(X = Y) / 2 for a run X of `scores` and Y of `others` on the same task, averaged over tasks.

    The interval of a task is `_improvement_interval`. The distances of its ends from the value are combined over K
    tasks as sqrt(sum_k d_k^2) / K (Zou & Donner 2008, Statistics in Medicine 27). n counts the runs of both sides.

    Args: scores, others: of one task, (n,), or {task: (n,)}; only common tasks count. The interval is nan if a task
        has one seed on a side.
    """
    if isinstance(scores, Mapping) and isinstance(others, Mapping):
        tasks = [task for task in scores if task in others]
        scores, others = {task: scores[task] for task in tasks}, {task: others[task] for task in tasks}
    ours, theirs = _strata(scores), _strata(others)
    shares, ends = [], []
    for x, y in zip(ours, theirs, strict=True):
        shares.append(float(np.mean(np.sign(np.subtract.outer(x, y)) / 2 + 0.5)))
        ends.append(_improvement_interval(shares[-1], len(x), len(y)))
    value = np.array(shares)
    below, above = np.linalg.norm(np.abs(np.array(ends).T - value), axis=1) / len(value)
    middle = float(value.mean())
    return Estimate(middle, middle - float(below), middle + float(above), sum(map(len, [*ours, *theirs])))


def _improvement_interval(share: float, n: int, m: int) -> tuple[float, float]:
    """The 95 % interval of p = P(X > Y) + P(X = Y) / 2, as all p that are compatible with the measured share.

        (share - p)^2 <= t^2 V(p),   V(p) = p (1 - p) / (n m) (1 + ((n + m) / 2 - 1) ((1 - p) / (2 - p) + p / (1 + p)))

    Source: Newcombe 2006 (Statistics in Medicine 25, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic", part 2, method 5). Differs from Newcombe: t with n + m - 2 degrees of freedom instead of z,
    which holds the truth in 95 to 99 % for 5 and more runs per side instead of 91 to 95 %. With 3 runs per side and
    equal groups it always holds 0.5: no order of six runs is rarer than 10 %.
    """
    if min(n, m) < 2:
        return np.nan, np.nan
    t2 = stdtrit(n + m - 2, 0.975) ** 2

    def excess(p: float) -> float:
        variance = p * (1 - p) / (n * m) * (1 + ((n + m) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p)))
        return (share - p) ** 2 - t2 * variance

    low = 0.0 if share == 0 else brentq(excess, 0.0, min(share, 1 - 1e-9))
    high = 1.0 if share == 1 else brentq(excess, max(share, 1e-9), 1.0)
    return low, high


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
    """Interquartile mean over seeds at every step, with its 95 % t interval; nan where all seeds are equal.

    Args: curves: (steps, values) per seed, interpolated to their `common_grid`.

    Returns: the steps (k,), and the estimate, arrays (k,). Raises: MissingDataError where the curves share no step.
    """
    if not curves or min(np.size(steps) for steps, _ in curves) == 0:
        raise MissingDataError("no evaluations were logged")
    grid, values = common_grid(curves)
    if not len(grid):
        raise MissingDataError("the runs' evaluations share no step")
    middle = trimmed_mean(values, QUARTER)
    return grid, Estimate(middle.value, *middle.interval(), np.full(len(grid), len(values)))
