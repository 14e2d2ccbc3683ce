"""TD targets and losses against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from returns import n_step_targets, next_values, td_loss

# One episode of four steps; V(s_{t+1}) differs at every step, so that a target one step late shows.
REWARDS = [1.0, 2.0, 3.0, 4.0]
VALUES = [10.0, 20.0, 30.0, 40.0]


def targets(n_step: int, terminated=(0, 0, 0, 0), valid=(1, 1, 1, 1), gamma: float = 0.5) -> list[float]:
    rows = [torch.tensor([row], dtype=torch.float32) for row in (VALUES, REWARDS, terminated, valid)]
    return n_step_targets(*rows, gamma, n_step)[0].tolist()


# --- the next state's value ----------------------------------------------------------------------------------


def test_dqn_takes_the_largest_target_value() -> None:
    q_target = torch.tensor([[[1.0, 5.0, 2.0], [-3.0, -1.0, -2.0]]])
    assert next_values(q_target).tolist() == [[5.0, -1.0]]


def test_double_dqn_takes_the_target_value_of_the_online_choice() -> None:
    q_target = torch.tensor([[[1.0, 5.0, 2.0], [-3.0, -1.0, -2.0]]])
    q_online = torch.tensor([[[0.0, 1.0, 9.0], [7.0, 6.0, 5.0]]])  # chooses 2, then 0
    assert next_values(q_target, q_online).tolist() == [[2.0, -3.0]]


# --- targets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_step", "expected"),
    [
        # r_t + 0.5 V_t: 1 + 5, 2 + 10, 3 + 15, 4 + 20
        (1, [6.0, 12.0, 18.0, 24.0]),
        # r_t + 0.5 r_{t+1} + 0.25 V_{t+1}: 1 + 1 + 5, 2 + 1.5 + 7.5, 3 + 2 + 10; the last has only itself
        (2, [7.0, 11.0, 15.0, 24.0]),
        # 1 + 1 + 0.75 + 0.125 * 30, 2 + 1.5 + 1 + 0.125 * 40, then as with two steps and one
        (3, [6.5, 9.5, 15.0, 24.0]),
        # 1 + 1 + 0.75 + 0.5 + 0.0625 * 40; longer than the recording changes nothing more
        (4, [5.75, 9.5, 15.0, 24.0]),
        (9, [5.75, 9.5, 15.0, 24.0]),
    ],
)
def test_n_step_targets_by_hand(n_step: int, expected: list[float]) -> None:
    assert targets(n_step) == expected


@pytest.mark.parametrize(
    ("n_step", "expected"),
    [
        (1, [6.0, 12.0, 18.0, 4.0]),
        (2, [7.0, 11.0, 5.0, 4.0]),  # 3 + 0.5 * 4 and no value behind the end
        (3, [6.5, 4.5, 5.0, 4.0]),  # 2 + 1.5 + 1
        (4, [3.25, 4.5, 5.0, 4.0]),  # 1 + 1 + 0.75 + 0.5
    ],
)
def test_termination_stops_bootstrapping(n_step: int, expected: list[float]) -> None:
    assert targets(n_step, terminated=(0, 0, 0, 1)) == expected


def test_time_limit_still_bootstraps() -> None:
    """A truncated step has terminated = 0: its target is that of a step in mid-episode."""
    assert targets(1, terminated=(0, 0, 0, 0))[-1] == 4.0 + 0.5 * 40.0
    assert targets(3, terminated=(0, 0, 0, 0))[-1] == 4.0 + 0.5 * 40.0


@pytest.mark.parametrize("n_step", [2, 3, 5])
def test_steps_that_were_not_recorded_do_not_enter(n_step: int) -> None:
    """The recording ends after two steps: the second bootstraps from its own next state, the first through it."""
    assert targets(n_step, valid=(1, 1, 0, 0))[:2] == [1.0 + 0.5 * 2.0 + 0.25 * 20.0, 2.0 + 0.5 * 20.0]


def test_front_padding_changes_no_target() -> None:
    assert targets(3, valid=(0, 1, 1, 1))[1:] == targets(3)[1:]


def test_gamma_zero_leaves_the_reward_alone() -> None:
    assert targets(1, gamma=0.0) == targets(3, gamma=0.0) == REWARDS


def test_rows_have_their_own_ends() -> None:
    rows = {
        "bootstrap": torch.tensor([VALUES, VALUES]),
        "rewards": torch.tensor([REWARDS, REWARDS]),
        "terminated": torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        "valid": torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]),
    }
    first, second = n_step_targets(**rows, gamma=0.5, n_step=2)
    assert first[:2].tolist() == [2.0, 2.0]  # 1 + 0.5 * 2, and 2 at the end
    assert second.tolist() == [7.0, 11.0, 15.0, 24.0]


# --- losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # errors 0.5, -3, 2, weighted 1, 2, 0; Huber: 0.5 e^2 below 1, |e| - 0.5 above
        ("huber", 0.125 + 2 * 2.5),
        ("mse", 0.125 + 2 * 4.5),
    ],
)
def test_loss_by_hand(kind: str, expected: float) -> None:
    q = torch.tensor([[1.5, 1.0, 5.0]])
    target = torch.tensor([[1.0, 4.0, 3.0]])
    weight = torch.tensor([[1.0, 2.0, 0.0]])
    assert float(td_loss(q, target, weight, kind)) == pytest.approx(expected)


def test_huber_gradient_is_bounded() -> None:
    q = torch.tensor([[100.0, -100.0, 0.25]], requires_grad=True)
    td_loss(q, torch.zeros(1, 3), torch.ones(1, 3)).backward()
    assert q.grad is not None and q.grad.tolist() == [[1.0, -1.0, 0.25]]


def test_weight_zero_gives_no_gradient() -> None:
    q = torch.ones(1, 3, requires_grad=True)
    td_loss(q, torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])).backward()
    assert q.grad is not None and q.grad.tolist() == [[0.0, 1.0, 0.0]]
