"""The sdist holds the repository, and the wheel built from it trains in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("LICENSE", "Makefile", ".gitignore")
FOLDERS = (".ci", "benchmarks", "condor", "configs", "docs", "mpn_rl", "slurm", "tests")
# Files of a working copy that belong to no release.
LEFTOVERS = shutil.ignore_patterns("__pycache__", ".venv*", "*.nb[ic]", "*.py[cod]", ".*.tmp", "python.tar.gz", "*.swp")
TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--max-episode-steps", "30", "--eval-episodes", "2",
        "--learning-starts", "50", "--sequence-length", "8", "--sequence-stride", "8", "--batch-size", "4",
        "--kernel", "reference", "--no-plot-training"]  # fmt: skip


def run(*command: str | Path, cwd: Path, **options) -> str:
    """The output of a command; its messages if it fails."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=200, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the repository: nothing is built where the sources are."""
    place = tmp_path_factory.mktemp("release")
    copy = place / "repository"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".md", ".txt", ".toml", ".yml", ".in") or path.name in FILES:
            shutil.copy(path, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFTOVERS)
    return place


@pytest.fixture(scope="module")
def sdist(place: Path) -> Path:
    # -I: this folder's mpn_rl/registry.py, mpn_rl/config.py and so on are not for setuptools to import.
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-I", "-c", script, place, cwd=place / "repository")
    [sdist] = place.glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def wheel(place: Path, sdist: Path) -> Path:
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", *build, sdist, cwd=place)
    [wheel] = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def scripts(place: Path, wheel: Path) -> Path:
    """The scripts of a new environment with the wheel; the packages that it requires are borrowed from this one."""
    venv = place / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=place)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    install = ["install", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    run(sys.executable, "-m", "pip", "--python", scripts / "python", *install, cwd=place)
    # A .pth adds folders behind the environment's own, and an editable install's finder is not among what it adds.
    paths = sysconfig.get_paths()
    packages = Path(run(scripts / "python", "-c", "import main; print(main.__file__)", cwd=place).strip()).parent
    (packages / "borrowed.pth").write_text("\n".join({paths["purelib"], paths["platlib"]}))
    return scripts


def test_the_sdist_is_the_repository(place: Path, sdist: Path) -> None:
    source = place / "repository"
    held = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {path for path in held if ".egg-info" not in path} <= packed


def test_the_wheel_has_every_module_configuration_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.py"), *ROOT.glob("mpn_rl/**/*.py")]}
    data = [
        path for folder in ("configs", "condor", "slurm") for path in (ROOT / folder).iterdir() if path.suffix != ".gz"
    ]
    assert modules | {f"mpn_rl/{path.relative_to(ROOT)}" for path in data if path.is_file()} <= names


def test_the_wheel_has_nine_top_level_names(wheel: Path) -> None:
    """Any other would hide a module of another project."""
    top = {name.partition("/")[0].removesuffix(".py") for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if ".dist-info" not in name} == {"mpn_rl", *(path.stem for path in ROOT.glob("*.py"))}
    assert len(top) == 10


def test_foreign_modules_of_common_names_break_nothing(scripts: Path, tmp_path: Path) -> None:
    """A project that has a config.py of its own, and PyPA's `build` or the like beside the toolkit."""
    for name in ("config", "build", "batch", "cli", "options", "report", "training", "sweep"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this module is not the toolkit's')\n")
    python = scripts / "python"
    run(python, "-c", "from mpn_dqn import MPNDQN; print(MPNDQN(obs_dim=4, hidden_dim=8, action_dim=2))", cwd=tmp_path)
    line = ["train", *TINY, "--experiment-name", "foreign", "--num-episodes", "4", "--buffer-size", "400"]
    run(python, "-c", "import sys; sys.path.insert(0, ''); import main; sys.exit(main.main(sys.argv[1:]))", *line,
        cwd=tmp_path)  # fmt: skip


def test_an_installed_toolkit_trains_and_evaluates_in_an_empty_folder(scripts: Path, tmp_path: Path) -> None:
    program = scripts / "mpn-rl"
    assert run(program, "--help", cwd=tmp_path).startswith("usage: mpn-rl [-h]")
    name = ["--experiment-name", "first"]
    said = run(program, "train", *name, *TINY, "--num-episodes", "4", "--buffer-size", "400", cwd=tmp_path)
    assert "next: mpn-rl eval --experiment-name first" in said
    assert "agent" in run(program, "eval", *name, "--num-eval-episodes", "2", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["experiments"]


def test_the_modules_that_run_are_the_installed_ones(scripts: Path, tmp_path: Path) -> None:
    modules = [*sorted(path.stem for path in ROOT.glob("*.py")), "mpn_rl", "mpn_rl.kernels.mpn", "mpn_rl.sweep.table"]
    script = "import importlib.util, sys\nfor name in sys.argv[1:]: print(importlib.util.find_spec(name).origin)"
    found = run(scripts / "python", "-c", script, *modules, cwd=tmp_path).splitlines()
    assert all(Path(path).is_relative_to(scripts.parent) for path in found) and len(found) == len(modules)


@pytest.mark.parametrize("name", ["published_cartpole", "configs/published_cartpole.json"])
def test_a_configuration_of_the_toolkit_is_selected_by_name(name: str, scripts: Path, tmp_path: Path) -> None:
    script = "import sys; from mpn_rl import config; print(config.read_config_file(sys.argv[1])['core']['eta'])"
    assert run(scripts / "python", "-c", script, name, cwd=tmp_path) == "0.05\n"


def test_an_installed_toolkit_trains_from_a_configuration_by_name(scripts: Path, tmp_path: Path) -> None:
    config = ["--config", "td3_dense", "--env-name", "Pendulum-v1", "--hidden-dim", "4", "--batch-size", "4"]
    short = ["--total-steps", "30", "--learning-starts", "20", "--max-episode-steps", "10", "--eval-episodes", "1"]
    said = run(scripts / "mpn-rl", "train", *config, *short, "--no-plot-training", cwd=tmp_path)
    assert "td3, replay of transitions" in said and "done: 30 steps" in said


def test_the_templates_are_checked_where_they_were_copied_to(scripts: Path, tmp_path: Path) -> None:
    """As the README has it: copy condor/, and let the last lines of its scripts start the installed program."""
    find = "from mpn_rl.config import package_data; print(package_data('condor'))"
    shutil.copytree(run(scripts / "python", "-c", find, cwd=tmp_path).strip(), tmp_path / "condor")
    for script in (tmp_path / "condor").glob("*.sh"):
        script.write_text(script.read_text().replace('exec "$python" main.py', f'exec "{scripts / "mpn-rl"}"'))
    said = run(scripts / "mpn-rl", "sweep", "check", "condor/train.job", cwd=tmp_path)
    assert said == "condor/train.job: 12 rows, no mistakes\n"
