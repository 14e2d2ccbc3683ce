"""Time of the recurrent MPN, forward and backward, beside the MPN and Backpropamine: the fused scan and the loop.

    python benchmarks/bench_recurrent.py [--shape 32 40 32 128] [--passes 7]

Processor time of one pass on one thread, the minimum of several, in milliseconds. Gradients are those of all weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from mpn_module import MPN
from mpn_rl.networks.backpropamine import Backpropamine
from mpn_rl.networks.recurrent_mpn import RecurrentMPN

CORES: dict[str, Callable[..., nn.Module]] = {
    "mpn": MPN,
    "mpn, M bounded": lambda *sizes, **options: MPN(*sizes, m_activation="tanh", **options),
    "mpn-recurrent": RecurrentMPN,
    "backpropamine": Backpropamine,
}


def milliseconds(core: nn.Module, xs: torch.Tensor, passes: int) -> float:
    """The shortest of several passes, after one that compiles the kernel."""
    times = []
    for _ in range(passes + 1):
        core.zero_grad(set_to_none=True)
        started = time.process_time()
        core.unroll(xs, core.init_state(len(xs)))[0].square().mean().backward()
        times.append(1e3 * (time.process_time() - started))
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[32, 40, 32, 128], metavar=("B", "T", "D", "H"))
    parser.add_argument("--passes", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    B, T, D, H = args.shape
    xs = torch.randn(B, T, D)
    print(f"{'core':<16}{'fused ms':>10}{'loop ms':>10}")
    for name, make in CORES.items():
        fused, loop = (milliseconds(make(D, H, kernel=k), xs, args.passes) for k in ("fused", "reference"))
        print(f"{name:<16}{fused:>10.1f}{loop:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
