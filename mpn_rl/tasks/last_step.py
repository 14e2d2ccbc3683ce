"""The last reward and the last action as part of the observation, for any task, alone or batched.

    x'_t = [x_t, r_{t-1}, one_hot(a_{t-1})]

With them, an agent with memory can learn within an episode from what its actions earned, while its weights stay fixed
(Duan et al. 2016, arXiv 1611.02779; Wang et al. 2018, Nature Neuroscience 21:860).
"""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

from mpn_rl.contracts import Action, Info, SequenceArrays, Task, VectorEnv
from mpn_rl.tasks.task_wrapper import TaskWrapper


class LastStep:
    """Which parts of the last step to append, and their values.

    The reward is not scaled. A choice is one-hot, an action vector is appended as it is. At an episode's start all
    entries are zero.

    Args:
        action_space: Discrete from 0, or a Box of shape (A,).
        reward: append the reward.
        action: append the action.
    Attributes:
        size: number of entries, K.
    """

    def __init__(self, action_space: gymnasium.Space, reward: bool, action: bool) -> None:
        self.reward, self.action = reward, action
        self.one_hot: np.ndarray | None = None  # (actions, actions); None where actions are vectors
        if isinstance(action_space, spaces.Discrete):
            self.one_hot = np.eye(int(action_space.n), dtype=np.float32)
        self.action_size = int(action_space.shape[0]) if self.one_hot is None else len(self.one_hot)
        self.size = reward + action * self.action_size

    def first(self, obs: np.ndarray) -> np.ndarray:
        """Observations (..., D) of episodes that start, with zeros appended, (..., D + K)."""
        return np.concatenate([obs, np.zeros((*obs.shape[:-1], self.size), np.float32)], axis=-1)

    def next(self, obs: np.ndarray, reward: float | np.ndarray, action: Action | np.ndarray) -> np.ndarray:
        """Observations (..., D) after a step, with its reward (...) and its action appended, (..., D + K)."""
        parts = [obs]
        if self.reward:
            parts.append(np.asarray(reward, np.float32)[..., None])
        if self.action:
            parts.append(np.asarray(action, np.float32) if self.one_hot is None else self.one_hot[action])
        return np.concatenate(parts, axis=-1)


class ObserveLastStep(TaskWrapper):
    """A task whose observation also has the last reward, the last action, or both; all else is the task's own.

    Args:
        task: the task.
        reward: append the reward.
        action: append the action.
    """

    def __init__(self, task: Task, reward: bool, action: bool) -> None:
        super().__init__(task)
        self.last = LastStep(task.action_space, reward, action)
        self.obs_dim = task.obs_dim + self.last.size
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.obs_dim,), np.float32)

    @property
    def channel_names(self) -> list[str]:
        """A name for each entry of the observation."""
        names = list(self.task.channel_names or [f"obs_{index}" for index in range(self.task.obs_dim)])
        if self.last.reward:
            names.append("last reward")
        if self.last.action:
            first = int(self.last.one_hot is None)  # entries of vectors count from 1, choices from 0
            numbers = [str(first + index) for index in range(self.last.action_size)]
            names += [f"last action {name}" for name in self.action_names or numbers]
        return names

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        obs, info = self.task.reset(seed=seed)
        return self.last.first(obs), info

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        obs, reward, terminated, truncated, info = self.task.step(action)
        return self.last.next(obs, reward, action), reward, terminated, truncated, info

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """None: what the last step was depends on the actions."""
        return None


class ObserveLastStepVec:
    """`ObserveLastStep` for a vector environment.

    Args:
        env: N rows.
        action_space: of one row.
        reward: append the reward.
        action: append the action.
    """

    def __init__(self, env: VectorEnv, action_space: gymnasium.Space, reward: bool, action: bool) -> None:
        self.env, self.num_envs = env, env.num_envs
        self.last = LastStep(action_space, reward, action)

    def reset_rows(self, rows: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Start an episode in each of `rows` (n,), with the seeds (n,). Returns: their observations, (n, D)."""
        return self.last.first(self.env.reset_rows(rows, seeds))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Returns: observations (N, D); rewards, terminated, truncated and each entry of the info, (N,)."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        return self.last.next(obs, reward, actions), reward, terminated, truncated, info

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state of the task; what is appended is a part of the lanes' current observation."""
        return self.env.state_dict()

    def load_state_dict(self, saved: dict[str, np.ndarray]) -> None:
        self.env.load_state_dict(saved)
