"""Files of a sweep from a stranger: rows agree with their check, and no file hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import main
from mpn_rl.options import ConfigError
from mpn_rl.sweep import sweep_files
from mpn_rl.sweep.submit_file import SubmitFile

PLAN = 'command = "train"\nseeds = 2\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a body that does not end."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error of a refused command, whose last line is the summary; nothing on stdout."""
    capsys.readouterr()
    with at_most(20):
        assert main.main(["sweep", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


def toml_text(text: str) -> str:
    """A TOML string with any characters."""
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


# --- rows and their check -----------------------------------------------------------------------------------

ODD = st.text(st.sampled_from("ab0-_.+= ,\"'$(){}\\#\t\n\0~/\u00e9\u2028\x7f"), max_size=6)
PIECES = st.lists(st.sampled_from(["{seed}", "{eta}", "{env_name}", "$(seed)", "queue", " "]) | ODD, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.none() | PIECES.map("".join),
    stem=st.sampled_from(["grid", "my grid", "queue", "a,b", "d'or", "#1", "-x", "$(a)", "\u00e9t\u00e9"]),
    env_names=st.lists(st.sampled_from(["CartPole-v1", "Acrobot-v1"]) | ODD, min_size=1, max_size=2),
    key=st.sampled_from(["dt", "Dt", "a b", "$(seed)", "x=y"]),
)
def test_the_check_accepts_every_row_that_expand_writes(
    name: str | None, stem: str, env_names: list[str], key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the names and values are: expand refuses the plan, or check reads the same rows without a mistake."""
    folder = tmp_path_factory.mktemp("plan")
    path = folder / f"{stem}.toml"
    lines = [PLAN, f"name = {toml_text(name)}\n" if name is not None else "", "[grid]\neta = [0.5, 1]\n"]
    lines += [f"env-name = [{', '.join(map(toml_text, env_names))}]\n", f"env-arg = {{ {toml_text(key)} = [1, 2] }}\n"]
    path.write_text("".join(lines))
    args_file = folder / f"{stem}_args.txt"
    if main.main(["sweep", "expand", str(path)]) == 2:
        assert not args_file.exists()
        return
    written = [row.values for row in sweep_files.load(path).rows]
    assert [row.values for row in sweep_files.load(args_file).rows] == written
    for file in (path, args_file):
        assert main.main(["sweep", "check", str(file), "--experiments-dir", str(folder / "runs")]) == 0
    assert {planned.argv[1] for planned in loaded(args_file)} == {f"--experiment-name={row[0]}" for row in written}


def loaded(path: Path) -> list:
    sweep = sweep_files.load(path)
    assert sweep.check("ignore") == []
    return sweep.planned


@pytest.mark.parametrize(
    "name", ["", "a b-{seed}", "a,{seed}", "'{seed}'", "$(seed)", "#{seed}", "x{seed}\0", "{seed:>9999999999}"]
)
def test_a_name_that_an_args_file_cannot_hold_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    Path("grid.toml").write_text(f"{PLAN}name = {toml_text(name)}\n")
    err = refused(capsys, "expand", "grid.toml")
    assert err.startswith("main.py sweep: grid.toml: name") and err.count("\n") == 1
    assert os.listdir() == ["grid.toml"]


def test_a_file_name_with_blanks_gives_names_without(capsys: pytest.CaptureFixture) -> None:
    Path("my first, grid.toml").write_text(PLAN)
    assert main.main(["sweep", "expand", "my first, grid.toml"]) == 0
    assert Path("my first, grid_args.txt").read_text() == "my_first_grid-s0, 0\nmy_first_grid-s1, 1\n"


def test_a_row_that_begins_with_queue_is_no_queue_statement(capsys: pytest.CaptureFixture) -> None:
    Path("grid.toml").write_text(PLAN + 'name = "queue-{seed}"\n')
    for argv in (["expand", "grid.toml"], ["check", "grid_args.txt"]):
        assert main.main(["sweep", *argv]) == 0
    assert "2 rows, no mistakes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", ["../rows.txt", "/tmp/rows.txt", "grid.toml", "x.job", "", "..", "a\0b", "sub/rows.txt"]
)
def test_rows_are_written_beside_the_toml_file_only(args: str, capsys: pytest.CaptureFixture) -> None:
    Path("grid.toml").write_text(f"{PLAN}args = {toml_text(args)}\n")
    assert "grid.toml: args must" in refused(capsys, "expand", "grid.toml", "--overwrite")
    assert os.listdir() == ["grid.toml"] and Path("grid.toml").read_text().startswith(PLAN)


# --- special files and large ones ---------------------------------------------------------------------------

JOB = """executable = run.sh
arguments = train --experiment-name $(name) --seed $(seed) --resume auto
should_transfer_files = NO
queue name, seed from rows.txt
"""


def special(kind: str, path: Path) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    else:
        path.touch()
        os.truncate(path, 2**40)


@pytest.mark.parametrize("kind", ["FIFO", "link to /dev/zero", "link to itself", "folder", "socket", "1 TiB"])
@pytest.mark.parametrize("name", ["a.toml", "a.job", "rows.txt", "run.sh"])
def test_a_special_file_is_refused_at_once(kind: str, name: str, capsys: pytest.CaptureFixture) -> None:
    if name != "a.toml":
        Path("a.job").write_text(JOB)
        Path("rows.txt").write_text("a, 0\n")
        Path(name).unlink(missing_ok=True)
    special(kind, Path(name))
    if kind == "1 TiB" and name == "run.sh":
        Path(name).chmod(0o755)  # a program of any size is no mistake
        assert main.main(["sweep", "check", "a.job"]) == 0
        return
    err = refused(capsys, "check", "a.job" if name == "run.sh" else name)
    assert name in err and len(err.splitlines()) <= 3


def test_a_special_metrics_file_or_log_does_not_hang_status(capsys: pytest.CaptureFixture) -> None:
    Path("a.toml").write_text(PLAN + "[fixed]\nnum-episodes = 1000\n")
    (planned, _) = loaded(Path("a.toml"))
    planned.experiment.path.mkdir(parents=True)
    assert planned.config is not None
    planned.experiment.config_path.write_text(json.dumps(planned.config.to_dict()))
    for file in (planned.experiment.metrics_path, planned.experiment.error_path):
        os.mkfifo(file)
    with at_most(20):
        assert main.main(["sweep", "status", "a.toml"]) == 0
    planned.experiment.metrics_path.unlink()
    row = '{"kind": "eval", "step": 50, "episode": 500, "return_mean": 3.0, "accuracy": null}\n'
    odd = ['{"step": "x", "episode": 1}', '{"step": 1e999, "episode": []}', "[" * 30_000,
           '{"step": 1, "episode": null}',
           '{"kind": "eval", "step": 1, "episode": 2, "return_mean": "a"}', "{}", "3", "\0"]  # fmt: skip
    planned.experiment.metrics_path.write_text(row + "\n".join(odd) + "\n")
    capsys.readouterr()
    assert main.main(["sweep", "status", "a.toml"]) == 0
    assert "interrupted   50%   3.000" in capsys.readouterr().out


# --- macros, nesting, blanks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "macros",
    [
        "a = $(a)$(a)$(a)$(a)$(a)$(a)$(a)$(a)\n",
        "a = x$(b)$(b)$(b)$(b)$(b)$(b)$(b)$(b)\nb = y$(a)$(a)$(a)$(a)$(a)$(a)$(a)$(a)\n",
        "a = xx\n" + "a = $(a)$(a)\n" * 60,
        "".join(f"a{n} = $(a{n + 1})$(a{n + 1})$(a{n + 1})$(a{n + 1})\n" for n in range(12)) + "a12 = x\na = $(a0)\n",
    ],
    ids=["itself eight times", "each other", "twice as long in each line", "a chain"],
)
def test_macros_expand_to_a_bounded_length(macros: str, capsys: pytest.CaptureFixture) -> None:
    Path("a.job").write_text(macros + JOB.replace("--resume", "$(a) --resume"))
    Path("rows.txt").write_text("a, 0\n")
    with at_most(20), contextlib.suppress(ConfigError):
        words = SubmitFile.read(Path("a.job")).arguments()
        assert len(" ".join(words)) <= 2**16
    assert len(refused(capsys, "check", "a.job")) < 5000


def test_a_macro_may_extend_its_former_value() -> None:
    Path("a.job").write_text("a = 1\na = $(a) 2\na = 0 $(A)\n" + JOB)
    assert SubmitFile.read(Path("a.job")).expand("$(a)") == "0 1 2"


BLANKS = " " * 60_000


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 60_000 + "x",
        f"a ={BLANKS}b{BLANKS}c\n",
        f"queue a{BLANKS},{BLANKS}b{BLANKS}from{BLANKS}!",
        f"{BLANKS}queue{BLANKS}x",
        f"a{BLANKS}b",
        "$(" * 60_000,
        "$a" * 60_000,
        "include : " + "a.job " * 20_000,
        "".join(f"requst{n} = $(x{n})\n" for n in range(12_000)),
        "a" * 100_000 + " = 3",
        "arguments = " + '"' * 60_001,
        "a @=x\n" + "y\n" * 60_000,
    ],
    ids=range(12),
)
def test_long_lines_and_many_mistakes_take_no_time(text: str, capsys: pytest.CaptureFixture) -> None:
    Path("a.job").write_text(text + "\n" + JOB)
    Path("rows.txt").write_text("a, 0\n")
    refused(capsys, "check", "a.job")
    Path("rows.txt").write_text(text + "\n")
    Path("a.job").write_text(JOB)
    refused(capsys, "check", "a.job")


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 60_000 + "x",
        f"command ={BLANKS}{BLANKS}3",
        "a = " + "[" * 60_000,
        "a" + ".a" * 60_000 + " = 1",
        f"{PLAN}[fixed]\n" + "".join(f"env-arg.a{n} = 1\n" for n in range(10_000)) + "x = 3\n",
        f"{PLAN}[grid]\neta = [{'1.0, ' * 40_000}]\nlambda-decay = [{'1.0,' * 10_000}]\n",
        PLAN + "[[grid]]\neta = [0.1, 1]\n" * 12_000 + "[[grid]]\nx = 1\n",
        "seeds = 0x" + "f" * 100_000 + '\ncommand = "train"\n',
        'command = "train"\nname = "\\u0000"\n',
        'command = "train"\n[fixed]\nenv-name = "a\\u0000"\n',
        'command = "train"\n[grid]\nenv-name = ["\\u0000"]\n',
        'job = "a\\u0000.job"\n',
        f'job = "{"a" * 500}.job"\n',
        f'command = "{"x" * 100_000}"\n',
        f"command = [{'[], ' * 30_000}]\n",
    ],
    ids=range(15),
)
def test_a_strange_toml_file_is_one_line(text: str, capsys: pytest.CaptureFixture) -> None:
    Path("a.toml").write_text(text)
    err = refused(capsys, "expand", "a.toml")
    assert err.count("\n") == 1 and len(err) < 1000, err[:300]
    assert os.listdir() == ["a.toml"]
