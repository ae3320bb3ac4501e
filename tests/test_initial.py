"""Runs that begin with the weights of others, and runs that end before their budget is used up."""

import json
import shutil

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from asynclab import build, config
from asynclab.run.trial import Stop
from asynclab.storage import checkpoint, zoo

config.register()
pytestmark = pytest.mark.medium
SMALL = ["env=gym", "env.id=odd_envs:Twenty-v0", "env.num_envs=2", "env.torso.hidden=[8]", "algo.memory.horizon=8",
         "env.max_frame=160", "device=cpu", "distributed.max_session=1"]  # fmt: skip
PPO = [*SMALL, "algo=ppo", "algo.agent.minibatch_size=8"]
CARTPOLE = str(ROOT / "zoo" / "a3c_cartpole")


def make(folder, *overrides, found=None):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", list(overrides))
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    return build.make_trial(cfg, folder, found)


def thetas(folder):
    """Return the weights of a run's first and latest checkpoint."""
    return [checkpoint.load(folder, name).stores()[0]["theta"] for name in ("0", "latest")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a small run."""
    folder = tmp_path_factory.mktemp("run")
    make(folder, *SMALL).run()
    return folder


def test_a_run_begins_with_the_weights_of_another_to_the_bit_and_on_a_clock_of_its_own(run, tmp_path):
    trial = make(tmp_path, *SMALL, "seed=5", "env.max_frame=320", f"init_from={run}", "algo.optimizer.lr=1e-2")
    (store,) = trial.stores
    _, expected = thetas(run)
    assert torch.equal(store.theta, expected)
    assert (store.total_frames(), store.total_updates(), store.progress()) == (0, 0, 0.0)
    trial.run()
    assert json.loads((tmp_path / "summary.json").read_text())["frames"] == 320
    first, last = thetas(tmp_path)
    assert torch.equal(first, expected)
    assert not torch.equal(last, expected)


def test_an_environment_of_equal_spaces_will_do_and_so_will_an_agent_of_the_zoo(run, tmp_path):
    other = make(tmp_path / "other", *SMALL, "+env.make.steps=5", f"init_from={run}/checkpoints/latest")
    assert torch.equal(other.stores[0].theta, thetas(run)[1])
    tuned = make(tmp_path / "tuned", "algo=a3c", "env=cartpole", "distributed.max_session=2", f"init_from={CARTPOLE}")
    assert torch.equal(tuned.stores[0].theta, zoo.read(ROOT / "zoo" / "a3c_cartpole").theta)


def test_some_networks_are_taken_and_the_others_are_new(run, tmp_path):
    new = make(tmp_path / "new", *SMALL, "seed=5")
    mixed = make(tmp_path / "mixed", *SMALL, "seed=5", f"init_from={run}", "init_networks=[actor]")
    actor, critic = (new.stores[0].networks[name] for name in ("actor", "critic"))
    (theta,) = (store.theta for store in mixed.stores)
    assert torch.equal(theta[actor], thetas(run)[1][actor])
    assert torch.equal(theta[critic], new.stores[0].theta[critic])


def test_targets_begin_as_copies_and_every_repeat_of_off_with_the_same_weights(tmp_path):
    q = [*SMALL, "algo=nstep_q", "algo.agent.target_every=100"]
    make(tmp_path / "a", *q).run()
    trial = make(tmp_path / "b", *q, f"init_from={tmp_path / 'a'}", "distributed=off", "distributed.max_session=2")
    theta = thetas(tmp_path / "a")[1]
    for store in trial.stores:
        assert torch.equal(store.theta, theta)
        assert torch.equal(store.target, theta[: len(store.target)])


def test_what_observations_are_normalised_by_comes_with_the_weights(tmp_path):
    settings = [*PPO, "env.make.normalize_obs=true", "env.make.scale_reward=0.9"]
    make(tmp_path / "a", *settings, "distributed=synced", "distributed.max_session=2").run()
    trial = make(tmp_path / "b", *settings, f"init_from={tmp_path / 'a'}")
    before = checkpoint.load(tmp_path / "a").stores()[0]["moments"]["obs"]
    (after,) = trial.stores[0].moments["obs"].slots
    assert after[0] == before[:, 0].sum() > 0
    with pytest.raises(CompactHydraException, match=r"was trained with env.make.normalize_obs=true, .*; set it so"):
        make(tmp_path / "c", *PPO, f"init_from={tmp_path / 'a'}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            [f"init_from={CARTPOLE}", "env.torso.hidden=[64,64]"],
            r"has actor\S+ \[64, 4\] in actor, where this run has \S+ \[64, 3\]: obs",
        ),
        (["init_from=nowhere"], "init_from=nowhere is not a folder"),
        (
            ["init_from=RUN", "init_networks=[q]"],
            r"has the networks actor, critic, .*, so q cannot",
        ),
        (["init_from=RUN", "algo.agent.shared=true"], "cannot be taken over"),
        (["init_from=RUN", "env.torso.hidden=[16]"], r"has \S+ \[8, 3\] in \w+, where this run has \S+ \[16, 3\]"),
        (["init_networks=[actor]"], "needs init_from"),
        (["init_from=RUN/checkpoints/7"], "init_from=.* cannot be read: .*000007 does not exist; use latest"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(run, tmp_path, settings, message):
    settings = [s.replace("RUN", str(run)) for s in settings]
    with pytest.raises(CompactHydraException, match=message):
        make(tmp_path, *SMALL, *settings)


def test_what_fits_is_named(tmp_path):
    sac = [o for o in SMALL if "horizon" not in o] + ["algo=sac", "algo.memory.start=32", "algo.memory.batch_size=8"]
    make(tmp_path / "a", *sac, "algo.agent.shared_temperature=false").run()
    message = r"so temperature cannot be taken over; init_networks=\[actor,q1,q2\] takes what fits"
    with pytest.raises(CompactHydraException, match=message):
        make(tmp_path / "b", *sac, f"init_from={tmp_path / 'a'}")
    make(tmp_path / "b", *sac, f"init_from={tmp_path / 'a'}", "init_networks=[actor,q1,q2]")


def test_a_resumed_run_does_not_need_the_folder_that_it_began_with(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    make(tmp_path / "b", *SMALL, f"init_from={copy}").run()
    shutil.rmtree(copy)
    again = make(
        tmp_path / "b", *SMALL, f"init_from={copy}", "env.max_frame=320", found=checkpoint.load(tmp_path / "b")
    )
    assert torch.equal(again.stores[0].theta, thetas(tmp_path / "b")[1])


# The end


@pytest.mark.parametrize(
    ("stop", "mean", "frames", "best", "reason"),
    [
        (Stop(), 500.0, 10**6, 0, None),
        (Stop(at=475), 475.0, 5, 5, "stop_at=475"),
        (Stop(at=475), 474.9, 5, 5, None),
        (Stop(at=475), float("nan"), 5, 5, None),
        (Stop(at=-110.5), -110.0, 5, 5, "stop_at=-110.5"),
        (Stop(patience=100), 3.0, 199, 100, None),
        (Stop(patience=100), 3.0, 200, 100, "patience=100"),
        (Stop(patience=100), float("nan"), 200, 100, None),
    ],
)
def test_when_a_run_is_stopped(stop, mean, frames, best, reason):
    assert stop.reason(mean, frames, best) == reason


@pytest.mark.parametrize(("at", "patience"), [("nan", "null"), ("null", "0"), ("null", "-3")])
def test_ends_that_make_no_sense_are_refused(tmp_path, at, patience):
    with pytest.raises(CompactHydraException, match=r"(stop_at|patience)=\S+ must be"):
        make(tmp_path, *SMALL, f"stop_at={at}", f"patience={patience}")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["stop_at=19.5", "patience=400"])
def test_a_run_is_finished_when_it_is_stopped_and_a_sweep_passes_it_over(train, tmp_path, setting):
    words = [o for o in SMALL if not o.startswith("env.max_frame")] + ["env.max_frame=100_000_000", "log_every=0.2"]
    sweep = [*words, setting, "seed=0,1", "hydra.sweep.dir=sweep"]
    process = train(*sweep, "-m", folder=False)
    assert "2 jobs in sweep: 2 finished" in process.stdout, process.stderr
    assert process.stdout.count(f"by {setting}\n") == 2
    summaries = [json.loads((tmp_path / "sweep" / str(n) / "summary.json").read_text()) for n in (0, 1)]
    for summary in summaries:
        assert (summary["status"], summary["stopped_by"], summary["mean_return"]) == ("finished", setting, 20)
        assert summary["frames"] < 10_000_000
    process = train(*sweep, "resume=auto", "-m", folder=False)
    assert process.stdout.count("to go on, set stop_at or patience otherwise") == 2
    process = train("resume=sweep/0", "stop_at=20", "patience=null", folder=False)
    assert "by stop_at=20\n" in process.stdout, process.stdout + process.stderr
