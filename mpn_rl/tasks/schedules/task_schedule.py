"""Which of several tasks, or which phase of a task that changes, each new episode of a training is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mpn_rl.contracts import StateDict
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import Anything, Values, check, check_bit_generator
from mpn_rl.tasks.schedules.changing_task import PHASES, seed_in_phase
from mpn_rl.tasks.schedules.task_set import seed_of

Kind = Literal["mixed", "blocked", "curriculum"]
LEAST = 0.05  # share of its weight that a task keeps in a curriculum, however well it is solved
NEW = 0.5  # weight of the last evaluation in the running success


class TaskSchedule:
    """Chooses the task of every new episode of a training.

        mixed:       P(task k) is proportional to w_k
        blocked:     task k is on in one block of the run, whose length is proportional to w_k
        curriculum:  P(task k) is proportional to w_k max(0.05, 1 - s_k)

    The success s_k is a running mean over evaluations of the normalised score, clipped to [0, 1]: 0 for random actions,
    1 for the best scripted policy. It starts at 0. A running episode is finished before a lane changes its task.

    Args:
        kind: mixed, blocked or curriculum.
        weights: w, one per task, above 0, (K,).
        seed: of the choices.
    Attributes:
        progress: share of the run that is done, which the training sets.
        success: s, (K,).
    """

    def __init__(self, kind: Kind, weights: Sequence[float], seed: int) -> None:
        self.kind = kind
        self.weights = np.array(weights) / np.sum(weights)
        self.rng = np.random.default_rng([seed, 3])
        self.progress = 0.0
        self.success: np.ndarray = np.zeros(len(weights))

    def probabilities(self) -> np.ndarray:
        """The probability of each task in the next episode, (K,)."""
        if self.kind == "mixed":
            return self.weights
        if self.kind == "blocked":
            ends = np.cumsum(self.weights)[:-1]
            return np.eye(len(self.weights))[np.searchsorted(ends, self.progress, side="right")]
        lack = self.weights * np.maximum(LEAST, 1.0 - self.success)
        return lack / lack.sum()

    def place(self, seeds: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """The seeds, each changed so that it plays the task that is chosen for it, (n,).

        Args: rng: of the choice; None: the schedule's own.
        """
        tasks = (rng or self.rng).choice(len(self.weights), size=len(seeds), p=self.probabilities())
        pairs = zip(seeds.tolist(), tasks.tolist(), strict=True)
        return np.array([seed_of(seed, task, len(self.weights)) for seed, task in pairs], np.int64)

    def update(self, scores: Sequence[float]) -> None:
        """Add an evaluation's normalised scores, one per task; nan leaves the task's success as it is."""
        new = np.clip(np.array(scores, float), 0.0, 1.0)
        self.success = np.where(np.isnan(new), self.success, (1.0 - NEW) * self.success + NEW * new)

    def state_dict(self) -> StateDict:
        """What a resumed run needs, besides its progress."""
        return {"rng": self.rng.bit_generator.state, "success": self.success.copy()}

    def check_state(self, saved: object) -> None:
        """Raise a StateError where `saved` is not a state of this schedule."""
        success = Values(self.success.dtype, self.success.shape, 0.0, 1.0)
        check(saved, {"rng": Anything(), "success": success}, "schedule")
        assert isinstance(saved, dict)
        check_bit_generator(saved["rng"], "schedule.rng")

    def load_state_dict(self, saved: StateDict) -> None:
        self.rng.bit_generator.state = saved["rng"]
        self.success = np.array(saved["success"])


class PhaseSchedule:
    """The phase of every new episode of a training whose task changes: step // `every`.

    A running episode is finished before a lane changes its phase.

    Args:
        every: steps of a phase.
        total_steps: of the run.
    Attributes:
        progress: share of the run that is done, which the training sets.
    Raises: ConfigError for more than PHASES phases.
    """

    def __init__(self, every: int, total_steps: int) -> None:
        self.every, self.total_steps, self.progress = every, total_steps, 0.0
        if (least := -(-total_steps // PHASES)) > every:
            raise ConfigError(
                f"--change-every must be at least {least} with --total-steps {total_steps}, which are then {PHASES} "
                f"phases, got {every}"
            )

    @property
    def phase(self) -> int:
        """The phase that is on, from 0."""
        return min(round(self.progress * self.total_steps), self.total_steps - 1) // self.every

    def place(self, seeds: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """The seeds, each changed to one of the phase that is on, (n,). Args: rng: of no use here."""
        return np.array([seed_in_phase(seed, self.phase) for seed in seeds.tolist()], np.int64)

    def state_dict(self) -> StateDict:
        """Nothing: the phase follows from the progress."""
        return {}

    def check_state(self, saved: object) -> None:
        """Raise a StateError where `saved` is not a state of this schedule."""
        check(saved, {}, "schedule")

    def load_state_dict(self, saved: StateDict) -> None:
        """Do nothing."""
