"""The progress bar, the lines and tables on the terminal, and the training curves."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from model_utils import Experiment
from mpn_rl import event_logs
from mpn_rl.config import Config
from mpn_rl.console import stderr, stdout
from mpn_rl.contracts import MetricsRow
from mpn_rl.options import PROGRAM
from mpn_rl.registry import fitting_learners, task_names_of
from mpn_rl.tasks.schedules.changing_task import described
from mpn_rl.training import Run, history
from neurogym_wrapper import list_tasks, reference_scores

# Rows of eval's table by the prefix of their scores.
POLICY_NAMES = {
    "": "agent",
    "random": "random",
    "never_act": "never acting",
    "ground_truth": "ground truth",
    "best": "best script",
    "guessing": "guessing",
    "ideal": "ideal observer",
    "walk": "random walk",
    "explore": "walk, then back",
    "goal_known": "goal known",
    "never": "always no",
    "perfect_memory": "perfect memory",
    "target_known": "target known",
    "win_stay": "win-stay, lose-shift",
    "arm_known": "best arm known",
}


class Reporter:
    """The progress bar, the printed lines and the event logs of one run."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        assert run.experiment is not None
        self.experiment = run.experiment
        self.recent: list[MetricsRow] = []
        self.started, self.first_step = time.monotonic(), run.step
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=stderr,
            redirect_stdout=sys.stdout.isatty(),  # else lines for a file would go to the screen
            redirect_stderr=False,
        )
        total = self.config.run.total_steps or self.config.run.num_episodes
        self.task = self.bar.add_task(self.experiment.name, total=total, completed=self._completed(), note="")
        self.logs = event_logs.open_logs(self.config, self.experiment, run.step)

    def _completed(self) -> int:
        return self.run.step if self.config.run.total_steps else self.run.episodes

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the bar and close the event logs."""
        self.bar.stop()
        while self.logs:
            self.logs.pop().close()

    def opening(self) -> None:
        """Print what is trained, where, and how much memory it takes."""
        run, config = self.run, self.config
        env, core = config.env.env_name, config.core.name
        where = f"continues at step {run.step:,}" if run.step else f"{self.experiment.path}"
        task = config.env.task
        lanes = "1 lane" if run.num_lanes == 1 else f"{run.num_lanes} lanes"
        update = lanes if run.learner.acts else f"{run.stride:,} steps per update"
        stdout.print(f"{task}: {core}, {run.num_weights:,} weights on {run.device}, {update}; {where}")
        for log in self.logs:
            stdout.print(log.where)
        size = run.replay.nbytes
        memory = f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{max(1, round(size / 2**10))} KiB"
        full = f": {memory} when full" if size else ""
        stdout.print(f"{config.learner.name}, {run.learner.memory}{full}")
        for note in filter(None, (config.env.note(), config.core.note())):
            stderr.print(f"note: {note}")
        limit = config.env.max_episode_steps
        longest: int = run.lanes.trial_steps
        if limit is not None and longest > limit:
            stderr.print(
                f"note: a trial of {env} takes {longest} steps and an episode ends after {limit}, so no trial is "
                "completed, or hardly any: raise --max-episode-steps"
            )

    def rows(self, rows: list[MetricsRow]) -> None:
        """Show the rows that one vector step logged."""
        for row in rows:
            if row.get("kind") == "episode":
                self.recent.append(row)
                every = self.config.run.print_freq
                if every and row["episode"] % every == 0:
                    stdout.print(self._line(row))
                    self.recent.clear()
            elif row.get("kind") == "eval":
                shown = row["return_mean"] if row["accuracy"] is None else row["accuracy"]
                name = "return" if row["accuracy"] is None else "accuracy"
                if row.get("normalised_score") is not None:  # of several tasks
                    name, shown = "normalised score", row["normalised_score"]
                note = f"{self.run.learner.evaluated_as} {name} {shown:.3f}"
                if "phase" in row:
                    note += f" in phase {row['phase']}, {described(self.config.env.change, row['phase'])}"
                self.bar.update(self.task, note=note)
            elif row.get("kind") == "checkpoint" and self.config.run.plot_training:
                draw_training_curves(self.experiment, self.config)
            values = {key: value for key, value in row.items() if key not in ("kind", "step") and value is not None}
            for log in self.logs if values else ():
                log.write({f"{row['kind']}/{key}": float(value) for key, value in values.items()}, row["step"])
        self.bar.update(self.task, completed=self._completed())

    def _line(self, row: MetricsRow) -> str:
        """A line such as `Ep 100/1000 | Reward 0.45 | Acc 0.87`, with means over the episodes since the last line."""

        def mean(key: str) -> float | None:
            values = [recent[key] for recent in self.recent if recent[key] is not None]
            return float(np.mean(values)) if values else None

        total = "" if self.config.run.total_steps else f"/{self.config.run.num_episodes}"
        reward, accuracy, loss = mean("reward"), mean("accuracy"), mean("loss")
        parts = [
            f"Ep {row['episode']}{total}",
            *([f"Reward {reward:.2f}"] if reward is not None else []),
            *([f"Acc {accuracy:.2f}"] if accuracy is not None else []),
            f"Len {mean('length'):.0f}",
            *([f"Loss {loss:.4f}"] if loss is not None else []),
            *([f"eps {row['epsilon']:.3f}"] if "epsilon" in row else []),
            *([f"Trials {row['trials']}"] if row["trials"] else []),
            f"{self._speed():,.0f} steps/s",
        ]
        return " | ".join(parts)

    def _speed(self) -> float:
        return (self.run.step - self.first_step) / max(time.monotonic() - self.started, 1e-9)

    def closing(self) -> None:
        """Print how long the run took, its best evaluation, and the command to evaluate it."""
        run = self.run
        spent = f"{time.monotonic() - self.started:.0f} s ({self._speed():,.0f} steps/s)"
        stdout.print(f"done: {run.step:,} steps, {run.episodes:,} episodes in {spent}")
        if not run.learner.updates:
            note = "note: nothing was learned, the run ended before its first update"
            stdout.print(f"{note}: {run.learner.first_update}")
        evaluations = [row for row in self.experiment.read_metrics() if row.get("kind") == "eval"]
        best = next(row for row in reversed(evaluations) if row["best"])
        accuracy = "" if best["accuracy"] is None else f", accuracy {best['accuracy']:.3f}"
        score = f"{run.learner.evaluated_as} return {best['return_mean']:.2f}{accuracy}"
        if best.get("normalised_score") is not None:
            score += f", mean normalised score {best['normalised_score']:.3f}"
        stdout.print(f"best_model.pt: step {best['step']:,}, {score}")
        stdout.print(f"next: {PROGRAM} eval {self.experiment.options}")


def draw_training_curves(experiment: Experiment, config: Config) -> Path:
    """Draw plots/training_curves.png from metrics.jsonl, and of several tasks task_curves.png.

    plasticity.png and masks.png too if the run has such data.

    Returns: the path of training_curves.png.
    """
    import visualize
    from mpn_rl.expansion import growth_figures

    rows = experiment.read_metrics()
    title = f"{config.env.task}, {config.core.name}"
    curves = growth_figures.curves_of([row for row in rows if row.get("kind") == "plasticity"])
    runs = {network: {name: [curve] for name, curve in run.items()} for network, run in curves.items() if run}
    if runs:
        figure = growth_figures.expansion_figure(runs, title=title)
        visualize.save_figure(figure, experiment.plots_dir / "plasticity.png")
    masks = experiment.read_masks()
    name = growth_figures.largest(masks)
    if name is not None:
        figure = growth_figures.mask_figure(masks[name], masks["step"], title=f"{title}: {name}")
        visualize.save_figure(figure, experiment.plots_dir / "masks.png")
    evaluations = [row for row in rows if row.get("kind") == "eval"]
    columns = history(rows)
    keys = {"step": "steps", "reward": "episode_rewards", "length": "episode_lengths", "loss": "losses"}
    keys |= {"accuracy": "accuracies", "epsilon": "epsilons", "entropy": "entropies"}
    names = task_names_of(config.env)
    if names and evaluations:
        figure = visualize.task_curves_figure(evaluations, names, title=title)
        visualize.save_figure(figure, experiment.plots_dir / "task_curves.png")
    figure = visualize.plot_training_curves(
        {name: columns[key] for name, key in keys.items() if key in columns},
        evaluations,
        references=reference_scores(config.env.env_name, config.env.env_args),
        title=title,
    )
    return visualize.save_figure(figure, experiment.plots_dir / "training_curves.png")


def print_tasks() -> None:
    """--list-envs: print every NeuroGym task with its sizes, and why it cannot be trained if it cannot."""
    tasks = list_tasks()
    wide = max(len(task.name) for task in tasks)
    lines = [f"{'task':{wide}} {'obs':>3} {'actions':>7} {'dt':>4} {'trial':>5}  learners"]
    for task in tasks:
        sizes = f"{task.obs_dim:3} {task.n_actions:7} {task.dt_ms:4g} {task.mean_trial_steps:5}"
        learners = ", ".join(fitting_learners(task.continuous)) if task.trainable else "-"
        lines.append(f"{task.name:{wide}} {sizes}  {learners}")
    lines.append(f"{len(tasks)} tasks; 'dt': ms per step, 'trial': mean length in steps, 'learners': see --algo.")
    lines.append("A task of your own: --env-name my_task:MyTask (docs/tasks.md). Not trainable:")
    lines += [f"  {task.name}: {task.why_not}" for task in tasks if not task.trainable]
    stdout.print("\n".join(lines))


def print_task_scores(config: Config, scores: dict[str, Any], how: str = "greedy") -> None:
    """Print eval's table of several tasks.

    Args: as of `print_scores`; `scores` are those of `evaluation.summarise_tasks`.
    """

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def ends(interval: Sequence[float | None]) -> str:
        return "none" if interval[0] is None else f"[{text(interval[0])}, {text(interval[1])}]"

    title = f"{config.env.task}, {config.core.name}, {how}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for column in ("trials", "per trial", "random", "best", "accuracy", "random", "normalised", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, own in scores["tasks"].items():
        best = "best" if own.get("best_trial_return_mean") is not None else "ground_truth"
        returns = [own.get(f"{who}trial_return_mean") for who in ("", "random_", f"{best}_")]
        shares = [own["accuracy"], own["random_accuracy"], own["normalised_score"]]
        table.add_row(name, str(own["trials"]), *map(text, (*returns, *shares)), ends(own["normalised_score_ci95"]))
    shares = [scores["accuracy"], scores["random_accuracy"], scores["normalised_score"]]
    means = ("mean over tasks", str(scores["trials"]), "", "", "", *map(text, shares))
    table.add_row(*means, ends(scores["normalised_score_ci95"]), style="bold")
    stdout.print(table)
    stdout.print(
        f"{scores['episodes']} episodes; normalised: 0 is random, 1 the best scripted policy; interquartile mean over "
        f"{len(scores['tasks'])} tasks {text(scores['normalised_score_iqm'])}"
    )


def print_scores(config: Config, scores: dict[str, Any], how: str = "greedy") -> None:
    """Print eval's table.

    Args:
        config: of the experiment.
        scores: the numbers of `evaluation.summarise`.
        how: how the agent chose its actions.
    """
    if "tasks" in scores:
        print_task_scores(config, scores, how)
        return

    def text(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    def interval(ends: Sequence[float | None] | None, digits: int = 3) -> str:
        return (
            "" if ends is None else "none" if ends[0] is None else f"[{text(ends[0], digits)}, {text(ends[1], digits)}]"
        )

    neurogym = "trials" in scores
    title = f"{config.env.task}, {config.core.name}, {how}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    hits = "quarter_hits" in scores
    more = ("accuracy", "95 % interval", "per trial") if neurogym else ("hits 1", "2", "3", "4") if hits else ()
    for column in ("return", "95 % interval", *more):
        table.add_column(column, justify="right", no_wrap=True)
    for key, name in POLICY_NAMES.items():
        prefix = f"{key}_" if key else ""
        if key and not any(scores.get(f"{prefix}{what}") is not None for what in ("return_mean", "accuracy")):
            continue
        digits = 2 if hits else 3
        ends = scores.get(f"{prefix}return_ci95")
        row = [text(scores.get(f"{prefix}return_mean"), digits), interval(ends, digits)]
        if neurogym:
            row += [text(scores.get(f"{prefix}accuracy")), interval(scores.get(f"{prefix}accuracy_ci95"))]
            row.append(text(scores.get(f"{prefix}trial_return_mean")))
        row += [text(value, 2) for value in scores.get(f"{prefix}quarter_hits", ())]
        table.add_row(name, *row, style="" if key else "bold")
    stdout.print(table)
    lines = [
        f"{scores['episodes']} episodes, standard deviation of the return {text(scores['return_std'])}",
        f"length {text(scores['length_mean'], 1)} ± {text(scores['length_std'], 1)}, "
        f"95 % interval {interval(scores['length_ci95'], 1)}",
    ]
    if hits:
        ends = ", ".join(interval(ends, 2) for ends in scores["quarter_hits_ci95"])
        lines.append(f"hits in quarters 1 to 4 of the episode, 95 % intervals {ends}")
        growth = interval(scores["growth_hits_ci95"], 2)
        lines.append(f"from the first quarter to the last {scores['growth_hits']:+.2f} hits {growth}")
        if "accuracy" in scores:
            lines.append(f"right answers {text(scores['accuracy'])} {interval(scores['accuracy_ci95'])}")
    if neurogym:
        lines.append(
            f"{scores['trials']} trials, {scores['aborts']} aborted; "
            f"right at decision steps {text(scores['decision_accuracy'])}"
        )
        top = "best script" if "best_return_mean" in scores else "ground truth"
        ends = interval(scores.get("normalised_score_ci95"))
        lines.append(f"normalised score {text(scores['normalised_score'])} {ends} (random 0, {top} 1)")
        if (scores["normalised_score"] or 0.0) > 1.0:
            lines.append(f"above 1: the {top} is not the best policy on these trials")
    stdout.print("\n".join(lines))
