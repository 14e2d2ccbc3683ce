"""Entry point: parse, dispatch, and turn a user's mistake into one line and exit status 2.

torch and the tasks are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import sys

import cli
from config import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    parser = cli.make_parser()
    args = parser.parse_args(argv)
    try:
        import commands

        return commands.COMMANDS[args.command](args)
    except ConfigError as error:
        print(f"{parser.prog} {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
