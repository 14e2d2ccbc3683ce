"""Load a trained agent from its folder, and compare its scores with those of scripted policies on the same seeds."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

from model_utils import ROOT, Experiment, jsonable, load_checkpoint, write_json
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.config import Config
from mpn_rl.contracts import Action, Lesionable, Task
from mpn_rl.networks.encoder import AgentNetwork, check_weights
from mpn_rl.options import ConfigError
from mpn_rl.rollout import Evaluation, evaluate, evaluate_groups, run_batched, run_scripted
from mpn_rl.runs.task_scores import TaskScore, known_mean, scripted_results, spread_seeds
from mpn_rl.statistics import QUARTER, mean_interval, mean_over, normalised_interval, score_interval, trimmed_mean
from mpn_rl.storage.npz_files import memory_limit
from mpn_rl.storage.regular_files import open_regular
from mpn_rl.storage.state_trees import StateError
from mpn_rl.tasks import trusted_modules
from mpn_rl.tasks.lanes import per_lane
from neurogym_wrapper import REFERENCE_POLICIES, normalised_score, reference_scores

EVAL_LANES = 64
GRADED = re.compile(r"coh(_\d+)?|context|log_odd|v[12]|duration[12]")  # conditions that make a psychometric curve
Scores: TypeAlias = dict[str, Any]  # JSON: numbers, None, and lists of these, by name


def score(
    config: Config, network: AgentNetwork, seed: int, episodes: int, trials: int | None = None
) -> tuple[Evaluation, dict[str, Evaluation], list[int]]:
    """Play episodes with the agent, without exploration, and with the reference policies on the same seeds.

    Args:
        config: of the experiment.
        network: the agent.
        seed: of the episode seeds, which neither training nor the choice of best_model.pt uses.
        episodes: number of episodes, if `trials` is None.
        trials: number of NeuroGym trials to complete; as many episodes are played as this takes.
    Returns: the agent's evaluation, those of the policies by name, the episode seeds.
    Raises: ConfigError for `trials` where the task has none, or where no trial is completed.
    """
    source = registry.eval_seeds(config, seed)
    neurogym = isinstance(config.env, cfg.NeuroGymConfig)
    if trials and not neurogym:
        raise ConfigError("--num-eval-trials counts NeuroGym trials; this task has none: use --num-eval-episodes")
    envs = [registry.make_env(config.env) for _ in range(min(EVAL_LANES, trials or episodes))]
    seeds = [source() for _ in range(len(envs) if trials else episodes)]
    reset = config.run.reset_state_on_trial
    result = evaluate(network, envs, seeds, reset)
    while trials and len(result.performance) < trials:
        if len(result.performance) == 0:
            raise ConfigError("--num-eval-trials: no trial is completed in an episode; use --num-eval-episodes")
        missing = trials - len(result.performance)
        more = [source() for _ in range(int(np.ceil(missing * len(seeds) / len(result.performance))))]
        seeds += more
        result = Evaluation(*map(np.concatenate, zip(result, evaluate(network, envs, more, reset), strict=True)))
    batch = registry.vector_env(config.env, len(seeds))
    if batch is not None and batch.scripted:
        scripted = {name: run_batched(policy, batch, seeds) for name, policy in batch.scripted.items()}
    else:
        scripted = {name: run_scripted(policy, envs[0], seeds) for name, policy in envs[0].scripted.items()}
    return result, scripted, seeds


def summarise(config: Config, result: Evaluation, scripted: dict[str, Evaluation]) -> Scores:
    """The numbers of an evaluation, for the JSON file and the table.

    Args:
        config: of the experiment.
        result: the agent's evaluation.
        scripted: those of the reference policies, by name.
    Returns: means, 95 % intervals and counts by name; None where a number is not defined. Means over episodes have
        Student's intervals, shares of trials Wilson's, the normalised score Fieller's.
    """
    scores: Scores = {
        "return_mean": float(result.returns.mean()),
        "return_std": float(result.returns.std()),
        "return_ci95": _ends(mean_interval(result.returns)),
        "length_mean": float(result.lengths.mean()),
        "length_std": float(result.lengths.std()),
        "length_ci95": _ends(mean_interval(result.lengths)),
        "episodes": len(result.returns),
    }
    for name, other in scripted.items():
        scores[f"{name}_return_mean"] = float(other.returns.mean())
    if len(result.quarters):
        scores |= _quarters(result, scripted)
    if not isinstance(config.env, cfg.NeuroGymConfig):
        return scores
    per_trial = {name: _mean(other.trial_returns) for name, other in scripted.items()}
    score, ends = np.nan, (np.nan, np.nan)
    best = next((name for name in ("best", "ground_truth") if name in scripted), None)
    if best is not None:
        score = normalised_score(_mean(result.trial_returns), per_trial["random"], per_trial[best])
        ends = normalised_interval(result.trial_returns, scripted["random"].trial_returns, scripted[best].trial_returns)
    scores |= {
        "trials": len(result.performance),
        "accuracy": _json_number(_mean(result.performance)),
        "accuracy_ci95": _ends(score_interval(result.performance)),
        "decision_accuracy": _json_number(_mean(result.decision_correct)),
        "aborts": int(result.aborted.sum()),
        "trial_return_mean": _json_number(_mean(result.trial_returns)),
        "normalised_score": _json_number(score),
        "normalised_score_ci95": _ends(ends),
        "choices": choice_counts(result.outcomes),
    }
    for name in {**REFERENCE_POLICIES, **scripted}:  # null where the task has no ground truth
        policy = scripted.get(name)
        scores[f"{name}_return_mean"] = float(policy.returns.mean()) if policy else None
        scores[f"{name}_accuracy"] = _json_number(_mean(policy.performance)) if policy else None
        scores[f"{name}_trial_return_mean"] = _json_number(per_trial[name]) if policy else None
    for name, value in reference_scores(config.env.env_name, config.env.env_args).items():
        scores[f"{name}_accuracy"] = value
    return scores


def score_tasks(
    config: Config, network: AgentNetwork, seed: int, episodes: int, trials: int | None = None
) -> tuple[list[TaskScore], list[int]]:
    """`score` where a run has several tasks: the episodes go round the tasks, at least LEAST_EPISODES of each.

    Args: as of `score`; `episodes` and `trials` are of all tasks together.
    Returns: the results of each task, the episode seeds.
    """
    names, source = registry.task_names_of(config.env), registry.eval_seeds(config, seed)
    seeds, tasks = spread_seeds(source, 1 if trials else episodes, len(names))
    envs = [registry.make_env(config.env) for _ in range(min(EVAL_LANES, max(len(seeds), trials or 0)))]
    reset = config.run.reset_state_on_trial
    results = evaluate_groups(network, envs, seeds, tasks, reset)
    while trials and (done := sum(len(result.performance) for result in results)) < trials:
        if done == 0:
            raise ConfigError("--num-eval-trials: no trial is completed in an episode; use --num-eval-episodes")
        missing = int(np.ceil((trials - done) * len(seeds) / done))
        more, of = spread_seeds(source, missing, len(names))
        fresh = evaluate_groups(network, envs, more, of, reset)
        results = [Evaluation.pooled(pair) for pair in zip(results, fresh, strict=True)]
        seeds, tasks = seeds + more, tasks + of
    scripted = scripted_results(registry.make_task_set(config.env), seeds, tasks)
    return [TaskScore(*parts) for parts in zip(names, results, scripted, strict=True)], seeds


def summarise_tasks(config: Config, parts: list[TaskScore]) -> Scores:
    """The numbers of an evaluation of several tasks.

    Args: parts: of `score_tasks`.
    Returns: as `summarise` for all episodes together, but accuracies and normalised scores are means over tasks, in
        which every task counts the same; their intervals are of the sampled trials, not of the choice of tasks.
        Besides, "normalised_score_iqm", the interquartile mean over tasks, and under "tasks" the numbers of each task.
    """
    policies = [name for name in parts[0].scripted if all(name in part.scripted for part in parts)]
    together = {name: Evaluation.pooled([part.scripted[name] for part in parts]) for name in policies}
    scores = summarise(config, Evaluation.pooled([part.result for part in parts]), together)
    tasks: dict[str, Scores] = {}
    assert isinstance(config.env, cfg.NeuroGymConfig)
    for spec, part in zip(registry.specs_of(config.env), parts, strict=True):
        alone = dataclasses.replace(
            config.env, env_name=spec.name, env_args=spec.env_args, task_schedule="mixed", task_weights={}
        )
        tasks[part.name] = summarise(dataclasses.replace(config, env=alone), part.result, part.scripted)
    for name in ("accuracy", "decision_accuracy", "normalised_score", *(f"{name}_accuracy" for name in policies)):
        scores[name] = known_mean([task.get(name) for task in tasks.values()])
    known = [task["normalised_score"] for task in tasks.values() if task["normalised_score"] is not None]
    scores["normalised_score_iqm"] = float(trimmed_mean(known, QUARTER).value) if known else None
    scored = [trimmed_mean(part.result.performance) for part in parts if len(part.result.performance) > 1]
    scores["accuracy_ci95"] = _ends(mean_over(scored).interval() if scored else (np.nan, np.nan))
    halves = [_half(task["normalised_score_ci95"]) for task in tasks.values() if task["normalised_score"] is not None]
    half = np.sqrt(np.sum(np.square(halves))) / len(halves) if halves else np.nan
    middle = np.nan if scores["normalised_score"] is None else scores["normalised_score"]
    scores["normalised_score_ci95"] = _ends((middle - half, middle + half))
    return {**scores, "choices": None, "tasks": tasks}


def _half(ends: list[float | None]) -> float:
    """Half the width of an interval; nan where it is unknown."""
    low, high = ends
    return np.nan if low is None or high is None else (high - low) / 2.0


def _quarters(result: Evaluation, scripted: dict[str, Evaluation]) -> Scores:
    """Hits per quarter of the episode, and their growth from the first to the last quarter of the same episode."""
    growth = result.quarters[:, 3] - result.quarters[:, 0]
    scores: Scores = {
        "quarter_hits": result.quarters.mean(axis=0).tolist(),
        "quarter_hits_ci95": [_ends(mean_interval(column)) for column in result.quarters.T],
        "growth_hits": float(growth.mean()),
        "growth_hits_ci95": _ends(mean_interval(growth)),
    }
    if len(result.performance):
        scores |= {"accuracy": _mean(result.performance), "accuracy_ci95": _ends(score_interval(result.performance))}
    for name, other in scripted.items():
        scores[f"{name}_return_ci95"] = _ends(mean_interval(other.returns))
        scores[f"{name}_quarter_hits"] = other.quarters.mean(axis=0).tolist()
    return scores


def choice_counts(outcomes: np.ndarray) -> dict[str, list[float]] | None:
    """The number of trials with the same graded evidence, right action and choice.

    Args: outcomes: as in `rollout.Evaluation`.
    Returns: {each condition that is GRADED, "ground_truth", "choice", "trials": one value per combination}; None for a
        task without graded evidence.
    """
    names = [name for name in sorted(set().union(*outcomes)) if GRADED.fullmatch(name)]
    names = [name for name in names if all(isinstance(trial.get(name), int | float) for trial in outcomes)]
    if not set(names) - {"context"}:
        return None
    names += ["ground_truth", "choice"]
    counts = Counter(tuple(float(trial[name]) for name in names) for trial in outcomes)
    rows = sorted(counts)
    columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return {**columns, "trials": [counts[row] for row in rows]}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _ends(interval: tuple[ArrayLike, ArrayLike]) -> list[float | None]:
    """The ends of an interval for JSON; None where it is unknown, as for one value or equal values."""
    return [float(end) if np.isfinite(end) else None for end in map(np.asarray, interval)]


def stored_config(experiment: Experiment) -> Config:
    """The configuration in config.json. Raises: ConfigError that names the file, if it is not valid.

    Only the task module of this experiment may be imported from now on (`trusted_modules`).
    """
    trusted_modules.open_experiment(experiment.path)
    nested = experiment.read_config()
    try:
        return cfg.config_from_dict(nested)
    except ConfigError as error:
        raise ConfigError(f"{experiment.config_path}: {error}") from error


class Agent:
    """A trained agent that acts step by step in one environment, without exploration.

    Args:
        config: of its experiment.
        network: its network.
    """

    def __init__(self, config: Config, network: AgentNetwork) -> None:
        self.config, self.network = config, network
        self.reset()

    def make_env(self, render_mode: str | None = None) -> Task:
        """A new environment of the task it was trained on, with the same options."""
        return registry.make_env(self.config.env, render_mode=render_mode)

    def reset(self, seed: int = 0) -> None:
        """Start a new episode: the core's state is that before the first observation.

        Args: seed: of the actions, where the agent samples them from its policy.
        """
        self.state = self.network.init_state(1)
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, obs: np.ndarray) -> Action:
        """The action for an observation (D,); the core's state moves on by one step."""
        seen = torch.as_tensor(obs, dtype=torch.float32, device=next(self.network.parameters()).device)
        actions, self.state = self.network.select_action(seen[None], self.state, 0.0, self.generator)
        return per_lane(actions.cpu().numpy())[0]

    @property
    def state_arrays(self) -> dict[str, np.ndarray]:
        """The parts of the core's state after the last step: of an MPN {"M": (H, D)}, of an LSTM {"h", "c": (H,)}."""
        return {name: part[0].cpu().numpy() for name, part in self.network.state_arrays(self.state).items()}


def load_agent(name: str | Path, checkpoint: str | Path = "best", device: str = "cpu") -> Agent:
    """Load a trained agent.

    Args:
        name: an experiment in experiments/, such as "demo", or the path of an experiment's folder.
        checkpoint: best, final or last, or the path of a checkpoint.
        device: auto, cpu or cuda.
    Raises: ConfigError for a missing or damaged experiment, and for a task module of a stranger's experiment.
    """
    folder = Path(name)
    root = Path(ROOT) if len(folder.parts) == 1 and not folder.is_absolute() else folder.parent
    experiment = Experiment.open(folder.name, root)
    return Agent(*load_network(experiment, checkpoint, device))


def load_policy(args: argparse.Namespace, name: str | None = None) -> tuple[Experiment, Config, AgentNetwork]:
    """Load the agent that a command line names.

    Args:
        args: the command line: checkpoint, device, threads, policy and lesion.
        name: of the experiment; None: args.experiment_name.
    Returns: the experiment, its configuration, the network, without gradients.
    Raises: ConfigError where the checkpoint does not fit, or the agent has no such policy or part.
    """
    experiment = Experiment.open(args.experiment_name if name is None else name, args.experiments_dir)
    torch.set_num_threads(args.threads)
    config, network = load_network(experiment, args.checkpoint, args.device)
    if args.policy is not None:
        if network.sample_policy is None:
            raise ConfigError(
                f"--policy {args.policy} needs an agent of --algo a2c or ppo; {config.learner.name} has no policy to "
                "sample"
            )
        network.sample_policy = args.policy == "sample"
    if args.lesion is not None:
        if not isinstance(network.core, Lesionable):
            raise ConfigError(
                f"--lesion {args.lesion}: the core {config.core.name} has no part to remove; use --core backpropamine"
            )
        network.core.lesion = args.lesion
    return experiment, config, network


def load_network(experiment: Experiment, checkpoint: str | Path, device: str) -> tuple[Config, AgentNetwork]:
    """An experiment's configuration and its network, without gradients.

    Raises: ConfigError where config.json or the checkpoint is damaged, or they do not fit each other.
    """
    config = stored_config(experiment)
    path = experiment.checkpoint(checkpoint)
    follow = path.parent.parent != experiment.path  # a file that the user names may be a link
    saved = load_checkpoint(path, registry.make_device(device), follow)
    env = registry.make_env(config.env)
    network: AgentNetwork = registry.make_network(config, registry.spaces(env)).to(registry.make_device(device))
    env.close()
    try:
        check_weights(saved.get("network"), network)
    except StateError as error:
        raise ConfigError(
            f"--checkpoint {path} does not fit the {config.core.name} network of {experiment.config_path} ({error}); "
            "use a checkpoint of this experiment"
        ) from error
    network.load_state_dict(saved["network"])
    return config, network.requires_grad_(False)


def acting(network: AgentNetwork) -> str:
    """How the agent acts, for a title: "greedy" or "sampled", and without which part."""
    mode = "sampled" if network.sample_policy else "greedy"
    lesion = network.core.lesion if isinstance(network.core, Lesionable) else None
    return f"{mode}, without {lesion}" if lesion else mode


def network_key(checkpoint: Path, config: Config) -> str:
    """A hash of the checkpoint and of what decides how it acts: task, network, learner and resets of the state.

    Scores and recordings with another key are of another network.

    Raises: ConfigError for anything but an ordinary file, and for one that no memory of this machine holds.
    """
    parts = config.to_dict()
    parts["run"] = {"reset_state_on_trial": config.run.reset_state_on_trial}
    digest = hashlib.sha256()
    with open_regular(checkpoint, follow=True, limit=memory_limit()) as file:
        while block := file.read(2**20):
            digest.update(block)
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def scores_file(args: argparse.Namespace, experiment: Experiment, config: Config) -> Path:
    """The file for the scores of an evaluation, such as eval/best_seed0_10ep_<network_key>.json; it need not exist."""
    key = network_key(experiment.checkpoint(args.checkpoint), config)
    stem = re.sub(r"[^\w.-]+", "-", Path(args.checkpoint).stem)[:40]
    lesion = f"_without_{args.lesion}" if args.lesion else ""
    policy = f"_{args.policy}" if args.policy else ""
    length = f"{args.num_eval_trials}trials" if args.num_eval_trials else f"{args.num_eval_episodes}ep"
    return experiment.path / "eval" / f"{stem}_seed{args.seed}_{length}{policy}{lesion}_{key}.json"


def measure(args: argparse.Namespace, config: Config, network: AgentNetwork) -> tuple[Scores, list[int]]:
    """Evaluate the agent and the scripted policies on the same seeds.

    Returns: the scores, with None where a number is not finite; the episodes' seeds.
    """
    if registry.task_names_of(config.env):
        parts, seeds = score_tasks(config, network, args.seed, args.num_eval_episodes, args.num_eval_trials)
        return jsonable(summarise_tasks(config, parts)), seeds
    result, scripted, seeds = score(config, network, args.seed, args.num_eval_episodes, args.num_eval_trials)
    return jsonable(summarise(config, result, scripted)), seeds


def write_scores(
    args: argparse.Namespace, experiment: Experiment, config: Config, scores: Scores, seeds: list[int]
) -> Path:
    """Write the scores of `measure` to `scores_file`. Returns: the file."""
    file = experiment.eval_dir / scores_file(args, experiment, config).name
    write_json(file, {**scores, "checkpoint": args.checkpoint, "seed": args.seed, "episode_seeds": seeds})
    return file
