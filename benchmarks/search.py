"""A search against a grid: does `sweep search` reach the grid's best score in a third of its steps?

    make bench-search      or      python benchmarks/search.py [--workers 2] [--folder experiments/bench-search]

The grid has 27 settings (eta, lambda_decay, learning rate) with 3 seeds of 30,000 steps on ContextDecisionMaking-v0.
The search chooses from the ranges that the grid spans. It gets trials until all of them together have taken a third of
the grid's steps. It succeeds if the mean of its best setting is not below the 95 % interval of the grid's best setting.
Both continue where an earlier call stopped. The results go to benchmarks/results/search.csv.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results" / "search.csv"
HEAD = """command = "train-neurogym"
seeds = [0, 1, 2]
[fixed]
env-name = "ContextDecisionMaking-v0"
total-steps = 30_000
eval-freq = 3_000
plot-training = false
"""
GRID = """[grid]
eta = [0.1, 0.3, 1.0]
lambda-decay = [0.7, 0.85, 0.95]
learning-rate = [0.0003, 0.001, 0.003]
"""
SEARCH = """[search]
n = {n}
eta = {{ log-uniform = [0.1, 1.0] }}
lambda-decay = {{ uniform = [0.7, 0.95] }}
learning-rate = {{ log-uniform = [0.0003, 0.003] }}
"""
GRID_STEPS = 27 * 3 * 30_000
BUDGET = GRID_STEPS // 3
COLUMNS = ("method", "eta", "lambda_decay", "learning_rate", "state", "n", "mean", "mean_low", "mean_high", "steps")


def sweep(folder: Path, *arguments: str) -> None:
    command = [sys.executable, str(PROJECT / "main.py"), "sweep", *arguments]
    command += ["--experiments-dir", str(folder.resolve() / "runs")]
    subprocess.run(command, cwd=folder, check=True)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run_search(folder: Path, workers: int) -> list[dict[str, str]]:
    """Add trials until the budget is used. Returns: the trials that ended within it."""
    for n in range(1, 1000):
        (folder / "search.toml").write_text(HEAD + SEARCH.format(n=n))
        sweep(folder, "search", "search.toml", "--workers", str(workers))
        trials = read(folder / "search_search.csv")
        if sum(int(trial["steps"] or 0) for trial in trials) >= BUDGET:
            break
    within, used = [], 0
    for trial in trials:
        used += int(trial["steps"] or 0)
        if used <= BUDGET:
            within.append(trial)
    return within


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="rows that run at the same time (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=PROJECT / "experiments" / "bench-search", help="of the runs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "grid.toml").write_text(HEAD + GRID)
    trials = run_search(args.folder, 1)
    sweep(args.folder, "run", "grid.toml", "--workers", str(args.workers))
    sweep(args.folder, "summary", "grid.toml")
    grid = read(args.folder / "grid_summary.csv")
    rows = [{"method": "grid", "state": "complete", "steps": "90000", **row} for row in grid]
    rows += [{"method": "search", **trial} for trial in trials]
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    best_grid = max(grid, key=lambda row: float(row["mean"]))
    best = max((trial for trial in trials if trial["state"] == "complete"), key=lambda row: float(row["mean"]))
    used = sum(int(trial["steps"]) for trial in trials)
    interval = f"[{best_grid['mean_low']}, {best_grid['mean_high']}]"
    print(f"grid: {float(best_grid['mean']):.3f} {interval}, {GRID_STEPS:,} steps")
    print(f"search: {float(best['mean']):.3f}, {len(trials)} trials, {used:,} steps")
    good = float(best["mean"]) >= float(best_grid["mean_low"])
    print("the search reaches the grid's best setting" if good else "the search does NOT reach the grid's best setting")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
