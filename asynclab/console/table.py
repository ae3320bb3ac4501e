"""The live table: what a terminal shows of a run while it trains, at whatever size the terminal has.

Made of rich's parts, without its ``Table``: that cannot leave out columns in an order, or say how wide its lines are.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.text import Text

from asynclab.text import duration, number

SPAN = 10.0  # seconds over which speeds are measured
WIDE = 65  # columns from which the progress bar and all that belongs to it are one line
STYLES = {"running": "green", "starting": "yellow", "restarting": "yellow", "hung": "bold red", "dead": "bold red"}
COLUMNS = ("session", "frames", "fps", "return", "episodes", "staleness", "restarts", "state")
DROPPED = ("episodes", "staleness", "restarts", "fps", "frames", "return")  # in this order where there is no room
GAP = 2  # spaces between two columns


@dataclass
class SessionStatus:
    """One session.

    Attributes:
        state: ``starting``; ``running``; ``resting`` while its budget is used up; ``hung`` or ``dead`` after a failure;
            ``restarting``; ``ended``.
        mean_return: Of its last 100 episodes; nan before the first.
        episodes: That ended.
        staleness: Mean of its last report.
        restarts: Since the run began.
        name: What it is called; empty for its rank.
    """

    state: str = "starting"
    mean_return: float = math.nan
    episodes: int = 0
    staleness: float = math.nan
    restarts: int = 0
    name: str = ""


@dataclass
class Status:
    """What is known of a run.  One thread keeps it up to date while another reads it.

    Attributes:
        budget: Frames of all sessions together.
        frames: () -> frames of every session, at this moment.
        updates: () -> updates of all sessions together, at this moment.
        sessions: By rank.
        dropped: () -> updates that were not applied because they were not finite, at this moment.
        began: When the run began, on the machine's monotonic clock; as if it had never been interrupted.
        mean_return: Of the last 100 episodes of all sessions; nan before the first.
        best: The highest mean return of 100 episodes; -inf before there were as many.
        checkpoint: When the last checkpoint was written, on that clock.
        evaluation: The last evaluation, in words; empty if there was none.
        note: What the run is about to do, if not to train.
        is_shown: Whether it is on a terminal, which then is not to be written to in any other way.
    """

    budget: int
    frames: Callable[[], Sequence[int]]
    updates: Callable[[], int]
    sessions: list[SessionStatus]
    dropped: Callable[[], int] = lambda: 0
    began: float = field(default_factory=time.monotonic)
    mean_return: float = math.nan
    best: float = -math.inf
    checkpoint: float = math.nan
    evaluation: str = ""
    note: str = ""
    is_shown: bool = field(default=False, init=False)

    def end(self) -> None:
        """Take note that no session trains any more."""
        self.note = ""
        for session in self.sessions:
            if session.state in ("running", "resting"):
                session.state = "ended"


class Table:
    """What a console prints of a status, at the moment and in the size in which it prints it.

    Attributes:
        widths: Of the lines that were printed last, in columns.
    """

    def __init__(self, status: Status) -> None:
        self.status = status
        self.widths: list[int] = []
        self._samples = deque([(time.monotonic(), list(status.frames()))])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what is to be printed."""
        lines = self.lines(console)
        self.widths = [line.cell_len for line in lines]
        yield from lines

    def lines(self, console: Console) -> list[Text]:
        """Return lines that leave the last row and the last two columns of a terminal free.

        A Ctrl-C is echoed there, which would otherwise begin a line of its own.
        """
        now, width, height = time.monotonic(), console.width - 2, console.height - 1
        frames = list(self.status.frames())
        fps = self._speeds(now, frames)
        budget, total, speed = self.status.budget, sum(frames), sum(fps)
        share = Text(f"{100 * total / budget:.1f}%", "bold")
        count = _item("frames", f"{total:,}/{budget:,}")
        left = _item("left", duration(max(budget - total, 0) / speed if speed else math.inf))
        items = self._items(now, speed)
        if width >= WIDE:
            head = [_bar(console, width, [count, share, left], total / budget), *_flow(items, width)]
        else:
            head = [_bar(console, width, [share], total / budget), *_flow([count, left, *items], width)]
        if self.status.note:
            head.append(Text(self.status.note, "yellow"))
        lines = [*head, *self._rows(frames, fps, width, height - len(head))]
        if len(lines) < height:
            lines.insert(0, Text())  # between the table and what is above it
        for line in lines:
            line.truncate(width)
        return lines[: max(height, 1)]

    def _speeds(self, now: float, frames: list[int]) -> list[float]:
        """Return every session's frames per second."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - SPAN:
            self._samples.popleft()
        then, before = self._samples[0]
        self._samples.append((now, frames))
        return [max(n - m, 0) / max(now - then, 1e-9) for n, m in zip(frames, before, strict=True)]

    def _items(self, now: float, fps: float) -> list[Text]:
        """Return what is told of the whole run, the most important first."""
        status = self.status
        stale = [s.staleness for s in status.sessions if not math.isnan(s.staleness)]
        items = [
            _item("return", number(status.mean_return), "bold"),
            _item("best", number(status.best)),
            _item("fps", f"{fps:,.0f}"),
            _item("elapsed", duration(now - status.began)),
            _item("updates", f"{status.updates():,}"),
            _item("staleness", number(sum(stale) / len(stale) if stale else math.nan)),
            _item("checkpoint", f"{duration(now - status.checkpoint)} ago"),
        ]
        if dropped := status.dropped():
            items.insert(5, _item("dropped", f"{dropped:,}", "yellow"))
        if status.evaluation:
            items.append(_item("evaluation", status.evaluation))
        return items

    def _rows(self, frames: Sequence[int], fps: Sequence[float], width: int, height: int) -> list[Text]:
        """Return a line for every session, or for as many as there is room for."""
        sessions = self.status.sessions
        if height < 3 and len(sessions) > max(height - 1, 0):
            return [Text(f"{len(sessions)} sessions: {_states(sessions)}")][:height]
        shown = list(range(len(sessions)))
        if len(shown) > height - 1:
            # those that need attention first, and what there is no room for in one line
            shown.sort(key=lambda rank: sessions[rank].state in ("running", "resting", "ended"))
            shown = sorted(shown[: height - 2])
        cells = {name: [name] for name in COLUMNS}
        for rank, session in enumerate(sessions):
            values = (
                session.name or str(rank),
                f"{frames[rank]:,}",
                f"{fps[rank]:,.0f}",
                number(session.mean_return),
                f"{session.episodes:,}",
                number(session.staleness),
                str(session.restarts),
                session.state,
            )
            for name, value in zip(COLUMNS, values, strict=True):
                cells[name].append(value)
        widths = {name: max(map(len, column)) for name, column in cells.items()}  # of all, so that none jumps
        widths["state"] = len("restarting")
        for name in DROPPED:
            if sum(widths.values()) + GAP * (len(widths) - 1) > width:
                del widths[name]
        lines = []
        for i in [0, *(rank + 1 for rank in shown)]:
            row = [cells[name][i].rjust(size) for name, size in widths.items() if name != "state"]
            state = cells["state"][i]
            style = "dim" if i == 0 else STYLES.get(state, "dim")
            lines.append(Text((" " * GAP).join(row) + " " * GAP, "dim" if i == 0 else "").append(state, style))
        rest = [session for rank, session in enumerate(sessions) if rank not in shown]
        if rest:
            lines.append(Text(f"+ {len(rest)} more: {_states(rest)}", "dim"))
        return lines


def _bar(console: Console, width: int, items: Sequence[Text], share: float) -> Text:
    """Return a progress bar beside these items."""
    size = width - sum(map(len, items)) - GAP * len(items)
    progress = ProgressBar(1.0, share, width=max(size, 1), complete_style="cyan", finished_style="green")
    bar = Text.assemble(*((segment.text, segment.style or "") for segment in console.render(progress)))
    bar.pad_right(max(size - len(bar), 0))  # without colours it ends where the progress does
    return Text(" " * GAP).join([*items[:-2], bar, *items[-2:]])


def _item(label: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{label} ", "dim"), (value, style))


def _flow(items: Sequence[Text], width: int) -> list[Text]:
    """Return lines of whole items."""
    lines: list[Text] = []
    for item in items:
        if lines and len(lines[-1]) + GAP + len(item) <= width:
            lines[-1].append(" " * GAP).append_text(item)
        else:
            lines.append(item.copy())
    return lines


def _states(sessions: Sequence[SessionStatus]) -> str:
    return ", ".join(f"{n} {state}" for state, n in Counter(s.state for s in sessions).most_common())
