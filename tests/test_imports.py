"""The layers of pyproject.toml hold, and importing a part of the toolkit imports nothing that it has no use for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lint_imports import ROOT, lint_imports

HELP = ("main", "mpn_rl.cli", "mpn_rl.arguments", "mpn_rl.config", "mpn_rl.options")
MEASURES = ("pca_analysis", "mpn_rl.statistics", *(f"mpn_rl.analysis.{name}" for name in ("confidence_intervals",
            "trials", "behaviour", "decoding", "demixed", "fixed_points")))  # fmt: skip
FIGURES = ("visualize", "mpn_rl.expansion.growth_figures", "mpn_rl.analysis.figures.behaviour_figures",
           "mpn_rl.analysis.figures.state_figures", "mpn_rl.analysis.pages.standard_pages",
           "mpn_rl.analysis.pages.mechanism_pages", "mpn_rl.analysis.pages.probe_pages")  # fmt: skip


def test_imports_point_one_way() -> None:
    done = lint_imports()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mpn_rl/kernels/mpn.py", "from mpn_rl import registry"),
        ("mpn_module.py", "import mpn_dqn"),
        ("mpn_rl/analysis/decoding.py", "import torch"),
        ("mpn_rl/learners/a2c.py", "import gymnasium"),
        ("model_utils.py", "import neurogym"),
    ],
)
def test_an_import_that_breaks_a_rule_is_reported(module: str, line: str, tmp_path: Path) -> None:
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "mpn_rl", tmp_path / "mpn_rl", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert lint_imports(tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (HELP, {"torch", "neurogym", "gymnasium", "numba", "numpy", "matplotlib", "rich", "sklearn"}),
        (MEASURES, {"torch", "neurogym", "matplotlib"}),
        (("mpn_rl.commands",), {"neurogym", "numba", "matplotlib", "scipy", "sklearn"}),
        (("mpn_rl.sweep.commands", "mpn_rl.runs.table"), {"torch", "scipy", "sklearn"}),
        (FIGURES, {"torch", "neurogym"}),
    ],
    ids=["--help", "measures", "commands", "tables", "figures"],
)
def test_heavy_packages_are_imported_late(modules: tuple[str, ...], heavy: set[str]) -> None:
    """As the interpreter sees it: what a module imports may import more."""
    script = "import sys\n" + "".join(f"import {module}\n" for module in modules)
    script += f"loaded = {heavy!r} & set(sys.modules)\nassert not loaded, loaded\n"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)


def test_importing_the_toolkit_changes_no_other_library() -> None:
    """Functions and values of torch's and NumPy's modules and classes, and what is set on those functions."""
    modules = [path.stem for path in ROOT.glob("*.py")]
    modules += [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "mpn_rl").rglob("*.py")
        if path.name != "__init__.py"
    ]
    script = f"""
import importlib, types
import matplotlib.pyplot, neurogym, numpy, torch, torchrl

WATCHED = (torch, torch.optim, torch.optim.Optimizer, torch.optim.Adam, torch.nn, torch.nn.Module, numpy)

def attributes():
    seen = {{}}
    for owner in WATCHED:
        for name, value in vars(owner).items():
            if isinstance(value, types.ModuleType):
                continue  # a library may import its own submodules late
            seen[owner.__name__, name] = value
            while isinstance(value, types.FunctionType):
                for key, own in vars(value).items():
                    seen[owner.__name__, name, value.__qualname__, key] = own
                value = getattr(value, "__wrapped__", None)
    return seen

before = attributes()
for module in {sorted(modules)!r}:
    importlib.import_module(module)
after = attributes()
changed = [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]
assert not changed, changed
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=240)
