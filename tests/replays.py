"""Small replays whose numbers tell their place, and a process that saves one.  Light to import."""

import numpy as np
from gymnasium.spaces import Box

from asynclab.envs import Step
from asynclab.memory import Replay
from asynclab.storage import snapshot
from asynclab.storage.segments import MemoryFiles

NUM_ENVS, ROWS = 2, 640  # in 64 segments of 10


def step(t):
    """Observation t + 1 of every environment; environment b's numbers are t + 1 + b / 10."""
    obs = np.add.outer(np.arange(NUM_ENVS) / 10, np.full(3, t + 1.0)).astype(np.float32)
    cut = np.array([t % 7 == 0, False])
    final = {0: obs[0].copy()} if cut[0] else {}
    return Step(obs, np.full(NUM_ENVS, t, np.float32), np.zeros(NUM_ENVS, bool), cut, final, [])


def take(replay, t):
    replay.add(np.full((NUM_ENVS, 1), t, np.float32), step(t))


def filled(steps):
    """Return a replay after so many steps."""
    space = Box(-np.inf, np.inf, (3,), np.float32)
    replay = Replay(space, Box(-1, 1, (1,), np.float32), NUM_ENVS, capacity=ROWS * NUM_ENVS, batch_size=500)
    replay.reset(step(-1).obs)
    for t in range(steps):
        take(replay, t)
    return replay


def save_for_ever(folder):
    """Go on from what was saved last, and save again and again; a file tells how many steps are saved."""
    files, replay, number = MemoryFiles(folder, 0), filled(0), 0
    files.load(replay)
    while True:
        for _ in range(35):
            take(replay, replay._held().stop)
        files.save(replay, snapshot.partial(folder / str(replay._held().stop), number))
        (folder / f"done_{replay._held().stop}").touch()
        number += 1
