"""Films: what is in them, how large they may be, and what cannot be one."""

import re
from pathlib import Path

import commands
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from asynclab.evaluation import film

SETTINGS = {"seconds": 2.0, "start": 0.0, "fps": 10.0, "height": 100, "megabytes": 3.0}


def record(path, size, seconds, noise=0):
    """Write a video whose pictures are grey, brighter by 20 every second, with noise."""
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=20, quality=9, macro_block_size=2)
    writer.send(None)
    rng = np.random.default_rng(0)
    for i in range(int(20 * seconds)):
        grey = 40 + i // 20 * 20 + rng.integers(0, noise + 1, (*size[::-1], 1))
        writer.send(np.broadcast_to(grey, (*size[::-1], 3)).astype(np.uint8))
    writer.close()
    return path


def pictures(path):
    with Image.open(path) as gif:
        found = []
        for i in range(gif.n_frames):
            gif.seek(i)
            found.append((np.asarray(gif.convert("L")).astype(int), gif.info["duration"]))
    return [p for p, _ in found], sum(duration for _, duration in found)


@pytest.mark.medium
def test_a_film_shows_videos_beside_each_other_for_as_long_as_asked(tmp_path):
    long, short = record(tmp_path / "long.mp4", (160, 200), 4), record(tmp_path / "short.mp4", (300, 200), 1)
    assert film.make([long, short], tmp_path / "new" / "film.gif", **SETTINGS) == 100
    found, duration = pictures(tmp_path / "new" / "film.gif")
    assert duration == pytest.approx(2_000, abs=100)
    assert {picture.shape for picture in found} == {(100, 80 + 150)}
    left, right = ([picture[50, x] for picture in found] for x in (40, 150))
    assert (left[0], left[-1]) == (pytest.approx(40, abs=4), pytest.approx(60, abs=4))
    assert right == pytest.approx([40] * len(right), abs=4)  # it has ended, and stands still
    assert film.make([long], tmp_path / "later.gif", **(SETTINGS | {"start": 2.0})) == 100
    assert pictures(tmp_path / "later.gif")[0][0][50, 40] == pytest.approx(80, abs=4)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["film.gif"]


@pytest.mark.medium
def test_a_film_is_made_smaller_until_its_file_is_small(tmp_path):
    video = record(tmp_path / "noise.mp4", (200, 200), 2, noise=100)
    film.make([video], tmp_path / "large.gif", **SETTINGS)
    limit = (tmp_path / "large.gif").stat().st_size / 1e6 * 0.7
    height = film.make([video], tmp_path / "small.gif", **(SETTINGS | {"megabytes": limit}))
    assert 60 <= height < 100
    assert pictures(tmp_path / "small.gif")[0][0].shape[0] == pytest.approx(height, abs=1)
    assert (tmp_path / "small.gif").stat().st_size / 1e6 < limit
    before = (tmp_path / "small.gif").read_bytes()
    with pytest.raises(
        ValueError, match=r"the film would have 0\.\d MB; set seconds or fps lower, or megabytes higher"
    ):
        film.make([video], tmp_path / "small.gif", **(SETTINGS | {"megabytes": 0.001}))
    assert (tmp_path / "small.gif").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0}, r"seconds=0 must be a number above 0"),
        ({"start": -1}, r"start=-1 must be 0 or more seconds"),
        ({"height": 0}, r"height=0 must be a whole number of 1 or more"),
        ({"out": Path("film.mp4")}, r"out=film\.mp4 must end in \.gif"),
        ({"out": Path("/proc/x/film.gif")}, r"out=/proc/x/film\.gif cannot be written: No such file or directory"),
        ({"videos": [Path("nowhere.mp4")]}, r"nowhere\.mp4 is not a file; set videos to files that scripts/evaluate"),
        ({"videos": [Path(__file__)]}, r"no film can be made of \S+test_film\.py \(.*[Ii]nvalid.*\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_film_is_said_in_one_sentence(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        film.make(**(SETTINGS | {"videos": [Path(__file__)], "out": Path("film.gif")} | settings))
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.medium
def test_the_command_makes_a_film(tmp_path):
    record(tmp_path / "return_-3.00.mp4", (160, 200), 1)
    process = commands.run("scripts/film.py", "videos=return_-3.00.mp4", "seconds=0.5", cwd=tmp_path)
    assert re.fullmatch(r"wrote film\.gif \(210 pixels high, 0\.0\d MB\)\n", process.stdout), process.stderr
    process = commands.run("scripts/film.py", "videos=return_-3.00.mp4", "start=100", "out=late.gif", cwd=tmp_path)
    assert process.returncode == 1
    assert "; start=100 must be before their ends\n" in process.stderr
