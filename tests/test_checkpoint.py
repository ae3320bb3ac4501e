import json
import math
import multiprocessing as mp

import pytest
import torch

from asynclab import precision
from asynclab.distributed import Simulated, Synced
from asynclab.run import resources
from asynclab.run.recorder import Recorder
from asynclab.run.snapshots import Snapshot
from asynclab.run.trial import TrialError
from asynclab.storage import checkpoint
from asynclab.storage.checkpoint import Checkpoints
from asynclab.training.messages import Record, Return


@pytest.fixture
def commit(make_trial, tmp_path):
    """Return the store of a trial and a function that makes a checkpoint of it."""
    (store,) = make_trial().stores
    checkpoints, number = Checkpoints(tmp_path, keep=2), iter(range(100))
    return store, lambda best=False: checkpoints.commit(next(number), [store], {"config": {"seed": 3}}, {}, best)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_checkpoint_is_a_copy_and_loads_into_another_store(commit, make_trial, tmp_path):
    store, save = commit
    store.apply(torch.ones_like(store.theta))
    store.frames += 8
    store.updates += 1
    save()
    before = store.theta.clone()
    store.apply(torch.ones_like(store.theta))
    (state,) = checkpoint.load(tmp_path).stores()
    assert torch.equal(state["theta"], before)
    (other,) = make_trial(seed=1).stores
    other.load_state_dict(state)
    other.apply(torch.ones_like(store.theta))
    assert torch.equal(other.theta, store.theta)
    assert (other.total_frames(), other.total_updates()) == (8, 1)


def test_an_optimizer_that_is_not_global_comes_back_too(make_trial):
    stores = [make_trial(optimizer=torch.optim.Adam).stores[0] for _ in range(2)]
    stores[0].apply(torch.ones_like(stores[0].theta))
    stores[1].load_state_dict(stores[0].state_dict())
    for store in stores:
        store.apply(torch.ones_like(store.theta))
    assert torch.equal(stores[0].theta, stores[1].theta)
    assert stores[1].optimizer.state_dict()["state"][0]["step"] == 2


def test_the_last_and_the_best_are_kept(commit, tmp_path):
    _, save = commit
    for best in (False, True, False, False, False):
        save(best)
    assert names(tmp_path) == ["000001", "000003", "000004", "best", "latest"]
    assert [checkpoint.load(tmp_path, name).path.name for name in ("latest", "best", "000003")] == [
        "000004",
        "000001",
        "000003",
    ]


def test_the_last_one_with_every_sessions_state_is_kept(make_trial, tmp_path):
    (store,) = make_trial().stores
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number, complete in enumerate([True, True, False, False, False]):
        checkpoints.commit(number, [store], {"config": {}}, {}, is_best=False, is_complete=complete)
    assert names(tmp_path) == ["000001", "000003", "000004", "latest"]


def test_damaged_ones_are_set_aside_and_do_not_push_out_good_ones(commit, tmp_path):
    _, save = commit
    for _ in range(3):
        save()
    (tmp_path / "checkpoints" / "000002" / "stores.pt").write_bytes(b"")
    found = checkpoint.load(tmp_path)
    Checkpoints(tmp_path, keep=2).set_aside(found)
    save()
    assert [name for name in names(tmp_path) if name.isdecimal()] == ["000001", "000002"]
    assert any(name.startswith("000002.damaged_") for name in names(tmp_path))
    assert checkpoint.load(tmp_path).path.name == "000002"


def test_a_damaged_best_is_best_no_more(commit, tmp_path):
    _, save = commit
    for best in (False, False, True):
        save(best)
    (tmp_path / "checkpoints" / "000002" / "stores.pt").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.has_best
    checkpoints.set_aside(checkpoint.load(tmp_path))
    assert not checkpoints.has_best
    assert save().name == "000002"  # which was the best one's number
    assert "best" not in names(tmp_path)


def test_the_manifest_says_what_a_checkpoint_is_made_of(commit, tmp_path):
    store, save = commit
    store.frames += 16
    manifest = json.loads((save() / "manifest.json").read_text())
    assert (manifest["format"], manifest["frames"]) == (3, 16)
    assert set(manifest["files"]) == {"stores.pt", "trial.json"}


@pytest.fixture
def record_and_commit(make_trial):
    """Return a trial, and a function that records an episode for each of some returns and takes a checkpoint."""
    trial = make_trial()
    recorder, number = Recorder(trial.folder, trial.mode, trial.stores, 1000.0), iter(range(100))
    snapshots = trial.snapshots(Checkpoints(trial.folder, 2), recorder)

    def run(returns):
        n = next(number)
        episodes = [Return(i, i, 1000.0 * n + i, ret, 1) for i, ret in enumerate(returns)]
        recorder.write(Record(0, 0, 0, episodes, {}, {}))
        snapshots.commit(Snapshot(n))

    return trial, run


def test_best_is_the_checkpoint_with_the_highest_mean_of_100_episodes(record_and_commit, tmp_path):
    _, run = record_and_commit
    run([900.0] * 99)
    assert names(tmp_path) == ["000000", "latest"]  # too few to mean anything
    for returns in ([5.0] * 100, [7.0] * 100, [6.0] * 100):
        run(returns)
    best = checkpoint.load(tmp_path, "best")
    assert (best.path.name, best.trial()["best"]) == ("000002", 7.0)


def test_weights_that_are_not_finite_do_not_become_a_checkpoint(record_and_commit, tmp_path):
    trial, run = record_and_commit
    run([])
    trial.stores[0].theta[3] = math.nan
    with pytest.raises(OSError, match="the weights are not finite"):
        run([])
    assert names(tmp_path) == ["000000", "latest"]


def test_a_checkpoint_of_other_networks_is_refused(make_trial, tmp_path):
    make_trial().run()
    found = checkpoint.load(tmp_path)
    other = found.trial() | {"layout": ["actor_critic.0.weight [3]"]}
    (found.path / "trial.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="has other networks than this version"):
        make_trial(checkpoint=found)


@pytest.mark.parametrize("native", [False, True])
def test_auto_goes_on_in_what_the_run_began_with_and_names_both(make_trial, tmp_path, monkeypatch, caplog, native):
    monkeypatch.setattr(precision, "has_native_bf16", lambda device: native)
    assert make_trial(precision="auto").session.rules.precision == "fp32"  # its layers are dense
    make_trial(precision="bf16").run()
    found = checkpoint.load(tmp_path)
    assert make_trial(precision="auto", checkpoint=found).session.rules.precision == "bf16"
    slow = "" if native else ", although this processor only emulates it, which is slow"
    assert caplog.messages[-1] == (
        "the run has computed in bf16, and algo.precision=auto would now choose fp32: it goes on in bf16"
        f"{slow}; algo.precision=fp32 changes that"
    )
    said = len(caplog.messages)
    typed = make_trial(precision="fp32", checkpoint=found, max_frame=4_000)
    assert typed.session.rules.precision == "fp32"
    typed.run()
    assert make_trial(precision="auto", checkpoint=checkpoint.load(tmp_path)).session.rules.precision == "fp32"
    assert not [message for message in caplog.messages[said:] if "algo.precision" in message]


@pytest.mark.parametrize(
    ("was", "native", "expected"), [("auto", True, "bf16"), ("auto", False, "fp32"), ("fp32", True, "fp32")]
)
def test_a_run_of_an_older_version_goes_on_as_that_would(make_trial, tmp_path, monkeypatch, was, native, expected):
    make_trial().run()
    found = checkpoint.load(tmp_path)
    trial = found.trial() | {"config": {"algo": {"precision": was}}}
    del trial["precision"]
    (found.path / "trial.json").write_text(json.dumps(trial))
    monkeypatch.setattr(precision, "has_native_bf16", lambda device: native)
    assert make_trial(precision="auto", checkpoint=found).session.rules.precision == expected


def test_shared_memory_and_memory_are_compared_with_the_plan(monkeypatch):
    with pytest.raises(ValueError, match=r"need .* of shared memory and /dev/shm has .*--shm-size"):
        resources.check_shared_memory(10**15)
    with pytest.raises(ValueError, match=r"the sessions' memories need 1000000\.00 GB .*lower algo\.memory\.capacity"):
        resources.check_memory(Synced(1_000), 10**12, 0)
    monkeypatch.setattr(resources, "available_memory", lambda: 10**9)
    with pytest.raises(ValueError, match=r"their processes about 2\.40 GB, and 1\.00 GB are available"):
        resources.check_memory(Synced(16), 10, 10**9)
    # 19 more sessions have weights and a gradient of their own, and four nodes 22 times as much as a network
    with pytest.raises(ValueError, match=r"about 739\.0 MB, the networks of 4 nodes about 880\.0 MB \(220\.0 MB each"):
        resources.check_memory(Simulated(20, nodes=4), 0, 10**7)
    resources.check_memory(Simulated(20, nodes=4), 0, 10**5)


@pytest.mark.parametrize("sessions", [1, 2])
def test_what_breaks_in_the_parent_ends_the_sessions_and_leaves_the_last_checkpoint(
    make_trial, tmp_path, monkeypatch, sessions
):
    trial = make_trial(mode=Synced(sessions), max_frame=10_000_000)
    trial.cfg.checkpoint_every = 1e-6
    monkeypatch.setattr(Recorder, "write", break_after(30, Recorder.write))
    with pytest.raises(TrialError, match=r"the run had to end: .*Input/output error.*resume=.* goes on"):
        trial.run()
    found = checkpoint.load(tmp_path)
    assert any(name.startswith("session_") for name in found.manifest["files"])  # while all stood still
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    assert not mp.active_children()


def break_after(count, write):
    calls = iter(range(count))

    def wrapper(self, record):
        if next(calls, None) is None:
            raise OSError(5, "Input/output error")
        write(self, record)

    return wrapper
