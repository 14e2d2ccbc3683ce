"""Time of the fused scan, forward and backward: the loop, torch's GRU and LSTM, and a roofline.

    python benchmarks/bench_scan.py [--threads 1 2] [--seconds 20]

The contenders take turns in one process, so that noise affects all of them. A turn is one pass to warm up, then as
many passes as fit into 20 ms; ratios are medians over the rounds. Gradients are those of x, W, b, eta and lambda, or of
x and all weights. Peak memory above idle is measured on one thread, in a process of its own for each contender.

The roofline: the multiply-adds that the equations need (4 forward, 11 backward for each of B T D H: 2 of them to
compute M again, 3 for the input's gradient) over the rate of one core with all numbers in registers, measured in the
same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from mpn_rl.kernels.mpn import mpn_scan  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "scan.json"
# (B, T, D, H): the required ratios of the loop to fused and of the LSTM to fused.
SHAPES = {
    (4, 100, 4, 128): (15, 6),
    (16, 300, 8, 128): (15, 6),
    (32, 50, 32, 128): (15, 2.5),
    (64, 800, 8, 128): (15, 6),
    (32, 100, 128, 128): (12, 1),
}
MEMORY_SHAPE, MEMORY_RATIO = (64, 800, 8, 128), 8
CONTENDERS = ("fused", "loop", "gru", "lstm")
MULTIPLY_ADDS = 15
TURN = 0.02  # seconds


def the_loop(xs: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor, eta: Tensor, lam: Tensor) -> Tensor:
    """The baseline: the plain loop under autograd."""
    hs = []
    for x in xs.unsqueeze(-1).unbind(1):  # (B, D, 1)
        h = torch.tanh(bias[:, None] + torch.bmm(weight * (modulation + 1), x))
        modulation = lam * modulation + eta * torch.bmm(h, x.transpose(1, 2))
        hs.append(h)
    return torch.cat(hs, dim=2).transpose(1, 2)


def contender(name: str, shape: tuple[int, int, int, int]) -> Callable[[], Any]:
    """A function that runs one forward and backward pass."""
    B, T, D, H = shape
    torch.manual_seed(0)
    xs = torch.randn(B, T, D, requires_grad=True)
    upstream = torch.randn(B, T, H)
    if name in ("gru", "lstm"):
        module = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name](D, H, batch_first=True)
        return lambda: torch.autograd.grad(module(xs)[0], [xs, *module.parameters()], upstream)
    weight = (torch.randn(H, D) / D**0.5).requires_grad_()
    bias = torch.zeros(H, requires_grad=True)
    eta, lam = (torch.full((1, 1), value, requires_grad=True) for value in (0.05, 0.95))
    start = torch.zeros(B, H, D)
    wanted = [xs, weight, bias, eta, lam]
    if name == "loop":
        return lambda: torch.autograd.grad(the_loop(xs, weight, bias, start, eta, lam), wanted, upstream)
    return lambda: torch.autograd.grad(mpn_scan(xs, weight, bias, start, eta, lam, kernel="fused")[0], wanted, upstream)


def take_turns(shape: tuple[int, int, int, int], seconds: float) -> dict[str, list[float]]:
    """Seconds per pass, one number per contender and round: 3 to 30 rounds, depending on the time."""
    passes = {name: contender(name, shape) for name in CONTENDERS}
    taken: dict[str, list[float]] = {name: [] for name in passes}
    first = time.perf_counter()
    while len(taken["fused"]) < 3 or (len(taken["fused"]) < 30 and time.perf_counter() - first < seconds):
        for name, one_pass in passes.items():
            one_pass()
            count, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < TURN or count == 0:
                one_pass()
                count += 1
            taken[name].append(elapsed / count)
    return taken


def multiply_adds_per_second() -> float:
    """One core's rate, eight chains of 16 numbers in registers; the best of ten."""
    import numba

    from mpn_rl.kernels.simd import floats, load, store

    def chains(address, steps):
        p = floats(address)
        x = load(p, 0, 128)
        y = load(p, 128, 128)
        for _ in range(steps):
            x = x * 0.999 + 0.001
            y = y * 0.999 + 0.001
        store(p, 0, x + y)

    kernel = numba.njit(chains)
    numbers = torch.ones(256)
    kernel(numbers.data_ptr(), 1)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        kernel(numbers.data_ptr(), 100_000)
        best = min(best, time.perf_counter() - start)
    return 256 * 100_000 / best


def memory_line(name: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the highest so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(name))


def peak_above_idle(name: str) -> int:
    """Bytes that one pass adds to the process, after a small pass has loaded all code; call in a fresh process."""
    contender(name, (1, 2, 8, 128))()
    idle = memory_line("VmRSS")
    contender(name, MEMORY_SHAPE)()
    return memory_line("VmHWM") - idle


def measure_memory() -> dict[str, int]:
    command = [sys.executable, __file__, "--peak-of"]
    return {name: int(subprocess.check_output([*command, name], text=True)) for name in CONTENDERS}


def row(
    shape: tuple[int, int, int, int], threads: int, taken: dict[str, list[float]], peak_rate: float
) -> dict[str, Any]:
    """One shape's row of the JSON file: medians, quartiles, and ratios computed round by round."""
    quartiles = {name: statistics.quantiles(times, n=4) for name, times in taken.items()}
    ratios = {
        name: statistics.median(other / fused for other, fused in zip(taken[name], taken["fused"], strict=True))
        for name in CONTENDERS
    }
    B, T, D, H = shape
    least = MULTIPLY_ADDS * B * T * D * H / (peak_rate * threads)
    return {
        "shape": shape,
        "threads": threads,
        "rounds": len(taken["fused"]),
        "milliseconds": {name: [round(1e3 * q, 4) for q in quartiles[name]] for name in CONTENDERS},
        "ratio_to_fused": {name: round(ratios[name], 2) for name in CONTENDERS},
        "demanded": dict(zip(("loop", "lstm"), SHAPES[shape], strict=True)),
        "roofline_milliseconds": round(1e3 * least, 4),
        "share_of_roofline": round(least / quartiles["fused"][1], 3),
    }


HEADER = f"{'B T D H':>16} {'threads':>7}" + "".join(f"{name + ' ms (quartiles)':>28}" for name in CONTENDERS)
HEADER += f"{'loop/fused':>12} {'lstm/fused':>11} {'of roofline':>12}"


def line(r: dict[str, Any]) -> str:
    text = f"{' '.join(map(str, r['shape'])):>16} {r['threads']:>7}"
    for low, median, high in r["milliseconds"].values():
        text += f"{f'{median:.2f} ({low:.2f}-{high:.2f})':>28}"
    for name in ("loop", "lstm"):
        met = r["ratio_to_fused"][name] >= r["demanded"][name]
        text += f"{r['ratio_to_fused'][name]:>10.1f}{' ' if met else '!'} "
    return text + f"{r['share_of_roofline']:>10.0%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of PyTorch (default: 1 2)")
    parser.add_argument("--seconds", type=float, default=20, help="per shape and number of threads (default: 20)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file (default: benchmarks/results/scan.json)")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        torch.set_num_threads(1)
        print(peak_above_idle(options.peak_of))
        return 0
    rate = multiply_adds_per_second()
    print(f"{rate / 1e9:.0f} G multiply-adds per second and core, from registers. ! marks a ratio below its target.")
    print(HEADER)
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for shape in SHAPES:
            rows.append(row(shape, threads, take_turns(shape, options.seconds), rate))
            print(line(rows[-1]), flush=True)
    memory = measure_memory()
    shares = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in memory.items())
    print(f"Peak memory above idle at {MEMORY_SHAPE}: {shares}; loop/fused {memory['loop'] / memory['fused']:.1f}")
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    for text in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if text.startswith("model name"):
            machine["cpu"] = text.partition(":")[2].strip()
    record = {
        "machine": machine,
        "multiply_adds_per_second_and_core": rate,
        "rows": rows,
        "peak_bytes_above_idle": {"shape": MEMORY_SHAPE, "demanded_loop_to_fused": MEMORY_RATIO, **memory},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
