"""What a checkpoint has of a session, besides theta and the counters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from asynclab.storage import snapshot
from asynclab.storage.segments import MemoryFiles
from asynclab.training import generators
from asynclab.training.loop import Loop


class Start(NamedTuple):
    """Where a trial begins.

    Attributes:
        checkpoint: Folder of the checkpoint that it goes on from.
        files: Names of those in it that are its own.
        resumes: How often it has been resumed.
    """

    checkpoint: Path | None = None
    files: frozenset[str] = frozenset()
    resumes: int = 0


def save(
    loop: Loop, folder: Path, rank: int, memory_files: MemoryFiles | None, more: Mapping[str, Any]
) -> dict[str, snapshot.File]:
    """Write everything that theta and the counters do not hold, and ``more``; return the files by name.

    Raises:
        OSError: It cannot be written.
    """
    name = f"session_{rank:02d}.pt"
    state = {
        "agent": loop.learner.agent.state_dict(),
        "envs": loop.envs.state_dict(),
        "optimizer": loop.learner.store.own_state_dict(),
        "more": dict(more),
        **generators.state(loop.learner.agent.device),
    }
    files = {name: snapshot.write_tensors(folder / name, state)}
    return files | (memory_files.save(loop.memory, folder) if memory_files else {})


def resume(loop: Loop, start: Start, rank: int, memory_files: MemoryFiles) -> dict[str, Any]:
    """Let a loop be as it was when saved, as far as the checkpoint has it; return what more was saved.

    The environments go on where they were if they can, else with new episodes.  A memory that was not saved fills anew
    before it is used.
    """
    assert start.checkpoint is not None
    envs, learner, memory = loop.envs, loop.learner, loop.memory
    name, frames = f"session_{rank:02d}.pt", learner.store.total_frames() // learner.mode.writers
    if name not in start.files:  # the session was not alive at that moment
        memory.refill(frames)
        return {}
    state = snapshot.read_tensors(start.checkpoint / name)
    learner.agent.load_state_dict(state["agent"])
    learner.store.load_own_state_dict(state["optimizer"])
    going_on = envs.retrace(state["envs"])
    loop.obs = envs.reset(loop.seeds) if going_on is None else going_on
    if going_on is None:
        learner.agent.on_step(torch.ones(envs.num_envs, dtype=torch.bool))
    if not memory_files.load(memory, start.checkpoint, start.files):
        memory.reset(loop.obs)
        memory.refill(frames)
    elif going_on is None:
        memory.cut(loop.obs)
    if memory.is_between_batches():
        learner.agent.begin_batch()
    generators.restore(learner.agent.device, state)
    more = dict(state.get("more", {}))
    if going_on is not None and "obs" in more:  # normalised by what all sessions had seen when they were seen
        loop.obs = more["obs"].numpy()
    return more
