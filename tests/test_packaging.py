"""What pip installs is what the repository holds."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_every_module_in_the_root_is_installed() -> None:
    modules = sorted(path.stem for path in REPOSITORY.glob("*.py"))
    assert sorted(PYPROJECT["tool"]["setuptools"]["py-modules"]) == modules


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


def test_the_installed_versions_fit_the_ranges() -> None:
    from packaging.requirements import Requirement

    for text in PYPROJECT["project"]["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), text


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
