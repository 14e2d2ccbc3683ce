"""Everything behind `python main.py analyze`: record, draw, probe, compare, report."""

from __future__ import annotations

import argparse
import csv
import fnmatch
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from model_utils import Experiment, jsonable, read_json, versions, write_bytes_atomic, write_json
from mpn_rl import registry
from mpn_rl.analysis.compare_runs import compare_runs, formats_of, plot_plasticity
from mpn_rl.analysis.recording import ActivityWriter, write_npz
from mpn_rl.config import Config
from mpn_rl.evaluation import acting, load_policy, stored_config
from mpn_rl.options import ConfigError
from mpn_rl.reporting import stderr, stdout
from mpn_rl.rollout import record_episodes
from mpn_rl.tasks.lanes import EpisodeSeeds
from mpn_rl.training import history
from neurogym_wrapper import REFERENCES


def analyze(args: argparse.Namespace) -> int:
    """Each stage for each experiment in turn; compare takes all of them together."""
    names = chosen(args)
    for option in ("output", "group_by"):
        if getattr(args, option) is not None and args.stage != "compare":
            raise ConfigError(f"--{option.replace('_', '-')} belongs to analyze compare")
    if args.stage == "compare":
        return compare_runs(args, names)
    stages: dict[str | None, list[Callable]] = {
        None: [collect, plot],
        "collect": [collect],
        "plot": [plot],
        "probe": [probe],
        "report": [report],
    }
    for name in names:
        for run in stages[args.stage]:
            run(args, name)
    if len(names) > 1 and plot in stages[args.stage]:
        plot_plasticity(args, names)
    return 0


def chosen(args: argparse.Namespace) -> list[str]:
    """The experiments that the names and patterns mean, each once. Raises: ConfigError for a pattern without any."""
    names: list[str] = []
    for pattern in args.experiment_name:
        found = [pattern]
        if re.search(r"[*?\[]", pattern):
            found = fnmatch.filter(Experiment.names(args.experiments_dir), pattern)
            if not found:
                raise ConfigError(f"--experiment-name {pattern!r} matches no experiment in {args.experiments_dir}/")
        names += [name for name in found if name not in names]
    return names


# --- collect ------------------------------------------------------------------------------------------------


def collect(args: argparse.Namespace, name: str) -> None:
    """activity.npz: what the agent saw, did and held in its state; network.npz: its weights; collected.json: how."""
    experiment, config, network = load_policy(args, name)
    env = registry.make_env(config.env)
    source = EpisodeSeeds("eval", args.seed)
    options = {
        "epsilon": args.epsilon,
        "precision": args.precision,
        "reset_state_on_trial": config.run.reset_state_on_trial,
    }
    episodes = record_episodes(network, env, [source() for _ in range(args.num_episodes)], **options)
    first = next(episodes)
    if args.color_by:
        import pca_analysis

        pca_analysis.colour_values(first, args.color_by)  # refuses what is not there, before anything is written
    path = experiment.analysis_dir / "activity.npz"
    with ActivityWriter(path.parent, args.states) as writer, Progress(console=stderr) as bar:
        task = bar.add_task(f"recording {name}", total=args.num_episodes)
        for episode in itertools.chain([first], episodes):
            if not writer.add(episode, args.max_megabytes * 2**20):
                taken = writer.episodes
                stderr.print(f"stopped after {taken} episodes: --max-megabytes {args.max_megabytes} is reached")
                break
            bar.advance(task)
        if not writer.episodes:
            raise ConfigError(
                f"--max-megabytes {args.max_megabytes} does not hold one episode; raise it, or keep fewer --states"
            )
        writer.write(path, dt_ms=float(env.dt_ms))
    write_npz(path.with_name("network.npz"), {k: part.cpu().numpy() for k, part in network.state_dict().items()})
    told = {"checkpoint": args.checkpoint, "seed": args.seed, "epsilon": args.epsilon, "acting": acting(network)}
    told |= {"episodes": writer.episodes, "steps": writer.steps, "states": args.states, "versions": versions()}
    write_json(path.with_name("collected.json"), told)
    megabytes = path.stat().st_size / 2**20
    stdout.print(f"{writer.episodes} episodes, {writer.steps:,} steps, {megabytes:.0f} MB: {path}")


# --- plot and probe -----------------------------------------------------------------------------------------


def recorded_pages(args: argparse.Namespace, experiment: Experiment, config: Config) -> Iterator[Any]:
    """The pages of the experiment's recording. Raises: ConfigError where there is none."""
    import pca_analysis
    from mpn_rl.analysis.pages import mechanism_pages, standard_pages

    path = experiment.path / "analysis" / "activity.npz"
    if not path.is_file():
        raise ConfigError(
            f"no recording {path}; make it with: python main.py analyze collect --experiment-name {experiment.name}"
        )
    weights: dict[str, np.ndarray] = {}
    if path.with_name("network.npz").is_file():
        with np.load(path.with_name("network.npz"), allow_pickle=False) as archive:
            weights = {name: archive[name] for name in archive.files}
    recording = standard_pages.Recording(pca_analysis.load_activity(path), config.to_dict(), weights, args.color_by)
    yield from standard_pages.pages(recording)
    yield from mechanism_pages.pages(recording)


def learning_page(experiment: Experiment, config: Config) -> Any:
    """The learning curve from metrics.jsonl."""
    from mpn_rl.analysis.pages import standard_pages

    rows = experiment.read_metrics()
    columns = history(rows)
    keys = {"step": "steps", "reward": "episode_rewards", "length": "episode_lengths", "loss": "losses"}
    keys |= {"accuracy": "accuracies", "epsilon": "epsilons", "entropy": "entropies"}
    return standard_pages.learning_page(
        {name: columns[key] for name, key in keys.items() if key in columns},
        [row for row in rows if row["kind"] == "eval"],
        REFERENCES.get(config.env.env_name, {}),
        title_of(config),
    )


def growth_pages(experiment: Experiment, config: Config) -> list[Any]:
    """How able to learn the networks stayed, from metrics.jsonl, and how the topology grew, from masks.npz."""
    from mpn_rl.analysis.pages import standard_pages

    rows, title = experiment.read_metrics(), title_of(config)
    return [standard_pages.plasticity_page(rows, title), standard_pages.masks_page(experiment.read_masks(), title)]


def title_of(config: Config) -> str:
    return f"{config.env.env_name}, {config.core.name}"


def save(page: Any, folder: Path, formats: Iterable[str]) -> list[Path]:
    """A page's picture in every format and its numbers beside it; a picture that can no longer be made goes."""
    import visualize

    written = []
    for suffix in ("png", "svg", "pdf"):
        path = folder / f"{page.name}.{suffix}"
        if page.figure is not None and suffix in formats:
            written.append(visualize.save_figure(page.figure, path))
        else:
            path.unlink(missing_ok=True)
    about = {"title": page.title, "caption": page.caption, **({"missing": page.missing} if page.missing else {})}
    table = [line._asdict() for line in page.table]
    write_json(folder / f"{page.name}.json", {**about, "table": table, **page.numbers})
    if page.arrays:
        write_npz(folder / f"{page.name}.npz", dict(page.arrays))
    return written


def plot(args: argparse.Namespace, name: str) -> None:
    """Every page of the recording: its picture, its numbers; in one line each what is not available."""
    experiment = Experiment.open(name, args.experiments_dir)
    config = stored_config(experiment)
    written: list[Path] = []
    learned = [learning_page(experiment, config), *growth_pages(experiment, config)]
    for page in (*recorded_pages(args, experiment, config), *learned):
        written += save(page, experiment.analysis_dir, formats_of(args))
        if page.name == "pca_variance":
            for state, told in page.numbers["states"].items():
                share = 100 * sum(told["explained_variance_ratio"][:3])
                ratio = f"participation ratio {told['participation_ratio']:.2f}"
                stdout.print(f"{state}: {ratio}, three components hold {share:.0f} % of the variance")
        if page.missing:
            stdout.print(f"{page.title}: {page.missing}")
    stdout.print("drawn, with the numbers beside them: " + ", ".join(str(path) for path in written))


def probe(args: argparse.Namespace, name: str, tell: bool = True) -> None:
    """probes.json, probes.csv and their pictures: what happens when something is done to the agent."""
    from mpn_rl.analysis import probes
    from mpn_rl.analysis.pages import probe_pages

    experiment, config, network = load_policy(args, name)
    with Progress(console=stderr) as bar:
        task = bar.add_task(f"probing {name}", total=None)

        def note(what: str) -> None:
            bar.update(task, description=f"probing {name}: {what}")

        subject = probes.Subject(network, config, args.num_trials, args.seed)
        found = run_probes(subject, args.delays, note)
    folder = experiment.analysis_dir
    found |= {"seed": args.seed, "checkpoint": args.checkpoint, "versions": versions()}
    write_json(folder / "probes.json", found)
    write_bytes_atomic(folder / "probes.csv", probes_csv(found).encode())
    baseline = subject.baseline
    ends = f"[{baseline.low:.3f}, {baseline.high:.3f}]"
    stdout.print(f"{subject.ylabel} undisturbed {baseline.value:.3f} {ends}, n = {baseline.n:,}")
    for page in probe_pages.pages(jsonable(found), title_of(config)):
        save(page, folder, formats_of(args))
        if tell:
            stdout.print(f"{page.title}: {page.missing or folder / (page.name + '.png')}")


def run_probes(subject: Any, delays: list[float] | None, note: Callable[[str], None]) -> dict[str, Any]:
    """Every probe by name: what it gives as nested dicts, or the sentence that says why it cannot be had."""
    from mpn_rl.analysis import confidence_intervals, dynamics, probes

    found: dict[str, Any] = {"baseline": subject.baseline._asdict(), "measure": subject.ylabel}
    for name, make in probes.CURVES.items():
        note(name.replace("_", " "))
        options = {"delays": delays} if name == "delay" else {}
        curve = confidence_intervals.attempt(partial(make, subject, **options))
        found[name] = curve if isinstance(curve, str) else {**curve._asdict(), "y": curve.y._asdict()}
        if name == "delay" and not isinstance(curve, str):
            found["memory_horizon_ms"] = confidence_intervals.attempt(partial(probes.memory_horizon, curve))
    for name, obs in dynamics.held_inputs(subject).items():
        note(f"{name} held")
        rest = confidence_intervals.attempt(partial(dynamics.relaxation, subject, obs))
        plain = rest if isinstance(rest, str) else {**rest._asdict(), "distance": rest.distance._asdict()}
        found.setdefault("relaxation", {})[name] = plain
        points = confidence_intervals.attempt(partial(dynamics.slow_points_told, subject, obs))
        found.setdefault("fixed_points", {})[name] = points
    return found


def probes_csv(found: dict[str, Any]) -> str:
    """Every curve in long form: probe, x, value, low, high, n."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["probe", "x", "value", "low", "high", "n"])
    for name, curve in found.items():
        if isinstance(curve, dict) and "y" in curve:
            lines = zip(curve["x"], *(curve["y"][field] for field in ("value", "low", "high", "n")), strict=True)
            writer.writerows([name, *(f"{value:g}" for value in line)] for line in lines)
    return text.getvalue()


# --- report -------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, name: str) -> None:
    """analysis/report.html: all pages of an experiment bound together; records and probes first what is missing."""
    from mpn_rl.analysis.pages import probe_pages, standard_pages
    from mpn_rl.analysis.report import Drawn, render

    experiment = Experiment.open(name, args.experiments_dir)
    config = stored_config(experiment)
    checkpoint, folder = experiment.checkpoint(args.checkpoint), experiment.analysis_dir
    trained = checkpoint.is_file()
    if not trained and checkpoint.parent != experiment.path / "checkpoints":
        raise ConfigError(f"no checkpoint {checkpoint}; --checkpoint takes best, final, last or a file's path")
    if trained and not (folder / "activity.npz").is_file():
        collect(args, name)
    if trained and args.probes and not (folder / "probes.json").is_file():
        probe(args, name, tell=False)
    notes = (
        [] if trained else [f"There is no {checkpoint.name}: the agent is untrained, or its checkpoint was removed."]
    )
    notes += stale_notes(checkpoint, folder) if trained else []
    numbers = read_json(folder / "probes.json") if (folder / "probes.json").is_file() else {}
    found = [learning_page(experiment, config), *growth_pages(experiment, config)]
    if (folder / "activity.npz").is_file():
        found += recorded_pages(args, experiment, config)
    else:
        why = "not available: no recording, and no checkpoint to make one with: behaviour, state, memory, weights"
        found.append(standard_pages.Page("recorded", "behaviour", "Recorded activity", missing=why))
    found += probe_pages.pages(numbers, title_of(config))
    drawn = []
    for page in found:
        save(page, folder, formats_of(args))
        picture = folder / f"{page.name}.png"
        drawn.append(Drawn(page._replace(figure=None), picture.read_bytes() if page.figure is not None else None))
    settings = {"Recording": recording_settings(folder), "Configuration": _flat(config.to_dict())}
    settings |= {"Versions of the training": experiment.read_config().get("versions", {}),
                 "Versions of this analysis": versions()}  # fmt: skip
    lead = f"Experiment {name}: {title_of(config)}, learner {config.learner.name}, seed {config.run.seed}."
    text = render(drawn, title=f"{name}: {title_of(config)}", lead=lead, settings=settings, notes=notes)
    path = folder / "report.html"
    write_bytes_atomic(path, text.encode())
    missing = [page for page in found if page.missing]
    for page in missing:
        stdout.print(f"{page.title}: {page.missing}")
    stdout.print(f"{len(found) - len(missing)} pages, {path.stat().st_size / 2**20:.1f} MB: {path}")


def stale_notes(checkpoint: Path, folder: Path) -> list[str]:
    """Sentences on what was measured before the checkpoint was written."""
    stages = {"activity.npz": "collect", "probes.json": "probe"}
    notes = []
    for file, stage in stages.items():
        path = folder / file
        if path.is_file() and path.stat().st_mtime < checkpoint.stat().st_mtime:
            notes.append(
                f"{file} is older than {checkpoint.name}: repeat analyze {stage} to see the agent as it is now."
            )
            stderr.print(f"note: {notes[-1]}")
    return notes


def recording_settings(folder: Path) -> dict[str, Any]:
    """How the recording was made, for the report's end."""
    path = folder / "collected.json"
    told = read_json(path) if path.is_file() else {}
    return {key: value for key, value in told.items() if key != "versions"} or {"recording": "none, or not told"}


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}.{key}": value for part, section in nested.items() for key, value in section.items()}
