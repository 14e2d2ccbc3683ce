"""--observe-reward and --observe-action: what they append to an observation, and that every command sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import main
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.tasks.lanes import Lanes, VectorLanes

CUES = {"cue_bits": 3, "episode_steps": 9, "clock": False, "previous_reward": False, "previous_action": False}


def made(command: str, name: str, reward: bool = True, action: bool = True, **flags: Any) -> Any:
    options = {"env_name": name, "observe_reward": reward, "observe_action": action, **flags}
    return registry.make_env(cfg.make_config(command, options).env)


def test_a_choice_is_appended_one_hot_after_the_reward_as_worked_out_by_hand() -> None:
    env, plain = made("train", "CartPole-v1"), made("train", "CartPole-v1", False, False)
    seen, base = env.reset(seed=3)[0], plain.reset(seed=3)[0]
    assert seen.tolist() == [*base.tolist(), 0.0, 0.0, 0.0] and env.obs_dim == 4 + 1 + 2
    for action, one_hot in ((1, [0.0, 1.0]), (0, [1.0, 0.0])):
        seen, base = env.step(action)[0], plain.step(action)[0]
        assert seen.tolist() == [*base.tolist(), 1.0, *one_hot]  # every step of CartPole pays 1
        assert seen.dtype == np.float32 and env.observation_space.contains(seen)


def test_an_episode_starts_with_zeros_whatever_the_last_one_ended_with() -> None:
    env = made("train-neurogym", "GoNogo-v0", max_episode_steps=3)
    ended = False
    env.reset(seed=0)
    while not ended:
        seen, _, _, ended, _ = env.step(1)
    assert seen[-2:].tolist() == [0.0, 1.0]  # an episode's last observation shows its last action
    assert env.reset(seed=1)[0][-3:].tolist() == [0.0, 0.0, 0.0]


def test_rewards_and_vectors_are_appended_as_they_come() -> None:
    env = made("train", "Pendulum-v1")
    env.reset(seed=0)
    seen, reward, *_ = env.step(np.array([0.75], np.float32))
    assert seen[3:].tolist() == [np.float32(reward), 0.75] and reward < 0.0
    assert env.channel_names[3:] == ["last reward", "last action 1"]


@pytest.mark.parametrize(("reward", "action", "more"), [(True, False, 1), (False, True, 2), (False, False, 0)])
def test_each_option_appends_its_own_part(reward: bool, action: bool, more: int) -> None:
    env = made("train", "CartPole-v1", reward, action)
    assert env.obs_dim == 4 + more == env.observation_space.shape[0] == registry.spaces(env).obs_dim


def test_channels_are_named_after_the_task_and_its_actions() -> None:
    env = made("train-neurogym", "GoNogo-v0")
    appended = ["last reward", "last action fixation", "last action go"]
    assert env.channel_names == [*made("train-neurogym", "GoNogo-v0", False, False).channel_names, *appended]
    assert made("train", "CartPole-v1").channel_names[3:] == ["obs_3", "last reward", "last action 0", "last action 1"]
    assert made("train", "CueReward-v0").channel_names[-2:] == ["last action no", "last action yes"]


def test_everything_else_is_the_tasks_own() -> None:
    env, plain = made("train-neurogym", "GoNogo-v0"), made("train-neurogym", "GoNogo-v0", False, False)
    rng = np.random.default_rng(0)
    env.reset(seed=5), plain.reset(seed=5)
    for _ in range(60):
        assert (env.trial_steps, env.dt_ms, env.conditions) == (plain.trial_steps, plain.dt_ms, plain.conditions)
        action = env.scripted["ground_truth"](env, rng)
        assert action == plain.scripted["ground_truth"](plain, rng)
        assert env.step(action)[1:] == plain.step(action)[1:]
    assert env.action_names == plain.action_names and set(env.scripted) == set(plain.scripted)
    assert env.sequences(np.array([0]), 5) is None  # the task has to be played


def lanes_of(env: cfg.EnvConfig, batched: bool) -> Lanes | VectorLanes:
    seeds = iter(range(100))
    if not batched:
        return Lanes([registry.make_env(env) for _ in range(3)], lambda: next(seeds))
    config = cfg.make_config("train", {"env_name": env.env_name, "env_args": env.env_args, "observe_reward": True,
                                       "observe_action": True})  # fmt: skip
    return registry.make_lanes(config, 3, lambda: next(seeds))


def test_batched_lanes_see_what_single_environments_see_and_resume_exactly() -> None:
    env = cfg.GymnasiumConfig("CueReward-v0", CUES, observe_reward=True, observe_action=True)
    single, batched, back = (lanes_of(env, number > 0) for number in range(3))
    assert isinstance(batched, VectorLanes) and isinstance(back, VectorLanes)
    actions = np.random.default_rng(0).integers(0, 2, (17, 3))  # the second episode's last step is the 18th
    rewarded = False
    for t, row in enumerate(actions):
        one, two = single.step(row), batched.step(row)
        assert all(np.array_equal(a, b) for a, b in zip(one[0], two[0], strict=True)) and one[1] == two[1]
        assert np.array_equal(single.obs, batched.obs)
        shown = two[0].next_obs[:, -3:]
        assert np.array_equal(shown, np.stack([two[0].reward, row == 0, row == 1], axis=1))
        rewarded |= bool(two[0].reward.any())
        if t == 11:
            saved = batched.state_dict()
            back.check_state(saved, 12)
            back.load_state_dict(saved)
        elif t > 11:
            assert np.array_equal(back.step(row)[0].next_obs, two[0].next_obs)
    assert rewarded


def test_older_configurations_load_without_the_options() -> None:
    nested = cfg.make_config("train-neurogym", {}).to_dict()
    for name in ("observe_reward", "observe_action"):
        assert nested["env"].pop(name) is False
    assert cfg.config_from_dict(nested) == cfg.make_config("train-neurogym", {})


@pytest.mark.parametrize("flag", ["--observe-reward", "--observe-action"])
def test_sequences_that_nobody_plays_refuse_them(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["train", "--algo", "supervised", flag]) == 2
    error = capsys.readouterr().err
    assert f"{flag} needs a learner that plays the task, --algo supervised does not" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_task_of_two_actions_trains_evaluates_is_filmed_and_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["--experiment-name", "run"]
    tiny = ["--hidden-dim", "4", "--num-envs", "2", "--num-episodes", "2", "--eval-episodes", "1",
            "--buffer-size", "100", "--learning-starts", "50", "--max-episode-steps", "30", "--kernel", "reference",
            "--no-plot-training"]  # fmt: skip
    both = ["--observe-reward", "--observe-action"]
    assert main.main(["train-neurogym", "--env-name", "DawTwoStep-v0", *both, *run, *tiny]) == 0
    stored = json.loads((tmp_path / "experiments/run/config.json").read_text())["env"]
    assert stored["observe_reward"] is stored["observe_action"] is True
    capsys.readouterr()
    assert main.main(["eval", *run, "--num-eval-episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length_mean"] == 30
    assert main.main(["render", *run, "--max-steps", "2"]) == 0
    assert main.main(["analyze", "collect", *run, "--num-episodes", "2"]) == 0
    with np.load(tmp_path / "experiments/run/analysis/activity.npz") as activity:
        assert activity["observations"].shape == (60, 3 + 1 + 3)
        first = activity["step"] == 0
        rewards = np.where(first, 0.0, np.roll(activity["rewards"], 1))
        assert np.array_equal(activity["observations"][:, 3], rewards.astype(np.float32))
        chosen = np.where(first[:, None], 0.0, np.roll(np.eye(3)[activity["actions"]], 1, axis=0))
        assert np.array_equal(activity["observations"][:, 4:], chosen)


def test_a_task_whose_actions_are_no_choice_is_refused_as_without_them() -> None:
    class Loose(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    gymnasium.register("Loose-v0", Loose)
    with pytest.raises(ConfigError, match="the learners need a bounded vector"):
        made("train", "Loose-v0")
