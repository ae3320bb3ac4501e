"""What benchmarks of a cluster say, and what they say of settings that make no sense."""

import pytest
from commands import run


def test_a_full_link_carries_what_it_can_and_nodes_wait_for_it(tmp_path):
    # a change and its reply have 4,000 bytes each: of two nodes with an update each 10 ms the link carries 50 a second
    settings = [
        "parameters=1000",
        "updates=100",
        "nodes=2",
        "every=[1]",
        "bandwidth=200_000",
        "serving=0",
        "seconds=4",
    ]
    done = run("benchmarks/traffic.py", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    nodes, every, megabytes, rate, ms, between, _ = map(float, done.stdout.splitlines()[1].split())
    assert (nodes, every) == (2, 1)
    assert rate == pytest.approx(50, rel=0.1)
    assert megabytes == pytest.approx(0.4, rel=0.1)
    assert ms == pytest.approx(40, rel=0.1)
    assert between == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("typed", "words"),
    [("traffic nodes=[-1]", "nodes=-1"), ("traffic updates=0", "updates=0"), ("traffic serving=-1", "serving=-1"),
     ("server parameters=[-5]", "parameters=-5"), ("server nodes=0", "nodes=0"),
     ("traffic +node=3", "node is not a setting"), ("server +node=3", "node is not a setting")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(typed, words, tmp_path):
    script, setting = typed.split()
    done = run(f"benchmarks/{script}.py", setting, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
