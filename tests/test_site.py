"""The site of make docs: strict, whole without a network, and searchable from the file system."""

import re
import shutil
import subprocess
import sys
import time

import pytest
from browser import chromium, complaints
from conftest import ROOT

pytestmark = pytest.mark.medium
THEIRS = re.compile(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=[\"']?(?:https?:)?//")  # what a page itself loads


def build(folder):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder / "site"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "asynclab"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "mkdocs.yml", folder)
    process = build(folder)
    assert process.returncode == 0, process.stderr
    return folder / "site"


def test_it_has_every_page_and_the_interface(site):
    pages = {page.relative_to(site).with_suffix(".md") for page in site.rglob("*.html")}
    assert pages >= {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    assert "HL-Gauss" in (site / "api/agents.html").read_text()


def test_it_loads_nothing_from_elsewhere(site):
    loaded = {page.name: THEIRS.findall(page.read_text()) for page in site.rglob("*.html")}
    assert not any(loaded.values()), loaded
    styles = "".join(sheet.read_text() for sheet in site.rglob("*.css"))
    assert not re.search(r"(url\(|@import )[\"']?https?:", styles)


@pytest.mark.slow
def test_a_page_without_a_place_and_broken_links_are_errors(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "asynclab").symlink_to(ROOT / "asynclab")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs" / "more.md").write_text("# No place\n\n[nowhere](nowhere.md)\n\n[no heading](runs.md#no)\n")
    process = build(tmp_path)
    assert process.returncode != 0
    assert "Aborted with 3 warnings in strict mode" in process.stdout + process.stderr
    for warning in ("  - more.md", "'nowhere.md'", "'#no'"):
        assert warning in process.stderr


def test_its_search_works_from_the_file_system(site):
    with chromium(offline=True, size=(1300, 1000)) as browser:
        browser.get((site / "index.html").as_uri())
        box = browser.find_element("css selector", "input.md-search__input")
        found, end = [], time.monotonic() + 60
        while not found and time.monotonic() < end:
            box.clear()
            box.send_keys("staleness")
            time.sleep(1)
            found = [link.text for link in browser.find_elements("css selector", ".md-search-result__link")]
        assert any("stale" in text for text in found)
        assert complaints(browser) == []
