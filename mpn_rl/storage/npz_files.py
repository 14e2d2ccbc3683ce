"""Reads NPZ files that may be damaged or hostile: nothing runs, and a file never takes more memory than it declares.

The sizes in the ZIP directory and in the header of every array are checked before an array is read, because a few
kilobytes can declare terabytes. Pickled objects are refused.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mpn_rl.options import ConfigError
from mpn_rl.storage.regular_files import open_regular

SMALLEST_LIMIT = 2 * 2**30  # bytes that the arrays of a file may take on any machine
MOST_ARRAYS = 4096
LONGEST_NAME = 100  # bytes
LONGEST_TEXT = 256  # characters of one entry of a text array
LARGEST = 1e15  # of a number: larger ones overflow in sums of squares
NUMBERS = "biuf"  # kinds of dtype


@dataclass(frozen=True)
class ArraySpec:
    """What an array must be.

    Args:
        kinds: allowed kinds of dtype: b bool, i and u integers, f floats, U text.
        dims: allowed numbers of dimensions.
        finite: whether nan is refused; infinite numbers are always refused.
        low, high: smallest and largest value of a number.
    """

    kinds: str = NUMBERS
    dims: tuple[int, ...] = (1,)
    finite: bool = True
    low: float = -LARGEST
    high: float = LARGEST


Schema = Mapping[str, ArraySpec]  # by a regular expression that the whole name must match


def read_npz(path: Path, schema: Schema, what: str, way_out: str) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file, checked.

    Args:
        path: the file.
        schema: what the file may hold; the first expression that matches a name counts.
        what: what the file is, such as "activity file".
        way_out: what the user can do about a damaged file, such as "run analyze collect again".

    Raises: ConfigError that names the file, the array, the rule and the way out.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive, schema)
            return {name: _array(archive, member, schema) for name, member in members.items()}
    except ConfigError:  # a kind of ValueError
        raise
    except (EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(f"{path} is not a readable {what} ({reason}): {way_out}") from error


def memory_limit() -> int:
    """Bytes that the arrays of one file may take: half of the machine's memory, and at least SMALLEST_LIMIT."""
    return max(SMALLEST_LIMIT, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _members(archive: zipfile.ZipFile, schema: Schema) -> dict[str, zipfile.ZipInfo]:
    """The members by the names of their arrays. Raises: ValueError."""
    infos = archive.infolist()
    if len(infos) > MOST_ARRAYS:
        raise ValueError(f"it has {len(infos):,} arrays, at most {MOST_ARRAYS:,} are allowed")
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) < len(infos):
        raise ValueError("two arrays have the same name")
    for name, info in members.items():
        if not info.filename.endswith(".npy") or len(name.encode()) > LONGEST_NAME or _spec(schema, name) is None:
            raise ValueError(f"{info.filename[:LONGEST_NAME]!r} is no name of an array of this file")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise ValueError(f"{name} is encrypted, or compressed in an unknown way")
    declared, limit = sum(info.file_size for info in infos), memory_limit()
    if declared > limit:
        raise ValueError(f"its arrays take {declared / 2**30:,.1f} GiB, the limit here is {limit / 2**30:,.1f} GiB")
    return members


def _spec(schema: Schema, name: str) -> ArraySpec | None:
    return next((spec for pattern, spec in schema.items() if re.fullmatch(pattern, name)), None)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, schema: Schema) -> np.ndarray:
    """One array, in the machine's byte order. Raises: ValueError that names it."""
    name = member.filename.removesuffix(".npy")
    spec = _spec(schema, name)
    assert spec is not None
    with archive.open(member) as file:
        shape, dtype = _header(file)
        if dtype.hasobject or dtype.kind not in spec.kinds:
            raise ValueError(f"{name} has the type {str(dtype)[:60]}")
        if len(shape) not in spec.dims:
            raise ValueError(f"{name} has {len(shape)} dimensions instead of {' or '.join(map(str, spec.dims))}")
        if dtype.itemsize > 4 * LONGEST_TEXT or max(shape, default=0) > 2**40:
            raise ValueError(f"{name} is larger than the file that holds it")
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{name} has {member.file_size:,} bytes, which do not fit its shape {shape}")
    with archive.open(member) as file:
        array = np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    reason = _fault(array, spec)
    if reason:
        raise ValueError(f"{name} {reason}")
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array has the unknown format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except Exception as error:  # NumPy evaluates the header as a literal of Python, which can fail in any way
        raise ValueError("the header of an array is damaged") from error
    if min(shape, default=0) < 0:
        raise ValueError("an array has a negative size")
    return shape, dtype


def _fault(array: np.ndarray, spec: ArraySpec) -> str:
    """Why the values are not allowed, or an empty text."""
    if array.size == 0 or array.dtype.itemsize == 0:
        return ""
    if array.dtype.kind == "U":
        codes = np.unique(np.ascontiguousarray(array).reshape(-1).view(np.uint32)).tolist()
        if codes[-1] > 0x10FFFF or not "".join(map(chr, codes)).replace("\0", "").isprintable():
            return "has characters that cannot be printed"
        return ""
    if array.dtype.kind == "b":
        return "has bytes other than 0 and 1" if array.view(np.uint8).max() > 1 else ""
    with np.errstate(invalid="ignore"):
        low, high = (float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None)))
        if spec.finite and array.dtype.kind == "f" and np.isnan(array).any():
            return "has values that are not a number"
    if low < spec.low or high > spec.high:
        return f"must lie in [{spec.low:g}, {spec.high:g}], has values from {low:g} to {high:g}"
    return ""
