"""Claims about behaviour: the fit finds the curve, intervals cover it, and counts are counts."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import make_recording
from scipy.optimize import approx_fprime

from mpn_rl.analysis import behaviour, trials
from mpn_rl.analysis.confidence_intervals import MissingDataError


def choices(n=4000, theta=(5.0, 0.1, 0.1, 0.05), seed=0):
    """Signed strengths, and choices drawn from a known psychometric curve."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-50.0, -25, -10, -5, 0, 5, 10, 25, 50], n)
    bias, slope, low, high = theta
    return x, (rng.random(n) < low + (1 - low - high) / (1 + np.exp(-slope * (x - bias)))).astype(float)


# --- psychometric curve -------------------------------------------------------------------------------------


def test_the_fit_recovers_the_curve_that_generated_the_choices():
    fit = behaviour.psychometric(*choices(), resamples=60)
    truth = {"bias": 5.0, "slope": 0.1, "threshold": np.log(3) / 0.1, "lapse_low": 0.1, "lapse_high": 0.05}
    for name, value in truth.items():
        estimate = fit.parameters[name]
        assert estimate.low <= value <= estimate.high and estimate.low <= estimate.value <= estimate.high, name
    assert fit.n == 4000 and fit.left_out == 0
    assert np.all(fit.band[0] <= fit.curve) and np.all(fit.curve <= fit.band[1])


@pytest.mark.parametrize("strengths", [[-50.0, -25, -12, -6, -3, 3, 6, 12, 25, 50], [-50.0, -15, -5, 5, 15, 50]])
def test_printed_intervals_of_the_parameters_hold_the_truth(strengths):
    """Threshold, slope and lapses, of 80 recordings of 500 trials; benchmarks/interval_coverage.py has more."""
    slope, low, high = 0.1, 0.05, 0.1
    truths = {"slope": slope, "threshold": np.log(3) / slope, "lapse_low": low, "lapse_high": high}
    held = {name: [] for name in truths}
    for seed in range(80):
        rng = np.random.default_rng(seed)
        x = rng.choice(strengths, 500)
        right = rng.random(500) < low + (1 - low - high) / (1 + np.exp(-slope * (x - 2)))
        fit = behaviour.psychometric(x, right.astype(float), resamples=100, seed=seed)
        for name in truths.keys() - fit.undetermined.keys():
            held[name].append(fit.parameters[name].low <= truths[name] <= fit.parameters[name].high)
    assert min(map(len, held.values())) >= 70
    assert all(0.90 <= np.mean(values) <= 0.99 for values in held.values()), {k: np.mean(v) for k, v in held.items()}


def test_measured_shares_are_counts_at_each_strength():
    x, high = np.array([-1.0, -1, 0, 0, 0, 2, 2]), np.array([0.0, 0, 0, 1, 1, 1, np.nan])
    fit = behaviour.psychometric(x, high, resamples=2)
    assert fit.levels.tolist() == [-1, 0, 2] and fit.measured.n.tolist() == [2, 3, 1]
    np.testing.assert_allclose(fit.measured.value, [0, 2 / 3, 1])
    assert (fit.n, fit.left_out) == (6, 1)


def test_the_gradient_of_the_likelihood_is_the_numeric_one():
    x, high, n = np.array([-1.0, 0.0, 0.5]), np.array([2.0, 5.0, 9.0]), np.array([10.0, 10.0, 10.0])
    theta = np.array([0.1, 2.0, 0.05, 0.1])
    numeric = approx_fprime(theta, lambda t: behaviour._loss(t, x, high, n)[0], 1e-7)
    np.testing.assert_allclose(behaviour._loss(theta, x, high, n)[1], numeric, atol=1e-5)


def test_more_trials_give_a_narrower_interval():
    width = [
        (fit := behaviour.psychometric(*choices(n), resamples=60).parameters["bias"]).high - fit.low
        for n in (500, 8000)
    ]
    assert width[1] < width[0] / 2


def test_an_agent_without_errors_has_lapses_near_zero_with_an_interval():
    x = np.repeat([-2.0, -1, 1, 2], 50)
    fit = behaviour.psychometric(x, (x > 0).astype(float), resamples=60)
    for end in ("lapse_low", "lapse_high"):
        assert fit.parameters[end].value < 1e-3 and 0.005 < fit.parameters[end].high < 0.1


def test_lapses_without_errors_are_as_uncertain_as_jeffreys_prior_says():
    """Four strengths on each side, 100 trials each, no error: the mean over four of Beta(1/2, 100.5) has its 97.5 %
    quantile near 0.0125; with Beta(2, 102) it would be near 0.031."""
    x = np.repeat([-8.0, -7.0, -6.0, -5.0, 5.0, 6.0, 7.0, 8.0], 100)
    fit = behaviour.psychometric(x, (x > 0).astype(float))
    draws = np.random.default_rng(1).beta(0.5, 100.5, (20_000, 4)).mean(axis=1)
    expected = np.quantile(draws, 0.975)
    for name in ("lapse_low", "lapse_high"):
        assert fit.parameters[name].high == pytest.approx(expected, rel=0.25)


def test_a_fit_repeats_and_does_not_touch_the_global_random_state():
    before = np.random.get_state()[1].copy()
    first, again = (behaviour.psychometric(*choices(300), resamples=10) for _ in range(2))
    np.testing.assert_array_equal(first.band, again.band)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("x", "high", "reason"),
    [
        ([0.0, 1.0, 0.0, 1.0], [0.0, 1, 0, 1], "three strengths"),
        ([0.0, 1, 2, 3], [1.0, 1, 1, 1], "same choice"),
        ([np.nan] * 4, [1.0, 0, 1, 0], "three strengths"),
        ([0.0, 1, 2, 3], [np.nan] * 4, "three strengths"),
    ],
)
def test_a_curve_that_cannot_be_fitted_is_a_sentence(x, high, reason):
    with pytest.raises(MissingDataError, match=reason):
        behaviour.psychometric(np.array(x), np.array(high))


def counted(*rows):
    """A table over seeds of rows (coherence, right action, choice, trials)."""
    names = ("condition_coh", "ground_truth", "choice", "trials")
    return dict(zip(names, np.array(rows, float).T, strict=True))


def test_choices_over_seeds_are_means_of_shares_with_t_intervals():
    first = counted((10, 2, 2, 37), (10, 2, 1, 13), (5, 2, 2, 2), (10, 1, 1, 4), (5, 1, 2, 1), (5, 1, 0, 9))
    second = counted((10, 2, 2, 38), (10, 2, 1, 12), (10, 1, 1, 6), (5, 1, 1, 1))
    alone = counted((10, 2, 2, 1), (10, 1, 2, 1))
    curves, label = behaviour.choices_over_seeds({"mpn": [first, second], "gru": [alone]})
    x, shares = curves["mpn"]
    assert label == "coherence (%)" and x.tolist() == [-10, -5, 5, 10]
    # Shares of the seeds: 0 and 0; 1 and 0; 1 and no trial; 0.74 and 0.76, whose standard error is 0.01.
    assert shares.value.tolist() == pytest.approx([0, 0.5, 1, 0.75]) and shares.n.tolist() == [2, 2, 1, 2]
    half = 12.7062 * 0.01
    assert shares.low.tolist() == pytest.approx([np.nan, 0, np.nan, 0.75 - half], abs=1e-6, nan_ok=True)
    assert shares.high.tolist() == pytest.approx([np.nan, 1, np.nan, 0.75 + half], abs=1e-6, nan_ok=True)
    x, shares = curves["gru"]
    assert x.tolist() == [-10, 10] and shares.value.tolist() == [1, 1] and np.isnan(shares.low).all()
    with pytest.raises(MissingDataError, match="three strengths"):
        behaviour.choices_over_seeds({"gru": [alone]})


def test_many_strengths_over_seeds_are_grouped_at_the_same_quantiles():
    rng = np.random.default_rng(0)
    tables = [counted(*((c, 1 + (c > 50), 1 + (c > 50), 1) for c in rng.uniform(0, 100, 200))) for _ in range(2)]
    for table in tables:
        table["condition_log_odd"] = table.pop("condition_coh") - 50
    x, shares = behaviour.choices_over_seeds({"mpn": tables})[0]["mpn"]
    assert len(x) == behaviour.GROUPS and (np.diff(x) > 0).all() and set(shares.n) == {2}
    assert shares.value[[0, -1]].tolist() == [0, 1]


# --- scores and rates ---------------------------------------------------------------------------------------


def observed():
    activity = make_recording()
    found = trials.complete_trials(activity)
    return activity, found, trials.trial_table(activity, found)


def test_the_observer_of_a_recording_has_no_bias_and_few_lapses():
    fit, label = behaviour.psychometric_of(observed()[2], resamples=60)
    assert label == "coherence (%)" and fit.n == 200
    assert fit.parameters["bias"].low < 0 < fit.parameters["bias"].high
    # The sum of four steps is N(0.2 c, 4): d' at 10 % is 1, so a threshold of a few per cent.
    assert 2 < fit.parameters["threshold"].value < 12


def test_accuracy_is_the_mean_score_in_each_group():
    table = observed()[2]
    groups = {group.name: group for group in behaviour.accuracy_by_condition(table)}
    assert list(groups) == ["all", "right action", "coh"]
    for label, value, n in zip(groups["coh"].labels, groups["coh"].score.value, groups["coh"].score.n, strict=True):
        own = table["condition_coh"] == label
        assert value == pytest.approx(table["correct"][own].mean()) and n == own.sum()
    assert groups["coh"].score.value[-1] > groups["coh"].score.value[0] + 0.3


def test_accuracy_of_two_channels_is_by_the_attended_and_the_other_one():
    """Each channel has one of two contexts; trials are right where the attended coherence is 50."""
    context, first, second = np.array([0, 1, 0, 1, 0, 1] * 4), np.tile([5, 5, 50], 8), np.tile([50, 5, 5, 50], 6)
    attended = np.where(context == 0, first, second)
    table = {"correct": (attended == 50).astype(float), "ground_truth": np.ones(24), "condition_context": context,
             "condition_coh_1": first, "condition_coh_2": second}  # fmt: skip
    groups = {group.name: group.score.value.tolist() for group in behaviour.accuracy_by_condition(table)}
    assert list(groups) == ["all", "context", "attended coherence", "unattended coherence"]
    assert groups["attended coherence"] == [0, 1]
    other = np.where(context == 0, second, first)
    assert groups["unattended coherence"] == pytest.approx([np.mean(attended[other == c] == 50) for c in (5, 50)])


def test_a_task_without_scores_is_a_sentence():
    table = {**observed()[2], "correct": np.full(200, np.nan)}
    with pytest.raises(MissingDataError, match="scores no trials"):
        behaviour.accuracy_by_condition(table)


def test_rates_count_trials_and_the_steps_of_each_period():
    activity, found, _ = observed()
    activity["actions"][found[0][-1]] = 0  # one decision withheld
    activity["actions"][found[1][3]] = 1  # one action during the stimulus
    rates = behaviour.rates(activity, found, trials.trial_table(activity, found))
    assert rates.decided.value == 1 and rates.withheld.value == pytest.approx(1 / 200)
    assert rates.acting["stimulus"].value == pytest.approx(1 / 800) and rates.acting["stimulus"].n == 800
    assert rates.acting["fixation"].value == 0 and rates.acting["decision"].value == pytest.approx(199 / 200)
    assert rates.reaction.value == 0


def with_aborts(activity, share, column=True, seed=0):
    """The recording with some trials cut after two steps of stimulus: the agent acts there, and the task aborts."""
    keep, rng = np.ones(len(activity["actions"]), bool), np.random.default_rng(seed)
    changed = {name: array.copy() for name, array in activity.items()}
    changed["aborted"] = np.zeros(len(keep), bool)
    for trial in trials.complete_trials(activity):
        if rng.random() < share:
            keep[trial[4:]] = False
            changed["actions"][trial[3]], changed["new_trial"][trial[3]] = 1, True
            changed["aborted"][trial], changed["correct"][trial] = True, 0.0
    if not column:
        del changed["aborted"]
    return {name: array[keep] if array.ndim else array for name, array in changed.items()}


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.6])
def test_aborted_trials_have_no_choice_and_are_counted(share, column):
    """Without the column of older recordings too, although most trials end in the stimulus."""
    whole = make_recording(episodes=40)
    activity = with_aborts(whole, share, column)
    found = trials.complete_trials(activity)
    table = trials.trial_table(activity, found)
    cut = np.array([len(trial) == 4 for trial in found])
    assert table["aborted"].tolist() == cut.tolist() and table["decided"].tolist() == (~cut).tolist()
    for name in ("choice", "ground_truth", "reaction"):
        assert np.isnan(table[name][cut]).all() and not np.isnan(table[name][~cut]).any()
    rates = behaviour.rates(activity, found, table)
    assert rates.decided.value == pytest.approx(1 - cut.mean()) and rates.decided.n == 400
    assert rates.aborted.value == pytest.approx(cut.mean()) and rates.reaction.value == 0
    fit, _ = behaviour.psychometric_of(table, resamples=20)
    assert (fit.n, fit.left_out) == (np.sum(~cut), np.sum(cut))
    confusion = behaviour.confusion(table)
    assert confusion.truths.tolist() == confusion.choices.tolist() == [1, 2] and confusion.counts.sum() == np.sum(~cut)
    labels, _ = trials.label_sets(activity, trials.align_periods(activity, found), table)
    assert np.isnan(labels["choice"][cut]).all() and set(labels["choice"][~cut]) == {1, 2}


def test_a_recording_of_aborted_trials_alone_has_no_decisions():
    activity = with_aborts(make_recording(), 1.1)
    found = trials.complete_trials(activity)
    table = trials.trial_table(activity, found)
    rates = behaviour.rates(activity, found, table)
    assert rates.decided.value == 0 and rates.aborted.value == 1 and rates.reaction is None
    for measure in (behaviour.psychometric_of, behaviour.confusion):
        with pytest.raises(MissingDataError):
            measure(table)


def test_withheld_decisions_are_those_where_an_action_was_right():
    """Of four decided trials, two ask to act; one of these is withheld. Withholding in the others is right."""
    activity, found, table = observed()
    table = {name: values[:5] for name, values in table.items()}
    table |= {"decided": np.array([True] * 4 + [False]), "aborted": np.array([False] * 4 + [True])}
    table |= {"ground_truth": np.array([1.0, 2, 0, 0, np.nan]), "choice": np.array([0.0, 2, 0, 1, np.nan])}
    rates = behaviour.rates(activity, found[:5], table)
    assert (rates.withheld.value, rates.withheld.n) == (0.5, 2)
    assert (rates.decided.value, rates.aborted.value) == (0.8, 0.2)


def test_confusion_counts_every_trial_once():
    table = {"ground_truth": np.array([1.0, 1, 2, 2, np.nan]), "choice": np.array([1, 0, 2, 2, 1])}
    confusion = behaviour.confusion(table)
    assert confusion.truths.tolist() == [1, 2] and confusion.choices.tolist() == [0, 1, 2]
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 0, 2]]
    with pytest.raises(MissingDataError, match="no right action"):
        behaviour.confusion({**table, "ground_truth": np.full(5, np.nan)})


# --- what the data do not determine -------------------------------------------------------------------------

ALL = {"bias", "slope", "threshold", "lapse_low", "lapse_high"}


def drawn(levels, theta, n=600, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.choice(np.asarray(levels, float), n)
    return x, (rng.random(n) < behaviour.psychometric_curve(x, np.array(theta))).astype(float)


@pytest.mark.parametrize(
    ("levels", "high", "flat"),
    [
        # Twice the log likelihood ratio against a constant: 2.9 and 3.9; 95 % quantile of chi2(1): 3.84.
        ((-1, 0, 1), (44, 50, 56), True),
        ((-1, 0, 1), (43, 50, 57), False),
        # With lapses: 7.3 and 8.8; of chi2(3): 7.81.
        ((-3, -1, 1, 3), (41, 47, 53, 59), True),
        ((-3, -1, 1, 3), (40, 47, 53, 60), False),
    ],
)
def test_a_curve_is_flat_where_the_likelihood_ratio_test_says_so(levels, high, flat):
    strength = np.repeat(np.asarray(levels, float), 100)
    chose = np.concatenate([np.arange(100) < count for count in high]).astype(float)
    undetermined = behaviour.psychometric(strength, chose, resamples=20).undetermined
    assert ("the choices do not depend on the evidence" in undetermined.values()) == flat


@pytest.mark.parametrize(
    ("levels", "theta", "open_ones"),
    [
        ((-51, -26, -13, -6, 6, 13, 26, 51), (0.0, 0.0, 0.1, 0.1), ALL),  # chance: a threshold of 5.6e10 before
        ((-1, 0, 1), (0.0, 4.0, 0.0, 0.0), {"lapse_low", "lapse_high"}),  # three strengths: [24.998, 25.000] before
        ((-1, 0, 1), (0.0, 500.0, 0.0, 0.0), {"slope", "threshold", "lapse_low", "lapse_high"}),
        ((-51, -26, -13, -6, 6, 13, 26, 51), (0.5, 50.0, 0.0, 0.0), {"slope", "threshold"}),  # no errors
        ((-2, -1, 1, 2), (0.0, 2.0, 0.05, 0.05), set()),
    ],
)
def test_a_parameter_that_the_data_do_not_determine_has_no_value(levels, theta, open_ones):
    fit = behaviour.psychometric(*drawn(levels, theta))
    assert open_ones <= set(fit.undetermined) and (open_ones or len(fit.undetermined) <= 2)
    for name, part in fit.parameters.items():
        assert np.isfinite(part[:3]).all() != (name in fit.undetermined), name
    assert np.isfinite(fit.curve).all() and np.isfinite(fit.band).all()


def test_an_undetermined_threshold_is_named_in_the_title():
    import visualize
    from mpn_rl.analysis.figures import behaviour_figures

    fit = behaviour.psychometric(*drawn((-2, -1, 1, 2), (0.0, 500.0, 0.0, 0.0)))
    _, ax = visualize.new_figure()
    behaviour_figures.plot_psychometric(fit, ax, label="coherence")
    assert "threshold not determined" in ax.get_title(loc="left")


def test_the_fit_is_at_least_as_likely_as_that_of_a_general_optimiser():
    from scipy.optimize import minimize

    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, n = np.linspace(-1, 1, 9), np.full(9, 40.0)
        high = rng.binomial(40, behaviour.psychometric_curve(x, rng.uniform([-0.5, 1, 0, 0], [0.5, 20, 0.2, 0.2])))
        bounds = [(-2, 2), (0, behaviour.STEEPEST), (0, 0.4), (0, 0.4)]
        starts = np.array([[0.0, slope, 0.05, 0.05] for slope in (1.0, 5.0, 25.0)])
        others = [minimize(lambda t: behaviour._loss(t, x, high, n)[:2], start, jac=True, bounds=bounds).fun  # noqa: B023
                  for start in starts]  # fmt: skip
        theta, loss = behaviour._fit(x, high[None].astype(float), n, starts)
        assert loss[0] <= min(others) + 1e-6
        assert behaviour._loss(theta[0], x, high, n)[0] == pytest.approx(loss[0])


def test_hundreds_of_strengths_are_grouped():
    rng = np.random.default_rng(1)
    x = 20 * rng.standard_normal(600)
    fit = behaviour.psychometric(x, (rng.random(600) < 1 / (1 + np.exp(-0.1 * x))).astype(float), resamples=60)
    assert len(fit.levels) == behaviour.MOST_LEVELS and fit.measured.n.sum() == fit.n == 600
    assert fit.parameters["bias"].low < 0 < fit.parameters["bias"].high


def test_commitment_is_the_last_change_of_the_preferred_choice() -> None:
    """The preference turns to the final choice at a known step of every trial, and waiting has the highest value."""
    activity = make_recording()
    found = trials.complete_trials(activity)
    table = trials.trial_table(activity, found)
    turns = np.random.default_rng(0).integers(0, 9, len(found))
    values = np.zeros((len(activity["actions"]), 3))
    values[:, 0] = 5.0
    for steps, choice, turn in zip(found, table["choice"], turns, strict=True):
        values[steps[turn:], choice] = 1.0
        values[steps[:turn], 3 - choice] = 1.0
    result = behaviour.commitment({**activity, "q_values": values}, found, table)
    np.testing.assert_array_equal(result.time, (turns - 2) * 100.0)  # the stimulus begins at step 2
    assert result.period == "stimulus" and result.unit == "ms"
    assert result.mean["all trials"].value == pytest.approx(np.mean(turns - 2) * 100)
    at = result.grid.tolist().index(300.0)
    assert (
        result.committed["all trials"].value[at] == np.mean(turns <= 5)
        and result.committed["all trials"].value[-1] == 1
    )
    assert list(result.mean) == ["all trials", "strength 0", "strength 10", "strength 20", "strength 40"]


def test_commitment_without_values_or_with_one_choice_is_missing() -> None:
    activity = make_recording()
    found = trials.complete_trials(activity)
    table = trials.trial_table(activity, found)
    with pytest.raises(MissingDataError, match="no values or probabilities"):
        behaviour.commitment(activity, found, table)
    same = {**table, "choice": np.ones_like(table["choice"])}
    with pytest.raises(MissingDataError, match="does not make two different choices"):
        behaviour.commitment({**activity, "q_values": np.ones((len(activity["actions"]), 3))}, found, same)
