"""Gymnasium tasks with flat float32 observations, and classic-control tasks with their velocities hidden."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import AcrobotEnv, PendulumEnv
from gymnasium.envs.registration import EnvSpec

from mpn_rl.contracts import Action, Conditions, HasConditions, Task
from mpn_rl.options import ConfigError, nearest
from mpn_rl.tasks import (
    cue_reward,  # noqa: F401  registers CueReward-v0
    grid_maze,  # noqa: F401  registers GridMaze-v0
)
from mpn_rl.tasks.vector_env import BatchedTask, SingleEnv

# Indices of the velocities in an observation. Without them one observation does not determine the state.
VELOCITIES: dict[str, tuple[int, ...]] = {
    "CartPole-v0": (1, 3),
    "CartPole-v1": (1, 3),
    "MountainCar-v0": (1,),
    "Acrobot-v1": (4, 5),
    "LunarLander-v2": (2, 3, 5),
}


def random_policy(env: gymnasium.Env, rng: np.random.Generator) -> Action:
    """A uniformly random action."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return int(rng.integers(space.n))
    return rng.uniform(space.low, space.high)


class FlatObservation(gymnasium.ObservationWrapper):
    """A Gymnasium task as a `contracts.Task`: Box, Discrete (one-hot) and Dict observations become a float32 vector.

    Args:
        env: the task.
        hidden: entries to leave out of the vector.
    """

    trial_steps, dt_ms = 0, 0.0  # a Gymnasium task declares neither trials nor a clock
    scripted: ClassVar[Mapping[str, Callable[..., Action]]] = {"random": random_policy}

    def __init__(self, env: gymnasium.Env, hidden: tuple[int, ...] = ()) -> None:
        super().__init__(env)
        self.inner = env.observation_space
        self.kept = np.delete(np.arange(spaces.flatdim(self.inner)), hidden)
        self.obs_dim = len(self.kept)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.obs_dim,), np.float32)
        self.action_names = env.unwrapped.action_names if isinstance(env.unwrapped, SingleEnv) else None

    @property
    def conditions(self) -> Conditions:
        """Conditions of the current trial; empty where the task does not name any."""
        task = self.unwrapped
        return task.conditions if isinstance(task, HasConditions) else {}

    def observation(self, observation: object) -> np.ndarray:
        return np.asarray(spaces.flatten(self.inner, observation), np.float32)[self.kept]

    def render(self) -> object:
        task = self.unwrapped
        if isinstance(task, PendulumEnv) and isinstance(task.last_u, np.generic):
            task.last_u = float(task.last_u)  # pygame does not accept NumPy's numbers
        return super().render()


def make_gymnasium(
    env_name: str,
    env_args: dict[str, object] | None = None,
    max_episode_steps: int | None = None,
    mask_velocity: bool = False,
    render_mode: str | None = None,
) -> Task:
    """A Gymnasium task with a flat observation.

    Args:
        env_name: Gymnasium id; with "package.module:Name-v0" the module is imported first, to register the task.
        env_args: arguments of the task's constructor.
        max_episode_steps: time limit at which episodes are truncated; None: the task's own.
        mask_velocity: hide the velocities (tasks in `VELOCITIES` only).
        render_mode: "rgb_array" where `render` is used; None: the task's default.
    Raises: ConfigError for an unknown id or argument, or a task whose velocities are not known.
    """
    spec = find_spec(env_name)
    if "render_mode" in (env_args or {}):
        raise ConfigError("--env-arg must not set render_mode; the render command does")
    if mask_velocity and env_name not in VELOCITIES:
        raise ConfigError(f"--mask-velocity knows the velocities of {', '.join(VELOCITIES)}, not of {env_name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's deprecation warnings about its own tasks
        try:
            mode = {} if render_mode is None else {"render_mode": render_mode}  # not every constructor accepts one
            env = gymnasium.make(spec, max_episode_steps, disable_env_checker=True, **mode, **(env_args or {}))
        except Exception as error:  # a task's constructor can raise anything
            reason = " ".join(str(error).split()).partition(" was raised from")[0] or type(error).__name__
            if isinstance(error, gymnasium.error.DependencyNotInstalled) and "mujoco" in reason.lower():
                reason = "it needs the extra: pip install 'mpn-rl[mujoco]'"  # Gymnasium's advice installs a newer one
            raise ConfigError(f"--env-name {env_name} cannot be made: {reason}{_arguments(spec, env_args)}") from error
    if isinstance(env.unwrapped, AcrobotEnv):
        vars(np).setdefault("float_", np.float64)  # its step uses this name, which NumPy 2 no longer has
    if not isinstance(spaces.flatten_space(env.observation_space), spaces.Box):
        raise ConfigError(f"--env-name {env_name} has observations of no fixed size: {env.observation_space}")
    return FlatObservation(env, VELOCITIES[env_name] if mask_velocity else ())


def make_vector_env(
    count: int,
    env_name: str,
    env_args: dict[str, object] | None = None,
    max_episode_steps: int | None = None,
    mask_velocity: bool = False,
) -> BatchedTask | None:
    """The task as one vector environment of `count` rows; None where the task has no `BatchedTask`."""
    spec = find_spec(env_name)
    if spec.vector_entry_point is None or mask_velocity:
        return None
    creator = _creator(spec.vector_entry_point)
    if not (isinstance(creator, type) and issubclass(creator, BatchedTask)):
        return None
    return creator(num_envs=count, max_episode_steps=max_episode_steps, **{**spec.kwargs, **(env_args or {})})


def time_limit(
    env_name: str, env_args: dict[str, object] | None = None, max_episode_steps: int | None = None
) -> int | None:
    """The longest possible episode in steps, None where there is no limit.

    It is the smaller of the user's limit (else the registered one) and the task's own argument `episode_steps`.
    """
    spec = find_spec(env_name)
    own = inspect.signature(_creator(spec.entry_point)).parameters.get("episode_steps")
    steps = None if own is None else {**spec.kwargs, **(env_args or {})}.get("episode_steps", own.default)
    limits = [limit for limit in (max_episode_steps or spec.max_episode_steps, steps) if limit is not None]
    return min(limits, default=None)


def find_spec(env_name: str) -> EnvSpec:
    """Gymnasium's registry entry of an id. Raises: ConfigError that names the nearest ids."""
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


def _arguments(spec: EnvSpec, env_args: dict[str, object] | None) -> str:
    """'; it takes ...' where the user passed an argument that the constructor does not have."""
    names = [name for name in inspect.signature(_creator(spec.entry_point)).parameters if name != "render_mode"]
    unknown = set(env_args or {}) - set(names)
    return f"; it takes {', '.join(names) or 'none'}" if unknown else ""


def _creator(entry: str | Callable[..., gymnasium.Env]) -> Callable[..., gymnasium.Env]:
    """The constructor that a registry entry names."""
    return entry if callable(entry) else gymnasium.envs.registration.load_env_creator(entry)
