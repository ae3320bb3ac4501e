"""Checkpoints that are cut short, damaged or malicious, and disks that are full."""

import hashlib
import json
import multiprocessing as mp
import os
import pickle
import random
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import commands
import numpy as np
import pytest
import torch
from drill import LONG, SMALL, Run, all_gone
from saving import save_for_ever

from asynclab.storage import checkpoint

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished run with several checkpoints; not to be changed."""
    run = Run(tmp_path_factory.mktemp("finished") / "run", *SMALL, "env.max_frame=60_000", "checkpoint_every=0.5")
    assert run.wait() == 0, run.text()
    assert len(list((run.folder / "checkpoints").glob("0*"))) in (3, 4)  # the best may be another one
    return run.folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def evaluate(folder, *overrides):
    return commands.run("scripts/evaluate.py", f"run={folder}", "episodes=1", *overrides)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, flip, os.remove], ids=["cut", "empty", "flip", "remove"])
@pytest.mark.parametrize("name", ["stores.pt", "trial.json", "manifest.json", "session_01.pt", "session_00.npz"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(copied, caplog, name, damage):
    latest, before = sorted((copied / "checkpoints").glob("0*"))[:-3:-1]
    damage(latest / name)
    found = checkpoint.load(copied)
    assert found.path == before
    (message,) = caplog.messages
    assert str(latest / name) in message
    assert f"falling back to checkpoint {before.name} at" in message


@pytest.mark.slow
def test_the_real_commands_fall_back(copied):
    latest, before = sorted((copied / "checkpoints").glob("0*"))[:-3:-1]
    frames = json.loads((before / "manifest.json").read_text())["frames"]
    cut(latest / "stores.pt")
    played = evaluate(copied)
    assert played.returncode == 0, played.stderr
    run = Run(copied, f"resume={copied}", "env.max_frame=70_000")
    assert run.wait() == 0, run.text()
    assert re.search(f"{latest / 'stores.pt'} is damaged.*falling back to checkpoint {before.name}", run.text())
    assert f"from {before.relative_to(copied.parent)} at {frames:,} frames" in run.text()
    assert run.summary()["frames"] == 70_000
    totals = [line["total_frames"] for line in run.lines("trial")]
    assert totals == sorted(totals)
    assert checkpoint.load(copied).manifest["frames"] == 70_000


def test_without_a_good_checkpoint_the_error_names_what_is_wrong(copied):
    for path in (copied / "checkpoints").glob("0*/stores.pt"):
        empty(path)
    process = evaluate(copied)
    assert process.returncode == 1
    assert re.search(r"has no checkpoint that can be read: .*stores\.pt is damaged", process.stderr)
    assert "Traceback" not in process.stderr
    process = evaluate(copied, "checkpoint=000999")
    assert process.returncode == 1
    assert "000999 does not exist; use latest, best or one of" in process.stderr


def test_a_checkpoint_of_another_format_is_refused(copied):
    for path in (copied / "checkpoints").glob("0*/manifest.json"):
        sign(path, json.loads(path.read_text()) | {"format": 1})
    process = evaluate(copied)
    assert process.returncode == 1
    assert f"has format 1, and this version of asynclab reads {checkpoint.FORMAT}" in process.stderr


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def plant(path, content):
    """Put something else into a checkpoint, with a manifest that vouches for it."""
    path.write_bytes(content)
    manifest = path.parent / "manifest.json"
    text = json.loads(manifest.read_text())
    text["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sign(manifest, text)


def sign(manifest, content):
    content.pop("sha256")
    manifest.write_text(json.dumps(content | {"sha256": checkpoint._digest(content)}))


@pytest.mark.parametrize(
    ("name", "evil"),
    [
        ("stores.pt", "evil.pt"),
        pytest.param("session_00.npz", "evil.npz", marks=pytest.mark.slow),
        pytest.param("stores.pt", "evil.pickle", marks=pytest.mark.slow),
        pytest.param("session_00.pt", "evil.pt", marks=pytest.mark.slow),
        pytest.param("session_00.npz", "evil.npy", marks=pytest.mark.slow),
    ],
)
def test_a_malicious_checkpoint_runs_nothing(copied, tmp_path, name, evil):
    trap = tmp_path / "trap"
    torch.save([{"theta": Malicious(trap)}], tmp_path / "evil.pt")
    np.save(tmp_path / "evil.npy", np.array([Malicious(trap)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", obs=np.array([Malicious(trap)], dtype=object), allow_pickle=True)
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(Malicious(trap)))
    plant((copied / "checkpoints" / "latest").resolve() / name, (tmp_path / evil).read_bytes())
    run = Run(copied, f"resume={copied}", "env.max_frame=100_000_000")
    assert run.wait() == 1, run.text()
    assert re.search(f"{name} is not (loaded|a readable checkpoint)", run.text())
    if name == "stores.pt":
        assert evaluate(copied).returncode == 1
    assert not trap.exists()


def test_a_manifest_cannot_reach_out_of_its_folder(copied):
    manifest = copied / "checkpoints" / "latest" / "manifest.json"
    text = json.loads(manifest.read_text())
    text["files"]["../../../../etc/passwd"] = {"bytes": 1, "sha256": ""}
    sign(manifest, text)
    assert checkpoint.load(copied).path.name != manifest.resolve().parent.name


@pytest.mark.slow
def test_50_kills_at_random_moments_of_a_saving_loop_leave_a_latest_checkpoint_that_loads(tmp_path, caplog):
    rng, updates = random.Random(0), 0
    latest = tmp_path / "checkpoints" / "latest"
    for _ in range(50):
        before = latest.resolve().name
        process = mp.get_context("forkserver").Process(target=save_for_ever, args=(tmp_path,), daemon=True)
        process.start()
        deadline = time.monotonic() + 60
        while latest.resolve().name == before:  # it saves
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        found = checkpoint.load(tmp_path)
        (state,) = found.stores()
        assert state["updates"][0] > updates
        assert state["frames"][0] == 8 * state["updates"][0] == found.manifest["frames"]
        assert state["optimizer"]["state"][0]["step"] == state["updates"][0]
        updates = state["updates"][0]
    assert updates >= 50
    assert not caplog.messages  # no fall back: what is there is whole
    assert len(list((tmp_path / "checkpoints").glob("0*"))) <= 4  # two, the best, and one whose removal was cut short


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_real_run_that_is_killed_ten_times_ends_with_all_its_frames(tmp_path):
    rng, folder = random.Random(1), tmp_path / "run"
    command = [*SMALL, "env.max_frame=400_000", "checkpoint_every=0.2", "resume=auto"]
    for _ in range(10):
        run = Run(folder, *command)
        before = len(run.lines("process"))
        run.until(lambda run=run, before=before: len(run.lines("process")) != before or run.lines("session"))
        time.sleep(rng.uniform(0, 3))
        run.process.kill()
        run.wait()
        assert checkpoint.load(folder).manifest["frames"] >= 0
    run = Run(folder, *command)
    assert run.wait(300) == 0, run.text()
    assert run.summary()["frames"] == 400_000
    totals = [line["total_frames"] for line in run.lines("trial")]
    assert totals == sorted(totals)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_killed_run_goes_on_with_the_replay_of_its_last_checkpoint(tmp_path):
    rng, folder = random.Random(2), tmp_path / "run"
    command = ["algo=sac", "env=pendulum", "distributed=shared", "distributed.max_session=2", "log_every=0.2",
               "algo.memory.capacity=2_000", "algo.memory.start=600", "algo.memory.batch_size=16",
               "env.torso.hidden=[8]", "env.max_frame=10_000", "checkpoint_every=0.2", "resume=auto"]  # fmt: skip
    for kill in range(4):
        run = Run(folder, *command)
        before = 0 if not kill else checkpoint.load(folder).manifest["frames"]
        latest = folder / "checkpoints" / "latest" / "manifest.json"
        run.until(lambda: latest.exists() and json.loads(latest.read_text())["frames"] > before + 1_500)  # noqa: B023
        time.sleep(rng.uniform(0, 0.5))
        run.process.kill()
        run.wait()
        found = checkpoint.load(folder)
        frames = sum(int(n) for n in found.stores()[0]["frames"])
        rows = [np.load(path)["reward"].shape[0] for path in found.path.glob("session_0?_*.npz")]
        assert 4 * sum(rows) >= min(frames, 2 * 2_000 - 64)
    run = Run(folder, *command)
    assert run.wait(300) == 0, run.text()
    summary = run.summary()
    assert summary["frames"] == 10_000
    assert "damaged" not in run.text()
    assert "has no memory of" not in run.text()
    assert summary["frames"] - summary["updates"] == pytest.approx(600, abs=50)  # one warm-up


@contextmanager
def small_disk(path, size):
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_too_small_is_refused_before_any_process_starts(tmp_path):
    with small_disk(tmp_path / "disk", "300k") as disk:
        run = Run(disk / "run", *SMALL, "env.torso.hidden=[256,256]")
        assert run.wait() == 1
        assert re.search(
            r"5 checkpoints, with the best and one being written, need .* MB \(.* each\), and .* has", run.text()
        )
        assert "Traceback" not in run.text()
        assert not run.lines("process")


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        run = Run(disk / "run", *LONG, "checkpoint_every=1")
        run.until_running()
        run.until(lambda: (run.folder / "checkpoints" / "000002").exists())
        family = run.family()
        with (disk / "filler").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        assert run.wait(120) == 1
        assert re.search("the run had to end: .*No space left on device.*resume=run goes on", run.text())
        assert all_gone(family)
        (disk / "filler").unlink()
        frames = checkpoint.load(run.folder).manifest["frames"]
        assert frames > 0
        again = Run(run.folder, f"resume={run.folder}", f"env.max_frame={frames + 50_000}")
        assert again.wait() == 0, again.text()
        assert again.summary()["frames"] == frames + 50_000
