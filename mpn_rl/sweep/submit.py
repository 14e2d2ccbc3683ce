"""`sweep submit`: freeze the code, write a file for HTCondor or Slurm, submit it (docs/sweeps.md).

experiments/.sweep/<name>/
    code/  code-2/ ...   snapshots, read-only: the rows run there
    1/  2/ ...           one folder per submission: rows.txt, submit.job or submit.sbatch, submitted.json, logs/
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from model_utils import write_bytes_atomic, write_json
from mpn_rl.console import stderr, stdout
from mpn_rl.options import PROGRAM, ConfigError, TemporaryError
from mpn_rl.storage.regular_files import disk_errors, open_regular
from mpn_rl.sweep import schedulers, snapshot
from mpn_rl.sweep.schedulers import Scheduler, Submission
from mpn_rl.sweep.snapshot import Snapshot, Tree
from mpn_rl.sweep.table import Planned, Sweep
from mpn_rl.tasks import trusted_modules

SHOWN = 10  # names of changed files in a line


class Job(NamedTuple):
    """One job: a name, and the arguments of main.py in the snapshot."""

    name: str
    argv: list[str]


def submit_rows(table: Sweep, todo: Sequence[Planned], args: argparse.Namespace) -> int:
    """Submit rows of a checked sweep.

    Args:
        table: the sweep, from a TOML file.
        todo: the rows that are not complete and do not run.
        args: the command line: file, scheduler, dry_run, yes, trust_env_module.
    Returns: the exit status.
    Raises: ConfigError if nothing was submitted because of a mistake or the scheduler's answer.
    """
    scheduler, tree, root = _prepared(table, args)
    jobs = [Job(planned.name, _row(planned, tree, root, args.trust_env_module)) for planned in todo]
    if scheduler.name == "condor":  # which has no time limit that lets a job save
        every = ["--checkpoint-exit-every", f"{table.resources.time_s / 60:g}"]
        jobs = [Job(name, [*argv, *every]) for name, argv in jobs]
    return _submit(table, scheduler, tree, root, jobs, args)


def submit_workers(table: Sweep, args: argparse.Namespace) -> int:
    """Submit `args.search_workers` jobs that run `sweep search` together; otherwise as `submit_rows`."""
    scheduler, tree, root = _prepared(table, args)
    argv = ["sweep", "search", tree.place_of(table.path), "--worker", "--experiments-dir", str(root)]
    for module in args.trust_env_module:
        argv += [trusted_modules.FLAG, module]
    jobs = [Job(f"search worker {number}", argv) for number in range(args.search_workers)]
    return _submit(table, scheduler, tree, root, jobs, args)


def _prepared(table: Sweep, args: argparse.Namespace) -> tuple[Scheduler, Tree, Path]:
    """The scheduler, what is frozen, and the folder of the experiments. Raises: ConfigError."""
    scheduler = schedulers.choose(args.scheduler)
    for planned in table.planned:
        run, need = planned.config.run if planned.config else None, table.resources
        if run and run.threads > need.cpus:
            raise ConfigError(f"[resources] cpus = {need.cpus}, but row {planned.name} has --threads {run.threads}")
        if run and run.device.startswith("cuda") and not need.gpus:
            raise ConfigError(f"[resources] gpus = 0, but row {planned.name} has --device {run.device}")
    if not args.dry_run:
        schedulers.require_program(scheduler)
    root = Path(os.path.abspath(table.planned[0].experiment.root))
    return scheduler, Tree.of(table.base, [root]), root


def _submit(
    table: Sweep, scheduler: Scheduler, tree: Tree, root: Path, jobs: Sequence[Job], args: argparse.Namespace
) -> int:
    """Show, ask, freeze and submit. Returns: the exit status."""
    for name, argv in jobs:
        if not all(word and word.isprintable() for word in argv):
            raise ConfigError(f"{name} has an option that is empty or not printable: {argv!r}")
    name = re.sub(r"[^\w.+=-]+", "_", table.path.stem, flags=re.ASCII)
    folder = root / ".sweep" / name
    draft = Submission(name, len(jobs), "../N/rows.txt", "../code", table.resources)
    stdout.print(f"{_described(tree)}\n--- {scheduler.file}\n{_text(scheduler, tree, draft)}---")
    rows = f"{len(jobs)} {'row' if len(jobs) == 1 else 'rows'}"
    if args.dry_run:
        stdout.print(f"dry run: {rows} for {scheduler.name}; nothing was written or submitted")
        return 0
    if not args.yes and not _confirmed(f"submit {rows} to {scheduler.name}? [y/N] "):
        raise ConfigError("nothing was submitted")
    with _locked(folder):
        if not args.search_workers:  # more workers may join a search
            _refuse_waiting(folder, {job.name for job in jobs})
        frozen = snapshot.freeze(tree, folder)
        place = next(folder / str(number) for number in range(1, 10**6) if not (folder / str(number)).exists())
        submission = draft._replace(rows_file=f"../{place.name}/rows.txt", code=f"../{frozen.path.name}")
        try:
            with disk_errors(place):
                (place / "logs").mkdir(parents=True)
                write_bytes_atomic(place / "rows.txt", "".join("\t".join(job.argv) + "\n" for job in jobs).encode())
                write_bytes_atomic(place / scheduler.file, _text(scheduler, tree, submission).encode())
            number = _submitted(scheduler, place)
        except BaseException:
            _undo(place, frozen)
            raise
        record = {"scheduler": scheduler.name, "number": number, "snapshot": frozen.path.name, "digest": frozen.digest}
        write_json(place / "submitted.json", record | {"rows": [job.name for job in jobs]})
    stdout.print(f"submitted {rows} to {scheduler.name} as {number}; they run the code in {frozen.path}")
    show = f"search {args.file} --show" if args.search_workers else f"status {args.file}"
    stdout.print(f"watch:  {scheduler.watch.format(number)}    {PROGRAM} sweep {show}")
    stdout.print(f"output: {place / 'logs'}\ncancel: {scheduler.cancel.format(number)}")
    return 0


def _row(planned: Planned, tree: Tree, root: Path, trusted: Sequence[str]) -> list[str]:
    """The arguments of main.py for a row that runs in the snapshot. The last of equal options counts."""
    row = [*planned.argv, *([] if "--resume" in planned.argv else ["--resume", "auto"])]
    config = planned.args.config
    if config and Path(config).exists():  # else a configuration of the toolkit
        row += ["--config", tree.place_of(Path(config))]
    row += ["--experiments-dir", str(root), "--checkpoint-exit-code", str(schedulers.EXIT_CODE)]
    for module in trusted:
        row += [trusted_modules.FLAG, module]
    return row


def _text(scheduler: Scheduler, tree: Tree, submission: Submission) -> str:
    template = tree.files.get(f"{scheduler.name}/{scheduler.template}")
    if template is None:
        raise ConfigError(f"{tree.root} has no {scheduler.name}/{scheduler.template}, the template of a submission")
    return scheduler.text(template.read_text(encoding="utf-8"), submission)


def _described(tree: Tree) -> str:
    """What is frozen: the commit, and the files that differ from it."""
    lines = [f"code: {tree.root}, commit {tree.commit[:12]}, {len(tree.files):,} files"]
    notes = {"changed since the commit": tree.changed, "left out, because they leave the project": tree.left_out}
    for label, names in notes.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{label}: {', '.join(names[:SHOWN])}{more}")
    return "\n".join(lines)


def _confirmed(question: str) -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        raise ConfigError("nothing was submitted: there is no terminal to ask; add --yes")
    stderr.print(question, end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One submission of a sweep at a time. Raises: TemporaryError while another process submits it."""
    path = folder / ".lock"
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        with open_regular(path, os.O_RDWR | os.O_CREAT) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TemporaryError(f"another process submits {folder.name}; nothing was submitted") from None
            yield


def _refuse_waiting(folder: Path, names: set[str]) -> None:
    """Raises: ConfigError if an earlier submission of these rows is still in a queue."""
    for path in sorted(folder.glob("*/submitted.json")):
        try:
            record = json.loads(path.read_bytes())
            scheduler, number = schedulers.SCHEDULERS[record["scheduler"]], str(int(record["number"]))
            concerned = bool(names & set(record["rows"])) and shutil.which(scheduler.queued[0]) is not None
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if concerned:
            status, output, _ = schedulers.call(tuple(word.format(number) for word in scheduler.queued), folder)
            if status == 0 and output.strip():
                raise ConfigError(
                    f"rows of {folder.name} are still in the queue as {number}; wait for them, or cancel them with "
                    f"{scheduler.cancel.format(number)}"
                )


def _submitted(scheduler: Scheduler, place: Path) -> str:
    """Submit the file in a folder. Returns: the submission's number. Raises: ConfigError with the reason."""
    for command in (scheduler.trial, scheduler.submit):
        status, output, errors = schedulers.call((*command, scheduler.file), place)
        if status != 0 or (command == scheduler.trial and "WARNING" in errors):  # condor_submit warns of a mistake
            reason = errors or " ".join(output.split()) or f"exit status {status}"
            raise ConfigError(f"{command[0]} refuses, and nothing was submitted: {reason}")
    number = re.search(scheduler.number, output)
    return number[1] if number else "unknown"


def _undo(place: Path, frozen: Snapshot) -> None:
    """Remove what a refused submission wrote."""
    shutil.rmtree(place, ignore_errors=True)
    if frozen.new:
        snapshot.remove(frozen.path)
    if os.listdir(place.parent) == [".lock"]:
        shutil.rmtree(place.parent, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            for folder in (place.parents[1], place.parents[2]):
                folder.rmdir()
