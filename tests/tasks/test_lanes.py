"""Lanes of a batched environment: the same episodes as separate environments, saved and brought back exactly."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from mpn_rl.storage.state_trees import StateError
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium
from mpn_rl.tasks.lanes import EpisodeSeeds, Lanes, VectorLanes, per_lane, repeats_episodes


class Counters:
    """Row i counts up from its seed modulo 7 by its action and ends at 10 (terminated) or after 4 steps."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.count, self.t = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)

    def reset_rows(self, rows: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        self.count[rows], self.t[rows] = seeds % 7, 0
        return self.count[rows, None].astype(np.float32)

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.count += actions
        self.t += 1
        reward = self.count.astype(np.float32)
        return self.count[:, None].astype(np.float32), reward, self.count >= 10, self.t >= 4, {}

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"count": self.count.copy(), "t": self.t.copy()}

    def load_state_dict(self, saved: dict[str, np.ndarray]) -> None:
        self.count, self.t = saved["count"].copy(), saved["t"].copy()


def test_a_row_that_ends_restarts_and_reports_its_own_episode() -> None:
    seeds = iter([2, 8, 3])
    lanes = VectorLanes(Counters(2), lambda: next(seeds))
    assert lanes.obs.tolist() == [[2.0], [1.0]]
    steps, ended = lanes.step(np.array([5, 1]))
    assert ended == [] and steps.obs.tolist() == [[2.0], [1.0]] and steps.next_obs.tolist() == [[7.0], [2.0]]
    steps, ended = lanes.step(np.array([4, 1]))
    assert [(end.reward, end.length, end.trials, end.accuracy) for end in ended] == [(7.0 + 11.0, 2, 0, None)]
    assert steps.terminated.tolist() == [True, False] and steps.next_obs.tolist() == [[11.0], [3.0]]
    assert lanes.obs.tolist() == [[3.0], [3.0]]  # row 0 shows its next episode, the step its true last observation


class Trials(Counters):
    """Each step is a trial with the score 1 where the action is 1; an episode has four."""

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        obs, reward, _, truncated, _ = super().step(actions)
        always = np.ones(self.num_envs, bool)
        return obs, reward, ~always, truncated, {"new_trial": always, "performance": (actions == 1).astype(float)}


class OneTrial(gymnasium.Env):
    """The same as a single environment."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    obs_dim, trial_steps = 1, 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, ...]:
        self.t += 1
        info = {"new_trial": True, "performance": float(action == 1)}
        return np.zeros(1, np.float32), 0.0, False, self.t == 4, info


def test_the_accuracy_of_an_episode_is_the_mean_over_its_trials() -> None:
    for lanes in (VectorLanes(Trials(2), lambda: 0), Lanes([OneTrial(), OneTrial()], lambda: 0)):
        for actions in ([1, 0], [0, 0], [0, 0], [0, 1]):
            _, ended = lanes.step(np.array(actions))
        assert [(end.trials, end.accuracy) for end in ended] == [(4, 0.25), (4, 0.25)]


def test_the_episodes_of_training_and_evaluation_are_unrelated() -> None:
    """One generator for all purposes would shift the same draws into each range."""
    from mpn_rl.tasks.lanes import SEED_RANGES

    places = {}
    for purpose, (low, high) in SEED_RANGES.items():
        source = EpisodeSeeds(purpose, 3)
        places[purpose] = np.array([(source() - low) / (high - low) for _ in range(400)])
    for one, other in (("train", "select"), ("train", "eval"), ("select", "eval")):
        assert abs(np.corrcoef(places[one], places[other])[0, 1]) < 0.2  # 4 standard errors
        assert not np.isclose(places[one], places[other], atol=1e-6).any()


def test_steps_keep_what_they_saw_while_the_lanes_go_on() -> None:
    lanes = VectorLanes(Counters(1), lambda: 0)
    first, _ = lanes.step(np.array([1]))
    kept = first.obs.copy()
    lanes.step(np.array([1]))
    assert np.array_equal(first.obs, kept)


def test_batched_lanes_come_back_exactly_in_the_middle_of_an_episode() -> None:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 3, (30, 3))
    seeds = EpisodeSeeds("train", 0)
    lanes = VectorLanes(Counters(3), seeds)
    for row in actions[:13]:
        lanes.step(row)
    saved, state = lanes.state_dict(), seeds.rng.bit_generator.state
    expected = [lanes.step(row) for row in actions[13:]]
    source = EpisodeSeeds("train", 1)
    again = VectorLanes(Counters(3), source)
    again.load_state_dict(saved)
    source.rng.bit_generator.state = state
    for row, (steps, ended) in zip(actions[13:], expected, strict=True):
        other, ends = again.step(row)
        assert ends == ended and all(np.array_equal(a, b) for a, b in zip(steps, other, strict=True))


def test_actions_are_whole_numbers_or_vectors() -> None:
    assert per_lane(np.array([1, 0])) == [1, 0]
    assert [row.tolist() for row in per_lane(np.array([[0.5, 1.0]]))] == [[0.5, 1.0]]


def test_a_state_of_other_lanes_is_refused() -> None:
    lanes = Lanes([make_gymnasium("CartPole-v1") for _ in range(3)], EpisodeSeeds("train", 0))
    for _ in range(5):
        lanes.step(np.array([0, 1, 0]))
    saved = lanes.state_dict()
    assert lanes.check_state(saved, 5).tolist() == [5, 5, 5]
    two = {**saved, "seeds": saved["seeds"][:2], "actions": saved["actions"][:2]}
    damages = [two, {**saved, "seeds": [-1, 2, 3]}, {**saved, "actions": [np.array([2])] * 3}]
    for damage in damages:
        with pytest.raises(StateError, match="^lanes"):
            lanes.check_state(damage, 5)
    with pytest.raises(StateError, match="lanes.actions.0 has 5 actions after 4 steps"):
        lanes.check_state(saved, 4)


class Drifting(gymnasium.Wrapper):
    """CartPole whose rewards, from the third step of an episode on, depend on how many episodes there were."""

    def __init__(self) -> None:
        super().__init__(make_gymnasium("CartPole-v1"))
        self.scripted = {"random": lambda env, rng: int(rng.integers(2))}
        self.episodes = 0

    def reset(self, **options: Any) -> Any:
        self.episodes, self.t = self.episodes + 1, 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        obs, reward, *rest = self.env.step(action)
        self.t += 1
        return obs, reward + (self.episodes if self.t > 2 else 0), *rest


def test_a_task_that_remembers_earlier_episodes_does_not_repeat_them() -> None:
    assert repeats_episodes(make_gymnasium("CartPole-v1"))
    assert not repeats_episodes(Drifting())  # type: ignore[arg-type]
