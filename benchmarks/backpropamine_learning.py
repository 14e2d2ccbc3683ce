"""Learning curves of the modulated and the plain network: quick settings, published maze, CartPole.

    python benchmarks/backpropamine_learning.py [GROUP ...]      groups: quick cue simplemaze long cartpole

Every row is `python main.py train --config configs/...json` with a seed, then `eval` on 200 episodes of other seeds. A
modulated network is also evaluated with its trace or its modulator held at zero. Resumable: experiments/bench-*, two
rows at a time; results in benchmarks/results/backpropamine_learning.json, curves beside it. One thread per run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "backpropamine_learning.json"
BRIEF = ["--log-freq", "30", "--eval-freq", "0", "--eval-episodes", "60", "--plasticity-metrics-freq", "0"]
# group -> (contenders: name -> options, seeds)
GROUPS: dict[str, tuple[dict[str, list[str]], range]] = {
    "quick": (
        {
            "modulated": ["--config", "configs/backpropamine_maze_quick.json"],
            "plain RNN": ["--config", "configs/backpropamine_maze_quick.json", "--core", "rnn"],
        },
        range(5),
    ),
    "cue": (
        {
            "modulated": ["--config", "configs/cue_reward_quick.json"],
            "plain RNN": ["--config", "configs/cue_reward_quick.json", "--core", "rnn"],
        },
        range(3),
    ),
    "simplemaze": (
        {"modulated": ["--config", "configs/backpropamine_simplemaze.json", "--total-steps", "3300000", *BRIEF]},
        range(3),
    ),
    "long": (
        {"modulated": ["--config", "configs/backpropamine_simplemaze.json", "--total-steps", "30000000", *BRIEF]},
        range(1),
    ),
    "cartpole": ({"LSTM": ["--algo", "a2c", "--core", "lstm", "--total-steps", "500000"]}, range(3)),
}
PANELS = {"quick": "maze of 7 x 7: reward per episode", "cue": "two cues: reward per episode"}


def folder(group: str, contender: str, seed: int) -> str:
    return f"bench-{group}-{contender.replace(' ', '-')}-{seed}".lower()


def row(group: str, contender: str, options: list[str], seed: int, root: str) -> dict[str, Any]:
    """Train if necessary, evaluate, and return the summary."""
    name = folder(group, contender, seed)
    here = ["--experiment-name", name, "--experiments-dir", root]
    if not Path(root, name, "checkpoints", "final_model.pt").is_file():
        _main("train", *here, *options, "--seed", str(seed), "--resume", "auto", "--no-plot-training")
    lines = Path(root, name, "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    episodes = [each for each in logged if each["kind"] == "episode"]
    record: dict[str, Any] = {"contender": contender, "seed": seed, "steps": logged[-1]["step"]}
    if group == "cartpole":
        record["eval"] = _eval(here, "100", [])
        return record
    rewards = np.array([each["reward"] for each in episodes])  # one row each iteration of 30 episodes
    windows = len(rewards) // 50
    record |= {
        "iterations": len(rewards),
        "reward_by_50_iterations": rewards[: 50 * windows].reshape(windows, 50).mean(1).round(3).tolist(),
        "last_50": float(rewards[-50:].mean()),
        "eval": _eval(here, "200", []),
    }
    if contender == "modulated" and group in PANELS:
        record["lesions"] = {
            part: _eval(here, "200", ["--lesion", part])["return_mean"] for part in ("trace", "modulator")
        }
    return record


def _eval(here: list[str], episodes: str, more: list[str]) -> dict[str, Any]:
    out = _main("eval", *here, "--checkpoint", "final", "--num-eval-episodes", episodes, "--json", *more)
    scores = json.loads(out.splitlines()[-1])
    kept = ("return_mean", "return_ci95", "quarter_hits", "growth_hits", "growth_hits_ci95")
    return {key: scores[key] for key in kept if key in scores}


def _main(*words: str) -> str:
    call = [sys.executable, "main.py", *words]
    return subprocess.run(
        call, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of a contender, with t intervals: the last 50 iterations, and the evaluation."""
    from scipy import stats

    table: dict[str, Any] = {}
    for contender in dict.fromkeys(each["contender"] for each in rows):
        mine = [each for each in rows if each["contender"] == contender]
        scores = {"eval": [each["eval"]["return_mean"] for each in mine]}
        if "last_50" in mine[0]:
            scores["last_50"] = [each["last_50"] for each in mine]
            scores["growth_hits"] = [each["eval"].get("growth_hits", np.nan) for each in mine]
        table[contender] = {"seeds": len(mine)}
        for name, values in scores.items():
            mean, error = float(np.mean(values)), stats.sem(values) if len(values) > 1 else np.nan
            half = float(error * stats.t.ppf(0.975, len(values) - 1)) if len(values) > 1 else None
            table[contender][name] = {"mean": mean, "ci95": None if half is None else [mean - half, mean + half],
                                     "least": float(min(values))}  # fmt: skip
    return table


def draw(results: dict[str, Any]) -> None:
    import visualize
    from mpn_rl.expansion import growth_figures

    runs: dict[str, dict[str, Any]] = {}
    for group, panel in PANELS.items():
        for each in results.get(group, {}).get("rows", []):
            values = each["reward_by_50_iterations"]
            steps = each["steps"] / each["iterations"] * 50 * (np.arange(len(values)) + 0.5)
            runs.setdefault(each["contender"], {}).setdefault(panel, []).append((steps, values))
    if runs:
        visualize.save_figure(growth_figures.expansion_figure(runs), RESULTS.with_suffix(".png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], help="(default: all)")
    parser.add_argument("--experiments-dir", default=str(ROOT / "experiments"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    import learning

    from model_utils import write_json

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for group in options.groups or list(GROUPS):
        contenders, seeds = GROUPS[group]
        with ThreadPoolExecutor(options.workers) as pool:
            jobs = [
                pool.submit(row, group, name, words, seed, options.experiments_dir)
                for seed in seeds
                for name, words in contenders.items()
            ]
            rows = [job.result() for job in jobs]
        results[group] = {"summary": summary(rows), "rows": rows}
        results["machine"] = learning.machine()
        write_json(RESULTS, results)
        print(group, json.dumps(results[group]["summary"], indent=1))
    draw(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
