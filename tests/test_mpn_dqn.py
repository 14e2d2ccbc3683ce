"""The MPN-DQN: losses by hand on observations that count time, what gradients reach, and a task for a memory."""

from __future__ import annotations

import copy
import io
import itertools
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mpn_dqn
from mpn_dqn import MPNDQN, DQNLearner, Encoder, compute_td_loss_trial, epsilon_at
from mpn_module import MPN
from mpn_rl.config import DQNConfig
from mpn_rl.contracts import Batch, Steps, map_state, state_parts
from mpn_rl.networks.baseline_cores import MLPCore
from trial_replay import ReplayBuffer, SequenceReplayBuffer, TrialReplayBuffer


class Echo(nn.Module):
    """A core whose output is its input times a scale, and whose state counts the steps since the last reset."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden_dim = dim
        self.scale = nn.Parameter(torch.ones(dim))

    def init_state(self, batch_size: int, device=None) -> torch.Tensor:
        return torch.zeros(batch_size, 1, device=device)

    def forward(self, x: torch.Tensor, state: torch.Tensor):
        return self.scale * x, state + 1

    def unroll(self, xs: torch.Tensor, state: torch.Tensor, reset: torch.Tensor | None = None):
        return self.scale * xs, state + xs.shape[1]


def echo_network(actions: int = 2) -> MPNDQN:
    """Q(s, .) = obs."""
    network = MPNDQN(actions, actions, actions, encoder=Encoder(actions, 0, False), core=Echo(actions))
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(actions))
        network.head.bias.zero_()
    return network


def make_batch(obs: torch.Tensor, **given) -> Batch:
    """A batch around obs (B, T+1, D): action 0, no reward, nothing terminated, all recorded."""
    rows, steps = obs.shape[0], obs.shape[1] - 1
    fields = {
        "obs": obs,
        "reset": torch.zeros(rows, steps + 1, dtype=torch.bool),
        "action": torch.zeros(rows, steps, dtype=torch.int64),
        "reward": torch.zeros(rows, steps),
        "terminated": torch.zeros(rows, steps),
        "mask": torch.ones(rows, steps),
        "state0": torch.zeros(rows, 1),
        "burn_in": 0,
        "weight": torch.ones(rows),
        "places": np.arange(rows),
    }
    return Batch(**(fields | given))


def plastic_network(seed: int = 0, **options) -> MPNDQN:
    """A small MPN-DQN in float64 whose eta, lambda and M(0) are trained and matter."""
    torch.manual_seed(seed)
    core = MPN(4, 5, train_m0=True, kernel="reference", **options)
    network = MPNDQN(3, 5, 2, encoder=Encoder(3, 4, False), core=core).double()
    with torch.no_grad():
        for layer in core.layers:
            layer.m0.normal_(std=0.5)
    return network


def plastic_batch(network: MPNDQN, rows: int = 3, steps: int = 12, seed: int = 1, **given) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    state0 = [0.3 * torch.randn(p.shape, generator=generator).double() for p in state_parts(network.init_state(rows))]
    random = {
        "reset": torch.rand(rows, steps + 1, generator=generator) < 0.15,
        "action": torch.randint(2, (rows, steps), generator=generator),
        "reward": torch.randn(rows, steps, generator=generator).double(),
        "terminated": torch.zeros(rows, steps).double(),
        "mask": torch.ones(rows, steps).double(),
        "weight": torch.ones(rows).double(),
        "state0": tuple(state0) if len(state0) > 1 else state0[0],
    }
    return make_batch(torch.randn(rows, steps + 1, 3, generator=generator).double(), **(random | given))


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    """Of every parameter; zeros where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}


def loss_and_gradients(online: MPNDQN, target: MPNDQN, batch: Batch, config: DQNConfig):
    online.zero_grad()
    loss, errors = compute_td_loss_trial(online, target, batch, config)
    return loss, errors, gradients(online)


def assert_gradients_close(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-9, atol=1e-12, msg=name)


# --- the loss by hand, on observations that count time -------------------------------------------------------

PLAIN = DQNConfig(gamma=0.5, loss="mse", double_dqn=False)


def time_batch(steps: int = 4, **given) -> Batch:
    """obs = (t, 10 t), so Q'(s_{t+1}) is at most 10 (t + 1); action 0, so Q(s_t, a_t) = t."""
    time = torch.arange(steps + 1.0)
    return make_batch(torch.stack([time, 10 * time], -1)[None], **given)


@pytest.mark.parametrize("chunk", [None, 1, 3, 4])
def test_target_is_not_shifted_by_a_step(chunk: int | None) -> None:
    """Targets 0.5 * 10 (t + 1) = 5, 10, 15, 20 for Q = 0, 1, 2, 3: errors 5, 9, 13, 17."""
    config = DQNConfig(gamma=0.5, loss="mse", double_dqn=False, bptt_chunk_size=chunk)
    loss, errors = compute_td_loss_trial(echo_network(), echo_network(), time_batch(), config)
    assert errors.tolist() == [[5, 9, 13, 17]]
    assert float(loss) == pytest.approx(0.5 * (25 + 81 + 169 + 289) / 4)


def test_reward_belongs_to_its_own_step() -> None:
    batch = time_batch(reward=torch.tensor([[0.0, 0.0, 100.0, 0.0]]))
    _, errors = compute_td_loss_trial(echo_network(), echo_network(), batch, PLAIN)
    assert errors.tolist() == [[5, 9, 113, 17]]


def test_termination_stops_bootstrapping_and_a_time_limit_does_not() -> None:
    """The last error is |0 - 3| where the task ended, |20 - 3| where only the time was up."""
    for terminated, last in ((1.0, 3.0), (0.0, 17.0)):
        batch = time_batch(terminated=torch.tensor([[0.0, 0.0, 0.0, terminated]]))
        _, errors = compute_td_loss_trial(echo_network(), echo_network(), batch, PLAIN)
        assert errors[0, -1] == last


def test_double_dqn_lets_the_online_network_choose() -> None:
    """The online one prefers action 0, whose target value is t + 1: targets 0.5, 1, 1.5, 2."""
    online = echo_network()
    with torch.no_grad():
        online.head.bias.copy_(torch.tensor([0.0, -1e6]))
    config = DQNConfig(gamma=0.5, loss="mse", double_dqn=True)
    for chunk in (None, 2):
        config = DQNConfig(gamma=0.5, loss="mse", double_dqn=True, bptt_chunk_size=chunk)
        _, errors = compute_td_loss_trial(online, echo_network(), time_batch(), config)
        assert errors.tolist() == [[0.5, 0.0, 0.5, 1.0]]


def test_bootstrap_value_comes_from_the_target_network() -> None:
    target = echo_network()
    with torch.no_grad():
        target.head.bias.fill_(100.0)
    _, errors = compute_td_loss_trial(echo_network(), target, time_batch(), PLAIN)
    assert errors.tolist() == [[55, 59, 63, 67]]


def test_n_step_returns_reach_over_the_sequence() -> None:
    """r_t + 0.5 r_{t+1} + 0.25 * 10 (t + 2), the last by one step: 1.5 + 5, 1.5 + 7.5, 1.5 + 10, 1 + 20."""
    config = DQNConfig(gamma=0.5, loss="mse", double_dqn=False, n_step=2)
    batch = time_batch(reward=torch.ones(1, 4))
    for burn_in in (0, 1):
        _, errors = compute_td_loss_trial(echo_network(), echo_network(), batch._replace(burn_in=burn_in), config)
        assert errors.tolist() == [[6.5, 8.0, 9.5, 18.0][burn_in:]]


def test_the_action_taken_is_the_one_that_learns() -> None:
    network = echo_network()
    compute_td_loss_trial(network, echo_network(), time_batch(action=torch.ones(1, 4, dtype=torch.int64)), PLAIN)
    assert network.head.bias.grad[0] == 0.0 and network.head.bias.grad[1] != 0.0


def test_loss_is_the_mean_over_learned_steps() -> None:
    """Padding in front and behind counts for nothing, neither in the sum nor in the number of steps."""
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    for chunk in (None, 1, 2):
        config = DQNConfig(gamma=0.5, loss="mse", double_dqn=False, bptt_chunk_size=chunk)
        loss, errors = compute_td_loss_trial(echo_network(), echo_network(), time_batch(mask=mask), config)
        assert errors.tolist() == [[0, 9, 13, 0]]
        assert float(loss) == pytest.approx(0.5 * (81 + 169) / 2)


def test_importance_weights_scale_each_rows_loss() -> None:
    one = time_batch()
    two = make_batch(one.obs.repeat(2, 1, 1), weight=torch.tensor([1.0, 0.25]))
    loss, _ = compute_td_loss_trial(echo_network(), echo_network(), two, PLAIN)
    assert float(loss) == pytest.approx(0.5 * (25 + 81 + 169 + 289) * 1.25 / 8)


# --- what the gradient reaches -------------------------------------------------------------------------------


def reference_loss(online: MPNDQN, target: MPNDQN, batch: Batch, config: DQNConfig, cut_before=()) -> torch.Tensor:
    """The double-DQN loss by stepping through obs[0..T], the state cut from the graph before some steps."""
    burn, steps, rows = batch.burn_in, batch.action.shape[1], batch.obs.shape[0]

    def q_values(network: MPNDQN) -> torch.Tensor:
        state, qs = batch.state0, []
        for t in range(steps + 1):
            fresh = batch.reset[:, t, None, None]
            pairs = zip(state_parts(network.init_state(rows)), state_parts(state), strict=True)
            mixed = [torch.where(fresh, m0, m if t not in cut_before else m.detach()) for m0, m in pairs]
            q, state = network(batch.obs[:, t], tuple(mixed) if len(mixed) > 1 else mixed[0])
            qs.append(q)
            if t < burn:
                state = map_state(torch.Tensor.detach, state)
        return torch.stack(qs, 1)

    q = q_values(online)
    with torch.no_grad():
        q_target = q_values(target)
    total = torch.zeros((), dtype=q.dtype)
    for b, t in itertools.product(range(rows), range(burn, steps)):
        best = int(q[b, t + 1].argmax())
        goal = batch.reward[b, t] + config.gamma * (1 - batch.terminated[b, t]) * q_target[b, t + 1, best]
        error = q[b, t, batch.action[b, t]] - goal
        huber = 0.5 * error**2 if abs(error.item()) < 1 else error.abs() - 0.5
        total = total + batch.weight[b] * batch.mask[b, t] * huber
    return total / batch.mask[:, burn:].sum()


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    ("burn_in", "chunk"), [(0, None), (4, None), (0, 4), (4, 4), (0, 5), (3, 1), (0, 11), (0, 12), (4, 8)]
)
def test_loss_and_gradient_equal_a_loop_over_steps(burn_in: int, chunk: int | None, num_layers: int) -> None:
    """Full and truncated BPTT, resets to a trained M(0), burn-in and termination, against single steps."""
    online, target = plastic_network(0, num_layers=num_layers), plastic_network(1, num_layers=num_layers)
    target.requires_grad_(False)
    terminated = torch.zeros(3, 12).double()
    terminated[1, 9] = 1.0
    batch = plastic_batch(online, burn_in=burn_in, terminated=terminated, weight=torch.tensor([1.0, 0.5, 0.2]).double())
    config = DQNConfig(bptt_chunk_size=chunk)
    loss, _, got = loss_and_gradients(online, target, batch, config)
    cuts = range(burn_in + chunk, 12, chunk) if chunk else ()
    online.zero_grad()
    expected = reference_loss(online, target, batch, config, cuts)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
    assert_gradients_close(got, gradients(online))


@pytest.mark.parametrize("chunk", [12, 13, 1000])
def test_truncated_equals_full_when_the_chunk_is_at_least_the_trial(chunk: int) -> None:
    online, target = plastic_network(0), plastic_network(1)
    batch = plastic_batch(online)
    full = loss_and_gradients(online, target, batch, DQNConfig())
    cut = loss_and_gradients(online, target, batch, DQNConfig(bptt_chunk_size=chunk))
    assert torch.equal(full[0], cut[0]) and torch.equal(full[1], cut[1])
    assert_gradients_close(full[2], cut[2])


def test_truncation_stops_the_gradient_while_the_modulation_goes_on() -> None:
    """The loss is the same as without truncation; only what the gradient sees is shorter."""
    online, target = plastic_network(0), plastic_network(1)
    batch = plastic_batch(online, reset=torch.zeros(3, 13, dtype=torch.bool))
    full_loss, _, full = loss_and_gradients(online, target, batch, DQNConfig())
    for chunk in (1, 3, 6):
        loss, _, cut = loss_and_gradients(online, target, batch, DQNConfig(bptt_chunk_size=chunk))
        torch.testing.assert_close(loss, full_loss)
        assert not torch.allclose(cut["core.layers.0.weight"], full["core.layers.0.weight"], rtol=1e-3)
    # Chunks of one step: eta acts on no step of its own chunk.
    _, _, single = loss_and_gradients(online, target, batch, DQNConfig(bptt_chunk_size=1))
    assert not single["core.layers.0.eta"].any() and full["core.layers.0.eta"].any()


def test_burn_in_gives_no_loss_and_no_gradient() -> None:
    """What was taken and earned in the burn-in is not looked at, and its observations get no gradient."""
    online, target = plastic_network(0), plastic_network(1)
    batch = plastic_batch(online, burn_in=5, reset=torch.zeros(3, 13, dtype=torch.bool))
    batch.obs.requires_grad_()
    loss, errors, got = loss_and_gradients(online, target, batch, DQNConfig())
    assert errors.shape == (3, 7)
    assert not batch.obs.grad[:, :5].any() and batch.obs.grad[:, 5:12].any()
    other = batch._replace(action=batch.action.clone(), reward=batch.reward.clone())
    other.action[:, :5] = 1 - other.action[:, :5]
    other.reward[:, :5] += 100.0
    again, _, same = loss_and_gradients(online, target, other, DQNConfig())
    assert torch.equal(loss, again)
    assert_gradients_close(got, same)
    moved = batch._replace(obs=batch.obs.detach().clone())
    moved.obs[:, :5] += 1.0
    assert not torch.equal(loss, loss_and_gradients(online, target, moved, DQNConfig())[0])  # but they move the state


def test_the_last_observation_gets_no_gradient() -> None:
    """It only enters the target."""
    online, target = plastic_network(0), plastic_network(1)
    batch = plastic_batch(online)
    batch.obs.requires_grad_()
    loss_and_gradients(online, target, batch, DQNConfig())
    assert not batch.obs.grad[:, -1].any() and batch.obs.grad[:, -2].any()


def test_both_networks_start_from_the_same_state_and_reset_alike() -> None:
    """With equal networks and gamma 1, rewards that are the Q differences leave no error at all."""
    network = plastic_network(0)
    batch = plastic_batch(network)
    with torch.no_grad():
        q, _ = network.unroll(batch.obs, batch.state0, batch.reset)
    taken = q[:, :-1].gather(-1, batch.action[:, :, None])[:, :, 0]
    batch = batch._replace(reward=taken - q[:, 1:].amax(-1))
    target = copy.deepcopy(network).requires_grad_(False)
    for chunk in (None, 5):
        config = DQNConfig(gamma=1.0, bptt_chunk_size=chunk)
        _, errors = compute_td_loss_trial(network, target, batch, config)
        assert errors.max() < 1e-12


def test_m0_learns_only_where_a_sequence_starts_from_it() -> None:
    online, target = plastic_network(0), plastic_network(1)
    resets = torch.zeros(3, 13, dtype=torch.bool)
    for reset in (False, True):
        resets[1, 0] = reset
        _, _, got = loss_and_gradients(online, target, plastic_batch(online, reset=resets), DQNConfig())
        assert bool(got["core.layers.0.m0"].any()) is reset


def saved_bytes_at_peak(steps: int, chunk: int | None) -> int:
    """The most bytes that autograd held for the backward pass at any one time."""

    class Held:
        live, peak = 0, 0

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            Held.live += self.size
            Held.peak = max(Held.peak, Held.live)

        def __del__(self) -> None:
            Held.live -= self.size

    online, target = plastic_network(0), plastic_network(1).requires_grad_(False)
    batch = plastic_batch(online, rows=2, steps=steps)
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        compute_td_loss_trial(online, target, batch, DQNConfig(bptt_chunk_size=chunk))
    return Held.peak


def test_memory_does_not_grow_with_the_trial_under_truncation() -> None:
    assert saved_bytes_at_peak(160, chunk=8) == saved_bytes_at_peak(32, chunk=8)
    assert saved_bytes_at_peak(160, chunk=None) > 4 * saved_bytes_at_peak(32, chunk=None)
    assert saved_bytes_at_peak(160, chunk=8) < saved_bytes_at_peak(160, chunk=None) / 10


# --- acting and learning see the same states -----------------------------------------------------------------


def act_and_store(network: MPNDQN, buffer: ReplayBuffer, steps: int, reset_on_trial: bool, seed: int = 0) -> dict:
    """Random episodes and trials acted by stepping; returns the Q-values seen at (lane, episode, step)."""
    rng, lanes = np.random.default_rng(seed), 3
    episode, t = np.zeros(lanes, int), np.zeros(lanes, int)
    seen = {}
    with torch.no_grad():
        state = network.init_state(lanes)
    draw = lambda: np.concatenate([np.stack([np.arange(lanes), episode, t], 1), rng.normal(size=(lanes, 2))], 1)  # noqa: E731
    obs = draw().astype(np.float32)
    for _ in range(steps):
        with torch.no_grad():
            q, after = network(torch.from_numpy(obs), state)
        for lane in range(lanes):
            seen[lane, episode[lane], t[lane]] = q[lane]
        terminated, truncated = rng.random(lanes) < 0.05, rng.random(lanes) < 0.05
        ended, new_trial = terminated | truncated, rng.random(lanes) < 0.15
        t += 1
        next_obs = draw().astype(np.float32)
        reward = rng.normal(size=lanes).astype(np.float32)
        steps_taken = Steps(obs, rng.integers(2, size=lanes), reward, terminated, truncated, next_obs, new_trial)
        buffer.add(steps_taken, state)
        episode[ended] += 1
        t[ended] = 0
        obs = np.where(ended[:, None], draw(), next_obs).astype(np.float32)
        fresh = ended | new_trial if reset_on_trial else ended
        state = after.clone()
        with torch.no_grad():
            state[torch.from_numpy(fresh)] = network.init_state(int(fresh.sum()))
    return seen


@pytest.mark.parametrize("reset_on_trial", [False, True])
@pytest.mark.parametrize("replay", ["transition", "sequence", "burn-in", "trial"])
def test_replay_sees_what_acting_saw(replay: str, reset_on_trial: bool) -> None:
    """From the stored state, with the recorded resets, unrolling a batch gives the Q-values that acted.

    Fails on a state one observation stale, on one from another lane, and on a reset that learning forgets.
    """
    torch.manual_seed(0)
    core = MPN(4, 5, train_m0=True, kernel="reference")
    torch.nn.init.normal_(core.layers[0].m0, std=0.5)
    network = MPNDQN(5, 5, 2, encoder=Encoder(5, 4, False), core=core)
    options = {"state_shapes": [(5, 4)], "reset_state_on_trial": reset_on_trial}
    if replay == "trial":
        buffer: ReplayBuffer = TrialReplayBuffer(3, 5, capacity=40, max_steps=200, **options)
    else:
        burn_in = 4 if replay == "burn-in" else 0
        shape = {"length": 1, "stride": 1} if replay == "transition" else {"length": 6, "stride": 3}
        buffer = SequenceReplayBuffer(3, 5, capacity=300, burn_in=burn_in, **shape, **options)
    seen = act_and_store(network, buffer, 400, reset_on_trial)
    batch = buffer.sample(200, np.random.default_rng(0))
    with torch.no_grad():
        q, _ = network.unroll(batch.obs, batch.state0, batch.reset)
    compared = resets = 0
    for b in range(200):
        # Padding ends where the state is reset; without padding the first step is seen.
        first = next((t for t in range(batch.burn_in + 1) if batch.reset[b, t]), 0)
        last = int(batch.mask[b].nonzero().max())
        for t in range(first, last + 2):
            key = tuple(batch.obs[b, t, :3].int().tolist())
            if key in seen:  # an episode's last observation was never acted upon
                torch.testing.assert_close(q[b, t], seen[key], rtol=1e-4, atol=1e-5)
                compared += 1
        resets += int(batch.reset[b, first + 1 : last + 2].sum())
    assert compared > 300 and (resets > 0) == reset_on_trial


def test_transition_replay_gives_eta_lambda_and_m0_no_gradient() -> None:
    """T = 1: they do not move by a bit, while the weights learn."""
    torch.manual_seed(0)
    core = MPN(4, 5, train_m0=True, kernel="reference")
    network = MPNDQN(5, 5, 2, encoder=Encoder(5, 4, False), core=core)
    buffer = SequenceReplayBuffer(3, 5, capacity=300, length=1, stride=1, state_shapes=[(5, 4)])
    act_and_store(network, buffer, 200, reset_on_trial=False)
    learner = DQNLearner(network, DQNConfig(), seed=0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(20):
        learner.update(buffer.sample(32, np.random.default_rng(0)))
        for parameter in (core.layers[0].eta, core.layers[0].lambda_decay, core.layers[0].m0):
            assert parameter.grad is None or not parameter.grad.any()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before) - {f"core.layers.0.{name}" for name in ("eta", "lambda_decay", "m0")}
    assert "eta, lambda and M(0) get no gradient" in " ".join((SequenceReplayBuffer.__doc__ or "").split())


# --- a task that needs memory --------------------------------------------------------------------------------


def cue_accuracy(core: nn.Module, buffer: ReplayBuffer, updates: int, chunk: int | None = None) -> float:
    """Cue at t = 0, silence, answer at t = 4. Learns from epsilon-greedy play; returns the greedy accuracy."""
    lanes, rng = 16, np.random.default_rng(0)
    network = MPNDQN(3, core.hidden_dim, 2, encoder=Encoder(3, 8, False), core=core)
    learner = DQNLearner(network, DQNConfig(learning_rate=5e-3, target_tau=0.1, bptt_chunk_size=chunk), seed=0)
    learner.epsilon = 0.5

    def episode(lanes: int, explore: bool) -> float:
        cue, state = rng.integers(2, size=lanes), network.init_state(lanes)
        for t in range(5):
            obs, next_obs = np.zeros((2, lanes, 3), np.float32)
            if t == 0:
                obs[np.arange(lanes), cue] = 1.0
            obs[:, 2], next_obs[:, 2] = t == 4, t == 3
            action, after = learner.act(torch.from_numpy(obs), state, explore)
            correct = (action.numpy() == cue) & (t == 4)
            if explore:
                over = np.full(lanes, t == 4)
                no = np.zeros(lanes, bool)
                buffer.add(Steps(obs, action.numpy(), correct.astype(np.float32), over, no, next_obs, no), state)
            state = after
        return float(correct.mean())

    torch.set_num_threads(1)
    for _ in range(10):
        episode(lanes, explore=True)
    for _ in range(updates):
        episode(lanes, explore=True)
        learner.update(buffer.sample(32, rng))
    return episode(1_000, explore=False)


def small_mpn(**options) -> MPN:
    return MPN(8, 16, kernel="reference", **options)


def whole_episodes(shape: tuple[int, ...]) -> SequenceReplayBuffer:
    return SequenceReplayBuffer(16, 3, capacity=4_000, length=5, stride=5, state_shapes=[shape])


def test_mpn_learns_what_needs_memory() -> None:
    assert cue_accuracy(small_mpn(), whole_episodes((16, 8)), updates=200) > 0.95


def test_mpn_learns_from_whole_trials() -> None:
    buffer = TrialReplayBuffer(16, 3, capacity=800, max_steps=5, state_shapes=[(16, 8)])
    assert cue_accuracy(small_mpn(), buffer, updates=200) > 0.95


def test_memoryless_mlp_stays_at_chance() -> None:
    assert cue_accuracy(MLPCore(8, 16), whole_episodes((0,)), updates=200) < 0.6


def test_frozen_mpn_stays_at_chance() -> None:
    assert cue_accuracy(small_mpn(freeze_plasticity=True), whole_episodes((16, 8)), updates=200) < 0.6


# --- the network ---------------------------------------------------------------------------------------------


def test_encoder_never_shows_the_core_an_empty_input() -> None:
    """x = [tanh(A obs + a), 1]: on silence tanh(a) and 1, where the bare observation is all zero."""
    silence = torch.zeros(2, 3)
    both = Encoder(3, 4, constant_input=True)
    x = both(silence)
    assert both.output_dim == 5 and torch.equal(x[:, -1], torch.ones(2))
    torch.testing.assert_close(x[0, :4], torch.tanh(both.embedding.bias))
    assert Encoder(3, 0, True)(silence).tolist() == [[0, 0, 0, 1]] * 2
    assert Encoder(3, 0, False)(silence).tolist() == [[0, 0, 0]] * 2 and Encoder(3, 0, False).output_dim == 3
    obs = torch.randn(2, 5, 3)
    torch.testing.assert_close(both(obs)[1, 3, :4], torch.tanh(both.embedding.weight @ obs[1, 3] + both.embedding.bias))


def test_a_random_projection_keeps_lengths_is_never_silent_and_is_not_trained() -> None:
    torch.manual_seed(0)
    encoder = Encoder(5, 32, constant_input=False, random_projection=4000)
    assert encoder.embedding is None and encoder.output_dim == 4000 and not list(encoder.parameters())
    obs = torch.tensor([[3.0, 0.0, -4.0, 0.0, 0.0]])
    silent = encoder(torch.zeros(1, 5))
    assert silent.norm().item() == pytest.approx(1.0, abs=0.05)
    assert (encoder(obs) - silent).norm().item() == pytest.approx(5.0, abs=0.2)
    torch.testing.assert_close(encoder(2 * obs) - silent, 2 * (encoder(obs) - silent))  # linear
    other = Encoder(5, 0, constant_input=True, random_projection=4000)
    assert other.output_dim == 4001
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other(obs)[:, :-1], encoder(obs))


def test_a_bare_mpn_cannot_remember_through_silence_and_the_encoder_mends_it() -> None:
    cue, silence = torch.randn(1, 3), torch.zeros(1, 3)
    for encoder, remembers in (
        (Encoder(3, 0, False), False),
        (Encoder(3, 0, True), True),
        (Encoder(3, 8, False), True),
    ):
        network = MPNDQN(3, 6, 2, encoder=encoder, kernel="reference")
        with torch.no_grad():
            _, cued = network(cue, network.init_state(1))
            _, other = network(-cue, network.init_state(1))
            difference = (network(silence, cued)[0] - network(silence, other)[0]).abs().max()
        assert (float(difference) > 1e-4) is remembers


def test_unroll_equals_stepping_through_encoder_and_head() -> None:
    network, obs = plastic_network(), torch.randn(2, 6, 3).double()
    with torch.no_grad():
        q, _ = network.unroll(obs, network.init_state(2))
        state = network.init_state(2)
        for t in range(6):
            h, _ = network.features(obs[:, t], state)
            stepped, state = network(obs[:, t], state)
            torch.testing.assert_close(stepped, q[:, t])
            torch.testing.assert_close(network.head(h), stepped)


def test_greedy_action_is_the_best_and_the_state_moves_on() -> None:
    network = plastic_network()
    obs, state = torch.randn(64, 3).double(), network.init_state(64)
    q, after = network(obs, state)
    action, moved = network.select_action(obs, state)
    assert torch.equal(action, q.argmax(-1)) and torch.equal(moved, after.detach()) and not moved.requires_grad


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_is_the_share_of_random_actions(epsilon: float) -> None:
    """Q = obs prefers action 2 of 4; a random choice takes it in one of four: 1 - 0.75 epsilon."""
    network, obs = echo_network(4), torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, 4)
    action, _ = network.select_action(obs, network.init_state(20_000), epsilon, torch.Generator().manual_seed(0))
    shares = torch.bincount(action, minlength=4) / 20_000
    expected = torch.full((4,), epsilon / 4)
    expected[2] += 1 - epsilon
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.015)


SNIPPET = """
from mpn_dqn import MPNDQN
import torch
dqn = MPNDQN(obs_dim=4, hidden_dim=64, action_dim=2)
state = dqn.init_state(batch_size=1)
obs = torch.randn(1, 4)
q_values, new_state = dqn(obs, state)
action, new_state = dqn.select_action(obs, state, epsilon=0.1)
"""


def test_readme_snippet_runs_as_written() -> None:
    assert SNIPPET in (Path(mpn_dqn.__file__).parent / "README.md").read_text()
    names: dict = {}
    exec(SNIPPET, names)
    assert names["q_values"].shape == (1, 2) and names["action"].shape == (1,)
    assert names["new_state"].shape == names["state"].shape == (1, 64, 32)  # M: 64 hidden units, an embedding of 32


# --- the learner ---------------------------------------------------------------------------------------------


def small_learner(**options) -> DQNLearner:
    return DQNLearner(plastic_network(0).float(), DQNConfig(**options), seed=0)


def small_batch(learner: DQNLearner, **given) -> Batch:
    """float32 like the learner."""
    batch = plastic_batch(learner.online, **given)
    floats = {
        name: value.float() for name, value in batch._asdict().items() if getattr(value, "dtype", None) == torch.float64
    }
    return batch._replace(**floats)


def test_soft_target_moves_by_its_share() -> None:
    learner = small_learner(target_update="soft", target_tau=0.25)
    before = [p.clone() for p in learner.target.parameters()]
    learner.update(small_batch(learner))
    for old, target, online in zip(before, learner.target.parameters(), learner.online.parameters(), strict=True):
        torch.testing.assert_close(target, old + 0.25 * (online.detach() - old))
        assert not target.requires_grad


def test_periodic_target_is_copied_every_so_many_updates() -> None:
    learner = small_learner(target_update="periodic", target_update_freq=3)
    start = copy.deepcopy(learner.target.state_dict())
    batch = small_batch(learner)
    for update in range(1, 8):
        learner.update(batch)
        target, online = learner.target.state_dict(), copy.deepcopy(learner.online.state_dict())
        start = online if update % 3 == 0 else start
        assert all(torch.equal(value, start[name]) for name, value in target.items())


def test_gradient_is_clipped_to_its_norm() -> None:
    learner = small_learner(grad_clip=1e-3)
    norm = learner.update(small_batch(learner))["grad_norm"]
    clipped = torch.stack([p.grad.norm() for p in learner.online.parameters() if p.grad is not None]).norm()
    assert norm > 1e-2 and clipped.item() == pytest.approx(1e-3, rel=1e-3)


def test_updates_lower_the_loss_on_their_batch() -> None:
    learner = small_learner(gamma=0.0)
    batch = small_batch(learner)
    losses = [float(learner.update(batch)["loss"]) for _ in range(200)]
    assert losses[-1] < 0.5 * losses[0]


def test_priorities_mix_largest_and_mean_error_over_learned_steps() -> None:
    """0.9 max + 0.1 mean: errors 5, 9, 13, 17, and 9, 13 where the ends are padding."""
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    batch = time_batch()
    batch = make_batch(batch.obs.repeat(2, 1, 1), mask=mask)
    config = DQNConfig(gamma=0.5, double_dqn=False, prioritized=True)
    learner = DQNLearner(echo_network(), config, seed=0)
    learner.update(batch)
    assert learner.priorities.tolist() == pytest.approx([0.9 * 17 + 0.1 * 11, 0.9 * 13 + 0.1 * 11])
    uniform = DQNLearner(echo_network(), DQNConfig(), seed=0)
    uniform.update(batch)
    assert uniform.priorities is None


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # from 0.8 to 0.2 over the first half: at 0, a quarter of the way (0.125), half (0.25), its end, and after
        ("linear", [0.8, 0.65, 0.5, 0.2, 0.2]),
        ("exponential", [0.8, 0.8 * 0.25**0.25, 0.4, 0.2, 0.2]),
        ("step", [0.8, 0.8, 0.8, 0.2, 0.2]),
    ],
)
def test_epsilon_schedules(schedule: str, expected: list[float]) -> None:
    config = DQNConfig(epsilon_start=0.8, epsilon_end=0.2, epsilon_decay=0.5, epsilon_schedule=schedule)
    assert [epsilon_at(p, config) for p in (0.0, 0.125, 0.25, 0.5, 1.0)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "exponential", "step"])
def test_epsilon_ends_exactly_at_its_end_even_at_zero(schedule: str) -> None:
    config = DQNConfig(epsilon_start=1.0, epsilon_end=0.0, epsilon_decay=1.0, epsilon_schedule=schedule)
    values = [epsilon_at(p, config) for p in np.linspace(0, 1, 11)]
    assert values[0] == 1.0 and values[-1] == 0.0 and values == sorted(values, reverse=True)
    off = DQNConfig(epsilon_start=0.0, epsilon_end=0.0, epsilon_schedule=schedule)
    assert epsilon_at(0.1, off) == 0.0


def test_step_size_falls_to_its_final_share() -> None:
    learner = small_learner(learning_rate=0.01, lr_final=0.1)
    rates = []
    for progress in (0.0, 0.5, 1.0, 1.5):
        learner.set_progress(progress)
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.0055, 0.001, 0.001])


def test_acting_explores_online_and_is_greedy_by_the_policy() -> None:
    obs = torch.tensor([[1.0, 2.0]])
    for act_with, best in (("target", 0), ("online", 1)):
        learner = DQNLearner(echo_network(), DQNConfig(act_with=act_with), seed=0)
        with torch.no_grad():
            learner.target.head.bias.copy_(torch.tensor([5.0, 0.0]))
        state = learner.online.init_state(1)
        assert learner.act(obs, state, explore=False)[0].item() == best
        assert learner.policy is (learner.target if act_with == "target" else learner.online)
        learner.epsilon = 0.0
        assert learner.act(obs, state, explore=True)[0].item() == 1


def test_saved_learner_goes_on_bit_for_bit() -> None:
    """Networks, optimiser, schedules, counters and exploration, through a file that cannot run code."""
    options = {"target_update": "periodic", "target_update_freq": 4, "lr_final": 0.1}
    learner, resumed = small_learner(**options), DQNLearner(plastic_network(7).float(), DQNConfig(**options), seed=9)
    batch, obs = small_batch(learner), torch.randn(50, 3)
    for progress in (0.1, 0.2, 0.3):
        learner.set_progress(progress)
        learner.update(batch)
        learner.act(obs, learner.online.init_state(50), explore=True)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert (
        (resumed.updates, resumed.epsilon) == (learner.updates, learner.epsilon) == (3, epsilon_at(0.3, learner.config))
    )
    for _ in range(3):
        results = [one.update(batch) for one in (learner, resumed)]
        assert torch.equal(results[0]["loss"], results[1]["loss"])
        actions = [one.act(obs, one.online.init_state(50), explore=True)[0] for one in (learner, resumed)]
        assert torch.equal(*actions)
    for kind in ("online", "target"):
        left, right = getattr(learner, kind).state_dict(), getattr(resumed, kind).state_dict()
        assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_update_leaves_nothing_of_the_batch_before() -> None:
    """Gradients do not add up over updates: the reported norm is the second batch's own."""
    learner, fresh = small_learner(learning_rate=1e-12), small_learner(learning_rate=1e-12)
    first, second = small_batch(learner, seed=1), small_batch(learner, seed=2)
    learner.update(first)
    torch.testing.assert_close(
        learner.update(second)["grad_norm"], fresh.update(second)["grad_norm"], rtol=1e-4, atol=1e-5
    )


def test_the_module_runs_as_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(mpn_dqn.__file__)), run_name="__main__")
    printed = capsys.readouterr().out
    before, after = (float(word) for word in printed.split() if word.startswith("0.") and word.count(".") == 1)
    assert after < 0.1 * before


def test_our_adam_is_torchs_and_spares_the_import_of_its_compiler() -> None:
    code = """
import sys, torch
from mpn_rl.learners.base import Adam
from mpn_dqn import main
main()
first, second = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
second.load_state_dict(first.state_dict())
options = {"lr": 0.01, "eps": 1e-4, "weight_decay": 0.1, "fused": True}
ours = Adam(first.parameters(), **options)
xs = torch.randn(20, 8, 5)
for x in xs:
    ours.zero_grad(), first(x).square().sum().backward(), ours.step()
ours.load_state_dict(ours.state_dict())
assert "torch._dynamo" not in sys.modules
theirs = torch.optim.Adam(second.parameters(), **options)
for x in xs:
    theirs.zero_grad(), second(x).square().sum().backward(), theirs.step()
assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- the dueling head ---------------------------------------------------------------------------------------


def test_a_dueling_head_adds_the_value_to_each_advantage_over_their_mean() -> None:
    network = MPNDQN(2, 5, 3, dueling=True)
    h = torch.randn(4, 7, 5)
    outputs = torch.nn.functional.linear(h, network.head.weight, network.head.bias)
    value, advantages = outputs[..., 0], outputs[..., 1:]
    by_hand = torch.stack(
        [value + advantages[..., a] - sum(advantages[..., b] for b in range(3)) / 3 for a in range(3)]
    )
    torch.testing.assert_close(network.head(h), by_hand.movedim(0, -1))
    torch.testing.assert_close(network.head(h).mean(-1), value)  # V is the mean over the actions


def test_learning_one_action_moves_the_others_by_way_of_the_value() -> None:
    h = torch.ones(1, 5)
    for dueling, moves in ((False, False), (True, True)):
        torch.manual_seed(0)
        head = MPNDQN(2, 5, 3, dueling=dueling).head
        before = head(h).detach()
        head(h)[0, 0].backward()
        with torch.no_grad():
            for part in head.parameters():
                part += 0.01 * part.grad
        change = (head(h) - before)[0]
        assert change[0] > 0
        assert bool(change[1:].abs().min() > 1e-4) is moves


def test_the_learners_option_chooses_the_head() -> None:
    for dueling in (False, True):
        assert DQNLearner.network_options(DQNConfig(dueling=dueling)) == {"dueling": dueling}
