"""What the state of an object may be, checked before the object loads it.

`like(state)` is the schema of a state that a new object has: the same names, and tensors and arrays of the same shapes
and dtypes. An object whose state has parts that vary, such as a replay buffer that fills up, puts rules in their
place. So a new learner or core is checked without a line of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from mpn_rl.options import shortened

LARGEST = 1e15  # of a number: larger ones overflow in the next steps
FLOAT_MAX = float(np.finfo(np.float32).max)
COUNT = 2**53  # of a whole number: larger ones are not exact as floats


class StateError(ValueError):
    """A saved state that the object cannot load; the text names the place and the rule."""


@dataclass(frozen=True)
class Whole:
    """A whole number in [low, high]."""

    low: int = 0
    high: int = COUNT


@dataclass(frozen=True)
class Real:
    """A finite number in [low, high]; None where `null`."""

    low: float = -LARGEST
    high: float = LARGEST
    null: bool = False


@dataclass(frozen=True)
class Truth:
    """True or False."""


@dataclass(frozen=True)
class Text:
    """Text of up to 200 characters."""


@dataclass(frozen=True)
class Exactly:
    """This text or None."""

    value: str | None


@dataclass(frozen=True)
class Anything:
    """Not used, or checked elsewhere."""


@dataclass(frozen=True)
class Values:
    """A tensor, or a NumPy array, of finite numbers in [low, high].

    Args:
        dtype: of torch for a tensor, of NumPy for an array.
        shape: sizes; None for any size.
        low, high: the smallest and the largest number.
    """

    dtype: torch.dtype | np.dtype
    shape: tuple[int | None, ...]
    low: float = -LARGEST
    high: float = LARGEST


@dataclass(frozen=True)
class Many:
    """A list of up to `most` values."""

    of: Schema
    most: int = COUNT


@dataclass(frozen=True)
class Named:
    """A dict of up to `most` values, with names that match a regular expression."""

    of: Schema
    names: str = r"\w{1,100}"
    most: int = 1000


Rule: TypeAlias = Whole | Real | Truth | Text | Exactly | Anything | Values | Many | Named
# Dicts, lists and tuples stand for themselves; a name that ends in "?" may be missing.
Schema: TypeAlias = "Rule | Mapping[Any, Schema] | Sequence[Schema]"


def like(state: object) -> Schema:
    """The schema of states with the same names, shapes and dtypes. Numbers are unknown; whole ones are not negative."""
    if isinstance(state, Rule):
        return state
    if isinstance(state, torch.Tensor):
        high = LARGEST if state.is_floating_point() else math.inf
        return Values(state.dtype, tuple(state.shape), -high, high)
    if isinstance(state, np.ndarray | np.generic):
        high = LARGEST if state.dtype.kind == "f" else math.inf
        return Values(state.dtype, state.shape, -high, high)
    if isinstance(state, dict):
        return {name: like(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(like(value) for value in state)
    if isinstance(state, bool):
        return Truth()
    if isinstance(state, int):
        return Whole()
    if isinstance(state, float):
        return Real()
    if state is None or isinstance(state, str):
        return Exactly(state)
    raise TypeError(f"a state cannot hold a {type(state).__name__}")


def like_dict(state: Mapping[str, Any], **rules: Schema) -> dict[str, Schema]:
    """The schema of a dict, as `like`, with rules in the place of some of its values."""
    return {name: rules[name] if name in rules else like(value) for name, value in state.items()}


def check(state: Any, schema: Schema, place: str = "") -> None:
    """Raise a StateError that names the place, the rule and the value, where a state breaks its schema."""
    if isinstance(schema, Values):
        _check_values(state, schema, place)
    elif isinstance(schema, Truth):
        _require(isinstance(state, bool), place, "must be true or false", state)
    elif isinstance(schema, Whole):
        whole = isinstance(state, int) and not isinstance(state, bool)
        _require(whole, place, "must be a whole number", state)
        _require(whole and schema.low <= state <= schema.high, place, _range(schema), state)
    elif isinstance(schema, Real):
        number = isinstance(state, float | int) and not isinstance(state, bool)
        _require(number or (schema.null and state is None), place, "must be a number", state)
        _require(not number or schema.low <= state <= schema.high, place, _range(schema), state)
    elif isinstance(schema, Text):
        _require(isinstance(state, str) and len(state) <= 200, place, "must be text", state)
    elif isinstance(schema, Exactly):
        _require(type(state) is type(schema.value) and state == schema.value, place, f"must be {schema.value!r}", state)
    elif isinstance(schema, Many):
        _require(isinstance(state, list) and len(state) <= schema.most, place,
                 f"must be a list of up to {schema.most:,} values", state)  # fmt: skip
        for index, value in enumerate(state):
            check(value, schema.of, _inside(place, index))
    elif isinstance(schema, Named):
        _require(isinstance(state, dict), place, "must be a dict", state)
        _require(len(state) <= schema.most, place, f"must have at most {schema.most:,} entries", len(state))
        for name, value in state.items():
            _require(re.fullmatch(schema.names, str(name)), place, "has a wrong name", name)
            check(value, schema.of, _inside(place, name))
    elif isinstance(schema, Mapping):
        _check_names(state, schema, place)
    elif isinstance(schema, list | tuple):
        _require(type(state) is type(schema), place, f"must be a {type(schema).__name__}", state)
        _require(len(state) == len(schema), place, f"must have {len(schema)} entries", len(state))
        for index, (value, rule) in enumerate(zip(state, schema, strict=True)):
            check(value, rule, _inside(place, index))


def _check_names(state: Any, schema: Mapping[Any, Schema], place: str) -> None:
    _require(isinstance(state, dict), place, "must be a dict", state)
    names = {str(name).removesuffix("?") if isinstance(name, str) else name: name for name in schema}
    for name, key in names.items():
        if name in state:
            check(state[name], schema[key], _inside(place, name))
        elif not str(key).endswith("?"):
            raise StateError(f"{_inside(place, name)} is missing")
    for name in state:
        if name not in names:
            raise StateError(f"{_inside(place, name)} is unknown")


def _check_values(state: object, schema: Values, place: str) -> None:
    kind = torch.Tensor if isinstance(schema.dtype, torch.dtype) else np.ndarray | np.generic
    what = "a tensor" if isinstance(schema.dtype, torch.dtype) else "an array"
    if not isinstance(state, kind):
        raise StateError(f"{place} must be {what}, got {_shown(state)}")
    assert isinstance(state, torch.Tensor | np.ndarray | np.generic)
    if state.dtype != schema.dtype:
        raise StateError(f"{place} must have the dtype {schema.dtype}, got {state.dtype}")
    if len(state.shape) != len(schema.shape) or any(
        known not in (None, size) for known, size in zip(schema.shape, state.shape, strict=True)
    ):
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in schema.shape) + ")"
        raise StateError(f"{place} must have the shape {wanted}, got {tuple(state.shape)}")
    if math.prod(state.shape) == 0:
        return
    low, high = extremes(state)
    if not (schema.low <= low and high <= schema.high):  # false for values that are not a number
        got = "values that are not a number" if low != low else f"values from {low:g} to {high:g}"
        raise StateError(f"{place} must lie in [{schema.low:g}, {schema.high:g}], got {got}")


def extremes(values: torch.Tensor | np.ndarray | np.generic) -> tuple[float, float]:
    """The smallest and the largest number, nan twice where one is not a number, inf for a byte that is no bool."""
    tensor = values.detach().cpu() if isinstance(values, torch.Tensor) else None
    array = np.asarray(values) if tensor is None else tensor.numpy()
    if array.dtype.kind == "b":
        return (0.0, 1.0) if array.view(np.uint8).max() <= 1 else (math.nan, math.nan)
    if array.dtype.kind == "c":
        return math.nan, math.nan
    if array.dtype.kind == "f" and array.dtype.itemsize > 2:  # one pass; it returns nan where there is one
        ends = torch.aminmax(tensor if tensor is not None else torch.from_numpy(array))
        return float(ends.min), float(ends.max)
    return float(array.min()), float(array.max())


def _require(holds: object, place: str, rule: str, got: object) -> None:
    if not holds:
        raise StateError(f"{place or 'the state'} {rule}, got {_shown(got)}")


def _shown(value: object) -> str:
    plain = value is None or isinstance(value, bool | int | float | str)
    return shortened(value) if plain else f"a {type(value).__name__}"


def _range(rule: Whole | Real) -> str:
    return f"must lie in [{rule.low:g}, {rule.high:g}]"


def _inside(place: str, name: object) -> str:
    shown = name if re.fullmatch(r"[\w./]{1,100}", str(name)) else shortened(name)
    return f"{place}.{shown}" if place else str(shown)


# --- states of random generators ----------------------------------------------------------------------------


def check_torch_random(state: object, place: str) -> None:
    """Raise a StateError where `state` is not one of a torch.Generator on the CPU."""
    generator = torch.Generator()
    check(state, like(generator.get_state()), place)
    assert isinstance(state, torch.Tensor)
    try:
        generator.set_state(state.cpu())
    except RuntimeError as error:
        raise StateError(f"{place} is no state of a random generator") from error


def check_python_random(state: object, place: str) -> None:
    """Raise a StateError where `state` is not one of `random.getstate`."""
    check(state, (Whole(3, 3), Anything(), Real(null=True)), place)
    words = state[1] if isinstance(state, tuple) else None
    if not isinstance(words, tuple) or len(words) != 625 or any(type(word) is not int or word < 0 for word in words):
        raise StateError(f"{place}.1 must be 625 whole numbers")
    if max(words) >= 2**32 or words[-1] > 624:
        raise StateError(f"{place}.1 is no state of a random generator")


def check_numpy_random(state: object, place: str) -> None:
    """Raise a StateError where `state` is not one of `numpy.random.get_state`. NumPy does not check the position."""
    words = Values(np.dtype(np.uint32), (624,))
    check(state, (Exactly("MT19937"), words, Whole(0, 624), Whole(0, 1), Real()), place)


def check_bit_generator(state: object, place: str) -> None:
    """Raise a StateError where `state` is not one of NumPy's PCG64."""
    words = {"state": Whole(0, 2**128 - 1), "inc": Whole(0, 2**128 - 1)}
    rest = {"has_uint32": Whole(0, 1), "uinteger": Whole(0, 2**32 - 1)}
    check(state, {"bit_generator": Exactly("PCG64"), "state": words, **rest}, place)
