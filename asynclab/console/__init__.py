"""What a terminal shows while a run trains."""

from asynclab.console.handler import ConsoleHandler, show

__all__ = ["ConsoleHandler", "show"]
