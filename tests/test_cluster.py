"""One run on two machines, by the real command.  One Ray for all: it takes 5 to 30 s to start."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from machines import Machines

from asynclab.processes.control import Control

pytestmark = pytest.mark.medium
SMALL = ["algo=a3c", "env=cartpole", "env.max_frame=6_000", "log_every=0.5", "env.torso.hidden=[8]"]


@pytest.fixture
def train(train):
    """Return a function that starts the command: Ray starts processes of its own."""
    return partial(train, python=True)


@pytest.fixture(scope="module")
def machines():
    found = Machines(1, 1)
    yield found
    found.close()


def test_a_run_on_two_machines_meets_its_budget_and_says_what_exchanges_cost(train, machines, tmp_path):
    process = train(*SMALL, *machines.settings(), "distributed.exchange_every=10", "checkpoint_every=1000")
    assert process.returncode == 0, process.stdout + process.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["frames"], len(summary["session_frames"])) == (6_000, 2)
    assert [found["node"] for found in summary["exchanges"]] == [0, 1]
    assert all(found["count"] and found["bytes"] for found in summary["exchanges"])
    # every ten updates of a node, when its sessions have saved and when they have ended, however long that has taken
    assert sum(found["count"] for found in summary["exchanges"]) <= summary["updates"] / 10 + 4
    assert "2 with 1 session each, in the Ray cluster at 127.0.0.1:" in process.stdout
    assert (tmp_path / "run" / "tensorboard" / "session_1:0").is_dir()


@pytest.mark.slow
def test_more_sessions_than_cores_are_refused(train, machines):
    process = train(*SMALL, *machines.settings(), "distributed.max_session=4")
    assert process.returncode == 1
    assert "distributed.max_session=4 needs 2 x 2 cores" in process.stderr + process.stdout
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_machine_with_another_asynclab_is_refused(machines, tmp_path):
    shutil.copytree(ROOT / "asynclab", tmp_path / "other" / "asynclab")
    with (tmp_path / "other" / "asynclab" / "check.py").open("a") as file:
        file.write("# changed\n")
    other = machines.add(1, env_vars={"PYTHONPATH": str(tmp_path / "other")})
    try:
        # not train.py, whose folder Ray lets all machines import from
        command = [Path(sys.executable).parent / "asynclab", "train", *SMALL, *machines.settings()]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    finally:
        machines.kill(other)
    assert process.returncode == 1
    words = r"has Python .* asynclab \S+ \((\w{8})\), and this machine has Python .* asynclab \S+ \((?!\1)\w{8}\);"
    assert re.search(words, process.stderr + process.stdout)
    assert "Traceback" not in process.stderr


RUN_IN_A_THREAD = """
import sys, threading
import psutil
import asynclab

found, runs = set(), []


def look(line):
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        found.update((c.laddr.ip, process.name()) for c in connections if c.status == psutil.CONN_LISTEN)


def main():
    runs.append(asynclab.train(sys.argv[1:], look, quiet=True))


if __name__ == "__main__":
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    print(*(f"{ip} {name}" for ip, name in found), runs[0].summary["frames"], sep="\\n")
"""


@pytest.mark.slow
def test_a_ray_of_its_own_starts_in_a_thread_and_in_a_long_folder_and_nobody_outside_can_reach_it(tmp_path):
    (tmp_path / "run_it.py").write_text(RUN_IN_A_THREAD)
    settings = ["distributed=cluster", "distributed.max_session=1", f"hydra.run.dir={tmp_path / 'run'}", "plot=false"]
    command = [sys.executable, tmp_path / "run_it.py", *SMALL, *settings]
    with tempfile.TemporaryDirectory(prefix="folder_of_a_job_", dir="/tmp") as folder:
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"TMPDIR": folder}
        process = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False
        )
    assert process.returncode == 0, process.stderr
    *listening, frames = process.stdout.split("\n")[:-1]
    assert frames == "6000"
    assert len(listening) > 3
    assert {line.partition(" ")[0].removeprefix("::ffff:") for line in listening} == {"127.0.0.1"}, listening


def test_the_sessions_of_a_node_that_is_lost_for_the_last_time_have_failed(monkeypatch, caplog):
    from asynclab.cluster import fleet as module

    monkeypatch.setattr(module.ray, "kill", lambda actor: None)
    left = []
    server = SimpleNamespace(leave=SimpleNamespace(remote=lambda *args: left.append(args)))
    fleet = object.__new__(module._Fleet)
    fleet.plan = SimpleNamespace(mode=SimpleNamespace(ranks=lambda node: range(2 * node, 2 * node + 2)))
    fleet.server, fleet.control, fleet._held, fleet.failed = server, Control(4), [], []
    member = module._Member(1, actor=object(), losses=module.FIRST_LOSSES - 2)
    again, last = (list(fleet._lose(member, "was killed")) for _ in range(2))
    assert [(failure.rank, failure.delay is None) for failure in again + last] == [
        (2, False), (3, False), (2, True), (3, True)
    ]  # fmt: skip
    assert fleet.failed == [f"node 1: was killed, {module.FIRST_LOSSES} times before it had stepped"]
    assert left == [(1, 1), (1, 2)]
    fleet._give_up(module._Member(0), "raised")  # while the run ends because of the other one
    assert [record.message for record in caplog.records] == ["node 0 failed, too: raised"]
    assert len(fleet.failed) == 1


def test_a_server_that_only_cannot_be_reached_is_killed_before_another_one_takes_its_place(monkeypatch):
    from asynclab.cluster import fleet as module

    did = []
    unavailable = module.ray.exceptions.ActorUnavailableError("for a moment", b"0" * 16)
    monkeypatch.setattr(module.ray, "kill", lambda actor: did.append(f"kill {actor}"))
    monkeypatch.setattr(module.ray, "get", lambda ref: (_ for _ in ()).throw(unavailable))
    fleet = object.__new__(module._Fleet)
    fleet.server, fleet._looking, fleet._unanswered = "the old one", "look", 0.0
    fleet.view, fleet.members, fleet._held, fleet._next_look = SimpleNamespace(version=3), [], [], float("inf")
    fleet._mirror = lambda view: None
    monkeypatch.setattr(module, "newest", lambda view, reports: view)
    fleet._start_server = lambda: did.append("start another") or "another"
    assert list(fleet._look(["look"], 0.1)) == []
    assert (did, fleet.server) == (["kill the old one", "start another"], "another")


def test_what_the_program_had_started_before_is_not_told_to_the_guard_of_rays_processes(monkeypatch, tmp_path):
    from asynclab.cluster import machines as module
    from asynclab.distributed import Cluster

    started, told = [], tmp_path / "told"
    sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
    monkeypatch.setattr(module, "GUARD", f"import sys; open({str(told)!r}, 'w').write(sys.stdin.readline())")
    monkeypatch.setattr(module, "_init", lambda **settings: started.append(subprocess.Popen(sleep)))
    with subprocess.Popen(sleep) as theirs:
        try:
            with module.joined(Cluster(1), 0):
                while not told.exists() or not told.read_text():
                    time.sleep(0.01)
            assert [pid for pid, _ in json.loads(told.read_text())] == [started[0].pid]
        finally:
            for process in (theirs, *started):
                process.kill()
                process.wait()


def test_nothing_is_started_for_a_run_that_is_asked_to_end(monkeypatch):
    from asynclab.cluster import fleet as module

    monkeypatch.setattr(module.machines, "joined", None)
    control = Control(2)
    control.finish()
    assert list(module.launch(None, None, control, None)) == []


def test_an_address_where_nothing_answers_is_refused(train):
    process = train(*SMALL, "distributed=cluster", "distributed.address=127.0.0.1:1")
    assert process.returncode == 1
    assert "distributed.address=127.0.0.1:1: no Ray cluster answers there" in process.stderr + process.stdout
    assert "Traceback" not in process.stderr
