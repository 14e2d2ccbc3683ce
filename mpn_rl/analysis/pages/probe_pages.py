"""Pages on the probes of `analyze probe`: delays, noise, lesions, constant inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.figures import behaviour_figures
from mpn_rl.analysis.pages.standard_pages import Page, Row, attempt_page

NOT_YET = "not available: there are no probes yet: run analyze probe"
DELAY = "Score against delay length"
NOISE = "Score under noise"
LESIONS = "Score with erased or frozen memory"
CONTROLS = (
    " Controls of erasing: the memory of another trial at the same step, which does occur in undisturbed trials, and "
    "the memory moved in a random direction as far as erasing moves it. Where erasing costs as much as the memory of "
    "another trial, the trial's own memory is what is lost; where moving at random costs as much, any disturbance of "
    "that size does."
)
RELAXATION = "Relaxation under constant input"
Numbers = Mapping[str, Any]  # read from JSON


def pages(numbers: Numbers, title: str) -> Iterator[Page]:
    """The pages of all probes, one at a time.

    Args: numbers: the content of probes.json; {} if there is none.
    """
    all_pages: list[tuple[str, str, str, Callable[[Numbers, str], Page]]] = [
        ("delay", "tests", DELAY, delay_page),
        ("noise", "tests", NOISE, noise_page),
        ("lesions", "tests", LESIONS, lesion_page),
        ("relaxation", "dynamics", RELAXATION, relaxation_page),
    ]
    for name, part, heading, make in all_pages:
        if numbers:
            yield attempt_page(name, part, heading, partial(make, numbers, title))
        else:
            yield Page(name, part, heading, missing=NOT_YET)


def estimate(numbers: Numbers) -> Estimate[np.ndarray]:
    """An estimate of arrays from JSON, in which nan is null."""
    return Estimate(*(np.array(numbers[name], float) for name in Estimate._fields))


def curve(numbers: Numbers, name: str) -> tuple[np.ndarray, Estimate[np.ndarray], Numbers]:
    """x, the score, and all numbers of one curve. Raises: MissingDataError where the probe is not available."""
    result = numbers.get(name, f"not available: there is no probe {name}: run analyze probe")
    if isinstance(result, str):
        raise MissingDataError(result.removeprefix("not available: "))
    if not result["x"]:
        raise MissingDataError(f"the probe {name} has no points: run analyze probe")
    return np.array(result["x"], float), estimate(result["y"]), result


def _rows(x: np.ndarray, y: Estimate, what: str) -> list[Row]:
    """A line of the table for each point of a curve."""
    return [Row(f"{what} {at:g}", *(float(part[i]) for part in y)) for i, at in enumerate(x)]


def _chance(result: Numbers) -> tuple[float, str] | None:
    """Height and name of the line at chance."""
    return None if result.get("chance") is None else (float(result["chance"]), "chance")


def _counted(numbers: Numbers) -> str:
    """What n counts."""
    return "trials" if numbers["measure"] == "accuracy" else "episodes"


def delay_page(numbers: Numbers, title: str) -> Page:
    """Accuracy against the length of the delay, and the memory horizon."""
    x, y, result = curve(numbers, "delay")
    figure = behaviour_figures.curve_figure(
        {"agent": (x, y)}, xlabel=result["xlabel"], ylabel=result["ylabel"], reference=_chance(result), log=True,
        title=f"{title}: score against delay length (trained at {result['trained']:.0f} ms)",
    )  # fmt: skip
    horizon = numbers.get("memory_horizon_ms")
    least, rows = float(y.n.min()), []
    if isinstance(horizon, int | float):  # at least that, if it is the longest delay
        ends = (float(horizon), np.inf) if numbers.get("memory_horizon_censored") else (np.nan, np.nan)
        rows.append(Row("memory horizon (ms)", float(horizon), *ends, least))
    decay = numbers.get("memory_decay_ms")
    if isinstance(decay, Mapping):  # no upper end: the delays are too short to see one
        value, low, high, count = (np.inf if decay[key] is None else float(decay[key]) for key in Estimate._fields)
        rows.append(Row("time constant of the decay (ms)", value, low, high, count))
    rows += _rows(x, y, "delay (ms)")
    caption = (
        "Share of correct trials when the delay is shorter or longer than in training (mean there "
        f"{result['trained']:.0f} ms), without exploration, n = {y.n.min():,.0f} trials or more at each point; band: "
        "Wilson's 95 % interval. Dashed: chance, the score of the answer that is right most often, in the same trials "
        "(the highest at any delay). Memory horizon: the longest delay up to which the interval stays above chance"
        f"{'' if isinstance(horizon, int | float) else ' (' + (str(horizon) if horizon else 'none') + ')'}; with the "
        "sign ≥ where that is the longest delay tried. Time constant: of an exponential decay to chance, with its "
        f"likelihood interval; inf where no decay is seen{' (' + decay + ')' if isinstance(decay, str) else ''}."
    )
    return Page("delay", "tests", DELAY, caption, figure, rows, {"delay": result}, headline=tuple(rows[:1]))


def noise_page(numbers: Numbers, title: str) -> Page:
    """The score against noise on the observation and on the memory."""
    named = {"on the observation": "input_noise", "on the memory": "state_noise"}
    series, rows, absent, result = _several(numbers, named, "noise")
    figure = behaviour_figures.curve_figure(
        series, xlabel="noise (sd of the observation or of the memory)", ylabel=result["ylabel"], of=_counted(numbers),
        reference=_chance(result), log=True, title=f"{title}: score under noise",
    )  # fmt: skip
    caption = (
        "The score with Gaussian noise added at every step to the observation, or to the memory (M of an MPN, the "
        "traces of backpropamine, else the whole state). The unit of the noise is the standard deviation of the "
        f"observations or of the memory in episodes without noise; n = {_least(series):,.0f} {_counted(numbers)} or "
        "more, the same at each point; bands: 95 % intervals. A score below chance (dashed: the best constant answer, "
        f"given at every decision) means that the agent withholds its answer or prefers a wrong one.{absent}"
    )
    return Page(
        "noise",
        "tests",
        NOISE,
        caption,
        figure,
        rows,
        {name: numbers[name] for name in named.values() if name in numbers},
    )


def lesion_page(numbers: Numbers, title: str) -> Page:
    """The score when the memory is erased before, or frozen from, each step of the trial."""
    named = {"erased before this step": "lesion", "frozen from this step on": "frozen"}
    controls = {"that of another trial from this step on": "swapped", "moved at random before this step": "displaced"}
    named |= {label: name for label, name in controls.items() if name in numbers}
    series, rows, absent, result = _several(numbers, named, "step")
    figure = behaviour_figures.curve_figure(
        series, xlabel="step of the trial", ylabel=result["ylabel"], of=_counted(numbers), reference=_chance(result),
        marks=result["marks"], title=f"{title}: score with erased or frozen memory",
    )  # fmt: skip
    caption = (
        "The score when the memory is reset to its initial value before one step of every trial, and when it does not "
        f"change from that step to the end of the trial; n = {_least(series):,.0f} {_counted(numbers)} or more at each "
        "point; bands: 95 % intervals; tints: the periods of the median trial. Where erasing lowers the score most, "
        "the memory carries what the decision needs. Where freezing no longer lowers the score, the memory is "
        "complete. Dashed: chance, the best constant answer, given at every decision. A score below it means that the "
        "agent withholds its answer, which counts as wrong, or that it answers one way more often than this is right: "
        "its memory is in a state that does not occur in undisturbed trials."
        f"{CONTROLS if 'swapped' in numbers else ''}{absent}"
    )
    kept = {name: numbers[name] for name in named.values() if name in numbers}
    return Page("lesions", "tests", LESIONS, caption, figure, rows, kept)


def _several(numbers: Numbers, named: Mapping[str, str], what: str) -> tuple[dict, list[Row], str, Numbers]:
    """The available curves, their rows, a sentence for each missing curve, and all numbers of one curve."""
    series, rows, absent, result = {}, [], "", None
    for label, name in named.items():
        try:
            x, y, result = curve(numbers, name)
        except MissingDataError as missing:
            absent += f" {label.capitalize()}: {missing}."
            continue
        series[label] = (x, y)
        rows += _rows(x, y, f"{label}, {what}" if what not in label else label)
    if result is None:
        raise MissingDataError(first_reason(absent))
    return series, rows, absent, result


def first_reason(absent: str) -> str:
    """`why` of the first of several sentences "what: not available: why."."""
    return absent.partition("not available: ")[2].partition(". ")[0].rstrip(".")


def _least(series: Mapping[str, tuple[np.ndarray, Estimate[np.ndarray]]]) -> float:
    """The smallest n of all curves."""
    return min(float(y.n.min()) for _, y in series.values())


def relaxation_page(numbers: Numbers, title: str) -> Page:
    """Relaxation of the state under zero input and under a constant input, and the fixed points that a search finds."""
    series, rows, absent, unit = {}, [], "", "steps"
    for name, result in numbers.get("relaxation", {}).items():
        if isinstance(result, str) or not result["time"]:
            absent += f" {name}: {result if isinstance(result, str) else 'not available: there is no time'}."
            continue
        series[name] = (np.array(result["time"], float), estimate(result["distance"]))
        unit = result["unit"]
        starts = float(series[name][1].n.max())
        rows.append(Row(f"{name}: different final states", result["ends"], n=starts))
        speed = np.nan if result["speed"] is None else result["speed"]
        rows.append(Row(f"{name}: final speed relative to the first", speed, n=starts))
    for name, result in numbers.get("fixed_points", {}).items():
        if isinstance(result, str):
            absent += f" Fixed points under {name}: {result}."
            continue
        fixed, stable = np.array(result["fixed"], bool), np.array(result["stable"], bool)
        rows.append(Row(f"{name}: fixed points", float(fixed.sum()), n=float(np.sum(result["found"]))))
        rows.append(Row(f"{name}: stable fixed points", float(stable.sum()), n=float(fixed.sum())))
        if "unreached" in result:
            rows.append(Row(f"{name}: points left out, far from the visited states", float(result["unreached"])))
    if not series:
        raise MissingDataError(first_reason(absent) or "there is no probe with a constant input")
    settled = max(int(np.flatnonzero(y.value > 0.01)[-1:].sum()) for _, y in series.values())  # then it stays at 0
    shown = {
        name: (x[: settled + 2], Estimate(*(part[: settled + 2] for part in y))) for name, (x, y) in series.items()
    }
    figure = behaviour_figures.curve_figure(
        shown,
        xlabel=f"time under constant input ({unit})",
        ylabel="relative distance to the final state",
        of="starts",
        title=f"{title}: relaxation under constant input",
    )
    caption = (
        "The input is constant: zeros (silence), and what the task shows in the delay, else in the first period; of "
        "few different observations, each frequent one, named by the entries in which they differ, else their mean. "
        "The state continues from states that the agent visited (n starts in the legend): "
        "its distance to the final state, relative to the distance at the start; mean and 95 % t interval over "
        "starts. Several different final states mean that the state can hold a memory under that input. The table "
        "lists the fixed points that a search from these states finds (minima of the speed of the state; the search "
        f"can miss others), with the number of searches as n. Points far from all visited states are left out: the "
        f"network cannot reach them.{absent}"
    )
    points = {
        name: of if isinstance(of, str) else {key: value for key, value in of.items() if key != "states"}
        for name, of in numbers.get("fixed_points", {}).items()
    }
    kept = {"relaxation": numbers.get("relaxation"), "fixed_points": points}  # probes.json has the states
    return Page("relaxation", "dynamics", RELAXATION, caption, figure, rows, kept)
