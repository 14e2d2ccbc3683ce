"""The effect of each default: one option changed at a time, to its published value where there is one.

    python benchmarks/ablations.py [--jobs 2] [--seeds 0 1]

A row is 60,000 steps of ContextDecisionMaking-v0 (CartPole-v1: its default of 150,000). The score is that of
best_model.pt on 10,000 trials (100 episodes) of other seeds. Resumable; results in benchmarks/results/ablations.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
from typing import Any

import learning
from learning import ROOT, call

RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"
FOLDER = ROOT / "experiments" / "bench-ablations"
PUBLISHED_NEUROGYM = "--eta 0.1 --lambda-decay 0.95 --epsilon-start 0.3 --replay trial --buffer-size 500"
PUBLISHED_CARTPOLE = "--hidden-dim 64 --eta 0.05 --lambda-decay 0.9 --epsilon-start 1.0 --buffer-size 10000"
NEUROGYM = (
    "",
    PUBLISHED_NEUROGYM,
    "--eta 0.1 --lambda-decay 0.95",
    "--eta 0.15 --lambda-decay 0.98",
    "--epsilon-start 0.3",
    "--replay trial --buffer-size 500",
    "--replay transition",
    "--hidden-dim 64",
    "--hidden-dim 256",
    "--embed-dim 0",
    "--act-with online",
)
CARTPOLE = ("", PUBLISHED_CARTPOLE)


def jobs(seeds: list[int]) -> list[tuple[str, str, int]]:
    """(command, options, seed) of every row."""
    neurogym = [("train-neurogym", options, seed) for options in NEUROGYM for seed in seeds]
    return neurogym + [("train", options, seed) for options in CARTPOLE for seed in seeds]


def run(command: str, options: str, seed: int) -> dict[str, Any]:
    name = "".join(part for part in f"{command}{options}-{seed}" if part.isalnum() or part in ".-")
    where = ["--experiment-name", name, "--experiments-dir", str(FOLDER)]
    steps = ["--total-steps", "60000"] if command == "train-neurogym" else []
    call([command, *options.split(), *steps, "--seed", str(seed), "--no-plot-training", "--resume", "auto", *where])
    enough = ["--num-eval-trials", "10000"] if command == "train-neurogym" else ["--num-eval-episodes", "100"]
    scores = json.loads(call(["eval", *enough, "--seed", "1000", "--json", *where]).strip().splitlines()[-1])
    score = scores["accuracy"] if command == "train-neurogym" else scores["return_mean"]
    return {"command": command, "options": options, "seed": seed, "score": score}


def print_table(rows: list[dict[str, Any]]) -> None:
    for command, options in dict.fromkeys((row["command"], row["options"]) for row in rows):
        scores = [row["score"] for row in rows if (row["command"], row["options"]) == (command, options)]
        spread = f"[{min(scores):.3f}, {max(scores):.3f}] n={len(scores)}"
        print(f"{command:15} {options or 'defaults':85} {sum(scores) / len(scores):8.3f} {spread}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    args = parser.parse_args()
    from model_utils import write_json

    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {(row["command"], row["options"], row["seed"]) for row in rows}
    missing = [job for job in jobs(args.seeds) if job not in done]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *job) for job in missing]):
            try:
                rows.append(future.result())
            except RuntimeError as error:
                failed += 1
                print(error, file=sys.stderr)
                continue
            order = {job: place for place, job in enumerate(jobs(list(range(100))))}
            rows.sort(key=lambda row: order.get((row["command"], row["options"], row["seed"]), 0))
            write_json(RESULTS, {"machine": learning.machine(), "rows": rows})
            print(future.result(), flush=True)
    print_table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
