"""Do networks lose the ability to learn where a task changes, and which remedy keeps it?

    python benchmarks/changing_tasks.py [--jobs 1] [--only dense] [--seeds 0 1 2 3 4]

Every row is one `python main.py train ...` of a task that changes from phase to phase, with one remedy. The score of a
phase is the mean return of its evaluations. Resumable like benchmarks/learning.py: rows in
benchmarks/results/changing_tasks.json are skipped.
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
RESULTS = ROOT / "benchmarks" / "results" / "changing_tasks.json"
FOLDER = ROOT / "experiments" / "bench-changing-tasks"
SEEDS = (0, 1, 2, 3, 4)
SETTINGS = {
    "CartPole, DQN": "train --core mlp --activation relu --num-layers 2 --embed-dim 0 --change permute-observations "
    "--change-every 15000 --total-steps 150000 --eval-freq 1500 --buffer-size 10000 --plasticity-metrics-freq 5000",
}
REMEDIES = {
    "dense": "",
    "NE": "--expansion paper",
    "ReDo": "--expansion redo --dormancy-tau 0.1",
    "continual backprop": "--expansion continual-backprop",
    "shrink and perturb": "--expansion shrink-perturb",
    "L2 init": "--expansion l2-init",
    "LayerNorm": "--layer-norm",
}
LOST = 0.25  # of the first phase's score, by which a setting shows the loss


class Row(NamedTuple):
    setting: str
    remedy: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.split(',')[0]}-{self.remedy.replace(' ', '-')}-{self.seed}"


def all_rows(seeds: list[int]) -> list[Row]:
    """All rows, seed by seed, so that an interrupted table is balanced."""
    return [Row(setting, remedy, seed) for seed in seeds for setting in SETTINGS for remedy in REMEDIES]


def run(row: Row) -> dict[str, Any]:
    """Train one row; returns the scores of its phases and the metrics at their ends."""
    from mpn_rl.runs.phases import phase_scores

    options = [*SETTINGS[row.setting].split(), *REMEDIES[row.remedy].split(), "--seed", str(row.seed)]
    where = ["--experiment-name", row.name, "--experiments-dir", str(FOLDER)]
    start = time.monotonic()
    learning.call([*options, *where, "--resume", "auto", "--no-plot-training"])
    seconds = time.monotonic() - start
    metrics = [json.loads(line) for line in (FOLDER / row.name / "metrics.jsonl").read_text().splitlines()]
    phases = phase_scores(metrics)
    measured = [entry for entry in metrics if entry["kind"] == "plasticity"][-1]
    network = "critic" if "critic/dormant_fraction" in measured else "online"
    quantities = ("dormant_fraction", "effective_rank", "stable_rank", "feature_norm", "weight_norm")
    return {
        **row._asdict(),
        "command": f"python main.py {' '.join(options)}",
        "seconds": round(seconds, 1),
        "areas": [round(phase.area, 2) for phase in phases],
        "last": [round(phase.last, 2) for phase in phases],
        "steps_to_reach": [phase.steps_to_reach for phase in phases],
        "at_the_end": {name: round(measured[f"{network}/{name}"], 4) for name in quantities},
    }


def load_results() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def key_of(row: dict[str, Any]) -> Row:
    return Row(row["setting"], row["remedy"], row["seed"])


def store_results(rows: list[dict[str, Any]]) -> None:
    from model_utils import write_json

    order = {row: place for place, row in enumerate(all_rows(list(SEEDS)))}
    rows = sorted(rows, key=lambda row: order.get(key_of(row), len(order)))
    write_json(RESULTS, {"machine": learning.machine(), "rows": rows})


def print_table(rows: list[dict[str, Any]]) -> None:
    """First and last phase of every remedy, and its last phase minus that of the dense network with the same seed."""
    from rich.console import Console
    from rich.table import Table

    from mpn_rl.statistics import mean_interval

    console = Console(width=140)
    for setting in SETTINGS:
        own = {(row["remedy"], row["seed"]): row for row in rows if row["setting"] == setting}
        table = Table(
            "remedy", "n", "first phase", "last phase", "kept", "minus dense, 95 %", "dormant", "rank", box=None
        )
        for remedy in REMEDIES:
            seeds = [seed for seed in SEEDS if (remedy, seed) in own]
            if not seeds:
                continue
            areas = np.array([own[remedy, seed]["areas"] for seed in seeds])
            paired = [seed for seed in seeds if ("dense", seed) in own]
            gain = np.array([own[remedy, seed]["areas"][-1] - own["dense", seed]["areas"][-1] for seed in paired])
            ends = [own[remedy, seed]["at_the_end"] for seed in seeds]
            shown = ""
            if remedy != "dense" and len(gain) > 1:
                low, high = mean_interval(gain)
                shown = f"{gain.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
            table.add_row(
                remedy, str(len(seeds)), f"{areas[:, 0].mean():.1f}", f"{areas[:, -1].mean():.1f}",
                f"{(areas[:, -1] / areas[:, 0]).min():.2f}-{(areas[:, -1] / areas[:, 0]).max():.2f}", shown,
                f"{np.mean([end['dormant_fraction'] for end in ends]):.2f}",
                f"{np.mean([end['effective_rank'] for end in ends]):.1f}",
            )  # fmt: skip
        console.print(setting, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), help="only these seeds")
    args = parser.parse_args()
    results = load_results()
    wanted = [row for row in all_rows(args.seeds) if not args.only or any(part in row.name for part in args.only)]
    failed = learning.run_missing(wanted, set(map(key_of, results)), run, results, store_results, args.jobs)
    print_table(load_results())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
