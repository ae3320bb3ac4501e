"""A process that saves, and that a drill kills.  Light to import."""

from functools import partial

import torch

from asynclab.distributed import Network, Store
from asynclab.optim import GlobalAdam
from asynclab.schedules import Constant
from asynclab.storage import checkpoint
from asynclab.storage.checkpoint import Checkpoints


def save_for_ever(folder):
    """Save checkpoints that tell how many updates they hold; go on from the last one."""
    store = Store(
        Network(torch.zeros(50_000), {"all": slice(0, 50_000)}), partial(GlobalAdam, lr=0.1), 10**9, Constant()
    )
    checkpoints, number = Checkpoints(folder, keep=2), 0
    checkpoints.clean()
    if checkpoint.exists(folder):
        store.load_state_dict(checkpoint.load(folder).stores()[0])
    while True:
        store.apply(torch.ones(50_000))
        store.updates += 1
        store.frames += 8
        checkpoints.commit(number, [store], {"config": {}}, {}, is_best=number % 3 == 0)
        number += 1
