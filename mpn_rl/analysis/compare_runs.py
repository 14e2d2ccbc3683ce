"""`analyze compare`: the scores of several runs in groups, on common seeds."""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from model_utils import CHECKPOINT_ALIASES, Experiment, read_json, versions, write_bytes_atomic, write_json
from mpn_rl import registry
from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.comparison import over_seeds, stored_results
from mpn_rl.analysis.confidence_intervals import Estimate, GroupScore, Improvement
from mpn_rl.config import Config
from mpn_rl.console import stderr, stdout
from mpn_rl.evaluation import load_policy, measure, network_key, scores_file, stored_config, write_scores
from mpn_rl.options import ConfigError, nearest
from mpn_rl.statistics import few_seeds_note
from mpn_rl.storage.json_files import COLLECTED, PROBES, SCORES, check_json

# The scores of `eval` that are compared, and their names.
MEASURES = {"accuracy": "accuracy", "normalised_score": "normalised score", "return_mean": "return"}
# Numbers of the pages' tables that measures.png shows; measures.csv has all.
DRAWN = r"participation ratio of |(delay|silence)\b.*: (units with two stable points|slowest relaxation)"
Bands = dict[str, tuple[np.ndarray, Estimate[np.ndarray]]]  # {group: `learning_band`}


@dataclass(frozen=True)
class Run:
    """One run: its scores on the common seeds, by the keys of MEASURES, and its evaluations during training."""

    experiment: str
    group: str
    task: str
    seed: int
    weights: int | None  # trained ones
    scores: Mapping[str, float | None]
    evaluations: list[dict[str, float | None]]
    choices: Mapping[str, list[float | None]] | None = None  # `evaluation.choice_counts`


def formats_of(args: argparse.Namespace) -> list[str]:
    """The file formats of the figures: png, and that of --format."""
    return ["png", *([args.format] if args.format else [])]


def compare_runs(args: argparse.Namespace, names: list[str]) -> int:
    """Compare groups of runs: print a table; write comparison.csv, runs.csv, comparison.json and the figures."""
    from mpn_rl.analysis.figures import behaviour_figures
    from visualize import save_figure

    _check_output(args)
    runs = [run for name in names if (run := run_of(args, name)) is not None]
    if not runs:
        raise ConfigError("none of these experiments has a checkpoint to compare; train them first")
    groups = list(dict.fromkeys(run.group for run in runs))
    played = f"{args.num_eval_trials} trials" if args.num_eval_trials else f"{args.num_eval_episodes} episodes"
    stdout.print(f"checkpoint {args.checkpoint} of {len(runs)} runs, each on the same {played} of seed {args.seed}")
    several = len({run.task for run in runs}) > 1
    seeds = Counter(f"{run.group}, {run.task}" if several else run.group for run in runs)
    if note := few_seeds_note(seeds):
        stderr.print(f"note: {note}")
    if len(groups) == 1:
        stderr.print(f"note: all {len(runs)} runs are in one group ({groups[0]}), so nothing is compared; --group-by "
                     "chooses groups")  # fmt: skip
    rows, pairs = confidence_intervals.compare(measures_of(runs))
    curves = {task: learning_bands(task, runs) for task in dict.fromkeys(run.task for run in runs)}
    folder = Path(args.output) if args.output else compare_folder(args, groups)
    folder.mkdir(parents=True, exist_ok=True)
    print_comparison(rows, pairs, weights_of(runs))
    page = behaviour_figures.comparison_page(
        rows, pairs, curves, title=f"{len(runs)} run{'s'[: len(runs) != 1]}, evaluation seed {args.seed}"
    )
    pictures = [save_figure(page, folder / f"comparison.{suffix}") for suffix in formats_of(args)]
    head = ["experiment", "group", "task", "seed", "weights", *MEASURES]
    cells = (
        [run.experiment, run.group, run.task, run.seed, run.weights, *(run.scores[key] for key in MEASURES)]
        for run in runs
    )
    write_bytes_atomic(folder / "runs.csv", as_csv(head, cells))
    head = ["kind", "measure", "group", "other", "value", "low", "high", "n"]
    means = [["interquartile mean", row.measure, row.group, "", *row.iqm] for row in rows]
    better = [["probability of improvement", p.measure, p.group, p.other, *p.probability] for p in pairs]
    write_bytes_atomic(folder / "comparison.csv", as_csv(head, [*means, *better]))
    plain = {"rows": [row._asdict() | {"iqm": row.iqm._asdict()} for row in rows]}
    plain |= {"improvement": [pair._asdict() | {"probability": pair.probability._asdict()} for pair in pairs]}
    flat = [asdict(run) for run in runs]
    for values in flat:
        values |= values.pop("scores")
        del values["choices"]
    write_json(folder / "comparison.json", {**plain, "runs": flat, "versions": versions()})
    pictures += plot_psychometric(args, runs, folder)
    pictures += plot_measures(args, runs, folder)
    if args.similarity:
        pictures += plot_similarity(args, runs, folder)
    stdout.print("written: " + ", ".join(str(path) for path in (*pictures, folder / "comparison.csv")))
    return 0


def plot_psychometric(args: argparse.Namespace, runs: list[Run], folder: Path) -> list[Path]:
    """psychometric.png and .csv: each group's choices by strength of the evidence, with bands over seeds.

    Where no task has graded evidence, print why, and delete those of an earlier comparison. Returns: the figures.
    """
    from mpn_rl.analysis import behaviour
    from mpn_rl.analysis.figures import behaviour_figures
    from visualize import save_figure

    curves: dict[str, tuple[str, dict[str, behaviour.Curve]]] = {}
    why = "not available: the task's conditions have no coherence or other graded evidence"
    for task in dict.fromkeys(run.task for run in runs):
        tables: dict[str, list[dict[str, np.ndarray]]] = {}
        for run in runs:
            if run.task == task and run.choices:
                columns = {name: np.array(column, float) for name, column in run.choices.items()}
                own = {name: columns.pop(name) for name in ("ground_truth", "choice", "trials")}
                own |= {f"condition_{name}": column for name, column in columns.items()}
                tables.setdefault(run.group, []).append(own)
        if tables:
            curve = confidence_intervals.attempt(partial(behaviour.choices_over_seeds, tables))
            if isinstance(curve, str):
                why = curve
            else:
                curves[task] = curve[1], curve[0]
    files = [folder / f"psychometric.{suffix}" for suffix in formats_of(args)]
    if not curves:
        stdout.print(f"psychometric curves: {why}")
        for path in (*files, folder / "psychometric.csv"):
            path.unlink(missing_ok=True)
        return []
    page = behaviour_figures.psychometric_page(curves, title=f"{len(runs)} runs, evaluation seed {args.seed}")
    rows = [
        [task, strength, group, *line]
        for task, (strength, bands) in curves.items()
        for group, (x, estimate) in bands.items()
        for line in zip(x, *estimate, strict=True)
    ]
    head = ["task", "evidence", "group", "strength", "share", "low", "high", "n"]
    write_bytes_atomic(folder / "psychometric.csv", as_csv(head, rows))
    return [save_figure(page, path) for path in files]


def current_stages(experiment: Experiment) -> tuple[list[str], list[str]]:
    """The stages whose results are of the weights that their checkpoint has now, and a note on each other one."""
    config, folder = stored_config(experiment), experiment.path / "analysis"
    stages, notes = [], []
    for stage, file, schema, again in (
        (stored_results.PLOT, "collected.json", COLLECTED, "analyze"),
        (stored_results.PROBE, "probes.json", PROBES, "analyze probe"),
    ):
        record = {}
        if (folder / file).is_file():
            record = read_json(folder / file)
            check_json(record, schema, folder / file, f"run {again} again")
        of = record.get("checkpoint", "best")
        checkpoint = experiment.checkpoint(of if of in CHECKPOINT_ALIASES else "best")
        if "network" in record and checkpoint.is_file() and record["network"] != network_key(checkpoint, config):
            notes.append(f"the results of {again} are not of {checkpoint.name} as it is now")
        else:
            stages.append(stage)
    return stages, notes


def stored_measures(args: argparse.Namespace, name: str) -> tuple[stored_results.Measured, str]:
    """The results of analyze plot and probe of one run, and what is missing: those of other weights are left out."""
    experiment = Experiment.open(name, args.experiments_dir)
    stages, notes = current_stages(experiment)
    measured = stored_results.stored(experiment.path / "analysis", stages)
    lacking = {stored_results.PLOT: "no recording (analyze)", stored_results.PROBE: "no probes (analyze probe)"}
    notes += [lacking[stage] for stage in measured.missing if stage in stages]
    return measured, ", ".join(notes)


def plot_similarity(args: argparse.Namespace, runs: list[Run], folder: Path) -> list[Path]:
    """similarity.png and .csv: linear CKA and Procrustes of the states of every pair of runs of one task.

    Print why where it is not available. Returns: the figures.
    """
    import pca_analysis
    from mpn_rl.analysis.comparison import similarity
    from mpn_rl.analysis.figures import state_figures
    from visualize import save_figure

    panels: dict[str, tuple[list[str], np.ndarray, np.ndarray]] = {}
    rows: list[list[object]] = []
    for task in dict.fromkeys(run.task for run in runs):
        means: list[tuple[Run, similarity.ConditionMeans]] = []
        for run in sorted((run for run in runs if run.task == task), key=lambda run: run.group):
            experiment = Experiment.open(run.experiment, args.experiments_dir)
            path, (stages, _) = experiment.path / "analysis" / "activity.npz", current_stages(experiment)
            of_run: similarity.ConditionMeans | str = "not available: no recording of these weights (analyze collect)"
            if path.is_file() and stored_results.PLOT in stages:
                activity = pca_analysis.load_activity(path)
                of_run = confidence_intervals.attempt(partial(similarity.condition_means, activity))
            if isinstance(of_run, str):
                stderr.print(f"note: similarity of {run.experiment}: {of_run}")
            else:
                means.append((run, of_run))
        for state in dict.fromkeys(state for _, own in means for state in own.means):
            own_runs = [(run, own) for run, own in means if state in own.means]
            if len(own_runs) < 2:
                continue
            found = confidence_intervals.attempt(
                partial(similarity.similarities, [part for _, part in own_runs], state)
            )
            if isinstance(found, str):
                stdout.print(f"similarity of {state}, {task}: {found}")
                continue
            names, groups = ([getattr(run, what) for run, _ in own_runs] for what in ("experiment", "group"))
            for name in similarity.MEASURES:
                value, limit = found.value[name], found.limit[name]
                size = f"{found.conditions} conditions, {found.steps} steps"
                panels[f"{name} of {state}\n{task}\n{size}"] = names, value, limit
                rows += [[task, state, name, names[i], names[j], groups[i], groups[j], value[i, j], limit[i, j]]
                         for i, j in zip(*np.triu_indices(len(names)), strict=True)]  # fmt: skip
                for (a, b), (middle, pairs) in similarity.mean_between(value, groups).items():
                    stdout.print(
                        f"{name} of {state}, {a} and {b}: mean {middle:.3f} of {pairs} pair{'s'[: pairs != 1]}"
                    )
    files = [folder / f"similarity.{suffix}" for suffix in formats_of(args)]
    if not panels:
        stdout.print("similarity: not available: it needs recordings of two runs of one task")
        for path in (*files, folder / "similarity.csv"):
            path.unlink(missing_ok=True)
        return []
    head = ["task", "state", "measure", "run", "other", "group", "other_group", "value", "limit"]
    write_bytes_atomic(folder / "similarity.csv", as_csv(head, rows))
    figure = state_figures.similarity_figure(panels, title=f"{len(runs)} runs: similarity of condition means")
    return [save_figure(figure, path) for path in files]


def plot_measures(args: argparse.Namespace, runs: list[Run], folder: Path) -> list[Path]:
    """measures.png and .csv: each group's numbers and curves of analyze plot and probe, with bands over seeds.

    Where no run has any, print so, and delete those of an earlier comparison. Returns: the figures.
    """
    from mpn_rl.analysis.figures import behaviour_figures
    from visualize import save_figure

    measured, notes = [], []
    for run in runs:
        results, missing = stored_measures(args, run.experiment)
        measured.append((run, results))
        notes += [f"note: measures of {run.experiment}: {missing}"] if missing else []
    files = [folder / f"measures.{suffix}" for suffix in formats_of(args)]
    if not any(own.numbers for _, own in measured):
        stdout.print("measures over seeds: not available: no run has results of analyze or analyze probe")
        for path in (*files, folder / "measures.csv"):
            path.unlink(missing_ok=True)
        return []
    for note in notes:
        stderr.print(note)
    tasks = list(dict.fromkeys(run.task for run in runs))
    rows, curves, drawn = [], {}, {}
    for task in tasks:
        own = [(run.group, results) for run, results in measured if run.task == task]
        prefix = f"{task}: " if len(tasks) > 1 else ""
        for page, what in dict.fromkeys(key for _, results in own for key in results.numbers):
            values: dict[str, list[float]] = {}
            for group, results in own:
                if (page, what) in results.numbers:
                    values.setdefault(group, []).append(results.numbers[page, what])
            lines = over_seeds.number_over_seeds(what, values)
            rows += [[task, page, what, "", line.group, *line.iqm] for line in lines]
            if re.match(DRAWN, what):
                drawn[prefix + what] = lines
        for name in dict.fromkeys(name for _, results in own for name in results.curves):
            of_group: dict[str, list[over_seeds.Curve]] = {}
            for group, results in own:
                if name in results.curves:
                    of_group.setdefault(group, []).append(results.curves[name])
            if (curve := over_seeds.curve_over_seeds(of_group)) is not None:
                curves[prefix + name] = curve
                rows += [[task, "curve", name, x, group, *line] for group, (xs, estimate) in curve.groups.items()
                         for x, *line in zip(xs.tolist(), *estimate, strict=True)]  # fmt: skip
    write_bytes_atomic(
        folder / "measures.csv",
        as_csv(["task", "page", "quantity", "x", "group", "value", "low", "high", "n"], rows),
    )
    if not curves and not drawn:
        return []
    figure = behaviour_figures.measures_page(
        curves, drawn, title=f"{len(runs)} runs: results of analyze and its probes"
    )
    return [save_figure(figure, path) for path in files]


def run_of(args: argparse.Namespace, name: str) -> Run | None:
    """A run with its scores on the common seeds, evaluated if necessary; None without a checkpoint."""
    experiment = Experiment.open(name, args.experiments_dir)
    config = stored_config(experiment)
    checkpoint = experiment.checkpoint(args.checkpoint)
    if not checkpoint.is_file():
        stderr.print(f"note: {name} is left out: it has no checkpoint {checkpoint}")
        return None
    group = group_of(config, args.group_by or ["core"], name)
    source = registry.eval_seeds(config, args.seed)
    seeds = [source() for _ in range(args.num_eval_episodes)]
    file, scores = scores_file(args, experiment, config), {}
    if file.is_file():
        scores = read_json(file)
        check_json(scores, SCORES, file, "delete it, and compare evaluates again")
    older = "trials" in scores and "choices" not in scores  # of a version that did not count choices
    if args.num_eval_trials or older or scores.get("episode_seeds") != seeds:
        stderr.print(f"evaluating {name}: {args.num_eval_trials or args.num_eval_episodes} "
                     f"{'trials' if args.num_eval_trials else 'episodes'}")  # fmt: skip
        _, _, network = load_policy(args, name)
        scores, played = measure(args, config, network)
        write_scores(args, experiment, config, scores, played)
    evaluations = [row for row in experiment.read_metrics() if row.get("kind") == "eval"]
    chosen = {key: scores.get(key) for key in MEASURES}
    return Run(name, group, config.env.task, config.run.seed, experiment.num_weights(), chosen, evaluations,
               scores.get("choices"))  # fmt: skip


def group_of(config: Config, fields: list[str], experiment: str = "") -> str:
    """The values of the options `fields` as the name of a group: "mpn", or "mpn, hidden_dim 64".

    The field "experiment" is the experiment's name, so that each one is a group.

    Raises: ConfigError for an option that the run does not have.
    """
    nested = config.to_dict()
    named = {part: section["name"] for part, section in nested.items() if "name" in section}
    flat = {key: value for section in nested.values() for key, value in section.items() if key != "name"} | named
    flat |= {"algo": named["learner"], "experiment": experiment}
    labels = []
    for field in (field.replace("-", "_") for field in fields):
        if field not in flat:
            raise ConfigError(f"--group-by {field!r} is no option of {config.core.name} runs{nearest(field, flat)}")
        labels.append(
            str(flat[field]) if field in (*named, "algo", "env_name", "experiment") else f"{field} {flat[field]}"
        )
    return ", ".join(labels)


def measures_of(runs: list[Run]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Scores by measure, group and task; a measure spans all tasks if every group has a run of each task.

    Returns of different tasks have different units, so the return of each task is a separate measure.

    Returns: {measure: {group: {task: scores of the seeds}}}.
    """
    tasks = list(dict.fromkeys(run.task for run in runs))
    played = {(run.group, run.task) for run in runs}
    even = len(played) == len(tasks) * len({group for group, _ in played})
    measures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for key, name in MEASURES.items():
        separate = len(tasks) > 1 and (key == "return_mean" or not even)
        for run in runs:
            if (score := run.scores[key]) is not None:
                of_measure = measures.setdefault(f"{name}, {run.task}" if separate else name, {})
                of_measure.setdefault(run.group, {}).setdefault(run.task, []).append(score)
    return measures


def learning_bands(task: str, runs: list[Run]) -> tuple[str, Bands] | str:
    """The label of the y axis and a task's learning curves by group, or the sentence that says what is missing."""
    own = [run for run in runs if run.task == task and run.evaluations]
    scored = bool(own) and all(row.get("accuracy") is not None for run in own for row in run.evaluations)
    key, label = ("accuracy", "greedy accuracy") if scored else ("return_mean", "greedy return")
    bands: Bands = {}
    why = "not available: no evaluations were logged"
    for group in dict.fromkeys(run.group for run in own):
        curves = [(np.array([row["step"] for row in run.evaluations], float),
                   np.array([row[key] for row in run.evaluations], float))
                  for run in own if run.group == group]  # fmt: skip
        band = confidence_intervals.attempt(partial(confidence_intervals.learning_band, curves))
        if isinstance(band, str):
            why = band
        else:
            bands[group] = band
    return (label, bands) if bands else why


def plot_plasticity(args: argparse.Namespace, names: list[str]) -> None:
    """plasticity_<task>.png: score, active and dormant fractions and density of several runs, with bands over seeds.

    A group has one core, learner and expansion. Without logged plasticity metrics there is no figure.
    """
    import visualize
    from mpn_rl.expansion import growth_figures

    opened = [Experiment.open(name, args.experiments_dir) for name in names]
    runs = [(stored_config(experiment), growth_figures.curves_of(experiment.read_metrics())) for experiment in opened]
    runs = [(config, curves) for config, curves in runs if any(curves[name] for name in curves if name != "agent")]
    fields = [field for field in ("core", "learner", "expansion") if len({group_of(c, [field]) for c, _ in runs}) > 1]
    grouped = [(group_of(config, fields or ["core"]), config, curves) for config, curves in runs]
    if "expansion" in fields:  # the last part of the name
        grouped = [(re.sub(r"\bnone$", "dense", group), config, curves) for group, config, curves in grouped]
    folder = compare_folder(args, list(dict.fromkeys(group for group, _, _ in grouped)))
    for task in dict.fromkeys(config.env.task for _, config, _ in grouped):
        of_task = [(group, curves) for group, config, curves in grouped if config.env.task == task]
        figure = growth_figures.expansion_figure(growth_figures.by_group(of_task), title=task)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"plasticity_{plain_name(task)}.{suffix}" for suffix in formats_of(args)]
        written = [visualize.save_figure(figure, path) for path in paths]
        stdout.print("comparison of runs: " + ", ".join(map(str, written)))


def plain_name(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text)[:80].strip("-.")


def compare_folder(args: argparse.Namespace, groups: list[str]) -> Path:
    """The folder of a comparison, as experiments/compare-gru-mpn. Raises: ConfigError if that is an experiment."""
    folder = Path(args.experiments_dir) / plain_name("compare-" + "-".join(groups))
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} is an experiment; choose another folder with analyze compare --output")
    return folder


def _check_output(args: argparse.Namespace) -> None:
    """Refuse to replace files in --output without --overwrite. Raises: ConfigError."""
    if args.output is None:
        if args.overwrite:
            raise ConfigError("--overwrite needs --output")
        return
    folder = Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is not a folder; choose another")
    names = [
        f"{stem}.{suffix}"
        for stem in ("comparison", "psychometric", "measures", "similarity")
        for suffix in (*formats_of(args), "csv")
    ]
    names += ["comparison.json", "runs.csv"]
    there = next((folder / name for name in names if (folder / name).exists()), None)
    if there is not None and not args.overwrite:
        raise ConfigError(f"{there} exists; replace it with --overwrite or choose another --output")


def weights_of(runs: list[Run]) -> dict[str, str]:
    """The number of trained weights of each group's runs, such as "4,805" or "4,805 to 5,190"; "-" if unknown."""
    counts: dict[str, list[int]] = {}
    for run in runs:
        counts.setdefault(run.group, []).extend([] if run.weights is None else [run.weights])
    ends = {group: sorted({min(known), max(known)}) for group, known in counts.items() if known}
    return {group: " to ".join(f"{end:,}" for end in ends.get(group, [])) or "-" for group in counts}


def print_comparison(rows: list[GroupScore], pairs: list[Improvement], weights: Mapping[str, str]) -> None:
    """Print a table of interquartile means, with each group's trained weights, and of probabilities of improvement."""
    table = Table(title="interquartile mean over seeds, 95 % intervals", title_justify="left", box=None, pad_edge=False)
    table.add_column("measure", overflow="fold")
    table.add_column("group", overflow="fold")
    for column in ("weights", "value", "interval", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    lines = [(row.measure, row.group, row.iqm) for row in rows]
    lines += [(pair.measure, f"P({pair.group} > {pair.other})", pair.probability) for pair in pairs]
    for name, group, part in lines:
        ends = f"[{part.low:.3f}, {part.high:.3f}]" if np.isfinite(part.low) else "none"
        table.add_row(name, group, weights.get(group, ""), f"{part.value:.3f}", ends, str(part.n))
    stdout.print(table)


def as_csv(head: list[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A table as CSV, with six digits per float; None and nan are empty cells."""

    def cell(value: object) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return ""
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    text = io.StringIO()
    csv.writer(text).writerows([head, *(map(cell, row) for row in rows)])
    return text.getvalue().encode()
