"""Backpropamine against its equations: gradients in float64, rules by hand, presets, lesions, and the fused kernels."""

from __future__ import annotations

import importlib.util
import itertools
import math

import pytest
import torch
from torch import nn

from mpn_rl import config as cfg
from mpn_rl.kernels import backpropamine, launcher
from mpn_rl.networks.backpropamine import Backpropamine
from mpn_rl.options import ConfigError

needs_numba = pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="Numba is not installed")
KERNELS = ["reference", pytest.param("fused", marks=needs_numba)]
RULES = ("hard-clip", "decay", "oja", "soft-clip")
SHAPES = ("connection", "neuron", "scalar")
RNNS = [
    *itertools.product(RULES, ("none", "simple", "fanout")),
    ("hard-clip", "retroactive"),
    ("soft-clip", "retroactive"),
]
LSTMS = [("hard-clip", modulation) for modulation in ("none", "simple", "fanout")]
D, CLIP = 3, 0.3


def make(rule: str, modulation: str, N: int = 5, seed: int = 0, **options) -> Backpropamine:
    """A core whose every part matters: large w and alpha of both signs, and gains well away from 0 and 1."""
    torch.manual_seed(seed)
    core = Backpropamine(D, N, trace_rule=rule, modulation=modulation, eta=0.3, trace_clip=CLIP, **options)
    with torch.no_grad():
        core.weight.normal_(std=1 / math.sqrt(N))
        core.alpha.normal_(std=0.7 / math.sqrt(N))
        if core.modulator_bias is not None:
            core.modulator_bias.fill_(0.8)
        if core.fanout_bias is not None:
            core.fanout_weight.mul_(0.3)
            core.fanout_bias.mul_(0.2).add_(0.3)
    return core


def case(core: Backpropamine, B: int, T: int, resets: float = 0.15, seed: int = 1):
    """Inputs, a state that is not the initial one, resets, but for the last third; all in float64."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    xs = normal(B, T, D)
    state = tuple(0.4 * normal(*part.shape) for part in core.init_state(B))
    reset = torch.rand(B, T, generator=rng) < resets
    reset[:, 2 * T // 3 :] = False
    return xs, state, reset


def the_loop(core: Backpropamine, xs, state, reset):
    """The equations of the facts, one step and one formula after the other, under autograd."""
    options, names = core.variant, core.variant.state_names
    s = dict(zip(names, state, strict=True))
    N, c = core.hidden_dim, options.trace_clip
    f = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": lambda u: u}[options.modulator_activation]
    alpha = core.alpha.expand(N, N)
    hs = []
    for t in range(xs.shape[1]):
        kept = 1.0 - reset[:, t].to(xs.dtype)
        s = {name: part * kept.view(-1, *[1] * (part.dim() - 1)) for name, part in s.items()}
        x, H = s["h"], s["H"]
        drive = xs[:, t] @ core.input.weight.T + core.input.bias
        plastic = torch.einsum("bi,ij->bj", x, core.weight) + torch.einsum("bi,ij,bij->bj", x, alpha, H)
        if options.cell == "rnn":
            y = new = torch.tanh(drive + plastic)
        else:
            gates = drive[:, : 3 * N] + x @ core.gates
            i, f_, o = (torch.sigmoid(gates[:, k * N : (k + 1) * N]) for k in range(3))
            y = torch.tanh(drive[:, 3 * N :] + plastic)
            s["c"] = f_ * s["c"] + i * y
            new = o * torch.tanh(s["c"])
        gain = core.eta
        if options.modulation != "none":
            M = f(new @ core.modulator_weight + core.modulator_bias)[:, None]  # (B, 1)
            s["modulator"] = M
            gain = M[:, :, None]
            if options.modulation == "fanout":
                gain = (M * core.fanout_weight + core.fanout_bias)[:, None, :]
        S = torch.einsum("bi,bj->bij", x, y)
        if options.modulation == "retroactive":
            S, s["E"] = s["E"], (1 - core.eta) * s["E"] + core.eta * S
        Delta, zero = gain * S, torch.zeros_like(S)
        if options.trace_rule == "hard-clip":
            s["H"] = torch.clip(H + Delta, -c, c)
        elif options.trace_rule == "decay":
            s["H"] = (1 - gain) * H + Delta
        elif options.trace_rule == "oja":
            s["H"] = H + gain * y[:, None] * (x[:, :, None] - y[:, None] * H)
        else:
            s["H"] = torch.clip(H + torch.maximum(Delta, zero) * (c - H) + torch.minimum(Delta, zero) * (c + H), -c, c)
        s["h"] = new
        hs.append(new)
    return torch.stack(hs, 1), tuple(s[name] for name in names)


def results(core: Backpropamine, run, xs, state, reset, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """hs, the last state, and the gradients of everything under a fixed random loss on both."""
    core = core.to(dtype)
    xs = xs.to(dtype).requires_grad_()
    state = tuple(part.to(dtype).requires_grad_() for part in state)
    hs, last = run(xs, state, reset)
    rng = torch.Generator().manual_seed(2)
    upstream = [torch.randn(a.shape, generator=rng, dtype=torch.float64).to(dtype) for a in (hs, *last)]
    names = core.variant.state_names
    wanted = {"xs": xs, **dict(core.named_parameters())}
    wanted |= {f"{name}(0)": part for name, part in zip(names, state, strict=True) if name != "modulator"}
    gradients = torch.autograd.grad([hs, *last], list(wanted.values()), upstream)
    outputs = {"hs": hs, **dict(zip(names, last, strict=True))}
    return {**outputs, **{f"d{name}": g for name, g in zip(wanted, gradients, strict=True)}}


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("cell", "rule", "modulation"), [*(("rnn", *v) for v in RNNS), *(("lstm", *v) for v in LSTMS)])
def test_unroll_has_the_gradients_of_the_equations(cell: str, rule: str, modulation: str, shape: str) -> None:
    core = make(rule, modulation, cell=cell, alpha_shape=shape)
    xs, state, reset = case(core, 3, 17)
    actual = results(core, core.unroll, xs, state, reset)
    expected = results(core, lambda *a: the_loop(core, *a), xs, state, reset)
    assert reset.any() and actual.keys() == expected.keys()
    if rule == "hard-clip":
        assert (expected["H"].abs() == CLIP).any()  # the clip is at work
    for name, truth in expected.items():
        torch.testing.assert_close(actual[name], truth, rtol=1e-8, atol=1e-8, msg=f"{name} differs")


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
@pytest.mark.parametrize("modulation", ["simple", "fanout", "retroactive"])
def test_every_modulator_activation_has_the_gradients_of_the_equations(modulation: str, activation: str) -> None:
    core = make("hard-clip", modulation, modulator_activation=activation)
    xs, state, reset = case(core, 2, 9)
    actual = results(core, core.unroll, xs, state, reset)
    for name, truth in results(core, lambda *a: the_loop(core, *a), xs, state, reset).items():
        torch.testing.assert_close(actual[name], truth, rtol=1e-8, atol=1e-8, msg=f"{name} differs")


def assert_as_exact_as_the_loop(core: Backpropamine, xs, state, reset) -> None:
    """Norm-relative errors of the fused kernel against float64: at most thrice the float32 loop's own, or 1e-5."""
    exact = results(core, lambda *a: the_loop(core, *a), xs, state, reset)
    loop = results(core, lambda *a: the_loop(core, *a), xs, state, reset, torch.float32)
    core.kernel = "fused"
    fused = results(core, core.unroll, xs, state, reset, torch.float32)
    for name, truth in exact.items():
        error, own = ((a[name] - truth).norm() for a in (fused, loop))
        assert error <= max(3 * own, 1e-5 * truth.norm()), f"{name}: {error:.1e} of {truth.norm():.1e}, loop {own:.1e}"


@needs_numba
@pytest.mark.parametrize(("rule", "modulation"), RNNS)
def test_the_fused_kernels_are_as_exact_as_the_loop(rule: str, modulation: str) -> None:
    core = make(rule, modulation, N=37)  # blocks of 32 and 16 units, the last one not full
    assert_as_exact_as_the_loop(core, *case(core, 3, 23, resets=0.05))


def strongly_modulated(modulation: str) -> Backpropamine:
    """A core with the soft clip whose changes exceed 1, so that they exceed the bound if nothing stops them."""
    core = make("soft-clip", modulation, N=37, modulator_activation="linear")
    with torch.no_grad():
        core.modulator_bias.fill_(6.0)
        if core.fanout_bias is not None:
            core.fanout_bias.fill_(-6.0)
    return core


@needs_numba
@pytest.mark.parametrize("modulation", ["simple", "fanout", "retroactive"])
def test_soft_clip_cuts_in_the_adjoint_too(modulation: str) -> None:
    core = strongly_modulated(modulation)
    xs, state, reset = case(core, 3, 5, resets=0.05)
    _, after = the_loop(core.double(), xs, state, reset)
    trace = after[core.variant.state_names.index("H")].abs()
    assert 0.1 < (trace == CLIP).double().mean() < 0.9  # both sides of the bound are at work
    assert_as_exact_as_the_loop(core, xs, state, reset)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("modulation", ["simple", "fanout", "retroactive"])
def test_soft_clip_keeps_the_trace_within_its_bound(modulation: str, kernel: str) -> None:
    core = strongly_modulated(modulation)
    core.kernel = kernel
    xs, state = torch.randn(2, 200, D), core.init_state(2)
    for together in (xs, xs[:, :1]):  # a sequence, and a single step of acting
        _, state = core.unroll(together, state)
        trace = core.state_arrays(state)["H"].abs()
        assert 0.0 < trace.max() <= CLIP


@needs_numba
@pytest.mark.parametrize(("N", "B", "T"), [(1, 2, 5), (16, 1, 1), (50, 19, 3), (100, 2, 30)])
def test_any_size_is_fused(N: int, B: int, T: int) -> None:
    core = make("hard-clip", "fanout", N=N)
    assert_as_exact_as_the_loop(core, *case(core, B, T, resets=0.1))


@needs_numba
@pytest.mark.parametrize(("shape", "activation"), [("neuron", "sigmoid"), ("scalar", "linear")])
def test_alpha_of_any_shape_and_every_activation_are_fused(shape: str, activation: str) -> None:
    core = make("hard-clip", "simple", N=20, alpha_shape=shape, modulator_activation=activation)
    assert_as_exact_as_the_loop(core, *case(core, 3, 12))


@needs_numba
def test_only_what_is_used_of_the_last_state_needs_a_gradient() -> None:
    """hs alone, or H alone: the other upstream gradients are then absent, not zeros."""
    core = make("hard-clip", "retroactive", N=6, kernel="fused")
    xs, state, _ = case(core, 2, 7)
    xs, state = xs.float(), tuple(part.float() for part in state)
    for pick in (lambda out: out[0], lambda out: out[1][1], lambda out: out[1][-1]):
        gradients = []
        for kernel in ("fused", "reference"):
            core.kernel = kernel
            core.zero_grad()
            pick(core.unroll(xs, state)).square().sum().backward()
            gradients.append(core.alpha.grad.clone())
        assert gradients[0].any()
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


# --- rules worked by hand ---------------------------------------------------------------------------------------------


def two_units(rule: str, modulation: str, kernel: str, **options) -> Backpropamine:
    """w = alpha = 0 and h_t = (0.8, 0.2) whatever came before; eta = 0.5."""
    core = Backpropamine(1, 2, trace_rule=rule, modulation=modulation, eta=0.5, kernel=kernel, **options)
    with torch.no_grad():
        for parameter in (core.weight, core.alpha, core.input.weight):
            parameter.zero_()
        core.input.bias.copy_(torch.tensor([0.8, 0.2]).atanh())
        if core.modulator_weight is not None:
            core.modulator_weight.zero_()
            core.modulator_bias.fill_(math.atanh(0.5))
    return core


def one_step(core: Backpropamine, **parts):
    """The state, by name, after a step from h = (0.5, -1) and H, the others given or zero."""
    start = dict(zip(core.variant.state_names, core.init_state(1), strict=True))
    start |= {"h": torch.tensor([[0.5, -1.0]]), "H": torch.tensor([[[0.9, 0.0], [0.2, -0.95]]]), **parts}
    with torch.no_grad():
        _, state = core(torch.zeros(1, 1), tuple(start.values()))
    return core.state_arrays(state)


BY_HAND = {  # h_{t-1} h_t^T = [[0.4, 0.1], [-0.8, -0.2]]; times 0.5: [[0.2, 0.05], [-0.4, -0.1]]
    "hard-clip": [[1.0, 0.05], [-0.2, -1.0]],
    "soft-clip": [[0.9 + 0.2 * 0.1, 0.05], [0.2 - 0.4 * 1.2, -0.95 - 0.1 * 0.05]],
    "decay": [[0.45 + 0.2, 0.05], [0.1 - 0.4, -0.475 - 0.1]],
    "oja": [
        [0.9 + 0.2 - 0.32 * 0.9, 0.05],
        [0.2 - 0.4 - 0.32 * 0.2, -0.95 - 0.1 + 0.02 * 0.95],
    ],  # 0.5 h_t^2 = 0.32, 0.02
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("modulation", ["none", "simple"])  # M = 0.5 too
@pytest.mark.parametrize("rule", RULES)
def test_the_trace_after_one_step_is_that_worked_by_hand(rule: str, modulation: str, kernel: str) -> None:
    after = one_step(two_units(rule, modulation, kernel))
    torch.testing.assert_close(after["h"], torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close(after["H"], torch.tensor([BY_HAND[rule]]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_retroactive_modulation_uses_the_old_eligibility(kernel: str) -> None:
    eligibility = torch.tensor([[[0.1, 0.2], [0.4, -0.8]]])
    after = one_step(two_units("hard-clip", "retroactive", kernel), E=eligibility)
    torch.testing.assert_close(after["H"], torch.tensor([[[0.95, 0.1], [0.4, -1.0]]]))  # H + 0.5 E, clipped
    torch.testing.assert_close(after["E"], torch.tensor([[[0.25, 0.15], [-0.2, -0.5]]]))  # E / 2 + S / 2
    torch.testing.assert_close(after["modulator"], torch.tensor([[0.5]]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_fanouts_bias_keeps_plasticity_on_where_the_modulator_is_zero(kernel: str) -> None:
    fanout, simple = (two_units("hard-clip", modulation, kernel) for modulation in ("fanout", "simple"))
    with torch.no_grad():
        fanout.modulator_bias.zero_()
        simple.modulator_bias.zero_()
        fanout.fanout_bias.copy_(torch.tensor([0.5, -1.0]))
    before = torch.tensor([[[0.9, 0.0], [0.2, -0.95]]])
    assert torch.equal(one_step(simple)["H"], before)
    after = one_step(fanout)
    assert after["modulator"].item() == 0.0
    torch.testing.assert_close(after["H"], torch.tensor([[[1.0, -0.1], [-0.2, -0.75]]]))  # H + S (0.5, -1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_saturated_trace_passes_no_gradient(kernel: str) -> None:
    core = two_units("hard-clip", "none", kernel)
    before = torch.tensor([[[0.9, 0.0], [0.2, -0.95]]], requires_grad=True)
    _, (_, after) = core(torch.zeros(1, 1), (torch.tensor([[0.5, -1.0]]), before))
    (gradient,) = torch.autograd.grad(after.sum(), before)
    assert gradient.tolist() == [[[0.0, 1.0], [1.0, 0.0]]]  # where BY_HAND is at +-1


@pytest.mark.parametrize("kernel", KERNELS)
def test_alpha_reads_the_trace_from_presynaptic_rows(kernel: str) -> None:
    core = two_units("hard-clip", "none", kernel)
    with torch.no_grad():
        core.input.bias.zero_()
        core.alpha.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        core.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    expected = torch.tensor([[0.5 * 0.9 - 3.0 * 0.2, 0.5 * 1.0 - 4.0 * -0.95]]).tanh()
    torch.testing.assert_close(one_step(core)["h"], expected)


# --- presets and options ----------------------------------------------------------------------------------------------

PRESETS = {  # hidden_dim, modulation, trace_clip, init_scale, eta
    "backpropamine": (100, "simple", 1.0, 0.01, 0.01),
    "backpropamine-simplemaze": (100, "fanout", 2.0, 0.001, 0.01),
    "backpropamine-maze": (100, "simple", 1.0, 0.01, 0.01),
    "backpropamine-cue-reward": (200, "simple", 1.0, 0.01, 0.1),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_the_published_values(name: str) -> None:
    preset = cfg.choices("core")[name].build()
    values = (preset.hidden_dim, preset.modulation, preset.trace_clip, preset.init_scale, preset.eta)
    assert values == PRESETS[name]
    others = (preset.cell, preset.trace_rule, preset.alpha_shape, preset.modulator_activation)
    assert others == ("rnn", "hard-clip", "connection", "tanh")


def test_parameters_start_as_published() -> None:
    torch.manual_seed(0)
    core = Backpropamine(17, 100, modulation="fanout", init_scale=0.001)
    for parameter in (core.weight, core.alpha):
        assert parameter.shape == (100, 100) and parameter.min() >= 0.0 and 0.0009 < parameter.max() <= 0.001
    for parameter in (core.fanout_weight, core.fanout_bias):  # torch.nn.Linear(1, N)
        assert parameter.abs().max() <= 1.0 and parameter.min() < -0.8 and parameter.max() > 0.8
    assert 0.08 < core.modulator_weight.abs().max() <= 0.1  # torch.nn.Linear(N, 1)
    assert core.eta is None
    retroactive = Backpropamine(17, 100, modulation="retroactive", eta=0.1)
    assert retroactive.eta.tolist() == [pytest.approx(0.1)] and retroactive.eta.requires_grad


def test_the_modulated_network_has_the_published_number_of_parameters() -> None:
    count = sum(p.numel() for p in Backpropamine(17, 100, modulation="simple").parameters())
    heads = 100 * 5 + 5  # four actions and a value
    assert count + heads == 22_406  # the public code counts about 22.5 thousand


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstm", "trace_rule": "oja"}, "--cell lstm has only --trace-rule hard-clip, got oja; use --cell rnn"),
        (
            {"cell": "lstm", "modulation": "retroactive"},
            "--cell lstm has no eligibility trace: --modulation must be none",
        ),
        ({"cell": "lstm", "kernel": "fused"}, "--kernel fused exists for --cell rnn, got lstm"),
        (
            {"modulation": "retroactive", "trace_rule": "decay"},
            "--modulation retroactive needs --trace-rule hard-clip or",
        ),
        ({"trace_rule": "hebb"}, "--trace-rule must be one of hard-clip, decay, oja, soft-clip, got 'hebb'"),
        ({"modulation": "fan-out"}, "--modulation must be one of none, simple, fanout, retroactive, got 'fan-out'"),
        ({"alpha_shape": "matrix"}, "--alpha-shape must be one of connection, neuron, scalar, got 'matrix'"),
        ({"trace_clip": 0.0}, "--trace-clip must be greater than 0.0, got 0.0"),
        ({"hidden_dim": 0}, "--hidden-dim must be at least 1, got 0"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Backpropamine(3, **{"hidden_dim": 4, **options})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# --- the state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"modulation": "none"}, ["h", "H"]),
        ({"modulation": "simple"}, ["h", "H", "modulator"]),
        ({"modulation": "retroactive"}, ["h", "H", "E", "modulator"]),
        ({"modulation": "fanout", "cell": "lstm"}, ["h", "c", "H", "modulator"]),
    ],
)
def test_the_state_is_named(options: dict, names: list[str]) -> None:
    core = Backpropamine(3, 4, **options)
    arrays = core.state_arrays(core.init_state(2))
    assert list(arrays) == names
    shapes = {"h": (2, 4), "c": (2, 4), "H": (2, 4, 4), "E": (2, 4, 4), "modulator": (2, 1)}
    assert all(part.shape == shapes[name] and not part.any() for name, part in arrays.items())


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_modulator_of_the_state_is_that_of_the_last_step(kernel: str) -> None:
    core = make("hard-clip", "simple", kernel=kernel)
    with torch.no_grad():
        hs, state = core.unroll(torch.randn(2, 6, D), core.init_state(2))
        expected = torch.tanh(hs[:, -1] @ core.modulator_weight + core.modulator_bias)
    torch.testing.assert_close(state[2][:, 0], expected)


# --- lesions ----------------------------------------------------------------------------------------------------------


def lesioned(modulation: str, part: str | None, cell: str = "rnn"):
    """hs and the named last state with a lesion, by unroll; stepping must agree."""
    core = make("hard-clip", modulation, cell=cell)
    xs, state, reset = case(core, 2, 8)
    xs, state = xs.float(), tuple(p.float() for p in state)
    core.lesion = part
    with torch.no_grad():
        hs, last = core.unroll(xs, state)
        for t in range(8):
            h, state = core(xs[:, t], state)
            torch.testing.assert_close(h, hs[:, t])
    return core, xs, hs, core.state_arrays(last)


def test_without_its_trace_the_network_is_a_plain_rnn() -> None:
    core, xs, hs, last = lesioned("simple", "trace")
    h = case(core, 2, 8)[1][0].float()
    with torch.no_grad():
        for t in range(8):
            h = torch.tanh(core.input(xs[:, t]) + h @ core.weight)
            torch.testing.assert_close(hs[:, t], h)
    assert not last["H"].any() and last["modulator"].any()


def test_without_its_modulator_the_trace_stands_still() -> None:
    core, _, _, last = lesioned("simple", "modulator")
    torch.testing.assert_close(last["H"], case(core, 2, 8)[1][1].float().clamp(-CLIP, CLIP))
    assert not last["modulator"].any()


def test_without_its_modulator_a_fanout_still_writes_by_its_bias() -> None:
    core, _, _, last = lesioned("fanout", "modulator")
    assert not last["modulator"].any()
    assert not torch.allclose(last["H"], case(core, 2, 8)[1][1].float().clamp(-CLIP, CLIP))


def test_without_eligibility_the_trace_stands_still() -> None:
    core, _, _, last = lesioned("retroactive", "eligibility")
    torch.testing.assert_close(last["H"], case(core, 2, 8)[1][1].float().clamp(-CLIP, CLIP))
    assert not last["E"].any() and last["modulator"].any()


def test_an_lstm_can_be_lesioned_too() -> None:
    *_, last = lesioned("simple", "trace", cell="lstm")
    assert not last["H"].any() and last["c"].any()


def test_a_lesion_can_be_undone() -> None:
    core, xs, hs, _ = lesioned("simple", None)
    other, *_ = lesioned("simple", "trace")
    other.lesion = None
    with torch.no_grad():
        assert torch.equal(other.unroll(xs, tuple(p.float() for p in case(core, 2, 8)[1]))[0], hs)


@pytest.mark.parametrize(
    ("modulation", "part", "known"),
    [
        ("none", "modulator", "trace"),
        ("simple", "eligibility", "modulator, trace"),
        ("retroactive", "weights", "modulator, trace, eligibility"),
    ],
)
def test_a_lesion_of_what_is_not_there_is_refused(modulation: str, part: str, known: str) -> None:
    core = make("hard-clip", modulation)
    with pytest.raises(
        ConfigError, match=f"--lesion must be one of {known} for --modulation {modulation}, got '{part}'"
    ):
        core.lesion = part
    assert core.lesion is None


# --- the kernels ------------------------------------------------------------------------------------------------------


@needs_numba
def test_results_repeat_bit_for_bit_on_any_number_of_threads(monkeypatch) -> None:
    monkeypatch.setattr(launcher, "PARALLEL_WORK", 0)
    core = make("hard-clip", "fanout", N=20, kernel="fused")
    (_, state, reset), before, runs = case(core, 19, 12), torch.get_num_threads(), []
    core.input = nn.Identity()  # torch's product of the input may depend on the threads
    xs = torch.randn(19, 12, 20)
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(results(core, core.unroll, xs, state, reset, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for name, a in runs[0].items():
            assert name == "dweight" or torch.equal(a, other[name]), name  # that is torch's product


@needs_numba
def test_segments_do_not_show(monkeypatch) -> None:
    from mpn_rl.kernels import backpropamine_cpu

    core = make("hard-clip", "retroactive", N=20, kernel="fused")
    inputs = case(core, 2, 50)
    whole = results(core, core.unroll, *inputs, torch.float32)
    monkeypatch.setattr(backpropamine_cpu, "SEGMENT_BYTES", 0)
    for name, a in results(core, core.unroll, *inputs, torch.float32).items():
        torch.testing.assert_close(a, whole[name], rtol=1e-5, atol=1e-5)


@needs_numba
def test_any_memory_layout_is_read_correctly() -> None:
    core = make("hard-clip", "simple", N=20, kernel="fused")
    xs, state, reset = case(core, 4, 6)
    xs, state = xs.float(), tuple(part.float() for part in state)
    h, trace, modulator = state
    turned = (h.t().contiguous().t(), trace.transpose(1, 2).contiguous().transpose(1, 2), modulator)
    with torch.no_grad():
        plain = core.unroll(xs, state, reset)
        other = core.unroll(xs.repeat_interleave(2, -1)[..., ::2], turned, reset.t().contiguous().t())
        assert torch.equal(core(xs[:, 0], state)[0], core(xs[:, 0], turned)[0])
    assert torch.equal(plain[0], other[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], other[1], strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_unroll_keeps_no_copy_of_the_trace_for_every_step(kernel: str) -> None:
    B, T, N = 2, 100, 32
    core = make("hard-clip", "retroactive", N=N, kernel=kernel)
    saved = {}

    def count(a: torch.Tensor) -> torch.Tensor:
        saved[a.data_ptr()] = a.numel()
        return a

    with torch.autograd.graph.saved_tensors_hooks(count, lambda a: a):
        core.unroll(torch.randn(B, T, D), core.init_state(B))
    assert sum(saved.values()) < 6 * B * N * N + 5 * B * T * N  # autograd's own loop: above 4 T B N N


def test_the_reference_runs_each_stretch_twice_where_a_gradient_is_wanted(monkeypatch) -> None:
    calls = []
    step = backpropamine.plastic_step
    monkeypatch.setattr(backpropamine, "plastic_step", lambda *a: calls.append(0) or step(*a))
    core = make("hard-clip", "simple", kernel="reference")
    hs, _ = core.unroll(torch.randn(2, 30, D), core.init_state(2))
    assert len(calls) == 30
    hs.sum().backward()
    assert 55 <= len(calls) <= 60  # a stretch need not run again to its very end


@needs_numba
def test_a_diverged_row_shows_as_nan_and_spoils_no_other() -> None:
    core = make("hard-clip", "fanout", N=20, kernel="fused")
    xs, state, _ = case(core, 3, 4)
    xs, state = xs.float(), tuple(part.float() for part in state)
    with torch.no_grad():
        clean, _ = core.unroll(xs, state)
        xs[1, 1, 0] = math.nan
        hs, last = core.unroll(xs, state)
        h, _ = core(xs[:, 1], state)
    assert hs[1, 0].isfinite().all() and hs[1, 1:].isnan().all() and last[1][1].isnan().any()
    assert torch.equal(hs[[0, 2]], clean[[0, 2]]) and h[1].isnan().all() and h[[0, 2]].isfinite().all()


def test_no_steps_leave_the_state_alone() -> None:
    core = make("hard-clip", "simple")
    state = tuple(part.float() for part in case(core, 2, 1)[1])
    hs, last = core.unroll(torch.zeros(2, 0, D), state)
    assert hs.shape == (2, 0, 5) and all(torch.equal(a, b) for a, b in zip(state, last, strict=True))


def test_what_the_fused_kernels_cannot_do_is_refused_or_left_to_the_reference(monkeypatch) -> None:
    core = make("hard-clip", "simple", kernel="fused").double()
    with pytest.raises(ConfigError, match=r"kernel 'fused' needs float32, got torch.float64.*use kernel 'auto'"):
        core.unroll(torch.zeros(1, 2, D, dtype=torch.float64), core.init_state(1))
    core = make("hard-clip", "simple")
    xs = torch.randn(2, 5, D)
    monkeypatch.setattr(launcher, "installed", lambda package: False)
    with torch.no_grad():
        auto = core.unroll(xs, core.init_state(2))[0]
        core.kernel = "reference"
        assert torch.equal(core.unroll(xs, core.init_state(2))[0], auto)
    core.kernel = "fused"
    with pytest.raises(ConfigError, match="needs numba on cpu: pip install numba"):
        core.unroll(xs, core.init_state(2))
    core.kernel = "quick"
    with pytest.raises(ConfigError, match="kernel must be one of auto, reference, fused, got 'quick'"):
        core.unroll(xs, core.init_state(2))


def test_shapes_that_do_not_fit_are_refused() -> None:
    core = make("hard-clip", "simple")
    h, trace, modulator = core.init_state(2)
    for wrong in ((h[:, :-1], trace, modulator), (h, trace[:1], modulator), (h, trace)):
        with pytest.raises(ValueError, match=r"drive \(2, 3, 5\) and w \(5, 5\) need the state h, H, modulator"):
            core.unroll(torch.zeros(2, 3, D), wrong)


def test_an_lstm_trains() -> None:
    """One step of descent lowers the loss of the variant that no kernel is written for."""
    core = Backpropamine(D, 6, cell="lstm", modulation="fanout", alpha_shape="neuron", init_scale=1e-4)
    xs, optimizer = torch.randn(4, 12, D), torch.optim.SGD(core.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(core.unroll(xs, core.init_state(4))[0], torch.full((4, 12, 6), 0.3))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
