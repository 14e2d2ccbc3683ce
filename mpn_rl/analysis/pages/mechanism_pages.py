"""Pages on how the network does it: snapshots of M, fixed points, the neuromodulator, weights and readout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

import pca_analysis
from mpn_rl.analysis import confidence_intervals, fixed_points, trials
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.figures import behaviour_figures, state_figures
from mpn_rl.analysis.pages.standard_pages import Page, Recording, Row, made, row

AROUND = 10  # steps before and after a rewarded one


def pages(recording: Recording) -> Iterator[Page]:
    """One page after the other, as in `standard_pages.pages`."""
    yield made("snapshots", "memory", "M at the ends of periods", lambda: snapshots_page(recording))
    yield made("fixed_points", "dynamics", "Fixed points of the MPN", lambda: fixed_points_page(recording))
    yield made("modulator", "dynamics", "The neuromodulator", lambda: modulator_page(recording))
    yield made("weights", "weights", "Weights", lambda: weights_page(recording))
    yield made("readout", "weights", "Where the readout looks", lambda: readout_page(recording))


# --- M -----------------------------------------------------------------------------------------------------


def _matrices(recording: Recording) -> list[str]:
    return [name for name, array in recording.states.items() if array.ndim == 3]


def snapshots_page(recording: Recording) -> Page:
    """The mean M (or trace) at the end of each period, by choice."""
    matrices = _matrices(recording)
    if not matrices:
        raise MissingDataError(f"the core {recording.config['core']['name']} has no M and no trace")
    aligned, table = recording.trial_parts()
    name = matrices[0]
    labels = np.array([f"choice {choice:g}" for choice in table["choice"]])
    snapshots = trials.at_period_ends(recording.states[name], aligned, labels)
    figure = state_figures.snapshots_figure(snapshots, name=name, title=f"{recording.title}; by choice")
    arrays = {f"{period}_{label}": image for period, of in snapshots.items() for label, image in of.items()}
    caption = (
        f"{name}, hidden units by inputs, averaged over the trials of each choice (n = {len(table['trial']):,} "
        "trials in all) at the last step of every period; last line, where there are two: their difference. Blue is "
        "negative, red positive, one scale per line."
    )
    return Page("snapshots", "memory", f"{name} at the ends of periods", caption, figure, arrays=arrays)


# --- dynamics -----------------------------------------------------------------------------------------------


def constant_inputs(recording: Recording) -> dict[str, np.ndarray]:
    """{"silence": zeros, period: its mean observation}, each (obs_dim,)."""
    seen = recording.activity["observations"].astype(float)
    inputs = {"silence": np.zeros(seen.shape[1])}
    names = recording.activity.get("period", np.full(len(seen), ""))
    for name in dict.fromkeys(names.tolist()):
        inputs[name or "all steps"] = seen[names == name].mean(axis=0)
    return inputs


def encoded(weights: Mapping[str, np.ndarray], obs: np.ndarray, constant_input: bool) -> np.ndarray:
    """What the core sees of an observation: `encoder.Encoder` in NumPy."""
    x = np.asarray(obs, float)
    if "encoder.embedding.weight" in weights:
        x = np.tanh(np.asarray(weights["encoder.embedding.weight"], float) @ x + weights["encoder.embedding.bias"])
    return np.append(x, 1.0) if constant_input else x


def mpn_points(recording: Recording, obs: np.ndarray) -> fixed_points.FixedPoints:
    """All fixed points of the first MPN layer while `obs` is held. Raises: MissingDataError."""
    core = recording.config["core"]
    if "freeze_plasticity" not in core:
        raise MissingDataError(
            f"the core {core['name']} has no scalar equations; analyze probe looks for its fixed points by minimisation"
        )
    if core["freeze_plasticity"]:
        raise MissingDataError("plasticity is frozen: M is constant and every input has one state")
    prefix = "core.layers.0."
    weight = recording.weight(prefix + "weight")
    eta, decay = recording.weight(prefix + "eta"), recording.weight(prefix + "lambda_decay")
    if prefix + "mask" in recording.weights:
        eta = eta * recording.weight(prefix + "mask")
    x = encoded(recording.weights, obs, bool(recording.config["encoder"]["constant_input"]))
    return fixed_points.mpn_fixed_points(
        weight,
        recording.weight(prefix + "bias") if core["bias"] else None,
        eta,
        np.clip(decay, 0.0, core["lambda_max"]),
        x,
        form=core["form"],
        rule=core["rule"],
        activation=core["activation"],
    )


def fixed_points_page(recording: Recording) -> Page:
    """All roots under the mean observation of every period, drawn for the delay (else the first period)."""
    inputs = constant_inputs(recording)
    points = {name: mpn_points(recording, obs) for name, obs in inputs.items()}
    shown = next((name for name in points if "delay" in name), list(points)[min(1, len(points) - 1)])
    dt = float(recording.activity.get("dt_ms", 0.0)) or 1.0
    unit = "ms" if float(recording.activity.get("dt_ms", 0.0)) else "steps"
    figure = state_figures.fixed_points_figure(
        points[shown], dt=dt, unit=unit, title=f"{recording.title}: mean observation of {shown} held"
    )
    rows, numbers = [], {}
    for name, found in points.items():
        stable = found.per_unit(stable_only=True)
        times = fixed_points.relaxation_time(found.eigenvalues[found.stable], dt).max(axis=1, initial=0.0)
        slowest = float(times.max(initial=0.0)) if len(times) else np.nan
        numbers[name] = {
            "units_with_two_stable_points": int((stable > 1).sum()),
            "log2_stable_states": found.log2_states(),
            f"slowest_relaxation_{unit}": slowest,
            "median_relaxation": float(np.median(times)) if len(times) else np.nan,
            "gain": found.gain,
        }
        units = len(found.gain)
        rows.append(Row(f"{name}: units with two stable points", float((stable > 1).sum()), n=units))
        rows.append(Row(f"{name}: slowest relaxation ({unit})", slowest, n=units))
    found = points[shown]
    caption = (
        f"Every point at which M stays as it is while the mean observation of {shown} is held, from one scalar "
        f"equation h = f(a + c h) per hidden unit (n = {len(found.gain)} units, {len(found.h)} points; first layer). "
        "A unit with feedback gain c above 1 can have two stable points and hold one bit for ever. Filled: stable, "
        "all eigenvalues of the update of that row of M inside the unit circle. The table has the other periods."
    )
    arrays = {name: np.asarray(part) for name, part in found._asdict().items() if name != "modulation"}
    headline = tuple(line for line in rows if line.what.startswith(f"{shown}: units"))
    title = "Fixed points of the MPN"
    return Page("fixed_points", "dynamics", title, caption, figure, rows, numbers, arrays, headline=headline)


def modulator_page(recording: Recording) -> Page:
    """The neuromodulator around rewarded steps."""
    activity = recording.activity
    if "state_modulator" not in activity:
        raise MissingDataError(
            f"the core {recording.config['core']['name']} has no neuromodulator, or it was not recorded"
        )
    event = activity["info_hit"] > 0 if "info_hit" in activity else activity["rewards"] > 0
    signal, episode = activity["state_modulator"].reshape(len(event)).astype(float), activity["episode"]
    offsets = np.arange(-AROUND, AROUND + 1)
    places = np.flatnonzero(event)[:, None] + offsets
    inside = (places >= 0) & (places < len(signal))
    places = places.clip(0, len(signal) - 1)
    inside &= episode[places] == episode[np.flatnonzero(event)][:, None]
    if not len(places):
        raise MissingDataError("no step of the recording was rewarded")
    around = np.where(inside, signal[places], np.nan)
    of_episode = episode[np.flatnonzero(event)]
    means = np.array([_nanmean(around[of_episode == own]) for own in np.unique(of_episode)])
    columns = [confidence_intervals.mean(column) for column in means.T if np.isfinite(column).any()]
    kept = np.isfinite(means).any(axis=0)
    course = Estimate(*(np.array([column[field] for column in columns]) for field in range(4)))
    overall = confidence_intervals.mean(_nanmean(signal[None]))
    figure = behaviour_figures.curve_figure(
        {"modulator": (offsets[kept], course)}, xlabel="steps from a rewarded one", ylabel="modulator M",
        of="episodes", reference=(float(overall.value), "mean over all steps"), title=recording.title,
    )  # fmt: skip
    what = "hits" if "info_hit" in activity else "steps with a positive reward"
    caption = (
        f"The neuromodulator around n = {len(places):,} {what}: mean over each episode's, then over episodes (n = "
        f"{len(means):,}); band: 95 % bootstrap over episodes. Dashed: its mean over all steps."
    )
    rows = [row(f"modulator {offset:+d} steps", column)
            for offset, column in zip(offsets[kept], columns, strict=True) if offset in (-1, 0, 1, 2)]  # fmt: skip
    arrays = {"offset": offsets[kept], **course._asdict()}
    return Page("modulator", "dynamics", "The neuromodulator around rewards", caption, figure, rows, arrays=arrays)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Means of columns, nan without a warning where all is nan."""
    there = np.isfinite(values)
    total = np.where(there, values, 0.0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


# --- weights ------------------------------------------------------------------------------------------------

NAMES = {"weight": "W", "eta": "eta", "lambda_decay": "lambda", "alpha": "alpha", "weight_ih_l": "W input ",
         "weight_hh_l": "W recurrent "}  # fmt: skip


def core_maps(recording: Recording, most: int = 4) -> dict[str, np.ndarray]:
    """The core's matrices by readable names, of the first layers."""
    frozen = recording.config["core"].get("freeze_plasticity", False)
    maps = {}
    for name, array in recording.weights.items():
        found = re.fullmatch(r"core\.(?:layers\.|net\.)?(?:(\d+)\.)?([a-z_]+?)(\d*)", name)
        if (
            not found
            or np.ndim(array) != 2
            or found[2] not in NAMES
            or (frozen and found[2] in ("eta", "lambda_decay"))
        ):
            continue
        layer = int(found[1] or found[3] or 0)
        maps[NAMES[found[2]].strip() + (f" {layer + 1}" if layer else "")] = np.asarray(array, float)
    if not maps:
        again = "the weights were not recorded: collect again"
        raise MissingDataError("the core has no matrix of a known name" if recording.weights else again)
    return dict(list(maps.items())[:most])


def weights_page(recording: Recording) -> Page:
    """Maps of W, eta and lambda, or of the core's other matrices."""
    maps = core_maps(recording)
    figure = state_figures.weights_figure(maps, title=recording.title)
    rows = [Row(f"{name}, mean", float(array.mean()), n=array.size) for name, array in maps.items()]
    numbers = {name: {"mean": array.mean(), "sd": array.std(), "shape": array.shape} for name, array in maps.items()}
    caption = (
        "The core's trained weights, hidden units down, inputs across: "
        + ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in maps.items())
        + ". Where one number serves all synapses it stands in the title. Blue is negative, red positive."
    )
    return Page("weights", "weights", "Weights", caption, figure, rows, numbers, maps)


def readout_page(recording: Recording) -> Page:
    """The readout vectors of the actions on the principal components of h."""
    name = next((name for name in recording.weights if re.fullmatch(r"head\.(\w+\.)?weight", name)), "head.weight")
    readout, fit = recording.weight(name), recording.fit("h")
    projection = pca_analysis.project_readout(readout, fit.components)
    figure = state_figures.readout_figure(projection, title=recording.title)
    rows = [Row(f"action {action}: share within {len(fit.components)} components (%)", 100 * float(inside))
            for action, inside in enumerate(projection.inside)]  # fmt: skip
    caption = (
        f"Cosine of each action's readout vector (its row of the head, n = {len(readout)} actions) with the leading "
        f"principal components of h; the legend says what share of its squared length lies within the first "
        f"{len(fit.components)}."
    )
    arrays = {"cosines": projection.cosines, "inside": projection.inside}
    return Page("readout", "weights", "Where the readout looks", caption, figure, rows, arrays=arrays)
