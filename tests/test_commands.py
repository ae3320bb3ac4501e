"""The real commands, as users type them, on small real environments."""

import json
import os
import re
import resource
import subprocess
import sys
from importlib import metadata

import commands
import pytest
import torch
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException, ConfigCompositionException

from asynclab import build, config
from asynclab.memory import Rollout

config.register()
pytestmark = pytest.mark.medium

SMALL = ["env=cartpole", "env.max_frame=4_000", "algo.memory.horizon=16", "log_every=0.5"]
SMALL_SAC = ["algo=sac", "env=pendulum", "env.max_frame=2_000", "algo.memory.start=1_700", "log_every=0.5"]


def read(run):
    """Return a run's summary and the lines of its metrics file."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads((run / "summary.json").read_text()), lines


def evaluate(*overrides):
    return commands.run("scripts/evaluate.py", *overrides)


@pytest.mark.parametrize(
    ("overrides", "clocks"),
    [
        (["algo=a3c", *SMALL, "distributed=synced", "distributed.max_session=3"], 1),
        ([*SMALL_SAC, "distributed=shared", "distributed.max_session=2"], 1),
        (["algo=a3c", *SMALL, "distributed=off", "distributed.max_session=2"], 2),
        (["algo=a2c", *SMALL], 1),
        (["algo=a3c", "algo/optimizer=rmsprop", "algo.agent.shared=false", "env=pendulum", "env.max_frame=2_000"], 1),
    ],
    ids=["a3c-synced", "sac-shared", "a3c-off", "a2c", "a3c-continuous-separate-rmsprop"],
)
def test_train_meets_its_budget_and_every_session_contributes(train, tmp_path, overrides, clocks):
    process = train(*overrides)
    assert process.returncode == 0, process.stderr
    summary, lines = read(tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    sessions = len(summary["session_frames"])
    budget = config["env"]["max_frame"]
    assert budget * clocks <= summary["frames"] < budget * clocks + sessions * config["env"]["num_envs"]
    assert summary["frames"] == sum(summary["session_frames"])
    assert min(summary["session_updates"]) > 0
    assert summary["status"] == "finished"
    stale = summary["staleness"]["mean"]
    assert stale > 0 if sessions > 1 and clocks == 1 else stale == 0
    assert "\nfinished: mean return " in process.stdout
    for rank in range(sessions):  # frames only grow, and the last record has all of them
        frames = [line["frames"] for line in lines if line["kind"] == "session" and line["rank"] == rank]
        assert frames == sorted(frames)
        assert frames[-1] == summary["session_frames"][rank]
    episodes = [episode for line in lines if line["kind"] == "session" for episode in line["episodes"]]
    assert len(episodes) == summary["episodes"] > 0
    last_100 = [episode["ret"] for episode in sorted(episodes, key=lambda e: e["seconds"])[-100:]]
    assert summary["mean_return"] == pytest.approx(sum(last_100) / len(last_100))


@pytest.mark.slow
def test_the_first_screen_says_when_the_defaults_are_those_for_other_spaces(train, tmp_path):
    pendulum = ["algo=ppo", "env=gym", "env.id=Pendulum-v1", "env.num_envs=2", "env.max_frame=512"]
    hint = "for spaces=discrete, but this environment has spaces=continuous, with others: add that"
    assert hint in train(*pendulum, folder=tmp_path / "unknown").stdout
    told = train(*pendulum, "spaces=continuous", folder=tmp_path / "told")
    assert told.returncode == 0, told.stderr
    assert "spaces=" not in told.stdout


@pytest.mark.slow
def test_a_run_keeps_what_it_was_made_of(train, tmp_path):
    process = train("algo=a3c", *SMALL, "distributed.max_session=2", "seed=7", "algo.optimizer.lr=1e-3", python=True)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    config, made = yaml.safe_load((run / "config.yaml").read_text()), json.loads((run / "run.json").read_text())
    assert (config["seed"], config["algo"]["optimizer"]["lr"], config["env"]["id"]) == (7, 1e-3, "CartPole-v1")
    assert "${" not in (run / "config.yaml").read_text()
    assert {"seed=7", "algo.optimizer.lr=1e-3"} <= set(made["overrides"])
    assert made["packages"]["torch"] == metadata.version("torch")  # torch.__version__ may add its CUDA
    assert re.fullmatch("[0-9a-f]{40}", made["git"]["revision"])
    assert made["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert made["deterministic"] is False  # A3C is evaluated by sampled actions
    assert made["precision"] == "fp32"  # the layers are dense, so auto chooses it on any processor
    assert "  network      9,155 parameters, fp32, seed 7\n" in (run / "train.log").read_text()
    progress = [line for line in (run / "train.log").read_text().splitlines() if "frames " in line and " left " in line]
    assert progress
    assert "\x1b" not in "".join(progress)
    assert re.search(r"frames [\d,]+/4,000 \([\d.]+%\)  per session .* fps .* return .* updates .* left", progress[0])
    (store,) = torch.load(run / "checkpoints" / "latest" / "stores.pt", weights_only=True)
    assert store["theta"].shape == (9_155,)
    assert store["optimizer"]["state"][0]["exp_avg"].abs().sum() > 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000000", "000001", "best", "latest"]


@pytest.mark.parametrize("lock", ["none", pytest.param("update", marks=pytest.mark.slow)])
def test_lost_updates_are_measured_and_a_lock_ends_them(train, tmp_path, lock):
    process = train(*SMALL, "distributed.max_session=4", "distributed.diagnostics=true", f"distributed.lock={lock}")
    assert process.returncode == 0, process.stderr
    summary, lines = read(tmp_path / "run")
    (lost,), (error,) = summary["lost_updates"], summary["step_error"]
    if lock == "update":
        assert (lost, error) == (0.0, 0.0)
    else:
        assert 0 <= lost < 0.5
        assert -summary["updates"] / 2 < error <= 0
    assert lines[-1]["metrics"]["hogwild/lost_updates"] == lost


def test_a_run_is_not_overwritten(train, tmp_path):
    assert train("algo=a2c", *SMALL).returncode == 0
    again = train("algo=a3c", *SMALL)
    assert again.returncode == 1
    assert re.fullmatch(
        "The output folder .* holds a run already. Set hydra.run.dir to another folder, or resume=.*\n", again.stderr
    )
    assert "algo=a2c" in yaml.safe_load((tmp_path / "run" / ".hydra" / "overrides.yaml").read_text())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env=gym", "env.id=Foo-v1"], r"env\.id=Foo-v1 is not a registered environment"),
        (["env=atari", "env.id=ALE/Pongo-v5"], r"env\.id=ALE/Pongo-v5 .*Did you mean: `Pong`"),
        (["algo=nstep_q", "env=pendulum"], r"algo=nstep_q needs discrete actions, and this env has Box"),
        (["algo=dqn", "env=pendulum"], r"algo=dqn needs discrete actions, and this env has Box"),
        (["algo=dqn", "algo.memory.n_step=0"], r"algo\.memory\.n_step=0 must be a whole number of 1 or more"),
        (["algo=dqn", "algo.memory.gamma=null"], r"algo\.memory\.n_step=5 needs algo\.memory\.gamma"),
        (["distributed.max_session=0"], r"distributed\.max_session=0 must be a whole number of 1 or more"),
        (["distributed.lock=all"], r"distributed\.lock=all is unknown; use one of none, update"),
        (["distributed.max_session=-3"], r"distributed\.max_session=-3 must be"),
        (["distributed.max_session=1.5"], r"distributed\.max_session=1\.5 must be a whole number of 1 or more"),
        (["distributed.diagnostics=1"], r"distributed\.diagnostics=1 must be true or false"),
        (["env.num_envs=-1"], r"env\.num_envs=-1 must be a whole number"),
        (["env=cartpole", "env.max_frame=100"], r"env\.max_frame=100 ends before .* set it to \d+ or more"),
        (["algo.optimizer._target_=torch.optim.Adam"], r"Adam is not global.*distributed=synced.*GlobalAdam"),
        (["algo.optimizer.lr=high"], r"algo\.optimizer\.lr=high must be a number above 0"),
        (["algo.optimizer.lr=inf"], r"algo\.optimizer\.lr=inf must be a number"),
        (["algo/optimizer=rmsprop", "+algo.optimizer.betas=[0.9,0.9]"], r"'betas'; leave out algo\.optimizer\.betas\n"),
        (["~algo.memory.horizon"], r"missing 1 .* argument: 'horizon'; set algo\.memory\.horizon\n"),
        (["env=cartpole", "~env.make.num_envs"], r"missing 1 .* argument: 'num_envs'; set env\.make\.num_envs\n"),
        (["env=cartpole", "~env.make.id", "~env.make.num_envs"], r"missing 2 .* 'num_envs'; set env\.make\.id\n"),
        (["env=cartpole", "+algo.agent.foo=1"], r"argument 'foo'; leave out algo\.agent\.foo\n"),
        (["device=cuda"], r"device=cuda, but torch finds no CUDA GPU here; set device=cpu"),
        (["device=cuda", "distributed=shared"], r"device=cuda cannot hold the weights in distributed=shared"),
        (["device=gpu"], r"device=gpu is not a torch device"),
        (["algo=sac", "env=humanoid", "algo.memory.capacity=9_000_000_000"], r"lower algo\.memory\.capacity"),
        (
            ["algo=sac", "env=humanoid", "algo.memory.capacity=2_000_000", "distributed.max_session=512"],
            r"need .* GB .* lower algo\.memory\.capacity",
        ),
        (["+algo.gamma=1"], r"algo\.gamma is not a setting; use one of algo\.agent, "),
        (["algo=a4c"], r"Could not find 'algo/a4c'"),
        (["env=gym"], r"env\.id is missing: set it to an environment of gymnasium, such as Acrobot-v1"),
        (
            ["env=cartpole", "env.make.id=Acrobot-v1"],
            r"would be trained under the name env\.id=CartPole-v1; set env\.id=",
        ),
        (["algo.optimizer.betas=[0.9]"], r"algo\.optimizer\.betas=\[0\.9\] must be two numbers from 0 to below 1"),
        (["algo.optimizer.betas=0.9"], r"algo\.optimizer\.betas=0\.9 must be two numbers from 0 to below 1"),
        (["algo.optimizer.betas=[1.0,0.999]"], r"algo\.optimizer\.betas=.* must be two numbers from 0 to below 1"),
        (["env=atari", "env.id=CartPole-v1"], r"env\.torso needs images .* this env shows \(4,\)"),
        (["env.torso.hidden=[]"], r"env\.torso\.hidden=\[\] must be a list of the dense layers"),
        (["env.torso.conv=[[32,8]]"], r"env\.torso\.conv=.* must have \[channels, kernel, stride\]"),
        (["env.torso.conv=[[32,90,4]]"], r"env\.torso\.conv=.* does not fit images of \(4, 84, 84\)"),
        (["+algo.agent.gama=1"], r"unexpected keyword argument 'gama'"),
        (["algo=ppo", "algo.agent.clip_value=no"], r"algo\.agent\.clip_value=no must be true or false"),
        (["algo=ppo", "algo.agent.clip_schedule=0.5"], r"algo\.agent\.clip_schedule=0\.5 must be a schedule"),
        (["algo=ppo", "algo.agent.minibatch_size=0"], r"algo\.agent\.minibatch_size=0 must be a whole number of 1"),
        (["algo.agent.lstm=16", "algo.agent.shared=false"], r"algo\.agent\.lstm=16 needs one torso"),
        (["algo/optimizer=rmsprop", "algo.optimizer.shared=off"], r"algo\.optimizer\.shared=off must be true or false"),
        (["env.make.normalize_obs=true"], r"env\.make\.normalize_obs=true is for vectors"),
        (["+distributed.locks=1"], r"unexpected keyword argument 'locks'"),
        (["algo.lr_schedule=null"], r"algo\.lr_schedule=None must have a _target_"),
        (
            ["algo.lr_schedule.final=-1"],
            r"algo\.lr_schedule=.* must give factors of 0 or more, and gives 1\.0 to -1\.0",
        ),
        (
            ["algo.agent.entropy_schedule._target_=asynclab.schedules.Linear", "+algo.agent.entropy_schedule.final=-1"],
            r"algo\.agent\.entropy_schedule=.* must give factors of 0 or more",
        ),
        (["algo.lr_schedule.final=abc"], r"^algo\.lr_schedule\.final=abc must be a number\n"),
        (["+algo.lr_schedule.begin=2"], r"^algo\.lr_schedule\.begin=2 of a linear schedule must be a number from 0"),
        (
            ["algo.agent.entropy_schedule._target_=asynclab.schedules.Linear", "+algo.agent.entropy_schedule.final=a"],
            r"^algo\.agent\.entropy_schedule\.final=a must be a number\n",
        ),
        (["env.make=5"], r"env\.make=5 must have a _target_"),
        (["env.torso=null"], r"env\.torso=None must have a _target_"),
        (["algo.memory=5"], r"algo\.memory=5 must have a _target_"),
        (["env.make.num_envs=3"], r"env\.make\.num_envs=3 is not env\.num_envs=8; set env\.num_envs=3"),
        (["+env.make.record=films"], r"env\.make\.record is no setting of training"),
        (
            ["env=pendulum", "env.wrappers=[{_target_:gymnasium.wrappers.NormalizeObservation}]"],
            r"NormalizeObservation, whose statistics .*set env\.make\.normalize_obs=true",
        ),
        (
            ["algo=ppo", "env=pendulum", "algo.agent.gamma=1.5"],  # which env.make.scale_reward follows
            r"algo\.agent\.gamma=1\.5 must be a number from 0 to 1",
        ),
        (["algo.agent.value_coef=-1"], r"algo\.agent\.value_coef=-1 must be a number of 0 or more"),
        (["algo.optimizer.weight_decay=nan"], r"algo\.optimizer\.weight_decay=nan must be a number"),
        (
            ["algo.optimizer.weight_decay={actor_critic:-1}"],
            r"weight_decay\.actor_critic=-1 must be a number of 0 or more",
        ),
        (["algo.optimizer.eps=abc"], r"algo\.optimizer\.eps=abc must be a number"),
        (
            ["algo/optimizer=rmsprop", "algo.optimizer.momentum=2"],
            r"algo\.optimizer\.momentum=2 must be a number from 0 to below 1",
        ),
        (
            ["env=cartpole", "env.torso.conv=[[32,8]]"],
            r"env\.torso\.conv=.* is for images, and env\.id=CartPole-v1 gives",
        ),
        (["eval.id=ALE/Breakout-v5"], r"eval\.id and eval\.make change nothing without eval\.every"),
        (
            [
                "algo=sac",
                "env=pendulum",
                "distributed.max_session=1",
                "algo.memory.updates_per_frame=0.05",
                "algo.memory.start=1000",
                "env.max_frame=1004",
            ],
            r"env\.max_frame=1004 ends before .* set it to 1020 or more",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_one_clear_message(tmp_path, overrides, message):
    if "device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises((CompactHydraException, ConfigCompositionException)) as error,
    ):
        build.make_trial(compose("config", overrides), tmp_path)
    text = f"{error.value}\n{error.value.__cause__}"  # Hydra shows both
    assert re.search(message, text), text
    assert not list(tmp_path.iterdir())


def test_two_environments_are_looked_at_however_many_a_session_will_have(tmp_path):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["env=cartpole", "env.num_envs=16", "algo.memory.horizon=5"])
    probe = build.make_trial(cfg, tmp_path).probe
    assert (probe.envs.num_envs, probe.num_envs) == (2, 16)
    memory = Rollout(probe.envs.obs_space, probe.envs.action_space, num_envs=16, horizon=5)
    assert probe.memory_bytes == memory.nbytes()


@pytest.mark.parametrize("kind", ["Fours", "Players"])
def test_all_are_made_where_two_cannot_be_had(tmp_path, kind):
    team = [f"env.id=weird_env:{kind}-v0", "+env.make.vectorization_mode=vector_entry_point", "env.num_envs=8"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["env=gym", *team, "algo.memory.horizon=5"])
    probe = build.make_trial(cfg, tmp_path).probe
    assert (probe.envs.num_envs, probe.num_envs) == {"Fours": (8, 8), "Players": (16, 16)}[kind]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=nstep_q", "env=pendulum"], r"algo=nstep_q needs discrete actions, and this env has Box"),
        (["distributed.max_session=1.5"], r"distributed\.max_session=1\.5 must be a whole number"),
        (["algo.optimizer._target_=torch.optim.Adam"], r"Adam is not global.*distributed=synced.*GlobalAdam"),
        (["algo=a4c"], r"Could not find 'algo/a4c'"),
        (["env=gym"], r"env\.id is missing"),
        (
            ["distributed=null"],
            r"distributed=null is no file of the group distributed; use one of cluster, off, shared",
        ),
        (["=5"], r"=5 has no setting before the ="),
        (["algo=[a3c,ppo]"], r"^algo=\[a3c,ppo\] is no file of the group algo; use one of a2c, a3c,"),
        (["~distributed"], r"^~distributed leaves out what every run has; use distributed= and one of cluster, off"),
        (["tuned=a3c/pixles"], r"^tuned=a3c/pixles is no file of the group tuned; use ~tuned, or one of a2c/contin"),
        (["tuned=null"], r"^tuned=null is no file of the group tuned; use ~tuned, or one of a2c/continuous"),
        (["hydra/launcher=null"], r"^hydra/launcher=null chooses no file of the group hydra/launcher; leave it out"),
        (["env=cartpole", "algo.agent.gamma=abc"], r"\nalgo\.agent\.gamma=abc must be a number from 0 to 1\n"),
        (["env=cartpole", "algo.agent.torso=null"], r"algo\.agent\.torso=None makes no torso; .* set env\.torso\n"),
        (["env=cartpole", "checkpoint_memory=-1"], r"checkpoint_memory=-1\.0 must be a number of 0 or more"),
        (["resume=runs/lr=1,2"], r"^resume=runs/lr=1,2 cannot be read .*: 'resume=\"runs/lr=1,2\"'$"),
        (["env.torso.conv=[[32,8,4]"], r"^env\.torso\.conv=\[\[32,8,4\] cannot be read .*; close its brackets"),
        (["env.make.x[0]=1"], r"^env\.make\.x\[0\]=1 cannot be read as <setting>=<value>$"),
        (["~experiment"], r"Could not delete 'experiment'"),
        (["experiment=[ppo_pong,a3c_pong]"], r"append to your default list use \+experiment"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_the_command_says_it_without_a_traceback_before_any_process_starts(train, tmp_path, overrides, message):
    process = train(*overrides)
    assert process.returncode == 1
    assert re.search(message, process.stderr), process.stderr
    assert "Traceback" not in process.stderr
    assert "session" not in process.stdout
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_cannot_go_on_in_another_folder(train, tmp_path):
    assert train(*SMALL, "env.max_frame=400").returncode == 0
    process = train(f"resume={tmp_path / 'run'}", folder=tmp_path / "other")
    assert process.returncode == 1
    assert re.fullmatch(
        r"resume=\S+run and hydra\.run\.dir=\S+other differ\. Leave hydra\.run\.dir out\.\n", process.stderr
    )
    assert not (tmp_path / "other").exists()


def test_the_current_folder_does_not_become_the_output_folder_by_an_empty_variable(train, tmp_path):
    process = train(*SMALL, "hydra.run.dir=", folder=False)
    assert process.returncode == 1
    assert re.fullmatch(r"hydra\.run\.dir is empty, .* Set it, or leave it out\.\n", process.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "typed",
    [
        ["tuned=${algo}/discrete"],
        ["tuned=a3c/pixels.yaml"],
        ["tuned=mine", "++hydra.searchpath=[file://{here}]"],
        ["--config-path={conf}", "tuned=mine"],
        ["~algo/optimizer", "+algo.optimizer={_target_: asynclab.optim.GlobalAdam, _partial_: true}"],
        ["+experiment=[ppo_pong,a3c_pong]"],
        ["~hydra/job_logging"],
        ["+env.make={a: 1}", "env.id='a,b'"],
    ],
    ids=" ".join,
)
def test_what_hydra_takes_is_taken(tmp_path, typed):
    places = {"here": tmp_path, "conf": ROOT / "conf"}
    typed = [re.sub(r"\{(here|conf)\}", lambda found: str(places[found[1]]), word) for word in typed]
    process = commands.run("train.py", *typed, "--cfg", "job", cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_an_output_folder_that_cannot_be_written_is_named(train):
    process = train(*SMALL, folder="/proc/asynclab", python=True)
    assert process.returncode == 1
    assert re.fullmatch(r"The output folder hydra\.run\.dir=/proc/asynclab cannot be written: .*\n", process.stderr)


@pytest.mark.slow
def test_evaluate_plays_a_checkpoint(train, tmp_path):
    assert train("algo=a2c", *SMALL).returncode == 0
    run = f"run={tmp_path / 'run'}"
    first, again = evaluate(run, "episodes=10"), evaluate(run, "episodes=10")
    match = re.search(r"return ([\d.]+) \+- ([\d.]+) over 10 episodes", first.stdout)
    assert match, first.stderr
    assert 8 <= float(match[1]) <= 500
    assert first.stdout.splitlines()[0] == again.stdout.splitlines()[0]
    for overrides, message in (
        (["run=/nowhere"], r"run=/nowhere is not an output folder"),
        ([run, "episodes=0"], r"episodes=0 must be a whole number"),
        ([run, "session=5"], r"session=5 has no network of its own"),
        ([], r"run is missing: set run="),
    ):
        process = evaluate(*overrides)
        assert process.returncode == 1
        assert re.search(message, process.stderr), process.stderr
        assert "Traceback" not in process.stderr
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("  agent:\n", "  agent:\n    of_another_version: 1\n"))
    process = evaluate(run)
    assert process.returncode == 1
    assert "has a config that this version of asynclab does not understand" in process.stderr
    assert "of_another_version" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Return the folder of a sweep of two algorithms and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = ["algo=a3c,a2c", "seed=0,1", "plot=false", *SMALL, f"hydra.sweep.dir={folder}"]
    process = commands.run("train.py", "-m", *settings)
    assert process.returncode == 0, process.stderr
    return folder


def test_a_sweep_leaves_four_complete_runs(sweep):
    runs = sorted(run.parent for run in sweep.glob("*/run.json"))
    assert [p.name for p in runs] == ["0", "1", "2", "3"]
    made = []
    for run in runs:
        summary, lines = read(run)
        assert summary["status"] == "finished"
        assert lines
        assert (run / "checkpoints" / "latest" / "stores.pt").exists()
        made.append(json.loads((run / "run.json").read_text())["overrides"][:2])
    assert made == [["algo=a3c", "seed=0"], ["algo=a3c", "seed=1"], ["algo=a2c", "seed=0"], ["algo=a2c", "seed=1"]]


def test_help_costs_little_more_than_the_imports():
    def processor_time(*arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    ratios = [processor_time("train.py", "--help") / processor_time("-c", "import asynclab.main") for _ in range(3)]
    assert min(ratios) < 4  # nearly 6 while Hydra copied all that it had stored for every group


# What must not be accepted and ignored


SCRIPTS = {
    "evaluate": ["run=x"], "export": ["run=x", "out=y"], "film": ["videos=[x]"], "plot": ["runs=x"],
    "report": ["runs=x"], "study": ["sweep=x"],
}  # fmt: skip


@pytest.mark.parametrize(("script", "settings"), SCRIPTS.items())
def test_every_script_refuses_a_key_that_nobody_reads(script, settings, tmp_path):
    process = commands.run(f"scripts/{script}.py", *settings, "+episods=3", cwd=tmp_path)
    assert process.returncode == 1
    assert re.search(r"^episods is not a setting; use one of \w+, ", process.stderr, re.MULTILINE)
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("script", ["configuration", "packages", "zoo"])
def test_a_script_without_settings_refuses_them(script):
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", "out=x"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (1, f"scripts/{script}.py takes no settings; leave out out=x\n")


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ("vector_kwargs={copy:true}", "leave it out"),
        ("batch_size=4", "set env.num_envs"),
        ("autoreset_mode=Disabled", "leave it out"),
        ("reward_clipping=true", "env.make.clip_reward=true"),
    ],
)
def test_what_is_decided_for_all_environments_is_no_setting_of_one(setting, instead, tmp_path):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["env=cartpole", f"+env.make.{setting}"])
    with pytest.raises(CompactHydraException, match=rf"env.make.{setting.partition('=')[0]}=.*{instead}"):
        build.make_trial(cfg, tmp_path)


# Folders and configs


@pytest.mark.slow
def test_folders_may_be_named_after_what_was_typed(train, tmp_path):
    small = ["env=cartpole", "env.max_frame=800", "distributed.max_session=1"]
    name = "hydra.run.dir=runs/${hydra.job.override_dirname}"
    process = train(*small, name, folder=False)
    assert process.returncode == 0, process.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "distributed.max_session=1,env.max_frame=800,env=cartpole,plot=false"
    assert "is finished at 800 frames" in train(*small, name, "resume=auto", folder=False).stdout
    process = train(f'resume="runs/{run.name}"', "env.max_frame=1600", folder=False)
    assert "finished: mean return" in process.stdout
    sweep = [*small, "seed=3,4", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.override_dirname}"]
    for resume in ([], ["resume=auto"]):
        process = train(*sweep, *resume, "-m", folder=False)
        assert "2 jobs in sweep: 2 finished" in process.stdout, process.stderr
    assert len([path for path in (tmp_path / "sweep").iterdir() if "seed" in path.name]) == 2


def test_auto_has_nothing_to_go_on_with_in_a_folder_of_this_moment(train):
    process = train("env=cartpole", "resume=auto", folder=False)
    assert process.returncode == 1
    assert re.search(
        r"resume=auto finds nothing in .*; set hydra\.run\.dir to one that stays, or resume=", process.stderr
    )


@pytest.mark.slow
def test_printed_commands_work_whatever_the_run_was_called_with(tmp_path):
    """Called as a module, with configs of its own, in a folder that Hydra changes to."""
    mine = tmp_path / "con figs" / "experiment"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text("# @package _global_\nenv: {max_frame: 800}\n")
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def run(*words):
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)

    process = run(
        sys.executable, "-m", "asynclab", "train", "--config-dir", "con figs", "env=cartpole", "+experiment=own",
        "distributed.max_session=2", "hydra.job.chdir=true", "hydra.run.dir=run", "plot=false",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found = dict(re.findall(r"^  (to \w+|TensorBoard) +(.*)$", process.stdout, re.MULTILINE))
    assert found["TensorBoard"].endswith("--logdir run")
    assert found["to evaluate"].endswith("scripts/evaluate.py run=run")
    for command in (f"{found['to evaluate']} episodes=1", found["to go"].removeprefix("on").strip()):
        process = run("bash", "-c", command)
        assert process.returncode == 0, process.stderr
    assert read(tmp_path / "run")[0]["frames"] == 1600


def test_a_finished_run_that_goes_on_keeps_its_last_point_and_evaluation(train, tmp_path):
    small = ["env=cartpole", "distributed.max_session=1", "eval.every=500", "eval.episodes=1", "env.num_envs=2"]
    assert train(*small, "env.max_frame=800").returncode == 0
    before = read(tmp_path / "run")[1]
    assert [line["total_frames"] for line in before if line["kind"] == "evaluation"][-1] == 800
    assert train(f"resume={tmp_path / 'run'}", "env.max_frame=1_600", folder=False).returncode == 0
    after = read(tmp_path / "run")[1]
    assert after[: len(before)] == before
    frames = [line["total_frames"] for line in after if line["kind"] == "trial"]
    assert {800, 1600} <= set(frames)
    assert frames == sorted(frames)


@pytest.mark.parametrize("is_file", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_script_without_a_main_guard_is_told_so(tmp_path, is_file):
    text = (
        "from functools import partial\nfrom asynclab.processes.launch import launch\nimport runs\n"
        "list(launch([partial(runs.many_items, rank) for rank in (0, 1)], 1))\n"
    )
    (tmp_path / "script.py").write_text(text)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.run(
        [sys.executable, *["script.py"] * is_file], input=None if is_file else text,
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert 'stand under if __name__ == "__main__":' in process.stderr
    assert "restart" not in process.stderr
