"""Pictures of what agents do, and of several runs side by side; the parts that all pictures of the analysis share.

Functions take what the measure of the same name returns. In its place they take the sentence of a `MissingDataError`
(`confidence_intervals.attempt`): the panel then says what is missing. Style, saving and colours: `visualize`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpn_rl.analysis.behaviour import ByCondition, Confusion, Psychometric, Rates
from mpn_rl.analysis.confidence_intervals import Estimate, GroupScore, Improvement
from visualize import (
    MODEL_COLOURS,
    MODEL_NAMES,
    OTHER_COLOURS,
    PERIOD_TINTS,
    STATE_COLOURS,
    house_style,
    new_figure,
    page_title,
    short,
    thousands,
)

INK = "#222222"
BLUE, ORANGE = OTHER_COLOURS[0], OTHER_COLOURS[1]


# --- parts of pictures --------------------------------------------------------------------------------------


def say(ax: Axes, sentence: str, title: str = "") -> Axes:
    """A panel that says why it is empty."""
    ax.axis("off")
    ax.set_title(title)
    ax.text(0, 0.95, textwrap.fill(sentence, 38), va="top", color="#666666", transform=ax.transAxes)
    return ax


def shade_periods(ax: Axes, marks: Mapping[str, float], end: float) -> Axes:
    """Tints from each period's first time to the next one's, named above the axes, by turns on two heights."""
    edges = [*marks.values(), end]
    for place, (name, start, stop) in enumerate(zip(marks, edges[:-1], edges[1:], strict=True)):
        ax.axvspan(start, stop, color=PERIOD_TINTS[place % len(PERIOD_TINTS)], lw=0, zorder=0)
        ax.axvline(start, color="#DDDDDD", lw=0.6, zorder=0)
        ax.annotate(name, (start, 1), (1, 2 + 9 * (place % 2)), xycoords=("data", "axes fraction"),
                    textcoords="offset points", fontsize=7, color="#666666")  # fmt: skip
    ax.set_xlim(edges[0], end)
    return ax


def title_page(fig: Figure, *lines: str | None) -> None:
    """Lines at the head of a page, each wrapped to the figure's width."""
    width = int(12 * fig.get_figwidth())
    page_title(fig, "\n".join(textwrap.fill(line, width) for line in lines if line))


def model_name(name: str) -> str:
    """mpn -> MPN, mpn-frozen -> frozen MPN; what is no core stays as it is."""
    return MODEL_NAMES.get(name, name.upper() if name in MODEL_COLOURS else name)


def intervals(ax: Axes, x: Any, estimate: Estimate, colour: str, *, across: bool = False, **style: Any) -> Axes:
    """Points with their 95 % intervals as thin bars; across: values along x, one line each."""
    value, low, high = (np.atleast_1d(np.asarray(part, float)) for part in estimate[:3])
    error = np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)
    style = {"fmt": "o", "ms": 5, "color": colour, "elinewidth": 1.2, "capsize": 0, **style}
    ax.errorbar(value, x, xerr=error, **style) if across else ax.errorbar(x, value, yerr=error, **style)
    return ax


@house_style()
def plot_bands(
    series: Mapping[str, tuple[Any, Estimate]],
    ax: Axes,
    *,
    colours: Mapping[str, str] | None = None,
    of: str = "trials",
) -> Axes:
    """Lines over x with their 95 % bands, {name: (x (k,), Estimate of arrays (k,))}; the legend states n.

    A series without intervals is a line alone. `of` says what n counts.
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
    series: Mapping[str, tuple[Any, Estimate]],
    *,
    xlabel: str,
    ylabel: str,
    of: str = "trials",
    reference: tuple[float, str] | None = None,
    marks: Mapping[str, float] | None = None,
    log: bool = False,
    title: str | None = None,
) -> Figure:
    """One panel of `plot_bands`.

    Args: reference: a dashed line's height and name. marks: {period: its first x}, shaded. log: a logarithmic x beyond
    its smallest positive value.
    """
    fig, ax = new_figure(6.4, 3.8)
    plot_bands(series, ax, of=of)
    ax.get_legend().remove()  # below the axes instead: such lines may run anywhere
    fig.legend(title="band: 95 % interval", title_fontsize=8, alignment="left", loc="outside lower left", ncols=2)
    x = np.concatenate([np.asarray(own, float) for own, _ in series.values()])
    if marks:
        shade_periods(ax, marks, float(x.max()) + 1)
    if reference is not None and np.isfinite(reference[0]):
        ax.axhline(reference[0], color="#777777", lw=0.9, ls=(0, (4, 3)), zorder=2)
        ax.annotate(reference[1], (1, reference[0]), (-2, 3), xycoords=("axes fraction", "data"), ha="right",
                    textcoords="offset points", fontsize=7.5, color="#555555")  # fmt: skip
    if log and (x > 0).any():
        if x.min() > 0:
            ax.set_xscale("log")
        else:
            ax.set_xscale("symlog", linthresh=float(x[x > 0].min()))
        ticks = np.unique(x)
        ax.set_xticks(ticks, [short(tick) for tick in ticks])
        ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    title_page(fig, title)
    return fig


@house_style()
def plot_learning_bands(curves: Mapping[str, tuple[Any, Estimate]], ax: Axes, ylabel: str = "greedy accuracy") -> Axes:
    """Learning curves, {core: confidence_intervals.learning_band(...)}: interquartile mean over seeds and its band."""
    plot_bands(curves, ax, of="seeds")
    ax.set(xlabel="environment steps", ylabel=ylabel, xlim=(0, None))
    ax.xaxis.set_major_formatter(thousands)
    ax.legend(title="interquartile mean; band: 95 % bootstrap over seeds", title_fontsize=8, alignment="left",
              loc="lower right")  # fmt: skip
    return ax


# --- behaviour ----------------------------------------------------------------------------------------------


@house_style()
def plot_psychometric(fit: Psychometric | str, ax: Axes, *, label: str, choice: str = "of the higher action") -> Axes:
    """Measured shares with their intervals, the fitted curve and its band; its parameters in the legend."""
    if isinstance(fit, str):
        return say(ax, fit, "psychometric curve")
    ax.axhline(0.5, color="#CCCCCC", lw=0.8, zorder=1)
    ax.axvline(0, color="#CCCCCC", lw=0.8, zorder=1)
    ax.fill_between(fit.x, *fit.band, color=BLUE, alpha=0.22, lw=0, label="its 95 % band")
    ax.plot(fit.x, fit.curve, color=BLUE, lw=2, label="fitted logistic")
    intervals(ax, fit.levels, fit.measured, INK, mfc="white", zorder=5, label=f"n = {fit.n:,} trials")
    ax.set(xlabel=f"signed {label}", ylabel=f"share of choices {choice}", ylim=(-0.03, 1.03))
    ax.legend(loc="lower right", handlelength=1.4)
    shown = {name: fit.parameters[name] for name in ("bias", "threshold")}
    text = ", ".join(f"{name} {part.value:.2g} [{part.low:.2g}, {part.high:.2g}]" for name, part in shown.items())
    ax.set_title(text, fontsize=9)
    return ax


@house_style()
def plot_accuracy_by_condition(groups: Sequence[ByCondition] | str, ax: Axes) -> Axes:
    """One line per value of every condition, with n."""
    if isinstance(groups, str):
        return say(ax, groups, "accuracy by condition")
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
    """Shares of trials decided and withheld, and of the steps of each period on which the agent acts."""
    if isinstance(rates, str):
        return say(ax, rates, "responses")
    bars = {"trials decided": rates.decided, "decisions withheld": rates.withheld}
    bars |= {f"acting in {name}": share for name, share in rates.acting.items()}
    for place, share in enumerate(bars.values()):
        colour = BLUE if place < 2 else "#8DB9D9"
        ax.barh(place, share.value, color=colour, height=0.66)
        intervals(ax, place, share, INK, across=True, fmt="none")
    counts = [f"{name}  ({int(share.n):,})" for name, share in bars.items()]
    ax.set_yticks(range(len(bars)), counts)
    ax.invert_yaxis()
    ax.set(xlabel="share of trials or of steps, 95 % interval (n)", xlim=(0, 1.02))
    if rates.reaction is not None:
        ax.set_title(f"mean reaction {rates.reaction.value:.3g} {unit} after the deciding period begins", fontsize=9)
    return ax


@house_style()
def plot_confusion(confusion: Confusion | str, ax: Axes) -> Axes:
    """How often each action was chosen where each was right; colour: the row's share, number: trials."""
    if isinstance(confusion, str):
        return say(ax, confusion, "choices")
    counts = confusion.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    if counts.size <= 64:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else INK
            ax.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(len(confusion.choices)), [short(kind) for kind in confusion.choices])
    ax.set_yticks(range(len(confusion.truths)), [short(kind) for kind in confusion.truths])
    ax.set(xlabel="action chosen", ylabel="right action")
    ax.set_title(f"trials by choice (n = {counts.sum():,})", fontsize=9)
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
    """The four panels of behaviour on one page."""
    fig, axes = new_figure(9, 7, 2, 2)
    plot_psychometric(fit, axes[0, 0], label=label)
    plot_accuracy_by_condition(groups, axes[0, 1])
    plot_rates(rates, axes[1, 0], unit)
    plot_confusion(confusion, axes[1, 1])
    title_page(fig, title)
    return fig


# --- several runs -------------------------------------------------------------------------------------------


def _one_panel_each(names: Sequence[str], lines: int, width: float) -> tuple[Figure, np.ndarray]:
    """A figure with a panel per name, at most three in a row, each with room for so many lines."""
    columns = min(3, max(len(names), 1))
    rows = max(1, -(-len(names) // columns))
    fig, axes = new_figure(max(4.5, width * columns), 0.4 + rows * (0.9 + 0.34 * lines), rows, columns)
    axes = np.atleast_1d(axes).ravel()
    for ax in axes[len(names) :]:
        ax.axis("off")
    for ax, name in zip(axes, names, strict=False):
        ax.set(xlabel=name, ylim=(lines - 0.4, -0.6))
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="x", color="#EEEEEE")
        ax.set_axisbelow(True)
    return fig, axes


def plot_groups(rows: Sequence[GroupScore], groups: Sequence[str], ax: Axes) -> Axes:
    """One measure's interquartile means with intervals, a line per group, and single seeds below them."""
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
    """One measure's probabilities of improvement, a line per pair of groups."""
    for place, pair in enumerate(pairs):
        intervals(ax, place, pair.probability, INK, across=True)
    ax.axvline(0.5, color="#999999", lw=0.8, ls=(0, (4, 3)))
    names = [f"{model_name(pair.group)} > {model_name(pair.other)} (n = {pair.probability.n})" for pair in pairs]
    ax.set_yticks(range(len(pairs)), names)
    ax.set(xlim=(-0.03, 1.03), xlabel="probability", xticks=(0, 0.5, 1))
    return ax


SMALL_IQM = "large: interquartile mean, 95 % bootstrap over n seeds; small: single seeds"
SMALL_BETTER = "probability that a run of the first scores higher, 95 % bootstrap; n runs of both together"


@house_style()
def comparison_figure(rows: Sequence[GroupScore], *, title: str | None = None) -> Figure:
    """The rows of `compare`: interquartile means with intervals, and single seeds, a panel per measure."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    groups = list(dict.fromkeys(row.group for row in rows))
    fig, axes = _one_panel_each(measures, len(groups), 3.2)
    for ax, measure in zip(axes, measures, strict=False):
        plot_groups([row for row in rows if row.measure == measure], groups, ax)
    title_page(fig, title, SMALL_IQM)
    return fig


@house_style()
def improvement_figure(pairs: Sequence[Improvement], *, title: str | None = None) -> Figure:
    """The pairs of `compare`: how probably a run of one group scores higher, a panel per measure."""
    measures = list(dict.fromkeys(pair.measure for pair in pairs))
    most = max((sum(pair.measure == measure for pair in pairs) for measure in measures), default=1)
    fig, axes = _one_panel_each(measures, most, 3.2)
    for ax, measure in zip(axes, measures, strict=False):
        plot_improvements([pair for pair in pairs if pair.measure == measure], ax)
        ax.set_title(measure, fontsize=9)
    title_page(fig, title, SMALL_BETTER)
    return fig


@house_style()
def comparison_page(
    rows: Sequence[GroupScore],
    pairs: Sequence[Improvement],
    curves: Mapping[str, tuple[str, Mapping[str, tuple[Any, Estimate]]] | str],
    *,
    title: str | None = None,
) -> Figure:
    """Several groups of runs on one page: learning curves, interquartile means, probabilities of improvement.

    Args: curves: {task: (what is learned, {group: `learning_band`}), or the sentence that says why not}.
    """
    measures = list(dict.fromkeys(row.measure for row in rows))
    paired = list(dict.fromkeys(pair.measure for pair in pairs))
    groups = list(dict.fromkeys(row.group for row in rows))
    most = max((sum(pair.measure == measure for pair in pairs) for measure in paired), default=0)
    # Panels of each of the three parts, and the height of a line of them.
    parts = [(len(curves), 3.2), (len(measures), 1.0 + 0.34 * len(groups)), (len(paired), 1.1 + 0.3 * most)]
    heights = [-(-count // ABREAST) * height for count, height in parts if count]
    columns = min(ABREAST, max(count for count, _ in parts))
    fig = Figure(figsize=(max(5.6, 4.2 * columns), 0.6 + sum(heights)), layout="constrained")
    pieces = np.atleast_1d(fig.subfigures(len(heights), 1, height_ratios=heights))
    colours = {group: OTHER_COLOURS[place % len(OTHER_COLOURS)] for place, group in enumerate(groups)}
    for ax, (task, curve) in zip(_panels(pieces[0], len(curves), columns), curves.items(), strict=True):
        if isinstance(curve, str):
            say(ax, curve, task)
            continue
        ylabel, bands = curve
        plot_bands(bands, ax, of="seeds", colours={name: colours[name] for name in bands if name not in MODEL_COLOURS})
        ax.set(xlabel="environment steps", ylabel=ylabel, xlim=(0, None), title=task)
        ax.xaxis.set_major_formatter(thousands)
    for ax, measure in zip(_panels(pieces[1], len(measures), columns), measures, strict=True):
        plot_groups([row for row in rows if row.measure == measure], groups, ax)
        ax.set(ylim=(len(groups) - 0.4, -0.6))
        ax.set_xlabel(measure, fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="x", color="#EEEEEE")
    pieces[1].suptitle(SMALL_IQM, fontsize=8, x=0.01, ha="left")
    if paired:
        for ax, measure in zip(_panels(pieces[2], len(paired), columns), paired, strict=True):
            plot_improvements([pair for pair in pairs if pair.measure == measure], ax)
            ax.set(ylim=(most - 0.4, -0.6))
            ax.set_xlabel(measure, fontsize=8)
        pieces[2].suptitle(SMALL_BETTER, fontsize=8, x=0.01, ha="left")
    title_page(fig, title, "learning curves: interquartile mean over seeds, band: 95 % bootstrap")
    return fig


ABREAST = 3


def _panels(part: Any, count: int, columns: int) -> list[Axes]:
    """So many axes in lines of `columns`; the places left over are empty."""
    axes = part.subplots(-(-count // columns), columns, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.axis("off")
    return axes[:count]
