"""The networks that a run trains, in shared memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asynclab import flat
from asynclab.agents import Agent
from asynclab.config.schema import Config
from asynclab.distributed import Mode, Network, Store
from asynclab.envs.normalize import Moments
from asynclab.run.initial import Initial
from asynclab.run.preflight import Probe
from asynclab.storage.checkpoint import Checkpoint
from asynclab.training.seeds import Seeds


def make_stores(cfg: Config, probe: Probe, initial: Initial | None) -> list[Store]:
    """Return the stores with new weights, or with those of another run.

    Raises:
        ValueError: The weights do not fit, or the optimizer's state would not be shared.
    """
    mode: Mode = cfg.distributed
    stores = [_make(cfg, probe, rank, initial) for rank in range(mode.num_stores)]
    if (mode.one_store or mode.max_session > 1) and not stores[0].is_global:
        raise ValueError(
            f"algo.optimizer {type(stores[0].optimizer).__name__} is not global, so with"
            f" distributed={mode.name} and {mode.max_session} sessions its state would be lost between processes;"
            " set algo.optimizer._target_=asynclab.optim.GlobalAdam or GlobalRMSprop"
        )
    return stores


def _make(cfg: Config, probe: Probe, rank: int, initial: Initial | None) -> Store:
    mode: Mode = cfg.distributed
    torch.manual_seed(Seeds(cfg.seed, rank).weights)
    with _one_thread():
        agent = cfg.algo.agent(probe.envs.obs_space, probe.envs.action_space)
    network = network_of(agent)
    if initial is not None:
        initial.copy_to(network.theta, flat.signature(agent.nets))
    moments = {name: Moments(size, mode.writers) for name, size in probe.envs.moments.items()}
    store = Store(
        network, cfg.algo.optimizer, cfg.env.max_frame, cfg.algo.lr_schedule,
        mode.writers, mode.lock, mode.diagnostics, moments,
    )  # fmt: skip
    if initial is not None:
        initial.copy_moments_to(store.moments)
    return store


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: the bits of an orthogonal matrix depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def network_of(agent: Agent) -> Network:
    """Return what is trained of an agent that is bound to nothing: its weights, as vectors."""
    matrices = {name: flat.matrices(net) for name, net in agent.nets.items()}
    return Network(flat.flatten(agent.nets), flat.slices(agent.nets), matrices, agent.target_part)


def restore(stores: list[Store], checkpoint: Checkpoint, layout: list[str]) -> None:
    """Let the stores be those of a checkpoint.

    Raises:
        ValueError: It has other networks, by their layout (``flat.signature``).
    """
    states = checkpoint.stores()
    if checkpoint.trial()["layout"] != layout or len(states) != len(stores):
        raise ValueError(
            f"{checkpoint.path} has other networks than this version of asynclab makes of the run's config; resume"
            " it with the revision in its run.json"
        )
    for store, state in zip(stores, states, strict=True):
        store.load_state_dict(state)
