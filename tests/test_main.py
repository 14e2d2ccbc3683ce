"""The program as a user meets it: real processes, signals, pipes, and whatever else may go wrong."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import main

ROOT = Path(__file__).parents[1]
TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--max-episode-steps", "30", "--eval-episodes", "2",
        "--learning-starts", "50", "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8",
        "--batch-size", "4", "--kernel", "reference"]  # fmt: skip
PATIENCE = 60  # seconds


def start(folder: Path, *argv: str, **pipes) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen([sys.executable, str(ROOT / "main.py"), *argv], cwd=folder, **pipes)


def train(name: str, *more: str) -> list[str]:
    return ["train", "--experiment-name", name, *TINY, "--no-plot-training", *more]


def wait_for(process: subprocess.Popen, file: Path) -> None:
    """Until the process has written something there."""
    deadline = time.monotonic() + PATIENCE
    while not (file.exists() and file.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def wait_for_checkpoint(process: subprocess.Popen, file: Path) -> None:
    """Until the process has replaced the checkpoint of its start."""
    wait_for(process, file)
    first, deadline = file.stat().st_ino, time.monotonic() + PATIENCE
    while file.stat().st_ino == first:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def processes() -> Iterator[dict[str, subprocess.Popen]]:
    """The processes that a test started by name, none of which outlives it."""
    started: dict[str, subprocess.Popen] = {}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def test_an_interrupted_a_terminated_and_a_killed_run_end_as_the_undisturbed_one(
    tmp_path: Path, processes: dict[str, subprocess.Popen]
) -> None:
    """SIGINT: 130, SIGTERM: 143, both with last.pt; SIGKILL falls back to the last checkpoint. Then all resume."""
    ends = {"int": (signal.SIGINT, 130), "term": (signal.SIGTERM, 143), "kill": (signal.SIGKILL, -9)}
    options = ["--num-episodes", "800", "--eval-freq", "4000", "--checkpoint-freq", "1000"]
    for name in ("whole", *ends):
        processes[name] = start(tmp_path, *train(name, *options))
    for name, (number, _) in ends.items():
        folder = tmp_path / "experiments" / name
        if name == "kill":
            wait_for_checkpoint(processes[name], folder / "checkpoints" / "last.pt")
        else:
            wait_for(processes[name], folder / "metrics.jsonl")
        processes[name].send_signal(number)
    for name, (_, status) in ends.items():
        folder = tmp_path / "experiments" / name
        _, err = processes[name].communicate(timeout=PATIENCE)
        assert processes[name].returncode == status, err
        assert b"Traceback" not in err
        assert (folder / "checkpoints" / "last.pt").is_file()
        assert not (folder / "checkpoints" / "final_model.pt").exists(), "ended before the signal came"
        assert name == "kill" or f"continue with --experiment-name {name} --resume".encode() in err
    for name in ends:
        processes[name] = start(tmp_path, "train", "--experiment-name", name, "--resume")
    for name in ("whole", *ends):
        out, err = processes[name].communicate(timeout=PATIENCE)
        assert processes[name].returncode == 0, err
        assert name == "whole" or b"continues at step" in out
    whole = tmp_path / "experiments" / "whole"
    for name in ends:
        for file in ("metrics.jsonl", "training_history.json"):
            assert (whole / file).read_bytes() == (tmp_path / "experiments" / name / file).read_bytes(), (name, file)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """`python main.py ... | head -1`: no traceback, and the run is whole."""
    quick = train("piped", "--num-episodes", "40", "--print-freq", "1")
    for argv in (quick, ["train", "--help"], ["eval", "--experiment-name", "piped", "--json"]):
        reader, writer = os.pipe()
        process = start(tmp_path, *argv, stdout=writer)
        os.close(writer)
        os.close(reader)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert b"Traceback" not in err and b"Broken" not in err and b"Exception" not in err
    assert (tmp_path / "experiments" / "piped" / "checkpoints" / "final_model.pt").is_file()


def test_results_go_to_stdout_though_the_bar_has_a_terminal(tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    process = start(tmp_path, *train("run", "--num-episodes", "6", "--print-freq", "2"), stderr=terminal)
    os.close(terminal)
    with process:
        out = process.stdout.read().decode()
    assert process.returncode == 0
    shown = b""
    try:
        while block := os.read(screen, 4096):
            shown += block
    except OSError:  # the terminal is gone
        pass
    os.close(screen)
    assert "Ep 2/6 | Reward" in out and "Ep 6/6" in out and "done:" in out
    assert b"ETA" in shown and b"Ep 2/6" not in shown


def test_a_log_file_is_not_flooded_by_the_bar(tmp_path: Path) -> None:
    process = start(tmp_path, *train("run", "--num-episodes", "200", "--print-freq", "50"))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert len(err.splitlines()) <= 2
    assert sum(line.startswith(b"Ep ") for line in out.splitlines()) == 4


def test_the_console_script_is_main() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"mpn-rl": "mpn_rl.cli:main"}
    assert callable(main.main)


# --- in one process ---------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture, *argv: str, expected: int = 2) -> str:
    """The message of a refused command: one line, with status 2 for a mistake and 75 for a temporary condition."""
    capsys.readouterr()
    try:
        status: object = main.main(list(argv))
    except SystemExit as left:
        status = left.code
    err = capsys.readouterr().err
    assert status == expected, err
    assert err.count("\n") == 1 and err.startswith("main.py"), err
    return err


def snapshot(folder: Path) -> dict[str, bytes]:
    files = {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
    return {path: data for path, data in files.items() if not path.endswith(".lock")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --env-name CartPol-v1", "got 'CartPol-v1'; did you mean 'CartPole-v1'"),
        ("train --env-name ContextDecisionMaking-v0", "use python main.py train-neurogym --env-name ContextDecisionM"),
        ("train --env-name Pendulum-v1", "Pendulum-v1 has continuous actions"),
        (
            "train --env-name nosuchmodule:Env-v0",
            "there is no module 'nosuchmodule'; a task module lies in the working",
        ),
        ("train --env-name .foo:Env-v0", "must be an id such as CartPole-v1, or package.module:Name-v0 for a task of"),
        ("train --env-name CartPole-v1 --env-arg foo=1", "unexpected keyword argument 'foo'"),
        ("train --env-arg render_mode=human", "--env-arg must not set render_mode"),
        ("train --env-name Taxi-v3 --mask-velocity", "--mask-velocity knows the velocities of CartPole-v0"),
        ("train-neurogym --env-name ContextDecisionMakin-v0", "did you mean 'ContextDecisionMaking-v0'"),
        ("train-neurogym --env-name CartPole-v1", "use python main.py train --env-name CartPole-v1"),
        ("train-neurogym --env-name Null-v0", "its reward is always zero"),
        ("train-neurogym --env-name ReachingDelayResponse-v0", "continuous"),
        ("train-neurogym --env-arg tempo=3", "--env-arg of ContextDecisionMaking-v0 must be one of"),
        (
            "train-neurogym --env-arg dt=0",
            "--env-arg dt of ContextDecisionMaking-v0 must be a number of ms above 0, got 0",
        ),
        ("train --core lsm", "got 'lsm'; did you mean 'lstm'"),
        ("train --core gru --eta 0.1", "--eta does nothing with"),
        ("train --hidden-dim -3", "--hidden-dim must be at least 1, got -3"),
        ("train --lambda-decay 1.5", "--lambda-decay must lie in [0.0, 1.0], got 1.5"),
        ("train --gamma nan", "--gamma must be finite, got nan"),
        ("train --epsilon-start 1.5", "--epsilon-start must lie in [0.0, 1.0], got 1.5"),
        ("train --total-steps 3 --num-envs 4", "--total-steps must be at least --num-envs = 4, got 3"),
        ("train --experiment-name ../x", "must be a name, not a path"),
        ("train --experiment-name a/b", "must be a name, not a path"),
        ("train --resume", "--resume needs --experiment-name"),
        ("train --resume auto", "--resume needs --experiment-name"),
        ("train --overwrite", "--overwrite needs --experiment-name"),
        ("train --resume --overwrite --experiment-name x", "exclude each other"),
        ("train --resume --experiment-name x", "no experiment 'x' in experiments/"),
        ("train --config nope.json", "--config nope.json: no such file"),
        ("train --config zzz", "none of the toolkit's configurations, backpropamine_maze, "),
        ("train --config td3_dens", "did you mean 'td3_dense'"),
        ("train --config configs/td3_dens.json", "did you mean 'td3_dense'"),
        ("train --config elsewhere/td3_dense.json", "--config elsewhere/td3_dense.json: No such file"),
        ("train --buffer-size 1000000000000", "the replay buffer does not fit"),
        ("train --hidden-dim 1000000000", "the machine has"),
        ("train --batch-size 1000000000000", "the machine has"),
        ("eval --experiment-name x", "no experiment 'x' in experiments/"),
        ("render --experiment-name x", "no experiment 'x' in experiments/"),
        ("render --experiment-name x --output film.avi", "--output must end in .gif or .mp4, got 'film.avi'"),
        ("render --experiment-name x --output nowhere/film.gif", "there is no folder nowhere"),
        ("analyze --experiment-name x", "no experiment 'x' in experiments/"),
        ("analyze plot --experiment-name x", "no experiment 'x' in experiments/"),
    ],
)
def test_bad_input_is_one_line_and_creates_nothing(
    line: str, message: str, here: Path, capsys: pytest.CaptureFixture
) -> None:
    assert message in refused(capsys, *line.split())
    assert list(here.iterdir()) == []


def test_a_gpu_that_is_not_there_is_named(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda needs an NVIDIA GPU" in refused(capsys, "train", "--device", "cuda")
    assert list(here.iterdir()) == []


@pytest.fixture
def trained(here: Path) -> Path:
    """A small finished experiment 'gonogo-2'."""
    assert main.main(train("gonogo-2", "--num-episodes", "2")) == 0
    return here / "experiments" / "gonogo-2"


class Bomb:
    """Running this pickle would leave a file behind."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_bad_input_about_an_experiment_changes_nothing(trained: Path, capsys: pytest.CaptureFixture) -> None:
    """One after the other on one experiment: mistyped names, taken names, foreign and broken files."""
    here = trained.parents[1]
    for core in ("gru", "mpn"):
        other = train(f"other-{core}", "--num-episodes", "1", "--hidden-dim", "5", "--core", core)
        assert main.main([word for word in other if core == "mpn" or word not in ("--kernel", "reference")]) == 0
    (here / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    whole = (trained / "checkpoints" / "best_model.pt").read_bytes()
    (here / "half.pt").write_bytes(whole[: len(whole) // 2])
    (here / "empty.pt").touch()
    (here / "typo.json").write_text(json.dumps({"run": {"sede": 1}}))
    (here / "types.json").write_text(json.dumps({"core": {"hidden_dim": "64"}}))
    (here / "text.json").write_text("hidden_dim = 3")
    (here / "a-file").touch()
    of = "--experiment-name gonogo-2"
    cases = {
        "eval --experiment-name gonogo-1": "no experiment 'gonogo-1' in experiments/; did you mean 'gonogo-2'?",
        "train --experiment-name gonogo-2": "exists in experiments/; continue it with --resume or replace it",
        f"eval {of} --checkpoint bset": "no checkpoint bset; --checkpoint takes best, final, last or a file's path",
        f"eval {of} --checkpoint bomb.pt": "bomb.pt is foreign or damaged",
        f"eval {of} --checkpoint half.pt": "half.pt is foreign or damaged",
        f"eval {of} --checkpoint empty.pt": "empty.pt is foreign or damaged",
        f"eval {of} --checkpoint experiments/other-gru/checkpoints/best_model.pt": "does not fit",
        f"eval {of} --checkpoint experiments/other-mpn/checkpoints/best_model.pt": "does not fit",
        f"eval {of} --num-eval-trials 10": "--num-eval-trials counts NeuroGym trials",
        f"analyze plot {of}": "record it with: python main.py analyze collect --experiment-name gonogo-2",
        f"train {of} --resume --seed 3": "--seed is 0, got 3; leave the option out",
        f"train {of} --resume --core gru": "--core is mpn, got gru",
        f"train {of} --resume --config typo.json": "unknown key 'sede' in section 'run'; did you mean 'seed'?",
        "train --config types.json": "--hidden-dim must be a whole number, got '64'",
        "train --config text.json": "text.json is not JSON",
        "train --experiments-dir a-file --num-episodes 1": "a-file",
        "train --experiments-dir /proc/nowhere --num-episodes 1": "/proc/nowhere",
    }
    before = snapshot(here)
    for line, message in cases.items():
        assert message in refused(capsys, *line.split()), line
        assert snapshot(here) == before, line


def test_a_damaged_config_json_is_named(trained: Path, capsys: pytest.CaptureFixture) -> None:
    path = trained / "config.json"
    whole = json.loads(path.read_text())
    whole["run"]["sede"] = 1
    path.write_text(json.dumps(whole))
    message = refused(capsys, "eval", "--experiment-name", "gonogo-2")
    assert "experiments/gonogo-2/config.json: unknown key 'sede' in section 'run'; did you mean 'seed'?" in message
    path.write_text(path.read_text()[:50])
    assert "config.json does not hold a JSON object" in refused(capsys, "eval", "--experiment-name", "gonogo-2")


def test_a_second_process_is_kept_out(trained: Path, capsys: pytest.CaptureFixture) -> None:
    from model_utils import Experiment

    before = snapshot(trained)
    with Experiment("gonogo-2").lock():
        for how in ("--resume", "--overwrite"):
            assert "in use by another process" in refused(
                capsys, *train("gonogo-2", "--num-episodes", "2", how), expected=75
            )
    assert snapshot(trained) == before


def test_a_finished_run_prints_so_and_does_not_change(trained: Path, capsys: pytest.CaptureFixture) -> None:
    before = snapshot(trained)
    for how in (["--resume"], ["--resume", "auto"]):
        capsys.readouterr()
        assert main.main(["train", "--experiment-name", "gonogo-2", *how]) == 0
        assert "is complete: " in capsys.readouterr().out
    assert snapshot(trained) == before


def test_a_finished_run_goes_on_with_more_episodes_and_remembers_that(trained: Path) -> None:
    assert main.main(["train", "--experiment-name", "gonogo-2", "--resume", "--num-episodes", "5"]) == 0
    assert json.loads((trained / "config.json").read_text())["run"]["num_episodes"] == 5
    assert len(json.loads((trained / "training_history.json").read_text())["episode_rewards"]) == 5


def test_resume_auto_starts_what_is_not_there_and_never_deletes_a_finished_model(
    trained: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main.main(train("new", "--num-episodes", "1", "--resume", "auto")) == 0
    assert (trained.parent / "new" / "checkpoints" / "final_model.pt").is_file()
    (trained / "checkpoints" / "last.pt").unlink()
    before = snapshot(trained)
    assert "holds a finished model but no last.pt" in refused(capsys, *train("gonogo-2", "--resume", "auto"))
    assert "--resume needs" in refused(capsys, *train("gonogo-2", "--resume"))
    assert snapshot(trained) == before


def test_resume_auto_deletes_nothing_that_it_did_not_write(
    trained: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    """A model without last.pt, notes, another program's folder, another run's start: refused, and left as it is."""
    start = {"config.json": (trained / "config.json").read_bytes()}
    model = (trained / "checkpoints" / "best_model.pt").read_bytes()
    folders = {
        "model": (start | {"checkpoints/best_model.pt": model}, "holds checkpoints/best_model.pt but no last.pt"),
        "metrics": (start | {"metrics.jsonl": b"{}\n"}, "holds metrics.jsonl but no last.pt"),
        "notes": ({"notes.md": b"mine"}, "holds notes.md but no last.pt"),
        "started-with-notes": (start | {"notes/monday.md": b"mine"}, "holds notes/monday.md but no last.pt"),
        "other": ({"config.json": b'{"model_type": "bert"}'}, "config.json: the configuration has no section"),
        "damaged": ({"config.json": b"{"}, "config.json does not hold a JSON object"),
    }
    for name, (files, message) in folders.items():
        for path, content in files.items():
            (here / "experiments" / name / path).parent.mkdir(parents=True, exist_ok=True)
            (here / "experiments" / name / path).write_bytes(content)
        before = snapshot(here)
        assert message in refused(capsys, *train(name, "--num-episodes", "2", "--resume", "auto")), name
        assert snapshot(here) == before
    (here / "experiments" / "start").mkdir()
    (here / "experiments" / "start" / "config.json").write_bytes(start["config.json"])
    another = train("start", "--num-episodes", "2", "--gamma", "0.5", "--resume", "auto")
    assert "--gamma is 0.99, got 0.5" in refused(capsys, *another)
    assert main.main(train("start", "--num-episodes", "2", "--resume", "auto")) == 0  # the same run, started again
    assert (here / "experiments" / "start" / "checkpoints" / "last.pt").is_file()


def test_a_run_whose_task_fails_before_the_first_checkpoint_can_be_resumed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpn_rl.training import Run

    advance = Run.advance

    def fail(run: Run, check):
        if run.step >= 20:
            raise OSError(5, "Input/output error", "task.dat")
        return advance(run, check)

    argv = train("broken", "--num-episodes", "3", "--resume", "auto")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", fail)
        assert main.main(argv) == 75
    assert (here / "experiments" / "broken" / "checkpoints" / "last.pt").is_file()
    assert main.main(argv) == 0
    assert main.main(train("whole", "--num-episodes", "3")) == 0
    metrics = [(here / "experiments" / name / "metrics.jsonl").read_bytes() for name in ("broken", "whole")]
    assert metrics[0] == metrics[1]


def test_a_damaged_line_of_metrics_is_named_before_any_training(trained: Path, capsys: pytest.CaptureFixture) -> None:
    lines = (trained / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for damaged in (b"{\n", b'["episode"]\n', b'{"kind": "episode", "step": "five", "episode": 1}\n', b'{"kind": 3}\n'):
        first = damaged.rstrip().ljust(len(lines[0]) - 1) + b"\n"  # as long as before
        (trained / "metrics.jsonl").write_bytes(b"".join([first, *lines[1:]]))
        (trained / "error.txt").unlink(missing_ok=True)
        before = snapshot(trained)
        argv = ["train", "--experiment-name", "gonogo-2", "--resume", "--num-episodes", "5"]
        assert re.search("metrics.jsonl line 1[ :]", refused(capsys, *argv))
        assert {path: data for path, data in snapshot(trained).items() if "error.txt" not in path} == before


def test_without_a_name_a_run_gets_a_readable_one(here: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [word for word in train("x", "--num-episodes", "1") if word not in ("--experiment-name", "x")]
    assert main.main(argv) == 0 and main.main(argv) == 0
    names = sorted(path.name for path in (here / "experiments").iterdir() if path.name != ".locks")
    assert names == ["CartPole-v1-mpn-0-1", "CartPole-v1-mpn-0-2"]
    assert f"--experiment-name {names[0]}" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_loses_nothing(
    trained: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import model_utils

    before = snapshot(trained)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_utils.os, "fsync", full)
    argv = ["train", "--experiment-name", "gonogo-2", "--resume", "--num-episodes", "5", "--no-plot-training"]
    assert "No space left on device" in refused(capsys, *argv, expected=75)
    monkeypatch.undo()
    os.chdir(trained.parents[1])
    after = snapshot(trained)
    assert {path: after[path] for path in before} == before
    assert main.main(argv) == 0


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError("8 TiB"), 75, "out of memory (8 TiB); lower --hidden-dim"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."),
            75,
            "can't allocate memory: ...); lower --hid",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
            75,
            "(CUDA out of memory. Tried",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"),
            75,
            "out of memory (CUDA error: CUBLAS",
        ),
        (OSError(13, "Permission denied", "plots/x.png"), 2, "plots/x.png: Permission denied"),
        (OSError(28, "No space left on device", "plots/x.png"), 75, "plots/x.png: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_no_module_foresaw_is_still_one_line(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpn_rl import commands

    def fail(_args):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "eval", fail)
    assert main.main(["eval", "--experiment-name", "x"]) == status
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_diverged_run_stops_with_status_1_and_names_the_step(here: Path, capsys: pytest.CaptureFixture) -> None:
    wild = ("--learning-rate", "1e30", "--grad-clip", "1e30")
    argv = train("wild", "--num-episodes", "400", "--eval-freq", "40", *wild)
    assert main.main(argv) == 1
    err = capsys.readouterr().err
    assert "training stopped: the l" in err and " at step " in err and "best" in err
    assert main.main(["eval", "--experiment-name", "wild"]) == 0
