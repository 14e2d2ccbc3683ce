"""Every core behind TensorDict keys is the core itself, and TorchRL's own loop trains an MPN-DQN."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_cores import H, every_core, make, sequence, stepped, warmed

from mpn_dqn import MPNDQN, compute_td_loss_trial
from mpn_module import MPN
from mpn_rl.config import DQNConfig
from mpn_rl.contracts import Batch, map_state, state_parts
from mpn_rl.networks.encoder import Encoder
from mpn_rl.options import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchRL deprecates parts of itself while it is imported
    pytest.importorskip("torchrl", reason="needs the extra [torchrl]")
    from tensordict import TensorDict
    from torchrl.data import OneHot
    from torchrl.envs import GymEnv, InitTracker, SerialEnv, TransformedEnv
    from torchrl.modules import set_recurrent_mode
    from torchrl.objectives import DQNLoss

    from mpn_rl.networks import torchrl_modules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
ROOT = Path(__file__).parents[2]


def tensordict(module, xs, begins, state=None) -> TensorDict:
    """Inputs (*B, D), is_init (*B), and a stored state of the same rows, as a TensorDict."""
    data = TensorDict({"observation": xs, "is_init": begins.unsqueeze(-1)}, batch_size=begins.shape)
    for key, part in zip(module.in_keys[1:-1], [] if state is None else state_parts(state), strict=False):
        data[key] = part
    return data


def walked(module, xs, begins) -> TensorDict:
    """The sequence (B, T, D) as an actor leaves it: step by step, every step with the state that it had."""
    steps, stored = [], {}
    for t in range(xs.shape[1]):
        step = tensordict(module, xs[:, t], begins[:, t])
        step = module(step.update(stored) if stored else step)
        stored = {key: step["next", key] for key in module.in_keys[1:-1]}
        steps.append(step)
    return torch.stack(steps, 1)


@every_core
def test_a_step_is_forward_and_names_the_state(name: str, layers: int) -> None:
    core = make(name, layers)
    module = torchrl_modules.CoreModule(core)
    state, (xs, _) = warmed(core), sequence()
    done = module(tensordict(module, xs[:, 0], torch.zeros(len(xs), dtype=torch.bool), state))
    h, after = core(xs[:, 0], state)
    assert torch.equal(done["hidden"], h)
    assert module.in_keys == ["observation", *(f"state_{name}" for name in core.state_arrays(state)), "is_init"]
    for key, part in zip(module.in_keys[1:-1], state_parts(after), strict=False):
        assert torch.equal(done["next", key], part)


@every_core
def test_a_sequence_is_unroll(name: str, layers: int) -> None:
    core = make(name, layers)
    module = torchrl_modules.CoreModule(core)
    (xs, reset), state = sequence(), warmed(core)
    calm = torch.zeros_like(reset)
    long = map_state(lambda part: part.unsqueeze(1).expand(-1, xs.shape[1], *part.shape[1:]), state)
    with set_recurrent_mode(True):
        from_stored = module(tensordict(module, xs, calm, long))["hidden"]
        from_nothing = module(tensordict(module, xs, reset))["hidden"]
    torch.testing.assert_close(from_stored, core.unroll(xs, state)[0], rtol=0, atol=1e-6)
    assert torch.equal(from_nothing, core.unroll(xs, core.init_state(len(xs)), reset)[0])
    assert module.out_keys == ["hidden", *(("next", key) for key in module.in_keys[1:-1])]


@every_core
def test_steps_restart_at_is_init_and_the_sequence_equals_them(name: str, layers: int) -> None:
    core = make(name, layers)
    module = torchrl_modules.CoreModule(core)
    xs, begins = sequence()
    begins[:, 0] = True
    with torch.no_grad():
        acted = walked(module, xs, begins)
        expected, _ = stepped(core, xs, core.init_state(len(xs)), begins)
        with set_recurrent_mode(True):
            flat = module(acted.select(*module.in_keys).reshape(-1))  # as SliceSampler gives it, one row of all
            again = module(acted.select(*module.in_keys))
    torch.testing.assert_close(acted["hidden"], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(again["hidden"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(flat["hidden"], expected.reshape(-1, H), rtol=0, atol=1e-5)


def test_a_slice_that_begins_in_mid_episode_begins_from_its_stored_state() -> None:
    core = MPN(5, H)
    module = torchrl_modules.CoreModule(core)
    xs, begins = sequence()
    begins[:] = False
    with torch.no_grad():
        acted = walked(module, xs, begins)
        later = acted[:, 4:].select(*module.in_keys)
        later["is_init"][:, 0] = True  # the mark that SliceSampler sets
        with set_recurrent_mode(True):
            hidden = module(later)["hidden"]
    torch.testing.assert_close(hidden, acted["hidden"][:, 4:], rtol=0, atol=1e-6)
    assert not torch.allclose(hidden, core.unroll(xs[:, 4:], core.init_state(len(xs)))[0], atol=1e-3)


def test_without_a_stored_state_the_gradient_reaches_a_trained_initial_m() -> None:
    core = MPN(5, H, train_m0=True)
    module = torchrl_modules.CoreModule(core)
    xs, begins = sequence()
    with set_recurrent_mode(True):
        module(tensordict(module, xs, begins))["hidden"].square().sum().backward()
    assert core.layers[0].m0.grad.abs().sum() > 0


def dqn() -> MPNDQN:
    torch.manual_seed(0)
    return MPNDQN(obs_dim=4, hidden_dim=8, action_dim=2, encoder=Encoder(4, 3, False), eta=1.0, lambda_decay=0.85)


def test_an_environment_carries_the_state_and_the_actor_is_the_network() -> None:
    network = dqn()
    env = TransformedEnv(SerialEnv(3, lambda: GymEnv("CartPole-v1")), InitTracker())
    actor = torchrl_modules.q_actor(network, env.action_spec_unbatched)
    env.append_transform(actor[0].make_tensordict_primer())
    with torch.no_grad():
        data = env.rollout(30, actor, break_when_any_done=False)
        expected, _ = stepped(network, data["observation"], network.init_state(3), data["is_init"].squeeze(-1))
    assert data["is_init"].sum() > 3  # some episode ended
    torch.testing.assert_close(data["action_value"], expected, rtol=0, atol=1e-5)
    assert torch.equal(data["action"].argmax(-1), expected.argmax(-1))
    assert data["state_M"].shape == (3, 30, 8, 3)
    env.close()


def test_dqn_loss_of_torchrl_is_ours_and_so_is_its_gradient() -> None:
    """Rows within one episode, states stored, target = online: both losses see the same Q-values and targets."""
    network, steps, rows = dqn(), 6, 5
    actor = torchrl_modules.q_actor(network, OneHot(2))
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(rows, steps + 1, 4, generator=generator)
    reward, action = torch.randn(rows, steps, generator=generator), torch.randint(2, (rows, steps), generator=generator)
    ended = torch.zeros(rows, steps, dtype=torch.bool)
    ended[1, -1] = True
    begins = torch.zeros(rows, steps, dtype=torch.bool)
    begins[:, 0] = True
    with torch.no_grad():
        data = walked(actor[0], obs[:, :-1], begins)
    data["action"] = torch.nn.functional.one_hot(action, 2)
    after = {
        "observation": obs[:, 1:],
        "reward": reward.unsqueeze(-1),
        "is_init": torch.zeros_like(begins).unsqueeze(-1),
    }
    data["next"] = data["next"].update({**after, "terminated": ended.unsqueeze(-1), "done": ended.unsqueeze(-1)})
    loss_of = DQNLoss(actor, action_space=OneHot(2), delay_value=True, double_dqn=True, loss_function="smooth_l1")
    loss_of.make_value_estimator(gamma=0.9)
    with set_recurrent_mode(True):
        loss = loss_of(data)["loss"]
    loss.backward()
    theirs = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    full = torch.zeros(rows, steps + 1, dtype=torch.bool)
    ours, _ = compute_td_loss_trial(network, network, Batch(
        obs=obs, reset=full, action=action, reward=reward, terminated=ended.float(), mask=torch.ones(rows, steps),
        state0=network.init_state(rows), burn_in=0, weight=torch.ones(rows), places=torch.arange(rows).numpy(),
    ), DQNConfig(gamma=0.9))  # fmt: skip
    torch.testing.assert_close(loss.detach(), ours, rtol=1e-5, atol=1e-6)
    for mine, other in zip((p.grad for p in network.parameters() if p.grad is not None), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_documented_example_is_short_and_runs(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "torchrl.md").read_text(), re.S)[0]
    assert len(example.splitlines()) < 60
    short = example.replace("seed, steps = 0, 100_000", "seed, steps = 0, 2_000")
    assert short != example
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", short], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = r"2,000 frames, mean return over 100 greedy episodes: \d+\.\d+"
    assert re.fullmatch(said, done.stdout.strip().splitlines()[-1])


def test_without_the_extra_one_line_explains_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpn_rl.networks.torchrl_modules")
    monkeypatch.delattr("mpn_rl.networks.torchrl_modules")
    monkeypatch.setitem(sys.modules, "tensordict", None)
    with pytest.raises(ConfigError, match=r"pip install 'mpn-rl\[torchrl\]'"):
        from mpn_rl.networks import torchrl_modules  # noqa: F401


def test_nothing_else_imports_it() -> None:
    others = [path for pattern in ("*.py", "mpn_rl/**/*.py") for path in ROOT.glob(pattern)]
    assert not [
        path.name for path in others if re.search(r"^\s*(import|from) .*torchrl_modules", path.read_text(), re.M)
    ]
