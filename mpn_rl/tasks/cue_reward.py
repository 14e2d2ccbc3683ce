"""CueReward-v0: learn within an episode which of several random patterns is the target.

The cue-reward association of Miconi et al. (ICLR 2019, arXiv 2002.10585). The observation is that of their public code,
with 27 entries; `clock=False, bias=False, unused=False` gives the 24 entries of the paper.
"""

from __future__ import annotations

from math import comb

import gymnasium
import numpy as np

from mpn_rl.contracts import Conditions, Info
from mpn_rl.storage.state_trees import StateError
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.vector_env import BatchedTask, SingleEnv, check

NO, YES = 0, 1
PERIODS = np.array(["feedback", "blank", "cues", "go"])


class CueRewardVec(BatchedTask):
    """N episodes of the task that step together; `CueReward` describes it and its arguments.

    Attributes, each with N rows:
        patterns: the pattern of each of the K cues, then zeros for a blank and the Go, (N, K + 2, bits) float32.
        target: number of the target cue, (N,).
        trial: number of the current trial, from 0, (N,).
        place: step within the trial, from 0, (N,).
        schedule: what each step of the trial shows, as an index into `patterns`, (N, longest_trial).
        shown: whether the target is among the trial's cues, (N,) bool.
        cues_in_trial: (N, K) bool.
        possible: cues that can still be the target, given all rewards so far, (N, K) bool.
    """

    arrays = (
        *BatchedTask.arrays,
        *("patterns", "target", "trial", "place", "schedule", "shown", "cues_in_trial", "possible"),
    )

    def __init__(
        self,
        num_envs: int,
        *,
        cue_bits: int = 20,
        num_cues: int = 4,
        cues_per_trial: int = 2,
        target_probability: float = 0.5,
        shortest_trial: int = 5,
        longest_trial: int = 8,
        episode_steps: int = 120,
        right_reward: float = 1.0,
        wrong_reward: float = -1.0,
        fixed_cues: bool = False,
        unused: bool = True,
        bias: bool = True,
        clock: bool = True,
        previous_reward: bool = True,
        previous_action: bool = True,
        max_episode_steps: int | None = None,
    ) -> None:
        self.bits = check("cue_bits", cue_bits, int, 1, 32)
        self.shown_cues = check("cues_per_trial", cues_per_trial, int, 1, 63)
        self.num_cues = check("num_cues", num_cues, int, self.shown_cues + 1, 64)
        if self.num_cues > 2**self.bits:
            raise ValueError(f"cue_bits must allow num_cues = {num_cues} different patterns, got {cue_bits}")
        self.target_probability = check("target_probability", target_probability, float, 0, 1)
        self.shortest = check("shortest_trial", shortest_trial, int, self.shown_cues + 3, 1000)
        self.longest = check("longest_trial", longest_trial, int, self.shortest, 1000)
        self.rewards = np.array(
            [check("wrong_reward", wrong_reward, float), check("right_reward", right_reward, float)], np.float32
        )
        self.fixed_cues = check("fixed_cues", fixed_cues, bool)
        channels = {
            "cue": self.bits,
            "go": 1,
            "bias": check("bias", bias, bool),
            "clock": check("clock", clock, bool),
            "previous reward": check("previous_reward", previous_reward, bool),
            "unused": check("unused", unused, bool),
            "previous action": 2 * check("previous_action", previous_action, bool),
        }
        rewards = (-1.0, 1.0, *self.rewards.tolist())
        bounds = {"cue": (-1.0, 1.0), "previous reward": (min(rewards), max(rewards))}
        super().__init__(num_envs, channels, 2, episode_steps, max_episode_steps, bounds)
        self.blank, self.go = self.num_cues, self.num_cues + 1
        rows, cues = self.num_envs, self.num_cues
        self.patterns = np.zeros((rows, cues + 2, self.bits), np.float32)
        self.target, self.trial, self.place = np.zeros((3, rows), np.int64)
        self.schedule = np.full((rows, self.longest), self.blank)
        self.shown = np.zeros(rows, bool)
        self.cues_in_trial, self.possible = np.zeros((2, rows, cues), bool)

    def ranges(self) -> dict[str, tuple[float, float]]:
        places = {"place": (0, self.longest - 1), "schedule": (0, self.go), "target": (0, self.num_cues - 1)}
        return {**super().ranges(), **places}

    def load_state_dict(self, saved: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned. Raises: StateError where it is not a state of these rows."""
        super().load_state_dict(saved)
        asked = (self.schedule == self.go) & (np.arange(self.longest) >= self.place[:, None])
        if not asked.any(axis=1).all():
            raise StateError("lanes.env.schedule has a trial without an end")

    def _start(self, rows: np.ndarray) -> None:
        words = self.random(rows, 1 + self.num_cues)
        if self.fixed_cues:
            words[:, 1:] = ve.random_words(ve.keys_of([0]), np.zeros(1, np.int64), self.num_cues)
        self.patterns[rows, : self.num_cues] = patterns(words[:, 1:], self.bits)
        self.target[rows] = ve.below(words[:, 0], self.num_cues)
        self.trial[rows], self.possible[rows] = 0, True
        self._start_trial(rows)
        self.place[rows] = 1  # the first trial has no feedback step

    def _start_trial(self, rows: np.ndarray) -> None:
        """Draw a trial: feedback on the last one, a blank, the cues among blanks in random order, the Go."""
        cues, middle, count = self.num_cues, self.longest - 3, np.arange(len(rows))
        words = self.random(rows, 2 + cues + middle, first=1 + cues)
        length = self.shortest + ve.below(words[:, 0], self.longest - self.shortest + 1)
        shown = ve.uniform(words[:, 1]) < self.target_probability
        order = ve.uniform(words[:, 2 : 2 + cues])
        order[count, self.target[rows]] = np.where(shown, -1.0, 2.0)  # the target comes first, or last
        chosen = order.argsort(axis=1)[:, : self.shown_cues]
        slots = ve.uniform(words[:, 2 + cues :])
        slots[np.arange(middle) >= length[:, None] - 3] = 2.0  # beyond the middle part of this trial
        places = 2 + slots.argsort(axis=1)[:, : self.shown_cues]
        schedule = np.full((len(rows), self.longest), self.blank)
        schedule[count[:, None], places] = chosen
        schedule[count, length - 1] = self.go
        self.schedule[rows], self.shown[rows], self.place[rows] = schedule, shown, 0
        self.cues_in_trial[rows] = False
        self.cues_in_trial[rows[:, None], chosen] = True

    @property
    def showing(self) -> np.ndarray:
        """What each row shows now, as an index into `patterns`, (N,)."""
        return self.schedule[self.every, self.place]

    @property
    def period(self) -> np.ndarray:
        """The period of each row: feedback (not in the first trial), blank, cues or go, (N,)."""
        return PERIODS[np.where(self.showing == self.go, 3, np.minimum(self.place, 2))]

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        showing = self.showing
        asked = showing == self.go
        right = asked & (self.shown == (actions == YES))
        reward = np.where(asked, self.rewards[right.astype(np.int64)], np.float32(0.0))
        info = {
            "hit": right,
            "new_trial": asked,
            "trial_number": self.trial.copy(),
            "gt": np.where(asked, self.shown, -1),
            "period": self.period,
            "decision": asked,
            "performance": np.where(asked, right, np.nan),
            "aborted": np.zeros(self.num_envs, bool),
        }
        self.place += 1
        if asked.any():
            rows = np.flatnonzero(asked)
            # Whatever the answer, the reward shows whether the target was among the cues.
            self.possible[rows] &= self.cues_in_trial[rows] == self.shown[rows, None]
            self.trial[rows] += 1
            self._start_trial(rows)
        showing = self.showing
        self._show(slice(None), "cue", self.patterns[self.every, showing])
        self._show(slice(None), "go", (showing == self.go)[:, None])
        return reward, info


def patterns(words: np.ndarray, bits: int) -> np.ndarray:
    """K different random patterns for each of n rows.

    Pattern k is drawn from the 2**bits - k patterns that the earlier ones leave.

    Args:
        words: random numbers, (n, K) uint64.
        bits: entries of a pattern.
    Returns: (n, K, bits) float32, entries -1 and 1.
    """
    codes = np.zeros(words.shape, np.int64)
    for cue in range(words.shape[1]):
        code = ve.below(words[:, cue], 2**bits - cue)
        for taken in np.sort(codes[:, :cue], axis=1).T:
            code += code >= taken
        codes[:, cue] = code
    return (codes[:, :, None] >> np.arange(bits) & 1) * np.float32(2.0) - np.float32(1.0)


# --- scripted policies ------------------------------------------------------------------------------------


def random_answers(env: CueRewardVec, rng: np.random.Generator) -> np.ndarray:
    """Yes or no at random."""
    return rng.integers(2, size=env.num_envs)


def always_no(env: CueRewardVec, rng: np.random.Generator) -> np.ndarray:
    """Always no."""
    return np.zeros(env.num_envs, np.int64)


def perfect_memory(env: CueRewardVec, rng: np.random.Generator) -> np.ndarray:
    """The more probable answer, by Bayes' rule over the cues that can still be the target.

    It is the best policy that does not know the target: what the reward teaches does not depend on the answer. If a
    possible target is among the c cues of the trial, the trial has likelihood p / C(K-1, c-1); otherwise
    (1 - p) / C(K-1, c), where p is `target_probability` and K the number of cues.
    """
    p, c, others = env.target_probability, env.shown_cues, env.num_cues - 1
    yes = (env.possible & env.cues_in_trial).sum(axis=1) * (p / comb(others, c - 1))
    no = (env.possible & ~env.cues_in_trial).sum(axis=1) * ((1.0 - p) / comb(others, c))
    return np.where(yes > no + 1e-12, YES, NO)


def target_known(env: CueRewardVec, rng: np.random.Generator) -> np.ndarray:
    """The right answer in every trial."""
    return np.where(env.shown, YES, NO)


CueRewardVec.scripted = {
    "random": random_answers,
    "never": always_no,
    "perfect_memory": perfect_memory,
    "target_known": target_known,
}


# --- the single environment -------------------------------------------------------------------------------


class CueReward(SingleEnv):
    """A trial shows patterns, then a Go asks whether the target was among them. Only the rewards reveal the target.

    Every episode has `num_cues` new patterns of `cue_bits` random bits, all different; one of them is the target.
    A trial takes shortest_trial to longest_trial steps, drawn uniformly: a blank; `cues_per_trial` different cues among
    blanks, in random order; the Go; a step without a cue, which shows the reward. The target is among the cues with
    probability `target_probability`. The action at the Go is the answer; all other actions have no effect.

    Action space: Discrete(2): 0 no, 1 yes.

    Observation space: Box float32, by default of 27 entries:

        0-19   cue              the pattern, entries -1 or 1; all 0 where no cue is shown
        20     go               1 at the Go
        21     bias             always 1
        22     clock            t / T
        23     previous reward  the reward of the last step
        24     unused           always 0
        25-26  previous action  one-hot; all 0 before the first action

    Reward: right_reward or wrong_reward for the answer at the Go, else 0.
    Episode end: truncated after `episode_steps` = T steps; never terminated.
    Info: hit, this step gave a right answer; and, for the observation acted upon, the names of `NeuroGymWrapper`:
        period (feedback, blank, cues, go); decision, the Go; gt, the right answer at the Go, else -1; trial_number;
        new_trial, this step ended a trial: the answer does, so the feedback step belongs to the next trial;
        performance, 1 if the answer was right, nan at other steps; aborted, always false.

    Differs from Miconi et al.: the paper's episodes have 200 steps with about 15 trials; the defaults are those of the
    public code.

    Args:
        cue_bits, num_cues, cues_per_trial, target_probability, shortest_trial, longest_trial: as above.
        episode_steps: T.
        right_reward, wrong_reward: as above.
        fixed_cues: use the same patterns in every episode; the target still changes.
        unused, bias, clock, previous_reward, previous_action: whether the observation has that channel.
        render_mode: "rgb_array", or None.
    Raises: ValueError, one sentence, for a value out of range.
    """

    batch = CueRewardVec
    rows: CueRewardVec
    action_names = ("no", "yes")

    @property
    def conditions(self) -> Conditions:
        """target_shown, whether the target is among the trial's cues; possible, how many cues can still be it."""
        return {"target_shown": int(self.rows.shown[0]), "possible": int(self.rows.possible[0].sum())}

    def render(self) -> np.ndarray | None:
        """The cues as bits, which of them is shown, the target, the Go with the last answer, and the score."""
        return None if self.render_mode is None else draw(self.rows, self.history)


def draw(env: CueRewardVec, history: list[Info]) -> np.ndarray:
    """A picture of the first row's current step and of its answers so far.

    Args:
        env: the task.
        history: the info of each step of the episode.
    Returns: (height, width, 3) uint8.
    """
    line = min(44, 220 // env.num_cues)
    page = ve.Picture(560, 400)
    showing, left, bit = int(env.showing[0]), 96, min(22.0, 440 / env.bits)
    step, period = int(env.t[0]), str(env.period[0])
    page.text(16, 22, f"t = {step} of {env.episode_steps}     trial {env.trial[0] + 1}     {period}")
    for cue in range(env.num_cues):
        top = 50 + cue * line
        target, possible = cue == env.target[0], bool(env.possible[0, cue])
        page.text(16, top + line / 2, "target" if target else f"cue {cue + 1}", 14, ve.GREEN if target else ve.INK)
        for place, value in enumerate(env.patterns[0, cue]):
            dark, light = (ve.BLUE, ve.YELLOW) if cue == showing else (ve.GREY, ve.PALE)
            page.box(left + place * bit, top + 0.18 * line, bit - 1, 0.64 * line, light if value > 0 else dark)
        if cue == showing:
            page.box(left - 5, top + 2, env.bits * bit + 9, line - 4, None, ve.ORANGE)
        if not possible:  # ruled out by the rewards so far
            page.line([(16, top + line / 2), (84, top + line / 2)], ve.INK, 1)
    asked = [info for info in history if info["decision"]]
    page.disc(56, 312, 26, ve.GREEN if showing == env.go else ve.PALE)
    page.text(56, 312, "GO", 16, ve.PAPER if showing == env.go else ve.GREY, "mm")
    if asked and period == "feedback":
        right = asked[-1]["hit"]
        answer = "yes" if asked[-1]["gt"] == int(right) else "no"
        verdict = f"answer: {answer}, {'right' if right else 'wrong'} ({env.rewards[int(right)]:+g})"
        page.text(96, 312, verdict, 16, ve.BLUE if right else ve.ORANGE)
    page.text(16, 362, f"{sum(info['hit'] for info in asked)} of {len(asked)}")
    for number, info in enumerate(asked):
        width = min(18.0, 448 / max(len(asked), 1))
        page.box(left + number * width, 354, width - 2, 16, ve.BLUE if info["hit"] else ve.ORANGE)
    return page.pixels()


gymnasium.register(
    "CueReward-v0", "mpn_rl.tasks.cue_reward:CueReward", vector_entry_point="mpn_rl.tasks.cue_reward:CueRewardVec"
)
