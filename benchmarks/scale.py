"""Costs as a function of the length of trials, the number of environments, and the number of runs at once.

    python benchmarks/scale.py [SECTION ...]        sections: length lanes beside

length  one DQN update on whole trials of T steps, full and truncated BPTT: milliseconds per step of a trial, and peak
        memory above idle, each in a process of its own.
lanes   `train-neurogym` as a process with more and more environments: microseconds per environment step, peak memory.
beside  the same process alone, and with as many others as there are cores: the factor of its time.

One thread per process. Results are kept by section in benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import ENVIRONMENT, quartiles, train_process, wait_for  # noqa: E402
from bench_scan import memory_line  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
LENGTHS, LANES, TRIALS = (100, 200, 400, 800), (16, 64, 256, 1024), 16


def update_at(steps: int, chunk: int | None) -> dict[str, float]:
    """In a fresh process: milliseconds of an update on TRIALS trials of `steps`, and the memory that it adds."""
    import torch

    from mpn_rl import config as cfg
    from mpn_rl import registry
    from mpn_rl.contracts import Batch

    torch.set_num_threads(1)
    flags = {"replay": "trial", "bptt_chunk_size": chunk}
    config = cfg.make_config("train-neurogym", flags)
    learner = registry.make_learner(config, registry.Spaces(5, 3), torch.device("cpu"))

    def batch_of(length: int) -> Batch:
        shape = (TRIALS, length)
        return Batch(
            obs=torch.randn(TRIALS, length + 1, 5),
            reset=torch.zeros(TRIALS, length + 1, dtype=torch.bool),
            action=torch.randint(3, shape),
            reward=torch.randn(shape),
            terminated=torch.zeros(shape),
            mask=torch.ones(shape),
            state0=learner.online.init_state(TRIALS),
            burn_in=0,
            weight=torch.ones(TRIALS),
            places=torch.arange(TRIALS).numpy(),
        )

    learner.update(batch_of(100))
    batch = batch_of(steps)
    learner.update(batch_of(2))
    idle = memory_line("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark counts from here
    learner.update(batch)
    peak = memory_line("VmHWM") - idle
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        learner.update(batch)
        seconds.append(time.perf_counter() - start)
    return {"microseconds_per_step": quartiles(seconds)[1] / steps * 1e6, "peak_mib": peak / 2**20}


def bench_length() -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, chunk in (("full BPTT", None), ("chunks of 50", 50)):
        for steps in LENGTHS:
            code = f"import scale, json; print(json.dumps(scale.update_at({steps}, {chunk})))"
            out = subprocess.check_output(
                [sys.executable, "-c", code], cwd=ROOT / "benchmarks", env=ENVIRONMENT, text=True
            )
            result[f"{name}, T = {steps}"] = json.loads(out)
    return result


def bench_lanes(steps: int = 61_440) -> dict[str, Any]:
    result = {}
    for lanes in LANES:
        rows = [run_once(steps, "--num-envs", str(lanes), "--buffer-size", str(steps)) for _ in range(3)]
        result[f"{lanes} lanes"] = {
            "microseconds_per_step": [q / steps * 1e6 for q in quartiles([row["seconds"] for row in rows])],
            "peak_mib": max(row["peak_mib"] for row in rows),
        }
    return result


def run_once(steps: int, *options: str) -> dict[str, float]:
    """One training process without evaluations: its seconds and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = train_process(
            folder, "--total-steps", str(steps), "--eval-freq", "0", "--eval-episodes", "1", *options
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wait_for(process)
        return {"seconds": time.perf_counter() - start, "peak_mib": usage.ru_maxrss / 2**10}


def bench_beside(steps: int = 30_000, rounds: int = 3) -> dict[str, Any]:
    """Alone and together in turns; the mean of the processes that run together."""
    cores = os.cpu_count() or 1
    alone, together = [], []
    for _ in range(rounds):
        alone.append(timed_group(1, steps))
        together.append(timed_group(cores, steps))
    low, middle, high = quartiles(together)
    return {"processes": cores, "alone_s": quartiles(alone), "together_s": [low, middle, high],
            "slowdown": middle / quartiles(alone)[1]}  # fmt: skip


def timed_group(count: int, steps: int) -> float:
    """Wall time of `count` training processes at once."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        options = ("--total-steps", str(steps), "--eval-freq", "0", "--eval-episodes", "1")
        for process in [train_process(f"{folder}/{place}", *options) for place in range(count)]:
            wait_for(process)
        return time.perf_counter() - start


SECTIONS = {"length": bench_length, "lanes": bench_lanes, "beside": bench_beside}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="(default: all)")
    import learning
    from bench import figures_of

    from model_utils import write_json

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in parser.parse_args().sections or list(SECTIONS):
        results[name] = SECTIONS[name]()
        results["machine"] = learning.machine()
        write_json(RESULTS, results)
        print(name)
        for figure, (low, middle, high) in figures_of(results[name]):
            print(f"  {figure:50} {middle:10.4g}" + (f"   ({low:.4g} to {high:.4g})" if low < high else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
