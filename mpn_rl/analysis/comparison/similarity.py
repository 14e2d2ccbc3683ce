"""How similar the states of two runs are: linear CKA and Procrustes on condition means, against permuted conditions.

What all conditions share, their common course over time, is taken out first, because any two agents on one task have
it. The two halves of a comparison are means over different episodes, so noise that two runs share does not count, and a
run compared with itself shows the highest similarity that noise leaves possible.

Source: Kornblith et al. 2019 (ICML, "Similarity of neural network representations revisited") for CKA; Williams et al.
2021 (NeurIPS, "Generalized shape metrics on neural representations") for Procrustes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import svdvals

from mpn_rl.analysis import trials
from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.analysis.trials import known
from pca_analysis import Activity, states

COMPONENTS = 20  # principal components of the condition means
LEAST_CONDITIONS = 4  # fewer have too few permutations
MEASURES = ("linear CKA", "Procrustes similarity")
Place = tuple[str, int]  # of an aligned step: its period and its number there


class ConditionMeans(NamedTuple):
    """Mean states {state: (2, C, T, F)} of two halves of the episodes, nan where a half has no trial, the C names of
    the conditions and the T places of the steps."""

    means: dict[str, np.ndarray]
    conditions: list[str]
    places: list[Place]


class Similarity(NamedTuple):
    """Of all pairs of R runs, by the names of MEASURES: value (R, R), and limit (R, R), the 95 % quantile over
    permutations of the conditions of one run. conditions, steps: number of both."""

    value: dict[str, np.ndarray]
    limit: dict[str, np.ndarray]
    conditions: int
    steps: int


def condition_means(activity: Activity) -> ConditionMeans:
    """Mean states of every condition: the signed strength of the evidence, else the stimulus; and the context.

    Episodes with even and odd numbers are the two halves. Steps are aligned as by `trials.align_periods`.

    Raises: MissingDataError for a task without trials or conditions.
    """
    complete = trials.complete_trials(activity)
    table, aligned = trials.trial_table(activity, complete), trials.align_periods(activity, complete)
    labels, _ = trials.label_sets(activity, aligned, table)
    first = labels.get("stimulus")
    with contextlib.suppress(MissingDataError):
        strength = trials.signed_strength(table).values + 0.0  # no -0
        first = strength if len(np.unique(strength[known(strength)])) <= trials.MOST_KINDS else first
    parts = [part for part in (first, labels.get("context")) if part is not None]
    if not parts:
        raise MissingDataError("neither the stimulus nor the context varies between trials")
    use = np.all([known(part) for part in parts], axis=0)
    names = np.array([", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in kinds)
                      for kinds in zip(*(part.tolist() for part in parts), strict=True)])  # fmt: skip
    conditions = sorted(set(names[use].tolist()))
    half = table["episode"] % 2
    places = [(period, column - onset) for period, onset in aligned.onsets.items()
              for column in range(onset, aligned.ends[period] + 1)]  # fmt: skip
    means = {}
    for state, array in states(activity).items():
        array = array.reshape(len(array), -1)
        result = np.full((2, len(conditions), len(places), array.shape[1]), np.nan, np.float32)
        for side, place in np.ndindex(*result.shape[:2]):
            for column, rows in enumerate(aligned.rows[use & (half == side) & (names == conditions[place])].T):
                if (rows >= 0).any():
                    result[side, place, column] = array[rows[rows >= 0]].mean(axis=0, dtype=np.float32)
        means[state] = result
    return ConditionMeans(means, conditions, places)


def similarities(runs: Sequence[ConditionMeans], state: str, shuffles: int = 200, seed: int = 0) -> Similarity:
    """The similarity of every pair of runs in the conditions and at the steps that all of them have.

        C = X^T Y,    CKA = |C|_F^2 / (|X^T X|_F |Y^T Y|_F),    Procrustes = |C|_* / (|X|_F |Y|_F)

    X and Y (P, k) are the condition means of two runs at P points, less their mean over conditions at each step, on
    their principal components; |C|_* is the sum of singular values. Both are 1 for states that differ by a rotation and
    a scale, and the mean of the two ways to take the halves of the episodes.

    Raises: MissingDataError for fewer than LEAST_CONDITIONS common conditions, or without a common step.
    """
    common = [name for name in runs[0].conditions if all(name in run.conditions for run in runs)]
    places = [place for place in runs[0].places if all(place in run.places for run in runs)]
    picked = []
    for run in runs:
        at = np.ix_([0, 1], [run.conditions.index(name) for name in common], [run.places.index(p) for p in places])
        picked.append(run.means[state][at])
    there = np.all([~np.isnan(means).any(axis=(0, 3)) for means in picked], axis=0)  # (C, T)
    kept = there.mean(axis=1) >= 0.5  # a condition that is rare in one run is left out
    steps = there[kept].all(axis=0)
    if kept.sum() < LEAST_CONDITIONS or not steps.any():
        raise MissingDataError(f"the runs have {int(kept.sum())} conditions in common, {LEAST_CONDITIONS} are needed")
    factors = [[_factor(means[side][kept][:, steps]) for side in (0, 1)] for means in picked]
    rng, count = np.random.default_rng(seed), int(kept.sum())
    orders = [np.arange(count), *(rng.permutation(count) for _ in range(shuffles))]
    shape = (len(MEASURES), len(runs), len(runs))
    value, limit = np.ones(shape), np.full(shape, np.nan)
    for i in range(len(runs)):
        for j in range(i, len(runs)):
            pairs = [(factors[i][side], factors[j][1 - side]) for side in (0, 1)]
            found = np.array([np.mean([_similarity(x, y[order]) for x, y in pairs], axis=0) for order in orders])
            value[:, i, j] = value[:, j, i] = found[0]
            limit[:, i, j] = limit[:, j, i] = np.quantile(found, 0.95, axis=0, method="higher")
    return Similarity(dict(zip(MEASURES, value, strict=True)), dict(zip(MEASURES, limit, strict=True)), count,
                      int(steps.sum()))  # fmt: skip


def _factor(means: np.ndarray) -> np.ndarray:
    """Condition means (C, T, F) less their mean over conditions, on their principal components, (C, T, k)."""
    x = (means - means.mean(axis=0)).astype(float)
    flat = x.reshape(-1, x.shape[-1])
    left, size, _ = np.linalg.svd(flat, full_matrices=False)
    return np.asarray((left * size)[:, :COMPONENTS].reshape(*x.shape[:2], -1))


def _similarity(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Linear CKA and Procrustes similarity of (C, T, k) and (C, T, k'); 0 where one of them is constant."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    size = np.linalg.norm(x) * np.linalg.norm(y)
    if size < 1e-12:
        return 0.0, 0.0
    cross = x.T @ y
    cka = np.linalg.norm(cross) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(cka), float(svdvals(cross).sum() / size)


def mean_between(value: np.ndarray, groups: Sequence[str]) -> Mapping[tuple[str, str], tuple[float, int]]:
    """The mean similarity of all pairs of different runs of two groups, and their number: {(group, group): ...}.

    It has no interval: the pairs share runs, so they are not independent.
    """
    kinds = list(dict.fromkeys(groups))
    result = {}
    for place, a in enumerate(kinds):
        for b in kinds[place:]:
            pairs = [value[i, j] for i in range(len(groups)) for j in range(len(groups))
                     if groups[i] == a and groups[j] == b and (i < j or a != b)]  # fmt: skip
            if pairs:
                result[a, b] = float(np.mean(pairs)), len(pairs)
    return result
