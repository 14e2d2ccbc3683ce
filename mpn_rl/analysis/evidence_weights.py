"""Weight of the evidence over time, of the relevant and the irrelevant cue: psychophysical kernels, two-cue curves.

The input is a recording and its trial table (`trials.py`). Unit of inference: the trial.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.trials import Aligned, Strength, Table, irrelevant_strength, known, signed_strength, take
from pca_analysis import Activity

RELEVANT, IRRELEVANT = "relevant cue", "irrelevant cue"
COMMON = 0.8  # share of the trials that have each step of a kernel
TRIALS_PER_TERM = 5  # at least, in a regression


class EvidenceWeights(NamedTuple):
    """How choices depend on the evidence.

    columns (k,): of the aligned steps that show noisy evidence. weights: {cue: arrays (k,)}, the change of the
    probability of the higher choice per standard deviation of the cue's noise at that step. total: {cue: their sum}.
    levels, shares: {cue: signed strengths (m,)}, {cue: share of the higher choice at each, arrays (m,)}.
    effect: {irrelevant cue: change of this share from its lowest to its highest strength, on a straight line, at equal
    strength of the relevant cue}.
    n: trials of the kernel.
    """

    columns: np.ndarray
    weights: dict[str, Estimate[np.ndarray]]
    total: dict[str, Estimate[float]]
    levels: dict[str, np.ndarray]
    shares: dict[str, Estimate[np.ndarray]]
    effect: dict[str, Estimate[float]]
    n: int


def linear_effects(y: np.ndarray, x: np.ndarray, contrasts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares estimates of contrasts c . b of y = X b + e, and half the width of their 95 % t intervals.

    The errors may have different variances, as choices do: V = (X^T X)^-1 X^T diag(e_i^2 / (1 - h_i)^2) X (X^T X)^-1,
    h the leverages.

    Args: y: (n,). x: (n, p), of full rank. contrasts: (k, p).

    Returns: (k,) and (k,). Source: MacKinnon & White 1985 (Journal of Econometrics 29), HC3.
    """
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ (x.T @ y)
    leverage = np.einsum("np,pq,nq->n", x, inverse, x)
    errors = (y - x @ beta) / np.maximum(1 - leverage, 1e-9)
    half = contrasts @ inverse @ (x * errors[:, None]).T  # (k, n)
    return contrasts @ beta, stdtrit(len(y) - x.shape[1], 0.975) * np.sqrt((half**2).sum(axis=1))


def _indicators(*labels: np.ndarray) -> np.ndarray:
    """A column of ones, and an indicator of each value of every label except its first, (n, p)."""
    columns = [np.ones(len(labels[0]))]
    for values in labels:
        columns += [(values == kind).astype(float) for kind in np.unique(values)[1:]]
    return np.stack(columns, axis=1)


def _directed(seen: np.ndarray, strengths: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Momentary evidence for the higher action of every cue, (cues, n, k).

    It is the observation along the direction in which it changes with the strength of the cue, by a regression of the
    trial's mean observation on the strengths (n, cues) of all cues in each context.
    """
    evidence = np.zeros((strengths.shape[1], *seen.shape[:2]))
    for kind in np.unique(context):
        own = context == kind
        centred = seen[own] - seen[own].mean(axis=0)
        shown = strengths[own] - strengths[own].mean(axis=0)
        directions = np.linalg.lstsq(shown, centred.mean(axis=1), rcond=None)[0]  # (cues, D)
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
        evidence[:, own] = np.einsum("nkd,cd->cnk", centred, directions)
    return evidence


def _changing(observations: np.ndarray, rows: np.ndarray, use: np.ndarray, context: np.ndarray) -> np.ndarray:
    """The columns of `rows` that COMMON of the trials `use` have, and whose observation differs within a context."""
    columns = []
    for column in np.flatnonzero((rows[use] >= 0).sum(axis=0) >= max(COMMON * use.sum(), 1)):
        there = use & (rows[:, column] >= 0)
        shown = [observations[rows[there & (context == kind), column]] for kind in np.unique(context[there])]
        if any(np.ptp(own, axis=0).max() > 1e-6 for own in shown):
            columns.append(column)
    return np.array(columns, int)


def evidence_weights(activity: Activity, aligned: Aligned, table: Table) -> EvidenceWeights:
    """Regress the choice on the noise of the evidence at every step, among trials of equal strength.

    The noise of a cue is its momentary evidence (the observation along the direction in which it changes with the cue's
    strength, in each context apart) less what strengths and context explain. All steps of both cues, and indicators of
    the strengths and of the context, are in one linear regression (`linear_effects`): weights say what each step adds.

    Raises: MissingDataError without graded evidence, noise, or enough trials.

    Source: Ahumada 1996 (Perception 25); Mante et al. 2013 (Nature 503) for the two cues. Differs from both: regression
    instead of means of the noise by choice, because the noise of steps and cues may be correlated.
    """
    relevant = signed_strength(table)
    strengths: dict[str, Strength] = {RELEVANT: relevant}
    with contextlib.suppress(MissingDataError):
        strengths[IRRELEVANT] = irrelevant_strength(table)
    choice = table["choice"]
    use = np.isin(choice, (relevant.low_action, relevant.high_action))
    use &= np.all([known(strength.values) for strength in strengths.values()], axis=0)
    context = table.get("condition_context", np.zeros(len(choice)))
    columns = _changing(activity["observations"], aligned.rows, use, context)
    use &= (aligned.rows[:, columns] >= 0).all(axis=1)
    if not use.any() or not len(columns):
        raise MissingDataError("no trial with graded evidence ends with one of the two choices")
    high = (choice[use] == relevant.high_action).astype(float)
    own = {cue: strength.values[use] for cue, strength in strengths.items()}
    context = context[use]
    given = _indicators(context, *own.values())
    given = given[:, _independent(given)]
    seen = take(activity["observations"], aligned.rows[np.ix_(use, columns)]).astype(float)
    noise = {}
    for cue, evidence in zip(own, _directed(seen, np.stack([*own.values()], axis=1), context), strict=True):
        noise[cue] = evidence - given @ np.linalg.lstsq(given, evidence, rcond=None)[0]
    noisy = np.all([part.std(axis=0) > 1e-6 for part in noise.values()], axis=0)
    if not noisy.any():
        raise MissingDataError("the evidence has no noise, so its steps cannot be told apart")
    columns, k = columns[noisy], int(noisy.sum())
    scaled = [part[:, noisy] / part[:, noisy].std() for part in noise.values()]
    x = np.hstack([given, *scaled])
    if len(x) < TRIALS_PER_TERM * x.shape[1]:
        raise MissingDataError(f"{len(x)} trials are too few for the weights of {k} steps")
    steps = np.eye(x.shape[1])[given.shape[1] :]
    sums = np.stack([steps[place * k : (place + 1) * k].sum(axis=0) for place in range(len(noise))])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise MissingDataError("the noise of some steps or cues is the same, so it cannot be told apart")
    value, half = linear_effects(high, x, np.vstack([steps, sums]))
    weights, total = {}, {}
    for place, cue in enumerate(noise):
        at = slice(place * k, (place + 1) * k)
        weights[cue] = Estimate(value[at], value[at] - half[at], value[at] + half[at], np.full(k, len(x)))
        middle, width = float(value[len(steps) + place]), float(half[len(steps) + place])
        total[cue] = Estimate(middle, middle - width, middle + width, len(x))
    return EvidenceWeights(columns, weights, total, *_shares(high, own, context), len(x))


def _independent(x: np.ndarray) -> np.ndarray:
    """The columns that are no linear combination of those before them."""
    corner = np.abs(np.diag(np.linalg.qr(x)[1]))
    return np.flatnonzero(corner > 1e-9 * corner.max())


def _shares(
    high: np.ndarray, strengths: dict[str, np.ndarray], context: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Estimate[np.ndarray]], dict[str, Estimate[float]]]:
    """`levels`, `shares` and `effect` of EvidenceWeights."""
    levels, shares, effect = {}, {}, {}
    for cue, values in strengths.items():
        kinds, place = np.unique(values, return_inverse=True)
        levels[cue] = kinds
        shares[cue] = confidence_intervals.proportion(np.bincount(place, high), np.bincount(place))
        if cue == IRRELEVANT:
            given = _indicators(context, strengths[RELEVANT])
            x = np.hstack([given[:, _independent(given)], values[:, None] / np.ptp(kinds)])
            (value,), (half,) = linear_effects(high, x, np.eye(x.shape[1])[-1:])
            effect[cue] = Estimate(float(value), float(value - half), float(value + half), len(high))
    return levels, shares, effect
