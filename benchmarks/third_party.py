"""Test that other people's tasks go through train, eval, render and analyze, in short runs.

    make third-party      or      python benchmarks/third_party.py [--only popgym]

Gymnasium's classic-control, toy-text and Box2D tasks, MiniGrid, popgym, and the two own tasks of docs/tasks.md.
Makes benchmarks/.venv-third-party with the versions in benchmarks/third_party.txt, which takes minutes: Box2D is
compiled. Prints a table; the exit status is 1 if a task failed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
VENV = ROOT / "benchmarks" / ".venv-third-party"
LIMIT_S = 600  # of one command
STAGES = ("train", "eval", "render", "analyze")
SMALL = ["--hidden-dim", "8", "--embed-dim", "8", "--num-envs", "2", "--total-steps", "400", "--eval-freq", "400",
         "--eval-episodes", "1", "--learning-starts", "200", "--buffer-size", "2000", "--batch-size", "8"]  # fmt: skip


class Case(NamedTuple):
    """A task and the options of its training."""

    env_name: str
    options: tuple[str, ...] = ()
    command: str = "train"
    refused: str = ""  # text of the one line that refuses the task; empty: it is trained


TD3 = ("--algo", "td3", "--batch-size", "16")
CLASSIC = [
    *(Case(name) for name in ("CartPole-v0", "CartPole-v1", "MountainCar-v0", "Acrobot-v1")),
    *(Case(name, TD3) for name in ("MountainCarContinuous-v0", "Pendulum-v1")),
]
TOY_TEXT = [
    *(Case(name) for name in ("Blackjack-v1", "FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v0", "Taxi-v3")),
    Case("FrozenLake-v1", ("--env-arg", "is_slippery=False")),
]
BOX2D = [
    Case("LunarLander-v2"),
    *(Case(name, TD3) for name in ("LunarLanderContinuous-v2", "BipedalWalker-v3", "BipedalWalkerHardcore-v3")),
    Case("CarRacing-v2", (*TD3, "--max-episode-steps", "40", "--total-steps", "260")),
    Case("CarRacing-v2", ("--env-arg", "continuous=False", "--max-episode-steps", "40", "--total-steps", "260")),
]
MINIGRID = [
    Case("my_grid:MyTask-v0"),
    Case("minigrid:MiniGrid-Empty-5x5-v0", refused="ImgObsWrapper"),
]
POPGYM = [
    Case(f"popgym:popgym-{name}Easy-v0", TD3 if name.endswith("Pendulum") else ())
    for name in (
        "Autoencode", "RepeatPrevious", "RepeatFirst", "CountRecall", "PositionOnlyCartPole", "PositionOnlyPendulum",
        "VelocityOnlyCartpole", "MultiarmedBandit", "Battleship", "MineSweeper",
    )
]  # fmt: skip
NEUROGYM = [
    Case("my_neurogym_task:MyTask", command="train-neurogym"),
    Case("my_neurogym_task:with_reward", ("--env-arg", "sigma=1.0"), command="train-neurogym"),
]
CASES = [*CLASSIC, *TOY_TEXT, *BOX2D, *MINIGRID, *POPGYM, *NEUROGYM]


def own_modules(folder: Path) -> None:
    """Write the two task modules of docs/tasks.md into a working directory."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8"), re.DOTALL)
    for name, part in (("my_grid.py", "ImgObsWrapper"), ("my_neurogym_task.py", "TrialEnv")):
        (folder / name).write_text(next(block for block in blocks if part in block), encoding="utf-8")


def run(case: Case) -> dict[str, str]:
    """Run every command on one task. Returns: for each stage "2.1 s", or what went wrong; "" where it was not run."""
    answers = dict.fromkeys(STAGES, "")
    folder = Path(tempfile.mkdtemp(prefix="mpn-third-party-"))
    try:
        own_modules(folder)
        name = ["--experiment-name", "run"]
        commands = {
            "train": [case.command, "--env-name", case.env_name, *name, *SMALL, *case.options],
            "eval": ["eval", *name, "--num-eval-episodes", "2", "--json"],
            "render": ["render", *name, "--max-steps", "8"],
            "analyze": ["analyze", *name, "--num-episodes", "2"],
        }
        for stage, argv in commands.items():
            began = time.monotonic()
            fault = _fault(stage, argv, case, folder)
            answers[stage] = fault or f"{time.monotonic() - began:.1f} s"
            if fault or case.refused:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return answers


def _fault(stage: str, argv: list[str], case: Case, folder: Path) -> str:
    """Run one command in a process of its own. Returns: what is wrong with its answer; empty: nothing."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=(argv, folder))
    process.start()
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        return f"not finished after {LIMIT_S} s"
    out, err = ((folder / name).read_text(encoding="utf-8") for name in ("out.txt", "err.txt"))
    last = err.strip().splitlines()[-1] if err.strip() else ""
    if case.refused:
        as_asked = process.exitcode == 2 and err.count("\n") == 1 and case.refused in err
        return "" if as_asked and not (folder / "experiments").exists() else f"not refused in one line: {last}"
    if process.exitcode != 0 or "Traceback" in err or "Warning" in err:
        shown = next((line for line in err.splitlines() if "Warning" in line), last)
        return f"status {process.exitcode}: {shown}"
    if stage == "eval":
        score = json.loads(out)["return_mean"]
        return "" if isinstance(score, float) and math.isfinite(score) else f"return_mean is {score}"
    made = {"train": "checkpoints/last.pt", "render": "videos/*.gif", "analyze": "analysis/*.png"}[stage]
    return "" if any((folder / "experiments" / "run").glob(made)) else f"{made} is missing"


def _command(argv: list[str], folder: Path) -> None:
    """`main.py ARGV` in this process, which ends with its status."""
    from mpn_rl import cli, commands

    os.chdir(folder)
    for descriptor, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    commands.stdout.file, commands.stderr.file = sys.stdout, sys.stderr
    sys.path.append(str(folder))
    status: object = 70
    try:
        status = cli.main(argv)
    except SystemExit as left:
        status = left.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(status)  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="tasks whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(default: %(default)s)")
    args = parser.parse_args()
    if Path(sys.prefix) != VENV:
        from separate_venv import make_venv

        make_venv(
            VENV,
            ["-c", "benchmarks/third_party.txt", "swig", "setuptools"],  # they compile Box2D
            ["-e", ".[mujoco]"],
            ["--no-build-isolation", "-r", "benchmarks/third_party.txt"],
        )
        return subprocess.call([VENV / "bin" / "python", __file__, *sys.argv[1:]])
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "XDG_STATE_HOME": tempfile.mkdtemp(prefix="mpn-third-party-state-"),
    }
    # Before any fork, so that each one starts at once.
    import matplotlib.pyplot  # noqa: F401
    import sklearn.decomposition  # noqa: F401

    from mpn_rl import cli, commands  # noqa: F401
    from mpn_rl.analysis.figures import video  # noqa: F401
    from mpn_rl.analysis.pages import mechanism_pages, standard_pages  # noqa: F401

    began, failed = time.monotonic(), 0
    cases = [case for case in CASES if args.only in case.env_name]
    print(f"{'task':44}" + "".join(f"{stage:>10}" for stage in STAGES))
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("fork")) as pool:
        for case, answers in zip(cases, pool.map(run, cases), strict=True):
            wrong = [f"{stage}: {answer}" for stage, answer in answers.items() if answer and not answer.endswith(" s")]
            failed += bool(wrong)
            shown = "".join(f"{answers[stage] if answers[stage].endswith(' s') else '':>10}" for stage in STAGES)
            print(f"{case.env_name:44}{'   refused' if case.refused and not wrong else shown}", flush=True)
            for fault in wrong:
                print(f"    FAILED {fault}", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} tasks passed in {time.monotonic() - began:.0f} s")
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
