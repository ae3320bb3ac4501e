"""Machines, nodes, servers and drivers of a cluster that are killed, stopped, or join; their runs are resumed then."""

import os
import random
import signal
import time

import pytest
from drill import SMALL, Run, all_gone
from machines import Machines, ours, shared_files, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]


@pytest.fixture(scope="module")
def machines():
    found = Machines(2, 2)
    yield found
    found.close()
    assert not ours()


@pytest.fixture
def start(machines, tmp_path):
    """Return a function that starts a run of two nodes with two sessions each, and waits until all step."""
    before = shared_files()

    def run(*settings, frames=150_000):
        begun = Run(tmp_path / "run", *SMALL, *machines.settings(), "distributed.max_session=4",
                    "distributed.hang_after=10", f"env.max_frame={frames}", *settings)  # fmt: skip
        begun.until_running(4)
        return begun

    yield run
    until(lambda: not (machines.actors("Node") or machines.actors("Server")))
    assert shared_files() <= before


def check(run, *restarts, frames=150_000):
    """Wait for a run's end and resume it."""
    goes_on(run, frames + 20_000, ends(run, *restarts, frames=frames))


def ends(run, *restarts, frames):
    """Wait for a run's end, with all its frames and one of these numbers of restarts, and return that number."""
    assert run.wait(400) == 0, run.text()
    summary = run.summary()
    assert summary["status"] == "finished", run.text()
    assert summary["restarts"] in restarts, run.text()
    assert summary["frames"] == sum(summary["session_frames"]) == frames
    assert "Traceback" not in run.text()
    return summary["restarts"]


def goes_on(run, frames, restarts=0):
    """Resume a run that has had so many restarts to this budget, which it reaches without further ones."""
    again = Run(run.folder, f"resume={run.folder}", f"env.max_frame={frames}")
    assert again.wait(200) == 0, again.text()
    summary = again.summary()
    assert (summary["status"], summary["restarts"]) == ("finished", restarts), again.text()
    assert summary["frames"] == sum(summary["session_frames"]) == frames
    assert "Traceback" not in again.text()


def test_a_killed_session(start):
    run = start()
    run.sessions()[2].kill()
    check(run, 1)
    assert "session 1:0 was killed by SIGKILL" in run.text()


def test_a_killed_node(start, machines):
    run = start()
    machines.actors("Node")[0].kill()
    check(run, 2)


def test_a_machine_that_leaves_for_good_and_the_others_step_what_it_had_leased(start, machines):
    run = start()
    machines.kill(machines.nodes[1])
    try:
        restarts = ends(run, 2, 4, frames=150_000)
    finally:
        machines.nodes[1] = machines.add(2)
    goes_on(run, 170_000, restarts)


def test_a_killed_server(start, machines):
    run = start()
    machines.actors("Server")[0].kill()
    check(run, 0)
    assert "the server was killed, or cannot be reached; another one goes on" in run.text()


def test_a_server_that_is_killed_while_nodes_begin(machines, tmp_path):
    run = Run(tmp_path / "run", *SMALL, *machines.settings(), "distributed.max_session=4", "distributed.nodes=2",
              "distributed.hang_after=10", "env.max_frame=150_000")  # fmt: skip
    run.until(lambda: machines.actors("Node"))
    machines.actors("Server")[0].kill()
    check(run, 0)


def test_a_server_that_is_stopped(start, machines):
    run = start(frames=400_000)
    machines.actors("Server")[0].suspend()
    check(run, 0, frames=400_000)
    assert "the server said nothing for 10 s and was killed; another one goes on" in run.text()


def test_a_node_for_which_there_is_no_room_yet_says_so_and_begins_when_there_is(machines, tmp_path):
    machines.kill(machines.nodes[1])
    try:
        run = Run(tmp_path / "run", *SMALL, *machines.settings(), "distributed.max_session=4", "distributed.nodes=2",
                  "distributed.elastic=true", "env.max_frame=600_000")  # fmt: skip
        run.until(lambda: "has not begun: no machine has 2 cores free" in run.text())
    finally:
        machines.nodes[1] = machines.add(2)
    check(run, 0, frames=600_000)
    assert min(run.summary()["session_frames"]) > 0


def test_a_killed_machine_and_one_that_joins(start, machines):
    run = start(frames=300_000)
    machines.kill(machines.nodes[1])
    time.sleep(3)
    machines.nodes[1] = machines.add(2)
    check(run, 2, 4, frames=300_000)  # a node may be started again on the machine that is just going down


@pytest.mark.parametrize(("seconds", "restarts"), [(4, 0), (25, 2)])
def test_a_node_that_is_stopped_and_goes_on(start, machines, seconds, restarts):
    run = start(frames=400_000)
    node = machines.actors("Node")[0]
    node.suspend()
    time.sleep(seconds)
    if node.is_running():
        node.resume()
    check(run, restarts, frames=400_000)


def test_a_killed_driver_leaves_nothing_and_its_run_goes_on(start, machines):
    run = start("checkpoint_every=2", frames=400_000)
    run.until(lambda: (run.folder / "checkpoints" / "latest").resolve().name > "000000")
    sessions = list(run.sessions().values())
    run.process.kill()
    run.wait()
    assert all_gone(sessions)
    until(lambda: not machines.actors("Node"))
    goes_on(run, 500_000)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends(start, number, code):
    run = start(frames=100_000_000)
    run.process.send_signal(number)
    assert run.wait(60) == code, run.text()
    assert run.summary()["status"] == "interrupted"
    assert run.summary()["frames"] == sum(run.summary()["session_frames"]) > 0
    goes_on(run, run.summary()["frames"] + 20_000)


def test_ten_random_kills(start, machines):
    rng, frames = random.Random(0), 3_000_000  # enough for all ten
    run = start("distributed.max_restarts=100", frames=frames)
    for _ in range(10):
        time.sleep(8)
        victims = [*machines.actors("Node"), *machines.actors("Server")]
        victims += [pid for pid in run.pids().values() if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110
        victim = rng.choice(victims)
        os.kill(victim if isinstance(victim, int) else victim.pid, signal.SIGKILL)
    assert run.wait(600) == 0, run.text()
    summary = run.summary()
    assert summary["frames"] == sum(summary["session_frames"]) == frames
    goes_on(run, frames + 20_000, summary["restarts"])
