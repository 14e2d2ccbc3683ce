"""Claims about intervals: they contain the value, have their coverage, and are nan where there is none."""

from __future__ import annotations

import numpy as np
import pytest

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
    """Reaction times of 0 or 1 step have a bootstrap interval; Wilson's is for trials that are right or wrong."""
    steps = np.array([1.0] * 6)
    assert confidence_intervals.mean(steps)[:3] == (1.0, 1.0, 1.0)  # six equal times do not vary
    assert confidence_intervals.mean_score(steps).low < 0.7
    graded = np.array([0.0, 0.5, 1.0])
    assert confidence_intervals.mean_score(graded) == confidence_intervals.mean(graded)


def test_bootstrap_interval_agrees_with_the_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = confidence_intervals.mean(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert mean.value == pytest.approx(values.mean())
    assert (mean.value - mean.low, mean.high - mean.value) == pytest.approx((half, half), rel=0.1)


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


def test_runs_of_all_tasks_are_pooled():
    estimate = confidence_intervals.interquartile_mean({"a": [0.0, 1.0], "b": [2.0, 3.0]})
    assert estimate.value == 1.5 and estimate.n == 4


def test_resampling_keeps_to_the_tasks():
    # Each task's seeds agree, so every resample holds the same eight scores.
    estimate = confidence_intervals.interquartile_mean({"a": [0.0] * 4, "b": [1.0] * 4})
    assert estimate[:3] == (0.5, 0.5, 0.5)


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
    assert np.all(band.low <= band.value) and np.all(band.value <= band.high)


def test_one_run_has_a_curve_without_a_band_and_no_run_is_a_sentence():
    grid, band = confidence_intervals.learning_band([([0, 10], [0.5, 0.6])])
    assert band.value.tolist() == [0.5, 0.6] and np.isnan(band.low).all() and band.n.tolist() == [1, 1]
    for curves in ([], [([], [])], [([0, 1], [0, 0]), ([5, 6], [0, 0])]):
        with pytest.raises(MissingDataError):
            confidence_intervals.learning_band(curves)
