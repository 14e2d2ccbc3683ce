"""Continual backpropagation: equations by hand, every core, damaged states. Resuming is tested with the remedies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.expansion.continual_backprop import ContinualBackprop
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import StateError

CPU = torch.device("cpu")


def options(**values: Any) -> Any:
    return cfg.choices("expansion")["continual-backprop"].build(**values)


class Bench:
    """Two inputs, three ReLU units, one output, with Adam of step size 0: only the remedy changes weights."""

    def __init__(self, **flags: Any) -> None:
        self.network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        with torch.no_grad():
            self.network[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
            self.network[0].bias.zero_()
            self.network[2].weight.copy_(torch.tensor([[1.0, 2.0, -4.0]]))
            self.network[2].bias.fill_(0.5)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.0)
        networks = {"online": self.network}
        self.remedy = ContinualBackprop(options(**flags), networks, {"online": self.optimizer}, self.draw, 3)

    def draw(self, seed: int) -> Mapping[str, nn.Module]:
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for part in network.parameters():
                part.fill_(7.0)
        return {"online": network}

    def update(self, x: Tensor | None = None) -> None:
        self.optimizer.zero_grad()
        self.network(torch.tensor([[1.0, 2.0], [3.0, 2.0]]) if x is None else x).sum().backward()
        self.remedy.before_step("online")
        self.optimizer.step()
        self.remedy.after_step("online")

    @property
    def units(self) -> Any:
        return self.remedy.units["online"]["0"]


def test_utility_is_the_running_mean_of_activity_times_outgoing_weights() -> None:
    bench = Bench(utility_decay=0.75, maturity=100)
    bench.update()  # mean |h| = 2, 2, 4; outgoing 1, 2, 4
    assert bench.units["utility"].tolist() == pytest.approx([0.25 * 2, 0.25 * 4, 0.25 * 16])
    bench.update(torch.tensor([[0.0, 1.0]]))  # |h| = 0, 1, 1
    assert bench.units["utility"].tolist() == pytest.approx([0.375, 0.75 + 0.5, 3.0 + 1.0])
    assert bench.units["age"].tolist() == [2, 2, 2] and bench.units["due"] == 0.0


def test_the_mature_unit_of_least_utility_is_replaced_when_it_is_due() -> None:
    bench = Bench(utility_decay=0.5, maturity=2, replacement_rate=0.25)
    for due in (0.0, 0.0, 0.75):  # mature from the third update on: 3 units times a quarter
        bench.update()
        assert bench.units["due"] == due
    assert not bench.remedy.advance(10)
    bench.update()
    assert bench.units["due"] == 0.5 and bench.units["age"].tolist() == [0, 4, 4]
    first, _, second = bench.network
    assert first.weight.tolist() == [[7.0, 7.0], [0.0, 1.0], [1.0, 1.0]] and first.bias.tolist() == [7.0, 0.0, 0.0]
    assert second.weight.tolist() == [[0.0, 2.0, -4.0]] and second.bias.tolist() == [0.5]
    for weight, rows in ((first.weight, (0, ...)), (first.bias, (0,)), (second.weight, (..., 0))):
        state = bench.optimizer.state[weight]
        assert not state["exp_avg"][rows].any() and not state["exp_avg_sq"][rows].any()
        assert state["exp_avg"].any() and int(state["step"]) == 4
    assert bench.remedy.advance(11) and not bench.remedy.advance(12)


def test_a_new_unit_is_protected_until_it_is_mature() -> None:
    bench = Bench(utility_decay=0.5, maturity=2, replacement_rate=0.25)
    replaced = []
    for update in range(1, 10):
        bench.update()
        replaced += [(update, unit) for unit, age in enumerate(bench.units["age"].tolist()) if age == 0]
    # Of two mature units after the 4th update, 1 has the lower utility; 0 and 1 then have outgoing weights of 0.
    assert replaced == [(4, 0), (5, 1), (8, 0), (9, 1)]


def test_a_young_unit_is_not_replaced_because_its_mean_has_just_begun() -> None:
    """u / (1 - d^a): a new unit of higher use has a lower u than an old one."""
    bench = Bench(utility_decay=0.9, maturity=1, replacement_rate=0.4)
    bench.update()
    units = bench.units
    units["utility"].copy_(torch.tensor([3.0, 0.5, 9.0]))
    units["age"].copy_(torch.tensor([100, 1, 100]))
    bench.network[2].weight.data.copy_(torch.tensor([[1.5, 1.5, 4.0]]))
    bench.update()  # u = 3.0, 0.75, 9.7; corrected 3.0, 0.75 / (1 - 0.9^2) = 3.9, 9.7
    assert units["age"].tolist() == [0, 2, 101]


@pytest.mark.parametrize("core", cfg.choices("core"))
def test_every_core_has_units_to_replace(core: str) -> None:
    flags = {"core": core, "expansion": "continual-backprop", "replacement_rate": 1.0, "maturity": 0}
    config = cfg.make_config("train", {**flags, "hidden_dim": 6, "embed_dim": 3, "dueling": False})
    learner: Any = registry.make_learner(config, registry.Spaces(4, 3), CPU)
    network = learner.online
    obs = torch.randn(2, 5, 4)
    features = network.unroll(obs, network.init_state(2), torch.zeros(2, 5, dtype=torch.bool))
    (features[0] if isinstance(features, tuple) else features).sum().backward()
    for part in network.parameters():
        if part.requires_grad and part.grad is None:
            part.grad = torch.zeros_like(part)
    before = {key: part.detach().clone() for key, part in network.named_parameters()}
    learner.descend("online")
    assert learner.topology.units["online"], "no hidden layer was found"
    changed = [key for key, part in network.named_parameters() if not part.equal(before[key])]
    assert "head.weight" in changed and not network.get_parameter("head.weight").any()  # all units were due
    assert learner.topology.advance(1)


def test_units_are_reset_in_the_acting_state_of_an_mpn() -> None:
    flags = {"expansion": "continual-backprop", "hidden_dim": 4, "embed_dim": 3, "dueling": False}
    config = cfg.make_config("train", {**flags, "replacement_rate": 0.25, "maturity": 0})
    learner: Any = registry.make_learner(config, registry.Spaces(4, 3), CPU)
    network = learner.online
    network.unroll(torch.randn(2, 5, 4), network.init_state(2), torch.zeros(2, 5, dtype=torch.bool))[0].sum().backward()
    learner.descend("online")
    age = learner.topology.units["online"]["core.layers.0"]["age"]
    (unit,) = (age == 0).nonzero().flatten().tolist()
    state = torch.ones_like(network.init_state(2))
    assert learner.topology.advance(1)
    cleared = learner.topology.reset_state(network, state)
    assert not cleared[:, unit].any() and cleared[:, [row for row in range(4) if row != unit]].any()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda units: units["0"].update(utility=torch.full((3,), -1.0)), "utility must lie in"),
        (lambda units: units["0"].update(age=torch.zeros(3)), "age must have the dtype torch.int64"),
        (lambda units: units["0"].update(age=torch.zeros(2, dtype=torch.int64)), "has '0', which has not 3 units"),
        (lambda units: units["0"].update(due=float("nan")), "due must"),
        (lambda units: units.update(other=units.pop("0")), "has 'other', which has not 3 units"),
    ],
)
def test_a_damaged_state_is_refused(damage: Any, reason: str) -> None:
    bench = Bench()
    bench.update()
    state = copy.deepcopy(bench.remedy.state_dict())
    bench.remedy.check_state(state, "topology")
    damage(state["units"]["online"])
    with pytest.raises(StateError, match=reason):
        bench.remedy.check_state(state, "topology")


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="--utility-decay must be less than 1"):
        options(utility_decay=1.0)
