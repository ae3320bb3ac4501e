"""TensorBoard on a run while it trains, for this machine alone."""

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asynclab import signals
from asynclab.storage.names import TENSORBOARD

log = logging.getLogger(__name__)

ADDRESS = "http://localhost:6006"  # where TensorBoard is found unless another one is there


@contextmanager
def viewing(folder: Path) -> Iterator[None]:
    """Serve TensorBoard on the loopback for as long as this lasts, and log its address; a failure is only logged.

    Args:
        folder: Output folder of a run.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / TENSORBOARD), "--host", "127.0.0.1"]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=signals.die_with_parent,
        )  # fmt: skip
    except OSError as error:
        log.warning("TensorBoard could not be started (%s); the run goes on without it", error.strerror)
        yield
        return
    ending = threading.Event()
    thread = threading.Thread(target=_tell, args=(process, ending), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        process.kill()  # it only reads
        process.wait()
        thread.join()


def _tell(process: "subprocess.Popen[str]", ending: threading.Event) -> None:
    """Log the address when TensorBoard has one, or why it has none."""
    assert process.stderr is not None
    last = ""
    with process.stderr as lines:
        for line in lines:
            if found := re.search(r"http://\S+", line):
                log.info("TensorBoard is at %s until the run ends", found[0])
            last = line.strip() or last
    if not ending.is_set():
        log.warning("TensorBoard has ended (%s); the run goes on without it", last)
