"""Entry point of a clone: `python main.py COMMAND`. The program is in mpn_rl/cli.py."""

import sys

from mpn_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
