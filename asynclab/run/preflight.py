"""Everything that refuses a run, before a process starts; what is learned on the way is what the run is made of."""

import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from asynclab import check, flat, nets
from asynclab.agents import Agent
from asynclab.config.schema import Config
from asynclab.distributed import Cluster, Mode, Simulated
from asynclab.envs import Envs, spaces
from asynclab.evaluation.evaluator import Schedule
from asynclab.evaluation.play import check_changes
from asynclab.memory import Memory
from asynclab.precision import choose, is_native
from asynclab.run import resources
from asynclab.storage.checkpoint import Checkpoint, Checkpoints
from asynclab.storage.folder import holds_run
from asynclab.text import override

log = logging.getLogger(__name__)

CHECKPOINT_MEMORY = 10.0  # GB, unless checkpoint_memory says something else
WEIGHTS_ON_GPU = 300_000  # with fewer, a GPU takes longer to be told what to do than a core to do it


class Probe(NamedTuple):
    """What one session will have, to look at.

    Attributes:
        envs: Two of them at most, closed again.
        num_envs: Of each session.
        agent: Bound to nothing.
        memory_bytes: Of one session's memory.
        memories_on_disk: Bytes of all memories in all the checkpoints that are yet to come before some are removed.
        save_memory: Whether checkpoints have the memories.
        refill: Transitions that a memory which was lost collects before it is learned from, at most.
        devices: That sessions take in turn.
        precision: Of the torsos, fp32 or bf16.
        num_threads: Of each session.
    """

    envs: Envs
    num_envs: int
    agent: Agent
    memory_bytes: int
    memories_on_disk: int
    save_memory: bool
    refill: int
    devices: list[str]
    precision: str
    num_threads: int


def check_run(cfg: Config, folder: Path, schedule: Schedule, checkpoint: Checkpoint | None) -> Probe:
    """Look at everything that a run needs.

    Args:
        cfg: Its groups' targets are instantiated.
        folder: Output folder.
        schedule: Of evaluations.
        checkpoint: Where the run goes on; None for a new one.

    Raises:
        ValueError: A setting cannot work; the message names it and the fix.
    """
    _check_numbers(cfg, is_new=checkpoint is None)
    if checkpoint is None and holds_run(folder):
        raise ValueError(
            f"the output folder {folder} holds a run already; set hydra.run.dir to another folder, or set"
            f" {override('resume', folder)} to go on with it"
        )
    mode: Mode = cfg.distributed
    if mode.is_simulated and cfg.profile:
        raise ValueError(
            f"profile=true measures real time, which distributed={mode.name} has none of; set profile=false, or measure"
            " a run of distributed=synced or shared"
        )
    if isinstance(mode, Cluster):
        from asynclab.cluster import machines  # nobody else needs it

        machines.check(mode)
    if isinstance(mode, Simulated):
        _warn_of_idle(mode)
    check_device(cfg.device, mode)
    if mode.is_cluster or mode.processes > 1 or schedule.every is not None or steps_in_processes(cfg.env.make):
        resources.check_sockets()
    envs, num_envs = _make_some(cfg.env.make)
    if schedule.changes:
        check_changes(cfg.env.make, schedule.changes, "eval.")
    memory = _memory(cfg, envs, num_envs)
    agent = cfg.algo.agent(envs.obs_space, envs.action_space)
    conv = getattr(cfg.env.torso, "keywords", {}).get("conv")  # of a torso of one's own, perhaps none
    if conv is not None and spaces(envs) != "pixels" and checkpoint is None:  # older versions began such runs
        raise ValueError(f"env.torso.conv={conv} is for images, and env.id={cfg.env.id} gives none; leave it out")
    resources.check_memory(mode, memory.nbytes(), 4 * flat.size(agent.nets))
    if cfg.env.max_frame < (needed := memory.min_frame(mode.writers)):
        raise ValueError(
            f"env.max_frame={cfg.env.max_frame} ends before every session has learned once; set it to {needed} or more"
        )
    _warn_of_exploration(cfg, agent, memory)
    refill = memory.refill(cfg.env.max_frame // mode.writers)
    resources.check_descriptors(mode.processes, mode.num_stores, schedule.every is not None)
    devices = choose_devices(cfg.device, mode, flat.size(agent.nets))
    if mode.record:
        _check_repeatable(envs, agent, devices)
    on_disk, save_memory = _check_room(cfg, folder, agent, memory.nbytes())
    precision = _choose_precision(cfg.algo.precision, agent, devices, checkpoint)
    threads = resources.choose_threads(mode.num_threads, mode.processes, flat.size(agent.nets))
    return Probe(
        envs=envs, num_envs=num_envs, agent=agent, memory_bytes=memory.nbytes(), memories_on_disk=on_disk,
        save_memory=save_memory, refill=refill, devices=devices, precision=precision, num_threads=threads,
    )  # fmt: skip


def _make_some(make_envs: Any) -> tuple[Envs, int]:
    """Make as many environments as it takes to see what a session's are like, and close them.

    Args:
        make_envs: Of a session; one that is no partial with ``num_envs`` says itself how many.

    Returns:
        Two of them, as one Atari game takes a tenth of a second, or all, where two cannot be had.  And how many a
        session will have.
    """
    wanted = getattr(make_envs, "keywords", {}).get("num_envs")
    if wanted is not None and check.count("env.num_envs", wanted) > 2:
        with suppress(ValueError):  # it is told of all of them
            envs = make_envs(num_envs=2)
            envs.close()
            if envs.num_envs == 2:
                return envs, wanted
    envs = make_envs()
    envs.close()
    return envs, envs.num_envs


def steps_in_processes(make_envs: Any) -> bool:
    """Return whether each environment has a process of its own."""
    return getattr(make_envs, "keywords", {}).get("vectorization_mode") == "async"


def _check_numbers(cfg: Config, is_new: bool) -> None:
    check.positive("log_every", cfg.log_every)
    check.positive("checkpoint_every", cfg.checkpoint_every)
    check.count("checkpoint_keep", cfg.checkpoint_keep)
    check.count("env.max_frame", cfg.env.max_frame)
    check.whole("max_dropped", cfg.max_dropped)
    if check.whole("seed", cfg.seed) >= 2**32 and is_new:
        raise ValueError(f"seed={cfg.seed} must be below 2**32: sessions of others would share their random numbers")
    if cfg.algo.max_grad_norm is not None:
        check.positive("algo.max_grad_norm", cfg.algo.max_grad_norm)
    if cfg.checkpoint_memory is not None:
        check.not_negative("checkpoint_memory", cfg.checkpoint_memory)
    check.schedule("algo.lr_schedule", cfg.algo.lr_schedule)
    is_ours = getattr(getattr(cfg.algo.agent, "func", None), "__module__", "").startswith("asynclab.agents")
    agent = cfg.algo.agent.keywords if is_ours else {}
    if (gamma := agent.get("gamma")) is not None:
        check.fraction("algo.agent.gamma", gamma)  # before env.make.scale_reward, which follows it
    if not callable(agent.get("torso", nets.MLPTorso)):
        raise ValueError(f"algo.agent.torso={agent['torso']} makes no torso; leave it as it is, and set env.torso")


def _warn_of_idle(mode: Simulated) -> None:
    """Tell of settings of a simulation that change nothing."""
    timing = mode.timing
    slowest = timing.slowness(mode.max_session - 1, mode.max_session)
    plain = Simulated(1)
    of_nodes = {
        "outer": mode.outer != plain.outer,
        "exchange_every": mode.exchange_every != plain.exchange_every,
        "timing.exchange": timing.exchange != plain.timing.exchange,
    }
    for name, is_set in of_nodes.items():
        if mode.nodes is None and is_set:
            log.warning("distributed.%s does nothing without distributed.nodes: all sessions train one network", name)
    has_network = timing.latency > 0 or timing.bandwidth < math.inf
    if mode.nodes is None and timing.machines == 1 and has_network:
        log.warning(
            "distributed.timing.latency and bandwidth do nothing: all sessions are on one machine; set"
            " distributed.timing.machines, or distributed.nodes"
        )
    if mode.nodes is None and timing.machines > 1 and not has_network:
        log.warning(
            "distributed.timing.machines=%d does nothing: nothing takes time between them; set"
            " distributed.timing.latency or bandwidth", timing.machines,
        )  # fmt: skip
    if slowest == 1 and (timing.slow > 0 or timing.slowdown != 1):
        log.warning(
            "no session is slow: distributed.timing.slow=%s of %d sessions is less than half of one, or slowdown is 1",
            timing.slow, mode.max_session,
        )  # fmt: skip


def _warn_of_exploration(cfg: Config, agent: Agent, memory: Memory) -> None:
    """Say so if nothing has been learned by the time at which random actions have become rare."""
    anneal, start = getattr(agent, "anneal", 1.0), getattr(memory, "start", 0)
    if (until := anneal * cfg.env.max_frame) <= start:
        log.warning(
            "random actions become rare within the first %s frames (algo.agent.anneal=%s), before the first update"
            " (algo.memory.start=%s); set algo.agent.anneal higher, or algo.memory.start lower",
            f"{until:,.0f}", anneal, start,
        )  # fmt: skip


def _check_repeatable(envs: Envs, agent: Agent, devices: list[str]) -> None:
    """Refuse to record what sessions share besides theta and the clock, and arithmetic that is not the same twice."""
    wrong = [f"device={device}" for device in devices if device != "cpu"]
    wrong += [f"env.make with moments of all sessions ({name})" for name in envs.moments]
    wrong += ["targets that all sessions share"] * (agent.target_part is not None)
    if wrong:
        raise ValueError(
            f"distributed.record=true cannot be replayed with {', '.join(wrong)}; set device=cpu,"
            " env.make.normalize_obs=false, env.make.scale_reward=null and, for SAC, algo.agent.shared_targets=false"
        )


def _memory(cfg: Config, envs: Envs, num_envs: int) -> Memory:
    try:
        return cfg.algo.memory(envs.obs_space, envs.action_space, num_envs, seed=cfg.seed)
    except MemoryError as error:
        size = "horizon" if "horizon" in getattr(cfg.algo.memory, "keywords", {}) else "capacity"
        raise ValueError(f"one session's memory cannot be allocated ({error}); lower algo.memory.{size}") from None


def _check_room(cfg: Config, folder: Path, agent: Agent, memory_bytes: int) -> tuple[int, bool]:
    """Return how many bytes the memories will take on the disk, and whether checkpoints have them."""
    mode: Mode = cfg.distributed
    checkpoints, memories = Checkpoints(folder, cfg.checkpoint_keep), mode.max_session * memory_bytes
    on_disk = memories * checkpoints.missing_memories
    if mode.is_cluster:
        save_memory = False  # they would all cross the network
    elif cfg.checkpoint_memory is None:  # if they also fit into half of the room that the disk has
        save_memory = memories <= 1e9 * CHECKPOINT_MEMORY and 2 * on_disk <= resources.available_disk(folder)
    else:
        save_memory = memories <= 1e9 * cfg.checkpoint_memory
    weights = 4 * flat.size(agent.nets) * mode.num_stores
    resources.check_shared_memory(5 * weights)  # theta, two moments, the probe, and a margin
    nodes = 4 * flat.size(agent.nets) * resources.NODE_COPIES_ON_DISK * mode.nodes_here * mode.is_simulated
    resources.check_disk(folder, 3 * weights + nodes, checkpoints.missing + 2, on_disk * save_memory)
    return on_disk, save_memory


def _choose_precision(precision: str, agent: Agent, devices: list[str], checkpoint: Checkpoint | None) -> str:
    """Return in what the torsos compute; with ``auto`` a run goes on in what it began with, on any processor."""
    chosen = choose(precision, nets.is_convolutional(agent.nets), devices)
    if checkpoint is None or precision != "auto":
        return chosen
    saved = checkpoint.trial()
    begun = saved.get("precision")
    if begun is None:  # of an older version, whose auto did not ask what the torsos are
        begun = choose((saved["config"] or {"algo": {}})["algo"].get("precision", "auto"), True, devices)
    if begun != chosen:
        slow = "" if is_native(begun, devices) else ", although this processor only emulates it, which is slow"
        log.warning(
            "the run has computed in %s, and algo.precision=auto would now choose %s: it goes on in %s%s;"
            " algo.precision=%s changes that",
            begun, chosen, begun, slow, chosen,
        )  # fmt: skip
    return begun


def check_device(device: str, mode: Mode) -> None:
    """Refuse a device that sessions cannot have their weights on.

    Raises:
        ValueError: There is no such device here, or the mode does not allow it.
    """
    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device={device} is not a torch device; use auto, cpu, cuda or cuda:0") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={device} is not supported; use auto, cpu, cuda or cuda:0")
    if kind == "cpu":
        return
    if not mode.on_gpu:
        raise ValueError(
            f"device={device} cannot hold the weights in distributed={mode.name}, where they are in the CPU's memory;"
            " set device=cpu or distributed=synced"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"device={device}, but torch finds no CUDA GPU here; set device=cpu or device=auto")
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device}, but there are {torch.cuda.device_count()} GPUs, counted from cuda:0")


def choose_devices(device: str, mode: Mode, weights: int) -> list[str]:
    """Return the devices that sessions take in turn; ``auto`` takes GPUs for networks that are large enough to gain.

    Args:
        device: As configured, and checked.
        mode: Which may need the weights in the CPU's memory.
        weights: Of a session's networks.
    """
    if device != "auto":
        return [device]  # all sessions on the one that was named; auto spreads them
    if mode.on_gpu and weights >= WEIGHTS_ON_GPU and torch.cuda.is_available():
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu"]
