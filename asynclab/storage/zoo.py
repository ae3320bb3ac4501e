"""Trained agents to keep, such as those in zoo/: the folder of a run with its weights in place of checkpoints.

``config.yaml`` and ``summary.json`` are the run's, ``run.json``, too, but for where it was written.  ``metrics.jsonl``
has its curves with fewer points, ``weights.npz`` theta and the moments that observations are normalised by,
``evaluation.json`` what the agent is worth, ``manifest.json`` size and sha256 of every other file.  P: parameters.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asynclab.storage import snapshot
from asynclab.storage.names import CONFIG, EVALUATION, MANIFEST, METRICS, RUN, SUMMARY, WEIGHTS

FORMAT = 1
FILES = (CONFIG, RUN, SUMMARY, METRICS, WEIGHTS, EVALUATION)
MOMENTS = "moments_"  # what their names in the file of weights begin with


class Weights(NamedTuple):
    """What it takes to play, besides the config.

    Attributes:
        theta: [P] float32.
        moments: The slots of each estimate by name.
        layout: What lies where in theta (``flat.signature``).
        checkpoint: Number of the checkpoint that they are from, as its folder is called.
        frames: Of the trial when it was taken.
    """

    theta: Tensor
    moments: dict[str, Tensor]
    layout: list[str]
    checkpoint: str
    frames: int


def write(folder: Path, weights: Weights) -> None:
    """Write an agent's weights."""
    arrays: dict[str, Any] = {"theta": weights.theta.numpy()}
    arrays |= {f"{MOMENTS}{name}": slots.numpy() for name, slots in weights.moments.items()}
    np.savez_compressed(folder / WEIGHTS, **arrays)


def seal(folder: Path, weights: Weights) -> None:
    """Write the manifest of a folder that has everything else."""
    manifest = {
        "format": FORMAT,
        "checkpoint": weights.checkpoint,
        "frames": weights.frames,
        "layout": weights.layout,
        "files": {name: snapshot.describe(folder / name)._asdict() for name in FILES},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def read(folder: Path) -> Weights:
    """Return an agent's weights after a check of every file; nothing in them is executed.

    Raises:
        ValueError: A file is missing, is not as it was written, or has something else in it.
    """
    manifest = _manifest(folder)
    path = folder / WEIGHTS
    arrays = snapshot.read_arrays(path)
    theta = arrays.pop("theta", None)
    if theta is None or theta.ndim != 1 or theta.dtype != np.float32:
        raise ValueError(f"{path} has no theta, which would be a vector of float32")
    if wrong := [name for name, array in arrays.items() if array.ndim != 2 or array.dtype != np.float64]:
        raise ValueError(f"{path} has a {wrong[0]} that is not a matrix of float64")
    moments = {name.removeprefix(MOMENTS): torch.from_numpy(array) for name, array in arrays.items()}
    return Weights(torch.from_numpy(theta), moments, manifest["layout"], manifest["checkpoint"], manifest["frames"])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    types = {"format": int, "checkpoint": str, "frames": int, "layout": list, "files": dict}
    try:
        manifest = json.loads(path.read_text())
        is_whole = all(isinstance(manifest[key], of) for key, of in types.items())
        is_whole &= all(isinstance(name, str) for name in manifest["layout"])
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} is damaged")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path} has format {manifest['format']}, and this version of asynclab reads {FORMAT}")
    for name in FILES:
        try:
            found = snapshot.describe(folder / name)
        except OSError as error:
            raise ValueError(f"{folder / name} cannot be read: {error.strerror}") from None
        if found._asdict() != manifest["files"].get(name):
            raise ValueError(f"{folder / name} is damaged: its checksum is not the manifest's")
    return manifest
