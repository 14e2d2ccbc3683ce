"""A trained agent loaded from its folder, and its greedy scores beside those of scripted policies on the same seeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_utils import Experiment, load_checkpoint, write_json
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.config import Config
from mpn_rl.options import ConfigError
from mpn_rl.rollout import Evaluation, evaluate, run_batched, run_scripted
from mpn_rl.statistics import bootstrap
from mpn_rl.tasks.lanes import EpisodeSeeds
from neurogym_wrapper import REFERENCE_POLICIES, REFERENCES, normalised_score

EVAL_LANES = 64


def score(
    config: Config, network: Any, seed: int, episodes: int, trials: int | None = None
) -> tuple[Evaluation, dict[str, Evaluation], list[int]]:
    """The agent's greedy episodes, and those of the reference policies on the same seeds.

    Args:
        seed: of the episode seeds, which neither training nor the choice of best_model.pt ever uses.
        episodes: how many; with `trials`, as many as give so many completed NeuroGym trials instead.
    Returns: the agent's evaluation, the policies' by name, the episode seeds.
    """
    source = EpisodeSeeds("eval", seed)
    neurogym = isinstance(config.env, cfg.NeuroGymConfig)
    if trials and not neurogym:
        raise ConfigError("--num-eval-trials counts NeuroGym trials; this task has none: take --num-eval-episodes")
    envs = [registry.make_env(config.env) for _ in range(min(EVAL_LANES, trials or episodes))]
    seeds = [source() for _ in range(len(envs) if trials else episodes)]
    reset = config.run.reset_state_on_trial
    result = evaluate(network, envs, seeds, reset)
    while trials and len(result.performance) < trials:
        if len(result.performance) == 0:
            raise ConfigError("--num-eval-trials: no trial is completed in an episode; take --num-eval-episodes")
        missing = trials - len(result.performance)
        more = [source() for _ in range(int(np.ceil(missing * len(seeds) / len(result.performance))))]
        seeds += more
        result = Evaluation(*map(np.concatenate, zip(result, evaluate(network, envs, more, reset), strict=True)))
    if not neurogym and getattr(envs[0].unwrapped, "scripted", None):
        batch: Any = registry.make_vector_env(len(seeds), **registry.options(config.env))
        return result, {name: run_batched(policy, batch, seeds) for name, policy in batch.scripted.items()}, seeds
    policies = REFERENCE_POLICIES if neurogym else {"random": _random}
    scripted = {name: run_scripted(policy, envs[0], seeds) for name, policy in policies.items()}
    if neurogym and not envs[0].has_ground_truth:
        del scripted["ground_truth"]
    return result, scripted, seeds


def summarise(config: Config, result: Evaluation, scripted: dict[str, Evaluation]) -> dict[str, Any]:
    """The numbers of an evaluation, for JSON and the table."""
    low, high = bootstrap_interval(result.returns)
    scores: dict[str, Any] = {
        "return_mean": float(result.returns.mean()),
        "return_std": float(result.returns.std()),
        "return_ci95": [low, high],
        "length_mean": float(result.lengths.mean()),
        "length_std": float(result.lengths.std()),
        "length_ci95": list(bootstrap_interval(result.lengths)),
        "episodes": len(result.returns),
    }
    for name, other in scripted.items():
        scores[f"{name}_return_mean"] = float(other.returns.mean())
    if len(result.quarters):
        scores |= _within_episode(result, scripted)
    if not isinstance(config.env, cfg.NeuroGymConfig):
        return scores
    per_trial = {name: _mean(other.trial_returns) for name, other in scripted.items()}
    score = np.nan
    if "ground_truth" in scripted:
        score = normalised_score(_mean(result.trial_returns), per_trial["random"], per_trial["ground_truth"])
    scores |= {
        "trials": len(result.performance),
        "accuracy": _json_number(_mean(result.performance)),
        "accuracy_ci95": list(bootstrap_interval(result.performance)),
        "decision_accuracy": _json_number(_mean(result.decision_correct)),
        "aborts": int(result.aborted.sum()),
        "trial_return_mean": _json_number(_mean(result.trial_returns)),
        "normalised_score": _json_number(score),
    }
    for name in REFERENCE_POLICIES:  # null where a task knows no right actions
        known = scripted.get(name)
        scores[f"{name}_return_mean"] = float(known.returns.mean()) if known else None
        scores[f"{name}_accuracy"] = _json_number(_mean(known.performance)) if known else None
        scores[f"{name}_trial_return_mean"] = _json_number(per_trial[name]) if known else None
    for name, value in REFERENCES.get(config.env.env_name, {}).items():
        scores[f"{name}_accuracy"] = value
    return scores


def _within_episode(result: Evaluation, scripted: dict[str, Evaluation]) -> dict[str, Any]:
    """Hits per quarter of the episode; their growth from the first to the last is learning within it (paired)."""
    growth = result.quarters[:, 3] - result.quarters[:, 0]
    scores: dict[str, Any] = {
        "quarter_hits": result.quarters.mean(axis=0).tolist(),
        "quarter_hits_ci95": [list(bootstrap_interval(column)) for column in result.quarters.T],
        "growth_hits": float(growth.mean()),
        "growth_hits_ci95": list(bootstrap_interval(growth)),
    }
    if len(result.performance):
        scores |= {"accuracy": _mean(result.performance), "accuracy_ci95": list(bootstrap_interval(result.performance))}
    for name, other in scripted.items():
        scores[f"{name}_return_ci95"] = list(bootstrap_interval(other.returns))
        scores[f"{name}_quarter_hits"] = other.quarters.mean(axis=0).tolist()
    return scores


def _random(env: Any, rng: np.random.Generator) -> Any:
    """Any action, each as likely."""
    space = env.action_space
    return int(rng.integers(space.n)) if hasattr(space, "n") else rng.uniform(space.low, space.high)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else value


def bootstrap_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 % bootstrap interval of the mean; the mean itself where all values agree, None where there are none."""
    if len(values) == 0:
        return None, None
    if len(values) < 2 or np.ptp(values.astype(float)) == 0.0:
        return float(values.mean()), float(values.mean())
    low, high = bootstrap(values.astype(float))
    return float(low), float(high)


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
    device = registry.make_device(args.device)
    path = experiment.checkpoint(args.checkpoint)
    saved = load_checkpoint(path, device)
    env = registry.make_env(config.env)
    network = registry.make_network(config, registry.spaces(env)).to(device)
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
