r"""All fixed points of an MPN's modulation under a constant input, from one scalar equation per hidden unit.

Let x be constant and 0 <= lambda < 1. M_ij = lambda_ij M_ij + eta_ij S_ij has the solution M*_ij below, which depends
only on the unit's own output h_i. Therefore h_i = f(u_i) with u_i = a_i + r_i(h_i) holds for each unit separately. With
g_ij = eta_ij / (1 - lambda_ij), v_ij = W_ij x_j (multiplicative) or x_j (additive), and a = b + W x:

    rule            M*_ij                                              r_i(h)
    associative     g_ij h_i x_j                                       c_i h,  c_i = sum_j v_ij g_ij x_j
    presynaptic     g_ij x_j                                           sum_j v_ij g_ij x_j, independent of h: one point
    postsynaptic    g_ij h_i                                           c_i h,  c_i = sum_j v_ij g_ij
    oja             eta_ij h_i x_j / (1 - lambda_ij + eta_ij h_i^2)    sum_j v_ij M*_ij

For tanh and sigmoid, h = f(a + c h) has at most three roots: one between the two points where c f'(u) = 1, and one
beyond each of them, so bisection finds all. ReLU has at most two and a linear unit one, in closed form. Oja's rule
needs a search on a fine grid.

Around a fixed point, the rows of M do not interact either. Row i has the D x D Jacobian

    J_jk = delta_jk d_ij + e_ij v_ik f'(u_i)

with d = lambda_ij and e = eta_ij x_j (associative), eta_ij (postsynaptic) or 0 (presynaptic), or with d = lambda_ij -
eta_ij h^2 and e = eta_ij (x_j - 2 h M*_ij) (oja). With one eta and lambda per unit, its eigenvalues are lambda (D - 1
times) and lambda + f' sum_j e_j v_j. The point is stable if all lie inside the unit circle; a deviation then decays
with the relaxation time -dt / log |eigenvalue|.

Source: Aitken & Mihalas 2023 (eLife 12:e83035) for the network; the equations follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
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


MOST_SHOWN = 16  # different observations of a period without noise
MOST_INPUTS = 4  # of them that become constant inputs


def shown_inputs(
    name: str, shown: np.ndarray, counts: np.ndarray, mean: np.ndarray, exact: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The constant inputs that stand for one period of a task, {name: observation (D,)}.

    The mean of two different observations, such as those of two contexts, is an input that may never occur. Therefore
    each of the MOST_INPUTS most frequent ones that takes a tenth of the steps is an input, named by the entries in
    which they differ: "delay, obs_5 = 1". Where more than MOST_SHOWN differ, as under noise, it is the mean.

    Args:
        name: of the period.
        shown: the different observations, (k, D); k = 0 if they are too many.
        counts: how often each occurs, (k,).
        mean: over all steps, (D,).
        exact: the entries without noise, (D,); the others give no name. None: all.
    """
    often = np.argsort(-counts, kind="stable")[:MOST_INPUTS]
    often = often[10 * counts[often] >= counts.sum()]
    if len(shown) > MOST_SHOWN or not len(often):
        return {name: mean}
    rows = shown[often].astype(float)
    differ = np.ptp(rows, axis=0) > 0 if exact is None else (np.ptp(rows, axis=0) > 0) & exact
    inputs = {}
    for row in sorted(rows, key=lambda row: row[differ].tolist(), reverse=True):
        entries = [f"obs_{entry} = {row[entry]:.3g}" for entry in np.flatnonzero(differ) if row[entry]]
        inputs[", ".join([name, *(entries or ["zeros"] * (len(rows) > 1))])] = row
    return inputs


def period_inputs(name: str, seen: np.ndarray) -> dict[str, np.ndarray]:
    """`shown_inputs` of one period, each context apart also under noise.

    An entry of the observation with at most MOST_SHOWN values is without noise. The steps with the same values of these
    entries are one input, in which the entries with noise have their mean over these steps.

    Args: name: of the period. seen: its observations, (n, D).
    """
    exact = np.array([len(np.unique(column)) <= MOST_SHOWN for column in seen.T])
    kinds, group, counts = np.unique(np.where(exact, seen, 0.0), axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(group.ravel(), column) for column in seen.T], axis=1)
    return shown_inputs(name, np.where(exact, kinds, sums / counts[:, None]), counts, seen.mean(axis=0), exact)


class FixedPoints(NamedTuple):
    """R roots of all units, ordered by unit and by h; a fixed point of the network combines one root of each unit.

    unit, h, u (R,): index of the unit, its output and its drive. modulation (R, D): its row of M.
    eigenvalues (R, D): complex, by decreasing modulus. stable (R,): whether all lie inside the unit circle.
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
        """Number of fixed points of each unit, (H,)."""
        return np.bincount(self.unit[self.stable] if stable_only else self.unit, minlength=len(self.gain))

    def log2_states(self) -> float:
        """log2 of the number of stable states of the network: the bits that it can hold; -inf if there is none."""
        with np.errstate(divide="ignore"):
            return float(np.log2(self.per_unit(stable_only=True)).sum())


def relaxation_time(eigenvalues: np.ndarray, dt: float = 1.0) -> np.ndarray:
    """-dt / log |eigenvalue|, the time in which a deviation falls to 1/e; 0 for eigenvalue 0, inf for 1 and above."""
    size = np.abs(eigenvalues)
    with np.errstate(divide="ignore"):
        return np.where(size < 1, -dt / np.minimum(np.log(np.minimum(size, 1.0)), -1e-300), np.inf)


# --- scalar equations ---------------------------------------------------------------------------------------


def affine_roots(a: ArrayLike, c: ArrayLike, activation: str = "tanh") -> tuple[np.ndarray, np.ndarray]:
    """All h with h = f(a + c h), for every pair of a and c.

    For c = 1, a linear unit has a root only if a = 0; then every h is a root, and the result is 0 (eigenvalue 1).

    Args: a, c: (H,), or a number.
    Returns: the index of the pair and h, (R,) each, ordered by both.
    """
    a, c = np.broadcast_arrays(np.atleast_1d(np.asarray(a, float)), c)
    if activation in ("linear", "relu"):
        with np.errstate(divide="ignore", invalid="ignore"):
            h = np.where((c == 1) & (a == 0), 0.0, a / (1 - c))
        if activation == "linear":
            unit = np.flatnonzero((c != 1) | (a == 0))
            return unit, h[unit]
        roots = np.stack([np.where(a <= 0, 0.0, np.nan), np.where((c != 1) & (h > 0), h, np.nan)], axis=1)
        unit, place = np.nonzero(np.isfinite(roots))
        return unit, roots[unit, place]
    f, slope = FUNCTIONS[activation]
    low = -1.0 if activation == "tanh" else 0.0
    ends = a + np.minimum(c * low, c) - 1e-9, a + np.maximum(c * low, c) + 1e-9  # u = a + c h lies between them
    with np.errstate(invalid="ignore"):  # c f'(u) = 1 at u = -+ turn, where f is steep enough; else turn is nan
        turn = np.arccosh(np.sqrt(c)) if activation == "tanh" else 2 * np.arccosh(np.sqrt(c) / 2)
        turn[c * slope(0.0) <= 1] = np.nan
        turns = [np.where((ends[0] < turn) & (turn < ends[1]), turn, np.nan) for turn in (-turn, turn)]
    edges = np.sort(np.stack([ends[0], *turns, ends[1]], axis=1), axis=1)  # nan comes last
    unit, u = _bisect(lambda u, unit: u - a[unit] - c[unit] * f(u), edges)
    order = np.lexsort((u, unit))
    return unit[order], f(u[order])


def _bisect(g: Callable[[np.ndarray, np.ndarray], np.ndarray], edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The root of g in each interval between edges where its sign changes; g must be monotone there.

    Args:
        g: (u, row of the edges) -> value, arrays of one shape.
        edges: ascending, nan at the end of a row that has fewer, (H, E).
    Returns: the row and the root of each, (R,).
    """
    values = g(edges, np.broadcast_to(np.arange(len(edges))[:, None], edges.shape))
    exact, rows = np.nonzero(values == 0), np.nonzero(values[:, :-1] * values[:, 1:] < 0)
    low, high, rising = edges[:, :-1][rows], edges[:, 1:][rows], values[:, 1:][rows] > 0
    for _ in range(200):
        middle = (low + high) / 2
        right = (g(middle, rows[0]) > 0) == rising
        low, high = np.where(right, low, middle), np.where(right, middle, high)
    return np.append(exact[0], rows[0]), np.append(edges[exact], (low + high) / 2)


def grid_roots(
    feedback: Callable[[np.ndarray], np.ndarray], a: float, activation: str, points: int = 20001
) -> np.ndarray:
    """All h with h = f(a + r(h)) for any r that is finite except at poles: where u - a - r(f(u)) changes sign.

    The grid is uniform in asinh(u), with spacing 1e-3 near 0, up to |u| = 1e4. Two roots closer than the spacing are
    both missed. At a pole the sign changes too; such points are removed.

    Args:
        feedback: r, an array of h to an array of the same shape.
        a: the constant drive.
        activation: name of f.
        points: of the grid.
    """
    f = FUNCTIONS[activation][0]

    def g(u: np.ndarray, _row: np.ndarray | int = 0) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return u - a - feedback(f(u))

    edges = np.unique(np.append(np.sinh(np.linspace(-9.9, 9.9, points)), 0.0))
    roots = _bisect(g, edges[np.isfinite(g(edges))][None])[1]
    good = np.abs(g(roots)) < 1e-6 * (1 + np.abs(roots))
    h = np.sort(f(roots[good]))
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
    """All fixed points of one MPN layer under the constant input x, unit by unit.

    Args:
        weight, bias: W (H, D), b (H,) or None.
        eta, lambda_decay: broadcastable to (H, D).
        x: (D,); 0 gives the single point M = 0, h = f(b).
        form, rule, activation: as in `mpn_module.MPN`.

    Raises: MissingDataError where lambda is 1: M then grows without bound unless h = 0.
    """
    weight, x = np.asarray(weight, float), np.asarray(x, float)
    eta, decay = (np.broadcast_to(np.asarray(part, float), weight.shape) for part in (eta, lambda_decay))
    if np.any(decay >= 1):
        raise MissingDataError("lambda is 1 for some synapses, so M does not converge")
    f, slope = FUNCTIONS[activation]
    drive = weight @ x + (0.0 if bias is None else np.asarray(bias, float))  # a
    seen = weight * x if form == "multiplicative" else np.broadcast_to(x, weight.shape)  # v
    source = np.ones_like(weight) if rule == "postsynaptic" else np.broadcast_to(x, weight.shape)
    settled = eta / (1 - decay) * source  # g x, or g
    gain = np.full(len(weight), np.nan) if rule == "oja" else (seen * settled).sum(axis=1)

    def rows(unit: int | np.ndarray, h: np.ndarray) -> np.ndarray:
        """M*[unit] for the outputs h (...), (..., D)."""
        if rule == "oja":
            return eta[unit] * h[..., None] * x / (1 - decay[unit] + eta[unit] * h[..., None] ** 2)
        return settled[unit] * (1.0 if rule == "presynaptic" else h[..., None])

    def pull_of(unit: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda h: rows(unit, h) @ seen[unit]

    if rule == "presynaptic":
        units, h = np.arange(len(weight)), f(drive + gain)
    elif rule == "oja":
        roots = [grid_roots(pull_of(unit), drive[unit], activation) for unit in range(len(weight))]
        units, h = np.repeat(np.arange(len(weight)), [len(of_unit) for of_unit in roots]), np.concatenate(roots)
    else:
        units, h = affine_roots(drive, gain, activation)
    modulation = rows(units, h)
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

DENSE = 512  # largest size of a state whose whole Jacobian is computed
LEADING = 6  # number of eigenvalues for larger states
Step = Callable[[np.ndarray], np.ndarray]


class Minima(NamedTuple):
    """Distinct minima of the speed, slowest first.

    states (P, S). speed (P,): |F(z) - z|. fixed (P,): whether the speed is zero up to the tolerance; else z is a slow
    point. eigenvalues (P, S or LEADING): of F's Jacobian, by decreasing modulus. stable (P,): fixed, with all
    eigenvalues inside the unit circle. found (P,): number of starts that lead there. unreached: number of further
    minima that `near` left out.
    """

    states: np.ndarray
    speed: np.ndarray
    fixed: np.ndarray
    eigenvalues: np.ndarray
    stable: np.ndarray
    found: np.ndarray
    unreached: int = 0

    def near(self, visited: np.ndarray, margin: float = 0.25) -> Minima:
        """The minima that the network can reach: near the states (n, S) that it visits.

        Each entry must lie within the range of that entry in `visited`, widened by `margin` times the largest range. A
        minimum of the speed elsewhere satisfies the equations only: the states of a GRU stay within [-1, 1], but its
        equations have slow points far outside.
        """
        low, high = visited.min(axis=0), visited.max(axis=0)
        slack = margin * max(float((high - low).max()), 1e-6)
        kept = ((self.states >= low - slack) & (self.states <= high + slack)).all(axis=1)
        fixed, stable, left_out = self.fixed[kept], self.stable[kept], int((~kept).sum())
        eigenvalues, found = self.eigenvalues[kept], self.found[kept]
        return Minima(self.states[kept], self.speed[kept], fixed, eigenvalues, stable, found, left_out)


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

    L-BFGS from every start, then Newton's method while it reduces the speed; it also reaches unstable points. Points
    that no start leads to are missed.

    Args:
        step: F under the constant input, (B, S) -> (B, S), in float64.
        starts: states that the network visits, (n, S).
        vjp: (z, v) -> v^T dF/dz, both (S,); required for S > DENSE, otherwise None uses differences of `step`.
        tolerance: speed below which a point is fixed.
        same: minima closer than this, relative to 1 + |z|, are one.
        iterations: of L-BFGS, at most.

    Raises: ValueError for S > DENSE without `vjp`.

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
    """The end of L-BFGS on |F(z) - z|^2 / 2 from one start."""

    def speed(z: np.ndarray) -> tuple[float, np.ndarray]:
        residual = step(z[None])[0] - z
        pulled = numeric_jacobian(step, z).T @ residual if vjp is None else vjp(z, residual)
        return 0.5 * float(residual @ residual), pulled - residual

    options = {"maxiter": iterations, "ftol": 1e-30, "gtol": 1e-12, "maxcor": 20}
    return minimize(speed, start, jac=True, method="L-BFGS-B", options=options).x


def _action(step: Step, z: np.ndarray, shift: float = 0.0) -> LinearOperator:
    """The linear operator v -> (dF/dz - shift) v, by central differences without the matrix."""

    def product(v: np.ndarray) -> np.ndarray:
        v = v.ravel()
        move = 1e-6 * v / max(float(np.linalg.norm(v)), 1e-300)
        ahead, behind = step(np.stack([z + move, z - move]))
        return (ahead - behind) / 2e-6 * np.linalg.norm(v) - shift * v

    return LinearOperator((len(z), len(z)), matvec=product, dtype=float)


def _polished(step: Step, z: np.ndarray, most: int = 20) -> np.ndarray:
    """Newton's method for F(z) = z, as long as each step reduces the speed."""
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
    """Eigenvalues of dF/dz, all or the LEADING largest, by decreasing modulus."""
    if len(z) <= DENSE:
        values = np.linalg.eigvals(numeric_jacobian(step, z)).astype(complex)
    else:
        values = eigs(_action(step, z), k=LEADING, return_eigenvectors=False, v0=np.ones(len(z)))
    return values[np.argsort(-np.abs(values), kind="stable")]
