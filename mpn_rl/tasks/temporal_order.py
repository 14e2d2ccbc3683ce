"""TemporalOrder-v0: which of two stimuli came first."""

from __future__ import annotations

import gymnasium
import numpy as np

from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.trial_task import SingleTrialTask, Trials, TrialTask
from mpn_rl.tasks.vector_env import check

WAIT = 0


class TemporalOrderVec(TrialTask):
    """N episodes of the task that step together; `TemporalOrder` describes it and its arguments."""

    periods = np.array(["stimuli", "go"])
    condition_names = ("first", "gap", "steps")

    def __init__(
        self,
        num_envs: int,
        *,
        shortest_trial: int = 5,
        longest_trial: int = 20,
        episode_steps: int = 100,
        right_reward: float = 1.0,
        wrong_reward: float = 0.0,
        early_reward: float = -0.1,
        max_episode_steps: int | None = None,
    ) -> None:
        self.shortest = check("shortest_trial", shortest_trial, int, 3, 1000)
        longest = check("longest_trial", longest_trial, int, self.shortest, 1000)
        rewards = (
            check("wrong_reward", wrong_reward, float),
            check("right_reward", right_reward, float),
            check("early_reward", early_reward, float),
        )
        channels = {"stimulus": 2, "go": 1}
        super().__init__(num_envs, channels, 3, episode_steps, max_episode_steps, {}, longest, rewards)

    def _draw(self, rows: np.ndarray) -> Trials:
        words, count = self.random(rows, 4), np.arange(len(rows))
        length = self.shortest + ve.below(words[:, 0], self.longest - self.shortest + 1)
        # Two different steps before the go, uniformly.
        one = (ve.uniform(words[:, 1]) * (length - 1)).astype(np.int64)
        other = (ve.uniform(words[:, 2]) * (length - 2)).astype(np.int64)
        other += other >= one
        early, late, first = np.minimum(one, other), np.maximum(one, other), ve.below(words[:, 3], 2)
        inputs = np.zeros((len(rows), self.longest, 3), np.float32)
        inputs[count, early, first] = 1.0
        inputs[count, late, 1 - first] = 1.0
        inputs[count, length - 1, 2] = 1.0
        period = (np.arange(self.longest) == length[:, None] - 1).astype(np.int64)
        right = np.where(period == 1, 1 + first[:, None], WAIT)
        return Trials(inputs, right, period, length, np.stack([first, late - early, length], 1).astype(float))


class TemporalOrder(SingleTrialTask):
    """Two stimuli appear at two random steps of a trial. At the go, the answer is the one that came first.

    A trial takes shortest_trial to longest_trial steps, drawn uniformly, and its last step is the go. Each stimulus
    lasts one step, and the two steps are any two before the go, equally likely. All other steps show nothing. The next
    trial follows at once.

    Action space: Discrete(3): 0 wait, 1 the first stimulus came first, 2 the second one did.

    Observation space: Box float32 of 3 entries: stimulus 1, stimulus 2, go.

    Reward: right_reward or wrong_reward for the answer at the go; early_reward for an answer before it.
    Episode end: truncated after `episode_steps` steps; never terminated.
    Info: as `NeuroGymWrapper`, with the periods stimuli and go; gt is 0 before the go.
    Conditions: first (0 or 1), the stimulus that came first; gap, steps between the two; steps, length of the trial.

    Args:
        shortest_trial, longest_trial, episode_steps, right_reward, wrong_reward, early_reward: as above.
        render_mode: "rgb_array", or None.
    Raises: ValueError, one sentence, for a value out of range.
    """

    batch = TemporalOrderVec
    action_names = ("wait", "stimulus 1 first", "stimulus 2 first")


gymnasium.register(
    "TemporalOrder-v0",
    "mpn_rl.tasks.temporal_order:TemporalOrder",
    vector_entry_point="mpn_rl.tasks.temporal_order:TemporalOrderVec",
)
