"""What an option is: a dataclass field with help, range and flag, checked where its section is made. Stdlib only."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

# How this program was started, for lines that say what to type next.
PROGRAM = "mpn-rl" if Path(sys.argv[0]).stem == "mpn-rl" else "python main.py"


class ConfigError(ValueError):
    """A user's mistake, told in one line: the option, the rule, the value, the way out."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for the names most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def option(default: Any, help: str, *, low=None, high=None, above=None, flag: str | None = None) -> Any:
    """A field with its help text and range: low <= value <= high, value > above."""
    metadata = {"help": help, "low": low, "high": high, "above": above, "flag": flag}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(field: dataclasses.Field) -> str:
    """The command-line spelling of a field: --lambda-decay for lambda_decay."""
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


class Section:
    """One group of options. Checks types and ranges when it is made."""

    def __post_init__(self) -> None:
        for field, kind in fields_of(type(self)):
            value = check_value(field, kind, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def fields_of(section: type) -> list[tuple[dataclasses.Field, Any]]:
    """The fields of a section with their types."""
    hints = typing.get_type_hints(section)
    return [(field, hints[field.name]) for field in dataclasses.fields(section)]


def unwrap_optional(kind: Any) -> tuple[Any, bool]:
    """(int, True) for `int | None`, (int, False) for `int`."""
    if isinstance(kind, types.UnionType):
        return next(arg for arg in typing.get_args(kind) if arg is not type(None)), True
    return kind, False


def check_value(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """The value in the field's type, or ConfigError."""
    name, rule = flag_of(field), field.metadata
    kind, optional = unwrap_optional(kind)
    if value is None and optional:
        return None
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return value
    if typing.get_origin(kind) is dict:
        kind = dict
    if kind is float and type(value) is int and abs(value) <= LARGEST:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} must be {_TYPE_NAMES[kind]}, got {shortened(value)}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value}")
    if kind is int and abs(value) > LARGEST:
        raise ConfigError(f"{name} must be at most {LARGEST}, got {shortened(value)}")
    low, high, above = rule["low"], rule["high"], rule["above"]
    too_low = (low is not None and not value >= low) or (above is not None and not value > above)
    if too_low or (high is not None and not value <= high):
        raise ConfigError(f"{name} must {_range_text(low, high, above)}, got {value}")
    return value


LARGEST = 10**15  # beyond it, products of sizes overflow, and no float tells neighbours apart
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "KEY=VALUE"}


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _range_text(low, high, above) -> str:
    if high is not None:
        return f"lie in [{low}, {high}]" if above is None else f"lie in ({above}, {high}]"
    return f"be at least {low}" if above is None else f"be greater than {above}"


class Kind(Section):
    """A section that comes in kinds: a subclass of a base registers itself under the name that selects it."""

    registry: ClassVar[dict[str, type]] = {}
    name: ClassVar[str] = ""

    def __init_subclass__(cls, name: str = "", **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name
            cls.registry[name] = cls
        elif Kind in cls.__bases__:
            cls.registry = {}
