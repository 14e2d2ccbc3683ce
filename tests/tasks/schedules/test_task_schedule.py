"""Which task each training episode is of, and that a run of several tasks resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main
from model_utils import Experiment, load_checkpoint
from mpn_rl import config as cfg
from mpn_rl.storage.state_trees import StateError
from mpn_rl.tasks.lanes import SEED_RANGES
from mpn_rl.tasks.schedules.task_schedule import Kind, TaskSchedule
from mpn_rl.training import Run

THREE = "GoNogo-v0,DelayMatchSample-v0,yang19.go-v0"
TINY = {"core": "gru", "hidden_dim": 5, "embed_dim": 3, "num_envs": 4, "max_episode_steps": 40, "eval_episodes": 2,
        "total_steps": 960, "eval_freq": 240, "learning_starts": 100, "batch_size": 4, "sequence_length": 8,
        "sequence_stride": 4, "burn_in": 3, "buffer_size": 400, "plasticity_metrics_freq": 300}  # fmt: skip
SUPERVISED = {"learner": "supervised", "batch_size": 4, "sequence_length": 20, "log_freq": 20}


def config_of(**flags: Any) -> cfg.Config:
    options = {"env_name": THREE, **TINY, **flags}
    if options.get("learner") == "supervised":
        for name in ("num_envs", "learning_starts", "sequence_stride", "burn_in", "buffer_size"):
            del options[name]
    return cfg.make_config("train-neurogym", options)


def chosen(schedule: TaskSchedule, count: int) -> np.ndarray:
    seeds = np.random.default_rng(5).integers(*SEED_RANGES["train"], count)
    placed = schedule.place(seeds)
    assert (np.abs(placed - seeds) < len(schedule.weights)).all()
    return placed % len(schedule.weights)


def test_mixed_tasks_are_drawn_by_weight() -> None:
    counts = np.bincount(chosen(TaskSchedule("mixed", [1, 2, 5], 0), 8000))
    assert np.allclose(counts / 1000, [1, 2, 5], atol=0.15)


def test_blocked_tasks_come_one_after_the_other_for_shares_of_the_run() -> None:
    schedule = TaskSchedule("blocked", [1, 2, 1], 0)
    for progress, task in ((0.0, 0), (0.24, 0), (0.25, 1), (0.74, 1), (0.75, 2), (0.99, 2), (1.0, 2)):
        schedule.progress = progress
        assert chosen(schedule, 20).tolist() == [task] * 20


def test_a_curriculum_draws_what_is_not_solved_yet() -> None:
    schedule = TaskSchedule("curriculum", [1, 1, 2], 0)
    assert schedule.probabilities().tolist() == [0.25, 0.25, 0.5]
    schedule.update([1.0, 0.2, -3.0])  # a running mean from 0: 0.5, 0.1, 0
    assert np.allclose(schedule.success, [0.5, 0.1, 0.0])
    assert np.allclose(schedule.probabilities(), np.array([0.5, 0.9, 2.0]) / 3.4)
    schedule.update([np.nan, 0.2, 0.0])
    assert np.allclose(schedule.success, [0.5, 0.15, 0.0])
    for _ in range(60):
        schedule.update([2.0, 0.0, 0.0])
    assert np.allclose(schedule.probabilities(), np.array([0.05, 1.0, 2.0]) / 3.05)


@pytest.mark.parametrize("kind", ["mixed", "blocked", "curriculum"])
def test_a_schedule_continues_from_its_state_and_refuses_a_broken_one(kind: Kind) -> None:
    schedule, other = TaskSchedule(kind, [1, 1], 0), TaskSchedule(kind, [1, 1], 9)
    schedule.update([0.5, 0.9])
    chosen(schedule, 7)
    other.check_state(schedule.state_dict())
    other.load_state_dict(schedule.state_dict())
    assert chosen(other, 50).tolist() == chosen(schedule, 50).tolist()
    assert other.success.tolist() == schedule.success.tolist()
    for broken in ({"success": np.zeros(3)}, {"success": np.array([0.5, 2.0])}, {"rng": {}}):
        with pytest.raises(StateError):
            other.check_state({**schedule.state_dict(), **broken})


def started(config: cfg.Config, folder: Path) -> Run:
    run = Run(config)
    run.start(Experiment.create(folder.name, folder.parent, config.to_dict()))
    return run


def ended(run: Run) -> dict[str, Any]:
    while not run.done:
        run.advance()
    run.finish()
    assert run.experiment is not None
    return load_checkpoint(run.experiment.checkpoint("last"))


def text(value: Any) -> str:
    """Nested arrays and numbers, each written in full."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(value[key])}" for key in value if key != "metrics_size")
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return repr(np.asarray(value).tolist())


@pytest.mark.parametrize("kind", ["mixed", "blocked", "curriculum"])
@pytest.mark.parametrize("learner", [{"learner": "dqn"}, SUPERVISED], ids=["dqn", "supervised"])
def test_a_run_of_several_tasks_resumes_bit_for_bit(learner: dict[str, Any], kind: str, tmp_path: Path) -> None:
    config = config_of(task_schedule=kind, **learner)
    whole = started(config, tmp_path / "whole")
    expected = ended(whole)
    stopped = started(config, tmp_path / "stopped")
    while stopped.step < 600:
        stopped.advance()
    if learner["learner"] == "dqn" and kind != "blocked":
        assert len({seed % 3 for seed in stopped.lanes.seeds}) > 1  # the lanes hold different tasks
    stopped.save()
    assert stopped.experiment is not None and whole.experiment is not None
    again = Run.resume(config, stopped.experiment)
    assert text(ended(again)) == text(expected)
    assert stopped.experiment.read_metrics() == whole.experiment.read_metrics()


def test_blocks_follow_each_other_in_the_episodes_of_a_run(tmp_path: Path) -> None:
    run = started(config_of(task_schedule="blocked", eval_freq=0), tmp_path / "run")
    begun = []
    while not run.done:
        run.advance()
        begun.append({seed % 3 for seed in run.lanes.seeds})
    order = [tasks.pop() for tasks in begun if len(tasks) == 1]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    third = len(begun) // 3
    assert begun[0] == set() and order[third - 15] == 0 and order[third + 40] == 1  # an episode has 40 steps


def test_evaluations_have_scores_of_each_task_and_the_best_is_by_their_mean(tmp_path: Path) -> None:
    run = started(config_of(), tmp_path / "run")
    ended(run)
    assert run.experiment is not None
    rows = [row for row in run.experiment.read_metrics() if row["kind"] == "eval"]
    best = -np.inf
    for row in rows:
        for key in ("accuracy", "normalised_score"):
            own = [row[f"{key}/{name}"] for name in THREE.split(",")]
            assert row[key] == pytest.approx(np.mean(own))
        returns = [row[f"return/{name}"] for name in THREE.split(",")]
        assert row["return_mean"] == pytest.approx(np.mean(returns))  # as many episodes of each
        assert row["best"] == (row["normalised_score"] >= best)
        best = max(best, row["normalised_score"])
    assert len(rows) == 4 and run.best_score == best
    saved = load_checkpoint(run.experiment.checkpoint("best"))
    assert saved["score"] == best


def test_eval_and_the_report_show_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    name = ["--experiment-name", "run"]
    assert main.main(["train-neurogym", "--env-name", THREE, *tiny, *name]) == 0
    assert Path("experiments/run/plots/task_curves.png").stat().st_size > 0
    capsys.readouterr()
    assert main.main(["eval", *name, "--num-eval-episodes", "4", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(scores["tasks"]) == THREE.split(",")
    own = list(scores["tasks"].values())
    assert [task["episodes"] for task in own] == [3, 3, 3] and scores["episodes"] == 9  # at least three of each
    assert scores["trials"] == sum(task["trials"] for task in own)
    for key in ("accuracy", "normalised_score", "random_accuracy"):
        assert scores[key] == pytest.approx(np.mean([task[key] for task in own]))
    assert scores["normalised_score_iqm"] == pytest.approx(scores["normalised_score"])  # of three nothing is cut
    assert main.main(["eval", *name, "--num-eval-trials", "60"]) == 0
    printed = capsys.readouterr().out
    assert all(task in printed for task in (*THREE.split(","), "mean over tasks", "interquartile mean over 3 tasks"))
    assert main.main(["analyze", "collect", *name, "--num-episodes", "6"]) == 0
    with np.load("experiments/run/analysis/activity.npz", allow_pickle=False) as activity:
        tasks, episodes = activity["condition_task"], activity["episode"]
    assert [str(tasks[episodes == episode][0]) for episode in range(6)] == 2 * THREE.split(",")
    assert main.main(["analyze", "report", *name]) == 0
    assert "Scores of each task" in Path("experiments/run/analysis/report.html").read_text()
    assert main.main(["analyze", "probe", *name]) == 2
    assert "needs a run of one task" in capsys.readouterr().err


def test_the_options_of_several_tasks_change_the_run(tmp_path: Path) -> None:
    weights = {"GoNogo-v0": 5}
    flags: list[dict[str, Any]] = [{}, {"task_schedule": "blocked"}, {"task_schedule": "curriculum"},
                                   {"task_weights": weights}, {"task_schedule": "blocked", "task_weights": weights},
                                   {"env_args": {"GoNogo-v0": {"dt": 50}}}]  # fmt: skip
    outcomes = set()
    for number, changed in enumerate(flags):
        run = started(config_of(plasticity_metrics_freq=0, **changed), tmp_path / str(number))
        assert run.schedule is not None
        run.schedule.success[:] = 1.0, 0.0, 0.0  # as if one task were learned, which the curriculum then draws less
        outcomes.add(text(ended(run)["network"]))
    assert len(outcomes) == len(flags)


REFUSED = {
    "--task-schedule blocked does nothing with one task, --env-name GoNogo-v0":
        ["train-neurogym", "--env-name", "GoNogo-v0", "--task-schedule", "blocked"],
    "--task-weight does nothing with one task":
        ["train-neurogym", "--env-name", "GoNogo-v0", "--task-weight", "GoNogo-v0=2"],
    "--task-weight GoNogo-v0 must be a number greater than 0, got 0":
        ["train-neurogym", "--env-name", "yang19", "--env-name", "GoNogo-v0", "--task-weight", "GoNogo-v0=0"],
    "--task-weight must be of a task in --env-name, got 'GoNogo-v0'":
        ["train-neurogym", "--env-name", "yang19", "--task-weight", "GoNogo-v0=2"],
    "--env-name must name each task once, got GoNogo-v0 2 times":
        ["train-neurogym", "--env-name", "GoNogo-v0", "--env-name", "GoNogo-v0"],
    "--task-schedule curriculum does nothing with --eval-freq 0":
        ["train-neurogym", "--env-name", "yang19", "--task-schedule", "curriculum", "--eval-freq", "0"],
    "--task-schedule curriculum needs tasks that give their right actions, Bandit-v0 gives none":
        ["train-neurogym", "--env-name", "GoNogo-v0,Bandit-v0", "--task-schedule", "curriculum"],
    "--algo supervised needs a task that gives its right actions, --env-name Bandit-v0 gives none":
        ["train-neurogym", "--env-name", "GoNogo-v0,Bandit-v0", "--algo", "supervised"],
    "--env-name must be one task, got 'CartPole-v1,Acrobot-v1'":
        ["train", "--env-name", "CartPole-v1", "--env-name", "Acrobot-v1"],
    "--env-name must be one task, got 'yang19'": ["train", "--env-name", "yang19"],
    "--env-name tasks.toml: No such file": ["train-neurogym", "--env-name", "tasks.toml"],
    "actions Discrete(2), ReachingDelayResponse-v0":
        ["train-neurogym", "--env-name", "GoNogo-v0", "--env-name", "ReachingDelayResponse-v0"],
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_a_mistake_is_one_line_and_creates_nothing(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main.main([*REFUSED[message], "--experiment-name", "run"])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    said = capsys.readouterr().err.strip()
    assert status == 2 and "\n" not in said and message.removeprefix("actions ") in said, said
    assert not list(tmp_path.iterdir())


def test_a_file_is_copied_into_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toml = '[[task]]\nname = "GoNogo-v0"\nweight = 2\nargs = {dt = 50}\n[[task]]\nname = "DelayMatchSample-v0"\n'
    Path("tasks.toml").write_text(toml)
    tasks = [{"name": "GoNogo-v0", "weight": 2, "args": {"dt": 50}}, {"name": "DelayMatchSample-v0"}]
    Path("tasks.json").write_text(json.dumps({"task": tasks}))
    tiny = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    tiny.append("--no-plot-training")
    for file in ("tasks.toml", "tasks.json"):
        assert main.main(["train-neurogym", "--env-name", file, *tiny, "--experiment-name", file]) == 0
        env = json.loads(Path("experiments", file, "config.json").read_text())["env"]
        assert env["env_name"] == "GoNogo-v0,DelayMatchSample-v0"
        assert env["env_args"] == {"GoNogo-v0": {"dt": 50}} and env["task_weights"] == {"GoNogo-v0": 2}
        Path(file).unlink()
        assert main.main(["train-neurogym", "--experiment-name", file, "--total-steps", "1200", "--resume"]) == 0


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("name = 1", "must hold a table [[task]] with a name for each task"),
        ("[[task]]\nweight = 2", "must hold a table [[task]] with a name for each task"),
        ('[[task]]\nname = "GoNogo-v0"\nwieght = 2', "a task has the keys name, weight and args, got 'wieght'"),
        ("[[task", "is not valid TOML"),
        ('[[task]]\nname = "GoNogo-v0"\nargs = {dt = 2020-01-01}', "is not valid TOML: Object of type date"),
        ('[[task]]\nname = "GoNogo-v0"\nweight = 2', "--task-weight does nothing with one task"),
    ],
)
def test_a_file_of_another_form_is_refused(content: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text(content)
    with pytest.raises(cfg.ConfigError, match=rule.replace("[", r"\[")):
        cfg.make_config("train-neurogym", {"env_name": str(tmp_path / "tasks.toml")})
