"""Pages on what was tried on the network, from the numbers of `analyze probe`: delays, noise, lesions, held inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.figures import behaviour_figures
from mpn_rl.analysis.pages.standard_pages import Page, Row, made

NOT_YET = "not available: no probes were made yet: analyze probe"
Numbers = Mapping[str, Any]


def pages(numbers: Numbers, title: str) -> Iterator[Page]:
    """One page after the other.

    Args: numbers: what `analyze probe` writes to probes.json; {} if it was not run.
    """
    all_pages: list[tuple[str, str, str, Callable[[Numbers, str], Page]]] = [
        ("delay", "tests", "Longer and shorter delays", delay_page),
        ("noise", "tests", "Noise", noise_page),
        ("lesions", "tests", "Erased and held memory", lesion_page),
        ("relaxation", "dynamics", "Where the state comes to rest", relaxation_page),
    ]
    for name, part, heading, make in all_pages:
        if numbers:
            yield made(name, part, heading, partial(make, numbers, title))
        else:
            yield Page(name, part, heading, missing=NOT_YET)


def estimate(numbers: Numbers) -> Estimate:
    """Arrays from JSON, where nan is null."""
    return Estimate(*(np.array(numbers[name], float) for name in Estimate._fields))


def curve(numbers: Numbers, name: str) -> tuple[np.ndarray, Estimate, Numbers]:
    """x, the score and all else of one curve. Raises: MissingDataError where the probe could not be made."""
    found = numbers.get(name, f"not available: there is no probe {name}: analyze probe")
    if isinstance(found, str):
        raise MissingDataError(found.removeprefix("not available: "))
    return np.array(found["x"], float), estimate(found["y"]), found


def _rows(x: np.ndarray, y: Estimate, what: str) -> list[Row]:
    return [Row(f"{what} {at:g}", *(float(part[i]) for part in y)) for i, at in enumerate(x)]


def _chance(found: Numbers) -> tuple[float, str] | None:
    return None if found.get("chance") is None else (float(found["chance"]), "chance")


def _of(numbers: Numbers) -> str:
    return "trials" if numbers["measure"] == "accuracy" else "episodes"


def delay_page(numbers: Numbers, title: str) -> Page:
    """Accuracy against the delay's length, and the memory horizon."""
    x, y, found = curve(numbers, "delay")
    figure = behaviour_figures.curve_figure(
        {"agent": (x, y)}, xlabel=found["xlabel"], ylabel=found["ylabel"], reference=_chance(found), log=True,
        title=f"{title}; trained at {found['trained']:.0f} ms",
    )  # fmt: skip
    horizon = numbers.get("memory_horizon_ms")
    known = isinstance(horizon, int | float)
    rows = [Row("memory horizon (ms)", float(horizon or 0.0))] if known else []
    rows += _rows(x, y, "delay (ms)")
    caption = (
        "Share of trials done right when the delay is made shorter or longer than in training (mean "
        f"{found['trained']:.0f} ms there), without exploration, n = {y.n.min():,.0f} trials or more at each point; "
        "band: Wilson's 95 % interval. Dashed: chance, one over the number of right actions. Memory horizon: the "
        f"longest delay up to which the interval stays above chance{'' if known else ' (' + str(horizon) + ')'}."
    )
    return Page(
        "delay", "tests", "Longer and shorter delays", caption, figure, rows, {"delay": found}, headline=tuple(rows[:1])
    )


def noise_page(numbers: Numbers, title: str) -> Page:
    """The score against noise on the observation and on the memory."""
    named = {"on the observation": "input_noise", "on the memory": "state_noise"}
    series, rows, absent, found = _several(numbers, named, "noise")
    figure = behaviour_figures.curve_figure(
        series, xlabel="noise (sd of what it is added to)", ylabel=found["ylabel"], of=_of(numbers),
        reference=_chance(found), log=True, title=title,
    )  # fmt: skip
    caption = (
        "The score with Gaussian noise added at every step to the observation, or to the memory (M of an MPN, the "
        "traces of backpropamine, else the whole state). Its size is in standard deviations of observations and of "
        f"the memory in undisturbed episodes; n = {_least(series):,.0f} {_of(numbers)} or more at each point, the "
        f"same at all; bands: 95 % intervals.{absent}"
    )
    return Page("noise", "tests", "Noise", caption, figure, rows, {name: numbers[name] for name in named.values()})


def lesion_page(numbers: Numbers, title: str) -> Page:
    """The score after the memory is erased at, or held from, each step of the trial."""
    named = {"erased before this step": "lesion", "held from this step on": "frozen"}
    series, rows, absent, found = _several(numbers, named, "step")
    figure = behaviour_figures.curve_figure(
        series, xlabel="step of the trial", ylabel=found["ylabel"], of=_of(numbers), reference=_chance(found),
        marks=found["marks"], title=title,
    )  # fmt: skip
    caption = (
        "The score when the memory is set back to its start before one step of every trial, and when it stays from "
        f"that step to the trial's end as it was before it; n = {_least(series):,.0f} {_of(numbers)} or more at each "
        "point; bands: 95 % intervals; tints: the periods of the median trial. Where erasing costs most, the memory "
        f"carries what the decision needs; where holding costs nothing any more, all has been written.{absent}"
    )
    return Page("lesions", "tests", "Erased and held memory", caption, figure, rows,
                {name: numbers[name] for name in named.values()})  # fmt: skip


def _several(numbers: Numbers, named: Mapping[str, str], what: str) -> tuple[dict, list[Row], str, Numbers]:
    """The curves that there are, their rows, a sentence for each that there is not, and one curve's labels."""
    series, rows, absent, found = {}, [], "", None
    for label, name in named.items():
        try:
            x, y, found = curve(numbers, name)
        except MissingDataError as missing:
            absent += f" {label.capitalize()}: {missing}."
            continue
        series[label] = (x, y)
        rows += _rows(x, y, f"{label}, {what}" if what not in label else label)
    if found is None:
        raise MissingDataError(first_reason(absent))
    return series, rows, absent, found


def first_reason(absent: str) -> str:
    """The first of several sentences "what: not available: why.", without its dot: why."""
    return absent.partition("not available: ")[2].partition(". ")[0].rstrip(".")


def _least(series: Mapping[str, tuple[np.ndarray, Estimate]]) -> float:
    return min(float(y.n.min()) for _, y in series.values())


def relaxation_page(numbers: Numbers, title: str) -> Page:
    """How the state settles under silence and a held input; the fixed points that a search finds there."""
    series, rows, absent, unit = {}, [], "", "steps"
    for name, found in numbers.get("relaxation", {}).items():
        if isinstance(found, str):
            absent += f" {name}: {found}."
            continue
        series[name] = (np.array(found["time"], float), estimate(found["distance"]))
        unit = found["unit"]
        starts = float(series[name][1].n.max())
        rows.append(Row(f"{name}: different states at the end", found["ends"], n=starts))
        rows.append(Row(f"{name}: speed at the end, relative", found["speed"], n=starts))
    for name, found in numbers.get("fixed_points", {}).items():
        if isinstance(found, str):
            absent += f" Fixed points under {name}: {found}."
            continue
        fixed, stable = np.array(found["fixed"], bool), np.array(found["stable"], bool)
        rows.append(Row(f"{name}: fixed points found", float(fixed.sum()), n=float(np.sum(found["found"]))))
        rows.append(Row(f"{name}: of these stable", float(stable.sum()), n=float(fixed.sum())))
    if not series:
        raise MissingDataError(first_reason(absent) or "nothing was held")
    settled = max(int(np.flatnonzero(y.value > 0.01)[-1:].sum()) for _, y in series.values())  # the rest is a line at 0
    shown = {
        name: (x[: settled + 2], Estimate(*(part[: settled + 2] for part in y))) for name, (x, y) in series.items()
    }
    figure = behaviour_figures.curve_figure(
        shown,
        xlabel=f"time since the input is held ({unit})",
        ylabel="distance to the last state",
        of="starts",
        title=title,
    )
    caption = (
        "The input is held, and the state goes on from states that the agent passed through (n starts in the "
        "legend): its distance to where it is at the end, relative to the distance at first; mean and 95 % "
        "bootstrap band over starts. More than one end means that the state can remember under that input. The "
        "table has the fixed points that a search from these states finds (minima of the state's speed; what none "
        f"leads to is not found), n the searches.{absent}"
    )
    kept = {name: numbers.get(name) for name in ("relaxation", "fixed_points")}
    return Page("relaxation", "dynamics", "Where the state comes to rest", caption, figure, rows, kept)
