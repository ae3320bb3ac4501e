"""Text that people read, such as numbers and durations, and text that they type: paths, overrides and programs."""

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of a checkout


def count(n: int, noun: str) -> str:
    """Return a number of things: ``1 run``, ``2,000 runs``."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def number(value: float | None) -> str:
    """Return a return or a staleness as people read it; ``-`` for none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:,.2f}"


def duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds; ``-`` for none, ``?`` if they are not finite."""
    if seconds is None:
        return "-"
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Return a table in Markdown.

    Args:
        titles: Of the columns.
        rows: Their cells; a short row ends with empty ones.
        numbers: Whether all columns but the first are flush right.
    """
    cells = [[cell.replace("|", r"\|") for cell in row] + [""] * (len(titles) - len(row)) for row in [titles, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|---" + ("|---:" if numbers else "|---") * (len(titles) - 1) + "|")
    return "\n".join(lines)


_here: Path | None = None  # where people type, if it is not the current folder


def set_here(folder: Path | None) -> None:
    """Take this for the folder in which people type: Hydra may have changed the current one.  None if it has not."""
    global _here
    _here = folder


def located(path: Path) -> Path:
    """Return the path that somebody meant who typed it here."""
    return path if _here is None or _here == Path.cwd() else _here / path


def short(path: Path) -> str:
    """Return a path as one would type it here: relative if it is below the current folder."""
    here = _here or Path.cwd()
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - without following links, which people do not see
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def override(key: str, path: Path) -> str:
    """Return an override that both a shell and Hydra understand, such as ``run=outputs/a3c_pong``."""
    value = short(path)
    if not re.fullmatch(r"[A-Za-z_./][\w./:+@%-]*", value, re.ASCII):
        value = '"' + value.replace('"', r"\"") + '"'
    return shlex.quote(f"{key}={value}") if value[0] == '"' else f"{key}={value}"


def program(script: str, python: str = "python") -> list[str]:
    """Return what is typed to call a script: ``python train.py`` of a checkout, ``asynclab train`` of a wheel."""
    path = Path(script)
    if path.parts[-2:] == ("asynclab", "train.py"):  # as it was called before
        return [python, "-m", "asynclab", "train"]
    if path.suffix == ".py":
        return [python, script]
    return ["asynclab", name] if (name := path.name.removeprefix("asynclab-")) != path.name else [path.name]


def command(name: str) -> str:
    """Return how to call one of our commands in a shell: as its script lies in a checkout, or as it is installed."""
    path = ROOT / ("train.py" if name == "train" else f"scripts/{name}.py")
    caller, *rest = program(short(path) if path.is_file() else f"asynclab-{name}", Path(sys.executable).name)
    return " ".join([installed(caller), *map(shlex.quote, rest)])


def installed(name: str) -> str:
    """Return the name of a program of our Python environment, or its path if the shell would find another one."""
    path = Path(sys.executable).parent / name
    return shlex.quote(short(path)) if path.exists() and shutil.which(name) != str(path) else name
