"""A checkpoint whose names, shapes, dtypes or numbers are wrong anywhere is refused before a run loads any of it."""

from __future__ import annotations

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import start, tiny

import main
from model_utils import load_checkpoint, save_checkpoint
from mpn_rl import registry
from mpn_rl.config import Config
from mpn_rl.networks.encoder import check_weights
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import StateError
from mpn_rl.training import Run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "experiments_0.1.0"
MAZE = {"env_name": "GridMaze-v0", "env_args": {"episode_steps": 15}}
RUNS: dict[str, dict[str, Any]] = {
    "sequences, growing": {"prioritized": True, "expansion": "paper", "prune": "dormant", "update_interval": 20},
    "trials": {"replay": "trial", "buffer_size": 20},
    "a2c": {"learner": "a2c", "rollout_steps": 7, "core": "backpropamine", "expansion": "l2-init", **MAZE},
    "td3": {"learner": "td3", "expansion": "paper", "update_interval": 20, "total_steps": 90, "eval_average": True},
    "supervised": {"learner": "supervised", "env_name": "TemporalOrder-v0", "expansion": "continual-backprop",
                   "maturity": 1, "replacement_rate": 0.1},
    "cue-reward": {"env_name": "CueReward-v0", "env_args": {"episode_steps": 15}, "total_steps": 160,
                   "expansion": "shrink-perturb", "update_interval": 30},
}  # fmt: skip
Place = tuple[Any, ...]  # the keys from the root to a node


@functools.cache
def saved_run(kind: str) -> tuple[Config, Run, dict[str, Any]]:
    """A configuration, a new run of it, and the state of another one in mid-training."""
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


def refusal(run: Run, state: dict[str, Any]) -> str:
    """The one line in which a run refuses a state; empty where it loads it."""
    try:
        run._load(state)
    except StateError as error:
        return str(error).replace("\n", "")
    return ""


LOGGED: set[Place] = {("updates", "values"), ("updates", "last")}  # by names that the learner chooses


@pytest.mark.parametrize("kind", RUNS)
def test_every_part_of_a_run_is_checked(kind: str) -> None:
    _, new, saved = saved_run(kind)
    accepted = []
    places = list(leaves(saved))
    for index, (path, value) in enumerate(places):
        choice = list(damages(value))
        what, damage = choice[index % len(choice)]
        if not refusal(new, changed(saved, path, damage)):
            accepted.append(f"{'.'.join(map(str, path))}: {what}")
    assert len(places) > 80
    assert accepted == []


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
            if what == "missing" and path[-2:-1] == ("units",):
                continue  # a layer's units are known from its first update on
            if not refusal(new, changed(saved, path, damage)):
                accepted.append(f"{'.'.join(map(str, path))}: {what}")
    assert accepted == []


def shifted(row: int, column: int, value: int) -> Any:
    def change(segments: np.ndarray) -> np.ndarray:
        copy = segments.copy()
        copy[row, column] = value
        return copy

    return change


ADAM = "learner.optimizers.online.state.0"
GROWING, A2C, CUES = "sequences, growing", "a2c", "cue-reward"
# kind of run, place, another value or a function of the old one, reason
REFUSED = [
    (GROWING, f"{ADAM}.exp_avg", torch.ones(1), rf"{ADAM}.exp_avg must have the shape \(4, 4\), got \(1,\)"),
    (GROWING, f"{ADAM}.exp_avg_sq", lambda old: old - 1.0, rf"{ADAM}.exp_avg_sq must lie in \[0, 1e\+30\]"),
    (GROWING, f"{ADAM}.step", torch.tensor(-1.0), rf"{ADAM}.step must lie in"),
    (GROWING, "learner.optimizers.online.state", lambda old: {**old, 99: old[0]}, "state.99 is unknown"),
    (GROWING, "learner.optimizers.online.state", lambda old: {1: {}, 2: old[2]}, "state.1.step is missing"),
    (GROWING, "learner.generator", lambda old: torch.full_like(old, 255), "is no state of a random generator"),
    (GROWING, "learner.topology.online/core/layers/0/weight", lambda old: old.float(), "must have the dtype torch.b"),
    (GROWING, "learner.topology._extra_state.done.online", 2**40, "done.online must lie in"),
    (GROWING, "learner.topology._extra_state.sources.online.head", ("head", 999), "does not read 999 units"),
    (GROWING, "learner.topology._extra_state.snapshots", [], "snapshots are not in the order"),
    (GROWING, "counters.updates_due", 2.0**70, r"counters.updates_due must lie in \[0, 1\]"),
    (GROWING, "counters.step", lambda old: old + 1, "counters do not fit each other and 3 lanes"),
    (GROWING, "counters.step", lambda old: old + 3, "replay.counters are not those of"),
    (GROWING, "counters.episodes", 10**6, "counters do not fit"),
    (GROWING, "replay.counters.first", -1, "first must lie in"),
    (GROWING, "replay.counters.last", 2**50, "replay.counters cannot keep the segments"),
    (GROWING, "replay.counters.head", 2**50, "replay"),
    (GROWING, "replay.arrays.priorities", lambda old: old * 0.0, "replay.arrays.priorities must lie in"),
    (GROWING, "replay.arrays.action", lambda old: old + 2, r"replay.arrays.action must lie in \[0, 1\]"),
    *((GROWING, "replay.arrays.segments", shifted(1, column, value), f"has an impossible {what}")
      for column, value, what in ((0, 3, "lane"), (0, -1, "lane"), (1, 10**6, "first step"), (1, -1, "first step"),
                                  (2, 4, "padding"), (3, 0, "number of"), (3, 99, "number of"), (4, 2, "state"),
                                  (5, 10**9, "state"), (5, -1, "state"))),
    (GROWING, "replay.t", lambda old: old + 1, "replay.t are not the steps of the lanes' episodes"),
    (GROWING, "lanes.seeds.1", 2**62, r"lanes.seeds.1 must lie in \[0, 1.07374e\+09\]"),
    (GROWING, "lanes.seeds", lambda old: old[:1], "lanes"),
    (GROWING, "lanes.actions.0", np.array([7]), r"lanes.actions.0 must lie in \[0, 1\]"),
    (GROWING, "lanes.actions.0", np.zeros(10**4, np.int64), "lanes.actions.0 has 10,000 actions after 22 steps"),
    (GROWING, "state", lambda old: old * np.inf, "state must lie in"),
    (GROWING, "updates.values", {"kind": torch.ones(1)}, "updates.values has a wrong name, got 'kind'"),
    (GROWING, "updates.values", {"grad_norm": torch.ones(1)}, "do not have one loss per update"),
    (GROWING, "rng.numpy", lambda old: (*old[:2], 10**6, *old[3:]), r"rng.numpy.2 must lie in \[0, 624\]"),
    (GROWING, "rng.python", lambda old: (3, (*old[1][:-1], 10**6), None), "rng.python.1 is no state of"),
    (GROWING, "rng.replay.state.inc", 2**128, "rng.replay.state.inc must lie in"),
    (GROWING, "rng.replay.bit_generator", "MT19937", "rng.replay.bit_generator must be 'PCG64'"),
    (GROWING, "ended", [(1.0, 3, 0, None)] * 2, "ended must be a list of up to 1 values"),
    (GROWING, "metrics_size", -1, "metrics_size must lie in"),
    (A2C, "learner.topology.initial.online", lambda old: {**old, "core.weight": torch.ones(1)}, "must have the shape"),
    (A2C, "learner.topology.initial.online", lambda old: {**old, "core.weight": old["core.weight"] * math.nan},
     "learner.topology.initial.online.core.weight must lie in"),
    (CUES, "learner.topology.done", 6, r"learner.topology.done must lie in \[0, 5\]"),
    (A2C, "replay.taken", 7, "replay.taken must lie in"),
    (A2C, "replay.arrays.action", lambda old: old + 4, "replay.arrays.action must lie in"),
    *((A2C, f"lanes.env.{name}", lambda old: old + 10**6, f"lanes.env.{name} must lie in")
      for name in ("cell", "goal", "action", "t", "obs")),
    (A2C, "lanes.lengths", lambda old: old + 10**6, "lanes.lengths must lie in"),
    (CUES, "lanes.env.schedule", lambda old: old * 0, "lanes.env.schedule has a trial without an end"),
    (CUES, "lanes.env.place", lambda old: old + 100, "lanes.env.place must lie in"),
    ("trials", "replay.t", lambda old: old + 25, "replay.t exceeds the steps of the lanes' episodes"),
    ("td3", "replay.first", 10**9, "replay.first and replay.last cannot be"),
    ("td3", "replay.table", lambda old: old + 5.0, "replay.table must lie in"),
    ("td3", "lanes.actions.0", np.full((2, 1), 9.0, np.float32), r"lanes.actions.0 must lie in \[-2, 2\]"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "place", "value", "reason"), REFUSED)
def test_numbers_that_no_run_has_are_refused(kind: str, place: str, value: Any, reason: str) -> None:
    _, new, saved = saved_run(kind)
    old, path = saved, []
    for name in place.split("."):
        path.append(name if isinstance(old, dict) and name in old else int(name))
        old = old[path[-1]]
    with pytest.raises(StateError, match=reason):
        new._load(changed(saved, tuple(path), value(old) if callable(value) else value))


def test_options_of_an_optimiser_come_from_the_configuration() -> None:
    config, _, saved = saved_run(GROWING)
    group = saved["learner"]["optimizers"]["online"]["param_groups"][0]
    evil = [{**group, "maximize": True, "lr": 10.0, "betas": (5, 5), "weight_decay": "x", "params": [3]}]
    run = Run(config)
    run._load(changed(saved, ("learner", "optimizers", "online", "param_groups"), evil))
    own = run.learner.optimizers["online"].param_groups[0]  # type: ignore[attr-defined]
    assert not own["maximize"] and own["betas"] == (0.9, 0.999) and own["weight_decay"] == 0
    assert own["lr"] == config.learner.learning_rate


def test_the_bounds_of_actions_come_from_the_task() -> None:
    config, _, saved = saved_run("td3")
    run = Run(config)
    for name in ("low", "high"):
        saved = changed(saved, ("learner", "networks", "actor", f"head.{name}"), torch.tensor([99.0]))
    run._load(saved)
    head = run.learner.online.head  # type: ignore[attr-defined]
    assert (head.low.item(), head.high.item()) == (-2.0, 2.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, torch.int8, torch.bool, torch.complex64, torch.float64])
def test_a_network_of_strange_weights_is_refused(bad: float | torch.dtype) -> None:
    config, _, saved = saved_run(GROWING)
    network = registry.make_network(config, registry.spaces(registry.make_env(config.env)))
    check_weights(saved["network"], network)  # also its mask, which a new network lacks
    old = saved["network"]["head.weight"]
    new = old.to(bad) if isinstance(bad, torch.dtype) else old + bad
    with pytest.raises(StateError, match=r"network.head.weight must"):
        check_weights({**saved["network"], "head.weight": new}, network)


def test_a_damaged_run_names_the_file_and_the_way_out_and_changes_nothing(tmp_path: Path) -> None:
    config = tiny("train", total_steps=160)
    run = start(config, tmp_path)
    while run.step < 30:
        run.advance()
    run.save()
    experiment = run.experiment
    assert experiment is not None
    saved = load_checkpoint(experiment.checkpoint("last"))
    saved["counters"]["updates_due"] = 2**70
    save_checkpoint(experiment.checkpoint("last"), saved)
    experiment.append_metrics({"kind": "episode", "step": 33, "reward": 0.0, "length": 1})  # resuming cuts it off
    before = {path: path.read_bytes() for path in experiment.path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"last.pt does not fit .*config.json \(counters.updates_due.*--overwrite"):
        Run.resume(config, experiment)
    assert before == {path: path.read_bytes() for path in experiment.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("versions", [None, [], "x", {"init_from": 3}])
def test_a_run_resumes_whatever_its_versions_are(versions: object, tmp_path: Path) -> None:
    experiment = Path(shutil.copytree(FIXTURES / "td3", tmp_path / "td3"))
    config = json.loads((experiment / "config.json").read_text())
    (experiment / "config.json").write_text(json.dumps({**config, "versions": versions}))
    where = ["--experiment-name", "td3", "--experiments-dir", str(tmp_path)]
    assert main.main(["train", "--resume", "--total-steps", "243", "--no-plot-training", *where]) == 0
