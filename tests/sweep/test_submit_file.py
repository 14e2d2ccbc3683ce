"""Submit files: what condor_submit passes over in silence is found, and the wrapper runs what the comment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpn_rl.sweep.submit_file import COMMANDS, SubmitFile, wrapper_words

ROOT = Path(__file__).parents[2]
SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
seed=$1 eta=$2 name=$3
shift 3
python=${MPN_RL_PYTHON:-.venv/bin/python}
exec "$python" main.py train --experiment-name "$name" --seed "$seed" --eta "$eta" \\
  --resume auto --checkpoint-exit-code 85 "$@"
"""
JOB = """# command: train --experiment-name $(name) --seed $(seed)
# command: --eta $(eta) --resume auto --checkpoint-exit-code 85
universe   = vanilla
executable = $Fp(SUBMIT_FILE)run.sh
arguments  = $(seed) $(eta) $(name)
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
        ("universe   = vanilla", "univers = vanilla", "3:1: 'univers' is no submit command, and nothing uses it"),
        (
            "request_memory = 4GB",
            "request_memry = 4GB",
            "7:1: 'request_memry' is no submit command, and nothing uses it; did you mean 'memory'",
        ),
        ("arguments  = $(seed) $(eta) $(name)", "argumnts = $(seed) $(eta) $(name)", "'argumnts' is no submit command"),
        (
            "$(eta) $(name)",
            "$(etaa) $(name)",
            "5:22: $(etaa) is defined nowhere, so that nothing would stand there; did you mean 'eta'",
        ),
        ("should_transfer_files = NO\n", "", "should_transfer_files is not said"),
        ("universe   = vanilla", "getenv = True", "3:10: getenv copies the whole environment"),
        ("logs/$(Cluster)_$(Process).out", "logs/a.out", "9:10: output without $(Cluster) and $(Process)"),
        ("output = logs/", "output = elsewhere/", "9:10: output: no folder elsewhere, for which jobs are held"),
        (
            "checkpoint_exit_code = 85",
            "checkpoint_exit_code = 80",
            "12:24: checkpoint_exit_code is 80, the command's --checkpoint-exit-code 85",
        ),
        ("run.sh", "rum.sh", "4:14: executable: no file"),
        ("--eta $(eta)", "--eta $(seed)", "1:12: the command says '$(seed)' where"),
        (
            "queue name, seed, eta from",
            "queue name, seed, error from",
            "13:1: column 'error' is a word of HTCondor's own",
        ),
        ("queue name, seed, eta from", "queue 3 name, seed, eta from", "sweep reads 'queue COLUMN, ... from FILE'"),
        ("queue name, seed, eta from rows.txt\n", "", "no queue statement"),
        (
            "universe   = vanilla",
            "universe vanilla",
            "3:1: neither a command nor a queue statement: 'universe vanilla'",
        ),
    ],
    ids=lambda text: str(text)[:20],
)
def test_each_mistake_is_found_at_its_place(tmp_path: Path, line: str, instead: str, found: str) -> None:
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
    assert job.items == [(14, "a, 1, 0.5"), (15, "b, 2, 0.5")] and job.mistakes() == []


def test_a_command_that_arguments_say_needs_no_comment(tmp_path: Path) -> None:
    plain = JOB.replace("# command: ", "# ").replace(
        "$(seed) $(eta) $(name)",
        "train --experiment-name $(name) --seed $(seed) --eta $(eta) --checkpoint-exit-code 85",
    )
    assert mistakes(tmp_path, plain, '#!/bin/sh\nexec python main.py "$@"\n') == []
    assert "no line '# command:" in " ".join(mistakes(tmp_path, JOB.replace("# command: ", "# ")))
    assert "must begin with one of train" in " ".join(
        mistakes(tmp_path, JOB.replace("command: train", "command: tain"))
    )


def test_none_means_that_the_job_runs_something_else(tmp_path: Path) -> None:
    job = "# command: none\n" + "\n".join(JOB.splitlines()[2:]).replace("checkpoint_exit_code = 85\n", "") + "\n"
    found = written(tmp_path, job, "#!/bin/sh\nsleep $2\n")
    assert found.command_words() is None and found.mistakes() == []


def test_the_wrapper_is_read_as_the_shell_reads_it() -> None:
    assert wrapper_words(SCRIPT, ["1", "0.5", "a", "--threads", "2"]) == [
        *("train", "--experiment-name", "a", "--seed", "1", "--eta", "0.5", "--resume", "auto"),
        *("--checkpoint-exit-code", "85", "--threads", "2"),
    ]
    assert wrapper_words('exec mpn-rl "$@" --x ${10} ${N:-7}\n', list("abcdefghij")) == [*"abcdefghij", "--x", "j", "7"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("python main.py train\n", "no line begins with exec"),
        ("exec python train.py\n", "neither main.py nor mpn-rl"),
        ('exec python main.py "$eta"\n', r"cannot tell what \$eta stands for"),
        ('x=$(date)\nexec python main.py "$x"\n', r"cannot tell what \$x stands for"),
        ('exec python main.py "$(date)"\n', r"cannot tell what \$\(date\) stands for"),
    ],
)
def test_a_wrapper_that_cannot_be_read_is_told_why(script: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        wrapper_words(script, ["1"])


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
