"""The grid maze is the one of the papers: its cells, its observation, its rewards, and what scripted policies earn."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mpn_rl.options import ConfigError
from mpn_rl.tasks import vector_env as ve
from mpn_rl.tasks.grid_maze import GridMaze, GridMazeVec, distances, maze
from mpn_rl.tasks.gymnasium_tasks import make_gymnasium, make_vector_env, time_limit
from mpn_rl.tasks.lanes import Lanes, VectorLanes

UP, DOWN, LEFT, RIGHT = range(4)
BATCHED = GridMazeVec.scripted


def picture(size: int) -> list[str]:
    return ["".join("#" if wall else "." for wall in row) for row in maze(size, 3).wall]


def place(env: GridMazeVec, row: int) -> tuple[int, int]:
    y, x = env.maze.position[env.cell[row]].tolist()
    return y, x


def number(size: int, row: int, col: int) -> int:
    return int(np.flatnonzero((maze(size, 3).position == (row, col)).all(axis=1))[0])


# --- the maze ---------------------------------------------------------------------------------------------


def test_pillars_stand_where_row_and_column_are_even_and_the_centre_is_free() -> None:
    assert picture(7) == ["#######", "#.....#", "#.#.#.#", "#.....#", "#.#.#.#", "#.....#", "#######"]
    assert picture(5) == ["#####", "#...#", "#...#", "#...#", "#####"]  # the only pillar would be the centre


@pytest.mark.parametrize(("size", "free", "pillars"), [(9, 41, 8), (11, 65, 16), (13, 97, 24)])
def test_the_papers_mazes_have_their_numbers_of_cells(size: int, free: int, pillars: int) -> None:
    assert (~maze(size, 3).wall).sum() == free
    assert (size - 2) ** 2 - free == pillars


@pytest.mark.parametrize("size", [5, 9, 13])
def test_distances_are_those_of_a_search_from_each_cell(size: int) -> None:
    free = {(row, col) for row, col in maze(size, 3).position.tolist()}
    for start in [(1, 1), (size // 2, size // 2), (size - 2, 1)]:
        steps, line = {start: 0}, deque([start])
        while line:
            row, col = line.popleft()
            for near in [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]:
                if near in free and near not in steps:
                    steps[near] = steps[row, col] + 1
                    line.append(near)
        found = distances(size)[number(size, *start)]
        assert found.tolist() == [steps[row, col] for row, col in maze(size, 3).position.tolist()]


# --- the episode ------------------------------------------------------------------------------------------


def test_the_default_observation_is_laid_out_as_in_the_public_code() -> None:
    env = GridMaze()
    first, _ = env.reset(seed=0)  # the centre of 11 x 11, (5, 5): pillars at its four corners
    window = [1, 0, 1, 0, 0, 0, 1, 0, 1]
    np.testing.assert_allclose(first, [*window, 0, 1, 0, 0, 1, 0, 0, 0])  # unused, bias, t / T, reward, "up"
    second, reward, *_ = env.step(RIGHT)  # to (5, 6), pillars above and below
    np.testing.assert_allclose(second, [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1 / 200, reward, 0, 0, 0, 1])
    assert first.dtype == second.dtype == np.float32


def test_channels_that_are_switched_off_leave_the_papers_14_inputs() -> None:
    env = GridMaze(clock=False, bias=False, unused=False)
    obs, _ = env.reset(seed=0)
    assert obs.tolist() == [1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0]
    assert list(env.rows.channels) == ["window", "previous reward", "previous action"]
    assert env.rows.channel_names[-5:] == ["previous reward", *(f"previous action {k}" for k in range(1, 5))]
    names = ("window", "clock", "bias", "unused", "previous_reward", "previous_action")
    for kept in names[1:]:
        shape = GridMaze(**{name: name == kept for name in names[1:]}, window=0).observation_space.shape
        assert shape == (4,) if kept == "previous_action" else (1,)


def test_a_wide_window_sees_wall_beyond_the_border() -> None:
    env = GridMazeVec(1, size=5, window=5)
    env.reset(seed=0)
    env.cell[:] = number(5, 1, 1)
    obs, *_ = env.step([UP])  # into the wall: stays
    expected = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert obs[0, :25].reshape(5, 5).tolist() == expected


def test_a_wall_stops_and_costs_its_penalty() -> None:
    env = GridMazeVec(1, size=7, wall_penalty=0.25)  # the centre (3, 3) is a crossing: two steps up is the border
    env.reset(seed=0)
    env.goal[:] = number(7, 5, 5)
    places, rewards = [], []
    for action in (UP, UP, UP, LEFT):
        _, reward, _, _, info = env.step([action])
        places.append(place(env, 0))
        rewards.append(float(reward[0]))
    assert places == [(2, 3), (1, 3), (1, 3), (1, 2)]
    assert rewards == [0.0, 0.0, -0.25, 0.0]


def test_a_find_is_paid_shown_and_followed_by_a_teleport() -> None:
    env = GridMazeVec(200)
    env.reset(seed=range(200))
    env.goal[:] = number(11, 5, 6)
    obs, reward, terminated, truncated, info = env.step(np.full(200, RIGHT))
    assert (reward == 10.0).all() and info["hit"].all() and not terminated.any() and not truncated.any()
    assert (obs[:, 12] == 10.0).all() and (env.hits == 1).all()
    assert (env.cell != env.goal).all() and len(np.unique(env.cell)) > 50
    np.testing.assert_array_equal(obs[:, :9], env.maze.view[env.cell])  # it sees where it is now
    assert (info["goal_row"] == 5).all() and (info["goal_col"] == 6).all()
    np.testing.assert_array_equal(np.stack([info["row"], info["col"]], axis=1), env.maze.position[env.cell])


def test_goals_and_teleports_are_uniform_over_the_cells_allowed() -> None:
    env = GridMazeVec(12_800)
    env.reset(seed=range(12_800))
    assert (env.cell == env.maze.centre).all()
    goals = np.bincount(env.goal, minlength=65)
    env.goal[:] = number(11, 5, 6)
    env.step(np.full(12_800, RIGHT))
    landings = np.bincount(env.cell, minlength=65)
    for counts, never in ((goals, env.maze.centre), (landings, number(11, 5, 6))):
        assert counts[never] == 0
        others = np.delete(counts, never)
        assert ((others - 200) ** 2 / 200).sum() < 103.4  # chi-square with 63 degrees of freedom, p = 0.001


def test_the_episode_is_what_a_slow_loop_makes_of_it() -> None:
    """Walls, finds, rewards and observations once more in plain Python; only the teleports are taken as they come."""
    rng, size = np.random.default_rng(0), 7
    env = GridMaze(size=size, episode_steps=300, wall_penalty=0.5, hit_reward=3.0)
    obs, _ = env.reset(seed=11)
    wall = {(r, c) for r, line in enumerate(picture(size)) for c, sign in enumerate(line) if sign == "#"}
    row, col = 3, 3
    goal = tuple(maze(size, 3).position[env.rows.goal[0]].tolist())
    finds = 0
    for t in range(1, 301):
        action = int(rng.integers(4))
        obs, reward, _, truncated, info = env.step(action)
        there = (row + (action == DOWN) - (action == UP), col + (action == RIGHT) - (action == LEFT))
        expected = 0.0
        if there in wall:
            expected = -0.5
        elif there == goal:
            expected = 3.0
            finds += 1
            row, col = info["row"], info["col"]
            assert (row, col) not in wall and (row, col) != goal
        else:
            row, col = there
        view = [float((row + y, col + x) in wall) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        one_hot = [float(action == other) for other in range(4)]
        np.testing.assert_allclose(obs, [*view, 0, 1, t / 300, expected, *one_hot], rtol=1e-6)
        assert (reward, info["row"], info["col"], truncated) == (expected, row, col, t == 300)
        assert (info["goal_row"], info["goal_col"], info["hit"]) == (*goal, there == goal)
    assert finds > 3


def test_the_time_limit_truncates_and_the_clock_keeps_the_tasks_own() -> None:
    env = GridMazeVec(2, episode_steps=10, max_episode_steps=4)
    env.reset(seed=0)
    for t in range(1, 5):
        obs, _, terminated, truncated, _ = env.step([0, 1])
        assert not terminated.any() and (truncated == (t == 4)).all()
        np.testing.assert_allclose(obs[:, 11], t / 10)
    assert GridMazeVec(1, episode_steps=10, max_episode_steps=40).limit == 10


# --- rows -------------------------------------------------------------------------------------------------


def test_a_row_is_the_single_environment_with_its_seed_whatever_the_others_do() -> None:
    rng = np.random.default_rng(1)
    env, singles = GridMazeVec(7, size=7), [GridMaze(size=7) for _ in range(7)]
    seeds = np.array([3, 3, 2**62, 0, 9, 10, 11])
    obs = env.reset_rows(np.arange(7), seeds)
    for row, one in enumerate(singles):
        np.testing.assert_array_equal(one.reset(seed=int(seeds[row]))[0], obs[row])
    for step in range(200):
        actions = rng.integers(4, size=7)
        obs, reward, _, _, info = env.step(actions)
        for row, one in enumerate(singles):
            its, earned, _, _, its_info = one.step(int(actions[row]))
            np.testing.assert_array_equal(its, obs[row])
            assert earned == reward[row] and its_info == {name: values[row] for name, values in info.items()}
        if step % 20 == 19:  # some are reset, in any order
            rows, fresh = rng.permutation(7)[:3], rng.integers(2**31, size=3)
            begun = env.reset_rows(rows, fresh)
            for row, seed, first in zip(rows, fresh, begun, strict=True):
                np.testing.assert_array_equal(singles[row].reset(seed=int(seed))[0], first)


def test_a_saved_batch_goes_on_exactly() -> None:
    rng = np.random.default_rng(2)
    env, other = GridMazeVec(5, size=7), GridMazeVec(5, size=7)
    env.reset(seed=4)
    other.reset(seed=99)
    actions = rng.integers(4, size=(150, 5))
    for step in actions[:50]:
        env.step(step)
    saved = env.state_dict()
    expected = [env.step(step) for step in actions[50:]]
    other.load_state_dict(saved)
    for step, (obs, reward, *_) in zip(actions[50:], expected, strict=True):
        again, earned, *_ = other.step(step)
        np.testing.assert_array_equal(again, obs)
        np.testing.assert_array_equal(earned, reward)


def test_what_a_step_returned_does_not_change_later() -> None:
    env = GridMazeVec(2)
    env.reset(seed=0)
    returned = env.step([LEFT, RIGHT])
    kept = [part.copy() for part in (*returned[:4], *returned[4].values())]
    env.step([RIGHT, LEFT])
    for part, copy in zip((*returned[:4], *returned[4].values()), kept, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_lanes_of_the_batch_are_lanes_of_single_environments() -> None:
    seeds, again = iter(range(1_000)), iter(range(1_000))
    batch = VectorLanes(make_vector_env(3, "GridMaze-v0", {"size": 5, "episode_steps": 7}), lambda: next(seeds))
    separate = Lanes(
        [make_gymnasium("GridMaze-v0", {"size": 5, "episode_steps": 7}) for _ in range(3)], lambda: next(again)
    )
    for actions in np.random.default_rng(3).integers(4, size=(30, 3)):
        np.testing.assert_array_equal(batch.obs, separate.obs)
        one, ended = batch.step(actions)
        two, theirs = separate.step(actions)
        assert ended == theirs
        np.testing.assert_array_equal(one.reward, two.reward)
        np.testing.assert_array_equal(one.truncated, two.truncated)


def test_an_episode_without_a_seed_is_new_and_repeats_after_the_same_seed() -> None:
    env = GridMaze()

    def goals() -> list[int]:
        env.reset(seed=5)
        found = []
        for _ in range(20):
            env.reset()
            found.append(int(env.rows.goal[0]))
        return found

    first = goals()
    assert len(set(first)) > 5 and first == goals()


# --- scripted policies ------------------------------------------------------------------------------------

# Mean reward of an episode, T = 200, hit 10, no penalty: of a simulator of its own (a separate implementation).
BOUNDS = {
    9: {"random": 14.8, "walk": 56, "explore": 350, "goal_known": 418},
    11: {"random": 7.7, "walk": 32, "explore": 230, "goal_known": 325},
    13: {"random": 5.5, "walk": 20, "explore": 157, "goal_known": 269},
}


@pytest.mark.parametrize("size", BOUNDS)
def test_scripted_policies_earn_what_is_known(size: int) -> None:
    env = GridMazeVec(2_000, size=size)
    for name, known in BOUNDS[size].items():
        reward = ve.play(env, BATCHED[name], range(2_000), np.random.default_rng(0))["reward"].sum(axis=1)
        error = reward.std() / len(reward) ** 0.5
        assert abs(reward.mean() - known) < 4 * error + 0.005 * known, (name, reward.mean(), error)


def test_learning_within_the_episode_shows_in_its_quarters() -> None:
    env = GridMazeVec(1_000)
    quarter = {
        name: ve.quarters(ve.play(env, policy, range(1_000), np.random.default_rng(0))["hit"]).mean(axis=0)
        for name, policy in BATCHED.items()
    }
    assert quarter["explore"][3] > 2.0 * quarter["explore"][0]
    np.testing.assert_allclose(quarter["walk"][1:], quarter["walk"][1:].mean(), rtol=0.25)
    np.testing.assert_allclose(quarter["goal_known"], quarter["goal_known"].mean(), rtol=0.05)


def test_the_walk_turns_back_only_at_a_dead_end_and_never_bumps() -> None:
    env = GridMazeVec(50)
    env.reset(seed=0)
    rng, before = np.random.default_rng(0), np.full(50, -1)
    for _ in range(100):
        actions = BATCHED["walk"](env, rng)
        *_, info = env.step(actions)
        assert not info["wall"].any()  # this maze has no dead ends
        assert (actions != np.array([DOWN, UP, RIGHT, LEFT, 9])[before]).all()
        before = actions


def test_a_scripted_policy_plays_the_single_environment_through_its_wrappers() -> None:
    env, rng = make_gymnasium("GridMaze-v0", {"size": 7}), np.random.default_rng(0)
    assert list(GridMaze.scripted) == list(BATCHED) == list(env.unwrapped.scripted)
    batch = GridMazeVec(1, size=7)
    expected = ve.play(batch, BATCHED["goal_known"], [8], rng)["reward"].sum()
    env.reset(seed=8)
    total = 0.0
    for _ in range(200):
        _, reward, _, over, _ = env.step(GridMaze.scripted["goal_known"](env, rng))
        total += reward
    assert over and total == expected > 300
    for policy in GridMaze.scripted.values():
        assert policy(env, rng) in range(4)


# --- as a Gymnasium task ----------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [{}, {"size": 5, "clock": False}, {"wall_penalty": 0.1, "hit_reward": -2}])
def test_gymnasiums_own_checks_pass(args: dict[str, Any]) -> None:
    check_env(gymnasium.make("GridMaze-v0", **args).unwrapped)


def test_the_ids_give_the_single_and_the_batched_environment() -> None:
    assert isinstance(gymnasium.make("GridMaze-v0").unwrapped, GridMaze)
    batch: Any = gymnasium.make_vec("GridMaze-v0", num_envs=3, vectorization_mode="custom")
    assert batch.reset(seed=0)[0].shape == (3, 17)


def test_the_time_limit_is_the_tasks_own_or_a_shorter_one() -> None:
    assert time_limit("GridMaze-v0") == 200
    assert time_limit("GridMaze-v0", {"episode_steps": 50}) == 50
    assert time_limit("GridMaze-v0", max_episode_steps=30) == 30
    assert time_limit("GridMaze-v0", max_episode_steps=300) == 200
    assert time_limit("CartPole-v1") == 500 and time_limit("CartPole-v1", max_episode_steps=7) == 7
    env = make_gymnasium("GridMaze-v0", {"episode_steps": 6}, max_episode_steps=4)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"size": 8}, "size must be odd, so that there is a centre, got 8"),
        ({"size": 3}, r"size must lie in \[5, 51\], got 3"),
        ({"size": 11.0}, "size must be a whole number, got 11.0"),
        ({"window": 4}, "window must be odd"),
        ({"episode_steps": 0}, "episode_steps must lie in"),
        ({"hit_reward": "ten"}, "hit_reward must be a number, got 'ten'"),
        ({"clock": "False"}, "clock must be true or false, got 'False'"),
        ({"colour": 1}, "'colour'; it takes size, episode_steps, hit_reward, wall_penalty, window, unused, bias"),
        (
            dict.fromkeys(("window", "unused", "bias", "clock", "previous_reward", "previous_action"), False),
            "the observation is empty: leave at least one channel on",
        ),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        make_gymnasium("GridMaze-v0", args)
    assert "\n" not in str(refusal.value)


def test_an_action_that_does_not_exist_is_refused() -> None:
    env = GridMaze()
    env.reset(seed=0)
    for action in (4, -1):
        with pytest.raises(ValueError, match=r"an action must lie in \[0, 3\]"):
            env.step(action)


def test_the_picture_shows_walls_agent_goal_and_the_way_so_far() -> None:
    env = GridMaze(render_mode="rgb_array")
    env.reset(seed=0)
    env.rows.goal[:] = number(11, 7, 7)

    def colour(frame: np.ndarray, row: float, col: float) -> str:
        y, x = int(36 + (row + 0.5) * 36), int((col + 0.5) * 36)
        return "#{:02X}{:02X}{:02X}".format(*frame[y, x])

    before = env.render()
    assert before is not None and before.shape == (432, 396, 3) and before.dtype == np.uint8
    assert (colour(before, 5, 5), colour(before, 7, 7)) == (ve.BLUE, ve.GREEN)
    assert (colour(before, 2, 2), colour(before, 1, 1)) == (ve.INK, ve.PAPER)
    for action in (DOWN, DOWN, RIGHT, RIGHT):
        env.step(action)
    after = env.render()
    assert after is not None and colour(after, 7, 7.3) == ve.YELLOW  # beside the "+10"
    assert colour(after, 6, 5) == ve.PALE  # the way to the find lies behind
    row, col = env.rows.maze.position[env.rows.cell[0]].tolist()
    assert colour(after, row, col) == ve.BLUE
    assert GridMaze().render() is None
