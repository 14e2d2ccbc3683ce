"""The fused scans against the plain loop in float64, the loop against numbers worked by hand, and what they cost."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpn_rl.kernels import launcher
from mpn_rl.kernels.mpn import ACTIVATIONS, FORMS, M_ACTIVATIONS, RULES, mpn_scan, mpn_scan_reference
from mpn_rl.options import ConfigError

ROOT = Path(__file__).parents[2]
NAMES = ("xs", "weight", "bias", "modulation", "eta", "lambda_decay", "modulation0")
needs_numba = pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="Numba is not installed")
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")


def case(B=3, T=30, D=7, H=70, *, eta=0.3, lam=0.9, shape=(1, 1), m_scale=0.3, reset_rate=0.1):
    """Tensors of a scan by name, in float64, and the (B, T) resets; `shape` is that of eta and lambda."""
    rng = torch.Generator().manual_seed(1)

    def normal(*size):
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    tensors = (
        normal(B, T, D), normal(H, D) / D**0.5, 0.1 * normal(H), m_scale * normal(B, H, D),
        eta + 0.02 * normal(*shape), lam - 0.02 * normal(*shape).abs(), 0.2 * normal(H, D),
    )  # fmt: skip
    return dict(zip(NAMES, tensors, strict=True)), torch.rand(B, T, generator=rng) < reset_rate


def run(scan, tensors, reset, dtype, **options):
    """hs, M_T and the gradients of every tensor under a fixed random loss on both."""
    inputs = {name: a.detach().to(dtype).requires_grad_() for name, a in tensors.items()}
    modulation0 = inputs.pop("modulation0")
    hs, last = scan(*inputs.values(), reset=reset, modulation0=modulation0, **options)
    rng = torch.Generator().manual_seed(2)
    weights = [torch.randn(a.shape, generator=rng, dtype=torch.float64).to(dtype) for a in (hs, last)]
    wanted = [*inputs.values(), modulation0] if reset is not None else [*inputs.values()]
    gradients = torch.autograd.grad([hs, last], wanted, weights)
    named = zip((*inputs, "modulation0"), gradients, strict=False)
    return {"hs": hs, "M": last, **{f"d{name}": g for name, g in named}}


def assert_as_exact_as_the_loop(scan, tensors, reset, tolerance=1e-5, **options):
    """Norm-relative errors against float64: at most twice the float32 loop's own, or the tolerance."""
    exact = run(mpn_scan_reference, tensors, reset, torch.float64, **options)
    loop = run(mpn_scan_reference, tensors, reset, torch.float32, **options)
    fused = run(scan, tensors, reset, torch.float32, **options)
    for name, truth in exact.items():
        error, own = ((a[name] - truth).norm() for a in (fused, loop))
        assert error <= max(2 * own, tolerance * truth.norm()), (
            f"{name}: {error:.1e} of {truth.norm():.1e}, loop {own:.1e}"
        )


def fused_scan(*args, **options):
    return mpn_scan(*args, kernel="fused", **options)


# --- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "rule", "h2", "m2"),
    [  # W = 2, b = 0, eta = 0.1, lambda = 0.5, x = 3 then 1, f(u) = u, M(0) = 0; so h_1 = 6
        ("multiplicative", "associative", 2 * (1.8 + 1), 0.9 + 0.1 * 5.6),  # M_1 = 0.1 * 6 * 3
        ("multiplicative", "presynaptic", 2 * (0.3 + 1), 0.15 + 0.1),  # M_1 = 0.1 * 3
        ("multiplicative", "postsynaptic", 2 * (0.6 + 1), 0.3 + 0.1 * 3.2),  # M_1 = 0.1 * 6
        ("multiplicative", "oja", 2 * (1.8 + 1), 0.9 + 0.1 * (5.6 - 5.6**2 * 1.8)),
        ("additive", "associative", 2 + 1.8, 0.9 + 0.1 * 3.8),
        ("additive", "presynaptic", 2 + 0.3, 0.15 + 0.1),
    ],
)
@pytest.mark.parametrize("kernel", ["reference", pytest.param("fused", marks=needs_numba)])
def test_two_steps_worked_by_hand(form, rule, h2, m2, kernel):
    xs = torch.tensor([[[3.0], [1.0]]])
    eta, lam = torch.tensor([[0.1]]), torch.tensor([[0.5]])
    hs, last = mpn_scan(
        xs, torch.tensor([[2.0]]), None, torch.zeros(1, 1, 1), eta, lam,
        form=form, rule=rule, activation="linear", kernel=kernel,
    )  # fmt: skip
    assert hs.flatten().tolist() == pytest.approx([6.0, h2])
    assert last.item() == pytest.approx(m2)


@pytest.mark.parametrize("kernel", ["reference", pytest.param("fused", marks=needs_numba)])
def test_two_steps_with_a_bounded_modulation_worked_by_hand(kernel):
    """As the first of them: M_1 = tanh(1.8), so h_2 = 2 (tanh 1.8 + 1) and M_2 = tanh(M_1 / 2 + h_2 / 10)."""
    xs, eta, lam = torch.tensor([[[3.0], [1.0]]]), torch.tensor([[0.1]]), torch.tensor([[0.5]])
    hs, last = mpn_scan(
        xs, torch.tensor([[2.0]]), None, torch.zeros(1, 1, 1), eta, lam,
        activation="linear", m_activation="tanh", kernel=kernel,
    )  # fmt: skip
    m1 = math.tanh(1.8)
    h2 = 2 * (m1 + 1)
    assert hs.flatten().tolist() == pytest.approx([6.0, h2])
    assert last.item() == pytest.approx(math.tanh(0.5 * m1 + 0.1 * h2))


@pytest.mark.parametrize("m_activation", M_ACTIVATIONS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_the_reference_passes_gradcheck(form, rule, m_activation):
    tensors, reset = case(2, 4, 2, 3, shape=(3, 2), reset_rate=0.3)

    def scan(*inputs):
        options = {"form": form, "rule": rule, "m_activation": m_activation}
        return mpn_scan_reference(*inputs[:6], reset=reset, modulation0=inputs[6], **options)

    assert torch.autograd.gradcheck(scan, [a.requires_grad_() for a in tensors.values()])


# --- the fused kernels on the CPU -------------------------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_fused_outputs_and_gradients_equal_the_loop(form, rule):
    assert_as_exact_as_the_loop(fused_scan, *case(), form=form, rule=rule)


@needs_numba
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "tanh"])
def test_every_activation_is_fused(activation):
    assert_as_exact_as_the_loop(fused_scan, *case(eta=0.05), activation=activation)


@needs_numba
@pytest.mark.parametrize("shape", [(1, 1), (70, 7)])
@pytest.mark.parametrize(("form", "rule"), [(FORMS[0], "associative"), (FORMS[0], "postsynaptic"), (FORMS[1], "oja")])
def test_a_bounded_modulation_is_fused(form, rule, shape):
    """The kernels' tanh is within 4e-7, of which more is left in the small 1 - M^2 of a synapse near its bound."""
    tensors, reset = case(shape=shape, eta=0.4)
    scans = run(fused_scan, tensors, reset, torch.float32, form=form, rule=rule, m_activation="tanh")
    assert scans["M"].abs().max() <= 1.0
    assert_as_exact_as_the_loop(fused_scan, tensors, reset, 5e-5, form=form, rule=rule, m_activation="tanh")


@needs_numba
@pytest.mark.parametrize("rule", ["associative", "oja"])
@pytest.mark.parametrize("shape", [(1, 7), (70, 1), (70, 7)])
def test_eta_and_lambda_may_differ_between_synapses(rule, shape):
    assert_as_exact_as_the_loop(fused_scan, *case(shape=shape), rule=rule)


@needs_numba
@pytest.mark.parametrize(
    ("B", "T", "D", "H"),
    [(1, 1, 3, 5), (1, 40, 1, 1), (2, 9, 33, 128), (17, 5, 2, 64), (2, 6, 65, 33), (3, 1, 200, 20)],
)
def test_any_size_is_fused(B, T, D, H):
    assert_as_exact_as_the_loop(fused_scan, *case(B, T, D, H))


@needs_numba
@pytest.mark.parametrize(("lam", "eta"), [(0.95, 0.05), (0.88, 0.7)])
@pytest.mark.parametrize("T", [50, 800])
def test_errors_stay_at_the_loops_own_for_long_trials(lam, eta, T):
    tensors, _ = case(2, T, 8, 32, lam=lam, eta=eta, m_scale=0.0)
    assert_as_exact_as_the_loop(fused_scan, tensors, None)


@needs_numba
def test_checkpoints_do_not_show(monkeypatch):
    from mpn_rl.kernels import mpn_cpu

    tensors, reset = case(2, 50)
    whole = run(fused_scan, tensors, reset, torch.float32)
    monkeypatch.setattr(mpn_cpu, "SEGMENT_BYTES", 0)  # now every sqrt(T) steps
    pieces = run(fused_scan, tensors, reset, torch.float32)
    for name, a in whole.items():
        torch.testing.assert_close(a, pieces[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["reference", pytest.param("fused", marks=needs_numba)])
def test_a_sequence_equals_its_steps(kernel):
    tensors, _ = case(4, 9, 5, 40)
    *inputs, _ = (a.float() for a in tensors.values())
    hs, last = mpn_scan(*inputs, kernel=kernel)
    modulation = inputs[3]
    for t in range(9):
        h, modulation = mpn_scan(inputs[0][:, t : t + 1], *inputs[1:3], modulation, *inputs[4:], kernel=kernel)
        torch.testing.assert_close(h[:, 0], hs[:, t])
    torch.testing.assert_close(modulation, last)


@pytest.mark.parametrize("kernel", ["reference", pytest.param("fused", marks=needs_numba)])
def test_a_reset_sets_the_row_to_its_start_before_the_step(kernel):
    tensors, _ = case(2, 8, 5, 40)
    xs, weight, bias, modulation, eta, lam, m0 = (a.float() for a in tensors.values())
    reset = torch.zeros(2, 8, dtype=torch.bool)
    reset[0, 5] = True
    hs, _ = mpn_scan(xs, weight, bias, modulation, eta, lam, reset=reset, modulation0=m0, kernel=kernel)
    untouched, _ = mpn_scan(xs, weight, bias, modulation, eta, lam, kernel=kernel)
    restarted, _ = mpn_scan(xs[:1, 5:], weight, bias, m0[None], eta, lam, kernel=kernel)
    torch.testing.assert_close(hs[0, 5:], restarted[0])
    torch.testing.assert_close(hs[1], untouched[1])
    torch.testing.assert_close(hs[0, :5], untouched[0, :5])


@needs_numba
def test_a_trained_start_without_resets_has_no_gradient_here():
    tensors, _ = case(2, 6)
    inputs = {name: a.float().requires_grad_() for name, a in tensors.items()}
    modulation0 = inputs.pop("modulation0")
    hs, _ = mpn_scan(*inputs.values(), modulation0=modulation0, kernel="fused")
    assert torch.autograd.grad(hs.sum(), modulation0, allow_unused=True) == (None,)


@needs_numba
def test_results_repeat_bit_for_bit_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(launcher, "PARALLEL_WORK", 0)
    tensors, reset = case(19, 20)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(run(fused_scan, tensors, reset, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for name, a in runs[0].items():
            assert torch.equal(a, other[name]), name


@needs_numba
def test_any_memory_layout_is_read_correctly():
    tensors, reset = case(4, 6, 5, 20)
    xs, weight, bias, modulation, eta, lam, m0 = (a.float() for a in tensors.values())
    strided = [a.repeat_interleave(2, -1)[..., ::2] for a in (xs, weight, bias)]
    turned = modulation.transpose(1, 2).contiguous().transpose(1, 2)
    plain = mpn_scan(xs, weight, bias, modulation, eta, lam, reset=reset, modulation0=m0)
    other = mpn_scan(*strided, turned, eta[0, 0], lam[0], reset=reset.t().contiguous().t(), modulation0=m0)
    assert torch.equal(plain[0], other[0])
    assert torch.equal(plain[1], other[1])


@needs_numba
def test_what_backward_needs_grows_with_the_square_root_of_time():
    B, T, D, H = 2, 400, 16, 256  # a segment of M is beyond the cache's share here
    tensors, _ = case(B, T, D, H)
    inputs = [a.float().requires_grad_() for a in tensors.values()][:6]
    saved = {}

    def count(a):
        saved[a.data_ptr()] = a.numel()
        return a

    with torch.autograd.graph.saved_tensors_hooks(count, lambda a: a):
        mpn_scan(*inputs, kernel="fused")
    copies_of_m = (sum(saved.values()) - B * T * (D + H) - H * D) / (B * D * H)
    assert copies_of_m <= math.sqrt(T) + 2


@needs_numba
def test_a_diverged_network_shows_as_nan():
    tensors, _ = case(1, 3)
    inputs = [a.float() for a in tensors.values()][:6]
    inputs[0][0, 1, 0] = math.nan
    hs, last = mpn_scan(*inputs, kernel="fused")
    assert hs[0, 0].isfinite().all()
    assert hs[0, 1:].isnan().all()
    assert last.isnan().any()


def test_no_steps_leave_the_modulation_alone():
    tensors, _ = case(2, 0)
    *inputs, _ = (a.float() for a in tensors.values())
    hs, last = mpn_scan(*inputs)
    assert hs.shape == (2, 0, 70)
    assert torch.equal(last, inputs[3])


# --- choosing, falling back, starting ---------------------------------------------------------------------------------


def test_float64_falls_back_to_the_reference():
    tensors, reset = case(2, 5)
    auto = run(mpn_scan, tensors, reset, torch.float64)
    loop = run(mpn_scan_reference, tensors, reset, torch.float64)
    assert all(torch.equal(auto[name], a) for name, a in loop.items())
    with pytest.raises(ConfigError, match="kernel 'fused' needs float32, got torch.float64.*use kernel 'auto'"):
        run(fused_scan, tensors, reset, torch.float64)


def test_without_numba_auto_still_runs(monkeypatch):
    monkeypatch.setattr(launcher, "installed", lambda package: False)
    tensors, reset = case(2, 5)
    auto, loop = (run(scan, tensors, reset, torch.float32) for scan in (mpn_scan, mpn_scan_reference))
    assert all(torch.equal(auto[name], a) for name, a in loop.items())
    with pytest.raises(ConfigError, match="needs numba on cpu: pip install numba"):
        run(fused_scan, tensors, reset, torch.float32)


def test_unknown_kernel_is_refused():
    tensors, _ = case(1, 1)
    with pytest.raises(ConfigError, match="kernel must be one of auto, reference, fused, got 'quick'"):
        mpn_scan(*[a.float() for a in tensors.values()][:6], kernel="quick")


@pytest.mark.parametrize("wrong", ["weight", "bias", "modulation"])
def test_shapes_that_do_not_fit_are_refused(wrong):
    tensors, _ = case(2, 3, 4, 5)
    tensors[wrong] = tensors[wrong][..., :-1]
    with pytest.raises(ValueError, match=r"xs \(2, 3, 4\) needs weight"):
        mpn_scan(*[a.float() for a in tensors.values()][:6])


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip


def test_importing_the_scan_imports_no_compiler():
    python("import sys; import mpn_rl.kernels.mpn; assert not {'numba', 'triton', 'llvmlite'} & set(sys.modules)")


ONE_SCAN = (
    "import torch; from mpn_rl.kernels.mpn import mpn_scan; e = torch.full((1, 1), 0.5);"
    "mpn_scan(torch.ones(1, 2, 1), torch.ones(2, 1), None, torch.zeros(1, 2, 1), e, e, kernel='fused')"
)


@needs_numba
def test_compiling_is_announced_in_one_line_and_a_second_process_starts_warm(tmp_path):
    first = python(ONE_SCAN, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.stderr == "Compiling the fused kernels: a few seconds, once per machine.\n"
    assert python(ONE_SCAN, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


@needs_numba
def test_without_a_writable_cache_the_kernels_compile_every_time(tmp_path):
    locked = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = [];"  # as if none could be written to
        f"caching.CompileResultCacheImpl._locator_classes = []; {ONE_SCAN}"
    )
    assert "Compiling" in python(locked).stderr


# --- CUDA, without a GPU: Triton's interpreter for the numbers, its compiler for the rest -----------------------------


@pytest.fixture(scope="module")
def interpreted():
    """mpn_cuda.scan on CPU tensors; small tiles, so that several programs share a row."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_INTERPRET", "1")  # before the kernels are defined, and while they run
    from mpn_rl.kernels import mpn_cuda

    patch.setattr(mpn_cuda, "TILE", 16)

    def scan(xs, weight, bias, modulation, eta, lambda_decay, *, reset, modulation0, form=FORMS[0], rule=RULES[0],
             activation="tanh", m_activation="none"):  # fmt: skip
        tensors = (xs, weight, bias, modulation, eta, lambda_decay, reset, modulation0)
        return mpn_cuda.scan(tensors, form, rule, activation, m_activation)

    yield scan
    patch.undo()


@needs_triton
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (6, 3)])
def test_triton_outputs_and_gradients_equal_the_loop(interpreted, form, rule, shape):
    assert_as_exact_as_the_loop(interpreted, *case(2, 7, 3, 6, shape=shape, reset_rate=0.2), form=form, rule=rule)


@needs_triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_triton_has_every_activation(interpreted, activation):
    assert_as_exact_as_the_loop(interpreted, case(2, 5, 3, 6)[0], None, activation=activation)


@needs_triton
@pytest.mark.parametrize(("form", "rule"), [(FORMS[0], "associative"), (FORMS[0], "oja"), (FORMS[1], "presynaptic")])
@pytest.mark.parametrize("shape", [(1, 1), (6, 3)])
def test_triton_bounds_the_modulation(interpreted, form, rule, shape):
    tensors, reset = case(2, 7, 3, 6, shape=shape, eta=0.8, reset_rate=0.2)
    assert_as_exact_as_the_loop(interpreted, tensors, reset, 5e-5, form=form, rule=rule, m_activation="tanh")


@needs_triton
@pytest.mark.parametrize(("B", "T", "D", "H"), [(1, 1, 3, 5), (1, 3, 1, 1), (2, 2, 20, 3)])
def test_triton_takes_any_size(interpreted, B, T, D, H):
    assert_as_exact_as_the_loop(interpreted, *case(B, T, D, H))


COMPILE = """
import triton
from mpn_rl.kernels import mpn_cuda as cuda
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compile(kernel, **constants):
    pointer = {"reset": "*u8", **dict.fromkeys("B T D H every slots".split(), "i32")}
    signature = {n: "constexpr" if n in constants else pointer.get(n, "*fp32") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    options = dict(cuda.LAUNCH)
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    assert ".target sm_80" in code.asm["ptx"]

for D, full in ((33, False), (256, True)):
    BH, BD, *_ = cuda._layout(4, 50, D, 128)
    constants = dict(ADDITIVE=False, RULE=0, ACTIVATION=0, BOUNDED=full, FULL=full, RESET=True, BH=BH, BD=BD)
    compile(cuda._forward_kernel, **constants)
    compile(cuda._backward_kernel, INPUT_GRADIENT=True, **constants)
"""


@needs_triton
def test_the_kernels_compile_for_a_gpu(tmp_path):
    python(COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
