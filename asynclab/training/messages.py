"""What a session tells the parent."""

from collections.abc import Mapping
from typing import NamedTuple

from asynclab.storage.snapshot import File


class Return(NamedTuple):
    """A finished episode.

    Attributes:
        frame: Frames of the session at its end.
        total_frame: Frames of the trial at its end.
        seconds: When it ended, on the machine's monotonic clock.
        ret: Sum of raw rewards.
        length: In frames.
    """

    frame: int
    total_frame: int
    seconds: float
    ret: float
    length: int


class Record(NamedTuple):
    """What a session reports since its last report.

    Attributes:
        rank: Of the session.
        frames: Of this session, since its start.
        updates: Of this session, since its start.
        episodes: Those that ended.
        metrics: Means over the updates since the last record, and how much memory the process has.
        profile: Seconds since the last record by phase; empty unless asked for.
        staleness: How often each staleness of a gradient occurred since the last record.
    """

    rank: int
    frames: int
    updates: int
    episodes: list[Return]
    metrics: dict[str, float]
    profile: dict[str, float]
    staleness: Mapping[int, int] = {}


class Complaint(NamedTuple):
    """What a session's environments give is not finite; reported once.

    Attributes:
        rank: Of the session.
        text: Which environment, at which step, and what.
    """

    rank: int
    text: str


class Saved(NamedTuple):
    """A session has saved its state and stands still.

    Attributes:
        rank: Of the session.
        number: Of the snapshot.
        files: What it wrote, with sizes and checksums; None if it could not.
        error: Why it could not.
    """

    rank: int
    number: int
    files: dict[str, File] | None
    error: str = ""
