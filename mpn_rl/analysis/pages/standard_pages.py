"""Pages on learning, behaviour, state and memory: each has one measure with its figure, caption and numbers.

`mechanism_pages.py` has the pages on dynamics and weights, `probe_pages.py` those of the probes. `stages.py` saves the
pages, `report.py` collects them. If a measure is not available, its page says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import pca_analysis
import visualize
from mpn_rl.analysis import behaviour, confidence_intervals, decoding, demixed, evidence_weights, trials
from mpn_rl.analysis.behaviour import ByCondition, Confusion, Psychometric, Rates
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError, attempt
from mpn_rl.analysis.figures import behaviour_figures, state_figures
from mpn_rl.config import task_title
from mpn_rl.expansion import growth_figures
from pca_analysis import Activity, PCAResult

PARTS = ("learning", "behaviour", "state", "memory", "dynamics", "tests", "weights")
COMPONENTS = 20
WEIGHTS_OF_EVIDENCE = "Weight of the evidence"
COMMITMENT = "Commitment to the choice"
DEMIXED = "Variance by time, stimulus and choice"
DECODING = "Decoding from the state"
CROSS_TEMPORAL = "Decoding across time"
CROSS_CONDITION = "Decoding across conditions"
WITHOUT_WEIGHTS = "the weights were not recorded: run analyze collect again"


class Row(NamedTuple):
    """A line of a page's table: the quantity, its value, the ends of its 95 % interval and n (nan: unknown).

    An upper end of inf with a lower end that is the value means "at least the value".
    """

    what: str
    value: float
    low: float = np.nan
    high: float = np.nan
    n: float = np.nan


class Page(NamedTuple):
    """One measure.

    name: of its files. part: of the report, one of PARTS. caption: what the figure shows, n, and the method.
    figure: None where `missing` says why there is none. table: the main numbers. numbers: all numbers, for JSON.
    arrays: long arrays, for NPZ. headline: lines of the table for the overview.
    warnings: sentences on what the figure cannot show, such as a colour or a group with one value.
    """

    name: str
    part: str
    title: str
    caption: str = ""
    figure: Figure | None = None
    table: Sequence[Row] = ()
    numbers: Mapping[str, Any] = {}
    arrays: Mapping[str, np.ndarray] = {}
    missing: str = ""
    headline: tuple[Row, ...] = ()
    warnings: tuple[str, ...] = ()


class Recording:
    """One activity.npz and the results that several pages share.

    Args:
        activity: from `pca_analysis.load_activity`.
        config: config.json, nested.
        weights: the network's tensors by name, as `analyze collect` stores them; {} if unknown.
        colour: the value that colours trajectories; None: the right action, else the choice, else time.
    """

    def __init__(
        self,
        activity: Activity,
        config: Mapping[str, Mapping[str, Any]],
        weights: Mapping[str, np.ndarray],
        colour: str | None = None,
    ) -> None:
        self.activity, self.config, self.weights = activity, config, weights
        self.title = f"{task_title(config['env'])}, {config['core']['name']}"
        self.states = pca_analysis.states(activity)
        single = activity["actions"].ndim == 1  # else actions and the right actions are vectors
        choice = "choice" if single and activity["new_trial"].any() else "time"
        self.colour_key = colour or ("ground_truth" if single and (activity["ground_truth"] >= 0).any() else choice)
        self.colour = pca_analysis.colour_values(activity, self.colour_key)
        self.trials = trials.complete_trials(activity)
        self.fits: dict[str, PCAResult] = {}

    @cached_property
    def table(self) -> trials.Table:
        """`trials.trial_table` of the complete trials. Raises: MissingDataError."""
        return trials.trial_table(self.activity, self.trials)

    @cached_property
    def aligned(self) -> trials.Aligned:
        """`trials.align_periods` of the complete trials. Raises: MissingDataError."""
        return trials.align_periods(self.activity, self.trials)

    def fit(self, state: str) -> PCAResult:
        """The principal components of a state, fitted once."""
        if state not in self.fits:
            self.fits[state] = pca_analysis.fit_pca(self.states[state], COMPONENTS, self.activity["episode"])
        return self.fits[state]

    def mismatch(self) -> str:
        """Why the weights do not belong to the recording and its configuration, or an empty text."""
        width, hidden = self.activity["observations"].shape[1], self.activity["hidden"].shape[1]
        expected: dict[str, tuple[int | None, ...]] = {"encoder.embedding.weight": (None, width)}
        if "encoder.embedding.weight" in self.weights:
            width = len(self.weights["encoder.embedding.weight"])
            expected["encoder.embedding.bias"] = (width,)
        if "encoder.projection" in self.weights:
            expected["encoder.projection"] = (None, width)
            width = len(self.weights["encoder.projection"])
            expected["encoder.offset"] = (width,)
        width += bool(self.config["encoder"]["constant_input"])
        layer = "core.layers.0."
        if layer + "weight" in self.weights and "freeze_plasticity" in self.config["core"]:
            rows = len(self.weights[layer + "weight"])
            expected |= {layer + "weight": (rows, width), layer + "mask": (rows, width)}
            expected |= {layer + "bias": (rows,)} if self.config["core"]["bias"] else {}
            for part in ("eta", "lambda_decay"):
                own = np.shape(self.weights.get(layer + part, 0.0))
                if own not in ((), (1,), (1, 1), (rows, 1), (1, width), (width,), (rows, width)):
                    return f"{layer + part} has the shape {own}"
        for name in self.weights:
            if re.fullmatch(r"head\.(\w+\.)?weight", name):
                expected[name] = (None, hidden)
        for name, shape in expected.items():
            own = np.shape(self.weights.get(name, np.empty(())))
            wrong = len(own) != len(shape) or any(b not in (None, a) for a, b in zip(own, shape, strict=True))
            if name in self.weights and wrong:
                return f"{name} has the shape {own} instead of {tuple(side or 'any' for side in shape)}"
        return ""

    def weight(self, name: str) -> np.ndarray:
        """A tensor of the network. Raises: MissingDataError where there is none of this name."""
        if name not in self.weights:
            reason = f"the network has no {name}" if self.weights else WITHOUT_WEIGHTS
            raise MissingDataError(reason)
        return np.asarray(self.weights[name], float)


def pages(recording: Recording) -> Iterator[Page]:
    """The pages of a recording, one at a time, so that only one figure needs to be in memory."""
    yield attempt_page("behaviour", "behaviour", "Behaviour", lambda: behaviour_page(recording))
    yield attempt_page("evidence", "behaviour", WEIGHTS_OF_EVIDENCE, lambda: evidence_page(recording))
    yield attempt_page("commitment", "behaviour", COMMITMENT, lambda: commitment_page(recording))
    yield variance_page(recording)
    for state in recording.states:
        stem = "trajectories_hidden" if state == "h" else f"trajectories_{state}"
        title = f"Trajectories of {state}"
        yield attempt_page(stem, "state", title, partial(trajectory_page, recording, state, stem, title))
    yield attempt_page("demixed", "state", DEMIXED, lambda: demixed_page(recording))
    yield attempt_page("decoding", "memory", DECODING, lambda: decoding_page(recording))
    yield attempt_page("cross_temporal", "memory", CROSS_TEMPORAL, lambda: cross_temporal_page(recording))
    yield attempt_page("cross_condition", "memory", CROSS_CONDITION, lambda: cross_condition_page(recording))


def attempt_page(name: str, part: str, title: str, make: Callable[[], Page]) -> Page:
    """The page that make() returns, or a page with the sentence of its MissingDataError."""
    page = confidence_intervals.attempt(make)
    return Page(name, part, title, missing=page) if isinstance(page, str) else page


def one_value(name: str, values: np.ndarray, consequence: str) -> tuple[str, ...]:
    """A warning if all known values are equal, else nothing.

    Args: name: of the values. consequence: what the figure then does not show.
    """
    known = np.unique(values[trials.known(values)])
    return (f"{name} is {visualize.short(known[0])} in all trials: {consequence}",) if len(known) == 1 else ()


def constant_conditions(table: trials.Table) -> tuple[str, ...]:
    """A warning for each recorded condition that has one value in all trials."""
    found: list[str] = []
    for name in table:
        if name.startswith("condition_"):
            found += one_value(name.removeprefix("condition_"), table[name], "nothing can be compared by it")
    return tuple(found)


def row(what: str, estimate: Estimate) -> Row:
    """A line of a page's table from an estimate."""
    return Row(what, *(float(part) for part in estimate))


# --- learning -----------------------------------------------------------------------------------------------


def learning_page(
    history: Mapping[str, visualize.Values],
    evaluations: visualize.Evaluations,
    references: Mapping[str, float],
    title: str,
) -> Page:
    """Learning curves; the arguments are those of `visualize.plot_training_curves`."""
    name, heading = "learning", "Learning curves"
    if not len(history.get("step", ())) and not evaluations:
        why = "not available: metrics.jsonl has no episodes and no evaluations: the agent may be untrained"
        return Page(name, "learning", heading, missing=why)
    figure = visualize.plot_training_curves(
        history, evaluations, references=references, title=f"{title}: learning curves"
    )
    table = []
    for key, what in (("accuracy", "greedy accuracy"), ("return_mean", "greedy return")):
        known = [
            (value, evaluation["step"]) for evaluation in evaluations if (value := evaluation.get(key)) is not None
        ]
        if known:
            best = max(known, key=lambda pair: pair[0])
            table += [Row(f"{what} at the end, step {known[-1][1]:,}", known[-1][0])]
            table += [Row(f"best {what} in training, step {best[1]:,} (the highest of {len(known)})", best[0])]
    caption = (
        "Return, accuracy (if the task scores trials), loss and exploration over environment steps, n = 1 run of "
        f"{len(history['step']):,} episodes. Dots: single training episodes; lines: their rolling means; open points: "
        f"{len(evaluations)} evaluation{'s'[: len(evaluations) != 1]} without exploration; dashed: reference "
        "policies. analyze compare compares several runs, with bands over seeds. The highest of several evaluations "
        "is too high on average: the accuracy of the behaviour page is measured on other episodes."
    )
    return Page(
        name, "learning", heading, caption, figure, table, {"evaluations": evaluations}, headline=tuple(table[1:2])
    )


def tasks_page(evaluations: visualize.Evaluations, tasks: Sequence[str], title: str) -> Page:
    """The scores of each of several tasks; the arguments are those of `visualize.task_curves_figure`."""
    name, heading = "tasks", "Scores of each task"
    if not evaluations:
        return Page(name, "learning", heading, missing="not available: metrics.jsonl has no evaluations")
    last, table = evaluations[-1], []
    for task in tasks:
        for key, what in (("normalised_score", "normalised score"), ("accuracy", "accuracy")):
            value = last.get(f"{key}/{task}")
            if value is not None:
                table.append(Row(f"{task}: {what} at the end", float(value)))
    mean = last.get("normalised_score")
    if mean is not None:
        table.append(Row(f"mean normalised score of {len(tasks)} tasks at the end", float(mean)))
    caption = (
        "The normalised score of each task in the evaluations of the training, 0 for random actions and 1 for the best "
        "scripted policy on the same seeds; grey: the mean over tasks, which chooses best_model.pt. eval measures each "
        "task on other episodes, with intervals."
    )
    figure = visualize.task_curves_figure(evaluations, tasks, title=title)
    numbers = {"evaluations": evaluations}
    return Page(name, "learning", heading, caption, figure, table, numbers, headline=tuple(table[-1:]))


def plasticity_page(rows: Iterable[Mapping[str, Any]], title: str) -> Page:
    """Score, active and dormant fractions and density over steps, from the rows of metrics.jsonl."""
    name, heading = "plasticity", "Plasticity metrics"
    curves = growth_figures.curves_of(rows)
    measured = {network: run for network, run in curves.items() if network != "agent" and run}
    if not measured:
        return Page(name, "learning", heading, missing="not available: no plasticity metrics were logged")
    shown = {"agent": curves.get("agent", {}), **measured}
    figure = growth_figures.expansion_figure(
        {network: {quantity: [curve] for quantity, curve in run.items()} for network, run in shown.items()},
        title=f"{title}: plasticity metrics",
    )
    ends = {f"{quantity}, {network}": curve for network, run in measured.items() for quantity, curve in run.items()}
    table = [Row(f"{what} at the end, step {curve[0][-1]:,.0f}", float(curve[1][-1])) for what, curve in ends.items()]
    caption = (
        "Score without exploration over environment steps, n = 1 run. For each network: the mean share of active units "
        "(rectified units above 0; signed units that are neither silent nor saturated), the share of dormant units (at "
        "most a tenth of the mean activity of their layer) and, if the topology changes, the share of weights that "
        "exist; each point is measured on one training batch. analyze plot with several runs shows bands over seeds."
    )
    numbers = {what: {"steps": list(map(float, x)), "values": list(map(float, y))} for what, (x, y) in ends.items()}
    return Page(name, "learning", heading, caption, figure, table, numbers)


def masks_page(masks: Mapping[str, np.ndarray], title: str) -> Page:
    """The largest mask over time; `masks` holds masks.npz, {weight: (S, H, D) bool, "step": (S,)}, or nothing."""
    name, heading = "masks", "Topology during training"
    largest = growth_figures.largest(masks)
    if largest is None:
        return Page(name, "learning", heading, missing="not available: the topology is fixed (no weight has a mask)")
    mask, steps = np.asarray(masks[largest], bool), np.asarray(masks["step"])
    table = [Row(f"density of {largest}, step {steps[place]:,.0f}", float(mask[place].mean())) for place in (0, -1)]
    caption = (
        f"The weights of {largest}, {mask.shape[1]} by {mask.shape[2]}, at {min(5, len(steps))} times in training: "
        "present from the start, grown, pruned, or absent."
    )
    figure = growth_figures.mask_figure(mask, steps, title=f"{title}: {largest}")
    return Page(name, "learning", heading, caption, figure, table, {"density": mask.mean((1, 2)).tolist()})


# --- behaviour ----------------------------------------------------------------------------------------------


def behaviour_page(recording: Recording) -> Page:
    """Psychometric curve, accuracy by condition, response rates, confusion; only returns for a task without trials."""
    activity, title = recording.activity, "Behaviour"
    returns = np.bincount(activity["episode"], activity["rewards"]) if "rewards" in activity else np.array([np.nan])
    table = [row("return per episode", confidence_intervals.mean(returns))]
    trial_table = attempt(lambda: recording.table)
    if isinstance(trial_table, str):
        return Page("behaviour", "behaviour", title, table=table, missing=trial_table, headline=tuple(table))
    fit = attempt(partial(behaviour.psychometric_of, trial_table))
    curve, label = (fit, "evidence") if isinstance(fit, str) else fit
    groups = attempt(partial(behaviour.accuracy_by_condition, trial_table))
    rates = attempt(partial(behaviour.rates, activity, recording.trials, trial_table))
    confusion = attempt(partial(behaviour.confusion, trial_table))
    _, unit = pca_analysis.trial_time(activity)
    unit = "ms" if "ms" in unit else "steps"
    figure = behaviour_figures.behaviour_figure(
        curve, groups, rates, confusion, label=label, unit=unit, title=f"{recording.title}: behaviour"
    )
    if not isinstance(groups, str):
        overall = groups[0].score
        table.append(Row("accuracy", *(float(np.atleast_1d(part)[0]) for part in overall)))
    if not isinstance(curve, str):
        of_strength = "%" if label.endswith("(%)") else ""
        units = {"bias": of_strength, "threshold": of_strength, "slope": "1/%" if of_strength else ""}
        for name, part in curve.parameters.items():
            inside = [units.get(name, "share of trials")]
            inside += [f"not determined: {curve.undetermined[name]}"] if name in curve.undetermined else []
            notes = "; ".join(filter(None, inside))
            table.append(row(f"psychometric {name.replace('_', ' ')}" + (f" ({notes})" if notes else ""), part))
    if not isinstance(rates, str):
        table += [row("trials decided", rates.decided), row("trials aborted", rates.aborted)]
        table += [row("decisions withheld", rates.withheld)]
        if rates.reaction is not None and rates.reaction.value > 0:  # else every decision takes one step
            table.append(row(f"reaction time ({unit})", rates.reaction))
    n, aborted = len(trial_table["trial"]), int(trial_table["aborted"].sum())
    caption = (
        f"n = {n:,} complete trials of {len(returns):,} episodes, {aborted:,} of them aborted "
        "before the decision: these have no choice, and count in the accuracy with the task's own score. Unit of "
        "inference: the trial. Top left: share of choices against the signed "
        f"{label}, and a logistic curve with lapses, fitted by maximum likelihood; its band and the intervals of its "
        "parameters are percentiles of 400 refits; a parameter whose interval reaches the end of its range is not "
        "determined. Top right: accuracy by condition with Wilson's 95 % intervals. "
        "Bottom left: share of trials with a decision, share of decisions withheld (action 0 although another action "
        "was right), and share of steps with an action in each period (an action before the deciding period matters "
        "only if the task punishes it); the reaction time counts from the onset of the deciding period, and is 0 where "
        "every decision takes one step. Bottom right: number of trials by right and chosen action."
    )
    parts = {"psychometric": curve, "by_condition": groups, "rates": rates, "confusion": confusion}
    numbers = {name: _plain(part) for name, part in parts.items()}
    headline = tuple(line for line in table if line.what.startswith(("accuracy", "psychometric threshold")))
    headline = headline or tuple(table[:1])
    warnings = constant_conditions(trial_table)
    return Page("behaviour", "behaviour", title, caption, figure, table, numbers, headline=headline, warnings=warnings)


def evidence_page(recording: Recording) -> Page:
    """Choices by the strength of both cues, and the weight of each step's noise (psychophysical kernel)."""
    table, aligned = recording.table, recording.aligned
    result = evidence_weights.evidence_weights(recording.activity, aligned, table)
    time = aligned.time[result.columns]
    figure = behaviour_figures.evidence_figure(
        result, time, unit=aligned.unit, title=f"{recording.title}: weight of the evidence"
    )
    rows = [row(f"weight of the {cue}, sum over its steps", part) for cue, part in result.total.items()]
    rows += [row(f"change of the choice from the lowest to the highest strength of the {cue}", part)
             for cue, part in result.effect.items()]  # fmt: skip
    for cue, part in result.weights.items():
        rows += [Row(f"weight of the {cue} at {at:g} {aligned.unit}", *(float(side[i]) for side in part))
                 for i, at in enumerate(time)]  # fmt: skip
    two = len(result.weights) == 2
    caption = (
        "Left: share of choices of the higher action by the signed strength of the evidence"
        f"{', of the cue that the context selects and of the other one' if two else ''}; bars: Wilson's 95 % "
        "intervals. Right: psychophysical kernel, the change of the probability of this choice per standard deviation "
        "of the noise at each step, by a linear regression of the choice on the noise of all steps"
        f"{' of both cues' if two else ''} among trials of equal strength; bands: 95 % intervals (HC3). An integrator "
        "without leak weighs all steps alike; a weight of 0 is evidence that is ignored. "
        f"n = {result.n:,} trials; unit of inference: the trial."
    )
    numbers = {"time": time, "levels": result.levels}
    numbers |= {name: {cue: part._asdict() for cue, part in getattr(result, name).items()}
                for name in ("weights", "shares")}  # fmt: skip
    return Page("evidence", "behaviour", WEIGHTS_OF_EVIDENCE, caption, figure, rows, numbers)


def commitment_page(recording: Recording) -> Page:
    """When the preferred choice becomes the final one, for all trials and by strength of the evidence."""
    result = behaviour.commitment(recording.activity, recording.trials, recording.table)
    series = {name: (result.grid, part) for name, part in result.committed.items()}
    figure = behaviour_figures.curve_figure(
        series,
        xlabel=f"time from the onset of {result.period} ({result.unit})",
        ylabel="share of trials committed",
        title=f"{recording.title}: commitment to the choice",
    )
    rows = [row(f"mean commitment, {name} ({result.unit})", part) for name, part in result.mean.items()]
    early = confidence_intervals.proportion((result.time <= 0).sum(), trials.known(result.time).sum())
    rows.append(row(f"trials committed at the onset of {result.period}", early))
    caption = (
        "A trial is committed from the first step from which the choice with the highest value stays the final one. "
        "The preferred choice exists at every step, also where the agent waits, so this is a decision time where the "
        f"task asks for the answer later. n = {int(rows[-1].n):,} trials with a choice; unit of inference: the trial; "
        "bands: Wilson's 95 % intervals; means with Student's. Trials whose preference before the evidence happens to "
        "be the final choice, and never changes, count as committed from the start. Where early actions have no "
        "consequences, the values of the choices need not follow the evidence at once: compare the decoding page."
    )
    numbers = {"time": result.time, "grid": result.grid, "period": result.period, "unit": result.unit,
               "committed": {name: part._asdict() for name, part in result.committed.items()}}  # fmt: skip
    headline = tuple(rows[:1])
    return Page("commitment", "behaviour", COMMITMENT, caption, figure, rows, numbers, headline=headline)


def _plain(value: object) -> object:
    """Named tuples as dicts, at every level."""
    if isinstance(value, Psychometric | ByCondition | Rates | Confusion | Estimate):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


# --- state --------------------------------------------------------------------------------------------------


def variance_page(recording: Recording) -> Page:
    """Variance explained by principal components, and participation ratio, of every state."""
    fits = {name: recording.fit(name) for name in recording.states}
    spectra = {name: (fit.explained_variance_ratio, fit.participation_ratio) for name, fit in fits.items()}
    figure = visualize.pca_variance_figure(spectra, title=f"{recording.title}: variance explained")
    numbers = {**pca_analysis.summary(recording.activity, fits), "coloured_by": recording.colour_key}
    steps, episodes = len(recording.activity["actions"]), len(np.unique(recording.activity["episode"]))
    table = []
    for name, fit in fits.items():
        table.append(Row(f"participation ratio of {name}", fit.participation_ratio, n=episodes))
        share = 100 * float(fit.explained_variance_ratio[:3].sum())
        table.append(Row(f"variance of {name} in three components (%)", share, n=steps))
    caption = (
        f"Principal components of {', '.join(fits)} over all n = {steps:,} recorded steps; each synapse of M is a "
        "feature. Left: share of the variance of each component; right: cumulative share. Participation ratio: "
        "(sum v)^2 / sum v^2 over all eigenvalues v of the covariance, an effective number of dimensions, estimated "
        f"from pairs of steps of different episodes (n = {episodes:,}), so that it does not grow with the recording."
    )
    headline = tuple(line for line in table if "ratio" in line.what)
    return Page(
        "pca_variance", "state", "Variance and dimensionality", caption, figure, table, numbers, headline=headline
    )


def trajectory_page(recording: Recording, state: str, name: str, title: str) -> Page:
    """Trajectories of a state on its principal components, of single trials and of condition means."""
    activity, colour, fit = recording.activity, recording.colour, recording.fit(state)
    split = pca_analysis.split_trials(activity)
    if max(map(len, split)) == 1:  # trials of one step have no trajectory: use the episodes instead
        activity = {**activity, "trial": np.zeros_like(activity["trial"])}
        split = pca_analysis.split_trials(activity)
    if fit.projected.shape[1] < 2 or max(map(len, split)) < 2:
        raise MissingDataError(f"{state} has one dimension or its trials have one step, so there is no trajectory")
    clock, time_label = pca_analysis.trial_time(activity)
    groups = pca_analysis.group_trials(colour, split)
    means = None if groups is None else pca_analysis.condition_means(fit.projected, split, groups)
    figure = visualize.trajectory_figure(
        fit.projected,
        fit.explained_variance_ratio,
        split,
        clock,
        colour.values,
        categorical=colour.categorical,
        label=colour.label,
        time_label=time_label,
        means=None if means is None else means.mean,
        mean_labels=None if means is None else means.labels,
        marks=pca_analysis.period_onsets(activity, split),
        title=f"{recording.title}: {state}",
    )
    arrays = {"projected": fit.projected, "explained_variance_ratio": fit.explained_variance_ratio}
    arrays |= {"colour": colour.values, "time": clock}
    shown = min(len(split), visualize.MAX_TRIALS)
    caption = (
        f"{state} on its principal components, coloured by {colour.label}. Left: PC1 and PC2 over time in the trial; "
        f"middle: PC1 against PC2; right: three components. Thin lines: {shown} of n = {len(split):,} trials (those "
        "that the end of an episode cuts short are included here and left out on the other pages); thick lines: means "
        "over the trials of a condition, up to the step that half of them reach. Symbols: onsets of periods."
    )
    warnings = one_value(colour.label, colour.values, "all lines have one colour; choose another with --color-by")
    return Page(name, "state", title, caption, figure, arrays=arrays, warnings=warnings)


def demixed_page(recording: Recording) -> Page:
    """The variance of trial means, split by time, stimulus and choice."""
    table, aligned = recording.table, recording.aligned
    labels, _ = trials.label_sets(recording.activity, aligned, table)
    factors: dict[str, np.ndarray] = {name: labels[name] for name in ("stimulus", "choice") if name in labels}
    if not factors:
        raise MissingDataError("neither the stimulus nor the choice varies between trials")

    evidence = attempt(lambda: trials.evidence_of(recording.activity, aligned, table))
    strata = None if isinstance(evidence, str) else trials.evidence_strata(evidence)

    def split(state: str) -> demixed.Demixed:
        projected = recording.fit(state).projected
        try:
            return demixed.demixed(projected, aligned.rows, factors, strata=strata if len(factors) == 2 else None)
        except MissingDataError:
            if len(factors) == 1:
                raise
            return demixed.demixed(projected, aligned.rows, {"stimulus": factors["stimulus"]})

    results = {name: attempt(partial(split, name)) for name in recording.states}
    there = {name: result for name, result in results.items() if not isinstance(result, str)}
    if not there:
        raise MissingDataError(
            next(why.removeprefix("not available: ") for why in results.values() if isinstance(why, str))
        )
    figure = state_figures.demixed_figure(
        results, aligned.time, aligned.marks(), unit=aligned.unit, title=f"{recording.title}: variance of trial means"
    )
    first = next(iter(there.values()))
    n = int(first.n.sum())
    rows = [
        Row(f"variance of the trial means of {state} with {part} (%)", 100 * share, n=n)
        for state, result in there.items()
        for part, share in result.shares.items()
    ]
    alone = "" if len(first.factors) == 2 else (
        " The choice is left out: some combination of stimulus and choice has too few trials to separate the two."
    )  # fmt: skip
    if len(first.factors) == 2:
        alone = (
            " The task has no graded evidence by which the cells could be matched." if strata is None else
            " The cells are matched: the same number of trials of each, in each of eight groups of equal amount of "
            "accumulated evidence."
        )  # fmt: skip
    caption = (
        f"Trial means of each combination of {' and '.join(first.factors)} (n = {n:,} trials in {len(first.cells)} "
        "cells), split into parts for time, each factor and their interaction. Left: share of the variance of the "
        "means that belongs to each part, without what noise between trials adds to it, and that of this noise; the "
        "tick is the 95 % quantile of 200 permutations of the labels among trials with the same other label (of the "
        "interaction: of what the other parts leave over). Unit of inference: the trial. Right: the means of one half "
        "of the trials along the first principal component of each part in the other half, averaged over both halves. "
        "Each state is represented by its first "
        f"{COMPONENTS} principal components.{alone}"
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
    return Page("demixed", "state", DEMIXED, caption, figure, rows, numbers, arrays)


# --- memory -------------------------------------------------------------------------------------------------


def beyond_observation(results: Mapping[str, Mapping[str, decoding.Decoding]], column: int, period: str) -> str:
    """Sentences on what each state tells more of than the current observation, at one aligned step.

    Args:
        results: {state: {label: Decoding}} with the state "observation".
        column: of the step. period: whose last step it is.
    """
    seen, sentences = results["observation"], []
    for state, of_state in results.items():
        known = [label for label in of_state if label in seen and of_state[label].n[column] and seen[label].n[column]]
        more = [label for label in known if of_state[label].low[column] > seen[label].high[column]]
        rest = [label for label in known if label not in more]
        if state != "observation" and known:
            clause = f"{state} tells more than the current observation about {', '.join(more) or 'no label'}"
            sentences.append(clause + (f", and not measurably more about {', '.join(rest)}" if rest and more else ""))
    if not sentences:
        return ""
    return f"At the end of {period}, {'; '.join(sentences)} (more: the 95 % intervals do not overlap). "


def decoding_page(recording: Recording, shuffles: int = 200) -> Page:
    """Decoding of stimulus, evidence, choice and context from every state at every step."""
    table, aligned = recording.table, recording.aligned
    labels, missing = trials.label_sets(recording.activity, aligned, table)
    if not labels:
        raise MissingDataError("neither the stimulus nor the choice varies between trials")
    sources = {**recording.states, "observation": recording.activity["observations"]}
    results = decoding.decode_states(sources, aligned.rows, labels, table["episode"], shuffles=shuffles)
    figure = state_figures.decoding_figure(
        results, aligned.time, aligned.marks(), unit=aligned.unit, title=f"{recording.title}: decoding"
    )
    rows: list[Row] = []
    numbers: dict[str, Any] = {}
    arrays = {"time": aligned.time}
    for state, of_state in results.items():
        for label, result in of_state.items():
            for period, column in aligned.ends.items():
                if result.n[column]:
                    ends = (result.accuracy, result.low, result.high, result.n)
                    rows.append(Row(f"{label} from {state}, end of {period}", *(float(part[column]) for part in ends)))
            kept = {name: part for name, part in result._asdict().items() if name != "shuffled"}
            numbers.setdefault(state, {})[label] = kept
            key = f"{state}_{label}".replace(" ", "_")
            arrays |= {f"{key}_{name}": part for name, part in result._asdict().items() if name != "classes"}
    trial_count, episodes = len(table["trial"]), len(np.unique(table["episode"]))
    left_out = " ".join(f"{label.capitalize()} {why}." for label, why in missing.items())
    # The overview shows what the task requires to remember: at the end of the delay, else at the end of the trial.
    period = next((name for name in aligned.ends if "delay" in name), list(aligned.ends)[-1])
    caption = (
        "Held-out balanced accuracy (the mean over classes of the share decoded rightly) of a linear (ridge) "
        f"classifier. At each step, it is trained on four fifths of the episodes and tested on the rest, n = "
        f"{trial_count:,} trials of {episodes:,} episodes; unit of inference: the episode. Coloured bands: 95 % "
        f"intervals, whose variance is multiplied by {decoding.SHARED} because the classifiers share training trials; "
        f"near chance the permutations decide. Grey band: the middle 95 % of {shuffles} permutations of the labels "
        "over episodes, at each step. "
        "Dotted line: 95 % of the permutations stay below it at all steps. What is decoded from the observation of the "
        f"same step needs no memory. {beyond_observation(results, aligned.ends[period], period)}"
        "'choice given stimulus': equally many trials of each choice for each stimulus, so the stimulus says nothing "
        f"of the choice. {left_out}"
    )
    numbers |= {"missing": missing, "time": aligned.time, "onsets": aligned.onsets, "unit": aligned.unit}
    label = next(name for name in ("evidence", "stimulus", "choice", "context") if name in labels)
    asked = {f"{label} from {state}, end of {period}" for state in results}
    headline = tuple(line for line in rows if line.what in asked)
    warnings = tuple(f"{why.removeprefix('not available: ')}: it cannot be decoded" for why in missing.values()
                     if "is the same in all trials" in why)  # fmt: skip
    return Page(
        "decoding", "memory", DECODING, caption, figure, rows, numbers, arrays, headline=headline, warnings=warnings
    )


def cross_temporal_page(recording: Recording, shuffles: int = 100) -> Page:
    """Whether the code of the stimulus, else of the choice or the context, stays the same over the trial."""
    table, aligned = recording.table, recording.aligned
    labels, _ = trials.label_sets(recording.activity, aligned, table)
    label = next((name for name in ("stimulus", "choice", "context") if name in labels), None)
    if label is None:
        raise MissingDataError("neither the stimulus nor the choice varies between trials")
    results = {
        state: decoding.cross_temporal(array, aligned.rows, labels[label], table["episode"], shuffles=shuffles)
        for state, array in recording.states.items()
    }
    figure = state_figures.cross_temporal_figure(
        results, aligned.time, aligned.marks(), label=label, unit=aligned.unit,
        title=f"{recording.title}: decoding across time",
    )  # fmt: skip
    episodes, n = len(np.unique(table["episode"])), min(result.n for result in results.values())
    caption = (
        f"Held-out balanced accuracy for the {label} of a linear (ridge) classifier that is trained at one step (row) "
        f"and tested at another (column), on other episodes (n = {n:,} trials of {episodes:,} "
        "episodes; unit of inference: the episode). A square is a code that does not change, a bright diagonal alone "
        "one that moves. States are centred at each step. "
        f"White line: 95 % of {shuffles} permutations of the labels over episodes stay below it everywhere. "
        f"At most {decoding.MOST_COLUMNS} steps, evenly spaced, that {decoding.COMMON:.0%} of the trials have."
    )
    rows = []
    for state, result in results.items():
        apart = ~np.eye(len(result.columns), dtype=bool)
        above = float((result.accuracy > result.limit)[apart].mean()) if apart.any() else np.nan
        rows.append(Row(f"{label} from {state}: share of other steps above chance", above, n=result.n))
        rows.append(Row(f"{label} from {state}: chance stays below", result.limit, n=result.n))
    numbers = {state: result._asdict() for state, result in results.items()} | {"label": label, "time": aligned.time}
    return Page("cross_temporal", "memory", CROSS_TEMPORAL, caption, figure, rows, numbers)


def cross_condition_page(recording: Recording, shuffles: int = 200) -> Page:
    """Whether stimulus and context, else stimulus and choice, are coded alike in every condition of the other one."""
    table, aligned = recording.table, recording.aligned
    labels, _ = trials.label_sets(recording.activity, aligned, table)
    first, second = "stimulus", "context" if "context" in labels else "choice"
    if not {first, second} <= set(labels):
        raise MissingDataError("the trials have no two labels, such as stimulus and context, that both vary")
    # The delay's length may differ between trials: its end is the column that most trials have.
    ends = {name: column for name, column in aligned.ends.items()
            if (aligned.rows[:, column] >= 0).mean() >= decoding.COMMON}  # fmt: skip
    if not ends:
        raise MissingDataError("no period is complete in most trials")
    rows_at_ends = aligned.rows[:, list(ends.values())]
    results: dict[str, dict[str, decoding.AcrossConditions]] = {}
    for label, condition in ((first, second), (second, first)):
        results[f"{label} across {condition}"] = {
            state: decoding.across_conditions(
                array, rows_at_ends, labels[label], labels[condition], table["episode"], shuffles=shuffles
            )
            for state, array in recording.states.items()
        }
    figure = state_figures.cross_condition_figure(
        results, list(ends), title=f"{recording.title}: decoding across conditions"
    )
    rows: list[Row] = []
    numbers: dict[str, Any] = {}
    for what, of_states in results.items():
        for state, result in of_states.items():
            for place, period in enumerate(ends):
                for name, part in (("other", result.across), ("same", result.within)):
                    kind = f"{what}, from {state}, in {name} conditions, end of {period}"
                    rows.append(Row(kind, *(float(side[place]) for side in part)))
            numbers.setdefault(what, {})[state] = {
                "within": result.within._asdict(),
                "across": result.across._asdict(),
                "limits": result.limits,
            }
    n, episodes = int(rows[0].n), len(np.unique(table["episode"]))
    caption = (
        "Held-out balanced accuracy of a linear (ridge) classifier that is trained in one condition (such as one "
        "context) and tested on other episodes, in the same condition (open) and in the other ones (filled), at the "
        f"last step of each period; n = {n:,} trials of {episodes:,} episodes; unit of inference: the episode; bars: "
        "95 % intervals. Each condition is centred on its own mean. Where the filled points reach the open ones, the "
        "label is coded alike in all conditions; "
        "below chance, its code is reversed; at chance, the codes have nothing in common. "
        f"Ticks: 95 % of {shuffles} permutations of the labels over episodes stay below at all of these steps."
    )
    return Page("cross_condition", "memory", CROSS_CONDITION, caption, figure, rows, {**numbers, "periods": list(ends)})
