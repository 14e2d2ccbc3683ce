"""How fast is everything around the scan: updates, acting, environments, whole runs, start-up.

    python benchmarks/bench.py [SECTION ...]        sections: update acting shares run accuracy startup

Contenders take turns in one process, so that noise hits all alike; figures are medians, with the quartiles beside
them. "The loop" is the same work through the plain PyTorch scan under autograd (--kernel reference). One thread.
Results are kept by section in benchmarks/results/bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
CORES = {"fused": {}, "loop": {"kernel": "reference"}, "gru": {"core": "gru"}, "lstm": {"core": "lstm"}}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TASK = "ContextDecisionMaking-v0"


def take_turns(contenders: dict[str, Callable[[], Any]], rounds: int = 15, calls: int = 5) -> dict[str, list[float]]:
    """Quartiles of the microseconds per call of every contender, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            begun = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - begun) / calls * 1e6)
    return {name: [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))] for name, values in times.items()}


@contextmanager
def a_run(**flags: Any) -> Iterator[Any]:
    """A training run of train-neurogym, in a folder that goes when it is left."""
    import config as cfg
    from model_utils import Experiment
    from training import Run

    config = cfg.make_config("train-neurogym", {"eval_freq": 0, "checkpoint_freq": 0, **flags})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config)
        run.start(Experiment.create("bench", folder, config.to_dict()))
        yield run


def warmed(run: Any, steps: int) -> Any:
    while run.step < steps:
        run.advance()
    return run


def bench_update() -> dict[str, Any]:
    """One DQN update with the defaults of train-neurogym: 32 sequences of 10 + 40 steps."""
    calls, held = {}, []
    for name, flags in CORES.items():
        context = a_run(**flags)
        run = warmed(context.__enter__(), 1_500)
        held.append(context)
        calls[name] = lambda run=run: run.learner.update(run.replay.sample(32, run.replay_rng))
    result = take_turns(calls)
    for context in held:
        context.__exit__(None, None, None)
    return {"microseconds": result, "loop_over_fused": result["loop"][1] / result["fused"][1]}


def bench_acting() -> dict[str, Any]:
    """One acting step of all lanes, per lane, and the environment's own step."""
    import torch

    import build
    import config as cfg

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    env = build.make_env(cfg.make_config("train-neurogym", {}).env)
    for lanes in (1, 16, 128):
        calls: dict[str, Callable[[], Any]] = {}
        for name, flags in CORES.items():
            network = build.make_network(cfg.make_config("train-neurogym", flags), *build.sizes(env))
            obs, state = torch.randn(lanes, 5), network.init_state(lanes)
            generator = torch.Generator()

            def act(network=network, obs=obs, state=state, generator=generator) -> None:
                network.select_action(obs, state, 0.1, generator)

            calls[name] = act
        found[f"{lanes} lanes"] = {name: [q / lanes for q in qs] for name, qs in take_turns(calls, calls=50).items()}
    env.reset(seed=0)

    def step() -> None:
        if env.step(0)[3]:
            env.reset()

    found["environment"] = take_turns({"environment": step}, calls=2_000)["environment"]
    return {"microseconds_per_lane": found}


def bench_shares() -> dict[str, Any]:
    """Where a training run's time goes, and policy + learner against the same work through the loop."""
    found: dict[str, Any] = {}
    contexts = {name: a_run(kernel=kernel) for name, kernel in (("fused", "auto"), ("loop", "reference"))}
    runs = {name: warmed(context.__enter__(), 1_500) for name, context in contexts.items()}
    spent = {name: timed(run) for name, run in runs.items()}
    total = dict.fromkeys(runs, 0.0)
    steps = dict.fromkeys(runs, 0)
    for _ in range(12):  # in turns: 12 x 1,000 steps fused, 12 x 200 through the loop
        for name, run in runs.items():
            begun, first = time.perf_counter(), run.step
            warmed(run, first + (1_000 if name == "fused" else 200))
            total[name] += time.perf_counter() - begun
            steps[name] += run.step - first
    for name, seconds in spent.items():
        rest = total[name] - sum(seconds.values())
        found[name] = {part: value / steps[name] * 1e6 for part, value in {**seconds, "rest": rest}.items()}
        contexts[name].__exit__(None, None, None)
    ratio = sum(found["loop"][part] for part in ("acting", "learning"))
    ratio /= sum(found["fused"][part] for part in ("acting", "learning"))
    return {"microseconds_per_step": found, "policy_and_learner_loop_over_fused": ratio}


def timed(run: Any) -> dict[str, float]:
    """Seconds spent in the parts of a run, from now on."""
    seconds = {"acting": 0.0, "environment": 0.0, "replay": 0.0, "learning": 0.0}

    def wrap(owner: Any, name: str, part: str) -> None:
        method = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = method(*args, **kwargs)
            seconds[part] += time.perf_counter() - begun
            return result

        setattr(owner, name, measured)

    wrap(run.learner, "act", "acting")
    wrap(run.lanes, "step", "environment")
    wrap(run.replay, "add", "replay")
    wrap(run.replay, "sample", "replay")
    wrap(run.learner, "update", "learning")
    return seconds


def train_process(folder: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "main.py", "train-neurogym", "--env-name", TASK, "--experiments-dir", folder]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--experiment-name", "bench", *options], cwd=ROOT, env=ENVIRONMENT, **quiet)


def bench_run() -> dict[str, Any]:
    """`python main.py train-neurogym --total-steps 20000`, the whole process."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            assert train_process(folder, "--total-steps", "20000").wait() == 0
            seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds, "median": float(np.median(seconds))}


def bench_accuracy(threshold: float = 0.90) -> dict[str, Any]:
    """Wall clock of the whole process until the greedy evaluation first reaches 0.90, defaults, seeds 0-4."""
    rows = [seconds_to(threshold, seed) for seed in range(5)]
    return {"seeds": rows, "median_seconds": float(np.median([row["seconds"] for row in rows]))}


def seconds_to(threshold: float, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        process = train_process(folder, "--seed", str(seed))
        metrics = Path(folder, "bench", "metrics.jsonl")
        while True:
            over = process.poll() is not None
            for line in metrics.read_text().splitlines(keepends=True) if metrics.exists() else []:
                row = json.loads(line) if line.endswith("\n") else {"kind": ""}
                if row["kind"] == "eval" and row["accuracy"] >= threshold:
                    seconds = time.perf_counter() - begun
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return {"seed": seed, "seconds": seconds, "steps": row["step"], "accuracy": row["accuracy"]}
            if over:
                return {"seed": seed, "seconds": float("inf"), "steps": None, "accuracy": None}
            time.sleep(0.05)


def bench_startup() -> dict[str, Any]:
    """`python main.py COMMAND --help`, the whole process."""
    found = {}
    for command in ("", "train", "train-neurogym", "eval", "render", "analyze"):
        call = [sys.executable, "main.py", *([command] if command else []), "--help"]
        seconds = []
        for _ in range(7):
            begun = time.perf_counter()
            subprocess.run(call, cwd=ROOT, capture_output=True, check=True)
            seconds.append(time.perf_counter() - begun)
        found[f"{command} --help".strip()] = float(np.median(seconds))
    return {"seconds": found}


SECTIONS = {
    "update": bench_update,
    "acting": bench_acting,
    "shares": bench_shares,
    "run": bench_run,
    "accuracy": bench_accuracy,
    "startup": bench_startup,
}
TARGETS = {
    "shares": "policy + learner: at least 10x the loop",
    "accuracy": "median below 30 s",
    "startup": "below 0.3 s",
    "acting": "the policy costs less than the environment",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)} (default: all)")
    wanted = parser.parse_args().sections or list(SECTIONS)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    import learning

    from model_utils import write_json

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in wanted:
        results[name] = SECTIONS[name]()
        results["machine"] = learning.machine()
        write_json(RESULTS, results)
        print(f"{name}: {SECTIONS[name].__doc__}  (asked: {TARGETS.get(name, '-')})")
        show(results[name])
    return 0


def show(value: Any, indent: str = "  ") -> None:
    """Nested results, a figure a line; three numbers are quartiles, shown as median [lower, upper]."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, list) and len(inner) == 3 and all(isinstance(q, float) for q in inner):
            print(f"{indent}{key}: {inner[1]:,.1f} [{inner[0]:,.1f}, {inner[2]:,.1f}]")
        elif isinstance(inner, dict | list):
            print(f"{indent}{key}")
            show(inner, indent + "  ")
        else:
            print(f"{indent}{key}: {inner:,.3f}" if isinstance(inner, float) else f"{indent}{key}: {inner}")


if __name__ == "__main__":
    sys.exit(main())
