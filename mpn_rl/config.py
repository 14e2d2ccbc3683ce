"""All options of the toolkit: their types, defaults, ranges and help texts.

The command line (`arguments.py`), the reader of `--config` files and `config.json` are generated from these
frozen dataclasses, and every default is written here only. A class registers itself under the name that selects
it (`--core lstm`), so a new core, environment family or learner needs one dataclass here, its module, and one
row in `registry.py`. A preset needs one row of `PRESETS`. `options.py` defines what an option is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mpn_rl.options import (
    LARGEST,
    AtLeast,
    Choice,
    Condition,
    ConfigError,
    Kind,
    Not,
    Same,
    Section,
    flag_of,
    holds,
    nearest,
    option,
    shortened,
)
from mpn_rl.storage.regular_files import read_regular

Options = Mapping[str, object]  # values by option name
Nested = Mapping[str, Options]  # the same by section, in the shape of config.json

# --- when an option does nothing ------------------------------------------------------------------------

FROZEN: Condition = {"freeze_plasticity": (True,)}
SEQUENCES: Condition = {"replay": ("sequence",)}
PRIORITIZED: Condition = {"prioritized": (True,)}
REVIEW: Condition = {"experience_review": (True,)}
DYNAMIC: Condition = {"dynamic_buffer": (True,)}
MEMORYLESS: tuple[Condition, ...] = ({"core": ("mlp",)}, {"core": ("mpn",), **FROZEN})
# A loss on one step, from a state without gradient, has no gradient in what changes that state.
ONE_STEP: tuple[Condition, ...] = (
    {"replay": ("transition",)},
    {"replay": ("sequence",), "sequence_length": (1,)},
    {"rollout_steps": (1,)},
    {"bptt_chunk_size": (1,)},
    {"learner": ("supervised",), "sequence_length": (1,)},
)
UNTRAINED: tuple[Condition, ...] = (FROZEN, *ONE_STEP)

# --- environments ---------------------------------------------------------------------------------------


class EnvConfig(Kind):
    """A family of environments. Every family has these options."""

    env_name: str
    env_args: dict[str, object]
    max_episode_steps: int | None
    observe_reward: bool
    observe_action: bool
    change: str
    change_every: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for task in self.env_name.split(","):
            module, colon, name = task.rpartition(":")
            if colon and not (name and all(part.isidentifier() for part in module.split("."))):
                raise ConfigError(
                    "--env-name must be an id such as CartPole-v1, or package.module:Name-v0 for a task of your own, "
                    f"got {shortened(task)}"
                )

    @property
    def several(self) -> bool:
        """Whether a run has several tasks."""
        return False

    @property
    def changes(self) -> bool:
        """Whether the task changes from phase to phase."""
        return self.change != "none" and self.change_every is not None

    @property
    def task(self) -> str:
        """The task and its options, as `task_title` names them. Runs are seeds of one task only where it is equal."""
        return task_title({"name": self.name, **vars(self)})

    def note(self) -> str:
        """A remark on these options that a training starts with, or an empty text."""
        return ""


CHANGES: Condition = {"change_every": Not([None])}
PHASES: Condition = {"change": Not(["none"])}
ONE_PHASE: tuple[Condition, ...] = ({"change_every": (AtLeast("total_steps"),)},)
PHASE_HELP = "steps of a phase, after which the task changes as --change says; none: it never does"


@dataclass(frozen=True)
class GymnasiumConfig(EnvConfig, name="gymnasium"):
    env_name: str = option("CartPole-v1", "Gymnasium id")
    env_args: dict[str, object] = option({}, "argument of the environment's constructor", flag="--env-arg")
    max_episode_steps: int | None = option(None, "time limit in steps; none: that of the task", low=1)
    mask_velocity: bool = option(False, "hide the velocities of a classic-control task, so that it needs memory")
    observe_reward: bool = option(False, "observe the last reward, too")
    observe_action: bool = option(False, "observe the last action, too; a choice is one-hot")
    change: Literal["none", "friction", "gravity", "permute-observations", "reverse-actions"] = option(
        "none", "what changes about the task from one phase of the run to the next", needs=CHANGES
    )
    change_every: int | None = option(None, PHASE_HELP, low=1, needs=PHASES, idle=ONE_PHASE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "," in self.env_name or self.env_name in COLLECTIONS or is_task_file(self.env_name):
            raise ConfigError(
                f"--env-name must be one task, got {shortened(self.env_name)}; several tasks in one run are for "
                "train-neurogym"
            )


# NeuroGym's collections, whose names stand for all of their tasks.
COLLECTIONS = ("yang19", "perceptualdecisionmaking")


@dataclass(frozen=True)
class NeuroGymConfig(EnvConfig, name="neurogym"):
    env_name: str = option(
        "ContextDecisionMaking-v0",
        "NeuroGym task; --list-envs shows all. Several, repeated or A,B; yang19; or a FILE.toml: one agent learns all",
    )
    env_args: dict[str, object] = option({}, "argument of the task's constructor", flag="--env-arg")
    task_schedule: Literal["mixed", "blocked", "curriculum"] = option(
        "mixed",
        "of several tasks, that of an episode: drawn (mixed), one block of the run after the other (blocked), or drawn "
        "by lack of success in the last evaluations (curriculum)",
        idle=[{"task_schedule": ("curriculum",), "eval_freq": (0,)}],
    )
    task_weights: dict[str, object] = option(
        {}, "weight of one of several tasks, 1 by default: how often it is drawn, or its share in blocks",
        flag="--task-weight",
    )  # fmt: skip
    max_episode_steps: int = option(150, "time limit in steps; NeuroGym tasks never terminate by themselves", low=1)
    observe_reward: bool = option(False, "observe the last reward, too")
    observe_action: bool = option(False, "observe the last action, too; a choice is one-hot")
    change: Literal["none", "rule", "permute-observations"] = option(
        "none", "what changes about the task from one phase of the run to the next", needs=CHANGES
    )
    change_every: int | None = option(None, PHASE_HELP, low=1, needs=PHASES, idle=ONE_PHASE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.several and self.change != "none":
            raise ConfigError(
                f"--change {self.change} needs one task, --env-name {self.env_name} has several; for a sequence of "
                "tasks take --task-schedule blocked"
            )
        names = self.env_name.split(",")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"--env-name must name each task once, got {twice} {names.count(twice)} times")
        if "" in names:
            raise ConfigError(f"--env-name must be tasks joined by commas, got {shortened(self.env_name)}")
        several = "give several tasks: --env-name A --env-name B"
        if self.task_schedule != "mixed" and not self.several:
            raise ConfigError(
                f"--task-schedule {self.task_schedule} does nothing with one task, --env-name {self.env_name}; "
                f"leave it out, or {several}"
            )
        if self.task_weights and not self.several:
            raise ConfigError(
                f"--task-weight does nothing with one task, --env-name {self.env_name}; leave it out, or {several}"
            )
        for name, weight in self.task_weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < LARGEST:
                raise ConfigError(
                    f"--task-weight {name} must be a number greater than 0, got {shortened(weight)}; "
                    "to leave a task out, do not name it in --env-name"
                )

    @property
    def several(self) -> bool:
        """Whether a run has several tasks."""
        return "," in self.env_name or self.env_name in COLLECTIONS

    def note(self) -> str:
        if self.env_name != "ContextDecisionMaking-v0" or self.env_args.get("use_expl_context"):
            return ""
        return (
            "the context of ContextDecisionMaking-v0 is fixed by default: one channel counts in all trials, the other "
            "is a distractor. With --env-arg use_expl_context=true it varies from trial to trial, and the task shows it"
        )


def task_title(env: Options) -> str:
    """The task and its options that differ from their defaults: ContextDecisionMaking-v0(use_expl_context=True).

    The time limit is left out.

    Args: env: the section "env" of a configuration, as in config.json.
    """
    arguments = env.get("env_args") or {}
    assert isinstance(arguments, dict)
    section = EnvConfig.registry.get(str(env.get("name")))
    others = (
        {field.name: Choice("", section).default(field) for field in dataclasses.fields(section)} if section else {}
    )
    names = others.keys() - {"env_name", "env_args", "max_episode_steps"}
    changed = {name: env[name] for name in names if name in env and env[name] != others[name]}
    given = ", ".join(f"{name}={value!r}" for name, value in sorted({**arguments, **changed}.items()))
    return f"{env['env_name']}({given})" if given else str(env["env_name"])


# --- cores ----------------------------------------------------------------------------------------------

Granularity = Literal["scalar", "pre", "post", "matrix"]


class CoreConfig(Kind):
    """A recurrent (or memoryless) core."""

    def note(self) -> str:
        """A remark on these options that a training starts with, or an empty text."""
        return ""


@dataclass(frozen=True)
class MPNConfig(CoreConfig, name="mpn"):
    hidden_dim: int = option(128, "hidden units per layer", low=1)
    num_layers: int = option(1, "stacked layers", low=1, high=100)
    activation: Literal["tanh", "relu", "sigmoid", "linear"] = option("tanh", "activation function f")
    eta: float = option(
        1.0, "Hebbian learning rate; negative is anti-Hebbian", idle=[FROZEN, {"eta_init": ("xavier",)}]
    )
    eta_init: Literal["constant", "xavier"] = option(
        "constant", "initial eta: --eta, or drawn like Xavier's weights, with either sign", idle=[FROZEN]
    )
    lambda_decay: float = option(0.85, "decay of M per step", low=0.0, high=1.0, idle=[FROZEN])
    lambda_max: float = option(
        1.0,
        "upper bound of lambda while it is trained",
        above=0.0,
        high=1.0,
        needs={"train_lambda": (True,)},
        idle=UNTRAINED,
    )
    eta_shape: Granularity = option(
        "scalar",
        "one eta, one per input (pre), per hidden unit (post), or per synapse",
        needs={"train_eta": (True,)},
        idle=UNTRAINED,
    )
    lambda_shape: Granularity = option(
        "scalar",
        "one lambda, one per input (pre), per hidden unit (post), or per synapse",
        needs={"train_lambda": (True,)},
        idle=UNTRAINED,
    )
    train_eta: bool = option(True, "learn eta by backpropagation", idle=UNTRAINED)
    train_lambda: bool = option(True, "learn lambda by backpropagation", idle=UNTRAINED)
    train_m0: bool = option(
        False,
        "learn the initial modulation M(0); else it is 0",
        idle=[FROZEN, {"learner": ("dqn",), "replay": ("transition",)}],
    )
    form: Literal["multiplicative", "additive"] = option("multiplicative", "W * (M + 1), or W + M", idle=[FROZEN])
    rule: Literal["associative", "presynaptic", "postsynaptic", "oja"] = option(
        "associative", "update rule of M", idle=[FROZEN]
    )
    m_activation: Literal["none", "tanh"] = option("none", "function that bounds M after each update", idle=[FROZEN])
    bias: bool = option(True, "use a bias b")
    freeze_plasticity: bool = option(False, "keep M at 0: the control without memory")
    kernel: Literal["auto", "reference", "fused"] = option("auto", "scan over time: fused, or plain PyTorch")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lambda_decay > self.lambda_max:
            raise ConfigError(
                f"--lambda-decay must lie in [0, --lambda-max = {self.lambda_max}], got {self.lambda_decay}"
            )


@dataclass(frozen=True)
class RecurrentMPNConfig(MPNConfig, name="mpn-recurrent"):
    """The MPN's options; see `recurrent_mpn.RecurrentMPN` for the equations."""

    m_activation: Literal["none", "tanh"] = option("tanh", "function that bounds M after each update", idle=[FROZEN])
    freeze_plasticity: bool = option(False, "keep M at 0: a plain RNN")


@dataclass(frozen=True)
class RNNConfig(CoreConfig, name="rnn"):
    hidden_dim: int = option(128, "hidden units per layer", low=1)
    num_layers: int = option(1, "stacked layers", low=1, high=100)


@dataclass(frozen=True)
class GRUConfig(RNNConfig, name="gru"):
    pass


@dataclass(frozen=True)
class LSTMConfig(RNNConfig, name="lstm"):
    pass


@dataclass(frozen=True)
class MLPConfig(CoreConfig, name="mlp"):
    hidden_dim: int = option(128, "hidden units per layer", low=1)
    num_layers: int = option(1, "stacked layers", low=1, high=100)
    activation: Literal["tanh", "relu", "sigmoid", "linear"] = option("tanh", "activation function f")
    layer_norm: bool = option(False, "LayerNorm before each activation function")


@dataclass(frozen=True)
class BackpropamineConfig(CoreConfig, name="backpropamine"):
    """The paper's network in the size of its maze task; see `backpropamine.Backpropamine` for the equations."""

    hidden_dim: int = option(100, "hidden units per layer", low=1)
    cell: Literal["rnn", "lstm"] = option("rnn", "network whose recurrent connections carry the Hebbian trace H")
    trace_rule: Literal["hard-clip", "decay", "oja", "soft-clip"] = option(
        "hard-clip", "how H changes and how it is bounded"
    )
    modulation: Literal["none", "simple", "fanout", "retroactive"] = option(
        "simple", "what gates H: eta; the modulator m; one m per unit (fanout); or m on an eligibility trace"
    )
    alpha_shape: Literal["connection", "neuron", "scalar"] = option(
        "connection", "one plasticity alpha per connection, per postsynaptic neuron, or for all"
    )
    trace_clip: float = option(1.0, "bound c of H", above=0.0, needs={"trace_rule": ("hard-clip", "soft-clip")})
    eta: float = option(
        0.01,
        "initial value of the learned rate of H; of the eligibility trace with retroactive",
        needs={"modulation": ("none", "retroactive")},
    )
    modulator_activation: Literal["tanh", "sigmoid", "linear"] = option(
        "tanh", "activation function of the modulator m", idle=[{"modulation": ("none",)}]
    )
    init_scale: float = option(0.01, "alpha, and w of an RNN, start at this value times U(0, 1)", low=0.0)
    kernel: Literal["auto", "reference", "fused"] = option("auto", "scan over time: fused, or plain PyTorch")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulation == "retroactive" and self.trace_rule in ("decay", "oja"):
            raise ConfigError(
                f"--modulation retroactive needs --trace-rule hard-clip or soft-clip, got {self.trace_rule}; "
                "decay and oja have no form for it: use --modulation simple"
            )
        if self.cell == "rnn":
            return
        if self.trace_rule != "hard-clip":
            raise ConfigError(f"--cell lstm has only --trace-rule hard-clip, got {self.trace_rule}; use --cell rnn")
        if self.modulation == "retroactive":
            raise ConfigError(
                "--cell lstm has no eligibility trace: --modulation must be none, simple or fanout, got retroactive; "
                "use --cell rnn"
            )
        if self.kernel == "fused":
            raise ConfigError("--kernel fused exists for --cell rnn, got lstm; use --kernel auto or reference")

    def note(self) -> str:
        """Of rules that bound H only while the gain lies in [0, 2]."""
        gain = {
            "none": "" if 0.0 <= self.eta <= 2.0 else f"--eta {self.eta}",
            "simple": "" if self.modulator_activation == "sigmoid" else f"a {self.modulator_activation} modulator",
            "fanout": "--modulation fanout",
        }.get(self.modulation)
        if self.trace_rule not in ("decay", "oja") or not gain:
            return ""
        return (
            f"--trace-rule {self.trace_rule} with {gain} does not bound H, which may grow until the training diverges; "
            "use --modulation simple --modulator-activation sigmoid, or --trace-rule hard-clip"
        )


@dataclass(frozen=True)
class EncoderConfig(Section):
    """The layer between the observation and the core; see `encoder.Encoder` for the reason."""

    embed_dim: int = option(
        32,
        "width of the learned embedding tanh(Ax + a) in front of the core; 0: none",
        low=0,
        idle=[{"random_projection": Not([0])}],
    )
    random_projection: int = option(
        0, "width of a fixed random projection Ax + a that replaces the learned embedding; 0: none", low=0
    )
    constant_input: bool = option(False, "append a constant 1 to the core's input")


# --- learners -------------------------------------------------------------------------------------------


class LearnerConfig(Kind):
    """A learning algorithm. Every one has these two options."""

    learning_rate: float
    lr_final: float

    def stride(self, num_envs: int) -> int:
        """Environment steps between two points at which a run can end: one of each lane."""
        return num_envs


@dataclass(frozen=True)
class ReplayConfig(Section):
    """Replay memory of the off-policy learners."""

    replay: Literal["transition", "sequence", "trial"] = option(
        "sequence", "what is replayed: single steps, fixed-length sequences, or whole trials"
    )
    replay_state: Literal["zero", "stored", "burn-in"] = option(
        "burn-in",
        "initial state of a replayed sequence: zero, as stored, or as stored and then --burn-in steps",
        idle=[
            *MEMORYLESS,
            {"replay_state": ("stored",), "replay": ("transition", "trial")},  # which have no burn-in
            {"replay": ("trial",), "reset_state_on_trial": (True,)},
        ],
    )
    buffer_size: int = option(50_000, "capacity in steps; with --replay trial in trials (default then: 500)", low=1)
    batch_size: int = option(
        32, "transitions or sequences per update", low=1, needs={"replay": ("transition", "sequence")}
    )
    trial_batch_size: int = option(4, "trials per update", low=1, needs={"replay": ("trial",)})
    burn_in: int = option(
        10,
        "steps that only warm up the state",
        low=0,
        needs={"replay": ("sequence",), "replay_state": ("burn-in",)},
        idle=MEMORYLESS,
    )
    sequence_length: int = option(40, "learning steps per sequence", low=1, needs=SEQUENCES)
    sequence_stride: int = option(20, "steps from one sequence's start to the next one's", low=1, needs=SEQUENCES)
    bptt_chunk_size: int | None = option(
        None,
        "truncated BPTT: steps until gradients stop; none: full BPTT",
        low=1,
        needs={"replay": ("sequence", "trial")},
        idle=[*MEMORYLESS, {"bptt_chunk_size": (AtLeast("sequence_length"),), "replay": ("sequence",)}],
    )
    prioritized: bool = option(False, "sample by TD error")
    priority_exponent: float = option(0.6, "priority = |TD error| to this power", low=0.0, high=1.0, needs=PRIORITIZED)
    importance_exponent: float = option(
        0.4,
        "exponent of the importance-sampling weights",
        low=0.0,
        high=1.0,
        needs=PRIORITIZED,
        idle=[{"priority_exponent": (0.0,)}],
    )
    learning_starts: int = option(1_000, "environment steps before the first update", low=0)
    update_every: int = option(16, "environment steps per update", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_stride > self.sequence_length:
            raise ConfigError(
                f"--sequence-stride must be at most --sequence-length = {self.sequence_length}, "
                f"or some steps are never learned, got {self.sequence_stride}"
            )


@dataclass(frozen=True)
class DQNConfig(ReplayConfig, LearnerConfig, name="dqn"):
    gamma: float = option(0.9, "discount per step", low=0.0, high=1.0)
    n_step: int = option(
        1,
        "steps of reward before bootstrapping; always 1 with --replay transition",
        low=1,
        needs={"replay": ("sequence", "trial")},
        idle=[{"replay": ("sequence",), "sequence_length": (1,)}],
    )
    double_dqn: bool = option(True, "double DQN: the online network picks the next action")
    dueling: bool = option(False, "dueling head: one value of the state, and each action's advantage over their mean")
    loss: Literal["huber", "mse"] = option("huber", "loss on the TD error")
    learning_rate: float = option(3e-3, "Adam's step size", above=0.0)
    lr_final: float = option(0.1, "final step size, as a fraction of --learning-rate", low=0.0, high=1.0)
    grad_clip: float = option(10.0, "largest gradient norm", above=0.0)

    target_update: Literal["soft", "periodic"] = option("soft", "how the target network follows the online network")
    target_tau: float = option(
        0.02, "fraction of the online weights taken per update", above=0.0, high=1.0, needs={"target_update": ("soft",)}
    )
    target_update_freq: int = option(200, "updates between copies", low=1, needs={"target_update": ("periodic",)})
    epsilon_start: float = option(0.5, "exploration at the start", low=0.0, high=1.0)
    epsilon_end: float = option(0.05, "exploration at the end", low=0.0, high=1.0)
    epsilon_decay: float = option(
        0.4,
        "fraction of the run during which epsilon falls",
        above=0.0,
        high=1.0,
        idle=[{"epsilon_start": (Same("epsilon_end"),)}],
    )
    epsilon_schedule: Literal["linear", "exponential", "step"] = option(
        "linear", "how epsilon falls", idle=[{"epsilon_start": (Same("epsilon_end"),)}]
    )
    act_with: Literal["target", "online"] = option(
        "target", "network to evaluate and to save as best_model.pt: the averaged target or the online network"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon_end > self.epsilon_start:
            raise ConfigError(
                f"--epsilon-end must not exceed --epsilon-start, got {self.epsilon_end} > {self.epsilon_start}"
            )


@dataclass(frozen=True)
class OnPolicyConfig(Section):
    """Options of the learners from rollouts."""

    gamma: float = option(0.9, "discount per step", low=0.0, high=1.0)
    rollout_steps: int = option(32, "steps of each lane per update", low=1)
    gae_lambda: float | None = option(
        0.8,
        "lambda of generalised advantage estimation; none: Monte Carlo returns",
        low=0.0,
        high=1.0,
        idle=[{"rollout_steps": (1,)}],
    )
    bootstrap: bool = option(True, "bootstrap where a time limit or the rollout's end cuts an episode")
    value_coef: float = option(0.1, "weight of the value's squared error in the loss", low=0.0)
    entropy_coef: float = option(0.05, "weight of the policy's entropy in the loss", low=0.0)
    entropy_form: Literal["shannon", "simpson"] = option(
        "shannon", "entropy: -sum p log p (shannon), or 1 - sum p^2 (simpson)"
    )
    normalize_advantage: bool = option(False, "scale the advantages of each rollout to mean 0 and standard deviation 1")
    noise_correlation: float = option(
        0.0, "correlation of an action vector's noise from step to step", low=0.0, high=0.999
    )
    bptt_chunk_size: int | None = option(
        None,
        "truncated BPTT: steps until gradients stop; none: full BPTT",
        low=1,
        idle=[*MEMORYLESS, {"bptt_chunk_size": (AtLeast("rollout_steps"),)}],
    )
    learning_rate: float = option(6e-3, "Adam's step size", above=0.0)
    lr_final: float = option(0.1, "final step size, as a fraction of --learning-rate", low=0.0, high=1.0)
    grad_clip: float = option(1.0, "largest gradient norm", above=0.0)
    eval_policy: Literal["greedy", "sample"] = option(
        "greedy", "evaluated policy: the most probable action, or actions drawn as in training"
    )


@dataclass(frozen=True)
class A2CConfig(OnPolicyConfig, LearnerConfig, name="a2c"):
    adam_eps: float = option(1e-8, "Adam's epsilon, which limits the steps along small gradients", above=0.0)
    weight_decay: float = option(0.0, "L2 penalty, added to the gradient (Adam, not AdamW)", low=0.0)
    warmup_updates: int = option(0, "rollouts at the start without an update", low=0)


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig, LearnerConfig, name="ppo"):
    epochs: int = option(20, "passes over each rollout", low=1)
    minibatches: int = option(1, "groups of lanes per pass, each with a step of Adam", low=1)
    clip_range: float = option(
        0.2,
        "change of an action's probability, as a fraction, beyond which nothing is gained",
        above=0.0,
        idle=[{"epochs": (1,), "minibatches": (1,)}],
    )


@dataclass(frozen=True)
class TD3Config(ReplayConfig, LearnerConfig, name="td3"):
    gamma: float = option(0.99, "discount per step", low=0.0, high=1.0)
    n_step: int = option(1, "steps of reward before bootstrapping", low=1)
    n_step_delay: int = option(
        0, "updates with one step of reward before --n-step applies", low=0, idle=[{"n_step": (1,)}]
    )
    learning_rate: float = option(3e-4, "Adam's step size", above=0.0)
    lr_final: float = option(1.0, "final step size, as a fraction of --learning-rate", low=0.0, high=1.0)
    grad_clip: float | None = option(None, "largest gradient norm; none: no limit", above=0.0)
    target_tau: float = option(0.005, "fraction of the online weights taken per update", above=0.0, high=1.0)
    policy_freq: int = option(2, "updates of the critics per update of the actor and the targets", low=1)
    expl_noise: float = option(0.1, "deviation of the exploration noise, in halves of the action's range", low=0.0)
    policy_noise: float = option(0.2, "deviation of the noise on the target's actions, in halves of the range", low=0.0)
    noise_clip: float = option(
        0.5, "largest noise on the target's actions, in halves of the range", low=0.0, idle=[{"policy_noise": (0.0,)}]
    )
    critic_layers: int = option(2, "hidden layers of each critic, as wide as the core", low=1, high=100)
    critic_layer_norm: Literal["none", "last", "all"] = option(
        "none", "hidden layers of the critics with a LayerNorm before the ReLU"
    )
    eval_average: bool = option(False, "evaluate and save a running average of the actor's weights")
    average_tau: float = option(
        0.005,
        "fraction of the actor's weights that the average takes per update",
        above=0.0,
        high=1.0,
        needs={"eval_average": (True,)},
    )
    experience_review: bool = option(False, "replay early transitions more often while few critic units are active")
    review_below: float = option(
        0.4,
        "fraction of active hidden units in the critics below which the review starts",
        above=0.0,
        high=1.0,
        needs=REVIEW,
    )
    review_chance: float = option(
        0.5, "fraction of batches that review when no unit is active", low=0.0, high=1.0, needs=REVIEW
    )
    review_share: float = option(
        0.3, "oldest fraction of the memory, from which a review draws", above=0.0, high=1.0, needs=REVIEW
    )
    dynamic_buffer: bool = option(False, "drop the oldest tenth of the memory when the policy has moved away from it")
    buffer_min_size: int | None = option(
        None, "smallest size of the memory; none: a tenth of --buffer-size", low=1, needs=DYNAMIC
    )
    buffer_threshold: float = option(
        0.2,
        "drop above this distance: half the mean square of action differences, in halves of the range",
        low=0.0,
        needs=DYNAMIC,
    )
    buffer_adjustment_interval: int = option(10_000, "environment steps between two such checks", low=1, needs=DYNAMIC)

    @property
    def smallest_buffer(self) -> int:
        return self.buffer_size // 10 if self.buffer_min_size is None else self.buffer_min_size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smallest_buffer > self.buffer_size:
            raise ConfigError(
                f"--buffer-min-size must not exceed --buffer-size = {self.buffer_size}, got {self.buffer_min_size}"
            )


@dataclass(frozen=True)
class SupervisedConfig(LearnerConfig, name="supervised"):
    batch_size: int = option(32, "sequences per update", low=1)
    sequence_length: int = option(100, "steps per sequence; the state is reset at its start", low=1)
    score_periods: Literal["all", "decision"] = option(
        "all", "steps in the loss: those of the decision period, or all, where the others together weigh the same"
    )
    input_noise: float = option(0.0, "root mean square norm of the noise on the core's input while it learns", low=0.0)
    l1: float = option(0.0, "weight of sum |W| over the core's weights in the loss", low=0.0)
    learning_rate: float = option(5e-3, "Adam's step size", above=0.0)
    lr_final: float = option(0.1, "final step size, as a fraction of --learning-rate", low=0.0, high=1.0)
    grad_clip: float = option(10.0, "largest gradient norm", above=0.0)

    def stride(self, num_envs: int) -> int:
        """Environment steps of one update."""
        return self.batch_size * self.sequence_length


# --- expansion ------------------------------------------------------------------------------------------


class ExpansionConfig(Kind):
    """How the topology grows and is pruned while the network learns, or what else keeps it able to learn."""


SPARSITIES = ("sparsity", "actor_sparsity", "critic_sparsity")  # at the end
TD3: Condition = {"learner": ("td3",)}
# No network changes: each of TD3's two is dense or static.
UNCHANGING: tuple[Condition, ...] = tuple(
    {f"{actor}_actor": (actor == "static",), f"{critic}_critic": (critic == "static",)}
    for actor in ("expand", "static")
    for critic in ("expand", "static")
)
UNMASKED: Condition = {
    "sparsity": (0.0,),
    "initial_sparsity": (None, 0.0),
    "actor_sparsity": (None, 0.0),
    "critic_sparsity": (None, 0.0),
}
NO_MASKS: tuple[Condition, ...] = ({"expand_actor": (False,), "expand_critic": (False,)}, UNMASKED)
NO_GROWTH: tuple[Condition, ...] = ({"grow": ("none",)}, {"initial_sparsity": (None,)}, *UNCHANGING)
# No weight grows: neither towards the final number, nor in exchange for another.
NOTHING_GROWS: tuple[Condition, ...] = (
    {"grow": ("none",)},
    {"initial_sparsity": (None,), "drop_fraction": (0.0,)},
    {"initial_sparsity": (None,), "prune": ("none",)},
    UNMASKED,
    *UNCHANGING,
)
NO_EVENTS: tuple[Condition, ...] = tuple({**condition, "recycle": (False,)} for condition in NOTHING_GROWS[:4])
NEVER: tuple[Condition, ...] = (*NO_EVENTS, *UNCHANGING)  # no event of any network


@dataclass(frozen=True)
class NoExpansionConfig(ExpansionConfig, name="none"):
    """Dense layers throughout."""


@dataclass(frozen=True)
class PaperExpansionConfig(ExpansionConfig, name="paper"):
    """Neuroplastic Expansion as its paper describes it; see `expansion/topology.py` for the equations.

    The paper does not state the two fractions and the interval; their defaults are ours.
    """

    sparsity: float = option(
        0.25,
        "fraction of absent weights at the end, in [0, 1)",
        idle=[
            {"expand_actor": (False,), "expand_critic": (False,)},
            {"actor_sparsity": Not([None]), "critic_sparsity": Not([None])},
            {"expand_actor": (False,), "critic_sparsity": Not([None])},
            {"actor_sparsity": Not([None]), "expand_critic": (False,)},
        ],
    )
    actor_sparsity: float | None = option(
        None, "--sparsity of TD3's actor; none: as --sparsity", needs={**TD3, "expand_actor": (True,)}
    )
    critic_sparsity: float | None = option(
        None, "--sparsity of TD3's critics; none: as --sparsity", needs={**TD3, "expand_critic": (True,)}
    )
    initial_sparsity: float | None = option(
        0.8, "fraction of absent weights at the start; none: as at the end", idle=UNCHANGING
    )
    grow: Literal["gradient", "accumulated", "random", "none"] = option(
        "gradient",
        "which absent weights grow: largest gradient, largest mean of several gradients, or random",
        idle=NOTHING_GROWS[1:],
    )
    grad_accumulation_n: int = option(
        1, "number of gradients in the mean", low=1, high=1000, needs={"grow": ("accumulated",)}, idle=NOTHING_GROWS[1:]
    )
    prune: Literal["magnitude", "dormant", "none"] = option(
        "dormant",
        "which weights are pruned: the smallest, or those of dormant units",
        idle=[
            *NOTHING_GROWS[:2],
            {"initial_sparsity": Not([None]), "prune_ratio": (0.0,), "drop_fraction": (0.0,)},
            UNMASKED,
            *UNCHANGING,
        ],
    )
    dormancy_tau: float = option(
        0.0,
        "largest activity of a dormant unit, per mean activity of its layer",
        low=0.0,
        idle=[
            *NO_EVENTS,
            {"prune": ("magnitude", "none"), "recycle": (False,)},
            {"prune_ratio": (0.0,), "drop_fraction": (0.0,), "recycle": (False,)},
            *UNCHANGING,
        ],
    )
    recycle: bool = option(False, "initialise dormant units again (ReDo)", idle=UNCHANGING)
    new_weights: Literal["zero", "lecun"] = option("zero", "value of a grown weight", idle=NOTHING_GROWS)
    schedule: Literal["constant", "cosine", "linear"] = option(
        "cosine",
        "growth over time: at a constant rate, slowing down (cosine), or evenly to the end (linear)",
        idle=NO_GROWTH,
    )
    grow_fraction: float | None = option(
        None,
        "fraction of the room to grow that one event takes (zeta); none: just enough to reach the end in time",
        above=0.0,
        idle=NO_GROWTH,
    )
    prune_ratio: float = option(
        0.2,
        "pruned weights per grown weight while the network grows, at most; in [0, 1)",
        idle=[{"prune": ("none",), "grow_fraction": (None,)}, *NO_GROWTH],
    )
    drop_fraction: float = option(
        0.0,
        "fraction of the weights that an event replaces after growth",
        low=0.0,
        idle=[
            {"grow": ("none",)},
            {"prune": ("none",)},
            # Growth takes until the last event.
            {"initial_sparsity": Not([None, *map(Same, SPARSITIES)]), "grow_fraction": (None,)},
            UNMASKED,
            *UNCHANGING,
        ],
    )
    layer_density: Literal["erk", "uniform"] = option(
        "erk", "how the weights are distributed over the layers", idle=NO_MASKS
    )
    initial_mask: Literal["random", "magnitude"] = option(
        "random", "which weights are present at the start", idle=NO_MASKS
    )
    exempt: str = option(
        "first,last", "layers that stay dense: first, last, or patterns of their names; empty: none", idle=NO_MASKS
    )
    update_interval: int = option(1_000, "environment steps between events (delta)", low=1, idle=NEVER)
    expansion_start: int = option(0, "environment step from which the interval counts", low=0, idle=NEVER)
    expansion_end: int | None = option(
        None, "environment step of the last event; none: the end of the run", low=1, idle=NEVER
    )
    expand_actor: bool = option(True, "expand TD3's actor; else it stays dense", needs=TD3)
    expand_critic: bool = option(True, "expand TD3's critics; else they stay dense", needs=TD3)
    static_actor: bool = option(
        False,
        "keep the mask of TD3's actor unchanged, at its final sparsity",
        needs={**TD3, "expand_actor": (True,)},
        idle=NO_EVENTS,
    )
    static_critic: bool = option(
        False,
        "keep the masks of TD3's critics unchanged, at their final sparsity",
        needs={**TD3, "expand_critic": (True,)},
        idle=NO_EVENTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sparsity", "actor_sparsity", "critic_sparsity", "initial_sparsity", "prune_ratio"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ConfigError(f"--{name.replace('_', '-')} must lie in [0, 1), got {value}")
        if self.expansion_end is not None and self.expansion_end <= self.expansion_start:
            raise ConfigError(
                f"--expansion-end must lie after --expansion-start = {self.expansion_start}, got {self.expansion_end}"
            )
        finals = (self.sparsity, self.actor_sparsity or 0.0, self.critic_sparsity or 0.0)
        if self.initial_sparsity is not None and self.initial_sparsity < max(finals):
            raise ConfigError(
                f"--initial-sparsity must be at least the final sparsity {max(finals)}, since the network grows, "
                f"got {self.initial_sparsity}"
            )
        if self.grow == "none" and self.initial_sparsity not in (None, self.sparsity):
            raise ConfigError(f"--grow none keeps --initial-sparsity {self.initial_sparsity}; set that to none")
        if (self.grow == "accumulated") != (self.grad_accumulation_n > 1):
            raise ConfigError(
                "--grow accumulated and --grad-accumulation-n of 2 or more go together, "
                f"got {self.grow} and {self.grad_accumulation_n}"
            )
        if self.schedule == "constant" and self.grow_fraction is None:
            raise ConfigError("--schedule constant needs a rate, --grow-fraction; without a rate use --schedule linear")
        if self.schedule == "linear" and self.grow_fraction is not None:
            raise ConfigError("--grow-fraction does nothing with --schedule linear, which ends at --expansion-end")


@dataclass(frozen=True)
class L2InitConfig(ExpansionConfig, name="l2-init"):
    """L2 towards the initial weights; `expansion/plasticity_remedies.py` has the equations of this and the next.

    The paper chooses the coefficient for each problem; the default is ours.
    """

    l2_init_coef: float = option(1e-3, "weight of the squared distance from the initial weights in the loss", above=0.0)


@dataclass(frozen=True)
class ShrinkPerturbConfig(ExpansionConfig, name="shrink-perturb"):
    """Weights are shrunk and mixed with newly drawn ones, at an interval. The default of the interval is ours."""

    shrink_factor: float = option(0.8, "factor of the weights at an event", low=0.0, high=1.0)
    perturb_factor: float = option(0.2, "factor of the newly drawn weights that an event adds", low=0.0, high=1.0)
    update_interval: int = option(10_000, "environment steps between events", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.shrink_factor, self.perturb_factor) == (1.0, 0.0):
            raise ConfigError("--shrink-factor 1.0 with --perturb-factor 0.0 changes no weight; take --expansion none")


@dataclass(frozen=True)
class ContinualBackpropConfig(ExpansionConfig, name="continual-backprop"):
    """Units of little use are replaced during the whole run; `expansion/continual_backprop.py` has the equations."""

    replacement_rate: float = option(1e-4, "replaced units per mature unit and update (rho)", above=0.0, high=1.0)
    maturity: int = option(100, "updates for which a new unit is protected (m)", low=0)
    utility_decay: float = option(0.99, "decay of a unit's utility per update (d)", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.utility_decay == 1.0:
            raise ConfigError("--utility-decay must be less than 1, or no unit gets a utility, got 1.0")


# --- presets --------------------------------------------------------------------------------------------

# Names that select one of the dataclasses above with other defaults than its own.
PRESETS = [
    Choice("mpn-frozen", MPNConfig, "the control without memory", {"freeze_plasticity": True}),
    Choice(
        "backpropamine-simplemaze",
        BackpropamineConfig,
        "as in the public code's simplemaze, plastic even where m is 0 (by the bias of the fan-out)",
        {"modulation": "fanout", "trace_clip": 2.0, "init_scale": 0.001},
    ),
    Choice(
        "backpropamine-maze",
        BackpropamineConfig,
        "as in the public code's maze, modulated (--modulation none and retroactive are its other plastic networks)",
    ),
    Choice(
        "backpropamine-cue-reward",
        BackpropamineConfig,
        "as in the public code's cue-reward task",
        {"hidden_dim": 200, "eta": 0.1},
    ),
    Choice(
        "reference",
        PaperExpansionConfig,
        "what the public code of Neuroplastic Expansion does",  # expansion/topology.py lists its errors
        {
            "prune": "magnitude",
            "schedule": "constant",
            "grow_fraction": 0.008,
            "prune_ratio": 0.4,
            "drop_fraction": 0.2,
            "initial_mask": "magnitude",
            "exempt": "",
            "update_interval": 100,
        },
    ),
    Choice("grow", PaperExpansionConfig, "the control that only grows", {"prune": "none", "prune_ratio": 0.0}),
    Choice(
        "static",
        PaperExpansionConfig,
        "the control that never changes (sparse from the start, with the same masks throughout)",
        {"initial_sparsity": None, "grow": "none", "prune": "none", "prune_ratio": 0.0},
    ),
    Choice(
        "rigl",
        PaperExpansionConfig,
        "RigL (Evci et al. 2020), at one density, where weights of large gradient replace small ones",
        {"initial_sparsity": None, "prune": "magnitude", "drop_fraction": 0.3},
    ),
    Choice(
        "redo",
        PaperExpansionConfig,
        "ReDo (Sokar et al. 2023), a dense network whose dormant units are initialised again",
        {
            "sparsity": 0.0,
            "initial_sparsity": None,
            "grow": "none",
            "prune": "none",
            "prune_ratio": 0.0,
            "dormancy_tau": 0.1,
            "recycle": True,
        },
    ),
]


# --- the run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunConfig(Section):
    num_episodes: int = option(1_000, "episodes, over all lanes", low=1, needs={"total_steps": (None,)})
    total_steps: int | None = option(None, "environment steps, instead of --num-episodes", low=1)
    num_envs: int = option(
        20, "environments (lanes) that step together", low=1, high=10_000, idle=[{"learner": ("supervised",)}]
    )
    reset_state_on_trial: bool = option(
        False, "reset the core's state at each trial, not only at each episode", idle=MEMORYLESS
    )
    seed: int = option(0, "random seed of everything", low=0, high=2**31 - 1)
    eval_freq: int = option(
        7_500, "environment steps between evaluations, which select best_model.pt; 0: only at the end", low=0
    )
    eval_episodes: int = option(100, "episodes per evaluation", low=1, high=100_000)
    target_accuracy: float | None = option(
        None,
        "stop at the first evaluation with this accuracy; none: never",
        low=0.0,
        high=1.0,
        idle=[{"eval_freq": (0,)}],
    )
    min_updates: int = option(
        0, "updates before --target-accuracy may stop the run", low=0, needs={"target_accuracy": Not([None])}
    )
    checkpoint_freq: int = option(50_000, "environment steps between saves of last.pt; 0: only at the end", low=0)
    log_freq: int = option(1, "episodes per row of metrics.jsonl, which stores their means", low=1)
    plasticity_metrics_freq: int = option(
        5_000, "environment steps between measurements of the network's plasticity; 0: none", low=0
    )
    print_freq: int = option(100, "episodes between printed lines; 0: none", low=0)
    plot_training: bool = option(True, "draw plots/training_curves.png")
    tensorboard: bool = option(False, "also write TensorBoard event files")
    wandb: bool = option(False, "also log to Weights & Biases; with WANDB_MODE=offline into the experiment's folder")
    wandb_project: str = option("mpn-rl", "project in Weights & Biases", needs={"wandb": (True,)})
    device: Literal["auto", "cpu", "cuda"] = option("auto", "device of the networks")
    threads: int = option(1, "CPU threads; small networks are fastest on one", low=1, high=256)


@dataclass(frozen=True)
class Config:
    """All options of one run: config.json stores them, and eval, render and analyze rebuild the run from them."""

    env: EnvConfig
    core: CoreConfig
    encoder: EncoderConfig
    learner: LearnerConfig
    expansion: ExpansionConfig
    run: RunConfig

    @property
    def stem(self) -> str:
        """Task, core and seed, with which the names of experiments begin that the user does not choose."""
        first, *others = self.env.env_name.split(",")
        task = f"{first.rpartition(':')[2]}-and-{len(others)}" if others else first
        return f"{task}-{self.core.name}-{self.run.seed}"

    def phase(self, step: int | None = None) -> int | None:
        """The phase, from 0, of a run whose task changes; None where it does not. Args: step: None: the last phase."""
        every, total = self.env.change_every, self.run.total_steps
        if not self.env.changes or every is None or total is None:
            return None
        return (total - 1 if step is None else min(step, total - 1)) // every

    def values(self) -> dict[str, object]:
        """Every option by name, and the kind of each part by the part's name."""
        sections = {part: getattr(self, part) for part in PARTS}
        values = {part: type(section).name for part, section in sections.items() if part in KINDS}
        for section in sections.values():
            values |= {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
        return values

    def to_dict(self) -> dict[str, dict[str, object]]:
        """The options by section, as config.json stores them."""
        sections = {part: getattr(self, part) for part in PARTS}
        names = {part: {"name": section.name} for part, section in sections.items() if part in KINDS}
        return {part: {**names.get(part, {}), **dataclasses.asdict(section)} for part, section in sections.items()}


# Parts of which there are several kinds: the flag that selects one, and the base class of the kinds.
KINDS: dict[str, tuple[str, type[Kind]]] = {
    "env": ("env.name", EnvConfig),  # no flag: the command selects it
    "core": ("--core", CoreConfig),
    "learner": ("--algo", LearnerConfig),
    "expansion": ("--expansion", ExpansionConfig),
}
FIXED: dict[str, type[Section]] = {"encoder": EncoderConfig, "run": RunConfig}
PARTS = ("env", "core", "encoder", "learner", "expansion", "run")
ADDED = ("expansion",)  # parts that config.json files of older versions lack

# The kinds that a training command uses by default, and the defaults that a learner changes under a command: its own
# options and those of other sections.
COMMAND_DEFAULTS: dict[str, dict[str, str]] = {
    "train-neurogym": {"env": "neurogym", "core": "mpn", "learner": "dqn", "expansion": "none"},
    "train": {"env": "gymnasium", "core": "mpn", "learner": "dqn", "expansion": "none"},
}
LEARNER_DEFAULTS: dict[tuple[str, str], Options] = {
    ("train", "dqn"): {
        "gamma": 0.99,
        "learning_rate": 1e-3,
        "n_step": 4,
        "update_every": 10,
        "dueling": True,  # where every step has a reward, all Q are large and differ little
        "target_tau": 0.005,  # returns near 100 need a slow target network to stay stable
        "buffer_size": 150_000,  # the whole run: an agent that no longer replays its early failures repeats them
        "total_steps": 150_000,  # an episode of CartPole-v1 grows from about 20 steps to 500 during training
        "eval_freq": 5_000,
        "eval_episodes": 50,
    },
    ("train", "a2c"): {
        "gamma": 0.98,
        "rollout_steps": 16,
        "learning_rate": 2e-3,
        "lr_final": 0.0,
        "gae_lambda": 0.95,
        "entropy_coef": 0.0,
        "num_envs": 8,
        "total_steps": 500_000,
        "eval_freq": 25_000,
        "eval_episodes": 50,
    },
    ("train-neurogym", "a2c"): {
        "num_envs": 8,  # one update per 256 steps; a step costs an eighth of a step with replay
        "total_steps": 400_000,
        "eval_freq": 40_000,
    },
    ("train", "ppo"): {
        "gamma": 0.98,
        "rollout_steps": 32,
        "learning_rate": 1e-3,
        "lr_final": 0.0,
        "gae_lambda": 0.8,
        "value_coef": 0.5,
        "entropy_coef": 0.0,
        "normalize_advantage": True,
        "num_envs": 8,
        "total_steps": 100_000,
        "eval_freq": 10_000,
        "eval_episodes": 50,
    },
    ("train", "td3"): {
        "env_name": "Pendulum-v1",
        "core": "mlp",
        "num_envs": 1,
        "buffer_size": 1_000_000,
        "update_every": 4,
        "total_steps": 20_000,
        "eval_freq": 5_000,
        "eval_episodes": 10,
    },
}
SUPERVISED: Options = {  # an update is 3,200 steps, so everything that counts steps counts more of them
    "total_steps": 16_000_000,
    "eval_freq": 640_000,
    "checkpoint_freq": 3_200_000,
    "plasticity_metrics_freq": 640_000,
    "log_freq": 3_200,  # an episode is a sequence
}
LEARNER_DEFAULTS |= {
    ("train-neurogym", "supervised"): SUPERVISED,
    ("train", "supervised"): {
        **SUPERVISED,
        "env_name": "Integration-v0",
        "batch_size": 64,
        "sequence_length": 21,  # one sequence of the task
        "total_steps": 2_688_000,  # 2,000 updates
        "eval_freq": 268_800,
        "plasticity_metrics_freq": 268_800,
    },
}
# Defaults that a learner changes for one core only.
CORE_DEFAULTS: dict[tuple[str, str], Options] = {
    ("td3", "mlp"): {  # Fujimoto et al. 2018
        "embed_dim": 0,
        "hidden_dim": 256,
        "num_layers": 2,
        "activation": "relu",
        "replay": "transition",
        "batch_size": 256,
        "update_every": 1,
        "learning_rate": 1e-3,  # the paper's; the 3e-4 of its authors' later code learns HalfCheetah-v4 more slowly
    }
}
# Defaults that the kind of replay changes, after the above.
REPLAY_DEFAULTS: dict[str, Options] = {
    "trial": {"buffer_size": 500},  # in trials; tens of thousands of whole trials would take gigabytes
    "transition": {"n_step": 1},
}


def choices(part: str) -> dict[str, Choice]:
    """What may stand for a part of the configuration, by name: every dataclass, and after each the presets of it."""
    if part in FIXED:
        return {part: Choice("", FIXED[part])}
    known: dict[str, Choice] = {}
    for name, section in KINDS[part][1].registry.items():
        known[name] = Choice(name, section)
        known |= {preset.name: preset for preset in PRESETS if preset.section is section}
    return known


def changed_defaults(command: str, learner: str, core: str | None = None) -> dict[str, object]:
    """The defaults that a command, a learner and a core change; None stands for the learner's default core."""
    defaults = {**COMMAND_DEFAULTS[command], **LEARNER_DEFAULTS.get((command, learner), {})}
    return {**defaults, **CORE_DEFAULTS.get((learner, core or str(defaults["core"])), {})}


def make_config(command: str, flags: Options, file: Nested | None = None) -> Config:
    """The configuration of one run: flags override the file, which overrides the command's defaults.

    Args:
        command: "train" or "train-neurogym".
        flags: values by field name, and the names of the kinds as "core", "learner" and "expansion".
        file: options by section, in the shape of config.json.
    Returns: the checked configuration.
    Raises: ConfigError for an unknown key, a flag without effect, or a value out of range.
    """
    file, flags = file or {}, read_task_file(flags)
    unknown = [key for key in file if key not in (*PARTS, "network", "versions")]
    if unknown:
        raise ConfigError(f"unknown section {shortened(unknown[0])} in the configuration{nearest(unknown[0], PARTS)}")
    for other, preset in COMMAND_DEFAULTS.items():  # its tasks would silently replace this command's
        if other != command and file.get("env", {}).get("name") == preset["env"]:
            message = f"env.name is {preset['env']!r} in the configuration: take the command {other}, not {command}"
            raise ConfigError(message)
    length = {"num_episodes", "total_steps"}
    if length & flags.keys():  # replaces the length that the file states
        file = {**file, "run": {name: value for name, value in file.get("run", {}).items() if name not in length}}
    given = {**file.get("run", {}), **flags}
    learner = _choose("learner", COMMAND_DEFAULTS[command], flags, file).name
    core = _choose("core", changed_defaults(command, learner), flags, file).name
    defaults = changed_defaults(command, learner, core)
    if "num_episodes" in given and "total_steps" not in given:
        defaults["total_steps"] = None  # the default must not override the number that the user gives
    replay = {**defaults, **file.get("learner", {}), **flags}.get("replay")
    defaults |= REPLAY_DEFAULTS.get(str(replay), {})
    chosen = {part: _choose(part, defaults, flags, file) for part in PARTS}
    refuse_unread_flags(flags, chosen)
    config = Config(**{part: _build_section(part, choice, defaults, flags, file) for part, choice in chosen.items()})
    stated = () if "versions" in file else PARTS  # what a run has stored names every option
    named = {name for part in stated for name in file.get(part, {})} | flags.keys()
    for choice in chosen.values():
        for field in dataclasses.fields(choice.section):
            default = defaults.get(field.name, choice.default(field))
            reason = idle_reason(field, config) if field.name in named else None
            if reason and config.values()[field.name] != default:
                raise ConfigError(reason)
    return config


def config_from_dict(nested: Nested) -> Config:
    """The configuration that `Config.to_dict` wrote.

    An option that the file lacks, because it is younger than the file, takes its default, or what was done before.

    Raises: ConfigError for a missing section, an unknown key or a value out of range.
    """
    for part in PARTS:
        if part in ADDED and part not in nested:
            continue
        if not isinstance(nested.get(part), Mapping):
            raise ConfigError(f"the configuration has no section {part!r}")
        if part in KINDS and "name" not in nested[part]:
            raise ConfigError(f"section {part!r} of the configuration has no 'name'")
    command = "train-neurogym" if nested["env"]["name"] == "neurogym" else "train"
    if nested["learner"]["name"] == "dqn":
        nested = {**nested, "learner": {"dueling": False, **nested["learner"]}}  # as before there was a choice
    return make_config(command, {}, {"versions": {}, **nested})


def package_data(folder: str) -> Path:
    """The folder configs/ or condor/: inside the package in a wheel, beside it in a clone."""
    from importlib import resources

    package = Path(str(resources.files("mpn_rl")))
    inside = package / folder
    return inside if inside.is_dir() else package.with_name(folder)


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the toolkit, by name."""
    return {path.stem: path for path in sorted(package_data("configs").glob("*.json"))}


def find_config_file(name: str) -> Path:
    """The path of a --config file: `name` itself, or the one of `shipped_configs` that NAME or configs/NAME.json means.

    Raises: ConfigError where there is neither.
    """
    path, shipped = Path(name), shipped_configs()
    if path.exists() or str(path.parent) not in (".", "configs"):
        return path
    stem = path.name.removesuffix(".json")
    if stem not in shipped:
        names = nearest(stem, shipped) or f", {', '.join(shipped)}"
        raise ConfigError(f"--config {name}: no such file, and none of the toolkit's configurations{names}")
    return shipped[stem]


def read_config_file(name: str) -> dict[str, dict[str, Any]]:
    """The options of a --config file, by section. Raises: ConfigError."""
    path = find_config_file(name)
    if path.suffix == ".toml":
        raise ConfigError(f"--config {name} is a sweep's file: take sweep run {name}")
    try:
        nested = json.loads(read_regular(path, follow=True).decode())
    except OSError as error:
        raise ConfigError(f"--config {name}: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"--config {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {name} is not JSON: {error}") from None
    if not isinstance(nested, dict) or not all(isinstance(part, dict) for part in nested.values()):
        raise ConfigError(f"--config {name} must hold sections of options: {', '.join(PARTS)}")
    return nested


def is_task_file(env_name: str) -> bool:
    """Whether the value of --env-name is the path of a file with tasks."""
    return env_name.endswith((".toml", ".json"))


def read_task_file(flags: Options) -> Options:
    """The flags, with the tasks of the file that --env-name names in its place.

        [[task]]                      # a TOML file; in JSON {"task": [{"name": "GoNogo-v0", "weight": 2}]}
        name = "GoNogo-v0"
        weight = 2                    # 1 if left out
        args = {dt = 50}              # of the task's constructor

    Raises: ConfigError for a file that cannot be read or has another form.
    """
    name = flags.get("env_name")
    if not isinstance(name, str) or not is_task_file(name):
        return flags
    place, form = f"--env-name {name}", "a table [[task]] with a name for each task"
    try:
        text = read_regular(Path(name), follow=True).decode()
        content = tomllib.loads(text) if name.endswith(".toml") else json.loads(text)
        json.dumps(content, allow_nan=False)  # as config.json stores it
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"--env-name {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{place} is not valid {'TOML' if name.endswith('.toml') else 'JSON'}: {error}") from None
    tasks = content.get("task") if isinstance(content, dict) and content.keys() == {"task"} else None
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise ConfigError(f"{place} must hold {form}")
    for task in tasks:
        unknown = sorted(task.keys() - {"name", "weight", "args"})
        if unknown:
            raise ConfigError(f"{place}: a task has the keys name, weight and args, got {shortened(unknown[0])}")
        if not isinstance(task.get("name"), str) or not isinstance(task.get("args", {}), dict):
            raise ConfigError(f"{place} must hold {form}, and args as a table, got {shortened(task)}")
    arguments = {task["name"]: task["args"] for task in tasks if task.get("args")}
    if len(tasks) == 1:
        arguments = tasks[0].get("args", {})
    weights = {task["name"]: task["weight"] for task in tasks if "weight" in task}
    given = {"env_args": arguments, "task_weights": weights}
    merged = {key: {**value, **_mapping(flags.get(key))} for key, value in given.items()}
    names = ",".join(task["name"] for task in tasks)
    return {**flags, "env_name": names, **{key: value for key, value in merged.items() if value}}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _choose(part: str, defaults: Options, flags: Options, file: Nested) -> Choice:
    known = choices(part)
    if part in FIXED:
        return known[part]
    name = flags.get(part, file.get(part, {}).get("name", defaults[part]))
    if not isinstance(name, str) or name not in known:
        hint = nearest(str(name), known)
        raise ConfigError(f"{KINDS[part][0]} must be one of {', '.join(known)}, got {shortened(name)}{hint}")
    return known[name]


def refuse_unread_flags(flags: Options, chosen: Mapping[str, Choice]) -> None:
    """Refuse flags that no chosen part reads. Raises: ConfigError naming the parts that do."""
    used = {field.name for choice in chosen.values() for field in dataclasses.fields(choice.section)} | set(KINDS)
    for name in flags:
        if name in used:
            continue
        owners: dict[str, dataclasses.Field] = {}
        for part, (kind, _) in KINDS.items():
            for choice in choices(part).values():
                fields = dataclasses.fields(choice.section)
                owners |= {f"{kind} {choice.name}": field for field in fields if field.name == name}
        flag = flag_of(next(iter(owners.values())))
        names = ", ".join(f"{kind} {chosen[part].name}" for part, (kind, _) in KINDS.items())
        raise ConfigError(f"{flag} does nothing with {names}; it belongs to {', '.join(owners)}")


def idle_reason(field: dataclasses.Field, config: Config) -> str | None:
    """Why an option does nothing beside the others of its run, with the way out; None where it takes effect."""
    values, flag = config.values(), flag_of(field)
    unmet = {
        name: accepted
        for name, accepted in field.metadata["needs"].items()
        if name in values and not holds({name: accepted}, values)
    }
    if unmet:
        present = " and ".join(shown_option(name, values[name]) for name in unmet)
        return f"{flag} does nothing with {present}; it needs {shown_condition(unmet)}"
    for condition in field.metadata["idle"]:
        if not holds(condition, values):
            continue
        own = shown_option(field.name, values[field.name]) if field.name in condition else flag
        named = list(condition)
        for accepted in condition.values():  # those that the values are compared with
            named += [str(one) for one in accepted if isinstance(one, Same | AtLeast) and not isinstance(accepted, Not)]
        named = [name for name in named if name != field.name]
        present = " and ".join(shown_option(name, values[name]) for name in named)
        others = "that" if len(named) == 1 else "one of these"
        return f"{own} does nothing with {present}; leave it out, or change {others}"
    return None


@functools.cache
def _flags() -> dict[str, str]:
    """The flag of every option and of every part that a flag selects, by name."""
    sections = [choice.section for part in PARTS for choice in choices(part).values()]
    flags = {field.name: flag_of(field) for section in sections for field in dataclasses.fields(section)}
    return flags | {part: flag for part, (flag, _) in KINDS.items()}


def shown_option(name: str, value: object) -> str:
    """An option with a value as on the command line: --replay sequence, --no-prioritized."""
    flag = _flags()[name]
    if isinstance(value, bool):
        return flag if value else "--no-" + flag.removeprefix("--")
    return f"{flag} {'none' if value is None else value}"


def shown_condition(condition: Condition) -> str:
    """A condition in words: --replay sequence or trial and --replay-state burn-in."""
    words = []
    for name, accepted in condition.items():
        first, *others = [_flags()[str(one)] if isinstance(one, Same | AtLeast) else one for one in accepted]
        text = " or ".join([shown_option(name, first), *("none" if one is None else str(one) for one in others)])
        relations: dict[type, str] = {AtLeast: "at least ", Same: "equal to "}
        how = "other than " if isinstance(accepted, Not) else relations.get(type(accepted[0]), "")
        words.append(text.replace(" ", f" {how}", 1))
    return " and ".join(words)


def _build_section(part: str, choice: Choice, defaults: Options, flags: Options, file: Nested) -> Any:
    given = file.get(part, {})
    fields = {field.name for field in dataclasses.fields(choice.section)}
    known = fields | ({"name"} if part in KINDS else set())
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown key {shortened(key)} in section {part!r}{nearest(key, known)}")
    values = {**defaults, **given, **flags}
    return choice.build(**{name: values[name] for name in fields if name in values})
