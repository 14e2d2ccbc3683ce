"""A constructed recording for the analysis tests: an observer that sums noisy evidence, a state that holds the sum."""

from __future__ import annotations

import numpy as np

from mpn_rl.analysis.trials import Aligned, Table

PERIODS = ("fixation",) * 2 + ("stimulus",) * 4 + ("delay",) * 2 + ("decision",)
COHERENCES = (0.0, 10.0, 20.0, 40.0)


def make_recording(episodes: int = 20, per_episode: int = 10, seed: int = 0, **changes) -> dict[str, np.ndarray]:
    """Trials of nine steps: two of fixation, four of stimulus, two of delay, one of decision.

    The observation is (fixation, left, right); right - left has mean coherence / 20 x (-1 or +1) and noise of
    deviation 1. The observer chooses action 2 where their sum is positive. h follows the current observation, plus
    noise; M, 6 x 2, holds the sum so far in its first row, times 1 and -1, and but for that noise of deviation 0.3.
    """
    rng = np.random.default_rng(seed)
    trials, steps = episodes * per_episode, len(PERIODS)
    n = trials * steps
    coherence = rng.choice(COHERENCES, trials)
    side = rng.integers(1, 3, trials)
    sign = np.where(side == 2, 1.0, -1.0)
    showing = np.array(PERIODS) == "stimulus"
    drift = (coherence * sign)[:, None] / 20 * showing + rng.standard_normal((trials, steps)) * showing
    total = drift.cumsum(axis=1)
    observations = np.zeros((trials, steps, 3), np.float32)
    observations[:, :-1, 0] = 1
    observations[..., 1], observations[..., 2] = -drift / 2, drift / 2
    actions = np.zeros((trials, steps), int)
    actions[:, -1] = np.where(total[:, -1] > 0, 2, 1)
    truth = np.zeros((trials, steps), int)
    truth[:, -1] = side
    hidden = np.concatenate([observations, np.zeros((trials, steps, 5), np.float32)], axis=2)
    modulation = 0.3 * rng.standard_normal((trials, steps, 6, 2))
    modulation[:, :, 0] += total[..., None] * [1, -1]
    recording = {
        "observations": observations.reshape(n, 3),
        "actions": actions.ravel(),
        "rewards": np.zeros(n, np.float32),
        "episode": np.repeat(np.arange(episodes), per_episode * steps),
        "step": np.tile(np.arange(per_episode * steps), episodes),
        "trial": np.tile(np.repeat(np.arange(per_episode), steps), episodes),
        "new_trial": np.tile(np.arange(steps) == steps - 1, trials),
        "ground_truth": truth.ravel(),
        "correct": np.repeat((actions[:, -1] == side).astype(float), steps),
        "period": np.tile(np.array(PERIODS), trials),
        "condition_coh": np.repeat(coherence, steps),
        "condition_ground_truth": np.repeat(side - 1, steps),
        "hidden": (hidden.reshape(n, 8) + 0.1 * rng.standard_normal((n, 8))).astype(np.float32),
        "state_M": modulation.reshape(n, 6, 2).astype(np.float16),
        "dt_ms": np.array(100.0),
    }
    return {**recording, **changes}


def make_two_cues(
    gain: list[float], irrelevant: float = 0.0, noise: float = 1.0, n: int = 600, seed: int = 0
) -> tuple[dict[str, np.ndarray], Aligned, Table]:
    """Observations, aligned steps and table of trials with two noisy cues, of which the context selects one.

    Args: gain: weight of the selected cue at each step. irrelevant: of the other cue. noise: of the decision.
    """
    rng = np.random.default_rng(seed)
    k, context, strength = len(gain), rng.integers(0, 2, n), rng.choice([5.0, 15, 50], (n, 2))
    sides = rng.integers(1, 3, (n, 2))  # of the selected cue, of the other one
    order = np.stack([context, 1 - context], axis=1)
    cues = (np.take_along_axis(strength, order, 1) / 25 * (2 * sides - 3))[..., None] + rng.standard_normal((n, 2, k))
    drive = cues[:, 0] @ gain + irrelevant * cues[:, 1].sum(axis=1) + noise * rng.standard_normal(n)
    shown = np.take_along_axis(cues, order[..., None], 1)
    seen = np.stack([-shown[:, 0], shown[:, 0], -shown[:, 1], shown[:, 1]], axis=2) / 2
    aligned = Aligned(np.arange(n * k).reshape(n, k), 100.0 * np.arange(k), "ms", {"stimulus": 0})
    table = {"choice": np.where(drive > 0, 2, 1), "ground_truth": sides[:, 0].astype(float)}
    table |= {"condition_context": context, "condition_other_choice": sides[:, 1]}
    table |= {f"condition_coh_{place + 1}": strength[:, place] for place in range(2)}
    return {"observations": seen.reshape(n * k, 4)}, aligned, table
