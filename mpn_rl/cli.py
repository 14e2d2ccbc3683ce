"""The command-line program: parse, run the command, and report a user's mistake in one line with exit status 2.

The commands import torch and the tasks themselves, so that --help is fast.
"""

from __future__ import annotations

import argparse
import errno
import gc
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from mpn_rl import arguments
from mpn_rl.options import PROGRAM, ConfigError, TemporaryError, is_out_of_memory
from mpn_rl.storage.regular_files import PASSING
from mpn_rl.tasks import trusted_modules

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

NAME = PROGRAM.removeprefix("python ")


def main(argv: list[str] | None = None) -> int:
    """Run one command line, that of this process by default; returns the exit status."""
    with _figures_without_a_screen():
        if argv is not None:
            return _run(arguments.parse(argv, arguments.make_parser(NAME)))
        out = _protect_standard_streams()
        try:
            status: int | str | None = _run(arguments.parse(argv, arguments.make_parser(NAME)))
        except SystemExit as left:  # --help, or a command line that was refused
            status = left.code
        sys.stdout.flush()
        if out.failure is not None:
            print(f"{NAME}: cannot write to the standard output: {out.failure.strerror}", file=sys.stderr)
            status = status or TemporaryError.status
        return status if isinstance(status, int) else int(status is not None)


@contextmanager
def _figures_without_a_screen() -> Iterator[None]:
    """Set MPLBACKEND in the body: a backend that is inherited, such as Jupyter's, may not exist here."""
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MPLBACKEND"]
        else:
            os.environ["MPLBACKEND"] = before


class _Descriptor(io.FileIO):
    """Standard output or error. If a write fails, the remaining output is discarded, and the work continues.

    A closed pipe (`main.py ... | head`) or terminal is not an error. `failure` is any other error, such as a full disk.
    """

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            terminal = stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            if error.errno != errno.EPIPE and not (terminal and error.errno == errno.EIO):
                self.failure = error
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return memoryview(data).nbytes


def _protect_standard_streams() -> _Descriptor:
    """Make standard output and error safe to write to: closed, full, or in an encoding that lacks a character.

    Returns: the standard output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened would get its number, and with it the messages
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    out, err = _Descriptor(1, "wb", closefd=False), _Descriptor(2, "wb", closefd=False)
    sys.stdout, sys.stderr = _text(out, sys.stdout), _text(err, sys.stderr)
    return out


def _text(descriptor: _Descriptor, stream: TextIO | None) -> TextIO:
    encoding = "utf-8" if stream is None else stream.encoding
    lines = stream is None or bool(stream.line_buffering)
    return io.TextIOWrapper(io.BufferedWriter(descriptor), encoding, "backslashreplace", line_buffering=lines)


def _run(args: argparse.Namespace) -> int:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame prints a greeting on stdout, among the results
    given = vars(args)
    trusted_modules.start(
        given.get("env_name"), given.get("trust_env_module", []), given.get("experiments_dir"), given.get("config")
    )
    try:
        if args.command == "sweep":  # without torch, which only the rows need
            from mpn_rl.sweep import commands as sweep_commands

            return sweep_commands.sweep(args)
        if args.command == "analyze" and args.stage in arguments.TABLES:  # without torch, too
            from mpn_rl.runs import table

            return table.tables(args)
        gc.disable()  # saves a quarter of a second: imports allocate much and free nothing
        from mpn_rl import commands

        gc.enable()
        with commands.stop_signals(commands.leave):
            return commands.COMMANDS[args.command](args)
    except ConfigError as error:
        return _refuse(args, str(error), error.status)
    except OSError as error:
        status = TemporaryError.status if error.errno in PASSING else ConfigError.status
        return _refuse(args, f"{error.filename or 'system'}: {error.strerror or error}", status)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refuse(args, _out_of_memory(str(error).strip().partition("\n")[0]), TemporaryError.status)
    except KeyboardInterrupt as error:
        # Only `commands.Stopped` has a text: the name of the signal, which counts as SIGTERM.
        return _refuse(args, f"stopped by {error}", 143) if str(error) else _refuse(args, "interrupted", 130)


def _out_of_memory(reason: str) -> str:
    return f"out of memory{f' ({reason})' if reason else ''}; lower --hidden-dim, --buffer-size or the batch size"


def _refuse(args: argparse.Namespace, message: str, status: int) -> int:
    # Messages name the program as it is called in a clone.
    text = " ".join(message.split()).replace("python main.py", PROGRAM)
    print(f"{NAME} {args.command}: {text}", file=sys.stderr)
    return status
