"""One agent on the twenty tasks of yang19 at once: what it learns, and what it costs.

    python benchmarks/many_tasks.py [learning] [speed] [--cores mpn] [--seeds 0]

learning  `train-neurogym --env-name yang19 --total-steps 3000000` with the MPN, and with a GRU of as many weights,
          seeds 0 to 2, and one `eval` of final_model.pt on 20,000 trials of other seeds. Resumable.
speed     steps per second of CPU time in training on yang19, and on one of its tasks alone, in turns, without
          evaluations. One task stands for each family; their times are weighted by the number of tasks in the family.

Without a section, both. Results are in benchmarks/results/many_tasks.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import learning  # noqa: E402
import numpy as np  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "many_tasks.json"
FOLDER = ROOT / "experiments" / "bench-many-tasks"
STEPS, TRIALS, EVAL_SEED = 3_000_000, 20_000, 1_000
CORES, SEEDS = ("mpn", "gru"), (0, 1, 2)
FAMILIES = {"yang19.go-v0": 6, "yang19.ctxdm1-v0": 10, "yang19.dms-v0": 4}
ROUNDS, ROUND_STEPS = 5, 3_000  # an episode of each of 20 lanes per round


def train_and_evaluate(core: str, seed: int) -> dict[str, Any]:
    """Train one agent to the end, and measure its final weights in every task."""
    where = ["--experiment-name", f"yang19-{core}-{seed}", "--experiments-dir", str(FOLDER)]
    command = ["train-neurogym", "--env-name", "yang19", "--core", core, "--seed", str(seed)]
    command += ["--total-steps", str(STEPS), *(["--match-weights", "mpn"] if core != "mpn" else [])]
    start = time.monotonic()
    learning.call([*command, *where, "--resume", "auto", "--no-plot-training"])
    seconds = time.monotonic() - start
    evaluate = ["eval", "--checkpoint", "final", "--num-eval-trials", str(TRIALS), "--seed", str(EVAL_SEED), "--json"]
    scores = json.loads(learning.call([*evaluate, *where]).strip().splitlines()[-1])
    keys = ("normalised_score", "normalised_score_iqm", "accuracy")
    return {
        "core": core,
        "seed": seed,
        "command": f"python main.py {' '.join(command)}",
        "seconds": round(seconds, 1),
        **{key: scores[key] for key in keys},
        "tasks": {
            name: {key: own[key] for key in ("normalised_score", "accuracy")} for name, own in scores["tasks"].items()
        },
    }


def speed() -> dict[str, Any]:
    """Steps per second with all tasks and with one, median of ROUNDS rounds in turns, after one that does not count."""
    from mpn_rl import config as cfg
    from mpn_rl.training import Run

    class Unsaved(Run):
        """A run that writes no file."""

        def _log(self, rows: list) -> None:
            pass

        def save(self) -> None:
            pass

    flags = {"total_steps": 10**9, "eval_freq": 0, "plasticity_metrics_freq": 0, "checkpoint_freq": 0}
    names = ("yang19", *FAMILIES)
    runs = {name: Unsaved(cfg.make_config("train-neurogym", {"env_name": name, **flags})) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for env in runs["yang19"].lanes.envs:  # each lane builds a task when it first plays it
        for index in range(len(env.names)):
            env.member(index)
    for run in runs.values():
        while run.step < 1_500:  # learning starts at 1,000
            run.advance()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            end, start = run.step + ROUND_STEPS, time.process_time()
            while run.step < end:
                run.advance()
            seconds[name].append(time.process_time() - start)
    median = {name: float(np.median(values)) / ROUND_STEPS for name, values in seconds.items()}
    one = sum(median[name] * count for name, count in FAMILIES.items()) / sum(FAMILIES.values())
    rounds = [
        sum(seconds[name][turn] * count for name, count in FAMILIES.items()) / 20 / seconds["yang19"][turn]
        for turn in range(ROUNDS)
    ]
    return {
        "steps_per_second": {name: round(1 / value) for name, value in median.items()},
        "one_task": round(1 / one),
        "ratio": round(one / median["yang19"], 3),
        "ratio_quartiles": [round(float(value), 3) for value in np.quantile(rounds, (0.25, 0.75))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="learning, speed (default: both)")
    parser.add_argument("--cores", nargs="+", choices=CORES, default=CORES)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    args = parser.parse_args()
    sections = args.sections or ["learning", "speed"]
    if unknown := set(sections) - {"learning", "speed"}:
        parser.error(f"sections are learning and speed, got {min(unknown)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if "speed" in sections:
        results["speed"] = speed()
        print(results["speed"], flush=True)
        write(results)
    if "learning" in sections:
        for seed in args.seeds:
            for core in args.cores:
                if any((row["core"], row["seed"]) == (core, seed) for row in results["rows"]):
                    continue
                results["rows"].append(train_and_evaluate(core, seed))
                print({key: value for key, value in results["rows"][-1].items() if key != "tasks"}, flush=True)
                write(results)


def write(results: dict[str, Any]) -> None:
    """Write the results, with the machine and the versions."""
    from model_utils import write_json

    write_json(RESULTS, {**results, "machine": learning.machine()})


if __name__ == "__main__":
    main()
