"""Files of a checkpoint: tensors and arrays that are read back without running anything."""

import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class File(NamedTuple):
    """What a checkpoint's manifest says of a file."""

    bytes: int
    sha256: str


PARTIAL, OWN = ".partial_", ".session_"  # beside the checkpoints


def partial(folder: Path, number: int) -> Path:
    """Return the folder, made if need be, in which a snapshot is collected before it becomes a checkpoint."""
    path = folder / f"{PARTIAL}{number}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def own(folder: Path, rank: int) -> Path:
    """Return the folder in which a session has what it goes on with if its process dies."""
    return folder / f"{OWN}{rank:02d}"


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> File:
    """Write a file and make sure that it is on the disk.

    Args:
        path: Replaced if it exists.
        fill: Writes the content.
    """
    with path.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    return describe(path)


def describe(path: Path) -> File:
    """Return a file's size and checksum."""
    with path.open("rb") as file:
        return File(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def link(path: Path, other: Path) -> None:
    """Let a whole file, which nobody writes to any more, have another name; where there are no links, copy it."""
    try:
        other.hardlink_to(path)
    except FileExistsError:
        raise
    except OSError:
        with path.open("rb") as content:
            write(other, lambda file: shutil.copyfileobj(content, file))


def sync_folder(path: Path) -> None:
    """Make sure that the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_tensors(path: Path, content: Any) -> File:
    """Write tensors and plain Python."""
    buffer = io.BytesIO()  # on a full disk torch would raise something else than an OSError
    torch.save(content, buffer)
    return write(path, lambda file: file.write(buffer.getbuffer()))


def read_tensors(path: Path) -> Any:
    """Return what ``write_tensors`` wrote.

    Raises:
        ValueError: The file is damaged, or has anything but tensors and plain Python.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not loaded: it has something else in it than tensors and plain Python") from error
    except Exception as error:  # torch raises anything from EOFError to RuntimeError
        raise ValueError(f"{path} is not a readable checkpoint ({error})") from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> File:
    """Write arrays of numbers or text."""
    content: dict[str, Any] = dict(arrays)
    assert not any(np.asarray(array).dtype.hasobject for array in content.values())  # which would be pickled
    return write(path, lambda file: np.savez(file, **content))


def replace_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> File:
    """Write arrays as a new file that takes another's name; what is linked to that one stays as it was."""
    new = path.with_name(f".{path.name}")
    file = write_arrays(new, arrays)
    new.replace(path)
    return file


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return what ``write_arrays`` wrote.

    Raises:
        ValueError: The file is damaged, or has anything but numbers and text.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except Exception as error:  # numpy raises anything from BadZipFile to ValueError
        raise ValueError(f"{path} is not loaded: it is not a file of arrays of numbers and text ({error})") from error
