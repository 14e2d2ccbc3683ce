"""RNN, GRU and LSTM against their equations written out; an MLP that remembers nothing."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_rl.networks.baseline_cores import KINDS, MLPCore, RecurrentCore


def sigmoid(u: float) -> float:
    return 1.0 / (1.0 + math.exp(-u))


def one_unit(kind: str) -> RecurrentCore:
    """D = H = 1 in float64; the k-th gate has input weight 0.1 (k + 1), recurrent weight 0.2, bias 0.05."""
    core = RecurrentCore(kind, 1, 1).double()
    with torch.no_grad():
        for k, row in enumerate(core.net.weight_ih_l0):
            row.fill_(0.1 * (k + 1))
        core.net.weight_hh_l0.fill_(0.2)
        core.net.bias_ih_l0.fill_(0.05)
        core.net.bias_hh_l0.zero_()
    return core


def written_out(kind: str, xs: list[float]) -> list[float]:
    """Elman 1990; Cho et al. 2014; Hochreiter & Schmidhuber 1997 with a forget gate; gates in torch's order."""
    h, c, hs = 0.0, 0.0, []
    for x in xs:
        u = [0.1 * (k + 1) * x + 0.05 for k in range(4)]
        if kind == "rnn":
            h = math.tanh(u[0] + 0.2 * h)
        elif kind == "gru":
            r, z = sigmoid(u[0] + 0.2 * h), sigmoid(u[1] + 0.2 * h)
            h = (1 - z) * math.tanh(u[2] + r * 0.2 * h) + z * h
        else:
            i, f, g, o = (u[k] + 0.2 * h for k in range(4))
            c = sigmoid(f) * c + sigmoid(i) * math.tanh(g)
            h = sigmoid(o) * math.tanh(c)
        hs.append(h)
    return hs


@pytest.mark.parametrize("kind", list(KINDS))
def test_equations_written_out_agree(kind: str) -> None:
    core, xs = one_unit(kind), [1.0, -2.0, 0.5, 3.0]
    hs, _ = core.unroll(torch.tensor(xs, dtype=torch.float64)[None, :, None], core.init_state(1))
    assert hs.flatten().tolist() == pytest.approx(written_out(kind, xs), abs=1e-12)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_reset_forgets_everything_before_it(kind: str) -> None:
    """Row 0 is reset at step 2 of 4, row 1 at step 1: each continues as a new sequence would."""
    core, xs = one_unit(kind), [1.0, -2.0, 0.5, 3.0]
    both = torch.tensor([xs, xs], dtype=torch.float64)[:, :, None]
    reset = torch.tensor([[False, False, True, False], [False, True, False, False]])
    hs, _ = core.unroll(both, core.init_state(2), reset)
    assert hs[0, :, 0].tolist() == pytest.approx(written_out(kind, xs[:2]) + written_out(kind, xs[2:]), abs=1e-12)
    assert hs[1, :, 0].tolist() == pytest.approx(written_out(kind, xs[:1]) + written_out(kind, xs[1:]), abs=1e-12)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_reset_stops_the_gradient(kind: str) -> None:
    core = one_unit(kind)
    xs = torch.randn(1, 4, 1, dtype=torch.float64, requires_grad=True)
    hs, _ = core.unroll(xs, core.init_state(1), torch.tensor([[False, False, True, False]]))
    hs[:, 2:].sum().backward()
    assert not xs.grad[0, :2].any() and xs.grad[0, 2:].all()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_reset_clears_a_state_that_is_not_finite(kind: str) -> None:
    core = one_unit(kind)
    state = core.init_state(1)
    broken = tuple(part + math.nan for part in state) if kind == "lstm" else state + math.nan
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    hs, _ = core.unroll(x, broken, torch.tensor([[True]]))
    assert hs.flatten().tolist() == pytest.approx(written_out(kind, [1.0]), abs=1e-12)


@pytest.mark.parametrize(("kind", "names"), [("rnn", ["h"]), ("gru", ["h"]), ("lstm", ["h", "c"])])
def test_state_names_and_shapes_with_layers(kind: str, names: list[str]) -> None:
    core = RecurrentCore(kind, 3, 4, num_layers=2)
    hs, state = core.unroll(torch.randn(5, 6, 3), core.init_state(5))
    arrays = core.state_arrays(state)
    assert {name: tuple(part.shape) for name, part in arrays.items()} == dict.fromkeys(names, (5, 8))
    assert torch.equal(arrays["h"][:, 4:], hs[:, -1])  # the last layer's h is the output


def test_state_follows_the_parameters_dtype() -> None:
    for core in (RecurrentCore("lstm", 3, 4).double(), MLPCore(3, 4).double()):
        state = core.init_state(2)
        assert all(part.dtype == torch.float64 for part in (state if isinstance(state, tuple) else (state,)))


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "linear"])
def test_mlp_by_hand(activation: str) -> None:
    core = MLPCore(2, 1, num_layers=2, activation=activation).double()
    with torch.no_grad():
        for layer, weight, bias in zip(core.layers, ([[1.0, 2.0]], [[-1.5]]), (0.5, 0.25), strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.fill_(bias)
    f = {"tanh": math.tanh, "relu": lambda u: max(u, 0.0), "sigmoid": sigmoid, "linear": lambda u: u}[activation]
    h, _ = core(torch.tensor([[0.5, -1.0]], dtype=torch.float64), core.init_state(1))
    assert h.item() == pytest.approx(f(-1.5 * f(0.5 - 2.0 + 0.5) + 0.25), abs=1e-15)


def test_layer_norm_comes_before_the_activation_by_hand() -> None:
    core = MLPCore(1, 2, activation="relu", layer_norm=True).double()
    with torch.no_grad():
        core.layers[0].weight.copy_(torch.tensor([[1.0], [5.0]]))
        core.layers[0].bias.copy_(torch.tensor([0.0, 2.0]))
        core.norms[0].weight.copy_(torch.tensor([3.0, 3.0]))
        core.norms[0].bias.copy_(torch.tensor([4.0, -1.0]))
    h, _ = core(torch.tensor([[2.0]], dtype=torch.float64), core.init_state(1))  # 2, 12: normalised -1, 1
    assert h[0].tolist() == pytest.approx([3.0 * -1 + 4.0, 3.0 * 1 - 1.0], abs=1e-5)
    assert not MLPCore(1, 2).state_dict().keys() & {"norms.0.weight"}


def test_mlp_remembers_nothing() -> None:
    core = MLPCore(3, 4)
    xs = torch.randn(2, 5, 3)
    hs, state = core.unroll(xs, core.init_state(2))
    permuted, _ = core.unroll(xs.flip(1), state)
    torch.testing.assert_close(permuted.flip(1), hs)
    assert state.shape == (2, 0) and core.state_arrays(state) == {}
