"""What goes over the network of a cluster, and how long nodes wait for it: simulated, with nodes that learn nothing.

Example: ``python benchmarks/traffic.py parameters=866439 updates=160 nodes=[10,100,1000] every=[5,50,500]``
"""

import heapq
from collections import Counter
from functools import partial

import torch
from omegaconf import DictConfig

from asynclab import check, config
from asynclab.cluster.exchange import Exchanges
from asynclab.config.command import check_keys, configured, counts, user_errors
from asynclab.distributed import Network, Simulated, Store
from asynclab.distributed.timing import Constant
from asynclab.schedules import Constant as Unchanged
from asynclab.simulation.clock import Clock
from asynclab.simulation.nodes import Nodes

config.register()


@configured("traffic")
def main(cfg: DictConfig) -> None:
    """Print a line for each number of nodes and each interval of exchanges."""
    check_keys(cfg)
    with user_errors():
        check.count("parameters", cfg.parameters)
        for key in ("updates", "seconds", "bandwidth"):
            check.positive(key, check.number(key, cfg[key]))
        for key in ("latency", "serving"):
            if check.number(key, cfg[key]) < 0:
                raise ValueError(f"{key}={cfg[key]} must be 0 or more")
        all_nodes, all_every = (counts(cfg, key) for key in ("nodes", "every"))
    print(f"{'nodes':>6} {'every':>6} {'MB/s at the server':>19} {'exchanges/s':>12} {'ms each':>9} "
          f"{'updates between':>16} {'staleness':>10}")  # fmt: skip
    for nodes in all_nodes:
        for every in all_every:
            timing = Constant(latency=cfg.latency, bandwidth=cfg.bandwidth, exchange=cfg.serving)
            mode = Simulated(nodes, nodes=nodes, exchange_every=every, timing=timing)
            _, times, seconds, nbytes, staleness = _simulate(mode, cfg.parameters, cfg.updates, cfg.seconds)
            stale = sum(n * count for n, count in staleness.items()) / max(1, sum(staleness.values()))
            print(
                f"{nodes:>6,} {every:>6,} {1e-6 * nbytes / cfg.seconds:>19,.1f} {times / cfg.seconds:>12,.1f}"
                f" {1e3 * seconds / max(1, times):>9,.1f} {cfg.updates * cfg.seconds * nodes / max(1, times):>16,.1f}"
                f" {stale:>10,.0f}", flush=True,
            )  # fmt: skip


def _simulate(mode: Simulated, parameters: int, rate: float, seconds: float) -> Exchanges:
    """Return what exchanges cost in so many virtual seconds in which every node makes ``rate`` updates per second."""
    network = Network(torch.zeros(parameters), {"net": slice(0, parameters)})
    store = Store(network, partial(torch.optim.SGD, lr=0.1), 10**12, Unchanged(), mode.max_session)
    clock = Clock()
    nodes = Nodes(mode, store, 1, clock)
    number = mode.max_session
    # updates of nodes that have not begun all at once, and events of their exchanges
    queue = [(node / number / rate, node) for node in range(number)]
    while queue[0][0] < seconds:
        clock.now, event = heapq.heappop(queue)
        if event < number:
            replica = nodes.nodes[event].replica
            replica.store.updates[0] += 1
            heapq.heappush(queue, (clock.now + 1 / rate, event))
        else:
            nodes.go_on(event - number)
            if (due := nodes.nodes[event - number].due) is not None:
                heapq.heappush(queue, (due, event))
        node = event % number
        if (due := nodes.look(node)) is not None:
            heapq.heappush(queue, (due, node + number))
    found = [nodes.tell(node) for node in range(number)]
    staleness = sum((Counter(one.staleness) for one in found), Counter())
    return Exchanges(0, sum(one.times for one in found), sum(one.seconds for one in found),
                     sum(one.nbytes for one in found), staleness)  # fmt: skip


if __name__ == "__main__":
    main()
