"""Evaluation and recording of an agent's episodes. Only this module and the lanes of training step a task."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mpn_rl.contracts import Action, Conditions, Info, Network, State, Task, map_state, state_parts
from mpn_rl.networks.encoder import AgentNetwork
from mpn_rl.options import ConfigError
from mpn_rl.tasks.lanes import per_lane, task_name, trial_score
from mpn_rl.tasks.vector_env import BatchedTask, Policy, play, quarters

AnyTask = TypeVar("AnyTask", bound=Task)


def reset_rows(network: Network, state: State, rows: np.ndarray) -> State:
    """Reset rows of a state to the start of an episode.

    Args:
        network: gives the initial state.
        state: N rows; its tensors are written in place.
        rows: which rows, (N,) bool.
    Returns: the state.
    """
    if not rows.any():
        return state
    index = torch.from_numpy(np.flatnonzero(rows))
    with torch.no_grad():  # a trained M(0) must not connect acting to a graph
        fresh = network.init_state(len(index))
        for part, new in zip(state_parts(state), state_parts(fresh), strict=True):
            part[index.to(part.device)] = new
    return state


class Evaluation(NamedTuple):
    """The results of E episodes; the fields of trials are empty where the task has none."""

    returns: np.ndarray  # (E,)
    lengths: np.ndarray  # (E,)
    performance: np.ndarray  # (trials,) the task's own score of every completed trial
    aborted: np.ndarray  # (trials,) bool
    trial_returns: np.ndarray  # (trials,)
    decision_correct: np.ndarray  # (decision steps with a ground truth,) bool
    quarters: np.ndarray  # (E, 4) hits in each quarter of an episode; (0, 4) where the task reports no hits
    outcomes: np.ndarray = np.empty(0, object)  # (trials not aborted,) {choice, ground_truth, the trial's conditions}

    @property
    def accuracy(self) -> float | None:
        """Mean performance of the trials; None where there are none, or where the task does not score them."""
        mean = float(self.performance.mean()) if len(self.performance) else np.nan
        return None if np.isnan(mean) else mean

    @classmethod
    def pooled(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """The results of several sets of episodes as one."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


def _right_action(info: Info) -> int:
    """The right choice of a step; -1 where the task names none."""
    right = info.get("gt", -1)
    return int(right) if isinstance(right, int | np.integer) else -1


class _Tally:
    """Collects an evaluation step by step."""

    def __init__(self, episodes: int) -> None:
        self.returns, self.lengths = np.zeros(episodes), np.zeros(episodes, int)
        self.trial_return = np.zeros(episodes)
        self.performance: list[float] = []
        self.aborted: list[bool] = []
        self.trial_returns: list[float] = []
        self.decision_correct: list[bool] = []
        self.outcomes: list[dict[str, object]] = []
        self.hits: list[list[bool]] = [[] for _ in range(episodes)]
        self.reports_hits = False  # a task may do so only at the steps of a hit

    def add(self, episode: int, action: Action, reward: float, info: Info) -> None:
        self.returns[episode] += reward
        self.lengths[episode] += 1
        self.hits[episode].append(info.get("hit", False))
        self.reports_hits |= "hit" in info
        if "new_trial" not in info:
            return
        self.trial_return[episode] += reward
        if info.get("decision") and _right_action(info) >= 0:
            self.decision_correct.append(bool(action == info["gt"]))
        if info["new_trial"]:
            self.performance += trial_score(info)
            self.aborted.append(bool(info.get("aborted", False)))
            self.trial_returns.append(float(self.trial_return[episode]))
            if not self.aborted[-1] and _right_action(info) >= 0:
                self.outcomes.append({**info.get("trial", {}), "choice": action, "ground_truth": info["gt"]})
            self.trial_return[episode] = 0.0

    def result(self) -> Evaluation:
        return Evaluation(
            self.returns,
            self.lengths,
            np.array(self.performance, float),
            np.array(self.aborted, bool),
            np.array(self.trial_returns, float),
            np.array(self.decision_correct, bool),
            np.concatenate([quarters(np.array([hits])) for hits in self.hits])
            if self.reports_hits
            else np.zeros((0, 4)),
            np.array(self.outcomes, object),
        )


# (obs (n, D), state, step in the trial (n,), episode (n,)) -> the observation and state that the network gets instead.
Intervention = Callable[[Tensor, State, np.ndarray, np.ndarray], tuple[Tensor, State]]


@torch.no_grad()
def evaluate(
    network: Network,
    envs: Sequence[Task],
    seeds: Sequence[int],
    reset_state_on_trial: bool = False,
    intervene: Intervention | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Play episodes with an agent, without exploration.

    Args:
        network: the agent.
        envs: environments of one task; so many episodes run side by side.
        seeds: one for each episode.
        reset_state_on_trial: whether the state is reset after each trial, as in training.
        intervene: a change to observation and state before each step of the agent; None: no change.
        check: called before each step of a task; it may raise an exception to end the evaluation.
    """
    return evaluate_groups(network, envs, seeds, [0] * len(seeds), reset_state_on_trial, intervene, check)[0]


@torch.no_grad()
def evaluate_groups(
    network: Network,
    envs: Sequence[Task],
    seeds: Sequence[int],
    groups: Sequence[int],
    reset_state_on_trial: bool = False,
    intervene: Intervention | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """`evaluate`, with the results of groups of episodes apart, such as those of each task.

    Args: groups: the number of the group of each seed, from 0.
    Returns: one result per group.
    """
    sizes = [0] * (max(groups) + 1)
    places = []  # of each episode in its group
    for group in groups:
        places.append(sizes[group])
        sizes[group] += 1
    tallies = [_Tally(size) for size in sizes]
    lanes = min(len(envs), len(seeds))
    episode = list(range(lanes))  # the episode that each lane plays
    next_episode = lanes
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=False)])
    state = network.init_state(lanes)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seeds[0])  # for agents that sample their actions
    envs = list(envs[:lanes])
    trial_step: np.ndarray = np.zeros(lanes, int)  # steps since the trial started
    while envs:
        seen = torch.from_numpy(obs).to(device)
        if intervene is not None:
            seen, state = intervene(seen, state, trial_step, np.array(episode))
        actions, state = network.select_action(seen, state, 0.0, generator)
        reset, finished = np.zeros(len(envs), bool), np.zeros(len(envs), bool)
        for lane, (env, action) in enumerate(zip(envs, per_lane(actions.cpu().numpy()), strict=True)):
            check()
            obs[lane], reward, terminated, truncated, info = env.step(action)
            tallies[groups[episode[lane]]].add(places[episode[lane]], action, float(reward), info)
            reset[lane] = reset_state_on_trial and info.get("new_trial", False)
            trial_step[lane] = 0 if terminated or truncated or info.get("new_trial") else trial_step[lane] + 1
            if terminated or truncated:
                reset[lane] = True
                if next_episode < len(seeds):
                    obs[lane], _ = env.reset(seed=seeds[next_episode])
                    episode[lane] = next_episode
                    next_episode += 1
                else:
                    finished[lane] = True
        state = reset_rows(network, state, reset)
        if finished.any():
            keep = np.flatnonzero(~finished)
            index = torch.from_numpy(keep).to(device)
            state, obs = map_state(operator.itemgetter(index), state), obs[keep]
            envs, episode, trial_step = [envs[i] for i in keep], [episode[i] for i in keep], trial_step[keep]
    return [tally.result() for tally in tallies]


def run_scripted(
    policy: Callable[[AnyTask, np.random.Generator], Action], env: AnyTask, seeds: Sequence[int]
) -> Evaluation:
    """Play episodes with a scripted policy.

    Args:
        policy: (env, rng) -> action.
        env: the task.
        seeds: one for each episode.
    """
    tally = _Tally(len(seeds))
    for episode, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        finished = False
        while not finished:
            action = policy(env, rng)
            _, reward, terminated, truncated, info = env.step(action)
            tally.add(episode, action, float(reward), info)
            finished = terminated or truncated
    return tally.result()


def run_batched(policy: Policy, env: BatchedTask, seeds: Sequence[int]) -> Evaluation:
    """Play episodes with a scripted policy side by side, one in each row.

    Args:
        policy: (env, rng) -> actions (N,).
        env: N rows.
        seeds: one for each row.
    """
    steps = play(env, policy, seeds, np.random.default_rng(list(seeds)))
    reward, hit = steps["reward"].astype(float), steps["hit"]
    asked = steps.get("decision", np.zeros(hit.shape, bool))
    right = hit[asked]
    return Evaluation(
        reward.sum(axis=1),
        np.full(len(reward), env.limit),
        right.astype(float),
        np.zeros(len(right), bool),
        reward[asked],
        right,
        quarters(hit),
    )


GROUP_BYTES = 2**28  # of the episodes that are recorded side by side


@torch.no_grad()
def record_episodes(
    network: AgentNetwork,
    envs: Sequence[Task],
    seeds: Sequence[int],
    *,
    epsilon: float = 0.0,
    precision: str = "float32",
    reset_state_on_trial: bool = False,
    max_steps: int | None = None,
    frames: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Play episodes with an agent and record them.

    The first episode is played alone. Its size decides how many others are played side by side.

    Args:
        network: the agent.
        envs: environments of one task; at most so many episodes are played side by side.
        seeds: one for each episode.
        epsilon: probability of a random action.
        precision: dtype of the recorded state.
        reset_state_on_trial: whether the state is reset after each trial, as in training.
        max_steps: steps after which an episode is cut; None: no limit.
        frames: whether to add rendered frames, (T, height, width, 3) uint8.
    Yields: for each episode, arrays over its T steps under the names of activity.npz (docs/experiments.md). The state
        at t is the one *after* observation t, so M[t] depends on h[t].
    Raises: ConfigError for `frames` where the task cannot be rendered.
    """
    device = next(network.parameters()).device
    start, largest = 0, GROUP_BYTES
    while start < len(seeds):
        lanes = list(range(min(len(seeds) - start, len(envs), max(1, GROUP_BYTES // largest))))
        logs = [_Log() for _ in lanes]
        generators = [torch.Generator().manual_seed(seeds[start + lane]) for lane in lanes]
        obs = np.stack([envs[lane].reset(seed=seeds[start + lane])[0] for lane in lanes])
        state = network.init_state(len(lanes))
        while lanes:
            if frames:
                for lane in lanes:
                    logs[lane].add(frames=_frame(envs[lane], logs[lane].columns.get("frames", [])))
            h, state = network.features(torch.from_numpy(obs).to(device), state)
            output = network.head(h)
            chosen = [network.choose(output[i : i + 1], epsilon, generators[lane]) for i, lane in enumerate(lanes)]
            parts = {f"state_{name}": part.cpu().numpy().astype(precision)
                     for name, part in network.core.state_arrays(state).items()}  # fmt: skip
            parts |= {"observations": obs.copy(), "hidden": h.cpu().numpy()}
            if network.output_name:
                parts[network.output_name] = network.reported(output).cpu().numpy()
            reset, finished = np.zeros((2, len(lanes)), bool)
            for i, action in enumerate(per_lane(torch.cat(chosen).cpu().numpy())):
                env, log = envs[lanes[i]], logs[lanes[i]]
                log.add(actions=action, **{name: part[i] for name, part in parts.items()})
                conditions = env.conditions
                obs[i], reward, terminated, truncated, info = env.step(action)
                log.add(rewards=np.float32(reward), episode=start + lanes[i], step=len(log))
                log.add_trial(info, conditions)
                reset[i] = reset_state_on_trial and info.get("new_trial", False)
                finished[i] = terminated or truncated or (max_steps is not None and len(log) >= max_steps)
            state = reset_rows(network, state, reset)
            if finished.any():
                index = torch.from_numpy(np.flatnonzero(~finished)).to(device)
                state, obs = map_state(operator.itemgetter(index), state), obs[~finished]
                lanes = [lane for lane, over in zip(lanes, finished, strict=True) if not over]
        start += len(logs)
        for log in logs:
            episode = log.arrays()
            largest = max(1, sum(array.nbytes for array in episode.values()))
            yield episode


def _frame(env: Task, before: list[np.ndarray]) -> np.ndarray:
    """The task's picture of the current step, of the same size as those `before`. Raises: ConfigError."""
    try:
        frame = env.render()
    except NotImplementedError:
        frame = None
    if not isinstance(frame, np.ndarray):
        raise ConfigError(f"--env-name {task_name(env)} cannot be rendered")
    if before and frame.shape != before[0].shape:
        raise ConfigError(
            f"--env-name {task_name(env)} cannot be rendered: the picture of step {len(before)} has the size "
            f"{frame.shape}, the first one {before[0].shape}; draw all of one size"
        )
    return frame


def join_episodes(episodes: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the arrays of `record_episodes`; where an episode lacks a condition, it is nan or ""."""
    joined = {}
    for name in dict.fromkeys(name for episode in episodes for name in episode):
        parts = [episode.get(name) for episode in episodes]
        text = any(part is not None and part.dtype.kind == "U" for part in parts)
        for i, part in enumerate(parts):
            if part is None:
                part = np.full(len(episodes[i]["rewards"]), "" if text else np.nan)
            elif text and part.dtype.kind != "U":
                part = np.array(["" if value != value else str(value) for value in part.tolist()])
            parts[i] = part
        joined[name] = np.concatenate([part for part in parts if part is not None])
    return joined


# Entries of the info that a recording stores under names of its own, or not at all.
NAMED = {"new_trial", "trial_number", "gt", "period", "performance", "aborted", "decision", "fixation_break"}


class _Log:
    """Columns that grow by one entry per step."""

    def __init__(self) -> None:
        self.columns: dict[str, list] = {}
        self.conditions: list[Conditions] = []  # of each step; trials can differ in which ones they have
        self.infos: list[Info] = []
        self.trial_start = self.trials = 0

    def __len__(self) -> int:
        return len(self.columns.get("rewards", ()))

    def add(self, **entries: object) -> None:
        for name, entry in entries.items():
            self.columns.setdefault(name, []).append(entry)

    def add_trial(self, info: Info, conditions: Conditions) -> None:
        """Add the step's place in its trial, the trial's score once it has ended, and the numbers of the info."""
        self.infos.append({k: v for k, v in info.items() if k not in NAMED and np.isscalar(v) and k == k.lower()})
        if "new_trial" not in info:
            self.add(trial=0, new_trial=False, ground_truth=-1, period="", correct=np.nan, aborted=False)
            return
        self.add(trial=info.get("trial_number", self.trials), new_trial=bool(info["new_trial"]))
        self.add(ground_truth=_right_action(info), period=str(info.get("period", "")), correct=np.nan)
        self.add(aborted=False)
        self.conditions.append(conditions)
        if info["new_trial"]:
            for score in trial_score(info):
                self.columns["correct"][self.trial_start :] = [score] * (len(self) - self.trial_start)
            self.columns["aborted"][self.trial_start :] = [bool(info.get("aborted"))] * (len(self) - self.trial_start)
            self.trial_start = len(self)
            self.trials += 1

    def arrays(self) -> dict[str, np.ndarray]:
        columns = {name: np.array(column) for name, column in self.columns.items()}
        for prefix, rows in (("condition", self.conditions), ("info", self.infos)):
            for name in dict.fromkeys(name for row in rows for name in row):
                columns[f"{prefix}_{name}"] = _column([row.get(name) for row in rows])
        return columns


def _column(values: list[bool | int | float | str | None]) -> np.ndarray:
    """The values of every step as an array, nan or "" where there is none (None)."""
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values])
    return np.array([np.nan if value is None else value for value in values])
