"""What the JSON files of an experiment hold, checked before use: rows of metrics.jsonl, probes.json, eval/*.json, ...

A schema is a `Number`, `Text`, `Truth`, `Null` or `Many`, a dict {key: schema} or a tuple of alternatives. A key that
ends in "?" may be missing; keys that a schema does not name may hold anything; "*" stands for every key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mpn_rl.options import ConfigError, shortened

LARGEST = 1e15
WHOLE = "the file"  # the place of the outermost object


@dataclass(frozen=True)
class Number:
    """A finite number in [low, high]; null where the value is unknown."""

    low: float = -LARGEST
    high: float = LARGEST
    null: bool = False


@dataclass(frozen=True)
class Text:
    """Printable text of up to `most` characters."""

    most: int = 2000


@dataclass(frozen=True)
class Truth:
    """true or false."""


@dataclass(frozen=True)
class Null:
    """null."""


@dataclass(frozen=True)
class Many:
    """A list of up to `most` values; the lists of one object have the same length."""

    of: Number | Text | Truth
    most: int = 1000


Leaf: TypeAlias = "Number | Text | Truth | Null | Many"
Schema: TypeAlias = "Leaf | tuple[Schema, ...] | Mapping[str, Schema]"

KNOWN, ANY = Number(), Number(null=True)
STEP = Number(0)
SCORES: dict[str, Schema] = {
    "accuracy?": ANY,
    "normalised_score?": ANY,
    "return_mean?": ANY,
    "episode_seeds?": Many(Number(0, 2.0**63), 10**7),
    "network?": Text(64),
    "trials?": ANY,
    "choices?": (
        Null(),
        {
            "ground_truth": Many(STEP, 10**7),
            "choice": Many(STEP, 10**7),
            "trials": Many(Number(1), 10**7),
            "*": Many(ANY, 10**7),
        },
    ),
}
COLLECTED: dict[str, Schema] = {
    "checkpoint?": Text(),
    "network?": Text(64),
    "seed?": STEP,
    "epsilon?": Number(0, 1),
    "acting?": Text(),
    "num_episodes?": STEP,
    "max_megabytes?": STEP,
    "precision?": Text(),
    "episodes?": STEP,
    "steps?": STEP,
    "states?": (Null(), Many(Text(200))),
}
ESTIMATES: dict[str, Schema] = dict.fromkeys(("value", "low", "high", "n"), Many(ANY))
CURVE: dict[str, Schema] = {
    "x": Many(STEP),
    "y": ESTIMATES,
    "xlabel": Text(200),
    "ylabel": Text(200),
    "chance?": ANY,
    "trained?": ANY,
    "marks": {"*": KNOWN},
}
RELAXATION: dict[str, Schema] = {
    "time": Many(STEP),
    "unit": Text(20),
    "distance": ESTIMATES,
    "ends": STEP,
    "speed": Number(0, 1e300, null=True),
}
POINTS: dict[str, Schema] = {"fixed": Many(Truth()), "stable": Many(Truth()), "found": Many(STEP), "unreached?": STEP}
PROBES: dict[str, Schema] = {
    "measure": Text(200),
    "seed?": STEP,
    "checkpoint?": Text(),
    "network?": Text(64),
    "acting?": Text(),
    "num_trials?": STEP,
    "delays?": (Null(), Many(KNOWN)),
    **dict.fromkeys(("input_noise?", "state_noise?", "lesion?", "frozen?", "swapped?", "displaced?"), (Text(), CURVE)),
    "lesion_controls?": Truth(),
    "delay?": (Text(), CURVE | {"trained": KNOWN}),
    "memory_horizon_ms?": (Text(), ANY),
    "memory_horizon_censored?": Truth(),
    "memory_decay_ms?": (Text(), dict.fromkeys(("value", "low", "high", "n"), ANY)),
    "relaxation?": {"*": (Text(), RELAXATION)},
    "fixed_points?": {"*": (Text(), POINTS)},
}
# Of a page in analysis/: a line of its table; the course of decoding.
LINE: dict[str, Schema] = {"what": Text(500), "value": ANY}
DECODED: dict[str, Schema] = {"time": Many(ANY, 10**5), "onsets": {"*": STEP}, "unit": Text(20)}
# Rows of metrics.jsonl by kind; all their other entries are numbers, null, true or false.
ROWS: dict[str, dict[str, Schema]] = {
    "episode": {"step": STEP, "reward": ANY, "length": ANY},
    "eval": {"step": STEP, "return_mean": ANY, "accuracy": ANY},
    "plasticity": {"step": STEP},
    "checkpoint": {"step": STEP},
}
OTHERS = (Truth(), Number(-1e300, 1e300, null=True))


def check_json(obj: object, schema: Schema, path: Path, way_out: str) -> None:
    """Raise a ConfigError that names the file, the place, the rule and the way out, where `obj` breaks the schema."""
    reason = fault(obj, schema)
    if reason:
        raise ConfigError(f"{path}: {reason}; {way_out}")


def row_fault(row: Mapping[str, object]) -> str:
    """Why a row of metrics.jsonl is wrong, or an empty text."""
    kind = row.get("kind", "")
    if not isinstance(kind, str):
        return f"kind must be text, got {shortened(kind)}"
    schema = ROWS.get(kind, {})
    for key, rule in schema.items():
        if key not in row:
            return f"{key} is missing"
        if reason := fault(row[key], rule, key):
            return reason
    for key, value in row.items():
        if key not in schema and key != "kind" and (reason := fault(value, OTHERS, shortened(key))):
            return reason
    return ""


def fault(obj: object, schema: Schema, place: str = WHOLE) -> str:
    """Why `obj` breaks the schema, or an empty text; `place` names it."""
    if isinstance(schema, Number):
        return _number_fault(obj, schema, place)
    if isinstance(schema, Text):
        if isinstance(obj, str) and len(obj) <= schema.most and (obj.isprintable() or obj == ""):
            return ""
        return f"{place} must be printable text of up to {schema.most} characters, got {shortened(obj)}"
    if isinstance(schema, Truth):
        return "" if isinstance(obj, bool) else f"{place} must be true or false, got {shortened(obj)}"
    if isinstance(schema, tuple):
        reasons = [fault(obj, each, place) for each in schema]
        return "" if "" in reasons else reasons[-1]
    if isinstance(schema, Mapping):
        return _object_fault(obj, schema, place)
    if isinstance(schema, Null):
        return "" if obj is None else f"{place} must be null, got {shortened(obj)}"
    if not isinstance(obj, list) or len(obj) > schema.most:
        return f"{place} must be a list of up to {schema.most:,} values, got {shortened(obj)}"
    return next((reason for i, each in enumerate(obj) if (reason := fault(each, schema.of, f"{place}[{i}]"))), "")


def _number_fault(obj: object, schema: Number, place: str) -> str:
    if obj is None and schema.null:
        return ""
    if isinstance(obj, bool) or not isinstance(obj, int | float):
        return f"{place} must be a number, got {shortened(obj)}"
    if (isinstance(obj, float) and not math.isfinite(obj)) or not schema.low <= obj <= schema.high:
        return f"{place} must lie in [{schema.low:g}, {schema.high:g}], got {shortened(obj)}"
    return ""


def _object_fault(obj: object, schema: Mapping[str, Schema], place: str) -> str:
    if not isinstance(obj, dict):
        return f"{place} must be an object, got {shortened(obj)}"
    lengths = set()
    for key, rule in schema.items():
        name = key.removesuffix("?")
        if key != "*" and name not in obj and not key.endswith("?"):
            return f"{name} is missing in {place}"
        for each in obj if key == "*" else {name} & obj.keys():
            inner = each if place == WHOLE else f"{place}.{each}"
            if reason := fault(each, Text(200), f"a name in {place}") or fault(obj[each], rule, inner):
                return reason
            if isinstance(rule, Many):
                lengths.add(len(obj[each]))
            elif rule is ESTIMATES:
                lengths.add(len(obj[each]["value"]))
    return f"the lists in {place} differ in length" if len(lengths) > 1 else ""
