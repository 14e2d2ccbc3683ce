"""Claims about trials side by side: alignment on periods, conditions, evidence and labels."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import PERIODS, make_recording

from mpn_rl.analysis import trials
from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.options import ConfigError


def three_trials() -> dict[str, np.ndarray]:
    """Delays of 1, 3 and 2 steps; the second trial waits a step before it decides, the third is cut off before it."""
    periods = ["fix", "stim", "delay", "go", "fix", "stim", *["delay"] * 3, "go", "go", "fix", "stim", "delay", "delay"]
    n = len(periods)
    return {
        "observations": np.zeros((n, 1), np.float32),
        "actions": np.array([0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        "episode": np.zeros(n, int),
        "trial": np.repeat([0, 1, 2], [4, 7, 4]),
        "new_trial": np.isin(np.arange(n), [3, 10]),
        "ground_truth": np.array([0, 0, 0, 2, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0]),
        "correct": np.array([1.0] * 4 + [0.0] * 7 + [np.nan] * 4),
        "period": np.array(periods),
        "condition_coh": np.repeat([5.0, 10.0, 20.0], [4, 7, 4]),
        "hidden": np.arange(n, dtype=np.float32)[:, None],
        "dt_ms": np.array(50.0),
    }


# --- alignment ----------------------------------------------------------------------------------------------


def test_every_period_starts_in_its_own_column_and_has_its_median_length():
    activity = three_trials()
    aligned = trials.align_periods(activity, trials.split_trials(activity))
    # fix and stim take one step each; the delays last 1, 3 and 2 steps, median 2; go lasts 1, 2 and 0, median 1.
    assert aligned.onsets == {"fix": 0, "stim": 1, "delay": 2, "go": 4}
    assert aligned.rows.tolist() == [[0, 1, 2, -1, 3], [4, 5, 6, 7, 9], [11, 12, 13, 14, -1]]
    assert aligned.time.tolist() == [0, 50, 100, 150, 200] and aligned.unit == "ms"
    assert aligned.ends == {"fix": 0, "stim": 1, "delay": 3, "go": 4}
    assert aligned.marks() == {"fix": 0, "stim": 50, "delay": 100, "go": 200}


def test_a_period_that_comes_again_is_a_period_of_its_own():
    activity = three_trials()
    activity["period"] = np.array(list("abac" + "abaaacc" + "abaa"))
    aligned = trials.align_periods(activity, trials.complete_trials(activity))
    assert list(aligned.onsets) == ["a", "b", "a 2", "c"]


def test_a_task_without_periods_or_clock_is_one_period_counted_in_steps():
    activity = {**three_trials(), "dt_ms": np.array(0.0)}
    del activity["period"]
    aligned = trials.align_periods(activity, trials.split_trials(activity))
    assert aligned.onsets == {"trial": 0} and aligned.unit == "steps" and aligned.time.tolist() == [0, 1, 2, 3]


def test_alignment_on_one_onset_shows_what_came_before_and_after():
    activity = three_trials()
    aligned = trials.align_on(activity, trials.split_trials(activity), "go", before=2, after=2)
    assert aligned.rows.tolist() == [[1, 2, 3, -1], [7, 8, 9, 10], [-1] * 4]
    assert aligned.time.tolist() == [-100, -50, 0, 50]
    with pytest.raises(ConfigError, match="no period 'test'.*fix, stim, delay, go"):
        trials.align_on(activity, trials.split_trials(activity), "test")


def test_taken_values_are_nan_where_a_trial_has_no_step():
    taken = trials.take(np.arange(4).astype(np.float16), np.array([[0, 3], [2, -1]]))
    np.testing.assert_array_equal(taken, [[0, 3], [2, np.nan]])
    assert taken.dtype == np.float32


def test_snapshots_at_period_ends_are_means_over_the_trials_of_a_label():
    activity = three_trials()
    aligned = trials.align_periods(activity, trials.split_trials(activity))
    snapshots = trials.at_period_ends(activity["hidden"], aligned, np.array([1.0, 1.0, 2.5]))
    assert {name: value.tolist() for name, value in snapshots["stim"].items()} == {"1": [3.0], "2.5": [12.0]}
    assert {name: value.tolist() for name, value in snapshots["delay"].items()} == {"1": [7.0], "2.5": [14.0]}
    assert trials.at_period_ends(activity["hidden"], aligned)["fix"]["all trials"].tolist() == [5.0]


def test_no_complete_trial_is_an_error():
    with pytest.raises(MissingDataError, match="no complete trial"):
        trials.align_periods(three_trials(), [])


# --- conditions and evidence --------------------------------------------------------------------------------


def test_the_trial_table_holds_the_decision_and_the_conditions():
    activity = three_trials()
    table = trials.trial_table(activity, trials.split_trials(activity))
    np.testing.assert_array_equal(table["choice"], [2, 1, np.nan])  # the third trial ends before its decision
    assert table["length"].tolist() == [4, 7, 4] and table["aborted"].tolist() == [False, False, True]
    np.testing.assert_array_equal(table["ground_truth"], [2, 2, np.nan])
    np.testing.assert_array_equal(table["correct"], [1, 0, np.nan])
    assert table["decided"].tolist() == [True, True, False]
    np.testing.assert_array_equal(table["reaction"], [0, 50, np.nan])  # the second trial waits one step
    assert table["condition_coh"].tolist() == [5, 10, 20]
    with pytest.raises(MissingDataError, match="no trials that end"):
        trials.trial_table({**activity, "new_trial": np.zeros(15, bool)}, trials.split_trials(activity))


def table_of(truth, **conditions):
    return {
        "ground_truth": np.array(truth, float),
        **{f"condition_{name}": np.array(values) for name, values in conditions.items()},
    }


def test_coherence_takes_its_sign_from_the_right_action():
    strength = trials.signed_strength(table_of([1, 3, 1, 3], coh=[6.4, 6.4, 0.0, 51.2]))
    assert strength.values.tolist() == [-6.4, 6.4, 0, 51.2]
    assert (strength.label, strength.low_action, strength.high_action) == ("coherence (%)", 1, 3)


def test_coherence_is_that_of_the_attended_channel():
    table = table_of([1, 2, 2], coh_1=[5, 15, 50], coh_2=[50, 5, 15], context=[0, 1, 0])
    assert trials.signed_strength(table).values.tolist() == [-5, 5, 50]


def test_a_difference_of_two_stimuli_is_turned_towards_the_higher_action():
    strength = trials.signed_strength(table_of([1, 2, 2], v1=[30, 10, 14], v2=[10, 30, 18]))  # 1 is right where v1 > v2
    assert strength.values.tolist() == [-20, 20, 4] and strength.label == "-(v1-v2)"


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (table_of([1, 2], sample=[0.0, 1.0]), "no coherence"),
        (table_of([1, 2, 3], coh=[1.0, 2, 3]), "3 right actions"),
        (table_of([np.nan, np.nan], coh=[1.0, 2]), "0 right actions"),
    ],
)
def test_missing_evidence_is_a_sentence(table, reason):
    with pytest.raises(MissingDataError, match=f"not available: .*{reason}"):
        trials.signed_strength(table)


def test_accumulated_evidence_follows_the_difference_that_was_shown():
    activity = make_recording()
    found = trials.complete_trials(activity)
    aligned = trials.align_periods(activity, found)
    strength = trials.signed_strength(trials.trial_table(activity, found))
    evidence = trials.accumulated_evidence(activity, aligned, strength.values)
    obs = activity["observations"][aligned.rows].astype(float)
    shown = np.cumsum(obs[..., 2] - obs[..., 1], axis=1)
    assert not evidence[:, :2].any()  # nothing is shown in fixation
    for step in range(2, len(PERIODS)):
        assert np.corrcoef(evidence[:, step], shown[:, step])[0, 1] > 0.999


def test_evidence_is_that_of_the_attended_channel_in_each_context():
    rng = np.random.default_rng(0)
    n = 400
    context, sign = rng.integers(0, 2, n), rng.choice([-1.0, 1.0], n)
    obs = rng.standard_normal((n, 3, 2)) * 0.5
    obs[np.arange(n), :, context] += sign[:, None]
    aligned = trials.Aligned(np.arange(3 * n).reshape(n, 3), np.arange(3.0), "steps", {"trial": 0})
    activity = {"observations": obs.reshape(3 * n, 2)}
    evidence = trials.accumulated_evidence(activity, aligned, sign, context)
    attended = np.cumsum(obs[np.arange(n), :, context], axis=1)
    for kind in (0, 1):
        own = context == kind
        assert np.corrcoef(evidence[own, -1], attended[own, -1])[0, 1] > 0.99


def test_labels_are_what_varies_and_the_rest_is_explained():
    activity = make_recording()
    found = trials.complete_trials(activity)
    aligned = trials.align_periods(activity, found)
    labels, missing = trials.label_sets(activity, aligned, trials.trial_table(activity, found))
    assert {name: values.shape for name, values in labels.items()} == {
        "stimulus": (200,), "evidence": (200, 9), "choice": (200,), "choice given stimulus": (200,),
        "stimulus given choice": (200,),
    }  # fmt: skip
    assert np.isnan(labels["evidence"][:, :2]).all() and set(labels["evidence"][:, -1]) == {-1, 1}
    assert missing == {"context": "not available: the task has no condition `context`"}


@pytest.mark.parametrize(("values", "labels"), [(8, range(8)), (9, (0.5, 2.5, 4.5, 7.0))])  # groups 01, 23, 45, 678
def test_up_to_eight_values_are_labels_as_they_are(values, labels):
    sample = np.repeat(np.arange(200) % values, 9)
    activity = make_recording(condition_stim_period=np.full(1800, 500), condition_sample_theta=sample)
    del activity["condition_coh"]
    found = trials.complete_trials(activity)
    sets, _ = trials.label_sets(activity, trials.align_periods(activity, found), trials.trial_table(activity, found))
    assert np.unique(sets["stimulus"]).tolist() == list(labels)


def test_a_remembered_stimulus_is_preferred_and_many_values_are_grouped():
    sample, held = np.repeat(np.arange(200) % 20, 9), np.full(1800, 500)
    activity = make_recording(condition_stim_period=held, condition_sample_theta=sample)
    del activity["condition_coh"]
    found = trials.complete_trials(activity)
    table = trials.trial_table(activity, found)
    table["choice"][:] = 1
    labels, missing = trials.label_sets(activity, trials.align_periods(activity, found), table)
    assert np.unique(labels["stimulus"]).tolist() == [2, 7, 12, 17]  # means of 0-4, 5-9, 10-14, 15-19
    assert missing["choice"] == "not available: the choice is the same in all trials"
    assert "coherence" in missing["evidence"]
