"""What the benchmark makes of its measurements."""

import math

import gymnasium as gym
import pytest
import torch
from conftest import ROOT

from asynclab import nets, precision


@pytest.fixture
def measure(monkeypatch):
    """Return the benchmark's module, which is in no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measure

    return measure


def run(measure, frames):
    return measure.Run(frames, frames / 100, 3.0, [(0.0, 2**30)])


def parts(measure):
    """Return what each of two processes does: half of 200, 200, 2 and 400 a second."""
    one = measure.Parts(env=100, act=100, update=1, raw=200, peak=2e9, frames_per_update=100, work=10e6)
    return [one, one]


def test_limit_and_bound_are_parts_in_turn(measure):
    assert measure.limit(parts(measure)) == pytest.approx(1 / (1 / 200 + 1 / 200 + 1 / 200))
    assert measure.bound(parts(measure)) == pytest.approx(1 / (1 / 400 + 1 / 400))  # 10 MFLOP at 4 GFLOP/s


def test_a_run_is_compared_with_the_limit_the_first_and_stable_baselines3_on_its_better_number_of_threads(measure):
    runs = {name: [run(measure, frames)] for name, frames in (("1", 30), ("2", 60), ("distributed=off", 40))}
    sb3 = {"1": [{"frames": 20.0, "updates": 0.2}], "2": [{"frames": 10.0, "updates": 0.1}]}
    result = measure.summarise(2, [parts(measure)], runs, sb3)
    assert "fraction" not in result["runs"]["1"]  # the limit is that of a busy machine
    assert result["runs"]["2"]["fraction"]["median"] == pytest.approx(0.9)
    assert result["runs"]["2"]["of_bound"]["median"] == pytest.approx(0.3)
    assert result["runs"]["distributed=off"]["fraction"]["median"] == pytest.approx(0.6)
    assert [result["runs"][name]["over_first"]["median"] for name in runs] == pytest.approx([1, 2, 4 / 3])
    assert [result["runs"][name]["over_sb3"]["median"] for name in runs] == pytest.approx([1.5, 3, 2])
    lines = measure.table(result).splitlines()
    head = next(line for line in lines if line.startswith("| sessions"))
    assert "| x 1 session | x 2 sessions | x stable-baselines3, 1 thread | start, s |" in head
    row = next(line for line in lines if line.startswith("| distributed=off |"))
    assert "| 40.0 (40.0 to 40.0) | 0.4 (0.4 to 0.4) | 0.60 (0.60 to 0.60) | 0.20 (0.20 to 0.20) | 1.33" in row
    assert "| stable-baselines3, 2 threads | 10.0 (10.0 to 10.0) | 0.1 (0.1 to 0.1) |" in lines[-1]
    assert "| bound: emulator and products in turn, frames | 200 (200 to 200) |" in lines


def test_variants_alone_can_be_compared(measure):
    runs = {"distributed=off": [run(measure, 40)], "distributed=synced": [run(measure, 60)]}
    result = measure.summarise(2, [parts(measure)], runs, {})
    assert result["runs"]["distributed=synced"]["over_first"]["median"] == 1.5
    assert "| x distributed=off | start, s |" in measure.table(result)


@pytest.mark.medium
@pytest.mark.parametrize("faster", [False, True])
def test_products_are_counted_forwards_and_backwards_whoever_makes_them(measure, monkeypatch, faster):
    monkeypatch.setattr(precision, "is_onednn_faster", lambda: faster)
    layer, x = nets.Linear(256, 512), torch.randn(64, 256, requires_grad=True)
    assert measure.flops(lambda: layer(x).sum().backward()) == 3 * 2 * 64 * 256 * 512


def test_peak_is_that_of_finite_products(measure):
    for dtype in (torch.float32, torch.bfloat16):
        ways = measure.products(8, dtype, torch.device("cpu"))
        has_onednn = torch.backends.mkldnn.is_available()
        if dtype is torch.bfloat16:
            has_onednn = has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert len(ways) == 1 + has_onednn
        for way in ways:
            assert math.isfinite(float(torch.as_tensor(way()).sum()))


@pytest.mark.medium
def test_the_raw_emulator_goes_on_after_a_game(measure):
    step = measure.raw_step("ALE/Pong-v5", 4, 0)
    emulator = next(cell.cell_contents for cell in step.__closure__ if "ALE" in type(cell.cell_contents).__name__)
    before = emulator.getEpisodeFrameNumber()
    step()
    assert emulator.getEpisodeFrameNumber() == before + 4
    for _ in range(1_500):  # the shortest game takes about 800 steps
        step()
    assert emulator.getEpisodeFrameNumber() < before + 4 * 1_500


def test_a_plain_environment_goes_on_after_an_episode(measure):
    step = measure.raw_step("CartPole-v1", 4, 0)
    env = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, gym.Env))
    for _ in range(200):
        step()
    assert env.steps_beyond_terminated is None
