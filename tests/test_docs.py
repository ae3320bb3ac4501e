"""The docs are true: their commands run, their messages are the program's, their links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from conftest import ROOT, copy_checkout

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TROUBLES = re.findall(
    r"^### (.*)\nExample: `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing


def test_there_are_troubles():
    assert len(TROUBLES) >= 8


@pytest.mark.medium
@pytest.mark.parametrize(("message", "command"), TROUBLES)
def test_the_example_of_a_trouble_shows_its_message(message, command, tmp_path):
    python, script, *overrides = shlex.split(command)
    assert python == "python"
    process = run(script, *overrides, cwd=tmp_path)
    assert process.returncode != 0
    assert message in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


# What a reader types is made short.  The later of two settings counts, so these stand behind the reader's own.
SHORT = [
    (r"train(\.py)?\b(?!.*resume=outputs)(?!.*study)", "env.max_frame=20_000 distributed.max_session=2 log_every=0.2"),
    (
        r"(train(\.py)?|throughput.py)\b(?!.*resume=outputs).*(env=pong|_pong)",
        "env.max_frame=10_000 env.num_envs=2",  # enough for episodes to end, or there is nothing to draw
    ),
    (r"(train(\.py)?|throughput.py)\b.*algo=sac", "env.max_frame=1_100 env.num_envs=2 algo.memory.start=1_000"),
    (r"train\.py .*init_from=zoo/a3c_cartpole", "env.max_frame=80_000"),  # 100 episodes have to end, for a best one
    (r"train\.py .*resume=outputs", "env.max_frame=10_500"),
    (r"train\.py -m .*seed=(0,1,2|range)", "seed=0,1"),
    (r"train\.py -m .*lr=1e-4,", "algo.optimizer.lr=1e-4,5e-3"),
    (r"train\.py -m .*seed=100", "seed=100"),
    (r"train\.py -m .*(optuna|tune_cartpole$|n_trials)", "hydra.sweeper.n_trials=2"),
    (r"train\.py -m .*submitit_slurm", "hydra/launcher=submitit_local"),  # there is no Slurm here
    (r"train\.py -m .*study_cartpole", "env.max_frame=4_000 seed=0 arm=a3c_2,ppo"),
    (r"throughput\.py", "'sessions=[1]' repeats=1 seconds=0.5"),
    (r"doctor\.py", "frames=200"),
    (r"export\.py", "episodes=1"),
]


def commands(page):
    """Return the commands of a page in their order, without comments, and with lines joined that go on."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip()]


def short(command):
    """Return a command with settings behind it that make it short."""
    if command == "make train":
        command = "make train ARGS='algo=a3c env=cartpole distributed.max_session=2'"
    if command.startswith("make play"):
        return command.replace("make", "make -o .venv/.ready", 1)
    settings = "".join(f" {more}" for pattern, more in SHORT if re.search(pattern, command))
    if found := re.fullmatch(r"make train ARGS=(.)(.*)\1", command):
        return f"make -o .venv/.ready train ARGS={found[1]}{found[2]}{settings}{found[1]}"
    return command + settings


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Return a function that types a command in a copy of this checkout, where those before have left their runs."""
    folder = tmp_path_factory.mktemp("reader") / "asynclab"
    copy_checkout(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def newest(match):
        runs = [run for run in (folder / match[1]).iterdir() if run.is_dir()]
        return str(max(runs, key=lambda run: run.name).relative_to(folder))

    def run(command):
        command = re.sub(r"([\w/]+)/<time>", newest, command)
        for name in re.findall(r"outputs/(?:first|second)", command):
            shutil.copytree(folder / newest(["", "outputs/a3c_cartpole_synced"]), folder / name)
        return subprocess.run(
            ["bash", "-c", command], cwd=folder, env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)},
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        c
        for page in ("README.md", "docs/runs.md", "docs/tutorial.md", "docs/sweeps.md", "docs/tensorboard.md")
        for c in commands(ROOT / page)
    ],
)
def test_commands_run(command, reader):
    if "cpus_per_task" in command:
        pytest.skip("needs Slurm")
    if "screenshots" in command and shutil.which("chromedriver") is None:
        pytest.skip("needs a browser")
    if command.startswith("tensorboard"):
        command = f"timeout --foreground --preserve-status 20 {command} --port 0"  # it serves until it is ended
    process = reader(short(command))
    expected = 1 if "--inject" in command else 0  # an error is planted, and found
    assert process.returncode == expected, process.stdout + process.stderr
