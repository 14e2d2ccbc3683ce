"""`sweep search`: proposals, pruning, the record of trials, and what a killed process leaves to the next one."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

import main
from mpn_rl.sweep import commands, search

ROOT = Path(__file__).parents[2]
FILE = """command = "train"
seeds = [0, 1]
[fixed]
total-steps = 1000
num-envs = 1
[search]
n = {n}
seed = 3
pruner = "{pruner}"
eta = {{ log-uniform = [0.1, 2.0] }}
hidden-dim = {{ choice = [8, 16] }}
"""
# It writes what a training writes, with a known score: after evaluation i of 4, (eta + seed / 100) i / 4.
TRAINER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from model_utils import Experiment
from mpn_rl import arguments
args = arguments.parse(sys.argv[1:])
config = arguments.config_of(args)
experiment = Experiment(args.experiment_name, Path(args.experiments_dir))
with experiment.lock():
    with open("starts", "a") as file:
        file.write(args.experiment_name + "\\n")
    if {fail!r}:
        sys.exit("it fails")
    if not experiment.exists():
        experiment.write_new({{**config.to_dict(), "versions": {{}}}})
    done = len(experiment.metrics_path.read_text().splitlines()) if experiment.metrics_path.exists() else 0
    for number in range(done + 1, 5):
        time.sleep({pause})
        score = (config.core.eta + config.run.seed / 100) * number / 4
        row = {{"kind": "eval", "step": 250 * number, "episode": number, "return_mean": score, "accuracy": None}}
        experiment.append_metrics(row)
    experiment.checkpoint("final").parent.mkdir(exist_ok=True)
    experiment.checkpoint("final").touch()
"""
# A process that searches with that trainer.
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import main
from mpn_rl.sweep import commands
commands.MAIN, commands.POLL_S = Path("trainer.py").resolve(), 0.02
sys.exit(main.main(["sweep", "search", "s.toml", *sys.argv[1:]]))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "MAIN", tmp_path / "trainer.py")
    monkeypatch.setattr(commands, "POLL_S", 0.02)
    write()
    return tmp_path


def write(n: int = 3, pruner: str = "none", pause: float = 0.0, fail: bool = False) -> None:
    Path("s.toml").write_text(FILE.format(n=n, pruner=pruner))
    Path("trainer.py").write_text(TRAINER.format(root=str(ROOT), pause=pause, fail=fail))


def run(*more: str) -> int:
    return main.main(["sweep", "search", "s.toml", *more])


def trials() -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend("experiments/.sweep/s/search/journal.log")
    )
    return optuna.load_study(study_name="s", storage=storage).trials


def told() -> list[tuple[Any, ...]]:
    return [
        (trial.number, trial.state.name, trial.params, trial.value, trial.user_attrs["scores"]) for trial in trials()
    ]


def rows_of(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


# --- trials -------------------------------------------------------------------------------------------------


def test_a_trial_trains_each_seed_and_its_score_is_their_mean(capsys: pytest.CaptureFixture) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    rows = rows_of("s_search.csv")
    assert [row["state"] for row in rows] == ["complete"] * 3
    for row in rows:
        eta = float(row["eta"])
        assert float(row["mean"]) == pytest.approx(eta + 0.005) and (row["n"], row["steps"]) == ("2", "2000")
        half = 12.7062 * 0.005  # Student's interval of eta and eta + 0.01: one degree of freedom, standard error 0.005
        ends = [eta + 0.005 - half, eta + 0.005 + half]
        assert [float(row["mean_low"]), float(row["mean_high"])] == pytest.approx(ends, abs=1e-4)
        assert row["eta"] == f"{eta:.4g}"  # the experiments have the same value
        for seed in (0, 1):
            name = f"experiments/s-t{int(row['trial']):04}-s{seed}"
            config = json.loads(Path(name, "config.json").read_text())
            assert (config["core"]["eta"], config["run"]["seed"]) == (eta, seed)
    best = max(rows, key=lambda row: float(row["mean"]))
    table = out[out.index("3 of 3 trials: 3 complete; 6,000 steps") :].splitlines()
    assert table[2].split()[:2] == [best["trial"], best["eta"]]
    assert Path("s_search.png").stat().st_size > 10_000
    assert rows_of("s_importance.csv") == []  # too few trials


def test_a_finished_search_starts_nothing_and_a_larger_n_goes_on(capsys: pytest.CaptureFixture) -> None:
    assert run() == 0
    before, starts = told(), Path("starts").read_text()
    assert run() == run("--show") == 0
    assert told() == before and Path("starts").read_text() == starts
    write(n=4)
    assert run() == 0
    assert told()[:3] == before and len(told()) == 4
    assert {row["option"] for row in rows_of("s_importance.csv")} == {"eta", "hidden_dim"}


def test_weak_trials_are_pruned_and_their_experiments_say_so(capsys: pytest.CaptureFixture) -> None:
    write(n=9, pruner="median", pause=0.1)
    assert run() == 0
    found = told()
    pruned = [number for number, state, *_ in found if state == "PRUNED"]
    assert pruned and min(pruned) >= search.FIRST_TRIALS
    for number, state, params, _, scores in found:
        before = [told[2]["eta"] for told in found[:number] if told[1] == "COMPLETE"]
        # At evaluation 2 of seed 0, the scores of all trials are eta / 2.
        weak = (
            len(before) >= search.FIRST_TRIALS
            and params["eta"] < sorted(before)[len(before) // 2 - (len(before) % 2 == 0)]
        )
        if weak:
            assert state == "PRUNED" and scores == []
    steps = {row["trial"]: int(row["steps"]) for row in rows_of("s_search.csv")}
    for number in pruned:
        reason = Path(f"experiments/s-t{number:04}-s0/error.txt").read_text()
        assert reason.startswith("pruned by sweep search at step ")
        assert not Path(f"experiments/s-t{number:04}-s1").exists() and steps[str(number)] < 2000


def test_hyperband_prunes_too() -> None:
    write(n=8, pruner="hyperband", pause=0.05)
    assert run() == 0
    assert "PRUNED" in {state for _, state, *_ in told()}


def test_workers_share_the_trials() -> None:
    write(n=5, pause=0.05)
    others = [subprocess.Popen([sys.executable, "-c", DRIVER.format(root=str(ROOT)), "--worker"]) for _ in range(2)]
    assert run("--workers", "2", "--worker") == 0
    assert [other.wait(120) for other in others] == [0, 0]
    assert [number for number, *_ in told()] == list(range(5)) and len(Path("starts").read_text().split()) == 10
    assert not Path("s_search.csv").exists()  # workers write no tables


def test_no_setting_is_tried_twice_while_others_are_left() -> None:
    Path("s.toml").write_text(
        FILE.format(n=4, pruner="none").replace("{ log-uniform = [0.1, 2.0] }", "{ choice = [0.5, 1.0] }")
    )
    assert run() == 0
    assert len({tuple(params.items()) for _, _, params, *_ in told()}) == 4


# --- a killed search ----------------------------------------------------------------------------------------


def test_a_search_that_is_killed_five_times_ends_as_an_untouched_one() -> None:
    write(n=6, pruner="median", pause=0.02)
    assert run() == 0
    untouched = told()
    os.rename("experiments", "untouched")
    os.rename("starts", "old")
    for kill in range(5):
        process = subprocess.Popen([sys.executable, "-c", DRIVER.format(root=str(ROOT))], stdout=subprocess.DEVNULL)
        deadline, seen = time.monotonic() + 90, kill + 1
        while len(Path("starts").read_text().split() if Path("starts").exists() else []) < seen + kill:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run() == 0
    assert told() == untouched
    runs = sorted(path.name for path in Path("experiments").glob("s-*"))
    assert runs == sorted(path.name for path in Path("untouched").glob("s-*"))


def test_a_record_that_a_kill_cut_in_the_middle_of_a_line_continues() -> None:
    write(n=2)
    assert run() == 0
    with open("experiments/.sweep/s/search/journal.log", "ab") as file:
        file.write(b'{"op_code":')
    write(n=3)
    assert run() == 0
    assert [state for _, state, *_ in told()] == ["COMPLETE"] * 3


def test_a_signal_saves_and_a_worker_asks_to_be_started_again() -> None:
    write(n=2, pause=2.0)
    for more, status in (([], 143), (["--worker"], 85)):
        process = subprocess.Popen([sys.executable, "-c", DRIVER.format(root=str(ROOT)), *more])
        deadline, count = time.monotonic() + 60, 1 if not more else 2
        while not Path("starts").exists() or len(Path("starts").read_text().split()) < count:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.terminate()
        assert process.wait(60) == status
    assert [trial.state.name for trial in trials()] == ["RUNNING"]


# --- mistakes -----------------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture, status: int, *more: str) -> str:
    capsys.readouterr()
    assert run(*more) == status
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("main.py sweep: ")
    return err


def test_a_disk_that_cannot_lock_is_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(search.fcntl, "flock", flock)
    assert "claim.lock: No locks available; put the experiments on a disk with file locks" in refusal(capsys, 2)
    assert not Path("starts").exists()


def test_a_lock_that_another_process_keeps_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PATIENCE_S", 0.1)
    monkeypatch.setattr(search.locked.__wrapped__, "__defaults__", (0.1,))
    folder = Path("experiments/.sweep/s/search")
    folder.mkdir(parents=True)
    with open(folder / "claim.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process has held experiments/.sweep/s/search/claim.lock" in refusal(capsys, 75)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_lock_that_is_no_file_is_refused(kind: str, capsys: pytest.CaptureFixture) -> None:
    path = Path("experiments/.sweep/s/search/claim.lock")
    path.parent.mkdir(parents=True)
    {"folder": path.mkdir, "link": lambda: path.symlink_to("/etc/passwd"), "pipe": lambda: os.mkfifo(path)}[kind]()
    assert "claim.lock" in refusal(capsys, 2)
    assert not Path("starts").exists()


def test_a_damaged_record_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert run() == 0
    journal = Path("experiments/.sweep/s/search/journal.log")
    lines = journal.read_bytes().splitlines(keepends=True)
    for damage in (b"not json\n", b"[1, 2]\n", b'{"op_code": 5}\n', b'{"op_code": 99, "worker_id": "a"}\n', b"\xff\n"):
        journal.write_bytes(b"".join([*lines[:3], damage, *lines[3:]]))
        assert "journal.log is damaged" in refusal(capsys, 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[search]", "[grid]\ngamma = [0.9]\n[search]", "write [grid] as choice in [search]"),
        ('pruner = "none"', 'pruner = "mean"', "[search] pruner must be one of median, hyperband, none, got 'mean'"),
        ("n = 3\n", "", "[search] needs n"),
        ("hidden-dim", "hiden-dim", "did you mean '--hidden-dim'"),
        ("log-uniform = [0.1, 2.0]", "log-uniform = [0.1]", "takes [LOW, HIGH]"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_starts_nothing(
    old: str, new: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("s.toml").write_text(Path("s.toml").read_text().replace(old, new))
    assert message in refusal(capsys, 2)
    assert not Path("experiments").exists()


def test_another_search_under_the_same_name_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert run() == 0
    Path("s.toml").write_text(Path("s.toml").read_text().replace("2.0]", "3.0]"))
    assert "has changed since its search started (params)" in refusal(capsys, 2)
    assert "there is no search" in refusal(capsys, 2, "--show", "--experiments-dir", "elsewhere")
    assert not Path("elsewhere").exists()


def test_a_search_whose_trials_all_fail_ends(capsys: pytest.CaptureFixture) -> None:
    write(n=20, fail=True)
    assert run() == 2
    out, err = capsys.readouterr()
    assert "5 trials failed one after the other" in err and "it fails" in out
    assert len(trials()) == search.MAX_FAILURES


def test_without_optuna_the_way_out_is_named(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    assert "install it with: pip install 'mpn-rl[search]'" in refusal(capsys, 2)


def test_a_search_imports_no_torch() -> None:
    script = "import sys, mpn_rl.sweep.search, mpn_rl.sweep.submit; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
