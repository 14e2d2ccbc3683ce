"""The fused scan of the recurrent MPN against the plain loop in float64."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from mpn_rl.kernels import launcher
from mpn_rl.kernels.recurrent_mpn import recurrent_mpn_scan
from mpn_rl.options import ConfigError

NAMES = ("xs", "weight", "bias", "modulation", "hidden", "eta", "lambda_decay", "modulation0")
needs_numba = pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="Numba is not installed")


def case(B=3, T=20, D=7, H=40, *, eta=0.3, lam=0.9, shape=(1, 1), reset_rate=0.1):
    """Tensors of a scan by name, in float64, and the (B, T) resets; `shape` is that of eta and lambda."""
    rng = torch.Generator().manual_seed(1)

    def normal(*size):
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    tensors = (
        normal(B, T, D), 0.5 * normal(H, D + H) / (D + H) ** 0.5, 0.1 * normal(H), 0.3 * normal(B, H, D + H),
        0.5 * normal(B, H), eta + 0.02 * normal(*shape), lam - 0.02 * normal(*shape).abs(), 0.2 * normal(H, D + H),
    )  # fmt: skip
    return dict(zip(NAMES, tensors, strict=True)), torch.rand(B, T, generator=rng) < reset_rate


def run(tensors, reset, dtype, kernel, **options):
    """hs, the last M and h, and the gradients of every tensor under a fixed random loss on all three."""
    inputs = {name: a.detach().to(dtype).requires_grad_() for name, a in tensors.items()}
    modulation0 = inputs.pop("modulation0")
    results = recurrent_mpn_scan(*inputs.values(), reset=reset, modulation0=modulation0, kernel=kernel, **options)
    rng = torch.Generator().manual_seed(2)
    weights = [torch.randn(a.shape, generator=rng, dtype=torch.float64).to(dtype) for a in results]
    wanted = [*inputs.values(), modulation0] if reset is not None else [*inputs.values()]
    gradients = torch.autograd.grad(results, wanted, weights)
    named = zip((*inputs, "modulation0"), gradients, strict=False)
    return dict(zip(("hs", "M", "h"), results, strict=True)) | {f"d{name}": g for name, g in named}


def assert_as_exact_as_the_loop(tensors, reset, **options):
    """Norm-relative errors against float64: at most twice the float32 loop's own, or 5e-5."""
    exact = run(tensors, reset, torch.float64, "reference", **options)
    loop = run(tensors, reset, torch.float32, "reference", **options)
    fused = run(tensors, reset, torch.float32, "fused", **options)
    for name, truth in exact.items():
        error, own = ((a[name] - truth).norm() for a in (fused, loop))
        assert error <= max(2 * own, 5e-5 * truth.norm()), f"{name}: {error:.1e} of {truth.norm():.1e}, loop {own:.1e}"


@needs_numba
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (1, 1)),
        ({"rule": "oja", "activation": "sigmoid"}, (40, 47)),
        ({"form": "additive", "rule": "presynaptic", "m_activation": "none"}, (40, 1)),
    ],
)
def test_fused_outputs_and_gradients_equal_the_loop(options, shape):
    eta = 0.02 if options.get("form") == "additive" else 0.3
    assert_as_exact_as_the_loop(*case(shape=shape, eta=eta), **options)


@needs_numba
@pytest.mark.parametrize(("B", "T", "D", "H"), [(1, 1, 3, 5), (1, 12, 1, 1), (17, 3, 2, 33), (2, 5, 70, 64)])
def test_any_size_is_fused(B, T, D, H):
    assert_as_exact_as_the_loop(*case(B, T, D, H))


@needs_numba
def test_without_resets_the_start_has_no_gradient():
    tensors, _ = case(2, 6)
    assert_as_exact_as_the_loop(tensors, None)


@needs_numba
def test_checkpoints_do_not_show(monkeypatch):
    from mpn_rl.kernels import recurrent_mpn_cpu

    tensors, reset = case(2, 30, 5, 20)
    whole = run(tensors, reset, torch.float32, "fused")
    monkeypatch.setattr(recurrent_mpn_cpu, "SEGMENT_BYTES", 0)  # now every sqrt(T) steps
    pieces = run(tensors, reset, torch.float32, "fused")
    for name, a in whole.items():
        torch.testing.assert_close(a, pieces[name], rtol=1e-5, atol=1e-5)


@needs_numba
def test_results_repeat_bit_for_bit_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(launcher, "PARALLEL_WORK", 0)
    tensors, reset = case(19, 8, 5, 20)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(run(tensors, reset, torch.float32, "fused"))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, other[name]) for name, a in runs[0].items())


@needs_numba
def test_a_diverged_network_shows_as_nan():
    tensors, _ = case(1, 3)
    inputs = [a.float() for a in tensors.values()][:7]
    inputs[0][0, 1, 0] = math.nan
    hs, last, hidden = recurrent_mpn_scan(*inputs, kernel="fused")
    assert hs[0, 0].isfinite().all() and hs[0, 1:].isnan().all()
    assert last.isnan().any() and hidden.isnan().all()


@pytest.mark.parametrize("kernel", ["reference", pytest.param("fused", marks=needs_numba)])
def test_the_returned_state_shares_no_memory_with_the_outputs(kernel):
    """Lanes reset single rows of a state in place."""
    tensors, _ = case(2, 4)
    hs, _, hidden = recurrent_mpn_scan(*[a.float() for a in tensors.values()][:7], kernel=kernel)
    before = hs.clone()
    hidden[0] = 9.0
    assert torch.equal(hs, before)


def test_no_steps_leave_the_state_alone():
    tensors, _ = case(2, 0)
    inputs = [a.float() for a in tensors.values()][:7]
    hs, last, hidden = recurrent_mpn_scan(*inputs)
    assert hs.shape == (2, 0, 40) and torch.equal(last, inputs[3]) and torch.equal(hidden, inputs[4])


def test_float64_falls_back_to_the_reference():
    tensors, reset = case(2, 4)
    auto, loop = (run(tensors, reset, torch.float64, kernel) for kernel in ("auto", "reference"))
    assert all(torch.equal(auto[name], a) for name, a in loop.items())
    with pytest.raises(ConfigError, match="kernel 'fused' needs float32, got torch.float64.*use kernel 'auto'"):
        run(tensors, reset, torch.float64, "fused")


@pytest.mark.parametrize("wrong", ["weight", "bias", "modulation", "hidden"])
def test_shapes_that_do_not_fit_are_refused(wrong):
    tensors, _ = case(2, 3, 4, 5)
    tensors[wrong] = tensors[wrong][..., :-1]
    with pytest.raises(ValueError, match=r"xs \(2, 3, 4\) needs weight"):
        recurrent_mpn_scan(*[a.float() for a in tensors.values()][:7])
