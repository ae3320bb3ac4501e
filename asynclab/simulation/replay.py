"""The sessions of a recorded run, one after the other in the order in which they took their turns."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import torch

from asynclab import progress
from asynclab.distributed import Store
from asynclab.simulation.simulator import Actor
from asynclab.simulation.tape import DiffersError, Line, Playback, read
from asynclab.training.learner import Turn
from asynclab.training.session import Session


class Moment(NamedTuple):
    """Right before an update.

    Attributes:
        line: Of the record.
        actor: The session whose update it is, ``actor.worker.loop`` with environments, memory and learner, whose
            ``grad`` is about to be pushed.
        store: As the update finds it.
        others: The sessions that have begun, by rank.
    """

    line: Line
    actor: Actor
    store: Store
    others: dict[int, Actor]


def replay(session: Session, store: Store, lines: Sequence[str], until: int | None = None) -> Moment | None:
    """Make every update of a record once more, in this process, and compare it with what was recorded.

    Args:
        session: Of a new trial with the run's settings.
        store: Of that trial.
        lines: Of the record.
        until: Number of the update before which to stop; None to go to the end.

    Returns:
        What there is before update ``until``, else None.

    Raises:
        DiffersError: An update is not what it was; the message has its number.
    """
    session = replace(session, tape=Playback(lines))
    record = [read(number, text) for number, text in enumerate(lines, 1)]
    for line in record:
        if not 0 <= line.rank < len(store.updates):
            raise DiffersError(line.update, f"there is no session {line.rank}")
    actors: dict[int, Actor] = {}
    to_pull: dict[int, list[int]] = defaultdict(list)  # ranks, by the version of theta that they pull next
    following = _following(record)
    for rank, line in following.pop(0).items():
        to_pull[line.pulled].append(rank)
    with ExitStack() as stack:
        for version, line in enumerate(progress.counted(record, "updates")):
            for rank in to_pull.pop(version, ()):
                if rank in actors:
                    actors[rank].advance(Turn.PULL)
                else:
                    with torch.random.fork_rng(devices=[]):
                        actors[rank] = Actor(session.begin(rank, store.for_session()))
                    stack.callback(actors[rank].worker.loop.envs.close)
            actor = actors.get(line.rank)
            if actor is None or actor.turn is Turn.PUSH:
                raise DiffersError(line.update, f"session {line.rank} cannot have weights of version {line.pulled}")
            actor.advance(Turn.GRADIENT)
            if line.update == until:
                stack.pop_all()  # the environments stay open
                return Moment(line, actor, store, actors)
            actor.advance(Turn.PUSH)
            if next_line := following[line.update - 1].get(line.rank):
                to_pull[next_line.pulled].append(line.rank)
    return None


def _following(record: Sequence[Line]) -> list[dict[int, Line]]:
    """Return the first line of every session, and then for each line the next one of the same session."""
    coming: dict[int, Line] = {}
    found: list[dict[int, Line]] = []
    for line in reversed(record):
        found.append({line.rank: coming[line.rank]} if line.rank in coming else {})
        coming[line.rank] = line
    return [coming, *reversed(found)]
