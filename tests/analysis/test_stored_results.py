"""Files that `analyze` reads may be damaged, hostile or of another agent: one line, and nothing else is touched."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording

import main
from model_utils import Experiment, save_checkpoint
from mpn_rl import config as cfg
from mpn_rl import evaluation, registry
from mpn_rl.analysis import compare_runs, stages
from mpn_rl.analysis.pages import probe_pages, standard_pages
from mpn_rl.options import ConfigError

CONFIG = cfg.make_config(
    "train-neurogym", {"env_name": "PerceptualDecisionMaking-v0", "hidden_dim": 4, "embed_dim": 3, "core": "gru"}
)


PROBED = ("delay", "input_noise", "state_noise", "lesion", "frozen")  # curves of probes.json


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment with an untrained best_model.pt and a small recording."""
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.create("run", tmp_path / "experiments", CONFIG.to_dict())
    (experiment.path / "checkpoints").mkdir()
    weights(experiment, 0.0)
    np.savez(experiment.analysis_dir / "activity.npz", **make_recording(episodes=6, per_episode=2))  # type: ignore[arg-type]
    return experiment


def weights(experiment: Experiment, bias: float) -> None:
    network = registry.make_network(CONFIG, registry.spaces(registry.make_env(CONFIG.env))).requires_grad_(False)
    network.head.bias += bias  # type: ignore[operator]
    save_checkpoint(experiment.checkpoint("best"), {"network": network.state_dict(), "step": 1, "score": 0.0})


def analyze(*options: str) -> int:
    return main.main(["analyze", *options])


def error_of(capsys: pytest.CaptureFixture) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


# --- writes stay inside ---------------------------------------------------------------------------------------


def test_an_array_cannot_name_a_file_outside_the_experiment(run: Experiment, capsys: pytest.CaptureFixture) -> None:
    outside = [run.root.parent / "thesis.png", run.root.parent / "thesis.pdf"]
    for path in outside:
        path.write_text("mine")
    evil = make_recording(episodes=6, per_episode=2) | {"state_x/../../../../thesis": np.zeros((108, 2))}
    np.savez(run.analysis_dir / "activity.npz", **evil)  # type: ignore[arg-type]
    assert analyze("plot", "--experiment-name", "run") == 2
    assert "is no name of an array" in error_of(capsys)
    assert [path.read_text() for path in outside] == ["mine", "mine"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a.b", "x" * 101, "a b"])
def test_a_page_has_a_plain_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a page cannot have the name"):
        stages.save(standard_pages.Page(name, "state", "X", missing="not available: x"), tmp_path, ["png"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["analysis", "eval", "videos", "plots"])
def test_a_folder_that_is_a_link_is_not_written_through(name: str, run: Experiment, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    if (run.path / name).exists():
        (run.path / name).rename(tmp_path / "aside")
    (run.path / name).symlink_to(tmp_path / "documents")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        {"analysis": lambda: run.analysis_dir, "eval": lambda: run.eval_dir, "videos": lambda: run.videos_dir,
         "plots": lambda: run.plots_dir}[name]()  # fmt: skip


def test_names_with_signs_are_recorded_and_drawn_under_plain_names(run: Experiment) -> None:
    from mpn_rl.analysis.recording import ActivityWriter

    episode = {name: array for name, array in make_recording(1, 5).items() if name != "dt_ms"}
    episode["period"] = np.array([f"{name}\n" if name == "delay" else name for name in episode["period"]])
    episode |= {"info_a/b": np.zeros(45), "condition_$x^$": np.repeat([1.0, 2, 3, 1, 2], 9)}
    with ActivityWriter(run.analysis_dir) as writer:
        assert writer.add(episode)
        writer.write(run.analysis_dir / "activity.npz", dt_ms=100.0)
    with np.load(run.analysis_dir / "activity.npz") as archive:
        assert {"info_a_b", "condition__x__"} <= set(archive.files)
    assert analyze("plot", "--experiment-name", "run") == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("period", np.array([f"p{i}" for i in range(108)])),  # no periods: one per step
        ("actions", np.arange(108) * 7919 % 100_003),
        ("actions", np.zeros((108, 2))),  # vectors
        ("condition_coh", np.linspace(-1e15, 1e15, 108)),
        ("info_time", np.full(108, np.inf)),
        ("ground_truth", np.arange(108)),
        ("correct", np.full(108, np.nan)),
        ("dt_ms", np.array(0.0)),
    ],
)
def test_unusual_recordings_are_drawn(name: str, values: np.ndarray, run: Experiment) -> None:
    recording = make_recording(episodes=6, per_episode=2) | {name: values}
    np.savez(run.analysis_dir / "activity.npz", **recording)  # type: ignore[arg-type]
    assert analyze("plot", "--experiment-name", "run") == 0


def test_text_with_dollar_signs_is_drawn_as_it_is(run: Experiment) -> None:
    recording = make_recording(episodes=6, per_episode=2)
    names = {"stimulus": "$\\frac{$", "delay": "_^{"}
    recording["period"] = np.array([names.get(name, name) for name in recording["period"]])
    np.savez(run.analysis_dir / "activity.npz", **recording)  # type: ignore[arg-type]
    assert analyze("plot", "--experiment-name", "run") == 0


# --- wrong contents -------------------------------------------------------------------------------------------

N = 108  # steps of the recording


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("episode", np.arange(N)[::-1]),
        ("episode", np.full(N, 10**9)),
        ("episode", np.full(N, 0.5)),
        ("hidden", np.full((N, 3), np.nan)),
        ("hidden", np.full((N, 3), 1e200)),
        ("hidden", np.zeros((N, 0))),
        ("hidden", np.zeros((N, 2, 2))),
        ("state_M", np.array([["a"]] * N)),
        ("observations", np.zeros(N)),
        ("actions", np.array(["left"] * N)),
        ("new_trial", np.arange(N)),
        ("period", np.arange(N)),
        ("dt_ms", np.array([1.0, 2.0])),
        ("dt_ms", np.array(np.nan)),
        ("ground_truth", np.full(N, -5)),
        ("rewards", np.full(N, np.inf)),
    ],
)
def test_a_recording_of_wrong_contents_is_one_line(
    name: str, array: np.ndarray, run: Experiment, capsys: pytest.CaptureFixture
) -> None:
    damaged = make_recording(episodes=6, per_episode=2) | {name: array}
    np.savez(run.analysis_dir / "activity.npz", **damaged)  # type: ignore[arg-type]
    assert analyze("plot", "--experiment-name", "run") == 2
    error = error_of(capsys)
    assert "activity.npz" in error and "again" in error
    assert [path.name for path in run.analysis_dir.iterdir()] == ["activity.npz"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"head.weight": np.zeros((3, 5))},
        {"head.weight": np.full((3, 8), np.nan)},
        {"head.weight": np.array([["x"]])},
        {"encoder.embedding.weight": np.zeros((3, 9)), "encoder.embedding.bias": np.zeros(3)},
        {"encoder.embedding.weight": np.zeros(3)},
        {"core/../x": np.zeros(3)},
    ],
)
def test_weights_that_do_not_fit_the_recording_are_one_line(
    arrays: dict[str, np.ndarray], run: Experiment, capsys: pytest.CaptureFixture
) -> None:
    np.savez(run.analysis_dir / "network.npz", **arrays)  # type: ignore[arg-type]
    assert analyze("plot", "--experiment-name", "run") == 2
    error = error_of(capsys)
    assert "network.npz" in error and "run analyze collect again" in error


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("probes.json", {"measure": "accuracy", "lesion": {"x": [1], "y": {}}}),
        ("probes.json", {}),
        ("probes.json", {"measure": "x", "relaxation": {"silence": 3}}),
        ("collected.json", {"seed": "x"}),
        ("collected.json", {"checkpoint": ["x"]}),
    ],
)
def test_settings_and_probes_of_wrong_contents_are_one_line(
    file: str, content: dict[str, Any], run: Experiment, capsys: pytest.CaptureFixture
) -> None:
    (run.analysis_dir / file).write_text(json.dumps(content))
    assert analyze("report", "--experiment-name", "run") == 2
    error = error_of(capsys)
    assert file in error and "again" in error


@pytest.mark.parametrize("absent", [(), *[(name,) for name in PROBED], tuple(PROBED)])
def test_every_probe_may_be_missing(absent: tuple[str, ...]) -> None:
    """Also one of two that share a page."""
    point = {"value": [0.5], "low": [0.4], "high": [0.6], "n": [9.0]}
    curve = {"x": [1.0], "y": point, "xlabel": "x", "ylabel": "accuracy", "chance": 0.5, "marks": {}}
    probes = {**dict.fromkeys(PROBED, curve), "delay": {**curve, "trained": 100.0}, "measure": "accuracy"}
    there = {name: value for name, value in probes.items() if name not in absent}
    made = {page.name: not page.missing for page in probe_pages.pages(there, "title")}
    pairs = {"noise": {"input_noise", "state_noise"}, "lesions": {"lesion", "frozen"}, "delay": {"delay"}}
    assert made == {**{page: bool(names - {*absent}) for page, names in pairs.items()}, "relaxation": False}


def test_wrong_metrics_are_one_line(run: Experiment, capsys: pytest.CaptureFixture) -> None:
    run.metrics_path.write_text('{"kind": "eval", "step": 1}\n{"kind": "episode", "step": "x"}\n')
    assert analyze("plot", "--experiment-name", "run") == 2
    assert "metrics.jsonl line 1: return_mean is missing" in error_of(capsys)


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("plot --checkpoint missing.pt", "--checkpoint belongs to analyze collect, probe, compare or report"),
        ("plot --seed 0", "--seed belongs to analyze collect, probe, compare or report"),
        ("plot --num-episodes 5", "--num-episodes belongs to analyze collect or report"),
        ("collect --format svg", "--format belongs to analyze plot, probe, compare or report"),
        ("collect --color-by time", "--color-by belongs to analyze plot or report"),
        ("collect --lesion-controls", "--lesion-controls belongs to analyze probe or report"),
        ("collect --num-trials 400", "--num-trials belongs to analyze probe or report"),
        ("probe --epsilon 0", "--epsilon belongs to analyze collect or report"),
        ("probe --no-probes", "--probes belongs to analyze report"),
        ("compare --states M", "--states belongs to analyze collect or report"),
        ("report --num-eval-episodes 5", "--num-eval-episodes belongs to analyze compare"),
        ("compare --overwrite", "--overwrite needs --output"),
        ("--delays 100", "--delays belongs to analyze probe or report"),
    ],
)
def test_an_option_of_another_stage_is_a_mistake(
    options: str, message: str, run: Experiment, capsys: pytest.CaptureFixture
) -> None:
    assert analyze(*options.split(), "--experiment-name", "run") == 2
    assert message in error_of(capsys)


def test_a_literal_name_with_brackets_is_no_pattern(run: Experiment) -> None:
    Experiment.create("run[1]", run.root, CONFIG.to_dict())
    Experiment.create("run1", run.root, CONFIG.to_dict())
    assert Experiment.matching(("run[1]",), run.root) == ["run[1]"]
    assert Experiment.matching(("ru[n]1",), run.root) == ["run1"]


# --- scores ---------------------------------------------------------------------------------------------------


def test_compare_never_takes_the_scores_of_other_weights(run: Experiment, capsys: pytest.CaptureFixture) -> None:
    argv = ("compare", "--experiment-name", "run", "--num-eval-episodes", "2", "--checkpoint", "best")
    assert analyze(*argv) == 0 and "evaluating run" in capsys.readouterr().err
    assert analyze(*argv) == 0 and "evaluating" not in capsys.readouterr().err
    weights(run, 5.0)
    assert analyze(*argv) == 0 and "evaluating run" in capsys.readouterr().err
    other = run.path / "elsewhere"
    other.mkdir()
    run.checkpoint("best").rename(other / "best.pt")
    weights(run, 7.0)  # another network, whose file has the same stem
    assert analyze(*argv, "--checkpoint", str(other / "best.pt")) == 0
    assert analyze(*argv) == 0 and "evaluating run" in capsys.readouterr().err
    config = json.loads(run.config_path.read_text())
    config["run"]["reset_state_on_trial"] = not config["run"]["reset_state_on_trial"]
    run.config_path.write_text(json.dumps(config))
    assert analyze(*argv) == 0 and "evaluating run" in capsys.readouterr().err
    for file in run.eval_dir.iterdir():
        file.write_text('{"accuracy": "high"}')
    assert analyze(*argv) == 2
    assert "accuracy must be a number" in error_of(capsys)


@pytest.mark.parametrize("stage", ["compare", "collect", "report"])
def test_a_checkpoint_larger_than_the_memory_is_refused_before_it_is_read(
    run: Experiment, stage: str, capsys: pytest.CaptureFixture
) -> None:
    with open(run.checkpoint("best"), "r+b") as file:
        file.truncate(2**40)  # which takes no room on the disk
    assert analyze(stage, "--experiment-name", "run", "--checkpoint", "best") == 2
    assert "has 1,099,511,627,776 bytes, more than the" in error_of(capsys)


def test_compare_replaces_files_of_others_only_with_overwrite(run: Experiment, capsys: pytest.CaptureFixture) -> None:
    folder = run.root.parent / "results"
    folder.mkdir()
    (folder / "runs.csv").write_text("mine")
    argv = ("compare", "--experiment-name", "run", "--num-eval-episodes", "1", "--checkpoint", "best")
    argv += ("--output", str(folder))
    assert analyze(*argv) == 2
    assert "exists; replace it with --overwrite" in error_of(capsys)
    assert (folder / "runs.csv").read_text() == "mine"
    assert analyze(*argv, "--overwrite") == 0
    Experiment.create("compare-gru", run.root, CONFIG.to_dict())
    assert analyze(*argv[:-2]) == 2
    assert "is an experiment" in error_of(capsys)


def test_a_table_is_csv_whatever_the_names_hold() -> None:
    rows = [['a "quoted", name', "line\nbreak", "semi;colon", None, 0.5], ["r\rn", "", "'", float("nan"), 1]]
    text = compare_runs.as_csv(["a", "b", "c", "d", "e"], rows).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["a", "b", "c", "d", "e"],
        ['a "quoted", name', "line\nbreak", "semi;colon", "", "0.5"],
        ["r\rn", "", "'", "", "1"],
    ]


def test_a_return_that_is_not_a_number_is_null_in_json(
    run: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    played = evaluation.evaluate

    def broken(*args: Any) -> Any:
        result = played(*args)
        return result._replace(returns=np.where(np.arange(len(result.returns)) == 0, np.nan, np.inf))

    monkeypatch.setattr(evaluation, "evaluate", broken)
    argv = ["eval", "--experiment-name", "run", "--num-eval-episodes", "2"]
    assert main.main([*argv, "--json"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    scores = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert scores["return_mean"] is None and scores["return_ci95"] == [None, None] and scores["episodes"] == 2
    assert main.main(argv) == 0 and "2 episodes" in capsys.readouterr().out
