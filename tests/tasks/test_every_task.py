"""Every NeuroGym task that can be trained is trained, evaluated, filmed and analysed without an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import main
from neurogym_wrapper import list_tasks

STEPS = 60  # of an episode: several trials of most tasks, and a part of one of the longest
TASKS = {task.name: task for task in list_tasks() if task.trainable}
TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--num-episodes", "2", "--eval-episodes", "1",
        "--max-episode-steps", str(STEPS), "--learning-starts", "80", "--buffer-size", "200", "--sequence-length", "10",
        "--sequence-stride", "10", "--burn-in", "4", "--batch-size", "4", "--kernel", "reference",
        "--no-plot-training"]  # fmt: skip
OF_VECTORS = ["--algo", "td3", "--core", "mpn", "--replay", "sequence"]  # a task whose actions are vectors


def test_there_are_as_many_tasks_as_neurogym_has() -> None:
    assert len(TASKS) == 50


@pytest.fixture
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few pixels and no layout, which takes most of the time and has its own tests."""
    save = Figure.savefig

    def save_coarsely(figure: Figure, path: Path) -> None:
        figure.set_layout_engine("none")
        save(figure, path, dpi=20)

    monkeypatch.setattr(Figure, "savefig", save_coarsely)


@pytest.mark.usefixtures("coarse_pictures")
@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_evaluates_renders_and_is_analysed(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    name = ["--experiment-name", "run"]
    options = TINY + (OF_VECTORS if TASKS[task].continuous else [])
    assert main.main(["train-neurogym", "--env-name", task, *name, *options]) == 0
    capsys.readouterr()
    assert main.main(["eval", *name, "--num-eval-episodes", "1", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["length_mean"] == STEPS and scores["episodes"] == 1
    assert main.main(["eval", *name, "--num-eval-episodes", "1"]) == 0
    assert main.main(["render", *name, "--max-steps", "2"]) == 0
    assert main.main(["analyze", *name, "--num-episodes", "2"]) == 0
    folder = tmp_path / "experiments" / "run"
    assert (folder / "videos" / "episode_0.gif").stat().st_size > 0
    assert {"pca_variance.png", "trajectories_hidden.png", "trajectories_M.png"} <= {
        path.name for path in (folder / "analysis").iterdir()
    }
    with np.load(folder / "analysis" / "activity.npz", allow_pickle=False) as activity:
        assert len(activity["actions"]) == 2 * STEPS
        assert all(activity[key].dtype.kind in "biufU" for key in activity.files)
