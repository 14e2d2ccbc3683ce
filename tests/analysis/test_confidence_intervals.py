"""Claims about intervals: they hold the value, cover as they say, and say when there is none."""

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
    assert confidence_intervals.mean([1, 0, np.nan, 1, 1])[:3] == pytest.approx(
        confidence_intervals.proportion(3, 4)[:3]
    )


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
