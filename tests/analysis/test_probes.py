"""Probes intervene as they claim, and constant inputs lead where the equations predict."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mpn_dqn import MPNDQN
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.analysis import dynamics, fixed_points, probes
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError

TINY = {"hidden_dim": 5, "embed_dim": 3, "kernel": "reference"}


def subject_of(env_name: str, trials: int = 6, **options: Any) -> probes.Subject:
    """An untrained agent on a NeuroGym task."""
    config = cfg.make_config("train-neurogym", {"env_name": env_name, **(TINY if not options else {}), **options})
    torch.manual_seed(0)
    network = registry.make_network(config, registry.spaces(registry.make_env(config.env))).requires_grad_(False)
    return probes.Subject(network, config, trials)


@pytest.fixture(scope="module")
def match() -> probes.Subject:
    return subject_of("DelayMatchSample-v0")


def interventions(subject: probes.Subject, curve: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a curve does to the agent at each of its points, without playing."""
    done: list[Any] = []

    def note(intervene: Any = None, env: Any = None) -> Estimate:
        done.append(intervene)
        return Estimate(0.5, 0.4, 0.6, 10)

    monkeypatch.setattr(subject, "score", note)
    curve(subject)
    return done


# --- the subject --------------------------------------------------------------------------------------------


def test_a_task_without_a_time_limit_is_probed_in_short_episodes() -> None:
    config = cfg.make_config("train", {"env_name": "CliffWalking-v0", **TINY})
    torch.manual_seed(0)  # an agent that never reaches the goal
    network = registry.make_network(config, registry.spaces(registry.make_env(config.env))).requires_grad_(False)
    subject = probes.Subject(network, config)
    assert len(subject.seen) == subject.median_trial_steps == probes.LONGEST_PROBED
    assert subject.baseline.value < 0 and subject.baseline.n == probes.LANES


def test_a_subject_knows_its_trials(match: probes.Subject) -> None:
    """Fixation 300 ms, sample 500, delay 1,000, test 500, decision 900, in steps of 100 ms."""
    assert match.median_trial_steps == 32
    assert match.marks == {"fixation": 0, "sample": 3, "delay": 8, "test": 18, "decision": 23}
    assert match.seen.shape == (32, 3)
    np.testing.assert_allclose(
        match.seen[10], [1, 0, 0], atol=0.2
    )  # the delay shows the fixation input alone, and noise
    assert 0.5 <= match.chance < 1 and match.ylabel == "accuracy"  # of few trials, one answer is right more often
    assert match.baseline.n >= 6 and len(match.states[0]) <= probes.STARTS


def test_the_memory_is_the_plastic_part_of_a_state() -> None:
    for core, places in (("mpn", [0]), ("gru", [0]), ("lstm", [0, 1]), ("mpn-frozen", []), ("mlp", [])):
        config = cfg.make_config("train-neurogym", {"core": core})
        network = registry.make_network(config, registry.spaces(registry.make_env(config.env)))
        assert probes.memory_parts(network, config) == places, core
    for frozen, places in ((False, [0, 1]), (True, [2])):  # M^x and M^h, or h
        config = cfg.make_config("train-neurogym", {"core": "mpn-recurrent", "freeze_plasticity": frozen})
        network = registry.make_network(config, registry.spaces(registry.make_env(config.env)))
        assert probes.memory_parts(network, config) == places
    config = cfg.make_config("train", {"core": "backpropamine", "learner": "a2c", "modulation": "retroactive"})
    network = registry.make_network(config, registry.spaces(registry.make_env(config.env)))
    names = list(network.core.state_arrays(network.init_state(1)))
    assert {names[i] for i in probes.memory_parts(network, config)} == {"H", "E"}


def test_a_core_without_memory_has_a_message() -> None:
    subject = subject_of("DelayMatchSample-v0", core="mlp", hidden_dim=5, embed_dim=3)
    with pytest.raises(MissingDataError, match="the core mlp has no state"):
        probes.lesion_curve(subject)
    frozen = subject_of("DelayMatchSample-v0", core="mpn-frozen", hidden_dim=5, embed_dim=3)
    with pytest.raises(MissingDataError, match="frozen plasticity"):
        probes.state_noise_curve(frozen)


# --- delays -------------------------------------------------------------------------------------------------


def test_the_delay_is_what_the_curve_says(match: probes.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def note(intervene: Any = None, env: Any = None) -> Estimate:
        changed = registry.make_env(env)
        start, end = changed.periods["delay"]
        lengths.append((end - start) * changed.dt_ms)
        assert env.max_episode_steps >= 3 * changed.trial_steps
        return Estimate(0.5, 0.4, 0.6, 10)

    chances = iter([0.5, 0.6, 0.55, 0.5, 0.5])
    monkeypatch.setattr(match, "score", note)
    monkeypatch.setattr(match, "chance_in", lambda env: next(chances))
    curve = probes.delay_curve(match)
    assert curve.x.tolist() == lengths == [500, 1000, 2000, 4000, 8000]
    assert curve.trained == 1000 and curve.chance == 0.6


def test_the_delays_of_a_task_with_random_delays_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("ContextDecisionMaking-v0")
    monkeypatch.setattr(subject, "score", lambda env: Estimate(0.5, 0.4, 0.6, 10))
    monkeypatch.setattr(subject, "chance_in", lambda env: 0.5)
    first, again = (probes.delay_curve(subject) for _ in range(2))
    assert first.trained == again.trained and first.x.tolist() == again.x.tolist()
    assert 300 < first.trained < 3000 and first.trained % 100  # the mean of an exponential distribution


@pytest.mark.parametrize("name", ["GoNogo-v0", "IntervalDiscrimination-v0"])
def test_chance_is_the_score_of_the_best_constant_answer(name: str) -> None:
    """GoNogo scores no trial in which withholding is right, so there the best constant answer is to act."""
    env, seeds, scores = cfg.make_config("train-neurogym", {"env_name": name}).env, list(range(8)), []
    for answer in range(3 if name[0] == "I" else 2):
        task, right, trials = registry.make_env(env), 0.0, 0
        for seed in seeds:
            task.reset(seed=seed)
            over = False
            while not over:
                action = answer if task.at_decision else max(task.ground_truth_action(), 0)
                *_, terminated, truncated, info = task.step(action)
                over = terminated or truncated
                if info["new_trial"]:
                    right, trials = right + info["performance"], trials + 1
        scores.append(right / trials)
    assert 0 < max(scores) < 1 and min(scores) < max(scores)
    assert probes.chance_level(env, seeds) == pytest.approx(max(scores))


def test_an_agent_that_always_answers_the_same_has_no_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In IntervalDiscrimination-v0 its score may pass one half, that of guessing, but not the commonest answer's."""
    subject = subject_of("IntervalDiscrimination-v0", trials=30)

    def always_two(obs: torch.Tensor, state: Any, epsilon: float, generator: Any) -> tuple[torch.Tensor, Any]:
        return torch.full((len(obs),), 2), state

    monkeypatch.setattr(subject.network, "select_action", always_two)
    curve = probes.delay_curve(subject, [500, 3000])
    assert np.all(curve.y.value <= curve.chance + 1e-12) and np.isnan(probes.memory_horizon(curve))


def decays(tau: float, delays: list[float], n: int, many: int, chance: float = 0.5, start: float = 0.95) -> list[Any]:
    """`memory_decay` of simulated accuracies, nan where there is none."""
    rng, found = np.random.default_rng(0), []
    p = chance + (start - chance) * np.exp(-np.array(delays) / tau)
    for right in rng.binomial(n, p, (many, len(delays))):
        y = Estimate(right / n, *np.full((2, len(delays)), np.nan), np.full(len(delays), n))
        curve = probes.Curve(np.array(delays), y, "", "", chance)
        try:
            found.append(probes.memory_decay(curve))
        except MissingDataError:
            found.append(None)
    return found


@pytest.mark.parametrize("tau", [800.0, 6000.0])
def test_the_time_constant_of_a_decay_is_covered(tau: float) -> None:
    found = decays(tau, [250, 500, 1000, 2000, 4000], 400, 60)
    assert np.median([decay.tau.value for decay in found]) == pytest.approx(tau, rel=0.1)
    assert 0.90 <= np.mean([decay.tau.low <= tau <= decay.tau.high for decay in found]) <= 0.995
    assert found[0].start == pytest.approx(0.95, abs=0.05)


def test_a_decay_too_slow_for_the_delays_is_censored_and_no_memory_has_none() -> None:
    slow = decays(1e7, [250, 500, 1000], 400, 40)
    assert np.mean([np.isinf(decay.tau.high) for decay in slow]) > 0.9 and all(decay.tau.low > 200 for decay in slow)
    chance = decays(1000, [250, 500, 1000], 400, 60, start=0.5)
    assert np.mean([decay is not None for decay in chance]) <= 0.1
    y = Estimate(*np.ones((4, 2)))
    with pytest.raises(MissingDataError, match="needs three delays"):
        probes.memory_decay(probes.Curve(np.ones(2), y, "", "", 0.5))


def test_a_task_without_a_delay_has_a_message() -> None:
    with pytest.raises(MissingDataError, match="the task has no delay period"):
        probes.delay_curve(SimpleNamespace(config=SimpleNamespace(env=None)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "horizon"),
    [([0.9, 0.8, 0.6], 400), ([0.9, 0.8, 0.4], 200), ([0.9, 0.4, 0.8], 100), ([0.5, 0.9, 0.9], np.nan)],
)
def test_the_horizon_is_the_longest_delay_reached_without_a_gap(low: list[float], horizon: float) -> None:
    y = Estimate(np.array(low) + 0.05, np.array(low), np.array(low) + 0.1, np.full(3, 100))
    curve = probes.Curve(np.array([100.0, 200.0, 400.0]), y, "delay (ms)", "accuracy", 0.5)
    np.testing.assert_equal(probes.memory_horizon(curve), horizon)


def test_without_chance_there_is_no_horizon() -> None:
    y = Estimate(*np.ones((4, 1)))
    with pytest.raises(MissingDataError, match="chance is unknown"):
        probes.memory_horizon(probes.Curve(np.ones(1), y, "", ""))


# --- interventions ------------------------------------------------------------------------------------------


def test_a_lesion_erases_the_memory_at_its_own_step_alone(
    match: probes.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesions = interventions(match, probes.lesion_curve, monkeypatch)
    assert len(lesions) == len(probes.steps_of_trial(match)) == probes.STEPS
    obs, state = torch.ones(3, 3), torch.ones(3, 5, 3)
    seen, after = lesions[0](obs, state, np.array([0, 1, 0]), np.arange(3))
    assert torch.equal(seen, obs)
    assert after.sum((1, 2)).tolist() == [0, 15, 0]  # M starts at 0
    assert state.sum() == 45  # the agent's own state is not written to


def test_swapped_memory_is_that_of_another_trial_at_the_same_step(
    match: probes.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 0 and 2 reach the step together and swap; a later one that is alone gets the memory of row 2."""
    at = int(probes.steps_of_trial(match)[1])
    swap = interventions(match, probes.swapped_curve, monkeypatch)[1]
    state = torch.arange(3.0)[:, None, None].expand(3, 5, 3).clone()
    obs, same = swap(torch.zeros(3, 3), state, np.full(3, at + 1), np.arange(3))
    assert torch.equal(same, state)
    _, after = swap(obs, state, np.array([at, at + 3, at]), np.arange(3))
    assert after[:, 0, 0].tolist() == [2, 1, 0] and state[:, 0, 0].tolist() == [0, 1, 2]
    _, alone = swap(obs, state + 5, np.array([0, at, 0]), np.arange(3))
    assert alone[:, 0, 0].tolist() == [5, 2, 7]


def test_displaced_memory_moves_as_far_as_erasing_and_in_another_direction(
    match: probes.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = interventions(match, probes.displaced_curve, monkeypatch)[0]
    state = 1 + torch.arange(3.0)[:, None, None].expand(3, 5, 3).clone()  # M starts at 0
    _, after = move(torch.zeros(3, 3), state, np.array([0, 1, 0]), np.arange(3))
    distance = (after - state).flatten(1).norm(dim=1)
    np.testing.assert_allclose(distance, [state[0].norm(), 0, state[2].norm()], rtol=1e-5)
    assert (after[0].norm() - state[0].norm()).abs() > 0.1 * state[0].norm()


def test_another_trials_memory_costs_an_agent_that_answers_from_memory_what_guessing_would(
    match: probes.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M holds +1 or -1, the right answer: erased (0) it is always wrong, swapped it is right in half of the trials."""
    at = int(probes.steps_of_trial(match)[0])
    right = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], 4000)).float()
    state, rows = right[:, None, None].expand(4000, 5, 3).clone(), np.full(4000, at)
    shares = []
    for curve in (probes.lesion_curve, probes.swapped_curve, probes.displaced_curve):
        _, after = interventions(match, curve, monkeypatch)[0](torch.zeros(4000, 3), state, rows, np.arange(4000))
        shares.append(float(((after.mean((1, 2)) * right) > 0).float().mean()))
    assert shares[0] == 0 and shares[1] == pytest.approx(0.5, abs=0.03) and shares[2] > 0.9


def test_held_memory_stays_as_it_was_until_the_next_trial(
    match: probes.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two episodes whose M is 10 x episode + step; from step at on, M stays as it was before that step."""
    at = int(probes.steps_of_trial(match)[2])
    hold = interventions(match, probes.frozen_curve, monkeypatch)[2]
    obs = torch.zeros(2, 3)

    def modulation(step: int) -> torch.Tensor:
        return (torch.tensor([0.0, 10.0]) + step)[:, None, None].expand(2, 5, 3).clone()

    for step in range(at + 3):
        _, after = hold(obs, modulation(step), np.full(2, step), np.array([4, 7]))
        assert after[:, 0, 0].tolist() == [min(step, at), 10 + min(step, at)]
    _, left = hold(obs[:1], modulation(20)[1:], np.array([at + 3]), np.array([7]))  # the other episode has ended
    assert left[0, 0, 0] == 10 + at
    _, new = hold(obs, modulation(1), np.array([1, 0]), np.array([4, 7]))  # a new trial
    assert new[:, 0, 0].tolist() == [1, 11]


def test_noise_has_the_size_that_it_says(match: probes.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "obs_sd", 0.5)
    monkeypatch.setattr(match, "state_sd", [3.0])
    rows = np.zeros(2000, int)
    obs, state = torch.zeros(2000, 3), torch.zeros(2000, 5, 3)
    for noisy, place, size in ((probes.input_noise_curve, 0, 0.5), (probes.state_noise_curve, 1, 3.0)):
        done = interventions(match, noisy, monkeypatch)
        for level, intervene in zip(probes.NOISE, done, strict=True):
            got = intervene(obs, state, rows, rows)
            assert float(got[place].std()) == pytest.approx(level * size, rel=0.05)
            assert float(got[1 - place].abs().max()) == 0.0


def test_no_noise_is_the_undisturbed_agent_and_the_same_seed_the_same_curve(match: probes.Subject) -> None:
    first = probes.input_noise_curve(match, (0.0, 1.0))
    again = probes.input_noise_curve(match, (0.0, 1.0))
    assert first.y.value[0] == match.baseline.value and first.y.n[0] == match.baseline.n
    np.testing.assert_array_equal(np.array(first.y), np.array(again.y))


# --- held inputs --------------------------------------------------------------------------------------------


class Halving(torch.nn.Module):
    """z' = z / 2 + x, whatever the shape."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        after = state / 2 + x
        return after, after

    def init_state(self, batch_size: int, device: Any = None) -> torch.Tensor:
        return torch.zeros(batch_size, 2, dtype=torch.float64)


class Held(torch.nn.Module):
    """A network of nothing but a core."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.core = torch.nn.Identity(), Halving()
        self.dummy = torch.nn.Parameter(torch.zeros(1))

    def init_state(self, batch_size: int) -> torch.Tensor:
        return self.core.init_state(batch_size)


def held(network: Any, states: torch.Tensor, dt_ms: float = 100.0) -> Any:
    config = SimpleNamespace(core=SimpleNamespace(name="mpn"))
    return SimpleNamespace(network=network, states=[states], dt_ms=dt_ms, config=config)


def test_a_linear_state_halves_its_distance_at_every_step() -> None:
    starts = torch.tensor([[8.0, 0.0], [0.0, 4.0], [2.0, 2.0]], dtype=torch.float64)
    rest = dynamics.relaxation(held(Held(), starts), np.array([1.0, -1.0]), steps=60)
    np.testing.assert_allclose(rest.distance.value[:10], 0.5 ** np.arange(10), rtol=1e-5)
    assert rest.time[:3].tolist() == [0, 100, 200] and rest.unit == "ms"
    assert rest.ends == 1 and rest.speed < 1e-6


def test_the_search_finds_the_one_fixed_point_of_a_linear_state() -> None:
    """z = z / 2 + x at z = 2 x; the eigenvalues are 1/2."""
    starts = torch.tensor([[8.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    found = dynamics.slow_points(held(Held(), starts), np.array([1.0, -1.0]))
    np.testing.assert_allclose(found.states, [[2, -2]], atol=1e-8)
    np.testing.assert_allclose(np.abs(found.eigenvalues), [[0.5, 0.5]], atol=1e-6)
    assert found.stable.all()


class Far(Held):
    """One entry, z' = z - (z^2 - 1) (z - 44) / 100: fixed points at 1 (stable), -1 and 44."""

    def __init__(self) -> None:
        super().__init__()

        def forward(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            after = state + (state**2 - 1) * (state - 44) / 100
            return after, after

        self.core.forward = forward  # type: ignore[method-assign]


def test_points_far_from_the_visited_states_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = torch.tensor([[0.9, 0.5], [0.2, 0.8], [-0.5, 0.6]], dtype=torch.float64)
    found = fixed_points.minimise_speed(lambda z: z + (z**2 - 1) * (z - 44) / 100, np.array([[0.9, 0.9], [43.0, 44.0]]))
    assert sorted(found.states[:, 0].round()) == [1, 44]
    monkeypatch.setattr(fixed_points, "minimise_speed", lambda *_, **__: found)
    near = dynamics.slow_points(held(Far(), starts), np.zeros(2))
    np.testing.assert_allclose(near.states, [[1, 1]], atol=1e-6)
    assert near.unreached == 1
    assert {len(part) for part in near[:-1]} == {1}  # type: ignore[arg-type]


def test_an_mpn_comes_to_rest_at_the_roots_of_the_scalar_equations() -> None:
    """One bistable unit: both signs of h are found, from starts on both sides, to 1e-6."""
    torch.manual_seed(1)
    network = MPNDQN(2, 3, 2, encoder=registry.Encoder(2, 0, False), eta=0.8, lambda_decay=0.8, kernel="reference")
    network.requires_grad_(False)
    layer = network.core.layers[0]
    layer.weight[:] = torch.tensor([[0.9, 0.1], [0.2, -0.3], [-0.4, 0.5]])
    layer.bias[:] = torch.tensor([-0.95, 0.1, 0.0])
    obs = np.array([1.0, 0.5])
    roots = fixed_points.mpn_fixed_points(layer.weight.numpy(), layer.bias.numpy(), 0.8, 0.8, obs)
    stable = {i: roots.h[(roots.unit == i) & roots.stable] for i in range(3)}
    assert len(stable[0]) == 2
    starts = torch.randn(16, 3, 2) * 3
    found = dynamics.slow_points(held(network, starts), obs)
    rests = found.states[found.stable].reshape(-1, 3, 2)
    assert len(rests) >= 2
    for unit in range(3):
        # M = eta / (1 - lambda) h x, so h = M x / (4 x.x)
        h = rests[:, unit] @ obs / (4 * obs @ obs)
        assert all(np.abs(stable[unit] - value).min() < 1e-6 for value in h)
        assert {int(np.abs(stable[unit] - value).argmin()) for value in h} == set(range(len(stable[unit])))


def test_held_inputs_are_silence_and_the_delay(match: probes.Subject) -> None:
    inputs = dynamics.held_inputs(match)
    assert list(inputs) == ["silence", "delay"]
    assert not inputs["silence"].any()
    np.testing.assert_allclose(inputs["delay"], match.seen[8:18].mean(axis=0))


def test_held_inputs_are_what_the_task_shows_in_each_context() -> None:
    """Without noise in the delay: not the mean of two contexts, which never occurs."""
    subject = subject_of("ContextDecisionMaking-v0", 40, env_args={"use_expl_context": True}, hidden_dim=4,
                         embed_dim=3, kernel="reference")  # fmt: skip
    inputs = dynamics.held_inputs(subject)
    assert list(inputs) == ["silence", "delay, obs_5 = 1", "delay, obs_6 = 1"]
    np.testing.assert_array_equal(inputs["delay, obs_5 = 1"], [0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(inputs["delay, obs_6 = 1"], [0, 0, 0, 0, 0, 0, 1])
