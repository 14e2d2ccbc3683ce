"""Loading an agent in Python, and the files of scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from main import main
from model_utils import Experiment
from mpn_rl import registry
from mpn_rl.analysis.trials import SIGNED
from mpn_rl.config import make_config
from mpn_rl.evaluation import GRADED, choice_counts, load_agent
from mpn_rl.options import ConfigError
from mpn_rl.tasks.lanes import EpisodeSeeds
from mpn_rl.training import train

TINY = {"total_steps": 240, "num_envs": 2, "hidden_dim": 6, "embed_dim": 3, "max_episode_steps": 40,
        "eval_episodes": 2, "eval_freq": 100, "learning_starts": 60, "buffer_size": 300, "batch_size": 4,
        "kernel": "reference"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `train` made in a folder of another name than experiments."""
    root = tmp_path_factory.mktemp("runs")
    config = make_config("train-neurogym", {"env_name": "DelayMatchSample-v0", **TINY})
    return train(config, "trained", root).path


def test_train_in_python_writes_what_the_command_writes(folder: Path, tmp_path: Path) -> None:
    flags = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    argv = ["train-neurogym", "--env-name", "DelayMatchSample-v0", *flags, "--no-plot-training", "--experiment-name"]
    assert main([*argv, "trained", "--experiments-dir", str(tmp_path)]) == 0
    saved = [torch.load(root / "checkpoints/final_model.pt", weights_only=True)["network"]
             for root in (folder, tmp_path / "trained")]  # fmt: skip
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[1]) and saved[0].keys() == saved[1].keys()
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "trained/metrics.jsonl").read_text()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best_model.pt", "final_model.pt", "last.pt"}


def test_a_name_that_is_taken_is_refused_and_none_draws_the_next_number(folder: Path) -> None:
    config = make_config("train-neurogym", {"env_name": "DelayMatchSample-v0", **TINY})
    with pytest.raises(ConfigError, match="exists"):
        train(config, "trained", folder.parent)
    names = [train(config, None, folder.parent).name for _ in range(2)]
    assert names == ["DelayMatchSample-v0-mpn-0-1", "DelayMatchSample-v0-mpn-0-2"]


def test_an_agent_acts_as_eval_does_and_shows_m(folder: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["eval", "--experiment-name", "trained", "--experiments-dir", str(folder.parent), "--checkpoint", "final"]
    assert main([*argv, "--num-eval-episodes", "1", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["return_mean"]
    agent = load_agent(folder, checkpoint="final")
    env = agent.make_env()
    obs, _ = env.reset(seed=EpisodeSeeds("eval", 0)())
    returned, done, norms = 0.0, False, []
    while not done:
        obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
        returned, done = returned + float(reward), terminated or truncated
        norms.append(np.linalg.norm(agent.state_arrays["M"]))
    assert returned == pytest.approx(expected)
    assert agent.state_arrays["M"].shape == (6, 3) and len(set(norms)) > 10
    agent.reset()
    assert not agent.state_arrays["M"].any()


def test_agents_are_found_by_name_or_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ConfigError, match="no experiment 'trained' in experiments"):
        load_agent("trained")
    Path("experiments").symlink_to(folder.parent)
    assert load_agent("trained").config == load_agent("./trained").config == load_agent(folder).config


def test_evaluations_of_other_lengths_do_not_replace_one_another(folder: Path) -> None:
    argv = ["eval", "--experiment-name", "trained", "--experiments-dir", str(folder.parent)]
    for length in (["--num-eval-episodes", "1"], ["--num-eval-episodes", "2"], ["--num-eval-trials", "2"]):
        assert main([*argv, *length]) == 0
    files = sorted(path.name.rsplit("_", 1)[0] for path in Experiment("trained", folder.parent).eval_dir.iterdir())
    assert [name for name in files if name.startswith("best")] == [
        "best_seed0_1ep", "best_seed0_2ep", "best_seed0_2trials"]  # fmt: skip


def test_choices_are_counted_by_graded_evidence_alone() -> None:
    trials = [{"coh": coh, "n": n, "choice": choice, "ground_truth": 1} for n, (coh, choice) in
              enumerate([(5.0, 1), (5.0, 1), (5.0, 2), (0.0, 1)])]  # fmt: skip
    assert choice_counts(np.array(trials, object)) == {
        "coh": [0.0, 5.0, 5.0], "ground_truth": [1, 1, 1], "choice": [1, 1, 2], "trials": [1, 2, 1]}  # fmt: skip
    assert choice_counts(np.array([{"context": 1, "choice": 0, "ground_truth": 0}], object)) is None
    assert choice_counts(np.empty(0, object)) is None
    assert all(GRADED.fullmatch(name) for strength in SIGNED for name in strength.split("-"))


def test_the_learning_rate_is_logged(folder: Path) -> None:
    rows = [row for row in Experiment("trained", folder.parent).read_metrics() if row["kind"] == "episode"]
    config = make_config("train-neurogym", {"env_name": "DelayMatchSample-v0", **TINY})
    assert rows[0]["learning_rate"] <= config.learner.learning_rate
    assert rows[-1]["learning_rate"] < rows[0]["learning_rate"]


@pytest.mark.parametrize("core", ["gru", "lstm", "rnn", "backpropamine", "mlp"])
def test_match_weights_gives_another_core_as_many_weights(core: str, tmp_path: Path) -> None:
    argv = ["train-neurogym", "--core", core, "--match-weights", "mpn", "--total-steps", "100", "--no-plot-training",
            "--eval-episodes", "1", "--experiments-dir", str(tmp_path), "--experiment-name", "matched"]  # fmt: skip
    assert main(argv) == 0
    experiment = Experiment("matched", tmp_path)
    weights, config = experiment.num_weights(), experiment.read_config()
    assert weights is not None and abs(weights / 4805 - 1) < 0.1  # 4,805 is the MPN's number (README)
    smaller, larger = (weights_of_core(core, config["core"]["hidden_dim"] + change) for change in (-1, 1))
    assert abs(weights - 4805) <= min(abs(smaller - 4805), abs(larger - 4805))
    assert main([*argv, "--resume", "auto"]) == 0  # as a sweep's row continues


def weights_of_core(core: str, hidden_dim: int) -> int:
    config = make_config("train-neurogym", {"core": core, "hidden_dim": hidden_dim})
    network = registry.make_network(config, registry.spaces(registry.make_env(config.env)))
    return sum(part.numel() for part in network.parameters() if part.requires_grad)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--hidden-dim", "4"], "--match-weights sets --hidden-dim"),
        (["--resume", "--experiment-name", "x"], "--match-weights does nothing with --resume"),
    ],
)
def test_weights_that_cannot_be_matched_are_one_line(
    more: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["train-neurogym", "--match-weights", "mpn", *more, "--experiments-dir", str(tmp_path / "none")]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
