"""Three tables, from an option class to what it stands for, and the functions that read them.

A new core, environment family or learner is one row here, besides its module and its dataclass in `config.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from torch import nn

import config as cfg
from config import ConfigError
from gymnasium_env import make_gymnasium
from mpn_dqn import DQNLearner, Encoder, MPNDQN
from mpn_module import MPN
from neurogym_wrapper import make_neurogym
from rnn_module import MLPCore, RecurrentCore
from trial_replay import ReplayBuffer, SequenceReplayBuffer, TrialReplayBuffer, state_parts


def options(section: Any) -> dict[str, Any]:
    return dataclasses.asdict(section)


# core options -> constructor of (input_dim, options)
CORES: dict[type, Callable[[int, Any], nn.Module]] = {
    cfg.MPNConfig: lambda input_dim, core: MPN(input_dim, **options(core)),
    cfg.FrozenMPNConfig: lambda input_dim, core: MPN(input_dim, **options(core)),
    cfg.RNNConfig: lambda input_dim, core: RecurrentCore("rnn", input_dim, **options(core)),
    cfg.GRUConfig: lambda input_dim, core: RecurrentCore("gru", input_dim, **options(core)),
    cfg.LSTMConfig: lambda input_dim, core: RecurrentCore("lstm", input_dim, **options(core)),
    cfg.MLPConfig: lambda input_dim, core: MLPCore(input_dim, **options(core)),
}

# environment options -> constructor of (options, render_mode)
ENVS: dict[type, Callable[[Any, str | None], gymnasium.Env]] = {
    cfg.GymnasiumConfig: lambda env, render_mode: make_gymnasium(**options(env), render_mode=render_mode),
    cfg.NeuroGymConfig: lambda env, render_mode: make_neurogym(**options(env)),
}

# learner options -> constructor of (network, options, seed, device)
LEARNERS: dict[type, Callable[[Any, Any, int, Any], Any]] = {
    cfg.DQNConfig: DQNLearner,
}


def make_env(env: cfg.EnvConfig, render_mode: str | None = None) -> gymnasium.Env:
    """An environment with a flat float32 observation and discrete actions.

    Raises: ConfigError for a task that the learners cannot act in.
    """
    made = ENVS[type(env)](env, render_mode)
    if not isinstance(made.action_space, gymnasium.spaces.Discrete):
        name = env.env_name  # type: ignore[attr-defined]
        made.close()
        raise ConfigError(f"--env-name {name} has continuous actions, {made.action_space}; dqn needs discrete ones")
    return made


def sizes(env: gymnasium.Env) -> tuple[int, int]:
    """(observation dimension, number of actions)."""
    return int(env.observation_space.shape[0]), int(env.action_space.n)  # type: ignore[index, attr-defined]


def make_network(config: cfg.Config, obs_dim: int, action_dim: int) -> MPNDQN:
    """The network that config.json describes, freshly initialised from torch's global generator."""
    encoder = Encoder(obs_dim, config.encoder.embed_dim, config.encoder.constant_input)
    core = CORES[type(config.core)](encoder.output_dim, config.core)
    hidden_dim: int = core.hidden_dim  # type: ignore[assignment]
    return MPNDQN(obs_dim, hidden_dim, action_dim, encoder=encoder, core=core)


def make_learner(config: cfg.Config, obs_dim: int, action_dim: int, device: torch.device) -> Any:
    """The learner with its network, a function of the seed alone; torch's global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        network = make_network(config, obs_dim, action_dim)
    return LEARNERS[type(config.learner)](network, config.learner, config.run.seed, device)


def make_replay(config: cfg.Config, num_lanes: int, obs_dim: int, network: MPNDQN) -> ReplayBuffer:
    """The replay memory that the learner's options describe."""
    replay: Any = config.learner
    common = {
        "state_shapes": [tuple(part.shape[1:]) for part in state_parts(network.init_state(1))],
        "replay_state": replay.replay_state,
        "reset_state_on_trial": config.run.reset_state_on_trial,
        "priority_exponent": replay.priority_exponent if replay.prioritized else None,
        "importance_exponent": replay.importance_exponent,
    }
    if replay.replay == "trial":
        limit = config.env.max_episode_steps  # type: ignore[attr-defined]
        if limit is None:
            raise ConfigError("--replay trial stores whole trials and needs --max-episode-steps to know the longest")
        return TrialReplayBuffer(num_lanes, obs_dim, capacity=replay.buffer_size, max_steps=limit, **common)
    burn_in = replay.burn_in if replay.replay_state == "burn-in" else 0
    shape = {"length": replay.sequence_length, "stride": replay.sequence_stride, "burn_in": burn_in}
    if replay.replay == "transition":
        shape = {"length": 1, "stride": 1, "burn_in": 0}
    return SequenceReplayBuffer(num_lanes, obs_dim, capacity=replay.buffer_size, **shape, **common)


def make_device(name: str) -> torch.device:
    """auto, cpu or cuda -> the device. Raises: ConfigError for a device that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda needs an NVIDIA GPU and PyTorch's CUDA build; there is none: take --device cpu"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
