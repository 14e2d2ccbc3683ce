"""What holds for every task with laid-out trials: played or drawn in batches, the same seeds give the same trials."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mpn_rl.storage.state_trees import StateError
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.gymnasium_tasks import find_spec, make_vector_env
from mpn_rl.tasks.trial_task import SingleTrialTask, TrialTask, ground_truth, random_actions

TASKS = ["TemporalOrder-v0", "Integration-v0", "ContextualIntegration-v0"]
every_task = pytest.mark.parametrize("task", TASKS)


def batch(task: str, rows: int) -> TrialTask:
    env = make_vector_env(rows, task)
    assert isinstance(env, TrialTask)
    return env


@every_task
def test_drawn_sequences_are_those_that_are_played(task: str) -> None:
    env, seeds = batch(task, 5), np.array([4, 0, 77, 4, 2**30])
    obs, new_trial, target, decision = env.sequences(seeds, 60)
    env.limit = 1000
    now = env.reset_rows(env.every, seeds)
    starts = np.ones(5, bool)
    for t in range(60):
        np.testing.assert_array_equal(obs[:, t], now)
        np.testing.assert_array_equal(target[:, t], env.right_now)
        np.testing.assert_array_equal(new_trial[:, t], starts)
        now, _, _, _, info = env.step(random_actions(env, np.random.default_rng(t)))
        np.testing.assert_array_equal(decision[:, t], info["decision"])
        np.testing.assert_array_equal(target[:, t], info["gt"])
        starts = info["new_trial"]
    np.testing.assert_array_equal(obs[0], obs[3])
    assert not np.array_equal(obs[0], obs[1])


@every_task
def test_a_shorter_sequence_is_the_start_of_a_longer_one(task: str) -> None:
    env, seeds = batch(task, 3), np.array([1, 2, 3])
    for short, long in zip(env.sequences(seeds, 7), env.sequences(seeds, 50), strict=True):
        np.testing.assert_array_equal(short, long[:, :7])


@every_task
def test_the_ground_truth_earns_every_reward_and_a_random_policy_does_not(task: str) -> None:
    env, seeds = batch(task, 800), range(800)
    right = ve.play(env, ground_truth, seeds, np.random.default_rng(0))
    asked = right["decision"]
    assert asked.any() and right["hit"][asked].all() and (right["reward"] == asked).all()
    other = ve.play(env, random_actions, seeds, np.random.default_rng(0))
    np.testing.assert_array_equal(other["decision"], asked)  # no action changes a trial
    assert abs(other["hit"][asked].mean() - 1 / len(env.one_hot)) < 0.05


@every_task
def test_a_row_is_the_single_environment_with_its_seed(task: str) -> None:
    env, single = batch(task, 3), gymnasium.make(task).unwrapped
    assert isinstance(single, SingleTrialTask)
    seeds, rng = np.array([3, 8, 2**62]), np.random.default_rng(1)
    first = env.reset_rows(np.arange(3), seeds)
    np.testing.assert_array_equal(single.reset(seed=8)[0], first[1])
    for _ in range(40):
        actions = random_actions(env, rng)
        obs, reward, _, _, info = env.step(actions)
        its, earned, _, _, its_info = single.step(int(actions[1]))
        np.testing.assert_array_equal(its, obs[1])
        assert earned == reward[1]
        np.testing.assert_equal(its_info, {name: values[1].item() for name, values in info.items()})
        assert single.conditions == dict(zip(env.condition_names, env.condition[1].tolist(), strict=True))


@every_task
def test_a_saved_batch_continues_exactly(task: str) -> None:
    env, other = batch(task, 4), batch(task, 4)
    env.reset(seed=4)
    other.reset(seed=99)
    actions = np.random.default_rng(2).integers(len(env.one_hot), size=(60, 4))
    for step in actions[:13]:
        env.step(step)
    saved = env.state_dict()
    expected = [env.step(step) for step in actions[13:]]
    other.load_state_dict(saved)
    for step, before in zip(actions[13:], expected, strict=True):
        np.testing.assert_equal(other.step(step), before)
    with pytest.raises(StateError, match="place lies beyond"):
        other.load_state_dict({**saved, "length": np.ones(4, np.int64), "place": np.ones(4, np.int64)})


@every_task
def test_gymnasiums_own_checks_pass_and_every_step_is_a_picture(task: str) -> None:
    check_env(gymnasium.make(task).unwrapped, skip_render_check=True)
    env = gymnasium.make(task, render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    frames = []
    for _ in range(25):
        frames.append(env.render())
        env.step(0)
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((400, 560, 3), "uint8")}
    assert any(not np.array_equal(frames[0], frame) for frame in frames)


@every_task
def test_the_task_is_registered_with_its_batch(task: str) -> None:
    assert str(find_spec(task).vector_entry_point).endswith("Vec")


def test_sequences_need_a_seed_for_each_row() -> None:
    with pytest.raises(ValueError, match="3 rows need as many seeds, got 2"):
        batch("TemporalOrder-v0", 3).sequences(np.array([1, 2]), 10)
