"""Reads checkpoint files that may be damaged or hostile: trees of plain values and of tensors that own their numbers.

torch.load with `weights_only=True` runs no code, but it also builds tensors that no checkpoint of this toolkit has:
without numbers, sparse or quantized, or with the same number in a trillion places. Here such a file is foreign.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import torch

from mpn_rl.storage.npz_files import memory_limit
from mpn_rl.storage.regular_files import open_regular

PICKLE_BYTES = 16 * 2**20  # of the part of a file that describes the tree
DEEPEST = 32  # levels of the tree
ARRAY = "__numpy__"  # key that marks a tensor which was a NumPy array
NUMBERS = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
}  # dtypes that NumPy has as well


def read_checkpoint(path: Path, follow: bool = False) -> object:
    """The tree in a file that torch.save wrote: nested dicts, lists and tuples of tensors and plain values.

    Args:
        path: the file.
        follow: whether it may be a symbolic link, as one that the user names may be.
    Raises: ConfigError for a link and anything but an ordinary file; any other exception for a damaged file.
    """
    with open_regular(path, follow=follow, limit=memory_limit()) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about foreign pickles; the error is enough
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, path.stat().st_size)
        file.seek(0)
        tree: object = torch.load(file, map_location="cpu", weights_only=True)
    _check_tree(tree, set(), 0)
    return tree


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that is larger than its file, or that holds other objects than dense tensors."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("torch.save compresses nothing")
    if sum(member.file_size for member in members) > size:
        raise ValueError("parts of the file overlap")
    trees = [member for member in members if member.filename.endswith("data.pkl")]
    if len(trees) != 1 or trees[0].file_size > PICKLE_BYTES:
        raise ValueError("its tree is too large")
    if re.search(rb"_rebuild_(?!tensor_v[23]\n)", archive.read(trees[0])):
        raise ValueError("it holds tensors of another kind")
    if archive.testzip():  # torch.save writes checksums, torch.load ignores them
        raise ValueError("a checksum does not match")


def _check_tree(node: object, seen: set[int], depth: int) -> None:
    """Refuse what `model_utils.pack` does not write. Raises: ValueError."""
    if isinstance(node, torch.Tensor):
        _check_tensor(node)
    elif isinstance(node, dict | list | tuple):
        if type(node) not in (dict, list, tuple) or depth > DEEPEST or id(node) in seen:
            raise ValueError("the tree is too deep, or contains a part twice")
        if len(node):  # there is only one empty tuple
            seen.add(id(node))
        if isinstance(node, dict):
            if not all(type(key) in (str, int) for key in node):
                raise ValueError("a key is neither text nor a number")
            if ARRAY in node and not (
                node.keys() == {ARRAY, "scalar"}
                and isinstance(node[ARRAY], torch.Tensor)
                and isinstance(node["scalar"], bool)
                and (node[ARRAY].dim() == 0 or not node["scalar"])
            ):
                raise ValueError("an array is not one")
        for child in node.values() if isinstance(node, dict) else node:
            _check_tree(child, seen, depth + 1)
    elif node is not None and type(node) not in (bool, int, float, str, bytes):
        raise ValueError(f"it holds a {type(node).__name__}")


def _check_tensor(tensor: torch.Tensor) -> None:
    """Refuse all but dense tensors on the CPU, each of whose entries has a place of its own. Raises: ValueError."""
    plain = type(tensor) is torch.Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.dtype not in NUMBERS or tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        raise ValueError("a tensor is not a plain one")
    span = 1  # entries up to the last one of the axes so far
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and tensor.numel() and stride < span:
            raise ValueError("a tensor has an entry in several places")
        span += (size - 1) * stride
    if tensor.numel() and tensor.storage_offset() + span > tensor.untyped_storage().nbytes() // tensor.itemsize:
        raise ValueError("a tensor reaches beyond its numbers")
