"""Hostile experiment folders for torture.py: one node of one file is changed, or one file is a special file.

Hypothesis draws the cases. Each case changes a real experiment in one place, then one command reads the experiment in a
fork. The command must end within LIMIT_S seconds with status 0, 2 or 75, print one line if it refuses, run no code of
the folder, and change nothing outside the folder.

    python benchmarks/hostile_files.py [--cases 300] [--seed 0] [--only TEXT]      prints the failures by kind
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torture
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from mpn_rl.analysis import probes, report  # noqa: F401  (before any fork, so that each one starts at once)
from mpn_rl.analysis.figures import video  # noqa: F401
from mpn_rl.analysis.pages import mechanism_pages, probe_pages, standard_pages  # noqa: F401
from mpn_rl.sweep import commands  # noqa: F401

LIMIT_S = 10  # of processor time, as other work may slow this machine down
PAGES_S = 60  # for stages that compute every page, and record first if the recording is missing
LIMIT_WALL_S = 30  # without any processor time
LIMIT_BYTES = 12 * 2**30  # of address space
BASE = [*["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2"], *torture.COMMON,
        *["--eval-freq", "100", "--eval-episodes", "2", "--checkpoint-freq", "100"]]  # fmt: skip
DQN = ["--learning-starts", "50", "--buffer-size", "400", "--batch-size", "4"]
SEQUENCES = ["--sequence-length", "8", "--sequence-stride", "8"]
STEPS = 200
EXPERIMENTS = {
    "growing": ["train", *BASE, *DQN, *SEQUENCES, "--max-episode-steps", "30", "--prioritized", "--expansion", "paper",
                "--update-interval", "100"],
    "trials": ["train-neurogym", *BASE, "--learning-starts", "50", "--replay", "trial", "--trial-batch-size", "4",
               "--buffer-size", "40"],
    "maze": ["train", *BASE, "--algo", "a2c", "--core", "backpropamine", "--env-name", "GridMaze-v0",
             "--max-episode-steps", "20"],
    "td3": ["train", *BASE, *SEQUENCES, *DQN, "--algo", "td3", "--core", "gru", "--replay", "sequence", "--env-name",
            "Pendulum-v1", "--max-episode-steps", "30"],
    "walker": ["train", *BASE, *DQN, "--algo", "td3", "--core", "mlp", "--env-name", "Pendulum-v1", "--eval-average",
               "--max-episode-steps", "30", "--expansion", "paper", "--prune", "dormant", "--update-interval", "50"],
    "transitions": ["train", *BASE, *DQN, "--replay", "transition", "--max-episode-steps", "30", "--core", "lstm"],
    "cues": ["train", *BASE, *DQN, *SEQUENCES, "--env-name", "CueReward-v0", "--max-episode-steps", "30"],
}  # fmt: skip
READERS = {
    "eval": ["eval", "--num-eval-episodes", "1"],
    "eval last": ["eval", "--checkpoint", "last", "--num-eval-episodes", "1"],
    "render": ["render", "--max-steps", "5", "--output", "film.gif"],
    "collect": ["analyze", "collect", "--num-episodes", "2"],
    "plot": ["analyze", "plot"],
    "report": ["analyze", "report", "--no-probes"],
    "compare": ["analyze", "compare", "--output", "compared", "--overwrite", "--num-eval-episodes", "2"],
    "resume": ["--resume", "--total-steps", str(STEPS + 40)],
    "resume auto": ["--resume", "auto", "--total-steps", str(STEPS + 40)],
    "status": ["sweep", "status"],
}
OUTPUTS = {"film.gif", "compared"}  # what the readers write beside the experiments
ALL = list(READERS)
# How often each kind of file is chosen, and what reads it.
KINDS: dict[str, tuple[int, list[str]]] = {
    "config.json": (5, ALL),
    "metrics.jsonl": (4, ["resume", "resume auto", "status", "report", "compare"]),
    "training_history.json": (1, ["resume", "resume auto", "report"]),
    "last.pt": (6, ["eval last", "resume", "resume auto"]),
    "best_model.pt": (5, ["eval", "render", "collect", "report", "compare"]),
    "final_model.pt": (1, ["resume", "resume auto", "report"]),
    "activity.npz": (4, ["plot", "report"]),
    "network.npz": (3, ["plot", "report"]),
    "masks.npz": (3, ["plot", "report", "resume", "resume auto"]),
    "probes.json": (3, ["report", "plot"]),
    "collected.json": (2, ["report", "plot"]),
    "a score": (4, ["report", "compare", "eval"]),
    "a page": (3, ["report", "plot"]),
    "numbers of a figure": (1, ["report", "plot"]),
    "a figure": (2, ["report", "plot"]),
    "a folder": (3, ALL),
    "a file of the run": (3, ALL),
}


def kind_of(file: str) -> str:
    """The kind of a file, from its path in the experiment."""
    path = Path(file)
    if path.name in KINDS:
        return path.name
    if path.parent.name == "eval":
        return "a score"
    if path.parent.name == "analysis" and path.suffix in (".json", ".npz"):
        return "a page" if path.suffix == ".json" else "numbers of a figure"
    return (
        "a figure" if path.suffix in (".png", ".html", ".csv") else "a file of the run" if "." in file else "a folder"
    )


class Case(NamedTuple):
    experiment: str
    file: str  # its path in the experiment
    change: str  # what is done to it, in words
    reader: str
    content: bytes | None  # of the changed file; None for a special file
    drawn: bool = True  # whether figures are drawn, which takes most of the time, or only composed

    def __str__(self) -> str:
        return f"{self.reader}: {self.experiment}/{self.file}: {self.change}"


# --- values -------------------------------------------------------------------------------------------------

DEEP = "@nested 100,000 deep@"


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def recursive(value: object) -> list:
    """A list that contains itself."""
    inner = [value]
    inner.append(inner)
    return inner


def doubled(times: int) -> list:
    """A list of a few kilobytes that a program which copies it takes for one of 2**times values."""
    value: list = []
    for _ in range(times):
        value = [value, value]
    return value


SCALARS: dict[str, object] = {
    "null": None, "true": True, "false": False, "0": 0, "-1": -1, "1": 1, "3": 3, "2**31": 2**31, "2**63": 2**63,
    "-2**70": -(2**70), "2**70": 2**70, "10**400": 10**400, "0.5": 0.5, "-0.0": -0.0, "1e308": 1e308,
    "nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "empty text": "", "text": "x",
    "long text": "x" * 100_000, "a surrogate": "\ud800", "a NUL byte": "a\0b", "control characters": "\x1b[2J\r\n\t",
    "a path": "../../../outside/thesis", "an absolute path": "/etc/passwd",
    "a plugin": "experiments.{}.plugin:CartPole-v1",
    "a plugin beside": "plugin:CartPole-v1", "another task": "CartPole-v1",
    "a task of NeuroGym": "PerceptualDecisionMaking-v0",
    "markup": "<script>alert(1)</script>{{ 7 * 7 }}[bold]", "digits": "7", "{}": {}, "[]": [], "[null]": [None],
    "[[], {}]": [[], {}], "{'': 0}": {"": 0}, "a list of texts": ["a", "b"], "100,000 numbers": [1.5] * 100_000,
    "nested 200 deep": nested(200),
}  # fmt: skip
JSON_VALUES = {**SCALARS, "nested 100,000 deep": DEEP}


class Bomb:
    """A pickle that creates a file when it is read."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("marker"),))


Alter = Callable[[object], object]


def _tensor(alter: Callable[[torch.Tensor], object]) -> Alter:
    return lambda old: alter(old if isinstance(old, torch.Tensor) else torch.ones(3))


def _array(alter: Callable[[np.ndarray], object]) -> Alter:
    return lambda old: alter(old if isinstance(old, np.ndarray) else np.ones(3))


TENSORS: dict[str, Alter] = {
    "a tensor of shape (1,)": lambda _: torch.ones(1),
    "a tensor of shape (0,)": lambda _: torch.zeros(0),
    "a tensor of no dimension": lambda _: torch.tensor(1.0),
    "its values as nan": _tensor(lambda old: torch.full(old.shape, float("nan"))),
    "its values as inf": _tensor(lambda old: torch.full(old.shape, float("inf"))),
    "its values as 1e30": _tensor(lambda old: torch.full(old.shape, 1e30)),
    "its values as -1": _tensor(lambda old: torch.full(old.shape, -1).to(old.dtype)),
    "one value as nan": _tensor(lambda old: torch.cat([torch.full((1,), torch.nan), old.flatten()[1:]]).view_as(old)),
    "its values as int8": _tensor(lambda old: old.to(torch.int8)),
    "its values as int64": _tensor(lambda old: old.to(torch.int64)),
    "its values as bool": _tensor(lambda old: old.to(torch.bool)),
    "its values as float64": _tensor(lambda old: old.to(torch.float64)),
    "its values as float16": _tensor(lambda old: old.to(torch.float16)),
    "its values as complex": _tensor(lambda old: old.to(torch.complex64)),
    "one more row": _tensor(lambda old: torch.cat([old, old[:1]]) if old.dim() else old[None]),
    "one row less": _tensor(lambda old: old[1:].clone() if old.dim() else old[None]),
    "one more dimension": _tensor(lambda old: old[None].clone()),
    "its transpose": _tensor(lambda old: old.T.clone() if old.dim() == 2 else old.flip(0) if old.dim() else old),
    "a meta tensor": _tensor(lambda old: old.to("meta")),
    "a sparse tensor": _tensor(lambda old: old.float().to_sparse()),
    "a sparse tensor out of bounds": lambda _: torch.sparse_coo_tensor([[10**9]], [1.0], (10**9 + 1,)),
    "a view of 4 TB": lambda _: torch.zeros(1).expand(10**12),
    "a parameter": _tensor(lambda old: torch.nn.Parameter(old.float())),
    "a quantized tensor": _tensor(lambda old: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8)),
    "a marked array": _tensor(lambda old: {"__numpy__": old, "scalar": False}),
    "a marked array without tensor": lambda _: {"__numpy__": 3, "scalar": True},
    "a marked array of two keys less": lambda _: {"__numpy__": torch.ones(2)},
}  # fmt: skip
PT_VALUES: dict[str, Alter] = {
    **{name: lambda _, value=value: value for name, value in SCALARS.items()}, **TENSORS,
    "a tuple": lambda old: (old, old), "keys that are tuples": lambda old: {(1, 2): old, None: old, 3: old},
    "bytes": lambda _: b"\xff\0", "a complex number": lambda _: 1j, "a bomb": lambda _: Bomb(),
    "itself": lambda old: recursive(old), "the same list 2**40 times": lambda _: doubled(40),
    "nested 100,000 deep": lambda _: nested(100_000),
}  # fmt: skip
ARRAYS: dict[str, Alter] = {
    "an array of shape (0,)": lambda _: np.zeros(0), "an array of shape (1,)": lambda _: np.ones(1),
    "an array of no dimension": lambda _: np.float32(1), "objects": lambda _: np.array([Bomb()], object),
    "its values as nan": _array(lambda old: np.full(old.shape, np.nan)),
    "its values as inf": _array(lambda old: np.full(old.shape, np.inf)),
    "its values as 2**62": _array(lambda old: np.full(old.shape, 2**62)),
    "its values as -1": _array(lambda old: np.full(old.shape, -1)),
    "its values as 0": _array(lambda old: np.zeros(old.shape)),
    "its values as text": _array(lambda old: np.full(old.shape, "../../outside/thesis")),
    "its values as bytes": _array(lambda old: np.full(old.shape, b"\xff")),
    "its values as bool": _array(lambda old: np.ones(old.shape, bool)),
    "its values as complex": _array(lambda old: np.ones(old.shape, complex)),
    "its values as dates": _array(lambda old: np.zeros(old.shape, "M8[s]")),
    "a record": lambda _: np.zeros(3, [("a", "i4"), ("b", "f8")]),
    "one more row": _array(lambda old: np.concatenate([old, old[:1]]) if old.ndim else old[None]),
    "one row less": _array(lambda old: old[1:] if old.ndim else old[None]),
    "one more dimension": _array(lambda old: old[None]),
    "its transpose": _array(lambda old: old.T),
    "the wrong byte order": _array(lambda old: old.astype(old.dtype.newbyteorder())),
    "text": lambda _: np.array("x"), "broken JSON": lambda _: np.array("{\"a\": "),
    "nested JSON": lambda _: np.array("[" * 100_000),
    "a header that claims 8 TB": lambda _: b"8 TB", "a bomb of zeros": lambda _: b"zeros",
    "no array": lambda _: b"no array",
}  # fmt: skip
NAMES = ["../../../outside/thesis", "state_x/../../../../outside/thesis", "", ".", "x", "a\nb", "\x1b[2J", "<b>",
         "x" * 300, "{{ 7 * 7 }}", "__class__", "state_x"]  # fmt: skip
SPECIALS = ["a link to a document", "a link to a folder", "a link to itself", "a link to nothing",
            "a link to /dev/zero", "a link to another experiment's file", "a hard link to a document", "a FIFO",
            "a folder", "a socket", "empty", "1 TiB of nothing", "random bytes", "text", "brackets"]  # fmt: skip

# --- files --------------------------------------------------------------------------------------------------

Tree = object  # nested dicts, lists and tuples of scalars, tensors and arrays


def decode(path: Path) -> Tree:
    """The contents of a file; None for a file that is changed only as a whole."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return dict(archive)
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    return None


def _json(tree: Tree) -> str:
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)


def _npy(array: object) -> bytes:
    """The bytes of an array, or of the value that replaces it."""
    out = io.BytesIO()
    if isinstance(array, bytes):
        shape = (10**12,) if array == b"8 TB" else (2**27,)
        np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
        return b"no array" if array == b"no array" else out.getvalue() + (b"" if array == b"8 TB" else bytes(2**30))
    np.lib.format.write_array(out, np.asarray(array), allow_pickle=True)
    return out.getvalue()


def encode(suffix: str, tree: Tree) -> bytes:
    """The bytes of a file that holds `tree`."""
    if suffix == ".json":
        return _json(tree).encode()
    if suffix == ".jsonl":
        return "".join(_json(row) + "\n" for row in (tree if isinstance(tree, list) else [tree])).encode()
    out = io.BytesIO()
    if suffix == ".npz":
        arrays = tree if isinstance(tree, dict) else {"x": tree}
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                archive.writestr(f"{name}.npy", _npy(array))
    else:
        torch.save(tree, out)
    return out.getvalue()


def children(tree: Tree) -> list:
    """The keys of a node's children."""
    if isinstance(tree, dict):
        return list(tree)
    return list(range(len(tree))) if isinstance(tree, list | tuple) else []


def altered(tree: Tree, path: list, operation: str, alter: Alter, name: str) -> Tree:
    """A copy of `tree` with the node at `path` replaced, removed, renamed, doubled or put into a list."""
    if not path:
        return alter(tree) if operation in ("replace", "remove", "rename") else [tree, tree]
    key, *rest = path
    if isinstance(tree, tuple):
        return tuple(altered(list(tree), path, operation, alter, name))
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if rest or operation == "replace":
        copy[key] = altered(copy[key], rest, operation, alter, name)
    elif operation == "remove":
        del copy[key]
    elif isinstance(copy, list):
        copy.insert(key, copy[key])
    else:
        value = copy.pop(key) if operation == "rename" else copy[key]
        copy[name] = value
    return copy


@st.composite
def cases(draw: st.DrawFn, trees: dict[tuple[str, str], Tree], only: str) -> Case:
    """One change of one file, and the command that reads it."""
    chosen = [place for place in trees if only in place[1]]
    known = {kind_of(file) for _, file in chosen}
    kind = draw(st.sampled_from([kind for kind, (share, _) in KINDS.items() if kind in known for _ in range(share)]))
    experiment, file = draw(st.sampled_from([place for place in chosen if kind_of(place[1]) == kind]))
    reader = draw(st.sampled_from(KINDS[kind][1] if draw(st.integers(0, 4)) else ALL))
    drawn = not draw(st.integers(0, 3))
    tree = trees[experiment, file]
    if tree is None or not draw(st.integers(0, 5)):
        return Case(experiment, file, draw(st.sampled_from(SPECIALS)), reader, None, drawn)
    path: list = []
    node = tree
    while (keys := children(node)) and (not path or draw(st.integers(0, 5))):
        shown = keys[:40] + keys[-2:]
        path.append(draw(st.sampled_from(shown)))
        node = node[path[-1]]
    path = path if draw(st.integers(0, 20)) else []
    suffix = Path(file).suffix
    operation = draw(st.sampled_from(["replace", "replace", "replace", "replace", "remove", "rename", "double"]))
    name = draw(st.sampled_from(NAMES))
    values = PT_VALUES if suffix == ".pt" else ARRAYS if suffix == ".npz" else None
    text = draw(st.sampled_from(sorted(values or JSON_VALUES)))
    json_value = JSON_VALUES.get(text)
    if isinstance(json_value, str):
        json_value = json_value.replace("{}", experiment) if "experiments" in json_value else json_value
    alter = values[text] if values else lambda _: json_value
    change = f"{operation} {'/'.join(map(str, path)) or 'all'}"
    change += f" by {text}" if operation == "replace" or not path else f" as {name!r}" if operation == "rename" else ""
    try:
        warnings.simplefilter("ignore")  # torch warns about strange tensors
        content = encode(suffix, altered(tree, path, operation, alter, name))
    except (ValueError, TypeError, RuntimeError, UnicodeError, NotImplementedError) as error:
        return Case(experiment, file, f"{change} ({type(error).__name__}: empty instead)", reader, b"", drawn)
    return Case(experiment, file, change, reader, content, drawn)


# --- one case -----------------------------------------------------------------------------------------------


def argv_of(case: Case) -> list[str]:
    reader, name = READERS[case.reader], ["--experiment-name", case.experiment]
    if case.reader.startswith("resume"):
        return [EXPERIMENTS[case.experiment][0], *name, *reader, "--no-plot-training", "--device", "cpu"]
    if case.reader == "status":
        return [*reader, f"{case.experiment}.job"]
    if case.reader == "compare":
        return [*reader, *name, "other", "--group-by", "algo", "--device", "cpu"]
    return [*reader, *name, *([] if case.reader == "plot" else ["--device", "cpu"])]


def lay(case: Case, home: Path) -> None:
    """Write the changed file, beside modules that nothing may import."""
    folder = home / "experiments" / case.experiment
    for module in ("plugin.py", "sitecustomize.py"):
        (folder / module).write_text(f"open({str(home / 'marker')!r}, 'w')\nimport gymnasium\n")
    path = folder / case.file
    if case.content is not None:
        path.write_bytes(case.content)
        return
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    outside, size = home / "outside", 2**40
    links = {
        "a link to a document": outside / "thesis.txt", "a link to a folder": outside, "a link to itself": path,
        "a link to nothing": outside / "nothing", "a link to /dev/zero": "/dev/zero",
        "a link to another experiment's file": home / "experiments" / "other" / case.file,
    }  # fmt: skip
    contents = {"random bytes": os.urandom(3000), "text": b"a text\n", "brackets": b"[" * 10**6, "empty": b""}
    if case.change in links:
        path.symlink_to(links[case.change])
    elif case.change in contents:
        path.write_bytes(contents[case.change])
    elif case.change == "a hard link to a document":
        os.link(outside / "thesis.txt", path)
    elif case.change == "a FIFO":
        os.mkfifo(path)
    elif case.change == "a folder":
        path.mkdir()
        (path / "content").write_text("content")
    elif case.change == "a socket":
        with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
            one.bind(path.name)
    else:
        path.touch()
        os.truncate(path, size)


def snapshot(home: Path, experiment: str) -> dict[str, tuple]:
    """Everything outside the experiment, except what a command may write: its output and the hidden files of runs."""
    result = {}
    for folder, names, files in os.walk(home):
        place = Path(folder).relative_to(home)
        if place == Path("experiments"):
            names[:] = [name for name in names if name != experiment and not name.startswith(".")]
        if place == Path():
            names[:] = [name for name in names if name not in OUTPUTS]
            files = [name for name in files if name not in OUTPUTS]
        for name in [*files, *names]:
            entry = os.lstat(Path(folder, name))
            times = (entry.st_size, entry.st_mtime_ns) if name in files else ()
            result[str(place / name)] = (entry.st_mode, entry.st_ino, *times)
    return result


def compose() -> None:
    """Replace the drawing of figures, which would take most of the time, by their layout."""
    Figure.savefig = lambda _, file, **__: file.write(b"") if isinstance(file, io.IOBase) else Path(file).touch()


def begin(home: Path, drawn: bool, seconds: int) -> None:
    """Prepare the fork: limits of time and memory, and the working folder on the path, as in a clone."""
    if not drawn:
        compose()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    sys.path.insert(0, str(home))


def processor_time(pid: int) -> float:
    """The processor seconds of a running child."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answer(case: Case, home: Path, logs: Path) -> str | None:
    """Run the reader of a changed experiment. Returns: the fault of the answer, or None."""
    lay(case, home)
    before = snapshot(home, case.experiment)
    limit = PAGES_S if case.reader in ("plot", "report") else LIMIT_S
    child = torture.fork(argv_of(case), home, prepare=lambda: begin(home, case.drawn, limit), logs=logs)
    moved, computed, ended, status = time.monotonic(), 0.0, 0, 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0 if ended else 0.005)
        if not ended and processor_time(child) > computed:
            moved, computed = time.monotonic(), processor_time(child)
        if not ended and time.monotonic() > moved + LIMIT_WALL_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hang"
    return fault(os.waitstatus_to_exitcode(status), (logs / "err.txt").read_text(errors="replace"), home,
                 before, snapshot(home, case.experiment))  # fmt: skip


def fault(status: int, err: str, home: Path, before: dict[str, tuple], after: dict[str, tuple]) -> str | None:
    lines = [
        line
        for line in err.strip().splitlines()
        if not line.startswith(("note: ", "evaluating ", "Compiling ")) and "━" not in line
    ]  # a bar may end before a refusal
    if (home / "marker").exists():
        return "code of the folder ran"
    if before != after:
        return "changed outside: " + ", ".join(
            path for path in sorted({*before, *after}) if before.get(path) != after.get(path)
        )
    if status < 0:
        return "hang: too much processor time" if status == -signal.SIGPROF else f"ended by signal {-status}"
    if "Traceback" in err:
        places = re.findall(r'File "[^"]*/((?:mpn_rl/|analysis/)?[\w/]+\.py)", line \d+, in (\w+)', err)
        own = [place for place in places if (torture.ROOT / place[0]).exists() or "mpn_rl" in place[0]]
        return f"traceback: {lines[-1][:150]} ({':'.join((own or places or [('?', '?')])[-1])})"
    if status not in (0, 2, 75):
        return f"exit status {status}: {' | '.join(lines[-2:])[:200]}"
    if status and len(lines) != 1:
        return f"{len(lines)} lines: {' | '.join(lines)[:300]}"
    return None


# --- all cases ----------------------------------------------------------------------------------------------


def prepare(home: Path, names: list[str]) -> None:
    """Make experiments with every kind of file, and documents that no command may touch."""
    (home / "outside").mkdir(parents=True)
    for extension in ("txt", "png", "json", "svg", "pdf"):
        (home / "outside" / f"thesis.{extension}").write_text("three years of work\n" * 500)
    for name in names:
        line = [*EXPERIMENTS[name], "--seed", "1", "--total-steps", str(STEPS)]
        torture.to_the_end([*line, "--experiment-name", name], home)
        (home / f"{name}.job").write_text(
            f"arguments = {' '.join(line)} --resume auto --experiment-name $(name)\nqueue name from (\n{name}\n)\n"
        )
    shutil.copytree(home / "experiments" / names[0], home / "experiments" / "other")
    for name in names:
        for reader in ("eval", "eval last", "collect", "plot", "compare"):
            torture.to_the_end(argv_of(Case(name, "", "", reader, None)), home, prepare=compose)
        if name in ("trials", names[0]):
            options = ["--num-trials", "4"] if name == "trials" else []
            probe = ["analyze", "probe", "--experiment-name", name, *options, "--device", "cpu"]
            torture.wait(torture.fork(probe, home, prepare=compose))  # not every task has probes
        torture.to_the_end(argv_of(Case(name, "", "", "report", None)), home, prepare=compose)
    for printed in ("out.txt", "err.txt"):
        (home / printed).unlink()


def contents(home: Path, names: list[str]) -> dict[tuple[str, str], Tree]:
    """The contents of all files of the experiments, by experiment and path."""
    trees: dict[tuple[str, str], Tree] = {}
    for name in names:
        folder = home / "experiments" / name
        for path in sorted(folder.rglob("*")):
            trees[name, str(path.relative_to(folder))] = decode(path) if path.is_file() else None
        for new in (".lock", ".holder.json", "error.txt", "metrics.jsonl"):
            trees.setdefault((name, new), None)
    return trees


def hostile_files(
    number: int, random_seed: int, folder: Path, names: list[str], only: str = "", workers: int = 1
) -> dict[str, object]:
    """Run `number` cases. Returns: the number of tried cases, and the faults.

    Args:
        number: number of cases.
        random_seed: seed of the cases.
        folder: working folder; the experiments of an earlier call are used again.
        names: the experiments, of EXPERIMENTS.
        only: a text in the paths of the files that are changed.
        workers: processes that share the cases.
    """
    pristine = folder / "pristine"
    if not pristine.exists():
        shutil.rmtree(folder / "new", ignore_errors=True)
        prepare(folder / "new", names)
        os.rename(folder / "new", pristine)
    shares = [number // workers + (place < number % workers) for place in range(workers)]
    jobs = [(share, workers * random_seed + place, folder, names, only) for place, share in enumerate(shares)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        rounds = pool.starmap(one_round, jobs)
    kinds: Counter[str] = sum((kinds for kinds, _ in rounds), Counter())
    wrong = [text for _, texts in rounds for text in texts]
    return {"asked": sum(kinds.values()), "files": dict(kinds), "wrong": wrong}


def warm_up(home: Path, names: list[str]) -> None:
    """Run every reader in this process, so that its forks need not import and compile what it needs."""
    with open(os.devnull, "w") as nowhere, contextlib.chdir(home):
        files = [(console, console.file) for console in (torture.commands.stdout, torture.commands.stderr)]
        for console, _ in files:
            console.file = nowhere
        for name, reader in itertools.product(names, READERS):
            with contextlib.suppress(SystemExit):
                torture.program.main(argv_of(Case(name, "", "", reader, None)))
        for console, file in files:
            console.file = file


def restore(home: Path, pristine: Path, experiment: str | None) -> None:
    """Copy the pristine folder over `home`. Args: experiment: the only one that has changed; None: not known."""
    changed = [Path()]
    if experiment is not None:
        hidden = {path.name for folder in (home, pristine) for path in (folder / "experiments").glob(".*")}
        places = [Path("experiments", name) for name in {experiment, *hidden}]
        changed = [*places, *(Path(name) for name in (OUTPUTS & {*os.listdir(home)}))]
    for place in changed:
        old, new = home / place, pristine / place
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        if new.is_dir():
            shutil.copytree(new, old)
        elif new.exists():
            shutil.copy2(new, old)


def one_round(
    number: int, random_seed: int, folder: Path, names: list[str], only: str
) -> tuple[Counter[str], list[str]]:
    """The cases of one process, in a folder of its own. Returns: the kinds of changed files, and the faults."""
    home, logs, pristine = folder / f"strange-{random_seed}", folder / f"logs-{random_seed}", folder / "pristine"
    logs.mkdir(exist_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(pristine, home)
    trees = contents(home, names)
    warm_up(home, names[:3])
    restore(home, pristine, None)
    wrong: list[str] = []
    kinds: Counter[str] = Counter()
    seen: set[str] = set()

    @seed(random_seed)
    @settings(max_examples=3 * number, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(cases(trees, only))
    def attempt(case: Case) -> None:
        if str(case) in seen or len(seen) >= number:  # Hypothesis likes to repeat itself
            return
        seen.add(str(case))
        kinds[kind_of(case.file)] += 1
        if len(seen) % 100 == 0:
            print(f"  {len(seen)} of {number} cases", file=sys.stderr, flush=True)
        result = answer(case, home, logs)
        if result is not None:
            wrong.append(f"{result} <- {case}")
            print(f"  {wrong[-1]}", file=sys.stderr, flush=True)
        restore(home, pristine, case.experiment if result is None else None)

    attempt()
    return kinds, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--home", type=Path, help="a folder whose experiments the next call uses again")
    parser.add_argument("--only", default="", help="only files with this text in their path")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpn-hostile-") as temporary:
        folder = args.home or Path(temporary)
        folder.mkdir(exist_ok=True)
        result = hostile_files(args.cases, args.seed, folder.resolve(), list(EXPERIMENTS), args.only, args.workers)
    wrong = result["wrong"]
    assert isinstance(wrong, list)
    for text, count in Counter(text.split(" <- ")[0] for text in wrong).most_common():
        print(f"{count:4}  {text}")
    print(f"{len(wrong)} of {result['asked']} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
