"""One function per subcommand, and the only place that prints: results to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import build
import cli
import config as cfg
from config import Config, ConfigError
from model_utils import Experiment, load_checkpoint, versions, write_json
from neurogym_wrapper import REFERENCE_POLICIES, REFERENCES, list_tasks, normalised_score
from rollout import EpisodeSeeds, Evaluation, evaluate, record_episodes, run_scripted
from training import DivergedError, Run, history

EVAL_LANES = 64
# Options that a resumed run may change: they do not touch what is learned so far.
RESUMABLE = {
    "num_episodes",
    "total_steps",
    "print_freq",
    "checkpoint_freq",
    "plot_training",
    "tensorboard",
    "device",
    "threads",
}

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False)


# --- train ----------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """train and train-neurogym: one handler, two sets of defaults."""
    if getattr(args, "list_envs", False):
        return _list_envs()
    resuming = args.resume == "yes" or (args.resume == "auto" and _has_run(args))
    if resuming:
        experiment = Experiment.open(_needed_name(args), args.experiments_dir)
        if not experiment.checkpoint("last").is_file():
            raise ConfigError(
                f"--resume needs {experiment.checkpoint('last')}, which is not there; --resume auto starts anew where "
                "there is nothing to continue"
            )
        config = _resumed_config(args, experiment)
        run = Run(config)
        with experiment.lock():
            run.resume(experiment)
            return _drive(run)
    # A run that died before its first checkpoint has nothing to continue: --resume auto starts it anew.
    overwrite = args.overwrite or (args.resume == "auto" and _exists(args))
    name = Experiment.check_new(args.experiment_name, args.experiments_dir, overwrite)
    config = _config(args)
    run = Run(config)  # every mistake shows here, before anything is written
    record = {**config.to_dict(), "versions": versions()}
    experiment = Experiment.create(name, args.experiments_dir, record, overwrite=overwrite)
    with experiment.lock():
        run.start(experiment)
        return _drive(run)


def _exists(args: argparse.Namespace) -> bool:
    return Experiment(_needed_name(args), Path(args.experiments_dir)).exists()


def _has_run(args: argparse.Namespace) -> bool:
    return Experiment(_needed_name(args), Path(args.experiments_dir)).checkpoint("last").is_file()


def _needed_name(args: argparse.Namespace) -> str:
    if args.experiment_name is None:
        raise ConfigError("--resume needs --experiment-name")
    return Experiment.check_new(args.experiment_name, args.experiments_dir, resume=True)


def _config(args: argparse.Namespace) -> Config:
    file = cfg.read_config_file(args.config) if args.config else None
    return cfg.make_config(args.command, cli.config_flags(args), file)


def _resumed_config(args: argparse.Namespace, experiment: Experiment) -> Config:
    """The experiment's own options; a flag may only repeat them or change one of RESUMABLE."""
    stored = _stored_config(experiment)
    flags = cli.config_flags(args)
    wanted = _config(args).to_dict() if args.config else {}
    changes = {}
    for part in cfg.PARTS:
        section = stored.to_dict()[part]
        for name, value in section.items():
            key = part if name == "name" else name
            asked = flags.get(key, wanted.get(part, {}).get(name, value))
            if asked == value:
                continue
            if part == "run" and name in RESUMABLE:
                changes[name] = asked
            else:
                raise ConfigError(
                    f"--resume continues '{experiment.name}' as it was: --{key.replace('_', '-')} is {value}, got {asked}; "
                    "leave the option out, or start another experiment"
                )
    return dataclasses.replace(stored, run=dataclasses.replace(stored.run, **changes))


def _drive(run: Run) -> int:
    """Advance a run to its end; print, draw, and leave cleanly when told to."""
    assert run.experiment is not None
    experiment, reporter = run.experiment, Reporter(run)
    reporter.opening()
    status = 0
    with _signals() as received, reporter:
        try:
            while not run.done and not received:
                reporter.rows(run.advance())
            if received:
                run.save()
                status = 128 + received[0]
            else:
                reporter.rows(run.finish())
        except DivergedError as error:
            reporter.close()
            stderr.print(f"training stopped: {error}")
            status = 1
    if run.config.run.plot_training:
        draw_training_curves(experiment, run.config)
    if status >= 128:
        again = f"--experiment-name {experiment.name} --resume"
        stderr.print(f"stopped at step {run.step:,}; everything is in {experiment.path}: continue with {again}")
    elif status == 0:
        reporter.closing()
    return status


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying, so that the run can finish its step and save."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C leaves at once

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Reporter:
    """The progress bar, the printed lines and the TensorBoard events of one run."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        assert run.experiment is not None
        self.experiment = run.experiment
        self.recent: list[dict[str, Any]] = []
        self.begun, self.first_step = time.monotonic(), run.step
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=stderr,
        )
        total = self.config.run.total_steps or self.config.run.num_episodes
        self.task = self.bar.add_task(self.experiment.name, total=total, completed=self._completed(), note="")
        self.writer = self._tensorboard() if self.config.run.tensorboard else None

    def _completed(self) -> int:
        return self.run.step if self.config.run.total_steps else self.run.episodes

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("--tensorboard needs the extra: pip install -e '.[tensorboard]'") from error
        return SummaryWriter(str(self.experiment.path / "tensorboard"))

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def opening(self) -> None:
        run, config = self.run, self.config
        weights = sum(parameter.numel() for parameter in run.network.parameters())
        env = config.env.env_name  # type: ignore[attr-defined]
        core = config.core.name
        where = f"continues at step {run.step:,}" if run.step else f"{self.experiment.path}"
        stdout.print(f"{env}: {core}, {weights:,} weights on {run.device}, {run.num_lanes} lanes; {where}")
        stdout.print(f"replay: {config.learner.replay}, {run.replay.nbytes / 2**20:,.0f} MiB when full")  # type: ignore[attr-defined]
        limit = config.env.max_episode_steps  # type: ignore[attr-defined]
        longest = getattr(run.lanes.envs[0], "trial_steps", 0)
        if limit is not None and longest > limit:
            stderr.print(f"note: a trial of {env} takes {longest} steps and an episode ends after {limit}, so no trial "
                         "is ever completed: raise --max-episode-steps")  # fmt: skip

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Show what one vector step logged."""
        for row in rows:
            if row["kind"] == "episode":
                self.recent.append(row)
                every = self.config.run.print_freq
                if every and row["episode"] % every == 0:
                    self.bar.console.file.flush()
                    stdout.print(self._line(row))
                    self.recent.clear()
            elif row["kind"] == "eval":
                shown = row["return_mean"] if row["accuracy"] is None else row["accuracy"]
                name = "return" if row["accuracy"] is None else "accuracy"
                self.bar.update(self.task, note=f"greedy {name} {shown:.3f}")
            elif row["kind"] == "checkpoint" and self.config.run.plot_training:
                draw_training_curves(self.experiment, self.config)
            self._events(row)
        self.bar.update(self.task, completed=self._completed())

    def _line(self, row: dict[str, Any]) -> str:
        """Ep 100/1000 | Reward 0.45 | Acc 0.87 | ..., means over the episodes since the last line."""

        def mean(key: str) -> float | None:
            values = [recent[key] for recent in self.recent if recent[key] is not None]
            return float(np.mean(values)) if values else None

        total = "" if self.config.run.total_steps else f"/{self.config.run.num_episodes}"
        accuracy, loss = mean("accuracy"), mean("loss")
        parts = [
            f"Ep {row['episode']}{total}",
            f"Reward {mean('reward'):.2f}",
            *([f"Acc {accuracy:.2f}"] if accuracy is not None else []),
            f"Len {mean('length'):.0f}",
            *([f"Loss {loss:.4f}"] if loss is not None else []),
            f"eps {row['epsilon']:.3f}",
            *([f"Trials {row['trials']}"] if row["trials"] else []),
            f"{self._speed():,.0f} steps/s",
        ]
        return " | ".join(parts)

    def _speed(self) -> float:
        return (self.run.step - self.first_step) / max(time.monotonic() - self.begun, 1e-9)

    def _events(self, row: dict[str, Any]) -> None:
        if self.writer is None:
            return
        for key, value in row.items():
            if key not in ("kind", "step") and value is not None:
                self.writer.add_scalar(f"{row['kind']}/{key}", float(value), row["step"])

    def closing(self) -> None:
        run = self.run
        spent = time.monotonic() - self.begun
        stdout.print(
            f"done: {run.step:,} steps, {run.episodes:,} episodes in {spent:.0f} s ({self._speed():,.0f} steps/s)"
        )
        best = max(
            (row for row in self.experiment.read_metrics() if row["kind"] == "eval"), key=lambda row: row["return_mean"]
        )
        accuracy = "" if best["accuracy"] is None else f", accuracy {best['accuracy']:.3f}"
        stdout.print(f"best_model.pt: step {best['step']:,}, greedy return {best['return_mean']:.2f}{accuracy}")
        stdout.print(f"next: python main.py eval --experiment-name {self.experiment.name}")


def draw_training_curves(experiment: Experiment, config: Config) -> Path:
    """plots/training_curves.png from metrics.jsonl."""
    import visualize

    rows = experiment.read_metrics()
    evaluations = [row for row in rows if row["kind"] == "eval"]
    columns = history(rows)
    keys = {"step": "steps", "reward": "episode_rewards", "length": "episode_lengths", "loss": "losses"}
    keys |= {"accuracy": "accuracies", "epsilon": "epsilons"}
    figure = visualize.plot_training_curves(
        {name: columns[key] for name, key in keys.items()},
        evaluations,
        references=REFERENCES.get(config.env.env_name),  # type: ignore[attr-defined]
        title=f"{config.env.env_name}, {config.core.name}",  # type: ignore[attr-defined]
    )
    return visualize.save_figure(figure, experiment.plots_dir / "training_curves.png")


def _list_envs() -> int:
    table = Table("task", "obs", "actions", "dt (ms)", "steps/trial", "trainable", box=None)
    for task in list_tasks():
        sizes = (str(task.obs_dim), str(task.n_actions), f"{task.dt_ms:g}", str(task.trial_steps))
        table.add_row(task.name, *sizes, "yes" if task.trainable else f"no: {task.why_not}")
    stdout.print(table)
    return 0


# --- a finished experiment --------------------------------------------------------------------------------


def _stored_config(experiment: Experiment) -> Config:
    nested = experiment.read_config()
    try:
        return cfg.config_from_dict(nested)
    except ConfigError as error:
        raise ConfigError(f"{experiment.config_path}: {error}") from error


def load_policy(args: argparse.Namespace) -> tuple[Experiment, Config, Any]:
    """The experiment, its configuration and the trained network, from config.json and a checkpoint alone."""
    experiment = Experiment.open(args.experiment_name, args.experiments_dir)
    config = _stored_config(experiment)
    torch.set_num_threads(args.threads)
    device = build.make_device(args.device)
    path = experiment.checkpoint(args.checkpoint)
    saved = load_checkpoint(path, device)
    env = build.make_env(config.env)
    network = build.make_network(config, *build.sizes(env)).to(device)
    env.close()
    try:
        network.load_state_dict(saved["network"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--checkpoint {path} does not fit {experiment.config_path} (core {config.core.name})"
        ) from error
    return experiment, config, network.requires_grad_(False)


def evaluate_command(args: argparse.Namespace) -> int:
    experiment, config, network = load_policy(args)
    result, scripted, seeds = _evaluate(args, config, network)
    scores = summarise(config, result, scripted)
    file = experiment.eval_dir / f"{Path(args.checkpoint).stem}_seed{args.seed}.json"
    write_json(file, {**scores, "checkpoint": args.checkpoint, "seed": args.seed, "episode_seeds": seeds})
    if args.json:
        print(json.dumps(json.loads(json.dumps(scores)), allow_nan=False), flush=True)
    else:
        _print_scores(config, scores)
        stdout.print(f"written to {file}")
    return 0


def _evaluate(
    args: argparse.Namespace, config: Config, network: Any
) -> tuple[Evaluation, dict[str, Evaluation], list[int]]:
    """The agent's greedy episodes, and the reference policies' on the same seeds."""
    source = EpisodeSeeds("eval", args.seed)
    neurogym = isinstance(config.env, cfg.NeuroGymConfig)
    if args.num_eval_trials and not neurogym:
        raise ConfigError("--num-eval-trials counts NeuroGym trials; this task has none: take --num-eval-episodes")
    count = args.num_eval_episodes
    envs = [build.make_env(config.env) for _ in range(min(EVAL_LANES, args.num_eval_trials or count))]
    seeds = [source() for _ in range(count if not args.num_eval_trials else len(envs))]
    reset = config.run.reset_state_on_trial
    result = evaluate(network, envs, seeds, reset)
    while args.num_eval_trials and len(result.performance) < args.num_eval_trials:
        if len(result.performance) == 0:
            raise ConfigError("--num-eval-trials: no trial is completed in an episode; take --num-eval-episodes")
        missing = args.num_eval_trials - len(result.performance)
        more = [source() for _ in range(int(np.ceil(missing * len(seeds) / len(result.performance))))]
        seeds += more
        result = Evaluation(*map(np.concatenate, zip(result, evaluate(network, envs, more, reset), strict=True)))
    policies = REFERENCE_POLICIES if neurogym else {"random": REFERENCE_POLICIES["random"]}
    scripted = {name: run_scripted(policy, envs[0], seeds) for name, policy in policies.items()}
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
    if not isinstance(config.env, cfg.NeuroGymConfig):
        return scores
    per_trial = {name: _mean(other.trial_returns) for name, other in scripted.items()}
    known = "ground_truth" in scripted and len(scripted["ground_truth"].decision_correct) > 0
    score = (
        normalised_score(_mean(result.trial_returns), per_trial["random"], per_trial["ground_truth"])
        if known
        else np.nan
    )
    scores |= {
        "trials": len(result.performance),
        "accuracy": _json_number(_mean(result.performance)),
        "accuracy_ci95": list(bootstrap_interval(result.performance)),
        "decision_accuracy": _json_number(_mean(result.decision_correct)),
        "aborts": int(result.aborted.sum()),
        "trial_return_mean": _json_number(_mean(result.trial_returns)),
        "normalised_score": _json_number(score),
    }
    for name, other in scripted.items():
        scores[f"{name}_accuracy"] = _json_number(_mean(other.performance))
        scores[f"{name}_trial_return_mean"] = _json_number(per_trial[name])
    for name, value in REFERENCES.get(config.env.env_name, {}).items():
        scores[f"{name}_accuracy"] = value
    return scores


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else value


def bootstrap_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 % bootstrap interval of the mean; the mean itself where all values agree, None where there are none."""
    from scipy import stats

    if len(values) == 0:
        return None, None
    if len(values) < 2 or np.ptp(values.astype(float)) == 0.0:
        return float(values.mean()), float(values.mean())
    interval = stats.bootstrap(
        (values.astype(float),), np.mean, n_resamples=2000, method="percentile", rng=0, batch=100
    )
    return float(interval.confidence_interval.low), float(interval.confidence_interval.high)


def _print_scores(config: Config, scores: dict[str, Any]) -> None:
    def text(value: Any, digits: int = 3) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    neurogym = "trials" in scores
    title = f"{config.env.env_name}, {config.core.name}, greedy"  # type: ignore[attr-defined]
    table = Table(title=title, title_justify="left", box=None)
    for column in ("policy", "return", *(("accuracy", "return per trial") if neurogym else ())):
        table.add_column(column, justify="left" if column == "policy" else "right")
    low, high = scores["return_ci95"]
    own = [f"{text(scores['return_mean'])} ± {text(scores['return_std'])}  [{text(low)}, {text(high)}]"]
    if neurogym:
        interval = f"[{text(scores['accuracy_ci95'][0])}, {text(scores['accuracy_ci95'][1])}]"
        own += [f"{text(scores['accuracy'])}  {interval}", text(scores["trial_return_mean"])]
    table.add_row("agent (± std, 95 % interval)", *own, style="bold")
    names = {"random": "random", "never_act": "never acting", "ground_truth": "the task's ground truth"}
    for key, name in names.items():
        if f"{key}_return_mean" in scores:
            row = [text(scores[f"{key}_return_mean"])]
            if neurogym:
                row += [text(scores[f"{key}_accuracy"]), text(scores[f"{key}_trial_return_mean"])]
            table.add_row(name, *row)
    for key, name in {"guessing": "guessing at the decision", "ideal": "ideal observer"}.items():
        if f"{key}_accuracy" in scores:
            table.add_row(name, "", text(scores[f"{key}_accuracy"]), "")
    stdout.print(table)
    low, high = scores["length_ci95"]
    length = (
        f"length {text(scores['length_mean'], 1)} ± {text(scores['length_std'], 1)} [{text(low, 1)}, {text(high, 1)}]"
    )
    parts = [f"{scores['episodes']} episodes, {length}"]
    if neurogym:
        parts.append(f"{scores['trials']} trials, {scores['aborts']} aborted")
        parts.append(f"correct at decision steps {text(scores['decision_accuracy'])}")
        parts.append(f"normalised score {text(scores['normalised_score'])} (random 0, ground truth 1)")
    stdout.print("; ".join(parts))


def render(args: argparse.Namespace) -> int:
    import visualize

    experiment, config, network = load_policy(args)
    neurogym = isinstance(config.env, cfg.NeuroGymConfig)
    output = Path(args.output) if args.output else experiment.videos_dir / f"episode_{args.seed}.gif"
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")
    env = build.make_env(config.env, render_mode="rgb_array")
    seed = EpisodeSeeds("eval", args.seed)()
    options = {
        "frames": not neurogym,
        "max_steps": args.max_steps,
        "reset_state_on_trial": config.run.reset_state_on_trial,
    }
    episode = next(record_episodes(network, env, [seed], **options))
    if neurogym:
        frames = visualize.neurogym_frames(episode)
    else:
        frames = visualize.gym_frames(episode["frames"], episode["q_values"], episode["actions"], episode["rewards"])
    visualize.write_video(output, frames, args.fps or (10 if neurogym else 30))
    stdout.print(f"{len(episode['actions'])} steps, return {episode['rewards'].sum():.2f}: {output}")
    return 0


def analyze(args: argparse.Namespace) -> int:
    if args.stage != "plot":
        _collect(args)
    if args.stage != "collect":
        _plot(args)
    return 0


def _collect(args: argparse.Namespace) -> None:
    """activity.npz: what the agent saw, did and held in its state, over some episodes."""
    experiment, config, network = load_policy(args)
    env = build.make_env(config.env)
    source = EpisodeSeeds("eval", args.seed)
    options = {
        "epsilon": args.epsilon,
        "precision": args.precision,
        "reset_state_on_trial": config.run.reset_state_on_trial,
    }
    episodes: list[dict[str, np.ndarray]] = []
    size = 0
    numbers = record_episodes(network, env, [source() for _ in range(args.num_episodes)], **options)
    with Progress(console=stderr) as bar:
        task = bar.add_task("recording", total=args.num_episodes)
        for episode in numbers:
            size += sum(array.nbytes for array in episode.values())
            if size > args.max_megabytes * 2**20:
                stderr.print(f"stopped after {len(episodes)} episodes: --max-megabytes {args.max_megabytes} is reached")
                break
            episodes.append(episode)
            bar.advance(task)
    if not episodes:
        raise ConfigError(f"--max-megabytes {args.max_megabytes} does not hold one episode; raise it")
    activity = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    activity["dt_ms"] = np.array(float(getattr(env, "dt_ms", 0.0)))
    path = experiment.analysis_dir / "activity.npz"
    write_npz(path, activity)
    steps, megabytes = len(activity["actions"]), path.stat().st_size / 2**20
    stdout.print(f"{len(episodes)} episodes, {steps:,} steps, {megabytes:.0f} MB: {path}")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from model_utils import atomic_file

    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def _plot(args: argparse.Namespace) -> None:
    """PCA of h and of M: variance, participation ratio, trajectories; the numbers beside each picture."""
    import pca_analysis
    import visualize

    experiment = Experiment.open(args.experiment_name, args.experiments_dir)
    config = _stored_config(experiment)
    path = experiment.path / "analysis" / "activity.npz"
    if not path.is_file():
        raise ConfigError(
            f"no recording {path}; make it with: python main.py analyze collect --experiment-name {experiment.name}"
        )
    activity = pca_analysis.load_activity(path)
    states = pca_analysis.states(activity)
    key = args.color_by or default_colour(activity, config)
    colour = pca_analysis.colour_values(activity, key)
    fits = {name: pca_analysis.fit_pca(array) for name, array in states.items()}
    folder = experiment.analysis_dir
    title = f"{config.env.env_name}, {config.core.name}"  # type: ignore[attr-defined]
    spectra = {name: (fit.explained_variance_ratio, fit.participation_ratio) for name, fit in fits.items()}
    written = [visualize.save_figure(visualize.pca_variance_figure(spectra, title=title), folder / "pca_variance.png")]
    trials = pca_analysis.split_trials(activity)
    clock, time_label = pca_analysis.trial_time(activity)
    groups = pca_analysis.group_trials(colour, trials)
    for name, fit in fits.items():
        if fit.projected.shape[1] < 2:
            continue
        means = None if groups is None else pca_analysis.condition_means(fit.projected, trials, groups)
        figure = visualize.trajectory_figure(
            fit.projected,
            fit.explained_variance_ratio,
            trials,
            clock,
            colour.values,
            categorical=colour.categorical,
            label=colour.label,
            time_label=time_label,
            means=None if means is None else means.mean,
            mean_labels=None if means is None else means.labels,
            marks=pca_analysis.period_onsets(activity, trials),
            title=f"{title}: {name}",
        )
        stem = "trajectories_hidden" if name == "h" else f"trajectories_{name}"
        written.append(visualize.save_figure(figure, folder / f"{stem}.png"))
        numbers = {"projected": fit.projected, "explained_variance_ratio": fit.explained_variance_ratio}
        write_npz(folder / f"{stem}.npz", {**numbers, "colour": colour.values, "time": clock})
    summary = {**pca_analysis.summary(activity, fits), "coloured_by": key}
    write_json(folder / "pca.json", summary)
    for name, fit in fits.items():
        share = 100 * fit.explained_variance_ratio[:3].sum()
        stdout.print(
            f"{name}: participation ratio {fit.participation_ratio:.2f}, three components hold {share:.0f} % of the variance"
        )
    stdout.print("drawn: " + ", ".join(str(path) for path in [*written, folder / "pca.json"]))


def default_colour(activity: dict[str, np.ndarray], config: Config) -> str:
    """The right choice where the task tells it, else the choice made, else time."""
    if (activity["ground_truth"] >= 0).any():
        return "ground_truth"
    return "choice" if activity["new_trial"].any() else "time"


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": train,
    "train-neurogym": train,
    "eval": evaluate_command,
    "render": render,
    "analyze": analyze,
}
