"""TD3: targets and gradients by hand, when what moves, old transitions, resume, and tasks that it learns."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import main
from model_utils import Experiment
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.contracts import Batch, Steps
from mpn_rl.kernels import linear
from mpn_rl.kernels.linear import Linear
from mpn_rl.learners.td3 import TD3, Actor, TD3Learner, value_network
from mpn_rl.learners.transition_replay import TransitionReplay, transition_batch
from mpn_rl.networks.action_heads import BoundedHead
from mpn_rl.networks.baseline_cores import MLPCore, RecurrentCore
from mpn_rl.rollout import evaluate
from mpn_rl.training import Run
from trial_replay import SequenceReplayBuffer

QUIET = {"policy_noise": 0.0, "expl_noise": 0.0, "learning_starts": 0}


def make_learner(obs_dim: int = 3, action_dim: int = 2, hidden_dim: int = 8, core: Any = None, **options) -> TD3Learner:
    torch.manual_seed(0)
    low, high = -np.arange(1.0, action_dim + 1), np.arange(2.0, action_dim + 2)
    core = core or MLPCore(obs_dim, hidden_dim, 2, "relu")
    actor = Actor(obs_dim, hidden_dim, action_dim, core=core, low=low, high=high)
    return TD3Learner(actor, cfg.TD3Config(**options), seed=0)


def make_batch(rows: int = 16, obs_dim: int = 3, action_dim: int = 2, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return transition_batch(
        torch.randn(rows, 2, obs_dim, generator=random),
        torch.rand(rows, 1, action_dim, generator=random),
        torch.randn(rows, 1, generator=random),
        (torch.rand(rows, 1, generator=random) < 0.2).float(),
    )


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: part.detach().clone() for name, part in network.named_parameters()}


def moved(network: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(part, before[name]) for name, part in network.named_parameters())


# --- the loss by hand ---------------------------------------------------------------------------------------


def counting_learner(**options) -> TD3Learner:
    """pi = 0 in [-1, 1], Q_1 = 10 + s + a, Q_2 = 20 - s + a, the same in the targets; for s in [-20, 20]."""
    core = MLPCore(1, 1, 1, "relu")
    actor = Actor(1, 1, 1, core=core, low=[-1.0], high=[1.0])
    nn.init.zeros_(actor.head.weight)
    nn.init.zeros_(actor.head.bias)
    learner = TD3Learner(actor, cfg.TD3Config(gamma=0.5, critic_layers=1, **{**QUIET, **options}), seed=0)
    for critic in (learner.critic, learner.targets["critic"]):
        for network, slope, at_zero in ((critic.q1, 1.0, 10.0), (critic.q2, -1.0, 20.0)):
            with torch.no_grad():
                network[0].weight.copy_(torch.tensor([[slope, 1.0]]))
                network[0].bias.fill_(50.0)  # so that the ReLU passes it through
                network[2].weight.fill_(1.0)
                network[2].bias.fill_(at_zero - 50.0)
    return learner


def counting_batch() -> Batch:
    """s = 0 -> s' = 2, 5, 8; actions 0; rewards 1, 2, 3; the second terminates."""
    obs = torch.tensor([[0.0, 2.0], [0.0, 5.0], [0.0, 8.0]])[..., None]
    reward, terminated = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [1.0], [0.0]])
    return transition_batch(obs, torch.zeros(3, 1, 1), reward, terminated)


def test_targets_take_the_smaller_value_and_stop_where_the_task_ended() -> None:
    """min(12, 18), -, min(18, 12): 1 + 0.5 * 12, 2, 3 + 0.5 * 12. A time limit is no termination."""
    targets = counting_learner()._targets(counting_batch())
    assert targets.tolist() == [[7.0], [2.0], [9.0]]


def test_targets_come_from_the_target_networks() -> None:
    learner = counting_learner()
    with torch.no_grad():
        learner.critic.q1[2].bias.fill_(-1000.0)
        learner.online.head.bias.fill_(3.0)
    assert learner._targets(counting_batch()).tolist() == [[7.0], [2.0], [9.0]]


def test_loss_is_the_squared_error_of_both_critics() -> None:
    """Q_1 = 10 and Q_2 = 20 at s = 0, a = 0 against 7, 2, 9."""
    loss = counting_learner().update(counting_batch())["loss"]
    assert float(loss) == pytest.approx((3**2 + 8**2 + 1**2 + 13**2 + 18**2 + 11**2) / 3)


def test_importance_weights_multiply_the_rows_of_the_loss() -> None:
    batch = counting_batch()._replace(weight=torch.tensor([1.0, 0.5, 0.0]))
    learner = counting_learner(prioritized=True)
    loss = learner.update(batch)["loss"]
    assert float(loss) == pytest.approx((3**2 + 13**2 + 0.5 * (8**2 + 18**2)) / 3)
    assert learner.priorities.tolist() == pytest.approx([13.0, 18.0, 11.0])


def test_smoothing_noise_is_clipped_and_stays_within_the_bounds() -> None:
    """Q rises with a', so the target moves with the noise: by at most 0.5 * noise_clip, here halved by gamma."""
    learner = counting_learner(policy_noise=100.0, noise_clip=0.3)
    batch = transition_batch(
        torch.zeros(4000, 2, 1), torch.zeros(4000, 1, 1), torch.zeros(4000, 1), torch.zeros(4000, 1)
    )
    smoothed = learner._targets(batch) - 0.5 * 10.0
    assert [float(smoothed.min()), float(smoothed.max())] == pytest.approx([-0.15, 0.15], rel=1e-4)
    with torch.no_grad():
        learner.targets["actor"].head.bias.fill_(100.0)  # pi' = 1, the upper bound
    smoothed = learner._targets(batch) - 0.5 * 10.0
    assert [float(smoothed.min()), float(smoothed.max())] == pytest.approx([0.35, 0.5], rel=1e-4)


def test_noise_is_measured_in_halves_of_each_range() -> None:
    head = BoundedHead(4, [-1.0, 0.0], [1.0, 20.0])
    start = torch.tensor([[0.0, 10.0]]).repeat(20_000, 1)
    noisy = head.disturbed(start, 0.1, torch.Generator().manual_seed(0))
    assert (noisy - start).std(0).tolist() == pytest.approx([0.1, 1.0], rel=0.03)
    clipped = head.disturbed(start, 5.0, torch.Generator().manual_seed(0), clip=0.5)
    assert (clipped - start).abs().amax(0).tolist() == [0.5, 5.0]
    wild = head.disturbed(start, 100.0, torch.Generator().manual_seed(0))
    assert wild.amin(0).tolist() == [-1.0, 0.0] and wild.amax(0).tolist() == [1.0, 20.0]


def test_n_step_returns_reach_over_the_replayed_steps() -> None:
    """s = 0, 1, 2, 3 with rewards 1, 1, 1: from s = 0 after two steps 1 + 0.5 + 0.25 * min(12, 18) = 4.5."""
    learner = counting_learner(n_step=2)
    replay = TransitionReplay(1, 1, 1, 10)
    for t in range(3):
        at, no = np.full((1, 1), t, np.float32), np.zeros(1, bool)
        replay.add(Steps(at, np.zeros((1, 1)), np.ones(1), no, no, at + 1, no))
    batch = replay.sample(50, np.random.default_rng(0), 2, 0.5)
    targets = learner._targets(batch)[:, 0]
    assert set(targets[batch.obs[:, 0, 0] == 0].tolist()) == {4.5}
    assert set(targets[batch.obs[:, 0, 0] == 2].tolist()) == {1 + 0.5 * 13}  # nothing newer: one step


def test_n_step_returns_begin_after_their_delay() -> None:
    learner = make_learner(n_step=3, n_step_delay=2, batch_size=4)
    seen = []
    replay, rng = filled_replay(), np.random.default_rng(0)
    sample = replay.sample
    replay.sample = lambda *given: (seen.append(given[2]), sample(*given))[1]  # type: ignore[method-assign]
    for _ in range(4):
        learner.learn(replay, rng)
    assert seen == [1, 1, 3, 3] and learner.status() == {"learning_rate": 3e-4, "n_step": 3}


# --- gradients ----------------------------------------------------------------------------------------------


def test_the_actor_climbs_the_first_critic_alone() -> None:
    learner, batch = make_learner(), make_batch()
    obs = batch.obs[:, 0]
    actor, critic = copy.deepcopy(learner.online), copy.deepcopy(learner.critic)
    (-critic.q1(torch.cat([obs, actor(obs, batch.state0)[0]], -1)).mean()).backward()
    learner._learn_actor(batch)
    for ours, slow in zip(learner.online.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, slow.grad)


def test_the_actors_update_leaves_the_critics_gradients_alone() -> None:
    learner, batch = make_learner(), make_batch()
    learner._learn_critics(batch)
    before = [part.grad.clone() for part in learner.critic.parameters()]
    learner._learn_actor(batch)
    assert all(torch.equal(part.grad, old) for part, old in zip(learner.critic.parameters(), before, strict=True))


def test_actor_and_targets_move_every_policy_freq_updates_only() -> None:
    learner, batch = make_learner(policy_freq=3, target_tau=0.25), make_batch()
    networks = {"actor": learner.online, "critic": learner.critic}
    for update in range(1, 7):
        before = {name: weights(network) for name, network in networks.items()}
        targets = {name: weights(network) for name, network in learner.targets.items()}
        values = learner.update(batch)
        assert moved(learner.critic, before["critic"])
        assert moved(learner.online, before["actor"]) == (update % 3 == 0) == ("actor_loss" in values)
        for name, target in learner.targets.items():
            for key, part in target.named_parameters():
                follows = 0.75 * targets[name][key] + 0.25 * weights(networks[name])[key]
                torch.testing.assert_close(part.detach(), follows if update % 3 == 0 else targets[name][key])


def test_gradients_are_clipped_where_asked() -> None:
    learner = make_learner(grad_clip=1e-3)
    learner._learn_critics(make_batch())
    norm = torch.stack([part.grad.norm() for part in learner.critic.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


# --- acting -------------------------------------------------------------------------------------------------


def test_actions_are_random_within_the_bounds_until_learning_starts() -> None:
    learner = make_learner(learning_starts=1000, expl_noise=0.0)
    state = learner.online.init_state(500)
    obs = torch.zeros(500, 3)
    first, second, after = (learner.act(obs, state, explore=True)[0] for _ in range(3))
    drawn = torch.cat([first, second])
    assert drawn.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    assert drawn.std(0).tolist() == pytest.approx([3 / 12**0.5, 5 / 12**0.5], rel=0.05)
    assert (drawn >= torch.tensor([-1.0, -2.0])).all() and (drawn <= torch.tensor([2.0, 3.0])).all()
    assert torch.equal(after, learner.online.select_action(obs, state)[0])


def test_evaluation_has_no_noise() -> None:
    learner = make_learner(learning_starts=0, expl_noise=1.0)
    obs, state = torch.randn(50, 3), learner.online.init_state(50)
    greedy = learner.online.select_action(obs, state)[0]
    before = learner.generator.get_state()
    assert torch.equal(learner.act(obs, state, explore=False)[0], greedy)
    assert torch.equal(learner.generator.get_state(), before)
    assert not torch.equal(learner.act(obs, state, explore=True)[0], greedy)


def test_the_networks_actions_are_what_its_head_gives() -> None:
    actor = make_learner().online
    obs, state = torch.randn(7, 3), actor.init_state(7)
    h, _ = actor.features(obs, state)
    low, high = torch.tensor([-1.0, -2.0]), torch.tensor([2.0, 3.0])
    by_hand = low + (high - low) * (torch.tanh(h @ actor.head.weight.T + actor.head.bias) + 1) / 2
    torch.testing.assert_close(actor.head(h), by_hand)
    assert torch.equal(actor.choose(actor.head(h)), actor.select_action(obs, state)[0])
    every = actor.choose(actor.head(h), 1.0, torch.Generator().manual_seed(0))
    assert not torch.equal(every, actor.head(h)) and (every >= low).all() and (every <= high).all()
    half = actor.choose(actor.head(h).repeat(300, 1), 0.5, torch.Generator().manual_seed(0))
    assert (half == actor.head(h).repeat(300, 1)).all(1).float().mean() == pytest.approx(0.5, abs=0.05)


def test_the_running_average_is_what_is_evaluated() -> None:
    """After three updates of the actor, these weigh 0.75^2, 0.75 and 1 over their sum; the start weighs nothing."""
    learner, batch = make_learner(eval_average=True, average_tau=0.25), make_batch()
    seen = []
    for _ in range(3):
        learner.update(batch)
        learner.update(batch)  # the actor learns at every second update
        seen.append(weights(learner.online))
    for name, part in learner.policy.named_parameters():
        by_hand = (0.5625 * seen[0][name] + 0.75 * seen[1][name] + seen[2][name]) / 2.3125
        torch.testing.assert_close(part.detach(), by_hand)
    obs, state = torch.randn(5, 3), learner.online.init_state(5)
    assert torch.equal(learner.act(obs, state, explore=False)[0], learner.average.select_action(obs, state)[0])
    assert make_learner().policy is not make_learner().average and make_learner().average is None


# --- critics ------------------------------------------------------------------------------------------------


def test_critics_have_the_layers_and_norms_that_are_asked_for() -> None:
    def kinds(*options: Any) -> list[str]:
        return [type(part).__name__ for part in value_network(5, 7, *options)]

    assert kinds(2, "none") == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert kinds(3, "last") == ["Linear", "ReLU", "Linear", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    assert kinds(2, "all") == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    learner = make_learner(critic_layers=3, critic_layer_norm="last")
    shapes = [tuple(part.weight.shape) for part in learner.critic.q2 if isinstance(part, nn.Linear)]
    assert shapes == [(8, 5), (8, 8), (8, 8), (1, 8)]
    assert not torch.equal(learner.critic.q1[0].weight, learner.critic.q2[0].weight)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_a_linear_layer_is_the_same_through_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = Linear(200, 200), torch.randn(40, 5, 200, requires_grad=True)
    results = []
    for onednn in (False, True):
        monkeypatch.setattr(linear, "onednn_is_faster", lambda onednn=onednn: onednn)
        layer.zero_grad()
        x.grad = None
        layer(x).square().sum().backward()
        results.append([layer(x).detach(), x.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()])
    assert x.numel() * 200 >= linear.WORTH_IT
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


# --- old transitions ----------------------------------------------------------------------------------------


def filled_replay(count: int = 200, action: float | None = None, capacity: int = 1000) -> TransitionReplay:
    replay, rng, no = TransitionReplay(1, 3, 2, capacity), np.random.default_rng(0), np.zeros(1, bool)
    for t in range(count):
        obs = np.full((1, 3), t, np.float32)
        taken = rng.uniform(-1, 1, (1, 2)) if action is None else np.full((1, 2), action)
        replay.add(Steps(obs, taken, np.zeros(1), no, no, obs, no))
    return replay


def constant_learner(**options) -> TD3Learner:
    """pi = the middle of the range, (0.5, 0.5), and hardly moving; half ranges 1.5 and 2.5."""
    learner = make_learner(learning_rate=1e-12, **options)
    for part in (learner.online.head.weight, learner.online.head.bias):
        nn.init.zeros_(part)
    return learner


def test_the_buffer_drops_its_oldest_tenth_where_the_policy_has_left_it() -> None:
    """Actions at -1 lie 1.5 from 0.5: d = (1 + 0.36) / 4 = 0.34."""
    options = {"dynamic_buffer": True, "buffer_size": 1000, "buffer_adjustment_interval": 50, "batch_size": 4}
    for threshold, left in ((0.33, 180), (0.35, 200)):
        learner, replay = constant_learner(**options, buffer_threshold=threshold), filled_replay(action=-1.0)
        for _ in range(3):  # looks once, as no step was added
            learner.learn(replay, np.random.default_rng(0))
        assert len(replay) == left
        status = learner.status()
        assert status["buffer_size"] == left and status["buffer_distance"] == pytest.approx(0.34)
    learner, replay = constant_learner(**options), filled_replay(action=0.5)
    learner.learn(replay, np.random.default_rng(0))
    assert learner.buffer_distance == pytest.approx(0.0, abs=1e-9) and len(replay) == 200


def test_the_buffer_never_falls_below_its_smallest_size() -> None:
    options = {"dynamic_buffer": True, "buffer_size": 1000, "buffer_adjustment_interval": 1, "batch_size": 4}
    learner, replay = constant_learner(**options, buffer_min_size=150), filled_replay(action=-1.0)
    sizes = []
    no = np.zeros(1, bool)
    for _ in range(6):
        learner.learn(replay, np.random.default_rng(0))
        sizes.append(len(replay))
        replay.add(Steps(np.zeros((1, 3)), np.full((1, 2), -1.0), np.zeros(1), no, no, np.zeros((1, 3)), no))
    assert sizes == [180, 163, 150, 150, 150, 150]


def test_early_transitions_come_back_more_often_the_fewer_units_are_active() -> None:
    learner = make_learner(experience_review=True, review_below=0.4, review_chance=0.5, batch_size=8)
    for active, chance in ((1.0, 0.0), (0.4, 0.0), (0.2, 0.25), (0.0, 0.5)):
        learner.active = active
        assert learner.review_chance == pytest.approx(chance)
    replay, rng = filled_replay(), np.random.default_rng(0)
    shares = []
    sample = replay.sample
    replay.sample = lambda *given: (shares.append(given[4]), sample(*given))[1]  # type: ignore[method-assign]
    for _ in range(99):
        learner.learn(replay, rng)
    assert set(shares) == {0.3, 1.0} and 30 < shares.count(0.3) < 70
    learner.learn(replay, rng)  # the hundredth update looks at the critics
    every = replay.oldest(200)
    x = torch.cat([every.obs[:, 0], every.action[:, 0]], -1)
    networks = learner.critic.q1, learner.critic.q2
    active = [float((network[: 2 * layer](x) > 0).float().mean()) for network in networks for layer in (1, 2)]
    assert learner.active == pytest.approx(sum(active) / 4, abs=0.1)  # it looked at eight of them
    status = learner.status()
    assert (status["critic_active"], status["review_chance"]) == (learner.active, learner.review_chance)


# --- memory -------------------------------------------------------------------------------------------------


def sequence_batch(rows: int = 4, steps: int = 9, burn_in: int = 2, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    reset = torch.rand(rows, steps + 1, generator=random) < 0.1
    mask = (torch.arange(steps)[None] >= burn_in).float().repeat(rows, 1)
    mask[1, -2:] = 0.0
    return Batch(
        obs=torch.randn(rows, steps + 1, 3, generator=random),
        reset=reset,
        action=torch.rand(rows, steps, 2, generator=random),
        reward=torch.randn(rows, steps, generator=random),
        terminated=torch.zeros(rows, steps),
        mask=mask,
        state0=torch.randn(rows, 1, 8, generator=random),
        burn_in=burn_in,
        weight=torch.ones(rows),
        places=np.arange(rows),
    )


def stepped(network: Any, batch: Batch, state: Tensor, cuts: set[int]) -> Tensor:
    """What a recurrent network makes of every observation, step by step: z or actions (B, T+1, .)."""
    outputs = []
    for t in range(batch.obs.shape[1]):
        state = torch.where(batch.reset[:, t, None, None], torch.zeros_like(state), state)
        h, state = network.core(network.encoder(batch.obs[:, t]), state.detach() if t in cuts else state)
        outputs.append(network.head(h) if hasattr(network, "head") else h)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("chunk", [None, 3])
def test_sequences_are_learned_as_a_loop_over_steps_would(chunk: int | None) -> None:
    """The actor from its stored state, the critics from zero; burn-in, resets, padding, truncated BPTT, two steps."""
    options = {"policy_noise": 0.0, "gamma": 0.7, "n_step": 2, "bptt_chunk_size": chunk}
    learner, batch = make_learner(core=RecurrentCore("gru", 3, 8), **options), sequence_batch()
    burn, steps, zero = 2, 9, torch.zeros(4, 1, 8)
    cuts = {2} if chunk is None else {2, 5, 8}
    with torch.no_grad():
        later = learner.targets["actor"], learner.targets["critic"]
        values = later[1](stepped(later[1], batch, zero, set()), stepped(later[0], batch, batch.state0, set())).amin(0)
    critic, loss = copy.deepcopy(learner.critic), torch.zeros(())
    q = critic(stepped(critic, batch, zero, cuts)[:, :-1], batch.action)
    for b in range(4):
        for t in range(burn, steps):
            if batch.mask[b, t]:
                goal = batch.reward[b, t] + 0.7 * values[b, t + 1]
                if t + 1 < steps and batch.mask[b, t + 1]:
                    goal = batch.reward[b, t] + 0.7 * (batch.reward[b, t + 1] + 0.7 * values[b, t + 2])
                loss = loss + (q[:, b, t] - goal).square().sum()
    loss = loss / batch.mask.sum()
    loss.backward()
    torch.testing.assert_close(learner._learn_critics(batch)["loss"], loss.detach())
    for ours, slow in zip(learner.critic.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, slow.grad, rtol=1e-4, atol=1e-6)
    actor = copy.deepcopy(learner.online)
    z = stepped(learner.critic, batch, zero, set())[:, burn:-1].detach()
    actions = stepped(actor, batch, batch.state0, cuts)[:, burn:-1]
    mask = batch.mask[:, burn:]
    (-(learner.critic.first(z, actions) * mask).sum() / mask.sum()).backward()
    learner._learn_actor(batch)
    for ours, slow in zip(learner.online.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, slow.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("core", cfg.choices("core"))
def test_every_core_learns_from_its_replay(core: str) -> None:
    flags = {"learner": "td3", "core": core, "hidden_dim": 16, "batch_size": 4, "learning_starts": 60}
    run = make_run(flags | {"total_steps": 150, "eval_freq": 0})
    expected = TransitionReplay if core == "mlp" else SequenceReplayBuffer
    assert type(run.replay) is expected
    before = {name: weights(network) for name, network in run.learner.networks.items()}
    rows = 0
    while run.step < 100:
        rows += len(run.advance())
    for name, network in run.learner.networks.items():
        for key, part in network.named_parameters():
            if part.requires_grad and (part.grad is None or part.grad.abs().max() > 0):
                assert part.grad is not None, f"{name} {key} gets no gradient"
                assert not torch.equal(part, before[name][key]), f"{name} {key} does not learn"


# --- saving and options -------------------------------------------------------------------------------------


class Memo(Experiment):
    """An experiment that writes nothing."""

    def append_metrics(self, row: dict[str, Any]) -> None:
        pass


def make_run(flags: dict[str, Any], file: dict[str, Any] | None = None) -> Run:
    run = Run(cfg.make_config("train", {"eval_episodes": 2, "checkpoint_freq": 0, **flags}, file))
    run.start(Memo("none"))
    run.save_at = math.inf  # the experiment has no folder
    return run


def same(one: Any, other: Any) -> bool:
    """Equal in every bit, through dicts and lists of arrays and tensors."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (Tensor, np.ndarray)):
        return np.array_equal(one, other)
    return one == other


OF_A_DYNAMIC_BUFFER = {"buffer_adjustment_interval", "buffer_threshold", "buffer_min_size"}
EVERYTHING = {
    "learner": "td3",
    "n_step": 3,
    "n_step_delay": 30,
    "critic_layers": 3,
    "critic_layer_norm": "last",
    "eval_average": True,
    "experience_review": True,
    "dynamic_buffer": True,
    "buffer_adjustment_interval": 40,
    "buffer_threshold": 0.0,
    "buffer_size": 250,
    "buffer_min_size": 20,
    "batch_size": 16,
    "hidden_dim": 32,
    "learning_starts": 50,
    "num_envs": 3,
    "eval_freq": 150,
}


@pytest.mark.parametrize(("core", "at"), [("mlp", 30), ("mlp", 201), ("gru", 180)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(core: str, at: int, tmp_path: Path) -> None:
    flags = {**EVERYTHING, "core": core, "total_steps": 450, "plot_training": False}
    if core == "gru":
        flags = {name: value for name, value in flags.items() if name not in OF_A_DYNAMIC_BUFFER}
        flags |= {"experience_review": False, "dynamic_buffer": False, "batch_size": 4, "update_every": 9}
    config = cfg.make_config("train", {"eval_episodes": 2, "checkpoint_freq": 0, **flags})
    finals = []
    for name, stop in (("whole", None), ("parts", at)):
        run = Run(config)
        run.start(Experiment.create(name, tmp_path, config.to_dict()))
        while not run.done:
            if stop is not None and run.step >= stop:
                run.save()
                run, stop = Run.resume(config, Experiment.open(name, tmp_path)), None
            run.advance()
        run.finish()
        finals.append(run)
    whole, parts = finals
    for part in ("learner", "replay", "lanes"):
        assert same(getattr(whole, part).state_dict(), getattr(parts, part).state_dict()), part
    assert whole.experiment.metrics_path.read_text() == parts.experiment.metrics_path.read_text()
    evaluated = parts.learner.policy
    assert evaluated is parts.learner.average
    saved = torch.load(parts.experiment.checkpoint("final"), weights_only=True)["network"]
    assert all(torch.equal(saved[name], part) for name, part in evaluated.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--buffer-min-size", "2000", "--buffer-size", "1000"],
            "--buffer-min-size must not exceed --buffer-size = 1000",
        ),
        (["--dynamic-buffer", "--buffer-adjustment-interval", "30000"], "must not exceed --total-steps = 20000"),
        (["--dynamic-buffer", "--core", "gru"], "--dynamic-buffer works on single transitions"),
        (["--experience-review", "--prioritized"], "--experience-review works on single transitions"),
        (["--n-step", "3", "--prioritized"], "--n-step sums rewards along sequences"),
        (["--env-name", "CartPole-v1"], "td3 needs a vector, Box"),
        (["--policy-freq", "0"], "--policy-freq must be at least 1"),
        (["--noise-clip", "-1"], "--noise-clip must be at least 0"),
        (["--critic-layer-norm", "first"], "invalid choice: 'first'"),
        (["--review-below", "0"], "--review-below must lie in (0.0, 1.0]"),
        (["--buffer-size", "1000000000000"], "the replay buffer"),
    ],
)
def test_a_bad_value_gives_one_line(flags: list[str], message: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        raise SystemExit(main.main(["train", "--algo", "td3", "--experiments-dir", str(tmp_path), *flags]))
    message_line = capsys.readouterr().err
    assert left.value.code == 2 and message in message_line and message_line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_learners_are_sent_away_from_continuous_actions(tmp_path: Path, capsys) -> None:
    arguments = ["train", "--algo", "dqn", "--env-name", "Pendulum-v1", "--experiments-dir", str(tmp_path)]
    assert main.main(arguments) == 2
    assert "take --algo a2c or ppo or td3" in capsys.readouterr().err


def test_defaults_are_those_of_the_paper_with_an_mlp_and_of_sequences_with_a_memory() -> None:
    mlp = cfg.make_config("train", {"learner": "td3"})
    assert (mlp.env.env_name, mlp.core.name, mlp.core.hidden_dim, mlp.core.num_layers) == ("Pendulum-v1", "mlp", 256, 2)
    assert (mlp.core.activation, mlp.encoder.embed_dim, mlp.learner.replay) == ("relu", 0, "transition")
    published = {"gamma": 0.99, "target_tau": 0.005, "policy_noise": 0.2, "noise_clip": 0.5, "policy_freq": 2}
    published |= {"learning_rate": 1e-3, "batch_size": 256, "expl_noise": 0.1, "buffer_size": 1_000_000}
    assert {name: getattr(mlp.learner, name) for name in published} == published
    gru = cfg.make_config("train", {"learner": "td3", "core": "gru"})
    assert (gru.core.hidden_dim, gru.encoder.embed_dim, gru.learner.replay) == (128, 32, "sequence")


# --- the published class ------------------------------------------------------------------------------------


def test_the_published_class_works_as_written() -> None:
    policy = TD3(3, 2, 5.0, discount=0.9, tau=0.01, policy_noise=1.0, noise_clip=2.5, policy_freq=3)
    config = policy.learner.config
    assert (config.gamma, config.target_tau, config.policy_freq) == (0.9, 0.01, 3)
    assert (config.policy_noise, config.noise_clip) == (0.2, 0.5)  # of max_action
    action = policy.select_action(np.array([0.1, 0.2, 0.3]))
    assert action.shape == (2,) and action.dtype == np.float32 and np.abs(action).max() < 5.0
    before = weights(policy.critic)
    assert torch.isfinite(policy.train(filled_replay(), 32)["loss"])
    assert moved(policy.critic, before)


def test_the_published_class_takes_the_published_memory() -> None:
    """sample(batch_size) -> state, action, next_state, reward, not_done."""

    class Memory:
        def sample(self, batch_size: int) -> tuple[Tensor, ...]:
            batch = make_batch(batch_size)
            return batch.obs[:, 0], batch.action[:, 0], batch.obs[:, 1], batch.reward, 1.0 - batch.terminated

    ours, theirs = TD3(3, 2, 1.0), TD3(3, 2, 1.0)
    theirs.learner.load_state_dict(copy.deepcopy(ours.learner.state_dict()))
    for _ in range(2):
        loss = theirs.train(Memory(), 16)["loss"]
        assert torch.equal(loss, ours.learner.update(make_batch(16))["loss"])


# --- learning -----------------------------------------------------------------------------------------------


def mean_return(run: Run, episodes: int = 5) -> float:
    env = registry.make_env(run.config.env)
    return float(evaluate(run.learner.policy, [env], list(range(episodes))).returns.mean())


def test_pendulum_is_learned() -> None:
    """Random play earns about -1200, an upright pendulum -150."""
    fast = {"hidden_dim": 64, "batch_size": 64, "learning_rate": 1e-3, "learning_starts": 500, "policy_freq": 1}
    run = make_run({"learner": "td3", "total_steps": 6_000, "eval_freq": 0, "gamma": 0.95, **fast})
    while not run.done:
        run.advance()
    assert mean_return(run) > -600


def test_halfcheetah_trains() -> None:
    pytest.importorskip("mujoco", reason="HalfCheetah-v4 needs the extra: pip install -e '.[mujoco]'")
    flags = {"learner": "td3", "env_name": "HalfCheetah-v4", "learning_starts": 200, "total_steps": 1_200}
    run = make_run({**flags, "hidden_dim": 32, "batch_size": 32, "eval_freq": 0})
    while not run.done:
        run.advance()
    assert run.episodes == 1 and run.learner.updates == 1_001
    assert np.isfinite(mean_return(run, 1))


CONFIGS = Path(__file__).parents[2] / "configs"


def configured(name: str) -> cfg.Config:
    return cfg.make_config("train", {}, cfg.read_config_file(str(CONFIGS / f"td3_{name}.json")))


def test_the_published_example_is_a_config() -> None:
    """--env HalfCheetah --seed 0 --static_actor --stl_critic --init_method lecun --actor_sparsity 0.25
    --critic_sparsity 0.25 --initial_stl_sparsity 0.8 --uni --grad_accumulation_n 1, and that program's defaults.
    """
    config = configured("published")
    expansion: Any = config.expansion
    asked = {"static_actor": True, "expand_critic": True, "new_weights": "lecun", "actor_sparsity": 0.25}
    asked |= {"critic_sparsity": 0.25, "initial_sparsity": 0.8, "schedule": "constant", "grad_accumulation_n": 1}
    asked |= {"grow": "gradient", "prune": "magnitude", "update_interval": 100, "layer_density": "erk"}
    assert config.expansion.name == "reference" and {name: getattr(expansion, name) for name in asked} == asked
    learner: Any = config.learner
    defaults = {"learning_starts": 25_000, "batch_size": 256, "gamma": 0.99, "target_tau": 0.005, "policy_freq": 2}
    defaults |= {"policy_noise": 0.2, "noise_clip": 0.5, "expl_noise": 0.1, "buffer_size": 1_000_000, "n_step": 1}
    defaults |= {"critic_layers": 3, "critic_layer_norm": "last", "dynamic_buffer": False, "learning_rate": 3e-4}
    assert {name: getattr(learner, name) for name in defaults} == defaults
    assert (config.env.env_name, config.run.seed, config.core.hidden_dim) == ("HalfCheetah-v4", 0, 256)
    assert (config.run.total_steps, config.run.eval_freq, config.run.eval_episodes) == (6_000_000, 5_000, 10)


@pytest.mark.parametrize("name", ["dense", "static", "rigl", "grow", "redo", "layernorm"])
def test_the_baselines_differ_from_dense_as_their_names_say(name: str) -> None:
    dense, config = configured("dense"), configured(name)
    changed = {part for part in cfg.PARTS if getattr(dense, part) != getattr(config, part)}
    assert changed == {"dense": set(), "layernorm": {"learner"}}.get(name, {"expansion"})
    assert config.expansion.name == {"dense": "none", "layernorm": "none"}.get(name, name)
    assert config.learner.critic_layer_norm == ("all" if name == "layernorm" else "none")
    assert config.env.env_name == "HalfCheetah-v4"


def test_each_option_reaches_the_learner() -> None:
    """No option of `TD3Config` is dead: each is read somewhere in the learner, its memory or the loop."""
    source = "".join(
        (Path(registry.__file__).parent / f"{name}.py").read_text()
        for name in ("learners/td3", "registry", "training", "learners/base")
    )
    for field in dataclasses.fields(cfg.TD3Config):
        name = "smallest_buffer" if field.name == "buffer_min_size" else field.name
        assert f".{name}" in source, name
