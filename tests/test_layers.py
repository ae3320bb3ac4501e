"""Imports point only downwards (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = [
    {
        "check",
        "console",
        "returns",
        "schedules",
        "flat",
        "layout",
        "moments",
        "precision",
        "preload",
        "profile",
        "command",
        "config",
        "folder",
        "generators",
        "snapshot",
        "staleness",
        "table",
        "targets",
        "text",
    },
    {"nets", "distributions", "optim"},
    {"envs", "video", "memory", "agents", "distributed"},
    {"learner", "segments", "session"},
    {
        "recorder",
        "checkpoint",
        "provenance",
        "trial",
        "evaluation",
        "evaluator",
        "export",
        "film",
        "curves",
        "estimates",
        "jobs",
        "page",
        "plots",
        "ranking",
        "report",
        "runs",
        "benchmark",
        "audit",
        "doctor",
        "faults",
        "probe",
        "build",
        "policy",
        "resources",
        "resume",
        "screens",
        "study",
        "sweeps",
        "tensorboard",
        "tuning",
        "zoo",
    },
    {"train", "scripts"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FORBIDDEN = {
    "agents": {"asynclab.distributed", "multiprocessing", "hydra"},
    "distributed": {"asynclab.agents", "asynclab.envs", "gymnasium", "hydra"},
}
HYDRA = {
    "train",
    "build",
    "command",
    "config",
    "scripts",
    "doctor",
    "evaluation",
    "jobs",
    "provenance",
    "resume",
    "runs",
    "sweeps",
    "targets",
    "tuning",
}
FILES = [ROOT / "train.py", *ROOT.glob("scripts/*.py"), *ROOT.glob("asynclab/**/*.py")]


def part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[1 if relative.parts[0] == "asynclab" else 0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    me = part(path)
    if me == "__init__":
        return
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] == "asynclab" and len(pieces) > 1 and pieces[1] in LEVEL:
            assert LEVEL[pieces[1]] <= LEVEL[me], f"{me} imports {name}, which is above it"
        for forbidden in FORBIDDEN.get(me, set()):
            assert not name.startswith(forbidden), f"{me} imports {name}"
        if pieces[0] in ("hydra", "omegaconf"):
            assert me in HYDRA, f"{me} imports {name}"


def test_every_file_has_a_layer():
    assert {part(path) for path in FILES} - {"__init__"} <= set(LEVEL)
