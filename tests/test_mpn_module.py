"""The MPN against its equations: numbers worked by hand, a scalar loop in float64, and gradients."""

from __future__ import annotations

import copy
import itertools
import math
import runpy
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

import mpn_module
from mpn_module import MPN
from mpn_rl.options import ConfigError

FORMS = ("multiplicative", "additive")
RULES = ("associative", "presynaptic", "postsynaptic", "oja")
ACTIVATIONS = ("tanh", "relu", "sigmoid", "linear")
SHAPES = ("scalar", "pre", "post", "matrix")


def exact(input_dim: int, hidden_dim: int, **options) -> MPN:
    """An MPN in float64, by plain PyTorch."""
    return MPN(input_dim, hidden_dim, kernel="reference", **options).double()


def test_initial_weights_are_uniform_between_minus_and_plus_one_over_the_root_of_the_inputs() -> None:
    torch.manual_seed(0)
    mpn = MPN(400, 100)
    weight, bias = mpn.layers[0].weight.detach(), mpn.layers[0].bias.detach()
    for values, least in ((weight, 0.0499), (bias, 0.045)):
        assert least < values.abs().max() <= 0.05 and abs(values.mean()) < 4 * 0.05 / math.sqrt(3 * len(bias))
    assert weight.std() == pytest.approx(0.05 / math.sqrt(3), rel=0.02)


def set_(parameter: torch.Tensor, values) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values, dtype=parameter.dtype))


def steps(mpn: MPN, xs: list[list[float]]) -> tuple[list, list]:
    """h and M of batch row 0 after every step, as nested lists."""
    state, hs, ms = mpn.init_state(1), [], []
    for x in xs:
        h, state = mpn(torch.tensor([x], dtype=torch.float64), state)
        hs.append(h[0].tolist())
        ms.append(state[0].tolist())
    return hs, ms


def randomised(mpn: MPN, seed: int = 0) -> MPN:
    """The network with new random parameters, eta of both signs and lambda within (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in mpn.named_parameters():
            if name.endswith("lambda_decay"):
                parameter.copy_(0.05 + 0.9 * torch.rand(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return mpn


def written_out(layer, xs, m, resets):
    """The equations of one layer, scalar by scalar, for one batch row: lists in, (hs, M) out."""
    options = layer.options
    hidden, inputs = layer.weight.shape
    w, m0 = layer.weight.tolist(), layer.m0.tolist()
    b = layer.bias.tolist() if layer.bias is not None else [0.0] * hidden
    eta = layer.eta.expand(hidden, inputs).tolist()
    lam = layer.lambda_decay.expand(hidden, inputs).tolist()
    f = {
        "tanh": math.tanh,
        "relu": lambda u: max(u, 0.0),
        "sigmoid": lambda u: 1.0 / (1.0 + math.exp(-u)),
        "linear": lambda u: u,
    }[options.activation]
    hs = []
    for x, reset in zip(xs, resets, strict=True):
        if reset:
            m = m0
        h = []
        for i in range(hidden):
            u = b[i]
            for j in range(inputs):
                effective = w[i][j] * (m[i][j] + 1.0) if options.form == "multiplicative" else w[i][j] + m[i][j]
                u += effective * x[j]
            h.append(f(u))
        new = []
        for i in range(hidden):
            change = {
                "associative": [h[i] * x[j] for j in range(inputs)],
                "presynaptic": [x[j] for j in range(inputs)],
                "postsynaptic": [h[i] for j in range(inputs)],
                "oja": [h[i] * x[j] - h[i] ** 2 * m[i][j] for j in range(inputs)],
            }[options.rule]
            bound = math.tanh if options.m_activation == "tanh" else lambda value: value
            new.append([bound(lam[i][j] * m[i][j] + eta[i][j] * change[j]) for j in range(inputs)])
        m = new
        hs.append(h)
    return hs, m


# --- worked by hand ------------------------------------------------------------------------------------------

# W = (1, 2), no bias, linear, eta = lambda = 1/2, inputs (1, 1), (1, 0), (0, 1); h, then M, after each step.
# The first step is the same for all: M(0) = 0, so h_1 = 1 + 2.
BY_HAND = {
    # M1 = 1.5 (1, 1); E = (2.5, 5); M2 = (.75 + 1.25, .75); E = (3, 3.5); M3 = (1, .375 + 1.75)
    ("multiplicative", "associative"): ([3, 2.5, 3.5], [[1.5, 1.5], [2, 0.75], [1, 2.125]]),
    # M1 = (.5, .5); E = (1.5, 3); M2 = (.25 + .5, .25); E = (1.75, 2.5); M3 = (.375, .125 + .5)
    ("multiplicative", "presynaptic"): ([3, 1.5, 2.5], [[0.5, 0.5], [0.75, 0.25], [0.375, 0.625]]),
    # M1 = 1.5 (1, 1); E = (2.5, 5); M2 = .75 + 1.25; E = (3, 6); M3 = 1 + 3
    ("multiplicative", "postsynaptic"): ([3, 2.5, 6], [[1.5, 1.5], [2, 2], [4, 4]]),
    # M2 = (.75, .75) + .5 (2.5 (1, 0) - 6.25 (1.5, 1.5)); E = (-1.6875, 2 (-2.9375)); h^2 = 34.515625
    ("multiplicative", "oja"): (
        [3, 2.5, -5.875],
        [[1.5, 1.5], [-2.6875, -3.9375], [45.03662109375, 63.04638671875]],
    ),
    # E = (2.5, 3.5); M2 = (.75 + 1.25, .75); E = (3, 2.75); M3 = (1, .375 + 1.375)
    ("additive", "associative"): ([3, 2.5, 2.75], [[1.5, 1.5], [2, 0.75], [1, 1.75]]),
    # E = (1.5, 2.5); M2 = (.75, .25); E = (1.75, 2.25)
    ("additive", "presynaptic"): ([3, 1.5, 2.25], [[0.5, 0.5], [0.75, 0.25], [0.375, 0.625]]),
    # E = (2.5, 3.5); M2 = 2; E = (3, 4); M3 = 1 + 2
    ("additive", "postsynaptic"): ([3, 2.5, 4], [[1.5, 1.5], [2, 2], [3, 3]]),
    # M2 as above; E = (-1.6875, -1.9375); h^2 = 3.75390625
    ("additive", "oja"): (
        [3, 2.5, -1.9375],
        [[1.5, 1.5], [-2.6875, -3.9375], [3.7005615234375, 4.4530029296875]],
    ),
}


@pytest.mark.parametrize(("form", "rule"), list(BY_HAND))
def test_three_steps_by_hand(form: str, rule: str) -> None:
    mpn = exact(2, 1, form=form, rule=rule, activation="linear", bias=False, eta=0.5, lambda_decay=0.5)
    set_(mpn.layers[0].weight, [[1, 2]])
    hs, ms = steps(mpn, [[1, 1], [1, 0], [0, 1]])
    expected_h, expected_m = BY_HAND[form, rule]
    assert hs == [[h] for h in expected_h]
    assert ms == [[m] for m in expected_m]


def test_every_variant_is_worked_by_hand() -> None:
    assert set(BY_HAND) == set(itertools.product(FORMS, RULES))


@pytest.mark.parametrize(
    ("shape", "eta", "decay", "m1", "m2", "m3"),
    [
        # x_1 = (1, 1): h = (3, 7). x_2 = 0: M only decays. x_3 = (1, 0): h = (1 * 1.75, 3 * 2.75) each time.
        (
            "scalar",
            [[0.5]],
            [[0.5]],
            [[1.5, 1.5], [3.5, 3.5]],
            [[0.75, 0.75], [1.75, 1.75]],
            [[1.25, 0.375], [5, 0.875]],
        ),
        (
            "pre",
            [[0.5, 1]],
            [[0.5, 0.25]],
            [[1.5, 3], [3.5, 7]],
            [[0.75, 0.75], [1.75, 1.75]],
            [[1.25, 0.1875], [5, 0.4375]],
        ),
        (
            "post",
            [[0.5], [1]],
            [[0.5], [0.25]],
            [[1.5, 1.5], [7, 7]],
            [[0.75, 0.75], [1.75, 1.75]],
            [[1.25, 0.375], [8.6875, 0.4375]],
        ),
        (
            "matrix",
            [[0.5, 1], [1, 0.5]],
            [[0.5, 0.25], [0.25, 0.5]],
            [[1.5, 3], [7, 3.5]],
            [[0.75, 0.75], [1.75, 1.75]],
            [[1.25, 0.1875], [8.6875, 0.875]],
        ),
    ],
)
def test_granularity_of_eta_and_lambda_by_hand(shape, eta, decay, m1, m2, m3) -> None:
    mpn = exact(2, 2, activation="linear", bias=False, eta_shape=shape, lambda_shape=shape)
    (layer,) = mpn.layers
    set_(layer.weight, [[1, 2], [3, 4]])
    assert layer.eta.shape == layer.lambda_decay.shape == torch.tensor(eta).shape
    set_(layer.eta, eta)
    set_(layer.lambda_decay, decay)
    hs, ms = steps(mpn, [[1, 1], [0, 0], [1, 0]])
    assert hs == [[3, 7], [0, 0], [1.75, 8.25]]
    assert ms == [m1, m2, m3]


@pytest.mark.parametrize(
    ("activation", "f"),
    [
        ("linear", lambda u: u),
        ("relu", lambda u: max(u, 0.0)),
        ("tanh", math.tanh),
        ("sigmoid", lambda u: 1 / (1 + math.exp(-u))),
    ],
)
def test_activations_and_bias_by_hand(activation: str, f) -> None:
    mpn = exact(1, 1, activation=activation, eta=0.5, lambda_decay=0.5)
    set_(mpn.layers[0].weight, [[2]])
    set_(mpn.layers[0].bias, [-1])
    hs, ms = steps(mpn, [[1], [1], [-1]])
    h1 = f(2 * 1 - 1)
    m1 = 0.5 * h1
    h2 = f(2 * (m1 + 1) - 1)
    m2 = 0.5 * m1 + 0.5 * h2
    h3 = f(-2 * (m2 + 1) - 1)
    m3 = 0.5 * m2 - 0.5 * h3
    assert [h for (h,) in hs] == pytest.approx([h1, h2, h3], abs=1e-15)
    assert [m for ((m,),) in ms] == pytest.approx([m1, m2, m3], abs=1e-15)
    if activation == "relu":  # the same, with the numbers
        assert hs == [[1], [2], [0]] and ms == [[[0.5]], [[1.25]], [[0.625]]]


def test_bias_is_optional() -> None:
    assert "layers.0.bias" in MPN(3, 4).state_dict()
    assert "layers.0.bias" not in MPN(3, 4, bias=False).state_dict()


def test_negative_eta_is_anti_hebbian() -> None:
    """As in the associative case, with eta = -1/2: M1 = -1.5, so h_2 = -0.5."""
    mpn = exact(2, 1, activation="linear", bias=False, eta=-0.5, lambda_decay=0.5)
    set_(mpn.layers[0].weight, [[1, 2]])
    hs, ms = steps(mpn, [[1, 1], [1, 0]])
    assert hs == [[3], [-0.5]] and ms == [[[-1.5, -1.5]], [[-0.5, -0.75]]]


def test_silence_reads_nothing_out_of_the_modulation() -> None:
    """DESIGN known 1: with x = 0 the output is f(b), whatever M holds, and M decays by lambda."""
    mpn = exact(3, 4, lambda_decay=0.5)
    state = torch.randn(2, 4, 3, dtype=torch.float64)
    h, after = mpn(torch.zeros(2, 3, dtype=torch.float64), state)
    assert torch.equal(h, torch.tanh(mpn.layers[0].bias).expand(2, 4))
    assert torch.equal(after, 0.5 * state)


# --- the equations, scalar by scalar -------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "rule", "activation"), list(itertools.product(FORMS, RULES, ACTIVATIONS)))
def test_float64_loop_from_the_equations_agrees(form: str, rule: str, activation: str) -> None:
    """All sixteen pairs of granularities, with resets to a trained M(0)."""
    batch, time, inputs, hidden = 2, 6, 3, 4
    xs = torch.randn(batch, time, inputs, dtype=torch.float64)
    resets = torch.zeros(batch, time, dtype=torch.bool)
    resets[0, 0] = resets[0, 4] = resets[1, 2] = resets[1, 3] = True
    before = 0.3 * torch.randn(batch, hidden, inputs, dtype=torch.float64)
    for eta_shape, lambda_shape in itertools.product(SHAPES, SHAPES):
        options = {"eta_shape": eta_shape, "lambda_shape": lambda_shape, "bias": eta_shape != "pre"}
        mpn = exact(inputs, hidden, form=form, rule=rule, activation=activation, train_m0=True, **options)
        randomised(mpn)
        with torch.no_grad():
            hs, state = mpn.unroll(xs, before, resets)
        for row in range(batch):
            expected = written_out(mpn.layers[0], xs[row].tolist(), before[row].tolist(), resets[row].tolist())
            for got, want in zip((hs[row], state[row]), expected, strict=True):
                torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("form", "rule"), list(itertools.product(FORMS, RULES)))
def test_a_bounded_modulation_agrees_with_the_equations_and_stays_within_one(form: str, rule: str) -> None:
    mpn = randomised(exact(3, 4, form=form, rule=rule, num_layers=2, m_activation="tanh", eta_shape="matrix"))
    with torch.no_grad():
        for layer in mpn.layers:
            layer.eta.mul_(8.0)
    xs = 2.0 * torch.randn(1, 7, 3, dtype=torch.float64)
    with torch.no_grad():
        hs, state = mpn.unroll(xs, mpn.init_state(1))
    signal = xs[0].tolist()
    for layer, modulation in zip(mpn.layers, state, strict=True):
        signal, m = written_out(layer, signal, layer.m0.tolist(), [False] * 7)
        torch.testing.assert_close(modulation[0], torch.tensor(m, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        assert 0.9 < modulation.abs().max() <= 1.0
    torch.testing.assert_close(hs[0], torch.tensor(signal, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_later_layer_reads_the_h_of_the_one_before(num_layers: int) -> None:
    mpn = randomised(exact(3, 4, num_layers=num_layers, train_m0=True))
    xs = torch.randn(1, 5, 3, dtype=torch.float64)
    resets = torch.tensor([[True, False, False, True, False]])
    with torch.no_grad():
        hs, state = mpn.unroll(xs, mpn.init_state(1), resets)
    assert isinstance(state, tuple) and len(state) == num_layers
    signal = xs[0].tolist()
    for layer, modulation in zip(mpn.layers, state, strict=True):
        signal, m = written_out(layer, signal, layer.m0.tolist(), resets[0].tolist())
        torch.testing.assert_close(modulation[0], torch.tensor(m, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hs[0], torch.tensor(signal, dtype=torch.float64), rtol=1e-12, atol=1e-12)


# --- unroll and stepping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("form", "rule"), list(itertools.product(FORMS, RULES)))
def test_unroll_equals_stepping_in_values_and_gradients(form: str, rule: str, num_layers: int) -> None:
    mpn = randomised(exact(3, 4, form=form, rule=rule, num_layers=num_layers, train_m0=True))
    xs = torch.randn(3, 7, 3, dtype=torch.float64)
    resets = torch.rand(3, 7) < 0.3
    assert resets.any()

    hs, last = mpn.unroll(xs, mpn.init_state(3), resets)
    (hs.square().sum() + sum(m.sum() for m in parts(last))).backward()
    gradients = {name: p.grad.clone() for name, p in mpn.named_parameters()}
    mpn.zero_grad()

    state, stepped = mpn.init_state(3), []
    for t in range(7):
        fresh = resets[:, t, None, None]
        state = repack(
            [torch.where(fresh, m0, m) for m0, m in zip(parts(mpn.init_state(3)), parts(state), strict=True)]
        )
        h, state = mpn(xs[:, t], state)
        stepped.append(h)
    (torch.stack(stepped, 1).square().sum() + sum(m.sum() for m in parts(state))).backward()

    torch.testing.assert_close(hs, torch.stack(stepped, 1), rtol=1e-12, atol=1e-12)
    for unrolled, m in zip(parts(last), parts(state), strict=True):
        torch.testing.assert_close(unrolled, m, rtol=1e-12, atol=1e-12)
    for name, parameter in mpn.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-10, atol=1e-12, msg=name)


def parts(state) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def repack(states: list):
    return tuple(states) if len(states) > 1 else states[0]


def test_a_sequence_may_be_cut_anywhere() -> None:
    mpn = randomised(exact(3, 4))
    xs = torch.randn(2, 9, 3, dtype=torch.float64)
    with torch.no_grad():
        hs, state = mpn.unroll(xs, mpn.init_state(2))
        first, middle = mpn.unroll(xs[:, :4], mpn.init_state(2))
        second, last = mpn.unroll(xs[:, 4:], middle)
    assert torch.equal(hs, torch.cat([first, second], 1)) and torch.equal(state, last)


# --- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "rule", "activation"),
    [(form, rule, "tanh") for form in FORMS for rule in RULES]
    + [("multiplicative", "associative", f) for f in ACTIVATIONS[1:]],
)
@pytest.mark.parametrize("m_activation", ["none", "tanh"])
def test_gradcheck_in_float64(form: str, rule: str, activation: str, m_activation: str) -> None:
    """With respect to the inputs, the state and every parameter, through a reset."""
    options = {"form": form, "rule": rule, "activation": activation, "m_activation": m_activation, "num_layers": 2}
    mpn = randomised(exact(2, 3, eta_shape="pre", lambda_shape="post", train_m0=True, **options), seed=1)
    names = [name for name, _ in mpn.named_parameters()]
    resets = torch.tensor([[False, False, True, False], [False, False, False, False]])

    class Unrolled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mpn = mpn

        def forward(self, xs, state):
            return self.mpn.unroll(xs, state, resets)

    unrolled = Unrolled()

    def run(xs, m1, m2, *values):
        weights = {f"mpn.{name}": value for name, value in zip(names, values, strict=True)}
        hs, state = functional_call(unrolled, weights, (xs, (m1, m2)))
        return hs, *state

    inputs = [torch.randn(2, 4, 2), 0.3 * torch.randn(2, 3, 2), 0.3 * torch.randn(2, 3, 3)]
    inputs = [tensor.double() for tensor in inputs] + [p.detach().clone() for p in mpn.parameters()]
    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs])


def test_trained_m0_gets_its_gradient_through_a_reset() -> None:
    """h = W (M(0) + 1) x after the reset, so dh/dM(0) = W x = 2 * 3, though the given state is another."""
    mpn = exact(1, 1, train_m0=True, activation="linear", bias=False)
    set_(mpn.layers[0].weight, [[2]])
    set_(mpn.layers[0].m0, [[0.25]])
    given = torch.full((1, 1, 1), 9.0, dtype=torch.float64)
    xs = torch.full((1, 1, 1), 3.0, dtype=torch.float64)
    hs, _ = mpn.unroll(xs, given, torch.tensor([[True]]))
    hs.sum().backward()
    assert hs.item() == 2 * 1.25 * 3 and mpn.layers[0].m0.grad.item() == 6.0
    mpn.zero_grad()
    hs, _ = mpn.unroll(xs, given, torch.tensor([[False]]))
    hs.sum().backward()
    assert hs.item() == 2 * 10 * 3 and mpn.layers[0].m0.grad.item() == 0.0


def test_trained_m0_gets_its_gradient_through_init_state() -> None:
    mpn = exact(1, 1, train_m0=True, activation="linear", bias=False)
    set_(mpn.layers[0].weight, [[2]])
    hs, _ = mpn(torch.full((5, 1), 3.0, dtype=torch.float64), mpn.init_state(5))
    hs.sum().backward()
    assert mpn.layers[0].m0.grad.item() == 5 * 6.0


def test_a_copy_without_gradients_resets_to_the_same_m0() -> None:
    """A target network is such a copy; resetting it to zeros would evaluate another state than M(0)."""
    mpn = randomised(exact(3, 4, train_m0=True))
    target = copy.deepcopy(mpn).requires_grad_(False)
    xs, resets = torch.randn(2, 5, 3, dtype=torch.float64), torch.rand(2, 5) < 0.5
    resets[:, 2] = True
    before = torch.randn(2, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(target.unroll(xs, before, resets)[0], mpn.unroll(xs, before, resets)[0])


@pytest.mark.parametrize(("start", "rate", "bound"), [(0.85, 10.0, 0.9), (0.1, -10.0, 0.0)])
def test_trained_lambda_stays_in_range_and_is_not_stuck(start: float, rate: float, bound: float) -> None:
    mpn = exact(1, 1, lambda_decay=start, lambda_max=0.9)
    decay = mpn.layers[0].lambda_decay
    target = copy.deepcopy(mpn).requires_grad_(False)
    with torch.no_grad():
        decay += rate  # an optimiser's step too far
        target.layers[0].lambda_decay += rate
    ones = torch.ones(1, 1, 1, dtype=torch.float64)
    for network in (mpn, target):
        _, state = network.unroll(torch.zeros_like(ones), ones)
        assert state.item() == pytest.approx(bound) and network.layers[0].lambda_decay.item() == pytest.approx(bound)
    _, state = mpn.unroll(torch.zeros_like(ones), ones)
    state.sum().backward()
    assert decay.grad is not None and decay.grad.item() == 1.0


@pytest.mark.parametrize("name", ["eta", "lambda", "m0"])
def test_what_is_fixed_gets_no_gradient(name: str) -> None:
    for trained in (True, False):
        mpn = exact(3, 4, **{f"train_{name}": trained})
        parameter = getattr(mpn.layers[0], {"lambda": "lambda_decay"}.get(name, name))
        assert parameter.requires_grad is trained
        hs, _ = mpn.unroll(torch.randn(2, 5, 3, dtype=torch.float64), mpn.init_state(2))
        hs.sum().backward()
        assert (parameter.grad is not None) is trained


# --- frozen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "rule"), list(itertools.product(FORMS, RULES)))
def test_frozen_mpn_never_changes_modulation(form: str, rule: str) -> None:
    """M is exactly 0 after a hundred steps, learning and resets included, and h = f(Wx + b)."""
    mpn = exact(3, 4, num_layers=2, form=form, rule=rule, freeze_plasticity=True, train_m0=True)
    optimizer = torch.optim.Adam([p for p in mpn.parameters() if p.requires_grad], lr=0.1)
    xs, resets = torch.randn(2, 100, 3, dtype=torch.float64), torch.rand(2, 100) < 0.1
    for _ in range(3):
        hs, state = mpn.unroll(xs, mpn.init_state(2), resets)
        assert all(torch.equal(m, torch.zeros_like(m)) for m in state)
        optimizer.zero_grad()
        hs.square().sum().backward()
        optimizer.step()
    assert all(torch.equal(m, torch.zeros_like(m)) for m in mpn.init_state(2))
    first, second = mpn.layers
    plain = torch.tanh(torch.tanh(xs @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(mpn.unroll(xs, mpn.init_state(2))[0], plain)


def test_frozen_mpn_trains_neither_eta_nor_lambda_nor_m0() -> None:
    mpn = MPN(3, 4, freeze_plasticity=True, train_m0=True)
    assert {name for name, p in mpn.named_parameters() if p.requires_grad} == {"layers.0.weight", "layers.0.bias"}


# --- the surface ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_an_absent_synapse_has_no_modulation(form: str) -> None:
    """W, M, eta and M(0) of absent synapses are 0: the same as the equations with those entries left out."""
    mpn = randomised(exact(3, 2, form=form, eta_shape="matrix", train_m0=True))
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    layer = mpn.layers[0]
    layer.set_mask("weight", mask)
    layer.weight.data *= mask
    xs, state = torch.randn(2, 6, 3, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[1, 3] = True
    hs, last = mpn.unroll(xs, state, reset)
    twin = copy.deepcopy(mpn)
    twin.layers[0].mask = None
    for part in (twin.layers[0].eta, twin.layers[0].m0):
        part.data *= mask
    expected, end = twin.unroll(xs, state * mask, reset)
    torch.testing.assert_close(hs, expected)
    torch.testing.assert_close(last, end * mask)
    assert torch.isfinite(hs).all() and not last[:, mask == 0].any()


def test_state_and_its_names() -> None:
    one, three = MPN(3, 4), MPN(3, 4, num_layers=3)
    assert one.init_state(5).shape == (5, 4, 3)
    assert {name: tuple(m.shape) for name, m in one.state_arrays(one.init_state(5)).items()} == {"M": (5, 4, 3)}
    arrays = three.state_arrays(three.init_state(5))
    assert {name: tuple(m.shape) for name, m in arrays.items()} == {"M1": (5, 4, 3), "M2": (5, 4, 4), "M3": (5, 4, 4)}


def test_fresh_state_is_zero_and_given_parameters_are_used() -> None:
    mpn = MPN(3, 4, eta=-0.3, lambda_decay=0.7)
    assert not mpn.init_state(2).any()
    assert mpn.layers[0].eta.item() == pytest.approx(-0.3) and mpn.layers[0].lambda_decay.item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lambda_decay": 1.5}, r"lambda-decay must lie in \[0.0, 1.0\], got 1.5"),
        ({"lambda_decay": -0.1}, "lambda-decay must lie in"),
        ({"lambda_decay": 0.95, "lambda_max": 0.9}, r"lambda-decay must lie in \[0, --lambda-max = 0.9\], got 0.95"),
        ({"lambda_max": 1.1}, "lambda-max must lie in"),
        ({"activation": "softplus"}, "activation must be one of tanh, relu, sigmoid, linear"),
        ({"rule": "hebb"}, "rule must be one of associative"),
        ({"m_activation": "relu"}, "m-activation must be one of none, tanh"),
        ({"form": "divisive"}, "form must be one of multiplicative, additive"),
        ({"eta_shape": "row"}, "eta-shape must be one of scalar, pre, post, matrix"),
        ({"num_layers": 0}, "num-layers must .*got 0"),
        ({"eta": float("nan")}, "eta"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        MPN(3, 4, **options)
    assert "\n" not in str(error.value)


def test_hidden_dim_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="hidden-dim must .*got 0"):
        MPN(3, 0)


def test_the_module_runs_as_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(mpn_module.__file__)), run_name="__main__")
    printed = capsys.readouterr().out
    assert "frozen: |M| 0.0" in printed and "0.197 of its value" in printed


@pytest.mark.parametrize("shape", ["scalar", "pre", "post", "matrix"])
def test_a_random_eta_has_either_sign_and_the_spread_of_xaviers_weights(shape: str) -> None:
    torch.manual_seed(0)
    drawn = torch.cat([MPN(50, 100, eta_shape=shape, eta_init="xavier").layers[0].eta.flatten() for _ in range(300)])
    spread = (6 / 150) ** 0.5
    assert drawn.min().item() == pytest.approx(-spread, rel=0.05)
    assert drawn.max().item() == pytest.approx(spread, rel=0.05)
    assert drawn.mean().abs().item() < 0.2 * spread
    frozen = MPN(50, 100, eta_init="xavier", freeze_plasticity=True)
    assert frozen.layers[0].eta.item() == 1.0
