"""Test that no work is lost: kills, bad inputs, full disks, hostile files, second processes, clocks, signals, shells.

    make torture      or      python benchmarks/torture.py [--kills 200] [--inputs 1000] [--hostile 3000]

The results go to benchmarks/results/torture.json. The exit status is 1 if anything was lost or a message was not as
required. Most kills and bad inputs run in forks of this process, which has imported everything already; a sample runs
in new processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import mistakes  # noqa: E402
from mistakes import TINY  # noqa: E402

import main as program  # noqa: E402
from model_utils import Experiment, load_checkpoint, read_json  # noqa: E402
from mpn_rl import commands  # noqa: E402  (before any fork, so that each one starts at once)
from mpn_rl.options import ConfigError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "torture.json"
COMMON = ["--no-plot-training", "--device", "cpu"]
SMALL = [word for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] != "--kernel" for word in pair]
OFF_REPLAY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--eval-freq", "100", "--eval-episodes", "2",
              "--checkpoint-freq", "100"]  # fmt: skip
# What is killed, in turn.
VICTIMS = {
    "dqn, sequences": ["train", *TINY],
    "dqn, prioritized trials": ["train-neurogym", *SMALL, "--replay", "trial", "--prioritized", "--buffer-size", "40",
                                "--kernel", "reference"],
    "dqn, lstm, growing": ["train-neurogym", *SMALL, "--core", "lstm", "--expansion", "paper",
                           "--update-interval", "200"],
    "a2c, backpropamine": ["train", "--algo", "a2c", "--core", "backpropamine", "--env-name", "GridMaze-v0",
                           *OFF_REPLAY],
    "td3": ["train", "--algo", "td3", "--env-name", "Pendulum-v1", *OFF_REPLAY, "--learning-starts", "50",
            "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8", "--batch-size", "4"],
}  # fmt: skip


# --- processes ----------------------------------------------------------------------------------------------


def fork(argv: list[str], folder: Path, prepare: Callable[[], object] = lambda: None, logs: Path | None = None) -> int:
    """Run `main.py ARGV` in a fork in `folder`; its output goes to out.txt and err.txt there, or in `logs`."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(folder)
        for descriptor, name in ((1, "out.txt"), (2, "err.txt")):
            os.dup2(os.open((logs or folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        commands.stdout.file, commands.stderr.file = sys.stdout, sys.stderr
        prepare()
        status = program.main(argv)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def answered(argv: list[str], folder: Path, logs: Path) -> tuple[int, str]:
    """Exit status and stderr of `main.py ARGV` in a fork."""
    status = wait(fork(argv, folder, logs=logs))
    return status, (logs / "err.txt").read_text()


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def to_the_end(argv: list[str], folder: Path, **options: Any) -> None:
    status = wait(fork(argv, folder, **options))
    assert status == 0, f"status {status}: {(folder / 'err.txt').read_text()[-500:]}"


def real(argv: list[str], folder: Path, before: list[str] | None = None) -> subprocess.CompletedProcess:
    """`python main.py ARGV` as a user starts it."""
    command = [*(before or []), sys.executable, str(ROOT / "main.py"), *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def train(victim: str, name: str, seed: int, steps: int) -> list[str]:
    length = ["--seed", str(seed), "--total-steps", str(steps)]
    return [*VICTIMS[victim], "--experiment-name", name, *length, *COMMON, "--resume", "auto"]


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same values, bit for bit."""
    import numpy as np
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(type(a) is type(b) and a == b)


def differences(one: Path, other: Path) -> list[str]:
    """The files of two experiments that are not equal: checkpoints by value, metrics by byte."""
    result = [
        name for name in ("metrics.jsonl", "training_history.json")
        if (one / name).read_bytes() != (other / name).read_bytes()
    ]  # fmt: skip
    for name in ("best_model.pt", "final_model.pt", "last.pt"):
        if not same(load_checkpoint(one / "checkpoints" / name), load_checkpoint(other / "checkpoints" / name)):
            result.append(name)
    return result


def unreadable(experiment: Experiment) -> list[str]:
    """The files of an experiment that cannot be read."""
    readers: list[tuple[Path, Callable[[], object]]] = [
        (experiment.config_path, experiment.read_config),
        (experiment.history_path, lambda: read_json(experiment.history_path)),
        (experiment.metrics_path, experiment.read_metrics),
        *((path, lambda path=path: load_checkpoint(path)) for path in experiment.path.glob("checkpoints/[!.]*")),
    ]
    result = []
    for path, read in readers:
        try:
            if path.exists():
                read()
        except ConfigError as error:
            result.append(f"{path.name}: {error}")
    if experiment.exists() and not experiment.config_path.exists():
        result.append("config.json is missing")
    return result


# --- the parts ----------------------------------------------------------------------------------------------


def kills(number: int, random: Random, steps: int, home: Path) -> dict[str, Any]:
    """Kill runs at random moments and resume them, until `number` kills; then finish them."""
    names = list(VICTIMS)
    done, survived = 0, 0
    runs: list[dict[str, Any]] = []
    wrong: list[str] = []
    while done < number:
        victim, seed = names[len(runs) % len(names)], len(runs)
        began = time.monotonic()
        to_the_end(train(victim, f"whole-{seed}", seed, steps), home)
        whole = time.monotonic() - began
        name, hits, share = f"run-{seed}", 0, max(10, number // len(names))
        experiment = Experiment(name, home / "experiments")
        while True:
            child = fork(train(victim, name, seed, steps), home)
            if done < number and hits < share:
                time.sleep(random.uniform(0.0, max(0.4, 2.0 * whole / share)))
                os.kill(child, signal.SIGKILL)
            status = wait(child)
            if status == 0:
                break
            assert status == -signal.SIGKILL, f"status {status}: {(home / 'err.txt').read_text()[-500:]}"
            done, hits = done + 1, hits + 1
            faults = unreadable(experiment)
            survived += not faults
            wrong += [f"{victim}, kill {done}: {fault}" for fault in faults]
        unequal = differences(experiment.path, home / "experiments" / f"whole-{seed}")
        wrong += [f"{victim}: {file} differs after {hits} kills" for file in unequal]
        runs.append({"victim": victim, "kills": hits, "equal": not unequal, "seconds_untouched": round(whole, 1)})
        print(f"  {victim}: {hits} kills, {'equal' if not unequal else 'DIFFERS'}", file=sys.stderr)
    hidden = [path for path in (home / "experiments").rglob(".*") if path.name != ".locks"]
    left = [path.name for path in hidden if path.name.endswith(".tmp") or path.is_dir()]
    return {"asked": number, "survived": survived, "runs": runs, "wrong": wrong, "leftovers": left}


def real_kills(number: int, random: Random, steps: int, home: Path) -> dict[str, Any]:
    """The same with whole processes, from the start of the interpreter."""
    argv = train("dqn, sequences", "real", 0, steps)
    experiment = Experiment("real", home / "experiments")
    wrong: list[str] = []
    if not number:
        return {"skipped": "fewer than 20 kills were asked for"}
    for _ in range(number):
        with open(home / "out.txt", "wb") as out:
            command = [sys.executable, str(ROOT / "main.py"), *argv]
            process = subprocess.Popen(command, cwd=home, stdout=out, stderr=out)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.2, 6.0))
        process.kill()
        process.wait()
        wrong += unreadable(experiment)
    to_the_end(argv, home)
    to_the_end(train("dqn, sequences", "real-whole", 0, steps), home)
    wrong += differences(experiment.path, home / "experiments" / "real-whole")
    return {"asked": number, "survived": number - len(wrong), "wrong": wrong}


def bad_inputs(number: int, seed: int, home: Path, sample: int) -> dict[str, Any]:
    """`number` mistakes, answered in this process, and some of them also by a whole process."""
    base = ["train", *TINY, *COMMON]
    for name, more in (("whole", ["--num-episodes", "2"]), ("other", ["--num-episodes", "2", "--hidden-dim", "5"])):
        to_the_end([*base, "--experiment-name", name, *more], home)
    child = fork([*base, "--experiment-name", "half", "--total-steps", "1000000", "--seed", "1"], home)
    while not (home / "experiments" / "half" / "checkpoints" / "last.pt").exists():
        time.sleep(0.02)
    os.kill(child, signal.SIGTERM)
    wait(child)
    asked, wrong = Counter[str](), []
    chosen = list(mistakes.cases(number, seed, home))
    again = set(Random(seed).sample(range(len(chosen)), sample))
    os.chdir(home)
    for place, case in enumerate(chosen):
        asked[case.kind] += 1
        result = mistakes.answer(case, home)
        if result is None and place in again:
            with mistakes.laid(case, home):
                before = mistakes.snapshot(home)
                done = real(case.argv, home)
                result = mistakes.fault(done.returncode, done.stderr, before, mistakes.snapshot(home))
        if result is not None:
            shown = " ".join(repr(word) if len(word) < 60 else word[:57] + "..." for word in case.argv)
            wrong.append({"kind": case.kind, "argv": shown, "found": result, "place": place})
            print(f"  {case.kind}: {shown}\n      {result}", file=sys.stderr)
    return {"asked": len(chosen), "answered": len(chosen) - len(wrong), "as_processes": len(again),
            "kinds": dict(asked), "options": mistakes.options_known(), "wrong": wrong}  # fmt: skip


class Bomb:
    """A pickle that creates a file when it is read."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def hostile_checkpoint(home: Path) -> dict[str, Any]:
    """A checkpoint with code in it, as a plain pickle and as an archive, in every place where one is read."""
    payload, wrong = pickle.dumps({"format": 1, "network": Bomb(), "learner": Bomb()}), []
    whole = home / "experiments" / "half" / "checkpoints" / "last.pt"
    with zipfile.ZipFile(whole) as real_one, zipfile.ZipFile(home / "bomb.zip", "w") as archive:
        for entry in real_one.infolist():
            content = payload if entry.filename.endswith("data.pkl") else real_one.read(entry)
            archive.writestr(entry.filename, content)
    forms = {"pickle": payload, "archive": (home / "bomb.zip").read_bytes()}
    readers = [[command, "--experiment-name", "whole"] for command in ("eval", "render", "analyze")]
    readers.append(["train", "--experiment-name", "half", "--resume"])
    for form, content in forms.items():
        for argv in readers:
            name, file = ("half", "last.pt") if argv[0] == "train" else ("whole", "best_model.pt")
            case = mistakes.Case(form, argv, {f"experiments/{name}/checkpoints/{file}": content})
            result = mistakes.answer(case, home)
            wrong += [f"{form}, {argv[0]}: {result}"] if result else []
    wrong += ["the code ran"] if (home / "exploded").exists() else []
    return {"asked": len(forms) * len(readers), "wrong": wrong}


def full_disk(steps: int, home: Path) -> dict[str, Any]:
    """The disk becomes full while a run writes: one line, status 75, an intact checkpoint. Then the run continues."""
    disk = home / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk], capture_output=True).returncode == 0
    )
    if not mounted:
        return {"skipped": "no tmpfs may be mounted here"}
    try:
        argv, wrong = train("dqn, sequences", "full", 3, 2 * steps), []
        child = fork(argv, disk, logs=home)
        last = disk / "experiments" / "full" / "checkpoints" / "last.pt"
        while not last.exists():
            time.sleep(0.01)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while filler.write(b"x" * 4096):
                pass
        status = wait(child)
        message = (home / "err.txt").read_text().strip()
        reported = message.splitlines()[-1].startswith("main.py train: cannot write") and "No space left" in message
        wrong += (
            [] if status == 75 and reported and "Traceback" not in message else [f"status {status}: {message[-300:]}"]
        )
        wrong += unreadable(Experiment("full", disk / "experiments"))
        (disk / "filler").unlink()
        to_the_end(argv, disk)
        to_the_end(train("dqn, sequences", "full", 3, 2 * steps), home)
        wrong += differences(disk / "experiments" / "full", home / "experiments" / "full")
        (disk / "filler").write_bytes(b"")
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while filler.write(b"x" * 64):
                pass
        status, err = answered(["train", *TINY, "--experiment-name", "new", "--num-episodes", "2"], disk, home)
        one_line = status == 75 and err.count("\n") == 1 and "No space left" in err
        wrong += [] if one_line else [f"a new run: status {status}: {err[-300:]}"]
        wrong += ["a new run left a folder"] if (disk / "experiments" / "new").exists() else []
        return {"said": message.splitlines()[-1], "wrong": wrong}
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def two_processes(home: Path) -> dict[str, Any]:
    """A second process on one experiment prints which process holds it, and changes nothing."""
    argv = train("dqn, sequences", "shared", 4, 10**7)
    child = fork(argv, home)
    folder = home / "experiments" / "shared"
    while not (folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.02)
    config, wrong, message = (folder / "config.json").read_bytes(), [], ""
    other = home / "second"
    other.mkdir()
    for more in (["--resume", "auto"], ["--overwrite"]):
        status, message = answered([*argv[: argv.index("--resume")], *more], home, other)
        reported = status == 75 and "in use by" in message and str(child) in message and message.count("\n") == 1
        wrong += [] if reported else [f"{more}: status {status}: {message[-300:]}"]
    os.kill(child, signal.SIGTERM)
    wrong += [] if wait(child) == 143 else ["the first process did not continue"]
    wrong += [] if (folder / "config.json").read_bytes() == config else ["config.json changed"]
    wrong += unreadable(Experiment("shared", home / "experiments"))
    return {"said": re.sub(r"\(.*?\)", "(PID on HOST since TIME)", message.strip()), "wrong": wrong}


def lock_race(number: int, home: Path) -> dict[str, Any]:
    """Three processes start one experiment at once, half of the triples with --overwrite: one run's files result.

    Each process ends with 0, or with 75 where another one has the experiment. The files equal those of a run alone.
    """
    base = ["train", *TINY, "--num-episodes", "2", *COMMON]
    to_the_end([*base, "--experiment-name", "race-alone"], home)
    outcomes, wrong = Counter[str](), []
    for triple in range(number):
        how = ["--overwrite"] if triple % 2 else ["--resume", "auto"]
        barrier, children = multiprocessing.get_context("fork").Barrier(3), []
        experiment = Experiment(f"race-{triple % 8}" if triple % 2 else f"race-new-{triple}", home / "experiments")
        for process in range(3):
            logs = home / f"race-logs-{process}"
            logs.mkdir(exist_ok=True)
            argv = [*base, "--experiment-name", experiment.name, *how]
            children.append(fork(argv, home, prepare=lambda barrier=barrier: barrier.wait(60), logs=logs))
        statuses = sorted(wait(child) for child in children)
        outcomes[f"{how[0]} {statuses}"] += 1
        faults = [] if statuses[0] == 0 and {*statuses} <= {0, 75} else [f"statuses {statuses}"]
        faults += unreadable(experiment) or differences(experiment.path, home / "experiments" / "race-alone")
        faults += ["error.txt is there"] if experiment.error_path.exists() else []
        wrong += [f"triple {triple}, {how[0]}: {fault}" for fault in faults]
        if not triple % 2:
            shutil.rmtree(experiment.path, ignore_errors=True)
    return {"asked": number, "outcomes": dict(sorted(outcomes.items())), "wrong": wrong}


def clock_jumps(steps: int, home: Path) -> dict[str, Any]:
    """A clock that jumps by up to ten years at every call, and files dated 1980 or 2100: the run does not change."""
    random, now = Random(5), time.time

    def jump() -> None:
        time.time = lambda: max(0.0, now() + random.uniform(-3e8, 3e8))

    child = fork(train("dqn, sequences", "clock", 6, steps), home, prepare=jump)
    folder = home / "experiments" / "clock"
    while not (folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    wait(child)
    for path in folder.rglob("*"):
        date = random.choice([315532800, 4102444800])
        os.utime(path, (date, date))
    to_the_end(train("dqn, sequences", "clock", 6, steps), home, prepare=jump)
    to_the_end(train("dqn, sequences", "clock-whole", 6, steps), home)
    return {"wrong": differences(folder, home / "experiments" / "clock-whole")}


def hostile_experiments(number: int, seed: int, home: Path) -> dict[str, Any]:
    """Hostile experiments (hostile_files.py); a short round changes only one kind of them."""
    if not number:
        return {"skipped": "none were asked for"}
    import hostile_files

    names = list(hostile_files.EXPERIMENTS)
    folder = home / "hostile"
    folder.mkdir()
    workers = (os.cpu_count() or 1) if number >= 100 else 1
    return hostile_files.hostile_files(number, seed, folder, names if number >= 100 else names[:1], workers=workers)


def surroundings(asked: bool, home: Path) -> dict[str, Any]:
    """What machines and shells bring (machines_and_shells.py)."""
    if not asked:
        return {"skipped": "fewer than 20 kills were asked for"}
    from machines_and_shells import machines_and_shells

    folder = home / "surroundings"
    folder.mkdir()
    return machines_and_shells(folder)


def read_only(number: int, home: Path) -> dict[str, Any]:
    """Read-only folders: one line, status 2, nothing changed. As an ordinary user, since root may write everywhere."""
    user = [] if os.geteuid() else ["unshare", "--user", "--map-user=65534", "--map-group=65534"]
    if user and subprocess.run([*user, "true"], capture_output=True).returncode:
        return {"skipped": "root may write everywhere, and no user namespace may be made here"}
    locked = home / "locked"
    shutil.copytree(home / "experiments" / "half", locked / "experiments" / "half")
    cases = {
        "a new run": ["train", *TINY, "--experiment-name", "new", "--num-episodes", "2"],
        "a resumed run": ["train", "--experiment-name", "half", "--resume"],
        "overwrite": ["train", *TINY, "--experiment-name", "half", "--overwrite"],
        "eval": ["eval", "--experiment-name", "half"],
        "analyze": ["analyze", "collect", "--experiment-name", "half", "--num-episodes", "1"],
    }
    folders = [locked, *(path for path in locked.rglob("*") if path.is_dir())]
    wrong = []
    try:
        for folder in folders:
            folder.chmod(0o555)
        for path in locked.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        for name, argv in list(cases.items())[:number]:
            before = mistakes.snapshot(locked)
            done = real(argv, locked, user)
            result = mistakes.fault(done.returncode, done.stderr, before, mistakes.snapshot(locked))
            wrong += [f"{name}: {result}"] if result else []
    finally:
        for folder in folders:
            folder.chmod(0o755)
    return {"asked": min(number, len(cases)), "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--hostile", type=int, default=3000, help="changed experiments (default: %(default)s)")
    parser.add_argument("--triples", type=int, default=500, help="of the lock race (default: %(default)s)")
    parser.add_argument("--only", metavar="PART", help="run one part, such as 'lock race'")
    parser.add_argument("--steps", type=int, default=2000, help="length of the runs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: %(default)s)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mpn-torture-"))
    results = args.results.resolve()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "kills": lambda home: kills(args.kills, Random(args.seed), args.steps, home),
        "kills of whole processes": lambda home: real_kills(args.kills // 20, Random(args.seed), args.steps, home),
        "bad inputs": lambda home: bad_inputs(args.inputs, args.seed, home, sample=args.inputs // 50),
        "hostile checkpoint": hostile_checkpoint,
        "full disk": lambda home: full_disk(args.steps, home),
        "two processes": two_processes,
        "lock race": lambda home: lock_race(args.triples, home),
        "clock jumps": lambda home: clock_jumps(args.steps, home),
        "hostile experiments": lambda home: hostile_experiments(args.hostile, args.seed, home),
        "machines and shells": lambda home: surroundings(args.kills >= 20, home),
        "read-only folders": lambda home: read_only(2 if args.kills < 20 else 5, home),
    }
    result: dict[str, Any] = json.loads(results.read_text()) if args.only and results.exists() else {}
    result |= {"python": platform.python_version(), "cpus": os.cpu_count(), "seed": args.seed}
    try:
        for name, part in parts.items():
            if args.only not in (None, name):
                continue
            began = time.monotonic()
            result[name] = part(folder)
            result[name]["seconds"] = round(time.monotonic() - began, 1)
            wrong = result[name].get("wrong", [])
            state = f"skipped: {result[name]['skipped']}" if "skipped" in result[name] else f"{len(wrong)} wrong"
            print(f"{name:26} {state} ({result[name]['seconds']:.0f} s)", flush=True)
            for fault in wrong[:20]:
                print(f"    {fault}")
    finally:
        os.chdir(ROOT)
        shutil.rmtree(folder, ignore_errors=True)
    results.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(result[name].get("wrong") for name in parts if args.only in (None, name)))


if __name__ == "__main__":
    sys.exit(main())
