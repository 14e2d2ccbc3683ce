"""Claims about intervals: width, coverage of the truth in simulations, and the common grid of learning curves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mpn_rl.statistics import (
    common_grid,
    effective_n,
    mean_interval,
    mean_over,
    normalised_interval,
    score_interval,
    trimmed_mean,
    wilson,
)


def coverage(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    """The share of simulated intervals that hold the truth."""
    return float(np.mean((low <= truth) & (truth <= high)))


# --- values -------------------------------------------------------------------------------------------------


def test_the_interval_of_three_values_is_students() -> None:
    # 1, 2, 6: mean 3, standard deviation sqrt(7), t(0.975, 2) = 4.3027
    low, high = mean_interval(np.array([1.0, 2.0, 6.0]))
    half = 4.3027 * np.sqrt(7 / 3)
    assert (low, high) == (pytest.approx(3 - half, abs=1e-3), pytest.approx(3 + half, abs=1e-3))


def test_the_interval_agrees_with_that_of_scipy_column_by_column() -> None:
    values = np.random.default_rng(0).normal(size=(7, 3)) * [1.0, 2.0, 4.0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(mean_interval(values), expected)


def test_the_trimmed_interval_is_that_of_tukey_and_mclaughlin() -> None:
    # Of 9, 1, 2, 3, -5 the middle three are 1, 2, 3; Winsorized 1, 1, 2, 3, 3: SS = 4; error^2 = 4 / (3 * 2).
    mean = trimmed_mean([9.0, 1.0, 2.0, 3.0, -5.0], 0.25)
    assert (mean.value, mean.freedom) == (2.0, 2)
    assert mean.error == pytest.approx(np.sqrt(2 / 3))
    assert mean.interval()[1] == pytest.approx(2 + 4.3027 * np.sqrt(2 / 3), abs=1e-3)


def test_one_value_and_equal_values_have_no_interval() -> None:
    for values in (np.array([6.0]), np.full(5, 0.1), np.zeros((1, 3))):
        assert np.isnan(mean_interval(values)).all()


def test_a_mean_over_tasks_is_that_of_welch() -> None:
    """Half the sum of two means has half the error of their difference, and Welch's degrees of freedom."""
    x, y = np.array([1.0, 4.0, 2.0, 3.0]), np.array([10.0, 30.0, 17.0])
    joint = mean_over([trimmed_mean(x), trimmed_mean(y)])
    welch = stats.ttest_ind(x, y, equal_var=False)
    assert joint.freedom == pytest.approx(welch.df)
    assert joint.error == pytest.approx(abs(x.mean() - y.mean()) / abs(welch.statistic) / 2)
    assert joint.value == pytest.approx((2.5 + 19) / 2)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (8, 10), (1, 3)])
def test_the_interval_of_a_share_is_that_of_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert [float(end) for end in wilson(k, n)] == pytest.approx([expected.low, expected.high])


def test_the_interval_of_a_normalised_score_is_that_of_fieller() -> None:
    """With a fixed upper reference of 1 and a lower one of mean 0, the ends solve the quadratic equation."""
    rng = np.random.default_rng(0)
    agent, low, high = rng.normal(0.5, 1, 50), rng.normal(0.0, 1, 60), rng.normal(1.0, 1, 70)
    ends = normalised_interval(agent, low, high)
    for s in ends:
        difference = agent.mean() - s * high.mean() - (1 - s) * low.mean()
        variance = agent.var(ddof=1) / 50 + s**2 * high.var(ddof=1) / 70 + (1 - s) ** 2 * low.var(ddof=1) / 60
        assert abs(difference) / np.sqrt(variance) == pytest.approx(2.0096, abs=1e-3)  # t(0.975, 49)
    assert ends[0] < (agent.mean() - low.mean()) / (high.mean() - low.mean()) < ends[1]
    assert np.isnan(normalised_interval(agent, low, low)).all()
    assert np.isnan(normalised_interval(agent[:1], low, high)).all()


# --- coverage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0.0, 0.25])
@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "Beta(20, 2)"])
def test_means_of_few_seeds_are_covered(kind: str, n: int, cut: float) -> None:
    rng = np.random.default_rng(n)
    draw = (lambda size: rng.normal(size=size)) if kind == "normal" else (lambda size: rng.beta(20, 2, size=size))
    truth = stats.trim_mean(draw((n, 100_000)), cut, axis=0).mean()
    assert 0.90 <= coverage(*trimmed_mean(draw((n, 5000)), cut).interval(), truth) <= 0.97


def test_a_mean_over_tasks_with_different_numbers_of_seeds_is_covered() -> None:
    rng = np.random.default_rng(0)
    tasks = [rng.normal(mean, sd, (n, 5000)) for mean, sd, n in ((0.0, 1.0, 3), (1.0, 0.2, 10), (5.0, 2.0, 5))]
    assert 0.92 <= coverage(*mean_over([trimmed_mean(task) for task in tasks]).interval(), 2.0) <= 0.98


@pytest.mark.parametrize(("share", "n"), [(0.5, 20), (0.9, 40), (0.98, 64), (0.995, 400)])
def test_shares_are_covered(share: float, n: int) -> None:
    k = np.random.default_rng(0).binomial(n, share, 5000)
    assert 0.92 <= coverage(*wilson(k, n), share) <= 0.99


@pytest.mark.parametrize("share", [0.6, 0.95])
def test_scores_of_right_and_wrong_trials_are_covered(share: float) -> None:
    rng = np.random.default_rng(0)
    ends = np.array([score_interval(row) for row in (rng.random((1000, 60)) < share).astype(float)])
    assert 0.92 <= coverage(*ends.T, share) <= 0.99


@pytest.mark.parametrize("per_group", [5, 20])
def test_shares_of_alike_trials_are_covered(per_group: int) -> None:
    """30 groups whose own shares are Beta(2, 3) distributed: the share is 0.4."""
    rng = np.random.default_rng(0)
    groups, held, naive = np.repeat(np.arange(30), per_group), [], []
    for own in rng.beta(2, 3, (500, 30)):
        hits = rng.random(30 * per_group) < own[groups]
        n = effective_n(hits, groups)
        low, high = wilson(hits.mean() * n, n)
        held.append(low <= 0.4 <= high)
        low, high = wilson(hits.sum(), len(hits))
        naive.append(low <= 0.4 <= high)
    assert 0.90 <= np.mean(held) <= 0.99 and np.mean(naive) < np.mean(held) - 0.05


def test_alike_trials_count_as_their_groups_and_others_as_themselves() -> None:
    groups = np.repeat(np.arange(10), 4)
    assert effective_n(np.repeat(np.arange(10) % 2, 4), groups) == pytest.approx(9)  # ten coins, less one
    assert effective_n(np.tile([0, 1], 20), groups) == 40  # every group has its share: no less certain than coins
    assert effective_n(np.ones(40), groups) == effective_n(np.zeros(40), groups) == 10


@pytest.mark.parametrize("truth", [0.1, 0.9])
def test_normalised_scores_are_covered(truth: float) -> None:
    """Rewards per trial are 1 or -0.1, as in many tasks; the best policy's 0.95 and the random one's 0.3."""
    rng = np.random.default_rng(0)
    low, high = 0.3, 0.95
    samples = [(rng.random((1000, 80)) < p) * 1.1 - 0.1 for p in (low + truth * (high - low), low, high)]
    ends = np.array([normalised_interval(*rows) for rows in zip(*samples, strict=True)])
    assert 0.92 <= coverage(*ends.T, truth) <= 0.99


# --- grid ---------------------------------------------------------------------------------------------------


def test_seeds_with_other_steps_meet_on_one_grid() -> None:
    grid, curves = common_grid([([0, 10, 20], [0.0, 1.0, 2.0]), ([5, 15, 25], [0.5, 1.5, 2.5])])
    assert grid.tolist() == [5, 10, 15, 20]
    assert curves.tolist() == [[0.5, 1.0, 1.5, 2.0], [0.5, 1.0, 1.5, 2.0]]
    grid, curves = common_grid([([10, 30], [0.0, 1.0]), ([20, 30, 40], [0.0, 0.4, 1.0])])
    assert grid.tolist() == [20, 30] and curves.tolist() == [[0.5, 1.0], [0.0, 0.4]]


def test_curves_that_do_not_overlap_have_an_empty_grid() -> None:
    grid, curves = common_grid([([0, 1], [0.0, 0.0]), ([5, 6], [0.0, 0.0])])
    assert grid.shape == (0,) and curves.shape == (2, 0)
