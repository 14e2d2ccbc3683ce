"""The training loop: lanes act, replay stores, the learner learns; logging, evaluation, checkpoints, resume."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

import build
from config import Config
from model_utils import Experiment, load_checkpoint, save_checkpoint, write_json
from options import ConfigError
from rollout import EpisodeSeeds, Lanes, evaluate, reset_rows
from trial_replay import ReplayBuffer, map_state

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
        self.device = build.make_device(run.device)
        lanes = num_lanes or (run.num_envs if run.total_steps else min(run.num_envs, run.num_episodes))
        if run.total_steps is not None and run.total_steps < lanes:
            raise ConfigError(f"--total-steps must be at least --num-envs = {lanes}, got {run.total_steps}")
        _seed_globals(run.seed)  # for tasks that draw from Python's or NumPy's own generator
        envs = [build.make_env(config.env) for _ in range(lanes)]
        obs_dim, action_dim = build.sizes(envs[0])
        self.learner = build.make_learner(config, obs_dim, action_dim, self.device)
        self.network = self.learner.online
        self.replay: ReplayBuffer = build.make_replay(config, lanes, obs_dim, self.network)
        self.seeds = EpisodeSeeds("train", run.seed)
        self.lanes = Lanes(envs, self.seeds)
        self.replay_rng = np.random.default_rng([run.seed, 1])
        with torch.no_grad():
            self.state = self.network.init_state(lanes)
        self.step, self.episodes, self.trials = 0, 0, 0
        self.updates_due = 0.0
        self.losses: list[torch.Tensor] = []  # since the last logged episode
        self.loss_steps: list[int] = []  # when they were made
        self.last_loss: float | None = None
        self.best_score: float | None = None
        self.evaluated_at = -1
        self.finished = False
        self.experiment: Experiment | None = None
        self._eval_envs: list | None = None

    # --- where the run is -------------------------------------------------------------------------------

    @property
    def num_lanes(self) -> int:
        return len(self.lanes.envs)

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
        obs = torch.from_numpy(self.lanes.obs).to(self.device)
        actions, state = self.learner.act(obs, self.state, explore=True)
        steps, ended = self.lanes.step(actions.cpu().numpy())
        self.replay.add(steps, self.state)
        fresh = steps.terminated | steps.truncated
        if self.config.run.reset_state_on_trial:
            fresh |= steps.new_trial
        self.state = reset_rows(self.network, state, fresh)
        self.step += self.num_lanes
        self._learn()
        rows = []
        for end in ended:
            if self.config.run.total_steps is None and self.done:
                break  # lanes that end together count only up to --num-episodes
            self.episodes += 1
            self.trials += end.trials
            rows.append(self._episode_row(end))
        if self._due(self.config.run.eval_freq):
            rows.append(self._evaluate())
        self._log(rows)
        if self._due(self.config.run.checkpoint_freq):
            self.save()
            rows.append({"kind": "checkpoint", "step": self.step})
        return rows

    def _due(self, frequency: int) -> bool:
        """Whether the last vector step crossed a multiple of `frequency` environment steps."""
        return frequency > 0 and self.step // frequency > (self.step - self.num_lanes) // frequency

    def _learn(self) -> None:
        replay: Any = self.config.learner
        if self.step < replay.learning_starts or len(self.replay) == 0:
            return
        self.updates_due += self.num_lanes / replay.update_every
        batch_size = replay.trial_batch_size if replay.replay == "trial" else replay.batch_size
        while self.updates_due >= 1.0:
            self.updates_due -= 1.0
            batch = self.replay.sample(batch_size, self.replay_rng)
            self.losses.append(self.learner.update(batch)["loss"])
            self.loss_steps.append(self.step)
            if self.learner.priorities is not None:
                self.replay.update_priorities(batch.index, self.learner.priorities.cpu().numpy())

    def _mean_loss(self) -> float | None:
        """Mean loss since it was last asked for: the one place that reads losses back from the device."""
        if self.losses:
            losses = torch.stack(self.losses).double().cpu()
            self._check_finite("loss", losses, self.loss_steps)
            self.last_loss = float(losses.mean())
            self.losses.clear()
            self.loss_steps.clear()
        return self.last_loss

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

    def _episode_row(self, end) -> dict[str, Any]:
        return {
            "kind": "episode",
            "step": self.step,
            "episode": self.episodes,
            "reward": end.reward,
            "length": end.length,
            "accuracy": end.accuracy,
            "trials": self.trials,
            "loss": self._mean_loss(),
            "epsilon": self.learner.epsilon,
        }

    def _evaluate(self) -> dict[str, Any]:
        """Greedy episodes on a fixed set of seeds, which chooses best_model.pt."""
        self._check_losses()
        run = self.config.run
        seeds = EpisodeSeeds("select", run.seed)
        chosen = [seeds() for _ in range(run.eval_episodes)]
        if self._eval_envs is None:
            lanes = min(run.eval_episodes, MAX_EVAL_LANES)
            self._eval_envs = [build.make_env(self.config.env) for _ in range(lanes)]
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

    def _log(self, rows: list[dict[str, Any]]) -> None:
        assert self.experiment is not None
        for row in rows:
            self.experiment.append_metrics(row)

    def finish(self) -> list[dict[str, Any]]:
        """The last evaluation and the last checkpoints; returns the rows that it logged."""
        rows = [] if self.evaluated_at == self.step else [self._evaluate()]
        self._log(rows)
        self._save_model("final")
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
        if self.losses:
            self._check_finite("loss", torch.stack(self.losses).cpu(), self.loss_steps)
        self._check_weights()

    def _save_model(self, name: str) -> None:
        """best_model.pt or final_model.pt: the policy's weights alone."""
        assert self.experiment is not None
        payload = {"network": self.learner.policy.state_dict(), "step": self.step, "score": self.best_score}
        save_checkpoint(self.experiment.checkpoint(name), payload)

    _COUNTERS = ("step", "episodes", "trials", "updates_due", "last_loss", "best_score", "evaluated_at", "finished")

    def _state(self) -> dict[str, Any]:
        assert self.experiment is not None
        return {
            "network": self.learner.policy.state_dict(),
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "lanes": self.lanes.state_dict(),
            "state": self.state,
            "losses": torch.stack(self.losses) if self.losses else None,
            "loss_steps": list(self.loss_steps),
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
        self.losses = [] if saved["losses"] is None else list(saved["losses"].to(self.device).unbind())
        self.loss_steps = list(saved["loss_steps"])
        for name in self._COUNTERS:
            setattr(self, name, saved["counters"][name])
        self.finished = self.finished and self.done
        rng = saved["rng"]
        self.seeds.rng.bit_generator.state = rng["episodes"]
        self.replay_rng.bit_generator.state = rng["replay"]
        random.setstate(rng["python"])
        np.random.set_state(rng["numpy"])
        torch.set_rng_state(rng["torch"].cpu())


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
    }
    return {name: [row[key] for row in episodes] for name, key in names.items()}
