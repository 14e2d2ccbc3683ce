"""A checkpoint whose names, shapes, dtypes or numbers are wrong anywhere is refused before a run loads any of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import start, tiny

from model_utils import load_checkpoint
from mpn_rl.config import Config
from mpn_rl.storage.state_trees import StateError
from mpn_rl.training import Run

MAZE = {"env_name": "GridMaze-v0", "env_args": {"episode_steps": 15}}
RUNS: dict[str, dict[str, Any]] = {
    "sequences, growing": {"prioritized": True, "expansion": "paper", "prune": "dormant", "update_interval": 20},
    "trials": {"replay": "trial", "buffer_size": 20},
    "a2c": {"learner": "a2c", "rollout_steps": 7, "core": "backpropamine", **MAZE},
    "td3": {"learner": "td3", "expansion": "paper", "update_interval": 20, "total_steps": 90, "eval_average": True},
    "cue-reward": {"env_name": "CueReward-v0", "env_args": {"episode_steps": 15}, "total_steps": 160},
}
Place = tuple[Any, ...]  # the keys from the root to a node


@functools.cache
def saved_run(kind: str) -> tuple[Config, Run, dict[str, Any]]:
    """A configuration, a new run of it, and the state of another one in mid-training."""
    import tempfile

    config = tiny("train-neurogym" if kind == "trials" else "train", **{"total_steps": 160, **RUNS[kind]})
    with tempfile.TemporaryDirectory() as root:
        run = start(config, Path(root))
        while run.step < 64:
            run.advance()
        run.save()
        assert run.experiment is not None
        return config, Run(config), load_checkpoint(run.experiment.checkpoint("last"))


def leaves(node: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    if isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if not (path[-2:] == ("rng", "python") and key == 1):  # 625 numbers alike
                yield from leaves(value, (*path, key))
    elif "param_groups" not in path and path[:1] != ("format",):
        yield path, node


def changed(node: Any, path: Place, value: Any) -> Any:
    """A copy of the tree with another value at one place."""
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return tuple(copy) if isinstance(node, tuple) else copy


def damages(value: Any) -> Iterator[tuple[str, Any]]:
    """Values of another type, shape, dtype or range."""
    yield "text", "x"
    yield "a list", [value]
    if isinstance(value, torch.Tensor | np.ndarray):
        make = torch.from_numpy if isinstance(value, torch.Tensor) else lambda array: array
        array = np.asarray(value)
        yield "one dimension more", make(array[None].copy())
        yield "complex numbers", make(array.astype(np.complex64))
        yield "another kind of numbers", make(array.astype(np.int8))
        yield "none", None
        if array.size and array.dtype.kind == "f":
            yield "no number", make(np.full_like(array, np.nan))
            yield "infinity", make(np.full_like(array, np.inf))
        return
    if isinstance(value, int) and not isinstance(value, bool):
        yield "2**200", 2**200
        yield "-2", -2
    if isinstance(value, float):
        yield "nan", math.nan
    yield "a tensor", torch.ones(1)


@pytest.mark.parametrize("kind", RUNS)
def test_every_part_of_a_run_is_checked(kind: str) -> None:
    _, new, saved = saved_run(kind)
    accepted, messages = [], []
    places = list(leaves(saved))
    for index, (path, value) in enumerate(places):
        choice = list(damages(value))
        what, damage = choice[index % len(choice)]
        try:
            new._load(changed(saved, path, damage))
        except StateError as error:
            messages.append(str(error))
        else:
            accepted.append(f"{'.'.join(map(str, path))}: {what}")
    assert len(places) > 80
    assert accepted == []
    assert all(message and "\n" not in message for message in messages)


@pytest.mark.parametrize("kind", RUNS)
def test_a_missing_or_unknown_part_is_refused(kind: str) -> None:
    _, new, saved = saved_run(kind)
    folders = {path[:depth] for path, _ in leaves(saved) for depth in range(len(path))}
    accepted = []
    for path in sorted(folders, key=str):
        node = functools.reduce(lambda inner, key: inner[key], path, saved)
        if (
            not isinstance(node, dict)
            or {"sources", "activity"} & {*path[-2:]}
            or path[-1:] in (("values",), ("last",))
        ):
            continue
        for what, damage in (("missing", dict(list(node.items())[1:])), ("unknown", {**node, "else": 1})):
            if what == "missing" and path[-1:] in (("state",), ("grad_norms",)):
                continue  # Adam keeps nothing for a weight that has had no gradient
            try:
                new._load(changed(saved, path, damage))
            except StateError:
                continue
            accepted.append(f"{'.'.join(map(str, path))}: {what}")
    assert accepted == []
