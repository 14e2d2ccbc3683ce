"""JSON with the right brackets and the wrong contents is one line: the file, the place, the rule and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_utils import Experiment
from mpn_rl.options import ConfigError
from mpn_rl.storage import json_files

Y = {"value": [0.9, None], "low": [0.8, None], "high": [1, None], "n": [10, 10]}
CURVE = {"x": [0, 100], "y": Y, "xlabel": "x", "ylabel": "y", "chance": None, "trained": 100, "marks": {"delay": 3}}
REST = {"time": [0, 1], "unit": "ms", "distance": Y, "ends": 1, "speed": 0.1}
POINTS = {"fixed": [True], "stable": [False], "found": [3]}
PROBES = {"measure": "accuracy", "delay": CURVE, "lesion": "not available: no memory", "relaxation": {"silence": REST},
          "fixed_points": {"silence": POINTS}, "memory_horizon_ms": 100, "seed": 0}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps({**PROBES, **changes}))


def test_probes_as_they_are_written_have_no_fault() -> None:
    assert json_files.fault(changed(), json_files.PROBES) == ""
    assert json_files.fault(changed(delay="not available: no delay", extra={"a": []}), json_files.PROBES) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"measure": 3}, "measure must be printable text"),
        ({"measure": "a\nb"}, "measure must be printable text"),
        ({"measure": "\ud800"}, "measure must be printable text"),
        ({"measure": " " * 60_000}, "measure must be printable text of up to 200 characters"),
        ({"delay": None}, "delay must be an object, got None"),
        ({"delay": {**CURVE, "x": "ab"}}, "delay.x must be a list"),
        ({"delay": {**CURVE, "x": [0, None]}}, r"delay.x\[1\] must be a number, got None"),
        ({"delay": {**CURVE, "x": [0, 1, 2]}}, "the lists in delay differ in length"),
        ({"delay": {**CURVE, "x": list(range(5000))}}, "delay.x must be a list of up to 1,000"),
        ({"delay": {**CURVE, "y": {**Y, "low": [0]}}}, "the lists in delay.y differ in length"),
        ({"delay": {**CURVE, "y": {}}}, "value is missing in delay.y"),
        ({"delay": {**CURVE, "trained": None}}, "delay.trained must be a number"),
        ({"delay": {**CURVE, "marks": {"a": "b"}}}, "delay.marks.a must be a number"),
        ({"delay": {**CURVE, "chance": float("nan")}}, "delay.chance must lie in"),
        ({"delay": {**CURVE, "chance": 10**400}}, "delay.chance must lie in"),
        ({"memory_horizon_ms": []}, "memory_horizon_ms must be a number"),
        ({"relaxation": []}, "relaxation must be an object"),
        ({"relaxation": {"a": {**REST, "ends": True}}}, "relaxation.a.ends must be a number, got True"),
        ({"fixed_points": {"a": {**POINTS, "found": []}}}, "the lists in fixed_points.a differ"),
    ],
)
def test_wrong_probes_name_the_place_and_the_rule(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        json_files.check_json(changed(**changes), json_files.PROBES, Path("probes.json"), "run analyze probe again")
    assert str(caught.value).startswith("probes.json: ") and str(caught.value).endswith("; run analyze probe again")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"kind": None}, "kind must be text, got None"),
        ({"kind": 3}, "kind must be text, got 3"),
        ({"kind": "eval", "step": 1, "accuracy": None}, "return_mean is missing"),
        ({"kind": "eval", "step": "1", "accuracy": None, "return_mean": 1}, "step must be a number, got '1'"),
        ({"kind": "eval", "step": 1, "accuracy": "high", "return_mean": 1}, "accuracy must be a number, got 'high'"),
        ({"kind": "episode", "step": 1, "reward": [], "length": 1}, "reward must be a number"),
        ({"kind": "episode", "step": -1, "reward": 1, "length": 1}, "step must lie in"),
        ({"kind": "episode", "step": 1, "reward": 1, "length": 1, "loss": {}}, "'loss' must be a number"),
        ({"kind": "plasticity", "step": 1, "online/density": "x"}, "'online/density' must be a number"),
        ({"kind": "another", "x": float("inf")}, "'x' must lie in"),
    ],
)
def test_a_metrics_row_of_wrong_contents_names_its_line(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    experiment = Experiment.create("x", tmp_path)
    good = {"kind": "eval", "step": 1, "return_mean": None, "accuracy": None, "best": True}
    experiment.metrics_path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(ConfigError, match=rf"metrics\.jsonl line 2: {reason}"):
        experiment.read_metrics()
