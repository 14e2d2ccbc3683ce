"""An agent's episodes: evaluation and recording. With the lanes of training, the only code that steps a task."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from mpn_rl.contracts import map_state, state_parts
from mpn_rl.options import ConfigError
from mpn_rl.tasks.lanes import each
from mpn_rl.tasks.vector_env import Policy, VectorEnv, play, quarters


def reset_rows(network, state, rows: np.ndarray):
    """The state with `rows` (N,) bool set back to an episode's start; the tensors are written in place."""
    if not rows.any():
        return state
    index = torch.from_numpy(np.flatnonzero(rows))
    with torch.no_grad():  # a trained M(0) must not tie acting to a graph
        fresh = network.init_state(len(index))
        for part, new in zip(state_parts(state), state_parts(fresh), strict=True):
            part[index.to(part.device)] = new
    return state


class Evaluation(NamedTuple):
    """What E greedy episodes earned; the trial fields are empty where a task has no trials."""

    returns: np.ndarray  # (E,)
    lengths: np.ndarray  # (E,)
    performance: np.ndarray  # (trials,) the task's own score of every completed trial
    aborted: np.ndarray  # (trials,) bool
    trial_returns: np.ndarray  # (trials,)
    decision_correct: np.ndarray  # (decision steps with a ground truth,) bool
    quarters: np.ndarray  # (E, 4) hits in each quarter of an episode; (0, 4) where the task tells of none

    @property
    def accuracy(self) -> float | None:
        return float(self.performance.mean()) if len(self.performance) else None


class _Tally:
    """Collects an evaluation step by step."""

    def __init__(self, episodes: int) -> None:
        self.returns, self.lengths = np.zeros(episodes), np.zeros(episodes, int)
        self.trial_return = np.zeros(episodes)
        self.performance: list[float] = []
        self.aborted: list[bool] = []
        self.trial_returns: list[float] = []
        self.decision_correct: list[bool] = []
        self.hits: list[list[bool]] = [[] for _ in range(episodes)]

    def add(self, episode: int, action: int, reward: float, info: dict[str, Any]) -> None:
        self.returns[episode] += reward
        self.lengths[episode] += 1
        if "hit" in info:
            self.hits[episode].append(info["hit"])
        if "new_trial" not in info:
            return
        self.trial_return[episode] += reward
        if info["decision"] and info["gt"] >= 0:
            self.decision_correct.append(action == info["gt"])
        if info["new_trial"]:
            self.performance.append(info["performance"])
            self.aborted.append(info["aborted"])
            self.trial_returns.append(float(self.trial_return[episode]))
            self.trial_return[episode] = 0.0

    def result(self) -> Evaluation:
        return Evaluation(
            self.returns,
            self.lengths,
            np.array(self.performance, float),
            np.array(self.aborted, bool),
            np.array(self.trial_returns, float),
            np.array(self.decision_correct, bool),
            np.concatenate([np.zeros((0, 4)), *(quarters(np.array([hits])) for hits in self.hits if hits)]),
        )


# (obs (n, D), state, step in the trial (n,), episode (n,)) -> the observation and state that the network gets instead.
Intervention = Callable[[torch.Tensor, Any, np.ndarray, np.ndarray], tuple[torch.Tensor, Any]]


@torch.no_grad()
def evaluate(
    network,
    envs: Sequence[gymnasium.Env],
    seeds: Sequence[int],
    reset_state_on_trial: bool = False,
    intervene: Intervention | None = None,
) -> Evaluation:
    """Episodes of a policy without exploration, one per seed, in as many lanes as there are environments.

    Args: intervene: what an experimenter does to the agent before each of its steps; see `probes`.
    """
    tally = _Tally(len(seeds))
    lanes = min(len(envs), len(seeds))
    episode = list(range(lanes))  # the episode that each lane plays
    coming = lanes
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=False)])
    state = network.init_state(lanes)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seeds[0])  # for policies that are evaluated as they are, by drawing
    envs = list(envs[:lanes])
    since: np.ndarray = np.zeros(lanes, int)  # steps since the trial began
    while envs:
        seen = torch.from_numpy(obs).to(device)
        if intervene is not None:
            seen, state = intervene(seen, state, since, np.array(episode))
        actions, state = network.select_action(seen, state, 0.0, generator)
        fresh, over = np.zeros(len(envs), bool), np.zeros(len(envs), bool)
        for lane, (env, action) in enumerate(zip(envs, each(actions.cpu().numpy()), strict=True)):
            obs[lane], reward, terminated, truncated, info = env.step(action)
            tally.add(episode[lane], action, float(reward), info)
            fresh[lane] = reset_state_on_trial and info.get("new_trial", False)
            since[lane] = 0 if terminated or truncated or info.get("new_trial") else since[lane] + 1
            if terminated or truncated:
                fresh[lane] = True
                if coming < len(seeds):
                    obs[lane], _ = env.reset(seed=seeds[coming])
                    episode[lane] = coming
                    coming += 1
                else:
                    over[lane] = True
        state = reset_rows(network, state, fresh)
        if over.any():
            keep = np.flatnonzero(~over)
            index = torch.from_numpy(keep).to(device)
            state, obs = map_state(operator.itemgetter(index), state), obs[keep]
            envs, episode, since = [envs[i] for i in keep], [episode[i] for i in keep], since[keep]
    return tally.result()


def run_scripted(
    policy: Callable[[Any, np.random.Generator], int], env: gymnasium.Env, seeds: Sequence[int]
) -> Evaluation:
    """Episodes of a scripted policy(env, rng) -> action, on the same seeds as an agent's."""
    tally = _Tally(len(seeds))
    for episode, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        over = False
        while not over:
            action = policy(env, rng)
            _, reward, terminated, truncated, info = env.step(action)
            tally.add(episode, action, float(reward), info)
            over = terminated or truncated
    return tally.result()


def run_batched(policy: Policy, env: VectorEnv, seeds: Sequence[int]) -> Evaluation:
    """`run_scripted` of a batch whose rows play all episodes side by side; one seed for each row."""
    played = play(env, policy, seeds, np.random.default_rng(list(seeds)))
    reward, hit = played["reward"].astype(float), played["hit"]
    asked = played.get("decision", np.zeros(hit.shape, bool))
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


@torch.no_grad()
def record_episodes(
    network,
    env: gymnasium.Env,
    seeds: Sequence[int],
    *,
    epsilon: float = 0.0,
    precision: str = "float32",
    reset_state_on_trial: bool = False,
    max_steps: int | None = None,
    frames: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Play one episode per seed and yield everything that happened in it, as arrays over its steps.

    The arrays are those of activity.npz (docs/experiments.md): the state is the one *after* the step's
    observation was taken in, so M[t] holds h[t]. `frames` adds rendered RGB frames (T, height, width, 3).
    """
    device = next(network.parameters()).device
    for episode, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        obs, _ = env.reset(seed=seed)
        state = network.init_state(1)
        log = _Log()
        over = False
        while not over:
            if frames:
                log.add(frames=_frame(env))
            h, state = network.features(torch.from_numpy(obs[None]).to(device), state)
            q_values = network.head(h)
            (action,) = each(network.choose(q_values, epsilon, generator).cpu().numpy())
            arrays = network.core.state_arrays(state)
            log.add(observations=obs.copy(), actions=action, q_values=q_values[0].cpu().numpy())
            log.add(hidden=h[0].cpu().numpy())
            log.add(**{f"state_{name}": part[0].cpu().numpy().astype(precision) for name, part in arrays.items()})
            conditions = env.conditions
            obs, reward, terminated, truncated, info = env.step(action)
            log.add(rewards=np.float32(reward), episode=episode, step=len(log))
            log.add_trial(info, conditions)
            over = terminated or truncated or (max_steps is not None and len(log) >= max_steps)
            if reset_state_on_trial and info.get("new_trial"):
                state = network.init_state(1)
        yield log.arrays()


def _frame(env: gymnasium.Env) -> np.ndarray:
    task: Any = env.unwrapped
    if isinstance(getattr(task, "last_u", None), np.generic):
        task.last_u = float(task.last_u)  # Pendulum-v1 draws its torque, and pygame refuses NumPy's numbers
    try:
        frame: Any = env.render()
    except NotImplementedError:
        frame = None
    if not isinstance(frame, np.ndarray):
        raise ConfigError(f"--env-name {task.spec.id if task.spec else type(task).__name__} cannot be rendered")
    return frame


def join_episodes(episodes: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of `record_episodes` end to end; a condition that an episode never had is nan or "" there."""
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


# What a recording has under a name of its own, or NeuroGym's tasks tell of every step.
NAMED = {"new_trial", "trial_number", "gt", "period", "performance", "aborted", "decision", "fixation_break"}


class _Log:
    """Columns that grow by one entry per step."""

    def __init__(self) -> None:
        self.columns: dict[str, list] = {}
        self.conditions: list[dict[str, Any]] = []  # of each step; trials may differ in which they have
        self.infos: list[dict[str, Any]] = []
        self.trial_start = 0

    def __len__(self) -> int:
        return len(self.columns.get("rewards", ()))

    def add(self, **entries: Any) -> None:
        for name, entry in entries.items():
            self.columns.setdefault(name, []).append(entry)

    def add_trial(self, info: dict[str, Any], conditions: dict[str, Any]) -> None:
        """The step's place in its trial, whose score is known only when it ends, and what numbers the info has."""
        self.infos.append({k: v for k, v in info.items() if k not in NAMED and np.isscalar(v) and k == k.lower()})
        if "new_trial" not in info:
            self.add(trial=0, new_trial=False, ground_truth=-1, period="", correct=np.nan)
            return
        self.add(trial=info["trial_number"], new_trial=info["new_trial"], ground_truth=info["gt"])
        self.add(period=info["period"], correct=np.nan)
        self.conditions.append(conditions)
        if info["new_trial"]:
            score = info["performance"]
            self.columns["correct"][self.trial_start :] = [score] * (len(self) - self.trial_start)
            self.trial_start = len(self)

    def arrays(self) -> dict[str, np.ndarray]:
        columns = {name: np.array(column) for name, column in self.columns.items()}
        for prefix, rows in (("condition", self.conditions), ("info", self.infos)):
            for name in dict.fromkeys(name for row in rows for name in row):
                columns[f"{prefix}_{name}"] = _condition([row.get(name) for row in rows])
        return columns


def _condition(values: list[Any]) -> np.ndarray:
    """A trial condition of every step, nan or "" where the trial has none (None)."""
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values])
    return np.array([np.nan if value is None else value for value in values])
