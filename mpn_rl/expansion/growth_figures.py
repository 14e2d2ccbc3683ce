"""Figures of the plasticity metrics over steps, and of the masks of a growing topology.

The data come from metrics.jsonl and, for runs whose topology changes, from plots/masks.npz.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from mpn_rl.statistics import common_grid
from visualize import OTHER_COLOURS, house_style, new_panels, page_title, plot_band, thousands

Curve = tuple[np.ndarray, np.ndarray]  # steps and values of one run
Curves = Sequence[Curve]  # one per seed
QUANTITIES = {"active_fraction": "active fraction", "dormant_fraction": "dormant fraction", "density": "density"}
PANELS_PER_ROW = 4

# --- numbers ------------------------------------------------------------------------------------------------


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Curves by network and quantity, from the rows of metrics.jsonl; evaluation scores go under the name "agent"."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.get("kind") == "eval":
            name = "greedy return" if row.get("accuracy") is None else "greedy accuracy"
            value = row["return_mean"] if row.get("accuracy") is None else row["accuracy"]
            points.setdefault("agent", {}).setdefault(name, []).append((row["step"], value))
        for key in row if row.get("kind") == "plasticity" else ():
            network, _, quantity = key.partition("/")
            if quantity in QUANTITIES and row[key] is not None:
                points.setdefault(network, {}).setdefault(QUANTITIES[quantity], []).append((row["step"], row[key]))
    return {
        network: {
            name: (np.array([x for x, _ in curve]), np.array([y for _, y in curve]))
            for name, curve in quantities.items()
            if len(curve) > 1
        }
        for network, quantities in points.items()
    }


def by_group(runs: Iterable[tuple[str, Mapping[str, Mapping[str, Curve]]]]) -> dict[str, dict[str, list[Curve]]]:
    """Merge several runs, each (group, `curves_of`), into {group: {"density, critic": [one curve per seed]}}."""
    runs = list(runs)
    several = len({network for _, run in runs for network in run} - {"agent"}) > 1
    groups: dict[str, dict[str, list[Curve]]] = {}
    for group, run in runs:
        for network, curves in run.items():
            for name, curve in curves.items():
                panel = f"{name}, {network}" if several and network != "agent" else name
                groups.setdefault(group, {}).setdefault(panel, []).append(curve)
    return groups


def largest(masks: Mapping[str, np.ndarray]) -> str | None:
    """The weight with the largest mask in masks.npz, {weight: (S, H, D), "step": (S,)}; None if there is no mask."""
    return max((name for name in masks if name != "step"), key=lambda name: masks[name][0].size, default=None)


# --- figures ------------------------------------------------------------------------------------------------


@house_style()
def expansion_figure(runs: Mapping[str, Mapping[str, Curves]], *, title: str | None = None) -> Figure:
    """Quantities over steps: a panel per quantity, a colour per run, bands for the range over seeds.

    Args: runs: {"expanded": {"density": curves, "active fraction": curves, "return": curves}, "dense": ...}; a run
    may lack a quantity.
    """
    quantities = list(dict.fromkeys(name for run in runs.values() for name in run))
    columns = min(len(quantities), PANELS_PER_ROW)
    lines = -(-len(quantities) // columns)
    fig, axes = new_panels(3.4 * columns + 0.4, 2.7 * lines + 0.7, rows=lines, columns=columns)
    panels = axes.ravel()
    for ax in panels[len(quantities) :]:
        ax.remove()
    for quantity, ax in zip(quantities, panels, strict=False):
        for index, (label, run) in enumerate(runs.items()):
            if run.get(quantity):
                grid, curves = common_grid(run[quantity])
                colour = OTHER_COLOURS[index % len(OTHER_COLOURS)]
                plot_band(grid, curves, (curves.min(0), curves.max(0)), ax, colour=colour, label=label)
        ax.set(xlabel="environment steps", ylabel=quantity, xlim=(0, None))
        ax.set_ylim(*((-0.02, 1.04) if "density" in quantity or "fraction" in quantity else (None, None)))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(thousands)
    handles = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    seeds = max((len(curves) for run in runs.values() for curves in run.values()), default=0)
    what = "thick: mean over n seeds; band: their range; thin: each" if seeds > 1 else None
    fig.legend(list(handles.values()), list(handles), title=what,
               title_fontsize=8, alignment="left", ncols=4, loc="outside lower left")  # fmt: skip
    page_title(fig, title)
    return fig


MASK_COLOURS = {"absent": "#F4F4F4", "there from the start": "#6E6E6E", "grown": "#0072B2", "pruned": "#E69F00"}


def mask_history(masks: np.ndarray) -> np.ndarray:
    """Every weight's history as an index into MASK_COLOURS: (S, H, D) bool -> (S, H, D)."""
    ever = np.logical_or.accumulate(masks, axis=0)
    since_start = np.logical_and.accumulate(masks, axis=0)
    return np.select([since_start, masks, ever], [1, 2, 3], 0)


@house_style()
def mask_figure(masks: np.ndarray, steps: ArrayLike, *, title: str | None = None, panels: int = 5) -> Figure:
    """A layer's mask over time: weights there from the start, grown weights and pruned weights.

    Args:
        masks: (S, H, D) bool, H hidden units and D inputs.
        steps: environment steps, (S,).
        title: of the figure.
        panels: number of time points shown, evenly spread from the first to the last.
    """
    steps, past = np.asarray(steps), mask_history(np.asarray(masks, dtype=bool))
    shown = np.unique(np.linspace(0, len(steps) - 1, min(panels, len(steps))).round().astype(int))
    height, width = past.shape[1:]
    wide = float(np.clip(3.0 * width / height, 1.3, 3.0))
    fig, axes = new_panels(max(5.4, wide * len(shown) + 0.8), 3.9, columns=len(shown))
    colours = ListedColormap(list(MASK_COLOURS.values()))
    for index, ax in zip(shown, axes[0], strict=True):
        ax.imshow(past[index], cmap=colours, vmin=-0.5, vmax=3.5, aspect="auto", interpolation="nearest")
        ax.set(title=f"{thousands(steps[index])} steps\ndensity {masks[index].mean():.2f}", xlabel="input")
        ax.spines[:].set_visible(True)
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes[0, 0].set_ylabel("hidden unit")
    handles = [Patch(fc=colour, ec="#AAAAAA", lw=0.5, label=name) for name, colour in MASK_COLOURS.items()]
    fig.legend(handles=handles, ncols=4, loc="outside lower left")
    page_title(fig, title)
    return fig
