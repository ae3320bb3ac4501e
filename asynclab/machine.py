"""What machine this is, and what we may take of it: what affinity and control groups (Docker, Slurm, systemd) leave."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

PROC = Path("/proc/self")
CPUINFO = Path("/proc/cpuinfo")
GROUP = re.compile(r"^\d+:([^:]*):(.*)$", re.MULTILINE)  # hierarchy, controllers (none in version 2), path
MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)$", re.MULTILINE)  # root, folder, kind, options
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
V2 = "memory.max", "memory.current", "inactive_file"


class Memory(NamedTuple):
    """Bytes that can be had now, and that there are at all."""

    available: int
    total: int


def cores() -> int:
    """Return how many cores can be kept busy: those of the affinity, at most the whole cores of every quota.

    Quotas are those of our control group and of all above it that can be seen, of version 1 and 2.
    """
    limit: float = len(os.sched_getaffinity(0))
    for group in _groups("cpu"):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            numbers = [number for name in names for number in _numbers(group / name)]
            if len(numbers) == 2 and numbers[0] > 0:  # "max", or -1 in version 1: none
                limit = min(limit, numbers[0] / numbers[1])
    return max(1, int(limit))


def memory() -> Memory:
    """Return the memory of the machine, or of the control group that has least."""
    found = psutil.virtual_memory()
    available, total = found.available, found.total
    for group in _groups("memory"):
        for limit, usage, forgettable in (V2, V1):
            if (maximum := _numbers(group / limit)) and (used := _numbers(group / usage)):
                files = _table(group / "memory.stat").get(forgettable, 0)  # which the kernel can forget
                available = min(available, max(0, maximum[0] - used[0] + files))
                total = min(total, maximum[0])
    return Memory(available, total)


def vendor() -> str:
    """Return who has made the processor, as it says itself; empty where it does not."""
    return _processor("vendor_id")


def model() -> str:
    """Return the processor's name; empty where it does not say it."""
    return _processor("model name")


def _processor(field: str) -> str:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folder of our control group with this controller, and of each that it is in."""
    try:
        named, mounts = GROUP.findall((PROC / "cgroup").read_text()), MOUNT.findall((PROC / "mountinfo").read_text())
    except OSError:
        return
    ours = {name: path for names, path in named for name in names.split(",")}
    for root, folder, kind, options in mounts:
        name = "" if kind == "cgroup2" else controller
        if name not in ours or name not in ["", *options.split(",")]:
            continue
        top, path = Path(folder.replace("\\040", " ")), Path(ours[name])
        # what a container sees of the machine's tree may begin at its own group
        group = top / (path.relative_to(root) if path.is_relative_to(root) else "")
        yield from [group, *group.parents][: len(group.parts) - len(top.parts) + 1]


def _numbers(path: Path) -> list[int]:
    """Return the numbers in a file; [] if there is none, or it has something else."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _table(path: Path) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
    except (OSError, ValueError):
        return {}
