"""One folder per experiment: names, locks, whole files, exact checkpoints, metrics that lose no line."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

import model_utils
import visualize
from model_utils import (
    CHECKPOINT_FORMAT,
    Experiment,
    load_checkpoint,
    pack,
    save_checkpoint,
    unpack,
    write_json,
)
from mpn_rl.options import ConfigError, TemporaryError
from mpn_rl.storage.regular_files import temporary_path

REPOSITORY = Path(model_utils.__file__).parent
SECTIONS: dict[str, object] = {"env": {}, "core": {}, "run": {}}  # of every experiment's config.json


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.create("gonogo-2", tmp_path, {**SECTIONS, "seed": 3})


def everything(folder: Path) -> dict[str, bytes]:
    """The files below a folder, without locks."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {path: data for path, data in files.items() if not path.endswith(".lock")}


def visible(folder: Path) -> list[str]:
    """The entries of the experiments' folder, without the locks."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        ("a/b", "a name, not a path"),
        ("..", "a name, not a path|dot or a dash"),
        ("a\\b", "a name, not a path"),
        (".hidden", "dot or a dash"),
        ("-x", "dot or a dash"),
        ("two\nlines", "control characters"),
        ("x" * 101, "at most 100 bytes"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_refused_in_one_line(tmp_path: Path, name: str, rule: str) -> None:
    for refuse in (Experiment.check_new, Experiment.open, Experiment.create):
        with pytest.raises(ConfigError, match=rule) as error:
            refuse(name, tmp_path)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_check_new_creates_nothing(tmp_path: Path) -> None:
    root = tmp_path / "experiments"
    assert Experiment.check_new("fresh", root) == "fresh"
    assert Experiment.check_new(None, root) == ""
    assert not root.exists()


def test_a_free_name_is_the_first_that_no_experiment_and_no_process_has(tmp_path: Path) -> None:
    Experiment.create("CartPole-v1-mpn-0-1", tmp_path)
    with Experiment("CartPole-v1-mpn-0-2", tmp_path).lock():  # of a run that is about to create its folder
        assert lock_free_name_elsewhere("CartPole-v1-mpn-0", tmp_path) == "CartPole-v1-mpn-0-3"
    with Experiment.lock_free_name("CartPole-v1-mpn-0", tmp_path) as experiment:
        assert experiment.name == "CartPole-v1-mpn-0-2" and experiment.holder() is not None


def lock_free_name_elsewhere(stem: str, root: Path) -> str:
    """The name that another process gets."""
    code = (
        "import sys; from model_utils import Experiment\n"
        "with Experiment.lock_free_name(*sys.argv[1:]) as experiment: print(experiment.name)"
    )
    done = subprocess.run([sys.executable, "-c", code, stem, root], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("my_task:MyTask-v0-gru-3", "MyTask-v0-gru-3-1"),
        ("ALE/Pong-v5-mpn-0", "ALE-Pong-v5-mpn-0-1"),
        ("x" * 200, "x" * 60 + "-1"),
        ("课题" * 40 + "-mpn-0", "mpn-0-1"),  # 240 bytes
        ("", "run-1"),
    ],
)
def test_a_free_name_fits_a_folder(tmp_path: Path, stem: str, name: str) -> None:
    with Experiment.lock_free_name(stem, tmp_path) as experiment:
        assert experiment.name == name == Experiment.check_new(name, tmp_path)


def test_an_existing_experiment_is_refused_unless_resumed_or_overwritten(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match="'gonogo-2' exists in .*--resume.*--overwrite"):
        Experiment.check_new("gonogo-2", experiment.root)
    assert Experiment.check_new("gonogo-2", experiment.root, resume=True) == "gonogo-2"
    assert Experiment.check_new("gonogo-2", experiment.root, overwrite=True) == "gonogo-2"
    with pytest.raises(ConfigError, match="exclude each other"):
        Experiment.check_new("gonogo-2", experiment.root, overwrite=True, resume=True)
    with pytest.raises(ConfigError, match="--resume needs --experiment-name"):
        Experiment.check_new(None, experiment.root, resume=True)


def test_overwrite_never_deletes_a_folder_that_is_no_experiment(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name in ("thesis", "link"):
        with pytest.raises(ConfigError, match="replaces experiments only"):
            Experiment.create(name, tmp_path, {}, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_overwrite_refuses_the_folder_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    for config in ('{"model_type": "bert"}', "no JSON", ""):
        (tmp_path / "bert" / "config.json").write_text(config)
        with pytest.raises(
            ConfigError, match=r"bert holds (the|a) config.json (of another program|that cannot be read)"
        ):
            Experiment.create("bert", tmp_path, {}, overwrite=True)


@pytest.mark.parametrize("name", ["notes.md", "notes/monday.md", "checkpoints/best_of_may.pt"])
def test_overwrite_keeps_what_no_command_wrote(experiment: Experiment, name: str) -> None:
    save_checkpoint(experiment.checkpoint("best"), {"step": 1})
    (experiment.path / name).parent.mkdir(exist_ok=True)
    (experiment.path / name).write_text("mine")
    Experiment.create("gonogo-2", experiment.root, {**SECTIONS, "seed": 4}, overwrite=True)
    assert everything(experiment.path).keys() == {"config.json"}
    (kept,) = (experiment.root / ".replaced").iterdir()
    assert (kept / name).read_text() == "mine" and (kept / "checkpoints" / "best_model.pt").is_file()
    assert Experiment.names(experiment.root) == ["gonogo-2"]


def test_a_new_experiment_may_take_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Experiment.create("a", tmp_path, {"eta": 1})
    assert everything(tmp_path).keys() == {"a/config.json"}


# --- starting and finding -------------------------------------------------------------------------


def test_create_writes_the_configuration_and_nothing_else(tmp_path: Path) -> None:
    created = Experiment.create("a", tmp_path / "new" / "root", {"eta": 0.5, "limit": float("inf")})
    assert list(everything(tmp_path)) == ["new/root/a/config.json"]
    assert created.read_config() == {"eta": 0.5, "limit": None}
    assert visible(created.root) == ["a"]


def test_create_refuses_a_taken_name_and_leaves_it_as_it_was(experiment: Experiment) -> None:
    before = everything(experiment.root)
    with pytest.raises(ConfigError, match="exists"):
        Experiment.create("gonogo-2", experiment.root, {**SECTIONS, "seed": 4})
    assert everything(experiment.root) == before


def test_overwrite_leaves_nothing_of_the_old_experiment(experiment: Experiment) -> None:
    write_json(experiment.plots_dir / "old.json", {})
    replaced = Experiment.create("gonogo-2", experiment.root, {**SECTIONS, "seed": 4}, overwrite=True)
    assert list(everything(replaced.root)) == ["gonogo-2/config.json"]
    assert replaced.read_config() == {**SECTIONS, "seed": 4}


def test_overwrite_that_fails_half_way_brings_the_old_experiment_back(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def fail_on_new(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            no_space()
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_new)
    with pytest.raises(ConfigError, match="free some space"):
        Experiment.create("gonogo-2", experiment.root, {**SECTIONS, "seed": 4}, overwrite=True)
    assert experiment.read_config() == {**SECTIONS, "seed": 3}
    assert visible(experiment.root) == ["gonogo-2"]


def test_a_mistyped_name_gets_the_nearest_one_and_creates_nothing(experiment: Experiment) -> None:
    with pytest.raises(ConfigError) as error:
        Experiment.open("gonogo-1", experiment.root)
    assert str(error.value) == f"no experiment 'gonogo-1' in {experiment.root}/; did you mean 'gonogo-2'?"
    with pytest.raises(ConfigError, match="the experiments there: gonogo-2$"):
        Experiment.open("zzz", experiment.root)
    with pytest.raises(ConfigError, match="there are none yet"):
        Experiment.open("zzz", experiment.root / "nowhere")
    assert visible(experiment.root) == ["gonogo-2"]


def test_open_finds_an_experiment_but_not_just_any_folder(experiment: Experiment) -> None:
    assert Experiment.open("gonogo-2", experiment.root) == experiment
    (experiment.root / "notes").mkdir()
    with pytest.raises(ConfigError, match="no config.json"):
        Experiment.open("notes", experiment.root)
    assert Experiment.names(experiment.root) == ["gonogo-2"]


def test_folders_appear_when_they_are_first_used(experiment: Experiment) -> None:
    assert os.listdir(experiment.path) == ["config.json"]
    for folder in (experiment.plots_dir, experiment.videos_dir, experiment.eval_dir, experiment.analysis_dir):
        assert folder.is_dir()
    assert sorted(os.listdir(experiment.path)) == ["analysis", "config.json", "eval", "plots", "videos"]


def test_a_checkpoint_is_named_by_alias_or_by_path(experiment: Experiment) -> None:
    folder = experiment.path / "checkpoints"
    assert experiment.checkpoint("best") == experiment.checkpoint("best_model") == folder / "best_model.pt"
    assert experiment.checkpoint("final") == experiment.checkpoint("final_model") == folder / "final_model.pt"
    assert experiment.checkpoint("last") == folder / "last.pt"
    assert experiment.checkpoint("elsewhere/best.pt") == Path("elsewhere/best.pt")
    assert not folder.exists()


# --- one process per experiment -------------------------------------------------------------------

HOLD = """
import sys
from model_utils import Experiment
with Experiment.open(sys.argv[1], sys.argv[2]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_held_by_another_process_refuses_at_once_and_dies_with_it(experiment: Experiment) -> None:
    command = [sys.executable, "-c", HOLD, experiment.name, str(experiment.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        who = rf"in use by another process \({other.pid} on {socket.gethostname()} since .*\); wait"
        with pytest.raises(ConfigError, match=who), experiment.lock():
            pass
        assert f"{other.pid} on" in str(experiment.holder())
        with pytest.raises(ConfigError, match="in use by another process"):
            Experiment.create("gonogo-2", experiment.root, {**SECTIONS, "seed": 4}, overwrite=True)
        assert experiment.read_config() == {**SECTIONS, "seed": 3}
        os.kill(other.pid, signal.SIGKILL)
    assert experiment.holder() is None  # what its file still says counts only with the lock
    with experiment.lock():
        pass
    assert not (experiment.root / ".locks" / "gonogo-2.json").exists()
    with experiment.lock():  # and it can be taken again
        assert visible(experiment.root) == ["gonogo-2"]


def test_looking_who_holds_an_experiment_never_keeps_a_run_from_starting(experiment: Experiment) -> None:
    """A status that polls has the lock for an instant; `lock` waits that long."""
    with experiment.lock():
        pass
    with open(experiment.root / ".locks" / "gonogo-2.lock", "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
        threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with experiment.lock():
            assert os.getpid() == json.loads((experiment.root / ".locks" / "gonogo-2.json").read_text())["pid"]


def test_a_removed_lock_file_does_not_let_a_second_process_in(experiment: Experiment) -> None:
    """Somebody runs `rm -r experiments/.locks` between the opening and the locking of the file."""
    path = experiment.root / ".locks" / "gonogo-2.lock"
    opened = model_utils._flocked
    removed = []

    def remove_first(file: IO[bytes], exclusive: bool) -> bool:
        if not removed:
            removed.append(path.unlink())
        return opened(file, exclusive)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_utils, "_flocked", remove_first)
        with experiment.lock(), pytest.raises(TemporaryError, match="in use by"), experiment.lock():
            pass
    assert removed


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_processes_that_create_at_once_one_at_a_time_has_the_experiment(tmp_path: Path, overwrite: bool) -> None:
    """Twenty triples of processes behind a barrier: all that one writes is its own."""
    for number in range(20):
        barrier = multiprocessing.get_context("fork").Barrier(3)
        children = []
        for me in range(3):
            child = os.fork()
            if child:
                children.append(child)
                continue
            status = 70
            try:
                experiment = Experiment(f"run-{number}", tmp_path)
                barrier.wait(30)
                with experiment.lock():
                    if overwrite or not experiment.exists():
                        experiment.write_new({**SECTIONS, "me": me}, overwrite)
                        for _ in range(3):
                            experiment.append_metrics({"me": me})
                status = 0
            except ConfigError as error:
                status = error.status
            finally:
                os._exit(status)
        assert {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children} <= {0, 75}
        rows = Experiment(f"run-{number}", tmp_path).read_metrics()
        assert rows == [{"me": Experiment(f"run-{number}", tmp_path).read_config()["me"]}] * 3
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".locks"]


def test_a_process_killed_while_it_replaces_an_experiment_loses_neither(experiment: Experiment) -> None:
    """The states in which a SIGKILL may leave `write_new`: the next lock restores the old one, or ends the exchange."""
    staging = experiment.root / ".gonogo-2.staging"
    (staging / "new").mkdir(parents=True)
    with experiment.lock():
        assert experiment.read_config()["seed"] == 3 and not staging.exists()
    (staging / "new").mkdir(parents=True)
    experiment.path.rename(staging / "old")
    with experiment.lock():
        assert experiment.read_config()["seed"] == 3 and not staging.exists()
    (staging / "old").mkdir(parents=True)
    (staging / "old" / "config.json").write_text("{}")
    with experiment.lock():
        assert experiment.read_config()["seed"] == 3 and not staging.exists()
    assert visible(experiment.root) == ["gonogo-2"]


def test_a_disk_without_locks_is_no_hindrance(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre without `flock`: better two runs that might meet than none at all."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with experiment.lock():
        assert (experiment.root / ".locks" / "gonogo-2.json").exists()


# --- why a run died ----------------------------------------------------------------------------------


def test_a_failure_leaves_its_reason_which_the_next_start_removes(experiment: Experiment) -> None:
    with pytest.raises(ConfigError), experiment.noting_failure():
        raise ConfigError("--eta must be finite, got nan")
    assert experiment.error_path.read_text() == "--eta must be finite, got nan\n"
    with pytest.raises(AssertionError), experiment.noting_failure():
        assert experiment.error_path.exists(), "an old error goes first"
    text = experiment.error_path.read_text()
    assert text.startswith("Traceback") and "AssertionError: an old error goes first" in text
    with experiment.noting_failure():
        pass
    assert not experiment.error_path.exists()
    with pytest.raises(KeyboardInterrupt), experiment.noting_failure():
        raise KeyboardInterrupt
    assert not experiment.error_path.exists()


SAVE = """
import sys, torch
from pathlib import Path
from model_utils import save_checkpoint
for step in range(10**9):
    save_checkpoint(Path(sys.argv[1]), {"step": step, "w": torch.full((200_000,), float(step))})
    print(step, flush=True)
"""


def test_a_kill_while_saving_leaves_a_whole_checkpoint_and_the_next_lock_clears_up(
    experiment: Experiment,
) -> None:
    path = experiment.checkpoint("last")
    command = [sys.executable, "-c", SAVE, str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(5):
            saved = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
    back = load_checkpoint(path)
    assert back["step"] >= saved
    assert torch.all(back["w"] == back["step"])
    (path.parent / ".last.pt.123.tmp").write_bytes(b"half a check")
    with experiment.lock():
        assert os.listdir(path.parent) == ["last.pt"]


def test_temporary_files_of_dead_processes_go_and_those_of_others_stay(experiment: Experiment) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    host, folder = socket.gethostname(), experiment.analysis_dir
    gone = [f".activity.npz.{dead.pid}@{host}.tmp", f".episode_0.gif.{dead.pid}@{host}.tmp.gif", ".x.json.1@gone.tmp"]
    kept = [f".activity.npz.{os.getpid()}@{host}.tmp", ".x.png.1@elsewhere.tmp.png", ".notes.tmp", "activity.npz"]
    for name in gone + kept:
        (folder / name).touch()
    os.utime(folder / ".x.json.1@gone.tmp", (0, 0))
    assert experiment.analysis_dir == folder
    assert sorted(os.listdir(folder)) == sorted(kept)


def test_a_folder_that_vanishes_does_not_come_back_with_a_part_of_its_files(experiment: Experiment) -> None:
    shutil.rmtree(experiment.path)
    for write in (
        lambda: experiment.append_metrics({"step": 1}),
        lambda: write_json(experiment.history_path, {}),
        lambda: save_checkpoint(experiment.checkpoint("last"), {}),
        lambda: experiment.plots_dir,
    ):
        with pytest.raises(ConfigError, match="cannot write .*No such file"):
            write()
    experiment.note_failure("gone")
    assert not experiment.path.exists()


# --- links, pipes and devices ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_linked_file_is_neither_read_nor_written(experiment: Experiment, tmp_path: Path, name: str) -> None:
    document = tmp_path / "thesis.jsonl"
    document.write_text('{"years": "of work"}\n' * 3)
    (experiment.path / name).unlink(missing_ok=True)
    (experiment.path / name).symlink_to(document)
    calls = {
        "config.json": [experiment.read_config],
        "metrics.jsonl": [experiment.read_metrics, experiment.metrics_size, lambda: experiment.truncate_metrics(5),
                          lambda: experiment.append_metrics({})],
    }[name]  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
            call()
    with pytest.raises(ConfigError, match=f"{name} is a symbolic link"), experiment.lock():
        pass
    assert document.read_text().count("years") == 3


def test_nothing_is_written_through_a_linked_folder(experiment: Experiment, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".last.pt.123.tmp").write_text("mine")
    for name in ("checkpoints", "plots", "eval", "analysis", "videos"):
        (experiment.path / name).symlink_to(elsewhere)
        with pytest.raises(ConfigError, match=f"{name} is a symbolic link"), experiment.lock():
            pass
        with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
            _ = experiment.eval_dir
        (experiment.path / name).unlink()
    (tmp_path / "linked").symlink_to(experiment.path)
    linked = Experiment("linked", tmp_path)
    assert linked.read_config() == experiment.read_config()
    with pytest.raises(ConfigError, match="linked is a symbolic link"), linked.lock():
        pass
    with pytest.raises(ConfigError, match="linked is a symbolic link"):
        _ = linked.eval_dir
    assert os.listdir(elsewhere) == [".last.pt.123.tmp"]


def test_a_link_with_the_name_of_a_temporary_file_is_not_followed(experiment: Experiment, tmp_path: Path) -> None:
    document = tmp_path / "thesis"
    document.write_text("years of work")
    for path, suffix in ((experiment.config_path, ""), (experiment.plots_dir / "a.png", ".png")):
        temporary_path(path, suffix).symlink_to(document)
    write_json(experiment.config_path, {"seed": 5})
    with visualize.atomic_path(experiment.plots_dir / "a.png") as temporary:
        temporary.write_text("a picture")
    assert document.read_text() == "years of work" and experiment.read_config() == {"seed": 5}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_ordinary_file_neither_hangs_nor_fills_the_memory(experiment: Experiment, kind: str) -> None:
    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            try:
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
            except OSError:
                pytest.skip("needs the right to make a device")

    make(experiment.metrics_path)
    make(experiment.root / ".locks" / "gonogo-2.lock")
    make(experiment.config_path)
    for call in (
        lambda: experiment.append_metrics({}),
        experiment.read_metrics,
        experiment.read_config,
        lambda: experiment.lock().__enter__(),
    ):
        with pytest.raises(ConfigError, match=r"not an ordinary file|Is a directory"):
            call()
    assert experiment.holder() is None


def test_a_file_above_its_limit_is_not_read(experiment: Experiment) -> None:
    with open(experiment.config_path, "r+b") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ConfigError, match=r"has 1,099,511,627,776 bytes, more than"):
        experiment.read_config()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_condition_of_the_disk_that_may_pass_has_a_status_of_its_own(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(TemporaryError, match=r"config.json: .*try again"):
            write_json(experiment.config_path, {})
    with pytest.raises(ConfigError, match="Not a directory") as error:
        write_json(experiment.config_path / "x", {})
    assert not isinstance(error.value, TemporaryError)


# --- files that are whole or absent ---------------------------------------------------------------


@pytest.mark.parametrize("save", [write_json, save_checkpoint], ids=["json", "checkpoint"])
def test_a_write_that_dies_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: object
) -> None:
    assert callable(save)
    path = tmp_path / "file"
    save(path, {"value": 1})
    before = everything(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"value": 2})
    assert everything(tmp_path) == before  # no temporary either


@pytest.mark.parametrize("save", [write_json, save_checkpoint], ids=["json", "checkpoint"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: object, call: str
) -> None:
    assert callable(save)
    path = tmp_path / "file"
    save(path, {"value": 1})
    before = everything(tmp_path)
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(ConfigError, match=r"^cannot write .*file: No space left on device; free some space.*intact$"):
        save(path, {"value": 2})
    assert everything(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_disk_that_fills_up_inside_torch_save_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        sink = model_utils._Sink(full)
        torch.save({"large": torch.zeros(100_000)}, sink)  # type: ignore[arg-type]
    assert isinstance(sink.error, OSError)
    assert sink.error.errno == errno.ENOSPC


def test_a_forbidden_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot write .*check the folder and its permissions"):
        write_json(tmp_path / "file" / "x.json", {})
    with pytest.raises(ConfigError, match="cannot write"):
        Experiment.create("a", tmp_path / "file", {})


def test_json_holds_arrays_as_lists_and_nan_as_null(tmp_path: Path) -> None:
    row = {
        "a": np.float32("nan"),
        "b": np.arange(3),
        "c": torch.tensor([1.5]),
        "d": np.int64(2),
        "p": Path("x"),
    }
    write_json(tmp_path / "x.json", row)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": None,
        "b": [0, 1, 2],
        "c": [1.5],
        "d": 2,
        "p": "x",
    }


def test_a_damaged_configuration_is_named(experiment: Experiment) -> None:
    for text in ('{"seed": ', "[1]"):
        experiment.config_path.write_text(text)
        with pytest.raises(ConfigError, match="config.json does not hold a JSON object; restore"):
            experiment.read_config()


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    """Networks, an optimiser, replay arrays, and the random states of Python, NumPy and torch."""
    network = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    rng, dice = np.random.default_rng(7), random.Random(7)
    rng.random(3, dtype=np.float32)  # leaves half of a 64-bit draw behind
    dice.gauss(0, 1)
    payload = {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "arrays": [
            np.arange(6).reshape(2, 3)[:, ::-1],
            np.array(2.5),
            np.zeros((0, 4), np.float16),
            np.float32(0.1),
        ],
        "flags": (np.array([True, False]), np.uint16([7]), None, True, "text", b"bytes", 2**100, -0.1),
        "numpy": rng.bit_generator.state,
        "old_numpy": np.random.get_state(),
        "python": dice.getstate(),
        "torch": torch.get_rng_state(),
        "step": 5,
    }
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", payload)
    numbers = rng.random(5), [dice.gauss(0, 1) for _ in range(5)], torch.rand(5), np.random.rand(5)
    back = load_checkpoint(tmp_path / "checkpoints" / "last.pt")

    assert back.pop("format") == CHECKPOINT_FORMAT
    assert_same(back, payload | {"network": dict(network.state_dict())})
    other_rng, other_dice = np.random.default_rng(0), random.Random(0)
    other_rng.bit_generator.state = back["numpy"]
    other_dice.setstate(back["python"])
    torch.set_rng_state(back["torch"])
    np.random.set_state(back["old_numpy"])
    again = other_rng.random(5), [other_dice.gauss(0, 1) for _ in range(5)], torch.rand(5), np.random.rand(5)
    for now, then in zip(again, numbers, strict=True):
        assert np.array_equal(now, then)


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.array_equal(a, b)
    else:
        assert a == b


def test_packing_shares_memory_and_takes_read_only_arrays() -> None:
    array = np.arange(4.0)
    packed = pack(array)
    array[0] = 9.0
    assert unpack(packed)[0] == 9.0
    array.flags.writeable = False
    assert np.array_equal(unpack(pack(array)), array)


def test_what_no_checkpoint_can_hold_is_refused_at_saving(tmp_path: Path) -> None:
    for thing in (object(), {1, 2}, np.array(["text"]), Path("x")):
        with pytest.raises(TypeError, match=r"payload\['replay'\]\[0\] is a"):
            save_checkpoint(tmp_path / "x.pt", {"replay": [thing]})
    assert list(tmp_path.iterdir()) == []


def test_parameters_on_a_device_come_back_on_the_device_that_is_asked_for(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.pt", {"w": torch.ones(2), "rng": torch.get_rng_state(), "n": np.ones(1)})
    back = load_checkpoint(tmp_path / "x.pt", torch.device("meta"))
    assert back["w"].device.type == "meta"
    assert back["rng"].device.type == "cpu"  # torch.set_rng_state takes nothing else
    assert isinstance(back["n"], np.ndarray)


def test_a_missing_truncated_or_foreign_checkpoint_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "best_model.pt"
    with pytest.raises(ConfigError, match=r"no checkpoint .*best_model.pt; --checkpoint takes best, final, last"):
        load_checkpoint(path)
    save_checkpoint(path, {"w": torch.ones(1000)})
    whole = path.read_bytes()
    for damaged in (
        whole[:-100],
        whole[:1000],
        whole[:10],
        b"",
        b"not a checkpoint at all\n",
        os.urandom(500),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"best_model.pt is foreign or damaged") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
    for foreign in ({"w": torch.ones(1)}, [1], {"format": "other"}):
        torch.save(foreign, path)
        with pytest.raises(ConfigError, match=r"best_model.pt is foreign"):
            load_checkpoint(path)
    torch.save({"format": CHECKPOINT_FORMAT + 1}, path)
    with pytest.raises(ConfigError, match=r"has format 2, .*update the toolkit"):
        load_checkpoint(path)


def test_a_checkpoint_with_one_changed_byte_of_data_is_refused(tmp_path: Path) -> None:
    """torch.load itself reads it without a word."""
    path = tmp_path / "best_model.pt"
    save_checkpoint(path, {"w": torch.full((1000,), 1.5)})
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((10,), 1.5).numpy().tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["w"], torch.full((1000,), 1.5))
    with pytest.raises(ConfigError, match=r"best_model.pt is foreign or damaged"):
        load_checkpoint(path)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_checkpoint_from_elsewhere_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": CHECKPOINT_FORMAT, "x": Attack()}, "evil.pt")
    with pytest.raises(ConfigError, match="foreign or damaged"):
        load_checkpoint(Path("evil.pt"))
    assert os.listdir(tmp_path) == ["evil.pt"]


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_are_appended_and_read_back(experiment: Experiment) -> None:
    assert experiment.read_metrics() == []
    assert experiment.metrics_size() == 0
    experiment.append_metrics({"step": 1, "loss": float("nan")})
    experiment.append_metrics({"step": np.int64(2), "loss": np.float32(0.5)})
    assert experiment.read_metrics() == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]
    assert experiment.metrics_path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n'


def test_resume_cuts_metrics_to_the_checkpoint_so_no_line_is_lost_or_doubled(experiment: Experiment) -> None:
    experiment.append_metrics({"step": 1})
    size = experiment.metrics_size()
    experiment.append_metrics({"step": 2})
    with open(experiment.metrics_path, "a") as file:
        file.write('{"step": 3, "lo')  # a kill
    assert experiment.read_metrics() == [{"step": 1}, {"step": 2}]
    experiment.truncate_metrics(size)
    experiment.append_metrics({"step": 2})
    assert experiment.read_metrics() == [{"step": 1}, {"step": 2}]
    for size in (25, 1000):
        with pytest.raises(ConfigError, match=rf"has 24 bytes, but had {size} when the checkpoint was written"):
            experiment.truncate_metrics(size)
    experiment.truncate_metrics(24)
    with pytest.raises(ConfigError, match=r"has no line that ends at byte 15, .*--overwrite"):
        experiment.truncate_metrics(15)
    assert experiment.read_metrics() == [{"step": 1}, {"step": 2}]


def test_garbage_in_the_middle_of_metrics_is_named_by_its_line(experiment: Experiment) -> None:
    for garbage in ('{"step": 1', "[1]", "", "\0\0"):
        experiment.metrics_path.write_text(f'{{"step": 0}}\n{garbage}\n{{"step": 2}}\n')
        with pytest.raises(ConfigError, match=r"metrics.jsonl line 2 is not a JSON object"):
            experiment.read_metrics()


def test_a_full_disk_leaves_no_half_line_in_metrics(experiment: Experiment) -> None:
    resource = pytest.importorskip("resource")
    experiment.append_metrics({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # the next line fits by 8 of its 12 bytes
        with pytest.raises(ConfigError, match=r"cannot write .*metrics.jsonl"):
            experiment.append_metrics({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert experiment.metrics_path.read_text() == '{"step": 1}\n'
    experiment.append_metrics({"step": 2})
    assert experiment.read_metrics() == [{"step": 1}, {"step": 2}]


# --- provenance -----------------------------------------------------------------------------------


def test_versions_name_everything_a_result_depends_on_without_importing_it() -> None:
    code = "import sys, json, model_utils as m; print(json.dumps([m.versions(), 'torch' in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found, imported = json.loads(answer.stdout)
    assert not imported
    assert set(found) >= {"python", "torch", "numpy", "gymnasium", "neurogym", "git_commit", "platform"}
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__


def test_the_git_commit_is_known_in_a_checkout_and_unknown_elsewhere(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert model_utils.git_commit(tmp_path) == "unknown"
    try:
        git("init")
    except OSError:
        pytest.skip("git is not installed")
    (tmp_path / "model_utils.py").write_text("")
    assert model_utils.git_commit(tmp_path) == "unknown"  # in a checkout that does not hold this code
    git("add", ".")
    git("commit", "--no-gpg-sign", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert model_utils.git_commit(tmp_path) == commit
    (tmp_path / "model_utils.py").write_text("changed")
    assert model_utils.git_commit(tmp_path) == commit + "-dirty"


@pytest.mark.parametrize(
    ("noted", "shown"), [({"numpy": "2"}, {"numpy": "2"}), (None, {}), ([], {}), ("x", {}), (3, {})]
)
def test_versions_that_are_no_table_are_none(noted: object, shown: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"versions": noted}))
    assert model_utils.Experiment(tmp_path).versions() == shown
