"""The summary of a sweep over seeds: statistics with intervals, learning curves, a heat map, as CSV and PNG."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import visualize
from model_utils import Experiment, write_bytes_atomic
from mpn_rl.options import ConfigError
from mpn_rl.runs.state import MetricsRow, State, state_of
from mpn_rl.statistics import QUARTER, common_grid, few_seeds_note, mean_interval, trimmed_mean
from mpn_rl.sweep.table import ABSENT, Planned, Sweep

SHOWN = 10  # settings in the printed table
DRAWN = 8  # settings in the figure: more colours are hard to distinguish
MAX_CELLS = 15  # values along an axis of a heat map; with more numbers, the figure has one dot per setting


class Evaluation(NamedTuple):
    """One greedy evaluation; accuracy is None where the task has no trials."""

    step: int
    return_mean: float
    accuracy: float | None
    rank: float  # by which best_model.pt is chosen


class Result(NamedTuple):
    """The greedy evaluations of one complete row."""

    planned: Planned
    steps: np.ndarray  # (E,)
    scores: np.ndarray  # (E,)
    score: float  # the score that counts: the last one, or that of the best model


class Statistics(NamedTuple):
    """Statistics of one setting's scores; the interval of a single score is nan."""

    n: int
    mean: float
    mean_low: float
    mean_high: float
    iqm: float
    iqm_low: float
    iqm_high: float
    lowest: float
    highest: float


def statistics(scores: Sequence[float]) -> Statistics:
    """Mean and interquartile mean of one setting's scores, with 95 % t intervals; lowest and highest score."""
    values = np.asarray(scores, float)
    mean, iqm = trimmed_mean(values), trimmed_mean(values, QUARTER)
    low, high = map(float, mean.interval())
    iqm_low, iqm_high = map(float, iqm.interval())
    return Statistics(len(values), float(mean.value), low, high, float(iqm.value), iqm_low, iqm_high,
                      float(values.min()), float(values.max()))  # fmt: skip


def summarise(sweep: Sweep, folder: Path, which: str = "final", heatmap: Sequence[str] | None = None) -> list[str]:
    """Write `<file>_runs.csv`, `_summary.csv`, `_curves.csv`, `_curves.png` and the heat map.

    Args:
        sweep: a sweep whose rows are checked.
        folder: the folder for the files.
        which: "final" for the score of the last greedy evaluation, "best" for that of best_model.pt.
        heatmap: the two columns of the heat map; None for no heat map.
    Returns: the lines to print.
    Raises: ConfigError if no row is complete or if heatmap names an unknown column.
    """
    for name in heatmap or ():
        if name not in sweep.setting_columns:
            known = ", ".join(sweep.setting_columns) or "none"
            raise ConfigError(f"--heatmap: no column {name!r}; the columns are {known}")
    states = {planned.name: state_of(planned.experiment, planned.args) for planned in sweep.planned}
    done = [planned for planned in sweep.planned if states[planned.name].state == "done"]
    unfinished = [f"{name} ({state.state})" for name, state in states.items() if state.state != "done"]
    if not done:
        raise ConfigError(f"{sweep.path}: no row is complete yet; `sweep status` shows the progress")
    places = [sweep.setting_columns.index(name) for name in heatmap or ()]
    if heatmap and all(ABSENT in (planned.setting[place] for place in places) for planned in done):
        raise ConfigError(f"--heatmap: no complete row has both {' and '.join(heatmap)}; choose other columns")
    evaluations = {planned.name: evaluations_of(planned.experiment) for planned in done}
    accurate = all(one.accuracy is not None for many in evaluations.values() for one in many)
    label = f"{which} greedy {'accuracy' if accurate else 'return'}"
    played = sorted({planned.config.run.eval_episodes for planned in done if planned.config})
    results = [_result(planned, evaluations[planned.name], accurate, which) for planned in done]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(result.planned.setting, []).append(result)
    table = {setting: statistics([result.score for result in group]) for setting, group in groups.items()}
    ranked = sorted(table, key=lambda setting: table[setting].iqm, reverse=True)
    stem, columns = folder / sweep.path.stem, sweep.setting_columns
    rows_of = {planned.setting: 0 for planned in sweep.planned}
    for planned in sweep.planned:
        rows_of[planned.setting] += 1
    files = [
        _write_runs(Path(f"{stem}_runs.csv"), sweep, states, {result.planned.name: result for result in results}),
        write_csv(
            Path(f"{stem}_summary.csv"),
            [*columns, "rows", *Statistics._fields],
            ([*setting, rows_of[setting], *table[setting]] for setting in ranked),
        ),
        *_curves(stem, columns, {setting: groups[setting] for setting in ranked}, label),
        *(_heat_map(stem, columns, list(rows_of), results, heatmap, label) if heatmap else ()),
    ]
    head = f"{len(done)} of {len(states)} rows complete, {len(table)} of {len(rows_of)} settings; {label}, "
    head += "of the last weights" if which == "final" else "of best_model.pt"
    head += f" in the run's own evaluations of {' or '.join(map(str, played))} episodes"
    if which == "best":
        head += (
            "\nEach run's best evaluation was chosen by its score, so it is too high on average; "
            "`eval` scores best_model.pt on other episodes"
        )
    lines = [head, *_table(columns, ranked[:SHOWN], table)]
    if note := few_seeds_note({label_of(columns, setting): table[setting].n for setting in ranked}):
        lines.append(note)
    if len(ranked) > SHOWN:
        lines.append(f"... and {len(ranked) - SHOWN} more in {files[1]}")
    if unfinished:
        lines.append(
            f"left out, because {len(unfinished)} of {len(states)} rows are unfinished: {', '.join(unfinished)}"
        )
    return [*lines, "wrote " + ", ".join(map(str, files))]


def evaluations_of(experiment: Experiment) -> list[Evaluation]:
    """The greedy evaluations in metrics.jsonl, in the order of training. Raises: ConfigError if it has none."""
    rows = [row for row in map(MetricsRow.read, experiment.read_metrics()) if row and row.is_evaluation]
    if not rows:
        raise ConfigError(f"{experiment.metrics_path} has no greedy evaluation; restore it, or train the row again")
    returns = [math.nan if row.return_mean is None else row.return_mean for row in rows]
    return [
        Evaluation(row.step, returned, row.accuracy, returned if row.rank is None else row.rank)
        for row, returned in zip(rows, returns, strict=True)
    ]


def _result(planned: Planned, evaluations: list[Evaluation], accurate: bool, which: str) -> Result:
    steps = np.array([one.step for one in evaluations])
    returns = np.array([one.return_mean for one in evaluations], float)
    scores = np.array([one.accuracy for one in evaluations], float) if accurate else returns
    ranks = [one.rank for one in evaluations]
    chosen = -1 if which == "final" else max(range(len(steps)), key=lambda place: (ranks[place], steps[place]))
    return Result(planned, steps, scores, float(scores[chosen]))


def label_of(columns: Sequence[str], setting: Sequence[str]) -> str:
    """A setting in words, such as "eta 0.5, hidden 64"."""
    given = [f"{column} {value}" for column, value in zip(columns, setting, strict=True) if value != ABSENT]
    return ", ".join(given) or "all rows"


def _table(
    columns: Sequence[str], ranked: list[tuple[str, ...]], table: dict[tuple[str, ...], Statistics]
) -> list[str]:
    """The lines of the printed table: a header, then one line per setting of `ranked`."""

    def interval(low: float, high: float) -> str:
        return "" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"

    cells = [[*columns, "n", "IQM", "95 % interval", "mean", "95 % interval"]]
    for setting in ranked:
        row = table[setting]
        cells.append([*setting, str(row.n), f"{row.iqm:.3f}", interval(row.iqm_low, row.iqm_high), f"{row.mean:.3f}",
                      interval(row.mean_low, row.mean_high)])  # fmt: skip
    return table_lines(cells)


def table_lines(cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, whose columns are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


# --- files --------------------------------------------------------------------------------------------------


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file; floats have six digits, and the cells of nan and of ABSENT are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        known = ["" if value == ABSENT or (isinstance(value, float) and np.isnan(value)) else value for value in row]
        writer.writerow([f"{value:.6g}" if isinstance(value, float | np.floating) else value for value in known])
    write_bytes_atomic(path, text.getvalue().encode())
    return path


def _write_runs(path: Path, sweep: Sweep, states: dict[str, State], results: dict[str, Result]) -> Path:
    rows = []
    for planned in sweep.planned:
        state, result = states[planned.name], results.get(planned.name)
        score = result.score if result else float("nan")
        rows.append([planned.name, planned.seed, *planned.setting, state.state, state.share, score, state.note])
    return write_csv(path, ["name", "seed", *sweep.setting_columns, "state", "share", "score", "note"], rows)


def _curves(stem: Path, columns: Sequence[str], groups: dict[tuple[str, ...], list[Result]], label: str) -> list[Path]:
    """Write the learning curves of all settings as CSV and plot those of the best settings."""
    rows: list[list[object]] = []
    drawn: dict[str, tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]] = {}
    for setting, group in groups.items():
        steps, curves = common_grid([(result.steps, result.scores) for result in group])
        low, high = mean_interval(curves)
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
    stem: Path,
    columns: Sequence[str],
    settings: Sequence[tuple[str, ...]],
    results: list[Result],
    axes: Sequence[str],
    label: str,
) -> tuple[Path, Path]:
    """Write and plot the mean score for each pair of values of two columns, of a random search as dots.

    Rows that do not have one of the columns, as another [[grid]] may, are left out.

    Args: settings: of all rows, complete or not; where they fill at most half of the pairs of values, they are draws.
    """
    places = [columns.index(name) for name in axes]
    pairs = {tuple(setting[place] for place in places) for setting in settings}
    pairs = {pair for pair in pairs if ABSENT not in pair}
    size = [len({pair[axis] for pair in pairs}) for axis in (0, 1)]
    points: dict[tuple[str, ...], list[float]] = {}
    for result in results:
        point = tuple(result.planned.setting[place] for place in places)
        if ABSENT not in point:
            points.setdefault(point, []).append(result.score)
    ticks = [_ordered({point[axis] for point in points}) for axis in (0, 1)]
    means = {point: float(np.mean(scores)) for point, scores in points.items()}
    counts = sorted({len(scores) for scores in points.values()})
    figure, ax = visualize.new_figure(5.6, 4.2)
    numeric = [all(map(_is_number, names)) for names in ticks]
    if (max(size) > MAX_CELLS and all(numeric)) or (min(size) > 1 and 2 * len(pairs) <= size[0] * size[1]):
        x, y = (
            np.array([float(point[axis]) if numeric[axis] else ticks[axis].index(point[axis]) for point in points])
            for axis in (0, 1)
        )
        visualize.plot_score_scatter(x, y, np.array(list(means.values())), ax, label=label)
        for axis, names, numbers in zip((ax.xaxis, ax.yaxis), ticks, numeric, strict=True):
            if not numbers:
                axis.set_ticks(range(len(names)), names)
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
    """The values in numerical order if all are numbers, else in alphabetical order."""
    return sorted(values, key=float) if all(map(_is_number, values)) else sorted(values)
