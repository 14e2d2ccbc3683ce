"""NeuroGym tasks as well-behaved Gymnasium environments.

NeuroGym 2.3.1 ignores `reset(seed=)`, never ends an episode, skips the first observation of the first trial, and
returns the next trial's conditions with the last trial's reward. `NeuroGymWrapper` corrects this at little cost per
step: ground truth, period and decision flag of every step and the conditions are computed once per trial.

This is the only module that imports neurogym, and it does so when it builds a task: the import takes seconds.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from mpn_rl.contracts import Conditions, Info
from mpn_rl.options import ConfigError, nearest

if TYPE_CHECKING:
    from neurogym.core import TrialEnv
    from neurogym.utils.ngym_random import TruncExp
    from neurogym.utils.scheduler import BaseSchedule

LIST_COMMAND = "python main.py train-neurogym --list-envs"

# Mean `performance` over completed trials with default arguments. The ideal observer sums the noisy evidence of the
# attended channel over the stimulus (simulated, 4,000-6,000 trials); guessing chooses at random at the decision.
REFERENCES: dict[str, dict[str, float]] = {
    "PerceptualDecisionMaking-v0": {"guessing": 0.50, "ideal": 0.899},
    "ContextDecisionMaking-v0": {"guessing": 0.50, "ideal": 0.937},
    "DelayMatchSample-v0": {"guessing": 0.50, "ideal": 1.00},
}

# AnnubesEnv has no default session: here two equally likely modalities, and catch trials with probability 0.5.
DEFAULT_ARGS: dict[str, dict[str, object]] = {
    "AnnubesEnv-v0": {"session": {"v": 0.5, "a": 0.5}, "catch_prob": 0.5},
}

# The periods in which a task scores the choice, where that is not the period "decision".
_RESPONSE_PERIODS: dict[str, tuple[str, ...]] = {
    "AnnubesEnv": ("stimulus",),
    "Bandit": ("choice",),
    "DawTwoStep": ("choice",),
    "DelayMatchCategory": ("test",),
    "DelayMatchSampleDistractor1D": ("test1", "test2", "test3"),
    "DualDelayMatchSample": ("test1", "test2"),
    "MotorTiming": ("production",),
    "OneTwoThreeGo": ("interval3", "response"),
    "Reaching1D": ("reach",),
    "Reaching1DWithSelfDistraction": ("reach",),
    "ReadySetGo": ("production",),
}
# Tasks without a clock of periods, in steps.
_UNTIMED: dict[str, dict[str, tuple[int, int]]] = {
    "Bandit": {"choice": (0, 1)},
    "DawTwoStep": {"choice": (0, 1), "outcome": (1, 2)},
    "Null": {},
}
# PostDecisionWager rewards trial["ground_truth"], but its gt is one higher, which earns nothing; gt of the reaching
# tasks is an angle in radians, truncated to an integer.
_MEANINGLESS_GT = {"PostDecisionWager", "Reaching1D", "Reaching1DWithSelfDistraction"}
_NEVER_REWARDED = {"Null", "SpatialSuppressMotion", "ToneDetection"}
_LONGEST_ARRAY = 16  # a condition with more entries than this is a stimulus, not a label
# Gymnasium's own wrappers are slow, require their own reset, and emit a warning at each of NeuroGym's attribute
# look-ups. They are removed, and NeuroGymWrapper does their work.
_REMOVED_WRAPPERS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)


class NeuroGymWrapper(gymnasium.Wrapper):
    """One NeuroGym task with seeds, a time limit, correct first observations and an info with fixed names.

    After `reset(seed=s)` everything is a function of s and the actions. Without a seed the environment's random
    streams continue. Either way all state of earlier episodes is reset, and tasks with blocks of trials start in a
    random block. Differs from NeuroGym, whose first block is always the same: an agent with short episodes would
    never see another.

    In every task the first observation is the trial's ob[0] and the first trial has its full length, because `reset`
    takes no step. DawTwoStep stores no observations; its first one is (1, 0, 0), which it shows before each first
    choice. Where a yang19 schedule switches tasks between trials, the new trial starts with its own ob[0];
    NeuroGym shows an observation of the task that has just ended.

    `step` always returns terminated = False, and truncated = True at max_episode_steps. Its info has the entries
        new_trial        bool, this step ended a trial
        trial_number     int, number of the trial that this step belongs to, from 0 in each episode
        gt               int, the right action for the observation acted upon; -1 where the task has none
        period           str, the task period of that observation; the shortest where periods overlap
        decision         bool, that observation lies in the period in which the task scores the choice
        fixation_break   bool, a nonzero action was punished outside the decision, at a step whose gt is 0 or -1
    and, at new_trial steps,
        performance      float, the task's own score of the trial that ended
        trial            dict, conditions of the trial that ended, numbers and strings only
        aborted          bool, the trial ended early, before its decision

    Args:
        env: a NeuroGym task, or wrappers around one or several.
        max_episode_steps: steps after which an episode is truncated, >= 1; None: no limit.
    Attributes:
        obs_dim: D, size of the flat observation.
        n_actions: number of actions.
        conditions: of the current trial, numbers and strings by name.
        trial_steps: full length of the current trial in steps.
    Raises: ConfigError for max_episode_steps < 1.
    """

    action_names = None

    def __init__(self, env: gymnasium.Env, max_episode_steps: int | None = None):
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ConfigError(f"--max-episode-steps must be at least 1, got {max_episode_steps}")
        from neurogym.core import TrialEnv, TrialWrapper
        from neurogym.utils.scheduler import BaseSchedule
        from neurogym.wrappers.block import ScheduleEnvs

        stack = _stack(env)
        super().__init__(stack[0])
        self.max_episode_steps = max_episode_steps
        self._limit = math.inf if max_episode_steps is None else max_episode_steps
        self.obs_dim = gymnasium.spaces.flatdim(stack[0].observation_space)
        self.n_actions = gymnasium.spaces.flatdim(stack[0].action_space)
        self._env_step = stack[0].step
        self.observation_space, self._flatten = observation_flattener(stack[0].observation_space)
        self._tasks = [part for part in stack if isinstance(part, TrialEnv)]
        self._schedules = [part for part in stack if isinstance(part, BaseSchedule)]
        self._switches = [part for part in stack if isinstance(part, ScheduleEnvs)]
        # ReactionTime rewrites a trial's periods and ground truth at its first step.
        self._rewrites = any(type(part).__name__ == "ReactionTime" for part in stack)
        self._trial_source = next(part for part in stack if isinstance(part, TrialEnv | TrialWrapper))
        for task in self._tasks:
            task.set_top(self)  # so that the task's step() calls our new_trial()
            if type(task).__name__ == "AnnubesEnv":  # a set, whose order differs between processes
                task.modalities = sorted(task.modalities)
        self._random = _random_holders(stack)
        self._task: TrialEnv = self._tasks[0]
        self.conditions: Conditions = {}
        self._index = self._abort_before = 0
        self.reset()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        """Start an episode with a new trial, without taking a step. Returns: observation (D,), an empty info."""
        if seed is not None:
            self._seed(seed)
        self._reset_parts()
        self._elapsed = 0
        self._trial_number = 0
        self.new_trial()
        self._task.performance = 0  # as NeuroGym's step() does: a score that new_trial() sets does not count
        return self._flatten(self._first_observation()), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        action = int(action)
        task, index = self._task, self._index
        gt, period, decision = self._layout[index]
        observation, reward, _, _, inner = self._env_step(action)
        reward = float(reward)
        self._elapsed += 1
        info: Info = {
            "new_trial": False,
            "trial_number": self._trial_number,
            "gt": gt,
            "period": period,
            "decision": decision,
            "fixation_break": action != 0 and reward < 0.0 and gt < 1 and not decision,
        }
        if inner["new_trial"]:
            self._trial_number += 1
            info["new_trial"] = True
            info["performance"] = float(inner["performance"])
            info["trial"] = self._ended_conditions
            info["aborted"] = index < self._ended_abort_before
            if self._task is not task:
                observation = self._first_observation()
        else:
            self._index = index + 1
            if self._rewrites and index == 0:
                self._lay_out()
        return self._flatten(observation), reward, False, self._elapsed >= self._limit, info

    def new_trial(self, **kwargs: object) -> dict[str, object]:
        """Start a trial. NeuroGym calls this at the end of each trial, before step() returns.

        Args: kwargs: passed on to the task.
        Returns: the trial as the task describes it.
        """
        self._ended_conditions = self.conditions
        self._ended_abort_before = self._abort_before
        for task in self._tasks:  # remove periods that only the last trial has, such as a wager
            task.start_t.clear()
            task.end_t.clear()
        trial = self._trial_source.new_trial(**kwargs)
        self._task = self.env.unwrapped
        self._index = 0
        self.conditions = _conditions(self._task, trial)
        self._lay_out()
        return trial

    @property
    def dt_ms(self) -> float:
        """Duration of a step in ms."""
        return self._task.dt

    @property
    def periods(self) -> dict[str, tuple[int, int]]:
        """Steps [start, end) of each period of the current trial; periods may overlap."""
        task, steps = self._task, self.trial_steps
        untimed = _UNTIMED.get(type(task).__name__)
        if untimed is not None:
            return dict(untimed)

        def step_at(t: float) -> int:  # the first step at or after t (ms); the tolerance is for dt = 8.3
            return min(math.ceil(t / task.dt - 1e-6), steps)

        return {name: (step_at(task.start_t[name]), step_at(end_t)) for name, end_t in task.end_t.items()}

    @property
    def channel_names(self) -> list[str]:
        """A name for each entry of the observation: the task's, such as "stimulus 1", or else obs_0, obs_1, ..."""
        names = [f"obs_{index}" for index in range(self.obs_dim)]
        for name, places in vars(self.env.observation_space).get("name", {}).items():
            indices = np.atleast_1d(np.asarray(places, dtype=int)).tolist()
            for order, index in enumerate(indices, start=1):
                names[index] = name if len(indices) == 1 else f"{name} {order}"
        return names

    @property
    def at_decision(self) -> bool:
        """Whether the current observation lies in the period in which the task scores the choice."""
        return self._layout[self._index][2]

    @property
    def has_ground_truth(self) -> bool:
        """Whether the task defines the right actions of the current trial."""
        return self._layout[0][0] >= 0

    def ground_truth_action(self) -> int:
        """The task's own right action for the current observation; -1 where the task has none."""
        return self._layout[self._index][0]

    @property
    def scripted(self) -> dict[str, Callable[[NeuroGymWrapper, np.random.Generator], int]]:
        """The reference policies by name; without ground_truth where the task has none."""
        policies = dict(REFERENCE_POLICIES)
        if not self.has_ground_truth:
            del policies["ground_truth"]
        return policies

    def _lay_out(self) -> None:
        """Compute ground truth, period and decision flag of each step of the current trial."""
        task = self._task
        name = type(task).__name__
        untimed = _UNTIMED.get(name)
        steps = max(end for _, end in untimed.values()) if untimed else int(task.tmax / task.dt + 1e-6)
        self.trial_steps = steps
        periods = self.periods
        names, decisions = [""] * steps, [False] * steps
        for period, (start, end) in sorted(periods.items(), key=lambda item: item[1][0] - item[1][1]):
            names[start:end] = [period] * (end - start)  # longest first, so that the shortest one stays
        responses = _RESPONSE_PERIODS.get(name, ("decision",))
        spans = [span for period, span in periods.items() if period in responses]
        for start, end in spans:
            decisions[start:end] = [True] * (end - start)
        first_decision = min((start for start, end in spans if end > start), default=steps)
        self._abort_before = min(first_decision, steps - 1)  # a trial that ends before this step is aborted
        self._layout = list(zip(self._ground_truths(name, steps), names, decisions, strict=True))

    def _ground_truths(self, name: str, steps: int) -> list[int]:
        """The right action at each step of the current trial, -1 where there is none."""
        task = self._task
        if name == "DawTwoStep":  # the better first choice, then fixation
            return [int(task.ground_truth), 0]
        discrete = isinstance(task.action_space, gymnasium.spaces.Discrete)
        if not discrete or not task._gt_built or name in _MEANINGLESS_GT:
            return [-1] * steps
        return task.gt[:steps].tolist()

    def _first_observation(self) -> object:
        """The current trial's first observation, in the task's own observation space."""
        task = self._task
        if type(task).__name__ == "DawTwoStep":
            return np.array([1.0, 0.0, 0.0], dtype=np.float32)
        if "ob" not in vars(task):  # the task stores no observations
            return np.zeros(task.observation_space.shape, dtype=np.float32)
        return task.post_step(task.ob[0], 0.0, False, False, {})[0]

    def _seed(self, seed: int) -> None:
        """Seed every random generator of the stack with a number of its own, in place, which takes microseconds."""
        words = np.random.SeedSequence(seed).generate_state(len(self._random) + len(self._tasks)).tolist()
        for holder in self._random:
            holder.rng.seed(words.pop())
        for task in self._tasks:
            if type(task).__name__ == "AnnubesEnv":  # it has a second generator
                task._rng = np.random.default_rng(words.pop())

    def _reset_parts(self) -> None:
        """Reset the state that tasks keep between trials; start blocks and schedules at random places."""
        from neurogym.utils.scheduler import RandomBlockSchedule, SequentialBlockSchedule

        for task in self._tasks:
            task.t = task.t_ind = task.num_tr = task.performance = 0
            name = type(task).__name__
            if name == "HierarchicalReasoning":
                task.rule = int(task.rng.randint(2))
                task.new_block()
                task.chose_correct_rule = False
            elif name == "DawTwoStep":
                task.state1_high_reward = bool(task.rng.randint(2))
            elif name == "AnnubesEnv":
                task.sequential_count = dict.fromkeys([*task.modalities, "catch"], 0)
        for schedule in self._schedules:
            schedule.i = int(schedule.rng.randint(schedule.n))
            if isinstance(schedule, SequentialBlockSchedule | RandomBlockSchedule):
                schedule.count = int(schedule.rng.randint(schedule.block_lens[schedule.i]))
        for switch in self._switches:
            switch.next_i_env = switch.schedule()


def _stack(env: gymnasium.Env) -> list[gymnasium.Env | BaseSchedule]:
    """Wrappers, tasks and schedules of an environment, outermost first; `_REMOVED_WRAPPERS` are taken out."""
    while isinstance(env, _REMOVED_WRAPPERS):
        env = env.env
    stack = [env]
    for part in stack:  # the loop also visits the parts that it appends
        inner = vars(part)
        while isinstance(inner.get("env"), _REMOVED_WRAPPERS):
            part.env = inner["env"].env
        nested = [inner.get("env"), *inner.get("envs", ()), inner.get("schedule")]
        stack += [new for new in nested if new is not None and all(new is not old for old in stack)]
    return stack


def _random_holders(stack: list[gymnasium.Env | BaseSchedule]) -> list[TrialEnv | BaseSchedule | TruncExp]:
    """The parts that own a random generator `rng`: tasks, schedules, and distributions of durations."""
    from neurogym.core import TrialEnv
    from neurogym.utils.ngym_random import TruncExp

    task_rng = next(part.rng for part in stack if isinstance(part, TrialEnv))
    holders: list[TrialEnv | BaseSchedule | TruncExp] = []
    for part in stack:
        if isinstance(part, gymnasium.Wrapper):
            part.rng = task_rng  # RandomGroundTruth draws from its task's generator; this look-up does not warn
        timing = part.timing.values() if isinstance(part, TrialEnv) else ()
        for holder in [part, *(duration for duration in timing if isinstance(duration, TruncExp))]:
            if all(holder.rng is not other.rng for other in holders):
                holders.append(holder)
    return holders


def _conditions(task: TrialEnv, trial: dict | None) -> Conditions:
    """A trial's conditions as numbers and strings: arrays as name_0, ..., dicts as name_key, lists of words as a+b."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in (trial or {}).items():
        if name == "stim_values":  # AnnubesEnv omits the modalities that are not shown
            value = {modality: value.get(modality, 0.0) for modality in task.modalities}
        elif name == "transition":
            value = dict(enumerate(value[1:], start=1))  # DawTwoStep: by action; it never sets entry 0
        if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
            value = "+".join(value)
        if isinstance(value, np.ndarray):
            value = value.ravel().tolist()
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        entries = {f"{name}_{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        if len(entries) <= _LONGEST_ARRAY:
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in entries.items()}
            flat |= {k: v for k, v in plain.items() if isinstance(v, bool | int | float | str)}
    return flat


def observation_flattener(space: gymnasium.Space) -> tuple[gymnasium.spaces.Box, Callable[[object], np.ndarray]]:
    """The flat float32 version of an observation space.

    Box is ravelled, Discrete becomes one-hot, Dict is concatenated in the order of its keys.

    Returns: the flat space (D,), and the function that flattens an observation.
    Raises: ConfigError for a space without a fixed size (Sequence, Graph).
    """
    flat = gymnasium.spaces.flatten_space(space)
    if not isinstance(flat, gymnasium.spaces.Box):
        raise ConfigError(f"observations must have a fixed size (Box, Discrete, Dict of these), got {space}")
    if isinstance(space, gymnasium.spaces.Box):
        to_flat: Callable[[object], np.ndarray] = _flat_float32
    else:

        def to_flat(observation: object) -> np.ndarray:
            return np.asarray(gymnasium.spaces.flatten(space, observation), dtype=np.float32)

    return gymnasium.spaces.Box(-np.inf, np.inf, flat.shape, np.float32), to_flat


def _flat_float32(observation: object) -> np.ndarray:
    if type(observation) is np.ndarray and observation.ndim == 1 and observation.dtype == np.float32:
        return observation
    return np.asarray(observation, dtype=np.float32).ravel()


class TaskInfo(NamedTuple):
    """A row of `--list-envs`."""

    name: str
    obs_dim: int
    n_actions: int
    dt_ms: float
    mean_trial_steps: int  # mean full length of a trial in steps
    trainable: bool
    why_not: str  # the reason where the task is not trainable


@functools.cache
def task_names() -> tuple[str, ...]:
    """Names of all NeuroGym tasks registered in this installation (imports neurogym)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the import itself
        registration = importlib.import_module("neurogym.envs.registration")
    return tuple(registration.all_envs(psychopy=True, contrib=True, collections=True))


def make_neurogym(
    env_name: str, env_args: dict[str, object] | None = None, max_episode_steps: int | None = None
) -> NeuroGymWrapper:
    """Build a NeuroGym task that an agent with discrete actions can learn.

    Args:
        env_name: NeuroGym id.
        env_args: arguments of the task's constructor; they override `DEFAULT_ARGS`.
        max_episode_steps: time limit; None: no limit.
    Raises: ConfigError for an unknown task or argument, a value that the task refuses, continuous actions, or a
        reward that is always zero.
    """
    if env_name not in task_names():
        if env_name in gymnasium.registry:
            raise ConfigError(
                f"--env-name must be a NeuroGym task, got the Gymnasium task {env_name!r}: "
                f"use python main.py train --env-name {env_name}"
            )
        close = nearest(env_name, task_names()) or ";"
        raise ConfigError(f"--env-name must be a NeuroGym task, got {env_name!r}{close} list them with: {LIST_COMMAND}")
    env = _build(env_name, dict(env_args or {}), max_episode_steps)
    why_not = _why_not(env)
    if why_not:
        raise ConfigError(f"--env-name {env_name} cannot be trained: {why_not}; list tasks with: {LIST_COMMAND}")
    return env


def list_tasks() -> list[TaskInfo]:
    """Every registered NeuroGym task with its dimensions, and why it cannot be trained if it cannot."""
    rows = []
    for name in task_names():
        try:
            env = _build(name, {}, None)
        except ConfigError as error:  # for example, an optional dependency is missing
            rows.append(TaskInfo(name, 0, 0, 0.0, 0, False, str(error)))
            continue
        env.reset(seed=0)
        lengths = [env.trial_steps]
        while len(lengths) < 20:
            env.new_trial()
            lengths.append(env.trial_steps)
        steps, why_not = round(float(np.mean(lengths))), _why_not(env)
        rows.append(TaskInfo(name, env.obs_dim, env.n_actions, env.dt_ms, steps, not why_not, why_not))
    return rows


def _build(env_name: str, env_args: dict[str, object], max_episode_steps: int | None) -> NeuroGymWrapper:
    module, _, attribute = str(gymnasium.spec(env_name).entry_point).partition(":")
    with warnings.catch_warnings():
        # NeuroGym causes these warnings: it uses look-ups that Gymnasium deprecates, and declares no render modes.
        warnings.filterwarnings("ignore", message=r".*(to get variables from other wrappers|render_modes)")
        try:
            constructor = getattr(importlib.import_module(module), attribute)
            if env_args:
                _check_arguments(env_name, constructor, env_args)
            env = constructor(**{**DEFAULT_ARGS.get(env_name, {}), **env_args})
            return NeuroGymWrapper(env, max_episode_steps)
        except ConfigError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            given = f" with --env-arg {env_args}" if env_args else ""
            raise ConfigError(f"--env-name {env_name} cannot be built{given}: {reason}") from error


def _check_arguments(env_name: str, constructor: Callable, env_args: dict[str, object]) -> None:
    """Raise ConfigError for an argument that the task's constructor does not have."""
    task = constructor
    if not inspect.isclass(constructor):  # a function that passes its arguments on to a task of a collection
        constructor = type(constructor().unwrapped)
    accepted = list(inspect.signature(constructor.__init__).parameters)[1:]
    unknown = sorted(set(env_args) - set(accepted))
    if unknown:
        raise ConfigError(
            f"--env-arg of {env_name} must be one of {', '.join(accepted)}, "
            f"got {unknown[0]!r}{nearest(unknown[0], accepted)}"
        )
    for name in {"timing", "rewards"} & env_args.keys():  # the task adds them to its own and reads those it knows
        others = {**DEFAULT_ARGS.get(env_name, {}), **env_args}
        del others[name]
        known, given = vars(task(**others).unwrapped).get(name, {}), env_args[name]
        if not isinstance(given, dict):
            raise ConfigError(f'--env-arg {name} must be a dict, such as {{"{next(iter(known), "key")}": 1}}')
        idle = sorted(given.keys() - known.keys())
        if idle:
            raise ConfigError(
                f"--env-arg {name} of {env_name} must have keys among {', '.join(known) or 'none'}, "
                f"got {idle[0]!r}{nearest(idle[0], known)}"
            )


def _why_not(env: NeuroGymWrapper) -> str:
    """Why the task cannot be trained; empty where it can."""
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        return f"its {env.n_actions} actions are continuous, and a DQN needs discrete ones"
    if type(env.unwrapped).__name__ in _NEVER_REWARDED:
        return "its reward is always zero"
    return ""


def random_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> int:
    """A uniformly random action."""
    return int(rng.integers(env.n_actions))


def never_act_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> int:
    """Action 0, which is fixation in every task that has one."""
    return 0


def ground_truth_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> int:
    """The task's own right action; 0 where it has none."""
    return max(env.ground_truth_action(), 0)


REFERENCE_POLICIES: dict[str, Callable[[NeuroGymWrapper, np.random.Generator], int]] = {
    "random": random_policy,
    "never_act": never_act_policy,
    "ground_truth": ground_truth_policy,
}


def normalised_score(agent: float, random: float, ground_truth: float) -> float:
    """An agent's return relative to the random (0) and the ground-truth policy (1).

        score = (agent - random) / (ground_truth - random)

    Unlike `performance`, it also credits trials in which the right answer is to withhold the action.

    Args:
        agent: mean return per trial.
        random: of the random policy on the same seeds.
        ground_truth: of the ground-truth policy on the same seeds; the task must have a ground truth.
    Returns: the score; nan where the two references are within 1e-6 of each other.
    """
    span = ground_truth - random
    return (agent - random) / span if abs(span) > 1e-6 else math.nan
