"""The command-line program: parse, run the command, and report a user's mistake in one line with exit status 2.

The commands import torch and the tasks themselves, so that --help is fast.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys

from mpn_rl import arguments
from mpn_rl.options import PROGRAM, ConfigError, TemporaryError
from mpn_rl.storage.regular_files import PASSING
from mpn_rl.tasks import trusted_modules

NAME = PROGRAM.removeprefix("python ")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    try:
        return _run(arguments.parse(argv, arguments.make_parser(NAME)))
    finally:
        _flush()


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
        gc.disable()  # saves a quarter of a second: imports allocate much and free nothing
        from mpn_rl import commands

        gc.enable()
        with commands.stop_signals(commands.leave):
            return commands.COMMANDS[args.command](args)
    except ConfigError as error:
        return _refuse(args, str(error), error.status)
    except MemoryError as error:
        return _refuse(args, _out_of_memory(str(error)), TemporaryError.status)
    except OSError as error:
        status = TemporaryError.status if error.errno in PASSING else ConfigError.status
        return _refuse(args, f"{error.filename or 'system'}: {error.strerror or error}", status)
    except RuntimeError as error:  # PyTorch's error of a full memory is one of many
        reason = str(error).strip().partition("\n")[0]
        if "out of memory" not in reason and "can't allocate memory" not in reason:
            raise
        return _refuse(args, _out_of_memory(reason), TemporaryError.status)
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


def _flush() -> None:
    """Flush stdout. A closed pipe (`main.py ... | head`) is not an error: discard the remaining output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
