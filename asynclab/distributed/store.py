"""The global network and optimizer in shared CPU memory.  P: parameters, W: writers (sessions that push here)."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asynclab.distributed.lock import ProcessLock
from asynclab.distributed.tape import Tape
from asynclab.optim import GlobalOptimizer, Groups

FLOAT32_COUNTS = 2**24  # adding 1 to a larger float32 leaves it as it is


class Network(NamedTuple):
    """What is trained, as vectors.

    Attributes:
        theta: [P] float32 initial weights; copied.
        parts: The slice of theta that each network takes, by name.
        matrices: Where in each network's part its matrices begin and end, by name: what weight decay is for.  None if
            all of it is.
        target_part: The part of theta that has a lagging copy; None for none.
    """

    theta: Tensor
    parts: Mapping[str, slice]
    matrices: Mapping[str, Sequence[tuple[int, int]]] | None = None
    target_part: slice | None = None


class Store:
    """theta, the optimizer and the global clock of one trained network; it knows vectors and no network.

    Made by the parent and sent to the sessions, which then see the same memory.  No gradient waits for a lock: this is
    Hogwild! (Niu et al., 2011).  Only the budget of frames is given out under one, so that it is met exactly.

    Attributes:
        theta: [P] float32, shared.
        frames: [W] int64, shared; each writer counts in its own slot, because ``+=`` on shared memory is not atomic.
        updates: [W] int64, shared, likewise.
        dropped: [W] int64, shared; updates that were not applied because they were not finite.
        target: A lagging copy of a part of theta, shared; the sessions move it.  None for none.
        moments: By name what the sessions have seen of observations and returns, shared.
        tape: Of the session whose copy this is; None if nothing is recorded.
        velocity: [P] of the optimizer that applies whole nodes' changes (``exchange.Outer``); None for none.

    Args:
        network: What is trained.
        make_optimizer: Called with one parameter group per network.
        max_frame: Budget of frames over all writers.
        lr_schedule: Factor on the learning rate by progress.
        writers: W.
        lock: ``none`` lets writers step at the same time, ``update`` one after the other.
        diagnostics: Measure how many writes are lost when they step at the same time.
        moments: The environments' estimates of mean and variance (``envs.normalize``) by name; each writer has a slot.
    """

    def __init__(
        self,
        network: Network,
        make_optimizer: Callable[[Groups], torch.optim.Optimizer],
        max_frame: int,
        lr_schedule: Callable[[float], float],
        writers: int = 1,
        lock: str = "none",
        diagnostics: bool = False,
        moments: Mapping[str, Any] | None = None,
    ) -> None:
        self.theta = network.theta.detach().clone().share_memory_()
        counters = (torch.zeros(writers, dtype=torch.int64).share_memory_() for _ in range(4))
        self.frames, self.updates, self.dropped, self._claimed = counters  # the last: frames stepped, or about to be
        self._budget = ProcessLock()
        self._update = ProcessLock() if lock == "update" else nullcontext()
        # As many numbers as theta has, to which every step adds 1, right after theta and in the same way.
        self._probe = torch.zeros_like(self.theta, dtype=torch.int32).share_memory_() if diagnostics else None
        self._first_update = 0
        self.tape: Tape | None = None
        self.velocity: Tensor | None = None
        part = network.target_part
        self.target = None if part is None else self.theta[part].clone().share_memory_()
        self.moments = dict(moments or {})
        self.networks = dict(network.parts)
        self.max_frame = max_frame
        self.lr_schedule = lr_schedule
        self._params = {name: nn.Parameter(self.theta[part]) for name, part in self.networks.items()}
        matrices = network.matrices or {name: [(0, p.numel())] for name, p in self._params.items()}
        self.optimizer = make_optimizer(
            [{"params": [p], "name": name, "matrices": list(matrices[name])} for name, p in self._params.items()]
        )
        self._base_lr = [group["lr"] for group in self.optimizer.param_groups]

    def recorded(self, tape: Tape) -> "Store":
        """Return the store as a session has it that is recorded."""
        twin = copy.copy(self)
        twin.tape = tape
        return twin

    def for_session(self) -> "Store":
        """Return the store as one of several sessions in this process has it: with what it would not share with others.

        Where the optimizer's state is shared that is the store itself.
        """
        if not isinstance(self.optimizer, GlobalOptimizer) or self.optimizer.shared:
            return self
        twin = copy.copy(self)
        twin.optimizer = _twin(self.optimizer, self._params)
        return twin

    def replica(self, writers: int) -> "Store":
        """Return a store for some of the writers in this process, which begins as this one but for the counters."""
        twin = copy.copy(self)
        twin.theta = self.theta.clone()
        twin.target = None if self.target is None else self.target.clone()
        for name in ("frames", "updates", "dropped", "_claimed"):
            setattr(twin, name, torch.zeros(writers, dtype=torch.int64))
        twin.moments = {name: copy.copy(moments) for name, moments in self.moments.items()}
        for moments in twin.moments.values():
            moments.slots = moments.slots.new_zeros(writers, moments.slots.shape[1])
        twin._params = {name: nn.Parameter(twin.theta[part]) for name, part in self.networks.items()}
        twin.optimizer = _twin(self.optimizer, twin._params)
        return twin

    @property
    def is_global(self) -> bool:
        """Whether the optimizer's state is shared between processes."""
        return isinstance(self.optimizer, GlobalOptimizer)

    def apply(self, grad: Tensor, scale: float = 1.0) -> None:
        """Take one optimizer step on theta.  Safe to call from any process.

        Args:
            grad: [P] float32, any device; not modified.
            scale: Factor on the learning rate of this step.
        """
        grad = grad.to(self.theta.device)
        for name, part in self.networks.items():
            self._params[name].grad = grad[part]
        factor = self.lr_schedule(self.progress()) * scale
        for group, base_lr in zip(self.optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = base_lr * factor
        with self._update:
            if isinstance(self.optimizer, GlobalOptimizer):
                self.optimizer.before_step()
            self.optimizer.step()
            if self._probe is not None:
                self._probe.add_(1)

    def lr(self) -> float:
        """Return the learning rate of the first network at the present progress."""
        return self._base_lr[0] * self.lr_schedule(int(self.frames.sum()) / self.max_frame)  # nothing to record

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

    def unclaimed(self) -> int:
        """Return how many frames of the budget are left to be claimed."""
        return self.max_frame - int(self._claimed.sum())

    def lease(self, granted: int) -> None:
        """Let all writers but the last, which stands for those of other machines, claim so many frames together."""
        self._claimed[-1] = self.max_frame - granted

    def take_over(self, counts: Tensor) -> None:
        """Let all writers but the last go on with frames, updates and dropped updates of others [3, W - 1]."""
        self.frames[:-1], self.updates[:-1], self.dropped[:-1] = counts
        self._claimed[:-1] = self.frames[:-1]

    def is_complete(self) -> bool:
        """Return whether the budget is used up."""
        return self.total_frames() >= self.max_frame

    def total_frames(self) -> int:
        """Return the global clock: frames of all writers."""
        frames = int(self.frames.sum())
        return frames if self.tape is None else self.tape.clock(frames)

    def total_updates(self) -> int:
        """Return the updates of all writers; exact, unlike the optimizer's own step count under contention."""
        return int(self.updates.sum())

    def progress(self) -> float:
        """Return the used fraction of the budget."""
        return self.total_frames() / self.max_frame

    def lost_updates(self) -> float | None:
        """Return which share of all writes to the probe has been lost; None without diagnostics, or before any.

        A write is lost when another process writes the same number between its reading and its writing.  Measured while
        nobody steps, it is exact; else writes that are under way count as lost.
        """
        steps = self.total_updates() - self._first_update
        if self._probe is None or not steps:
            return None
        return 1 - float(self._probe.double().mean()) / steps

    def step_error(self) -> float | None:
        """Return by how much the optimizer's shared step count is off the exact one; None if it has none, or stuck."""
        state = self.optimizer.state.get(next(iter(self._params.values())), {})
        if "step" not in state or (isinstance(self.optimizer, GlobalOptimizer) and not self.optimizer.shared):
            return None
        if state["step"].dtype is torch.float32 and self.total_updates() > FLOAT32_COUNTS:
            return None
        return float(state["step"]) - self.total_updates()

    def own_state_dict(self) -> dict[str, Any]:
        """Return what of the optimizer's state this process does not share with others."""
        return self.optimizer.own_state_dict() if isinstance(self.optimizer, GlobalOptimizer) else {}

    def load_own_state_dict(self, state: Mapping[Any, Any]) -> None:
        """Take over such a state."""
        if state:
            assert isinstance(self.optimizer, GlobalOptimizer)
            self.optimizer.load_own_state_dict(state)

    def is_finite(self) -> bool:
        """Return whether all of theta is, and what belongs to it."""
        target = [] if self.target is None else [self.target]
        parts = [self.theta, *target, *(moments.slots for moments in self.moments.values())]
        return all(bool(part.isfinite().all()) for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that training has changed: tensors and plain Python only."""
        return {
            "theta": self.theta.clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "frames": self.frames.tolist(),
            "updates": self.updates.tolist(),
            "dropped": self.dropped.tolist(),
            "target": None if self.target is None else self.target.clone(),
            "velocity": None if self.velocity is None else self.velocity.clone(),
            "moments": {name: moments.slots.clone() for name, moments in self.moments.items()},
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
                    saved = state["optimizer"]["state"][i][role]
                    if role == "step" and saved.dtype is torch.float32 and saved >= FLOAT32_COUNTS:
                        saved = torch.tensor(float(sum(state["updates"])))  # of an older version, whose count got stuck
                    value.copy_(saved)
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        for name in ("frames", "updates", "dropped"):
            getattr(self, name).copy_(torch.tensor(state[name]))
        if self.target is not None:
            self.target.copy_(state["target"])
        velocity = state.get("velocity")  # older versions had none
        self.velocity = None if velocity is None else velocity.clone()
        for name, moments in self.moments.items():
            moments.slots.copy_(state["moments"][name])
        self._claimed.copy_(self.frames)
        self._first_update = self.total_updates()


def _twin(optimizer: torch.optim.Optimizer, params: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return a copy of an optimizer that steps these parameters, by network, and has a state of its own."""
    twin = copy.copy(optimizer)
    twin.param_groups = [{**group, "params": [params[group["name"]]]} for group in optimizer.param_groups]
    twin.state = defaultdict(dict)
    for group in optimizer.param_groups:
        state = optimizer.state[group["params"][0]]
        twin.state[params[group["name"]]] = {role: value.clone() for role, value in state.items()}
    return twin
