"""The program around the commands: its streams, whatever they are, and the environment that it inherits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import main
from model_utils import Experiment
from mpn_rl import commands

ROOT = Path(main.__file__).parent
PATIENCE = 120


def start(*argv: str, code: str | None = None, closed: tuple[int, ...] = (), **options) -> subprocess.CompletedProcess:
    """`main.py ARGV`, or Python code, in a process whose streams in `closed` are closed."""
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / "main.py"), *argv])]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        command, cwd=ROOT, timeout=PATIENCE, preexec_fn=lambda: [os.close(number) for number in closed], **streams
    )


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_are_replaced_before_a_file_can_take_their_number(closed: tuple[int, ...]) -> None:
    code = (
        "import os, sys, tempfile; from mpn_rl import cli\n"
        "cli._protect_standard_streams()\n"
        "with tempfile.NamedTemporaryFile() as file:\n"
        "    assert file.fileno() > 2\n"
        "    print('a result'); print('a message', file=sys.stderr); os.write(2, b'of a library')\n"
        "    os._exit(7 if os.path.getsize(file.name) == 0 else 8)"
    )
    assert start(code=code, closed=closed).returncode == 7


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["train", "--nonsense"], ["sweep", "check", "none"]])
@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)])
def test_help_and_refusals_need_no_open_stream(argv: list[str], closed: tuple[int, ...]) -> None:
    done = start(*argv, closed=closed)
    assert done.returncode == (0 if "--help" in argv else 2)
    assert b"Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["--print-completion", "bash"]])
def test_a_full_disk_is_named_with_the_stream(argv: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = start(*argv, stdout=full)
        assert done.returncode == 75
        assert done.stderr == b"main.py: cannot write to the standard output: No space left on device\n"
        assert start("train", "--nonsense", stdout=full, stderr=full).returncode == 2


def test_a_completion_script_may_be_cut_by_head() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = start("--print-completion", "bash", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict", "utf-16"])
def test_any_encoding_of_the_streams_shows_every_name(encoding: str) -> None:
    name = "\u03b1\u00b1\u6f22"
    done = start("sweep", "check", name, env={**os.environ, "PYTHONIOENCODING": encoding})
    codec = encoding.partition(":")[0]
    assert done.returncode == 2
    assert name.encode(codec, "backslashreplace").decode(codec) in done.stderr.decode(codec)


def test_figures_need_no_screen_whatever_backend_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setitem(commands.COMMANDS, "eval", lambda _: seen.append(os.environ["MPLBACKEND"]) or 0)
    for inherited in ("module://matplotlib_inline.backend_inline", "nonsense", ""):
        monkeypatch.setenv("MPLBACKEND", inherited)
        assert main.main(["eval", "--experiment-name", "any"]) == 0
        assert os.environ["MPLBACKEND"] == inherited
    assert seen == ["agg"] * 3


def test_the_options_of_a_suggested_command_are_quoted() -> None:
    assert Experiment("plain").options == "--experiment-name plain"
    assert Experiment("it's $HOME", Path("my runs")).options == (
        """--experiment-name 'it'"'"'s $HOME' --experiments-dir 'my runs'"""
    )
