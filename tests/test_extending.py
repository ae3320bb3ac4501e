"""docs/extending.md is run as it stands, in a folder outside of the repository."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
EXPORT = COMMANDS[1].splitlines()[0]  # lasts for the rest of the page


def shell(folder, script):
    """Run a script as a user of the page does, in that folder and with asynclab's environment; return the output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "ASYNCLAB": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    # who reads the page has installed asynclab; these tests are about this checkout of it
    command = ["bash", "-euc", script.replace("PYTHONPATH=$PWD", f"PYTHONPATH=$PWD:{ROOT}")]
    process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return the folder in which the page's package lies."""
    folder = tmp_path_factory.mktemp("outside")
    shell(folder, COMMANDS[0])
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_the_page_has_all_files():
    assert len(FILES) == 7
    assert len(COMMANDS) == 4
    assert PAGE.count("```") == 2 * (len(FILES) + len(COMMANDS))


@pytest.mark.medium
def test_an_algorithm_an_environment_and_a_mode_of_another_package_train(package):
    shell(package, COMMANDS[1])
    run = package / "runs" / "corridor"
    summary = json.loads((run / "summary.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert summary["status"] == "finished"
    assert min(summary["session_updates"]) > 0
    assert summary["mean_return"] > 0.2  # at most 0.55; random steps give -2.6
    assert (config["distributed"]["share"], config["env"]["make"]["length"]) == (0.5, 10)
    after = shell(package, f"{EXPORT}\n{COMMANDS[3]}")
    assert json.loads((run / "summary.json").read_text())["frames"] == 24_000
    assert re.search(r"return 0\.\d\d \+- .* over 20 episodes", after)
    assert re.search(r"left after \d+ steps\n", after)


@pytest.mark.medium
def test_the_doctor_finds_nothing(package):
    shell(package, f"{EXPORT}\n{COMMANDS[2]}")


def test_the_code_on_the_page_passes_the_linter(package):
    shell(package, f"ruff check --no-cache --config {ROOT}/pyproject.toml --ignore D104,I001 my_package play.py")
    shell(package, f"ruff format --no-cache --config {ROOT}/pyproject.toml --check my_package play.py")
