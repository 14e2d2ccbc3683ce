"""What machines and shells bring: damaged caches, inherited variables, signals, narrow, closed and full streams.

A part of `make torture`. Every case runs `main.py` as a user starts it, in a process of its own.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mistakes import TINY

from model_utils import load_checkpoint
from mpn_rl.options import ConfigError

ROOT = Path(__file__).resolve().parent.parent
MAIN = [sys.executable, str(ROOT / "main.py")]
COMMON = ["--no-plot-training", "--device", "cpu"]
TRAIN = ["train", *TINY, *COMMON]
SHORT = [*TRAIN, "--num-episodes", "2"]
ENDLESS = [*TRAIN, "--checkpoint-freq", "1000000", "--eval-freq", "1000000", "--total-steps", "100000000"]
JUPYTER = "module://matplotlib_inline.backend_inline"
CRASHING = """
import gymnasium, numpy as np, os

class Crashing(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        Crashing.steps += 1
        if Crashing.steps == 500 and not os.path.exists("repaired"):
            raise ValueError("crash")
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 0.0, False, False, {}

gymnasium.register("Crashing-v0", Crashing, max_episode_steps=30)
"""


class Case:
    """One working directory, the commands that run in it, and what was wrong with their answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults = folder, []  # type: ignore[var-annotated]
        folder.mkdir()

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(self.folder / "state"), **variables}

    def run(self, argv: list[str], status: int = 0, shell: str = "{}", says: str = "", **variables: str) -> str:
        """Run `main.py ARGV`, check its status and that it shows no traceback. Returns: stdout and stderr.

        Args:
            argv: the command line.
            status: that it must exit with.
            shell: what bash runs; {} stands for the quoted command.
            says: text that the output must contain.
            variables: set in its environment.
        """
        command = shell.replace("{}", shlex.join([*MAIN, *argv]))
        env = self.environment(variables)
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, env=env, timeout=600)
        output = (done.stdout + done.stderr).decode(errors="replace")
        as_asked = done.returncode == status and "Traceback" not in output and "BrokenPipe" not in output
        if not as_asked or says not in output:
            self.faults.append(f"{shell.replace('{}', ' '.join(argv[:3]))}: status {done.returncode}: {output[-300:]}")
        return output

    def start(self, argv: list[str], ready: str) -> subprocess.Popen:
        """Start `main.py ARGV` and wait until a file that matches `ready` exists."""
        process = subprocess.Popen(
            [*MAIN, *argv], cwd=self.folder, env=self.environment({}), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not any(self.folder.glob(ready)) and process.poll() is None:
            time.sleep(0.02)
        return process

    def expect(self, holds: bool, otherwise: str) -> None:
        self.faults += [] if holds else [otherwise]

    def resumes(self, name: str, *more: str) -> None:
        """Check that last.pt of an interrupted run can be read and that the run continues to an end close by."""
        try:
            step = load_checkpoint(self.folder / "experiments" / name / "checkpoints" / "last.pt")["counters"]["step"]
        except (ConfigError, KeyError, OSError) as error:
            self.faults.append(f"last.pt: {error}")
            return
        self.run(["train", "--experiment-name", name, "--resume", "--total-steps", str(step + 20), *more])


# --- machines -----------------------------------------------------------------------------------------------


def damaged_cache(case: Case, damage: Callable[[Path], object]) -> None:
    """The files of the kernel cache are damaged: one note, and the kernels are compiled without it."""
    fused = [*SHORT, "--kernel", "fused", "--experiment-name"]
    cache = case.folder / "cache"
    case.run([*fused, "whole"], NUMBA_CACHE_DIR=str(cache))
    files = [file for file in cache.rglob("*.nb?") if file.is_file()]
    case.expect(bool(files), "no kernel was cached")
    for file in files:
        damage(file)
    for name in ("one", "two"):
        output = case.run([*fused, name], NUMBA_CACHE_DIR=str(cache))
        case.expect(output.count("note: the cache of compiled kernels") <= 1, f"more than one note: {output[-300:]}")


def unwritable_cache(case: Case) -> None:
    """The kernel cache cannot be written: its place is a file, or its disk is full."""
    fused = [*SHORT, "--kernel", "fused", "--experiment-name"]
    (case.folder / "file").touch()
    case.run([*fused, "file"], NUMBA_CACHE_DIR=str(case.folder / "file" / "cache"))
    with small_disk(case.folder / "disk", "64k") as mounted:
        if mounted:
            case.run([*fused, "full"], NUMBA_CACHE_DIR=str(case.folder / "disk"))


@contextmanager
def small_disk(folder: Path, size: str) -> Any:
    """A tmpfs of this size, where one may be mounted. Yields: whether it is."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def inherited_backend(case: Case) -> None:
    """Jupyter's MPLBACKEND, or none that exists, under every command that may draw."""
    for backend in (JUPYTER, "nonsense", "TkAgg"):
        argv = ["train", *TINY, "--device", "cpu", "--plot-training", "--num-episodes", "2", "--overwrite"]
        case.run([*argv, "--experiment-name", "run"], MPLBACKEND=backend)
        for command in (["eval"], ["render", "--max-steps", "3"], ["analyze", "--num-episodes", "2"]):
            case.run([command[0], "--experiment-name", "run", *command[1:]], MPLBACKEND=backend)


def passing_conditions(case: Case) -> None:
    """A held lock, a full disk and too little memory: status 75, so that HTCondor, Slurm and sweeps try again."""
    holder = case.start([*ENDLESS, "--experiment-name", "held"], "experiments/held/checkpoints/last.pt")
    for more in (["--resume"], ["--resume", "auto"], ["--overwrite"]):
        argv = (
            ["train", "--experiment-name", "held"] if more == ["--resume"] else [*ENDLESS, "--experiment-name", "held"]
        )
        case.run([*argv, *more], status=75, says="in use by")
    holder.kill()
    holder.wait()
    with small_disk(case.folder / "disk", "16k") as mounted:
        if mounted:
            where = ["--experiments-dir", str(case.folder / "disk")]
            case.run([*SHORT, "--experiment-name", "new", *where], status=75, says="No space left")
    case.run([*SHORT, "--experiment-name", "run"])
    case.run(["eval", "--experiment-name", "run"], status=75, shell="{} > /dev/full", says="standard output")
    case.run(["train", "--help"], status=75, shell="{} > /dev/full", says="standard output")
    # One copy of the weights takes 1.2 GB, so the target network and Adam's moments do not fit.
    size = [
        "--core",
        "lstm",
        "--hidden-dim",
        "6000",
        "--embed-dim",
        "6000",
        "--buffer-size",
        "400",
        "--batch-size",
        "4",
    ]
    big = ["train", *size, *COMMON, "--num-episodes", "2", "--learning-starts", "50", "--experiment-name", "big"]
    used = resource.getrlimit(resource.RLIMIT_AS)
    case.expect(used[1] == resource.RLIM_INFINITY or used[1] > 2**32, "the memory of this shell is limited")
    case.run(big, status=75, shell="ulimit -v 2600000; {}", says="memory")


def stop_signal(case: Case, number: signal.Signals) -> None:
    """A signal in the first minute saves the run, which resumes; so does SIGKILL, which loses little."""
    process = case.start([*ENDLESS, "--experiment-name", "run"], "experiments/run/checkpoints/last.pt")
    time.sleep(1.0)
    process.send_signal(number)
    began = time.monotonic()
    status = process.wait(60)
    asked = {signal.SIGKILL: -9, signal.SIGINT: 130}.get(number, 143)
    case.expect(status == asked, f"status {status}, not {asked}")
    case.expect(time.monotonic() - began < 30.0, "the signal was served late")
    case.resumes("run")


def nohup(case: Case) -> None:
    """Under nohup, SIGHUP stays ignored."""
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = case.start([*ENDLESS, "--experiment-name", "run"], "experiments/run/checkpoints/last.pt")
    finally:
        signal.signal(signal.SIGHUP, ignored)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    case.expect(process.poll() is None, "SIGHUP ended a run under nohup")
    process.terminate()
    case.expect(process.wait(60) == 143, "SIGTERM was not served")


def sweep_hangup(case: Case) -> None:
    """SIGHUP to `sweep run` leaves no orphan, and its rows are saved."""
    long = {"--checkpoint-freq": "1000000", "--eval-freq": "1000000", "--total-steps": "100000000"}
    options = {**dict(zip(TINY[::2], TINY[1::2], strict=True)), **long, "--device": "cpu"}
    fixed = [f"{flag[2:]} = {value if value.isdigit() else repr(value)}" for flag, value in options.items()]
    lines = ['command = "train"', "seeds = [0, 1]", "", "[fixed]", *fixed, "plot-training = false"]
    (case.folder / "two.toml").write_text("\n".join(lines) + "\n")
    process = case.start(["sweep", "run", "two.toml", "--workers", "2"], "experiments/*/checkpoints/last.pt")
    process.send_signal(signal.SIGHUP)
    process.wait(60)
    deadline = time.monotonic() + 30.0
    while (left := _alive(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    case.expect(not left, f"{len(left)} processes are left")
    names = [path.parts[-3] for path in case.folder.glob("experiments/*/checkpoints/last.pt")]
    case.expect(bool(names), "no row was started")
    for name in names:
        case.resumes(name)


def _alive(session: int) -> list[str]:
    """The processes of a session, zombies not counted."""
    found = subprocess.run(["ps", "-s", str(session), "-o", "stat=,args="], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if line.strip() and not line.strip().startswith("Z")]


def crashing_task(case: Case) -> None:
    """A task that crashes at step 500 ends the run with one line; the repaired task resumes."""
    (case.folder / "crashing.py").write_text(CRASHING)
    argv = [*TRAIN, "--env-name", "crashing:Crashing-v0", "--eval-freq", "1000000", "--checkpoint-freq", "1000000"]
    case.run(
        [*argv, "--total-steps", "1200", "--experiment-name", "run"], status=2, says="ValueError: crash (crashing.py"
    )
    (case.folder / "repaired").touch()
    case.resumes("run")


# --- shells -------------------------------------------------------------------------------------------------


def encodings(case: Case) -> None:
    """Streams of any encoding, also for names that it does not have."""
    case.run([*SHORT, "--experiment-name", "run"])
    for encoding in ("ascii", "latin-1", "cp1252", "utf-16", "ascii:strict"):
        case.run(["eval", "--experiment-name", "run"], PYTHONIOENCODING=encoding)
        case.run(["eval", "--experiment-name", "\u03b1\u6f22"], status=2, PYTHONIOENCODING=encoding)
    case.run(["eval", "--experiment-name", "run"], LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


def narrow_terminal(case: Case) -> None:
    """At 60 and 20 columns `eval` shows every word and number that it shows at 200."""
    case.run([*SHORT, "--experiment-name", "run"])
    wide = case.run(["eval", "--experiment-name", "run"], COLUMNS="200").split()
    for columns in ("60", "20"):
        narrow = case.run(["eval", "--experiment-name", "run"], COLUMNS=columns).split()
        case.expect(narrow == wide, f"at {columns} columns: {sorted(set(wide) - set(narrow))[:5]} are missing")


def closed_streams(case: Case) -> None:
    """Readers that leave, and streams that are closed from the start."""
    case.run(["--print-completion", "bash"], shell="set -o pipefail; {} | head -1")
    case.run(["train", "--help-all"], shell="set -o pipefail; {} | head -1")
    case.run([*SHORT, "--experiment-name", "run"], shell="{} <&- >&- 2>&-")
    case.run(["eval", "--experiment-name", "run"], shell="set -o pipefail; {} | true")
    case.run(["eval", "--experiment-name", "run"], shell="{} 2>&-")
    case.expect((case.folder / "experiments/run/checkpoints/final_model.pt").is_file(), "the run did not end")


def suggested_commands(case: Case) -> None:
    """A command that the program suggests can be pasted into a shell, whatever the names."""
    for name in ("it's $HOME", "a b", "run[1]", "semi;colon"):
        output = case.run([*SHORT, "--experiment-name", name])
        suggested = re.search(r"^next: (?:python main\.py) (.*)$", output, re.MULTILINE)
        case.expect(suggested is not None, f"no command was suggested: {output[-200:]}")
        if suggested is not None:
            case.run([], shell="{} " + suggested[1].replace("{}", ""))


def names_with_brackets(case: Case) -> None:
    """`run[1]` is the experiment of this name, not the pattern that matches run1."""
    for name in ("run[1]", "run1"):
        case.run([*SHORT, "--experiment-name", name])
    case.run(["analyze", "collect", "--experiment-name", "run[1]", "--num-episodes", "1"])
    made = [path.parts[-3] for path in (case.folder / "experiments").glob("*/analysis/activity.npz")]
    case.expect(made == ["run[1]"], f"recorded {made}")


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


CASES: dict[str, Callable[[Case], None]] = {
    "kernel cache, truncated": lambda case: damaged_cache(case, truncate),
    "kernel cache, empty": lambda case: damaged_cache(case, lambda file: file.write_bytes(b"")),
    "kernel cache, garbage": lambda case: damaged_cache(case, lambda file: file.write_bytes(b"not a cache" * 99)),
    "kernel cache, unwritable": unwritable_cache,
    "MPLBACKEND": inherited_backend,
    "status 75": passing_conditions,
    **{
        number.name: (lambda case, number=number: stop_signal(case, number))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
                       signal.SIGKILL)
    },
    "nohup": nohup,
    "SIGHUP to a sweep": sweep_hangup,
    "a task that crashes": crashing_task,
    "encodings": encodings,
    "narrow terminals": narrow_terminal,
    "closed streams": closed_streams,
    "suggested commands": suggested_commands,
    "names with brackets": names_with_brackets,
}  # fmt: skip


def machines_and_shells(home: Path, only: str = "") -> dict[str, Any]:
    """Run every case. Returns: how many there are, and what was wrong, by case."""
    wrong, chosen = [], {name: run for name, run in CASES.items() if only in name}
    for number, (name, run) in enumerate(chosen.items()):
        case = Case(home / f"case-{number}")
        run(case)
        wrong += [f"{name}: {fault}" for fault in case.faults]
        print(f"  {name}: {'WRONG' if case.faults else 'as asked'}", file=sys.stderr, flush=True)
    return {
        "asked": len(chosen),
        "as_asked": len(chosen) - len({fault.partition(":")[0] for fault in wrong}),
        "wrong": wrong,
    }
