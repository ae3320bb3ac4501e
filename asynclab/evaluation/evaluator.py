"""Evaluation while a run trains: a process of its own plays copies of the weights.

It watches the clock and copies theta itself, so neither the sessions nor the parent do anything for it, and it plays
the newest weights when it has time: if an evaluation takes longer than ``every`` frames, those in between are left out.
"""

import logging
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asynclab import check, script
from asynclab.agents import Agent
from asynclab.distributed import Store
from asynclab.envs import Envs
from asynclab.evaluation.play import SEED, check_request, equip, play
from asynclab.processes.launch import end_helpers, settle
from asynclab.processes.server import start_server

log = logging.getLogger(__name__)

TICK = 0.1  # seconds between two looks
MAX_FAILURES = 3  # in a row, after which there are no more evaluations


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
class Match:
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
        beats: Shared number that changes as long as the process lives.
        ended: Shared; whether theta is final.
        closing: Shared; whether to end at once.
    """

    make_envs: Callable[..., Envs]
    make_agent: Callable[..., Agent]
    schedule: Schedule
    theta: Tensor
    moments: Mapping[str, Tensor]
    frames: Sequence[Tensor]
    max_frame: int
    updates: Sequence[Tensor]
    beats: Tensor
    ended: Tensor
    closing: Tensor

    def run(self, last: tuple[int, int]) -> Iterator[Evaluated]:
        """Evaluate whenever it is due, and when theta is final for the last time.

        Args:
            last: Frames and updates at the last evaluation.
        """
        with closing(self.make_envs(num_envs=1)) as envs:
            yield from self._evaluate(envs, last)

    def _evaluate(self, envs: Envs, last: tuple[int, int]) -> Iterator[Evaluated]:
        plan = self.schedule
        assert plan.every is not None
        agent = self.make_agent(envs.obs_space, envs.action_space)
        theta, moments = self.theta.clone(), {name: slots.clone() for name, slots in self.moments.items()}
        equip(agent, envs, theta, moments)
        while not self.closing:
            final = bool(self.ended)  # before the clock is read: then that is final, too
            now = sum(int(slots.sum()) for slots in self.frames), sum(int(slots.sum()) for slots in self.updates)
            if final and now == last:
                return
            due = now[0] // plan.every > last[0] // plan.every and now[0] < self.max_frame  # else what is final follows
            if not (final or due):
                self.beats.add_(1)
                time.sleep(TICK)
                continue
            seconds = time.monotonic()
            theta.copy_(self.theta)
            for name, slots in moments.items():
                slots.copy_(self.moments[name])
            games = []
            limit = plan.max_episode_steps
            for game in play(agent, envs, plan.episodes, plan.deterministic, max_episode_steps=limit):
                self.beats.add_(1)
                if self.closing:
                    return
                if game is not None:
                    games.append(game)
            cut = sum(game.is_cut for game in games)
            yield Evaluated(*now, seconds, [game.ret for game in games], [game.length for game in games], cut)
            last = now
            if final:
                return


class Evaluator:
    """The parent's side: starts the process in the background, starts it again if it dies or hangs, and gives it up.

    Whatever becomes of it, training goes on.

    Args:
        schedule: With ``every``.
        make_envs: () -> Envs.
        make_agent: (obs_space, action_space) -> Agent.
        stores: The first one's weights are played: with ``distributed=off`` those of session 0.
        patience: Seconds without a sign of life after which the process counts as hung.
        last: Frames and updates at the last evaluation.
    """

    def __init__(
        self,
        schedule: Schedule,
        make_envs: Callable[..., Envs],
        make_agent: Callable[..., Agent],
        stores: Sequence[Store],
        patience: float,
        last: tuple[int, int] = (0, 0),
    ) -> None:
        self._match = Match(
            make_envs,
            make_agent,
            schedule,
            stores[0].theta,
            {name: moments.slots for name, moments in stores[0].moments.items()},
            [store.frames for store in stores],
            sum(store.max_frame for store in stores),
            [store.updates for store in stores],
            torch.zeros((), dtype=torch.int64).share_memory_(),
            torch.zeros((), dtype=torch.bool).share_memory_(),
            torch.zeros((), dtype=torch.bool).share_memory_(),
        )
        self._patience = patience
        self._last = last
        self._results: queue.SimpleQueue[Evaluated] = queue.SimpleQueue()
        self._closing = threading.Event()
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
        self._match.ended.fill_(True)
        deadline = time.monotonic() + self._match.schedule.wait
        while self._thread.is_alive() and time.monotonic() < deadline and not cancelled():
            self._thread.join(TICK)
            yield from self.results()
        if self._thread.is_alive() and not cancelled():
            log.warning("the final weights were not evaluated within eval.wait=%g seconds", self._match.schedule.wait)
        yield from self.results()

    def close(self) -> None:
        """End the process."""
        self._match.closing.fill_(True)
        self._closing.set()
        self._thread.join(5)

    def _supervise(self) -> None:
        failures = 0
        while not self._closing.is_set():
            before = self._last
            cause = self._run()
            if cause is None:
                return
            failures = failures + 1 if self._last == before else 1
            if failures == MAX_FAILURES:
                log.warning("the evaluator %s; the run goes on without evaluations", cause)
                return
            delay = 2.0 ** (failures - 1)
            log.warning("the evaluator %s; restart in %.0f s", cause, delay)
            self._closing.wait(delay)

    def _run(self) -> str | None:
        """Run the process to its end and return what was wrong with it."""
        context = mp.get_context("forkserver")
        try:
            start_server()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_child, args=(self._match, self._last, sender), name="evaluator", daemon=True
            )
            with script.starting():
                process.start()
        except (OSError, EOFError) as error:  # no memory, no descriptors, a fork server that has just died
            return f"could not be started ({error or type(error).__name__})"
        sender.close()  # only the process holds it now, so its death is an end of file
        try:
            return self._listen(process, receiver)
        finally:
            process.join(1)  # it closes its environment, which may have processes of its own
            process.kill()
            process.join()
            process.close()
            receiver.close()

    def _listen(self, process: Any, receiver: Connection) -> str | None:
        beats, silent, looked = -1, 0.0, time.monotonic()
        while not self._closing.is_set():
            if receiver.poll(TICK):
                try:
                    item = receiver.recv()
                except (EOFError, OSError):
                    process.join(5)
                    code = process.exitcode
                    return f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"exited ({code})"
                if not isinstance(item, Evaluated):
                    return item
                self._last = item[:2]
                self._results.put(item)
            # time in which we did not run ourselves, such as between Ctrl-Z and fg, says nothing about it
            passed, looked = min(time.monotonic() - looked, 2 * TICK), time.monotonic()
            silent = silent + passed if int(self._match.beats) == beats else 0.0
            beats = int(self._match.beats)
            if silent >= self._patience:
                return f"hung for {self._patience:.0f} s and was killed"
        return None


def _child(match: Match, last: tuple[int, int], sender: Connection) -> None:
    settle(num_threads=1)
    os.nice(match.schedule.nice)
    end = None
    try:
        for item in match.run(last):
            sender.send(item)
    except Exception:
        end = f"raised\n{traceback.format_exc().rstrip()}"
    sender.send(end)
    end_helpers()
