"""Spaces of other people's tasks: does an observation fit its space, and actions of several parts as one choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import gymnasium
import numpy as np
from gymnasium import spaces

MOST_CHOICES = 1024  # combinations of a composite action that become the choices of one Discrete


def misfit(space: gymnasium.Space, observation: object) -> str:
    """Why an observation cannot be flattened without changing it; empty where it can.

    Bounds are not checked: many tasks leave them, which does no harm.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or set(observation) != set(space.spaces):
            return f"it must be a dict with the keys {', '.join(map(str, space.spaces))}"
        parts = ((f"{key}: ", part, observation[key]) for key, part in space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        if not isinstance(observation, tuple | list) or len(observation) != len(space.spaces):
            return f"it must have {len(space.spaces)} parts"
        parts = ((f"part {i}: ", part, observation[i]) for i, part in enumerate(space.spaces))
    else:
        return _misfit_array(space, observation)
    return next((where + why for where, part, value in parts if (why := misfit(part, value))), "")


def _misfit_array(space: gymnasium.Space, observation: object) -> str:
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return "" if space.contains(observation) else f"it is not in {space}"
    try:
        array = np.asarray(observation)
    except ValueError:
        return "its rows differ in length"
    if array.dtype.kind not in "biuf":
        return f"it holds {type(observation).__name__} values, not numbers"
    if isinstance(space, spaces.Discrete):
        right = array.size == 1 and space.start <= array.item() < space.start + space.n and array.dtype.kind in "biu"
        return "" if right else f"it must be a whole number from {space.start} to {space.start + space.n - 1}"
    if array.shape != space.shape:
        return f"its shape is {array.shape}, not {space.shape}"
    if space.dtype.kind != "f" and array.dtype != space.dtype:
        with np.errstate(invalid="ignore"):
            if not np.array_equal(array.astype(space.dtype), array):
                return f"its {array.dtype} values do not fit {space.dtype}"
    if isinstance(space, spaces.MultiDiscrete) and ((array < 0) | (array >= space.nvec)).any():
        return f"its entries must lie below {space.nvec.tolist()}"
    return ""


def flat_actions(space: gymnasium.Space) -> tuple[gymnasium.Space, Callable[..., object]] | None:
    """An action space that the learners can use in place of a task's own.

    Args: space: the task's.
    Returns: Discrete from 0, or a Box of one dimension, and the function from its actions to the task's; None where
        there is no such space, or where it would have more than MOST_CHOICES choices.
    """
    if isinstance(space, spaces.Discrete):
        start, only = int(space.start), np.int64
        return spaces.Discrete(int(space.n)), lambda action: only(start + int(action))
    if isinstance(space, spaces.Box):
        shape = space.shape
        flat = spaces.Box(space.low.ravel(), space.high.ravel(), dtype=space.dtype)
        return flat, lambda action: np.asarray(action, space.dtype).reshape(shape)
    sizes = _sizes(space)
    if sizes is None or math.prod(sizes) > MOST_CHOICES:
        return None
    return spaces.Discrete(math.prod(sizes)), lambda action: _build(space, iter(np.unravel_index(int(action), sizes)))


def _sizes(space: gymnasium.Space) -> list[int] | None:
    """The number of choices in each part of a composite action; None where a part is not a choice."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec.ravel()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * math.prod(space.shape)
    if not isinstance(space, spaces.Tuple | spaces.Dict):
        return None
    sizes: list[int] = []
    for part in _parts(space):
        inner = _sizes(part)
        if inner is None:
            return None
        sizes += inner
    return sizes


def _build(space: gymnasium.Space, digits: Iterator[np.intp]) -> object:
    """An action of the task's own space, whose parts take the next digits."""
    if isinstance(space, spaces.Discrete):
        return np.int64(space.start + int(next(digits)))
    if isinstance(space, spaces.Tuple):
        return tuple(_build(part, digits) for part in space.spaces)
    if isinstance(space, spaces.Dict):
        return {key: _build(part, digits) for key, part in space.spaces.items()}
    return np.array([int(next(digits)) for _ in range(math.prod(space.shape))], space.dtype).reshape(space.shape)


def _parts(space: spaces.Tuple | spaces.Dict) -> list[gymnasium.Space]:
    return list(space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces)
