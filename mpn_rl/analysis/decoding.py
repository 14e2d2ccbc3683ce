"""Cross-validated linear decoding of labels from the state at every step, with a chance band from shuffled labels.

A ridge classifier on F features of n trials needs only the n x n matrix of their inner products. With K the centred
inner products of the training trials and k those of held-out with training trials, the held-out scores are

    z = k (K + a I)^-1 (y - mean y)        y = +1 for the class, -1 for the others

This is linear in y, so all folds together form one n x n matrix A with z = A y. It is computed once per step and serves
every label and every shuffle in one matrix product. States with fewer features than trials need no inner products.
Without the usual constant `mean y`, a rare class is chosen as easily as a frequent one.

The unit of inference is the episode: its trials share what the state carries over. Whole episodes are held out, whole
episodes of labels are permuted, and intervals take the trials of an episode as dependent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.special import stdtrit

from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.trials import Table, known
from mpn_rl.statistics import Z95, wilson

PENALTY = 0.01  # of the mean squared distance of a trial from the mean; accuracy hardly depends on it in [1e-4, 0.1]

# The classifiers of different folds share training trials, so their errors are correlated. In the simulations of
# benchmarks/interval_coverage.py, the variance of the accuracy is R = 0.9 to 1.8 times that of independent trials,
# and no formula is known for R. Intervals for R = SHARED hold the truth with probability 2 Phi(z sqrt(SHARED / R)) - 1,
# z = 1.96: 0.90 at R = 1.8 and 0.98 at R = 0.9. Labels that are constant in an episode give the classifiers few
# independent labels, and near chance all folds err together: R = 1.7 to 2.7 there (12 to 40 episodes), as for other
# labels far from chance. `_interval` therefore adds up to CONSTANT.
SHARED, CONSTANT = 1.3, 1.0
SHARED_WITHIN = 1.5  # of classifiers of one condition, which have fewer training trials: R = 1.0 to 2.3


class Decoding(NamedTuple):
    """Held-out balanced accuracy at each of T steps; nan where too few trials have a label.

    accuracy, low, high (T,): the mean over classes of the share of their trials that are decoded rightly, with a 95 %
        interval; n (T,): trials.
    shuffled (S, T): accuracy with the labels permuted over episodes; band (2, T): its 2.5 % and 97.5 % quantiles.
    anywhere: the 95 % quantile over shuffles of the highest accuracy at any step. Without information in the state, 95
    of 100 recordings stay below it at all steps.
    classes: the labels.
    """

    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    shuffled: np.ndarray
    band: np.ndarray
    anywhere: float
    classes: np.ndarray


class CrossTemporal(NamedTuple):
    """Held-out balanced accuracy of classifiers that are trained at one step and tested at another.

    columns (k,): of the aligned steps. accuracy (k, k): row: trained at, column: tested at. limit: the 95 % quantile
    over shuffles of the highest accuracy in the matrix; without information in the state, 95 of 100 recordings stay
    below it everywhere. n: trials. classes: the labels.
    """

    columns: np.ndarray
    accuracy: np.ndarray
    limit: float
    n: int
    classes: np.ndarray


class AcrossConditions(NamedTuple):
    """Held-out balanced accuracy of classifiers that are trained in one condition, at k steps.

    within, across (arrays (k,)): tested in the same condition, and in each of the other ones; the mean over conditions.
    limits: of within and across, the 95 % quantile over shuffles of the highest accuracy at any of the k steps.
    """

    within: Estimate[np.ndarray]
    across: Estimate[np.ndarray]
    limits: tuple[float, float]


def make_folds(groups: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """The fold of every trial, (n,); each group (episode) lies in one fold, and the folds are as even as possible.

    Trials of one episode share state, so they must not appear in both training and test data.

    Args: groups: of each trial, (n,). folds: their number. seed: of the random order.

    Raises: MissingDataError for fewer groups than folds.
    """
    kinds, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    if len(kinds) < folds:
        raise MissingDataError(f"decoding needs at least {folds} episodes, the recording has {len(kinds)}")
    of_kind, load = np.empty(len(kinds), int), np.zeros(folds)
    order = np.random.default_rng(seed).permutation(len(kinds))
    for kind in order[np.argsort(-size[order], kind="stable")]:
        of_kind[kind] = np.argmin(load)
        load[of_kind[kind]] += size[kind]
    return of_kind[group]


def inner_products(features: np.ndarray) -> np.ndarray:
    """Inner products of centred trials, (n, F) -> (n, n); float16 and float32 are multiplied in float32."""
    x = features - features.mean(axis=0, dtype=np.float64).astype(np.promote_types(features.dtype, np.float32))
    return (x @ x.T).astype(np.float64)


def held_out_operator(
    trials: np.ndarray, folds: np.ndarray, penalty: float = PENALTY, products: bool = False
) -> np.ndarray:
    """The matrix A (n, n) for which A @ y are the held-out scores of labels y (n,) or (n, k), by ridge regression,
    relative to the mean of y over the training trials.

    All folds share one inverse P = (X X^T + a I)^-1 of the centred trials X. With B = P - 1 1^T / (a n), the inverse of
    the system with an intercept, the scores of the held-out trials S from the training trials T are

        A_ST = -(B_SS)^-1 B_ST - 1 / |T|,     A_SS = 0

    Source: An et al. 2007 (Pattern Recognition 40, "Fast cross-validation algorithms for least squares support vector
    machine and kernel ridge regression").

    Args:
        trials: features of the trials, (n, F), best with F < n, or their inner products, (n, n).
        folds: the fold of each trial, (n,).
        penalty: a, as a share of the trials' mean squared distance from their mean.
        products: whether `trials` are inner products.
    """
    n, order = len(trials), np.argsort(folds, kind="stable")
    x = (trials[np.ix_(order, order)] if products else trials[order]).astype(np.float64)
    x -= x.mean(axis=0)
    x -= x.mean(axis=1, keepdims=True) if products else 0.0
    operator = np.zeros((n, n))
    spread = float(np.trace(x) if products else np.einsum("nf,nf->", x, x)) / n
    if spread <= 0:  # a constant state has scores of 0
        return operator
    ridge = penalty * spread
    square = x if products else x.T @ x
    square.flat[:: len(square) + 1] += ridge
    if products:
        inverse, _ = dpotri(dpotrf(square, lower=True)[0], lower=True)  # only the lower triangle
        inverse += np.tril(inverse, -1).T - 1 / (ridge * n)
    else:
        inverse = (x @ np.linalg.solve(square, x.T) + 1 / n) / -ridge
        inverse.flat[:: n + 1] += 1 / ridge
    for fold in np.unique(folds):
        held_out = slice(*np.searchsorted(folds[order], [fold, fold + 1]))
        weights = -np.linalg.solve(inverse[held_out, held_out], inverse[held_out])
        weights -= 1 / (n - len(weights))
        weights[:, held_out] = 0.0
        operator[np.ix_(order[held_out], order)] = weights
    return operator


def decode(
    states: np.ndarray,
    rows: np.ndarray,
    labels: Mapping[str, np.ndarray],
    folds: np.ndarray,
    *,
    episodes: np.ndarray | None = None,
    shuffles: int = 200,
    penalty: float = PENALTY,
    seed: int = 0,
) -> dict[str, Decoding]:
    """Decode every label from the state at every aligned step.

    Args:
        states: the recording's state, (N, ...): `hidden` or `state_M`.
        rows: `trials.Aligned.rows`, (n, T).
        labels: per trial (n,), or per trial and step (n, T), as from `trials.label_sets`; nan, "" and classes with
            fewer trials than folds are left out.
        folds: from `make_folds`, (n,).
        episodes: of each trial, (n,); None: every trial is an episode of its own.
        shuffles: number of permutations, the same for all steps. Episodes are put into a random order and their trials
            get the labels of the trials at their new places, so labels that come in blocks stay in blocks.
        penalty: as in `held_out_operator`.
        seed: of the permutations.

    Returns: {label: Decoding}. Raises: MissingDataError where no label has two classes.
    """
    trials, steps = rows.shape
    kept = {name: _without_rare(np.asarray(values), len(np.unique(folds))) for name, values in labels.items()}
    classes = {name: np.unique(values[known(values)]) for name, values in kept.items()}
    classes = {name: kinds for name, kinds in classes.items() if len(kinds) >= 2}
    if not classes:
        raise MissingDataError("no label has two classes with enough trials each")
    group = np.arange(trials) if episodes is None else np.unique(episodes, return_inverse=True)[1]
    keys = np.random.default_rng(seed).random((shuffles, group.max() + 1))[:, group]
    accuracy = {name: np.full((shuffles + 1, steps), np.nan) for name in classes}
    ends = {name: np.full((2, steps), np.nan) for name in classes}
    n = {name: np.zeros(steps, int) for name in classes}
    for step in range(steps):
        there = np.flatnonzero(rows[:, step] >= 0)
        data = states[rows[there, step]].reshape(len(there), -1)
        if wide := data.shape[1] >= len(there):
            data = inner_products(data)
        shared: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # most labels use the same trials
        for name in classes:
            own = kept[name] if kept[name].ndim == 1 else kept[name][:, step]
            use = np.flatnonzero((rows[:, step] >= 0) & known(own))
            if len(np.unique(folds[use])) < 2 or len(np.unique(own[use])) < 2:
                continue
            if use.tobytes() not in shared:
                own_data = data[np.searchsorted(there, use)]
                own_data = own_data[:, np.searchsorted(there, use)] if wide else own_data
                operator = held_out_operator(own_data, folds[use], penalty, products=wide)
                orders = np.vstack([np.arange(len(use)), np.argsort(keys[:, use], axis=1, kind="stable")])
                shared[use.tobytes()] = operator.astype(np.float32), orders
            operator, orders = shared[use.tobytes()]
            index = np.searchsorted(classes[name], own[use])
            hits = _hits(operator, index[orders].T, len(classes[name]))
            accuracy[name][:, step] = _balanced(hits, index[orders].T)
            ends[name][:, step] = _interval(hits[:, 0], index, group[use])
            n[name][step] = len(use)
    return {name: _result(accuracy[name], ends[name], n[name], classes[name]) for name in classes}


MOST_COLUMNS = 20  # steps of `cross_temporal`, evenly spaced where there are more
COMMON = 0.8  # share of the trials that have each of these steps: the end of a long delay is left out


def cross_temporal(
    states: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    episodes: np.ndarray,
    *,
    shuffles: int = 100,
    penalty: float = PENALTY,
    seed: int = 0,
) -> CrossTemporal:
    """Decode labels at one step with the classifier of another step, on held-out episodes.

    A code that does not change is decoded wherever the classifier was trained; one that moves to other units only near
    the diagonal. States are centred on the training trials at their own step, so a drift of all classes does not count.

    Args:
        states, rows, episodes, shuffles, penalty, seed: as in `decode`.
        labels: one per trial, (n,). Trials without a label, or that lack one of the steps, are left out.

    Raises: MissingDataError for fewer than two classes or five episodes, or where no step is common to COMMON of them.

    Source: King & Dehaene 2014 (Trends in Cognitive Sciences 18). Differs from King & Dehaene: the centring.
    """
    labels = _without_rare(np.asarray(labels), 5)
    labelled = known(labels)
    common = np.flatnonzero((rows[labelled] >= 0).sum(axis=0) >= COMMON * labelled.sum())
    if len(np.unique(labels[labelled])) < 2 or not len(common):
        raise MissingDataError("the label has one class, or no step is common to most trials")
    places = np.linspace(0, len(common) - 1, min(MOST_COLUMNS, len(common)))
    columns = common[places.round().astype(int)]
    use = np.flatnonzero(labelled & (rows[:, columns] >= 0).all(axis=1))
    classes, index = np.unique(labels[use], return_inverse=True)
    folds, group = make_folds(episodes[use], seed=seed), np.unique(episodes[use], return_inverse=True)[1]
    keys = np.random.default_rng(seed).random((shuffles, group.max() + 1))[:, group]
    orders = index[np.vstack([np.arange(len(use)), np.argsort(keys, axis=1, kind="stable")])].T  # (n, S + 1)
    seen = [states[rows[use, column]].reshape(len(use), -1).astype(np.float32) for column in columns]
    seen = [x - x.mean(axis=0) for x in seen]
    result = np.zeros((shuffles + 1, len(columns), len(columns)))
    for place, trained in enumerate(seen):
        across = [(x @ trained.T).astype(float) for x in seen]
        operators = [np.zeros((len(use), len(use))) for _ in seen]
        for fold in range(folds.max() + 1):
            test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
            inner = _centred(across[place], train, train)
            spread = np.trace(inner) / len(train)
            inverse = np.linalg.inv(inner + (penalty * spread if spread > 0 else 1.0) * np.eye(len(train)))
            for operator, products in zip(operators, across, strict=True):
                weights = _centred(products, test, train) @ inverse
                operator[np.ix_(test, train)] = weights - weights.mean(axis=1, keepdims=True)
        for tested, operator in enumerate(operators):
            result[:, place, tested] = _balanced(_hits(operator, orders, len(classes)), orders)
    limit = float(np.quantile(result[1:].max(axis=(1, 2)), 0.95, method="higher")) if shuffles else np.nan
    return CrossTemporal(columns, result[0], limit, len(use), classes)


LEAST_PER_CELL = 10  # trials of each label in each condition
MOST_CELLS = 16


def across_conditions(
    states: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    conditions: np.ndarray,
    episodes: np.ndarray,
    *,
    shuffles: int = 200,
    penalty: float = PENALTY,
    seed: int = 0,
) -> AcrossConditions:
    """Decode labels in one condition with the classifier of another condition, on held-out episodes.

    Labels that are coded alike in all conditions are decoded in those that the classifier was not trained on. States
    are centred on the training trials of their own condition, so a shift of all labels does not count. Every label in
    every condition has the same weight.

    Args:
        states: the recording's state, (N, ...).
        rows: index of k steps of every trial, (n, k), -1 where a trial has none.
        labels, conditions: of each trial, (n,). Trials without one of them are left out.
        episodes, shuffles, penalty, seed: as in `decode`.

    Raises: MissingDataError where either has one value, or both occur in fewer than LEAST_PER_CELL trials together.

    Source: Bernardi et al. 2020 (Cell 183), cross-condition generalisation performance. Differs from Bernardi et al.:
    the centring, held-out episodes, and permuted labels for chance.
    """
    use = np.flatnonzero(known(labels) & known(conditions) & (rows >= 0).all(axis=1))
    classes, index = np.unique(labels[use], return_inverse=True)
    kinds, condition = np.unique(conditions[use], return_inverse=True)
    cell = index + len(classes) * condition
    if min(len(classes), len(kinds)) < 2 or len(classes) * len(kinds) > MOST_CELLS:
        raise MissingDataError(f"two values or more, and at most {MOST_CELLS} combinations, are needed for both")
    least = int(np.bincount(cell, minlength=len(classes) * len(kinds)).min())
    if least < LEAST_PER_CELL:
        raise MissingDataError(f"some combination of the two occurs in {least} trials, and {LEAST_PER_CELL} are needed")
    folds, group = make_folds(episodes[use], seed=seed), np.unique(episodes[use], return_inverse=True)[1]
    keys = np.random.default_rng(seed).random((shuffles, group.max() + 1))[:, group]
    orders = index[np.vstack([np.arange(len(use)), np.argsort(keys, axis=1, kind="stable")])].T  # (n, S + 1)
    result = np.zeros((2, shuffles + 1, rows.shape[1]))
    ends = np.zeros((2, 2, rows.shape[1]))
    for column in range(rows.shape[1]):
        products = inner_products(states[rows[use, column]].reshape(len(use), -1))
        hits = np.zeros((2, *orders.shape))  # in the same, in other conditions
        for kind in range(len(kinds)):
            operator = np.zeros_like(products, np.float32)
            for fold in range(folds.max() + 1):
                train = np.flatnonzero((folds != fold) & (condition == kind))
                if not len(train):
                    raise MissingDataError("a condition occurs in one fold of the episodes only")
                inner = _centred(products, train, train)
                spread = np.trace(inner) / len(train)
                inverse = np.linalg.inv(inner + (penalty * spread if spread > 0 else 1.0) * np.eye(len(train)))
                for other in range(len(kinds)):
                    test, around = (
                        np.flatnonzero(side & (condition == other)) for side in (folds == fold, folds != fold)
                    )
                    weights = _centred(products, test, train, around) @ inverse
                    operator[np.ix_(test, train)] = weights - weights.mean(axis=1, keepdims=True)
            right = _hits(operator, orders, len(classes))
            hits[0, condition == kind] = right[condition == kind]
            hits[1, condition != kind] += right[condition != kind] / (len(kinds) - 1)
        for place in range(2):
            result[place, :, column] = _balanced(hits[place], orders + len(classes) * condition[:, None])
            ends[place, :, column] = _interval(hits[place, :, 0], cell, group, 1 / len(classes), SHARED_WITHIN)
    n = np.full(rows.shape[1], len(use))
    limits = [float(np.quantile(one[1:].max(axis=1), 0.95, method="higher")) if shuffles else np.nan for one in result]
    within, across = (Estimate(one[0], of[0], of[1], n) for one, of in zip(result, ends, strict=True))
    return AcrossConditions(within, across, (limits[0], limits[1]))


def _centred(
    products: np.ndarray, tested: np.ndarray, train: np.ndarray, around: np.ndarray | None = None
) -> np.ndarray:
    """Inner products of the trials `tested` and `train`, less the means of the trials `around` (None: train) and train.

    Args: products: of all trials, (n, n); the rows may be of another step than the columns.
    """
    means = products[np.ix_(train if around is None else around, train)]
    own = products[np.ix_(tested, train)]
    return np.asarray(own - own.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean())


def _without_rare(labels: np.ndarray, least: int) -> np.ndarray:
    """The labels, with classes of fewer than `least` trials at every step set to unknown."""
    kinds = np.unique(labels[known(labels)])
    per_trial = labels if labels.ndim == 2 else labels[:, None]
    rare = [kind for kind in kinds if (per_trial == kind).sum(axis=0).max() < least]
    if not rare:
        return labels
    unknown = "" if labels.dtype.kind in "US" else np.nan
    return np.where(np.isin(labels, rare), unknown, labels)


def _hits(operator: np.ndarray, index: np.ndarray, classes: int) -> np.ndarray:
    """Whether each trial is decoded rightly, for every order of the class indices, (n, S) -> (n, S)."""
    signs = np.array([-1.0, 1.0], operator.dtype)
    if classes == 2:
        return np.asarray((operator @ signs[(index == 1) * 1] > 0) == (index == 1))
    scores = np.stack([operator @ signs[(index == kind) * 1] for kind in range(classes)])
    return np.asarray(scores.argmax(axis=0) == index)


def _balanced(hits: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The mean over the classes that occur of their share of hits, (n, S) -> (S,)."""
    kinds = np.unique(index[:, 0])
    return np.mean([(hits * (index == kind)).sum(axis=0) / (index == kind).sum(axis=0) for kind in kinds], axis=0)


def _interval(
    hits: np.ndarray, index: np.ndarray, episodes: np.ndarray, chance: float | None = None, shared: float = SHARED
) -> np.ndarray:
    """The 95 % interval of the balanced accuracy p, (2,): Wilson's for the number of independent trials n'.

        n' = min(n, p (1 - p) / v) (z / t)^2 / (shared + CONSTANT c (1 - u)^2)
        v = E / (E - 1) sum_e (sum_{i in e} (hit_i - p_k) / (K n_k))^2
        c = 2 - m / E, at least 0,   u = (p - chance) / (1 - chance), at least 0;   chance = 1 / K, unless given

    m counts the different pairs of episode and label: c is 1 where labels are constant in an episode, and 0 where an
    episode has two on average. u is 0 at chance and 1 without errors. k is the class of trial i, p_k the share of its
    n_k trials that are decoded rightly, v the variance of p with the E episodes as independent units, z and t are the
    97.5 % quantiles of the normal and of Student's distribution with E - 1 degrees of freedom. Where all trials or none
    are right, n' is n, or E if every episode has one label.
    """
    size, group = np.bincount(index), np.unique(episodes, return_inverse=True)[1]
    kinds, many = np.count_nonzero(size), group.max() + 1
    shares = np.bincount(index, hits) / np.maximum(size, 1)
    accuracy = float(shares.sum() / kinds)
    sums = np.bincount(group, (hits - shares[index]) / (kinds * size[index]))
    variance = many / (many - 1) * float((sums**2).sum())
    labels = len(np.unique(np.stack([group, index]), axis=1).T)
    if variance > 0:
        n = min(len(hits), accuracy * (1 - accuracy) / variance)
    else:
        n = len(hits) if labels > many else many
    errors = min((1 - accuracy) / (1 - (1 / kinds if chance is None else chance)), 1.0)  # 1 - u
    shared += CONSTANT * max(2 - labels / many, 0.0) * errors**2
    n *= (Z95 / stdtrit(many - 1, 0.975)) ** 2 / shared
    return np.array(wilson(accuracy * n, n))


def _result(accuracy: np.ndarray, ends: np.ndarray, n: np.ndarray, classes: np.ndarray) -> Decoding:
    """The Decoding of one label; accuracy (S + 1, T) has the true labels in its first row."""
    real, shuffled, (low, high) = accuracy[0], accuracy[1:], ends
    tried = shuffled[:, n > 0]
    if not tried.size:
        nothing = np.full((2, len(n)), np.nan)
        return Decoding(real, low, high, n, shuffled, nothing, np.nan, classes)
    below = np.quantile(shuffled, 0.025, axis=0, method="lower")
    band = np.stack([below, np.quantile(shuffled, 0.975, axis=0, method="higher")])
    anywhere = float(np.quantile(tried.max(axis=1), 0.95, method="higher"))  # of 200 shuffles, 9 are above
    return Decoding(real, low, high, n, shuffled, band, anywhere, classes)


def decode_states(
    states: Mapping[str, np.ndarray], rows: np.ndarray, labels: Table, episodes: np.ndarray, **options
) -> dict[str, dict[str, Decoding]]:
    """`decode` for several states by name: {state: {label: Decoding}}, all with the same folds and shuffles."""
    folds = make_folds(episodes, seed=options.get("seed", 0))
    return {name: decode(array, rows, labels, folds, episodes=episodes, **options) for name, array in states.items()}
