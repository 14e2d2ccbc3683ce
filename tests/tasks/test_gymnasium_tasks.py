"""Gymnasium tasks as flat vectors; with the velocities hidden, one observation does not determine the state."""

from __future__ import annotations

import importlib

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.tasks.gymnasium_tasks import VELOCITIES, FlatTask, make_gymnasium


class Dicty(gymnasium.Env):
    """Observations of several kinds; actions as given."""

    observation_space = spaces.Dict(
        {"where": spaces.Discrete(3), "what": spaces.Box(-1.0, 1.0, (2, 2), np.float64), "on": spaces.MultiBinary(2)}
    )

    def __init__(self, actions: spaces.Space | None = None, size: int = 1) -> None:
        self.action_space = actions or spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"where": 1, "what": np.arange(4.0).reshape(2, 2), "on": np.array([1, 0], np.int8)}, {}

    def step(self, action):
        return self.reset()[0], 1.0, False, False, {}


class Boundless(Dicty):
    observation_space = spaces.Sequence(spaces.Discrete(2))


@pytest.fixture(autouse=True)
def _registered():
    for name, task in {"Dicty-v0": Dicty, "Boundless-v0": Boundless}.items():
        gymnasium.register(name, task)
    yield
    for name in ("Dicty-v0", "Boundless-v0"):
        del gymnasium.registry[name]


def test_an_observation_of_several_kinds_becomes_one_float32_vector() -> None:
    env = make_gymnasium("Dicty-v0")
    obs, _ = env.reset(seed=0)
    # Dict keys in their own (sorted) order: on (2), what (4), where (one-hot of 3)
    assert obs.dtype == np.float32 and obs.tolist() == [1, 0, 0, 1, 2, 3, 0, 1, 0]
    assert env.observation_space.shape == (9,)


def test_a_discrete_observation_is_one_hot() -> None:
    obs, _ = make_gymnasium("FrozenLake-v1").reset(seed=0)
    assert obs.tolist() == [1.0] + [0.0] * 15


def test_masked_cartpole_shows_position_and_angle() -> None:
    env, masked = make_gymnasium("CartPole-v1"), make_gymnasium("CartPole-v1", mask_velocity=True)
    full, _ = env.reset(seed=3)
    part, _ = masked.reset(seed=3)
    assert part.tolist() == full[[0, 2]].tolist()
    assert masked.observation_space.shape == (2,)


@pytest.mark.parametrize("name", [name for name in VELOCITIES if not name.startswith("Lunar")])
def test_the_hidden_entries_are_the_rates_of_the_others(name: str) -> None:
    """A velocity's entry, times dt, is what some other entry gains in a step; checked where it is that simple."""
    env = make_gymnasium(name)
    assert max(VELOCITIES[name]) < env.observation_space.shape[0]
    if name.startswith("CartPole"):
        before, _ = env.reset(seed=0)
        after, *_ = env.step(1)
        np.testing.assert_allclose(after[[0, 2]] - before[[0, 2]], 0.02 * before[[1, 3]], atol=1e-6)
    if name.startswith("MountainCar"):
        before, _ = env.reset(seed=0)
        after, *_ = env.step(2)
        np.testing.assert_allclose(after[0] - before[0], after[1], atol=1e-6)


def test_a_time_limit_truncates_and_does_not_terminate() -> None:
    env = make_gymnasium("CartPole-v1", max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(t % 2)[2:4] for t in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCar-v0", "CliffWalking-v0", "Taxi-v3", "Blackjack-v1"])
def test_gymnasiums_own_tasks_step_under_this_numpy(name: str) -> None:
    env = make_gymnasium(name)
    env.reset(seed=0)
    obs, *_ = env.step(0)
    assert obs.dtype == np.float32 and env.observation_space.contains(obs)


def test_the_longest_episode_is_the_users_or_the_tasks_own() -> None:
    assert registry.step_limit(cfg.GymnasiumConfig()) == 500
    assert registry.step_limit(cfg.GymnasiumConfig(max_episode_steps=7)) == 7
    assert registry.step_limit(cfg.GymnasiumConfig(env_name="Dicty-v0")) is None
    assert registry.step_limit(cfg.NeuroGymConfig()) == 150


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mytasks.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("mytasks")  # a program's consent; test_trusted_modules has the command line's
    assert registry.spaces(registry.make_env(cfg.GymnasiumConfig(env_name="mytasks:Mine-v0")))[:2] == (4, 2)


def make(name: str, **args) -> gymnasium.Env:
    return registry.make_env(cfg.GymnasiumConfig(env_name=name, env_args=args))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("CartPol-v1", {}, "did you mean 'CartPole-v1'"),
        ("", {}, "must be a Gymnasium id"),
        ("Dicty-v0", {"colour": 1}, "'colour'; it takes actions, size"),
        ("Dicty-v0", {"render_mode": "human"}, "must not set render_mode"),
        ("Dicty-v0", {"max_episode_steps": 5}, "cannot be made"),
        ("Dicty-v0", {"actions": spaces.Box(-np.inf, np.inf)}, "a bounded vector"),
        (
            "Dicty-v0",
            {"actions": spaces.MultiDiscrete([33, 32])},
            "actions of several parts.* at most 1,024 combinations",
        ),
        ("Dicty-v0", {"actions": spaces.Tuple([spaces.Discrete(2), spaces.Box(0.0, 1.0)])}, "actions of several parts"),
        ("Boundless-v0", {}, "observations of no fixed size"),
        ("GoNogo-v0", {}, "is a NeuroGym task: use python main.py train-neurogym --env-name GoNogo-v0"),
    ],
)
def test_a_task_that_cannot_be_had_is_refused_in_one_line(name: str, args: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        make(name, **args)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("task", "algo", "message"),
    [
        ("Pendulum-v1", "dqn", "continuous actions.*take --algo a2c or ppo or td3"),
        ("CartPole-v1", "td3", "take --algo dqn or a2c or ppo"),
    ],
)
def test_the_error_for_an_unsuitable_learner_names_a_suitable_one(task: str, algo: str, message: str) -> None:
    config = cfg.make_config("train", {"env_name": task, "learner": algo})
    with pytest.raises(ConfigError, match=message):
        registry.make_lanes(config, 1, lambda: 0)


def test_correlated_noise_is_refused_where_actions_are_choices() -> None:
    flags = {"env_name": "CartPole-v1", "learner": "ppo", "noise_correlation": 0.5}
    with pytest.raises(ConfigError, match="--noise-correlation 0.5 does nothing with --env-name CartPole-v1"):
        registry.make_lanes(cfg.make_config("train", flags), 1, lambda: 0)


def test_velocities_are_hidden_only_where_they_are_known() -> None:
    with pytest.raises(ConfigError, match="--mask-velocity knows the velocities of CartPole-v0"):
        make_gymnasium("FrozenLake-v1", mask_velocity=True)


def test_what_a_gymnasium_task_lacks_is_empty_without_a_warning() -> None:
    env = make_gymnasium("CartPole-v1")
    assert (env.trial_steps, env.dt_ms, env.action_names, env.conditions) == (0, 0.0, None, {})


def test_a_box2d_task_gets_numbers_that_box2d_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As LunarLander computes with an action: Box2D refuses NumPy's float32 numbers."""
    seen = []

    class Lander(gymnasium.Env):
        observation_space = action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
            return np.zeros(2, np.float32), {}

        def step(self, action: np.ndarray) -> tuple:
            power = (np.clip(np.clip(action, -1, +1).astype(np.float32)[0], 0.0, 1.0) + 1.0) * 0.5
            seen.extend([power, -action[1]])
            return np.zeros(2, np.float32), 0.0, False, False, {}

    monkeypatch.setattr(Lander, "__module__", "gymnasium.envs.box2d.lunar_lander")
    env = FlatTask(Lander())
    env.reset(seed=0)
    env.step(np.array([0.5, -0.25], np.float32))
    assert seen == [0.75, 0.25] and all(isinstance(number, float) for number in seen)


@pytest.mark.parametrize(
    ("says", "way_out"),
    [
        ("MuJoCo is not installed, run `pip install gymnasium[mujoco]`", r"pip install 'mpn-rl\[mujoco\]'"),
        ("No module named 'mujoco_py'. (HINT: you need to install mujoco_py)", "take the -v4 of this task"),
        ("box2D is not installed, run `pip install gymnasium[box2d]`", "--no-build-isolation box2d-py==2.3.5"),
        ("other is not\ninstalled", "cannot be made: other is not installed"),
    ],
)
def test_a_task_without_its_library_names_the_way_out(says: str, way_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise gymnasium.error.DependencyNotInstalled(says)

    monkeypatch.setattr(gymnasium, "make", missing)
    with pytest.raises(ConfigError, match=way_out):
        make_gymnasium("CartPole-v1")
