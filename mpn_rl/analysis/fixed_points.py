r"""Where an MPN's modulation settles under a constant input: all fixed points, by one scalar equation per hidden unit.

Let x be held, 0 <= lambda < 1. M_ij = lambda_ij M_ij + eta_ij S_ij has the solution M*_ij below, h_i being the unit's
own output, and with it h_i = f(u_i), u_i = a_i + r_i(h_i): no other unit enters. With g_ij = eta_ij / (1 - lambda_ij),
v_ij = W_ij x_j (multiplicative) or x_j (additive), and a = b + W x:

    rule            M*_ij                                              r_i(h)
    associative     g_ij h_i x_j                                       c_i h,  c_i = sum_j v_ij g_ij x_j
    presynaptic     g_ij x_j                                           sum_j v_ij g_ij x_j, whatever h is: one point
    postsynaptic    g_ij h_i                                           c_i h,  c_i = sum_j v_ij g_ij
    oja             eta_ij h_i x_j / (1 - lambda_ij + eta_ij h_i^2)    sum_j v_ij M*_ij

h = f(a + c h) has at most three roots for tanh and sigmoid, one between and one beyond each of the two points where
c f'(u) = 1, so bisection finds all of them; two for ReLU and one for a linear unit, in closed form. Oja's rule is
searched on a fine grid.

Around a fixed point the rows of M do not mix either. Row i has the D x D Jacobian

    J_jk = delta_jk d_ij + e_ij v_ik f'(u_i)

with d = lambda_ij and e = eta_ij x_j (associative), eta_ij (postsynaptic) or 0 (presynaptic), or with d = lambda_ij -
eta_ij h^2 and e = eta_ij (x_j - 2 h M*_ij) (oja). For one eta and lambda per unit its eigenvalues are lambda, D - 1
times, and lambda + f' sum_j e_j v_j. Stable where all lie inside the unit circle; a deviation then decays with the
relaxation time -dt / log |eigenvalue|.

Source: Aitken & Mihalas 2023 (eLife 12:e83035) for the network; the equations follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, eigs, gmres
from scipy.special import expit

from mpn_rl.analysis.confidence_intervals import MissingDataError

FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "sigmoid": (expit, lambda u: expit(u) * expit(-u)),
    "relu": (lambda u: np.maximum(u, 0.0), lambda u: (np.asarray(u) > 0) * 1.0),
    "linear": (lambda u: np.asarray(u) * 1.0, lambda u: np.ones_like(u)),
}


class FixedPoints(NamedTuple):
    """R roots of all units, ordered by unit and by h; a state of the whole network takes one root of each unit.

    unit, h, u (R,): which unit, its output and its drive; modulation (R, D): the row of M there.
    eigenvalues (R, D): complex, by falling size; stable (R,).
    gain (H,): c_i, the slope of the feedback; nan for Oja's rule.
    """

    unit: np.ndarray
    h: np.ndarray
    u: np.ndarray
    modulation: np.ndarray
    eigenvalues: np.ndarray
    stable: np.ndarray
    gain: np.ndarray

    def per_unit(self, stable_only: bool = False) -> np.ndarray:
        """How many fixed points each unit has, (H,)."""
        return np.bincount(self.unit[self.stable] if stable_only else self.unit, minlength=len(self.gain))

    def log2_states(self) -> float:
        """log2 of the number of stable states of the network: the bits it can hold for ever; -inf if there is none."""
        with np.errstate(divide="ignore"):
            return float(np.log2(self.per_unit(stable_only=True)).sum())


def relaxation_time(eigenvalues: np.ndarray, dt: float = 1.0) -> np.ndarray:
    """-dt / log |eigenvalue|, in the unit of dt: in it a deviation falls to 1/e. 0 for eigenvalue 0, inf from 1 on."""
    size = np.abs(eigenvalues)
    with np.errstate(divide="ignore"):
        return np.where(size < 1, -dt / np.minimum(np.log(np.minimum(size, 1.0)), -1e-300), np.inf)


# --- scalar equations ---------------------------------------------------------------------------------------


def affine_roots(a: float, c: float, activation: str = "tanh") -> np.ndarray:
    """All h with h = f(a + c h), ascending.

    Where c = 1, a linear unit has none unless a = 0; every h is one then, and 0 stands for all (its eigenvalue is 1).
    """
    if activation == "linear":
        return np.array([a / (1 - c)]) if c != 1 else np.array([0.0] if a == 0 else [])
    if activation == "relu":
        roots = [0.0] if a <= 0 else []
        if c != 1 and a / (1 - c) > 0:
            roots.append(a / (1 - c))
        return np.array(roots)
    f = FUNCTIONS[activation][0]
    low, high = (-1.0, 1.0) if activation == "tanh" else (0.0, 1.0)
    ends = [a + min(c * low, c * high) - 1e-9, a + max(c * low, c * high) + 1e-9]  # u = a + c h lies between them
    steepest = 1.0 if activation == "tanh" else 0.25
    turns = []
    if c > 1 / steepest:  # c f'(u) = 1 at u = -+ turn
        turn = np.arccosh(np.sqrt(c)) if activation == "tanh" else 2 * np.arccosh(np.sqrt(c) / 2)
        turns = [turn for turn in (-turn, turn) if ends[0] < turn < ends[1]]
    edges = np.array([ends[0], *turns, ends[1]])
    return np.sort(f(_bisect(lambda u: u - a - c * f(u), edges)))


def _bisect(g: Callable[[np.ndarray], np.ndarray], edges: np.ndarray) -> np.ndarray:
    """The root of g in each interval between edges at whose ends its sign differs; g is monotone there."""
    values = g(edges)
    exact = edges[values == 0]
    bracketed = values[:-1] * values[1:] < 0
    low, high, rising = edges[:-1][bracketed], edges[1:][bracketed], values[1:][bracketed] > 0
    for _ in range(200):
        middle = (low + high) / 2
        right = (g(middle) > 0) == rising
        low, high = np.where(right, low, middle), np.where(right, middle, high)
    return np.concatenate([exact, (low + high) / 2])


def grid_roots(
    feedback: Callable[[np.ndarray], np.ndarray], a: float, activation: str, points: int = 20001
) -> np.ndarray:
    """All h with h = f(a + r(h)) for any r that is finite but at poles, found where u - a - r(f(u)) changes sign.

    The grid is uniform in asinh(u), spacing 1e-3 near 0 and reaching to |u| = 1e4; roots closer together than that are
    missed in pairs. At a pole the sign changes too: what is no root there is left out.
    """
    f = FUNCTIONS[activation][0]

    def g(u: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return u - a - feedback(f(u))

    edges = np.unique(np.append(np.sinh(np.linspace(-9.9, 9.9, points)), 0.0))
    roots = _bisect(g, edges[np.isfinite(g(edges))])
    good = np.abs(g(roots)) < 1e-6 * (1 + np.abs(roots))
    return _distinct(np.sort(f(roots[good])))


def _distinct(h: np.ndarray) -> np.ndarray:
    return h[np.append(True, np.diff(h) > 1e-9)[: len(h)]]


def mpn_fixed_points(
    weight: np.ndarray,
    bias: np.ndarray | None,
    eta: np.ndarray | float,
    lambda_decay: np.ndarray | float,
    x: np.ndarray,
    *,
    form: str = "multiplicative",
    rule: str = "associative",
    activation: str = "tanh",
) -> FixedPoints:
    """Every fixed point of one MPN layer under the constant input x, unit by unit.

    Args:
        weight, bias: W (H, D), b (H,) or None.
        eta, lambda_decay: broadcastable to (H, D).
        x: (D,); 0 gives the one point M = 0, h = f(b).
        form, rule, activation: those of `mpn_module.MPN`.
    Raises MissingDataError where lambda reaches 1: M then grows for ever unless h = 0.
    """
    weight, x = np.asarray(weight, float), np.asarray(x, float)
    eta, decay = (np.broadcast_to(np.asarray(part, float), weight.shape) for part in (eta, lambda_decay))
    if np.any(decay >= 1):
        raise MissingDataError("lambda is 1 for some synapses, so that M never settles")
    f, slope = FUNCTIONS[activation]
    drive = weight @ x + (0.0 if bias is None else np.asarray(bias, float))  # a
    seen = weight * x if form == "multiplicative" else np.broadcast_to(x, weight.shape)  # v
    source = np.ones_like(weight) if rule == "postsynaptic" else np.broadcast_to(x, weight.shape)
    settled = eta / (1 - decay) * source  # g x, or g
    gain = np.full(len(weight), np.nan) if rule == "oja" else (seen * settled).sum(axis=1)

    def row(i: int, h: float | np.ndarray) -> np.ndarray:
        """M*[i], (..., D)."""
        h = np.asarray(h, float)[..., None]
        if rule == "oja":
            return eta[i] * h * x / (1 - decay[i] + eta[i] * h**2)
        return settled[i] * (1.0 if rule == "presynaptic" else h)

    unit, roots = [], []
    for i in range(len(weight)):
        if rule == "presynaptic":
            found = f(drive[i] + gain[i : i + 1])
        elif rule == "oja":
            found = grid_roots(lambda h: row(i, h) @ seen[i], drive[i], activation)  # noqa: B023 (used at once)
        else:
            found = affine_roots(drive[i], gain[i], activation)
        unit += [i] * len(found)
        roots += found.tolist()
    units, h = np.array(unit, int), np.array(roots, float)
    modulation = np.array([row(i, value) for i, value in zip(units, h, strict=True)]).reshape(len(h), len(x))
    u = drive[units] + (modulation * seen[units]).sum(axis=1)
    kept, pushed = decay[units], eta[units] * source[units]
    if rule == "oja":
        kept, pushed = kept - eta[units] * h[:, None] ** 2, eta[units] * (x - 2 * h[:, None] * modulation)
    elif rule == "presynaptic":
        pushed = np.zeros_like(modulation)
    pull = seen[units] * slope(u)[:, None]
    eigenvalues = np.linalg.eigvals(kept[:, :, None] * np.eye(len(x)) + pushed[:, :, None] * pull[:, None, :])
    order = np.argsort(-np.abs(eigenvalues), axis=1, kind="stable")
    eigenvalues = np.take_along_axis(eigenvalues.astype(complex), order, axis=1)
    stable = np.abs(eigenvalues).max(axis=1) < 1 if len(h) else np.zeros(0, bool)
    return FixedPoints(units, h, u, modulation, eigenvalues, stable, gain)


# --- any network: minima of the speed -----------------------------------------------------------------------

DENSE = 512  # states up to this size have their whole Jacobian computed
LEADING = 6  # eigenvalues of larger ones
Step = Callable[[np.ndarray], np.ndarray]


class Minima(NamedTuple):
    """Distinct minima of the speed, slowest first.

    states (P, S); speed (P,): |F(z) - z|; fixed (P,): whether that is zero up to the tolerance, else z is merely slow;
    eigenvalues (P, S or LEADING): of F's Jacobian, by falling size; stable (P,): fixed with all of them inside the unit
    circle; found (P,): by how many starts.
    """

    states: np.ndarray
    speed: np.ndarray
    fixed: np.ndarray
    eigenvalues: np.ndarray
    stable: np.ndarray
    found: np.ndarray


def minimise_speed(
    step: Step,
    starts: np.ndarray,
    vjp: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    *,
    tolerance: float = 1e-8,
    same: float = 1e-5,
    iterations: int = 1000,
) -> Minima:
    """Fixed points z = F(z) and slow points of any network: minima of |F(z) - z|^2 / 2 from many starts.

    L-BFGS from every start, then Newton's method while it helps, which also reaches unstable points; minima closer
    than `same` (relative to 1 + |z|) are one. Nothing is sure to be found that no start leads to.

    Args:
        step: F under the constant input, (B, S) -> (B, S), in float64.
        starts: (n, S), states that the network visits, with noise around them.
        vjp: (z, v) -> v^T dF/dz, both (S,); needed for S > DENSE, else differences of `step` serve.
        tolerance: speed below which a point is fixed.
    Source: Sussillo & Barak 2013 (Neural Computation 25).
    """
    starts = np.atleast_2d(np.asarray(starts, float))
    if starts.shape[1] > DENSE and vjp is None:
        raise ValueError(f"minimise_speed needs vjp for states of more than {DENSE} entries, got {starts.shape[1]}")
    ends = np.array([_polished(step, _descended(step, start, vjp, iterations)) for start in starts])
    speeds = np.linalg.norm(step(ends) - ends, axis=1)
    kept: list[int] = []
    found: list[int] = []
    for i in np.argsort(speeds, kind="stable"):
        near = [
            k for k, j in enumerate(kept) if np.linalg.norm(ends[i] - ends[j]) < same * (1 + np.linalg.norm(ends[j]))
        ]
        if near:
            found[near[0]] += 1
        else:
            kept.append(int(i))
            found.append(1)
    eigenvalues = np.array([_leading_eigenvalues(step, ends[i]) for i in kept])
    fixed = speeds[kept] < tolerance
    stable = fixed & (np.abs(eigenvalues).max(axis=1) < 1)
    return Minima(ends[kept], speeds[kept], fixed, eigenvalues, stable, np.array(found))


def numeric_jacobian(step: Step, z: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """dF/dz by central differences, (S, S), in one batch of 2 S states."""
    moves = h * np.eye(len(z))
    both = step(np.concatenate([z + moves, z - moves]))
    return (both[: len(z)] - both[len(z) :]).T / (2 * h)


def _descended(step: Step, start: np.ndarray, vjp: Callable | None, iterations: int) -> np.ndarray:
    def speed(z: np.ndarray) -> tuple[float, np.ndarray]:
        residual = step(z[None])[0] - z
        pulled = numeric_jacobian(step, z).T @ residual if vjp is None else vjp(z, residual)
        return 0.5 * float(residual @ residual), pulled - residual

    options = {"maxiter": iterations, "ftol": 1e-30, "gtol": 1e-12, "maxcor": 20}
    return minimize(speed, start, jac=True, method="L-BFGS-B", options=options).x


def _action(step: Step, z: np.ndarray, shift: float = 0.0) -> LinearOperator:
    """v -> (dF/dz - shift) v by central differences, without the matrix."""

    def product(v: np.ndarray) -> np.ndarray:
        v = v.ravel()
        move = 1e-6 * v / max(float(np.linalg.norm(v)), 1e-300)
        ahead, behind = step(np.stack([z + move, z - move]))
        return (ahead - behind) / 2e-6 * np.linalg.norm(v) - shift * v

    return LinearOperator((len(z), len(z)), matvec=product, dtype=float)


def _polished(step: Step, z: np.ndarray, most: int = 20) -> np.ndarray:
    """Newton's steps for F(z) = z, as long as each makes the speed smaller."""
    residual = step(z[None])[0] - z
    for _ in range(most):
        if len(z) <= DENSE:
            move = np.linalg.lstsq(numeric_jacobian(step, z) - np.eye(len(z)), -residual, rcond=1e-10)[0]
        else:
            move = gmres(_action(step, z, 1.0), -residual, rtol=1e-6, maxiter=5)[0]
        moved = z + move
        left = step(moved[None])[0] - moved
        if not np.linalg.norm(left) < np.linalg.norm(residual):
            break
        z, residual = moved, left
    return z


def _leading_eigenvalues(step: Step, z: np.ndarray) -> np.ndarray:
    if len(z) <= DENSE:
        values = np.linalg.eigvals(numeric_jacobian(step, z)).astype(complex)
    else:
        values = eigs(_action(step, z), k=LEADING, return_eigenvectors=False, v0=np.ones(len(z)))
    return values[np.argsort(-np.abs(values), kind="stable")]
