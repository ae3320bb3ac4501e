"""The doctor finds nothing wrong with what is shipped, and each planted error for the right reason."""

import re
from functools import partial

import commands
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from asynclab import config
from asynclab.doctor import audit, checks
from asynclab.doctor.faults import FAULTS, planted
from asynclab.envs import make_envs
from asynclab.memory import Replay, Rollout

config.register()

A3C = ["env=cartpole", "distributed.max_session=2"]
DQN = ["algo=dqn", "env=cartpole", "distributed.max_session=2"]
SAC = ["algo=sac", "env=pendulum", "distributed=shared", "distributed.max_session=2"]
OFF = ["env=cartpole", "distributed=off", "distributed.max_session=2"]
SIMULATED = ["env=cartpole", "distributed=simulated", "distributed.max_session=4"]
PONG = ["env=pong", "env.num_envs=2", "distributed.max_session=2"]
IN_PLACE = ["algo=a3c", "env=gym", "env.id=weird_env:InPlace-v0"]
PENDULUM = ["algo=a3c", "env=pendulum"]
# Where each fault is planted, and what the check that finds it must say.
CASES = {
    "piled_gradients": (A3C, r"differs by \d+% from the one of a session that never saw the first batch"),
    "stale_gradients": (A3C, r"differs by \d+% from the one of a session that never saw the first batch"),
    "no_first_pull": (A3C, "acts for the first time with other weights than theta"),
    "private_theta": (A3C, "not every process sees the same new theta"),
    "live_weights": (A3C, "changed before it pulled: they are no private copy"),
    "copied_weights": (SAC, "weights that are not the global network, in distributed=shared"),
    "leaky_off": (OFF, "a push of session 0 reaches session 1"),
    "private_moments": (A3C, "the sessions see different moments or steps"),
    "torch_optimizer": (A3C, "Adam is not global: torch makes its state at the first step"),
    "local_clock": (A3C, "learning rate at 75% in session 0 instead of 50%"),
    "random_targets": (SAC, "does not start as a copy of theta but as discarded random weights"),
    "private_temperature": (SAC, "no part of theta but private to each session"),
    "float16_replay": (SAC, r"comes back from the replay as inf in torch\.float16"),
    "fork": (A3C, "forked from the command's own process, which has run torch operators"),
    "ignored_death": (A3C, "was killed and the run ended without an error"),
    "all_cores": (A3C, r"computes with \d+ threads, and should with 1"),
    "same_seeds": (A3C, "different sessions have the same seeds"),
    "clock_seeds": (A3C, "seed=0 begins differently each time"),
    "real_time": (SIMULATED, "two simulations with the same settings have come to different weights"),
    "gathered_infos": (A3C, "what an environment's info holds reaches the vector, which ends in IndexError"),
    "autoreset": (A3C, r"truncations, \d+ begin at an episode's last observation: the step that only resets"),
    "truncation_as_termination": (A3C, r"truncations, \d+ end in a truncation that is taken for a termination\."),
    "next_episode": (A3C, r"truncations, \d+ have the next episode's first observation as their successor\."),
    "shared_array": (IN_PLACE, "the environment's reset changes the array of the last observation"),
    "raw_actions": (PENDULUM, r"becomes .* in training and .* from load, for Box"),
    "n_step_leak": (DQN, r"truncations, \d+ go on after the end of their episode\."),
    "gae_leak": (A3C, r"advantages are \[1\.0, 1\.0, 1\.0\] and should be \[0\.0, 0\.0, 1\.0\]"),
    "emulator_clips": (PONG, r"truncations, \d+ end an episode whose raw return or length is reported wrongly\."),
}
ARMS = {  # the group, whose every choice is examined
    name: [f" {group}={path.stem}" for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
    for name, group in (("defaults", "pair"), ("study_cartpole", "arm"), ("study_pong", "arm_pong"))
}
MISSING = {"study_scale": " correction=vtrace", "study_cluster": " exchange=diloco distributed.max_session=4"}
EXPERIMENTS = [
    path.stem + arm
    for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
    for arm in ARMS.get(path.stem, [MISSING.get(path.stem, "")])
]
CARTPOLE = partial(make_envs, id="CartPole-v1", num_envs=3)
MEMORIES = {
    "rollout": partial(Rollout, horizon=10),
    "replay": audit.hands_out_all(partial(Replay, capacity=9, batch_size=64, start=100, combined=False)),
    "n_step": audit.hands_out_all(partial(Replay, capacity=9, batch_size=64, n_step=3, gamma=0.9)),
}


def load(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("doctor", list(overrides))


def examine(folder, overrides, inject=None, names=None):
    """Return the findings by name."""
    found = checks.examine(load(*overrides), folder, 400, inject, names)
    return {finding.name: finding for finding in found}


def command(*arguments, timeout=240):
    return commands.run("scripts/doctor.py", *arguments, timeout=timeout)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_audit_finds_nothing_and_sees_both_kinds_of_ends(memory):
    result = audit.audit(audit.cut_short(CARTPOLE, 16), 600, MEMORIES[memory])
    assert result.bogus == {}
    assert result.frames == 600
    assert min(result.terminated, result.truncated) > 5


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("truncation_as_termination", audit.TERMINATED),
        ("next_episode", audit.NEXT_EPISODE),
        ("autoreset", audit.AUTORESET),
    ],
)
def test_the_audit_tells_what_is_wrong(memory, fault, kind):
    with planted(fault):
        result = audit.audit(audit.cut_short(CARTPOLE, 16), 600, MEMORIES[memory])
    assert result.bogus[kind] > 0
    if kind != audit.AUTORESET:  # after a step too many nothing agrees any more
        assert set(result.bogus) == {kind}
        assert result.bogus[kind] >= result.truncated


class Forgetful(Rollout):
    """Keeps no last observations."""

    def add(self, action, step):
        super().add(action, step._replace(final_obs={}))


class Endless(Rollout):
    """Does not know where episodes end."""

    def batches(self, total_frames):
        for batch in super().batches(total_frames):
            yield batch._replace(done=batch.terminated)


class Generous(Replay):
    """Adds one reward too many."""

    def sample(self):
        batch = super().sample()
        return batch._replace(reward=batch.reward + 0.9 * batch.discount)


class Undiscounted(Replay):
    """Forgets how many steps there were."""

    def sample(self):
        batch = super().sample()
        return batch._replace(discount=1.0 * ~batch.terminated)


class Selective(Rollout):
    """Hands out every other batch."""

    given = 0

    def batches(self, total_frames):
        for batch in super().batches(total_frames):
            self.given += 1
            if self.given % 2:
                yield batch


@pytest.mark.parametrize(
    ("memory", "kind"),
    [(Forgetful, audit.NEXT_EPISODE), (Endless, audit.NOT_ENDED), (Selective, audit.MISSING)],
)
def test_the_audit_looks_through_the_memory(memory, kind):
    result = audit.audit(audit.cut_short(CARTPOLE, 16), 450, partial(memory, horizon=10))
    assert set(result.bogus) == {kind}


def test_the_audit_knows_only_what_it_can_compare():
    with pytest.raises(ValueError, match="can compare only environments that asynclab"):
        audit.audit(lambda: CARTPOLE(), 100, MEMORIES["rollout"])
    with pytest.raises(ValueError, match="knows rollouts and replays, not"):
        audit.hands_out_all(list)


@pytest.mark.parametrize(("memory", "kind"), [(Generous, audit.REWARD), (Undiscounted, audit.DISCOUNT)])
def test_the_audit_adds_up_the_steps_of_a_transition(memory, kind):
    make_memory = audit.hands_out_all(partial(memory, capacity=100, batch_size=1, n_step=4, gamma=0.9))
    result = audit.audit(audit.cut_short(CARTPOLE, 16), 450, make_memory)
    assert set(result.bogus) == {kind}
    assert result.bogus[kind] > 200


def test_a_fault_is_gone_when_it_is_left():
    step = audit.Envs.step
    with planted("next_episode"):
        faulty = audit.Envs.step
        with planted("next_episode"):
            assert audit.Envs.step is faulty is not step
        assert audit.Envs.step is faulty
    assert audit.Envs.step is step


def test_every_fault_has_a_check_and_all_are_documented():
    text = (ROOT / "docs" / "doctor.md").read_text()
    assert set(CASES) == set(FAULTS)
    assert {fault.check for fault in FAULTS.values()} <= set(checks.CHECKS)
    for name in [*FAULTS, *checks.CHECKS]:
        assert f"`{name}`" in text, name


IN_THIS_PROCESS = {
    "piled_gradients",
    "stale_gradients",
    "no_first_pull",
    "gae_leak",
    "n_step_leak",
    "next_episode",
    "random_targets",
}


@pytest.mark.parametrize(
    "fault", [fault if fault in IN_THIS_PROCESS else pytest.param(fault, marks=pytest.mark.medium) for fault in CASES]
)
def test_every_planted_error_is_found_for_the_right_reason(tmp_path, fault):
    overrides, reason = CASES[fault]
    name = FAULTS[fault].check
    (finding,) = examine(tmp_path, overrides, fault, [name]).values()
    assert (finding.name, finding.status) == (name, checks.FAILED)
    assert re.search(reason, finding.text), finding.text
    assert not re.search(r"raised|could not be", finding.text)


@pytest.mark.medium
@pytest.mark.parametrize(
    "overrides", [A3C, SAC, DQN, OFF, ["algo=a2c", "env=pendulum"]], ids=["a3c", "sac", "dqn", "off", "a2c"]
)
def test_a_healthy_configuration_passes_and_says_what_does_not_apply(tmp_path, overrides):
    findings = examine(tmp_path, overrides)
    assert list(findings) == list(checks.CHECKS)
    assert [finding for finding in findings.values() if finding.status == checks.FAILED] == []
    assert sum(finding.status == checks.OK for finding in findings.values()) >= 9
    assert (findings["replay_precision"].status == checks.OK) is (overrides in (SAC, DQN))
    assert (findings["episode_ends"].status == checks.SKIPPED) is (overrides in (SAC, DQN))
    assert (findings["temperature"].status == checks.OK) is (overrides is SAC)
    assert (findings["stores_separate"].status == checks.OK) is (overrides is OFF)
    assert (findings["seeds"].status == checks.OK) is (overrides[0] != "algo=a2c")


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (A3C, {"inject": "float16_replay"}, "inject=float16_replay does not apply .*: there is no replay"),
        (SAC, {"inject": "no_first_pull"}, "does not apply .*: in distributed=shared the weights are the global"),
        (SAC, {"inject": "gae_leak"}, "does not apply .*: this agent estimates no advantages"),
        (SAC, {"inject": "n_step_leak"}, "does not apply .*: its transitions have one step"),
        (A3C, {"inject": "leaky_off"}, "does not apply .*: distributed=synced has one network for all sessions"),
        (A3C, {"inject": "random_targets"}, "does not apply .*: this agent has no target network"),
        (A3C, {"inject": "emulator_clips"}, "does not apply .*: CartPole-v1 has no emulator that clips rewards"),
        (
            ["env=cartpole", "distributed.max_session=1"],
            {"inject": "fork"},
            "does not apply .*: one session, so there is",
        ),
        (A3C, {"inject": "nothing"}, "inject=nothing is unknown; use one of piled_gradients, "),
        (A3C, {"names": ["threads", "luck"]}, "checks=luck is unknown; use one of start_method, "),
        (A3C, {"inject": "fork", "names": ["threads"]}, "inject=fork is found by start_method, which checks="),
    ],
)
def test_what_cannot_be_planted_or_checked_is_refused(tmp_path, overrides, settings, message):
    with pytest.raises(ValueError, match=message):
        examine(tmp_path, overrides, **settings)


@pytest.mark.slow
def test_moments_that_each_process_has_for_itself_are_found_in_rmsprop_too(tmp_path):
    typed = [*A3C, "algo/optimizer=rmsprop"]
    finding = examine(tmp_path, typed, "private_moments", ["optimizer_shared"])["optimizer_shared"]
    assert (finding.status, "the sessions see different moments or steps" in finding.text) == (checks.FAILED, True)


def test_a_budget_that_ends_before_a_second_batch_is_no_fault(tmp_path):
    short = ["algo=ppo", "env=cartpole", "distributed.max_session=1", "env.num_envs=1", "env.max_frame=200"]
    findings = examine(tmp_path, short, names=["first_pull", "fresh_gradient"])
    assert {finding.status for finding in findings.values()} == {checks.SKIPPED}
    assert "env.max_frame=200 ends before a second batch; set it higher" in findings["first_pull"].text


@pytest.mark.parametrize("algo", ["nstep_q", "dqn"])
def test_random_targets_are_found_in_every_agent_that_has_targets(tmp_path, algo):
    overrides = [f"algo={algo}", "env=cartpole", "distributed.max_session=1"]
    if algo == "nstep_q":  # does without one on vectors
        overrides += ["algo.agent.target_every=1_000"]
    assert examine(tmp_path, overrides, names=["targets"])["targets"].status == checks.OK
    found = examine(tmp_path, overrides, "random_targets", ["targets"])["targets"]
    assert (found.status, "discarded random weights" in found.text) == (checks.FAILED, True)


@pytest.mark.medium
def test_the_command_fails_on_a_planted_error_and_explains_it():
    process = command("--inject=piled_gradients", "--checks=[fresh_gradient,threads]", "--frames=100", *A3C)
    assert process.returncode == 1
    lines = process.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["ok", "threads"], ["FAILED", "fresh_gradient"]]
    assert "zero_grad(set_to_none=True)" in lines[1]
    assert re.fullmatch(r"1 ok, 1 FAILED, 0 skipped in [\d.]+ s; planted: piled_gradients", lines[2])
    assert "Traceback" not in process.stderr


@pytest.mark.medium
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=outputs/a"], "resume=outputs/a: the doctor checks a command's settings, not a run"),
        (["--inject=bad_luck"], "inject=bad_luck is unknown; use one of piled_gradients, "),
        (["env.num_envs=-1"], "env.num_envs=-1 must be a whole number of 1 or more"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_bad_settings_are_one_sentence(arguments, message):
    process = command(*arguments, "distributed.max_session=1")
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.medium
def test_a_command_that_goes_on_by_itself_is_examined_as_it_would_begin():
    process = command("resume=auto", "checks=[fits]", "env=cartpole", "distributed.max_session=1")
    assert process.returncode == 0, process.stderr
    assert "1 ok, 0 FAILED" in process.stdout


@pytest.mark.medium
def test_help_lists_every_fault():
    process = command("--inject=help")
    assert process.returncode == 0, process.stderr
    assert [line.split()[0] for line in process.stdout.splitlines()] == list(FAULTS)


@pytest.mark.parametrize("mode", ["cluster", "simulated"])
def test_a_run_of_several_nodes_is_looked_at_as_one_of_them(mode, tmp_path):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        typed = ["algo=a3c", "env=cartpole", f"distributed={mode}", "distributed.nodes=2", "distributed.max_session=2"]
        cfg = compose("config", typed)
    findings = list(checks.examine(cfg, tmp_path, 2_000, None, ["global_clock"]))
    assert [(found.name, found.status) for found in findings] == [("global_clock", checks.OK)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_shipped_experiment_is_healthy(experiment):
    process = command(*f"+experiment={experiment}".split())
    assert process.returncode == 0, process.stdout + process.stderr
    assert " 0 FAILED" in process.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("env", sorted(path.stem for path in (ROOT / "conf" / "env").glob("*.yaml")))
def test_no_transition_of_20000_frames_of_any_shipped_environment_is_bogus(tmp_path, env):
    ids = {"gym": ["env.id=Acrobot-v1"], "atari": ["env.id=ALE/Seaquest-v5"]}
    make_envs = checks.build.make_trial(load(f"env={env}", *ids.get(env, [])), tmp_path).session.make_envs
    short = audit.cut_short(make_envs, 50)  # some environments are never truncated in so few frames
    for make, memory, frames in ((make_envs, "rollout", 20_000), (short, "replay", 5_000)):
        result = audit.audit(make, frames, MEMORIES[memory])
        assert result.bogus == {}
        assert result.frames >= frames
        assert result.terminated + result.truncated > 5
