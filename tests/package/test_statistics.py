"""Claims about bootstrap intervals and the common grid of learning curves."""

from __future__ import annotations

import numpy as np

from mpn_rl.statistics import bootstrap, common_grid


def test_the_interval_has_the_textbook_width() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 200)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(200)
    assert abs(low - (values.mean() - half)) < 0.05 and abs(high - (values.mean() + half)) < 0.05


def test_the_interval_of_an_array_is_that_of_each_column() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 2.0, 4.0]
    low, high = bootstrap(values)
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std(axis=0) / np.sqrt(50), rtol=0.15)


def test_samples_are_resampled_each_for_itself() -> None:
    """Within a sample all values are alike, so no resample can differ."""

    def mean(*samples: np.ndarray, axis: int) -> np.ndarray:
        return np.concatenate(samples, axis).mean(axis)

    low, high = bootstrap(np.zeros(4), np.ones(4), statistic=mean)
    assert (low, high) == (0.5, 0.5)


def test_a_single_value_has_no_interval() -> None:
    assert np.isnan(bootstrap(np.array([2.0]))).all() and np.isnan(bootstrap(np.zeros((1, 3)))).all()
    assert np.isnan(bootstrap(np.array([1.0, 2.0]), np.array([2.0]), statistic=lambda *_, axis: 0.0)).all()


def test_seeds_with_other_steps_meet_on_one_grid() -> None:
    grid, curves = common_grid([([0, 10, 20], [0.0, 1.0, 2.0]), ([5, 15, 25], [0.5, 1.5, 2.5])])
    assert grid.tolist() == [5, 10, 15, 20]
    assert curves.tolist() == [[0.5, 1.0, 1.5, 2.0], [0.5, 1.0, 1.5, 2.0]]
    grid, curves = common_grid([([10, 30], [0.0, 1.0]), ([20, 30, 40], [0.0, 0.4, 1.0])])
    assert grid.tolist() == [20, 30] and curves.tolist() == [[0.5, 1.0], [0.0, 0.4]]


def test_curves_that_do_not_overlap_have_an_empty_grid() -> None:
    grid, curves = common_grid([([0, 1], [0.0, 0.0]), ([5, 6], [0.0, 0.0])])
    assert grid.shape == (0,) and curves.shape == (2, 0)
