"""The scoreboard: every NeuroGym task that can be trained, several cores, judged by the final weights.

    make bench-neurogym   or   python benchmarks/neurogym_board.py [--set A] [--only GoNogo] [--cores mpn] [--seeds 0]

Set A: fifteen tasks that labs report, with MPN, frozen MPN, RNN, GRU and LSTM of as many weights, five seeds, and
sb3-contrib's RecurrentPPO (LSTM), three seeds. Set B: all other tasks, with MPN, frozen MPN and GRU, three seeds; the
two with action vectors under --algo td3.

A row is one `python main.py train-neurogym` with its defaults, 150,000 steps, and one `python main.py eval` of
final_model.pt and of best_model.pt on 2,000 trials of other seeds. The normalised score is 0 for random actions and 1
for the best scripted policy, which knows the answers. Where noise hides the answers, the bound is the score of the
ideal observer. Resumable: benchmarks/results/neurogym.json keeps the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import learning  # noqa: E402
import numpy as np  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "neurogym.json"
FOLDER = ROOT / "experiments" / "bench-neurogym"
STEPS, TRIALS, EVAL_SEED = 150_000, 2_000, 1_000
SET_A = (
    "ContextDecisionMaking", "DelayComparison", "DelayMatchSample", "DelayMatchSampleDistractor1D",
    "DelayPairedAssociation", "DualDelayMatchSample", "GoNogo", "IntervalDiscrimination", "MotorTiming",
    "MultiSensoryIntegration", "OneTwoThreeGo", "PerceptualDecisionMaking", "PerceptualDecisionMakingDelayResponse",
    "ProbabilisticReasoning", "ReadySetGo",
)  # fmt: skip
PEER = "RecurrentPPO"
CORES = {"A": ("mpn", "mpn-frozen", "rnn", "gru", "lstm", PEER), "B": ("mpn", "mpn-frozen", "gru")}
CONTINUOUS = ("ReachingDelayResponse-v0", "SpatialSuppressMotion-v0")
GOAL = 0.95  # of the bound


class Row(NamedTuple):
    task: str
    core: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.removesuffix('-v0')}-{self.core}-{self.seed}"


def tasks_of(chosen: str) -> list[str]:
    """The tasks of set A or B, by name."""
    from neurogym_wrapper import list_tasks

    known = [f"{name}-v0" for name in SET_A]
    return known if chosen == "A" else [task.name for task in list_tasks() if task.trainable and task.name not in known]


def all_rows(chosen: str) -> list[Row]:
    """All rows of a set, the first seed of every task first."""
    seeds = 5 if chosen == "A" else 3
    return [
        Row(task, core, seed)
        for seed in range(seeds)
        for core in CORES[chosen]
        for task in tasks_of(chosen)
        if not (core == PEER and seed >= 3)
    ]


def train_command(row: Row) -> list[str]:
    command = ["train-neurogym", "--env-name", row.task, "--core", row.core, "--seed", str(row.seed)]
    command += ["--algo", "td3"] if row.task in CONTINUOUS else []
    command += ["--total-steps", str(STEPS)]
    return command + (["--match-weights", "mpn"] if row.core in ("rnn", "gru", "lstm") else [])


def run(row: Row) -> dict[str, Any]:
    """Train and evaluate one row."""
    start = time.monotonic()
    if row.core == PEER:
        return {**row._asdict(), **run_peer(row), "seconds": round(time.monotonic() - start, 1)}
    where = ["--experiment-name", row.name, "--experiments-dir", str(FOLDER)]
    options = train_command(row)
    learning.call([*options, *where, "--resume", "auto", "--no-plot-training"])
    seconds = time.monotonic() - start
    scores = {}
    for checkpoint in ("final", "best"):
        evaluate = ["eval", "--num-eval-trials", str(TRIALS), "--seed", str(EVAL_SEED), "--checkpoint", checkpoint]
        scores[checkpoint] = json.loads(learning.call([*evaluate, "--json", *where]).strip().splitlines()[-1])
    metrics = [json.loads(line) for line in (FOLDER / row.name / "metrics.jsonl").read_text().splitlines()]
    evaluations = [entry for entry in metrics if entry["kind"] == "eval"]
    final, config = scores["final"], json.loads((FOLDER / row.name / "config.json").read_text())
    kept = {name: value for name, value in final.items() if name.endswith("trial_return_mean")}
    return {
        **row._asdict(),
        "command": f"python main.py {' '.join(options)}",
        "weights": config["network"]["weights"],
        "seconds": round(seconds, 1),
        "final": final["normalised_score"],
        "final_ci95": final["normalised_score_ci95"],
        "best": scores["best"]["normalised_score"],
        "accuracy": final["accuracy"],
        "best_accuracy": scores["best"]["accuracy"],
        "decision_accuracy": final["decision_accuracy"],
        **kept,
        "curve": [[entry["step"] for entry in evaluations], [round(entry["return_mean"], 4) for entry in evaluations]],
    }


def run_peer(row: Row) -> dict[str, Any]:
    """Train RecurrentPPO in its own environment for as many steps and play its final weights."""
    import peers

    call = [str(peers.VENV / "bin" / "python"), str(ROOT / "benchmarks" / "peers.py"), "--final", row.task]
    with tempfile.TemporaryDirectory() as folder:
        words = [*call, str(row.seed), str(STEPS), str(TRIALS)]
        done = subprocess.run(words, cwd=folder, env=peers.ENVIRONMENT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} exited {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- what can be reached ----------------------------------------------------------------------------------


def ideal_accuracy(task: str) -> float | None:
    """The ideal observer's share of right answers, for the task's default arguments; None where noise hides nothing.

    Two channels whose means differ by d, each with noise s per step, independent over n steps: Phi(sqrt(n) d / (sqrt(2)
    s)), averaged over the strengths. With two modalities the difference is spread over two such pairs. In
    DelayComparison, 200,000 simulated trials: the more probable order, given the mean of each stimulus and the
    possible pairs. In ProbabilisticReasoning the answer is drawn with probability 1 / (1 + 10^-w), w the summed weight
    of four shapes: the mean of max(p, 1 - p).
    """
    from neurogym_wrapper import make_neurogym, reference_scores

    known = reference_scores(task)
    if known:
        return known["ideal"]
    env = make_neurogym(task, {}).unwrapped
    name = task.removesuffix("-v0")
    if name in ("MultiSensoryIntegration", "PerceptualDecisionMakingDelayResponse"):
        steps, spread = env.timing["stimulus"] // env.dt, 2.0 if name == "MultiSensoryIntegration" else math.sqrt(2.0)
        z = [math.sqrt(steps) * coherence / 100 / (spread * env.sigma) for coherence in env.cohs]
        return float(np.mean([0.5 * (1 + math.erf(value / math.sqrt(2.0))) for value in z]))
    if name == "DelayComparison":
        rng, n = np.random.default_rng(0), 200_000
        pairs = np.array([[env.represent(value) for value in pair] for pair in env.vpairs])
        possible, right = np.concatenate([pairs, pairs[:, ::-1]]), np.repeat([1, 2], len(pairs))
        drawn = rng.integers(len(possible), size=n)
        deviation = env.sigma / np.sqrt([env.timing[f"stimulus{i}"] // env.dt for i in (1, 2)])
        seen = possible[drawn] + rng.normal(size=(n, 2)) * deviation
        likelihood = np.exp(-0.5 * (((seen[:, None] - possible) / deviation) ** 2).sum(-1))
        answer = np.where(likelihood[:, right == 1].sum(-1) >= likelihood[:, right == 2].sum(-1), 1, 2)
        return float((answer == right[drawn]).mean())
    if name == "ProbabilisticReasoning":
        sums = np.zeros(1)
        for _ in range(env.n_loc):
            sums = np.add.outer(sums, np.asarray(env.shape_weight)).ravel()
        p = 1 / (1 + 10.0**-sums)
        return float(np.maximum(p, 1 - p).mean())
    return None


def bound(task: str, row: dict[str, Any]) -> float:
    """The best normalised score that is known to be possible; 1.0 is the scripted policy's, which knows the answers.

    Args: row: an agent's, with the returns per trial of the scripted policies.
    """
    from neurogym_wrapper import make_neurogym

    accuracy = ideal_accuracy(task)
    if accuracy is None:
        return 1.0
    rewards = make_neurogym(task, {}).unwrapped.rewards
    ideal = accuracy * rewards["correct"] + (1 - accuracy) * rewards.get("fail", 0.0)
    random, best = row["random_trial_return_mean"], scripted_best(row)
    return (ideal - random) / (best - random)


def scripted_best(row: dict[str, Any]) -> float:
    """The return per trial that counts as 1."""
    best = row.get("best_trial_return_mean")
    return row["ground_truth_trial_return_mean"] if best is None else best


# --- tables and pictures ------------------------------------------------------------------------------------


def worst_dip(curve: list[list[float]]) -> float | None:
    """The worst evaluation after the first with 95 % of the best, as a share of the best; None for returns below 0."""
    values, best = curve[1], max(curve[1])
    if best <= 0:
        return None
    first = next(place for place, value in enumerate(values) if value >= 0.95 * best)
    return min(values[first:]) / best


def figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By task: the bound, and each core's normalised scores of the final weights, over seeds."""
    found: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task and row["core"] != PEER]
        if own and own[0]["final"] is not None:
            found[task] = {"bound": bound(task, own[0])}
            low, high = own[0]["random_trial_return_mean"], scripted_best(own[0])
            for row in (row for row in rows if row["task"] == task):
                score = row["final"] if row["core"] != PEER else (row["trial_return_mean"] - low) / (high - low)
                found[task].setdefault(row["core"], []).append(score)
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    cores = [core for core in CORES["A"] if any(row["core"] == core for row in rows)]
    table = Table("task", "bound", *cores, "MPN, worst / bound", "worst dip", box=None)
    reached = 0
    for task, scores in figures(rows).items():
        cells = [f"{np.mean(scores[core]):.3f} ({len(scores[core])})" if core in scores else "" for core in cores]
        worst = min(scores["mpn"]) / scores["bound"] if "mpn" in scores else math.nan
        dips = [worst_dip(row["curve"]) for row in rows if (row["task"], row["core"]) == (task, "mpn")]
        dip = min((value for value in dips if value is not None), default=math.nan)
        reached += worst >= GOAL
        table.add_row(task, f"{scores['bound']:.3f}", *cells, f"{worst:.3f}", f"{dip:.3f}")
    Console(width=150).print(table)
    print(f"{reached} tasks at {GOAL} of the bound with every seed of the MPN")


def draw(rows: list[dict[str, Any]]) -> None:
    """The heat map of the final weights' scores, as shares of the bound, and the learning curves."""
    import visualize

    found = figures(rows)
    cores = [core for core in CORES["A"] if any(core in scores for scores in found.values())]
    shares = np.array(
        [[np.mean(scores[core]) / scores["bound"] if core in scores else np.nan for core in cores]
         for scores in found.values()]
    )  # fmt: skip
    figure, ax = visualize.new_figure(4.2 + 0.9 * len(cores), 1.2 + 0.32 * len(found))
    names = [task.removesuffix("-v0") for task in found]
    visualize.plot_heat_map(np.clip(shares, 0.0, 1.0), (cores, names), ax, label="normalised score / bound")
    ax.invert_yaxis()  # the first task on top
    visualize.save_figure(figure, RESULTS.with_suffix(".png"))
    columns, lines = 5, -(-len(found) // 5)
    figure, axes = visualize.new_panels(3.4 * columns, 3.0 * lines, rows=lines, columns=columns)
    for ax in list(axes.flat)[len(found) :]:
        ax.set_axis_off()
    for ax, task in zip(axes.flat, found, strict=False):
        runs: dict[str, list] = {}
        for row in rows:
            if row["task"] == task and "curve" in row:
                runs.setdefault(row["core"], []).append(tuple(row["curve"]))
        visualize.plot_learning_comparison(runs, ax, ylabel="return per episode")
        ax.set_title(task.removesuffix("-v0"), fontsize=9, pad=38)
    visualize.save_figure(figure, RESULTS.with_name("neurogym_curves.png"))


def main() -> int:
    from model_utils import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["A", "B"], nargs="*", default=["A", "B"], help="(default: both)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], help="only tasks whose name contains one of these")
    parser.add_argument("--cores", nargs="*", default=CORES["A"], help="only these")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(5)), help="only these")
    args = parser.parse_args()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {Row(row["task"], row["core"], row["seed"]) for row in rows}
    order = [row for chosen in "AB" for row in all_rows(chosen)]
    wanted = [row for chosen in args.set for row in all_rows(chosen)]
    wanted = [row for row in wanted if row.core in args.cores and row.seed in args.seeds]
    wanted = [row for row in wanted if not args.only or any(part in row.task for part in args.only)]
    if any(row.core == PEER and row not in done for row in wanted):
        import peers
        from separate_venv import make_venv

        make_venv(peers.VENV, [*peers.PEERS])

    def store(rows: list[dict[str, Any]]) -> None:
        place = {row: number for number, row in enumerate(order)}
        rows.sort(key=lambda row: place.get(Row(row["task"], row["core"], row["seed"]), len(order)))
        write_json(RESULTS, {"machine": learning.machine(), "rows": rows})

    failed = learning.run_missing(wanted, done, run, rows, store, args.jobs)
    if rows:
        draw(rows)
        print_table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
