"""Pictures of agents for the documentation: trains three agents, films and analyses them, and copies the pictures.

    make figures      or      python benchmarks/figures.py [AGENT ...]        agents: demo growing maze

Each agent takes a few calls of main.py, which are printed, with seed 0 and one thread. The agents stay in
experiments/figures, and their pictures go into docs/images. benchmarks/learning.py and
benchmarks/backpropamine_learning.py draw the two pictures of learning curves, beside their tables.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class Agent(NamedTuple):
    train: str  # the training
    then: tuple[str, ...]  # what is done with the agent
    pictures: dict[str, str]  # name in docs/images -> where its folder has it


AGENTS = {
    "demo": Agent(  # as `make demo`
        "train-neurogym --env-arg use_expl_context=true --total-steps 60000",
        ("render --max-steps 60", "analyze"),
        {
            "training_curves.png": "plots/training_curves.png",
            "episode.gif": "videos/episode_0.gif",
            "trajectories_M.png": "analysis/trajectories_M.png",
        },
    ),
    "growing": Agent(
        "train-neurogym --total-steps 20000 --expansion paper",
        (),
        {"masks.png": "plots/masks.png"},
    ),
    "maze": Agent(
        f"train --config {shlex.quote(str(ROOT / 'configs' / 'backpropamine_maze_quick.json'))}",
        ("analyze --num-episodes 20",),
        {"modulator.png": "analysis/modulator.png"},
    ),
}


def draw(name: str, experiments: Path, images: Path, steps: int | None) -> None:
    """Train one agent from the start and copy its pictures. Raises: SystemExit if a command fails."""
    from main import main

    agent, where = AGENTS[name], ["--experiment-name", name, "--experiments-dir", str(experiments)]
    short = ["--total-steps", str(steps), "--eval-episodes", "2"] if steps else []
    commands = [[*shlex.split(agent.train), *where, "--plot-training", "--overwrite", *short]]
    for command in map(shlex.split, agent.then):
        commands.append([*command, *where, *(["--num-episodes", "4"] if steps and command[0] == "analyze" else [])])
    for words in commands:
        print(f"$ python main.py {shlex.join(words)}", flush=True)
        if status := main(words):
            sys.exit(status)
    for picture, source in agent.pictures.items():
        print(shutil.copy(experiments / name / source, images / picture))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="*", choices=[[], *AGENTS], help="(default: all)")
    parser.add_argument("--steps", type=int, help="train for so few steps and record four episodes, to try the script")
    parser.add_argument("--experiments-dir", type=Path, default=ROOT / "experiments" / "figures")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="(default: docs/images)")
    args = parser.parse_args(argv)
    for name in args.agents or AGENTS:
        start = time.monotonic()
        draw(name, args.experiments_dir, args.images, args.steps)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
