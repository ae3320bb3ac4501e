"""The modes of sharing.  A mode is a placement of the session's weights, not a code path.

mode       store             the session's weights                      push            pull
off        one per session   a private copy                             store.apply     copy theta
synced     one for all       a private copy, possibly on a GPU          store.apply     copy theta
shared     one for all       theta itself                               store.apply     nothing to do
simulated  one for all       as in synced or shared or cluster, all sessions in one process and in virtual time
cluster    one per machine   as in synced or shared; machines exchange by how much theirs have changed
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from asynclab import check, machine
from asynclab.distributed.exchange import Outer
from asynclab.distributed.store import Store
from asynclab.distributed.timing import Constant
from asynclab.flat import Vector

LOCKS = ("none", "update")


class Mode:
    """How many sessions there are and where their weights lie.

    Args:
        max_session: Number of sessions (processes); None for one per available core.
        num_threads: Of torch and of the emulator in each session; None leaves it to the trial.
        max_restarts: Of each session, before its next failure ends the trial.
        hang_after: Seconds without a step after which a session counts as hung.
        lock: ``none`` is Hogwild!; ``update`` lets sessions step the global optimizer one after the other.
        diagnostics: Measure lost updates and the agreement of stale with fresh gradients, at the price of one more pass
            over the weights per update, and of one more gradient now and then.
        staleness_lr: Divide the learning rate by a gradient's staleness, if that is more than 1 (Zhang et al., 2016).
        compensate: lambda of DC-ASGD (Zheng et al., 2017), which corrects a gradient for how theta has moved since its
            weights were pulled; 0 for none.
        record: Write what it takes to repeat the run to the bit (``distributed.tape``).
    """

    one_store = True  # all sessions train one network
    on_gpu = True  # the session's weights may lie on a GPU
    is_live = False  # others change the session's weights at any time, not only its pulls
    is_simulated = False  # all sessions are in one process, and time is virtual
    is_cluster = False  # sessions are on several machines

    def __init__(
        self,
        max_session: int | None = None,
        num_threads: int | None = None,
        max_restarts: int = 3,
        hang_after: float = 60.0,
        lock: str = "none",
        diagnostics: bool = False,
        staleness_lr: bool = False,
        compensate: float = 0.0,
        record: bool = False,
    ) -> None:
        sessions = machine.cores() if max_session is None else max_session
        self.max_session = check.count("distributed.max_session", sessions)
        self.num_threads = None if num_threads is None else check.count("distributed.num_threads", num_threads)
        self.max_restarts = check.whole("distributed.max_restarts", max_restarts)
        self.hang_after = check.positive("distributed.hang_after", hang_after)
        if lock not in LOCKS:
            raise ValueError(f"distributed.lock={lock} is unknown; use one of {', '.join(LOCKS)}")
        self.lock = lock
        self.diagnostics = check.flag("distributed.diagnostics", diagnostics)
        self.staleness_lr = check.flag("distributed.staleness_lr", staleness_lr)
        self.compensate = check.not_negative("distributed.compensate", compensate)
        self.record = check.flag("distributed.record", record)
        if record and (self.is_live or not self.one_store):
            raise ValueError(f"distributed.record=true needs distributed=synced, and this is {self.name}")
        if record and lock != "update":
            raise ValueError(f"distributed.record=true needs distributed.lock=update, and it is {lock}")

    @property
    def name(self) -> str:
        """The mode's name on the command line."""
        return type(self).__name__.lower()

    @property
    def processes(self) -> int:
        """Number of processes in which the sessions of this machine are."""
        return 1 if self.is_simulated else self.on_this_machine

    @property
    def on_this_machine(self) -> int:
        """Number of sessions that this machine must have room for."""
        return self.max_session

    @property
    def nodes_here(self) -> int:
        """Number of groups of sessions with a network each that this machine must have room for; 0 if all share one."""
        return 0

    def label(self, rank: int) -> str:
        """Return what people call a session."""
        return str(rank)

    @property
    def grace(self) -> float:
        """Seconds that sessions have at most for the updates that are due when the budget is used up."""
        return math.inf if self.is_simulated else 10 * self.hang_after

    @property
    def num_stores(self) -> int:
        """Number of networks that are trained."""
        return 1 if self.one_store else self.max_session

    @property
    def writers(self) -> int:
        """Sessions that push to each store."""
        return self.max_session if self.one_store else 1

    def store_index(self, rank: int) -> int:
        """Return which of the stores the session trains."""
        return 0 if self.one_store else rank

    def slot(self, rank: int) -> int:
        """Return the session's place among the writers of its store."""
        return rank if self.one_store else 0

    def weights(self, store: Store, device: str, bf16: bool = False) -> Vector:
        """Return what the session's network is bound to; it holds theta's values: the first pull.

        Args:
            store: What the session trains.
            device: Torch device of the weights.
            bf16: Whether parts of the network compute in bfloat16.
        """
        return Vector.make(store.theta.to(device, copy=True), bf16)

    def push(self, grad: Tensor, store: Store, staleness: int = 0, pulled: Tensor | None = None) -> None:
        """Apply the session's gradient [P] to the global network, corrected for its age if that is asked for.

        Args:
            grad: Not modified.
            store: What the session trains.
            staleness: Updates by others since the weights of the gradient.
            pulled: [P] those weights; None if nothing is to be compensated.
        """
        if self.compensate and pulled is not None:
            # g + lambda g g (theta - theta_pulled)   (Zheng et al., 2017, eq. 10)
            grad, pulled = grad.to(store.theta.device), pulled.to(store.theta.device)
            grad = grad.addcmul(grad.square(), store.theta - pulled, value=self.compensate)
        # eta / tau   (Zhang et al., 2016, section 3.2)
        store.apply(grad, 1 / max(1, staleness) if self.staleness_lr else 1.0)

    def pull(self, weights: Vector, store: Store) -> None:
        """Refresh the session's weights from the global network."""
        weights.full.copy_(store.theta)
        weights.round_()

    def follow(self, weights: Vector) -> None:
        """Do nothing: private weights change by pulls only.  Called before every use of the weights."""


class Off(Mode):
    """Nothing is shared: independent repeats with different seeds."""

    one_store = False


class Synced(Mode):
    """Private weights, refreshed after every training step: A3C."""


class Shared(Mode):
    """The session's network is the global network: continuous sharing, for async SAC."""

    on_gpu = False
    is_live = True

    def weights(self, store: Store, device: str, bf16: bool = False) -> Vector:
        """Return theta itself."""
        assert device == "cpu", "theta lies in CPU memory; the trial refuses a GPU before this"
        return Vector.make(store.theta, bf16)

    def pull(self, weights: Vector, store: Store) -> None:
        """Do nothing: the weights are theta."""
        assert weights.full.data_ptr() == store.theta.data_ptr()

    def follow(self, weights: Vector) -> None:
        """Round theta as it is now: other sessions write to it at any time."""
        weights.round_()


PLACEMENTS: dict[str, type[Mode]] = {"synced": Synced, "shared": Shared}


class Placed(Mode):
    """A mode whose sessions have their weights where another one's have them, perhaps in groups with a network each.

    Attributes:
        nodes: Number of those groups, which exchange by how much their networks have changed; None for one network.

    Args:
        placement: ``synced`` or ``shared``.
        mode: Of ``Mode``.
    """

    on_gpu = False
    nodes: int | None = None

    def __init__(self, placement: str, *mode: Any, **more: Any) -> None:
        super().__init__(*mode, **more)
        if placement not in PLACEMENTS:
            raise ValueError(f"distributed.placement={placement} is unknown; use one of {', '.join(PLACEMENTS)}")
        self._placed = PLACEMENTS[placement](1)
        self.is_live = self._placed.is_live

    def weights(self, store: Store, device: str, bf16: bool = False) -> Vector:
        """Return what the placement has it."""
        return self._placed.weights(store, device, bf16)

    def pull(self, weights: Vector, store: Store) -> None:
        """Do what the placement does."""
        self._placed.pull(weights, store)

    def follow(self, weights: Vector) -> None:
        """Do what the placement does."""
        self._placed.follow(weights)

    @property
    def sessions(self) -> int:
        """Number of sessions of each node."""
        return self.max_session // (self.nodes or 1)

    def ranks(self, node: int) -> range:
        """Return the sessions of a node."""
        return range(node * self.sessions, (node + 1) * self.sessions)

    def slot(self, rank: int) -> int:
        """Return the session's place among the writers of its node's store."""
        return rank % self.sessions

    def label(self, rank: int) -> str:
        """Return node:session, or the rank."""
        return str(rank) if self.nodes is None else f"{rank // self.sessions}:{rank % self.sessions}"

    def _set_nodes(self, nodes: int) -> None:
        """Let there be so many nodes, with as many sessions each."""
        self.nodes = nodes
        each = self.sessions
        if self.max_session % nodes:
            fits = f"{each * nodes} or " * bool(each) + f"{(each + 1) * nodes}"
            raise ValueError(
                f"distributed.max_session={self.max_session} sessions cannot be spread evenly over {nodes} nodes; set"
                f" it to {fits}, or distributed.nodes otherwise"
            )

    def _set_exchange(self, every: int, outer: Outer) -> None:
        """Let nodes exchange their changes as often as that, and a server apply them in that way."""
        if not isinstance(outer, Outer):
            raise ValueError(f"distributed.outer={outer} must have lr and momentum")
        self.exchange_every = check.count("distributed.exchange_every", every)
        self.outer = outer


class Simulated(Placed):
    """Sessions of ``synced`` or ``shared`` in one process, whose time is virtual: the same to the bit in every run.

    Args:
        max_session: Number of sessions.
        placement: Where their weights lie: ``synced`` or ``shared``.
        timing: How long what they do takes.
        nodes: As in ``Cluster``, each on a machine of its own; None for one network.
        exchange_every: As in ``Cluster``.
        outer: As in ``Cluster``.
        num_threads: Torch threads of the process.
        hang_after: As in ``Mode``, of the process that evaluates the run; a simulation is not watched.
        diagnostics: As in ``Mode``; no update is ever lost here.
        staleness_lr: As in ``Mode``.
        compensate: As in ``Mode``.
    """

    is_simulated = True

    def __init__(
        self,
        max_session: int,
        placement: str = "synced",
        timing: Constant = Constant(),
        nodes: int | None = None,
        exchange_every: int = 5,
        outer: Outer = Outer(),
        num_threads: int = 1,
        hang_after: float = 60.0,
        diagnostics: bool = False,
        staleness_lr: bool = False,
        compensate: float = 0.0,
    ) -> None:
        super().__init__(
            placement, max_session, num_threads, 0, hang_after, "none", diagnostics, staleness_lr, compensate
        )
        if not isinstance(timing, Constant):
            raise ValueError(
                f"distributed.timing={timing} is unknown; use distributed/timing=constant or lognormal, or what"
                " scripts/timing.py has measured"
            )
        if placement == "shared" and timing.machines > 1:
            raise ValueError(
                f"distributed.timing.machines={timing.machines} cannot compute with the same memory; set"
                " distributed.placement=synced"
            )
        self.timing = timing
        if nodes is not None:
            if timing.machines > 1:
                raise ValueError(
                    f"distributed.timing.machines={timing.machines} is for one network that all machines push to, and"
                    f" each of distributed.nodes={nodes} is a machine with one of its own; set one of the two"
                )
            self._set_nodes(check.count("distributed.nodes", nodes))
        self._set_exchange(exchange_every, outer)

    @property
    def nodes_here(self) -> int:
        """Number of all nodes."""
        return self.nodes or 0


class Cluster(Placed):
    """Sessions on many machines: Hogwild! inside each (a node), exchange of changes between them (``exchange``).

    Args:
        max_session: Sessions of all nodes together; None for one per core of the cluster, as far as equal nodes go.
        placement: Where a node's sessions have their weights: ``synced`` or ``shared``.
        nodes: How many groups sessions are in, each on one machine; None for as many as there are machines.
        address: Of the Ray cluster to join, such as auto; None to start Ray on this machine.
        elastic: Begin although there is not room for all nodes yet; the others begin where machines join.
        exchange_every: Updates of a node between two exchanges with the server.
        outer: Applies nodes' changes to the server's theta.
        num_threads: Torch threads of each session; as many cores are taken for it.
        max_restarts: As in ``Mode``; nodes that are lost do not count.
        hang_after: As in ``Mode``, and of a node without a word.
        lock: ``none``; nothing else reaches beyond a machine.
        diagnostics: False, likewise.
        staleness_lr: As in ``Mode``.
        compensate: As in ``Mode``.
        record: False.
    """

    is_cluster = True

    def __init__(
        self,
        max_session: int | None = None,
        placement: str = "synced",
        nodes: int | None = None,
        address: str | None = None,
        elastic: bool = False,
        exchange_every: int = 5,
        outer: Outer = Outer(),
        num_threads: int = 1,
        max_restarts: int = 3,
        hang_after: float = 60.0,
        lock: str = "none",
        diagnostics: bool = False,
        staleness_lr: bool = False,
        compensate: float = 0.0,
        record: bool = False,
    ) -> None:
        for key, value, off in (("lock", lock, "none"), ("diagnostics", diagnostics, False), ("record", record, False)):
            if value != off:
                raise ValueError(
                    f"distributed.{key}={str(value).lower()} needs memory that all sessions share, and those of"
                    f" distributed=cluster are on several machines; set distributed.{key}={str(off).lower()}, or"
                    " distributed=synced"
                )
        super().__init__(
            placement, max_session, 1 if num_threads is None else num_threads, max_restarts, hang_after, "none", False,
            staleness_lr, compensate,
        )  # fmt: skip
        if nodes is not None:
            check.count("distributed.nodes", nodes)
        if address not in (None, "auto"):
            host, _, port = str(address).rpartition(":")
            if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ValueError(
                    f"distributed.address={address} must be auto, <host>:<port> with a port from 1 to 65535, or null to"
                    " start Ray here"
                )
        self.address = address
        self.elastic = check.flag("distributed.elastic", elastic)
        if elastic and (nodes is None or max_session is None):
            raise ValueError(
                "distributed.elastic=true waits for machines, and nothing says for how many; set distributed.nodes and"
                " distributed.max_session to what there will be"
            )
        if elastic and address is None:
            raise ValueError(
                "distributed.elastic=true waits for machines, and none can join a Ray that is started here for this run"
                " only; set distributed.address to that of a cluster"
            )
        self._set_exchange(exchange_every, outer)
        self._asked = max_session, nodes
        self.nodes: int = nodes or 1
        if address is None:
            self.settle([machine.cores()])

    def settle(self, cores: Sequence[int]) -> None:
        """Decide how many sessions there are, and in how many nodes.

        Args:
            cores: Of every machine.

        Raises:
            ValueError: There is no room for them.
        """
        threads = self.num_threads or 1
        sessions, nodes = self._asked
        nodes = nodes or sum(n >= threads for n in cores) or 1
        # as many as fit: a node's sessions are on one machine
        fitting = [e for e in range(1, max(cores, default=0) + 1) if sum(n // (e * threads) for n in cores) >= nodes]
        self.max_session = max(fitting, default=1) * nodes if sessions is None else sessions
        self._set_nodes(nodes)
        each = self.sessions
        if sum(n // (each * threads) for n in cores) < (1 if self.elastic else self.nodes):
            of = f"{each} sessions" + f" with {threads} threads each" * (threads > 1)
            place, more = ("this machine", "set distributed.address to that of a cluster")
            if self.address is not None:
                place, more = "the cluster", "let more machines join"
            raise ValueError(
                f"distributed.max_session={self.max_session} needs {self.nodes} x {each * threads} cores ({of} on each"
                f" node), and {place} has {', '.join(map(str, cores))}; lower distributed.max_session, set"
                f" distributed.nodes otherwise, or {more}"
            )

    @property
    def on_this_machine(self) -> int:
        """Number of sessions that this machine must have room for, or the one that is as large as it."""
        return self.max_session if self.address is None else self.sessions

    @property
    def nodes_here(self) -> int:
        """Number of nodes that this machine must have room for, likewise."""
        return self.nodes if self.address is None else 1
