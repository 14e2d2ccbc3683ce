"""What every learner shares: unrolling in chunks."""

from __future__ import annotations

import torch

from mpn_rl.learners.base import truncated_unroll


def running_sum(obs, state, reset):
    """h_t = x_t + h_{t-1}, from 0 where reset."""
    hs = []
    for t in range(obs.shape[1]):
        state = obs[:, t] + state.masked_fill(reset[:, t, None], 0.0)
        hs.append(state)
    return torch.stack(hs, 1), state


def test_chunks_carry_the_state_on_and_stop_its_gradient() -> None:
    obs = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]], requires_grad=True)
    reset = torch.tensor([[False, False, False, True, False]])
    pieces = list(truncated_unroll(running_sum, obs, torch.zeros(1, 1), reset, 2))
    assert [part for part, _ in pieces] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert torch.cat([h for _, (h,) in pieces], 1).flatten().tolist() == [1.0, 3.0, 7.0, 8.0, 24.0]
    pieces[1][1][0][0, 0].backward()  # h_2 = x_0 + x_1 + x_2; x_0 and x_1 lie in the chunk before
    assert obs.grad.flatten().tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
