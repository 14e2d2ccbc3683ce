"""HTCondor and Slurm: the `[resources]` table of a sweep, and what differs between the two, as one table.

A submission starts from a template of the project, condor/train.job or slurm/train.sbatch, so that what a lab has added
there stays. Each row is one job, whose only argument is the number of its line in the file of rows: no value passes
through a shell. This module imports only the standard library and option modules.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mpn_rl.options import ConfigError, nearest, shortened
from mpn_rl.sweep.submit_file import joined_lines

EXIT_CODE = 85  # of a row that saved its checkpoint and wants to be started again
UNITS = {"MB": 1, "GB": 1024, "TB": 1024**2}
SAVE_S = 120  # from the signal to save until SIGKILL
KEPT = ("HOME", "PATH", "USER", "LANG")  # variables that a Slurm task takes over


@dataclass(frozen=True)
class Resources:
    """What one row needs; each field is a key of the table `[resources]`.

    Args:
        cpus: cores.
        gpus: graphics processors.
        memory_mb: main memory, written as "4GB".
        time_s: the longest time of one start, written as "12:00:00"; the row then saves and is started again.
        partition, account: of Slurm.
        requirements: an expression over HTCondor's machine attributes.
        python: the interpreter on the machines that run rows.
        environment: variables for the rows.
    """

    cpus: int = 1
    gpus: int = 0
    memory_mb: int = 4096
    time_s: int = 86_400
    partition: str = ""
    account: str = ""
    requirements: str = ""
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, table: object) -> Resources:
        """The checked table of a TOML file. Raises: ConfigError with the key, the rule and the value."""
        if not isinstance(table, dict):
            raise ConfigError(f"[resources] must be a table, got {shortened(table)}")
        checks: dict[str, Callable[[str, object], object]] = {
            "cpus": lambda key, value: _whole(key, value, 1),
            "gpus": lambda key, value: _whole(key, value, 0),
            "memory": _megabytes,
            "time": _seconds,
            "partition": _word,
            "account": _word,
            "requirements": _line,
            "python": _line,
            "environment": _variables,
        }
        for key in table:
            if key not in checks:
                raise ConfigError(f"[resources] has no key {key!r}{nearest(key, checks)}")
        names = {"memory": "memory_mb", "time": "time_s"}
        return cls(**{names.get(key, key): checks[key](key, value) for key, value in table.items()})  # type: ignore[arg-type]

    @property
    def variables(self) -> dict[str, str]:
        """The variables of a row's process."""
        return {"MPN_RL_PYTHON": self.python, **self.environment}


def _whole(key: str, value: object, low: int) -> int:
    if type(value) is not int or not low <= value <= 10_000:
        raise ConfigError(f"[resources] {key} must be a whole number from {low} to 10,000, got {shortened(value)}")
    return value


def _megabytes(key: str, value: object) -> int:
    parts = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?([MGT]B)", value) if isinstance(value, str) else None
    if parts is None or float(parts[1]) == 0:
        raise ConfigError(f'[resources] {key} must be a size such as "4GB" or "500MB", got {shortened(value)}')
    return math.ceil(float(parts[1]) * UNITS[parts[2]])


def _seconds(key: str, value: object) -> int:
    parts = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,4}):(\d\d):(\d\d)", value) if isinstance(value, str) else None
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < 2 * SAVE_S or minutes > 59 or seconds > 59:
        raise ConfigError(
            f'[resources] {key} must be "HH:MM:SS" or "D-HH:MM:SS", at least {2 * SAVE_S // 60} minutes, got '
            f"{shortened(value)}"
        )
    return total


def _word(key: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.][\w.,+-]*", value, re.ASCII):
        raise ConfigError(
            f"[resources] {key} must be a name of letters, digits, '_', '.' and '-', got {shortened(value)}"
        )
    return value


def _line(key: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[ -~]*[!-\[\]-~]", value):
        raise ConfigError(
            f"[resources] {key} must be one line of printable ASCII that does not end in '\\', got {shortened(value)}"
        )
    return value


def _variables(key: str, value: object) -> dict[str, str]:
    rule = f'[resources] {key} must be a table NAME = "one line"'
    if not isinstance(value, dict):
        raise ConfigError(f"{rule}, got {shortened(value)}")
    for name, text in value.items():
        if not (re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and isinstance(text, str) and text.isprintable()):
            raise ConfigError(f"{rule}, got {shortened(name)} = {shortened(text)}")
    return dict(value)


# --- what differs -------------------------------------------------------------------------------------------


class Submission(NamedTuple):
    """What is submitted: `rows` jobs in the order of a file of rows.

    Args:
        name: of the sweep.
        rows: their number.
        rows_file: path of the file of rows, from the snapshot.
        code: path of the snapshot, from the folder of the submission.
        resources: of each row.
    """

    name: str
    rows: int
    rows_file: str
    code: str
    resources: Resources


def condor_text(template: str, submission: Submission) -> str:
    """The submit file: the template without comments, with the sweep's own settings."""
    need = submission.resources
    settings = {
        "executable": f"{submission.code}/condor/run.sh",
        "arguments": f"--row {submission.rows_file} $(Process)",
        "initialdir": None,
        "batch_name": submission.name,
        "environment": _condor_environment(need.variables),
        "request_cpus": str(need.cpus),
        "request_gpus": str(need.gpus),
        "request_memory": f"{need.memory_mb}MB",
        "output": "logs/$(Cluster)_$(Process).out",
        "error": "logs/$(Cluster)_$(Process).err",
        "log": "logs/$(Cluster).log",
        "should_transfer_files": "NO",
        "checkpoint_exit_code": str(EXIT_CODE),
        "job_max_vacate_time": str(SAVE_S),
    }
    settings |= {"requirements": need.requirements} if need.requirements else {}
    lines = []
    for _, line in joined_lines(template):
        key = line.partition("=")[0].strip().lower()
        if not re.match(r"\s*($|#|include\b|queue\b)", line, re.IGNORECASE) and key not in settings:
            lines.append(line.strip())
    own = [f"{key} = {value}" for key, value in settings.items() if value is not None]
    return "\n".join([*own, *lines, f"queue {submission.rows}"]) + "\n"


def _condor_environment(variables: Mapping[str, str]) -> str:
    """HTCondor's new syntax: single quotes around a value, quotes in it doubled, and no macros."""
    words = []
    for name, value in variables.items():
        text = value.replace("'", "''").replace('"', '""').replace("$", "$(DOLLAR)")
        words.append(f"{name}='{text}'")
    return f'"{" ".join(words)}"'


def slurm_text(template: str, submission: Submission) -> str:
    """The array script: the options of the template, with the sweep's own."""
    need = submission.resources
    hours, seconds = divmod(need.time_s, 3600)
    options: dict[str, str | None] = {
        "job-name": submission.name,
        "array": f"0-{submission.rows - 1}",
        "cpus-per-task": str(need.cpus),
        "gres": f"gpu:{need.gpus}" if need.gpus else None,
        "mem": f"{need.memory_mb}M",
        "time": f"{hours}:{seconds // 60:02}:{seconds % 60:02}",
        "output": "logs/%A_%a.out",
        "export": ",".join(KEPT),
        "signal": f"B:TERM@{SAVE_S}",
        "requeue": "",
        "open-mode": "append",
    }
    options |= {"partition": need.partition} if need.partition else {}
    options |= {"account": need.account} if need.account else {}
    kept = [
        line.strip()
        for line in template.splitlines()
        if (option := re.match(r"#SBATCH\s+--([a-z-]+)", line)) and option[1] not in options
    ]
    own = [f"#SBATCH --{key}{f'={value}' if value else ''}" for key, value in options.items() if value is not None]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in need.variables.items()]
    start = f'exec {submission.code}/slurm/run.sh --row {submission.rows_file} "$SLURM_ARRAY_TASK_ID"'
    return "\n".join(["#!/usr/bin/env bash", *own, *kept, *exports, start]) + "\n"


class Scheduler(NamedTuple):
    """One scheduler. In its command lines, {} stands for the number of a submission.

    Args:
        name: of the folder with its templates.
        template: the template that a submission starts from.
        file: name of the file to submit.
        text: makes this file from the template.
        submit: command line that submits the file.
        trial: command line that checks the file without submitting it.
        number: the number of the submission in what `submit` prints.
        queued: command line that prints a line per job that is not finished.
        watch, cancel: command lines for the user.
    """

    name: str
    template: str
    file: str
    text: Callable[[str, Submission], str]
    submit: tuple[str, ...]
    trial: tuple[str, ...]
    number: str
    queued: tuple[str, ...]
    watch: str
    cancel: str


SCHEDULERS = {
    "condor": Scheduler(
        name="condor",
        template="train.job",
        file="submit.job",
        text=condor_text,
        submit=("condor_submit",),
        trial=("condor_submit", "-dry-run", "/dev/null"),
        number=r"submitted to cluster (\d+)",
        queued=("condor_q", "{}", "-af", "ProcId"),
        watch="condor_q {}",
        cancel="condor_rm {}",
    ),
    "slurm": Scheduler(
        name="slurm",
        template="train.sbatch",
        file="submit.sbatch",
        text=slurm_text,
        submit=("sbatch",),
        trial=("sbatch", "--test-only"),
        number=r"Submitted batch job (\d+)",
        queued=("squeue", "--noheader", "--jobs={}"),
        watch="squeue --jobs={}",
        cancel="scancel {}",
    ),
}


def choose(name: str | None) -> Scheduler:
    """The named scheduler, or the only one whose programs are here. Raises: ConfigError."""
    if name is not None:
        if name not in SCHEDULERS:
            raise ConfigError(f"--scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}")
        return SCHEDULERS[name]
    here = [one for one in SCHEDULERS.values() if shutil.which(one.submit[0])]
    if len(here) != 1:
        programs = " and ".join(one.submit[0] for one in SCHEDULERS.values())
        found = "both are here" if here else "neither is here"
        raise ConfigError(f"--scheduler must say which of {programs} to use, because {found}")
    return here[0]


def require_program(scheduler: Scheduler) -> None:
    """Raises: ConfigError if the scheduler's program is not on this machine."""
    if shutil.which(scheduler.submit[0]) is None:
        raise ConfigError(
            f"no {scheduler.submit[0]} on this machine's PATH: submit from a machine of the cluster, or use sweep run"
        )


def call(command: tuple[str, ...], folder: Path) -> tuple[int, str, str]:
    """Run one of a scheduler's programs in a folder. Returns: exit status, output, errors in one line."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=300
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"{command[0]} gave no answer for five minutes"
    return done.returncode, done.stdout, " ".join(done.stderr.split())
