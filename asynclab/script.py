"""The script that runs.  Processes that Python starts import it, which must have been prepared for that.

A script without ``if __name__ == "__main__":`` would begin to train once more in every session, and a notebook is no
file at all.  So what ``asynclab.train`` starts does not import it.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_lock = threading.Lock()
_is_hidden = False


@contextmanager
def hidden() -> Iterator[None]:
    """Let processes that are started within ``starting`` not import the script, for as long as this lasts."""
    global _is_hidden
    _is_hidden = True
    try:
        yield
    finally:
        _is_hidden = False


@contextmanager
def starting() -> Iterator[None]:
    """Start processes; Python looks for the script in ``__main__``, which for that moment is empty if it is hidden."""
    if not _is_hidden:
        yield
        return
    with _lock:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
