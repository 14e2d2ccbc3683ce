"""Writes activity.npz episode by episode, so that a long recording never needs to fit in memory."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from model_utils import atomic_file
from mpn_rl.options import ConfigError
from mpn_rl.rollout import join_episodes

COPY_BYTES = 2**20  # copied at a time


class ActivityWriter:
    """Collects the episodes of `rollout.record_episodes`; arrays with several numbers per step go directly to disk.

    The result is an ordinary NPZ, a ZIP of .npy members, which `np.load` and `pca_analysis.load_activity` read. If the
    process is killed, no file remains: the temporary files have no names.

    Args:
        folder: for the temporary files, on the disk of the result.
        states: names of the states to keep, as "M"; None keeps all.

    Attributes:
        episodes, steps, nbytes: of the episodes so far; nbytes is the uncompressed size.
    """

    def __init__(self, folder: Path, states: Sequence[str] | None = None) -> None:
        self.folder, self.states = folder, states
        self.columns: list[dict[str, np.ndarray]] = []
        self.wide: dict[str, tuple[IO[bytes], np.ndarray]] = {}  # name -> its file, an empty array of its kind
        self.episodes = self.steps = self.nbytes = 0

    def __enter__(self) -> ActivityWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file, _array in self.wide.values():
            file.close()

    def chosen(self, episode: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The episode without the states that `states` leaves out. Raises: ConfigError for an unknown state."""
        if self.states is None:
            return episode
        there = [name.removeprefix("state_") for name in episode if name.startswith("state_")]
        unknown = [name for name in self.states if name not in [*there, "h"]]
        if unknown:
            raise ConfigError(f"--states must be of h, {', '.join(there)} for this core, got {unknown[0]!r}")
        dropped = {f"state_{name}" for name in there if name not in self.states}
        return {name: array for name, array in episode.items() if name not in dropped}

    def add(self, episode: dict[str, np.ndarray], most: float = np.inf) -> bool:
        """Add one episode; return False, without adding it, if the recording would exceed `most` bytes."""
        episode = {re.sub(r"\W", "_", name)[:80]: _printable(array) for name, array in self.chosen(episode).items()}
        size = sum(array.nbytes for array in episode.values())
        if self.nbytes + size > most:
            return False
        for name in [name for name, array in episode.items() if array.ndim > 1]:
            array = np.ascontiguousarray(episode.pop(name))
            if name not in self.wide:
                raw = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed at exit)
                self.wide[name] = (raw, np.empty((0, *array.shape[1:]), array.dtype))
            self.wide[name][0].write(array.data)
        self.columns.append(episode)
        self.episodes += 1
        self.steps += len(episode["rewards"])
        self.nbytes += size
        return True

    def write(self, path: Path, **scalars: float) -> None:
        """Write the NPZ atomically; `scalars` are single numbers for the whole recording."""
        columns = {**join_episodes(self.columns), **{name: np.array(value) for name, value in scalars.items()}}
        with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, (raw, empty) in self.wide.items():
                header = np.lib.format.header_data_from_array_1_0(empty)
                raw.seek(0)
                entry = zipfile.ZipInfo(f"{name}.npy")
                # Activity in float16 or float32 becomes 5 % smaller, in 5 s for 120 MB; other arrays much smaller.
                entry.compress_type = zipfile.ZIP_STORED if empty.dtype.kind == "f" else zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, {**header, "shape": (self.steps, *empty.shape[1:])})
                    shutil.copyfileobj(raw, member, COPY_BYTES)


def _printable(array: np.ndarray) -> np.ndarray:
    """Text that a task gives, with a space for each character that cannot be printed, cut to 200 characters."""
    if array.dtype.kind != "U" or all(text.isprintable() and len(text) <= 200 for text in np.unique(array).tolist()):
        return array
    return np.array(["".join(c if c.isprintable() else " " for c in text[:200]) for text in array.tolist()])


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as a compressed NPZ, atomically."""
    with atomic_file(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
