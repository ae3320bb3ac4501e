"""What command lines share: how they begin, known keys, settings that are lists, errors of users in one sentence."""

import functools
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf

from asynclab import check, signals
from asynclab.config import CONF

SHOWS = {"--cfg", "-c", "--info", "-i"}  # Hydra prints this of one run and ends
CONFIGS = re.compile(r"^(\+{0,2}hydra\.searchpath|--config-(dir|path)|-c[dp]$)")  # there may be more files of groups
NEEDED = ("algo", "env", "distributed")  # groups of which a run has one file each
OPTIONAL = "tuned"  # the group of which Hydra does not say that a file is missing
SWEEPS = {"-m", "--multirun"}
PRINTS = {"--help", "-h", "--hydra-help", *SHOWS}


def configured(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Return what makes a command of a function, as ``hydra.main``: it gets ``conf/<name>.yaml`` and what was typed.

    A reader that has seen enough of what is only printed, as ``head`` has of ``--help``, is no error.
    """

    def command(function: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        run = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(function)

        @functools.wraps(function)
        def main(*config: DictConfig) -> Any:  # launchers hand one over
            words = set() if config else {word.partition("=")[0] for word in sys.argv[1:]}
            if words & SHOWS and words & SWEEPS:
                shown = (words & SHOWS).pop()
                sys.exit(f"{shown} shows one run's configuration; leave out -m, and set each to one value")
            if words & PRINTS:
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if config:
                return run(*config)
            _check_words(sys.argv[1:])
            with signals.handled([signal.SIGTERM, signal.SIGHUP], _end):  # so that nothing half done is left
                return run()

        return main

    return command


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _check_words(words: Sequence[str]) -> None:
    """Exit with a sentence where Hydra would not name the word, make a traceback of it, or pass over it."""
    for before, word in pairwise(["", *words]):
        override = _parsed(word)
        if override is None:
            is_option = word.startswith("-") or (before.startswith("-") and before not in SWEEPS)
            if "=" in word and not is_option:
                key, _, value = word.partition("=")
                quoted = f'{key}="{value}"'
                hint = f"; close its brackets, or put its text into quotes: '{quoted}'" if _parsed(quoted) else ""
                sys.exit(f"{word} cannot be read as <setting>=<value>{hint}")
            continue  # an option, or what Hydra explains
        if not override.key_or_group:
            sys.exit(f"{word} has no setting before the =")
        if not override.is_sweep_override():
            _check_choice(word, override, [other for other in words if other != word])


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _check_choice(word: str, override: Override, others: Sequence[str]) -> None:
    """Exit with a sentence where no file of a group is chosen, and Hydra would not say so."""
    group, chosen = override.key_or_group, override.value()
    root, is_optional = Path(CONF) / group, group == OPTIONAL
    if group.startswith("hydra/") and chosen is None and not override.is_delete():
        sys.exit(f"{word} chooses no file of the group {group}; leave it out for Hydra's own")
    found = root.glob("*/*.yaml" if is_optional else "*.yaml")
    files = sorted(str(path.relative_to(root).with_suffix("")) for path in found)
    if not files:
        return
    one_of = f"one of {', '.join(files)}"
    if override.is_delete():
        if group in NEEDED and not any(other.lstrip("+").startswith((f"{group}=", f"{group}.")) for other in others):
            sys.exit(f"{word} leaves out what every run has; use {group}= and {one_of}")
        return
    is_single = group in (*NEEDED, OPTIONAL)
    is_known = not is_optional or any(CONFIGS.search(other) for other in others)
    if isinstance(chosen, str):
        is_known |= "${" in chosen or chosen.removesuffix(".yaml") in files
    if not (isinstance(chosen, str) or (isinstance(chosen, list) and not is_single)) or not is_known:
        sys.exit(f"{word} is no file of the group {group}; use {f'~{group}, or ' * is_optional}{one_of}")


def check_keys(cfg: DictConfig) -> None:
    """Refuse keys that the command's file in conf/ does not have, which ``+`` can add and nobody reads."""
    path = Path(CONF) / f"{HydraConfig.get().job.config_name}.yaml"
    if path.is_file():  # else it is somebody's own, by --config-name
        _check_keys(cfg, OmegaConf.to_container(OmegaConf.load(path)), "")


def _check_keys(cfg: Any, known: Any, prefix: str) -> None:
    names = [name for name in known if prefix or name not in ("defaults", "hydra")]
    for key in cfg:
        if key not in names:
            settings = ", ".join(f"{prefix}{name}" for name in names)
            raise CompactHydraException(f"{prefix}{key} is not a setting; use one of {settings}")
        if isinstance(known[key], dict) and known[key]:  # an empty one takes anything
            _check_keys(cfg[key], known[key], f"{prefix}{key}.")


def texts(cfg: DictConfig, key: str) -> list[str] | None:
    """Return a setting that is one text or several; None if it is null."""
    value = cfg[key]
    return None if value is None else [str(v) for v in (value if OmegaConf.is_list(value) else [value])]


def counts(cfg: DictConfig, key: str) -> list[int]:
    """Return a setting that is one whole number of 1 or more, or several.

    Raises:
        ValueError: It is not.
    """
    values = list(cfg[key]) if OmegaConf.is_list(cfg[key]) else [cfg[key]]
    return [check.count(key, number) for number in values or [values]]


def folders(cfg: DictConfig) -> list[Path]:
    """Return the folders in ``runs``, which must be set."""
    found = None if OmegaConf.is_missing(cfg, "runs") else texts(cfg, "runs")
    if found is None:
        raise CompactHydraException("runs is missing: set runs=[<output folder>,...]")
    return [Path(text) for text in found]


@contextmanager
def user_errors(extra: str = "plot") -> Iterator[None]:
    """Turn a ValueError, and a package of an extra that is missing, into a sentence without a traceback."""
    try:
        yield
    except ImportError as error:
        package = str(error.name).split(".")[0]
        raise CompactHydraException(f"{package} is not installed: pip install 'asynclab[{extra}]'") from None
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
