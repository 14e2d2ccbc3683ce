"""Run a submitted sweep on a real Slurm cluster of one node, requeue its rows, and compare them with untouched ones.

    make slurm-test      or      python benchmarks/slurm_cluster.py [--steps 30000] [--keep]

tests/slurm_tools.py starts the cluster; its packages must be installed. benchmarks/submitted_sweep.py describes the
test. Each requeue is `scontrol requeue`, which sends SIGTERM as a preemption does. The results go to
benchmarks/results/slurm_cluster.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
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
        except slurm_tools.UnavailableError as reason:
            print(f"skipped: {reason}")
            return 0
    found |= {"slurm": version, "python": platform.python_version(), "cpus": os.cpu_count()}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if submitted_sweep.report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
