"""`analyze list` and `analyze query`: tables of all experiments, from their files alone, also while they train."""

from __future__ import annotations

import argparse
import csv
import datetime
import fnmatch
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.table import Table

from model_utils import Experiment, Record, jsonable, read_json
from mpn_rl import arguments
from mpn_rl.config import Config, config_from_dict
from mpn_rl.console import stderr, stdout
from mpn_rl.options import ConfigError, nearest
from mpn_rl.runs.state import MetricsRow, state_of_run

COLUMNS = ("experiment", "task", "core", "weights", "learner", "expansion", "seed", "steps", "share", "state", "score",
           "best", "measure", "age")  # fmt: skip


def tables(args: argparse.Namespace) -> int:
    """The stages list and query, on the experiments of --experiment-name or on all."""
    arguments.stage_options(args)
    names = Experiment.matching(args.experiment_name or Experiment.names(args.experiments_dir), args.experiments_dir)
    for name in args.experiment_name or ():
        if name in names:
            Experiment.open(name, args.experiments_dir)  # refuses a name that is none
    return list_runs(args, names) if args.stage == "list" else query_runs(args, names)


def list_runs(args: argparse.Namespace, names: Sequence[str]) -> int:
    """Print one row per experiment: as a table, as CSV, or as a JSON array."""
    rows = [run_row(experiment, config) for experiment, config in readable(args, names)]
    for text in args.where:
        rows = selected(rows, text)
    if args.sort:
        rows = ordered(rows, args.sort)
    if args.json or args.csv:
        write_rows([{name: row[name] for name in (*COLUMNS, "updated")} for row in rows], args)
        return 0
    if not rows:
        stdout.print(f"no experiment in {args.experiments_dir}/ matches")
        return 0
    shown = [name for name in COLUMNS if name != "expansion" or any(row["expansion"] != "none" for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="")
    for name in shown:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell(name, row[name]) for name in shown))
    stdout.print(table)
    return 0


def readable(args: argparse.Namespace, names: Iterable[str]) -> Iterator[tuple[Experiment, Config]]:
    """The experiments whose configuration can be read, with it; a note names each of the others."""
    for name in names:
        experiment = Experiment(name, Path(args.experiments_dir))
        try:
            yield experiment, config_from_dict(experiment.read_config())
        except ConfigError as error:
            stderr.print(f"note: {name} is left out: {error}")


def run_row(experiment: Experiment, config: Config) -> Record:
    """One experiment: the keys COLUMNS, "updated", and all its options by name.

    "score" is that of the last greedy evaluation, "best" that of best_model.pt: accuracy where the task has trials,
    else return.
    """
    state = state_of_run(experiment, config)
    try:
        logged = [row for row in map(MetricsRow.read, experiment.read_metrics()) if row]
    except ConfigError as error:
        stderr.print(f"note: {error}")
        logged = []
    scored = [row for row in logged if row.is_evaluation and row.score is not None]
    known = [row for row in scored if row.rank is not None]
    highest = max(known, key=lambda row: (row.rank, row.step), default=None)
    files = [path for path in (experiment.config_path, experiment.metrics_path) if path.exists()]
    updated = datetime.datetime.fromtimestamp(max(path.lstat().st_mtime for path in files)).astimezone()
    row = {
        "experiment": experiment.name,
        "task": config.env.task,
        "core": config.core.name,
        "weights": experiment.num_weights(),
        "learner": config.learner.name,
        "expansion": config.expansion.name,
        "seed": config.run.seed,
        "steps": max((row.step for row in logged), default=0),
        "share": state.share,
        "state": state.state,
        "score": scored[-1].score if scored else None,
        "best": highest.score if highest else None,
        "measure": ("return" if scored[-1].accuracy is None else "accuracy") if scored else None,
        "age": (datetime.datetime.now().astimezone() - updated).total_seconds(),
        "updated": updated.isoformat(timespec="seconds"),
    }
    return {**config.env.env_args, **config.values(), "algo": config.learner.name, **row}


def selected(rows: list[Record], text: str) -> list[Record]:
    """The rows for which KEY=VALUE holds; VALUE may be a pattern such as 'Perceptual*'.

    Raises: ConfigError for a key that no row has.
    """
    key, equals, wanted = text.partition("=")
    key = key.replace("-", "_")
    if not equals or not key:
        raise ConfigError(f"--where must be KEY=VALUE, got {text!r}")
    check_key("--where", key, rows)

    def holds(value: object) -> bool:
        return fnmatch.fnmatchcase(str(value), wanted) or (
            type(value) is not str and value == arguments.read_value(wanted)
        )

    return [row for row in rows if key in row and holds(row[key])]


def ordered(rows: list[Record], key: str) -> list[Record]:
    """The rows by the values of a column or option: the largest number first, texts by alphabet, none last.

    Raises: ConfigError for a key that no row has.
    """
    key = key.replace("-", "_")
    check_key("--sort", key, rows)
    there = [row for row in rows if row.get(key) is not None]
    numbers = all(isinstance(row[key], int | float) for row in there)
    there.sort(key=lambda row: -row[key] if numbers else str(row[key]))
    return [*there, *(row for row in rows if row.get(key) is None)]


def check_key(flag: str, key: str, rows: list[Record]) -> None:
    known = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    if rows and key not in known:
        raise ConfigError(f"{flag} {key!r} is no column and no option of these runs{nearest(key, known)}")


def cell(name: str, value: object) -> str:
    """A value in the printed table."""
    if value is None:
        return "-"
    if name == "age":
        assert isinstance(value, float)
        for seconds, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
            if value >= seconds:
                return f"{value / seconds:.0f} {unit}"
        return f"{max(value, 0):.0f} s"
    if name == "share":
        return f"{value:.0%}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if type(value) is int else str(value)


# --- SQL ----------------------------------------------------------------------------------------------------


def query_runs(args: argparse.Namespace, names: Sequence[str]) -> int:
    """Run SQL over the tables runs, metrics and evals, and print the result."""
    if args.sql is None:
        raise ConfigError('analyze query needs SQL, such as "SELECT task, core, avg(score) FROM runs GROUP BY ALL"')
    try:
        import duckdb
    except ImportError as error:
        raise ConfigError("analyze query needs the extra: pip install 'mpn-rl[query]'") from error
    tables: dict[str, list[Record]] = {"runs": [], "metrics": [], "evals": []}
    for experiment, config in readable(args, names):
        tables["runs"].append(run_row(experiment, config))
        known = {"experiment": experiment.name}
        try:
            tables["metrics"] += [known | row for row in experiment.read_metrics()]
        except ConfigError as error:
            stderr.print(f"note: {error}")
        for path in sorted((experiment.path / "eval").glob("*.json")):
            try:
                tables["evals"].append(known | {"file": path.name} | read_json(path))
            except ConfigError as error:
                stderr.print(f"note: {error}")
    with tempfile.TemporaryDirectory(prefix="mpn-rl-query-") as folder, duckdb.connect() as database:
        try:
            for name, rows in tables.items():
                path = Path(folder) / f"{name}.jsonl"
                path.write_text("".join(json.dumps(jsonable(row)) + "\n" for row in rows), encoding="utf-8")
                database.execute(f"CREATE TABLE {name} AS SELECT * FROM {source_of(path, rows)}")
            database.execute("SET enable_external_access = false; SET lock_configuration = true")
            result = database.execute(args.sql)
            heads = [column[0] for column in result.description or ()]
            found = result.fetchall()
        except duckdb.Error as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise ConfigError(
                f'{reason}; the tables are runs, metrics and evals: "DESCRIBE runs" shows the columns of one'
            ) from None
    if args.json or args.csv:
        write_rows([dict(zip(heads, row, strict=True)) for row in found], args, heads)
        return 0
    table = Table(box=None, pad_edge=False, header_style="")
    for place, head in enumerate(heads):
        text = any(isinstance(row[place], str) for row in found)
        table.add_column(head, justify="left" if text else "right", overflow="fold")
    for row in found:
        table.add_row(*(cell("", value) for value in row))
    stdout.print(table)
    return 0


def source_of(path: Path, rows: list[Record]) -> str:
    """What DuckDB reads a table from: the file, or without rows an empty table."""
    if not rows:
        return "(SELECT NULL::VARCHAR AS experiment) WHERE false"
    name = str(path).replace("'", "''")
    return f"read_json('{name}', format = 'newline_delimited', sample_size = -1, maximum_object_size = 100000000)"


def write_rows(rows: list[Record], args: argparse.Namespace, heads: Sequence[str] | None = None) -> None:
    """Print rows as a JSON array, or as CSV with empty cells for what is missing."""
    if args.json:
        stdout.print(json.dumps(jsonable(rows), default=str), soft_wrap=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, heads or [*COLUMNS, "updated"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    stdout.print(text.getvalue().rstrip("\n"), soft_wrap=True)
