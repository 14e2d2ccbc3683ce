"""CueReward-v0: learn within an episode which of some random patterns asks for a yes.

The cue-reward association of Miconi et al. (ICLR 2019, arXiv 2002.10585), in the layout of its public code, whose
observation has 27 entries where the paper has 24: `clock=False, bias=False, unused=False` gives those.
"""

from __future__ import annotations

from math import comb
from typing import Any

import gymnasium
import numpy as np

from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.vector_env import SingleEnv, VectorEnv, check

NO, YES = 0, 1
PERIODS = np.array(["feedback", "blank", "cues", "go"])


class CueRewardVec(VectorEnv):
    """N episodes of the task that step together; `CueReward` describes it and its arguments.

    Attributes, each with N rows:
        patterns: (N, K + 2, bits) float32, what each of the K cues looks like; nothing for a blank and the Go.
        target: the number of the target cue. trial: 0-based. place: the step within the trial.
        schedule: (N, longest_trial) what each step of the trial shows, as a row of `patterns`.
        shown: whether the target is among the trial's cues. cues_in_trial: (N, K) bool.
        possible: (N, K) bool, cues that may still be the target after all answers so far: what a perfect memory knows.
    """

    arrays = (
        *VectorEnv.arrays,
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
            raise ValueError(f"cue_bits must tell num_cues = {num_cues} cues apart, got {cue_bits}")
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
        paid = (-1.0, 1.0, *self.rewards.tolist())
        bounds = {"cue": (-1.0, 1.0), "previous reward": (min(paid), max(paid))}
        super().__init__(num_envs, channels, 2, episode_steps, max_episode_steps, bounds)
        self.blank, self.go = self.num_cues, self.num_cues + 1
        rows, cues = self.num_envs, self.num_cues
        self.patterns = np.zeros((rows, cues + 2, self.bits), np.float32)
        self.target, self.trial, self.place = np.zeros((3, rows), np.int64)
        self.schedule = np.full((rows, self.longest), self.blank)
        self.shown = np.zeros(rows, bool)
        self.cues_in_trial, self.possible = np.zeros((2, rows, cues), bool)

    def _begin(self, rows: np.ndarray) -> None:
        words = self.random(rows, 1 + self.num_cues)
        if self.fixed_cues:
            words[:, 1:] = ve.random_words(ve.keys_of([0]), np.zeros(1, np.int64), self.num_cues)
        self.patterns[rows, : self.num_cues] = patterns(words[:, 1:], self.bits)
        self.target[rows] = ve.below(words[:, 0], self.num_cues)
        self.trial[rows], self.possible[rows] = 0, True
        self._begin_trial(rows)
        self.place[rows] = 1  # nothing was answered yet

    def _begin_trial(self, rows: np.ndarray) -> None:
        """Lay a trial out: the last one's feedback, a blank, the cues among blanks in any order, the Go."""
        cues, middle, count = self.num_cues, self.longest - 3, np.arange(len(rows))
        words = self.random(rows, 2 + cues + middle, first=1 + cues)
        length = self.shortest + ve.below(words[:, 0], self.longest - self.shortest + 1)
        shown = ve.uniform(words[:, 1]) < self.target_probability
        order = ve.uniform(words[:, 2 : 2 + cues])
        order[count, self.target[rows]] = np.where(shown, -1.0, 2.0)  # the target comes first, or last
        chosen = order.argsort(axis=1)[:, : self.shown_cues]
        slots = ve.uniform(words[:, 2 + cues :])
        slots[np.arange(middle) >= length[:, None] - 3] = 2.0  # beyond the trial's middle
        places = 2 + slots.argsort(axis=1)[:, : self.shown_cues]
        schedule = np.full((len(rows), self.longest), self.blank)
        schedule[count[:, None], places] = chosen
        schedule[count, length - 1] = self.go
        self.schedule[rows], self.shown[rows], self.place[rows] = schedule, shown, 0
        self.cues_in_trial[rows] = False
        self.cues_in_trial[rows[:, None], chosen] = True

    @property
    def showing(self) -> np.ndarray:
        """What each row shows now, as a row of `patterns`, (N,)."""
        return self.schedule[self.every, self.place]

    @property
    def period(self) -> np.ndarray:
        """feedback (not in an episode's first trial), blank, cues or go, (N,)."""
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
            # Whatever was answered, the reward tells whether the target was there.
            self.possible[rows] &= self.cues_in_trial[rows] == self.shown[rows, None]
            self.trial[rows] += 1
            self._begin_trial(rows)
        showing = self.showing
        self._show(slice(None), "cue", self.patterns[self.every, showing])
        self._show(slice(None), "go", (showing == self.go)[:, None])
        return reward, info


def patterns(words: np.ndarray, bits: int) -> np.ndarray:
    """Random words (n, K) as K different patterns of so many bits for each of n rows, (n, K, bits) of -1 and 1.

    Cue k is drawn from the 2**bits - k patterns that are left, and counted past those taken.
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
    """Yes or no, each as likely."""
    return rng.integers(2, size=env.num_envs)


def always_no(env: CueRewardVec, rng: np.random.Generator) -> np.ndarray:
    """Never a yes."""
    return np.zeros(env.num_envs, np.int64)


def perfect_memory(env: CueRewardVec, rng: np.random.Generator) -> np.ndarray:
    """The best that can be done without knowing the target beforehand: Bayes over the cues that may still be it.

    Answers teach the same whatever they are, so the likelier one is best. The m possible targets among the trial's c of
    K cues say yes, each with likelihood p / C(K-1, c-1); the others say no, each with (1 - p) / C(K-1, c).
    """
    p, c, others = env.target_probability, env.shown_cues, env.num_cues - 1
    yes = (env.possible & env.cues_in_trial).sum(axis=1) * (p / comb(others, c - 1))
    no = (env.possible & ~env.cues_in_trial).sum(axis=1) * ((1.0 - p) / comb(others, c))
    return np.where(yes > no + 1e-12, YES, NO)


def target_known(env: CueRewardVec, rng: np.random.Generator) -> np.ndarray:
    """The right answer to every trial."""
    return np.where(env.shown, YES, NO)


CueRewardVec.scripted = {
    "random": random_answers,
    "never": always_no,
    "perfect_memory": perfect_memory,
    "target_known": target_known,
}


# --- the single environment -------------------------------------------------------------------------------


class CueReward(SingleEnv):
    """Some patterns are shown, then a Go asks: was the target among them? Which one it is, only the rewards tell.

    Every episode has `num_cues` new patterns of `cue_bits` random bits, all different, and one of them is the target.
    A trial takes shortest_trial to longest_trial steps, each length as likely: a blank; `cues_per_trial` different
    cues among blanks, in any order; the Go; a step without a cue in which the reward is seen. With `target_probability`
    the target is among the cues. The action on the Go is the answer; all others do nothing.

    Action space: Discrete(2): 0 no, 1 yes.

    Observation space: Box float32, by default of 27 entries:

        0-19   cue              the pattern, -1 or 1 each; all 0 where none is shown
        20     go               1 at the Go
        21     bias             always 1
        22     clock            t / T
        23     previous reward  as it was paid
        24     unused           always 0
        25-26  previous action  one-hot; all 0 before the first

    Reward: right_reward or wrong_reward for the answer at the Go, else 0.
    Episode end: truncated after `episode_steps` = T steps; never terminated.
    Info: hit, a right answer in this step; and, of the observation acted upon, in the words of `NeuroGymWrapper`:
        period (feedback, blank, cues, go); decision, the Go; gt, the right answer there, else -1; trial_number;
        new_trial, this step ended a trial, which the answer does (so the info counts the feedback step to the next);
        performance, 1 if the answer was right, nan at other steps; aborted, which is never so.

    Differs from Miconi et al.: the paper's episodes have 200 steps with some 15 trials; these are the public code's.

    Args:
        cue_bits, num_cues, cues_per_trial, target_probability, shortest_trial, longest_trial: as above.
        episode_steps: T.
        right_reward, wrong_reward: as above.
        fixed_cues: the same patterns in every episode; the target still changes.
        unused, bias, clock, previous_reward, previous_action: whether the observation has that channel.
        render_mode: "rgb_array".
    Raises: ValueError, one sentence, for a value out of range.
    """

    batch = CueRewardVec
    action_names = ("no", "yes")

    @property
    def conditions(self) -> dict[str, Any]:
        """target_shown, whether the target is among the trial's cues; possible, how many cues may still be it."""
        return {"target_shown": int(self.rows.shown[0]), "possible": int(self.rows.possible[0].sum())}

    def render(self) -> np.ndarray | None:
        """The cues as bits, the one on show, the target, the Go with the last answer, and the score of all trials."""
        return None if self.render_mode is None else draw(self.rows, self.history)


def draw(env: CueRewardVec, history: list[dict[str, Any]]) -> np.ndarray:
    """The task as it stands, (height, width, 3) uint8; `history` is the infos of the steps so far."""
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
            strong = cue == showing
            dark, light = (ve.BLUE, ve.YELLOW) if strong else (ve.GREY, ve.PALE)
            page.box(left + place * bit, top + 0.18 * line, bit - 1, 0.64 * line, light if value > 0 else dark)
        if cue == showing:
            page.box(left - 5, top + 2, env.bits * bit + 9, line - 4, None, ve.ORANGE)
        if not possible:  # ruled out by the answers so far
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


SCRIPTED = CueReward.scripted
gymnasium.register(
    "CueReward-v0", "mpn_rl.tasks.cue_reward:CueReward", vector_entry_point="mpn_rl.tasks.cue_reward:CueRewardVec"
)
