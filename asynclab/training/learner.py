"""Batch -> gradient -> push -> pull: the lines that every mode shares.  P: number of parameters."""

from collections import Counter, defaultdict, namedtuple
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from asynclab import flat
from asynclab.agents import Agent
from asynclab.distributed import Mode, Store
from asynclab.distributed.tape import alone
from asynclab.processes.launch import FatalError


class Rules(NamedTuple):
    """How every session learns.

    Attributes:
        max_grad_norm: Bound on each network's gradient norm, None for none.
        max_dropped: Non-finite updates in a row that are dropped; one more ends the trial.
        precision: Of the torsos' arithmetic, fp32 or bf16.
    """

    max_grad_norm: float | None
    max_dropped: int
    precision: str


class Turn(Enum):
    """A moment in which a session may be left for others: each does what follows as soon as nobody holds it up."""

    FREE = "nothing is due, and nothing of the budget is claimed"
    STEP = "the environments have been stepped"
    GRADIENT = "a gradient is there and not yet pushed"
    PUSH = "it has been pushed, or dropped, and theta not yet pulled"
    PULL = "the update is over"
    REST = "the budget is used up"


Turns = Iterator[Turn]


class Gradient(NamedTuple):
    """What has been found of a batch; the gradient itself is in ``Learner.grad``.

    Attributes:
        losses: By name.
        norms: Of its parts before they were clipped, by metric name.
        metrics: What the agent tells of the batch.
    """

    losses: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor]


class Learner:
    """Trains a store with one session's batches; ``Instruments`` is the one that also measures.

    Args:
        agent: Bound here to the session's weights.
        mode: Where the weights lie.
        store: The global network and optimizer.
        slot: This session's place among the store's writers.
        device: Of the session's weights.
        rules: How it learns.
    """

    def __init__(self, agent: Agent, mode: Mode, store: Store, slot: int, device: str, rules: Rules) -> None:
        self.agent = agent
        self.mode = mode
        self.store = store
        self.slot = slot
        self.rules = rules
        self._dropped_in_row = 0
        bf16 = rules.precision == "bf16"
        with alone(store.tape):
            self._seen = self._followed = store.total_updates()  # updates that the weights and the agent have seen
            self.weights = mode.weights(store, device, bf16)
        self.grad = flat.Vector.make(torch.zeros_like(self.weights.full), bf16)
        agent.bind(self.weights, self.grad, store.target)
        assert flat.is_bound(agent.nets, self.weights, self.grad)
        self._pulled: Tensor | None = None  # the weights of the gradient, where they change at any time
        self._gradient: Gradient | None = None  # that waits to be pushed
        self._left: Iterator[Any] = iter(())  # minibatches
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    def act(self, obs: NDArray) -> NDArray:
        """Return actions for observations [B, ...] with the weights as they are now."""
        self.mode.follow(self.weights)
        tensor = torch.from_numpy(obs).to(self.agent.device)
        return self.agent.act(tensor, progress=self.store.progress()).cpu().numpy()

    def learn(self, batch: Any) -> Turns:
        """Learn from what the memory hands out, in as many updates as the agent makes of it.

        Once one is dropped, so are those that the agent would still have made of the same batch.
        """
        self.mode.follow(self.weights)
        self._left = self.minibatches(batch)
        yield from self.go_on()

    def go_on(self) -> Turns:
        """Make what is left of the last batch: the push of a gradient that waits for it, and more updates."""
        if self._gradient is not None:
            yield from self._apply()
        while (minibatch := next(self._left, None)) is not None:
            yield from self.update(minibatch)

    def minibatches(self, batch: Any) -> Iterator[Any]:
        """Return what the agent makes of a batch, on its device."""
        return self.agent.minibatches(type(batch)(*(x.to(self.agent.device) for x in batch)))

    def update(self, batch: Any) -> Turns:
        """Take one step on one batch, or drop it because its loss or gradient is not finite.

        Raises:
            FatalError: More than ``max_dropped`` updates in a row were dropped.
        """
        if self.mode.is_live:
            self._seen = self.store.total_updates()
            self._pulled = self.weights.full.clone() if self.mode.compensate else None
        losses, metrics = self.forward(batch)
        norms = self.backward(losses)
        self._gradient = Gradient(*({k: v.detach() for k, v in part.items()} for part in (losses, norms, metrics)))
        yield Turn.GRADIENT
        yield from self._apply()

    def _apply(self) -> Turns:
        assert self._gradient is not None
        losses, norms, metrics = self._gradient
        if finite := all(bool(x.isfinite()) for x in (*losses.values(), *norms.values())):
            self.push()
        else:
            self._drop(losses, norms)
            self._left = iter(())
        self._gradient = None
        yield Turn.PUSH
        self.pull()
        if finite:
            self._dropped_in_row = 0
            self.move_targets()
            self.note({f"loss/{k}": v for k, v in losses.items()} | dict(norms) | dict(metrics))
        yield Turn.PULL

    def forward(self, batch: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return the losses of a batch, and what the agent tells of it."""
        self.mode.follow(self.weights)  # shared in bf16: theta as it is now
        return self.agent.loss(batch, self.store.progress())

    def backward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave the clipped gradient of the losses' sum in ``grad``; return the norms before, by metric name."""
        self.grad.zero_()  # our own vector: an optimizer's zero_grad would not reach it, and backward accumulates
        for p in self.agent.own:
            p.grad = None
        torch.stack(list(losses.values())).sum().backward()
        self.grad.gather_()
        return clip_norm_(self.grad.full, self.store.networks, self.rules.max_grad_norm)

    def push(self) -> None:
        """Apply the gradient to theta."""
        pulled, store = self._pulled if self.mode.is_live else self.weights.full, self.store
        with alone(store.tape):
            self.mode.push(self.grad.full, store, store.total_updates() - self._seen, pulled)
            store.updates[self.slot] += 1  # one slot per writer: exact without a lock
            if store.tape is not None:
                store.tape.pushed(self.slot, store.total_updates(), self._seen, store.theta)

    def pull(self) -> None:
        """Let the weights be theta as it is now."""
        with alone(self.store.tape):
            self._seen = self.store.total_updates()
            self.mode.pull(self.weights, self.store)

    def move_targets(self) -> None:
        """Let the agent move its targets by the updates that theta has seen since it did so last."""
        self.agent.on_update(self.store.total_frames(), self._seen - self._followed)
        self._followed = self._seen

    def state_dict(self) -> dict[str, Any]:
        """Return what would be lost if the session were left now: weights, a gradient that waits, minibatches."""
        left = list(self._left)
        self._left = iter(left)
        return {
            "weights": self._pulled if self.mode.is_live else self.weights.full.clone(),
            "counts": [self._seen, self._followed, self._dropped_in_row],
            "gradient": None if self._gradient is None else [dict(part) for part in self._gradient],
            "grad": self.grad.full.clone(),
            "own": [None if p.grad is None else p.grad.clone() for p in self.agent.own],
            "left": [minibatch._asdict() for minibatch in left],
            "sums": {name: torch.as_tensor(total).detach().clone() for name, total in self._sums.items()},
            "noted": dict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        if self.mode.is_live:
            self._pulled = state["weights"]
        else:
            self.weights.full.copy_(state["weights"])
            self.weights.round_()
        self._seen, self._followed, self._dropped_in_row = state["counts"]
        self._gradient = None if state["gradient"] is None else Gradient(*state["gradient"])
        self.grad.full.copy_(state["grad"])
        for p, grad in zip(self.agent.own, state["own"], strict=True):
            p.grad = grad
        self._left = iter([as_minibatch(fields) for fields in state["left"]])
        self._sums.update(state["sums"])
        self._counts.update(state["noted"])

    def _drop(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        self.store.dropped[self.slot] += 1
        self._dropped_in_row += 1
        if self._dropped_in_row > self.rules.max_dropped:
            values = {**losses, **norms}.items()
            text = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in values)
            raise FatalError(
                f"{self._dropped_in_row} updates in a row were not finite ({text}); checkpoints hold weights from"
                " before that. Lower algo.optimizer.lr, set algo.max_grad_norm, or look for nan in what the"
                " environment gives"
            )

    def note(self, scalars: Mapping[str, Tensor]) -> None:
        """Let ``metrics`` have these values of an update."""
        for name, value in scalars.items():
            self._sums[name] += value
            self._counts[name] += 1

    def metrics(self) -> dict[str, float]:
        """Return the means over the updates since the last call; empty if there were none."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        if means:
            means["train/lr"] = self.store.lr()
        self._sums.clear()
        self._counts.clear()
        return means


def as_minibatch(fields: Mapping[str, Tensor]) -> Any:
    """Return a named tuple with these fields, as agents make them."""
    return namedtuple("Minibatch", fields)(**fields)


def clip_norm_(grad: Tensor, networks: Mapping[str, slice], max_norm: float | None) -> dict[str, Tensor]:
    """Scale each network's part of ``grad`` [P] down to ``max_norm``; return the norms before, by metric name."""
    norms = {}
    for name, part in networks.items():
        norm = torch.linalg.vector_norm(grad[part])
        if max_norm is not None:
            grad[part].mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
        norms[f"grad_norm/{name}"] = norm
    return norms
