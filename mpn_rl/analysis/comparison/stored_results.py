"""What `analyze plot` and `analyze probe` have written of one run, for means over seeds. Nothing is measured again.

A run's numbers are those in the tables of its pages, and its curves are decoding over the trial and the probes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_utils import Record, read_json
from mpn_rl.analysis.comparison.over_seeds import Curve
from mpn_rl.options import ConfigError
from mpn_rl.storage.json_files import DECODED, LINE, PROBES, check_json, fault

PLOT, PROBE = "plot", "probe"  # the stages that write pages
# The pages whose tables are compared, by the stage that writes them; learning curves have a figure of their own.
PAGES = {
    PLOT: ("behaviour", "evidence", "commitment", "pca_variance", "demixed", "decoding", "cross_temporal",
           "cross_condition", "fixed_points"),
    PROBE: ("delay", "noise", "lesions", "relaxation"),
}  # fmt: skip
PROBED = {"delay": "length of the delay", "input_noise": "noise on the observation", "state_noise": "noise on the "
          "memory", "lesion": "memory erased", "frozen": "memory frozen",
          "swapped": "memory of another trial", "displaced": "memory moved at random"}  # fmt: skip
DECODED_FIRST = ("evidence", "stimulus", "choice", "context")  # the first of them that was decoded is drawn
MOST_LINES = 10_000  # of a page's table


class Measured(NamedTuple):
    """The stored results of one run: {(page, quantity): number}, {name: curve}, and the stages without results."""

    numbers: dict[tuple[str, str], float]
    curves: dict[str, Curve]
    missing: list[str]


def stored(folder: Path, stages: Iterable[str] = (PLOT, PROBE)) -> Measured:
    """The results in a run's folder analysis/, of these stages only.

    Raises: ConfigError for a file that a page or the probes cannot have written.
    """
    numbers: dict[tuple[str, str], float] = {}
    curves: dict[str, Curve] = {}
    there = set()
    for stage, page in ((stage, page) for stage, names in PAGES.items() for page in names):
        path = folder / f"{page}.json"
        if stage not in stages or not path.is_file():
            continue
        there.add(stage)
        record = read_json(path)
        lines = record.get("table")
        if not isinstance(lines, list) or len(lines) > MOST_LINES:
            raise ConfigError(f"{path}: it has no table of up to {MOST_LINES:,} lines; run analyze {stage} again")
        reason = next(filter(None, (fault(line, LINE, f"table[{i}]") for i, line in enumerate(lines))), "")
        if reason:
            raise ConfigError(f"{path}: {reason}; run analyze {stage} again")
        numbers |= {(page, line["what"]): float(line["value"]) for line in lines if line["value"] is not None}
        if page == "decoding" and "onsets" in record:
            curves |= _decoded(record, path)
    if PROBE in there and (folder / "probes.json").is_file():
        curves |= _probed(folder / "probes.json")
    return Measured(numbers, curves, [stage for stage in (PLOT, PROBE) if stage not in there])


def _decoded(record: Record, path: Path) -> dict[str, Curve]:
    """The accuracy over the trial of the first of DECODED_FIRST, from every state."""
    check_json(record, DECODED, path, "run analyze plot again")
    time, step = record["time"], np.diff(record["time"][:2]).sum() or 1.0
    onsets = dict(sorted(record["onsets"].items(), key=lambda item: item[1]))
    periods = list(onsets)
    place = np.searchsorted(list(onsets.values()), np.arange(len(time)), side="right") - 1
    curves = {}
    states = [name for name, part in record.items() if isinstance(part, dict) and name not in ("missing", "onsets")]
    for state in states:
        label = next((name for name in DECODED_FIRST if name in record[state]), None)
        if label is None:
            continue
        reason = fault(record[state][label], {"accuracy": DECODED["time"]}, f"{state}.{label}")
        if reason or len(record[state][label]["accuracy"]) != len(time) or min(place, default=0) < 0:
            raise ConfigError(f"{path}: {reason or 'its lists differ in length'}; run analyze plot again")
        points = {(periods[at], float(column - onsets[periods[at]])): float(value)
                  for column, (at, value) in enumerate(zip(place, record[state][label]["accuracy"], strict=True))
                  if value is not None}  # fmt: skip
        name = f"{label} decoded from {'the ' if state == 'observation' else ''}{state}"
        curves[name] = Curve(points, f"time in trial ({record['unit']})", "balanced accuracy", float(step), onsets)
    return curves


def _probed(path: Path) -> dict[str, Curve]:
    """The score over x of every probe that is a curve."""
    record = read_json(path)
    check_json(record, PROBES, path, "run analyze probe again")
    curves = {}
    for key, name in PROBED.items():
        if isinstance(part := record.get(key), dict):
            points = {("", float(x)): float(y) for x, y in zip(part["x"], part["y"]["value"], strict=True)
                      if y is not None}  # fmt: skip
            curves[f"probe: {name}"] = Curve(points, part["xlabel"], part["ylabel"], marks=part["marks"])
    return curves
