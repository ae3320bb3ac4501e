"""A session's memory on the disk.

A replay is written in segments of its rows.  One that is complete never changes: it is written once, and every
checkpoint that needs it has a hard link to it.  So a checkpoint costs what is new, and the disk has each row once.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from asynclab.memory import Memory, Replay
from asynclab.storage import snapshot


class MemoryFiles:
    """Writes a session's memory into checkpoints, and reads it again.

    What it has written of a replay it keeps in a folder of the session's own, too: from there a session that is
    restarted goes on.  A kill at any moment leaves in it all that its latest ``session_NN.npz`` is about: segments are
    replaced by longer ones before that is, and removed after it.

    Args:
        folder: Of the checkpoints.
        rank: Of the session.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._own = snapshot.own(folder, rank)
        self._name = f"session_{rank:02d}"
        self._rest = f"{self._name}.npz"  # what is no segment
        self._complete: dict[str, snapshot.File] = {}

    def _segment(self, number: int) -> str:
        return f"{self._name}_{number:06d}.npz"

    def save(self, memory: Memory, folder: Path) -> dict[str, snapshot.File]:
        """Write a memory into the folder of a snapshot; return the files by name.

        Raises:
            OSError: It cannot be written.
        """
        if not isinstance(memory, Replay):
            return {self._rest: snapshot.write_arrays(folder / self._rest, memory.state_dict())}
        self._own.mkdir(parents=True, exist_ok=True)
        segments = {self._segment(number): number for number in memory.segments()}
        files = {name: self._complete[name] for name in segments if name in self._complete}
        for name, number in segments.items():
            if name not in files:
                files[name] = snapshot.replace_arrays(self._own / name, memory.segment(number))
        files[self._rest] = snapshot.replace_arrays(self._own / self._rest, memory.state_dict())
        self._complete = {name: files[name] for name in list(segments)[:-1]}  # the last one grows on
        for path in self._own.iterdir():
            if path.name not in files:
                path.unlink()
        for name in files:
            snapshot.link(self._own / name, folder / name)
        return files

    def load(self, memory: Memory, checkpoint: Path | None = None, names: Collection[str] = ()) -> bool:
        """Let a new memory go on from what was saved, and return whether there was anything.

        Args:
            memory: As it was made.
            checkpoint: Its folder; None for what this session itself has saved last, in a process that has died.
            names: Of the checkpoint's files.
        """
        folder = self._own if checkpoint is None else checkpoint
        if self._rest not in (names if checkpoint else [path.name for path in folder.glob("*.npz")]):
            return False
        state = snapshot.read_arrays(folder / self._rest)
        memory.load_state_dict(state)
        if not isinstance(memory, Replay) or "reward" in state:  # earlier versions wrote a replay in one file
            return True
        segments = [self._segment(number) for number in memory.segments()]
        for name in segments:
            memory.load_segment(snapshot.read_arrays(folder / name))
        if checkpoint is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own.mkdir(parents=True)
            for name in [*segments, self._rest]:
                snapshot.link(checkpoint / name, self._own / name)
        # the last one may change: where episodes were cut short is noted in it
        self._complete = {name: snapshot.describe(folder / name) for name in segments[:-1]}
        return True
