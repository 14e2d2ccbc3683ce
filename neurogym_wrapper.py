"""NeuroGym tasks as honest Gymnasium environments.

NeuroGym 2.3.1 ignores `reset(seed=)`, never ends an episode, swallows the first observation of the first
trial, and hands out the next trial's conditions with the last trial's reward. `NeuroGymWrapper` makes these
right without slowing the step down: everything that is fixed when a trial begins (ground truth, period and
decision flag of every step, conditions) is laid out once per trial, and a step only looks it up.

This is the only module that imports neurogym, and only when a task is made: the import takes seconds.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from mpn_rl.options import ConfigError, nearest

LIST_COMMAND = "python main.py train-neurogym --list-envs"

# Mean `performance` over completed trials, default arguments. The ideal observer sums the noisy evidence of
# the attended channel over the stimulus (simulated, 4,000-6,000 trials); guessing is a coin at the decision.
REFERENCES: dict[str, dict[str, float]] = {
    "PerceptualDecisionMaking-v0": {"guessing": 0.50, "ideal": 0.899},
    "ContextDecisionMaking-v0": {"guessing": 0.50, "ideal": 0.937},
    "DelayMatchSample-v0": {"guessing": 0.50, "ideal": 1.00},
}

# AnnubesEnv has no default session: two modalities, equally likely, and a catch trial every other time.
DEFAULT_ARGS: dict[str, dict[str, Any]] = {
    "AnnubesEnv-v0": {"session": {"v": 0.5, "a": 0.5}, "catch_prob": 0.5},
}

# Where a task scores the choice, if not in the period that is called "decision".
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
# PostDecisionWager pays trial["ground_truth"], but its gt is one higher, which earns nothing; the reaching
# tasks' gt is an angle in radians, cut to an integer.
_MEANINGLESS_GT = {"PostDecisionWager", "Reaching1D", "Reaching1DWithSelfDistraction"}
_NEVER_REWARDED = {"Null", "SpatialSuppressMotion", "ToneDetection"}
_LONGEST_ARRAY = 16  # a condition with more entries than this is a stimulus, not a label
# Gymnasium's own layers cost time, insist on their own reset, and turn NeuroGym's attribute look-ups into a
# flood of warnings; this wrapper does their work.
_CUT_OUT = (OrderEnforcing, PassiveEnvChecker, TimeLimit)


class NeuroGymWrapper(gymnasium.Wrapper):
    """One NeuroGym task with seeds, a time limit, true first observations and an info that names things.

    `reset(seed=s)` makes everything that follows a function of s and the actions. Without a seed the episode
    goes on from the environment's own random stream. Either way an episode starts afresh, and tasks with
    blocks of trials start in a block drawn from that stream. Differs from NeuroGym, whose first block is
    always the same: an agent with short episodes would never see another.

    The first observation is the trial's ob[0], and the first trial has its full length, in every task: no
    hidden step is taken. DawTwoStep keeps no observations; before a first choice it shows (1, 0, 0), so that
    comes first. A trial that a yang19 schedule moves to its other branch also opens with its own ob[0];
    NeuroGym shows the branch that has just ended.

    `step` returns terminated = False always and truncated at max_episode_steps. Its info holds
        new_trial        bool, this step ended a trial
        trial_number     int, 0-based in the episode, of the trial that this step belongs to
        gt               int, the right action for the observation acted upon; -1 where the task has none
        period           str, the task period of that observation; the shortest where periods overlap
        decision         bool, that observation lies in the period in which the task scores the choice
        fixation_break   bool, an action was punished outside the decision, where gt asks for none
    and at new_trial steps also
        performance      float, the task's own score of the trial that ended
        trial            dict, conditions of the trial that ended, numbers and strings only
        aborted          bool, that trial ended early without having reached its decision

    Args:
        env: a NeuroGym task, or wrappers around one or several.
        max_episode_steps: steps after which an episode is truncated, >= 1; None for no limit.
    Attributes:
        obs_dim, n_actions: size of the flat observation; number of actions.
        dt_ms: duration of a step in ms.
        conditions: conditions of the current trial, flat: {name: number or str}.
        trial_steps: full length of the current trial in steps.
    """

    def __init__(self, env: gymnasium.Env, max_episode_steps: int | None = None):
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ConfigError(f"--max-episode-steps must be at least 1, got {max_episode_steps}")
        stack = _stack(env)
        super().__init__(stack[0])
        self.max_episode_steps = max_episode_steps
        self._limit = math.inf if max_episode_steps is None else max_episode_steps
        self.obs_dim = gymnasium.spaces.flatdim(stack[0].observation_space)
        self.n_actions = gymnasium.spaces.flatdim(stack[0].action_space)
        self._env_step = stack[0].step
        self.observation_space, self._flatten = observation_flattener(stack[0].observation_space)
        self._tasks = [part for part in stack if hasattr(type(part), "set_top")]
        self._schedules = [part for part in stack if "total_count" in vars(part)]
        self._branching = [part for part in stack if "next_i_env" in vars(part)]
        # ReactionTime rewrites a trial's periods and ground truth at its first step.
        self._rewrites = any(type(part).__name__ == "ReactionTime" for part in stack)
        self._trial_source = next(part for part in stack if hasattr(type(part), "new_trial"))
        for task in self._tasks:
            task.set_top(self)  # NeuroGym calls top.new_trial() inside step(): ours, below
            if type(task).__name__ == "AnnubesEnv":  # a set of names has another order in each process
                task.modalities = sorted(task.modalities)
        self._random = _random_holders(stack)
        self._task: Any = self._tasks[0]
        self.conditions: dict[str, Any] = {}
        self._index = self._abort_before = 0
        self.reset()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode with a new trial; no hidden step is taken. The info is empty."""
        if seed is not None:
            self._seed(seed)
        self._start_afresh()
        self._elapsed = 0
        self._trial_number = 0
        self.new_trial()
        self._task.performance = 0  # as step() does after new_trial(): a score set there never counts
        return self._flatten(self._first_observation()), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = int(action)
        task, index = self._task, self._index
        gt, period, decision = self._layout[index]
        observation, reward, _, _, inner = self._env_step(action)
        reward = float(reward)
        self._elapsed += 1
        info = {
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

    def new_trial(self, **kwargs: Any) -> dict:
        """Start a trial; NeuroGym calls this at the end of each trial, before step() returns."""
        self._ended_conditions = self.conditions
        self._ended_abort_before = self._abort_before
        for task in self._tasks:  # a wager trial's periods would linger in the next trial, which has none
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
        return self._task.dt

    @property
    def periods(self) -> dict[str, tuple[int, int]]:
        """Steps [start, end) of each period of the current trial; periods may overlap."""
        task, steps = self._task, self.trial_steps
        untimed = _UNTIMED.get(type(task).__name__)
        if untimed is not None:
            return dict(untimed)

        def step_at(t: float) -> int:  # the first step at or after t, as in_period; the slack is for dt 8.3
            return min(math.ceil(t / task.dt - 1e-6), steps)

        return {name: (step_at(task.start_t[name]), step_at(end_t)) for name, end_t in task.end_t.items()}

    @property
    def channel_names(self) -> list[str]:
        """A name per observation entry, as far as the task tells: fixation, stimulus 1, stimulus 2, ..."""
        names = [f"obs_{index}" for index in range(self.obs_dim)]
        for name, places in (getattr(self.env.observation_space, "name", None) or {}).items():
            indices = np.atleast_1d(np.asarray(places, dtype=int)).tolist()
            for order, index in enumerate(indices, start=1):
                names[index] = name if len(indices) == 1 else f"{name} {order}"
        return names

    @property
    def at_decision(self) -> bool:
        """Whether the observation shown lies in the period in which the task scores the choice."""
        return self._layout[self._index][2]

    @property
    def has_ground_truth(self) -> bool:
        """Whether the current trial knows its right actions."""
        return self._layout[0][0] >= 0

    def ground_truth_action(self) -> int:
        """The task's own right action for the observation shown; -1 where the task has none."""
        return self._layout[self._index][0]

    def _lay_out(self) -> None:
        """Ground truth, period name and decision flag of each step of the current trial."""
        task = self._task
        name = type(task).__name__
        untimed = _UNTIMED.get(name)
        steps = max(end for _, end in untimed.values()) if untimed else int(task.tmax / task.dt + 1e-6)
        self.trial_steps = steps
        periods = self.periods
        names, decisions = [""] * steps, [False] * steps
        for period, (start, end) in sorted(periods.items(), key=lambda item: item[1][0] - item[1][1]):
            names[start:end] = [period] * (end - start)  # longest first, so that the shortest shows
        responses = _RESPONSE_PERIODS.get(name, ("decision",))
        spans = [span for period, span in periods.items() if period in responses]
        for start, end in spans:
            decisions[start:end] = [True] * (end - start)
        first_decision = min((start for start, end in spans if end > start), default=steps)
        self._abort_before = min(first_decision, steps - 1)  # ending at an earlier step is an abort
        self._layout = list(zip(self._ground_truths(name, steps), names, decisions, strict=True))

    def _ground_truths(self, name: str, steps: int) -> list[int]:
        task = self._task
        if name == "DawTwoStep":  # the better first choice, then fixate
            return [int(task.ground_truth), 0]
        discrete = isinstance(task.action_space, gymnasium.spaces.Discrete)
        if not discrete or not task._gt_built or name in _MEANINGLESS_GT:
            return [-1] * steps
        return task.gt[:steps].tolist()

    def _first_observation(self) -> Any:
        task = self._task
        if type(task).__name__ == "DawTwoStep":
            return np.array([1.0, 0.0, 0.0], dtype=np.float32)
        if not hasattr(task, "ob"):
            return np.zeros(task.observation_space.shape, dtype=np.float32)
        return task.post_step(task.ob[0], 0.0, False, False, {})[0]

    def _seed(self, seed: int) -> None:
        """Seed every random stream of the stack, each with a word of its own, in place (microseconds)."""
        words = np.random.SeedSequence(seed).generate_state(len(self._random) + len(self._tasks)).tolist()
        for holder in self._random:
            holder.rng.seed(words.pop())
        for task in self._tasks:
            if hasattr(task, "_rng"):  # AnnubesEnv keeps a second generator
                task._rng = np.random.default_rng(words.pop())

    def _start_afresh(self) -> None:
        """Forget what outlives a trial; start blocks and schedules anywhere, drawn from the random stream."""
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
            if hasattr(schedule, "block_lens"):
                schedule.count = int(schedule.rng.randint(schedule.block_lens[schedule.i]))
        for branching in self._branching:
            branching.next_i_env = branching.schedule()


def _stack(env: gymnasium.Env) -> list[Any]:
    """Wrappers, branches, tasks and schedules of an environment, outermost first, without _CUT_OUT."""
    while isinstance(env, _CUT_OUT):
        env = env.env
    found: list[Any] = [env]
    for part in found:  # grows while it is walked
        inner = vars(part)
        while isinstance(inner.get("env"), _CUT_OUT):
            part.env = inner["env"].env
        nested = [inner.get("env"), *inner.get("envs", ()), inner.get("schedule")]
        found += [new for new in nested if new is not None and all(new is not old for old in found)]
    return found


def _random_holders(stack: list[Any]) -> list[Any]:
    """What owns a random stream `rng`: tasks, schedules, and distributions of durations (TruncExp)."""
    task_rng = next(part.rng for part in stack if hasattr(type(part), "set_top"))
    holders: list[Any] = []
    for part in stack:
        if isinstance(part, gymnasium.Wrapper):  # RandomGroundTruth draws from its task's stream:
            part.rng = task_rng  # spare it a look-up that warns
        for holder in [part, *vars(part).get("timing", {}).values()]:
            rng = getattr(holder, "rng", None)
            if isinstance(rng, np.random.RandomState) and all(rng is not other.rng for other in holders):
                holders.append(holder)
    return holders


def _conditions(task: Any, trial: dict | None) -> dict[str, Any]:
    """A trial's conditions as numbers and strings: arrays as name_0.., dicts as name_key, words with +."""
    flat: dict[str, Any] = {}
    for name, value in (trial or {}).items():
        if name == "stim_values":  # AnnubesEnv names only the modalities shown; the rest are at 0
            value = {modality: value.get(modality, 0.0) for modality in task.modalities}
        elif name == "transition":
            value = dict(enumerate(value[1:], start=1))  # DawTwoStep: by action; no entry for 0 is ever set
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


def observation_flattener(space: gymnasium.Space) -> tuple[gymnasium.spaces.Box, Callable[[Any], np.ndarray]]:
    """The flat float32 Box for an observation space, and the function that takes observations there.

    Box is ravelled, Discrete one-hot, Dict concatenated in the order of its keys.

    Raises:
        ConfigError: the space has no fixed size (Sequence, Graph).
    """
    flat = gymnasium.spaces.flatten_space(space)
    if not isinstance(flat, gymnasium.spaces.Box):
        raise ConfigError(f"observations must have a fixed size (Box, Discrete, Dict of these), got {space}")
    if isinstance(space, gymnasium.spaces.Box):
        to_flat: Callable[[Any], np.ndarray] = _flat_float32
    else:

        def to_flat(observation: Any) -> np.ndarray:
            return np.asarray(gymnasium.spaces.flatten(space, observation), dtype=np.float32)

    return gymnasium.spaces.Box(-np.inf, np.inf, flat.shape, np.float32), to_flat


def _flat_float32(observation: Any) -> np.ndarray:
    if type(observation) is np.ndarray and observation.ndim == 1 and observation.dtype == np.float32:
        return observation
    return np.asarray(observation, dtype=np.float32).ravel()


class TaskInfo(NamedTuple):
    """A row of `--list-envs`; trial_steps is the mean full length of a trial in steps of dt_ms."""

    name: str
    obs_dim: int
    n_actions: int
    dt_ms: float
    trial_steps: int
    trainable: bool
    why_not: str


@functools.cache
def task_names() -> tuple[str, ...]:
    """Names of all NeuroGym tasks registered in this installation (imports neurogym)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import's own noise
        registration = importlib.import_module("neurogym.envs.registration")
    return tuple(registration.all_envs(psychopy=True, contrib=True, collections=True))


def make_neurogym(
    env_name: str, env_args: dict[str, Any] | None = None, max_episode_steps: int | None = None
) -> NeuroGymWrapper:
    """Build a NeuroGym task that an agent with discrete actions can learn.

    env_args are arguments of the task's constructor, over DEFAULT_ARGS.

    Raises:
        ConfigError: an unknown task or argument, a value that the task refuses, continuous actions, or a
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
        except ConfigError as error:  # an optional dependency is missing, say
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


def _build(env_name: str, env_args: dict[str, Any], max_episode_steps: int | None) -> NeuroGymWrapper:
    module, _, attribute = str(gymnasium.spec(env_name).entry_point).partition(":")
    with warnings.catch_warnings():
        # Noise of NeuroGym's own making: look-ups that Gymnasium deprecates, and no render modes.
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


def _check_arguments(env_name: str, constructor: Callable, env_args: dict[str, Any]) -> None:
    """Refuse names that the task's constructor does not take; a collection's function passes its own on."""
    if not inspect.isclass(constructor):
        constructor = type(constructor().unwrapped)
    accepted = list(inspect.signature(constructor.__init__).parameters)[1:]
    unknown = sorted(set(env_args) - set(accepted))
    if unknown:
        raise ConfigError(
            f"--env-arg of {env_name} must be one of {', '.join(accepted)}, "
            f"got {unknown[0]!r}{nearest(unknown[0], accepted)}"
        )


def _why_not(env: NeuroGymWrapper) -> str:
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        return f"its {env.n_actions} actions are continuous, and a DQN needs discrete ones"
    if type(env.unwrapped).__name__ in _NEVER_REWARDED:
        return "its reward is always zero"
    return ""


def random_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> int:
    """Any action, each as likely."""
    return int(rng.integers(env.n_actions))


def never_act_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> int:
    """Action 0, which is fixation in every task that has one."""
    return 0


def ground_truth_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> int:
    """The task's own right action; 0 where the task has none (see NeuroGymWrapper.has_ground_truth)."""
    return max(env.ground_truth_action(), 0)


REFERENCE_POLICIES = {
    "random": random_policy,
    "never_act": never_act_policy,
    "ground_truth": ground_truth_policy,
}


def normalised_score(agent: float, random: float, ground_truth: float) -> float:
    """How far an agent is on the way from the random to the ground-truth policy.

        score = (agent - random) / (ground_truth - random)

    0 is the random policy and 1 the task's own answers, whatever the rewards are; unlike `performance`, it
    gives withholding its due. Pass a ground_truth only where the task has one.

    Args:
        agent, random, ground_truth: mean return per trial on the same seeds.
    Returns: the score; nan where the references are within 1e-6 of each other, so that nothing is measured.
    """
    span = ground_truth - random
    return (agent - random) / span if abs(span) > 1e-6 else math.nan
