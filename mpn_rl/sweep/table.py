"""A sweep: a command line with `$(column)` in it, rows of values for the columns, and a check of every row.

`Sweep.check` passes every row to the same parser and configuration as the run itself. This module imports only the
standard library and option modules, so 500 rows take about a second. `sweep_files` reads the files.
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
from mpn_rl.sweep.schedulers import Resources
from mpn_rl.sweep.slurm_script import SlurmScript
from mpn_rl.sweep.submit_file import MACRO, Mistake, SubmitFile

TRAINING = ("train", "train-neurogym")
FLAG = re.compile(r"--[a-z][a-z-]*")
ABSENT = "-"  # the value of an option that a row of a TOML file does not give
Existing = Literal["refuse", "resume", "ignore"]


class Row(NamedTuple):
    """One row of the args file."""

    line: int  # counted from 1
    values: tuple[str, ...]
    columns: tuple[int, ...]  # where each value starts in the line, counted from 1


class Planned(NamedTuple):
    """One row with its parsed command line."""

    name: str
    seed: str
    setting: tuple[str, ...]  # the values of all columns except name and seed
    argv: list[str]  # the arguments of main.py
    args: argparse.Namespace
    config: Config | None  # None where the row evaluates
    experiment: Experiment


class RowError(Exception):
    """A command line that the parser or the configuration rejects; the text says why."""


@dataclass
class Sweep:
    """A command line and the rows that fill in its columns.

    Args:
        path: the file that the user named; outputs go to its folder.
        rows_path: the file with the rows.
        columns: the names of the columns.
        command: the arguments of main.py, with `$(column)` in them; None if a job runs another program.
        command_at: (file, line, column) of the command line; the place of mistakes that are the same for all rows.
        rows: the rows that could be read.
        base: the folder in which the runs start.
        reading_mistakes: mistakes found while reading the files.
        key_lines: for a TOML file, the line of every column's key; mistakes in the rows are reported there.
        grid_lines: the same for each of several grids, after the number of its last row.
        job: the submit file or script with the command line.
        experiments_dir: the folder of the experiments, if it is not the one that the command line names.
        resources: what each row needs on a cluster.
        planned: the correct rows; `check` fills it.
    """

    path: Path
    rows_path: Path
    columns: tuple[str, ...]
    command: list[str] | None
    command_at: tuple[Path, int, int]
    rows: list[Row] = field(default_factory=list)
    base: Path = Path()
    reading_mistakes: list[Mistake] = field(default_factory=list)
    key_lines: dict[str, int] | None = None
    grid_lines: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    job: SubmitFile | SlurmScript | None = None
    experiments_dir: str | None = None
    resources: Resources = field(default_factory=Resources)
    planned: list[Planned] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parser = arguments.make_parser()
        self._owners = {flag: name for flag, name in _owners(self.command or []) if name in self.columns}
        self.name_column = self._owners.get("--experiment-name")
        self.seed_column = self._owners.get("--seed")

    @property
    def setting_columns(self) -> tuple[str, ...]:
        """All columns except those of the name and the seed."""
        return tuple(name for name in self.columns if name not in (self.name_column, self.seed_column))

    def plan(self, row: Row, without: frozenset[str] = frozenset()) -> Planned:
        """Fill in a row and parse its command line.

        Args:
            row: the row.
            without: columns to leave out of the command line, with the flags in front of them.
        Raises: RowError with the message of the parser or the configuration.
        """
        values = dict(zip(self.columns, row.values, strict=True))
        if self.job is None:
            without |= {column for column, value in values.items() if value == ABSENT}
        argv: list[str] = []
        for word in self.command or []:
            if not _macros(word) & without:
                argv.append(MACRO.sub(lambda match: values.get(match[3].lower(), match[0]), word))
            elif not word.startswith("--") and argv and FLAG.fullmatch(argv[-1]):
                argv.pop()
        output = io.StringIO()
        try:
            with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
                args = arguments.parse(argv, self._parser)
        except SystemExit:
            text = (output.getvalue().strip().splitlines() or ["not a valid command line"])[-1]
            raise RowError(re.sub(r"^main\.py [\w-]+: (argument )?", "", text)) from None
        args.experiments_dir = str(self.base / (self.experiments_dir or args.experiments_dir))
        try:
            config = None
            if args.command in TRAINING:
                if args.config and (self.base / args.config).exists():  # else a configuration of the toolkit
                    args.config = str(self.base / args.config)
                config = arguments.config_of(args)
            name = Experiment.check_new(args.experiment_name or "unnamed", args.experiments_dir, resume=True)
        except ConfigError as error:
            raise RowError(str(error)) from None
        setting = tuple(values[column] for column in self.setting_columns)
        seed = values.get(self.seed_column or "", "")
        return Planned(name, seed, setting, argv, args, config, Experiment(name, Path(args.experiments_dir)))

    # --- checking ---------------------------------------------------------------------------------------

    def check(self, existing: Existing = "refuse") -> list[Mistake]:
        """Check every row and fill `planned` with the correct ones.

        Args:
            existing: what to do about an experiment that exists: "refuse" it, accept it to "resume" it if its options
                are the same, or "ignore" it.
        Returns: the mistakes, in the order of files and lines.
        """
        mistakes = [*self.reading_mistakes, *self._command_mistakes()]
        seen: dict[str, Row] = {}
        for row in self.rows if self.command is not None else ():
            planned, row_mistakes = self._examine(row, existing, seen)
            mistakes += row_mistakes
            if planned and not row_mistakes:
                self.planned.append(planned)
        return sorted(set(mistakes))

    def _command_mistakes(self) -> Iterator[Mistake]:
        if self.command is None or not self.columns:
            return
        used = {name for word in self.command for name in _macros(word)}
        for column in self.columns:
            if column not in used:
                text = f"column {column!r} is not in the command line, so it has no effect"
                yield Mistake(*self.command_at, text)
        if self.name_column is None:
            text = "the command line needs --experiment-name $(COLUMN); without it, rows get names of their own"
            yield Mistake(*self.command_at, text)
        if self.job and self.command[0] in TRAINING and " --resume auto " not in f" {' '.join(self.command)} ":
            text = "the command line needs --resume auto; without it, an evicted job cannot continue"
            yield Mistake(*self.command_at, text)

    def _examine(self, row: Row, existing: Existing, seen: dict[str, Row]) -> tuple[Planned | None, list[Mistake]]:
        """Parse a row; after a mistake, again without the column that causes it, to find further mistakes.

        Args:
            row: the row.
            existing: as in `check`.
            seen: the rows before it, by experiment name; this row is added.
        """
        mistakes: list[Mistake] = []
        without: frozenset[str] = frozenset()
        planned = None
        while planned is None:
            try:
                planned = self.plan(row, without)
            except RowError as error:
                column = self._column_of(str(error), row, without)
                if column is None:  # the command line itself is wrong, for every row
                    return None, [*mistakes, Mistake(*self._fixed_place(str(error)), str(error))]
                mistakes.append(Mistake(*self._place(row, column), f"{column}: {error}"))
                without |= {column}
        if self.name_column is None or self.name_column in without:
            return planned, mistakes
        if planned.config and planned.name in seen:
            where = "" if self.key_lines else f" (line {seen[planned.name].line})"
            text = f"another row{where} has the same experiment name '{planned.name}'"
            mistakes.append(Mistake(*self._place(row, self.name_column), text))
        seen.setdefault(planned.name, row)
        if existing != "ignore" and not without:
            try:
                check_existing(planned, existing)
            except ConfigError as error:
                column = self._column_of(str(error), row, without) or self.name_column
                mistakes.append(Mistake(*self._place(row, column), str(error)))
        return planned, mistakes

    def _column_of(self, text: str, row: Row, without: frozenset[str]) -> str | None:
        """The column that causes a mistake: that of the first flag in the message that a column fills in."""
        for flag in FLAG.findall(text.partition("; did you mean")[0]):
            column = self._owners.get(flag.replace("--no-", "--"))
            if column and column not in without:
                return column
        for column, value in zip(self.columns, row.values, strict=True):
            if column not in without and value.startswith("--") and value in text:
                return column
        return None

    def _fixed_place(self, text: str) -> tuple[Path, int, int]:
        """(file, line, column) of the option in a message, if it is the same for all rows."""
        keys = [flag[2:].replace("-", "_") for flag in FLAG.findall(text)]
        line = next((self.key_lines[key] for key in keys if key in self.key_lines), None) if self.key_lines else None
        return (self.path, line, 1) if line else self.command_at

    def _place(self, row: Row, column: str) -> tuple[Path, int, int]:
        """(file, line, column) of a row's value."""
        if self.key_lines is not None:
            lines = next((lines for last, lines in self.grid_lines if row.line <= last), {})
            return self.path, lines.get(column) or self.key_lines.get(column, 1), 1
        return self.rows_path, row.line, row.columns[self.columns.index(column)]


def _macros(word: str) -> set[str]:
    """The names in a word's `$(...)`, in lower case: HTCondor ignores case."""
    return {match[3].lower() for match in MACRO.finditer(word)}


def _owners(command: list[str]) -> Iterator[tuple[str, str]]:
    """(flag, the column that fills it in) for each column of a command line."""
    for before, word in itertools.pairwise(["", *command]):
        if flag := FLAG.match(word) or FLAG.fullmatch(before):
            yield from ((flag[0], name) for name in _macros(word))


def check_existing(planned: Planned, existing: Existing) -> None:
    """Raises: ConfigError if a training's experiment exists but must not, or an evaluation's is missing."""
    experiment, config = planned.experiment, planned.config
    if config is None:
        Experiment.open(experiment.name, experiment.root)
    elif experiment.exists() and existing == "refuse":
        raise ConfigError(
            f"experiment '{experiment.name}' exists in {experiment.root}/; choose another name, or use "
            "--resume to continue the sweep"
        )
    elif experiment.exists() and not experiment.config_path.exists():
        Experiment.check_new(experiment.name, experiment.root, overwrite=True)  # an empty folder is accepted
    elif experiment.exists():
        arguments.resumed_config(planned.args, experiment.name, config_from_dict(experiment.read_config()))
