"""Claims about the demixed variance: known parts have known shares, noise has none, null levels hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import f

from mpn_rl.analysis import demixed, trials
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
    assert list(result.shares) == ["time", "stimulus", "noise"]
    assert result.shares["time"] == pytest.approx(0.5 / (0.5 + 1 + 0.5))


def test_noise_is_a_share_of_its_own():
    """Variance 1 of noise in each of 4 features and 4 cells of 40 trials adds 4 / 40 to the mean square, time too.

    The mean over cells and time is subtracted, which takes 1 of 20 degrees of freedom per feature.
    """
    noise, signal = 4 / 40 * 19 / 20, 1.0
    result = demixed.demixed(*population(noise=1, choice=1), shuffles=20)
    assert result.shares["noise"] == pytest.approx(noise / (noise + signal), abs=0.03)
    assert result.shares["choice"] == pytest.approx(signal / (noise + signal), abs=0.03)
    assert sum(result.shares.values()) == pytest.approx(1)
    assert result.within == pytest.approx(4 / 5, abs=0.05)
    assert result.shares["choice"] > result.chance["choice"]


@pytest.mark.parametrize("strong", [0.0, 3.0])
def test_shares_without_an_effect_are_zero_and_pass_their_chance_level_in_one_of_twenty(strong):
    """Unequal cells: the choice follows the stimulus in 8 of 10 trials. The stimulus may have a strong effect."""
    rng = np.random.default_rng(0)
    shares, above = [], []
    s, c = np.repeat([0, 0, 1, 1], (32, 8, 8, 32)), np.repeat([0, 1, 0, 1], (32, 8, 8, 32))
    for seed in range(80):
        x = rng.standard_normal((80, 3, 2))
        x[..., 0] += strong * s[:, None]
        rows = np.arange(240).reshape(80, 3)
        result = demixed.demixed(x.reshape(240, 2), rows, {"s": s, "c": c}, shuffles=60, seed=seed)
        shares.append([result.shares[name] for name in ("time", "s", "c", "s x c")])
        above.append([result.shares[name] > result.chance[name] for name in ("s", "c", "s x c")])
    mean, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(80)
    tested = [0, 2, 3] if strong else [0, 1, 2, 3]
    assert np.all(np.abs(mean[tested]) < 3 * error[tested] + 0.01)
    alarms = np.mean(above, axis=0)
    assert np.all(alarms[1:] <= 0.13)  # 0.06 with 60 shuffles, and the error of 80 simulations
    assert alarms[0] == 1 if strong else alarms[0] <= 0.13


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 3), (3, 2)])
def test_the_chance_level_is_the_95_percent_quantile_of_an_f_distribution(first, second):
    """10 steps of 4 features of noise: a part without effect is chi^2 with 40 degrees of freedom, per free cell mean,
    over its mean.
    """
    rng = np.random.default_rng(0)
    cells = first * second
    s, c = np.divmod(np.arange(240) % cells, second)
    x = rng.standard_normal((240, 10, 4))
    result = demixed.demixed(x.reshape(-1, 4), np.arange(2400).reshape(240, 10), {"s": s, "c": c}, shuffles=500)
    free = {"s": first - 1, "c": second - 1, "s x c": (first - 1) * (second - 1)}
    for name, means in free.items():
        # The noise of a part is its share of that of all but time's mean.
        noise_of_part = result.shares["noise"] * 10 * means / (10 * cells - 1)
        expected = noise_of_part * (f.ppf(0.95, 40 * means, 40 * (240 - cells)) - 1)
        assert result.chance[name] == pytest.approx(expected, rel=0.15)


def test_noise_has_no_course_outside_the_trials_that_chose_the_axis():
    """In sample, the two choices part by the noise itself; on held-out halves their courses cross at random."""
    apart = []
    for seed in range(30):
        result = demixed.demixed(*population(noise=1, seed=seed), shuffles=0, seed=seed)
        course = result.courses["choice"].mean(axis=1)  # choice -1, 1, -1, 1
        direction = np.sign(result.axes["choice"] @ np.ones(4))
        apart.append(direction * (course[1] + course[3] - course[0] - course[2]) / 2)
    assert abs(np.mean(apart)) < 3 * np.std(apart) / np.sqrt(30)
    assert demixed.demixed(*population(noise=1, choice=1), shuffles=0).courses["choice"].std() > 0.9


def test_matched_cells_leave_no_interaction_to_the_amount_of_evidence():
    """The state is the amount of evidence, small in errors: unmatched, an effect of stimulus x choice."""
    rng = np.random.default_rng(0)
    s = rng.choice([-1, 1], 800)
    evidence = s * rng.uniform(0, 2, 800) + rng.standard_normal(800)
    c = np.sign(evidence)
    x = np.abs(evidence)[:, None, None] + 0.3 * rng.standard_normal((800, 2, 3))
    rows, labels = np.arange(1600).reshape(800, 2), {"s": s, "c": c}
    free = demixed.demixed(x.reshape(-1, 3), rows, labels, shuffles=50)
    strata = trials.evidence_strata(evidence[:, None])
    matched = demixed.demixed(x.reshape(-1, 3), rows, labels, shuffles=50, strata=strata)
    assert free.shares["s x c"] > 0.8
    assert matched.shares["s x c"] < max(matched.chance["s x c"], 0.1)
    assert len(set(matched.n.tolist())) == 1  # as many trials in every cell


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
