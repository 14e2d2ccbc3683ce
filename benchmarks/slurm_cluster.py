"""Run a submitted sweep on a real Slurm cluster of one node, requeue its rows, and compare them with untouched ones.

    make slurm-test      or      python benchmarks/slurm_cluster.py [--steps 30000] [--keep]

tests/slurm_tools.py starts the cluster; its packages must be installed. benchmarks/submitted_sweep.py describes the
test. Each requeue is `scontrol requeue`, which sends SIGTERM as a preemption does. Two further tasks wait under
slurm/run.sh: one meets the early signal of its time limit and must come back, one is cancelled and must not. The
results go to benchmarks/results/slurm_cluster.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests"), str(PROJECT / "benchmarks")]

import slurm_tools  # noqa: E402
import submitted_sweep  # noqa: E402

RESULTS = PROJECT / "benchmarks" / "results" / "slurm_cluster.json"
STATES = {"PENDING": "waiting", "REQUEUED": "waiting", "RUNNING": "running", "COMPLETED": "done"}


class Slurm(slurm_tools.Cluster):
    """The cluster as submitted_sweep wants it."""

    scheduler = "slurm"
    prefix: list[str] = []  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known: dict[int, tuple[str, int]] = {}

    def tasks(self, number: str) -> dict[int, tuple[str, int]]:
        for row, (state, restarts) in super().tasks(number).items():
            if state == "COMPLETING":
                state = "RUNNING"
            if state == "PENDING" and restarts:  # Slurm lets a requeued task wait for two minutes
                self.command("scontrol", "update", f"JobId={number}_{row}", "StartTime=now", check=False)
            self.known[row] = STATES.get(state, state), restarts + 1
        return self.known

    def evict(self, number: str, row: int) -> None:
        self.command("scontrol", "requeue", f"{number}_{row}")


WAITS = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
time.sleep(600)
"""
TASKS = """#!/usr/bin/env bash
#SBATCH --array=0-1
#SBATCH --time=3
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
export MPN_RL_PYTHON={python}
exec slurm/run.sh wait
"""


def events(cluster: Slurm, folder: Path) -> dict[str, str]:
    """What becomes of a task near its time limit and of one that is cancelled: both save and exit with 85."""
    place = folder / "events"
    (place / "slurm").mkdir(parents=True)
    shutil.copy(PROJECT / "slurm" / "run.sh", place / "slurm")
    (place / "main.py").write_text(WAITS)
    (place / "tasks.sbatch").write_text(TASKS.format(python=shlex.quote(sys.executable)))
    number = cluster.command("sbatch", "tasks.sbatch", cwd=place).split()[-1]
    cancelled, deadline = False, time.monotonic() + 300
    while time.monotonic() < deadline:
        time.sleep(2)
        known = slurm_tools.Cluster.tasks(cluster, number)
        if not cancelled and known.get(1, ("", 0))[0] == "RUNNING":
            time.sleep(5)  # until main.py waits
            cluster.command("scancel", f"{number}_1")
            cancelled = True
        if cancelled and known.get(0, ("", 0))[1]:
            break
    return {
        "time limit": f"{known[0][0]}, {known[0][1]} restart",
        "cancelled": f"{known[1][0]}, {known[1][1]} restarts",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps per row (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the folder, with the cluster's logs")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is ended then too
    with submitted_sweep.workplace(args.keep) as folder:
        try:
            with Slurm(folder / "cluster") as cluster:
                version = cluster.command("sinfo", "--version").split()[1]
                found = submitted_sweep.measure(cluster, folder, args.steps)
                found["events"] = events(cluster, folder)
        except slurm_tools.UnavailableError as reason:
            print(f"skipped: {reason}")
            return 0
    found |= {"slurm": version, "python": platform.python_version(), "cpus": os.cpu_count()}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(f"events: {found['events']}")
    right = found["events"] == {"time limit": "PENDING, 1 restart", "cancelled": "CANCELLED, 0 restarts"}
    return 0 if submitted_sweep.report(found) and right else 1


if __name__ == "__main__":
    sys.exit(main())
