"""The results of `sweep search`: the trials as a table, the importance of each option, and a picture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

import visualize
from mpn_rl.options import ConfigError
from mpn_rl.sweep.search import Search
from mpn_rl.sweep.summary import SHOWN, statistics, table_lines, write_csv

STATES = ("complete", "pruned", "fail", "running")


def write(search: Search, folder: Path) -> list[str]:
    """Write `<file>_search.csv`, `_importance.csv` and `_search.png`.

    Args:
        search: the search.
        folder: for the files.
    Returns: the lines to print.
    Raises: ConfigError if there is no trial.
    """
    trials = search.trials()
    if not trials:
        raise ConfigError(f"{search.space.sweep.path}: no trial has started yet")
    columns = [param.column for param in search.space.params]
    stem = folder / search.name
    rows = []
    for trial in trials:
        scores = trial.user_attrs.get("scores", [])
        known = statistics(scores) if trial.state == TrialState.COMPLETE else None
        interval = (known.mean, known.mean_low, known.mean_high) if known else (np.nan, np.nan, np.nan)
        steps, reason = trial.user_attrs.get("steps", ""), trial.user_attrs.get("reason", "")
        setting = [trial.params[column] for column in columns]
        rows.append([trial.number, trial.state.name.lower(), *setting, len(scores), *interval, steps, reason])
    header = ["trial", "state", *columns, "n", "mean", "mean_low", "mean_high", "steps", "reason"]
    important = importances(search.study)
    files = [write_csv(Path(f"{stem}_search.csv"), header, rows)]
    files.append(write_csv(Path(f"{stem}_importance.csv"), ["option", "importance"], list(important.items())))
    files.append(_picture(Path(f"{stem}_search.png"), trials, important))
    best = sorted(
        (row for row, trial in zip(rows, trials, strict=True) if trial.state == TrialState.COMPLETE),
        key=lambda row: -row[-5],
    )
    cells = [["trial", *columns, "n", "mean", "95 % interval"]]
    for row in best[:SHOWN]:
        low, high = row[-4:-2]
        shown = "" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"
        cells.append([str(row[0]), *map(str, row[2 : 2 + len(columns)]), str(row[-6]), f"{row[-5]:.3f}", shown])
    count = {state: sum(trial.state.name.lower() == state for trial in trials) for state in STATES}
    steps = sum(trial.user_attrs.get("steps", 0) for trial in trials)
    head = ", ".join(f"{number} {'failed' if state == 'fail' else state}" for state, number in count.items() if number)
    lines = [f"{len(trials)} of {search.space.n} trials: {head}; {steps:,} steps", *table_lines(cells)]
    if important:
        lines.append("importance: " + ", ".join(f"{name} {share:.0%}" for name, share in important.items()))
    return [*lines, "wrote " + ", ".join(map(str, files))]


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each option in the differences of the scores (PED-ANOVA, Watanabe et al. 2023).

    Empty with fewer than four complete trials, or if their scores are equal.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.value for trial in complete}) == 1:
        return {}
    with warnings.catch_warnings():  # of values that few trials have
        warnings.simplefilter("ignore")
        try:
            return optuna.importance.get_param_importances(study)
        except (RuntimeError, ValueError):  # nothing to compare
            return {}


def _picture(path: Path, trials: list[FrozenTrial], important: Mapping[str, float]) -> Path:
    """The score of each trial and the best so far; beside it, the importance of each option."""
    figure, axes = visualize.new_panels(9, 3.6, columns=2)
    visualize.plot_trials(
        [(trial.number, _last_value(trial), trial.state.name.lower()) for trial in trials], axes[0, 0]
    )
    visualize.plot_importance(important, axes[0, 1])
    visualize.page_title(figure, f"{path.stem.removesuffix('_search')}: {len(trials)} trials")
    return visualize.save_figure(figure, path)


def _last_value(trial: FrozenTrial) -> float:
    """The score; of a pruned trial, the last value that was reported."""
    if trial.value is not None:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else np.nan
