"""GridMaze-v0: find an invisible reward in a maze, then return to it for the rest of the episode.

The maze of Miconi et al. (ICML 2018, arXiv 1804.02464; with neuromodulated plasticity ICLR 2019, arXiv 2002.10585).
The observation is that of their public code, with 17 entries; `clock=False, bias=False, unused=False` gives the 14
entries of the papers.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import gymnasium
import numpy as np

from mpn_rl.contracts import Info
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.vector_env import BatchedTask, SingleEnv, check

MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right, in rows and columns
REVERSE = np.array([1, 0, 3, 2])


class Maze(NamedTuple):
    """The F free cells of a maze, numbered row by row."""

    position: np.ndarray  # (F, 2) row and column
    neighbour: np.ndarray  # (F, 4) the cell that each action leads to; at a wall, the cell itself
    view: np.ndarray  # (F, window ** 2) float32, the cells around each, row by row; 1 for wall and beyond the border
    wall: np.ndarray  # (size, size) bool
    centre: int  # number of the central cell


@functools.cache
def maze(size: int, window: int) -> Maze:
    """The maze with walls on the border and wherever row and column are both even, except at the centre.

    Args:
        size: cells along a side, odd.
        window: cells along a side of the agent's view, odd.
    """
    wall = np.zeros((size, size), bool)
    wall[[0, -1]] = wall[:, [0, -1]] = wall[::2, ::2] = True
    wall[size // 2, size // 2] = False
    position = np.argwhere(~wall)
    number = np.full((size, size), -1)
    number[tuple(position.T)] = np.arange(len(position))
    target = number[tuple((position[:, None] + MOVES).transpose(2, 0, 1))]  # (F, 4), -1 at a wall
    neighbour = np.where(target < 0, np.arange(len(position))[:, None], target)
    padded = np.pad(wall, window // 2, constant_values=True)
    around = np.arange(window)
    view = padded[position[:, 0, None, None] + around[:, None], position[:, 1, None, None] + around]
    view = view.reshape(len(position), -1).astype(np.float32)
    return Maze(position, neighbour, view, wall, int(number[size // 2, size // 2]))


@functools.cache
def distances(size: int) -> np.ndarray:
    """Steps of the shortest path between any two free cells, (F, F), by breadth-first search from all cells at once."""
    neighbour = maze(size, 1).neighbour
    steps = np.full((len(neighbour), len(neighbour)), -1, np.int16)
    front = np.eye(len(neighbour), dtype=bool)  # [cell, start]
    for step in range(len(neighbour)):
        steps[front] = step
        front = front[neighbour].any(axis=1) & (steps < 0)
        if not front.any():
            break
    return steps


class GridMazeVec(BatchedTask):
    """N mazes that step together; `GridMaze` describes the task and its arguments.

    Attributes:
        cell, goal: number of the free cell (see `Maze`) of the agent and of the reward, (N,).
        action: the last action of each row, -1 before the first, (N,).
        hits: rewards that each row has earned in its episode, (N,).
    """

    arrays = (*BatchedTask.arrays, "cell", "goal", "action", "hits")

    def __init__(
        self,
        num_envs: int,
        *,
        size: int = 11,
        episode_steps: int = 200,
        hit_reward: float = 10.0,
        wall_penalty: float = 0.0,
        window: int = 3,
        unused: bool = True,
        bias: bool = True,
        clock: bool = True,
        previous_reward: bool = True,
        previous_action: bool = True,
        max_episode_steps: int | None = None,
    ) -> None:
        self.size = _odd("size", size, 5, 51)
        self.window = _odd("window", window, 1, 2 * size - 1) if window else 0
        self.hit_reward = check("hit_reward", hit_reward, float)
        self.wall_penalty = check("wall_penalty", wall_penalty, float)
        channels = {
            "window": self.window**2,
            "unused": check("unused", unused, bool),
            "bias": check("bias", bias, bool),
            "clock": check("clock", clock, bool),
            "previous reward": check("previous_reward", previous_reward, bool),
            "previous action": 4 * check("previous_action", previous_action, bool),
        }
        rewards = (-1.0, 1.0, self.hit_reward, -self.wall_penalty)
        bounds = {"previous reward": (min(rewards), max(rewards))}
        super().__init__(num_envs, channels, 4, episode_steps, max_episode_steps, bounds)
        self.maze = maze(self.size, self.window or 1)
        self.cell, self.goal, self.action, self.hits = np.zeros((4, self.num_envs), np.int64)

    def ranges(self) -> dict[str, tuple[float, float]]:
        cells = (0, len(self.maze.position) - 1)
        return {**super().ranges(), "cell": cells, "goal": cells, "action": (-1, 3)}

    def _start(self, rows: np.ndarray) -> None:
        centre = self.maze.centre
        goal = ve.below(self.random(rows, 1)[:, 0], len(self.maze.position) - 1)
        self.goal[rows] = goal + (goal >= centre)  # any free cell except the centre
        self.cell[rows], self.action[rows], self.hits[rows] = centre, -1, 0
        self._show(rows, "window", self.maze.view[centre])
        self._show(rows, "previous action", self.one_hot[0])  # as in the public code

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        before, cell = self.cell, self.maze.neighbour[self.cell, actions]
        wall, hit = cell == before, cell == self.goal
        reward = np.where(hit, np.float32(self.hit_reward), np.float32(0.0))
        reward[wall] -= np.float32(self.wall_penalty)
        if hit.any():
            rows = np.flatnonzero(hit)
            drawn = ve.below(self.random(rows, 1)[:, 0], len(self.maze.position) - 1)
            cell[rows] = drawn + (drawn >= self.goal[rows])  # any free cell except the reward's
        self.cell, self.action = cell, actions.astype(np.int64)
        self.hits += hit
        self._show(slice(None), "window", self.maze.view[cell])
        here, goal = self.maze.position[cell], self.maze.position[self.goal]
        places = {"row": here[:, 0], "col": here[:, 1], "goal_row": goal[:, 0], "goal_col": goal[:, 1]}
        return reward, {"hit": hit, "wall": wall, **places}


def _odd(name: str, value: int, low: int, high: int) -> int:
    if check(name, value, int, low, high) % 2 == 0:
        raise ValueError(f"{name} must be odd, so that there is a centre, got {value}")
    return value


# --- scripted policies ------------------------------------------------------------------------------------


def random_moves(env: GridMazeVec, rng: np.random.Generator) -> np.ndarray:
    """One of the four actions at random, also into walls."""
    return rng.integers(4, size=env.num_envs)


def walk(env: GridMazeVec, rng: np.random.Generator) -> np.ndarray:
    """A random move to a free cell; it reverses the last move only in a dead end."""
    chance = rng.random((env.num_envs, 4)) + 1.0
    chance[env.every[env.action >= 0], REVERSE[env.action[env.action >= 0]]] -= 1.0
    chance[env.maze.neighbour[env.cell] == env.cell[:, None]] = -1.0
    return chance.argmax(axis=1)


def shortest_path(env: GridMazeVec, rng: np.random.Generator) -> np.ndarray:
    """A move along a shortest path to the goal, as if its place were known from the start."""
    return distances(env.size)[env.maze.neighbour[env.cell], env.goal[:, None]].argmin(axis=1)


def explore(env: GridMazeVec, rng: np.random.Generator) -> np.ndarray:
    """`walk` until the first reward, then shortest paths: a perfect memory of one visit."""
    return np.where(env.hits > 0, shortest_path(env, rng), walk(env, rng))


GridMazeVec.scripted = {"random": random_moves, "walk": walk, "explore": explore, "goal_known": shortest_path}


# --- the single environment -------------------------------------------------------------------------------


class GridMaze(SingleEnv):
    """A maze with an invisible reward, which stays in one place during an episode. Finding it teleports the agent.

    The maze has `size` x `size` cells, border included. Cells whose row and column are both even are wall, except the
    centre. The agent starts at the centre. The reward lies on a random free cell other than the centre. An agent that
    steps onto it earns `hit_reward` and moves, in the same step, to another free cell, chosen uniformly. So an
    episode is one search, followed by as many returns as possible.

    Action space: Discrete(4): up, down, left, right. A move into a wall leaves the agent where it is and costs
    `wall_penalty`.

    Observation space: Box float32, by default of 17 entries:

        0-8    window           the cells around the agent, row by row; 1 for wall
        9      unused           always 0
        10     bias             always 1
        11     clock            t / T
        12     previous reward  the reward of the last step
        13-16  previous action  one-hot; "up" before the first

    Reward: hit_reward when the agent finds the reward, -wall_penalty at a wall, else 0.
    Episode end: truncated after `episode_steps` = T steps; never terminated.
    Info: hit, the agent found the reward in this step; wall, it moved into a wall; row, col, goal_row, goal_col, the
        places of agent and reward after the step.

    Args:
        size: cells along a side, border included; odd, 5 to 51.
        episode_steps: T.
        hit_reward, wall_penalty: as above.
        window: cells along a side of the window, odd; 0 for no window.
        unused, bias, clock, previous_reward, previous_action: whether the observation has that channel.
        render_mode: "rgb_array", or None.
    Raises: ValueError, one sentence, for a value out of range.
    """

    batch = GridMazeVec
    rows: GridMazeVec
    action_names = ("up", "down", "left", "right")

    def render(self) -> np.ndarray | None:
        """The maze, the goal (green), the path since the last reward (blue) and before (pale), the last teleport."""
        return None if self.render_mode is None else draw(self.rows, self.history)


def draw(env: GridMazeVec, history: list[Info]) -> np.ndarray:
    """A picture of the first row's maze and of the agent's path.

    Args:
        env: the maze.
        history: the info of each step of the episode.
    Returns: (height, width, 3) uint8.
    """
    cell = 400 // env.size
    strip = 36
    page = ve.Picture(cell * env.size, cell * env.size + strip)

    def centre(row: float, col: float) -> tuple[float, float]:
        return (col + 0.5) * cell, strip + (row + 0.5) * cell

    for row, col in np.argwhere(env.maze.wall).tolist():
        page.box(col * cell, strip + row * cell, cell, cell, ve.INK)
    goal_row, goal_col = env.maze.position[env.goal[0]].tolist()
    page.box(goal_col * cell, strip + goal_row * cell, cell, cell, ve.GREEN)
    row, col = env.maze.position[env.cell[0]].tolist()
    reach = env.window // 2
    if env.window:
        page.box(
            (col - reach) * cell, strip + (row - reach) * cell, env.window * cell, env.window * cell, None, ve.GREY
        )
    paths, jumps = _paths(env, history)
    for number, path in enumerate(paths):
        latest = number == len(paths) - 1
        points = [centre(*place) for place in path]
        page.line(points, ve.BLUE if latest else ve.PALE, cell * (0.14 if latest else 0.10))
    for start, end in jumps[-1:]:
        page.dashes(centre(*start), centre(*end), ve.ORANGE, 2)
    page.disc(*centre(row, col), 0.32 * cell, ve.BLUE)
    if history and history[-1]["hit"]:
        page.disc(*centre(goal_row, goal_col), 0.4 * cell, ve.YELLOW)
        page.text(*centre(goal_row, goal_col), f"{env.hit_reward:+g}", max(9, cell // 3), anchor="mm")
    page.text(10, strip / 2, f"t = {env.t[0]} of {env.episode_steps}")
    page.text(cell * env.size - 10, strip / 2, f"rewards {env.hits[0]}", anchor="rm")
    return page.pixels()


def _paths(env: GridMazeVec, history: list[Info]) -> tuple[list, list]:
    """The paths from one reward to the next as lists of (row, col), and the teleports between them as (from, to)."""
    path = [tuple(env.maze.position[env.maze.centre].tolist())]
    paths, jumps = [path], []
    for info in history:
        place = (info["row"], info["col"])
        if info["hit"]:
            goal = (info["goal_row"], info["goal_col"])
            path.append(goal)
            jumps.append((goal, place))
            path = []
            paths.append(path)
        path.append(place)
    return paths, jumps


gymnasium.register(
    "GridMaze-v0", "mpn_rl.tasks.grid_maze:GridMaze", vector_entry_point="mpn_rl.tasks.grid_maze:GridMazeVec"
)
