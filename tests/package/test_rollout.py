"""Lanes, evaluation and recording: what was acted upon, what came of it, and whose it was."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.rollout import _frame, evaluate, join_episodes, record_episodes, reset_rows, run_batched, run_scripted
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium
from mpn_rl.tasks.lanes import SEED_RANGES, EpisodeSeeds, Lanes


class Clock(gymnasium.Env):
    """The observation is the step, and the seed sets the episode's length, so that every entry is known in advance.

    Trials last three steps; even trials have the condition "side", odd ones "level".
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    obs_dim, trial_steps, dt_ms = 2, 3, 0.0
    action_names, scripted = None, {}

    def reset(self, *, seed=None, options=None):
        self.t, self.length = 0, 4 + seed % 3
        self.key = seed
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.array([self.t, self.key % 100], np.float32)

    @property
    def conditions(self) -> dict[str, Any]:
        return {"level": 7} if self.t // 3 % 2 else {"side": "left"}

    def step(self, action):
        trial = self.t // 3
        self.t += 1
        over = self.t >= self.length
        info = {"new_trial": self.t % 3 == 0, "trial_number": trial, "gt": 1, "period": "all", "decision": True}
        if info["new_trial"]:
            info |= {"performance": float(action == 1), "aborted": False}
        return self.observe(), 10.0 * self.t + action, over and self.length == 4, over and self.length > 4, info


def network(**flags: Any):
    torch.manual_seed(0)
    config = cfg.make_config("train", {"hidden_dim": 5, "embed_dim": 0, **flags})
    return registry.make_network(config, registry.Spaces(2, 3)).requires_grad_(False)


def test_lanes_report_the_true_last_observation_and_restart() -> None:
    seeds = iter([3, 4, 6, 7, 9, 10])  # episodes of 4, 5, 4, ... steps
    lanes = Lanes([Clock(), Clock()], lambda: next(seeds))
    log = []
    for _ in range(6):
        log.append(lanes.step(np.array([1, 2])))
    ends = [[(end.reward, end.length, end.trials) for end in ended] for _, ended in log]
    # lane 0: 10+20+30+40 + 4*1 over 4 steps; lane 1: 10+...+50 + 5*2 over 5.
    assert ends == [[], [], [], [(104.0, 4, 1)], [(160.0, 5, 1)], []]
    fourth, fifth = log[3][0], log[4][0]
    assert fourth.next_obs[0].tolist() == [4.0, 3.0] and fourth.terminated.tolist() == [True, False]
    assert fifth.obs[0].tolist() == [0.0, 6.0] and fifth.truncated.tolist() == [False, True]
    assert fifth.next_obs[1].tolist() == [5.0, 4.0]
    assert [steps.new_trial.tolist() for steps, _ in log][2] == [True, True]


def test_lanes_come_back_by_replaying_their_actions() -> None:
    lanes = Lanes([Clock(), Clock()], EpisodeSeeds("train", 0))
    rng = np.random.default_rng(0)
    for _ in range(6):
        lanes.step(rng.integers(0, 3, 2))
    again = Lanes([Clock(), Clock()], EpisodeSeeds("train", 9))
    again.load_state_dict(lanes.state_dict())
    actions = np.array([0, 1])
    one, other = lanes.step(actions), again.step(actions)
    assert all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert one[1] == other[1]


def test_a_lane_that_comes_back_different_is_refused() -> None:
    lanes = Lanes([Clock()], lambda: 5)
    lanes.step(np.array([1]))
    saved = lanes.state_dict()
    saved["obs"][0, 0] += 1
    with pytest.raises(ConfigError, match="Clock does not reproduce an episode from its seed and actions"):
        Lanes([Clock()], lambda: 5).load_state_dict(saved)


def test_episode_seeds_are_a_function_of_purpose_and_seed() -> None:
    def first(purpose: str, seed: int) -> list[int]:
        source = EpisodeSeeds(purpose, seed)
        return [source() for _ in range(100)]

    for purpose, (low, high) in SEED_RANGES.items():
        assert first(purpose, 3) == first(purpose, 3) != first(purpose, 4)
        assert all(low <= seed < high for seed in first(purpose, 3))


@pytest.mark.parametrize("core", ["mpn", "lstm", "mlp"])
@pytest.mark.parametrize("lanes", [1, 2, 5, 8])
def test_an_evaluation_is_the_same_in_any_number_of_lanes(core: str, lanes: int) -> None:
    net, seeds = network(core=core), [3, 4, 5, 7, 9]
    result = evaluate(net, [Clock() for _ in range(lanes)], seeds)
    assert result.lengths.tolist() == [4, 5, 6, 5, 4]
    alone = [evaluate(net, [Clock()], [seed]) for seed in seeds]
    assert result.returns.tolist() == [float(one.returns[0]) for one in alone]
    assert sorted(result.performance) == sorted(np.concatenate([one.performance for one in alone]))


@pytest.mark.parametrize("reset", [False, True])
def test_evaluation_resets_the_state_where_the_option_requires_it(reset: bool) -> None:
    """Against a slow loop of single steps."""
    net = network()
    env = Clock()
    obs, _ = env.reset(seed=5)  # 6 steps, two trials
    state, expected, over = net.init_state(1), 0.0, False
    while not over:
        q_values, state = net(torch.from_numpy(obs[None]), state)
        obs, reward, terminated, truncated, info = env.step(int(q_values.argmax()))
        expected += reward
        over = terminated or truncated
        if reset and info["new_trial"]:
            state = net.init_state(1)
    assert evaluate(net, [Clock()], [5], reset).returns.tolist() == [expected]


class Counter(torch.nn.Module):
    """Its state counts the steps since it was reset, and so does its action, modulo 3."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def init_state(self, batch_size: int, device: Any = None) -> torch.Tensor:
        return torch.zeros(batch_size, 1)

    def select_action(self, obs: torch.Tensor, state: torch.Tensor, epsilon: float, generator: Any) -> tuple:
        return state[:, 0].long() % 3, state + 1


def test_the_state_is_reset_between_trials_only_where_the_option_requires_it() -> None:
    class Pairs(Clock):
        """Trials of two steps."""

        def step(self, action: int) -> tuple[Any, ...]:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, info | {"new_trial": self.t % 2 == 0, "performance": 1.0}

    kept, reset = (evaluate(Counter(), [Pairs()], [5, 7], option).returns.tolist() for option in (False, True))
    assert kept == [210.0 + 0 + 1 + 2 + 0 + 1 + 2, 150.0 + 0 + 1 + 2 + 0 + 1]
    assert reset == [210.0 + 3 * (0 + 1), 150.0 + 0 + 1 + 0 + 1 + 0]
    recorded = {
        option: [episode["state_M"][:, 0, 0].tolist() for episode in record_episodes(
            network(train_m0=True), [Pairs()], [5], reset_state_on_trial=option)]
        for option in (False, True)
    }  # fmt: skip
    assert recorded[False] != recorded[True]


def test_decision_accuracy_counts_decision_steps_alone_and_aborts_are_counted() -> None:
    class Asks(Clock):
        """Only the second of three steps is a decision; its right action is 1. The last trial is aborted."""

        def step(self, action: int) -> tuple[Any, ...]:
            obs, reward, terminated, truncated, info = super().step(action)
            info |= {"decision": self.t % 3 == 2, "gt": 1}
            if info["new_trial"]:
                info |= {"aborted": self.t == 6, "trial": {"coh": 5.0}}
            return obs, reward, terminated, truncated, info

    result = evaluate(Counter(), [Asks()], [5])  # actions 0 1 2 0 1 2
    assert result.decision_correct.tolist() == [True, True] and result.aborted.tolist() == [False, True]
    assert result.outcomes.tolist() == [{"coh": 5.0, "choice": 2, "ground_truth": 1}]
    scripted = run_scripted(lambda env, rng: env.t % 2, Asks(), [5])  # actions 0 1 0 1 0 1
    assert scripted.decision_correct.tolist() == [True, False]


def test_an_intervention_sees_the_step_of_the_trial_and_the_episode() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def note(obs: torch.Tensor, state: Any, since: np.ndarray, episode: np.ndarray) -> tuple[torch.Tensor, Any]:
        seen.append((since.tolist(), episode.tolist()))
        return obs, state

    evaluate(Counter(), [Clock(), Clock()], [5, 3, 4], intervene=note)  # episodes of 6, 4 and 5 steps
    steps = {0: [], 1: [], 2: []}
    for since, episodes in seen:
        for step, episode in zip(since, episodes, strict=True):
            steps[episode].append(step)
    assert steps == {0: [0, 1, 2, 0, 1, 2], 1: [0, 1, 2, 0], 2: [0, 1, 2, 0, 1]}


def test_reset_rows_touches_only_its_rows_and_holds_no_graph() -> None:
    net = network(train_m0=True, num_layers=2).requires_grad_(True)
    with torch.no_grad():
        net.core.layers[0].m0.fill_(0.25)
        state = tuple(torch.ones_like(part) for part in net.init_state(3))
    state = reset_rows(net, state, np.array([False, True, False]))
    assert not any(part.requires_grad for part in state)
    assert [float(row.min()) for row in state[0]] == [1.0, 0.25, 1.0]
    assert [float(row.max()) for row in state[1]] == [1.0, 0.0, 1.0]


def test_a_scripted_policy_plays_the_same_seeds() -> None:
    result = run_scripted(lambda env, rng: 1, Clock(), [3, 5])
    assert result.returns.tolist() == [104.0, 216.0]  # 10+..+40 + 4, 10+..+60 + 6
    assert result.performance.tolist() == [1.0, 1.0, 1.0]
    assert result.trial_returns.tolist() == [63.0, 63.0, 153.0]
    assert len(result.decision_correct) == 10 and result.decision_correct.all()


def test_a_recording_holds_the_events_of_every_step() -> None:
    (episode,) = record_episodes(network(), [Clock()], [5])
    assert episode["observations"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert episode["trial"].tolist() == [0, 0, 0, 1, 1, 1]
    assert episode["new_trial"].tolist() == [False, False, True, False, False, True]
    assert episode["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert episode["rewards"].tolist() == [10.0 * (t + 1) + a for t, a in enumerate(episode["actions"])]
    assert (episode["actions"] == episode["q_values"].argmax(1)).all()
    assert episode["state_M"].shape == (6, 5, 2) and episode["hidden"].shape == (6, 5)
    assert (episode["correct"][:3] == float(episode["actions"][2] == 1)).all()


def test_a_recording_names_what_the_learner_puts_out() -> None:
    torch.manual_seed(0)
    config = cfg.make_config("train", {"hidden_dim": 5, "embed_dim": 0, "learner": "a2c"})
    net = registry.make_network(config, registry.Spaces(2, 3)).requires_grad_(False)
    (episode,) = record_episodes(net, [Clock()], [5])
    assert "q_values" not in episode
    np.testing.assert_allclose(episode["action_probabilities"].sum(axis=1), 1.0, rtol=1e-5)
    assert (episode["actions"] == episode["action_probabilities"].argmax(1)).all()


def test_a_condition_that_a_trial_lacks_is_nan_or_empty() -> None:
    (episode,) = record_episodes(network(), [Clock()], [5])
    assert episode["condition_side"].tolist() == ["left", "left", "left", "", "", ""]
    level = episode["condition_level"]
    assert np.isnan(level[:3]).all() and level[3:].tolist() == [7.0, 7.0, 7.0]


def test_the_unfinished_trial_has_no_score() -> None:
    (episode,) = record_episodes(network(), [Clock()], [3])  # 4 steps: the second trial is cut off
    assert np.isnan(episode["correct"]).tolist() == [False, False, False, True]


def test_episodes_with_different_conditions_are_joined() -> None:
    first = {"rewards": np.zeros(2), "condition_a": np.array([1, 2]), "condition_w": np.array(["x", "yy"])}
    second = {"rewards": np.zeros(1), "condition_b": np.array([True]), "condition_w": np.array([3.0])}
    third = {"rewards": np.zeros(1), "condition_w": np.array([np.nan])}
    joined = join_episodes([first, second, third])
    assert joined["condition_w"].tolist() == ["x", "yy", "3.0", ""]
    assert joined["condition_a"][:2].tolist() == [1.0, 2.0] and np.isnan(joined["condition_a"][2:]).all()
    assert np.isnan(joined["condition_b"]).tolist() == [True, True, False, True]


def test_joined_recordings_have_one_entry_per_step() -> None:
    joined = join_episodes(list(record_episodes(network(core="gru"), [Clock()], [3, 4, 5])))
    assert {len(array) for array in joined.values()} == {15}
    assert np.flatnonzero(np.diff(joined["episode"])).tolist() == [3, 8]


def test_a_recording_is_cut_at_max_steps_and_the_precision_is_the_asked_one() -> None:
    (episode,) = record_episodes(network(), [Clock()], [5], max_steps=2, precision="float16")
    assert len(episode["actions"]) == 2 and episode["state_M"].dtype == np.float16


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.5}, {"reset_state_on_trial": True}, {"max_steps": 4}])
@pytest.mark.parametrize("core", ["mpn", "lstm", "mlp"])
def test_episodes_that_are_recorded_side_by_side_are_those_recorded_alone(core: str, options: dict[str, Any]) -> None:
    net, seeds = network(core=core), [3, 4, 5, 7, 9]
    alone = [next(record_episodes(net, [Clock()], [seed], **options)) for seed in seeds]
    together = list(record_episodes(net, [Clock() for _ in range(3)], seeds, **options))
    assert [int(episode.pop("episode")[0]) for episode in together] == [0, 1, 2, 3, 4]
    for one, other in zip(alone, together, strict=True):
        for name, array in other.items():
            assert array.dtype == one[name].dtype
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, one[name], rtol=1e-5, atol=1e-7)  # rounding
            else:
                assert array.tolist() == one[name].tolist()


def test_exploration_while_recording_is_a_function_of_the_seed() -> None:
    def actions() -> list[int]:
        return join_episodes(list(record_episodes(network(), [Clock()], [5, 8, 11], epsilon=1.0)))["actions"].tolist()

    assert actions() == actions()
    assert len(set(actions())) == 3


def test_a_task_without_pictures_is_named() -> None:
    with pytest.raises(ConfigError, match="Clock cannot be rendered"):
        next(record_episodes(network(), [Clock()], [5], frames=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pendulum_is_drawn_after_an_action_of_any_precision(dtype: type) -> None:
    """Gymnasium 0.29 hands the torque, a NumPy number, to pygame, which refuses one of 32 bits."""
    env = make_gymnasium("Pendulum-v1", render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.array([0.5], dtype=dtype))
    assert _frame(env, []).shape == (500, 500, 3)
    env.close()


def test_a_policy_that_knows_the_answers_earns_the_same_in_a_batch_and_alone() -> None:
    env, seeds = (
        cfg.make_config("train", {"env_name": "CueReward-v0", "env_args": {"episode_steps": 24}}).env,
        [3, 4, 5],
    )

    def play(seeds: list[int]) -> list[float]:
        batch = registry.vector_env(env, len(seeds))
        assert batch is not None
        return run_batched(batch.scripted["target_known"], batch, seeds).returns.tolist()

    together = play(seeds)
    assert together == [play([seed])[0] for seed in seeds] and min(together) > 0
