"""The modes of sharing.  A mode is a placement of the session's weights, not a code path.

mode       store             the session's weights                      push            pull
off        one per session   a private copy                             store.apply     copy theta
synced     one for all       a private copy, possibly on a GPU          store.apply     copy theta
shared     one for all       theta itself                               store.apply     nothing to do
simulated  one for all       as in synced or shared, all sessions in one process and in virtual time
"""

import math

from torch import Tensor

from asynclab import check, machine
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
        self.staleness_lr = check.flag("distributed.staleness_lr", staleness_lr)
        if check.number("distributed.compensate", compensate) < 0:
            raise ValueError(f"distributed.compensate={compensate} must be 0 or more; 0.04 is its authors' choice")
        self.compensate = compensate
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
        """Number of processes in which the sessions are."""
        return 1 if self.is_simulated else self.max_session

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


class Simulated(Mode):
    """Sessions of ``synced`` or ``shared`` in one process, whose time is virtual: the same to the bit in every run.

    Args:
        max_session: Number of sessions.
        placement: Where their weights lie: ``synced`` or ``shared``.
        timing: How long what they do takes.
        num_threads: Torch threads of the process.
        hang_after: As in ``Mode``, of the process that evaluates the run; a simulation is not watched.
        diagnostics: As in ``Mode``; no update is ever lost here.
        staleness_lr: As in ``Mode``.
        compensate: As in ``Mode``.
    """

    on_gpu = False
    is_simulated = True

    def __init__(
        self,
        max_session: int,
        placement: str = "synced",
        timing: Constant = Constant(),
        num_threads: int = 1,
        hang_after: float = 60.0,
        diagnostics: bool = False,
        staleness_lr: bool = False,
        compensate: float = 0.0,
    ) -> None:
        super().__init__(max_session, num_threads, 0, hang_after, "none", diagnostics, staleness_lr, compensate)
        if placement not in PLACEMENTS:
            raise ValueError(f"distributed.placement={placement} is unknown; use one of {', '.join(PLACEMENTS)}")
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
        self._placed = PLACEMENTS[placement](max_session)
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
