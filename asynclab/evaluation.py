"""Playing a trained agent.  B: environments."""

from pathlib import Path

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from asynclab import check, checkpoint, flat, targets
from asynclab.agents import Agent
from asynclab.envs import Envs
from asynclab.moments import Moments
from asynclab.session import Seeds

PARTS = ("env.id", "env.make", "algo.agent")  # of a run's config, that are needed to play


def load(run: Path, session: int = 0, num_envs: int | None = None, name: str = "latest") -> tuple[Agent, Envs, str]:
    """Return the agent of a run's checkpoint, environments and their id; the agent acts in that many.

    Args:
        run: Output folder.
        session: Whose network, where sessions have one each (``distributed=off``).
        num_envs: Number of environments; None for the run's.
        name: Of the checkpoint: ``latest``, ``best`` or a number.

    Raises:
        ValueError: The folder has no run, its config names code that is not allowed, or the run has no such
            checkpoint or session.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise ValueError(f"run={run} is not an output folder: it has no config.yaml")
    try:
        cfg = OmegaConf.load(config)
        OmegaConf.resolve(cfg)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{config} cannot be read ({str(error).splitlines()[0]})") from error
    parts = [OmegaConf.select(cfg, key) for key in PARTS] if isinstance(cfg, DictConfig) else []
    if not parts or not all(parts):
        raise ValueError(f"{config} is not the config of a run: it must have {', '.join(PARTS)}")
    assert isinstance(cfg, DictConfig)
    env_id, make, agent_config = parts
    targets.check(cfg)
    stores = checkpoint.load(run, name).stores()
    if not 0 <= session < len(stores):
        raise ValueError(f"session={session} has no network of its own; the run has {len(stores)}, numbered from 0")
    try:
        envs = instantiate(make, _convert_="all")(**({} if num_envs is None else {"num_envs": num_envs}))
        agent = instantiate(agent_config, _convert_="all")(envs.obs_space, envs.action_space)
    except (InstantiationException, TypeError) as error:
        raise ValueError(
            f"run={run} has a config that this version of asynclab does not understand ({error.__cause__ or error});"
            " evaluate it with the revision in its run.json"
        ) from error
    theta = stores[session]["theta"]
    if theta.shape != (flat.size(agent.nets),):
        raise ValueError(f"run={run} has a checkpoint of {theta.numel():,} weights, its config another network")
    agent.bind(flat.Vector(theta), flat.Vector(torch.zeros_like(theta)))
    agent.start(envs.num_envs, session)
    moments = {name: Moments(size) for name, size in envs.moments.items()}
    for name, estimate in moments.items():
        estimate.slots = stores[session]["moments"][name]
    envs.attach(moments, None)
    return agent, envs, env_id


def evaluate(
    run: Path,
    episodes: int,
    deterministic: bool = False,
    session: int = 0,
    seed: int = 1000,
    name: str = "latest",
) -> list[float]:
    """Play whole episodes and return their raw returns.

    Every environment plays the same number of episodes (the last round is cut at ``episodes``): taking the first to
    end would favour short ones.

    Args:
        run: Output folder.
        episodes: Number of returns.
        deterministic: Act by the policy's mode instead of sampling.
        session: Whose network, where sessions have one each.
        seed: Of environments and actions.
        name: Of the checkpoint: ``latest``, ``best`` or a number.
    """
    check.count("episodes", episodes)
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more")
    agent, envs, _ = load(run, session, num_envs=min(episodes, 8), name=name)
    torch.set_num_threads(1)  # batches this small only lose by more
    torch.manual_seed(seed)
    quota = [len(range(b, episodes, envs.num_envs)) for b in range(envs.num_envs)]
    returns: list[list[float]] = [[] for _ in quota]
    obs = envs.reset(Seeds(seed, 0).envs(envs.num_envs))
    while any(len(r) < q for r, q in zip(returns, quota, strict=True)):
        step = envs.step(agent.act(torch.from_numpy(obs), deterministic).numpy())
        obs = step.obs
        agent.on_step(torch.from_numpy(step.done))
        for episode in step.episodes:
            returns[episode.env].append(episode.ret)
    envs.close()
    return [ret for r, q in zip(returns, quota, strict=True) for ret in r[:q]]
