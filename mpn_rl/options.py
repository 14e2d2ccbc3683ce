"""Options: dataclass fields with a help text, a range and a flag, checked when their section is built. Stdlib only."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

T = TypeVar("T")

# How this program was started, for messages that name a command to type.
PROGRAM = "mpn-rl" if Path(sys.argv[0]).stem == "mpn-rl" else "python main.py"


class ConfigError(ValueError):
    """A user's mistake, explained in one line: the option, the rule, the value, the way out."""

    status = 2  # exit status of the program


class TemporaryError(ConfigError):
    """A condition that may pass, such as a held lock or a full disk: the same command line may succeed later."""

    status = 75  # EX_TEMPFAIL of sysexits.h: HTCondor, Slurm and `sweep run` try again


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full. PyTorch's is a RuntimeError, one of many."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    words = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory", "ALLOC_FAILED")
    return any(word in str(error) for word in words)


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the names most similar to `name`, or an empty text."""
    close = difflib.get_close_matches(name[:100], list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


# What an option's effect depends on: values by the name of another option; a part's name, such as "core", stands for
# its kind. A condition holds where each option has one of its values; an option that the run lacks has none.
Condition = Mapping[str, tuple[object, ...]]


class Not(tuple[object, ...]):
    """In a `Condition`: any value but these."""


class Same(str):
    """In a `Condition`: the value of the option of this name."""


class AtLeast(str):
    """In a `Condition`: a value not below that of the option of this name."""


def holds(condition: Condition, values: Mapping[str, object]) -> bool:
    """Whether a condition holds for the values of a run's options."""

    def fits(value: object, accepted: object) -> bool:
        if isinstance(accepted, Same | AtLeast):
            other = values.get(str(accepted))
            if isinstance(accepted, AtLeast) and isinstance(value, int | float) and isinstance(other, int | float):
                return value >= other
            accepted = other
        return type(value) is type(accepted) and value == accepted

    return all(
        name in values and any(fits(values[name], one) for one in accepted) != isinstance(accepted, Not)
        for name, accepted in condition.items()
    )


def option(
    default: T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    flag: str | None = None,
    needs: Condition | None = None,
    idle: Iterable[Condition] = (),
) -> T:
    """A field with its help text, its range and what its effect depends on.

    Args:
        default: the default value.
        help: one line for --help.
        low, high: the smallest and the largest value allowed.
        above: a bound that the value must exceed.
        flag: the spelling on the command line, where `flag_of` is not to derive it from the field's name.
        needs: values of other options without which this one does nothing; those that the run lacks do not count.
        idle: the option does nothing where one of these conditions holds.
    """
    metadata: dict[str, object] = {"help": help, "low": low, "high": high, "above": above, "flag": flag}
    metadata |= {"needs": needs or {}, "idle": tuple(idle)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(field: dataclasses.Field) -> str:
    """The command-line spelling of a field: --lambda-decay for lambda_decay."""
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


@dataclass(frozen=True)
class Section:
    """One group of options. It checks their types and ranges when it is built.

    Raises: ConfigError for a value of another type or out of range.
    """

    def __post_init__(self) -> None:
        for field, kind in fields_of(type(self)):
            value = check_value(field, kind, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def fields_of(section: type[Section]) -> list[tuple[dataclasses.Field, object]]:
    """The fields of a section with their types."""
    hints = typing.get_type_hints(section)
    return [(field, hints[field.name]) for field in dataclasses.fields(section)]


def unwrap_optional(kind: object) -> tuple[object, bool]:
    """(int, True) for `int | None`, (int, False) for `int`."""
    if isinstance(kind, types.UnionType):
        return next(arg for arg in typing.get_args(kind) if arg is not type(None)), True
    return kind, False


def check_value(field: dataclasses.Field, kind: object, value: object) -> object:
    """The value in the field's type. Raises: ConfigError."""
    name, rule = flag_of(field), field.metadata
    kind, optional = unwrap_optional(kind)
    if value is None and optional:
        return None
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {shortened(value)}")
        return value
    if typing.get_origin(kind) is dict:
        kind = dict
    if kind is float and type(value) is int and abs(value) <= LARGEST:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} must be {_TYPE_NAMES[kind]}, got {shortened(value)}")
    if not isinstance(value, int | float):
        return value
    if kind is int and abs(value) > LARGEST:
        raise ConfigError(f"{name} must be at most {LARGEST}, got {shortened(value)}")
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value}")
    low, high, above = rule["low"], rule["high"], rule["above"]
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if not too_low and (high is None or value <= high):
        return value
    if high is not None:
        allowed = f"lie in [{low}, {high}]" if above is None else f"lie in ({above}, {high}]"
    else:
        allowed = f"be at least {low}" if above is None else f"be greater than {above}"
    raise ConfigError(f"{name} must {allowed}, got {value}")


LARGEST = 10**15  # products of larger sizes overflow, and floats of that size no longer count in ones
_TYPE_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "KEY=VALUE",
}


def shortened(value: object) -> str:
    """The value's repr, cut to 60 characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} in itself or too deep"
    return text if len(text) <= 60 else text[:57] + "..."


class Kind(Section):
    """A section of which there are several kinds, such as the cores.

    A dataclass that derives from such a base registers itself under the name that selects it:
    `class LSTMConfig(CoreConfig, name="lstm")`.
    """

    registry: ClassVar[dict[str, type[Kind]]] = {}
    name: str = ""  # that selects it: no option, but kept with them in config.json

    def __init_subclass__(cls, name: str = "", **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name
            cls.registry[name] = cls
        elif Kind in cls.__bases__:
            cls.registry = {}


@dataclass(frozen=True)
class Choice:
    """What one name selects, such as `--core lstm` or `--expansion rigl`.

    Args:
        name: the name; "" for a section that comes in one kind only.
        section: the dataclass of its options.
        doc: what the name stands for, in one line.
        defaults: the options, by field name, whose default differs from the dataclass's own.
    """

    name: str
    section: type[Section]
    doc: str = ""
    defaults: dict[str, object] = dataclasses.field(default_factory=dict)

    def default(self, field: dataclasses.Field) -> object:
        """The default value of one of the section's fields."""
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
        return self.defaults.get(field.name, field.default)

    def build(self, **values: object) -> Any:
        """A section with these values, and the defaults otherwise. Raises: ConfigError."""
        make: Callable[..., Section] = self.section
        section = make(**{**self.defaults, **values})
        if self.name:
            object.__setattr__(section, "name", self.name)
        return section
