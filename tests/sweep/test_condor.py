"""The submit files, read by HTCondor's own programs; every row, read by our own parser."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import condor_tools
import pytest

from mpn_rl import arguments
from mpn_rl import config as cfg

PROJECT = Path(__file__).parents[2]
TEMPLATES = sorted(path.name for path in (PROJECT / "condor").glob("*.job"))
TRAINING = [name for name in TEMPLATES if name.startswith("train")]
SHOW_ARGUMENTS = '#!/bin/sh\necho "$$" > started\nprintf "%s\\n" "$@"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a submission reads, in a folder whose name has a space, with a stub for the packed Python."""
    copy = tmp_path / "my project"
    copy.mkdir()
    for name in ("condor", "configs"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("*.gz", ".*"))
    (copy / "main.py").touch()
    (copy / "mpn_rl").mkdir()
    stub = copy / ".venv/bin/python"
    stub.parent.mkdir(parents=True)
    stub.write_text(SHOW_ARGUMENTS)
    stub.chmod(0o755)
    with tarfile.open(copy / "condor/python.tar.gz", "w:gz") as tar:
        tar.add(stub, "python/bin/python")
    return copy


@pytest.fixture(scope="session")
def condor() -> Path:
    try:
        return condor_tools.condor_root()
    except condor_tools.UnavailableError as reason:
        pytest.skip(str(reason))


def rows_of(template: str) -> list[dict[str, str]]:
    """The rows of a template's args file by column, read as its last line states."""
    queue = (PROJECT / "condor" / template).read_text().splitlines()[-1]
    columns, file = re.fullmatch(r"queue (.*) from \$Fp\(SUBMIT_FILE\)(\S+)", queue).groups()  # type: ignore[union-attr]
    lines = (PROJECT / "condor" / file).read_text().splitlines()
    return [dict(zip(columns.split(", "), line.split(", "), strict=True)) for line in lines]


def command_of(template: str, row: dict[str, str]) -> list[str]:
    """The command line that the template's `arguments` promise for a row."""
    text = (PROJECT / "condor" / template).read_text().replace("\\\n", "")
    (command,) = re.findall(r"(?m)^arguments  = (.*)", text)
    return re.sub(r"\$\((\w+)\)", lambda macro: row[macro[1]], command).split()


# --- condor_submit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["in condor/", "in the root"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_dry_run_of_every_template_warns_of_nothing(template: str, inside: bool, project: Path, condor: Path) -> None:
    """It exits 0 on a misspelt command; only the warning on stderr shows the mistake."""
    where, file = (project / "condor", template) if inside else (project, f"condor/{template}")
    done = condor_tools.run(condor, "condor_submit", "-dry-run", "-", file, cwd=where)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(rows_of(template))} job(s) dry-run" in done.stdout
    ad = dict(line.split("=", 1) for line in done.stdout.splitlines() if re.match(r"\w+=", line))
    assert Path(ad["Iwd"].strip('"')).resolve() == project
    assert (project / ".condor_logs").is_dir()  # a missing one would hold every job


def test_a_misspelt_command_is_reported_on_stderr_only(project: Path, condor: Path) -> None:
    job = project / "condor" / "train.job"
    job.write_text(job.read_text().replace("max_retries", "max_retires"))
    done = condor_tools.run(condor, "condor_submit", "-dry-run", "-", "condor/train.job", cwd=project)
    assert done.returncode == 0
    assert "the line 'max_retires = 2' was unused by condor_submit" in done.stderr


def test_without_the_packed_python_nothing_is_submitted(project: Path, condor: Path) -> None:
    (project / "condor" / "python.tar.gz").unlink()
    done = condor_tools.run(condor, "condor_submit", "-dry-run", "-", "condor/train_transfer.job", cwd=project)
    assert done.returncode != 0
    assert "make it with: .venv/bin/python condor/pack.py" in done.stderr


# --- every row as a job -------------------------------------------------------------------------------------


@pytest.fixture
def expand(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """template -> one full job ad per row, as HTCondor's Python bindings make them without a pool."""
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    htcondor = pytest.importorskip("htcondor", reason="the bindings that expand rows are in the extra [dev], on Linux")
    monkeypatch.chdir(project / "condor")  # the bindings know no SUBMIT_FILE, so its folder is here

    def jobs(template: str) -> list[dict[str, Any]]:
        submit = htcondor.Submit((project / "condor" / template).read_text())
        return [dict(ad) for ad in submit.jobs(clusterid=7)]

    return jobs


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "dummy.job"])
def test_every_row_runs_the_promised_command_and_our_parser_takes_it(template: str, project: Path, expand: Any) -> None:
    jobs, rows = expand(template), rows_of(template)
    assert len(jobs) == len(rows) > 0
    for job, row in zip(jobs, rows, strict=True):
        wrapper = [job["Cmd"], *job["Args"].split()]
        done = subprocess.run(wrapper, cwd=job["Iwd"], capture_output=True, text=True, check=True)
        script, *argv = done.stdout.splitlines()
        assert (script, argv) == ("main.py", command_of(template, row))
        args = arguments.parse(argv)
        assert args.experiment_name == row["name"] and args.seed == int(row["seed"])
        if args.command != "eval":
            made = cfg.make_config(args.command, arguments.config_flags(args))
            assert (made.core.eta, made.core.hidden_dim) == (float(row["eta"]), int(row["hidden"]))  # type: ignore[attr-defined]
            assert (args.resume, args.checkpoint_exit_code) == ("auto", job["SuccessCheckpointExitCode"])


@pytest.mark.parametrize(
    ("template", "cpus", "gpus", "megabytes"),
    [
        ("train.job", 1, 0, 4096),
        ("train_neurogym.job", 1, 0, 4096),
        ("train_transfer.job", 1, 0, 4096),
        ("train_gpu.job", 2, 1, 8192),
        ("eval.job", 1, 0, 2048),
    ],
)
def test_jobs_ask_for_what_they_need(template: str, cpus: int, gpus: int, megabytes: int, expand: Any) -> None:
    job = expand(template)[0]
    assert (job["RequestCpus"], job["RequestGPUs"], job["RequestMemory"]) == (cpus, gpus, megabytes)
    asked = {name for name in job if name.startswith("Request")}
    assert asked == {"RequestCpus", "RequestGPUs", "RequestMemory", "RequestDisk"}  # a misspelt one is a resource too
    assert job["Environment"] == "" and "GetEnv" not in job  # a copy of the environment would publish its secrets


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_job_writes_into_the_log_of_another_or_of_another_submission(template: str, expand: Any) -> None:
    jobs = expand(template)
    for stream in ("Out", "Err"):
        assert len({job[stream] for job in jobs}) == len(jobs)
        assert all(job[stream].startswith(".condor_logs/") and "_7_" in job[stream] for job in jobs)
    assert all(job["UserLog"].endswith(f".condor_logs/{template[:-4]}_7.log") for job in jobs)


def test_a_job_without_a_shared_disk_brings_and_returns_its_experiment(expand: Any) -> None:
    for job, row in zip(expand("train_transfer.job"), rows_of("train_transfer.job"), strict=True):
        assert job["TransferInput"].split(",") == ["condor/python.tar.gz", "configs", "main.py", "mpn_rl"]
        assert job["TransferCheckpoint"] == job["TransferOutput"] == f"experiments/{row['name']}"
        assert (job["WhenToTransferOutput"], job["PreserveRelativePaths"]) == ("ON_EXIT_OR_EVICT", True)


# (exit status or signal, runs so far) -> stays in the queue to run again, held with a reason, or gone
LEFT = [
    ({"ExitCode": 0}, 1, "done"),
    ({"ExitCode": 1}, 1, "again"),
    ({"ExitCode": 1}, 2, "again"),
    ({"ExitCode": 1}, 3, "failed: exit 1 after 3 run(s)"),
    ({"ExitCode": 2}, 1, "failed: exit 2 after 1 run(s)"),
    ({"ExitCode": 127}, 3, "failed: exit 127 after 3 run(s)"),
    ({"ExitCode": 75}, 1, "failed: exit 75 after 1 run(s)"),  # and released again after a while
    ({"ExitSignal": 9}, 1, "again"),
    ({"ExitSignal": 9}, 3, "failed: signal 9 after 3 run(s)"),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("end", "runs", "fate"), LEFT)
def test_failures_are_tried_again_and_then_held_but_mistakes_at_once(
    template: str, end: dict, runs: int, fate: str, expand: Any
) -> None:
    import classad

    ad = classad.ClassAd({**expand(template)[0], "ExitBySignal": "ExitSignal" in end, "NumJobCompletions": runs, **end})
    held = bool(ad.eval("OnExitHold"))
    gone = bool(ad.eval("OnExitRemove")) and not held
    assert (ad.eval("OnExitHoldReason") if held else "done" if gone else "again") == fate


@pytest.mark.parametrize(
    ("subcode", "holds", "minutes", "released"),
    [
        (75, 1, 4, False),
        (75, 1, 6, True),
        (75, 3, 14, False),
        (75, 3, 16, True),
        (75, 6, 1000, False),
        (2, 1, 1000, False),
    ],
)
def test_a_passing_condition_is_tried_again_after_growing_pauses(
    subcode: int, holds: int, minutes: int, released: bool, expand: Any
) -> None:
    import classad

    for template in TEMPLATES:
        ad = classad.ClassAd(expand(template)[0])
        assert classad.ClassAd({**ad, "ExitCode": subcode}).eval("OnExitHoldSubCode") == subcode
        since = int(time.time()) - 60 * minutes
        held = {"HoldReasonCode": 3, "HoldReasonSubCode": subcode, "NumHolds": holds, "EnteredCurrentStatus": since}
        assert bool(classad.ClassAd({**ad, **held}).eval("PeriodicRelease")) is released, template


@pytest.mark.parametrize("path", sorted((PROJECT / "condor").glob("*_args.txt")), ids=lambda path: path.name)
def test_an_args_file_holds_rows_and_nothing_else(path: Path) -> None:
    """HTCondor makes a job of every line, a comment or an empty one too."""
    lines = path.read_text().split("\n")
    assert lines.pop() == ""
    assert all(re.fullmatch(r"[\w.-]+(, [\w.-]+)*", line) for line in lines)
    assert len({line.split(", ")[0] for line in lines}) == len(lines)


# --- the wrappers -------------------------------------------------------------------------------------------


WRAPPERS = {"run.sh": [], "train.sh": ["train"], "train_neurogym.sh": ["train-neurogym"], "eval.sh": ["eval"]}


@pytest.mark.parametrize(("wrapper", "command"), WRAPPERS.items())
def test_a_wrapper_passes_its_options_on(wrapper: str, command: list[str], project: Path) -> None:
    options = ["--experiment-name", "run", "--env-arg", "a=b c", ""]
    done = subprocess.run([project / "condor" / wrapper, *options], capture_output=True, text=True, check=True)
    assert done.stdout == "\n".join(["main.py", *command, *options]) + "\n"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_python_takes_the_wrappers_place_so_that_sigterm_reaches_it(wrapper: str, project: Path) -> None:
    with subprocess.Popen([project / "condor" / wrapper, "--seed", "1"], stdout=subprocess.DEVNULL) as process:
        process.wait()
    assert (project / "started").read_text() == f"{process.pid}\n"


def test_the_wrapper_sets_one_thread_and_takes_another_python(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $*"\n')
    other.chmod(0o755)
    environment = {**os.environ, "MPN_RL_PYTHON": str(other)}
    for threads in (None, "4"):
        environment.pop("OMP_NUM_THREADS", None)
        environment |= {"OMP_NUM_THREADS": threads} if threads else {}
        command = [project / "condor" / "run.sh", "eval"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"{threads or 1} main.py eval\n"


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "dummy.job"])
def test_a_row_without_one_of_its_values_is_refused(template: str) -> None:
    row = rows_of(template)[0]
    for column in row:
        with pytest.raises(SystemExit) as refusal:
            arguments.parse(command_of(template, {**row, column: ""}))
        assert refusal.value.code == 2


def test_the_dummy_refuses_a_row_that_is_too_short(project: Path) -> None:
    done = subprocess.run([project / "condor" / "dummy.sh", "1"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: dummy.sh NAME SECONDS, got 1 arguments\n")


def test_without_a_shared_disk_the_wrapper_unpacks_its_python_once(project: Path, tmp_path: Path) -> None:
    """The folder that HTCondor makes for a job: the wrapper under another name, and the transferred files."""
    sandbox = tmp_path / "dir_1"
    (sandbox / "condor").mkdir(parents=True)
    shutil.copy(project / "condor" / "run.sh", sandbox / "condor_exec.exe")
    shutil.copy(project / "condor" / "python.tar.gz", sandbox / "condor")
    (sandbox / "main.py").touch()
    command = [sandbox / "condor_exec.exe", "train", "--experiment-name", "run", "--seed", "1"]
    environment = {**os.environ, "_CONDOR_SCRATCH_DIR": str(sandbox)}
    for _ in range(2):  # the second time in the same folder, as after exit status 85
        done = subprocess.run(command, cwd=sandbox, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "main.py\ntrain\n--experiment-name\nrun\n--seed\n1\n"
        (sandbox / "condor" / "python.tar.gz").unlink(missing_ok=True)
    assert (sandbox / "experiments" / "run").is_dir()  # HTCondor holds a job whose listed folder is missing


def test_the_dummy_prints_whether_it_sees_the_project(project: Path, tmp_path: Path) -> None:
    def told(wrapper: Path) -> str:
        return subprocess.run([wrapper, "x", "0"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "are visible here: use train.job" in told(project / "condor" / "dummy.sh")
    alone = tmp_path / "dir_1" / "condor_exec.exe"
    alone.parent.mkdir()
    shutil.copy(project / "condor" / "dummy.sh", alone)
    assert "use train_transfer.job" in told(alone)


# --- the packed Python --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack() -> Any:
    spec = importlib.util.spec_from_file_location("pack", PROJECT / "condor" / "pack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_training_needs_is_packed_and_no_tool_of_ours(pack: Any) -> None:
    names = set(pack.requirements("mpn-rl"))
    assert {"torch", "numpy", "neurogym", "llvmlite"} <= names  # llvmlite only through numba
    assert not {"mpn-rl", "pytest", "mypy", "ruff", "htcondor"} & names


def test_packed_files_lie_in_the_packages_folder(pack: Any) -> None:
    places = [Path(place) for _, place in pack.files_of(pack.requirements("mpn-rl")["numba"])]
    assert Path("numba/__init__.py") in places
    assert not any(place.is_absolute() or ".." in place.parts or place.suffix == ".pyc" for place in places)


@pytest.mark.skipif(sys.platform != "linux", reason="ldd is Linux's")
def test_the_c_library_is_never_packed(pack: Any) -> None:
    packed = {path.name for path in pack.shared_libraries(Path(os.path.realpath(sys.executable)))}
    assert not any(name.startswith(("libc.so", "libm.so", "ld-linux")) for name in packed)


# --- fetching HTCondor --------------------------------------------------------------------------------------


def test_the_package_source_is_the_machines_own_with_another_release() -> None:
    one_line = "# ours\ndeb http://mirror/debian bookworm main\ndeb [signed-by=/k] http://other x-bookworm main\n"
    assert condor_tools.package_source(one_line, "bookworm") == "deb http://mirror/debian trixie main"
    stanzas = "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n" \
              "Types: deb\nURIs: http://other\nSuites: nodistro\n"  # fmt: skip
    assert condor_tools.package_source(stanzas, "bookworm") == (
        "Types: deb\nURIs: http://mirror/debian\nSuites: trixie trixie-updates\nComponents: main"
    )
