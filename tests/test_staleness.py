import timeit
from collections import Counter
from functools import partial

import pytest
import torch
from conftest import TORSO
from test_learner import learner_of, some_batches

from asynclab.agents import A3C
from asynclab.distributed import Shared, Synced
from asynclab.nets import MLPTorso
from asynclab.run import staleness


def test_summary_is_that_of_the_values_themselves():
    assert staleness.summary({}) is None
    assert staleness.summary({0: 7}) == {"mean": 0.0, "p50": 0, "p95": 0, "max": 0}
    # 94 zeros, 5 threes and one 20: the 95th of 100 is a three
    assert staleness.summary({20: 1, 0: 94, 3: 5}) == {"mean": 0.35, "p50": 0, "p95": 3, "max": 20}


@pytest.mark.parametrize("mode", [Synced, Shared])
def test_one_session_alone_is_never_stale(make_trial, mode):
    trial = make_trial(mode=mode(1))
    learner = learner_of(trial)
    for batch in some_batches(trial, 3):
        list(learner.update(batch))
    assert learner.staleness() == Counter({0: 3})
    assert learner.staleness() == Counter()


def test_a_private_copy_is_as_stale_as_what_others_pushed_since_its_pull(make_trial):
    trial = make_trial(mode=Synced(1))
    ours, theirs = learner_of(trial), learner_of(trial)
    batch, other = some_batches(trial, 2)
    for pushes in (2, 0, 5):
        for _ in range(pushes):
            list(theirs.update(other))
        list(ours.update(batch))
    assert ours.staleness() == Counter({2: 1, 0: 1, 5: 1})


class Interrupted(A3C):
    """Lets somebody else do something between its forward pass and the push of its gradient."""

    def loss(self, batch, progress):
        result = super().loss(batch, progress)
        self.meanwhile()
        return result


@pytest.mark.parametrize(("mode", "expected"), [(Synced, 2 + 3), (Shared, 3)])
def test_what_is_pushed_during_an_update_makes_it_stale(make_trial, mode, expected):
    trial = make_trial(mode=mode(1))
    batch, other = some_batches(trial, 2)
    theirs = learner_of(trial)
    object.__setattr__(trial.session, "make_agent", partial(Interrupted, torso=TORSO))
    ours = learner_of(trial)
    ours.agent.meanwhile = lambda: [list(theirs.update(other)) for _ in range(3)]
    for _ in range(2):  # before our update: shared weights have seen them, a private copy has not
        list(theirs.update(other))
    list(ours.update(batch))
    assert ours.staleness() == Counter({expected: 1})


@pytest.mark.parametrize("algo", ["a3c", "sac"])
@pytest.mark.parametrize("mode", [Synced, Shared])
def test_alone_a_gradient_agrees_with_itself_and_measuring_changes_nothing(make_trial, algo, mode):
    thetas = []
    for diagnostics in (False, True):
        trial = make_trial(algo, mode=mode(1, diagnostics=diagnostics))
        learner = learner_of(trial)
        batches = some_batches(trial, 22)
        torch.manual_seed(0)
        for batch in batches:
            list(learner.update(batch))
        thetas.append(trial.stores[0].theta)
    assert torch.equal(*thetas)
    assert learner.metrics()["hogwild/agreement"] == pytest.approx(1.0, abs=1e-5)


def test_a_stale_gradient_agrees_less(make_trial):
    trial = make_trial(mode=Synced(1, diagnostics=True))
    batch, _ = some_batches(trial, 2)
    learner = learner_of(trial)
    trial.stores[0].theta.normal_()  # others have gone far since the pull
    list(learner.update(batch))
    assert -1 <= learner.metrics()["hogwild/agreement"] < 0.9


def test_recording_costs_less_than_a_hundredth_of_an_update(make_trial):
    """Of a small one: 40 steps of CartPole, two layers of 64."""
    trial = make_trial(mode=Synced(1), torso=partial(MLPTorso, hidden=[64, 64]))
    learner, store = learner_of(trial), trial.stores[0]
    batch = some_batches(trial, 1)[0]  # 2 environments x 10 steps
    wide = {
        name: torch.cat([getattr(batch, name)] * 2, 1) for name in ("obs", "action", "reward", "terminated", "done")
    }
    batch = batch._replace(**wide)

    def record():
        learner._seen = store.total_updates()
        learner._staleness[store.total_updates() - learner._seen] += 1

    def seconds(work):  # the fastest of many: what else the machine does only adds to it
        return min(timeit.repeat(work, number=20, repeat=50))

    print(seconds(record) / 20 * 1e6, seconds(lambda: list(learner.update(batch))) / 20 * 1e6)
    assert seconds(record) < 0.01 * seconds(lambda: list(learner.update(batch)))
