"""Console output: a live progress line on a terminal, plain lines elsewhere."""

import logging
import os
import shutil
import sys


class LiveHandler(logging.StreamHandler):
    """Console handler under which a record with ``extra={"live": True}`` replaces the one before on a terminal."""

    _line_is_open = False

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; a live one must fit one row, or the next could not wipe it."""
        text = super().format(record)
        return text[: shutil.get_terminal_size().columns - 1] if self._is_live(record) else text

    def _is_live(self, record: logging.LogRecord) -> bool:
        return getattr(record, "live", False) and self.stream.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless it has ``extra={"console": False}``."""
        if not getattr(record, "console", True):
            return
        live = self._is_live(record)
        try:
            if self._line_is_open:
                self.stream.write("\r\x1b[2K" if live else "\n")
                self.stream.flush()
        except OSError:
            self.handleError(record)
        self.terminator = "" if live else "\n"
        self._line_is_open = live
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Write nowhere from now on if the terminal has been closed; Python fails if it cannot flush at its end."""
        if isinstance(sys.exc_info()[1], OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        else:
            super().handleError(record)
