"""A constructed recording for the analysis tests: an observer that sums noisy evidence, a state that holds the sum."""

from __future__ import annotations

import numpy as np

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
