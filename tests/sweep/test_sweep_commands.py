"""Sweeps: rows are drawn, checked before anything starts, run and resumed here, and summed up over seeds."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

import main
import visualize
from model_utils import Experiment, load_checkpoint, write_json
from mpn_rl import arguments
from mpn_rl.options import ConfigError
from mpn_rl.runs.state import STARTED, State, log_path, state_of
from mpn_rl.sweep import commands, summary, sweep_files
from mpn_rl.sweep.table import Planned, Sweep

ROOT = Path(__file__).parents[2]
PATIENCE = 90  # seconds
TINY = """
num-episodes = 300
hidden-dim = 4
embed-dim = 3
num-envs = 2
max-episode-steps = 30
eval-episodes = 2
eval-freq = 1000
checkpoint-freq = 500
learning-starts = 50
buffer-size = 400
sequence-length = 8
sequence-stride = 8
batch-size = 4
kernel = "reference"
plot-training = false
"""
GRID = f"""
command = "train"
seeds = [0, 1]
[fixed]{TINY}
[grid]
eta = [0.5, 1]
lambda-decay = [0.8, 0.9]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The message of a refused command; nothing on stdout, no traceback."""
    capsys.readouterr()
    assert main.main(["sweep", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


def said(capsys: pytest.CaptureFixture, *argv: str) -> str:
    capsys.readouterr()
    assert main.main(["sweep", *argv]) == 0
    return capsys.readouterr().out


# --- rows ---------------------------------------------------------------------------------------------------


def test_a_grid_is_every_setting_with_every_seed(capsys: pytest.CaptureFixture) -> None:
    Path("grid.toml").write_text(GRID)
    out = said(capsys, "expand", "grid.toml")
    assert out == "grid_args.txt: 8 rows, 4 settings\nqueue name, seed, eta, lambda_decay from grid_args.txt\n"
    assert Path("grid_args.txt").read_text().splitlines() == [
        "grid-eta0.5-lambda_decay0.8-s0, 0, 0.5, 0.8",
        "grid-eta0.5-lambda_decay0.8-s1, 1, 0.5, 0.8",
        "grid-eta0.5-lambda_decay0.9-s0, 0, 0.5, 0.9",
        "grid-eta0.5-lambda_decay0.9-s1, 1, 0.5, 0.9",
        "grid-eta1-lambda_decay0.8-s0, 0, 1, 0.8",
        "grid-eta1-lambda_decay0.8-s1, 1, 1, 0.8",
        "grid-eta1-lambda_decay0.9-s0, 0, 1, 0.9",
        "grid-eta1-lambda_decay0.9-s1, 1, 1, 0.9",
    ]
    assert "grid_args.txt exists; replace it with --overwrite" in refused(capsys, "expand", "grid.toml")
    assert said(capsys, "expand", "grid.toml", "--overwrite") == out


GRIDS = (
    GRID[: GRID.index("[grid]")].replace('kernel = "reference"', "")
    + """
[[grid]]
core = "mpn"
eta = [0.5, 1]
lambda-decay = [0.8, 0.9]
[[grid]]
core = ["lstm", "gru"]
double-dqn = false
"""
)


def test_each_of_several_grids_is_expanded_on_its_own(capsys: pytest.CaptureFixture) -> None:
    Path("grids.toml").write_text(GRIDS.replace("[0, 1]", "[3]"))
    out = said(capsys, "expand", "grids.toml")
    columns = "name, seed, core, eta, lambda_decay, double_dqn"
    assert out == f"grids_args.txt: 6 rows, 6 settings\nqueue {columns} from grids_args.txt\n"
    rows = Path("grids_args.txt").read_text().splitlines()
    assert rows == [
        "grids-corempn-eta0.5-lambda_decay0.8-s3, 3, mpn, 0.5, 0.8, -",
        "grids-corempn-eta0.5-lambda_decay0.9-s3, 3, mpn, 0.5, 0.9, -",
        "grids-corempn-eta1-lambda_decay0.8-s3, 3, mpn, 1, 0.8, -",
        "grids-corempn-eta1-lambda_decay0.9-s3, 3, mpn, 1, 0.9, -",
        "grids-corelstm-double_dqnfalse-s3, 3, lstm, -, -, --no-double-dqn",
        "grids-coregru-double_dqnfalse-s3, 3, gru, -, -, --no-double-dqn",
    ]
    for name in ("grids.toml", "grids_args.txt"):
        assert "6 rows, no mistakes" in said(capsys, "check", name)
        found = sweep_files.load(Path(name))
        found.check()
        configs = [planned.config for planned in found.planned]
        assert [config.core.name for config in configs] == ["mpn"] * 4 + ["lstm", "gru"]
        assert [config.learner.double_dqn for config in configs] == [True] * 4 + [False] * 2
        assert not any(word.startswith("--eta") for word in found.planned[4].argv)
    one = Path("one.toml")
    one.write_text(GRID.replace("[grid]", "[[grid]]"))
    assert [row.values[1:] for row in sweep_files.load(one).rows] == [row.values[1:] for row in loaded().rows]


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ("lambda-decay = [0.8, 0.9]", "lambda-decay = [0.8, 9]", "lambda_decay: --lambda-decay must lie"),
        ('core = ["lstm", "gru"]', 'core = "lstm"\neta = 0.5', "eta: --eta does nothing with"),
        ('core = ["lstm", "gru"]', 'core = "mpn"\nlambda-decay = [9, 1]', "lambda_decay: --lambda-decay must lie"),
        ('core = ["lstm", "gru"]', "hidden-dim = [3]", "'hidden_dim' is in [fixed], [grid] or [search] more than once"),
        ('core = ["lstm", "gru"]', "eta = []", "[grid] eta must be a list of values"),
        ('core = ["lstm", "gru"]', 'core = "-"', "[grid] core: '-' stands for an option that a row does not have"),
        ("double-dqn = false", "double-dq = false", "[grid] double-dq: no option of train that a sweep can set"),
        ('core = "mpn"', 'env-arg = { "a-b" = 1 }\n[[grid]]\nenv-arg = { a_b = 1 }', "the column of two options"),
        ("[[grid]]\ncore = [", "[[grid]]\n[[grid]]\ncore = [", None),
    ],
)
def test_a_mistake_in_one_of_several_grids_is_reported_at_its_line(
    line: str, instead: str, message: str | None, capsys: pytest.CaptureFixture
) -> None:
    assert line in GRIDS
    Path("grids.toml").write_text(GRIDS.replace(line, instead))
    if message is None:  # a grid without options is the setting of [fixed] alone
        assert "14 rows, 7 settings" in said(capsys, "expand", "grids.toml")
        return
    err = refused(capsys, "expand", "grids.toml")
    if ": --" in message:  # of a row
        place = 1 + Path("grids.toml").read_text().splitlines().index(instead.splitlines()[-1])
        message = f"grids.toml:{place}:1: {message}"
    assert message in err and os.listdir() == ["grids.toml"]


def test_a_summary_of_several_grids_leaves_absent_options_out(capsys: pytest.CaptureFixture) -> None:
    Path("grid.toml").write_text(GRIDS)
    found = sweep_files.load(Path("grid.toml"))
    found.check("ignore")
    fabricate(found, {planned.name: [0.5, i / 20] for i, planned in enumerate(found.planned)})
    assert "12 rows: 12 done" in said(capsys, "status", "grid.toml")
    out = said(capsys, "summary", "grid.toml", "--heatmap", "eta", "lambda_decay")
    assert "core gru, double_dqn --no-double-dqn has 2" in out
    table = read_csv("grid_summary.csv")
    assert [(row["core"], row["eta"]) for row in table[:3]] == [("gru", ""), ("lstm", ""), ("mpn", "1")]
    cells = read_csv("grid_heatmap_eta_lambda_decay.csv")
    assert [(cell["eta"], cell["lambda_decay"]) for cell in cells] == [
        *[("0.5", "0.8"), ("0.5", "0.9"), ("1", "0.8"), ("1", "0.9")]
    ]
    Path("out").mkdir()
    heatmap = ("--heatmap", "eta", "double_dqn", "--output", "out")
    assert "no complete row has both eta and double_dqn" in refused(capsys, "summary", "grid.toml", *heatmap)
    assert not os.listdir("out")


SEARCH = """
command = "train-neurogym"
seeds = 2
name = "r-{eta}-{hidden_dim}-{double_dqn}-{env_arg_dt}-{seed}"
[search]
n = 40
seed = 7
eta = { log-uniform = [0.01, 1.0] }
lambda-decay = { uniform = [0.7, 0.9] }
hidden-dim = { uniform = [2, 4] }
double-dqn = { choice = [true, false] }
env-arg = { dt = { choice = [50, 100] } }
"""


def test_a_random_search_draws_the_same_rows_again_and_more_draws_only_append() -> None:
    Path("r.toml").write_text(SEARCH)
    rows = [row.values for row in sweep_files.load(Path("r.toml")).rows]
    assert len(rows) == 80 and rows == [row.values for row in sweep_files.load(Path("r.toml")).rows]
    Path("r.toml").write_text(SEARCH.replace("n = 40", "n = 50"))
    assert [row.values for row in sweep_files.load(Path("r.toml")).rows][:80] == rows
    Path("r.toml").write_text(SEARCH.replace("seed = 7", "seed = 8"))
    assert [row.values for row in sweep_files.load(Path("r.toml")).rows] != rows
    eta, decay = (np.array([float(row[place]) for row in rows[::2]]) for place in (2, 3))
    assert eta.min() >= 0.01 and eta.max() <= 1.0 and 8 <= (eta < 0.1).sum() <= 32  # half of a log-uniform draw
    assert decay.min() >= 0.7 and decay.max() <= 0.9
    assert {row[4] for row in rows} == {"2", "3", "4"}


def test_true_and_key_values_become_the_flags_that_they_are() -> None:
    Path("r.toml").write_text(SEARCH)
    found = sweep_files.load(Path("r.toml"))
    assert found.check() == []
    first = found.planned[0]
    assert "--env-arg" in first.argv and {"--double-dqn", "--no-double-dqn"} & set(first.argv)
    assert {planned.config.learner.double_dqn for planned in found.planned} == {True, False}
    assert {planned.config.env.env_args["dt"] for planned in found.planned} == {50, 100}
    assert "-true-" in first.name or "-false-" in first.name


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ('command = "train"', 'command = "trane"', "command must be one of train, train-neurogym, got 'trane'"),
        ('command = "train"', "", "give either command = "),
        ("seeds =", "seedz =", "unknown key 'seedz'; did you mean 'seeds'?"),
        ("seeds = [0, 1]", "seeds = []", "seeds must be a list of whole numbers"),
        ("seeds = [0, 1]", "seeds = 10000000", "more than 100,000 rows"),
        ("seeds = [0, 1]", 'name = "x-{eto}"', "name = 'x-{eto}' may contain {eta}, {lambda_decay}, {seed}"),
        (
            "eta = [0.5, 1]",
            "etaa = [0.5, 1]",
            "[grid] etaa: no option of train that a sweep can set; did you mean '--eta'",
        ),
        ("eta = [0.5, 1]", "seed = [1]", "[grid] seed: no option of train that a sweep can set"),
        ("eta = [0.5, 1]", "eta = []", "[grid] eta must be a list of values"),
        (
            "eta = [0.5, 1]",
            'eta = ["a b"]',
            "[grid] eta: a value must be printable ASCII characters without blanks, commas, quotes, '$' and '\\', "
            "and no '#' at its start, got 'a b'",
        ),
        ("eta = [0.5, 1]", "hidden-dim = [3]", "'hidden_dim' is in [fixed], [grid] or [search] more than once"),
        ("[grid]", "[search]\nn = 3", "[search] eta must be { choice = [...] } or"),
        ("[grid]", "[search]\nn = 3\ngamma = { uniform = [1, 0] }", "uniform takes [LOW, HIGH], got [1, 0]"),
        ("[grid]", "[search]\ngamma = { uniform = [0, 1] }\n[grid]", "[search] needs n"),
        ("[grid]", "[grid", "Expected"),
    ],
)
def test_a_mistake_in_the_toml_file_is_one_line(
    line: str, instead: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert line in GRID
    Path("grid.toml").write_text(GRID.replace(line, instead))
    err = refused(capsys, "expand", "grid.toml")
    assert err.count("\n") == 1 and err.startswith("main.py sweep: grid.toml: ") and message in err
    assert sorted(path.name for path in Path().iterdir()) == ["grid.toml"]


def test_a_value_out_of_range_is_reported_at_its_key(capsys: pytest.CaptureFixture) -> None:
    Path("grid.toml").write_text(GRID.replace("[0.8, 0.9]", "[0.8, 1.5]").replace("eval-freq = 1000", "eval-freq = -1"))
    err = refused(capsys, "expand", "grid.toml")
    assert "grid.toml:23:1: lambda_decay: --lambda-decay must lie in [0.0, 1.0], got 1.5\n" in err
    assert "grid.toml:11:1: --eval-freq must be at least 0, got -1\n" in err
    assert not Path("grid_args.txt").exists()


def test_an_args_file_of_another_time_is_pointed_out(capsys: pytest.CaptureFixture) -> None:
    Path("grid.toml").write_text(GRID)
    said(capsys, "expand", "grid.toml")
    Path("grid.toml").write_text(GRID.replace("[0.5, 1]", "[0.5, 2]"))
    assert "grid_args.txt has other rows: expand again with --overwrite" in refused(capsys, "check", "grid.toml")
    assert "8 rows, no mistakes" in said(capsys, "check", "grid_args.txt")


# --- the check ----------------------------------------------------------------------------------------------

SCRIPT = '#!/bin/sh\nexec python main.py "$@"\n'
JOB = """executable = run.sh
arguments = train --experiment-name $(name) --seed $(seed) --eta $(eta) --lambda-decay $(lambda) --resume auto
should_transfer_files = NO
output = logs/$(Cluster)_$(Process).out
log    = logs/$(Cluster).log
queue name, seed, eta, lambda from rows.txt
"""


def a_job(rows: str, job: str = JOB) -> None:
    Path("run.sh").write_text(SCRIPT)
    Path("run.sh").chmod(0o755)
    Path("a.job").write_text(job)
    Path("rows.txt").write_text(rows)


def test_every_mistake_in_the_rows_is_reported_at_its_line_and_column(capsys: pytest.CaptureFixture) -> None:
    a_job(
        "a, 0, 0.5, 0.9\n"  # good
        "b, 1, 0.5\n"
        "\n"
        "# c, 1, 0.5, 0.9\n"
        'd, 1, "0.5", 0.9\n'
        "e, 1, 0.5, 0.9, 7\n"
        "f, 1, 0.5x, 1.5\n"  # two mistakes in one row
        "a, 1, 0.5, 0.9\n"
        "-g, 1, 0.5, 0.9\n"
        "h, , 0.5, 0.9\n"
        "i 1 0.5 0.9\n"  # blanks part values as well
        "j, 1, $(x), 0.9\n"
    )
    err = refused(capsys, "check", "a.job")
    assert err.splitlines() == [
        "rows.txt:2:7: 3 values for 4 columns: lambda would be the previous row's",
        "rows.txt:3:1: a blank line: HTCondor would start the previous row again",
        "rows.txt:4:1: a comment: HTCondor would start it as a row",
        "rows.txt:5:7: an args file must not contain '\"'",
        "rows.txt:6:15: 5 values for 4 columns",
        "rows.txt:7:7: eta: --eta: invalid number value: '0.5x'",
        "rows.txt:7:13: lambda: --lambda-decay must lie in [0.0, 1.0], got 1.5",
        "rows.txt:8:1: another row (line 1) has the same experiment name 'a'",
        "rows.txt:9:1: name: --experiment-name: expected one argument",
        "rows.txt:10:4: no value between two separators; separate values by ', '",
        "rows.txt:12:7: an args file must not contain '$'",
        "main.py sweep: 11 mistakes in a.job; nothing was started",
    ]


def test_every_duplicate_names_the_first_row_of_that_name(capsys: pytest.CaptureFixture) -> None:
    a_job("a, 0, 0.5, 0.9\nb, 0, 0.5, 0.9\na, 1, 0.5, 0.9\nb, 1, 0.5, 0.9\na, 2, 0.5, 0.9\n")
    assert refused(capsys, "check", "a.job").splitlines()[:-1] == [
        f"rows.txt:{line}:1: another row (line {first}) has the same experiment name '{name}'"
        for line, first, name in ((3, 1, "a"), (4, 2, "b"), (5, 1, "a"))
    ]


def test_of_two_options_in_a_message_the_first_one_is_blamed(capsys: pytest.CaptureFixture) -> None:
    """Both are columns; "did you mean" names further ones, which are not to blame."""
    job = JOB.replace("--lambda-decay $(lambda)", "--replay $(replay)").replace("--eta $(eta)", "--n-step $(eta)")
    a_job("a, 0, 3, transition\n", job.replace("eta, lambda from", "eta, replay from"))
    (line, _) = refused(capsys, "check", "a.job").splitlines()
    assert line.startswith("rows.txt:1:7: eta: --n-step does nothing with --replay transition")


def test_a_blank_line_at_the_end_is_a_row_too_many(capsys: pytest.CaptureFixture) -> None:
    a_job("a, 0, 0.5, 0.9\n\n")
    assert "rows.txt:2:1: a blank line" in refused(capsys, "check", "a.job")
    a_job("")
    assert "rows.txt:1:1: no rows" in refused(capsys, "check", "a.job")


def test_a_wrong_row_among_500_is_reported(capsys: pytest.CaptureFixture) -> None:
    rows = [f"r{i}, {i}, 0.5, 0.9\n" for i in range(500)]
    rows[411] = "r411, 411, 0.5, O.9\n"
    a_job("".join(rows))
    err = refused(capsys, "check", "rows.txt")
    assert err.splitlines()[0] == "rows.txt:412:17: lambda: --lambda-decay: invalid number value: 'O.9'"
    assert err.count("\n") == 2


def test_a_mistake_of_all_rows_is_reported_once_at_its_place(capsys: pytest.CaptureFixture) -> None:
    rows = "a, 0, 0.5, 0.9\nb, 1, 0.5, 0.9\n"
    a_job(rows, JOB.replace("--resume auto", "--resume auto --hidden-dim 0 --etaa 3"))
    err = refused(capsys, "check", "a.job")
    assert "a.job:2:13: no option '--etaa'; did you mean '--eta'" in err and err.count("--etaa") == 1
    a_job(rows, JOB.replace("--eta $(eta) ", "").replace(" --resume auto", ""))
    err = refused(capsys, "check", "a.job")
    assert "column 'eta' is not in the command line, so it has no effect" in err
    assert "the command line needs --resume auto" in err
    a_job(rows, JOB.replace("--experiment-name $(name)", "--threads $(name)"))
    assert "the command line needs --experiment-name $(COLUMN)" in refused(capsys, "check", "a.job")
    a_job(rows, JOB.replace("should_transfer_files", "should_transfer_file"))
    assert "a.job:3:1: 'should_transfer_file' is not a submit command" in refused(capsys, "check", "a.job")


def test_an_experiment_that_is_there_is_refused_unless_the_sweep_goes_on(capsys: pytest.CaptureFixture) -> None:
    a_job("a, 0, 0.5, 0.9\nb, 1, 0.5, 0.9\n")
    found = sweep_files.load(Path("a.job"))
    assert found.check() == []
    Experiment.create("b", "experiments", found.planned[1].config.to_dict())
    err = refused(capsys, "check", "a.job")
    assert "rows.txt:2:1: experiment 'b' exists in experiments/; choose another name, or use --resume" in err
    out = said(capsys, "check", "a.job", "--resume")
    assert out == "a.job: 2 rows, no mistakes; 1 have started and would continue\n"
    a_job("a, 0, 0.5, 0.9\nb, 1, 0.6, 0.9\n")
    err = refused(capsys, "check", "a.job", "--resume")
    assert "rows.txt:2:7: --resume continues 'b' as it was: --eta is 0.5, got 0.6" in err


def test_an_evaluation_needs_its_experiment(capsys: pytest.CaptureFixture) -> None:
    job = JOB.replace("train --exp", "eval --exp").replace(" --eta $(eta) --lambda-decay $(lambda) --resume auto", "")
    job = job.replace(", eta, lambda", "")
    a_job("a, 0\na, 1\nb, x\n", job)
    err = refused(capsys, "check", "a.job")
    assert "rows.txt:1:1: no experiment 'a' in experiments/" in err
    assert "rows.txt:3:4: seed: --seed: invalid whole number value: 'x'" in err
    assert "do not train; sweep run needs rows of train or train-neurogym" in refused(capsys, "run", "a.job")


def test_an_args_file_that_nothing_names_is_refused(capsys: pytest.CaptureFixture) -> None:
    Path("rows.txt").write_text("a, 0\n")
    assert "no TOML or submit file in its folder names it" in refused(capsys, "check", "rows.txt")
    assert "nothing.txt: No such file or directory" in refused(capsys, "check", "nothing.txt")
    Path("rows.txt").write_bytes(b"\xff\xfe\x00")
    assert "is not text in UTF-8" in refused(capsys, "check", "rows.txt")


def test_a_toml_file_fills_the_columns_of_a_submit_file(capsys: pytest.CaptureFixture) -> None:
    Path("sub").mkdir()
    os.chdir("sub")
    a_job("")
    Path("rows.txt").unlink()
    os.chdir("..")
    Path("sub/s.toml").write_text('job = "a.job"\nseeds = 2\n[fixed]\neta = 0.5\n[grid]\nlambda = [0.8, 0.9]\n')
    assert "queue name, seed, eta, lambda from rows.txt" in said(capsys, "expand", "sub/s.toml")
    assert Path("sub/rows.txt").read_text().splitlines()[1] == "s-lambda0.8-s1, 1, 0.5, 0.8"
    assert "4 rows, no mistakes" in said(capsys, "check", "sub/a.job")
    assert "4 rows, no mistakes" in said(capsys, "check", "sub/s.toml")
    Path("sub/s.toml").write_text('job = "a.job"\n[grid]\nlambd = [0.8, 0.9]\n')
    assert "sub/a.job has no column 'lambd'; did you mean 'lambda'" in refused(capsys, "expand", "sub/s.toml")
    grids = 'job = "a.job"\n[[grid]]\neta = 0.5\nlambda = [0.8, 0.9]\n[[grid]]\neta = 0.7\n'
    Path("sub/s.toml").write_text(grids + "lambda = 0.7\n")
    assert "sub/rows.txt: 3 rows" in said(capsys, "expand", "sub/s.toml", "--overwrite")
    assert Path("sub/rows.txt").read_text().splitlines()[2] == "s-eta0.7-lambda0.7-s0, 0, 0.7, 0.7"
    Path("sub/s.toml").write_text(grids)
    assert "column 'lambda' of sub/a.job has no values: give them in" in refused(capsys, "check", "sub/s.toml")


def test_the_sweeps_that_come_along_are_without_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    files = sorted(map(str, [*Path("configs").glob("*.toml"), *Path("condor").glob("*.toml")]))
    assert files
    for file in files:
        assert "no mistakes" in said(capsys, "check", file, "--experiments-dir", "/nowhere")


@pytest.mark.parametrize("action", ["expand", "check", "run", "status", "summary"])
def test_each_action_has_its_help(action: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        arguments.parse(["sweep", action, "--help"])
    text = capsys.readouterr().out
    assert "FILE" in text and all(len(line) <= 80 for line in text.splitlines())
    with pytest.raises(SystemExit):
        arguments.parse(["sweep", action, "x.toml", "--experiment-dir", "x"])
    assert "no option '--experiment-dir'; did you mean '--experiments-dir'" in capsys.readouterr().err


# --- states and summary -------------------------------------------------------------------------------------


def fabricate(found: Sweep, scores: dict[str, list[float]], accuracy: bool = True) -> None:
    """Folders of complete runs whose evaluations at steps 100, 200, ... are `scores`."""
    for planned in found.planned:
        if planned.name not in scores:
            continue
        experiment = Experiment.create(planned.name, planned.experiment.root, planned.config.to_dict())
        values = scores[planned.name]
        for place, value in enumerate(values, start=1):
            row = {"kind": "eval", "step": 100 * place, "episode": 300 if place == len(values) else place}
            experiment.append_metrics(row | {"return_mean": 10 * value, "accuracy": value if accuracy else None})
        final = experiment.checkpoint("final")
        final.parent.mkdir()
        final.write_bytes(b"weights")


def loaded(text: str = GRID) -> Sweep:
    Path("grid.toml").write_text(text)
    found = sweep_files.load(Path("grid.toml"))
    assert found.check("ignore") == []
    return found


def read_csv(name: str) -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


def test_each_state_shows_in_the_folder_alone(capsys: pytest.CaptureFixture) -> None:
    found = loaded()
    names = [planned.name for planned in found.planned]
    fabricate(found, {name: [0.5, 0.75] for name in names[:7]})
    done, running, interrupted, failed, local, other, unfinished, missing = (p.experiment for p in found.planned)
    for experiment in (running, interrupted, failed, local):
        experiment.checkpoint("final").unlink()
    failed.note_failure("Traceback\n  line 3\nValueError: the last line\n")
    Path("experiments/.sweep").mkdir()
    Path(f"experiments/.sweep/{local.name}.log").write_text("Ep 100\nKilled\nsweep: ended by signal 9\n")
    foreign = json.loads(other.config_path.read_text())
    foreign["run"]["seed"] = 9
    write_json(other.config_path, foreign)
    unfinished.metrics_path.write_text(unfinished.metrics_path.read_text().replace("300", "150") + '{"kind": "ev')
    with running.lock():
        states = {planned.name: state_of(planned.experiment, planned.args) for planned in found.planned}
        lines = said(capsys, "status", "grid.toml").splitlines()
    assert [states[name].state for name in names] == [
        *("done", "running", "interrupted", "failed", "failed", "failed", "interrupted", "missing")
    ]
    assert states[failed.name].note == "ValueError: the last line"
    assert states[local.name].note == "ended by signal 9"
    assert states[other.name].note.startswith("not this row's run: --resume continues")
    assert states[running.name].note.startswith(f"{os.getpid()} on ")
    assert states[unfinished.name].share == 0.5 and states[done.name].score == 0.75
    assert lines[1].split() == [done.name, "done", "100%", "0.750"]
    assert lines[-1] == "8 rows: 1 done, 1 running, 2 interrupted, 3 failed, 1 missing"


def test_statistics_are_worked_by_hand() -> None:
    """Of eight sorted values the middle four; of three, floor(3 / 4) = 0 are cut at each end."""
    of = summary.statistics([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])
    assert (of.n, of.mean, of.iqm) == (8, 16.25, (3 + 4 + 5 + 6) / 4)
    assert 1 <= of.iqm_low < of.iqm < of.iqm_high <= 100 and of.mean_low < of.mean < of.mean_high
    few = summary.statistics([1.0, 2.0, 6.0])
    assert few.mean == few.iqm == 3.0
    alone = summary.statistics([0.5])
    assert alone.mean == 0.5 and np.isnan(alone.mean_low)
    same = summary.statistics([0.5, 0.5, 0.5])
    assert same.mean == 0.5 and np.isnan([same.mean_low, same.mean_high, same.iqm_low]).all()
    half = 4.3027 * np.sqrt(7 / 3)  # t(0.975, 2) times the standard error of 1, 2, 6
    assert (few.mean_low, few.iqm_high) == (pytest.approx(3 - half, abs=1e-3), pytest.approx(3 + half, abs=1e-3))


def test_a_summary_ranks_settings_and_names_what_is_unfinished(capsys: pytest.CaptureFixture) -> None:
    found = loaded()
    names = [planned.name for planned in found.planned]
    fabricate(found, dict(zip(names, [[0.9, 0.5], [0.9, 0.7], [0.1, 0.9], [0.1, 0.8], [0, 0.2], [0, 0.4], [0, 0.3]],
                              strict=False)))  # fmt: skip
    out = said(capsys, "summary", "grid.toml", "--heatmap", "eta", "lambda_decay")
    lines = out.splitlines()
    assert lines[0] == (
        "7 of 8 rows complete, 4 of 4 settings; final greedy accuracy, of the last weights in the run's own "
        f"evaluations of {found.planned[0].config.run.eval_episodes} episodes"
    )
    assert "fewer than 5 seeds: eta 0.5, lambda_decay 0.9 has 2" in out and "may change the order" in out
    assert lines[1].split() == ["eta", "lambda_decay", "n", "IQM", "95", "%", "interval", "mean", "95", "%", "interval"]
    assert lines[2].split()[:6] == [
        "0.5",
        "0.9",
        "2",
        "0.850",
        "[0.215,",
        "1.485]",
    ]  # t(0.975, 1) = 12.7062, error 0.05
    assert f"1 of 8 rows are unfinished: {names[7]} (missing)" in out
    table = read_csv("grid_summary.csv")
    assert [(row["eta"], row["lambda_decay"], row["rows"], row["n"], row["mean"]) for row in table] == [
        *[("0.5", "0.9", "2", "2", "0.85"), ("0.5", "0.8", "2", "2", "0.6")],
        *[("1", "0.8", "2", "2", "0.3"), ("1", "0.9", "2", "1", "0.3")],
    ]
    assert table[3]["mean_low"] == ""  # one run has no interval
    runs = read_csv("grid_runs.csv")
    assert [run["state"] for run in runs] == ["done"] * 7 + ["missing"] and runs[7]["score"] == ""
    curves = read_csv("grid_curves.csv")
    first = [(row["step"], row["mean"]) for row in curves if (row["eta"], row["lambda_decay"]) == ("0.5", "0.8")]
    assert first == [("100", "0.9"), ("200", "0.6")]
    cells = read_csv("grid_heatmap_eta_lambda_decay.csv")
    assert {(row["eta"], row["lambda_decay"]): row["mean"] for row in cells}["0.5", "0.8"] == "0.6"
    for picture in ("grid_curves.png", "grid_heatmap_eta_lambda_decay.png"):
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    best = said(capsys, "summary", "grid.toml", "--score", "best").splitlines()
    assert "best greedy accuracy, of best_model.pt in" in best[0]
    assert "too high on average" in best[1]
    assert best[3].split()[:4] == ["0.5", "0.8", "2", "0.900"]  # the best evaluation of both seeds, not the last


def test_returns_are_summed_up_where_a_task_has_no_trials(capsys: pytest.CaptureFixture) -> None:
    found = loaded(GRID.replace("eta = [0.5, 1]", "").replace("lambda-decay = [0.8, 0.9]", ""))
    fabricate(found, {planned.name: [0.5, 1.5] for planned in found.planned}, accuracy=False)
    Path("out").mkdir()
    out = said(capsys, "summary", "grid.toml", "--output", "out")
    assert "final greedy return" in out and "15.000" in out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("grid_curves.csv", "grid_curves.png", "grid_runs.csv", "grid_summary.csv")
    ]


@pytest.mark.parametrize(
    ("tables", "axes", "dots"),
    [
        ("[search]\nn = 20\neta = { log-uniform = [0.01, 1.0] }\ngamma = { uniform = [0.5, 0.9] }", "eta gamma", True),
        ("[search]\nn = 5\neta = { log-uniform = [0.01, 1.0] }\ngamma = { uniform = [0.5, 0.9] }", "eta gamma", True),
        (
            "[search]\nn = 9\neta = { uniform = [0.1, 1.0] }\ndouble-dqn = { choice = [true, false] }",
            "eta double_dqn",
            True,
        ),
        ("[grid]\neta = [0.1, 0.2, 0.3]\ngamma = [0.5, 0.9]", "eta gamma", False),
        ("[grid]\neta = [0.1, 0.2, 0.3]\ngamma = [0.5]", "eta gamma", False),
    ],
)
def test_a_random_search_is_mapped_as_dots_and_a_grid_as_cells(
    tables: str, axes: str, dots: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    figures = []
    save = visualize.save_figure
    monkeypatch.setattr(visualize, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    found = loaded(GRID[: GRID.index("[grid]")].replace("[0, 1]", "[0]") + tables + "\n")
    complete = found.planned[:3] if not dots else found.planned  # an unfinished grid is still a grid
    fabricate(found, {planned.name: [0.5, i / 20] for i, planned in enumerate(complete)})
    out = said(capsys, "summary", "grid.toml", "--heatmap", *axes.split())
    assert ("... and 10 more in grid_summary.csv" in out) is (len(complete) == 20)
    assert len(Path(f"grid_heatmap_{axes.replace(' ', '_')}.csv").read_text().splitlines()) == 1 + len(complete)
    (drawn,) = figures[-1].axes[0].collections
    assert isinstance(drawn, PathCollection) is dots
    if dots:
        assert len(drawn.get_offsets()) == len(complete)
        assert sorted(drawn.get_array()) == pytest.approx([i / 20 for i in range(len(complete))])


def test_what_cannot_be_summed_up_is_one_line(capsys: pytest.CaptureFixture) -> None:
    found = loaded()
    assert "no row is complete yet" in refused(capsys, "summary", "grid.toml")
    fabricate(found, {found.planned[0].name: [0.5]})
    err = refused(capsys, "summary", "grid.toml", "--heatmap", "eta", "lambda")
    assert "--heatmap: no column 'lambda'; the columns are eta, lambda_decay" in err
    assert "--output nowhere: no such folder" in refused(capsys, "summary", "grid.toml", "--output", "nowhere")


# --- running ------------------------------------------------------------------------------------------------


def same(a: Path, b: Path) -> bool:
    """Whether two final models hold the same weights, bit for bit."""
    one, other = (load_checkpoint(path)["network"] for path in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen]]:
    """Processes that a test started, none of which outlives it."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen], *argv: str) -> subprocess.Popen:
    """main.py in a process that does not ignore SIGHUP, even where nohup started the tests."""
    command = [sys.executable, str(ROOT / "main.py"), *argv]
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    signal.signal(signal.SIGHUP, hangup)
    return processes[-1]


def wait_until(true, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def test_a_job_that_is_evicted_again_and_again_ends_as_the_untouched_one(processes: list[subprocess.Popen]) -> None:
    """SIGTERM saves and exits 85, SIGKILL falls back to the last checkpoint, time that is up exits 85."""
    found = loaded(GRID[: GRID.index("[grid]")].replace("seeds = [0, 1]", 'seeds = 1\nname = "whole"'))
    words = found.planned[0].argv
    line = [word.replace("whole", "moved") for word in words] + ["--checkpoint-exit-code", "85"]
    undisturbed = start(processes, *words)
    moved = Experiment("moved")
    metrics = moved.metrics_path
    for number, status in ((signal.SIGTERM, 85), (signal.SIGKILL, -9)):
        size = metrics.stat().st_size if metrics.exists() else 0
        job = start(processes, *line)
        wait_until(lambda size=size: metrics.exists() and metrics.stat().st_size > size + 300, job)
        job.send_signal(number)
        out, err = job.communicate(timeout=PATIENCE)
        assert job.returncode == status, (out, err)
        assert "Traceback" not in err and not moved.checkpoint("final").exists(), "ended before the signal came"
    for minutes, status in (("0.005", 85), ("60", 0)):
        job = start(processes, *line, "--checkpoint-exit-every", minutes)
        out, err = job.communicate(timeout=PATIENCE)
        assert job.returncode == status, (out, err)
    assert undisturbed.wait(PATIENCE) == 0
    assert metrics.read_bytes() == Path("experiments/whole/metrics.jsonl").read_bytes()
    assert same(moved.checkpoint("final"), Path("experiments/whole/checkpoints/final_model.pt"))
    before = {path: path.read_bytes() for path in moved.path.rglob("*") if path.is_file()}
    assert main.main(line) == 0  # a finished job that is started once more does no harm
    assert {path: path.read_bytes() for path in moved.path.rglob("*") if path.is_file()} == before


def test_one_exit_option_without_the_other_is_explained(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["train", "--experiment-name", "a", "--checkpoint-exit-every", "5"]) == 2
    assert "--checkpoint-exit-every needs --checkpoint-exit-code" in capsys.readouterr().err
    for flag, value, rule in (("code", "2", "lie in [3, 125]"), ("every", "0", "greater than 0")):
        with pytest.raises(SystemExit):
            arguments.parse(["train", f"--checkpoint-exit-{flag}", value])
        assert rule in capsys.readouterr().err
    assert not Path("experiments").exists()


def test_the_same_command_line_may_be_repeated_with_a_config_file(capsys: pytest.CaptureFixture) -> None:
    found = loaded(GRID[: GRID.index("[grid]")].replace("300", "4").replace("seeds = [0, 1]", "seeds = 1"))
    write_json(Path("run.json"), {**found.planned[0].config.to_dict()})
    line = ["train", "--config", "run.json", "--experiment-name", "again", "--num-episodes", "6", "--resume", "auto"]
    for _ in range(3):
        assert main.main(line) == 0
    assert "is complete: " in capsys.readouterr().out
    assert len(json.loads(Path("experiments/again/training_history.json").read_text())["episode_rewards"]) == 6


def test_rows_run_here_equal_single_runs_and_a_failure_has_its_reason(capfd: pytest.CaptureFixture) -> None:
    """Two workers; the task of one row does not exist, which no retry mends."""
    text = GRID[: GRID.index("[grid]")].replace("300", "60").replace("seeds = [0, 1]", "seeds = 1")
    Path("grid.toml").write_text(text + '[grid]\nenv-name = ["CartPole-v1", "NoSuch-v0", "Acrobot-v1"]\n')
    assert main.main(["sweep", "run", "grid.toml", "--workers", "2", "--retries", "5"]) == 1
    out, err = capfd.readouterr()
    assert "3 rows: 0 done, 3 to run, 2 workers" in out and "done  grid-env_nameCartPole-v1-s0  score " in out
    assert "failed  grid-env_nameNoSuch-v0-s0  main.py train: " in out and "1 of 3 rows failed" in err
    assert Path("experiments/.sweep/grid-env_nameNoSuch-v0-s0.log").read_text().count("exit status 2") == 1
    assert main.main(["sweep", "status", "grid.toml"]) == 0
    assert "3 rows: 2 done, 0 running, 0 interrupted, 1 failed, 0 missing" in capfd.readouterr().out
    found = sweep_files.load(Path("grid.toml"))
    found.check("ignore")
    alone = [word.replace("grid-env_nameCartPole-v1-s0", "alone") for word in found.planned[0].argv]
    assert main.main(alone) == 0
    one, other = found.planned[0].experiment, Experiment("alone")
    assert one.metrics_path.read_bytes() == other.metrics_path.read_bytes()
    assert same(one.checkpoint("final"), other.checkpoint("final"))
    assert main.main(["sweep", "run", "grid.toml", "--limit", "1"]) == 1  # only what is not complete
    assert "3 rows: 2 done, 1 to run, 1 worker" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("codes", "retries", "result", "starts"),
    [
        ([0], 0, "", 1),
        ([85, 85, 0], 0, "", 3),  # its own wish is no failure
        ([1, -9, 0], 2, "", 3),
        ([1, -9, 1], 1, "ended by signal 9", 2),
        ([2, 0], 5, "exit status 2", 1),
        ([75, 75, 75, 75, 0], 0, "", 5),  # a passing condition is no failure
        ([75, 75, 75, 75, 75, 0], 5, "exit status 75", 5),
        ([75, 1, 75, 0], 1, "", 4),
    ],
)
def test_a_row_is_started_as_often_as_it_may_be(
    codes: list[int], retries: int, result: str, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = loaded(GRID.replace("seeds = [0, 1]", "seeds = 1"))
    found.planned[0].args.checkpoint_exit_code = 85
    left = list(codes)
    waited: list[float] = []
    monkeypatch.setattr(commands.Children, "_start", lambda *_: left.pop(0))
    monkeypatch.setattr(commands, "state_of", lambda *_: State("done"))
    children = commands.Children(found, retries)
    monkeypatch.setattr(children.stopping, "wait", waited.append)
    reason = children.work(found.planned[0])
    assert reason.startswith(result) and bool(reason) is bool(result)
    assert len(codes) - len(left) == starts
    assert waited == list(commands.PAUSES_S[: codes.count(75)]) and waited == sorted(waited)


def test_a_row_that_ends_without_being_complete_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loaded(GRID.replace("seeds = [0, 1]", "seeds = 1"))
    monkeypatch.setattr(commands.Children, "_start", lambda *_: 0)
    assert main.main(["sweep", "run", "grid.toml", "--workers", "1"]) == 1
    assert "exit status 0, but the run is missing" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_time_of_a_row_is_its_own(
    workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Rows of 1, 3, 1 and 1 s, by a clock that is five times too fast."""
    found = loaded(GRID.replace("seeds = [0, 1]", "seeds = 1"))
    seconds = dict(zip((planned.name for planned in found.planned), (0.2, 0.6, 0.2, 0.2), strict=True))
    monkeypatch.setattr(commands.Children, "_start", lambda _, planned, *__: time.sleep(seconds[planned.name]) or 0)
    monkeypatch.setattr(commands, "state_of", lambda experiment, _: State("done"))
    monkeypatch.setattr(commands, "_open_rows", lambda table: ({}, table.planned))
    clock = time.monotonic
    monkeypatch.setattr(commands.time, "monotonic", lambda: 5 * clock())
    assert main.main(["sweep", "run", "grid.toml", "--workers", workers]) == 0
    times = dict(re.findall(r"done  (\S+)  \((\d+) s\)", capsys.readouterr().out))
    assert times.keys() == seconds.keys()
    assert all(abs(int(times[name]) - 5 * own) <= 1 for name, own in seconds.items())


def test_rows_left_for_later_are_not_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """75, as for everything that the same command line may complete later."""
    found = loaded(GRID)
    states = {planned.name: "done" for planned in found.planned}

    def state(experiment: Experiment, _: object) -> State:
        return State(states[experiment.name])

    def complete(_: object, planned: Planned, _enough: object = None) -> int:
        states[planned.name] = "done"
        return 0

    monkeypatch.setattr(commands, "state_of", state)
    monkeypatch.setattr(commands.Children, "_start", complete)
    assert main.main(["sweep", "run", "grid.toml"]) == 0
    states |= {found.planned[0].name: "running", found.planned[1].name: "missing", found.planned[2].name: "failed"}
    assert main.main(["sweep", "run", "grid.toml", "--limit", "1"]) == 75
    assert "not all rows are complete: 1 run elsewhere, 1 exceed --limit; the same" in capsys.readouterr().err
    assert main.main(["sweep", "run", "grid.toml"]) == 75
    states[found.planned[0].name] = "done"
    assert main.main(["sweep", "run", "grid.toml"]) == 0


def test_the_reason_of_a_killed_row_is_the_signal() -> None:
    """Neither what it printed last nor the error of an earlier start."""
    planned = loaded(GRID).planned[0]
    Experiment.create(planned.name, config=planned.config.to_dict())
    log = log_path(planned.experiment)
    log.parent.mkdir()
    earlier = f"{STARTED}python main.py train\nmain.py train: no space\nsweep: exit status 75\n"
    killed = (
        f"{STARTED}python main.py train\nnote: the kernel is compiled\nepisode 40\nsweep: ended by signal 9 (SIGKILL)\n"
    )
    planned.experiment.error_path.write_text("an error of another time\n")

    def note() -> str:
        return state_of(planned.experiment, planned.args).note

    log.write_text(earlier + killed)
    assert note() == "ended by signal 9 (SIGKILL)"
    log.write_text(earlier + killed.replace("ended by signal 9 (SIGKILL)", "exit status 2"))
    assert note() == "an error of another time"
    planned.experiment.error_path.unlink()
    assert note() == "episode 40"
    log.write_text(f"{earlier}{STARTED}python main.py train\nsweep: exit status 1\n")
    assert note() == "exit status 1"
    log.write_text(f"{earlier}{STARTED}python main.py train\nepisode 3\n")  # it is still running, or was stopped
    assert note() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL])
def test_a_sweep_that_a_signal_ends_leaves_no_process(number: int, processes: list[subprocess.Popen]) -> None:
    found = loaded(GRID[: GRID.index("[grid]")].replace("300", "100000").replace("seeds = [0, 1]", "seeds = 1"))
    running = start(processes, "sweep", "run", "grid.toml", "--workers", "1")
    experiment = found.planned[0].experiment
    wait_until(lambda: experiment.metrics_path.exists() and experiment.metrics_path.stat().st_size, running)
    assert experiment.holder() is not None
    running.send_signal(number)
    _, err = running.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    assert running.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + PATIENCE
    while number == signal.SIGKILL and experiment.holder() is not None:
        assert time.monotonic() < deadline, "the row goes on without its sweep"
        time.sleep(0.05)
    assert experiment.holder() is None and experiment.checkpoint("last").is_file()
    assert state_of(found.planned[0].experiment, found.planned[0].args).state == "interrupted"


def test_ctrl_c_lets_the_rows_save_and_leaves_no_process_behind(processes: list[subprocess.Popen]) -> None:
    text = GRID[: GRID.index("[grid]")].replace("300", "100000")
    found = loaded(text)
    running = start(processes, "sweep", "run", "grid.toml", "--workers", "2")
    folders = [planned.experiment for planned in found.planned]
    wait_until(
        lambda: all(folder.metrics_path.exists() and folder.metrics_path.stat().st_size for folder in folders), running
    )
    assert [state_of(planned.experiment, planned.args).state for planned in found.planned] == ["running"] * 2
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130 and "Traceback" not in err, err
    assert "stopping: the rows save their checkpoints" in err
    for planned in found.planned:
        assert planned.experiment.checkpoint("last").is_file() and planned.experiment.holder() is None
        assert state_of(planned.experiment, planned.args).state == "interrupted"


def test_a_run_that_dies_leaves_its_error_until_it_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpn_rl import training

    found = loaded(GRID[: GRID.index("[grid]")].replace("300", "6").replace("seeds = [0, 1]", "seeds = 1"))
    planned = found.planned[0]

    def fail(*_: object) -> None:
        raise ConfigError("cannot write last.pt: No space left on device; free some space and try again")

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "finish", fail)
        assert main.main(planned.argv) == 2
    state = state_of(planned.experiment, planned.args)
    assert (state.state, state.note[:19]) == ("failed", "cannot write last.p")
    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "advance", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            main.main(planned.argv)
    assert state_of(planned.experiment, planned.args).note == "ZeroDivisionError: integer division or modulo by zero"
    assert main.main(planned.argv) == 0
    assert state_of(planned.experiment, planned.args).state == "done"
    assert not planned.experiment.error_path.exists()
