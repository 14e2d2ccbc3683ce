"""Lanes: copies of a task that step together, as separate environments or as one vector environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import gymnasium
import numpy as np
from gymnasium import spaces

from mpn_rl.contracts import Action, Info, Steps, Task, VectorEnv
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import Anything, Schema, StateError, Values, Whole, check, like_dict

# The seeds of training episodes, of the evaluations that choose best_model.pt, and of `eval` never overlap.
SEED_RANGES = {"train": (0, 2**30), "select": (2**30, 3 * 2**29), "eval": (3 * 2**29, 2**31 - 1)}

SEED = Whole(SEED_RANGES["train"][0], SEED_RANGES["train"][1] - 1)


class EpisodeSeeds:
    """A source of episode seeds.

    Args:
        purpose: train, select or eval; the seeds come from its part of `SEED_RANGES`.
        seed: of this source.
    """

    def __init__(self, purpose: str, seed: int) -> None:
        self.low, self.high = SEED_RANGES[purpose]
        self.rng = np.random.default_rng([seed, self.low])

    def __call__(self) -> int:
        return int(self.rng.integers(self.low, self.high))


class EpisodeEnd(NamedTuple):
    """One finished episode of a lane."""

    reward: float  # the sum over the episode
    length: int  # steps
    trials: int  # completed trials; 0 where the task has none
    accuracy: float | None  # mean performance of the trials; None where there are none


class SavedLanes(TypedDict):
    """The state of `Lanes`: each lane's episode seed and its actions so far, with the result that they must have."""

    seeds: list[int]
    actions: list[np.ndarray]
    obs: np.ndarray
    rewards: np.ndarray


class Lanes:
    """N environments of one task that step together, in a plain loop: these tasks cost less than a vector environment.

    A lane whose episode ends starts the next one at once. `obs` (N, D) is what to act upon next. A lane is saved as
    the seed and the actions of its episode; loading replays them.

    Args:
        envs: N environments of one task.
        next_seed: returns the seed of the next episode.
    """

    def __init__(self, envs: Sequence[Task], next_seed: Callable[[], int]) -> None:
        self.envs, self.next_seed = list(envs), next_seed
        lanes = len(self.envs)
        self.obs = np.zeros((lanes, self.envs[0].obs_dim), np.float32)
        self.seeds = [0] * lanes
        self.actions: list[list[Action]] = [[] for _ in range(lanes)]
        self.rewards = np.zeros(lanes)
        self.scores: list[list[float]] = [[] for _ in range(lanes)]
        for lane in range(lanes):
            self._start(lane)

    def __len__(self) -> int:
        return len(self.envs)

    @property
    def trial_steps(self) -> int:
        """Full length of the first lane's current trial in steps; 0 where the task has no trials."""
        return self.envs[0].trial_steps

    def _start(self, lane: int) -> None:
        seed = self.next_seed()
        self._restart(lane, seed, self.envs[lane].reset(seed=seed)[0])

    def restart(self) -> None:
        """Start a new episode in every lane."""
        for lane in range(len(self.envs)):
            self._start(lane)

    def _restart(self, lane: int, seed: int, obs: np.ndarray) -> None:
        self.seeds[lane], self.obs[lane] = seed, obs
        self.actions[lane], self.rewards[lane], self.scores[lane] = [], 0.0, []

    def step(self, actions: np.ndarray) -> tuple[Steps, list[EpisodeEnd]]:
        """One step of every lane. Where a task fails, all lanes stay as they were, so the run can be saved.

        Args: actions: (N,) choices, or (N, A) where actions are continuous.
        Returns: the step, and the episodes that it ended.
        """
        lanes, ended = len(self.envs), []
        obs, next_obs = self.obs.copy(), np.empty_like(self.obs)
        reward = np.empty(lanes)
        terminated, truncated, new_trial = np.zeros((3, lanes), bool)
        chosen, infos = per_lane(actions), []
        for lane, (env, action) in enumerate(zip(self.envs, chosen, strict=True)):
            next_obs[lane], reward[lane], terminated[lane], truncated[lane], info = env.step(action)
            infos.append(info)
        seeds = {lane: self.next_seed() for lane in np.flatnonzero(terminated | truncated).tolist()}
        fresh = {lane: self.envs[lane].reset(seed=seed)[0] for lane, seed in seeds.items()}
        self.obs[:] = next_obs
        self.rewards += reward
        for lane, (action, info) in enumerate(zip(chosen, infos, strict=True)):
            self.actions[lane].append(action)
            if info.get("new_trial"):
                new_trial[lane] = True
                self.scores[lane] += trial_score(info)
        for lane, first_obs in fresh.items():
            scores = self.scores[lane]
            accuracy = float(np.mean(scores)) if scores and not np.isnan(scores).any() else None
            ended.append(EpisodeEnd(float(self.rewards[lane]), len(self.actions[lane]), len(scores), accuracy))
            self._restart(lane, seeds[lane], first_obs)
        return Steps(obs, actions, reward.astype(np.float32), terminated, truncated, next_obs, new_trial), ended

    def check_state(self, saved: object, steps: int) -> np.ndarray:
        """Raise a StateError where `saved` is not a state of these lanes after so many steps; no task runs.

        Returns: the steps of each lane's episode so far, (N,).
        """
        lanes, space = len(self.envs), self.envs[0].action_space
        choices: Schema = Values(np.dtype(np.int64), (None,), *action_bounds(space))
        vectors: Schema = choices
        if isinstance(space, spaces.Box):
            vectors = Values(np.dtype(np.float32), (None, *space.shape), *action_bounds(space))
        schema = like_dict({**self.state_dict()}, seeds=[SEED] * lanes, actions=[Anything()] * lanes)
        check(saved, schema, "lanes")
        assert isinstance(saved, dict)
        for lane, actions in enumerate(saved["actions"]):
            check(actions, vectors if np.size(actions) else choices, f"lanes.actions.{lane}")
            if len(actions) > steps:
                raise StateError(f"lanes.actions.{lane} has {len(actions):,} actions after {steps:,} steps")
        return np.array([len(actions) for actions in saved["actions"]])

    def state_dict(self) -> SavedLanes:
        return {
            "seeds": list(self.seeds),
            "actions": [np.array(actions) if actions else np.zeros(0, np.int64) for actions in self.actions],
            "obs": self.obs.copy(),
            "rewards": self.rewards.copy(),
        }

    def load_state_dict(self, saved: SavedLanes) -> None:
        """Replay every lane's episode up to the step at which it was saved.

        Raises: ConfigError where the replayed observation or rewards differ from the saved ones.
        """
        for lane, (seed, actions) in enumerate(zip(saved["seeds"], saved["actions"], strict=True)):
            self.seeds[lane] = seed
            obs, _ = self.envs[lane].reset(seed=seed)
            self.actions[lane], self.rewards[lane], self.scores[lane] = per_lane(actions), 0.0, []
            ended = False
            for action in self.actions[lane]:
                obs, reward, terminated, truncated, info = self.envs[lane].step(action)
                self.rewards[lane] += reward
                if info.get("new_trial"):
                    self.scores[lane] += trial_score(info)
                ended = terminated or truncated
                if ended:
                    break
            self.obs[lane] = obs
            same = not ended and np.array_equal(self.obs[lane], saved["obs"][lane], equal_nan=True)
            if not same or self.rewards[lane] != saved["rewards"][lane]:
                raise ConfigError(
                    f"--resume: {task_name(self.envs[lane])} does not reproduce an episode from its seed and actions, "
                    "so this run cannot continue exactly: add --fresh-episodes, which starts new episodes instead"
                )


class VectorLanes:
    """The lanes of a vector environment, whose rows all step at once in NumPy; otherwise like `Lanes`.

    Args:
        env: the task as a vector environment of N rows.
        next_seed: returns the seed of the next episode.
    """

    trial_steps = 0

    def __init__(self, env: VectorEnv, next_seed: Callable[[], int]) -> None:
        self.env, self.next_seed = env, next_seed
        lanes = env.num_envs
        self.seeds = np.zeros(lanes, np.int64)
        self.rewards, self.scores = np.zeros((2, lanes))
        self.lengths, self.trials = np.zeros((2, lanes), np.int64)
        self.obs = np.array(self._start(np.arange(lanes)), np.float32)

    def __len__(self) -> int:
        return len(self.seeds)

    def restart(self) -> None:
        """Start a new episode in every lane."""
        self.obs[:] = self._start(np.arange(len(self)))

    def _start(self, rows: np.ndarray) -> np.ndarray:
        self.seeds[rows] = [self.next_seed() for _ in rows]
        self.rewards[rows], self.scores[rows], self.lengths[rows], self.trials[rows] = 0.0, 0.0, 0, 0
        return self.env.reset_rows(rows, self.seeds[rows])

    def step(self, actions: np.ndarray) -> tuple[Steps, list[EpisodeEnd]]:
        """One step of every lane, as `Lanes.step`."""
        obs = self.obs.copy()
        next_obs, reward, terminated, truncated, info = self.env.step(actions)
        new_trial = info.get("new_trial", np.zeros(len(obs), bool))
        if new_trial.any():
            self.trials += new_trial
            self.scores[new_trial] += info["performance"][new_trial]
        self.rewards += reward
        self.lengths += 1
        self.obs[:] = next_obs
        ended = []
        rows = np.flatnonzero(terminated | truncated)
        for row in rows.tolist():
            trials = int(self.trials[row])
            accuracy = float(self.scores[row]) / trials if trials else None
            ended.append(EpisodeEnd(float(self.rewards[row]), int(self.lengths[row]), trials, accuracy))
        if ended:
            self.obs[rows] = self._start(rows)
        return Steps(obs, actions, reward, terminated, truncated, next_obs, new_trial), ended

    def check_state(self, saved: object, steps: int) -> np.ndarray:
        """As `Lanes.check_state`; the state of the task itself is checked by its `load_state_dict`."""
        names, lanes = np.dtype(np.int64), (len(self),)
        counts = {name: Values(names, lanes, 0, steps) for name in ("lengths", "trials")}
        check(saved, like_dict(self.state_dict(), seeds=Values(names, lanes, *SEED_RANGES["train"]), **counts), "lanes")
        assert isinstance(saved, dict)
        return np.array(saved["lengths"])

    _ARRAYS = ("obs", "seeds", "rewards", "scores", "lengths", "trials")

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), **{name: getattr(self, name).copy() for name in self._ARRAYS}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.env.load_state_dict(saved["env"])
        for name in self._ARRAYS:
            np.copyto(getattr(self, name), saved[name])


def action_bounds(space: gymnasium.Space) -> tuple[float, float]:
    """The smallest and the largest number in an action of a bounded Box, or of a Discrete from 0."""
    if isinstance(space, spaces.Box):
        return float(space.low.astype(np.float32).min()), float(space.high.astype(np.float32).max())
    assert isinstance(space, spaces.Discrete)
    return 0, int(space.n) - 1


def repeats_episodes(env: Task, steps: int = 20) -> bool:
    """Whether a task repeats the first steps of an episode from its seed and actions, as `--resume` needs.

    A task does not if it remembers earlier episodes, as NormalizeObservation does, or draws without its seed.
    """
    played: list[list[np.ndarray]] = []
    for _ in range(2):
        rng, ended = np.random.default_rng(0), False
        played.append([env.reset(seed=0)[0].copy()])
        while not ended and len(played[-1]) < 2 * steps:
            obs, reward, terminated, truncated, _ = env.step(env.scripted["random"](env, rng))
            played[-1] += [obs.copy(), np.array(reward)]
            ended = terminated or truncated
    return len(played[0]) == len(played[1]) and all(map(np.array_equal, *played))


def trial_score(info: Info) -> list[float]:
    """The performance of the trial that ended, in a list; an empty one where the task gives no number."""
    score = info.get("performance")
    return [float(score)] if isinstance(score, bool | int | float | np.number | np.bool_) else []


def per_lane(actions: np.ndarray) -> list[Action]:
    """The actions of N lanes as a list: (N,) choices as int, (N, A) as N vectors."""
    return actions.tolist() if actions.ndim == 1 else list(actions)


def task_name(env: gymnasium.Env) -> str:
    """The task's Gymnasium id, or the name of its class where it has none."""
    task = env.unwrapped
    return task.spec.id if task.spec else type(task).__name__
