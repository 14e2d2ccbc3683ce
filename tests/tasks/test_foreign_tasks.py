"""Other people's tasks: what they may do, and one line with the task's own error and place for what they may not."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import main
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.options import ConfigError
from mpn_rl.rollout import evaluate, record_episodes, run_scripted
from mpn_rl.tasks import gymnasium_tasks
from mpn_rl.tasks.gymnasium_tasks import clean_info, make_gymnasium
from mpn_rl.tasks.lanes import Lanes

TINY = ["--num-envs", "2", "--eval-episodes", "1", "--hidden-dim", "4", "--embed-dim", "3", "--checkpoint-freq", "0"]


class Foreign(gymnasium.Env):
    """Counts its steps. `script` gives the answer of a later step, or raises, or is an answer of `reset`."""

    observation_space: spaces.Space = spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space: spaces.Space = spaces.Discrete(2)
    script: ClassVar[dict] = {}
    native: ClassVar[list] = []  # actions as the task gets them

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.script.get("reset", (self.seen(), {}))

    def seen(self):
        return np.array([self.t / 100, 0.5], np.float32)

    def step(self, action):
        self.t += 1
        self.native.append(action)
        answer = self.script.get(self.t, {})
        if isinstance(answer, type):
            raise answer("the task's own words")
        if isinstance(answer, tuple):
            return answer
        usual = {"obs": self.seen(), "reward": 1.0, "terminated": False, "truncated": False, "info": {}}
        return tuple({**usual, **answer}.values())


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gymnasium.register("Foreign-v0", Foreign)
    gymnasium.register("Limited-v0", Foreign, max_episode_steps=100)
    monkeypatch.setattr(Foreign, "script", {})
    monkeypatch.setattr(Foreign, "native", [])
    yield
    del gymnasium.registry["Foreign-v0"], gymnasium.registry["Limited-v0"]


def play(script: dict, steps: int, name: str = "Foreign-v0") -> list:
    Foreign.script = script
    env = make_gymnasium(name)
    env.reset(seed=0)
    return [env.step(0) for _ in range(steps)]


# --- a broken interface -----------------------------------------------------------------------------------

LINE = next(i for i, text in enumerate(inspect.getsourcelines(Foreign)[0]) if "raise answer" in text)
BROKEN = {
    "raise": (ValueError, "fails at step 3: ValueError: the task's own words (test_foreign_tasks.py, line {})"),
    "stop": (StopIteration, "fails at step 3: StopIteration: the task's own words"),
    "exit": (SystemExit, "fails at step 3: SystemExit"),
    "text": ({"reward": "1.0"}, "a reward must be a number, got '1.0'"),
    "none": ({"reward": None}, "a reward must be a number, got None"),
    "nan": ({"reward": float("nan")}, "gave the reward nan at step 3"),
    "two rewards": ({"reward": np.ones(2)}, "a reward must be a number, got array"),
    "info": ({"info": None}, "the info of a step must be a dict, got None"),
    "flag": ({"terminated": "False"}, "terminated must be True or False, got 'False'"),
    "longer": ({"obs": np.zeros(3, np.float32)}, "its shape is (3,), not (2,)"),
    "text obs": ({"obs": ["a", "b"]}, "does not fit its observation_space: it holds list values, not numbers"),
    "ragged": ({"obs": [[1.0], [1.0, 2.0]]}, "its rows differ in length"),
    "nan obs": ({"obs": np.array([0.0, np.nan])}, "gave nan in observation 1 at step 3"),
    "too large": ({"obs": np.array([1e300, 0.0])}, "gave inf in observation 0 at step 3"),
    "four": (
        (np.zeros(2), 0.0, False, {}),
        "step must return (observation, reward, terminated, truncated, info), got 4 v",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_task_that_breaks_the_interface_is_blamed_with_its_own_error_and_step(kind: str) -> None:
    answer, message = BROKEN[kind]
    with pytest.raises(ConfigError) as refusal:
        play({3: answer}, 5)
    line = inspect.getsourcelines(Foreign)[1] + LINE
    assert message.format(line) in str(refusal.value) and "\n" not in str(refusal.value)


def test_four_values_under_a_time_limit_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"not enough values .*; step must return \(observation, reward, term"):
        play({3: (np.zeros(2), 0.0, False, {})}, 5, "Limited-v0")


@pytest.mark.parametrize("answer", [np.zeros(2), None, (np.zeros(2),), (np.zeros(2), None), [np.zeros(2), {}]])
def test_a_reset_that_is_no_pair_is_explained(answer: object) -> None:
    with pytest.raises(ConfigError, match=r"at reset: reset must return \(observation, info\), got"):
        play({"reset": answer}, 0)


@pytest.mark.parametrize(
    ("space", "observation", "why"),
    [
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.5, 0.5]), "float64 values do not fit uint8"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([300, 0]), "int64 values do not fit uint8"),
        (spaces.Discrete(3), 3, "a whole number from 0 to 2"),
        (spaces.Discrete(3), 0.5, "a whole number from 0 to 2"),
        (spaces.MultiDiscrete([2, 2]), np.array([0, 2]), "its entries must lie below"),
        (spaces.Dict(a=spaces.Discrete(2)), {"b": 0}, "a dict with the keys a"),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": 2}, "a: it must be a whole number"),
        (spaces.Tuple([spaces.Discrete(2)]), (0, 1), "it must have 1 parts"),
    ],
)
def test_an_observation_outside_its_space_is_refused_and_not_altered(
    space: spaces.Space, observation: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Foreign, "observation_space", space)
    with pytest.raises(ConfigError, match=f"at reset that does not fit its observation_space: .*{why}"):
        play({"reset": (observation, {})}, 0)


@pytest.mark.parametrize("observation", [[1, 2], np.array([1.0, 2.0]), np.array([100, -100], np.int8), (True, False)])
def test_an_observation_of_another_number_type_is_accepted(observation: object) -> None:
    obs = play({1: {"obs": observation}}, 1)[0][0]
    assert obs.dtype == np.float32 and obs.tolist() == list(observation)


def test_a_failing_task_loses_nothing_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Foreign.script = {60: ZeroDivisionError}
    argv = ["train", "--experiment-name", "run", "--env-name", "Limited-v0", "--total-steps", "160", *TINY]
    assert main.main([*argv, "--log-freq", "1"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert "the task Limited-v0 fails at step 60: ZeroDivisionError" in last and "saved at step 118" in last
    Foreign.script = {}
    assert main.main(["train", "--experiment-name", "run", "--resume"]) == 0
    rows = [json.loads(line) for line in Path("experiments/run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 160


def test_lanes_stay_as_they_were_when_one_of_them_fails() -> None:
    lanes = Lanes([make_gymnasium("Foreign-v0"), make_gymnasium("Foreign-v0")], lambda: 7)
    lanes.step(np.array([0, 1]))
    before = lanes.state_dict()
    lanes.envs[1].unwrapped.script = {2: ValueError}  # of this lane only
    with pytest.raises(ConfigError):
        lanes.step(np.array([1, 1]))
    after = lanes.state_dict()
    assert [a.tolist() for a in before["actions"]] == [a.tolist() for a in after["actions"]]
    assert before["rewards"].tolist() == after["rewards"].tolist() and np.array_equal(before["obs"], after["obs"])


# --- episodes that cannot be repeated ----------------------------------------------------------------------


class Remembering(Foreign):
    """Subtracts the mean of all observations so far, as NormalizeObservation does."""

    total, seen_so_far = 0.0, 0

    def seen(self):
        self.total, self.seen_so_far = self.total + self.t, self.seen_so_far + 1
        return np.array([self.t - self.total / self.seen_so_far, 0.5], np.float32)


class Unseeded(Foreign):
    def seen(self):
        return np.random.random(2).astype(np.float32)


@pytest.mark.parametrize("task", [Remembering, Unseeded])
@pytest.mark.parametrize(
    "learner",
    [["--replay", "sequence"], ["--replay", "trial"], ["--algo", "a2c"]],
    ids=["sequences", "trials", "a2c"],
)
def test_a_task_that_cannot_repeat_an_episode_says_so_at_the_start_and_continues_with_new_ones(
    task: type, learner: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(gymnasium.registry, "Other-v0", gymnasium.envs.registration.EnvSpec("Other-v0", task))
    length = ["--max-episode-steps", "50", "--kernel", "reference"]
    run = ["train", "--experiment-name", "run"]
    argv = [*run, "--env-name", "Other-v0", *TINY, *learner, *length]
    assert main.main([*argv, "--total-steps", "120"]) == 0  # both lanes are in the middle of an episode
    err = capsys.readouterr().err
    assert err.count("note: Other-v0 does not repeat an episode") == 1 and "--resume --fresh-episodes" in err
    assert main.main([*run, "--resume", "--total-steps", "240"]) == 2
    assert "add --fresh-episodes" in capsys.readouterr().err
    assert main.main([*run, "--resume", "--fresh-episodes", "--total-steps", "240"]) == 0
    rows = [json.loads(line) for line in Path("experiments/run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 240


def test_only_a_resumed_run_takes_new_episodes(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["train", "--fresh-episodes"]) == 2
    assert "--fresh-episodes does nothing without --resume" in capsys.readouterr().err


def test_a_task_that_fails_in_its_first_steps_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Foreign.script = {5: {"obs": np.array([np.nan, 0.0], np.float32)}}
    assert main.main(["train", "--env-name", "Foreign-v0"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "gave nan in observation 0 at step 5" in err
    assert not list(tmp_path.iterdir())


# --- no time limit ----------------------------------------------------------------------------------------


def test_an_episode_without_a_time_limit_is_cut_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gymnasium_tasks, "LONGEST_EPISODE", 30)
    gymnasium_tasks._note_cut.cache_clear()
    config = cfg.make_config("train", {"env_name": "Foreign-v0", "hidden_dim": 4})
    env = registry.make_env(config.env)
    network = registry.make_network(config, registry.spaces(env))
    assert evaluate(network, [env], [0, 1]).lengths.tolist() == [30, 30]
    assert run_scripted(lambda env, rng: 0, env, [0]).lengths.tolist() == [30]
    lanes = registry.make_lanes(config, 1, lambda: 0)
    ended = [end.length for _ in range(65) for end in lanes.step(np.array([0]))[1]]
    assert ended == [30, 30] and len(lanes.state_dict()["actions"][0]) == 5
    err = capsys.readouterr().err
    assert err.count("note: Foreign-v0 has no time limit") == 1 and "--max-episode-steps" in err
    limited = registry.make_env(cfg.GymnasiumConfig(env_name="Foreign-v0", max_episode_steps=40))
    assert evaluate(network, [limited], [0]).lengths.tolist() == [40]


def test_an_argument_of_a_foreign_task_is_no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in the toolkit's own tasks does `episode_steps` end an episode."""

    class Named(Foreign):
        def __init__(self, episode_steps: int = 5) -> None:
            super().__init__()

    monkeypatch.setitem(gymnasium.registry, "Other-v0", gymnasium.envs.registration.EnvSpec("Other-v0", Named))
    monkeypatch.setattr(gymnasium_tasks, "LONGEST_EPISODE", 30)
    assert run_scripted(lambda env, rng: 0, make_gymnasium("Other-v0"), [0]).lengths.tolist() == [30]


# --- actions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "count", "choice", "native"),
    [
        (spaces.Discrete(3, start=1), 3, 2, 3),
        (spaces.MultiDiscrete([2, 3]), 6, 4, [1, 1]),
        (spaces.MultiDiscrete([[2], [2]]), 4, 3, [[1], [1]]),
        (spaces.MultiBinary(3), 8, 5, [1, 0, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2, start=5)]), 4, 3, (1, 6)),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), 4, 2, {"a": 1, "b": 0}),
    ],
)
def test_actions_of_several_parts_are_one_choice(
    space: spaces.Space, count: int, choice: int, native: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Foreign, "action_space", space)
    env = registry.make_env(cfg.GymnasiumConfig(env_name="Foreign-v0"))
    assert env.action_space == spaces.Discrete(count)
    env.reset(seed=0)
    for action in range(count):
        env.step(action)
    assert all(space.contains(action) for action in Foreign.native)
    assert len({str(action) for action in Foreign.native}) == count
    got = Foreign.native[choice]
    assert (got.tolist() if isinstance(got, np.ndarray | np.generic) else got) == native


def test_a_task_may_read_the_shape_of_its_action(monkeypatch: pytest.MonkeyPatch) -> None:
    play({}, 1)
    assert Foreign.native[0].shape == () and Foreign.native[0].dtype == np.int64
    monkeypatch.setattr(Foreign, "action_space", spaces.Box(-1.0, 1.0, (2, 2), np.float64))
    env = registry.make_env(cfg.GymnasiumConfig(env_name="Foreign-v0"))
    env.reset(seed=0)
    env.step(np.arange(4, dtype=np.float32) / 4)
    assert env.action_space.shape == (4,) and Foreign.native[-1].tolist() == [[0.0, 0.25], [0.5, 0.75]]
    assert Foreign.native[-1].dtype == np.float64


# --- foreign entries of the info --------------------------------------------------------------------------


def test_the_info_keeps_what_can_be_recorded() -> None:
    info = {"good": 1.5, "text": "a", 3: 1, "a b": 1, "../x": 1, "big": 2**70, "huge": 2**5000, "array": np.ones(3)}
    info |= {"none": None, "complex": 1j, "bytes": b"x", "number": np.int32(4), "flag": np.bool_(True)}
    clean = clean_info(info)
    expected = {"good": 1.5, "text": "a", "big": 2.0**70, "huge": float("inf"), "number": 4, "flag": True}
    assert clean == expected and all(type(value) in (float, str, int, bool) for value in clean.values())


@pytest.mark.parametrize(
    ("hit", "kept"), [("yes", {}), (None, {}), (float("nan"), {}), (1, {"hit": True}), (0.0, {"hit": False})]
)
def test_a_hit_is_a_bool_or_nothing(hit: object, kept: dict) -> None:
    assert clean_info({"hit": hit}) == kept


def test_hits_that_are_given_only_when_they_happen_fall_into_their_quarter() -> None:
    Foreign.script = {2: {"info": {"hit": True}}, 99: {"info": {"hit": 1}}, 100: {"info": {"hit": 1}}}
    env = make_gymnasium("Limited-v0")
    assert run_scripted(lambda env, rng: 0, env, [0]).quarters.tolist() == [[1.0, 0.0, 0.0, 2.0]]


def test_a_task_with_few_trial_entries_is_evaluated_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    infos = {5: {"new_trial": True, "gt": None}, 10: {"new_trial": True, "period": 3, "count": 2**70, 7: "x"}}
    Foreign.script = {t: {"info": infos.get(t, {"new_trial": False})} for t in range(1, 101)}
    argv = ["train", "--experiment-name", "run", "--env-name", "Limited-v0", "--total-steps", "220", *TINY]
    assert main.main(argv) == 0
    for command in (["eval", "--json"], ["analyze"], ["render", "--max-steps", "12"]):
        more = ["--num-eval-episodes", "2"] if command[0] == "eval" else []
        more += ["--num-episodes", "2"] if command[0] == "analyze" else []
        assert main.main([*command, "--experiment-name", "run", *more]) == 0, command


def test_a_space_that_cannot_be_flattened_names_its_part_and_the_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mission(spaces.Space):
        def contains(self, x: object) -> bool:
            return isinstance(x, str)

    mission = spaces.Dict(image=spaces.Box(0, 255, (3,), np.uint8), mission=Mission())
    monkeypatch.setattr(Foreign, "observation_space", mission)
    with pytest.raises(ConfigError, match=r"the part 'mission' of its .*ImgObsWrapper.*MODULE:TASK"):
        make_gymnasium("Foreign-v0")


def test_a_task_that_draws_nothing_is_filmed_by_its_observations_and_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Foreign, "action_space", spaces.Box(-1.0, 1.0, (3,), np.float32))
    argv = ["train", "--experiment-name", "run", "--env-name", "Limited-v0", "--algo", "td3", "--total-steps", "120"]
    assert main.main([*argv, "--num-envs", "1", "--eval-episodes", "1", "--hidden-dim", "4"]) == 0
    assert main.main(["render", "--experiment-name", "run", "--max-steps", "5"]) == 0
    assert "the task draws no pictures" in capsys.readouterr().err
    (film,) = Path("experiments/run/videos").iterdir()
    assert film.stat().st_size > 1000


def test_a_task_that_knows_no_pictures_is_made_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(Foreign):
        metadata: ClassVar = {"render_modes": ["human"]}

        def __init__(self, render_mode: str | None = None) -> None:
            assert render_mode in (None, "human")

    monkeypatch.setitem(gymnasium.registry, "Other-v0", gymnasium.envs.registration.EnvSpec("Other-v0", Screen))
    assert make_gymnasium("Other-v0", render_mode="rgb_array").reset(seed=0)[0].shape == (2,)


def test_pictures_of_several_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Foreign, "render", lambda self: np.zeros((9 + self.t // 2, 9, 3), np.uint8))
    config = cfg.make_config("train", {"env_name": "Limited-v0", "hidden_dim": 4})
    env = registry.make_env(config.env)
    network = registry.make_network(config, registry.spaces(env))
    with pytest.raises(
        ConfigError, match=r"the picture of step 2 has the size \(10, 9, 3\), the first one \(9, 9, 3\)"
    ):
        next(record_episodes(network, [env], [0], frames=True))


def test_a_missing_display_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_display(_self: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(Foreign, "render", no_display)
    monkeypatch.setattr(Foreign, "__repr__", lambda _self: "<gymnasium.envs.mujoco Foreign>")
    env = make_gymnasium("Foreign-v0")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"cannot be drawn: AttributeError.*MUJOCO_GL=egl"):
        env.render()
