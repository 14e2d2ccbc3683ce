"""Gymnasium tasks with flat float32 observations, and classic-control tasks with their velocities hidden."""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import AcrobotEnv

from mpn_rl.options import ConfigError, nearest
from mpn_rl.tasks import (
    cue_reward,  # noqa: F401  registers CueReward-v0
    grid_maze,  # noqa: F401  registers GridMaze-v0
)

# Where a classic-control observation holds a velocity; without it one observation does not tell the state.
VELOCITIES: dict[str, tuple[int, ...]] = {
    "CartPole-v0": (1, 3),
    "CartPole-v1": (1, 3),
    "MountainCar-v0": (1,),
    "Acrobot-v1": (4, 5),
    "LunarLander-v2": (2, 3, 5),
}


class FlatObservation(gymnasium.ObservationWrapper):
    """Box, Discrete (one-hot) and Dict observations as one float32 vector, without the entries `hidden`.

    Gymnasium's tasks have neither trials nor a clock; what `NeuroGymWrapper` tells of them is empty here.
    """

    trial_steps, dt_ms = 0, 0.0

    def __init__(self, env: gymnasium.Env, hidden: tuple[int, ...] = ()) -> None:
        super().__init__(env)
        self.inner = env.observation_space
        self.kept = np.delete(np.arange(spaces.flatdim(self.inner)), hidden)
        self.observation_space = spaces.Box(-np.inf, np.inf, (len(self.kept),), np.float32)
        self.n_actions = int(env.action_space.n) if isinstance(env.action_space, spaces.Discrete) else 0

    @property
    def conditions(self) -> dict[str, Any]:
        """The current trial's conditions, of a task that has trials and names them."""
        known: dict[str, Any] = getattr(self.unwrapped, "conditions", {})
        return known

    def observation(self, observation: Any) -> np.ndarray:
        return np.asarray(spaces.flatten(self.inner, observation), np.float32)[self.kept]


def make_gymnasium(
    env_name: str,
    env_args: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    mask_velocity: bool = False,
    render_mode: str | None = None,
) -> gymnasium.Env:
    """A Gymnasium task with a flat observation.

    Args:
        env_name: Gymnasium id; "package.module:Name-v0" imports the module that registers it first.
        env_args: arguments of its constructor.
        max_episode_steps: time limit that truncates; None: the task's own.
        mask_velocity: hide the velocities (tasks of `VELOCITIES` only).
        render_mode: rgb_array to film it.
    Raises: ConfigError for an unknown id or argument, or a task whose velocities are not known.
    """
    spec = find_spec(env_name)
    if "render_mode" in (env_args or {}):
        raise ConfigError("--env-arg must not set render_mode; the render command does")
    if mask_velocity and env_name not in VELOCITIES:
        raise ConfigError(f"--mask-velocity knows the velocities of {', '.join(VELOCITIES)}, not of {env_name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes of Gymnasium about its own tasks
        try:
            how = {} if render_mode is None else {"render_mode": render_mode}  # not every task takes one
            env = gymnasium.make(spec, max_episode_steps, disable_env_checker=True, **how, **(env_args or {}))
        except Exception as error:  # whatever a task's constructor may raise
            reason = " ".join(str(error).split()).partition(" was raised from")[0] or type(error).__name__
            if isinstance(error, gymnasium.error.DependencyNotInstalled) and "mujoco" in reason.lower():
                reason = "it needs the extra: pip install 'mpn-rl[mujoco]'"  # Gymnasium's own advice brings a newer one
            raise ConfigError(f"--env-name {env_name} cannot be made: {reason}{_arguments(spec, env_args)}") from error
    if isinstance(env.unwrapped, AcrobotEnv):
        vars(np).setdefault("float_", np.float64)  # its steps ask for this name, which NumPy 2 has dropped
    if not isinstance(spaces.flatten_space(env.observation_space), spaces.Box):
        raise ConfigError(f"--env-name {env_name} has observations of no fixed size: {env.observation_space}")
    return FlatObservation(env, VELOCITIES[env_name] if mask_velocity else ())


def make_vector_env(
    count: int,
    env_name: str,
    env_args: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    mask_velocity: bool = False,
) -> Any | None:
    """The task as one batched environment of `count` rows (`lanes.VectorLanes` says of what kind), or None."""
    spec = find_spec(env_name)
    if spec.vector_entry_point is None or mask_velocity:
        return None
    creator = _creator(spec.vector_entry_point)
    if not hasattr(creator, "reset_rows"):
        return None
    return creator(num_envs=count, max_episode_steps=max_episode_steps, **{**spec.kwargs, **(env_args or {})})


def time_limit(
    env_name: str, env_args: dict[str, Any] | None = None, max_episode_steps: int | None = None
) -> int | None:
    """The longest episode in steps: the user's limit, the registered one, or what the task itself counts; else None."""
    spec = find_spec(env_name)
    own = inspect.signature(_creator(spec.entry_point)).parameters.get("episode_steps")
    counted = None if own is None else {**spec.kwargs, **(env_args or {})}.get("episode_steps", own.default)
    limits = [limit for limit in (max_episode_steps or spec.max_episode_steps, counted) if limit is not None]
    return min(limits, default=None)


def find_spec(env_name: str) -> Any:
    """Gymnasium's entry for an id. Raises: ConfigError with the nearest ids."""
    module, _, name = env_name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError, ValueError):
        pass
    close = nearest(name, [known for known in gymnasium.registry if "/" in name or "/" not in known])
    raise ConfigError(
        f"--env-name must be a Gymnasium id such as CartPole-v1, got {env_name!r}{close or ';'} "
        "NeuroGym tasks: python main.py train-neurogym --list-envs"
    )


def _arguments(spec: Any, env_args: dict[str, Any] | None) -> str:
    """'; it takes ...' when the user gave an argument that it does not take."""
    names = [name for name in inspect.signature(_creator(spec.entry_point)).parameters if name != "render_mode"]
    unknown = set(env_args or {}) - set(names)
    return f"; it takes {', '.join(names) or 'none'}" if unknown else ""


def _creator(entry: Any) -> Any:
    return entry if callable(entry) else gymnasium.envs.registration.load_env_creator(entry)
