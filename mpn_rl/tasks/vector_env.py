"""Base classes of the grid maze and the cue-reward task: a vector environment in NumPy, and one row of it.

A row depends on its episode's seed and its actions alone. Random number j of step t is a hash of (seed, t, j), not
the next number of a stream, so rows cannot influence each other, and only t has to be saved.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from mpn_rl.contracts import Info, SequenceArrays
from mpn_rl.storage import state_trees

# --- random numbers by hashing ----------------------------------------------------------------------------

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_PER_STEP = np.uint64(2**20)  # random numbers that a step may use


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014), a bijection of uint64 arrays."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys_of(seeds: npt.ArrayLike) -> np.ndarray:
    """Keys (n,) uint64 for `random_words` from seeds (n,) >= 0: neighbouring seeds get unrelated random numbers."""
    return splitmix64(np.asarray(seeds, np.uint64) + _GAMMA)


def random_words(key: np.ndarray, t: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """Random numbers of one step.

    Args:
        key: of each row's episode, (n,) uint64.
        t: step, (n,).
        count: how many numbers.
        first: index of the first one within the step.
    Returns: (n, count) uint64.
    """
    index = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    return splitmix64(key[:, None] + (t.astype(np.uint64) * _PER_STEP)[:, None] * _GAMMA + index * _GAMMA)


def below(words: np.ndarray, limit: int) -> np.ndarray:
    """Random words as integers in [0, limit), uniform to within limit / 2**32; limit <= 2**32."""
    return (((words >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def uniform(words: np.ndarray) -> np.ndarray:
    """Random words as float64 in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0**-53


# --- the vector environment -------------------------------------------------------------------------------

Policy = Callable[..., np.ndarray]  # (env, rng) -> the action of each row; it may read all attributes of the task
Rows = slice | np.ndarray  # which rows: all of them, or their indices


class BatchedTask:
    """N rows of one task that step together in NumPy, without autoreset: the base of a `contracts.VectorEnv`.

    A subclass implements `_start(rows)`, which starts episodes, and `_advance(actions) -> (reward, info)`; both write
    the task's channels with `_show`. An episode never terminates; it is truncated at the time limit.

    Args:
        num_envs: N, rows, >= 1.
        channels: size of each part of the observation, in order; a part of size 0 is left out.
        num_actions: actions are 0 .. num_actions - 1.
        episode_steps: T, steps of an episode; the channel "clock" shows t / T.
        max_episode_steps: a shorter time limit, which does not change the clock; None: T.
        bounds: (low, high) of the channels that do not lie in [0, 1].
    Attributes:
        channels: slice of the observation for each channel.
        channel_names: one name per entry of the observation.
        t: steps since each row's reset, (N,).
    Raises: ValueError for an argument out of range, or an observation without entries.
    """

    arrays: ClassVar[tuple[str, ...]] = ("key", "t", "obs")  # attributes that hold the state of the rows
    scripted: ClassVar[dict[str, Policy]] = {}  # reference policies by name

    def __init__(
        self,
        num_envs: int,
        channels: dict[str, int],
        num_actions: int,
        episode_steps: int,
        max_episode_steps: int | None,
        bounds: dict[str, tuple[float, float]],
    ) -> None:
        self.num_envs = check("num_envs", num_envs, int, 1)
        self.episode_steps = check("episode_steps", episode_steps, int, 1)
        self.limit = min(self.episode_steps, max_episode_steps or self.episode_steps)
        self.channels: dict[str, slice] = {}
        self.channel_names: list[str] = []
        for name, size in channels.items():
            if size:
                self.channels[name] = slice(len(self.channel_names), len(self.channel_names) + size)
                self.channel_names += [name] if size == 1 else [f"{name} {entry}" for entry in range(1, size + 1)]
        if not self.channels:
            raise ValueError("the observation is empty: leave at least one channel on")
        size = len(self.channel_names)
        low, high = np.zeros(size, np.float32), np.ones(size, np.float32)
        for name, (least, most) in bounds.items():
            low[self.channels.get(name, [])], high[self.channels.get(name, [])] = least, most
        self.single_observation_space = spaces.Box(low, high, dtype=np.float32)
        self.single_action_space = spaces.Discrete(num_actions)
        self.one_hot = np.eye(num_actions, dtype=np.float32)
        self.every = np.arange(self.num_envs)
        self.key, self.t = np.zeros(self.num_envs, np.uint64), np.zeros(self.num_envs, np.int64)
        self.obs = np.zeros((self.num_envs, size), np.float32)

    def reset_rows(self, rows: npt.ArrayLike, seeds: npt.ArrayLike) -> np.ndarray:
        """Start an episode in each of `rows` (n,), with the seeds (n,). Returns: their observations, (n, D)."""
        rows = np.asarray(rows, np.intp)
        self.key[rows], self.t[rows], self.obs[rows] = keys_of(seeds), 0, 0.0
        self._start(rows)
        self._show(rows, "bias", 1.0)
        return self.obs[rows]

    def reset(self, *, seed: int | Sequence[int] = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start an episode in every row, row i with seed + i or seed[i]. Returns: observations (N, D), empty info."""
        seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else seed
        return self.reset_rows(self.every, seeds), {}

    def step(
        self, actions: npt.ArrayLike
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """One step of every row.

        A row that has ended does not restart by itself; its further steps are harmless and meaningless.

        Returns: observations (N, D); rewards, terminated, truncated and each entry of the info, (N,).
        """
        actions = np.asarray(actions)
        self.t += 1
        reward, info = self._advance(actions)
        self._show(slice(None), "clock", self.t[:, None] / self.episode_steps)
        self._show(slice(None), "previous reward", reward[:, None])
        self._show(slice(None), "previous action", self.one_hot[actions])
        return self.obs.copy(), reward, np.zeros(self.num_envs, bool), self.t >= self.limit, info

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """As `contracts.Task.sequences`, with one seed per row: this task has to be played."""
        return None

    def random(self, rows: np.ndarray, count: int, first: int = 0) -> np.ndarray:
        """Random numbers `first` to first + count - 1 of the current step of `rows` (n,), (n, count) uint64."""
        return random_words(self.key[rows], self.t[rows], count, first)

    def _show(self, rows: Rows, channel: str, values: npt.ArrayLike) -> None:
        """Write a channel of the observation, if it is shown."""
        if channel in self.channels:
            self.obs[rows, self.channels[channel]] = values

    def _start(self, rows: np.ndarray) -> None:
        raise NotImplementedError

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name).copy() for name in self.arrays}

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest value of each of `arrays` that the task uses as an index or shows."""
        space = self.single_observation_space
        return {"t": (0, self.limit - 1), "obs": (float(space.low.min()), float(space.high.max()))}

    def load_state_dict(self, saved: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned. Raises: StateError where it is not a state of these rows."""
        state = self.state_dict()
        rules = {
            name: state_trees.Values(state[name].dtype, state[name].shape, *ends)
            for name, ends in self.ranges().items()
        }
        state_trees.check(saved, state_trees.like_dict(state, **rules), "lanes.env")
        for name in self.arrays:
            np.copyto(getattr(self, name), saved[name], casting="no")

    def close(self) -> None:
        """Do nothing: there are no resources to free."""

    @property
    def unwrapped(self) -> BatchedTask:
        return self  # gymnasium.make_vec reads it


def play(env: BatchedTask, policy: Policy, seeds: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Play one whole episode in every row.

    Args:
        env: N rows.
        policy: (env, rng) -> actions (N,).
        seeds: of the episodes, N of them.
        rng: for the policy.
    Returns: "reward" (N, T) float32, "hit" (N, T) bool, and "decision" (N, T) bool where the task's info has it.
    """
    env.reset(seed=seeds)
    steps: list[dict[str, np.ndarray]] = []
    for _ in range(env.limit):
        _, reward, _, _, info = env.step(policy(env, rng))
        steps.append({"reward": reward} | {name: info[name] for name in ("hit", "decision") if name in info})
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def quarters(values: np.ndarray) -> np.ndarray:
    """Sums over the four quarters of each episode; growth from quarter to quarter is learning within an episode.

    Step t of T belongs to quarter floor(4 t / T).

    Args: values: (E, T).
    Returns: (E, 4).
    """
    quarter = 4 * np.arange(values.shape[1]) // values.shape[1]
    return np.stack([values[:, quarter == number].sum(axis=1) for number in range(4)], axis=1)


# --- one row as a gymnasium.Env ---------------------------------------------------------------------------


class SingleEnv(gymnasium.Env):
    """A `BatchedTask` with one row as a Gymnasium environment: scalars instead of arrays.

    Without a seed, `reset` draws the episode's seed from `np_random`, as Gymnasium requires. With a render mode it
    keeps the info of all steps of the episode in `history`, and the `render` of a task draws them.
    """

    metadata: ClassVar[dict[str, object]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    batch: ClassVar[type[BatchedTask]]
    rows: BatchedTask  # the one row
    action_names: tuple[str, ...]
    # The reference policies of the batch as (env, rng) -> action, for an env whose `unwrapped` is of this class.
    scripted: ClassVar[dict[str, Callable[[gymnasium.Env, np.random.Generator], int]]]

    def __init_subclass__(cls) -> None:
        """Take the constructor's arguments and the policies from the batch, so that they are written once."""
        own = [inspect.Parameter("render_mode", inspect.Parameter.KEYWORD_ONLY, default=None)]
        of_batch = inspect.signature(cls.batch).parameters.values()
        shared = [item for item in of_batch if item.name not in ("num_envs", "max_episode_steps")]
        cls.__signature__ = inspect.Signature([*shared, *own])
        cls.scripted = {name: single(policy) for name, policy in cls.batch.scripted.items()}

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array, got {render_mode!r}")
        self.render_mode = render_mode
        self.rows = self.batch(1, **arguments)
        self.observation_space, self.action_space = self.rows.single_observation_space, self.rows.single_action_space
        self.history: list[Info] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**63)) if seed is None else seed % 2**64
        self.history.clear()
        return self.rows.reset_rows([0], [episode])[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        if not 0 <= action < self.rows.single_action_space.n:
            raise ValueError(f"an action must lie in [0, {self.rows.single_action_space.n - 1}], got {action}")
        obs, reward, terminated, truncated, info = self.rows.step(np.array([action]))
        scalars = {name: values[0].item() for name, values in info.items()}
        if self.render_mode is not None:
            self.history.append(scalars)
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), scalars


def single(policy: Policy) -> Callable[[gymnasium.Env, np.random.Generator], int]:
    """A policy of the batch as a policy of the single environment."""
    return lambda env, rng: int(policy(env.unwrapped.rows, rng)[0])


# --- arguments and pictures -------------------------------------------------------------------------------

Number = TypeVar("Number", int, float)


def check(name: str, value: Number, kind: type[Number], low: float = -(10**6), high: float = 10**6) -> Number:
    """The value of an argument, checked.

    Args:
        name: of the argument.
        value: what the user passed.
        kind: int, float or bool.
        low, high: the range that the value must lie in.
    Returns: the value, converted to `kind`.
    Raises: ValueError, one sentence with the name, the rule and the value.
    """
    number = {int: numbers.Integral, float: numbers.Real, bool: bool}[kind]
    if not isinstance(value, number) or isinstance(value, bool) is not (kind is bool):
        what = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"{name} must be {what}, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value!r}")
    return kind(value)


INK, PAPER, GREY, PALE = "#222222", "#FFFFFF", "#8A8A8A", "#E4E4E4"
BLUE, ORANGE, GREEN, YELLOW = "#0072B2", "#D55E00", "#009E73", "#F0E442"  # safe for the colour-blind


class Picture:
    """A page to draw on, in pixels. It is drawn at twice its size and then reduced, which smooths the lines.

    The constructor imports Pillow.
    """

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (2 * width, 2 * height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x: float, y: float, width: float, height: float, fill: str | None = None, line: str = "") -> None:
        corners = (2 * x, 2 * y, 2 * (x + width) - 1, 2 * (y + height) - 1)
        self.draw.rectangle(corners, fill=fill, outline=line or None, width=3)

    def disc(self, x: float, y: float, radius: float, fill: str | None = None, line: str = "") -> None:
        corners = (2 * (x - radius), 2 * (y - radius), 2 * (x + radius), 2 * (y + radius))
        self.draw.ellipse(corners, fill=fill, outline=line or None, width=4)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        doubled = [(2 * x, 2 * y) for x, y in points]
        self.draw.line(doubled, fill=colour, width=round(2 * width), joint="curve")

    def dashes(self, start: tuple[float, float], end: tuple[float, float], colour: str, width: float) -> None:
        (x0, y0), (x1, y1) = start, end
        pieces = max(1, round(np.hypot(x1 - x0, y1 - y0) / 8))
        for piece in np.arange(pieces) / pieces:
            ends = (piece, piece + 0.5 / pieces)
            self.line([(x0 + f * (x1 - x0), y0 + f * (y1 - y0)) for f in ends], colour, width)

    def text(self, x: float, y: float, words: str, size: int = 14, colour: str = INK, anchor: str = "lm") -> None:
        from PIL import ImageFont

        self.draw.text((2 * x, 2 * y), words, colour, ImageFont.load_default(2 * size), anchor)

    def pixels(self) -> np.ndarray:
        """The page, (height, width, 3) uint8."""
        return np.asarray(self.image.reduce(2))
