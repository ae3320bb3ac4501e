"""Batch -> gradient -> push -> pull: the lines that every mode shares.  P: number of parameters."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from asynclab import flat
from asynclab.agents import Agent
from asynclab.distributed import Mode, Store
from asynclab.processes.launch import FatalError
from asynclab.training import generators
from asynclab.training.profile import Profile

AGREEMENT_EVERY = 20  # updates of a session between two comparisons of gradients, with diagnostics


class Learner:
    """Trains a store with one session's batches.

    Args:
        agent: Bound here to the session's weights.
        mode: Where the weights lie.
        store: The global network and optimizer.
        slot: This session's place among the store's writers.
        device: Of the session's weights.
        max_grad_norm: Bound on each network's gradient norm, None for none.
        max_dropped: Non-finite updates in a row that are dropped; one more ends the trial.
        precision: Of the torsos' arithmetic, fp32 or bf16.
        profile: Told what the time of an update goes to.
    """

    def __init__(
        self,
        agent: Agent,
        mode: Mode,
        store: Store,
        slot: int,
        device: str,
        max_grad_norm: float | None,
        max_dropped: int,
        precision: str,
        profile: Profile,
    ) -> None:
        self.agent = agent
        self.mode = mode
        self.store = store
        self.slot = slot
        self.max_grad_norm = max_grad_norm
        self.max_dropped = max_dropped
        self._dropped_in_row = 0
        self.profile = profile
        bf16 = precision == "bf16"
        self._seen = self._followed = store.total_updates()  # updates that the weights and the agent have seen
        self._staleness: Counter[int] = Counter()
        self.weights = mode.weights(store, device, bf16)
        self.grad = flat.Vector.make(torch.zeros_like(self.weights.full), bf16)
        agent.bind(self.weights, self.grad, store.target)
        assert flat.is_bound(agent.nets, self.weights, self.grad)
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    def learn(self, batch: Any) -> Iterator[None]:
        """Learn from what the memory hands out, in as many updates as the agent makes of it; yield after each.

        Once one is dropped, so are those that the agent would still have made of the same batch.
        """
        self.mode.follow(self.weights)
        for minibatch in self.profile.each("forward", self.agent.minibatches(_to(batch, self.agent.device))):
            applied = self.update(minibatch)
            yield
            if not applied:
                return

    def update(self, batch: Any) -> bool:
        """Take one step on one batch and return True, or drop it because its loss or gradient is not finite.

        Raises:
            FatalError: More than ``max_dropped`` updates in a row were dropped.
        """
        phase = self.profile.phase
        sampled = self.mode.diagnostics and int(self.store.updates[self.slot]) % AGREEMENT_EVERY == 0
        rng = generators.state(self.agent.device) if sampled else None
        with phase("forward"):
            if self.mode.is_live:
                self._seen = self.store.total_updates()
            self.mode.follow(self.weights)
            losses, metrics = self.agent.loss(batch, self.store.progress())
        with phase("backward"):
            norms = self._differentiate(losses)
            finite = all(bool(x.isfinite()) for x in (*losses.values(), *norms.values()))
        if finite:
            if rng is not None:
                metrics = {**metrics, "hogwild/agreement": self._agreement(batch, rng)}
            with phase("push"):
                self._staleness[self.store.total_updates() - self._seen] += 1
                self.mode.push(self.grad.full, self.store)
                self.store.updates[self.slot] += 1
        else:
            self._drop(losses, norms)
        with phase("pull"):
            self._seen = self.store.total_updates()
            self.mode.pull(self.weights, self.store)
            if finite:
                self._dropped_in_row = 0
                self.agent.on_update(self.store.total_frames(), self._seen - self._followed)
                self._followed = self._seen
                self._remember({f"loss/{k}": v.detach() for k, v in losses.items()} | norms | metrics)
        return finite

    def _differentiate(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave the clipped gradient of the losses' sum in ``grad``; return the norms before, by metric name."""
        self.grad.zero_()  # our own vector: an optimizer's zero_grad would not reach it, and backward accumulates
        for p in self.agent.own:
            p.grad = None
        torch.stack(list(losses.values())).sum().backward()
        self.grad.gather_()
        return clip_norm_(self.grad.full, self.store.networks, self.max_grad_norm)

    def _agreement(self, batch: Any, rng: Mapping[str, Tensor]) -> Tensor:
        """Return the cosine between the gradient and the one that the same batch gives at theta as it is now.

        The gradient and the random numbers are left as they were.

        Args:
            batch: Of the gradient.
            rng: States of the random generators before its loss.
        """
        stale, after = self.grad.full.clone(), generators.state(self.agent.device)
        own = [p.grad for p in self.agent.own]
        self.mode.pull(self.weights, self.store)
        self.mode.follow(self.weights)
        generators.restore(self.agent.device, rng)
        losses, _ = self.agent.loss(batch, self.store.progress())
        self._differentiate(losses)
        cosine = torch.nn.functional.cosine_similarity(stale, self.grad.full, dim=0)
        self.grad.full.copy_(stale)
        for p, grad in zip(self.agent.own, own, strict=True):
            p.grad = grad
        generators.restore(self.agent.device, after)
        return cosine

    def act(self, obs: NDArray) -> NDArray:
        """Return actions for observations [B, ...] with the weights as they are now."""
        with self.profile.phase("act"):
            self.mode.follow(self.weights)
            tensor = torch.from_numpy(obs).to(self.agent.device)
            return self.agent.act(tensor, progress=self.store.progress()).cpu().numpy()

    def staleness(self) -> Counter[int]:
        """Return how often each staleness occurred since the last call.

        The staleness of a gradient is the number of updates by others that were applied between the moment from which
        its weights are (the pull; in mode shared the beginning of the forward pass) and its push.
        """
        counts, self._staleness = self._staleness, Counter()
        return counts

    def metrics(self) -> dict[str, float]:
        """Return the means over the updates since the last call; empty if there were none."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        if means:
            means["train/lr"] = self.store.lr()
        self._sums.clear()
        self._counts.clear()
        return means

    def _drop(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        self.store.dropped[self.slot] += 1
        self._dropped_in_row += 1
        if self._dropped_in_row > self.max_dropped:
            values = {**losses, **norms}.items()
            text = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in values)
            raise FatalError(
                f"{self._dropped_in_row} updates in a row were not finite ({text}); checkpoints hold weights from"
                " before that. Lower algo.optimizer.lr, set algo.max_grad_norm, or look for nan in what the"
                " environment gives"
            )

    def _remember(self, scalars: Mapping[str, Tensor]) -> None:
        for name, value in scalars.items():
            self._sums[name] += value
            self._counts[name] += 1


def clip_norm_(grad: Tensor, networks: Mapping[str, slice], max_norm: float | None) -> dict[str, Tensor]:
    """Scale each network's part of ``grad`` [P] down to ``max_norm``; return the norms before, by metric name."""
    norms = {}
    for name, part in networks.items():
        norm = torch.linalg.vector_norm(grad[part])
        if max_norm is not None:
            grad[part].mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
        norms[f"grad_norm/{name}"] = norm
    return norms


def _to(batch: Any, device: torch.device) -> Any:
    return type(batch)(*(x.to(device) for x in batch))
