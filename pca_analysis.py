"""Principal components of hidden states and modulations, with trajectories by trial and by condition.

The input is one `activity.npz` (`analyze collect`): N steps of all episodes in order, the core's output `hidden`
(N, H) and the named states `state_M` (N, H, D), `state_c` (N, H) and so on. `visualize.py` draws the results.

Source: Aitken & Mihalas 2023 (eLife 12:e83035) for PCA of h and of M side by side; Gao et al. 2017 (bioRxiv
214262) for the participation ratio.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mpn_rl.options import ConfigError
from mpn_rl.storage.npz_files import NUMBERS, ArraySpec, read_npz

Activity = dict[str, np.ndarray]
REQUIRED = ("observations", "actions", "episode", "step", "trial", "new_trial", "hidden", "ground_truth", "rewards")
SCALARS = ("dt_ms",)
ANYTHING = ArraySpec(NUMBERS + "U", (0, 1, 2, 3), finite=False, low=-np.inf, high=np.inf)
# What activity.npz holds. Names become names of files: they have letters, digits and underscores only.
SCHEMA = {
    "observations|hidden": ArraySpec(dims=(2,)),
    "q_values|action_probabilities": ArraySpec(dims=(2,), finite=False, low=-np.inf, high=np.inf),
    "actions": ArraySpec(dims=(1, 2)),
    "rewards": ArraySpec(),
    "episode|step|trial": ArraySpec("iu", low=0),
    "new_trial|aborted": ArraySpec("b"),
    "ground_truth": ArraySpec("iu", low=-1, high=1e6),
    "correct": ArraySpec(finite=False),
    "period": ArraySpec("U"),
    r"state_\w+": ArraySpec(dims=(2, 3)),
    r"condition_\w+": ArraySpec(NUMBERS + "U", finite=False),
    r"info_\w+": ArraySpec(NUMBERS + "U", finite=False, low=-np.inf, high=np.inf),
    "dt_ms": ArraySpec(dims=(0,), low=0, high=1e9),
    r"\w+": ANYTHING,
}
MOST_PERIODS = 64  # names of periods in a recording; with more of them, there are none
MOST_STATES = 32
MOST_FEATURES = 5000  # of a Gram matrix in memory
BLOCK = 512  # columns of the Gram matrix in memory at a time


class PCAResult(NamedTuple):
    """components (k, F), mean (F,), explained_variance_ratio (k,), projected (N, k), participation_ratio."""

    components: np.ndarray
    mean: np.ndarray
    explained_variance_ratio: np.ndarray
    projected: np.ndarray
    participation_ratio: float


class ConditionMeans(NamedTuple):
    """labels (C,); mean (C, T, k), padded with nan; running (C, T): the number of trials in each mean."""

    labels: np.ndarray
    mean: np.ndarray
    running: np.ndarray


class ColourValues(NamedTuple):
    """One value per step (N,); whether it is categorical; its label with unit; whether it is a sum over time."""

    values: np.ndarray
    categorical: bool
    label: str
    accumulated: bool = False


# --- reading and writing ------------------------------------------------------------------------------------


def load_activity(path: str | Path) -> Activity:
    """The arrays of an activity.npz; loading it cannot run code.

    Raises: ConfigError for a missing or unreadable file, a missing or wrong array, or arrays of different lengths.
    """
    path, again = Path(path), "run analyze collect again"
    if not path.is_file():
        raise ConfigError(f"no recorded activity at {path}: run `analyze collect` first")
    activity = read_npz(path, SCHEMA, "activity file", again)
    missing = [name for name in REQUIRED if name not in activity]
    if missing:
        raise ConfigError(f"{path} is not an activity file: it lacks {', '.join(missing)}; {again}")
    steps = len(activity["actions"])
    wrong = [name for name, array in activity.items() if name not in SCALARS and array.shape[:1] != (steps,)]
    if wrong:
        raise ConfigError(f"{path} has {steps} actions but not as many {', '.join(wrong[:5])}: {again}")
    if steps == 0:
        raise ConfigError(f"{path} has no steps: collect at least one episode")
    empty = next((name for name, array in activity.items() if array.size == 0), None)
    if empty:
        raise ConfigError(f"{path}: {empty} has no values; {again}")
    if np.any(np.diff(activity["episode"].astype(np.int64)) < 0) or activity["episode"][-1] >= steps:
        raise ConfigError(f"{path}: the numbers in `episode` are not those of consecutive episodes; {again}")
    if len(states(activity)) > MOST_STATES:
        raise ConfigError(f"{path} has more than {MOST_STATES} states; {again}")
    if len(np.unique(activity.get("period", np.empty(0)))) > MOST_PERIODS:
        del activity["period"]  # these are no periods of trials
    return activity


# --- principal components -----------------------------------------------------------------------------------


def _centred(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """x flattened to (N, F) minus its mean, and the mean (F,). An analysis needs no other full-size copy.

    float16 and float32 are computed in float32, other types in float64. Data without variance, up to rounding, become
    exact zeros.
    """
    x = np.asarray(x)
    if x.ndim < 2 or x.size == 0:
        raise ConfigError(f"PCA needs at least one sample and one feature, got an array of shape {x.shape}")
    x = x.reshape(len(x), -1)
    dtype = np.float32 if x.dtype in (np.float16, np.float32) else np.float64
    with np.errstate(invalid="ignore"):
        mean = x.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ConfigError("PCA needs finite values, but the recorded activity has nan or infinite ones")
    centred = np.subtract(x, mean.astype(dtype), dtype=dtype)
    largest = max(float(centred.max()), -float(centred.min()))
    if largest <= 4 * np.finfo(dtype).eps * (largest + float(np.abs(mean).max())):
        centred[:] = 0.0
    return centred, mean


def _gram(x: np.ndarray) -> np.ndarray | None:
    """X^T X, (F, F), of centred data (N, F); None where it is larger than the data or 100 MB of float32."""
    return x.T @ x if x.shape[1] <= min(len(x), MOST_FEATURES) else None


def _trace_and_squares(centred: np.ndarray, gram: np.ndarray | None) -> tuple[float, float]:
    """Trace and sum of squares of X^T X, without an F x F or N x N matrix where `gram` is None."""
    x = centred if centred.shape[0] >= centred.shape[1] else centred.T
    trace = squares = 0.0
    for start in range(0, x.shape[1], BLOCK):  # blocks of the smaller of X^T X and X X^T
        if gram is not None:
            block = gram[start : start + BLOCK, start:]  # the diagonal block and the blocks to its right
        else:
            block = x[:, start : start + BLOCK].T @ x[:, start:]
        block, width = block.astype(np.float64), len(block)
        trace += np.trace(block)
        squares += 2 * np.sum(block**2) - np.sum(block[:, :width] ** 2)
    return trace, squares


def _participation_ratio(centred: np.ndarray, groups: ArrayLike | None = None, gram: np.ndarray | None = None) -> float:
    """`participation_ratio` of data whose mean is 0, without eigenvalues. gram: X^T X, if it is known."""
    trace, squares = _trace_and_squares(centred, gram)
    if squares <= 0:
        return 0.0
    lengths = np.einsum("nf,nf->n", centred, centred, dtype=np.float64)
    members = np.arange(len(centred)) if groups is None else np.unique(groups, return_inverse=True)[1]
    size = np.bincount(members)
    if len(size) < 3:
        return float(trace**2 / squares)
    own_trace = np.bincount(members, lengths)
    if groups is None:
        own_squares, own_sum = lengths**2, lengths
    else:
        own_squares, own_sum = np.zeros((2, len(size)))
        for group in range(len(size)):
            rows = centred[members == group]
            gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
            own_squares[group] = np.sum(gram.astype(np.float64) ** 2)
            own_sum[group] = np.sum(rows.sum(axis=0, dtype=np.float64) ** 2)
    pairs = float(len(centred)) ** 2 - float(np.sum(size.astype(float) ** 2))
    numerator = (trace**2 - np.sum(own_trace**2)) / pairs
    denominator = (squares - np.sum(own_squares)) / pairs - (np.sum(own_sum) / pairs) ** 2
    return float(numerator / denominator) if denominator > 1e-12 * numerator else float(centred.shape[1])


def participation_ratio(x: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Effective number of dimensions of the data: (sum v)^2 / sum v^2 over all eigenvalues v of their covariance C.

    It is k for variance spread evenly over k dimensions, 1 for a line, and by convention 0 for constant data. The ratio
    of a sample's own covariance is too low: at most the number of rows, 128 for 256 rows of 256 equal dimensions. With
    x_i the rows minus their mean, (sum v)^2 = (tr C)^2 and sum v^2 = tr C^2 are therefore estimated from pairs of rows
    of different groups, which are independent:

        (tr C)^2 ~ mean |x_i|^2 |x_j|^2,     tr C^2 ~ mean (x_i . x_j)^2 - (mean x_i . x_j)^2

    Fewer than three groups give the ratio of the sample's own covariance; a sample that is too small to bound the
    ratio gives the number of features. The unit of inference is the group.

    Args:
        x: samples by features, (N, ...).
        groups: of each row, such as its episode, (N,): rows of one group may depend on each other. None: no row does.
    """
    return _participation_ratio(_centred(x)[0], groups)


def fit_pca(x: ArrayLike, n_components: int = 10, groups: ArrayLike | None = None) -> PCAResult:
    """Principal components.

    From the eigenvectors of X^T X where there are fewer features than samples, else by scikit-learn's PCA. Exact for up
    to 1,000 features or samples; otherwise randomized with a fixed seed, which is accurate for a steep spectrum.
    Constant data have zero components, ratios and projections.

    Args:
        x: samples by features, (N, ...), flattened to (N, F).
        n_components: number of components, at least 1.
        groups: of each row, as in `participation_ratio`.

    Returns: at most min(n_components, N, F) components. Raises: ConfigError for nan, infinite or empty data.
    """
    if n_components < 1:
        raise ConfigError(f"n_components must be at least 1, got {n_components}")
    centred, mean = _centred(x)
    n_components = min(n_components, *centred.shape)
    gram = _gram(centred)
    ratio = min(_participation_ratio(centred, groups, gram), float(centred.shape[1]))
    if ratio == 0.0:
        zeros = np.zeros((n_components, centred.shape[1]))
        return PCAResult(zeros, mean, zeros[:, 0], np.zeros((len(centred), n_components)), 0.0)
    if gram is None:
        from sklearn.decomposition import PCA  # slow to import

        solver = "full" if len(centred) <= 1000 else "randomized"
        pca = PCA(n_components, svd_solver=solver, copy=False, random_state=0).fit(centred)
        components, ratios = pca.components_, pca.explained_variance_ratio_
    else:
        values, components = _leading(gram, n_components)
        ratios = values / np.trace(gram)
    return PCAResult(components, mean, ratios, centred @ components.T, ratio)


def _leading(gram: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest eigenvalues (n,) of X^T X (F, F) and their eigenvectors (n, F).

    For more than 1,000 features by subspace iteration with ten further vectors from a fixed seed (Halko et al. 2011,
    SIAM Review 53). The largest entry of each eigenvector is positive.
    """
    if len(gram) > 1000:
        basis = np.random.default_rng(0).standard_normal((len(gram), n + 10)).astype(gram.dtype)
        for _ in range(16):
            basis = np.linalg.qr(gram @ basis)[0]
        values, inside = np.linalg.eigh(basis.T @ gram @ basis)
        vectors = basis @ inside
    else:
        values, vectors = np.linalg.eigh(gram)
    values, components = values[::-1][:n].clip(0.0), vectors.T[::-1][:n]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return values, components * np.sign(largest)


def dimensions_for(explained_variance_ratio: np.ndarray, fraction: float = 0.9) -> int | None:
    """Number of leading components that explain `fraction` of the variance; None if all fitted ones explain less."""
    cumulative = np.cumsum(explained_variance_ratio)
    reached = np.flatnonzero(cumulative >= fraction - 1e-6)  # float32 ratios may sum to 1 - 1e-7
    return int(reached[0]) + 1 if len(reached) else None


class ReadoutProjection(NamedTuple):
    """cosines (A, k) of each readout vector with each component; inside (A,): share of its squared length in them."""

    cosines: np.ndarray
    inside: np.ndarray


def project_readout(readout: np.ndarray, components: np.ndarray) -> ReadoutProjection:
    """Cosines of the readout vectors with the principal components.

    Args:
        readout: the head's weights, one vector per action, (A, F).
        components: principal components, (k, F).
    """
    length = np.linalg.norm(readout, axis=1, keepdims=True)
    cosines = readout @ components.T / np.where(length > 0, length, 1.0)
    return ReadoutProjection(cosines, (cosines**2).sum(axis=1))


def states(activity: Activity) -> Activity:
    """The recorded states by their short names: h (the core's output), M, c and so on."""
    names = [name for name in activity if name.startswith("state_")]
    return {**{name.removeprefix("state_"): activity[name] for name in names}, "h": activity["hidden"]}


def summary(activity: Activity, fits: dict[str, PCAResult]) -> dict[str, object]:
    """Sizes of the recording, variance ratios and dimensions of each state, for JSON.

    Args: fits: PCA by the name of the state.
    """
    return {
        "steps": len(activity["actions"]),
        "episodes": len(np.unique(activity["episode"])),
        "trials": len(split_trials(activity)),
        "complete_trials": int(np.sum(activity["new_trial"])),
        "states": {
            name: {
                "features": len(fit.mean),
                "explained_variance_ratio": fit.explained_variance_ratio.astype(float).round(6).tolist(),
                "participation_ratio": fit.participation_ratio,
                "dimensions_for_90_percent": dimensions_for(fit.explained_variance_ratio),
            }
            for name, fit in fits.items()
        },
    }


# --- trials -------------------------------------------------------------------------------------------------


def split_trials(activity: Activity, complete_only: bool = False) -> list[np.ndarray]:
    """The steps of each trial, in order; in a task without trials, the steps of each episode.

    Args: complete_only: leave out trials that a time limit cut off; their last step is not marked `new_trial`.
    """
    changed = (np.diff(activity["trial"]) != 0) | (np.diff(activity["episode"]) != 0)
    trials = np.split(np.arange(len(activity["trial"])), np.flatnonzero(changed) + 1)
    return [trial for trial in trials if activity["new_trial"][trial[-1]] or not complete_only]


def trial_time(activity: Activity) -> tuple[np.ndarray, str]:
    """Time since the start of the trial, (N,), and its label; in ms if the task has a clock, else in steps."""
    steps = np.concatenate([np.arange(len(trial)) for trial in split_trials(activity)])
    dt_ms = float(activity.get("dt_ms", 0.0))
    return (steps * dt_ms, "time in trial (ms)") if dt_ms > 0 else (steps * 1.0, "time in trial (steps)")


def period_onsets(activity: Activity, trials: list[np.ndarray]) -> dict[str, int]:
    """{period: step in the trial at which it begins}, the median over trials, in order of time."""
    onsets: dict[str, list[int]] = {}
    for trial in trials if "period" in activity else []:
        names, first = np.unique(activity["period"][trial], return_index=True)
        for name, step in zip(names, first, strict=True):
            onsets.setdefault(str(name), []).append(int(step))
    medians = {name: int(np.median(steps)) for name, steps in onsets.items() if name}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def group_trials(colour: ColourValues, trials: list[np.ndarray], max_groups: int = 6) -> np.ndarray | None:
    """One label per trial, (n_trials,), for `condition_means`; None where the value changes within trials.

    The label of an accumulated value is its last value in the trial.

    Args:
        colour: one value per step.
        trials: as from `split_trials`.
        max_groups: numbers with more values than this are grouped by quantiles; the label is the mean of the group.
    """
    ends = []
    for trial in trials:
        values = colour.values[trial][_known(colour.values[trial])]
        if np.any(values[1:] != values[:-1]) and not colour.accumulated:
            return None
        ends.append(values[-1] if len(values) else colour.values[trial[-1]])
    labels = np.array(ends)
    known = _known(labels)
    if colour.categorical or len(np.unique(labels[known])) <= max_groups:
        return labels
    edges = np.quantile(labels[known], np.linspace(0, 1, max_groups + 1)[1:-1])
    group = np.searchsorted(edges, labels, side="right")
    means = {own: labels[known & (group == own)].mean() for own in np.unique(group[known])}
    return np.array([means[own] if ok else np.nan for own, ok in zip(group, known, strict=True)])


def condition_means(
    projected: np.ndarray,
    trials: list[np.ndarray],
    labels: ArrayLike | None = None,
    min_fraction: float = 0.5,
) -> ConditionMeans:
    """Mean trajectory of each condition, with trials aligned on their start.

    Trials differ in length: the mean at time t includes all trials that reach t. It is nan where these are fewer than
    `min_fraction` of the condition's trials, because a mean over the few longest trials would jump.

    Args:
        projected: the steps on the principal components, (N, k).
        trials: as from `split_trials`.
        labels: one per trial; nan and "" leave a trial out; None puts all trials into one condition.
        min_fraction: smallest share of trials in a mean.
    """
    of_trial = np.zeros(len(trials)) if labels is None else np.asarray(labels)
    kinds = np.unique(of_trial[_known(of_trial)])
    longest = max(len(trial) for trial in trials)
    total = np.zeros((len(kinds), longest, projected.shape[1]))
    running = np.zeros((len(kinds), longest), dtype=int)
    for trial, label in zip(trials, of_trial, strict=True):
        row = np.flatnonzero(kinds == label)
        total[row, : len(trial)] += projected[trial]
        running[row, : len(trial)] += 1
    enough = running >= np.maximum(1, min_fraction * running[:, :1])
    mean = np.where(enough[..., None], total / np.maximum(running, 1)[..., None], np.nan)
    return ConditionMeans(kinds, mean, running)


# --- colours ------------------------------------------------------------------------------------------------


def _known(values: ArrayLike) -> np.ndarray:
    """Whether each value is known, i.e. neither nan, infinite nor an empty string."""
    values = np.asarray(values)
    if values.dtype.kind in "US":
        return values != ""
    return np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=bool)


def colour_keys(activity: Activity) -> list[str]:
    """The keys that `colour_values` accepts for this activity, except sums and differences of features."""
    columns = sorted(name for name in activity if name.startswith(("condition_", "info_")))
    conditions = list(dict.fromkeys(name.partition("_")[2] for name in columns))
    features = [f"obs_{index}" for index in range(activity["observations"].shape[1])]
    return [*conditions, "choice", "ground_truth", "correct", "time", "trial", *features]


def colour_values(activity: Activity, key: str) -> ColourValues:
    """One value per step to colour trajectories by. Text and numbers with at most two values are categories.

        coh, condition_coh      a recorded condition
        hit, row                a number that the task gives for each step
        choice, ground_truth    of the last step of the trial, the decision; of each step in a task without trials
        correct                 the score of the trial
        time, trial             time in the trial, number of the trial
        obs_3, obs_1-obs_2      a feature of the observation, or the difference of two
        sum_obs_1-obs_2         either of these summed since the start of the trial: the accumulated evidence

    Raises: ConfigError, which lists the known keys.
    """
    name = key.removeprefix("condition_")
    column = next((f"{kind}_{name}" for kind in ("condition", "info") if f"{kind}_{name}" in activity), None)
    if column is not None:
        values = activity[column]
        known = values[_known(values)]
        return ColourValues(values, known.dtype.kind not in "fiu" or len(np.unique(known)) <= 2, name.replace("_", " "))
    if key == "time":
        return ColourValues(trial_time(activity)[0], False, trial_time(activity)[1])
    if key == "trial":
        return ColourValues(activity["trial"], False, "trial in episode")
    recorded = {"choice": "actions", "ground_truth": "ground_truth", "correct": "correct"}.get(key)
    if recorded in activity:
        return _outcome(activity, key, activity[recorded])
    match = re.fullmatch(r"(sum_)?obs_(\d+)(?:-obs_(\d+))?", key)
    features = activity["observations"].shape[1]
    if match and all(int(index) < features for index in match.groups()[1:] if index):
        summed, plus, minus = match.groups()
        label = key.replace("sum_", "accumulated ").replace("-", " - ")
        return ColourValues(_feature(activity, summed, plus, minus), False, label, summed is not None)
    known = ", ".join(colour_keys(activity))
    raise ConfigError(f"cannot colour by {key!r}; this recording has {known}")


def _outcome(activity: Activity, key: str, values: np.ndarray) -> ColourValues:
    """The value at the last step of the trial, on each of its steps; unchanged for a task without trials."""
    if values.ndim > 1:
        raise ConfigError(f"cannot colour by {key!r}: it is a vector of {values.shape[1]} numbers; take time or trial")
    values = np.where(values < 0, np.nan, values) if key == "ground_truth" else values.astype(float)
    if np.isnan(values).all():
        raise ConfigError(f"cannot colour by {key!r}: this task does not provide it")
    if np.any(activity["new_trial"]):
        trials = split_trials(activity)
        if key != "correct":  # an aborted trial ends before its decision
            values = np.where(activity.get("aborted", False), np.nan, values)
        values = np.concatenate([np.full(len(trial), values[trial[-1]]) for trial in trials])
    few = len(np.unique(values[~np.isnan(values)])) <= (2 if key == "correct" else 8)
    return ColourValues(values, few, key.replace("_", " "))


def _feature(activity: Activity, summed: str | None, plus: str, minus: str | None) -> np.ndarray:
    """Observation feature `plus`, minus feature `minus` if given, summed within each trial if `summed` is set, (N,)."""
    values = activity["observations"][:, int(plus)].astype(float)
    if minus is not None:
        values = values - activity["observations"][:, int(minus)]
    if summed:
        values = np.concatenate([np.cumsum(values[trial]) for trial in split_trials(activity)])
    return values
