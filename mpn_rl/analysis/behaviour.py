"""Measures of behaviour: psychometric curve, accuracy by condition, response rates, confusion of choices.

The input is the trial table of `trials.py`. Every number has a 95 % interval and its n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.trials import Table, known, signed_strength
from pca_analysis import Activity

LARGEST_LAPSE = 0.4
STEEPEST = 200.0  # largest slope times largest strength: steeper curves look like a step


class Psychometric(NamedTuple):
    """The measured shares and the fitted curve.

    levels (k,), measured (arrays (k,)): the share of choices of the higher action at each strength.
    x (200,), curve (200,), band (2, 200): the fit and its 95 % band.
    parameters: bias (the strength at the middle of the curve), slope (1 / strength), threshold (distance from the bias
    to three quarters of the rise), lapse_low and lapse_high (distance of the two ends from 0 and 1).
    n: trials used; left_out: trials without a strength, or with neither of the two choices.
    """

    levels: np.ndarray
    measured: Estimate[np.ndarray]
    x: np.ndarray
    curve: np.ndarray
    band: np.ndarray
    parameters: dict[str, Estimate[float]]
    n: int
    left_out: int


class ByCondition(NamedTuple):
    """The mean score in each group of a condition: name, labels (k,), score (arrays (k,))."""

    name: str
    labels: np.ndarray
    score: Estimate[np.ndarray]


class Rates(NamedTuple):
    """Shares of trials, and of steps by period.

    decided: trials that reached the deciding period. withheld: of the decided trials whose right action is not 0, those
    that ended with action 0. reaction: mean time in the unit of `trial_table`; None where no trial was decided.
    acting: {period: share of steps with an action other than 0}.
    """

    decided: Estimate
    withheld: Estimate
    reaction: Estimate[float] | None
    acting: dict[str, Estimate]


class Confusion(NamedTuple):
    """Number of trials, counts (G, C), by right action, truths (G,), and chosen action, choices (C,)."""

    truths: np.ndarray
    choices: np.ndarray
    counts: np.ndarray


# --- psychometric curve -------------------------------------------------------------------------------------


def psychometric_curve(x: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """P(x) = l0 + (1 - l0 - l1) / (1 + exp(-s (x - b))), theta = (b, s, l0, l1)."""
    bias, slope, low, high = theta
    return low + (1 - low - high) * expit(slope * (x - bias))


def _loss(theta: np.ndarray, x: np.ndarray, high: np.ndarray, n: np.ndarray) -> tuple[float, np.ndarray]:
    """Binomial negative log-likelihood per trial and its gradient, for `high` of n choices at each x."""
    bias, slope, l0, l1 = theta
    rise = expit(slope * (x - bias))
    p = np.clip(l0 + (1 - l0 - l1) * rise, 1e-9, 1 - 1e-9)
    total = n.sum()
    loss = -(high * np.log(p) + (n - high) * np.log1p(-p)).sum() / total
    dp = ((n - high) / (1 - p) - high / p) / total
    steep = dp * (1 - l0 - l1) * rise * (1 - rise)
    return loss, np.array([(-slope * steep).sum(), ((x - bias) * steep).sum(), dp @ (1 - rise), -dp @ rise])


def _fit(x: np.ndarray, high: np.ndarray, n: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    """The maximum-likelihood theta, the best of several starts; x is scaled to [-1, 1]."""
    bounds = [(-2.0, 2.0), (0.0, STEEPEST), (0.0, LARGEST_LAPSE), (0.0, LARGEST_LAPSE)]
    fits = [minimize(_loss, start, (x, high, n), jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    return min(fits, key=lambda fit: fit.fun).x


def psychometric(strength: np.ndarray, chose_high: np.ndarray, resamples: int = 400, seed: int = 0) -> Psychometric:
    """Fit a logistic curve with lapses to choices against signed strength, by maximum likelihood.

        P(high | x) = l0 + (1 - l0 - l1) / (1 + exp(-s (x - b))),   0 <= l0, l1 <= 0.4

    Intervals and band are percentiles of `resamples` refits to shares drawn from Beta(k + 1/2, n - k + 1/2) at each
    strength, where k of n choices are high, widened to include the fit itself. This is a Bayesian bootstrap: drawing
    choices with replacement would never change a strength at which all choices agree, and the lapses would have
    intervals of zero width. An agent without errors fits any steep slope; the interval then ends at the largest one.

    Args:
        strength: signed strength of the evidence, (n,), nan where unknown.
        chose_high: 1.0 for the higher action, 0.0 for the lower, nan for neither, (n,).
        resamples: number of refits.
        seed: of the refits.

    Raises: MissingDataError for fewer than three strengths, or where all choices agree.

    Source: Wichmann & Hill 2001 (Perception & Psychophysics 63). Differs from Wichmann & Hill: lapses up to 0.4, not
    0.06, because agents are also analysed before they have learned.
    """
    use = known(strength) & known(np.asarray(chose_high, float))
    levels, place = np.unique(strength[use], return_inverse=True)
    if len(levels) < 3:
        raise MissingDataError(
            f"a psychometric curve needs three strengths of evidence, the recording has {len(levels)}"
        )
    n = np.bincount(place).astype(float)
    high = np.bincount(place, np.asarray(chose_high, float)[use])
    if high.sum() in (0, n.sum()):
        raise MissingDataError("the agent made the same choice in all trials")
    scale = np.abs(levels).max()
    starts = [np.array([0.0, slope, 0.05, 0.05]) for slope in (1.0, 5.0, 25.0)]
    best = _fit(levels / scale, high, n, starts)
    rng = np.random.default_rng(seed)
    draws = n * rng.beta(high + 0.5, n - high + 0.5, (resamples, len(n)))
    thetas = np.array([best, *(_fit(levels / scale, draw, n, [best]) for draw in draws)])
    x = np.linspace(levels[0], levels[-1], 200)
    curves = np.array([psychometric_curve(x / scale, theta) for theta in thetas])
    slope = np.maximum(thetas[:, 1], 1e-9)
    values = {"bias": thetas[:, 0] * scale, "slope": thetas[:, 1] / scale, "threshold": np.log(3) / slope * scale}
    values |= {"lapse_low": thetas[:, 2], "lapse_high": thetas[:, 3]}
    count = int(n.sum())
    ends = {name: _spread(fits) for name, fits in values.items()}
    parameters = {k: Estimate(float(v[0]), float(ends[k][0]), float(ends[k][1]), count) for k, v in values.items()}
    measured = confidence_intervals.proportion(high, n.astype(int))
    return Psychometric(levels, measured, x, curves[0], _spread(curves), parameters, count, len(strength) - count)


def _spread(fits: np.ndarray) -> np.ndarray:
    """The 2.5 % and 97.5 % quantiles of all fits except the first, widened to include the first."""
    low, high = np.quantile(fits[1:], [0.025, 0.975], axis=0)
    return np.stack([np.minimum(low, fits[0]), np.maximum(high, fits[0])])


def psychometric_of(table: Table, resamples: int = 400, seed: int = 0) -> tuple[Psychometric, str]:
    """The psychometric curve of a trial table, and the name of the strength; see `trials.signed_strength`."""
    strength = signed_strength(table)
    choice = table["choice"]
    high = np.where(choice == strength.high_action, 1.0, np.where(choice == strength.low_action, 0.0, np.nan))
    return psychometric(strength.values, high, resamples, seed), strength.label


# --- scores and rates ---------------------------------------------------------------------------------------


def accuracy_by_condition(table: Table, most: int = 8) -> list[ByCondition]:
    """The mean score over all trials, then for each value of every condition that has two to `most` values.

    Raises: MissingDataError where the task scores no trials.
    """
    score = table["correct"]
    if not known(score).any():
        raise MissingDataError("the task scores no trials")
    everything = ByCondition(
        "all", np.array(["all trials"]), confidence_intervals.gather([confidence_intervals.mean(score)])
    )
    rows = [everything]
    columns = {"right action": table["ground_truth"]}
    columns |= {name.removeprefix("condition_"): table[name] for name in table if name.startswith("condition_")}
    columns.pop("ground_truth", None)
    for name, values in columns.items():
        scored = known(values) & known(score)
        labels = np.unique(values[scored])
        if 2 <= len(labels) <= most:
            groups = [confidence_intervals.mean(score[scored & (values == label)]) for label in labels]
            rows.append(ByCondition(name, labels, confidence_intervals.gather(groups)))
    return rows


def rates(activity: Activity, trials: Sequence[np.ndarray], table: Table) -> Rates:
    """Shares of decided trials, withheld decisions and steps with an action in each period; mean reaction time.

    Args:
        activity: a recording.
        trials: the steps of each trial.
        table: `trials.trial_table` of these trials.
    """
    decided = table["decided"]
    asked = decided & (table["ground_truth"] > 0)
    withheld = asked & (table["choice"] == 0)
    steps = np.concatenate(list(trials))
    period = activity["period"][steps] if "period" in activity else np.full(len(steps), "")
    names = list(dict.fromkeys(str(name) for name in period if name))
    acted = activity["actions"][steps] != 0
    acting = {
        name: confidence_intervals.proportion(acted[period == name].sum(), int(np.sum(period == name)))
        for name in names
    }
    return Rates(
        confidence_intervals.proportion(decided.sum(), len(decided)),
        confidence_intervals.proportion(withheld.sum(), int(asked.sum())),
        confidence_intervals.mean(table["reaction"]) if decided.any() else None,
        acting,
    )


def confusion(table: Table) -> Confusion:
    """Trials by right and chosen action.

    Raises: MissingDataError where the task has no right action.
    """
    truth = table["ground_truth"]
    labelled = known(truth)
    if not labelled.any():
        raise MissingDataError("the task names no right action at the decision")
    truths, row = np.unique(truth[labelled].astype(int), return_inverse=True)
    choices, column = np.unique(table["choice"][labelled], return_inverse=True)
    counts = np.zeros((len(truths), len(choices)), int)
    np.add.at(counts, (row, column), 1)
    return Confusion(truths, choices, counts)
