"""The integration tasks: what a sequence shows, which answer is right, and how sequences are drawn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mpn_rl.options import ConfigError
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium
from mpn_rl.tasks.integration import (
    ContextualIntegrationVec,
    Integration,
    IntegrationVec,
    evidence_counts,
    ideal_observer,
    normal,
    vocabulary_of,
)


def started(env: Any) -> Any:
    env.reset(seed=0)
    return env


# --- integration ------------------------------------------------------------------------------------------


def words_of(env: IntegrationVec) -> np.ndarray:
    """The number of each word of the current sequences, found by comparing vectors, (N, L)."""
    same = (env.inputs[:, :, None] == env.vectors).all(axis=3)
    assert (same.sum(axis=2) == 1).all()
    return same.argmax(axis=2)


@pytest.mark.parametrize("args", [{}, {"classes": 2, "words": 7}, {"classes": 5, "delay_words": 4}])
def test_the_label_is_the_class_with_most_words(args: dict[str, Any]) -> None:
    env = started(IntegrationVec(300, **args))
    classes = env.classes
    words = words_of(env)
    assert (words[:, -1] == classes + 2).all() and (words[:, env.words : -1] == classes + 1).all()
    evidence = words[:, : env.words]
    assert evidence.max() <= classes  # a class or the null word
    for row, right, (label, margin) in zip(evidence, env.right, env.condition, strict=True):
        counts = [int((row == number).sum()) for number in range(classes)]
        first, second = sorted(counts)[::-1][:2]
        assert first > second and counts.index(first) == label == right[-1] and first - second == margin
        assert (right[:-1] == -1).all()


def test_all_lists_of_counts_are_equally_likely_and_ties_never_occur() -> None:
    env = started(IntegrationVec(12_000, classes=2, words=3))
    words = words_of(env)[:, :3]
    seen = [tuple(int((row == number).sum()) for number in range(3)) for row in words]
    allowed = [list_ for list_ in itertools.product(range(4), repeat=3) if sum(list_) == 3 and list_[0] != list_[1]]
    assert len(allowed) == 8 and set(seen) == set(allowed)  # 10 lists, of which (0, 0, 3) and (1, 1, 1) are tied
    shares = np.array([seen.count(list_) / len(seen) for list_ in allowed])
    assert (abs(shares - 1 / 8) < 0.012).all()
    first = words[[counts == (2, 1, 0) for counts in seen]]
    orders = [(first == order).all(axis=1).mean() for order in ((0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert (abs(np.array(orders) - 1 / 3) < 0.05).all()  # the words are shuffled


def test_counts_are_the_gaps_between_bars() -> None:
    # Places 0 to 4 in the order of their random numbers: 3, 1, 0, 4, 2. The bars are at 1 and 3.
    random = np.array([[30, 20, 50, 10, 40]], np.uint64)
    assert evidence_counts(random, 3, 2).tolist() == [[1, 1, 1]]


def test_one_word_cannot_be_a_tie_so_it_is_evidence() -> None:
    env = started(IntegrationVec(5000, classes=2, words=1))
    assert set(words_of(env)[:, 0].tolist()) == {0, 1} and abs(env.condition[:, 0].mean() - 0.5) < 0.03


def test_the_words_are_the_same_in_every_episode_and_follow_from_the_vocabulary() -> None:
    vectors = vocabulary_of(6, 50, 0)
    assert vectors.shape == (6, 50) and set(vectors.flat) == {0.0, 1.0} and 0.4 < vectors.mean() < 0.6
    np.testing.assert_array_equal(IntegrationVec(3).vectors, vectors)
    assert not np.array_equal(IntegrationVec(1, vocabulary=1).vectors, vectors)
    assert len(np.unique(vocabulary_of(20, 8, 3), axis=0)) == 20


def test_an_episode_is_one_sequence_by_default() -> None:
    env = make_gymnasium("Integration-v0", {"words": 4, "delay_words": 2})
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(7)]
    assert [step[3] for step in steps] == [False] * 6 + [True]
    assert [step[4]["period"] for step in steps] == ["evidence"] * 4 + ["delay"] * 2 + ["end"]
    assert [step[4]["gt"] for step in steps[:6]] == [-1] * 6 and steps[6][4]["new_trial"]
    assert steps[6][1] == float(steps[6][4]["gt"] == 0)
    assert Integration(classes=4).action_names == ("class 0", "class 1", "class 2", "class 3")


# --- contextual integration -------------------------------------------------------------------------------


def test_the_cue_shows_which_stream_counts_and_the_answer_is_the_sign_of_its_mean() -> None:
    env = started(ContextualIntegrationVec(300))
    context, *means, delay = env.condition.T
    attended = np.where(context == 0, *means)
    np.testing.assert_array_equal(env.right[:, -1], attended > 0)
    assert (env.right[:, :-1] == -1).all() and (delay == -1).all()
    np.testing.assert_array_equal(env.inputs[:, :, 2], np.tile(context[:, None] == 0, 40))
    np.testing.assert_array_equal(env.inputs[:, :, 3], np.tile(context[:, None] == 1, 40))
    assert (env.inputs[:, 20:, :2] == 0).all() and env.inputs[:, :, 4].sum() == env.inputs[:, -1, 4].sum() == 300


def test_the_streams_are_their_means_with_noise() -> None:
    env = started(ContextualIntegrationVec(4000, noise=0.5))
    means = env.condition[:, 1:3]
    assert abs(means).max() <= 0.1875 and np.allclose(means.var(axis=0), 0.1875**2 / 3, rtol=0.1)
    rest = env.inputs[:, :20, :2] - means[:, None]
    assert abs(rest.std() - 0.5) < 0.01 and abs(rest.mean()) < 0.01
    assert abs(np.corrcoef(rest.reshape(-1, 2).T)[0, 1]) < 0.02


def test_a_retro_cue_comes_after_the_stimulus_and_stays() -> None:
    env = started(ContextualIntegrationVec(2000, retro_cue=True))
    cue = env.inputs[:, :, 2] + env.inputs[:, :, 3]
    first = cue.argmax(axis=1)
    delays, counts = np.unique(first - 20, return_counts=True)
    assert delays.tolist() == list(range(5, 16)) and (abs(counts / 2000 - 1 / 11) < 0.03).all()
    np.testing.assert_array_equal(env.condition[:, 3], first - 20)
    np.testing.assert_array_equal(cue, np.arange(40) >= first[:, None])


def test_the_ideal_observer_is_right_without_noise_and_seldom_wrong_with_it() -> None:
    clear = ve.play(ContextualIntegrationVec(500, noise=0.0), ideal_observer, range(500), np.random.default_rng(0))
    assert clear["hit"][clear["decision"]].all()
    noisy = ve.play(ContextualIntegrationVec(4000), ideal_observer, range(4000), np.random.default_rng(0))
    # P(right) = E Phi(|m| sqrt(20) / 0.5), m uniform; by Simpson's rule on [0, 0.1875] 0.773
    z = np.linspace(0, 0.1875, 1001) * 20**0.5 / 0.5
    expected = np.mean([0.5 + 0.5 * np.tanh(0.7978845608 * (x + 0.044715 * x**3)) for x in z])
    assert noisy["hit"][noisy["decision"]].mean() == pytest.approx(expected, abs=0.02)


def test_normal_numbers_have_the_moments_of_a_normal_distribution() -> None:
    z = normal(ve.random_words(ve.keys_of(np.arange(20_000)), np.zeros(20_000), 2))
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.02 and abs((z**4).mean() - 3) < 0.2
    assert normal(np.array([2**64 - 1, 0], np.uint64)) < 9.0


@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        ("Integration-v0", {"classes": 1}, r"classes must lie in \[2, 20\], got 1"),
        ("Integration-v0", {"inputs": 4}, r"inputs must lie in \[8, 10000\], got 4"),
        ("Integration-v0", {"trials": 0}, r"trials must lie in \[1, 10000\], got 0"),
        (
            "ContextualIntegration-v0",
            {"retro_cue": True, "steps": 20},
            r"longest_cue_delay must lie in \[5, 9\], got 15",
        ),
        ("ContextualIntegration-v0", {"noise": -1}, r"noise must lie in \[0.0, 100.0\], got -1"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(task: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_gymnasium(task, args)
