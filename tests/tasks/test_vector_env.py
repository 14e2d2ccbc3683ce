"""Random numbers that are counted, arguments, channels, quarters: what the project's own tasks share."""

from __future__ import annotations

import numpy as np
import pytest

from mpn_rl.tasks import vector_env as ve


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs of SplitMix64 from seed 0, as its authors' code prints them."""
    counter = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(word) for word in ve.splitmix64(counter)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_a_random_number_depends_on_seed_step_and_place_alone() -> None:
    key, t = ve.keys_of([5, 6, 5]), np.array([3, 3, 4])
    words = ve.random_words(key, t, 4)
    assert words.shape == (3, 4) and len(np.unique(words)) == 12
    np.testing.assert_array_equal(ve.random_words(key[1:2], t[1:2], 2, first=2), words[1:2, 2:])


def test_random_numbers_of_neighbouring_seeds_and_steps_are_uniform_and_unrelated() -> None:
    seeds, steps = np.arange(2_000), np.arange(50)
    words = ve.random_words(ve.keys_of(np.repeat(seeds, 50)), np.tile(steps, 2_000), 2)
    u = ve.uniform(words).reshape(2_000, 100)
    assert u.min() >= 0.0 and u.max() < 1.0
    spread = 12**0.5 * (u.mean(axis=0) - 0.5) * 2_000**0.5  # standard normal, 100 of them
    assert np.abs(spread).max() < 4.0 and 0.8 < spread.std() < 1.2
    assert np.abs(np.corrcoef(u.T) - np.eye(100)).max() < 4.5 / 2_000**0.5
    assert np.abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01


def test_whole_numbers_below_a_limit_are_all_as_likely() -> None:
    words = ve.random_words(ve.keys_of(np.arange(7_000)), np.zeros(7_000, int), 1)[:, 0]
    counts = np.bincount(ve.below(words, 7), minlength=7)
    assert counts.sum() == 7_000 and len(counts) == 7
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 22.5  # chi-square with 6 degrees of freedom, p = 0.001
    assert ve.below(np.array([0, 2**64 - 1], np.uint64), 2**32).tolist() == [0, 2**32 - 1]


def test_quarters_sum_over_each_quarter_of_the_episode() -> None:
    values = np.arange(8.0)[None] + np.array([[0.0], [10.0]])
    assert ve.quarters(values).tolist() == [[1, 5, 9, 13], [21, 25, 29, 33]]


def test_quarters_of_a_length_that_four_does_not_divide_differ_by_a_step() -> None:
    # floor(4 t / 6) of t = 0..5 is 0 0 1 2 2 3
    assert ve.quarters(np.ones((1, 6))).tolist() == [[2, 1, 2, 1]]


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (1.5, int, "n must be a whole number, got 1.5"),
        (True, int, "n must be a whole number, got True"),
        ("3", float, "n must be a number, got '3'"),
        (1, bool, "n must be true or false, got 1"),
        (0, int, "n must lie in [1, 4], got 0"),
        (float("nan"), float, "n must lie in [1, 4], got nan"),
        (float("inf"), float, "n must lie in [1, 4], got inf"),
    ],
)
def test_a_bad_argument_gives_one_sentence(value: object, kind: type, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        ve.check("n", value, kind, 1, 4)
    assert str(refusal.value) == message


def test_a_good_argument_comes_back_in_its_kind() -> None:
    assert type(ve.check("n", np.int64(3), int, 1, 4)) is int
    assert type(ve.check("n", 3, float, 1, 4)) is float
