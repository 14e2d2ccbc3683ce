"""One function per subcommand, and the only place that prints: results to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
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
from rollout import EpisodeSeeds, Evaluation, evaluate, join_episodes, record_episodes, run_scripted
from training import DivergedError, Run, history

EVAL_LANES = 64
# Rows of eval's table by the prefix of their scores; the last two are known accuracies, not episodes.
POLICY_NAMES = {
    "": "agent",
    "random": "random",
    "never_act": "never acting",
    "ground_truth": "ground truth",
    "guessing": "guessing",
    "ideal": "ideal observer",
}
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


class Output(Console):
    """A console whose reader may leave, as `| head` does: the work goes on, and what is said goes nowhere."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


# No markup: the square brackets of a name or a path are its own.
stdout = Output(highlight=False, soft_wrap=True, markup=False, emoji=False)
stderr = Output(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


# --- train ----------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """train and train-neurogym: one handler, two sets of defaults."""
    if getattr(args, "list_envs", False):
        return _list_envs()
    resuming = args.resume == "yes" or (args.resume == "auto" and _has_run(args))
    if resuming:
        return _resume(args)
    # A run that died before its first checkpoint has nothing to continue: --resume auto starts it anew.
    overwrite = args.overwrite or (args.resume == "auto" and _is_unfinished(args))
    name = Experiment.check_new(args.experiment_name, args.experiments_dir, overwrite)
    config = _config(args)
    run = Run(config)  # every mistake shows here, before anything is written
    _check_tensorboard(config)
    record = {**config.to_dict(), "versions": versions()}
    experiment = Experiment.create(name, args.experiments_dir, record, overwrite=overwrite)
    with experiment.lock():
        run.start(experiment)
        return _drive(run)


def _resume(args: argparse.Namespace) -> int:
    experiment = Experiment.open(_needed_name(args), args.experiments_dir)
    if not experiment.checkpoint("last").is_file():
        raise ConfigError(
            f"--resume needs {experiment.checkpoint('last')}, which is not there; --resume auto starts anew where "
            "there is nothing to continue"
        )
    with experiment.lock():
        stored = _stored_config(experiment)
        config = _resumed_config(args, experiment, stored)
        _check_tensorboard(config)
        run = Run.resume(config, experiment)
        if run.finished:
            stdout.print(
                f"{experiment.path} is complete: {run.step:,} steps, {run.episodes:,} episodes; nothing was changed. "
                "Train on with more --num-episodes or --total-steps"
            )
            return 0
        if config != stored:  # where the run is going now, so that the next --resume goes there too
            write_json(experiment.config_path, {**experiment.read_config(), **config.to_dict()})
        return _drive(run)


def _is_unfinished(args: argparse.Namespace) -> bool:
    experiment = Experiment(_needed_name(args), Path(args.experiments_dir))
    if experiment.checkpoint("final").is_file():
        raise ConfigError(
            f"--resume auto: {experiment.path} holds a finished model but no last.pt to continue from; "
            "choose another --experiment-name, or replace it with --overwrite"
        )
    return experiment.exists()


def _has_run(args: argparse.Namespace) -> bool:
    return Experiment(_needed_name(args), Path(args.experiments_dir)).checkpoint("last").is_file()


def _needed_name(args: argparse.Namespace) -> str:
    if args.experiment_name is None:
        raise ConfigError("--resume needs --experiment-name")
    return Experiment.check_new(args.experiment_name, args.experiments_dir, args.overwrite, resume=True)


def _config(args: argparse.Namespace) -> Config:
    file = cfg.read_config_file(args.config) if args.config else None
    return cfg.make_config(args.command, cli.config_flags(args), file)


def _resumed_config(args: argparse.Namespace, experiment: Experiment, stored: Config) -> Config:
    """The experiment's own options; a flag may only repeat them or change one of RESUMABLE."""
    flags = cli.config_flags(args)
    cfg.refuse_idle_flags(flags, {part: type(getattr(stored, part)) for part in cfg.PARTS})
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
                flag = "--" + key.replace("_", "-")
                raise ConfigError(
                    f"--resume continues '{experiment.name}' as it was: {flag} is {value}, got {asked}; "
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
    if run.config.run.plot_training and experiment.metrics_size():
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
        os.write(2, b"\nfinishing the step and saving; Ctrl-C again leaves without\n")  # print is not safe here

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
            redirect_stdout=sys.stdout.isatty(),  # else lines meant for a file would go to the screen instead
            redirect_stderr=False,
        )
        total = self.config.run.total_steps or self.config.run.num_episodes
        self.task = self.bar.add_task(self.experiment.name, total=total, completed=self._completed(), note="")
        self.writer = self._tensorboard() if self.config.run.tensorboard else None

    def _completed(self) -> int:
        return self.run.step if self.config.run.total_steps else self.run.episodes

    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run makes the events after its checkpoint again.
        purge_step = self.run.step + 1 if self.run.step else None
        return SummaryWriter(str(self.experiment.path / "tensorboard"), purge_step=purge_step)

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
        longest: int = run.lanes.envs[0].trial_steps
        if limit is not None and longest > limit:
            stderr.print(
                f"note: a trial of {env} takes {longest} steps and an episode ends after {limit}, so no trial is "
                "completed, or hardly any: raise --max-episode-steps"
            )

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Show what one vector step logged."""
        for row in rows:
            if row["kind"] == "episode":
                self.recent.append(row)
                every = self.config.run.print_freq
                if every and row["episode"] % every == 0:
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


def _check_tensorboard(config: Config) -> None:
    if config.run.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise ConfigError("--tensorboard needs the extra: pip install -e '.[tensorboard]'") from error


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
    tasks = list_tasks()
    wide = max(len(task.name) for task in tasks)
    lines = [f"{'task':{wide}} {'obs':>4} {'actions':>7} {'dt (ms)':>7} {'trial':>5}  trainable"]
    for task in tasks:
        sizes = f"{task.obs_dim:4} {task.n_actions:7} {task.dt_ms:7g} {task.trial_steps:5}"
        lines.append(f"{task.name:{wide}} {sizes}  {'yes' if task.trainable else 'no'}")
    lines.append(f"{len(tasks)} tasks; 'trial' is the mean length of a trial in steps. Not trainable:")
    lines += [f"  {task.name}: {task.why_not}" for task in tasks if not task.trainable]
    stdout.print("\n".join(lines))
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
            f"--checkpoint {path} does not fit {experiment.config_path}: that is a {config.core.name} of its own "
            "sizes; take a checkpoint of this experiment"
        ) from error
    return experiment, config, network.requires_grad_(False)


def evaluate_command(args: argparse.Namespace) -> int:
    experiment, config, network = load_policy(args)
    result, scripted, seeds = _evaluate(args, config, network)
    scores = summarise(config, result, scripted)
    file = experiment.eval_dir / f"{Path(args.checkpoint).stem}_seed{args.seed}.json"
    write_json(file, {**scores, "checkpoint": args.checkpoint, "seed": args.seed, "episode_seeds": seeds})
    if args.json:
        stdout.print(json.dumps(scores, allow_nan=False))
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
    if neurogym and not envs[0].has_ground_truth:
        del scripted["ground_truth"]
    if neurogym and len(result.performance) == 0:
        longest: int = envs[0].trial_steps
        stderr.print(
            f"note: no trial was completed: one takes {longest} steps, and an episode ends after "
            f"{config.env.max_episode_steps} (--max-episode-steps of the training)"  # type: ignore[attr-defined]
        )
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

    def interval(ends: Any, digits: int = 3) -> str:
        return "" if ends is None or ends[0] is None else f"[{text(ends[0], digits)}, {text(ends[1], digits)}]"

    neurogym = "trials" in scores
    title = f"{config.env.env_name}, {config.core.name}, greedy"  # type: ignore[attr-defined]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for column in ("return", "95 % interval", *(("accuracy", "95 % interval", "per trial") if neurogym else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for key, name in POLICY_NAMES.items():
        prefix = f"{key}_" if key else ""
        if not any(scores.get(f"{prefix}{what}") is not None for what in ("return_mean", "accuracy")):
            continue
        row = [text(scores.get(f"{prefix}return_mean")), interval(scores.get(f"{prefix}return_ci95"))]
        if neurogym:
            row += [text(scores.get(f"{prefix}accuracy")), interval(scores.get(f"{prefix}accuracy_ci95"))]
            row.append(text(scores.get(f"{prefix}trial_return_mean")))
        table.add_row(name, *row, style="" if key else "bold")
    stdout.print(table)
    lines = [
        f"{scores['episodes']} episodes, standard deviation of the return {text(scores['return_std'])}",
        f"length {text(scores['length_mean'], 1)} ± {text(scores['length_std'], 1)}, "
        f"95 % interval {interval(scores['length_ci95'], 1)}",
    ]
    if neurogym:
        lines.append(
            f"{scores['trials']} trials, {scores['aborts']} aborted; "
            f"right at decision steps {text(scores['decision_accuracy'])}"
        )
        lines.append(f"normalised score {text(scores['normalised_score'])} (random 0, ground truth 1)")
    stdout.print("\n".join(lines))


def render(args: argparse.Namespace) -> int:
    import visualize

    _checked_output(args)
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory, but looks for a screen
    experiment, config, network = load_policy(args)
    neurogym = isinstance(config.env, cfg.NeuroGymConfig)
    output = _checked_output(args) or experiment.videos_dir / f"episode_{args.seed}.gif"
    env = build.make_env(config.env, render_mode="rgb_array")
    seed = EpisodeSeeds("eval", args.seed)()
    options = {
        "frames": not neurogym,
        "max_steps": args.max_steps,
        "reset_state_on_trial": config.run.reset_state_on_trial,
    }
    episode = next(record_episodes(network, env, [seed], **options))
    if neurogym:
        episode["dt_ms"] = np.array(float(env.dt_ms))
        frames = visualize.neurogym_frames(episode, env.channel_names)
    else:
        frames = visualize.gym_frames(episode["frames"], episode["q_values"], episode["actions"], episode["rewards"])
    visualize.write_video(output, frames, args.fps or (10 if neurogym else 30))
    stdout.print(f"{len(episode['actions'])} steps, return {episode['rewards'].sum():.2f}: {output}")
    return 0


def _checked_output(args: argparse.Namespace) -> Path | None:
    if args.output is None:
        return None
    output = Path(args.output)
    if output.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"--output must end in .gif or .mp4, got {args.output!r}")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; make it or choose another")
    if output.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise ConfigError("--output FILE.mp4 needs the extra: pip install -e '.[video]'") from error
    return output


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
    activity = join_episodes(episodes)
    activity["dt_ms"] = np.array(float(env.dt_ms))
    if args.color_by:
        import pca_analysis

        pca_analysis.colour_values(activity, args.color_by)  # refuses what is not there, before anything is written
    path = experiment.analysis_dir / "activity.npz"
    write_npz(path, activity)
    steps, megabytes = len(activity["actions"]), path.stat().st_size / 2**20
    stdout.print(f"{len(episodes)} episodes, {steps:,} steps, {megabytes:.0f} MB: {path}")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from model_utils import atomic_file

    with atomic_file(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


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
    if max(map(len, trials)) == 1:  # a trial of one step is no path: follow the episode
        activity = {**activity, "trial": np.zeros_like(activity["trial"])}
        trials = pca_analysis.split_trials(activity)
    clock, time_label = pca_analysis.trial_time(activity)
    groups = pca_analysis.group_trials(colour, trials)
    for name, fit in fits.items():
        if fit.projected.shape[1] < 2 or max(map(len, trials)) < 2:
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
        ratio = f"participation ratio {fit.participation_ratio:.2f}"
        stdout.print(f"{name}: {ratio}, three components hold {share:.0f} % of the variance")
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
