"""NeuroGymWrapper: what a trial-based task owes to an agent, checked on every task that can be trained."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import main
import neurogym_wrapper as ng
from mpn_rl.options import ConfigError
from mpn_rl.tasks.task_errors import TaskError

TASKS = ng.list_tasks()
TRAINABLE = [task.name for task in TASKS if task.trainable]
CONTINUOUS = [task.name for task in TASKS if task.continuous]
WITH_IDEAL = ["PerceptualDecisionMaking-v0", "ContextDecisionMaking-v0", "DelayMatchSample-v0"]
every_task = pytest.mark.parametrize("name", TRAINABLE)


def trajectory(env, seed, actions):
    """Observations, rewards and infos of one episode under fixed actions, as comparable bytes and values."""
    first, _ = env.reset(seed=seed)
    observations, rest = [first.copy()], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation.copy())
        rest.append((reward, terminated, truncated, info))
    return np.stack(observations).tobytes(), rest


def some_actions(env, steps, seed=3):
    """Mostly fixation, so that trials get somewhere, and every action now and then."""
    rng = np.random.default_rng(seed)
    if isinstance(env.action_space, gymnasium.spaces.Box):
        return [
            ng.random_policy(env, rng) if rng.random() < 0.3 else ng.never_act_policy(env, rng) for _ in range(steps)
        ]
    return [int(rng.integers(env.n_actions)) if rng.random() < 0.3 else 0 for _ in range(steps)]


def per_trial(env, policy, trials, seed=0):
    """Mean return and mean performance over the first completed trials of one episode."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    total, scores = 0.0, []
    while len(scores) < trials:
        _, reward, _, _, info = env.step(policy(env, rng))
        total += reward
        if info["new_trial"]:
            scores.append(info["performance"])
            returned = total
    return returned / trials, float(np.mean(scores))


def guessing_policy(env, rng):
    """Fixates until the decision is due, then picks one of the choices."""
    return int(rng.integers(1, env.n_actions)) if env.at_decision else 0


# --- Seeds ---


@every_task
def test_same_seed_and_actions_give_the_same_trajectory(name):
    one, other = ng.make_neurogym(name), ng.make_neurogym(name)
    actions = some_actions(one, 120)
    trajectory(other, 5, actions[:37])  # a past that must not matter
    assert trajectory(one, 11, actions) == trajectory(other, 11, actions)
    assert trajectory(one, 11, actions) == trajectory(one, 11, actions)


@every_task
def test_another_seed_gives_another_trajectory(name):
    env = ng.make_neurogym(name)
    actions = some_actions(env, 300)
    assert trajectory(env, 1, actions) != trajectory(env, 2, actions)


@pytest.mark.parametrize("name", ["PerceptualDecisionMaking-v0", "yang19.dms-v0", "AnnubesEnv-v0"])
def test_a_reset_without_a_seed_continues_the_stream(name):
    env = ng.make_neurogym(name)

    def two_episodes(seed):
        episodes = []
        for reset_seed in (seed, None):
            observations = [env.reset(seed=reset_seed)[0].copy()]
            observations += [env.step(0)[0].copy() for _ in range(60)]
            episodes.append(np.stack(observations).tobytes())
        return episodes

    first, second = two_episodes(4)
    assert first != second
    assert two_episodes(4) == [first, second]


def test_a_seed_means_the_same_in_another_process():
    # Python orders a set of names differently in each process; AnnubesEnv draws noise in that order.
    script = (
        "import hashlib, neurogym_wrapper as ng\n"
        "session = {('a', 'v', 'x'): 1.0}\n"
        "env = ng.make_neurogym('AnnubesEnv-v0', {'session': session, 'catch_prob': 0.1})\n"
        "seen = [env.reset(seed=3)[0].tobytes()] + [env.step(0)[0].tobytes() for _ in range(60)]\n"
        "print(hashlib.sha256(b''.join(seen)).hexdigest())\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_episodes_start_in_either_block():
    rules, likely = set(), set()
    reasoning = ng.make_neurogym("HierarchicalReasoning-v0")
    two_step = ng.make_neurogym("DawTwoStep-v0")
    for seed in range(20):
        reasoning.reset(seed=seed)
        rules.add(reasoning.conditions["rule"])
        two_step.reset(seed=seed)
        likely.add(two_step.conditions["hi_state"])
    assert rules == likely == {0, 1}


# --- Trials and episodes ---


@every_task
def test_the_first_trial_opens_with_its_first_observation_and_has_its_full_length(name):
    env = ng.make_neurogym(name)
    task = env.unwrapped
    observation, info = env.reset(seed=0)
    assert info == {}
    assert observation.dtype == np.float32 and observation.shape == env.observation_space.shape
    if name == "DawTwoStep-v0":
        np.testing.assert_array_equal(observation, [1, 0, 0])
    else:
        np.testing.assert_array_equal(observation, env.unwrapped.ob[0])
    assert env.unwrapped.t_ind == 0
    if name == "DawTwoStep-v0" or "roitman02" in name:  # fixation ends it; a first step ends it later
        return
    # Without a response a trial ends at its time limit, as the second one does, which NeuroGym starts itself.
    for _ in range(2):
        task = env.unwrapped
        expected = 1 if name == "Bandit-v0" else round(task.tmax / task.dt)
        expected -= name == "SpatialSuppressMotion-v0"  # 35 * 8.3 ms add up to less than 290.5 ms
        assert env.trial_steps == expected
        steps = 1
        while not env.step(ng.never_act_policy(env, None))[-1]["new_trial"]:
            steps += 1
        assert steps == expected


def test_the_first_observation_matches_a_trial_worked_by_hand():
    # A Go stimulus or a NoGo stimulus for five steps, then the fixation cue alone, then nothing.
    env = ng.make_neurogym("GoNogo-v0")
    first, _ = env.reset(seed=0)
    observations = [first.copy()] + [env.step(0)[0].copy() for _ in range(14)]
    stimulus = 1 + env.conditions["ground_truth"]
    expected = np.zeros((15, 3))
    expected[:10, 0] = 1
    expected[:5, stimulus] = 1
    np.testing.assert_array_equal(np.stack(observations), expected)


def test_a_trial_on_another_branch_of_a_schedule_opens_with_its_own_observation():
    env = ng.make_neurogym("yang19.rtgo-v0", {"timing": {"fixation": 0}})  # the stimulus shows at once
    env.reset(seed=0)
    opened = []
    for _ in range(60):
        observation, _, _, _, info = env.step(0)
        if info["new_trial"]:
            np.testing.assert_array_equal(observation, env.unwrapped.ob[0])
            opened.append(bool(observation[1:17].any()))  # first modality or second
    assert set(opened) == {True, False}


@every_task
def test_the_conditions_handed_out_are_those_of_the_trial_that_ended(name):
    env = ng.make_neurogym(name)
    env.reset(seed=2)
    ended = 0
    for action in some_actions(env, 600):
        before, flat = copy.deepcopy(env.unwrapped.trial), dict(env.conditions)
        info = env.step(action)[-1]
        if not info["new_trial"]:
            assert "trial" not in info
            continue
        ended += 1
        assert info["trial"] == flat
        for key, value in before.items():
            if isinstance(value, bool | int | float | np.generic):
                assert info["trial"][key] == value, key
            elif isinstance(value, np.ndarray) and value.size <= 16 and key != "transition":
                assert [info["trial"][f"{key}_{i}"] for i in range(len(value))] == value.tolist()
        assert all(isinstance(value, bool | int | float | str) for value in info["trial"].values())
    assert ended >= 2


def test_every_trial_of_a_task_has_the_same_condition_names():
    for name in ("AnnubesEnv-v0", "PostDecisionWager-v0", "DawTwoStep-v0", "EconomicDecisionMaking-v0"):
        env = ng.make_neurogym(name)
        env.reset(seed=0)
        names = set()
        for _ in range(50):
            env.new_trial()
            names.add(tuple(sorted(env.conditions)))
        assert len(names) == 1, name


def test_the_time_limit_truncates_and_never_terminates():
    env = ng.make_neurogym("ContextDecisionMaking-v0", {}, 50)
    for _ in range(2):
        env.reset(seed=0)
        ends = [env.step(0)[2:4] for _ in range(50)]
        assert not any(terminated for terminated, _ in ends)
        assert [truncated for _, truncated in ends] == [False] * 49 + [True]


def test_without_a_limit_an_episode_never_ends():
    env = ng.make_neurogym("GoNogo-v0")
    env.reset(seed=0)
    assert not any(terminated or truncated for _, _, terminated, truncated, _ in map(env.step, [0] * 500))


# --- Info ---


def test_info_names_period_decision_and_ground_truth_of_the_observation_acted_upon():
    env = ng.make_neurogym("PerceptualDecisionMaking-v0")  # 100 ms fixation, 2000 stimulus, 0 delay, 100 decision
    env.reset(seed=0)
    answer = env.conditions["ground_truth"] + 1  # choices 0, 1 are actions 1, 2
    infos = [env.step(0)[-1] for _ in range(23)]
    assert [info["period"] for info in infos[:22]] == ["fixation"] + ["stimulus"] * 20 + ["decision"]
    assert [info["decision"] for info in infos[:22]] == [False] * 21 + [True]
    assert [info["gt"] for info in infos[:22]] == [0] * 21 + [answer]
    assert [info["new_trial"] for info in infos] == [False] * 21 + [True, False]
    assert [info["trial_number"] for info in infos] == [0] * 22 + [1]
    assert infos[21]["performance"] == 0.0 and infos[21]["aborted"] is False
    assert "performance" not in infos[0]
    assert env.periods == {"fixation": (0, 1), "stimulus": (1, 21), "delay": (21, 21), "decision": (21, 22)}
    assert env.dt_ms == 100


@every_task
def test_info_agrees_with_what_the_task_itself_reports(name):
    env = ng.make_neurogym(name)
    env.reset(seed=1)
    for action in some_actions(env, 300):
        task, t, acted_on = env.unwrapped, env.unwrapped.t, env.ground_truth_action()
        inside = [period for period in env.periods if period in task.start_t and task.in_period(period, t)]
        if name in CONTINUOUS:
            np.testing.assert_array_equal(acted_on, task.gt[task.t_ind])
            gt = -1
        else:
            gt = int(task.gt[task.t_ind]) if env.has_ground_truth and name != "DawTwoStep-v0" else acted_on
            assert acted_on == gt
        info = env.step(action)[-1]
        assert info["gt"] == gt
        assert info["period"] in inside or (not inside and info["period"] in ("", "choice", "outcome"))


def test_a_fixation_break_is_a_punished_action_outside_the_decision():
    env = ng.make_neurogym("PerceptualDecisionMaking-v0")
    env.reset(seed=0)
    assert env.step(1)[-1]["fixation_break"] is True  # fixation
    assert env.step(1)[-1]["fixation_break"] is False  # stimulus: the task lets it pass
    for _ in range(19):
        env.step(0)
    assert env.step(3 - env.ground_truth_action())[-1]["fixation_break"] is False  # a wrong choice is no break


def test_a_trial_that_ends_before_its_decision_is_aborted():
    env = ng.make_neurogym("PerceptualDecisionMaking-v0")
    env.unwrapped.abort = True
    env.reset(seed=0)
    info = env.step(1)[-1]
    assert info["new_trial"] and info["aborted"] is True
    *_, info = (env.step(env.ground_truth_action())[-1] for _ in range(22))
    assert info["new_trial"] and info["aborted"] is False


def test_a_wager_trials_periods_do_not_linger():
    env = ng.make_neurogym("PostDecisionWager-v0")
    env.reset(seed=0)
    for _ in range(30):
        env.new_trial()
        assert ("pre_sure" in env.periods) == env.conditions["wager"]


# --- Reference policies and scores ---


@pytest.mark.parametrize("name", WITH_IDEAL)
def test_ground_truth_scores_one_and_guessing_half(name):
    env = ng.make_neurogym(name)
    assert per_trial(env, ng.ground_truth_policy, 200)[1] == 1.0
    guessed = per_trial(env, guessing_policy, 1000)[1]
    assert guessed == pytest.approx(ng.reference_scores(name)["guessing"], abs=0.05)  # three standard errors
    assert per_trial(env, ng.never_act_policy, 20) == (0.0, 0.0)


@every_task
def test_ground_truth_earns_more_than_random_wherever_there_is_one(name):
    env = ng.make_neurogym(name)
    if env.has_ground_truth:
        truth = per_trial(env, ng.ground_truth_policy, 40)[0]
        assert truth > per_trial(env, ng.random_policy, 40)[0] + 0.1
    else:
        assert env.ground_truth_action() == -1
        assert ng.ground_truth_policy(env, np.random.default_rng(0)) == 0


def test_only_these_tasks_have_no_ground_truth():
    without = {name for name in TRAINABLE if not ng.make_neurogym(name).has_ground_truth}
    reaching = {"Reaching1D-v0", "Reaching1DWithSelfDistraction-v0"}
    assert without == reaching | {"Bandit-v0", "EconomicDecisionMaking-v0", "PostDecisionWager-v0"}


def test_gonogo_tops_out_near_one_half_yet_its_ground_truth_has_score_one():
    env = ng.make_neurogym("GoNogo-v0")
    truth, performance = per_trial(env, ng.ground_truth_policy, 400)
    random, _ = per_trial(env, ng.random_policy, 400)
    assert performance == pytest.approx(0.5, abs=0.08)
    assert ng.normalised_score(truth, random, truth) == 1.0
    assert ng.normalised_score(random, random, truth) == 0.0


def test_normalised_score_worked_by_hand():
    assert ng.normalised_score(0.5, 0.25, 0.75) == 0.5
    assert ng.normalised_score(-0.5, 0.0, 2.0) == -0.25
    assert math.isnan(ng.normalised_score(0.5, 0.25, 0.25))


# --- Making tasks ---


def refusal(*args):
    with pytest.raises(ConfigError) as caught:
        ng.make_neurogym(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", [task.name for task in TASKS if not task.trainable])
def test_a_task_that_cannot_be_trained_is_refused_in_one_line(name):
    message = refusal(name)
    assert name in message and ng.LIST_COMMAND in message
    assert "reward is always zero" in message


def test_the_list_shows_every_registered_task_and_what_can_be_trained():
    assert len(TASKS) == len(ng.task_names()) == 52
    assert len(TRAINABLE) == 50
    rows = {task.name: task for task in TASKS}
    assert rows["PerceptualDecisionMaking-v0"] == ("PerceptualDecisionMaking-v0", 3, 3, 100, 22, True, "", False)
    assert rows["yang19.dms-v0"][1:5] == (33, 17, 100, 32)
    assert rows["ReachingDelayResponse-v0"].n_actions == 2
    assert CONTINUOUS == ["ReachingDelayResponse-v0", "SpatialSuppressMotion-v0"]


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list():
    message = refusal("ContextDecisionMakin-v0")
    assert "'ContextDecisionMaking-v0'" in message and ng.LIST_COMMAND in message
    assert "'GoNogo-v0'" in refusal("GoNogo")
    assert ng.LIST_COMMAND in refusal("zzzzzz")


def test_a_gymnasium_task_is_sent_to_train():
    assert "python main.py train --env-name CartPole-v1" in refusal("CartPole-v1")


def test_arguments_reach_the_task():
    env = ng.make_neurogym("PerceptualDecisionMaking-v0", {"dt": 50, "timing": {"stimulus": 1000}})
    assert env.dt_ms == 50
    assert env.periods["stimulus"] == (2, 22)


def test_arguments_of_a_collection_reach_the_task_inside():
    assert ng.make_neurogym("yang19.go-v0", {"dim_ring": 8}).n_actions == 9


def test_an_unknown_argument_is_answered_with_the_accepted_ones():
    message = refusal("PerceptualDecisionMaking-v0", {"timming": {}})
    assert "'timing'" in message and "dim_ring" in message and "sigma" in message
    assert "'dim_ring'" in refusal("yang19.go-v0", {"dim_rin": 8})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"timing": {"delai": 100}}, "--env-arg timing of DelayMatchSample-v0 has the keys fixation, sample, "),
        ({"timing": {"delai": 100}}, "got 'delai'; did you mean 'delay'?"),
        ({"rewards": {"corect": 2.0}}, "got 'corect'; did you mean 'correct'"),
        ({"rewards": [1]}, "--env-arg rewards must be a dict"),
    ],
)
def test_a_key_of_timing_or_rewards_that_the_task_never_reads_is_refused(args, message):
    assert message in refusal("DelayMatchSample-v0", args)
    known = {"timing": {"delay": 100}, "rewards": {"correct": 2.0}}
    assert ng.make_neurogym("DelayMatchSample-v0", known).unwrapped.timing["delay"] == 100


def test_an_argument_that_the_task_refuses_gives_one_line():
    assert "--env-arg timing must be a dict" in refusal("PerceptualDecisionMaking-v0", {"timing": 3})
    assert "--max-episode-steps" in refusal("GoNogo-v0", {}, 0)


def test_annubes_has_a_default_session_that_arguments_override():
    assert ng.make_neurogym("AnnubesEnv-v0").obs_dim == 4  # fixation, start, two modalities
    assert ng.make_neurogym("AnnubesEnv-v0", {"session": {"v": 1.0}}).obs_dim == 3


@pytest.mark.filterwarnings("ignore:.*render_modes")  # gymnasium.make complains about NeuroGym
def test_an_environment_built_by_gymnasium_can_be_wrapped_too():
    ng.task_names()  # registers the tasks
    env = ng.NeuroGymWrapper(gymnasium.make("GoNogo-v0", disable_env_checker=True, max_episode_steps=5), 30)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(30)] == [False] * 29 + [True]


def test_observations_of_box_discrete_and_dict_are_flattened():
    discrete, box = gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(0, 1, (2, 2), np.float64)
    space, flatten = ng.observation_flattener(gymnasium.spaces.Dict({"b": discrete, "a": box}))
    flat = flatten({"a": np.array([[0.1, 0.2], [0.3, 0.4]]), "b": 2})
    assert space.shape == flat.shape == (7,) and flat.dtype == np.float32
    np.testing.assert_allclose(flat, [0.1, 0.2, 0.3, 0.4, 0, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(ng.observation_flattener(discrete)[1](1), [0, 1, 0])
    sequence = gymnasium.spaces.Sequence(discrete)
    with pytest.raises(ConfigError, match="fixed size"):
        ng.observation_flattener(sequence)


def test_neurogym_is_imported_only_when_a_task_is_built():
    script = "import sys, neurogym_wrapper; sys.exit('neurogym' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": "."}, check=True)


def test_observation_channels_have_the_tasks_own_names():
    env = ng.make_neurogym("PerceptualDecisionMaking-v0", {}, 150)
    assert env.channel_names == ["fixation", "stimulus 1", "stimulus 2"]
    assert ng.make_neurogym("Bandit-v0", {}, 150).channel_names == ["obs_0"]
    assert ng.make_neurogym("GoNogo-v0", {}, 150).action_names == ["fixation", "go"]


# --- Periods, rewards and dt ---


def test_a_dt_that_removes_the_decision_is_refused_with_the_largest_that_keeps_it():
    message = refusal("ContextDecisionMaking-v0", {"dt": 200})
    assert "'decision' (100 ms)" in message and "dt=100" in message


@pytest.mark.parametrize("name", [name for name in TRAINABLE if name not in ("Bandit-v0", "DawTwoStep-v0")])
def test_the_largest_dt_that_a_refusal_names_keeps_every_period_and_a_coarser_one_is_refused(name):
    largest = float(refusal(name, {"dt": 1e6}).rpartition("dt=")[2])
    env = ng.make_neurogym(name, {"dt": largest})
    optional = {"pre_sure"}  # only some trials have it
    optional |= {"stimulus"} if name.startswith("yang19.rt") else set()
    durations = env.unwrapped.timing.items()
    off = {period for period, value in durations if value == 0 or (isinstance(value, tuple) and 0 in value)}
    for _ in range(20):
        assert all(end > start for period, (start, end) in env.periods.items() if period not in off)
        assert set(env.unwrapped.timing) - set(env.periods) <= optional | off
        env.new_trial()
    if name != "MotorTiming-v0":  # loses its "set" of 50 ms to its own dt of 80
        refusal(name, {"dt": 1.2 * largest})


def test_a_period_shortened_below_a_step_by_timing_is_refused():
    assert "'sample' (60 ms)" in refusal("DelayMatchSample-v0", {"timing": {"sample": 60}})
    assert "'delay' (50 ms)" in refusal("DelayMatchSample-v0", {"timing": {"delay": [50, 500]}})
    assert "'delay' (20 ms)" in refusal("DelayMatchSample-v0", {"timing": {"delay": ["uniform", [20, 500]]}})
    assert "'set' (60 ms)" in refusal("MotorTiming-v0", {"timing": {"set": 60}})
    assert ng.make_neurogym("DelayMatchSample-v0", {"timing": {"delay": 0}}).periods["delay"] == (8, 8)
    assert ng.make_neurogym("DelayMatchSample-v0", {"timing": {"delay": [0, 500]}}).trial_steps in (22, 27)
    assert ng.make_neurogym("MotorTiming-v0", {"dt": 80}).dt_ms == 80  # the default, which already lacks "set"


@pytest.mark.parametrize("dt", [0, -100, True, "fast", math.nan, math.inf])
def test_a_dt_that_is_no_duration_is_refused(dt):
    assert "dt" in refusal("PerceptualDecisionMaking-v0", {"dt": dt})


def test_an_unknown_period_or_reward_is_answered_with_the_known_ones():
    message = refusal("ContextDecisionMaking-v0", {"timing": {"stimulu": 500}})
    assert "'stimulus'" in message and "fixation, stimulus, delay, decision" in message
    assert "abort, correct, fail" in refusal("PerceptualDecisionMaking-v0", {"rewards": {"wrong": -1}})
    assert "'fixation'" in refusal("yang19.go-v0", {"timing": {"fixatio": 300}})
    assert ng.make_neurogym("PulseDecisionMaking-v0", {"n_bin": 8, "timing": {"bin7": 100}}).dt_ms == 10


def test_rewards_given_in_part_keep_the_others():
    env = ng.make_neurogym("AnnubesEnv-v0", {"rewards": {"correct": 2.0}})  # the task itself would forget the others
    assert env.unwrapped.rewards == {"abort": -0.1, "correct": 2.0, "fail": 0.0}


# --- Ideal observers and best policies ---


def simulated_ideal(env, trials, seed=0):
    """Accuracy of an observer that adds up the evidence of the relevant channels."""
    env.reset(seed=seed)
    right = []
    for _ in range(trials):
        task = env.unwrapped
        seen = {period: task.ob[task.start_ind[period] : task.end_ind[period]] for period in env.periods}

        def sign(period, first, seen=seen):
            return float((seen[period][:, first] - seen[period][:, first + 1]).sum()) > 0

        name = type(task).__name__
        if name == "DelayMatchSample":
            right.append((sign("sample", 1) == sign("test", 1)) == (task.trial["ground_truth"] == 1))
        else:
            context = task.trial.get("context", 0)
            first = task.trial["ground_truth"] == (1 if name == "ContextDecisionMaking" else 0)
            right.append(sign("stimulus", 1 + 2 * context) == first)
        env.new_trial()
    return np.mean(right)


@pytest.mark.parametrize(
    ("name", "env_args"),
    [
        ("PerceptualDecisionMaking-v0", {}),
        ("PerceptualDecisionMaking-v0", {"sigma": 4.0, "cohs": [3, 30]}),
        ("PerceptualDecisionMaking-v0", {"dt": 50, "timing": {"stimulus": [100, 1000]}}),
        ("ContextDecisionMaking-v0", {}),
        ("ContextDecisionMaking-v0", {"use_expl_context": True, "sigma": 3.0}),
        ("DelayMatchSample-v0", {"sigma": 15.0, "timing": {"test": 200}}),
    ],
)
def test_the_ideal_observer_of_any_arguments_agrees_with_its_simulation(name, env_args):
    ideal = ng.reference_scores(name, env_args)["ideal"]
    simulated = simulated_ideal(ng.make_neurogym(name, env_args), 4000)
    assert simulated == pytest.approx(ideal, abs=3 * math.sqrt(ideal * (1 - ideal) / 4000))


def test_the_ideal_observers_worked_by_hand():
    # Phi(sqrt(7) c / (100 sqrt(2) 0.1)) of c = 5, 15, 50: 0.8252, 0.9975, 1.0000
    assert ng.reference_scores("ContextDecisionMaking-v0")["ideal"] == pytest.approx(0.9409, abs=5e-5)
    # Phi(sqrt(20) c / (100 sqrt(2) 0.1)) of c = 0, 6.4, 12.8, 25.6, 51.2: 0.5, 0.9785, 1, 1, 1
    assert ng.reference_scores("PerceptualDecisionMaking-v0")["ideal"] == pytest.approx(0.8957, abs=5e-5)
    assert ng.reference_scores("PerceptualDecisionMaking-v0", {"cohs": [51.2]})["ideal"] == pytest.approx(1.0)
    assert ng.reference_scores("PerceptualDecisionMaking-v0", {"sigma": 0.0, "cohs": [0, 5]})["ideal"] == 0.75


def test_no_reference_is_given_where_none_is_known():
    assert ng.reference_scores("PerceptualDecisionMaking-v0", {"dim_ring": 4}) == {}
    assert ng.reference_scores("GoNogo-v0") == ng.reference_scores("CartPole-v1") == {}
    assert ng.reference_scores("ContextDecisionMaking-v0", {"timing": {"stimulus": ["uniform", [200, 800]]}}) == {}


@pytest.mark.parametrize("name", ["ReadySetGo-v0", "MotorTiming-v0"])
def test_the_best_script_of_timed_production_beats_the_ground_truth_at_any_shift(name):
    env = ng.make_neurogym(name)

    def shifted(env, rng, steps):
        later = min(env._index + steps, env.trial_steps - 1)
        return max(env._layout[later][0], 0)

    best = per_trial(env, env.scripted["best"], 60)[0]
    others = [per_trial(env, lambda env, rng, k=k: shifted(env, rng, k), 60)[0] for k in (-2, -1, 0, 1, 2)]
    assert best >= max(others) and best > others[2] + 0.05
    assert best == pytest.approx(1.0, abs=0.1)  # the largest reward of a trial


def test_the_ideal_observer_of_the_two_step_task_weighs_every_history_of_switches():
    env = ng.make_neurogym("DawTwoStep-v0", {}, 14)
    policy, rng = env.scripted["ideal"], np.random.default_rng(0)
    both = set()
    for seed in range(40):
        env.reset(seed=seed)
        seen = []  # (state, reward) of each trial
        for trial in range(7):
            chance = {1: 0.0, 2: 0.0}  # of each state to pay more now, summed over all histories
            for history in itertools.product((1, 2), repeat=trial + 1):
                p = 0.5
                for before, after in itertools.pairwise((history[0], *history)):
                    p *= 0.975 if before == after else 0.025
                for (state, reward), high in zip(seen, history, strict=False):
                    p *= 0.9 if (state == high) == bool(reward) else 0.1
                chance[history[-1]] += p
            action = policy(env, rng)
            if abs(chance[1] - chance[2]) > 1e-12:
                assert action == max(chance, key=chance.get)
                both.add(action)
            observation, reward, *_ = env.step(action)
            seen.append((int(np.argmax(observation)), reward))
            assert policy(env, rng) == 0
            env.step(0)
    assert both == {1, 2}


def test_the_two_step_task_has_bounds_that_know_and_that_do_not_know_the_better_state():
    env = ng.make_neurogym("DawTwoStep-v0", {}, 150)
    known, inferred = (per_trial(env, env.scripted[name], 3000)[0] for name in ("ground_truth", "ideal"))
    assert known == pytest.approx(0.8 * 0.9 + 0.2 * 0.1, abs=0.02)
    assert 0.5 + 0.1 < inferred < known - 0.02


# --- Continuous actions ---


def test_td3_trains_a_continuous_task_and_a_dqn_is_sent_to_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["train-neurogym", "--env-name", "ReachingDelayResponse-v0", *TINY]
    assert main.main([*argv, "--experiment-name", "dqn"]) == 2
    assert "--algo a2c or ppo or td3" in capsys.readouterr().err and not (tmp_path / "experiments").exists()
    for name in CONTINUOUS:
        argv = ["train-neurogym", "--env-name", name, "--algo", "td3", "--experiment-name", name, *TINY]
        assert main.main(argv) == 0
        assert main.main(["eval", "--experiment-name", name, "--num-eval-episodes", "2", "--json"]) == 0
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert scores["normalised_score"] is not None and scores["ground_truth_accuracy"] == 1.0


def test_the_list_names_the_learners_that_fit_each_task(capsys):
    assert main.main(["train-neurogym", "--list-envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    learners = {line.split()[0]: line.rpartition("  ")[2] for line in lines if "-v0 " in line}
    assert learners["GoNogo-v0"] == "dqn, a2c, ppo" and learners["ReachingDelayResponse-v0"] == "a2c, ppo, td3"


# --- A user's own tasks ---

TINY = ["--total-steps", "120", "--num-envs", "2", "--eval-episodes", "2", "--hidden-dim", "4",
        "--learning-starts", "40", "--buffer-size", "400", "--batch-size", "4", "--no-plot-training"]  # fmt: skip

MY_TASK = """
import gymnasium
import numpy as np
from neurogym.core import TrialEnv
from neurogym.utils import spaces
from neurogym.wrappers import Noise, PassAction, PassReward, ReactionTime, SideBias, TrialHistoryV2


class MyTask(TrialEnv):
    def __init__(self, dt=100, timing=None, rewards=None, broken=""):
        super().__init__(dt=dt)
        self.timing = {"fixation": 200, "stimulus": 300, "decision": 200} | (timing or {})
        self.rewards = {"correct": 1.0} | (rewards or {})
        self.choices = [1, 2]
        self.trials_so_far = 0
        self.noise = np.random.default_rng()
        self.broken = broken
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(3,), dtype=np.float32,
                                            name={"fixation": 0, "stimulus": [1, 2]})
        self.action_space = spaces.Discrete(3)

    def _new_trial(self, **kwargs):
        self.trials_so_far += 1
        trial = {"ground_truth": self.rng.choice(self.choices), "number": self.trials_so_far, 7: 2**70}
        trial.update(kwargs)
        self.add_period(["fixation", "stimulus", "decision"])
        self.add_ob(1, where="fixation")
        self.view_ob("stimulus")[:, trial["ground_truth"]] += 1 + self.noise.normal() + self.np_random.normal()
        self.set_groundtruth(trial["ground_truth"], period="decision")
        return trial

    def _step(self, action):
        reward, info = 0, {"new_trial": False, "gt": self.gt_now}
        if self.broken == "reward":
            reward = float("nan")
        if self.broken == "performance":
            self.performance = "good"
        if self.broken == "crash":
            self.missing
        ob = np.zeros(5, np.float32) if self.broken == "observation" else self.ob_now
        if self.in_period("decision") and action != 0:
            info["new_trial"] = True
            if action == self.gt_now:
                reward, self.performance = self.rewards["correct"], 1
        return ob, reward, False, False, info


class NoDecision(MyTask):
    def _new_trial(self, **kwargs):
        self.add_period(["fixation", "stimulus"])
        self.add_period("answer", duration=200, after="stimulus")
        self.add_ob(1, where="fixation")
        self.set_groundtruth(1, period="answer")
        return None

    def _step(self, action):
        return self.ob_now, float(action == self.gt_now), False, False, {}


class Flash(MyTask):
    def _new_trial(self, **kwargs):
        self.add_period(["fixation", "stimulus"])
        self.add_period("flash", duration=30, after="stimulus")
        self.add_period("decision", after="flash")
        self.set_groundtruth(1, period="decision")
        return {}


def wrapped(**kwargs):
    return PassReward(PassAction(Noise(MyTask(**kwargs))))


def biased():
    return SideBias(MyTask(), probs=[[0.8, 0.2], [0.2, 0.8]], block_dur=(2, 5))


def history():
    return TrialHistoryV2(MyTask())


def reacting():
    return ReactionTime(MyTask())


def no_task():
    return gymnasium.make("CartPole-v1")


gymnasium.register("MyTask-v0", "my_task:MyTask", kwargs={"dt": 50})
"""


@pytest.fixture
def my_task(tmp_path, monkeypatch):
    """A working directory with the module my_task, which this process has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_task.py").write_text(MY_TASK)
    sys.modules.pop("my_task", None)  # another test's
    gymnasium.registry.pop("MyTask-v0", None)
    yield importlib.import_module("my_task")
    del sys.modules["my_task"]
    gymnasium.registry.pop("MyTask-v0")


@pytest.mark.usefixtures("my_task")
def test_an_own_task_can_be_a_class_an_id_or_a_function():
    assert ng.make_neurogym("my_task:MyTask").dt_ms == 100
    assert ng.make_neurogym("my_task:MyTask-v0").dt_ms == 50
    assert ng.make_neurogym("my_task:wrapped", {"dt": 20}).obs_dim == 5  # previous action and reward
    assert "'MyTask'" in refusal("my_task:MyTsk") and "module" in refusal("my_task:MyTsk")
    assert "python main.py train" in refusal("my_task:no_task")
    assert "'timing'" in refusal("my_task:MyTask", {"timming": {}})
    assert "fixation, stimulus, decision" in refusal("my_task:MyTask", {"timing": {"delay": 100}})
    assert "'decision' (200 ms)" in refusal("my_task:MyTask", {"dt": 250})
    assert "'flash' (30 ms)" in refusal("my_task:Flash") and "dt=30" in refusal("my_task:Flash")


@pytest.mark.parametrize("name", ["MyTask", "wrapped", "biased", "history", "reacting"])
@pytest.mark.usefixtures("my_task")
def test_an_episode_of_an_own_task_is_a_function_of_its_seed(name):
    one, other = ng.make_neurogym(f"my_task:{name}"), ng.make_neurogym(f"my_task:{name}")
    actions = some_actions(one, 150)
    trajectory(other, 5, actions[:37])
    assert trajectory(one, 11, actions) == trajectory(other, 11, actions)
    first, rest = trajectory(one, 11, actions)
    assert trajectory(one, 12, actions)[0] != first
    assert next(step[-1]["trial"] for step in rest if step[-1]["new_trial"])["number"] == 1


@pytest.mark.usefixtures("my_task")
def test_an_own_task_has_the_info_of_neurogyms_own():
    env = ng.make_neurogym("my_task:MyTask")
    env.reset(seed=0)
    assert env.conditions["7"] == float(2**70)
    infos = [env.step(ng.ground_truth_policy(env, None))[-1] for _ in range(6)]
    assert [info["period"] for info in infos] == ["fixation"] * 2 + ["stimulus"] * 3 + ["decision"]
    assert [info["decision"] for info in infos] == [False] * 5 + [True]
    assert infos[-1]["performance"] == 1.0 and infos[-1]["aborted"] is False
    assert env.channel_names == ["fixation", "stimulus 1", "stimulus 2"]
    env = ng.make_neurogym("my_task:NoDecision")
    env.reset(seed=0)
    infos = [env.step(0)[-1] for _ in range(7)]
    assert [info["decision"] for info in infos] == [False] * 5 + [True] * 2


@pytest.mark.parametrize(
    ("broken", "said"),
    [("reward", "reward"), ("performance", "'good'"), ("crash", "my_task.py"), ("observation", "5 entries")],
)
@pytest.mark.usefixtures("my_task")
def test_an_own_task_that_fails_is_named_in_one_line(broken, said):
    assert said in refusal("my_task:MyTask", {"broken": broken})


@pytest.mark.usefixtures("my_task")
def test_an_own_task_goes_through_every_command(tmp_path, capsys):
    kernel = ["--kernel", "reference"]
    for command, env_name in [("train-neurogym", "my_task:MyTask"), ("train-neurogym", "my_task:wrapped"),
                              ("train", "my_task:MyTask-v0")]:  # fmt: skip
        name = f"{command}-{env_name.partition(':')[2]}"
        argv = [command, "--env-name", env_name, "--max-episode-steps", "40", "--experiment-name", name, *TINY, *kernel]
        assert main.main(argv) == 0, capsys.readouterr().err
        assert main.main(["eval", "--experiment-name", name, "--num-eval-episodes", "2", "--json"]) == 0
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert scores["episodes"] == 2 and scores.get("ground_truth_accuracy", 1.0) == 1.0
        assert main.main(["analyze", "collect", "--experiment-name", name, "--num-episodes", "2"]) == 0


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("reward", "the task MyTask gave the reward nan at step 8"),
        ("crash", "the task MyTask fails at step 8: AttributeError: .*my_task.py, line"),
        ("observation", "the observation of the task MyTask at step 8 has 5 entries, its observation_space has 3"),
        ("nan", "the task MyTask gave nan in observation 1 at step 8"),
    ],
)
@pytest.mark.usefixtures("my_task")
def test_an_own_task_that_fails_later_is_blamed_with_the_step(broken, said):
    env = ng.make_neurogym("my_task:MyTask")
    env.reset(seed=0)
    for _ in range(7):
        env.step(0)
    env.unwrapped.broken = broken
    if broken == "nan":
        env.unwrapped.ob[:, 1] = np.nan
    with pytest.raises(TaskError, match=said):
        env.step(0)
