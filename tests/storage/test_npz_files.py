"""A file of arrays that is damaged or hostile is refused in one line, before it takes memory or runs anything."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from model_utils import Experiment
from mpn_rl.options import ConfigError
from mpn_rl.storage import npz_files
from mpn_rl.storage.npz_files import ArraySpec, read_npz

SCHEMA = {"x": ArraySpec("f", (1, 2)), "n": ArraySpec("iu", low=0, high=9), "flag": ArraySpec("b"),
          "name": ArraySpec("U")}  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    return read_npz(path, SCHEMA, "file of tests", "make it again")


def header(descr: str, shape: str) -> bytes:
    """An .npy file's beginning, whatever it claims."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_arrays_of_the_schema_are_read_in_the_byte_order_of_the_machine(tmp_path: Path) -> None:
    arrays = {"x": np.array([[1.5, -2.0]], ">f4"), "n": np.array([3], np.uint8), "flag": np.array([True]),
              "name": np.array(["", "délai 1"])}  # fmt: skip
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read(tmp_path / "a.npz")
    assert set(found) == set(arrays) and found["x"].dtype == np.dtype("=f4")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.array([{}], object)}, "object"),
        ({"x": np.array([1.0, np.nan])}, "x has values that are not a number"),
        ({"x": np.array([1.0, np.inf])}, r"x must lie in"),
        ({"x": np.array([-1e300])}, r"x must lie in"),
        ({"x": np.array(["text"])}, "x has the type <U4"),
        ({"x": np.array(1.0)}, "x has 0 dimensions instead of 1 or 2"),
        ({"n": np.array([-1])}, "n must lie in"),
        ({"n": np.array([10])}, "n must lie in"),
        ({"flag": np.array([2], np.uint8).view(bool)}, "bytes other than 0 and 1"),
        ({"name": np.array([0x110000], np.uint32).view("U1")}, "cannot be printed"),
        ({"name": np.array([0xD800], np.uint32).view("U1")}, "cannot be printed"),
        ({"name": np.array(["a\nb"])}, "cannot be printed"),
        ({"name": np.array(["a" * 300])}, "larger than the file"),
        ({"other": np.array([1.0])}, "'other.npy' is no name of an array"),
        ({"../x": np.array([1.0])}, "is no name of an array"),
        ({"x/../../../../thesis": np.array([1.0])}, "is no name of an array"),
    ],
)  # fmt: skip
def test_an_array_outside_the_schema_is_one_line(arrays: dict[str, np.ndarray], reason: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=reason) as caught:
        read(tmp_path / "a.npz")
    assert str(caught.value).startswith(f"{tmp_path / 'a.npz'} ") and str(caught.value).endswith(": make it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "member",
    [
        header("'<f8'", "(1000000000000,)"),
        header("'<f8'", "(-1,)"),
        header("'<f8'", "(0, 99999999999999999999999999)"),
        header("'<f8'", "(" * 200),
        header("'<f8'", "None"),
        header("'|O'", "(1,)") + b"12345678",
        header("[('a', '<f8')]", "(1,)") + b"12345678",
        header("'<f8'", "(2,)") + b"12345678",
        header("'<f8'", "(1,)") + b"1234567890",
        b"\x93NUMPY\x03\x00" + b"\xff\xff\xff\x7f",
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_a_header_that_does_not_fit_is_refused_before_the_array_is_read(member: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a readable file of tests"):
        read(archive_of(tmp_path / "a.npz", {"x.npy": member}))


def test_a_file_that_unpacks_to_more_than_the_memory_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 200_000
    monkeypatch.setattr(npz_files, "memory_limit", lambda: 10**7)
    monkeypatch.setattr(np.lib.format, "read_array", None)
    with pytest.raises(ConfigError, match=r"its arrays take 0\.1 GiB, the limit here is 0\.0 GiB"):
        read(tmp_path / "a.npz")


def test_thousands_of_members_and_names_that_appear_twice_are_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.zeros(1))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", data.getvalue())
    with pytest.raises(ConfigError, match="two arrays have the same name"):
        read(tmp_path / "a.npz")
    many = {f"x{i}.npy": b"" for i in range(npz_files.MOST_ARRAYS + 1)}
    with pytest.raises(ConfigError, match="at most 4,096"):
        read(archive_of(tmp_path / "b.npz", many))


def test_pipes_devices_folders_and_other_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "link").symlink_to("text")
    for name, message in {
        **dict.fromkeys(("pipe", "/dev/zero", "."), "not an ordinary file"),
        "link": "is a symbolic link",
        **dict.fromkeys(("text", "nothing"), "is not a readable file of tests"),
    }.items():
        with pytest.raises(ConfigError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "arrays",
    [
        {"step": np.array([1, 2]), "w": np.ones((3, 2, 2), bool)},
        {"w": np.ones((3, 2, 2), bool)},
        {"step": np.array([1]), "w": np.ones((2, 2), bool)},
        {"step": np.array([1]), "w": np.ones((1, 2, 2))},
        {"step": np.array(["a"]), "w": np.ones((1, 2, 2), bool)},
        {"step": np.array([], int), "w": np.ones((0, 2, 2), bool)},
    ],
)
def test_damaged_masks_are_one_line_with_the_way_out(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    experiment = Experiment.create("x", tmp_path)
    np.savez(experiment.plots_dir / "masks.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"masks\.npz .*delete it"):
        experiment.read_masks()
