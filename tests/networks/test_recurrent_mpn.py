"""The recurrent MPN against its equations: numbers worked by hand, a loop in NumPy, gradients and masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.contracts import Maskable, MaskedState, PartlyRecurrent, SynapticState
from mpn_rl.expansion import hidden_units
from mpn_rl.networks.recurrent_mpn import RecurrentMPN
from mpn_rl.options import ConfigError

B, T, D, H = 2, 6, 3, 4
RULES = ("associative", "presynaptic", "postsynaptic", "oja")
SHAPES = {"scalar": (1, 1), "pre": (1, D + H), "post": (H, 1), "matrix": (H, D + H)}


def exact(input_dim: int = D, hidden_dim: int = H, **options) -> RecurrentMPN:
    """The network in float64, by plain PyTorch."""
    return RecurrentMPN(input_dim, hidden_dim, kernel="reference", **options).double()


def randomised(net: RecurrentMPN, seed: int = 0) -> RecurrentMPN:
    """The network with new random parameters, eta of both signs and lambda within (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("lambda_decay"):
                parameter.copy_(0.05 + 0.9 * torch.rand(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return net


def sequence(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[0, 0] = resets[0, 4] = resets[1, 2] = resets[1, 3] = True
    return torch.randn(B, T, D, generator=generator, dtype=torch.float64), resets


def in_numpy(layer, xs, mx, mh, h, resets):
    """The equations of one layer with two matrices, for one batch row: arrays in, (hs, M^x, M^h, h) out."""
    o = layer.options
    inputs = xs.shape[1]
    wx, wh = layer.weight.detach().numpy(), layer.recurrent.detach().numpy()
    b = layer.bias.detach().numpy() if layer.bias is not None else 0.0
    eta = np.broadcast_to(layer.eta.detach().numpy(), (len(wx), inputs + len(wx)))
    lam = np.broadcast_to(layer.lambda_decay.detach().numpy(), eta.shape)
    m0 = layer.m0.detach().numpy()
    f = {"tanh": np.tanh, "relu": lambda u: np.maximum(u, 0), "linear": lambda u: u}[o.activation]
    g = np.tanh if o.m_activation == "tanh" else lambda m: m

    def change(m, pre):
        ones = np.ones_like(pre)
        if o.rule == "presynaptic":
            return np.outer(np.ones_like(h), pre)
        if o.rule == "postsynaptic":
            return np.outer(h, ones)
        return np.outer(h, pre) - (h[:, None] ** 2 * m if o.rule == "oja" else 0.0)

    hs = []
    for x, reset in zip(xs, resets, strict=True):
        if reset:
            mx, mh, h = m0[:, :inputs], m0[:, inputs:], np.zeros_like(h)
        before = h
        if o.form == "additive":
            h = f(b + (wx + mx) @ x + (wh + mh) @ before)
        else:
            h = f(b + (wx * (mx + 1)) @ x + (wh * (mh + 1)) @ before)
        mx = g(lam[:, :inputs] * mx + eta[:, :inputs] * change(mx, x))
        mh = g(lam[:, inputs:] * mh + eta[:, inputs:] * change(mh, before))
        hs.append(h)
    return np.array(hs), mx, mh, h


# --- the equations ----------------------------------------------------------------------------------------------


def test_two_steps_worked_by_hand() -> None:
    """One linear unit, W_x = 2, W_h = 3, b = 1, eta = 0.5, lambda = 0.5; x = 1, then 2.

    h_1 = 1 + 2 = 3, M^x = tanh 1.5, M^h = tanh 0 = 0 (h_0 = 0). h_2 = 1 + 2 (M^x + 1) 2 + 3 * 3.
    """
    net = exact(1, 1, activation="linear", eta=0.5, lambda_decay=0.5)
    layer = net.layers[0]
    with torch.no_grad():
        for parameter, value in ((layer.weight, 2.0), (layer.recurrent, 3.0), (layer.bias, 1.0)):
            parameter.fill_(value)
        xs = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
        hs, state = net.unroll(xs, net.init_state(1))
    m1 = math.tanh(1.5)
    h2 = 1 + 2 * (m1 + 1) * 2 + 3 * 3
    assert hs.flatten().tolist() == pytest.approx([3.0, h2])
    expected = [math.tanh(0.5 * m1 + 0.5 * h2 * 2), math.tanh(0.5 * h2 * 3), h2]
    assert [part.item() for part in state] == pytest.approx(expected)


@pytest.mark.parametrize("form", ["multiplicative", "additive"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("shape", "other"), [("scalar", "post"), ("pre", "matrix"), ("matrix", "pre")])
def test_unroll_agrees_with_a_loop_in_numpy(form: str, rule: str, shape: str, other: str) -> None:
    """With resets to a trained M(0), two layers, and both activations of M."""
    xs, resets = sequence()
    for m_activation, activation in (("tanh", "tanh"), ("none", "tanh"), ("tanh", "relu")):
        options = {"m_activation": m_activation, "activation": activation, "bias": shape != "pre"}
        options |= {"form": form, "rule": rule, "eta_shape": shape, "lambda_shape": other, "train_m0": True}
        net = randomised(exact(num_layers=2, **options))
        assert net.layers[0].eta.shape == SHAPES[shape] and net.layers[0].lambda_decay.shape == SHAPES[other]
        with torch.no_grad():
            before = net.unroll(sequence(2)[0], net.init_state(B))[1]
            hs, state = net.unroll(xs, before, resets)
        for row in range(B):
            signal = xs[row].numpy()
            for i, layer in enumerate(net.layers):
                start = [part[row].numpy() for part in before[3 * i : 3 * i + 3]]
                signal, *after = in_numpy(layer, signal, *start, resets[row].tolist())
                for part, want in zip(state[3 * i : 3 * i + 3], after, strict=True):
                    np.testing.assert_allclose(part[row].numpy(), want, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(hs[row].numpy(), signal, rtol=1e-10, atol=1e-12)


def test_the_modulation_is_bounded_by_one() -> None:
    net = RecurrentMPN(D, H, eta=50.0, lambda_decay=1.0)
    with torch.no_grad():
        _, (mx, mh, h) = net.unroll(10.0 * torch.randn(B, 40, D), net.init_state(B))
    assert max(mx.abs().max(), mh.abs().max()) <= 1.0 and mh.abs().max() > 0.99 and h.abs().max() <= 1.0


def test_gradcheck_in_float64() -> None:
    """With respect to the inputs, the state and every parameter, through a reset."""
    net = randomised(exact(2, 3, num_layers=2, eta_shape="pre", lambda_shape="post", train_m0=True), seed=1)
    names = [name for name, _ in net.named_parameters()]
    resets = torch.tensor([[False, False, True, False], [False, False, False, False]])

    class Unrolled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, xs, *state):
            return self.net.unroll(xs, state, resets)

    unrolled = Unrolled()

    def run(xs, *values):
        weights = {f"net.{name}": value for name, value in zip(names, values[6:], strict=True)}
        hs, state = functional_call(unrolled, weights, (xs, *values[:6]))
        return hs, *state

    with torch.no_grad():
        state = net.unroll(torch.randn(2, 3, 2, dtype=torch.float64), net.init_state(2))[1]
    inputs = [torch.randn(2, 4, 2, dtype=torch.float64), *state, *(p.detach().clone() for p in net.parameters())]
    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs])


def test_frozen_plasticity_leaves_a_plain_rnn() -> None:
    """M stays exactly 0, h is that of torch.nn.RNN with the same weights, and eta, lambda and M(0) are not trained."""
    net, xs = exact(freeze_plasticity=True, train_m0=True), sequence()[0]
    layer, rnn = net.layers[0], torch.nn.RNN(D, H, batch_first=True).double()
    with torch.no_grad():
        for theirs, ours in zip(rnn.parameters(), (layer.weight, layer.recurrent, layer.bias), strict=False):
            theirs.copy_(ours)
        rnn.bias_hh_l0.zero_()
    hs, (mx, mh, _) = net.unroll(xs, net.init_state(B))
    torch.testing.assert_close(hs, rnn(xs)[0])
    assert not mx.any() and not mh.any()
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"layers.0.weight", "layers.0.recurrent", "layers.0.bias"}


def test_a_frozen_network_resets_its_h() -> None:
    net, (xs, resets) = exact(freeze_plasticity=True), sequence()
    with torch.no_grad():
        hs, _ = net.unroll(xs, net.init_state(B), resets)
        again, _ = net.unroll(xs[:1, 4:], net.init_state(1))
    assert torch.equal(hs[:1, 4:], again)


# --- the state and its names ----------------------------------------------------------------------------------------


def test_the_state_of_one_layer_and_of_two() -> None:
    one, two = RecurrentMPN(D, H), RecurrentMPN(D, H, num_layers=2)
    arrays = one.state_arrays(one.init_state(5))
    assert {name: tuple(part.shape) for name, part in arrays.items()} == {"Mx": (5, H, D), "Mh": (5, H, H), "h": (5, H)}
    assert list(two.state_arrays(two.init_state(5))) == ["Mx1", "Mh1", "h1", "Mx2", "Mh2", "h2"]
    assert two.init_state(5)[3].shape == (5, H, H)


# --- masks ----------------------------------------------------------------------------------------------------------


def test_the_layer_says_which_weights_may_be_masked() -> None:
    net = RecurrentMPN(D, H)
    layer = net.layers[0]
    assert isinstance(layer, Maskable) and isinstance(layer, MaskedState) and isinstance(layer, PartlyRecurrent)
    assert isinstance(net, SynapticState)
    assert list(hidden_units.synapses(net)) == ["layers.0.weight", "layers.0.recurrent"]


def test_the_units_of_a_square_layer_are_read_by_its_input_weights_alone() -> None:
    """In the second layer W_x and W_h have one shape; only the names tell which of them reads the layer before."""
    net = RecurrentMPN(D, H, num_layers=2)
    assert hidden_units.outgoing(net, "layers.1", H) == ["layers.1.weight"]
    assert hidden_units.recurrent(net, "layers.1") == ["layers.1.recurrent"]
    assert hidden_units.incoming(net, "layers.1", H) == ["layers.1.weight", "layers.1.recurrent"]
    assert hidden_units.ends(net) == ({"layers.0"}, {"layers.1"})


@pytest.mark.parametrize("form", ["multiplicative", "additive"])
@pytest.mark.parametrize("masked", ["weight", "recurrent", "both"])
def test_there_is_no_modulation_where_there_is_no_synapse(form: str, masked: str) -> None:
    """As a network whose W, eta and M(0) are zero there, in outputs and gradients."""
    net = randomised(exact(form=form, eta_shape="matrix", train_m0=True))
    layer, (xs, resets) = net.layers[0], sequence()
    masks = {"weight": torch.rand(H, D) < 0.5, "recurrent": torch.rand(H, H) < 0.5}
    for name in masks if masked == "both" else (masked,):
        layer.set_mask(name, masks[name])
        with torch.no_grad():
            layer.get_parameter(name).mul_(masks[name])
    hs, (mx, mh, _) = net.unroll(xs, net.init_state(B), resets)
    for name, m in (("weight", mx), ("recurrent", mh)):
        if masked in (name, "both"):
            assert not m[:, ~masks[name]].any() and m[:, masks[name]].all()
    plain = exact(form=form, eta_shape="matrix", train_m0=True)
    own = {key: value for key, value in net.state_dict().items() if not key.endswith("mask")}
    plain.load_state_dict(own)
    with torch.no_grad():
        keep = layer.both_masks()
        plain.layers[0].eta.mul_(keep)
        plain.layers[0].m0.mul_(keep)
    torch.testing.assert_close(plain.unroll(xs, plain.init_state(B), resets)[0], hs)


def test_a_masked_network_is_saved_and_loaded() -> None:
    net, loaded = RecurrentMPN(D, H), RecurrentMPN(D, H)
    net.layers[0].set_mask("recurrent", torch.rand(H, H) < 0.5)
    loaded.load_state_dict(net.state_dict())
    assert torch.equal(loaded.layers[0].recurrent_mask, net.layers[0].recurrent_mask)
    assert loaded.layers[0].mask is None


def test_forget_clears_changed_synapses_only() -> None:
    net = RecurrentMPN(D, H, num_layers=2)
    state = tuple(torch.ones_like(part) for part in net.init_state(B))
    mask = torch.zeros(H, H, dtype=torch.bool)
    mask[1, 2] = True
    after = net.forget(state, {"layers.0.recurrent": mask, "layers.1.weight": mask})
    assert [int((part == 0).sum()) for part in after] == [0, B, 0, B, 0, 0]
    assert after[1][0, 1, 2] == 0 and after[3][0, 1, 2] == 0


# --- options --------------------------------------------------------------------------------------------------------


def test_the_modulation_of_the_recurrent_network_is_bounded_by_default() -> None:
    assert cfg.RecurrentMPNConfig().m_activation == "tanh" and cfg.MPNConfig().m_activation == "none"


def test_options_that_it_does_not_read_are_refused() -> None:
    with pytest.raises(ConfigError, match="--trace-clip does nothing with .*--core mpn-recurrent"):
        cfg.make_config("train", {"core": "mpn-recurrent", "trace_clip": 0.5})
    with pytest.raises(ConfigError, match="--m-activation does nothing with .*--core gru"):
        cfg.make_config("train", {"core": "gru", "m_activation": "tanh"})
    with pytest.raises(ConfigError, match="--m-activation does nothing with --freeze-plasticity"):
        cfg.make_config("train", {"core": "mpn-recurrent", "freeze_plasticity": True, "m_activation": "none"})


def test_a_frozen_recurrent_network_still_has_a_memory() -> None:
    """Options that do nothing without a memory take effect: only a frozen MPN has none."""
    frozen = {"freeze_plasticity": True, "burn_in": 5}
    assert cfg.make_config("train", {"core": "mpn-recurrent", **frozen}).learner.burn_in == 5
    with pytest.raises(ConfigError, match="--burn-in does nothing with --core mpn and --freeze-plasticity"):
        cfg.make_config("train", {"core": "mpn", **frozen})


def test_a_configuration_of_an_older_version_takes_the_default() -> None:
    nested = cfg.make_config("train", {"core": "mpn"}).to_dict()
    del nested["core"]["m_activation"]
    assert cfg.config_from_dict(nested).core.m_activation == "none"


def test_the_registry_builds_it() -> None:
    config = cfg.make_config("train", {"core": "mpn-recurrent", "hidden_dim": 7, "num_layers": 2})
    core = registry.CORES[cfg.RecurrentMPNConfig](5, config.core)
    assert isinstance(core, RecurrentMPN) and core.layers[0].weight.shape == (7, 5)
