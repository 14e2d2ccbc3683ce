"""Base of tasks whose trials are laid out at their start: no action changes what the trial shows.

So a whole batch of sequences with their right actions is written at once, without playing the task
(`Task.sequences`). Played step by step, the same seeds give the same trials.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from mpn_rl.contracts import Conditions, SequenceArrays
from mpn_rl.storage.state_trees import StateError
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.vector_env import BatchedTask, SingleEnv


class Trials(NamedTuple):
    """n trials, each padded to the longest length L."""

    inputs: np.ndarray  # (n, L, D) what each step shows
    right: np.ndarray  # (n, L) int64, the right action; -1 where there is none
    period: np.ndarray  # (n, L) int64, index into the task's `periods`
    length: np.ndarray  # (n,) steps, 1 to L
    conditions: np.ndarray  # (n, C) the values of the task's `condition_names`


class TrialTask(BatchedTask):
    """N rows of a task with laid-out trials. A subclass implements `_draw`.

    The action at a step of the last period is the answer: `right_reward` or `wrong_reward`. At other steps whose right
    action is 0, any other action costs `early_reward`. A trial ends with its last step, whatever the actions are.

    Args:
        num_envs, channels, num_actions, episode_steps, max_episode_steps, bounds: as in `BatchedTask`.
        longest: L, the largest number of steps in a trial.
        rewards: of wrong answers, of right answers, and of actions before the answer is due.
    Attributes, each with N rows:
        inputs, right, period_index, length, condition: the current trial, as in `Trials`.
        trial: number of the current trial, from 0, (N,).
        place: step within the trial, from 0, (N,).
    """

    periods: ClassVar[np.ndarray]  # names; the last one is that of the answer
    condition_names: ClassVar[tuple[str, ...]]
    arrays = (
        *BatchedTask.arrays,
        *("inputs", "right", "period_index", "length", "condition", "trial", "place"),
    )

    def __init__(
        self,
        num_envs: int,
        channels: dict[str, int],
        num_actions: int,
        episode_steps: int,
        max_episode_steps: int | None,
        bounds: dict[str, tuple[float, float]],
        longest: int,
        rewards: tuple[float, float, float],
    ) -> None:
        super().__init__(num_envs, channels, num_actions, episode_steps, max_episode_steps, bounds)
        self.longest, rows = longest, self.num_envs
        self.rewards = np.array(rewards, np.float32)
        self.inputs = np.zeros((rows, longest, self.obs.shape[1]), np.float32)
        self.right, self.period_index = np.full((rows, longest), -1), np.zeros((rows, longest), np.int64)
        self.length, self.trial, self.place = np.ones(rows, np.int64), *np.zeros((2, rows), np.int64)
        self.condition = np.zeros((rows, len(self.condition_names)))

    def _draw(self, rows: np.ndarray) -> Trials:
        """Draw the next trials of `rows` (n,) with `random` alone, which depends on the row's seed and step."""
        raise NotImplementedError

    def _start(self, rows: np.ndarray) -> None:
        self.trial[rows] = 0
        self._start_trial(rows)
        self.obs[rows] = self.inputs[rows, 0]

    def _start_trial(self, rows: np.ndarray) -> None:
        trials = self._draw(rows)
        self.inputs[rows], self.right[rows], self.period_index[rows] = trials.inputs, trials.right, trials.period
        self.length[rows], self.condition[rows], self.place[rows] = trials.length, trials.conditions, 0

    @property
    def right_now(self) -> np.ndarray:
        """The right action of each row, -1 where there is none, (N,)."""
        return self.right[self.every, self.place]

    @property
    def asked(self) -> np.ndarray:
        """Whether the current step takes the answer, (N,) bool."""
        return self.period_index[self.every, self.place] == len(self.periods) - 1

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        right, asked = self.right_now, self.asked
        hit = asked & (actions == right)
        early = ~asked & (right == 0) & (actions != 0)
        ended = self.place == self.length - 1
        reward = np.where(asked, self.rewards[hit.astype(np.int64)], np.where(early, self.rewards[2], np.float32(0.0)))
        info = {
            "hit": hit,
            "new_trial": ended,
            "trial_number": self.trial.copy(),
            "gt": right,
            "period": self.periods[self.period_index[self.every, self.place]],
            "decision": asked,
            "performance": np.where(ended, hit, np.nan),
            "aborted": np.zeros(self.num_envs, bool),
        }
        self.place += 1
        rows = np.flatnonzero(ended)
        if len(rows):
            self.trial[rows] += 1
            self._start_trial(rows)
        self.obs[:] = self.inputs[self.every, self.place]
        return reward, info

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays:
        """Whole trials one after the other, as `contracts.Task.sequences`; row i is the run of seeds[i] without an end.

        Raises: ValueError where there is not one seed per row.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} rows need as many seeds, got {len(seeds)}")
        shape, place = (self.num_envs, steps), np.arange(self.longest)
        obs = np.zeros((*shape, self.obs.shape[1]), np.float32)
        new_trial, decision = np.zeros((2, *shape), bool)
        target = np.full(shape, -1)
        self.reset_rows(self.every, seeds)
        rows = self.every
        while len(rows):
            at = self.t[rows, None] + place
            row, column = np.nonzero((place < self.length[rows, None]) & (at < steps))
            filled = rows[row], at[row, column]
            source = rows[row], column
            obs[filled], target[filled] = self.inputs[source], self.right[source]
            decision[filled] = self.period_index[source] == len(self.periods) - 1
            new_trial[rows, self.t[rows]] = True
            self.t[rows] += self.length[rows]
            rows = rows[self.t[rows] < steps]
            if len(rows):
                self._start_trial(rows)
        return obs, new_trial, target, decision

    def ranges(self) -> dict[str, tuple[float, float]]:
        least, most = super().ranges()["obs"]
        places = {"place": (0, self.longest - 1), "length": (1, self.longest), "inputs": (least, most)}
        choices = {"right": (-1, len(self.one_hot) - 1), "period_index": (0, len(self.periods) - 1)}
        return {**super().ranges(), **places, **choices}

    def load_state_dict(self, saved: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned. Raises: StateError where it is not a state of these rows."""
        super().load_state_dict(saved)
        if (self.place >= self.length).any():
            raise StateError("lanes.env.place lies beyond the end of the trial")


# --- scripted policies ------------------------------------------------------------------------------------


def random_actions(env: TrialTask, rng: np.random.Generator) -> np.ndarray:
    """A uniformly random action at every step."""
    return rng.integers(len(env.one_hot), size=env.num_envs)


def ground_truth(env: TrialTask, rng: np.random.Generator) -> np.ndarray:
    """The right action, 0 where there is none."""
    return np.maximum(env.right_now, 0)


TrialTask.scripted = {"random": random_actions, "ground_truth": ground_truth}


# --- the single environment -------------------------------------------------------------------------------


class SingleTrialTask(SingleEnv):
    """One row of a `TrialTask` as a Gymnasium environment."""

    batch: ClassVar[type[TrialTask]] = TrialTask
    rows: TrialTask

    @property
    def conditions(self) -> Conditions:
        """The conditions of the current trial."""
        return dict(zip(self.rows.condition_names, self.rows.condition[0].tolist(), strict=True))

    def render(self) -> np.ndarray | None:
        """The inputs of the trial so far, one row per channel, the period, and the answers of the episode."""
        if self.render_mode is None:
            return None
        rows, page = self.rows, ve.Picture(560, 400)
        place, trial = int(rows.place[0]), int(rows.trial[0])
        period = str(rows.periods[rows.period_index[0, place]])
        page.text(16, 22, f"t = {rows.t[0]} of {rows.episode_steps}     trial {trial + 1}     {period}")
        shown, channels = rows.inputs[0, : place + 1], rows.inputs.shape[2]
        width, height = min(24.0, 528 / rows.longest), min(24.0, 280 / channels)
        largest = max(float(np.abs(rows.inputs[0]).max()), 1e-6)
        for step, values in enumerate(shown):
            for channel, value in enumerate(values.tolist()):
                left, top, side = 16 + step * width, 48 + channel * height, height * abs(value) / largest
                page.box(left, top, width - 1, height - 1, ve.PALE)
                if side > 1.0:
                    colour = ve.BLUE if value > 0 else ve.ORANGE
                    page.box(left, top + (height - side) / 2, width - 1, side, colour)
        answers = [info for info in self.history if info["new_trial"]]
        page.text(16, 362, f"{sum(info['hit'] for info in answers)} of {len(answers)}")
        for number, info in enumerate(answers):
            side = min(18.0, 448 / len(answers))
            page.box(96 + number * side, 354, side - 1, 16, ve.BLUE if info["hit"] else ve.ORANGE)
        return page.pixels()
