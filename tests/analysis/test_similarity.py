"""Similarity of runs whose states are rotations of each other, or unrelated."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import make_recording
from scipy.spatial import procrustes
from scipy.stats import ortho_group

from mpn_rl.analysis.comparison import similarity
from mpn_rl.analysis.confidence_intervals import MissingDataError

PLACES = [("stimulus", step) for step in range(5)]


def run_of(pattern: np.ndarray, noise: float = 0.0, seed: int = 0) -> similarity.ConditionMeans:
    """A run with these condition means (C, T, F), a course that all conditions share, and noise of each half."""
    rng = np.random.default_rng(seed)
    course = 5 * rng.standard_normal(pattern.shape[1:])
    means = pattern + course + noise * rng.standard_normal((2, *pattern.shape))
    return similarity.ConditionMeans({"h": means}, [str(place) for place in range(len(pattern))], PLACES)


def test_a_rotation_and_a_scale_leave_both_measures_at_one() -> None:
    pattern = np.random.default_rng(0).standard_normal((8, 5, 6))
    turned = 3 * pattern @ ortho_group.rvs(6, random_state=1)
    found = similarity.similarities([run_of(pattern), run_of(turned, seed=1)], "h")
    for name in similarity.MEASURES:
        np.testing.assert_allclose(found.value[name], 1.0, atol=1e-9)
        assert found.limit[name][0, 1] < 0.9
    assert (found.conditions, found.steps) == (8, 5)


def test_the_measures_are_those_of_their_definitions() -> None:
    """CKA from centred Gram matrices; Procrustes from SciPy's disparity, 1 - similarity^2."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 6, 5, 4))
    found = similarity.similarities([run_of(first), run_of(second, seed=1)], "h")
    x, y = ((own - own.mean(axis=0)).reshape(30, 4) for own in (first, second))
    k, gram = x @ x.T, y @ y.T
    assert found.value["linear CKA"][0, 1] == pytest.approx(
        np.sum(k * gram) / np.sqrt(np.sum(k * k) * np.sum(gram * gram)))  # fmt: skip
    disparity = procrustes(x, y)[2]
    assert found.value["Procrustes similarity"][0, 1] == pytest.approx(np.sqrt(1 - disparity))


def test_unrelated_runs_exceed_the_limit_in_one_of_twenty_and_noise_lowers_a_run_with_itself() -> None:
    above = []
    for seed in range(150):
        first, second = np.random.default_rng(seed).standard_normal((2, 6, 5, 4))
        runs = [run_of(first, 0.3, seed), run_of(second, 0.3, seed + 1000)]
        found = similarity.similarities(runs, "h", shuffles=60, seed=seed)
        above.append([found.value[name][0, 1] > found.limit[name][0, 1] for name in similarity.MEASURES])
        assert all(0.5 < found.value[name][0, 0] < 1 for name in similarity.MEASURES)
    assert (np.mean(above, axis=0) <= 0.09).all()


def test_condition_means_of_a_recording_are_those_of_its_trials() -> None:
    activity = make_recording(episodes=40)
    means = similarity.condition_means(activity)
    assert means.conditions == sorted(f"{sign * c:g}" for c in (0, 10, 20, 40) for sign in ((1, -1) if c else (1,)))
    own = (activity["condition_coh"] == 40) & (activity["condition_ground_truth"] == 1)
    own &= (activity["episode"] % 2 == 1) & (activity["step"] % 9 == 8)
    mean = activity["state_M"][own].astype(float).mean(axis=0).ravel()
    np.testing.assert_allclose(means.means["M"][1, means.conditions.index("40"), -1], mean, rtol=1e-3)
    assert means.places[-1] == ("decision", 0)


def test_too_few_conditions_are_named_and_group_means_count_pairs_once() -> None:
    run = run_of(np.random.default_rng(0).standard_normal((3, 5, 4)))
    with pytest.raises(MissingDataError, match="the runs have 3 conditions in common, 4 are needed"):
        similarity.similarities([run, run], "h")
    value = np.array([[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]])
    between = similarity.mean_between(value, ["a", "a", "b"])
    assert between == {("a", "a"): (0.8, 1), ("a", "b"): (pytest.approx(0.3), 2)}
