"""What make test-lowest installs is the lowest that pyproject.toml allows."""

import re
import tomllib

from conftest import ROOT


def test_the_lowest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    bounds = {}
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)[0].lower()
        if found := re.search(r"[>=]=([\d.]+)", requirement):
            bounds[name] = found[1]
    upper_only = {"sqlalchemy", "alembic"}  # of an extra that pins what needs them
    assert set(pins) == set(bounds) | upper_only
    for name, bound in bounds.items():
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pins[name]), (name, bound, pins[name])
