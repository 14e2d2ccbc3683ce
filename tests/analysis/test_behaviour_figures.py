"""Claims about pictures of behaviour and comparisons: the drawn values, the legend, missing data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from recordings import make_recording

import visualize
from mpn_rl.analysis import behaviour, confidence_intervals, trials
from mpn_rl.analysis.confidence_intervals import Estimate, proportion
from mpn_rl.analysis.figures import behaviour_figures


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture(scope="module")
def measured():
    activity = make_recording()
    found = trials.complete_trials(activity)
    table = trials.trial_table(activity, found)
    fit, label = behaviour.psychometric_of(table, resamples=5)
    groups, rates = behaviour.accuracy_by_condition(table), behaviour.rates(activity, found, table)
    return fit, label, groups, rates, behaviour.confusion(table)


def test_the_behaviour_page_states_n_and_units_everywhere(measured, tmp_path):
    fit, label, groups, rates, confusion = measured
    fig = behaviour_figures.behaviour_figure(fit, groups, rates, confusion, label=label, title="task, mpn")
    curve, scores, shares, counts = fig.axes
    assert curve.get_xlabel() == "signed coherence (%)" and "measured (n = 200 trials)" in legend(curve)
    assert "threshold" in curve.get_title(loc="left") and "[" in curve.get_title(loc="left")
    assert scores.get_yticklabels()[0].get_text() == "all trials  (200)"
    assert "95 % interval" in scores.get_xlabel() and "95 % interval" in shares.get_xlabel()
    assert "acting in stimulus  (800)" in [text.get_text() for text in shares.get_yticklabels()]
    assert {text.get_text() for text in counts.texts} == {str(n) for n in confusion.counts.ravel()}
    assert visualize.save_figure(fig, tmp_path / "a.png").stat().st_size > 10_000


def test_the_curve_its_band_and_the_points_are_those_of_the_fit(measured):
    fit = measured[0]
    _, ax = visualize.new_figure()
    behaviour_figures.plot_psychometric(fit, ax, label="coherence")
    curve = next(line for line in ax.lines if len(line.get_xdata()) == 200)
    np.testing.assert_array_equal(curve.get_ydata(), fit.curve)
    points = ax.containers[0].lines[0]
    np.testing.assert_array_equal(points.get_xydata(), np.stack([fit.levels, fit.measured.value], axis=1))
    ends = np.array([segment[:, 1] for segment in ax.containers[0].lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([fit.measured.low, fit.measured.high], axis=1), atol=1e-12)


def test_a_missing_measure_leaves_its_sentence_in_its_panel(tmp_path):
    sentence = "not available: the task has no coherence"
    fig = behaviour_figures.behaviour_figure(sentence, sentence, sentence, sentence, title="a task")
    for ax in fig.axes:
        assert ax.texts[0].get_text().replace("\n", " ") == sentence
    visualize.save_figure(fig, tmp_path / "a.svg")


def test_bands_hold_the_intervals_and_the_legend_counts(tmp_path):
    fig, ax = visualize.new_figure()
    series = {
        "mpn": ([100, 200, 400], proportion([90, 80, 60], 100)),
        "gru": ([100, 200], Estimate(np.array([0.5, 0.4]), np.full(2, np.nan), np.full(2, np.nan), 1)),
    }
    behaviour_figures.plot_bands(series, ax, of="seeds")
    assert legend(ax) == ["MPN (n = 100 seeds)", "GRU (n = 1 seed, no interval)"]
    assert to_hex(ax.lines[0].get_color()) == visualize.MODEL_COLOURS["mpn"].lower()
    edges = ax.collections[0].get_paths()[0].vertices
    assert edges[:, 1].min() == pytest.approx(proportion(60, 100).low)
    visualize.save_figure(fig, tmp_path / "a.png")


def test_periods_are_shaded_and_named_up_to_the_end():
    _, ax = visualize.new_figure()
    behaviour_figures.shade_periods(ax, {"fixation": 0.0, "stimulus": 100.0}, 300.0)
    assert [text.get_text() for text in ax.texts] == ["fixation", "stimulus"]
    assert ax.get_xlim() == (0, 300) and len(ax.patches) == 2


@pytest.mark.parametrize("seeds", [1, 5])
def test_comparisons_have_a_panel_per_measure_and_a_point_per_seed(tmp_path, seeds):
    rng = np.random.default_rng(0)
    measures = {name: {core: rng.random(seeds) for core in ("mpn", "gru")} for name in ("accuracy", "PR of h")}
    measures["accuracy"]["mpn-frozen"] = rng.random(seeds)
    rows, pairs = confidence_intervals.compare(measures)
    band = confidence_intervals.learning_band([([0, 1000], [0.5, 0.9]), ([0, 1000], [0.4, 0.8])])
    curves = {"a task": ("greedy accuracy", {"mpn": band}), "another": "not available: no evaluations were logged"}
    fig = behaviour_figures.comparison_page(rows, pairs, curves, title="cores")
    assert "95 % t interval" in fig.get_suptitle()
    learning, empty, scores, dimensions, better = [ax for ax in fig.axes if ax.get_xlabel() or ax.texts][:5]
    assert learning.get_xlabel() == "environment steps" and legend(learning) == ["MPN (n = 2 seeds)"]
    assert "no evaluations were logged" in empty.texts[0].get_text().replace("\n", " ")
    assert [scores.get_xlabel(), dimensions.get_xlabel()] == ["accuracy", "PR of h"]
    names = [text.get_text() for text in dimensions.get_yticklabels()]
    assert names == [f"MPN (n = {seeds})", f"GRU (n = {seeds})", "frozen MPN (none)"]
    assert len(scores.lines[0].get_xdata()) == seeds
    assert better.get_yticklabels()[0].get_text() == f"MPN > GRU (n = {2 * seeds})"
    visualize.save_figure(fig, tmp_path / "a.png")


def test_drawing_needs_no_pyplot_and_changes_nothing_global(measured):
    before = dict(mpl.rcParams)
    behaviour_figures.behaviour_figure(*measured[:1], *measured[2:])
    assert dict(mpl.rcParams) == before
    code = "import sys; from mpn_rl.analysis.figures import behaviour_figures, state_figures; "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    folder = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0


def test_an_axis_of_noise_from_zero_leaves_no_third_empty_and_names_its_line_outside(tmp_path):
    x = np.array([0.0, 0.1, 0.2, 0.5, 1.0, 2.0])
    y = Estimate(np.linspace(0.9, 0.5, 6), np.linspace(0.8, 0.4, 6), np.linspace(0.95, 0.6, 6), np.full(6, 100))
    fig = behaviour_figures.curve_figure(
        {"agent": (x, y)}, xlabel="noise", ylabel="accuracy", reference=(0.55, "chance"), log=True
    )
    visualize.save_figure(fig, tmp_path / "a.png")
    ax = fig.axes[0]
    first, second = ax.transAxes.inverted().transform(ax.transData.transform([(0.0, 0.5), (0.1, 0.5)]))[:, 0]
    assert 0 < first < 0.1 and second < 0.25
    (name,) = [text for text in ax.texts if text.get_text() == "chance"]
    assert name.get_window_extent().x0 >= ax.get_window_extent().x1


def test_the_legend_of_the_psychometric_curve_is_outside_its_axes(tmp_path):
    x = np.tile([-50.0, -15, -5, 5, 15, 50], 40)
    fit = behaviour.psychometric(x, (np.arange(240) * 7 % 100 < 50 + x).astype(float), resamples=9)
    fig, ax = visualize.new_figure()
    behaviour_figures.plot_psychometric(fit, ax, label="coherence (%)")
    assert " %" in ax.get_title(loc="left").split("threshold")[1]
    visualize.save_figure(fig, tmp_path / "a.png")
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1 - 1


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 3), (6, 2, 3)]
)
def test_panels_of_a_comparison_leave_no_third_empty(count, rows, columns):
    fig = mpl.figure.Figure()
    axes = behaviour_figures._panels(fig.subfigures(1, 1), count)
    assert len(axes) == count
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == (rows, columns)
