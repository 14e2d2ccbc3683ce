"""Claims about decoding: it is a ridge classifier on held-out trials, and chance looks like chance."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import make_recording
from sklearn.linear_model import RidgeClassifier

from mpn_rl.analysis import decoding, trials
from mpn_rl.analysis.confidence_intervals import MissingDataError


def held_out_predictions(x, y, folds, penalty):
    """The slow way: a RidgeClassifier per fold on all features."""
    predicted = np.empty_like(y)
    for fold in np.unique(folds):
        train = folds != fold
        centred = x[train] - x[train].mean(axis=0)
        alpha = penalty * (centred**2).sum() / train.sum()
        predicted[~train] = RidgeClassifier(alpha=alpha).fit(x[train], y[train]).predict(x[~train])
    return predicted


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("features", [7, 300])
def test_accuracies_are_those_of_a_ridge_classifier(classes, features):
    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, 90) * 2 + 1
    x = rng.standard_normal((90, features)) + rng.standard_normal((2 * classes, features))[y] / features**0.5
    folds = decoding.make_folds(np.arange(90), 5)
    expected = held_out_predictions(x, y, folds, 0.1) == y
    found = decoding.decode(x, np.arange(90)[:, None], {"y": y}, folds, shuffles=3, penalty=0.1)["y"]
    assert found.accuracy[0] == pytest.approx(expected.mean())
    assert 0.35 < found.accuracy[0] < 1


def test_held_out_scores_are_those_of_ridge_regression_with_an_intercept():
    rng = np.random.default_rng(0)
    x, y, folds = rng.standard_normal((40, 5)) + 4, rng.choice([-1.0, 1.0], 40), np.arange(40) % 4
    scores = decoding.held_out_operator(decoding.inner_products(x), folds, 0.05) @ y
    for fold in range(4):
        train, test = folds != fold, folds == fold
        centred = x[train] - x[train].mean(axis=0)
        ridge = 0.05 * (centred**2).sum() / train.sum()
        weights = np.linalg.solve(centred.T @ centred + ridge * np.eye(5), centred.T @ (y[train] - y[train].mean()))
        np.testing.assert_allclose(scores[test], (x[test] - x[train].mean(axis=0)) @ weights + y[train].mean())


def test_a_linear_code_is_read_without_error_and_its_shuffles_are_chance():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([-1.0, 1.0], 100))
    x = np.outer(y, [1.0, 2.0, 0.0]) + 0.1 * rng.standard_normal((200, 3))
    found = decoding.decode(x, np.arange(200)[:, None], {"y": y}, np.arange(200) % 5)["y"]
    assert found.accuracy[0] == 1 and found.low[0] > 0.97
    assert abs(found.shuffled.mean() - 0.5) < 0.02 and found.band[0, 0] > 0.38 and found.band[1, 0] < 0.62


def test_the_band_of_shuffles_has_the_width_of_coin_tosses():
    rng = np.random.default_rng(1)
    y, x = rng.integers(0, 2, 400), rng.standard_normal((400, 6))
    found = decoding.decode(x, np.arange(400)[:, None], {"y": y}, np.arange(400) % 5, shuffles=400)["y"]
    half = 1.96 * np.sqrt(0.25 / 400)
    np.testing.assert_allclose(found.band[:, 0], [0.5 - half, 0.5 + half], atol=0.025)


def test_a_state_that_knows_nothing_stays_below_the_threshold_for_any_step():
    rng = np.random.default_rng(2)
    above = 0
    for _ in range(40):
        y, x = rng.integers(0, 2, 60), rng.standard_normal((60 * 8, 3))
        rows = np.arange(60 * 8).reshape(60, 8)
        found = decoding.decode(x, rows, {"y": y}, np.arange(60) % 5, shuffles=60, seed=int(rng.integers(1000)))["y"]
        above += bool((found.accuracy > found.anywhere).any())
    assert above <= 6  # 5 % of 40, and at most 6 with probability 0.99


def test_evidence_is_read_from_m_throughout_and_from_h_only_while_it_is_shown():
    activity = make_recording(episodes=30)
    found = trials.complete_trials(activity)
    aligned = trials.align_periods(activity, found)
    table = trials.trial_table(activity, found)
    labels, _ = trials.label_sets(activity, aligned, table)
    states = {"h": activity["hidden"], "M": activity["state_M"]}
    result = decoding.decode_states(states, aligned.rows, labels, table["episode"], shuffles=50)
    decision, stimulus = aligned.onsets["decision"], aligned.onsets["stimulus"]
    assert result["M"]["evidence"].accuracy[decision] > 0.9
    assert result["M"]["choice"].accuracy[decision] > 0.9
    assert result["h"]["evidence"].accuracy[stimulus] > 0.9
    assert result["h"]["evidence"].accuracy[decision] < result["h"]["evidence"].anywhere
    assert np.isnan(result["M"]["evidence"].accuracy[0]) and result["M"]["evidence"].n[0] == 0
    assert result["M"]["choice"].accuracy[0] < result["M"]["choice"].anywhere


def test_a_constant_state_gives_the_larger_class_and_no_warning():
    y = np.repeat([0, 1], [30, 60])
    folds = np.tile(np.arange(5), 18)
    found = decoding.decode(np.zeros((90, 4), np.float16), np.arange(90)[:, None], {"y": y}, folds, shuffles=20)["y"]
    assert found.accuracy[0] == pytest.approx(60 / 90)
    assert found.band[0, 0] <= found.accuracy[0] <= found.band[1, 0]


def test_trials_of_an_episode_never_train_what_is_tested_on_it():
    groups = np.repeat(np.arange(13), np.arange(1, 14))
    folds = decoding.make_folds(groups, 5, seed=3)
    for group in range(13):
        assert len(set(folds[groups == group])) == 1
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 5
    with pytest.raises(MissingDataError, match="at least 5 episodes.*has 2"):
        decoding.make_folds(np.array([0, 0, 1, 1]))


def test_unknown_labels_rare_classes_and_absent_steps_are_left_out():
    rng = np.random.default_rng(0)
    y = rng.choice([0.0, 1.0], 100)
    y[:10], y[10:13] = np.nan, 7.0
    rows = np.arange(200).reshape(100, 2)
    rows[50:, 1] = -1
    x = rng.standard_normal((200, 3))
    found = decoding.decode(x, rows, {"y": y, "one": np.ones(100)}, np.arange(100) % 5, shuffles=5)
    assert list(found) == ["y"] and found["y"].classes.tolist() == [0, 1] and found["y"].n.tolist() == [87, 37]
    with pytest.raises(MissingDataError, match="no label has two classes"):
        decoding.decode(x, rows, {"one": np.ones(100)}, np.arange(100) % 5)


def test_text_labels_are_classes_too():
    y = np.array(["left", "right", ""])[np.arange(60) % 3]
    x = np.where(y == "left", 1.0, -1.0)[:, None] + np.zeros((60, 2))
    found = decoding.decode(x, np.arange(60)[:, None], {"side": y}, np.arange(60) // 3 % 5, shuffles=5)["side"]
    assert found.accuracy[0] == 1 and found.n[0] == 40


def test_labels_share_one_factorisation_and_do_not_change_one_another():
    rng = np.random.default_rng(0)
    x, folds = rng.standard_normal((60, 4)), np.arange(60) % 5
    labels = {name: rng.integers(0, 2, 60) for name in "ab"}
    both = decoding.decode(x, np.arange(60)[:, None], labels, folds, shuffles=9)
    alone = decoding.decode(x, np.arange(60)[:, None], {"b": labels["b"]}, folds, shuffles=9)
    np.testing.assert_array_equal(both["b"].shuffled, alone["b"].shuffled)
    np.testing.assert_array_equal(both["b"].accuracy, alone["b"].accuracy)
