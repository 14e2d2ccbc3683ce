"""The configuration: every default once, every mistake reported in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mpn_rl import config as cfg
from mpn_rl.options import Choice, ConfigError, fields_of, unwrap_optional

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
        ({"core": {"name": "lsmt"}}, "--core must be one of mpn, mpn-frozen, rnn, gru, lstm, mlp, "),
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


def test_a_flag_that_does_nothing_says_where_it_belongs() -> None:
    assert refusal(flags={"core": "lstm", "rule": "oja"}).endswith("it belongs to --core mpn, --core mpn-frozen")


@pytest.mark.parametrize("part", cfg.PARTS)
def test_a_stored_configuration_lacks_no_section(part: str) -> None:
    nested = cfg.make_config("train", {}).to_dict()
    without = {key: nested[key] for key in nested if key != part}
    if part in cfg.ADDED:
        assert cfg.config_from_dict(without).to_dict() == nested
    for damaged in ({**nested, part: None}, {**nested, part: [1]}, *([] if part in cfg.ADDED else [without])):
        with pytest.raises(ConfigError, match=f"no section '{part}'"):
            cfg.config_from_dict(damaged)


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
    with pytest.raises(ConfigError, match="Is a directory"):
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
    with pytest.raises(ConfigError, match="--wandb-project does nothing without --wandb, got 'mine'"):
        cfg.make_config("train", {"wandb_project": "mine"})
    assert cfg.make_config("train", {"wandb_project": "mine", "wandb": True}).run.wandb_project == "mine"
    assert cfg.make_config("train", {"wandb_project": "mine"}, {"run": {"wandb": True}}).run.wandb
