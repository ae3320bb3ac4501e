"""Commands as users type them, in processes that are forked where torch is imported already.

Python and a fork server of its own take 4 seconds of processor time for a command before it does anything.  What is
about the process itself (its signals, terminal, environment, imports) starts Python all the same.
"""

import multiprocessing as mp
import subprocess
import tempfile
from pathlib import Path

import runs

ROOT = Path(__file__).parent.parent


def run(script, *typed, cwd=".", timeout=240, **env):
    """Run ``python <script> <typed>`` in a folder, with the fork server of these tests as its own.

    Args:
        script: Its path in this checkout.
        typed: What stands behind it.
        cwd: The folder.
        timeout: In seconds.
        env: Variables of the environment; processes that it starts do not see them.

    Returns:
        What ``subprocess.run`` returns.
    """
    command = [str(ROOT / script), *map(str, typed)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        out.touch()
        err.touch()
        process = mp.get_context("forkserver").Process(
            target=runs.command, args=(command, Path(cwd).resolve(), env, out, err)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.terminate()  # so that it ends its sessions
            process.join(20)
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())
