"""TensorBoard and Weights & Biases get the numbers of metrics.jsonl, and never end a run."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import types
from pathlib import Path

import pytest

import main
from mpn_rl import config as cfg
from mpn_rl import event_logs
from mpn_rl.options import ConfigError

ROOT = Path(__file__).parents[2]
TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--max-episode-steps", "30", "--eval-episodes", "2",
        "--learning-starts", "50", "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8",
        "--batch-size", "4", "--kernel", "reference", "--no-plot-training"]  # fmt: skip


def start(folder: Path, *argv: str, stdin: int = subprocess.DEVNULL, **env: str) -> subprocess.CompletedProcess:
    """A process without a W&B login, whose W&B server, should it look for one, is nowhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = {"HOME": str(folder / "home"), "NETRC": str(folder / "home" / "netrc")}
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *argv],
        cwd=folder, env=kept | home | {"WANDB_BASE_URL": "http://127.0.0.1:9"} | env,
        stdin=stdin, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def train(name: str, *more: str) -> list[str]:
    return ["train", "--experiment-name", name, *TINY, *more]


def test_wandb_offline_writes_into_the_experiment_alone_and_changes_nothing(tmp_path: Path) -> None:
    """The resumed run has the first one's id, and its metrics are those of a run that W&B never saw."""
    first = start(tmp_path, *train("logged", "--wandb", "--num-episodes", "4"), WANDB_MODE="offline")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "experiments" / "logged" / "wandb"
    assert "W&B: offline; upload it with: wandb sync experiments/logged/wandb/offline-run-*" in first.stdout
    more = start(
        tmp_path, "train", "--experiment-name", "logged", "--resume", "--num-episodes", "8", WANDB_MODE="offline"
    )
    assert more.returncode == 0, more.stderr
    number = (folder / "run_id").read_text()
    runs = [path for path in folder.glob("offline-run-*") if path.is_dir()]
    assert len(runs) == 2 and all(path.name.endswith(f"-{number}") for path in runs)
    for path in runs:
        data = (path / f"run-{number}.wandb").read_bytes()
        assert b"episode/reward" in data and b"eval/return_mean" in data
    plain = start(tmp_path, *train("plain", "--num-episodes", "4"))
    start(tmp_path, "train", "--experiment-name", "plain", "--resume", "--num-episodes", "8")
    assert plain.returncode == 0, plain.stderr
    metrics = [(tmp_path / "experiments" / name / "metrics.jsonl").read_bytes() for name in ("logged", "plain")]
    assert metrics[0] == metrics[1]
    assert {path.name for path in tmp_path.iterdir()} == {"experiments", "home"}


def test_without_a_key_wandb_does_not_ask_and_creates_nothing(tmp_path: Path) -> None:
    """Although there is a terminal: a job of a pool may have one without a user."""
    screen, terminal = pty.openpty()
    done = start(tmp_path, *train("asked", "--wandb"), stdin=terminal)
    os.close(terminal)
    os.close(screen)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "there is no key: run `wandb login` once, or set WANDB_API_KEY; WANDB_MODE=offline logs" in done.stderr
    assert not (tmp_path / "experiments").exists()


# --- with a W&B that obeys -------------------------------------------------------------------


class RefusedError(Exception):
    """Stands for wandb.Error."""


class FakeRun:
    url = "https://wandb.example/runs/1"

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.most = 10**9  # rows, after which the connection is lost

    def log(self, values: dict[str, float], step: int) -> None:
        if len(self.logged) >= self.most:
            raise ConnectionResetError("Connection lost")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.SimpleNamespace:
    """In place of the package; it remembers what `init` was given."""
    fake = types.SimpleNamespace(Error=RefusedError, run=FakeRun(), asked=[], mode="online", key=True)
    fake.Settings = dict
    fake.setup = lambda settings: types.SimpleNamespace(settings=types.SimpleNamespace(mode=fake.mode))
    fake.login = lambda prompt: fake.key
    fake.init = lambda **asked: fake.asked.append(asked) or fake.run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def test_wandb_gets_every_number_of_metrics_jsonl(wandb: types.SimpleNamespace) -> None:
    argv = train("told", "--wandb", "--wandb-project", "mine", "--num-episodes", "6", "--plasticity-metrics-freq", "40")
    assert main.main(argv) == 0
    rows = [json.loads(line) for line in Path("experiments/told/metrics.jsonl").read_text().splitlines()]
    expected = [
        (row["step"], {f"{row['kind']}/{key}": value for key, value in row.items()
                       if key not in ("kind", "step") and value is not None})
        for row in rows
    ]  # fmt: skip
    assert wandb.run.logged == expected and {"episode", "eval"} <= {row["kind"] for row in rows}
    assert wandb.run.finished == 1
    [asked] = wandb.asked
    assert (asked["project"], asked["name"], asked["dir"]) == ("mine", "told", "experiments/told")
    assert asked["id"] == Path("experiments/told/wandb/run_id").read_text() and len(asked["id"]) == 8


def test_a_run_outlives_the_wandb_that_fails_in_its_middle(
    wandb: types.SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    wandb.run.most = 2
    assert main.main(train("lonely", "--wandb", "--num-episodes", "6")) == 0
    err = capsys.readouterr().err
    assert err.count("note: W&B has failed (Connection lost); the run continues without it") == 1
    assert len(wandb.run.logged) == 2 and Path("experiments/lonely/checkpoints/final_model.pt").is_file()


def test_a_new_run_of_the_same_name_is_another_run_there(wandb: types.SimpleNamespace) -> None:
    for more in ([], ["--overwrite"]):
        assert main.main(train("again", "--wandb", "--num-episodes", "1", *more)) == 0
    assert main.main(["train", "--experiment-name", "again", "--resume", "--num-episodes", "3"]) == 0
    first, second, resumed = (asked["id"] for asked in wandb.asked)
    assert first != second == resumed


def test_a_server_that_refuses_is_one_line(wandb: types.SimpleNamespace) -> None:
    config = cfg.make_config("train", {"wandb": True})

    def refuse(**_: object) -> None:
        raise RefusedError("Failed to authenticate: no route.\nMore words")

    wandb.login = refuse
    with pytest.raises(ConfigError) as told:
        event_logs.check(config)
    assert str(told.value) == (
        "--wandb: Failed to authenticate: no route; WANDB_MODE=offline logs into the experiment's folder"
    )
    wandb.mode = "offline"
    event_logs.check(config)

    def mistaken(**_: object) -> None:
        raise ValueError(
            "1 validation error for Settings\nmode\n  Input should be 'online' [type=x, input='a']\n  link"
        )

    wandb.setup = mistaken
    with pytest.raises(ConfigError, match="^--wandb: mode: Input should be 'online'; WANDB_MODE=offline logs into"):
        event_logs.check(config)


@pytest.mark.parametrize(("extra", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_extra_is_named_before_anything_is_created(
    extra: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert main.main(train("none", f"--{extra}")) == 2
    err = capsys.readouterr().err
    assert err == f"main.py train: --{extra} needs the extra: pip install 'mpn-rl[{extra}]'\n"
    assert list(tmp_path.iterdir()) == []
