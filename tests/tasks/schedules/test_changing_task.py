"""Tasks that change from phase to phase: what changes, seeds, schedule, resuming, evaluation, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from model_utils import Experiment
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.tasks.lanes import SEED_RANGES
from mpn_rl.tasks.schedules.changing_task import PHASES, RANGES, described, factor, seed_in_phase
from mpn_rl.tasks.schedules.task_schedule import PhaseSchedule
from mpn_rl.training import Run

PHASED = {"change_every": 20, "total_steps": 100}


def task(command: str, name: str, change: str, **flags: Any) -> Any:
    return registry.make_env(cfg.make_config(command, {"env_name": name, "change": change, **PHASED, **flags}).env)


def test_a_seed_is_moved_to_a_phase_within_its_part_of_the_seeds() -> None:
    for low, high in SEED_RANGES.values():
        for seed, phase in ((low, 0), (low, PHASES - 1), (high - 2 * PHASES, 5), (low + 12345, 7)):
            moved = seed_in_phase(seed, phase)
            assert moved % PHASES == phase and low <= moved < high and abs(moved - seed) < PHASES


def test_factors_are_one_at_first_and_then_cover_their_range() -> None:
    for change, (low, high) in RANGES.items():
        factors = [factor(change, phase) for phase in range(PHASES)]
        assert factors[0] == 1.0 and min(factors) >= low and max(factors) <= high
        logs = np.log(factors[1:])
        assert np.mean(logs) == pytest.approx(math.log(low * high) / 2, abs=0.1 * math.log(high / low))
        assert described(change, 0) == "the task as it is" and change in described(change, 1)


@pytest.mark.parametrize(
    ("name", "place"), [("CartPole-v1", "gravity"), ("Pendulum-v1", "g"), ("MountainCar-v0", "gravity")]
)
def test_gravity_of_classic_control_tasks(name: str, place: str) -> None:
    env, plain = task("train", name, "gravity"), gymnasium.make(name).unwrapped
    for phase in (0, 3, 0, 1):
        env.reset(seed=seed_in_phase(5000, phase))
        assert getattr(env.unwrapped, place) == pytest.approx(getattr(plain, place) * factor("gravity", phase))


@pytest.mark.parametrize(("change", "read"), [("gravity", "opt.gravity"), ("friction", "geom_friction")])
def test_gravity_and_friction_of_a_mujoco_model(change: str, read: str) -> None:
    pytest.importorskip("mujoco")

    def values(env: Any) -> np.ndarray:
        part = env.unwrapped.model
        for name in read.split("."):
            part = getattr(part, name)
        return np.array(part)

    env, plain = task("train", "HalfCheetah-v4", change, learner="td3"), values(gymnasium.make("HalfCheetah-v4"))
    paths = []
    for phase in (0, 2, 0):
        env.reset(seed=seed_in_phase(5000, phase))
        np.testing.assert_allclose(values(env), plain * factor(change, phase))
        paths.append([env.step(np.full(6, 0.5))[0] for _ in range(30)])
    assert np.array_equal(paths[0], paths[2]) and not np.allclose(paths[0], paths[1])


def test_observations_are_permuted_in_each_later_phase() -> None:
    env, plain = task("train", "CartPole-v1", "permute-observations"), task("train", "CartPole-v1", "reverse-actions")
    orders = set()
    for phase in range(8):
        seed = seed_in_phase(3000, phase)
        raw = gymnasium.make("CartPole-v1").reset(seed=seed)[0]
        first = env.reset(seed=seed)[0]
        assert sorted(first.tolist()) == sorted(raw.tolist())
        order = tuple(raw.tolist().index(value) for value in first.tolist())
        orders.add(order)
        assert phase or order == (0, 1, 2, 3)
        plain.reset(seed=seed)
        action = 1 if phase % 2 == 0 else 0  # `plain` reverses it
        assert np.array_equal(env.step(1)[0], plain.step(action)[0][list(order)])
    assert len(orders) > 4


def test_reversed_vectors_are_mirrored_between_their_bounds() -> None:
    env = task("train", "MountainCarContinuous-v0", "reverse-actions", learner="td3")
    moves = []
    for phase in (0, 1, 2):
        env.reset(seed=seed_in_phase(0, phase))
        env.unwrapped.state = np.array([-0.5, 0.0])
        moves.append(env.step(np.array([0.75], np.float32))[0][1])
    env.reset(seed=0)
    env.unwrapped.state = np.array([-0.5, 0.0])
    assert moves[1] == env.step(np.array([-0.75], np.float32))[0][1] and moves[0] == moves[2] > moves[1]


def test_the_rule_reverses_choices_but_not_fixation() -> None:
    """The ground truth of a phase earns the same rewards in its phase, and mistakes without the change."""
    env = task("train-neurogym", "PerceptualDecisionMaking-v0", "rule", max_episode_steps=400)
    policy = env.scripted["ground_truth"]
    for phase in (0, 1):
        env.reset(seed=seed_in_phase(70_000, phase))
        earned, right = 0.0, []
        for _ in range(200):
            action = policy(env, np.random.default_rng(0))
            _, reward, _, _, info = env.step(action)
            earned += reward
            right.append((info["gt"], action))
        assert all(truth == action for truth, action in right) and {action for _, action in right} == {0, 1, 2}
        assert earned >= 8
    env.reset(seed=seed_in_phase(70_000, 0))
    native = [policy(env, np.random.default_rng(0)) for _ in range(50) if env.step(0) is not None]
    env.reset(seed=seed_in_phase(70_000, 0))
    env.phase = 1  # the same trials under the other rule
    other = [policy(env, np.random.default_rng(0)) for _ in range(50) if env.step(0) is not None]
    assert other == [{0: 0, 1: 2, 2: 1}[action] for action in native]


def test_sequences_have_the_observations_and_targets_of_their_phases() -> None:
    name = "PerceptualDecisionMaking-v0"
    ruled, permuted = (task("train-neurogym", name, change) for change in ("rule", "permute-observations"))
    seeds = np.array([seed_in_phase(5000, 0), seed_in_phase(5000, 1)])
    raw, other, moved = ruled.task.sequences(seeds, 60), ruled.sequences(seeds, 60), permuted.sequences(seeds, 60)
    assert np.array_equal(other[2][0], raw[2][0]) and set(raw[2][1].tolist()) == {0, 1, 2}
    assert np.array_equal(other[2][1], np.array([0, 2, 1])[raw[2][1]]) and np.array_equal(other[0], raw[0])
    assert np.array_equal(moved[0][0], raw[0][0]) and not np.array_equal(moved[0][1], raw[0][1])
    assert np.array_equal(np.sort(moved[0][1]), np.sort(raw[0][1])) and np.array_equal(moved[2], raw[2])


def test_the_phase_follows_the_steps() -> None:
    schedule = PhaseSchedule(30, 100)
    phases = []
    for step in (0, 29, 30, 59, 60, 89, 90, 99, 100):
        schedule.progress = step / 100
        phases.append(schedule.phase)
    assert phases == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert (schedule.place(np.array([5000, 9000])) % PHASES).tolist() == [3, 3]
    config = cfg.make_config("train", {"change": "gravity", "change_every": 30, "total_steps": 100})
    assert [config.phase(step) for step in (0, 29, 30, 100)] == [0, 0, 1, 3] and config.phase() == 3
    assert cfg.make_config("train", {}).phase() is None
    assert registry.eval_seeds(config, 1)() % PHASES == 3


SMALL: dict[str, Any] = {
    "hidden_dim": 6, "embed_dim": 3, "num_envs": 2, "eval_freq": 10, "eval_episodes": 2, "learning_starts": 10,
    "update_every": 4, "batch_size": 4, "sequence_length": 4, "sequence_stride": 2, "burn_in": 2, "buffer_size": 200,
    "kernel": "reference", "max_episode_steps": 6, "checkpoint_freq": 0, "plot_training": False,
}  # fmt: skip


def start(config: cfg.Config, root: Path, name: str) -> Run:
    run = Run(config)
    run.start(Experiment.create(name, root, config.to_dict()))
    return run


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", {"change": "gravity"}),
        ("train-neurogym", {"change": "rule", "env_name": "PerceptualDecisionMaking-v0", "observe_action": True}),
    ],
)
def test_a_changing_run_resumes_bit_for_bit_and_says_the_phase(command: str, flags: Any, tmp_path: Path) -> None:
    config = cfg.make_config(command, {**SMALL, **PHASED, **flags})
    whole = start(config, tmp_path, "whole")
    while not whole.done:
        whole.advance()
    whole.finish()
    parts = start(config, tmp_path, "parts")
    while parts.step < 54:
        parts.advance()
    parts.save()
    parts.advance()  # lost with the process
    assert parts.experiment is not None
    again = Run.resume(config, parts.experiment)
    while not again.done:
        again.advance()
    again.finish()
    rows = [run.experiment.metrics_path.read_bytes() for run in (whole, again)]  # type: ignore[union-attr]
    assert rows[0] == rows[1]
    seen = [row["phase"] for row in whole.experiment.read_metrics() if row["kind"] == "eval"]  # type: ignore[union-attr]
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # after 10, 20, ... steps: at a phase's end, of the one that ends
    assert {seed % PHASES for seed in whole.lanes.seeds} <= {3, 4}


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("train", {"change": "gravity"}, "--change does nothing with --change-every none"),
        ("train", {"change_every": 10}, "--change-every does nothing with --change none"),
        ("train", {"change": "gravity", "change_every": 100, "total_steps": 100}, "--change-every 100 does nothing"),
        ("train-neurogym", {**PHASED, "change": "rule", "env_name": "GoNogo-v0,DelayMatchSample-v0"}, "needs one task"),
        ("train", {**PHASED, "change": "rule"}, "--change must be one of"),
    ],
)
def test_options_without_effect_are_refused(command: str, flags: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cfg.make_config(command, flags)


@pytest.mark.parametrize(
    ("command", "name", "change", "message"),
    [
        ("train", "CartPole-v1", "friction", "has no friction that can be set"),
        ("train-neurogym", "GoNogo-v0", "rule", "--change rule does nothing with --env-name GoNogo-v0"),
    ],
)
def test_a_task_without_anything_to_change_is_refused(command: str, name: str, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(command, name, change)


def test_runs_of_episodes_and_too_many_phases_are_refused() -> None:
    config = cfg.make_config("train", {"change": "gravity", "change_every": 10, "num_episodes": 5})
    with pytest.raises(ConfigError, match="--change-every 10 needs a run whose steps are known, got --num-episodes 5"):
        registry.make_schedule(config)
    with pytest.raises(ConfigError, match="--change-every must be at least 2 with --total-steps 2000"):
        PhaseSchedule(1, 2000)
