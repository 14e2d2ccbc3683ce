"""`analyze list` and `analyze query` on experiments whose files are written by hand."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from main import main
from model_utils import Experiment
from mpn_rl import config as cfg

pytest.importorskip("duckdb")


def run_of(
    name: str, accuracies: list[float | None], flags: dict[str, object] | None = None, command: str = "train-neurogym"
) -> Experiment:
    """An experiment of 1,000 steps with these greedy evaluations, 100 steps apart; the return is 10 times as large."""
    config = cfg.make_config(command, {"total_steps": 1000, "num_envs": 10, **(flags or {})})
    experiment = Experiment.create(name, config=config.to_dict())
    for place, accuracy in enumerate(accuracies, 1):
        scores = {"return_mean": 10 * (accuracy or 0.5), "accuracy": accuracy}
        experiment.append_metrics({"kind": "eval", "step": 100 * place, "episode": place, **scores})
    return experiment


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def printed(argv: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(argv)
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def runs() -> None:
    run_of("a", [0.5, 0.9, 0.8])
    run_of("b", [0.7], {"core": "gru", "seed": 3, "env_args": {"sigma": 0.5}})
    run_of("c", [None], {"learning_rate": 5e-4}, "train")
    done = run_of("d", [0.6] * 10, {"seed": 2})
    done.checkpoint("final").parent.mkdir()
    done.checkpoint("final").write_bytes(b"")


def listed(argv: list[str], capsys: pytest.CaptureFixture) -> dict[str, dict]:
    status, out, _ = printed(["analyze", "list", "--json", *argv], capsys)
    assert status == 0
    return {row["experiment"]: row for row in json.loads(out)}


@pytest.mark.usefixtures("runs")
def test_a_row_tells_the_run_its_progress_and_its_scores(capsys: pytest.CaptureFixture) -> None:
    rows = listed([], capsys)
    assert list(rows) == ["a", "b", "c", "d"]
    row = rows["a"]
    assert (row["task"], row["core"], row["learner"], row["seed"]) == ("ContextDecisionMaking-v0", "mpn", "dqn", 0)
    assert (row["steps"], row["share"], row["state"]) == (300, 0.3, "interrupted")
    assert (row["score"], row["best"], row["measure"]) == (
        0.8,
        0.9,
        "accuracy",
    )  # of the last weights, of best_model.pt
    assert 0 <= row["age"] < 100
    assert (rows["c"]["score"], rows["c"]["measure"]) == (5.0, "return")
    assert (rows["d"]["state"], rows["d"]["share"]) == ("done", 1.0)
    assert rows["b"]["task"] == "ContextDecisionMaking-v0(sigma=0.5)"
    with Experiment("a").lock():
        assert listed([], capsys)["a"]["state"] == "running"


@pytest.mark.parametrize(
    ("flags", "accuracy", "share"),
    [
        ({"total_steps": 350}, 0.5, 1.0),  # 300 + an update of 2 x 50 steps would be more than 350
        ({"total_steps": 1000}, 0.5, 0.3),
        ({"total_steps": 1000, "target_accuracy": 0.8}, 0.79, 0.3),
        ({"total_steps": 1000, "target_accuracy": 0.8}, 0.8, 1.0),
    ],
)
def test_a_supervised_run_is_done_after_its_last_update_or_at_its_target(
    flags: dict[str, object], accuracy: float, share: float, capsys: pytest.CaptureFixture
) -> None:
    supervised = {"learner": "supervised", "batch_size": 2, "sequence_length": 50, **flags}
    config = cfg.make_config("train-neurogym", supervised)
    experiment = Experiment.create("a", config=config.to_dict())
    experiment.append_metrics({"kind": "eval", "step": 300, "episode": 6, "return_mean": 1.0, "accuracy": accuracy})
    experiment.checkpoint("final").parent.mkdir()
    experiment.checkpoint("final").write_bytes(b"")
    row = listed([], capsys)["a"]
    assert (row["share"], row["state"]) == (share, "done" if share == 1.0 else "interrupted")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--sort", "score"], ["c", "a", "b", "d"]),
        (["--sort", "core"], ["b", "a", "c", "d"]),
        (["--sort", "eta"], ["a", "c", "d", "b"]),  # a GRU has no eta
        (["--where", "core=gru"], ["b"]),
        (["--where", "task=Context*"], ["a", "b", "d"]),
        (["--where", "learning-rate=0.5e-3", "--where", "state=interrupted"], ["c"]),
        (["--where", "sigma=0.5"], ["b"]),
        (["--experiment-name", "[bc]"], ["b", "c"]),
    ],
)
def test_runs_are_sorted_and_selected_by_columns_and_options(
    argv: list[str], names: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert list(listed(argv, capsys)) == names


@pytest.mark.usefixtures("runs")
def test_the_table_has_one_line_per_run_and_csv_the_same_numbers(capsys: pytest.CaptureFixture) -> None:
    _, out, _ = printed(["analyze", "list"], capsys)
    head, first, *_ = out.splitlines()
    assert head.split() == ["experiment", "task", "core", "weights", "learner", "seed", "steps", "share", "state",
                            "score", "best", "measure", "age"]  # fmt: skip
    assert first.split()[:-2] == ["a", "ContextDecisionMaking-v0", "mpn", "-", "dqn", "0", "300", "30%", "interrupted",
                                  "0.800", "0.900", "accuracy"]  # fmt: skip
    assert len(out.splitlines()) == 5
    _, out, _ = printed(["analyze", "list", "--csv"], capsys)
    rows = {row["experiment"]: row for row in csv.DictReader(io.StringIO(out))}
    assert float(rows["a"]["score"]) == 0.8 and rows["b"]["task"] == "ContextDecisionMaking-v0(sigma=0.5)"


@pytest.mark.usefixtures("runs")
def test_sql_reads_configurations_metrics_and_evaluations(capsys: pytest.CaptureFixture) -> None:
    Path("experiments/a/eval").mkdir()
    Path("experiments/a/eval/best_seed0_1.json").write_text(json.dumps({"accuracy": 0.875, "trials": 400}))
    query = "SELECT core, count(*) AS n, max(score) AS top FROM runs WHERE learner = 'dqn' GROUP BY core ORDER BY core"
    assert printed(["analyze", "query", query, "--csv"], capsys)[1] == "core,n,top\ngru,1,0.7\nmpn,3,5.0\n"
    query = "SELECT experiment, max(accuracy) AS top FROM metrics WHERE kind = 'eval' AND experiment < 'c' GROUP BY ALL"
    _, out, _ = printed(["analyze", "query", f"{query} ORDER BY 1", "--json"], capsys)
    assert json.loads(out) == [{"experiment": "a", "top": 0.9}, {"experiment": "b", "top": 0.7}]
    query = "SELECT e.accuracy, r.eta FROM evals e JOIN runs r USING (experiment)"
    _, out, _ = printed(["analyze", "query", query, "--json"], capsys)
    assert json.loads(out) == [{"accuracy": 0.875, "eta": 1.0}]
    _, out, _ = printed(["analyze", "query", query], capsys)
    assert [line.split() for line in out.splitlines()] == [["accuracy", "eta"], ["0.875", "1.000"]]


def test_without_experiments_both_say_so_or_give_an_empty_table(capsys: pytest.CaptureFixture) -> None:
    assert printed(["analyze", "list"], capsys) == (0, "no experiment in experiments/ matches\n", "")
    assert printed(["analyze", "query", "SELECT count(*) AS n FROM metrics", "--csv"], capsys)[1] == "n\n0\n"
    assert not os.path.exists("experiments")


@pytest.mark.usefixtures("runs")
def test_damaged_experiments_are_named_and_left_out(capsys: pytest.CaptureFixture) -> None:
    Path("experiments/b/config.json").write_text("{")
    with open("experiments/a/metrics.jsonl", "a") as file:
        file.write("nonsense\n")
    status, out, err = printed(["analyze", "list", "--json"], capsys)
    assert status == 0 and [row["experiment"] for row in json.loads(out)] == ["a", "c", "d"]
    assert err.splitlines() == [
        "note: experiments/a/metrics.jsonl line 4 is not a JSON object; remove or restore it",
        "note: b is left out: experiments/b/config.json does not hold a JSON object; restore or delete it",
    ]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["query"], "needs SQL"),
        (["query", "SELECT nothing FROM runs"], "nothing"),
        (["query", "COPY runs TO 'stolen.csv'"], "disabled"),
        (["query", "SELECT * FROM read_csv('/etc/passwd')"], "disabled"),
        (["list", "--where", "core"], "KEY=VALUE"),
        (["list", "--where", "sigme=1"], "did you mean 'sigma'"),
        (["list", "--sort", "scor"], "did you mean 'score'"),
        (["list", "--experiment-name", "z"], "no experiment 'z'"),
        (["list", "--seed", "3"], "--seed belongs to"),
        (["list", "SELECT 1"], "SQL belongs to analyze query"),
        (["collect"], "--experiment-name is required"),
        (["plot", "--experiment-name", "a", "--csv"], "--csv belongs to analyze list or query"),
    ],
)
def test_mistakes_are_one_line_and_create_nothing(argv: list[str], text: str, capsys: pytest.CaptureFixture) -> None:
    status, out, err = printed(["analyze", *argv], capsys)
    assert status == 2 and out == "" and text in err and err.count("\n") == 1
    assert os.listdir() == ["experiments"]


def test_a_query_of_a_run_that_writes_its_last_line_reads_the_others(capsys: pytest.CaptureFixture) -> None:
    run_of("a", [0.5, 0.9])
    with open("experiments/a/metrics.jsonl", "a") as file:
        file.write('{"kind": "eval", "ste')
    status, out, err = printed(["analyze", "query", "SELECT max(step) AS last FROM metrics", "--csv"], capsys)
    assert (status, out, err) == (0, "last\n200\n", "")
