"""Claims about intervals: they contain the value, have their coverage, and are nan where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.confidence_intervals import MissingDataError


def test_wilson_interval_of_eight_in_ten_is_the_textbook_one():
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = 0.8, n = 10, z = 1.96
    share = confidence_intervals.proportion(8, 10)
    assert share.value == 0.8 and share.low == pytest.approx(0.4902, abs=1e-4)
    assert share.high == pytest.approx(0.9433, abs=1e-4)


def test_shares_of_none_and_all_keep_an_interval_inside_zero_and_one():
    share = confidence_intervals.proportion([0, 20], 20)
    assert share.low[0] == 0 and 0.1 < share.high[0] < 0.2
    assert share.high[1] == 1 and 0.8 < share.low[1] < 0.9


def test_a_share_of_nothing_is_nan():
    assert np.isnan(confidence_intervals.proportion(0, 0)[:3]).all()


def test_mean_of_zeros_and_ones_is_a_share_and_skips_nan():
    assert confidence_intervals.mean_score([1, 0, np.nan, 1, 1])[:3] == pytest.approx(
        confidence_intervals.proportion(3, 4)[:3]
    )


def test_a_mean_that_happens_to_be_of_zeros_and_ones_is_no_share():
    """Reaction times of 0 or 1 step have Student's interval; Wilson's is for trials that are right or wrong."""
    steps = np.array([1.0] * 6)
    assert confidence_intervals.mean(steps).value == 1.0
    assert np.isnan(confidence_intervals.mean(steps)[1:3]).all()  # six equal times say nothing about their spread
    assert confidence_intervals.mean_score(steps).low < 0.7
    graded = np.array([0.0, 0.5, 1.0])
    assert confidence_intervals.mean_score(graded) == confidence_intervals.mean(graded)


def test_the_interval_of_a_mean_agrees_with_the_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = confidence_intervals.mean(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert mean.value == pytest.approx(values.mean())
    assert (mean.value - mean.low, mean.high - mean.value) == pytest.approx((half, half), rel=0.01)


def test_one_value_has_no_interval_and_no_value_is_missing():
    only = confidence_intervals.mean([2.5])
    assert only.value == 2.5 and np.isnan(only.low) and only.n == 1
    with pytest.raises(MissingDataError, match="not available: there is nothing to average"):
        confidence_intervals.mean([np.nan])


def test_attempt_gives_the_value_or_the_sentence():
    def fail():
        raise MissingDataError("the recording has no M")

    assert confidence_intervals.attempt(lambda: 3) == 3
    assert confidence_intervals.attempt(fail) == "not available: the recording has no M"


# --- several runs -------------------------------------------------------------------------------------------


def test_interquartile_mean_cuts_a_quarter_at_each_end():
    assert confidence_intervals.interquartile_mean([0.0, 1, 2, 100]).value == 1.5
    assert confidence_intervals.interquartile_mean([5.0, 1, 2, 3, -99]).value == 2  # one of five at each end


def test_tasks_have_equal_weights_whatever_their_numbers_of_seeds():
    estimate = confidence_intervals.interquartile_mean({"a": [0.0, 1.0], "b": [2.0, 3.0]})
    assert estimate.value == 1.5 and estimate.n == 4
    estimate = confidence_intervals.interquartile_mean({"a": [0.0, 0.2] * 20, "b": [1.0, 0.8]})
    assert estimate.value == pytest.approx(0.5) and estimate.n == 42


def test_the_difference_between_tasks_does_not_widen_the_interval():
    spread = [0.4, 0.5, 0.6]
    near = confidence_intervals.interquartile_mean({"a": spread, "b": spread})
    far = confidence_intervals.interquartile_mean({"a": spread, "b": [100 + score for score in spread]})
    assert far.high - far.low == pytest.approx(near.high - near.low)


def test_the_interval_of_normal_scores_is_about_that_of_their_mean():
    scores = np.random.default_rng(0).normal(0, 1, 400)
    estimate = confidence_intervals.interquartile_mean(scores)
    assert estimate.low < estimate.value < estimate.high
    assert 0.8 * 3.92 / 20 < estimate.high - estimate.low < 1.5 * 3.92 / 20


def test_one_seed_has_a_value_and_no_interval():
    estimate = confidence_intervals.interquartile_mean([0.7])
    assert estimate.value == 0.7 and np.isnan(estimate.low) and np.isnan(estimate.high) and estimate.n == 1
    chance = confidence_intervals.probability_of_improvement([0.7], [0.6, 0.5])
    assert chance.value == 1 and np.isnan(chance.low)


def test_probability_of_improvement_counts_pairs_and_halves_ties():
    # (2 > 1), (2 = 2): 1.5 of 2; (3 > 1), (3 > 2): 2 of 2; together 3.5 of 4.
    chance = confidence_intervals.probability_of_improvement([2.0, 3.0], [1.0, 2.0])
    assert chance.value == 3.5 / 4 and chance.n == 4 and chance.low <= chance.value <= chance.high


def test_the_interval_of_an_improvement_solves_newcombes_equation():
    # All of 4 above all of 5: share 1, upper end 1. At the lower end p, (1 - p)^2 = t^2 V(p), t(0.975, 7) = 2.3646.
    chance = confidence_intervals.probability_of_improvement([6.0, 7, 8, 9], [1.0, 2, 3, 4, 5])
    p = chance.low
    variance = p * (1 - p) / 20 * (1 + 3.5 * ((1 - p) / (2 - p) + p / (1 + p)))
    assert chance.high == 1 and (1 - p) ** 2 == pytest.approx(2.3646**2 * variance, rel=1e-3)
    swapped = confidence_intervals.probability_of_improvement([1.0, 2, 3, 4, 5], [6.0, 7, 8, 9])
    assert swapped.low == 0 and swapped.high == pytest.approx(1 - p)


@pytest.mark.parametrize(("n", "m", "least", "most"), [(3, 3, 0.96, 1.0), (5, 5, 0.93, 0.99), (4, 10, 0.93, 0.99)])
@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_probabilities_of_improvement_are_covered(n, m, least, most, shift):
    """Scores of sd 1 and 2, so P(X > Y) = Phi(shift / sqrt 5). Of six runs, no order excludes 0.5."""
    rng = np.random.default_rng(0)
    held, truth = [], float(norm.cdf(shift / np.sqrt(5)))
    for x, y in zip(rng.normal(shift, 1, (500, n)), rng.normal(0, 2, (500, m)), strict=True):
        chance = confidence_intervals.probability_of_improvement(x, y)
        held.append(chance.low <= truth <= chance.high)
    assert least <= np.mean(held) <= most


def test_identical_groups_rarely_differ_over_several_tasks():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(500):
        x, y = (
            {task: rng.normal(size=n) for task, n in zip("abc", sizes, strict=True)} for sizes in ((3, 5, 4), (3, 3, 8))
        )
        chance = confidence_intervals.probability_of_improvement(x, y)
        held.append(chance.low <= 0.5 <= chance.high)
    assert 0.93 <= np.mean(held) <= 0.99


def test_probability_of_improvement_is_averaged_over_the_tasks_that_both_have():
    ours, theirs = {"a": [1.0, 1], "b": [0.0, 0], "c": [9.0, 9]}, {"b": [1.0, 1], "a": [0.0, 0]}
    assert confidence_intervals.probability_of_improvement(ours, theirs).value == 0.5


def test_nan_scores_are_left_out_and_none_at_all_is_a_sentence():
    assert confidence_intervals.interquartile_mean([1.0, np.nan, 1.0]).n == 2
    with pytest.raises(MissingDataError, match="no scores"):
        confidence_intervals.interquartile_mean([np.nan])


def test_a_comparison_has_a_row_per_group_and_a_line_per_pair():
    measures = {
        "accuracy": {"mpn": [0.9, 0.8], "gru": [0.7, 0.6], "lstm": [np.nan]},
        "participation ratio": {"mpn": [3.0, 4.0], "gru": [5.0, 6.0]},
    }
    rows, pairs = confidence_intervals.compare(measures)
    assert [(row.measure, row.group, row.iqm.value) for row in rows] == [
        ("accuracy", "mpn", pytest.approx(0.85)), ("accuracy", "gru", pytest.approx(0.65)),
        ("participation ratio", "mpn", 3.5), ("participation ratio", "gru", 5.5),
    ]  # fmt: skip
    assert [(pair.group, pair.other, pair.probability.value) for pair in pairs] == [
        ("mpn", "gru", 1),
        ("mpn", "gru", 0),
    ]


def test_learning_bands_interpolate_and_end_with_the_shortest_run():
    curves = [([0, 100, 200], [0.0, 1.0, 2.0]), ([0, 200], [0.0, 4.0]), ([0, 50, 150], [0.0, 0.0, 0.0])]
    grid, band = confidence_intervals.learning_band(curves)
    assert grid.tolist() == [0, 50, 100, 150] and band.n.tolist() == [3] * 4
    np.testing.assert_allclose(band.value, [0, 0.5, 1, 1.5])  # means of (0, 0, 0), (.5, 1, 0), (1, 2, 0), (1.5, 3, 0)
    assert np.isnan(band.low[0])  # all seeds start at 0
    assert np.all(band.low[1:] < band.value[1:]) and np.all(band.value[1:] < band.high[1:])


def test_one_run_has_a_curve_without_a_band_and_no_run_is_a_sentence():
    grid, band = confidence_intervals.learning_band([([0, 10], [0.5, 0.6])])
    assert band.value.tolist() == [0.5, 0.6] and np.isnan(band.low).all() and band.n.tolist() == [1, 1]
    for curves in ([], [([], [])], [([0, 1], [0, 0]), ([5, 6], [0, 0])]):
        with pytest.raises(MissingDataError):
            confidence_intervals.learning_band(curves)
