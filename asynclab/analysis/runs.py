"""The runs in folders: found, read and grouped."""

import difflib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from asynclab import progress
from asynclab.analysis import curves
from asynclab.analysis.curves import Curve, Curves
from asynclab.config.settings import CHANGEABLE, key_of, settings
from asynclab.storage.folder import instead, is_locked
from asynclab.storage.names import CONFIG, FAILURE, HYDRA, METRICS, RUN, SUMMARY

# settings that may change on resume, but still tell arms apart: they change what is learned, or how fast
RELEVANT = {
    "algo.precision", "device", "distributed.diagnostics", "distributed.nodes", "distributed.num_threads", "patience",
    "stop_at",
}  # fmt: skip
# what may differ between the runs of an arm
IRRELEVANT = CHANGEABLE - RELEVANT | {"seed"}
EVALUATED = "eval.deterministic"  # changes what an evaluation means, though not what is learned
ARM = re.compile("^arm(_[a-z]+)?=")  # what a study compares, and its label
MARKS = (METRICS, RUN, CONFIG, FAILURE, HYDRA)  # any of them makes a folder a run's


class Run(NamedTuple):
    """One run.

    Attributes:
        folder: Its output folder.
        settings: All that its config sets, by dotted key.
        overrides: As typed.
        made: ``run.json``.
        summary: ``summary.json``; empty while the run goes on, or if it was killed.
        curves: What its metrics hold; empty only in what ``look`` returns.
    """

    folder: Path
    settings: dict[str, Any]
    overrides: list[str]
    made: dict[str, Any]
    summary: dict[str, Any]
    curves: Curves

    @property
    def curve(self) -> Curve:
        """The trial's curve."""
        return self.curves.trial

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Where, when and of what revision it was made: its beginning, and every time that it went on."""
        again = self.made.get("resumes")
        found = [self.made, *(again if isinstance(again, list) else [])]
        return [part for part in found if isinstance(part, dict) and part]

    @property
    def is_finished(self) -> bool:
        """Whether its budget was used up, or it was stopped for a reason that it was given (``stop_at``)."""
        return self.summary.get("status") == "finished"

    @property
    def is_simulated(self) -> bool:
        """Whether its seconds are virtual."""
        return str(self.settings.get("distributed._target_")).endswith(".Simulated")

    @property
    def budget(self) -> tuple[str, int]:
        """The environment, and the frames of all sessions together."""
        networks = self.made.get("networks")
        if networks is None:  # of an older version
            networks = self.made["max_session"] if self.settings["distributed._target_"].endswith(".Off") else 1
        return self.settings["env.id"], networks * self.settings["env.max_frame"]

    @property
    def cores(self) -> int:
        """How many cores its sessions could keep busy."""
        processes = self.made.get("processes")
        if processes is None:  # of an older version
            processes = 1 if self.is_simulated else self.made["max_session"]
        threads = processes * self.settings["distributed.num_threads"]
        return min(threads, self.made["machine"]["cores"])


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file of a run holds.

    Raises:
        ValueError: It is not there, or damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except OSError:
        raise ValueError(f"{path.name} is missing") from None
    except (ValueError, TypeError):
        raise ValueError(f"{path.name} is damaged") from None


def read_settings(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run by dotted key.

    Args:
        folder: Its output folder.
        made: ``run.json``: how many sessions, nodes and threads there were, if the config left that to the machine.

    Raises:
        ValueError: ``config.yaml`` is missing or damaged.
    """
    try:
        found = dict(settings(OmegaConf.to_container(OmegaConf.load(folder / CONFIG))))
    except FileNotFoundError:
        raise ValueError("config.yaml is missing") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"config.yaml is damaged ({str(error).splitlines()[0]})") from None
    decided = {key: made[key] for key in ("max_session", "nodes", "num_threads") if key in made}
    return found | {f"distributed.{key}": value for key, value in decided.items()}


def find(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the output folders of all runs in a folder, however deep: in a run, a sweep, or ``outputs`` itself.

    And a sentence on every folder in it that cannot be read.

    Raises:
        ValueError: The folder does not exist, or there is no run in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder{instead(folder)}")
    notes: list[str] = []
    found = list(_walk(folder, notes))
    if not found:
        raise ValueError(" ".join([f"{folder} has no run in it", *(f"({note.rstrip('.')})" for note in notes)]))
    return found, notes


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, but for hidden ones and links to where we may not look."""
    return sorted(path for path in folder.iterdir() if os.path.isdir(path) and not path.name.startswith("."))  # noqa: PTH112


def _walk(folder: Path, notes: list[str]) -> Iterator[Path]:
    try:
        if any((folder / name).exists() for name in MARKS):
            yield folder
            return
        above = {folder.resolve(), *folder.resolve().parents}
        paths = subfolders(folder)
    except OSError as error:  # not ours to read, or gone meanwhile
        notes.append(f"{folder} cannot be read: {error.strerror}.")
        return
    for path in paths:
        if path.resolve() not in above:  # a link upwards
            yield from _walk(path, notes)


def load(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in folders as far as they can be read, and a sentence on everything that is not as it should be.

    Raises:
        ValueError: There is none.
    """
    paths, notes = find_all(folders)
    found: list[Run] = []
    for name, path in progress.counted(paths.items(), "runs read"):
        try:
            run, problems = read(path)
        except (ValueError, OSError) as error:
            notes.append(f"{name} is left out: {_failure(path) or error}.")
            continue
        found.append(run)
        notes += [f"{name}: {problem}." for problem in problems]
    if not found:
        raise ValueError(" ".join(["there is no run to draw.", *notes]))
    return found, notes


def find_all(folders: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Return the output folders of all runs in folders by a short name, and a sentence on every folder without any."""
    notes, paths = list[str](), dict[Path, Path]()
    for folder in folders:
        try:
            found, unreadable = find(folder)
        except ValueError as error:
            notes.append(f"{error}.")
            continue
        for path in found:
            paths.setdefault(path.resolve(), path)  # each once, by whatever way it is reached
        notes += unreadable
    return dict(zip(short_names(list(paths)), paths.values(), strict=True)), notes


def look(folder: Path) -> tuple[Run, list[str]]:
    """Return a run of which there may be little more than the folder, and all that is wrong with it."""
    try:
        return read(folder)
    except (ValueError, OSError) as error:
        nothing = Curve(*np.empty((4, 0)))
        run, problems = _read(folder, Curves(nothing, {}, nothing, np.empty(0)))
        if reason := _failure(folder):
            return run, [reason]
        if run.made or (folder / METRICS).exists():
            return run, [str(error).replace(f"{folder} ", "it "), *problems]
        return run, ["it has not begun to train" if is_locked(folder) else "it ended before training, without a reason"]


def read(folder: Path) -> tuple[Run, list[str]]:
    """Return a run as far as it is known, and what is not.

    Raises:
        ValueError: It has no curve (``curves.read``).
    """
    return _read(folder, curves.read(folder))


def _failure(folder: Path) -> str | None:
    """Return why a job of a sweep failed; None if it did not, or left no reason."""
    try:
        return f"it failed: {read_json(folder / FAILURE)['error']}".rstrip(".")
    except (ValueError, KeyError):
        return None


def _read(folder: Path, found: Curves) -> tuple[Run, list[str]]:
    problems: list[str] = []

    def known(reader: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return reader()
        except ValueError as error:
            problems.append(str(error))
            return {}

    made = known(lambda: read_json(folder / RUN))
    config = known(lambda: read_settings(folder, made))
    summary = {}
    if (folder / SUMMARY).exists():
        summary = known(lambda: read_json(folder / SUMMARY))
        if summary and summary.get("status") != "finished":
            why = _failure(folder) or f"its status is {summary.get('status')}"
            problems.append(f"{why} (resume=auto continues it)")
    elif is_locked(folder):
        problems.append("it still runs")
    else:
        why = _failure(folder) or "it has no summary.json, so it was killed"
        problems.append(f"{why} (resume=auto continues it)")
    typed = made.get("overrides")
    overrides = [o for o in typed if isinstance(o, str)] if isinstance(typed, list) else []
    return Run(folder, config, overrides, made, summary, found), problems


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return for every path what tells it from the others: the path without the folders that all have in common.

    Of a single one, the last two parts: the name of an output folder is often but a time.
    """
    parts = [path.resolve().parts for path in paths]
    common = min((len(p) for p in parts), default=0) - (2 if len(parts) == 1 else 1)
    while len({p[:common] for p in parts}) > 1:
        common -= 1
    return ["/".join(p[common:]) for p in parts]


def relevant(run: Run) -> str:
    """Return what two runs must have in common to be repetitions of each other, as text."""
    known = {key: _alike(value) for key, value in run.settings.items() if key not in IRRELEVANT and value is not None}
    return json.dumps(known, sort_keys=True)


def _alike(value: Any) -> Any:
    """Return a setting's value as it compares with others: 1 is 1.0, and null is what an older version did not have."""
    if isinstance(value, list):
        return [_alike(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def complete(runs: Sequence[Run]) -> list[Run]:
    """Return the runs of a group that say most of it: those that are finished or, if none is, all."""
    return [run for run in runs if run.is_finished] or list(runs)


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each arm by its label, in order of their seeds.

    A label is what was typed for the arm and not for all: ``a3c_4`` of ``arm=a3c_4``, ``algo=a2c`` as it is.  Where
    that is the same for arms that differ (the YAML was changed in between), the settings that differ are added.
    """
    arms: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        arms[relevant(run)].append(run)
    members = list(arms.values())
    typed = [[o for o in arm[0].overrides if _key(o) not in IRRELEVANT] for arm in members]
    labels = [", ".join(ARM.sub("", o) for o in mine if not all(o in other for other in typed)) for mine in typed]
    if len(members) == 1:
        labels = [next((ARM.sub("", o) for o in typed[0] if ARM.match(o)), "all runs")]
    labelled: dict[str, list[Run]] = {}
    for label, arm in zip(labels, members, strict=True):
        alike = [other[0] for name, other in zip(labels, members, strict=True) if name == label]
        differ = [
            f"{key}={value}"
            for key, value in arm[0].settings.items()
            if key not in IRRELEVANT and any(_alike(other.settings.get(key)) != _alike(value) for other in alike)
        ]
        name = ", ".join([label, *differ] if label else differ) or "the rest"
        labelled[name if name not in labelled else f"{name} ({arm[0].folder.name})"] = _by_seed(arm)
    return labelled


def group_by(runs: Sequence[Run], keys: Sequence[str]) -> tuple[dict[str, list[Run]], list[str]]:
    """Return the runs by the values of some keys, in order of these values, and sentences on what a group mixes.

    Args:
        runs: To be grouped.
        keys: Settings (``algo.optimizer.lr``) or groups of the config (``algo``, ``arm``), typed or chosen by others.

    Raises:
        ValueError: No run has such a key.
    """
    chosen = {run.folder: choices(run.folder) for run in runs} if any("." not in key for key in keys) else {}
    for key in keys:
        known = dict.fromkeys(
            k for run in runs for k in [*run.settings, *map(_key, run.overrides), *chosen.get(run.folder, {})]
        )
        if key not in known:
            close = [k for k in known if k.endswith(f".{key}")] or difflib.get_close_matches(key, known)
            advice = f"; use {' or '.join(close[:3])}" * bool(close)
            raise ValueError(f"group={key} is a setting of no run{advice}")
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(_value(run, key, chosen.get(run.folder, {})) for key in keys)].append(run)
    labelled, notes = {}, []
    for values in sorted(groups, key=lambda values: [_order(value) for value in values]):
        label = ", ".join(f"{key}={_text(value)}" for key, value in zip(keys, values, strict=True))
        members = labelled[label] = _by_seed(groups[values])
        if len({relevant(run) for run in members}) > 1:
            differ = [
                key
                for key in dict.fromkeys(k for run in members for k in run.settings)
                if key not in IRRELEVANT and len({str(run.settings.get(key)) for run in members}) > 1
            ]
            more = f" and {len(differ) - 3} more" * (len(differ) > 3)
            notes.append(f"The runs of {label} differ in more than their seeds: {', '.join(differ[:3])}{more}.")
    return labelled, notes


def groups_of(runs: Sequence[Run], keys: Sequence[str] | None = None) -> tuple[dict[str, list[Run]], list[str]]:
    """Return the runs by ``keys`` or, without any, in arms, never two environments in one; and sentences on them.

    Raises:
        ValueError: No run has such a key.
    """
    known = [run for run in runs if run.settings]
    notes: list[str] = []
    several = len({run.settings.get("env.id") for run in known}) > 1
    if keys is None:
        groups = _evaluated_alike(group(known)) if known else {}
    else:
        groups, notes = group_by(known, [*keys, *["env.id"] * (several and "env.id" not in keys)])
    notes += [note for label, members in groups.items() for note in _mixed(label, members)]
    names = short_names([run.folder for run in runs])
    groups |= {  # who knows what they repeat
        name: [run] for name, run in zip(names, runs, strict=True) if not run.settings
    }
    if several:
        notes.append("The runs are of several environments, whose returns cannot be compared.")
    return groups, notes


def _evaluated_alike(groups: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Return the groups, those apart whose evaluations differ in what the policy did: they have no common mean."""
    split: dict[str, list[Run]] = {}
    for label, members in groups.items():
        ways = _ways(members)
        for way in ways if len(ways) > 1 else [None]:
            mine = [run for run in members if way in (None, _way(run))]
            split[label if way is None else f"{label}, {EVALUATED}={way}"] = mine
    return split


def _mixed(label: str, members: Sequence[Run]) -> Iterator[str]:
    """Yield sentences on what runs that are taken together should have in common."""
    budgets = dict.fromkeys(_text(run.settings.get("env.max_frame")) for run in members)
    if len(budgets) > 1:
        yield f"The runs of {label} have different budgets: env.max_frame is {' and '.join(budgets)}."
    if len(ways := _ways(members)) > 1:
        yield f"The runs of {label} were evaluated in different ways: {EVALUATED} is {' and '.join(ways)}."


def _ways(members: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(_way(run) for run in members if run.settings.get("eval.every") is not None))


def _way(run: Run) -> str:
    """Return whether the best actions are played, as it is set, else as the agent has it, and where, if elsewhere."""
    typed = run.settings.get(EVALUATED)
    elsewhere = {k: v for k, v in run.settings.items() if k == "eval.id" or k.startswith("eval.make.")}
    where = [f"{key}={value}" for key, value in elsewhere.items() if value is not None]
    return ", ".join([_text(run.made.get("deterministic") if typed is None else typed), *where])


def _key(override: str) -> str:
    """Return the setting or the group that an override is about; what stands before "=" if Hydra cannot read it."""
    try:
        return key_of(override)
    except HydraException:
        return override.partition("=")[0]


def _by_seed(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.settings.get("seed", 0))


def choices(folder: Path) -> dict[str, str]:
    """Return what was chosen of each group when a run began, such as ``{"algo": "a3c"}``; empty if that is not known.

    Later commands that let it go on may have had other choices, which counted for nothing.
    """
    for path in (folder / HYDRA / "hydra.yaml", *sorted((folder / HYDRA).glob("*/hydra.yaml"))):
        try:
            found = OmegaConf.load(path).hydra.runtime.choices
        except (OSError, UnicodeDecodeError, AttributeError, YAMLError, OmegaConfBaseException):
            continue
        return {
            group: str(name) for group, name in found.items() if name is not None and not group.startswith("hydra/")
        }
    return {}


def _value(run: Run, key: str, chosen: Mapping[str, str]) -> Any:
    if key in run.settings:
        value = run.settings[key]
        return json.dumps(value) if isinstance(value, list) else value  # groups are told apart by it
    if key in chosen:
        return chosen[key]
    typed = [override.partition("=")[2] for override in run.overrides if _key(override) == key]
    return typed[-1] if typed else None


def _order(value: Any) -> tuple[bool, float, str]:
    """Return by what values are sorted: numbers by size, before everything else."""
    is_number = isinstance(value, (int, float))
    return not is_number, value if is_number else 0.0, str(value)


def _text(value: Any) -> str:
    return "unset" if value is None else str(value)
