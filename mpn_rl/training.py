"""The training loop: lanes act, replay stores, the learner learns; logging, evaluation, checkpoints, resume."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from model_utils import Experiment, atomic_file, load_checkpoint, save_checkpoint, write_json
from mpn_rl import registry
from mpn_rl.config import Config
from mpn_rl.contracts import Steps, map_state
from mpn_rl.expansion.plasticity_metrics import measure
from mpn_rl.options import ConfigError
from mpn_rl.rollout import evaluate, reset_rows
from mpn_rl.tasks.lanes import EpisodeEnd, EpisodeSeeds

MAX_EVAL_LANES = 64


class DivergedError(RuntimeError):
    """The loss is no longer finite."""


class Run:
    """One training run, advanced one vector step at a time, so that the caller may draw, print or stop.

    Building it touches no file. `start` binds it to an experiment, `Run.resume` builds it from one; then call
    `advance` until `done`, and `finish`. `save` may be called between any two steps: a run that is saved and
    resumed equals the uninterrupted one, bit for bit, on the same kind of CPU and number of threads.

    Args:
        config: the whole configuration.
        num_lanes: lanes, where a run that is resumed towards another end had another number; None: by `config`.
    """

    def __init__(self, config: Config, num_lanes: int | None = None) -> None:
        self.config = config
        run = config.run
        torch.set_num_threads(run.threads)
        self.device = registry.make_device(run.device)
        lanes = num_lanes or (run.num_envs if run.total_steps else min(run.num_envs, run.num_episodes))
        if run.total_steps is not None and run.total_steps < lanes:
            raise ConfigError(f"--total-steps must be at least --num-envs = {lanes}, got {run.total_steps}")
        _seed_globals(run.seed)  # for tasks that draw from Python's or NumPy's own generator
        self.seeds = EpisodeSeeds("train", run.seed)
        self.lanes = registry.make_lanes(config, lanes, self.seeds)
        spaces = registry.spaces(registry.make_env(config.env))
        self.learner = registry.make_learner(config, spaces, self.device)
        self.network = self.learner.online
        self.replay: Any = registry.make_replay(config, lanes, spaces, self.network)
        self.replay_rng = np.random.default_rng([run.seed, 1])
        with torch.no_grad():
            self.state = self.network.init_state(lanes)
        self.step, self.episodes, self.trials = 0, 0, 0
        self.updates_due = 0.0
        self.updates = UpdateLog()
        self.ended: list[EpisodeEnd] = []  # and not logged yet
        self.best_score: float | None = None
        self.evaluated_at = -1
        self.finished = False
        self.experiment: Experiment | None = None
        self._eval_envs: list | None = None

    # --- where the run is -------------------------------------------------------------------------------

    @property
    def num_lanes(self) -> int:
        return len(self.lanes)

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        run = self.config.run
        if run.total_steps is not None:
            return self.step / run.total_steps
        return self.episodes / run.num_episodes

    @property
    def done(self) -> bool:
        run = self.config.run
        if run.total_steps is not None:  # never a step more than was asked for
            return self.step + self.num_lanes > run.total_steps
        return self.episodes >= run.num_episodes

    # --- one vector step --------------------------------------------------------------------------------

    def advance(self) -> list[dict[str, Any]]:
        """One step of every lane and the updates that fall due. Returns the rows that it logged."""
        self.learner.set_progress(self.progress)
        # A copy in torch's own memory: products round by where their operands lie, and NumPy lays them anywhere.
        obs = torch.tensor(self.lanes.obs, device=self.device)
        actions, state = self.learner.act(obs, self.state, explore=True)
        steps, ended = self.lanes.step(actions.cpu().numpy())
        if self.learner.on_policy:
            self.replay.add(steps, self.state, self._final_values(steps, state))
        else:
            self.replay.add(steps, self.state)
        fresh = steps.terminated | steps.truncated
        if self.config.run.reset_state_on_trial:
            fresh |= steps.new_trial
        self.state = reset_rows(self.network, state, fresh)
        self.step += self.num_lanes
        self._learn()
        topology = self.learner.topology
        if topology is not None and topology.advance(self.step):
            self.state = topology.reset_state(self.network, self.state)
        rows = []
        for end in ended:
            if self.config.run.total_steps is None and self.done:
                break  # lanes that end together count only up to --num-episodes
            self.episodes += 1
            self.trials += end.trials
            self.ended.append(end)
            if len(self.ended) == self.config.run.log_freq:
                rows.append(self._episode_row())
        if self._due(self.config.run.eval_freq):
            rows.append(self._evaluate())
        if self._due(self.config.run.plasticity_metrics_freq) and self.learner.updates:
            rows.append(self._plasticity())
        self._log(rows)
        if self._due(self.config.run.checkpoint_freq):
            self.save()
            rows.append({"kind": "checkpoint", "step": self.step})
        return rows

    def _due(self, frequency: int) -> bool:
        """Whether the last vector step crossed a multiple of `frequency` environment steps."""
        return frequency > 0 and self.step // frequency > (self.step - self.num_lanes) // frequency

    def _final_values(self, steps: Steps, state) -> np.ndarray | None:
        """V of the last observation where a time limit cut an episode, (N,), nan elsewhere; None: nowhere."""
        rows = np.flatnonzero(steps.truncated & ~steps.terminated)
        if not len(rows):
            return None
        index = torch.from_numpy(rows).to(self.device)
        obs = torch.from_numpy(steps.next_obs[rows]).to(self.device)
        values = np.full(self.num_lanes, np.nan, np.float32)
        values[rows] = self.learner.final_value(obs, map_state(lambda part: part[index], state)).cpu().numpy()
        return values

    def _learn(self) -> None:
        if self.learner.on_policy:
            if self.replay.full:
                self.updates.add(self.step, self.learner.learn(self.replay, self.replay_rng))
            return
        pace: Any = self.config.learner
        if self.step < pace.learning_starts or len(self.replay) == 0:
            return
        self.updates_due += self.num_lanes / pace.update_every
        while self.updates_due >= 1.0:
            self.updates_due -= 1.0
            self.updates.add(self.step, self.learner.learn(self.replay, self.replay_rng))

    def _means(self) -> dict[str, float | None]:
        """Means of what the updates returned since they were last asked for."""
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
        """A finite loss may still have had a gradient that was not: no checkpoint of such a network."""
        weights = [part for net in (self.network, self.learner.policy) for part in net.parameters()]
        largest = torch.stack([part.detach().abs().max() for part in weights if part.numel()]).max()
        self._check_finite("largest weight", largest[None].cpu(), [self.step])

    # --- logging ----------------------------------------------------------------------------------------

    def _episode_row(self) -> dict[str, Any]:
        """Means over the episodes that have ended since the last such row."""
        ended, self.ended = self.ended, []
        accuracies = [end.accuracy for end in ended if end.accuracy is not None]
        return {
            "kind": "episode",
            "step": self.step,
            "episode": self.episodes,
            "reward": sum(end.reward for end in ended) / len(ended),
            "length": sum(end.length for end in ended) / len(ended),
            "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
            "trials": self.trials,
            **self._means(),
            **self.learner.status(),
        }

    def _evaluate(self) -> dict[str, Any]:
        """Episodes without exploration on a fixed set of seeds, which choose best_model.pt."""
        self._check_losses()
        run = self.config.run
        seeds = EpisodeSeeds("select", run.seed)
        chosen = [seeds() for _ in range(run.eval_episodes)]
        if self._eval_envs is None:
            lanes = min(run.eval_episodes, MAX_EVAL_LANES)
            self._eval_envs = [registry.make_env(self.config.env) for _ in range(lanes)]
        result = evaluate(self.learner.policy, self._eval_envs, chosen, run.reset_state_on_trial)
        score = float(result.returns.mean())
        self.evaluated_at = self.step
        best = self.best_score is None or score >= self.best_score  # of equals, the one trained longer
        if best:
            self.best_score = score
            self._save_model("best")
        return {
            "kind": "eval",
            "step": self.step,
            "episode": self.episodes,
            "return_mean": score,
            "length_mean": float(result.lengths.mean()),
            "accuracy": result.accuracy,
            "best": best,
        }

    def _plasticity(self) -> dict[str, Any]:
        """How well the networks can still learn, measured on a batch that no update and no generator notices."""
        batch = self.learner.probe(self.replay, np.random.default_rng([self.config.run.seed, 2, self.step]))
        told = {} if batch is None else measure(self.learner, batch)
        return {"kind": "plasticity", "step": self.step, **told}

    def _log(self, rows: list[dict[str, Any]]) -> None:
        assert self.experiment is not None
        for row in rows:
            self.experiment.append_metrics(row)

    def finish(self) -> list[dict[str, Any]]:
        """The last evaluation and the last checkpoints; returns the rows that it logged."""
        rows = [self._episode_row()] if self.ended else []
        rows += [] if self.evaluated_at == self.step else [self._evaluate()]
        self._log(rows)
        self._save_model("final")
        if self.learner.topology is not None:
            assert self.experiment is not None
            with atomic_file(self.experiment.plots_dir / "masks.npz") as file:
                np.savez_compressed(file, **self.learner.topology.history())
        self.finished = True
        self.save()
        return rows

    # --- files ------------------------------------------------------------------------------------------

    def start(self, experiment: Experiment) -> None:
        self.experiment = experiment

    @classmethod
    def resume(cls, config: Config, experiment: Experiment) -> Run:
        """The run that last.pt holds. Once it is back, metrics.jsonl is cut to where that file was written.

        Raises: ConfigError, with nothing changed, where last.pt is damaged or belongs to another run, or where
            the task does not reproduce the episodes that were under way.
        """
        path = experiment.checkpoint("last")
        saved = load_checkpoint(path)
        if "learner" not in saved:
            raise ConfigError(f"--resume: {path} holds a model, not a run")
        try:
            run = cls(config, len(saved["lanes"]["seeds"]))
            run._load(saved)
            size = int(saved["metrics_size"])
        except ConfigError:
            raise
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"--resume: {path} does not fit {experiment.config_path} ({reason})") from error
        experiment.truncate_metrics(size)
        run.experiment = experiment
        return run

    def save(self) -> None:
        """Write last.pt, everything that resume needs, and training_history.json."""
        assert self.experiment is not None
        self._check_losses()
        write_json(self.experiment.history_path, history(self.experiment.read_metrics()))
        save_checkpoint(self.experiment.checkpoint("last"), self._state())

    def _check_losses(self) -> None:
        """Raise on a loss or weight that is not finite, without losing what the next row will average."""
        self._check_finite("loss", self.updates.losses(), self.updates.steps)
        self._check_weights()

    def _save_model(self, name: str) -> None:
        """best_model.pt or final_model.pt: the policy's weights alone."""
        assert self.experiment is not None
        payload = {"network": self.learner.policy.state_dict(), "step": self.step, "score": self.best_score}
        save_checkpoint(self.experiment.checkpoint(name), payload)

    _COUNTERS = ("step", "episodes", "trials", "updates_due", "best_score", "evaluated_at", "finished")

    def _state(self) -> dict[str, Any]:
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
                "python": random.getstate(),
                "numpy": np.random.get_state(),
                "torch": torch.get_rng_state(),
            },
            "metrics_size": self.experiment.metrics_size(),
        }

    def _load(self, saved: dict[str, Any]) -> None:
        self.learner.load_state_dict(saved["learner"])
        self.replay.load_state_dict(saved["replay"])
        self.lanes.load_state_dict(saved["lanes"])
        self.state = map_state(lambda part: part.to(self.device), saved["state"])
        self.updates.load_state_dict(saved["updates"])
        self.ended = [EpisodeEnd(*end) for end in saved["ended"]]
        for name in self._COUNTERS:
            setattr(self, name, saved["counters"][name])
        self.finished = self.finished and self.done
        rng = saved["rng"]
        self.seeds.rng.bit_generator.state = rng["episodes"]
        self.replay_rng.bit_generator.state = rng["replay"]
        random.setstate(rng["python"])
        np.random.set_state(rng["numpy"])
        torch.set_rng_state(rng["torch"].cpu())


class UpdateLog:
    """What the updates returned, left on the device until a row of the log asks for the means."""

    def __init__(self) -> None:
        self.values: dict[str, list[torch.Tensor]] = {}
        self.steps: list[int] = []  # when each update was made
        self.last: dict[str, float | None] = {}

    def add(self, step: int, values: dict[str, torch.Tensor]) -> None:
        self.steps.append(step)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def losses(self) -> torch.Tensor:
        return torch.stack(self.values["loss"]).double().cpu() if self.values else torch.zeros(0)

    def means(self) -> dict[str, float | None]:
        """The means since the last call; where there was no update since, the last ones. Reads the device once."""
        if self.values:
            names = list(self.values)
            means = torch.stack([torch.stack(self.values[name]).double().mean() for name in names])
            self.last = dict(zip(names, means.tolist(), strict=True))
            self.values, self.steps = {}, []
        return self.last

    def state_dict(self) -> dict[str, Any]:
        stacked = {name: torch.stack(values) for name, values in self.values.items()}
        return {"values": stacked, "steps": list(self.steps), "last": dict(self.last)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.values = {name: list(values.unbind()) for name, values in saved["values"].items()}
        self.steps, self.last = list(saved["steps"]), dict(saved["last"])


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def history(rows: list[dict[str, Any]]) -> dict[str, list]:
    """training_history.json from the rows of metrics.jsonl: one list per quantity, over episodes."""
    episodes = [row for row in rows if row["kind"] == "episode"]
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
