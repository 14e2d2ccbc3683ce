"""The two consoles that everything is printed on: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import os

from rich.console import Console


class Output(Console):
    """A console whose reader may leave, as `| head` does: the work goes on, and what is said goes nowhere."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


# No markup: the square brackets of a name or a path are its own.
stdout = Output(highlight=False, soft_wrap=True, markup=False, emoji=False)
stderr = Output(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
