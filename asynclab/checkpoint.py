"""Checkpoints: weights, optimizer and counters of every store, written so that a crash leaves the last one whole."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asynclab.distributed import Store

FORMAT = 1


def save(path: Path, stores: Sequence[Store]) -> None:
    """Write all stores to ``path``: to a temporary file beside it, synced, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "stores": [store.state_dict() for store in stores]}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)  # the rename itself
    os.close(directory)


def load(path: Path) -> list[dict[str, Any]]:
    """Return the state of every store; nothing in the file is executed.

    Raises:
        ValueError: There is no such file, it is damaged, or it is of another format.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: the run has not written a checkpoint yet") from None
    except Exception as error:  # torch raises anything from EOFError to RuntimeError on a damaged file
        raise ValueError(f"{path} is not a readable checkpoint ({error}); use another one of the run") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has format {content.get('format')}, and this version of asynclab reads {FORMAT}")
    return content["stores"]
