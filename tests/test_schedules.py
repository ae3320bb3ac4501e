import pytest

from asynclab.schedules import Linear


def test_linear_falls_over_the_budget():
    assert [Linear(0.5)(progress) for progress in (0.0, 0.5, 1.0, 1.5)] == [1.0, 0.75, 0.5, 0.5]


def test_linear_stays_until_it_begins():
    schedule = Linear(final=0.0, begin=0.6)
    assert [schedule(progress) for progress in (0.0, 0.6, 1.0)] == [1.0, 1.0, 0.0]
    assert schedule(0.7) == pytest.approx(0.75)


@pytest.mark.parametrize("begin", [1, -0.1, "late", float("nan")])
def test_linear_begins_within_the_budget(begin):
    with pytest.raises(ValueError, match=f"begin={begin} "):
        Linear(begin=begin)
