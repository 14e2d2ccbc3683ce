"""The output and the files of each command."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import main
from model_utils import load_checkpoint
from mpn_rl import commands, evaluation
from mpn_rl import config as cfg
from mpn_rl.options import ConfigError
from mpn_rl.reporting import print_scores
from mpn_rl.rollout import Evaluation

TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--eval-episodes", "2", "--learning-starts", "20",
        "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8", "--batch-size", "4"]  # fmt: skip


def run(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """What a command prints on stdout."""
    capsys.readouterr()
    assert main.main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiments: 'context' (NeuroGym, mpn), 'cart' (CartPole, mpn), and 'gru', 'mlp', 'lstm' on NeuroGym."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, command, more in [
            ("context", "train-neurogym", ["--kernel", "reference"]),
            ("cart", "train", ["--kernel", "reference", "--num-layers", "2"]),
            ("gru", "train-neurogym", ["--core", "gru", "--env-name", "GoNogo-v0", "--reset-state-on-trial"]),
            ("mlp", "train", ["--core", "mlp"]),
            ("lstm", "train-neurogym", ["--core", "lstm", "--env-name", "ReadySetGo-v0"]),
        ]:
            episodes = ["--num-episodes", "3", "--max-episode-steps", "60", "--no-plot-training"]
            assert main.main([command, "--experiment-name", name, *TINY, *episodes, *more]) == 0
    return folder


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


# --- train ------------------------------------------------------------------------------------------------


class SendsSignals(gymnasium.Env):
    """A task without an end that sends this process `number` at step `at`, and again at each step after it.

    The steps count from when `folder` exists: before that, the first steps are only tried.
    """

    observation_space, action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), gymnasium.spaces.Discrete(2)
    number, at, steps, folder = signal.SIGTERM, 0, 0, Path()

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        SendsSignals.steps += self.folder.exists()
        if SendsSignals.steps >= self.at:
            os.kill(os.getpid(), self.number)
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SendsSignals]]:
    gymnasium.register("SendsSignals-v0", SendsSignals)
    monkeypatch.setattr(SendsSignals, "steps", 0)
    yield SendsSignals
    del gymnasium.registry["SendsSignals-v0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_a_signal_inside_an_endless_evaluation_saves_the_run(
    sends: type[SendsSignals], number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP would be ignored
    monkeypatch.setattr(sends, "number", number)
    monkeypatch.setattr(sends, "at", 30)  # 20 training steps come before the evaluation
    monkeypatch.setattr(sends, "folder", tmp_path / "endless")
    argv = ["train", "--env-name", "SendsSignals-v0", "--experiment-name", "endless",
            "--experiments-dir", str(tmp_path), *TINY, "--kernel", "reference", "--total-steps", "100",
            "--eval-freq", "20", "--max-episode-steps", "1000000000", "--resume", "auto"]  # fmt: skip
    assert main.main([*argv, "--checkpoint-exit-code", "85"]) == 85, "each such signal counts as SIGTERM"
    assert load_checkpoint(tmp_path / "endless" / "checkpoints" / "last.pt")["counters"]["step"] == 20
    assert sends.steps == 30
    assert main.main(argv[:-1]) == 143


def test_a_signal_ends_a_command_that_has_nothing_to_save(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    assert main.main(["eval", "--experiment-name", "cart"]) == 143
    assert capsys.readouterr().err == "main.py eval: stopped by SIGUSR1\n"
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with commands.stop_signals(commands.leave):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_narrow_terminal_cuts_no_number(capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "eval", "--experiment-name", "context", "--num-eval-episodes", "2")
    table = out.split(" episodes, ")[0]
    assert "\u2026" not in out
    assert len(re.findall(r"\d\.\d{3}", re.search(r"ground truth.*", table).group())) >= 3
    assert len(re.search(r"agent.*", table).group()) > 60


def test_a_run_that_learned_nothing_prints_so(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    short = [
        "--experiments-dir",
        str(tmp_path),
        "--no-plot-training",
        "--eval-episodes",
        "2",
        "--max-episode-steps",
        "20",
    ]
    waited = ["--learning-starts", "100", "--kernel", "reference", "--hidden-dim", "4", "--total-steps"]
    assert "nothing was learned" in run(capsys, "train", "--experiment-name", "a", *short, *waited, "60")
    assert "nothing was learned" not in run(capsys, "train", "--experiment-name", "b", *short, *waited, "200")
    rollout = ["--algo", "a2c", "--core", "mlp", "--hidden-dim", "4", "--num-envs", "2", "--rollout-steps", "50"]
    said = run(
        capsys, "train", "--experiment-name", "c", *short, *rollout, "--total-steps", "60", "--eval-policy", "sample"
    )
    assert "--num-envs times --rollout-steps" in said and "sampled return" in said


def test_a_picture_that_cannot_be_written_ends_no_training(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, calls = commands.draw_training_curves, []

    def refuse_once(*args: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise ConfigError("cannot write plots: no space")
        return draw(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(commands, "draw_training_curves", refuse_once)
    argv = ["train-neurogym", "--experiment-name", "full", "--experiments-dir", str(tmp_path), *TINY, "--kernel",
            "reference", "--num-episodes", "8", "--max-episode-steps", "60", "--eval-freq", "120"]  # fmt: skip
    assert main.main(argv) == 0
    assert "note: cannot write plots: no space\n" in capsys.readouterr().err and len(calls) == 2
    assert (tmp_path / "full/checkpoints/final_model.pt").is_file()
    assert (tmp_path / "full/plots/training_curves.png").is_file()


def test_training_prints_its_progress_and_writes_every_file(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    out = run(capsys, "train-neurogym", "--experiment-name", "shown", "--experiments-dir", str(tmp_path), *TINY,
              "--kernel", "reference", "--num-episodes", "8", "--max-episode-steps", "60", "--print-freq", "4",
              "--tensorboard", "--checkpoint-freq", "200")  # fmt: skip
    assert re.search(r"ContextDecisionMaking-v0: mpn, [\d,]+ weights on cpu, 2 lanes", out)
    assert re.search(r"dqn, replay of sequences: \d+ KiB when full", out)
    line = (r"Ep 4/8 \| Reward -?\d+\.\d\d \| Acc \d\.\d\d \| Len 60 \| Loss \d+\.\d{4} \| eps 0\.\d{3} \| "
            r"Trials \d+ \| [\d,]+ steps/s\n")  # fmt: skip
    assert re.search(line, out)
    assert "next: python main.py eval --experiment-name shown" in out
    folder = tmp_path / "shown"
    for file in ("config.json", "metrics.jsonl", "training_history.json", "plots/training_curves.png",
                 "checkpoints/best_model.pt", "checkpoints/final_model.pt", "checkpoints/last.pt"):  # fmt: skip
        assert (folder / file).stat().st_size > 0, file
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(folder.rglob("*.tmp"))


def test_the_printed_size_is_that_of_the_full_buffer(home: Path) -> None:
    """Two lanes of 200 steps: what is stored does not grow, so the size printed at the start is the last one."""
    from mpn_rl.training import Run

    config = cfg.make_config("train", {"num_envs": 2, "buffer_size": 400, "num_episodes": 30, "learning_starts": 10**6})
    training = Run(config)
    size = training.replay.nbytes
    while training.replay.head < 300:
        training.lanes.step(np.zeros(2, int))
        training.replay.head += 1
    assert training.replay.nbytes == size
    assert size >= 400 * 4 * (2 * 4 + 1)  # two observations of 4 and a reward for each step, at least


def test_a_trial_longer_than_the_episode_is_pointed_out(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    argv = ["train-neurogym", "--env-name", "PulseDecisionMaking-v0", "--experiment-name", "short", *TINY, "--kernel",
            "reference", "--num-episodes", "1", "--no-plot-training", "--experiments-dir", str(tmp_path),
            "--max-episode-steps", "40"]  # fmt: skip
    assert main.main(argv) == 0
    assert re.search(r"a trial of PulseDecisionMaking-v0 takes \d+ steps and an episode ends after 40",
                     capsys.readouterr().err)  # fmt: skip
    assert main.main(["eval", "--experiment-name", "short", "--experiments-dir", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "no trial was completed: a trial takes" in captured.err
    assert "0 trials" in captured.out and "nan" not in captured.out
    with_trials = ["eval", "--experiment-name", "short", "--experiments-dir", str(tmp_path), "--num-eval-trials", "5"]
    assert main.main(with_trials) == 2
    assert "no trial is completed" in capsys.readouterr().err


@pytest.mark.parametrize("explicit", [False, True])
def test_a_context_that_never_varies_is_pointed_out_and_headings_name_the_arguments(
    explicit: bool, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    where = ["--experiment-name", "a", "--experiments-dir", str(tmp_path)]
    given = ["--env-arg", "use_expl_context=true"] if explicit else []
    argv = ["train-neurogym", *where, *TINY, "--kernel", "reference", "--num-episodes", "1", "--no-plot-training"]
    assert main.main([*argv, *given]) == 0
    captured = capsys.readouterr()
    task = "ContextDecisionMaking-v0" + ("(use_expl_context=True)" if explicit else "")
    assert captured.out.startswith(f"{task}: mpn, ")
    assert ("the context of ContextDecisionMaking-v0 is fixed by default" in captured.err) is not explicit
    assert run(capsys, "eval", *where, "--num-eval-episodes", "2").startswith(f"{task}, mpn, greedy")


def test_the_list_of_tasks_fits_a_terminal(capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "train-neurogym", "--list-envs")
    lines = out.splitlines()
    rows = [line for line in lines if line.endswith(("  dqn, a2c, ppo", "  a2c, ppo, td3", "  -"))]
    assert len(rows) == 52 and sum(line.endswith("-") for line in rows) == 2
    assert max(map(len, rows)) <= 80
    assert re.search(r"^ContextDecisionMaking-v0 +5 +3 +100 +\d+  dqn, a2c, ppo$", out, re.MULTILINE)
    assert "  Null-v0: its reward is always zero" in lines


def test_a_longer_run_and_another_learning_rate_print_their_effect_on_the_schedules(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """After 2 of 2 episodes: epsilon 0.1 and a tenth of the rate. After 2 of 8: epsilon 0.5 - 0.4 / 2, and 0.775."""
    where = ["--experiment-name", "longer", "--experiments-dir", str(tmp_path), "--no-plot-training"]
    schedule = ["--epsilon-start", "0.5", "--epsilon-end", "0.1", "--epsilon-decay", "0.5", "--learning-rate", "0.01"]
    run(capsys, "train", *where, *TINY, "--kernel", "reference", "--num-episodes", "2", *schedule)
    assert "of the run" not in run(capsys, "train", *where, "--resume")
    out = run(capsys, "train", *where, "--resume", "--num-episodes", "8")
    assert (
        "100% of the run was done, 25% is done now: the learning rate goes from 0.001 to 0.00775 and epsilon goes "
        "from 0.1 to 0.3\n"
    ) in out
    out = run(capsys, "train", *where, "--resume", "--num-episodes", "9", "--learning-rate", "0.02")
    assert "the learning rate goes from 0.001 to 0.004" in out
    assert json.loads((tmp_path / "longer" / "config.json").read_text())["learner"]["learning_rate"] == 0.02
    assert main.main(["train", *where, "--resume", "auto", "--learning-rate", "0.01"]) == 2
    assert "--learning-rate is 0.02, got 0.01" in capsys.readouterr().err


def test_a_run_may_start_from_the_weights_of_another(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    where = ["--experiments-dir", str(tmp_path), "--no-plot-training", "--num-episodes", "2"]
    small = ["train", *where, *TINY, "--kernel", "reference", "--learning-starts", "100000"]  # no learning
    run(capsys, *small, "--experiment-name", "one", "--seed", "1")
    transfer = [*small, "--experiment-name", "two", "--seed", "2", "--init-from", "one"]
    run(capsys, *transfer)
    run(capsys, *small, "--experiment-name", "fresh", "--seed", "2")
    one, two, fresh = (
        load_checkpoint(tmp_path / name / "checkpoints" / "final_model.pt")["network"]
        for name in ("one", "two", "fresh")
    )
    assert all((one[key] == two[key]).all() for key in one)
    assert not all((one[key] == fresh[key]).all() for key in one)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["versions"]["init_from"] == "one"
    assert main.main([*transfer, "--resume", "auto"]) == 0  # complete
    capsys.readouterr()
    for more, message in (
        (["--hidden-dim", "5"], "best_model.pt does not fit this task and --core mpn"),
        (["--init-from", "ome"], "no experiment 'ome' in"),
        (["--expansion", "static"], "--init-from needs --expansion none"),
    ):
        assert main.main([*transfer, "--experiment-name", "three", *more]) == 2
        assert message in capsys.readouterr().err
    assert main.main([*small, "--experiment-name", "one", "--seed", "1", "--init-from", "two", "--resume", "auto"]) == 2
    assert "did not start with --init-from" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


# --- eval -------------------------------------------------------------------------------------------------


def test_eval_prints_its_scores_even_where_it_cannot_write_them(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for how in ([], ["--json"]):
            argv = ["eval", "--experiment-name", "cart", "--num-eval-episodes", "2", "--seed", "77", *how]
            assert main.main(argv) == 75
            captured = capsys.readouterr()
            assert "agent" in captured.out or json.loads(captured.out)["episodes"] == 2
            assert re.search(r"eval/best_seed77.*\.json: No space left on device", captured.err)
            assert captured.err.count("\n") == 1
    assert not list(Path("experiments/cart/eval").glob("*77*"))


def test_an_empty_name_is_refused_by_every_command(capsys: pytest.CaptureFixture) -> None:
    for argv in (["eval"], ["render"], ["analyze", "collect"], ["analyze", "plot"], ["analyze", "report"], ["train"]):
        try:
            status = main.main([*argv, "--experiment-name", ""])
        except SystemExit as leaving:  # of the parser
            status = leaving.code
        assert status == 2
        assert re.fullmatch(r"main.py .*--experiment-name:? must not be empty.*\n", capsys.readouterr().err)


PLAIN = {"return_mean", "return_std", "return_ci95", "length_mean", "episodes", "random_return_mean"}
TRIALS = {"trials", "accuracy", "normalised_score", "random_accuracy", "ground_truth_accuracy",
          "ground_truth_return_mean", "never_act_accuracy", "aborts", "decision_accuracy"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "keys"), [("context", PLAIN | TRIALS), ("gru", PLAIN | TRIALS), ("cart", PLAIN), ("mlp", PLAIN)]
)
def test_json_is_one_object_on_the_last_line(name: str, keys: set[str], capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "eval", "--experiment-name", name, "--num-eval-episodes", "4", "--json")
    scores = json.loads(out.splitlines()[-1])
    assert keys <= scores.keys()
    assert scores["episodes"] == 4
    assert scores["return_ci95"][0] <= scores["return_mean"] <= scores["return_ci95"][1]
    assert ("trials" in scores) == (name in ("context", "gru"))
    if name == "context":
        assert scores["ground_truth_accuracy"] == 1.0 and scores["ideal_accuracy"] == pytest.approx(0.9409, abs=5e-5)
        assert scores["never_act_accuracy"] == 0.0


def test_eval_writes_its_numbers_and_seeds_none_of_which_chose_the_model(
    home: Path, capsys: pytest.CaptureFixture
) -> None:
    from mpn_rl.tasks.lanes import SEED_RANGES

    run(capsys, "eval", "--experiment-name", "context", "--checkpoint", "final", "--seed", "3")
    (file,) = (home / "experiments/context/eval").glob("final_seed3_*.json")
    saved = json.loads(file.read_text())
    assert saved["seed"] == 3 and len(saved["episode_seeds"]) == 10
    assert min(saved["episode_seeds"]) >= SEED_RANGES["eval"][0] >= SEED_RANGES["select"][1]


def test_the_same_seed_judges_alike_and_another_otherwise(capsys: pytest.CaptureFixture) -> None:
    first, again, other = (
        run(capsys, "eval", "--experiment-name", "context", "--seed", seed, "--json") for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_so_many_trials_are_judged_or_more(capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "eval", "--experiment-name", "gru", "--num-eval-trials", "100", "--json")
    assert json.loads(out)["trials"] >= 100


def test_a_task_without_ground_truth_has_none_in_the_scores(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    name = ["--experiment-name", "wager", "--experiments-dir", str(tmp_path)]
    argv = ["train-neurogym", "--env-name", "PostDecisionWager-v0", *name, *TINY, "--kernel", "reference"]
    assert main.main([*argv, "--num-episodes", "1", "--max-episode-steps", "60", "--no-plot-training"]) == 0
    scores = json.loads(run(capsys, "eval", *name, "--json").splitlines()[-1])
    for key in ("ground_truth_accuracy", "ground_truth_return_mean", "normalised_score", "decision_accuracy"):
        assert scores[key] is None
    out = run(capsys, "eval", *name)
    assert "normalised score -" in out and "ground truth " not in out.replace("ground truth 1", "")


@pytest.mark.parametrize("name", ["context", "cart", "lstm"])
def test_the_table_fits_a_terminal(name: str, capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "eval", "--experiment-name", name)
    table = out[: out.index("10 episodes")]
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    assert "…" not in out and "nan" not in out
    policies = [line.split("  ")[0].strip() for line in table.splitlines()[2:]]
    expected = ["agent", "random"]
    expected += [] if name == "cart" else ["never acting", "ground truth"]
    expected += {"context": ["guessing", "ideal observer"], "lstm": ["best script"], "cart": []}[name]
    assert policies == expected


def test_scores_are_worked_by_hand() -> None:
    """Returns per trial 1 and 0 for the agent; random earns 0 and the ground truth 1: half-way."""
    config = cfg.make_config("train-neurogym", {})

    def result(returns: list[float], trials: list[float]) -> Evaluation:
        right = np.array(trials) > 0
        per_trial = (right.astype(float), ~right, np.array(trials), right)
        return Evaluation(np.array(returns), np.array([3, 5]), *per_trial, np.zeros((0, 4)))

    nothing = result([0, 0], [0, 0])
    scripted = {"random": nothing, "never_act": nothing, "ground_truth": result([1, 1], [1, 1])}
    scores = evaluation.summarise(config, result([1.0, 3.0], [1.0, 0.0]), scripted)
    assert (scores["return_mean"], scores["return_std"], scores["length_mean"]) == (2.0, 1.0, 4.0)
    assert (scores["accuracy"], scores["aborts"], scores["trials"], scores["normalised_score"]) == (0.5, 1, 2, 0.5)
    half = 12.7062  # t(0.975, 1) times the standard error, 1
    assert scores["return_ci95"] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert scores["accuracy_ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-4)  # Wilson's for 1 of 2
    # The references do not vary, so the interval is that of the agent's mean of 1 and 0, whose error is 1/2.
    assert scores["normalised_score_ci95"] == pytest.approx([0.5 - half / 2, 0.5 + half / 2], abs=1e-3)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_one_episode_and_equal_episodes_have_no_interval(capsys: pytest.CaptureFixture) -> None:
    config = cfg.make_config("train", {"env_name": "CartPole-v1"})
    nothing = np.array([])
    for returns in (np.array([6.0]), np.full(4, 500.0)):
        result = Evaluation(returns, returns.astype(int), nothing, nothing, nothing, nothing, np.zeros((0, 4)))
        scores = evaluation.summarise(config, result, {})
        assert scores["return_mean"] == returns[0] and scores["return_ci95"] == [None, None]
        print_scores(config, scores)
        assert f"{returns[0]:.3f}" in (out := capsys.readouterr().out) and "none" in out and "[" not in out


def test_all_trials_right_leave_room_below_one() -> None:
    config = cfg.make_config("train-neurogym", {})
    right = np.ones(60)
    result = Evaluation(right, right, right, right < 0, right, right > 0, np.zeros((0, 4)))
    low, high = evaluation.summarise(config, result, {"random": result})["accuracy_ci95"]
    assert low == pytest.approx(60 / (60 + 1.96**2), abs=1e-3) and high == 1.0


# --- render -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["context", "cart", "mlp", "lstm"])
def test_a_film_is_in_videos_by_default(name: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "render", "--experiment-name", name, "--seed", "2", "--max-steps", "4")
    film = home / "experiments" / name / "videos" / "episode_2.gif"
    assert film.read_bytes().startswith(b"GIF89a")
    assert out.startswith("4 steps, return") and "episode_2.gif" in out


def test_output_sets_the_place_and_the_format_of_a_film(home: Path, capsys: pytest.CaptureFixture) -> None:
    run(capsys, "render", "--experiment-name", "cart", "--output", "demo.mp4", "--max-steps", "3", "--fps", "5")
    assert b"ftyp" in (home / "demo.mp4").read_bytes()[:12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "taken.gif"], "--output taken.gif exists; replace it with --overwrite"),
        (["--output", "broken.gif"], "--output broken.gif exists; replace it with --overwrite"),
        (["--overwrite"], "--overwrite needs --output"),
    ],
)
def test_a_film_replaces_a_file_only_with_overwrite(
    home: Path, options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    (home / "taken.gif").write_bytes(b"mine")
    (home / "broken.gif").unlink(missing_ok=True)
    (home / "broken.gif").symlink_to("nowhere")
    assert main.main(["render", "--experiment-name", "cart", *options]) == 2
    assert message in capsys.readouterr().err
    assert (home / "taken.gif").read_bytes() == b"mine"


# --- analyze ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "states"), [("context", ["M"]), ("cart", ["M1", "M2"]), ("gru", []), ("mlp", []),
                                              ("lstm", ["c"])])  # fmt: skip
def test_analysis_draws_what_the_core_has(
    name: str, states: list[str], home: Path, capsys: pytest.CaptureFixture
) -> None:
    run(capsys, "analyze", "--experiment-name", name, "--num-episodes", "3")
    folder = home / "experiments" / name / "analysis"
    pictures = {"pca_variance.png", "trajectories_hidden.png", *(f"trajectories_{state}.png" for state in states)}
    drawn = {path.name for path in folder.glob("*.png")}
    assert pictures <= drawn and ("snapshots.png" in drawn) == (name == "context")
    numbers = json.loads((folder / "pca_variance.json").read_text())
    assert set(numbers["states"]) == {"h", *states}
    with np.load(folder / "activity.npz", allow_pickle=False) as activity:
        assert len(set(np.unique(activity["episode"]))) == 3
        for state in states:
            assert activity[f"state_{state}"].dtype == np.float16


def test_collect_and_plot_are_the_two_halves(home: Path, capsys: pytest.CaptureFixture) -> None:
    first = run(capsys, "analyze", "collect", "--experiment-name", "context", "--num-episodes", "2", "--precision",
                "float32", "--epsilon", "0.5", "--seed", "7")  # fmt: skip
    assert first.startswith("2 episodes, 120 steps")
    second = run(capsys, "analyze", "plot", "--experiment-name", "context", "--color-by", "context")
    assert "figures, with the numbers beside them: " in second
    assert json.loads((home / "experiments/context/analysis/pca_variance.json").read_text())["coloured_by"] == "context"


def test_a_colour_that_is_not_there_names_the_choices_and_keeps_the_recording(
    home: Path, capsys: pytest.CaptureFixture
) -> None:
    run(capsys, "analyze", "collect", "--experiment-name", "context", "--num-episodes", "1")
    before = (home / "experiments/context/analysis/activity.npz").read_bytes()
    for stage in ([], ["plot"]):
        assert main.main(["analyze", *stage, "--experiment-name", "context", "--color-by", "colour"]) == 2
        assert "cannot colour by 'colour'; this recording has coh_1" in capsys.readouterr().err
    assert (home / "experiments/context/analysis/activity.npz").read_bytes() == before


def test_a_recording_stays_within_its_megabytes(capsys: pytest.CaptureFixture, home: Path) -> None:
    """CartPole with an M of 4 x 3 in float16: well below 1 MB an episode, so that some fit, and no more."""
    argv = ["analyze", "collect", "--experiment-name", "cart", "--max-megabytes", "1", "--num-episodes", "5000"]
    assert main.main(argv) == 0
    captured = capsys.readouterr()
    assert "--max-megabytes 1 is reached" in captured.err
    with np.load(home / "experiments/cart/analysis/activity.npz") as activity:
        size = sum(activity[name].nbytes for name in activity.files)
    assert 0.9 * 2**20 < size <= 1.01 * 2**20


def test_eval_render_and_analyze_need_nothing_but_the_folder(home: Path, capsys: pytest.CaptureFixture) -> None:
    """From another place, by --experiments-dir."""
    moved = home / "elsewhere"
    moved.mkdir()
    (home / "experiments" / "mlp").rename(moved / "mlp")
    where = ["--experiments-dir", str(moved), "--experiment-name", "mlp"]
    run(capsys, "eval", *where)
    run(capsys, "analyze", *where, "--num-episodes", "2")
    (moved / "mlp").rename(home / "experiments" / "mlp")


# --- options that do nothing --------------------------------------------------------------------------------


def test_episodes_beside_trials_are_refused(capsys: pytest.CaptureFixture) -> None:
    argv = ["eval", "--experiment-name", "context", "--num-eval-episodes", "2", "--num-eval-trials", "9"]
    assert main.main(argv) == 2
    assert "--num-eval-episodes does nothing with --num-eval-trials" in capsys.readouterr().err


def test_a_resumed_run_refuses_an_option_that_does_nothing(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    named = ["--experiment-name", "short", "--experiments-dir", str(tmp_path)]
    small = ["--hidden-dim", "4", "--kernel", "reference", "--no-plot-training", "--eval-episodes", "1"]
    limits = ["--max-episode-steps", "20", "--total-steps", "40"]
    said = run(
        capsys, "train", *named, *small, *limits, "--env-name", "FrozenLake-v1", "--env-arg", "is_slippery=False"
    )
    assert said.splitlines()[0].startswith("FrozenLake-v1(is_slippery=False): mpn, ")
    for flags, message in (
        (["--num-episodes", "9"], "--num-episodes does nothing with --total-steps 40; it needs --total-steps none"),
        (["--wandb-project", "mine"], "--wandb-project does nothing with --no-wandb; it needs --wandb"),
        (["--total-steps", "20"], "--total-steps 20 does nothing: the run has 40 steps already"),
    ):
        assert main.main(["train", *named, "--resume", *flags]) == 2
        assert message in capsys.readouterr().err
