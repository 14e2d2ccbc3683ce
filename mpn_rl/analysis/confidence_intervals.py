"""A number with its interval, or the reason why there is none.

Every measure of the analysis comes as a value with a 95 % interval and the n that it rests on. What the data cannot
give raises `MissingDataError`, whose text is a sentence for the page: "not available: the task has no coherence".
An interval alone that cannot be had, of a single seed say, is nan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from mpn_rl.statistics import bootstrap

Z95 = 1.959963984540054  # of the normal distribution
T = TypeVar("T")


class MissingDataError(Exception):
    """The data do not hold what this measure needs; str() is a sentence that says what is missing."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not available: {reason}")


class Estimate(NamedTuple):
    """A value, the ends of its 95 % interval (nan where there is none) and the count it rests on: numbers or arrays."""

    value: Any
    low: Any
    high: Any
    n: Any


def attempt(compute: Callable[[], T]) -> T | str:
    """What compute() returns, or the sentence that says why it cannot be had."""
    try:
        return compute()
    except MissingDataError as missing:
        return str(missing)


def proportion(successes: ArrayLike, n: ArrayLike) -> Estimate:
    """Share k/n with Wilson's 95 % interval (1927), element by element; nan where n = 0.

    Unlike k/n -+ 1.96 standard errors it stays inside [0, 1] and is not empty at 0 and at 1.
    """
    k, n = np.asarray(successes, float), np.asarray(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = k / n
        middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    low, high = np.where(k == 0, 0.0, middle - half), np.where(k == n, 1.0, middle + half)  # without rounding
    return Estimate(share, np.where(n > 0, low, np.nan)[()], np.where(n > 0, high, np.nan)[()], n[()])


def mean(values: ArrayLike) -> Estimate:
    """The mean of those values that are not nan: Wilson's interval if all are 0 or 1, else a percentile bootstrap.

    Raises MissingDataError without any value. One value has no interval.
    """
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    n = len(x)
    if n == 0:
        raise MissingDataError("there is nothing to average")
    if np.isin(x, (0, 1)).all():
        share = proportion(x.sum(), n)
        return Estimate(float(share.value), float(share.low), float(share.high), n)
    low, high = bootstrap(x)
    return Estimate(float(x.mean()), float(low), float(high), n)
