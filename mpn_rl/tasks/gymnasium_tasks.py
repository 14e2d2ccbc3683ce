"""Gymnasium tasks with flat float32 observations, and classic-control tasks with their velocities hidden."""

from __future__ import annotations

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
    trusted_modules,
)
from mpn_rl.tasks.task_errors import own_error
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
    _creator(spec.entry_point)
    if "render_mode" in (env_args or {}):
        raise ConfigError("--env-arg must not set render_mode; the render command does")
    if mask_velocity and env_name not in VELOCITIES:
        raise ConfigError(f"--mask-velocity knows the velocities of {', '.join(VELOCITIES)}, not of {env_name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's deprecation warnings about its own tasks
        try:
            mode = {} if render_mode is None else {"render_mode": render_mode}  # not every constructor accepts one
            env = gymnasium.make(spec, max_episode_steps, disable_env_checker=True, **mode, **(env_args or {}))
        except (Exception, SystemExit) as error:  # a task's constructor can raise anything
            reason = f"{_reason(error).partition(' was raised from')[0]}{_arguments(spec, env_args)}"
            raise ConfigError(f"--env-name {env_name} cannot be made: {reason}") from error
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
    """Gymnasium's registry entry of an id, whose module is imported first if it names one that is trusted.

    Raises: ConfigError that names the nearest ids, or the reason why the module cannot be imported.
    """
    module, _, name = env_name.rpartition(":")
    if module:
        trusted_modules.import_task_module(module)
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ValueError):
        pass
    if module:
        own = [known for known, spec in gymnasium.registry.items() if str(spec.entry_point).startswith(module)]
        close = nearest(name, own) or f"; it registers {', '.join(own) or 'none'}"
        raise ConfigError(f"--env-name {env_name}: the module {module!r} registers no task {name!r}{close}")
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
    """The constructor that a registry entry names. Raises: ConfigError where it cannot be loaded."""
    if callable(entry):
        return entry
    try:
        return gymnasium.envs.registration.load_env_creator(entry)
    except (Exception, SystemExit) as error:  # the import of a task's module can raise anything
        raise ConfigError(f"the task's class {entry} cannot be loaded: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Why a task cannot be made, with the way out where an optional library is missing."""
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        text = str(error).lower()
        if "mujoco" in text:  # Gymnasium's advice installs a newer one
            return "it needs the extra: pip install 'mpn-rl[mujoco]'"
        if "box2d" in text:
            return "it needs Box2D: pip install swig, then pip install 'gymnasium[box2d]<0.30'"
        return " ".join(str(error).split())
    return own_error(error)
