"""NeuroGymWrapper: what a trial-based task owes to an agent, checked on every task that can be trained."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import neurogym_wrapper as ng
from mpn_rl.options import ConfigError

TASKS = ng.list_tasks()
TRAINABLE = [task.name for task in TASKS if task.trainable]
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
        assert env.trial_steps == expected
        steps = 1
        while not env.step(0)[-1]["new_trial"]:
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
            elif isinstance(value, np.ndarray) and key != "transition":
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
        gt = int(task.gt[task.t_ind]) if env.has_ground_truth and name != "DawTwoStep-v0" else acted_on
        info = env.step(action)[-1]
        assert info["gt"] == acted_on == gt
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


@pytest.mark.parametrize("name", ng.REFERENCES)
def test_ground_truth_scores_one_and_guessing_half(name):
    env = ng.make_neurogym(name)
    assert per_trial(env, ng.ground_truth_policy, 200)[1] == 1.0
    guessed = per_trial(env, guessing_policy, 1000)[1]
    assert guessed == pytest.approx(ng.REFERENCES[name]["guessing"], abs=0.05)  # three standard errors
    assert ng.REFERENCES[name]["ideal"] > guessed
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
    assert "continuous" in message or "reward is always zero" in message


def test_the_list_shows_every_registered_task_and_what_can_be_trained():
    assert len(TASKS) == len(ng.task_names()) == 52
    assert len(TRAINABLE) == 48
    rows = {task.name: task for task in TASKS}
    assert rows["PerceptualDecisionMaking-v0"] == ("PerceptualDecisionMaking-v0", 3, 3, 100, 22, True, "")
    assert rows["yang19.dms-v0"][1:5] == (33, 17, 100, 32)
    assert rows["ReachingDelayResponse-v0"].why_not.startswith("its 2 actions are continuous")


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
        ({"timing": {"delai": 100}}, "--env-arg timing of DelayMatchSample-v0 must have keys among fixation, sample, "),
        ({"timing": {"delai": 100}}, "got 'delai'; did you mean 'delay'?"),
        ({"rewards": {"corect": 2.0}}, "got 'corect'; did you mean 'correct'"),
        ({"rewards": [1]}, "--env-arg rewards must be a dict"),
    ],
)
def test_a_key_of_timing_or_rewards_that_the_task_never_reads_is_refused(args, message):
    assert message in refusal("DelayMatchSample-v0", args)
    known = {"timing": {"delay": 100}, "rewards": {"correct": 2.0}}
    assert ng.make_neurogym("DelayMatchSample-v0", known).unwrapped.timing["delay"] == 100


def test_an_argument_that_the_task_refuses_is_told_in_one_line():
    assert "PerceptualDecisionMaking-v0" in refusal("PerceptualDecisionMaking-v0", {"timing": 3})
    assert "--max-episode-steps" in refusal("GoNogo-v0", {}, 0)


def test_annubes_has_a_default_session_that_arguments_override():
    assert ng.make_neurogym("AnnubesEnv-v0").obs_dim == 4  # fixation, start, two modalities
    assert ng.make_neurogym("AnnubesEnv-v0", {"session": {"v": 1.0}}).obs_dim == 3


@pytest.mark.filterwarnings("ignore:.*render_modes")  # gymnasium.make complains about NeuroGym
def test_an_environment_made_by_gymnasium_can_be_wrapped_too():
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


def test_neurogym_is_imported_only_when_a_task_is_made():
    script = "import sys, neurogym_wrapper; sys.exit('neurogym' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": "."}, check=True)


def test_observation_channels_have_the_tasks_own_names():
    env = ng.make_neurogym("PerceptualDecisionMaking-v0", {}, 150)
    assert env.channel_names == ["fixation", "stimulus 1", "stimulus 2"]
    assert ng.make_neurogym("Bandit-v0", {}, 150).channel_names == ["obs_0"]
