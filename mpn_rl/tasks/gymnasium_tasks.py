"""Gymnasium tasks with flat float32 observations, and classic-control tasks with their velocities hidden."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import AcrobotEnv, PendulumEnv
from gymnasium.envs.registration import EnvSpec

from mpn_rl.console import stderr
from mpn_rl.contracts import Action, Conditions, HasConditions, Info, SequenceArrays, Task
from mpn_rl.options import ConfigError, nearest, shortened
from mpn_rl.tasks import (
    bandit,  # noqa: F401  registers MetaBandit-v0
    cue_reward,  # noqa: F401  registers CueReward-v0
    grid_maze,  # noqa: F401  registers GridMaze-v0
    integration,  # noqa: F401  registers Integration-v0 and ContextualIntegration-v0
    temporal_order,  # noqa: F401  registers TemporalOrder-v0
    trusted_modules,
)
from mpn_rl.tasks.task_errors import TaskError, own_error
from mpn_rl.tasks.task_spaces import flat_actions, misfit
from mpn_rl.tasks.vector_env import BatchedTask, SingleEnv

# Indices of the velocities in an observation. Without them one observation does not determine the state.
VELOCITIES: dict[str, tuple[int, ...]] = {
    "CartPole-v0": (1, 3),
    "CartPole-v1": (1, 3),
    "MountainCar-v0": (1,),
    "MountainCarContinuous-v0": (1,),
    "Pendulum-v1": (2,),
    "Acrobot-v1": (4, 5),
    "LunarLander-v2": (2, 3, 5),
}
LONGEST_EPISODE = 10_000  # steps of an episode of a task without a time limit
LONGEST_TEXT = 200  # characters of a text in an info
STEP_RULE = "step must return (observation, reward, terminated, truncated, info)"


def random_policy(env: gymnasium.Env, rng: np.random.Generator) -> Action:
    """A uniformly random action."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return int(rng.integers(space.n))
    return rng.uniform(space.low, space.high)


class DoubleAction(np.ndarray):
    """An action for Box2D, which accepts Python's and NumPy's float64 numbers only; LunarLander casts to float32."""

    def astype(self, *_: Any, **__: Any) -> Any:
        return self


class FlatTask(gymnasium.Wrapper):
    """A Gymnasium task as a `contracts.Task`: observations become a float32 vector, actions one choice or one vector.

    Box observations are ravelled, Discrete ones become one-hot, Dict ones are concatenated. Actions of several discrete
    parts become one choice out of all combinations. Every answer of the task is checked; the info keeps what the
    toolkit reads (`contracts.Task`), and the numbers and texts under other names.

    Args:
        env: the task.
        name: its id, for messages.
        hidden: entries to leave out of the vector.
        limited: whether the task has a time limit; without one, episodes are cut after `LONGEST_EPISODE` steps.
    Raises: TaskError, from `reset` and `step`, where the task fails or breaks the interface.
    """

    trial_steps, dt_ms = 0, 0.0  # a Gymnasium task declares neither trials nor a clock
    scripted: ClassVar[Mapping[str, Callable[..., Action]]] = {"random": random_policy}

    def __init__(self, env: gymnasium.Env, name: str = "", hidden: tuple[int, ...] = (), limited: bool = True) -> None:
        super().__init__(env)
        self.name = name or type(env.unwrapped).__name__
        self.inner = env.observation_space
        self.steps = 0  # of the episode
        self.longest = None if limited else LONGEST_EPISODE
        self.in_box2d = type(env.unwrapped).__module__.startswith("gymnasium.envs.box2d.")
        self.trusted = isinstance(env.unwrapped, SingleEnv)  # the toolkit's own tasks
        if (flat := flat_actions(env.action_space)) is not None:
            self.action_space, self.native_action = flat
        self.kept = np.delete(np.arange(spaces.flatdim(self.inner)), hidden)
        self.obs_dim = len(self.kept)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.obs_dim,), np.float32)
        self.action_names = env.unwrapped.action_names if isinstance(env.unwrapped, SingleEnv) else None

    @property
    def channel_names(self) -> list[str] | None:
        """A name for each entry of the observation; None where the task does not name them."""
        task = self.unwrapped
        return task.rows.channel_names if isinstance(task, SingleEnv) else None

    @property
    def conditions(self) -> Conditions:
        """Conditions of the current trial; empty where the task does not name any."""
        task = self.unwrapped
        return task.conditions if isinstance(task, HasConditions) else {}

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """A Gymnasium task has to be played."""
        return None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        self.steps = 0
        try:
            answer = self.env.reset(seed=seed, options=options)
        except (MemoryError, ConfigError):
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
            raise self._broken("reset must return (observation, info)", answer)
        return self._flatten(answer[0]), dict(answer[1])

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        self.steps += 1
        try:
            native = self.native_action(action)
            if self.in_box2d and isinstance(native, np.ndarray):
                native = native.astype(np.float64).view(DoubleAction)
            answer = self.env.step(native)
        except (MemoryError, ConfigError):
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise self._broken(STEP_RULE, answer)
        observation, reward, terminated, truncated, info = answer
        if not isinstance(info, Mapping):
            raise self._broken("the info of a step must be a dict", info)
        terminated, truncated = self._flag("terminated", terminated), self._flag("truncated", truncated)
        if self.longest is not None and self.steps >= self.longest and not terminated:
            truncated = True
            _note_cut(self.name)
        if info and not self.trusted:
            info = clean_info(info)
        return self._flatten(observation), self._reward(reward), terminated, truncated, info

    def _flatten(self, observation: object) -> np.ndarray:
        if why := misfit(self.inner, observation):
            raise TaskError(
                f"the task {self.name} gave an observation {self._when} that does not fit its observation_space: {why}"
            )
        with np.errstate(over="ignore"):  # float64 values beyond float32 become inf
            flat = np.asarray(spaces.flatten(self.inner, observation), np.float32)[self.kept]
        finite = np.isfinite(flat)
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            raise TaskError(f"the task {self.name} gave {flat[index]} in observation {self.kept[index]} {self._when}")
        return flat

    def _reward(self, reward: object) -> float:
        if isinstance(reward, np.ndarray) and reward.size == 1:
            reward = reward.item()
        if not isinstance(reward, numbers.Real | np.bool_):
            raise self._broken("a reward must be a number", reward)
        value = float(reward)
        if not math.isfinite(value):
            raise TaskError(f"the task {self.name} gave the reward {value} {self._when}")
        return value

    def _flag(self, name: str, value: object) -> bool:
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if not isinstance(value, numbers.Integral | np.bool_):
            raise self._broken(f"{name} must be True or False", value)
        return bool(value)

    @property
    def _when(self) -> str:
        return f"at step {self.steps}" if self.steps else "at reset"

    def _broken(self, rule: str, value: object) -> TaskError:
        got = f"{len(value)} values" if isinstance(value, tuple) else shortened(value)
        return TaskError(f"the task {self.name} breaks Gymnasium's interface {self._when}: {rule}, got {got}")

    def _failure(self, error: BaseException) -> TaskError:
        last = traceback.extract_tb(error.__traceback__)[-1]
        in_wrapper = "gymnasium" in last.filename and "wrappers" in last.filename
        hint = f"; {STEP_RULE}" if in_wrapper and isinstance(error, TypeError | ValueError) else ""
        return TaskError(f"the task {self.name} fails {self._when}: {own_error(error)}{hint}")

    def render(self) -> object:
        task = self.unwrapped
        if isinstance(task, PendulumEnv) and isinstance(task.last_u, np.generic):
            task.last_u = float(task.last_u)  # pygame does not accept NumPy's numbers
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GLFW's, before the error that they announce
                return super().render()
        except (MemoryError, NotImplementedError):
            raise
        except Exception as error:
            way_out = "; without a display set MUJOCO_GL=egl or MUJOCO_GL=osmesa" if "mujoco" in repr(task) else ""
            raise TaskError(f"the task {self.name} cannot be drawn: {own_error(error)}{way_out}") from error


def clean_info(info: Mapping[object, object]) -> Info:
    """The entries of a task's info that the toolkit can record, in its own types.

    Kept are numbers and texts under names of letters, digits and underscores; whole numbers above 64 bits become
    floats. `hit` is a bool, or left out. A task with `new_trial` has trials, and what it does not say about them is
    unknown: no ground truth, no decision, no period, a performance of nan.
    """
    clean: Info = {}
    for key, value in info.items():
        if not isinstance(key, str) or not re.fullmatch(r"\w+", key):
            continue
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, int) and abs(value) >= 2**63:
            value = float(value) if abs(value) < 2**1000 else math.inf
        if isinstance(value, bool | int | float | str):
            clean[key] = value[:LONGEST_TEXT] if isinstance(value, str) else value
    if "hit" in clean and (isinstance(clean["hit"], str) or math.isnan(clean["hit"])):
        del clean["hit"]
    elif "hit" in clean:
        clean["hit"] = bool(clean["hit"])
    if "new_trial" in clean:
        unknown = {"trial_number": 0, "gt": -1, "period": "", "decision": False, "aborted": False}
        unknown |= {"performance": math.nan}
        clean |= {name: clean.get(name, value) for name, value in unknown.items()}
        for name, value in unknown.items():
            if isinstance(clean[name], str) is not isinstance(value, str):
                clean[name] = value
    return clean


@functools.cache
def _note_cut(name: str) -> None:
    stderr.print(
        f"note: {name} has no time limit; an episode was cut after {LONGEST_EPISODE:,} steps, as by a time limit; set "
        "--max-episode-steps in the training"
    )


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
            mode = {} if render_mode is None or not _draws(spec, render_mode) else {"render_mode": render_mode}
            env = gymnasium.make(spec, max_episode_steps, disable_env_checker=True, **mode, **(env_args or {}))
        except (Exception, SystemExit) as error:  # a task's constructor can raise anything
            reason = f"{_reason(error).partition(' was raised from')[0]}{_arguments(spec, env_args)}"
            raise ConfigError(f"--env-name {env_name} cannot be made: {reason}") from error
    if isinstance(env.unwrapped, AcrobotEnv):
        vars(np).setdefault("float_", np.float64)  # its step uses this name, which NumPy 2 no longer has
    if why := _not_flat(env.observation_space):
        env.close()
        raise ConfigError(f"--env-name {env_name} has {why}")
    limited = time_limit(env_name, env_args, max_episode_steps) is not None
    return FlatTask(env, env_name, VELOCITIES[env_name] if mask_velocity else (), limited)


def _not_flat(space: object) -> str:
    """Why observations cannot become one vector, and what to do; empty where they can."""
    if not isinstance(space, gymnasium.Space):
        return f"no observation_space of Gymnasium, got {shortened(space)}"
    try:
        if isinstance(spaces.flatten_space(space), spaces.Box):
            return ""
    except NotImplementedError:
        pass
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else ()
    bad = next((f"the part {name!r} of its " for name, part in parts if _not_flat(part)), "")
    return (
        f"observations of no fixed size: {bad}{shortened(space)}; wrap the task in a module of your own, for MiniGrid "
        "in ImgObsWrapper, and pass --env-name MODULE:TASK (docs/tasks.md)"
    )


def _draws(spec: EnvSpec, render_mode: str) -> bool:
    """Whether a task's constructor accepts this render mode, as far as it says."""
    creator = _creator(spec.entry_point)
    if isinstance(creator, type) and issubclass(creator, gymnasium.Env):
        metadata: dict[str, Any] = getattr(creator, "metadata", None) or {}
        modes = metadata.get("render_modes")  # empty where the task says nothing
        if modes and render_mode not in modes:
            return False
    parameters = inspect.signature(creator).parameters
    return "render_mode" in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())


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

    It is the smaller of the user's limit (else the registered one) and, in the toolkit's own tasks, their
    `episode_steps`.
    """
    spec = find_spec(env_name)
    creator, steps = _creator(spec.entry_point), None
    if isinstance(creator, type) and issubclass(creator, SingleEnv):
        steps = creator.batch(num_envs=1, **{**spec.kwargs, **(env_args or {})}).episode_steps
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


def is_built_in(env_name: str) -> bool:
    """Whether a task is Gymnasium's or the toolkit's own."""
    entry = find_spec(env_name).entry_point
    module = entry.__module__ if callable(entry) else str(entry)
    return module.startswith(("gymnasium.envs.", "mpn_rl."))


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
        if "mujoco_py" in text:
            return "it needs mujoco_py, which is no longer maintained; take the -v4 of this task"
        if "mujoco" in text:  # Gymnasium's advice installs a newer one
            return "it needs the extra: pip install 'mpn-rl[mujoco]'"
        if "box2d" in text:
            way_out = "pip install swig setuptools, then pip install --no-build-isolation box2d-py==2.3.5"
            return f"it needs Box2D, which is compiled: {way_out}"
        return " ".join(str(error).split())
    return own_error(error)
