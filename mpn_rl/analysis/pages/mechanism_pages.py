"""Pages on the mechanism: snapshots of M, fixed points, the neuromodulator, weights and readout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

import pca_analysis
from mpn_rl import config as cfg
from mpn_rl.analysis import confidence_intervals, fixed_points, trials
from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.analysis.figures import behaviour_figures, state_figures
from mpn_rl.analysis.pages.standard_pages import WITHOUT_WEIGHTS, Page, Recording, Row, attempt_page, one_value, row

AROUND = 10  # steps before and after a rewarded step
MODULATOR = "Neuromodulator around rewards"
READOUT = "Readout vectors on the components of h"


def pages(recording: Recording) -> Iterator[Page]:
    """The pages on the mechanism, one at a time, as in `standard_pages.pages`."""
    yield attempt_page("snapshots", "memory", "M at the end of each period", lambda: snapshots_page(recording))
    yield attempt_page("fixed_points", "dynamics", "Fixed points of the MPN", lambda: fixed_points_page(recording))
    yield attempt_page("modulator", "dynamics", MODULATOR, lambda: modulator_page(recording))
    yield attempt_page("weights", "weights", "Weights", lambda: weights_page(recording))
    yield attempt_page("readout", "weights", READOUT, lambda: readout_page(recording))


# --- M -----------------------------------------------------------------------------------------------------


def snapshots_page(recording: Recording) -> Page:
    """The mean M (or trace) at the end of each period, by choice."""
    name = next((name for name, array in recording.states.items() if array.ndim == 3), None)
    if name is None:
        raise MissingDataError(f"the core {recording.config['core']['name']} has no M and no trace")
    table, aligned = recording.table, recording.aligned
    labels = np.array([f"choice {choice:g}" if decided else ""
                       for choice, decided in zip(table["choice"], table["decided"], strict=True)])  # fmt: skip
    if len(np.unique(labels[labels != ""])) > trials.MOST_KINDS:
        raise MissingDataError(f"the trials end with more than {trials.MOST_KINDS} different choices")
    snapshots = trials.at_period_ends(recording.states[name], aligned, labels)
    figure = state_figures.snapshots_figure(snapshots, name=name, title=f"{recording.title}: mean {name} by choice")
    arrays = {f"{period}_{label}": image for period, of in snapshots.items() for label, image in of.items()}
    caption = (
        f"{name}, hidden units by inputs, at the last step of every period: mean over the trials of each choice (n = "
        f"{len(table['trial']):,} trials in total) and, for two choices, their difference in the last row. Blue is "
        "negative, red positive; each row has one scale."
    )
    warnings = one_value("the choice", table["choice"], "there is one row of maps and no difference")
    title = f"{name} at the end of each period"
    return Page("snapshots", "memory", title, caption, figure, arrays=arrays, warnings=warnings)


# --- dynamics -----------------------------------------------------------------------------------------------


def constant_inputs(recording: Recording) -> dict[str, np.ndarray]:
    """Zeros as "silence", and what each period shows, {name: (obs_dim,)}, as `fixed_points.period_inputs`."""
    seen = recording.activity["observations"].astype(float)
    inputs = {"silence": np.zeros(seen.shape[1])}
    names = recording.activity.get("period", np.full(len(seen), ""))
    for name in dict.fromkeys(names.tolist()):
        inputs |= fixed_points.period_inputs(name or "all steps", seen[names == name])
    return inputs


def encoded(weights: Mapping[str, np.ndarray], obs: np.ndarray, constant_input: bool) -> np.ndarray:
    """The input of the core for the observation `obs` (D,): `encoder.Encoder` in NumPy."""
    x = np.asarray(obs, float)
    if "encoder.embedding.weight" in weights:
        x = np.tanh(np.asarray(weights["encoder.embedding.weight"], float) @ x + weights["encoder.embedding.bias"])
    if "encoder.projection" in weights:
        x = np.asarray(weights["encoder.projection"], float) @ x + weights["encoder.offset"]
    return np.append(x, 1.0) if constant_input else x


def mpn_points(recording: Recording, obs: np.ndarray) -> fixed_points.FixedPoints:
    """All fixed points of the first MPN layer under the constant observation `obs` (D,). Raises: MissingDataError."""
    core = recording.config["core"]
    if "freeze_plasticity" not in core or core["name"] == cfg.RecurrentMPNConfig.name:
        raise MissingDataError(
            f"the core {core['name']} has no scalar equations; analyze probe searches its fixed points by minimisation"
        )
    if core["freeze_plasticity"]:
        raise MissingDataError("plasticity is frozen: M is constant and every input has one state")
    if core.get("m_activation", "none") != "none":  # files of older versions lack it
        raise MissingDataError(
            f"M is bounded by {core['m_activation']}, so the scalar equations do not hold; analyze probe searches its "
            "fixed points by minimisation"
        )
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
    """Fixed points under what the task shows in every period; the figure shows the delay, else the first period."""
    inputs = constant_inputs(recording)
    points = {name: mpn_points(recording, obs) for name, obs in inputs.items()}
    shown = next((name for name in points if "delay" in name), list(points)[min(1, len(points) - 1)])
    dt = float(recording.activity.get("dt_ms", 0.0)) or 1.0
    unit = "ms" if float(recording.activity.get("dt_ms", 0.0)) else "steps"
    figure = state_figures.fixed_points_figure(
        points[shown], dt=dt, unit=unit, title=f"{recording.title}: fixed points under constant input: {shown}"
    )
    rows, numbers = [], {}
    for name, of_input in points.items():
        stable = of_input.per_unit(stable_only=True)
        times = fixed_points.relaxation_time(of_input.eigenvalues[of_input.stable], dt).max(axis=1, initial=0.0)
        slowest = float(times.max(initial=0.0)) if len(times) else np.nan
        numbers[name] = {
            "units_with_two_stable_points": int((stable > 1).sum()),
            "log2_stable_states": of_input.log2_states(),
            f"slowest_relaxation_{unit}": slowest,
            "median_relaxation": float(np.median(times)) if len(times) else np.nan,
            "gain": of_input.gain,
        }
        units = len(of_input.gain)
        rows.append(Row(f"{name}: units with two stable points", float((stable > 1).sum()), n=units))
        rows.append(Row(f"{name}: slowest relaxation ({unit})", slowest, n=units))
    drawn = points[shown]
    caption = (
        f"All fixed points of M under a constant observation, that of {shown}, from one scalar equation h = f(a + c "
        f"h) per hidden unit (n = {len(drawn.gain)} units, {len(drawn.h)} points; first layer). A unit with feedback "
        "gain c above 1 can have two stable points and thus hold one bit without limit in time. Filled: stable, all "
        "eigenvalues of the update of that row of M lie inside the unit circle. The table lists the other inputs: "
        "silence, and what the task shows in each period. Where a period shows few different observations, the "
        "frequent ones (up to four) are separate inputs, named by the entries of the observation in which they "
        "differ; entries with noise have their mean over the steps of each input."
    )
    arrays = {name: np.asarray(part) for name, part in drawn._asdict().items() if name != "modulation"}
    headline = tuple(line for line in rows if line.what.startswith(f"{shown}: units"))
    title = "Fixed points of the MPN"
    return Page("fixed_points", "dynamics", title, caption, figure, rows, numbers, arrays, headline=headline)


def modulator_page(recording: Recording) -> Page:
    """The neuromodulator around rewarded steps."""
    activity = recording.activity
    if "state_modulator" not in activity:
        core = recording.config["core"]["name"]
        raise MissingDataError(f"the core {core} has no neuromodulator, or it was not recorded")
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
    course = confidence_intervals.gather(columns)
    overall = confidence_intervals.mean(_nanmean(signal[None]))
    figure = behaviour_figures.curve_figure(
        {"modulator": (offsets[kept], course)}, xlabel="steps after a rewarded step", ylabel="modulator m",
        of="episodes", reference=(overall.value, "mean over all steps"),
        title=f"{recording.title}: neuromodulator around rewards",
    )  # fmt: skip
    what = "hits" if "info_hit" in activity else "steps with a positive reward"
    caption = (
        f"The neuromodulator around n = {len(places):,} {what}: mean within each episode, then over episodes (n = "
        f"{len(means):,}); band: 95 % t interval over episodes. Dashed: the mean over all steps."
    )
    rows = [row(f"modulator {offset:+d} steps", column)
            for offset, column in zip(offsets[kept], columns, strict=True) if offset in (-1, 0, 1, 2)]  # fmt: skip
    arrays = {"offset": offsets[kept], **course._asdict()}
    return Page("modulator", "dynamics", MODULATOR, caption, figure, rows, arrays=arrays)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Means of columns; nan, without a warning, where all values are nan."""
    there = np.isfinite(values)
    total = np.where(there, values, 0.0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


# --- weights ------------------------------------------------------------------------------------------------

NAMES = {"weight": "W", "eta": "eta", "lambda_decay": "lambda", "alpha": "alpha", "weight_ih_l": "W input ",
         "weight_hh_l": "W recurrent ", "recurrent": "W recurrent"}  # fmt: skip
# The order in which torch.nn stacks the rows.
GATES = {"gru": ("reset r", "update z", "candidate n"), "lstm": ("input i", "forget f", "cell g", "output o")}


def core_maps(recording: Recording, most: int = 4) -> dict[str, np.ndarray]:
    """The first `most` matrices of the core, by readable names. Raises: MissingDataError where there is none."""
    frozen = recording.config["core"].get("freeze_plasticity", False)
    maps = {}
    for name, array in recording.weights.items():
        match = re.fullmatch(r"core\.(?:layers\.|net\.)?(?:(\d+)\.)?([a-z_]+?)(\d*)", name)
        if not match or np.ndim(array) != 2 or match[2] not in NAMES:
            continue
        if frozen and match[2] in ("eta", "lambda_decay"):
            continue
        layer = int(match[1] or match[3] or 0)
        maps[NAMES[match[2]].strip() + (f" {layer + 1}" if layer else "")] = np.asarray(array, float)
    if not maps:
        raise MissingDataError("the core has no matrix of a known name" if recording.weights else WITHOUT_WEIGHTS)
    return dict(list(maps.items())[:most])


def weights_page(recording: Recording) -> Page:
    """Maps of W, eta and lambda, or of the other matrices of the core."""
    maps = core_maps(recording)
    gates = GATES.get(recording.config["core"]["name"], ())
    figure = state_figures.weights_figure(maps, gates=gates, title=f"{recording.title}: weights")
    rows = [Row(f"{name}, mean", float(array.mean()), n=array.size) for name, array in maps.items()]
    numbers = {name: {"mean": array.mean(), "sd": array.std(), "shape": array.shape} for name, array in maps.items()}
    caption = (
        f"The core's trained weights, {'gates and their ' if gates else ''}hidden units down, inputs across: "
        + ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in maps.items())
        + ". A value that all synapses share is given in the title. Blue is negative, red positive."
    )
    return Page("weights", "weights", "Weights", caption, figure, rows, numbers, maps)


def readout_page(recording: Recording) -> Page:
    """Cosines of the actions' readout vectors with the principal components of h."""
    name = next((name for name in recording.weights if re.fullmatch(r"head\.(\w+\.)?weight", name)), "head.weight")
    readout, fit = recording.weight(name), recording.fit("h")
    if recording.config["learner"].get("dueling") and len(readout) > 1:  # the weights of Q, as in `DuelingHead`
        readout = readout[:1] + readout[1:] - readout[1:].mean(0)
    projection = pca_analysis.project_readout(readout, fit.components)
    figure = state_figures.readout_figure(projection, title=f"{recording.title}: readout vectors")
    rows = [Row(f"action {action}: share within {len(fit.components)} components (%)", 100 * float(inside))
            for action, inside in enumerate(projection.inside)]  # fmt: skip
    caption = (
        f"Cosine of each action's readout vector (the weights of its output, n = {len(readout)} actions) with the "
        f"leading principal components of h; the legend gives the share of its squared length within the first "
        f"{len(fit.components)} components."
    )
    arrays = {"cosines": projection.cosines, "inside": projection.inside}
    return Page("readout", "weights", READOUT, caption, figure, rows, arrays=arrays)
