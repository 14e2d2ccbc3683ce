"""Weights of the evidence of constructed agents whose weights are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recordings import make_recording, make_two_cues

import visualize
from mpn_rl.analysis import evidence_weights, trials
from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.analysis.evidence_weights import IRRELEVANT, RELEVANT
from mpn_rl.analysis.figures import behaviour_figures


def test_the_kernel_has_the_shape_of_the_agents_weights() -> None:
    """Weights 0, 1, 2 of three steps, and half of the first for the other cue: ratios within sampling error."""
    found = evidence_weights.evidence_weights(*make_two_cues([0.0, 1.0, 2.0], irrelevant=0.5, n=20_000))
    weights = found.weights[RELEVANT].value
    assert abs(weights[0]) < 0.01 and weights[2] / weights[1] == pytest.approx(2, rel=0.15)
    np.testing.assert_allclose(found.weights[IRRELEVANT].value / weights[1], 0.5, atol=0.12)
    assert found.total[RELEVANT].value == pytest.approx(weights.sum()) and found.n == 20_000


def test_an_ignored_cue_has_weights_whose_intervals_hold_zero_in_19_of_20_recordings() -> None:
    held = []
    for seed in range(100):
        found = evidence_weights.evidence_weights(*make_two_cues([1.0, 1.0, 1.0], n=300, seed=seed))
        held += ((np.array(found.weights[IRRELEVANT].low) <= 0) & (np.array(found.weights[IRRELEVANT].high) >= 0),)
        held += [np.array([found.total[IRRELEVANT].low <= 0 <= found.total[IRRELEVANT].high])]
    assert 0.90 <= np.mean(np.concatenate(held)) <= 0.99


def test_shares_and_effect_of_strengths_are_those_of_the_choices() -> None:
    activity, aligned, table = make_two_cues([1.0, 1.0, 1.0], n=2000)
    found = evidence_weights.evidence_weights(activity, aligned, table)
    strength = trials.irrelevant_strength(table)
    own = table["choice"][strength.values == 50.0]
    assert found.levels[IRRELEVANT].tolist() == [-50, -15, -5, 5, 15, 50]
    shares, effect = found.shares[IRRELEVANT], found.effect[IRRELEVANT]
    assert shares.value[-1] == pytest.approx(np.mean(own == 2)) and shares.n[-1] == len(own)
    assert effect.low < 0 < effect.high and effect.high - effect.low < 0.2
    both = evidence_weights.evidence_weights(*make_two_cues([1.0, 1.0, 1.0], irrelevant=1.0, n=2000))
    assert both.effect[IRRELEVANT].low > 0.5


def test_robust_regression_agrees_with_its_formula_on_three_points() -> None:
    """y = 0, 1, 3 at x = 0, 1, 2: slope 1.5; HC3 by hand: e = (1/6, -1/3, 1/6), h = (5/6, 1/3, 5/6)."""
    x = np.array([[1.0, 0], [1, 1], [1, 2]])
    (slope,), (half,) = evidence_weights.linear_effects(np.array([0.0, 1, 3]), x, np.array([[0.0, 1]]))
    assert slope == pytest.approx(1.5)
    assert half == pytest.approx(12.706205 * np.sqrt(((1 / 6) / (1 / 6)) ** 2 * 2 / 4), rel=1e-5)


def test_a_task_with_one_cue_has_one_kernel_and_one_without_noise_none() -> None:
    activity = make_recording(episodes=40)
    found = trials.complete_trials(activity)
    table, aligned = trials.trial_table(activity, found), trials.align_periods(activity, found)
    weights = evidence_weights.evidence_weights(activity, aligned, table)
    assert list(weights.weights) == [RELEVANT] and weights.columns.tolist() == [2, 3, 4, 5]
    assert weights.weights[RELEVANT].low.min() > 0  # the observer sums all four steps
    activity["observations"] = np.repeat(
        (table["condition_coh"] * (2 * table["ground_truth"] - 3))[:, None], 27, 1
    ).reshape(-1, 3)
    with pytest.raises(MissingDataError, match="the evidence has no noise"):
        evidence_weights.evidence_weights(activity, aligned, table)
    few = {name: column[:40] for name, column in table.items()}
    with pytest.raises(MissingDataError, match="trials are too few for the weights of 4 steps"):
        evidence_weights.evidence_weights(make_recording(episodes=40), aligned._replace(rows=aligned.rows[:40]), few)


@pytest.mark.parametrize("cues", [1, 2])
def test_the_picture_has_a_line_for_each_cue(cues: int, tmp_path: Path) -> None:
    activity, aligned, table = make_two_cues([1.0, 1.0])
    if cues == 1:
        del table["condition_other_choice"]
    found = evidence_weights.evidence_weights(activity, aligned, table)
    fig = behaviour_figures.evidence_figure(found, aligned.time, title="a task")
    visualize.save_figure(fig, tmp_path / "a.png")
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == [f"{cue} (n = 600 trials)" for cue in (RELEVANT, IRRELEVANT)[:cues]]
