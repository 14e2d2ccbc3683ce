"""The configuration: every default once, every mistake reported in one line."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import pytest

from mpn_rl import config as cfg
from mpn_rl.options import AtLeast, Choice, ConfigError, Same, fields_of, unwrap_optional

COMMANDS = ("train", "train-neurogym")


def refusal(command: str = "train", flags: dict | None = None, file: dict | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        cfg.make_config(command, flags or {}, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("core", cfg.choices("core"))
def test_what_is_written_is_read_back(command: str, core: str) -> None:
    config = cfg.make_config(command, {"core": core, "hidden_dim": 7, "seed": 5, "env_args": {"a": [1, "x"]}})
    through_json = json.loads(json.dumps(config.to_dict()))
    assert cfg.config_from_dict(through_json) == config


@pytest.mark.parametrize("preset", cfg.PRESETS, ids=lambda preset: preset.name)
def test_a_preset_is_selected_by_its_name_and_stored_under_it(preset: Choice) -> None:
    part = "core" if issubclass(preset.section, cfg.CoreConfig) else "expansion"
    by_flag = cfg.make_config("train", {part: preset.name})
    by_file = cfg.make_config("train", {}, {part: {"name": preset.name}})
    stored = json.loads(json.dumps(by_flag.to_dict()))
    for config in (by_flag, by_file, cfg.config_from_dict(stored)):
        section = getattr(config, part)
        assert type(section) is preset.section and section.name == preset.name
        assert config.to_dict() == stored
    own = dataclasses.asdict(cfg.choices(part)[preset.section.name].build())
    assert stored[part] == {"name": preset.name, **own, **preset.defaults}


def test_options_override_those_of_a_preset() -> None:
    core = cfg.make_config("train", {"core": "backpropamine-cue-reward", "hidden_dim": 7}).core
    assert (core.hidden_dim, core.eta) == (7, 0.1)


@pytest.mark.parametrize("part", cfg.PARTS)
def test_every_default_lies_in_its_own_range(part: str) -> None:
    for choice in cfg.choices(part).values():
        choice.build()


@pytest.mark.parametrize("part", cfg.PARTS)
def test_every_option_has_a_help_text_in_lower_case_style(part: str) -> None:
    for choice in cfg.choices(part).values():
        for field in dataclasses.fields(choice.section):
            assert field.metadata["help"] and not field.metadata["help"].endswith(".")


def test_one_flag_name_means_one_thing() -> None:
    """Options of the same name in different classes have the same type: they share a flag."""
    kinds: dict[str, set] = {}
    for part in cfg.PARTS:
        for choice in cfg.choices(part).values():
            for field, kind in fields_of(choice.section):
                kinds.setdefault(field.name, set()).add(unwrap_optional(kind)[0] if part != "env" else str)
    assert {name for name, found in kinds.items() if len(found) > 1} == set()


def test_flags_override_the_file_which_overrides_the_defaults() -> None:
    file = {"core": {"name": "gru", "hidden_dim": 9}, "run": {"seed": 3, "num_envs": 2}}
    config = cfg.make_config("train", {"seed": 4}, file)
    assert (config.core.name, config.core.hidden_dim) == ("gru", 9)
    assert (config.run.seed, config.run.num_envs) == (4, 2)
    assert cfg.make_config("train", {"core": "lstm"}, {"run": {}}).core.name == "lstm"


def test_a_whole_number_will_do_for_a_number() -> None:
    assert cfg.make_config("train", {}, {"core": {"eta": 1}}).core.eta == 1.0


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"run": {"sede": 1}}, "unknown key 'sede' in section 'run'; did you mean 'seed'?"),
        ({"rum": {}}, "unknown section 'rum' in the configuration; did you mean 'run'?"),
        ({"core": {"name": "gru", "eta": 0.1}}, "unknown key 'eta' in section 'core'"),
        ({"core": {"name": "lsmt"}}, "--core must be one of mpn, mpn-frozen, mpn-recurrent, rnn, gru, lstm, mlp, "),
        ({"core": {"name": ["mpn"]}}, "--core must be one of"),
        ({"core": {"name": None}}, "--core must be one of"),
        ({"env": {"name": "atari"}}, "env.name must be one of gymnasium, neurogym, got 'atari'"),
        ({"run": {"seed": "1"}}, "--seed must be a whole number, got '1'"),
        ({"run": {"seed": 1.0}}, "--seed must be a whole number, got 1.0"),
        ({"run": {"seed": True}}, "--seed must be a whole number, got True"),
        ({"run": {"seed": None}}, "--seed must be a whole number, got None"),
        ({"run": {"plot_training": 1}}, "--plot-training must be true or false, got 1"),
        ({"run": {"device": "gpu"}}, "--device must be one of auto, cpu, cuda, got 'gpu'"),
        ({"run": {"device": []}}, "--device must be one of auto, cpu, cuda, got []"),
        ({"core": {"eta": "0.1"}}, "--eta must be a number, got '0.1'"),
        ({"core": {"eta": float("nan")}}, "--eta must be finite, got nan"),
        ({"core": {"eta": 10**400}}, "--eta must be a number, got 1000"),
        ({"env": {"env_args": [1]}}, "--env-arg must be KEY=VALUE, got [1]"),
        ({"env": {"env_name": 3}}, "--env-name must be text, got 3"),
    ],
)
def test_a_mistake_in_a_file_names_the_place_and_the_rule(file: dict, message: str) -> None:
    assert message in refusal(file=file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"hidden_dim": -3}, "--hidden-dim must be at least 1, got -3"),
        ({"hidden_dim": 10**30}, "--hidden-dim must be at most"),
        ({"lambda_decay": 1.5}, "--lambda-decay must lie in [0.0, 1.0], got 1.5"),
        ({"lambda_decay": 0.9, "lambda_max": 0.8}, "--lambda-decay must lie in [0, --lambda-max = 0.8], got 0.9"),
        ({"epsilon_start": 1.2}, "--epsilon-start must lie in [0.0, 1.0], got 1.2"),
        ({"epsilon_start": 0.1, "epsilon_end": 0.2}, "--epsilon-end must not exceed --epsilon-start, got 0.2 > 0.1"),
        ({"gamma": float("nan")}, "--gamma must be finite, got nan"),
        ({"eta": float("inf")}, "--eta must be finite, got inf"),
        ({"learning_rate": float("inf")}, "--learning-rate must be finite, got inf"),
        ({"learning_rate": 0.0}, "--learning-rate must be greater than 0.0, got 0.0"),
        ({"grad_clip": float("inf")}, "--grad-clip must be finite, got inf"),
        ({"target_tau": 0.0}, "--target-tau must lie in (0.0, 1.0], got 0.0"),
        ({"sequence_length": 4, "sequence_stride": 5}, "--sequence-stride must be at most --sequence-length = 4"),
        ({"core": "gru", "eta": 0.1}, "--eta does nothing with"),
        ({"core": "mpm"}, "did you mean 'mpn'"),
    ],
)
def test_a_value_out_of_range_names_the_option_the_rule_and_the_value(flags: dict, message: str) -> None:
    assert message in refusal(flags=flags)


def test_the_error_for_an_idle_flag_names_its_parts() -> None:
    assert refusal(flags={"core": "lstm", "rule": "oja"}).endswith(
        "it belongs to --core mpn, --core mpn-frozen, --core mpn-recurrent"
    )


@pytest.mark.parametrize("part", cfg.PARTS)
def test_a_stored_configuration_lacks_no_section(part: str) -> None:
    nested = cfg.make_config("train", {}).to_dict()
    without = {key: nested[key] for key in nested if key != part}
    if part in cfg.ADDED:
        assert cfg.config_from_dict(without).to_dict() == nested
    for damaged in ({**nested, part: None}, {**nested, part: [1]}, *([] if part in cfg.ADDED else [without])):
        with pytest.raises(ConfigError, match=f"no section '{part}'"):
            cfg.config_from_dict(damaged)


@pytest.mark.parametrize("part", ["network", "versions"])
def test_what_a_run_notes_beside_its_options_changes_no_option(part: str) -> None:
    nested = cfg.make_config("train", {}).to_dict()
    for noted in ({}, {"numpy": "2"}, None, [[], {}], "numpy", 3):
        assert cfg.config_from_dict({**nested, part: noted}).to_dict() == nested


def test_a_stored_dqn_from_before_the_dueling_head_has_none() -> None:
    nested = cfg.make_config("train", {}).to_dict()
    assert cfg.config_from_dict(nested).values()["dueling"] is True
    del nested["learner"]["dueling"]
    assert cfg.config_from_dict(nested).values()["dueling"] is False


def test_a_stored_configuration_names_its_kinds() -> None:
    nested = cfg.make_config("train", {}).to_dict()
    del nested["core"]["name"]
    with pytest.raises(ConfigError, match="section 'core' of the configuration has no 'name'"):
        cfg.config_from_dict(nested)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "must hold sections of options"),
        ('{"run": 3}', "must hold sections of options"),
        ("\ufeff{}", "is not JSON"),
    ],
)
def test_a_config_file_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        cfg.read_config_file(str(path))


def test_a_config_file_that_is_missing_or_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        cfg.read_config_file(str(tmp_path / "nope.json"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not JSON"):
        cfg.read_config_file(str(tmp_path / "bytes.json"))
    with pytest.raises(ConfigError, match="is a folder"):
        cfg.read_config_file(str(tmp_path))


def test_the_config_json_of_a_run_is_a_config_file(tmp_path: Path) -> None:
    config = cfg.make_config("train-neurogym", {"core": "gru", "seed": 9})
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "versions": {"python": "3"}}))
    again = cfg.make_config("train-neurogym", {}, cfg.read_config_file(str(tmp_path / "config.json")))
    assert again == config


@pytest.mark.parametrize("command", COMMANDS)
def test_trial_replay_counts_trials_and_has_500_by_default(command: str) -> None:
    assert cfg.make_config(command, {"replay": "trial"}).learner.buffer_size == 500
    assert cfg.make_config(command, {"replay": "trial", "buffer_size": 70}).learner.buffer_size == 70
    assert cfg.make_config(command, {}, {"learner": {"replay": "trial"}}).learner.buffer_size == 500


def test_a_configuration_of_the_other_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="take the command train, not train-neurogym"):
        cfg.make_config("train-neurogym", {}, {"env": {"name": "gymnasium", "env_name": "CartPole-v1"}})
    with pytest.raises(ConfigError, match="take the command train-neurogym, not train"):
        cfg.make_config("train", {}, {"env": {"name": "neurogym"}})


def test_a_project_without_wandb_does_nothing() -> None:
    with pytest.raises(ConfigError, match="--wandb-project does nothing with --no-wandb; it needs --wandb"):
        cfg.make_config("train", {"wandb_project": "mine"})
    assert cfg.make_config("train", {"wandb_project": "mine", "wandb": True}).run.wandb_project == "mine"
    assert cfg.make_config("train", {"wandb_project": "mine"}, {"run": {"wandb": True}}).run.wandb


# --- options that do nothing ------------------------------------------------------------------------------

IDLE = [
    ({"replay": "transition", "burn_in": 5}, "--burn-in does nothing with --replay transition; it needs --replay sequ"),
    ({"replay": "transition", "n_step": 5}, "--n-step does nothing with --replay transition; it needs --replay sequen"),
    ({"replay": "trial", "sequence_length": 90}, "--sequence-length does nothing with --replay trial; it needs --rep"),
    ({"trial_batch_size": 9}, "--trial-batch-size does nothing with --replay sequence; it needs --replay trial"),
    ({"replay": "trial", "replay_state": "stored"}, "--replay-state stored does nothing with --replay trial; leave it"),
    ({"bptt_chunk_size": 40}, "--bptt-chunk-size 40 does nothing with --replay sequence and --sequence-length 40"),
    ({"core": "mlp", "burn_in": 5}, "--burn-in does nothing with --core mlp; leave it out, or change that"),
    (
        {"target_update_freq": 9},
        "--target-update-freq does nothing with --target-update soft; it needs --target-update p",
    ),
    ({"target_update": "periodic", "target_tau": 0.5}, "--target-tau does nothing with --target-update periodic; it n"),
    ({"priority_exponent": 0.5}, "--priority-exponent does nothing with --no-prioritized; it needs --prioritized"),
    ({"core": "mpn-frozen", "eta": 0.1}, "--eta does nothing with --freeze-plasticity"),
    ({"core": "mpn-frozen", "rule": "oja"}, "--rule does nothing with --freeze-plasticity"),
    ({"core": "mpn-frozen", "m_activation": "tanh"}, "--m-activation does nothing with --freeze-plasticity"),
    ({"train_lambda": False, "lambda_max": 0.9}, "--lambda-max does nothing with --no-train-lambda; it needs --train-"),
    ({"core": "backpropamine", "eta": 0.5}, "--eta does nothing with --modulation simple; it needs --modulation none"),
    (
        {"core": "backpropamine", "modulation": "fanout", "eta": 0.5},
        "--eta does nothing with --modulation fanout; it n",
    ),
    (
        {"learner": "td3", "review_below": 0.5},
        "--review-below does nothing with --no-experience-review; it needs --exp",
    ),
    ({"learner": "td3", "policy_noise": 0.0, "noise_clip": 0.1}, "--noise-clip does nothing with --policy-noise 0.0"),
    ({"expansion": "grow", "prune_ratio": 0.5}, "--prune-ratio does nothing with --prune none"),
    ({"expansion": "paper", "drop_fraction": 0.5}, "--drop-fraction does nothing with --initial-sparsity 0.8"),
    ({"expansion": "redo", "layer_density": "uniform"}, "--layer-density does nothing with --sparsity 0.0"),
    ({"expansion": "static", "update_interval": 9}, "--update-interval does nothing with --grow none and --no-recycle"),
    ({"expansion": "paper", "static_actor": True}, "--static-actor does nothing with --algo dqn; it needs --algo td3"),
    ({"num_episodes": 9, "total_steps": 900}, "--num-episodes does nothing with --total-steps 900; it needs --total-s"),
]


@pytest.mark.parametrize(("options", "message"), IDLE, ids=lambda value: "" if isinstance(value, str) else str(value))
def test_an_option_that_does_nothing_is_refused_as_a_flag_and_in_a_file(options: dict, message: str) -> None:
    assert message in refusal(flags=options)
    kinds = {name: value for name, value in options.items() if name in cfg.KINDS}
    sections = {
        part: [field.name for field in dataclasses.fields(choice.section)]
        for part in cfg.PARTS
        for choice in cfg.choices(part).values()
        if choice.name in ("", kinds.get(part, cfg.COMMAND_DEFAULTS["train"].get(part)))
    }
    file: dict = {part: {"name": name} for part, name in kinds.items()}
    for name, value in options.items():
        part = next((part for part in sections if name in sections[part]), None)
        if part is not None:
            file.setdefault(part, {"name": cfg.COMMAND_DEFAULTS["train"][part]} if part in cfg.KINDS else {})[name] = (
                value
            )
    assert message in refusal(file=file)


@pytest.mark.parametrize(("options", "message"), IDLE, ids=lambda value: "" if isinstance(value, str) else str(value))
def test_an_option_with_its_default_is_never_refused(options: dict, message: str) -> None:
    kinds = {name: value for name, value in options.items() if name in cfg.KINDS}
    *others, last = (name for name in options if name not in cfg.KINDS)
    base = {**kinds, **{name: options[name] for name in others}}
    default = cfg.make_config("train", base).values()[last]
    assert cfg.make_config("train", {**base, last: default}).values()[last] == default


def test_a_stored_configuration_is_accepted_as_it_is() -> None:
    """Version 0.1.0 accepted options that do nothing; its experiments load, also as a --config file."""
    nested = cfg.make_config("train", {"replay": "transition"}).to_dict()
    nested["learner"] |= {"burn_in": 3, "n_step": 4}
    assert cfg.config_from_dict(nested).to_dict() == nested
    assert cfg.make_config("train", {}, {"versions": {}, **nested}).to_dict() == nested


def test_single_transitions_have_one_step_of_reward_by_default() -> None:
    assert cfg.make_config("train", {}).values()["n_step"] == 4
    assert cfg.make_config("train", {"replay": "transition"}).values()["n_step"] == 1
    assert cfg.make_config("train", {}, {"learner": {"replay": "transition"}}).values()["n_step"] == 1


def test_a_length_on_the_command_line_replaces_that_of_the_file() -> None:
    def length(flags: dict, run: dict) -> tuple:
        config = cfg.make_config("train", flags, {"run": run}).run
        return config.num_episodes, config.total_steps

    assert length({"num_episodes": 7}, {"total_steps": 500}) == (7, None)
    assert length({"total_steps": 500}, {"num_episodes": 7}) == (1_000, 500)
    assert length({}, {"num_episodes": 7}) == (7, None)


@pytest.mark.parametrize("part", cfg.PARTS)
def test_a_condition_names_options_and_values_that_exist(part: str) -> None:
    sections = [choice.section for part in cfg.PARTS for choice in cfg.choices(part).values()]
    kinds = {field.name: unwrap_optional(kind)[0] for section in sections for field, kind in fields_of(section)}
    for choice in cfg.choices(part).values():
        for field in dataclasses.fields(choice.section):
            for condition in (field.metadata["needs"], *field.metadata["idle"]):
                for name, accepted in condition.items():
                    for value in accepted:
                        if isinstance(value, Same | AtLeast):
                            assert str(value) in kinds
                        elif name in cfg.KINDS:
                            assert value in cfg.choices(name)
                        elif typing.get_origin(kinds[name]) is typing.Literal:
                            assert value in typing.get_args(kinds[name])
                        else:
                            assert value is None or type(value) is kinds[name]


@pytest.mark.parametrize("name", [".foo:CartPole-v1", ":CartPole-v1", "a..b:C-v0", "a b:C-v0", "package:"])
def test_a_task_of_a_module_that_cannot_exist_is_refused(name: str) -> None:
    assert "--env-name must be an id such as CartPole-v1, or package.module:Name-v0" in refusal(
        flags={"env_name": name}
    )
