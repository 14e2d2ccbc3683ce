"""Several NeuroGym tasks as one task, whose observation says which of them is on.

An episode is of one task, which follows from its seed: seed s plays task s mod K. So episodes repeat from their seed
and actions, and whoever chooses the seed chooses the task (`seed_of`).
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from mpn_rl.config import COLLECTIONS, NeuroGymConfig
from mpn_rl.contracts import Action, Conditions, Info, SequenceArrays
from mpn_rl.options import ConfigError, nearest
from mpn_rl.tasks.lanes import SEED_RANGES
from mpn_rl.tasks.task_wrapper import TaskWrapper
from neurogym_wrapper import NeuroGymWrapper, collection_tasks, make_neurogym

Policies = Mapping[str, Callable[..., Action]]


def seed_of(seed: int, task: int, tasks: int) -> int:
    """The episode seed nearest below `seed` that plays a task; it stays in the same part of `SEED_RANGES`."""
    low, high = next(ends for ends in SEED_RANGES.values() if ends[0] <= seed < ends[1])
    seed += task - seed % tasks
    return seed - tasks if seed >= high else seed + tasks if seed < low else seed


class TaskSpec(NamedTuple):
    """One of the tasks of a set."""

    name: str
    env_args: dict[str, object]
    weight: float


def task_specs(env: NeuroGymConfig) -> list[TaskSpec]:
    """The tasks of a run, with the arguments and the weight of each.

    An entry of `env_args` with the name of a task holds arguments of this task alone; the others are of all tasks.

    Raises: ConfigError for a weight or arguments of a task that is not in the set, and for a repeated task.
    """
    if not env.several:
        return [TaskSpec(env.env_name, env.env_args, 1.0)]
    parts = [collection_tasks(part) if part in COLLECTIONS else [part] for part in env.env_name.split(",")]
    names = [name for part in parts for name in part]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--env-name must name each task once, got {twice} {names.count(twice)} times")
    for name in env.task_weights:
        if name not in names:
            raise ConfigError(f"--task-weight must be of a task in --env-name, got {name!r}{nearest(name, names)}")
    own = {name: value for name, value in env.env_args.items() if name in names or ":" in name or "-" in name}
    for name, value in own.items():
        if name not in names or not isinstance(value, dict):
            rule = 'a task in --env-name and its arguments, such as GoNogo-v0={"dt": 50}'
            raise ConfigError(f"--env-arg must name {rule}, got {name!r}{nearest(name, names)}")
    shared = {name: value for name, value in env.env_args.items() if name not in own}
    weights = {name: float(str(weight)) for name, weight in env.task_weights.items()}
    arguments = {name: value for name, value in own.items() if isinstance(value, dict)}
    return [TaskSpec(name, {**shared, **arguments.get(name, {})}, weights.get(name, 1.0)) for name in names]


class Layout(NamedTuple):
    """The spaces that the tasks of a set share."""

    channel_names: list[str]  # (D,): of all tasks, then "rule: <task>" for each task
    places: list[np.ndarray | slice]  # of each task's observation among these
    action_space: spaces.Discrete | spaces.Box
    action_names: list[str] | None
    scripted: list[str]  # names of the reference policies that every task has


class Member(TaskWrapper):
    """One task of a set, with the observations and actions of the set; all else is the task's own.

    An action that the task does not have does what its action 0 does, which is fixation in every task that has one.

    Args:
        task: the task.
        name: of the task, which the conditions of its trials get as "task".
        layout: of the set.
        index: of the task in the set.
    """

    def __init__(self, task: NeuroGymWrapper, name: str, layout: Layout, index: int) -> None:
        super().__init__(task)
        self.name, self.layout = name, layout
        self.obs_dim = len(layout.channel_names)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.obs_dim,), np.float32)
        self.action_space = layout.action_space
        self._places = layout.places[index]
        self._blank = np.zeros(self.obs_dim, np.float32)
        self._blank[self.obs_dim - len(layout.places) + index] = 1.0
        self._choices = task.n_actions if isinstance(layout.action_space, spaces.Discrete) else None

    def _shown(self, obs: np.ndarray) -> np.ndarray:
        """A task's observation (d,) as one of the set, (D,)."""
        shown = self._blank.copy()
        shown[self._places] = obs
        return shown

    @property
    def channel_names(self) -> list[str]:
        """A name for each entry of the set's observation."""
        return self.layout.channel_names

    @property
    def action_names(self) -> list[str] | None:
        """A name for each choice of the set; None for action vectors."""
        return self.layout.action_names

    @property
    def conditions(self) -> Conditions:
        """Conditions of the current trial, and the name of the task."""
        return {**self.task.conditions, "task": self.name}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        obs, info = self.task.reset(seed=seed)
        return self._shown(obs), info

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        if self._choices is not None and action >= self._choices:
            action = 0
        obs, reward, terminated, truncated, info = self.task.step(action)
        if info["new_trial"]:
            info["trial"] = {**info["trial"], "task": self.name}
        shown = self._blank.copy()
        shown[self._places] = obs
        return shown, reward, terminated, truncated, info

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """The task's sequences with the observations of the set; None where it has to be played."""
        arrays = self.task.sequences(seeds, steps)
        if arrays is None:
            return None
        shown = np.broadcast_to(self._blank, (*arrays[0].shape[:2], self.obs_dim)).copy()
        shown[:, :, self._places] = arrays[0]
        return shown, *arrays[1:]


class TaskSet(gymnasium.Env):
    """K NeuroGym tasks as one `contracts.Task`. An episode is of one task; seed s plays task s mod K.

    Channels of the same name are one channel of the observation; channels without names are counted from 0, so that
    tasks without names are padded. The channels that a task lacks are 0. The last K channels are the rule: 1 for the
    task that is on. The actions are those of the task that has most; see `Member` for an action that a task lacks. A
    task is built when its first episode starts.

    Args:
        specs: the tasks, K of them.
        max_episode_steps: steps after which an episode is truncated.
    Attributes:
        names: of the tasks.
        current: the task of the current episode.
    Raises: ConfigError as `make_neurogym` does, and where action vectors are mixed with choices or differ in size.
    """

    def __init__(self, specs: Sequence[TaskSpec], max_episode_steps: int | None) -> None:
        self.specs, self.max_episode_steps = list(specs), max_episode_steps
        self.names = [spec.name for spec in specs]
        self._layout = _layout(json.dumps([spec[:2] for spec in specs]))
        self.channel_names, self.action_names = self._layout.channel_names, self._layout.action_names
        self.obs_dim = len(self.channel_names)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.obs_dim,), np.float32)
        self.action_space = self._layout.action_space
        self._members: dict[int, Member] = {}
        self._seeds = np.random.default_rng()  # of episodes without a seed
        self.current = self.member(0)

    def member(self, index: int) -> Member:
        """One of the tasks, which plays this task whatever the seed is."""
        if index not in self._members:
            spec = self.specs[index]
            generators = random.getstate(), np.random.get_state()  # a resumed run builds its tasks at other times
            task = make_neurogym(spec.name, spec.env_args, self.max_episode_steps)
            random.setstate(generators[0])
            np.random.set_state(generators[1])
            self._members[index] = Member(task, spec.name, self._layout, index)
        return self._members[index]

    def task_of(self, seed: int) -> int:
        """The number of the task that an episode with this seed is of."""
        return seed % len(self.specs)

    @property
    def dt_ms(self) -> float:
        """Duration of a step in ms."""
        return self.current.dt_ms

    @property
    def trial_steps(self) -> int:
        """Full length of the current trial in steps."""
        return self.current.trial_steps

    @property
    def conditions(self) -> Conditions:
        """Conditions of the current trial, and the name of the task as "task"."""
        return self.current.conditions

    @property
    def scripted(self) -> Policies:
        """The reference policies that every task has."""

        def of_task(name: str) -> Callable[..., Action]:
            return lambda env, rng: env.current.scripted[name](env.current, rng)

        return {name: of_task(name) for name in self._layout.scripted}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        """Start an episode. Without a seed, the seed is drawn.

        Args: options: {"task": name} plays this task, whatever the seed is.
        """
        if seed is None:
            seed = int(self._seeds.integers(*SEED_RANGES["train"]))
        task = (options or {}).get("task")
        index = self.task_of(seed) if task is None else self.names.index(task)
        self.current = self.member(index)
        return self.current.reset(seed=seed)

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        return self.current.step(action)

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """None where a seed's task has to be played; the sequences of each `member` are its own."""
        order = [self.member(self.task_of(seed)).sequences(np.array([seed]), steps) for seed in seeds.tolist()]
        known = [arrays for arrays in order if arrays is not None]
        if len(known) < len(order):
            return None
        obs, new_trial, target, decision = (np.concatenate(parts) for parts in zip(*known, strict=True))
        return obs, new_trial, target, decision

    def render(self) -> object:
        return self.current.render()

    def close(self) -> None:
        for member in self._members.values():
            member.close()


@functools.lru_cache(maxsize=16)
def _layout(tasks: str) -> Layout:
    """The shared spaces of tasks, given as JSON: [[name, arguments], ...]."""
    parsed = json.loads(tasks)
    envs = [make_neurogym(name, arguments) for name, arguments in parsed]
    names = [name for name, _ in parsed]
    known: dict[str, int] = {}
    places: list[np.ndarray | slice] = []
    for env in envs:
        own = env.channel_names
        if len(set(own)) < len(own):  # names that do not tell its channels apart
            own = [f"obs_{index}" for index in range(env.obs_dim)]
        index = np.array([known.setdefault(name, len(known)) for name in own])
        straight = np.array_equal(index, np.arange(len(index)))
        places.append(slice(len(index)) if straight else index)
    channels = [*known, *(f"rule: {name}" for name in names)]
    all_have = [name for name in envs[0].scripted if all(name in env.scripted for env in envs)]
    space, action_names = _shared_actions(names, envs)
    return Layout(channels, places, space, action_names, all_have)


def _shared_actions(
    names: Sequence[str], envs: Sequence[NeuroGymWrapper]
) -> tuple[spaces.Discrete | spaces.Box, list[str] | None]:
    """The action space of several tasks, and a name for each choice: the tasks' own where they agree, else its number.

    Raises: ConfigError where action vectors are mixed with choices, or differ in size.
    """
    first = envs[0].action_space
    for name, env in zip(names, envs, strict=True):
        vectors = isinstance(first, spaces.Box) or isinstance(env.action_space, spaces.Box)
        if vectors and env.action_space != first:
            raise ConfigError(
                f"--env-name: tasks of one run need choices, or equal action vectors; {names[0]} has {first}, {name} "
                f"has {env.action_space}; train them in different runs"
            )
    if isinstance(first, spaces.Box):
        return first, None
    count = max(env.n_actions for env in envs)
    given = [
        {env.action_names[index] for env in envs if env.action_names and index < env.n_actions}
        for index in range(count)
    ]
    return spaces.Discrete(count), [own.pop() if len(own) == 1 else str(index) for index, own in enumerate(given)]
