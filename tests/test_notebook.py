"""The notebook of docs/ runs from its first cell to its last, and the site shows what came of it."""

import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "docs" / "notebooks" / "hogwild.ipynb"


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    """Return what a cell has printed and what its value is, as text."""
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def check(notebook):
    """Check what the cells show: that the agents play, that gradients are stale, and that there are pictures."""
    trained, _, curve, staleness, callback, played, picture = code(notebook)
    assert "finished: mean return" in printed(trained)
    assert re.search(r"100,000 frames, staleness [01]\.\d\d", printed(callback))
    learned, best = map(float, re.search(r"\((.*), (.*)\)", printed(played)).groups())
    assert learned >= 50
    assert best == 500
    assert all("image/png" in cell.outputs[-1].data for cell in (curve, staleness, picture))


def test_its_outputs_are_those_of_a_whole_run():
    notebook = nbformat.read(NOTEBOOK, 4)
    check(notebook)
    assert [cell.execution_count for cell in code(notebook)] == [1, 2, 3, 4, 5, 6, 7]
    assert str(ROOT.parent) not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 200_000


@pytest.mark.slow
def test_it_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(notebook)
