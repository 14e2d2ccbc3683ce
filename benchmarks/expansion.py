"""Dense networks and --expansion paper: TD3 on Pendulum-v1 and HalfCheetah-v4, the MPN-DQN on NeuroGym.

    python benchmarks/expansion.py [--jobs 1] [--only Pendulum] [--seeds 0 1 2]

Resumable like benchmarks/learning.py: rows in benchmarks/results/expansion.json are skipped, and an interrupted run
continues from its last checkpoint. Every row is one `python main.py train ...` and one `python main.py eval` on other
seeds, of final_model.pt or, on NeuroGym, best_model.pt. HalfCheetah-v4 takes an hour or two and needs the extra
"mujoco".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import learning  # benchmarks/learning.py, which also puts the toolkit on the path
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "expansion.json"
FOLDER = ROOT / "experiments" / "bench-expansion"
TD3 = "train --algo td3 --learning-rate 0.001"
TASKS: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {
        "seeds": (0, 1, 2, 3, 4),
        "train": f"{TD3} --total-steps 20000 --learning-starts 1000",
        "eval": "--checkpoint final --num-eval-episodes 100",
    },
    "HalfCheetah-v4": {
        "seeds": (0, 1, 2),
        "train": f"{TD3} --total-steps 100000 --learning-starts 10000",
        "eval": "--checkpoint final --num-eval-episodes 20",
    },
    "ContextDecisionMaking-v0": {
        "seeds": (0, 1, 2, 3, 4),
        "train": "train-neurogym --total-steps 60000 --plasticity-metrics-freq 2000",
        "eval": "--checkpoint best --num-eval-trials 10000",
    },
}
NAMES = {"ContextDecisionMaking-v0": "MPN-DQN"}
NETWORKS = {"dense": "none", "expanded": "paper"}
DEMANDS = {("Pendulum-v1", "dense"): -200, ("Pendulum-v1", "expanded"): -200, ("HalfCheetah-v4", "dense"): 3_900}
QUANTITIES = {  # of the figure -> (kind of row, key); a task has some of them
    "return": ("eval", "return_mean"),
    "accuracy": ("eval", "accuracy"),
    "active fraction of the critics": ("plasticity", "critic/active_fraction"),
    "active fraction of the actor": ("plasticity", "actor/active_fraction"),
    "density of the critics": ("plasticity", "critic/density"),
    "effective rank of h": ("plasticity", "online/effective_rank"),
    "density": ("plasticity", "online/density"),
}


class Row(NamedTuple):
    task: str
    network: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.split('-')[0]}-{self.network}-{self.seed}"


def all_rows(seeds: list[int] | None = None) -> list[Row]:
    """Rows in an order that alternates between dense and expanded, so that an interrupted table is balanced."""
    return [
        Row(task, network, seed)
        for task, how in TASKS.items()
        for seed in how["seeds"]
        for network in NETWORKS
        if seeds is None or seed in seeds
    ]


def run(row: Row) -> dict[str, Any]:
    """Train and evaluate one row; returns the values for the table and the curves."""
    how = TASKS[row.task]
    options = [*how["train"].split(), "--env-name", row.task, "--seed", str(row.seed)]
    options += ["--expansion", NETWORKS[row.network]]
    where = ["--experiment-name", row.name, "--experiments-dir", str(FOLDER)]
    start = time.monotonic()
    learning.call([*options, *where, "--resume", "auto", "--no-plot-training", "--checkpoint-freq", "20000"])
    seconds = time.monotonic() - start
    shown = ["eval", *how["eval"].split(), "--seed", "1000", "--json"]
    scores = json.loads(learning.call([*shown, *where]).strip().splitlines()[-1])
    metrics = [json.loads(line) for line in (FOLDER / row.name / "metrics.jsonl").read_text().splitlines()]
    curves = {name: curve(metrics, *source) for name, source in QUANTITIES.items()}
    if scores.get("accuracy") is not None:
        del curves["return"]
    return {
        **row._asdict(),
        "command": f"python main.py {' '.join(options)}",
        "evaluated_by": f"python main.py {' '.join(shown)}",
        "train_seconds": round(seconds, 1),
        **{name: scores[name] for name in ("return_mean", "return_ci95", "episodes", "accuracy") if name in scores},
        "curves": {name: result for name, result in curves.items() if result[0]},
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


def scores_of(rows: list[dict[str, Any]], task: str, network: str) -> list[float]:
    """Accuracies if the task has them, else returns."""
    own = [row for row in rows if (row["task"], row["network"]) == (task, network)]
    return [row["return_mean"] if row.get("accuracy") is None else row["accuracy"] for row in own]


def differences(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Expanded minus dense: the difference of the means over seeds, and Welch's 95 % interval of it."""
    from scipy import stats

    result = {}
    for task in TASKS:
        dense, expanded = (scores_of(rows, task, network) for network in NETWORKS)
        if min(len(dense), len(expanded)) > 1:
            interval = stats.ttest_ind(expanded, dense, equal_var=False).confidence_interval(0.95)
            ends = [round(float(end), 4) for end in interval]
            result[task] = {"difference": round(float(np.mean(expanded) - np.mean(dense)), 4), "interval_95": ends}
    return result


def last(rows: list[dict[str, Any]], quantity: str) -> str:
    values = [row["curves"][quantity][1][-1] for row in rows if quantity in row["curves"]]
    return f"{np.mean(values):.2f}" if values else ""


def print_table(rows: list[dict[str, Any]]) -> bool:
    """Print the table; returns whether every measured target is reached."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "network", "n", "mean", "worst", "best", "asked", "active, critics", "actor", box=None)
    met = True
    for task in TASKS:
        for network in NETWORKS:
            values, asked = scores_of(rows, task, network), DEMANDS.get((task, network))
            if not values:
                continue
            good = asked is None or float(np.mean(values)) >= asked
            met = met and good
            own = [row for row in rows if (row["task"], row["network"]) == (task, network)]
            shown = [f"{value:,.4g}" for value in (np.mean(values), min(values), max(values))]
            demand = "" if asked is None else f">= {asked:,}{'' if good else ' MISSED'}"
            active = [last(own, f"active fraction of the {name}") for name in ("critics", "actor")]
            table.add_row(task, network, str(len(values)), *shown, demand, *active)
    console = Console(width=120)
    console.print(table)
    for task, result in differences(rows).items():
        low, high = result["interval_95"]
        console.print(f"{task}: expanded minus dense {result['difference']:+,.4g}, 95 % {low:+,.4g} to {high:+,.4g}")
    return met


def draw(rows: list[dict[str, Any]]) -> None:
    """Returns, active fractions and density over steps, one picture per task, beside the JSON."""
    import visualize
    from mpn_rl.expansion import growth_figures

    for task in TASKS:
        runs: dict[str, dict[str, list]] = {}
        for row in rows:
            if row["task"] == task:
                for quantity, (steps, values) in row["curves"].items():
                    if steps:
                        runs.setdefault(row["network"], {}).setdefault(quantity, []).append((steps, values))
        if runs:
            figure = growth_figures.expansion_figure(
                runs, title=f"{task}: {NAMES.get(task, 'TD3')}, dense and expanded"
            )
            visualize.save_figure(figure, RESULTS.with_name(f"expansion_{task.split('-')[0].lower()}.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these of each task's seeds")
    args = parser.parse_args()
    results = load_results()
    wanted = [row for row in all_rows(args.seeds) if not args.only or any(part in row.name for part in args.only)]
    failed = learning.run_missing(wanted, set(map(key_of, results)), run, results, store_results, args.jobs)
    draw(load_results())  # in their order
    met = print_table(results)
    return 0 if met and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
