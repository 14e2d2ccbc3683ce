"""Tasks that change during training, so that a network must go on learning.

The run is divided into phases of `--change-every` steps. In phase 0 the task is as it is; each later phase has its own
change, the same in every run. An episode belongs to one phase, which follows from its seed: seed s is of phase s mod
PHASES. So episodes repeat from their seed and actions, and whoever chooses the seed chooses the phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from mpn_rl.contracts import Action, Info, SequenceArrays, Task
from mpn_rl.options import ConfigError
from mpn_rl.tasks.task_wrapper import TaskWrapper

PHASES = 1024  # the largest number of phases; a power of 2, so that the parts of SEED_RANGES begin with phase 0
RANGES = {"friction": (0.02, 2.0), "gravity": (0.5, 2.0)}  # of the factor; that of friction as in Dohare et al. 2024


def seed_in_phase(seed: int, phase: int) -> int:
    """The seed of an episode of a phase, made from any episode seed."""
    return seed - seed % PHASES + phase


def factor(change: str, phase: int) -> float:
    """The factor of friction or gravity in a phase: 1 in phase 0, then log-uniform in RANGES."""
    low, high = np.log(RANGES[change])
    return 1.0 if phase == 0 else float(np.exp(np.random.default_rng([phase, 7]).uniform(low, high)))


def described(change: str, phase: int) -> str:
    """What a change does to the task in a phase, in words."""
    if phase == 0:
        return "the task as it is"
    if change in RANGES:
        return f"{change} times {factor(change, phase):.3g}"
    if change == "permute-observations":
        return "observations in another order"
    what = "actions reversed" if change == "reverse-actions" else "choices reversed"
    return what if phase % 2 else "the task as it is"


class ChangingTask(TaskWrapper):
    """A task that differs from phase to phase.

        friction, gravity      times `factor`: all contacts of a MuJoCo model; the constant of a classic-control task
        permute-observations   the entries of the observation in another order, one per phase
        reverse-actions        in odd phases: choice n-1-a in place of a, of n; low + high - a for a vector
        rule                   in odd phases: choice n-a in place of a > 0; choice 0, fixation, stays

    The right actions and the scripted policies follow the change.

    Args:
        task: the task.
        name: its id, for messages.
        change: one of the above.
    Raises: ConfigError where the task has nothing to change.
    """

    def __init__(self, task: Task, name: str, change: str) -> None:
        super().__init__(task)
        self.change, self.phase = change, 0
        self.order = np.arange(self.obs_dim)
        space = task.action_space
        if change in RANGES:
            self._constants = _constants(self.unwrapped, change)
            if not self._constants:
                raise ConfigError(
                    f"--change {change} does nothing with --env-name {name}, which has no {change} that can be set; "
                    "take --change permute-observations or reverse-actions"
                )
        few = change == "permute-observations" and self.obs_dim < 2
        few |= isinstance(space, spaces.Discrete) and {"reverse-actions": 2, "rule": 3}.get(change, 0) > space.n
        if few or (change == "rule" and not isinstance(space, spaces.Discrete)):
            size = f"{self.obs_dim} observations and the actions {space}"
            raise ConfigError(f"--change {change} does nothing with --env-name {name}, which has {size}")

    @property
    def channel_names(self) -> Sequence[str] | None:
        """A name for each entry of the observation; None where their order changes."""
        return None if self.change == "permute-observations" else self.task.channel_names

    def exchanged(self, action: Any) -> Any:
        """The task's action for the agent's, and the other way round: choices, vectors, or arrays of choices."""
        return _exchange(self.change, self.phase, self.task.action_space, action)

    def outer_action(self, action: Action) -> Action:
        """The agent's action in the current phase that does what an action of the task does."""
        return self.exchanged(action)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        """Start an episode; a seed decides the phase, and without one the phase stays."""
        if seed is not None:
            self.phase = seed % PHASES
            self.order = _order(self.change, self.phase, self.obs_dim)
            if self.change in RANGES:
                for place, value in self._constants.items():
                    _set(self.unwrapped, place, value * factor(self.change, self.phase))
        obs, info = self.task.reset(seed=seed)
        return obs[self.order], info

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        obs, reward, terminated, truncated, info = self.task.step(self.exchanged(action))
        if "gt" in info:
            info = {**info, "gt": self.exchanged(info["gt"])}
        return obs[self.order], reward, terminated, truncated, info

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """The task's sequences, each changed as in the phase of its seed; None where the task has to be played."""
        made = self.task.sequences(seeds, steps)
        if made is None or self.change in RANGES:
            return None
        obs, new_trial, target, decision = made
        obs, target = obs.copy(), target.copy()
        for row, phase in enumerate((np.asarray(seeds) % PHASES).tolist()):
            obs[row] = obs[row][:, _order(self.change, phase, self.obs_dim)]
            target[row] = _exchange(self.change, phase, self.task.action_space, target[row])
        return obs, new_trial, target, decision


def _order(change: str, phase: int, size: int) -> np.ndarray:
    """Places of the task's observation in the order in which the agent sees them, (size,)."""
    if change != "permute-observations" or phase == 0:
        return np.arange(size)
    return np.random.default_rng([phase, 8]).permutation(size)


def _exchange(change: str, phase: int, space: object, action: Any) -> Any:
    """`ChangingTask.exchanged`; -1 stands for no action and stays."""
    if change not in ("reverse-actions", "rule") or phase % 2 == 0:
        return action
    if isinstance(space, spaces.Box):
        return space.low + space.high - action
    assert isinstance(space, spaces.Discrete)
    last, least = (int(space.n) - 1, 0) if change == "reverse-actions" else (int(space.n), 1)
    if isinstance(action, np.ndarray):
        return np.where(action < least, action, last - action)
    return action if action < least else last - action


def _constants(task: Any, change: str) -> dict[str, Any]:
    """The numbers of a task that `change` multiplies, by place."""
    model: Any = getattr(task, "model", None)
    if type(model).__name__ == "MjModel":
        found = model.geom_friction if change == "friction" else model.opt.gravity
        return {"model": np.array(found)}
    if change == "friction":
        return {}
    return {name: value for name in ("gravity", "g") if isinstance(value := getattr(task, name, None), float)}


def _set(task: Any, place: str, value: Any) -> None:
    if place != "model":
        setattr(task, place, value)
    elif np.ndim(value) == 2:
        task.model.geom_friction[:] = value
    else:
        task.model.opt.gravity[:] = value
