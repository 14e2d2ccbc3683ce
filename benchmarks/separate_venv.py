"""A .venv of its own for other people's packages, with the tested versions of everything that constraints.txt names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_venv(folder: Path, *steps: list[str]) -> None:
    """Make the environment if it is not complete, with PyTorch from TORCH_INDEX as `make install` takes it.

    Args:
        folder: of the environment.
        steps: arguments of `pip install`, one list for each call.
    """
    if (folder / ".installed").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    pip += ["-c", str(ROOT / "constraints.txt")]
    index = os.environ.get("TORCH_INDEX")
    # First and alone: the index that has PyTorch's builds does not have the rest.
    torch = [*(["--no-deps", "--index-url", index] if index else []), "torch"]
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"  # packages that are compiled find their tools here
    for step in (torch, *steps):
        subprocess.run([*pip, *step], check=True, cwd=ROOT, env={**os.environ, "PATH": path})
    (folder / ".installed").touch()
