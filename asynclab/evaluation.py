"""Playing a trained agent.  B: environments, E: episodes."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from asynclab import __version__, check, checkpoint, flat, provenance, targets, video
from asynclab.agents import Agent
from asynclab.envs import Envs
from asynclab.moments import Moments

PARTS = ("env.id", "env.make", "algo.agent")  # of a run's config, that are needed to play
SEED = 1000  # of the first episode, unless another is asked for
MAX_ENVS = 8  # that play at once
RESAMPLES = 9_999  # of the bootstrap


class Player(NamedTuple):
    """A trained agent and what it plays in.

    Attributes:
        agent: Acts in B environments.
        envs: B of them.
        env_id: Of gymnasium.
        checkpoint: Number of the checkpoint, as its folder is called.
        frames: Of the trial when the checkpoint was taken.
        session: Whose network it is.
    """

    agent: Agent
    envs: Envs
    env_id: str
    checkpoint: str
    frames: int
    session: int


class Game(NamedTuple):
    """An episode that was played to its end.

    Attributes:
        number: Of the episode among those that were asked for.
        ret: Sum of raw rewards.
        length: In frames.
    """

    number: int
    ret: float
    length: int


class Evaluation(NamedTuple):
    """What became of E episodes.

    Attributes:
        run: Output folder.
        env: Gymnasium id.
        checkpoint: Number of the checkpoint, as its folder is called.
        frames: Of the trial when the checkpoint was taken.
        session: Whose network played.
        deterministic: Whether it acted by the policy's mode.
        num_envs: How many played at once.
        seeds: Of the episodes' environments; the first is that of the sampled actions, too.
        returns: Raw.
        lengths: In frames.
        videos: Of the episodes; empty if they were not recorded.
        file: Where all this is written; None for nowhere.
    """

    run: Path
    env: str
    checkpoint: str
    frames: int
    session: int
    deterministic: bool
    num_envs: int
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    videos: list[Path]
    file: Path | None = None

    def statistics(self) -> dict[str, Any]:
        """Return the mean return and length, and for several episodes how sure the mean return is."""
        returns = np.array(self.returns)
        means = {"mean_return": float(returns.mean()), "mean_length": float(np.mean(self.lengths))}
        if len(returns) == 1:
            return means | dict.fromkeys(("std_return", "standard_error", "interval_95"))
        std = float(returns.std(ddof=1))
        picks = np.random.default_rng(0).choice(returns, (RESAMPLES, len(returns)))
        ends = np.quantile(picks.mean(axis=1), (0.025, 0.975))  # percentile bootstrap
        return means | {
            "std_return": std,
            "standard_error": std / math.sqrt(len(returns)),
            "interval_95": ends.tolist(),
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything, with the statistics and the circumstances, as JSON has it."""
        content = self._asdict() | self.statistics() | {"asynclab": __version__} | provenance.circumstances()
        return json.loads(json.dumps(content, default=str), parse_constant=lambda nan: None)


def load(
    run: Path, session: int = 0, num_envs: int | None = None, name: str = "latest", record: Path | None = None
) -> Player:
    """Return the agent of a run's checkpoint with environments.

    Args:
        run: Output folder.
        session: Whose network, where sessions have one each (``distributed=off``).
        num_envs: Number of environments; None for the run's.
        name: Of the checkpoint: ``latest``, ``best`` or a number.
        record: Folder for videos, which must not be there yet; None for none.

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
    found = checkpoint.load(run, name)
    stores = found.stores()
    if not 0 <= session < len(stores):
        raise ValueError(f"session={session} has no network of its own; the run has {len(stores)}, numbered from 0")
    settings = {} if num_envs is None else {"num_envs": num_envs}
    try:
        envs = instantiate(make, _convert_="all")(**settings, **({} if record is None else {"record": record}))
        agent = instantiate(agent_config, _convert_="all")(envs.obs_space, envs.action_space)
    except (InstantiationException, TypeError) as error:
        if record is not None and "'record'" in str(error):
            target = make["_target_"]
            raise ValueError(f"env.make._target_={target} takes no record, so leave out video=true") from error
        raise ValueError(
            f"run={run} has a config that this version of asynclab does not understand ({error.__cause__ or error});"
            " evaluate it with the revision in its run.json"
        ) from error
    theta = stores[session]["theta"]
    if theta.shape != (flat.size(agent.nets),):
        raise ValueError(f"run={run} has a checkpoint of {theta.numel():,} weights, its config another network")
    equip(agent, envs, theta, stores[session]["moments"])
    agent.start(envs.num_envs, session)
    return Player(agent, envs, env_id, found.path.name, found.manifest["frames"], session)


def equip(agent: Agent, envs: Envs, theta: Tensor, moments: Mapping[str, Tensor]) -> None:
    """Let an agent act with these weights, and the environments normalise by these estimates and leave them alone.

    Args:
        agent: Its networks become views of ``theta``.
        envs: They read ``moments``.
        theta: [P].
        moments: The slots of each estimate by name.
    """
    agent.bind(flat.Vector(theta), flat.Vector(torch.zeros_like(theta)))
    estimates = {name: Moments(size) for name, size in envs.moments.items()}
    for name, estimate in estimates.items():
        estimate.slots = moments[name]
    envs.attach(estimates, None)


def check_request(episodes: int, seed: int, prefix: str = "") -> None:
    """Raise ValueError if there cannot be so many episodes, or not from this seed.

    Args:
        episodes: E.
        seed: Of the first one.
        prefix: Of the settings' names.
    """
    check.count(f"{prefix}episodes", episodes)
    if check.whole(f"{prefix}seed", seed) + episodes > 2**31:
        raise ValueError(f"{prefix}seed={seed} is too large: those of {episodes} episodes must be below 2**31")


def num_envs(episodes: int) -> int:
    """Return how many environments play so many episodes in the fewest rounds, without more than that takes."""
    rounds = math.ceil(episodes / MAX_ENVS)
    return math.ceil(episodes / rounds)


def play(
    agent: Agent, envs: Envs, episodes: int, deterministic: bool, seed: int = SEED, session: int = 0
) -> Iterator[Game | None]:
    """Play whole episodes, B at a time, episode i from ``seed + i``.

    The first to end are not taken instead of those that were begun: that would favour short ones.

    Args:
        agent: Bound to its weights.
        envs: B environments.
        episodes: E.
        deterministic: Act by the policy's mode instead of sampling.
        seed: Of the first episode's environment, and of all actions.
        session: Whose network it is.

    Yields:
        Every episode as it ends, and None after every step.
    """
    torch.manual_seed(seed)
    for first in range(0, episodes, envs.num_envs):
        pending = set(range(min(envs.num_envs, episodes - first)))
        # the last round may be smaller than the vector: what else is in it is played and not counted
        obs = envs.reset([(seed + first + b) % 2**31 for b in range(envs.num_envs)])
        agent.start(envs.num_envs, session)
        while pending:
            step = envs.step(agent.act(torch.from_numpy(obs), deterministic).numpy())
            obs = step.obs
            agent.on_step(torch.from_numpy(step.done))
            for episode in step.episodes:
                if episode.env in pending:
                    pending.remove(episode.env)
                    yield Game(first + episode.env, episode.ret, episode.length)
            yield None


def evaluate(
    run: Path,
    episodes: int,
    deterministic: bool = False,
    session: int = 0,
    seed: int = SEED,
    name: str = "latest",
    results: Path | None = None,
    videos: Path | None = None,
) -> Evaluation:
    """Play a run's checkpoint.  The same arguments give the same returns.

    Args:
        run: Output folder.
        episodes: E; those that are recorded are played one after the other, others up to ``MAX_ENVS`` at once.
        deterministic: Act by the policy's mode instead of sampling.
        session: Whose network, where sessions have one each.
        seed: Of the first episode's environment, after which the others count up, and of the actions.
        name: Of the checkpoint: ``latest``, ``best`` or a number.
        results: Folder that gets a new JSON file of what is returned; None for none.
        videos: Folder that gets a new video of every episode; None for none.

    Raises:
        ValueError: An argument makes no sense, there is nothing to play, or it cannot be recorded.
        OSError: A file cannot be written.  Videos of earlier episodes are there.
    """
    check_request(episodes, seed)
    at_once, scratch = num_envs(episodes), None
    if videos is not None:
        video.require()
        at_once, scratch = 1, videos / f".recording_{os.getpid()}_{time.time_ns()}"
    player = load(run, session, at_once, name, scratch)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=results).close()  # if it cannot be written, now and not when everything has been played
    torch.set_num_threads(1)  # batches this small only lose by more
    games: dict[int, Game] = {}
    files: dict[int, Path] = {}
    try:
        for game in play(player.agent, player.envs, episodes, deterministic, seed, session):
            if game is None:
                continue
            games[game.number] = game
            if videos is not None and scratch is not None:
                episode = f"episode_{game.number}_seed_{seed + game.number}_return_{game.ret:.2f}"
                stem = _stem(player.checkpoint, deterministic)
                (recorded,) = scratch.glob("*.mp4")
                files[game.number] = recorded.replace(_reserve(videos / f"{stem}_{episode}.mp4"))
        player.envs.close()
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    order = range(episodes)
    played = Evaluation(
        run=run,
        env=player.env_id,
        checkpoint=player.checkpoint,
        frames=player.frames,
        session=session,
        deterministic=deterministic,
        num_envs=at_once,
        seeds=[seed + i for i in order],
        returns=[games[i].ret for i in order],
        lengths=[games[i].length for i in order],
        videos=[files[i] for i in order if i in files],
    )
    if results is None:
        return played
    name = f"{_stem(player.checkpoint, deterministic)}_seed_{seed}_episodes_{episodes}.json"
    played = played._replace(file=_reserve(results / name))
    assert played.file is not None
    played.file.write_text(json.dumps(played.as_json(), indent=2) + "\n")
    return played


def _stem(checkpoint: str, deterministic: bool) -> str:
    return f"{checkpoint}_{'deterministic' if deterministic else 'sampled'}"


def _reserve(path: Path) -> Path:
    """Make an empty file that was not there and return it: the path, or the path with a number."""
    number, new = 1, path
    while True:
        try:
            new.touch(exist_ok=False)
            return new
        except FileExistsError:
            number += 1
            new = path.with_stem(f"{path.stem}__{number}")
