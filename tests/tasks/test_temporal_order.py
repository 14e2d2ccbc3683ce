"""TemporalOrder-v0: what a trial shows and pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn_rl.options import ConfigError
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium
from mpn_rl.tasks.temporal_order import TemporalOrderVec


def trials(rows: int = 400, **args: Any) -> TemporalOrderVec:
    env = TemporalOrderVec(rows, **args)
    env.reset(seed=0)
    return env


def test_a_trial_shows_two_stimuli_at_different_steps_and_then_the_go() -> None:
    env = trials()
    for inputs, right, length, (first, gap, steps) in zip(
        env.inputs, env.right, env.length, env.condition, strict=True
    ):
        times = [np.flatnonzero(inputs[:, channel]).tolist() for channel in range(3)]
        assert [len(time) for time in times] == [1, 1, 1] and inputs.max() == 1.0
        one, two, go = (time[0] for time in times)
        assert go == length - 1 == steps - 1 and max(one, two) < go and abs(one - two) == gap > 0
        assert right[:go].tolist() == [0] * go
        assert right[go] == (1 if one < two else 2) == 1 + first


def test_lengths_orders_and_steps_are_drawn_uniformly() -> None:
    env = trials(6000, shortest_trial=5, longest_trial=8)
    lengths, counts = np.unique(env.length, return_counts=True)
    assert lengths.tolist() == [5, 6, 7, 8] and (abs(counts / 6000 - 0.25) < 0.02).all()
    assert abs(env.condition[:, 0].mean() - 0.5) < 0.02
    five = env.inputs[env.length == 5][:, :4, :2].sum((2,))  # 6 pairs of 4 steps, so each step is in half of them
    assert (abs(five.mean(0) - 0.5) < 0.04).all()


def test_rewards_are_for_the_answer_and_against_an_early_one() -> None:
    env = trials(1, shortest_trial=3, longest_trial=3, right_reward=2.0, wrong_reward=-1.0, early_reward=-0.5)
    right = int(env.right[0, 2])
    assert [float(env.step(np.array([action]))[1][0]) for action in (0, 3 - right, right)] == [0.0, -0.5, 2.0]
    wrong = 3 - int(env.right[0, 2])
    assert [float(env.step(np.array([action]))[1][0]) for action in (0, 0, wrong)] == [0.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"shortest_trial": 2}, r"shortest_trial must lie in \[3, 1000\], got 2"),
        ({"longest_trial": 4}, r"longest_trial must lie in \[5, 1000\], got 4"),
        ({"right_reward": "x"}, "right_reward must be a number"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_gymnasium("TemporalOrder-v0", args)
