"""Sequences of a task with their right actions, drawn in batches for supervised learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from mpn_rl.contracts import Played, SequenceArrays, Sequences, State, StateDict, Steps, Task, to_tensor
from mpn_rl.storage.state_trees import check, like_dict
from mpn_rl.tasks.lanes import SEED_RANGES
from mpn_rl.tasks.schedules.task_set import TaskSet
from mpn_rl.tasks.vector_env import BatchedTask


class TaskSequences:
    """Draws new sequences of a task; each is a function of a seed, so a batch is a function of the generator's state.

    A task that lays out its trials (`Task.sequences`) is not played: the sequence is one whole trial after
    the other, whatever the agent would do. Any other task is played by its ground truth where it has this policy, else
    by random actions, and a sequence continues with the next episode where one ends.

    Args:
        env: the task.
        make_batch: the task as a vector environment of so many rows; returns None where there is none.
        length: T, steps of a sequence.
        reset_state_on_trial: whether the state is reset at each trial, as well as at each episode.
        place: changes the drawn seeds (n,) with a generator, as `TaskSchedule.place` does; None: no change.
    """

    def __init__(
        self,
        env: Task,
        make_batch: Callable[[int], BatchedTask | None],
        length: int,
        reset_state_on_trial: bool,
        place: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        self.env, self.make_batch, self.length = env, make_batch, length
        self.reset_state_on_trial, self.place = reset_state_on_trial, place
        self.batch: BatchedTask | None = None

    def sample(self, batch_size: int, rng: np.random.Generator) -> Sequences:
        """Draw `batch_size` new sequences."""
        seeds = rng.integers(*SEED_RANGES["train"], batch_size)
        if self.place is not None:
            seeds = self.place(seeds, rng)
        source = self._batch(batch_size) or self.env
        if isinstance(source, TaskSet):
            arrays, started = self._of_tasks(source, seeds)
        else:
            arrays, started = self._draw(source, seeds)
        obs, new_trial, target, decision = arrays
        started[:, 0] = True
        reset = started | new_trial if self.reset_state_on_trial else started
        return Sequences(to_tensor(obs), to_tensor(reset), to_tensor(target), to_tensor(decision))

    def _draw(self, source: Task | BatchedTask, seeds: np.ndarray) -> tuple[SequenceArrays, np.ndarray]:
        """The sequences of these seeds, and where episodes start, (B, T)."""
        arrays = source.sequences(seeds, self.length)
        if arrays is not None:
            return arrays, np.zeros((len(seeds), self.length), bool)
        if isinstance(source, BatchedTask):
            return play_rows(source, seeds, self.length)
        rows = [play_task(source, int(seed), self.length) for seed in seeds]
        obs, new_trial, target, decision, started = (
            np.stack(part) for part in zip(*((*row.arrays, row.started) for row in rows), strict=True)
        )
        return (obs, new_trial, target, decision), started

    def _of_tasks(self, tasks: TaskSet, seeds: np.ndarray) -> tuple[SequenceArrays, np.ndarray]:
        """`_draw` where each seed plays one of several tasks: some lay out their trials, others are played."""
        task = np.array([tasks.task_of(seed) for seed in seeds.tolist()])
        rows = [np.flatnonzero(task == index) for index in np.unique(task)]
        drawn = [self._draw(tasks.member(int(task[these[0]])), seeds[these]) for these in rows]
        order = np.argsort(np.concatenate(rows))
        obs, new_trial, target, decision, started = (
            np.concatenate(parts)[order] for parts in zip(*((*arrays, start) for arrays, start in drawn), strict=True)
        )
        return (obs, new_trial, target, decision), started

    def _batch(self, rows: int) -> BatchedTask | None:
        if self.batch is None or self.batch.num_envs != rows:
            self.batch = self.make_batch(rows)
        return self.batch

    # --- as a memory that stores nothing ------------------------------------------------------------------

    nbytes = 0

    def __len__(self) -> int:
        """Entries that are stored: none."""
        return 0

    def add(self, steps: Steps, state: State) -> None:
        """Do nothing: nothing is learned from the lanes."""

    def end_episodes(self) -> None:
        """Do nothing: a sequence ends with the update that it was drawn for."""

    def state_dict(self) -> StateDict:
        """Nothing: the generator of `sample` decides what is drawn."""
        return {}

    def load_state_dict(self, saved: StateDict) -> None:
        """Raise a StateError where `saved` is not empty."""
        check(saved, like_dict({}), "replay")

    def check_played(self, played: Played) -> None:
        """Do nothing: there are no steps to check."""


class PlayedSequence(NamedTuple):
    """One sequence that was played."""

    arrays: SequenceArrays  # without the batch axis
    started: np.ndarray  # (T,) bool: an episode starts


def play_task(env: Task, seed: int, steps: int) -> PlayedSequence:
    """Play a task for so many steps by its ground truth, or by random actions where it has no such policy.

    The right action of a step is its info's `gt`. Where actions are vectors, it is the policy's own action, and where
    there is no such policy, there is none.
    """
    rng = np.random.default_rng(seed)
    policy = env.scripted.get("ground_truth", env.scripted["random"])
    vector = isinstance(env.action_space, spaces.Box)
    unknown = np.full(env.action_space.shape, np.nan, np.float32) if isinstance(env.action_space, spaces.Box) else None
    obs = np.zeros((steps, env.obs_dim), np.float32)
    new_trial, decision, started = np.zeros((3, steps), bool)
    targets: list[object] = []
    now, _ = env.reset(seed=seed)
    new_trial[0] = started[0] = True
    for t in range(steps):
        obs[t] = now
        action = policy(env, rng)
        now, _, terminated, truncated, info = env.step(action)
        if vector:
            targets.append(action if "ground_truth" in env.scripted else unknown)
        else:
            right = info.get("gt", -1)
            targets.append(int(right) if isinstance(right, int | np.integer) else -1)
        decision[t] = bool(info.get("decision", False))
        over = terminated or truncated
        if over:
            now, _ = env.reset(seed=int(rng.integers(*SEED_RANGES["train"])))
        if t + 1 < steps:
            started[t + 1], new_trial[t + 1] = over, over or bool(info.get("new_trial", False))
    target = np.array(targets, np.float32 if vector else np.int64)
    return PlayedSequence((obs, new_trial, target, decision), started)


def play_rows(env: BatchedTask, seeds: np.ndarray, steps: int) -> tuple[SequenceArrays, np.ndarray]:
    """`play_task` for every row of a vector environment, by random actions.

    Returns: the arrays, and where episodes start, (B, T).
    """
    rng, shape = np.random.default_rng(seeds.tolist()), (env.num_envs, steps)
    now = env.reset_rows(np.arange(env.num_envs), seeds)
    obs = np.zeros((*shape, now.shape[1]), np.float32)
    new_trial, decision, started = np.zeros((3, *shape), bool)
    target = np.full(shape, -1)
    new_trial[:, 0] = started[:, 0] = True
    actions = rng.integers(env.single_action_space.n, size=shape)
    for t in range(steps):
        obs[:, t] = now
        now, _, terminated, truncated, info = env.step(actions[:, t])
        target[:, t] = info.get("gt", -1)
        decision[:, t] = info.get("decision", False)
        over = terminated | truncated
        if t + 1 < steps:
            started[:, t + 1], new_trial[:, t + 1] = over, over | info.get("new_trial", False)
        rows = np.flatnonzero(over)
        if len(rows):
            now[rows] = env.reset_rows(rows, rng.integers(*SEED_RANGES["train"], len(rows)))
    return (obs, new_trial, target, decision), started
