"""Read the files of a sweep (TOML, submit file, Slurm script, args file), and make rows of a grid or a random search.

docs/sweeps.md describes the three kinds of files. This module imports only the standard library and option modules.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

from mpn_rl import arguments
from mpn_rl.options import ConfigError, nearest, shortened
from mpn_rl.sweep.schedulers import Resources
from mpn_rl.sweep.slurm_script import SlurmScript
from mpn_rl.sweep.submit_file import MAX_ROWS_BYTES, Mistake, SubmitFile, read_text
from mpn_rl.sweep.table import ABSENT, TRAINING, Row, Sweep

TOML_KEYS = ("command", "job", "args", "name", "seeds", "resources", "fixed", "grid", "search")
# Options that a sweep sets by itself, or with which nothing would be trained.
OWN_FLAGS = ("--experiment-name", "--seed", "--resume", "--overwrite", "--list-envs", "--help", "--help-all")
MAX_ROWS = 100_000
JOB_SUFFIXES = (".job", ".sub", ".sbatch")
# Of one value in an args file: HTCondor reads quotes, '$' and '\' in its own way.
CELL_RULE = "printable ASCII characters without blanks, commas, quotes, '$' and '\\', and no '#' at its start"
SEARCH_KEYS = ("n", "seed", "pruner")  # of the table [search], beside the options
PRUNERS = ("median", "hyperband", "none")
DISTRIBUTIONS = ("choice", "uniform", "log-uniform")
Value = bool | int | float | str  # of an option, in a TOML file


def load(path: Path, experiments_dir: str | None = None) -> Sweep:
    """Read the sweep of a TOML file, a submit file, a Slurm script, or an args file that one of them names.

    Args:
        path: the file.
        experiments_dir: the folder of the experiments, None for the one that the command line names.
    Raises: ConfigError if the file cannot be read, or if its columns are not known.
    """
    if path.suffix == ".toml":
        sweep = load_toml(path)
    elif path.suffix in JOB_SUFFIXES:
        sweep = load_script(path) if path.suffix == ".sbatch" else load_job(path)
    else:
        sweep = load_rows(path)
    sweep.experiments_dir = experiments_dir
    return sweep


def project_of(path: Path) -> Path:
    """The nearest folder above a file with a main.py; the current folder if there is none."""
    project = next((folder for folder in path.resolve().parents if (folder / "main.py").is_file()), Path.cwd())
    return Path() if project == Path.cwd() else project


def load_job(path: Path) -> Sweep:
    """Read a submit file and the rows that its queue statement names. Raises: ConfigError."""
    job = SubmitFile.read(path)
    try:
        command = job.command_words()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    setting = job.settings.get("arguments")
    line, column = (setting.line, setting.column) if setting else (1, 1)
    mistakes = list(job.reading_mistakes)
    rows_path, rows = path, list[Row]()
    if job.queue and job.queue.value:
        rows_path = job.place(job.queue.value)
        if not rows_path.is_file():
            mistakes.append(Mistake(path, job.queue.line, job.queue.column, f"no args file {rows_path}"))
    if job.columns and rows_path.is_file():
        lines = job.items if rows_path == path else _lines(rows_path)
        rows, wrong_rows = _read_rows(rows_path, lines, job.columns)
        mistakes += wrong_rows
    return Sweep(path, rows_path, job.columns, command, (path, line, column), rows, project_of(path), mistakes, job=job)


def load_script(path: Path) -> Sweep:
    """Read an array script for Slurm and the rows that it names. Raises: ConfigError."""
    script = SlurmScript.read(path)
    script.project = project_of(path)
    rows_path = script.project / script.rows_name
    rows, mistakes = list[Row](), list(script.reading_mistakes)
    if rows_path.is_file():
        lines = _lines(rows_path)
        script.rows = len(lines)
        rows, wrong_rows = _read_rows(rows_path, lines, script.columns)
        mistakes += wrong_rows
    else:
        mistakes.append(Mistake(path, 1, 1, f"no args file {rows_path}"))
    place = (path, script.command_line, 1)
    return Sweep(path, rows_path, script.columns, script.command, place, rows, script.project, mistakes, job=script)


def load_rows(path: Path) -> Sweep:
    """Read an args file; its command and columns are those of the TOML or submit file in the same folder that names it.

    A file that nothing names may be a submit file with a name of its own.

    Raises: ConfigError if no file or more than one kind of file names it.
    """
    lines = _lines(path)
    owners: list[Sweep] = []
    for other in sorted(entry for entry in path.parent.iterdir() if entry.suffix in (*JOB_SUFFIXES, ".toml")):
        with contextlib.suppress(ConfigError):  # not a file of a sweep
            sweep = load(other)
            if sweep.rows_path.resolve() == path.resolve():
                owners.append(sweep)
    if not owners and any(re.match(r"\s*queue\b", line, re.IGNORECASE) for _, line in lines):
        return load_job(path)
    if not owners:
        raise ConfigError(
            f"{path}: no TOML or submit file in its folder names it, so its columns are unknown; give that file instead"
        )
    first = next((sweep for sweep in owners if sweep.job), owners[0])
    others = [str(sweep.path) for sweep in owners if sweep.columns != first.columns]
    if others:
        raise ConfigError(
            f"{path}: {first.path} and {others[0]} name its columns differently; give one of these files instead"
        )
    if not first.job:  # the rows of the TOML file may have changed since the args file was written
        rows, mistakes = _read_rows(path, lines, first.columns)
        return Sweep(path, path, first.columns, first.command, first.command_at, rows, first.base, mistakes)
    first.path = path
    return first


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) for each line of an args file; a newline at the end starts no line."""
    return _numbered(read_text(path, MAX_ROWS_BYTES))


def _numbered(text: str) -> list[tuple[int, str]]:
    return list(enumerate(text.removesuffix("\n").split("\n"), start=1)) if text else []


def _read_rows(path: Path, lines: list[tuple[int, str]], columns: tuple[str, ...]) -> tuple[list[Row], list[Mistake]]:
    """The rows with the right number of values, and the mistakes in the others."""
    rows: list[Row] = []
    mistakes: list[Mistake] = []
    if not lines:
        mistakes.append(Mistake(path, 1, 1, "no rows: nothing would be submitted"))
    if len(lines) > MAX_ROWS:
        raise ConfigError(f"{path} has more than {MAX_ROWS:,} rows; divide it among several sweeps")
    for number, text in lines:
        wrong = None
        cells = split_row(text, len(columns))
        at = cells[-1][0]
        if not text.strip():
            wrong, at = "a blank line: HTCondor would start the previous row again", 1
        elif text.lstrip().startswith("#"):
            wrong, at = "a comment: HTCondor would start it as a row", text.index("#") + 1
        elif odd := _ODD.search(text):
            wrong, at = f"an args file must not contain {odd[0]!r}", odd.start() + 1
        elif len(cells) < len(columns):
            missing = ", ".join(columns[len(cells) :])
            wrong = f"{_count(cells, 'value')} for {_count(columns, 'column')}: {missing} would be the previous row's"
        elif rest := re.search(r"[, \t]+", cells[-1][1]):
            whole = len(columns) + len(split_row(cells[-1][1], 10**6)) - 1
            wrong, at = f"{whole} values for {_count(columns, 'column')}", at + rest.start()
        elif empty := next((place for place, value in cells if not value), None):
            wrong, at = "no value between two separators; separate values by ', '", empty
        if wrong:
            mistakes.append(Mistake(path, number, at, wrong))
        else:
            rows.append(Row(number, tuple(value for _, value in cells), tuple(place for place, _ in cells)))
    return rows, mistakes


def _count(things: Sized, name: str) -> str:
    """A number with its noun, such as "1 row" or "2 rows"."""
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


_ODD = re.compile(r"[\"'$\\]|[^ -~\t]")
_CELL = re.compile(r"(?!#)[^\"'$\\,\x00-\x20\x7f-\U0010ffff]+")


def is_cell(text: str) -> bool:
    """Whether a text can be a value of an args file, as CELL_RULE says."""
    return _CELL.fullmatch(text) is not None


def split_row(text: str, count: int) -> list[tuple[int, str]]:
    """Split a row as HTCondor does, at commas and blanks; the last of `count` values takes the rest.

    Returns: [(column, value), ...], columns counted from 1.
    """
    text = text.rstrip(" \t")
    cells: list[tuple[int, str]] = []
    start = len(text) - len(text.lstrip(" \t"))
    while len(cells) < count - 1 and (separator := re.compile(r"[, \t][ \t]*").search(text, start)):
        cells.append((start + 1, text[start : separator.start()]))
        start = separator.end()
    return [*cells, (start + 1, text[start:])]


# --- TOML ---------------------------------------------------------------------------------------------------


class Param(NamedTuple):
    """One key of a table of the TOML file.

    Args:
        section: "fixed", "grid" or "search".
        key: the option.
        inner: the K of an option that takes K=VALUE, else None.
        values: the one fixed value, the values to choose from, or the lower and the upper bound.
        distribution: one of DISTRIBUTIONS.
    """

    section: str
    key: str
    inner: str | None
    values: Sequence[Value]
    distribution: str = "choice"

    @property
    def column(self) -> str:
        """The name of its column in the args file."""
        return re.sub(r"\W", "_", f"{self.key}_{self.inner}" if self.inner else self.key, flags=re.ASCII).lower()


def _parsed(text: str) -> dict[str, Any]:
    """The values of a TOML text. Raises: ValueError."""
    if re.search(r"(?:\.[ \t]*[\w\"'-]+[ \t]*){50}", text):  # tomllib takes a minute for a key of 60,000 parts
        raise ConfigError("a key must have at most 50 parts")
    return tomllib.loads(text)


def load_toml(path: Path, compare: bool = True) -> Sweep:
    """Read the sweep that a TOML file describes, and make its rows.

    Args:
        path: the TOML file.
        compare: whether an args file with other rows is a mistake, because it may be the one that was submitted.
    Raises: ConfigError.
    """
    text = read_text(path)
    try:
        plan = _parsed(text)
        sweep = _sweep_of(path, plan)
        sweep.resources = Resources.read(plan.get("resources", {}))
        text_of_rows = _args_text(_rows_of(sweep, plan))
    except (ValueError, OverflowError, RecursionError) as error:  # ConfigError and the error of tomllib are ValueErrors
        raise ConfigError(f"{path}: {error}") from None
    keys = {param.column: param.key for param in _params(plan)}
    keys |= {column: key for column, key in ((sweep.name_column, "name"), (sweep.seed_column, "seeds")) if column}
    lines = {key: _line_of(key, text) for key in set(keys.values())}
    sweep.key_lines = {column: lines[key] for column, key in keys.items()}
    sweep.grid_lines = _grid_lines(plan, text)
    # The rows are what a reader of the args file gets.
    sweep.rows, mistakes = _read_rows(path, _numbered(text_of_rows), sweep.columns)
    sweep.reading_mistakes += [mistake._replace(line=1, column=1) for mistake in mistakes]
    if compare and sweep.rows_path.exists() and read_text(sweep.rows_path, MAX_ROWS_BYTES) != text_of_rows:
        stale = (
            f"{sweep.rows_path} has other rows: expand again with --overwrite, or give that file instead of this one"
        )
        sweep.reading_mistakes.append(Mistake(path, 1, 1, stale))
    return sweep


def args_text(sweep: Sweep) -> str:
    """The text of the args file with a sweep's rows."""
    return _args_text(row.values for row in sweep.rows)


def _args_text(rows: Iterable[Sequence[str]]) -> str:
    return "".join(", ".join(values) + "\n" for values in rows)


def _line_of(key: str, text: str) -> int:
    """The number of the line of a TOML file that starts with a key; 1 if there is none."""
    match = re.search(rf"^[ \t]*[\"']?{re.escape(key)}\b", text, re.MULTILINE)
    return 1 + text.count("\n", 0, match.end()) if match else 1


def _grid_lines(plan: Mapping[str, object], text: str) -> list[tuple[int, dict[str, int]]]:
    """Of each of several grids, the number of its last row and {column: the line of its key}."""
    heads = [match.start() for match in re.finditer(r"^[ \t]*\[\[[ \t]*grid[ \t]*\]\]", text, re.MULTILINE)]
    grids = _grids(plan)
    if len(heads) != len(grids):  # one [grid], or none
        return []
    grid_lines: list[tuple[int, dict[str, int]]] = []
    last, settings = 0, len(_seeds(plan)) * len(_draws(plan, _section("search", plan.get("search", {}))))
    for grid, start, end in zip(grids, heads, [*heads[1:], len(text)], strict=True):
        last += settings * math.prod(len(param.values) for param in grid)
        above = text.count("\n", 0, start)
        lines = {key: above + _line_of(key, text[start:end]) for key in {param.key for param in grid}}
        grid_lines.append((last, {param.column: lines[param.key] for param in grid}))
    return grid_lines


def _sweep_of(path: Path, plan: Mapping[str, object]) -> Sweep:
    """The columns and the command line of a TOML file, without rows."""
    for key in plan:
        if key not in TOML_KEYS:
            raise ConfigError(f"unknown key {key!r}{nearest(key, TOML_KEYS)}")
    params = _params(plan)
    others = Counter(param.column for param in params if param.section != "grid")
    for counts in (others, *(Counter(param.column for param in grid) for grid in _grids(plan))):
        for column, count in counts.items():
            if count > 1 or (counts is not others and column in others):
                raise ConfigError(f"{column!r} is in [fixed], [grid] or [search] more than once")
    if ("job" in plan) == ("command" in plan):
        raise ConfigError('give either command = "train" (or "train-neurogym") or job = "FILE.job"')
    if "job" in plan:
        return _over_job(path, plan, params)
    command = plan["command"]
    if command not in TRAINING:
        raise ConfigError(f"command must be one of {', '.join(TRAINING)}, got {shortened(command)}")
    options = {
        flag: action
        for action in arguments.options_of(arguments.make_parser(), command)
        for flag in action.option_strings
    }
    words = [command, "--experiment-name=$(name)", "--seed=$(seed)"]
    columns: dict[str, str | None] = {}  # and the K of an option that takes K=VALUE
    for param in params:
        flag = f"--{param.key}".replace("_", "-")
        if flag not in options or flag in OWN_FLAGS:
            raise ConfigError(
                f"[{param.section}] {param.key}: no option of {command} that a sweep can set{nearest(flag, options)}"
            )
        if param.column in columns:  # of another grid
            if columns[param.column] != param.inner:
                raise ConfigError(f"{param.column!r} would be the column of two options; rename {param.inner!r}")
            continue
        columns[param.column] = param.inner
        text = _text(param.values[0], flag) if param.section == "fixed" else f"$({param.column})"
        if options[flag].nargs == 0:
            words.append(text)
        else:
            words += [flag, f"{param.inner}={text}"] if param.inner else [f"{flag}={text}"]
    swept = dict.fromkeys(param.column for param in params if param.section != "fixed")
    name = plan.get("args")
    if "args" in plan and not (isinstance(name, str) and re.fullmatch(r"\.?[\w+= -][\w.+= -]*", name)):
        raise ConfigError(f"args must be the name of a file in this folder, got {shortened(name)}")
    name = name if isinstance(name, str) else f"{path.stem}_args.txt"
    if Path(name).suffix in (*JOB_SUFFIXES, ".toml"):
        raise ConfigError(f"args must not end in .toml, .job or .sub, which other files of a sweep do, got {name!r}")
    return Sweep(path, path.parent / name, ("name", "seed", *swept), [*words, "--resume", "auto"], (path, 1, 1))


def _over_job(path: Path, plan: Mapping[str, object], params: list[Param]) -> Sweep:
    """A sweep with the columns and the command line of a submit file; the TOML file gives the values of the columns."""
    if "args" in plan:
        raise ConfigError("args and job cannot be combined: the submit file names its args file")
    if not isinstance(plan["job"], str):
        raise ConfigError(f"job must be the name of a submit file, got {shortened(plan['job'])}")
    owner = load(path.parent / plan["job"]) if plan["job"].endswith(".sbatch") else load_job(path.parent / plan["job"])
    for column in sorted({param.column for param in params} - set(owner.setting_columns)):
        raise ConfigError(f"{owner.path} has no column {column!r}{nearest(column, owner.setting_columns)}")
    given = {param.column for param in params if param.section != "grid"}
    for grid in _grids(plan):
        for column in owner.setting_columns:
            if column not in given | {param.column for param in grid}:
                raise ConfigError(
                    f"column {column!r} of {owner.path} has no values: give them in [fixed], [search] or every [grid]"
                )
    if owner.name_column is None:
        raise ConfigError(f"{owner.path} uses no column as --experiment-name")
    if owner.seed_column is None and "seeds" in plan:
        raise ConfigError(f"{owner.path} uses no column as --seed, so 'seeds' would have no effect")
    return Sweep(path, owner.rows_path, owner.columns, owner.command, owner.command_at, base=owner.base, job=owner.job)


def _params(plan: Mapping[str, object]) -> list[Param]:
    """Every key of the tables, in the order of the file. Raises: ConfigError for a value of the wrong form."""
    fixed, search = (_section(name, plan.get(name, {})) for name in ("fixed", "search"))
    return [*fixed, *itertools.chain.from_iterable(_grids(plan)), *search]


def _grids(plan: Mapping[str, object]) -> list[list[Param]]:
    """The options of each grid: of [grid], or of every [[grid]]; without a grid, one without options."""
    tables = plan.get("grid", {})
    if not isinstance(tables, list) or not tables:
        return [_section("grid", tables)]
    return [_section("grid", _lists(table) if isinstance(table, dict) else table) for table in tables]


def _lists(table: Mapping[str, object]) -> dict[str, object]:
    """A table of [[grid]], in which one value stands for a list of one."""
    return {
        key: _lists(spec) if isinstance(spec, dict) else spec if isinstance(spec, list) else [spec]
        for key, spec in table.items()
    }


def _section(section: str, table: object) -> list[Param]:
    """The options of one table."""
    if not isinstance(table, dict):
        raise ConfigError(f"[{section}] must be a table of options, got {shortened(table)}")
    params: list[Param] = []
    for key, spec in table.items():
        if section == "search" and key in SEARCH_KEYS:
            continue
        if isinstance(spec, dict) and not (section == "search" and set(spec) & set(DISTRIBUTIONS)):
            params += [_param(section, key, inner, one) for inner, one in spec.items()]
        else:
            params.append(_param(section, key, None, spec))
    return params


def _param(section: str, key: str, inner: str | None, spec: object) -> Param:
    """One key with its checked values. Raises: ConfigError."""
    name = f"[{section}] {key}{f'.{inner}' if inner else ''}"
    distribution, values = "choice", [spec] if section == "fixed" else spec
    if section == "search":
        if not isinstance(spec, dict) or len(spec) != 1 or next(iter(spec)) not in DISTRIBUTIONS:
            raise ConfigError(
                f"{name} must be {{ {' = [...] } or { '.join(DISTRIBUTIONS)} = [...] }}, got {shortened(spec)}"
            )
        ((distribution, values),) = spec.items()
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if distribution != "choice" and not (numbers and len(values) == 2 and values[0] < values[1]):
            raise ConfigError(f"{name}: {distribution} takes [LOW, HIGH], got {shortened(values)}")
        if distribution == "log-uniform" and values[0] <= 0:
            raise ConfigError(f"{name}: log-uniform needs bounds above 0, got {shortened(values)}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name} must be a list of values, got {shortened(values)}")
    if inner is not None and (not is_cell(inner) or "=" in inner):
        raise ConfigError(f"{name}: the name before '=' must be {CELL_RULE}, got {shortened(inner)}")
    for value in values:
        if type(value) not in (bool, int, float, str) or not is_cell(str(value)):
            raise ConfigError(f"{name}: a value must be {CELL_RULE}, got {shortened(value)}")
        if value == ABSENT:
            raise ConfigError(f"{name}: {ABSENT!r} stands for an option that a row does not have; leave it out")
    return Param(section, key, inner, values, distribution)


def _text(value: Value, flag: str | None = None) -> str:
    """A value as a row contains it; with `flag`, true and false become --flag and --no-flag."""
    if isinstance(value, bool) and flag:
        return flag if value else flag.replace("--", "--no-", 1)
    return str(value).lower() if isinstance(value, bool) else str(value)


Setting = Sequence[tuple[Param, Value]]  # a value for each key of a grid and of [search]


def _rows_of(sweep: Sweep, plan: Mapping[str, object]) -> list[list[str]]:
    """The values of one row per setting and seed, in the order of the file; a larger `n` only appends rows."""
    grids = [[[(param, value) for value in param.values] for param in grid] for grid in _grids(plan)]
    seeds, draws = _seeds(plan), _draws(plan, _section("search", plan.get("search", {})))
    if len(seeds) * len(draws) * sum(math.prod(map(len, grid)) for grid in grids) > MAX_ROWS:
        raise ConfigError(f"more than {MAX_ROWS:,} rows; take fewer values, draws or seeds")
    return [
        _row(sweep, plan, [*point, *drawn], seed)
        for grid in grids
        for drawn in draws
        for point in itertools.product(*grid)
        for seed in seeds
    ]


def _row(sweep: Sweep, plan: Mapping[str, object], setting: Setting, seed: int, name: str | None = None) -> list[str]:
    """The values of the row of a setting and a seed; without a name, the plan's pattern gives it."""
    fixed = {param.column: _text(param.values[0]) for param in _section("fixed", plan.get("fixed", {}))}
    shown = {param.column: _text(value) for param, value in setting} | {"seed": str(seed)}
    values = fixed | {
        param.column: _text(value, None if sweep.job else f"--{param.key}".replace("_", "-"))
        for param, value in setting
    }
    own = _name(sweep, plan, shown) if name is None else name
    values |= {sweep.name_column or "": own, sweep.seed_column or "": str(seed)}
    return [values.get(column, ABSENT) for column in sweep.columns]


class Space:
    """What `sweep search` chooses from: the table [search] of a TOML file.

    Args:
        sweep: of the file; its rows are random draws, and `row` makes those of the search.
    Raises: ConfigError if the file has a [grid], no [search], or no number of trials.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.plan = sweep, _parsed(read_text(sweep.path))
        self.params = _section("search", self.plan.get("search", {}))
        if self.plan.get("grid"):
            raise ConfigError(f"{sweep.path}: sweep search chooses every value; write [grid] as choice in [search]")
        if not self.params:
            raise ConfigError(f"{sweep.path}: sweep search needs a table [search] of options")
        table = self.plan["search"]
        self.n: int = table["n"]
        self.seed: int = table.get("seed", 0)
        self.pruner: str = table.get("pruner", "median")
        self.seeds = _seeds(self.plan)

    def row(self, values: Mapping[str, Value], seed: int, name: str) -> Row:
        """The row of a setting, given by column, and a seed."""
        cells = _row(self.sweep, self.plan, [(param, values[param.column]) for param in self.params], seed, name)
        return Row(1, tuple(cells), tuple(1 for _ in cells))

    @property
    def identity(self) -> dict[str, object]:
        """All that must stay the same when a search continues."""
        params = {param.column: [param.distribution, list(param.values)] for param in self.params}
        words = list(self.sweep.command or [])
        return {"command": words, "params": params, "seeds": self.seeds, "seed": self.seed, "pruner": self.pruner}


def _draws(plan: Mapping[str, object], search: list[Param]) -> list[list[tuple[Param, Value]]]:
    """The `n` random settings of [search]; the same `seed` gives the same settings."""
    table = plan.get("search")
    if not isinstance(table, dict):
        return [[]]
    for key, value in table.items():
        if key in ("n", "seed") and (type(value) is not int or not (key == "n") <= value <= MAX_ROWS):
            raise ConfigError(f"[search] {key} must be a whole number up to {MAX_ROWS}, got {shortened(value)}")
        if key == "pruner" and value not in PRUNERS:
            raise ConfigError(f"[search] pruner must be one of {', '.join(PRUNERS)}, got {shortened(value)}")
    if not search:
        return [[]]
    if "n" not in table:
        raise ConfigError("[search] needs n, the number of draws")
    generator = random.Random(table.get("seed", 0))
    return [[(param, _draw(param, generator)) for param in search] for _ in range(table["n"])]


def _draw(param: Param, generator: random.Random) -> Value:
    """One random value: an int if both bounds are ints, else a float with four significant digits."""
    share = generator.random()
    if param.distribution == "choice":
        return param.values[int(share * len(param.values))]
    low, high = (bound for bound in param.values if isinstance(bound, int | float))
    uniform = param.distribution == "uniform"
    if type(low) is type(high) is int:
        # Each whole number from low to high is as likely as its share of the linear or logarithmic axis.
        value = low + share * (high + 1 - low) if uniform else low * ((high + 1) / low) ** share
        return min(int(value), high)
    value = low + share * (high - low) if uniform else low * (high / low) ** share
    return min(max(float(f"{value:.4g}"), low), high)


def _seeds(plan: Mapping[str, object]) -> list[int]:
    seeds = plan.get("seeds", [0])
    seeds = list(range(min(seeds, MAX_ROWS + 1))) if type(seeds) is int else seeds
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ConfigError(
            f"seeds must be a list of whole numbers, or the number of seeds, got {shortened(plan.get('seeds'))}"
        )
    return seeds


def _name(sweep: Sweep, plan: Mapping[str, object], shown: dict[str, str]) -> str:
    """The name of a row: from the pattern `name`, else from the file's name and all values that change."""
    stem = re.sub(r"[^\w.+=-]+", "_", sweep.path.stem, flags=re.ASCII)
    changing = [f"{column}{{{column}}}" for column in sweep.setting_columns if column in shown]
    pattern = plan.get("name", "-".join([stem, *changing, "s{seed}"]))
    values = {column: re.sub(r"[^\w.+=-]+", "_", value, flags=re.ASCII) for column, value in shown.items()}
    if sweep.job is None:  # an option of another grid
        values = dict.fromkeys(sweep.setting_columns, "none") | values
    name = pattern if isinstance(pattern, str) else ""
    for column, value in values.items():
        name = name.replace(f"{{{column}}}", value)
    if not isinstance(pattern, str) or "{" in name or "}" in name:
        known = ", ".join(f"{{{key}}}" for key in values)
        raise ConfigError(f"name = {shortened(pattern)} may contain {known}")
    if not is_cell(name):
        raise ConfigError(f"name: the name of a row must be {CELL_RULE}, got {shortened(name)}")
    return name
