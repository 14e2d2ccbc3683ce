"""The core contract, over every name that --core takes: a new core or preset is tested as soon as it is added."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from torch import nn

from mpn_dqn import MPNDQN, DQNLearner, Encoder
from mpn_rl import config
from mpn_rl.config import DQNConfig
from mpn_rl.contracts import Batch, map_state, state_parts
from mpn_rl.registry import CORES

B, T, D, H = 4, 9, 5, 6
CORE_NAMES = config.choices("core")
STACKED = {name for name, core in CORE_NAMES.items() if "num_layers" in core.section.__dataclass_fields__}
CASES = [(name, layers) for name in CORE_NAMES for layers in (1, 2) if layers == 1 or name in STACKED]
every_core = pytest.mark.parametrize(("name", "layers"), CASES, ids=[f"{name}-{n}" for name, n in CASES])


def make(name: str, layers: int, seed: int = 0) -> nn.Module:
    """The core with its own defaults, small; M(0) is trained and not zero where there is one."""
    section = CORE_NAMES[name].section
    names = {field.name for field in dataclasses.fields(section)}
    options = {"hidden_dim": H, "num_layers": layers, "train_m0": True}
    torch.manual_seed(seed)
    given = {key: value for key, value in options.items() if key in names}
    core = CORES[section](D, CORE_NAMES[name].build(**given))
    with torch.no_grad():
        for key, parameter in core.named_parameters():
            if key.endswith("m0") and parameter.requires_grad:
                parameter.normal_(std=0.3)
    return core


def sequence(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (B, T, D) and resets (B, T): none in row 0, everywhere in row 1, now and then elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    reset = torch.rand(B, T, generator=generator) < 0.3
    reset[0], reset[1] = False, True
    return torch.randn(B, T, D, generator=generator), reset


def warmed(core: nn.Module):
    """A state that is not the initial one."""
    with torch.no_grad():
        return core.unroll(sequence(2)[0], core.init_state(B))[1]


def rows(state, index):
    return map_state(lambda part: part[index], state)


def stepped(core: nn.Module, xs: torch.Tensor, state, reset: torch.Tensor):
    """The contract's right-hand side: a loop over `forward`, the state set back where reset is true."""
    hs = []
    for t in range(xs.shape[1]):
        fresh = state_parts(core.init_state(len(xs)))
        mixed = [
            torch.where(reset[:, t].view(-1, *[1] * (part.dim() - 1)), new, part)
            for part, new in zip(state_parts(state), fresh, strict=True)
        ]
        h, state = core(xs[:, t], tuple(mixed) if isinstance(state, tuple) else mixed[0])
        hs.append(h)
    return torch.stack(hs, 1), state


def assert_states_close(left, right) -> None:
    assert isinstance(left, tuple) == isinstance(right, tuple)
    for a, b in zip(state_parts(left), state_parts(right), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_every_registered_core_has_its_row() -> None:
    assert set(CORES) == set(config.CoreConfig.registry.values())


@every_core
def test_shapes(name: str, layers: int) -> None:
    core, (xs, reset) = make(name, layers), sequence()
    assert core.hidden_dim == H
    state = core.init_state(B)
    assert isinstance(state, (torch.Tensor, tuple)) and all(len(part) == B for part in state_parts(state))
    h, after = core(xs[:, 0], state)
    hs, last = core.unroll(xs, state, reset)
    assert h.shape == (B, H) and hs.shape == (B, T, H)
    for other in (after, last, core.init_state(B, torch.device("cpu"))):
        assert [p.shape for p in state_parts(other)] == [p.shape for p in state_parts(state)]


@every_core
def test_initial_rows_are_alike(name: str, layers: int) -> None:
    core = make(name, layers)
    for part, single in zip(state_parts(core.init_state(B)), state_parts(core.init_state(1)), strict=True):
        assert torch.equal(part, single.expand_as(part))


@every_core
def test_unroll_equals_stepping_resets_included(name: str, layers: int) -> None:
    core, (xs, reset) = make(name, layers), sequence()
    hs, last = core.unroll(xs, warmed(core), reset)
    expected, state = stepped(core, xs, warmed(core), reset)
    torch.testing.assert_close(hs, expected, rtol=1e-5, atol=1e-6)
    assert_states_close(last, state)


@every_core
def test_unroll_and_stepping_have_the_same_gradient(name: str, layers: int) -> None:
    core, (xs, reset) = make(name, layers), sequence()
    gradients = []
    for run in (core.unroll, lambda *arguments: stepped(core, *arguments)):
        core.zero_grad()
        run(xs, warmed(core), reset)[0].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in core.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5, msg=name)


@every_core
def test_no_reset_is_the_same_as_reset_nowhere(name: str, layers: int) -> None:
    core, (xs, _) = make(name, layers), sequence()
    nowhere = torch.zeros(B, T, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(core.unroll(xs, warmed(core))[0], core.unroll(xs, warmed(core), nowhere)[0])


@every_core
def test_reset_before_the_first_step_makes_the_given_state_irrelevant(name: str, layers: int) -> None:
    core, (xs, _) = make(name, layers), sequence()
    first = torch.zeros(B, T, dtype=torch.bool)
    first[:, 0] = True
    with torch.no_grad():
        hs, last = core.unroll(xs, warmed(core), first)
        expected, state = core.unroll(xs, core.init_state(B))
    torch.testing.assert_close(hs, expected)
    assert_states_close(last, state)


@every_core
def test_batch_rows_are_independent(name: str, layers: int) -> None:
    """Each row alone gives what it gives in the batch, and one row full of NaN spoils no other."""
    core, (xs, reset) = make(name, layers), sequence()
    with torch.no_grad():
        state = warmed(core)
        hs, last = core.unroll(xs, state, reset)
        for b in range(B):
            alone, after = core.unroll(xs[b : b + 1], rows(state, slice(b, b + 1)), reset[b : b + 1])
            torch.testing.assert_close(alone[0], hs[b], rtol=1e-5, atol=1e-6)
            assert_states_close(after, rows(last, slice(b, b + 1)))
        xs[2] = float("nan")
        spoiled, after = core.unroll(xs, state, reset)
        others = torch.tensor([0, 1, 3])
        assert spoiled[2].isnan().all()
        torch.testing.assert_close(spoiled[others], hs[others], rtol=1e-5, atol=1e-6)
        assert_states_close(rows(after, others), rows(last, others))


@every_core
def test_gradients_stay_within_their_row(name: str, layers: int) -> None:
    core, (xs, reset) = make(name, layers), sequence()
    core.unroll(xs.requires_grad_(), warmed(core), reset)[0][2].sum().backward()
    assert xs.grad is not None and xs.grad[2].any() and not xs.grad[[0, 1, 3]].any()


@every_core
def test_later_input_changes_nothing_earlier(name: str, layers: int) -> None:
    core, (xs, reset) = make(name, layers), sequence()
    with torch.no_grad():
        hs, _ = core.unroll(xs, warmed(core), reset)
        xs[:, 5:] += 1.0
        changed, _ = core.unroll(xs, warmed(core), reset)
    torch.testing.assert_close(changed[:, :5], hs[:, :5])
    assert not torch.allclose(changed[:, 5], hs[:, 5])


@every_core
def test_the_state_is_kept_by_the_caller_alone(name: str, layers: int) -> None:
    """Nothing on `self` changes, nothing given is written to, and the same call gives the same result."""
    core, (xs, reset) = make(name, layers), sequence()
    state, x = warmed(core), xs.clone()
    kept = map_state(torch.clone, state)
    attributes = {id(m): set(vars(m)) for m in core.modules()}
    buffers = {name: buffer.clone() for name, buffer in core.named_buffers()}
    with torch.no_grad():
        hs, _ = core.unroll(xs, state, reset)
        core(xs[:, 0], state)
        core.unroll(torch.randn(2, 3, D), core.init_state(2))
        again, _ = core.unroll(xs, state, reset)
    assert torch.equal(hs, again) and torch.equal(x, xs)
    assert all(torch.equal(a, b) for a, b in zip(state_parts(state), state_parts(kept), strict=True))
    assert {id(m): set(vars(m)) for m in core.modules()} == attributes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in core.named_buffers())


@every_core
def test_init_state_is_the_callers_to_write_on(name: str, layers: int) -> None:
    """Lanes set single rows back in place: the parameters and the next initial state must not notice."""
    core = make(name, layers)
    with torch.no_grad():
        before = map_state(torch.clone, core.init_state(B))
        for part in state_parts(core.init_state(B)):
            part[0] = 7.0
        assert_states_close(core.init_state(B), before)


@every_core
def test_state_arrays_name_the_whole_state(name: str, layers: int) -> None:
    core = make(name, layers)
    state = warmed(core)
    arrays = core.state_arrays(state)
    assert all(isinstance(name, str) and name.isidentifier() and len(part) == B for name, part in arrays.items())
    named = sorted(value for part in arrays.values() for value in part.flatten().tolist())
    assert named == sorted(value for part in state_parts(state) for value in part.flatten().tolist())


@every_core
def test_seeded_construction_repeats(name: str, layers: int) -> None:
    first, second, other = make(name, layers), make(name, layers), make(name, layers, seed=1)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


@every_core
def test_save_and_load_are_exact(name: str, layers: int) -> None:
    core, loaded, (xs, reset) = make(name, layers), make(name, layers, seed=1), sequence()
    file = io.BytesIO()
    torch.save(core.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        hs, last = core.unroll(xs, core.init_state(B), reset)
        same, state = loaded.unroll(xs, loaded.init_state(B), reset)
    assert torch.equal(hs, same)
    assert all(torch.equal(a, b) for a, b in zip(state_parts(last), state_parts(state), strict=True))


# --- under the learner ---------------------------------------------------------------------------------------


def learner_with(name: str, layers: int, seed: int = 0) -> DQNLearner:
    torch.manual_seed(seed)
    network = MPNDQN(3, H, 2, encoder=Encoder(3, D, False), core=make(name, layers, seed))
    return DQNLearner(network, DQNConfig(), seed=seed)


def batch_for(network: MPNDQN) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        obs=torch.randn(B, T + 1, 3, generator=generator),
        reset=torch.rand(B, T + 1, generator=generator) < 0.2,
        action=torch.randint(2, (B, T), generator=generator),
        reward=torch.randn(B, T, generator=generator),
        terminated=torch.zeros(B, T),
        mask=torch.ones(B, T),
        state0=map_state(torch.detach, network.init_state(B)),
        burn_in=2,
        weight=torch.ones(B),
        places=torch.arange(B).numpy(),
    )


@every_core
def test_a_learner_repeats_with_its_seed_and_resumes_exactly(name: str, layers: int) -> None:
    learner, twin = learner_with(name, layers), learner_with(name, layers)
    batch = batch_for(learner.online)
    for _ in range(3):
        assert torch.equal(learner.update(batch)["loss"], twin.update(batch)["loss"])
    resumed = learner_with(name, layers, seed=1)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    obs = torch.randn(32, 3)
    for _ in range(3):
        results = [one.update(batch)["loss"] for one in (learner, resumed)]
        actions = [one.act(obs, one.online.init_state(32), explore=True)[0] for one in (learner, resumed)]
        assert torch.equal(*results) and torch.equal(*actions)
    for kind in ("online", "target"):
        left, right = getattr(learner, kind).state_dict(), getattr(resumed, kind).state_dict()
        assert all(torch.equal(value, right[name]) for name, value in left.items())
