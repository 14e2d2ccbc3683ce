"""The topology engine: what exists, what grows, what is pruned, and that nothing gets through where nothing is."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_utils import load_checkpoint, save_checkpoint
from mpn_dqn import MPNDQN
from mpn_module import MPN
from mpn_rl import config as cfg
from mpn_rl.contracts import Batch
from mpn_rl.expansion.hidden_units import Watch, chosen, dormancy, ends, synapses
from mpn_rl.expansion.masks import check_fits, erk_densities, growth, largest
from mpn_rl.expansion.topology import STL_Scheduler, Topology
from mpn_rl.learners.td3 import Actor, TD3Learner
from mpn_rl.networks.backpropamine import Backpropamine
from mpn_rl.networks.baseline_cores import RecurrentCore
from mpn_rl.options import ConfigError

STEPS = 100


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def options(kind: str = "paper", **values: Any) -> Any:
    known = {"exempt": "", "update_interval": 10, "layer_density": "uniform", **values}
    return cfg.choices("expansion")[kind].build(**known)


class Bench:
    """A network, its target, its optimiser and its topology, trained on noise."""

    def __init__(self, network: nn.Module, config: Any, total_steps: int = STEPS, optimizer: Any = None) -> None:
        self.network, self.target = network, copy.deepcopy(network).requires_grad_(False)
        self.optimizer = optimizer or torch.optim.Adam(network.parameters(), lr=1e-2)
        nets = ({"online": network}, {"online": self.target}, {"online": self.optimizer})
        self.topology = Topology(config, *nets, seed=3, total_steps=total_steps)
        self.generator = torch.Generator().manual_seed(5)
        self.step = 0

    def backward(self) -> None:
        self.optimizer.zero_grad()
        x = torch.randn(16, next(iter(synapses(self.network).values())).shape[1], generator=self.generator)
        output = self.network(x)
        (output - torch.randn(output.shape, generator=self.generator)).square().mean().backward()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            self.topology.before_step("online")
            self.optimizer.step()
            self.topology.after_step("online")
            self.step += 1
            self.topology.advance(self.step)
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.1)

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("network", "target", "optimizer", "topology")}
        return {**parts, "generator": self.generator.get_state(), "step": self.step}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name in ("network", "target", "optimizer", "topology"):
            getattr(self, name).load_state_dict(saved[name])
        self.generator.set_state(saved["generator"])
        self.step = saved["step"]

    def masks(self) -> dict[str, Tensor]:
        return {layer.name: layer.mask for layer in self.topology.layers["online"]}


def through_file(saved: Any) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- densities and schedules ---------------------------------------------------------------------------------


def test_erk_densities_are_those_of_the_public_code_on_halfcheetah() -> None:
    """Sparsities of its critic: input .02, hidden .84, LayerNorm 0, output 0; of its actor 0, .87, 0."""
    critic = erk_densities([(256, 23), (256, 256), (256, 256), (256,), (1, 256)], 0.2)
    assert [round(1 - density, 2) for density in critic] == [0.02, 0.84, 0.84, 0.0, 0.0]
    actor = erk_densities([(256, 17), (256, 256), (6, 256)], 0.2)
    assert [round(1 - density, 2) for density in actor] == [0.0, 0.87, 0.0]


def test_erk_densities_of_a_case_worked_by_hand() -> None:
    """Raw (4 + 8) / 32 = 3/8 and (8 + 8) / 64 = 1/4; 24 of 96 weights = c (12 + 16), so c = 6/7."""
    assert erk_densities([(4, 8), (8, 8)], 0.25) == pytest.approx([9 / 28, 3 / 14])


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.75, 0.99, 1.0])
def test_erk_densities_keep_the_overall_density(density: float) -> None:
    shapes = [(256, 17), (256, 256), (6, 256)]
    densities = erk_densities(shapes, density)
    kept = sum(d * math.prod(shape) for d, shape in zip(densities, shapes, strict=True))
    assert kept == pytest.approx(density * sum(map(math.prod, shapes)))
    assert max(densities) <= 1.0


def test_schedules_reach_their_ends_at_their_rates() -> None:
    linear, cosine = options(schedule="linear"), options(schedule="cosine")
    assert [growth(linear, k, 4) for k in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    # Increments 1/2 (1 + cos(pi t)), integrated: t + sin(pi t) / pi.
    quarter, half = 0.25 + math.sqrt(0.5) / math.pi, 0.5 + 1 / math.pi
    assert [growth(cosine, k, 4) for k in range(5)] == pytest.approx([0, quarter, half, 0.5 + quarter - 0.25 + 0.25, 1])
    constant = options(schedule="constant", grow_fraction=0.2, prune_ratio=0.4)  # net 0.12 of the room per event
    assert [growth(constant, k, 20) for k in (1, 8, 9)] == pytest.approx([0.12, 0.96, 1.0])
    slowing = options(schedule="cosine", grow_fraction=0.1, prune_ratio=0.0)
    assert growth(slowing, 10, 10) == pytest.approx(0.5)  # ten events of 0.1, half of it after annealing


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("lanes", [1, 3, 7, 10, 16])
def test_the_density_hits_its_target_to_one_weight_per_layer(schedule: str, lanes: int) -> None:
    """Whatever the vector step, and though the last call of a run may lie before its end."""
    bench = Bench(mlp(7, 31, 29, 3), options(schedule=schedule, layer_density="erk", sparsity=0.3, prune="magnitude"))
    step = 0
    while step + lanes <= STEPS:
        bench.train(0)
        bench.backward()
        bench.topology.before_step("online")
        bench.optimizer.step()
        bench.topology.after_step("online")
        step += lanes
        bench.topology.advance(step)
    shapes = [tuple(weight.shape) for weight in synapses(bench.network).values()]
    wanted = [round(d * math.prod(s)) for d, s in zip(erk_densities(shapes, 0.7), shapes, strict=True)]
    masks = bench.masks()
    assert [
        int(masks[key].sum()) if key in masks else w.numel() for key, w in synapses(bench.network).items()
    ] == wanted
    assert bench.topology.densities()["online"] == pytest.approx(0.7, abs=3 / sum(map(math.prod, shapes)))


def test_halfway_a_linear_schedule_has_filled_half_the_room() -> None:
    bench = Bench(mlp(10, 20, 10), options(schedule="linear", sparsity=0.2))
    bench.train(50)
    assert bench.topology.densities()["online"] == pytest.approx(0.5)  # 0.2 -> 0.8


def test_largest_takes_the_largest_and_breaks_ties_by_chance() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([largest(scores, 3, generator) for _ in range(200)])
    assert drawn.flatten(1).sum(1).eq(3).all()
    assert drawn[:, 0, 0].all() and drawn[:, 1, 1].all()
    shares = drawn.float().mean(0)[scores == 1.0]
    assert shares.min() > 0.1 and shares.max() < 0.45  # four equals share one place
    assert not largest(scores, 0, generator).any()


# --- masks ---------------------------------------------------------------------------------------------------


def test_nothing_gets_through_where_there_is_no_weight() -> None:
    bench = Bench(mlp(5, 12, 12, 2), options(prune="magnitude", schedule="linear"))
    for _ in range(9):
        bench.train(9)
        for key, mask in bench.masks().items():
            weight = bench.network.get_parameter(key)
            assert (weight[~mask] == 0).all() and (bench.target.get_parameter(key)[~mask] == 0).all()
            assert (weight.grad[~mask] == 0).all() and (weight.grad[mask] != 0).any()
            state = bench.optimizer.state[weight]
            assert (state["exp_avg"][~mask] == 0).all() and (state["exp_avg_sq"][~mask] == 0).all()


@pytest.mark.parametrize("optimizer", ["SGD", "RMSprop", "AdamW"])
def test_any_optimiser_keeps_absent_weights_at_zero(optimizer: str) -> None:
    network = mlp(5, 12, 2)
    extra = {"momentum": 0.9} if optimizer != "AdamW" else {"weight_decay": 0.1}
    inner = getattr(torch.optim, optimizer)(network.parameters(), lr=1e-2, **extra)
    bench = Bench(network, options(prune="magnitude", schedule="linear"), optimizer=inner)
    bench.train(55)
    for key, mask in bench.masks().items():
        assert (bench.network.get_parameter(key)[~mask] == 0).all() and (~mask).any()


def test_the_targets_are_sparse_from_the_start() -> None:
    bench = Bench(mlp(5, 12, 2), options())
    for key, mask in bench.masks().items():
        assert (bench.target.get_parameter(key) != 0).equal(mask)


def test_a_dense_layer_is_never_touched() -> None:
    network = mlp(4, 64, 64, 2)
    before = copy.deepcopy(network)
    bench = Bench(network, options(layer_density="erk", initial_sparsity=0.5, prune="magnitude"))
    assert set(bench.masks()) == {"2.weight"}  # ERK leaves the ends dense
    assert network[0].weight.equal(before[0].weight) and network[4].weight.equal(before[4].weight)
    assert bench.topology.densities()["online"] == pytest.approx(0.5, abs=1e-3)
    bench.backward()
    gradient = network[0].weight.grad.clone()
    bench.topology.before_step("online")
    assert network[0].weight.grad.equal(gradient) and (network[2].weight.grad == 0).sum() >= 2048


def test_biases_gains_eta_lambda_and_m0_are_no_synapses() -> None:
    assert set(synapses(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)))) == {"0.weight"}
    mpn = MPN(3, 4, eta_shape="matrix", lambda_shape="matrix", train_m0=True)
    assert set(synapses(mpn)) == {"layers.0.weight"}
    names = {"net.weight_ih_l0", "net.weight_hh_l0", "net.weight_ih_l1", "net.weight_hh_l1"}
    assert set(synapses(RecurrentCore("gru", 3, 4, 2))) == names
    lstm = Backpropamine(3, 4, cell="lstm", trace_rule="hard-clip", modulation="none", alpha_shape="connection")
    assert set(synapses(lstm)) == {"weight", "gates", "alpha", "input.weight"}
    assert set(synapses(Backpropamine(3, 4, alpha_shape="neuron"))) == {"weight", "input.weight"}


def test_initial_masks_are_random_or_keep_the_largest_weights() -> None:
    network = mlp(6, 10, 3)
    weight = network[0].weight.detach().clone()
    Bench(network, options("reference", layer_density="uniform"))
    kept = weight.abs().flatten().argsort(descending=True)[:12]  # 0.2 of 60
    assert set(kept.tolist()) == set(network[0].weight.flatten().nonzero().flatten().tolist())
    masks = [Bench(mlp(6, 10, 3), options()).masks()["0.weight"] for _ in range(2)]
    assert masks[0].equal(masks[1]) and int(masks[0].sum()) == 12


def test_first_and_last_layers_are_those_of_every_chain() -> None:
    twins = nn.ModuleDict({"q1": mlp(9, 16, 16, 1), "q2": mlp(9, 16, 16, 1)})
    assert chosen(twins, "first,last") == {"q1.0.weight", "q1.4.weight", "q2.0.weight", "q2.4.weight"}
    agent = MPNDQN(5, 16, 3)
    assert ends(agent) == ({"encoder.embedding"}, {"head"})
    assert chosen(agent, "first, last") == {"encoder.embedding.weight", "head.weight"}
    assert chosen(agent, "core.*") == {"core.layers.0.weight"}
    assert chosen(agent, "") == set()


def test_a_copy_may_follow_later() -> None:
    bench = Bench(mlp(5, 12, 2), options(prune="magnitude"))
    average = copy.deepcopy(bench.network)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.fill_(1.0)
    bench.topology.follow("online", average)
    bench.train(10)
    for key, mask in bench.masks().items():
        assert (average.get_parameter(key)[~mask] == 0).all()


# --- growth --------------------------------------------------------------------------------------------------


def one_layer(weight: list[list[float]], mask: list[list[int]], **values: Any) -> Bench:
    """A single matrix whose mask, weights and room are given: it is to be full at the end, after one event."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    config = options(**{"schedule": "linear", "prune": "none", "prune_ratio": 0.0, "update_interval": STEPS, **values})
    bench = Bench(layer, config)
    layer = bench.topology.layers["online"][0]
    layer.mask.copy_(torch.tensor(mask, dtype=torch.bool))
    layer.keep.copy_(layer.mask)
    layer.start = layer.active = int(layer.mask.sum())
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return bench


def give_gradient(bench: Bench, gradient: list[list[float]]) -> None:
    bench.network.weight.grad = torch.tensor(gradient)  # type: ignore[assignment]
    bench.topology.before_step("online")


WEIGHT = [[1.0, 0.0, 0.0], [0.0, -2.0, 0.0]]
MASK = [[1, 0, 0], [0, 1, 0]]
GRADIENT = [[9.0, -3.0, 0.5], [2.0, 9.0, -1.0]]


def test_growth_picks_the_largest_absent_gradients() -> None:
    bench = one_layer(WEIGHT, MASK)
    bench.topology.layers["online"][0].goal = 4
    give_gradient(bench, GRADIENT)
    assert bench.network.weight.grad.tolist() == [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]
    assert bench.topology.advance(STEPS)
    assert bench.masks()["weight"].int().tolist() == [[1, 1, 0], [1, 1, 0]]  # |-3| and |2|
    assert bench.network.weight.tolist() == WEIGHT  # new ones are zero, old ones as they were


def test_accumulated_growth_goes_by_the_mean_of_the_last_n_gradients() -> None:
    bench = one_layer(WEIGHT, MASK, grow="accumulated", grad_accumulation_n=2)
    bench.topology.layers["online"][0].goal = 3
    give_gradient(bench, [[0.0, 90.0, 0.0], [0.0, 0.0, 0.0]])  # forgotten: three updates ago
    give_gradient(bench, [[0.0, 5.0, 0.0], [3.0, 0.0, 0.0]])
    give_gradient(bench, [[0.0, -5.0, 0.0], [0.0, 0.0, 2.0]])  # opposite signs cancel: means 0, 1.5, 1
    bench.topology.advance(STEPS)
    assert bench.masks()["weight"].int().tolist() == [[1, 0, 0], [1, 1, 0]]


def test_random_growth_heeds_no_gradient() -> None:
    grown = set()
    for seed in range(12):
        bench = one_layer(WEIGHT, MASK, grow="random")
        bench.topology.generator.manual_seed(seed)
        bench.topology.layers["online"][0].goal = 3
        give_gradient(bench, GRADIENT)
        bench.topology.advance(STEPS)
        new = bench.masks()["weight"] & ~torch.tensor(MASK, dtype=torch.bool)
        grown.add(int(new.flatten().nonzero()))
    assert grown == {1, 2, 3, 5}


def test_lecun_weights_have_the_variance_of_one_over_the_inputs() -> None:
    bench = Bench(
        mlp(400, 300, 2), options(new_weights="lecun", schedule="linear", sparsity=0.0, update_interval=STEPS)
    )
    before = bench.masks()["0.weight"].clone()
    bench.train(99)
    bench.backward()
    bench.topology.before_step("online")
    bench.topology.advance(STEPS)
    grown = bench.network[0].weight[~before].detach()
    assert float(grown.std()) == pytest.approx(1 / 20, rel=0.02) and abs(float(grown.mean())) < 1e-3


def test_pruning_by_magnitude_takes_the_smallest_and_no_more_than_its_share() -> None:
    """Room for 2; omega = 1/3: at most one pruned per two grown besides, so 1 goes and 3 come."""
    weight = [[4.0, -0.1, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    bench = one_layer(weight, [[1, 1, 1], [0, 0, 0], [0, 0, 0]], prune="magnitude", prune_ratio=1 / 3)
    bench.topology.layers["online"][0].goal = 5
    give_gradient(bench, [[0.0, 0.0, 0.0], [5.0, 4.0, 3.0], [2.0, 1.0, 0.5]])
    bench.topology.advance(STEPS)
    assert bench.masks()["weight"].int().tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 0]]
    assert bench.network.weight[0].tolist() == [4.0, 0.0, 3.0]
    assert bench.topology.churn() == {"online": 4 / 9} and bench.topology.churn() == {"online": 0.0}


def test_what_was_just_pruned_may_return_as_a_new_weight() -> None:
    bench = one_layer([[4.0, -0.1, 0.0, 0.0]], [[1, 1, 0, 0]], prune="magnitude", prune_ratio=0.5, new_weights="lecun")
    bench.topology.layers["online"][0].goal = 3
    bench.optimizer.state[bench.network.weight] = {"step": torch.tensor(7.0), "exp_avg": torch.ones(1, 4)}
    give_gradient(bench, [[0.0, 9.0, 1.0, 0.0]])
    bench.topology.advance(STEPS)
    assert bench.masks()["weight"].int().tolist() == [[1, 1, 1, 0]]
    assert bench.network.weight[0, 1].item() != pytest.approx(-0.1)
    assert bench.topology.changed["online"]["weight"].int().tolist() == [[0, 1, 1, 0]]
    state = bench.optimizer.state[bench.network.weight]
    assert state["exp_avg"].tolist() == [[1, 0, 0, 1]] and float(state["step"]) == 7.0


def test_events_zero_moments_of_what_changed_and_leave_the_step_counter() -> None:
    bench = Bench(mlp(6, 20, 20, 2), options(prune="magnitude", schedule="linear"))
    bench.train(9)
    masks = {key: mask.clone() for key, mask in bench.masks().items()}
    bench.train(1)  # the event comes after the step
    moved = 0
    for key, mask in bench.masks().items():
        state = bench.optimizer.state[bench.network.get_parameter(key)]
        changed = mask != masks[key]
        moved += int(changed.sum())
        assert (state["exp_avg"][changed] == 0).all() and (state["exp_avg_sq"][changed] == 0).all()
        assert (state["exp_avg"][mask & ~changed] != 0).any()
        assert float(state["step"]) == 10.0
    assert moved > 0


def test_rigl_keeps_its_density_and_changes_less_and_less() -> None:
    bench = Bench(mlp(10, 40, 4), options("rigl", sparsity=0.6))
    sizes = []
    for _ in range(10):
        bench.train(10)
        sizes.append(bench.topology.churn()["online"])
        assert bench.topology.densities()["online"] == pytest.approx(0.4, abs=1e-6)
    # The first drops 0.3 (1 + cos(pi / 10)) / 2 = 0.293 of 224 weights; those that return flip nothing.
    assert 0.3 * 0.4 < sizes[0] <= 2 * 0.293 * 0.4 and sizes[-1] == 0.0
    assert sum(sizes[:5]) > sum(sizes[5:])


def test_static_masks_never_change() -> None:
    bench = Bench(mlp(10, 40, 4), options("static", sparsity=0.6))
    masks = {key: mask.clone() for key, mask in bench.masks().items()}
    bench.train(60)
    assert all(mask.equal(masks[key]) for key, mask in bench.masks().items())
    assert bench.topology.densities()["online"] == pytest.approx(0.4)


def test_growth_alone_never_prunes() -> None:
    bench = Bench(mlp(10, 40, 4), options("grow"))
    for _ in range(10):
        masks = {key: mask.clone() for key, mask in bench.masks().items()}
        bench.train(10)
        assert all((mask | masks[key]).equal(mask) for key, mask in bench.masks().items())
    assert bench.topology.densities()["online"] == pytest.approx(0.75)


def test_the_reference_grows_at_its_rate_and_then_goes_on_as_rigl() -> None:
    """Net 0.008 (1 - 0.4) of the room per event, and 0.4 / 0.6 as many pruned; full after 209 events."""
    bench = Bench(mlp(40, 50, 2), options("reference", update_interval=1), total_steps=400)
    layer = bench.topology.layers["online"][0]
    room = layer.goal - layer.start
    assert (layer.start, layer.goal) == (400, 1500)
    bench.train(100)
    assert layer.active == 400 + round(room * 0.48)
    bench.train(109)
    assert layer.active == 1500 and bench.topology.densities()["online"] == pytest.approx(0.75)
    before = layer.mask.clone()
    bench.train(10)
    assert layer.active == 1500 and not layer.mask.equal(before)


def test_events_wait_for_the_first_update() -> None:
    bench = Bench(mlp(10, 20, 2), options(schedule="linear"))
    assert not any(bench.topology.advance(step) for step in range(1, 41))
    bench.step = 40
    bench.train(1)
    share = growth(bench.topology.config, 4, 10)
    assert bench.topology.densities()["online"] == pytest.approx(0.2 + share * 0.55, abs=0.01)


def test_start_and_end_bound_the_events() -> None:
    bench = Bench(mlp(10, 20, 2), options(schedule="linear", expansion_start=30, expansion_end=60))
    seen = []
    for _ in range(10):
        bench.train(10)
        seen.append(round(bench.topology.densities()["online"], 2))
    assert seen == [0.2, 0.2, 0.2, 0.38, 0.57, 0.75, 0.75, 0.75, 0.75, 0.75]


# --- one network's gradient is not another's --------------------------------------------------------------------


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 16, 1)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat([obs, actions], -1))


def test_critic_growth_is_not_polluted_by_the_actors_backward_pass() -> None:
    """The actor's loss leaves gradients in the critic; growth goes by what the critic's own loss left alone."""

    def run(pollute: bool) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        nets: dict[str, nn.Module] = {"actor": mlp(4, 16, 2), "critic": Critic()}
        optimizers = {name: torch.optim.Adam(net.parameters()) for name, net in nets.items()}
        topology = Topology(options(prune="magnitude"), nets, {}, optimizers, 0, STEPS)
        obs, actions = torch.randn(32, 4), torch.randn(32, 2)
        optimizers["critic"].zero_grad()
        nets["critic"](obs, actions).square().mean().backward()
        topology.before_step("critic")
        optimizers["critic"].step()
        topology.after_step("critic")
        own = [gradient.clone() for gradient in topology.gradients["critic"][0]]
        loss = -nets["critic"](obs, nets["actor"](obs)).mean()
        loss.backward(inputs=None if pollute else list(nets["actor"].parameters()))
        topology.before_step("actor")
        optimizers["actor"].step()
        topology.after_step("actor")
        topology.advance(10)
        assert all(kept.equal(before) for kept, before in zip(topology.gradients["critic"][0], own, strict=True))
        return topology.layers["critic"][0].mask.clone(), own

    dirty, clean = run(True), run(False)
    assert dirty[0].equal(clean[0])


def test_actor_and_critic_have_options_of_their_own() -> None:
    def topology(**values: Any) -> Topology:
        nets: dict[str, nn.Module] = {"actor": mlp(8, 50, 2), "critic": mlp(10, 50, 1)}
        optimizers = {name: torch.optim.Adam(net.parameters()) for name, net in nets.items()}
        return Topology(options(**values), nets, {}, optimizers, 0, STEPS)

    assert topology(expand_actor=False).densities()["actor"] == 1.0
    assert not topology(expand_actor=False).layers["actor"]
    own = topology(actor_sparsity=0.5, critic_sparsity=0.1)
    assert [layer.goal / layer.mask.numel() for layer in own.layers["actor"]] == [0.5, 0.5]
    assert [layer.goal / layer.mask.numel() for layer in own.layers["critic"]] == [0.9, 0.9]
    static = topology(static_actor=True, actor_sparsity=0.5)
    assert static.densities()["actor"] == 0.5 and static.densities()["critic"] == pytest.approx(0.2)
    assert set(static.watches) == {"critic"}


# --- units ---------------------------------------------------------------------------------------------------


def test_dormancy_of_a_layer_computed_by_hand() -> None:
    """E|h| = 1, 0, 2, 0.03; their mean 0.7575."""
    activity = torch.tensor([[1.0, 0.0, -4.0, 0.06], [-1.0, 0.0, 0.0, 0.0]])
    assert dormancy(activity).tolist() == pytest.approx([1 / 0.7575, 0, 2 / 0.7575, 0.03 / 0.7575])
    assert (dormancy(activity) <= 0.0).tolist() == [False, True, False, False]
    assert (dormancy(activity) <= 0.1).tolist() == [False, True, False, True]
    assert dormancy(torch.zeros(3, 2)).tolist() == [0.0, 0.0]


def kill(layer: nn.Linear, unit: int) -> None:
    with torch.no_grad():
        layer.bias[unit] = -100.0


def test_dormant_units_lose_weights_in_and_out_up_to_the_cap() -> None:
    network = mlp(6, 10, 8, 2)
    config = options(schedule="linear", sparsity=0.3, prune_ratio=0.5, update_interval=50)
    bench = Bench(network, config)
    before = {key: mask.clone() for key, mask in bench.masks().items()}
    unit = int(before["0.weight"].sum(1).argmax())
    kill(network[0], unit)
    bench.train(50)
    scores = bench.topology.activity["online"]  # of the units that layers 2 and 4 read
    dormant = {key: scores[key] == 0.0 for key in ("2", "4")}
    assert dormant["2"][unit] and not dormant["2"].all() and not dormant["4"].all()
    pruned = {key: before[key] & ~mask for key, mask in bench.masks().items()}
    assert not pruned["0.weight"][~dormant["2"]].any()
    assert not pruned["2.weight"][~dormant["4"]][:, ~dormant["2"]].any()
    assert not pruned["4.weight"][:, ~dormant["4"]].any()
    assert pruned["0.weight"].any() and pruned["2.weight"].any()
    assert bench.topology.densities()["online"] == pytest.approx(0.45, abs=0.01)  # one event of two: half the room


def test_the_cap_on_dormant_pruning_lets_the_network_grow_always() -> None:
    """All units are dormant; room for 4, omega = 1/2: at most 4 pruned, so that the net growth stays 4."""
    network = mlp(4, 6, 2)
    bench = Bench(network, options(schedule="linear", sparsity=0.5, initial_sparsity=0.75, prune_ratio=0.5))
    for unit in range(6):
        kill(network[0], unit)
    bench.topology.layers["online"][0].goal = 6 + 40  # of 24, so 4 per event of ten
    sizes = {key: int(mask.sum()) for key, mask in bench.masks().items()}
    before = bench.masks()["0.weight"].clone()
    bench.train(10)
    after = bench.masks()["0.weight"]
    assert int(after.sum()) == sizes["0.weight"] + 4
    assert 0 < int((before & ~after).sum()) <= 4


def test_a_unit_is_linked_to_its_layer_through_anything_elementwise() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    watch = Watch(network)
    network(torch.randn(7, 3)).sum().backward()
    assert watch.sources == {"3": ("0", 5), "5": ("3", 4)}
    assert set(watch.inputs) == {"3", "5"}  # an observation is no unit's activity
    assert (watch.inputs["5"] >= 0).all()
    with torch.no_grad():
        watch.inputs.clear()
        network(torch.randn(7, 3))
    assert not watch.inputs


def test_units_of_recurrent_cores_are_linked_too() -> None:
    for core, layer in ((MPN(4, 6), "core.layers.0"), (RecurrentCore("gru", 4, 6), "core.net")):
        agent = MPNDQN(3, 6, 2, core=nn.Identity())
        agent.encoder.embedding = nn.Linear(3, 4)
        agent.core = core
        watch = Watch(agent)
        agent.unroll(torch.randn(2, 5, 3), agent.init_state(2))[0].sum().backward()
        assert watch.sources == {layer: ("encoder.embedding", 4), "head": (layer, 6)}
        assert watch.groups()[1].off == ["head.weight", *(["core.net.weight_hh_l0"] if layer == "core.net" else [])]
        onto = {group.reader: group.onto for group in watch.groups()}
        rows = [f"{layer}.weight_ih_l0", f"{layer}.weight_hh_l0"] if layer == "core.net" else [f"{layer}.weight"]
        assert onto["head"] == rows


def test_a_unit_without_a_weight_in_or_out_can_still_learn() -> None:
    """Zero on both sides means no gradient ever: it is given a way in, and then learns its way out."""
    torch.manual_seed(1)
    network = mlp(4, 6, 3)
    bench = Bench(network, options(schedule="linear", sparsity=0.1, prune="none", prune_ratio=0.0))
    first, last = bench.topology.layers["online"]
    for layer, part in ((first, (2, slice(None))), (last, (slice(None), 2))):
        gone = int(layer.mask[part].sum())
        layer.mask[part], layer.keep[part] = False, 0.0
        layer.active -= gone
        layer.start -= gone
    with torch.no_grad():
        network[0].weight[2], network[2].weight[:, 2], network[0].bias[2] = 0.0, 0.0, 0.0
    x = torch.randn(64, 4)
    before = None
    for _ in range(10):
        bench.train(9)
        before = network(x).detach()
        mask = first.mask.clone()
        bench.topology.advance(bench.step + 1)
        bench.step += 1
        if first.mask[2].any() and not mask[2].any():
            assert (network[0].weight[2] != 0).any()
            torch.testing.assert_close(network(x), before)  # with no way out nothing changes downstream
    bench.train(20)
    assert (network[0].weight[2] != 0).any() and (network[2].weight[:, 2] != 0).any()


def test_zero_weights_on_both_sides_of_a_unit_that_exist_are_drawn_again() -> None:
    network = mlp(4, 6, 3)
    bench = Bench(network, options(schedule="linear", initial_sparsity=0.25, sparsity=0.1))
    with torch.no_grad():
        network[0].weight[1], network[2].weight[:, 1], network[0].bias[1] = 0.0, 0.0, 0.0
    bench.train(30)
    assert (network[0].weight[1][bench.masks()["0.weight"][1]] != 0).all()
    assert (network[2].weight[:, 1] != 0).any()


def test_redo_initialises_dormant_units_again() -> None:
    network = mlp(6, 10, 2)
    bench = Bench(network, options("redo", update_interval=50))
    bench.train(49)
    kill(network[0], 4)
    others = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    bench.backward()
    bench.topology.before_step("online")
    bench.optimizer.step()
    before = copy.deepcopy(network)
    bench.step += 1
    assert bench.topology.advance(bench.step)
    recycled = (network[0].bias == 0).nonzero().flatten().tolist()
    assert 4 in recycled and len(recycled) < 10
    assert not network[0].weight[4].eq(before[0].weight[4]).any()
    assert (network[2].weight[:, 4] == 0).all()
    kept = [unit for unit in others if unit not in recycled]
    assert network[0].weight[kept].equal(before[0].weight[kept])
    assert network[2].weight[:, kept].equal(before[2].weight[:, kept])
    moments = bench.optimizer.state
    assert (moments[network[0].weight]["exp_avg"][4] == 0).all() and (moments[network[0].bias]["exp_avg"][4] == 0)
    assert (moments[network[0].weight]["exp_avg"][kept] != 0).any()
    assert not bench.topology.layers["online"]  # dense all along
    bench.train(10)
    assert (network[2].weight[:, 4] != 0).any()


# --- the MPN -------------------------------------------------------------------------------------------------


def mpn_bench(form: str = "multiplicative", **values: Any) -> tuple[MPNDQN, MPNDQN, Topology]:
    agent = MPNDQN(5, 16, 3, form=form, eta=0.7)
    target = copy.deepcopy(agent).requires_grad_(False)
    optimizer = torch.optim.Adam(agent.parameters())
    config = cfg.PaperExpansionConfig(update_interval=10, prune="magnitude", **values)
    return agent, target, Topology(config, {"online": agent}, {"online": target}, {"online": optimizer}, 0, STEPS)


@pytest.mark.parametrize("form", ["multiplicative", "additive"])
@pytest.mark.parametrize("rule", ["associative", "oja"])
def test_modulation_is_zero_where_there_is_no_synapse(form: str, rule: str) -> None:
    torch.manual_seed(2)
    mpn = MPN(5, 8, form=form, rule=rule, eta=0.7, train_m0=True, kernel="reference")
    mask = torch.rand(8, 5) < 0.4
    mask[:, 0] = True
    with torch.no_grad():
        mpn.layers[0].m0.normal_()  # type: ignore[operator, union-attr]
        mpn.layers[0].weight.mul_(mask)  # type: ignore[operator]
    mpn.layers[0].mask = mask  # type: ignore[assignment]
    xs, reset = torch.randn(3, 12, 5), torch.rand(3, 12) < 0.2
    hs, state = mpn.unroll(xs, torch.randn(3, 8, 5), reset)
    assert (state[:, ~mask] == 0).all() and (state[:, mask] != 0).any()
    # The same by a network that never had those synapses: inputs seen by one unit at a time.
    layer: Any = mpn.layers[0]
    for unit in range(8):
        kept = mask[unit]
        small = MPN(int(kept.sum()), 1, form=form, rule=rule, eta=0.7, train_m0=True, kernel="reference")
        one: Any = small.layers[0]
        with torch.no_grad():
            one.weight.copy_(layer.weight[unit, kept][None])
            one.bias.copy_(layer.bias[unit : unit + 1])
            one.m0.copy_(layer.m0[unit, kept][None])
        start = torch.zeros(3, 1, int(kept.sum()))
        first = torch.zeros(3, 12, dtype=torch.bool)
        first[:, 0] = True
        alone, _ = small.unroll(xs[..., kept], start, reset | first)
        full, _ = mpn.unroll(xs, torch.randn(3, 8, 5), reset | first)
        torch.testing.assert_close(full[..., unit : unit + 1], alone)
    hs.sum().backward()
    assert (layer.weight.grad[mask] != 0).any() and torch.isfinite(layer.eta.grad).all()


def test_a_masked_mpn_loads_into_a_plain_network_and_acts_alike() -> None:
    for form in ("multiplicative", "additive"):
        agent, _, _ = mpn_bench(form)
        plain = MPNDQN(5, 16, 3, form=form)
        plain.load_state_dict(through_file(agent.state_dict()))
        state, other = agent.init_state(4), plain.init_state(4)
        with torch.no_grad():
            for _ in range(6):
                obs = torch.randn(4, 5)
                (q, state), (r, other) = agent(obs, state), plain(obs, other)
                assert q.equal(r) and state.equal(other)
    dense = MPNDQN(5, 16, 3)
    assert not any("mask" in key for key in dense.state_dict())  # checkpoints without expansion are as ever
    MPNDQN(5, 16, 3).load_state_dict(dense.state_dict())


def test_a_masked_multiplicative_mpn_acts_as_one_that_only_has_zero_weights() -> None:
    agent, _, topology = mpn_bench()
    plain = copy.deepcopy(agent)
    plain.core.layers[0].mask = None  # type: ignore[index, union-attr]
    obs = torch.randn(4, 20, 5)
    with torch.no_grad():
        masked, _ = agent.unroll(obs, agent.init_state(4))
        free, _ = plain.unroll(obs, plain.init_state(4))
    torch.testing.assert_close(masked, free)
    assert topology.densities() == {"online": pytest.approx(0.2, abs=1e-3),
                                    "online/core.layers.0.weight": pytest.approx(0.2, abs=1e-3)}  # fmt: skip


def test_the_acting_state_forgets_synapses_that_changed() -> None:
    agent, target, topology = mpn_bench(schedule="linear")
    state = agent.unroll(torch.randn(4, 6, 5), agent.init_state(4))[1].detach()
    mask = topology.layers["online"][0].mask.clone()
    for step in range(1, 11):
        agent.unroll(torch.randn(4, 6, 5), agent.init_state(4))[0].square().mean().backward()
        topology.before_step("online")
        topology.optimizers["online"].step()
        topology.after_step("online")
        happened = topology.advance(step)
    assert happened
    now = topology.layers["online"][0].mask
    fresh = topology.reset_state(agent, state)
    gone, grown, stays = mask & ~now, now & ~mask, mask & now & ~topology.changed["online"]["core.layers.0.weight"]
    assert gone.any() and grown.any() and (fresh[:, gone | grown] == 0).all()
    assert fresh[:, stays].equal(state[:, stays]) and (state[:, gone] != 0).any()
    assert target.core.layers[0].mask is now and topology.reset_state(target, state) is not None  # type: ignore[index, union-attr]
    two = MPN(5, 4, num_layers=2)
    forgotten = two.forget(tuple(torch.ones(2, 4, d) for d in (5, 4)), {"layers.1.weight": torch.eye(4) > 0})
    assert forgotten[0].eq(1).all() and forgotten[1].sum() == 2 * 12
    gru = MPNDQN(5, 16, 3, core=RecurrentCore("gru", 32, 16))
    kept = gru.init_state(2)
    assert topology.reset_state(gru, kept) is kept


# --- Backpropamine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["connection", "neuron"])
def test_backpropamine_is_masked_in_w_and_in_an_alpha_of_its_connections(shape: str) -> None:
    core = Backpropamine(32, 12, alpha_shape=shape, modulation="simple")
    agent = MPNDQN(5, 12, 3, core=core)
    masked = {"core.weight", "core.input.weight", *(["core.alpha"] if shape == "connection" else [])}
    assert set(synapses(agent)) - masked == {"encoder.embedding.weight", "head.weight"}
    assert ends(agent)[0] >= {"encoder.embedding"} and ends(agent)[1] >= {"head"}
    optimizer = torch.optim.Adam(agent.parameters())
    config = cfg.PaperExpansionConfig(schedule="linear", update_interval=10)
    topology = Topology(config, {"online": agent}, {}, {"online": optimizer}, 0, STEPS)
    assert {layer.name for layer in topology.layers["online"]} == masked
    for step in range(1, 31):
        optimizer.zero_grad()
        agent.unroll(torch.randn(4, 6, 5), agent.init_state(4))[0].square().mean().backward()
        topology.before_step("online")
        optimizer.step()
        topology.after_step("online")
        topology.advance(step)
        for layer in topology.layers["online"]:
            assert (layer.weight[~layer.mask] == 0).all()
    assert topology.densities()["online"] == pytest.approx(0.2 + 0.3 * 0.55, abs=0.01)


# --- a core of one's own -------------------------------------------------------------------------------------


class Fading(nn.Module):
    """A core whose weights, state and methods have names that no core of the toolkit uses: h = (S * (F + 1)) x."""

    feedforward = True

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.strength, self.baseline = nn.Parameter(torch.randn(units, inputs)), nn.Parameter(torch.randn(1, units))
        self.hidden_dim = units
        self.kept: dict[str, Tensor] = {}

    def maskable_weights(self) -> tuple[str, ...]:
        return ("strength",)

    def set_mask(self, weight: str, mask: Tensor) -> None:
        self.kept[weight] = mask

    def forget(self, state: tuple[Tensor, ...], changed: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (state[0].masked_fill(changed["strength"], 0.0), state[1]) if changed else state

    def init_state(self, batch_size: int, device: Any = None) -> tuple[Tensor, Tensor]:
        return self.strength.new_zeros(batch_size, *self.strength.shape), self.strength.new_zeros(batch_size, 1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        fading, count = state
        h = torch.einsum("bhd,bd->bh", self.strength * (fading + 1), x) + self.baseline
        return h, (0.5 * fading + x[:, None, :], count + 1)

    def unroll(self, xs: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        hs = []
        for x in xs.unbind(1):
            h, state = self(x, state)
            hs.append(h)
        return torch.stack(hs, 1), state


def test_a_core_declares_by_any_name_what_is_masked_and_what_is_forgotten() -> None:
    """Only `strength` is masked, not the matrix `baseline`; the core gets the mask and clears its own state."""
    torch.manual_seed(0)
    agent = MPNDQN(5, 16, 3, core=Fading(32, 16))  # type: ignore[arg-type]
    target = copy.deepcopy(agent).requires_grad_(False)
    optimizer = torch.optim.Adam(agent.parameters())
    config = options("rigl", exempt="encoder.*,head.*", sparsity=0.5)
    topology = Topology(config, {"online": agent}, {"online": target}, {"online": optimizer}, 0, STEPS)
    assert [layer.name for layer in topology.layers["online"]] == ["core.strength"]
    for step in range(1, 11):
        optimizer.zero_grad()
        agent.unroll(torch.randn(4, 6, 5), agent.init_state(4))[0].square().mean().backward()
        topology.before_step("online")
        optimizer.step()
        topology.after_step("online")
        happened = topology.advance(step)
    mask, changed = topology.layers["online"][0].mask, topology.changed["online"]["core.strength"]
    assert happened and changed.any() and not changed.all()
    for network in (agent, target):
        assert network.core.kept == {"strength": mask}
        assert (network.core.strength[~mask] == 0).all() and (network.core.strength[mask & ~changed] != 0).all()
    fading, count = topology.reset_state(agent, (torch.ones(2, 16, 32), torch.ones(2, 1)))
    assert (fading[:, changed] == 0).all() and (fading[:, ~changed] == 1).all() and count.eq(1).all()


# --- saving --------------------------------------------------------------------------------------------------

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("paper", {"prune_ratio": 0.3, "dormancy_tau": 0.4, "new_weights": "lecun"}),
    ("paper", {"grow": "accumulated", "grad_accumulation_n": 3}),
    ("paper", {"grow": "random"}),
    ("reference", {}),
    ("rigl", {}),
    ("redo", {"dormancy_tau": 0.5}),
    ("static", {}),
]


@pytest.mark.parametrize(("kind", "values"), KINDS)
@pytest.mark.parametrize("stop", [7, 39, 40])
def test_resume_is_bit_exact(kind: str, values: dict[str, Any], stop: int) -> None:
    def fresh() -> Bench:
        torch.manual_seed(9)
        return Bench(mlp(6, 20, 20, 2), options(kind, **values))

    whole, first, second = fresh(), fresh(), fresh()
    whole.train(80)
    first.train(stop)
    second.load_state_dict(through_file(first.state_dict()))
    second.train(80 - stop)
    for one, other in zip(_tensors(whole.state_dict()), _tensors(second.state_dict()), strict=True):
        assert one.equal(other)
    assert whole.topology.densities() == second.topology.densities()
    assert whole.topology.churn() == second.topology.churn()


def _tensors(part: Any) -> list[Tensor]:
    if isinstance(part, dict):
        return [tensor for value in part.values() for tensor in _tensors(value)]
    if isinstance(part, (list, tuple)):
        return [tensor for value in part for tensor in _tensors(value)]
    return [part] if isinstance(part, Tensor) else []


def test_an_update_between_save_and_event_is_not_needed() -> None:
    """Saved after the last update before an event, the event is the same."""
    whole = Bench(mlp(6, 20, 2), options(prune_ratio=0.3, dormancy_tau=0.5, schedule="linear"))
    whole.train(9)
    other = Bench(mlp(6, 20, 2), options(prune_ratio=0.3, dormancy_tau=0.5, schedule="linear"))
    other.load_state_dict(copy.deepcopy(through_file(whole.state_dict())))
    for bench in (whole, other):
        bench.topology.advance(10)
    assert all(mask.equal(other.masks()[key]) for key, mask in whole.masks().items())


PUBLISHED = {  # --static_actor --stl_critic --init_method lecun --actor_sparsity 0.25 --critic_sparsity 0.25
    "expansion": "reference",  # --initial_stl_sparsity 0.8 --uni --grad_accumulation_n 1
    "static_actor": True,
    "new_weights": "lecun",
    "actor_sparsity": 0.25,
    "critic_sparsity": 0.25,
    "initial_sparsity": 0.8,
    "schedule": "constant",
    "grow": "gradient",
}


def td3(steps: int) -> TD3Learner:
    torch.manual_seed(4)
    config = cfg.make_config("train", {"learner": "td3", "core": "mlp", "update_interval": 4, **PUBLISHED})
    learner = TD3Learner(Actor(7, 24, 2, low=-np.ones(2), high=np.ones(2)), config.learner, 0)
    parts = (learner.networks, learner.targets, learner.optimizers)
    learner.topology = Topology(config.expansion, *parts, seed=0, total_steps=steps)
    return learner


def practise(learner: TD3Learner, first: int, last: int) -> None:
    for step in range(first, last):
        draw = np.random.default_rng(step)
        obs, action = draw.standard_normal((16, 2, 7)), draw.uniform(-1, 1, (16, 1, 2))
        fields = {
            "obs": torch.tensor(obs, dtype=torch.float32),
            "reset": torch.zeros(16, 2, dtype=torch.bool),
            "action": torch.tensor(action, dtype=torch.float32),
            "reward": torch.tensor(draw.standard_normal((16, 1)), dtype=torch.float32),
        }
        still = {"terminated": torch.zeros(16, 1), "mask": torch.ones(16, 1), "state0": torch.zeros(16, 0)}
        learner.update(Batch(**fields, **still, burn_in=0, weight=torch.ones(16), places=np.arange(16)))
        learner.topology.advance(step + 1)


def test_the_published_example_has_a_counterpart() -> None:
    learner = td3(400)
    actor = {layer.name: layer.mask.clone() for layer in learner.topology.layers["actor"]}
    assert learner.topology.densities()["actor"] == pytest.approx(0.75, abs=0.01)
    assert learner.topology.densities()["critic"] == pytest.approx(0.2, abs=0.01)
    practise(learner, 0, 40)
    assert all(layer.mask.equal(actor[layer.name]) for layer in learner.topology.layers["actor"])
    room = 0.55 * 10 * 0.008 * 0.6  # ten events
    assert learner.topology.densities()["critic"] == pytest.approx(0.2 + room, abs=0.005)
    for name, network in learner.networks.items():
        for layer in learner.topology.layers[name]:
            for net in (network, learner.targets[name]):
                assert (net.get_parameter(layer.name)[~layer.mask] == 0).all()


def test_a_learners_checkpoint_holds_both_topologies(tmp_path: Path) -> None:
    whole, first, second = (td3(400) for _ in range(3))
    practise(whole, 0, 30)
    practise(first, 0, 17)
    save_checkpoint(tmp_path / "last.pt", {"learner": first.state_dict()})
    second.load_state_dict(load_checkpoint(tmp_path / "last.pt")["learner"])
    practise(second, 17, 30)
    for one, other in zip(_tensors(whole.state_dict()), _tensors(second.state_dict()), strict=True):
        assert one.equal(other)


def test_history_has_the_masks_over_time() -> None:
    bench = Bench(mlp(6, 20, 2), options(schedule="linear"))
    first = {key: mask.clone() for key, mask in bench.masks().items()}
    bench.train(STEPS)
    history = bench.topology.history()
    assert history["step"][0] == 0 and history["step"][-1] == STEPS and len(history["step"]) == 9
    for key, mask in bench.masks().items():
        stack = history[f"online/{key}"]
        assert stack.dtype == bool and stack.shape == (9, *mask.shape)
        assert np.array_equal(stack[0], first[key].numpy()) and np.array_equal(stack[-1], mask.numpy())


# --- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, "--sparsity must lie in [0, 1), got 1.0"),
        ({"initial_sparsity": -0.1}, "--initial-sparsity must lie in [0, 1), got -0.1"),
        ({"critic_sparsity": 1.5}, "--critic-sparsity must lie in [0, 1), got 1.5"),
        ({"sparsity": 0.9}, "--initial-sparsity must be at least the final sparsity 0.9"),
        ({"prune_ratio": 1.0}, "--prune-ratio must lie in [0, 1), got 1.0"),
        ({"grow": "none"}, "--grow none keeps --initial-sparsity 0.8; set that to none"),
        ({"grow": "accumulated"}, "--grow accumulated and --grad-accumulation-n of 2 or more go together"),
        ({"grad_accumulation_n": 4}, "--grow accumulated and --grad-accumulation-n of 2 or more go together"),
        ({"schedule": "constant"}, "--schedule constant needs a rate, --grow-fraction"),
        ({"schedule": "linear", "grow_fraction": 0.1}, "--grow-fraction does nothing with --schedule linear"),
        ({"expansion_start": 9, "expansion_end": 9}, "--expansion-end must lie after --expansion-start = 9, got 9"),
        ({"grow": "fastest"}, "--grow must be one of gradient, accumulated, random, none, got 'fastest'"),
        ({"update_interval": 101}, "--update-interval must be at most the 100 environment steps"),
        ({"expansion_end": 101}, "--expansion-end must be at most the run's 100 environment steps, got 101"),
        ({"expansion_start": 100}, "--expansion-start must lie before the events' end at step 100, got 100"),
        ({"static_actor": True}, "--static-actor is for td3, which has one; this learner has online"),
        ({"critic_sparsity": 0.5}, "--critic-sparsity is for td3"),
        ({"exempt": "1.weight"}, "--exempt names no layer with '1.weight'; did you mean '2.weight' or '0.weight'?"),
        ({"exempt": "*"}, "--exempt '*' leaves no layer of online to expand; exempt fewer"),
    ],
)
def test_a_mistake_gives_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Bench(mlp(4, 5, 2), options(**values))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"kind": "static"}, {"kind": "paper", "static_actor": True, "static_critic": True}])
def test_a_run_shorter_than_the_interval_is_possible_without_events(values: dict[str, Any]) -> None:
    config = options(**values, update_interval=1_000)
    weights = {"actor": ["0.weight"], "critic": ["0.weight"]}
    assert check_fits(config, weights, total_steps=100) == 0


def test_a_schedule_in_steps_needs_a_run_in_steps() -> None:
    with pytest.raises(ConfigError, match="give --total-steps"):
        Bench(mlp(4, 5, 2), options(), total_steps=None)  # type: ignore[arg-type]


def test_presets_share_their_fields_and_read_back() -> None:
    choices = cfg.choices("expansion")
    names = {name for name, choice in choices.items() if choice.section is cfg.PaperExpansionConfig}
    assert names == {"paper", "reference", "grow", "static", "rigl", "redo"}
    assert set(choices) - names == {"none", "l2-init", "shrink-perturb", "continual-backprop"}
    for name in names:
        config = cfg.make_config("train", {"expansion": name, "sparsity": 0.1})
        again = cfg.config_from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config and again.expansion.name == config.expansion.name == name
        assert type(again.expansion) is cfg.PaperExpansionConfig


# --- the published names -------------------------------------------------------------------------------------


def test_the_published_scheduler_works_as_written() -> None:
    model = mlp(20, 30, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = STL_Scheduler(model, optimizer, 0.25, 200, static_topo=False, zeta=0.1, delta=10, init_method="lecun")
    for _ in range(201):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        if scheduler():
            optimizer.step()
    masks = {layer.name: layer.mask for layer in scheduler.topology.layers["model"]}
    assert scheduler.topology.densities()["model"] == pytest.approx(0.75, abs=0.01)
    assert all((model.get_parameter(key)[~mask] == 0).all() for key, mask in masks.items())
    other = STL_Scheduler(mlp(20, 30, 2), optimizer, 0.25, 200, zeta=0.1, delta=10, init_method="lecun")
    other.load_state_dict(through_file(scheduler.state_dict()))
    assert other.calls == 201 and other.topology.densities() == scheduler.topology.densities()


@pytest.mark.parametrize("simple", [True, False])
def test_the_published_scheduler_takes_what_the_published_code_passes(simple: bool) -> None:
    model = mlp(20, 30, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = STL_Scheduler(
        model, optimizer, static_topo=False, sparsity=0.25, T_end=1e2, delta=10, zeta=0.1, grad_accumulation_n=2,
        use_simple_metric=simple, initial_stl_sparsity=0.6,
    )  # fmt: skip
    assert scheduler.topology.densities()["model"] == pytest.approx(0.4, abs=0.01)
    for _ in range(101):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        assert scheduler()
        optimizer.step()
    assert scheduler.topology.densities()["model"] == pytest.approx(0.4 + 10 * 0.1 * 0.35 * (1 - 0.4), abs=0.01)


def test_the_published_scheduler_names_what_it_does_not_take() -> None:
    model = mlp(20, 30, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ConfigError, match="^STL_Scheduler has no argument 'complex_prune'"):
        STL_Scheduler(model, optimizer, 0.25, 200, complex_prune=True)
    with pytest.raises(ConfigError, match="^T_end must be a number of calls, at least 1, got inf$"):
        STL_Scheduler(model, optimizer, 0.25, math.inf)


def test_the_published_scheduler_with_its_own_defaults() -> None:
    model = mlp(20, 30, 2)
    optimizer = torch.optim.Adam(model.parameters())
    for static, density in ((False, 0.2), (True, 0.75)):
        scheduler = STL_Scheduler(model, optimizer, sparsity=0.25, T_end=50, static_topo=static)
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(8, 20)).square().mean().backward()
            assert scheduler()
            optimizer.step()
        assert scheduler.topology.densities()["model"] == pytest.approx(density, abs=0.01)


def test_sparsity_zero_is_a_dense_network_that_learns() -> None:
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = STL_Scheduler(model, optimizer, sparsity=0.0, T_end=100, initial_sparsity=0.0)
    before = model[0].weight.detach().clone()
    model(torch.randn(8, 4)).square().mean().backward()
    if scheduler():
        optimizer.step()
    assert scheduler.topology.densities() == {"model": 1.0} and not model[0].weight.equal(before)
