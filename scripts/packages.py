"""Draw which package imports which into docs/architecture.md, from the imports of every file.

Example: ``python scripts/packages.py``
"""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)
# which anybody may import: not drawn
BASE = {
    "check", "flat", "layout", "machine", "moments", "precision", "profile", "progress", "schedules", "script",
    "signals", "text",
}  # fmt: skip


def part(path: Path) -> str:
    """Return the package, the module at the top of asynclab, or the folder beside it that a file belongs to."""
    relative = path.relative_to(ROOT)
    return relative.parts[1 if relative.parts[0] == "asynclab" else 0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Return for each part of asynclab those that it imports."""
    files = [path for path in ROOT.glob("asynclab/**/*.py") if path.parent != ROOT / "asynclab" or path.stem[0] != "_"]
    parts = {part(path) for path in files}
    arrows: dict[str, set[str]] = {name: set() for name in sorted(parts)}
    for path in files:
        names = {name.split(".")[1] for name in imports(path) if name.startswith("asynclab.")}
        arrows[part(path)] |= (names & parts) - {part(path)}
    return arrows


def drawing() -> str:
    """Return the picture: from above to below, without arrows that others imply and without what anybody may import."""
    arrows = {name: found - BASE for name, found in graph().items() if name not in BASE}
    below: dict[str, set[str]] = {}  # all that is reached
    for name in TopologicalSorter(arrows).static_order():
        below[name] = arrows[name].union(*(below[other] for other in arrows[name]))
    lines = ["```mermaid", "graph TD"]
    for name, found in arrows.items():
        implied = set().union(*(below[other] for other in found))
        lines += [f"    {name} --> {other}" for other in sorted(found - implied)]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(f"scripts/packages.py takes no settings; leave out {' '.join(sys.argv[1:])}")
    PAGE.write_text(BLOCK.sub(lambda _: drawing(), PAGE.read_text(), count=1))  # where the last one is
    print(f"wrote {PAGE}")
