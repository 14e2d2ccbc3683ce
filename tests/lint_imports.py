"""Run import-linter over the package and the eight modules of the root: `python tests/lint_imports.py`.

import-linter reads packages only. So it reads a temporary folder in which each module of the root is a package, whose
`__init__.py` is a copy of the module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lint_imports(root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The layers and rules of pyproject.toml, checked; exit status 1 where an import breaks one."""
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder)
        shutil.copytree(root / "mpn_rl", view / "mpn_rl", ignore=shutil.ignore_patterns("__pycache__"))
        for module in root.glob("*.py"):
            (view / module.stem).mkdir()
            shutil.copy(module, view / module.stem / "__init__.py")
        command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
        command += [str(root / "pyproject.toml"), "--no-cache", "--no-logo"]
        environment = {**os.environ, "PYTHONPATH": str(view)}
        return subprocess.run(command, cwd=view, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    done = lint_imports()
    print(done.stdout + done.stderr)
    sys.exit(done.returncode)
