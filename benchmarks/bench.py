"""Times of everything except the scan: updates, acting, environments, whole runs, start-up.

    python benchmarks/bench.py [SECTION ...]        sections: update acting shares run accuracy checkpoint sweep startup

The contenders take turns in one process, so that noise affects all of them. Results are medians with quartiles, beside
their targets. "The loop" does the same work with the plain PyTorch scan under autograd (--kernel reference). One
thread. Results are kept by section in benchmarks/results/bench.json.
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
            started = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - started) / calls * 1e6)
    return {name: quartiles(values) for name, values in times.items()}


def quartiles(values: list[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]


@contextmanager
def a_run(**flags: Any) -> Iterator[Any]:
    """A training run of train-neurogym in a temporary folder."""
    from model_utils import Experiment
    from mpn_rl import config as cfg
    from mpn_rl.training import Run

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
    """One acting step of all environments, per environment, and the environment's own step."""
    import torch

    from mpn_rl import config as cfg
    from mpn_rl import registry

    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    env = registry.make_env(cfg.make_config("train-neurogym", {}).env)
    for lanes in (1, 16, 128):
        calls: dict[str, Callable[[], Any]] = {}
        for name, flags in CORES.items():
            network = registry.make_network(cfg.make_config("train-neurogym", flags), registry.spaces(env))
            obs, state = torch.randn(lanes, 5), network.init_state(lanes)
            generator = torch.Generator()

            def act(network=network, obs=obs, state=state, generator=generator) -> None:
                network.select_action(obs, state, 0.1, generator)

            calls[name] = act
        record[f"{lanes} lanes"] = {name: [q / lanes for q in qs] for name, qs in take_turns(calls, calls=50).items()}
    env.reset(seed=0)

    def step() -> None:
        if env.step(0)[3]:
            env.reset()

    record["environment"] = take_turns({"environment": step}, calls=2_000)["environment"]
    return {"microseconds_per_lane": record}


def bench_shares() -> dict[str, Any]:
    """Shares of a training run's time, and policy + learner compared with the same work through the loop."""
    record: dict[str, Any] = {}
    contexts = {name: a_run(kernel=kernel) for name, kernel in (("fused", "auto"), ("loop", "reference"))}
    runs = {name: warmed(context.__enter__(), 1_500) for name, context in contexts.items()}
    spent = {name: timed(run) for name, run in runs.items()}
    total, steps = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0)
    own: dict[str, list[float]] = {name: [] for name in runs}  # policy + learner, a figure a turn
    for _ in range(12):  # in turns: 12 x 1,000 steps fused, 12 x 200 through the loop
        for name, run in runs.items():
            before, started, first = dict(spent[name]), time.perf_counter(), run.step
            warmed(run, first + (1_000 if name == "fused" else 200))
            total[name] += time.perf_counter() - started
            steps[name] += run.step - first
            taken = sum(spent[name][part] - before[part] for part in ("acting", "learning"))
            own[name].append(taken / (run.step - first) * 1e6)
    for name, seconds in spent.items():
        rest = total[name] - sum(seconds.values())
        record[name] = {part: value / steps[name] * 1e6 for part, value in {**seconds, "rest": rest}.items()}
        contexts[name].__exit__(None, None, None)
    spread = {name: quartiles(values) for name, values in own.items()}
    return {
        "microseconds_per_step": record,
        "policy_and_learner": spread,
        "policy_and_learner_loop_over_fused": spread["loop"][1] / spread["fused"][1],
    }


def timed(run: Any) -> dict[str, float]:
    """Start to measure the seconds spent in the parts of a run."""
    seconds = {"acting": 0.0, "environment": 0.0, "replay": 0.0, "learning": 0.0}

    def wrap(owner: Any, name: str, part: str) -> None:
        method = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = method(*args, **kwargs)
            seconds[part] += time.perf_counter() - started
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


def wait_for(process: subprocess.Popen) -> None:
    """Wait for the end of a run. Raises: RuntimeError if it failed."""
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(map(str, process.args))} exited {process.returncode}")  # type: ignore[arg-type]


def bench_run() -> dict[str, Any]:
    """`python main.py train-neurogym --total-steps 20000`, the whole process."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            wait_for(train_process(folder, "--total-steps", "20000"))
            seconds.append(time.perf_counter() - started)
    return {"seconds": quartiles(seconds)}


def bench_accuracy(threshold: float = 0.90) -> dict[str, Any]:
    """Wall time of the whole process until the greedy evaluation first reaches 0.90, defaults, seeds 0-4."""
    rows = [seconds_to(threshold, seed) for seed in range(5)]
    return {"seeds": rows, "median_seconds": float(np.median([row["seconds"] for row in rows]))}


def seconds_to(threshold: float, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = train_process(folder, "--seed", str(seed))
        metrics = Path(folder, "bench", "metrics.jsonl")
        while True:
            over = process.poll() is not None
            for line in metrics.read_text().splitlines(keepends=True) if metrics.exists() else []:
                row = json.loads(line) if line.endswith("\n") else {"kind": ""}
                if row["kind"] == "eval" and row["accuracy"] >= threshold:
                    seconds = time.perf_counter() - started
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return {"seed": seed, "seconds": seconds, "steps": row["step"], "accuracy": row["accuracy"]}
            if over:
                wait_for(process)
                return {"seed": seed, "seconds": float("inf"), "steps": None, "accuracy": None}
            time.sleep(0.05)


def bench_checkpoint() -> dict[str, Any]:
    """Time of a checkpoint at the default interval: last.pt with a full replay buffer, and the picture of curves."""
    from mpn_rl import config as cfg
    from mpn_rl.reporting import draw_training_curves

    interval = cfg.RunConfig().checkpoint_freq
    with a_run() as run:
        first, started = warmed(run, 2_000).step, time.perf_counter()
        warmed(run, 12_000)
        per_step = (time.perf_counter() - started) / (run.step - first)
        run._learn = lambda: None  # the memory fills up as fast without
        warmed(run, run.config.learner.buffer_size + run.replay.ring)
        calls = {"last.pt": run.save, "picture": lambda: draw_training_curves(run.experiment, run.config)}
        times = take_turns(calls, rounds=9, calls=1)
        size = run.experiment.checkpoint("last").stat().st_size / 2**20
    share = {name: [q / 1e6 / (interval * per_step) for q in qs] for name, qs in times.items()}
    return {
        "interval_steps": interval,
        "interval_seconds": interval * per_step,
        "last_pt_mebibytes": size,
        "milliseconds": {name: [q / 1e3 for q in qs] for name, qs in times.items()},
        "share_of_training": {**share, "both": sum(qs[1] for qs in share.values())},
    }


SWEEP = """
command = "train-neurogym"
seeds = 8
[fixed]
total-steps = 10_000
plot-training = false
[grid]
eta = [1.0]
"""


def bench_sweep() -> dict[str, Any]:
    """Eight runs of 10,000 steps by `sweep run --workers 2`, and one after the other; `sweep check` of 500 rows."""

    def main(*argv: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "main.py", *argv], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=True)
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "s.toml")
        plan.write_text(SWEEP)
        where = ("--experiments-dir", folder)
        together = main("sweep", "run", str(plan), "--workers", "2", *where)
        steps = ("train-neurogym", "--total-steps", "10000", "--no-plot-training", *where)
        alone = [main(*steps, "--experiment-name", f"{seed}", "--seed", f"{seed}", "--eta", "1.0") for seed in range(8)]
        for seed in range(8):
            one, other = (Path(folder, name, "metrics.jsonl") for name in (f"{seed}", f"s-eta1.0-s{seed}"))
            if one.read_bytes() != other.read_bytes():
                raise RuntimeError(f"seed {seed} in the sweep is not the run alone")
        plan.write_text(SWEEP.replace("seeds = 8", "seeds = 500"))
        seconds = [main("sweep", "check", str(plan), "--experiments-dir", f"{folder}/none") for _ in range(3)]
    return {
        "two_workers_seconds": together,
        "one_after_the_other_seconds": sum(alone),
        "two_workers_over_one_after_the_other": together / sum(alone),
        "check_500_rows_seconds": quartiles(seconds),
    }


def bench_startup() -> dict[str, Any]:
    """`python main.py COMMAND --help`, the whole process."""
    record = {}
    for command in ("", "train", "train-neurogym", "eval", "render", "analyze"):
        call = [sys.executable, "main.py", *([command] if command else []), "--help"]
        seconds = []
        for _ in range(7):
            started = time.perf_counter()
            subprocess.run(call, cwd=ROOT, capture_output=True, check=True)
            seconds.append(time.perf_counter() - started)
        record[f"{command} --help".strip()] = quartiles(seconds)
    return {"seconds": record}


SECTIONS = {
    "update": bench_update,
    "acting": bench_acting,
    "shares": bench_shares,
    "run": bench_run,
    "accuracy": bench_accuracy,
    "checkpoint": bench_checkpoint,
    "sweep": bench_sweep,
    "startup": bench_startup,
}
# What is asked: (section, end of the figure's name) -> (comparison, a number or another figure of the section).
TARGETS: dict[tuple[str, str], tuple[str, float | str]] = {
    ("acting", " lanes fused"): ("<", "microseconds_per_lane environment"),
    ("shares", "policy_and_learner_loop_over_fused"): (">=", 10.0),
    ("accuracy", "median_seconds"): ("<", 30.0),
    ("checkpoint", "share_of_training both"): ("<", 0.02),
    ("sweep", "two_workers_over_one_after_the_other"): ("<", 0.6),
    ("sweep", "check_500_rows_seconds"): ("<", 5.0),
    ("startup", "--help"): ("<", 0.3),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="(default: all)")
    wanted = parser.parse_args().sections or list(SECTIONS)
    import learning

    from model_utils import write_json

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in wanted:
        results[name] = SECTIONS[name]()
        results["machine"] = learning.machine()
        write_json(RESULTS, results)
        show(name, results[name])
    return 0


def show(section: str, result: dict[str, Any]) -> None:
    """The section's table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    figures = dict(figures_of(result))
    table = Table("figure", box=None, title=SECTIONS[section].__doc__, title_justify="left")
    for heading in ("median", "quartiles", "asked"):
        table.add_column(heading, justify="right")
    for name, (low, median, high) in figures.items():
        spread = f"{low:,.4g} to {high:,.4g}" if low < high else ""
        table.add_row(name, f"{median:,.4g}", spread, asked(section, name, median, figures))
    Console(width=120).print(table, "")


def asked(section: str, name: str, median: float, figures: dict[str, list[float]]) -> str:
    """The target of a figure, and whether it is missed; empty if there is no target."""
    for (owner, ending), (sign, bound) in TARGETS.items():
        if owner == section and name.endswith(ending):
            limit = figures[bound][1] if isinstance(bound, str) else bound
            met = median < limit if sign == "<" else median >= limit
            return f"{sign} {limit:,.4g}" + ("" if met else "  MISSED")
    return ""


def figures_of(result: Any, path: str = "") -> Iterator[tuple[str, list[float]]]:
    """(name, quartiles) of every figure in nested results; a single number stands for its quartiles."""
    if isinstance(result, dict):
        for key, inner in result.items():
            yield from figures_of(inner, f"{path} {key}".strip())
    elif isinstance(result, list) and len(result) == 3 and all(isinstance(q, float) for q in result):
        yield path, result
    elif isinstance(result, list):
        for place, inner in enumerate(result):
            yield from figures_of(inner, f"{path} {place}")
    elif isinstance(result, int | float):
        yield path, [float(result)] * 3


if __name__ == "__main__":
    sys.exit(main())
