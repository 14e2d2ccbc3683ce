"""What pip installs is what the repository holds."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_every_module_and_package_is_installed() -> None:
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert sorted(setuptools["py-modules"]) == sorted(path.stem for path in REPOSITORY.glob("*.py"))
    folders = {str(path.parent.relative_to(REPOSITORY)).replace("/", ".") for path in REPOSITORY.glob("mpn_rl/**/*.py")}
    assert set(setuptools["packages"]) == folders | set(setuptools["package-dir"])


def test_the_root_holds_eight_modules_and_no_folder_is_crowded() -> None:
    assert len(list(REPOSITORY.glob("*.py"))) == 8
    for folder in {path.parent for path in REPOSITORY.glob("mpn_rl/**/*.py")}:
        assert len(list(folder.glob("*.py"))) <= 16, folder


def test_every_requirement_has_a_tested_version() -> None:
    """Ranges are in pyproject.toml, pins in constraints.txt, and no pin names one machine's build."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {normal(pin.partition("==")[0]) for pin in pins}
    project = PYPROJECT["project"]
    asked = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {normal(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in asked}
    assert names - pinned == {"mpn-rl"}


def test_the_licence_is_the_same_everywhere() -> None:
    project, citation = PYPROJECT["project"], yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    [file] = project["license-files"]
    assert (REPOSITORY / file).read_text().startswith(f"{project['license']} License\n")
    assert citation["license"] == project["license"]
    assert f"include *.md *.txt *.yml {file} " in (REPOSITORY / "MANIFEST.in").read_text()


def test_the_installed_versions_fit_the_ranges() -> None:
    for text in PYPROJECT["project"]["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), text


def test_conda_gets_the_same_ranges() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    python, pip, *packages, by_pip = environment["dependencies"]
    assert pip == "pip" and python.startswith("python=")
    assert Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier.contains(python[len("python=") :])
    assert by_pip["pip"][-1] == "-e ."
    named_otherwise = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    listed = [Requirement(text) for text in (*packages, *by_pip["pip"][:-1])]
    ranges = {named_otherwise.get(asked.name, asked.name): asked.specifier for asked in listed}
    assert ranges == {asked.name: asked.specifier for asked in map(Requirement, PYPROJECT["project"]["dependencies"])}


def test_no_requirement_has_a_module_of_the_same_name() -> None:
    """Installed, the modules lie among those of other packages."""
    modules = {path.stem for path in REPOSITORY.glob("*.py")} | {"mpn_rl"}
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {normal(pin.partition("==")[0]) for pin in pins}
    owners = importlib.metadata.packages_distributions()
    suspects = {(name, owner) for name in modules & set(owners) for owner in owners[name] if normal(owner) in pinned}
    for name, owner in suspects:
        files = set(map(str, importlib.metadata.files(owner) or []))
        assert not files & {f"{name}.py", f"{name}/__init__.py"}, f"{owner} has a module {name} too"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
