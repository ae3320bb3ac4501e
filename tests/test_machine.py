"""Cores and memory as affinity and nested control groups leave them, and what is made of them."""

import os
import tempfile

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from conftest import make_schedule

from asynclab import machine
from asynclab.distributed import Off, Shared, Simulated, Synced
from asynclab.envs import make_envs
from asynclab.nets import MLPTorso
from asynclab.run import preflight, resources, screens

MIB = 2**20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a function that makes a tree of control groups: what we are in, what is mounted, what the files say."""
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

    def make(ours, mounts, files):
        (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in ours))
        lines = [
            f"{30 + i} 23 0:{i} {root} {tmp_path}/{folder} rw,nosuid shared:9 - {kind} cgroup {options}\n"
            for i, (root, folder, kind, options) in enumerate(mounts)
        ]
        noise = "22 1 0:20 / /proc rw,relatime - proc proc rw\n23 22 8:1 / / rw - ext4 /dev/sda1 rw\n"
        (tmp_path / "mountinfo").write_text(noise + "".join(lines))
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return make


V2 = ["0::/slurm/job_7/step_0"], [("/", "cg", "cgroup2", "rw")]
V1 = (["4:memory:/docker/ab", "3:cpu,cpuacct:/docker/ab", "0::/"],
      [("/docker/ab", "cpu", "cgroup", "rw,cpu,cpuacct"), ("/docker/ab", "memory", "cgroup", "rw,memory"),
       ("/", "unified", "cgroup2", "rw")])  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "files", "cores"),
    [
        (V2, {}, 16),
        (V2, {"cg/slurm/job_7/step_0/cpu.max": "max 100000"}, 16),
        (V2, {"cg/slurm/job_7/step_0/cpu.max": "250000 100000"}, 2),  # whole cores
        (V2, {"cg/slurm/job_7/step_0/cpu.max": "400000 100000", "cg/slurm/cpu.max": "300000 100000"}, 3),
        (V2, {"cg/slurm/job_7/step_0/cpu.max": "max 100000", "cg/cpu.max": "150000 50000"}, 3),
        (V2, {"cg/slurm/job_7/step_0/cpu.max": "50000 100000"}, 1),
        (V2, {"cg/slurm/other/cpu.max": "100000 100000"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 6),
        (V1, {"cpu/cpu.cfs_quota_us": "600000"}, 16),
        ((V1[0], [("/", "cpu", "cgroup", "rw,cpu"), *V1[1][1:]]),
         {"cpu/docker/cpu.cfs_quota_us": "200000", "cpu/docker/cpu.cfs_period_us": "100000"}, 2),
        ((["0::/a b"], [("/", "c\\040g", "cgroup2", "rw")]), {"c g/a b/cpu.max": "700000 100000"}, 7),
        ((["0::/../other"], V2[1]), {"cg/cpu.max": "500000 100000"}, 5),
        ((["nonsense"], []), {}, 16),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_tightest_quota_on_the_way_up(groups, tree, files, cores):
    groups(*tree, files)
    assert machine.cores() == cores
    assert Synced().max_session == cores


def test_affinity_may_leave_less_than_the_quota(groups, monkeypatch):
    groups(*V2, {"cg/cpu.max": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert machine.cores() == 2


def test_without_control_groups_there_is_what_the_machine_has(groups):
    assert machine.cores() == 16
    assert machine.memory().total == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("tree", "files", "available", "total"),
    [
        (V2, {"cg/slurm/memory.max": 100 * MIB, "cg/slurm/memory.current": 60 * MIB,
              "cg/slurm/memory.stat": f"anon 9\ninactive_file {10 * MIB}"}, 50, 100),
        (V2, {"cg/slurm/memory.max": 100 * MIB, "cg/slurm/memory.current": 60 * MIB,
              "cg/slurm/job_7/memory.max": 90 * MIB, "cg/slurm/job_7/memory.current": 20 * MIB}, 40, 90),
        (V2, {"cg/memory.max": 10 * MIB, "cg/memory.current": 20 * MIB}, 0, 10),
        (V1, {"memory/memory.limit_in_bytes": 100 * MIB, "memory/memory.usage_in_bytes": 30 * MIB,
              "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {5 * MIB}"}, 75, 100),
    ],
)  # fmt: skip
def test_memory_is_that_of_the_tightest_group_on_the_way_up(groups, tree, files, available, total):
    groups(*tree, files)
    assert machine.memory() == (available * MIB, total * MIB)
    assert resources.available_memory() == available * MIB
    with pytest.raises(ValueError, match=rf"and {available * MIB / 1e6:.1f} MB are available"):
        resources.check_memory(Synced(1), 10, 0)


@pytest.mark.parametrize(
    ("asked", "sessions", "weights", "limit", "threads"),
    [
        (None, 1, 900_000, "", 8),
        (None, 1, 350_000, "", 3),  # each more would wait for longer than it gains
        (None, 1, 9_155, "", 1),
        (None, 3, 900_000, "", 2),  # 3 x 2 of 8
        (None, 16, 900_000, "", 1),
        (None, 1, 900_000, "4,2", 4),
        (None, 1, 900_000, "999", 8),
        (None, 1, 900_000, "0", 8),
        (5, 4, 100, "2", 5),
    ],
)
def test_threads_and_sessions_never_exceed_the_cores(monkeypatch, asked, sessions, weights, limit, threads):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert resources.choose_threads(asked, sessions, weights) == threads


def test_a_folder_for_temporary_files_that_is_too_long_for_sockets_is_refused(monkeypatch):
    for length in (75, 76):
        monkeypatch.setattr(tempfile, "tempdir", "/".ljust(length, "x"))
        if length == 75:
            resources.check_sockets()
    with pytest.raises(ValueError, match=r"TMPDIR=/x+ has 76 bytes, .* for 75; set it to a shorter folder"):
        resources.check_sockets()


def test_only_runs_that_have_sockets_are_refused_for_it(make_trial, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/".ljust(76, "x"))
    for mode in (Off(1), Synced(1), Simulated(2)):
        make_trial(mode=mode)
    with pytest.raises(ValueError, match="TMPDIR="):
        make_trial(mode=Synced(2))
    with pytest.raises(ValueError, match="TMPDIR="):
        make_trial(mode=Off(1), schedule=make_schedule(every=100))


def test_one_session_of_a_large_machine_has_no_more_threads_than_gain(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert resources.choose_threads(None, 1, 10**8) == 8
    assert resources.choose_threads(16, 1, 10**8) == 16


def test_the_emulator_has_as_many_threads_as_torch_and_gives_the_same_frames(monkeypatch):
    made, seen = [], []
    make_vec = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kw: made.append(kw["num_threads"]) or make_vec(*args, **kw))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            envs = make_envs("ALE/Pong-v5", 3)
            obs = envs.reset([1, 2, 3]).copy()
            seen.append([obs, *(envs.step(np.array([0, 2, 3])).obs.copy() for _ in range(20))])
            envs.close()
    finally:
        torch.set_num_threads(before)
    assert made == [1, 2, 3]
    for frames in seen[1:]:
        assert all((a == b).all() for a, b in zip(seen[0], frames, strict=True))


@pytest.mark.parametrize(
    ("mode", "hidden", "limit", "row"),
    [
        (Off(1), [16], "", "1 of 4 in use; distributed=synced distributed.max_session=4 would use all"),
        (Off(2), [16], "", "2 of 4 in use; distributed.max_session=4 would use all"),
        (Synced(2), [16], "", "2 of 4 in use; distributed.max_session=4 would use all"),
        (Off(1, num_threads=1), [600, 600], "", "1 of 4 in use; distributed.num_threads=null would use more"),
        (Off(1), [600, 600], "1", "1 of 4 in use, as OMP_NUM_THREADS=1 says"),
        (Off(1, num_threads=4), [16], "", ""),
        (Synced(4), [16], "", ""),
        (Synced(9), [16], "", ""),
        (Simulated(2), [16], "", ""),  # more of them would be in the same process
    ],
)
def test_the_first_screen_says_what_would_use_idle_cores(make_trial, monkeypatch, mode, hidden, limit, row):
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    trial = make_trial(mode=mode, torso=lambda obs, action_dim=0: MLPTorso(obs, action_dim, hidden=hidden))
    assert screens._idle_cores(trial) == row


@pytest.mark.parametrize(
    ("device", "mode", "weights", "devices"),
    [
        ("auto", Synced(max_session=2), 866_000, ["cuda:0", "cuda:1"]),
        ("auto", Off(max_session=1), 9_155, ["cpu"]),  # CartPole: a GPU has half of one core's speed
        ("auto", Shared(max_session=2), 866_000, ["cpu"]),
        ("cuda:1", Off(max_session=1), 9_155, ["cuda:1"]),
        ("cpu", Off(max_session=1), 866_000, ["cpu"]),
    ],
)
def test_a_gpu_is_taken_by_itself_where_it_pays(monkeypatch, device, mode, weights, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    preflight.check_device(device, mode)
    assert preflight.choose_devices(device, mode, weights) == devices


@pytest.mark.parametrize(
    ("device", "mode", "message"),
    [
        ("cuda:2", Off(max_session=1), r"device=cuda:2, but there are 2 GPUs, counted from cuda:0"),
        ("cuda", Shared(max_session=2), r"device=cuda cannot hold the weights in distributed=shared"),
        ("tpu", Off(max_session=1), r"device=tpu is not a torch device; use auto, cpu, cuda or cuda:0"),
        ("mps", Off(max_session=1), r"device=mps is not supported; use auto, cpu, cuda or cuda:0"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(monkeypatch, device, mode, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        preflight.check_device(device, mode)
