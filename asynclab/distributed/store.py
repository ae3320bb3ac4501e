"""The global network and optimizer in shared CPU memory.  P: parameters, W: writers (sessions that push here)."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asynclab.distributed.lock import ProcessLock
from asynclab.optim import GlobalOptimizer, Groups


class Store:
    """theta, the optimizer and the global clock of one trained network; it knows vectors and no network.

    Made by the parent and sent to the sessions, which then see the same memory.  No gradient waits for a lock: this is
    Hogwild! (Niu et al., 2011).  Only the budget of frames is given out under one, so that it is met exactly.

    Attributes:
        theta: [P] float32, shared.
        frames: [W] int64, shared; each writer counts in its own slot, because ``+=`` on shared memory is not atomic.
        updates: [W] int64, shared, likewise.
        dropped: [W] int64, shared; updates that were not applied because they were not finite.

    Args:
        theta: [P] float32 initial weights; copied.
        networks: The slice of theta that each network takes, by name.
        make_optimizer: Called with one parameter group per network.
        max_frame: Budget of frames over all writers.
        lr_schedule: Factor on the learning rate by progress.
        writers: W.
    """

    def __init__(
        self,
        theta: Tensor,
        networks: Mapping[str, slice],
        make_optimizer: Callable[[Groups], torch.optim.Optimizer],
        max_frame: int,
        lr_schedule: Callable[[float], float],
        writers: int = 1,
    ) -> None:
        self.theta = theta.detach().clone().share_memory_()
        self.frames = torch.zeros(writers, dtype=torch.int64).share_memory_()
        self.updates = torch.zeros(writers, dtype=torch.int64).share_memory_()
        self.dropped = torch.zeros(writers, dtype=torch.int64).share_memory_()
        self._claimed = torch.zeros(writers, dtype=torch.int64).share_memory_()  # frames stepped, or about to be
        self._budget = ProcessLock()
        self.networks = dict(networks)
        self.max_frame = max_frame
        self.lr_schedule = lr_schedule
        self._params = {name: nn.Parameter(self.theta[part]) for name, part in self.networks.items()}
        self.optimizer = make_optimizer([{"params": [p], "name": name} for name, p in self._params.items()])
        self._base_lr = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def is_global(self) -> bool:
        """Whether the optimizer's state is shared between processes."""
        return isinstance(self.optimizer, GlobalOptimizer)

    def apply(self, grad: Tensor) -> None:
        """Take one optimizer step on theta.  Safe to call from any process, without a lock.

        Args:
            grad: [P] float32, any device; not modified.
        """
        grad = grad.to(self.theta.device)
        for name, part in self.networks.items():
            self._params[name].grad = grad[part]
        factor = self.lr_schedule(self.progress())
        for group, base_lr in zip(self.optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = base_lr * factor
        self.optimizer.step()

    def lr(self) -> float:
        """Return the learning rate of the first network at the present progress."""
        return self._base_lr[0] * self.lr_schedule(self.progress())

    def claim(self, slot: int, count: int) -> bool:
        """Reserve the next frames of the budget; False if it is used up.  To be called before every step.

        All that are given out together are ``max_frame``, rounded up to whole steps: a session that only looked at the
        clock could not know what others are about to step.

        Args:
            slot: Of the writer.
            count: Frames of one step.
        """
        with self._budget:
            if int(self._claimed.sum()) >= self.max_frame:
                return False
            self._claimed[slot] += count
            return True

    def give_back(self, slot: int) -> None:
        """Return what a writer that has died claimed and did not step."""
        self._claimed[slot] = self.frames[slot]

    def is_complete(self) -> bool:
        """Return whether the budget is used up."""
        return self.total_frames() >= self.max_frame

    def total_frames(self) -> int:
        """Return the global clock: frames of all writers."""
        return int(self.frames.sum())

    def total_updates(self) -> int:
        """Return the updates of all writers; exact, unlike the optimizer's own step count under contention."""
        return int(self.updates.sum())

    def progress(self) -> float:
        """Return the used fraction of the budget."""
        return self.total_frames() / self.max_frame

    def is_finite(self) -> bool:
        """Return whether all of theta is."""
        return bool(self.theta.isfinite().all())

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that training has changed: tensors and plain Python only."""
        return {
            "theta": self.theta.clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "frames": self.frames.tolist(),
            "updates": self.updates.tolist(),
            "dropped": self.dropped.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; the shared memory stays where it is.

        Args:
            state: As ``state_dict`` returns it, of a store of the same networks, optimizer and writers.
        """
        self.theta.copy_(state["theta"])
        if self.is_global:
            for i, p in enumerate(self._params.values()):
                for role, value in self.optimizer.state[p].items():
                    value.copy_(state["optimizer"]["state"][i][role])
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        for name in ("frames", "updates", "dropped"):
            getattr(self, name).copy_(torch.tensor(state[name]))
        self._claimed.copy_(self.frames)
