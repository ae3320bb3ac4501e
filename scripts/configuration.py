"""Write docs/configuration.md: every setting with its meaning, which are the comments in conf/, and its default.

Example: ``python scripts/configuration.py``
"""

import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import yaml

from asynclab.text import markdown

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "configuration.md"

INTRO = """# Configuration

Every setting: its key on the command line, its default, what it means. Written by `python scripts/configuration.py`
from the comments in `conf/`; change it there.

`group=choice` takes a whole file (`algo=ppo`), `key=value` changes one setting (`algo.agent.gamma=0.9`), and
`python train.py algo=ppo env=pong --cfg job` prints what comes of it. `???` must be set; `null` stands for none. A
frame is one transition of one environment (for Atari 4 emulator frames), a session one process, an update one step of
the optimizer.

A `_target_` names what is made, with the keys beside it as its arguments. Schedules, factors by the share of the
budget that is used up, are `asynclab.schedules.Constant` and `asynclab.schedules.Linear`, which goes from 1 to
`final`, from `begin` on (at once; `+algo.lr_schedule.begin=0.6`: after 60 % of the budget).
[extending.md](extending.md) says how to add choices and targets of your own. Hydra's own settings are in its
documentation; `hydra.run.dir` is the output folder, `hydra.sweep.dir` a sweep's (`-m`).
"""

# title, folder in conf/, what stands before a key, text
GROUPS = [
    ("Algorithms: `algo`", "algo", "algo.", "What is learned, from which batches."),
    ("Optimizers: `algo/optimizer`", "algo/optimizer", "algo.optimizer.", "Chosen by the algorithm, or on its own."),
    ("Environments: `env`", "env", "env.", "What is acted in, for how long, and the network that fits it."),
    ("Modes: `distributed`", "distributed", "distributed.", "How many sessions there are, and what they share."),
    (
        "Timings: `distributed/timing`",
        "distributed/timing",
        "distributed.timing.",
        "How long what sessions do takes, in virtual time (`distributed=simulated`).",
    ),
]
SPACES = """What an algorithm does otherwise for observations and actions of some kind is in
`conf/tuned/<algo>/<spaces>.yaml`. The environment's file says which; what is typed has the last word. `env=gym` takes
any environment and cannot know: add `spaces=continuous` or `spaces=pixels`. `~tuned` leaves an algorithm as it is in
its own file.
"""
PRESETS = [
    ("Experiments: `+experiment`", "experiment", "Settings of several groups at once."),
    (
        "Pairs: `pair`",
        "pair",
        "Algorithm and environment, for `+experiment=defaults`; two sessions, A2C and PPO one.",
    ),
    ("Arms: `arm`", "arm", "What is compared in the experiment `study_cartpole`."),
    ("Arms on Pong: `arm_pong`", "arm_pong", "What is compared in the experiment `study_pong`."),
    ("Corrections: `correction`", "correction", "What is compared in the experiment `study_scale`."),
    ("Exchanges: `exchange`", "exchange", "What is compared in the experiment `study_cluster`."),
]


class Setting(NamedTuple):
    """A key, its default and its meaning as the file has them; the meaning is empty if the file has none."""

    key: str
    default: str
    meaning: str


def header(text: str) -> str:
    """Return the first paragraph of the comment at the beginning of a file."""
    comment = re.sub(r"^# @package.*\n", "", text)
    lines = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("# "), comment.splitlines())]
    return " ".join(" ".join(lines).split())


def settings(text: str, prefix: str = "") -> list[Setting]:
    """Return the settings of a YAML file in their order."""
    lines = text.splitlines()

    def comment(node: yaml.Node) -> str:
        found = re.match(r"[\s:]*#\s*(.*)", lines[node.end_mark.line][node.end_mark.column :])
        return found[1].strip() if found else ""

    def walk(node: yaml.Node, path: str, above: str) -> Iterator[Setting]:
        for key, value in node.value:
            name = f"{path}{key.value}"
            if name in (f"{prefix}defaults", "hydra") or key.value == "_partial_":
                continue
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                yield from walk(value, f"{name}.", comment(key))
            else:
                default = text[value.start_mark.index : value.end_mark.index]
                yield Setting(name, default, comment(value) or (above if key.value == "_target_" else ""))

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(walk(root, prefix, ""))


def parent(path: Path) -> Path | None:
    """Return the file of the same group that a choice changes; None if it stands on its own."""
    for default in yaml.safe_load(path.read_text()).get("defaults", []):
        if isinstance(default, str) and (found := path.with_name(f"{default}.yaml")).is_file():
            return found
    return None


def chain(path: Path, prefix: str) -> dict[str, Setting]:
    """Return the settings of a choice by key, with those of the files that it changes."""
    above = parent(path)
    found = {} if above is None else chain(above, prefix)
    for setting in settings(path.read_text(), prefix):
        before = found.get(setting.key)
        found[setting.key] = setting if setting.meaning or before is None else setting._replace(meaning=before.meaning)
    return found


def describe(path: Path, prefix: str) -> str:
    """Return the table of a file's settings.

    Raises:
        ValueError: One has no comment.
    """
    found = chain(path, prefix).values()
    if missing := [setting.key for setting in found if not setting.meaning]:
        raise ValueError(f"{path.relative_to(ROOT)} has no comment on {', '.join(missing)}")
    rows = [(f"`{setting.key}`", f"`{setting.default}`", setting.meaning) for setting in found]
    return markdown(["key", "default", "meaning"], rows)


def page() -> str:
    """Return docs/configuration.md."""
    parts = [INTRO, "## The run: `conf/config.yaml`\n", describe(CONF / "config.yaml", "")]
    for title, folder, prefix, text in GROUPS:
        parts.append(f"\n## {title}\n\n{text}\n")
        files = sorted((CONF / folder).glob("*.yaml"))
        for path in [path for path in files if parent(path) is None]:
            parts.append(f"### `{folder}={path.stem}`\n\n{header(path.read_text())}\n\n{describe(path, prefix)}\n")
        if changed := [path for path in files if parent(path)]:
            parts.append(f"### Variants\n\n{variants(changed, folder, prefix)}")
    parts.append(f"\n## Defaults by spaces: `spaces`\n\n{SPACES}\n{tuned()}")
    for title, folder, text in PRESETS:
        rows = [(f"`{path.stem}`", header(path.read_text())) for path in sorted((CONF / folder).glob("*.yaml"))]
        parts.append(f"\n## {title}\n\n{text}\n\n{markdown(['choice', 'what it is'], rows)}")
    parts.append("\n## Other commands\n\n`doctor`, `sb3_ppo` and `throughput` have the settings of a run, too.\n")
    for path in sorted(CONF.glob("*.yaml")):
        if path.stem != "config":
            command = next(p for p in (f"scripts/{path.stem}.py", f"benchmarks/{path.stem}.py") if (ROOT / p).exists())
            parts.append(f"### `{command}`\n\n{describe(path, '')}\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n") + "\n"


def tuned() -> str:
    """Return the tables of the spaces, and of what each algorithm does otherwise for them."""
    rows = [(f"`{path.stem}`", header(path.read_text())) for path in sorted((CONF / "spaces").glob("*.yaml"))]
    parts = [markdown(["spaces", "what they are"], rows)]
    for folder in sorted((CONF / "tuned").iterdir()):
        parts.append(f"\n### `algo={folder.name}`\n")
        changed = []
        for path in sorted(folder.glob("*.yaml")):
            found = settings(path.read_text())
            if missing := [setting.key for setting in found if not setting.meaning]:
                raise ValueError(f"{path.relative_to(ROOT)} has no comment on {', '.join(missing)}")
            changed += [(f"`{path.stem}`", f"`{s.key}`", f"`{s.default}`", s.meaning) for s in found]
            changed += [(f"`{path.stem}`", "", "", header(path.read_text()))] if not found else []
        parts.append(markdown(["spaces", "key", "default", "why"], changed))
    return "\n".join(parts)


def variants(paths: list[Path], folder: str, prefix: str) -> str:
    """Return the table of the choices that change another one."""
    rows = []
    for path in paths:
        above = parent(path)
        assert above is not None
        found = settings(path.read_text(), prefix)
        changes = [f"`{setting.key.removeprefix(prefix)}={setting.default}`" for setting in found] or ["nothing"]
        rows.append((f"`{folder}={path.stem}`", f"`{above.stem}`", header(path.read_text()), ", ".join(changes)))
    return markdown(["choice", "changes", "what it is", f"in `{prefix.rstrip('.')}`"], rows)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(f"scripts/configuration.py takes no settings; leave out {' '.join(sys.argv[1:])}")
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
