"""Claims about decoding: it is a ridge classifier on held-out trials, and chance looks like chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recordings import make_recording
from scipy.stats import norm
from sklearn.linear_model import Ridge

from mpn_rl.analysis import decoding, trials
from mpn_rl.analysis.confidence_intervals import MissingDataError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "interval_coverage.json"


def held_out_predictions(x, y, folds, penalty):
    """The slow way: ridge regression per fold on all features; the class whose score exceeds its mean the most."""
    predicted, kinds = np.empty_like(y), np.unique(y)
    for fold in np.unique(folds):
        train = folds != fold
        alpha = penalty * ((x - x.mean(axis=0)) ** 2).sum() / len(x)
        coded = np.where(y[train, None] == kinds, 1.0, -1.0)
        scores = Ridge(alpha=alpha).fit(x[train], coded).predict(x[~train]) - coded.mean(axis=0)
        predicted[~train] = kinds[scores.argmax(axis=1)]
    return predicted


def balanced(right, y):
    return np.mean([right[y == kind].mean() for kind in np.unique(y)])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("features", [7, 300])
def test_balanced_accuracies_are_those_of_ridge_regression(classes, features):
    rng = np.random.default_rng(classes)
    y = np.minimum(rng.integers(0, classes + 1, 90), classes - 1) * 2 + 1  # the last class is frequent
    x = rng.standard_normal((90, features)) + rng.standard_normal((2 * classes, features))[y] / features**0.5
    folds = decoding.make_folds(np.arange(90), 5)
    expected = held_out_predictions(x, y, folds, 0.1) == y
    found = decoding.decode(x, np.arange(90)[:, None], {"y": y}, folds, shuffles=3, penalty=0.1)["y"]
    assert found.accuracy[0] == pytest.approx(balanced(expected, y))
    assert 0.35 < found.accuracy[0] < 1


@pytest.mark.parametrize("features", [5, 90])
def test_held_out_scores_are_those_of_ridge_regression_without_the_mean(features):
    rng = np.random.default_rng(0)
    x, y, folds = rng.standard_normal((40, features)) + 4, rng.choice([-1.0, 1.0], 40), np.arange(40) % 4
    scores = decoding.held_out_operator(x, folds, 0.05) @ y
    products = decoding.held_out_operator(decoding.inner_products(x), folds, 0.05, products=True)
    np.testing.assert_allclose(products @ y, scores)
    ridge = 0.05 * ((x - x.mean(axis=0)) ** 2).sum() / 40
    for fold in range(4):
        train, test = folds != fold, folds == fold
        centred = x[train] - x[train].mean(axis=0)
        weights = np.linalg.solve(
            centred.T @ centred + ridge * np.eye(features), centred.T @ (y[train] - y[train].mean())
        )
        np.testing.assert_allclose(scores[test], (x[test] - x[train].mean(axis=0)) @ weights)


def test_a_linear_code_is_read_without_error_and_its_shuffles_are_chance():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([-1.0, 1.0], 100))
    x = np.outer(y, [1.0, 2.0, 0.0]) + 0.1 * rng.standard_normal((200, 3))
    found = decoding.decode(x, np.arange(200)[:, None], {"y": y}, np.arange(200) % 5)["y"]
    assert found.accuracy[0] == 1 and found.low[0] > 0.96
    assert abs(found.shuffled.mean() - 0.5) < 0.02 and found.band[0, 0] > 0.38 and found.band[1, 0] < 0.62


def test_the_band_of_shuffles_has_the_width_of_coin_tosses():
    rng = np.random.default_rng(1)
    y, x = rng.integers(0, 2, 400), rng.standard_normal((400, 6))
    found = decoding.decode(x, np.arange(400)[:, None], {"y": y}, np.arange(400) % 5, shuffles=400)["y"]
    half = 1.96 * np.sqrt(0.25 / 400)
    np.testing.assert_allclose(found.band[:, 0], [0.5 - half, 0.5 + half], atol=0.025)


def test_the_band_and_the_threshold_are_quantiles_of_the_shuffles():
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 2, 60), rng.standard_normal((60 * 4, 3))
    found = decoding.decode(x, np.arange(240).reshape(60, 4), {"y": y}, np.arange(60) % 5, shuffles=200)["y"]
    ordered = np.sort(found.shuffled, axis=0)
    np.testing.assert_array_equal(found.band, ordered[[4, 195]])  # 4 of 200 lie outside on each side
    assert found.anywhere == np.sort(found.shuffled.max(axis=1))[190]  # 9 of 200 lie above: 1 in 20.1 by chance


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


def test_a_constant_state_is_at_chance_whatever_the_classes_sizes_and_gives_no_warning():
    y = np.repeat([0, 1], [30, 60])
    folds = np.tile(np.arange(5), 18)
    found = decoding.decode(np.zeros((90, 4), np.float16), np.arange(90)[:, None], {"y": y}, folds, shuffles=20)["y"]
    assert found.accuracy[0] == 0.5
    assert found.band[0, 0] <= found.accuracy[0] <= found.band[1, 0]


def test_a_rare_class_is_not_ignored():
    rng = np.random.default_rng(0)
    y = (rng.random(600) < 0.1).astype(int)
    noise, signal = rng.standard_normal((2, 600, 2))
    signal[:, 0] += 2 * y
    knows, does_not = (
        decoding.decode(x, np.arange(600)[:, None], {"y": y}, np.arange(600) % 5, shuffles=50)["y"]
        for x in (signal, noise)
    )
    assert knows.accuracy[0] > 0.7  # two standard deviations apart; always saying 0 would be right in 90 %
    assert 0.4 < does_not.accuracy[0] < 0.6 and does_not.anywhere < 0.65


@pytest.mark.parametrize("labels", ["one per episode", "blocks", "one per trial"])
def test_a_state_with_an_offset_per_episode_gives_few_false_alarms(labels):
    rng = np.random.default_rng(0)
    episode, anywhere, above = np.repeat(np.arange(16), 6), 0, 0
    rows = np.arange(96 * 2).reshape(96, 2)
    for seed in range(80):
        y = {"one per episode": rng.permutation(np.arange(16) % 2)[episode],
             "blocks": (np.arange(96) // 3 + np.repeat(rng.integers(0, 2, 16), 6)) % 2,
             "one per trial": rng.integers(0, 2, 96)}[labels]  # fmt: skip
        x = rng.standard_normal((96, 2, 2)) + 2 * rng.standard_normal((16, 1, 2))[episode]
        found = decoding.decode_states({"h": x.reshape(-1, 2)}, rows, {"y": y}, episode, shuffles=60, seed=seed)["h"]
        anywhere += bool((found["y"].accuracy > found["y"].anywhere).any())
        above += bool(found["y"].accuracy[0] > found["y"].band[1, 0])
    assert anywhere <= 10 and above <= 8  # 60 shuffles: 5 and 3 expected, at most so many with probability 0.99


@pytest.mark.parametrize(
    ("apart", "features", "labels"),
    [(0.0, 2, "per trial"), (0.5, 2, "per trial"), (1.5, 2, "per trial"), (0.7, 20, "per trial"),
     (0.0, 2, "per episode"), (0.3, 2, "per episode"), (1.5, 2, "per episode"), (0.7, 20, "per episode")],
)  # fmt: skip
def test_intervals_cover_the_accuracy_although_trials_of_an_episode_are_alike(apart, features, labels):
    rng = np.random.default_rng(0)
    episode, found = np.repeat(np.arange(20), 8), []
    for seed in range(150):
        y = rng.permutation(160) % 2 if labels == "per trial" else (rng.permutation(20) % 2)[episode]
        x = rng.standard_normal((160, features)) + rng.standard_normal((20, features))[episode]
        x[:, 0] += apart * (2 * y - 1)
        rows = np.arange(160)[:, None]
        found.append(decoding.decode_states({"h": x}, rows, {"y": y}, episode, shuffles=0, seed=seed)["h"]["y"])
    truth = np.mean([result.accuracy for result in found])
    held = np.mean([result.low[0] <= truth <= result.high[0] for result in found])
    assert 0.90 <= held <= 0.995


def test_intervals_of_dependent_trials_are_wider_and_those_of_certain_ones_have_a_width():
    """Ten episodes of ten trials with one label: five right, five wrong are ten coins, not a hundred."""
    episode, y = np.repeat(np.arange(10), 10), np.repeat(np.arange(10) % 2, 10)
    right = np.repeat([True, True, True, True, True, True, False, False, False, False], 10)
    alike, apart = decoding._interval(right, y, episode), decoding._interval(right, y, np.arange(100))
    assert alike[1] - alike[0] > 2.5 * (apart[1] - apart[0])
    certain = decoding._interval(np.ones(100, bool), y, episode)
    assert certain[1] == 1 and 0.55 < certain[0] < 0.65  # ten of ten, t with 9 degrees of freedom, shared training data


def test_the_margin_for_shared_training_suits_the_measured_variances():
    """Variances of 0.9 to 1.8 times those of coin tosses (benchmarks/results/interval_coverage.json)."""
    ratios = json.loads(RESULTS.read_text())["decoding variance ratio"].values()
    assert min(ratios) >= 0.85 and max(ratios) <= 1.8
    held = [2 * norm.cdf(1.96 * (decoding.SHARED / ratio) ** 0.5) - 1 for ratio in ratios]
    assert min(held) > 0.90 and max(held) < 0.99


def test_measured_intervals_hold_the_truth_in_90_to_99_percent():
    held = {name: share for name, share in json.loads(RESULTS.read_text())["decoding"].items() if "accuracy" in name}
    assert len(held) == 24 and all(0.90 <= share <= 0.99 for share in held.values())


def test_a_label_is_not_decoded_from_what_it_shares_with_another():
    """The state holds the stimulus, which the choice follows in 9 of 10 trials, and nothing of the choice."""
    rng = np.random.default_rng(0)
    stimulus = rng.integers(0, 2, 600).astype(float)
    choice = np.where(rng.random(600) < 0.9, stimulus, 1 - stimulus)
    x = stimulus[:, None] + 0.3 * rng.standard_normal((600, 2))
    given = trials.conditional_labels(choice, stimulus)
    for kind in (0, 1):
        used = stimulus == kind
        assert (
            np.sum(given[used] == 0) == np.sum(given[used] == 1) == min(np.sum(choice[used] == own) for own in (0, 1))
        )
    labels = {"choice": choice, "given": given, "stimulus": trials.conditional_labels(stimulus, choice)}
    found = decoding.decode(x, np.arange(600)[:, None], labels, np.arange(600) % 5, shuffles=100)
    assert found["choice"].accuracy[0] > 0.85
    assert found["given"].accuracy[0] < found["given"].anywhere
    assert found["stimulus"].accuracy[0] > 0.9


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


# --- across steps -------------------------------------------------------------------------------------------


def codes(angles, seed=0, trials=120):
    """States of `trials` trials in which the label is coded at each step along another direction, and the labels."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(trials) % 2
    axes = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # (T, 2)
    drift = 5 * rng.standard_normal((len(axes), 2))  # of all trials alike
    x = (2 * y - 1)[:, None, None] * axes + drift + 0.3 * rng.standard_normal((trials, len(axes), 2))
    return x.reshape(-1, 2), np.arange(trials * len(axes)).reshape(trials, len(axes)), y


def test_a_rotating_code_is_decoded_near_the_diagonal_and_a_stable_one_everywhere():
    angles = np.linspace(0, np.pi / 2, 7)  # a quarter turn: at its end nothing of the first direction is left
    turned = decoding.cross_temporal(*codes(angles), np.arange(120))
    stable = decoding.cross_temporal(*codes(np.zeros(7)), np.arange(120))
    assert (np.diag(turned.accuracy) > 0.97).all() and turned.n == 120
    apart = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    assert (turned.accuracy[apart <= 1] > 0.95).all()
    assert (turned.accuracy[apart == 6] < turned.limit).all()
    assert (stable.accuracy > 0.97).all() and 0.55 < stable.limit < 0.75


def test_the_diagonal_of_the_matrix_is_the_decoding_at_each_step():
    x, rows, y = codes(np.linspace(0, 1, 4))
    x = x + np.random.default_rng(1).standard_normal(x.shape)
    episodes = np.arange(120) // 4
    matrix = decoding.cross_temporal(x, rows, y, episodes, shuffles=3)
    course = decoding.decode_states({"h": x}, rows, {"y": y}, episodes, shuffles=3)["h"]["y"].accuracy
    np.testing.assert_allclose(np.diag(matrix.accuracy), course)


def test_a_matrix_of_noise_stays_below_its_limit():
    above = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        episodes = np.repeat(np.arange(15), 4)
        x = rng.standard_normal((60, 5, 3)) + rng.standard_normal((15, 1, 3))[episodes]
        y = (rng.permutation(15) % 2)[episodes]
        found = decoding.cross_temporal(
            x.reshape(-1, 3), np.arange(300).reshape(60, 5), y, episodes, shuffles=60, seed=seed
        )
        above += bool((found.accuracy > found.limit).any())
    assert above <= 7  # 5 % of 60, and at most 7 with probability 0.99


def test_a_matrix_leaves_out_trials_without_a_step_and_needs_two_classes():
    x, rows, y = codes(np.zeros(30))
    rows[:10, 28] = -1  # a step that most trials have, and one that too many lack
    rows[:60, 29] = -1
    found = decoding.cross_temporal(x, rows, y, np.arange(120), shuffles=0)
    assert len(found.columns) == decoding.MOST_COLUMNS and found.columns[[0, -1]].tolist() == [0, 28]
    assert found.n == 110 and np.isnan(found.limit)
    with pytest.raises(MissingDataError, match="one class"):
        decoding.cross_temporal(x, rows, np.ones(120), np.arange(120))


def code_in_two_conditions(sign: int) -> decoding.AcrossConditions:
    """A label along one axis, with this sign in the second condition, which adds along another axis."""
    rng = np.random.default_rng(0)
    episode, y, c = np.repeat(np.arange(30), 8), rng.permutation(240) % 2, np.tile([0, 0, 1, 1], 60)
    x = rng.standard_normal((240, 5))
    x[:, 0] += 2 * (2 * y - 1) * np.where(c == 1, sign, 1)
    x[:, 1] += 4 * c
    return decoding.across_conditions(x, np.arange(240)[:, None], y, c, episode, shuffles=50)


def test_a_code_that_is_alike_in_both_conditions_generalises_and_a_reversed_one_does_not():
    alike, reversed_ = code_in_two_conditions(1), code_in_two_conditions(-1)
    assert alike.within.value[0] > 0.94 and alike.across.value[0] > 0.94 > alike.limits[1]
    assert reversed_.within.value[0] > 0.94 and reversed_.across.value[0] < 0.06
    assert alike.across.low[0] < alike.across.value[0] < alike.across.high[0] and alike.across.n[0] == 240


def test_the_limit_across_conditions_is_exceeded_by_noise_in_one_recording_of_twenty():
    above = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        episode, c = np.repeat(np.arange(12), 8), np.tile([0, 1], 48)
        x = rng.standard_normal((192, 3)) + rng.standard_normal((12, 3))[np.repeat(episode, 2)]
        rows, y = np.arange(192).reshape(96, 2), rng.permutation(96) % 2
        result = decoding.across_conditions(x, rows, y, c, episode, shuffles=60, seed=seed)
        above.append(result.across.value.max() > result.limits[1])
    assert np.mean(above) <= 0.12


def test_conditions_without_some_label_are_named():
    y, episode = np.arange(100) % 2, np.repeat(np.arange(10), 10)
    with pytest.raises(MissingDataError, match="some combination of the two occurs in 0 trials, and 10 are needed"):
        decoding.across_conditions(np.ones((100, 2)), np.arange(100)[:, None], y, y, episode)
