"""Claims about pictures of the state: decoding, demixed parts, fixed points, weights, snapshots, readout."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from recordings import make_recording

import pca_analysis
import visualize
from mpn_rl.analysis import decoding, demixed, fixed_points, trials
from mpn_rl.analysis.confidence_intervals import Estimate
from mpn_rl.analysis.figures import state_figures


@pytest.fixture(scope="module")
def recorded():
    activity = make_recording()
    found = trials.complete_trials(activity)
    aligned = trials.align_periods(activity, found)
    table = trials.trial_table(activity, found)
    return activity, aligned, table, trials.label_sets(activity, aligned, table)[0]


def texts(fig):
    legends = [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]
    return [text.get_text() for text in legends[0].get_texts()]


def test_decoding_has_a_panel_per_label_and_a_line_per_state(recorded, tmp_path):
    activity, aligned, table, labels = recorded
    results = decoding.decode_states(pca_analysis.states(activity), aligned.rows, labels, table["episode"], shuffles=9)
    fig = state_figures.decoding_figure(results, aligned.time, aligned.marks(), title="a task")
    panels = [ax for ax in fig.axes if ax.lines]
    used = {name: max(results["M"][name].n) for name in results["M"]}
    names = ["stimulus", "evidence", "choice", "choice given stimulus", "stimulus given choice"]
    titles = [f"{name} (2 classes, n = {used[name]} trials)" for name in names]
    assert [ax.get_title(loc="left") for ax in panels] == titles
    assert used["stimulus"] == used["choice"] == 200 and used["choice given stimulus"] < 100
    assert "from M" in texts(fig) and "95 % of 9 shuffles" in texts(fig)
    assert panels[0].get_xlabel().endswith("(ms)") and panels[0].get_ylabel() == "balanced accuracy"
    line = next(line for line in panels[2].lines if line.get_label() == "from M")
    np.testing.assert_array_equal(line.get_ydata(), results["M"]["choice"].accuracy)
    np.testing.assert_array_equal(line.get_xdata(), aligned.time + 50)  # the middle of each step
    assert to_hex(line.get_color()) == visualize.STATE_COLOURS["M"].lower()
    visualize.save_figure(fig, tmp_path / "a.png")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_no_place_of_the_decoding_figure_is_empty(recorded, count, tmp_path):
    activity, aligned, table, labels = recorded
    some = {f"label {index}": labels["stimulus"] for index in range(count)}
    results = decoding.decode_states({"h": activity["hidden"]}, aligned.rows, some, table["episode"], shuffles=3)
    fig = state_figures.decoding_figure(results, aligned.time, aligned.marks())
    assert all(ax.lines or ax.get_legend() for ax in fig.axes)
    assert len(fig.legends) + sum(ax.get_legend() is not None for ax in fig.axes) == 1
    assert texts(fig) == ["95 % of 3 shuffles", "best step of 95 % of shuffles", "from h", "coloured: 95 % interval"]
    visualize.save_figure(fig, tmp_path / "a.png")


def test_decoding_across_time_has_a_panel_per_state_and_a_line_around_what_beats_chance(tmp_path):
    accuracy = np.array([[0.5, 0.5, 0.5], [0.5, 0.9, 0.9], [0.5, 0.9, 0.95]])
    result = decoding.CrossTemporal(np.array([0, 2, 4]), accuracy, 0.66, 80, np.array([1, 2]))
    marks = {"fixation": 0.0, "stimulus": 200.0}
    time = np.arange(5) * 100.0
    fig = state_figures.cross_temporal_figure({"M": result, "h": result}, time, marks, label="stimulus", title="a task")
    visualize.save_figure(fig, tmp_path / "a.png")
    for ax, state in zip(fig.axes[:2], ("M", "h"), strict=True):
        assert ax.get_title(loc="left") == f"stimulus from {state} (n = 80 trials)\nchance stays below 0.66"
        mesh, line = ax.collections
        assert mesh.get_clim() == (0.5, 1) and mesh.get_array().shape == (3, 3)
        vertices = line.get_paths()[0].vertices  # between the first and the second column, at 0.16 of 0.4
        assert vertices.min() == pytest.approx(80)
        title = fig._suptitle.get_window_extent()
        assert ax.title.get_window_extent().y1 <= title.y0 and ax.xaxis.label.get_window_extent().y0 >= 0
    single = result._replace(columns=np.array([0]), accuracy=accuracy[:1, :1])
    one = state_figures.cross_temporal_figure({"h": single}, time[:1], {"trial": 0.0}, label="choice", unit="steps")
    visualize.save_figure(one, tmp_path / "b.png")


def test_decoding_across_conditions_has_a_panel_per_label_and_two_points_per_state_and_period(tmp_path):
    part = Estimate(np.array([0.9, 0.8]), np.array([0.85, 0.7]), np.array([0.95, 0.9]), np.array([200, 200]))
    result = decoding.AcrossConditions(part, part, (0.56, 0.57))
    results = {"stimulus across context": {"M": result, "h": result}, "context across stimulus": {"M": result}}
    fig = state_figures.cross_condition_figure(results, ["stimulus", "decision"], title="a task")
    visualize.save_figure(fig, tmp_path / "a.png")
    assert [ax.get_title(loc="left") for ax in fig.axes] == [f"{label} (n = 200 trials)" for label in results]
    assert [len(ax.containers) for ax in fig.axes] == [4, 2]
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["end of\nstimulus", "end of\ndecision"]


def test_similarity_has_a_matrix_per_measure_and_crosses_below_the_limit(tmp_path):
    value, limit = np.array([[0.9, 0.3], [0.3, 0.9]]), np.full((2, 2), 0.5)
    panels = {f"{name} of h\n{'task' * 20}\n6 conditions": (["a", "b"], value, limit) for name in ("CKA", "Procrustes")}
    fig = state_figures.similarity_figure(panels, title="two runs")
    visualize.save_figure(fig, tmp_path / "a.png")
    for ax in fig.axes[:2]:
        assert ax.lines[0].get_xydata().tolist() == [[1, 0], [0, 1]]  # the pair, not the runs with themselves
        assert ax.title.get_window_extent().x1 <= fig.bbox.x1 and len(ax.texts) == 4


def test_decoding_of_one_label_at_one_step_is_still_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    states = {"h": rng.standard_normal((40, 3))}
    labels = {"side": np.arange(40) % 2}
    results = decoding.decode_states(states, np.arange(40)[:, None], labels, np.arange(40), shuffles=3)
    fig = state_figures.decoding_figure(results, np.array([0.0]), {"trial": 0.0}, unit="steps")
    visualize.save_figure(fig, tmp_path / "a.png")


def test_the_demixed_page_shows_shares_chance_and_a_line_per_condition(recorded, tmp_path):
    activity, aligned, table, labels = recorded
    factors = {"stimulus": labels["stimulus"], "choice": table["choice"]}
    result = demixed.demixed(pca_analysis.fit_pca(activity["state_M"]).projected, aligned.rows, factors, shuffles=5)
    both = {"M": result, "h": "not available: h was not recorded"}
    fig = state_figures.demixed_figure(both, aligned.time, aligned.marks(), title="a task")
    bars, along_stimulus = fig.axes[:2]
    np.testing.assert_allclose([bar.get_width() / 100 for bar in bars.patches], list(result.shares.values()))
    assert "(%)" in bars.get_xlabel() and along_stimulus.get_title(loc="left") == "along stimulus"
    assert f"stimulus 1, choice 1 (n = {result.n[0]} trials)" in texts(fig)
    assert fig.axes[3].texts[0].get_text() == "not available: h was not recorded"
    visualize.save_figure(fig, tmp_path / "a.png")
    nothing = {"M": "not available: the choice is the same", "h": "not available: the choice is the same"}
    visualize.save_figure(state_figures.demixed_figure(nothing, aligned.time, {}), tmp_path / "b.png")


@pytest.mark.parametrize("rule", ["associative", "oja"])
def test_fixed_points_are_counted_by_stability(tmp_path, rule):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(20, 4)), rng.normal(size=4)
    points = fixed_points.mpn_fixed_points(weight, None, 0.7, 0.88, x, rule=rule)
    fig = state_figures.fixed_points_figure(points, dt=100.0, unit="ms", title="delay")
    gains, roots, plane, times = fig.axes
    stable = int(points.stable.sum())
    title = f"{stable} stable (filled) and {len(points.h) - stable} unstable fixed points (open)"
    assert roots.get_title(loc="left") == title and not any(ax.get_legend() for ax in fig.axes)
    assert f"{(points.per_unit() > 1).sum()} of 20 units" in gains.get_title(loc="left")
    assert times.get_xlabel() == "slowest relaxation time (ms)"
    assert sum(patch.get_height() for patch in times.patches) == stable
    visualize.save_figure(fig, tmp_path / "a.png")


def test_fixed_points_that_are_missing_or_never_stable_leave_a_sentence(tmp_path):
    fig = state_figures.fixed_points_figure("not available: the core has no M")
    assert fig.axes[0].texts[0].get_text() == "not available: the core has no M"
    points = fixed_points.mpn_fixed_points(np.eye(2) * 9, None, 2.0, 0.5, np.ones(2), activation="linear")
    assert not points.stable.any()
    visualize.save_figure(state_figures.fixed_points_figure(points), tmp_path / "a.png")


def test_maps_that_vary_are_drawn_and_the_others_written():
    maps = {"W": np.array([[1.0, -2.0], [0.5, 0.0]]), "eta": np.array([[0.7]]), "lambda": np.full((2, 1), 0.9)}
    fig = state_figures.weights_figure(maps, title="mpn")
    image = fig.axes[0].images[0]
    assert image.norm.vmin == -2 and image.norm.vmax == 2  # both signs: white is zero
    assert fig.get_suptitle() == "mpn\nfor all synapses eta = 0.7, lambda = 0.9"
    gru = state_figures.weights_figure({"W recurrent": np.arange(48.0).reshape(12, 4)}, gates=("r", "z", "n")).axes[0]
    assert [label.get_text() for label in gru.get_yticklabels()] == ["r", "z", "n"]
    assert gru.get_yticks().tolist() == [1.5, 5.5, 9.5]  # the middles of rows 0 to 3, 4 to 7, 8 to 11
    assert gru.get_xlabel() == "hidden unit of the step before"
    per_unit = state_figures.weights_figure({"eta": np.array([[0.1], [0.2]])})
    assert per_unit.axes[0].images[0].get_array().shape == (2, 1)
    assert "not available" in state_figures.weights_figure({"eta": np.array([[1.0]])}).axes[0].texts[0].get_text()


def test_snapshots_show_each_label_at_each_period_end_and_their_difference(recorded, tmp_path):
    activity, aligned, _, labels = recorded
    snapshots = trials.at_period_ends(activity["state_M"], aligned, labels["stimulus"])
    fig = state_figures.snapshots_figure(snapshots, title="M")
    assert [fig.axes[k].get_title(loc="left") for k in range(4)] == [f"end of {name}" for name in aligned.onsets]
    shown = fig.axes[8 + 3].images[0].get_array()  # the third line's fourth panel: the difference at the decision
    np.testing.assert_allclose(shown, snapshots["decision"]["2"] - snapshots["decision"]["1"])
    visualize.save_figure(fig, tmp_path / "a.png")


def test_a_snapshot_without_trials_leaves_a_sentence():
    fig = state_figures.snapshots_figure(
        {"delay": {"a": np.ones((2, 2)), "b": np.zeros((2, 2))}, "go": {"a": np.eye(2)}}
    )
    assert sum("not available" in text.get_text() for ax in fig.axes for text in ax.texts) == 2


def test_readout_bars_are_cosines_and_the_legend_states_their_share():
    readout, components = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]), np.eye(3)[:2]
    projection = pca_analysis.project_readout(readout, components)
    np.testing.assert_allclose(projection.cosines, [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(projection.inside, [1, 0])
    _, ax = visualize.new_figure()
    state_figures.plot_readout(projection, ax)
    assert [bar.get_height() for bar in ax.containers[0]] == pytest.approx([0.6, 0.8])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["action 0 (100 % in 2 components)", "action 1 (0 % in 2 components)"]
