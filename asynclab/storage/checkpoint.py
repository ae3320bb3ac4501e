"""Checkpoints: everything that a run needs to go on, in a folder that is complete or not there.

``checkpoints/000007/`` has ``manifest.json`` (format, frames, and size and sha256 of every other file), ``stores.pt``
(weights, optimizers and counters), ``trial.json`` (config, layout of the weights, state of the logs) and, for every
session that was alive, ``session_NN.pt`` and its memory: ``session_NN.npz``, and of a replay ``session_NN_SSSSSS.npz``
for every segment, which the checkpoints share (segments.py).  ``latest`` and ``best`` are links.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from asynclab import check
from asynclab.distributed import Store
from asynclab.storage import snapshot
from asynclab.storage.names import CHECKPOINTS, MANIFEST

log = logging.getLogger(__name__)

FORMAT = 3
MEMORY = ".npz"  # how files of memories end
WITH_MEMORIES = 2  # of the latest checkpoints, at most: older ones have other rows of a replay, which take room


class Checkpoint(NamedTuple):
    """A complete checkpoint.

    Attributes:
        path: Its folder.
        manifest: What it is said to hold.
    """

    path: Path
    manifest: dict[str, Any]

    def stores(self) -> list[dict[str, Any]]:
        """Return the state of every store."""
        return snapshot.read_tensors(self.path / "stores.pt")

    def trial(self) -> dict[str, Any]:
        """Return what the trial as a whole has to remember."""
        return json.loads((self.path / "trial.json").read_text())


def exists(run: Path) -> bool:
    """Return whether a run has any checkpoint, good or not."""
    return bool(_candidates(run))


def load(run: Path, name: str = "latest", memories: bool = True) -> Checkpoint:
    """Return a run's checkpoint after a check of every byte; nothing in it is executed.

    Args:
        run: Output folder.
        name: ``latest``, ``best``, or a checkpoint's number.  If the latest one is damaged, the one before it is
            returned, with a warning.
        memories: Whether the sessions' memories are needed, and to be checked.

    Raises:
        ValueError: There is no such checkpoint, it is damaged, or it is of another format.
    """
    if name != "latest":
        path = run / CHECKPOINTS / (f"{int(name):06d}" if name.isdecimal() else name)
        if not path.is_dir():
            raise ValueError(f"{path} does not exist; use latest{_others(run)}")
        return _open(path.resolve(), memories)
    candidates = _candidates(run)
    if not candidates:
        raise ValueError(f"{run} has no checkpoint in {run / CHECKPOINTS}")
    damage: list[str] = []
    for path in candidates:
        try:
            found = _open(path, memories)
        except ValueError as error:
            damage.append(str(error))
            continue
        for message in damage:
            log.warning("%s; falling back to checkpoint %s at %s frames", message, path.name, found.manifest["frames"])
        return found
    raise ValueError(f"{run} has no checkpoint that can be read: {'; '.join(damage)}")


class Checkpoints:
    """Writes a run's checkpoints; the one owner of their folder.

    Args:
        run: Output folder.
        keep: How many of the latest ones are kept, besides the best; the last two of them with the sessions' memories.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.run = run
        self.folder = run / CHECKPOINTS
        self.keep = check.count("checkpoint_keep", keep)

    @property
    def missing(self) -> int:
        """Return how many are to come before the first one is removed."""
        return max(0, self.keep - len(_candidates(self.run)))

    @property
    def missing_memories(self) -> int:
        """Return how many times over the sessions' memories may come to take room, beside those that are there."""
        return 1 + max(0, min(self.keep, WITH_MEMORIES) - len(_candidates(self.run)))

    def clean(self, until: float = math.inf) -> None:
        """Remove what was collected for checkpoints that have not come about, and at an end what sessions went on with.

        Args:
            until: Number of a snapshot; the sessions may be collecting the next one already.  Infinite if there are no
                sessions.
        """
        for path in self.folder.glob(f"{snapshot.PARTIAL}*"):
            if int(path.name.removeprefix(snapshot.PARTIAL)) <= until:
                shutil.rmtree(path, ignore_errors=True)
        if until == math.inf:
            for path in self.folder.glob(f"{snapshot.OWN}*"):
                shutil.rmtree(path, ignore_errors=True)

    def set_aside(self, found: Checkpoint) -> None:
        """Rename those that are newer than the one that the run goes on from: they are damaged.

        If one of them was the best, none is: its number will be another one's.
        """
        for path in _candidates(self.run):
            if path.name > found.path.name:
                path.rename(path.with_name(f"{path.name}.damaged_{time.time_ns()}"))
        if not self.has_best:
            (self.folder / "best").unlink(missing_ok=True)

    @property
    def has_best(self) -> bool:
        """Return whether there is a best one."""
        return (self.folder / "best").is_dir()

    def commit(
        self,
        number: int,
        stores: Sequence[Store],
        trial: Mapping[str, Any],
        files: Mapping[str, snapshot.File],
        is_best: bool,
        is_complete: bool = True,
    ) -> Path:
        """Make a checkpoint of a snapshot; a crash at any moment leaves it whole or not there.

        Args:
            number: Of the snapshot.
            stores: Written here.
            trial: What the trial as a whole has to remember; JSON.
            files: What the sessions have written.
            is_best: Whether it becomes ``best``.
            is_complete: Whether all sessions have saved their state; the latest complete one is always kept.

        Returns:
            Its folder.

        Raises:
            OSError: It cannot be written; those before are untouched.
        """
        try:
            path = self._write(number, stores, trial, files, is_complete)
        finally:
            self.clean(number)
        for name in ["latest", "best"] if is_best else ["latest"]:
            self._link(name, path)
        self._prune()
        return path

    def _write(
        self,
        number: int,
        stores: Sequence[Store],
        trial: Mapping[str, Any],
        files: Mapping[str, snapshot.File],
        is_complete: bool,
    ) -> Path:
        partial = snapshot.partial(self.folder, number)
        for path in partial.iterdir():
            if path.name not in files:  # of a session that has died since
                path.unlink()
        text = json.dumps(trial).encode()
        all_files = dict(files) | {
            "stores.pt": snapshot.write_tensors(partial / "stores.pt", [store.state_dict() for store in stores]),
            "trial.json": snapshot.write(partial / "trial.json", lambda file: file.write(text)),
        }
        manifest = {
            "format": FORMAT,
            "frames": sum(store.total_frames() for store in stores),
            "complete": is_complete,
            "files": {name: file._asdict() for name, file in sorted(all_files.items())},
        }
        snapshot.write(partial / MANIFEST, lambda file: file.write(_signed(manifest)))
        snapshot.sync_folder(partial)
        last = _candidates(self.run)
        path = self.folder / f"{int(last[0].name) + 1 if last else 0:06d}"
        partial.rename(path)
        snapshot.sync_folder(self.folder)
        return path

    def _link(self, name: str, path: Path) -> None:
        link = self.folder / f".{name}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(self.folder / name)

    def _prune(self) -> None:
        best, candidates = self.folder / "best", _candidates(self.run)
        complete = [path for path in candidates if _is_complete(path)][:1]
        kept = {path.name for path in [*candidates[: self.keep], *complete]}
        with_memories = [*candidates[: min(self.keep, WITH_MEMORIES)], *complete]
        if best.is_symlink():
            kept.add(best.readlink().name)
        for path in candidates:
            if path.name not in kept:
                # first the manifest, so that a half removed one is never taken for a checkpoint
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)
            elif path not in with_memories:
                _forget_memories(path)


def _forget_memories(path: Path) -> None:
    """Remove the sessions' memories from a checkpoint; a damaged one stays as it is."""
    try:
        manifest = _manifest(path)
    except ValueError:
        return
    memories = {name for name in manifest["files"] if name.endswith(MEMORY)}
    if memories:
        manifest["files"] = {name: file for name, file in manifest["files"].items() if name not in memories}
        new = path / f".{MANIFEST}"
        snapshot.write(new, lambda file: file.write(_signed(manifest)))
        new.replace(path / MANIFEST)
    for name in memories:
        (path / name).unlink(missing_ok=True)


def _signed(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps({**manifest, "sha256": _digest(manifest)}, indent=2).encode()


def _candidates(run: Path) -> list[Path]:
    """Return the folders that are named like checkpoints, newest first."""
    return sorted((p for p in (run / CHECKPOINTS).glob("[0-9]" * 6 + "*") if p.name.isdecimal()), reverse=True)


def _is_complete(path: Path) -> bool:
    try:
        return bool(json.loads((path / MANIFEST).read_text())["complete"])
    except (OSError, ValueError, KeyError):
        return False


def _others(run: Path) -> str:
    names = [path.name for path in _candidates(run)]
    return f", best or one of {', '.join(names)}" if names else ""


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(path: Path) -> dict[str, Any]:
    """Return what a checkpoint's manifest says, if it is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        form, _ = manifest["format"], manifest["files"]
        whole = manifest.pop("sha256", None) == _digest(manifest)
    except FileNotFoundError:
        raise ValueError(f"{path / MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path / MANIFEST} is damaged") from None
    if form != FORMAT:
        raise ValueError(f"{path} has format {form}, and this version of asynclab reads {FORMAT}")
    if not whole:
        raise ValueError(f"{path / MANIFEST} is damaged")
    return manifest


def _open(path: Path, memories: bool) -> Checkpoint:
    """Return a checkpoint if all of it is as it was written, or all but the memories, if they are not needed."""
    manifest = _manifest(path)
    files = manifest["files"]
    for name, expected in files.items():
        if Path(name).name != name:
            raise ValueError(f"{path / MANIFEST} names {name}, which is not a file beside it")
        if name.endswith(MEMORY) and not memories:
            continue
        try:
            found = snapshot.describe(path / name)
        except OSError as error:
            raise ValueError(f"{path / name} cannot be read: {error.strerror}") from None
        if found._asdict() != expected:
            raise ValueError(f"{path / name} is damaged: its checksum is not the manifest's")
    if missing := {"stores.pt", "trial.json"} - set(files):
        raise ValueError(f"{path / MANIFEST} does not name {', '.join(sorted(missing))}")
    return Checkpoint(path, manifest)
