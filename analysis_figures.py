"""Pictures of what agents do, and of several runs side by side; the parts that all pictures of the analysis share.

Functions take what the measure of the same name returns. In its place they take the sentence of a `MissingDataError`
(`estimates.attempt`): the panel then says what is missing. Style, saving and colours are those of `visualize`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from behaviour import ByCondition, Confusion, Psychometric, Rates
from comparison import Better, Row
from estimates import Estimate
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
        count = f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,}-{n[-1]:,}" if len(n) else "0"
        alone = "" if np.isfinite(estimate.low).any() else ", no interval"
        marker = "o" if len(np.atleast_1d(x)) < 12 else ""
        label = f"{model_name(name)} (n = {count} {of.removesuffix('s') if count == '1' else of}{alone})"
        ax.plot(x, estimate.value, marker=marker, ms=4, lw=2, color=colour, label=label, zorder=4)
        ax.fill_between(x, estimate.low, estimate.high, color=colour, alpha=0.22, lw=0, zorder=3)
    ax.legend(title="band: 95 % interval", title_fontsize=8, alignment="left")
    return ax


@house_style()
def plot_learning_bands(curves: Mapping[str, tuple[Any, Estimate]], ax: Axes, ylabel: str = "greedy accuracy") -> Axes:
    """Learning curves, {core: comparison.learning_band(...)}: interquartile mean over seeds and its band."""
    plot_bands(curves, ax, of="seeds")
    ax.set(xlabel="environment steps", ylabel=ylabel, xlim=(0, None))
    ax.xaxis.set_major_formatter(thousands)
    ax.legend(title="interquartile mean; band: 95 % bootstrap over seeds", title_fontsize=8, alignment="left")
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


@house_style()
def comparison_figure(rows: Sequence[Row], *, title: str | None = None) -> Figure:
    """The rows of `comparison.compare`: interquartile means with intervals, and single seeds, a panel per measure."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    groups = list(dict.fromkeys(row.group for row in rows))
    fig, axes = _one_panel_each(measures, len(groups), 3.2)
    for ax, measure in zip(axes, measures, strict=False):
        own = {row.group: row for row in rows if row.measure == measure}
        for place, group in enumerate(groups):
            if group in own:
                row = own[group]
                colour = MODEL_COLOURS.get(group, OTHER_COLOURS[place % len(OTHER_COLOURS)])
                ax.plot(row.scores, np.full(len(row.scores), place + 0.22), "o", ms=3, alpha=0.5, mew=0, color=colour)
                intervals(ax, place, row.iqm, colour, across=True, elinewidth=2.4, ms=6)
        counts = [f"n = {own[group].iqm.n}" if group in own else "none" for group in groups]
        ax.set_yticks(range(len(groups)), [f"{model_name(g)} ({n})" for g, n in zip(groups, counts, strict=True)])
    title_page(fig, title, "large: interquartile mean, 95 % bootstrap over n seeds; small: single seeds")
    return fig


@house_style()
def improvement_figure(pairs: Sequence[Better], *, title: str | None = None) -> Figure:
    """The pairs of `comparison.compare`: how probably a run of one group scores higher, a panel per measure."""
    measures = list(dict.fromkeys(pair.measure for pair in pairs))
    most = max((sum(pair.measure == measure for pair in pairs) for measure in measures), default=1)
    fig, axes = _one_panel_each(measures, most, 3.2)
    for ax, measure in zip(axes, measures, strict=False):
        own = [pair for pair in pairs if pair.measure == measure]
        for place, pair in enumerate(own):
            intervals(ax, place, pair.probability, INK, across=True)
        ax.axvline(0.5, color="#999999", lw=0.8, ls=(0, (4, 3)))
        names = [f"{model_name(pair.group)} > {model_name(pair.other)} (n = {pair.probability.n})" for pair in own]
        ax.set_yticks(range(len(own)), names)
        ax.set(xlim=(-0.03, 1.03), xlabel="probability", xticks=(0, 0.5, 1))
        ax.set_title(measure, fontsize=9)
    title_page(fig, title, "probability that a run of the first scores higher, 95 % bootstrap; n runs of both together")
    return fig
