"""Probes of a trained network: longer delays, noise, lesions, frozen plasticity. Constant inputs: `dynamics.py`.

A probe plays greedy episodes with an intervention, the same episodes at every point of a curve. The result is the
task's own score with its 95 % interval: the share of correct trials, or the return where a task scores no trials.
Where a task or core lacks what a probe needs, it raises `confidence_intervals.MissingDataError`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.analysis import confidence_intervals
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.fixed_points import MOST_SHOWN
from mpn_rl.contracts import State, state_parts
from mpn_rl.networks.encoder import AgentNetwork
from mpn_rl.options import ConfigError
from mpn_rl.rollout import Intervention, evaluate, run_scripted
from neurogym_wrapper import NeuroGymWrapper, make_neurogym

LANES = 64
LONGEST_PROBED = 200  # steps of an episode of a task without a time limit: a curve plays hundreds of episodes
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)  # multiples of the trained delay
DELAYS = (0, 200, 500, 1000, 2000, 4000)  # ms, for tasks that were trained without a delay
NOISE = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)  # in standard deviations of the observations or of the state
STEPS = 24  # largest number of points of a curve over the trial
STARTS = 32  # number of states that are kept as starts for `dynamics`


class Curve(NamedTuple):
    """The score y (arrays (k,)) over x (k,), with their axis labels.

    chance: the score of the best constant answer, nan where unknown. trained: x in training, nan where there is none.
    marks: {period: the step at which it begins}, for curves over the trial.
    """

    x: np.ndarray
    y: Estimate[np.ndarray]
    xlabel: str
    ylabel: str
    chance: float = np.nan
    trained: float = np.nan
    marks: Mapping[str, float] = {}


class Decay(NamedTuple):
    """A fit of p(d) = c + (a - c) exp(-d / tau) to the accuracy p at delay d, with chance c.

    tau: with its 95 % interval; a value or end of inf is censored: the delays are too short to see a decay. n: trials.
    start: a.
    """

    tau: Estimate[float]
    start: float


class Subject:
    """A trained network with its task, and its observations and states in episodes without intervention.

    Args:
        network, config: as `evaluation.load_policy` returns them.
        trials: smallest number of NeuroGym trials at each point of a curve; other tasks play LANES episodes, each of
            at most LONGEST_PROBED steps where the task has no time limit.
        seed: of the episodes; neither training nor the choice of best_model.pt uses these.

    Attributes:
        dt_ms: duration of a step, 0 where the task has no clock.
        median_trial_steps: length of the median trial.
        marks: {period: its first step}.
        baseline: the score without intervention.
        seen: mean observation at each step of the trial, (median_trial_steps, D).
        shown: for each step of the trial, how often each observation occurs, {float32 as bytes: number}; None where
            more than MOST_SHOWN differ, as under noise.
        obs_sd, state_sd: root mean square deviation of observations and of each part of the state from their means.
        states: up to STARTS visited states, as parts (n, ...).
        chance: see `chance_level`.
    """

    def __init__(self, network: AgentNetwork, config: cfg.Config, trials: int = 400, seed: int = 0) -> None:
        if isinstance(config.env, cfg.GymnasiumConfig) and registry.step_limit(config.env) is None:
            env_config = dataclasses.replace(config.env, max_episode_steps=LONGEST_PROBED)
            config = dataclasses.replace(config, env=env_config)
        self.network, self.config, self.trials, self.seed = network, config, trials, seed
        env = registry.make_env(config.env)
        self.neurogym = isinstance(config.env, cfg.NeuroGymConfig)
        self.dt_ms = float(env.dt_ms)
        self.median_trial_steps, self.marks = (
            _typical(make_neurogym(**registry.task_options(config.env)))
            if self.neurogym
            else (registry.step_limit(config.env) or LONGEST_PROBED, {})
        )
        self.memory = memory_parts(network, config)
        watch = _Watch(self.median_trial_steps)
        self.baseline, self.scored = self._play(config.env, watch)
        self.seen, self.obs_sd, self.state_sd = watch.seen(), watch.obs.sd(), [moment.sd() for moment in watch.state]
        self.shown = watch.shown[: len(self.seen)]
        self.states = watch.sample()
        self.chance = self.chance_in(config.env) if self.scored else np.nan

    @property
    def ylabel(self) -> str:
        return "accuracy" if self.scored else "return per episode"

    def score(self, intervene: Intervention | None = None, env: cfg.EnvConfig | None = None) -> Estimate[float]:
        """The score of greedy episodes, with an intervention or on a variant of the task."""
        return self._play(env or self.config.env, intervene)[0]

    def chance_in(self, env: cfg.EnvConfig) -> float:
        """`chance_level` on a variant of the task, in the episodes that the agent plays; nan outside NeuroGym."""
        return chance_level(env, self._seeds(env)) if isinstance(env, cfg.NeuroGymConfig) else np.nan

    def _seeds(self, env: cfg.EnvConfig) -> list[int]:
        episodes = LANES
        if isinstance(env, cfg.NeuroGymConfig):
            steps = _typical(make_neurogym(**registry.task_options(env)))[0]
            per_episode = max(1, (env.max_episode_steps or steps) // steps)
            episodes = -(-self.trials // per_episode)
        source = registry.eval_seeds(self.config, self.seed)
        return [source() for _ in range(episodes)]

    def _play(self, env: cfg.EnvConfig, intervene: Intervention | None) -> tuple[Estimate[float], bool]:
        """The mean score per trial, else per episode, and whether the task scores trials."""
        seeds = self._seeds(env)
        envs = [registry.make_env(env) for _ in range(min(LANES, len(seeds)))]
        result = evaluate(self.network, envs, seeds, self.config.run.reset_state_on_trial, intervene)
        scored = len(result.performance) > 0
        if scored:
            return confidence_intervals.mean_score(result.performance), True
        return confidence_intervals.mean(result.returns), False

    def curve(
        self, x: Iterable[float], make: Callable[[float], Intervention], xlabel: str, marks: Mapping[str, float] = {}
    ) -> Curve:
        """The score at each x, with the intervention make(x)."""
        points = np.array(list(x), float)
        y = confidence_intervals.gather([self.score(make(float(value))) for value in points])
        return Curve(points, y, xlabel, self.ylabel, self.chance, marks=marks)

    def need_memory(self) -> list[int]:
        """`memory_parts` of the network. Raises: MissingDataError where no part of the state is a memory."""
        if not self.memory:
            why = "has no state" if not any(part.numel() for part in self.states) else "has frozen plasticity"
            raise MissingDataError(f"the core {self.config.core.name} {why}, so there is no memory to act on")
        return self.memory


def _typical(env: NeuroGymWrapper, trials: int = 50) -> tuple[int, dict[str, float]]:
    """Length of the median trial in steps, and the median first step of each period."""
    env.reset(seed=0)
    lengths, starts = [], []
    for _ in range(trials):
        lengths.append(env.trial_steps)
        starts.append({name: start for name, (start, end) in env.periods.items() if end > start})
        env.new_trial()
    names = [name for name in starts[0] if all(name in start for start in starts)]
    marks = {name: float(np.median([start[name] for start in starts])) for name in names}
    return int(np.median(lengths)), dict(sorted(marks.items(), key=lambda item: item[1]))


def memory_parts(network: AgentNetwork, config: cfg.Config) -> list[int]:
    """Indices of the memory among the parts of the state: M, the traces of backpropamine, or all of an RNN's state."""
    names = list(network.core.state_arrays(network.init_state(1)))
    plastic = [i for i, name in enumerate(names) if re.fullmatch(r"M[xh]?\d*|[HE]", name)]
    if isinstance(config.core, cfg.MPNConfig) and config.core.freeze_plasticity:
        return [i for i in range(len(names)) if i not in plastic]  # h of a recurrent MPN, else nothing
    return plastic or list(range(len(names)))


class _Moments:
    """Running sums for the mean and the root mean square deviation over the first axis."""

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
    """An intervention that changes nothing and records observations and states."""

    def __init__(self, steps: int) -> None:
        self.by_step = [_Moments() for _ in range(steps)]
        self.shown: list[Counter[bytes] | None] = [Counter() for _ in range(steps)]
        self.obs = _Moments()
        self.state: list[_Moments] = []
        self.kept: list[tuple[Tensor, ...]] = []

    def __call__(self, obs: Tensor, state: State, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, State]:
        parts = state_parts(state)
        self.state = self.state or [_Moments() for _ in parts]
        self.obs.add(obs)
        for moment, part in zip(self.state, parts, strict=True):
            moment.add(part)
        for step in np.unique(since[since < len(self.by_step)]):
            own = obs[torch.from_numpy(since == step)]
            self.by_step[step].add(own)
            if (counts := self.shown[step]) is not None:
                counts.update(row.tobytes() for row in own.cpu().numpy().astype(np.float32))
                self.shown[step] = counts if len(counts) <= MOST_SHOWN else None
        row = len(self.kept) % len(obs)
        self.kept.append(tuple(part[row : row + 1].clone() for part in parts))
        return obs, state

    def seen(self) -> np.ndarray:
        return np.array([moment.total.cpu().numpy() / moment.n for moment in self.by_step if moment.n])

    def sample(self) -> list[Tensor]:
        chosen = [self.kept[i] for i in np.unique(np.linspace(0, len(self.kept) - 1, STARTS).astype(int))]
        return [torch.cat(parts) for parts in zip(*chosen, strict=True)]


# --- delays -------------------------------------------------------------------------------------------------


def chance_level(env_config: cfg.EnvConfig, seeds: Sequence[int]) -> float:
    """The score of the best constant answer at every decision, of the three that are right at most of them.

    It is played in the same episodes as the agent, so an agent that always answers the same scores no higher. Outside
    decisions, the task's right action is taken. nan where the task does not give its right actions, does not score, or
    has one right action only.

    Args: env_config: of a NeuroGym task. seeds: of the episodes.
    """
    answers: Counter[int] = Counter()

    def right_action(env: gymnasium.Env, rng: np.random.Generator) -> int:
        if env.at_decision:
            answers[env.ground_truth_action()] += 1
        return max(env.ground_truth_action(), 0)

    def constant(answer: int, env: gymnasium.Env, rng: np.random.Generator) -> int:
        return answer if env.at_decision else max(env.ground_truth_action(), 0)

    env = make_neurogym(**registry.task_options(env_config))
    if not env.has_ground_truth or not isinstance(env.action_space, gymnasium.spaces.Discrete):
        return np.nan
    run_scripted(right_action, env, seeds)
    if len(answers) < 2 or min(answers) < 0:
        return np.nan
    scores = [run_scripted(partial(constant, answer), env, seeds).performance for answer, _ in answers.most_common(3)]
    return float(max(map(np.mean, scores))) if min(map(len, scores)) else np.nan


def delay_curve(subject: Subject, delays: Sequence[float] | None = None) -> Curve:
    """Accuracy against the length of the delay; episodes are long enough for three trials.

    Its chance is the highest `chance_level` at any of the delays.

    Args: delays: in ms; None: from half to eight times the trained delay.

    Raises: MissingDataError where the task has no delay, or its delay cannot be set.
    """
    env_config = subject.config.env
    if not isinstance(env_config, cfg.NeuroGymConfig):
        raise MissingDataError("the task has no delay period")
    env = make_neurogym(**registry.task_options(env_config))
    names = [name for name in env.periods if "delay" in name]
    if not names:
        raise MissingDataError("the task has no delay period")
    lengths = []
    env.reset(seed=0)
    for _ in range(50):
        start, end = env.periods[names[0]]
        lengths.append((end - start) * env.dt_ms)
        env.new_trial()
    trained = float(np.mean(lengths))
    if delays is None:
        delays = [scale * trained for scale in SCALES] if trained else DELAYS
    steps = sorted({round(delay / env.dt_ms) for delay in delays})
    given, scores, chances = env_config.env_args.get("timing"), [], []
    for count in steps:
        timing = {**(given if isinstance(given, dict) else {}), **dict.fromkeys(names, count * env.dt_ms)}
        longer = dataclasses.replace(env_config, env_args={**env_config.env_args, "timing": timing})
        try:
            changed = make_neurogym(**registry.task_options(longer))
        except ConfigError as error:
            raise MissingDataError("the task's delay cannot be set: it takes no `timing`") from error
        start, end = changed.periods[names[0]]
        if end - start != count:
            raise MissingDataError("the task's delay cannot be set: it ignores `timing`")
        limit = max(env_config.max_episode_steps or 0, 3 * _typical(changed)[0])
        longer = dataclasses.replace(longer, max_episode_steps=limit)
        scores.append(subject.score(env=longer))
        chances.append(subject.chance_in(longer) if subject.scored else np.nan)
    x = np.array(steps) * env.dt_ms
    chance = float(np.max(chances))
    return Curve(x, confidence_intervals.gather(scores), "delay (ms)", subject.ylabel, chance, trained)


def memory_horizon(curve: Curve) -> float:
    """The longest delay up to which the 95 % interval stays above chance; nan where it never does.

    It is censored, a lower bound, where it is the last delay of the curve.

    Raises: MissingDataError where chance is unknown.
    """
    if not np.isfinite(curve.chance):
        raise MissingDataError("the task does not give its right actions, so chance is unknown")
    above = np.asarray(curve.y.low) > curve.chance
    held = int(np.argmin(above)) if not above.all() else len(above)
    return float(curve.x[held - 1]) if held else np.nan


def memory_decay(curve: Curve) -> Decay:
    """Fit an exponential decay of the accuracy to chance, by maximum likelihood on a grid.

        p(d) = c + (a - c) exp(-d / tau),   c <= a <= 1

    The interval of tau holds all values whose best likelihood over a is not rejected (likelihood ratio, 1 degree of
    freedom, 5 %). tau is searched from a tenth of the shortest delay to a hundred times the longest; an end of the
    interval at an end of this range is 0 or inf.

    Raises: MissingDataError where chance is unknown, for fewer than three delays, or where the accuracy does not exceed
        chance (likelihood ratio, 2 degrees of freedom).
    """
    if not np.isfinite(curve.chance):
        raise MissingDataError("the task does not give its right actions, so chance is unknown")
    if len(curve.x) < 3:
        raise MissingDataError(f"a decay needs three delays, the curve has {len(curve.x)}")
    n, delays, chance = np.asarray(curve.y.n, float), np.asarray(curve.x, float), min(curve.chance, 1 - 1e-6)
    shortest, longest = np.min(delays[delays > 0], initial=np.inf), delays.max()
    taus, starts = np.geomspace(0.1 * shortest, 100 * longest, 250), np.linspace(chance, 1 - 1e-6, 80)
    p = chance + (starts[:, None, None] - chance) * np.exp(-delays / taus[:, None])  # (starts, taus, delays)
    right = np.asarray(curve.y.value) * n
    likelihood = (right * np.log(np.maximum(p, 1e-9)) + (n - right) * np.log1p(-p)).sum(axis=-1)
    best = likelihood.max()
    if 2 * (best - likelihood[0].max()) < 5.99:  # starts[0] is chance
        raise MissingDataError("the accuracy does not exceed chance")
    place = np.unravel_index(likelihood.argmax(), likelihood.shape)
    kept = np.flatnonzero(2 * (best - likelihood.max(axis=0)) < 3.84)
    low = 0.0 if kept[0] == 0 else taus[kept[0]]
    high, value = (np.inf if at == len(taus) - 1 else taus[at] for at in (kept[-1], place[1]))
    return Decay(Estimate(float(value), float(low), float(high), int(n.sum())), float(starts[place[0]]))


# --- noise, lesions, frozen plasticity ----------------------------------------------------------------------


def input_noise_curve(subject: Subject, levels: Sequence[float] = NOISE) -> Curve:
    """The score under Gaussian noise on every entry of the observation; `levels` are in `obs_sd`."""

    def make(level: float) -> Intervention:
        generator = torch.Generator().manual_seed(subject.seed)

        def intervene(obs: Tensor, state: State, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, State]:
            noise = torch.randn(obs.shape, generator=generator).to(obs.device)
            return obs + level * subject.obs_sd * noise, state

        return intervene

    return subject.curve(levels, make, "noise on the observation (sd of observations)")


def state_noise_curve(subject: Subject, levels: Sequence[float] = NOISE) -> Curve:
    """The score under Gaussian noise on every entry of the memory at every step; `levels` are in `state_sd`."""
    parts = subject.need_memory()

    def make(level: float) -> Intervention:
        generator = torch.Generator().manual_seed(subject.seed)

        def intervene(obs: Tensor, state: State, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, State]:
            def noisy(place: int, part: Tensor) -> Tensor:
                noise = torch.randn(part.shape, generator=generator).to(part.device)
                return part + level * subject.state_sd[place] * noise

            return obs, changed(state, parts, noisy)

        return intervene

    return subject.curve(levels, make, "noise on the memory at every step (sd of the memory)")


def changed(state: State, places: Sequence[int], change: Callable[[int, Tensor], Tensor]) -> State:
    """The state with change(place, part) instead of each part at `places`."""
    parts = [change(i, part) if i in places else part for i, part in enumerate(state_parts(state))]
    return tuple(parts) if isinstance(state, tuple) else parts[0]


def steps_of_trial(subject: Subject) -> np.ndarray:
    """The steps of a lesion curve: all steps of the median trial, or STEPS evenly spaced ones."""
    return np.unique(np.linspace(0, subject.median_trial_steps - 1, STEPS).round().astype(int))


def lesion_curve(subject: Subject) -> Curve:
    """The score when the memory is reset to its initial value before one step of every trial, for each step."""
    parts = subject.need_memory()
    fresh = state_parts(subject.network.init_state(1))

    def make(at: float) -> Intervention:
        def intervene(obs: Tensor, state: State, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, State]:
            rows = torch.from_numpy(since == at).to(obs.device)
            return obs, changed(
                state, parts, lambda i, part: torch.where(rows.view(-1, *[1] * (part.ndim - 1)), fresh[i], part)
            )

        return intervene

    label = "step of the trial before which the memory is erased"
    return subject.curve(steps_of_trial(subject), make, label, marks=subject.marks)


def swapped_curve(subject: Subject) -> Curve:
    """The score when the memory is that of another trial at the same step, before one step of every trial.

    It occurs in undisturbed trials, unlike an erased one, but says nothing about the trial itself. Trials that reach
    the step together swap in a circle; a trial that reaches it alone gets the memory of the one before.
    """
    parts = subject.need_memory()

    def make(at: float) -> Intervention:
        before: list[Tensor] = []  # the memory's parts of the last trial that reached the step

        def intervene(obs: Tensor, state: State, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, State]:
            rows = np.flatnonzero(since == at)
            if not len(rows):
                return obs, state
            own = [state_parts(state)[place][rows].clone() for place in parts]
            last = [part[-1:] for part in own] if len(rows) > 1 or not before else list(before)
            before[:] = [part[-1:] for part in own]

            def swap(place: int, part: Tensor) -> Tensor:
                index = parts.index(place)
                part = part.clone()
                part[rows] = torch.cat([last[index], own[index][:-1]])
                return part

            return obs, changed(state, parts, swap)

        return intervene

    label = "step of the trial before which the memory is that of another trial"
    return subject.curve(steps_of_trial(subject), make, label, marks=subject.marks)


def displaced_curve(subject: Subject) -> Curve:
    """The score when the memory is moved in a random direction, as far as erasing moves it, before one step of a trial.

    Each part of the memory moves by Gaussian noise, scaled to its own distance from the initial value.
    """
    parts = subject.need_memory()
    fresh = state_parts(subject.network.init_state(1))

    def make(at: float) -> Intervention:
        generator = torch.Generator().manual_seed(subject.seed)

        def intervene(obs: Tensor, state: State, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, State]:
            hit = torch.from_numpy(since == at).to(obs.device)

            def displace(place: int, part: Tensor) -> Tensor:
                noise = torch.randn(part.shape, generator=generator).to(part.device)
                far, size = ((x.flatten(1).norm(dim=1) * hit).view(-1, *[1] * (part.ndim - 1))
                             for x in (part - fresh[place], noise))  # fmt: skip
                return torch.where(far > 0, part + noise * far / size.clamp(min=1e-12), part)

            return obs, changed(state, parts, displace)

        return intervene

    label = "step of the trial before which the memory is moved at random"
    return subject.curve(steps_of_trial(subject), make, label, marks=subject.marks)


def frozen_curve(subject: Subject) -> Curve:
    """The score when the memory does not change from one step of every trial to its end, for each step."""
    parts = subject.need_memory()

    def make(at: float) -> Intervention:
        held: dict[int, list[Tensor]] = {}  # episode -> the memory's parts

        def intervene(obs: Tensor, state: State, since: np.ndarray, episode: np.ndarray) -> tuple[Tensor, State]:
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


CURVES: dict[str, Callable[[Subject], Curve]] = {
    "delay": delay_curve,
    "input_noise": input_noise_curve,
    "state_noise": state_noise_curve,
    "lesion": lesion_curve,
    "frozen": frozen_curve,
}
# Of `--lesion-controls`: what a lesion does that is not the loss of what this trial has stored.
CONTROLS: dict[str, Callable[[Subject], Curve]] = {"swapped": swapped_curve, "displaced": displaced_curve}
