"""The two consoles of all output: results go to stdout, progress and remarks to stderr."""

from __future__ import annotations

from rich.console import Console

# No markup: square brackets in a name or a path must stay. No width: a narrow terminal wraps tables, it cuts no number.
stdout = Console(width=1000, highlight=False, soft_wrap=True, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
