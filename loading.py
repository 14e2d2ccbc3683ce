"""A finished experiment as something to look at: its configuration, its trained network, its greedy scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import build
import config as cfg
from config import Config
from model_utils import Experiment, load_checkpoint, write_json
from options import ConfigError
from scoring import score, summarise


def stored_config(experiment: Experiment) -> Config:
    """The configuration in config.json. Raises: ConfigError that names the file."""
    nested = experiment.read_config()
    try:
        return cfg.config_from_dict(nested)
    except ConfigError as error:
        raise ConfigError(f"{experiment.config_path}: {error}") from error


def load_policy(args: argparse.Namespace, name: str | None = None) -> tuple[Experiment, Config, Any]:
    """The experiment, its configuration and the trained network, from config.json and a checkpoint alone.

    Args: name: the experiment; None: args.experiment_name.
    """
    experiment = Experiment.open(name or args.experiment_name, args.experiments_dir)
    config = stored_config(experiment)
    torch.set_num_threads(args.threads)
    device = build.make_device(args.device)
    path = experiment.checkpoint(args.checkpoint)
    saved = load_checkpoint(path, device)
    env = build.make_env(config.env)
    network = build.make_network(config, build.spaces(env)).to(device)
    env.close()
    try:
        network.load_state_dict(saved["network"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--checkpoint {path} does not fit {experiment.config_path}: that is a {config.core.name} of its own "
            "sizes; take a checkpoint of this experiment"
        ) from error
    if args.policy is not None:
        if not hasattr(network, "sample_policy"):
            raise ConfigError(
                f"--policy {args.policy} is for agents of --algo a2c; {config.learner.name} has none to draw"
            )
        network.sample_policy = args.policy == "sample"
    if args.lesion is not None:
        _lesion(network.core, args.lesion, config)
    return experiment, config, network.requires_grad_(False)


def _lesion(core: Any, part: str, config: Config) -> None:
    if not hasattr(core, "lesion"):
        raise ConfigError(f"--lesion {part}: the core {config.core.name} has no such part; backpropamine has")
    core.lesion = part


def how(network: Any) -> str:
    """How the agent acted, for a title."""
    acted = "drawing from its policy" if getattr(network, "sample_policy", False) else "greedy"
    lesion = getattr(network.core, "lesion", None)
    return f"{acted}, without {lesion}" if lesion else acted


def scores_file(args: argparse.Namespace, experiment: Experiment) -> Path:
    """Where the scores of such an evaluation lie: eval/best_seed0.json, whether or not it has been made."""
    lesion = f"_without_{args.lesion}" if args.lesion else ""
    policy = f"_{args.policy}" if args.policy else ""
    return experiment.path / "eval" / f"{Path(args.checkpoint).stem}_seed{args.seed}{policy}{lesion}.json"


def measure(
    args: argparse.Namespace, experiment: Experiment, config: Config, network: Any
) -> tuple[dict[str, Any], Path]:
    """The scores of greedy episodes and of the scripted policies on the same seeds, written to `scores_file`."""
    result, scripted, seeds = score(config, network, args.seed, args.num_eval_episodes, args.num_eval_trials)
    scores = summarise(config, result, scripted)
    file = experiment.eval_dir / scores_file(args, experiment).name
    write_json(file, {**scores, "checkpoint": args.checkpoint, "seed": args.seed, "episode_seeds": seeds})
    return scores, file
