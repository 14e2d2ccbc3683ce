"""Claims about the demixed variance: known parts have known shares, and noise has none."""

from __future__ import annotations

import numpy as np
import pytest

from mpn_rl.analysis import demixed
from mpn_rl.analysis.confidence_intervals import MissingDataError

TRIALS, STEPS = 160, 5


def population(time=0.0, stimulus=0.0, choice=0.0, both=0.0, noise=0.0, seed=0):
    """Values (N, 4), rows and labels: each part moves one feature of its own, in a balanced design."""
    rng = np.random.default_rng(seed)
    s, c = np.tile([-1.0, -1, 1, 1], TRIALS // 4), np.tile([-1.0, 1, -1, 1], TRIALS // 4)
    ramp = np.linspace(-1, 1, STEPS)
    x = np.zeros((TRIALS, STEPS, 4))
    x[:, :, 0] = time * ramp
    x[:, :, 1], x[:, :, 2] = stimulus * s[:, None], choice * c[:, None]
    x[:, :, 3] = both * (s * c)[:, None]
    x += noise * rng.standard_normal(x.shape)
    rows = np.arange(TRIALS * STEPS).reshape(TRIALS, STEPS)
    return x.reshape(-1, 4), rows, {"stimulus": s, "choice": c}


def test_shares_are_those_of_the_parts_that_were_put_in():
    # Per trial and step: time has mean square (1 + 1/4 + 0 + 1/4 + 1) / 5 = 1/2, the others their squared size.
    result = demixed.demixed(*population(time=2, stimulus=1, choice=2, both=3))
    expected = {"time": 2.0, "stimulus": 1.0, "choice": 4.0, "stimulus x choice": 9.0}
    for name, value in expected.items():
        assert result.shares[name] == pytest.approx(value / 16)
    assert result.within == pytest.approx(0, abs=1e-12)
    assert result.n.tolist() == [40] * 4 and result.cells == [(-1, -1), (-1, 1), (1, -1), (1, 1)]


def test_axes_point_along_the_features_of_their_parts_and_courses_follow_them():
    result = demixed.demixed(*population(time=2, stimulus=1, choice=2, both=3))
    for feature, name in enumerate(result.axes):
        np.testing.assert_allclose(np.abs(result.axes[name]), np.eye(4)[feature], atol=1e-9)
    spread = result.courses["choice"]  # (cells, T): choice -1, 1, -1, 1
    np.testing.assert_allclose(np.abs(spread), 2, atol=1e-9)
    np.testing.assert_allclose(spread[0], -spread[1], atol=1e-9)


def test_one_factor_takes_what_varies_with_it_over_time_too():
    x, rows, labels = population(time=1, stimulus=1)
    x[:, 2] += x[:, 0] * x[:, 1]  # a ramp whose sign is the stimulus: an interaction of stimulus and time
    result = demixed.demixed(x, rows, {"stimulus": labels["stimulus"]})
    assert list(result.shares) == ["time", "stimulus"]
    assert result.shares["time"] == pytest.approx(0.5 / (0.5 + 1 + 0.5))


def test_noise_alone_stays_at_the_level_of_shuffled_labels_and_a_signal_does_not():
    noise = demixed.demixed(*population(noise=1), shuffles=60)
    signal = demixed.demixed(*population(noise=1, choice=1), shuffles=60)
    assert noise.shares["stimulus"] < 1.5 * noise.chance["stimulus"]
    assert signal.shares["choice"] > 0.9 > 1.5 * signal.chance["choice"]
    assert 0.9 < noise.within <= 1
    # Variance 1 of noise in each of four features, and of choice in one.
    assert signal.within == pytest.approx(4 / 5, abs=0.05)


def test_trials_that_end_early_count_as_long_as_they_last():
    x, rows, labels = population(stimulus=1)
    rows = rows.copy()
    rows[:40, -1] = -1
    result = demixed.demixed(x, rows, labels)
    assert result.shares["stimulus"] == pytest.approx(1)
    rows[:, -1] = -1
    assert np.isnan(demixed.demixed(x, rows, labels).courses["stimulus"][:, -1]).all()


def test_factors_that_never_part_are_a_sentence():
    x, rows, labels = population(stimulus=1)
    with pytest.raises(MissingDataError, match=r"too few trials \(0\) have stimulus -1.0, choice 1.0 to separate"):
        demixed.demixed(x, rows, {"stimulus": labels["stimulus"], "choice": labels["stimulus"]})
    with pytest.raises(MissingDataError, match="choice is the same"):
        demixed.demixed(x, rows, {"stimulus": labels["stimulus"], "choice": np.ones(TRIALS)})


def test_trials_without_a_label_are_left_out():
    x, rows, labels = population(stimulus=1)
    labels["stimulus"] = labels["stimulus"].copy()
    labels["stimulus"][:40] = np.nan
    assert demixed.demixed(x, rows, labels).n.sum() == 120
