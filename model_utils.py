"""One experiment is one folder: configuration, metrics and checkpoints, written so that a kill loses nothing.

    experiments/<name>/
        config.json            the run's options, versions and git commit
        metrics.jsonl          one JSON object per log point; appended
        training_history.json  derived from metrics.jsonl
        checkpoints/           best_model.pt  final_model.pt  last.pt
        plots/  videos/  eval/  analysis/
        error.txt              why the last run on it died, where it did
        .lock  .holder.json    held by the process that trains, and who that is

Every file but metrics.jsonl is written under a temporary name, synced and renamed: at any moment there is
the old file or the new one, never half of either. Checkpoints hold nothing but tensors and plain Python
values, so they load with `weights_only=True` and a file from elsewhere cannot run code.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import math
import os
import platform
import random
import socket
import subprocess
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any, cast

from mpn_rl.options import ConfigError, nearest

ROOT = "experiments"
CHECKPOINT_FORMAT = 1
CHECKPOINT_ALIASES = {"best": "best_model", "final": "final_model", "last": "last"}
MAX_NAME_BYTES = 100
LOCK_PATIENCE = 0.5  # seconds to wait for a lock: `holder`, which only looks, has it for an instant
_NUMPY = "__numpy__"  # key under which `pack` hides an array, so that `unpack` knows it from a tensor


@dataclass(frozen=True)
class Experiment:
    """The paths of one experiment, and the only code that reads or writes its records.

    `check_new` and `create` start one, `open` finds one; the constructor itself touches nothing.
    """

    name: str
    root: Path = Path(ROOT)

    @classmethod
    def check_new(cls, name: str | None, root: str | Path = ROOT, overwrite: bool = False, resume: bool = False) -> str:
        """Name for a run about to start; creates nothing.

        Args:
            name: the user's choice; None draws a readable random name that is not taken.
            overwrite, resume: the user's leave to replace or to continue an existing experiment.
        Raises: ConfigError for a name that cannot be a folder's, or one that is taken.
        """
        if overwrite and resume:
            raise ConfigError("--overwrite and --resume exclude each other: say one of them")
        if name is None:
            if overwrite or resume:
                raise ConfigError(f"--{'overwrite' if overwrite else 'resume'} needs --experiment-name")
            return _free_name(Path(root))
        experiment = cls(_check_name(name), Path(root))
        if overwrite:
            experiment._check_replaceable()
        elif experiment.exists() and not resume:
            raise ConfigError(
                f"experiment '{name}' exists in {Path(root)}/; continue it with --resume or replace it with --overwrite"
            )
        return name

    @classmethod
    def create(
        cls, name: str, root: str | Path = ROOT, config: dict[str, Any] | None = None, overwrite: bool = False
    ) -> Experiment:
        """Make the folder and its config.json in one step; with `overwrite` the old one goes only now.

        The new folder is completed under a hidden name, the old one is renamed aside, the new one takes its
        place, and then the old one is deleted: a kill in between never mixes old files with new ones.

        Raises: ConfigError when the name is taken, the old one is in use, or the disk refuses.
        """
        experiment = cls(cls.check_new(name, root, overwrite), Path(root))
        with _disk_errors(experiment.path):
            experiment.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=experiment.root) as staging:
                new, old = Path(staging, "new"), Path(staging, "old")
                new.mkdir()
                write_json(new / "config.json", config or {})
                if experiment.exists():
                    with experiment.lock():
                        os.rename(experiment.path, old)
                try:
                    os.rename(new, experiment.path)  # fails if another process has put its own there meanwhile
                except BaseException:
                    if old.exists() and not experiment.exists():
                        os.rename(old, experiment.path)
                    raise
                _sync_folder(experiment.root)
        return experiment

    @classmethod
    def open(cls, name: str, root: str | Path = ROOT) -> Experiment:
        """The existing experiment of that name; never creates one.

        Raises: ConfigError with the nearest names where there is none.
        """
        experiment = cls(_check_name(name), Path(root))
        if experiment.config_path.is_file():
            return experiment
        if experiment.exists():
            raise ConfigError(f"{experiment.path} holds no config.json, so it is no experiment; choose another")
        names = cls.names(root)
        hint = nearest(name, names)
        if names and not hint:
            hint = f"; the folders there are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        hint = hint or "; there are none yet: start one with train or train-neurogym"
        raise ConfigError(f"no experiment '{name}' in {Path(root)}/{hint}")

    @staticmethod
    def names(root: str | Path = ROOT) -> list[str]:
        """Every experiment under `root`, sorted; empty where there is no such folder."""
        found = [config.parent.name for config in Path(root).glob("*/config.json")]
        return sorted(name for name in found if not name.startswith("."))

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def _check_replaceable(self) -> None:
        """--overwrite deletes a folder, so that must be an experiment (or empty), and no link elsewhere."""
        if not self.exists():
            return
        rule = None
        if self.path.is_symlink() or not self.path.is_dir():
            rule = "is not a folder"
        elif not self.config_path.exists() and any(self.path.iterdir()):
            rule = "holds no config.json"
        if rule:
            raise ConfigError(
                f"--overwrite replaces experiments only, and {self.path} {rule}; choose another --experiment-name"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment for this process; the operating system lets go when the process dies.

        Raises: ConfigError naming the process that holds it, if another does.
        """
        with _disk_errors(self.path / ".lock"):
            # Closing it lets go. It is never removed: another process may hold the removed one.
            lock = open(self.path / ".lock", "ab")  # noqa: SIM115
        with lock:
            deadline = time.monotonic() + LOCK_PATIENCE
            while not _flocked(lock, exclusive=True):
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"experiment '{self.name}' is in use by {self._holder_text()}; "
                        "wait for it or choose another --experiment-name"
                    )
                time.sleep(0.02)
            for folder in (self.path, self.path / "checkpoints"):
                for leftover in folder.glob(".*.tmp"):  # of a process killed while it wrote
                    leftover.unlink(missing_ok=True)
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(self._holder_path, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    self._holder_path.unlink(missing_ok=True)

    def holder(self) -> str | None:
        """Who trains in the folder just now, None where nobody does. Writes nothing; sees other machines' locks."""
        try:
            with open(self.path / ".lock", "rb") as file:
                return None if _flocked(file, exclusive=False) else self._holder_text()
        except OSError:
            return None

    def _holder_text(self) -> str:
        try:
            held = read_json(self._holder_path)
            return f"another process ({held['pid']} on {held['host']} since {held['since']})"
        except (ConfigError, KeyError):
            return "another process"

    @property
    def _holder_path(self) -> Path:
        return self.path / ".holder.json"

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Leave error.txt behind where the body raises, for who looks at the folder later; an old one goes first."""
        with _disk_errors(self.error_path):
            self.error_path.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            known = isinstance(error, ConfigError | MemoryError | OSError) and str(error)
            self.note_failure(str(error) if known else "".join(traceback.format_exception(error)))
            raise

    def note_failure(self, text: str) -> None:
        """Write error.txt; its last line says what happened. A disk that refuses this as well is no second error."""
        with contextlib.suppress(ConfigError):
            write_bytes_atomic(self.error_path, (text.strip() + "\n").encode())

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def error_path(self) -> Path:
        return self.path / "error.txt"

    @property
    def history_path(self) -> Path:
        return self.path / "training_history.json"

    def checkpoint(self, which: str | Path) -> Path:
        """best|final|last (or best_model|final_model) -> that checkpoint's path; anything else is a path."""
        stem = CHECKPOINT_ALIASES.get(str(which), str(which))
        if stem in CHECKPOINT_ALIASES.values():
            return self.path / "checkpoints" / f"{stem}.pt"
        return Path(which)

    plots_dir = property(lambda self: self._made("plots"))
    videos_dir = property(lambda self: self._made("videos"))
    eval_dir = property(lambda self: self._made("eval"))
    analysis_dir = property(lambda self: self._made("analysis"))

    def _made(self, name: str) -> Path:
        """A folder that appears when it is first asked for."""
        folder = self.path / name
        with _disk_errors(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def read_config(self) -> dict[str, Any]:
        """config.json. Raises: ConfigError when it is missing or damaged."""
        return read_json(self.config_path)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; a NaN becomes null. A full disk leaves no half line behind."""
        line = (json.dumps(jsonable(row), allow_nan=False) + "\n").encode()
        with _disk_errors(self.metrics_path), open(self.metrics_path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl, synced first: no checkpoint may count a line that a power cut can take."""
        if not self.metrics_path.exists():
            return 0
        with _disk_errors(self.metrics_path), open(self.metrics_path, "rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def truncate_metrics(self, size: int) -> None:
        """Cut metrics.jsonl to where the checkpoint was written, so that a resumed run doubles no line.

        Raises: ConfigError when the file is shorter than that: lines are missing.
        """
        have = self.metrics_size()
        if have < size:
            raise ConfigError(
                f"{self.metrics_path} has {have} bytes, but had {size} when the checkpoint was written; "
                "put the whole file back, or start anew with --overwrite"
            )
        if have > size:
            with _disk_errors(self.metrics_path):
                os.truncate(self.metrics_path, size)

    def read_masks(self) -> dict[str, Any]:
        """plots/masks.npz, {weight: (S, H, D) bool, "step": (S,)}; {} where the topology never changed."""
        import numpy as np

        path = self.path / "plots" / "masks.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every row of metrics.jsonl; [] without a file. A half-written last line is ignored.

        Raises: ConfigError with the line's number for anything else that is not a JSON object.
        """
        if not self.metrics_path.exists():
            return []
        with _disk_errors(self.metrics_path, "read"):
            lines = self.metrics_path.read_bytes().split(b"\n")
        rows = []
        for number, line in enumerate(lines, start=1):
            row = _json_object(line)
            if row is not None:
                rows.append(row)
            elif number < len(lines):  # what follows the last newline is nothing, or a line that a kill cut short
                raise ConfigError(f"{self.metrics_path} line {number} is not a JSON object; remove or restore it")
        return rows


def _check_name(name: str) -> str:
    """`name`, if it can be a folder's name anywhere. Raises: ConfigError."""
    rule = None
    if not name.strip():
        rule = "must not be empty"
    elif "/" in name or "\\" in name:
        rule = "must be a name, not a path"
    elif name[0] in ".-":
        rule = "must not begin with a dot or a dash"
    elif name != name.strip() or not name.isprintable():
        rule = "must not have spaces around it or control characters in it"
    elif len(name.encode()) > MAX_NAME_BYTES:
        rule = f"must have at most {MAX_NAME_BYTES} bytes"
    if rule:
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise ConfigError(f"--experiment-name {rule}, got {shown!r}; take something like 'gonogo-1'")
    return name


def _flocked(file: IO[bytes], exclusive: bool) -> bool:
    """Take the file's lock without waiting; False where another process has it.

    Where the disk knows no locks, as Lustre without its `flock` option, nothing keeps two processes apart: True.
    """
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
    return True


def _free_name(root: Path) -> str:
    """Two readable words that name no experiment yet, whatever --seed is: runs of one seed get two names."""
    import coolname

    coolname.replace_random(random.SystemRandom())  # leaves Python's own generator to the run
    while True:
        name: str = coolname.generate_slug(2)
        if not os.path.lexists(root / name):
            return name


@contextmanager
def _disk_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn the system's refusal into one line that names the file and the way out."""
    try:
        yield
    except OSError as error:
        way_out = "check the folder and its permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "free some space and try again; what was saved before is intact"
        raise ConfigError(f"cannot {verb} {path}: {error.strerror or error}; {way_out}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name only when it is complete and on the disk.

    Raises: ConfigError when the disk refuses. Whatever is raised, the old file stays and no temporary does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: no rename crosses disks
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, obj: Any) -> None:
    """Indented JSON, whole or absent; NaN and infinities become null, which every reader accepts."""
    write_bytes_atomic(path, (json.dumps(jsonable(obj), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Raises: ConfigError naming the file when it is missing or does not hold one JSON object."""
    with _disk_errors(path, "read"):
        obj = _json_object(path.read_bytes())
    if obj is None:
        raise ConfigError(f"{path} does not hold a JSON object; restore or delete it")
    return obj


def _json_object(text: bytes) -> dict[str, Any] | None:
    try:
        obj = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return obj if isinstance(obj, dict) else None


def jsonable(obj: Any) -> Any:
    """The plain JSON counterpart: arrays and tensors as lists, paths as strings, NaN and infinity as null."""
    if isinstance(obj, dict):
        return {str(key): jsonable(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [jsonable(value) for value in obj]
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    if hasattr(obj, "tolist"):  # NumPy scalars and arrays, tensors
        return jsonable(obj.tolist())
    return str(obj) if isinstance(obj, Path) else obj


class _Sink:
    """Takes torch.save's bytes and keeps the first exception, which must not cross torch's C++ writer."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except BaseException as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        pass


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Write {"format": CHECKPOINT_FORMAT, **payload}, whole or not at all.

    Args:
        payload: nested dicts, lists and tuples of tensors, arrays, numbers, strings and None (see `pack`).
    Raises: ConfigError when the disk refuses; TypeError naming the entry that no checkpoint can hold.
    """
    import torch

    packed = pack({"format": CHECKPOINT_FORMAT, **payload})
    with atomic_file(path) as file:
        sink = _Sink(file)
        torch.save(packed, cast(IO[bytes], sink))
        if sink.error is not None:
            raise sink.error


def load_checkpoint(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """What `save_checkpoint` was given, tensors on `device`.

    Byte tensors stay on the CPU: they are the states of torch's random generators, which must be there.

    Raises: ConfigError naming the file when it is missing, damaged, foreign or of another format.
    """
    import torch

    if not path.is_file():
        raise ConfigError(f"no checkpoint {path}; --checkpoint takes best, final, last or a file's path")
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # torch remarks on foreign pickles; the refusal below says it in one line
            if archive.testzip():  # torch.save writes the sums of what it holds, torch.load does not look at them
                raise ValueError("a checksum does not match")
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way, and all of them mean this
        raise ConfigError(f"{path} is foreign or damaged; --checkpoint needs one of this toolkit's") from error
    found = payload.get("format") if isinstance(payload, dict) else None
    if isinstance(found, int) and found > CHECKPOINT_FORMAT:
        raise ConfigError(f"{path} has format {found}, this toolkit knows {CHECKPOINT_FORMAT}; update the toolkit")
    if found != CHECKPOINT_FORMAT:
        raise ConfigError(f"{path} is foreign (no format number); --checkpoint needs one of this toolkit's")
    unpacked: dict[str, Any] = unpack(payload, device)
    return unpacked


def pack(obj: Any, where: str = "payload") -> Any:
    """`obj` with every array turned into a marked tensor, which is what `weights_only` loading accepts.

    Random states need no more: `random.getstate()` is tuples of ints, `Generator.bit_generator.state` a dict
    of (128-bit) ints, and torch's own is a tensor. Arrays are not copied where torch can share their memory.

    Raises: TypeError naming the place of anything else: better now than when a run is to be resumed.
    """
    import numpy as np
    import torch

    if isinstance(obj, dict):
        return {key: pack(value, f"{where}[{key!r}]") for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        items = [pack(value, f"{where}[{i}]") for i, value in enumerate(obj)]
        return items if isinstance(obj, list) else tuple(items)
    if isinstance(obj, torch.Tensor):
        return obj.detach()
    if isinstance(obj, (np.ndarray, np.generic)) and obj.dtype.kind in "biufc":
        # order="C" keeps 0-d arrays 0-d; torch warns about memory that it may not write to.
        array = np.asarray(obj, order="C")
        array = array if array.flags.writeable else array.copy()
        return {_NUMPY: torch.from_numpy(array), "scalar": isinstance(obj, np.generic)}
    if obj is None or type(obj) in (bool, int, float, str, bytes):
        return obj
    raise TypeError(f"{where} is a {type(obj).__name__}, which a checkpoint cannot hold")


def unpack(obj: Any, device: Any = "cpu") -> Any:
    """Inverse of `pack`, exact in values, dtypes and shapes; `device` as in `load_checkpoint`."""
    import torch

    if isinstance(obj, dict):
        if _NUMPY in obj:
            array = obj[_NUMPY].numpy()
            return array[()] if obj["scalar"] else array
        return {key: unpack(value, device) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(unpack(value, device) for value in obj)
    if isinstance(obj, torch.Tensor) and obj.dtype != torch.uint8:
        return obj.to(device)
    return obj


def versions() -> dict[str, str]:
    """What a result depends on besides its options, for config.json; imports none of the packages."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "gymnasium", "neurogym", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"git_commit": git_commit(Path(__file__).parent), "platform": platform.platform()}


def git_commit(folder: Path) -> str:
    """Commit of the checkout that holds `folder`, "-dirty" with local changes; "unknown" outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout, whose commit says nothing about it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (subprocess.SubprocessError, OSError):
        return "unknown"
