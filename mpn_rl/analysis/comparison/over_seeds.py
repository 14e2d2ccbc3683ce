"""The numbers of single analyses over several runs: means over seeds with Student's interval. Unit: the seed.

`stored_results.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.confidence_intervals import Estimate, GroupScore

Place = tuple[str, float]  # of a point of a curve: the period, "" outside the trial, and x in it


class Curve(NamedTuple):
    """A curve of one run: {place: value} in order, the axis labels, the step of x within a period, {period: onset}."""

    points: dict[Place, float]
    xlabel: str
    ylabel: str
    step: float = 1.0
    marks: Mapping[str, float] = {}


class CurveOverSeeds(NamedTuple):
    """A curve of several groups, {group: (x (k,), arrays (k,))}, its axis labels and {period: the x of its onset}."""

    groups: dict[str, tuple[np.ndarray, Estimate[np.ndarray]]]
    xlabel: str
    ylabel: str
    marks: Mapping[str, float]


def number_over_seeds(name: str, groups: Mapping[str, Sequence[float]]) -> list[GroupScore]:
    """A line for each group: the mean over its seeds with Student's interval, and the single values."""
    return [
        GroupScore(name, group, confidence_intervals.mean(values), np.array(values)) for group, values in groups.items()
    ]


def curve_over_seeds(groups: Mapping[str, Sequence[Curve]]) -> CurveOverSeeds | None:
    """The mean over the seeds of each group at the points that all runs of all groups have; None without such a point.

    The steps of a period are aligned on its onset. Bands of shares are cut at 0 and 1.
    """
    every = [curve for curves in groups.values() for curve in curves]
    first = every[0]
    places = [place for place in first.points if all(place in curve.points for curve in every)]
    if not places:
        return None
    share = "accuracy" in first.ylabel
    marks: Mapping[str, float] = first.marks
    x = np.array([at for _, at in places])
    if any(period for period, _ in places):
        x = first.step * np.arange(len(places))
        marks = {period: float(x[place]) for place, (period, at) in reversed(list(enumerate(places)))}
        marks = dict(sorted(marks.items(), key=lambda item: item[1]))
    means = {}
    for group, curves in groups.items():
        points = [confidence_intervals.mean([curve.points[place] for curve in curves]) for place in places]
        value, low, high, n = confidence_intervals.gather(points)
        if share:
            low, high = low.clip(0, 1), high.clip(0, 1)
        means[group] = x, Estimate(value, low, high, n)
    return CurveOverSeeds(means, first.xlabel, first.ylabel, marks)
