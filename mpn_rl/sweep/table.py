"""A sweep: a command line with `$(column)` in it, rows of values for the columns, and what is wrong with them.

`Sweep.check` puts every row through the parser and the configuration that the run itself would go through. Standard
library and the toolkit's option modules only, so that 500 rows take a second. `sweep_files` reads the files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from model_utils import Experiment
from mpn_rl import arguments
from mpn_rl.config import Config, config_from_dict
from mpn_rl.options import ConfigError
from mpn_rl.sweep.submit_file import MACRO, Mistake, SubmitFile

TRAINING = ("train", "train-neurogym")
FLAG = re.compile(r"--[a-z][a-z-]*")
Existing = Literal["refuse", "resume", "ignore"]


class Row(NamedTuple):
    """One row of the args file: its values, and where each begins in the line."""

    line: int
    values: tuple[str, ...]
    columns: tuple[int, ...]


class Planned(NamedTuple):
    """One row as the run that it becomes. `config` is None where the row evaluates."""

    name: str
    seed: str
    setting: tuple[str, ...]  # the values of all columns but name and seed
    argv: list[str]
    args: argparse.Namespace
    config: Config | None
    experiment: Experiment


class RowError(Exception):
    """Why a command line is refused."""


@dataclass
class Sweep:
    """A command line and the rows that fill it.

    Args:
        path: the file that was asked for; outputs lie beside it.
        rows_path: where the rows stand.
        columns: their names.
        command: the words for main.py, `$(column)` in them; None where a job runs something else.
        command_at: (file, line, column) of that command line, for mistakes that no row is to blame for.
        rows: the rows that could be read.
        base: folder in which the runs start.
        unread: mistakes found while reading.
        key_lines: of a TOML file, the line of every column's key: mistakes are there, not in rows that it makes.
        job: the submit file that the command comes from.
        experiments_dir: instead of the command line's own.
    """

    path: Path
    rows_path: Path
    columns: tuple[str, ...]
    command: list[str] | None
    command_at: tuple[Path, int, int]
    rows: list[Row] = field(default_factory=list)
    base: Path = Path()
    unread: list[Mistake] = field(default_factory=list)
    key_lines: dict[str, int] | None = None
    job: SubmitFile | None = None
    experiments_dir: str | None = None
    planned: list[Planned] = field(default_factory=list)  # the good rows, once `check` has run

    def __post_init__(self) -> None:
        self._parser = arguments.make_parser()
        self._owners = {flag: name for flag, name in _owners(self.command or []) if name in self.columns}
        self.name_column = self._owners.get("--experiment-name")
        self.seed_column = self._owners.get("--seed")

    @property
    def setting_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name not in (self.name_column, self.seed_column))

    def words(self, row: Row, without: frozenset[str] = frozenset()) -> list[str]:
        """The command line of a row, `without` some of its columns and the flags before them."""
        values = dict(zip(self.columns, row.values, strict=True))
        found: list[str] = []
        for word in self.command or []:
            if _macros(word) & without:
                if not word.startswith("--") and found and FLAG.fullmatch(found[-1]):
                    found.pop()
                continue
            found.append(MACRO.sub(lambda match: values.get(match[3].lower(), match[0]), word))
        return found

    def plan(self, row: Row, without: frozenset[str] = frozenset()) -> Planned:
        """The run that a row becomes. Raises: RowError with the parser's or the configuration's own words."""
        argv = self.words(row, without)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                args = arguments.parse(argv, self._parser)
        except SystemExit:
            text = (said.getvalue().strip().splitlines() or ["refused"])[-1]
            raise RowError(re.sub(r"^main\.py [\w-]+: (argument )?", "", text)) from None
        args.experiments_dir = str(self.base / (self.experiments_dir or args.experiments_dir))
        try:
            if getattr(args, "config", None) and (self.base / args.config).exists():  # else one of the toolkit's
                args.config = str(self.base / args.config)
            config = arguments.config_of(args) if args.command in TRAINING else None
            name = Experiment.check_new(args.experiment_name or "unnamed", args.experiments_dir, resume=True)
        except ConfigError as error:
            raise RowError(str(error)) from None
        values = dict(zip(self.columns, row.values, strict=True))
        setting = tuple(values[column] for column in self.setting_columns)
        seed = values.get(self.seed_column or "", "")
        return Planned(name, seed, setting, argv, args, config, Experiment(name, Path(args.experiments_dir)))

    # --- checking ---------------------------------------------------------------------------------------

    def check(self, existing: Existing = "refuse") -> list[Mistake]:
        """Every mistake in the rows, in the order of files and lines; afterwards `planned` has the rows without one.

        Args:
            existing: whether an experiment that is there already is a mistake, or only one of other options.
        """
        found = [*self.unread, *self._command_mistakes()]
        seen: dict[str, Row] = {}
        for row in self.rows if self.command is not None else ():
            planned, mistakes = self._examine(row, existing, seen)
            found += mistakes
            if planned and not mistakes:
                self.planned.append(planned)
        return sorted(set(found))

    def _command_mistakes(self) -> Iterator[Mistake]:
        if self.command is None or not self.columns:
            return
        used = {name for word in self.command for name in _macros(word)}
        for column in self.columns:
            if column not in used:
                text = f"column {column!r} is not in the command line: it would change nothing"
                yield Mistake(*self.command_at, text)
        if self.name_column is None:
            text = "the command line needs --experiment-name $(COLUMN), or rows get random names"
            yield Mistake(*self.command_at, text)
        if self.job and self.command[0] in TRAINING and " --resume auto " not in f" {' '.join(self.command)} ":
            text = "the command line needs --resume auto, or a job that was evicted finds its name taken"
            yield Mistake(*self.command_at, text)

    def _examine(self, row: Row, existing: Existing, seen: dict[str, Row]) -> tuple[Planned | None, list[Mistake]]:
        mistakes: list[Mistake] = []
        without: frozenset[str] = frozenset()
        planned = None
        while planned is None:
            try:
                planned = self.plan(row, without)
            except RowError as error:  # the row without the column to blame may show another mistake
                column = self._column_of(str(error), row, without)
                if column is None:  # the command line is to blame, for every row
                    return None, [*mistakes, Mistake(*self._fixed_place(str(error)), str(error))]
                mistakes.append(Mistake(*self._place(row, column), f"{column}: {error}"))
                without |= {column}
        if self.name_column is None or self.name_column in without:
            return planned, mistakes
        if planned.config and planned.name in seen:
            where = "" if self.key_lines else f" (line {seen[planned.name].line})"
            text = f"experiment '{planned.name}' is another row's too{where}"
            mistakes.append(Mistake(*self._place(row, self.name_column), text))
        seen.setdefault(planned.name, row)
        if existing != "ignore" and not without:
            try:
                _check_existing(planned, existing)
            except ConfigError as error:
                column = self._column_of(str(error), row, without) or self.name_column
                mistakes.append(Mistake(*self._place(row, column), str(error)))
        return planned, mistakes

    def _column_of(self, text: str, row: Row, without: frozenset[str]) -> str | None:
        """The column to blame: that of the first flag named which a column fills."""
        for flag in FLAG.findall(text.partition("; did you mean")[0]):
            column = self._owners.get(flag.replace("--no-", "--"))
            if column and column not in without:
                return column
        for column, value in zip(self.columns, row.values, strict=True):
            if column not in without and value.startswith("--") and value in text:
                return column
        return None

    def _fixed_place(self, text: str) -> tuple[Path, int, int]:
        """Where the option that a message names was fixed for all rows."""
        keys = [flag[2:].replace("-", "_") for flag in FLAG.findall(text)]
        line = next((self.key_lines[key] for key in keys if key in self.key_lines), None) if self.key_lines else None
        return (self.path, line, 1) if line else self.command_at

    def _place(self, row: Row, column: str | None) -> tuple[Path, int, int]:
        if column is None:
            return self.command_at
        if self.key_lines is not None:
            return self.path, self.key_lines.get(column, 1), 1
        return self.rows_path, row.line, row.columns[self.columns.index(column)]


def _macros(word: str) -> set[str]:
    """The names in a word's `$(...)`; HTCondor does not tell capitals apart."""
    return {match[3].lower() for match in MACRO.finditer(word)}


def _owners(command: list[str]) -> Iterator[tuple[str, str]]:
    """(flag, the column that fills it)."""
    for before, word in itertools.pairwise(["", *command]):
        flag = FLAG.match(word) or FLAG.fullmatch(before)
        for name in _macros(word) if flag else ():
            yield flag[0], name  # type: ignore[index]


def _check_existing(planned: Planned, existing: Existing) -> None:
    """Raises: ConfigError where the row's experiment may not be there, or, of an evaluation, is not."""
    experiment, config = planned.experiment, planned.config
    if config is None:
        Experiment.open(experiment.name, experiment.root)
    elif experiment.exists() and existing == "refuse":
        raise ConfigError(
            f"experiment '{experiment.name}' exists in {experiment.root}/; choose another name, or say --resume where "
            "the sweep is to go on"
        )
    elif experiment.exists() and not experiment.config_path.exists():
        Experiment.check_new(experiment.name, experiment.root, overwrite=True)  # an empty folder may stay
    elif experiment.exists():
        arguments.resumed_config(planned.args, experiment.name, config_from_dict(experiment.read_config()))
