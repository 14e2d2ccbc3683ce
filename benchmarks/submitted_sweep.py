"""A sweep from `sweep submit` to `sweep summary` on a real scheduler, with evicted rows and edited code.

`make condor-pool-test` and `make slurm-test` run it on clusters of one machine. Eight short rows are submitted from a
copy of the project. Then the copy's code is broken: rows that wait would fail if they did not run from the snapshot.
Three rows are evicted twice each. At the end, the weights, last.pt and metrics.jsonl of all rows must equal those of
rows that ran here without a scheduler, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torture

PROJECT = Path(__file__).resolve().parent.parent
ROWS, EVICTED, EVICTIONS = 8, 3, (0.25, 0.6)  # shares of the run
SWEEP = """command = "train"
seeds = [0, 1]
[resources]
memory = "1GB"
time = "1:00:00"
environment = {{ NOTE = "it's \\"quoted\\" $HOME" }}
[fixed]
total-steps = {steps}
checkpoint-freq = {often}
eval-freq = {often}
eval-episodes = 5
hidden-dim = 32
plot-training = false
device = "cpu"
[grid]
eta = [0.1, 1.0]
lambda-decay = [0.85, 0.95]
"""


class Cluster(Protocol):
    """What the test needs of a scheduler."""

    scheduler: str
    environment: Mapping[str, str]
    prefix: list[str]  # in front of a command that submits

    def tasks(self, number: str) -> dict[int, tuple[str, int]]:
        """Row -> (running, waiting, done or a scheduler's word for a failure; starts)."""

    def evict(self, number: str, row: int) -> None:
        """Stop a row in such a way that the scheduler starts it again."""


@contextlib.contextmanager
def workplace(keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mpn-cluster-"))
    try:
        yield folder
    finally:
        print(f"kept: {folder}", file=sys.stderr) if keep else shutil.rmtree(folder, ignore_errors=True)


def lay_out(folder: Path, steps: int) -> Path:
    """A git repository with a copy of the toolkit and the sweep, and a change that is not committed."""
    project = folder / "the project"
    project.mkdir()
    for module in PROJECT.glob("*.py"):
        shutil.copy(module, project)
    for name in ("condor", "slurm", "configs", "mpn_rl"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("*.gz", "__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", project)
    shutil.copy(PROJECT / ".gitignore", project)
    (project / "short.toml").write_text(SWEEP.format(steps=steps, often=steps // 20))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-C", str(project)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    with open(project / "mpn_dqn.py", "a") as file:
        file.write("# a change that is not committed\n")
    return project


def sweep(cluster: Cluster | None, project: Path, *arguments: str) -> str:
    """What `main.py sweep` prints."""
    command = [*(cluster.prefix if cluster else []), sys.executable, "main.py", "sweep", *arguments]
    environment = dict(cluster.environment) if cluster else dict(os.environ)
    environment.pop("PYTHONPATH", None)  # the copy's modules, not this project's
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"sweep {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def step_of(experiment: Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
        step: int = json.loads((experiment / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return step
    return 0


def measure(cluster: Cluster, folder: Path, steps: int) -> dict[str, Any]:
    """Submit, break the code, evict, wait, compare. Returns: what the report shows."""
    project = lay_out(folder, steps)
    sweep(None, project, "run", "short.toml", "--experiments-dir", "experiments-alone", "--workers", "2")
    began = time.monotonic()
    printed = sweep(cluster, project, "submit", "short.toml", "--scheduler", cluster.scheduler, "--yes")
    number = re.findall(r"submitted 8 rows to \w+ as (\d+)", printed)[0]
    for name in ("mpn_dqn.py", "mpn_rl/training.py"):
        (project / name).write_text("raise RuntimeError('the working tree was edited')\n")
    names = json.loads((project / "experiments/.sweep/short/1/submitted.json").read_text())["rows"]
    starts = drive(cluster, number, [project / "experiments" / name for name in names], steps)
    seconds = time.monotonic() - began
    status = sweep(None, project, "status", "short.toml").splitlines()[-1]
    summary = sweep(None, project, "summary", "short.toml", "--output", ".").splitlines()[0]
    rows = []
    for row, name in enumerate(names):
        config = json.loads((project / "experiments" / name / "config.json").read_text())
        different = torture.differences(project / "experiments" / name, project / "experiments-alone" / name)
        snapshot = os.path.relpath(config["versions"]["snapshot"].partition(" (")[0], project)
        rows.append({"row": name, "starts": starts[row], "different_files": different, "snapshot": snapshot})
    return {
        "scheduler": cluster.scheduler, "steps": steps, "seconds": round(seconds, 1), "status": status,
        "summary": summary, "rows": rows,
    }  # fmt: skip


def drive(cluster: Cluster, number: str, experiments: list[Path], steps: int) -> list[int]:
    """Evict the first rows and wait for the end of all. Returns: the starts of each row."""
    evicted, at_start, starts = [0] * ROWS, [0] * ROWS, [0] * ROWS
    deadline = time.monotonic() + 2400
    while time.monotonic() < deadline:
        tasks = cluster.tasks(number)
        for row, (state, count) in tasks.items():
            starts[row] = max(starts[row], count)
            if state not in ("running", "waiting", "done"):
                raise RuntimeError(f"{experiments[row].name} is {state}")
            due = row < EVICTED and evicted[row] < len(EVICTIONS) and count > at_start[row]
            if due and state == "running" and step_of(experiments[row]) >= EVICTIONS[evicted[row]] * steps:
                cluster.evict(number, row)
                evicted[row] += 1
                at_start[row] = count
        if all(state == "done" for state, _ in tasks.values()) and len(tasks) == ROWS:
            return starts
        time.sleep(0.3)
    raise RuntimeError(f"the sweep is not done after 40 minutes: {cluster.tasks(number)}")


def report(found: dict[str, Any]) -> bool:
    """Print a line per row. Returns: whether all is as it should be."""
    print(f"{found['scheduler']}: {found['status']}; {found['seconds']} s\n{found['summary']}")
    good = found["status"].startswith(f"{ROWS} rows: {ROWS} done")
    for place, row in enumerate(found["rows"]):
        fine = not row["different_files"] and row["starts"] >= 1 + len(EVICTIONS) * (place < EVICTED)
        good = good and fine
        verdict = "equals the untouched row" if fine else f"DIFFERS: {row['different_files']}"
        print(f"{row['row']:40} {row['starts']} starts: {verdict}")
    return good
