"""The training loop, with logging, evaluation, checkpoints and resume."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from model_utils import ROOT, Experiment, Record, atomic_file, load_checkpoint, save_checkpoint, versions, write_json
from mpn_rl import registry
from mpn_rl.config import Config, RunConfig
from mpn_rl.contracts import Learner, MetricsRow, Played, State, StateDict, map_state, to_tensor
from mpn_rl.expansion.plasticity_metrics import measure
from mpn_rl.networks.encoder import check_weights
from mpn_rl.options import ConfigError
from mpn_rl.rollout import Evaluation, evaluate_groups, reset_rows
from mpn_rl.runs.task_scores import TaskBounds, bounds_of, evaluation_row, scripted_results, spread_seeds
from mpn_rl.storage.state_trees import (
    FLOAT_MAX,
    Anything,
    Many,
    Named,
    Real,
    Schema,
    StateError,
    Truth,
    Values,
    Whole,
    check,
    check_bit_generator,
    check_numpy_random,
    check_python_random,
    check_torch_random,
    like,
)
from mpn_rl.tasks.lanes import EpisodeEnd, EpisodeSeeds
from mpn_rl.tasks.schedules.changing_task import seed_in_phase
from mpn_rl.tasks.schedules.task_schedule import TaskSchedule

MAX_EVAL_LANES = 64
ROW_NAMES = ("kind", "step", "episode", "reward", "length", "accuracy", "trials")  # of a row for episodes
SAVE_EVERY_S = 60.0  # last.pt is written at least so often, whatever --checkpoint-freq,
SAVE_SHARE = 0.05  # unless more than this share of the time would go into it


class DivergedError(RuntimeError):
    """A loss or a weight is not finite."""


class StoppedError(RuntimeError):
    """A check asked to stop inside an evaluation. The run can be saved; a resumed run repeats the evaluation."""


def train(config: Config, name: str | None = None, root: str | Path = ROOT, overwrite: bool = False) -> Experiment:
    """Train an agent to the end of its run, as the command `train` does, without printing and plots.

        config = make_config("train-neurogym", {"env_name": "GoNogo-v0", "total_steps": 20_000})
        agent = load_agent(train(config, "gonogo").path)

    Args:
        config: all options; `mpn_rl.config.make_config` makes them from those that differ from the defaults.
        name: of the experiment; None: task, core, seed and a number.
        root: the folder of the experiments.
        overwrite: whether to replace an experiment of that name.
    Returns: the experiment.
    Raises: ConfigError for options that do not fit the task, and for a name that is taken; DivergedError.
    """
    Experiment.check_new(name, root, overwrite)
    run = Run(config)
    lock = Experiment.lock_free_name(config.stem, root) if name is None else Experiment(name, Path(root)).lock()
    with lock as experiment:
        experiment.write_new(run.record(), overwrite)
        with experiment.noting_failure():
            run.start(experiment)
            run.save()  # a run that is killed before its first checkpoint can be resumed
            while not run.done:
                run.advance()
            run.finish()
    return experiment


class Run:
    """One training run, which the caller advances one vector step at a time.

    The constructor writes no file. `start` gives the run an experiment's folder, `Run.resume` loads it from one. Then
    call `advance` until `done`, and `finish`. `save` may be called between any two steps: a run that is saved and
    resumed equals the uninterrupted one, bit for bit, on the same kind of CPU and number of threads.

    Args:
        config: the whole configuration.
        num_lanes: number of lanes, if a resumed run had another number than `config` gives; None: as in `config`.

    Raises: ConfigError for options that do not fit the task or this machine.
    """

    def __init__(self, config: Config, num_lanes: int | None = None) -> None:
        self.config = config
        run = config.run
        torch.set_num_threads(run.threads)
        self.device = registry.make_device(run.device)
        lanes = num_lanes or (run.num_envs if run.total_steps else min(run.num_envs, run.num_episodes))
        self.stride = config.learner.stride(lanes)  # environment steps of one call of `advance`
        acts = registry.acts(config)
        least = "--num-envs" if acts else "--batch-size times --sequence-length"
        lanes = lanes if acts else 1  # which stays at its first observation
        if run.total_steps is not None and run.total_steps < self.stride:
            raise ConfigError(f"--total-steps must be at least {least} = {self.stride}, got {run.total_steps}")
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # for tasks that use the global generators
            seed(run.seed)
        self.seeds = EpisodeSeeds("train", run.seed)
        self.schedule = registry.make_schedule(config)
        self.lanes = registry.make_lanes(config, lanes, self._next_seed)
        self.spaces = spaces = registry.spaces(registry.make_env(config.env))
        self.learner: Learner[Any] = registry.make_learner(config, spaces, self.device)
        self.network = self.learner.online
        self.replay = registry.make_replay(config, lanes, spaces, self.network, self.schedule)
        self.replay_rng = np.random.default_rng([run.seed, 1])
        with torch.no_grad():
            self.state: State = self.network.init_state(lanes)
        self.step, self.episodes, self.trials = 0, 0, 0
        self.updates_due = 0.0
        self.updates = UpdateLog()
        self.ended: list[EpisodeEnd] = []  # not logged yet
        self.best_score: float | None = None
        self.evaluated_at = -1
        self.reached = False  # --target-accuracy
        self.finished = False
        self.save_at = time.monotonic() + SAVE_EVERY_S
        self.experiment: Experiment | None = None
        self._eval_envs: list | None = None
        self._task_bounds: list[TaskBounds] | None = None

    def _next_seed(self) -> int:
        """The seed of the next training episode."""
        seed = self.seeds()
        return seed if self.schedule is None else int(self.schedule.place(np.array([seed]))[0])

    # --- where the run is -------------------------------------------------------------------------------

    @property
    def num_lanes(self) -> int:
        """Lanes of the task, N."""
        return len(self.lanes)

    @property
    def num_weights(self) -> int:
        """Trained weights of the network that acts."""
        return sum(part.numel() for part in self.network.parameters() if part.requires_grad)

    def record(self) -> Record:
        """The contents of config.json."""
        return {**self.config.to_dict(), "network": {"weights": self.num_weights}, "versions": versions()}

    @property
    def progress(self) -> float:
        """Share of the run that is done, from 0 to 1."""
        return self.progress_towards(self.config.run)

    def progress_towards(self, run: RunConfig) -> float:
        """Share of a run of such a length that is done, from 0 to 1."""
        if run.total_steps is not None:
            return self.step / run.total_steps
        return self.episodes / run.num_episodes

    @property
    def done(self) -> bool:
        """Whether all steps or episodes are done."""
        return self._trained() and not self._interrupted()

    def _trained(self) -> bool:
        run = self.config.run
        if self.reached:
            return True
        if run.total_steps is not None:  # never more steps than --total-steps
            return self.step + self.stride > run.total_steps
        return self.episodes >= run.num_episodes

    def _interrupted(self) -> bool:
        """Whether the evaluation that is due after the last step was not completed."""
        return self.step > 0 and self._due(self.config.run.eval_freq) and self.evaluated_at != self.step

    # --- one vector step --------------------------------------------------------------------------------

    def advance(self, check: Callable[[], None] = lambda: None) -> list[MetricsRow]:
        """One step of every lane, and the updates that are due; then an evaluation and a checkpoint, if due.

        Args:
            check: called before each step of an evaluation. It may raise StoppedError; the next call, possibly in a
                resumed run, repeats the evaluation.
        Returns: the logged rows.
        """
        rows = [] if self._interrupted() else self._step()
        self._log(rows)
        more = [self._evaluate(check)] if self._due(self.config.run.eval_freq) else []
        if self._due(self.config.run.plasticity_metrics_freq) and self.learner.updates:
            more.append(self._plasticity())
        self._log(more)
        rows += more
        if self._due(self.config.run.checkpoint_freq) or time.monotonic() >= self.save_at:
            self.save()
            rows.append({"kind": "checkpoint", "step": self.step})
        return rows

    def _step(self) -> list[MetricsRow]:
        """One step of every lane, and the updates that are due. Returns: the rows of episodes that ended.

        A learner that does not act does one update; its episodes are the sequences of the batch.
        """
        self.learner.set_progress(self.progress)
        if self.schedule is not None:
            self.schedule.progress = self.progress
        ended = self._act() if self.learner.acts else self._sequences()
        self.step += self.stride
        self.updates_due += self.learner.updates_due(self.replay, self.step, self.num_lanes)
        while self.updates_due >= 1.0:
            self.updates_due -= 1.0
            self.updates.add(self.step, self.learner.learn(self.replay, self.replay_rng))
        topology = self.learner.topology
        if topology is not None and topology.advance(self.step):
            self.state = topology.reset_state(self.network, self.state)
        rows = []
        for end in ended:
            if self.config.run.total_steps is None and self._trained():
                break  # lanes that end together count only up to --num-episodes
            self.episodes += 1
            self.trials += end.trials
            self.ended.append(end)
            if len(self.ended) == self.config.run.log_freq:
                rows.append(self._episode_row())
        return rows

    def _act(self) -> list[EpisodeEnd]:
        """One step of every lane. Returns: the episodes that it ended."""
        obs = to_tensor(self.lanes.obs, self.device)
        actions, state = self.learner.act(obs, self.state, explore=True)
        steps, ended = self.lanes.step(actions.cpu().numpy())
        self.learner.store(self.replay, steps, self.state, state)
        fresh = steps.terminated | steps.truncated
        if self.config.run.reset_state_on_trial:
            fresh |= steps.new_trial
        self.state = reset_rows(self.network, state, fresh)
        return ended

    def _sequences(self) -> list[EpisodeEnd]:
        """The sequences of the next update as episodes: nothing is played, so they have no reward."""
        rows, steps = registry.batch_shape(self.config)
        return [EpisodeEnd(0.0, steps, 0, None)] * rows

    def _due(self, frequency: int) -> bool:
        """Whether the last call of `advance` crossed a multiple of `frequency` environment steps."""
        return frequency > 0 and self.step // frequency > (self.step - self.stride) // frequency

    def _means(self) -> dict[str, float | None]:
        """Means of the updates' values since the last call."""
        self._check_finite("loss", self.updates.losses(), self.updates.steps)
        return {"loss": None, **self.updates.means()}

    def _check_finite(self, what: str, values: torch.Tensor, steps: list[int]) -> None:
        bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
        if not bad:
            return
        kept = [name for name in ("best", "last") if self.experiment and self.experiment.checkpoint(name).is_file()]
        raise DivergedError(
            f"the {what} became {float(values[bad[0]])} at step {steps[bad[0]]:,}; "
            + (f"{' and '.join(kept)} from before are kept" if kept else "no checkpoint was written before")
            + "; try a smaller --learning-rate or --grad-clip"
        )

    def _check_weights(self) -> None:
        """Raise if a weight is not finite, which can happen after a finite loss: such a network must not be saved."""
        weights = [part for net in (self.network, self.learner.policy) for part in net.parameters()]
        largest = torch.stack([part.detach().abs().max() for part in weights if part.numel()]).max()
        self._check_finite("largest weight", largest[None].cpu(), [self.step])

    # --- logging ----------------------------------------------------------------------------------------

    def _episode_row(self) -> MetricsRow:
        """Means over the episodes that ended since the last such row."""
        ended, self.ended = self.ended, []
        accuracies = [end.accuracy for end in ended if end.accuracy is not None]
        means = self._means()
        return {
            "kind": "episode",
            "step": self.step,
            "episode": self.episodes,
            "reward": sum(end.reward for end in ended) / len(ended) if self.learner.acts else None,
            "length": sum(end.length for end in ended) / len(ended),
            "accuracy": sum(accuracies) / len(accuracies) if accuracies else means.get("train_accuracy"),
            "trials": self.trials,
            **means,
            **self.learner.status(),
        }

    def _evaluate(self, check: Callable[[], None]) -> MetricsRow:
        """Play episodes without exploration on a fixed set of seeds; the best score so far saves best_model.pt.

        The score is the return; of several tasks, the mean of their normalised scores.
        """
        self._check_losses()
        run = self.config.run
        names, draw = registry.task_names_of(self.config.env), EpisodeSeeds("select", run.seed)
        if names:
            seeds, tasks = spread_seeds(draw, run.eval_episodes, len(names))
        else:
            seeds = [draw() for _ in range(run.eval_episodes)]
            tasks = [0] * len(seeds)
        phase = self.config.phase(max(self.step - 1, 0))  # of the last step: at a phase's end, the one that ends
        if phase is not None:
            seeds = [seed_in_phase(seed, phase) for seed in seeds]
            if phase != self.config.phase(max(self.evaluated_at - 1, 0)):
                self.best_score = None  # best_model.pt is the best of the last phase
        if self._eval_envs is None:
            self._eval_envs = [registry.make_env(self.config.env) for _ in range(min(len(seeds), MAX_EVAL_LANES))]
        generators = _global_generators()  # a task may use them
        try:
            results = evaluate_groups(
                self.learner.policy, self._eval_envs, seeds, tasks, run.reset_state_on_trial, check=check
            )
        except StoppedError:
            _set_global_generators(generators)
            raise
        result = Evaluation.pooled(results)
        returned, accuracy, of_tasks = float(result.returns.mean()), result.accuracy, {}
        score = returned
        if names:
            of_tasks = evaluation_row(names, results, self._bounds(seeds, tasks))
            accuracy = of_tasks["accuracy"]
            score = returned if of_tasks["normalised_score"] is None else of_tasks["normalised_score"]
        if isinstance(self.schedule, TaskSchedule):
            known = [of_tasks[f"normalised_score/{name}"] for name in names]
            self.schedule.update([math.nan if value is None else value for value in known])
        self.evaluated_at = self.step
        if run.target_accuracy is not None and accuracy is not None:
            self.reached = accuracy >= run.target_accuracy and self.learner.updates >= run.min_updates
        best = self.best_score is None or score >= self.best_score  # the later one of equal scores
        if best:
            self.best_score = score
            self._save_model("best")
        return {
            "kind": "eval",
            "step": self.step,
            "episode": self.episodes,
            "return_mean": returned,
            "length_mean": float(result.lengths.mean()),
            **({} if phase is None else {"phase": phase}),
            **of_tasks,
            "accuracy": accuracy,
            "best": best,
        }

    def _bounds(self, seeds: list[int], tasks: list[int]) -> list[TaskBounds]:
        """The scores of scripted policies in each of several tasks, on the seeds of all evaluations."""
        if self._task_bounds is None:
            env = registry.make_task_set(self.config.env)
            generators = _global_generators()  # a resumed run plays them again
            self._task_bounds = [bounds_of(results) for results in scripted_results(env, seeds, tasks)]
            _set_global_generators(generators)
        return self._task_bounds

    def _plasticity(self) -> MetricsRow:
        """The plasticity metrics on a batch drawn with a separate generator, so that the run does not change."""
        batch = self.learner.probe(self.replay, np.random.default_rng([self.config.run.seed, 2, self.step]))
        metrics = {} if batch is None else measure(self.learner, batch)
        return {"kind": "plasticity", "step": self.step, **metrics}

    def _log(self, rows: list[MetricsRow]) -> None:
        assert self.experiment is not None
        for row in rows:
            self.experiment.append_metrics(row)

    def finish(self, check: Callable[[], None] = lambda: None) -> list[MetricsRow]:
        """Run the last evaluation and write the last checkpoints. Returns: the logged rows; `check` as in `advance`."""
        rows = [self._episode_row()] if self.ended else []
        self._log(rows)
        if self.evaluated_at != self.step:
            rows.append(self._evaluate(check))
            self._log(rows[-1:])
        self._save_model("final")
        if self.learner.topology is not None:
            assert self.experiment is not None
            with atomic_file(self.experiment.plots_dir / "masks.npz") as file:
                np.savez_compressed(file, **self.learner.topology.history())  # type: ignore[arg-type]
        self.finished = True
        self.save()
        return rows

    # --- files ------------------------------------------------------------------------------------------

    def start_from(self, path: Path) -> None:
        """Start with the weights of another run's checkpoint. Raises: ConfigError where they do not fit."""
        if self.learner.topology is not None:
            raise ConfigError("--init-from needs --expansion none: other expansions start with weights of their own")
        try:
            self.learner.start_from(load_checkpoint(path, self.device).get("network", {}))
        except StateError as error:
            raise ConfigError(
                f"--init-from: {path} does not fit this task and --core {self.config.core.name} ({error}); "
                "start with the options of its config.json"
            ) from error

    def start(self, experiment: Experiment) -> None:
        """Log and save to this experiment's folder from now on."""
        self.experiment = experiment

    @classmethod
    def resume(cls, config: Config, experiment: Experiment, fresh_episodes: bool = False) -> Run:
        """Load the run from last.pt, and cut metrics.jsonl to its length when last.pt was written.

        Args:
            config: the configuration of the run, possibly with another end.
            experiment: the folder with last.pt.
            fresh_episodes: start new episodes instead of repeating the unfinished ones, which not every task can.

        Raises: ConfigError, with nothing changed, if last.pt is damaged or belongs to another run, or if the task does
            not reproduce the unfinished episodes.
        """
        path = experiment.checkpoint("last")
        saved = load_checkpoint(path)
        if "learner" not in saved:
            raise ConfigError(f"--resume: {path} holds a model, not a run")
        try:
            run = cls(config, _saved_lanes(saved, config.run.num_envs))
            run._load(saved, fresh_episodes)
        except StateError as error:
            raise ConfigError(
                f"--resume: {path} does not fit {experiment.config_path} ({error}); restore both files, or start again "
                "with --overwrite"
            ) from error
        run._check_end()
        _check_rows(experiment, saved["metrics_size"])
        experiment.truncate_metrics(saved["metrics_size"])
        run.experiment = experiment
        return run

    def _check_end(self) -> None:
        """Refuse an end that the run has passed. Raises: ConfigError."""
        run = self.config.run
        flag, end, reached, unit = "--num-episodes", run.num_episodes, self.episodes, "episodes"
        if run.total_steps is not None:
            flag, end, reached, unit = "--total-steps", run.total_steps, self.step, "steps"
        if end < reached:
            raise ConfigError(
                f"{flag} {end} does nothing: the run has {reached:,} {unit} already; give a larger number"
            )

    def save(self) -> None:
        """Write last.pt, which has everything that `resume` needs, and training_history.json."""
        assert self.experiment is not None
        self._check_losses()
        began = time.monotonic()
        write_json(self.experiment.history_path, history(self.experiment.read_metrics()))
        save_checkpoint(self.experiment.checkpoint("last"), self._state())
        now = time.monotonic()
        self.save_at = now + max(SAVE_EVERY_S, (now - began) / SAVE_SHARE)

    def _check_losses(self) -> None:
        """Raise if a loss or weight is not finite. Keeps the values that the next row averages."""
        self._check_finite("loss", self.updates.losses(), self.updates.steps)
        self._check_weights()

    def _save_model(self, name: str) -> None:
        """best_model.pt or final_model.pt: the policy's weights alone."""
        assert self.experiment is not None
        payload = {"network": self.learner.policy.state_dict(), "step": self.step, "score": self.best_score}
        save_checkpoint(self.experiment.checkpoint(name), payload)

    _COUNTERS = ("step", "episodes", "trials", "updates_due", "best_score", "evaluated_at", "reached", "finished")

    def _state(self) -> StateDict:
        assert self.experiment is not None
        return {
            "network": self.learner.policy.state_dict(),
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "lanes": self.lanes.state_dict(),
            "state": self.state,
            "updates": self.updates.state_dict(),
            "ended": [tuple(end) for end in self.ended],
            "counters": {name: getattr(self, name) for name in self._COUNTERS},
            "rng": {
                "episodes": self.seeds.rng.bit_generator.state,
                "replay": self.replay_rng.bit_generator.state,
                **_global_generators(),
            },
            "metrics_size": self.experiment.metrics_size(),
            **({} if self.schedule is None else {"schedule": self.schedule.state_dict()}),
        }

    def _load(self, saved: StateDict, fresh_episodes: bool = False) -> None:
        """Load a state, once all of it is checked. Raises: StateError."""
        self._check_parts(saved)
        steps = saved["counters"]["step"] // self.stride
        lengths = self.lanes.check_state(saved["lanes"], steps)
        self.learner.load_state_dict(saved["learner"])
        self.replay.load_state_dict(saved["replay"])
        self.replay.check_played(Played(steps, lengths, *self.spaces.action_bounds))
        if not fresh_episodes:
            self.lanes.load_state_dict(saved["lanes"])
        self.state = map_state(lambda part: part.to(self.device), saved["state"])
        self.updates.load_state_dict(saved["updates"], self.device)
        self.ended = [EpisodeEnd(*end) for end in saved["ended"]]
        for name in self._COUNTERS:
            setattr(self, name, saved["counters"].get(name, False))  # runs of 0.1.0 lack "reached"
        self.finished = self.finished and self.done
        rng = saved["rng"]
        self.seeds.rng.bit_generator.state = rng["episodes"]
        self.replay_rng.bit_generator.state = rng["replay"]
        _set_global_generators(rng)
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
            self.schedule.progress = self.progress
        if fresh_episodes:
            self.lanes.restart()
            self.replay.end_episodes()
            with torch.no_grad():
                self.state = self.network.init_state(self.num_lanes)

    def _check_parts(self, saved: StateDict) -> None:
        """Check all but the states of the learner, its memory and the lanes. Raises: StateError."""
        parts = ("format", "network", "learner", "replay", "lanes", "state", "updates", "ended", "counters", "rng")
        more = () if self.schedule is None else ("schedule",)
        check(saved, {name: Anything() for name in (*parts, "metrics_size", *more)})
        if self.schedule is not None:
            self.schedule.check_state(saved["schedule"])
        counters: dict[str, Schema] = {name: Whole() for name in ("step", "episodes", "trials")}
        counters |= {"updates_due": Real(0.0, 1.0), "best_score": Real(null=True), "evaluated_at": Whole(-1)}
        check(saved["counters"], counters | {"reached?": Truth(), "finished": Truth()}, "counters")
        step, episodes = saved["counters"]["step"], saved["counters"]["episodes"]
        if step % self.stride or max(episodes, saved["counters"]["trials"], saved["counters"]["evaluated_at"]) > step:
            raise StateError(f"counters do not fit each other and {self.num_lanes} lanes")
        check_weights(saved["network"], cast(torch.nn.Module, self.learner.policy))
        check(saved["state"], like(self.state), "state")
        self.updates.check_state(saved["updates"], step)
        end = (Real(), Whole(0, step), Whole(0, step), Real(null=True))
        check(saved["ended"], Many(end, min(self.config.run.log_freq, episodes)), "ended")
        check(saved["metrics_size"], Whole(), "metrics_size")
        check(saved["rng"], {name: Anything() for name in ("episodes", "replay", "python", "numpy", "torch")}, "rng")
        for name in ("episodes", "replay"):
            check_bit_generator(saved["rng"][name], f"rng.{name}")
        check_python_random(saved["rng"]["python"], "rng.python")
        check_numpy_random(saved["rng"]["numpy"], "rng.numpy")
        check_torch_random(saved["rng"]["torch"], "rng.torch")


def _saved_lanes(saved: StateDict, most: int) -> int:
    """The number of lanes of a saved run, from 1 to `most`. Raises: StateError."""
    seeds = saved["lanes"].get("seeds") if isinstance(saved.get("lanes"), dict) else None
    count = len(seeds) if isinstance(seeds, list) or (isinstance(seeds, np.ndarray) and seeds.ndim) else 0
    check(count, Whole(1, most), "the number of lanes")
    return count


def _global_generators() -> StateDict:
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def _set_global_generators(states: StateDict) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].cpu())


class UpdateLog:
    """The values that updates return. They stay on the device until a row of the log needs their means."""

    def __init__(self) -> None:
        self.values: dict[str, list[torch.Tensor]] = {}
        self.steps: list[int] = []  # the environment step of each update
        self.last: dict[str, float | None] = {}

    def add(self, step: int, values: dict[str, torch.Tensor]) -> None:
        """Keep the values, 0-d tensors, of an update at an environment step."""
        self.steps.append(step)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def losses(self) -> torch.Tensor:
        """The losses (updates,) since the last call of `means`, on the CPU."""
        return torch.stack(self.values["loss"]).double().cpu() if self.values else torch.zeros(0)

    def means(self) -> dict[str, float | None]:
        """The means since the last call, or the same means again if there was no update. Reads the device once."""
        if self.values:
            names = list(self.values)
            means = torch.stack([torch.stack(self.values[name]).double().mean() for name in names])
            self.last = dict(zip(names, means.tolist(), strict=True))
            self.values, self.steps = {}, []
        return self.last

    def state_dict(self) -> StateDict:
        """Everything that a resumed run needs."""
        stacked = {name: torch.stack(values) for name, values in self.values.items()}
        return {"values": stacked, "steps": list(self.steps), "last": dict(self.last)}

    def check_state(self, saved: object, step: int) -> None:
        """Raise a StateError where `saved` is not a state after so many environment steps."""
        names = rf"(?!({'|'.join(ROW_NAMES)})$)[a-z]\w{{0,60}}"
        last = Named(Real(-math.inf, math.inf, null=True), names, 100)
        check(saved, {"values": Named(Anything(), names, 100), "steps": Many(Whole(0, step)), "last": last}, "updates")
        assert isinstance(saved, dict)
        values, steps = saved["values"], saved["steps"]
        for name, part in values.items():
            dtype = part.dtype if isinstance(part, torch.Tensor) and part.is_floating_point() else torch.float32
            check(part, Values(dtype, (None,), -FLOAT_MAX, FLOAT_MAX), f"updates.values.{name}")
        lengths = [len(part) for part in values.values()]
        if len(values.get("loss", ())) != len(steps) or any(not 0 < length <= len(steps) for length in lengths):
            raise StateError("updates.values do not have one loss per update")

    def load_state_dict(self, saved: StateDict, device: torch.device) -> None:
        """Restore what `state_dict` returned, on the device of the values to come."""
        self.values = {name: list(values.to(device).unbind()) for name, values in saved["values"].items()}
        self.steps, self.last = list(saved["steps"]), dict(saved["last"])


def _check_rows(experiment: Experiment, size: int) -> None:
    """Check the first `size` bytes of metrics.jsonl, which each checkpoint reads. Raises: ConfigError."""
    for number, row in enumerate(experiment.read_metrics(size), start=1):
        numbers = [value for name, value in row.items() if name not in ("kind", "best")]
        known = isinstance(row.get("kind"), str) and isinstance(row.get("step"), int)
        if not known or not all(value is None or isinstance(value, int | float) for value in numbers):
            raise ConfigError(f"{experiment.metrics_path} line {number} is not a row of numbers; restore it")


def history(rows: list[MetricsRow]) -> dict[str, list[float | None]]:
    """The content of training_history.json, from the rows of metrics.jsonl: one list over episodes per quantity."""
    episodes = [row for row in rows if row.get("kind") == "episode"]
    names = {
        "steps": "step",
        "episode_rewards": "reward",
        "episode_lengths": "length",
        "accuracies": "accuracy",
        "losses": "loss",
        "epsilons": "epsilon",
        "entropies": "entropy",
    }
    return {name: [row[key] for row in episodes] for name, key in names.items() if all(key in row for row in episodes)}
