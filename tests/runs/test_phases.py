"""The scores of phases against numbers worked by hand."""

from __future__ import annotations

import pytest

from mpn_rl.runs.phases import phase_scores


def rows(*returns: float) -> list[dict[str, object]]:
    """Evaluations every 10 steps, two in each phase."""
    kinds = [{"kind": "episode", "step": 5, "return_mean": 99.0}]
    return kinds + [
        {"kind": "eval", "step": 10 * (place + 1), "phase": place // 2, "return_mean": value}
        for place, value in enumerate(returns)
    ]


def test_each_phase_has_the_area_and_the_end_of_its_own_curve() -> None:
    first, second, third = phase_scores(rows(-100.0, 0.0, -50.0, -10.0, -60.0, -40.0))
    assert (first.area, first.last, first.steps_to_reach) == (-50.0, 0.0, 20)
    assert (second.area, second.last, second.steps_to_reach) == (-30.0, -10.0, 20)  # 90 % of the way is -10
    assert (third.area, third.last, third.steps_to_reach) == (-50.0, -40.0, None)
    assert [score.phase for score in (first, second, third)] == [0, 1, 2]


def test_a_phase_of_one_evaluation_and_a_run_without_phases() -> None:
    (only,) = phase_scores(rows(3.0)[:2])
    assert (only.area, only.last) == pytest.approx((3.0, 3.0))
    assert phase_scores([{"kind": "eval", "step": 10, "return_mean": 1.0}]) == []
