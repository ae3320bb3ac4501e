import pytest
from omegaconf import OmegaConf

from asynclab.config import targets


@pytest.mark.parametrize(
    "target",
    [
        "asynclab.agents.SAC",
        "asynclab.distributed.Shared",
        "asynclab.optim.GlobalAdam",
        "asynclab.nets.auto_torso",
        "asynclab.envs.make_envs",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.LinearLR",
    ],
)
def test_what_configs_are_made_of_is_allowed(target):
    targets.check(OmegaConf.create({"algo": {"agent": {"_target_": target}}}))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "builtins.open",
        "shutil.rmtree",
        "torch.load",
        "torch.hub.load",
        "asynclab.storage.provenance.subprocess.run",  # through what an allowed package imports
        "asynclab.optim.torch.load",
        "torch.optim.adam.torch.hub.load",
        "asynclab.storage.checkpoint.Checkpoints",  # ours, but not meant for configs
        "asynclab.agents.NoSuchThing",
        "asynclab.agents.SAC.__init__.__globals__",
        "asynclabx.agents.SAC",
        "hydra.utils.get_method",
        "functools.partial",
        "",
        "...",
        3,
        None,
    ],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"deep": [{"er": x}]}])
def test_anything_else_is_refused(target, wrap):
    with pytest.raises(ValueError, match=r"^a.*_target_=.* (is not in a package that configs may use|does not exist)"):
        targets.check(OmegaConf.create({"a": wrap({"_target_": target})}))


def test_the_list_is_extended_from_outside_only(monkeypatch):
    config = OmegaConf.create({"x": {"_target_": "statistics.fmean"}, "ASYNCLAB_TARGETS": "statistics"})
    with pytest.raises(ValueError, match="export ASYNCLAB_TARGETS=statistics"):
        targets.check(config)
    monkeypatch.setenv("ASYNCLAB_TARGETS", "other,statistics")
    targets.check(config)
