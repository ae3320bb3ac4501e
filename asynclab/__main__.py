"""The one command: ``asynclab train algo=a3c env=pong``; ``asynclab --help`` lists what else there is."""

import difflib
import os
import re
import shlex
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from asynclab import __version__

COMMANDS = {
    "train": "train an agent, or try several settings (-m)",
    "evaluate": "play what a run has trained: returns with an interval, and videos",
    "play": "play and film an agent of the zoo, or of a run",
    "plot": "draw the learning curves of runs, sessions, and groups of runs",
    "report": "make one HTML page on runs",
    "study": "turn a sweep into a table and a figure, with intervals over seeds",
    "doctor": "check a configuration in seconds, without training",
    "benchmark": "measure how fast a configuration is here",
    "export": "keep an agent: as a small folder, or as ONNX or TorchScript for other programs",
    "replay": "repeat a recorded run to the bit",
    "timing": "measure a run for distributed=simulated",
    "film": "make a GIF of recorded episodes",
}
HELP = """asynclab {version}: asynchronous (Hogwild!) deep reinforcement learning

{commands}

  asynclab train algo=a3c env=cartpole distributed.max_session=2
  asynclab evaluate run=outputs/a3c_cartpole_synced/<time> episodes=10

asynclab <command> --help has its settings.  Tab completion in bash (zsh and fish likewise):

  eval "$(asynclab -sc install=bash)"
"""
COMPLETION = ("-sc", "--shell-completion")
BEST = "pong_fast"  # agent of the zoo, for play
PLAY = {"episodes": "1", "video": "true"}  # settings of evaluate that play has otherwise
FILES = {"benchmark": "benchmarks/throughput.py"}  # where it is not scripts/<command>.py
ROOT = Path(__file__).parents[1]  # of a checkout


def main() -> None:
    """Run the command that was typed."""
    program, *typed = sys.argv
    name, *settings = typed or ["--help"]
    if name in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {command:<{width}}  {line}" for command, line in COMMANDS.items())
        print(HELP.format(version=__version__, commands=commands), end="")
    elif name == "--version":
        print(__version__)
    elif name in COMPLETION:
        _complete(program, settings)
    elif name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        guess = f"; did you mean asynclab {close[0]}?" if close else ""
        sys.exit(f"asynclab {name} is not a command{guess} asynclab --help lists them")
    elif name != "train" and {"--help", "-h"} & set(settings):
        print(_help(name), end="")
    else:
        _run(program, name, settings)


def _run(program: str, name: str, settings: list[str]) -> None:
    """Run a command as its script does; it is called ``asynclab-<command>`` in what it writes and says."""
    if name == "play":
        name, settings = "evaluate", _play(settings)
    sys.argv[:] = [str(Path(program).with_name(f"asynclab-{name}")), *settings]
    if name == "train":
        from asynclab.main import main as command
    else:
        command = _load(name).main
    command()


def _load(name: str) -> ModuleType:
    """Return the script of a command."""
    path = _path(name)
    sys.path.append(str(path.parent))  # a benchmark has its parts beside it
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _path(name: str) -> Path:
    """Return where the script of a command lies: in a checkout, or in an installed wheel."""
    file = Path(FILES.get(name, f"scripts/{name}.py"))
    for path in (ROOT / file, Path(__file__).parent / file):
        if path.is_file():
            return path
    sys.exit(f"asynclab {name} needs {file} of a checkout, which an installed wheel does not have")


def _help(name: str) -> str:
    """Return what a command does, and its settings as their file in ``conf`` explains them."""
    from asynclab import config

    text = (Path(config.CONF) / f"{_path('evaluate' if name == 'play' else name).stem}.yaml").read_text()
    own = text.partition("\n\n")[2].partition("\nhydra:")[0].strip()
    shared = "any setting of asynclab train, and these" if "env:" in text else "settings"
    if name == "play":
        shared = "asynclab play [agent of the zoo, or output folder]: settings"
        for key, value in {"run": f"zoo/{BEST}", **PLAY}.items():
            own = re.sub(rf"^({key}: )\S+", rf"\g<1>{value}", own, flags=re.MULTILINE)
    return f"asynclab {name}: {COMMANDS[name]}\n\n{shared}, as key=value\n\n{own}\n"


def _play(settings: list[str]) -> list[str]:
    """Return the settings with which an agent is evaluated to be seen; the first may name it."""
    from asynclab.storage.folder import agents
    from asynclab.text import override

    zoo = ROOT / "zoo"
    found = agents(zoo)
    play = [f"{key}={value}" for key, value in PLAY.items()]
    if settings and "=" not in settings[0] and not settings[0].startswith("-"):
        agent, *settings = settings
        run = zoo / agent if agent in found else Path(agent)
        if not run.exists():
            sys.exit(f"{agent} is no folder, and no agent of the zoo" + f": {', '.join(found)}" * bool(found))
    elif any(setting.startswith("run=") for setting in settings):
        return [*play, *settings]
    elif found:
        run = zoo / (BEST if BEST in found else found[0])
    else:
        sys.exit("there is no zoo here; name what is to be played: asynclab play <output folder>")
    return [*shlex.split(override("run", run)), *play, *settings]


def _complete(program: str, settings: list[str]) -> None:
    """Let Hydra complete the settings of a command; the commands' names are completed here."""
    if not any(setting.startswith("query=") for setting in settings):  # install or uninstall
        from asynclab.main import main as train

        sys.argv[:] = [program, COMPLETION[0], *settings]
        train()
        return
    line = os.environ.get("COMP_LINE", "")
    _, name, *more = [*line.split(), *[""] * line.endswith(" ")]
    if not more:
        print(" ".join(command for command in COMMANDS if command.startswith(name)))
    elif name in COMMANDS:
        os.environ["COMP_LINE"] = line.split(maxsplit=1)[1]  # Hydra leaves out the first word
        _run(program, "evaluate" if name == "play" else name, [COMPLETION[0], *settings])


if __name__ == "__main__":
    main()
