"""Several NeuroGym tasks as one: seeds, channels, rule input, actions, and sequences for supervised learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.tasks.lanes import SEED_RANGES, repeats_episodes
from mpn_rl.tasks.schedules.task_set import TaskSet, seed_of, task_specs
from mpn_rl.tasks.sequences import TaskSequences
from neurogym_wrapper import make_neurogym

THREE = ["GoNogo-v0", "DelayMatchSample-v0", "yang19.go-v0"]


def made(names: str, **flags: Any) -> TaskSet:
    env = registry.make_env(cfg.make_config("train-neurogym", {"env_name": names, **flags}).env)
    assert isinstance(env, TaskSet)
    return env


def refusal(names: str, **flags: Any) -> str:
    with pytest.raises(ConfigError) as error:
        made(names, **flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def played(env: Any, seed: int, actions: list[int]) -> tuple[list[np.ndarray], list[float], list[dict[str, Any]]]:
    obs, _ = env.reset(seed=seed)
    seen, rewards, infos = [obs], [], []
    for action in actions:
        obs, reward, *_, info = env.step(action)
        seen.append(obs)
        rewards.append(reward)
        infos.append(info)
    return seen, rewards, infos


@pytest.mark.parametrize("purpose", SEED_RANGES)
def test_a_seed_is_moved_to_its_task_within_the_range_of_its_purpose(purpose: str) -> None:
    low, high = SEED_RANGES[purpose]
    for seed in (low, low + 1, low + 12_345, high - 2, high - 1):
        for task in range(3):
            moved = seed_of(seed, task, 3)
            assert moved % 3 == task and low <= moved < high and abs(moved - seed) < 5


def test_an_episode_is_of_the_task_that_its_seed_says_and_repeats() -> None:
    env, again = made(",".join(THREE)), made(",".join(THREE))
    actions = np.random.default_rng(0).integers(0, 17, 60).tolist()
    for seed in (7, 9, 11, 9):
        first, second = played(env, seed, actions), played(again, seed, actions)
        assert env.conditions["task"] == THREE[seed % 3]
        assert np.array_equal(first[0], second[0]) and first[1] == second[1]
    assert repeats_episodes(env)


def test_channels_of_the_same_name_are_one_and_the_rule_says_which_task_is_on() -> None:
    env = made("GoNogo-v0,DelayMatchSample-v0,Bandit-v0")
    channels = ["fixation", "nogo", "go", "stimulus 1", "stimulus 2", "obs_0"]
    assert env.channel_names == [
        *channels,
        *(f"rule: {name}" for name in ("GoNogo-v0", "DelayMatchSample-v0", "Bandit-v0")),
    ]
    assert env.obs_dim == 9 and env.observation_space.shape == (9,)
    places = {0: [0, 1, 2], 1: [0, 3, 4], 2: [5]}
    for task, own in places.items():
        plain = make_neurogym(env.names[task], {}, 150)
        seen, rewards, _ = played(env, 30 + task, [0] * 40)
        alone, paid, _ = played(plain, 30 + task, [0] * 40)
        assert rewards == paid
        for shown, raw in zip(seen, alone, strict=True):
            assert shown[own].tolist() == raw.tolist() and shown.dtype == np.float32
            assert shown[6:].tolist() == np.eye(3)[task].tolist()
            assert not shown[[place for place in range(6) if place not in own]].any()


def test_all_yang_tasks_share_their_channels_by_name() -> None:
    env = made("yang19")
    stimuli = [f"stimulus_mod{modality} {place}" for modality in (1, 2) for place in range(1, 17)]
    assert env.channel_names[:33] == ["fixation", *stimuli] and env.obs_dim == 33 + 20
    assert env.names[:3] == ["yang19.go-v0", "yang19.rtgo-v0", "yang19.dlygo-v0"] and len(env.names) == 20
    assert env.action_names == ["fixation", *(f"choice {number}" for number in range(1, 17))]


def test_the_stimulus_of_a_yang_task_is_in_the_channels_of_its_modality() -> None:
    env = make_neurogym("yang19.go-v0")
    modalities = set()
    env.reset(seed=0)
    for _ in range(20):  # trials
        names = np.array(env.channel_names)
        stimulus = env.unwrapped.ob.max(axis=0) > 0.5
        active = {int(name[12]) for name in names[stimulus] if name.startswith("stimulus_mod")}
        assert len(active) == 1
        modalities |= active
        env.new_trial()
    assert modalities == {1, 2}


def test_an_action_that_a_task_lacks_does_what_its_action_0_does() -> None:
    env = made(",".join(THREE))
    assert env.action_space.n == 17
    seed = seed_of(50, 0, 3)  # GoNogo has the actions 0 and 1
    lacking, fixation, going = (played(env, seed, [action] * 40) for action in (9, 0, 1))
    assert lacking[1] == fixation[1] != going[1]
    assert np.array_equal(lacking[0], fixation[0])


def test_trials_name_their_task() -> None:
    env = made(",".join(THREE))
    _, _, infos = played(env, 31, [0] * 60)
    trials = [info["trial"] for info in infos if info["new_trial"]]
    assert trials and all(trial["task"] == THREE[31 % 3] for trial in trials) and "ground_truth" in trials[0]


def test_scripted_policies_are_those_that_every_task_has_and_use_the_task_that_is_on() -> None:
    env = made(",".join(THREE))
    assert list(env.scripted) == ["random", "never_act", "ground_truth"]
    rng = np.random.default_rng(0)
    for seed in (60, 61, 62):
        env.reset(seed=seed)
        total = 0.0
        for _ in range(100):
            total += env.step(env.scripted["ground_truth"](env, rng))[1]
        assert total > 0
        assert max(env.scripted["random"](env, rng) for _ in range(50)) < env.current.task.n_actions
    assert "ground_truth" not in made("GoNogo-v0,Bandit-v0").scripted


def test_arguments_are_of_all_tasks_or_of_the_one_that_they_name() -> None:
    env = made("GoNogo-v0,DelayMatchSample-v0", env_args={"dt": 50, "DelayMatchSample-v0": {"dt": 20}})
    assert [env.member(index).dt_ms for index in range(2)] == [50, 20]
    assert "'DelayMatch-v0'; did you mean" in refusal("GoNogo-v0,DelayMatchSample-v0", env_args={"DelayMatch-v0": {}})
    assert "dtt" in refusal("GoNogo-v0,DelayMatchSample-v0", env_args={"dtt": 50})


def test_sets_that_make_no_sense_are_refused() -> None:
    assert refusal("GoNogo-v0,GoNogo-v0") == "--env-name must name each task once, got GoNogo-v0 2 times"
    assert "yang19.go-v0 2 times" in refusal("yang19,yang19.go-v0")
    assert "tasks joined by commas" in refusal("GoNogo-v0,")
    assert "'GoNogo'; did you mean 'GoNogo-v0'" in refusal("GoNogo,DelayMatchSample-v0")
    assert "yang20" in refusal("yang20,GoNogo-v0")
    vectors = refusal("GoNogo-v0,ReachingDelayResponse-v0")
    assert "GoNogo-v0 has Discrete(2), ReachingDelayResponse-v0 has Box" in vectors and "different runs" in vectors


def test_sequences_are_those_of_each_task_whether_it_is_laid_out_or_played() -> None:
    env = made(",".join(THREE))
    source = TaskSequences(env, lambda rows: None, 30, False, lambda seeds, rng: np.array([90, 91, 92, 93]))
    obs, reset, target, decision = source.sample(4, np.random.default_rng(0))
    assert obs.shape == (4, 30, env.obs_dim) and reset[:, 0].all() and not reset[:, 1:].any()
    for row, seed in enumerate((90, 91, 92, 93)):
        index = seed % 3
        assert (obs[row, :, -3:].numpy() == np.eye(3)[index]).all()
        plain = make_neurogym(THREE[index], {}, 150)
        alone = TaskSequences(plain, lambda rows: None, 30, False, lambda seeds, rng, seed=seed: np.array([seed]))
        raw = alone.sample(1, np.random.default_rng(0))
        assert target[row].tolist() == raw.target[0].tolist() and decision[row].tolist() == raw.decision[0].tolist()
        places = [env.channel_names.index(name) for name in plain.channel_names]
        assert obs[row][:, places].tolist() == raw.obs[0].tolist()
    assert plain.sequences(np.array([0]), 10) is not None and env.member(2).sequences(np.array([0]), 10) is None


def test_weights_are_of_tasks_in_the_set() -> None:
    env = cfg.make_config("train-neurogym", {"env_name": "GoNogo-v0,Bandit-v0", "task_weights": {"Bandit-v0": 3}}).env
    assert isinstance(env, cfg.NeuroGymConfig)
    assert [spec.weight for spec in task_specs(env)] == [1.0, 3.0]
    assert "'Bandi-v0'; did you mean 'Bandit-v0'" in refusal("GoNogo-v0,Bandit-v0", task_weights={"Bandi-v0": 3})
    for weight in (0, -1, "x", True):
        assert "--task-weight Bandit-v0 must be a number" in refusal(
            "GoNogo-v0,Bandit-v0", task_weights={"Bandit-v0": weight}
        )
