"""MetaBandit-v0: find out within an episode which arm pays best.

A bandit whose best arm is drawn at each episode's start, as in Duan et al. 2016 (arXiv 1611.02779) and Wang et al. 2018
(Nature Neuroscience 21:860). NeuroGym's Bandit-v0 has the same probabilities in all episodes, so that a policy without
memory is the best one there.
"""

from __future__ import annotations

import gymnasium
import numpy as np

from mpn_rl.contracts import Conditions
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.vector_env import BatchedTask, SingleEnv, check


class MetaBanditVec(BatchedTask):
    """N episodes of the task that step together; `MetaBandit` describes it and its arguments.

    Attributes, each with N rows:
        best_arm: the arm that pays best, (N,).
        pulls, paid: how often each arm was pulled and paid, (N, arms).
        last_arm, last_reward: of the last step, -1 and 0 before the first, (N,).
    """

    arrays = (*BatchedTask.arrays, "best_arm", "pulls", "paid", "last_arm", "last_reward")

    def __init__(
        self,
        num_envs: int,
        *,
        arms: int = 2,
        best_p: float = 0.75,
        other_p: float = 0.25,
        episode_steps: int = 100,
        max_episode_steps: int | None = None,
    ) -> None:
        self.arms = check("arms", arms, int, 2, 100)
        self.best_p = check("best_p", best_p, float, 0.0, 1.0)
        self.other_p = check("other_p", other_p, float, 0.0, self.best_p)
        super().__init__(num_envs, {"bias": 1}, self.arms, episode_steps, max_episode_steps, {})
        self.best_arm, self.last_arm, self.last_reward = np.zeros((3, self.num_envs), np.int64)
        self.pulls, self.paid = np.zeros((2, self.num_envs, self.arms), np.int64)

    def ranges(self) -> dict[str, tuple[float, float]]:
        arms, counts = {"best_arm": (0, self.arms - 1), "last_arm": (-1, self.arms - 1)}, (0, self.limit)
        return {**super().ranges(), **arms, "pulls": counts, "paid": counts, "last_reward": (0, 1)}

    def _start(self, rows: np.ndarray) -> None:
        self.best_arm[rows] = ve.below(self.random(rows, 1)[:, 0], self.arms)
        self.pulls[rows], self.paid[rows], self.last_arm[rows], self.last_reward[rows] = 0, 0, -1, 0

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        best = actions == self.best_arm
        pays = ve.uniform(self.random(self.every, 1)[:, 0]) < np.where(best, self.best_p, self.other_p)
        self.last_arm[:], self.last_reward[:] = actions, pays
        self.pulls[self.every, actions] += 1
        self.paid[self.every, actions] += pays
        always = np.ones(self.num_envs, bool)
        info = {
            "hit": best,
            "new_trial": always,
            "trial_number": self.t - 1,
            "gt": self.best_arm.copy(),
            "period": np.full(self.num_envs, "choice"),
            "decision": always,
            "performance": best.astype(float),
            "aborted": ~always,
        }
        return pays.astype(np.float32), info


# --- scripted policies ------------------------------------------------------------------------------------


def random_arms(env: MetaBanditVec, rng: np.random.Generator) -> np.ndarray:
    """Any arm."""
    return rng.integers(env.arms, size=env.num_envs)


def win_stay(env: MetaBanditVec, rng: np.random.Generator) -> np.ndarray:
    """The last arm if it paid, else another one: an agent that sees its last step but remembers nothing can do this."""
    other = (env.last_arm + rng.integers(1, env.arms, size=env.num_envs)) % env.arms
    arm = np.where(env.last_reward == 1, env.last_arm, other)
    return np.where(env.last_arm < 0, random_arms(env, rng), arm)


def ideal(env: MetaBanditVec, rng: np.random.Generator) -> np.ndarray:
    """The arm that is most probably the best one, by Bayes' rule over all rewards of the episode.

    With s_k rewards in n_k pulls of arm k, the log-likelihood that arm k is the best one is, up to a constant,

        s_k log(p / q) + (n_k - s_k) log((1 - p) / (1 - q)),  p = best_p, q = other_p

    No policy that does not know the best arm earns more (Feldman 1962, Annals of Mathematical Statistics 33:847, for
    two arms; Rodman 1978, Annals of Probability 6:491, for more).
    """
    p, q = np.clip([env.best_p, env.other_p], 1e-12, 1.0 - 1e-12)
    evidence = env.paid * np.log(p / q) + (env.pulls - env.paid) * np.log((1.0 - p) / (1.0 - q))
    return evidence.argmax(axis=1)


def arm_known(env: MetaBanditVec, rng: np.random.Generator) -> np.ndarray:
    """The best arm."""
    return env.best_arm.copy()


MetaBanditVec.scripted = {"random": random_arms, "win_stay": win_stay, "ideal": ideal, "arm_known": arm_known}


# --- the single environment -------------------------------------------------------------------------------


class MetaBandit(SingleEnv):
    """Arms that pay 1 or 0. One of them pays more often than the others; it is drawn at each episode's start.

    Every step is a trial: the action is the arm. The observation tells nothing, so an agent learns which arm is best
    only if it sees what it did and earned (`--observe-reward --observe-action`) and remembers it.

    Action space: Discrete(arms).

    Observation space: Box float32 of 1 entry, always 1.

    Reward: 1 with probability best_p for the best arm, with probability other_p for any other one; else 0.
    Episode end: truncated after `episode_steps` steps; never terminated.
    Info: as `NeuroGymWrapper`, with the period choice; hit, this was the best arm; gt, the best arm; performance, 1 for
        the best arm, else 0.
    Conditions: best_arm.

    Args:
        arms: number of arms, at least 2.
        best_p, other_p: as above, best_p >= other_p.
        episode_steps: steps of an episode.
        render_mode: "rgb_array", or None.
    Raises: ValueError, one sentence, for a value out of range.
    """

    batch = MetaBanditVec
    rows: MetaBanditVec

    def __init__(self, *, render_mode: str | None = None, **arguments: object) -> None:
        super().__init__(render_mode=render_mode, **arguments)
        self.action_names = tuple(f"arm {arm}" for arm in range(1, self.rows.arms + 1))

    @property
    def conditions(self) -> Conditions:
        """best_arm, from 0."""
        return {"best_arm": int(self.rows.best_arm[0])}

    def render(self) -> np.ndarray | None:
        """For each arm how often it was pulled and paid, and the arm and the reward of the last step."""
        if self.render_mode is None:
            return None
        env, page = self.rows, ve.Picture(560, 400)
        page.text(16, 22, f"t = {env.t[0]} of {env.episode_steps}")
        line = min(60.0, 340 / env.arms)
        width = 360 / env.episode_steps
        for arm in range(env.arms):
            top, best = 44 + arm * line, arm == env.best_arm[0]
            page.text(16, top + line / 2, self.action_names[arm], 14, ve.GREEN if best else ve.INK)
            pulls, paid = int(env.pulls[0, arm]), int(env.paid[0, arm])
            for count, colour in ((pulls, ve.PALE), (paid, ve.BLUE)):
                if count:
                    page.box(96, top + 0.2 * line, max(1.0, count * width), 0.6 * line, colour)
            page.text(540, top + line / 2, f"{paid} of {pulls}", 14, ve.INK, "rm")
            if arm == env.last_arm[0]:
                page.box(92, top + 2, 364, line - 4, None, ve.BLUE if env.last_reward[0] else ve.ORANGE)
        return page.pixels()


gymnasium.register(
    "MetaBandit-v0", "mpn_rl.tasks.bandit:MetaBandit", vector_entry_point="mpn_rl.tasks.bandit:MetaBanditVec"
)
