"""Supervised learning: the loss by hand, noise, L1, continuous actions, a memory task, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model_utils import Experiment
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.contracts import Sequences
from mpn_rl.learners.supervised import SupervisedLearner, SupervisedNetwork, step_weights, supervised_losses
from mpn_rl.networks.baseline_cores import RecurrentCore
from mpn_rl.networks.encoder import Encoder
from mpn_rl.options import ConfigError
from mpn_rl.training import Run

YES, NO = True, False


def network(actions: int = 2, low: Any = None, high: Any = None, seed: int = 0) -> SupervisedNetwork:
    torch.manual_seed(seed)
    encoder = Encoder(3, 0, False)
    return SupervisedNetwork(3, 4, actions, encoder=encoder, core=RecurrentCore("gru", 3, 4), low=low, high=high)


def sequences(rows: int = 2, steps: int = 5, actions: int = 2, seed: int = 0) -> Sequences:
    torch.manual_seed(seed)
    decision = torch.zeros(rows, steps, dtype=torch.bool)
    decision[:, -1] = True
    target = torch.randint(actions, (rows, steps))
    return Sequences(torch.randn(rows, steps, 3), torch.zeros(rows, steps, dtype=torch.bool), target, decision)


# --- the loss ---------------------------------------------------------------------------------------------


def test_decision_steps_and_the_others_together_weigh_the_same() -> None:
    known = torch.tensor([[YES, YES, YES, YES], [NO, YES, YES, NO]])
    decision = torch.tensor([[NO, NO, NO, YES], [NO, NO, YES, YES]])
    # Decision steps with a right action: 2, a quarter each. The others: 4, an eighth each.
    expected = [[1 / 8, 1 / 8, 1 / 8, 1 / 4], [0, 1 / 8, 1 / 4, 0]]
    assert step_weights(known, decision, "all").tolist() == expected
    assert step_weights(known, decision, "decision").tolist() == [[0, 0, 0, 0.5], [0, 0, 0.5, 0]]


def test_where_one_group_is_empty_the_other_has_all_the_weight() -> None:
    known, nothing = torch.tensor([[YES, YES]]), torch.tensor([[NO, NO]])
    for decision in (known, nothing):
        assert step_weights(known, decision, "all").tolist() == [[0.5, 0.5]]
    assert step_weights(nothing, known, "all").tolist() == [[0, 0]]
    assert step_weights(known, nothing, "decision").tolist() == [[0, 0]]


def test_the_loss_of_a_choice_is_its_cross_entropy() -> None:
    outputs = torch.tensor([[[0.0, math.log(3.0)], [5.0, 1.0]]])  # softmax of the first: 1/4, 3/4
    losses = supervised_losses(outputs, torch.tensor([[0, -1]]))
    assert losses.tolist() == [[pytest.approx(math.log(4.0)), 0.0]]


def test_the_loss_of_a_vector_is_its_mean_squared_error() -> None:
    outputs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], requires_grad=True)
    target = torch.tensor([[[0.0, 5.0], [math.nan, math.nan]]])
    losses = supervised_losses(outputs, target)
    assert losses.tolist() == [[5.0, 0.0]]  # (1 + 9) / 2
    losses.sum().backward()
    assert outputs.grad is not None and outputs.grad.tolist() == [[[1.0, -3.0], [0.0, 0.0]]]


def test_an_update_is_a_step_along_the_gradient_of_the_stated_loss() -> None:
    config = cfg.SupervisedConfig(l1=0.01, grad_clip=1e6)
    learner = SupervisedLearner(network(), config, seed=0)
    batch, by_hand = sequences(), network()
    state, total = by_hand.init_state(2), torch.zeros(())
    for t in range(5):  # a loop over single steps
        scores, state = by_hand(batch.obs[:, t], state)
        weight = 0.25 if t == 4 else 0.5 / 8
        total = total - weight * scores.log_softmax(-1)[[0, 1], batch.target[:, t]].sum()
    values = learner.update(batch)
    assert float(values["loss"]) == pytest.approx(total.item(), rel=1e-5)
    matrices = [part for name, part in by_hand.core.named_parameters() if "weight" in name]
    (total + 0.01 * sum(part.abs().sum() for part in matrices)).backward()  # no bias, and not the readout
    norm = torch.cat([part.grad.flatten() for part in by_hand.parameters() if part.grad is not None]).norm()
    assert float(values["grad_norm"]) == pytest.approx(float(norm), rel=1e-4)


def test_the_training_accuracy_counts_decision_steps_only() -> None:
    learner = SupervisedLearner(network(), cfg.SupervisedConfig(), seed=0)
    with torch.no_grad():
        learner.online.head.weight.zero_()
        learner.online.head.bias.copy_(torch.tensor([1.0, 0.0]))  # always the choice 0
    batch = sequences()
    batch.target[:] = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert float(learner.update(batch)["train_accuracy"]) == 0.5
    batch.target[:, -1] = -1  # no decision step has a right action any more
    assert float(learner.update(batch)["train_accuracy"]) == 0.5
    batch.target[:] = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]])
    assert float(learner.update(batch)["train_accuracy"]) == 0.0


def test_the_state_is_reset_where_the_sequence_says_so() -> None:
    learner, batch = SupervisedLearner(network(), cfg.SupervisedConfig(), seed=0), sequences(1, 4)
    batch.reset[0, 2] = True
    with torch.no_grad():
        outputs, _ = learner.online.unroll(batch.obs, learner.online.init_state(1), batch.reset)
        second, _ = learner.online.unroll(batch.obs[:, 2:], learner.online.init_state(1))
        other, _ = learner.online.unroll(batch.obs, learner.online.init_state(1))
    torch.testing.assert_close(outputs[:, 2:], second)
    assert not torch.allclose(other[:, 2:], second)


def test_input_noise_has_the_stated_norm_and_is_absent_from_acting() -> None:
    learner = SupervisedLearner(network(), cfg.SupervisedConfig(input_noise=0.5), seed=0)
    noise = learner._noise(200, 100)
    assert noise is not None and float(noise.square().sum(-1).mean().sqrt()) == pytest.approx(0.5, abs=0.01)
    obs, state = torch.randn(4, 3), learner.online.init_state(4)
    with torch.no_grad():
        first, _ = learner.online.features(obs, state)
        assert torch.equal(first, learner.online.features(obs, state)[0])
    assert SupervisedLearner(network(), cfg.SupervisedConfig(), seed=0)._noise(2, 2) is None


# --- actions ----------------------------------------------------------------------------------------------


def test_continuous_actions_are_the_output_within_the_bounds() -> None:
    net = network(2, low=[-1.0, 0.0], high=[1.0, 2.0])
    assert net.choose(torch.tensor([[-3.0, 1.5], [0.5, 9.0]])).tolist() == [[-1.0, 1.5], [0.5, 2.0]]
    generator = torch.Generator().manual_seed(0)
    drawn = net.choose(torch.zeros(1000, 2), 1.0, generator)
    assert drawn.min(0).values.tolist() == pytest.approx([-1.0, 0.0], abs=0.02)
    assert drawn.max(0).values.tolist() == pytest.approx([1.0, 2.0], abs=0.02)


def test_a_vector_is_learned_from_its_right_actions() -> None:
    learner = SupervisedLearner(network(2, [-1, -1], [1, 1]), cfg.SupervisedConfig(learning_rate=0.02), seed=0)
    batch = sequences(8, 6)
    target = torch.stack([batch.obs[..., 0].tanh(), -batch.obs[..., 1].tanh()], -1)
    values = [learner.update(batch._replace(target=target)) for _ in range(300)]
    assert "train_accuracy" not in values[0]
    assert float(values[-1]["loss"]) < 0.1 * float(values[0]["loss"])


# --- whole runs -------------------------------------------------------------------------------------------

ORDER = {"shortest_trial": 5, "longest_trial": 8}


def run(folder: Path, **flags: Any) -> Run:
    small = {"embed_dim": 8, "hidden_dim": 16, "eval_freq": 0, "eval_episodes": 40, "plasticity_metrics_freq": 0,
             "env_name": "TemporalOrder-v0", "env_args": ORDER, "sequence_length": 40, "batch_size": 32}  # fmt: skip
    config = cfg.make_config("train", {**small, "learner": "supervised", **flags})
    made = Run(config)
    made.start(Experiment.create(folder.name, folder.parent, config.to_dict()))
    return made


def accuracy(made: Run) -> float:
    while not made.done:
        made.advance()
    return next(row["accuracy"] for row in made.finish() if row["kind"] == "eval")


def test_a_memory_task_is_solved_by_an_mpn_and_not_without_its_memory(tmp_path: Path) -> None:
    steps = {"total_steps": 300 * 32 * 40, "learning_rate": 0.01}
    assert accuracy(run(tmp_path / "mpn", **steps)) > 0.95
    assert 0.3 < accuracy(run(tmp_path / "mlp", core="mlp", **steps)) < 0.7  # it sees only the go


def test_a_run_stops_at_the_target_accuracy_but_not_before_the_fewest_updates(tmp_path: Path) -> None:
    flags = {"total_steps": 40 * 32 * 40, "eval_freq": 10 * 32 * 40, "target_accuracy": 0.0}
    stopped = run(tmp_path / "stopped", **flags)
    while not stopped.done:
        stopped.advance()
    assert stopped.learner.updates == 10
    later = run(tmp_path / "later", **flags, min_updates=15)
    while not later.done:
        later.advance()
    assert later.learner.updates == 20
    later.finish()
    assert later.experiment is not None
    assert Run.resume(later.config, later.experiment).done  # the reason to stop is saved


def test_a_sequence_counts_as_an_episode_without_a_reward(tmp_path: Path) -> None:
    made = run(tmp_path / "run", total_steps=4 * 3 * 40, batch_size=3, log_freq=6)
    rows = [row for _ in range(4) for row in made.advance()]
    assert made.done and made.step == 4 * 3 * 40 and made.episodes == 12
    episodes = [row for row in rows if row["kind"] == "episode"]
    assert [row["episode"] for row in episodes] == [6, 12] and [row["length"] for row in episodes] == [40, 40]
    assert all(row["reward"] is None and row["accuracy"] == row["train_accuracy"] for row in episodes)


def refusal(**flags: Any) -> str:
    command = "train-neurogym" if str(flags.get("env_name", "")).endswith("Making-v0") else "train"
    with pytest.raises(ConfigError) as refused:
        Run(cfg.make_config(command, {"learner": "supervised", **flags}))
    return str(refused.value)


def test_a_task_without_right_actions_is_refused() -> None:
    assert refusal(env_name="CartPole-v1") == (
        "--algo supervised needs a task that gives its right actions, --env-name CartPole-v1 gives none; take --algo "
        "dqn or a2c or ppo"
    )
    assert refusal(env_name="Pendulum-v1").endswith("gives none; take --algo a2c or ppo or td3")


def test_periods_that_change_nothing_are_refused() -> None:
    assert refusal(env_name="CueReward-v0", score_periods="decision") == (
        "--score-periods decision does nothing with --env-name CueReward-v0, whose right actions are in the decision "
        "period only; leave it out"
    )


def test_a_run_shorter_than_an_update_is_refused() -> None:
    message = "--total-steps must be at least --batch-size times --sequence-length = 1344, got 1000"
    assert refusal(env_name="TemporalOrder-v0", total_steps=1000) == message


def test_the_number_of_environments_does_nothing() -> None:
    assert refusal(env_name="TemporalOrder-v0", num_envs=3).startswith("--num-envs does nothing with --algo supervised")


def test_the_target_accuracy_needs_trials() -> None:
    config = cfg.make_config("train", {"target_accuracy": 0.9})
    with pytest.raises(ConfigError, match="--target-accuracy does nothing with --env-name CartPole-v1"):
        registry.check_trials(config)


def test_a_topology_changes_the_network_while_it_learns(tmp_path: Path) -> None:
    flags = {"total_steps": 20 * 32 * 40, "expansion": "rigl", "update_interval": 4 * 32 * 40}
    made = run(tmp_path / "run", **flags)
    while not made.done:
        made.advance()
    assert made.learner.topology is not None
    assert made.learner.topology.densities()["online"] < 0.9
    assert any(made.learner.topology.churn().values())
