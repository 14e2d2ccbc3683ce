"""MetaBandit-v0: what the arms pay, and that the scripted bounds are what they say."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.rollout import run_batched
from mpn_rl.tasks.bandit import MetaBandit, MetaBanditVec
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium


def test_each_episode_draws_its_best_arm_and_keeps_it() -> None:
    env = MetaBanditVec(3000, arms=3, episode_steps=4)
    env.reset(seed=0)
    first = env.best_arm.copy()
    assert (abs(np.bincount(first) / 3000 - 1 / 3) < 0.03).all()
    for arm in (0, 2, 1):
        _, _, _, truncated, info = env.step(np.full(3000, arm))
        assert np.array_equal(env.best_arm, first) and np.array_equal(info["hit"], first == arm)
        assert np.array_equal(info["gt"], first) and info["new_trial"].all() and not truncated.any()
    assert env.step(np.zeros(3000, int))[3].all()


def test_arms_pay_with_their_probability_and_show_nothing() -> None:
    env = MetaBanditVec(4000, arms=2, best_p=0.8, other_p=0.3, episode_steps=20)
    obs, _ = env.reset(seed=0)
    assert obs.tolist() == [[1.0]] * 4000
    paid: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        obs, reward, *_ = env.step(np.zeros(4000, int))
        assert obs.tolist() == [[1.0]] * 4000 and set(np.unique(reward)) == {0.0, 1.0}
        for best in (True, False):
            paid[best] += reward[(env.best_arm == 0) == best].tolist()
    assert np.mean(paid[True]) == pytest.approx(0.8, abs=0.02) and np.mean(paid[False]) == pytest.approx(0.3, abs=0.02)


def value_of_perfect_play(arms: int, p: float, q: float, steps: int) -> float:
    """Expected reward of the best policy, by searching all policies over the posterior of the best arm."""

    @cache
    def value(belief: tuple[float, ...], left: int) -> float:
        if left == 0:
            return 0.0
        return max(pulled(belief, arm, left) for arm in range(arms))

    def pulled(belief: tuple[float, ...], arm: int, left: int) -> float:
        total = 0.0
        for reward in (0, 1):
            chance = [(p if best == arm else q) if reward else 1 - (p if best == arm else q) for best in range(arms)]
            joint = [b * c for b, c in zip(belief, chance, strict=True)]
            seen = sum(joint)
            total += seen * (reward + value(tuple(round(j / seen, 12) for j in joint), left - 1))
        return total

    return value((1 / arms,) * arms, steps)


@pytest.mark.parametrize(("arms", "p", "q"), [(2, 0.75, 0.25), (2, 0.9, 0.6), (3, 0.6, 0.2)])
def test_the_ideal_policy_earns_what_the_best_policy_earns(arms: int, p: float, q: float) -> None:
    steps, rows = 6, 20_000
    env = MetaBanditVec(rows, arms=arms, best_p=p, other_p=q, episode_steps=steps)
    earned = run_batched(env.scripted["ideal"], env, list(range(rows))).returns
    best = value_of_perfect_play(arms, p, q, steps)
    assert abs(earned.mean() - best) < 4 * earned.std() / np.sqrt(rows)


def test_scripted_policies_earn_what_theory_says() -> None:
    rows = 1000
    env = MetaBanditVec(rows)
    means = {name: run_batched(policy, env, list(range(rows))).returns.mean() for name, policy in env.scripted.items()}
    assert means["random"] == pytest.approx(50.0, abs=0.6) and means["arm_known"] == pytest.approx(75.0, abs=0.6)
    # Win-stay, lose-shift: p on the better arm in its stationary state, so p^2 + (1 - p)^2 per step.
    assert means["win_stay"] == pytest.approx(62.5, abs=0.7)
    assert means["win_stay"] + 8.0 < means["ideal"] < means["arm_known"]


def test_the_single_environment_names_its_best_arm_and_draws() -> None:
    env = MetaBandit(arms=3, render_mode="rgb_array")
    env.reset(seed=4)
    assert env.conditions == {"best_arm": int(env.rows.best_arm[0])} and env.action_names == ("arm 1", "arm 2", "arm 3")
    for _ in range(3):
        env.step(1)
        picture = env.render()
    assert picture is not None and picture.shape == (400, 560, 3) and len(np.unique(picture)) > 10


def test_it_observes_the_last_step_with_the_options_alone() -> None:
    config = cfg.make_config("train", {"env_name": "MetaBandit-v0", "observe_reward": True, "observe_action": True})
    env: Any = registry.make_env(config.env)
    env.reset(seed=0)
    seen, reward, *_ = env.step(1)
    assert seen.tolist() == [1.0, reward, 0.0, 1.0]
    assert env.channel_names == ["bias", "last reward", "last action arm 1", "last action arm 2"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"arms": 1}, r"arms must lie in \[2, 100\], got 1"),
        ({"best_p": 1.5}, r"best_p must lie in \[0.0, 1.0\], got 1.5"),
        ({"other_p": 0.8}, r"other_p must lie in \[0.0, 0.75\], got 0.8"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_gymnasium("MetaBandit-v0", args)
