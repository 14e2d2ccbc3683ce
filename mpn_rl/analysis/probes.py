"""Experiments on a trained network: longer delays, noise, lesions, frozen plasticity. Held inputs: `dynamics.py`.

A probe plays greedy episodes in which something is done to the agent, the same episodes at every point of a curve, and
gives the task's own score with its 95 % interval: the share of trials done right, or the return where a task scores no
trials. What a task or core cannot give raises `confidence_intervals.MissingDataError`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.contracts import state_parts
from mpn_rl.options import ConfigError
from mpn_rl.rollout import Intervention, evaluate, run_scripted
from mpn_rl.tasks.lanes import EpisodeSeeds
from neurogym_wrapper import make_neurogym

LANES = 64
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the trained delay
DELAYS = (0, 200, 500, 1000, 2000, 4000)  # ms, where training had none
NOISE = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)  # in standard deviations of what the agent saw, or of its state
STEPS = 24  # points of a curve over the trial, at most
STARTS = 32  # states that are kept, for `dynamics` to begin from


class Curve(NamedTuple):
    """The score over x (k,): y holds arrays (k,). What x and y are; chance (nan: unknown); x in training, or nan;
    marks: {period: the step at which it begins}, for curves over the trial."""

    x: np.ndarray
    y: Estimate
    xlabel: str
    ylabel: str
    chance: float = np.nan
    trained: float = np.nan
    marks: dict[str, float] = {}  # noqa: RUF012 (never changed)


class Subject:
    """A trained network with its task, and what it saw and held in undisturbed episodes.

    Args:
        network, config: as `loading.load_policy` returns them.
        trials: NeuroGym trials at each point of a curve, at least; other tasks play LANES episodes.
        seed: of the episodes, which neither training nor the choice of best_model.pt ever uses.
    Attributes:
        dt_ms: 0 where the task has no clock. median_trial_steps: of a trial. marks: first step of each period.
        baseline: the undisturbed score. seen: mean observation at each step of the trial, (median_trial_steps, D).
        obs_sd, state_sd: root mean square deviation of observations and of each part of the state from their means.
        states: up to STARTS states that it passed through, as parts (n, ...). chance: see `chance_level`.
    """

    def __init__(self, network: Any, config: cfg.Config, trials: int = 400, seed: int = 0) -> None:
        self.network, self.config, self.trials, self.seed = network, config, trials, seed
        env = registry.make_env(config.env)
        self.neurogym = isinstance(config.env, cfg.NeuroGymConfig)
        self.dt_ms = float(env.dt_ms)
        self.median_trial_steps, self.marks = (
            _typical(env) if self.neurogym else (registry.step_limit(config.env) or 200, {})
        )
        self.memory = memory_parts(network, config)
        watch = _Watch(self.median_trial_steps)
        self.baseline, self.scored = self._play(config.env, watch)
        self.seen, self.obs_sd, self.state_sd = watch.seen(), watch.obs.sd(), [moment.sd() for moment in watch.state]
        self.states = watch.sample()
        self.chance = chance_level(config, seed) if self.neurogym and self.scored else np.nan

    @property
    def ylabel(self) -> str:
        return "accuracy" if self.scored else "return per episode"

    def score(self, intervene: Intervention | None = None, env: cfg.EnvConfig | None = None) -> Estimate:
        """The score of greedy episodes with an intervention, or on another variant of the task."""
        return self._play(env or self.config.env, intervene)[0]

    def _play(self, env: Any, intervene: Intervention | None) -> tuple[Estimate, bool]:
        first = registry.make_env(env)
        episodes = LANES
        if self.neurogym:
            steps = _typical(first)[0]
            per_episode = max(1, (env.max_episode_steps or steps) // steps)
            episodes = -(-self.trials // per_episode)
        envs = [first, *(registry.make_env(env) for _ in range(min(LANES, episodes) - 1))]
        source = EpisodeSeeds("eval", self.seed)
        seeds = [source() for _ in range(episodes)]
        result = evaluate(self.network, envs, seeds, self.config.run.reset_state_on_trial, intervene)
        scored = len(result.performance) > 0
        return confidence_intervals.mean(result.performance if scored else result.returns), scored

    def curve(self, x: Iterable[float], make: Callable[[float], Intervention], xlabel: str, **more: Any) -> Curve:
        """The score at each x, with the intervention that `make` gives for it."""
        points = np.array(list(x), float)
        y = stacked([self.score(make(float(value))) for value in points])
        return Curve(points, y, xlabel, self.ylabel, self.chance, **more)

    def need_memory(self) -> list[int]:
        """Places of the memory in the state. Raises: MissingDataError where there is none that changes."""
        if not self.memory:
            why = "has no state" if not any(part.numel() for part in self.states) else "has frozen plasticity"
            raise MissingDataError(f"the core {self.config.core.name} {why}, so there is no memory to act on")
        return self.memory


def stacked(parts: Sequence[Estimate]) -> Estimate:
    return Estimate(*(np.array([part[field] for part in parts], float) for field in range(4)))


def _typical(env: Any, trials: int = 50) -> tuple[int, dict[str, float]]:
    """Steps of the median trial, and the median first step of each period."""
    env.reset(seed=0)
    lengths, starts = [], []
    for _ in range(trials):
        lengths.append(env.trial_steps)
        starts.append({name: start for name, (start, end) in env.periods.items() if end > start})
        env.new_trial()
    names = [name for name in starts[0] if all(name in start for start in starts)]
    marks = {name: float(np.median([start[name] for start in starts])) for name in names}
    return int(np.median(lengths)), dict(sorted(marks.items(), key=lambda item: item[1]))


def memory_parts(network: Any, config: cfg.Config) -> list[int]:
    """Places in the state of what holds the memory: M of an MPN, the traces of backpropamine, all of an RNN's state."""
    if getattr(config.core, "freeze_plasticity", False):
        return []
    names = list(network.core.state_arrays(network.init_state(1)))
    plastic = [i for i, name in enumerate(names) if re.fullmatch(r"M\d*|[HE]", name)]
    return plastic or list(range(len(names)))


class _Moments:
    """Sums for the mean and the root mean square deviation of arrays over their first axis."""

    def __init__(self) -> None:
        self.n = 0
        self.total = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        values = values.double()
        self.n += len(values)
        self.total = self.total.to(values.device) + values.sum(0)
        self.squares = self.squares.to(values.device) + (values**2).sum(0)

    def sd(self) -> float:
        mean = self.total / max(self.n, 1)
        variance = self.squares / max(self.n, 1) - mean**2
        return float(variance.clamp(min=0).mean().sqrt()) if variance.numel() else 0.0


class _Watch:
    """An intervention that changes nothing and remembers what passed."""

    def __init__(self, steps: int) -> None:
        self.by_step = [_Moments() for _ in range(steps)]
        self.obs = _Moments()
        self.state: list[_Moments] = []
        self.kept: list[tuple[Tensor, ...]] = []

    def __call__(self, obs: Tensor, state: Any, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, Any]:
        parts = state_parts(state)
        self.state = self.state or [_Moments() for _ in parts]
        self.obs.add(obs)
        for moment, part in zip(self.state, parts, strict=True):
            moment.add(part)
        for step in np.unique(since[since < len(self.by_step)]):
            self.by_step[step].add(obs[torch.from_numpy(since == step)])
        row = len(self.kept) % len(obs)
        self.kept.append(tuple(part[row : row + 1].clone() for part in parts))
        return obs, state

    def seen(self) -> np.ndarray:
        return np.array([moment.total.cpu().numpy() / moment.n for moment in self.by_step if moment.n])

    def sample(self) -> list[Tensor]:
        chosen = [self.kept[i] for i in np.unique(np.linspace(0, len(self.kept) - 1, STARTS).astype(int))]
        return [torch.cat(parts) for parts in zip(*chosen, strict=True)]


# --- delays -------------------------------------------------------------------------------------------------


def chance_level(config: cfg.Config, seed: int = 0) -> float:
    """One over the number of right actions that the decision may have; nan where the task does not tell them."""
    right: set[int] = set()

    def right_action(env: Any, rng: np.random.Generator) -> int:
        if env.at_decision:
            right.add(env.ground_truth_action())
        return max(env.ground_truth_action(), 0)

    source = EpisodeSeeds("eval", seed)
    run_scripted(right_action, registry.make_env(config.env), [source() for _ in range(10)])
    return np.nan if len(right) < 2 or min(right) < 0 else 1.0 / len(right)


def delay_curve(subject: Subject, delays: Sequence[float] | None = None) -> Curve:
    """Accuracy against the length of the task's delay, in ms; by default from half to eight times the trained one.

    Episodes are made long enough for three trials. Raises: MissingDataError where the task has no delay of its own.
    """
    if not subject.neurogym:
        raise MissingDataError("the task has no delay period")
    env_config: Any = subject.config.env
    env = make_neurogym(**registry.options(env_config))
    names = [name for name in env.periods if "delay" in name]
    if not names:
        raise MissingDataError("the task has no delay period")
    lengths = []
    for _ in range(50):
        start, end = env.periods[names[0]]
        lengths.append((end - start) * env.dt_ms)
        env.new_trial()
    trained = float(np.mean(lengths))
    if delays is None:
        delays = [scale * trained for scale in SCALES] if trained else DELAYS
    steps = sorted({round(delay / env.dt_ms) for delay in delays})
    scores = []
    for count in steps:
        timing = {**env_config.env_args.get("timing", {}), **dict.fromkeys(names, count * env.dt_ms)}
        longer = dataclasses.replace(env_config, env_args={**env_config.env_args, "timing": timing})
        try:
            changed = make_neurogym(**registry.options(longer))
        except ConfigError as error:
            raise MissingDataError("the task's delay cannot be set: it takes no `timing`") from error
        start, end = changed.periods[names[0]]
        if end - start != count:
            raise MissingDataError("the task's delay cannot be set: it ignores `timing`")
        limit = max(env_config.max_episode_steps or 0, 3 * _typical(changed)[0])
        scores.append(subject.score(env=dataclasses.replace(longer, max_episode_steps=limit)))
    x = np.array(steps) * env.dt_ms
    return Curve(x, stacked(scores), "delay (ms)", subject.ylabel, subject.chance, trained)


def memory_horizon(curve: Curve) -> float:
    """The longest delay up to which the interval stays above chance; nan where it never does.

    Raises: MissingDataError where chance is not known.
    """
    if not np.isfinite(curve.chance):
        raise MissingDataError("the task does not tell its right actions, so chance is unknown")
    above = np.asarray(curve.y.low) > curve.chance
    held = int(np.argmin(above)) if not above.all() else len(above)
    return float(curve.x[held - 1]) if held else np.nan


# --- noise, lesions, frozen plasticity ----------------------------------------------------------------------


def input_noise_curve(subject: Subject, levels: Sequence[float] = NOISE) -> Curve:
    """The score against Gaussian noise on every entry of the observation, in standard deviations of observations."""

    def make(level: float) -> Intervention:
        generator = torch.Generator().manual_seed(subject.seed)

        def intervene(obs: Tensor, state: Any, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, Any]:
            noise = torch.randn(obs.shape, generator=generator).to(obs.device)
            return obs + level * subject.obs_sd * noise, state

        return intervene

    return subject.curve(levels, make, "noise on the observation (sd of observations)")


def state_noise_curve(subject: Subject, levels: Sequence[float] = NOISE) -> Curve:
    """The score against Gaussian noise on every entry of the memory at every step, in the memory's own deviations."""
    parts = subject.need_memory()

    def make(level: float) -> Intervention:
        generator = torch.Generator().manual_seed(subject.seed)

        def intervene(obs: Tensor, state: Any, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, Any]:
            def noisy(place: int, part: Tensor) -> Tensor:
                noise = torch.randn(part.shape, generator=generator).to(part.device)
                return part + level * subject.state_sd[place] * noise

            return obs, changed(state, parts, noisy)

        return intervene

    return subject.curve(levels, make, "noise on the memory at every step (sd of the memory)")


def changed(state: Any, places: Sequence[int], change: Callable[[int, Tensor], Tensor]) -> Any:
    """The state with change(place, part) in place of its parts at `places`."""
    parts = [change(i, part) if i in places else part for i, part in enumerate(state_parts(state))]
    return tuple(parts) if isinstance(state, tuple) else parts[0]


def steps_of_trial(subject: Subject) -> np.ndarray:
    """The steps at which lesions are made: all of the median trial, or STEPS of them."""
    return np.unique(np.linspace(0, subject.median_trial_steps - 1, STEPS).round().astype(int))


def lesion_curve(subject: Subject) -> Curve:
    """The score when the memory is set back to its start before one step of every trial, for each step in turn."""
    parts = subject.need_memory()
    fresh = state_parts(subject.network.init_state(1))

    def make(at: float) -> Intervention:
        def intervene(obs: Tensor, state: Any, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, Any]:
            rows = torch.from_numpy(since == at).to(obs.device)
            return obs, changed(state, parts, lambda i, part: torch.where(_over(rows, part), fresh[i], part))

        return intervene

    label = "step of the trial before which the memory is erased"
    return subject.curve(steps_of_trial(subject), make, label, marks=subject.marks)


def frozen_curve(subject: Subject) -> Curve:
    """The score when the memory stays, from one step of the trial to its end, as it was before that step."""
    parts = subject.need_memory()

    def make(at: float) -> Intervention:
        held: dict[int, list[Tensor]] = {}  # episode -> the memory's parts

        def intervene(obs: Tensor, state: Any, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, Any]:
            now = state_parts(state)
            for row in np.flatnonzero(since == at):
                held[int(episode[row])] = [now[i][row].clone() for i in parts]

            def hold(place: int, part: Tensor) -> Tensor:
                part = part.clone()
                for row in np.flatnonzero(since > at):
                    part[row] = held[int(episode[row])][parts.index(place)]
                return part

            return obs, changed(state, parts, hold)

        return intervene

    label = "step of the trial from which the memory is held"
    return subject.curve(steps_of_trial(subject), make, label, marks=subject.marks)


def _over(rows: Tensor, part: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (part.ndim - 1))


# --- all of them --------------------------------------------------------------------------------------------

CURVES: dict[str, Callable[[Subject], Curve]] = {
    "delay": delay_curve,
    "input_noise": input_noise_curve,
    "state_noise": state_noise_curve,
    "lesion": lesion_curve,
    "frozen": frozen_curve,
}
