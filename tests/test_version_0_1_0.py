"""Experiments of version 0.1.0, one per learner, still load, evaluate, render, are analysed and resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import main

FIXTURES = Path(__file__).parent / "fixtures" / "experiments_0.1.0"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())  # written by version 0.1.0


@pytest.fixture(params=EXPECTED)
def experiment(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of them: nothing is written where the fixtures are."""
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / request.param))


def run(experiment: Path, *argv: str) -> None:
    where = ["--experiment-name", experiment.name, "--experiments-dir", str(experiment.parent)]
    assert main.main([*argv, *where]) == 0


def test_its_final_weights_score_as_they_did(experiment: Path) -> None:
    run(experiment, "eval", "--checkpoint", "final", "--num-eval-episodes", "4")
    [file] = (experiment / "eval").glob("*.json")
    expected = EXPECTED[experiment.name]["return_mean"]
    assert json.loads(file.read_text())["return_mean"] == pytest.approx(expected, rel=1e-4)


def test_it_resumes_to_the_weights_that_it_reached_then(experiment: Path) -> None:
    """Sums of absolute weights, since processors differ in the last bits."""
    expected = EXPECTED[experiment.name]
    run(experiment, expected["command"], "--resume", "--total-steps", "360")
    saved = torch.load(experiment / "checkpoints" / "final_model.pt", weights_only=True)["network"]
    sums = {f"/network/{name}": float(weight.double().abs().sum()) for name, weight in saved.items()
            if weight.is_floating_point()}  # fmt: skip
    assert sums == pytest.approx(expected["resumed_weights"], rel=1e-3, abs=1e-4)


def test_it_is_rendered_and_analysed(experiment: Path) -> None:
    run(experiment, "render", "--max-steps", "5")
    assert list((experiment / "videos").glob("*.gif"))
    run(experiment, "analyze", "--num-episodes", "3")
    assert list((experiment / "analysis").glob("*.png"))
