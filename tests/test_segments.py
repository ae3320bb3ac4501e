"""A replay on the disk: what checkpoints share, what a kill leaves, and how much room it takes."""

import errno
import json
import multiprocessing as mp
import os
import random
import time
from pathlib import Path

import pytest
import torch
from replays import NUM_ENVS, ROWS, filled, save_for_ever, step, take

from asynclab.storage import checkpoint, snapshot
from asynclab.storage.checkpoint import Checkpoints
from asynclab.storage.segments import MemoryFiles


def hold_the_same(first, second):
    """Whether two replays hold the same and sample alike."""
    batches = [[memory.sample() for _ in range(4)] for memory in (first, second)]
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(*batches, strict=True) for a, b in zip(x, y, strict=True)
    )


def loaded(folder, names=None):
    replay = filled(0)
    names = [path.name for path in folder.iterdir()] if names is None else names
    assert MemoryFiles(folder.parent / "reader", 0).load(replay, folder, names)
    return replay


@pytest.mark.parametrize("links", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_snapshot_has_all_and_writes_what_is_new(tmp_path, monkeypatch, links):
    def refuse(self, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    replay, files, folders, t = filled(0), MemoryFiles(tmp_path, 0), [], 0
    for number, steps in enumerate([5, 200, 1, 0, 2 * ROWS, 30]):
        for _ in range(steps):
            take(replay, t)
            t += 1
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        described = files.save(replay, folders[-1])
        assert {path.name for path in folders[-1].iterdir()} == set(described)
        for name, file in described.items():
            assert snapshot.describe(folders[-1] / name) == file
        assert hold_the_same(loaded(folders[-1]), loaded(tmp_path / ".session_00"))
        assert hold_the_same(loaded(folders[-1]), replay)
        replay = loaded(folders[-1])  # what has been sampled from it has moved on
    if links:
        take(replay, t)
        before = {path.stat().st_ino for path in folders[-1].iterdir()}
        (tmp_path / "next").mkdir()
        files.save(replay, tmp_path / "next")
        new = [path.name for path in (tmp_path / "next").iterdir() if path.stat().st_ino not in before]
        assert len(before) >= 64
        assert len(new) <= 3  # the rest, the last segment, and perhaps a new one


def test_a_snapshot_stays_as_it_was_when_later_ones_are_taken(tmp_path):
    replay, files = filled(70), MemoryFiles(tmp_path, 0)
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    described = files.save(replay, folders[0])
    for t in range(70, 90):
        take(replay, t)
    files.save(replay, folders[1])
    assert {name: snapshot.describe(folders[0] / name) for name in described} == described
    assert len(loaded(folders[0])) == 70 * NUM_ENVS


def test_what_was_cut_short_by_a_restart_stays_so_in_the_snapshots_after_it(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    names = MemoryFiles(tmp_path, 0).save(filled(64), first)  # its last segment is complete
    for rows in (64, 65):
        replay, files = filled(0), MemoryFiles(tmp_path, 0)
        assert files.load(replay, first, names) if rows == 64 else files.load(replay)
        replay.cut(step(999).obs)
        take(replay, 1_000)
        second = tmp_path / str(rows)
        second.mkdir()
        files.save(replay, second)
        batch = loaded(second).sample()
        last = batch.reward == (63 if rows == 64 else 1_000)
        torch.testing.assert_close(batch.next_obs, batch.obs + 1)
        assert last.any()


def test_a_session_that_has_saved_nothing_has_nothing_to_load(tmp_path):
    assert not MemoryFiles(tmp_path, 0).load(filled(0))
    assert not MemoryFiles(tmp_path, 0).load(filled(0), tmp_path, ["session_00.pt"])


@pytest.mark.slow
def test_30_kills_at_random_moments_of_saving_lose_nothing_that_was_saved(tmp_path):
    rng, steps = random.Random(0), 0
    for _ in range(30):
        process = mp.get_context("forkserver").Process(target=save_for_ever, args=(tmp_path,), daemon=True)
        before = len(list(tmp_path.glob("done_*")))
        process.start()
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("done_*"))) == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        replay = filled(0)
        assert MemoryFiles(tmp_path, 0).load(replay)
        batch = replay.sample()
        torch.testing.assert_close(batch.next_obs, batch.obs + 1)
        assert set(batch.reward.tolist()) <= set(map(float, replay._held()))
        done = max(int(path.name.removeprefix("done_")) for path in tmp_path.glob("done_*"))
        assert replay._held().stop >= done > steps
        steps = done


@pytest.fixture
def commit(make_trial, tmp_path):
    """Return a function that takes a checkpoint of a replay."""
    (store,) = make_trial().stores
    checkpoints, files = Checkpoints(tmp_path, keep=3), MemoryFiles(tmp_path / "checkpoints", 0)

    def run(replay, number, best=False):
        folder = snapshot.partial(tmp_path / "checkpoints", number)
        return checkpoints.commit(number, [store], {"config": {}}, files.save(replay, folder), best)

    return run


def bytes_of_segments(folder):
    found = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("session_00_*.npz")}
    return sum(found.values())


@pytest.mark.parametrize(("steps", "times"), [(ROWS // 20, 1.2), (2 * ROWS, 2.0)])
def test_the_disk_has_the_ring_about_once_and_at_most_twice(commit, tmp_path, steps, times):
    replay, t, most = filled(ROWS), ROWS, 0
    for number in range(8):
        for _ in range(steps):
            take(replay, t)
            t += 1
        path = commit(replay, number, best=number == 2)
        most = max(most, bytes_of_segments(tmp_path))
    ring = bytes_of_segments(path)
    assert len(loaded(path)) == ROWS * NUM_ENVS
    assert ring <= most <= 1.01 * times * ring
    best = checkpoint.load(tmp_path, "best")
    assert best.path.name == "000002"
    assert not list(best.path.glob("*.npz"))


def test_a_damaged_segment_is_noticed_where_it_is_needed(commit, tmp_path, caplog):
    replay = filled(100)
    commit(replay, 0)
    for t in range(100, 200):
        take(replay, t)
    latest = commit(replay, 1)
    segment = max(latest.glob("session_00_*.npz"))
    segment.write_bytes(segment.read_bytes()[:-1])
    assert checkpoint.load(tmp_path, memories=False).path == latest
    assert checkpoint.load(tmp_path).path.name == "000000"
    assert f"{segment} is damaged" in caplog.text


def test_a_checkpoint_whose_memories_are_not_to_be_kept_is_signed_anew_only_if_it_is_whole(commit, tmp_path):
    first = commit(filled(10), 0)
    (first / "manifest.json").write_text((first / "manifest.json").read_text().replace('"frames": 0', '"frames": 7'))
    for number in (1, 2):
        commit(filled(10), number)
    assert json.loads((first / "manifest.json").read_text())["frames"] == 7
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        checkpoint.load(tmp_path, "0")


@pytest.mark.parametrize(
    "written", [0, 3, 18]
)  # of 18 files that are new: segments 7 to 24 with the last one, the rest
def test_a_disk_that_is_full_leaves_what_was_saved(tmp_path, monkeypatch, written):
    replay, files = filled(75), MemoryFiles(tmp_path, 0)
    (tmp_path / "first").mkdir()
    files.save(replay, tmp_path / "first")
    for t in range(75, 245):
        take(replay, t)
    (tmp_path / "second").mkdir()
    calls, fsync = iter(range(written)), os.fsync

    def fill_up(number):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(OSError, match="No space left on device"):
        files.save(replay, tmp_path / "second")
    monkeypatch.undo()
    assert len(loaded(tmp_path / ".session_00")) == len(loaded(tmp_path / "first")) == 75 * NUM_ENVS
    for t in range(245, 250):
        take(replay, t)
    (tmp_path / "third").mkdir()
    files.save(replay, tmp_path / "third")
    assert hold_the_same(loaded(tmp_path / "third"), replay)
