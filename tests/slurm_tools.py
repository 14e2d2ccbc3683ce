"""A Slurm cluster of one node on this machine, with daemons of its own, for `make slurm-test`.

Debian's packages slurmctld, slurmd, slurm-client and munge must be installed (`apt-get install slurmctld slurmd
slurm-client munge`), and the daemons run as root. Where that cannot be, `UnavailableError` says why. Nothing outside
the cluster's folder is written, except munge's key and socket, where the package has them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PATIENCE = 60  # seconds
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=15
SchedulerParameters=batch_sched_delay=1,sched_interval=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=12000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP MaxTime=INFINITE
"""


class UnavailableError(RuntimeError):
    """Why there is no Slurm here."""


class Cluster:
    """A cluster in a folder, alive within `with`; afterwards none of its processes is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        missing = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
        if missing:
            raise UnavailableError(f"no {', '.join(missing)}; apt-get install slurmctld slurmd slurm-client munge")
        if os.geteuid() != 0:
            raise UnavailableError("Slurm's daemons need root to run here")
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        ports = free_ports(2)
        text = CONFIGURATION.format(
            folder=self.folder, host=socket.gethostname(), port=ports[0], other_port=ports[1],
            cpus=len(os.sched_getaffinity(0)),
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        try:
            self._start(
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/munge.seed",
                f"--log-file={self.folder}/munged.log",
            )  # fmt: skip
            self._wait(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-i")
            self._start("slurmd", "-D")
            self._wait(lambda: "idle" in self.command("sinfo", "--noheader", "--format=%t", check=False))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=SBIN)
        with open(self.folder / f"{program}.out", "w") as log:
            self.daemons.append(
                subprocess.Popen([str(path), *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=subprocess.STDOUT, start_new_session=True)
            )  # fmt: skip

    def _wait(self, ready) -> None:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                logs = [path.read_text()[-500:] for path in sorted(self.folder.glob("*.out"))]
                raise UnavailableError(f"the cluster did not start: {' '.join(' '.join(logs).split())}")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.command("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 30
            while self.command("squeue", "--noheader", check=False).strip() and time.monotonic() < deadline:
                time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(15)
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()

    def command(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def tasks(self, job: str) -> dict[int, tuple[str, int]]:
        """Row -> (state, restarts) of an array's tasks that Slurm still knows."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job, check=False)
        found = re.findall(r"ArrayTaskId=(\d+) .*?JobState=(\w+) .*?Restarts=(\d+)", shown)
        return {int(row): (state, int(restarts)) for row, state, restarts in found}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
