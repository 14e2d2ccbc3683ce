"""Plasticity metrics against cases worked by hand, and over every learner there is."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import visualize
from mpn_dqn import MPNDQN, DQNLearner
from mpn_module import MPN
from mpn_rl import config as cfg
from mpn_rl.contracts import Batch
from mpn_rl.expansion import growth_figures, plasticity_metrics
from mpn_rl.expansion.topology import Topology
from mpn_rl.learners.a2c import A2CLearner, ActorCritic
from mpn_rl.learners.td3 import Actor, TD3Learner
from mpn_rl.networks.baseline_cores import MLPCore, RecurrentCore
from mpn_rl.networks.encoder import Encoder

RELU = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 2.0, 0.0], [3.0, 0.0, 2.0, 0.1]])
TANH = torch.tensor([[0.5, 0.001, 0.995, -0.2], [-0.5, 0.002, -0.995, 0.0], [0.3, 0.0, 1.0, 0.3]])


def test_active_fraction_is_the_mean_over_units_and_rows() -> None:
    assert plasticity_metrics.active_fraction(RELU) == pytest.approx(6 / 12)


def test_live_fraction_counts_units_that_are_ever_active() -> None:
    assert plasticity_metrics.live_fraction(RELU) == pytest.approx(3 / 4)


def test_a_tanh_unit_is_active_where_it_is_neither_silent_nor_saturated() -> None:
    assert plasticity_metrics.active(TANH).int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 1]]
    assert plasticity_metrics.live_fraction(TANH) == pytest.approx(2 / 4)
    unbounded = torch.tensor([[-2.0, 0.995, 0.001]])
    assert plasticity_metrics.active(unbounded).tolist() == [[True, True, False]]


def test_dormant_fraction_compares_with_the_layers_mean() -> None:
    """E|h| = 4/3, 0, 2, 1/30; their mean 0.8417: scores 1.58, 0, 2.38, 0.04."""
    assert [plasticity_metrics.dormant_fraction(RELU, tau) for tau in (0.0, 0.03, 0.1, 2.0)] == [0.25, 0.25, 0.5, 0.75]


def test_rank_and_live_units_are_measured_at_256_rows() -> None:
    """The rank of 64 independent units grows with the rows; that of 256 evenly spaced ones does not."""
    torch.manual_seed(0)
    units = torch.randn(4096, 64)
    few, many = (plasticity_metrics.fixed_rows(units[:rows]) for rows in (256, 4096))
    assert len(few) == len(many) == 256 and torch.equal(few, units[:256]) and torch.equal(many, units[::16])
    assert plasticity_metrics.effective_rank(many) == pytest.approx(plasticity_metrics.effective_rank(few), rel=0.02)
    assert plasticity_metrics.effective_rank(units) > 1.02 * plasticity_metrics.effective_rank(few)
    assert torch.equal(plasticity_metrics.fixed_rows(units[:31]), units[:31])


def test_effective_rank_of_matrices_whose_rank_is_known() -> None:
    assert plasticity_metrics.effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert plasticity_metrics.effective_rank(torch.ones(7, 1) @ torch.randn(1, 4)) == pytest.approx(1.0, abs=1e-3)
    # sigma = 3, 1: p = 3/4, 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert plasticity_metrics.effective_rank(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(math.exp(entropy))
    assert plasticity_metrics.effective_rank(torch.zeros(3, 2)) == 0.0
    wide = torch.randn(6, 40)
    sigma = torch.linalg.svdvals(wide.double())
    share = sigma / sigma.sum()
    assert plasticity_metrics.effective_rank(wide) == pytest.approx(float((-share * share.log()).sum().exp()))


def test_stable_rank_and_feature_norm_by_hand() -> None:
    assert plasticity_metrics.stable_rank(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(10 / 9)
    assert plasticity_metrics.stable_rank(torch.eye(5)) == pytest.approx(5.0)
    assert plasticity_metrics.stable_rank(torch.zeros(3, 2)) == 0.0
    wide = torch.randn(6, 40)
    norms = wide.norm(), torch.linalg.matrix_norm(wide, 2)
    assert plasticity_metrics.stable_rank(wide) == pytest.approx(float((norms[0] / norms[1]) ** 2), rel=1e-5)
    assert plasticity_metrics.feature_norm(torch.tensor([[3.0, -4.0], [0.0, 1.0]])) == pytest.approx(3.0)


def test_the_norm_is_that_of_one_long_vector() -> None:
    assert plasticity_metrics.norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]) == 5.0
    assert plasticity_metrics.norm([]) == 0.0


# --- learners ------------------------------------------------------------------------------------------------

B, T, D, H, A = 6, 5, 4, 16, 3


def batch(network: Any, continuous: bool = False, steps: int = T) -> Batch:
    reset = torch.zeros(B, steps + 1, dtype=torch.bool)
    reset[:, 0] = True
    mask = torch.ones(B, steps)
    mask[0, -1] = 0.0
    return Batch(
        obs=torch.randn(B, steps + 1, D),
        reset=reset,
        action=torch.rand(B, steps, A) if continuous else torch.randint(A, (B, steps)),
        reward=torch.randn(B, steps),
        terminated=torch.zeros(B, steps),
        mask=mask,
        state0=network.init_state(B),
        burn_in=0,
        weight=torch.ones(B),
        places=np.arange(B),
    )


CORES: dict[str, Any] = {
    "mpn": lambda inputs: MPN(inputs, H),
    "gru": lambda inputs: RecurrentCore("gru", inputs, H),
    "mlp": lambda inputs: MLPCore(inputs, H, 2, "relu"),
}


def learner(kind: str, core: str) -> tuple[Any, Batch]:
    encoder = Encoder(D, 8, False)
    built = CORES[core](8)
    if kind == "dqn":
        network: Any = MPNDQN(D, H, A, encoder=encoder, core=built)
        return DQNLearner(network, cfg.DQNConfig(), 0), batch(network)
    if kind == "a2c":
        network = ActorCritic(D, H, A, encoder=encoder, core=built)
        return A2CLearner(network, cfg.A2CConfig(), 0), batch(network)
    if core == "mlp":
        encoder, built = Encoder(D, 0, False), CORES["mlp"](D)
    network = Actor(D, H, A, encoder=encoder, core=built, low=-np.ones(A), high=np.ones(A))
    return TD3Learner(network, cfg.TD3Config(), 0), batch(network, True, 1 if core == "mlp" else T)


UNITS = {
    "mpn": ["core.layers.0", "head"],
    "gru": ["core.net", "head"],
    "mlp": ["core.layers.0", "core.layers.1", "head"],
}


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("kind", ["dqn", "a2c", "td3"])
def test_every_learner_is_measured(kind: str, core: str) -> None:
    trained, sample = learner(kind, core)
    before = copy.deepcopy(trained.state_dict())
    metrics = plasticity_metrics.measure(trained, sample)
    for name in trained.networks:
        assert 0 < metrics[f"{name}/rows"] <= 256
        for key in ("active_fraction", "live_fraction", "dormant_fraction"):
            assert 0.0 <= metrics[f"{name}/{key}"] <= 1.0
        assert 1.0 <= metrics[f"{name}/effective_rank"] <= H and metrics[f"{name}/weight_norm"] > 0
    first = next(iter(trained.networks))
    units = UNITS[core][1:] if kind == "td3" and core == "mlp" else UNITS[core]
    assert [key.rpartition("/")[2] for key in metrics if key.startswith(f"{first}/active_fraction/")] == units
    assert all(math.isfinite(value) for value in metrics.values())
    for one, other in zip(_tensors(before), _tensors(trained.state_dict()), strict=True):
        assert one.equal(other)
    assert all(not module._forward_hooks for net in trained.networks.values() for module in net.modules())
    assert all(parameter.grad is None for net in trained.networks.values() for parameter in net.parameters())


def _tensors(part: Any) -> list[torch.Tensor]:
    if isinstance(part, dict):
        return [tensor for value in part.values() for tensor in _tensors(value)]
    return [part] if isinstance(part, torch.Tensor) else []


def test_activities_are_what_the_next_layer_reads_on_learned_steps() -> None:
    trained, sample = learner("dqn", "mlp")
    layers = plasticity_metrics.activities(trained, "online", sample)
    with torch.no_grad():
        learned = sample.obs[:, :T][sample.mask > 0]
        embedded = trained.online.encoder(learned)
        first = torch.relu(trained.online.core.layers[0](embedded))
        second = torch.relu(trained.online.core.layers[1](first))
    for key, expected in zip(UNITS["mlp"], (embedded, first, second), strict=True):
        torch.testing.assert_close(layers[key], expected)


def test_density_churn_and_gradient_norm_are_measured_where_there_are_any() -> None:
    trained, sample = learner("dqn", "mpn")
    expansion = cfg.choices("expansion")["rigl"].build(sparsity=0.5, update_interval=10)
    trained.topology = Topology(expansion, trained.networks, trained.targets, trained.optimizers, 0, 1000)
    trained.update(sample)
    trained.topology.advance(10)
    trained.grad_norms = {"online": torch.tensor(2.5)}
    metrics = plasticity_metrics.measure(trained, sample)
    assert metrics["online/density"] == pytest.approx(0.5)
    assert 0 < metrics["online/churn"] <= 2 * 0.3 * 0.5
    assert metrics["online/grad_norm"] == 2.5
    assert plasticity_metrics.measure(trained, sample)["online/churn"] == 0.0


def test_killing_units_shows() -> None:
    trained, sample = learner("td3", "mlp")
    fresh = plasticity_metrics.measure(trained, sample)
    critic: nn.Sequential = trained.critic.q1
    with torch.no_grad():
        critic[0].bias[: H // 2] = -100.0  # type: ignore[index]
    metrics = plasticity_metrics.measure(trained, sample)
    assert metrics["critic/active_fraction/q1.2"] < fresh["critic/active_fraction/q1.2"]
    assert plasticity_metrics.live_fraction(plasticity_metrics.activities(trained, "critic", sample)["q1.2"]) <= 0.5
    assert metrics["actor/active_fraction"] == fresh["actor/active_fraction"]


# --- pictures ------------------------------------------------------------------------------------------------


def test_every_weight_shows_its_past() -> None:
    masks = np.array([[[1, 1, 0, 0, 0]], [[1, 0, 1, 0, 0]], [[1, 1, 0, 1, 0]]], dtype=bool)
    # From the start; pruned and grown again; grown and pruned; grown; never.
    assert growth_figures.mask_history(masks).tolist() == [[[1, 1, 0, 0, 0]], [[1, 3, 2, 0, 0]], [[1, 2, 3, 2, 0]]]


def test_figures_of_growth_are_drawn_also_where_a_run_lacks_a_quantity(tmp_path: Path) -> None:
    curves = [([0, 10, 20], [0.2, 0.5, 0.75]), ([0, 10, 20], [0.2, 0.4, 0.75])]
    runs = {"paper": {"density": curves, "return": curves}, "dense": {"return": curves}}
    figure = growth_figures.expansion_figure(runs, title="growth")
    assert [ax.get_ylabel() for ax in figure.axes] == ["density", "return"]
    assert [len(ax.get_legend_handles_labels()[1]) for ax in figure.axes] == [1, 2]
    assert visualize.save_figure(figure, tmp_path / "a.png").stat().st_size > 0
    masks = np.random.default_rng(0).random((9, 12, 5)) < 0.4
    drawn = growth_figures.mask_figure(masks, np.arange(9) * 1000, title="W")
    assert [ax.get_title(loc="left").split()[0] for ax in drawn.axes] == ["0", "2k", "4k", "6k", "8k"]
    assert len(growth_figures.mask_figure(masks[:1], [0]).axes) == 1
    assert visualize.save_figure(drawn, tmp_path / "b.png").stat().st_size > 0


def test_rows_become_curves_by_network_and_several_runs_become_groups() -> None:
    rows = [
        {"kind": "episode", "step": 1, "reward": 3.0},
        {
            "kind": "plasticity",
            "step": 10,
            "critic/density": 0.2,
            "critic/active_fraction/q1.2": 0.4,
            "actor/density": None,
        },
        {"kind": "eval", "step": 10, "return_mean": -5.0, "accuracy": None},
        {"kind": "plasticity", "step": 20, "critic/density": 0.3, "actor/density": 0.5},
        {"kind": "eval", "step": 20, "return_mean": -4.0, "accuracy": None},
        {"kind": "plasticity", "step": 30, "critic/density": 0.4, "actor/density": 0.6},
    ]
    curves = growth_figures.curves_of(rows)
    metrics = {
        network: {name: np.asarray(curve).tolist() for name, curve in run.items()} for network, run in curves.items()
    }
    assert metrics == {
        "critic": {"density": [[10, 20, 30], [0.2, 0.3, 0.4]]},
        "agent": {"greedy return": [[10, 20], [-5.0, -4.0]]},
        "actor": {"density": [[20, 30], [0.5, 0.6]]},
    }
    groups = growth_figures.by_group([("grown", curves), ("grown", curves), ("dense", {"agent": curves["agent"]})])
    assert {group: {name: len(seeds) for name, seeds in panels.items()} for group, panels in groups.items()} == {
        "grown": {"density, critic": 2, "greedy return": 2, "density, actor": 2},
        "dense": {"greedy return": 1},
    }
    scored = [{"kind": "eval", "step": step, "return_mean": 1.0, "accuracy": 0.5} for step in (1, 2)]
    assert list(growth_figures.curves_of(scored)["agent"]) == ["greedy accuracy"]
