"""The replay memories against a slow one that keeps everything in lists.

In the toy world every number tells where it is from: the observation is the time step within the episode, so
that anything shifted by one step, taken from the next episode or from another lane shows at once.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from mpn_rl.contracts import Batch, Played, Steps, map_state, state_parts
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import StateError
from trial_replay import ReplayBuffer, SequenceReplayBuffer, TrialReplayBuffer

SHAPES = [(2, 3), (4,)]  # two state tensors


@dataclass
class Lane:
    """An endless supply of episodes: episode number, step within it, and when it and its trial will end."""

    number: int
    rng: random.Random
    longest: int
    longest_trial: int
    episode: int = -1
    t: int = 0
    ends_at: int = 0
    trial_ends_at: int = 0

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.episode, self.t = self.episode + 1, 0
        self.ends_at, self.trial_ends_at = self.rng.randint(1, self.longest), self.rng.randint(1, self.longest_trial)

    def obs(self) -> list[float]:
        return [float(self.t), float(self.episode), float(self.number)]

    def state(self) -> float:
        """What every entry of the core's state before the step is: a function of lane, episode and step."""
        return 0.0 if self.t == 0 else self.number * 1e6 + self.episode * 100 + self.t

    def step(self) -> dict:
        record = {"obs": self.obs(), "state": self.state(), "action": self.rng.randrange(5), "reward": self.t + 0.25}
        self.t += 1
        ended = self.t == self.ends_at
        kind = self.rng.choice(["terminated", "truncated"]) if ended else ""
        record |= {"next_obs": self.obs(), "new_trial": self.t == self.trial_ends_at}
        record |= {"terminated": kind == "terminated", "truncated": kind == "truncated", "ended": ended}
        if record["new_trial"]:
            self.trial_ends_at = self.t + self.rng.randint(1, self.longest_trial)
        if ended:
            self.begin()
        return record


class World:
    """Lanes that step together; `step` feeds the buffer and passes the records on."""

    def __init__(self, lanes: int, longest: int, longest_trial: int = 8, seed: int = 0) -> None:
        self.lanes = [Lane(n, random.Random(f"{seed}-{n}"), longest, longest_trial) for n in range(lanes)]

    def step(self, *buffers: ReplayBuffer) -> list[dict]:
        records = [lane.step() for lane in self.lanes]
        columns = {name: np.array([record[name] for record in records]) for name in records[0]}
        steps = Steps(**{name: columns[name] for name in Steps._fields})
        before = torch.tensor(columns["state"], dtype=torch.float32)
        state = tuple(before.view(-1, *[1] * len(shape)).expand(-1, *shape).clone() for shape in SHAPES)
        for buffer in buffers:
            buffer.add(steps, state)
        return records


@dataclass
class Segment:
    """One segment, with copies of all that belongs to it."""

    first: int  # how many steps its lane had taken before it
    steps: list[dict]
    padding: int = 0
    initial: bool = False


@dataclass
class ListReplay:
    """The specification: whole episodes in lists, and every segment copied out of them when it is complete."""

    lanes: int
    lane_steps: float
    capacity: int
    burn_in: int = 0
    length: int = 0  # 0: whole trials
    stride: int = 0
    replay_state: str = "stored"
    reset_on_trial: bool = False
    segments: list[Segment] = field(default_factory=list)
    head: int = 0

    def __post_init__(self) -> None:
        self.episodes: list[list[dict]] = [[] for _ in range(self.lanes)]
        self.trial_start = [0] * self.lanes

    def add(self, records: list[dict]) -> None:
        self.head += 1
        for lane, record in enumerate(records):
            self.episodes[lane].append(record)
            self.complete(lane, record)
            if record["ended"]:
                self.episodes[lane], self.trial_start[lane] = [], 0
        while self.segments and self.segments[0].first < self.head - self.lane_steps:
            self.segments.pop(0)

    def complete(self, lane: int, record: dict) -> None:
        taken = len(self.episodes[lane])
        if self.length == 0:
            if record["ended"] or record["new_trial"]:
                self.append(lane, self.trial_start[lane], taken, 0)
                self.trial_start[lane] = taken
            return
        for learned in range(0, taken, self.stride):
            if learned + self.length >= taken:  # the first sequence that reaches this step
                if learned + self.length == taken or record["ended"]:
                    start = max(0, learned - self.burn_in)
                    self.append(lane, start, taken, self.burn_in - (learned - start))
                break

    def append(self, lane: int, start: int, stop: int, padding: int) -> None:
        episode = self.episodes[lane]
        fresh = start == 0 or (self.reset_on_trial and episode[start - 1]["new_trial"])
        initial = self.replay_state == "zero" or (fresh and self.burn_in + self.length != 1)
        first = self.head - len(episode) + start
        self.segments.append(Segment(first, copy.deepcopy(episode[start:stop]), padding, initial))
        self.segments = self.segments[-self.capacity :]


def check_row(batch: Batch, b: int, segment: Segment, burn_in: int, reset_on_trial: bool) -> None:
    """Row b of the batch holds the segment, the whole segment and nothing but the segment."""
    n, pad = len(segment.steps), segment.padding
    time = batch.action.shape[1]
    place = slice(pad, pad + n)
    wanted = [segment.steps[0]["obs"]] + [step["next_obs"] for step in segment.steps]
    assert batch.obs[b, pad : pad + n + 1].tolist() == wanted
    assert batch.action[b, place].tolist() == [step["action"] for step in segment.steps]
    for name in ("reward", "terminated"):
        values = getattr(batch, name)[b]
        assert values[place].tolist() == [float(step[name]) for step in segment.steps]
        assert not values[:pad].any() and not values[pad + n :].any()
    mask = [float(pad <= t < pad + n and t >= burn_in) for t in range(time)]
    assert batch.mask[b].tolist() == mask
    reset = [False] * (time + 1)
    reset[pad] = segment.initial
    for k, step in enumerate(segment.steps):
        reset[pad + k + 1] = reset_on_trial and step["new_trial"] and not step["ended"]
    assert batch.reset[b].tolist() == reset
    before = 0.0 if segment.initial else segment.steps[0]["state"]
    for part, shape in zip(batch.state0, SHAPES, strict=True):
        assert part.shape[1:] == shape and torch.equal(part[b], torch.full(shape, before))


def assert_same_contents(buffer: ReplayBuffer, slow: ListReplay, rng: np.random.Generator) -> None:
    assert len(buffer) == len(slow.segments)
    if not slow.segments:
        return
    # No two segments begin to learn at the same observation (step, episode, lane).
    wanted = {tuple(segment.steps[slow.burn_in - segment.padding]["obs"]): segment for segment in slow.segments}
    assert len(wanted) == len(slow.segments)
    batch = buffer.sample(30 * len(buffer), rng)
    for b in np.unique(batch.places, return_index=True)[1]:
        segment = wanted.pop(tuple(batch.obs[b, slow.burn_in].tolist()))
        check_row(batch, b, segment, slow.burn_in, slow.reset_on_trial)
    assert not wanted  # everything that should be there was drawn


# --- against the slow replay, for thousands of steps ---------------------------------------------------------


@pytest.mark.parametrize(
    ("burn_in", "length", "stride", "longest"),
    [
        (0, 1, 1, 7),  # transitions
        (0, 4, 4, 11),
        (0, 5, 2, 23),
        (3, 4, 2, 23),  # starts that fall into the burn-in
        (5, 4, 4, 9),  # a burn-in longer than many episodes
        (2, 1, 1, 6),
        (4, 6, 5, 60),
    ],
)
@pytest.mark.parametrize("replay_state", ["stored", "zero"])
@pytest.mark.parametrize("reset_on_trial", [False, True])
def test_sequences_equal_the_slow_replay(
    burn_in: int, length: int, stride: int, longest: int, replay_state: str, reset_on_trial: bool
) -> None:
    """Thousands of steps, the ring wrapped hundreds of times, episodes of all lengths."""
    lanes, capacity = 3, 3 * max(17, burn_in + length) + 1
    shape = {"burn_in": burn_in, "length": length, "stride": stride, "replay_state": replay_state}
    buffer = SequenceReplayBuffer(
        lanes, 3, capacity=capacity, state_shapes=SHAPES, reset_state_on_trial=reset_on_trial, **shape
    )
    slow = ListReplay(lanes, -(-capacity // lanes), capacity, reset_on_trial=reset_on_trial, **shape)
    world, rng, size = World(lanes, longest), np.random.default_rng(0), buffer.nbytes
    for step in range(3_000):
        slow.add(world.step(buffer))
        assert len(buffer) == len(slow.segments)
        if step < 60 or step % 97 == 0:
            assert_same_contents(buffer, slow, rng)
    assert buffer.nbytes == size


@pytest.mark.parametrize("replay_state", ["stored", "zero"])
@pytest.mark.parametrize("reset_on_trial", [False, True])
@pytest.mark.parametrize(("longest", "longest_trial"), [(30, 8), (6, 8), (12, 1)])
def test_trials_equal_the_slow_replay(
    longest: int, longest_trial: int, replay_state: str, reset_on_trial: bool
) -> None:
    lanes, capacity = 3, 20
    buffer = TrialReplayBuffer(
        lanes,
        3,
        capacity=capacity,
        max_steps=min(longest, longest_trial),
        state_shapes=SHAPES,
        replay_state=replay_state,
        reset_state_on_trial=reset_on_trial,
    )
    slow = ListReplay(lanes, np.inf, capacity, replay_state=replay_state, reset_on_trial=reset_on_trial)
    world, rng, size = World(lanes, longest, longest_trial), np.random.default_rng(0), buffer.nbytes
    for step in range(3_000):
        slow.add(world.step(buffer))
        assert len(buffer) == len(slow.segments)
        if step < 60 or step % 97 == 0:
            assert_same_contents(buffer, slow, rng)
    assert buffer.nbytes == size


# --- one claim at a time -------------------------------------------------------------------------------------


def play(buffer: ReplayBuffer, lengths: list[int], *, truncated: bool = False, trials: int = 10**9) -> None:
    """One lane of episodes: obs and reward are the step's number, the state before a step its negative."""
    for length in lengths:
        for t in range(length):
            last, ends_trial = t == length - 1, (t + 1) % trials == 0
            steps = Steps(
                obs=np.array([[t]]),
                action=np.array([t]),
                reward=np.array([t]),
                terminated=np.array([last and not truncated]),
                truncated=np.array([last and truncated]),
                next_obs=np.array([[t + 1]]),
                new_trial=np.array([ends_trial]),
            )
            buffer.add(steps, torch.full((1, 1), -float(t)))


def sequences(capacity: int, length: int, stride: int, **options) -> SequenceReplayBuffer:
    return SequenceReplayBuffer(1, 1, capacity=capacity, length=length, stride=stride, state_shapes=[(1,)], **options)


def rows_of(buffer: ReplayBuffer) -> tuple[Batch, list[int]]:
    """A batch in which every segment occurs, and the rows of one occurrence each."""
    batch = buffer.sample(40 * len(buffer), np.random.default_rng(0))
    rows = np.unique(batch.places, return_index=True)[1].tolist()
    assert len(rows) == len(buffer)
    return batch, rows


def test_observation_action_and_reward_belong_to_the_same_step() -> None:
    buffer = sequences(100, length=4, stride=4)
    play(buffer, [12])
    batch, rows = rows_of(buffer)
    for b in rows:
        time = batch.obs[b, :, 0]
        assert (time[1:] == time[:-1] + 1).all()
        assert torch.equal(batch.action[b].float(), time[:-1]) and torch.equal(batch.reward[b], time[:-1])


def test_time_limit_is_not_stored_as_terminal() -> None:
    for truncated in (True, False):
        buffer = sequences(100, length=3, stride=3)
        play(buffer, [3], truncated=truncated)
        batch, _ = rows_of(buffer)
        assert batch.terminated[0].tolist() == [0.0, 0.0, 0.0 if truncated else 1.0]


def test_last_observation_is_the_true_final_one() -> None:
    """Not the next episode's first, which is 0."""
    buffer = sequences(100, length=3, stride=3)
    play(buffer, [3, 3], truncated=True)
    assert buffer.sample(1, np.random.default_rng(0)).obs[0, :, 0].tolist() == [0, 1, 2, 3]


def test_no_sequence_crosses_an_episodes_end() -> None:
    """Episodes of 5 steps: sequences of 3 with stride 2 begin at 0 and 2; what is left begins at 4 in none."""
    buffer = sequences(100, length=3, stride=2)
    play(buffer, [5, 5, 4])
    batch, rows = rows_of(buffer)
    seen = sorted([t for t, m in zip(batch.obs[b, :-1, 0].tolist(), batch.mask[b], strict=True) if m] for b in rows)
    assert seen == [[0, 1, 2]] * 3 + [[2, 3], [2, 3, 4], [2, 3, 4]]


def test_every_step_of_every_episode_is_learned() -> None:
    for length, stride in ((4, 2), (4, 3), (4, 4), (1, 1)):
        for episode in range(1, 15):
            buffer = sequences(100, length=length, stride=stride, burn_in=3)
            play(buffer, [episode])
            batch, rows = rows_of(buffer)
            learned = {int(t) for b in rows for t in batch.obs[b, :-1, 0][batch.mask[b] > 0]}
            assert learned == set(range(episode))


def test_stored_state_is_the_one_before_the_first_observation() -> None:
    buffer = sequences(100, length=3, stride=3)
    play(buffer, [9])
    batch, rows = rows_of(buffer)
    assert sorted((batch.obs[b, 0, 0].item(), batch.state0[b].item()) for b in rows) == [(0, 0), (3, -3), (6, -6)]


def test_burn_in_starts_earlier_and_learns_the_same() -> None:
    """Learned steps 3-5 after two steps of burn-in: the state is the one before step 1."""
    buffer = sequences(100, length=3, stride=3, burn_in=2)
    play(buffer, [6])
    batch, rows = rows_of(buffer)
    (b,) = (b for b in rows if batch.obs[b, 2, 0] == 3)
    assert batch.obs[b, :, 0].tolist() == [1, 2, 3, 4, 5, 6] and batch.state0[b].item() == -1
    assert batch.mask[b].tolist() == [0, 0, 1, 1, 1] and not batch.reset[b].any()


def test_an_episodes_start_is_padded_in_front_and_starts_from_the_initial_state() -> None:
    """Nothing is there to burn in, so the first steps are learned, from M(0)."""
    buffer = sequences(100, length=3, stride=3, burn_in=2)
    play(buffer, [6])
    batch, rows = rows_of(buffer)
    (b,) = (b for b in rows if batch.obs[b, 2, 0] == 0)
    assert batch.obs[b, 2:, 0].tolist() == [0, 1, 2, 3] and batch.mask[b].tolist() == [0, 0, 1, 1, 1]
    assert batch.reset[b].tolist() == [False, False, True, False, False, False]


def test_trial_starts_reset_only_when_acting_did() -> None:
    for obeyed in (False, True):
        buffer = sequences(100, length=6, stride=6, reset_state_on_trial=obeyed)
        play(buffer, [6], trials=2)
        batch, _ = rows_of(buffer)
        assert batch.reset[0].tolist() == [True, False, obeyed, False, obeyed, False, False]


def test_a_sequence_that_starts_with_a_trial_starts_from_the_initial_state() -> None:
    """So that a trained M(0) gets its gradient there too."""
    buffer = sequences(100, length=2, stride=2, reset_state_on_trial=True)
    play(buffer, [8], trials=4)
    batch, rows = rows_of(buffer)
    assert {(batch.obs[b, 0, 0].item(), bool(batch.reset[b, 0])) for b in rows} == {
        (0, True),
        (2, False),
        (4, True),
        (6, False),
    }


def test_transitions_keep_the_state_beside_each_of_them() -> None:
    """The first one's too, and nothing resets: M(0) gets no gradient through single transitions."""
    buffer = sequences(100, length=1, stride=1)
    play(buffer, [4])
    batch, rows = rows_of(buffer)
    assert [batch.obs[b, :, 0].tolist() for b in rows] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert [batch.state0[b].item() for b in rows] == [0, -1, -2, -3]
    assert not batch.reset.any()


def test_zero_replay_state_keeps_no_states() -> None:
    buffer = sequences(100, length=2, stride=2, replay_state="zero")
    play(buffer, [8])
    batch, rows = rows_of(buffer)
    assert not batch.state0.any() and batch.reset[rows, 0].all()
    assert buffer.nbytes < sequences(100, length=2, stride=2).nbytes


def test_whole_trials_are_cut_to_the_longest_of_the_batch() -> None:
    buffer = TrialReplayBuffer(1, 1, capacity=10, max_steps=50, state_shapes=[(1,)])
    play(buffer, [3, 3])
    assert buffer.sample(4, np.random.default_rng(0)).action.shape == (4, 3)


def test_trials_of_an_episode_hand_their_state_on() -> None:
    buffer = TrialReplayBuffer(1, 1, capacity=10, max_steps=3, state_shapes=[(1,)])
    play(buffer, [9], trials=3)
    batch, rows = rows_of(buffer)
    starts = sorted((batch.obs[b, 0, 0].item(), batch.state0[b].item(), bool(batch.reset[b, 0])) for b in rows)
    assert starts == [(0, 0, True), (3, -3, False), (6, -6, False)]
    assert batch.obs[rows[0], :, 0].tolist() == [0, 1, 2, 3]  # the next trial's first observation is the last


def test_a_trial_longer_than_announced_is_refused() -> None:
    buffer = TrialReplayBuffer(1, 1, capacity=10, max_steps=3, state_shapes=[(1,)])
    with pytest.raises(ValueError, match="more than max_steps = 3"):
        play(buffer, [4])


# --- capacity means its number -------------------------------------------------------------------------------


def test_500_trials_are_500_trials_however_uneven_the_lanes() -> None:
    """One lane has trials of a single step, the other of nine."""
    buffer = TrialReplayBuffer(2, 3, capacity=500, max_steps=9, state_shapes=SHAPES)
    world = World(2, longest=9)
    for lane, length in zip(world.lanes, (1, 9), strict=True):
        lane.longest_trial, lane.trial_ends_at, lane.ends_at = length, length, 10**9
        lane.rng.randint = lambda low, high: high  # type: ignore[method-assign]
    ended = []
    for _ in range(2_000):
        ended += [tuple(record["obs"]) for record in world.step(buffer) if record["new_trial"]]
        assert len(buffer) == min(500, len(ended))
    batch, rows = rows_of(buffer)
    last = [tuple(batch.obs[b, int(batch.mask[b].sum()) - 1].tolist()) for b in rows]
    assert sorted(last) == sorted(ended[-500:])


@pytest.mark.parametrize("longest", [1, 3, 500])
def test_10000_transitions_are_10000_transitions(longest: int) -> None:
    """Many short episodes too: the newest 10,000 are there, no fewer and no more."""
    lanes = 16
    buffer = SequenceReplayBuffer(lanes, 3, capacity=10_000, length=1, stride=1, state_shapes=SHAPES)
    world, newest = World(lanes, longest), []
    for _ in range(700):
        newest += [tuple(record["obs"]) for record in world.step(buffer)]
        assert len(buffer) == min(10_000, len(newest))
    batch = buffer.sample(200_000, np.random.default_rng(0))
    assert {tuple(obs) for obs in batch.obs[:, 0].tolist()} == set(newest[-10_000:])


def test_a_capacity_that_the_lanes_do_not_divide_is_still_its_number() -> None:
    buffer, world = SequenceReplayBuffer(3, 3, capacity=10, length=1, stride=1, state_shapes=SHAPES), World(3, 5)
    for _ in range(50):
        world.step(buffer)
    assert len(buffer) == 10


@pytest.mark.parametrize("longest", [1, 4, 30])
def test_sequences_hold_the_capacity_in_steps(longest: int) -> None:
    """Every one of the newest steps can be sampled, but those of sequences that began before them."""
    lanes, capacity, length, stride = 2, 600, 10, 5
    buffer = SequenceReplayBuffer(lanes, 3, capacity=capacity, length=length, stride=stride, state_shapes=SHAPES)
    world, steps = World(lanes, longest), []
    for _ in range(1_000):
        steps += [tuple(record["obs"]) for record in world.step(buffer)]
    batch, rows = rows_of(buffer)
    held = {tuple(batch.obs[b, t].tolist()) for b in rows for t in range(length) if batch.mask[b, t]}
    assert held <= set(steps[-capacity:])
    open_or_begun_before = lanes * 2 * length
    assert len(held) >= capacity - open_or_begun_before
    assert longest > 1 or held == set(steps[-capacity:])


def test_a_buffer_too_small_for_one_sequence_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--buffer-size must hold one sequence of 7 steps .* 28 steps or more, got 24"
    ):
        SequenceReplayBuffer(4, 1, capacity=24, length=5, stride=5, burn_in=2, state_shapes=[(1,)])
    SequenceReplayBuffer(4, 1, capacity=28, length=5, stride=5, burn_in=2, state_shapes=[(1,)])


def test_nbytes_is_what_is_allocated_from_the_start() -> None:
    """50 steps of one lane: ring of 50 + 1, states for each transition; float32 but for int64 actions."""
    buffer = sequences(50, length=1, stride=1)
    allocated = [value.nbytes for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    allocated += [part.nbytes for parts in (buffer.states, buffer.open) for part in parts]
    size = buffer.nbytes
    assert size == sum(allocated) - buffer.t.nbytes
    identities = {name: id(value) for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}
    play(buffer, [7] * 40)
    assert buffer.nbytes == size
    assert {name: id(value) for name, value in vars(buffer).items() if isinstance(value, np.ndarray)} == identities


# --- sampling ------------------------------------------------------------------------------------------------


def test_sampling_is_uniform_and_repeats_with_its_seed() -> None:
    buffer = sequences(10, length=1, stride=1)
    play(buffer, [10])
    batch = buffer.sample(20_000, np.random.default_rng(0))
    # Binomial: 2,000 +- 42 each.
    assert np.abs(np.bincount(batch.places, minlength=10) - 2_000).max() < 4 * 42
    assert torch.equal(batch.weight, torch.ones(20_000))
    assert torch.equal(batch.obs, buffer.sample(20_000, np.random.default_rng(0)).obs)
    assert not torch.equal(batch.obs, buffer.sample(20_000, np.random.default_rng(1)).obs)


def test_a_batch_is_a_copy() -> None:
    buffer = sequences(50, length=3, stride=3)
    play(buffer, [9])
    saved = copy.deepcopy(buffer.state_dict())
    batch = buffer.sample(8, np.random.default_rng(0))
    for tensor in (batch.obs, batch.reward, batch.terminated, batch.state0, batch.action):
        tensor.fill_(77)
    for name, array in buffer.state_dict()["arrays"].items():
        assert np.array_equal(array, saved["arrays"][name]), name


def test_an_empty_buffer_cannot_be_sampled() -> None:
    for exponent in (None, 0.6):
        with pytest.raises(ValueError, match="no segment yet"):
            sequences(50, length=3, stride=3, priority_exponent=exponent).sample(1, np.random.default_rng(0))


def prioritised(exponent: float, importance: float) -> SequenceReplayBuffer:
    """Four transitions with priorities 1, 2, 3, 4."""
    buffer = sequences(4, length=1, stride=1, priority_exponent=exponent, importance_exponent=importance)
    play(buffer, [4])
    buffer.update_priorities(np.arange(4), np.array([1.0, 2.0, 3.0, 4.0]))
    return buffer


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_prioritised_sampling_frequencies(exponent: float) -> None:
    batch = prioritised(exponent, 0.4).sample(40_000, np.random.default_rng(0))
    share = np.arange(1, 5) ** exponent / (np.arange(1, 5) ** exponent).sum()
    counts = np.bincount(batch.places, minlength=4)
    assert np.abs(counts - 40_000 * share).max() < 4 * np.sqrt(40_000 * 0.25)


def test_importance_weights_by_hand() -> None:
    """P = 0.1, 0.2, 0.3, 0.4, so (N P)^-1 = 2.5, 1.25, 0.8333, 0.625, over the largest; with b = 1/2 their roots."""
    for importance in (1.0, 0.5, 0.0):
        batch = prioritised(1.0, importance).sample(1_000, np.random.default_rng(0))
        weights = dict(zip(batch.places.tolist(), batch.weight.tolist(), strict=True))
        expected = np.array([1.0, 1 / 2, 1 / 3, 1 / 4]) ** importance
        assert [weights[place] for place in range(4)] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_importance_weights_count_the_exponent_of_the_priorities(exponent: float) -> None:
    """With b = 1 they undo the sampling: weight x P is the same for all segments, and the largest weight is 1."""
    batch = prioritised(exponent, 1.0).sample(4_000, np.random.default_rng(0))
    weights = dict(zip(batch.places.tolist(), batch.weight.tolist(), strict=True))
    share = np.arange(1, 5) ** exponent
    assert [weights[place] for place in range(4)] == pytest.approx((share[0] / share).tolist(), rel=1e-5)
    mean = (batch.weight.numpy()[:, None] * (batch.places[:, None] == np.arange(4))).mean(axis=0)
    np.testing.assert_allclose(mean / mean.sum(), 0.25, atol=0.03)


def test_a_segment_of_priority_zero_stays_possible_and_its_weight_finite() -> None:
    buffer = prioritised(1.0, 1.0)
    buffer.update_priorities(np.arange(4), np.zeros(4))
    batch = buffer.sample(2_000, np.random.default_rng(0))
    assert set(batch.places.tolist()) == {0, 1, 2, 3} and torch.isfinite(batch.weight).all()
    assert batch.weight.tolist() == pytest.approx([1.0] * 2_000)


def test_the_largest_priority_is_kept_when_later_ones_are_smaller() -> None:
    """Priorities 1 to 4, then all 1: a new segment still gets 4, and is drawn in 4 of 7 cases."""
    buffer = prioritised(1.0, 0.4)
    buffer.update_priorities(np.arange(4), np.ones(4))
    play(buffer, [1])
    counts = np.bincount(buffer.sample(40_000, np.random.default_rng(0)).places, minlength=4)
    assert np.abs(counts - 40_000 * np.array([4, 1, 1, 1]) / 7).max() < 4 * np.sqrt(40_000 * 0.25)


def test_priorities_are_set_at_their_own_places() -> None:
    buffer = prioritised(1.0, 1.0)
    buffer.update_priorities(np.array([2, 0]), np.array([9.0, 0.0]))
    counts = np.bincount(buffer.sample(40_000, np.random.default_rng(0)).places, minlength=4)
    assert np.abs(counts - 40_000 * np.array([0, 2, 9, 4]) / 15).max() < 4 * np.sqrt(40_000 * 0.25)


def test_new_segments_get_the_largest_priority_so_far() -> None:
    """Priorities 1, 2, 3, 4; a fifth transition replaces the first, so two of four have priority 4."""
    buffer = prioritised(1.0, 0.4)
    play(buffer, [1])
    counts = np.bincount(buffer.sample(40_000, np.random.default_rng(0)).places, minlength=4)
    expected = 40_000 * np.array([4, 2, 3, 4]) / 13
    assert np.abs(counts - expected).max() < 4 * np.sqrt(40_000 * 0.25)


def test_prioritised_sampling_leaves_out_what_is_gone() -> None:
    buffer = sequences(8, length=2, stride=2, priority_exponent=1.0)
    play(buffer, [3] * 30)
    alive = set(buffer.sample(2_000, np.random.default_rng(0)).places.tolist())
    assert len(alive) == len(buffer)


# --- saving --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transition", "sequence", "trial"])
@pytest.mark.parametrize("priority_exponent", [None, 0.6])
def test_a_saved_buffer_goes_on_as_if_nothing_had_been(kind: str, priority_exponent: float | None) -> None:
    """Saved in mid-episode, loaded into a new buffer, and fed the same steps."""
    options = {"state_shapes": SHAPES, "priority_exponent": priority_exponent, "reset_state_on_trial": True}
    if kind == "trial":
        make = lambda: TrialReplayBuffer(3, 3, capacity=30, max_steps=8, **options)  # noqa: E731
    else:
        shape = {"length": 1, "stride": 1} if kind == "transition" else {"length": 5, "stride": 2, "burn_in": 3}
        make = lambda: SequenceReplayBuffer(3, 3, capacity=60, **shape, **options)  # noqa: E731
    world, buffer, resumed = World(3, 20), make(), make()
    for _ in range(157):
        world.step(buffer)
    assert any(lane.t > 0 for lane in world.lanes)
    if priority_exponent:
        buffer.update_priorities(buffer.sample(9, np.random.default_rng(1)).places, np.linspace(0.1, 3.0, 9))
    resumed.load_state_dict(copy.deepcopy(buffer.state_dict()))
    for seed in range(157):
        world.step(buffer, resumed)
        pair = [one.sample(20, np.random.default_rng(seed)) for one in (buffer, resumed)]
        for name, left, right in zip(Batch._fields, *pair, strict=True):
            for a, b in zip(state_parts(left), state_parts(right), strict=True):
                assert np.array_equal(np.asarray(a), np.asarray(b)), name


@pytest.mark.parametrize("steps", [1, 7, 40, 63, 64, 65, 200])
def test_only_the_filled_part_is_saved_and_it_comes_back_exactly(steps: int) -> None:
    """Three lanes whose rings have 60 + 4 slots; saved before, at and after the first time round."""

    def fresh() -> SequenceReplayBuffer:
        return SequenceReplayBuffer(3, 3, capacity=180, length=4, stride=2, state_shapes=SHAPES)

    buffer, world = fresh(), World(3, 20)
    for _ in range(steps):
        world.step(buffer)
    saved = buffer.state_dict()
    assert saved["arrays"]["obs"].shape == (3, min(steps, 64), 3)
    assert len(saved["arrays"]["segments"]) == len(saved["arrays"]["priorities"]) == len(buffer)
    assert len(saved["arrays"]["states_0"]) == min(buffer.states_written, len(buffer.states[0]))
    resumed = fresh()
    resumed.load_state_dict(copy.deepcopy(saved))
    again = resumed.state_dict()
    assert again["counters"] == saved["counters"]
    for name, array in saved["arrays"].items():
        assert np.array_equal(again["arrays"][name], array), name


@pytest.mark.parametrize("change", [{"head": 39}, {"last": 121}, {"states_written": 10**6}])
def test_counters_that_are_not_those_of_the_run_are_refused(change: dict[str, int]) -> None:
    buffer, world = SequenceReplayBuffer(3, 3, capacity=180, length=4, stride=2, state_shapes=SHAPES), World(3, 20)
    for _ in range(40):
        world.step(buffer)
    played = Played(40, buffer.t.copy(), 0, 9)
    buffer.check_played(played)
    for name, value in change.items():
        setattr(buffer, name, value)
    with pytest.raises(StateError, match="counters are not those of 40 steps of 3 lanes"):
        buffer.check_played(played)


def test_a_checkpoint_of_another_size_is_refused() -> None:
    buffer, world = SequenceReplayBuffer(3, 3, capacity=180, length=4, stride=2, state_shapes=SHAPES), World(3, 20)
    for _ in range(9):
        world.step(buffer)
    saved = copy.deepcopy(buffer.state_dict())
    saved["arrays"]["reward"] = saved["arrays"]["reward"][:, :1]  # which NumPy would spread over all steps
    with pytest.raises(ValueError, match="replay.arrays.reward"):
        SequenceReplayBuffer(3, 3, capacity=180, length=4, stride=2, state_shapes=SHAPES).load_state_dict(saved)


# --- helpers for states --------------------------------------------------------------------------------------


def test_map_state_keeps_the_shape_of_the_state() -> None:
    one, two = torch.ones(2), (torch.ones(2), torch.ones(3))
    assert torch.equal(map_state(torch.neg, one), -one)
    assert isinstance(map_state(torch.neg, two), tuple) and len(state_parts(two)) == 2 and state_parts(one) == (one,)


def test_a_batch_moves_whole() -> None:
    buffer = SequenceReplayBuffer(3, 3, capacity=60, length=4, stride=2, state_shapes=SHAPES)
    world = World(3, 20)
    for _ in range(40):
        world.step(buffer)
    batch = buffer.sample(2, np.random.default_rng(0)).to("meta")
    tensors = [value for value in batch if isinstance(value, torch.Tensor)] + list(batch.state0)
    assert len(tensors) == 9 and all(tensor.device.type == "meta" for tensor in tensors)


def test_ended_episodes_leave_no_segment_that_spans_them() -> None:
    """As in a run that continues with new episodes: what is complete stays, and the next step opens an episode."""
    buffer = sequences(100, length=4, stride=4)
    play(buffer, [6], truncated=True)
    buffer.t[:] = 6  # the episode goes on after its 6 steps: 4 of them are a sequence
    buffer.last -= 1
    buffer.end_episodes()
    play(buffer, [4])
    batch, rows = rows_of(buffer)
    assert [batch.obs[b, :, 0].tolist() for b in rows] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert all(bool(batch.reset[b, 0]) for b in rows)
    trials = TrialReplayBuffer(1, 1, capacity=9, max_steps=9, state_shapes=[(1,)])
    play(trials, [5], trials=3)
    trials.t[:], trials.opens_episode[:] = 2, False  # two steps of a trial that goes on
    trials.end_episodes()
    play(trials, [3])
    batch, rows = rows_of(trials)
    assert batch.obs[rows[-1], :4, 0].tolist() == [0, 1, 2, 3] and bool(batch.reset[rows[-1], 0])
