"""Evict short runs on a real HTCondor pool, and compare them with the same runs without eviction.

    make condor-pool-test      or      python benchmarks/condor_pool.py [--steps 30000] [--keep]

A whole pool of HTCondor's own daemons runs on this machine, on loopback, as an ordinary user, from a folder
(tests/condor_tools.py fetches it). One sweep is submitted with `sweep submit` (benchmarks/submitted_sweep.py). Two are
submitted with the templates of condor/, shortened: train.job, with a shared disk, and train_transfer.job, whose jobs
see nothing but their own empty folder and what HTCondor brings there. Each of their rows is vacated twice with SIGTERM
and once with SIGKILL, at different points of its training; rows of the last sweep also exit by themselves with status
85. At the end, the weights, last.pt and metrics.jsonl of each row must equal those of the run without eviction, bit for
bit. The results go to benchmarks/results/condor_pool.json.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests"), str(PROJECT / "benchmarks")]

import condor_tools  # noqa: E402
import submitted_sweep  # noqa: E402

from mpn_rl.sweep.submit_file import SubmitFile  # noqa: E402

RESULTS = PROJECT / "benchmarks" / "results" / "condor_pool.json"
ROWS = ("one, 1, 1.0, 0.85, 32", "two, 2, 0.5, 0.9, 48", "three, 3, 0.1, 0.95, 64")
# Each template's rows, and options of its own: the second leaves by itself with exit status 85 every 30 seconds, and
# has one row less, since each of its starts unpacks 1.3 GB.
SWEEPS = {"train.job": (3, []), "train_transfer.job": (2, ["--checkpoint-exit-every", "0.5"])}
EVICTIONS = ((0.25, False), (0.5, False), (0.75, True))  # (share of the run, whether at once)
SUBMITTED = "submitted"  # the part that submitted_sweep.py describes
IDLE, RUNNING, COMPLETED, HELD = 1, 2, 4, 5
NOBODY = 65534
# Root cannot submit: in a user namespace of its own the pool is an ordinary user, and its files stay ours.
AS_USER = [] if os.geteuid() else ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
CONFIGURATION = """
LOCAL_DIR = {folder}
RELEASE_DIR = {root}
BIN = {root}/bin
SBIN = {root}/sbin
LIBEXEC = {root}/libexec
LIB = {root}/debian/usr/lib
LOG = {folder}/log
SPOOL = {folder}/spool
EXECUTE = {folder}/execute
LOCK = {folder}/lock
RUN = {folder}/run
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
COLLECTOR_HOST = 127.0.0.1:0
COLLECTOR_ADDRESS_FILE = {folder}/log/.collector_address
USE_SHARED_PORT = False
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_CLIENT_AUTHENTICATION_METHODS = FS
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_ADMINISTRATOR = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
NUM_CPUS = 2
MEMORY = 12000
START = True
SUSPEND = False
PREEMPT = False
KILL = False
RANK = 0
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
RunBenchmarks = False
NEGOTIATOR_INTERVAL = 3
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 5
UPDATE_INTERVAL = 5
PROCD_ADDRESS = {folder}/run/procd_pipe
PROCD_LOG = {folder}/log/ProcLog
FILETRANSFER_PLUGINS =
ENABLE_URL_TRANSFERS = False
"""


class Pool:
    """A personal pool in a folder, which runs within `with`; all its processes end with it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.configuration = folder / "condor_config"

    def __enter__(self) -> Pool:
        for name in ("log", "spool", "execute", "lock", "run"):
            (self.folder / name).mkdir(parents=True)
        port = _free_port()
        text = CONFIGURATION.replace("127.0.0.1:0", f"127.0.0.1:{port}").format(root=self.root, folder=self.folder)
        self.configuration.write_text(text)
        _adopt_orphans()
        environment = {**os.environ, "CONDOR_CONFIG": str(self.configuration)}
        master = [*AS_USER, str(self.root / "sbin" / "condor_master"), "-f"]
        self.master = subprocess.Popen(master, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self.command("condor_status", "-af", "Name", check=False).strip():
            if time.monotonic() > deadline or self.master.poll() is not None:
                self.__exit__()
                raise RuntimeError(f"the pool did not start; see {self.folder / 'log'}")
            time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.master.poll() is None:
            self.master.send_signal(signal.SIGQUIT)  # fast: jobs are killed, daemons leave
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.master.wait(20)
        self.killed = _kill_descendants()

    def command(self, program: str, *arguments: str, cwd: Path | None = None, check: bool = True) -> str:
        """The output of one of HTCondor's commands."""
        environment = {**os.environ, "CONDOR_CONFIG": str(self.configuration)}
        command = [*AS_USER, str(self.root / "bin" / program), *arguments]
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)
        if check and done.returncode != 0:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def jobs(self, cluster: str) -> dict[int, tuple[int, int]]:
        """Row -> (state, starts), also of finished jobs."""
        asked = (cluster, "-af", "ProcId", "JobStatus", "NumShadowStarts")
        lines = self.command("condor_history", *asked) + self.command("condor_q", *asked)
        rows = [[int(part) for part in line.replace("undefined", "0").split()] for line in lines.splitlines()]
        return {row[0]: (row[1], row[2]) for row in rows}


class Submitted:
    """The pool as submitted_sweep wants it."""

    scheduler, prefix = "condor", AS_USER

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        path = f"{pool.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "CONDOR_CONFIG": str(pool.configuration)}

    def tasks(self, number: str) -> dict[int, tuple[str, int]]:
        names = {IDLE: "waiting", RUNNING: "running", COMPLETED: "done", HELD: "held"}
        return {row: (names.get(state, str(state)), starts) for row, (state, starts) in self.pool.jobs(number).items()}

    def evict(self, number: str, row: int) -> None:
        self.pool.command("condor_vacate_job", f"{number}.{row}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _adopt_orphans() -> None:
    """Make orphaned processes of the daemons children of this process, so that it can end them."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _kill_descendants() -> int:
    """End every process that this one started or adopted; returns their number."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass  # has ended by itself
    killed = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for _ in range(100):
        alive = [int(number) for number in children.read_text().split()]
        if not alive:
            break
        for number in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
                killed += 1
        for number in alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(number, 0)
    return killed


# --- the sweep --------------------------------------------------------------------------------------------


def lay_out(folder: Path) -> Path:
    """A copy of the project to work in, so that experiments/ and condor/ do not change."""
    project = folder / "project"
    project.mkdir()
    for module in PROJECT.glob("*.py"):
        shutil.copy(module, project)
    for name in ("condor", "configs", "mpn_rl"):
        shutil.copytree(
            PROJECT / name, project / name, ignore=shutil.ignore_patterns("*.gz", ".python.*", "__pycache__")
        )
    (project / ".venv").symlink_to(sys.prefix)
    return project


def short(steps: int) -> list[str]:
    """Options that make a row take some tens of seconds, with checkpoints for -fast to return to."""
    often = ["--checkpoint-freq", str(steps // 20), "--eval-freq", str(steps // 8), "--eval-episodes", "10"]
    return ["--total-steps", str(steps), *often, "--no-plot-training", "--device", "cpu"]


def template_words(project: Path, template: str, row: str = "") -> list[str]:
    """The command line of a template, with the values of `row` if it is given."""
    job = SubmitFile.read(project / "condor" / template)
    values = dict(zip(job.columns, row.split(", "), strict=True)) if row else {}
    return [re.sub(r"\$\((\w+)\)", lambda macro: values.get(macro[1], macro[0]), word) for word in job.arguments()]


def run_alone(project: Path, row: str, steps: int) -> float:
    """Run the row with the same wrapper and without eviction, in experiments-alone/; returns the seconds."""
    name = row.split(",")[0]
    command = ["condor/run.sh", *template_words(project, "train.job", row), *short(steps)]
    command += ["--experiments-dir", "experiments-alone"]
    began = time.monotonic()
    with open(project / f"alone-{name}.txt", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=project, env=environment, stdout=log, stderr=log, check=True)
    return time.monotonic() - began


def submit(pool: Pool, project: Path, template: str, steps: int) -> str:
    """Submit a template with other rows and shorter runs; returns the number of the cluster."""
    rows, more = SWEEPS[template]
    (project / "condor" / "train_args.txt").write_text("\n".join(ROWS[:rows]) + "\n")
    further = " ".join([*short(steps), *more])
    arguments = f"arguments = {' '.join(template_words(project, template))} {further}"
    shown = pool.command("condor_submit", "-append", arguments, template, cwd=project / "condor")
    return re.findall(r"submitted to cluster (\d+)", shown)[0]


def step_of(folders: list[Path]) -> int:
    """The last step that a row has logged, in its current folder."""
    steps = [0]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            steps.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return max(steps)


def drive(pool: Pool, project: Path, cluster: str, rows: int, steps: int) -> list[list[int]]:
    """Evict every row of a cluster as EVICTIONS states and wait for its end; returns the steps at the evictions."""
    names = [row.split(",")[0] for row in ROWS[:rows]]
    evicted: list[list[int]] = [[] for _ in names]
    starts_then = [-1] * len(names)  # no second eviction before the row runs again
    deadline = time.monotonic() + 2400
    while time.monotonic() < deadline:
        jobs = pool.jobs(cluster)
        held = [row for row, (state, _) in jobs.items() if state == HELD]
        if held:
            raise RuntimeError(f"held: {pool.command('condor_q', cluster, '-hold', '-af', 'ProcId', 'HoldReason')}")
        if len(jobs) == len(names) and all(state == COMPLETED for state, _ in jobs.values()):
            return evicted
        for row, (state, starts) in jobs.items():
            if state != RUNNING or len(evicted[row]) == len(EVICTIONS) or starts == starts_then[row]:
                continue
            share, at_once = EVICTIONS[len(evicted[row])]
            work = f"experiments/{names[row]}"
            step = step_of([project / work, *pool.folder.glob(f"execute/*/{work}")])
            if step >= share * steps:
                pool.command("condor_vacate_job", *(["-fast"] if at_once else []), f"{cluster}.{row}")
                evicted[row].append(step)
                starts_then[row] = starts
        time.sleep(0.5)
    raise RuntimeError(f"the sweep is not done after 40 minutes: {pool.command('condor_q', '-nobatch')}")


def dummies(pool: Pool, project: Path) -> dict[str, Any]:
    """Ten jobs that train nothing, submitted from the project's root; the others are submitted from condor/."""
    shown = pool.command("condor_submit", "condor/dummy.job", cwd=project)
    cluster = re.findall(r"submitted to cluster (\d+)", shown)[0]
    deadline = time.monotonic() + 300
    while any(state != COMPLETED for state, _ in pool.jobs(cluster).values()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the dummies are not done: {pool.command('condor_q', '-hold')}")
        time.sleep(1)
    outputs = [path.read_text() for path in (project / ".condor_logs").glob(f"dummy_{cluster}_*.out")]
    return {"rows": len(outputs), "said": sorted({text.splitlines()[-1] for text in outputs})}


def differences(project: Path, name: str) -> list[str]:
    """The files of the pool's run that differ from the run without eviction; none if all is well."""
    import torture

    return torture.differences(project / "experiments" / name, project / "experiments-alone" / name)


def measure(pool: Pool, project: Path, template: str, steps: int) -> dict[str, Any]:
    """The sweep of one template: submit, evict, compare."""
    began = time.monotonic()
    cluster = submit(pool, project, template, steps)
    evicted = drive(pool, project, cluster, SWEEPS[template][0], steps)
    seconds = time.monotonic() - began
    rows = []
    log = (project / ".condor_logs" / f"{Path(template).stem}_{cluster}.log").read_text()
    for number, (row, (_, starts)) in enumerate(sorted(pool.jobs(cluster).items())):
        name = ROWS[number].split(",")[0]
        out = (project / ".condor_logs" / f"{Path(template).stem}_{cluster}_{number}.out").read_text()
        continued = re.findall(r"continues at step ([\d,]+)", out)
        rows.append({
            "row": ROWS[row], "starts": starts, "evictions": len(re.findall(rf"(?m)^004 \(\d+\.0*{row}\.", log)),
            "evicted_at_steps": evicted[row],
            "continued_at_steps": [int(step.replace(",", "")) for step in continued],
            "different_files": differences(project, name),
        })  # fmt: skip
    shutil.move(project / "experiments", project / f"experiments-{Path(template).stem}")
    return {"template": template, "seconds": round(seconds, 1), "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps per row (default: %(default)s)")
    parts = [SUBMITTED, *SWEEPS]
    parser.add_argument("--templates", nargs="+", choices=parts, default=parts, help="(default: all)")
    parser.add_argument("--keep", action="store_true", help="keep the pool's folder, with its logs")
    args = parser.parse_args()
    try:
        root = condor_tools.condor_root()
    except condor_tools.UnavailableError as reason:
        print(f"skipped: {reason}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the pool is ended then too
    with submitted_sweep.workplace(args.keep) as folder:
        project = lay_out(folder)
        alone: list[float] = []
        if args.templates != [SUBMITTED]:
            with ThreadPoolExecutor(2) as both:
                alone = list(both.map(lambda row: run_alone(project, row, args.steps), ROWS))
        print(f"untouched: {', '.join(f'{seconds:.0f} s' for seconds in alone)}", file=sys.stderr)
        sweeps = []
        pool = Pool(root, folder / "pool")
        with pool:
            version = pool.command("condor_version").split()[1]
            dummy = dummies(pool, project)
            submitted = (
                submitted_sweep.measure(Submitted(pool), folder, args.steps) if SUBMITTED in args.templates else {}
            )
            for template in [name for name in args.templates if name in SWEEPS]:
                if template == "train_transfer.job":
                    subprocess.run([sys.executable, "condor/pack.py"], cwd=project, check=True, stdout=sys.stderr)
                sweeps.append(measure(pool, project, template, args.steps))
        result = {
            "htcondor": version, "python": platform.python_version(), "cpus": os.cpu_count(), "steps": args.steps,
            "untouched_seconds": [round(seconds, 1) for seconds in alone], "dummies": dummy, "sweeps": sweeps,
            SUBMITTED: submitted,
            "processes_killed_at_the_end": pool.killed,
        }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return report(result)


def report(result: dict[str, Any]) -> int:
    """Print the table; returns whether every result is as required."""
    good = submitted_sweep.report(result[SUBMITTED]) if result[SUBMITTED] else True
    for sweep in result["sweeps"]:
        for row in sweep["rows"]:
            equal = not row["different_files"] and row["evictions"] >= len(EVICTIONS)
            good = good and equal
            verdict = "equals the untouched run" if equal else f"DIFFERS: {row['different_files']}"
            name = row["row"].split(",")[0]
            evictions, starts = row["evictions"], row["starts"]
            print(f"{sweep['template']:20} {name:6} {evictions} evictions, {starts} starts: {verdict}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
