"""The rollout buffer: what was acted upon comes out once, in order, with its resets, ends and first state."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from mpn_rl.contracts import Steps
from mpn_rl.learners.rollout_buffer import Rollout, RolloutBuffer

LANES, LENGTH = 3, 4


def buffer(**options) -> RolloutBuffer:
    return RolloutBuffer(LANES, 2, LENGTH, [(5,), (2, 2)], **options)


def step(t: int, terminated=(), truncated=(), new_trial=()) -> Steps:
    """The t-th step: obs[lane] = (lane, t), next_obs = (lane, t + 0.5), action t % 2, reward 10 lane + t."""
    lane = np.arange(LANES)
    flags = [np.isin(lane, lanes) for lanes in (terminated, truncated, new_trial)]
    obs = np.stack([lane, np.full(LANES, t)], 1).astype(np.float32)
    reward = (10 * lane + t).astype(np.float32)
    return Steps(obs, np.full(LANES, t % 2), reward, flags[0], flags[1], obs + np.float32([0, 0.5]), flags[2])


def state(t: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((LANES, 5), float(t)), torch.full((LANES, 2, 2), -float(t))


def rollout(memory: RolloutBuffer, start: int = 0, ends: dict[int, dict] | None = None, **values) -> Rollout:
    """`LENGTH` steps from `start` on; ends: which lanes end or change trial at a step."""
    for t in range(start, start + LENGTH):
        memory.add(step(t, **(ends or {}).get(t, {})), state(t), values.get(f"at_{t}"))
    return memory.take()


def test_steps_come_out_in_order_with_the_last_observation_behind_them() -> None:
    batch = rollout(buffer()).batch
    assert batch.obs.shape == (LANES, LENGTH + 1, 2) and batch.obs.dtype == torch.float32
    assert batch.obs[1, :, 1].tolist() == [0, 1, 2, 3, 3.5] and batch.obs[:, 2, 0].tolist() == [0, 1, 2]
    assert batch.action.tolist() == [[0, 1, 0, 1]] * LANES
    assert batch.reward[2].tolist() == [20, 21, 22, 23]
    assert batch.mask.all() and batch.weight.tolist() == [1, 1, 1] and batch.burn_in == 0


def test_the_first_state_is_the_one_before_the_first_step_and_a_copy() -> None:
    memory, first = buffer(), state(7)
    memory.add(step(0), first)
    first[0].fill_(-1.0)  # acting writes states in place
    for t in range(1, LENGTH):
        memory.add(step(t), state(t))
    one, two = memory.take().batch.state0
    assert one.tolist() == torch.full((LANES, 5), 7.0).tolist() and two.shape == (LANES, 2, 2)
    assert RolloutBuffer(LANES, 2, 1, [(5,)]).state0[0].shape == (LANES, 5)


def test_resets_open_every_episode_and_run_on_over_rollouts() -> None:
    """All states start reset; lane 0 ends at step 1 and lane 2 at step 3, so the next rollout starts with its reset."""
    memory = buffer()
    first = rollout(memory, 0, {1: {"terminated": [0]}, 3: {"truncated": [2]}})
    assert first.batch.reset.int().tolist() == [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    second = rollout(memory, 4)
    assert second.batch.reset.int().tolist() == [[0] * 5, [0] * 5, [1, 0, 0, 0, 0]]


def test_ends_tell_termination_from_time_limits() -> None:
    got = rollout(
        buffer(), 0, {1: {"terminated": [0]}, 2: {"truncated": [1]}, 3: {"terminated": [2], "truncated": [2]}}
    )
    assert got.ended.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert got.batch.terminated.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_the_last_observation_is_the_true_one_even_where_the_episode_ended() -> None:
    got = rollout(buffer(), 0, {3: {"truncated": [0, 1, 2]}})
    assert got.batch.obs[:, -1, 1].tolist() == [3.5] * 3 and not got.batch.reset[:, -1].any()


def test_final_values_are_kept_where_they_were_given() -> None:
    memory, nan = buffer(), np.nan
    got = rollout(memory, 0, {1: {"truncated": [1]}}, at_1=np.array([nan, 2.5, nan], np.float32))
    assert got.final_value.tolist() == [[0] * 4, [0, 2.5, 0, 0], [0] * 4]
    assert not rollout(memory, 4).final_value.any()  # nothing of the rollout before


def test_trials_reset_only_with_the_option() -> None:
    ends = {0: {"new_trial": [0]}, 1: {"new_trial": [1], "truncated": [1]}, 3: {"new_trial": [2]}}
    assert rollout(buffer(), 0, ends).batch.reset.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    memory = buffer(reset_state_on_trial=True)
    assert rollout(memory, 0, ends).batch.reset.int().tolist() == [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 1]]
    assert rollout(memory, 4).batch.reset[:, 0].tolist() == [False, False, True]


def test_a_trial_ends_no_episode() -> None:
    got = rollout(buffer(reset_state_on_trial=True), 0, {1: {"new_trial": [0, 1, 2]}})
    assert not got.ended.any()


def test_a_rollout_is_taken_once_and_whole() -> None:
    memory = buffer()
    assert len(memory) == 0 and not memory.full
    for t in range(LENGTH):
        with pytest.raises(ValueError, match=f"{t} of 4"):
            memory.take()
        memory.add(step(t), state(t))
    assert len(memory) == LENGTH and memory.full
    with pytest.raises(ValueError, match="take it first"):
        memory.add(step(4), state(4))
    kept = memory.take()
    assert len(memory) == 0
    rollout(memory, 10)
    assert kept.batch.obs[0, 0, 1] == 0.0 and kept.batch.state0[0][0, 0] == 0.0  # copies


def test_nbytes_is_the_size_of_what_is_allocated() -> None:
    """Per lane: 5 x 2 observations, 4 x (reward, terminated, final value), 9 states in 4 bytes; 4 actions in 8;
    5 resets, 4 ends and 1 flag in 1."""
    assert buffer().nbytes == LANES * (4 * (10 + 12 + 9) + 8 * 4 + 10)


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_saved_in_the_middle_of_a_rollout_it_goes_on_bit_for_bit(done: int) -> None:
    ends = {1: {"truncated": [1]}, 2: {"new_trial": [0, 2]}, 3: {"terminated": [2]}}
    value = np.array([np.nan, 0.25, np.nan], np.float32)
    one, other = buffer(reset_state_on_trial=True), buffer(reset_state_on_trial=True)
    rollout(other, 50)  # leftovers
    for t in range(done):
        one.add(step(t, **ends.get(t, {})), state(t), value if t == 1 else None)
    file = io.BytesIO()
    saved = one.state_dict()
    arrays = {name: torch.from_numpy(array) for name, array in saved["arrays"].items()}
    torch.save({"arrays": arrays, "taken": saved["taken"]}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other.load_state_dict({**loaded, "arrays": {name: part.numpy() for name, part in loaded["arrays"].items()}})
    for memory in (one, other):
        for t in range(done, LENGTH):
            memory.add(step(t, **ends.get(t, {})), state(t), value if t == 1 else None)
    for a, b in zip(flat(one.take()), flat(other.take()), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(flat(rollout(one, 4)), flat(rollout(other, 4)), strict=True):
        assert torch.equal(a, b)


def flat(got: Rollout) -> list[torch.Tensor]:
    parts = [part for part in got.batch if isinstance(part, torch.Tensor)]
    return [*parts, *got.batch.state0, got.ended, got.final_value]


def test_it_moves_to_a_device_whole() -> None:
    moved = rollout(buffer()).to("cpu")
    assert isinstance(moved, Rollout) and all(part.device.type == "cpu" for part in flat(moved))


def test_ended_episodes_start_the_rollout_again() -> None:
    memory = buffer()
    memory.add(step(0), state(0))
    memory.end_episodes()
    batch = rollout(memory, start=5).batch
    assert batch.obs[0, :4, 1].tolist() == [5, 6, 7, 8] and batch.reset[:, 0].all() and not batch.reset[:, 1:].any()
