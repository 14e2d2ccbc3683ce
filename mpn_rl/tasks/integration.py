"""Integration-v0 and ContextualIntegration-v0: sum evidence over a sequence, and answer at its last step.

The tasks of Aitken & Mihalas 2023 (eLife 12:e83035), built from their description.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.trial_task import SingleTrialTask, Trials, TrialTask, ground_truth, random_actions
from mpn_rl.tasks.vector_env import check

TIES = 8  # draws of the evidence, of which the first without a tie is taken


class IntegrationVec(TrialTask):
    """N episodes of the task that step together; `Integration` describes it and its arguments.

    Attributes:
        vectors: input of each word: one per class, null, delay, end of sequence; (classes + 3, inputs) float32.
    """

    periods = np.array(["evidence", "delay", "end"])
    condition_names = ("label", "margin")

    def __init__(
        self,
        num_envs: int,
        *,
        classes: int = 3,
        words: int = 20,
        delay_words: int = 0,
        inputs: int = 50,
        vocabulary: int = 0,
        trials: int = 1,
        right_reward: float = 1.0,
        wrong_reward: float = 0.0,
        max_episode_steps: int | None = None,
    ) -> None:
        self.classes = check("classes", classes, int, 2, 20)
        self.words = check("words", words, int, 1, 1000)
        self.delay_words = check("delay_words", delay_words, int, 0, 10_000)
        inputs = check("inputs", inputs, int, 8, 10_000)
        self.vectors = vocabulary_of(self.classes + 3, inputs, check("vocabulary", vocabulary, int, 0))
        steps = self.words + self.delay_words + 1
        rewards = (check("wrong_reward", wrong_reward, float), check("right_reward", right_reward, float), 0.0)
        episode = steps * check("trials", trials, int, 1, 10_000)
        super().__init__(
            num_envs, {"input": inputs}, self.classes, episode, max_episode_steps, {}, longest=steps, rewards=rewards
        )

    def _draw(self, rows: np.ndarray) -> Trials:
        n, steps, classes = len(rows), self.longest, self.classes
        random = self.random(rows, TIES * (self.words + classes) + self.words + 1)
        split = TIES * (self.words + classes)
        counts = evidence_counts(random[:, :split].reshape(n, TIES, -1), self.words, classes)
        ranked = np.sort(counts[:, :, :-1], axis=2)
        tied = ranked[:, :, -1] == ranked[:, :, -2]
        counts = counts[np.arange(n), tied.argmin(axis=1)]
        hopeless = tied.all(axis=1)  # all words are then evidence for one class
        counts[hopeless] = 0
        counts[hopeless, ve.below(random[hopeless, split], classes)] = self.words
        label, best = counts[:, :-1].argmax(axis=1), np.sort(counts[:, :-1], axis=1)
        # Word w of the sequence before it is shuffled: class 0 as often as it counts, then class 1, ..., then null.
        word = (np.arange(self.words) >= counts.cumsum(axis=1)[:, :, None]).sum(axis=1)
        word = np.take_along_axis(word, random[:, split + 1 :].argsort(axis=1), axis=1)
        sequence = np.full((n, steps), classes + 1)  # delay
        sequence[:, : self.words], sequence[:, -1] = word, classes + 2
        period = np.ones((n, steps), np.int64)
        period[:, : self.words], period[:, -1] = 0, 2
        right = np.where(period == 2, label[:, None], -1)
        conditions = np.stack([label, best[:, -1] - best[:, -2]], axis=1).astype(float)
        return Trials(self.vectors[sequence], right, period, np.full(n, steps), conditions)


def vocabulary_of(words: int, inputs: int, seed: int) -> np.ndarray:
    """Different random binary vectors, one per word, entries 0 and 1 equally likely, (words, inputs) float32."""
    vectors = np.zeros((0, inputs), np.float32)
    for attempt in range(1000):
        key = ve.keys_of([seed])
        drawn = ve.random_words(key, np.array([attempt]), words * inputs) >> np.uint64(63)
        vectors = drawn.reshape(words, inputs).astype(np.float32)
        if len(np.unique(vectors, axis=0)) == words:
            break
    return vectors


def evidence_counts(random: np.ndarray, words: int, classes: int) -> np.ndarray:
    """How often each class and the null word occur in a sequence, all such lists of counts equally likely.

    The counts are the gaps between `classes` bars among words + classes places (stars and bars).

    Args:
        random: random numbers, (..., words + classes) uint64.
        words: the sum of the counts.
        classes: number of classes.
    Returns: (..., classes + 1), the null word's count last.
    """
    bars = np.sort(random.argsort(axis=-1)[..., :classes], axis=-1)
    ends = np.concatenate(
        [np.full((*bars.shape[:-1], 1), -1), bars, np.full((*bars.shape[:-1], 1), words + classes)], axis=-1
    )
    return np.diff(ends, axis=-1) - 1


class Integration(SingleTrialTask):
    """A sequence of words, each of them evidence for one class or none. At its end, the answer is the class with most.

    Every word is a fixed random binary vector. The counts of the classes' words and of the null word are drawn so that
    all lists of counts without a tie are equally likely, and the words are in random order. Then come `delay_words`
    delay words and the end-of-sequence word, at which the action is the answer. No other action has an effect.

    Differs from Aitken & Mihalas, who draw the difference between two scores uniformly: with more than two classes
    there are several differences, so here the list of counts is uniform.

    Action space: Discrete(classes).

    Observation space: Box float32 of `inputs` entries 0 or 1, the vector of the word.

    Reward: right_reward or wrong_reward for the answer, else 0.
    Episode end: truncated after `trials` trials; never terminated.
    Info: as `NeuroGymWrapper`, with the periods evidence, delay and end; gt is -1 before the end.
    Conditions: label, the right class; margin, its evidence words minus those of the class with second most.

    Args:
        classes: number of classes, at least 2.
        words: evidence and null words of a sequence.
        delay_words: delay words after them.
        inputs: size of a word's vector.
        vocabulary: seed of the words' vectors, which are the same in every episode.
        trials: sequences per episode; the state continues from one to the next.
        right_reward, wrong_reward: as above.
        render_mode: "rgb_array", or None.
    Raises: ValueError, one sentence, for a value out of range.
    """

    batch = IntegrationVec

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        super().__init__(render_mode=render_mode, **arguments)
        self.action_names = tuple(f"class {number}" for number in range(len(self.rows.one_hot)))


class ContextualIntegrationVec(TrialTask):
    """N episodes of the task that step together; `ContextualIntegration` describes it and its arguments."""

    periods = np.array(["stimulus", "relaxation", "end"])
    condition_names = ("context", "colour", "motion", "cue_delay")

    def __init__(
        self,
        num_envs: int,
        *,
        steps: int = 40,
        largest_mean: float = 0.1875,
        noise: float = 0.5,
        retro_cue: bool = False,
        shortest_cue_delay: int = 5,
        longest_cue_delay: int = 15,
        trials: int = 1,
        right_reward: float = 1.0,
        wrong_reward: float = 0.0,
        max_episode_steps: int | None = None,
    ) -> None:
        steps = check("steps", steps, int, 4, 10_000)
        self.shown = steps // 2  # steps of the stimulus
        self.retro_cue = check("retro_cue", retro_cue, bool)
        latest = max(1, steps - self.shown - 1)
        self.delays = (
            check("shortest_cue_delay", shortest_cue_delay, int, 0, latest if retro_cue else 10_000),
            check("longest_cue_delay", longest_cue_delay, int, shortest_cue_delay, latest if retro_cue else 10_000),
        )
        self.largest_mean = check("largest_mean", largest_mean, float, 0.0, 100.0)
        self.noise = check("noise", noise, float, 0.0, 100.0)
        rewards = (check("wrong_reward", wrong_reward, float), check("right_reward", right_reward, float), 0.0)
        largest = self.largest_mean + 10.0 * self.noise  # `normal` stays below 9
        super().__init__(
            num_envs,
            {"colour": 1, "motion": 1, "cue colour": 1, "cue motion": 1, "end": 1},
            2,
            steps * check("trials", trials, int, 1, 10_000),
            max_episode_steps,
            {"colour": (-largest, largest), "motion": (-largest, largest)},
            longest=steps,
            rewards=rewards,
        )

    def _draw(self, rows: np.ndarray) -> Trials:
        n, steps, shown = len(rows), self.longest, self.shown
        random = self.random(rows, 4 + 4 * shown)
        context = ve.below(random[:, 0], 2)
        means = self.largest_mean * (2.0 * ve.uniform(random[:, 1:3]) - 1.0)
        inputs = np.zeros((n, steps, 5), np.float32)
        noise = normal(random[:, 4:].reshape(n, shown, 2, 2))
        inputs[:, :shown, :2] = means[:, None] + self.noise * noise
        cue_delay = self.delays[0] + ve.below(random[:, 3], self.delays[1] - self.delays[0] + 1)
        cued = np.arange(steps) >= shown + cue_delay[:, None] if self.retro_cue else np.ones((n, steps), bool)
        inputs[np.arange(n), :, 2 + context] = cued
        inputs[:, -1, 4] = 1.0
        period = np.ones((n, steps), np.int64)
        period[:, :shown], period[:, -1] = 0, 2
        label = (means[np.arange(n), context] > 0).astype(np.int64)
        right = np.where(period == 2, label[:, None], -1)
        delay = cue_delay if self.retro_cue else np.full(n, -1)
        return Trials(inputs, right, period, np.full(n, steps), np.stack([context, *means.T, delay], axis=1))


def normal(words: npt.NDArray[np.uint64]) -> np.ndarray:
    """Standard normal numbers (...) from random words (..., 2), by Box & Muller's transform; |z| < 9."""
    radius = np.sqrt(-2.0 * np.log(1.0 - ve.uniform(words[..., 0])))
    return radius * np.cos(2.0 * np.pi * ve.uniform(words[..., 1]))


def ideal_observer(env: ContextualIntegrationVec, rng: np.random.Generator) -> np.ndarray:
    """The sign of the attended stream's sum, the best answer to what was shown."""
    context = env.condition[:, 0].astype(int)
    return (env.inputs[env.every, : env.shown, context].sum(axis=1) > 0).astype(np.int64)


IntegrationVec.scripted = {"random": random_actions, "ground_truth": ground_truth}
ContextualIntegrationVec.scripted = {**IntegrationVec.scripted, "ideal": ideal_observer}


class ContextualIntegration(SingleTrialTask):
    """Two noisy streams, of which a cue selects one. At the end, the answer is the sign of its mean.

    In the first half of a sequence, colour and motion show their means plus Gaussian noise; in the second half, the
    relaxation, they are 0. The means are drawn from U(-largest_mean, largest_mean). The cue shows all the time which
    stream counts. With `retro_cue`, it starts shortest_cue_delay to longest_cue_delay steps after the stimulus has
    ended, drawn uniformly, and stays to the end, so both streams have to be remembered until then.

    Action space: Discrete(2): 0 negative, 1 positive. Only the action at the last step has an effect.

    Observation space: Box float32 of 5 entries: colour, motion, cue colour, cue motion, end (1 at the last step).

    Reward: right_reward or wrong_reward for the answer, else 0.
    Episode end: truncated after `trials` trials; never terminated.
    Info: as `NeuroGymWrapper`, with the periods stimulus, relaxation and end; gt is -1 before the end.
    Conditions: context (0 colour, 1 motion); colour and motion, the means; cue_delay, -1 without `retro_cue`.

    Args:
        steps: of a sequence.
        largest_mean: as above.
        noise: standard deviation of the noise; the paper's text does not state one for these means.
        retro_cue, shortest_cue_delay, longest_cue_delay: as above.
        trials: sequences per episode; the state continues from one to the next.
        right_reward, wrong_reward: as above.
        render_mode: "rgb_array", or None.
    Raises: ValueError, one sentence, for a value out of range.
    """

    batch = ContextualIntegrationVec
    action_names = ("negative", "positive")


for name in ("Integration", "ContextualIntegration"):
    gymnasium.register(
        f"{name}-v0",
        f"mpn_rl.tasks.integration:{name}",
        vector_entry_point=f"mpn_rl.tasks.integration:{name}Vec",
    )
