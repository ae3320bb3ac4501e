"""A learner that is looked at: where its time goes, how stale its gradients are, whether they would still be right."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from asynclab.profile import Profile
from asynclab.training import generators
from asynclab.training.learner import Learner, as_minibatch

AGREEMENT_EVERY = 20  # updates of a session between two comparisons of gradients, with diagnostics


class Instruments(Learner):
    """Does what a learner does, bit for bit, and measures it.

    Args:
        profile: Told what the time of an update goes to.
        learner: Of ``Learner``.
    """

    def __init__(self, profile: Profile, *learner: Any) -> None:
        super().__init__(*learner)
        self.profile = profile
        self._staleness: Counter[int] = Counter()
        self._sample: tuple[Any, dict[str, Tensor]] | None = None  # a batch, and the generators before its loss

    def act(self, obs: NDArray) -> NDArray:
        """Return actions for observations [B, ...] with the weights as they are now."""
        with self.profile.phase("act"):
            return super().act(obs)

    def minibatches(self, batch: Any) -> Iterator[Any]:
        """Return what the agent makes of a batch, on its device."""
        return self.profile.each("forward", super().minibatches(batch))

    def forward(self, batch: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return the losses of a batch, and what the agent tells of it."""
        sampled = self.mode.diagnostics and int(self.store.updates[self.slot]) % AGREEMENT_EVERY == 0
        self._sample = (batch, generators.state(self.agent.device)) if sampled else None
        with self.profile.phase("forward"):
            return super().forward(batch)

    def backward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave the clipped gradient of the losses' sum in ``grad``; return the norms before, by metric name."""
        with self.profile.phase("backward"):
            return super().backward(losses)

    def push(self) -> None:
        """Apply the gradient to theta."""
        if self._sample is not None:
            self.note({"hogwild/agreement": self._agreement(*self._sample)})
        with self.profile.phase("push"):
            self._staleness[self.store.total_updates() - self._seen] += 1
            super().push()

    def pull(self) -> None:
        """Let the weights be theta as it is now."""
        with self.profile.phase("pull"):
            super().pull()

    def move_targets(self) -> None:
        """Let the agent move its targets by the updates that theta has seen since it did so last."""
        with self.profile.phase("pull"):
            super().move_targets()

    def staleness(self) -> Counter[int]:
        """Return how often each staleness occurred since the last call.

        The staleness of a gradient is the number of updates by others that were applied between the moment from which
        its weights are (the pull; in mode shared the beginning of the forward pass) and its push.
        """
        counts, self._staleness = self._staleness, Counter()
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Return besides how often each staleness has occurred, and the batch whose gradient is to be compared."""
        batch, rng = self._sample or (None, {})
        sample = None if batch is None else {name: value.clone() for name, value in batch._asdict().items()}
        return super().state_dict() | {"staleness": dict(self._staleness), "sample": sample, "rng": dict(rng)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        super().load_state_dict(state)
        self._staleness = Counter(state["staleness"])
        if sample := state.get("sample"):  # older versions had none
            self._sample = (as_minibatch(sample), state["rng"])

    def _agreement(self, batch: Any, rng: Mapping[str, Tensor]) -> Tensor:
        """Return the cosine between the gradient and the one that the same batch gives at theta as it is now.

        The gradient and the random numbers are left as they were.

        Args:
            batch: Of the gradient.
            rng: States of the random generators before its loss.
        """
        stale, after = self.grad.full.clone(), generators.state(self.agent.device)
        own, weights = [p.grad for p in self.agent.own], None if self.mode.is_live else self.weights.full.clone()
        self.mode.pull(self.weights, self.store)
        generators.restore(self.agent.device, rng)
        losses, _ = Learner.forward(self, batch)
        Learner.backward(self, losses)
        cosine = torch.nn.functional.cosine_similarity(stale, self.grad.full, dim=0).clamp(-1, 1)
        self.grad.full.copy_(stale)
        if weights is not None:  # the push may be compensated for what has happened since
            self.weights.full.copy_(weights)
        for p, grad in zip(self.agent.own, own, strict=True):
            p.grad = grad
        generators.restore(self.agent.device, after)
        return cosine
