import math

import pytest

from asynclab.text import count, duration, number, program


def test_numbers_are_written_as_people_read_them():
    assert [count(n, "run") for n in (0, 1, 2_000)] == ["0 runs", "1 run", "2,000 runs"]
    assert [number(value) for value in (1234.567, -0.5, None, math.nan)] == ["1,234.57", "-0.50", "-", "-"]
    assert [duration(s) for s in (59.6, 36_061, None, math.inf, math.nan)] == ["0:01:00", "10:01:01", "-", "?", "?"]


@pytest.mark.parametrize(
    ("script", "typed"),
    [
        ("train.py", ["python", "train.py"]),
        ("/venv/bin/asynclab-train", ["asynclab", "train"]),
        ("/venv/lib/asynclab/train.py", ["python", "-m", "asynclab", "train"]),
    ],
)
def test_a_script_is_called_as_it_is_installed(script, typed):
    assert program(script) == typed
