"""A module imports only from floors below its own, and heavy packages only where they belong (README, the code)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "main": 9,
    "commands": 8,
    "analysis": 7,
    "compare_runs": 6,
    "reporting": 5, "sweep": 5, "loading": 5, "dynamics": 5, "report": 5,
    "sweep_summary": 4, "sweep_files": 4, "sweep_state": 3, "sweep_table": 3, "submit_file": 0, "terminal": 0,
    "training": 4, "event_logs": 4, "scoring": 4, "probes": 4, "recording": 4,
    "build": 3, "rollout": 3, "mpn_torchrl": 3,
    "mpn_dqn": 2, "actor_critic": 2, "td3": 2,
    "mpn_module": 1, "rnn_module": 1, "backpropamine": 1, "neuroplastic_expansion": 1, "trial_replay": 1,
    "neurogym_wrapper": 1, "gymnasium_env": 2, "grid_maze": 1, "cue_reward": 1, "model_utils": 1, "cli": 1,
    "video": 1, "encoder": 1, "learner": 1, "lanes": 1, "rollout_buffer": 1, "transition_replay": 1, "plasticity": 1,
    "vector_env": 0,
    "config": 0, "options": 0, "linear": 0, "batch": 0, "returns": 0, "units": 0, "sparsity": 0,
}  # fmt: skip
# Arrays in; numbers, or figures, out: on floor 0, each standing on those before it.
ANALYSIS = ("estimates", "pca_analysis", "trials", "behaviour", "decoding", "demixed", "fixed_points", "comparison",
            "visualize", "analysis_figures", "state_figures", "growth_figures", "pages", "mechanism_pages",
            "probe_pages")  # fmt: skip
FLOORS |= dict.fromkeys(ANALYSIS, 0)
# Parts of floor 0 that lean on each other: the kernels are one thing in several files, and every module may
# raise the ConfigError that options.py defines.
KERNELS = ("mpn_kernels", "mpn_lanes", "backpropamine_kernels")
STDLIB_ONLY = ("options", "config", "cli", "main")
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))


def floor(module: str) -> int:
    return 0 if module.startswith(KERNELS) else FLOORS[module]


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether it is imported when the module is) for every import statement."""
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    late = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield str(node.module).partition(".")[0], node not in late
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            yield str(name).partition(".")[0], node not in late


def importers(package: str) -> set[str]:
    return {module for module in MODULES for name, _ in imports(module) if name == package}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module: str) -> None:
    assert module in FLOORS or module.startswith(KERNELS), (
        f"give {module} a floor here, and a line in the README's layout"
    )


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_points_up_or_sideways(module: str) -> None:
    for name, _ in imports(module):
        if name not in MODULES:
            continue
        allowed = floor(name) < floor(module)
        if floor(module) == 0:
            allowed = name in ("config", "options") or (module.startswith(KERNELS) and name.startswith(KERNELS))
            allowed |= module in ANALYSIS and name in ANALYSIS[: ANALYSIS.index(module)]
        assert allowed, f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})"


def test_options_stand_on_nothing_and_the_configuration_on_them_alone() -> None:
    assert not [name for name, _ in imports("options") if name in MODULES]
    assert {name for name, _ in imports("config") if name in MODULES} == {"options"}


@pytest.mark.parametrize("module", STDLIB_ONLY)
def test_what_help_needs_is_the_standard_library(module: str) -> None:
    outside = {name for name, at_import in imports(module) if at_import} - set(sys.stdlib_module_names)
    assert outside <= {"options", "config", "cli"}


def test_neurogym_is_imported_in_its_wrapper_alone() -> None:
    assert importers("neurogym") == {"neurogym_wrapper"}


def test_matplotlib_is_imported_where_figures_are_drawn_alone() -> None:
    assert importers("matplotlib") == {"visualize", "analysis_figures", "state_figures", "growth_figures", "video"}


@pytest.mark.parametrize("module", ANALYSIS)
def test_analysis_and_figures_know_no_torch(module: str) -> None:
    assert "torch" not in {name for name, _ in imports(module)}


def test_learners_and_cores_know_no_environment_experiment_or_command_line() -> None:
    outer = {"argparse", "gymnasium", "neurogym", "model_utils", "cli", "matplotlib", "rollout"}
    for module in MODULES:
        learner = floor(module) == 2 and module != "gymnasium_env"
        if learner or module in ("mpn_module", "rnn_module", "backpropamine", "returns"):
            assert not outer & {name for name, _ in imports(module)}, module


def test_nothing_imports_main_and_only_main_imports_commands() -> None:
    assert importers("main") == set()
    assert importers("commands") == {"main"}


LIGHT = "import sys\nimport {module}\nheavy = {heavy!r} & set(sys.modules)\nassert not heavy, heavy\n"


def test_no_torch_comes_along_unasked() -> None:
    """Said by the interpreter, not only by the import statements: what a module imports imports more."""
    heavy = {"torch", "neurogym", "gymnasium", "numba", "numpy", "matplotlib", "rich"}
    script = "".join(LIGHT.format(module=module, heavy=heavy) for module in STDLIB_ONLY)
    for module in ANALYSIS[: ANALYSIS.index("visualize")]:
        script += LIGHT.format(module=module, heavy={"torch", "neurogym", "matplotlib"})
    for module in ANALYSIS[ANALYSIS.index("visualize") :]:
        script += LIGHT.format(module=module, heavy={"torch", "neurogym"})
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)
