"""Imports of task modules, such as my_task in `--env-name my_task:MyTask-v0`: importing a module runs its code.

A configuration, a sweep or an experiment may come from a stranger, so a name in such a file is not enough. A module is
imported only if the user names it on the command line, or did so when this experiment's training started here. A module
under a folder of experiments is never imported. Stdlib only.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mpn_rl.options import ConfigError
from mpn_rl.tasks.task_errors import own_error

FLAG = "--trust-env-module"


@dataclass
class _Consent:
    """What this process may import."""

    named: frozenset[str] = frozenset()  # modules that the command line names
    remembered: frozenset[str] = frozenset()  # modules of the experiment that is open
    source: str = "this program"  # what names a module that is not trusted
    experiments: frozenset[Path] = frozenset()  # folders from which nothing is imported


_consent = _Consent()


def modules_of(env_name: str) -> set[str]:
    """The modules that an env_name names: {"my_task"} for "my_task:MyTask-v0,GoNogo-v0"."""
    return {task.rpartition(":")[0] for task in env_name.split(",")} - {""}


def start(env_name: str | None, trusted: Iterable[str], experiments: str | None, config: str | None = None) -> None:
    """Set what this process may import, from its command line.

    Args:
        env_name: the value of --env-name; None: not given.
        trusted: the values of --trust-env-module.
        experiments: folder of the experiments; nothing under it is imported.
        config: the value of --config; None: not given.
    """
    named = {*trusted, *modules_of(env_name or "")} - {""}
    _consent.named, _consent.remembered = frozenset(named), frozenset()
    _consent.source = f"--config {config}" if config else "the command line"
    _consent.experiments = frozenset({Path(experiments or "experiments").resolve(), Path("experiments").resolve()})


def open_experiment(folder: Path) -> None:
    """Allow the modules that were named when this experiment's training started here, and no other experiment's."""
    _consent.remembered = frozenset(_read().get(str(folder.resolve()), []))
    _consent.source = str(folder / "config.json")
    _consent.experiments |= {folder.resolve(), folder.resolve().parent}


def remember(folder: Path, env_name: str) -> str:
    """Keep the consent to an experiment's task module for later commands of this user.

    Args:
        folder: of the experiment.
        env_name: its task.
    Returns: why the consent cannot be kept; empty where it is, or where there is none to keep.
    """
    modules = modules_of(env_name) & _consent.named
    if not modules:
        return ""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(path.with_suffix(".lock"), "w") as lock:  # the runs of a sweep start together
            fcntl.flock(lock, fcntl.LOCK_EX)
            known, key = _read(), str(folder.resolve())
            known[key] = sorted({*known.get(key, []), *modules})
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
            fresh.replace(path)
    except OSError as error:
        flags = " ".join(f"{FLAG} {module}" for module in sorted(modules))
        return f"{path}: {error.strerror}; eval, render and analyze of this experiment will need {flags}"
    return ""


def is_trusted(module: str) -> bool:
    """Whether `import_task_module` may import this module: by consent, or because the program has imported it."""
    return module in sys.modules or module in _consent.named | _consent.remembered


def import_task_module(name: str) -> None:
    """Import the module of an env_name, if the user has agreed; this is the only function that does.

    The working directory is searched last, so that its files cannot replace a library's.

    Raises: ConfigError without consent, for a module under a folder of experiments, one that does not exist, and one
        that fails to import.
    """
    if name in sys.modules:
        return
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"--env-name MODULE:TASK needs a module such as my_package.my_task, got {name!r}")
    if not is_trusted(name):
        raise ConfigError(
            f"{_consent.source} names the task module {name!r}, and its code would run here; read it, and if you trust "
            f"it, add {FLAG} {name} (a program imports it beforehand)"
        )
    here = Path.cwd()
    if str(here) not in sys.path and not _under_experiments(here):
        sys.path.append(str(here))
    for end in range(1, len(parts) + 1):
        _import(".".join(parts[:end]), name)


def _import(prefix: str, name: str) -> None:
    """Import a module whose parents are imported. A parent's code runs too, so its place is checked as well."""
    try:
        spec = importlib.util.find_spec(prefix)
    except (ImportError, ValueError):  # the parent is no package; a module without a spec
        spec = None
    if spec is None:
        raise ConfigError(
            f"--env-name: there is no module {prefix!r}; a task module lies in the working directory {Path.cwd()}, on "
            "PYTHONPATH, or is installed"
        )
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else ())]
    for place in places:
        if _under_experiments(Path(place)):
            raise ConfigError(
                f"the task module {name!r} lies under a folder of experiments ({place}), from which no code is run; "
                "move it to the working directory or install it"
            )
    try:
        importlib.import_module(prefix)
    except (Exception, SystemExit) as error:  # a task's module can raise anything
        raise ConfigError(f"--env-name: the module {prefix!r} cannot be imported: {own_error(error)}") from error


def _under_experiments(place: Path) -> bool:
    """Whether a place is under a folder of experiments. The snapshot that this program itself runs from is not."""
    place, program = place.resolve(), Path(__file__).resolve().parents[2]
    return any(
        folder in (place, *place.parents) and not (folder in program.parents and program in (place, *place.parents))
        for folder in _consent.experiments
    )


def _path() -> Path:
    """The file that remembers consents: in the user's state folder, never in an experiment's."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    folder = state if state.is_absolute() else Path.home() / ".local" / "state"
    return folder / "mpn-rl" / "trusted_modules.json"


def _read() -> dict[str, list[str]]:
    """{experiment's folder: modules}; entries that are not of this form are left out."""
    try:
        known = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = known.items() if isinstance(known, dict) else ()
    return {
        key: value for key, value in pairs if isinstance(value, list) and all(isinstance(item, str) for item in value)
    }
