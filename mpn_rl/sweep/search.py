"""`sweep search`: Optuna proposes settings, each trains with several seeds, weak ones are pruned (docs/sweeps.md).

    experiments/.sweep/<name>/search/
        journal.log          Optuna's record of all trials; journal.lock is held while a process writes to it
        claim.lock           held while a process takes a trial
        trials/7.lock        held by the process that works on trial 7; freed by the system when that process ends
    experiments/<name>-t0007-s0/     the run of trial 7 with seed 0

A process that is killed loses nothing: its trial stays in the record with its setting, and the next process that finds
the trial's lock free continues its runs. A setting depends only on the seed, the trial's number and the trials before,
so with one worker a search gives the same trials, however often it is interrupted. This module does not import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from mpn_rl.console import stderr, stdout
from mpn_rl.options import ConfigError, TemporaryError
from mpn_rl.runs.state import evaluations, last_step, state_of
from mpn_rl.storage.regular_files import disk_errors, open_regular
from mpn_rl.sweep import commands
from mpn_rl.sweep.schedulers import EXIT_CODE
from mpn_rl.sweep.sweep_files import Param, Space, Value
from mpn_rl.sweep.table import Planned, RowError, Sweep, check_existing

PATIENCE_S = 60.0  # to wait for a lock that other processes hold for moments
RANDOM_TRIALS = 8  # before TPE has enough to go by
FIRST_TRIALS = 4  # complete trials before the median pruner acts
FIRST_EVALUATIONS = 2  # evaluations of a trial before it may be pruned
ATTEMPTS = 20  # to propose a setting that no earlier trial has
MAX_FAILURES = 5  # trials that fail one after the other
optuna.logging.set_verbosity(optuna.logging.ERROR)


# --- the record ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, wait: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of a file. Raises: TemporaryError if another process keeps it; ConfigError without locks."""
    file = take_lock(path, wait)
    if file is None:
        raise TemporaryError(f"another process has held {path} for {wait:.0f} s; try again")
    with file:
        yield


def take_lock(path: Path, wait: float = 0.0) -> IO[bytes] | None:
    """The file, locked until it is closed; None if another process holds the lock. Raises: ConfigError."""
    with disk_errors(path, "lock"):
        file = open_regular(path, os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.close()
                    return None
                time.sleep(0.01)
            except OSError as error:
                file.close()
                raise ConfigError(
                    f"cannot lock {path}: {error.strerror}; put the experiments on a disk with file locks"
                ) from error


class JournalLock(JournalFileOpenLock):
    """The lock of Optuna's journal, which the system frees when its holder is killed (Optuna's own ones stay)."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.held = journal, contextlib.ExitStack()

    def acquire(self) -> bool:
        self.held.enter_context(locked(self.journal.with_suffix(".lock")))
        with open_regular(self.journal, os.O_RDWR | os.O_CREAT) as file:  # cut a line that a killed process left half
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2**20))
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self.held.close()


@dataclass
class Claim:
    """One trial that this process works on, until `lock` is closed."""

    number: int
    trial: optuna.trial.Trial
    rows: list[Planned]
    lock: IO[bytes]
    scores: list[float] = field(default_factory=list)


class Search:
    """One search: the space, the record, and the rules for taking trials.

    Args:
        space: what to choose from.
        root: folder of the experiments.
        read_only: whether to create nothing.
    Raises: ConfigError for a record that cannot be locked or read, or of another search.
    """

    def __init__(self, space: Space, root: Path, read_only: bool = False) -> None:
        self.space, self.root = space, root
        self.name = re.sub(r"[^\w.+=-]+", "_", space.sweep.path.stem, flags=re.ASCII)
        self.folder = root / ".sweep" / self.name / "search"
        self.distributions = {param.column: distribution_of(param) for param in space.params}
        journal = self.folder / "journal.log"
        if read_only and not journal.exists():
            raise ConfigError(f"there is no search in {self.folder} yet; start it with sweep search {space.sweep.path}")
        with disk_errors(self.folder):
            (self.folder / "trials").mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "claim.lock"), self._record_errors(journal):
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))
            self.study = optuna.create_study(
                storage=storage, study_name=self.name, direction="maximize", load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(0), pruner=pruner_of(space.pruner),
            )  # fmt: skip
            known = self.study.user_attrs.get("identity")
            if known is None:
                self.study.set_user_attr("identity", space.identity)
        if known is not None and known != json.loads(json.dumps(space.identity)):
            changed = ", ".join(
                key for key, value in space.identity.items() if known.get(key) != json.loads(json.dumps(value))
            )
            raise ConfigError(
                f"{space.sweep.path} has changed since its search started ({changed}); rename the file for a new "
                f"search, or remove {self.folder}"
            )

    @contextlib.contextmanager
    def _record_errors(self, journal: Path) -> Iterator[None]:
        try:
            yield
        except (ConfigError, OSError):
            raise
        except Exception as error:  # Optuna trusts its file
            kind = type(error).__name__
            raise ConfigError(f"{journal} is damaged ({kind}: {error}); restore or remove it") from error

    def trials(self) -> list[FrozenTrial]:
        with self._record_errors(self.folder / "journal.log"):
            return self.study.get_trials(deepcopy=False)

    def claim(self) -> Claim | None:
        """Take a trial: one whose process has ended, else a new one. Returns: None if none is left."""
        with locked(self.folder / "claim.lock"):
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and (lock := take_lock(self._lock_path(trial.number))):
                    return self._claimed(trial, lock)
            if len(trials) >= self.space.n:
                return None
            number, values = len(trials), self._proposal(trials)
            for planned in self._rows(number, values):
                check_existing(planned, "resume")
            lock = take_lock(self._lock_path(number), PATIENCE_S)
            if lock is None:
                raise TemporaryError(f"another process holds {self._lock_path(number)}; try again")
            new = optuna.trial.create_trial(state=TrialState.RUNNING, params=values, distributions=self.distributions)
            self.study.add_trial(new)
            return self._claimed(self.trials()[number], lock)

    def _lock_path(self, number: int) -> Path:
        return self.folder / "trials" / f"{number}.lock"

    def _claimed(self, trial: FrozenTrial, lock: IO[bytes]) -> Claim:
        handle = optuna.trial.Trial(self.study, trial._trial_id)
        return Claim(trial.number, handle, self._rows(trial.number, trial.params), lock)

    def _rows(self, number: int, values: dict[str, Any]) -> list[Planned]:
        try:
            return [
                self.space.sweep.plan(self.space.row(values, seed, f"{self.name}-t{number:04}-s{seed}"))
                for seed in self.space.seeds
            ]
        except RowError as error:
            raise ConfigError(f"trial {number} of {self.space.sweep.path}: {error}") from None

    def _proposal(self, trials: list[FrozenTrial]) -> dict[str, Any]:
        """The setting of the next trial: it depends on the seed, the number of trials and their results only."""
        known = [trial.params for trial in trials]
        values: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            seed = int(np.random.SeedSequence([self.space.seed, len(trials), attempt]).generate_state(1)[0])
            sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=RANDOM_TRIALS
            )
            copied = optuna.create_study(direction="maximize", sampler=sampler)
            copied.add_trials(trials)
            drawn = copied.ask(self.distributions).params
            values = {param.column: rounded(param, drawn[param.column]) for param in self.space.params}
            if values not in known:
                break
        return values

    def finish(self, claim: Claim, state: TrialState, score: float | None = None, reason: str = "") -> None:
        """Write the end of a trial to the record. The last write ends it, so a kill in between is repeated."""
        claim.trial.set_user_attr("scores", claim.scores)
        claim.trial.set_user_attr("steps", sum(last_step(planned.experiment) for planned in claim.rows))
        if reason:
            claim.trial.set_user_attr("reason", reason)
        self.study.tell(claim.number, score, state=state)


def distribution_of(param: Param) -> BaseDistribution:
    """Optuna's form of a key of [search]."""
    if param.distribution == "choice":
        return CategoricalDistribution(list(param.values))
    low, high = (bound for bound in param.values if isinstance(bound, int | float))
    log = param.distribution == "log-uniform"
    if type(low) is type(high) is int:
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def rounded(param: Param, value: Any) -> Value:
    """A proposed value with four significant digits, within its bounds: the record has what the command line has."""
    if param.distribution == "choice" or type(value) is not float:
        return value
    low, high = (float(bound) for bound in param.values)
    return min(max(float(f"{value:.4g}"), low), high)


def pruner_of(name: str) -> optuna.pruners.BasePruner:
    """Optuna's pruner of a name in PRUNERS. Its steps are evaluations, counted over the seeds of a trial."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=FIRST_EVALUATIONS)
    return optuna.pruners.HyperbandPruner() if name == "hyperband" else optuna.pruners.NopPruner()


# --- the work -----------------------------------------------------------------------------------------------


class Watch:
    """Reports the evaluations of a row to Optuna while it runs; calling it tells whether the trial is pruned.

    The value at evaluation i of seed k is the mean of the final scores of seeds 0 to k - 1 and the score of evaluation
    i: every trial meets the seeds in the same order, so the values of two trials at the same place are comparable.

    Args:
        search: the search.
        claim: its trial; `scores` has the final scores of the earlier seeds.
        planned: the row of seed k.
        offset: number of evaluations of the earlier seeds.
    """

    def __init__(self, search: Search, claim: Claim, planned: Planned, offset: int) -> None:
        self.search, self.claim, self.planned, self.offset = search, claim, planned, offset
        self.scores: list[float] = []
        self.reason = ""
        self.size = -1

    def __call__(self) -> bool:
        if self.reason:
            return True
        with contextlib.suppress(OSError):
            size = self.planned.experiment.metrics_path.stat().st_size
            if size != self.size:
                self.size = size
                self._report(evaluations(self.planned.experiment))
        return bool(self.reason)

    def _report(self, found: list[tuple[int, float]]) -> None:
        """Report new evaluations in their order; the decision at each uses nothing that came later."""
        for step, score in found[len(self.scores) :]:
            self.scores.append(score)
            place = self.offset + len(self.scores)
            value = float(np.mean([*self.claim.scores, score]))
            trial = self.search.trials()[self.claim.number]
            if place not in trial.intermediate_values:
                self.claim.trial.report(value, place)
                trial = self.search.trials()[self.claim.number]
            then = copy.copy(trial)
            then.intermediate_values = {at: old for at, old in trial.intermediate_values.items() if at <= place}
            if self.search.study.pruner.prune(self.search.study, then):
                self.reason = f"pruned by sweep search at step {step:,}, with a score of {value:.3f}"
                return


def work(search: Search, children: commands.Children) -> int:
    """Take trials and run them until none is left. Returns: the number of trials that failed."""
    failed = in_a_row = 0
    while not children.stopping.is_set() and (claim := search.claim()):
        with claim.lock:
            state = run_trial(search, claim, children)
        in_a_row = in_a_row + 1 if state == TrialState.FAIL else 0
        failed += state == TrialState.FAIL
        if in_a_row >= MAX_FAILURES:
            raise ConfigError(f"{MAX_FAILURES} trials failed one after the other; see the reasons above")
    return failed


def run_trial(search: Search, claim: Claim, children: commands.Children) -> TrialState | None:
    """Train a trial's rows, one seed after the other. Returns: its state; None if this process is to stop."""
    began, offset = time.monotonic(), 0
    state, reason = TrialState.COMPLETE, ""
    for planned in claim.rows:
        watch = Watch(search, claim, planned, offset)
        done = state_of(planned.experiment, planned.args).state == "done"
        reason = ("ended" if watch() else "") if done else children.work(planned, watch)
        if children.stopping.is_set() and reason and not watch.reason:
            return None
        if watch.reason:
            state, reason = TrialState.PRUNED, watch.reason
            if state_of(planned.experiment, planned.args).state != "done":
                planned.experiment.note_failure(reason)
        elif reason or not watch.scores:
            state, reason = TrialState.FAIL, reason or "the run has no evaluation"
        if reason:
            break
        claim.scores.append(watch.scores[-1])
        offset += len(watch.scores)
    score = float(np.mean(claim.scores)) if state == TrialState.COMPLETE else None
    search.finish(claim, state, score, reason)
    shown = f"score {score:.3f}" if score is not None else reason
    setting = ", ".join(f"{key} {value}" for key, value in claim.trial.params.items())
    stdout.print(f"trial {claim.number}  {state.name.lower()}  {setting}  {shown}  ({time.monotonic() - began:.0f} s)")
    return state


def search(table: Sweep, args: argparse.Namespace) -> int:
    """Run `sweep search`.

    Args:
        table: the checked sweep of the TOML file.
        args: the command line: workers, show, worker, output, trust_env_module.
    Returns: 0, or 1 if trials failed; with --worker, 85 if a signal stopped it.
    """
    space = Space(table)
    root = table.planned[0].experiment.root
    folder = Path(args.output) if args.output else table.path.parent
    if not folder.is_dir():
        raise ConfigError(f"--output {folder}: no such folder; make it or choose another one")
    found = Search(space, root, read_only=args.show)
    failed = 0
    if not args.show:
        children = commands.Children(table, 1, args.trust_env_module)
        workers = args.workers or 1
        pool = ThreadPoolExecutor(workers)
        with commands.stop_signals() as received:
            try:
                futures = [pool.submit(work, found, children) for _ in range(workers)]
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = sum(future.result() for future in futures if future.done())
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):
                    stderr.print("stopping: the runs save their checkpoints; the same command continues the search")
                return EXIT_CODE if args.worker else 128 + received[0]
            finally:
                children.stop()
                pool.shutdown(wait=True, cancel_futures=True)
    if not args.worker:
        from mpn_rl.sweep import search_report

        for line in search_report.write(found, folder):
            stdout.print(line)
    return 1 if failed else 0
