"""Claims about the pictures: what is drawn, labelled and left untouched; and the videos' frames and files."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

import visualize
from mpn_rl.analysis.figures import video
from mpn_rl.options import ConfigError

RNG = np.random.default_rng(0)


def labels(ax):
    """The texts of an axes' legend."""
    return [text.get_text() for text in ax.get_legend().get_texts()]


def recording(steps=24, channels=3, actions=3, **without):
    """An episode of trials of eight steps, the decision on each eighth."""
    step = np.arange(steps)
    arrays = {
        "observations": RNG.standard_normal((steps, channels)).astype(np.float32),
        "actions": np.where(step % 8 == 7, 1 + step // 8 % 2, 0),
        "rewards": (step % 8 == 7).astype(np.float32),
        "q_values": RNG.standard_normal((steps, actions)).astype(np.float32),
        "episode": 0 * step,
        "step": step,
        "trial": step // 8,
        "new_trial": step % 8 == 7,
        "ground_truth": np.where(step % 8 == 7, 1, 0),
        "period": np.array(["fixation", "stimulus", "stimulus", "stimulus", "delay", "delay", "delay", "decision"])[
            step % 8
        ],
        "hidden": RNG.standard_normal((steps, 12)).astype(np.float32),
        "state_M": RNG.standard_normal((steps, 12, 5)).astype(np.float16),
        "dt_ms": np.array(100.0),
    }
    return {name: array for name, array in arrays.items() if name not in without}


# --- style and files ----------------------------------------------------------------------------------------


def test_neither_module_loads_pyplot_or_torch():
    code = "import sys, visualize, pca_analysis; sys.exit(bool({'matplotlib.pyplot', 'torch'} & set(sys.modules)))"
    folder = Path(visualize.__file__).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0


def test_drawing_changes_nothing_global():
    before = dict(mpl.rcParams)
    fig, ax = visualize.new_figure()
    visualize.plot_pca_variance({"h": ([0.8, 0.2], 1.5)}, ax)
    next(video.neurogym_frames(recording()))
    assert dict(mpl.rcParams) == before


def test_every_core_has_a_colour_of_its_own():
    cores = ("mpn", "mpn-frozen", "mpn-recurrent", "lstm", "gru", "rnn", "mlp", "guessing", "ideal")
    assert len({to_rgba(visualize.MODEL_COLOURS[core]) for core in cores}) == len(cores)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_saved_by_suffix_with_no_temporary_left(tmp_path, suffix):
    fig, _ = visualize.new_figure(2, 2)
    path = visualize.save_figure(fig, tmp_path / f"a.{suffix}")
    assert path.stat().st_size > 500 and list(tmp_path.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_temporary(tmp_path):
    (tmp_path / "a.png").write_text("old")
    fig, ax = visualize.new_figure(2, 2)
    ax.set_title("$\\frac$", parse_math=True)  # matplotlib fails on this only when it draws
    with pytest.raises(ValueError):
        visualize.save_figure(fig, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_unknown_picture_format_or_folder_is_refused(tmp_path):
    fig, _ = visualize.new_figure(2, 2)
    with pytest.raises(ConfigError, match=r"'a.xyz'.*\.png"):
        visualize.save_figure(fig, tmp_path / "a.xyz")
    with pytest.raises(ConfigError, match="no folder"):
        visualize.save_figure(fig, tmp_path / "none" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_page_title_is_wrapped_to_the_page():
    fig, _ = visualize.new_figure(3, 3)
    visualize.page_title(fig, "short", "a long line that does not fit on a page of three inches", None)
    lines = fig.get_suptitle().splitlines()
    assert lines[0] == "short" and len(lines) > 2 and max(map(len, lines)) <= 36


# --- learning -----------------------------------------------------------------------------------------------


def test_rolling_mean_skips_what_is_unknown():
    np.testing.assert_allclose(visualize.rolling_mean([1, None, 3, np.nan, 8], 2), [1, 1, 3, 3, 8])
    assert np.isnan(visualize.rolling_mean([None, 2.0], 3)[0])


def history(n=60, accuracy=True):
    step = np.arange(1, n + 1) * 100
    known = [None if index < 2 else 0.5 + index / 200 for index in range(n)] if accuracy else [None] * n
    return {"step": step, "episode": range(n), "reward": np.sin(step), "length": [100] * n, "accuracy": known,
            "loss": [np.nan] * 5 + [0.1] * (n - 5), "epsilon": np.linspace(1, 0.05, n)}  # fmt: skip


def evaluations(accuracy=True):
    rows = [(1000, 1.0, 0.6), (2000, 3.0, 0.8), (3000, 2.0, 0.9)]
    return [{"step": s, "return_mean": r, "accuracy": a if accuracy else None} for s, r, a in rows]


def test_training_curves_have_four_labelled_panels_with_the_best_evaluation_marked():
    fig = visualize.plot_training_curves(history(), evaluations(), references={"guessing": 0.5, "ideal": 0.9})
    assert [ax.get_ylabel() for ax in fig.axes] == ["return per episode", "decision accuracy", "TD loss", "epsilon"]
    assert all(ax.get_xlabel() == "environment steps" for ax in fig.axes)
    assert labels(fig.axes[0]) == ["mean of 5 episodes", "greedy evaluation", "best: 3"]
    assert labels(fig.axes[1])[-1] == "best: 0.8"  # the same checkpoint in both panels
    assert {text.get_text() for text in fig.axes[1].texts} == {"guessing", "ideal"}
    raw, mean = fig.axes[0].lines[:2]
    np.testing.assert_allclose(raw.get_ydata(), history()["reward"], atol=1e-12)
    assert raw.get_linewidth() < mean.get_linewidth()


def test_the_legends_of_learning_curves_lie_above_the_axes(tmp_path):
    fig = visualize.plot_training_curves(history(), evaluations())
    visualize.save_figure(fig, tmp_path / "a.png")
    for ax in fig.axes[:3]:
        assert ax.get_legend().get_window_extent().y0 > ax.get_window_extent().y1 - 3  # pixels


def test_a_run_that_has_not_learned_yet_has_no_loss_panel(tmp_path):
    empty = {name: [] for name in ("step", "reward", "loss", "epsilon")}
    fig = visualize.plot_training_curves(empty, evaluations(accuracy=False))
    assert [ax.get_ylabel() for ax in fig.axes] == ["return per episode"]
    assert labels(fig.axes[0]) == ["greedy evaluation", "best: 3"]
    visualize.save_figure(fig, tmp_path / "a.png")


def test_a_best_return_below_zero_beats_an_unknown_one():
    rows = [{"step": 1000, "return_mean": None, "accuracy": None}, {"step": 2000, "return_mean": -1210.4}]
    fig = visualize.plot_training_curves(history(), rows)
    assert labels(fig.axes[0])[-1] == "best: -1210"


def test_the_chosen_checkpoint_is_marked_where_it_is_given():
    fig = visualize.plot_training_curves(history(), evaluations(), best_step=3000)
    assert labels(fig.axes[1])[-1] == "best: 0.9"


def test_a_task_without_accuracy_has_no_accuracy_panel(tmp_path):
    fig = visualize.plot_training_curves(history(accuracy=False), evaluations(accuracy=False))
    assert [ax.get_ylabel() for ax in fig.axes] == ["return per episode", "TD loss", "epsilon"]
    visualize.save_figure(fig, tmp_path / "a.png")


def test_a_supervised_run_has_neither_rewards_nor_exploration():
    fig = visualize.plot_training_curves({**history(), "reward": [None] * 60}, evaluations())
    assert [ax.get_ylabel() for ax in fig.axes] == ["return per episode", "decision accuracy", "loss"]
    assert labels(fig.axes[0])[-1] == "best: 3"  # that of the evaluations


@pytest.mark.parametrize("accuracy", [False, True])
def test_a_learner_without_exploration_has_no_empty_panel(tmp_path, accuracy):
    known = {name: values for name, values in history(accuracy=accuracy).items() if name != "epsilon"}
    fig = visualize.plot_training_curves(known, evaluations(accuracy=accuracy))
    names = ["return per episode", *(["decision accuracy"] if accuracy else []), "loss"]
    assert [ax.get_ylabel().removeprefix("TD ") for ax in fig.axes] == names
    visualize.save_figure(fig, tmp_path / "a.png")


@pytest.mark.parametrize("n", [0, 1])
def test_a_run_of_hardly_an_episode_still_has_its_picture(tmp_path, n):
    short = {name: list(values)[:n] for name, values in history().items()}
    visualize.save_figure(visualize.plot_training_curves(short, []), tmp_path / "a.png")


def test_learning_comparison_draws_every_seed_and_the_mean_and_states_n():
    _, ax = visualize.new_figure()
    seeds = [([0, 100, 200], [0.0, 1.0, 2.0]), ([0, 200], [2.0, 4.0])]
    visualize.plot_learning_comparison({"mpn": seeds, "mpn-frozen": seeds[:1]}, ax, references={"ideal": 3.0})
    assert labels(ax) == ["MPN (n = 2)", "frozen MPN (n = 1)"]
    thin, other, mean = ax.lines[:3]
    assert thin.get_linewidth() == other.get_linewidth() < mean.get_linewidth()
    np.testing.assert_allclose(mean.get_ydata(), [1, 2, 3])  # the second seed, interpolated, is 2, 3, 4
    assert mean.get_color() == visualize.MODEL_COLOURS["mpn"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("environment steps", "greedy accuracy")


# --- principal components -----------------------------------------------------------------------------------


def test_pca_variance_is_cumulative_with_participation_ratios_in_the_legend():
    fig = visualize.pca_variance_figure({"h": ([0.5, 0.25, 0.25], 2.67), "M": ([0.9, 0.1], 1.22)})
    bars, curve = fig.axes
    assert [bar.get_height() for bar in bars.patches] == [50, 25, 25, 90, 10]
    np.testing.assert_allclose(curve.lines[0].get_ydata(), [50, 75, 100])
    assert labels(curve) == ["h (participation ratio 2.7)", "M (participation ratio 1.2)"]
    assert curve.get_ylabel() == "cumulative variance explained (%)"


def trajectories(values, categorical, dims=3, **options):
    """A page of three trials of four steps."""
    trials = list(np.arange(12).reshape(3, 4))
    projected = RNG.standard_normal((12, dims))
    means = np.stack([projected[trial] for trial in trials])
    return visualize.trajectory_figure(
        projected, np.array([0.34, 0.2, 0.1])[:dims], trials, np.tile([0.0, 100, 200, 300], 3), np.asarray(values),
        categorical=categorical, label="side", means=means, marks={"stimulus": 1, "decision": 3}, **options,
    )  # fmt: skip


def test_trajectory_axes_carry_units_and_shares_of_variance(tmp_path):
    fig = trajectories(np.repeat(["left", "right", "left"], 4), True, mean_labels=np.array(["left", "right", "left"]))
    over_time, lower, plane, solid, key = fig.axes
    assert lower.get_xlabel() == "time in trial (ms)" and over_time.get_ylabel() == "PC1"
    assert plane.get_xlabel() == "PC1 (34 % of variance)" and plane.get_ylabel() == "PC2 (20 % of variance)"
    assert solid.name == "3d" and solid.get_zlabel() == "PC3 (10 % of variance)"
    assert labels(key) == ["left", "right"] and key.get_legend().get_title().get_text() == "side"
    assert labels(plane) == ["stimulus", "decision"]
    visualize.save_figure(fig, tmp_path / "a.png")


def test_categories_have_a_colour_each_and_means_are_thick():
    fig = trajectories(np.repeat([1, 2, 1], 4), True, mean_labels=np.array([1, 2, 1]))
    plane = fig.axes[2]
    (thin,) = plane.collections
    assert len(thin.get_segments()) == 9  # three trials of three pieces each
    first, second = (to_rgba(colour) for colour in visualize.OTHER_COLOURS[:2])
    np.testing.assert_allclose(thin.get_colors()[[0, 3, 6], :3], [first[:3], second[:3], first[:3]])
    means = [line for line in plane.lines if line.get_linewidth() == 2.2]
    np.testing.assert_allclose([to_rgba(line.get_color()) for line in means[:2]], [first, second])
    assert means[0].get_linewidth() > 3 * thin.get_linewidth()[0]


def test_numbers_of_both_signs_get_a_diverging_map_centred_on_zero():
    both = visualize._Colouring(np.array([-1.0, 3.0, np.nan]), False)
    assert both.mappable.cmap is visualize.DIVERGING and both.mappable.get_clim() == (-3, 3)
    np.testing.assert_allclose(both(np.array([np.nan]))[0], to_rgba(visualize.UNKNOWN))
    one = visualize._Colouring(np.array([1, 3]), False)
    assert one.mappable.cmap is visualize.SEQUENTIAL and one.mappable.get_clim() == (1, 3)


def test_numbers_get_a_colour_bar_and_a_state_of_two_dimensions_no_3d_panel(tmp_path):
    fig = trajectories(np.linspace(-1, 1, 12), False, dims=2)
    assert [ax.name for ax in fig.axes] == ["rectilinear"] * 4 and fig.axes[-1].get_ylabel() == "side"
    visualize.save_figure(fig, tmp_path / "a.png")


def test_unknown_values_constant_data_and_trials_of_one_step_are_drawn(tmp_path):
    trials = [np.array([0]), np.array([1, 2])]
    fig = visualize.trajectory_figure(
        np.zeros((3, 3)), np.zeros(3), trials, np.array([0.0, 0, 1]), np.full(3, np.nan), categorical=False, label="x"
    )
    visualize.save_figure(fig, tmp_path / "a.png")


def test_one_dimension_has_no_trajectory():
    with pytest.raises(ConfigError, match="two principal components"):
        trajectories(np.arange(12.0), False, dims=1)


# --- video --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "without",
    [(), ("state_M",), ("period", "ground_truth", "dt_ms"), ("state_M", "period")],
)
def test_neurogym_frames_are_even_rgb_and_differ_whatever_is_recorded(without):
    frames = list(video.neurogym_frames(recording(**dict.fromkeys(without))))
    assert len(frames) == 24
    assert all(frame.shape == (600, 960, 3) and frame.dtype == np.uint8 for frame in frames)
    assert all((one != other).any() for one, other in pairwise(frames))


def test_an_episode_longer_than_the_window_turns_the_page():
    frames = list(video.neurogym_frames(recording(steps=40), window=16))
    assert len(frames) == 40
    tick_labels = np.s_[555:575, 90:580]
    assert (frames[15][tick_labels] == frames[0][tick_labels]).all()
    assert (frames[16][tick_labels] != frames[15][tick_labels]).any()


def test_frames_show_the_arrays_that_they_were_given():
    data = recording()
    changed = {**data, "q_values": data["q_values"] + np.linspace(0, 1, 24)[:, None]}
    other = list(video.neurogym_frames(changed))
    assert all((a != b).any() for a, b in zip(video.neurogym_frames(data), other, strict=True))


@pytest.mark.parametrize("output", ["q_values", "action_probabilities"])
def test_the_bars_are_named_after_what_the_agent_chose_by(output):
    data = recording(q_values=None)
    film, ax = video._Film(300, 300), visualize.new_figure()[1]
    video._output_panel(film, ax, {**data, output: RNG.random((24, 3))}, ["wait", "left", "go a bit right"])
    assert ax.get_title() == {"q_values": "Q-values", "action_probabilities": "action probabilities"}[output] + (
        "\n(blue: chosen action)"
    )
    assert [text.get_text() for text in ax.get_xticklabels()] == ["wait", "left", "go a bit\nright"]


def test_an_early_action_without_a_penalty_is_not_wrong():
    """Trials of eight steps, the right action is 0 before the decision; the third trial decides wrongly."""
    actions = np.zeros(24, int)
    actions[[3, 7, 9, 15, 20, 23]] = 1, 1, 1, 1, 2, 2
    rewards = np.zeros(24)
    rewards[9] = -0.1  # the second early action is punished
    data = {**recording(), "actions": actions, "rewards": rewards}
    wrong = actions != data["ground_truth"]
    assert np.flatnonzero(wrong).tolist() == [3, 9, 20, 23]
    assert np.flatnonzero(video._early(data, wrong)).tolist() == [3, 20]
    for steps in (5, 21):  # the last trial is cut off before its decision
        cut = {**{key: value[:steps] for key, value in data.items() if np.ndim(value)}, "dt_ms": 100.0}
        early = [step for step in (3, 20) if step < steps]
        assert np.flatnonzero(video._early(cut, wrong[:steps])).tolist() == early
    ax = visualize.new_figure()[1]
    video._action_panel(video._Film(300, 300), ax, data, np.arange(24.0), ["wait", "left", "right"])
    assert labels(ax) == ["correct", "right", "early", "wrong"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["wait", "left", "right"]


def test_a_wrong_choice_before_the_last_period_is_not_early():
    """Trials of DawTwoStep-v0: the choice is scored, and the outcome follows."""
    data = {
        "period": np.array(["choice", "outcome"] * 3),
        "new_trial": np.array([False, True] * 3),
        "ground_truth": np.array([1, 0, 1, 0, 1, 0]),
        "rewards": np.zeros(6),
    }
    wrong = np.array([2, 0, 1, 0, 2, 0]) != data["ground_truth"]
    assert not video._early(data, wrong).any()


def test_many_channels_and_actions_and_a_zero_modulation_fit_on_the_page():
    data = {**recording(steps=3, channels=41, actions=33), "state_M": np.zeros((3, 12, 5))}
    assert len(list(video.neurogym_frames(data, [f"a rather long channel name {i}" for i in range(41)]))) == 3


def test_a_large_modulation_has_a_frame_for_every_step():
    data = {**recording(steps=40), "state_M": RNG.standard_normal((40, 128, 33)).astype(np.float16)}
    assert sum(1 for _ in video.neurogym_frames(data)) == 40


def test_action_vectors_are_filmed_with_and_without_pictures():
    vectors = RNG.uniform(-1.0, 1.0, (24, 3))
    pictures = RNG.integers(0, 255, (24, 20, 30, 3), dtype=np.uint8)
    assert len(list(video.gym_frames({"frames": pictures, "actions": vectors, "rewards": np.ones(24)}))) == 24
    data = {**recording(), "actions": vectors}
    frames = list(video.neurogym_frames(data))
    other = list(video.neurogym_frames({**data, "actions": -vectors}))
    assert all((a != b).any() for a, b in zip(frames, other, strict=True))


@pytest.mark.parametrize("size", [(400, 600), (211, 161), (64, 64)])
def test_gym_frames_have_even_size_and_hold_the_rendered_picture(size):
    pictures = np.zeros((3, *size, 3), dtype=np.uint8)
    pictures[:, :, :] = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]])[:, None, None]
    episode = {"frames": pictures, "q_values": RNG.standard_normal((3, 2)), "actions": np.array([0, 1, 0])}
    frames = list(video.gym_frames({**episode, "rewards": np.ones(3)}))
    assert all(frame.shape[0] % 2 == frame.shape[1] % 2 == 0 and frame.dtype == np.uint8 for frame in frames)
    assert [frame[200, 20].tolist() for frame in frames] == [[0, 0, 0], [255, 0, 0], [0, 255, 0]]


def moving_squares(n=6, size=(40, 60)):
    frames = np.full((n, *size, 3), 255, dtype=np.uint8)
    for index in range(n):
        frames[index, 10:20, 5 * index : 5 * index + 10] = (200, 30, 30)
    return frames


def test_gif_has_every_frame_at_its_speed_and_leaves_no_temporary(tmp_path):
    path = video.write_video(tmp_path / "a.gif", iter(moving_squares()), fps=20)
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (6, (60, 40), 50)
        image.seek(3)
        assert image.convert("RGB").getpixel((20, 15)) == (200, 30, 30)
    assert list(tmp_path.iterdir()) == [path]


# imageio-ffmpeg's reader leaves its pipes to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mp4_has_every_frame_and_leaves_no_temporary(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = video.write_video(tmp_path / "a.mp4", moving_squares(), fps=10)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(40, 60, 3) for frame in reader]
    assert tuple(meta["size"]) == (60, 40) and meta["fps"] == 10 and len(frames) == 6
    assert abs(frames[3][15, 20].astype(int) - (200, 30, 30)).max() < 40
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("script", ["head -c 9 > /dev/null; exit 3", "cat > /dev/null; exit 3"])
def test_a_film_that_ffmpeg_did_not_finish_is_not_there(script, tmp_path, monkeypatch):
    """ffmpeg ends early, or fails at the end, as on a full disk; an older film stays as it was."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    broken = tmp_path / "ffmpeg"
    broken.write_text(f'#!/bin/sh\nfor path; do :; done\necho part > "$path"\necho no space >&2\n{script}\n')
    broken.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(broken))
    (tmp_path / "a.mp4").write_text("older")
    with pytest.raises(ConfigError, match=r"ffmpeg cannot write the film \(status 3: no space\)"):
        video.write_video(tmp_path / "a.mp4", moving_squares())
    assert (tmp_path / "a.mp4").read_text() == "older"
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "ffmpeg"}


def test_mp4_without_its_extra_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"\[video\]"):
        video.write_video(tmp_path / "a.mp4", moving_squares())
    assert list(tmp_path.iterdir()) == []


def test_a_bad_video_request_is_refused_before_anything_is_written(tmp_path):
    for name, frames, fps, message in [
        ("a.avi", moving_squares(), 10, "gif or .mp4"),
        ("a", moving_squares(), 10, "gif or .mp4"),
        ("a.gif", [], 10, "no frames"),
        ("a.gif", moving_squares(), 0, "fps"),
        ("none/a.gif", moving_squares(), 10, "no folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            video.write_video(tmp_path / name, frames, fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_an_episode_that_fails_midway_leaves_the_old_video_untouched(tmp_path, suffix):
    pytest.importorskip("imageio_ffmpeg")

    def failing():
        yield from moving_squares()[:2]
        raise RuntimeError("the environment broke")

    path = tmp_path / f"a.{suffix}"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="environment broke"):
        video.write_video(path, failing())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
