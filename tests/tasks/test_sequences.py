"""Sequences with their right actions: laid out or played, seeded, and reset where an episode starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mpn_rl.storage.state_trees import StateError
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium, make_vector_env
from mpn_rl.tasks.sequences import TaskSequences, play_rows, play_task
from neurogym_wrapper import make_neurogym, task_names


def of_gymnasium(name: str, length: int, batched: bool = True, reset: bool = False, **args: Any) -> TaskSequences:
    make: Callable[[int], Any] = lambda rows: make_vector_env(rows, name, args) if batched else None  # noqa: E731
    return TaskSequences(make_gymnasium(name, args), make, length, reset)


def of_neurogym(name: str, length: int = 100, reset: bool = False, **args: Any) -> TaskSequences:
    return TaskSequences(make_neurogym(name, args, 150), lambda rows: None, length, reset)


SOURCES = {
    "laid out in a batch": lambda: of_gymnasium("TemporalOrder-v0", 30),
    "played in a batch": lambda: of_gymnasium("CueReward-v0", 30),
    "played one by one": lambda: of_gymnasium("CueReward-v0", 30, batched=False),
    "laid out by NeuroGym": lambda: of_neurogym("PerceptualDecisionMaking-v0", 30),
    "played by NeuroGym": lambda: of_neurogym("DawTwoStep-v0", 30),
    "vectors of NeuroGym": lambda: of_neurogym("ReachingDelayResponse-v0", 30),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_a_batch_is_a_function_of_the_generators_state(make: Callable[[], TaskSequences]) -> None:
    source, rng = make(), np.random.default_rng(5)
    source.sample(3, rng)
    state = rng.bit_generator.state
    expected = source.sample(4, rng)
    other, again = make(), np.random.default_rng(0)
    other.sample(2, again)
    again.bit_generator.state = state
    for one, two in zip(expected, other.sample(4, again), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(expected.obs, other.sample(4, again).obs)
    assert expected.obs.shape[:2] == expected.reset.shape == expected.decision.shape == (4, 30)
    assert expected.reset[:, 0].all() and (expected.target[~expected.target.isnan()] >= -1).any()


def test_nothing_is_stored() -> None:
    source = SOURCES["laid out in a batch"]()
    assert len(source) == source.nbytes == 0 and source.state_dict() == {}
    source.load_state_dict({})
    with pytest.raises(StateError, match="replay"):
        source.load_state_dict({"obs": 1})


# --- played tasks -----------------------------------------------------------------------------------------

CUES = {"episode_steps": 12}


def test_a_played_sequence_continues_with_the_next_episode_whose_state_is_reset() -> None:
    env = make_vector_env(3, "CueReward-v0", CUES)
    assert env is not None
    (obs, new_trial, target, decision), started = play_rows(env, np.array([1, 2, 3]), 30)
    assert [np.flatnonzero(row).tolist() for row in started] == [[0, 12, 24]] * 3
    clock = env.channels["clock"].start
    np.testing.assert_allclose(obs[:, :, clock], np.tile(np.arange(30) % 12 / 12, (3, 1)), rtol=1e-6)
    assert new_trial[started].all() and ((target >= 0) == decision).all() and decision.any()
    np.testing.assert_array_equal(decision, obs[:, :, env.channels["go"].start] == 1.0)


def test_one_environment_is_played_as_a_batch_is() -> None:
    played = play_task(make_gymnasium("CueReward-v0", CUES), 7, 30)
    obs, new_trial, target, decision = played.arrays
    assert np.flatnonzero(played.started).tolist() == [0, 12, 24] and new_trial[played.started].all()
    assert ((target >= 0) == decision).all() and set(target[decision].tolist()) <= {0, 1} and decision.any()
    assert obs.dtype == np.float32 and target.dtype == np.int64


@pytest.mark.parametrize("reset", [False, True])
def test_the_state_is_reset_at_each_trial_only_if_asked(reset: bool) -> None:
    source = of_gymnasium("TemporalOrder-v0", 20, reset=reset, shortest_trial=5, longest_trial=5)
    drawn = source.sample(2, np.random.default_rng(0))
    assert np.flatnonzero(drawn.reset[0].numpy()).tolist() == ([0, 5, 10, 15] if reset else [0])


# --- NeuroGym ---------------------------------------------------------------------------------------------


def test_laid_out_trials_are_those_of_an_episode_that_follows_the_ground_truth() -> None:
    compared = 0
    for name in task_names():
        try:
            env = make_neurogym(name, {}, 1000)
        except ValueError:  # it cannot be trained
            continue
        seeds = np.array([3, 4])
        arrays = env.sequences(seeds, 25)
        if arrays is None:
            continue
        obs, new_trial, target, decision = arrays
        for row, seed in enumerate(seeds.tolist()):
            now, _ = env.reset(seed=seed)
            for t in range(25):
                np.testing.assert_array_equal(obs[row, t], now, err_msg=f"{name}, step {t}")
                action = env.ground_truth_action()
                np.testing.assert_array_equal(target[row, t], action, err_msg=name)
                assert decision[row, t] == env.at_decision, name
                now, _, _, _, info = env.step(action)
                if info["new_trial"]:  # it may end before its full length
                    break
        assert new_trial[:, 0].all()
        compared += 1
    assert compared >= 25


def test_a_laid_out_trial_has_its_full_length_and_the_next_one_follows() -> None:
    env = make_neurogym("DelayMatchSample-v0", {}, 150)
    obs, new_trial, target, decision = env.sequences(np.array([0]), 70) or ()
    assert np.flatnonzero(new_trial[0]).tolist() == [0, 32, 64]  # 3.2 s in steps of 0.1 s
    assert np.flatnonzero(decision[0]).tolist() == [*range(23, 32), *range(55, 64)]  # its last 0.9 s
    assert ((target[0] > 0) == decision[0]).all() and obs.shape == (1, 70, 3)


def test_a_task_that_reacts_to_actions_is_not_laid_out() -> None:
    assert make_neurogym("DawTwoStep-v0").sequences(np.array([0]), 5) is None
    assert make_neurogym("PostDecisionWager-v0").sequences(np.array([0]), 5) is None  # its gt earns nothing
