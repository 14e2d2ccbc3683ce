"""Measures of behaviour: psychometric curve, accuracy by condition, response rates, confusion of choices.

The input is the trial table of `trials.py`. Every number has a 95 % interval and its n.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri, expit

from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.trials import Table, known, selected_coherence, signed_strength
from pca_analysis import Activity

LARGEST_LAPSE = 0.4
STEEPEST = 200.0  # largest slope times largest strength: steeper curves look like a step
FLATTEST = 1e-3  # smallest slope times largest strength: flatter curves look like a line
MOST_LEVELS = 32  # strengths that are fitted one by one
GROUPS = 10  # of strengths in a curve over seeds, where there are more than MOST_LEVELS
MOST_ACTIONS = 1000  # in the table of right and chosen actions
MOST_STRENGTHS = 6  # of which the commitment is shown one by one
FARTHEST = 2.0  # largest bias over largest strength
Curve = tuple[np.ndarray, Estimate[np.ndarray]]  # x (k,), arrays (k,)


class Psychometric(NamedTuple):
    """The measured shares and the fitted curve.

    levels (k,), measured (arrays (k,)): the share of choices of the higher action at each strength.
    x (200,), curve (200,), band (2, 200): the fit and its 95 % band.
    parameters: bias (the strength at the middle of the curve), slope (1 / strength), threshold (distance from the bias
    to three quarters of the rise), lapse_low and lapse_high (distance of the two ends from 0 and 1); nan where the data
    do not determine it. undetermined: {parameter: why}.
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
    undetermined: dict[str, str]


class ByCondition(NamedTuple):
    """The mean score in each group of a condition: name, labels (k,), score (arrays (k,))."""

    name: str
    labels: np.ndarray
    score: Estimate[np.ndarray]


class Rates(NamedTuple):
    """Shares of trials, and of steps by period.

    decided: trials that were not aborted. aborted: trials that ended before their decision. withheld: of the decided
    trials whose right action is not 0, those that ended with action 0. reaction: mean time in the unit of
    `trial_table`; None where no trial was decided.
    acting: {period: share of steps with an action other than 0}.
    """

    decided: Estimate
    aborted: Estimate
    withheld: Estimate
    reaction: Estimate[float] | None
    acting: dict[str, Estimate]


class Commitment(NamedTuple):
    """When the agent's preferred choice becomes the final one and stays.

    time (n,): of each trial, from the onset `period`, in `unit`; nan where the trial has no choice. grid (k,): times.
    committed: {group of trials: share that is committed by each time, arrays (k,)}. mean: {group: mean time}.
    """

    time: np.ndarray
    grid: np.ndarray
    committed: dict[str, Estimate[np.ndarray]]
    mean: dict[str, Estimate[float]]
    period: str
    unit: str


class Confusion(NamedTuple):
    """Number of trials, counts (G, C), by right action, truths (G,), and chosen action, choices (C,)."""

    truths: np.ndarray
    choices: np.ndarray
    counts: np.ndarray


# --- psychometric curve -------------------------------------------------------------------------------------


def psychometric_curve(x: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """P(x) = l0 + (1 - l0 - l1) / (1 + exp(-s (x - b))), theta = (b, s, l0, l1), (..., 4) -> (..., k)."""
    bias, slope, low, high = np.moveaxis(np.asarray(theta)[..., None], -2, 0)
    return low + (1 - low - high) * expit(slope * (x - bias))


def _loss(
    theta: np.ndarray, x: np.ndarray, high: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Binomial negative log-likelihood per trial, for `high` of n choices at each x.

    Args: theta: (..., 4). high: (..., k).

    Returns: the loss (...), its gradient (..., 4) and the Fisher information (..., 4, 4).
    """
    bias, slope, l0, l1 = np.moveaxis(np.asarray(theta)[..., None], -2, 0)
    rise = expit(slope * (x - bias))
    p = np.clip(l0 + (1 - l0 - l1) * rise, 1e-9, 1 - 1e-9)
    total = n.sum()
    loss = -(high * np.log(p) + (n - high) * np.log1p(-p)).sum(axis=-1) / total
    steep = (1 - l0 - l1) * rise * (1 - rise)
    jacobian = np.stack([-slope * steep, (x - bias) * steep, 1 - rise, -rise], axis=-1)  # dp / dtheta, (..., k, 4)
    gradient = np.einsum("...k,...ki->...i", ((n - high) / (1 - p) - high / p) / total, jacobian)
    weighted = jacobian * (n / (p * (1 - p)) / total)[..., None]
    return loss, gradient, np.einsum("...ki,...kj->...ij", weighted, jacobian)


def _fit(
    x: np.ndarray,
    high: np.ndarray,
    n: np.ndarray,
    starts: np.ndarray,
    fixed: Mapping[int, float] | None = None,
    most: int = 40,
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum likelihood for many data sets at once, by Fisher scoring with damping inside the bounds.

    Args:
        x: strengths, scaled to [-1, 1], (k,).
        high: number of choices of the higher action, a row per data set, (R, k).
        n: number of choices, (k,).
        starts: every data set is fitted from each of them, (S, 4).
        fixed: values of parameters that are not fitted, by their place in theta.
        most: number of iterations, at most.

    Returns: theta of the best start (R, 4), and its loss (R,).
    """
    lower = np.array([-FARTHEST, 0.0, 0.0, 0.0])
    upper = np.array([FARTHEST, STEEPEST, LARGEST_LAPSE, LARGEST_LAPSE])
    for place, value in (fixed or {}).items():
        lower[place] = upper[place] = value
    theta = np.repeat(np.clip(starts, lower, upper), len(high), axis=0)  # (S R, 4)
    rows = np.tile(high, (len(starts), 1))
    losses: np.ndarray = np.full(len(theta), np.inf)
    open_fits: np.ndarray = np.arange(len(theta))
    damping: np.ndarray = np.full(len(theta), 1e-2)
    here = theta
    loss, gradient, information = _loss(here, x, rows, n)
    for _ in range(most):
        held = ((here <= lower) & (gradient > 0)) | ((here >= upper) & (gradient < 0)) | (lower == upper)
        inner = information * (~held[:, :, None] & ~held[:, None, :])
        ridge = np.where(held, 1.0, np.einsum("rii->ri", inner) * damping[:, None] + 1e-12)
        step = np.linalg.solve(inner + ridge[..., None] * np.eye(4), np.where(held, 0.0, gradient)[..., None])[..., 0]
        moved = np.clip(here - step, lower, upper)
        new = _loss(moved, x, rows, n)
        better = new[0] < loss
        done = np.where(better, loss - new[0] < 1e-9, damping > 1e3)
        here = np.where(better[:, None], moved, here)
        loss, gradient = np.where(better, new[0], loss), np.where(better[:, None], new[1], gradient)
        information = np.where(better[:, None, None], new[2], information)
        damping = np.where(better, np.maximum(damping / 10, 1e-9), damping * 10)
        theta[open_fits], losses[open_fits] = here, loss
        if done.all():
            break
        left = ~done
        open_fits, here, damping, rows = open_fits[left], here[left], damping[left], rows[left]
        loss, gradient, information = loss[left], gradient[left], information[left]
    losses = losses.reshape(len(starts), -1)
    best, sets = losses.argmin(axis=0), np.arange(len(high))
    return theta.reshape(len(starts), -1, 4)[best, sets], losses[best, sets]


def psychometric(strength: np.ndarray, chose_high: np.ndarray, resamples: int = 400, seed: int = 0) -> Psychometric:
    """Fit a logistic curve with lapses to choices against signed strength, by maximum likelihood.

        P(high | x) = l0 + (1 - l0 - l1) / (1 + exp(-s (x - b))),   0 <= l0, l1 <= 0.4

    More than MOST_LEVELS strengths are grouped at quantiles, each group at its mean. Three strengths do not determine
    four parameters: the lapses are then 0. Intervals and band are percentiles of `resamples` refits to shares drawn
    from Beta(k + 1/2, n - k + 1/2) at each strength, where k of n choices are high, widened to include the fit itself.
    This is a Bayesian bootstrap: drawing choices with replacement would never change a strength at which all choices
    agree, and the lapses would have intervals of zero width.

    A parameter is not determined where its interval reaches a bound; the slope also where the steepest curve is as
    likely, as for an agent without errors; and no parameter where the curve is not better than a constant (likelihood
    ratios at 5 %).

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
    if len(levels) > MOST_LEVELS:
        edges = np.quantile(strength[use], np.linspace(0, 1, MOST_LEVELS + 1)[1:-1])
        group = np.searchsorted(edges, strength[use], side="right")
        _, place, sizes = np.unique(group, return_inverse=True, return_counts=True)
        levels = np.bincount(place, strength[use]) / sizes
    if len(levels) < 3:
        raise MissingDataError(
            f"a psychometric curve needs three strengths of evidence, the recording has {len(levels)}"
        )
    n = np.bincount(place).astype(float)
    high = np.bincount(place, np.asarray(chose_high, float)[use])
    if high.sum() in (0, n.sum()):
        raise MissingDataError("the agent made the same choice in all trials")
    scale, lapses = np.abs(levels).max(), len(levels) > 3
    scaled = levels / scale
    starts = np.array([[bias, slope, 0.05, 0.05] for bias in (-0.3, 0.0, 0.3) for slope in (1.0, 5.0, 25.0)])
    fixed = {} if lapses else {2: 0.0, 3: 0.0}
    best, loss = _fit(scaled, high[None], n, starts, fixed)
    draws = n * np.random.default_rng(seed).beta(high + 0.5, n - high + 0.5, (resamples, len(n)))
    thetas = np.concatenate([best, _fit(scaled, draws, n, np.concatenate([best, starts[4:5]]), fixed)[0]])
    x = np.linspace(levels[0], levels[-1], 200)
    curves = psychometric_curve(x / scale, thetas)
    count = int(n.sum())
    share = high.sum() / count
    constant = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    flat = 2 * count * (constant - float(loss[0])) < chdtri(3 if lapses else 1, 0.05)
    step_loss = _fit(scaled, high[None], n, np.concatenate([best, starts]), fixed | {1: STEEPEST})[1]
    steep = 2 * count * float(step_loss[0] - loss[0]) < chdtri(1, 0.05)
    reasons = _undetermined(thetas, flat, steep, lapses)
    slope = np.maximum(thetas[:, 1], FLATTEST)
    values = {"bias": thetas[:, 0] * scale, "slope": thetas[:, 1] / scale, "threshold": np.log(3) / slope * scale}
    values |= {"lapse_low": thetas[:, 2], "lapse_high": thetas[:, 3]}
    parameters = {}
    for name, fits in values.items():
        low, upper = (np.nan, np.nan) if name in reasons else _spread(fits).tolist()
        parameters[name] = Estimate(np.nan if name in reasons else float(fits[0]), low, upper, count)
    measured = confidence_intervals.proportion(high, n.astype(int))
    return Psychometric(
        levels, measured, x, curves[0], _spread(curves), parameters, count, len(strength) - count, reasons
    )


def _undetermined(thetas: np.ndarray, flat: bool, steep: bool, lapses: bool) -> dict[str, str]:
    """{parameter: why the data do not determine it}, from the fit and its refits, (1 + resamples, 4).

    Args:
        flat: whether the curve is not better than a constant.
        steep: whether the steepest curve is as likely.
        lapses: whether they are fitted.
    """
    names = ("bias", "slope", "threshold", "lapse_low", "lapse_high")
    if flat:
        return dict.fromkeys(names, "the choices do not depend on the evidence")
    low, high = _spread(thetas)
    reasons = {}
    if low[0] <= -0.99 * FARTHEST or high[0] >= 0.99 * FARTHEST:
        reasons["bias"] = "the middle of the curve lies far from the strengths shown"
    if steep or high[1] >= 0.99 * STEEPEST:
        reasons |= dict.fromkeys(("slope", "threshold"), "any steep curve fits")
    elif low[1] <= FLATTEST:
        reasons |= dict.fromkeys(("slope", "threshold"), "any flat curve fits")
    for place, name in ((2, "lapse_low"), (3, "lapse_high")):
        if not lapses:
            reasons[name] = "three strengths do not determine lapses, which are 0 in this fit"
        elif high[place] >= 0.99 * LARGEST_LAPSE:
            reasons[name] = "the curve has no flat end within the strengths shown"
    return reasons


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


def choices_over_seeds(groups: Mapping[str, Sequence[Table]]) -> tuple[dict[str, Curve], str]:
    """P(higher action) by signed strength: the mean over the seeds of each group, with Student's interval over seeds.

    More than MOST_LEVELS strengths are grouped at quantiles of all trials, each group at its mean. A strength has an
    interval if two seeds or more have trials there that do not all give the same share.

    Args: groups: {group: a table per seed}. A table has the columns of `trials.trial_table` that give the strength, the
        right action and the choice, and `trials`: how many trials a row stands for.

    Returns: {group: (strengths (k,), arrays (k,), n counts seeds)}, and the name of the strength.

    Raises: MissingDataError without graded evidence or with fewer than three strengths.
    """
    rows: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}  # per seed: strength, high, trials
    label, missing = "", MissingDataError("no trial was completed")
    for group, tables in groups.items():
        for table in tables:
            try:
                strength = signed_strength(table)
            except MissingDataError as reason:
                missing = reason
                continue
            label, choice = strength.label, table["choice"]
            use = known(strength.values) & np.isin(choice, (strength.low_action, strength.high_action))
            high = choice[use] == strength.high_action
            rows.setdefault(group, []).append((strength.values[use], high, table["trials"][use]))
    if not rows:
        raise missing
    every = [seed for seeds in rows.values() for seed in seeds]
    x, _, n = (np.concatenate(parts) for parts in zip(*every, strict=True))
    levels = np.unique(x)
    if len(levels) < 3:
        raise MissingDataError(f"a psychometric curve needs three strengths of evidence, the runs have {len(levels)}")
    edges = (levels[1:] + levels[:-1]) / 2
    if len(levels) > MOST_LEVELS:
        order = np.argsort(x)
        cumulated = np.cumsum(n[order])
        edges = np.unique(x[order][np.searchsorted(cumulated, np.arange(1, GROUPS) / GROUPS * cumulated[-1])])

    def count(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(edges, x, side="right"), weights, len(edges) + 1)

    curves: dict[str, Curve] = {}
    with np.errstate(invalid="ignore"):  # nan where a seed, or every seed, has no trial at a strength
        middles = count(x, x * n) / count(x, n)
        for group, seeds in rows.items():
            shares = np.stack([count(x, high * n) / count(x, n) for x, high, n in seeds])
            there = np.flatnonzero(known(shares).any(axis=0))
            means = [confidence_intervals.mean(column) for column in shares[:, there].T]
            value, low, high, seeds_there = confidence_intervals.gather(means)
            curves[group] = middles[there], Estimate(value, low.clip(0, 1), high.clip(0, 1), seeds_there)
    return curves, label


# --- scores and rates ---------------------------------------------------------------------------------------


def accuracy_by_condition(table: Table, most: int = 8) -> list[ByCondition]:
    """The mean score over all trials, then for each value of every condition that has two to `most` values.

    Raises: MissingDataError where the task scores no trials.
    """
    score = table["correct"]
    if not known(score).any():
        raise MissingDataError("the task scores no trials")
    everything = ByCondition(
        "all", np.array(["all trials"]), confidence_intervals.gather([confidence_intervals.mean_score(score)])
    )
    rows = [everything]
    columns = {"right action": table["ground_truth"]}
    columns |= {name.removeprefix("condition_"): table[name] for name in table if name.startswith("condition_")}
    columns.pop("ground_truth", None)
    if selected := selected_coherence(table):  # instead of the channels' own, in which both contexts are mixed
        columns = {name: values for name, values in columns.items() if not re.fullmatch(r"coh_\d+", name)} | selected
    for name, values in columns.items():
        scored = known(values) & known(score)
        labels = np.unique(values[scored])
        if 2 <= len(labels) <= most:
            groups = [confidence_intervals.mean_score(score[scored & (values == label)]) for label in labels]
            rows.append(ByCondition(name, labels, confidence_intervals.gather(groups)))
    return rows


def rates(activity: Activity, trials: Sequence[np.ndarray], table: Table) -> Rates:
    """Shares of decided trials, withheld decisions and steps with an action in each period; mean reaction time.

    The unit of inference is the trial, for the steps too.

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
    of_trial = np.repeat(np.arange(len(trials)), [len(trial) for trial in trials])
    acting = {
        name: confidence_intervals.grouped_proportion(acted[period == name], of_trial[period == name]) for name in names
    }
    return Rates(
        confidence_intervals.proportion(decided.sum(), len(decided)),
        confidence_intervals.proportion(table["aborted"].sum(), len(decided)),
        confidence_intervals.proportion(withheld.sum(), int(asked.sum())),
        confidence_intervals.mean(table["reaction"]) if decided.any() else None,
        acting,
    )


def commitment(activity: Activity, trials: Sequence[np.ndarray], table: Table) -> Commitment:
    """The time of the first step from which the preferred choice is the final one, to the end of the trial.

    The preferred choice of a step is the one with the highest value (q_values) or probability (action_probabilities) of
    the actions with which decided trials end; it exists at every step, whether the agent acts or waits. Time counts
    from the onset of the first period that is not called fixation: it is at most 0 where the preference before any
    evidence was the final one by chance. Groups are all trials and, with two to MOST_STRENGTHS strengths of the
    evidence, those of equal strength.

    Args: activity: a recording. trials: the steps of each trial. table: `trials.trial_table` of these trials.

    Raises: MissingDataError where values of actions were not recorded, or the agent never makes two different choices.
    """
    values = activity.get("q_values", activity.get("action_probabilities"))
    if values is None:
        raise MissingDataError("the recording has no values or probabilities of the actions")
    choices = np.unique(table["choice"][table["decided"] & known(table["choice"])]).astype(int)
    choices = choices[choices < values.shape[1]]
    if len(choices) < 2:
        raise MissingDataError("the agent does not make two different choices")
    names = list(dict.fromkeys(activity["period"].tolist())) if "period" in activity else []
    period = next((name for name in names if name and name != "fixation"), "trial")
    dt = float(activity.get("dt_ms", 0.0))
    preferred = choices[values[:, choices].argmax(axis=1)]
    time: np.ndarray = np.full(len(trials), np.nan)
    for place, (steps, final) in enumerate(zip(trials, table["choice"], strict=True)):
        onset = np.flatnonzero(activity["period"][steps] == period)[:1] if names else np.zeros(1)
        if table["decided"][place] and final in choices and len(onset):
            other = np.flatnonzero(preferred[steps] != final)
            first = other[-1] + 1 if len(other) else 0
            if first < len(steps):
                time[place] = (first - onset[0]) * (dt or 1.0)
    groups = {"all trials": np.ones(len(time), bool)}
    try:
        amount = np.abs(signed_strength(table).values)
        levels = np.unique(amount[known(amount)])
        if 2 <= len(levels) <= MOST_STRENGTHS:
            groups |= {f"strength {level:g}": amount == level for level in levels}
    except MissingDataError:
        pass  # no graded evidence
    there = known(time)
    if not there.any():
        raise MissingDataError("no trial with a choice reaches the first period after fixation")
    grid = np.arange(time[there].min(), time[there].max() + (dt or 1.0), dt or 1.0)
    committed, mean = {}, {}
    for name, group in groups.items():
        own = time[group & there]
        if len(own):
            counts = (own[:, None] <= grid).sum(axis=0)
            committed[name] = confidence_intervals.proportion(counts, np.full(len(grid), len(own)))
            mean[name] = confidence_intervals.mean(own)
    return Commitment(time, grid, committed, mean, period, "ms" if dt else "steps")


def confusion(table: Table) -> Confusion:
    """Decided trials by right and chosen action.

    Raises: MissingDataError where the task has no right action.
    """
    truth = table["ground_truth"]
    labelled = known(truth) & known(table["choice"])
    if not labelled.any():
        raise MissingDataError("the task names no right action at the decision")
    truths, row = np.unique(truth[labelled].astype(int), return_inverse=True)
    choices, column = np.unique(table["choice"][labelled].astype(int), return_inverse=True)
    if max(len(truths), len(choices)) > MOST_ACTIONS:
        raise MissingDataError(f"the task has more than {MOST_ACTIONS} actions")
    counts = np.zeros((len(truths), len(choices)), int)
    np.add.at(counts, (row, column), 1)
    return Confusion(truths, choices, counts)
