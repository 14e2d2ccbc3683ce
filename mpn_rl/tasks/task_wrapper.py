"""Base of the wrappers around a task: what a wrapper does not change is the task's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import gymnasium

from mpn_rl.contracts import Action, Conditions, Task


class TaskWrapper(gymnasium.Wrapper):
    """A task around another one, as a `contracts.Task`. A subclass changes `reset`, `step` and `sequences`.

    Args: task: the inner task.
    """

    def __init__(self, task: Task) -> None:
        assert isinstance(task, gymnasium.Env)
        super().__init__(task)
        self.task: Task = task
        self.obs_dim: int = task.obs_dim

    @property
    def action_names(self) -> Sequence[str] | None:
        """A name for each choice; None where the task names none."""
        return self.task.action_names

    @property
    def channel_names(self) -> Sequence[str] | None:
        """A name for each entry of the observation; None where the task names none."""
        return self.task.channel_names

    @property
    def dt_ms(self) -> float:
        """Duration of a step in ms."""
        return self.task.dt_ms

    @property
    def trial_steps(self) -> int:
        """Full length of the current trial in steps."""
        return self.task.trial_steps

    @property
    def conditions(self) -> Conditions:
        """Conditions of the current trial."""
        return self.task.conditions

    @property
    def scripted(self) -> Mapping[str, Callable[..., Action]]:
        """The task's reference policies, which read the inner task and not the observation."""

        def of_task(policy: Callable[..., Action]) -> Callable[..., Action]:
            return lambda env, rng: env.outer_action(policy(env.task, rng))

        return {name: of_task(policy) for name, policy in self.task.scripted.items()}

    def outer_action(self, action: Action) -> Action:
        """The wrapper's action that does what an action of the inner task does."""
        return action
