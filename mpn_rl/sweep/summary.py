"""A sweep summed up over its seeds: statistics with intervals, learning curves, a heat map; CSV and PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

import visualize
from model_utils import Experiment, write_bytes_atomic
from mpn_rl.options import ConfigError
from mpn_rl.statistics import bootstrap, common_grid
from mpn_rl.sweep.state import State, state_of
from mpn_rl.sweep.table import Planned, Sweep

SHOWN = 10  # settings in the printed table
DRAWN = 8  # settings in the picture: as many colours as can be told apart
MAX_CELLS = 15  # values along an axis of a heat map; beyond, every setting is a dot
RESAMPLES = 5_000


class Result(NamedTuple):
    """One complete row: its greedy evaluations."""

    planned: Planned
    steps: np.ndarray  # (E,)
    scores: np.ndarray  # (E,)
    score: float  # the one to judge by


class Statistics(NamedTuple):
    """Of one setting's scores; an interval of a single score is nan."""

    n: int
    mean: float
    mean_low: float
    mean_high: float
    iqm: float
    iqm_low: float
    iqm_high: float
    lowest: float
    highest: float


def interquartile_mean(values: np.ndarray, axis: int = -1) -> Any:
    """The mean of the middle half (Agarwal et al. 2021): a quarter is cut at each end, of n values floor(n / 4)."""
    return stats.trim_mean(values, 0.25, axis=axis)


def statistics(scores: Sequence[float]) -> Statistics:
    values = np.asarray(scores, float)
    mean = bootstrap(values, resamples=RESAMPLES)
    iqm = bootstrap(values, statistic=interquartile_mean, resamples=RESAMPLES)
    middle = float(interquartile_mean(values))
    return Statistics(len(values), float(values.mean()), float(mean[0]), float(mean[1]), middle, float(iqm[0]),
                      float(iqm[1]), float(values.min()), float(values.max()))  # fmt: skip


def summarise(found: Sweep, folder: Path, which: str = "final", heatmap: Sequence[str] | None = None) -> list[str]:
    """Write `<file>_runs.csv`, `_summary.csv`, `_curves.csv`, `_curves.png` and the heat map. Returns what to print.

    Args:
        which: "final": the last greedy evaluation; "best": that of best_model.pt.
        heatmap: two columns.
    Raises: ConfigError where no row is complete, or heatmap names no column.
    """
    for name in heatmap or ():
        if name not in found.setting_columns:
            raise ConfigError(f"--heatmap: no column {name!r}; there is {', '.join(found.setting_columns) or 'none'}")
    states = {planned.name: state_of(planned.experiment, planned.args) for planned in found.planned}
    done = [planned for planned in found.planned if states[planned.name].state == "done"]
    unfinished = [f"{name} ({state.state})" for name, state in states.items() if state.state != "done"]
    if not done:
        raise ConfigError(f"{found.path}: no row is complete yet; sweep status says how far they are")
    evaluations = {planned.name: _evaluations(planned.experiment) for planned in done}
    accurate = all(row["accuracy"] is not None for rows in evaluations.values() for row in rows)
    label = f"{which} greedy {'accuracy' if accurate else 'return'}"
    results = [_result(planned, evaluations[planned.name], accurate, which) for planned in done]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(result.planned.setting, []).append(result)
    table = {setting: statistics([result.score for result in group]) for setting, group in groups.items()}
    ranked = sorted(table, key=lambda setting: table[setting].iqm, reverse=True)
    stem, columns = folder / found.path.stem, found.setting_columns
    rows_of = {planned.setting: 0 for planned in found.planned}
    for planned in found.planned:
        rows_of[planned.setting] += 1
    written = [
        _write_runs(Path(f"{stem}_runs.csv"), found, states, {result.planned.name: result for result in results}),
        write_csv(
            Path(f"{stem}_summary.csv"),
            [*columns, "rows", *Statistics._fields],
            ([*setting, rows_of[setting], *table[setting]] for setting in ranked),
        ),
        *_curves(stem, columns, {setting: groups[setting] for setting in ranked}, label),
        *(_heat_map(stem, columns, results, heatmap, label) if heatmap else ()),
    ]
    head = f"{len(done)} of {len(states)} rows complete, {len(table)} of {len(rows_of)} settings; {label}"
    lines = [head, *_table(columns, ranked[:SHOWN], table)]
    if len(ranked) > SHOWN:
        lines.append(f"... and {len(ranked) - SHOWN} more in {written[1]}")
    if unfinished:
        lines.append(f"not in it, as {len(unfinished)} of {len(states)} rows are unfinished: {', '.join(unfinished)}")
    return [*lines, "written: " + ", ".join(map(str, written))]


def _evaluations(experiment: Experiment) -> list[dict[str, Any]]:
    return [row for row in experiment.read_metrics() if row["kind"] == "eval"]


def _result(planned: Planned, rows: list[dict[str, Any]], accurate: bool, which: str) -> Result:
    key = "accuracy" if accurate else "return_mean"
    chosen = rows[-1] if which == "final" else max(rows, key=lambda row: (row["return_mean"], row["step"]))
    steps, scores = np.array([row["step"] for row in rows]), np.array([row[key] for row in rows], float)
    return Result(planned, steps, scores, float(chosen[key]))


def label_of(columns: Sequence[str], setting: Sequence[str]) -> str:
    return ", ".join(f"{column} {value}" for column, value in zip(columns, setting, strict=True)) or "all rows"


def _table(
    columns: Sequence[str], ranked: list[tuple[str, ...]], table: dict[tuple[str, ...], Statistics]
) -> list[str]:
    """The best settings, one line each, by their interquartile mean."""

    def interval(low: float, high: float) -> str:
        return "" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"

    cells = [[*columns, "n", "IQM", "95 % interval", "mean", "95 % interval"]]
    for setting in ranked:
        of = table[setting]
        cells.append([*setting, str(of.n), f"{of.iqm:.3f}", interval(of.iqm_low, of.iqm_high), f"{of.mean:.3f}",
                      interval(of.mean_low, of.mean_high)])  # fmt: skip
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in cells]


# --- files --------------------------------------------------------------------------------------------------


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Numbers to six digits; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        known = ["" if isinstance(value, float) and np.isnan(value) else value for value in row]
        writer.writerow([f"{value:.6g}" if isinstance(value, float | np.floating) else value for value in known])
    write_bytes_atomic(path, text.getvalue().encode())
    return path


def _write_runs(path: Path, found: Sweep, states: dict[str, State], results: dict[str, Result]) -> Path:
    rows = []
    for planned in found.planned:
        state, result = states[planned.name], results.get(planned.name)
        score = result.score if result else float("nan")
        rows.append([planned.name, planned.seed, *planned.setting, state.state, state.share, score, state.note])
    return write_csv(path, ["name", "seed", *found.setting_columns, "state", "share", "score", "note"], rows)


def _curves(stem: Path, columns: Sequence[str], groups: dict[tuple[str, ...], list[Result]], label: str) -> list[Path]:
    """Curves of all settings as CSV, of the best as a picture."""
    rows: list[list[Any]] = []
    drawn: dict[str, Any] = {}
    for setting, group in groups.items():
        steps, curves = common_grid([(result.steps, result.scores) for result in group])
        low, high = bootstrap(curves, resamples=RESAMPLES)
        mean = curves.mean(axis=0)
        rows += [[*setting, int(steps[i]), len(group), mean[i], low[i], high[i]] for i in range(len(steps))]
        if len(drawn) < DRAWN:
            drawn[label_of(columns, setting)] = steps, curves, (low, high)
    title = f"{stem.name}: " + (
        f"the best {DRAWN} of {len(groups)} settings" if len(groups) > DRAWN else "all settings"
    )
    figure = visualize.sweep_curves_figure(drawn, ylabel=label.partition(" ")[2], title=title)
    table = write_csv(Path(f"{stem}_curves.csv"), [*columns, "step", "n", "mean", "low", "high"], rows)
    return [table, visualize.save_figure(figure, Path(f"{stem}_curves.png"))]


def _heat_map(
    stem: Path, columns: Sequence[str], results: list[Result], axes: Sequence[str], label: str
) -> tuple[Path, Path]:
    """The mean over everything but two columns; dots, where a column has too many values for cells."""
    places = [columns.index(name) for name in axes]
    points: dict[tuple[str, ...], list[float]] = {}
    for result in results:
        points.setdefault(tuple(result.planned.setting[place] for place in places), []).append(result.score)
    ticks = [_ordered({point[axis] for point in points}) for axis in (0, 1)]
    means = {point: float(np.mean(scores)) for point, scores in points.items()}
    counts = sorted({len(scores) for scores in points.values()})
    figure, ax = visualize.new_figure(5.6, 4.2)
    if max(map(len, ticks)) > MAX_CELLS and all(map(_is_number, [*ticks[0], *ticks[1]])):
        x, y = (np.array([float(point[axis]) for point in points]) for axis in (0, 1))
        visualize.plot_score_scatter(x, y, np.array(list(means.values())), ax, label=label)
    else:
        cells = np.array([[means.get((x, y), np.nan) for x in ticks[0]] for y in ticks[1]])
        visualize.plot_heat_map(cells, (ticks[0], ticks[1]), ax, label=label)
    ax.set(xlabel=axes[0], ylabel=axes[1])
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    visualize.page_title(figure, f"{stem.name}: mean of {runs} run{'' if counts == [1] else 's'} each")
    name = f"{stem}_heatmap_{axes[0]}_{axes[1]}"
    rows = [[*point, len(scores), means[point]] for point, scores in points.items()]
    return write_csv(Path(f"{name}.csv"), [*axes, "n", "mean"], rows), visualize.save_figure(
        figure, Path(f"{name}.png")
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _ordered(values: set[str]) -> list[str]:
    """Numbers by size, words by the alphabet."""
    return sorted(values, key=float) if all(map(_is_number, values)) else sorted(values)
