"""What one server of distributed=cluster can do: exchanges per second, by size of the network and number of nodes.

Example: ``python benchmarks/server.py parameters=[9155,866439] nodes=[1,4]``.  Nodes only exchange, as fast as they
can, on the same machine.
"""

import time
from typing import Any

import numpy as np
from omegaconf import DictConfig

from asynclab import check, config
from asynclab.cluster import machines
from asynclab.cluster.exchange import Change, Server, View, size
from asynclab.config.command import check_keys, configured, counts, user_errors
from asynclab.distributed import Cluster
from asynclab.distributed.exchange import Outer

config.register()


class Node:
    """An actor that exchanges a change of random numbers again and again.

    Args:
        node: Its number.
        parameters: Of the network.
        server: Handle of the server.
    """

    def __init__(self, node: int, parameters: int, server: Any) -> None:
        self.node = node
        self.delta = np.random.default_rng(node).standard_normal(parameters, dtype=np.float32) * np.float32(1e-6)
        self.server = server
        self.number = self.version = 0

    def run(self, seconds: float) -> tuple[int, float, int]:
        """Return how many exchanges there were, the seconds of one in the mean, and its bytes both ways."""
        import ray

        began, times, nbytes = time.perf_counter(), 0, 0
        while (passed := time.perf_counter() - began) < seconds:
            self.number += 1
            change = Change(self.node, 0, self.number, self.version, self.delta, np.full((3, 1), self.number), {}, 1)
            reply = ray.get(self.server.exchange.remote(change))
            self.version, times = reply.version, times + 1
            nbytes = size(change) + size(reply)
        return times, passed / times, nbytes


@configured("server")
def main(cfg: DictConfig) -> None:
    """Print a line for each size and each number of nodes."""
    check_keys(cfg)
    with user_errors():
        check.positive("seconds", check.number("seconds", cfg.seconds))
        sizes, numbers = (counts(cfg, key) for key in ("parameters", "nodes"))
        machines.check(Cluster(max_session=1, nodes=1))  # Ray is installed
    print(f"{'parameters':>12} {'nodes':>6} {'exchanges/s':>12} {'ms each':>8} {'MB/s':>8}")
    with machines.joined(Cluster(max_session=1, nodes=1), 4 * max(sizes)):
        for parameters in sizes:
            for nodes in numbers:
                times, ms, nbytes = _measure(parameters, nodes, cfg.seconds)
                rate = times / cfg.seconds
                print(
                    f"{parameters:>12,} {nodes:>6} {rate:>12,.0f} {ms:>8.2f} {1e-6 * rate * nbytes:>8,.1f}", flush=True
                )


def _measure(parameters: int, nodes: int, seconds: float) -> tuple[int, float, int]:
    import ray

    counts, none = np.zeros((3, nodes), np.int64), (0,) * nodes
    view = View(np.zeros(parameters, np.float32), None, 0, none, counts, {}, none, none)
    make: Any = ray.remote(num_cpus=0)
    server = make(Server).remote(Outer(), 10**12, 1, view)
    actors = [make(Node).remote(node, parameters, server) for node in range(nodes)]
    ray.get([actor.run.remote(0.5) for actor in actors])  # the first ones connect
    found = ray.get([actor.run.remote(seconds) for actor in actors])
    for actor in (*actors, server):
        ray.kill(actor)
    return sum(one[0] for one in found), 1e3 * sum(one[1] for one in found) / nodes, found[0][2]


if __name__ == "__main__":
    main()
