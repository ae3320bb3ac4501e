"""Global optimizers, with their state allocated at once in shared memory.

Torch creates an optimizer's state at its first step; every process would create one of its own, and moments would
silently not be shared.  Here the state exists before any process does.  Adam's arithmetic is torch's.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asynclab import check

# One group {"params": [vector], "name": network, "matrices": [(start, stop), ...]} per network
Groups = list[dict[str, Any]]


class GlobalOptimizer(torch.optim.Optimizer):
    """Marks the optimizers that are meant for several processes.

    Torch wraps an optimizer's methods in what imports its compiler, for a second in every process; here they are bare.

    Attributes:
        shared: Whether their state is in shared memory; else each process has one of its own.
    """

    shared = True

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.step = torch.no_grad()(inspect.unwrap(cls.step))  # type: ignore[method-assign]

    def before_step(self) -> None:
        """Add the gradient of the L2 penalty, to a copy of those of networks that have one.  The store calls it."""
        for group in self.param_groups:
            if decay := group.get("decay", 0.0):
                (p,) = group["params"]
                p.grad = p.grad.clone()
                for start, stop in group["matrices"]:
                    p.grad[start:stop].add_(p.detach()[start:stop], alpha=decay)

    def own_state_dict(self) -> dict[str, Any]:
        """Return copies of what this process does not share with others."""
        return {} if self.shared else copy.deepcopy(self.state_dict()["state"])

    def load_own_state_dict(self, state: Mapping[Any, Any]) -> None:
        """Take over such a state."""
        params = [p for group in self.param_groups for p in group["params"]]
        for i, roles in state.items():
            for role, value in roles.items():
                self.state[params[i]][role].copy_(value)


class GlobalAdam(GlobalOptimizer, torch.optim.Adam):
    """Adam (Kingma & Ba, 2015) with shared moments and step count; one fused kernel per network.

    Args:
        groups: One group per network, as the store makes them.
        lr: Learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: L2 penalty on the matrices (no biases, no gains of norms, no log_std, no temperature): a number
            for all networks, or numbers by network name.
    """

    def __init__(
        self,
        groups: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Mapping[str, float] = 0.0,
    ) -> None:
        groups = _checked(groups, lr, eps, weight_decay)
        super().__init__(groups, lr=lr, betas=check.decays("algo.optimizer.betas", betas), eps=eps, fused=True)
        share_state(self, {"step": _count, "exp_avg": torch.zeros_like, "exp_avg_sq": torch.zeros_like})


class GlobalRMSprop(GlobalOptimizer, torch.optim.RMSprop):
    """RMSprop with statistics shared by all sessions or not, "Shared RMSProp" and "RMSProp" of Mnih et al. (2016).

    The paper's eps of 0.1 fits its summed, unclipped gradients; with means and clipping it would drown them.

    Args:
        groups: One group per network, as the store makes them.
        lr: Learning rate.
        alpha: Decay of the squared gradient's average.
        eps: Added to its root.
        initial: First value of that average.  None for none: it begins at 0, and the bias is corrected as in Adam,
            by factors on lr and eps (Kingma & Ba, 2015, section 2).  From 0 without that, as torch has it, the first
            steps are 1 / sqrt(1 - alpha) = 10 times too large; from 1, as TensorFlow has it, those of small gradients
            are next to nothing for a thousand updates and more.
        momentum: 0 for none.
        weight_decay: As in ``GlobalAdam``.
        shared: One set of statistics for all sessions; else each session has its own (section 4 compares them).
    """

    def __init__(
        self,
        groups: Groups,
        lr: float = 7e-4,
        alpha: float = 0.99,
        eps: float = 1e-5,
        initial: float | None = None,
        momentum: float = 0.0,
        weight_decay: float | Mapping[str, float] = 0.0,
        shared: bool = True,
    ) -> None:
        check.below_one("algo.optimizer.alpha", alpha)
        check.below_one("algo.optimizer.momentum", momentum)
        check.not_negative("algo.optimizer.initial", 0.0 if initial is None else initial)
        groups = _checked(groups, lr, eps, weight_decay)
        super().__init__(groups, lr=lr, alpha=alpha, eps=eps, momentum=momentum)
        begin = partial(torch.full_like, fill_value=initial or 0.0)
        buffer = {"momentum_buffer": torch.zeros_like} if momentum else {}
        share_state(self, {"step": _count, "square_avg": begin, **buffer})
        self.shared = check.flag("algo.optimizer.shared", shared)
        self.initial = initial

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step as torch does, and correct the bias of an average without a first value.

        Each average is computed aside and then written: with torch's two passes over shared memory a session could read
        what another one has just set to 0, and step by g / eps.
        """
        for group in self.param_groups:
            (p,) = group["params"]
            state, alpha = self.state[p], group["alpha"]
            state["step"] += 1
            bias = 1.0 if self.initial is not None else math.sqrt(1 - alpha ** float(state["step"]))
            average = (state["square_avg"] * alpha).addcmul_(p.grad, p.grad, value=1 - alpha)
            state["square_avg"].copy_(average)
            root = average.sqrt_().add_(group["eps"] * bias)
            if group["momentum"]:
                buffer = state["momentum_buffer"].mul_(group["momentum"]).addcdiv_(p.grad, root, value=bias)
                p.sub_(buffer, alpha=group["lr"])
            else:
                p.addcdiv_(p.grad, root, value=-group["lr"] * bias)

    def __getstate__(self) -> dict[str, Any]:
        """Keep, unlike torch, what is not a part of its own state."""
        return super().__getstate__() | {"shared": self.shared, "initial": self.initial}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process; statistics that are not shared are the process's own from here on."""
        super().__setstate__(state)
        if not self.shared:
            for roles in self.state.values():
                roles.update({role: value.clone() for role, value in roles.items()})


def share_state(optimizer: torch.optim.Optimizer, roles: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
    """Create the whole state now: one shared vector per role, of which each network's state is a view."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for role, begin in roles.items():
        parts = [begin(p.detach()) for p in params]
        memory = torch.cat([part.flatten() for part in parts]).share_memory_()
        for p, part, view in zip(params, parts, memory.split([part.numel() for part in parts]), strict=True):
            optimizer.state[p][role] = view.view(part.shape)


def _count(p: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float64)  # a float32, as torch has it, stops counting at 2^24


def _checked(groups: Groups, lr: float, eps: float, weight_decay: float | Mapping[str, float]) -> Groups:
    """Return the groups with their L2 penalties, after a check of what all optimizers have."""
    check.number("algo.optimizer.lr", check.positive("algo.optimizer.lr", lr))
    check.not_negative("algo.optimizer.eps", eps)
    names = [group["name"] for group in groups]
    if not isinstance(weight_decay, Mapping):
        weight_decay = dict.fromkeys(names, check.not_negative("algo.optimizer.weight_decay", weight_decay))
    elif unknown := set(weight_decay) - set(names):
        raise ValueError(
            f"algo.optimizer.weight_decay names {sorted(unknown)}, but the networks are {names}; use those names"
        )
    elif idle := [group["name"] for group in groups if weight_decay.get(group["name"]) and not group["matrices"]]:
        raise ValueError(f"algo.optimizer.weight_decay names {idle}, which has no matrices to decay; leave it out")
    decays = {name: check.not_negative(f"algo.optimizer.weight_decay.{name}", x) for name, x in weight_decay.items()}
    return [group | {"decay": float(decays.get(group["name"], 0.0))} for group in groups]
