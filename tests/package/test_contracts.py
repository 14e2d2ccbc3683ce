"""The contracts of learners and tasks, over all of them: a new one is tested the moment it is added.

That of the cores is in `test_cores.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from model_utils import Experiment, load_checkpoint
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.contracts import map_state, state_parts
from mpn_rl.tasks.lanes import EpisodeSeeds
from mpn_rl.training import Run

every_learner = pytest.mark.parametrize("cls", registry.LEARNERS, ids=lambda cls: cls.name)

# --- learners ----------------------------------------------------------------------------------------------

TINY = {"core": "gru", "hidden_dim": 5, "embed_dim": 3, "num_envs": 3, "max_episode_steps": 20, "eval_episodes": 2,
        "total_steps": 360, "eval_freq": 150, "checkpoint_freq": 0, "plasticity_metrics_freq": 100, "rollout_steps": 7,
        "learning_starts": 20, "update_every": 4, "batch_size": 4, "sequence_length": 8, "sequence_stride": 4,
        "burn_in": 3, "buffer_size": 200}  # fmt: skip


def tiny(cls: Any, seed: int = 0) -> cfg.Config:
    """A short run of the learner, with its own defaults otherwise, on a task whose actions it takes."""
    learner = registry.LEARNERS[cls][0]
    task = "Pendulum-v1" if learner.continuous else "CartPole-v1" if learner.acts else "TemporalOrder-v0"
    parts = (cls, cfg.GRUConfig, cfg.EncoderConfig, cfg.RunConfig, cfg.GymnasiumConfig)
    known = {field.name for part in parts for field in dataclasses.fields(part)} | {"core"}
    small = {name: value for name, value in TINY.items() if name in known and (learner.acts or name != "num_envs")}
    return cfg.make_config("train", {**small, "learner": cls.name, "env_name": task, "seed": seed})


def started(config: cfg.Config, folder: Path) -> Run:
    run = Run(config)
    run.start(Experiment.create(folder.name, folder.parent, config.to_dict()))
    return run


def ended(run: Run) -> dict[str, Any]:
    """Everything that a run is when it is over."""
    while not run.done:
        run.advance()
    run.finish()
    assert run.experiment is not None
    return load_checkpoint(run.experiment.checkpoint("last"))


def leaves(value: Any) -> Iterator[Any]:
    """The tensors, arrays, numbers and keys in nested dictionaries and lists."""
    if isinstance(value, dict):
        for key in value:
            yield key
            yield from leaves(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def same(one: Any, other: Any) -> bool:
    pairs = zip(list(leaves(one)), list(leaves(other)), strict=True)
    return all(np.array_equal(a, b) if hasattr(a, "shape") else a == b for a, b in pairs)


def test_every_registered_learner_has_its_row() -> None:
    assert set(registry.LEARNERS) == set(cfg.LearnerConfig.registry.values())


@every_learner
def test_a_run_is_a_function_of_its_seed(cls: Any, tmp_path: Path) -> None:
    one, again = (ended(started(tiny(cls), tmp_path / name)) for name in ("one", "again"))
    assert same(one, again)
    other = ended(started(tiny(cls, seed=1), tmp_path / "other"))
    assert not same(one["network"], other["network"])


@every_learner
def test_a_resumed_run_ends_as_the_uninterrupted_one(cls: Any, tmp_path: Path) -> None:
    whole = ended(started(tiny(cls), tmp_path / "whole"))
    cut = started(tiny(cls), tmp_path / "cut")
    while cut.step < 150:  # in the middle of episodes, sequences and rollouts
        cut.advance()
    cut.save()
    assert cut.experiment is not None
    assert same(whole, ended(Run.resume(tiny(cls), cut.experiment)))


@every_learner
def test_updates_move_every_network_and_report_without_a_graph(cls: Any, tmp_path: Path) -> None:
    run = started(tiny(cls), tmp_path / "run")
    learner, told = run.learner, []
    assert set(learner.networks) == set(learner.optimizers) and set(learner.targets) <= set(learner.networks)
    before = {name: [part.clone() for part in net.parameters()] for name, net in learner.networks.items()}
    learn = learner.learn
    learner.learn = lambda *arguments: told.append(learn(*arguments)) or told[-1]
    while not run.done:
        run.advance()
    assert learner.updates == len(told) > 5 and all("loss" in values for values in told)
    for value in (value for values in told for value in values.values()):
        assert value.shape == () and value.isfinite() and not value.requires_grad
    for name, network in learner.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True)), name
    assert all(np.isfinite(value) for value in learner.status().values())


@every_learner
def test_acting_takes_a_row_per_lane_and_leaves_the_state_it_was_given(cls: Any, tmp_path: Path) -> None:
    run = started(tiny(cls), tmp_path / "run")
    obs = torch.randn(6, run.spaces.obs_dim)
    with torch.no_grad():
        state = run.network.init_state(6)
    kept = map_state(torch.clone, state)
    for explore in (True, False):
        actions, after = run.learner.act(obs, state, explore)
        assert len(actions) == 6 and not actions.requires_grad
        assert all(registry.make_env(run.config.env).action_space.contains(action) for action in actions.numpy())
        assert [part.shape for part in state_parts(after)] == [part.shape for part in state_parts(state)]
        assert same(state_parts(state), state_parts(kept))
    again, _ = run.learner.act(obs, state, explore=False)
    assert torch.equal(actions, again)


# --- the project's own tasks -------------------------------------------------------------------------------

TASKS = sorted(name for name, spec in gymnasium.registry.items() if str(spec.entry_point).startswith("mpn_rl."))
every_task = pytest.mark.parametrize("task", TASKS)


def played(env: Any, seed: int, steps: int = 400) -> list[tuple]:
    """An episode of random actions that are a function of the seed, or its beginning."""
    rng, over = np.random.default_rng(seed), False
    seen: list[tuple] = [(env.reset(seed=seed)[0].tolist(),)]
    while not over and len(seen) < steps:
        obs, reward, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
        over = terminated or truncated
        seen.append((obs.tolist(), float(reward), bool(terminated), bool(truncated)))
    return seen


def test_the_tasks_are_collected() -> None:
    assert {"GridMaze-v0", "CueReward-v0"} <= set(TASKS)


@every_task
def test_an_episode_is_a_function_of_its_seed_and_actions(task: str) -> None:
    env, other = (registry.make_env(cfg.GymnasiumConfig(env_name=task)) for _ in range(2))
    episodes = [played(env, seed) for seed in range(8)]
    assert episodes == [played(other, seed) for seed in reversed(range(8))][::-1]
    assert any(episode != episodes[0] for episode in episodes)


@every_task
def test_an_episode_ends_and_is_float32_throughout(task: str) -> None:
    env = registry.make_env(cfg.GymnasiumConfig(env_name=task))
    obs, _ = env.reset(seed=1)
    for _ in range(10_000):
        assert obs.dtype == np.float32 and obs.shape == env.observation_space.shape and np.isfinite(obs).all()
        obs, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            return
    raise AssertionError("10,000 steps and no end: register the task with max_episode_steps")


@every_task
def test_lanes_come_back_in_the_middle_of_their_episodes(task: str) -> None:
    config = cfg.make_config("train", {"env_name": task})
    seeds = EpisodeSeeds("train", 0)
    lanes = registry.make_lanes(config, 3, seeds)
    actions = np.random.default_rng(0).integers(0, registry.spaces(registry.make_env(config.env)).action_dim, (40, 3))
    for row in actions[:17]:
        lanes.step(row)
    saved, state = lanes.state_dict(), seeds.rng.bit_generator.state
    expected = [lanes.step(row) for row in actions[17:]]
    source = EpisodeSeeds("train", 1)
    back = registry.make_lanes(config, 3, source)
    back.load_state_dict(saved)
    source.rng.bit_generator.state = state
    assert same(expected, [back.step(row) for row in actions[17:]])


@every_task
def test_rows_of_a_batch_play_as_single_environments_do(task: str) -> None:
    options = cfg.GymnasiumConfig(env_name=task)
    batch = registry.make_vector_env(3, **registry.task_options(options))
    if batch is None:
        return  # the task comes only as single environments
    env = registry.make_env(options)
    obs = batch.reset_rows(np.arange(3), np.array([5, 6, 7]))
    for row, seed in enumerate((5, 6, 7)):
        seen = played(env, seed, 30)
        assert obs[row].tolist() == seen[0][0]
    generators = [np.random.default_rng(seed) for seed in (5, 6, 7)]
    expected = [played(env, seed, 30) for seed in (5, 6, 7)]
    for t in range(1, min(map(len, expected))):  # to the end of the shortest episode
        actions = np.array([int(rng.integers(env.action_space.n)) for rng in generators])
        obs, reward, terminated, truncated, _ = batch.step(actions)
        for row in range(3):
            found = (obs[row].tolist(), float(reward[row]), bool(terminated[row]), bool(truncated[row]))
            assert found == expected[row][t]
