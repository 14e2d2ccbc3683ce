"""The stages of `python main.py analyze` that load an agent or a recording: collect, plot, probe, compare, report."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from model_utils import (
    Experiment,
    Record,
    disk_errors,
    jsonable,
    read_json,
    temporary_path,
    versions,
    write_bytes_atomic,
    write_json,
)
from mpn_rl import registry
from mpn_rl.analysis.compare_runs import compare_runs, formats_of, plot_plasticity
from mpn_rl.analysis.recording import ActivityWriter, write_npz
from mpn_rl.arguments import STAGES_OF, stage_options
from mpn_rl.config import Config
from mpn_rl.console import stderr, stdout
from mpn_rl.evaluation import EVAL_LANES, acting, load_policy, network_key, stored_config
from mpn_rl.options import ConfigError
from mpn_rl.registry import task_names_of
from mpn_rl.rollout import record_episodes
from mpn_rl.storage.json_files import COLLECTED, PROBES, Schema, check_json
from mpn_rl.storage.npz_files import ArraySpec, read_npz
from mpn_rl.tasks.schedules.task_set import seed_of
from neurogym_wrapper import reference_scores

if TYPE_CHECKING:  # matplotlib and SciPy are slow to import
    from mpn_rl.analysis.pages.standard_pages import Page
    from mpn_rl.analysis.probes import Curve, Subject


def analyze(args: argparse.Namespace) -> int:
    """Run a stage on each experiment in turn; `compare` takes all of them together."""
    given = stage_options(args)
    with threadpool_limits(args.threads):  # NumPy's matrix products otherwise take every core, and gain little by it
        return _run_stages(args, given)


def _run_stages(args: argparse.Namespace, given: dict[str, object]) -> int:
    names = Experiment.matching(args.experiment_name, args.experiments_dir)
    if args.stage == "compare":
        if "checkpoint" not in given:
            args.checkpoint = "final"  # as in `sweep summary`: best_model.pt was chosen by its score
        return compare_runs(args, names)
    stages: dict[str | None, list[Callable[[argparse.Namespace, str], None]]] = {
        None: [collect, plot], "collect": [collect], "plot": [plot], "probe": [probe],
        "report": [partial(report, given)], "export": [export],
    }  # fmt: skip
    for name in names:
        for stage in stages[args.stage]:
            stage(args, name)
    if len(names) > 1 and plot in stages[args.stage]:
        plot_plasticity(args, names)
    return 0


# --- collect ------------------------------------------------------------------------------------------------


def collect(args: argparse.Namespace, name: str) -> None:
    """Record greedy episodes: activity.npz (every step), network.npz (the weights), collected.json (the settings)."""
    experiment, config, network = load_policy(args, name)
    envs = [registry.make_env(config.env) for _ in range(min(EVAL_LANES, args.num_episodes))]
    source = registry.eval_seeds(config, args.seed)
    seeds = [source() for _ in range(args.num_episodes)]
    if count := len(task_names_of(config.env)):  # the episodes go round the tasks
        seeds = [seed_of(seed, index % count, count) for index, seed in enumerate(seeds)]
    episodes = record_episodes(network, envs, seeds, epsilon=args.epsilon, precision=args.precision,
                               reset_state_on_trial=config.run.reset_state_on_trial)  # fmt: skip
    first = next(episodes)
    if args.color_by:
        import pca_analysis

        pca_analysis.colour_values(first, args.color_by)  # an unknown value fails here, before any file is written
    path = experiment.analysis_dir / "activity.npz"
    with ActivityWriter(path.parent, args.states) as writer, Progress(console=stderr) as bar:
        task = bar.add_task(f"recording {name}", total=args.num_episodes)
        for episode in itertools.chain([first], episodes):
            if not writer.add(episode, args.max_megabytes * 2**20):
                stderr.print(
                    f"stopped after {writer.episodes} episodes: --max-megabytes {args.max_megabytes} is reached"
                )
                break
            bar.advance(task)
        if not writer.episodes:
            limit = f"--max-megabytes {args.max_megabytes}"
            raise ConfigError(f"{limit} is too small for one episode; raise it, or keep fewer --states")
        writer.write(path, dt_ms=float(envs[0].dt_ms))
    write_npz(path.with_name("network.npz"), {k: part.cpu().numpy() for k, part in network.state_dict().items()})
    settings = {"checkpoint": args.checkpoint, "network": network_key(experiment.checkpoint(args.checkpoint), config),
                "seed": args.seed, "epsilon": args.epsilon, "acting": acting(network), "precision": args.precision,
                "num_episodes": args.num_episodes, "max_megabytes": args.max_megabytes, "states": args.states,
                "episodes": writer.episodes, "steps": writer.steps}  # fmt: skip
    write_json(path.with_name("collected.json"), {**settings, "versions": versions()})
    megabytes = path.stat().st_size / 2**20
    stdout.print(f"{writer.episodes} episodes, {writer.steps:,} steps, {megabytes:.0f} MB: {path}")


# --- plot and probe -----------------------------------------------------------------------------------------


def recorded_pages(args: argparse.Namespace, experiment: Experiment, config: Config) -> Iterator[Page]:
    """The pages of the experiment's recording. Raises: ConfigError where there is none."""
    import pca_analysis
    from mpn_rl.analysis.pages import mechanism_pages, standard_pages

    path = experiment.path / "analysis" / "activity.npz"
    if not path.is_file():
        way_out = f"record it with: python main.py analyze collect {experiment.options}"
        raise ConfigError(f"no recording {path}; {way_out}")
    weights: dict[str, np.ndarray] = {}
    if (network := path.with_name("network.npz")).exists():
        schema = {r"[\w.]+": ArraySpec(dims=(0, 1, 2, 3))}
        weights = read_npz(network, schema, "file of weights", "run analyze collect again")
    recording = standard_pages.Recording(pca_analysis.load_activity(path), config.to_dict(), weights, args.color_by)
    if reason := recording.mismatch():
        raise ConfigError(f"{network} does not fit {path} or config.json: {reason}; run analyze collect again")
    yield from standard_pages.pages(recording)
    yield from mechanism_pages.pages(recording)


def training_pages(experiment: Experiment, config: Config) -> Iterator[Page]:
    """Learning curves, plasticity metrics (both from metrics.jsonl) and topology (from masks.npz)."""
    from mpn_rl.analysis.pages import standard_pages

    rows, title = experiment.read_metrics(), title_of(config)
    episodes = [row for row in rows if row.get("kind") == "episode"]
    keys = ("step", "reward", "length", "loss", "accuracy", "epsilon", "entropy")
    history = {key: [row[key] for row in episodes] for key in keys if all(key in row for row in episodes)}
    evaluations = [row for row in rows if row.get("kind") == "eval"]
    yield standard_pages.learning_page(
        history, evaluations, reference_scores(config.env.env_name, config.env.env_args), title
    )
    if names := task_names_of(config.env):
        yield standard_pages.tasks_page(evaluations, names, title)
    yield standard_pages.plasticity_page(rows, title)
    yield standard_pages.masks_page(experiment.read_masks(), title)


def title_of(config: Config) -> str:
    """Task and core, for titles."""
    return f"{config.env.task}, {config.core.name}"


def save(page: Page, folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write a page's figure in every format and its numbers beside it; delete outdated figures.

    Returns: the paths of the figures. Raises: ConfigError for a name that could lead out of the folder.
    """
    import visualize

    if not re.fullmatch(r"\w{1,100}", page.name):
        raise ConfigError(f"a page cannot have the name {page.name[:100]!r}: use letters, digits and underscores")
    written = []
    for suffix in ("png", "svg", "pdf"):
        path = folder / f"{page.name}.{suffix}"
        if page.figure is not None and suffix in formats:
            written.append(visualize.save_figure(page.figure, path))
        else:
            path.unlink(missing_ok=True)
    about: dict[str, object] = {"title": page.title, "caption": page.caption}
    about |= {name: part for name in ("missing", "warnings") if (part := getattr(page, name))}
    table = [line._asdict() for line in page.table]
    write_json(folder / f"{page.name}.json", {**about, "table": table, **page.numbers})
    if page.arrays:
        write_npz(folder / f"{page.name}.npz", {re.sub(r"[^\w .-]", "_", key): a for key, a in page.arrays.items()})
    return written


def plot(args: argparse.Namespace, name: str) -> None:
    """Write the figure and the numbers of every page; print a line for each page that is not available."""
    experiment = Experiment.open(name, args.experiments_dir)
    config = stored_config(experiment)
    written: list[Path] = []
    for page in itertools.chain(recorded_pages(args, experiment, config), training_pages(experiment, config)):
        written += save(page, experiment.analysis_dir, formats_of(args))
        if page.name == "pca_variance":
            for state, values in page.numbers["states"].items():
                share = 100 * sum(values["explained_variance_ratio"][:3])
                ratio = f"participation ratio {values['participation_ratio']:.2f}"
                stdout.print(f"{state}: {ratio}, three components hold {share:.0f} % of the variance")
        if page.missing:
            stdout.print(f"{page.title}: {page.missing}")
        for warning in page.warnings:
            stderr.print(f"note: {page.title}: {warning}")
    stdout.print("figures, with the numbers beside them: " + ", ".join(str(path) for path in written))


def probe(args: argparse.Namespace, name: str, print_pages: bool = True) -> None:
    """Run every probe; write probes.json, probes.csv and their figures."""
    from mpn_rl.analysis import probes
    from mpn_rl.analysis.pages import probe_pages

    experiment, config, network = load_policy(args, name)
    if task_names_of(config.env):
        raise ConfigError(
            f"analyze probe needs a run of one task, '{name}' has several; eval and analyze collect show each task"
        )
    with Progress(console=stderr) as bar:
        task = bar.add_task(f"probing {name}", total=None)
        subject = probes.Subject(network, config, args.num_trials, args.seed)
        curves = {**probes.CURVES, **(probes.CONTROLS if args.lesion_controls else {})}
        results = run_probes(
            subject, args.delays, lambda step: bar.update(task, description=f"probing {name}: {step}"), curves
        )
    folder = experiment.analysis_dir
    results |= {"seed": args.seed, "checkpoint": args.checkpoint, "acting": acting(network),
                "network": network_key(experiment.checkpoint(args.checkpoint), config), "num_trials": args.num_trials,
                "delays": args.delays, "lesion_controls": args.lesion_controls, "versions": versions()}  # fmt: skip
    write_json(folder / "probes.json", results)
    write_bytes_atomic(folder / "probes.csv", probes_csv(results).encode())
    baseline = subject.baseline
    ends = f"[{baseline.low:.3f}, {baseline.high:.3f}]"
    stdout.print(f"{subject.ylabel} without intervention {baseline.value:.3f} {ends}, n = {baseline.n:,}")
    for page in probe_pages.pages(jsonable(results), title_of(config)):
        save(page, folder, formats_of(args))
        if print_pages:
            stdout.print(f"{page.title}: {page.missing or folder / (page.name + '.png')}")


def run_probes(
    subject: Subject,
    delays: list[float] | None,
    report_step: Callable[[str], None],
    curves: Mapping[str, Callable[[Subject], Curve]],
) -> dict[str, object]:
    """The result of every probe by name, for JSON; a sentence where a probe is not available.

    Args:
        delays: in ms, as in `probes.delay_curve`.
        report_step: called with the name of each probe before it runs.
        curves: the probes that are curves, by name.
    """
    from mpn_rl.analysis import dynamics, probes
    from mpn_rl.analysis.confidence_intervals import attempt

    results: dict[str, object] = {"baseline": subject.baseline._asdict(), "measure": subject.ylabel}
    for name, make in curves.items():
        report_step(name.replace("_", " "))
        curve = attempt(partial(probes.delay_curve, subject, delays) if name == "delay" else partial(make, subject))
        results[name] = curve if isinstance(curve, str) else {**curve._asdict(), "y": curve.y._asdict()}
        if name == "delay" and not isinstance(curve, str):
            results["memory_horizon_ms"] = attempt(partial(probes.memory_horizon, curve))
            results["memory_horizon_censored"] = bool(results["memory_horizon_ms"] == curve.x[-1])
            decay = attempt(partial(probes.memory_decay, curve))
            results["memory_decay_ms"] = decay if isinstance(decay, str) else decay.tau._asdict()
    relaxations: dict[str, object] = {}
    slow_points: dict[str, object] = {}
    for name, obs in dynamics.held_inputs(subject).items():
        report_step(f"constant input: {name}")
        rest = attempt(partial(dynamics.relaxation, subject, obs))
        relaxations[name] = rest if isinstance(rest, str) else {**rest._asdict(), "distance": rest.distance._asdict()}
        points = attempt(partial(dynamics.slow_points, subject, obs))
        slow_points[name] = points if isinstance(points, str) else {
            "speed": points.speed, "fixed": points.fixed, "stable": points.stable, "found": points.found,
            "unreached": points.unreached, "eigenvalue_size": np.abs(points.eigenvalues)[:, :20],
            "states": points.states,
        }  # fmt: skip
    return {**results, "relaxation": relaxations, "fixed_points": slow_points}


def probes_csv(results: dict[str, object]) -> str:
    """Every curve in long form: probe, x, value, low, high, n."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["probe", "x", "value", "low", "high", "n"])
    for name, curve in results.items():
        if isinstance(curve, dict) and "y" in curve:
            lines = zip(curve["x"], *(curve["y"][field] for field in ("value", "low", "high", "n")), strict=True)
            writer.writerows([name, *(f"{value:g}" for value in line)] for line in lines)
    return text.getvalue()


# --- export -------------------------------------------------------------------------------------------------


def export(args: argparse.Namespace, name: str) -> None:
    """Write the recording as activity.nwb, beside activity.npz. Raises: ConfigError without a recording or pynwb."""
    import pca_analysis
    from mpn_rl.analysis import nwb

    experiment = Experiment.open(name, args.experiments_dir)
    source = experiment.path / "analysis" / "activity.npz"
    if not source.is_file():
        raise ConfigError(f"no recording {source}; record it with: python main.py analyze collect {experiment.options}")
    settings = source.with_name("collected.json")
    collected = _read(settings, COLLECTED, "collect") if settings.exists() else {}
    notes = json.dumps({"config": read_json(experiment.path / "config.json"), "recording": collected}, indent=1)
    path, activity = source.with_suffix(".nwb"), pca_analysis.load_activity(source)
    temporary = temporary_path(path)
    with disk_errors(path):
        temporary.unlink(missing_ok=True)
        try:
            identifier = f"{name}, network {collected.get('network')}, seed {collected.get('seed')}"
            nwb.write_nwb(temporary, activity, name=name, notes=notes, identifier=identifier,
                          start=source.stat().st_mtime)  # fmt: skip
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    stdout.print(f"{path.stat().st_size / 2**20:.0f} MB: {path}")


# --- report -------------------------------------------------------------------------------------------------


def report(given: Mapping[str, object], args: argparse.Namespace, name: str) -> None:
    """Write analysis/report.html with all pages; record and probe first where the results are missing.

    Args: given: the options that are given on the command line; existing results must be of these.
    """
    from mpn_rl.analysis.pages import probe_pages
    from mpn_rl.analysis.pages.standard_pages import Page
    from mpn_rl.analysis.report import SavedPage, render

    experiment = Experiment.open(name, args.experiments_dir)
    config = stored_config(experiment)
    checkpoint, folder = experiment.checkpoint(args.checkpoint), experiment.analysis_dir
    recording, probes_file = folder / "activity.npz", folder / "probes.json"
    if not args.probes and (idle := {"num_trials", "delays", "lesion_controls"} & given.keys()):
        raise ConfigError(f"--{min(idle).replace('_', '-')} needs --probes")
    if checkpoint.is_file():
        for file, schema, stage in RESULTS:
            if (folder / file).exists():
                _check_settings(args, given, _read(folder / file, schema, stage), config, name, stage)
        if not recording.is_file():
            collect(args, name)
        if args.probes and not probes_file.is_file() and not task_names_of(config.env):
            probe(args, name, print_pages=False)
        notes = outdated_notes(checkpoint, folder, config)
    elif checkpoint.parent == experiment.path / "checkpoints" and not {"checkpoint", "policy", "lesion"} & given.keys():
        notes = [f"There is no {checkpoint.name}: the agent is untrained, or its checkpoint was removed."]
    else:
        raise ConfigError(f"no checkpoint {checkpoint}; --checkpoint takes best, final, last or a file's path")
    probed = _read(probes_file, PROBES, "probe") if probes_file.exists() else {}
    why = "not available: there is no recording, and no checkpoint to record with"
    unrecorded = [Page("recorded", "behaviour", "Behaviour, state, memory and weights", missing=why)]
    saved = []
    for page in itertools.chain(
        training_pages(experiment, config),
        recorded_pages(args, experiment, config) if recording.is_file() else unrecorded,
        probe_pages.pages(probed, title_of(config)),
    ):
        save(page, folder, formats_of(args))
        png = (folder / f"{page.name}.png").read_bytes() if page.figure is not None else None
        for warning in page.warnings:
            stderr.print(f"note: {page.title}: {warning}")
        saved.append(SavedPage(page._replace(figure=None), png))  # the figure's memory is released
    path = folder / "collected.json"
    collected = _read(path, COLLECTED, "collect") if path.exists() else {}
    options = {f"{part}.{key}": value for part, values in config.to_dict().items() for key, value in values.items()}
    settings = {
        "Recording": {key: collected[key] for key in RECORDED if key in collected} or {"recording": "unknown"},
        "Configuration": options,
        "Versions at training": experiment.versions(),
        "Versions at analysis": versions(),
    }
    lead = f"Experiment {name}: {title_of(config)}, learner {config.learner.name}, seed {config.run.seed}."
    text = render(saved, title=f"{name}: {title_of(config)}", lead=lead, settings=settings, notes=notes)
    path = folder / "report.html"
    write_bytes_atomic(path, text.encode())
    missing = [page for page, _ in saved if page.missing]
    for page in missing:
        stdout.print(f"{page.title}: {page.missing}")
    stdout.print(f"{len(saved) - len(missing)} pages, {path.stat().st_size / 2**20:.1f} MB: {path}")


# The files with the settings of the results, what they hold, and the stage that writes them.
RESULTS = (("collected.json", COLLECTED, "collect"), ("probes.json", PROBES, "probe"))
RECORDED = [key.removesuffix("?") for key in COLLECTED]


def _read(path: Path, schema: Schema, stage: str) -> Record:
    """The checked content of a JSON file of analysis/. Raises: ConfigError."""
    record = read_json(path)
    check_json(record, schema, path, f"run analyze {stage} again")
    return record


def _check_settings(
    args: argparse.Namespace, given: Mapping[str, object], stored: Record, config: Config, name: str, stage: str
) -> None:
    """Refuse the options of `report` that ask for other results than those that are there. Raises: ConfigError."""
    wanted = {key: value for key, value in given.items() if stage in STAGES_OF[key]}
    for idle in ("device", "threads"):
        wanted.pop(idle, None)
    if {"policy", "lesion"} & wanted.keys():
        wanted["acting"] = acting(load_policy(args, name)[2])
    if "checkpoint" in wanted and "network" in stored:
        wanted["network"] = network_key(
            Experiment(name, Path(args.experiments_dir)).checkpoint(args.checkpoint), config
        )
        del wanted["checkpoint"]
    for key, value in wanted.items():
        if key not in ("policy", "lesion") and stored.get(key, value if key == "format" else None) != value:
            shown = {"network": "checkpoint", "acting": "policy or lesion"}.get(key, "--" + key.replace("_", "-"))
            raise ConfigError(
                f"the results of analyze {stage} are there already, with another {shown}; run analyze {stage} with "
                "these options first, or leave them out"
            )


def outdated_notes(checkpoint: Path, folder: Path, config: Config) -> list[str]:
    """A sentence for each result that is of other weights than the checkpoint, or older where that is unknown."""
    notes = []
    for file, settings, schema, stage in (
        ("activity.npz", "collected.json", COLLECTED, "collect"),
        ("probes.json", "probes.json", PROBES, "probe"),
    ):
        path = folder / file
        if not path.is_file():
            continue
        stored = _read(folder / settings, schema, stage) if (folder / settings).exists() else {}
        reason = f"is older than {checkpoint.name}" if path.stat().st_mtime < checkpoint.stat().st_mtime else ""
        if "network" in stored:
            other = stored["network"] != network_key(checkpoint, config)
            reason = f"is not of {checkpoint.name} as it is now" if other else ""
        if reason:
            notes.append(f"{file} {reason}: repeat analyze {stage} to analyse the current agent.")
            stderr.print(f"note: {notes[-1]}")
    return notes
