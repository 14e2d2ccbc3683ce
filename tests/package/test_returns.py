"""TD targets, returns, entropies and losses against numbers worked by hand, and returns against their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mpn_rl.returns import (
    discounted_sums,
    lambda_returns,
    n_step_targets,
    next_values,
    sequence_priorities,
    shannon_entropy,
    simpson_entropy,
    td_loss,
)

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


# --- returns ------------------------------------------------------------------------------------------------


def returns(lam: float, cut=(0, 0, 0, 1), values=VALUES, gamma: float = 0.5) -> list[float]:
    row = torch.tensor([REWARDS]), torch.tensor([values]), torch.tensor([cut], dtype=torch.bool)
    return lambda_returns(*row, gamma, lam)[0].tolist()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 200])
def test_discounted_sums_equal_the_recursion(steps: int) -> None:
    x, decay = torch.randn(3, steps).double(), torch.rand(3, steps).double()
    y, rows = torch.zeros(3).double(), []
    for t in reversed(range(steps)):
        y = x[:, t] + decay[:, t] * y
        rows.append(y)
    torch.testing.assert_close(discounted_sums(x, decay), torch.stack(rows[::-1], 1))


def test_monte_carlo_returns_bootstrap_at_the_cut_alone() -> None:
    """4 + 0.5 * 40 = 24, 3 + 12 = 15, 2 + 7.5 = 9.5, 1 + 4.75: the values before the cut do not enter."""
    assert returns(1.0) == [5.75, 9.5, 15.0, 24.0]
    assert returns(1.0, values=[-1.0, 7.0, 99.0, 40.0]) == [5.75, 9.5, 15.0, 24.0]


def test_without_a_value_behind_the_cut_returns_are_discounted_rewards() -> None:
    """4, 3 + 2, 2 + 2.5, 1 + 2.25."""
    assert returns(1.0, values=[0.0] * 4) == [3.25, 4.5, 5.0, 4.0]


def test_lambda_zero_is_one_step_td() -> None:
    """1 + 5, 2 + 10, 3 + 15, 4 + 20."""
    assert returns(0.0) == [6.0, 12.0, 18.0, 24.0]


def test_lambda_half_by_hand() -> None:
    """24; 3 + 0.5 (15 + 12) = 16.5; 2 + 0.5 (10 + 8.25) = 11.125; 1 + 0.5 (5 + 5.5625) = 6.28125."""
    assert returns(0.5) == [6.28125, 11.125, 16.5, 24.0]


def test_nothing_passes_a_cut() -> None:
    """The first two steps are an episode that ended (value 0 behind it): 2, 1 + 0.5 * 2; then 3 + 12 and 24."""
    assert returns(1.0, cut=(0, 1, 0, 1), values=[10.0, 0.0, 30.0, 40.0]) == [2.0, 2.0, 15.0, 24.0]
    first = returns(0.7, cut=(0, 1, 0, 1), values=[10.0, 0.0, 30.0, 40.0])[:2]
    assert first == returns(0.7, cut=(0, 1, 0, 1), values=[10.0, 0.0, -3.0, 8.0])[:2]


def test_gae_is_the_excess_of_the_lambda_return_over_the_value() -> None:
    """A_t = sum_k (gamma lam)^k delta_{t+k} up to the cut, by a slow loop."""
    torch.manual_seed(3)
    gamma, lam, rows, steps = 0.9, 0.8, 4, 17
    reward, final = torch.randn(2, rows, steps).double()
    values = torch.randn(rows, steps + 1).double()
    cut = torch.rand(rows, steps) < 0.2
    cut[:, -1] = True
    following = torch.where(cut, final, values[:, 1:])
    expected = torch.zeros(rows, steps).double()
    for b, t in itertools.product(range(rows), range(steps)):
        for k in range(t, steps):
            delta = reward[b, k] + gamma * following[b, k] - values[b, k]
            expected[b, t] += (gamma * lam) ** (k - t) * delta
            if cut[b, k]:
                break
    torch.testing.assert_close(lambda_returns(reward, following, cut, gamma, lam) - values[:, :-1], expected)


# --- entropies ----------------------------------------------------------------------------------------------


def test_entropies_by_hand() -> None:
    """p = (1/2, 1/4, 1/4): 1.5 bits, and 1 - 1/4 - 2/16; certainty has none; uniform over A: log A, 1 - 1/A."""
    log_probs = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30], [1 / 3, 1 / 3, 1 / 3]]).log()
    assert shannon_entropy(log_probs).tolist() == pytest.approx([1.5 * math.log(2), 0.0, math.log(3)])
    assert simpson_entropy(log_probs).tolist() == pytest.approx([0.625, 0.0, 2 / 3])


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


def test_sequence_priorities_mix_the_largest_and_the_mean_error_of_learned_steps() -> None:
    """Largest 3 and mean 2 of two learned steps; 5 and 5 of one; without learned steps the priority is 0."""
    errors = torch.tensor([[1.0, 3.0, 50.0, 9.0], [5.0, 7.0, 7.0, 7.0], [7.0, 7.0, 7.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert sequence_priorities(errors, mask).tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 5.0, 0.0])
