"""Bootstrap confidence intervals, and a common grid for several learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

LARGEST_BATCH = 1_000_000  # values per batch of resamples, which limits the memory


def bootstrap(
    *samples: np.ndarray, statistic: Callable = np.mean, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of a statistic over the first axis.

    Args:
        samples: arrays (n, ...). Each is resampled on its own: several samples make a stratified bootstrap.
        statistic: called as statistic(*samples, axis=-1), on arrays with a first axis of resamples.
        resamples: number of bootstrap resamples.
    Returns: the lower and the upper end, (...); nan if a sample has a single value.
    """
    from scipy import stats  # slow to import

    if min(map(len, samples)) < 2:
        unknown = np.full(samples[0].shape[1:], np.nan)
        return unknown, unknown
    batch = max(1, min(resamples, LARGEST_BATCH // max(sample.size for sample in samples)))
    interval = stats.bootstrap(
        samples, statistic, axis=0, vectorized=True, n_resamples=resamples, method="percentile", rng=0, batch=batch
    ).confidence_interval
    return interval.low, interval.high


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
