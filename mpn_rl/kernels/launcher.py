"""What all cores share to choose and run a fused kernel.

A kernel on the CPU is a C function of one table of integers: the `Header`, then sizes and the addresses of tensors.
Several threads may run it on one table: each takes pieces (ranges of batch rows) until none is left. They are torch's
own OpenMP threads, so no second pool competes for the processor's cores. The batch is cut into a fixed number of
pieces, and the weight gradients of the pieces are added in a fixed order: results do not depend on the number of
threads.
"""

from __future__ import annotations

import array
import ctypes
import functools
import importlib.util
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mpn_rl.options import ConfigError

KERNELS = ("auto", "reference", "fused")

MAX_PIECES = 16  # of the batch in the backward pass; each piece has weight gradients of its own
SEGMENT_BYTES = 512 * 1024  # of M or H between two checkpoints: a share of a processor core's second-level cache
PARALLEL_WORK = 1_000_000  # updates of a single synapse from which starting a second thread is worth its cost

Kernel = Callable[[int], None]  # takes the address of its table


class Header(NamedTuple):
    """The first words of a kernel's table."""

    slot: int  # counts the threads that have started; a thread's number gives its part of the scratch
    ticket: int  # counts the pieces that threads have taken
    done: int  # counts the pieces that are finished
    pieces: int  # of the batch
    scratch: int  # address of the threads' scratch
    size: int  # floats of scratch for each thread
    sums: int  # address of the pieces' weight gradients
    sum_size: int  # floats of weight gradients for each piece
    every: int  # steps between two checkpoints


@functools.cache
def installed(package: str) -> bool:
    """Whether the package can be imported."""
    return importlib.util.find_spec(package) is not None


def fused_device(
    kernel: str, tensors: Iterable[Tensor | None], packages: Mapping[str, str], problem: str | None = None
) -> str | None:
    """The type of the device whose fused kernel takes these tensors; None if the reference does.

    Args:
        kernel: one of KERNELS.
        tensors: every tensor of the scan; None for an absent one.
        packages: the package that the fused kernel needs, by the type of device.
        problem: why no fused kernel can run this scan, if its core knows a reason.
    Returns: "cpu" or "cuda"; None for kernel="reference", and for kernel="auto" if no fused kernel can run the scan.
    Raises: ConfigError for an unknown kernel, and for kernel="fused" if no fused kernel can run the scan.
    """
    if kernel == "reference":
        return None
    if kernel not in KERNELS:
        raise ConfigError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    given = [a for a in tensors if a is not None]
    device = given[0].device
    if device.type not in packages:
        problem = problem or f"exists for {' and '.join(packages)}, not for {device.type}"
    for a in given:
        if a.dtype is not torch.float32 and a.dtype is not torch.bool:
            problem = problem or f"needs float32, got {a.dtype}"
        if a.device != device:
            problem = problem or "needs all tensors on one device"
    if problem is None and not installed(packages[device.type]):
        problem = f"needs {packages[device.type]} on {device.type}: pip install {packages[device.type]}"
    if problem is None:
        return device.type
    if kernel == "fused":
        raise ConfigError(f"kernel 'fused' {problem}; use kernel 'auto' or 'reference'")
    return None


_local = threading.local()


def launch(kernel: Kernel, batch: int, work: int, every: int, size: int, sum_size: int, rest: Iterable[int]) -> None:
    """Run a kernel on its table, on several threads if the work is worth it.

    Args:
        kernel: the compiled kernel.
        batch: B, the rows of the batch.
        work: updates of a single synapse in the whole scan; 0 for a kernel that runs on one thread only.
        every: steps between two checkpoints.
        size: floats of scratch for each thread.
        sum_size: floats of weight gradients for each piece of the batch.
        rest: the kernel's table after the header.
    """
    pieces = min(batch, MAX_PIECES)
    threads = min(torch.get_num_threads(), pieces) if work >= PARALLEL_WORK else 1
    scratch = getattr(_local, "scratch", None)
    if scratch is None or scratch.numel() < threads * size + pieces * sum_size:
        scratch = _local.scratch = torch.empty(threads * size + pieces * sum_size)  # on a cache line's boundary
    start = scratch.data_ptr()
    table = array.array(
        "q", [*Header(0, 0, 0, pieces, start, size, start + 4 * threads * size, sum_size, every), *rest]
    )
    address = table.buffer_info()[0]
    parallel = _gomp_parallel() if threads > 1 else None
    if parallel is None:
        kernel(address)
    else:
        parallel(kernel, address, threads, 0)


@functools.cache
def _gomp_parallel() -> Callable[[Kernel, int, int, int], None] | None:
    """GOMP_parallel(function, data, threads, flags) of the OpenMP runtime that torch uses; None if it is not GNU's."""
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
