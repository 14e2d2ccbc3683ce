"""Lanes: copies of a task that step together, as separate environments or as one batched environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from mpn_rl.contracts import Steps
from mpn_rl.options import ConfigError

# Episode seeds come from ranges that never meet: training, the choice of best_model.pt, and eval.
SEED_RANGES = {"train": (0, 2**30), "select": (2**30, 3 * 2**29), "eval": (3 * 2**29, 2**31 - 1)}


class EpisodeSeeds:
    """Episode seeds for one purpose, drawn from that purpose's own range."""

    def __init__(self, purpose: str, seed: int) -> None:
        self.low, self.high = SEED_RANGES[purpose]
        self.rng = np.random.default_rng([seed, self.low])

    def __call__(self) -> int:
        return int(self.rng.integers(self.low, self.high))


class EpisodeEnd(NamedTuple):
    """One finished episode of a lane. `accuracy` is None where the task scores no trials."""

    reward: float
    length: int
    trials: int
    accuracy: float | None


class Lanes:
    """N copies of a task that step together, in a plain loop: a vector environment costs more than the tasks.

    An episode that ends begins anew at once, with a seed of its own; `obs` is always what to act upon next. A
    lane is saved as its episode's seed and the actions so far, and comes back by replaying them.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], next_seed: Callable[[], int]) -> None:
        self.envs, self.next_seed = list(envs), next_seed
        lanes = len(self.envs)
        space = self.envs[0].observation_space
        self.obs = np.zeros((lanes, *(space.shape or ())), np.float32)
        self.seeds = [0] * lanes
        self.actions: list[list[Any]] = [[] for _ in range(lanes)]
        self.rewards = np.zeros(lanes)
        self.scores: list[list[float]] = [[] for _ in range(lanes)]
        for lane in range(lanes):
            self._begin(lane)

    def __len__(self) -> int:
        return len(self.envs)

    @property
    def trial_steps(self) -> int:
        """The mean length of a trial; 0 where the task has none."""
        steps: int = self.envs[0].trial_steps
        return steps

    def _begin(self, lane: int) -> None:
        self.seeds[lane] = self.next_seed()
        self.obs[lane], _ = self.envs[lane].reset(seed=self.seeds[lane])
        self.actions[lane], self.rewards[lane], self.scores[lane] = [], 0.0, []

    def step(self, actions: np.ndarray) -> tuple[Steps, list[EpisodeEnd]]:
        """One step of every lane, and the episodes that ended with it."""
        lanes, ended = len(self.envs), []
        obs, next_obs = self.obs.copy(), np.empty_like(self.obs)
        reward = np.empty(lanes, np.float32)
        terminated, truncated, new_trial = np.zeros((3, lanes), bool)
        for lane, (env, action) in enumerate(zip(self.envs, each(actions), strict=True)):
            next_obs[lane], step_reward, terminated[lane], truncated[lane], info = env.step(action)
            reward[lane] = step_reward
            self.actions[lane].append(action)
            self.rewards[lane] += step_reward
            if info.get("new_trial"):
                new_trial[lane] = True
                self.scores[lane].append(info["performance"])
        self.obs[:] = next_obs
        for lane in np.flatnonzero(terminated | truncated):
            scores = self.scores[lane]
            accuracy = float(np.mean(scores)) if scores else None
            ended.append(EpisodeEnd(float(self.rewards[lane]), len(self.actions[lane]), len(scores), accuracy))
            self._begin(lane)
        return Steps(obs, actions, reward, terminated, truncated, next_obs, new_trial), ended

    def state_dict(self) -> dict[str, Any]:
        return {
            "seeds": list(self.seeds),
            "actions": [np.array(actions) if actions else np.zeros(0, np.int64) for actions in self.actions],
            "obs": self.obs.copy(),
            "rewards": self.rewards.copy(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Replay every lane's episode up to where it was.

        Raises: ConfigError when the task does not come back to the same observation and rewards.
        """
        for lane, (seed, actions) in enumerate(zip(saved["seeds"], saved["actions"], strict=True)):
            self.seeds[lane] = seed
            obs, _ = self.envs[lane].reset(seed=seed)
            self.actions[lane], self.rewards[lane], self.scores[lane] = each(actions), 0.0, []
            for action in self.actions[lane]:
                obs, reward, _, _, info = self.envs[lane].step(action)
                self.rewards[lane] += reward
                if info.get("new_trial"):
                    self.scores[lane].append(info["performance"])
            self.obs[lane] = obs
            same = np.array_equal(self.obs[lane], saved["obs"][lane], equal_nan=True)
            if not same or self.rewards[lane] != saved["rewards"][lane]:
                task = self.envs[lane].unwrapped
                name = task.spec.id if task.spec else type(task).__name__
                raise ConfigError(
                    f"--resume: {name} does not reproduce an episode from its seed and actions, so this run "
                    "cannot go on exactly; seed the task's own randomness, or start anew with --overwrite"
                )


class VectorLanes:
    """The lanes of a batched environment, which steps all of its rows at once in NumPy; otherwise like `Lanes`.

    Args:
        env: with `single_observation_space`, `reset_rows(rows, seeds)`, `step(actions)` and `state_dict`; a row
            behaves as a single environment with that seed would, and does not begin anew by itself.
        next_seed: seeds of the episodes.
    """

    trial_steps = 0

    def __init__(self, env: Any, next_seed: Callable[[], int]) -> None:
        self.env, self.next_seed = env, next_seed
        lanes = env.num_envs
        self.obs = np.zeros((lanes, *env.single_observation_space.shape), np.float32)
        self.seeds = np.zeros(lanes, np.int64)
        self.rewards, self.scores = np.zeros((2, lanes))
        self.lengths, self.trials = np.zeros((2, lanes), np.int64)
        self._begin(np.arange(lanes))

    def __len__(self) -> int:
        return len(self.seeds)

    def _begin(self, rows: np.ndarray) -> None:
        self.seeds[rows] = [self.next_seed() for _ in rows]
        self.obs[rows] = self.env.reset_rows(rows, self.seeds[rows])
        self.rewards[rows], self.scores[rows], self.lengths[rows], self.trials[rows] = 0.0, 0.0, 0, 0

    def step(self, actions: np.ndarray) -> tuple[Steps, list[EpisodeEnd]]:
        obs = self.obs.copy()
        next_obs, reward, terminated, truncated, info = self.env.step(actions)
        new_trial = info.get("new_trial", np.zeros(len(obs), bool))
        if new_trial.any():
            self.trials += new_trial
            self.scores[new_trial] += info["performance"][new_trial]
        self.rewards += reward
        self.lengths += 1
        self.obs[:] = next_obs
        rows, ended = np.flatnonzero(terminated | truncated), []
        if len(rows):
            ended = [self._end(row) for row in rows.tolist()]
            self._begin(rows)
        return Steps(obs, actions, reward, terminated, truncated, next_obs, new_trial), ended

    def _end(self, row: int) -> EpisodeEnd:
        trials = int(self.trials[row])
        accuracy = float(self.scores[row]) / trials if trials else None
        return EpisodeEnd(float(self.rewards[row]), int(self.lengths[row]), trials, accuracy)

    _ARRAYS = ("obs", "seeds", "rewards", "scores", "lengths", "trials")

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), **{name: getattr(self, name).copy() for name in self._ARRAYS}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.env.load_state_dict(saved["env"])
        for name in self._ARRAYS:
            np.copyto(getattr(self, name), saved[name])


def each(actions: np.ndarray) -> list[Any]:
    """One action per lane: whole numbers, or vectors where actions are continuous."""
    return actions.tolist() if actions.ndim == 1 else list(actions)
