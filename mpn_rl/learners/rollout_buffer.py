"""The memory of an on-policy learner: the last `rollout_steps` steps of all lanes, used once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpn_rl.contracts import Batch, Played, State, StateDict, Steps, state_parts, to_tensor
from mpn_rl.storage.state_trees import Values, Whole, check, like_dict


class Rollout(NamedTuple):
    """T steps of N lanes, one lane per row. Unlike a replayed sequence, a row may hold several episodes.

    If an episode ends at t < T - 1, batch.obs[:, t+1] is the first observation of the next episode and
    batch.reset[:, t+1] is true; the last observation of the ended episode is not in the batch. batch.obs[:, T] always
    follows step T - 1.
    """

    batch: Batch
    ended: Tensor  # (N, T) bool: the episode ended with this step, terminated or truncated
    final_value: Tensor  # (N, T) V of the last observation where the episode was truncated, 0 elsewhere

    def to(self, device: torch.device | str) -> Rollout:
        """The rollout with every tensor on `device`."""
        return Rollout(self.batch.to(device), self.ended.to(device), self.final_value.to(device))

    def lanes(self, rows: Tensor) -> Rollout:
        """The rollout of some lanes alone. Args: rows: their numbers, (n,)."""
        batch = self.batch.each(lambda part: part[rows])._replace(places=self.batch.places[rows.cpu().numpy()])
        return Rollout(batch, self.ended[rows], self.final_value[rows])


class RolloutBuffer:
    """Collects a rollout. The core's state continues from one rollout to the next; gradients do not.

    Args:
        num_lanes, obs_dim: N and D.
        length: T, the steps of a rollout.
        state_shapes: the core's state tensors, each without the batch axis.
        reset_state_on_trial: as the option of that name.
        action_shape: of continuous actions; None: the actions are choices.

    The constructor allocates all of the memory; `nbytes` is its size.
    """

    def __init__(
        self,
        num_lanes: int,
        obs_dim: int,
        length: int,
        state_shapes: Sequence[tuple[int, ...]],
        reset_state_on_trial: bool = False,
        action_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.num_lanes, self.length, self.reset_state_on_trial = num_lanes, length, reset_state_on_trial
        self.obs = np.zeros((num_lanes, length + 1, obs_dim), np.float32)
        self.reset = np.zeros((num_lanes, length + 1), bool)
        kind = np.int64 if action_shape is None else np.float32
        self.action = np.zeros((num_lanes, length, *(action_shape or ())), kind)
        self.reward, self.terminated, self.final_value = np.zeros((3, num_lanes, length), np.float32)
        self.ended = np.zeros((num_lanes, length), bool)
        self.fresh = np.ones(num_lanes, bool)  # the state is reset before the next step
        self.state0 = [np.zeros((num_lanes, *shape), np.float32) for shape in state_shapes]
        self.taken = 0  # steps of the rollout so far

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(part.nbytes for part in self._arrays().values())

    def __len__(self) -> int:
        """Steps of the rollout so far."""
        return self.taken

    @property
    def full(self) -> bool:
        """Whether the rollout is complete."""
        return self.taken == self.length

    def add(self, steps: Steps, state: State, final_value: np.ndarray | None = None) -> None:
        """Store one step of every lane.

        Args:
            steps: one step of all lanes.
            state: the core's state before the step, one row per lane.
            final_value: V(steps.next_obs) where the episode was truncated, nan elsewhere, (N,). None: 0.

        Raises: ValueError if the rollout is complete and `take` has not been called.
        """
        if self.full:
            raise ValueError(f"the rollout of {self.length} steps is complete: take it first")
        t = self.taken
        if t == 0:
            for kept, part in zip(self.state0, state_parts(state), strict=True):
                kept[:] = part.detach().cpu().numpy()
        ended = steps.terminated | steps.truncated
        new_trial = steps.new_trial & self.reset_state_on_trial
        self.obs[:, t] = steps.obs
        self.obs[:, t + 1] = steps.next_obs  # the next step overwrites it, unless the rollout is complete
        self.reset[:, t] = self.fresh
        self.reset[:, t + 1] = new_trial & ~ended
        self.action[:, t] = steps.action
        self.reward[:, t] = steps.reward
        self.terminated[:, t] = steps.terminated
        self.ended[:, t] = ended
        self.final_value[:, t] = 0.0 if final_value is None else np.nan_to_num(final_value, nan=0.0)
        self.fresh = ended | new_trial
        self.taken += 1

    def end_episodes(self) -> None:
        """Forget the rollout that is not complete: the next step of every lane starts an episode."""
        self.taken, self.fresh[:] = 0, True

    def take(self) -> Rollout:
        """Copy the complete rollout and start the next one.

        Raises: ValueError if the rollout is not complete.
        """
        if not self.full:
            raise ValueError(f"the rollout has {self.taken} of {self.length} steps")
        batch = self.view()
        self.taken = 0
        return Rollout(batch, to_tensor(self.ended), to_tensor(self.final_value))

    def view(self) -> Batch:
        """A copy of the steps so far; directly after `take`, of the rollout that was taken."""
        steps = self.taken or self.length
        state0 = tuple(to_tensor(part) for part in self.state0)
        return Batch(
            obs=to_tensor(self.obs[:, : steps + 1]),
            reset=to_tensor(self.reset[:, : steps + 1]),
            action=to_tensor(self.action[:, :steps]),
            reward=to_tensor(self.reward[:, :steps]),
            terminated=to_tensor(self.terminated[:, :steps]),
            mask=torch.ones(self.num_lanes, steps),
            state0=state0 if len(state0) > 1 else state0[0],
            burn_in=0,
            weight=torch.ones(self.num_lanes),
            places=np.arange(self.num_lanes),
        )

    # --- saving -----------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, np.ndarray]:
        names = ("obs", "reset", "action", "reward", "terminated", "ended", "final_value", "fresh")
        states = {f"state0_{i}": part for i, part in enumerate(self.state0)}
        return {**{name: getattr(self, name) for name in names}, **states}

    def state_dict(self) -> StateDict:
        """Everything that a resumed run needs: the buffer's own arrays, not copies, and a counter."""
        return {"arrays": self._arrays(), "taken": self.taken}

    def load_state_dict(self, saved: StateDict) -> None:
        """Restore what `state_dict` returned. Raises: StateError where it is not a state of such a buffer."""
        check(saved, like_dict(self.state_dict(), taken=Whole(0, self.length)), "replay")
        for name, array in self._arrays().items():
            np.copyto(array, saved["arrays"][name])
        self.taken = saved["taken"]

    def check_played(self, played: Played) -> None:
        """Raise a StateError where the loaded steps are not those of the run."""
        check(self.taken, Whole(0, min(played.steps, self.length - 1)), "replay.taken")
        actions = Values(self.action.dtype, self.action.shape, played.low, played.high)
        check(self.action, actions, "replay.arrays.action")
