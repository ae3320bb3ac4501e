"""docs/configuration.md has every setting, with the default that it really has."""

import inspect
import runpy
from pkgutil import resolve_name

import pytest
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asynclab import config
from asynclab.agents import SAC, make_sac
from asynclab.config.settings import settings

config.register()
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "configuration.py"))
GROUPS = {"algo": "algo.", "algo/optimizer": "algo.optimizer.", "env": "env.", "distributed": "distributed.",
          "distributed/timing": "distributed.timing."}  # fmt: skip
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


def composed(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return dict(settings(OmegaConf.to_container(compose(name, list(overrides)))))


def documented(group, choice):
    """Return what the page says of a choice: defaults by key."""
    rows = SCRIPT["chain"](ROOT / "conf" / group / f"{choice}.yaml", GROUPS.get(group, ""))
    return {key: yaml.safe_load(setting.default) for key, setting in rows.items()}


def targets(content):
    """Yield every target in a config with its arguments."""
    if isinstance(content, dict):
        if "_target_" in content:
            yield resolve_name(content["_target_"]), set(content) - {"_target_", "_partial_"}
        for value in content.values():
            yield from targets(value)


def test_the_page_is_up_to_date():
    assert SCRIPT["page"]() == SCRIPT["PAGE"].read_text(), "run python scripts/configuration.py"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_setting_of_a_choice_is_documented_with_its_default(group, choice):
    page, prefix = documented(group, choice), GROUPS[group]
    mode = ["distributed=simulated"] if group == "distributed/timing" else []
    found = {k: v for k, v in composed("config", "~tuned", *mode, f"{group}={choice}").items() if k.startswith(prefix)}
    found = {k: v for k, v in found.items() if not k.endswith("._partial_")}
    if group == "algo":  # what the optimizer's own choice says
        found = {k: v for k, v in found.items() if k in page or not k.startswith("algo.optimizer.")}
    if group == "distributed":  # what the timing's own choice says
        found = {k: v for k, v in found.items() if k in page or not k.startswith("distributed.timing.")}
    if group == "algo/optimizer":  # the algorithm has the last word
        page |= {"algo.optimizer.lr": 7e-4, "algo.optimizer.eps": 1e-5}
    assert page == found


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf").glob("*.yaml")))
def test_every_setting_of_a_command_is_documented_with_its_default(name):
    page = documented("", name)
    if name != "config":
        page |= documented("", "config") if "algo" in str(composed(name)) else {}
    required = [f"{key}=x" for key, value in page.items() if value == "???"]
    groups = tuple(GROUPS.values())
    found = {k: v for k, v in composed(name, *required).items() if not k.startswith(groups)}
    for key in required:
        page[key[:-2]] = "x"
    assert page == found


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_the_configs_have_every_argument_of_what_they_make(group, choice):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        mode = ["distributed=simulated"] if group == "distributed/timing" else []
        cfg = OmegaConf.to_container(compose("config", [*mode, f"{group}={choice}"]))
    for target, given in targets(cfg):
        arguments = inspect.signature(SAC if target is make_sac else target).parameters.values()
        optional = {
            a.name
            for a in arguments
            if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY) and a.default is not a.empty
        }
        # what sessions and evaluation fill in; schedules of one's own would have to leave out a key of Linear's
        assert optional - given <= {"seed", "action_dim", "record", "begin"}, target


def test_a_setting_without_a_comment_is_refused(tmp_path):
    path = ROOT / "conf" / "algo" / "a3c.yaml"
    assert [s.meaning for s in SCRIPT["settings"]("# x\na: 1\nb: {c: 2}  # both\nd:  # made\n  _target_: e\n")] == [
        "", "both", "made",
    ]  # fmt: skip
    describe = SCRIPT["describe"]
    describe.__globals__["chain"] = lambda path, prefix: {"a": SCRIPT["Setting"]("a", "1", "")}
    with pytest.raises(ValueError, match=r"conf/algo/a3c\.yaml has no comment on a"):
        describe(path, "")
