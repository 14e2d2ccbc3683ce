"""The command line is the configuration: every field has a flag, and --help answers without torch."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpn_rl import arguments
from mpn_rl import config as cfg
from mpn_rl.options import flag_of

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "train-neurogym", "eval", "render", "analyze")


def refused(capsys: pytest.CaptureFixture, *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        arguments.parse(list(argv))
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", ["train", "train-neurogym"])
def test_every_field_of_the_configuration_has_its_flag(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        arguments.parse([command, "--help-all"])
    text = capsys.readouterr().out
    family = cfg.COMMAND_DEFAULTS[command]["env"]
    for part in cfg.PARTS:
        for name, choice in cfg.choices(part).items():
            if part == "env" and name != family:
                continue
            for field in dataclasses.fields(choice.section):
                assert flag_of(field) in text
    assert "--core" in text and "--algo" in text and "--env-family" not in text


@pytest.mark.parametrize("command", ["train", "train-neurogym"])
def test_help_shows_the_common_options_on_seventy_lines(
    command: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            arguments.parse([command, flag])
        shown[flag] = capsys.readouterr().out.splitlines()
    assert len(shown["--help"]) <= 70 < len(shown["--help-all"])
    same = {line for line in shown["--help"] if "others vary" not in line}  # in place of long lists of defaults
    assert same <= set(shown["--help-all"])
    words = {flag: {word.strip(",") for line in lines for word in line.split()} for flag, lines in shown.items()}
    for option in arguments.options_of(arguments.make_parser(), command):
        flag = option.option_strings[0]
        assert flag in words["--help-all"], flag
        assert (flag in words["--help"]) == (option.dest in arguments.COMMON), flag


def test_every_common_option_is_an_option() -> None:
    parser = arguments.make_parser()
    options = {option.dest for name in ("train", "train-neurogym") for option in arguments.options_of(parser, name)}
    assert options >= arguments.COMMON


def test_the_help_names_the_learner_that_has_another_task(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        arguments.parse(["train", "--help-all"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "CartPole-v1; Pendulum-v1 with td3; Integration-v0 with supervised" in shown


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_shows_defaults_and_imports_nothing_heavy(command: str | None) -> None:
    """By what the interpreter has loaded, not by a clock: torch alone would take seconds."""
    script = (
        "import sys, main\n"
        "try: main.main(sys.argv[1:])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "heavy = {'torch', 'numpy', 'neurogym', 'gymnasium', 'matplotlib', 'rich', 'numba', 'commands', 'shtab'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    argv = ["--help"] if command is None else [command, "--help"]
    done = subprocess.run([sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: main.py" in done.stdout and done.stderr == ""
    if command:
        assert "(default: " in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_only_what_was_given_is_handed_on() -> None:
    args = arguments.parse(
        ["train", "--eta", "-0.5", "--no-bias", "--core", "mpn", "--env-arg", "a=1", "--env-arg", "b=x=y"]
    )
    assert arguments.config_flags(args) == {"eta": -0.5, "bias": False, "core": "mpn", "env_args": {"a": 1, "b": "x=y"}}


def test_none_is_a_value_where_an_option_may_be_none() -> None:
    assert arguments.config_flags(arguments.parse(["train", "--bptt-chunk-size", "none"])) == {"bptt_chunk_size": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("False", False),
        ("true", True),
        ("None", None),
        ("null", None),
        (".5", 0.5),
        ("-.5", -0.5),
        ("+3", 3),
        ("1e3", 1000.0),
        ("-0", 0),
        ('{"v": [1, 2]}', {"v": [1, 2]}),
        ("{'v': (1, True, null)}", {"v": [1, True, None]}),
        ("big", "big"),
        ("4x4", "4x4"),
        ("2024-01-01", "2024-01-01"),
        ("1+2", "1+2"),
        ("TRUE", "TRUE"),
        ("nan", "nan"),
        ("", ""),
        ('"False"', "False"),
        ("'7'", "7"),
        ("a=b", "a=b"),
        ("1" * 5_000, "1" * 5_000),  # more digits than Python converts
        ("-" * 9_999, "-" * 9_999),
        ("not " * 2_000 + "a", "not " * 2_000 + "a"),
    ],
)
def test_env_args_are_read_as_python_or_json(text: str, value: object) -> None:
    read = arguments.parse(["train", "--env-arg", f"key={text}"]).env_args["key"]
    assert read == value and type(read) is type(value)


def test_help_all_shows_what_an_option_needs(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        arguments.parse(["train", "--help-all"])
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split()).replace("- ", "-")
    assert "warm up the state (default: 10) (needs --replay sequence and --replay-state burn-in; does nothing" in text
    assert "does nothing with --core mlp, or with --core mpn and --freeze-plasticity" in text
    assert "does nothing with --epsilon-start equal to --epsilon-end" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--hiden-dim", "3"], "main.py train: no option '--hiden-dim'; did you mean '--hidden-dim'"),
        (["train", "--hidden", "3"], "no option '--hidden'; did you mean '--hidden-dim'"),
        (["eval", "--experiment-name", "a", "--episodes=3"], "main.py eval: no option '--episodes'"),
        (["train-neurogym", "--mask-velocity"], "no option '--mask-velocity'"),
        (["train", "--hidden-dim", "3.5"], "--hidden-dim: invalid whole number value: '3.5'"),
        (["train", "--eta", "much"], "--eta: invalid number value: 'much'"),
        (["train", "--env-arg", "foo"], "--env-arg must be KEY=VALUE, got 'foo'"),
        (["train", "--env-arg", "a=" + "[" * 600 + "]" * 600], "--env-arg a: brackets must be nested at most 20 deep"),
        (["train", "--env-arg", "a=" + "x" * 10_001], "--env-arg a: the value must have at most 10,000 characters"),
        (["train", "--env-arg", "a=[1, 2"], "--env-arg a: '[1, 2' is not a complete list or dict"),
        (["train", "--env-arg", "a=[b, c]"], "quote the texts in it"),
        (["train", "--env-arg", "a={1: 2}"], "the keys of a dict must be text"),
        (["train", "--env-arg", "a=-1e999"], "--env-arg a: a number must be finite, got inf"),
        (["analyze", "collect", "--experiment-name", ""], "--experiment-name: must not be empty"),
        (["eval", "--experiment-name", ""], "--experiment-name: must not be empty"),
        (["train", "--env-arg", "=1"], "--env-arg must be KEY=VALUE, got '=1'"),
        (["train", "--device", "gpu"], "--device: invalid choice: 'gpu'"),
        (["train", "--resume", "later"], "--resume: invalid choice: 'later'"),
        (["eval"], "--experiment-name"),
        (["eval", "--experiment-name", "a", "--num-eval-episodes", "0"], "must lie in [1, 100000], got 0"),
        (["eval", "--experiment-name", "a", "--num-eval-trials", "-1"], "must lie in [1, 10000000], got -1"),
        (["eval", "--experiment-name", "a", "--seed", "-1"], "--seed: must lie in [0, 2147483647], got -1"),
        (["render", "--experiment-name", "a", "--fps", "1000"], "--fps: must lie in [1, 100], got 1000"),
        (["render", "--experiment-name", "a", "--max-steps", "0"], "--max-steps: must lie in"),
        (["analyze", "--experiment-name", "a", "--epsilon", "nan"], "--epsilon: must lie in [0, 1], got nan"),
        (["analyze", "--experiment-name", "a", "--max-megabytes", "0"], "--max-megabytes: must lie in"),
        (["analyze", "draw", "--experiment-name", "a"], "invalid choice: 'draw'"),
        (["trian"], "invalid choice: 'trian'"),
        ([], "COMMAND"),
    ],
)
def test_a_mistyped_command_line_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert message in refused(capsys, *argv)


# --- completion -------------------------------------------------------------------------------------------

COMPLETE = """\
source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_mpn_rl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bash's completion script, in a folder with an experiment and a configuration."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "experiments" / "demo-3").mkdir(parents=True)
    (folder / "mine.json").touch()
    command = [sys.executable, str(ROOT / "main.py"), "--print-completion", "bash"]
    script = folder / "mpn-rl.bash"
    script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    subprocess.run(["bash", "-n", script], check=True)
    return script


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mpn-rl tr", ["train", "train-neurogym"]),
        ("mpn-rl train --lambda-d", ["--lambda-decay"]),
        ("mpn-rl train --core backpropamine-s", ["backpropamine-simplemaze"]),
        ("mpn-rl train-neurogym --algo a", ["a2c"]),
        ("mpn-rl train --expansion re", ["reference", "redo"]),
        ("mpn-rl train --replay seq", ["sequence"]),
        ("mpn-rl train --config mi", ["mine.json"]),
        ("mpn-rl eval --experiment-name de", ["demo-3"]),
        ("mpn-rl eval --num-eval-t", ["--num-eval-trials"]),
        ("mpn-rl analyze pr", ["probe"]),
        ("mpn-rl sweep su", ["submit", "summary"]),
        ("mpn-rl sweep summary --heat", ["--heatmap"]),
        ("mpn-rl train --experiments-dir exp", ["experiments"]),
    ],
)
def test_bash_completes(line: str, expected: list[str], script: Path) -> None:
    """In bash itself, as the Tab key asks: the words so far, and the function that the script has defined."""
    words = COMPLETE.format(script=script.name, words=shlex.join(line.split()))
    done = subprocess.run(["bash", "-c", words], cwd=script.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_completion_script_too(shell: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        arguments.parse(["--print-completion", shell])
    assert left.value.code == 0
    assert "train-neurogym" in capsys.readouterr().out


def test_completion_without_its_extra_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "--print-completion needs the extra: pip install 'mpn-rl[completion]'" in refused(
        capsys, "--print-completion", "bash"
    )


@pytest.mark.parametrize(("text", "steps"), [("1e5", 100_000), ("2.5e4", 25_000), ("3E+2", 300), ("40000", 40_000)])
def test_whole_numbers_may_have_an_exponent(text: str, steps: int) -> None:
    assert arguments.config_of(arguments.parse(["train", "--total-steps", text])).run.total_steps == steps


@pytest.mark.parametrize("text", ["1.5", "1e-3", "1.55e1", "1e400", "nan", "e5", "0x10"])
def test_other_notations_are_no_whole_numbers(text: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        arguments.parse(["train", "--total-steps", text])
    assert f"invalid whole number value: {text!r}" in capsys.readouterr().err


def test_lr_is_the_learning_rate() -> None:
    assert arguments.config_of(arguments.parse(["train", "--lr", "2e-4"])).learner.learning_rate == 2e-4


def test_help_names_the_core_or_learner_of_an_option_and_its_unit() -> None:
    parser = arguments.commands_of(arguments.make_parser())["train"]
    shown = " ".join(parser.format_help(everything=True).split())
    assert "--lambda-decay X [mpn] decay of M" in shown
    assert "--burn-in STEPS [dqn, td3] steps that only warm up the state" in shown
    assert "--hidden-dim UNITS hidden units per layer" in shown  # of every core
    names = {name for names in arguments.UNITS.values() for name in names} | arguments.ALIASES.keys()
    known = {field.name for part in cfg.PARTS for one in cfg.choices(part).values()
             for field in dataclasses.fields(one.section)}  # fmt: skip
    assert names <= known
