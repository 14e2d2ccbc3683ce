"""Comparison with other programs: sb3-contrib's RecurrentPPO on NeuroGym, Stable-Baselines3's DQN on CartPole.

    python benchmarks/peers.py [--seeds 0 1 2] [--only Context]

Makes benchmarks/.venv-peers for them. The toolkit and the peers take turns. Each turn is a whole process on one thread,
from its start until a greedy evaluation first reaches the threshold. All evaluate every 7,500 steps (CartPole: 5,000)
on 100 episodes (50) of the same task in the same wrapper, in all environments at once. RecurrentPPO has its better
settings (LSTM of 128, 16 environments, n_steps 64, batch 256, learning rate 1e-3, entropy 0.01; gamma 0.99, which is
faster than our 0.9), DQN those of the RL Zoo. Resumable: benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
VENV = ROOT / "benchmarks" / ".venv-peers"
PEERS = ("stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "neurogym")
THRESHOLDS = {
    "ContextDecisionMaking-v0": 0.90,
    "PerceptualDecisionMaking-v0": 0.87,
    "DelayMatchSample-v0": 0.98,
    "CartPole-v1": 475.0,
}
MAX_STEPS = 300_000
ASKED = 3.0  # times faster than RecurrentPPO
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# --- the peer's side, run by its own Python ---------------------------------------------------------------


def peer(task: str, seed: int) -> None:
    """Train the peer and print one JSON line per evaluation."""
    import torch

    torch.set_num_threads(1)
    (peer_dqn if task == "CartPole-v1" else peer_recurrent_ppo)(task, seed)


def recurrent_ppo(task: str, seed: int) -> Any:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from neurogym_wrapper import make_neurogym

    return RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([lambda: make_neurogym(task, {}, 150) for _ in range(16)]),
        n_steps=64,
        batch_size=256,
        learning_rate=1e-3,
        ent_coef=0.01,
        policy_kwargs={"lstm_hidden_size": 128},
        seed=seed,
        device="cpu",
    )


def final_score(task: str, seed: int, steps: int, trials: int) -> dict[str, Any]:
    """Train RecurrentPPO for so many steps; means over trials of other seeds, played greedily by the final weights."""
    import numpy as np
    import torch

    from neurogym_wrapper import make_neurogym

    torch.set_num_threads(1)
    model = recurrent_ppo(task, seed)
    model.learn(steps)
    lanes = [make_neurogym(task, {}, 150) for _ in range(64)]
    scores: list[float] = []
    returns: list[float] = []
    first = 2**30
    while len(returns) < trials:
        obs = np.stack([env.reset(seed=first + i)[0] for i, env in enumerate(lanes)])
        first, state, starts, total = first + len(lanes), None, np.ones(len(lanes), bool), np.zeros(len(lanes))
        for _ in range(150):
            actions, state = model.predict(obs, state, starts, deterministic=True)
            starts = np.zeros(len(lanes), bool)
            for i, env in enumerate(lanes):
                obs[i], reward, _, _, info = env.step(int(actions[i]))
                total[i] += reward
                if info["new_trial"]:
                    scores.append(info["performance"])
                    returns.append(total[i])
                    total[i] = 0.0
    return {"accuracy": float(np.mean(scores)), "trial_return_mean": float(np.mean(returns)), "trials": len(returns)}


def peer_recurrent_ppo(task: str, seed: int) -> None:
    from neurogym_wrapper import make_neurogym

    lanes = [make_neurogym(task, {}, 150) for _ in range(50)]
    model = recurrent_ppo(task, seed)

    def accuracy() -> float:
        import numpy as np

        scores = []
        for first in (0, 50):
            obs = np.stack([env.reset(seed=2**30 + first + i)[0] for i, env in enumerate(lanes)])
            state, starts = None, np.ones(len(lanes), bool)
            for _ in range(150):
                actions, state = model.predict(obs, state, starts, deterministic=True)
                starts = np.zeros(len(lanes), bool)
                for i, env in enumerate(lanes):
                    obs[i], _, _, _, info = env.step(int(actions[i]))
                    scores += [info["performance"]] if info["new_trial"] else []
        return float(np.mean(scores))

    learn(model, accuracy, every=7_500)


def peer_dqn(task: str, seed: int) -> None:
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    lanes = make_vec_env(task, n_envs=50, seed=2**30)  # one lane would take fifty times as many calls
    model = DQN(
        "MlpPolicy",
        task,
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1_000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=seed,
        device="cpu",
    )
    learn(model, lambda: float(evaluate_policy(model, lanes, n_eval_episodes=50)[0]), every=5_000)


def learn(model: Any, score: Callable[[], float], every: int) -> None:
    from stable_baselines3.common.callbacks import BaseCallback

    class Evaluate(BaseCallback):
        due = every

        def _on_step(self) -> bool:
            if self.num_timesteps >= self.due:
                self.due += every
                print(json.dumps({"step": self.num_timesteps, "score": score()}), flush=True)
            return True

    total = 50_000 if type(model).__name__ == "DQN" else MAX_STEPS  # the Zoo's own length
    model.learn(total, callback=Evaluate())


# --- both sides, timed -------------------------------------------------------------------------------------


def ours(task: str, seed: int) -> Iterator[dict[str, Any]]:
    """Evaluations of `python main.py train...` with its defaults, from its log."""
    command = "train" if task == "CartPole-v1" else "train-neurogym"
    with tempfile.TemporaryDirectory() as folder:
        where = ["--experiments-dir", folder, "--experiment-name", "peer"]
        call = [sys.executable, "main.py", command, "--env-name", task, "--seed", str(seed), *where]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(call, cwd=ROOT, env=ENVIRONMENT, **quiet)
        metrics, seen, over = Path(folder, "peer", "metrics.jsonl"), 0, False
        try:
            while not over:
                over = process.poll() is not None
                lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
                for line in lines[seen:]:
                    if line.endswith("\n"):
                        seen += 1
                        row = json.loads(line)
                        if row["kind"] == "eval":
                            score = row["return_mean"] if row["accuracy"] is None else row["accuracy"]
                            yield {"step": row["step"], "score": score}
                time.sleep(0.05)
            refuse_crash(process)
        finally:
            process.kill()
            process.wait()


def theirs(task: str, seed: int) -> Iterator[dict[str, Any]]:
    call = [str(VENV / "bin" / "python"), __file__, "--peer", task, str(seed)]
    process = subprocess.Popen(call, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith('{"step"'):
                yield json.loads(line)
        process.wait()
        refuse_crash(process)
    finally:
        process.kill()
        process.wait()


def refuse_crash(process: subprocess.Popen) -> None:
    """Raises: RuntimeError for a process that failed; a failure is not a run that never reached the threshold."""
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, process.args))} exited {process.returncode}")  # type: ignore[arg-type]


def race(side: Callable[[str, int], Iterator[dict[str, Any]]], task: str, seed: int) -> dict[str, Any]:
    """Wall time of the whole process until the threshold, and the environment steps of it."""
    start, best, seconds, step = time.perf_counter(), -1e9, 0.0, 0
    for row in side(task, seed):
        seconds, step = time.perf_counter() - start, row["step"]
        best = max(best, row["score"])
        if row["score"] >= THRESHOLDS[task]:
            return {"seconds": seconds, "steps": step, "score": row["score"], "steps_per_second": step / seconds}
    return {"seconds": None, "steps": step, "score": best, "steps_per_second": step / max(seconds, 1e-9)}


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    headings = (
        "task",
        "score",
        "",
        "median s",
        "each seed",
        "steps",
        "steps/s",
        "theirs / ours",
        f"asked >= {ASKED:g}",
    )
    table = Table(*headings, box=None)
    for task in dict.fromkeys(row["task"] for row in rows):
        medians: dict[str, float] = {}
        for side in ("ours", "theirs"):
            own = [row[side] for row in rows if row["task"] == task]
            times = [math.inf if entry["seconds"] is None else entry["seconds"] for entry in own]
            medians[side] = statistics.median(times)
            each = ", ".join("never" if value == math.inf else f"{value:.0f}" for value in times)
            steps, speed = (statistics.median(entry[key] for entry in own) for key in ("steps", "steps_per_second"))
            cells = [f"{medians[side]:.1f}", each, f"{steps:,.0f}", f"{speed:,.0f}"]
            table.add_row(
                task if side == "ours" else "", f"{THRESHOLDS[task]:g}", side, *cells, *verdict(task, medians)
            )
    Console(width=140).print(table)


def verdict(task: str, medians: dict[str, float]) -> tuple[str, str]:
    """theirs / ours if both are known, and whether the target is reached."""
    if "theirs" not in medians or medians["ours"] == math.inf:
        return "", ""
    ratio = medians["theirs"] / medians["ours"]
    return f"{ratio:.1f}", "" if task == "CartPole-v1" else "met" if ratio >= ASKED else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=[], help="only tasks whose name contains one of these")
    parser.add_argument("--peer", nargs=2, metavar=("TASK", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--final", nargs=4, metavar=("TASK", "SEED", "STEPS", "TRIALS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.final:
        print(json.dumps(final_score(args.final[0], *map(int, args.final[1:]))))
        return 0
    if args.peer:
        peer(args.peer[0], int(args.peer[1]))
        return 0
    import learning
    from separate_venv import make_venv

    from model_utils import write_json

    make_venv(VENV, [*PEERS])
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {(row["task"], row["seed"]) for row in rows}
    tasks = [task for task in THRESHOLDS if not args.only or any(part in task for part in args.only)]
    for task, seed in [(task, seed) for seed in args.seeds for task in tasks]:
        if (task, seed) not in done:
            rows.append(
                {"task": task, "seed": seed, "ours": race(ours, task, seed), "theirs": race(theirs, task, seed)}
            )
            write_json(RESULTS, {"machine": learning.machine(), "thresholds": THRESHOLDS, "rows": rows})
            print(rows[-1], flush=True)
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
