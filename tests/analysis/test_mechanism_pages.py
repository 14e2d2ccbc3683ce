"""What the pages on the mechanism say where an MPN's equations do not hold."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn_rl import config as cfg
from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.analysis.pages import mechanism_pages


def recording(name: str, weights: dict[str, np.ndarray], **options: object) -> Any:
    """As much of a recording as the pages on weights and fixed points read."""
    core = {"name": name, **dataclasses.asdict(cfg.choices("core")[name].build(**options))}
    part = {"core": core, "encoder": {"constant_input": False}}
    return SimpleNamespace(config=part, weights=weights, weight=lambda key: weights[key])


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("mpn", {"m_activation": "tanh"}, "M is bounded by tanh, so the scalar equations do not hold"),
        ("mpn-recurrent", {}, "the core mpn-recurrent has no scalar equations"),
        ("mpn-recurrent", {"m_activation": "none"}, "the core mpn-recurrent has no scalar equations"),
        ("mpn-frozen", {}, "plasticity is frozen"),
    ],
)
def test_fixed_points_are_not_available_without_scalar_equations(name: str, options: dict, why: str) -> None:
    with pytest.raises(MissingDataError, match=why):
        mechanism_pages.mpn_points(recording(name, {}, **options), np.zeros(3))


def test_fixed_points_of_a_run_from_before_the_option_are_those_of_an_unbounded_m() -> None:
    weights = {
        "weight": np.eye(2),
        "bias": np.zeros(2),
        "eta": np.full((1, 1), 0.1),
        "lambda_decay": np.full((1, 1), 0.5),
    }
    old = recording("mpn", {f"core.layers.0.{key}": value for key, value in weights.items()})
    del old.config["core"]["m_activation"]
    points = mechanism_pages.mpn_points(old, np.array([1.0, 0.0]))
    np.testing.assert_allclose(points.gain, [0.2, 0.0])  # c = eta / (1 - lambda) W x^2


def test_the_maps_of_a_recurrent_mpn_name_both_weight_matrices() -> None:
    names = ("weight", "eta", "lambda_decay", "recurrent")
    maps = mechanism_pages.core_maps(recording("mpn-recurrent", {f"core.layers.0.{name}": np.eye(2) for name in names}))
    assert list(maps) == ["W", "eta", "lambda", "W recurrent"]
