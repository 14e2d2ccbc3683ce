"""NeuroGym tasks as Gymnasium environments that follow Gymnasium's rules.

NeuroGym 2.3.1 ignores `reset(seed=)`, never ends an episode, skips the first observation of the first trial, and
returns the next trial's conditions with the last trial's reward. `NeuroGymWrapper` corrects this at little cost per
step: ground truth, period and decision flag of every step and the conditions are computed once per trial. A user's own
task works like NeuroGym's tasks: `make_neurogym("my_task:MyTask")`, see docs/tasks.md.

This is the only module that imports neurogym, and it does so when it builds a task: the import takes seconds.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import math
import shlex
import sys
import warnings
from collections import deque
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from mpn_rl.config import COLLECTIONS
from mpn_rl.contracts import Action, Conditions, Info, SequenceArrays
from mpn_rl.options import PROGRAM, ConfigError, nearest
from mpn_rl.tasks.task_errors import TaskError, own_error
from mpn_rl.tasks.trusted_modules import import_task_module

if TYPE_CHECKING:
    from neurogym.core import TrialEnv
    from neurogym.utils.ngym_random import TruncExp
    from neurogym.utils.scheduler import BaseSchedule

LIST_COMMAND = "python main.py train-neurogym --list-envs"

# AnnubesEnv has no default session: here two equally likely modalities, and catch trials with probability 0.5.
DEFAULT_ARGS: dict[str, dict[str, object]] = {
    "AnnubesEnv-v0": {"session": {"v": 0.5, "a": 0.5}, "catch_prob": 0.5},
}

# The periods in which NeuroGym's tasks score the choice, where that is not the period "decision", by class.
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
_NEVER_REWARDED = {"Null", "ToneDetection"}
# Timed production: the reward is highest where the time since the end of this period equals trial["production"].
_TIMED_FROM = {"MotorTiming": "set", "ReadySetGo": "measure"}
_TRIED_STEPS = 1000  # steps in which the first two trials of a user's own task must end to be tried out
_LONGEST_ARRAY = 16  # a condition with more entries than this is a stimulus, not a label
# Gymnasium's own wrappers are slow, require their own reset, and emit a warning at each of NeuroGym's attribute
# look-ups. They are removed, and NeuroGymWrapper does their work.
_REMOVED_WRAPPERS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)


def _space_names(space: gymnasium.Space, names: list[str]) -> list[str]:
    """The names that a NeuroGym space gives to its entries, {"fixation": 0, "choice": [1, 2]}, put into `names`."""
    given = vars(space).get("name", {})
    for name, places in given.items() if isinstance(given, dict) else ():
        indices = np.atleast_1d(np.asarray(places, dtype=int)).tolist()
        for order, index in enumerate(indices, start=1):
            if 0 <= index < len(names):
                names[index] = str(name) if len(indices) == 1 else f"{name} {order}"
    return names


class NeuroGymWrapper(gymnasium.Wrapper):
    """One NeuroGym task with seeds, a time limit, correct first observations and an info with fixed names.

    After `reset(seed=s)` everything is a function of s and the actions. Without a seed the environment's random
    streams continue. In both cases all state of earlier episodes is reset, and tasks with blocks of trials start in a
    random block. Differs from NeuroGym, whose first block is always the same: an agent with short episodes would
    never see another.

    In every task the first observation is the trial's ob[0] and the first trial has its full length, because `reset`
    takes no step. DawTwoStep stores no observations; its first one is (1, 0, 0), which it shows before each first
    choice. Where a yang19 schedule switches tasks between trials, the new trial starts with its own ob[0];
    NeuroGym shows an observation of the task that has just ended.

    A user's own task may keep state between trials. At each reset its numbers, texts, arrays and containers of these
    return to the values from the constructor; then its `reset` runs, if it has one of its own. SpatialSuppressMotion
    never rewards, so the wrapper does: 1 - mean |action - ground truth| per step, and their mean as the performance.

    `step` returns terminated = False in NeuroGym's tasks, and truncated = True at max_episode_steps. Its info has
    these entries:

    - `new_trial`: bool, this step ended a trial.
    - `trial_number`: int, number of the trial that this step belongs to, from 0 in each episode.
    - `gt`: int, the correct action for the observation before this step; -1 if there is none or if it is a vector.
    - `period`: str, the task period of that observation; the shortest one if periods overlap.
    - `decision`: bool, that observation lies in the period in which the task scores the choice: "decision", or in a
      user's own task without a period of this name the last one.
    - `fixation_break`: bool, a nonzero action was punished outside the decision, at a step whose gt is 0 or -1.

    At `new_trial` steps, it also has:

    - `performance`: float, the task's own score of the trial that ended.
    - `trial`: dict, conditions of the trial that ended, numbers and strings only.
    - `aborted`: bool, the trial ended early, before its decision.

    Args:
        env: a NeuroGym task, or wrappers around one or several.
        max_episode_steps: steps after which an episode is truncated, >= 1; None: no limit.
    Attributes:
        obs_dim: D, size of the flat observation.
        n_actions: number of actions, or length of the action vector.
        conditions: of the current trial, numbers and strings by name.
        trial_steps: full length of the current trial in steps.
    Raises: ConfigError for max_episode_steps < 1.
    """

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
        self._discrete = isinstance(stack[0].action_space, gymnasium.spaces.Discrete)
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
            if _native(task) == "AnnubesEnv":  # a set, whose order differs between processes
                task.modalities = sorted(task.modalities)
        self._random = _random_holders(stack)
        self._own = [part for part in stack if not type(part).__module__.startswith("neurogym.")]
        self._fresh = [{name: value for name, value in vars(part).items() if _is_plain(value)} for part in self._own]
        self._fresh = copy.deepcopy(self._fresh)
        self._random_blocks = [part for part in stack if type(part).__name__ in ("SideBias", "TrialHistoryV2")]
        for part in self._random_blocks:
            part.choices = part.unwrapped.choices  # a look-up through the wrappers warns
        self._task: TrialEnv = self._tasks[0]
        self.conditions: Conditions = {}
        self._index = self._abort_before = self._elapsed = self._trial_number = 0
        self._closeness = 0.0  # sum over the trial of the wrapper's own reward
        self.reset()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        """Start an episode with a new trial, without taking a step. Returns: observation (D,), an empty info."""
        self._elapsed = self._trial_number = 0
        self._closeness = 0.0
        try:
            if seed is not None:
                self._seed(seed)
            self._reset_parts()
            self.new_trial()
            self._task.performance = 0  # as NeuroGym's step() does: a score that new_trial() sets does not count
            return self._checked(self._padded(self._first_observation())), {}
        except (MemoryError, ConfigError):
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        action = int(action) if self._discrete else np.asarray(action, np.float32)
        self._elapsed += 1
        try:
            return self._step(action)
        except (MemoryError, ConfigError):
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    def _step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        task, index = self._task, self._index
        gt, period, decision = self._layout[index]
        own_reward = self._own_reward(np.asarray(action)) if self._rewards_itself else None
        observation, reward, terminated, truncated, inner = self._env_step(action)
        reward = float(reward) if own_reward is None else own_reward
        if not math.isfinite(reward):
            raise TaskError(f"the task {self._name} gave the reward {reward} {self._when}")
        info: Info = {
            "new_trial": False,
            "trial_number": self._trial_number,
            "gt": gt,
            "period": period,
            "decision": decision,
            "fixation_break": self._discrete and action != 0 and reward < 0.0 and gt < 1 and not decision,
        }
        observation = self._checked(self._flatten(observation))
        if inner["new_trial"]:
            self._trial_number += 1
            info["new_trial"] = True
            info["performance"] = _number("performance", inner["performance"])
            info["trial"] = self._ended_conditions
            info["aborted"] = index < self._ended_abort_before
            if self._rewards_itself:
                info["performance"], self._closeness = self._closeness / (index + 1), 0.0
            if self._task is not task:
                observation = self._padded(self._first_observation(), observation)
        else:
            self._index = index + 1
            if self._rewrites and index == 0:
                self._lay_out()
        return observation, reward, bool(terminated), bool(truncated) or self._elapsed >= self._limit, info

    def _checked(self, observation: np.ndarray) -> np.ndarray:
        """The observation. Raises: TaskError where it has another size than its space, or is not finite."""
        if len(observation) != self.obs_dim:
            why = f"has {len(observation)} entries, its observation_space has {self.obs_dim}"
            raise TaskError(f"the observation of the task {self._name} {self._when} {why}")
        if not math.isfinite(np.vdot(observation, observation)):  # faster than np.isfinite; large values overflow
            bad = np.flatnonzero(~np.isfinite(observation))
            if len(bad):
                value = f"{observation[bad[0]]} in observation {bad[0]}"
                raise TaskError(f"the task {self._name} gave {value} {self._when}")
        return observation

    @property
    def _name(self) -> str:
        return type(self._task).__name__

    @property
    def _when(self) -> str:
        return f"at step {self._elapsed}" if self._elapsed else "at reset"

    def _failure(self, error: BaseException) -> TaskError:
        return TaskError(f"the task {self._name} fails {self._when}: {own_error(error)}")

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
        untimed = _UNTIMED.get(_native(task))
        if untimed is not None:
            return dict(untimed)

        def step_at(t: float) -> int:  # the first step at or after t (ms); the tolerance is for dt = 8.3
            return min(math.ceil(t / task.dt - 1e-6), steps)

        return {name: (step_at(task.start_t[name]), step_at(end_t)) for name, end_t in task.end_t.items()}

    @property
    def channel_names(self) -> list[str]:
        """A name for each entry of the observation: the task's, such as "stimulus 1", or else obs_0, obs_1, ...

        A yang19 task that shows its stimulus in one of two modalities, trial by trial, names the channels of both, as
        the yang19 tasks with two stimuli do: "stimulus_mod1 1", ..., "stimulus_mod2 16".
        """
        names = [f"obs_{index}" for index in range(self.obs_dim)]
        moved = [part for part in _stack(self.env) if type(part).__name__ == "_MultiModalityStimulus"]
        for part in moved:
            own = _space_names(part.observation_space, [f"obs_{index}" for index in range(self.obs_dim)])
            for index, name in enumerate(own):
                if not name.startswith("obs_"):
                    names[index] = name.replace("stimulus", f"stimulus_mod{part.modality + 1}")
        return names if moved else _space_names(self.env.observation_space, names)

    @property
    def action_names(self) -> list[str] | None:
        """A name for each choice: the task's, such as "choice 1", or else its number; None for action vectors."""
        return _space_names(self.env.action_space, [str(n) for n in range(self.n_actions)]) if self._discrete else None

    @property
    def at_decision(self) -> bool:
        """Whether the current observation lies in the period in which the task scores the choice."""
        return self._layout[self._index][2]

    @property
    def has_ground_truth(self) -> bool:
        """Whether the task defines the right actions of the current trial."""
        return self._layout[0][0] >= 0 if self._discrete else self._task._gt_built

    def ground_truth_action(self) -> Action:
        """The task's own right action for the current observation; -1 where the task has none."""
        if not self._discrete and self._task._gt_built:
            return self._task.gt[self._index]
        return self._layout[self._index][0]

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """Whole trials with their right actions, as `contracts.Task.sequences`; they end the current episode.

        The trials of a sequence follow from its seed as those of an episode do, except that no action ends one early.
        None where a wrapper or the task itself changes the observations while the task is played, or where the task has
        no meaningful right actions.
        """
        from neurogym.core import TrialEnv

        task = self._tasks[0]
        as_laid_out = type(task).step is TrialEnv.step and type(task).post_step is TrialEnv.post_step
        if self.env is not task or not as_laid_out or "ob" not in vars(task) or not task._gt_built:
            return None
        if _native(task) in _MEANINGLESS_GT or _native(task) in _UNTIMED:
            return None
        shape = (len(seeds), steps)
        obs = np.zeros((*shape, self.obs_dim), np.float32)
        new_trial, decision = np.zeros((2, *shape), bool)
        target = np.zeros(shape, np.int64) if self._discrete else np.zeros((*shape, self.n_actions), np.float32)
        for row, seed in enumerate(seeds.tolist()):
            self.reset(seed=seed)
            t = 0
            while t < steps:
                if t:
                    self.new_trial()
                count = min(self.trial_steps, steps - t)
                part = slice(t, t + count)
                obs[row, part] = task.ob[:count].reshape(count, -1)
                new_trial[row, t] = True
                target[row, part] = task.gt[:count].reshape(count, *target.shape[2:])
                decision[row, part] = [step[2] for step in self._layout[:count]]
                t += count
        return obs, new_trial, target, decision

    @property
    def scripted(self) -> dict[str, Callable[[NeuroGymWrapper, np.random.Generator], Action]]:
        """The reference policies by name: no ground_truth where the task has none, best where one beats it.

        DawTwoStep's ground truth is hidden from an agent, so `ideal` infers it from the outcomes.
        """
        policies: dict[str, Callable[[NeuroGymWrapper, np.random.Generator], Action]] = dict(REFERENCE_POLICIES)
        if not self.has_ground_truth:
            del policies["ground_truth"]
        if _native(self._task) in _TIMED_FROM:
            policies["best"] = best_timing_policy
        if _native(self._task) == "DawTwoStep":
            policies["ideal"] = TwoStepObserver()
        return policies

    @property
    def _rewards_itself(self) -> bool:
        return _native(self._task) == "SpatialSuppressMotion"

    def _own_reward(self, action: np.ndarray) -> float:
        """The reward of a task that gives none: 1 - mean |action - ground truth|."""
        closeness = 1.0 - float(np.abs(action - self._task.gt[self._index]).mean())
        self._closeness += closeness
        return closeness

    def _lay_out(self) -> None:
        """Compute ground truth, period and decision flag of each step of the current trial."""
        task = self._task
        name = _native(task)
        untimed = _UNTIMED.get(name)
        steps = max(end for _, end in untimed.values()) if untimed else int(task.tmax / task.dt + 1e-6)
        if not float(task.dt).is_integer():  # NeuroGym adds up the time, and rounding can end a trial a step earlier
            steps = 1 + int(np.argmax(np.cumsum(np.full(steps, task.dt)) + task.dt > task.tmax))
        self.trial_steps = steps
        periods = self.periods
        names, decisions = [""] * steps, [False] * steps
        for period, (start, end) in sorted(periods.items(), key=lambda item: item[1][0] - item[1][1]):
            names[start:end] = [period] * (end - start)  # longest first, so that the shortest one stays
        responses = _RESPONSE_PERIODS.get(name, ("decision",))
        spans = [span for period, span in periods.items() if period in responses]
        if not spans and periods and name == "TrialEnv":
            spans = [max(periods.values(), key=lambda span: span[1])]
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
        if not self._discrete or not task._gt_built or name in _MEANINGLESS_GT:
            return [-1] * steps
        return task.gt[:steps].tolist()

    def _first_observation(self) -> object:
        """The current trial's first observation, in the task's own observation space."""
        task = self._task
        if _native(task) == "DawTwoStep":
            return np.array([1.0, 0.0, 0.0], dtype=np.float32)
        if "ob" not in vars(task):  # the task stores no observations
            return np.zeros(task.observation_space.shape, dtype=np.float32)
        return task.post_step(task.ob[0], 0.0, False, False, {})[0]

    def _padded(self, first: object, last: np.ndarray | None = None) -> np.ndarray:
        """A trial's first observation (d,) as a flat one (D,), with the entries that wrappers append, such as a reward.

        Args:
            first: in the task's own space.
            last: what the step returned, (D,), which has these entries; None: there was no step, they are zero.
        """
        flat = self._flatten(first)
        if len(flat) >= self.obs_dim:
            return flat
        return np.concatenate([flat, (np.zeros(self.obs_dim, np.float32) if last is None else last)[len(flat) :]])

    def _seed(self, seed: int) -> None:
        """Seed every random generator of the stack with a number of its own, in place, which takes microseconds."""
        words = np.random.SeedSequence(seed).generate_state(len(self._random) + len(self._tasks)).tolist()
        for holder in self._random:
            holder.rng.seed(words.pop())
        for task in self._tasks:
            if _native(task) == "AnnubesEnv":  # it has a second generator
                task._rng = np.random.default_rng(words.pop())
        for order, part in enumerate(self._own):
            if isinstance(part, gymnasium.Env):
                gymnasium.Env.reset(part.unwrapped, seed=seed)  # seeds np_random
            for name, value in vars(part).items():
                if isinstance(value, np.random.Generator) and name != "_np_random":
                    vars(part)[name] = np.random.default_rng([seed, order])

    def _reset_parts(self) -> None:
        """Reset the state that tasks keep between trials; start blocks and schedules at random places."""
        from neurogym.core import TrialEnv
        from neurogym.utils.scheduler import RandomBlockSchedule, SequentialBlockSchedule

        for part, fresh in zip(self._own, self._fresh, strict=True):
            vars(part).update(copy.deepcopy(fresh))
        for task in self._tasks:
            task.t = task.t_ind = task.num_tr = task.performance = 0
            name = _native(task)
            if name == "TrialEnv" and type(task).reset is not TrialEnv.reset:
                task.reset()
                task.t = task.t_ind = task.num_tr = 0
            elif name == "HierarchicalReasoning":
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
        for wrapper in self._random_blocks:
            if type(wrapper).__name__ == "SideBias":
                wrapper.curr_block = int(self._task.rng.choice(wrapper.n_block))
                wrapper._remaining_trials, wrapper._p_switch = wrapper._new_block_duration()
            else:
                wrapper.prev_trial = int(self._task.rng.choice(wrapper.n_ch))


def _native(task: gymnasium.Env) -> str:
    """Name of the NeuroGym class that a task has or extends; "TrialEnv" for a user's own task."""
    return next(cls.__name__ for cls in type(task).__mro__ if cls.__module__.startswith("neurogym."))


def _is_plain(value: object) -> bool:
    """Whether a value is a number, a text, an array, or a container of these."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set | deque):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic | np.ndarray)


def _number(name: str, value: object) -> float:
    """A task's number as a float. Raises: ConfigError for something else."""
    if not isinstance(value, bool | int | float | np.number | np.bool_):
        raise ConfigError(f"the task's {name} must be a number, got {value!r}; correct the task")
    return float(value)


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
    for name, value in ({} if trial is None else trial).items():
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
            plain = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in entries.items()}
            flat |= {k: _storable(v) for k, v in plain.items() if isinstance(v, bool | int | float | str)}
    return flat


def _storable(value: bool | int | float | str) -> bool | int | float | str:
    """The value, as a float where it is an integer above 64 bits, which no array holds."""
    if type(value) is int and abs(value) >= 2**63:
        return float(max(min(value, 10**308), -(10**308)))
    return value


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
    continuous: bool  # whether an action is a vector of n_actions numbers


@functools.cache
def task_names() -> tuple[str, ...]:
    """Names of all NeuroGym tasks registered in this installation (imports neurogym)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the import itself
        registration = importlib.import_module("neurogym.envs.registration")
    return tuple(registration.all_envs(psychopy=True, contrib=True, collections=True))


def collection_tasks(name: str) -> list[str]:
    """The tasks of one of `config.COLLECTIONS`, in NeuroGym's order (imports neurogym)."""
    task_names()  # registers them
    return list(importlib.import_module("neurogym.envs.collections").get_collection(name))


def make_neurogym(
    env_name: str, env_args: dict[str, object] | None = None, max_episode_steps: int | None = None
) -> NeuroGymWrapper:
    """Build a NeuroGym task, or a user's own.

    Args:
        env_name: NeuroGym id; or "module:Name", where Name is a TrialEnv class of this module, a function of it that
            returns a task or wrappers around one, or an id that it registers with Gymnasium.
        env_args: arguments of the task's constructor; they override `DEFAULT_ARGS`.
        max_episode_steps: time limit; None: no limit.
    Raises: ConfigError for an unknown task, argument, period or reward, a value that the task refuses, a dt that
        removes a period, a task that fails in its first trials, or a reward that is always zero.
    """
    env = _build(env_name, dict(env_args or {}), max_episode_steps)
    if _native(env.unwrapped) in _NEVER_REWARDED:
        raise ConfigError(f"--env-name {env_name} cannot be trained: {_ZERO_REWARD}; list tasks with: {LIST_COMMAND}")
    return env


_ZERO_REWARD = "its reward is always zero"


def list_tasks() -> list[TaskInfo]:
    """Every registered NeuroGym task with its dimensions, and why it cannot be trained if it cannot."""
    rows = []
    for name in task_names():
        try:
            env = _build(name, {}, None)
        except ConfigError as error:  # for example, an optional dependency is missing
            rows.append(TaskInfo(name, 0, 0, 0.0, 0, False, str(error), False))
            continue
        env.reset(seed=0)
        lengths = [env.trial_steps]
        while len(lengths) < 20:
            env.new_trial()
            lengths.append(env.trial_steps)
        steps = round(float(np.mean(lengths)))
        why_not = _ZERO_REWARD if _native(env.unwrapped) in _NEVER_REWARDED else ""
        continuous = isinstance(env.action_space, gymnasium.spaces.Box)
        rows.append(TaskInfo(name, env.obs_dim, env.n_actions, env.dt_ms, steps, not why_not, why_not, continuous))
    return rows


Constructor = Callable[..., gymnasium.Env]


def _find(env_name: str) -> tuple[Constructor, dict[str, object]]:
    """A task's constructor, and the arguments that it is registered with.

    Raises: ConfigError for an unknown task.
    """
    names = list(task_names())  # registers NeuroGym's tasks
    module, _, name = env_name.rpartition(":")
    if module:
        import_task_module(module)
        own = vars(sys.modules[module])
        if name in own and callable(own[name]):
            return own[name], {}
        classes = [value for value in own.values() if isinstance(value, type) and value.__module__ == module]
        names = [value.__name__ for value in classes if issubclass(value, gymnasium.Env)]
        names += [key for key, spec in gymnasium.registry.items() if _comes_from(spec, module)]
        if name not in gymnasium.registry:
            known = f"; it has {', '.join(names)}" if names else ""
            raise ConfigError(
                f"--env-name {env_name}: the module {module!r} has no task {name!r}{nearest(name, names) or known}"
            )
    elif env_name not in names:
        if env_name in gymnasium.registry:
            raise ConfigError(
                f"--env-name must be a NeuroGym task, got the Gymnasium task {env_name!r}: "
                f"use python main.py train --env-name {shlex.quote(env_name)}"
            )
        close = nearest(env_name, [*COLLECTIONS, *names]) or ";"
        raise ConfigError(
            f"--env-name must be a NeuroGym task, or your own as module:Class, got {env_name!r}{close} "
            f"list NeuroGym's with: {LIST_COMMAND}"
        )
    spec = gymnasium.spec(name)
    entry = spec.entry_point
    constructor = entry if callable(entry) else gymnasium.envs.registration.load_env_creator(str(entry))
    return constructor, dict(spec.kwargs)


def _comes_from(spec: EnvSpec, module: str) -> bool:
    entry = spec.entry_point
    return (entry.__module__ if callable(entry) else str(entry).partition(":")[0]) == module


def _build(env_name: str, env_args: dict[str, object], max_episode_steps: int | None) -> NeuroGymWrapper:
    dt, own = env_args.get("dt", 1), ":" in env_name
    if isinstance(dt, bool) or not isinstance(dt, int | float) or not 0 < dt < math.inf:
        raise ConfigError(f"--env-arg dt of {env_name} must be a number of ms above 0, got {dt!r}")
    with warnings.catch_warnings():
        # NeuroGym causes these warnings: it uses look-ups that Gymnasium deprecates, and declares no render modes.
        warnings.filterwarnings("ignore", message=r".*(to get variables from other wrappers|render_modes)")
        constructor, registered = _find(env_name)
        try:
            if env_args:
                _check_arguments(env_name, constructor, env_args)
            arguments = {**DEFAULT_ARGS.get(env_name, {}), **registered, **env_args}
            env = constructor(**arguments)
            _check_is_trial_env(env_name, env)
            kept_out: Container[str] = ()
            if env_args.keys() & _OF_PERIODS:
                rest = {key: value for key, value in arguments.items() if key not in _OF_PERIODS}
                kept_out = _check_keys(env_name, env.unwrapped, lambda: constructor(**rest).unwrapped, env_args)
            if own or env_args:
                shortest = {period: _shortest(duration) for period, duration in env.unwrapped.timing.items()}
                _check_periods(env_name, env.unwrapped.dt, shortest, kept_out)
            wrapped = NeuroGymWrapper(env, max_episode_steps)
            if own or env_args:
                _check_periods(env_name, wrapped.dt_ms, _shortest_seen(wrapped), kept_out)
            if own:
                _try_out(wrapped)
            return wrapped
        except ConfigError:
            raise
        except Exception as error:
            reason = own_error(error) if own else " ".join(str(error).split())
            given = f" with --env-arg {env_args}" if env_args else ""
            raise ConfigError(f"--env-name {env_name} cannot be built{given}: {reason}") from error


_OF_PERIODS = {"dt", "timing", "rewards"}


def _check_arguments(env_name: str, constructor: Constructor, env_args: dict[str, object]) -> None:
    """Raise ConfigError for an argument that the task's constructor does not have."""
    if inspect.isclass(constructor):
        parameters = list(inspect.signature(constructor.__init__).parameters.values())[1:]
    elif ":" in env_name:
        parameters = list(inspect.signature(constructor).parameters.values())
    else:  # a function that passes its arguments on to a task of a collection
        task = type(constructor().unwrapped)
        parameters = list(inspect.signature(task.__init__).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    accepted = [parameter.name for parameter in parameters]
    unknown = sorted(set(env_args) - set(accepted))
    if unknown:
        raise ConfigError(
            f"--env-arg of {env_name} must be one of {', '.join(accepted)}, "
            f"got {unknown[0]!r}{nearest(unknown[0], accepted)}"
        )
    for name in ("timing", "rewards"):
        if ":" not in env_name and not isinstance(env_args.get(name, {}), dict):
            raise ConfigError(f'--env-arg {name} must be a dict, such as {{"key": 1}}, got {env_args[name]!r}')


def _check_is_trial_env(env_name: str, env: object) -> None:
    from neurogym.core import TrialEnv

    if not isinstance(env, gymnasium.Env) or not isinstance(env.unwrapped, TrialEnv):
        raise ConfigError(
            f"--env-name {env_name} is no NeuroGym task (a neurogym.core.TrialEnv, or wrappers around one); for a "
            f"Gymnasium task: {PROGRAM} train --env-name {env_name}"
        )


def _check_keys(
    env_name: str, task: TrialEnv, make_default: Callable[[], TrialEnv], env_args: dict[str, object]
) -> set[str]:
    """Raise ConfigError for a period or a reward that the task does not have; complete those that are given in part.

    Args:
        task: built with all arguments.
        make_default: builds it without those of `_OF_PERIODS`.
    Returns: the periods that are shorter than a step by default, and not set in the arguments.
    """
    try:
        default = make_default()
    except Exception:  # a user's own task that needs its timing
        return set()
    for option in ("timing", "rewards"):
        given, known, current = env_args.get(option), vars(default).get(option), vars(task).get(option)
        if not isinstance(given, dict) or not isinstance(known, dict) or not known:
            continue
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"--env-arg {option} of {env_name} has the keys {', '.join(map(str, known))}, got {key!r}"
                    f"{nearest(str(key), map(str, known))}"
                )
        if isinstance(current, dict):  # AnnubesEnv replaces its rewards by the given ones
            vars(task)[option] = {**known, **current}
    timing = env_args.get("timing")
    short = {period for period, duration in default.timing.items() if 0 < _shortest(duration) < default.dt}
    return short - set(timing if isinstance(timing, dict) else ())


def _shortest(duration: object) -> float:
    """The shortest duration in ms above 0 that an entry of `timing` can give; 0 where it gives none.

    A random duration that can be 0, or nearly, is meant to vanish at times: there it is the longest one.
    """
    from neurogym.utils.ngym_random import TruncExp

    if isinstance(duration, TruncExp):
        duration = ("uniform", (duration.vmin, duration.vmax))
    if callable(duration):
        drawn = [float(duration()) for _ in range(500)]
        duration = max(drawn) if min(drawn) < max(drawn) / 20 else min(drawn)
    if isinstance(duration, int | float):
        return float(duration)
    assert isinstance(duration, list | tuple)
    if isinstance(duration[0], str):  # a distribution and its arguments
        name, values = duration
        duration = [values] if isinstance(values, int | float) else values
        if name == "truncated_exponential":  # mean, shortest, longest
            duration = [*values, 0, math.inf][1:3] if len(values) < 3 else values[1:3]
    return min((float(value) for value in duration if value > 0), default=0.0)


def _shortest_seen(env: NeuroGymWrapper, trials: int = 20) -> dict[str, float]:
    """The shortest duration in ms above 0 of each period, also of those that `timing` does not list."""
    seen: dict[str, float] = {}
    for _ in range(trials):
        task = env.unwrapped
        for period in env.periods.keys() & task._duration.keys():
            if task._duration[period] > 0:
                seen[period] = min(float(task._duration[period]), seen.get(period, math.inf))
        env.new_trial()
    return seen


def _check_periods(env_name: str, dt: float, shortest: Mapping[str, float], kept_out: Container[str]) -> None:
    """Raise ConfigError where a period is shorter than a step, so that it does not exist.

    Args:
        shortest: duration in ms of each period; 0: it is switched off.
        kept_out: periods that may be missing.
    """
    durations = {period: duration for period, duration in shortest.items() if duration > 0}
    gone = [period for period in durations if durations[period] < dt * (1 - 1e-9) and period not in kept_out]
    if gone:
        largest = min(durations.values())
        largest = largest if largest == round(largest) else largest // 10 * 10 or largest  # random ones are estimates
        named = ", ".join(f"{period!r} ({durations[period]:g} ms)" for period in gone)
        raise ConfigError(
            f"--env-name {env_name}: a step of dt = {dt:g} ms removes the period{'s' * (len(gone) > 1)} {named}; the "
            f"largest dt that keeps every period is {largest:g}: --env-arg dt={largest:g}"
        )


def _try_out(env: NeuroGymWrapper) -> None:
    """Play two trials of a user's own task with random actions. Raises: TaskError that names what is wrong."""
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    step = trials = 0
    while trials < 2 and step < _TRIED_STEPS:
        _, _, terminated, truncated, info = env.step(random_policy(env, rng))
        step, trials = step + 1, trials + info["new_trial"]
        if terminated or truncated:
            env.reset()


def random_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> Action:
    """A uniformly random action."""
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        return rng.uniform(space.low, space.high).astype(np.float32)
    return int(rng.integers(env.n_actions))


def never_act_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> Action:
    """Action 0, which is fixation in every task that has one; of continuous actions the lowest values."""
    return env.action_space.low if isinstance(env.action_space, gymnasium.spaces.Box) else 0


def ground_truth_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> Action:
    """The task's own right action; 0 where it has none."""
    action = env.ground_truth_action()
    return action if isinstance(action, np.ndarray) else max(action, 0)


def best_timing_policy(env: NeuroGymWrapper, rng: np.random.Generator) -> int:
    """Acts at the step whose reward is highest in MotorTiming and ReadySetGo: 1, else 0.

    The reward falls with |t - production|, where t counts from the end of "set" or "measure". The tasks' own ground
    truth misses this step: it counts from the end of "set" in both, and rounds down.
    """
    task = env.unwrapped
    if not task.in_period("production"):
        return 0
    error = task.t - task.end_t[_TIMED_FROM[_native(task)]] - task.trial["production"]
    return int(abs(error) <= abs(error + task.dt))


class TwoStepObserver:
    """The best policy of DawTwoStep that does not know which second state pays: Bayes' rule over the outcomes so far.

    The belief b that state 1 pays more starts at 0.5. Before a trial, b becomes b (1 - h) + (1 - b) h, with h the
    probability of a switch; then the more probable state is chosen. After state k with reward r, the odds are
    multiplied by P(r | k pays more) / P(r | k pays less), or divided by it for k = 2. Both states tell equally much,
    so no choice is worth making for what it tells.
    """

    def __init__(self) -> None:
        self.belief = 0.5

    def __call__(self, env: NeuroGymWrapper, rng: np.random.Generator) -> int:
        if not env.at_decision:
            return 0
        task = env.unwrapped
        if env._trial_number == 0:
            self.belief = 0.5
        self.belief += task.p_switch * (1.0 - 2.0 * self.belief)
        action = 1 if self.belief >= 0.5 else 2
        state = int(task.trial["transition"][action])  # which the observation after this step shows
        high, low = task.high_reward_p, task.low_reward_p
        if not task.trial["reward"][state - 1]:
            high, low = 1.0 - high, 1.0 - low
        if state == 2:
            high, low = low, high
        self.belief = self.belief * high / (self.belief * high + (1.0 - self.belief) * low)
        return action


REFERENCE_POLICIES: dict[str, Callable[[NeuroGymWrapper, np.random.Generator], Action]] = {
    "random": random_policy,
    "never_act": never_act_policy,
    "ground_truth": ground_truth_policy,
}


def reference_scores(env_name: str, env_args: dict[str, object] | None = None) -> dict[str, float]:
    """Mean `performance` of guessing and of the ideal observer, for these arguments of the task.

    With two alternatives the difference of their channels has the mean d and the standard deviation sqrt(2) s per step,
    independently over n steps, so the sign of its sum is right with probability Phi(sqrt(n) d / (sqrt(2) s)): averaged
    over coherences c and lengths of the stimulus, d = c / 100. In DelayMatchSample d = 1, and the answer is right if
    both signs are, or neither. `guessing` answers at random at the decision.

    Returns: "guessing" and "ideal"; empty where no such form is known: other tasks, more than two alternatives,
        continuous durations of the stimulus.
    """
    if env_name not in _WITH_IDEAL:
        return {}
    task = make_neurogym(env_name, env_args).unwrapped
    noise = math.sqrt(2.0) * abs(float(task.sigma))  # NeuroGym divides its argument by sqrt(dt)
    if len(task.theta) != 2 or (env_name != "DelayMatchSample-v0" and min(task.cohs) < 0):
        return {}

    def right(period: str, difference: float) -> float | None:
        durations = task.timing[period]
        durations = [durations] if isinstance(durations, int | float) else durations
        if not isinstance(durations, list | tuple) or not all(isinstance(ms, int | float) for ms in durations):
            return None
        signals = [difference * math.sqrt(ms // task.dt) for ms in durations]
        shares = [math.erf(s / (noise * math.sqrt(2.0))) if noise else float(s > 0) for s in signals]
        return 0.5 + 0.5 * sum(shares) / len(shares)

    if env_name == "DelayMatchSample-v0":
        sample, test = right("sample", 1.0), right("test", 1.0)
        ideal = None if sample is None or test is None else sample * test + (1.0 - sample) * (1.0 - test)
    else:
        each = [right("stimulus", float(coherence) / 100.0) for coherence in task.cohs]
        ideal = None if None in each else sum(share for share in each if share is not None) / len(each)
    return {} if ideal is None else {"guessing": 0.5, "ideal": ideal}


_WITH_IDEAL = ("PerceptualDecisionMaking-v0", "ContextDecisionMaking-v0", "DelayMatchSample-v0")


def normalised_score(agent: float, random: float, best: float) -> float:
    """An agent's return relative to the random (0) and the best scripted policy (1).

        score = (agent - random) / (best - random)

    Unlike `performance`, it also credits trials in which the right answer is to withhold the action.

    Args:
        agent: mean return per trial.
        random: of the random policy on the same seeds.
        best: of the best scripted policy on the same seeds: the task's ground truth, except for timed production.
    Returns: the score; nan where the two references are within 1e-6 of each other.
    """
    span = best - random
    return (agent - random) / span if abs(span) > 1e-6 else math.nan
