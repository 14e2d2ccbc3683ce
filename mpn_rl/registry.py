"""Three tables, from a dataclass of options to the class that it configures, and the functions that read them.

A new core, environment family or learner needs one row here, besides its module and its dataclass in `config.py`.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import shlex
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from mpn_dqn import MPNDQN, DQNLearner
from mpn_module import MPN
from mpn_rl import config as cfg
from mpn_rl.contracts import Core, Learner, Memory, Network, Task, state_parts
from mpn_rl.learners.a2c import A2CLearner, ActorCritic, PPOLearner
from mpn_rl.learners.base import ReplayLearner, ReplaySizes, RolloutLearner, SequenceLearner
from mpn_rl.learners.supervised import SupervisedLearner, SupervisedNetwork
from mpn_rl.learners.td3 import Actor, TD3Learner
from mpn_rl.networks.backpropamine import Backpropamine
from mpn_rl.networks.baseline_cores import MLPCore, RecurrentCore
from mpn_rl.networks.encoder import AgentNetwork, Encoder
from mpn_rl.networks.recurrent_mpn import RecurrentMPN
from mpn_rl.options import ConfigError
from mpn_rl.tasks.gymnasium_tasks import is_built_in, make_gymnasium, make_vector_env, time_limit
from mpn_rl.tasks.lanes import EpisodeSeeds, Lanes, VectorLanes, repeats_episodes
from mpn_rl.tasks.last_step import ObserveLastStep, ObserveLastStepVec
from mpn_rl.tasks.schedules.changing_task import ChangingTask, seed_in_phase
from mpn_rl.tasks.schedules.task_schedule import PhaseSchedule, TaskSchedule
from mpn_rl.tasks.schedules.task_set import TaskSet, TaskSpec, task_specs
from mpn_rl.tasks.sequences import TaskSequences
from mpn_rl.tasks.task_spaces import MOST_CHOICES
from mpn_rl.tasks.vector_env import BatchedTask
from neurogym_wrapper import make_neurogym, task_names


def options(section: Any) -> dict[str, Any]:
    """A section's options as keyword arguments."""
    return dataclasses.asdict(section)


def task_options(env: cfg.EnvConfig) -> dict[str, Any]:
    """The options of the task itself as keyword arguments, without those that `make_env` and the training add."""
    added = ("observe_reward", "observe_action", "task_schedule", "task_weights", "change", "change_every")
    return {name: value for name, value in options(env).items() if name not in added}


# core options -> constructor of (input_dim, options)
CORES: dict[type[cfg.CoreConfig], Callable[[int, cfg.CoreConfig], Core]] = {
    cfg.MPNConfig: lambda input_dim, core: MPN(input_dim, **options(core)),
    cfg.RecurrentMPNConfig: lambda input_dim, core: RecurrentMPN(input_dim, **options(core)),
    cfg.RNNConfig: lambda input_dim, core: RecurrentCore("rnn", input_dim, **options(core)),
    cfg.GRUConfig: lambda input_dim, core: RecurrentCore("gru", input_dim, **options(core)),
    cfg.LSTMConfig: lambda input_dim, core: RecurrentCore("lstm", input_dim, **options(core)),
    cfg.MLPConfig: lambda input_dim, core: MLPCore(input_dim, **options(core)),
    cfg.BackpropamineConfig: lambda input_dim, core: Backpropamine(input_dim, **options(core)),
}

# environment options -> constructor of (options, render_mode)
ENVS: dict[type[cfg.EnvConfig], Callable[[cfg.EnvConfig, str | None], Task]] = {
    cfg.GymnasiumConfig: lambda env, render_mode: make_gymnasium(**task_options(env), render_mode=render_mode),
    cfg.NeuroGymConfig: lambda env, render_mode: _make_neurogym(env),
}


def _make_neurogym(env: cfg.EnvConfig) -> Task:
    if isinstance(env, cfg.NeuroGymConfig) and env.several:
        return make_task_set(env)
    return make_neurogym(**task_options(env))


def make_task_set(env: cfg.EnvConfig) -> TaskSet:
    """The tasks of a run that has several, without what `make_env` appends to their observations."""
    assert isinstance(env, cfg.NeuroGymConfig)
    return TaskSet(task_specs(env), env.max_episode_steps)


# learner options -> the learner, and the network that acts for it
AnyLearner = ReplayLearner | RolloutLearner | SequenceLearner
LEARNERS: dict[type[cfg.LearnerConfig], tuple[type[AnyLearner], Callable[..., AgentNetwork]]] = {
    cfg.DQNConfig: (DQNLearner, MPNDQN),
    cfg.A2CConfig: (A2CLearner, ActorCritic),
    cfg.PPOConfig: (PPOLearner, ActorCritic),
    cfg.TD3Config: (TD3Learner, Actor),
    cfg.SupervisedConfig: (SupervisedLearner, SupervisedNetwork),
}


def specs_of(env: cfg.EnvConfig) -> list[TaskSpec]:
    """The tasks where a run has several, else an empty list."""
    return task_specs(env) if isinstance(env, cfg.NeuroGymConfig) and env.several else []


def task_names_of(env: cfg.EnvConfig) -> list[str]:
    """The names of the tasks where a run has several, else an empty list."""
    return [spec.name for spec in specs_of(env)]


def make_schedule(config: cfg.Config) -> TaskSchedule | PhaseSchedule | None:
    """What chooses the task or the phase of each episode, where a run has several tasks or a task that changes.

    Raises: ConfigError where a curriculum has a task whose success cannot be measured, and for too many phases.
    """
    env = config.env
    if env.changes and env.change_every is not None:
        if config.run.total_steps is None:
            raise ConfigError(
                f"--change-every {env.change_every} needs a run whose steps are known, got --num-episodes "
                f"{config.run.num_episodes}; give --total-steps"
            )
        return PhaseSchedule(env.change_every, config.run.total_steps)
    specs = specs_of(env)
    if not isinstance(env, cfg.NeuroGymConfig) or not specs:
        return None
    if env.task_schedule == "curriculum":
        tasks = make_task_set(env)
        unknown = [spec.name for index, spec in enumerate(specs) if not scored(tasks.member(index).scripted)]
        if unknown:
            raise ConfigError(
                f"--task-schedule curriculum needs tasks that give their right actions, {unknown[0]} gives none; take "
                "--task-schedule mixed"
            )
    return TaskSchedule(env.task_schedule, [spec.weight for spec in specs], config.run.seed)


def scored(policies: Iterable[str]) -> str | None:
    """The scripted policy whose normalised score is 1, of those that a task has; None where there is none."""
    known = set(policies)
    return next((name for name in ("best", "ground_truth") if name in known), None)


PROBED_ROWS, PROBED_STEPS = 4, 200  # in which a task must give a right action


class Spaces(NamedTuple):
    """The sizes of a task's observations and actions."""

    obs_dim: int
    action_dim: int  # number of choices, or length of the action vector
    low: np.ndarray | None = None  # bounds of continuous actions, (action_dim,)
    high: np.ndarray | None = None

    @property
    def action_bounds(self) -> tuple[float, float]:
        """The smallest and the largest number in an action."""
        if self.low is None or self.high is None:
            return 0, self.action_dim - 1
        return float(self.low.min()), float(self.high.max())


def make_env(env: cfg.EnvConfig, render_mode: str | None = None) -> Task:
    """An environment with a flat float32 observation, and discrete actions or a vector of bounded ones.

    Raises: ConfigError for a task whose actions no learner can give.
    """
    name: str = env.env_name
    # Gymnasium knows NeuroGym's names too, once neurogym is imported.
    known = str(gymnasium.registry[name].entry_point) if name in gymnasium.registry else "neurogym"
    foreign = isinstance(env, cfg.GymnasiumConfig) and known.startswith("neurogym") and ":" not in name
    if foreign and name in task_names():
        command = f"python main.py train-neurogym --env-name {shlex.quote(name)}"
        raise ConfigError(f"--env-name {name} is a NeuroGym task: use {command}")
    with np.errstate(all="ignore"):  # a constructor with impossible arguments warns before it fails
        task = ENVS[type(env)](env, render_mode)
    space, rule = task.action_space, None
    if isinstance(space, gymnasium.spaces.Box):
        if not space.is_bounded() or space.shape == (0,):
            rule = f"has actions {space}; the learners need a bounded vector"
    elif not isinstance(space, gymnasium.spaces.Discrete):
        rule = (
            f"has actions of several parts, {space}; the learners need one vector, or choices with at most "
            f"{MOST_CHOICES:,} combinations; wrap the task"
        )
    if rule:
        task.close()
        raise ConfigError(f"--env-name {name} {rule}")
    if env.changes:
        task = ChangingTask(task, name, env.change)
    if env.observe_reward or env.observe_action:
        return ObserveLastStep(task, env.observe_reward, env.observe_action)
    return task


def check_trials(config: cfg.Config) -> None:
    """Refuse options that do nothing where a task has no trials, and so no accuracy. Raises: ConfigError."""
    values = config.values()
    flag = "--reset-state-on-trial" if config.run.reset_state_on_trial else None
    if config.run.target_accuracy is not None:
        flag = "--target-accuracy"
    if (values.get("replay"), values.get("replay_state")) == ("trial", "zero"):
        flag = "--replay trial --replay-state zero"  # without trials, episodes are replayed: their first state is fixed
    if flag is None:
        return
    env = make_env(config.env)
    env.reset(seed=config.run.seed)
    action = env.scripted["random"](env, np.random.default_rng(0))
    has_trials = env.trial_steps > 0 or "new_trial" in env.step(action)[-1]
    env.close()
    if not has_trials:
        name = config.env.env_name
        raise ConfigError(f"{flag} does nothing with --env-name {name}, which has no trials; leave it out")


def vector_env(env: cfg.EnvConfig, rows: int) -> BatchedTask | None:
    """The task as one vector environment; None where it has none, or changes from phase to phase."""
    if not isinstance(env, cfg.GymnasiumConfig) or env.changes:
        return None
    return make_vector_env(rows, **task_options(env))


def eval_seeds(config: cfg.Config, seed: int) -> Callable[[], int]:
    """A source of episode seeds for evaluations after the training; of a task that changes, in the last phase."""
    source, phase = EpisodeSeeds("eval", seed), config.phase()
    return source if phase is None else lambda: seed_in_phase(source(), phase)


def resumes_exactly(env: cfg.EnvConfig) -> bool:
    """Whether the task repeats an episode from its seed and actions, so that `--resume` can continue it.

    Gymnasium's, NeuroGym's and the toolkit's own tasks do; others are tried, which also shows whether they work at all.

    Raises: TaskError where the first steps fail.
    """
    if isinstance(env, cfg.GymnasiumConfig) and is_built_in(env.env_name):
        return True
    if isinstance(env, cfg.NeuroGymConfig) and ":" not in env.env_name:
        return True
    task = make_env(env)
    try:
        return repeats_episodes(task)
    finally:
        task.close()


def make_lanes(config: cfg.Config, count: int, next_seed: Callable[[], int]) -> Lanes | VectorLanes:
    """`count` lanes of the task: one batched environment if the task has one, else separate environments.

    Raises: ConfigError if the learner's actions do not fit the task.
    """
    first = make_env(config.env)
    name, algo, space = config.env.env_name, config.learner.name, first.action_space
    continuous = isinstance(space, gymnasium.spaces.Box)
    if LEARNERS[type(config.learner)][0].continuous is (not continuous):  # None takes both
        first.close()
        kind, needs = ("continuous actions", "one choice, Discrete") if continuous else ("choices", "a vector, Box")
        fitting = fitting_learners(continuous)
        hint = f"; take --algo {' or '.join(fitting)}" if fitting else ""
        raise ConfigError(f"--env-name {name} has {kind}, {space}; {algo} needs {needs}{hint}")
    noise = config.values().get("noise_correlation", 0.0)
    if noise and not continuous:
        first.close()
        raise ConfigError(f"--noise-correlation {noise} does nothing with --env-name {name}, whose actions are choices")
    env = config.env
    batched = vector_env(env, count)
    if batched is None:
        return Lanes([first, *(make_env(env) for _ in range(count - 1))], next_seed)
    first.close()
    if env.observe_reward or env.observe_action:
        return VectorLanes(ObserveLastStepVec(batched, space, env.observe_reward, env.observe_action), next_seed)
    return VectorLanes(batched, next_seed)


def fitting_learners(continuous: bool) -> list[str]:
    """Names of the learners (`--algo`) by reward whose actions are vectors, or choices where `continuous` is false."""
    return [
        cls.name
        for cls, (learner, _) in LEARNERS.items()
        if learner.acts and learner.continuous is not (not continuous)
    ]


def spaces(env: Task) -> Spaces:
    """The sizes of observations and actions, and the bounds of continuous actions."""
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        return Spaces(env.obs_dim, int(space.shape[0]), space.low.astype(np.float32), space.high.astype(np.float32))
    assert isinstance(space, gymnasium.spaces.Discrete)
    return Spaces(env.obs_dim, int(space.n))


def make_network(config: cfg.Config, spaces: Spaces) -> AgentNetwork:
    """The network that acts, as config.json describes it, with initial weights from torch's global generator."""
    encoder = Encoder(spaces.obs_dim, **options(config.encoder))
    core = CORES[type(config.core)](encoder.output_dim, config.core)
    learner, network = LEARNERS[type(config.learner)]
    more = learner.network_options(config.learner)
    if spaces.low is not None:
        more |= {"low": spaces.low, "high": spaces.high}
    return network(spaces.obs_dim, core.hidden_dim, spaces.action_dim, encoder=encoder, core=core, **more)


def match_weights(config: cfg.Config, core: str) -> cfg.Config:
    """The configuration with the hidden size at which its network has as many trained weights as with another core.

    Args:
        config: the configuration, whose encoder, learner and task both networks have.
        core: name of the other core, with its default options.
    Raises: ConfigError where even the largest or smallest size is far from that number.
    """
    spaces_of_task = spaces(make_env(config.env))

    def weights(candidate: cfg.CoreConfig) -> int:
        with torch.random.fork_rng(devices=[]):
            network = make_network(dataclasses.replace(config, core=candidate), spaces_of_task)
        return sum(part.numel() for part in network.parameters() if part.requires_grad)

    def sized(hidden_dim: int) -> cfg.CoreConfig:
        changed = dataclasses.replace(config.core, hidden_dim=hidden_dim)  # type: ignore[call-arg]
        object.__setattr__(changed, "name", config.core.name)  # no field of the dataclass
        return changed

    target = weights(cfg.choices("core")[core].build())
    size = bisect.bisect_left(range(1, 4096), target, key=lambda hidden_dim: weights(sized(hidden_dim))) + 1
    size = min((size - 1, size), key=lambda hidden_dim: abs(weights(sized(hidden_dim)) - target)) if size > 1 else 1
    if abs(weights(sized(size)) / target - 1.0) > 0.1:
        raise ConfigError(
            f"--match-weights {core}: no hidden size gives {config.core.name} about {target:,} weights, "
            f"{size} gives {weights(sized(size)):,}; set --hidden-dim"
        )
    return dataclasses.replace(config, core=sized(size))


def make_learner(config: cfg.Config, spaces: Spaces, device: torch.device) -> Learner[Any]:
    """The learner with its network, a function of the seed alone; torch's global generator does not change.

    Raises: ConfigError, before allocating, for sizes that do not fit this machine.
    """
    _check_network_fits(config, spaces)

    def drawn(seed: int, device: torch.device) -> AnyLearner:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = make_network(config, spaces)
            return LEARNERS[type(config.learner)][0](network, config.learner, seed, device)

    learner = drawn(config.run.seed, device)
    cpu = torch.device("cpu")
    learner.expand(config.expansion, config.run.seed, total_steps(config), lambda seed: drawn(seed, cpu).networks)
    return learner


def total_steps(config: cfg.Config) -> int | None:
    """Environment steps of the whole run; with --num-episodes an upper bound, or None if unknown."""
    run, limit = config.run, step_limit(config.env)
    if run.total_steps is not None:
        return run.total_steps
    return None if limit is None else run.num_episodes * limit


def make_replay(
    config: cfg.Config,
    num_lanes: int,
    spaces: Spaces,
    network: Network,
    schedule: TaskSchedule | PhaseSchedule | None = None,
) -> Memory:
    """The memory that the learner's options describe, for `num_lanes` lanes of the task.

    Args: schedule: chooses the task of each sequence where a run has several tasks and a learner that does not act.
    Raises: ConfigError if options do not fit each other, the task or this machine.
    """
    learner = LEARNERS[type(config.learner)][0]
    if issubclass(learner, SequenceLearner):
        return make_sequences(config, schedule)
    sizes = ReplaySizes(
        num_lanes=num_lanes,
        obs_dim=spaces.obs_dim,
        action_shape=None if spaces.low is None else (spaces.action_dim,),
        state_shapes=[tuple(part.shape[1:]) for part in state_parts(network.init_state(1))],
        reset_state_on_trial=config.run.reset_state_on_trial,
        max_episode_steps=step_limit(config.env),
        total_steps=total_steps(config),
    )
    way_out = "lower --buffer-size, --hidden-dim or the sequences' length"
    try:
        buffer = learner.make_replay(config.learner, sizes)
    except ConfigError:
        raise
    except (MemoryError, OverflowError, ValueError) as error:
        raise ConfigError(f"the replay buffer does not fit this machine ({error}); {way_out}") from error
    if buffer.nbytes > _machine_bytes():
        text = f"{buffer.nbytes / 2**30:,.1f} GiB, the machine has {_machine_bytes() / 2**30:,.1f} GiB"
        raise ConfigError(f"the replay buffer takes {text}; {way_out}")
    return buffer


def make_sequences(config: cfg.Config, schedule: TaskSchedule | PhaseSchedule | None = None) -> TaskSequences:
    """The source of a supervised learner's sequences.

    Raises: ConfigError where the task gives no right actions, or its observation shows the last step.
    """
    env, learner = config.env, config.learner
    for flag, observed in (("--observe-reward", env.observe_reward), ("--observe-action", env.observe_action)):
        if observed:
            others = " or ".join(cls.name for cls, (other, _) in LEARNERS.items() if other.acts)
            raise ConfigError(
                f"{flag} needs a learner that plays the task, --algo {learner.name} does not; take --algo {others}"
            )
    rows, steps = batch_shape(config)

    def make_batch(rows: int) -> BatchedTask | None:
        return vector_env(env, rows)

    reset = config.run.reset_state_on_trial
    place = None if schedule is None else schedule.place
    source = TaskSequences(make_env(env), make_batch, steps, reset, place)
    tasks = source.env
    parts = {env.env_name: tasks}
    if isinstance(tasks, TaskSet):
        parts = {name: tasks.member(index) for index, name in enumerate(tasks.names)}
    targets, asked = [], []
    for name, part in parts.items():
        probe = TaskSequences(part, make_batch, max(PROBED_STEPS, steps), reset)
        sequences = probe.sample(min(rows, PROBED_ROWS), np.random.default_rng(config.run.seed))
        target = sequences.target
        known = target >= 0 if target.ndim == 2 else target.isfinite().all(-1)
        if not known.any():
            fitting = " or ".join(fitting_learners(target.ndim == 3))
            raise ConfigError(
                f"--algo {learner.name} needs a task that gives its right actions, --env-name {name} gives none; take "
                f"--algo {fitting}"
            )
        targets.append(known)
        asked.append(known & sequences.decision)
    everywhere, somewhere = torch.cat(targets), torch.cat(asked)
    if config.values()["score_periods"] == "decision" and (
        bool(somewhere.equal(everywhere)) or not all(part.any() for part in asked)
    ):
        where = "in the decision period only" if somewhere.any() else "outside a decision period only"
        raise ConfigError(
            f"--score-periods decision does nothing with --env-name {env.env_name}, whose right actions are {where}; "
            "leave it out"
        )
    return source


def batch_shape(config: cfg.Config) -> tuple[int, int]:
    """(rows, steps) of an update's batch, at least."""
    return LEARNERS[type(config.learner)][0].batch_shape(config.learner, config.run.num_envs)


def acts(config: cfg.Config) -> bool:
    """Whether the learner learns from the steps of lanes, in which it acts."""
    return LEARNERS[type(config.learner)][0].acts


def step_limit(env: cfg.EnvConfig) -> int | None:
    """The time limit of an episode in steps: the user's, else the task's own, else None."""
    limit = env.max_episode_steps
    return time_limit(env.env_name, env.env_args, limit) if isinstance(env, cfg.GymnasiumConfig) else limit


# --- sizes that do not fit the machine --------------------------------------------------------------------


def _machine_bytes() -> int:
    """The machine's memory. Linux lets a process allocate more than this, and kills the process that uses it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63


def _check_network_fits(config: cfg.Config, spaces: Spaces) -> None:
    """Raise ConfigError if weights, target, Adam's two moments and one batch's states and outputs do not fit memory."""
    batch, steps = batch_shape(config)
    try:
        with torch.device("meta"):
            network = make_network(config, spaces)
            state = sum(part[0].numel() for part in state_parts(network.init_state(1)))
        weights = sum(parameter.numel() for parameter in network.parameters())
    except (RuntimeError, OverflowError) as error:  # the size itself overflows
        raise ConfigError("the network does not fit any machine; lower --hidden-dim or --embed-dim") from error
    needed = 4 * (4 * weights + batch * (state + steps * (spaces.obs_dim + 2 * network.hidden_dim)))
    if needed > _machine_bytes():
        text = f"{needed / 2**30:,.1f} GiB, the machine has {_machine_bytes() / 2**30:,.1f} GiB"
        way_out = "lower --hidden-dim, --embed-dim or the batch size"
        raise ConfigError(f"the network and a batch take at least {text}; {way_out}")


def make_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises: ConfigError for "cuda" if there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs an NVIDIA GPU and PyTorch's CUDA build; there is none: use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
