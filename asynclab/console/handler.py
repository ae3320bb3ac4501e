"""Console output: on a terminal a live table with what is logged above it, elsewhere plain lines."""

import logging
import math
import multiprocessing as mp
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TextIO

from rich.console import Console, ConsoleRenderable
from rich.live import Live
from rich.text import Text

from asynclab import signals
from asynclab.console.table import Status, Table

REFRESH = 1.0  # seconds between two refreshes, each of which takes about two milliseconds of one core
LABEL = 15  # columns of the labels of a screen's rows, indent included
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


class ConsoleHandler(logging.StreamHandler):
    """Writes plain lines, but to a terminal what ``show`` is told of beneath them, again and again in its place.

    Records may have these extras:

    - ``console=False``: not for the console.
    - ``live=True``: says no more than the table does; left out where that is shown.
    - ``title``: the message is a screen's; how it looks on a terminal, any of rich's styles.
    - ``row``: what ``row`` makes of a row of a screen.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.console = _Console(file=self.stream) if _is_terminal(self.stream) else None
        self._is_live = False

    def filter(self, record: logging.LogRecord) -> Any:
        """Return whether a record is for the console; asked before the lock, for which a stopped terminal waits."""
        if not getattr(record, "console", True):
            return False
        if getattr(record, "live", False) and self._is_live and _is_in_foreground(self.stream):
            return False
        return super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if self.console is None:
            super().emit(record)
            return
        try:
            self.console.print(self._text(record, self.console.width), soft_wrap=True)
        except Exception:
            self.handleError(record)

    def _text(self, record: logging.LogRecord, width: int) -> Text:
        """Return what a terminal shows of a record."""
        if hasattr(record, "row"):
            return _row(width, *record.row)
        if hasattr(record, "title"):
            return Text("\n" + textwrap.fill(record.getMessage(), width), record.title)
        return Text(self.format(record), STYLES.get(record.levelno, ""))

    def handleError(self, record: logging.LogRecord | None) -> None:  # noqa: N802 - logging's name
        """Write nowhere from now on if the terminal has been closed; Python fails if it cannot flush at its end."""
        if isinstance(sys.exc_info()[1], OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        elif record is not None:
            super().handleError(record)

    @contextmanager
    def live(self, status: Status) -> Iterator[None]:
        """Keep a table of this at the bottom of the terminal."""
        if self.console is None:
            yield
            return
        live, ended = _Live(Table(status), console=self.console, auto_refresh=False), threading.Event()

        def refresh() -> None:
            while not ended.wait(REFRESH):
                self._try(live.refresh)

        def suspend(number: int, frame: FrameType | None) -> None:
            self.acquire()
            live.forget()  # the shell is about to write here
            os.kill(os.getpid(), signal.SIGSTOP)
            self.release()

        thread = threading.Thread(target=refresh, daemon=True)
        free = signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL  # else somebody else handles it
        with signals.handled([signal.SIGTSTP] * free, suspend):
            self._is_live = status.is_shown = True
            self._try(partial(live.start, refresh=True))
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                self._is_live = status.is_shown = False
                self._try(live.stop)

    def _try(self, action: Callable[[], None]) -> None:
        """Write to a terminal that may be gone, and not while a record is written."""
        self.acquire()
        try:
            action()
        except OSError:
            self.handleError(None)
        finally:
            self.release()


@contextmanager
def show(status: Status) -> Iterator[None]:
    """Show a run live if there is a terminal and somebody has set up logging to it."""
    for handler in (*logging.getLogger().handlers, *logging.getLogger("asynclab").handlers):
        if isinstance(handler, ConsoleHandler):
            with handler.live(status):
                yield
            return
    yield


def row(label: str, text: str, whole: bool = False) -> tuple[str, dict[str, tuple[str, str, bool]]]:
    """Return message and extras of a record that is one row of a screen.

    Args:
        label: What the row is about; empty to go on with the row before.
        text: What is told.
        whole: Whether it is a command or a path, which must not be broken.
    """
    return f"{f'  {label}':<{LABEL}}{text}", {"row": (label, text, whole)}


class _Console(Console):
    """A terminal for sure, whatever the environment variables that rich looks at say."""

    def __init__(self, file: TextIO, **options: Any) -> None:
        options = {"force_terminal": True, "force_interactive": True, "force_jupyter": False} | options
        super().__init__(file=file, highlight=False, **options)

    def show_cursor(self, show: bool = True) -> bool:
        """Never hide the cursor: a run that is killed or suspended could not give it back."""
        return show and super().show_cursor()


class _Live(Live):
    """A live display of a table that also bears what else happens to a terminal."""

    def __init__(self, table: Table, **options: Any) -> None:
        super().__init__(table, **options)
        self.table = table

    def forget(self) -> None:
        """Leave what has been drawn where it is; the next time it is drawn beneath whatever is there by then."""
        self._live_render._shape = None

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Draw the table beneath what is printed, in place of the last one."""
        if not _is_in_foreground(self.console.file):
            self.forget()
            return renderables
        if self._live_render.last_render_height:
            width = self.console.width  # a terminal that has become narrower has wrapped what was there
            rows = sum(max(1, math.ceil(n / width)) for n in self.table.widths)
            self._live_render._shape = (width, rows)
        return super().process_renderables(renderables)


def _is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that understands escape codes, and ours alone.

    Jobs that a launcher runs side by side share one, on which their tables would overwrite each other.
    """
    is_dumb = os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown")
    return stream.isatty() and not is_dumb and mp.parent_process() is None


def _is_in_foreground(stream: Any) -> bool:
    """Return whether we may draw on a terminal: whether its shell does not run something else in front of us."""
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # not the terminal that controls us
        return True


def _row(width: int, label: str, text: str, whole: bool) -> Text:
    """Return a row of a screen in lines that fit a width, but for a text that must not be broken."""
    room = width - LABEL
    if not whole:
        text = f"\n{' ' * LABEL}".join(
            textwrap.wrap(text, max(room, 1), break_long_words=False, break_on_hyphens=False)
        )
    elif len(text) > room:
        text = f"\n  {text}"
    return Text.assemble((f"{f'  {label}':<{LABEL}}", "dim"), text)
