"""`sweep submit`: what is frozen, what is written for each scheduler, and what is refused with nothing submitted."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import condor_tools
import pytest

import main
import model_utils
from mpn_rl import arguments
from mpn_rl.options import ConfigError
from mpn_rl.sweep import schedulers, snapshot
from mpn_rl.sweep.schedulers import Resources
from mpn_rl.sweep.snapshot import Tree
from mpn_rl.tasks import trusted_modules

ROOT = Path(__file__).parents[2]
SWEEP = """command = "train"
seeds = [0, 1]
[resources]
{resources}
[fixed]
num-episodes = 20
[grid]
eta = [0.5, 1.0]
"""
STUB = '#!/bin/sh\necho "$0 $*" >> {log}\n{script}\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository of a user, in a folder whose name has a blank and a quote; the working folder."""
    folder = tmp_path / "my project's"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "main.py").write_text("print('mine')\n")
    (folder / "my_task.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("*.secret\n")
    (folder / "key.secret").write_text("no\n")
    write_sweep()
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return folder


def write_sweep(resources: str = "", text: str = SWEEP) -> None:
    Path("s.toml").write_text(text.format(resources=resources))


def git(*arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH with stubs of both schedulers; `log` has their command lines."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    stub(folder, "sbatch", 'echo "Submitted batch job 7"')
    stub(folder, "condor_submit", 'echo "4 job(s) submitted to cluster 7."')
    for name in ("squeue", "condor_q"):
        stub(folder, name, "exit 0")
    return folder


def stub(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(STUB.format(log=shlex.quote(str(folder / "log")), script=script))
    (folder / name).chmod(0o755)


def submit(*more: str) -> int:
    return main.main(["sweep", "submit", "s.toml", *more])


def refusal(capsys: pytest.CaptureFixture, *more: str) -> str:
    """The one line of a refused submission."""
    capsys.readouterr()
    assert submit(*more) in (2, 75)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("main.py sweep: ")
    return err


def submitted(programs: Path) -> list[str]:
    """The file names of the submissions, without trials."""
    log = programs / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if re.search(r"(sbatch|condor_submit) submit\.\w+$", line)]


# --- what is frozen -----------------------------------------------------------------------------------------


def test_a_snapshot_holds_what_git_does_not_ignore_and_the_difference_to_the_commit(project: Path) -> None:
    (project / "my_task.py").write_text("x = 2\n")
    (project / "fresh.py").write_text("y = 1\n")
    (project / "experiments").mkdir()
    (project / "experiments/a.txt").write_text("no")
    (project / ".venv").mkdir()
    (project / ".venv/pyvenv.cfg").touch()
    (project / "other").mkdir()
    (project / "other/pyvenv.cfg").touch()
    tree = Tree.of(project, [Path("experiments")])
    own = {name for name, path in tree.files.items() if project in path.parents}
    assert own == {".gitignore", "my_task.py", "fresh.py", "s.toml"}
    assert tree.changed == ["my_task.py", "fresh.py"]
    assert b"-x = 1\n+x = 2\n" in tree.diff
    assert tree.files["main.py"] == ROOT / "main.py"  # the rows run the toolkit
    frozen = snapshot.freeze(tree, project / "experiments/.sweep/s")
    assert (frozen.path / "my_task.py").read_text() == "x = 2\n"
    assert (frozen.path / "changes.diff").read_bytes() == tree.diff
    record = json.loads((frozen.path / "snapshot.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert record["commit"] == head and record["changed"] == ["my_task.py", "fresh.py"]
    assert not any(
        path.lstat().st_mode & 0o222 for path in [frozen.path, *frozen.path.rglob("*")] if not path.is_symlink()
    )


def test_a_link_is_kept_inside_the_project_and_never_followed_out_of_it(project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/password").write_text("secret")
    for name, target in {
        "inside": "my_task.py", "absolute": str(project / "my_task.py"), "out": "../outside/password",
        "folder": str(tmp_path / "outside"), "ignored": "key.secret", "loop": "loop", "nowhere": "missing",
    }.items():  # fmt: skip
        (project / name).symlink_to(target)
    tree = Tree.of(project, [])
    assert sorted(tree.left_out) == ["folder", "ignored", "loop", "nowhere", "out"]
    frozen = snapshot.freeze(tree, tmp_path / "frozen").path
    assert os.readlink(frozen / "inside") == os.readlink(frozen / "absolute") == "my_task.py"
    assert not any(path.read_text() in ("secret", "no\n") for path in frozen.glob("*") if path.is_file())


def test_without_git_hidden_files_and_environments_stay_out(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "sub/b.py",
        ".env",
        ".hidden/c",
        "venv/pyvenv.cfg",
        "venv/d",
        "experiments/e",
        "sub/__pycache__/f",
    ):
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).touch()
    (tmp_path / "plain/out").symlink_to(tmp_path)
    tree = Tree.of(tmp_path / "plain", [])
    own = {name for name, path in tree.files.items() if tmp_path in path.parents}
    assert own == {"a.py", "sub/b.py"} and tree.commit == "unknown" and tree.left_out == ["out"]


def test_an_equal_snapshot_is_used_again_and_another_gets_its_own_folder(project: Path, tmp_path: Path) -> None:
    def frozen() -> tuple[str, bool]:
        made = snapshot.freeze(Tree.of(project, []), tmp_path / "s")
        return made.path.name, made.new

    assert [frozen(), frozen()] == [("code", True), ("code", False)]
    (project / "my_task.py").write_text("x = 3\n")
    assert [frozen(), frozen()] == [("code-2", True), ("code-2", False)]
    damaged = tmp_path / "s/code-2/my_task.py"
    damaged.chmod(0o644)
    damaged.write_text("x = 4\n")
    assert frozen() == ("code-3", True)
    assert not list((tmp_path / "s").glob(".code*"))


def test_a_project_with_large_files_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 2**23)
    with open(project / "data.bin", "wb") as file:
        file.truncate(2**23 + 1)
    with pytest.raises(ConfigError, match=r"\.gitignore, such as data\.bin \(8 MiB\)"):
        Tree.of(project, [])


def test_an_experiment_records_the_snapshot_that_it_runs_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "snapshot" not in model_utils.versions()
    (tmp_path / "snapshot.json").write_text('{"commit": "abc", "changed": ["a.py"], "digest": "123"}')
    monkeypatch.setattr(model_utils, "__file__", str(tmp_path / "model_utils.py"))
    versions = model_utils.versions()
    assert (versions["git_commit"], versions["snapshot"]) == ("abc-dirty", f"{tmp_path} (sha256 123)")


def test_a_run_that_continues_from_another_snapshot_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpn_rl import commands

    experiment = model_utils.Experiment.create("a", tmp_path, {"env": {}, "core": {}, "run": {}, "versions": {}})
    for here, known in (("one", "one"), ("two", "one; two"), ("one", "one; two")):
        monkeypatch.setattr(commands, "snapshot", lambda here=here: {"snapshot": here})
        commands._remember_snapshot(experiment)
        assert experiment.read_config()["versions"] == {"snapshot": known}


def test_a_task_module_of_the_snapshot_itself_may_be_imported_and_no_other_below_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "experiments/.sweep/s/code"
    monkeypatch.chdir(tmp_path)
    trusted_modules.start(None, [], "experiments")
    assert trusted_modules._under_experiments(code / "my_task.py")  # this program does not run from there
    monkeypatch.setattr(trusted_modules, "__file__", str(code / "mpn_rl/tasks/trusted_modules.py"))
    assert not trusted_modules._under_experiments(code / "my_task.py")
    assert trusted_modules._under_experiments(tmp_path / "experiments/a/my_task.py")
    assert trusted_modules._under_experiments(code.with_name("code-2") / "my_task.py")


# --- what is submitted --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), [("slurm", "submit.sbatch"), ("condor", "submit.job")])
def test_a_submission_is_one_job_per_row_of_the_frozen_code(
    name: str, file: str, project: Path, programs: Path, capsys: pytest.CaptureFixture
) -> None:
    (project / "my_task.py").write_text("x = 2\n")
    assert submit("--scheduler", name, "--yes") == 0
    out = capsys.readouterr().out
    assert "changed since the commit: my_task.py\n" in out and f"submitted 4 rows to {name} as 7" in out
    place = project / "experiments/.sweep/s/1"
    rows = [line.split("\t") for line in (place / "rows.txt").read_text().splitlines()]
    assert [row[1] for row in rows] == [
        f"--experiment-name=s-eta{eta}-s{seed}" for eta in ("0.5", "1.0") for seed in (0, 1)
    ]
    for row in rows:
        args = arguments.parse(row)
        assert args.resume == "auto" and args.checkpoint_exit_code == 85
        assert args.experiments_dir == str(project / "experiments")
    record = json.loads((place / "submitted.json").read_text())
    assert (record["scheduler"], record["number"], record["snapshot"]) == (name, "7", "code")
    assert record["rows"] == [row[1].partition("=")[2] for row in rows]
    assert len(submitted(programs)) == 1 and submitted(programs)[0].endswith(file)
    assert (project / "experiments/.sweep/s/code/my_task.py").read_text() == "x = 2\n"


def test_a_dry_run_writes_nothing_and_needs_no_scheduler(project: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(project.rglob("*"))
    assert submit("--scheduler", "slurm", "--dry-run") == 0
    assert "#SBATCH --array=0-3\n" in capsys.readouterr().out
    assert sorted(project.rglob("*")) == before


def test_rows_that_wait_are_not_submitted_again(project: Path, programs: Path, capsys: pytest.CaptureFixture) -> None:
    assert submit("--scheduler", "slurm", "--yes") == 0
    stub(programs, "squeue", "echo 7_0 waits")
    assert "still in the queue as 7; wait for them, or cancel them with scancel 7" in refusal(
        capsys, "--scheduler", "slurm", "--yes"
    )
    stub(programs, "squeue", "echo 'Invalid job id specified' >&2; exit 1")
    assert submit("--scheduler", "slurm", "--yes") == 0
    assert len(submitted(programs)) == 2
    assert sorted(path.name for path in (project / "experiments/.sweep/s").iterdir()) == [".lock", "1", "2", "code"]


def test_nothing_is_submitted_without_consent(
    project: Path, programs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no terminal to ask; add --yes" in refusal(capsys, "--scheduler", "slurm")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, status in (("n\n", 2), ("", 2), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin.readline", lambda answer=answer: answer, raising=False)
        assert submit("--scheduler", "slurm") == status
    assert len(submitted(programs)) == 1


@pytest.mark.parametrize(
    ("resources", "more", "message"),
    [
        ("", ["--scheduler", "pbs"], "--scheduler must be one of condor, slurm, got 'pbs'"),
        ("", [], "--scheduler must say which of condor_submit and sbatch to use, because both are here"),
        ("cpu = 1", [], "[resources] has no key 'cpu'; did you mean 'cpus'"),
        ("cpus = 0", [], "[resources] cpus must be a whole number from 1 to 10,000, got 0"),
        ("gpus = true", [], "[resources] gpus must be a whole number from 0 to 10,000, got True"),
        ('memory = "4 gigabytes"', [], '[resources] memory must be a size such as "4GB"'),
        ('time = "90"', [], '[resources] time must be "HH:MM:SS"'),
        ('time = "00:01:00"', [], "at least 4 minutes"),
        ('partition = "a;rm"', [], "[resources] partition must be a name"),
        ('requirements = "a\\nqueue 5"', [], "[resources] requirements must be one line"),
        ('environment = {A = "x\\ny"}', [], "[resources] environment must be a table NAME"),
        ('environment = {"A B" = "x"}', [], "[resources] environment must be a table NAME"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_submitted(
    resources: str, more: list[str], message: str, project: Path, programs: Path, capsys: pytest.CaptureFixture
) -> None:
    write_sweep(resources)
    capsys.readouterr()
    assert submit(*more, "--yes") == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and err.count("\n") <= 2
    assert submitted(programs) == [] and not (project / "experiments").exists()


@pytest.mark.parametrize(("name", "program"), [("slurm", "sbatch"), ("condor", "condor_submit")])
def test_a_missing_or_refusing_scheduler_leaves_nothing_behind(
    name: str,
    program: str,
    project: Path,
    programs: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for script in (
        "echo 'error: Requested node' >&2\necho ' configuration is not available' >&2; exit 1",
        'case "$*" in *-dry-run*|*--test-only*) exit 0;; esac\n'
        'echo "error: Requested node configuration is not available" >&2; exit 1',
    ):
        stub(programs, program, script)
        message = refusal(capsys, "--scheduler", name, "--yes")
        assert (
            f"{program} refuses, and nothing was submitted: error: Requested node configuration is not available"
            in message
        )
        assert not (project / "experiments").exists()
    monkeypatch.setenv(
        "PATH", os.path.dirname(shutil.which("git") or "") if not shutil.which(program, path="/usr/bin") else "/nowhere"
    )
    (programs / program).unlink()
    assert f"no {program} on this machine's PATH" in refusal(capsys, "--scheduler", name, "--yes")


def test_search_workers_share_one_search_of_the_frozen_file(project: Path, programs: Path) -> None:
    write_sweep(text=SWEEP.replace("[grid]\neta = [0.5, 1.0]", "[search]\nn = 3\neta = {{ choice = [0.5, 1.0] }}"))
    for number in ("1", "2"):  # more workers may join
        stub(programs, "squeue", "echo 7_0 waits")
        assert submit("--scheduler", "slurm", "--yes", "--search-workers", "2") == 0
        rows = (project / "experiments/.sweep/s" / number / "rows.txt").read_text().splitlines()
        words = ["sweep", "search", "s.toml", "--worker", "--experiments-dir", str(project / "experiments")]
        assert [row.split("\t") for row in rows] == [words, words]
    assert (project / "experiments/.sweep/s/code/s.toml").read_text() == Path("s.toml").read_text()


def test_a_configuration_outside_the_snapshot_is_refused(
    project: Path, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "c.json").write_text('{"core": {"eta": 0.5}}')
    (project / "in.json").write_text('{"core": {"hidden_dim": 8}}')
    write_sweep(text=SWEEP.replace("[fixed]", '[fixed]\nconfig = "in.json"'))
    assert submit("--scheduler", "slurm", "--yes") == 0
    row = arguments.parse((project / "experiments/.sweep/s/1/rows.txt").read_text().splitlines()[0].split("\t"))
    assert row.config == "in.json" and (project / "experiments/.sweep/s/code/in.json").exists()
    write_sweep(text=SWEEP.replace("[fixed]", '[fixed]\nconfig = "../c.json"'))
    assert "would not be in the snapshot: put it into" in refusal(capsys, "--scheduler", "slurm", "--yes")


# --- the files for the schedulers ---------------------------------------------------------------------------


HARD = {"A": "a 'b' \"c\" $HOME $(d) `e`", "B": ""}


def test_slurm_variables_pass_through_bash_unchanged(tmp_path: Path) -> None:
    need = Resources(environment=HARD, python="/my 'python'")
    text = schedulers.slurm_text("#SBATCH --constraint=fast\n#SBATCH --mem=1\n##SBATCH --qos=x\n",
                                 schedulers.Submission("s", 3, "../1/rows.txt", "../code", need))  # fmt: skip
    assert "#SBATCH --constraint=fast" in text and "--mem=1\n" not in text and "qos" not in text
    script = (
        text.rpartition("exec ")[0] + f"exec {sys.executable} -c 'import json,os; print(json.dumps(dict(os.environ)))'"
    )
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert {name: json.loads(told)[name] for name in ("A", "B", "MPN_RL_PYTHON")} == {
        **HARD,
        "MPN_RL_PYTHON": "/my 'python'",
    }


def test_condor_takes_the_submit_file_without_a_warning(project: Path) -> None:
    try:
        condor = condor_tools.condor_root()
    except condor_tools.UnavailableError as reason:
        pytest.skip(str(reason))
    need = Resources(environment=HARD, requirements='Microarch == "x86_64-v3"', memory_mb=500)
    text = schedulers.condor_text((ROOT / "condor/train.job").read_text() + "+Lab = true\n",
                                  schedulers.Submission("s", 3, "../1/rows.txt", "../code", need))  # fmt: skip
    (project / "code/condor").mkdir(parents=True)
    shutil.copy(ROOT / "condor/run.sh", project / "code/condor")
    (project / "1/logs").mkdir(parents=True)
    (project / "1/submit.job").write_text(text)
    done = condor_tools.run(condor, "condor_submit", "-dry-run", "-", "submit.job", cwd=project / "1")
    assert (done.returncode, done.stderr) == (0, "") and "3 job(s) dry-run" in done.stdout
    first = done.stdout.partition("ProcId=1")[0]
    ad = dict(line.split("=", 1) for line in first.splitlines() if re.match(r"\w+=", line))
    assert ad["Lab"] == "true" and ad["RequestMemory"] == "500" and ad["Args"] == '"--row ../1/rows.txt 0"'
    assert Path(ad["Cmd"].strip('"')).resolve() == project / "code/condor/run.sh"
    assert unquoted(ad["Environment"]) == {**HARD, "MPN_RL_PYTHON": sys.executable}


def unquoted(text: str) -> dict[str, str]:
    """An environment of a job ad, as HTCondor's manual describes it: quoted with ', a quote in it doubled."""
    words, quoted, word = [], False, ""
    text = text[1:-1].replace('\\"', '"')
    place = 0
    while place < len(text):
        if text[place : place + 2] == "''" and quoted:
            word, place = word + "'", place + 1
        elif text[place] == "'":
            quoted = not quoted
        elif text[place] == " " and not quoted:
            words, word = [*words, word], ""
        else:
            word += text[place]
        place += 1
    return dict(one.split("=", 1) for one in [*words, word])


@pytest.mark.parametrize("folder", ["condor", "slurm"])
def test_a_row_reaches_main_as_it_was_written(folder: str, tmp_path: Path) -> None:
    (tmp_path / "a b" / folder).mkdir(parents=True)
    shutil.copy(ROOT / folder / "run.sh", tmp_path / "a b" / folder)
    (tmp_path / "a b/main.py").write_text("import sys, json; print(json.dumps(sys.argv[1:]))")
    rows = [["train", "--x=$(touch hacked)", "`touch hacked`"], ["eval", "a b", "'\"\\n\\", "*", "; touch hacked"]]
    (tmp_path / "rows.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    run = [tmp_path / "a b" / folder / "run.sh", "--row", "../rows.txt"]
    environment = {**os.environ, "MPN_RL_PYTHON": sys.executable}
    for number, row in enumerate(rows):
        done = subprocess.run([*run, str(number)], env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == row
    done = subprocess.run([*run, "2"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "run.sh: no line 2 in ../rows.txt\n"
    assert not list(tmp_path.rglob("hacked"))


# --- slurm/run.sh -------------------------------------------------------------------------------------------

TASK = """import os, signal, sys, time
open("starts", "a").write(str(os.getpid()) + "\\n")
starts = len(open("starts").readlines())
code = [int(word) for word in sys.argv[1].split(",")][starts - 1]
if code == 85:
    def save(*_):
        time.sleep(0.3)
        sys.exit(85)
    signal.signal(signal.SIGTERM, save)
    open("ready", "w").close()
    time.sleep(60)
sys.exit(code)
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "slurm").mkdir()
    shutil.copy(ROOT / "slurm/run.sh", tmp_path / "slurm")
    (tmp_path / "main.py").write_text(TASK)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(
        '#!/bin/sh\necho "$*" >> scontrol.log\n[ "$1" = requeue ] || echo " JobState=$STATE "\n'
    )
    (tmp_path / "bin/sleep").write_text('#!/bin/sh\necho "$1" >> pauses\n')
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    return tmp_path


def started(task: Path, codes: str, state: str = "RUNNING") -> subprocess.Popen:
    environment = {
        **os.environ, "PATH": f"{task / 'bin'}:{os.environ['PATH']}", "MPN_RL_PYTHON": sys.executable, "STATE": state,
        "SLURM_ARRAY_JOB_ID": "3", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "4",
    }  # fmt: skip
    return subprocess.Popen([task / "slurm/run.sh", codes], env=environment)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("codes", "status", "starts", "pauses"),
    [
        ("0", 0, 1, []),
        ("2", 2, 1, []),  # a wrong row
        ("1,1,1", 1, 3, []),
        ("1,1,0", 0, 3, []),
        ("75,75,0", 0, 3, ["5", "20"]),  # a passing condition
        ("75,75,75,75,75", 75, 5, ["5", "20", "80", "320"]),
        ("1,75,1,75,1", 1, 5, ["5", "20"]),
    ],
)
def test_a_task_is_started_again_as_its_status_says(
    codes: str, status: int, starts: int, pauses: list[str], task: Path
) -> None:
    assert started(task, codes).wait(30) == status
    assert len(lines(task / "starts")) == starts and lines(task / "pauses") == pauses
    assert not (task / "scontrol.log").exists()


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("CANCELLED", False), ("COMPLETING", False)])
def test_a_task_that_is_stopped_saves_and_goes_back_to_the_queue_unless_it_was_cancelled(
    state: str, requeued: bool, task: Path
) -> None:
    process = started(task, "85", state)
    deadline = time.monotonic() + 30
    while not (task / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 85
    assert lines(task / "scontrol.log") == ["show job 3_1", *(["requeue 3_1"] if requeued else [])]
