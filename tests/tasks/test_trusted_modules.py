"""Task modules run code: the user, not a file, decides which are imported, and never from a folder of experiments."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

import main
from mpn_rl.options import ConfigError
from mpn_rl.tasks import trusted_modules

TINY = [
    "--total-steps",
    "20",
    "--num-envs",
    "1",
    "--eval-episodes",
    "1",
    "--hidden-dim",
    "4",
    "--learning-starts",
    "99",
]
MODULE = """
import pathlib
import gymnasium
pathlib.Path("imported.txt").write_text("yes")
gymnasium.register("Mine-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=20)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the task module my_task and no memory of earlier consent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trusted_modules, "_consent", trusted_modules._Consent())
    (tmp_path / "my_task.py").write_text(MODULE)
    yield tmp_path
    forget()


def forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("my_task", "experiments", "plugin", "pack", "broken", "link"):
            del sys.modules[name]
    gymnasium.registry.pop("Mine-v0", None)


def imported() -> bool:
    """Whether the task module was imported since the last call."""
    mark = Path("imported.txt")
    there = mark.exists()
    mark.unlink(missing_ok=True)
    return there


def run(capsys: pytest.CaptureFixture, *argv: str) -> tuple[int, str]:
    """The exit status and the messages of a command in a process that has not imported the task module."""
    forget()
    capsys.readouterr()
    status = main.main(list(argv))
    out, err = capsys.readouterr()
    return status, out + err


def train(capsys: pytest.CaptureFixture, name: str, *argv: str) -> tuple[int, str]:
    return run(capsys, "train", "--experiment-name", name, *argv, *TINY)


def poison(name: str, env_name: str) -> Path:
    path = Path("experiments") / name / "config.json"
    stored = json.loads(path.read_text())
    stored["env"]["env_name"] = env_name
    path.write_text(json.dumps(stored))
    return path


def test_a_module_that_only_a_stored_configuration_names_is_not_imported(capsys: pytest.CaptureFixture) -> None:
    assert train(capsys, "theirs", "--env-name", "CartPole-v1")[0] == 0
    poison("theirs", "my_task:Mine-v0")
    for command in (["eval"], ["render"], ["analyze", "collect"], ["train", "--resume"]):
        status, text = run(capsys, *command, "--experiment-name", "theirs")
        assert status == 2 and not imported(), (command, text)
        assert "experiments/theirs/config.json names the task module 'my_task'" in text
        assert "--trust-env-module my_task" in text and text.count("\n") == 1
    status, text = run(capsys, "eval", "--experiment-name", "theirs", "--trust-env-module", "my_task")
    assert status == 0 and imported(), text
    assert run(capsys, "eval", "--experiment-name", "theirs")[0] == 2  # an evaluation's consent is for that command


def test_a_task_module_is_trusted_where_it_was_trained_and_named_elsewhere(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, text = train(capsys, "mine", "--env-name", "my_task:Mine-v0")
    assert status == 0 and imported(), text
    status, text = run(capsys, "eval", "--experiment-name", "mine")
    assert status == 0 and imported(), text
    shutil.copytree("experiments/mine", "experiments/copied")
    assert run(capsys, "eval", "--experiment-name", "copied")[0] == 2 and not imported()
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("other").resolve()))
    assert run(capsys, "eval", "--experiment-name", "mine")[0] == 2 and not imported()


def test_a_config_file_is_no_consent(capsys: pytest.CaptureFixture) -> None:
    Path("stranger.json").write_text('{"env": {"name": "gymnasium", "env_name": "my_task:Mine-v0"}}')
    status, text = train(capsys, "run", "--config", "stranger.json")
    assert status == 2 and not imported() and "--config stranger.json names the task module 'my_task'" in text
    assert not Path("experiments").exists()
    assert train(capsys, "run", "--config", "stranger.json", "--trust-env-module", "my_task")[0] == 0 and imported()


@pytest.mark.parametrize("kind", ["namespace", "package", "link", "working directory"])
def test_no_module_is_imported_from_a_folder_of_experiments(
    kind: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = folder / "experiments" / "evil"
    evil.mkdir(parents=True)
    (evil / "plugin.py").write_text(MODULE)
    name = "experiments.evil.plugin"
    if kind == "package":
        (evil / "__init__.py").write_text(MODULE)
        (folder / "experiments" / "__init__.py").write_text(MODULE)
    elif kind == "link":
        (folder / "link").symlink_to(evil)
        name = "link.plugin"
    elif kind == "working directory":
        monkeypatch.chdir(evil)
        name = "plugin"
    where = ["--experiments-dir", str(folder / "experiments")]
    status, text = train(capsys, "run", "--env-name", f"{name}:Mine-v0", "--trust-env-module", name, *where)
    marks = list(folder.rglob("imported.txt"))
    assert status == 2 and not marks, text
    assert "folder of experiments" in text or "no module 'plugin'" in text


def test_sweep_check_lists_the_modules_of_rows_and_sweep_run_needs_consent(capsys: pytest.CaptureFixture) -> None:
    Path("rows.toml").write_text(
        'command = "train"\nseeds = 1\nname = "s-{eta}-{seed}"\n[fixed]\nenv-name = "my_task:Mine-v0"\n'
        'trust-env-module = "my_task"\n[grid]\neta = [0.5]\n'
    )
    status, text = run(capsys, "sweep", "check", "rows.toml")
    assert status == 0 and "rows import the task module 'my_task'" in text and not imported()
    status, text = run(capsys, "sweep", "run", "rows.toml")
    assert status == 2 and "add --trust-env-module my_task" in text and not imported()
    assert not Path("experiments").exists()


def test_a_module_that_the_program_imported_needs_no_consent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpn_rl.tasks.gymnasium_tasks import make_gymnasium

    with pytest.raises(ConfigError, match="add --trust-env-module my_task"):
        make_gymnasium("my_task:Mine-v0")
    assert not imported()
    monkeypatch.syspath_prepend(folder)
    __import__("my_task")
    assert make_gymnasium("my_task:Mine-v0").obs_dim == 4


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 3}', "\\x00", "[" * 9999])
def test_a_damaged_memory_of_consents_is_an_empty_one(
    content: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    path = folder / "state" / "mpn-rl" / "trusted_modules.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    trusted_modules.open_experiment(folder)
    assert not trusted_modules.is_trusted("my_task")


def test_a_memory_that_cannot_be_written_is_a_note(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "state").write_text("a file")
    status, text = train(capsys, "mine", "--env-name", "my_task:Mine-v0")
    assert status == 0 and "of this experiment will need --trust-env-module my_task" in text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nosuchlibrary", "ModuleNotFoundError: No module named 'nosuchlibrary' (broken.py, line 1)"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("import sys\nsys.exit(0)", "SystemExit: 0 (broken.py, line 2)"),
        ("", "registers no task 'Mine-v0'; it registers none"),
        (
            "import gymnasium\ngymnasium.register('Mine-v0', 'broken:Missing')",
            "broken:Missing cannot be loaded: AttributeError: module 'broken' has no attribute 'Missing'",
        ),
    ],
)
def test_the_real_error_of_a_task_module_is_shown(code: str, message: str, capsys: pytest.CaptureFixture) -> None:
    Path("broken.py").write_text(code)
    status, text = train(capsys, "run", "--env-name", "broken:Mine-v0")
    assert status == 2 and message in text and text.count("\n") == 1, text
    assert not Path("experiments").exists()
