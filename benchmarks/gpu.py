"""The Triton scan on a CUDA machine, the loop, and cuDNN's GRU and LSTM: forward and backward.

    python benchmarks/gpu.py

The contenders take turns; times are medians by CUDA events. Targets: 20 times as fast as the loop, faster than cuDNN's
LSTM. The results go to benchmarks/results/gpu.json, with the name of the device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from bench_scan import CONTENDERS, SHAPES, contender  # noqa: E402

from model_utils import write_json  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"


def milliseconds(one_pass: Callable[[], Any]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    one_pass()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def take_turns(shape: tuple[int, int, int, int], rounds: int = 20) -> dict[str, float]:
    """Median milliseconds per pass of every contender."""
    with torch.device("cuda"):  # where the contenders make their tensors
        passes = {name: contender(name, shape) for name in CONTENDERS}
    for one_pass in passes.values():
        one_pass()
        one_pass()
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, one_pass in passes.items():
            taken[name].append(milliseconds(one_pass))
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not torch.cuda.is_available():
        print("bench-gpu needs an NVIDIA GPU and PyTorch's CUDA build; there is none here", file=sys.stderr)
        return 2
    rows = []
    for shape in SHAPES:
        times = take_turns(shape)
        rows.append({"shape": shape, "milliseconds": times})
        ratios = ", ".join(f"{name} / fused {times[name] / times['fused']:.1f}" for name in CONTENDERS[1:])
        print(f"{shape}: fused {times['fused']:.3f} ms; {ratios}", flush=True)
    write_json(RESULTS, {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
