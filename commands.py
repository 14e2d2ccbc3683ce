"""One function per subcommand."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

import build
import cli
import config as cfg
from config import Config
from lanes import EpisodeSeeds
from model_utils import Experiment, atomic_file, load_checkpoint, versions, write_json
from options import ConfigError
from reporting import Reporter, check_tensorboard, draw_training_curves, print_scores, print_tasks, stderr, stdout
from rollout import join_episodes, record_episodes
from scoring import score, summarise
from training import DivergedError, Run

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


# --- train ----------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """train and train-neurogym: one handler, two sets of defaults."""
    if getattr(args, "list_envs", False):
        print_tasks()
        return 0
    resuming = args.resume == "yes" or (args.resume == "auto" and _has_run(args))
    if resuming:
        return _resume(args)
    # A run that died before its first checkpoint has nothing to continue: --resume auto starts it anew.
    overwrite = args.overwrite or (args.resume == "auto" and _is_unfinished(args))
    name = Experiment.check_new(args.experiment_name, args.experiments_dir, overwrite)
    config = _config(args)
    run = Run(config)  # every mistake shows here, before anything is written
    check_tensorboard(config)
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
        check_tensorboard(config)
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
    network = build.make_network(config, build.spaces(env)).to(device)
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
    result, scripted, seeds = score(config, network, args.seed, args.num_eval_episodes, args.num_eval_trials)
    scores = summarise(config, result, scripted)
    file = experiment.eval_dir / f"{Path(args.checkpoint).stem}_seed{args.seed}.json"
    write_json(file, {**scores, "checkpoint": args.checkpoint, "seed": args.seed, "episode_seeds": seeds})
    if isinstance(config.env, cfg.NeuroGymConfig) and scores["trials"] == 0:
        stderr.print(
            f"note: no trial was completed: one takes {build.make_env(config.env).trial_steps} steps, and an episode "
            f"ends after {config.env.max_episode_steps} (--max-episode-steps of the training)"
        )
    if args.json:
        stdout.print(json.dumps(scores, allow_nan=False))
    else:
        print_scores(config, scores)
        stdout.print(f"written to {file}")
    return 0


def render(args: argparse.Namespace) -> int:
    import video

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
        frames = video.neurogym_frames(episode, env.channel_names)
    else:
        frames = video.gym_frames(episode["frames"], episode["q_values"], episode["actions"], episode["rewards"])
    video.write_video(output, frames, args.fps or (10 if neurogym else 30))
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
    fits = {name: pca_analysis.fit_pca(array, 20) for name, array in states.items()}
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
