"""Replay buffers for recurrent learners: steps in per-lane rings, and segments that point into them.

A *segment* is one row of a training batch: a single transition, a fixed-length sequence or a whole trial.
Steps are stored once, also where segments overlap. A segment consists of its lane, its first step and
the core's state before that step. Sequences with a stored state and a burn-in follow R2D2 (Kapturowski et
al. 2019); a sequence never crosses an episode's end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from mpn_rl.contracts import Batch, Played, State, StateDict, Steps, state_parts, to_tensor
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import Anything, Real, Schema, StateError, Values, Whole, check, like, like_dict

Index: TypeAlias = np.ndarray | slice | tuple[slice, slice]


class ReplayBuffer:
    """Rings of steps and of segments; subclasses decide which segments there are.

    Args:
        num_lanes, obs_dim: N and D.
        lane_steps: steps kept per lane.
        max_segments: segments kept; the oldest is dropped first.
        segment_steps: T, the longest segment.
        max_states: stored states kept, for the segments that do not start from the initial state.
        open_states: states per lane of segments that have started and not ended.
        state_shapes: the core's state tensors, each without the batch axis.
        burn_in, replay_state, reset_state_on_trial: as the options of those names.
        priority_exponent, importance_exponent: a and b of prioritised sampling (Schaul et al. 2016),

                P(i) = p_i^a / sum_k p_k^a        weight_i = (N P(i))^-b / the largest of the batch

            where `update_priorities` sets p_i; for a new segment p_i is the largest so far. a = None: uniform sampling.
        action_shape, action_dtype: of one action; () and int64 unless actions are continuous.

    The constructor allocates all of the memory; `nbytes` is its size.
    """

    def __init__(
        self,
        num_lanes: int,
        obs_dim: int,
        *,
        lane_steps: int,
        max_segments: int,
        segment_steps: int,
        max_states: int,
        open_states: int,
        state_shapes: Sequence[tuple[int, ...]],
        burn_in: int = 0,
        replay_state: str = "stored",
        reset_state_on_trial: bool = False,
        priority_exponent: float | None = None,
        importance_exponent: float = 0.4,
        action_shape: tuple[int, ...] = (),
        action_dtype: type = np.int64,
    ) -> None:
        self.num_lanes, self.segment_steps, self.max_segments = num_lanes, segment_steps, max_segments
        self.burn_in, self.replay_state = burn_in, replay_state
        self.reset_state_on_trial = reset_state_on_trial
        self.priority_exponent, self.importance_exponent = priority_exponent, importance_exponent
        self.lane_steps = lane_steps
        # The first step of a segment may be up to segment_steps older than its last one.
        self.ring = lane_steps + segment_steps
        shape = (num_lanes, self.ring)
        self.obs = np.zeros((*shape, obs_dim), np.float32)
        self.next_obs = np.zeros((*shape, obs_dim), np.float32)
        self.action: np.ndarray = np.zeros((*shape, *action_shape), action_dtype)
        self.reward = np.zeros(shape, np.float32)
        self.terminated = np.zeros(shape, np.float32)
        self.reset_after = np.zeros(shape, bool)
        rows, self.open_states = (0, 0) if replay_state == "zero" else (max_states, open_states)
        self.states = [np.zeros((rows, *part), np.float32) for part in state_shapes]
        self.open = [np.zeros((num_lanes, self.open_states, *part), np.float32) for part in state_shapes]
        self.state_shapes = [tuple(part) for part in state_shapes]
        # lane, first step, padding, steps, initial, row of the state
        self.segments = np.zeros((max_segments, 6), np.int64)
        self.priorities = np.zeros(max_segments)
        self.head = 0  # steps that every lane has taken
        self.states_written = 0
        self.first, self.last = 0, 0  # segments first..last-1 are kept, modulo max_segments
        self.max_priority = 1.0

    @property
    def nbytes(self) -> int:
        """Size of the buffer in bytes, which does not change."""
        return sum(part.nbytes for part in self._arrays().values())

    def __len__(self) -> int:
        """Segments that can be sampled."""
        return self.last - self.first

    # --- writing ----------------------------------------------------------------------------------------

    def add(self, steps: Steps, state: State) -> None:
        """Store one step of every lane.

        Args:
            steps: one step of all lanes.
            state: the core's state before the step, one row per lane.
        """
        slot = self.head % self.ring
        self.obs[:, slot] = steps.obs
        self.next_obs[:, slot] = steps.next_obs
        self.action[:, slot] = steps.action
        self.reward[:, slot] = steps.reward
        self.terminated[:, slot] = steps.terminated
        ended = steps.terminated | steps.truncated
        self.reset_after[:, slot] = steps.new_trial & ~ended if self.reset_state_on_trial else False
        if self.open_states:
            lanes, place = self._starts()
            if len(lanes):
                for kept, part in zip(self.open, state_parts(state), strict=True):
                    kept[lanes, place] = part[torch.from_numpy(lanes)].detach().cpu().numpy()
        self.head += 1
        self._emit(ended, steps.new_trial)
        oldest = self.head - self.lane_steps
        while self.first < self.last and self.segments[self.first % self.max_segments, 1] < oldest:
            self.first += 1

    def end_episodes(self) -> None:
        """Forget the segments that are not complete: the next step of every lane starts an episode."""
        raise NotImplementedError

    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        """The lanes in which the next step starts a segment that needs its state, and their places in `open`."""
        raise NotImplementedError

    def _emit(self, ended: np.ndarray, new_trial: np.ndarray) -> None:
        """Append the segments that end with the step just stored."""
        raise NotImplementedError

    def _append(self, lane: int, start: int, padding: int, steps: int, initial: bool, place: int) -> None:
        if len(self) == self.max_segments:
            self.first += 1
        slot, row = self.last % self.max_segments, 0
        if not initial:
            row = self.states_written % len(self.states[0])
            self.states_written += 1
            for kept, open_state in zip(self.states, self.open, strict=True):
                kept[row] = open_state[lane, place]
        self.segments[slot] = lane, start, padding, steps, initial, row
        self.priorities[slot] = self.max_priority
        self.last += 1

    # --- reading ----------------------------------------------------------------------------------------

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """A batch of segments, drawn with replacement.

        Args:
            batch_size: B.
            rng: draws the segments.

        Raises: ValueError if the buffer has no segment yet.
        """
        if not len(self):
            raise ValueError("the replay buffer holds no segment yet")
        places, weight = self._draw(batch_size, rng)
        lane, start, padding, steps, initial, row = self.segments[places].T
        length = self._batch_steps(padding + steps)
        rows, lanes = np.arange(batch_size), lane[:, None]
        offset = np.arange(length)[None] - padding[:, None]  # (B, T): the index of the step in its segment
        recorded = (offset >= 0) & (offset < steps[:, None])
        slots = (start[:, None] + np.clip(offset, 0, steps[:, None] - 1)) % self.ring

        obs = np.empty((batch_size, length + 1, self.obs.shape[-1]), np.float32)
        obs[:, 1:] = self.next_obs[lanes, slots]
        obs[:, 0] = 0.0
        obs[rows, padding] = self.obs[lane, start % self.ring]
        reset = np.zeros((batch_size, length + 1), bool)
        reset[:, 1:] = self.reset_after[lanes, slots] & recorded
        reset[rows, padding] = initial
        mask = recorded & (np.arange(length)[None] >= self.burn_in)
        return Batch(
            obs=to_tensor(obs),
            reset=torch.from_numpy(reset),
            action=torch.from_numpy(self.action[lanes, slots]),
            reward=torch.from_numpy(np.where(recorded, self.reward[lanes, slots], 0.0).astype(np.float32)),
            terminated=torch.from_numpy(np.where(recorded, self.terminated[lanes, slots], 0.0).astype(np.float32)),
            mask=torch.from_numpy(mask.astype(np.float32)),
            state0=self._states_before(row, initial),
            burn_in=self.burn_in,
            weight=torch.from_numpy(weight),
            places=places,
        )

    def _batch_steps(self, used: np.ndarray) -> int:
        """T of a batch, given the steps of its rows. It is fixed, so that shapes repeat."""
        return self.segment_steps

    def _states_before(self, row: np.ndarray, initial: np.ndarray) -> State:
        parts = []
        for kept, shape in zip(self.states, self.state_shapes, strict=True):
            part = kept[row] if len(kept) else np.zeros((len(row), *shape), np.float32)
            part[initial.astype(bool)] = 0.0  # `reset` sets these rows to the initial state
            parts.append(to_tensor(part))
        return tuple(parts) if len(parts) > 1 else parts[0]

    def _draw(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.priority_exponent is None:
            drawn = rng.integers(self.first, self.last, batch_size)
            return drawn % self.max_segments, np.ones(batch_size, np.float32)
        kept = np.arange(self.first, self.last) % self.max_segments
        cumulative = np.cumsum(self.priorities[kept] ** self.priority_exponent)
        picks = np.searchsorted(cumulative, rng.random(batch_size) * cumulative[-1], side="right")
        places = kept[np.minimum(picks, len(kept) - 1)]
        share = self.priorities[places] ** self.priority_exponent / cumulative[-1]
        weight = (len(kept) * share) ** -self.importance_exponent
        return places, (weight / weight.max()).astype(np.float32)

    def update_priorities(self, places: np.ndarray, priorities: np.ndarray) -> None:
        """Set the priorities (B,) of the segments at `Batch.places` (B,); see `returns.sequence_priorities`."""
        self.priorities[places] = priorities + 1e-6
        self.max_priority = max(self.max_priority, float(priorities.max()))

    # --- saving -----------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, np.ndarray]:
        names = ("obs", "next_obs", "action", "reward", "terminated", "reset_after", "segments", "priorities")
        states = {f"states_{i}": part for i, part in enumerate(self.states)}
        opened = {f"begun_{i}": part for i, part in enumerate(self.open)}
        return {**{name: getattr(self, name) for name in names}, **states, **opened}

    _COUNTERS = ("head", "states_written", "first", "last", "max_priority")
    _BY_LANE: tuple[str, ...] = ()  # a subclass's own arrays

    def _filled(self) -> dict[str, Index]:
        """The index of the part of every array that is in use; the rest is never read."""
        parts: dict[str, Index] = dict.fromkeys(self._arrays(), np.s_[:, : min(self.head, self.ring)])
        parts["segments"] = parts["priorities"] = np.arange(self.first, self.last) % self.max_segments
        for i, (kept, opened) in enumerate(zip(self.states, self.open, strict=True)):
            parts |= {f"states_{i}": np.s_[: min(self.states_written, len(kept))], f"begun_{i}": np.s_[: len(opened)]}
        return parts

    def state_dict(self) -> StateDict:
        """Everything that a resumed run needs: the used parts of the arrays, mostly as views, and the counters."""
        counters = {name: getattr(self, name) for name in self._COUNTERS}
        filled = self._filled()
        arrays = {name: array[filled[name]] for name, array in self._arrays().items()}
        return {"arrays": arrays, "counters": counters, **{name: getattr(self, name) for name in self._BY_LANE}}

    def load_state_dict(self, saved: StateDict) -> None:
        """Restore what `state_dict` returned. Raises: StateError where it is not a state of such a buffer."""
        counters: dict[str, Schema] = {name: Whole() for name in self._COUNTERS}
        counters["max_priority"] = Real(0.0)
        check(saved, like_dict(self.state_dict(), arrays=Anything(), counters=counters), "replay")
        first, last = saved["counters"]["first"], saved["counters"]["last"]
        if not first <= last <= first + self.max_segments:
            raise StateError(f"replay.counters cannot keep the segments {first} to {last}")
        for name in self._COUNTERS:
            setattr(self, name, saved["counters"][name])
        filled, arrays = self._filled(), self._arrays()
        schema: dict[str, Schema] = {name: like(array[filled[name]]) for name, array in arrays.items()}
        schema["terminated"] = Values(self.terminated.dtype, arrays["terminated"][filled["terminated"]].shape, 0.0, 1.0)
        schema["priorities"] = Values(self.priorities.dtype, (len(self),), 1e-300)
        check(saved["arrays"], schema, "replay.arrays")
        self._check_segments(saved["arrays"]["segments"])
        for name, array in arrays.items():
            array[filled[name]] = saved["arrays"][name]
        for name in self._BY_LANE:
            np.copyto(getattr(self, name), saved[name])

    def _check_segments(self, segments: np.ndarray) -> None:
        """Raise a StateError for a segment outside the rings."""
        lane, start, padding, steps, initial, row = segments.T
        rows = min(self.states_written, len(self.states[0]) if self.states else 0)
        rules = {
            "lane": (lane >= 0) & (lane < self.num_lanes),
            "first step": (start >= max(0, self.head - self.ring)) & (start < self.head),
            "padding": (padding >= 0) & (padding <= self.burn_in),
            "number of steps": (steps >= 1) & (steps <= self.segment_steps - padding) & (steps <= self.head - start),
            "state": (row >= 0) & (row < max(rows, 1)) & ((initial == 1) | ((initial == 0) & (rows > 0))),
        }
        for what, holds in rules.items():
            if not holds.all():
                raise StateError(f"replay.arrays.segments has an impossible {what}")

    def check_played(self, played: Played) -> None:
        """Raise a StateError where the loaded steps are not those of the run."""
        if self.head != played.steps or self.last > self.head * self.num_lanes or self.states_written > self.last:
            raise StateError(f"replay.counters are not those of {played.steps:,} steps of {self.num_lanes} lanes")
        actions = Values(self.action.dtype, (None,) * self.action.ndim, played.low, played.high)
        check(self.action[:, : min(self.head, self.ring)], actions, "replay.arrays.action")


class SequenceReplayBuffer(ReplayBuffer):
    """Sequences of `burn_in` + `length` steps whose learned parts start every `stride` steps of an episode.

    An episode's first sequence has no steps to burn in. It is padded in front and starts from the initial state, so
    that the first steps are learned and a trained M(0) gets its gradient. The last sequence of an episode may be
    shorter.

    Transition replay is the case burn-in 0, length 1 and stride 1. It stores the state before every transition, also
    before the first one of an episode. It is the plain baseline: eta and lambda affect a step only through the steps
    before it, and M(0) is part of the stored state, so eta, lambda and M(0) get no gradient.

    Args:
        capacity: steps kept over all lanes. The oldest steps are dropped num_lanes at a time, one of each lane.
        length, stride: learned steps per sequence, and from one's start to the next; stride <= length.
        options: those of `ReplayBuffer`.

    Raises: ConfigError if the capacity is less than one sequence per lane.
    """

    def __init__(self, num_lanes: int, obs_dim: int, *, capacity: int, length: int, stride: int, **options) -> None:
        burn_in = options.get("burn_in", 0)
        self.length, self.stride = length, stride
        lane_steps = math.ceil(capacity / num_lanes)
        if lane_steps < burn_in + length:
            raise ConfigError(
                f"--buffer-size must hold one sequence of {burn_in + length} steps (burn-in included) for each of "
                f"--num-envs {num_lanes} lanes, {num_lanes * (burn_in + length)} steps or more, got {capacity}"
            )
        super().__init__(
            num_lanes,
            obs_dim,
            lane_steps=lane_steps,
            max_segments=capacity,  # reached by episodes of one step, and by transitions
            segment_steps=burn_in + length,
            max_states=num_lanes * ((lane_steps + burn_in + length) // stride + 2),
            open_states=(burn_in + length) // stride + 2,
            **options,
        )
        self.t = np.zeros(num_lanes, np.int64)  # step within the episode

    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        learned = self.t + self.burn_in
        lanes = np.flatnonzero(((self.t > 0) | (self.segment_steps == 1)) & (learned % self.stride == 0))
        return lanes, learned[lanes] // self.stride % self.open_states

    def _emit(self, ended: np.ndarray, new_trial: np.ndarray) -> None:
        self.t += 1
        full = (self.t >= self.length) & ((self.t - self.length) % self.stride == 0)
        for lane in np.flatnonzero(full | ended):
            # The earliest sequence that reaches this step; it is shorter where the episode has ended.
            self._append_learned(lane, max(0, -(-(self.t[lane] - self.length) // self.stride)) * self.stride)
        self.t[ended] = 0

    def end_episodes(self) -> None:
        """Forget the sequences that are not complete: the next step of every lane starts an episode."""
        self.t[:] = 0

    def _append_learned(self, lane: int, learned: int) -> None:
        """Append the segment whose learned part starts at the episode's step `learned`."""
        origin = self.head - self.t[lane]  # the episode's first step
        start = max(0, learned - self.burn_in)
        padding = self.burn_in - (learned - start)
        steps = min(self.t[lane] - start, self.segment_steps - padding)
        # With --reset-state-on-trial, a trial's first state is an initial one as well.
        fresh = start == 0 or self.reset_after[lane, (origin + start - 1) % self.ring]
        initial = self.replay_state == "zero" or (fresh and self.segment_steps > 1)
        place = learned // self.stride % max(self.open_states, 1)
        self._append(lane, origin + start, padding, steps, initial, place)

    _BY_LANE = ("t",)

    def check_played(self, played: Played) -> None:
        """Raise a StateError where the loaded steps are not those of the run."""
        super().check_played(played)
        if not np.array_equal(self.t, played.episode_steps):
            raise StateError("replay.t are not the steps of the lanes' episodes")


class TrialReplayBuffer(ReplayBuffer):
    """Whole trials, or whole episodes of a task without trials.

    A trial starts from the stored state. It starts from the initial state with replay_state="zero", with
    `reset_state_on_trial`, and if it is the first of its episode. There is no burn-in: "burn-in" means "stored".

    Args:
        capacity: trials kept, over all lanes.
        max_steps: the longest trial.
        options: those of `ReplayBuffer`.

    Raises: ValueError, from `add`, for a trial longer than `max_steps`.
    """

    def __init__(self, num_lanes: int, obs_dim: int, *, capacity: int, max_steps: int, **options) -> None:
        options["burn_in"] = 0
        super().__init__(
            num_lanes,
            obs_dim,
            lane_steps=(math.ceil(capacity / num_lanes) + 1) * max_steps,
            max_segments=capacity,
            segment_steps=max_steps,
            max_states=capacity,
            open_states=1,
            **options,
        )
        self.t = np.zeros(num_lanes, np.int64)  # step within the trial
        self.opens_episode = np.ones(num_lanes, bool)

    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        lanes = np.flatnonzero((self.t == 0) & ~self.opens_episode)
        return lanes, np.zeros_like(lanes)

    def _emit(self, ended: np.ndarray, new_trial: np.ndarray) -> None:
        self.t += 1
        if self.t.max() > self.segment_steps:
            raise ValueError(f"a trial has more than max_steps = {self.segment_steps} steps")
        over = ended | new_trial
        for lane in np.flatnonzero(over):
            initial = self.opens_episode[lane] or self.reset_state_on_trial or self.replay_state == "zero"
            self._append(lane, self.head - self.t[lane], 0, self.t[lane], initial, 0)
        self.t[over] = 0
        self.opens_episode[over] = ended[over]

    def end_episodes(self) -> None:
        """Forget the trials that are not complete: the next step of every lane starts an episode."""
        self.t[:], self.opens_episode[:] = 0, True

    def _batch_steps(self, used: np.ndarray) -> int:
        """T of a batch: the steps of its longest trial."""
        return int(used.max())

    _BY_LANE = ("t", "opens_episode")

    def check_played(self, played: Played) -> None:
        """Raise a StateError where the loaded steps are not those of the run."""
        super().check_played(played)
        if ((self.t < 0) | (self.t > played.episode_steps)).any():
            raise StateError("replay.t exceeds the steps of the lanes' episodes")
