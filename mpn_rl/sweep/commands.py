"""The actions of `main.py sweep`: expand, check, run, submit, status, summary (docs/sweeps.md).

`sweep run` starts a process per row, `python main.py train ... --resume auto`. Rows share no threads and no memory, a
crash ends only one of them, and each gives the same result as when it runs alone. This module does not import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from model_utils import write_bytes_atomic
from mpn_rl.console import stderr, stdout
from mpn_rl.options import ConfigError, TemporaryError
from mpn_rl.runs.state import STARTED, STATES, failure_of, log_path, state_of
from mpn_rl.sweep import sweep_files
from mpn_rl.sweep.submit_file import Mistake
from mpn_rl.sweep.table import TRAINING, Existing, Planned, Sweep
from mpn_rl.tasks import trusted_modules

MAIN = Path(__file__).parents[2] / "main.py"  # what runs a row
POLL_S = 0.5  # between two reads of the running rows' states
GRACE_S = 15.0  # from SIGTERM to SIGKILL, for rows to save their checkpoints
USAGE = 2  # the exit status for a wrong command line: a retry would fail too
PAUSES_S = (5, 20, 80, 320)  # before the retries of a row that exits with TemporaryError.status
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# A row gets SIGTERM when this process ends in any way, SIGKILL included: it saves a checkpoint and exits. The kernel
# remembers this across exec. On other systems than Linux, such a row continues to its end.
START = """\
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
    if os.getppid() != int(sys.argv[1]):
        sys.exit(143)
os.execv(sys.argv[2], sys.argv[2:])
"""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def sweep(args: argparse.Namespace) -> int:
    """Run `main.py sweep ACTION FILE`. Returns: the exit status."""
    actions = {
        "expand": expand,
        "check": check,
        "run": run,
        "submit": submit,
        "search": search,
        "status": status,
        "summary": summary,
    }
    return actions[args.action](args)


def _checked(table: Sweep, existing: Existing, more: Sequence[Mistake] = ()) -> Sweep:
    """Check a sweep, and print its mistakes and `more`. Raises: ConfigError with their number if there are any."""
    mistakes = sorted({*more, *table.check(existing)})
    for mistake in mistakes:
        stderr.print(str(mistake))
    if mistakes:
        raise ConfigError(f"{_count(len(mistakes), 'mistake')} in {table.path}; nothing was started")
    return table


def _trainings(args: argparse.Namespace, existing: Existing) -> Sweep:
    """The checked sweep of a file whose rows train. Raises: ConfigError."""
    return _checked_trainings(sweep_files.load(Path(args.file), args.experiments_dir), args, existing)


def _checked_trainings(table: Sweep, args: argparse.Namespace, existing: Existing) -> Sweep:
    if table.command is None or table.command[0] not in TRAINING:
        raise ConfigError(
            f"the rows of {args.file} do not train; sweep {args.action} needs rows of train or train-neurogym"
        )
    _checked(table, existing)
    if not table.planned:
        raise ConfigError(f"{args.file} has no rows")
    return table


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def expand(args: argparse.Namespace) -> int:
    """Write the args file of a TOML file."""
    path = Path(args.file)
    table = _checked(sweep_files.load_toml(path, compare=False), "ignore")
    if table.rows_path.exists() and not args.overwrite:
        raise ConfigError(
            f"{table.rows_path} exists; replace it with --overwrite, or set another file as args in {path}"
        )
    write_bytes_atomic(table.rows_path, sweep_files.args_text(table).encode())
    settings = _count(len({planned.setting for planned in table.planned}), "setting")
    stdout.print(f"{table.rows_path}: {_count(len(table.rows), 'row')}, {settings}")
    stdout.print(f"queue {', '.join(table.columns)} from {table.rows_path.name}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Check every row without starting anything."""
    table = sweep_files.load(Path(args.file), args.experiments_dir)
    _checked(table, "resume" if args.resume else "refuse", table.job.mistakes() if table.job else [])
    for module in _modules(table):
        trusted = "" if trusted_modules.is_trusted(module) else f"; sweep run needs {trusted_modules.FLAG} {module}"
        stdout.print(f"rows import the task module {module!r}, and its code runs{trusted}")
    started = sum(planned.config is not None and planned.experiment.exists() for planned in table.planned)
    rest = f"; {started} have started and would continue" if started else ""
    stdout.print(f"{table.path}: {_count(len(table.rows), 'row')}, no mistakes{rest}")
    return 0


def _modules(table: Sweep) -> list[str]:
    """The task modules that rows import."""
    names = {planned.config.env.env_name for planned in table.planned if planned.config}
    return sorted(set().union(*map(trusted_modules.modules_of, names)))


def status(args: argparse.Namespace) -> int:
    """Print the state of every row."""
    table = _trainings(args, "ignore")
    width = max(len(planned.name) for planned in table.planned)
    states: Counter[str] = Counter()
    stdout.print(f"{'name':{width}}  {'state':11}  share   score")
    for planned in table.planned:
        state = state_of(planned.experiment, planned.args)
        states[state.state] += 1
        score = "" if state.score is None else f"{state.score:.3f}"
        stdout.print(f"{planned.name:{width}}  {state.state:11}  {state.share:4.0%}  {score:>6}  {state.note}".rstrip())
    stdout.print(f"{_count(len(table.planned), 'row')}: " + ", ".join(f"{states[name]} {name}" for name in STATES))
    return 0


def summary(args: argparse.Namespace) -> int:
    """Write the summary over seeds, and print the best settings."""
    from mpn_rl.sweep import summary

    table = _trainings(args, "ignore")
    folder = Path(args.output) if args.output else table.path.parent
    if not folder.is_dir():
        raise ConfigError(f"--output {folder}: no such folder; make it or choose another one")
    for line in summary.summarise(table, folder, args.score, args.heatmap):
        stdout.print(line)
    return 0


# --- running rows on this machine ---------------------------------------------------------------------------


class Children:
    """The processes that run rows: one for each worker thread that calls `work`.

    Args:
        sweep: the checked sweep.
        retries: how often a row that fails is started again.
        trusted: task modules that rows may import.
    """

    def __init__(self, sweep: Sweep, retries: int, trusted: Sequence[str] = ()) -> None:
        self.sweep, self.retries, self.trusted = sweep, retries, trusted
        self.running: dict[str, subprocess.Popen] = {}
        self.started_s: dict[str, float] = {}  # the clock when a row was first started here
        self.stopping = threading.Event()
        self.lock = threading.Lock()

    def work(self, planned: Planned, enough: Callable[[], bool] | None = None) -> str:
        """Run a row until it is complete.

        Args:
            planned: the row.
            enough: asked while the row runs; True ends the row, which saves a checkpoint.
        Returns: "", or why the row is not complete.
        """
        self.started_s[planned.name] = time.monotonic()
        failures, pauses = 0, iter(PAUSES_S)
        while not self.stopping.is_set():
            code = self._start(planned, enough)
            if enough is not None and enough():
                return "ended"
            if code == planned.args.checkpoint_exit_code or self.stopping.is_set():
                continue  # the row saved a checkpoint and exited in order to be started again
            if code == 0:
                state = state_of(planned.experiment, planned.args)
                return "" if state.state == "done" else f"exit status 0, but the run is {state.state}"
            pause = next(pauses, None) if code == TemporaryError.status else None
            if pause is not None:
                self.stopping.wait(pause)
                continue
            failures += 1
            if code in (USAGE, TemporaryError.status) or failures > self.retries:
                reason = failure_of(planned.experiment) or _ending(code)
                return f"{reason} ({log_path(planned.experiment)})"
        return "stopped"

    def _start(self, planned: Planned, enough: Callable[[], bool] | None = None) -> int:
        """Run one process of a row. Returns: its exit status."""
        argv = [*planned.argv, *([] if "--resume" in planned.argv else ["--resume", "auto"])]
        for module in self.trusted:
            argv += [trusted_modules.FLAG, module]
        if self.sweep.experiments_dir:
            argv += ["--experiments-dir", self.sweep.experiments_dir]
        command = [sys.executable, str(MAIN), *argv]
        threads = dict.fromkeys(THREADS, str(planned.config.run.threads if planned.config else 1))
        log = log_path(planned.experiment)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab", buffering=0) as file:
            file.write(f"{STARTED}{shlex.join(command)}\n".encode())
            with self.lock:
                if self.stopping.is_set():
                    return 0
                # With start_new_session, Ctrl-C reaches only this process, which then asks the rows to save.
                child = subprocess.Popen(
                    [sys.executable, "-S", "-E", "-c", START, str(os.getpid()), *command],
                    cwd=self.sweep.base,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **threads},
                )
                self.running[planned.name] = child
            code = _wait(child, enough)
            with self.lock:
                del self.running[planned.name]
            if code not in (0, planned.args.checkpoint_exit_code) and not self.stopping.is_set():
                file.write(f"sweep: {_ending(code)}\n".encode())
        return code

    def stop(self) -> None:
        """End every row: SIGTERM makes it save a checkpoint; SIGKILL follows if that takes longer than GRACE_S."""
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


def _wait(child: subprocess.Popen, enough: Callable[[], bool] | None) -> int:
    """The exit status of a process, which is ended once `enough` is true."""
    if enough is None:
        return child.wait()
    deadline = None
    while True:
        try:
            return child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if deadline is None and enough():
                child.terminate()
                deadline = time.monotonic() + GRACE_S
            elif deadline is not None and time.monotonic() > deadline:
                child.kill()


def _ending(code: int) -> str:
    """An exit status of subprocess in words."""
    if code >= 0:
        return f"exit status {code}"
    names = {number.value: number.name for number in signal.Signals}
    memory = ", perhaps because the memory is full" if -code == signal.SIGKILL else ""
    return f"ended by signal {-code} ({names.get(-code, 'unknown')}){memory}"


def _require_trust(table: Sweep) -> None:
    """Raises: ConfigError if rows name a task module that the command line does not."""
    for module in _modules(table):
        if not trusted_modules.is_trusted(module):
            raise ConfigError(
                f"rows of {table.path} name the task module {module!r}, and its code would run here; read it, and if "
                f"you trust it, add {trusted_modules.FLAG} {module}"
            )


def _open_rows(table: Sweep) -> tuple[dict[str, str], list[Planned]]:
    """The state of each row, and the rows that are neither complete nor running."""
    states = {planned.name: state_of(planned.experiment, planned.args).state for planned in table.planned}
    for name, state in states.items():
        if state == "running":
            stderr.print(f"note: another process runs {name}; it is not started again")
    return states, [planned for planned in table.planned if states[planned.name] not in ("done", "running")]


def submit(args: argparse.Namespace) -> int:
    """Submit the rows that are not complete to a cluster."""
    from mpn_rl.sweep import submit

    if Path(args.file).suffix != ".toml":
        raise ConfigError(
            f"sweep submit takes a TOML file, got {args.file}; submit a file for HTCondor or Slurm by hand, or name it "
            "in a TOML file as job"
        )
    if args.search_workers:
        table = _search_table(args)
        _require_trust(table)
        return submit.submit_workers(table, args)
    table = _trainings(args, "resume")
    _require_trust(table)
    _, open_rows = _open_rows(table)
    if not open_rows:
        stdout.print(f"{_count(len(table.planned), 'row')}: all are complete or running; nothing was submitted")
        return 0
    return submit.submit_rows(table, open_rows, args)


def search(args: argparse.Namespace) -> int:
    """Search the settings of a TOML file with Optuna."""
    _require_optuna()
    from mpn_rl.sweep import search

    table = _search_table(args)
    _require_trust(table)
    return search.search(table, args)


def _require_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("sweep search needs Optuna; install it with: pip install 'mpn-rl[search]'")


def _search_table(args: argparse.Namespace) -> Sweep:
    """The checked sweep of a TOML file; what it checks are random draws of its table [search]."""
    if Path(args.file).suffix != ".toml":
        raise ConfigError(f"sweep search takes a TOML file with a table [search], got {args.file}")
    table = sweep_files.load_toml(Path(args.file), compare=False)
    table.experiments_dir = args.experiments_dir
    if table.name_column is not None:  # a search names its runs itself, and draws may repeat
        place = table.columns.index(table.name_column)
        for number, row in enumerate(table.rows):
            values = (*row.values[:place], f"draw{number}", *row.values[place + 1 :])
            table.rows[number] = row._replace(values=values)
    return _checked_trainings(table, args, "ignore")


def run(args: argparse.Namespace) -> int:
    """Run the rows that are not complete.

    Returns: 0 if all rows are complete, 1 if a row failed, and TemporaryError.status if rows are left for another call.
    """
    table = _trainings(args, "resume")
    _require_trust(table)
    states, open_rows = _open_rows(table)
    todo = open_rows[: args.limit]
    workers = min(args.workers or len(os.sched_getaffinity(0)), max(len(todo), 1))
    done = sum(state == "done" for state in states.values())
    stdout.print(f"{_count(len(states), 'row')}: {done} done, {len(todo)} to run, {_count(workers, 'worker')}")
    children = Children(table, args.retries, args.trust_env_module)
    pool = ThreadPoolExecutor(workers)
    with stop_signals() as received:
        try:
            failures = _watch({pool.submit(children.work, planned): planned for planned in todo}, children)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # after SIGHUP, the terminal is gone
                stderr.print("stopping: the rows save their checkpoints; the same command continues them")
            return 128 + received[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
    if failures:
        stderr.print(f"{len(failures)} of {_count(len(todo), 'row')} failed: {', '.join(failures)}")
        return 1
    elsewhere = list(states.values()).count("running")
    left = [f"{elsewhere} run elsewhere"] if elsewhere else []
    left += [f"{len(open_rows) - len(todo)} exceed --limit"] if len(open_rows) > len(todo) else []
    if left:
        stderr.print(f"not all rows are complete: {', '.join(left)}; the same command continues the sweep")
    return TemporaryError.status if left else 0


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at a signal that asks to stop. Yields: the list that the signals' numbers go to."""
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
    numbers = [number for number in STOPPING if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(futures: dict[Future[str], Planned], children: Children) -> list[str]:
    """Show the progress until all rows have ended. Returns: the names of the rows that failed."""
    failures: list[str] = []
    pending, rows = set(futures), dict[str, TaskID]()
    planned_of = {planned.name: planned for planned in futures.values()}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, redirect_stdout=sys.stdout.isatty(), redirect_stderr=False) as bar:
        total = bar.add_task("rows", total=len(futures))
        while pending:
            finished, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in finished:
                planned, reason = futures[future], future.result()
                state = state_of(planned.experiment, planned.args)
                failures += [planned.name] if reason else []
                score = "" if state.score is None else f"  score {state.score:.3f}"
                text = f"failed  {planned.name}  {reason}" if reason else f"done  {planned.name}{score}"
                stdout.print(f"{text}  ({time.monotonic() - children.started_s[planned.name]:.0f} s)")
                bar.advance(total)
                if planned.name in rows:
                    bar.remove_task(rows.pop(planned.name))
            for name in list(children.running):
                if name not in rows:
                    rows[name] = bar.add_task(name, total=100)
                planned = planned_of[name]
                bar.update(rows[name], completed=round(100 * state_of(planned.experiment, planned.args).share))
    return failures
