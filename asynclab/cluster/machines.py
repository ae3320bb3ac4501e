"""Ray: started on this machine for one run, or joined where it runs; what must be alike on all machines."""

import json
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

import asynclab
from asynclab import machine, signals
from asynclab.distributed import Cluster

OBJECTS = 100 * 2**20  # bytes of Ray's store of objects, at least
CONNECT = 10.0  # seconds in which a cluster must answer
LONGEST = 20  # characters of the folder for temporary files: Ray's sockets below it have room for 107
ANSWER = 180.0  # in which all its machines must, together; to begin a process there may take half a minute

_connected = False  # to Ray, by us

# A process of its own, told which processes Ray has here.  If its input ends before it is ended itself, we have died
# without a word; some of Ray's would live on for minutes.
GUARD = """
import json, psutil, sys
told = sys.stdin.readline()
sys.stdin.read()
for pid, began in json.loads(told or "[]"):
    try:
        process = psutil.Process(pid)
        if process.create_time() == began:
            process.kill()
    except psutil.Error:
        pass
"""


def check(mode: Cluster) -> None:
    """Refuse a cluster that cannot run this, and let the mode know its machines.

    Raises:
        ValueError: Ray is not installed or somebody else's here, nothing answers, there is no room, or versions differ.
    """
    if find_spec("ray") is None:
        raise ValueError("distributed=cluster needs Ray, which is not installed: pip install 'asynclab[cluster]'")
    if (theirs := sys.modules.get("ray")) is not None and theirs.is_initialized() and not _connected:
        raise ValueError(
            "distributed=cluster connects to Ray, and this process is connected already; call ray.shutdown() before, or"
            " train in another process"
        )
    if mode.address is None:
        return
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    leave()
    _connect(mode.address)
    while True:
        nodes = _alive()
        mode.settle([int(node["Resources"].get("CPU", 0)) for node in nodes])
        try:
            found = ray.get([_ask_versions(node["NodeID"]) for node in nodes], timeout=ANSWER)
            break
        except GetTimeoutError as error:
            raise ValueError(
                f"distributed.address={mode.address}: not all {len(nodes)} machines of the cluster have answered within"
                f" {ANSWER:.0f} s; see ray status, and take away what does not answer"
            ) from error
        except RayError as error:
            left = {node["NodeID"] for node in _alive()}
            if all(node["NodeID"] in left for node in nodes):  # or one was lost meanwhile, and the others may do
                raise ValueError(
                    f"distributed.address={mode.address}: asynclab cannot be imported on all machines of the cluster;"
                    f" install the same version on each ({str(error).strip().splitlines()[-1]})"
                ) from error
    here = versions()
    for host, there in zip((node["NodeManagerHostname"] for node in nodes), found, strict=True):
        if there != here:
            raise ValueError(
                f"distributed.address={mode.address}: {host} has {_in_words(there)}, and this machine has"
                f" {_in_words(here)}; install the same on all machines"
            )


def versions() -> dict[str, str]:
    """Return what must be the same on all machines: of asynclab its source."""
    root = Path(asynclab.__file__).parent
    source = sha256(b"".join(path.read_bytes() for path in sorted(root.glob("**/*.py")))).hexdigest()[:8]
    return {
        "Python": platform.python_version(),
        "Ray": version("ray"),
        "torch": version("torch"),
        "asynclab": f"{asynclab.__version__} ({source})",
    }


@contextmanager
def joined(mode: Cluster, nbytes: int) -> Iterator[None]:
    """Be connected to a cluster: the one of the mode, or one of our own on this machine, which ends with this.

    Args:
        mode: Of the run.
        nbytes: Of a network.
    """
    import ray

    if mode.address is not None:
        if not ray.is_initialized():
            _connect(mode.address)
        try:
            yield
        finally:
            leave()
        return
    place = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="asynclab_ray_", dir="/tmp" if len(place) > LONGEST else place)
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD], stdin=subprocess.PIPE, start_new_session=True, text=True
    )  # fmt: skip
    theirs = {p.pid for p in psutil.Process().children(recursive=True)}  # the program's own, and the guard
    try:
        _init(
            address="local",
            num_cpus=machine.cores(),
            object_store_memory=max(OBJECTS, 16 * mode.nodes * nbytes),
            _temp_dir=folder,
        )
        assert guard.stdin is not None
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in theirs]
        guard.stdin.write(json.dumps([(p.pid, p.create_time()) for p in started]) + "\n")
        guard.stdin.flush()
        yield
    finally:
        leave()
        guard.kill()
        guard.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def leave() -> None:
    """Be connected to no cluster by us."""
    global _connected
    if _connected:
        import ray

        ray.shutdown()
    _connected = False


def _connect(address: str) -> None:
    """Join a cluster.

    Raises:
        ValueError: It does not answer, or has other versions.
    """
    host, _, port = address.rpartition(":")
    try:
        if host:  # not auto
            socket.create_connection((host, int(port)), CONNECT).close()
        _init(address=address)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"distributed.address={address}: no Ray cluster answers there"
            f" ({str(error).strip().splitlines()[0]}); start one with ray start, or set distributed.address=null to"
            " start Ray on this machine"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"distributed.address={address}: {' '.join(str(error).split())}") from error


def _init(**settings: Any) -> None:
    """Start Ray or connect to it; its handler of SIGTERM is not kept, and what ends us must not reach its processes."""
    global _connected
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if settings["address"] == "local":
        os.environ |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: listen on the loopback only
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_worker_niceness": "0",  # else sessions would yield to everything else on this machine
        }
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    handler = signal.getsignal(signal.SIGTERM)
    with signals.blocked(), _loopback() if settings["address"] == "local" else nullcontext():
        _connected = True  # even if it fails half-way
        try:
            ray.init(
                include_dashboard=None if settings["address"] != "local" else False,
                configure_logging=False, log_to_driver=False, **settings,
            )  # fmt: skip
        finally:
            if handler is not None and threading.current_thread() is threading.main_thread():  # Ray sets it only there
                signal.signal(signal.SIGTERM, handler)


@contextmanager
def _loopback() -> Iterator[None]:
    """Let this process start a Ray that listens on 127.0.0.1 only.

    Ray has read the variable of its processes when it was imported, which may be long ago.
    """
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _alive() -> list[dict[str, Any]]:
    """Return the machines that Ray has not given up."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _ask_versions(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(versions).options(scheduling_strategy=there).remote()


def _in_words(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())
