"""Results of every core on every task of the tables in docs/results.md, over five seeds.

    python benchmarks/learning.py [--jobs 2] [--only mpn] [--seeds 0 1 2 3 4]

Resumable: rows in benchmarks/results/learning.json are skipped, and an interrupted run continues from its last
checkpoint. Every row is one `python main.py train...` with the defaults of its command, and one `python main.py eval`
on other seeds: of final_model.pt on CartPole-v1 and with PPO, else of best_model.pt (benchmarks/neurogym_board.py
judges NeuroGym tasks by their final weights).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "learning.json"
FOLDER = ROOT / "experiments" / "bench-learning"
CONTEXT, FIXED = "ContextDecisionMaking-v0, explicit context", "ContextDecisionMaking-v0, fixed context"
NEUROGYM = (CONTEXT, FIXED, "PerceptualDecisionMaking-v0", "DelayMatchSample-v0")
# NeuroGym's default fixes the context: the agent integrates one channel beside a distractor.
ENV_ARGS: dict[str, dict[str, object]] = {CONTEXT: {"use_expl_context": True}}
CARTPOLE, MASKED = "CartPole-v1", "CartPole-v1, velocities hidden"
# With PPO, judged by the final weights.
HIDDEN = ["--algo", "ppo", "--mask-velocity"]
LONGER = [*HIDDEN, "--gae-lambda", "0.95", "--minibatches", "4", "--epochs", "10", "--learning-rate", "2e-3"]
PPO = {
    "CartPole-v1, velocities hidden, PPO": HIDDEN,
    "Pendulum-v1, velocities hidden, PPO": [*LONGER, "--rollout-steps", "128", "--gamma", "0.95"],
    "MountainCarContinuous-v0, velocities hidden, PPO": [
        *LONGER, "--rollout-steps", "64", "--noise-correlation", "0.9", "--total-steps", "300000"
    ],
}  # fmt: skip
SHOWN = ("final", "accuracy", "return_mean")  # of a result, the first that it has
# What is asked of every seed: (task, core) -> (at least, at most).
DEMANDS = {
    (CONTEXT, "mpn"): (0.91, None),
    (FIXED, "mpn"): (0.91, None),
    ("PerceptualDecisionMaking-v0", "mpn"): (0.88, None),
    ("DelayMatchSample-v0", "mpn"): (0.98, None),
    ("DelayMatchSample-v0", "mpn-frozen"): (None, 0.60),
    ("DelayMatchSample-v0", "mlp"): (None, 0.60),
    (CARTPOLE, "mpn"): (495, None),
    (MASKED, "mpn"): (400, None),
    (MASKED, "mlp"): (None, 150),
    ("CartPole-v1, velocities hidden, PPO", "mpn"): (490, None),
}


class Row(NamedTuple):
    task: str
    core: str
    seed: int

    @property
    def name(self) -> str:
        variant = {MASKED: "-masked", CONTEXT: "-explicit", **dict.fromkeys(PPO, "-ppo")}.get(self.task, "")
        return f"{self.task.split('-')[0]}{variant}-{self.core}-{self.seed}"


def all_rows(seeds: list[int]) -> list[Row]:
    pairs = [(task, core) for core in ("mpn", "gru", "lstm") for task in NEUROGYM]
    pairs += [("DelayMatchSample-v0", "mpn-frozen"), ("DelayMatchSample-v0", "mlp")]
    pairs += [(CARTPOLE, "mpn"), (MASKED, "mpn"), (MASKED, "mlp"), *((task, "mpn") for task in PPO)]
    return [Row(task, core, seed) for task, core in pairs for seed in seeds]


def matched_hidden_dim(task: str, core: str) -> int | None:
    """The hidden size at which a GRU or LSTM has the MPN's number of trained weights, None for the default."""
    if core not in ("gru", "lstm"):
        return None
    from mpn_rl import config as cfg
    from mpn_rl import registry

    command = "train-neurogym" if task in NEUROGYM else "train"
    flags: dict[str, Any] = {"env_name": task.split(",")[0], "env_args": ENV_ARGS.get(task, {})}
    flags |= {"mask_velocity": True} if task == MASKED else {}
    spaces = registry.spaces(registry.make_env(cfg.make_config(command, flags).env))

    def weights(**core_flags: Any) -> int:
        network = registry.make_network(cfg.make_config(command, {**flags, **core_flags}), spaces)
        return sum(part.numel() for part in network.parameters() if part.requires_grad)

    target = weights(core="mpn")
    return min(range(4, 129), key=lambda size: abs(weights(core=core, hidden_dim=size) - target))


def train_command(row: Row) -> list[str]:
    command = ["train-neurogym" if row.task in NEUROGYM else "train", "--env-name", row.task.split(",")[0]]
    for name, value in ENV_ARGS.get(row.task, {}).items():
        command += ["--env-arg", f"{name}={json.dumps(value)}"]
    command += ["--core", row.core, "--seed", str(row.seed)]
    hidden_dim = matched_hidden_dim(row.task, row.core)
    command += ["--hidden-dim", str(hidden_dim)] if hidden_dim else []
    masked = [
        "--mask-velocity",
        "--total-steps",
        "300000",
        "--no-dueling",
    ]  # the head that these rows were measured with
    command += masked if row.task == MASKED else PPO.get(row.task, [])
    return command


def eval_command(row: Row) -> list[str]:
    enough = ["--num-eval-trials", "10000"] if row.task in NEUROGYM else ["--num-eval-episodes", "100"]
    checkpoint = "final" if row.task == CARTPOLE or row.task in PPO else "best"
    return ["eval", *enough, "--seed", "1000", "--json", "--checkpoint", checkpoint]


def run(row: Row) -> dict[str, Any]:
    """Train and evaluate one row; returns the values for the table and the curves."""
    where = ["--experiment-name", row.name, "--experiments-dir", str(FOLDER)]
    options = train_command(row)
    start = time.monotonic()
    call([*options, *where, "--resume", "auto", "--no-plot-training"])
    seconds = time.monotonic() - start
    shown = eval_command(row)
    scores = json.loads(call([*shown, *where]).strip().splitlines()[-1])
    kept = ("accuracy", "accuracy_ci95", "trials", "normalised_score", "return_mean", "return_ci95", "episodes")
    metrics = [json.loads(line) for line in (FOLDER / row.name / "metrics.jsonl").read_text().splitlines()]
    evals = [entry for entry in metrics if entry["kind"] == "eval"]
    key = "accuracy" if row.task in NEUROGYM else "return_mean"
    return {
        **row._asdict(),
        "command": f"python main.py {' '.join(options)}",
        "evaluated_by": f"python main.py {' '.join(shown)}",
        "steps": max(entry["step"] for entry in metrics),
        "train_seconds": round(seconds, 1),
        **{name: scores[name] for name in kept if name in scores},
        "curve": [[entry["step"] for entry in evals], [round(entry[key], 4) for entry in evals]],
    }


def call(arguments: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"python main.py {' '.join(arguments)} exited {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return done.stdout


def load_results() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures depend on."""
    from model_utils import versions

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), **versions()}


def store_results(rows: list[dict[str, Any]]) -> None:
    from model_utils import write_json

    order = {row: place for place, row in enumerate(all_rows(list(range(100))))}
    rows = sorted(rows, key=lambda row: order.get(Row(row["task"], row["core"], row["seed"]), 0))
    write_json(RESULTS, {"machine": machine(), "rows": rows})


def print_table(rows: list[dict[str, Any]]) -> bool:
    """Print the table; returns whether every measured target is reached."""
    from rich.console import Console
    from rich.table import Table

    table, met = Table("task", "core", "n", "mean", "worst", "best", "asked", "seconds", box=None), True
    for task, core in dict.fromkeys((row["task"], row["core"]) for row in rows):
        own = [row for row in rows if (row["task"], row["core"]) == (task, core)]
        values = [row["accuracy"] if task in NEUROGYM else row["return_mean"] for row in own]
        low, high = DEMANDS.get((task, core), (None, None))
        good = (low is None or min(values) >= low) and (high is None or max(values) <= high)
        asked = f">= {low}" if low is not None else f"<= {high}" if high is not None else ""
        met = met and good
        worst = max(values) if high is not None else min(values)
        best = min(values) if high is not None else max(values)
        digits = 3 if task in NEUROGYM else 1
        shown = [f"{value:.{digits}f}" for value in (sum(values) / len(values), worst, best)]
        timed = sorted(row["train_seconds"] for row in own if row["train_seconds"])  # null where the machine paused
        seconds = timed[len(timed) // 2]
        table.add_row(task, core, str(len(own)), *shown, asked + ("" if good else " MISSED"), f"{seconds:.0f}")
    Console(width=120).print(table)
    return met


def draw(rows: list[dict[str, Any]]) -> None:
    """Learning curves of all tasks, beside the JSON."""
    import visualize
    from neurogym_wrapper import reference_scores

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, axes = visualize.new_panels(4.6 * columns, 3.9 * lines, rows=lines, columns=columns)
    panels = list(axes.flat)
    for ax in panels[len(tasks) :]:
        ax.set_axis_off()
    for ax, task in zip(panels, tasks, strict=False):
        runs: dict[str, list] = {}
        for row in rows:
            if row["task"] == task:
                runs.setdefault(row["core"], []).append(tuple(row["curve"]))
        label = "greedy accuracy" if task in NEUROGYM else "greedy return"
        references = reference_scores(task.split(",")[0], ENV_ARGS.get(task))
        visualize.plot_learning_comparison(runs, ax, ylabel=label, references=references)
        ax.set_title(task, pad=54)
    visualize.save_figure(figure, RESULTS.with_suffix(".png"))


def run_missing(
    wanted: list[Any],
    done: set[Any],
    run: Callable[[Any], dict[str, Any]],
    results: list[dict[str, Any]],
    store: Callable[[list[dict[str, Any]]], None],
    jobs: int,
) -> int:
    """Run the missing rows, `jobs` at a time, and store each result at once. Returns the number of failures."""
    missing, failed = [row for row in wanted if row not in done], 0
    print(f"{len(wanted) - len(missing)} rows are there, {len(missing)} to go", flush=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run, row): row for row in missing}
        for future in concurrent.futures.as_completed(waiting):
            row = waiting[future]
            try:
                result = future.result()
            except RuntimeError as error:
                failed += 1
                print(f"{row.name}: {error}", file=sys.stderr, flush=True)
                continue
            results.append(result)
            store(results)
            value = next(result[name] for name in SHOWN if result.get(name) is not None)
            seconds = result.get("train_seconds", result.get("seconds"))
            print(f"{row.name}: {value:.3f} in {seconds:.0f} s", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    results = load_results()
    done = {Row(row["task"], row["core"], row["seed"]) for row in results}
    wanted = [row for row in all_rows(args.seeds) if not args.only or any(part in row.name for part in args.only)]
    failed = run_missing(wanted, done, run, results, store_results, args.jobs)
    if results:
        draw(results)
    met = print_table(results)
    return 0 if met and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
