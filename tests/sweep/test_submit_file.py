"""Submit files: `mistakes` finds what condor_submit accepts without an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpn_rl.sweep.submit_file import COMMANDS, SubmitFile

ROOT = Path(__file__).parents[2]
SCRIPT = '#!/usr/bin/env bash\nexec python main.py "$@"\n'
JOB = """universe   = vanilla
executable = $Fp(SUBMIT_FILE)run.sh
arguments  = train --experiment-name $(name) --seed $(seed) \\
  --eta $(eta) --resume auto --checkpoint-exit-code 85
request_cpus   = 1
request_memory = 4GB
should_transfer_files = NO
output = logs/$(Cluster)_$(Process).out
error  = logs/$(Cluster)_$(Process).err
log    = logs/$(Cluster).log
checkpoint_exit_code = 85
queue name, seed, eta from rows.txt
"""


def written(folder: Path, job: str = JOB, script: str = SCRIPT) -> SubmitFile:
    (folder / "run.sh").write_text(script)
    (folder / "run.sh").chmod(0o755)
    (folder / "a.job").write_text(job)
    return SubmitFile.read(folder / "a.job")


def mistakes(folder: Path, job: str = JOB, script: str = SCRIPT) -> list[str]:
    return [f"{m.line}:{m.column}: {m.text}" for m in written(folder, job, script).mistakes()]


def test_a_good_file_has_columns_a_command_and_no_mistake(tmp_path: Path) -> None:
    job = written(tmp_path)
    assert job.columns == ("name", "seed", "eta") and job.queue and job.queue.value == "rows.txt"
    assert job.command_words() == [
        *("train", "--experiment-name", "$(name)", "--seed", "$(seed)", "--eta", "$(eta)"),
        *("--resume", "auto", "--checkpoint-exit-code", "85"),
    ]
    assert job.mistakes() == []


@pytest.mark.parametrize(
    ("line", "instead", "found"),
    [
        ("universe   = vanilla", "univers = vanilla", "1:1: 'univers' is not a submit command, and no macro uses it"),
        (
            "request_memory = 4GB",
            "request_memry = 4GB",
            "6:1: 'request_memry' is not a submit command, and no macro uses it; did you mean 'memory'",
        ),
        ("arguments  =", "argumnts =", "3:1: 'argumnts' is not a submit command"),
        ("arguments  = train", "arguments  = tain", "3:14: arguments must start with one of train, "),
        (
            "--eta $(eta)",
            "--eta $(etaa)",
            "3:70: $(etaa) is not defined, so it would be empty; did you mean 'eta'",
        ),
        ("should_transfer_files = NO\n", "", "should_transfer_files is not set"),
        ("universe   = vanilla", "getenv = True", "1:10: getenv copies the whole environment"),
        ("logs/$(Cluster)_$(Process).out", "logs/a.out", "8:10: output needs $(Cluster) and $(Process)"),
        ("output = logs/", "output = elsewhere/", "8:10: output: no folder elsewhere, so jobs would be held"),
        (
            "checkpoint_exit_code = 85",
            "checkpoint_exit_code = 80",
            "11:24: checkpoint_exit_code is 80, but --checkpoint-exit-code is 85",
        ),
        ("run.sh", "rum.sh", "2:14: executable: no file"),
        (
            "queue name, seed, eta from",
            "queue name, seed, error from",
            "12:1: column 'error' is a submit command or macro of HTCondor",
        ),
        ("queue name, seed, eta from", "queue 3 name, seed, eta from", "sweep reads 'queue COLUMN, ... from FILE'"),
        ("queue name, seed, eta from rows.txt\n", "", "no queue statement"),
        (
            "universe   = vanilla",
            "universe vanilla",
            "1:1: neither a command nor a queue statement: 'universe vanilla'",
        ),
    ],
    ids=lambda text: str(text)[:20],
)
def test_each_mistake_is_reported_at_its_place(tmp_path: Path, line: str, instead: str, found: str) -> None:
    assert line in JOB
    said = mistakes(tmp_path, JOB.replace(line, instead))
    assert any(found in one for one in said), said


def test_without_a_shared_disk_a_checkpoint_must_travel(tmp_path: Path) -> None:
    said = " ".join(mistakes(tmp_path, JOB.replace("files = NO", "files = YES\ntransfer_output_files = out")))
    assert "when_to_transfer_output = ON_EXIT_OR_EVICT" in said and "must be the same" in said


def test_own_macros_included_ones_and_custom_resources_are_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "more.sh").write_text('echo "extra = 1"\n')
    more = "here = $Fp(SUBMIT_FILE)\ninclude command : sh $(here)more.sh\n"
    more += "request_licenses = $(extra)\n+Group = $(Owner:me)\n"
    assert mistakes(tmp_path, more + JOB) == []


def test_rows_may_stand_in_the_submit_file_itself(tmp_path: Path) -> None:
    job = written(tmp_path, JOB.replace("from rows.txt", "from (\n  a, 1, 0.5\n  b, 2, 0.5\n)"))
    assert job.items == [(13, "a, 1, 0.5"), (14, "b, 2, 0.5")] and job.mistakes() == []


def test_none_means_that_the_job_does_not_run_main(tmp_path: Path) -> None:
    job = "# command: none\n" + JOB.replace("arguments  = train --experiment-name", "arguments  =")
    found = written(tmp_path, job, "#!/bin/sh\nsleep $2\n")
    assert found.command_words() is None and found.mistakes() == []


def test_a_wrapper_without_exec_is_reported(tmp_path: Path) -> None:
    assert mistakes(tmp_path, JOB, "\x7fELF") == []  # a program of its own
    found = mistakes(tmp_path, JOB, '#!/bin/sh\n# exec is missing\npython main.py "$@"\n')
    assert len(found) == 1 and found[0].startswith("2:14: ")
    assert found[0].endswith("run.sh has no exec, so the SIGTERM of an eviction would not reach main.py")


def test_a_submit_command_is_spelt_as_in_the_manual() -> None:
    """The commands that the facts on HTCondor name, so that a gap in the table shows."""
    named = {
        *("universe", "executable", "arguments", "request_cpus", "request_memory", "request_disk", "request_gpus"),
        *("should_transfer_files", "when_to_transfer_output", "preserve_relative_paths", "transfer_input_files"),
        *("transfer_checkpoint_files", "transfer_output_files", "checkpoint_exit_code", "job_max_vacate_time"),
        *("max_retries", "retry_until", "on_exit_hold", "on_exit_hold_reason", "max_materialize", "batch_name"),
        *("output", "error", "log", "getenv", "environment", "erase_output_and_error_on_restart", "initialdir"),
    }
    assert named - COMMANDS == set()
    assert not any(" " in name or name != name.lower() for name in COMMANDS)


def test_the_templates_are_without_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    templates = sorted(Path("condor").glob("*.job"))
    found = [str(mistake) for path in templates for mistake in SubmitFile.read(path).mistakes()]
    assert templates and found == []
