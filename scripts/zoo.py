"""Write docs/zoo.md: what the agents in zoo/ are, are worth and cost, from their folders, and films of them.

Example: ``python scripts/zoo.py``
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asynclab.analysis import jobs, runs
from asynclab.storage.folder import agents
from asynclab.text import duration, markdown

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "zoo"
PAGE = ROOT / "docs" / "zoo.md"

INTRO = """# The zoo

Trained agents, in `zoo/`. Written by `python scripts/zoo.py` from what their folders say; every number is in them.

```sh
make play                                                           # plays and films one
make play AGENT=a3c_cartpole
python scripts/evaluate.py run=zoo/a3c_cartpole                     # ten episodes
python scripts/evaluate.py run=zoo/a3c_cartpole episodes=1 video=true
python scripts/plot.py runs=zoo/a3c_cartpole
```

In Python, `asynclab.load("zoo/a3c_cartpole")` is a policy. `python scripts/export.py run=<output folder>
out=zoo/<name>` makes such a folder of a finished run, `python scripts/film.py videos=<recording>
out=docs/images/zoo_<name>.gif` a film of it. With `format=onnx` the policy becomes
[a file for other programs](runs.md#export-for-other-programs). In the folder are the run's config and summary, its
curves with fewer points (`metrics.jsonl`), its weights, which numpy reads without pickle (`weights.npz`), what 30
episodes returned (`evaluation.json`), and checksums of all (`manifest.json`), compared before anything is used.

Return: mean over episodes with seeds from 1000 on, with a 95 % bootstrap interval; best or sampled actions. Frames are
of all sessions, up to the weights that were kept. Time is that of the whole training, often beside other work. A
commit with `+` had changes that were not committed.
"""


def row(name: str) -> list[str]:
    """Return an agent's row of the table."""
    folder = ZOO / name
    worth, made, summary = (runs.read_json(folder / f"{part}.json") for part in ("evaluation", "run", "summary"))
    parts = [made, *made["resumes"]]
    (job,), _ = jobs.find([folder])
    interval = worth["interval_95"]
    between = f" ({interval[0]:,.2f} to {interval[1]:,.2f})" if interval else ""
    actions = "best" if worth["deterministic"] else "sampled"
    return [
        f"`{name}`",
        worth["env"],
        f"**{worth['mean_return']:,.2f}**{between}, {len(worth['returns'])} episodes, {actions}",
        f"{worth['frames']:,}" + f" of {summary['frames']:,}" * (worth["frames"] != summary["frames"]),
        duration(summary["seconds"]),
        ", ".join(dict.fromkeys(_machine(part["machine"]) for part in parts)),
        ", ".join(dict.fromkeys(_commit(part["git"]) for part in parts)),
        f"`{job.command}`",
    ]


def _machine(found: Mapping[str, Any]) -> str:
    return f"{found['processor']}, {found['cores']} cores{', bf16' * found['native_bf16']}"


def _commit(git: Mapping[str, Any] | None) -> str:
    return f"{git['revision'][:7]}{'+' * git['dirty']}" if git else "unknown"


def page() -> str:
    """Return docs/zoo.md."""
    titles = ["agent", "environment", "return", "frames", "time", "machine", "commit", "command"]
    names = agents(ZOO)
    table = markdown(titles, map(row, names))
    films = [(name, film) for name in names if (film := PAGE.parent / "images" / f"zoo_{name}.gif").exists()]
    shown = "".join(f"\n## {name}\n\n![{name}]({film.relative_to(PAGE.parent)})\n" for name, film in films)
    return f"{INTRO}\n{table}\n{shown}"


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(f"scripts/zoo.py takes no settings; leave out {' '.join(sys.argv[1:])}")
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
