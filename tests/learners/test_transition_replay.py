"""Single transitions: what is stored is what is drawn, n-step sums by a slow loop, the oldest share, forgetting."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mpn_rl.contracts import Steps
from mpn_rl.learners.transition_replay import TransitionReplay, transition_batch
from mpn_rl.storage.state_trees import StateError


def steps_of(t: int, lanes: int = 1, terminated: object = False, truncated: object = False) -> Steps:
    """Step t of every lane: obs (lane, t), action t / 100, reward 10^lane t, next_obs (lane, t + 1)."""
    lane = np.arange(lanes, dtype=np.float32)
    now, after = np.full(lanes, t, np.float32), np.full(lanes, t + 1, np.float32)
    return Steps(
        obs=np.stack([lane, now], 1),
        action=now[:, None] / 100,
        reward=10**lane * t,
        terminated=np.broadcast_to(terminated, lanes).astype(bool),
        truncated=np.broadcast_to(truncated, lanes).astype(bool),
        next_obs=np.stack([lane, after], 1),
        new_trial=np.zeros(lanes, bool),
    )


def filled(count: int, capacity: int = 100, lanes: int = 1, ends: dict | None = None) -> TransitionReplay:
    """`count` steps of every lane; `ends` maps a step to the fields that end it."""
    replay = TransitionReplay(lanes, 2, 1, capacity)
    for t in range(count):
        replay.add(steps_of(t, lanes, **(ends or {}).get(t, {})))
    return replay


def test_a_transition_comes_back_as_it_was() -> None:
    replay = filled(30, lanes=3, ends={7: {"terminated": [False, True, False]}, 9: {"truncated": True}})
    batch = replay.sample(500, np.random.default_rng(0))
    assert batch.obs.shape == (500, 2, 2) and batch.action.shape == (500, 1, 1) and batch.reward.shape == (500, 1)
    lane, t = batch.obs[:, 0, 0], batch.obs[:, 0, 1]
    assert torch.equal(batch.obs[:, 1, 0], lane) and torch.equal(batch.obs[:, 1, 1], t + 1)
    torch.testing.assert_close(batch.action[:, 0, 0], t / 100)
    torch.testing.assert_close(batch.reward[:, 0], 10**lane * t)
    assert torch.equal(batch.terminated[:, 0] == 1.0, (lane == 1) & (t == 7))  # a time limit terminates nothing
    assert set(zip(lane.tolist(), t.tolist(), strict=True)) == {(n, k) for n in range(3) for k in range(30)}
    assert batch.mask.min() == 1.0 and batch.weight.min() == 1.0 and not batch.reset.any() and batch.burn_in == 0


@pytest.mark.parametrize(("capacity", "lanes"), [(10, 1), (10, 2), (10, 3), (7, 3)])
def test_the_oldest_go_first_and_no_more_than_the_capacity_stay(capacity: int, lanes: int) -> None:
    replay = TransitionReplay(lanes, 2, 1, capacity)
    for t in range(25):
        replay.add(steps_of(t, lanes))
        assert len(replay) == min(capacity, lanes * (t + 1))
    order = [(t, lane) for t in range(25) for lane in range(lanes)]
    kept = replay.oldest(1000).obs[:, 0].tolist()
    assert [(int(t), int(lane)) for lane, t in kept] == order[-capacity:]


def test_drawing_is_uniform_and_a_function_of_the_generator() -> None:
    replay = filled(20)
    drawn = replay.sample(20_000, np.random.default_rng(1)).obs[:, 0, 1].long()
    counts = torch.bincount(drawn, minlength=20)
    assert counts.min() > 850 and counts.max() < 1150  # 1,000 expected, standard deviation 31
    again = replay.sample(20_000, np.random.default_rng(1)).obs[:, 0, 1].long()
    assert torch.equal(drawn, again)


def test_the_oldest_share_is_drawn_from_the_oldest() -> None:
    replay = filled(250, capacity=100)  # holds steps 150 to 249
    drawn = replay.sample(2000, np.random.default_rng(0), oldest=0.3).obs[:, 0, 1]
    assert set(drawn.tolist()) == set(range(150, 180))
    assert replay.sample(5, np.random.default_rng(0), oldest=1e-9).obs[:, 0, 1].tolist() == [150] * 5


def test_what_is_dropped_is_not_drawn_and_the_room_fills_again() -> None:
    replay = filled(100, capacity=100)
    replay.drop_oldest(40)
    assert len(replay) == 60
    assert replay.sample(3000, np.random.default_rng(0)).obs[:, 0, 1].min() == 40
    for t in range(100, 140):
        replay.add(steps_of(t))
    assert len(replay) == 100
    replay.drop_oldest(1000)
    assert len(replay) == 0
    with pytest.raises(ValueError, match="holds no transition"):
        replay.sample(1, np.random.default_rng(0))


def slow_n_step(lane: int, t: int, count: int, n_step: int, gamma: float, ends: dict) -> tuple[float, float, int]:
    """(sum of rewards, weight of the bootstrap value, step that is bootstrapped from) of step t, by its definition."""
    total, weight = 0.0, 1.0
    for k in range(n_step):
        total += weight * 10**lane * (t + k)
        weight *= gamma
        end = ends.get(t + k, {})
        if end.get("terminated", [False] * 9)[lane]:
            return total, 0.0, t + k + 1
        if end.get("truncated", [False] * 9)[lane] or t + k == count - 1:
            return total, weight, t + k + 1
    return total, weight, t + n_step


@pytest.mark.parametrize(("lanes", "capacity"), [(1, 17), (2, 34), (3, 40), (2, 1000)])
@pytest.mark.parametrize("n_step", [2, 3, 5])
def test_n_step_returns_equal_their_definition(lanes: int, capacity: int, n_step: int) -> None:
    """Across the ring's seam, over termination, a time limit and the newest step, for every stored transition."""
    gamma, count = 0.5, 50
    ends = {37: {"terminated": [True, False, True]}, 43: {"truncated": [True, True, False]}}
    replay = filled(count, capacity, lanes, {t: {k: v[:lanes] for k, v in end.items()} for t, end in ends.items()})
    batch = replay.sample(4000, np.random.default_rng(0), n_step, gamma)
    seen = set()
    for row in range(4000):
        lane, t = (int(v) for v in batch.obs[row, 0])
        total, weight, last = slow_n_step(lane, t, count, n_step, gamma, ends)
        assert float(batch.reward[row, 0]) == pytest.approx(total)
        assert gamma * (1.0 - float(batch.terminated[row, 0])) == pytest.approx(weight)
        assert batch.obs[row, 1].tolist() == [lane, last]
        seen.add((lane, t))
    assert len(seen) == len(replay)


def test_one_step_returns_are_the_transitions_themselves() -> None:
    replay = filled(20, ends={5: {"terminated": True}})
    one, plain = (replay.sample(300, np.random.default_rng(3), *more) for more in ((1, 0.9), ()))
    assert torch.equal(one.reward, plain.reward) and torch.equal(one.terminated, plain.terminated)


def test_a_batch_does_not_change_when_the_memory_does() -> None:
    replay = filled(10, capacity=10)
    batch = replay.sample(50, np.random.default_rng(0))
    before = batch.obs.clone()
    for t in range(10, 20):
        replay.add(steps_of(t))
    replay.sample(50, np.random.default_rng(1))
    assert torch.equal(batch.obs, before)


@pytest.mark.parametrize("count", [0, 6, 10, 23])
def test_a_loaded_memory_goes_on_as_the_saved_one(count: int) -> None:
    saved, loaded = (TransitionReplay(2, 2, 1, 11) for _ in range(2))
    for t in range(count):
        saved.add(steps_of(t, 2))
    saved.drop_oldest(1)
    loaded.load_state_dict(
        {name: np.copy(part) if name == "table" else part for name, part in saved.state_dict().items()}
    )
    for t in range(count, count + 9):
        saved.add(steps_of(t, 2))
        loaded.add(steps_of(t, 2))
        rngs = np.random.default_rng(t), np.random.default_rng(t)
        for ours, theirs in zip(saved.sample(40, rngs[0], 3, 0.9), loaded.sample(40, rngs[1], 3, 0.9), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_only_what_was_written_is_saved() -> None:
    replay = TransitionReplay(2, 3, 1, 1_000_000)
    row = 4 * (3 + 3 + 1 + 3)
    assert replay.nbytes == 1_000_000 * row
    for t in range(4):
        replay.add(steps_of(t, 2)._replace(obs=np.zeros((2, 3)), next_obs=np.zeros((2, 3))))
    assert replay.state_dict()["table"].nbytes == 8 * row


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
@pytest.mark.parametrize("column", [-1, -2])  # whether the task ended, and whether the episode did
def test_an_end_that_is_neither_true_nor_false_is_refused(column: int, value: float) -> None:
    saved = copy.deepcopy(filled(5).state_dict())
    for allowed in (0.0, 1.0):
        saved["table"][3, column] = allowed
        filled(0).load_state_dict(saved)
    saved["table"][3, column] = value
    with pytest.raises(StateError, match="^replay.table must"):
        filled(0).load_state_dict(saved)


def test_transitions_without_an_index_are_numbered() -> None:
    batch = transition_batch(torch.zeros(4, 2, 3), torch.zeros(4, 1, 1), torch.zeros(4, 1), torch.zeros(4, 1))
    assert batch.places.tolist() == [0, 1, 2, 3] and batch.state0.shape == (4, 0)


def test_n_step_returns_do_not_cross_episodes_that_are_ended_from_outside() -> None:
    memory = filled(3, lanes=2)
    memory.end_episodes()
    memory.add(steps_of(3, lanes=2))
    batch = memory.sample(200, np.random.default_rng(0), n_step=2, gamma=1.0)
    alone = memory.sample(200, np.random.default_rng(0), n_step=1)
    last = (batch.places // 2) == 2  # the third step of each lane
    assert last.any()
    assert batch.reward[last].tolist() == alone.reward[last].tolist() and not batch.terminated[last].any()
    assert batch.reward[~last].tolist() != alone.reward[~last].tolist()
