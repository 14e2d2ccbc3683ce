"""The subcommands train, train-neurogym, eval and render."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np

from model_utils import Experiment, snapshot, write_json
from mpn_dqn import epsilon_at
from mpn_rl import arguments, event_logs, registry
from mpn_rl import config as cfg
from mpn_rl.evaluation import acting, load_policy, measure, stored_config, write_scores
from mpn_rl.learners.base import learning_rate_at
from mpn_rl.options import ConfigError
from mpn_rl.reporting import Reporter, draw_training_curves, print_scores, print_tasks, stderr, stdout
from mpn_rl.rollout import record_episodes
from mpn_rl.tasks import trusted_modules
from mpn_rl.tasks.task_errors import TaskError
from mpn_rl.training import DivergedError, Run, StoppedError

# --- train ----------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """train and train-neurogym, which differ in their defaults only."""
    if "list_envs" in args and args.list_envs:
        print_tasks()
        return 0
    if args.checkpoint_exit_every is not None and args.checkpoint_exit_code is None:
        raise ConfigError(
            "--checkpoint-exit-every needs --checkpoint-exit-code, the exit status that asks for a restart "
            "(checkpoint_exit_code = 85 in a submit file)"
        )
    if args.checkpoint_exit_code is not None and args.resume != "auto":
        stderr.print(
            "note: --checkpoint-exit-code asks for a restart with the same command line, which continues the run only "
            "with --resume auto"
        )
    if args.fresh_episodes and args.resume is None:
        raise ConfigError("--fresh-episodes does nothing without --resume; leave it out")
    if args.match_weights is not None and args.resume == "yes":
        raise ConfigError("--match-weights does nothing with --resume; leave it out")
    directory, resume = args.experiments_dir, args.resume is not None
    name = Experiment.check_new(args.experiment_name, directory, args.overwrite, resume)
    experiment = Experiment(name, Path(directory))
    work = experiment.work() if resume else []
    if args.resume == "yes" or (resume and _has_run(experiment)):
        return _resume(experiment, args)
    if resume and experiment.holder() is None:
        _check_restart(experiment, work, args)
    config = arguments.config_of(args)
    if args.match_weights is not None:
        config = registry.match_weights(config, args.match_weights)
    registry.check_trials(config)
    if not registry.resumes_exactly(config.env) and not args.fresh_episodes:
        stderr.print(
            f"note: {config.env.env_name} does not repeat an episode from its seed and actions: it remembers earlier "
            "ones, or draws without the seed. If the run is stopped, continue it with --resume --fresh-episodes, which "
            "starts new episodes, so that the run is not the same as an uninterrupted one"
        )
    run = Run(config)  # finds every mistake in the options, before anything is written
    event_logs.check(config)
    record = run.record()
    if args.init_from is not None:
        record["versions"]["init_from"] = args.init_from
        run.start_from(Experiment.open(args.init_from, directory).checkpoint("best"))
    with experiment.lock() if name else Experiment.lock_free_name(config.stem, directory) as experiment:
        if resume and _has_run(experiment):  # another process has started it in the meantime
            return _continue(experiment, args)
        if resume:
            _check_restart(experiment, experiment.work(), args)
        experiment.write_new(record, args.overwrite, restart=resume)
        _remember_consent(experiment, config)
        with experiment.noting_failure():
            run.start(experiment)
            run.save()  # a run that is killed before its first checkpoint can be resumed
            return _drive(run, args)


def _resume(experiment: Experiment, args: argparse.Namespace) -> int:
    Experiment.open(experiment.name, experiment.root)
    if not _has_run(experiment):
        raise ConfigError(
            f"--resume needs {experiment.checkpoint('last')}, which does not exist; --resume auto starts a new "
            "run if there is nothing to continue"
        )
    arguments.resumed_config(args, experiment.name, stored_config(experiment))  # a mistake needs no lock
    with experiment.lock():
        return _continue(experiment, args)


def _continue(experiment: Experiment, args: argparse.Namespace) -> int:
    """Continue the run. The caller holds the lock."""
    stored = stored_config(experiment)
    config = arguments.resumed_config(args, experiment.name, stored)
    if args.init_from is not None and experiment.versions().get("init_from") != args.init_from:
        raise ConfigError(f"--resume continues '{experiment.name}', which did not start with --init-from; leave it out")
    event_logs.check(config)
    with experiment.noting_failure():
        run = Run.resume(config, experiment, args.fresh_episodes)
        if run.finished:
            stdout.print(
                f"{experiment.path} is complete: {run.step:,} steps, {run.episodes:,} episodes; nothing was "
                "changed. To train longer, raise --num-episodes or --total-steps"
            )
            return 0
        _remember_consent(experiment, config)
        _remember_snapshot(experiment)
        if config != stored:  # the next --resume continues with the new options
            write_json(experiment.config_path, {**experiment.read_config(), **config.to_dict()})
            _print_schedules(run, stored)
        return _drive(run, args)


def _remember_snapshot(experiment: Experiment) -> None:
    """Add the snapshot that this program runs from to those in config.json."""
    here = snapshot().get("snapshot", "")
    if not here:
        return
    stored = experiment.versions()
    known = str(stored.get("snapshot", ""))
    if here not in known.split("; "):
        stored = {**stored, "snapshot": f"{known}; {here}".lstrip("; ")}
        write_json(experiment.config_path, {**experiment.read_config(), "versions": stored})


def _print_schedules(run: Run, stored: cfg.Config) -> None:
    """Print how another length or learning rate changes the schedules, which follow the share of the run that is done.

    Args: run, the resumed run; stored, the configuration up to now.
    """
    old, new, before, after = stored.learner, run.config.learner, run.progress_towards(stored.run), run.progress
    changes = {"the learning rate": (learning_rate_at(before, old), learning_rate_at(after, new))}
    if isinstance(old, cfg.DQNConfig) and isinstance(new, cfg.DQNConfig):
        changes["epsilon"] = (epsilon_at(before, old), epsilon_at(after, new))
    texts = [f"{name} goes from {first:.3g} to {then:.3g}" for name, (first, then) in changes.items() if first != then]
    if texts:
        stdout.print(f"{before:.0%} of the run was done, {after:.0%} is done now: {' and '.join(texts)}")


def _has_run(experiment: Experiment) -> bool:
    return experiment.checkpoint("last").is_file()


def _check_restart(experiment: Experiment, work: list[str], args: argparse.Namespace) -> None:
    """Refuse --resume auto for a folder without last.pt that holds anything but the start of the same run."""
    if work:
        kind = "a finished model" if experiment.checkpoint("final").is_file() else work[0]
        raise ConfigError(
            f"--resume auto: {experiment.path} holds {kind} but no last.pt to continue from; "
            "choose another --experiment-name, or replace it with --overwrite"
        )
    if experiment.config_path.is_file():
        arguments.resumed_config(args, experiment.name, stored_config(experiment))


def _remember_consent(experiment: Experiment, config: cfg.Config) -> None:
    """Let later commands of this user import the task's module, which this command line names."""
    if why_not := trusted_modules.remember(experiment.path, config.env.env_name):
        stderr.print(f"note: {why_not}")


def _drive(run: Run, args: argparse.Namespace) -> int:
    """Train to the end of the run, or until a signal or --checkpoint-exit-every stops it.

    Returns: the exit status.
    """
    assert run.experiment is not None
    experiment, reporter = run.experiment, Reporter(run)
    stop_at = time.monotonic() + 60.0 * (args.checkpoint_exit_every or math.inf)
    draw_at = 0.0
    received: list[int] = []

    def save_first(number: int, _frame: FrameType | None) -> None:
        received.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"\nfinishing the step and saving; press Ctrl-C again to stop without saving\n")  # signal-safe

    def check() -> None:
        if received:
            raise StoppedError

    reporter.opening()
    status = 0
    with stop_signals(save_first):
        with reporter:
            try:
                try:
                    while not run.done:
                        rows = run.advance(check)
                        reporter.rows(rows)
                        if time.monotonic() >= draw_at and any(row["kind"] == "eval" for row in rows):
                            try:
                                draw_at = time.monotonic() + _draw_curves(run) / DRAW_SHARE
                            except ConfigError as error:  # a picture must not end a training
                                stderr.print(f"note: {error}")
                                draw_at = math.inf
                        if time.monotonic() >= stop_at and not run.done:  # never inside an evaluation, which may last
                            received.append(signal.SIGTERM)
                        check()
                    reporter.rows(run.finish(check))
                except StoppedError:
                    run.save()
                    status = 128 + received[0]
                except TaskError as error:
                    run.save()
                    again = f"--experiment-name {experiment.name} --resume"
                    saved = f"the run is saved at step {run.step:,}: repair the task, then continue with {again}"
                    raise TaskError(f"{error}; {saved}") from error
            except DivergedError as error:
                reporter.close()
                stderr.print(f"training stopped: {error}")
                experiment.note_failure(str(error))
                status = 1
        if status != 128 + signal.SIGTERM:  # which SIGKILL usually follows: there may be no time for plots
            _draw_curves(run)
        if status >= 128:
            where = f"stopped at step {run.step:,}; the run is saved in {experiment.path}"
            stderr.print(f"{where}: continue with {experiment.options} --resume")
        elif status == 0:
            reporter.closing()
    return args.checkpoint_exit_code or status if status == 128 + signal.SIGTERM else status


DRAW_SHARE = 0.02  # of the time that curves may take while the run goes on


def _draw_curves(run: Run) -> float:
    """Draw plots/training_curves.png, unless --no-plot-training says not to. Returns: the seconds that it took."""
    began = time.monotonic()
    if run.config.run.plot_training and run.experiment is not None and run.experiment.metrics_size():
        draw_training_curves(run.experiment, run.config)
    return time.monotonic() - began


# Signals that ask a process to leave: schedulers and closing terminals send the last four, which count as SIGTERM.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle STOP_SIGNALS in the body. Signals that are ignored, such as SIGHUP under nohup, stay ignored; not SIGINT,
    which shells ignore in background jobs."""
    ignored = {number for number in STOP_SIGNALS[1:] if signal.getsignal(number) is signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS if number not in ignored}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asked the process to leave."""


def leave(number: int, _frame: FrameType | None) -> None:
    """A handler for work that has nothing to save: the exception removes temporary files on its way."""
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(signal.Signals(number).name)


# --- a finished experiment --------------------------------------------------------------------------------


def evaluate_command(args: argparse.Namespace) -> int:
    """eval: scores of the agent and of the reference policies."""
    if args.num_eval_episodes is None:
        args.num_eval_episodes = 10
    elif args.num_eval_trials is not None:
        raise ConfigError("--num-eval-episodes does nothing with --num-eval-trials; leave one of them out")
    experiment, config, network = load_policy(args)
    scores, seeds = measure(args, config, network)
    if isinstance(config.env, cfg.NeuroGymConfig) and scores["trials"] == 0:
        trial_steps = registry.make_env(config.env).trial_steps
        stderr.print(
            f"note: no trial was completed: a trial takes {trial_steps} steps, and an episode ends after "
            f"{config.env.max_episode_steps} (--max-episode-steps of the training)"
        )
    if args.json:
        stdout.print(json.dumps(scores, allow_nan=False))
    else:
        print_scores(config, scores, acting(network))
    file = write_scores(args, experiment, config, scores, seeds)  # after they are printed: the disk may be full
    if not args.json:
        stdout.print(f"written to {file}")
    return 0


def render(args: argparse.Namespace) -> int:
    """render: a video of one episode."""
    from mpn_rl.analysis.figures import video

    _checked_output(args)
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # without it pygame looks for a screen
    experiment, config, network = load_policy(args)
    output = _checked_output(args) or experiment.videos_dir / f"episode_{args.seed}.gif"
    env = registry.make_env(config.env, render_mode="rgb_array")
    neurogym = isinstance(config.env, cfg.NeuroGymConfig)
    drawn = not neurogym and _can_draw(config)
    seed = registry.eval_seeds(config, args.seed)()
    options = {"max_steps": args.max_steps, "reset_state_on_trial": config.run.reset_state_on_trial}
    episode = next(record_episodes(network, [env], [seed], frames=drawn, **options))
    if not drawn:
        if not neurogym:
            stderr.print("note: the task draws no pictures; the film shows observations, actions and rewards")
        episode["dt_ms"] = np.array(float(env.dt_ms))
        frames = video.neurogym_frames(episode, env.channel_names, env.action_names)
    else:
        frames = video.gym_frames(episode, env.action_names)
    video.write_video(output, frames, args.fps or (10 if neurogym else 30))
    stdout.print(f"{len(episode['actions'])} steps, return {episode['rewards'].sum():.2f}: {output}")
    return 0


def _can_draw(config: cfg.Config) -> bool:
    """Whether the task draws pictures. Raises: TaskError where it should but fails."""
    env = registry.make_env(config.env, render_mode="rgb_array")
    env.reset(seed=0)
    try:
        return isinstance(env.render(), np.ndarray)
    except NotImplementedError:
        return False
    finally:
        env.close()


def _checked_output(args: argparse.Namespace) -> Path | None:
    """--output as a path, None where it is not given. Raises: ConfigError where it cannot be written."""
    if args.output is None:
        if args.overwrite:
            raise ConfigError("--overwrite needs --output")
        return None
    output = Path(args.output)
    if output.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"--output must end in .gif or .mp4, got {args.output!r}")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; create it or choose another")
    if os.path.lexists(output) and not args.overwrite:
        raise ConfigError(f"--output {output} exists; replace it with --overwrite or choose another file")
    if output.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise ConfigError("--output FILE.mp4 needs the extra: pip install 'mpn-rl[video]'") from error
    return output


def analyze(args: argparse.Namespace) -> int:
    """analyze: record, plot, probe, compare, report."""
    from mpn_rl.analysis import stages  # imports SciPy, which takes a second

    return stages.analyze(args)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": train,
    "train-neurogym": train,
    "eval": evaluate_command,
    "render": render,
    "analyze": analyze,
}
