"""Remedies without a topology: equations by hand, every learner and core, exact resume, refusals."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_utils import Experiment, load_checkpoint
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.expansion.plasticity_remedies import L2Init, ShrinkPerturb
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import StateError
from mpn_rl.training import Run

KINDS = ("l2-init", "shrink-perturb", "continual-backprop")
CPU = torch.device("cpu")


def options(kind: str, **values: Any) -> Any:
    return cfg.choices("expansion")[kind].build(**values)


def line(weight: float, bias: float, gain: float = 1.0) -> nn.Sequential:
    """A network of one weight, one bias, and a LayerNorm without bias."""
    network = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1, bias=False))
    for part, value in zip(network.parameters(), (weight, bias, gain), strict=True):
        part.data.fill_(value)
    return network


def values(network: nn.Module) -> list[float]:
    return [part.item() for part in network.parameters()]


# --- L2 towards the initial weights -----------------------------------------------------------------------


def test_the_pull_is_two_c_times_the_distance_from_the_initial_weights() -> None:
    network = line(0.5, 0.25, 1.0)
    remedy = L2Init(options("l2-init", l2_init_coef=0.1), {"online": network})
    weight, bias, gain = network.parameters()
    weight.data.fill_(0.8)
    gain.data.fill_(0.5)
    weight.grad, bias.grad, gain.grad = torch.tensor([[1.0]]), torch.tensor([2.0]), torch.tensor([3.0])
    remedy.before_step("online")
    assert weight.grad.item() == pytest.approx(1.0 + 2 * 0.1 * 0.3)
    assert bias.grad.item() == 2.0
    assert gain.grad.item() == pytest.approx(3.0 + 2 * 0.1 * -0.5)
    torch.optim.SGD(network.parameters(), lr=0.5).step()
    assert values(network) == pytest.approx([0.8 - 0.5 * 1.06, 0.25 - 1.0, 0.5 - 0.5 * 2.9])


def test_the_gradient_is_that_of_the_loss_with_the_penalty() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    start = [part.detach().clone() for part in network.parameters()]
    remedy = L2Init(options("l2-init", l2_init_coef=0.03), {"online": network})
    for part in network.parameters():
        part.data += torch.randn_like(part)
    loss = network(torch.randn(5, 4)).square().mean()
    penalty = sum((part - first).square().sum() for part, first in zip(network.parameters(), start, strict=True))
    expected = torch.autograd.grad(loss + 0.03 * penalty, list(network.parameters()), retain_graph=True)
    loss.backward()
    remedy.before_step("online")
    for part, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(part.grad, gradient)


def test_a_weight_without_a_gradient_is_not_pulled() -> None:
    network = line(0.5, 0.25)
    network[0].bias.requires_grad_(False)
    remedy = L2Init(options("l2-init"), {"online": network})
    for part in network.parameters():
        part.data += 1.0
    remedy.before_step("online")
    assert all(part.grad is None for part in network.parameters())
    assert set(remedy.state_dict()["initial"]["online"]) == {"0.weight", "1.weight"}


def test_a_weight_that_no_loss_moves_returns_to_its_initial_value() -> None:
    network = line(0.5, 0.25)
    remedy = L2Init(options("l2-init", l2_init_coef=0.25), {"online": network})
    network[0].weight.data.fill_(4.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for distance in (2.0, 1.0, 0.5):  # each step halves it: 1 - lr 2 c
        for part in network.parameters():
            part.grad = torch.zeros_like(part)
        remedy.before_step("online")
        optimizer.step()
        assert values(network) == [0.5 + distance, 0.25, 1.0]


# --- shrink and perturb -----------------------------------------------------------------------------------


class Bench:
    """A network of three parameters with a target, an average and an optimiser; it draws 1, 2, 3, ... in turn."""

    def __init__(self, total_steps: int | None = None, **flags: Any) -> None:
        self.network, self.target, self.average = line(2.0, -1.0, 1.5), line(3.0, 0.0, 1.25), line(4.0, 1.0, 1.75)
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.seeds: list[int] = []
        config = options("shrink-perturb", **{"update_interval": 10, **flags})
        parts = {"online": self.network}, ({"online": self.target}, {"online": self.average}, {})
        self.remedy = ShrinkPerturb(config, *parts, {"online": self.optimizer}, self.draw, 7, total_steps)

    def draw(self, seed: int) -> Mapping[str, nn.Module]:
        self.seeds.append(seed)
        return {"online": line(float(len(self.seeds)), -float(len(self.seeds)))}

    def update(self) -> None:
        for part in self.network.parameters():
            part.grad = torch.zeros_like(part)
        self.remedy.before_step("online")
        self.optimizer.step()
        self.remedy.after_step("online")


def test_an_event_mixes_weights_and_their_copies_with_the_same_new_draw() -> None:
    bench = Bench(shrink_factor=0.75, perturb_factor=0.5)
    bench.update()
    assert not bench.remedy.advance(9)
    assert values(bench.network) == [2.0, -1.0, 1.5]
    assert bench.remedy.advance(10)  # draws 3: two draws have shown what the initialisation draws
    assert values(bench.network) == [0.75 * 2.0 + 0.5 * 3.0, 0.75 * -1.0 + 0.5 * -3.0, 1.5]
    assert values(bench.target) == [0.75 * 3.0 + 0.5 * 3.0, 0.75 * 0.0 + 0.5 * -3.0, 1.25]
    assert values(bench.average) == [0.75 * 4.0 + 0.5 * 3.0, 0.75 * 1.0 + 0.5 * -3.0, 1.75]


def test_the_defaults_are_four_fifths_and_one_fifth() -> None:
    bench = Bench()
    bench.update()
    bench.remedy.advance(10)
    assert values(bench.network) == pytest.approx([0.8 * 2.0 + 0.2 * 3.0, 0.8 * -1.0 + 0.2 * -3.0, 1.5])


def test_adam_starts_again_for_the_changed_weights_alone() -> None:
    bench = Bench()
    bench.update()
    bench.remedy.advance(10)
    weight, bias, gain = bench.network.parameters()
    assert set(bench.optimizer.state) == {gain}
    before = weight.item()
    for part in (weight, bias, gain):
        part.grad = torch.full_like(part, 0.01)
    bench.optimizer.step()
    assert weight.item() == pytest.approx(before - 1e-3, rel=1e-4)  # the first step has the size of the learning rate
    assert [int(bench.optimizer.state[part]["step"]) for part in (weight, bias, gain)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("total_steps", "expected"), [(32, [12, 20]), (33, [12, 20, 32]), (40, [12, 20, 32]), (None, [12, 20, 32, 40])]
)
def test_events_happen_at_the_interval_but_not_at_the_end(total_steps: int | None, expected: list[int]) -> None:
    bench = Bench(total_steps)
    bench.update()
    assert [step for step in range(4, 44, 4) if bench.remedy.advance(step)] == expected
    assert len(set(bench.seeds)) == 2 + len(expected)


def test_several_intervals_in_one_step_are_one_event() -> None:
    bench = Bench(shrink_factor=0.5, perturb_factor=0.0)
    bench.update()
    assert bench.remedy.advance(35) and not bench.remedy.advance(39)
    assert values(bench.network)[0] == 1.0


def test_a_network_is_not_changed_before_its_first_update() -> None:
    bench = Bench()
    assert not bench.remedy.advance(10)
    assert values(bench.network) == [2.0, -1.0, 1.5]
    bench.update()
    assert not bench.remedy.advance(19) and bench.remedy.advance(20)


@pytest.mark.parametrize("core", cfg.choices("core"))
def test_new_weights_have_the_distribution_of_every_cores_initialisation(core: str) -> None:
    flags = {"core": core, "expansion": "shrink-perturb", "shrink_factor": 0.0, "perturb_factor": 1.0}
    config = cfg.make_config("train", {**flags, "hidden_dim": 40})
    learner: Any = registry.make_learner(config, registry.Spaces(4, 3), CPU)
    before = {key: part.detach().clone() for key, part in learner.online.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        drawn = [_new_network(config, seed) for seed in range(8)]
    learner.topology.before_step("online")
    assert learner.topology.advance(10_000)
    for key, part in learner.online.named_parameters():
        draws = torch.stack([other[key] for other in drawn])
        if draws[0].equal(draws[1]):
            assert part.equal(before[key]), key  # eta, lambda, M(0)
            continue
        assert not part.equal(before[key]), key
        assert part.equal(learner.target.get_parameter(key))
        assert draws.min() - 0.3 * draws.std() <= part.min() and part.max() <= draws.max() + 0.3 * draws.std(), key
        if part.numel() > 500:
            assert part.std().item() == pytest.approx(draws.std().item(), rel=0.1), key


def _new_network(config: cfg.Config, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed + 100)
    return {key: part.detach() for key, part in registry.make_network(config, registry.Spaces(4, 3)).named_parameters()}


@pytest.mark.parametrize(("eta_init", "moves"), [("constant", False), ("xavier", True)])
def test_eta_is_perturbed_only_where_it_is_drawn_as_weights_are(eta_init: str, moves: bool) -> None:
    config = cfg.make_config("train", {"expansion": "shrink-perturb", "hidden_dim": 6, "eta_init": eta_init})
    learner: Any = registry.make_learner(config, registry.Spaces(4, 3), CPU)
    layer = learner.online.core.layers[0]
    eta, decay = layer.eta.detach().clone(), layer.lambda_decay.detach().clone()
    learner.topology.before_step("online")
    learner.topology.advance(10_000)
    assert layer.eta.equal(eta) != moves and layer.lambda_decay.equal(decay)


# --- every learner, and resuming --------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "hidden_dim": 6, "embed_dim": 3, "num_envs": 2, "eval_freq": 0, "eval_episodes": 2, "learning_starts": 10,
    "update_every": 4, "batch_size": 4, "sequence_length": 4, "sequence_stride": 2, "burn_in": 2, "buffer_size": 200,
    "rollout_steps": 5, "kernel": "reference", "total_steps": 100, "plasticity_metrics_freq": 40, "epochs": 2,
    "max_episode_steps": 10, "update_interval": 30, "l2_init_coef": 0.1, "replacement_rate": 0.1,
    "maturity": 1, "checkpoint_freq": 0, "plot_training": False,
}  # fmt: skip
LEARNERS: dict[str, dict[str, Any]] = {
    "dqn": {},
    "a2c": {},
    "ppo": {},
    "td3": {"eval_average": True},
    "supervised": {"env_name": "TemporalOrder-v0"},
}


def tiny(kind: str, learner: str) -> cfg.Config:
    flags = {"learner": learner, "expansion": kind, **LEARNERS[learner]}
    base = cfg.make_config("train", flags)
    fields = [field for part in cfg.PARTS for field in dataclasses.fields(getattr(base, part))]
    small = {
        field.name: SMALL[field.name] for field in fields if field.name in SMALL and not cfg.idle_reason(field, base)
    }
    return cfg.make_config("train", {**small, **flags})


def start(config: cfg.Config, root: Path, name: str) -> Run:
    run = Run(config)
    run.start(Experiment.create(name, root, config.to_dict()))
    return run


def finished(run: Run) -> tuple[Experiment, Run]:
    while not run.done:
        run.advance()
    run.finish()
    assert run.experiment is not None
    return run.experiment, run


def leaves(node: Any) -> list[Any]:
    if isinstance(node, dict | list | tuple):
        return [leaf for value in (node.values() if isinstance(node, dict) else node) for leaf in leaves(value)]
    return [node.tolist() if isinstance(node, Tensor | np.ndarray) else node]


def test_the_learners_are_those_of_the_registry() -> None:
    assert set(LEARNERS) == set(cfg.choices("learner"))


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_learner_takes_it_and_resumes_bit_for_bit(kind: str, learner: str, tmp_path: Path) -> None:
    config = tiny(kind, learner)
    whole, run = finished(start(config, tmp_path, "whole"))
    parts = start(config, tmp_path, "parts")
    while parts.step < 50:
        parts.advance()
    parts.save()
    parts.advance()  # lost with the process
    assert parts.experiment is not None
    again, _ = finished(Run.resume(config, parts.experiment))
    assert whole.metrics_path.read_bytes() == again.metrics_path.read_bytes()
    one, other = (load_checkpoint(experiment.checkpoint("last")) for experiment in (whole, again))
    assert repr(leaves(one["learner"])) == repr(leaves(other["learner"]))

    assert run.learner.updates > 1
    measured = [row for row in whole.read_metrics() if row["kind"] == "plasticity"]
    assert measured
    for name in run.learner.networks:
        assert all(row[f"{name}/density"] == 1.0 and row[f"{name}/churn"] == 0.0 for row in measured)
        assert all(math.isfinite(row[f"{name}/weight_norm"]) for row in measured)
    without = dataclasses.replace(config, expansion=options("none"))
    _, plain = finished(start(without, tmp_path, "plain"))
    assert not all(
        part.equal(bare)
        for part, bare in zip(run.learner.policy.parameters(), plain.learner.policy.parameters(), strict=True)
    )


def test_theta_0_is_that_of_the_start_after_resuming(tmp_path: Path) -> None:
    config = tiny("l2-init", "dqn")
    run = start(config, tmp_path, "run")
    first = copy.deepcopy(run.learner.networks["online"].state_dict())
    while run.step < 50:
        run.advance()
    run.save()
    saved = load_checkpoint(run.experiment.checkpoint("last"))["learner"]  # type: ignore[union-attr]
    initial = saved["topology"]["initial"]["online"]
    assert initial and all(part.equal(first[key]) for key, part in initial.items())
    assert not all(part.equal(saved["networks"]["online"][key]) for key, part in initial.items())


def test_theta_0_is_loaded_and_pulls() -> None:
    config = tiny("l2-init", "td3")
    spaces = registry.Spaces(3, 1, -np.ones(1, np.float32), np.ones(1, np.float32))
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1))
    one, two = (registry.make_learner(each, spaces, CPU) for each in (config, other))
    topology: Any = one.topology
    assert set(topology.initial) == {"actor", "critic"}
    loaded = copy.deepcopy(two.state_dict())
    one.load_state_dict(loaded)
    loaded["topology"]["initial"]["actor"]["head.weight"] += 1.0  # one has a copy
    for name, weights in two.state_dict()["topology"]["initial"].items():
        assert all(part.equal(topology.initial[name][key]) for key, part in weights.items())
    for part in one.networks["actor"].parameters():
        part.grad = torch.zeros_like(part)
    topology.before_step("actor")
    assert all(part.grad is not None and not part.grad.any() for part in one.networks["actor"].parameters())


# --- damaged states and refused options -------------------------------------------------------------------


def test_a_damaged_theta_0_is_refused_in_one_line_before_anything_is_loaded() -> None:
    learner: Any = registry.make_learner(tiny("l2-init", "dqn"), registry.Spaces(4, 3), CPU)
    weight, place = "core.layers.0.weight", "learner.topology.initial.online.core.layers.0.weight"
    shape = tuple(learner.online.get_parameter(weight).shape)
    damages: list[tuple[Any, str]] = [
        (torch.ones(2, 2), f"{place} must have the shape {shape}, got (2, 2)"),
        (torch.full(shape, math.nan), f"{place} must lie in"),
        (torch.ones(shape, dtype=torch.float64), f"{place} must have the dtype torch.float32"),
        ("x", f"{place} must be a tensor"),
    ]
    for damage, reason in damages:
        state = copy.deepcopy(learner.state_dict())
        state["topology"]["initial"]["online"][weight] = damage
        state["networks"]["online"][weight] += 1.0
        before = learner.online.get_parameter(weight).detach().clone()
        with pytest.raises(StateError) as caught:
            learner.load_state_dict(state)
        assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)
        assert learner.online.get_parameter(weight).equal(before)
    state = copy.deepcopy(learner.state_dict())
    del state["topology"]["initial"]["online"][weight]
    with pytest.raises(StateError, match="weight is missing"):
        learner.load_state_dict(state)


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("done", 4, "learner.topology.done must lie in [0, 3], got 4"),
        ("done", -1, "learner.topology.done must lie in [0, 3], got -1"),
        ("updates", {"online": 1.5}, "learner.topology.updates.online must be a whole number"),
        ("generator", torch.zeros(3), "learner.topology.generator must have the dtype torch.uint8"),
        ("generator", torch.full_like(torch.Generator().get_state(), 255), "learner.topology.generator is no state of"),
    ],
)
def test_damaged_counters_and_generators_are_refused(part: str, value: Any, reason: str) -> None:
    learner: Any = registry.make_learner(tiny("shrink-perturb", "dqn"), registry.Spaces(4, 3), CPU)
    state = copy.deepcopy(learner.state_dict())
    state["topology"][part] = value
    with pytest.raises(StateError) as caught:
        learner.load_state_dict(state)
    assert str(caught.value).startswith(reason)


def test_the_state_of_another_expansion_is_refused() -> None:
    for kind, other in itertools.permutations(KINDS, 2):
        learner: Any = registry.make_learner(tiny(kind, "dqn"), registry.Spaces(4, 3), CPU)
        state = registry.make_learner(tiny(other, "dqn"), registry.Spaces(4, 3), CPU).state_dict()
        with pytest.raises(StateError, match=r"learner\.topology\.\w+ is (missing|unknown)"):
            learner.load_state_dict(state)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"l2_init_coef": 0.1}, "--l2-init-coef"),
        ({"expansion": "shrink-perturb", "l2_init_coef": 0.1}, "--l2-init-coef"),
        ({"expansion": "l2-init", "update_interval": 9}, "--update-interval"),
        ({"expansion": "l2-init", "shrink_factor": 0.5}, "--shrink-factor"),
        ({"expansion": "paper", "perturb_factor": 0.5}, "--perturb-factor"),
        ({"expansion": "l2-init", "l2_init_coef": 0.0}, "--l2-init-coef must be greater than 0.0, got 0.0"),
        ({"expansion": "shrink-perturb", "shrink_factor": 1.5}, "--shrink-factor must lie in [0.0, 1.0], got 1.5"),
        ({"expansion": "shrink-perturb", "perturb_factor": -1.0}, "--perturb-factor must lie in [0.0, 1.0], got -1.0"),
        (
            {"expansion": "shrink-perturb", "shrink_factor": 1.0, "perturb_factor": 0.0},
            "--shrink-factor 1.0 with --perturb-factor 0.0 changes no weight; take --expansion none",
        ),
    ],
)
def test_an_option_without_effect_or_out_of_range_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.make_config("train", flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("total_steps", [9, 10])
def test_a_run_that_ends_before_the_first_event_is_refused(total_steps: int) -> None:
    message = f"^--update-interval must be less than the run's {total_steps} environment steps, .* got 10$"
    with pytest.raises(ConfigError, match=message):
        Bench(total_steps)
