import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from asynclab.distributed import Shared
from asynclab.envs import Step
from asynclab.memory import Replay, Rollout
from asynclab.training.state import Start

OBS, ACTION = Box(-np.inf, np.inf, (3,), np.float32), Box(-1, 1, (2,), np.float32)
NUM_ENVS = 4


def step(t):
    """Observation t + 1 of every environment; environment b's numbers are t + b / 10."""
    obs = np.add.outer(np.arange(NUM_ENVS) / 10, np.full(3, t + 1.0)).astype(np.float32)
    no = np.zeros(NUM_ENVS, bool)
    return Step(obs, np.full(NUM_ENVS, t, np.float32), no, no, {}, [])


def filled(steps, **kwargs):
    replay = Replay(OBS, ACTION, NUM_ENVS, **({"capacity": 40, "batch_size": 64} | kwargs))
    replay.reset(step(-1).obs)
    for t in range(steps):
        replay.add(np.full((NUM_ENVS, 2), t, np.float32), step(t))
    return replay


@pytest.mark.parametrize("steps", [1, 5, 10, 11, 12, 37])
def test_replay_samples_whole_transitions_of_the_last_capacity(steps):
    batch = filled(steps, batch_size=2_000).sample()
    t = batch.reward
    assert torch.equal(batch.action[:, 0], t)
    assert torch.equal(batch.obs.floor()[:, 0], t)
    torch.testing.assert_close(batch.next_obs, batch.obs + 1)
    assert set(t.tolist()) == set(range(max(0, steps - 10), steps))
    assert len(filled(steps)) == 4 * min(steps, 10)


def test_every_batch_has_another_newest_transition():
    replay = filled(7)
    batches = list(replay.batches(10**6))
    assert len(batches) == 7 * NUM_ENVS  # one update per frame
    last = [(b.reward[-1].item(), round(b.obs[-1, 0].item() % 1, 1)) for b in batches[:NUM_ENVS]]
    assert last == [(6.0, 0.0), (6.0, 0.1), (6.0, 0.2), (6.0, 0.3)]
    assert not list(replay.batches(10**6))


def test_the_newest_take_turns_when_there_are_fewer_batches_than_environments():
    replay = filled(7, updates_per_frame=0.25)
    seen = []
    for t in range(7, 11):
        replay.add(np.zeros((NUM_ENVS, 2), np.float32), step(t))
        seen += [round(b.obs[-1, 0].item() % 1, 1) for b in replay.batches(10**6)]
    assert set(seen) == {0.0, 0.1, 0.2, 0.3}


def test_without_combined_the_newest_is_one_of_many():
    rewards = [filled(10, combined=False, seed=seed, batch_size=1).sample().reward.item() for seed in range(200)]
    assert set(rewards) == {float(t) for t in range(10)}
    assert rewards.count(9.0) < 60


@pytest.mark.parametrize(("updates_per_frame", "expected"), [(1.0, 4), (0.25, 1), (2.0, 8), (0.1, 0.4)])
def test_updates_per_frame(updates_per_frame, expected):
    replay = filled(0, updates_per_frame=updates_per_frame)
    count = 0
    for t in range(10):
        replay.add(np.zeros((NUM_ENVS, 2), np.float32), step(t))
        count += len(list(replay.batches(10**6)))
    assert count == 10 * expected


def test_nothing_is_learned_before_the_global_clock_says_so():
    replay = filled(5, start=1_000)
    assert not list(replay.batches(999))
    replay.add(np.zeros((NUM_ENVS, 2), np.float32), step(5))
    assert len(list(replay.batches(1_000))) == NUM_ENVS  # and the warm-up is not made up for


def test_truncated_successors_leave_with_their_transition():
    replay = filled(0)
    for t in range(100):
        s = step(t)
        cut = np.array([t % 3 == 0, False, False, True])
        final = {b: np.full(3, 1000.0 + t, np.float32) for b in np.flatnonzero(cut)}
        replay.add(np.zeros((NUM_ENVS, 2), np.float32), s._replace(truncated=cut, final_obs=final))
        batch = replay.sample()
        was_cut = batch.next_obs[:, 0] >= 1000
        assert torch.equal(batch.next_obs[was_cut, 0], 1000 + batch.reward[was_cut])
    assert len(replay._final) == replay._truncated.sum() <= 2 * 11


def test_float_observations_are_kept_in_float32():
    space = Box(-np.inf, np.inf, (3,), np.float32)
    replay = Replay(space, ACTION, 1, capacity=10, batch_size=1)
    replay.reset(np.full((1, 3), 1e30, np.float32))
    no = np.zeros(1, bool)
    replay.add(np.zeros((1, 2), np.float32), Step(np.zeros((1, 3)), np.zeros(1, np.float32), no, no, {}, []))
    assert torch.isfinite(replay.sample().obs).all()


@pytest.mark.parametrize("memory", ["replay", "rollout"])
def test_the_estimate_is_what_is_allocated_and_observations_are_kept_once(memory):
    images = Box(0, 255, (4, 84, 84), np.uint8)
    if memory == "replay":
        made, rows = Replay(images, Discrete(6), 8, capacity=800, batch_size=1), 101
    else:
        made, rows = Rollout(images, Discrete(6), 8, horizon=32), 33
    arrays = [a for a in vars(made).values() if isinstance(a, np.ndarray)]
    assert made.nbytes() == sum(a.nbytes for a in arrays if a.ndim > 1)
    assert sum(a.nbytes for a in arrays if a.shape[2:] == (4, 84, 84)) == rows * 8 * 4 * 84 * 84


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"capacity": 3}, r"algo\.memory\.capacity=3 must be at least env\.num_envs=4"),
        ({"batch_size": 0}, r"algo\.memory\.batch_size=0"),
        ({"updates_per_frame": -1}, r"algo\.memory\.updates_per_frame=-1"),
        ({"capacity": "many"}, r"algo\.memory\.capacity=many must be a whole number"),
    ],
)
def test_replay_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        filled(0, **kwargs)


def sampled(memory):
    """Return a few batches as one tensor, which tells everything that the memory holds and how it samples."""
    batches = [memory.sample() for _ in range(3)]
    return torch.cat([torch.cat([x.float().flatten() for x in batch]) for batch in batches])


def reloaded(replay, **kwargs):
    """Return another replay that has taken over all that this one holds."""
    rest, segments = replay.state_dict(), [replay.segment(number) for number in replay.segments()]
    other = filled(0, seed=5, **kwargs)
    other.load_state_dict({name: array.copy() for name, array in rest.items()})
    for segment in segments:
        other.load_segment({name: array.copy() for name, array in segment.items()})
    return other


@pytest.mark.parametrize("capacity", [40, 4 * 100])  # in segments of one row or of two
@pytest.mark.parametrize("steps", [1, 7, 10, 11, 12, 37, 250])
def test_replay_goes_on_from_its_state(steps, capacity):
    replay = filled(steps, capacity=capacity)
    replay._truncated[replay._head - 1, 2] = True
    replay._final[(replay._head - 1) % len(replay._reward), 2] = np.full(3, 99, np.float32)
    rows = sum(len(replay.segment(number)["reward"]) for number in replay.segments())
    assert rows == len(replay) / NUM_ENVS == min(steps, capacity / NUM_ENVS)  # no more than it holds
    other = reloaded(replay, capacity=capacity)
    for memory in (replay, other):
        memory.add(np.full((NUM_ENVS, 2), steps, np.float32), step(steps))
    assert len(replay) == len(other)
    assert torch.equal(sampled(replay), sampled(other))
    assert len(list(replay.batches(10**6))) == len(list(other.batches(10**6)))


@pytest.mark.parametrize("steps", [0, 3, 4, 6])
def test_a_rollout_goes_on_from_its_state(steps):
    memories = [Rollout(OBS, ACTION, NUM_ENVS, horizon=4) for _ in range(2)]
    memories[0].reset(step(-1).obs)
    for t in range(steps):
        memories[0].add(np.full((NUM_ENVS, 2), t, np.float32), step(t))
    memories[1].load_state_dict({name: array.copy() for name, array in memories[0].state_dict().items()})
    batches = []
    for memory in memories:
        t = steps
        while not (found := list(memory.batches(0))):
            memory.add(np.full((NUM_ENVS, 2), t, np.float32), step(t))
            t += 1
        batches.append(found[0])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_saving_a_rollout_leaves_what_has_been_handed_out_as_it_is():
    memory = Rollout(OBS, ACTION, NUM_ENVS, horizon=4)
    memory.reset(step(-1).obs)
    for t in range(4):
        memory.add(np.full((NUM_ENVS, 2), t, np.float32), step(t))
    (batch,) = memory.batches(0)
    before = batch.obs.clone()
    saved = memory.state_dict()
    assert torch.equal(batch.obs, before)
    assert (len(saved["reward"]), saved["obs"].shape[0]) == (0, 1)
    assert np.array_equal(saved["obs"][0], step(3).obs)


def test_a_rollout_of_version_1_0_goes_on():
    memory, other = (Rollout(OBS, ACTION, NUM_ENVS, horizon=4) for _ in range(2))
    memory.reset(step(-1).obs)
    ended = step(0)._replace(terminated=np.eye(NUM_ENVS, dtype=bool)[0], truncated=np.eye(NUM_ENVS, dtype=bool)[1],
                             final_obs={1: np.full(3, 99, np.float32)})  # fmt: skip
    memory.add(np.zeros((NUM_ENVS, 2), np.float32), ended)
    state = {name: array.copy() for name, array in memory.state_dict().items()}
    state["done"] = state["terminated"] | state.pop("truncated")
    other.load_state_dict(state)
    assert all(np.array_equal(array, other.state_dict()[name]) for name, array in memory.state_dict().items())


@pytest.mark.parametrize("make", [lambda: Replay(OBS, ACTION, NUM_ENVS, capacity=40, batch_size=400),
                                  lambda: Rollout(OBS, ACTION, NUM_ENVS, horizon=4)])  # fmt: skip
def test_cut_episodes_keep_their_true_successors(make):
    memory = make()
    memory.reset(step(-1).obs)
    for t in range(2):
        memory.add(np.full((NUM_ENVS, 2), t, np.float32), step(t))
    memory.cut(step(499).obs)  # observations 500 belong to new episodes
    for t in (500, 501):
        memory.add(np.full((NUM_ENVS, 2), t, np.float32), step(t))
    if isinstance(memory, Replay):
        batch = memory.sample()
        torch.testing.assert_close(batch.next_obs, batch.obs + 1)
        assert set(batch.reward.tolist()) == {0.0, 1.0, 500.0, 501.0}
    else:
        (batch,) = memory.batches(0)
        assert batch.done[:, 0].tolist() == [False, True, False, False]
        assert batch.final_index.tolist() == [4, 5, 6, 7]
        torch.testing.assert_close(batch.final_obs, torch.from_numpy(step(1).obs))


def test_a_replay_of_earlier_versions_goes_on_too():
    """They had the ring in one file, as it lay in memory."""
    for steps in (7, 37):
        replay = filled(steps)
        full, numbers = steps > 10, json.loads(str(replay.state_dict()["json"]))
        numbers["numbers"] = {"head": steps % 11, "full": full, "due": 4.0 * steps, "turn": 0, "least": 0}
        columns = ("obs", "action", "reward", "terminated", "truncated")
        old = {name: getattr(replay, f"_{name}")[: 11 if full else steps + 1] for name in columns}
        old |= {
            "json": np.array(json.dumps(numbers)),
            "final_place": np.zeros((0, 2), int),
            "final_obs": np.zeros((0, 3)),
        }
        other = filled(0, seed=5)
        other.load_state_dict(old)
        assert len(other) == len(replay)
        assert torch.equal(sampled(replay), sampled(reloaded(other)))


@pytest.mark.parametrize(("frames", "needed"), [(0, 0), (12, 12), (100, 20), (300, 30), (400, 40), (10_000, 40)])
def test_a_memory_that_is_lost_needs_a_tenth_of_what_it_held(frames, needed):
    replay = filled(1, capacity=400, start=20)
    assert replay.refill(frames) == needed
    assert Rollout(OBS, ACTION, NUM_ENVS, horizon=4).refill(frames) == 0


def test_a_memory_that_begins_again_collects_its_own_warm_up():
    replay = filled(1, start=20)
    replay.refill(1_000)
    due = []
    for t in range(1, 8):
        replay.add(np.zeros((NUM_ENVS, 2), np.float32), step(t))
        due.append(len(list(replay.batches(10**6))))
    assert due == [0, 0, 0, 4, 4, 4, 4]  # from 20 transitions of its own, whatever the global clock says


def test_a_session_that_begins_late_collects_what_it_would_have_by_then(make_trial, tmp_path):
    trial = make_trial("sac", Shared(2))
    (store,) = trial.stores
    loops = [trial.session.begin(rank, store).loop for rank in (0, 1)]
    store.frames[1] = 1_000  # far beyond the warm-up
    for start in (Start(), Start(checkpoint=tmp_path, resumes=1)):  # whose checkpoint has nothing of this session
        loops.append(trial.session.begin(0, store, start=start).loop)
    held = []
    for loop in loops:
        loop.step()
        while not list(loop.memory.batches(store.total_frames())):
            loop.step()
        held.append(len(loop.memory))
        loop.envs.close()
    assert held[:2] == [2, 2]  # they began with the others
    assert held[2] == held[3] == loops[2].memory.start > 2
