import itertools

import pytest
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from asynclab import config
from asynclab.agents import A3C, PPO, make_sac
from asynclab.distributed import Off, Shared, Synced
from asynclab.envs import spaces
from asynclab.optim import GlobalAdam, GlobalRMSprop

config.register()
CHOICES = {group: sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml")) for group in ("algo", "env")}
MODES = {"off": Off, "shared": Shared, "synced": Synced}


def load(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def choice(group, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True).hydra.runtime.choices[group]


IDS = {"gym": ["env.id=Acrobot-v1"], "atari": ["env.id=ALE/Seaquest-v5"]}


@pytest.mark.medium
@pytest.mark.parametrize(("algo", "env"), list(itertools.product(CHOICES["algo"], CHOICES["env"])))
def test_every_algo_and_env_compose_and_instantiate(algo, env):
    cfg = load(f"algo={algo}", f"env={env}", *IDS.get(env, []))
    config.refuse_unknown_keys(cfg)
    assert callable(instantiate(cfg, _convert_="object").algo.agent)


@pytest.mark.medium
@pytest.mark.parametrize("env", CHOICES["env"])
def test_every_env_can_be_made_and_has_a_torso_and_spaces_that_fit(env):
    cfg = load(f"env={env}", *IDS.get(env, []))
    envs = instantiate(cfg.env.make, _convert_="object")(num_envs=1)
    assert instantiate(cfg.env.torso, _convert_="object")(envs.obs_space).features == cfg.env.torso.hidden[-1]
    assert spaces(envs) == choice("spaces", f"env={env}", *IDS.get(env, []))
    envs.close()


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    assert type(instantiate(load(f"distributed={mode}").distributed)) is MODES[mode]


def test_a2c_is_a3c_alone_and_can_be_overridden():
    alone = load("algo=a2c")
    assert (alone.distributed._target_, alone.distributed.max_session) == ("asynclab.distributed.Off", 1)
    assert alone.algo == load("algo=a3c").algo
    assert load("algo=a2c", "distributed=synced").distributed._target_ == "asynclab.distributed.Synced"


def test_the_environment_selects_an_algorithms_defaults():
    assert [load("algo=ppo", f"env={env}").algo.agent.clip for env in ("pong", "cartpole")] == [0.1, 0.2]
    assert load("algo=ppo", "env=hopper").env.make.normalize_obs
    assert not load("algo=sac", "env=hopper").env.make.normalize_obs
    assert load("algo=a2c", "env=pong").algo == load("algo=a3c", "env=pong").algo
    assert load("algo=ppo", "env=gym", "env.id=Pendulum-v1", "spaces=continuous").algo.agent.entropy_coef == 0.0
    assert load("algo=ppo", "env=pong", "~tuned").algo.agent.clip == 0.2


def test_what_is_typed_beats_the_defaults_of_a_kind():
    assert load("algo=ppo", "env=pong", "algo.agent.clip=0.3").algo.agent.clip == 0.3
    assert load("algo=sac", "env=pendulum").distributed._target_ == "asynclab.distributed.Shared"
    assert load("algo=sac", "env=pendulum", "distributed=off").distributed._target_ == "asynclab.distributed.Off"


def test_the_optimizer_is_a_choice():
    assert instantiate(load("algo/optimizer=rmsprop").algo.optimizer).func is GlobalRMSprop
    assert instantiate(load("algo=sac", "algo.optimizer.lr=1e-3").algo.optimizer).keywords["lr"] == 1e-3


def test_a3c_pong_has_the_reference_numbers():
    cfg = load("+experiment=a3c_pong")
    agent, memory, optimizer = cfg.algo.agent, cfg.algo.memory, cfg.algo.optimizer
    assert instantiate(agent).func is A3C
    assert (cfg.env.id, cfg.env.num_envs, cfg.env.max_frame, cfg.device) == ("ALE/Pong-v5", 8, 10_000_000, "cpu")
    assert (cfg.distributed._target_, cfg.distributed.max_session) == ("asynclab.distributed.Synced", 16)
    assert (agent.gamma, agent.lam, agent.entropy_coef, agent.value_coef, agent.shared) == (0.99, 0.95, 0.01, 0.5, True)
    assert (memory.horizon, cfg.algo.max_grad_norm) == (32, 0.5)
    assert (instantiate(optimizer).func, optimizer.lr, optimizer.eps) == (GlobalAdam, 7e-4, 1e-8)
    schedule = instantiate(cfg.algo.lr_schedule)
    assert (schedule(0.0), schedule(1.0)) == (1.0, 1.0)
    assert OmegaConf.to_container(cfg.env.torso.conv) == [[32, 8, 4], [64, 4, 2], [32, 3, 1]]
    assert list(cfg.env.torso.hidden) == [512]


def test_async_sac_humanoid_has_the_reference_numbers():
    cfg = load("+experiment=async_sac_humanoid")
    agent, memory, optimizer = cfg.algo.agent, cfg.algo.memory, cfg.algo.optimizer
    assert instantiate(agent).func is make_sac
    assert (cfg.env.id, cfg.env.num_envs, cfg.env.max_frame) == ("Humanoid-v5", 8, 50_000_000)
    assert (cfg.distributed._target_, cfg.distributed.max_session) == ("asynclab.distributed.Shared", 16)
    assert (agent.gamma, agent.polyak, cfg.algo.max_grad_norm) == (0.99, 0.005, 0.5)
    assert (memory.capacity, memory.batch_size, memory.start) == (200_000, 256, 1_000)
    assert (memory.updates_per_frame, memory.combined) == (1.0, True)
    assert (instantiate(optimizer).func, optimizer.lr) == (GlobalAdam, 5e-5)
    assert list(cfg.env.torso.hidden) == [256, 256]


def test_ppo_pong_has_the_reference_numbers():
    cfg = load("+experiment=ppo_pong")
    agent, optimizer = cfg.algo.agent, cfg.algo.optimizer
    assert instantiate(agent).func is PPO
    assert (cfg.env.id, cfg.env.num_envs, cfg.env.max_frame) == ("ALE/Pong-v5", 16, 10_000_000)
    assert (cfg.distributed._target_, cfg.distributed.max_session) == ("asynclab.distributed.Off", 1)
    assert (cfg.algo.memory.horizon, agent.minibatch_size, agent.epochs) == (128, 256, 4)
    assert (agent.clip, agent.clip_value, agent.entropy_coef, agent.value_coef) == (0.1, True, 0.01, 0.5)
    assert (agent.gamma, agent.lam, agent.shared, agent.normalize_advantage) == (0.99, 0.95, True, True)
    assert (instantiate(optimizer).func, optimizer.lr, optimizer.eps) == (GlobalAdam, 2.5e-4, 1e-5)
    schedule = instantiate(cfg.algo.lr_schedule)
    assert (schedule(0.0), schedule(1.0)) == (1.0, 0.0)


@pytest.mark.parametrize("typo", ["algo.agent.gama=0.9", "env.num_env=4", "distributed.sessions=2", "sed=1"])
def test_an_unknown_key_is_refused(typo):
    with pytest.raises(ConfigCompositionException):
        load(typo)


@pytest.mark.parametrize("added", ["+algo.gamma=1", "+env.seed=1", "+sed=1"])
def test_an_added_key_that_nothing_reads_is_refused(added):
    with pytest.raises(ValueError, match=f"{added[1:-2]} is not a setting; use one of "):
        config.refuse_unknown_keys(load(added))
    for added in ("+algo.agent.anything=1", "+distributed.anything=1"):
        config.refuse_unknown_keys(load(added))  # the target's own signature sees to that


@pytest.mark.parametrize("command", sorted(p.stem for p in (ROOT / "conf").glob("*.yaml")))
def test_no_setting_of_a_command_has_the_name_of_a_group(command):
    """Hydra would take what is typed for a choice of the group: kind=trial of plot.py was refused so."""
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert not (set(yaml.safe_load((ROOT / "conf" / f"{command}.yaml").read_text())) - {"hydra"}) & groups


def test_every_env_has_an_id():
    for env in CHOICES["env"]:
        assert "id" in OmegaConf.to_container(load(f"env={env}").env)
