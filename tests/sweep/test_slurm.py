"""The array scripts of slurm/: bash runs what `sweep` reads, and `check` finds what sbatch accepts without an error."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import main
from mpn_rl.sweep import sweep_files

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch"))
SHOW = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with slurm/ and a Python that prints its arguments; the working folder."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "main.py").touch()
    (tmp_path / "python").write_text(SHOW)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / ".slurm_logs").mkdir()
    monkeypatch.setenv("MPN_RL_PYTHON", str(tmp_path / "python"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "dummy.sbatch"])
def test_a_task_runs_the_row_that_sweep_reads(script: str, project: Path) -> None:
    table = sweep_files.load(Path("slurm", script))
    assert table.job is not None and table.job.mistakes() == [] and len(table.rows) == 12
    for number in (0, 11):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number + 1)}
        done = subprocess.run(["bash", f"slurm/{script}"], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["main.py", *table.plan(table.rows[number]).argv]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_the_twin_of_a_template_for_condor(script: str, project: Path) -> None:
    ours = sweep_files.load(ROOT / "slurm" / script)
    twin = sweep_files.load(ROOT / "condor" / script.replace(".sbatch", ".job"))
    assert (ours.columns, ours.rows) == (twin.columns, twin.rows)
    words = list(twin.command or [])
    if "--checkpoint-exit-every" in words:  # Slurm's time limit does this
        place = words.index("--checkpoint-exit-every")
        del words[place : place + 2]
    assert (ours.command or []) == words


def test_the_dummy_runs(project: Path) -> None:
    (project / "slurm/dummy_args.txt").write_text("one, 0\n")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", "slurm/dummy.sbatch"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("one on ") and "is not visible here" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("--array=1-12", "--array=0-11", "5:1: --array must be 1-12, a task per row, got 0-11"),
        ("--array=1-12", "--array=1-12%4", ""),
        ("%x_%A_%a", "%x_%A", "6:1: --output needs %A and %a, or other tasks overwrite it"),
        (".slurm_logs", "logs", "6:1: no folder logs, so tasks would fail; mkdir -p logs"),
        ('"$eta"', '"$etta"', "$etta is not a column; did you mean 'eta'"),
        (" --resume auto", "", "the command line needs --resume auto"),
        (" --checkpoint-exit-code 85", "", "the command needs --checkpoint-exit-code 85"),
        ("#SBATCH --requeue", "", "without --requeue and --signal=B:TERM@120"),
        ("B:TERM", "TERM", "without --requeue and --signal=B:TERM@120"),
        ("run.sh train", "run.sh tain", "the command must be one of train,"),
        ("slurm/train_args.txt", "slurm/rows.txt", "no args file slurm/rows.txt"),
        ("exec ", "", "sweep reads scripts with one line"),
        ('"$name"', '"$name', "No closing quotation"),
    ],
)
def test_each_mistake_is_found(old: str, new: str, message: str, project: Path, capsys: pytest.CaptureFixture) -> None:
    path = project / "slurm/train.sbatch"
    text = path.read_text()
    assert old in text
    # Line 2 of the template is a comment with the same words.
    path.write_text(text.split("\n")[0] + "\n#\n#\n" + "\n".join(text.split("\n")[2:]).replace(old, new))
    status = main.main(["sweep", "check", "slurm/train.sbatch"])
    err = capsys.readouterr().err
    assert (message in err) and status == (2 if message else 0) and "Traceback" not in err
