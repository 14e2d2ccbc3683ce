"""Trials of a recording: alignment on the task's periods, conditions, choices and evidence.

The input is one recording (`pca_analysis.load_activity`). The choice of a trial is the action of its last step, the
ground truth is the right action there: NeuroGym scores the decision at this step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.options import ConfigError
from pca_analysis import Activity, split_trials

Table = dict[str, np.ndarray]
# Prefixes of the conditions that describe the first stimulus, which the agent must remember.
STIMULI = ("sample", "stim", "theta", "pair", "v1", "duration1", "direction")
SIGNED = ("log_odd", "v1-v2", "duration1-duration2")  # strengths that have a sign
MOST_KINDS = 64  # largest number of values of a label
LEAST_PER_CLASS = 10  # trials of each conditional label
FEW = 8  # largest number of categories; numbers with more values are grouped


class Aligned(NamedTuple):
    """Steps of the recording, a row per trial, a column per aligned step.

    rows (n, T): index of the step in the recording, -1 where a trial has none. time (T,): of the column, in `unit` (ms,
    or steps for a task without a clock). onsets: {period: column at which it begins}, in order.
    """

    rows: np.ndarray
    time: np.ndarray
    unit: str
    onsets: dict[str, int]

    @property
    def ends(self) -> dict[str, int]:
        """The last column of each period."""
        starts = [*self.onsets.values(), self.rows.shape[1]]
        return {name: following - 1 for name, following in zip(self.onsets, starts[1:], strict=True)}

    def marks(self) -> dict[str, float]:
        """The time at which each period begins."""
        return {name: float(self.time[column]) for name, column in self.onsets.items()}


class Strength(NamedTuple):
    """Signed strength of the evidence per trial (n,), its name, and the right actions for negative and positive."""

    values: np.ndarray
    label: str
    low_action: int
    high_action: int


# --- alignment ----------------------------------------------------------------------------------------------


def complete_trials(activity: Activity) -> list[np.ndarray]:
    """The steps of each complete trial; of each episode for a task without trials."""
    return split_trials(activity, complete_only=bool(np.any(activity["new_trial"])))


def _periods(activity: Activity, trial: np.ndarray) -> dict[str, tuple[int, int]]:
    """{period: (first step in the trial, number of steps)}; the second occurrence of a period is `name 2`."""
    names = activity["period"][trial] if "period" in activity else np.full(len(trial), "")
    starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1), len(trial)]
    spans: dict[str, tuple[int, int]] = {}
    seen: dict[str, int] = {}
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        name = str(names[start]) or "trial"
        seen[name] = seen.get(name, 0) + 1
        spans[name if seen[name] == 1 else f"{name} {seen[name]}"] = (int(start), int(end - start))
    return spans


def _clock(activity: Activity) -> tuple[float, str]:
    """Duration of a step and its unit: ms, or steps for a task without a clock."""
    dt_ms = float(activity.get("dt_ms", 0.0))
    return (dt_ms, "ms") if dt_ms > 0 else (1.0, "steps")


def align_periods(activity: Activity, trials: Sequence[np.ndarray]) -> Aligned:
    """Align every period on its own onset: fixation | stimulus | delay | decision.

    A period has as many columns as it has steps in the median trial (none if fewer than half of the trials have it): a
    longer one is cut, a shorter one is filled with -1. The time of a column is that of the median trial.

    Args: trials: the steps of each trial, as from `complete_trials`.

    Raises: MissingDataError without trials, or without a period that most trials have.
    """
    if not trials:
        raise MissingDataError("the recording has no complete trial")
    spans = [_periods(activity, trial) for trial in trials]
    names = list(dict.fromkeys(name for span in spans for name in span))
    lengths = {name: int(np.median([span.get(name, (0, 0))[1] for span in spans])) for name in names}
    starts = {name: float(np.median([span[name][0] for span in spans if name in span])) for name in names}
    names = sorted((name for name in names if lengths[name]), key=starts.__getitem__)
    if not names:
        raise MissingDataError("no period is common to most trials")
    onsets = dict(zip(names, np.cumsum([0, *(lengths[name] for name in names)]).tolist(), strict=False))
    rows = np.full((len(trials), sum(lengths[name] for name in names)), -1)
    for line, trial, span in zip(rows, trials, spans, strict=True):
        for name in names:
            start, length = span.get(name, (0, 0))
            length = min(length, lengths[name])
            line[onsets[name] : onsets[name] + length] = trial[start : start + length]
    dt, unit = _clock(activity)
    return Aligned(rows, dt * np.arange(rows.shape[1]), unit, onsets)


def align_on(
    activity: Activity, trials: Sequence[np.ndarray], period: str, before: int = 0, after: int | None = None
) -> Aligned:
    """Align trials on the onset of one period; trials without the period have a row of -1.

    Args:
        trials: the steps of each trial.
        period: its name.
        before, after: number of columns before and from the onset; None: up to the end of the longest trial.

    Raises: ConfigError for an unknown period; it lists the known ones.
    """
    spans = [_periods(activity, trial) for trial in trials]
    periods = list(dict.fromkeys(name for span in spans for name in span))
    if period not in periods:
        raise ConfigError(f"no period {period!r} in this recording; its periods are {', '.join(periods)}")
    if after is None:
        after = max(len(trial) - span[period][0] for trial, span in zip(trials, spans, strict=True) if period in span)
    rows = np.full((len(trials), before + after), -1)
    for line, trial, span in zip(rows, trials, spans, strict=True):
        if period in span:
            steps = span[period][0] + np.arange(-before, after)
            inside = (steps >= 0) & (steps < len(trial))
            line[inside] = trial[steps[inside]]
    dt, unit = _clock(activity)
    return Aligned(rows, dt * np.arange(-before, after), unit, {period: before})


def take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The values at aligned rows (n, T), as floats (n, T, ...); nan where a row is -1."""
    taken = np.asarray(array)[rows].astype(np.result_type(array.dtype, np.float32))
    taken[rows < 0] = np.nan
    return taken


def at_period_ends(array: np.ndarray, aligned: Aligned, labels: np.ndarray | None = None) -> dict[str, Table]:
    """Mean of a state at the last aligned step of each period, over all trials or per label.

    Args:
        array: the state at every step of the recording, (N, ...).
        labels: one per trial, (n,); None averages over all trials.

    Returns: {period: {label: (...)}}.
    """
    labels = np.full(len(aligned.rows), "all trials") if labels is None else np.asarray(labels)
    snapshots: dict[str, Table] = {}
    for period, column in aligned.ends.items():
        rows = aligned.rows[:, column]
        kinds = {
            f"{kind:.4g}" if labels.dtype.kind == "f" else str(kind): kind for kind in np.unique(labels[known(labels)])
        }
        groups = {name: rows[(labels == kind) & (rows >= 0)] for name, kind in kinds.items()}
        snapshots[period] = {
            kind: array[chosen].mean(axis=0, dtype=np.float64) for kind, chosen in groups.items() if len(chosen)
        }
    return snapshots


# --- the trial table ------------------------------------------------------------------------------------


def known(values: np.ndarray) -> np.ndarray:
    """Whether each label is known, i.e. neither nan nor an empty string."""
    if values.dtype.kind in "US":
        return values != ""
    return ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)


def trial_table(activity: Activity, trials: Sequence[np.ndarray]) -> Table:
    """One value per trial in every column, (n,), ready for `pandas.DataFrame`.

    The columns are episode, trial, length (steps), aborted (whether the trial ended before its decision, as the task
    says), decided (whether it was not), choice and ground_truth (nan where the trial was aborted, or where unknown),
    correct (the task's score), every condition_<name>, and reaction (time from the onset of the deciding period, that
    in which most decided trials end, to the last step, in ms or steps; nan where it was not reached). In a recording
    without the column `aborted`, the deciding period is the latest in which a tenth of the trials end, and trials that
    do not reach it are aborted.

    Raises: MissingDataError for a task without trials.
    """
    if not np.any(activity["new_trial"]) or not trials:
        raise MissingDataError("the task has no trials that end")
    if activity["actions"].ndim > 1:
        raise MissingDataError("the actions are vectors, so the trials have no choice")
    first, last = np.array([trial[0] for trial in trials]), np.array([trial[-1] for trial in trials])
    truth = activity["ground_truth"][last].astype(float)
    spans = [_periods(activity, trial) for trial in trials]
    final = _deciding_period(spans, activity["aborted"][last] if "aborted" in activity else None)
    aborted = activity["aborted"][last] if "aborted" in activity else np.array([final not in span for span in spans])
    decided = ~aborted
    dt, _ = _clock(activity)
    reaction = [
        dt * (len(trial) - 1 - span[final][0]) if reached and final in span else np.nan
        for trial, span, reached in zip(trials, spans, decided, strict=True)
    ]
    choice = activity["actions"][last]
    table = {name: activity[name][first] for name in ("episode", "trial")}
    table |= {"length": last - first + 1, "choice": choice if decided.all() else np.where(decided, choice, np.nan)}
    table |= {"ground_truth": np.where((truth < 0) | ~decided, np.nan, truth)}
    table |= {"correct": activity["correct"][last].astype(float), "aborted": aborted, "decided": decided}
    table |= {"reaction": np.array(reaction)}
    return table | {name: activity[name][first] for name in activity if name.startswith("condition_")}


def _deciding_period(spans: Sequence[dict[str, tuple[int, int]]], aborted: np.ndarray | None) -> str:
    """The period in which most trials end that are not aborted; the latest usual one where that is unknown.

    Args: spans: `_periods` of each trial. aborted: of each trial, (n,); None: unknown.
    """
    ending = [next(reversed(span)) for span in spans]
    if aborted is None:
        usual = {name for name in ending if 10 * ending.count(name) >= len(ending)}
        onset = {name: float(np.median([span[name][0] for span in spans if name in span])) for name in usual}
        return max(onset, key=onset.__getitem__) if onset else ending[0]
    kept = [name for name, early in zip(ending, aborted, strict=True) if not early]
    return max(dict.fromkeys(kept), key=kept.count) if kept else ""


def _condition(table: Table, name: str) -> np.ndarray | None:
    """A numeric condition of each trial, (n,); None where the task has none of this name."""
    values = table.get(f"condition_{name}")
    return values.astype(float) if values is not None and values.dtype.kind in "biuf" else None


def selected_coherence(table: Table) -> Table:
    """The coherence of the channel that the context selects in each trial and, of two channels, that of the other one.

    Returns: "attended coherence" and "unattended coherence", (n,), from coh_1, coh_2, ...; {} for a task without a
        context or channels.
    """
    context = _condition(table, "context")
    channels: list[np.ndarray] = []
    while (coherence := _condition(table, f"coh_{len(channels) + 1}")) is not None:
        channels.append(coherence)
    if context is None or not channels or not np.isin(context, np.arange(len(channels))).all():
        return {}
    places = np.arange(len(context))
    selected = {"attended coherence": np.stack(channels)[context.astype(int), places]}
    if len(channels) == 2:
        selected["unattended coherence"] = np.stack(channels)[1 - context.astype(int), places]
    return selected


def _magnitude(table: Table) -> tuple[np.ndarray, str] | None:
    """Unsigned strength of the evidence and its name: `coh`, or the coh_1, coh_2, ... that the context selects."""
    if (coherence := _condition(table, "coh")) is not None:
        return np.abs(coherence), "coherence"
    if selected := selected_coherence(table):
        return np.abs(selected["attended coherence"]), "attended coherence"
    return None


def signed_strength(table: Table) -> Strength:
    """Strength of the evidence in each trial; the sign shows which of two choices it supports.

        strength = coherence x (+1 where the right action is the higher of the two, -1 where it is the lower)

    The coherence is the condition `coh`, or the one of `coh_1`, `coh_2` that the condition `context` selects. Tasks
    without coherence may have a strength with a sign (SIGNED); it is flipped if necessary to grow with the higher
    action.

    Raises: MissingDataError where there is neither, or where the task does not have exactly two right actions.
    """
    truth = table["ground_truth"]
    sides = np.unique(truth[known(truth)])
    if len(sides) != 2:
        raise MissingDataError(f"the task has {len(sides)} right actions at the decision; this measure needs two")
    sign = np.where(np.isnan(truth), np.nan, np.where(truth == sides[1], 1.0, -1.0))
    if (strength := _magnitude(table)) is not None:
        magnitude, label = strength
        return Strength(magnitude * sign, f"{label} (%)" if magnitude.max() > 1 else label, *map(int, sides))
    for name in SIGNED:
        first, _, second = name.partition("-")
        values, less = _condition(table, first), _condition(table, second)
        if values is not None and (less is not None or not second):
            values = values if less is None else values - less
            turned = values * (1.0 if np.nansum(values * sign) >= 0 else -1.0)
            label = name if np.array_equal(turned, values, equal_nan=True) else f"-({name})"
            return Strength(turned, label, *map(int, sides))
    raise MissingDataError("the task's conditions have no coherence or other graded evidence")


def irrelevant_strength(table: Table) -> Strength:
    """Signed strength of the cue that the context tells to ignore; its own side is the condition `other_choice`.

    Raises: MissingDataError for a task without a second cue.
    """
    other, unattended = _condition(table, "other_choice"), selected_coherence(table).get("unattended coherence")
    if other is None or unattended is None:
        raise MissingDataError("the task has no irrelevant cue")
    attended = signed_strength(table)
    sign = np.where(other == attended.high_action, 1.0, np.where(other == attended.low_action, -1.0, np.nan))
    return Strength(np.abs(unattended) * sign, "unattended coherence", attended.low_action, attended.high_action)


def accumulated_evidence(
    activity: Activity, aligned: Aligned, strength: np.ndarray, context: np.ndarray | None = None
) -> np.ndarray:
    """The evidence that the agent has seen up to each aligned step, including noise.

        e_t = sum_{s <= t} w . (obs_s - mean over trials of obs_s)      w = sum_s cov(obs_s, strength)

    w weights each observation entry by its covariance with the signed strength over trials, separately for each
    context, so it needs no knowledge of the task's channels.

    Args:
        strength: signed coherence, (n,), nan where unknown.
        context: the channel to attend to, (n,); None if there is only one.

    Returns: (n, T); positive values support the higher action; 0 before the first evidence.
    """
    seen = take(activity["observations"], aligned.rows).astype(float)  # (n, T, D)
    evidence = np.zeros(aligned.rows.shape)
    context = np.zeros(len(seen)) if context is None else context
    for kind in np.unique(context[known(context)]):
        own = context == kind
        there = ~np.isnan(seen[own])
        count = np.maximum(there.sum(axis=0), 1)
        centred = np.where(there, seen[own] - np.where(there, seen[own], 0.0).sum(axis=0) / count, 0.0)
        centred[:, np.abs(centred).max(axis=(0, 2)) < 1e-6] = 0.0  # rounding errors where all trials see the same
        drive = np.where(known(strength[own]), strength[own] - np.nanmean(strength[own]), 0.0)
        weight = np.einsum("n,ntd->d", drive, centred)
        evidence[own] = np.cumsum(centred @ (weight / max(np.linalg.norm(weight), 1e-12)), axis=1)
    return evidence


def evidence_of(activity: Activity, aligned: Aligned, table: Table) -> np.ndarray:
    """`accumulated_evidence` of a recording with its own strengths and contexts, (n, T).

    Raises: MissingDataError where the task has no graded evidence, or shows all of it at once.
    """
    strength = signed_strength(table)
    if strength.label.startswith(SIGNED + tuple(f"-({name})" for name in SIGNED)):
        raise MissingDataError("the task shows all its evidence at once, so there is nothing to accumulate")
    return accumulated_evidence(activity, aligned, strength.values, table.get("condition_context"))


def evidence_strata(evidence: np.ndarray, groups: int = 8) -> np.ndarray:
    """The amount of evidence of each trial, whatever its sign, in groups of equal size: (n, T) -> (n,) int."""
    amount = np.abs(evidence[:, -1])
    return np.searchsorted(np.quantile(amount, np.linspace(0, 1, groups + 1)[1:-1]), amount, side="right")


def balanced_trials(cell: np.ndarray, cells: int, stratum: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """A random choice of trials with the same number of every cell in each stratum, as many as there are: (n,) bool.

    Args:
        cell: of each trial, 0 to cells - 1, (n,).
        cells: their number.
        stratum: of each trial, (n,); None: all trials are one.
        seed: of the choice.
    """
    stratum = np.zeros(len(cell), int) if stratum is None else stratum
    order = np.random.default_rng(seed).permutation(len(cell))
    kept = np.zeros(len(cell), bool)
    for own in np.unique(stratum):
        there = order[stratum[order] == own]
        members = [there[cell[there] == kind] for kind in range(cells)]
        for chosen in members:
            kept[chosen[: min(map(len, members))]] = True
    return kept


def _category(values: np.ndarray, groups: int = 4) -> np.ndarray:
    """Labels unchanged if they have at most FEW values; else grouped by quantiles, with the group means as labels."""
    kinds = np.unique(values[known(values)])
    if len(kinds) <= FEW or values.dtype.kind in "US":
        return values
    edges = np.quantile(values[known(values)], np.linspace(0, 1, groups + 1)[1:-1])
    group = np.searchsorted(edges, values, side="right")
    means = np.array([values[known(values) & (group == own)].mean() for own in range(groups)])
    return np.where(known(values), means[group], np.nan)


def conditional_labels(labels: np.ndarray, given: np.ndarray, seed: int = 0) -> np.ndarray:
    """The labels of a random choice of trials in which `given` says nothing about them, unknown elsewhere.

    Of the trials with one value of `given`, the same number is chosen with every label.

    Args: labels, given: of each trial, (n,). seed: of the choice.
    """
    use = np.flatnonzero(known(labels) & known(given))
    kinds, index = np.unique(labels[use], return_inverse=True)
    chosen = use[balanced_trials(index, len(kinds), np.unique(given[use], return_inverse=True)[1], seed)]
    kept = np.zeros(len(labels), bool)
    kept[chosen] = True
    return np.where(kept, labels, "" if labels.dtype.kind in "US" else np.nan)


def label_sets(activity: Activity, aligned: Aligned, table: Table) -> tuple[Table, dict[str, str]]:
    """The labels for decoding: one per trial, (n,), or one per trial and step, (n, T).

        stimulus   the first condition whose name begins as in STIMULI, else the right choice
        evidence   the sign of the evidence so far (`accumulated_evidence`); nan before the first evidence
        choice     the action at the last step of the trial
        context    the condition `context`, or `rule`
        choice given stimulus, stimulus given choice    `conditional_labels`: what the label shares with the other one
                   does not help

    Returns: the labels that vary, and a sentence for each label that is missing.
    """
    conditions = {name.removeprefix("condition_"): name for name in table if name.startswith("condition_")}
    shown = [n for start in STIMULI for n in conditions if n.startswith(start) and not n.endswith("period")]
    context = conditions.get("context", conditions.get("rule"))
    labels: Table = {"stimulus": _category(table[conditions[shown[0]] if shown else "ground_truth"])}
    missing: dict[str, str] = {}
    try:
        evidence = evidence_of(activity, aligned, table)
        labels["evidence"] = np.where(np.abs(evidence) < 1e-9, np.nan, np.sign(evidence))
    except MissingDataError as reason:
        missing["evidence"] = str(reason)
    labels["choice"] = table["choice"]
    if context is None:
        missing["context"] = str(MissingDataError("the task has no condition `context`"))
    else:
        labels["context"] = table[context]
    for name, values in list(labels.items()):
        kinds = len(np.unique(values[known(values)]))
        if not 2 <= kinds <= MOST_KINDS:
            why = "is the same in all trials" if kinds < 2 else f"has more than {MOST_KINDS} values"
            missing[name] = str(MissingDataError(f"the {name} {why}"))
            del labels[name]
    for name, given in (("choice", "stimulus"), ("stimulus", "choice")):
        if not {name, given} <= set(labels):
            continue
        chosen = conditional_labels(labels[name], labels[given])
        least = min(int(np.sum(chosen == kind)) for kind in np.unique(labels[name][known(labels[name])]))
        if least < LEAST_PER_CLASS:
            missing[f"{name} given {given}"] = str(
                MissingDataError(f"too few trials ({least}) of some {name} remain where the {given} says nothing of it")
            )
        else:
            labels[f"{name} given {given}"] = chosen
    return labels, missing
