"""The training loop: resume is exact, seeds decide everything, best_model.pt is always there, divergence stops."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from model_utils import Experiment, load_checkpoint
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.tasks.gymnasium_tasks import FlatTask
from mpn_rl.tasks.lanes import SEED_RANGES
from mpn_rl.training import DivergedError, Run, StoppedError

TINY = {"hidden_dim": 6, "embed_dim": 4, "num_envs": 3, "eval_episodes": 2, "learning_starts": 20, "update_every": 4,
        "batch_size": 4, "sequence_length": 8, "sequence_stride": 4, "burn_in": 3, "buffer_size": 200,
        "eval_freq": 30, "checkpoint_freq": 0, "kernel": "reference"}  # fmt: skip


def tiny(command: str = "train-neurogym", **flags) -> cfg.Config:
    length = {} if "total_steps" in flags else {"num_episodes": 6}
    base = cfg.make_config(command, {**length, **flags})
    fields = [field for part in cfg.PARTS for field in dataclasses.fields(getattr(base, part))]
    small = {
        field.name: TINY[field.name] for field in fields if field.name in TINY and not cfg.idle_reason(field, base)
    }
    return cfg.make_config(command, {**small, **length, "max_episode_steps": 25, **flags})


def start(config: cfg.Config, root: Path, name: str = "run") -> Run:
    run = Run(config)
    run.start(Experiment.create(name, root, config.to_dict()))
    return run


def to_the_end(run: Run) -> Experiment:
    while not run.done:
        run.advance()
    run.finish()
    assert run.experiment is not None
    return run.experiment


def same(a, b) -> bool:
    """Whether two checkpoints hold the same values, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def assert_equal_runs(one: Experiment, other: Experiment) -> None:
    assert one.metrics_path.read_bytes() == other.metrics_path.read_bytes()
    assert one.history_path.read_bytes() == other.history_path.read_bytes()
    for name in ("best", "final", "last"):
        assert same(load_checkpoint(one.checkpoint(name)), load_checkpoint(other.checkpoint(name))), name


RUNS = {
    "sequences": {},
    "prioritized sequences": {"prioritized": True},
    "trials from the stored state": {"replay": "trial", "buffer_size": 20},
    "prioritized trials": {"replay": "trial", "prioritized": True, "buffer_size": 20, "reset_state_on_trial": True},
    "transitions": {"replay": "transition"},
    "a learned M(0), by total steps": {"train_m0": True, "total_steps": 160, "num_layers": 2},
    "rows of three episodes": {"log_freq": 3},
    "the last reward and action": {"observe_reward": True, "observe_action": True},
    "measured, growing topology": {"expansion": "paper", "update_interval": 20, "plasticity_metrics_freq": 30},
    "a2c": {"learner": "a2c", "rollout_steps": 7, "plasticity_metrics_freq": 30},
    "lstm": {"core": "lstm", "lr_final": 0.1, "target_update": "periodic", "target_update_freq": 5},
}


@pytest.mark.parametrize("command", ["train", "train-neurogym"])
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_interrupted_and_resumed_equals_uninterrupted(command: str, options: dict, tmp_path: Path) -> None:
    """Stopped twice, in the middle of episodes, once with metrics written after the last checkpoint (SIGKILL)."""
    config = tiny(command, **options)
    whole = to_the_end(start(config, tmp_path, "whole"))
    run = start(config, tmp_path, "parts")
    parts = run.experiment
    for stop in (7, 13):
        for _ in range(stop):
            run.advance()
        run.save()
        for _ in range(11):  # lost with the process
            if not run.done:
                run.advance()
        parts.append_metrics({"kind": "episode", "step": 10**6})
        run = Run.resume(config, parts)
    assert_equal_runs(whole, to_the_end(run))


OTHERS = {
    "batched lanes": {"env_name": "GridMaze-v0", "env_args": {"episode_steps": 15}, "learner": "a2c"},
    "the last step of batched lanes": {"env_name": "GridMaze-v0", "env_args": {"episode_steps": 15}, "learner": "a2c",
                                       "observe_reward": True, "observe_action": True},
    "trials of batched lanes": {"env_name": "CueReward-v0", "env_args": {"episode_steps": 15}, "total_steps": 160},
    "a modulated trace": {"env_name": "GridMaze-v0", "env_args": {"episode_steps": 15}, "core": "backpropamine"},
    "supervised": {"learner": "supervised", "env_name": "TemporalOrder-v0", "input_noise": 0.1, "log_freq": 3,
                   "total_steps": 960, "eval_freq": 200, "plasticity_metrics_freq": 150, "random_projection": 4,
                   "expansion": "paper", "exempt": "last", "update_interval": 60, "eta_init": "xavier"},
    "supervised, played": {"learner": "supervised", "env_name": "CueReward-v0", "core": "lstm", "total_steps": 960},
    "continuous actions": {"learner": "td3", "total_steps": 160, "learning_starts": 60, "plasticity_metrics_freq": 50},
    "experience review": {"learner": "td3", "total_steps": 160, "experience_review": True, "dynamic_buffer": True,
                          "buffer_adjustment_interval": 40, "expansion": "reference", "update_interval": 40},
    "continuous and recurrent": {"learner": "td3", "core": "lstm", "total_steps": 160, "expansion": "rigl",
                                 "update_interval": 40, "exempt": "last"},
}  # fmt: skip


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS.keys())
def test_other_tasks_and_learners_resume_as_exactly(options: dict, tmp_path: Path) -> None:
    test_interrupted_and_resumed_equals_uninterrupted("train", options, tmp_path)


@pytest.mark.parametrize("at", [20, 70, 120])  # inside the first, the second and the last evaluation
def test_a_run_stopped_inside_an_evaluation_repeats_it_and_equals_the_uninterrupted_one(
    at: int, tmp_path: Path
) -> None:
    config = tiny(total_steps=75, plasticity_metrics_freq=30, checkpoint_freq=30)
    calls = 0

    def finished(run: Run, stop_at: int) -> Experiment:
        def check() -> None:
            nonlocal calls
            calls += 1
            np.random.random()  # as a task that uses the global generators
            if calls == stop_at:
                raise StoppedError

        while not run.done:
            run.advance(check)
        run.finish(check)
        assert run.experiment is not None
        return run.experiment

    whole = finished(start(config, tmp_path, "whole"), 0)
    run, calls = start(config, tmp_path, "cut"), 0
    with pytest.raises(StoppedError):
        finished(run, at)
    run.save()
    assert run.experiment is not None
    assert_equal_runs(whole, finished(Run.resume(config, run.experiment), 0))
    assert calls > 150, "three evaluations, one of which was repeated"


def test_resuming_disturbs_no_generator_and_the_process_may_have_used_them(tmp_path: Path) -> None:
    config = tiny()
    whole = to_the_end(start(config, tmp_path, "whole"))
    run = start(config, tmp_path, "parts")
    for _ in range(9):
        run.advance()
    run.save()
    np.random.rand(5)
    torch.rand(5)
    assert_equal_runs(whole, to_the_end(Run.resume(config, run.experiment)))


@pytest.mark.parametrize("command", ["train", "train-neurogym"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(command: str, tmp_path: Path) -> None:
    first, again, other = (
        to_the_end(start(tiny(command, seed=seed), tmp_path, name)) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert_equal_runs(first, again)
    assert first.metrics_path.read_bytes() != other.metrics_path.read_bytes()


def test_a_one_episode_run_has_a_best_model_and_a_finite_score(tmp_path: Path) -> None:
    experiment = to_the_end(start(tiny(num_episodes=1, eval_freq=0), tmp_path))
    best = load_checkpoint(experiment.checkpoint("best"))
    assert math.isfinite(best["score"])
    assert same(best["network"], load_checkpoint(experiment.checkpoint("final"))["network"])
    kinds = [row["kind"] for row in experiment.read_metrics()]
    assert kinds == ["episode", "eval"]


def test_num_episodes_means_its_number_though_lanes_end_together(tmp_path: Path) -> None:
    experiment = to_the_end(start(tiny(num_episodes=4, num_envs=3), tmp_path))
    assert sum(row["kind"] == "episode" for row in experiment.read_metrics()) == 4


def test_total_steps_is_never_exceeded(tmp_path: Path) -> None:
    run = start(tiny(total_steps=100, num_envs=3), tmp_path)
    to_the_end(run)
    assert run.step == 99
    with pytest.raises(ConfigError, match="--total-steps must be at least --num-envs = 3, got 2"):
        Run(tiny(total_steps=2))


def test_seeds_that_train_choose_and_judge_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = sorted(SEED_RANGES.values())
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    used: list[int] = []
    reset = FlatTask.reset

    def noting(self, *, seed=None, options=None):
        used.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(FlatTask, "reset", noting)
    to_the_end(start(tiny("train"), tmp_path))
    chosen = {seed for seed in used if seed is not None and seed >= SEED_RANGES["select"][0]}
    assert len(chosen) == TINY["eval_episodes"]  # the same ones at every evaluation
    assert max(chosen) < SEED_RANGES["eval"][0]


def test_a_loss_that_turns_nan_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    run = start(tiny(num_episodes=60, eval_freq=60, target_tau=1.0), tmp_path)
    while run.step < 90:
        run.advance()
    run.save()
    kept = run.experiment.checkpoint("best").read_bytes()
    with torch.no_grad():
        run.network.head.weight.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"the loss became nan at step 9\d; best and last from before are kept"):
        to_the_end(run)
    assert run.experiment.checkpoint("best").read_bytes() == kept
    last = load_checkpoint(run.experiment.checkpoint("last"))["network"]
    assert all(torch.isfinite(part).all() for part in last.values())


def test_weights_that_are_not_finite_are_never_saved_though_the_loss_still_is(tmp_path: Path) -> None:
    run = start(tiny(learning_starts=10**6), tmp_path)
    run.advance()
    with torch.no_grad():
        run.network.head.bias[0] = math.inf
    with pytest.raises(DivergedError, match="no checkpoint was written before"):
        run.save()
    assert not run.experiment.checkpoint("last").exists()


def test_the_history_is_derived_from_the_metrics(tmp_path: Path) -> None:
    experiment = to_the_end(start(tiny(), tmp_path))
    saved = json.loads(experiment.history_path.read_text())
    rows = [row for row in experiment.read_metrics() if row["kind"] == "episode"]
    assert saved["episode_rewards"] == [row["reward"] for row in rows]
    assert saved["losses"] == [row["loss"] for row in rows]


def test_a_row_may_hold_the_means_of_several_episodes_and_none_is_lost(tmp_path: Path) -> None:
    single = to_the_end(start(tiny(num_episodes=5), tmp_path, "single")).read_metrics()
    grouped = to_the_end(start(tiny(num_episodes=5, log_freq=2), tmp_path, "grouped")).read_metrics()
    rewards = [row["reward"] for row in single if row["kind"] == "episode"]
    means = [(rewards[0] + rewards[1]) / 2, (rewards[2] + rewards[3]) / 2, rewards[4]]
    assert [row["reward"] for row in grouped if row["kind"] == "episode"] == pytest.approx(means)
    assert [row["episode"] for row in grouped if row["kind"] == "episode"] == [2, 4, 5]


def test_a_run_may_be_resumed_towards_a_later_end_with_its_own_lanes(tmp_path: Path) -> None:
    run = start(tiny(num_episodes=2), tmp_path)  # 2 episodes: 2 lanes
    to_the_end(run)
    longer = Run.resume(tiny(num_episodes=5), run.experiment)
    assert longer.num_lanes == 2 and not longer.finished
    to_the_end(longer)
    assert longer.episodes == 5


class Unseeded(gymnasium.Env):
    """Ignores its seed, as a task must not."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    fresh = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        return self.fresh.random(2, np.float32), {}

    def step(self, action):
        return self.fresh.random(2, np.float32), 0.0, False, False, {}


class OddlyPaid(Unseeded):
    """Its observations repeat, its rewards do not."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(self.fresh.random()), False, False, {}


@pytest.mark.parametrize("task", [Unseeded, OddlyPaid])
def test_a_task_that_does_not_reproduce_its_episodes_is_named(task: type, tmp_path: Path) -> None:
    gymnasium.register("Unruly-v0", task)
    try:
        config = tiny("train", env_name="Unruly-v0", total_steps=200, max_episode_steps=50)
        run = start(config, tmp_path)
        for _ in range(5):
            run.advance()
        run.save()
        size = run.experiment.metrics_size()
        with pytest.raises(ConfigError, match="Unruly-v0 does not reproduce an episode"):
            Run.resume(config, run.experiment)
        assert run.experiment.metrics_size() == size
    finally:
        del gymnasium.registry["Unruly-v0"]


def test_last_pt_of_another_run_is_refused_in_one_line(tmp_path: Path) -> None:
    run, other = start(tiny(), tmp_path, "a"), start(tiny(hidden_dim=7), tmp_path, "b")
    run.save()
    other.save()
    run.experiment.checkpoint("last").write_bytes(other.experiment.checkpoint("last").read_bytes())
    with pytest.raises(ConfigError, match="does not fit") as refusal:
        Run.resume(tiny(), run.experiment)
    assert "\n" not in str(refusal.value)


def test_last_pt_is_at_most_a_minute_old_whatever_the_checkpoint_frequency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tiny("train", num_episodes=60), tmp_path)
    run.save()
    now = time.monotonic()
    monkeypatch.setattr("mpn_rl.training.time.monotonic", lambda: now + 59.0)
    run.advance()
    assert load_checkpoint(run.experiment.checkpoint("last"))["counters"]["step"] == 0
    monkeypatch.setattr("mpn_rl.training.time.monotonic", lambda: now + 61.0)
    run.advance()
    run.advance()
    assert load_checkpoint(run.experiment.checkpoint("last"))["counters"]["step"] == 2 * run.num_lanes


def test_a_model_is_not_a_run(tmp_path: Path) -> None:
    experiment = to_the_end(start(tiny(num_episodes=1), tmp_path))
    experiment.checkpoint("last").write_bytes(experiment.checkpoint("best").read_bytes())
    with pytest.raises(ConfigError, match="holds a model, not a run"):
        Run.resume(tiny(num_episodes=1), experiment)


@pytest.mark.parametrize("options", [{"train_m0": True}, {"core": "lstm"}, {"core": "mlp"}, {"num_layers": 2}])
def test_acting_holds_no_graph(options: dict, tmp_path: Path) -> None:
    run = start(tiny("train", **options), tmp_path)
    for _ in range(40):
        run.advance()
    parts = run.state if isinstance(run.state, tuple) else (run.state,)
    assert not any(part.requires_grad for part in parts)


def test_reset_state_on_trial_resets_where_a_trial_ends(tmp_path: Path) -> None:
    """One lane, beside a network that never resets: only the states right after a trial's end differ."""
    run = start(
        tiny(reset_state_on_trial=True, num_envs=1, epsilon_start=0.0, epsilon_end=0.0, num_episodes=1), tmp_path
    )
    seen = []
    step = run.lanes.step

    def noting(actions):
        steps, ended = step(actions)
        seen.append(bool(steps.new_trial[0]))
        return steps, ended

    run.lanes.step = noting  # type: ignore[method-assign]
    while not run.done:
        run.advance()
        assert bool((run.state == 0).all()) == (seen[-1] or run.done)
    assert 0 < sum(seen) < len(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer_size": 10**14}, "does not fit"),
        ({"hidden_dim": 10**9}, "GiB, the machine has"),
        ({"hidden_dim": 10**15, "embed_dim": 10**15}, "does not fit any machine"),
        ({"batch_size": 10**12}, "GiB, the machine has"),
        ({"sequence_length": 10**12}, "GiB, the machine has"),
    ],
)
def test_absurd_sizes_are_refused_before_they_are_allocated(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        Run(tiny("train", **options))
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_holds_what_the_memory_holds_and_no_more(tmp_path: Path) -> None:
    """The default memory takes 47 MiB when it is full; after 1,000 of its 50,000 steps last.pt has a tenth of that."""
    config = cfg.make_config("train-neurogym", {"learning_starts": 10**6, "total_steps": 2_000, "eval_freq": 0})
    run = start(config, tmp_path)
    while run.step < 1_000:
        run.advance()
    run.save()
    assert run.experiment is not None
    size = run.experiment.checkpoint("last").stat().st_size
    assert run.replay.nbytes > 40 * 2**20 and size < 4 * 2**20
    resumed = Run.resume(config, run.experiment)
    assert same(resumed.replay.state_dict(), run.replay.state_dict())


def test_an_end_before_the_step_reached_is_refused(tmp_path: Path) -> None:
    run = start(tiny(total_steps=90, eval_freq=0), tmp_path)
    while run.step < 60:
        run.advance()
    run.save()
    assert run.experiment is not None
    with run.experiment.metrics_path.open("ab") as file:  # which a resumed run cuts off
        file.write(b"{}\n")
    with pytest.raises(ConfigError, match="--total-steps 45 does nothing: the run has 60 steps already; give a larger"):
        Run.resume(tiny(total_steps=45, eval_freq=0), run.experiment)
    assert run.experiment.metrics_path.read_bytes().endswith(b"{}\n"), "nothing changes"
    assert Run.resume(tiny(total_steps=60, eval_freq=0), run.experiment).done


@pytest.mark.parametrize("flags", [{"reset_state_on_trial": True}, {"replay": "trial", "replay_state": "zero"}])
def test_options_of_trials_are_refused_where_a_task_has_none(flags: dict) -> None:
    with pytest.raises(ConfigError, match="does nothing with --env-name CartPole-v1, which has no trials; leave it"):
        registry.check_trials(tiny("train", **flags))
    registry.check_trials(tiny("train", env_name="CueReward-v0", **flags))
    registry.check_trials(tiny("train-neurogym", **flags))
