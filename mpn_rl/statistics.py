"""95 % intervals for means, shares and ratios, and a common grid for several learning curves.

The intervals of means assume independent values. They hold the truth in 92 to 96 % of samples of 3 to 20 normal,
uniform or Beta(20, 2) values; in fewer where the values are strongly skewed or in two clusters (docs/analysis.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
QUARTER = 0.25  # cut off at each end by the interquartile mean


FEWEST_SEEDS = 5  # with fewer, the order of two groups often changes with the seeds


def few_seeds_note(counts: Mapping[str, int]) -> str:
    """A remark on groups of fewer than FEWEST_SEEDS runs, by name; "" without such a group."""
    few = [f"{name} has {n}" for name, n in counts.items() if n < FEWEST_SEEDS]
    if not few:
        return ""
    more = f", and {len(few) - 3} more" if len(few) > 3 else ""
    return f"fewer than {FEWEST_SEEDS} seeds: {', '.join(few[:3])}{more}; more seeds may change the order"


class Mean(NamedTuple):
    """A mean over n values, its standard error and the degrees of freedom of its t interval, each (...)."""

    value: np.ndarray
    error: np.ndarray
    freedom: np.ndarray

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95 % t interval; nan where the standard error is 0 or unknown: the values do not vary."""
        from scipy.special import stdtrit  # slow to import

        known = (self.error > 0) & (self.freedom > 0)
        half = np.where(known, stdtrit(np.where(known, self.freedom, 1.0), 0.975) * self.error, np.nan)
        return self.value - half, self.value + half


def trimmed_mean(values: ArrayLike, cut: float = 0.0) -> Mean:
    """The mean of the values without the floor(n cut) lowest and highest; with cut = 0 the ordinary mean.

        error^2 = SS_w / (h (h - 1)),   freedom = h - 1

    h is the number of values that are left, SS_w the sum of squares of the Winsorized values about their mean. With
    cut = 0 the interval is Student's.

    Source: Tukey & McLaughlin 1963 (Sankhya A 25).

    Args:
        values: n values along the first axis, (n, ...), n >= 1.
        cut: share at each end, in [0, 0.5).
    """
    ordered = np.sort(np.asarray(values, float), axis=0)
    n = len(ordered)
    g = int(n * cut)
    h = n - 2 * g
    value = ordered[g : n - g].mean(axis=0)
    winsorized = np.clip(ordered, ordered[g], ordered[n - 1 - g])
    # Equal values may differ from their mean by rounding.
    squares = np.where(np.ptp(winsorized, axis=0) > 0, winsorized.var(axis=0) * n, 0.0)
    error = np.sqrt(squares / (h * (h - 1))) if h > 1 else np.full_like(value, np.nan)
    return Mean(value, error, np.full_like(value, h - 1))


def mean_over(means: Sequence[Mean]) -> Mean:
    """The unweighted mean of independent means, with Satterthwaite's degrees of freedom.

    error^2 = sum_k e_k^2 / K^2,   freedom = (sum_k e_k^2)^2 / sum_k (e_k^4 / f_k)
    """
    value, error, freedom = (np.stack(parts) for parts in zip(*means, strict=True))
    squares = error**2
    total, spread = squares.sum(axis=0), (squares**2 / np.maximum(freedom, 1)).sum(axis=0)
    joint = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1.0), 0.0)
    return Mean(value.mean(axis=0), np.sqrt(total) / len(means), joint)


def mean_interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95 % interval of the mean over the first axis; nan for one value and where all values are equal."""
    return trimmed_mean(values).interval()


def wilson(successes: ArrayLike, n: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval (1927) of the share k/n, element by element; nan where n = 0.

    Unlike k/n +- 1.96 standard errors, the interval stays inside [0, 1] and has a width at 0 and at 1.

    Args: successes: k, (...). n: number of independent trials, (...); it need not be whole.
    """
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = k / n
        middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    low, high = np.where(k == 0, 0.0, middle - half), np.where(k == n, 1.0, middle + half)  # exact ends
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def effective_n(hits: ArrayLike, groups: ArrayLike) -> float:
    """The number of independent trials whose share of hits is as certain as that of trials in groups.

        min(n, p (1 - p) / v),   v = E / (E - 1) sum_e (h_e - p n_e)^2 / n^2

    v is the variance of the share p with the E groups as independent units. Where all are hits, or none, it is E.

    Args: hits: of each trial, 0 or 1, (n,). groups: the group of each trial, such as its episode, (n,).
    """
    hit = np.asarray(hits, float)
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    n, many, share = len(hit), len(size), float(hit.mean())
    squares = float(((np.bincount(group, hit) - share * size) ** 2).sum())
    if share in (0, 1) or many < 2:
        return float(many)
    return min(float(n), share * (1 - share) * n**2 * (many - 1) / (many * squares)) if squares > 0 else float(n)


def score_interval(scores: ArrayLike) -> tuple[float, float]:
    """The interval of the mean score of trials: Wilson's if each score is 0 or 1, else Student's.

    Args: scores: of independent trials, (n,). An empty array has the interval (nan, nan).
    """
    x = np.asarray(scores, float)
    if len(x) == 0:
        return np.nan, np.nan
    low, high = wilson(x.sum(), len(x)) if np.isin(x, (0, 1)).all() else mean_interval(x)
    return float(low), float(high)


def normalised_interval(agent: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[float, float]:
    """Fieller's 95 % interval (1954) of the normalised score (a - b) / (h - b) of three means.

    It holds every s for which a - s h - (1 - s) b does not differ from 0:

        (a - s h - (1 - s) b)^2 <= t^2 (v_a + s^2 v_h + (1 - s)^2 v_b)

    Args:
        agent: the agent's score in each trial, (n,).
        low, high: those of the policies whose scores count as 0 and as 1, (n',), (n'',). All are taken as independent;
            trials on the same seeds are positively correlated, which makes the interval wide rather than narrow.

    Returns: the ends; nan where a sample has fewer than two values, or where h and b do not differ.
    """
    from scipy.special import stdtrit

    samples = [np.asarray(values, float) for values in (agent, low, high)]
    if min(map(len, samples)) < 2:
        return np.nan, np.nan
    (a, b, h), (va, vb, vh) = zip(*((x.mean(), x.var(ddof=1) / len(x)) for x in samples), strict=True)
    t2 = stdtrit(min(map(len, samples)) - 1, 0.975) ** 2
    # The inequality as p s^2 - 2 q s + r <= 0.
    p = (h - b) ** 2 - t2 * (vh + vb)
    q = (a - b) * (h - b) - t2 * vb
    r = (a - b) ** 2 - t2 * (va + vb)
    root = q**2 - p * r
    if p <= 0 or root <= 0:
        return np.nan, np.nan
    return float((q - np.sqrt(root)) / p), float((q + np.sqrt(root)) / p)


def common_grid(curves: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[np.ndarray, np.ndarray]:
    """Learning curves of several seeds, interpolated to the steps that all of them cover.

    Args:
        curves: (steps, values) of each of n seeds, with increasing steps.
    Returns: all T steps at which any seed has a value, within the range that all seeds cover, and the values at these
        steps, (n, T). T is 0 if the curves do not overlap.
    """
    known = [(np.asarray(steps, float), np.asarray(values, float)) for steps, values in curves]
    grid = np.unique(np.concatenate([steps for steps, _ in known]))
    grid = grid[(grid >= max(steps[0] for steps, _ in known)) & (grid <= min(steps[-1] for steps, _ in known))]
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in known])
