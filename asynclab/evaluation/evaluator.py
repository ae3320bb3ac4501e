"""Evaluation while a run trains: a process of its own plays copies of the weights.

It watches the clock and copies theta itself, so neither the sessions nor the parent do anything for it, and it plays
the newest weights when it has time: if an evaluation takes longer than ``every`` frames, those in between are left out.
A seeded run has the same weights, to the bit, with and without it.
To ``launch`` it is a session like others, and so it is started, watched and started again as they are.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asynclab import check
from asynclab.agents import Agent
from asynclab.distributed import Store
from asynclab.envs import Envs
from asynclab.evaluation.play import SEED, check_request, equip, play
from asynclab.processes.control import Control
from asynclab.processes.launch import Failure, SessionError, launch

log = logging.getLogger(__name__)

TICK = 0.1  # seconds between two looks
MAX_FAILURES = 3  # in a row, after which there are no more evaluations
END = 1.0  # seconds in which it ends when told to


@dataclass(frozen=True)
class Schedule:
    """When a run is evaluated, and how.

    Attributes:
        every: Frames of all sessions from one evaluation to the next; None for none at all.
        episodes: Of each.
        deterministic: Take the best actions instead of sampling; None for the agent's own way.
        max_episode_steps: After which an episode is cut.
        id: Of the environment that is played; None for the one that is trained in.
        make: Arguments of ``env.make`` in place of those of training.
        nice: By how much the process yields to others, 0 to 19.
        wait: Seconds that the end of the run waits for the evaluation of the final weights.

    Raises:
        ValueError: A setting makes no sense.
    """

    every: int | None
    episodes: int
    deterministic: bool | None
    max_episode_steps: int
    id: str | None
    make: Mapping[str, Any]
    nice: int
    wait: float

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"eval.every={self.every} must be a whole number of 1 or more, or null for no evaluation")
        if self.every is None and self.changes:
            raise ValueError("eval.id and eval.make change nothing without eval.every; set it, for instance to 100_000")
        check_request(self.episodes, SEED, self.max_episode_steps, prefix="eval.")
        if self.deterministic is not None:
            check.flag("eval.deterministic", self.deterministic)
        if check.whole("eval.nice", self.nice) > 19:
            raise ValueError(f"eval.nice={self.nice} must be a whole number from 0 to 19")
        if check.number("eval.wait", self.wait) < 0:
            raise ValueError(f"eval.wait={self.wait} must be 0 or more seconds")

    @property
    def changes(self) -> dict[str, Any]:
        """What of ``env.make``'s arguments is another one than in training."""
        return dict(self.make) | ({} if self.id is None else {"id": self.id})


class Evaluated(NamedTuple):
    """The raw returns of the weights as they were at one moment.

    Attributes:
        frames: Of the trial, then.
        updates: Of the trial, then.
        seconds: When it was, on the machine's monotonic clock.
        returns: Of the episodes in the order of their seeds.
        lengths: Of the episodes in frames.
        cut: How many of them did not end and were cut.
    """

    frames: int
    updates: int
    seconds: float
    returns: list[float]
    lengths: list[int]
    cut: int = 0


@dataclass(frozen=True)
class Player:
    """What the process gets.

    Attributes:
        make_envs: () -> Envs.
        make_agent: (obs_space, action_space) -> Agent.
        schedule: When, and how.
        theta: [P] weights that are played, shared with who trains them.
        moments: Slots of what the environments normalise by, likewise.
        frames: Slots of all clocks, likewise.
        max_frame: Budget of all clocks together.
        updates: Slots of all counts of updates, likewise.
        last: [2] frames and updates at the last evaluation that the parent knows of, shared.
        ended: Shared; whether theta is final.
        control: Told of every step, and asked whether to end at once.
    """

    make_envs: Callable[..., Envs]
    make_agent: Callable[..., Agent]
    schedule: Schedule
    theta: Tensor
    moments: Mapping[str, Tensor]
    frames: Sequence[Tensor]
    max_frame: int
    updates: Sequence[Tensor]
    last: Tensor
    ended: Tensor
    control: Control

    def run_beside(self) -> Iterator[Evaluated | None]:
        """Do what ``run`` does in a process that yields to those that train."""
        os.nice(self.schedule.nice)
        yield None  # it runs: what fails from here on is tried again
        yield from self.run()

    def run(self) -> Iterator[Evaluated]:
        """Evaluate whenever it is due, and when theta is final for the last time."""
        with closing(self.make_envs(num_envs=1)) as envs:
            yield from self._evaluate(envs)

    def _evaluate(self, envs: Envs) -> Iterator[Evaluated]:
        plan = self.schedule
        assert plan.every is not None
        agent = self.make_agent(envs.obs_space, envs.action_space)
        theta, moments = self.theta.clone(), {name: slots.clone() for name, slots in self.moments.items()}
        equip(agent, envs, theta, moments)
        last = tuple(self.last.tolist())
        while not self._is_told_to_end():
            final = bool(self.ended)  # before the clock is read: then that is final, too
            now = sum(int(slots.sum()) for slots in self.frames), sum(int(slots.sum()) for slots in self.updates)
            if final and now == last:
                return
            due = now[0] // plan.every > last[0] // plan.every and now[0] < self.max_frame  # else what is final follows
            if not (final or due):
                time.sleep(TICK)
                continue
            seconds = time.monotonic()
            theta.copy_(self.theta)
            for name, slots in moments.items():
                slots.copy_(self.moments[name])
            games = []
            limit = plan.max_episode_steps
            for game in play(agent, envs, plan.episodes, plan.deterministic, max_episode_steps=limit):
                if self._is_told_to_end():
                    return
                if game is not None:
                    games.append(game)
            cut = sum(game.is_cut for game in games)
            yield Evaluated(*now, seconds, [game.ret for game in games], [game.length for game in games], cut)
            last = now
            if final:
                return

    def _is_told_to_end(self) -> bool:
        self.control.beat(0, slow=True)
        return self.control.ending()


class Evaluator:
    """The parent's side: a thread runs the process as ``launch`` runs sessions, and gives it up if it keeps failing.

    Whatever becomes of it, training goes on.

    Args:
        schedule: With ``every``.
        make_envs: () -> Envs.
        make_agent: (obs_space, action_space) -> Agent.
        stores: The first one's weights are played: with ``distributed=off`` those of session 0.
        hang_after: Of a session; ten times as long may be between two steps here.
        last: Frames and updates at the last evaluation.
    """

    def __init__(
        self,
        schedule: Schedule,
        make_envs: Callable[..., Envs],
        make_agent: Callable[..., Agent],
        stores: Sequence[Store],
        hang_after: float,
        last: tuple[int, int] = (0, 0),
    ) -> None:
        self._control = Control(1, MAX_FAILURES - 1, hang_after)
        self._player = Player(
            make_envs=make_envs,
            make_agent=make_agent,
            schedule=schedule,
            theta=stores[0].theta,
            moments={name: moments.slots for name, moments in stores[0].moments.items()},
            frames=[store.frames for store in stores],
            max_frame=sum(store.max_frame for store in stores),
            updates=[store.updates for store in stores],
            last=torch.tensor(last).share_memory_(),
            ended=torch.zeros((), dtype=torch.bool).share_memory_(),
            control=self._control,
        )
        self._results: queue.SimpleQueue[Evaluated] = queue.SimpleQueue()
        # starting a process waits for the fork server to have imported everything; training must not
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def results(self) -> Iterator[Evaluated]:
        """Yield what has come since the last call; never waits."""
        with suppress(queue.Empty):
            while True:
                yield self._results.get_nowait()

    def finish(self, cancelled: Callable[[], object]) -> Iterator[Evaluated]:
        """Yield what is to come, up to the evaluation of the final weights; to be called when nobody trains any more.

        Args:
            cancelled: Whether to wait no longer.
        """
        wait = self._player.schedule.wait
        self._player.ended.fill_(True)
        deadline = time.monotonic() + wait
        while self._thread.is_alive() and time.monotonic() < deadline and not cancelled():
            self._thread.join(TICK)
            yield from self.results()
        if self._thread.is_alive() and not cancelled():
            log.warning("the final weights were not evaluated within eval.wait=%g seconds", wait)
        yield from self.results()

    def close(self) -> None:
        """End the process."""
        self._control.finish(END)
        self._thread.join(5)

    def _supervise(self) -> None:
        failure = None
        try:
            for event in launch([self._player.run_beside], 1, self._control, first=0):
                match event:
                    case Evaluated():
                        self._player.last.copy_(torch.tensor(event[:2]))
                        self._control.begin(0, restarts=0)  # only failures in a row count
                        self._results.put(event)
                    case Failure():
                        failure = event
                        if event.delay is not None:
                            log.warning(
                                "the evaluator %s; restart in %.0f s%s", event.cause, event.delay, _details(event)
                            )
        except SessionError:
            assert failure is not None
            log.warning("the evaluator %s; the run goes on without evaluations%s", failure.cause, _details(failure))


def _details(failure: Failure) -> str:
    return f"\n{failure.details.rstrip()}" if failure.details else ""
