"""Every picture of the toolkit: learning curves, PCA, and the frames of videos.

matplotlib is imported only here, and only its object-oriented side: no pyplot, no global figure or style.
Functions `plot_x(arrays, ax) -> ax` draw into axes of the caller; `*_figure` and `plot_training_curves` lay
out a whole page. The caller saves the picture with `save_figure`, and its numbers beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap, Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from numpy.typing import ArrayLike
from PIL import Image

from config import ConfigError

# Okabe & Ito (2008): told apart with every common colour blindness.
MODEL_COLOURS = {
    "mpn": "#0072B2",
    "mpn-frozen": "#56B4E9",
    "lstm": "#D55E00",
    "gru": "#E69F00",
    "rnn": "#009E73",
    "mlp": "#CC79A7",
    "guessing": "#8C8C8C",
    "ideal": "#222222",
}
MODEL_NAMES = {"mpn-frozen": "frozen MPN"}  # the others by their capitals
STATE_COLOURS = {"h": "#E69F00", "M": "#0072B2", "c": "#009E73"}
OTHER_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#222222")
UNKNOWN = "#C8C8C8"
# For lines on white: the diverging map's middle is grey, and viridis ends before its pale yellow.
DIVERGING = LinearSegmentedColormap.from_list("evidence", ["#08457E", "#4A90C8", "#A6A6A6", "#EE9A4D", "#A63603"])
SEQUENTIAL = LinearSegmentedColormap.from_list("time", mpl.colormaps["viridis"](np.linspace(0, 0.92, 64)))
PERIOD_TINTS = ("#FFFFFF", "#E3EEF7", "#F3F3F3", "#FCEBDD", "#E6F2EC", "#F5E9F1", "#FBF5DC")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
}


def house_style() -> Any:
    """The style of all pictures, as a context or a decorator; whatever was set before comes back after it."""
    return mpl.rc_context(STYLE)


@house_style()
def new_figure(width: float = 6, height: float = 4, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure (inches) that arranges itself, and its axes: one, or an array of them as from `subplots`."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns)


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, of the same suffix, that becomes `path` once all is on the disk."""
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: no folder {path.parent}; make it or choose another path")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@house_style()
def save_figure(fig: Figure, path: str | Path) -> Path:
    """Write fig as its suffix says (png, svg, pdf), atomically. Raises ConfigError on another suffix."""
    path = Path(path)
    known = fig.canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ConfigError(f"cannot save a picture as {path.name!r}: use one of .{', .'.join(sorted(known))}")
    with _atomic(path) as temporary:
        fig.savefig(temporary)
    return path


# --- learning -----------------------------------------------------------------------------------------------


def rolling_mean(values: Sequence[float | None] | np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values that are known; nan where none is, (n,)."""
    values = np.array([np.nan if value is None else value for value in values], dtype=float)
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    start = np.maximum(np.arange(len(values)) + 1 - window, 0)
    count, total = count[1:] - count[start], total[1:] - total[start]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _reference_line(ax: Axes, name: str, value: float) -> None:
    ax.axhline(value, color=MODEL_COLOURS.get(name, "#666666"), lw=1, ls=(0, (4, 3)), zorder=1)
    ax.annotate(name, (1, value), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=7.5, color=MODEL_COLOURS.get(name, "#666666"))  # fmt: skip


@house_style()
def plot_noisy_curve(steps: ArrayLike, values: Any, ax: Axes, *, window: int, colour: str, label: str) -> Axes:
    """One noisy quantity: raw values thin and pale, their rolling mean thick."""
    ax.plot(steps, rolling_mean(values, 1), lw=0.6, alpha=0.3, color=colour)
    ax.plot(steps, rolling_mean(values, window), lw=2, color=colour, label=label)
    return ax


@house_style()
def plot_evaluations(evaluations: Sequence[Mapping[str, Any]], key: str, ax: Axes, *, best_step: int | None) -> Axes:
    """Greedy evaluations as open points; the one that made best_model.pt as a star with its value."""
    points = [(row["step"], row[key]) for row in evaluations if row.get(key) is not None]
    if points:
        ax.plot(*zip(*points, strict=True), "o-", color="#222222", mfc="white", ms=4, lw=0.9, clip_on=False,
                label="greedy evaluation")  # fmt: skip
    for step, value in points:
        if step == best_step:
            ax.plot(step, value, "*", ms=12, color=MODEL_COLOURS["lstm"], mec="white", zorder=5,
                    label=f"best: {value:.3g}")  # fmt: skip
    return ax


@house_style()
def plot_training_curves(
    history: Mapping[str, Sequence[Any]],
    evaluations: Sequence[Mapping[str, Any]] = (),
    fig: Figure | None = None,
    *,
    references: Mapping[str, float] | None = None,
    best_step: int | None = None,
    title: str | None = None,
) -> Figure:
    """How a run learned: return, accuracy (where the task has it), loss and epsilon over environment steps.

    Args:
        history: one entry per finished episode: step, reward, loss, epsilon, accuracy (None or nan: unknown).
        evaluations: greedy evaluations, {"step", "return_mean", "accuracy" or None}.
        fig: an empty figure; its size is set here.
        references: lines in the accuracy panel, {"guessing": 0.5, "ideal": 0.94}.
        best_step: the evaluation to mark; by default the one with the highest return_mean.
    """
    if best_step is None and evaluations:
        best_step = max(evaluations, key=lambda row: row["return_mean"])["step"]
    accuracy = rolling_mean(history.get("accuracy", []), 1)
    scored = np.isfinite(accuracy).any() or any(row.get("accuracy") is not None for row in evaluations)
    panels = ["reward", *(["accuracy"] if scored else []), "loss", "epsilon"]
    fig = fig or Figure()
    fig.set_layout_engine("constrained", wspace=0.04)
    fig.set_size_inches((8.8, 5.4) if scored else (10.5, 3.2))
    axes = dict(zip(panels, fig.subplots(2 if scored else 1, 2 if scored else 3).flat, strict=True))
    window = max(5, len(history["step"]) // 20)
    style: dict[str, Any] = {"window": window, "label": f"mean of {window} episodes"}
    plot_noisy_curve(history["step"], history["reward"], axes["reward"], colour=MODEL_COLOURS["mpn"], **style)
    plot_evaluations(evaluations, "return_mean", axes["reward"], best_step=best_step)
    plot_noisy_curve(history["step"], history["loss"], axes["loss"], colour=MODEL_COLOURS["rnn"], **style)
    epsilon = rolling_mean(history["epsilon"], 1)
    axes["epsilon"].plot(history["step"], epsilon, lw=2, color=MODEL_COLOURS["mlp"])
    axes["epsilon"].set_ylim(-0.02, 1.06 * max(0.1, *epsilon[np.isfinite(epsilon)], 0.1))
    if scored:
        if len(accuracy):
            colour = MODEL_COLOURS["mpn"]
            plot_noisy_curve(history["step"], accuracy, axes["accuracy"], colour=colour, **style)
        plot_evaluations(evaluations, "accuracy", axes["accuracy"], best_step=best_step)
        axes["accuracy"].set_ylim(-0.02, 1.04)
        for name, value in (references or {}).items():
            _reference_line(axes["accuracy"], name, value)
    last = max(1, *history["step"], *(row["step"] for row in evaluations), 1)
    labels = {"reward": "return per episode", "accuracy": "decision accuracy", "loss": "TD loss"}
    for name, ax in axes.items():
        ax.set(ylabel=labels.get(name, name), xlabel="environment steps", xlim=(0, last))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(thousands)
        if name != "epsilon":
            ax.legend(loc="upper right" if name == "loss" else "lower right")  # "best" is slow on long runs
    _page_title(fig, title)
    return fig


def _page_title(fig: Figure, title: str | None) -> None:
    if title:
        fig.suptitle(title, fontsize=11, x=0.01, ha="left")


def thousands(value: float, _position: float = 0) -> str:
    """A tick label: 150000 -> '150k'."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


@house_style()
def plot_learning_comparison(
    runs: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
    ax: Axes,
    *,
    ylabel: str = "greedy accuracy",
    references: Mapping[str, float] | None = None,
) -> Axes:
    """Learning curves of several cores: a thin line per seed, the mean over seeds thick; the legend states n.

    Args: runs: {core: [(steps, values), ...]}, one pair per seed. Seeds evaluated at other steps are
    interpolated, and the mean ends where the shortest run ends.
    """
    for index, (core, seeds) in enumerate(runs.items()):
        colour = MODEL_COLOURS.get(core, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        curves = [(np.asarray(steps, float), np.asarray(values, float)) for steps, values in seeds]
        for steps, values in curves:
            ax.plot(steps, values, lw=0.7, alpha=0.45, color=colour)
        grid = np.unique(np.concatenate([steps for steps, _ in curves]))
        grid = grid[grid >= max(steps[0] for steps, _ in curves)]
        grid = grid[grid <= min(steps[-1] for steps, _ in curves)]
        mean = np.mean([np.interp(grid, steps, values) for steps, values in curves], axis=0)
        name = MODEL_NAMES.get(core, core.upper())
        ax.plot(grid, mean, lw=2.4, color=colour, label=f"{name} (n = {len(curves)})")
    for name, value in (references or {}).items():
        _reference_line(ax, name, value)
    ax.set(xlabel="environment steps", ylabel=ylabel, xlim=(0, None))
    ax.xaxis.set_major_formatter(thousands)
    ax.legend(title="thick: mean, thin: single seeds", title_fontsize=8, alignment="left", ncols=3,
              loc="lower left", bbox_to_anchor=(-0.02, 1.0))  # fmt: skip
    return ax


# --- principal components -----------------------------------------------------------------------------------


@house_style()
def plot_pca_variance(spectra: Mapping[str, tuple[ArrayLike, float]], ax: Axes, shown: int = 20) -> Axes:
    """Cumulative variance explained per state, with participation ratios (PR) in the legend.

    Args: spectra: {"h": (explained variance ratios (k,), participation ratio), "M": ...}.
    """
    for index, (name, (ratios, participation)) in enumerate(spectra.items()):
        percent = 100 * np.cumsum(np.asarray(ratios)[:shown])
        colour = STATE_COLOURS.get(name, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        label = f"{name} (participation ratio {participation:.1f})"
        ax.plot(np.arange(1, len(percent) + 1), percent, "o-", ms=4, lw=1.6, color=colour, label=label)
    ax.axhline(90, color="#999999", lw=0.8, ls=(0, (4, 3)), zorder=1)
    ax.set(xlabel="principal components", ylabel="cumulative variance explained (%)", ylim=(0, 103))
    ax.set_xticks([1, *range(5, shown + 1, 5)])
    ax.legend(loc="lower right")
    return ax


@house_style()
def pca_variance_figure(
    spectra: Mapping[str, tuple[ArrayLike, float]], *, title: str | None = None, shown: int = 10
) -> Figure:
    """Variance of h and of M side by side: per component on the left, cumulative on the right."""
    fig, (left, right) = new_figure(8.4, 3.4, columns=2)
    width = 0.8 / len(spectra)
    for index, (name, (ratios, _)) in enumerate(spectra.items()):
        percent = 100 * np.asarray(ratios)[:shown]
        place = np.arange(1, len(percent) + 1) + (index - (len(spectra) - 1) / 2) * width
        colour = STATE_COLOURS.get(name, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        left.bar(place, percent, width * 0.92, color=colour, label=name)
    left.set(xlabel="principal component", ylabel="variance explained (%)")
    left.set_xticks(range(1, shown + 1))
    left.legend()
    plot_pca_variance(spectra, right)
    _page_title(fig, title)
    return fig


class _Colouring:
    """Colours for values: one per category, or a map for numbers, diverging where both signs occur."""

    def __init__(self, values: np.ndarray, categorical: bool) -> None:
        known = values[~_missing(values)]
        self.categorical = categorical
        self.kinds = np.unique(known)
        if categorical:
            few = len(self.kinds) <= len(OTHER_COLOURS)
            self.table = to_rgba_array(OTHER_COLOURS) if few else SEQUENTIAL(np.linspace(0, 1, len(self.kinds)))
        else:
            both = len(known) > 0 and known.min() < 0 < known.max()
            norm = CenteredNorm(0, np.abs(known).max()) if both else Normalize(*_range(known))
            self.mappable = ScalarMappable(norm, DIVERGING if both else SEQUENTIAL)

    def __call__(self, values: ArrayLike) -> np.ndarray:
        """RGBA (n, 4); grey for an unknown value."""
        values = np.asarray(values)
        missing = _missing(values)
        if not self.categorical:
            colours = self.mappable.to_rgba(np.where(missing, 0.0, values))
        else:
            place = np.searchsorted(self.kinds, values).clip(0, max(len(self.kinds) - 1, 0))
            colours = self.table[place].copy()
        colours[missing] = to_rgba_array(UNKNOWN)
        return colours

    def add_key(self, ax: Axes, label: str) -> None:
        """In the slim axes `ax`: a colour bar for numbers, a legend for categories."""
        if not self.categorical:
            bar: Any = ax.figure.colorbar(self.mappable, cax=ax)
            bar.set_label(label)
            bar.outline.set_visible(False)
            return
        handles = [Line2D([], [], color=colour, lw=2.4, label=_short(kind))
                   for kind, colour in zip(self.kinds, self(self.kinds), strict=True)]  # fmt: skip
        ax.legend(handles=handles, title=label, loc="upper left", alignment="left", bbox_to_anchor=(-2, 1))
        ax.axis("off")


def _missing(values: np.ndarray) -> np.ndarray:
    """Where a value is unknown: nan, or an empty string."""
    if values.dtype.kind in "US":
        return values == ""
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value, pulled apart where they are the same."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


PERIOD_MARKERS = ("o", "^", "D", "s", "v", "P", "X")
MAX_TRIALS = 60


@house_style()
def plot_trajectories(
    points: np.ndarray,
    trials: Sequence[np.ndarray],
    values: np.ndarray,
    ax: Any,
    *,
    categorical: bool,
    means: np.ndarray | None = None,
    mean_labels: np.ndarray | None = None,
    marks: Mapping[str, int] | None = None,
    max_trials: int = MAX_TRIALS,
) -> Axes:
    """Single trials thin, condition means thick, in the two or three dimensions of `ax`.

    Args:
        points: coordinates of every step, (N, 2) or (N, 3): principal components, or time and a component.
        trials: the steps of each trial; at most max_trials of them, evenly spread, are drawn.
        values: what colours each step, (N,); categories get a colour each, numbers a map.
        means: condition means (C, T, 2 or 3), nan where they end.
        mean_labels: the value of each mean, (C,); None draws them black.
        marks: {"stimulus": 3}: steps in the trial at which a marker sits on every mean.
    """
    flat = points.shape[1] == 2
    colouring = _Colouring(np.asarray(values), categorical)
    thin = [trials[index] for index in np.unique(np.linspace(0, len(trials) - 1, max_trials).astype(int))]
    pieces = [points[trial[step : step + 2]] for trial in thin for step in range(len(trial) - 1)]
    colours = colouring(np.concatenate([values[trial[1:]] for trial in thin]))
    collection = (LineCollection if flat else Line3DCollection)(pieces, colors=colours, lw=0.6, alpha=0.35)
    ax.add_collection(collection) if flat else ax.add_collection3d(collection)
    means = np.empty((0, 1, points.shape[1])) if means is None else means
    mean_colours = ["#222222"] * len(means) if mean_labels is None else colouring(mean_labels)
    for mean, colour in zip(means, mean_colours, strict=True):
        if flat:
            ax.plot(*mean.T, lw=4.2, color="white", zorder=3)  # a halo, so that crossing means stay apart
        ax.plot(*mean.T, lw=2.2, color=colour, zorder=4)
        for marker, step in zip(PERIOD_MARKERS, (marks or {}).values(), strict=False):
            if step < len(mean) and np.isfinite(mean[step]).all():
                ax.plot(*mean[step][:, None], marker, ms=5.5, mfc="white", mec=colour, mew=1.4, zorder=5)
    for axis, column in zip("xyz", points.T, strict=False):
        low, high = _range(column)
        getattr(ax, f"set_{axis}lim")(low - 0.04 * (high - low), high + 0.04 * (high - low))
    return ax


@house_style()
def trajectory_figure(
    projected: np.ndarray,
    ratios: ArrayLike,
    trials: Sequence[np.ndarray],
    time: np.ndarray,
    values: np.ndarray,
    *,
    categorical: bool,
    label: str,
    time_label: str = "time in trial (ms)",
    means: np.ndarray | None = None,
    mean_labels: np.ndarray | None = None,
    marks: Mapping[str, int] | None = None,
    title: str | None = None,
) -> Figure:
    """A state's trajectories on one page: PC1 and PC2 over time, in 2-D, and in 3-D where there are three.

    Args:
        projected: the steps on their principal components, (N, k), k >= 2.
        ratios: the components' shares of the variance, (k,).
        time: time in the trial of every step, (N,), in the unit of time_label.
        The others as in `plot_trajectories`, with means over all components, (C, T, k).
    """
    if projected.shape[1] < 2:
        raise ConfigError("trajectories need two principal components, but this state has one dimension")
    fig = Figure(figsize=(12, 4.2))
    names = [f"PC{place} ({100 * ratio:.0f} % of variance)" for place, ratio in enumerate(np.asarray(ratios), 1)]
    solid = projected.shape[1] >= 3
    widths = [1, 1.35, 1.6, 0.035] if solid else [1, 1.35, 0.035]
    grid = fig.add_gridspec(2, len(widths), width_ratios=widths,
                            left=0.06, right=0.92, top=0.87, bottom=0.12, wspace=0.3)  # fmt: skip
    style: dict[str, Any] = {"categorical": categorical, "mean_labels": mean_labels, "marks": marks}
    longest = max(trials, key=len)
    for component in range(2):
        ax = fig.add_subplot(grid[component, 0])
        timed = None if means is None else np.stack(
            [np.broadcast_to(time[longest], means.shape[:2]), means[..., component]], axis=-1)  # fmt: skip
        points = np.stack([time, projected[:, component]], axis=-1)
        plot_trajectories(points, trials, values, ax, means=timed, **style)
        ax.set(ylabel=names[component].split(" (")[0], xlabel=time_label if component else "")
    plane = fig.add_subplot(grid[:, 1])
    plot_trajectories(projected[:, :2], trials, values, plane, means=_first(means, 2), **style)
    plane.set(xlabel=names[0], ylabel=names[1])
    if solid:
        ax = fig.add_subplot(grid[:, 2], projection="3d")
        plot_trajectories(projected[:, :3], trials, values, ax, means=_first(means, 3), **style)
        ax.set(xlabel="PC1", ylabel="PC2", zlabel=names[2], xticklabels=[], yticklabels=[], zticklabels=[])
        ax.set_box_aspect(None, zoom=1.15)
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.labelpad = -10
            axis.set_pane_color("white")
            axis._axinfo["grid"].update(color="#E4E4E4", linewidth=0.6)
    _Colouring(np.asarray(values), categorical).add_key(fig.add_subplot(grid[:, -1]), label)
    handles = [Line2D([], [], ls="", marker=marker, mfc="white", mec="#222222", ms=5.5, label=name)
               for marker, name in zip(PERIOD_MARKERS, marks or {}, strict=False)]  # fmt: skip
    plane.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=4, handletextpad=0.1)
    shown = f"thin: {min(len(trials), MAX_TRIALS)} of {len(trials)} trials, thick: means"
    fig.suptitle(f"{title}   ({shown})" if title else shown, fontsize=10, x=0.01, ha="left")
    return fig


def _first(means: np.ndarray | None, components: int) -> np.ndarray | None:
    return None if means is None else means[..., :components]


# --- video --------------------------------------------------------------------------------------------------


class _Film:
    """A page drawn once; for each frame only its moving artists are drawn again, over the saved background.

    Drawing a page takes 100 ms, this 5 ms. Its size is even, as the H.264 codec wants it.
    """

    def __init__(self, width: int, height: int) -> None:
        self.fig = Figure(figsize=((width + width % 2) / 100, (height + height % 2) / 100), dpi=100)
        self.canvas = FigureCanvasAgg(self.fig)
        self.moving: list[Any] = []

    def move(self, artist: Any) -> Any:
        """Mark an artist as one that changes from frame to frame."""
        artist.set_animated(True)
        self.moving.append(artist)
        return artist

    def freeze(self) -> None:
        """Draw what does not move."""
        with house_style():
            self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.fig.bbox)

    def frame(self) -> np.ndarray:
        """The page as it is now, (height, width, 3) uint8."""
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            artist.draw(self.canvas.get_renderer())
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


Update = Callable[[int], None]


def _q_panel(film: _Film, ax: Axes, q_values: np.ndarray, actions: np.ndarray, names: Sequence[str]) -> Update:
    """Q-values as bars on a fixed scale, the chosen action's filled."""
    q_values = np.nan_to_num(np.asarray(q_values, dtype=float))
    low, high = min(0.0, q_values.min()), max(0.0, q_values.max())
    pad = 0.06 * (high - low or 1.0)
    places = np.arange(q_values.shape[1])
    bars = [film.move(bar) for bar in ax.bar(places, 0 * places, width=0.7)]
    ax.set(ylim=(low - pad * (low < 0), high + pad), xlim=(-0.6, len(places) - 0.4))
    ax.set_title("Q-values (blue: chosen action)")
    shown = places[:: -(-len(places) // 12)]
    ax.set_xticks(shown, [names[place] for place in shown])
    ax.axhline(0, color="#444444", lw=0.8)

    def update(t: int) -> None:
        for place, bar in enumerate(bars):
            chosen = place == actions[t]
            bar.set(height=q_values[t, place], facecolor=MODEL_COLOURS["mpn"] if chosen else "#DCDCDC")

    return update


@house_style()
def gym_frames(
    frames: Sequence[np.ndarray],
    q_values: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    action_names: Sequence[str] | None = None,
) -> Iterator[np.ndarray]:
    """Rendered frames beside the Q-values of each step, with the return so far; uint8 RGB, even size.

    Args: frames (T, H, W, 3) uint8, q_values (T, A), actions (T,), rewards (T,).
    """
    height, width = np.shape(frames[0])[:2]
    scale = 400 / height
    image_width, header, panel = round(width * scale), 36, 300
    film = _Film(image_width + panel, 400 + header)
    page_width, page_height = film.canvas.get_width_height()
    picture = film.fig.add_axes((0, 0, image_width / page_width, 400 / page_height))
    picture.axis("off")
    image = film.move(picture.imshow(frames[0], aspect="auto"))
    bars = film.fig.add_axes(((image_width + 60) / page_width, 0.14, (panel - 80) / page_width, 0.7))
    names = action_names or [str(action) for action in range(q_values.shape[1])]
    update_q = _q_panel(film, bars, q_values, actions, names)
    text = film.move(film.fig.text(10 / page_width, 1 - 18 / page_height, "", va="center", fontsize=11))

    def play() -> Iterator[np.ndarray]:
        film.freeze()
        for t, total in enumerate(np.cumsum(rewards)):
            image.set_data(frames[t])
            update_q(t)
            text.set_text(f"step {t + 1}     return {total:.5g}")
            yield film.frame()

    return play()


@house_style()
def neurogym_frames(
    recording: Mapping[str, Any], channel_names: Sequence[str] | None = None, window: int = 80
) -> Iterator[np.ndarray]:
    """An episode of trials as it happens: observations, actions, rewards, Q-values, M; uint8 RGB, 960 x 600.

    Time runs from left to right over `window` steps, then the page turns. Frame t shows observation t, the
    action and Q-values that answered it, the reward that followed, and the state after it.

    Args:
        recording: the arrays of one episode of an activity.npz; without state_M, h takes its place.
        channel_names: one per observation feature.
    """
    film = _Film(960, 600)
    grid = film.fig.add_gridspec(3, 2, width_ratios=[2.3, 1], height_ratios=[2.6, 1.1, 0.9], hspace=0.36,
                                 left=0.1, right=0.935, top=0.89, bottom=0.085, wspace=0.26)  # fmt: skip
    left = [film.fig.add_subplot(grid[row, 0]) for row in range(3)]
    clock = float(recording.get("dt_ms", 0.0)) / 1000 or 1.0
    time = np.arange(len(recording["actions"])) * clock
    panels = [
        _observation_panel(film, left[0], recording, time, channel_names),
        _action_panel(film, left[1], recording, time),
        _reward_panel(film, left[2], recording, time),
    ]
    for ax in left[:2]:
        ax.tick_params(labelbottom=False)
    left[2].set_xlabel("time (s)" if recording.get("dt_ms", 0) else "time (steps)")
    _mark_trials(left, recording, time, clock)
    cursors = [film.move(ax.axvline(0, color="#222222", lw=1)) for ax in left]
    names = [str(action) for action in range(recording["q_values"].shape[1])]
    q_axes = film.fig.add_subplot(grid[0, 1])
    update_q = _q_panel(film, q_axes, recording["q_values"], recording["actions"], names)
    update_state = _state_panel(film, film.fig.add_subplot(grid[1:, 1]), recording)
    headline = film.move(film.fig.text(0.1, 0.962, "", va="center", fontsize=12))
    score = film.move(film.fig.text(0.935, 0.962, "", va="center", ha="right", fontsize=12))
    total = np.cumsum(recording["rewards"])

    def play() -> Iterator[np.ndarray]:
        for t in range(len(time)):
            start = t - t % window
            if t == start:
                for ax in left:
                    ax.set_xlim(time[start] - clock / 2, time[start] + (window - 0.5) * clock)
                film.freeze()
            for panel in panels:
                panel(slice(start, t + 1))
            for cursor in cursors:
                cursor.set_xdata([time[t], time[t]])
            update_q(t)
            update_state(t)
            period = f": {recording['period'][t]}" if "period" in recording and recording["period"][t] else ""
            headline.set_text(f"trial {recording['trial'][t] + 1}{period}")
            score.set_text(f"return {total[t]:.4g}")
            yield film.frame()

    return play()


Reveal = Callable[[slice], None]


def _observation_panel(
    film: _Film, ax: Axes, recording: Mapping[str, Any], time: np.ndarray, names: Sequence[str] | None
) -> Reveal:
    """The observation channels as traces one above the other, on one scale, the first on top."""
    channels = np.asarray(recording["observations"], dtype=float).T
    names = names or [f"obs_{index}" for index in range(len(channels))]
    above, below = channels.max(axis=1).clip(min=0), channels.min(axis=1).clip(max=0)
    gap = 0.2 * (above - below).max() or 1.0
    levels = np.concatenate([[0.0], np.cumsum(below[:-1] - above[1:] - gap)])  # where each channel's zero lies
    ax.set_ylim(levels[-1] + below[-1] - gap, above[0] + gap)
    every = -(-len(channels) // 16)
    ax.set_yticks(levels[::every], [str(name)[:14] for name in names[::every]])
    ax.set_title("observation")
    colours = [OTHER_COLOURS[index % len(OTHER_COLOURS)] for index in range(len(channels))]
    lines = [film.move(ax.plot([], [], lw=1.3, color=colour, drawstyle="steps-mid")[0]) for colour in colours]

    def reveal(shown: slice) -> None:
        for line, channel, level in zip(lines, channels, levels, strict=True):
            line.set_data(time[shown], channel[shown] + level)

    return reveal


def _action_panel(film: _Film, ax: Axes, recording: Mapping[str, Any], time: np.ndarray) -> Reveal:
    """The chosen action, right or wrong, over the correct one; where none is known, just the chosen one."""
    chosen = np.asarray(recording["actions"], dtype=float)
    correct = np.asarray(recording.get("ground_truth", -np.ones(len(chosen))), dtype=float)
    known = correct >= 0
    looks: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "correct": (np.where(known, correct, np.nan),
                    {"marker": "s", "mfc": "#BDBDBD", "mec": "none", "ms": 9}),
        "chosen, right": (np.where(known & (chosen == correct), chosen, np.nan),
                          {"marker": "o", "color": MODEL_COLOURS["rnn"], "ms": 4}),
        "chosen, wrong": (np.where(known & (chosen != correct), chosen, np.nan),
                          {"marker": "X", "color": MODEL_COLOURS["lstm"], "mec": "none", "ms": 6}),
        "chosen": (np.where(known, np.nan, chosen), {"marker": "o", "color": MODEL_COLOURS["mpn"], "ms": 4}),
    }  # fmt: skip
    looks = {name: look for name, look in looks.items() if np.isfinite(look[0]).any()}
    lines = [film.move(ax.plot([], [], ls="", label=name, **look)[0]) for name, (_, look) in looks.items()]
    handles = [Line2D([], [], ls="", label=name, **look) for name, (_, look) in looks.items()]
    ax.legend(handles=handles, ncols=4, loc="lower right", bbox_to_anchor=(1.01, 0.96), handletextpad=0.1)
    ax.set_title("action")
    ax.set_ylim(-0.6, recording["q_values"].shape[1] - 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))

    def reveal(shown: slice) -> None:
        for line, (values, _) in zip(lines, looks.values(), strict=True):
            line.set_data(time[shown], values[shown])

    return reveal


def _reward_panel(film: _Film, ax: Axes, recording: Mapping[str, Any], time: np.ndarray) -> Reveal:
    rewards = np.asarray(recording["rewards"], dtype=float)
    low, high = min(0.0, rewards.min()), max(0.0, rewards.max())
    pad = 0.1 * (high - low or 1.0)
    ax.set_title("reward")
    ax.set_ylim(low - pad * (low < 0), high + pad)
    ax.axhline(0, color="#444444", lw=0.8)
    stems = film.move(ax.vlines([], [], [], color=MODEL_COLOURS["gru"], lw=4))

    def reveal(shown: slice) -> None:
        stems.set_segments([[(x, 0), (x, y)] for x, y in zip(time[shown], rewards[shown], strict=True)])

    return reveal


def _state_panel(film: _Film, ax: Axes, recording: Mapping[str, Any]) -> Update:
    """M (H, D) as a heat map, or h; the limits are fixed and hold 99.5 % of the episode's values."""
    state = recording.get("state_M")
    if state is not None:
        ax.set(title="modulation M", xlabel="input", ylabel="hidden unit")
    else:
        ax.set(title="hidden state h", xticks=[], yticks=[])
        hidden = np.asarray(recording["hidden"])
        columns = next(c for c in range(int(hidden.shape[1] ** 0.5), 0, -1) if hidden.shape[1] % c == 0)
        state = hidden.reshape(len(hidden), -1, columns)
    state = np.asarray(state, dtype=np.float32).reshape(len(state), -1, np.shape(state)[-1])
    limit = float(np.quantile(np.abs(state), 0.995)) or 1.0
    image = film.move(ax.imshow(state[0], cmap="RdBu_r", vmin=-limit, vmax=limit,
                                aspect="auto", interpolation="nearest"))  # fmt: skip
    bar: Any = ax.figure.colorbar(image, ax=ax, fraction=0.06, pad=0.04, extend="both")
    bar.outline.set_visible(False)
    return lambda t: image.set_data(state[t])


def _mark_trials(axes: Sequence[Axes], recording: Mapping[str, Any], time: np.ndarray, clock: float) -> None:
    """A line where each trial ends, a tint behind each named period, and a legend over the first axes."""
    for ax in axes:
        for end in time[np.flatnonzero(recording["new_trial"])]:
            ax.axvline(end + clock / 2, color="#888888", lw=0.8, ls=(0, (2, 2)), zorder=1)
    periods = np.asarray(recording.get("period", np.full(len(time), "")))
    names = [name for name in dict.fromkeys(periods.tolist()) if name]
    tints = dict(zip(names, PERIOD_TINTS, strict=False))
    turns = (periods[1:] != periods[:-1]) | recording["new_trial"][:-1]
    starts = np.flatnonzero(np.concatenate([[True], turns]))
    for start, stop in zip(starts, [*starts[1:], len(time)], strict=True):
        for ax in axes:
            ax.axvspan(time[start] - clock / 2, time[stop - 1] + clock / 2, lw=0, zorder=0,
                       color=tints.get(str(periods[start]), "white"))  # fmt: skip
    handles = [Patch(facecolor=tint, edgecolor="#999999", lw=0.6, label=name) for name, tint in tints.items()]
    if handles:
        axes[0].legend(handles=handles, ncols=len(handles), loc="lower right", bbox_to_anchor=(1.01, 0.98),
                       handlelength=1.4, columnspacing=1.2, handletextpad=0.4)  # fmt: skip


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = 10.0) -> Path:
    """Write RGB uint8 frames as .gif (Pillow) or .mp4 (imageio-ffmpeg), atomically.

    A GIF counts in 10 ms, so fps is rounded to 100 / n, and identical frames in a row become one long one.
    Raises ConfigError: another suffix, fps out of range, no frames, or MP4 without the [video] extra.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"a video is written as .gif or .mp4, got {path.name!r}")
    if not 0 < fps <= 100:
        raise ConfigError(f"fps must lie in (0, 100], got {fps:g}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ConfigError(f"no frames to write to {path.name}: the episode is empty")
    with _atomic(path) as temporary:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, chain([first], frames), fps)
    return path


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    images = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    duration_ms = max(10, 10 * round(100 / fps))
    next(images).save(path, save_all=True, append_images=images, duration=duration_ms, loop=0)


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        way_out = "pip install -e '.[video]', or write a .gif"
        raise ConfigError(f"writing .mp4 needs imageio-ffmpeg: {way_out}") from error
    frames = iter(frames)
    first = next(frames)
    size = first.shape[1::-1]
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2, quality=7)
    writer.send(None)
    try:
        for frame in chain([first], frames):
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
