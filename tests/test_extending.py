"""docs/extending.md is run as it stands, outside of the repository, with asynclab installed from its wheel."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, copy_checkout

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
EXPORT = COMMANDS[1].splitlines()[0]  # lasts for the rest of the page


def shell(folder, script, *paths):
    """Run a script in a folder, with commands from ``paths`` before those of this environment; return the output."""
    path = ":".join(map(str, (*paths, Path(sys.executable).parent, os.environ["PATH"])))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["bash", "-euc", script]
    process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the built wheel; it is built of a copy, because a build leaves files that would be in the next one."""
    folder = tmp_path_factory.mktemp("build")
    copy_checkout(folder / "copy")
    (folder / "build.log").write_text(shell(folder, "python -m build --wheel --no-isolation --outdir . copy 2>&1"))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bin(wheel, tmp_path_factory):
    """Return the folder of commands of an environment that has the wheel, and besides it other people's packages."""
    folder = tmp_path_factory.mktemp("environment")
    shell(folder, "python -m venv --without-pip .")
    (packages,) = folder.glob("lib/python*/site-packages")
    shell(folder, f"pip --python bin/python install --no-deps --no-index {wheel}")
    (packages / "theirs.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files, as ours, are not followed
    return folder / "bin"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return the folder in which the page's package lies."""
    folder = tmp_path_factory.mktemp("outside")
    shell(folder, COMMANDS[0])
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.medium
def test_the_wheel_has_all_configs_and_commands_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = {str(path.relative_to(ROOT)) for path in (*ROOT.glob("conf/**/*.yaml"), *ROOT.glob("scripts/*.py"))}
    assert {f"asynclab/{name}" for name in files} <= set(names)
    pages = {str(path.relative_to(ROOT)) for path in ROOT.glob("asynclab/**/*.html")}
    assert {"asynclab/analysis/template.html"} <= pages <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"asynclab"}
    assert "Package would be ignored" not in (wheel.parent / "build.log").read_text()  # will be an error


@pytest.mark.medium
def test_the_environment_has_this_wheel_and_no_checkout(package, bin):
    where = shell(package, "python -c 'import asynclab; print(asynclab.__file__)'", bin)
    assert Path(where.strip()).is_relative_to(bin.parent)


def test_the_page_has_all_files():
    assert len(FILES) == 7
    assert len(COMMANDS) == 4
    assert PAGE.count("```") == 2 * (len(FILES) + len(COMMANDS))


@pytest.mark.slow
def test_an_algorithm_an_environment_and_a_mode_of_another_package_train(package, bin):
    shell(package, COMMANDS[1], bin)
    run = package / "runs" / "corridor"
    summary = json.loads((run / "summary.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert summary["status"] == "finished"
    assert min(summary["session_updates"]) > 0
    assert summary["mean_return"] > 0.2  # at most 0.55; random steps give -2.6
    assert (config["distributed"]["share"], config["env"]["make"]["length"]) == (0.5, 10)
    after = shell(package, f"{EXPORT}\n{COMMANDS[3]}", bin)
    assert json.loads((run / "summary.json").read_text())["frames"] == 24_000
    report = (run / "report.html").read_text()
    assert all(choice in report for choice in ("algo=reinforce", "env=corridor", "distributed=sparse"))
    assert (run / "curve.png").stat().st_size > 10_000
    assert re.search(r"return 0\.\d\d \+- .* over 20 episodes", after)
    assert re.search(r"left after \d+ steps\n", after)


@pytest.mark.medium
def test_the_doctor_finds_nothing(package, bin):
    shell(package, f"{EXPORT}\n{COMMANDS[2]}", bin)


def test_the_code_on_the_page_passes_the_linter(package):
    shell(package, f"ruff check --no-cache --config {ROOT}/pyproject.toml --ignore D104,I001 my_package play.py")
    shell(package, f"ruff format --no-cache --config {ROOT}/pyproject.toml --check my_package play.py")
