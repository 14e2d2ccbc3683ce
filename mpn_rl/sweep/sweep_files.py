"""The files of a sweep: TOML, HTCondor submit file, args file; and the grid or random search that fills the last.

docs/sweeps.md describes all three. Standard library and the toolkit's option modules only.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpn_rl import arguments
from mpn_rl.options import ConfigError, nearest
from mpn_rl.sweep.submit_file import Mistake, SubmitFile, read_text
from mpn_rl.sweep.table import TRAINING, Row, Sweep

TOML_KEYS = ("command", "job", "args", "name", "seeds", "fixed", "grid", "search")
# Options that a sweep says by itself, or that would not make a run.
OWN_FLAGS = ("--experiment-name", "--seed", "--resume", "--overwrite", "--list-envs", "--help", "--help-all")
MAX_ROWS = 100_000
DRAWS = ("choice", "uniform", "log-uniform")


def load(path: Path, experiments_dir: str | None = None) -> Sweep:
    """The sweep of a TOML file, a submit file, or an args file with one of them beside it.

    Raises: ConfigError where there is no telling what the rows mean.
    """
    if path.suffix == ".toml":
        sweep = load_toml(path)
    elif is_submit_file(path):
        sweep = load_job(path)
    else:
        sweep = load_rows(path)
    sweep.experiments_dir = experiments_dir
    return sweep


def is_submit_file(path: Path) -> bool:
    return re.search(r"^\s*queue\b", read_text(path), re.IGNORECASE | re.MULTILINE) is not None or path.suffix == ".job"


def project_of(path: Path) -> Path:
    """The nearest folder above a file that holds a main.py; here, where there is none."""
    found = next((folder for folder in path.resolve().parents if (folder / "main.py").is_file()), Path.cwd())
    return Path() if found == Path.cwd() else found


def load_job(path: Path) -> Sweep:
    """A submit file and the rows that its queue statement names."""
    job = SubmitFile.read(path)
    try:
        command = job.command_words()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    stated = job.settings.get("arguments")
    line, column = (stated.line, stated.column) if stated else (1, 1)
    unread = list(job.unread)
    rows_path, rows, wrong = path, list[Row](), list[Mistake]()
    if job.queue and job.queue.value:
        rows_path = job.place(job.queue.value)
        if not rows_path.is_file():
            unread.append(Mistake(path, job.queue.line, job.queue.column, f"no args file {rows_path}"))
    if job.columns and rows_path.is_file():
        rows, wrong = _read_rows(rows_path, job.items if rows_path == path else _lines(rows_path), job.columns)
        unread += wrong
    return Sweep(path, rows_path, job.columns, command, (path, line, column), rows, project_of(path), unread, job=job)


def load_rows(path: Path) -> Sweep:
    """An args file, with the command and the columns of the TOML or submit file beside it that names it."""
    owners: list[Sweep] = []
    for other in sorted([*path.parent.glob("*.job"), *path.parent.glob("*.sub"), *path.parent.glob("*.toml")]):
        with contextlib.suppress(ConfigError):  # some other file
            sweep = load(other)
            if sweep.rows_path.resolve() == path.resolve():
                owners.append(sweep)
    if not owners:
        raise ConfigError(
            f"{path}: no TOML or submit file beside it names it, so its columns are not known; give that file instead"
        )
    first = next((sweep for sweep in owners if sweep.job), owners[0])
    others = [str(sweep.path) for sweep in owners if sweep.columns != first.columns]
    if others:
        raise ConfigError(
            f"{path}: {first.path} and {others[0]} name its columns differently; give one of them instead"
        )
    if not first.job:  # a TOML file's own rows are what it would make now
        rows, mistakes = _read_rows(path, _lines(path), first.columns)
        return Sweep(path, path, first.columns, first.command, first.command_at, rows, first.base, mistakes)
    first.path = path
    return first


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of an args file; what follows the last newline is no row."""
    return list(enumerate(read_text(path).removesuffix("\n").split("\n"), start=1)) if path.stat().st_size else []


def _read_rows(path: Path, lines: list[tuple[int, str]], columns: tuple[str, ...]) -> tuple[list[Row], list[Mistake]]:
    """The rows that have all their values, and what is wrong with the others."""
    rows: list[Row] = []
    mistakes: list[Mistake] = []
    if not lines:
        mistakes.append(Mistake(path, 1, 1, "no rows: nothing would be submitted"))
    for number, text in lines:
        wrong = None
        found = split_row(text, len(columns))
        at = found[-1][0]
        if not text.strip():
            wrong, at = "a blank line: HTCondor would start the row before it once more", 1
        elif text.lstrip().startswith("#"):
            wrong, at = "a comment: HTCondor would start it as a row", text.index("#") + 1
        elif odd := re.search(r"[\"'$\\]|[^ -~\t]", text):
            wrong, at = f"{odd[0]!r} cannot stand in an args file", odd.start() + 1
        elif len(found) < len(columns):
            missing = ", ".join(columns[len(found) :])
            wrong = f"{_count(found, 'value')} for {_count(columns, 'column')}: {missing} would be the row's before it"
        elif rest := re.search(r"[, \t]+", found[-1][1]):
            whole = len(columns) + len(split_row(found[-1][1], 10**6)) - 1
            wrong, at = f"{whole} values for {_count(columns, 'column')}", at + rest.start()
        elif empty := next((place for place, value in found if not value), None):
            wrong, at = "no value between two separators; part them by ', '", empty
        if wrong:
            mistakes.append(Mistake(path, number, at, wrong))
        else:
            rows.append(Row(number, tuple(value for _, value in found), tuple(place for place, _ in found)))
    return rows, mistakes


def _count(things: Any, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def split_row(text: str, count: int) -> list[tuple[int, str]]:
    """[(column, value), ...] as HTCondor splits: at a comma or a blank; the last value takes the rest."""
    text = text.rstrip(" \t")
    found: list[tuple[int, str]] = []
    begin = len(text) - len(text.lstrip(" \t"))
    while len(found) < count - 1 and (parting := re.compile(r"[, \t][ \t]*").search(text, begin)):
        found.append((begin + 1, text[begin : parting.start()]))
        begin = parting.end()
    return [*found, (begin + 1, text[begin:])]


# --- TOML ---------------------------------------------------------------------------------------------------


class Param(NamedTuple):
    """One key of [fixed], [grid] or [search]; `inner` is the K of an option that takes K=VALUE."""

    section: str
    key: str
    inner: str | None
    spec: Any

    @property
    def column(self) -> str:
        return re.sub(r"\W", "_", f"{self.key}_{self.inner}" if self.inner else self.key)


def load_toml(path: Path, compare: bool = True) -> Sweep:
    """The sweep that a TOML file describes, with the rows that it makes.

    With `compare`, an args file that says otherwise is a mistake: it may be the one that was submitted.

    Raises: ConfigError.
    """
    text = read_text(path)
    try:
        plan = tomllib.loads(text)
        sweep = _sweep_of(path, plan)
        sweep.rows = _rows_of(sweep, plan)
    except (ValueError, OverflowError, RecursionError) as error:  # a ConfigError is a ValueError, and tomllib's is one
        raise ConfigError(f"{path}: {error}") from None
    keys = {param.column: param.key for param in _params(plan)}
    keys |= {column: key for column, key in ((sweep.name_column, "name"), (sweep.seed_column, "seeds")) if column}
    sweep.key_lines = {column: _line_of(key, text) for column, key in keys.items()}
    if compare and sweep.rows_path.exists() and read_text(sweep.rows_path) != args_text(sweep):
        stale = f"{sweep.rows_path} says otherwise: expand anew with --overwrite, or give that file instead of this"
        sweep.unread.append(Mistake(path, 1, 1, stale))
    return sweep


def args_text(sweep: Sweep) -> str:
    """The args file of a sweep's rows."""
    return "".join(", ".join(row.values) + "\n" for row in sweep.rows)


def _line_of(key: str, text: str) -> int:
    found = re.search(rf"^\s*[\"']?{re.escape(key)}\b", text, re.MULTILINE)
    return 1 + text.count("\n", 0, found.end()) if found else 1


def _sweep_of(path: Path, plan: dict[str, Any]) -> Sweep:
    """Columns and command line, without rows."""
    for key in plan:
        if key not in TOML_KEYS:
            raise ConfigError(f"unknown key {key!r}{nearest(key, TOML_KEYS)}")
    params = _params(plan)
    twice = next(
        (param.column for i, param in enumerate(params) if param.column in {p.column for p in params[:i]}), None
    )
    if twice:
        raise ConfigError(f"{twice!r} stands in [fixed], [grid] or [search] more than once")
    if ("job" in plan) == ("command" in plan):
        raise ConfigError('say either command = "train" (or "train-neurogym") or job = "FILE.job"')
    if "job" in plan:
        return _over_job(path, plan, params)
    command = plan["command"]
    if command not in TRAINING:
        raise ConfigError(f"command must be one of {', '.join(TRAINING)}, got {command!r}")
    options = {
        flag: action
        for action in arguments.options_of(arguments.make_parser(), command)
        for flag in action.option_strings
    }
    words = [command, "--experiment-name=$(name)", "--seed=$(seed)"]
    for param in params:
        flag = f"--{param.key}".replace("_", "-")
        if flag not in options or flag in OWN_FLAGS:
            raise ConfigError(
                f"[{param.section}] {param.key}: no option of {command} for a sweep{nearest(flag, options)}"
            )
        text = _text(param.spec, flag) if param.section == "fixed" else f"$({param.column})"
        if options[flag].nargs == 0:
            words.append(text)
        else:
            words += [flag, f"{param.inner}={text}"] if param.inner else [f"{flag}={text}"]
    swept = tuple(param.column for param in params if param.section != "fixed")
    rows_path = path.parent / str(plan.get("args", f"{path.stem}_args.txt"))
    return Sweep(path, rows_path, ("name", "seed", *swept), [*words, "--resume", "auto"], (path, 1, 1))


def _over_job(path: Path, plan: dict[str, Any], params: list[Param]) -> Sweep:
    """The columns and the command line are the submit file's; the TOML gives values to the columns."""
    if "args" in plan:
        raise ConfigError("args and job exclude each other: the submit file names its args file")
    owner = load_job(path.parent / str(plan["job"]))
    given = {param.column for param in params}
    for column in given - set(owner.setting_columns):
        raise ConfigError(f"{owner.path} has no column {column!r}{nearest(column, owner.setting_columns)}")
    for column in owner.setting_columns:
        if column not in given:
            raise ConfigError(
                f"column {column!r} of {owner.path} has no values: give them in [grid], [search] or [fixed]"
            )
    if owner.name_column is None:
        raise ConfigError(f"{owner.path} does not say which column is the --experiment-name")
    if owner.seed_column is None and "seeds" in plan:
        raise ConfigError(f"{owner.path} has no column for --seed, so that 'seeds' would do nothing")
    return Sweep(path, owner.rows_path, owner.columns, owner.command, owner.command_at, base=owner.base, job=owner.job)


def _params(plan: Mapping[str, Any]) -> list[Param]:
    """Every key of the three tables, in their order. Raises: ConfigError for a value of the wrong form."""
    found: list[Param] = []
    for section in ("fixed", "grid", "search"):
        table = plan.get(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"[{section}] must be a table of options, got {table!r}")
        for key, spec in table.items():
            if section == "search" and key in ("n", "seed"):
                continue
            nested = isinstance(spec, dict) and not (section == "search" and set(spec) & set(DRAWS))
            found += (
                [Param(section, key, inner, one) for inner, one in spec.items()]
                if nested
                else [Param(section, key, None, spec)]
            )
    for param in found:
        _check_spec(param)
    return found


def _check_spec(param: Param) -> None:
    name = f"[{param.section}] {param.key}{'.' + param.inner if param.inner else ''}"
    values = [param.spec] if param.section == "fixed" else param.spec
    if param.section == "search":
        if not isinstance(param.spec, dict) or len(param.spec) != 1 or next(iter(param.spec)) not in DRAWS:
            raise ConfigError(f"{name} must be {{ {' = [...] } or { '.join(DRAWS)} = [...] }}, got {param.spec!r}")
        ((kind, values),) = param.spec.items()
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if kind != "choice" and not (numbers and len(values) == 2 and values[0] < values[1]):
            raise ConfigError(f"{name}: {kind} takes [LOW, HIGH], got {values!r}")
        if kind == "log-uniform" and values[0] <= 0:
            raise ConfigError(f"{name}: log-uniform needs bounds above 0, got {values!r}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name} must be a list of values, got {values!r}")
    for value in values:
        if type(value) not in (bool, int, float, str) or not re.fullmatch(r"[^\s,\"'$#\\]+", str(value)):
            raise ConfigError(f"{name}: {value!r} cannot stand in an args file: no blanks, commas, quotes, '$' or '#'")


def _text(value: Any, flag: str | None = None) -> str:
    """A value as it stands in a row; true and false are the two spellings of their flag."""
    if isinstance(value, bool) and flag:
        return flag if value else flag.replace("--", "--no-", 1)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rows_of(sweep: Sweep, plan: Mapping[str, Any]) -> list[Row]:
    """Settings times seeds, in the order of the file: more draws only append."""
    params = _params(plan)
    rows: list[Row] = []
    fixed = {param.column: param.spec for param in params if param.section == "fixed"}
    grid = [[(param, value) for value in param.spec] for param in params if param.section == "grid"]
    search = [param for param in params if param.section == "search"]
    seeds, draws = _seeds(plan), _draws(plan, search)
    if len(seeds) * len(draws) * math.prod(map(len, grid)) > MAX_ROWS:
        raise ConfigError(f"more than {MAX_ROWS:,} rows; take fewer values, draws or seeds")
    for drawn in draws:
        for point in itertools.product(*grid):
            setting = {param.column: (param, value) for param, value in [*point, *drawn]}
            for seed in seeds:
                shown = {column: _text(value) for column, (_, value) in setting.items()} | {"seed": str(seed)}
                values = {column: str(value) for column, value in fixed.items()} | {
                    column: _text(value, None if sweep.job else f"--{param.key}".replace("_", "-"))
                    for column, (param, value) in setting.items()
                }
                values |= {sweep.name_column or "": _name(sweep, plan, shown), sweep.seed_column or "": str(seed)}
                texts = [values[column] for column in sweep.columns]
                begins = itertools.accumulate((len(text) + 2 for text in texts[:-1]), initial=1)
                rows.append(Row(len(rows) + 1, tuple(texts), tuple(begins)))
    return rows


def _draws(plan: Mapping[str, Any], search: list[Param]) -> list[list[tuple[Param, Any]]]:
    """`n` random settings, the same ones for the same `seed`."""
    table = plan.get("search", {})
    for key, value in table.items():
        if key in ("n", "seed") and (type(value) is not int or not (key == "n") <= value <= MAX_ROWS):
            raise ConfigError(f"[search] {key} must be a whole number up to {MAX_ROWS}, got {value!r}")
    if not search:
        return [[]]
    if "n" not in table:
        raise ConfigError("[search] needs n, the number of draws")
    generator = random.Random(table.get("seed", 0))
    return [[(param, _draw(param.spec, generator)) for param in search] for _ in range(table["n"])]


def _draw(spec: dict[str, list], generator: random.Random) -> Any:
    """One value, to four digits; whole where both bounds are whole."""
    ((kind, values),) = spec.items()
    share = generator.random()
    if kind == "choice":
        return values[int(share * len(values))]
    low, high = values
    if type(low) is type(high) is int:
        # Every whole number between and at the bounds is as likely as its share of the (logarithmic) line.
        value = low + share * (high + 1 - low) if kind == "uniform" else low * ((high + 1) / low) ** share
        return min(int(value), high)
    value = low + share * (high - low) if kind == "uniform" else low * (high / low) ** share
    return min(max(float(f"{value:.4g}"), low), high)


def _seeds(plan: Mapping[str, Any]) -> list[int]:
    seeds = plan.get("seeds", [0])
    seeds = list(range(min(seeds, MAX_ROWS + 1))) if type(seeds) is int else seeds
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ConfigError(f"seeds must be a list of whole numbers, or how many from 0 on, got {plan.get('seeds')!r}")
    return seeds


def _name(sweep: Sweep, plan: Mapping[str, Any], shown: dict[str, str]) -> str:
    """The row's name: by the pattern `name`, else of all that changes."""
    changing = [column for column in sweep.setting_columns if column in shown]
    pattern = plan.get(
        "name", "-".join([sweep.path.stem, *(f"{column}{{{column}}}" for column in changing), "s{seed}"])
    )
    values = {column: re.sub(r"[^\w.+=-]+", "_", value) for column, value in shown.items()}
    try:
        return str(pattern.format_map(values))
    except (AttributeError, IndexError, KeyError, ValueError):
        raise ConfigError(f"name = {pattern!r} may contain {', '.join(f'{{{key}}}' for key in values)}") from None
