"""Figures of behaviour and of several runs, and the parts that all analysis figures share.

A function takes what the measure of the same name returns, or the sentence of a `MissingDataError`
(`confidence_intervals.attempt`), which the panel then shows. Style, saving and colours: `visualize`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from mpn_rl.analysis.behaviour import ByCondition, Confusion, Psychometric, Rates
from mpn_rl.analysis.comparison.over_seeds import CurveOverSeeds
from mpn_rl.analysis.confidence_intervals import Estimate, GroupScore, Improvement
from mpn_rl.analysis.evidence_weights import IRRELEVANT, RELEVANT, EvidenceWeights
from visualize import (
    MODEL_COLOURS,
    MODEL_NAMES,
    OTHER_COLOURS,
    PERIOD_TINTS,
    STATE_COLOURS,
    house_style,
    new_figure,
    new_panels,
    page_title,
    reference_line,
    short,
    thousands,
)

INK = "#222222"
BLUE, ORANGE = OTHER_COLOURS[0], OTHER_COLOURS[1]
Series = Mapping[str, tuple[ArrayLike, Estimate[np.ndarray]]]  # {name: (x (k,), arrays (k,))}


# --- parts of figures ---------------------------------------------------------------------------------------


def write_reason(ax: Axes, sentence: str, title: str = "") -> Axes:
    """An empty panel with the sentence that says what is missing."""
    ax.axis("off")
    ax.set_title(title)
    ax.text(0, 0.95, textwrap.fill(sentence, 38), va="top", color="#666666", transform=ax.transAxes)
    return ax


def shade_periods(ax: Axes, marks: Mapping[str, float], end: float) -> Axes:
    """Tint each period and write its name above the axes, alternating between two heights.

    Args:
        marks: {period: time at which it begins}, in order.
        end: time at which the last period ends.
    """
    edges = [*marks.values(), end]
    for place, (name, start, stop) in enumerate(zip(marks, edges[:-1], edges[1:], strict=True)):
        ax.axvspan(start, stop, color=PERIOD_TINTS[place % len(PERIOD_TINTS)], lw=0, zorder=0)
        ax.axvline(start, color="#DDDDDD", lw=0.6, zorder=0)
        ax.annotate(name, (start, 1), (1, 2 + 9 * (place % 2)), xycoords=("data", "axes fraction"),
                    textcoords="offset points", fontsize=7, color="#666666")  # fmt: skip
    ax.set_xlim(edges[0], end)
    return ax


def model_name(name: str) -> str:
    """mpn -> MPN, mpn-frozen -> frozen MPN; other names do not change."""
    return MODEL_NAMES.get(name, name.upper() if name in MODEL_COLOURS else name)


def intervals(
    ax: Axes,
    x: ArrayLike,
    estimate: Estimate,
    colour: str,
    *,
    across: bool = False,
    ms: float = 5,
    elinewidth: float = 1.2,
    fmt: str = "o",
    label: str | None = None,
) -> Axes:
    """Points with their 95 % intervals as thin bars.

    Args:
        x: position of each point, (k,) or one number.
        across: draw the values along the x axis and `x` along the y axis.
        ms, elinewidth, fmt, label: as in `Axes.errorbar`.
    """  # fmt: skip
    value, low, high = (np.atleast_1d(np.asarray(part, float)) for part in estimate[:3])
    error = np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)
    first, second = (value, x) if across else (x, value)
    ax.errorbar(first, second, xerr=error if across else None, yerr=None if across else error, fmt=fmt, ms=ms,
                color=colour, elinewidth=elinewidth, capsize=0, label=label)  # fmt: skip
    return ax


@house_style()
def plot_bands(series: Series, ax: Axes, *, colours: Mapping[str, str] | None = None, of: str = "trials") -> Axes:
    """Lines over x with their 95 % bands; the legend states n.

    Args:
        series: {name: (x (k,), Estimate of arrays (k,))}; nan ends draw no band.
        colours: {name: colour}, for names that are neither cores nor states.
        of: what n counts, in the plural.
    """
    for index, (name, (x, estimate)) in enumerate(series.items()):
        colour = {**MODEL_COLOURS, **STATE_COLOURS, **(colours or {})}.get(name, OTHER_COLOURS[index % 8])
        n = np.unique(np.atleast_1d(estimate.n)[np.atleast_1d(estimate.n) > 0])
        count = f"{n[0]:,.0f}" if len(n) == 1 else f"{n[0]:,.0f}-{n[-1]:,.0f}" if len(n) else "0"
        alone = "" if np.isfinite(estimate.low).any() else ", no interval"
        marker = "o" if len(np.atleast_1d(x)) < 12 else ""
        label = f"{model_name(name)} (n = {count} {of.removesuffix('s') if count == '1' else of}{alone})"
        ax.plot(x, estimate.value, marker=marker, ms=4, lw=2, color=colour, label=label, zorder=4)
        ax.fill_between(x, estimate.low, estimate.high, color=colour, alpha=0.22, lw=0, zorder=3)
    ax.legend(title="band: 95 % interval", title_fontsize=8, alignment="left", loc="lower right")
    return ax


@house_style()
def curve_figure(
    series: Series,
    *,
    xlabel: str,
    ylabel: str,
    of: str = "trials",
    reference: tuple[float, str] | None = None,
    marks: Mapping[str, float] | None = None,
    log: bool = False,
    title: str | None = None,
) -> Figure:
    """`plot_bands` in one panel, with the legend below it.

    Args:
        series, of: as in `plot_bands`.
        reference: height and name of a dashed line.
        marks: {period: its first x}; the periods are tinted.
        log: whether x is logarithmic above its smallest positive value.
    """
    fig, ax = new_figure(6.4, 3.8)
    plot_bands(series, ax, of=of)
    ax.legend().remove()  # a legend inside the axes could hide a line
    fig.legend(title="band: 95 % interval", title_fontsize=8, alignment="left", loc="outside lower left", ncols=2)
    x = np.concatenate([np.asarray(own, float) for own, _ in series.values()])
    if marks:
        shade_periods(ax, marks, float(x.max()) + 1)
    if reference is not None and np.isfinite(reference[0]):
        reference_line(ax, reference[1], reference[0])  # its name is outside the axes, where it cannot hide a line
    if log and (x > 0).any():
        if x.min() > 0:
            ax.set_xscale("log")
        else:
            least = float(x[x > 0].min())
            ax.set_xscale("symlog", linthresh=least, linscale=0.3)  # from 0 to the first step as far as a factor of 2
            ax.set_xlim(min(x.min(), 0) - 0.1 * least, 1.15 * x.max())  # the default leaves a third empty
        ticks = np.unique(x)
        ax.set_xticks(ticks, [short(tick) for tick in ticks])
        ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    page_title(fig, title)
    return fig


# --- behaviour ----------------------------------------------------------------------------------------------


@house_style()
def plot_psychometric(fit: Psychometric | str, ax: Axes, *, label: str, choice: str = "of the higher action") -> Axes:
    """Measured shares with 95 % intervals, the fitted curve and its band; the title gives bias and threshold.

    Args: label: name of the evidence. choice: which choices are counted.
    """
    if isinstance(fit, str):
        return write_reason(ax, fit, "psychometric curve")
    ax.axhline(0.5, color="#CCCCCC", lw=0.8, zorder=1)
    ax.axvline(0, color="#CCCCCC", lw=0.8, zorder=1)
    ax.fill_between(fit.x, *fit.band, color=BLUE, alpha=0.22, lw=0, label="95 % band of the fit")
    ax.plot(fit.x, fit.curve, color=BLUE, lw=2, label="fitted logistic")
    intervals(ax, fit.levels, fit.measured, INK, label=f"measured (n = {fit.n:,} trials)")
    ax.set(xlabel=f"signed {label}", ylabel=f"share of choices {choice}", ylim=(-0.03, 1.03))
    ax.legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), ncols=2, fontsize=7, handlelength=1.2,
              columnspacing=1.0)  # fmt: skip
    shown = {name: fit.parameters[name] for name in ("bias", "threshold")}
    unit = " %" if label.endswith("(%)") else ""
    text = ", ".join(
        f"{name} not determined"
        if name in fit.undetermined
        else f"{name} {round(part.value, 6):.2g}{unit} [{part.low:.2g}, {part.high:.2g}]"
        for name, part in shown.items()
    )
    ax.set_title(f"psychometric curve\n{text}", fontsize=9, pad=32)
    return ax


@house_style()
def plot_accuracy_by_condition(groups: Sequence[ByCondition] | str, ax: Axes) -> Axes:
    """Accuracy with its 95 % interval for each value of every condition, with n."""
    if isinstance(groups, str):
        return write_reason(ax, groups, "accuracy by condition")
    ax.set_title("accuracy by condition", fontsize=9)
    place, ticks, names = 0.0, [], []
    for index, group in enumerate(groups):
        places = place + np.arange(len(group.labels))
        intervals(ax, places, group.score, INK if index == 0 else OTHER_COLOURS[(index - 1) % 7], across=True)
        prefix = "" if index == 0 else f"{group.name} = "
        ticks += places.tolist()
        counts = np.atleast_1d(group.score.n)
        names += [f"{prefix}{short(kind)}  ({n:,})" for kind, n in zip(group.labels, counts, strict=True)]
        place = places[-1] + 1.7
    ax.set_yticks(ticks, names, fontsize=7 if len(ticks) > 12 else 8)
    ax.invert_yaxis()
    ax.set(xlabel="accuracy, 95 % interval (n trials)", xlim=(None, 1.02))
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    return ax


@house_style()
def plot_rates(rates: Rates | str, ax: Axes, unit: str = "ms") -> Axes:
    """Shares of decided and aborted trials, of withheld decisions, and of steps with an action in each period."""
    if isinstance(rates, str):
        return write_reason(ax, rates, "response rates")
    bars = {"trials decided": rates.decided, "trials aborted": rates.aborted, "decisions withheld": rates.withheld}
    bars |= {f"acting in {name}": share for name, share in rates.acting.items()}
    for place, share in enumerate(bars.values()):
        colour = BLUE if place < 2 else "#8DB9D9"
        ax.barh(place, share.value, color=colour, height=0.66)
        intervals(ax, place, share, INK, across=True, fmt="none")
    counts = [f"{name}  ({int(share.n):,})" for name, share in bars.items()]
    ax.set_yticks(range(len(bars)), counts)
    ax.invert_yaxis()
    ax.set(xlabel="share of trials or steps, 95 % interval (n)", xlim=(0, 1.02))
    reaction = (
        f"; mean reaction time {rates.reaction.value:.3g} {unit}" if rates.reaction and rates.reaction.value else ""
    )
    ax.set_title(f"response rates{reaction}", fontsize=9)
    return ax


@house_style()
def plot_confusion(confusion: Confusion | str, ax: Axes) -> Axes:
    """Number of trials by right and chosen action; the colour is the share within the row."""
    if isinstance(confusion, str):
        return write_reason(ax, confusion, "trials by right and chosen action")
    counts = confusion.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    if counts.size <= 64:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else INK
            ax.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(len(confusion.choices)), [short(kind) for kind in confusion.choices])
    ax.set_yticks(range(len(confusion.truths)), [short(kind) for kind in confusion.truths])
    ax.set(xlabel="chosen action", ylabel="right action")
    ax.set_title(f"trials by right and chosen action (n = {counts.sum():,})", fontsize=9)
    return ax


@house_style()
def behaviour_figure(
    fit: Psychometric | str,
    groups: Sequence[ByCondition] | str,
    rates: Rates | str,
    confusion: Confusion | str,
    *,
    label: str = "evidence",
    unit: str = "ms",
    title: str | None = None,
) -> Figure:
    """Psychometric curve, accuracy by condition, response rates and confusion of choices in four panels."""
    fig, axes = new_panels(10, 7.2, 2, 2)
    plot_psychometric(fit, axes[0, 0], label=label)
    plot_accuracy_by_condition(groups, axes[0, 1])
    plot_rates(rates, axes[1, 0], unit)
    plot_confusion(confusion, axes[1, 1])
    page_title(fig, title)
    return fig


@house_style()
def evidence_figure(
    weights: EvidenceWeights, time: np.ndarray, *, unit: str = "ms", title: str | None = None
) -> Figure:
    """Choices by the strength of each cue, and the weight of its noise over time.

    Args: weights: `evidence_weights.evidence_weights`. time: of its columns, (k,).
    """
    fig, axes = new_panels(8.6, 3.8, 1, 2)
    curves, kernel = axes[0]
    colours = {RELEVANT: BLUE, IRRELEVANT: ORANGE}
    for cue, levels in weights.levels.items():
        curves.plot(levels, weights.shares[cue].value, lw=1.4, color=colours[cue])
        intervals(curves, levels, weights.shares[cue], colours[cue], label=f"{cue} (n = {weights.n:,} trials)")
        part = weights.weights[cue]
        kernel.plot(time, part.value, marker="o", ms=3.5, lw=2, color=colours[cue])
        kernel.fill_between(time, part.low, part.high, color=colours[cue], alpha=0.22, lw=0)
    curves.axhline(0.5, color="#CCCCCC", lw=0.8, zorder=1)
    kernel.axhline(0, color="#999999", lw=0.8, ls=(0, (4, 3)), zorder=1)
    curves.set(xlabel="signed strength of the cue", ylabel="share of choices of the higher action", ylim=(-0.03, 1.03))
    kernel.set(xlabel=f"time in trial ({unit})", ylabel="change of this share\nper sd of the noise")
    fig.legend(title="95 % intervals", title_fontsize=8, alignment="left", loc="outside lower left", ncols=2)
    page_title(fig, title)
    return fig


# --- several runs -------------------------------------------------------------------------------------------


def plot_groups(rows: Sequence[GroupScore], groups: Sequence[str], ax: Axes) -> Axes:
    """Interquartile means of one measure with 95 % intervals, a line per group; small points are single seeds."""
    own = {row.group: row for row in rows}
    for place, group in enumerate(groups):
        if group in own:
            row = own[group]
            colour = MODEL_COLOURS.get(group, OTHER_COLOURS[place % len(OTHER_COLOURS)])
            ax.plot(row.scores, np.full(len(row.scores), place + 0.22), "o", ms=3, alpha=0.5, mew=0, color=colour)
            intervals(ax, place, row.iqm, colour, across=True, elinewidth=2.4, ms=6)
    counts = [f"n = {own[group].iqm.n}" if group in own else "none" for group in groups]
    ax.set_yticks(range(len(groups)), [f"{model_name(g)} ({n})" for g, n in zip(groups, counts, strict=True)])
    return ax


def plot_improvements(pairs: Sequence[Improvement], ax: Axes) -> Axes:
    """Probabilities of improvement in one measure with 95 % intervals, a line per pair of groups."""
    for place, pair in enumerate(pairs):
        intervals(ax, place, pair.probability, INK, across=True)
    ax.axvline(0.5, color="#999999", lw=0.8, ls=(0, (4, 3)))
    names = [f"{model_name(pair.group)} > {model_name(pair.other)} (n = {pair.probability.n})" for pair in pairs]
    ax.set_yticks(range(len(pairs)), names)
    ax.set(xlim=(-0.03, 1.03), xlabel="probability", xticks=(0, 0.5, 1))
    return ax


SMALL_IQM = "large: interquartile mean, 95 % t interval over n seeds; small: single seeds"
SMALL_BETTER = "probability that a run of the first group scores higher, 95 % score interval, n runs of both groups"


@house_style()
def comparison_page(
    rows: Sequence[GroupScore],
    pairs: Sequence[Improvement],
    curves: Mapping[str, tuple[str, Series] | str],
    *,
    title: str | None = None,
) -> Figure:
    """Learning curves, interquartile means and probabilities of improvement of several groups of runs.

    Args:
        rows, pairs: from `confidence_intervals.compare`.
        curves: {task: (y label, {group: `learning_band`}), or the sentence that says what is missing}.
    """
    measures = list(dict.fromkeys(row.measure for row in rows))
    paired = list(dict.fromkeys(pair.measure for pair in pairs))
    groups = list(dict.fromkeys(row.group for row in rows))
    most = max((sum(pair.measure == measure for pair in pairs) for measure in paired), default=0)
    # Number of panels of each of the three parts, and the height of a row of panels.
    parts = [
        (len(curves), 3.4 + 0.17 * len(groups)),
        (len(measures), 1.0 + 0.34 * len(groups)),
        (len(paired), 1.1 + 0.3 * most),
    ]
    heights = [-(-count // ABREAST) * height for count, height in parts if count]
    columns = min(ABREAST, max(count for count, _ in parts))
    fig = Figure(figsize=(max(5.6, 4.2 * columns), 0.6 + sum(heights)), layout="constrained")
    pieces = np.atleast_1d(fig.subfigures(len(heights), 1, height_ratios=heights))
    colours = _colours(groups)
    for ax, (task, curve) in zip(_panels(pieces[0], len(curves)), curves.items(), strict=True):
        if isinstance(curve, str):
            write_reason(ax, curve, task)
            continue
        ylabel, bands = curve
        plot_bands(bands, ax, of="seeds", colours=colours)
        ax.set(xlabel="environment steps", ylabel=ylabel, xlim=(0, None))
        ax.xaxis.set_major_formatter(thousands)
        _legend_above(ax, task, len(bands), 2 if len(curves) == 1 else 1)
    for ax, measure in zip(_panels(pieces[1], len(measures)), measures, strict=True):
        plot_groups([row for row in rows if row.measure == measure], groups, ax)
        ax.set(ylim=(len(groups) - 0.4, -0.6))
        ax.set_xlabel(measure, fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="x", color="#EEEEEE")
    page_title(pieces[1], SMALL_IQM, size=8)
    if paired:
        for ax, measure in zip(_panels(pieces[2], len(paired)), paired, strict=True):
            plot_improvements([pair for pair in pairs if pair.measure == measure], ax)
            ax.set(ylim=(most - 0.4, -0.6))
            ax.set_xlabel(measure, fontsize=8)
        page_title(pieces[2], SMALL_BETTER, size=8)
    page_title(fig, title, "learning curves: interquartile mean over seeds, band: 95 % t interval")
    return fig


@house_style()
def psychometric_page(curves: Mapping[str, tuple[str, Series]], *, title: str | None = None) -> Figure:
    """Share of choices of the higher action by signed strength of the evidence, a panel per task, a line per group.

    Args: curves: {task: (name of the strength, {group: `behaviour.choices_over_seeds`})}.
    """
    groups = list(dict.fromkeys(group for _, bands in curves.values() for group in bands))
    columns = min(ABREAST, len(curves))
    height = -(-len(curves) // columns) * (3.6 + 0.17 * len(groups))
    fig = Figure(figsize=(max(5.6, 4.2 * columns), 0.6 + height), layout="constrained")
    colours = _colours(groups)
    for ax, (task, (label, bands)) in zip(_panels(fig, len(curves)), curves.items(), strict=True):
        ax.axhline(0.5, color="#CCCCCC", lw=0.8, zorder=1)
        ax.axvline(0, color="#CCCCCC", lw=0.8, zorder=1)
        plot_bands(bands, ax, of="seeds", colours=colours)
        ax.set(xlabel=f"signed {label}", ylabel="share of choices of the higher action", ylim=(-0.03, 1.03))
        _legend_above(ax, task, len(bands), 2 if len(curves) == 1 else 1)
    page_title(fig, title, "psychometric curves: mean over seeds, t intervals")
    return fig


@house_style()
def measures_page(
    curves: Mapping[str, CurveOverSeeds], numbers: Mapping[str, Sequence[GroupScore]], *, title: str | None = None
) -> Figure:
    """Curves and numbers of single analyses over seeds, a panel each.

    Args: curves: {name: `over_seeds.curve_over_seeds`}. numbers: {name: `over_seeds.number_over_seeds`}.
    """
    groups = list(dict.fromkeys(group for curve in curves.values() for group in curve.groups))
    groups = list(dict.fromkeys([*groups, *(row.group for rows in numbers.values() for row in rows)]))
    heights = [-(-len(curves) // ABREAST) * (3.2 + 0.2 * len(groups)),
               -(-len(numbers) // ABREAST) * (1.0 + 0.34 * len(groups))]  # fmt: skip
    kinds = [(height, count) for height, count in zip(heights, (len(curves), len(numbers)), strict=True) if count]
    columns = min(ABREAST, max(len(curves), len(numbers)))
    fig = Figure(figsize=(max(5.6, 4.2 * columns), 0.6 + sum(heights)), layout="constrained")
    pieces = np.atleast_1d(fig.subfigures(len(kinds), 1, height_ratios=[height for height, _ in kinds]))
    colours = _colours(groups)
    for ax, (name, curve) in zip(_panels(pieces[0], len(curves)) if curves else (), curves.items(), strict=True):
        plot_bands(curve.groups, ax, of="seeds", colours=colours)
        if curve.marks:
            x = next(iter(curve.groups.values()))[0]
            shade_periods(ax, curve.marks, float(x[-1] + np.diff(x[-2:]).sum()))
        ax.set(xlabel=curve.xlabel, ylabel=curve.ylabel)
        ax.legend(title="band: 95 % interval", title_fontsize=8, alignment="left", loc="upper left",
                  bbox_to_anchor=(-0.02, -0.2))  # fmt: skip
        ax.set_title(name, pad=24 if curve.marks else 6, fontsize=9)
    for ax, (name, rows) in zip(_panels(pieces[-1], len(numbers)) if numbers else (), numbers.items(), strict=True):
        plot_groups(rows, groups, ax)
        ax.set(ylim=(len(groups) - 0.4, -0.6))
        ax.set_xlabel(textwrap.fill(name, 44), fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="x", color="#EEEEEE")
    page_title(fig, title, "means over seeds, 95 % t intervals; small points: single seeds")
    return fig


def _colours(groups: Sequence[str]) -> dict[str, str]:
    """A colour for each group that is not a core, which has its own."""
    return {
        group: OTHER_COLOURS[place % len(OTHER_COLOURS)]
        for place, group in enumerate(groups)
        if group not in MODEL_COLOURS
    }


def _legend_above(ax: Axes, title: str, lines: int, abreast: int) -> None:
    """The legend of `plot_bands`, `abreast` entries in a row, between the axes and their title."""
    ax.legend(title="band: 95 % interval", title_fontsize=8, alignment="left", loc="lower left",
              bbox_to_anchor=(-0.02, 1.0), ncols=abreast)  # fmt: skip
    ax.set_title(title, pad=24 + 12 * -(-lines // abreast))


ABREAST = 3


def _panels(part: Figure | SubFigure, count: int) -> list[Axes]:
    """`count` axes in as few rows of ABREAST or fewer as hold them, the same number in each row if possible."""
    rows = -(-count // ABREAST)
    axes = part.subplots(rows, -(-count // rows), squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.axis("off")
    return axes[:count]
