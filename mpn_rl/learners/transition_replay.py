"""Replay buffer of single transitions, fast enough for a memoryless learner that updates at every step.

A transition is one row of a float32 table, so a batch is one gather, and the batch's fields are views of its result.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mpn_rl.contracts import Batch, Played, State, StateDict, Steps
from mpn_rl.storage.state_trees import Anything, StateError, Values, check, like_dict


class TransitionReplay:
    """The last `capacity` transitions of N lanes, sampled uniformly. N-step returns are computed when sampling.

    Args:
        num_lanes, obs_dim, action_dim: N, D and A; actions are vectors.
        capacity: transitions kept; the oldest is dropped first.

    The constructor allocates the table; the operating system provides its pages as they are filled.
    """

    def __init__(self, num_lanes: int, obs_dim: int, action_dim: int, capacity: int) -> None:
        self.num_lanes, self.obs_dim, self.capacity = num_lanes, obs_dim, capacity
        ends = np.cumsum([obs_dim, obs_dim, action_dim, 1, 1, 1])
        self.both_obs = slice(0, int(ends[1]))  # obs and next_obs side by side
        self.next_obs, self.action = slice(int(ends[0]), int(ends[1])), slice(int(ends[1]), int(ends[2]))
        self.reward, self.terminated, self.ended = (int(end) for end in ends[2:5])
        # The next step of a lane lies N rows later, also where the ring wraps around.
        self.table = np.zeros((math.ceil(capacity / num_lanes) * num_lanes, int(ends[-1])), np.float32)
        self.first, self.last = 0, 0  # transitions first..last-1 are kept, modulo the table's rows

    @property
    def nbytes(self) -> int:
        """Size of the full memory in bytes."""
        return self.table.nbytes

    def __len__(self) -> int:
        """Transitions that can be sampled."""
        return self.last - self.first

    def add(self, steps: Steps, state: State | None = None) -> None:
        """Store one step of every lane. The state is ignored: these learners have none."""
        start = self.last % len(self.table)
        rows = self.table[start : start + self.num_lanes]
        rows[:, : self.obs_dim] = steps.obs
        rows[:, self.next_obs] = steps.next_obs
        rows[:, self.action] = steps.action
        rows[:, self.reward] = steps.reward
        rows[:, self.terminated] = steps.terminated
        rows[:, self.ended] = steps.terminated | steps.truncated
        self.last += self.num_lanes
        self.first = max(self.first, self.last - self.capacity)

    def end_episodes(self) -> None:
        """Mark the last step of every lane as the end of its episode, as after a time limit."""
        if self.last:
            self.table[(self.last - 1 - np.arange(self.num_lanes)) % len(self.table), self.ended] = 1.0

    def drop_oldest(self, count: int) -> None:
        """Drop the `count` oldest transitions."""
        self.first = min(self.first + count, self.last)

    def sample(
        self, batch_size: int, rng: np.random.Generator, n_step: int = 1, gamma: float = 1.0, oldest: float = 1.0
    ) -> Batch:
        """A batch with T = 1, drawn with replacement.

        Args:
            batch_size: B.
            rng: draws the transitions.
            n_step, gamma: a row covers up to n steps, fewer where the episode or the recording ends earlier:

                    reward = sum_{k<m} gamma^k r_{t+k+1}      obs[:, 1] = s_{t+m}
                    1 - terminated = gamma^(m-1) (1 - terminated_{t+m})

                so that reward + gamma (1 - terminated) V(obs[:, 1]) is the n-step target. With n > 1, `terminated`
                lies between 0 and 1: 1 minus the remaining discount of the next value.
            oldest: draw from this share of the buffer, the oldest transitions.

        Raises: ValueError if the buffer is empty.
        """
        if not len(self):
            raise ValueError("the replay buffer holds no transition yet")
        last = self.first + max(1, round(oldest * len(self)))
        drawn = rng.integers(self.first, last, batch_size)
        rows = self._gather(drawn)
        if n_step > 1:
            self._look_ahead(rows.numpy(), drawn, n_step, gamma)
        return self._batch(rows, drawn)

    def oldest(self, count: int) -> Batch:
        """The `count` oldest transitions, or all if there are fewer."""
        kept = np.arange(self.first, min(self.first + count, self.last))
        return self._batch(self._gather(kept), kept)

    def _gather(self, index: np.ndarray) -> Tensor:
        """Copies of rows, in memory that PyTorch allocates: see `contracts.to_tensor`."""
        return torch.from_numpy(self.table).index_select(0, torch.from_numpy(index % len(self.table)))

    def _look_ahead(self, rows: np.ndarray, drawn: np.ndarray, n_step: int, gamma: float) -> None:
        """Turn the transitions `rows` into n-step ones, in place."""
        going = np.arange(len(rows))  # rows whose sum continues
        place = drawn.copy()
        discount = np.ones(len(rows), np.float32)
        for _ in range(n_step - 1):
            place += self.num_lanes
            going = going[(rows[going, self.ended] == 0.0) & (place[going] < self.last)]
            later = self.table.take(place[going] % len(self.table), axis=0)
            discount[going] *= gamma
            rows[going, self.reward] += discount[going] * later[:, self.reward]
            rows[going, self.next_obs] = later[:, self.next_obs]
            rows[going, self.terminated :] = later[:, self.terminated :]
        rows[:, self.terminated] = 1.0 - discount * (1.0 - rows[:, self.terminated])

    def _batch(self, rows: Tensor, index: np.ndarray) -> Batch:
        return transition_batch(
            rows[:, self.both_obs].unflatten(1, (2, self.obs_dim)),
            rows[:, None, self.action],
            rows[:, self.reward : self.reward + 1],
            rows[:, self.terminated : self.terminated + 1],
            index,
        )

    # --- saving -----------------------------------------------------------------------------------------

    def state_dict(self) -> StateDict:
        """The part of the table that has been written (a view, not a copy), and the range of kept transitions."""
        return {"table": self.table[: min(self.last, len(self.table))], "first": self.first, "last": self.last}

    def load_state_dict(self, saved: StateDict) -> None:
        """Restore what `state_dict` returned. Raises: StateError where it is not a state of such a buffer."""
        check(saved, like_dict(self.state_dict(), table=Anything()), "replay")
        first, last = saved["first"], saved["last"]
        if not first <= last <= first + self.capacity:
            raise StateError(f"replay.first and replay.last cannot be {first} and {last}")
        rows = min(last, len(self.table))
        check(saved["table"], Values(self.table.dtype, (rows, self.table.shape[1])), "replay.table")
        check(saved["table"][:, self.terminated :], Values(self.table.dtype, (rows, 2), 0.0, 1.0), "replay.table")
        self.table[:rows] = saved["table"]
        self.first, self.last = first, last

    def check_played(self, played: Played) -> None:
        """Raise a StateError where the loaded steps are not those of the run."""
        if self.last != played.steps * self.num_lanes:
            raise StateError(f"replay.last is {self.last} after {played.steps:,} steps of {self.num_lanes} lanes")
        actions = self.table[: min(self.last, len(self.table)), self.action]
        check(actions, Values(actions.dtype, actions.shape, played.low, played.high), "replay.table")


def transition_batch(
    obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, places: np.ndarray | None = None
) -> Batch:
    """A batch of single transitions for a memoryless learner.

    Args:
        obs: s_t and s_{t+1}, (B, 2, D).
        action: a_t, (B, 1, A).
        reward: r_{t+1}, (B, 1).
        terminated: 1.0 where the task ended, (B, 1).
        places: the rows' places in the replay buffer, (B,).
    """
    rows = len(obs)
    return Batch(
        obs=obs,
        reset=torch.zeros(rows, 2, dtype=torch.bool),
        action=action,
        reward=reward,
        terminated=terminated,
        mask=torch.ones(rows, 1),
        state0=torch.zeros(rows, 0),
        burn_in=0,
        weight=torch.ones(rows),
        places=np.arange(rows) if places is None else places,
    )
