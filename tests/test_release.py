"""What a release consists of agrees with itself, and the workflows are of things that exist."""

import re
import tomllib

import pytest
import yaml
from conftest import ROOT

from asynclab import __version__

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path):
    return yaml.safe_load(path.read_text())


def test_the_version_is_that_of_the_newest_release():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", heading).groups() for heading in headings[1:]]
    citation = load(ROOT / "CITATION.cff")
    assert releases[0] == (__version__, str(citation["date-released"]))
    assert citation["version"] == __version__
    assert releases == sorted(releases, key=lambda release: [int(n) for n in release[0].split(".")], reverse=True)


def test_there_are_workflows():
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_can_be_run(path):
    flow = load(path)
    assert set(flow) <= {"name", True, "permissions", "concurrency", "env", "jobs"}  # YAML takes "on" for true
    assert set(flow[True]) <= {"push", "pull_request", "release", "schedule", "workflow_dispatch"}
    assert flow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in flow["jobs"].values():
        assert set(job) <= {"strategy", "runs-on", "timeout-minutes", "steps", "needs"}
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1
            assert set(step) <= {"uses", "run", "with", "name"}
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
                assert target in targets


def test_every_python_that_the_project_allows_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = load(ROOT / ".github" / "workflows" / "check.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions[0] == project["requires-python"].removeprefix(">=")
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert versions == named == ["3.11", "3.12", "3.13"]


def test_forms_and_bots_can_be_read():
    assert load(ROOT / ".github" / "dependabot.yml")["version"] == 2
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= set(load(form))
    hooks = [hook["id"] for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert hooks


def test_extras_are_what_the_messages_name():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    paths = [p for part in ("asynclab/**/*.py", "scripts/*.py", "conf/**/*.yaml") for p in ROOT.glob(part)]
    sources = "".join(path.read_text() for path in paths)
    named = set(re.findall(r"asynclab\[([a-z0-9]+)\]'", sources))
    assert named <= set(extras)
    assert {"onnx", "wandb", "mlflow"} <= set(extras)
