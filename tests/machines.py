"""Several machines on this one: Ray's own Cluster, whose nodes are groups of processes on the loopback."""

import os
import time
from pathlib import Path

import psutil

# as asynclab sets them for a Ray of its own, before Ray is imported
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",  # a machine that does not answer is lost after some 5 s
    "RAY_health_check_timeout_ms": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Machines:
    """Machines of so many cores each.

    Args:
        cores: Of the first one, which has Ray's head, and of the others.
    """

    def __init__(self, *cores):
        from ray.cluster_utils import Cluster

        options = {"include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node(cores[0]) | options)
        self.nodes = [self.cluster.head_node, *(self.add(n) for n in cores[1:])]
        self.address = self.cluster.address

    @staticmethod
    def _node(cores):
        return {"num_cpus": cores, "object_store_memory": 80 * 2**20}

    def add(self, cores, **options):
        """Let a machine join."""
        return self.cluster.add_node(**self._node(cores), **options)

    def kill(self, node):
        """Kill a machine: all of its Ray."""
        self.cluster.remove_node(node, allow_graceful=False)

    def raylets(self):
        """Return the processes that are a machine each."""
        return [p for p in _processes() if p.info["name"] == "raylet"]

    def actors(self, name):
        """Return the processes of actors of a class, those of dead machines left out."""
        return [p for p in _processes() if (p.info["cmdline"] or [""])[0].startswith(f"ray::{name}")]

    def settings(self):
        """Return the overrides of a run on these machines."""
        return ["distributed=cluster", f"distributed.address={self.address}"]

    def close(self):
        """End all of it."""
        self.cluster.shutdown()


def _processes():
    """Yield our descendants, with name and command line."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.info = process.as_dict(["name", "cmdline"])
            yield process
        except psutil.NoSuchProcess:
            continue


def ours():
    """Return all processes that Ray or a node of a run has, and that are not zombies, by command line."""
    found = []
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if ("ray::" in line or "/ray/" in line) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{process.pid} {line[:100]}")
    return found


def shared_files():
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def until(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
