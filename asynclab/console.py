"""Console output: a live progress line on a terminal, plain lines elsewhere."""

import logging


class LiveHandler(logging.StreamHandler):
    """Console handler under which a record with ``extra={"live": True}`` replaces the one before on a terminal."""

    _line_is_open = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        live = getattr(record, "live", False) and self.stream.isatty()
        if self._line_is_open:
            self.stream.write("\r\x1b[2K" if live else "\n")
        self.terminator = "" if live else "\n"
        self._line_is_open = live
        super().emit(record)
