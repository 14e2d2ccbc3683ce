"""Figures of learning curves, principal components and sweeps, and the style that all figures share.

Only this module, the `*_figures` modules and `video` import matplotlib. They use its object-oriented interface: no
pyplot, no global style. Functions `plot_x(arrays, ax) -> ax` draw into the caller's axes; `*_figure` and
`plot_training_curves` lay out a whole figure. The caller saves the figure with `save_figure` and its numbers beside it.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap, Normalize, to_rgba_array
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from numpy.typing import ArrayLike

from mpn_rl.options import ConfigError
from mpn_rl.statistics import common_grid
from mpn_rl.storage.regular_files import disk_errors, open_regular, temporary_path

# Okabe & Ito (2008): a reader with any common colour blindness can distinguish them.
MODEL_COLOURS = {
    "mpn": "#0072B2",
    "mpn-frozen": "#56B4E9",
    "mpn-recurrent": "#5D3A9B",
    "lstm": "#D55E00",
    "gru": "#E69F00",
    "rnn": "#009E73",
    "mlp": "#CC79A7",
    "guessing": "#8C8C8C",
    "ideal": "#222222",
}
MODEL_NAMES = {
    "mpn-frozen": "frozen MPN",
    "mpn-recurrent": "recurrent MPN",
}  # the other cores are named by their capitals
STATE_COLOURS = {"h": "#E69F00", "M": "#0072B2", "c": "#009E73"}
OTHER_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#222222")
UNKNOWN = "#C8C8C8"
# For lines on white: the middle of the diverging map is grey, and viridis stops before its pale yellow.
DIVERGING = LinearSegmentedColormap.from_list("evidence", ["#08457E", "#4A90C8", "#A6A6A6", "#EE9A4D", "#A63603"])
SEQUENTIAL = LinearSegmentedColormap.from_list("time", mpl.colormaps["viridis"](np.linspace(0, 0.92, 64)))
PERIOD_TINTS = ("#FFFFFF", "#CFE3F3", "#E6E6E6", "#FBDCBF", "#CDE8DA", "#EBD2E2", "#F6EEB4")
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
    "legend.loc": "upper right",  # never "best": it searches all points, and warns when the machine is slow
    "legend.fontsize": 8,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of tasks and conditions may hold dollar signs
}


@contextmanager
def house_style() -> Iterator[None]:
    """The style of all figures, as a context manager or a decorator; the previous settings return afterwards."""
    with mpl.rc_context(STYLE):
        yield


@house_style()
def new_figure(width: float = 6, height: float = 4) -> tuple[Figure, Axes]:
    """A figure of `width` by `height` inches with one axes; the layout is automatic."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots()


@house_style()
def new_panels(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of `width` by `height` inches with a grid of axes, (rows, columns); the layout is automatic."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)


def page_title(fig: Figure | SubFigure, *lines: str | None, size: float = 11) -> None:
    """The title of a figure: each line wraps at the figure's width, None is left out.

    Args: size: of the font, in points.
    """
    width = int(132 / size * fig.bbox.width / fig.dpi)  # characters: about 12 per inch at 11 points
    text = "\n".join(textwrap.fill(line[:1000], width) for line in lines if line)
    if text:
        fig.suptitle(text, fontsize=size, x=0.01, ha="left")


def colour_bar(
    mappable: ScalarMappable,
    axes: Sequence[Axes],
    label: str,
    *,
    into: Axes | None = None,
    pad: float = 0.02,
    fraction: float = 0.15,
    extend: str | None = None,
) -> None:
    """A colour bar without an outline, beside `axes` or in the axes `into`; the other arguments are matplotlib's."""
    draw = axes[0].figure.colorbar
    bar = draw(mappable, cax=into) if into else draw(mappable, ax=axes, pad=pad, fraction=fraction, extend=extend)
    bar.set_label(label)
    bar.ax.spines["outline"].set_visible(False)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` with the same suffix; it replaces `path` when the block ends without an error.

    Raises: ConfigError when the folder does not exist, or the disk refuses.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: no folder {path.parent}; create it or choose another path")
    temporary = temporary_path(path, path.suffix)
    with disk_errors(path):
        temporary.unlink(missing_ok=True)  # a link, perhaps
        try:
            yield temporary
            with open_regular(temporary, os.O_RDWR) as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@house_style()
def save_figure(fig: Figure, path: str | Path) -> Path:
    """Write `fig` atomically in the format of the suffix (.png, .svg, .pdf).

    Returns: the path. Raises: ConfigError for an unknown suffix or a missing folder.
    """
    path = Path(path)
    known = fig.canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ConfigError(f"cannot save a picture as {path.name!r}: use one of .{', .'.join(sorted(known))}")
    if (engine := fig.get_layout_engine()) is not None:  # once: savefig would draw the figure twice
        fig.set_dpi(mpl.rcParams["savefig.dpi"])
        engine.execute(fig)
        fig.set_layout_engine(None)
    with atomic_path(path) as temporary:
        fig.savefig(temporary)
    return path


# --- learning -----------------------------------------------------------------------------------------------


Values = Sequence[float | None] | np.ndarray  # one number per episode, None or nan where unknown
Evaluations = Sequence[Mapping[str, float | None]]  # {"step", "return_mean", "accuracy" or None} each


def rolling_mean(values: Values, window: int) -> np.ndarray:
    """Mean of the known ones among the last `window` values, (n,); nan where none is known."""
    values = np.array([np.nan if value is None else value for value in values], dtype=float)
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    start = np.maximum(np.arange(len(values)) + 1 - window, 0)
    count, total = count[1:] - count[start], total[1:] - total[start]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def reference_line(ax: Axes, name: str, value: float) -> None:
    """A dashed horizontal line with its name at the right edge."""
    ax.axhline(value, color=MODEL_COLOURS.get(name, "#666666"), lw=1, ls=(0, (4, 3)), zorder=1)
    ax.annotate(name, (1, value), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=7.5, color=MODEL_COLOURS.get(name, "#666666"))  # fmt: skip


@house_style()
def plot_noisy_curve(steps: Values, values: Values, ax: Axes, *, window: int, colour: str, label: str) -> Axes:
    """One noisy quantity: a pale dot for each value and a line for the rolling mean.

    Episodes of parallel environments can end at the same step; the line shows the mean after the last of them.

    Args:
        steps: environment steps, (n,), increasing.
        values: one per episode, (n,).
        window: number of values in the rolling mean.
    """
    steps = np.asarray(steps, dtype=float)
    ax.plot(steps, rolling_mean(values, 1), ".", ms=4, mew=0, alpha=0.3, color=colour)
    last = np.append(np.diff(steps) != 0, True)[: len(steps)]
    mean = rolling_mean(values, window)[last]
    ax.plot(steps[last], mean, lw=2, color=colour, label=label if np.isfinite(mean).any() else None)
    return ax


@house_style()
def plot_evaluations(evaluations: Evaluations, key: str, ax: Axes, *, best_step: float | None) -> Axes:
    """Greedy evaluations as open points; the evaluation at `best_step` is a star, and the legend gives its value.

    Args: key: what is drawn, "return_mean" or "accuracy".
    """
    points = [(row["step"] or 0, value) for row in evaluations if (value := row.get(key)) is not None]
    if points:
        ax.plot(*zip(*points, strict=True), "o-", color="#222222", mfc="white", ms=4, lw=0.9, clip_on=False,
                label="greedy evaluation")  # fmt: skip
    for step, value in points:
        if step == best_step:
            ax.plot(step, value, "*", ms=12, color=MODEL_COLOURS["lstm"], mec="white", zorder=5, clip_on=False,
                    label=f"best: {short(float(f'{value:.3g}'))}")  # fmt: skip
    return ax


@house_style()
def plot_training_curves(
    history: Mapping[str, Values],
    evaluations: Evaluations = (),
    fig: Figure | None = None,
    *,
    references: Mapping[str, float] | None = None,
    best_step: float | None = None,
    title: str | None = None,
) -> Figure:
    """Learning curves of one run: return, accuracy (where the task has it), loss and exploration over steps.

    Exploration is epsilon or the entropy; a learner that logs neither has no such panel.

    Args:
        history: one entry per finished episode: step, reward, loss, accuracy (None or nan: unknown), and
            epsilon or entropy; without any reward, the run was supervised.
        evaluations: greedy evaluations, {"step", "return_mean", "accuracy" or None}.
        fig: an empty figure; this function sets its size.
        references: lines in the accuracy panel, {"guessing": 0.5, "ideal": 0.94}.
        best_step: step of the evaluation to mark; by default the one with the highest return_mean, or of several
            tasks the highest normalised_score.
    """
    if best_step is None and evaluations:
        known = [row for row in evaluations if row["return_mean"] is not None] or evaluations
        several = all(row.get("normalised_score") is not None for row in known)
        best_step = max(known, key=lambda row: row["normalised_score" if several else "return_mean"] or 0.0)["step"]
    accuracy = rolling_mean(history.get("accuracy", []), 1)
    scored = np.isfinite(accuracy).any() or any(row.get("accuracy") is not None for row in evaluations)
    exploration = "entropy" if "entropy" in history else "epsilon"
    rewarded = np.isfinite(rolling_mean(history["reward"], 1)).any() or not len(history["reward"])
    drawn = rolling_mean(history.get(exploration, []), 1)
    explored = np.isfinite(drawn).any()  # TD3 logs neither epsilon nor an entropy, and supervision does not explore
    learned = np.isfinite(rolling_mean(history.get("loss", []), 1)).any()  # not so where learning starts later
    shown = {"reward": True, "accuracy": scored, "loss": learned, exploration: explored and rewarded}
    panels = [name for name, there in shown.items() if there]
    fig = fig or Figure()
    fig.set_layout_engine("constrained", wspace=0.04)
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    fig.set_size_inches((8.8, 5.4) if rows == 2 else (3.5 * columns, 3.2))
    axes = dict(zip(panels, fig.subplots(rows, columns, squeeze=False).flat, strict=True))
    steps = np.asarray(history["step"], dtype=float)
    window = max(5, len(steps) // 20)
    curve = partial(plot_noisy_curve, steps, window=window, label=f"mean of {window} episodes")
    curve(history["reward"], axes["reward"], colour=MODEL_COLOURS["mpn"])
    plot_evaluations(evaluations, "return_mean", axes["reward"], best_step=best_step)
    if learned:
        curve(history["loss"], axes["loss"], colour=MODEL_COLOURS["rnn"])
    if exploration in axes:
        axes[exploration].plot(steps, drawn, lw=2, color=MODEL_COLOURS["mlp"])
        axes[exploration].set_ylim(-0.02, 1.06 * max(0.1, *drawn[np.isfinite(drawn)], 0.1))
    if scored:
        if len(accuracy):
            curve(accuracy, axes["accuracy"], colour=MODEL_COLOURS["mpn"])
        plot_evaluations(evaluations, "accuracy", axes["accuracy"], best_step=best_step)
        axes["accuracy"].set_ylim(-0.02, 1.04)
        for name, value in (references or {}).items():
            reference_line(axes["accuracy"], name, value)
    last = max([1, *steps, *(row["step"] or 0 for row in evaluations)])
    labels = {
        "reward": "return per episode",
        "accuracy": "decision accuracy",
        "loss": "TD loss" if exploration == "epsilon" and rewarded else "loss",
    }
    for name, ax in axes.items():
        ax.set(ylabel=labels.get(name, name), xlabel="environment steps", xlim=(0, last))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(thousands)
        if ax.get_legend_handles_labels()[0]:  # above the axes, where it covers no point
            ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=2, borderaxespad=0.1)
    page_title(fig, title)
    return fig


@house_style()
def task_curves_figure(evaluations: Evaluations, tasks: Sequence[str], title: str | None = None) -> Figure:
    """The normalised score of each of several tasks over the steps of one run, one panel per task; grey: their mean.

    Args:
        evaluations: rows of metrics.jsonl, with "normalised_score/<task>" and "normalised_score".
        tasks: names of the tasks.
    """
    columns = min(5, len(tasks))
    rows = -(-len(tasks) // columns)
    fig = Figure(figsize=(1.9 * columns + 0.4, 1.5 * rows + 0.7))
    fig.set_layout_engine("constrained")
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    mean = [(row["step"], value) for row in evaluations if (value := row.get("normalised_score")) is not None]
    shown = [1.0]
    for ax, task in zip(axes.flat, tasks, strict=False):
        own = [(row["step"], v) for row in evaluations if (v := row.get(f"normalised_score/{task}")) is not None]
        for level in (0.0, 1.0):
            ax.axhline(level, color="#666666", lw=0.8, ls=(0, (4, 3)), zorder=1)
        if mean:
            ax.plot(*zip(*mean, strict=True), color=UNKNOWN, lw=1.5)
        if own:
            ax.plot(*zip(*own, strict=True), "o-", color=MODEL_COLOURS["mpn"], ms=2.5, lw=1.2)
            shown += [value for _, value in own]
        else:
            ax.annotate("no score", (0.5, 0.5), xycoords="axes fraction", ha="center")
        ax.set_title(task.rpartition(":")[2].removesuffix("-v0"), fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.xaxis.set_major_formatter(thousands)
    for ax in list(axes.flat)[len(tasks) :]:
        ax.set_axis_off()
    axes.flat[0].set_ylim(max(-1.0, min(-0.1, *shown)) - 0.05, min(1.5, max(shown)) + 0.1)
    for column in range(columns):
        last = max(row for row in range(rows) if row * columns + column < len(tasks))
        axes[last, column].tick_params(labelbottom=True)
    fig.supxlabel("environment steps", fontsize=9)
    fig.supylabel("normalised score", fontsize=9)
    page_title(
        fig, title, "greedy evaluations; 0: random actions, 1: best scripted policy; grey: mean over tasks", size=9
    )
    return fig


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
    """Learning curves of several cores: a thin line per seed, a thick line for the mean; the legend states n.

    Args:
        runs: {core: [(steps, values), ...]}, one pair per seed. Seeds with different evaluation steps are
            interpolated, and the mean ends where the shortest run ends.
        references: named horizontal lines, {"ideal": 0.94}.
    """
    for index, (core, seeds) in enumerate(runs.items()):
        colour = MODEL_COLOURS.get(core, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        for steps, values in seeds:
            ax.plot(steps, values, lw=0.7, alpha=0.45, color=colour)
        grid, values = common_grid(seeds)
        name = MODEL_NAMES.get(core, core.upper())
        ax.plot(grid, values.mean(axis=0), lw=2.4, color=colour, label=f"{name} (n = {len(seeds)})")
    for name, value in (references or {}).items():
        reference_line(ax, name, value)
    ax.set(xlabel="environment steps", ylabel=ylabel, xlim=(0, None))
    ax.xaxis.set_major_formatter(thousands)
    ax.legend(title="thick: mean, thin: single seeds", title_fontsize=8, alignment="left", ncols=3,
              loc="lower left", bbox_to_anchor=(-0.02, 1.0))  # fmt: skip
    return ax


# --- principal components -----------------------------------------------------------------------------------


@house_style()
def plot_pca_variance(spectra: Mapping[str, tuple[ArrayLike, float]], ax: Axes, shown: int = 20) -> Axes:
    """Cumulative variance explained per state, with participation ratios in the legend.

    Args:
        spectra: {"h": (explained variance ratios (k,), participation ratio), "M": ...}.
        shown: largest number of components.
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
    """Variance explained by each component (left) and cumulative variance (right), for every state.

    Args: spectra: as in `plot_pca_variance`. shown: number of components on the left.
    """
    fig, axes = new_panels(8.4, 3.4, columns=2)
    left, right = axes[0]
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
    page_title(fig, title)
    return fig


class _Colouring:
    """Colours for values: one per category, or a colour map for numbers, which diverges where both signs occur."""

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
        """Draw a colour bar (numbers) or a legend (categories) into the narrow axes `ax`."""
        if not self.categorical:
            colour_bar(self.mappable, [ax], label, into=ax)
            return
        handles = [Line2D([], [], color=colour, lw=2.4, label=short(kind))
                   for kind, colour in zip(self.kinds, self(self.kinds), strict=True)]  # fmt: skip
        ax.legend(handles=handles, title=label, loc="upper left", alignment="left", bbox_to_anchor=(-2, 1))
        ax.axis("off")


def _missing(values: np.ndarray) -> np.ndarray:
    """Where a value is unknown: nan, or an empty string."""
    if values.dtype.kind in "US":
        return values == ""
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; if they are equal, half a unit below and above."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def short(value: object) -> str:
    """A value as a label: numbers with four digits, text unchanged."""
    if isinstance(value, float | np.floating):
        return f"{float(value):.4g}" if abs(float(value)) < 1e4 else f"{float(value):g}"
    return str(value)


PERIOD_MARKERS = ("o", "^", "D", "s", "v", "P", "X")
MAX_TRIALS = 60


@house_style()
def plot_trajectories(
    points: np.ndarray,
    trials: Sequence[np.ndarray],
    values: np.ndarray,
    ax: Axes,
    *,
    categorical: bool,
    means: np.ndarray | None = None,
    mean_labels: np.ndarray | None = None,
    marks: Mapping[str, int] | None = None,
    max_trials: int = MAX_TRIALS,
) -> Axes:
    """Trajectories in the two or three dimensions of `ax`: thin lines for trials, thick lines for condition means.

    Args:
        points: coordinates of every step, (N, 2) or (N, 3): principal components, or time and a component.
        trials: the steps of each trial; at most `max_trials` evenly spaced trials are drawn.
        values: one per step, (N,); it sets the colour.
        categorical: whether each value has its own colour; otherwise a colour map applies.
        means: condition means (C, T, 2 or 3), nan where they end.
        mean_labels: the value of each mean, (C,); None draws the means black.
        marks: {"stimulus": 3}: steps in the trial that a marker shows on every mean.
    """
    colouring = _Colouring(np.asarray(values), categorical)
    thin = [trials[index] for index in np.unique(np.linspace(0, len(trials) - 1, max_trials).astype(int))]
    pieces = [points[trial[step : step + 2]] for trial in thin for step in range(len(trial) - 1)]
    colours = colouring(np.concatenate([values[trial[1:]] for trial in thin]))
    if solid := isinstance(ax, Axes3D):
        ax.add_collection3d(Line3DCollection(pieces, colors=colours, lw=0.6, alpha=0.35))
    else:
        ax.add_collection(LineCollection(pieces, colors=colours, lw=0.6, alpha=0.35))
    means = np.empty((0, 1, points.shape[1])) if means is None else means
    mean_colours = ["#222222"] * len(means) if mean_labels is None else colouring(mean_labels)
    for mean, colour in zip(means, mean_colours, strict=True):
        if not solid:
            ax.plot(*mean.T, lw=4.2, color="white", zorder=3)  # a white border separates means that cross
        ax.plot(*mean.T, lw=2.2, color=colour, zorder=4)
        for marker, step in zip(PERIOD_MARKERS, (marks or {}).values(), strict=False):
            if step < len(mean) and np.isfinite(mean[step]).all():
                ax.plot(*mean[step][:, None], marker, ms=5.5, mfc="white", mec=colour, mew=1.4, zorder=5)
    for axis, column in zip("xyz", points.T, strict=False):
        low, high = _range(column)
        ax.set(**{f"{axis}lim": (low - 0.04 * (high - low), high + 0.04 * (high - low))})
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
    """Trajectories of one state: PC1 and PC2 over time, PC1 against PC2, and three components in 3-D if there are.

    Args:
        projected: every step on the principal components, (N, k), k >= 2.
        ratios: share of the variance of each component, (k,).
        time: time in the trial of every step, (N,), in the unit of `time_label`.
        label: name of the values that set the colour.
        trials, values, categorical, mean_labels, marks: as in `plot_trajectories`.
        means: condition means over all components, (C, T, k).

    Raises: ConfigError for a state with one dimension.
    """
    if projected.shape[1] < 2:
        raise ConfigError("trajectories need two principal components, but this state has one dimension")
    fig = Figure(figsize=(12, 4.2))
    names = [f"PC{place} ({100 * ratio:.0f} % of variance)" for place, ratio in enumerate(np.asarray(ratios), 1)]
    solid = projected.shape[1] >= 3
    widths = [1, 1.35, 1.6, 0.035] if solid else [1, 1.35, 0.035]
    grid = fig.add_gridspec(2, len(widths), width_ratios=widths,
                            left=0.06, right=0.92, top=0.87, bottom=0.12, wspace=0.4)  # fmt: skip
    draw = partial(plot_trajectories, trials=trials, values=values, categorical=categorical, mean_labels=mean_labels,
                   marks=marks)  # fmt: skip
    longest = max(trials, key=len)
    for component in range(2):
        ax = fig.add_subplot(grid[component, 0])
        timed = None if means is None else np.stack(
            [np.broadcast_to(time[longest], means.shape[:2]), means[..., component]], axis=-1)  # fmt: skip
        points = np.stack([time, projected[:, component]], axis=-1)
        draw(points, ax=ax, means=timed)
        ax.set(ylabel=names[component].split(" (")[0], xlabel=time_label if component else "")
    plane = fig.add_subplot(grid[:, 1])
    draw(projected[:, :2], ax=plane, means=None if means is None else means[..., :2])
    plane.set(xlabel=names[0], ylabel=names[1])
    if solid:
        ax = fig.add_subplot(grid[:, 2], projection="3d")
        draw(projected[:, :3], ax=ax, means=None if means is None else means[..., :3])
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
    page_title(fig, f"{title} ({shown})" if title else shown)
    return fig


# --- sweeps -------------------------------------------------------------------------------------------------


@house_style()
def plot_band(
    steps: ArrayLike, curves: np.ndarray, band: tuple[ArrayLike, ArrayLike], ax: Axes, *, colour: str, label: str
) -> Axes:
    """One setting of a sweep: a thin line per seed, a thick line for the mean, and a band.

    Args:
        steps: environment steps, (T,).
        curves: one row per seed, (n, T).
        band: its lower and upper edge, (T,) each; nan draws none.
    """
    ax.fill_between(steps, *band, color=colour, alpha=0.18, lw=0)
    marker = "o" if np.size(steps) == 1 else ""  # a line through a single point is invisible
    for curve in curves:
        ax.plot(steps, curve, lw=0.6, alpha=0.4, color=colour, marker=marker, ms=3)
    ax.plot(steps, curves.mean(axis=0), lw=2.2, color=colour, marker=marker, label=f"{label} (n = {len(curves)})")
    return ax


@house_style()
def sweep_curves_figure(
    settings: Mapping[str, tuple[np.ndarray, np.ndarray, tuple[ArrayLike, ArrayLike]]], *, ylabel: str, title: str
) -> Figure:
    """Learning curves of several settings.

    Args: settings: {label: (steps, curves, band)} as in `plot_band`, the best setting first.
    """
    fig, ax = new_figure(7.5, 4.2)
    for colour, (label, (steps, curves, band)) in zip(OTHER_COLOURS, settings.items(), strict=False):
        plot_band(steps, curves, band, ax, colour=colour, label=label)
    ax.set(xlabel="environment steps", ylabel=ylabel, xlim=(0, None))
    ax.xaxis.set_major_formatter(thousands)
    fig.legend(title="thick: mean over seeds; band: its 95 % t interval; thin: single seeds", title_fontsize=8,
               alignment="left", ncols=2, loc="outside lower left")  # fmt: skip
    page_title(fig, title)
    return fig


@house_style()
def plot_heat_map(values: np.ndarray, ticks: tuple[Sequence[str], Sequence[str]], ax: Axes, *, label: str) -> Axes:
    """Heat map of means over two parameters; each cell shows its number.

    Args:
        values: (Y, X), nan leaves a cell empty.
        ticks: names along x, names along y.
        label: of the colour bar.
    """
    mesh = ax.pcolormesh(np.ma.masked_invalid(values), cmap=SEQUENTIAL, edgecolors="white", lw=1)
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = "#222222" if value > middle else "white"
            ax.text(column + 0.5, row + 0.5, f"{value:.3g}", ha="center", va="center", fontsize=8, color=shade)
    for axis, names in zip((ax.xaxis, ax.yaxis), ticks, strict=True):
        axis.set_ticks(np.arange(len(names)) + 0.5, names)
        axis.set_tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(mesh, ax=ax, label=label)
    return ax


@house_style()
def plot_score_scatter(x: np.ndarray, y: np.ndarray, scores: np.ndarray, ax: Axes, *, label: str) -> Axes:
    """Scores of a random search over two parameters; an axis that spans 30-fold or more is logarithmic.

    Args:
        x, y: the two parameters, (n,) each.
        scores: the colours, (n,).
        label: of the colour bar.
    """
    dots = ax.scatter(x, y, c=scores, s=46, cmap=SEQUENTIAL, edgecolors="white", lw=0.6)
    for values, name in ((x, "x"), (y, "y")):
        if values.min() > 0 and values.max() > 30 * values.min():
            ax.set(**{f"{name}scale": "log"})
    ax.figure.colorbar(dots, ax=ax, label=label)
    return ax


TRIAL_MARKERS = {
    "complete": ("complete", "o", "#0072B2"),
    "pruned": ("pruned, its last score", "v", "#E69F00"),
    "fail": ("failed", "X", "#222222"),
}  # of each state: name, marker, colour


@house_style()
def plot_trials(trials: Sequence[tuple[int, float, str]], ax: Axes) -> Axes:
    """The score of each trial of a search, and the best one so far.

    Args:
        trials: (number, score, state) of each; of a pruned trial, its last intermediate score. nan is not drawn.
    """
    for state, (name, marker, colour) in TRIAL_MARKERS.items():
        shown = [(number, score) for number, score, this in trials if this == state and np.isfinite(score)]
        if shown:
            x, y = zip(*shown, strict=True)
            ax.scatter(x, y, marker=marker, color=colour, s=30, label=f"{name} ({len(shown)})", zorder=3)
    complete = [(number, score) for number, score, state in trials if state == "complete"]
    if complete:
        x, y = zip(*complete, strict=True)
        ax.step(x, np.maximum.accumulate(y), where="post", color="#0072B2", lw=1.2, label="best so far")
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    ax.set(xlabel="trial", ylabel="score, mean over seeds")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


@house_style()
def plot_importance(importance: Mapping[str, float], ax: Axes) -> Axes:
    """Bars of the share of each option in the differences of the scores.

    Args:
        importance: {option: share in [0, 1]}; empty if it is not known yet.
    """
    if not importance:
        ax.text(0.5, 0.5, "too few complete trials", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return ax
    names = sorted(importance, key=lambda name: importance[name])
    ax.barh(names, [importance[name] for name in names], color="#0072B2")
    ax.set(xlabel="importance", xlim=(0, 1))
    return ax
