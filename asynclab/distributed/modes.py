"""The three modes of sharing.  A mode is a placement of the session's weights, not a code path.

mode     store             the session's weights                      push            pull
off      one per session   a private copy                             store.apply     copy theta
synced   one for all       a private copy, possibly on a GPU          store.apply     copy theta
shared   one for all       theta itself                               store.apply     nothing to do
"""

from torch import Tensor

from asynclab import check, machine
from asynclab.distributed.store import Store
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
    """

    one_store = True  # all sessions train one network
    on_gpu = True  # the session's weights may lie on a GPU
    is_live = False  # others change the session's weights at any time, not only its pulls

    def __init__(
        self,
        max_session: int | None = None,
        num_threads: int | None = None,
        max_restarts: int = 3,
        hang_after: float = 60.0,
        lock: str = "none",
        diagnostics: bool = False,
    ) -> None:
        if max_session is None:
            max_session = machine.cores()
        self.max_session = check.count("distributed.max_session", max_session)
        self.num_threads = None if num_threads is None else check.count("distributed.num_threads", num_threads)
        self.max_restarts = check.whole("distributed.max_restarts", max_restarts)
        self.hang_after = check.positive("distributed.hang_after", hang_after)
        if lock not in LOCKS:
            raise ValueError(f"distributed.lock={lock} is unknown; use one of {', '.join(LOCKS)}")
        self.lock = lock
        self.diagnostics = check.flag("distributed.diagnostics", diagnostics)

    @property
    def name(self) -> str:
        """The mode's name on the command line."""
        return type(self).__name__.lower()

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

    def push(self, grad: Tensor, store: Store) -> None:
        """Apply the session's gradient [P] to the global network."""
        store.apply(grad)

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
