"""How often 95 % intervals hold the truth, and how often a null is exceeded, in seeded simulations.

    python benchmarks/interval_coverage.py [PART ...]        minutes on one core; the table of docs/analysis.md

The tests check the same with fewer simulations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mpn_rl.analysis import behaviour, confidence_intervals, decoding, demixed, evidence_weights  # noqa: E402
from mpn_rl.analysis.comparison import similarity  # noqa: E402
from mpn_rl.statistics import normalised_interval, trimmed_mean, wilson  # noqa: E402
from tests.recordings import make_two_cues  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "interval_coverage.json"
DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "uniform": lambda rng, size: rng.random(size),
    "Beta(20, 2)": lambda rng, size: rng.beta(20, 2, size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "two clusters": lambda rng, size: np.where(rng.random(size) < 0.8, 0.9, 0.5) + 0.03 * rng.normal(size=size),
}


def held(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    """The share of intervals that hold the truth."""
    return round(float(np.mean((low <= truth) & (truth <= high))), 3)


def means() -> dict[str, float]:
    """Student's interval of the mean and that of the interquartile mean, for 3 to 20 seeds."""
    result = {}
    for kind, draw in DRAWS.items():
        for name, cut in (("mean", 0.0), ("interquartile mean", 0.25)):
            for n in (3, 5, 10, 20):
                rng = np.random.default_rng(n)
                truth = float(stats.trim_mean(draw(rng, (n, 200_000)), cut, axis=0).mean())
                ends = trimmed_mean(draw(rng, (n, 20_000)), cut).interval()
                result[f"{name}, {kind}, n = {n}"] = held(*ends, truth)
    return result


def shares() -> dict[str, float]:
    """Wilson's interval of a share, and Fieller's of a normalised score."""
    rng, result = np.random.default_rng(0), {}
    for share, n in ((0.5, 20), (0.9, 40), (0.98, 64), (0.995, 400)):
        result[f"share {share}, n = {n}"] = held(*wilson(rng.binomial(n, share, 20_000), n), share)
    for truth in (0.1, 0.5, 0.9):
        samples = [(rng.random((2000, 80)) < p) * 1.1 - 0.1 for p in (0.3 + 0.65 * truth, 0.3, 0.95)]
        ends = np.array([normalised_interval(*rows) for rows in zip(*samples, strict=True)])
        result[f"normalised score {truth}, n = 80"] = held(*ends.T, truth)
    return result


def improvements() -> dict[str, float]:
    """The score interval of the probability of improvement, of normal scores of sd 1 and 2."""
    result = {}
    for n, m in ((3, 3), (5, 5), (4, 10), (10, 10)):
        for shift in (0.0, 0.7, 2.0):
            rng, truth = np.random.default_rng(0), float(stats.norm.cdf(shift / np.sqrt(5)))
            pairs = zip(rng.normal(shift, 1, (2000, n)), rng.normal(0, 2, (2000, m)), strict=True)
            ends = [confidence_intervals.probability_of_improvement(x, y)[1:3] for x, y in pairs]
            result[f"improvement {truth:.2f}, n = {n} and {m}"] = held(*np.array(ends).T, truth)
    return result


STRENGTHS = ([-50.0, -25, -12, -6, -3, 3, 6, 12, 25, 50], [-50.0, -15, -5, 5, 15, 50])  # coherences in %
CURVES = {  # bias, slope, lapse at the low and at the high end
    "lapses 0.05 and 0.1": (2.0, 0.1, 0.05, 0.1),
    "lapses 0.02": (0.0, 0.1, 0.02, 0.02),
    "no lapses": (0.0, 0.15, 0.0, 0.0),
}


def psychometrics() -> dict[str, float]:
    """The intervals of the psychometric parameters, and the share of recordings that do not determine a parameter."""
    result = {}
    ten, six = STRENGTHS
    for (kind, theta), (n, strengths) in itertools.product(CURVES.items(), ((500, ten), (500, six), (2000, six))):
        bias, slope, low, high = theta
        truths = {"bias": bias, "slope": slope, "threshold": np.log(3) / slope, "lapse_low": low, "lapse_high": high}
        fits = []
        for seed in range(200):
            rng = np.random.default_rng(seed)
            x = rng.choice(strengths, n)
            chose_high = rng.random(n) < behaviour.psychometric_curve(x, np.array(theta))
            fits.append(behaviour.psychometric(x, chose_high.astype(float), seed=seed))
        for name, truth in truths.items():
            ends = [fit.parameters[name][1:3] for fit in fits if name not in fit.undetermined]
            what = f"{name}, {kind}, {n} trials, {len(strengths)} strengths"
            result[what] = held(*np.array(ends).T, truth)
            result[f"not determined: {what}"] = round(1 - len(ends) / len(fits), 3)
    return result


AGENTS = {  # weight of the relevant cue at each step, of the irrelevant one, noise of the decision, trials
    "even weights": ([1.0] * 5, 0.0, 1.0, 600),
    "recency": ([0.2, 0.4, 0.6, 0.8, 1.0], 0.0, 1.0, 600),
    "both cues": ([1.0] * 5, 0.5, 1.0, 600),
    "few trials": ([1.0] * 5, 0.0, 1.0, 250),
    "15 steps": ([0.5] * 15, 0.0, 1.0, 600),
    "few errors": ([1.0] * 5, 0.0, 0.1, 600),
}


def kernels() -> dict[str, float]:
    """The weights of each step and of a whole cue, and the effect of its strength; the truth is the mean."""
    result = {}
    for name, agent in AGENTS.items():
        found = [evidence_weights.evidence_weights(*make_two_cues(*agent, seed=seed)) for seed in range(500)]
        for cue in (evidence_weights.RELEVANT, evidence_weights.IRRELEVANT):
            for what in ("weights", "total", "effect")[: 3 if cue == evidence_weights.IRRELEVANT else 2]:
                value, low, high, _ = (np.array(part) for part in zip(*(getattr(one, what)[cue] for one in found),
                                                                      strict=True))  # fmt: skip
                inside = (low <= value.mean(axis=0)) & (value.mean(axis=0) <= high)
                result[f"{what} of the {cue}, {name}"] = round(float(inside.mean()), 3)
    return result


# Of decoding: labels, episodes, trials of each, features, classes.
RECORDINGS = [
    ("per trial", 20, 10, 2, 2),
    *(
        ("per episode", *sizes)
        for sizes in ((20, 10, 2, 2), (12, 10, 2, 2), (40, 5, 2, 2), (20, 6, 20, 2), (20, 6, 2, 4))
    ),
]


def decodings() -> dict[str, float]:
    """Coverage of decoding, and its false alarms, with an offset of each episode in the state."""
    result = {}
    for labels, episodes, trials, features, classes in RECORDINGS:
        episode, n = np.repeat(np.arange(episodes), trials), episodes * trials
        what = f"labels {labels}, {episodes} episodes of {trials}, {features} features, {classes} classes"
        for apart in (0.0, 0.3, 1.0, 2.0):
            found = []
            for seed in range(300):
                rng = np.random.default_rng(seed)
                y = rng.permutation(n if labels == "per trial" else episodes) % classes
                y = y if labels == "per trial" else y[episode]
                x = rng.standard_normal((n, features)) + rng.standard_normal((episodes, features))[episode]
                x[:, :2] += apart * np.stack([np.cos(2 * np.pi * y / classes), np.sin(2 * np.pi * y / classes)], axis=1)
                rows, shuffles = np.arange(n)[:, None], 100 if apart == 0 else 0
                decoded = decoding.decode_states({"h": x}, rows, {"y": y}, episode, shuffles=shuffles, seed=seed)
                found.append(decoded["h"]["y"])
            truth = float(np.mean([one.accuracy[0] for one in found]))
            ends = np.array([(one.low[0], one.high[0]) for one in found]).T
            result[f"accuracy {truth:.2f}, {what}"] = held(*ends, truth)
            if apart == 0:
                above = np.mean([one.accuracy[0] > one.anywhere for one in found])
                result[f"false alarms, {what}"] = round(float(above), 3)
    return result


def shared_training() -> dict[str, float]:
    """The variance of decoding accuracy over recordings of 120 independent trials, relative to that of coin tosses.

    It is above 1 because the classifiers of the five folds share training trials: `decoding.SHARED`.
    """
    result, rows = {}, np.arange(120)[:, None]
    for classes, features, apart in itertools.product((2, 4), (2, 20), (0.0, 0.3, 0.7, 1.2, 2.0)):
        accuracy = []
        for seed in range(300):
            rng = np.random.default_rng(seed)
            y = rng.permutation(120) % classes
            x = rng.standard_normal((120, features))
            x[:, :2] += apart * np.stack([np.cos(2 * np.pi * y / classes), np.sin(2 * np.pi * y / classes)], axis=1)
            decoded = decoding.decode_states({"h": x}, rows, {"y": y}, np.arange(120), shuffles=0, seed=seed)
            accuracy.append(decoded["h"]["y"].accuracy[0])
        mean = float(np.mean(accuracy))
        ratio = float(np.var(accuracy, ddof=1)) / (mean * (1 - mean) / 120)
        result[f"accuracy {mean:.2f}, {classes} classes, {features} features"] = round(ratio, 2)
    return result


def conditions() -> dict[str, float]:
    """Coverage of decoding in the same and in other conditions, and false alarms of the latter.

    The label is coded alike in both conditions, or with the opposite sign; each episode has an offset of its own.
    """
    result = {}
    for episodes, trials, constant in ((20, 10, False), (40, 6, False), (20, 10, True)):
        episode, n = np.repeat(np.arange(episodes), trials), episodes * trials
        for apart, sign in ((0.0, 1), (0.3, 1), (1.0, 1), (1.0, -1)):
            found = []
            for seed in range(500 if apart == 0 else 300):
                rng = np.random.default_rng(seed)
                y = rng.permutation(n) % 2
                c = (rng.permutation(episodes) % 2)[episode] if constant else rng.permutation(n) % 2
                x = rng.standard_normal((n, 6)) + rng.standard_normal((episodes, 6))[episode]
                x[:, 0] += apart * (2 * y - 1) * np.where(c == 1, sign, 1)
                x[:, 1] += 2 * c
                shuffles = 100 if apart == 0 else 0
                rows = np.arange(n)[:, None]
                found.append(decoding.across_conditions(x, rows, y, c, episode, shuffles=shuffles, seed=seed))
            what = f"{episodes} episodes of {trials}, condition {'constant' if constant else 'per trial'}"
            for name in ("within", "across"):
                value, *ends = np.array([getattr(one, name)[:3] for one in found])[..., 0].T
                truth = float(value.mean())
                result[f"{name} {truth:.2f}, {what}"] = held(*ends, truth)
            if apart == 0:
                above = np.mean([one.across.value[0] > one.limits[1] for one in found])
                result[f"false alarms across, {what}"] = round(float(above), 3)
    return result


def similarities() -> dict[str, float]:
    """False alarms of the similarity of two runs whose condition means have nothing in common."""
    result, places = {}, [("stimulus", step) for step in range(5)]
    for conditions, features in ((4, 6), (6, 4), (12, 30)):
        above = []
        for seed in range(300):
            rng = np.random.default_rng(seed)
            runs = []
            for _ in range(2):
                steady = rng.standard_normal((conditions, 1, features))
                pattern = steady + 0.5 * rng.standard_normal((conditions, 5, features))
                means = pattern + 0.3 * rng.standard_normal((2, *pattern.shape))
                runs.append(similarity.ConditionMeans({"h": means}, [str(c) for c in range(conditions)], places))
            found = similarity.similarities(runs, "h", shuffles=60, seed=seed)
            above.append([found.value[name][0, 1] > found.limit[name][0, 1] for name in similarity.MEASURES])
        for name, share in zip(similarity.MEASURES, np.mean(above, axis=0), strict=True):
            result[f"false alarms of {name}, {conditions} conditions, {features} features"] = round(float(share), 3)
    return result


def demixings() -> dict[str, float]:
    """False alarms of the parts without effect, with equal and unequal cells of 120 trials."""
    result = {}
    for cells, sizes in (("equal cells", (30, 30, 30, 30)), ("unequal cells", (48, 12, 12, 48))):
        s, c = np.repeat([0, 0, 1, 1], sizes), np.repeat([0, 1, 0, 1], sizes)
        for strong in (0.0, 3.0):
            above = []
            for seed in range(300):
                x = np.random.default_rng(seed).standard_normal((120, 4, 3))
                x[..., 0] += strong * s[:, None]
                rows = np.arange(480).reshape(120, 4)
                parts = demixed.demixed(x.reshape(-1, 3), rows, {"s": s, "c": c}, shuffles=200, seed=seed)
                above.append([parts.shares[name] > parts.chance[name] for name in ("c", "s x c")])
            for name, share in zip(("choice", "interaction"), np.mean(above, axis=0), strict=True):
                result[f"{name}, {cells}, stimulus {strong:g} sd"] = round(float(share), 3)
    return result


def main() -> None:
    parts = {
        "means": means, "shares": shares, "improvement": improvements, "psychometric": psychometrics,
        "kernels": kernels,
        "decoding": decodings, "decoding variance ratio": shared_training, "conditions": conditions,
        "similarity": similarities,
        "demixed false alarms": demixings,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="(default: all; the others keep their results)")
    names = parser.parse_args().parts or list(parts)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        results[name] = parts[name]()
        RESULTS.write_text(json.dumps({name: results[name] for name in parts if name in results}, indent=1) + "\n")
    for name, values in results.items():
        print(name, *(f"  {value:.3f}  {what}" for what, value in values.items()), sep="\n")


if __name__ == "__main__":
    main()
