"""The cue-reward task is the one of the paper: its trials, its observation, its rewards, and what policies earn."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mpn_rl.options import ConfigError
from mpn_rl.rollout import run_scripted
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.cue_reward import NO, YES, CueReward, CueRewardVec, patterns
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium, time_limit

BATCHED = CueRewardVec.scripted
CEILING = 18.207  # trials answered in 120 steps: the renewals of a uniform 5..8 up to step 121, computed below


def one_episode(env: CueRewardVec, seed: int, action: int = NO) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Observations (T + 1, N, D), rewards (T, N) and infos (T, N) of the same action throughout."""
    observations, rewards, infos = [env.reset(seed=seed)[0]], [], []
    for _ in range(env.episode_steps):
        obs, reward, _, _, info = env.step(np.full(env.num_envs, action))
        observations.append(obs)
        rewards.append(reward)
        infos.append(info)
    return np.array(observations), np.array(rewards), {key: np.array([i[key] for i in infos]) for key in infos[0]}


# --- the trial --------------------------------------------------------------------------------------------


def test_the_default_observation_is_laid_out_as_in_the_public_code() -> None:
    env = CueReward()
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, [*[0] * 20, 0, 1, *[0] * 5])  # a blank: bias alone, no action yet
    shown = []
    for t in range(1, 9):
        asked = bool(obs[20])
        obs, reward, *_ = env.step(YES)
        np.testing.assert_allclose(obs[21:], [1, t / 120, reward, 0, 0, 1], rtol=1e-6)
        assert (reward != 0.0) == asked
        if obs[:20].any():
            assert set(np.abs(obs[:20])) == {1.0} and not obs[20]
            shown.append(obs[:20].tolist())
        if asked:
            break
    assert len(shown) == 2 and shown[0] != shown[1]
    assert all((env.rows.patterns[0, :4] == cue).all(axis=1).any() for cue in shown)


def test_channels_that_are_switched_off_leave_the_papers_24_inputs() -> None:
    env = CueReward(clock=False, bias=False, unused=False)
    assert env.observation_space.shape == (24,)
    assert env.rows.channel_names[19:] == ["cue 20", "go", "previous reward", "previous action 1", "previous action 2"]


def test_every_trial_is_blank_cues_go_and_feedback() -> None:
    """Read off the observations alone: what lies between one Go and the next."""
    env = CueRewardVec(300)
    observations, _, _ = one_episode(env, 0)
    lengths, orders, first_cue = [], [], []
    for row in range(300):
        cues = [tuple(pattern) for pattern in env.patterns[row, :4].tolist()]
        signs = "".join(
            "G" if obs[20] else str(cues.index(tuple(obs[:20].tolist()))) if obs[:20].any() else "."
            for obs in observations[:, row]
        )
        gos = [step for step, sign in enumerate(signs) if sign == "G"]
        assert signs[0] == "."
        for trial, (start, go) in enumerate(pairwise([-2, *gos])):  # feedback, blank, middle
            middle = signs[start + 3 : go]
            if trial:
                assert signs[start + 1 : start + 3] == ".."
            shown = middle.replace(".", "")
            assert len(shown) == 2 and shown[0] != shown[1], signs
            lengths.append(len(middle) + 3)
            orders.append(shown)
            first_cue.append((len(middle), middle.index(shown[0])))
    counts = np.bincount(lengths)
    assert set(lengths) == {5, 6, 7, 8}
    # Cut episodes have a few more short trials, so first trials alone would be uniform: a loose bound does here.
    np.testing.assert_allclose(counts[5:] / len(lengths), 0.25, atol=0.03)
    both = [orders.count(f"{a}{b}") + orders.count(f"{b}{a}") for a, b in combinations("0123", 2)]
    one_way = [orders.count(f"{a}{b}") for a, b in combinations("0123", 2)]
    np.testing.assert_allclose(np.array(one_way) / both, 0.5, atol=0.06)
    # The first of two slots drawn from five lies at 0, 1, 2, 3 in 4, 3, 2, 1 of 10 cases.
    places = np.bincount([place for middle, place in first_cue if middle == 5], minlength=4)
    np.testing.assert_allclose(places / places.sum(), [0.4, 0.3, 0.2, 0.1], atol=0.05)


def test_the_target_is_any_cue_and_shown_in_half_of_the_trials_beside_any_other() -> None:
    env = CueRewardVec(4_000)
    env.reset(seed=range(4_000))
    counts = np.bincount(env.target, minlength=4)
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 16.3  # chi-square with 3 degrees of freedom, p = 0.001
    np.testing.assert_array_equal(env.cues_in_trial[env.every, env.target], env.shown)
    assert abs(env.shown.mean() - 0.5) < 0.03 and (env.cues_in_trial.sum(axis=1) == 2).all()
    for shown, share in ((True, 1 / 3), (False, 2 / 3)):  # one of three others; two of them
        trials = env.shown == shown
        for cue in range(4):
            other = trials & (env.target != cue)
            assert abs(env.cues_in_trial[other, cue].mean() - share) < 0.06


def test_the_answer_is_paid_at_the_go_alone() -> None:
    env = CueRewardVec(50, right_reward=2.0, wrong_reward=-0.5)
    for action in (NO, YES):
        observations, rewards, info = one_episode(env, 3, action)
        asked = observations[:-1, :, 20] == 1.0
        assert not rewards[~asked].any()
        right = info["gt"] == action
        np.testing.assert_array_equal(rewards[asked], np.where(right[asked], 2.0, -0.5))
        np.testing.assert_array_equal(info["hit"], right & asked)
        assert (info["gt"][~asked] == -1).all()
        np.testing.assert_array_equal(observations[1:, :, 23], rewards)  # seen at the next step


def test_infos_speak_as_neurogyms_do() -> None:
    env = CueRewardVec(1)
    observations, _, info = one_episode(env, 1)
    asked = observations[:-1, 0, 20] == 1.0
    np.testing.assert_array_equal(info["decision"][:, 0], asked)
    np.testing.assert_array_equal(info["new_trial"][:, 0], asked)
    assert info["trial_number"][:, 0].tolist() == [asked[:step].sum() for step in range(120)]
    np.testing.assert_array_equal(np.isnan(info["performance"][:, 0]), ~asked)
    np.testing.assert_array_equal(info["performance"][asked, 0], info["gt"][asked, 0] == NO)
    periods = info["period"][:, 0].tolist()
    go = periods.index("go")
    assert periods[:go] == ["blank"] + ["cues"] * (go - 1)
    assert periods[go : go + 4] == ["go", "feedback", "blank", "cues"]


def test_a_scripted_run_scores_trials_as_it_does_neurogyms() -> None:
    env = make_gymnasium("CueReward-v0")
    known = run_scripted(CueReward.scripted["target_known"], env, [0, 1, 2])
    assert known.accuracy == 1.0 and known.decision_correct.all()
    assert known.returns.sum() == len(known.performance) > 50
    assert (known.trial_returns == 1.0).all() and not known.aborted.any()


def test_conditions_name_what_the_trial_is() -> None:
    env: Any = make_gymnasium("CueReward-v0")
    env.reset(seed=0)
    left = []
    for _ in range(120):
        conditions = env.conditions
        _, _, _, _, info = env.step(NO)
        if info["decision"]:
            assert info["gt"] == conditions["target_shown"]
            left.append(conditions["possible"])
    assert left[0] == 4 and left[1] == 2 and left[-1] == 1
    assert left == sorted(left, reverse=True)


# --- cues -------------------------------------------------------------------------------------------------


def test_cues_differ_even_where_they_use_up_all_patterns() -> None:
    env = CueRewardVec(500, cue_bits=2, num_cues=4)
    env.reset(seed=0)
    codes = ((env.patterns[:, :4] > 0) * [1, 2]).sum(axis=2)
    assert (np.sort(codes, axis=1) == np.arange(4)).all()
    orders = np.unique(codes, axis=0, return_counts=True)[1]
    assert len(orders) == 24 and ((orders - 500 / 24) ** 2 / (500 / 24)).sum() < 49.8  # 23 degrees, p = 0.001


def test_cues_of_32_bits_are_balanced_and_different() -> None:
    words = ve.random_words(ve.keys_of(np.arange(2_000)), np.zeros(2_000, int), 4)
    cues = patterns(words, 32)
    assert set(np.unique(cues)) == {-1.0, 1.0}
    assert np.abs(cues.mean(axis=0)).max() < 4.5 / 2_000**0.5
    assert np.abs(np.corrcoef(cues.reshape(2_000, -1).T) - np.eye(128)).max() < 5.5 / 2_000**0.5


def test_fixed_cues_are_the_same_in_every_episode_but_the_target_is_not() -> None:
    env = CueRewardVec(100, cue_bits=4, fixed_cues=True)
    env.reset(seed=0)
    assert (env.patterns == env.patterns[0]).all() and set(env.target) == {0, 1, 2, 3}
    fresh = CueRewardVec(100, cue_bits=4)
    fresh.reset(seed=0)
    assert (fresh.patterns != fresh.patterns[0]).any()


# --- scripted policies ------------------------------------------------------------------------------------


def test_the_ceiling_is_the_mean_number_of_trials_of_an_episode() -> None:
    """P(the k-th Go comes within T steps), summed over k: the k-th Go is the step S_k - 2 of S_k = k lengths."""
    mean, chances = 0.0, np.zeros(400)
    chances[0] = 1.0  # of S_k = n
    for _ in range(30):
        chances = sum(np.roll(chances, length) for length in (5, 6, 7, 8)) / 4
        mean += chances[:122].sum()
    assert mean == pytest.approx(CEILING, abs=1e-3)


def test_scripted_policies_earn_what_is_known() -> None:
    env = CueRewardVec(2_000)
    returns = {}
    for name, policy in BATCHED.items():
        reward = ve.play(env, policy, range(2_000), np.random.default_rng(0))["reward"].sum(axis=1)
        returns[name] = reward.mean(), 4 * reward.std() / len(reward) ** 0.5
    known = {"random": 0.0, "never": 0.0, "target_known": CEILING}
    for name, value in known.items():
        mean, error = returns[name]
        assert abs(mean - value) < error, (name, mean, error)
    # Two answers are guesses, which earn 0 and not 1: the first, which leaves two cues, and whichever parts these.
    mean, error = returns["perfect_memory"]
    assert abs(mean - (CEILING - 2.0)) < error + 0.02


def best_answer(possible: set[int], shown: set[int], cues: int, p: float) -> int:
    """Bayes by enumeration: the likelihood of this set of cues under each target, of all sets that can be shown."""
    weight = {YES: 0.0, NO: 0.0}
    for target in possible:
        sets = [set(chosen) for chosen in combinations(range(cues), len(shown))]
        same = [chosen for chosen in sets if (target in chosen) == (target in shown)]
        answer = YES if target in shown else NO
        weight[answer] += (p if answer == YES else 1.0 - p) / len(same)
    return YES if weight[YES] > weight[NO] + 1e-9 else NO


@pytest.mark.parametrize(
    "args", [{}, {"num_cues": 6, "target_probability": 0.6}, {"num_cues": 5, "cues_per_trial": 3, "shortest_trial": 6}]
)
def test_perfect_memory_is_bayes_over_what_was_seen(args: dict[str, Any]) -> None:
    env, rng = CueReward(**args), np.random.default_rng(0)
    rows = env.rows
    guesses = 0
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        cues = [tuple(pattern) for pattern in rows.patterns[0, : rows.num_cues].tolist()]
        possible, shown = set(range(rows.num_cues)), set()
        for _ in range(120):
            if obs[:20].any():
                shown.add(cues.index(tuple(obs[:20].tolist())))
            action = CueReward.scripted["perfect_memory"](env, rng)
            if obs[20]:
                assert action == best_answer(possible, shown, rows.num_cues, rows.target_probability)
            asked = bool(obs[20])
            obs, reward, *_ = env.step(action)
            if asked:
                there = (action == YES) == (reward > 0)
                guesses += reward < 0
                possible = possible & shown if there else possible - shown
                shown = set()
    assert guesses > 0


def test_learning_within_the_episode_shows_in_its_quarters() -> None:
    out = ve.play(CueRewardVec(500), BATCHED["perfect_memory"], range(500), np.random.default_rng(0))
    share = ve.quarters(out["hit"]).sum(axis=0) / ve.quarters(out["decision"]).sum(axis=0)
    assert share[0] < 0.85 and (share[1:] > 0.99).all()


# --- rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [{}, {"fixed_cues": True, "cue_bits": 4, "longest_trial": 12}])
def test_a_row_is_the_single_environment_with_its_seed_whatever_the_others_do(args: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    env, singles = CueRewardVec(6, **args), [CueReward(**args) for _ in range(6)]
    seeds = np.array([3, 3, 2**62, 0, 9, 10])
    obs = env.reset_rows(np.arange(6), seeds)
    for row, one in enumerate(singles):
        np.testing.assert_array_equal(one.reset(seed=int(seeds[row]))[0], obs[row])
    for step in range(100):
        actions = rng.integers(2, size=6)
        obs, reward, _, _, info = env.step(actions)
        for row, one in enumerate(singles):
            its, earned, _, _, its_info = one.step(int(actions[row]))
            np.testing.assert_array_equal(its, obs[row])
            assert earned == reward[row]
            np.testing.assert_equal(its_info, {name: values[row].item() for name, values in info.items()})
        if step % 20 == 19:  # some are reset, in any order
            rows, fresh = rng.permutation(6)[:3], rng.integers(2**31, size=3)
            begun = env.reset_rows(rows, fresh)
            for row, seed, first in zip(rows, fresh, begun, strict=True):
                np.testing.assert_array_equal(singles[row].reset(seed=int(seed))[0], first)


def test_a_saved_batch_goes_on_exactly() -> None:
    rng = np.random.default_rng(2)
    env, other = CueRewardVec(5), CueRewardVec(5)
    env.reset(seed=4)
    other.reset(seed=99)
    actions = rng.integers(2, size=(120, 5))
    for step in actions[:50]:
        env.step(step)
    saved = env.state_dict()
    expected = [env.step(step) for step in actions[50:]]
    other.load_state_dict(saved)
    for step, (obs, reward, *_, info) in zip(actions[50:], expected, strict=True):
        again, earned, *_, its_info = other.step(step)
        np.testing.assert_array_equal(again, obs)
        np.testing.assert_array_equal(earned, reward)
        np.testing.assert_equal(its_info, info)


# --- as a Gymnasium task ----------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [{}, {"cue_bits": 2, "clock": False, "unused": False}, {"wrong_reward": 0}])
def test_gymnasiums_own_checks_pass(args: dict[str, Any]) -> None:
    check_env(gymnasium.make("CueReward-v0", **args).unwrapped)


def test_the_time_limit_is_the_tasks_own() -> None:
    assert time_limit("CueReward-v0") == 120 and time_limit("CueReward-v0", {"episode_steps": 200}) == 200
    env = make_gymnasium("CueReward-v0", {"episode_steps": 3})
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"cue_bits": 1, "num_cues": 3}, "cue_bits must allow num_cues = 3 different patterns, got 1"),
        ({"num_cues": 2}, r"num_cues must lie in \[3, 64\], got 2"),
        ({"shortest_trial": 4}, r"shortest_trial must lie in \[5, 1000\], got 4"),
        ({"longest_trial": 4}, r"longest_trial must lie in \[5, 1000\], got 4"),
        ({"target_probability": 1.5}, "target_probability must lie in"),
        ({"fixed_cues": 1}, "fixed_cues must be true or false, got 1"),
        ({"bits": 4}, "'bits'; it takes cue_bits, num_cues"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        make_gymnasium("CueReward-v0", args)
    assert "\n" not in str(refusal.value)


def test_every_step_of_a_rendered_episode_is_a_picture() -> None:
    env = CueReward(render_mode="rgb_array")
    env.reset(seed=0)
    frames, go = [env.render()], np.array([0, 158, 115])  # the lit Go is green
    for _ in range(8):
        env.step(NO)
        frames.append(env.render())
    assert {(frame.shape, frame.dtype.name) for frame in frames if frame is not None} == {((400, 560, 3), "uint8")}
    lit = [bool((frame[330, 56] == go).all()) for frame in frames if frame is not None]
    assert sum(lit) == 1
    assert CueReward().render() is None
