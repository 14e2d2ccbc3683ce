"""The pages of an analysis: each a measure of one recording with its picture, its caption and its numbers.

Here stand behaviour, state and memory, in `mechanism_pages.py` dynamics and weights, in `probe_pages.py` what was tried
on the network. `stages.py` saves what they hold, `report.py` binds them. What cannot be had is a page all the same,
with the sentence that says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import pca_analysis
import visualize
from mpn_rl.analysis import behaviour, confidence_intervals, decoding, demixed, trials
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.figures import behaviour_figures, state_figures
from mpn_rl.expansion import growth_figures
from pca_analysis import Activity, PCAResult

PARTS = ("learning", "behaviour", "state", "memory", "dynamics", "tests", "weights")
COMPONENTS = 20


class Row(NamedTuple):
    """A line of a page's table: what, its value with the ends of its 95 % interval (nan: none), and n (nan: none)."""

    what: str
    value: float
    low: float = np.nan
    high: float = np.nan
    n: float = np.nan


class Page(NamedTuple):
    """One measure. name: of its files; part: one of PARTS; figure: None where `missing` says why there is none.

    caption: what the picture shows, n, how it was computed; table: the main numbers, headline: those for an overview;
    numbers: everything, for JSON; arrays: what is too long for that, for NPZ.
    """

    name: str
    part: str
    title: str
    caption: str = ""
    figure: Any = None
    table: list[Row] = []  # noqa: RUF012 (never changed)
    numbers: Mapping[str, Any] = {}
    arrays: Mapping[str, np.ndarray] = {}
    missing: str = ""
    headline: tuple[Row, ...] = ()


class Recording:
    """One activity.npz with what all pages need of it.

    Args:
        activity: `pca_analysis.load_activity`.
        config: config.json, nested.
        weights: the network's tensors by name, as `analyze collect` stores them; {} if they are not there.
        colour: what to colour trajectories by; None: the right choice, else the choice, else time.
    """

    def __init__(
        self,
        activity: Activity,
        config: Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        colour: str | None = None,
    ) -> None:
        self.activity, self.config, self.weights = activity, config, weights
        self.title = f"{config['env']['env_name']}, {config['core']['name']}"
        self.states = pca_analysis.states(activity)
        self.colour_key = colour or default_colour(activity)
        self.colour = pca_analysis.colour_values(activity, self.colour_key)
        self.trials = trials.complete_trials(activity)
        self.aligned = confidence_intervals.attempt(lambda: trials.align_periods(activity, self.trials))
        self.table = confidence_intervals.attempt(lambda: trials.trial_table(activity, self.trials))
        self.fits: dict[str, PCAResult] = {}

    def fit(self, state: str) -> PCAResult:
        """The state's principal components, fitted once."""
        if state not in self.fits:
            self.fits[state] = pca_analysis.fit_pca(self.states[state], COMPONENTS)
        return self.fits[state]

    def trial_parts(self) -> tuple[trials.Aligned, trials.Table]:
        """Aligned trials and their table. Raises: MissingDataError."""
        for part in (self.table, self.aligned):
            if isinstance(part, str):
                raise MissingDataError(part.removeprefix("not available: "))
        return self.aligned, self.table  # type: ignore[return-value]

    def weight(self, name: str) -> np.ndarray:
        """A tensor of the network. Raises: MissingDataError."""
        if name not in self.weights:
            reason = f"the network has no {name}" if self.weights else "the weights were not recorded: collect again"
            raise MissingDataError(reason)
        return np.asarray(self.weights[name], float)


def default_colour(activity: Activity) -> str:
    """The right choice where the task tells it, else the choice made, else time."""
    if (activity["ground_truth"] >= 0).any():
        return "ground_truth"
    return "choice" if activity["new_trial"].any() else "time"


def pages(recording: Recording) -> Iterator[Page]:
    """What the agent did and what its state holds, page by page: a figure can be let go before the next is drawn."""
    yield made("behaviour", "behaviour", "What the agent did", lambda: behaviour_page(recording))
    yield variance_page(recording)
    for state in recording.states:
        stem = "trajectories_hidden" if state == "h" else f"trajectories_{state}"
        title = f"Trajectories of {state}"
        yield made(stem, "state", title, partial(trajectory_page, recording, state, stem, title))
    yield made("demixed", "state", "Time, stimulus and choice", lambda: demixed_page(recording))
    yield made("decoding", "memory", "What can be read from the state", lambda: decoding_page(recording))


def made(name: str, part: str, title: str, make: Callable[[], Page]) -> Page:
    """The page, or one that says why it cannot be had."""
    page = confidence_intervals.attempt(make)
    return Page(name, part, title, missing=page) if isinstance(page, str) else page


def row(what: str, estimate: Estimate) -> Row:
    return Row(what, *(float(part) for part in estimate))


# --- learning -----------------------------------------------------------------------------------------------


def learning_page(history: Mapping[str, Any], evaluations: list[dict], references: Mapping, title: str) -> Page:
    """How the run learned; `history` and `evaluations` as in `visualize.plot_training_curves`."""
    name, heading = "learning", "How it learned"
    if not len(history.get("step", ())) and not evaluations:
        return Page(name, "learning", heading, missing="not available: nothing was logged in metrics.jsonl: untrained?")
    figure = visualize.plot_training_curves(history, evaluations, references=references, title=title)
    table = []
    for key, what in (("accuracy", "greedy accuracy"), ("return_mean", "greedy return")):
        known = [(evaluation["step"], evaluation[key]) for evaluation in evaluations if evaluation.get(key) is not None]
        if known:
            best = max(known, key=lambda pair: pair[1])
            table += [Row(f"{what} at the end, step {known[-1][0]:,}", known[-1][1])]
            table += [Row(f"best {what}, step {best[0]:,}", best[1])]
    caption = (
        "Return, accuracy where the task scores trials, loss and exploration over environment steps, n = 1 run of "
        f"{len(history['step']):,} episodes. Dots: single training episodes, lines: their rolling means, open "
        f"points: {len(evaluations)} evaluations without exploration, dashed: reference policies. One seed has no "
        "band; several runs side by side: analyze compare."
    )
    return Page(
        name, "learning", heading, caption, figure, table, {"evaluations": evaluations}, headline=tuple(table[1:2])
    )


def plasticity_page(rows: Iterable[Mapping[str, Any]], title: str) -> Page:
    """One run's score, active and dormant fractions and density over steps."""
    name, heading = "plasticity", "How it stayed able to learn"
    curves = growth_figures.curves_of(rows)
    measured = {network: run for network, run in curves.items() if network != "agent" and run}
    if not measured:
        return Page(name, "learning", heading, missing="not available: no plasticity metrics were logged")
    shown = {"agent": curves.get("agent", {}), **measured}
    figure = growth_figures.expansion_figure(
        {network: {quantity: [curve] for quantity, curve in run.items()} for network, run in shown.items()}, title=title
    )
    ends = {f"{quantity}, {network}": curve for network, run in measured.items() for quantity, curve in run.items()}
    table = [Row(f"{what} at the end, step {curve[0][-1]:,.0f}", float(curve[1][-1])) for what, curve in ends.items()]
    caption = (
        "Score without exploration, and of each network the mean share of active units (above 0 where rectified; "
        "neither silent nor saturated where signed), the share of dormant ones (at most a tenth of their layer's mean "
        "activity) and, where its topology changes, the share of weights that exist, over environment steps; n = 1 "
        "run, measured on one training batch each. Bands over seeds: analyze plot with all of their runs."
    )
    numbers = {what: {"steps": list(map(float, x)), "values": list(map(float, y))} for what, (x, y) in ends.items()}
    return Page(name, "learning", heading, caption, figure, table, numbers)


def masks_page(masks: Mapping[str, np.ndarray], title: str) -> Page:
    """The largest mask over time; `masks`: masks.npz, {weight: (S, H, D) bool, "step": (S,)}, or {}."""
    name, heading = "masks", "How its topology grew"
    largest = growth_figures.largest(masks)
    if largest is None:
        return Page(name, "learning", heading, missing="not available: the topology is fixed (--expansion none)")
    mask, steps = np.asarray(masks[largest], bool), np.asarray(masks["step"])
    table = [Row(f"density of {largest}, step {steps[place]:,.0f}", float(mask[place].mean())) for place in (0, -1)]
    caption = (
        f"The weights of {largest}, {mask.shape[1]} by {mask.shape[2]}, at {min(5, len(steps))} moments: there from "
        "the start, grown, pruned, or absent by then."
    )
    figure = growth_figures.mask_figure(mask, steps, title=f"{title}: {largest}")
    return Page(name, "learning", heading, caption, figure, table, {"density": mask.mean((1, 2)).tolist()})


# --- behaviour ----------------------------------------------------------------------------------------------


def behaviour_page(recording: Recording) -> Page:
    """Psychometric curve, accuracy by condition, response rates, confusions; returns where there are no trials."""
    activity, title = recording.activity, "What the agent did"
    returns = np.bincount(activity["episode"], activity["rewards"]) if "rewards" in activity else np.array([np.nan])
    table = [row("return per episode", confidence_intervals.mean(returns))]
    if isinstance(recording.table, str):
        return Page("behaviour", "behaviour", title, table=table, missing=recording.table, headline=tuple(table))
    trial_table = recording.table
    found = confidence_intervals.attempt(lambda: behaviour.psychometric_of(trial_table))
    curve, label = (found, "evidence") if isinstance(found, str) else found
    groups = confidence_intervals.attempt(lambda: behaviour.accuracy_by_condition(trial_table))
    rates = confidence_intervals.attempt(lambda: behaviour.rates(activity, recording.trials, trial_table))
    confusion = confidence_intervals.attempt(lambda: behaviour.confusion(trial_table))
    _, unit = pca_analysis.trial_time(activity)
    unit = "ms" if "ms" in unit else "steps"
    figure = behaviour_figures.behaviour_figure(
        curve, groups, rates, confusion, label=label, unit=unit, title=recording.title
    )
    if not isinstance(groups, str):
        overall = groups[0].score
        table.append(Row("accuracy", *(float(np.atleast_1d(part)[0]) for part in overall)))
    if not isinstance(curve, str):
        table += [row(f"psychometric {name.replace('_', ' ')}", part) for name, part in curve.parameters.items()]
    if not isinstance(rates, str):
        table += [row("trials decided", rates.decided), row("decisions withheld", rates.withheld)]
        table += [row(f"reaction ({unit})", rates.reaction)] if rates.reaction is not None else []
    n = len(trial_table["trial"])
    caption = (
        f"n = {n:,} complete trials of {len(returns):,} episodes. Top left: choices against the signed {label}, with a "
        "logistic curve with lapses fitted by maximum likelihood; its band and the intervals of its parameters are "
        "percentiles of 400 refits. Top right: accuracy by condition, Wilson's 95 % intervals. Bottom left: how often "
        "trials were decided, decisions withheld, and actions made in each period. Bottom right: trials by right and "
        "chosen action."
    )
    parts = {"psychometric": curve, "by_condition": groups, "rates": rates, "confusion": confusion}
    numbers = {name: _plain(part) for name, part in parts.items()}
    headline = tuple(line for line in table if line.what in ("accuracy", "psychometric threshold")) or tuple(table[:1])
    return Page("behaviour", "behaviour", title, caption, figure, table, numbers, headline=headline)


def _plain(value: Any) -> Any:
    """Named tuples as dicts, all the way down."""
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


# --- state --------------------------------------------------------------------------------------------------


def variance_page(recording: Recording) -> Page:
    """Variance and participation ratio of every state."""
    fits = {name: recording.fit(name) for name in recording.states}
    spectra = {name: (fit.explained_variance_ratio, fit.participation_ratio) for name, fit in fits.items()}
    figure = visualize.pca_variance_figure(spectra, title=recording.title)
    numbers = {**pca_analysis.summary(recording.activity, fits), "coloured_by": recording.colour_key}
    steps = len(recording.activity["actions"])
    table = []
    for name, fit in fits.items():
        table.append(Row(f"participation ratio of {name}", fit.participation_ratio, n=steps))
        share = 100 * float(fit.explained_variance_ratio[:3].sum())
        table.append(Row(f"variance of {name} in three components (%)", share, n=steps))
    caption = (
        f"Principal components of {', '.join(fits)} over all n = {steps:,} recorded steps, M flattened to one "
        "feature per synapse. Left: share of the variance of each component; right: cumulated. Participation ratio: "
        "(sum v)^2 / sum v^2 over all eigenvalues v of the covariance, the number of dimensions that the state "
        "fills."
    )
    headline = tuple(line for line in table if "ratio" in line.what)
    return Page("pca_variance", "state", "Variance and dimensions", caption, figure, table, numbers, headline=headline)


def trajectory_page(recording: Recording, state: str, name: str, title: str) -> Page:
    """The state's path on its principal components, trial by trial and by condition."""
    activity, colour, fit = recording.activity, recording.colour, recording.fit(state)
    found = pca_analysis.split_trials(activity)
    if max(map(len, found)) == 1:  # a trial of one step is no path: follow the episode
        activity = {**activity, "trial": np.zeros_like(activity["trial"])}
        found = pca_analysis.split_trials(activity)
    if fit.projected.shape[1] < 2 or max(map(len, found)) < 2:
        raise MissingDataError(f"{state} has one dimension or its trials one step, so there is no path")
    clock, time_label = pca_analysis.trial_time(activity)
    groups = pca_analysis.group_trials(colour, found)
    means = None if groups is None else pca_analysis.condition_means(fit.projected, found, groups)
    figure = visualize.trajectory_figure(
        fit.projected,
        fit.explained_variance_ratio,
        found,
        clock,
        colour.values,
        categorical=colour.categorical,
        label=colour.label,
        time_label=time_label,
        means=None if means is None else means.mean,
        mean_labels=None if means is None else means.labels,
        marks=pca_analysis.period_onsets(activity, found),
        title=f"{recording.title}: {state}",
    )
    arrays = {"projected": fit.projected, "explained_variance_ratio": fit.explained_variance_ratio}
    arrays |= {"colour": colour.values, "time": clock}
    shown = min(len(found), visualize.MAX_TRIALS)
    caption = (
        f"{state} on its principal components, coloured by {colour.label}. Left: PC1 and PC2 over time in the trial; "
        f"then PC1 against PC2, and in three dimensions. Thin: {shown} of n = {len(found):,} trials; thick: means over "
        "the trials of a condition, as long as half of them still run. Symbols: where periods begin."
    )
    return Page(name, "state", title, caption, figure, arrays=arrays)


def demixed_page(recording: Recording) -> Page:
    """Shares of the variance of trial means that go with time, stimulus and choice."""
    aligned, table = recording.trial_parts()
    labels, _ = trials.label_sets(recording.activity, aligned, table)
    factors: dict[str, np.ndarray] = {name: labels[name] for name in ("stimulus", "choice") if name in labels}
    if not factors:
        raise MissingDataError("neither the stimulus nor the choice varies between trials")

    def split(state: str) -> demixed.Demixed:
        projected = recording.fit(state).projected
        try:
            return demixed.demixed(projected, aligned.rows, factors)
        except MissingDataError:
            if len(factors) == 1:
                raise
            return demixed.demixed(projected, aligned.rows, {"stimulus": factors["stimulus"]})

    results = {name: confidence_intervals.attempt(partial(split, name)) for name in recording.states}
    there = {name: result for name, result in results.items() if not isinstance(result, str)}
    if not there:
        raise MissingDataError(next(iter(results.values())).removeprefix("not available: "))  # type: ignore[union-attr]
    figure = state_figures.demixed_figure(
        results, aligned.time, aligned.marks(), unit=aligned.unit, title=recording.title
    )
    first = next(iter(there.values()))
    n = int(first.n.sum())
    rows = [
        Row(f"variance of the trial means of {state} with {part} (%)", 100 * share, n=n)
        for state, result in there.items()
        for part, share in result.shares.items()
    ]
    alone = "" if len(first.factors) == 2 else (
        " The choice is left out: some combination of stimulus and choice has too few trials to tell them apart."
    )  # fmt: skip
    caption = (
        f"Trial means over the cells of {' and '.join(first.factors)} (n = {n:,} trials in {len(first.cells)} "
        "cells), split into parts for time, each factor and their interaction. Left: shares of the variance of the "
        "means; the tick is the 95 % quantile of 50 shuffles of trials over cells. Right: the means along each "
        f"part's first direction. All states on their first {COMPONENTS} principal components.{alone}"
    )
    numbers = {
        state: result if isinstance(result, str)
        else {"shares": result.shares, "chance": result.chance, "within": result.within, "cells": result.cells,
              "n": result.n, "factors": result.factors}
        for state, result in results.items()
    }  # fmt: skip
    arrays = {
        f"{state}_{part}": course for state, result in there.items() for part, course in result.courses.items()
    } | {"time": aligned.time}
    return Page("demixed", "state", "Time, stimulus and choice", caption, figure, rows, numbers, arrays)


# --- memory -------------------------------------------------------------------------------------------------


def decoding_page(recording: Recording, shuffles: int = 200) -> Page:
    """Stimulus, evidence, choice and context from every state at every step."""
    aligned, table = recording.trial_parts()
    labels, missing = trials.label_sets(recording.activity, aligned, table)
    results = decoding.decode_states(recording.states, aligned.rows, labels, table["episode"], shuffles=shuffles)
    figure = state_figures.decoding_figure(
        results, aligned.time, aligned.marks(), unit=aligned.unit, title=recording.title
    )
    rows: list[Row] = []
    numbers: dict[str, Any] = {}
    arrays = {"time": aligned.time}
    for state, of_state in results.items():
        for label, result in of_state.items():
            for period, column in aligned.ends.items():
                value, low, high, n = (
                    float(getattr(result, name)[column]) for name in ("accuracy", "low", "high", "n")
                )
                if n:
                    rows.append(Row(f"{label} from {state}, end of {period}", value, low, high, n))
            kept = {name: part for name, part in result._asdict().items() if name != "shuffled"}
            numbers.setdefault(state, {})[label] = kept
            arrays |= {f"{state}_{label}_{name}": part for name, part in result._asdict().items() if name != "classes"}
    trial_count, episodes = len(table["trial"]), len(np.unique(table["episode"]))
    left_out = " ".join(f"No {label}: {why.removeprefix('not available: ')}." for label, why in missing.items())
    caption = (
        "Held-out accuracy of a linear (ridge) classifier trained at each step apart on four fifths of the episodes "
        f"and tested on the rest, n = {trial_count:,} trials of {episodes:,} episodes; coloured bands: Wilson's 95 % "
        f"intervals. Grey: 95 % of {shuffles} shuffles of the labels over trials at each step; dotted: the best step "
        f"of 95 % of the shuffles, below which chance stays at all steps. {left_out}"
    )
    numbers |= {"missing": missing, "time": aligned.time, "onsets": aligned.onsets, "unit": aligned.unit}
    # What must be kept, where it must be: in the delay if there is one, else when the decision is due.
    label = next(name for name in ("evidence", "stimulus", "choice", "context") if name in labels)
    period = next((name for name in aligned.ends if "delay" in name), list(aligned.ends)[-1])
    asked = {f"{label} from {state}, end of {period}" for state in results}
    headline = tuple(line for line in rows if line.what in asked)
    title = "What can be read from the state"
    return Page("decoding", "memory", title, caption, figure, rows, numbers, arrays, headline=headline)
