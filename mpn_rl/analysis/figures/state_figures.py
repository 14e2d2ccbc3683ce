"""Figures of the state: decoding, demixed variance, fixed points, weights and snapshots of M.

As in `behaviour_figures`, a sentence that says what is missing may replace a measure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter
from matplotlib.typing import LineStyleType

from mpn_rl.analysis.decoding import AcrossConditions, CrossTemporal, Decoding
from mpn_rl.analysis.demixed import Demixed
from mpn_rl.analysis.figures.behaviour_figures import BLUE, INK, ORANGE, shade_periods, write_reason
from mpn_rl.analysis.fixed_points import FixedPoints, relaxation_time
from pca_analysis import ReadoutProjection
from visualize import (
    OTHER_COLOURS,
    SEQUENTIAL,
    STATE_COLOURS,
    colour_bar,
    house_style,
    new_figure,
    new_panels,
    page_title,
    short,
    thousands,
)  # fmt: skip

BAND = "#BDBDBD"
SIGNED = "RdBu_r"  # for maps with both signs; safe for the colour-blind


# --- decoding and demixed variance -----------------------------------------------------------------------------------


@house_style()
def plot_decoding(results: Mapping[str, Decoding], ax: Axes, time: np.ndarray, marks: Mapping[str, float]) -> Axes:
    """Held-out accuracy of one label over time, a line per state, with the band of shuffled labels.

    Args:
        results: {state: Decoding}.
        time: of each aligned step, (T,).
        marks: {period: time at which it begins}.
    """
    step = time[1] - time[0] if len(time) > 1 else 1.0
    shade_periods(ax, marks, time[-1] + step)
    middle = time + step / 2  # a step lasts from its own time to that of the next step
    both = np.stack([result.band for result in results.values()])
    shuffles = len(next(iter(results.values())).shuffled)
    ax.fill_between(middle, both[:, 0].min(axis=0), both[:, 1].max(axis=0), color=BAND, alpha=0.7, lw=0, zorder=1,
                    label=f"95 % of {shuffles} shuffles")  # fmt: skip
    limit = max(result.anywhere for result in results.values())
    ax.axhline(limit, color="#777777", lw=0.8, ls=(0, (2, 2)), zorder=2, label="best step of 95 % of shuffles")
    for index, (state, result) in enumerate(results.items()):
        colour = STATE_COLOURS.get(state, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        label = "from the observation alone" if state == "observation" else f"from {state}"
        ax.fill_between(middle, result.low, result.high, color=colour, alpha=0.22, lw=0, zorder=3)
        ax.plot(middle, result.accuracy, "o-", ms=2.5, lw=1.8, color=colour, label=label, zorder=4)
    ax.set_ylim(None, 1.02)
    return ax


@house_style()
def decoding_figure(
    results: Mapping[str, Mapping[str, Decoding]],
    time: np.ndarray,
    marks: Mapping[str, float],
    *,
    unit: str = "ms",
    title: str | None = None,
) -> Figure:
    """Decoding of all labels, two panels in a row.

    Args: results: `decoding.decode_states`, {state: {label: Decoding}}. time, marks: as in `plot_decoding`.
    """
    labels = list(dict.fromkeys(label for of_state in results.values() for label in of_state))
    rows, columns = (len(labels) + 1) // 2, min(2, len(labels))
    fig, axes = new_panels(2 + 3.5 * columns, 0.8 + 2.9 * rows, rows, columns)
    for ax, name in zip(axes.flat, labels, strict=False):
        of_label = {state: of_state[name] for state, of_state in results.items() if name in of_state}
        plot_decoding(of_label, ax, time, marks)
        first = next(iter(of_label.values()))
        ax.set_title(f"{name} ({len(first.classes)} classes, n = {first.n.max():,} trials)", pad=22)
        ax.set(xlabel=f"time, each period aligned on its onset ({unit})", ylabel="balanced accuracy")
    handles, names = axes.flat[0].get_legend_handles_labels()
    legend = [*handles, Patch(color=STATE_COLOURS["M"], alpha=0.3, lw=0)], [*names, "coloured: 95 % interval"]
    if axes.size > len(labels):  # the legend takes the place that an odd number of panels leaves
        axes.flat[-1].axis("off")
        axes.flat[-1].legend(*legend, loc="upper left")
    else:
        fig.legend(*legend, loc="outside lower left", ncols=columns + 1)
    page_title(fig, title)
    return fig


@house_style()
def cross_temporal_figure(
    results: Mapping[str, CrossTemporal],
    time: np.ndarray,
    marks: Mapping[str, float],
    *,
    label: str,
    unit: str = "ms",
    title: str | None = None,
) -> Figure:
    """Accuracy by the step of training and the step of test, a panel per state; a line surrounds what beats chance.

    Args: results: {state: `decoding.cross_temporal`} of `label`. time, marks: as in `plot_decoding`.
    """
    fig, axes = new_panels(1.4 + 3.6 * len(results), 4.9, 1, len(results))
    for ax, (state, result) in zip(axes[0], results.items(), strict=True):
        at = time[result.columns]
        chance = 1 / len(result.classes)
        image = ax.pcolormesh(at, at, result.accuracy, cmap=SEQUENTIAL, vmin=chance, vmax=1, shading="nearest")
        if len(at) > 1 and result.accuracy.min() < result.limit < result.accuracy.max():
            ax.contour(at, at, result.accuracy, [result.limit], colors="white", linewidths=1.2)
        ax.plot(at, at, color="white", lw=0.8, ls=(0, (2, 2)))
        for start in list(marks.values())[1:]:
            ax.axvline(start, color="white", lw=0.6)
            ax.axhline(start, color="white", lw=0.6)
        ax.set_xticks([max(start, at[0]) for start in marks.values()], list(marks), rotation=40, ha="right")
        ax.set_yticks([max(start, at[0]) for start in marks.values()], list(marks))
        ax.set(xlabel=f"tested at ({at[0]:g} to {at[-1]:g} {unit})", ylabel="trained at")
        ax.set_box_aspect(1)
        ax.set_title(
            f"{label} from {state} (n = {result.n:,} trials)\nchance stays below {result.limit:.2f}", fontsize=9
        )
    colour_bar(image, list(axes[0]), "balanced accuracy")
    page_title(fig, title)
    return fig


@house_style()
def cross_condition_figure(
    results: Mapping[str, Mapping[str, AcrossConditions]], periods: Sequence[str], *, title: str | None = None
) -> Figure:
    """Accuracy in the same and in other conditions at the end of each period, a panel per label.

    Args: results: {label: {state: `decoding.across_conditions`}}. periods: names of the steps.
    """
    fig, axes = new_panels(1.2 + 4.0 * len(results), 4.0, 1, len(results))
    for ax, (label, of_state) in zip(axes[0], results.items(), strict=True):
        width = 0.7 / len(of_state)
        for index, (state, result) in enumerate(of_state.items()):
            colour = STATE_COLOURS.get(state, OTHER_COLOURS[index % len(OTHER_COLOURS)])
            x = np.arange(len(periods)) + (index - (len(of_state) - 1) / 2) * width
            for part, shift, face, where in ((result.within, -0.15, "white", "the same condition"),
                                             (result.across, 0.15, colour, "other conditions")):  # fmt: skip
                error = np.stack([part.value - part.low, part.high - part.value]).clip(min=0)
                ax.errorbar(x + shift * width, part.value, yerr=error, fmt="o", ms=5, color=colour, mfc=face, capsize=0,
                            elinewidth=1.2, label=f"{state}, tested in {where}")  # fmt: skip
            limit = result.limits[1]
            ax.plot(x + 0.15 * width, np.full(len(x), limit), "_", ms=10, mew=1.5, color="#777777",
                    label="other conditions: 95 % of shuffles" if index == 0 else None)  # fmt: skip
        ax.set_xticks(range(len(periods)), [f"end of\n{period}" for period in periods])
        ax.set(ylabel="balanced accuracy", ylim=(None, 1.03), xlim=(-0.6, len(periods) - 0.4))
        n = int(next(iter(of_state.values())).within.n[0])
        ax.set_title(f"{label} (n = {n:,} trials)", fontsize=9)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    page_title(fig, title)
    return fig


@house_style()
def demixed_figure(
    results: Mapping[str, Demixed | str],
    time: np.ndarray,
    marks: Mapping[str, float],
    *,
    unit: str = "ms",
    title: str | None = None,
) -> Figure:
    """A row of panels per state: shares of the variance, and trial means along the axis of each part.

    Args: results: {state: `demixed(...)`}. time, marks: as in `plot_decoding`.
    """
    given = [result for result in results.values() if not isinstance(result, str)]
    parts = given[0].factors if given else ()
    height = 0.9 + (2.6 if given else 1.0) * len(results)
    fig, axes = new_panels(max(6.4, 3.2 * (1 + len(parts))), height, len(results), 1 + len(parts))
    step = time[1] - time[0] if len(time) > 1 else 1.0
    for (state, result), line in zip(results.items(), axes, strict=True):
        if isinstance(result, str):
            write_reason(line[0], result, state)
            for ax in line[1:]:
                ax.axis("off")
            continue
        places = np.arange(len(result.shares))
        line[0].barh(places, [100 * share for share in result.shares.values()], height=0.66,
                     color=STATE_COLOURS.get(state, INK))  # fmt: skip
        ticks = [
            (100 * result.chance[name], place) for place, name in enumerate(result.shares) if name in result.chance
        ]
        line[0].plot([tick for tick, _ in ticks], [place for _, place in ticks], "|", ms=14, mew=2, color=INK)
        line[0].set_yticks(places, [name.replace(" x ", "\nx ") for name in result.shares])
        line[0].invert_yaxis()
        line[0].set(
            xlabel=f"variance of trial means of {state} (%)",
            xlim=(min(0.0, *(104 * share for share in result.shares.values())), 104),
        )
        line[0].set_title(f"{state}: {100 * result.within:.0f} % of the total lies within conditions", fontsize=8.5)
        for name, ax in zip(parts, line[1:], strict=True):
            shade_periods(ax, marks, time[-1] + step)
            for cell, course in zip(result.cells, result.courses[name], strict=True):
                colour, dashes = _cell_style(result, cell)
                ax.plot(time + step / 2, course, lw=1.8, color=colour, ls=dashes)
            ax.set_title(f"along {name}", pad=22)
            ax.set(xlabel=f"time ({unit})", ylabel=f"trial mean of {state}")
    if given:
        handles = []
        for cell, n in zip(given[0].cells, given[0].n, strict=True):
            colour, dashes = _cell_style(given[0], cell)
            name = ", ".join(f"{factor} {short(label)}" for factor, label in zip(parts, cell, strict=True))
            handles.append(Line2D([], [], lw=1.8, color=colour, ls=dashes, label=f"{name} (n = {n} trials)"))
        chance = Line2D([], [], ls="", marker="|", ms=9, mew=2, color=INK, label="95 % of shuffles")
        fig.legend(handles=[*handles, chance], loc="outside lower left", ncols=3)
    page_title(fig, title)
    return fig


def _cell_style(result: Demixed, cell: tuple) -> tuple[str, LineStyleType]:
    """The colour shows the first factor, the dashes the second."""
    kinds = [sorted({own[axis] for own in result.cells}) for axis in range(len(result.factors))]
    place = [kind.index(label) for kind, label in zip(kinds, cell, strict=True)]
    dashes: tuple[LineStyleType, ...] = ("-", (0, (3, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
    return OTHER_COLOURS[place[0] % 8], dashes[place[1] % 4] if len(place) > 1 else "-"


@house_style()
def similarity_figure(
    panels: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray]], *, title: str | None = None
) -> Figure:
    """Matrices of the similarity of runs; a cross marks a pair that does not exceed its limit.

    Args: panels: {name: (names of the R runs, value (R, R), limit (R, R))}.
    """
    columns = 2  # CKA and Procrustes side by side
    size = 1.6 + 0.42 * max(len(names) for names, _, _ in panels.values())
    fig, axes = new_panels(1.6 + columns * (size + 0.9), 0.9 + (size + 0.9) * -(-len(panels) // columns),
                           -(-len(panels) // columns), columns)  # fmt: skip
    for ax, (name, (runs, value, limit)) in zip(axes.flat, panels.items(), strict=True):
        image = ax.imshow(value, cmap=SEQUENTIAL, vmin=0, vmax=1)
        low = np.argwhere(~(value > limit))
        ax.plot(low[:, 1], low[:, 0], "x", color="white", ms=6, mew=1.5)
        if len(runs) <= 8:
            for (i, j), number in np.ndenumerate(value):
                ax.annotate(f"{number:.2f}", (j, i), (0, 5), textcoords="offset points", ha="center", fontsize=7,
                            color=INK if number > 0.7 else "white")  # fmt: skip
        ax.set_xticks(range(len(runs)), list(runs), rotation=40, ha="right", fontsize=7)
        ax.set_yticks(range(len(runs)), list(runs), fontsize=7)
        ax.set_title("\n".join(part for line in name.splitlines() for part in textwrap.wrap(line, 46)), fontsize=7.5)
    colour_bar(image, axes.ravel().tolist(), "similarity")
    page_title(fig, title, "diagonal: halves of the episodes; cross: not above 95 % of permuted conditions")
    return fig


# --- fixed points -------------------------------------------------------------------------------------------


@house_style()
def fixed_points_figure(
    points: FixedPoints | str, *, dt: float = 1.0, unit: str = "steps", title: str | None = None
) -> Figure:
    """Feedback gains, fixed points by unit, eigenvalues and relaxation times, in four panels.

    Args: dt: duration of a step in `unit`.
    """
    fig, axes = new_panels(9, 6.4, 2, 2)
    gains, roots, plane, times = axes.flat
    if isinstance(points, str):
        write_reason(gains, points, "fixed points")
        for ax in axes.flat[1:]:
            ax.axis("off")
        page_title(fig, title)
        return fig
    units = len(points.gain)
    per_unit = points.per_unit()
    rank = np.argsort(np.argsort(np.nan_to_num(points.gain), kind="stable"), kind="stable")
    gains.plot(rank, points.gain, "o", ms=3, color=BLUE)
    gains.axhline(1, color="#777777", lw=0.8, ls=(0, (4, 3)))
    several = int((per_unit > 1).sum())
    gains.set(xlabel="hidden unit, by gain", ylabel="feedback gain c of h = f(a + c h)")
    gains.set_title(f"{several} of {units} units have more than one fixed point", fontsize=9)
    for stable, face in ((True, BLUE), (False, "white")):
        own = points.stable == stable
        colour = BLUE if stable else ORANGE
        roots.plot(rank[points.unit[own]], points.h[own], "o", ms=3.5, mec=colour, mfc=face, mew=1)
        values = points.eigenvalues[own].ravel()
        plane.plot(values.real, values.imag, "o", ms=3.5, mec=colour, mfc=face, mew=0.8)
    stable_points = int(points.stable.sum())
    roots.set(xlabel="hidden unit, by gain", ylabel="h at the fixed point")
    roots.set_title(f"{stable_points} stable (filled) and {len(points.h) - stable_points} unstable fixed points (open)",
                    fontsize=9)  # fmt: skip
    around = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    plane.plot(around.real, around.imag, color="#999999", lw=0.8)
    plane.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
    plane.set_title("eigenvalues of the update of M; circle: modulus 1", fontsize=9)
    slowest = relaxation_time(points.eigenvalues[points.stable], dt).max(axis=1, initial=0.0)
    times.set(xlabel=f"slowest relaxation time ({unit})", ylabel="stable fixed points")
    times.set_title("relaxation times of the stable fixed points", fontsize=9)
    if not (slowest > 0).any():
        write_reason(times, "not available: no fixed point is stable")
    else:
        values = slowest[slowest > 0]
        low, high = values.min() / 1.05, values.max() * 1.05
        wide = values.max() > 10 * values.min()  # more than a decade needs a logarithmic axis
        times.hist(values, (np.geomspace if wide else np.linspace)(low, high, 25).tolist(), color=BLUE)
        if wide:
            times.set_xscale("log")
            times.xaxis.set_major_formatter(thousands)
            times.xaxis.set_minor_formatter(NullFormatter())
        times.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        median = float(np.median(values))
        times.axvline(median, color=INK, lw=1, ls=(0, (4, 3)))
        times.set_title(f"stable fixed points; dashed: median {median:.3g} {unit}", fontsize=9)
    page_title(fig, title)
    return fig


# --- weights ------------------------------------------------------------------------------------------------


@house_style()
def plot_map(matrix: np.ndarray, ax: Axes, *, label: str, norm: Normalize | None = None) -> Axes:
    """A matrix as an image with a colour bar; the colours diverge around 0 where both signs occur.

    Args: matrix: (H, D), hidden units down, inputs across. label: of the colour bar. norm: None fits the values.
    """
    matrix = np.atleast_2d(matrix)
    low, high = float(matrix.min()), float(matrix.max())
    if norm is None:
        norm = CenteredNorm(0, max(abs(low), abs(high), 1e-12)) if low < 0 < high else Normalize(low, high)
    cmap = SIGNED if isinstance(norm, CenteredNorm) else SEQUENTIAL
    image = ax.imshow(matrix, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    colour_bar(image, [ax], label)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="input", ylabel="hidden unit")
    return ax


@house_style()
def weights_figure(maps: Mapping[str, np.ndarray], *, gates: Sequence[str] = (), title: str | None = None) -> Figure:
    """W, eta and lambda side by side; a map whose values are all equal is a number in the title instead.

    Args:
        maps: {"W": (H, D), "eta": ...}; (H, 1) and (1, D) hold one value per hidden unit or per input.
        gates: names of the equal blocks of rows of every map, as a GRU and an LSTM have them.
    """
    matrices = {name: np.atleast_2d(np.asarray(matrix, float)) for name, matrix in maps.items()}
    drawn = {name: matrix for name, matrix in matrices.items() if np.ptp(matrix) > 0}
    fig, axes = new_panels(max(6.4, 0.6 + 3.2 * len(drawn)), 3.8, 1, max(1, len(drawn)))
    for ax, (name, matrix) in zip(axes[0], drawn.items(), strict=False):
        plot_map(matrix, ax, label=name)
        if gates:
            units = len(matrix) / len(gates)
            ax.set_yticks((np.arange(len(gates)) + 0.5) * units - 0.5, gates)
            for place in range(1, len(gates)):
                ax.axhline(place * units - 0.5, color=INK, lw=0.8)
            ax.set_ylabel(f"gate ({units:g} hidden units each)")
        if "recurrent" in name:
            ax.set_xlabel("hidden unit of the step before")
        ax.set_title(f"{name}: {matrix.mean():.3g} ± {matrix.std():.2g} (sd)", fontsize=9)
    alike = ", ".join(f"{name} = {matrix.flat[0]:.4g}" for name, matrix in matrices.items() if name not in drawn)
    if not drawn:
        write_reason(axes[0, 0], f"not available: no map varies ({alike})")
    page_title(fig, title, f"for all synapses {alike}" if alike else None)
    return fig


@house_style()
def snapshots_figure(
    snapshots: Mapping[str, Mapping[str, np.ndarray]], *, name: str = "M", title: str | None = None
) -> Figure:
    """M at the ends of periods: a column per period, a row per label, and the difference where there are two labels.

    Args: snapshots: `trials.at_period_ends`, {period: {label: (H, D)}}.
    """
    labels = list(dict.fromkeys(label for of_period in snapshots.values() for label in of_period))[:4]
    lines = [*labels, "difference"] if len(labels) == 2 else labels
    fig, axes = new_panels(1.7 * len(snapshots) + 1.2, 2.1 * len(lines) + 0.5, len(lines), len(snapshots))
    largest = max((float(np.abs(image).max()) for shown in snapshots.values() for image in shown.values()), default=0.0)
    for row, line in enumerate(lines):
        images = {}
        for column, (period, of_label) in enumerate(snapshots.items()):
            if line == "difference" and all(label in of_label for label in labels):
                images[column] = of_label[labels[1]] - of_label[labels[0]]
            elif line in of_label:
                images[column] = of_label[line]
            axes[row, column].set_title(f"end of {period}" if row == 0 else "", fontsize=9)
        size = largest if line in labels else max(float(np.abs(image).max()) for image in images.values())
        for column, ax in enumerate(axes[row]):
            if column not in images:
                write_reason(ax, "not available: no such trial")
                continue
            drawn = ax.imshow(
                np.atleast_2d(images[column]), cmap=SIGNED, norm=CenteredNorm(0, size or 1), aspect="auto"
            )
            ax.set(xlabel="input" if row == len(lines) - 1 else "", xticks=[], yticks=[])
        axes[row, 0].set_ylabel(f"{line}\nhidden unit" if line != "difference" else f"{labels[1]} - {labels[0]}")
        colour_bar(drawn, axes[row].tolist(), f"mean {name}", pad=0.01)
    page_title(fig, title)
    return fig


@house_style()
def plot_readout(projection: ReadoutProjection, ax: Axes, shown: int = 10) -> Axes:
    """Cosines of each action's readout vector with the first `shown` principal components.

    The legend gives the share of its squared length within all fitted components.
    """
    cosines = projection.cosines[:, :shown]
    width = 0.8 / len(cosines)
    for index, (line, inside) in enumerate(zip(cosines, projection.inside, strict=True)):
        places = np.arange(1, len(line) + 1) + (index - (len(cosines) - 1) / 2) * width
        label = f"action {index} ({100 * inside:.0f} % in {projection.cosines.shape[1]} components)"
        ax.bar(places, line, width * 0.92, color=OTHER_COLOURS[index % 8], label=label)
    ax.axhline(0, color=INK, lw=0.8)
    ax.set_xticks(range(1, cosines.shape[1] + 1))
    ax.set(xlabel="principal component of h", ylabel="cosine with the readout vector")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)  # above the bars, never on them
    return ax


@house_style()
def readout_figure(projection: ReadoutProjection, *, title: str | None = None) -> Figure:
    """`plot_readout` as a figure; a map (actions down, components across) for more than eight actions."""
    fig, ax = new_figure(7, 3.6)
    if len(projection.cosines) <= 8:
        plot_readout(projection, ax)
    else:
        plot_map(projection.cosines, ax, label="cosine with the readout vector")
        ax.set(xlabel="principal component of h, from 0", ylabel="action")
    page_title(fig, title)
    return fig
