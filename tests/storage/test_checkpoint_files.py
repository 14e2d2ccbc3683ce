"""A checkpoint file that holds anything but plain values and dense tensors is foreign, whatever it claims."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_utils import load_checkpoint, save_checkpoint
from mpn_rl.options import ConfigError

A = torch.arange(6.0).reshape(2, 3)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def itself() -> list:
    value: list = [1]
    value.append(value)
    return value


def doubled(times: int) -> list:
    value: list = []
    for _ in range(times):
        value = [value, value]
    return value


FOREIGN: dict[str, Callable[[], object]] = {
    "a meta tensor": lambda: A.to("meta"),
    "a sparse tensor": lambda: A.to_sparse(),
    "a compressed sparse tensor": lambda: A.to_sparse_csr(),
    "a quantized tensor": lambda: torch.quantize_per_tensor(A, 0.1, 0, torch.qint8),
    "a nested tensor": lambda: torch.nested.nested_tensor([A, A]),
    "a parameter": lambda: torch.nn.Parameter(A),
    "a tensor with gradient": lambda: A.clone().requires_grad_(),
    "a conjugate": lambda: A.to(torch.complex64).conj(),
    "a trillion times the same number": lambda: torch.zeros(1).expand(10**12),
    "windows that overlap": lambda: torch.arange(9.0).as_strided((4, 4), (1, 1)),
    "a dtype that NumPy lacks": lambda: A.to(torch.bfloat16),
    "keys that are tuples": lambda: {(1, 2): A},
    "a nested list": lambda: nested(200),
    "a list in itself": itself,
    "a list of 2**30 lists": lambda: doubled(30),
    "a set": lambda: {1, 2},
    "a complex number": lambda: 1j,
    "a device": lambda: torch.device("cpu"),
    "an array without its tensor": lambda: {"__numpy__": 3, "scalar": True},
    "an array without its kind": lambda: {"__numpy__": A},
    "a scalar of six numbers": lambda: {"__numpy__": A, "scalar": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_object_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "x": FOREIGN[kind]()}, path)
    with pytest.raises(ConfigError, match=r"last.pt is foreign or damaged; restore it or") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("view", [A.T, A[:, 1:], A[1], torch.zeros(0, 3), torch.tensor(1.0), A[:, :1].T])
def test_a_dense_view_is_read_as_it_was(view: torch.Tensor, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.pt", {"x": view})
    assert torch.equal(load_checkpoint(tmp_path / "x.pt")["x"], view)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write an archive again, with valid checksums and other contents."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))


def test_a_file_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    save_checkpoint(path, {"x": torch.zeros(1000)})
    rewritten(path, lambda _, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match="bomb.pt is foreign or damaged"):
        load_checkpoint(path)


def test_a_tree_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    save_checkpoint(path, {"x": torch.zeros(2)})
    rewritten(path, lambda name, data: data + b"N" * 2**25 if name.endswith("data.pkl") else data)
    with pytest.raises(ConfigError, match="bomb.pt is foreign or damaged"):
        load_checkpoint(path)


def test_only_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.pt", {"x": 1})
    (tmp_path / "link.pt").symlink_to("x.pt")
    with pytest.raises(ConfigError, match=r"link.pt is a symbolic link; put the file itself there"):
        load_checkpoint(tmp_path / "link.pt")
    assert load_checkpoint(tmp_path / "link.pt", follow=True)["x"] == 1


@pytest.mark.timeout(20)
def test_a_pipe_a_folder_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    for path in (tmp_path / "pipe.pt", tmp_path / "folder.pt", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not an ordinary file"):
            load_checkpoint(path, follow=True)


def test_a_file_beyond_the_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.touch()
    os.truncate(path, 2**42)
    with pytest.raises(ConfigError, match=r"last.pt has 4,398,046,511,104 bytes, more than"):
        load_checkpoint(path)
