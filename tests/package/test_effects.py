"""Every option changes the run, or is refused: the conditions in `config.py` against tiny seeded runs.

`python tests/package/test_effects.py [SHARD SHARDS]` tries every option beside every core, learner, replay and
expansion, which takes half an hour. The tests try each option where it first takes effect and where it is first
refused.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
import typing
import warnings
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import pytest

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.contracts import MetricsRow
from mpn_rl.learners import td3
from mpn_rl.options import ConfigError, Section, fields_of, unwrap_optional
from mpn_rl.training import DivergedError, Run

# Options that do not change what is learned, and what they change.
OTHER_EFFECTS = {
    "kernel": "speed: both kernels compute the same numbers up to rounding",
    "threads": "speed",
    "mask_velocity": "the observations of the tasks that it knows; it refuses others",
    "noise_correlation": "the noise of action vectors; it is refused where actions are choices",
    "device": "where the networks are",
    "checkpoint_freq": "when last.pt is written",
    "print_freq": "the printed lines",
    "plot_training": "plots/training_curves.png",
    "tensorboard": "TensorBoard event files",
    "wandb": "a run in Weights & Biases",
    "wandb_project": "its project",
}

ORDER = {"shortest_trial": 3, "longest_trial": 3, "episode_steps": 12}
TASKS: dict[str, dict[str, object]] = {
    "dqn": {"env_name": "CueReward-v0"},
    "a2c": {"env_name": "CueReward-v0"},
    "ppo": {"env_name": "CueReward-v0"},
    "td3": {"env_name": "Pendulum-v1", "env_args": {}, "max_episode_steps": 6},
    "supervised": {"env_name": "TemporalOrder-v0", "env_args": ORDER, "batch_size": 1, "sequence_length": 4},
}
CUES = {"cue_bits": 4, "num_cues": 2, "cues_per_trial": 1, "shortest_trial": 4, "longest_trial": 4, "episode_steps": 12}
# Sizes at which every option can take effect within 40 steps.
SMALL: dict[str, object] = {
    "env_args": CUES, "hidden_dim": 10, "embed_dim": 3, "num_envs": 2, "total_steps": 40, "eval_freq": 0,
    "eval_episodes": 3, "plasticity_metrics_freq": 25, "learning_starts": 8, "update_every": 4, "buffer_size": 200,
    "batch_size": 5, "trial_batch_size": 3, "burn_in": 2, "sequence_length": 4, "sequence_stride": 2,
    "rollout_steps": 3, "target_tau": 0.01, "epsilon_decay": 0.9, "target_update_freq": 3, "update_interval": 5,
    "learning_rate": 0.05, "prune_ratio": 0.6,
    "buffer_adjustment_interval": 10, "buffer_threshold": 0.0, "trace_clip": 0.5, "init_scale": 0.5, "exempt": "",
    "dormancy_tau": 0.9, "eta": 0.5, "grad_clip": 5.0, "review_below": 1.0, "average_tau": 0.1,
    "kernel": "reference", "epochs": 2, "clip_range": 0.05, "replacement_rate": 0.2, "maturity": 1,
}  # fmt: skip

# Another value of each option that has more than a few.
OTHER: dict[str, object] = {
    "env_name": {"CueReward-v0": "GridMaze-v0", "Pendulum-v1": "MountainCarContinuous-v0",
                 "TemporalOrder-v0": "CueReward-v0"},
    "env_args": {"CueReward-v0": {**CUES, "cue_bits": 5}, "Pendulum-v1": {"g": 5.0},
                 "TemporalOrder-v0": {**ORDER, "longest_trial": 4}},
    "max_episode_steps": 5, "hidden_dim": 11, "num_layers": 2, "eta": -0.3, "lambda_decay": 0.3, "lambda_max": 0.86,
    "trace_clip": 0.01, "init_scale": 0.9, "embed_dim": 4, "random_projection": 4, "input_noise": 0.5, "l1": 0.1,
    "target_accuracy": 0.0, "min_updates": 20,
    "buffer_size": {"trial": 3, "sequence": 12, "transition": 12}, "batch_size": 6, "trial_batch_size": 4,
    "burn_in": 1, "sequence_length": 5, "sequence_stride": 3, "bptt_chunk_size": 2, "priority_exponent": 1.0,
    "importance_exponent": 0.9, "learning_starts": 20, "update_every": 3, "gamma": 0.3, "n_step": 3,
    "learning_rate": 0.1, "lr_final": 0.5, "grad_clip": 0.01, "target_tau": 0.9, "target_update_freq": 2,
    "epsilon_start": 0.9, "epsilon_end": 0.01, "epsilon_decay": 0.5, "rollout_steps": 4, "gae_lambda": 0.1,
    "value_coef": 0.9, "entropy_coef": 0.7, "adam_eps": 0.1, "weight_decay": 0.5, "warmup_updates": 2,
    "epochs": 3, "minibatches": 2, "clip_range": 0.01,
    "n_step_delay": 3, "policy_freq": 3, "expl_noise": 0.5, "policy_noise": 0.9, "noise_clip": 0.01,
    "critic_layers": 1, "average_tau": 0.9, "review_below": 0.5, "review_chance": 1.0, "review_share": 0.1,
    "buffer_min_size": 35, "buffer_threshold": 9.0, "buffer_adjustment_interval": 25, "sparsity": 0.5,
    "actor_sparsity": 0.6, "critic_sparsity": 0.6, "initial_sparsity": 0.7, "grad_accumulation_n": 3,
    "dormancy_tau": 0.2, "grow_fraction": 0.3, "prune_ratio": 0.3, "drop_fraction": 0.6, "exempt": "first",
    "l2_init_coef": 0.5, "shrink_factor": 0.3, "perturb_factor": 0.6, "replacement_rate": 0.6, "maturity": 0,
    "utility_decay": 0.0,
    "update_interval": 9, "expansion_start": 20, "expansion_end": 30, "num_episodes": 3, "total_steps": 30,
    "num_envs": 3, "seed": 1, "eval_freq": 20, "eval_episodes": 2, "log_freq": 2, "plasticity_metrics_freq": 15,
    "change_every": 10,
}  # fmt: skip

# Settings of other options beside which an option is tried, besides the kinds of core, learner, replay and expansion.
SETTINGS: list[dict[str, object]] = [
    {},
    {"prioritized": True},
    {"replay_state": "stored"},
    {"replay_state": "zero"},
    {"reset_state_on_trial": True},
    {"sequence_length": 1, "sequence_stride": 1},
    {"bptt_chunk_size": 1},
    {"rollout_steps": 1},
    {"epochs": 1},
    {"target_update": "periodic"},
    {"epsilon_start": 0.05},
    {"n_step": 3},
    {"eval_average": True},
    {"experience_review": True},
    {"dynamic_buffer": True},
    {"policy_noise": 0.0},
    {"train_eta": False},
    {"train_lambda": False},
    {"freeze_plasticity": True},
    {"modulation": "none"},
    {"modulation": "fanout"},
    {"modulation": "retroactive"},
    {"trace_rule": "decay"},
    {"cell": "lstm"},
    {"review_chance": 0.0},
    {"total_steps": None, "num_episodes": 4},
    {"random_projection": 5},
    {"eta_init": "xavier"},
    {"target_accuracy": 0.0, "eval_freq": 10},
    {"eval_freq": 10},
    {"change_every": 10},
    {"change": "permute-observations"},
]
GROWTH: list[dict[str, object]] = [
    {},
    {"grow": "none", "initial_sparsity": None},
    {"grow": "random"},
    {"grow": "accumulated", "grad_accumulation_n": 2},
    {"grow": "accumulated", "grad_accumulation_n": 2, "initial_sparsity": None},
    {"initial_sparsity": None},
    {"initial_sparsity": None, "drop_fraction": 0.4},
    {"initial_sparsity": None, "drop_fraction": 0.4, "prune": "none"},
    {"prune": "none"},
    {"prune": "none", "grow_fraction": 0.5},
    {"prune": "magnitude"},
    {"prune": "magnitude", "grow_fraction": 0.9},
    {"prune_ratio": 0.0},
    {"recycle": True},
    {"sparsity": 0.0, "initial_sparsity": None},
    {"static_actor": True},
    {"static_actor": True, "static_critic": True},
    {"expand_actor": False},
    {"expand_actor": False, "expand_critic": False},
    {"actor_sparsity": 0.4, "critic_sparsity": 0.4},
]


class Context(NamedTuple):
    """The kinds of a run's parts, and the settings of some options."""

    learner: str
    core: str
    replay: str | None
    expansion: str
    settings: tuple[tuple[str, object], ...] = ()


LEARNERS = [("dqn", replay) for replay in ("sequence", "trial", "transition")]
LEARNERS += [
    ("a2c", None),
    ("ppo", None),
    ("supervised", None),
    *(("td3", replay) for replay in ("sequence", "trial", "transition")),
]
CORES = ("mpn", "mpn-frozen", "mpn-recurrent", "rnn", "gru", "lstm", "mlp", "backpropamine")
EXPANSIONS = ("paper", "reference", "grow", "static", "rigl", "redo", "l2-init", "shrink-perturb", "continual-backprop")


def contexts() -> Iterator[Context]:
    """All kinds of core, learner and replay; then each setting; then each expansion with each setting of its own."""
    for (learner, replay), core in itertools.product(LEARNERS, CORES):
        yield Context(learner, core, replay, "none")
    cores = ("mpn", "mpn-recurrent", "mlp", "backpropamine")
    for (learner, replay), core, setting in itertools.product(LEARNERS, cores, SETTINGS[1:]):
        yield Context(learner, core, replay, "none", tuple(setting.items()))
    for learner, core, expansion in itertools.product(tuple(TASKS), ("mpn", "mlp"), EXPANSIONS):
        replay = {
            "dqn": "sequence",
            "td3": "transition" if core == "mlp" else "sequence",
        }.get(learner)
        for setting in GROWTH if expansion == "paper" else GROWTH[:1]:
            yield Context(learner, core, replay, expansion, tuple(setting.items()))


def changed(config: cfg.Config, options: dict[str, object]) -> cfg.Config:
    """The configuration with these options, of those that it has. Raises: ConfigError."""
    parts = {}
    for part in cfg.PARTS:
        section = getattr(config, part)
        mine = {field.name: options[field.name] for field in dataclasses.fields(section) if field.name in options}
        parts[part] = dataclasses.replace(section, **mine)
        if part in cfg.KINDS:
            object.__setattr__(parts[part], "name", section.name)
    return cfg.Config(**parts)


@functools.cache
def small(context: Context) -> cfg.Config | None:
    """A tiny run; None where its options do not go together."""
    settings = dict(context.settings)
    flags = {"learner": context.learner, "core": context.core, "expansion": context.expansion}
    replay = {} if context.replay is None else {"replay": context.replay}
    try:
        config = cfg.make_config("train", {**flags, **replay})
        if not settings.keys() <= config.values().keys():
            return None
        preset = {**cfg.choices("expansion")[context.expansion].defaults, "exempt": "", "dormancy_tau": 0.9}
        return changed(config, {**SMALL, **TASKS[context.learner], "n_step": 1, **preset, **settings})
    except ConfigError:
        return None


class Quiet(Run):
    """A run that writes no file."""

    def _log(self, rows: list[MetricsRow]) -> None:
        pass

    def _save_model(self, name: str) -> None:
        pass

    def save(self) -> None:
        pass

    def rows(self) -> list[MetricsRow]:
        """All rows of metrics.jsonl."""
        rows = []
        while not self.done:
            rows += self.advance()
        return [*rows, *([self._episode_row()] if self.ended else []), self._evaluate(lambda: None)]


@functools.lru_cache(maxsize=64)
def outcome(config: str) -> tuple[tuple[object, ...], ...] | None:
    """The metrics of a run, and the sum of its policy's last weights; None where the run refuses its options."""
    try:
        with warnings.catch_warnings(), mock.patch.object(td3, "REVIEW_EVERY", 2):
            warnings.simplefilter("ignore")
            run = Quiet(CONFIGS[config])
            rows = run.rows()
    except (ConfigError, DivergedError):
        return None
    last = list(run.learner.policy.parameters())[-1].double().sum().item()
    values = [(row["step"], key, value) for row in rows for key, value in sorted(row.items())]
    # The norm of the weights counts an eta that nothing trains; the phase is a name.
    values = [value for value in values if "weight_norm" not in value[1] and value[1] != "phase"]
    return (*values, (run.step, "weights", last))


CONFIGS: dict[str, cfg.Config] = {}  # by their text


def outcome_of(config: cfg.Config) -> tuple[tuple[object, ...], ...] | None:
    text = repr([config.to_dict()[part] for part in cfg.PARTS])
    CONFIGS[text] = config
    return outcome(text)


def alike(one: tuple[tuple[object, ...], ...], other: tuple[tuple[object, ...], ...]) -> bool:
    """Whether two runs have the same metrics, up to the rounding of another order of sums."""

    def close(a: object, b: object) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=2e-5, abs_tol=1e-7)
        return a == b

    return len(one) == len(other) and all(a[:2] == b[:2] and close(a[2], b[2]) for a, b in zip(one, other, strict=True))


def others(field: dataclasses.Field, kind: object, config: cfg.Config) -> list[object]:
    """Values of an option that differ from the one in the configuration."""
    now = config.values()[field.name]
    kind, optional = unwrap_optional(kind)
    if kind is bool:
        return [not now]
    if typing.get_origin(kind) is typing.Literal:
        return [value for value in typing.get_args(kind) if value != now]
    other = OTHER[field.name]
    if isinstance(other, dict):
        other = other[str(config.values()["replay" if field.name == "buffer_size" else "env_name"])]
    none = [None] if optional and field.name != "total_steps" else []  # 1,000 episodes take long
    return [value for value in (other, *none) if value != now]


class Verdict(NamedTuple):
    """What happens to an option with another value."""

    option: str
    value: object
    refusal: str | None  # by the option's conditions
    alike: bool | None  # whether the run is the same as without; None: the run refuses the option, too
    context: Context

    @property
    def right(self) -> bool:
        return self.alike is None or (self.refusal is not None) == self.alike


PAIRED: dict[str, dict[str, dict[str, object]]] = {
    "env_name": {"GridMaze-v0": {"env_args": {"size": 5, "episode_steps": 12}}, "CueReward-v0": {"env_args": CUES}},
    "grow": {"accumulated": {"grad_accumulation_n": 2}},
    "schedule": {"constant": {"grow_fraction": 0.5}},
}


def with_option(context: Context, field: dataclasses.Field, value: object) -> cfg.Config | None:
    """The context's run with another value of an option; None where another rule refuses it."""
    base = small(context)
    assert base is not None
    try:
        return changed(base, {**PAIRED.get(field.name, {}).get(str(value), {}), field.name: value})
    except ConfigError:
        return None


def refusal_of(context: Context, field: dataclasses.Field, value: object) -> str | None:
    """The reason from the option's conditions, None where the option takes effect."""
    config = with_option(context, field, value)
    return None if config is None else cfg.idle_reason(field, config)


def verdict(context: Context, field: dataclasses.Field, value: object) -> Verdict | None:
    """Try an option; None where another rule refuses it, or where the run cannot be built."""
    base, config = small(context), with_option(context, field, value)
    if base is None or config is None:
        return None
    refusal = refusal_of(context, field, value)
    try:
        registry.check_trials(config)
    except ConfigError:
        return None
    before, after = outcome_of(base), outcome_of(config)
    if before is None or after is None:
        return Verdict(field.name, value, refusal, None, context) if before and refusal else None
    return Verdict(field.name, value, refusal, alike(before, after), context)


def tried(context: Context) -> Iterator[tuple[dataclasses.Field, object]]:
    """The options of a context's run, each with its other values; beside settings, those that depend on them."""
    base, settings = small(context), dict(context.settings)
    for part in cfg.PARTS if base is not None else ():
        for field, kind in fields_of(type(getattr(base, part))):
            depends = set(field.metadata["needs"]).union(*field.metadata["idle"])
            related = part == "expansion" if context.expansion != "none" else True
            if settings:
                related = bool(depends & settings.keys())
            if related and field.name not in OTHER_EFFECTS and field.name != next(iter(settings), None):
                yield from ((field, value) for value in others(field, kind, base))


# Every section of options once; NeuroGymConfig has those of GymnasiumConfig.
SECTIONS = sorted(
    {choice.section for part in cfg.PARTS for choice in cfg.choices(part).values()} - {cfg.NeuroGymConfig},
    key=lambda section: section.__name__,
)
OPTIONS = [
    (section, field) for section in SECTIONS for field in dataclasses.fields(section) if field.name not in OTHER_EFFECTS
]


def named(options: list[tuple[type[Section], dataclasses.Field]]) -> list[str]:
    """The names of the tests."""
    return [f"{section.__name__}-{field.name}" for section, field in options]


def verdicts(section: type[Section], option: str, refused: bool) -> Iterator[Verdict]:
    """What happens to an option in all contexts in which its conditions refuse it, or do not."""
    for context in contexts():
        base = small(context)
        if base is None or section not in {type(getattr(base, part)) for part in cfg.PARTS}:
            continue
        for field, value in tried(context):
            if field.name == option and (refusal_of(context, field, value) is not None) == refused:
                result = verdict(context, field, value)
                if result is not None:
                    yield result


@pytest.mark.parametrize(("section", "field"), OPTIONS, ids=named(OPTIONS))
def test_an_option_changes_the_run(section: type[Section], field: dataclasses.Field) -> None:
    assert any(not result.alike for result in itertools.islice(verdicts(section, field.name, refused=False), 4))


CONDITIONAL = [(section, field) for section, field in OPTIONS if field.metadata["needs"] or field.metadata["idle"]]


@pytest.mark.parametrize(("section", "field"), CONDITIONAL, ids=named(CONDITIONAL))
def test_a_refused_option_would_not_change_the_run(section: type[Section], field: dataclasses.Field) -> None:
    result = next(verdicts(section, field.name, refused=True))
    assert result.alike is not False, result


def test_every_exception_is_an_option() -> None:
    assert OTHER_EFFECTS.keys() <= {field.name for section in SECTIONS for field in dataclasses.fields(section)}


def main() -> None:
    """Try everything, and print what is wrong."""
    counts = {"changes the run": 0, "refused": 0, "refused by another rule": 0}
    wrong = []
    shard, shards = (int(word) for word in (sys.argv[1:] or ["0", "1"]))
    for context in list(contexts())[shard::shards]:
        for field, value in tried(context):
            result = verdict(context, field, value)
            if result is None:
                counts["refused by another rule"] += 1
            elif result.right:
                counts["refused" if result.refusal else "changes the run"] += 1
            else:
                wrong.append(result)
                print(result, flush=True)
    print(f"{sum(counts.values()) + len(wrong):,} tried: {counts}, wrong {len(wrong)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
