"""The one command: asynclab train, asynclab evaluate, and so on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
from conftest import ROOT

from asynclab import __main__ as command
from asynclab import progress
from asynclab.__main__ import COMMANDS

ASYNCLAB = [sys.executable, "-m", "asynclab"]


def asynclab(*typed, line=None, cwd=ROOT):
    env = os.environ | {"PYTHONPATH": str(ROOT)} | ({} if line is None else {"COMP_LINE": line})
    return subprocess.run([*ASYNCLAB, *typed], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_help_lists_every_command_with_a_line():
    process = asynclab("--help")
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", process.stdout.partition("asynclab train")[0], re.MULTILINE))
    assert listed == COMMANDS
    assert process.stdout == asynclab().stdout


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"train"}))
def test_help_of_a_command_has_its_settings_with_their_meaning(name):
    process = asynclab(name, "--help")
    assert process.stdout.startswith(f"asynclab {name}: {COMMANDS[name]}\n")
    settings = process.stdout.partition("key=value\n\n")[2].splitlines()
    assert settings
    assert all(re.fullmatch(r"[\w ]+:.*  # \S.*", line) for line in settings), settings
    if name in ("doctor", "benchmark"):
        assert "any setting of asynclab train" in process.stdout
    if name == "play":
        assert "\nasynclab play [agent of the zoo, or output folder]: settings, as key=value\n" in process.stdout
        assert [line.partition(" #")[0].strip() for line in settings if re.match("run|episodes|video", line)] == [
            "run: zoo/pong_fast", "episodes: 1", "video: true",
        ]  # fmt: skip


def test_help_of_train_is_ours():
    process = asynclab("train", "--help")
    assert process.stdout.startswith("Train an agent: ")
    assert len(re.findall(r"^  asynclab train ", process.stdout, re.MULTILINE)) == 5
    assert "\nalgo: a2c, a3c, dqn, nstep_q, ppo, sac\n" in process.stdout
    assert "docs/configuration.md" in process.stdout
    assert "_target_" not in process.stdout
    for page in re.findall(r"docs/\S+\.md", process.stdout):
        assert (ROOT / page).is_file()
    assert all(len(line) <= 130 for line in process.stdout.splitlines() if not re.match(r"\w+(/\w+)?: ", line))


@pytest.mark.parametrize(
    "typed",
    [["train.py", "--help"], ["train.py", "env=cartpole", "--cfg=job"], ["scripts/export.py", "-h"],
     ["benchmarks/throughput.py", "-c", "job"]],
)  # fmt: skip
def test_a_reader_that_has_seen_enough_of_what_is_only_printed_is_no_error(typed):
    command = [sys.executable, *typed]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as head does after its lines
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("shown", ["--cfg=job", "-c job", "--info"])
def test_a_sweep_has_no_one_configuration_to_show(shown):
    process = asynclab("train", "-m", "env=cartpole", "seed=0,1", *shown.split())
    assert process.returncode == 1
    assert process.stderr == (
        f"{re.split('[ =]', shown)[0]} shows one run's configuration; leave out -m, and set each to one value\n"
    )


def test_what_is_no_command_is_said_with_what_is():
    process = asynclab("evalute", "run=x")
    assert process.returncode == 1
    assert process.stderr == (
        "asynclab evalute is not a command; did you mean asynclab evaluate? asynclab --help lists them\n"
    )


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("asynclab ", list(COMMANDS)),
        ("asynclab pl", ["play", "plot"]),
        ("asynclab train alg", ["algo", "algo."]),
        ("asynclab train algo=s", ["algo=sac"]),
        ("asynclab train algo=a3c env=cart", ["env=cartpole"]),
        ("asynclab evaluate epi", ["episodes="]),
        ("asynclab play epi", ["episodes="]),
        ("asynclab doctor inj", ["inject="]),
        ("asynclab nothing x", []),
    ],
)
def test_tab_completes_commands_and_settings(typed, completed):
    assert asynclab("-sc", "query=bash", line=typed).stdout.split() == completed


def test_bash_completes(tmp_path):
    program = tmp_path / "asynclab"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "asynclab" / "__main__.py"} "$@"\n')
    program.chmod(0o755)
    code = 'eval "$(asynclab -sc install=bash)"; COMP_LINE="asynclab train env=cart" COMP_CWORD=2 COMP_POINT=23'
    code += '; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.run(["bash", "-c", code], env=env, capture_output=True, text=True, check=True)
    assert process.stdout == "env=cartpole\n", process.stderr


@pytest.mark.medium
def test_commands_are_those_of_the_scripts(tmp_path):
    for name, *settings in [("doctor", "--inject=help"), ("study", "sweep=nowhere")]:
        ours = asynclab(name, *settings, cwd=tmp_path)
        theirs = commands.run(f"scripts/{name}.py", *settings, cwd=tmp_path)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


@pytest.mark.medium
def test_play_films_an_agent_of_the_zoo(tmp_path):
    process = asynclab("play", "a3c_cartpole", "video=false", "deterministic=true", cwd=tmp_path)
    assert process.stdout.startswith("return 500.00 of "), process.stderr


def test_play_takes_a_name_a_folder_or_the_best(tmp_path, monkeypatch):
    film = ["episodes=1", "video=true"]
    monkeypatch.chdir(ROOT)
    assert command._play([]) == ["run=zoo/pong_fast", *film]
    assert command._play(["a3c_cartpole", "seed=3"]) == ["run=zoo/a3c_cartpole", *film, "seed=3"]
    assert command._play(["run=x"]) == [*film, "run=x"]
    with pytest.raises(SystemExit, match="mspacman is no folder, and no agent of the zoo: a3c_cartpole, "):
        command._play(["mspacman"])
    monkeypatch.chdir(tmp_path)
    Path("out puts/x").mkdir(parents=True)
    assert command._play(["out puts/x"]) == ['run="out puts/x"', *film]
    monkeypatch.setattr(command, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="there is no zoo here; name what is to be played"):
        command._play([])


def test_progress_is_a_line_every_while_on_what_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    said, end = "", time.monotonic() + 30
    for item in progress.counted(["a", "b"], "episodes"):
        while item == "b" and "1 of 2" not in said and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert re.search(r"^1 of 2 episodes in 0:00:\d\d, 0:00:\d\d left$", said, re.MULTILINE)
    with progress.shown("making the film"):
        time.sleep(0.1)
    assert "making the film: 0:00:00\n" in capsys.readouterr().err


def test_what_is_quick_shows_no_progress(capsys):
    assert list(progress.counted(["a", "b"], "episodes")) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_what_ends_early_shows_no_more(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with pytest.raises(KeyboardInterrupt), progress.shown("episodes", 3):
        raise KeyboardInterrupt
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_every_command_is_in_the_wheel_but_the_benchmark():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert set(COMMANDS) - scripts == {"train", "play", "benchmark"}
    assert Path(ROOT / "benchmarks" / "throughput.py").is_file()
