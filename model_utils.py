"""An experiment is one folder with its configuration, metrics and checkpoints. Killing a process damages no file.

    experiments/<name>/
        config.json            the run's options, versions and git commit
        metrics.jsonl          one JSON object per log point; appended
        training_history.json  the same numbers by column
        checkpoints/           best_model.pt  final_model.pt  last.pt
        plots/  videos/  eval/  analysis/
        error.txt              why the last run failed, if it did
    experiments/.locks/
        <name>.lock            locked by the process that creates, replaces or trains the experiment
        <name>.json            this process: its id, its host, and since when

Every file except metrics.jsonl is written under a temporary name, synced and renamed, so a reader sees the old
file or the new one, never a part of one. Checkpoints contain only tensors and plain Python values: they load
with `weights_only=True`, and a foreign file cannot run code.
The lock is outside the folder, so it holds while the folder is created or replaced. Files are opened without following
links, and a linked folder is not written to.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fnmatch
import itertools
import json
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from mpn_rl.options import LARGEST, ConfigError, TemporaryError, is_out_of_memory, nearest
from mpn_rl.storage.json_files import row_fault
from mpn_rl.storage.regular_files import (
    JSON_BYTES,
    METRICS_BYTES,
    disk_error,
    disk_errors,
    is_temporary,
    open_regular,
    read_regular,
    remove_stale_temporaries,
    temporary_path,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

Record = dict[str, Any]  # a JSON object, or a checkpoint's contents
ROOT = "experiments"
CHECKPOINT_FORMAT = 1
CHECKPOINT_ALIASES = {"best": "best_model", "final": "final_model", "last": "last"}
MAX_NAME_BYTES = 100
# What commands write into an experiment; .lock and .holder.json are of version 0.1.0.
FOLDERS = {"checkpoints", "plots", "videos", "eval", "analysis", "tensorboard", "wandb"}
START_FILES = {"config.json", "training_history.json", "error.txt", ".lock", ".holder.json"}
FILES = START_FILES | {"metrics.jsonl"}
SECTIONS = {"env", "core", "run"}  # of every config.json of this toolkit
LOCK_PATIENCE = 0.5  # seconds to wait for a lock, because `holder` takes it for a moment


@dataclass(frozen=True)
class Experiment:
    """The paths of one experiment, and the only code that reads or writes its files.

    `check_new` and `create` start an experiment, and `open` finds one. The constructor touches no file. A process that
    trains calls `write_new` and everything after it while it holds `lock`.

    Args:
        name: name of the folder.
        root: the folder that contains it.
    """

    name: str
    root: Path = Path(ROOT)

    @classmethod
    def check_new(cls, name: str | None, root: str | Path = ROOT, overwrite: bool = False, resume: bool = False) -> str:
        """The name of a run that is about to start; "" if `lock_free_name` is to choose it. Creates no file.

        Args:
            name: the user's choice, or None.
            root: the folder of the experiments.
            overwrite: whether the run may replace an existing experiment.
            resume: whether the run may continue an existing experiment.
        Returns: the checked name.
        Raises: ConfigError for a name that no folder can have, or that an experiment has already.
        """
        if overwrite and resume:
            raise ConfigError("--overwrite and --resume exclude each other: give one of them")
        if name is None:
            if overwrite or resume:
                raise ConfigError(f"--{'overwrite' if overwrite else 'resume'} needs --experiment-name")
            return ""
        experiment = cls(_check_name(name), Path(root))
        if resume:
            return name
        try:
            experiment._check_free(overwrite)
        except ConfigError:
            if not overwrite or experiment.holder() is None:
                raise  # else `lock` refuses; meanwhile, the other process may be replacing the folder
        return name

    @classmethod
    def create(
        cls, name: str, root: str | Path = ROOT, config: Mapping[str, object] | None = None, overwrite: bool = False
    ) -> Experiment:
        """Create the folder with its config.json, as `write_new` does, and hold the lock meanwhile."""
        experiment = cls(cls.check_new(name, root, overwrite), Path(root))
        with experiment.lock():
            experiment.write_new(config or {}, overwrite)
        return experiment

    def write_new(self, config: Mapping[str, object], overwrite: bool = False, restart: bool = False) -> None:
        """Create the folder with its config.json. The caller holds the lock.

        The new folder is completed under a hidden name. With `overwrite`, the old folder is then renamed, the new
        one takes its name, and the old one is deleted; if it holds a file that no command writes, it goes to
        `.replaced/` instead. A process killed in between never mixes old and new files.

        Args:
            config: the contents of config.json.
            overwrite: whether to replace an existing experiment.
            restart: whether to keep a folder with a run's first files only, and write its config.json again.
        Raises: ConfigError if the name is taken, the folder is not an experiment's, or the disk refuses.
        """
        if restart and self.config_path.is_file() and not self.work():
            write_json(self.config_path, config)
            return
        self._check_free(overwrite)
        new, old = self._staging / "new", self._staging / "old"
        with disk_errors(self.path):
            new.mkdir(parents=True)
            try:
                write_json(new / "config.json", config)
                if self.exists():
                    os.rename(self.path, old)
                try:
                    os.rename(new, self.path)
                except BaseException:
                    if old.exists() and not self.exists():
                        os.rename(old, self.path)
                    raise
                _sync_folder(self.root)
            finally:
                self._clear_staging()

    def _clear_staging(self) -> None:
        """End what `write_new` began, also in a process that was killed: dispose of the old folder, or restore it."""
        old = self._staging / "old"
        if old.exists():
            if not self.exists():
                os.rename(old, self.path)
            elif foreign := [name for name in _files_below(old) if _is_foreign(name)]:
                from mpn_rl.console import stderr

                kept = self.root / ".replaced" / f"{self.name}-{time.time_ns()}"
                kept.parent.mkdir(exist_ok=True)
                os.rename(old, kept)
                stderr.print(f"note: the old {self.path} has {foreign[0]}, which no command wrote; it is now {kept}")
        shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def _staging(self) -> Path:
        return self.root / f".{self.name}.staging"

    @classmethod
    def open(cls, name: str, root: str | Path = ROOT) -> Experiment:
        """The existing experiment of that name. Raises: ConfigError with similar names if there is none."""
        experiment = cls(_check_name(name), Path(root))
        if experiment.config_path.is_file():
            return experiment
        if experiment.exists():
            raise ConfigError(f"{experiment.path} holds no config.json, so it is not an experiment; choose another")
        names = cls.names(root)
        hint = nearest(name, names)
        if names and not hint:
            hint = f"; the experiments there: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        hint = hint or "; there are none yet: start one with train or train-neurogym"
        raise ConfigError(f"no experiment '{name}' in {Path(root)}/{hint}")

    @staticmethod
    def names(root: str | Path = ROOT) -> list[str]:
        """The names of all experiments under `root`, sorted; empty if there is no such folder."""
        names = [config.parent.name for config in Path(root).glob("*/config.json")]
        return sorted(name for name in names if not name.startswith("."))

    @classmethod
    def matching(cls, patterns: Iterable[str], root: str | Path = ROOT) -> list[str]:
        """The experiments that names or patterns such as 'ctx-*' mean, each once.

        A name without *, ? and [ need not exist. An existing name, such as run[1], is no pattern.

        Raises: ConfigError for a pattern without a match.
        """
        names: list[str] = []
        there = cls.names(root)
        for pattern in patterns:
            matches = [pattern]
            if pattern not in there and re.search(r"[*?\[]", pattern):
                matches = fnmatch.filter(there, pattern)
                if not matches:
                    raise ConfigError(f"--experiment-name {pattern!r} matches no experiment in {root}/")
            names += [name for name in matches if name not in names]
        return names

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def work(self) -> list[str]:
        """The files below the folder that are more than a run's first ones, by relative path."""
        return [name for name in _files_below(self.path) if name not in START_FILES]

    def _check_free(self, overwrite: bool) -> None:
        """Refuse a name that is taken, unless `overwrite` may replace what is there.

        Never replaceable: a link, a file, and a folder without the config.json of an experiment.

        Raises: ConfigError.
        """
        if self.path.is_symlink() or (self.exists() and not self.path.is_dir()):
            rule = "is not a folder"
        elif not _files_below(self.path):  # no folder, or an empty one
            return
        elif not overwrite:
            raise ConfigError(
                f"experiment '{self.name}' exists in {self.root}/; continue it with --resume or replace it "
                "with --overwrite"
            )
        elif not os.path.lexists(self.config_path):
            rule = "holds no config.json"
        else:
            try:
                if self.read_config().keys() >= SECTIONS:
                    return
                rule = "holds the config.json of another program"
            except ConfigError:
                rule = "holds a config.json that cannot be read"
        way = "--overwrite replaces experiments only, and " if overwrite else ""
        raise ConfigError(f"{way}{self.path} {rule}; choose another --experiment-name, or move it away")

    @contextmanager
    def lock(self) -> Iterator[Experiment]:
        """Lock the experiment for this process; the context is the experiment.

        The operating system releases the lock when the process ends. The folder need not exist. Leftovers of a killed
        process are removed first.

        Raises: TemporaryError naming the process that holds the lock, if another process does; ConfigError for a
            folder or file that is a link.
        """
        with self._locked():
            with disk_errors(self.path):
                self._clear_staging()
                self.check_writable()
                for folder in (self.path, self.path / "checkpoints"):
                    for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it was writing
                        leftover.unlink(missing_ok=True)
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(self._holder_path, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            try:
                yield self
            finally:
                with contextlib.suppress(OSError):
                    self._holder_path.unlink(missing_ok=True)

    @classmethod
    @contextmanager
    def lock_free_name(cls, stem: str, root: str | Path = ROOT) -> Iterator[Experiment]:
        """The first of `stem`-1, `stem`-2, ... that no experiment has and no other process is about to take, locked."""
        stem = re.sub(r"[^\w.-]+", "-", stem.rpartition(":")[2], flags=re.ASCII).strip("-.")[:60] or "run"
        for number in itertools.count(1):
            experiment = cls(f"{stem}-{number}", Path(root))
            if experiment.exists() or experiment.holder() is not None:
                continue
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(experiment.lock())
                except TemporaryError:
                    if experiment.holder() is None:
                        raise
                    continue
                if not experiment.exists():
                    yield experiment
                    return

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock alone. Its file is never removed: another machine may still see the removed one."""
        with disk_errors(self._lock_path):
            self.root.mkdir(parents=True, exist_ok=True)
            _make_folder(self._lock_path.parent)
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            with disk_errors(self._lock_path):
                file = open_regular(self._lock_path, os.O_RDWR | os.O_CREAT)
            with file:  # closing it releases the lock
                with disk_errors(self._lock_path):
                    locked = _flocked(file, exclusive=True)
                if locked and _is_at(file, self._lock_path):  # else somebody removed the file before it was locked
                    yield
                    return
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"experiment '{self.name}' is in use by {self._holder_text()}; "
                    "wait for it or choose another --experiment-name"
                )
            time.sleep(0.02)

    def holder(self) -> str | None:
        """The process that trains in the folder now, or None. Writes no file; sees the locks of other machines."""
        try:
            with open_regular(self._lock_path) as file:
                return None if _flocked(file, exclusive=False) else self._holder_text()
        except (ConfigError, OSError):
            return None

    def _holder_text(self) -> str:
        try:
            held = read_json(self._holder_path)
            return f"another process ({held['pid']} on {held['host']} since {held['since']})"
        except (ConfigError, KeyError):
            return "another process"

    @property
    def _lock_path(self) -> Path:
        return self.root / ".locks" / f"{self.name}.lock"

    @property
    def _holder_path(self) -> Path:
        return self._lock_path.with_suffix(".json")

    def check_writable(self) -> None:
        """Refuse to write where a name of the experiment leads elsewhere. Raises: ConfigError naming the link."""
        for name in ("", *sorted(FOLDERS | FILES)):
            if (self.path / name).is_symlink():
                raise ConfigError(
                    f"{self.path / name} is a symbolic link, and nothing is written through one; put the "
                    f"{'file' if name in FILES else 'folder'} itself there, or link the folder of all experiments"
                )

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Write error.txt if the body raises an exception. An old error.txt is removed first."""
        with disk_errors(self.error_path):
            self.error_path.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            known = (isinstance(error, ConfigError | OSError) or is_out_of_memory(error)) and str(error)
            self.note_failure(str(error) if known else "".join(traceback.format_exception(error)))
            raise

    def note_failure(self, text: str) -> None:
        """Write error.txt, whose last line is the reason. Ignores a folder or disk that cannot store it."""
        with contextlib.suppress(ConfigError):
            write_bytes_atomic(self.error_path, (text.strip() + "\n").encode(errors="backslashreplace"))

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def options(self) -> str:
        """The options of a command line that name this experiment, quoted for a shell."""
        folder = [] if self.root == Path(ROOT) else ["--experiments-dir", str(self.root)]
        return shlex.join(["--experiment-name", self.name, *folder])

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
        """The path of the checkpoint best, final or last (or best_model, final_model); anything else is a path."""
        stem = CHECKPOINT_ALIASES.get(str(which), str(which))
        if stem in CHECKPOINT_ALIASES.values():
            return self.path / "checkpoints" / f"{stem}.pt"
        return Path(which)

    plots_dir = property(lambda self: self._folder("plots"))
    videos_dir = property(lambda self: self._folder("videos"))
    eval_dir = property(lambda self: self._folder("eval"))
    analysis_dir = property(lambda self: self._folder("analysis"))

    def _folder(self, name: str) -> Path:
        """A subfolder to write to, which is created at its first use. Leftovers of killed processes are removed."""
        folder = self.path / name
        self.check_writable()
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            remove_stale_temporaries(folder)
        return folder

    def read_config(self) -> Record:
        """The contents of config.json. Raises: ConfigError if it is missing or damaged."""
        return read_json(self.config_path)

    def num_weights(self) -> int | None:
        """Trained weights of the network that acts; None if config.json does not say, as in version 0.1.0."""
        network = self.read_config().get("network")
        weights = network.get("weights") if isinstance(network, dict) else None
        return weights if type(weights) is int and 0 <= weights <= LARGEST else None

    def versions(self) -> Record:
        """The versions and the origin that config.json notes for the reader; empty where it notes none."""
        noted = self.read_config().get("versions")
        return noted if isinstance(noted, dict) else {}

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Add one line to metrics.jsonl, in which NaN becomes null. A full disk leaves no partial line.

        Raises: ConfigError if the disk refuses.
        """
        line = (json.dumps(jsonable(row), allow_nan=False) + "\n").encode()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with disk_errors(self.metrics_path), open_regular(self.metrics_path, flags) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise

    def metrics_size(self) -> int:
        """The size of metrics.jsonl in bytes, after a sync: a power cut must not take lines counted in a checkpoint."""
        if not self.metrics_path.exists():
            return 0
        with disk_errors(self.metrics_path), open_regular(self.metrics_path, os.O_RDWR) as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def truncate_metrics(self, size: int) -> None:
        """Cut metrics.jsonl to its size at the time of a checkpoint, so that a resumed run repeats no line.

        Args:
            size: that size in bytes.
        Raises: ConfigError if the file is shorter, so that lines are missing, or if no line ends there.
        """
        have = self.metrics_size()
        if have < size:
            raise ConfigError(
                f"{self.metrics_path} has {have} bytes, but had {size} when the checkpoint was written; "
                "restore the whole file, or start again with --overwrite"
            )
        if not have:
            return
        with disk_errors(self.metrics_path), open_regular(self.metrics_path, os.O_RDWR) as file:
            file.seek(max(size - 1, 0))
            if size and file.read(1) != b"\n":
                raise ConfigError(
                    f"{self.metrics_path} has no line that ends at byte {size}, as it had when the checkpoint was "
                    "written; restore it, or start again with --overwrite"
                )
            if have > size:
                file.truncate(size)

    def read_masks(self) -> dict[str, np.ndarray]:
        """plots/masks.npz, {weight: (S, H, D) bool, "step": (S,)}; {} if the topology never changed.

        Raises: ConfigError if the file is damaged.
        """
        path = self.path / "plots" / "masks.npz"
        if not os.path.lexists(path):
            return {}
        from mpn_rl.storage.npz_files import ArraySpec, read_npz  # imports NumPy

        schema = {"step": ArraySpec("iu", low=0), r"[\w./]+": ArraySpec("b", (3,))}
        masks = read_npz(path, schema, "file of masks", "delete it, and the pages leave the topology out")
        if any(array.size == 0 or len(array) != len(masks.get("step", ())) for array in masks.values()):
            raise ConfigError(f"{path} needs one mask per step; delete it, and the pages leave the topology out")
        return masks

    def read_metrics(self, size: int | None = None) -> list[Record]:
        """All rows of metrics.jsonl; [] without a file. A partial last line is ignored.

        Args:
            size: read only so many bytes of it.
        Raises: ConfigError with the number of any other line that is not a JSON object, or not a row of this
                toolkit.
        """
        if not self.metrics_path.exists():
            return []
        with disk_errors(self.metrics_path, "read"):
            lines = read_regular(self.metrics_path, METRICS_BYTES)[:size].split(b"\n")
        rows = []
        for number, line in enumerate(lines, start=1):
            row = _json_object(line)
            if row is not None:
                if reason := row_fault(row):
                    raise ConfigError(f"{self.metrics_path} line {number}: {reason}; remove or restore the line")
                rows.append(row)
            elif number < len(lines):  # after the last newline comes nothing, or a line that a kill interrupted
                raise ConfigError(f"{self.metrics_path} line {number} is not a JSON object; remove or restore it")
        return rows


def _check_name(name: str) -> str:
    """`name`, if every file system accepts it as a folder's name. Raises: ConfigError."""
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
    """Lock the file without waiting; False if another process has the lock.

    True on a disk without locks, such as Lustre without its `flock` option: two processes may then run at once.
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


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _make_folder(folder: Path) -> None:
    """Make a folder with the permissions of its parent: those who share the parent share it."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(folder.parent.stat().st_mode & 0o7777)
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a symbolic link, and nothing is written through one; remove it")


def _files_below(folder: Path) -> list[str]:
    """The relative paths of the files and links below a folder, without temporary files."""
    found = []
    for parent, folders, files in os.walk(folder):
        paths = [Path(parent, name) for name in files] + [Path(parent, name) for name in folders]
        leaves = [path for path in paths if path.is_symlink() or not path.is_dir()]
        found += [str(path.relative_to(folder)) for path in leaves if not is_temporary(path)]
    return sorted(found)


def _is_foreign(name: str) -> bool:
    """Whether no command writes a file of this relative path into an experiment."""
    top, *inside = Path(name).parts
    if top == "checkpoints":
        return inside not in [[f"{stem}.pt"] for stem in CHECKPOINT_ALIASES.values()]
    return top not in (FOLDERS if inside else FILES)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name only when it is complete and on the disk.

    The folder must exist. After any exception the old file is unchanged and no temporary file is left.

    Raises: ConfigError if the disk refuses.
    """
    temporary = temporary_path(path)
    with disk_errors(path):
        temporary.unlink(missing_ok=True)
        try:
            with open(temporary, "xb") as file:  # "x" follows no link
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write the whole file, or leave the old one. Raises: ConfigError if the disk refuses."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, obj: object) -> None:
    """Write indented JSON as `write_bytes_atomic` does. NaN and infinity become null, which every reader accepts."""
    write_bytes_atomic(path, (json.dumps(jsonable(obj), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Record:
    """The JSON object in a file. Raises: ConfigError if the file is missing or holds anything else."""
    with disk_errors(path, "read"):
        obj = _json_object(read_regular(path, JSON_BYTES))
    if obj is None:
        raise ConfigError(f"{path} does not hold a JSON object; restore or delete it")
    return obj


def _json_object(text: bytes) -> Record | None:
    try:
        obj = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return obj if isinstance(obj, dict) else None


def jsonable(obj: object) -> Any:
    """`obj` as JSON has it: arrays and tensors as lists, paths as strings, NaN and infinity as null."""
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
    """Writes torch.save's bytes to a file and keeps the first exception: torch's C++ code must not see it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except BaseException as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        pass


def save_checkpoint(path: Path, payload: Mapping[str, object]) -> None:
    """Write {"format": CHECKPOINT_FORMAT, **payload}, or leave the old file.

    Args:
        path: the file.
        payload: nested dicts, lists and tuples of tensors, arrays, numbers, strings and None (see `pack`).
    Raises: ConfigError if the disk refuses; TypeError naming an entry that a checkpoint cannot hold.
    """
    import torch

    packed = pack({"format": CHECKPOINT_FORMAT, **payload})
    with disk_errors(path):
        path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as file:
        sink = _Sink(file)
        torch.save(packed, cast(IO[bytes], sink))
        if sink.error is not None:
            raise sink.error


def load_checkpoint(path: Path, device: torch.device | str = "cpu", follow: bool = False) -> Record:
    """The payload that `save_checkpoint` wrote. Its entries may be wrong: see `storage.state_trees.check`.

    Args:
        path: the file.
        device: where to put the tensors. Byte tensors stay on the CPU: they are states of torch's random
            generators, which need them there.
        follow: whether the file may be a symbolic link, as one that the user names may be.
    Returns: the payload, with its "format".
    Raises: ConfigError naming the file if it is missing, damaged, foreign or of another format.
    """
    from mpn_rl.storage.checkpoint_files import read_checkpoint  # imports torch

    if not os.path.lexists(path):
        raise ConfigError(f"no checkpoint {path}; --checkpoint takes best, final, last or a file's path")
    try:
        payload = read_checkpoint(path, follow)
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise disk_error(error, path, "read") from error
        raise ConfigError(f"{path} is foreign or damaged; restore it or take another checkpoint") from error
    version = payload.get("format") if isinstance(payload, dict) else None
    if type(version) is int and CHECKPOINT_FORMAT < version < 1000:
        raise ConfigError(f"{path} has format {version}, this toolkit knows {CHECKPOINT_FORMAT}; update the toolkit")
    if type(version) is not int or version != CHECKPOINT_FORMAT or not isinstance(payload, dict):
        raise ConfigError(f"{path} is foreign (no format number); --checkpoint needs one of this toolkit's")
    return {str(key): unpack(value, device) for key, value in payload.items()}


def pack(obj: object, where: str = "payload") -> object:
    """`obj` with every array as a marked tensor, which `weights_only` loading accepts.

    The states of random generators need no further treatment: `random.getstate()` consists of tuples of ints,
    `Generator.bit_generator.state` is a dict of (128-bit) ints, and torch's state is a tensor. Arrays are not
    copied if torch can share their memory.

    Args:
        obj: nested dicts, lists and tuples of tensors, arrays, numbers, strings and None.
        where: the name of `obj` in error messages.
    Returns: the same structure.
    Raises: TypeError naming the place of anything else.
    """
    import numpy as np
    import torch

    from mpn_rl.storage.checkpoint_files import ARRAY

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
        return {ARRAY: torch.from_numpy(array), "scalar": isinstance(obj, np.generic)}
    if obj is None or type(obj) in (bool, int, float, str, bytes):
        return obj
    raise TypeError(f"{where} is a {type(obj).__name__}, which a checkpoint cannot hold")


def unpack(obj: object, device: torch.device | str = "cpu") -> Any:
    """The inverse of `pack`, exact in values, dtypes and shapes; `device` as in `load_checkpoint`."""
    import torch

    from mpn_rl.storage.checkpoint_files import ARRAY

    if isinstance(obj, dict):
        if ARRAY in obj:
            array = obj[ARRAY].numpy()
            return array[()] if obj["scalar"] else array
        return {key: unpack(value, device) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(unpack(value, device) for value in obj)
    if isinstance(obj, torch.Tensor) and obj.dtype != torch.uint8:
        return obj.to(device)
    return obj


def versions() -> dict[str, str]:
    """Versions of the software that a result depends on, for config.json. Imports none of the packages."""
    known = {"python": platform.python_version()}
    for package in ("torch", "numpy", "gymnasium", "neurogym", "numba"):
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            known[package] = "not installed"
    return known | {"git_commit": git_commit(Path(__file__).parent), "platform": platform.platform()} | snapshot()


def snapshot() -> dict[str, str]:
    """The commit and the place of the snapshot that `sweep submit` made and this program runs from; else nothing."""
    folder = Path(__file__).resolve().parent
    try:
        record = read_json(folder / "snapshot.json")
        commit, digest = f"{record['commit']}{'-dirty' if record['changed'] else ''}", str(record["digest"])
    except (ConfigError, KeyError):
        return {}
    return {"git_commit": commit, "snapshot": f"{folder} (sha256 {digest})"}


def git_commit(folder: Path) -> str:
    """The commit of the git checkout that contains `folder`, with "-dirty" after local changes; else "unknown"."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        # An installed copy may be inside another project's checkout, whose commit is not the toolkit's.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (subprocess.SubprocessError, OSError):
        return "unknown"
