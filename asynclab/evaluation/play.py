"""Playing a trained agent.  E: episodes."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from asynclab import __version__, check, flat, progress
from asynclab.adapters import video
from asynclab.agents import Agent
from asynclab.config import targets
from asynclab.envs import Envs
from asynclab.envs.normalize import Moments
from asynclab.storage import checkpoint, provenance, zoo
from asynclab.storage.folder import instead, is_agent, whole
from asynclab.storage.names import CHECKPOINTS, CONFIG, MANIFEST

log = logging.getLogger(__name__)

PARTS = ("env.id", "env.make", "algo.agent")  # of a run's config, that are needed to play
UNCHANGED = ("env.id", "env.make")  # by all that a run may be resumed with
SEED = 1000  # of the first episode, unless another is asked for
RESAMPLES = 9_999  # of the bootstrap
MAX_EPISODE_STEPS = 100_000  # four times what an episode of Atari has at most


class Player(NamedTuple):
    """A trained agent and what it plays in.

    Attributes:
        agent: Acts in the environment.
        envs: A single one.
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
        ret: Sum of raw rewards.
        length: In frames.
        is_cut: Whether it would have gone on, and counts with the return that it had by then.
    """

    ret: float
    length: int
    is_cut: bool = False


class Evaluation(NamedTuple):
    """What became of E episodes.

    Attributes:
        run: Output folder.
        env: Gymnasium id.
        checkpoint: Number of the checkpoint, as its folder is called.
        frames: Of the trial when the checkpoint was taken.
        session: Whose network played.
        deterministic: Whether it took its best actions instead of sampling.
        seeds: Of the episodes: of each one's environment and of its sampled actions.
        returns: Raw.
        lengths: In frames.
        videos: Of the episodes; empty if they were not recorded.
        file: Where all this is written; None for nowhere.
        max_episode_steps: After which an episode was cut.
        cut: How many were.
        changes: Arguments of ``env.make`` that were not the run's.
    """

    run: Path
    env: str
    checkpoint: str
    frames: int
    session: int
    deterministic: bool
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    videos: list[Path]
    file: Path | None = None
    max_episode_steps: int = MAX_EPISODE_STEPS
    cut: int = 0
    changes: Mapping[str, Any] = {}

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

    def sentence(self) -> str:
        """Return what the agent is worth, with an interval if that can be known."""
        found = self.statistics()
        text = f"return {found['mean_return']:.2f}"
        if found["interval_95"] is not None:
            low, high = found["interval_95"]
            text += (
                f" +- {found['std_return']:.2f} over {len(self.returns)} episodes (mean between {low:.2f} and"
                f" {high:.2f} with 95%)"
            )
        actions = "best" if self.deterministic else "sampled"
        text += f" of {self.run}, checkpoint {self.checkpoint} at {self.frames:,} frames, {actions} actions"
        if self.changes:
            others = ", ".join(f"{key}={value}" for key, value in self.changes.items() if key != "id")
            text += f", in {self.env}" + f" with {others}" * bool(others)
        if self.cut:
            text += f"; {self.cut} cut after {self.max_episode_steps:,} steps (max_episode_steps)"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return everything, with the statistics and the circumstances, as JSON has it."""
        content = self._asdict() | self.statistics() | {"asynclab": __version__} | provenance.circumstances()
        return json.loads(json.dumps(content, default=str), parse_constant=lambda nan: None)


def load(
    run: Path, session: int = 0, name: str = "latest", record: Path | None = None, changes: Mapping[str, Any] = {}
) -> Player:
    """Return the agent of a run's checkpoint, or of a zoo, with a single environment.

    Args:
        run: Output folder, or that of a zoo's agent, which has one network.
        session: Whose network, where sessions have one each (``distributed=off``).
        name: Of the checkpoint: ``latest``, ``best`` or a number.
        record: Folder for videos, which must not be there yet; None for none.
        changes: Arguments of ``env.make`` in place of the run's; ``id`` for another environment.

    Raises:
        ValueError: The folder has no run, its config names code that is not allowed, the run has no such checkpoint or
            session, or the environment, as it is changed, has other spaces.
    """
    weights = zoo.read(run) if is_agent(run) else None  # before anything in it is believed
    cfg, written = _read_config(run)
    env_id, make, agent_config = (OmegaConf.select(cfg, key) for key in PARTS)
    if weights is None:
        found = checkpoint.load(run, name, memories=False)
        weights = weights_of(found, session)
        _compare(run / CONFIG, written, found)
    elif name not in ("latest", weights.checkpoint) or session:
        raise ValueError(f"run={run} has the weights of one checkpoint and session; leave out checkpoint and session")
    with ExitStack() as stack:
        try:
            make_envs = instantiate(make, _convert_="all")
            if changes:
                check_changes(make_envs, changes)
                env_id, make_envs = changes.get("id", env_id), partial(make_envs, **changes)
            envs = make_envs(num_envs=1, **({} if record is None else {"record": record}))
            stack.callback(envs.close)
            agent = instantiate(agent_config, _convert_="all")(envs.obs_space, envs.action_space)
        except (InstantiationException, TypeError) as error:
            if record is not None and "'record'" in str(error):
                target = make["_target_"]
                raise ValueError(f"env.make._target_={target} takes no record, so leave out video=true") from error
            raise ValueError(
                f"run={run} has a config that this version of asynclab does not understand"
                f" ({error.__cause__ or error}); evaluate it with the revision in its run.json"
            ) from error
        shapes, expected = (
            [text.partition(" ")[2] for text in layout] for layout in (weights.layout, flat.signature(agent.nets))
        )
        if shapes != expected or weights.theta.shape != (flat.size(agent.nets),):
            raise ValueError(f"run={run} has weights of other shapes than the network in its config")
        sizes = {name: slots.shape[1] for name, slots in weights.moments.items()}
        if sizes != {name: 1 + 2 * size for name, size in envs.moments.items()}:
            raise ValueError(f"run={run} normalises observations by moments of other shapes than those in its config")
        equip(agent, envs, weights.theta, weights.moments)
        agent.start(1)
        stack.pop_all()
    return Player(agent, envs, env_id, weights.checkpoint, weights.frames, session)


def _read_config(run: Path) -> tuple[DictConfig, dict[str, Any]]:
    """Return the config of a run, which names nothing but code that is allowed, and what is written in it that stays.

    Raises:
        ValueError: There is none, or it is none of a run.
    """
    config = run / CONFIG
    if not config.is_file():
        if run.parent.name == CHECKPOINTS and (run / MANIFEST).is_file():
            raise ValueError(f"run={run} is a checkpoint; set run={run.parent.parent} and checkpoint={run.name}")
        raise ValueError(f"run={run} is not an output folder: it has no config.yaml{instead(run)}")
    try:
        cfg = OmegaConf.load(config)
        OmegaConf.resolve(cfg)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{config} cannot be read ({str(error).splitlines()[0]})") from error
    written = {key: _plain(cfg, key) for key in UNCHANGED}
    if isinstance(cfg, DictConfig):
        cfg = targets.waiting(cfg)
    if not isinstance(cfg, DictConfig) or not all(OmegaConf.select(cfg, key) for key in PARTS):
        raise ValueError(f"{config} is not the config of a run: it must have {', '.join(PARTS)}")
    targets.check(cfg)
    return cfg, written


def _compare(path: Path, now: Mapping[str, Any], found: checkpoint.Checkpoint) -> None:
    """Warn if a config is not that of a checkpoint any more, which it would be after any resumption."""
    then = OmegaConf.create(found.trial().get("config") or {})  # older versions kept none
    if then and (others := [key for key in now if _plain(then, key) != now[key]]):
        log.warning("%s has another %s than the run was made with", path, " and ".join(others))


def _plain(cfg: Any, key: str) -> Any:
    """Return what a config has at a key, as JSON has it; None if it has nothing."""
    found = OmegaConf.select(cfg, key) if OmegaConf.is_dict(cfg) else None
    return json.loads(json.dumps(OmegaConf.to_container(found) if OmegaConf.is_config(found) else found))


def check_changes(make_envs: Callable[..., Envs], changes: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError if an environment cannot be changed in this way, or has other spaces then.

    Args:
        make_envs: Makes it as it was trained in.
        changes: Arguments in place of those that it has.
        prefix: Of the settings' names.
    """
    taken = {"num_envs", "record"} & set(changes)
    if taken := taken | {key for key in ("wrappers",) if changes.get(key)}:  # none at all can be had
        raise ValueError(f"{prefix}make.{min(taken)} is no setting of an environment; leave it out")
    spaces, moments = [], []
    for make in (make_envs, partial(make_envs, **changes)):
        try:
            with closing(make(num_envs=1)) as envs:
                spaces.append(" and ".join(_form(space) for space in (envs.obs_space, envs.action_space)))
                moments.append(set(envs.moments))
        except TypeError as error:
            raise ValueError(f"{prefix}make={dict(changes)} does not fit the run's env.make ({error})") from error
        except ValueError as error:
            if make is make_envs:
                raise
            text = str(error).replace("env.id", f"{prefix}id").replace("env.make", f"{prefix}make")
            raise ValueError(text) from error  # the settings that were typed
    if spaces[0] != spaces[1]:
        told = ", ".join(f"{prefix}{'' if key == 'id' else 'make.'}{key}={value}" for key, value in changes.items())
        raise ValueError(f"{told} gives {spaces[1]}, and the agent was trained on {spaces[0]}; choose equal spaces")
    for name, key in (("obs", "normalize_obs"), ("return", "scale_reward")):
        if (name in moments[0]) != (name in moments[1]):
            raise ValueError(
                f"{prefix}make.{key}={changes.get(key)}, and the agent was trained with {name in moments[0]}; leave it"
                " out"
            )


def _form(space: gym.Space) -> str:
    """Return what of a space a network depends on."""
    return f"Box{space.shape} of {space.dtype}" if isinstance(space, gym.spaces.Box) else str(space)


def weights_of(found: checkpoint.Checkpoint, session: int) -> zoo.Weights:
    """Return what a session of a checkpoint plays with.

    Raises:
        ValueError: The session has no network of its own.
    """
    stores = found.stores()
    if not (isinstance(session, Integral) and 0 <= session < len(stores)):
        raise ValueError(f"session={session} has no network of its own; the run has {len(stores)}, numbered from 0")
    theta, moments = stores[session]["theta"], stores[session]["moments"]
    return zoo.Weights(theta, moments, found.trial()["layout"], found.path.name, found.manifest["frames"])


def equip(agent: Agent, envs: Envs, theta: Tensor, moments: Mapping[str, Tensor]) -> None:
    """Let an agent act with these weights, and the environments normalise by these estimates and leave them alone.

    Args:
        agent: Its networks become views of ``theta``.
        envs: They read ``moments``.
        theta: [P].
        moments: The slots of each estimate by name.
    """
    agent.bind(flat.Vector(theta), flat.Vector(torch.zeros_like(theta)))
    agent.nets.eval()  # nothing is learned here
    estimates = {name: Moments(size) for name, size in envs.moments.items()}
    for name, estimate in estimates.items():
        estimate.slots = moments[name]
    envs.attach(estimates, None)


def check_request(episodes: int, seed: int, max_episode_steps: int = MAX_EPISODE_STEPS, prefix: str = "") -> None:
    """Raise ValueError if there cannot be so many episodes, or not from this seed.

    Args:
        episodes: E.
        seed: Of the first one.
        max_episode_steps: After which an episode is cut.
        prefix: Of the settings' names.
    """
    check.count(f"{prefix}episodes", episodes)
    check.count(f"{prefix}max_episode_steps", max_episode_steps)
    if check.whole(f"{prefix}seed", seed) + episodes > 2**31:
        raise ValueError(f"{prefix}seed={seed} is too large: those of {episodes} episodes must be below 2**31")


def play(
    agent: Agent,
    envs: Envs,
    episodes: int,
    deterministic: bool | None,
    seed: int = SEED,
    max_episode_steps: int = MAX_EPISODE_STEPS,
) -> Iterator[Game | None]:
    """Play whole episodes one after the other, episode i and its sampled actions from ``seed + i``.

    So what becomes of one depends on nothing but its seed, which it would in a batch: by the order in which actions are
    drawn, and by how floats are added up.

    Args:
        agent: Bound to its weights.
        envs: A single environment.
        episodes: E.
        deterministic: Take the best actions instead of sampling; None for the agent's own way.
        seed: Of the first episode.
        max_episode_steps: After which an episode that does not end is cut.

    Yields:
        Every episode as it ends, and None after every other step.
    """
    if deterministic is None:
        deterministic = agent.deterministic
    for own in range(seed, seed + episodes):
        torch.manual_seed(own)
        obs = envs.reset([own])
        agent.start(1)
        for number in count(1):
            step = envs.step(agent.act(torch.from_numpy(obs), deterministic).numpy())
            obs = step.obs
            agent.on_step(torch.from_numpy(step.done))
            ended = next((Game(episode.ret, episode.length) for episode in step.episodes), None)
            if ended is None and number >= max_episode_steps:
                (ret,), (length,) = envs.so_far()
                ended = Game(float(ret), int(length), is_cut=True)
                envs.reset([own])  # as it would do itself at an end: a recording is complete then
            yield ended
            if ended is not None:
                break


def evaluate(
    run: Path,
    episodes: int,
    deterministic: bool | None = None,
    session: int = 0,
    seed: int = SEED,
    name: str = "latest",
    results: Path | None = None,
    videos: Path | None = None,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    changes: Mapping[str, Any] = {},
) -> Evaluation:
    """Play a run's checkpoint.  An episode's return depends on its seed alone, not on how many are played or recorded.

    Args:
        run: Output folder.
        episodes: E.
        deterministic: Take the best actions instead of sampling; None for the agent's own way.
        session: Whose network, where sessions have one each.
        seed: Of the first episode's environment and sampled actions; the others count up.
        name: Of the checkpoint: ``latest``, ``best`` or a number.
        results: Folder that gets a new JSON file of what is returned; None for none.
        videos: Folder that gets a new video of every episode; None for none.
        max_episode_steps: After which an episode that does not end is cut.
        changes: Arguments of ``env.make`` in place of the run's; ``id`` for another environment.

    Raises:
        ValueError: An argument makes no sense, there is nothing to play, it cannot be recorded, or a folder cannot be
            written.  Videos of earlier episodes are there.
        OSError: Something else went wrong with a file, such as while a video was encoded.
    """
    check_request(episodes, seed, max_episode_steps)
    scratch = None
    if videos is not None:
        video.require()
        scratch = videos / f".recording_{os.getpid()}_{time.time_ns()}"
    games: list[Game] = []
    files: list[Path] = []
    with ExitStack() as stack:
        if scratch is not None:
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        player = load(run, session, name, scratch, changes)
        stack.callback(player.envs.close)
        if results is not None:
            _check_results(results)
        torch.set_num_threads(1)  # a batch of one only loses by more
        if deterministic is None:
            deterministic = player.agent.deterministic
        stem = _stem(player.checkpoint, deterministic)
        played = play(player.agent, player.envs, episodes, deterministic, seed, max_episode_steps)
        steps = 0
        advance = stack.enter_context(progress.shown("episodes", episodes, lambda: f"{steps:,} steps"))
        for game in played:
            steps += 1
            if game is None:
                continue
            if videos is not None and scratch is not None:
                episode = f"episode_{len(games)}_seed_{seed + len(games)}_return_{game.ret:.2f}"
                files.append(_keep_video(scratch, videos / f"{stem}_{episode}.mp4"))
            games.append(game)
            advance()
    if player.envs.complaint:
        log.warning("%s", player.envs.complaint.partition(";")[0])
    evaluation = Evaluation(
        run=run,
        env=player.env_id,
        checkpoint=player.checkpoint,
        frames=player.frames,
        session=session,
        deterministic=deterministic,
        seeds=list(range(seed, seed + episodes)),
        returns=[game.ret for game in games],
        lengths=[game.length for game in games],
        videos=files,
        max_episode_steps=max_episode_steps,
        cut=sum(game.is_cut for game in games),
        changes=dict(changes),
    )
    return evaluation if results is None else _keep(evaluation, results, f"{stem}_seed_{seed}_episodes_{episodes}.json")


def _check_results(folder: Path) -> None:
    """Refuse a folder that cannot be written now, and not when everything has been played."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def _keep_video(scratch: Path, path: Path) -> Path:
    """Give the video that has been recorded its name, and return it."""
    (recorded,) = scratch.glob("*.mp4")
    with _writing(path.parent), _new(path) as file:
        return recorded.replace(file)


def _keep(evaluation: Evaluation, folder: Path, name: str) -> Evaluation:
    """Write an evaluation to a new file, and return it with that."""
    with _writing(folder), _new(folder / name) as path:
        evaluation = evaluation._replace(file=path)
        with whole(path) as file:
            file.write_text(json.dumps(evaluation.as_json(), indent=2) + "\n")
    return evaluation


def _stem(checkpoint: str, deterministic: bool) -> str:
    return f"{checkpoint}_{'deterministic' if deterministic else 'sampled'}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Let users know which folder it is that cannot be written, by a ValueError."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror or error}); set out to another folder"
        ) from error


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """Make an empty file that was not there, for what is to be written: the path, or the path with a number.

    It is removed if that fails.
    """
    number, new = 1, path
    while True:
        try:
            new.touch(exist_ok=False)
            break
        except FileExistsError:
            number += 1
            new = path.with_stem(f"{path.stem}__{number}")
    try:
        yield new
    except BaseException:
        new.unlink(missing_ok=True)
        raise
