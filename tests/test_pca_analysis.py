"""Claims about the analysis: known spectra, exact participation ratios, trials, means and colours."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pca_analysis
from mpn_rl.options import ConfigError


def make_activity() -> dict[str, np.ndarray]:
    """Two episodes: trials of 3, 2 and (cut off) 1 steps, then one of 2. Decisions fall on a trial's last step."""
    rng = np.random.default_rng(0)
    steps = 8
    return {
        "observations": np.array(
            [[1.0, 0.5], [1, 2], [0, 0], [1, 4], [0, 0], [1, 1], [1, 8], [0, 0]], dtype=np.float32
        ),
        "actions": np.array([0, 0, 1, 0, 2, 0, 0, 1]),
        "rewards": np.zeros(steps, dtype=np.float32),
        "episode": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "step": np.array([0, 1, 2, 3, 4, 5, 0, 1]),
        "trial": np.array([0, 0, 0, 1, 1, 2, 0, 0]),
        "new_trial": np.array([0, 0, 1, 0, 1, 0, 0, 1], dtype=bool),
        "ground_truth": np.array([0, 0, 1, 0, 1, 0, 0, 2]),
        "period": np.array(["fixation", "stimulus", "decision", "stimulus", "decision", "fixation", "", "decision"]),
        "correct": np.array([1, 1, 1, 0, 0, np.nan, 0, 0], dtype=np.float32),
        "condition_coh": np.array([5.0, 5, 5, 15, 15, 50, 5, 5]),
        "condition_side": np.array(["left", "left", "left", "right", "right", "left", "right", "right"]),
        "hidden": rng.standard_normal((steps, 4)).astype(np.float32),
        "state_M": rng.standard_normal((steps, 4, 3)).astype(np.float16),
        "dt_ms": np.array(100.0),
    }


# --- principal components -----------------------------------------------------------------------------------


def test_pca_of_three_points_worked_by_hand():
    # Mean (1, 1); centred (-1, -1), (1, 1), (0, 0): all variance, 2, along (1, 1) / sqrt 2.
    fit = pca_analysis.fit_pca(np.array([[0.0, 0.0], [2.0, 2.0], [1.0, 1.0]]), n_components=2)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(fit.mean, [1, 1])
    np.testing.assert_allclose(np.abs(fit.components[0]), [half, half])
    np.testing.assert_allclose(fit.explained_variance_ratio, [1, 0], atol=1e-12)
    np.testing.assert_allclose(
        fit.projected[:, 0] * np.sign(fit.components[0, 0]), [-2 * half, 2 * half, 0], atol=1e-12
    )


@pytest.mark.parametrize("k", [1, 3, 7])
def test_participation_ratio_of_equal_variance_in_k_dimensions_is_k(k):
    """+e_i and -e_i for i < k: the covariance is a multiple of the identity on k dimensions."""
    points = np.zeros((2 * k, 10))
    points[:k, :k], points[k:, :k] = np.eye(k), -np.eye(k)
    many = np.tile(points, (500, 1)) + 3
    assert pca_analysis.participation_ratio(many, np.zeros(len(many))) == pytest.approx(k, rel=1e-12)
    assert pca_analysis.participation_ratio(many, np.repeat(np.arange(500), 2 * k)) == pytest.approx(k, rel=1e-12)
    assert pca_analysis.participation_ratio(many) == pytest.approx(k, rel=0.01)


@pytest.mark.parametrize(("shape", "grouped"), [((30, 7), False), ((30, 7), True), ((12, 40), True), ((12, 40), False)])
def test_the_participation_ratio_is_a_mean_over_pairs_of_rows_of_different_groups(shape, grouped):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) * rng.uniform(0.1, 3, shape[1])
    groups = rng.integers(0, 4, shape[0]) if grouped else np.arange(shape[0])
    y, sizes, crossed, squares = x - x.mean(axis=0), [], [], []
    for i in range(shape[0]):
        for j in range(shape[0]):
            if groups[i] != groups[j]:
                sizes.append((y[i] @ y[i]) * (y[j] @ y[j]))
                crossed.append(y[i] @ y[j])
                squares.append((y[i] @ y[j]) ** 2)
    expected = np.mean(sizes) / (np.mean(squares) - np.mean(crossed) ** 2)
    assert pca_analysis.participation_ratio(x, groups if grouped else None) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [32, 256, 2048])
def test_the_participation_ratio_does_not_grow_with_the_number_of_rows(rows):
    rng = np.random.default_rng(0)
    ratios = [pca_analysis.participation_ratio(rng.standard_normal((rows, 256))) for _ in range(2048 // rows + 2)]
    assert np.mean(ratios) == pytest.approx(256, rel=0.03)  # the covariance of 32 rows alone would give 28


def test_slow_episodes_do_not_lower_the_participation_ratio():
    """20 dimensions with a correlation of 0.95 from step to step: 10 episodes of 40 steps hold few independent rows."""
    rng, ratios = np.random.default_rng(0), []
    for _ in range(20):
        z, steps = rng.standard_normal((10, 20)), []
        for _ in range(40):
            z = 0.95 * z + np.sqrt(1 - 0.95**2) * rng.standard_normal(z.shape)
            steps.append(z)
        x = np.stack(steps, axis=1).reshape(400, 20)
        ratios.append((pca_analysis.participation_ratio(x, np.repeat(np.arange(10), 40)),
                       pca_analysis.participation_ratio(x)))  # fmt: skip
    grouped, single = np.mean(ratios, axis=0)
    assert grouped == pytest.approx(20, rel=0.08) and single < 14


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (60, 1100), (1100, 60)])
def test_spectrum_and_participation_ratio_agree_with_the_full_eigendecomposition(shape):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape) * rng.uniform(0.1, 3, shape[1])
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    fit = pca_analysis.fit_pca(x, n_components=5)
    np.testing.assert_allclose(fit.explained_variance_ratio, eigenvalues[:5] / eigenvalues.sum(), rtol=1e-6)
    one_group = pca_analysis.fit_pca(x, 5, np.zeros(len(x)))
    assert one_group.participation_ratio == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-10)
    np.testing.assert_allclose(fit.projected.var(axis=0, ddof=1), eigenvalues[:5], rtol=1e-6)


def test_many_features_have_the_leading_components_of_the_full_eigendecomposition():
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((1300, 1100)) * np.arange(1, 1101) ** -0.7).astype(np.float32)
    fit = pca_analysis.fit_pca(x, n_components=20)
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(float)))
    np.testing.assert_allclose(fit.explained_variance_ratio, values[::-1][:20] / values.sum(), rtol=1e-3)
    assert np.abs(np.sum(fit.components[:10] * vectors.T[::-1][:10], axis=1)).min() > 0.999
    assert (fit.components.max(axis=1) == np.abs(fit.components).max(axis=1)).all()


def test_half_precision_modulation_is_flattened_and_agrees_with_double_precision():
    x = np.random.default_rng(2).standard_normal((50, 6, 5)).astype(np.float16)
    fit = pca_analysis.fit_pca(x, 4)
    exact = pca_analysis.fit_pca(x.astype(np.float64).reshape(50, 30), 4)
    assert fit.components.shape == (4, 30)
    np.testing.assert_allclose(fit.explained_variance_ratio, exact.explained_variance_ratio, rtol=1e-5)
    assert fit.participation_ratio == pytest.approx(exact.participation_ratio, rel=1e-5)


def test_flattened_modulation_wider_than_the_recording_repeats():
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((800, 5)) @ rng.standard_normal((5, 128 * 33))).astype(np.float16).reshape(800, 128, 33)
    fit, again = pca_analysis.fit_pca(x, 10), pca_analysis.fit_pca(x, 10)
    np.testing.assert_array_equal(fit.projected, again.projected)
    assert 3 < fit.participation_ratio < 5.1
    assert pca_analysis.dimensions_for(fit.explained_variance_ratio, 0.999) == 5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_constant_data_give_zeros_without_a_warning(dtype, value):
    fit = pca_analysis.fit_pca(np.full((30, 4), value).astype(dtype), 3)
    assert fit.participation_ratio == 0.0
    assert not fit.projected.any() and not fit.explained_variance_ratio.any()
    assert fit.projected.shape == (30, 3) and fit.components.shape == (3, 4)
    assert pca_analysis.dimensions_for(fit.explained_variance_ratio) is None


def test_a_single_step_has_no_variance():
    assert pca_analysis.fit_pca(np.ones((1, 4))).projected.shape == (1, 1)


def test_components_never_exceed_samples_or_features():
    assert pca_analysis.fit_pca(np.random.default_rng(0).standard_normal((3, 9)), 50).projected.shape == (3, 3)


@pytest.mark.parametrize("bad", [np.array([[1.0, np.nan], [0, 0]]), np.array([[np.inf, 1], [-np.inf, 2]])])
def test_values_that_are_not_finite_are_refused_in_one_line(bad):
    with pytest.raises(ConfigError, match="finite") as caught:
        pca_analysis.fit_pca(bad)
    assert "\n" not in str(caught.value)


def test_empty_data_and_a_non_positive_size_are_refused():
    with pytest.raises(ConfigError, match="at least one sample"):
        pca_analysis.fit_pca(np.zeros((0, 3)))
    with pytest.raises(ConfigError, match="n_components"):
        pca_analysis.fit_pca(np.zeros((3, 3)), 0)


@pytest.mark.parametrize(("fraction", "dimensions"), [(0.5, 1), (0.9, 3), (1.0, 4)])
def test_dimensions_for_a_fraction_of_variance(fraction, dimensions):
    assert pca_analysis.dimensions_for(np.array([0.6, 0.2, 0.1, 0.1]), fraction) == dimensions


# --- trials -------------------------------------------------------------------------------------------------


def test_trials_split_where_the_trial_or_the_episode_changes():
    trials = pca_analysis.split_trials(make_activity())
    assert [trial.tolist() for trial in trials] == [[0, 1, 2], [3, 4], [5], [6, 7]]


def test_trials_cut_off_by_a_time_limit_can_be_left_out():
    trials = pca_analysis.split_trials(make_activity(), complete_only=True)
    assert [trial.tolist() for trial in trials] == [[0, 1, 2], [3, 4], [6, 7]]


def test_the_same_trial_number_in_two_episodes_is_two_trials():
    activity = {**make_activity(), "trial": np.zeros(8, dtype=int)}
    assert [len(trial) for trial in pca_analysis.split_trials(activity)] == [6, 2]


def test_trial_time_is_in_ms_where_the_task_has_a_clock():
    values, label = pca_analysis.trial_time(make_activity())
    assert values.tolist() == [0, 100, 200, 0, 100, 0, 0, 100] and label == "time in trial (ms)"
    values, label = pca_analysis.trial_time({**make_activity(), "dt_ms": np.array(0.0)})
    assert values.tolist() == [0, 1, 2, 0, 1, 0, 0, 1] and label == "time in trial (steps)"


def test_period_onsets_are_medians_in_order_of_time_and_skip_unnamed_periods():
    activity = make_activity()
    onsets = pca_analysis.period_onsets(activity, pca_analysis.split_trials(activity, complete_only=True))
    # decision at steps 2, 1, 1; stimulus at 1 and 0; fixation at 0.
    assert onsets == {"fixation": 0, "stimulus": 0, "decision": 1}
    del activity["period"]
    assert pca_analysis.period_onsets(activity, pca_analysis.split_trials(activity)) == {}


def test_condition_means_are_aligned_on_trial_start_and_padded_with_nan():
    trials = [np.array([0, 1, 2]), np.array([3, 4]), np.array([5])]
    projected = np.array([[0.0], [2], [4], [10], [20], [7]])
    means = pca_analysis.condition_means(projected, trials, ["a", "a", "b"])
    assert means.labels.tolist() == ["a", "b"]
    np.testing.assert_array_equal(means.mean[..., 0], [[5, 11, 4], [7, np.nan, np.nan]])
    assert means.running.tolist() == [[2, 2, 1], [1, 0, 0]]


def test_a_mean_ends_where_most_of_its_trials_have_ended():
    trials = [np.array([0, 1, 2]), np.array([3, 4]), np.array([5, 6])]
    means = pca_analysis.condition_means(np.arange(7.0)[:, None], trials, min_fraction=0.5)
    np.testing.assert_array_equal(means.mean[0, :, 0], [8 / 3, 11 / 3, np.nan])


def test_trials_without_a_label_are_left_out_of_the_means():
    means = pca_analysis.condition_means(np.array([[1.0], [3.0]]), [np.array([0]), np.array([1])], [np.nan, 2.0])
    assert means.labels.tolist() == [2.0] and means.mean.tolist() == [[[3.0]]]


# --- colours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["coh", "condition_coh"])
def test_a_numeric_condition_resolves_by_either_name(key):
    colour = pca_analysis.colour_values(make_activity(), key)
    assert colour.values.tolist() == [5, 5, 5, 15, 15, 50, 5, 5]
    assert not colour.categorical and colour.label == "coh"


def test_text_is_a_category():
    assert pca_analysis.colour_values(make_activity(), "side").categorical


@pytest.mark.parametrize(
    ("key", "expected", "categorical"),
    [
        ("choice", [1, 1, 1, 2, 2, 0, 1, 1], True),
        ("ground_truth", [1, 1, 1, 1, 1, 0, 2, 2], True),
        ("time", [0, 100, 200, 0, 100, 0, 0, 100], False),
        ("trial", [0, 0, 0, 1, 1, 2, 0, 0], False),
        ("obs_1", [0.5, 2, 0, 4, 0, 1, 8, 0], False),
        ("obs_0-obs_1", [0.5, -1, 0, -3, 0, 0, -7, 0], False),
        ("sum_obs_1", [0.5, 2.5, 2.5, 4, 4, 1, 8, 8], False),
    ],
)
def test_colour_keys_resolve_to_values_of_every_step(key, expected, categorical):
    colour = pca_analysis.colour_values(make_activity(), key)
    assert np.asarray(colour.values, dtype=float).tolist() == expected
    assert colour.categorical == categorical


def test_choice_is_of_each_step_where_a_task_has_no_trials():
    activity = {**make_activity(), "new_trial": np.zeros(8, dtype=bool)}
    assert pca_analysis.colour_values(activity, "choice").values.tolist() == [0, 0, 1, 0, 2, 0, 0, 1]


@pytest.mark.parametrize("key", ["coherence", "obs_2", "obs_0-obs_5", "hidden", ""])
def test_an_unknown_colour_lists_what_there_is(key):
    with pytest.raises(ConfigError, match=r"coh, side, choice, ground_truth, correct, time, trial, obs_0, obs_1"):
        pca_analysis.colour_values(make_activity(), key)


def test_an_outcome_that_the_task_does_not_give_is_refused():
    activity = {**make_activity(), "ground_truth": np.full(8, -1), "correct": np.full(8, np.nan)}
    for key in ("ground_truth", "correct"):
        with pytest.raises(ConfigError, match="does not provide it"):
            pca_analysis.colour_values(activity, key)


def test_every_listed_colour_resolves():
    activity = make_activity()
    for key in pca_analysis.colour_keys(activity):
        assert len(pca_analysis.colour_values(activity, key).values) == 8


def test_trials_group_by_their_constant_value_and_not_by_a_changing_one():
    activity = make_activity()
    trials = pca_analysis.split_trials(activity)
    labels = pca_analysis.group_trials(pca_analysis.colour_values(activity, "side"), trials)
    assert labels.tolist() == ["left", "right", "left", "right"]
    assert pca_analysis.group_trials(pca_analysis.colour_values(activity, "time"), trials) is None


def test_trials_group_by_the_evidence_that_they_end_with():
    activity = make_activity()
    colour = pca_analysis.colour_values(activity, "sum_obs_1")
    labels = pca_analysis.group_trials(colour, pca_analysis.split_trials(activity))
    assert labels.tolist() == [2.5, 4, 1, 8]


def test_many_numbers_are_grouped_at_quantiles_and_unknown_ones_stay_unknown():
    trials = [np.array([step]) for step in range(9)]
    colour = pca_analysis.ColourValues(np.array([0.0, 1, 2, 3, 10, 11, 12, 13, np.nan]), False, "angle")
    labels = pca_analysis.group_trials(colour, trials, max_groups=2)
    np.testing.assert_array_equal(labels, [1.5] * 4 + [11.5] * 4 + [np.nan])


# --- files and summaries ------------------------------------------------------------------------------------


def test_activity_is_read_back_as_it_was_saved(tmp_path):
    activity = make_activity()
    np.savez_compressed(tmp_path / "activity.npz", **activity)
    read = pca_analysis.load_activity(tmp_path / "activity.npz")
    assert set(read) == set(activity)
    for name, array in activity.items():
        np.testing.assert_array_equal(read[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["activity.npz"]


def broken_files(folder):
    """(name, part of the message) of files that are not an activity."""
    activity = make_activity()
    path = folder / "activity.npz"
    np.savez_compressed(path, **activity)
    data = path.read_bytes()
    (folder / "truncated.npz").write_bytes(data[: len(data) // 2])
    (folder / "flipped.npz").write_bytes(data[:300] + bytes(200) + data[500:])
    (folder / "text.npz").write_text("hello")
    (folder / "empty.npz").write_bytes(b"")
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "array.npy").rename(folder / "array.npz")
    np.savez(folder / "pickled.npz", **{**activity, "actions": np.array([{}] * 8, dtype=object)})
    np.savez(folder / "ragged.npz", **{**activity, "hidden": activity["hidden"][:3]})
    np.savez(folder / "foreign.npz", weights=np.zeros(3))
    np.savez(folder / "stepless.npz", **{n: a[:0] if a.ndim else a for n, a in activity.items()})
    readable = {"ragged": "not as many hidden", "foreign": "lacks observations", "stepless": "no steps"}
    readable["missing"] = "analyze collect"
    unreadable = ("truncated", "flipped", "text", "empty", "array", "pickled")
    return [*readable.items(), *((name, "readable activity file") for name in unreadable)]


def test_broken_activity_files_give_one_line_each(tmp_path):
    for name, message in broken_files(tmp_path):
        with pytest.raises(ConfigError, match=message) as caught:
            pca_analysis.load_activity(tmp_path / f"{name}.npz")
        assert "\n" not in str(caught.value)


def test_states_are_known_by_their_short_names():
    assert {name: array.shape for name, array in pca_analysis.states(make_activity()).items()} == {
        "M": (8, 4, 3),
        "h": (8, 4),
    }


def test_summary_is_json_and_counts_complete_trials():
    activity = make_activity()
    fits = {name: pca_analysis.fit_pca(array) for name, array in pca_analysis.states(activity).items()}
    summary = json.loads(json.dumps(pca_analysis.summary(activity, fits), allow_nan=False))
    assert (summary["steps"], summary["episodes"], summary["trials"], summary["complete_trials"]) == (8, 2, 4, 3)
    assert summary["states"]["M"]["features"] == 12
    hidden = summary["states"]["h"]
    assert sum(hidden["explained_variance_ratio"]) == pytest.approx(1, abs=1e-5)
    assert 1 <= hidden["participation_ratio"] <= 4 and 1 <= hidden["dimensions_for_90_percent"] <= 4
