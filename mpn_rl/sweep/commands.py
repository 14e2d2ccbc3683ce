"""Many runs from one table: written, checked, run on this machine, watched, summed up (docs/sweeps.md).

No torch here: every row is a process of its own, `python main.py train ... --resume auto`, so that threads, memory and
crashes are its own as well, and its result is that of the row run alone.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from model_utils import write_bytes_atomic
from mpn_rl.console import stderr, stdout
from mpn_rl.options import ConfigError
from mpn_rl.sweep import sweep_files
from mpn_rl.sweep.state import STATES, log_path, state_of
from mpn_rl.sweep.submit_file import Mistake
from mpn_rl.sweep.table import TRAINING, Existing, Planned, Sweep

POLL_S = 0.5  # between looks at the running rows
GRACE_S = 15.0  # from SIGTERM to SIGKILL, for rows that are to save and leave
USAGE = 2  # exit status of a command line that no second start will mend
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def sweep(args: argparse.Namespace) -> int:
    """`main.py sweep ACTION FILE`."""
    actions = {"expand": expand, "check": check, "run": run, "status": status, "summary": summary}
    return actions[args.action](args)


def _checked(found: Sweep, existing: Existing, more: Sequence[Mistake] = ()) -> Sweep:
    """The sweep, once every mistake in it is printed. Raises: ConfigError that counts them, if there are any."""
    mistakes = sorted({*more, *found.check(existing)})
    for mistake in mistakes:
        stderr.print(str(mistake))
    if mistakes:
        raise ConfigError(f"{_count(len(mistakes), 'mistake')} in {found.path}; nothing was started")
    return found


def _trainings(args: argparse.Namespace, existing: Existing) -> Sweep:
    found = sweep_files.load(Path(args.file), args.experiments_dir)
    if found.command is None or found.command[0] not in TRAINING:
        raise ConfigError(f"{args.file} trains nothing; sweep {args.action} is for sweeps of train or train-neurogym")
    _checked(found, existing)
    if not found.planned:
        raise ConfigError(f"{args.file} has no rows")
    return found


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def expand(args: argparse.Namespace) -> int:
    path = Path(args.file)
    found = _checked(sweep_files.load_toml(path, compare=False), "ignore")
    if found.rows_path.exists() and not args.overwrite:
        raise ConfigError(
            f"{found.rows_path} exists; replace it with --overwrite, or choose another with args = in {path}"
        )
    write_bytes_atomic(found.rows_path, sweep_files.args_text(found).encode())
    settings = _count(len({planned.setting for planned in found.planned}), "setting")
    stdout.print(f"{found.rows_path}: {_count(len(found.rows), 'row')}, {settings}")
    stdout.print(f"queue {', '.join(found.columns)} from {found.rows_path.name}")
    return 0


def check(args: argparse.Namespace) -> int:
    found = sweep_files.load(Path(args.file), args.experiments_dir)
    _checked(found, "resume" if args.resume else "refuse", found.job.mistakes() if found.job else [])
    begun = sum(planned.config is not None and planned.experiment.exists() for planned in found.planned)
    rest = f", {begun} of which have begun and would go on" if begun else ""
    stdout.print(f"{found.path}: {_count(len(found.rows), 'row')}, no mistake{rest}")
    return 0


def status(args: argparse.Namespace) -> int:
    found = _trainings(args, "ignore")
    wide = max(len(planned.name) for planned in found.planned)
    states: Counter[str] = Counter()
    stdout.print(f"{'name':{wide}}  {'state':11}  share   score")
    for planned in found.planned:
        state = state_of(planned.experiment, planned.args)
        states[state.state] += 1
        score = "" if state.score is None else f"{state.score:.3f}"
        stdout.print(f"{planned.name:{wide}}  {state.state:11}  {state.share:4.0%}  {score:>6}  {state.note}".rstrip())
    stdout.print(f"{_count(len(found.planned), 'row')}: " + ", ".join(f"{states[name]} {name}" for name in STATES))
    return 0


def summary(args: argparse.Namespace) -> int:
    from mpn_rl.sweep import summary

    found = _trainings(args, "ignore")
    folder = Path(args.output) if args.output else found.path.parent
    if not folder.is_dir():
        raise ConfigError(f"--output {folder}: there is no such folder; make it or choose another")
    for line in summary.summarise(found, folder, args.score, args.heatmap):
        stdout.print(line)
    return 0


# --- running the rows here ----------------------------------------------------------------------------------


class Children:
    """The processes that run rows, one for each worker thread that calls `work`."""

    def __init__(self, found: Sweep, retries: int) -> None:
        self.found, self.retries = found, retries
        self.running: dict[str, subprocess.Popen] = {}
        self.stopping = threading.Event()
        self.lock = threading.Lock()

    def work(self, planned: Planned) -> str:
        """Run a row to its end. Returns "" or why it has none."""
        failures = 0
        while not self.stopping.is_set():
            code = self._start(planned)
            if code == 0:
                return ""
            if code == planned.args.checkpoint_exit_code or self.stopping.is_set():
                continue  # it has saved, and asks to be started again
            failures += 1
            if code == USAGE or failures > self.retries:
                return f"{_ending(code)}; {log_path(planned.experiment)}"
        return "stopped"

    def _start(self, planned: Planned) -> int:
        argv = [*planned.argv, *([] if "--resume" in planned.argv else ["--resume", "auto"])]
        if self.found.experiments_dir:
            argv += ["--experiments-dir", self.found.experiments_dir]
        command = [sys.executable, str(Path(__file__).parents[2] / "main.py"), *argv]
        threads = dict.fromkeys(THREADS, str(planned.config.run.threads if planned.config else 1))
        log = log_path(planned.experiment)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab", buffering=0) as file:
            file.write(f"sweep: {shlex.join(command)}\n".encode())
            with self.lock:
                if self.stopping.is_set():
                    return 0
                # A session of its own: a Ctrl-C in the terminal reaches the sweep, which then asks its rows to save.
                child = subprocess.Popen(
                    command,
                    cwd=self.found.base,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **threads},
                )
                self.running[planned.name] = child
            code = child.wait()
            with self.lock:
                del self.running[planned.name]
            if code not in (0, planned.args.checkpoint_exit_code) and not self.stopping.is_set():
                file.write(f"sweep: {_ending(code)}\n".encode())
        return code

    def stop(self) -> None:
        """End every row: SIGTERM, which saves, and SIGKILL for those that take too long."""
        with self.lock:
            self.stopping.set()
            children = list(self.running.values())
        deadline = time.monotonic() + GRACE_S
        try:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(max(0.0, deadline - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            for child in children:
                child.kill()


def _ending(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"exit status {code}"


def run(args: argparse.Namespace) -> int:
    found = _trainings(args, "resume")
    states = {planned.name: state_of(planned.experiment, planned.args).state for planned in found.planned}
    elsewhere = [name for name, state in states.items() if state == "running"]
    todo = [planned for planned in found.planned if states[planned.name] not in ("done", "running")][: args.limit]
    workers = min(args.workers or len(os.sched_getaffinity(0)), max(len(todo), 1))
    done = sum(state == "done" for state in states.values())
    stdout.print(f"{_count(len(states), 'row')}: {done} done, {len(todo)} to run, {_count(workers, 'worker')}")
    for name in elsewhere:
        stderr.print(f"note: {name} is running elsewhere; left alone")
    children = Children(found, args.retries)
    pool = ThreadPoolExecutor(workers)
    with _interruptible():
        try:
            failures = _watch({pool.submit(children.work, planned): planned for planned in todo}, children)
        except KeyboardInterrupt:
            stderr.print("stopping: the rows save and leave; the same command goes on with them")
            return 128 + signal.SIGINT
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
    if failures:
        stderr.print(f"{len(failures)} of {_count(len(todo), 'row')} failed: {', '.join(failures)}")
    return 1 if failures else 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM stops a sweep as Ctrl-C does, and SIGINT does so where a shell has started us with it ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(futures: dict[Future[str], Planned], children: Children) -> list[str]:
    """Show the rows until all have ended. Returns the names of those that failed."""
    failures: list[str] = []
    pending, began, rows = set(futures), time.monotonic(), dict[str, TaskID]()
    planned_of = {planned.name: planned for planned in futures.values()}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, redirect_stdout=sys.stdout.isatty(), redirect_stderr=False) as bar:
        whole = bar.add_task("rows", total=len(futures))
        while pending:
            finished, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in finished:
                planned, reason = futures[future], future.result()
                state = state_of(planned.experiment, planned.args)
                failures += [planned.name] if reason else []
                score = "" if state.score is None else f"  score {state.score:.3f}"
                text = f"failed  {planned.name}  {state.note or reason}" if reason else f"done  {planned.name}{score}"
                stdout.print(f"{text}  ({time.monotonic() - began:.0f} s)")
                bar.advance(whole)
                if planned.name in rows:
                    bar.remove_task(rows.pop(planned.name))
            for name in list(children.running):
                if name not in rows:
                    rows[name] = bar.add_task(name, total=100)
                planned = planned_of[name]
                bar.update(rows[name], completed=round(100 * state_of(planned.experiment, planned.args).share))
    return failures
