"""What a run was made of, kept in its output folder so that it can be repeated."""

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from asynclab import __version__, machine
from asynclab.precision import has_native_bf16
from asynclab.storage.folder import whole
from asynclab.storage.names import CONFIG, RUN

log = logging.getLogger(__name__)

PACKAGES = [
    "torch",
    "hydra-core",
    "omegaconf",
    "gymnasium",
    "ale-py",
    "mujoco",
    "numpy",
    "tensorboard",
    "stable-baselines3",
]

SOURCES = ["asynclab", "benchmarks", "conf", "scripts", "train.py", "constraints.txt"]


def write(
    folder: Path,
    cfg: DictConfig,
    overrides: Sequence[str],
    decided: Mapping[str, Any],
    resumed: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
) -> None:
    """Write ``config.yaml`` (resolved) and ``run.json`` (overrides, seed, revision, versions, machine).

    When a run is resumed, the circumstances of its beginning stay, and those of now are added.  If the file that has
    them is damaged, they are lost, and the run is as if begun now.

    Args:
        folder: Output folder.
        cfg: The composed config.
        overrides: As typed.
        decided: What the config leaves to the machine or the agent, as ``Trial.decided`` returns it.
        resumed: From which frame the run goes on, and which settings have changed; None for a new run.
        command: That does the same, if this process was not started by it.
    """
    now = {**decided, **circumstances()} | ({} if command is None else {"command": [sys.executable, *command]})
    run: dict[str, Any] = {"seed": cfg.seed, **now, "resumes": []}
    if resumed is not None:
        if (found := _recorded(folder)) is None:
            log.warning("%s is damaged or gone; with it, how the run began", folder / RUN)
        run = found or run
        run["resumes"].append({**resumed, **now})
    run["overrides"] = list(overrides)
    with whole(folder / CONFIG) as file:
        file.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    with whole(folder / RUN) as file:
        file.write_text(json.dumps(run, indent=2) + "\n")


def _recorded(folder: Path) -> dict[str, Any] | None:
    """Return what was written when a run began; None if that is damaged or not there."""
    try:
        run: dict[str, Any] = json.loads((folder / RUN).read_text())
        return run if isinstance(run["resumes"], list) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def circumstances() -> dict[str, Any]:
    """Return what a measurement depends on besides its settings: command, time, revision, versions, machine."""
    return {
        "command": [sys.executable, *sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "packages": {"python": platform.python_version(), "asynclab": __version__}
        | {name: _version(name) for name in PACKAGES},
        "machine": _machine(),
    }


def _git() -> dict[str, Any] | None:
    """Return the source's revision and whether it has been changed since; None outside a checkout."""
    source = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", source, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", *(f":/{path}" for path in SOURCES))
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def instructions() -> str:
    """Return the instructions that torch's kernels use here, such as AVX2, and whether it multiplies bf16."""
    return torch.backends.cpu.get_cpu_capability() + " and bf16" * has_native_bf16(torch.device("cpu"))


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": machine.model() or platform.processor(),
        "instructions": instructions(),
        "cores": machine.cores(),
        "native_bf16": has_native_bf16(torch.device("cpu")),
        "memory_gib": round(machine.memory().total / 2**30, 1),
    }
