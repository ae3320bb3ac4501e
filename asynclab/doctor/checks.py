"""Is a configuration healthy?  What train.py would build of it is checked in seconds, without training.

Every check is a promise, in the words of its docstring.  It returns what it has seen, or raises ``Wrong`` if the
promise is broken; where there is nothing to check, ``needs`` says why.  ``faults.py`` plants the errors that the checks
are for.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from omegaconf import DictConfig, OmegaConf
from torch import nn

from asynclab import build
from asynclab.adapters.actions import Actions
from asynclab.distributed import Store
from asynclab.doctor import audit, probe
from asynclab.doctor.faults import FAULTS, Planted, planted
from asynclab.doctor.probe import ProbeError, Skip, begin, digest, state_of
from asynclab.envs import Envs, is_atari
from asynclab.memory import Memory, Replay, Rollout
from asynclab.optim import GlobalOptimizer
from asynclab.processes.control import Control
from asynclab.processes.launch import SessionError, launch
from asynclab.run import resources
from asynclab.run.trial import Trial

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
SHORT = 16  # steps of the audit's short episodes, which are truncated
# What a check costs grows with these, and what it finds does not; all else is as the run would have it.
SMALL = {"env.num_envs": 2, "algo.memory.capacity": 2_000, "algo.memory.start": 64}


class Wrong(Exception):  # noqa: N818 - a finding, no error of ours
    """Something is not as it should be; the message says what was seen."""


class Finding(NamedTuple):
    """What a check has found; ``status`` is OK, FAILED or SKIPPED."""

    name: str
    status: str
    text: str


class Check(NamedTuple):
    """One question about a configuration.

    Attributes:
        run: Returns what was seen, or raises Wrong.
        needs: Returns why there is nothing to check; empty if there is.
        harm: What it does to training if it is wrong, and where that has happened.
    """

    run: Callable[["Subject"], str]
    needs: Callable[["Subject"], str]
    harm: str


CHECKS: dict[str, Check] = {}


def _check(
    harm: str, needs: Callable[["Subject"], str] = lambda subject: ""
) -> Callable[[Callable[["Subject"], str]], Callable[["Subject"], str]]:
    """Register a check under its function's name."""

    def register(run: Callable[["Subject"], str]) -> Callable[["Subject"], str]:
        CHECKS[run.__name__] = Check(run, needs, harm)
        return run

    return register


def examine(
    cfg: DictConfig, folder: Path, frames: int, inject: str | None = None, names: Sequence[str] | None = None
) -> Iterator[Finding]:
    """Yield what the checks find, as they find it.

    Args:
        cfg: As train.py gets it.
        folder: An empty one.
        frames: That the audit of transitions steps.
        inject: Name of a fault to plant; None for none.
        names: Of the checks; None for all.

    Raises:
        ValueError: There is no such check or fault, or the fault cannot be planted here.
        CompactHydraException: train.py would refuse the configuration.
    """
    _refuse_unknown("inject", [] if inject is None else [inject], list(FAULTS))
    _refuse_unknown("checks", list(names or []), list(CHECKS))
    subject = Subject(cfg, folder, frames, inject)
    if inject is not None:
        fault = FAULTS[inject]
        if reason := fault.needs(subject.real, subject.agent) or CHECKS[fault.check].needs(subject):
            raise ValueError(f"inject={inject} does not apply to this configuration: {reason}")
        if names and fault.check not in names:
            raise ValueError(f"inject={inject} is found by {fault.check}, which checks={list(names)} leaves out")
    with planted(inject):
        for name, check in CHECKS.items():
            if not names or name in names:
                yield _run(name, check, subject)


def _refuse_unknown(setting: str, given: list[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{setting}={name} is unknown; use one of {', '.join(known)}")


def _run(name: str, check: Check, subject: "Subject") -> Finding:
    if reason := check.needs(subject):
        return Finding(name, SKIPPED, reason)
    try:
        return Finding(name, OK, check.run(subject))
    except Skip as reason:
        return Finding(name, SKIPPED, str(reason))
    except (Wrong, ProbeError) as seen:
        return Finding(name, FAILED, f"{seen}. {check.harm}")
    except Exception as error:  # what is broken enough to raise is a finding, too
        return Finding(name, FAILED, f"it raised {type(error).__name__}: {error}. {check.harm}")


class Subject:
    """What train.py would make of a configuration, and a smaller trial like it.

    Attributes:
        real: With all sessions and sizes; made before a fault is planted.
        sessions: Of the smaller trial: two, or one if the real one has no more.
        agent: Of the real trial's kind, bound to nothing.
        obs_space: Of the environments.

    Args:
        cfg: The composed config.
        folder: Output folder; nothing is written.
        frames: That the audit of transitions steps.
        fault: That is planted, in the sessions' processes too.
    """

    def __init__(self, cfg: DictConfig, folder: Path, frames: int, fault: str | None = None) -> None:
        self.frames = frames
        self.fault = fault
        self._folder = folder
        self.real = build.make_trial(cfg, folder)
        torch.set_num_threads(self.real.probe.num_threads)  # as a session would
        self.sessions = min(2, self.real.mode.max_session)
        self._cfg = copy.deepcopy(cfg)
        OmegaConf.update(self._cfg, "distributed.max_session", self.sessions)
        if getattr(self.real.mode, "nodes", None):  # what is looked at is one node of it, here
            OmegaConf.update(self._cfg, "distributed.nodes", 1)
        if self.real.mode.is_cluster:
            OmegaConf.update(self._cfg, "distributed.address", None)
        for key, size in SMALL.items():
            if isinstance(value := OmegaConf.select(cfg, key), int):
                OmegaConf.update(self._cfg, key, min(value, size))
        make_envs: Any = self.real.session.make_envs
        envs = make_envs(num_envs=1)
        self.obs_space, self.action_space = envs.obs_space, envs.action_space
        self.plain_actions = envs.plain_action_space
        envs.close()
        self.agent = self.real.session.make_agent(self.obs_space, self.action_space)
        self.known: dict[str, Any] = {}

    def make(self) -> Trial:
        """Return a new small trial."""
        return build.make_trial(self._cfg, self._folder)

    def launch(self, runs: Sequence[Callable[[], Iterator[Any]]], control: Control) -> tuple[list[Any], str | None]:
        """Run sessions as the trial would, with the fault if there is one.

        Returns:
            All events, and the error with which it ended, if any.
        """
        events = []
        threads = torch.get_num_threads()
        try:
            for event in launch([Planted(self.fault, run) for run in runs], self.real.probe.num_threads, control):
                events.append(event)
        except SessionError as error:
            return events, str(error)
        finally:
            torch.set_num_threads(threads)  # a single session runs here
        return events, None

    @property
    def roll_call(self) -> probe.RollCall:
        """What is seen of two processes of which one dies."""
        return self._once("roll_call", lambda: probe.roll_call(self.launch))

    @property
    def complaint(self) -> str:
        """The first thing that the environments give that is not finite, when random actions are taken."""
        return self._once("complaint", lambda: _complaint(self.trial.session.make_envs(), self.frames))

    @property
    def reports(self) -> list[probe.Report]:
        """What each session sees when they push in turn."""
        if self.sessions > 1 and self.roll_call.is_forked:
            raise Skip("sessions that are forked from this process could hang; see start_method")
        return self._once("reports", lambda: probe.reports(self.launch, self.trial))

    @property
    def rehearsal(self) -> probe.Rehearsal:
        """What one session does up to its second update."""
        return self._once("rehearsal", lambda: probe.rehearse(self.make))

    @property
    def trial(self) -> Trial:
        """The small trial whose stores the sessions of ``reports`` train."""
        return self._once("trial", self.make)

    def _once(self, name: str, look: Callable[[], Any]) -> Any:
        """Look only once, even if that raises."""
        if name not in self.known:
            try:
                self.known[name] = look()
            except Exception as error:
                self.known[name] = error
        if isinstance(self.known[name], Exception):
            raise self.known[name]
        return self.known[name]


def _complaint(envs: Envs, frames: int) -> str:
    rng = np.random.default_rng(0)
    envs.reset(list(range(envs.num_envs)))
    for _ in range(frames // envs.num_envs):
        envs.step(audit.random_actions(rng, envs))
        if envs.complaint:
            break
    envs.close()
    return envs.complaint


# What applies where


def _several(subject: Subject) -> str:
    return "" if subject.sessions > 1 else "one session, so there is nobody to share with"


def _one_store(subject: Subject) -> str:
    if not subject.real.mode.one_store:
        return f"distributed={subject.real.mode.name} shares nothing"
    return _several(subject)


def _only_off(subject: Subject) -> str:
    if subject.real.mode.name != "off":
        return f"distributed={subject.real.mode.name} has one network for all sessions"
    return _several(subject)


def _simulated(subject: Subject) -> str:
    return "" if subject.real.mode.is_simulated else f"distributed={subject.real.mode.name} is not simulated"


def _optimizer_is_seen(subject: Subject) -> str:
    return "" if subject.real.mode.one_store else _several(subject)


def _statistics(subject: Subject) -> str:
    if not getattr(subject.real.stores[0].optimizer, "shared", True):
        return "algo.optimizer.shared=false asks for statistics of each session's own"
    return _one_store(subject)


def _targets(subject: Subject) -> str:
    return "" if subject.agent.targets else "this agent has no target network"


def _temperature(subject: Subject) -> str:
    if not isinstance(getattr(subject.agent, "temperature", None), nn.Module):  # Q-learning's is a number
        return "this agent learns no temperature"
    return (
        "" if getattr(subject.agent, "shared_temperature", True) else "shared_temperature=false asks for private ones"
    )


def _estimates(subject: Subject) -> str:
    none = "this agent estimates no advantages; what its replay sums up, transitions tells"
    return none if subject.agent.advantages is None else ""


def _float_replay(subject: Subject) -> str:
    if not _is_a(subject.real.session.make_memory, Replay):
        return "there is no replay"
    return "" if subject.obs_space.dtype == np.float32 else "observations are bytes"


def _is_a(make_memory: Callable[..., Memory], kind: type) -> bool:
    made = make_memory.func if isinstance(make_memory, partial) else make_memory
    return isinstance(made, type) and issubclass(made, kind)


def _can_be_audited(subject: Subject) -> str:
    if subject.complaint:
        return f"what the environment gives is not finite; see the check finite: {subject.complaint}"
    try:
        audit.cut_short(subject.real.session.make_envs, SHORT)
        audit.hands_out_all(subject.real.session.make_memory)
    except ValueError as error:
        return str(error)
    return ""


def _can_have_odd_infos(subject: Subject) -> str:
    try:
        audit.odd_infos(subject.real.session.make_envs)
    except ValueError as error:
        return str(error)
    return ""


# Processes


@_check(
    "A process that is forked after a torch operator can hang in its first convolution, for ever and without a word"
    " (SLM Lab's A3C with torch 2.13).",
    _several,
)
def start_method(subject: Subject) -> str:
    """Start sessions in processes that have run no torch operator."""
    if subject.roll_call.is_forked:
        raise Wrong("sessions are forked from the command's own process, which has run torch operators")
    return "sessions come from a fork server that has run no torch operator"


@_check(
    "A run would go on with fewer sessions, or end, as if it had succeeded (SLM Lab joins its processes and ignores"
    " their exit codes).",
    _several,
)
def dead_session(subject: Subject) -> str:
    """Report a session that dies."""
    cause = subject.roll_call.cause
    if cause is None:
        raise Wrong("a session's process was killed and the run ended without an error")
    return f"a killed session is reported: it {cause}"


@_check("The run would be killed by the kernel, or fail to start, once its memories fill.")
def fits(subject: Subject) -> str:
    """Have memory, shared memory and open files for all sessions."""
    trial, mode = subject.real, subject.real.mode
    num_envs = getattr(trial.session.make_envs, "keywords", {})["num_envs"]
    memory = trial.session.make_memory(subject.obs_space, subject.action_space, num_envs, seed=0).nbytes()
    shared = sum(_shared_bytes(store) for store in trial.stores)
    try:
        resources.check_memory(mode, memory, 4 * trial.stores[0].theta.numel())
        resources.check_shared_memory(shared)
        resources.check_descriptors(mode.processes, mode.num_stores)
    except ValueError as error:
        raise Wrong(str(error)) from error
    return (
        f"sessions: {mode.max_session}, each with a memory of {resources.size(memory)}; stores:"
        f" {resources.size(shared)}; available: {resources.size(resources.available_memory())}"
    )


def _shared_bytes(store: Store) -> int:
    tensors = [store.theta, *state_of(store)]
    return sum(t.numel() * t.element_size() for t in tensors)


@_check("Sessions that all use all cores hinder each other and are several times slower together than one thread each.")
def threads(subject: Subject) -> str:
    """Give every session its share of threads."""
    wanted = subject.real.probe.num_threads
    for report in subject.reports:
        if report.threads != wanted:
            raise Wrong(f"session {report.rank} computes with {report.threads} threads, and should with {wanted}")
    return f"{wanted} per session"


# Sharing


@_check("Every session would train a network of its own, and the one that is saved would never learn.", _one_store)
def theta_shared(subject: Subject) -> str:
    """Show what one session pushes to all others and to the parent."""
    reports = subject.reports
    before = {report.start.theta for report in reports}
    for turn in range(subject.sessions):
        seen = {report.looks[turn].theta for report in reports}
        if len(seen) > 1 or seen == before:
            raise Wrong(f"session {turn} has pushed, and not every process sees the same new theta")
        before = seen
    if reports[0].end.theta != digest(subject.trial.stores[0].theta):
        raise Wrong("the parent does not see what the sessions have pushed")
    return "every push is seen by all sessions and by the parent"


@_check("Its moments would be private to each process: nothing is learned and nobody is told.", _optimizer_is_seen)
def optimizer_global(subject: Subject) -> str:
    """Make the optimizer's state before any process, in shared memory."""
    store = subject.trial.stores[0]
    name = type(store.optimizer).__name__
    if not isinstance(store.optimizer, GlobalOptimizer):
        raise Wrong(f"{name} is not global: torch makes its state at the first step, in every process for itself")
    if not (state := state_of(store)):
        return f"{name}, which has no state before its first step; what becomes of it, optimizer_shared tells"
    if not all(tensor.is_shared() for tensor in state):
        raise Wrong(f"{name} has state outside shared memory")
    return f"{name}: {len(state)} tensors in shared memory"


@_check(
    "Moments that each process keeps for itself do not fit the weights that all of them step: nothing is learned and"
    " nobody is told. Shared RMSProp shares its statistics for that reason (Mnih et al., 2016, section 4).",
    _statistics,
)
def optimizer_shared(subject: Subject) -> str:
    """Keep moments and the step count in the same memory for all processes."""
    before = {report.start.state for report in subject.reports}
    for turn in range(subject.sessions):
        looks = [report.looks[turn] for report in subject.reports]
        seen = {look.state for look in looks}
        if len(seen) > 1:
            raise Wrong(f"after a push of session {turn} the sessions see different moments or steps")
        if seen == before:
            raise Wrong(f"a push of session {turn} has left the moments as they were")
        if any(look.step not in (None, turn + 1) for look in looks):
            raise Wrong(f"{turn + 1} pushes were counted as {', '.join(str(look.step) for look in looks)} steps")
        before = seen
    return "moments and step are the same in all processes after every push"


@_check("Budget, schedules and staleness are taken from these counters.", _one_store)
def counters_shared(subject: Subject) -> str:
    """Show every process what each has counted."""
    for turn in range(subject.sessions):
        seen = [report.looks[turn].updates for report in subject.reports]
        if set(seen) != {turn + 1}:
            raise Wrong(f"after {turn + 1} updates the sessions see {seen}")
    return "updates of all sessions are seen by all"


@_check("On-policy algorithms need weights that stand still during a rollout, Hogwild! ones that are never old.")
def weights(subject: Subject) -> str:
    """Keep a session's weights still between pulls in synced and off, and theta itself in shared."""
    live = subject.real.mode.is_live
    for report in subject.reports:
        who = f"session {report.rank}"
        for look in report.looks:
            if live and look.weights != look.theta:
                raise Wrong(f"{who} computes with weights that are not the global network, in distributed=shared")
            if not live and look.weights != report.start.weights:
                raise Wrong(f"the weights of {who} have changed before it pulled: they are no private copy")
        if report.end.weights != report.end.theta:
            raise Wrong(f"{who} has pulled and its weights are not theta")
    return "theta itself in every session" if live else "private, and equal to theta after a pull"


@_check("Repeats that help each other are no repeats, and every comparison drawn from them is wrong.", _only_off)
def stores_separate(subject: Subject) -> str:
    """Show no session of off what another pushes."""
    before = [report.start for report in subject.reports]
    for turn in range(subject.sessions):
        looks = [report.looks[turn] for report in subject.reports]
        for rank, (old, new) in enumerate(zip(before, looks, strict=True)):
            changed = (old.theta, old.state, old.updates) != (new.theta, new.state, new.updates)
            if changed != (rank == turn):
                raise Wrong(f"a push of session {turn} {'reaches' if changed else 'does not change'} session {rank}")
        before = looks
    return "every session has theta, moments and counters of its own"


@_check(
    "With 16 sessions a linear decay on each one's own clock ends at 94 % of where it began; one global clock drives"
    " budget and schedules.",
    _one_store,
)
def global_clock(subject: Subject) -> str:
    """Let the learning rate follow the frames of all sessions together."""
    expected = 1 - subject.sessions / 4
    for report in subject.reports:
        if not np.isclose(report.lr_factor, expected, atol=1e-3):
            raise Wrong(
                f"each of {subject.sessions} sessions has used a quarter of the budget, and a linear decay has the"
                f" learning rate at {report.lr_factor:.0%} in session {report.rank} instead of {expected:.0%}"
            )
    return "schedules follow the frames of all sessions together"


@_check(
    "A simulation is for runs that can be repeated; what it shows would be an accident like any real run.", _simulated
)
def simulation(subject: Subject) -> str:
    """Take the same turns in the same order, whatever the machine does meanwhile."""
    digests = {probe.simulated(subject.make()) for _ in range(2)}
    if len(digests) > 1:
        raise Wrong("two simulations with the same settings have come to different weights")
    return f"two simulations of {subject.sessions} sessions come to the same weights"


# The beginning of a session


@_check(
    "Its first gradients would belong to weights that nobody trains (the first pull must precede the first rollout)."
)
def first_pull(subject: Subject) -> str:
    """Act for the first time with theta's values, and do not change theta by starting."""
    if not subject.rehearsal.theta_is_kept:
        raise Wrong("starting a session has overwritten the global network")
    if not subject.rehearsal.weights_are_theta:
        raise Wrong("a session acts for the first time with other weights than theta")
    return "a session's first actions come from theta"


@_check(
    "The first targets would come from weights that were thrown away at the first pull, and follow only slowly.",
    _targets,
)
def targets(subject: Subject) -> str:
    """Start target networks as copies of what was pulled."""
    if not subject.rehearsal.targets_are_theta:
        raise Wrong("the target network does not start as a copy of theta but as discarded random weights")
    return "the target network starts as a copy of theta"


@_check("Sessions would train one network towards different objectives, each with its own entropy bonus.", _temperature)
def temperature(subject: Subject) -> str:
    """Keep the temperature in theta."""
    agent: Any = subject.trial.session.make_agent(subject.obs_space, subject.action_space)
    trained = {id(p) for p in agent.nets.parameters()}
    if not all(id(p) in trained for p in agent.temperature.parameters()):
        raise Wrong("the temperature is no part of theta but private to each session")
    return "log alpha is part of theta"


@_check("Sessions that see and draw the same are one session, paid for several times.", _several)
def seeds(subject: Subject) -> str:
    """Share no random stream between sessions."""
    begun = [report.beginning for report in subject.reports]
    env_seeds = [seed for beginning in begun for seed in beginning.env_seeds]
    if len(set(env_seeds)) < len(env_seeds):
        raise Wrong(f"environments of different sessions have the same seeds: {env_seeds}")
    for what in ("torch_seed", "memory_seed", "stream"):
        if len({getattr(beginning, what) for beginning in begun}) < len(begun):
            raise Wrong(f"two sessions have the same {what.replace('_', ' ')}")
    if len({report.start.theta for report in subject.reports}) < subject.trial.mode.num_stores:
        raise Wrong("the repeats of distributed=off start from the same weights")
    return "environments, actions and sampling differ between sessions"


@_check("What cannot be repeated cannot be compared or debugged; seeds must come from the setting, not from the clock.")
def reproducible(subject: Subject) -> str:
    """Begin in the same way when the settings are the same."""
    beginnings = []
    for _ in range(2):
        trial = subject.make()
        parts, beginning = begin(trial.session, trial.stores[0], 0)
        parts.envs.close()
        beginnings.append(beginning)
    if beginnings[0] != beginnings[1]:
        raise Wrong(f"seed={subject.real.session.seed} begins differently each time")
    return "the same seed begins in the same way"


# Learning


@_check(
    "Gradients that pile up, or stay those of the first rollout, are the classic silent failure: aliased once, they are"
    " cut off by zero_grad(set_to_none=True), torch's default since 2.0 (SLM Lab, pytorch-a3c, rl_a3c_pytorch)."
)
def fresh_gradient(subject: Subject) -> str:
    """Push after the second batch exactly its own gradient."""
    second, fresh = subject.rehearsal.second, subject.rehearsal.fresh
    difference = float((second - fresh).norm() / fresh.norm().clamp_min(1e-12))
    if not difference < 1e-3:
        raise Wrong(
            f"the gradient that is pushed after the second batch differs by {difference:.0%} from the one of a session"
            " that never saw the first batch"
        )
    return "the second push is what a session that never saw the first batch pushes"


@_check(
    "Rewards of an episode would be credited to actions of the one before it, or what was cut short would count as"
    " lost.",
    _estimates,
)
def episode_ends(subject: Subject) -> str:
    """Leak no advantage across episode ends: a case small enough to be worked out by hand."""
    assert subject.agent.advantages is not None
    reward, zero, v_next = (torch.tensor(x)[:, None] for x in ([0.0, 0.0, 1.0], [0.0] * 3, [0.0, 9.0, 0.0]))
    done = torch.tensor([False, True, False])[:, None]
    for terminated, expected in ((done, [0.0, 0.0, 1.0]), (torch.zeros_like(done), [9.0, 9.0, 1.0])):
        advantage = subject.agent.advantages(reward, zero, v_next, terminated, done, 1.0, 1.0).flatten().tolist()
        if advantage != expected:
            how = "terminates" if terminated.any() else "is truncated"
            raise Wrong(f"where an episode {how}, the advantages are {advantage} and should be {expected}")
    return "advantages stop at episode ends; what is cut short is bootstrapped"


@_check("Updates that learn from such a step are dropped: mend the environment, or let a wrapper do so (env.wrappers).")
def finite(subject: Subject) -> str:
    """Have only finite rewards and observations."""
    if subject.complaint:
        raise Wrong(subject.complaint.partition(";")[0])
    return f"all rewards and observations of {subject.frames:,} frames are"


@_check("What the policy has learned would not be what the environment does, which may fail on it or do anything.")
def actions(subject: Subject) -> str:
    """Send the environment only actions of its space, in training and from asynclab.load."""
    space: Any = subject.plain_actions
    mapping = Actions(space)
    rng = np.random.default_rng(0)
    ours = mapping.space
    for size in (1.0, 100.0):
        for _ in range(100):
            action = np.asarray(ours.sample() if not isinstance(ours, Box) else rng.normal(0, size, ours.shape))
            action = action.astype(np.float32) if isinstance(ours, Box) else action
            sent, one = mapping(action[None])[0], mapping.one(action)
            if not (space.contains(sent) and space.contains(one) and np.array_equal(sent, one)):
                raise Wrong(f"the agent's {action} becomes {sent} in training and {one} from load, for {space}")
    return f"{ours} of the agent is {space} of the environment"


@_check(
    "gymnasium's vectors gather infos, which training does not need, and raise on those that change their size or type,"
    " or are called episode.",
    _can_have_odd_infos,
)
def infos(subject: Subject) -> str:
    """Step and count whatever an environment's info holds."""
    envs = audit.odd_infos(subject.trial.session.make_envs)()
    try:
        envs.reset(list(range(envs.num_envs)))
        for _ in range(4):
            envs.step(np.stack([envs.action_space.sample() for _ in range(envs.num_envs)]))
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise Wrong(f"what an environment's info holds reaches the vector, which ends in {cause}") from error
    finally:
        envs.close()
    return "arrays that grow, values that change their type, and an episode of the environment's own do not matter"


@_check(
    "Autoreset (gymnasium >= 1.0) and truncation make wrong targets at every episode's end, which no curve shows.",
    _can_be_audited,
)
def transitions(subject: Subject) -> str:
    """Learn only from transitions that a plain environment makes."""
    session = subject.trial.session
    make_memory = audit.hands_out_all(session.make_memory)
    natural = audit.audit(session.make_envs, subject.frames, make_memory)
    # Long episodes do not end in so few frames, and some never are truncated: let them be, soon.
    short = audit.audit(audit.cut_short(session.make_envs, SHORT), subject.frames // 2, make_memory)
    for result in (natural, short):
        if result.bogus:
            raise Wrong(str(result))
    ends = natural.terminated + natural.truncated
    few = "" if ends else f" (none ended by itself: set frames above {subject.frames:,} to see that)"
    return f"{natural}{few}; cut after {SHORT} steps, {short}"


@_check(
    "AtariVectorEnv clips rewards by default, and then the score is nowhere; it does not show on Pong, whose rewards"
    " are 1 anyway.",
    _can_be_audited,
)
def raw_returns(subject: Subject) -> str:
    """Report raw returns although training is on clipped rewards."""
    make_envs = subject.trial.session.make_envs
    id = getattr(make_envs, "keywords", {}).get("id", "")
    others = {"clip_reward": True} | ({"id": "ALE/MsPacman-v5"} if is_atari(id) else {})
    memory = partial(Rollout, horizon=SHORT)
    result = audit.audit(audit.cut_short(make_envs, 4 * SHORT, **others), 2 * 5 * SHORT, memory)
    if result.bogus:
        raise Wrong(str(result))
    return f"{others.get('id', id)} reports raw returns when its rewards are clipped for training"


@_check("Half precision ends at 65,504: forces of Humanoid overflow to infinity.", _float_replay)
def replay_precision(subject: Subject) -> str:
    """Give float observations back from the replay as they were."""
    session = subject.trial.session
    envs = session.make_envs()
    memory: Any = session.make_memory(envs.obs_space, envs.action_space, envs.num_envs, 0)
    number = np.float32(70_000.1)
    with np.errstate(over="ignore"):
        memory.reset(np.full_like(envs.reset(list(range(envs.num_envs))), number))
    action = np.stack([envs.action_space.sample() for _ in range(envs.num_envs)])
    step = envs.step(action)
    step = step._replace(obs=np.full_like(step.obs, number))
    envs.close()
    for _ in range(10_000):
        with np.errstate(over="ignore"):
            memory.add(action, step)
        for batch in memory.batches(10**12):
            if batch.obs.dtype != torch.float32 or not bool((batch.obs == number).all()):
                raise Wrong(f"{number:,} comes back from the replay as {float(batch.obs.max()):,} in {batch.obs.dtype}")
            return "float32 in, float32 out"
    raise Wrong("the replay gives nothing back after 10,000 steps")
