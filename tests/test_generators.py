"""What is drawn on a GPU; a second generator stands in for its own, which torch.manual_seed does not know."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TORSO, run_session
from test_learner import learner_of, some_batches

from asynclab.agents import A3C
from asynclab.distributed import Synced
from asynclab.profile import Profile
from asynclab.storage import checkpoint, snapshot
from asynclab.storage.segments import MemoryFiles
from asynclab.training import generators
from asynclab.training.state import Start, resume, save

GPU = torch.Generator()


class Noisy(A3C):
    """Weighs its losses by random numbers of the GPU."""

    def loss(self, batch, progress):
        losses, metrics = super().loss(batch, progress)
        return {name: loss * torch.rand((), generator=GPU) for name, loss in losses.items()}, metrics


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    both = {"torch": torch.default_generator, "cuda": GPU}
    monkeypatch.setattr(generators, "generators", lambda device: both)


@pytest.fixture
def make_noisy(make_trial):
    """Return a function that makes a trial of the noisy agent; seed says what the GPU begins with."""

    def make(seed, **settings):
        GPU.manual_seed(seed)
        trial = make_trial(**settings)
        trial.session = replace(trial.session, make_agent=partial(Noisy, torso=TORSO))
        return trial

    return make


def test_a_gpu_has_a_generator_of_its_own_beside_the_cpus(monkeypatch):
    monkeypatch.undo()
    one, two = torch.Generator(), torch.Generator()
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (one, two))
    assert generators.generators(torch.device("cpu")) == {"torch": torch.default_generator}
    assert generators.generators(torch.device("cuda:1")) == {"torch": torch.default_generator, "cuda": two}
    assert generators.generators(torch.device("cuda")) == {"torch": torch.default_generator, "cuda": one}


def test_gradients_are_compared_under_the_same_noise_and_comparing_changes_nothing(make_noisy):
    thetas = []
    for diagnostics in (False, True):
        trial = make_noisy(0, mode=Synced(1, diagnostics=diagnostics))
        learner = learner_of(trial)
        for batch in some_batches(trial, 22):
            list(learner.update(batch))
        thetas.append(trial.stores[0].theta)
    assert torch.equal(*thetas)
    assert learner.metrics()["hogwild/agreement"] == pytest.approx(1.0, abs=1e-5)


def test_one_session_with_n_plus_n_frames_equals_2n_bit_for_bit_on_a_gpu(make_noisy, tmp_path):
    whole = make_noisy(0, max_frame=1_000)
    run_session(whole.session, 0, whole.stores[0])
    make_noisy(0, max_frame=500).run()
    second = make_noisy(1, max_frame=1_000, checkpoint=checkpoint.load(tmp_path))
    second.run()
    assert second.stores[0].total_updates() == 50
    assert torch.equal(second.stores[0].theta, whole.stores[0].theta)


def test_a_checkpoint_without_the_state_of_a_gpus_generator_is_resumed(make_noisy, tmp_path):
    trial = make_noisy(0)
    parts = trial.session.set_up(0, trial.stores[0], Profile(False))
    memory_files = MemoryFiles(tmp_path, 0)
    files = save(parts, tmp_path, 0, memory_files, {})
    saved = snapshot.read_tensors(tmp_path / "session_00.pt")
    cpu = saved["torch"]
    snapshot.write_tensors(tmp_path / "session_00.pt", {k: v for k, v in saved.items() if k != "cuda"})
    GPU.manual_seed(7)
    torch.manual_seed(7)
    resume(parts, Start(tmp_path, frozenset(files), 1), 0, memory_files)
    assert torch.equal(torch.get_rng_state(), cpu)
    assert torch.equal(GPU.get_state(), torch.Generator().manual_seed(7).get_state())
