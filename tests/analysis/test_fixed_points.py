"""Claims about fixed points: all roots, their stability, and the minimiser that must find the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mpn_rl.analysis import fixed_points
from mpn_rl.analysis.confidence_intervals import MissingDataError

RULES = ("associative", "presynaptic", "postsynaptic", "oja")


def mpn_step(weight, bias, eta, decay, x, form="multiplicative", rule="associative", activation="tanh"):
    """The update of M under the constant input x, written as in the paper: (B, H D) -> (B, H D)."""
    f = {"tanh": np.tanh, "relu": lambda u: np.maximum(u, 0), "linear": lambda u: u,
         "sigmoid": lambda u: 1 / (1 + np.exp(-u))}[activation]  # fmt: skip

    def step(states):
        m = states.reshape(len(states), *weight.shape)
        effective = weight * (m + 1) if form == "multiplicative" else weight + m
        h = f(effective @ x + bias)[..., None]
        change = {"associative": h * x, "presynaptic": 0 * h + x, "postsynaptic": h + 0 * x, "oja": h * x - h**2 * m}
        return (decay * m + eta * change[rule]).reshape(len(states), -1)

    return step


def layer(seed=0, hidden=4, inputs=3, full=False):
    rng = np.random.default_rng(seed)
    weight, bias, x = rng.normal(size=(hidden, inputs)), 0.3 * rng.normal(size=hidden), rng.normal(size=inputs)
    eta = rng.uniform(-0.2, 0.5, (hidden, inputs)) if full else 0.4
    decay = rng.uniform(0.3, 0.9, (hidden, inputs)) if full else 0.8
    return weight, bias, eta, decay, x


# --- scalar equations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("c", [-30.0, -1.0, 0.5, 1.0, 1.5, 4.5, 12.0])
@pytest.mark.parametrize("a", [-2.5, -0.3, 0.0, 0.05, 1.0])
def test_bisection_finds_as_many_roots_as_a_dense_scan_changes_sign(activation, c, a):
    f = fixed_points.FUNCTIONS[activation][0]
    u = np.linspace(a - abs(c) - 1, a + abs(c) + 1, 400_000) + 1e-7
    changes = np.count_nonzero(np.diff(np.sign(u - a - c * f(u))))
    roots = fixed_points.affine_roots(a, c, activation)[1]
    assert len(roots) == changes
    np.testing.assert_allclose(f(a + c * roots), roots, atol=1e-12)


def test_a_tanh_unit_is_bistable_above_gain_one_as_worked_by_hand():
    # a = 0, c = 2: h = tanh(2 h) has the roots 0 and -+0.957504.
    np.testing.assert_allclose(fixed_points.affine_roots(0.0, 2.0)[1], [-0.957504024, 0, 0.957504024], atol=1e-9)
    assert len(fixed_points.affine_roots(0.0, 0.99)[1]) == 1
    assert len(fixed_points.affine_roots(0.6, 2.0)[1]) == 1  # the input has tipped it over


@pytest.mark.parametrize(
    ("activation", "a", "c", "expected"),
    [
        ("linear", 1.0, 0.5, [2.0]),
        ("linear", 1.0, 3.0, [-0.5]),
        ("linear", 1.0, 1.0, []),
        ("linear", 0.0, 1.0, [0.0]),
        ("relu", 1.0, 0.5, [2.0]),
        ("relu", -1.0, 0.5, [0.0]),
        ("relu", -1.0, 3.0, [0.0, 0.5]),
        ("relu", 1.0, 3.0, []),
        ("relu", 0.0, 0.5, [0.0]),
    ],
)
def test_closed_forms_of_linear_and_relu_units(activation, a, c, expected):
    np.testing.assert_allclose(fixed_points.affine_roots(a, c, activation)[1], expected)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "linear"])
def test_many_units_have_the_roots_of_each(activation):
    rng = np.random.default_rng(0)
    a, c = rng.normal(0, 0.3, 200), rng.uniform(-6, 9, 200)
    unit, h = fixed_points.affine_roots(a, c, activation)
    for i in range(200):
        np.testing.assert_array_equal(h[unit == i], fixed_points.affine_roots(a[i], c[i], activation)[1])


def test_the_grid_finds_what_the_closed_forms_say():
    for activation, a, c in itertools.product(("tanh", "linear", "relu"), (-0.4, 0.3), (-2.0, 0.5, 1.7)):
        grid = fixed_points.grid_roots(lambda h, c=c: c * h, a, activation)
        np.testing.assert_allclose(grid, fixed_points.affine_roots(a, c, activation)[1], atol=1e-9)


def test_roots_of_ojas_rule_are_those_of_its_cubic():
    # Linear: (h - a) (1 - l + e h^2) = e s h, a cubic; here with three real roots.
    a, eta, decay, s = 0.1, 0.5, 0.9, 2.0
    cubic = np.roots([eta, -a * eta, 1 - decay - eta * s, -a * (1 - decay)])
    grid = fixed_points.grid_roots(lambda h: eta * s * h / (1 - decay + eta * h**2), a, "linear")
    np.testing.assert_allclose(grid, np.sort(cubic.real), atol=1e-9)
    assert len(grid) == 3


# --- layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "linear"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["multiplicative", "additive"])
def test_every_fixed_point_stays_and_has_the_eigenvalues_of_the_numeric_jacobian(form, rule, activation, full):
    for seed in range(3):
        arrays = layer(seed, full=full)
        step = mpn_step(*arrays, form, rule, activation)
        points = fixed_points.mpn_fixed_points(*arrays, form=form, rule=rule, activation=activation)
        for root in range(len(points.h)):
            m = np.zeros((4, 3))
            m[points.unit[root]] = points.modulation[root]
            after = step(m.reshape(1, -1)).reshape(4, 3)[points.unit[root]]
            np.testing.assert_allclose(after, points.modulation[root], rtol=1e-9, atol=1e-9)
            own = slice(3 * points.unit[root], 3 * points.unit[root] + 3)
            jacobian = fixed_points.numeric_jacobian(step, m.ravel())[own, own]
            sizes = np.sort(np.abs(np.linalg.eigvals(jacobian)))
            np.testing.assert_allclose(np.sort(np.abs(points.eigenvalues[root])), sizes, atol=1e-6)


def test_the_jacobian_has_lambda_and_one_eigenvalue_of_its_own():
    weight, bias, eta, decay, x = layer(1)
    points = fixed_points.mpn_fixed_points(weight, bias, eta, decay, x)
    slope = 1 - points.h**2
    own = decay + eta * slope * (weight[points.unit] @ x**2)
    expected = np.sort(np.stack([np.full_like(own, decay), np.full_like(own, decay), own]), axis=0)
    np.testing.assert_allclose(np.sort(points.eigenvalues.real, axis=1), expected.T, atol=1e-12)
    np.testing.assert_allclose(points.gain, eta / (1 - decay) * (weight @ x**2))


def test_silence_has_one_point_without_memory_that_decays_with_lambda():
    weight, bias, _, _, _ = layer()
    points = fixed_points.mpn_fixed_points(weight, bias, 0.7, 0.9, np.zeros(3))
    np.testing.assert_allclose(points.h, np.tanh(bias))
    assert not points.modulation.any() and points.stable.all() and points.log2_states() == 0
    np.testing.assert_allclose(fixed_points.relaxation_time(points.eigenvalues, 100.0), -100 / np.log(0.9))


def test_relaxation_times_at_the_edges():
    times = fixed_points.relaxation_time(np.array([0.0, np.exp(-0.5), 1.0, -1.2, 0.5j]), dt=10)
    np.testing.assert_allclose(times, [0, 20, np.inf, np.inf, 10 / np.log(2)], atol=1e-9)


def test_a_simulated_layer_settles_into_one_of_the_stable_points():
    arrays = layer(3, hidden=6)
    step, points = mpn_step(*arrays), fixed_points.mpn_fixed_points(*arrays)
    m = np.random.default_rng(0).normal(size=(20, 18))
    for _ in range(600):
        m = step(m)
    for unit in range(6):
        stable = points.modulation[(points.unit == unit) & points.stable]
        distance = np.abs(m.reshape(20, 6, 3)[:, unit, None] - stable).max(axis=-1).min(axis=-1)
        assert distance.max() < 1e-9


def test_lambda_one_is_a_sentence():
    weight, bias, eta, _, x = layer()
    with pytest.raises(MissingDataError, match="lambda is 1"):
        fixed_points.mpn_fixed_points(weight, bias, eta, 1.0, x)


# --- minima of the speed ------------------------------------------------------------------------------------


def bistable():
    """Gains 5.2, 0.3 and 4.5: two of three units have three fixed points each; lambda and eta as trained ones."""
    weight = np.array([[1.2, 0.5], [0.2, -0.3], [0.9, 0.8]])
    return weight, np.array([0.05, 0.1, -0.02]), 0.7, 0.88, np.array([0.8, 0.5])


@pytest.mark.parametrize("rule", ["associative", "presynaptic", "oja"])
@pytest.mark.parametrize("form", ["multiplicative", "additive"])
def test_minimising_the_speed_finds_the_roots_of_the_scalar_equations(form, rule):
    arrays = bistable()
    points = fixed_points.mpn_fixed_points(*arrays, form=form, rule=rule)
    starts = np.random.default_rng(0).normal(size=(150, 6)) * 3
    minima = fixed_points.minimise_speed(mpn_step(*arrays, form, rule), starts)
    rows = [points.modulation[points.unit == unit] for unit in range(3)]
    stable = [points.stable[points.unit == unit] for unit in range(3)]
    expected = np.array([np.concatenate(choice) for choice in itertools.product(*rows)])
    fixed = minima.states[minima.fixed]
    assert len(fixed) == len(expected)
    if rule == "associative":
        assert points.per_unit().tolist() == ([3, 1, 3] if form == "multiplicative" else [3, 3, 3])
    distance = np.abs(fixed[:, None] - expected).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-6 and distance.min(axis=0).max() < 1e-6
    all_stable = np.array([all(choice) for choice in itertools.product(*stable)])
    np.testing.assert_array_equal(minima.stable[minima.fixed], all_stable[distance.argmin(axis=1)])
    assert minima.found.sum() == 150


def test_a_linear_system_has_the_fixed_point_and_eigenvalues_of_its_matrix():
    rotation = 0.9 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    minima = fixed_points.minimise_speed(lambda z: z @ rotation.T + [1.0, 2.0], np.zeros((3, 2)))
    np.testing.assert_allclose(minima.states, [np.linalg.solve(np.eye(2) - rotation, [1.0, 2.0])], atol=1e-8)
    np.testing.assert_allclose(np.abs(minima.eigenvalues), [[0.9, 0.9]], atol=1e-6)
    assert minima.stable.all() and minima.found.tolist() == [3]


@pytest.mark.parametrize(
    ("matrix", "stable"),
    [
        ([[0.0, -0.9], [0.9, 0.0]], True),  # eigenvalues +-0.9 i
        ([[0.0, -1.1], [1.1, 0.0]], False),  # +-1.1 i: real parts of 0, and a deviation that grows
        ([[-1.2, 0.0], [0.0, 0.3]], False),  # -1.2 alternates and grows
        ([[-0.8, 0.0], [0.0, 0.3]], True),
    ],
)
def test_a_point_of_a_map_is_stable_inside_the_unit_circle(matrix, stable):
    update = np.array(matrix)
    minima = fixed_points.minimise_speed(lambda z: z @ update.T + [1.0, 2.0], np.zeros((2, 2)))
    assert minima.fixed.all() and minima.stable.tolist() == [stable]


def test_a_layer_whose_update_alternates_and_grows_is_unstable():
    """Linear, one synapse: the eigenvalue is lambda + eta W x^2 = 0.5 - 2 = -1.5."""
    points = fixed_points.mpn_fixed_points(
        np.array([[-2.0]]), np.array([0.3]), 1.0, 0.5, np.array([1.0]), activation="linear"
    )
    np.testing.assert_allclose(points.eigenvalues, [[-1.5]])
    assert points.stable.tolist() == [False]


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_both_turning_points_are_used(activation):
    """Near each fold, two roots lie close together around one turning point: both must be bracketed."""
    f, c = fixed_points.FUNCTIONS[activation][0], 3.0 if activation == "tanh" else 12.0
    turn = np.arccosh(np.sqrt(c)) if activation == "tanh" else 2 * np.arccosh(np.sqrt(c) / 2)
    for side in (-1, 1):
        fold = side * turn - c * f(side * turn)  # the drive at which two roots meet
        inside, outside = fold + side * 1e-4, fold - side * 1e-4
        assert {len(fixed_points.affine_roots(a, c, activation)[1]) for a in (inside, outside)} == {1, 3}


def test_a_point_is_fixed_below_the_tolerance_only():
    minima = fixed_points.minimise_speed(lambda z: z + z**2 + 1e-6, np.array([[0.1]]))
    assert minima.speed[0] == pytest.approx(1e-6, rel=0.1) and not minima.fixed.any()
    looser = fixed_points.minimise_speed(lambda z: z + z**2 + 1e-6, np.array([[0.1]]), tolerance=1e-5)
    assert looser.fixed.all()


def test_the_grid_reports_no_pole_as_a_root():
    """u = 1 / h, h = u: roots -+1, and a sign change at the pole 0."""
    roots = fixed_points.grid_roots(lambda h: 1 / h, 0.0, "linear")
    np.testing.assert_allclose(roots, [-1, 1], atol=1e-9)


def test_the_grid_reports_no_jump_as_a_root():
    """u + sign(u - 0.1) / 2 jumps from -0.4 to 0.6 and is never 0."""
    assert len(fixed_points.grid_roots(lambda h: -0.5 * np.sign(h - 0.1), 0.0, "linear")) == 0


def test_slow_points_and_fixed_points_are_distinguished():
    # z -> z + z^2 + 0.01 never stands still; it is slowest at 0, with speed 0.01.
    minima = fixed_points.minimise_speed(lambda z: z + z**2 + 0.01, np.array([[0.3], [-0.2]]))
    assert not minima.fixed.any() and not minima.stable.any()
    np.testing.assert_allclose(minima.states[0], 0, atol=1e-4)
    assert minima.speed[0] == pytest.approx(0.01)


def test_states_too_large_for_a_whole_jacobian_take_products_with_it():
    n = fixed_points.DENSE + 100
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(n, n)) / np.sqrt(n) * 0.5
    bias = rng.normal(size=n)

    def step(z):
        return np.tanh(z @ weight.T + bias)

    def vjp(z, v):
        return (v * (1 - step(z[None])[0] ** 2)) @ weight

    settled = np.zeros((1, n))
    for _ in range(200):
        settled = step(settled)
    minima = fixed_points.minimise_speed(step, rng.normal(size=(2, n)), vjp)
    np.testing.assert_allclose(minima.states, settled, atol=1e-6)
    assert minima.stable.all() and minima.eigenvalues.shape == (1, fixed_points.LEADING)
    jacobian = (1 - settled[0] ** 2)[:, None] * weight
    largest = np.abs(np.linalg.eigvals(jacobian)).max()
    assert np.abs(minima.eigenvalues).max() == pytest.approx(largest, rel=1e-4)
    with pytest.raises(ValueError, match="needs vjp"):
        fixed_points.minimise_speed(step, np.zeros((1, n)))


def test_each_frequent_observation_of_a_period_is_an_input_and_noise_has_its_mean():
    shown = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    inputs = fixed_points.shown_inputs("delay", shown, np.array([40, 45, 5, 10]), shown.mean(axis=0))
    assert list(inputs) == ["delay, obs_1 = 1", "delay, obs_2 = 1", "delay, zeros"]  # [1, 0, 0] is rare
    np.testing.assert_array_equal(list(inputs.values()), shown[[0, 1, 3]])
    assert list(fixed_points.shown_inputs("delay", shown[:1], np.array([9]), shown[0])) == ["delay"]
    mean = np.full(3, 0.2)
    many = np.random.default_rng(0).random((fixed_points.MOST_SHOWN + 1, 3))
    for rows in (many, many[:0]):
        inputs = fixed_points.shown_inputs("delay", rows, np.ones(len(rows), int), mean)
        assert list(inputs) == ["delay"] and inputs["delay"] is mean


def test_a_noisy_stimulus_has_an_input_for_each_context():
    """Entry 0 is constant, entry 1 noise around 3 or 5, entries 2 and 3 the context; a third context is rare."""
    context = np.repeat([0, 1, 2], [60, 35, 5])
    rng = np.random.default_rng(0)
    seen = np.zeros((100, 4))
    seen[:, 0] = 1
    seen[:, 1] = np.where(context == 1, 5.0, 3.0) + rng.standard_normal(100)
    seen[:, 2], seen[:, 3] = context == 0, context == 1
    inputs = fixed_points.period_inputs("stimulus", rng.permutation(seen))
    assert list(inputs) == ["stimulus, obs_2 = 1", "stimulus, obs_3 = 1"]
    np.testing.assert_allclose(inputs["stimulus, obs_2 = 1"], [1, seen[:60, 1].mean(), 1, 0])
    np.testing.assert_allclose(inputs["stimulus, obs_3 = 1"], [1, seen[60:95, 1].mean(), 0, 1])
    noise = rng.standard_normal((50, 2))
    (mean,) = fixed_points.period_inputs("stimulus", noise).values()
    np.testing.assert_allclose(mean, noise.mean(axis=0))
    exact = np.repeat(np.eye(3), 40, axis=0)
    assert list(fixed_points.period_inputs("delay", exact)) == [f"delay, obs_{i} = 1" for i in range(3)]
