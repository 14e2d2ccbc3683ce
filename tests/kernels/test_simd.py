"""The disk cache of compiled kernels: whatever state it is in, the kernels run."""

from __future__ import annotations

import array
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

from mpn_rl.kernels import simd  # noqa: E402


def run_a_kernel() -> int:
    def increment(table):
        table[0] += 1

    table = array.array("q", [41])
    simd.compiled(increment)(table.buffer_info()[0])
    return table[0]


def truncate(folder: Path) -> None:
    for file in folder.rglob("*.nb*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder: Path) -> None:
    for file in folder.rglob("*.nbc"):
        file.write_bytes(b"")


def garbage(folder: Path) -> None:
    for file in folder.rglob("*.nbi"):
        file.write_bytes(b"not a cache")


@pytest.mark.parametrize("damage", [truncate, empty, garbage])
def test_a_damaged_cache_costs_one_note(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(simd, "_notes", [])
    assert run_a_kernel() == 42 and list(tmp_path.rglob("*.nbc"))
    assert "note:" not in capsys.readouterr().err
    damage(tmp_path)
    assert run_a_kernel() == run_a_kernel() == 42
    assert capsys.readouterr().err.count("note: the cache of compiled kernels") == 1


def test_a_full_disk_under_the_cache_costs_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(simd, "_notes", [])
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert run_a_kernel() == 42
    assert "No space left on device" in capsys.readouterr().err
