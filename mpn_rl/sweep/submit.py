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

from model_utils import write_bytes_atomic, write_json
from mpn_rl.console import stderr, stdout
from mpn_rl.options import PROGRAM, ConfigError, TemporaryError
from mpn_rl.storage.regular_files import disk_errors, open_regular
from mpn_rl.sweep import schedulers, snapshot
from mpn_rl.sweep.schedulers import Resources, Scheduler, Submission
from mpn_rl.sweep.snapshot import Snapshot, Tree
from mpn_rl.sweep.table import Planned, Sweep
from mpn_rl.tasks import trusted_modules

SHOWN = 10  # names of changed files in a line


def submit(table: Sweep, todo: Sequence[Planned], args: argparse.Namespace) -> int:
    """Submit rows of a checked sweep.

    Args:
        table: the sweep, from a TOML file.
        todo: the rows that are not complete and do not run.
        args: the command line: file, scheduler, dry_run, yes, trust_env_module.
    Returns: the exit status.
    Raises: ConfigError if nothing was submitted because of a mistake or the scheduler's answer.
    """
    scheduler = schedulers.choose(args.scheduler)
    need = _resources(table, todo)
    if not args.dry_run:
        schedulers.require_program(scheduler)
    root = Path(os.path.abspath(todo[0].experiment.root))
    tree = Tree.of(table.base, [root])
    rows = [_row(planned, tree, root, args.trust_env_module, need, scheduler) for planned in todo]
    name = re.sub(r"[^\w.+=-]+", "_", table.path.stem, flags=re.ASCII)
    folder = root / ".sweep" / name
    text = _text(scheduler, tree, Submission(name, len(rows), "../N/rows.txt", "../code", need))
    stdout.print(f"{_described(tree)}\n--- {scheduler.file}\n{text}---")
    if args.dry_run:
        stdout.print(f"dry run: {len(rows)} rows for {scheduler.name}; nothing was written or submitted")
        return 0
    if not args.yes and not _confirmed(f"submit {len(rows)} rows to {scheduler.name}? [y/N] "):
        raise ConfigError("nothing was submitted")
    with _locked(folder):
        _refuse_waiting(folder, {planned.name for planned in todo})
        frozen = snapshot.freeze(tree, folder)
        place = next(folder / str(number) for number in range(1, 10**6) if not (folder / str(number)).exists())
        submission = Submission(name, len(rows), f"../{place.name}/rows.txt", f"../{frozen.path.name}", need)
        try:
            with disk_errors(place):
                (place / "logs").mkdir(parents=True)
                write_bytes_atomic(place / "rows.txt", "".join("\t".join(row) + "\n" for row in rows).encode())
                write_bytes_atomic(place / scheduler.file, _text(scheduler, tree, submission).encode())
            number = _submitted(scheduler, place)
        except BaseException:
            _undo(place, frozen)
            raise
        record = {"scheduler": scheduler.name, "number": number, "snapshot": frozen.path.name, "digest": frozen.digest}
        write_json(place / "submitted.json", record | {"rows": [planned.name for planned in todo]})
    stdout.print(f"submitted {len(rows)} rows to {scheduler.name} as {number}; they run the code in {frozen.path}")
    stdout.print(f"watch:  {scheduler.watch.format(number)}    {PROGRAM} sweep status {args.file}")
    stdout.print(f"output: {place / 'logs'}\ncancel: {scheduler.cancel.format(number)}")
    return 0


def _resources(table: Sweep, todo: Sequence[Planned]) -> Resources:
    """The resources of the sweep. Raises: ConfigError if a row uses more than they hold."""
    need = table.resources
    for planned in todo:
        run = planned.config.run if planned.config else None
        if run and run.threads > need.cpus:
            raise ConfigError(f"[resources] cpus = {need.cpus}, but row {planned.name} has --threads {run.threads}")
        if run and run.device.startswith("cuda") and not need.gpus:
            raise ConfigError(f"[resources] gpus = 0, but row {planned.name} has --device {run.device}")
    return need


def _row(
    planned: Planned, tree: Tree, root: Path, trusted: Sequence[str], need: Resources, scheduler: Scheduler
) -> list[str]:
    """The arguments of main.py for a row that runs in the snapshot. The last of equal options counts."""
    row = [*planned.argv, *([] if "--resume" in planned.argv else ["--resume", "auto"])]
    config = planned.args.config
    if config and Path(config).exists():  # else a configuration of the toolkit
        row += ["--config", tree.place_of(Path(config))]
    row += ["--experiments-dir", str(root), "--checkpoint-exit-code", str(schedulers.EXIT_CODE)]
    if scheduler.name == "condor":  # which has no limit of its own that lets a job save
        row += ["--checkpoint-exit-every", f"{need.time_s / 60:g}"]
    for module in trusted:
        row += [trusted_modules.FLAG, module]
    if not all(word and word.isprintable() for word in row):
        raise ConfigError(f"row {planned.name} has an option that is empty or not printable: {row!r}")
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
