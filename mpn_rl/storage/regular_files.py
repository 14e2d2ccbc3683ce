"""Open files whose place or contents come from outside: ordinary files of a bounded size, and no device or pipe."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mpn_rl.options import ConfigError, TemporaryError

JSON_BYTES = 64 * 2**20  # limits for files that are read as a whole
METRICS_BYTES = 4 * 2**30
FULL = {errno.ENOSPC, errno.EDQUOT}
PASSING = FULL | {
    *(errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ESTALE),
    *(errno.EBUSY, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}  # conditions of a machine or a network that another attempt may not meet
DAY = 86_400.0  # seconds


def disk_error(error: OSError, path: Path | str, verb: str = "write") -> ConfigError:
    """The error in one line, with the file and the way out; a `TemporaryError` if the condition may pass."""
    kind, way_out = ConfigError, "check the folder and its permissions"
    if error.errno in PASSING:
        kind, way_out = TemporaryError, "try again; what was saved before is intact"
    if error.errno in FULL:
        way_out = f"free some space and {way_out}"
    return kind(f"cannot {verb} {path}: {error.strerror or error}; {way_out}")


@contextmanager
def disk_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an OSError of the body into the ConfigError of `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, verb) from error


def open_regular(path: Path, flags: int = os.O_RDONLY, follow: bool = False, limit: float = float("inf")) -> IO[bytes]:
    """Open an ordinary file, unbuffered where it is written. A pipe or a device neither blocks nor is read.

    Args:
        path: the file.
        flags: of `os.open`, such as `os.O_RDWR | os.O_CREAT`.
        follow: whether the file may be a symbolic link, as one that the user names may be.
        limit: the largest size in bytes.
    Returns: the open file.
    Raises: ConfigError for a link, for anything but an ordinary file, and for a file above the limit; OSError.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise ConfigError(f"{path} is a symbolic link; put the file itself there") from error
        if error.errno == errno.ENXIO:  # a pipe without a reader, or a socket
            raise ConfigError(f"{path} is not an ordinary file; remove it") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise ConfigError(f"{path} is {kind}, not an ordinary file; name or restore the file")
        if status.st_size > limit:
            raise ConfigError(f"{path} has {status.st_size:,} bytes, more than the {limit:,} that it may have")
        if flags & (os.O_WRONLY | os.O_RDWR) == 0:
            return os.fdopen(descriptor, "rb")
        mode = "ab" if flags & os.O_APPEND else "rb+" if flags & os.O_RDWR else "wb"
        return os.fdopen(descriptor, mode, buffering=0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def read_regular(path: Path, limit: int = JSON_BYTES, follow: bool = False) -> bytes:
    """The contents of an ordinary file; arguments and errors as in `open_regular`."""
    with open_regular(path, follow=follow, limit=limit) as file:
        return file.read()


# --- temporary names ----------------------------------------------------------------------------------------

_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)(@(?P<host>.+))?\.tmp(\.\w+)?")


def temporary_path(path: Path, suffix: str = "") -> Path:
    """A hidden name beside `path`, hence on the same disk, that names this process; it ends with `suffix`."""
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp{suffix}")


def is_temporary(path: Path) -> bool:
    """Whether a file has a name of `temporary_path`, or one that version 0.1.0 gave."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_stale_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    A file is stale if its process ran on this machine and has ended, or if it is a day old.
    """
    for path in folder.glob(".*.tmp*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):
            if match["host"] == socket.gethostname():
                stale = not _is_alive(int(match["pid"]))
            else:
                stale = time.time() - path.lstat().st_mtime > DAY
            if stale:
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
