"""What a test has in place of a debugger (PYTHONBREAKPOINT)."""

import sys


def look():
    moment = sys._getframe(1).f_locals["moment"]
    grad = moment.actor.worker.loop.learner.grad.full
    print(f"{moment.store.total_updates()} updates so far, {moment.actor.turn}, a gradient of {len(grad)} numbers")
