"""Does growing help? TD3 dense and with --expansion paper, on Pendulum-v1 and HalfCheetah-v4, over seeds.

    python benchmarks/expansion.py [--jobs 1] [--only Pendulum] [--seeds 0 1 2]

Resumable, as benchmarks/learning.py: a row that is in benchmarks/results/expansion.json is skipped, a run that was
interrupted goes on from its last checkpoint. Every row is one `python main.py train --algo td3 ...` and one
`python main.py eval` of its final_model.pt on other seeds. HalfCheetah-v4 takes hours and the extra "mujoco".
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import learning  # benchmarks/learning.py, which also puts the toolkit on the path
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "expansion.json"
FOLDER = ROOT / "experiments" / "bench-expansion"
TASKS: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {"seeds": (0, 1, 2, 3, 4), "train": "--total-steps 20000 --learning-starts 1000", "episodes": 100},
    "HalfCheetah-v4": {"seeds": (0, 1, 2), "train": "--total-steps 100000 --learning-starts 5000", "episodes": 20},
}
NETWORKS = {"dense": "none", "expanded": "paper"}
DEMANDS = {("Pendulum-v1", "dense"): -200, ("Pendulum-v1", "expanded"): -200, ("HalfCheetah-v4", "dense"): 3_900}
QUANTITIES = {  # of the figure -> (kind of row, key)
    "return": ("eval", "return_mean"),
    "active fraction of the critics": ("plasticity", "critic/active_fraction"),
    "active fraction of the actor": ("plasticity", "actor/active_fraction"),
    "density of the critics": ("plasticity", "critic/density"),
}


class Row(NamedTuple):
    task: str
    network: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.split('-')[0]}-{self.network}-{self.seed}"


def all_rows(seeds: list[int] | None = None) -> list[Row]:
    """Dense and expanded side by side, so that an interrupted table compares like with like."""
    return [
        Row(task, network, seed)
        for task, how in TASKS.items()
        for seed in how["seeds"]
        for network in NETWORKS
        if seeds is None or seed in seeds
    ]


def run(row: Row) -> dict[str, Any]:
    """Train and evaluate one row; returns what the table and the curves need."""
    how = TASKS[row.task]
    options = ["train", "--algo", "td3", "--env-name", row.task, *how["train"].split(), "--seed", str(row.seed)]
    options += ["--expansion", NETWORKS[row.network]]
    where = ["--experiment-name", row.name, "--experiments-dir", str(FOLDER)]
    begun = time.monotonic()
    learning.call([*options, *where, "--resume", "auto", "--no-plot-training", "--checkpoint-freq", "20000"])
    seconds = time.monotonic() - begun
    shown = ["eval", "--checkpoint", "final", "--num-eval-episodes", str(how["episodes"]), "--seed", "1000", "--json"]
    scores = json.loads(learning.call([*shown, *where]).strip().splitlines()[-1])
    metrics = [json.loads(line) for line in (FOLDER / row.name / "metrics.jsonl").read_text().splitlines()]
    return {
        **row._asdict(),
        "command": f"python main.py {' '.join(options)}",
        "evaluated_by": f"python main.py {' '.join(shown)}",
        "train_seconds": round(seconds, 1),
        **{name: scores[name] for name in ("return_mean", "return_ci95", "episodes")},
        "curves": {name: curve(metrics, *source) for name, source in QUANTITIES.items()},
    }


def curve(metrics: list[dict[str, Any]], kind: str, key: str) -> list[list[float]]:
    """[steps, values] of a quantity, rounded: the file is kept in git."""
    rows = [row for row in metrics if row["kind"] == kind and row.get(key) is not None]
    return [[row["step"] for row in rows], [round(row[key], 4) for row in rows]]


# --- the table and the figures ------------------------------------------------------------------------------


def load_results() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def store_results(rows: list[dict[str, Any]]) -> None:
    from model_utils import write_json

    order = {row: place for place, row in enumerate(all_rows())}
    rows = sorted(rows, key=lambda row: order.get(key_of(row), len(order)))
    write_json(RESULTS, {"machine": learning.machine(), "differences": differences(rows), "rows": rows})


def key_of(row: dict[str, Any]) -> Row:
    return Row(row["task"], row["network"], row["seed"])


def returns(rows: list[dict[str, Any]], task: str, network: str) -> list[float]:
    return [row["return_mean"] for row in rows if (row["task"], row["network"]) == (task, network)]


def differences(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Expanded minus dense: the difference of the means over seeds, and Welch's 95 % interval of it."""
    from scipy import stats

    found = {}
    for task in TASKS:
        dense, expanded = (returns(rows, task, network) for network in NETWORKS)
        if min(len(dense), len(expanded)) > 1:
            interval = stats.ttest_ind(expanded, dense, equal_var=False).confidence_interval(0.95)
            ends = [round(float(end), 1) for end in interval]
            found[task] = {"difference": round(float(np.mean(expanded) - np.mean(dense)), 1), "interval_95": ends}
    return found


def last(row: dict[str, Any], quantity: str) -> float:
    values = row["curves"][quantity][1]
    return values[-1] if values else float("nan")


def print_table(rows: list[dict[str, Any]]) -> bool:
    """The table in the terminal; returns whether every demand that was measured holds."""
    from rich.console import Console
    from rich.table import Table

    table, met = (
        Table("task", "network", "n", "mean", "worst", "best", "asked", "active, critics", "actor", box=None),
        True,
    )
    for task in TASKS:
        for network in NETWORKS:
            own = [row for row in rows if (row["task"], row["network"]) == (task, network)]
            if not own:
                continue
            values, asked = returns(rows, task, network), DEMANDS.get((task, network))
            good = asked is None or float(np.mean(values)) >= asked
            met = met and good
            active = [
                np.mean([last(row, f"active fraction of the {name}") for row in own]) for name in ("critics", "actor")
            ]
            shown = [f"{value:,.0f}" for value in (np.mean(values), min(values), max(values))]
            demand = "" if asked is None else f">= {asked:,}{'' if good else ' MISSED'}"
            table.add_row(task, network, str(len(own)), *shown, demand, *(f"{share:.2f}" for share in active))
    console = Console(width=120)
    console.print(table)
    for task, found in differences(rows).items():
        low, high = found["interval_95"]
        console.print(
            f"{task}: expanded minus dense {found['difference']:+,.0f}, 95 % interval {low:+,.0f} to {high:+,.0f}"
        )
    return met


def draw(rows: list[dict[str, Any]]) -> None:
    """Returns, active fractions and density over steps, one picture per task, beside the JSON."""
    import visualize

    for task in TASKS:
        runs: dict[str, dict[str, list]] = {}
        for row in rows:
            if row["task"] == task:
                for quantity, (steps, values) in row["curves"].items():
                    if steps:
                        runs.setdefault(row["network"], {}).setdefault(quantity, []).append((steps, values))
        if runs:
            figure = visualize.expansion_figure(runs, title=f"{task}: TD3, dense and expanded")
            visualize.save_figure(figure, RESULTS.with_name(f"expansion_{task.split('-')[0].lower()}.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these of each task's seeds")
    args = parser.parse_args()
    results = load_results()
    done = {key_of(row) for row in results}
    wanted = [row for row in all_rows(args.seeds) if not args.only or any(part in row.name for part in args.only)]
    missing = [row for row in wanted if row not in done]
    print(f"{len(wanted) - len(missing)} rows are there, {len(missing)} to go", flush=True)
    writing, failed = threading.Lock(), 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(run, row): row for row in missing}
        for future in concurrent.futures.as_completed(waiting):
            row = waiting[future]
            try:
                result = future.result()
            except RuntimeError as error:
                failed += 1
                print(f"{row.name}: {error}", file=sys.stderr, flush=True)
                continue
            with writing:
                results.append(result)
                store_results(results)
            print(f"{row.name}: {result['return_mean']:,.1f} in {result['train_seconds']:.0f} s", flush=True)
    draw(results)
    met = print_table(results)
    return 0 if met and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
