"""A short film for a page: recorded episodes beside each other, as a GIF made by the ffmpeg that recorded them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from asynclab import check, progress
from asynclab.storage.folder import whole

SMALLEST = 60  # pixels high; below, nobody sees what happens


def make(
    videos: Sequence[Path], out: Path, seconds: float, start: float, fps: float, height: int, megabytes: float
) -> int:
    """Write a film, with smaller pictures if it would be too large, and return how many pixels high it is.

    Args:
        videos: Files that ``scripts/evaluate.py`` has recorded.  One that ends early stands still.
        out: A .gif file; one that is there is replaced.
        seconds: How long it is.
        start: Seconds at the beginning of each video that are left out.
        fps: Pictures in a second.
        height: Of the pictures, in pixels.
        megabytes: The file has fewer.

    Raises:
        ValueError: A video cannot be read, the film cannot be written, or a setting makes no sense.
        ImportError: The extra ``video`` is not installed.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    for name, value in (("seconds", seconds), ("fps", fps), ("megabytes", megabytes)):
        check.positive(name, value)
    if check.number("start", start) < 0:
        raise ValueError(f"start={start} must be 0 or more seconds")
    check.count("height", height)
    if out.suffix != ".gif":
        raise ValueError(f"out={out} must end in .gif")
    for video in videos:
        if not video.is_file():
            raise ValueError(f"{video} is not a file; set videos to files that scripts/evaluate.py has recorded")
    tall = height
    inputs = [word for video in videos for word in ("-ss", str(start), "-i", str(video))]
    try:
        with whole(out) as new, progress.shown("making the film"):
            while True:
                command = [get_ffmpeg_exe(), "-v", "error", "-y", *inputs, "-filter_complex"]
                command += [_graph(len(videos), seconds, fps, tall), "-f", "gif", str(new)]
                process = subprocess.run(command, capture_output=True, text=True, check=False)
                if process.returncode or not new.stat().st_size:
                    reason = (process.stderr.strip() or "nothing is left of it").splitlines()[-1]
                    late = f"; start={start} must be before their ends" * (start > 0)
                    raise ValueError(f"no film can be made of {', '.join(map(str, videos))} ({reason}){late}")
                if (size := new.stat().st_size / 1e6) < megabytes:
                    return tall
                if tall <= SMALLEST:
                    raise ValueError(
                        f"the film would have {size:.1f} MB; set seconds or fps lower, or megabytes higher"
                    )
                tall = max(SMALLEST, int(tall * 0.85))
    except OSError as error:
        raise ValueError(f"out={out} cannot be written: {error.strerror}; set out to another file") from error


def _graph(videos: int, seconds: float, fps: float, height: int) -> str:
    """Return what ffmpeg is to do: pictures of one height side by side, in colours that are the film's own."""
    each = (
        f"fps={fps},scale=-2:{height}:flags=area,tpad=stop_mode=clone:stop_duration={seconds},trim=duration={seconds}"
    )
    parts = [f"[{i}:v]{each}[v{i}]" for i in range(videos)]
    names = "".join(f"[v{i}]" for i in range(videos))
    beside = f"{names}hstack=inputs={videos}," if videos > 1 else names
    return f"{';'.join(parts)};{beside}split[a][b];[a]palettegen=max_colors=128[p];[b][p]paletteuse=dither=none"
