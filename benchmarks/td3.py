"""Speed of TD3: whole training steps on HalfCheetah-v4, compared with a plain PyTorch TD3.

    python benchmarks/td3.py [--turns 20] [--steps 300]

Batch 256, hidden 256, one update per environment step, one thread. "plain" implements the paper directly, without this
toolkit: torch.nn, Adam with its defaults, a loop over the parameters for the targets. It, the dense learner and the
growing ones with their metrics take turns in one process, so that noise affects all of them. Only processor time
counts, so a busy machine changes little. With the default turns, every contender measures its plasticity once, which
is due every 5,000 steps. Results are kept in benchmarks/results/td3.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "td3.json"
TASK, STARTS = "HalfCheetah-v4", 1_000
DEMANDS = {"dense": 1.0, "paper": 0.9, "reference": 0.9}  # times plain


# --- a plain TD3 ------------------------------------------------------------------------------------------


def plain_network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


class PlainTD3:
    """Fujimoto et al. 2018, with its own environment and replay buffer."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.env = gymnasium.make(TASK)
        self.obs, _ = self.env.reset(seed=seed)
        self.obs_dim, self.action_dim = self.env.observation_space.shape[0], self.env.action_space.shape[0]
        self.max_action = float(self.env.action_space.high[0])
        self.actor = nn.Sequential(plain_network(self.obs_dim, self.action_dim), nn.Tanh())
        self.critics = nn.ModuleList(plain_network(self.obs_dim + self.action_dim, 1) for _ in range(2))
        self.actor_target, self.critics_target = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=3e-4)
        self.rows, self.filled, self.updates = 1_000_000, 0, 0
        shapes = {"obs": self.obs_dim, "action": self.action_dim, "next_obs": self.obs_dim, "reward": 1, "alive": 1}
        self.memory = {name: np.zeros((self.rows, size), np.float32) for name, size in shapes.items()}

    def step(self) -> None:
        """One step of the environment, and one update."""
        if self.filled < STARTS:
            action = self.env.action_space.sample()
        else:
            with torch.no_grad():
                chosen = self.actor(torch.from_numpy(self.obs.astype(np.float32))[None])[0].numpy() * self.max_action
            noise = np.random.normal(0, 0.1 * self.max_action, self.action_dim)
            action = (chosen + noise).clip(-self.max_action, self.max_action).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        row = self.filled % self.rows
        for name, value in zip(self.memory, (self.obs, action, next_obs, reward, 1.0 - terminated), strict=True):
            self.memory[name][row] = value
        self.filled += 1
        self.obs = self.env.reset()[0] if terminated or truncated else next_obs
        if self.filled >= STARTS:
            self.update()

    def update(self) -> None:
        self.updates += 1
        index = np.random.randint(0, min(self.filled, self.rows), 256)
        obs, action, next_obs, reward, alive = (torch.from_numpy(part[index]) for part in self.memory.values())
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2 * self.max_action).clamp(
                -0.5 * self.max_action, 0.5 * self.max_action
            )
            next_action = (self.actor_target(next_obs) * self.max_action + noise).clamp(
                -self.max_action, self.max_action
            )
            x = torch.cat([next_obs, next_action], 1)
            target = reward + 0.99 * alive * torch.min(self.critics_target[0](x), self.critics_target[1](x))
        x = torch.cat([obs, action], 1)
        loss = nn.functional.mse_loss(self.critics[0](x), target) + nn.functional.mse_loss(self.critics[1](x), target)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        if self.updates % 2:
            return
        actor_loss = -self.critics[0](torch.cat([obs, self.actor(obs) * self.max_action], 1)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        for online, target_net in ((self.critics, self.critics_target), (self.actor, self.actor_target)):
            for part, slow in zip(online.parameters(), target_net.parameters(), strict=True):
                slow.data.copy_(0.005 * part.data + 0.995 * slow.data)


# --- the toolkit's ----------------------------------------------------------------------------------------


def a_run(folder: str, **flags: Any) -> Any:
    """A training run in a temporary folder, as `python main.py train --algo td3` drives it."""
    from model_utils import Experiment
    from mpn_rl import config as cfg
    from mpn_rl.training import Run

    fixed = {"learner": "td3", "env_name": TASK, "learning_starts": STARTS, "total_steps": 1_000_000}
    config = cfg.make_config("train", {**fixed, "eval_freq": 0, "checkpoint_freq": 0, **flags})
    run = Run(config)
    run.start(Experiment.create(flags.get("expansion", "dense"), folder, config.to_dict()))
    return run


def contenders(folder: str) -> dict[str, Callable[[], Any]]:
    from mpn_rl import config as cfg

    steps: dict[str, Callable[[], Any]] = {"plain": PlainTD3().step, "dense": a_run(folder).advance}
    kinds = cfg.choices("expansion")
    for name in ("paper", "reference"):
        if name in kinds:
            steps[name] = a_run(folder, expansion=name).advance
        else:
            print(f"--expansion {name} does not exist yet: left out", file=sys.stderr)
    return steps


def measure(turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds of every contender per turn."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stepping = contenders(folder)
        for step in stepping.values():
            for _ in range(STARTS + 50):
                step()
        for _ in range(turns):
            for name, step in stepping.items():
                started = time.process_time()
                for _ in range(steps):
                    step()
                seconds.setdefault(name, []).append(time.process_time() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(args.turns, args.steps)
    plain, rows = np.array(seconds["plain"]), {}
    for name, result in seconds.items():
        rate, times = args.turns * args.steps / sum(result), float(plain.sum() / sum(result))
        quartiles = [round(float(q), 3) for q in np.quantile(plain / np.array(result), (0.25, 0.5, 0.75))]
        rows[name] = {"steps_per_second": round(rate, 1), "times_plain": round(times, 3), "quartiles": quartiles}
        asked = f", at least {DEMANDS[name]:.1f} is asked" if name in DEMANDS else ""
        print(f"{name:10} {rate:7.1f} steps/s  {times:.2f} x plain{asked}")
    machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"task": TASK, **vars(args), "machine": machine, "rates": rows}, indent=1) + "\n")
    print(f"written to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
