"""The program: parse, dispatch, and turn a user's mistake into one line and exit status 2.

torch and the tasks are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import gc
import os
import sys

from mpn_rl import arguments
from mpn_rl.options import PROGRAM, ConfigError

NAME = PROGRAM.removeprefix("python ")


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    try:
        return _run(arguments.parse(argv, arguments.make_parser(NAME)))
    finally:
        _flush()


def _run(args) -> int:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on stdout, where results belong
    try:
        if args.command == "sweep":  # without torch, which every row brings along by itself
            from mpn_rl.sweep import commands as sweep_commands

            return sweep_commands.sweep(args)
        gc.disable()  # imports make much and free nothing: a quarter of a second
        from mpn_rl import commands

        gc.enable()
        return commands.COMMANDS[args.command](args)
    except ConfigError as error:
        return _refuse(args, str(error), 2)
    except MemoryError as error:
        reason = f"out of memory ({error})" if str(error) else "out of memory"
        return _refuse(args, f"{reason}; lower --hidden-dim, --buffer-size or the batch size", 2)
    except OSError as error:
        return _refuse(args, f"{error.filename or 'system'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _refuse(args, "interrupted", 130)


def _refuse(args, message: str, status: int) -> int:
    # Modules name the program as a clone has it.
    text = " ".join(message.split()).replace("python main.py", PROGRAM)
    print(f"{NAME} {args.command}: {text}", file=sys.stderr)
    return status


def _flush() -> None:
    """A reader that has left, as `| head` does, is no error: what is still to be said goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
