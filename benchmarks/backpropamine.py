"""Time and memory of Backpropamine's core: the fused scan and a simple loop under autograd.

    python benchmarks/backpropamine.py [--core backpropamine-simplemaze] [--seconds 20]

The contenders take turns in one process; times are CPU times of one thread, as medians over the rounds. Measured are
one acting step of B rows without gradient; `unroll` over T steps; `unroll` and its backward pass; and the core's share
of a training iteration: T acting steps, `unroll`, backward and a step of Adam. Peak memory is that of this share, above
the memory of the process before it, in a process of its own for each contender.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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

from mpn_rl.config import choices  # noqa: E402
from mpn_rl.networks.backpropamine import Backpropamine  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "backpropamine.json"
PRESETS = [name for name in choices("core") if name.startswith("backpropamine")]
CONTENDERS = ("fused", "loop")
DEMANDED = {"milliseconds of an iteration": 6, "peak memory": 8}  # the whole iteration, environment and heads included


class Loop(Backpropamine):
    """The same network as a simple loop over PyTorch operations; hard clip, and no or simple modulation only."""

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.step(self.input(x), state)

    def unroll(self, xs: Tensor, state: Any, reset: Tensor | None = None) -> Any:
        hs = []
        for drive in self.input(xs).unbind(1):
            h, state = self.step(drive, state)
            hs.append(h)
        return torch.stack(hs, 1), state

    def step(self, drive: Tensor, state: Any) -> Any:
        pre, trace = state[:2]
        h = torch.tanh(drive + torch.bmm(pre[:, None], self.weight + self.alpha * trace)[:, 0])
        modulator = torch.tanh(h @ self.modulator_weight[:, None] + self.modulator_bias)
        gain = modulator if self.fanout_weight is None else modulator * self.fanout_weight + self.fanout_bias
        change = torch.bmm(pre[:, :, None], (gain * h)[:, None])
        return h, (h, torch.clamp(trace + change, -self.variant.trace_clip, self.variant.trace_clip), modulator)


def passes(name: str, core: str, B: int, T: int, D: int) -> dict[str, Callable[[], Any]]:
    """The timed functions by name."""
    torch.manual_seed(0)
    options = dataclasses.asdict(choices("core")[core].build())
    network = {"fused": Backpropamine, "loop": Loop}[name](D, **{**options, "kernel": "auto"})
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, eps=1e-4, fused=True)
    xs, upstream = torch.randn(B, T, D), torch.randn(B, T, network.hidden_dim)
    start = network.init_state(B)

    def act(steps: int) -> None:
        state = start
        with torch.no_grad():
            for t in range(steps):
                _, state = network(xs[:, t], state)

    def learn() -> None:
        optimizer.zero_grad()
        network.unroll(xs, start)[0].backward(upstream)

    def iteration() -> None:
        act(T)
        learn()
        optimizer.step()

    return {
        "acting step": lambda: act(T),
        "unroll": lambda: network.unroll(xs, start),
        "unroll and backward": learn,
        "iteration": iteration,
    }


def take_turns(core: str, shape: tuple[int, int, int], seconds: float) -> dict[str, dict[str, list[float]]]:
    """CPU seconds, one list per timed function and contender: 3 to 30 rounds, depending on the time."""
    every = {name: passes(name, core, *shape) for name in CONTENDERS}
    taken: dict[str, dict[str, list[float]]] = {what: {name: [] for name in CONTENDERS} for what in every["fused"]}
    began = time.perf_counter()
    for timed in every.values():
        timed["iteration"]()  # compiles, and settles the memory allocator
        timed["iteration"]()
    rounds = 0
    while rounds < 3 or (rounds < 30 and time.perf_counter() - began < seconds):
        for what, times in taken.items():
            for name, timed in every.items():
                start = time.process_time()
                timed[what]()
                times[name].append(time.process_time() - start)
        rounds += 1
    return taken


def memory_line(name: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the highest so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(name))


def peak_above_idle(name: str, core: str, shape: tuple[int, int, int]) -> int:
    """Bytes that one iteration adds to the process, after a tiny one has loaded all code; call in a fresh process."""
    passes(name, core, 1, 2, shape[2])["iteration"]()
    iteration = passes(name, core, *shape)["iteration"]
    idle = memory_line("VmRSS")
    iteration()
    return memory_line("VmHWM") - idle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--core", choices=PRESETS, default="backpropamine-simplemaze", help="preset (default: %(default)s)"
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(30, 200, 17), metavar=("B", "T", "D"), help="sizes")
    parser.add_argument("--seconds", type=float, default=20, help="of timing (default: 20)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = tuple(options.shape)
    if options.peak_of:
        print(peak_above_idle(options.peak_of, options.core, shape))
        return 0
    record: dict[str, Any] = {"core": options.core, "B T D": shape, "torch": torch.__version__, "milliseconds": {}}
    print(f"{options.core}, (B, T, D) = {shape}: CPU milliseconds on one thread, median (quartiles)")
    for what, taken in take_turns(options.core, shape, options.seconds).items():
        scale = 1e3 / (shape[1] if what == "acting step" else 1)
        result = {
            name: [round(scale * q, 4) for q in statistics.quantiles(times, n=4)] for name, times in taken.items()
        }
        ratio = statistics.median(slow / fast for slow, fast in zip(taken["loop"], taken["fused"], strict=True))
        record["milliseconds"][what] = {**result, "loop / fused": round(ratio, 2)}
        text = "".join(f"{name:>8} {m:8.3f} ({low:.3f}-{high:.3f})" for name, (low, m, high) in result.items())
        print(f"{what:>20}{text}   loop / fused {ratio:5.1f}", flush=True)
    command = [sys.executable, __file__, "--core", options.core, "--shape", *map(str, shape), "--peak-of"]
    memory = {name: int(subprocess.check_output([*command, name], text=True)) for name in CONTENDERS}
    record["peak_bytes_above_idle"] = memory
    shares = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in memory.items())
    print(f"Peak memory of an iteration above idle: {shares}; loop / fused {memory['loop'] / memory['fused']:.1f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
