"""The errors of known implementations, planted: each fault breaks the code as others' code was broken.

A fault is a handful of replacements, in force while ``planted`` is entered; ``Planted`` takes it along into the
sessions' processes.  What is planted is the mistake itself; nothing tells the doctor's checks that it is there.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import nn

from asynclab import flat, machine, optim
from asynclab.adapters import native
from asynclab.adapters.actions import Actions
from asynclab.adapters.retrace import Traced
from asynclab.agents import SAC, Agent, QLearning
from asynclab.distributed import Mode, Off, Shared, Store
from asynclab.distributed.timing import Constant, Lognormal
from asynclab.envs import Envs, is_atari, make
from asynclab.flat import Vector
from asynclab.memory import Replay
from asynclab.processes import launch
from asynclab.run.trial import Trial
from asynclab.training.learner import Learner
from asynclab.training.seeds import Seeds
from asynclab.training.session import Session

Replacements = Iterable[tuple[Any, str, Any]]  # owner, attribute, what it becomes


class Fault(NamedTuple):
    """A mistake that can be planted.

    Attributes:
        about: What is wrong, in one line.
        check: Name of the doctor's check that finds it.
        plant: () -> replacements.
        needs: (trial, agent) -> why it cannot be planted there, beyond what the check itself needs; empty if it can.
    """

    about: str
    check: str
    plant: Callable[[], Replacements]
    needs: Callable[[Trial, Agent], str]


FAULTS: dict[str, Fault] = {}
_in_force: set[str] = set()


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Let a fault be in force; None for none.  Entering it twice does nothing more."""
    if name is None or name in _in_force:
        yield
        return
    with ExitStack() as stack:
        for owner, attribute, value in FAULTS[name].plant():
            stack.enter_context(mock.patch.object(owner, attribute, value))
        _in_force.add(name)
        stack.callback(_in_force.discard, name)
        yield


@dataclass(frozen=True)
class Planted:
    """A session's run with a fault in force in its process, too."""

    name: str | None
    run: Callable[[], Iterator[Any]]

    def __call__(self) -> Iterator[Any]:
        """Yield what the run yields."""
        with planted(self.name):
            yield from self.run()


def _anywhere(trial: Trial, agent: Agent) -> str:
    return ""


def _fault(
    check: str, needs: Callable[[Trial, Agent], str] = _anywhere
) -> Callable[[Callable[[], Replacements]], Callable[[], Replacements]]:
    """Register a fault; its docstring says what is wrong."""

    def register(plant: Callable[[], Replacements]) -> Callable[[], Replacements]:
        assert plant.__doc__ is not None
        FAULTS[plant.__name__] = Fault(plant.__doc__.strip(), check, plant, needs)
        return plant

    return register


def _after(function: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that does as ``function`` and then as ``then``."""

    @wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = function(self, *args, **kwargs)
        then(self, *args, **kwargs)
        return result

    return method


def _before(function: Callable[..., Any], first: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        first(self, *args, **kwargs)
        return function(self, *args, **kwargs)

    return method


def _not_shared(trial: Trial, agent: Agent) -> str:
    return "in distributed=shared the weights are the global network" if trial.mode.is_live else ""


def _only_shared(trial: Trial, agent: Agent) -> str:
    return "" if trial.mode.is_live else f"in distributed={trial.mode.name} the weights are a copy by design"


# Gradients and weights


@_fault("fresh_gradient")
def piled_gradients() -> Replacements:
    """Never zero gradients: every push repeats all those before it."""
    yield Vector, "zero_", lambda self: None


@_fault("fresh_gradient")
def stale_gradients() -> Replacements:
    """Cut gradients off the vector that is pushed (zero_grad(set_to_none=True)): it stays that of the first batch."""

    def cut_off(self: Learner, *_: Any) -> None:
        for p in self.agent.nets.parameters():
            p.grad = None

    yield Vector, "zero_", lambda self: None
    yield Learner, "push", _after(Learner.push, cut_off)


@_fault("first_pull", _not_shared)
def no_first_pull() -> Replacements:
    """Let a session begin with its own random weights, and pull first after its first update."""

    def keep_own(self: Agent, weights: Vector, *_: Any) -> None:
        weights.full.copy_(flat.flatten(self.nets))
        weights.round_()

    yield Agent, "bind", _before(Agent.bind, keep_own)


@_fault("theta_shared")
def private_theta() -> Replacements:
    """Let every session step a copy of the global network, which nobody else sees."""

    def copy(self: Session, rank: int, store: Store, *_: Any) -> None:
        store.theta = store.theta.clone()
        for group, part in zip(store.optimizer.param_groups, store.networks.values(), strict=True):
            group["params"][0].data = store.theta[part]

    yield Session, "set_up", _before(Session.set_up, copy)


@_fault("weights", _not_shared)
def live_weights() -> Replacements:
    """Make the weights of synced and off the global network itself, which changes under a rollout."""
    yield Mode, "weights", lambda self, store, device, bf16=False: Vector.make(store.theta.to(device), bf16)


@_fault("weights", _only_shared)
def copied_weights() -> Replacements:
    """Make the weights of shared a copy, refreshed only after an update."""
    yield Shared, "weights", Mode.weights
    yield Shared, "pull", Mode.pull


@_fault("stores_separate")
def leaky_off() -> Replacements:
    """Let the repeats of off train one network together."""
    yield Off, "one_store", True


# The optimizer and the clock


@_fault("optimizer_shared")
def private_moments() -> Replacements:
    """Make the optimizer's state at its first step, in every process for itself."""
    yield optim, "share_state", lambda optimizer, roles: None
    yield optim.GlobalRMSprop, "step", torch.optim.RMSprop.step  # which makes what is not there


@_fault("optimizer_global")
def torch_optimizer() -> Replacements:
    """Take torch's own optimizer, whose state is private to a process, and let nothing refuse it."""
    yield optim, "GlobalAdam", torch.optim.Adam
    yield optim, "GlobalRMSprop", torch.optim.RMSprop
    yield Store, "is_global", property(lambda self: True)


@_fault("global_clock")
def local_clock() -> Replacements:
    """Let schedules follow the frames of the session alone."""

    def know_slot(self: Session, rank: int, store: Any, *_: Any) -> None:
        store.own_slot = self.mode.slot(rank)

    def progress(self: Any) -> float:
        return int(self.frames[getattr(self, "own_slot", 0)]) / int(self.max_frame)

    yield Session, "set_up", _before(Session.set_up, know_slot)
    yield Store, "progress", progress


# SAC


@_fault("targets")
def random_targets() -> Replacements:
    """Start target networks as the random weights that the first pull has replaced."""
    for kind in (SAC, QLearning):
        yield kind, "bind", _bind_randomly(kind.bind)


def _bind_randomly(bind: Callable[..., None]) -> Callable[..., None]:
    def faulty(self: Any, *args: Any, **kwargs: Any) -> None:
        target = self.targets[0].network
        own = [p.detach().clone() for p in target.parameters()]
        bind(self, *args, **kwargs)
        for p, random in zip(target.parameters(), own, strict=True):
            p.data.copy_(random)

    return faulty


@_fault("temperature")
def private_temperature() -> Replacements:
    """Leave SAC's temperature out of the global network; every session has its own."""

    def leave_out(self: SAC, *_: Any, **__: Any) -> None:
        self.nets = nn.ModuleDict({name: net for name, net in self.nets.items() if name != "temperature"})

    yield SAC, "__init__", _after(SAC.__init__, leave_out)


@_fault("replay_precision")
def float16_replay() -> Replacements:
    """Keep the replay's observations in half precision."""

    def halve(self: Replay, *_: Any, **__: Any) -> None:
        if self._obs.dtype == np.float32:
            self._obs = self._obs.astype(np.float16)

    yield Replay, "__init__", _after(Replay.__init__, halve)


# Processes


@_fault("start_method")
def fork() -> Replacements:
    """Fork sessions from the command, which has run torch operators."""
    get_context = launch.mp.get_context
    faulty = {"get_context": lambda method: get_context("fork")}
    yield launch, "mp", SimpleNamespace(**(vars(launch.mp) | faulty))


@_fault("infos", lambda trial, _: "its games are ale-py's" * is_atari(_env_id(trial)))
def gathered_infos() -> Replacements:
    """Let the vector gather what environments tell in their infos."""
    yield Traced, "reset", lambda self, **settings: self.env.reset(**settings)
    yield Traced, "step", lambda self, action: self.env.step(action)


@_fault("dead_session")
def ignored_death() -> Replacements:
    """Tell nobody when a session's process dies: the run ends as if nothing had happened."""
    yield launch._Crew, "_judge", lambda self, *_, **__: None


def _cores() -> int:
    return max(2, machine.cores())


@_fault(
    "threads",
    lambda trial, _: f"distributed.num_threads is {_cores()} here anyway" * (trial.probe.num_threads == _cores()),
)
def all_cores() -> Replacements:
    """Let torch use all cores in every session."""
    yield Session, "set_up", _before(Session.set_up, lambda *_: torch.set_num_threads(_cores()))


@_fault("seeds")
def same_seeds() -> Replacements:
    """Draw the same random numbers in all sessions."""
    begin = Seeds.__init__
    yield Seeds, "__init__", lambda self, seed, rank, *life: begin(self, seed, 0, *life)


@_fault("reproducible")
def clock_seeds() -> Replacements:
    """Take seeds from the clock."""
    begin = Seeds.__init__
    yield Seeds, "__init__", lambda self, seed, *rest: begin(self, time.time_ns(), *rest)


@_fault("simulation", lambda trial, _: "" if trial.mode.is_simulated else "there is no virtual time")
def real_time() -> Replacements:
    """Let durations of a simulation depend on the machine's clock."""
    for timing in (Constant, Lognormal):
        yield timing, "_draw", lambda self, mean, rng: mean + time.perf_counter() % mean


# Episode ends


class _Gymnasium:
    """The package as ``envs.make`` and ``adapters.native`` see it, with other vector environments."""

    def __init__(self, make_vec: Callable[..., VectorEnv]) -> None:
        self.make_vec = make_vec

    def __getattr__(self, name: str) -> Any:
        return getattr(gymnasium, name)


class _NextStep(VectorWrapper):
    """Gives the present observation as an episode's last, which it is in gymnasium's mode NEXT_STEP."""

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(actions)
        return obs, reward, terminated, truncated, {**info, "final_obs": obs}


@_fault("transitions")
def autoreset() -> Replacements:
    """Take the step after an episode's end, which only resets (gymnasium >= 1.0), for a transition."""
    mode = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def make_vec(id: str, **kwargs: Any) -> VectorEnv:
        kwargs |= {"vector_kwargs": kwargs["vector_kwargs"] | mode} if "vector_kwargs" in kwargs else mode
        return _NextStep(gymnasium.make_vec(id, **kwargs))

    yield make, "gym", _Gymnasium(make_vec)
    yield native, "gym", _Gymnasium(make_vec)


@_fault("transitions")
def truncation_as_termination() -> Replacements:
    """Count an episode that was cut short as terminated, so that its last state is worth nothing."""
    step = Envs.step

    def faulty(self: Envs, action: Any) -> Any:
        seen = step(self, action)
        terminated = seen.terminated | seen.truncated
        return seen._replace(terminated=terminated, truncated=np.zeros_like(terminated), final_obs={})

    yield Envs, "step", faulty


@_fault("transitions")
def next_episode() -> Replacements:
    """Bootstrap a truncated step from the next episode's first observation."""
    step = Envs.step

    def faulty(self: Envs, action: Any) -> Any:
        seen = step(self, action)
        return seen._replace(final_obs={b: seen.obs[b].copy() for b in seen.final_obs})

    yield Envs, "step", faulty


def _no_copy(trial: Trial, agent: Agent) -> str:
    return "" if not is_atari(_env_id(trial)) else "ale-py's vector environment copies by itself"


@_fault("transitions", _no_copy)
def shared_array() -> Replacements:
    """Keep an episode's last observation in the array that the environment changes when it is reset."""
    yield Traced, "step", lambda self, action: self.env.step(action)


@_fault("actions", lambda trial, _: "" if _acts_in_a_box(trial) else "its actions are discrete")
def raw_actions() -> Replacements:
    """Send a Gaussian policy's actions to the environment as they are, whatever its bounds."""
    yield Actions, "__call__", lambda self, action: action * 3.0


def _acts_in_a_box(trial: Trial) -> bool:
    make_envs: Any = trial.session.make_envs
    envs = make_envs(num_envs=1)
    envs.close()
    return isinstance(envs.action_space, Box) and bool(envs.action_space.is_bounded())


@_fault("transitions", lambda trial, _: "" if _n_step(trial) > 1 else "its transitions have one step")
def n_step_leak() -> Replacements:
    """Let the sums of n rewards run on over episode ends, and bootstrap from whatever comes then."""
    look_ahead = Replay._look_ahead

    def faulty(self: Replay, *args: Any) -> Any:
        nowhere = np.zeros_like(self._terminated)
        with mock.patch.multiple(self, _terminated=nowhere, _truncated=nowhere):
            return look_ahead(self, *args)

    yield Replay, "_look_ahead", faulty


def _n_step(trial: Trial) -> int:
    return int(getattr(trial.session.make_memory, "keywords", {}).get("n_step", 1))


@_fault("episode_ends")
def gae_leak() -> Replacements:
    """Let the traces of advantages run on over episode ends."""

    def faulty(right: Any, reward: Any, value: Any, v_next: Any, terminated: Any, done: Any, *rest: Any) -> Any:
        return right(reward, value, v_next, terminated, torch.zeros_like(done), *rest)

    kinds = [Agent]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if estimate := vars(kind).get("advantages"):
            yield kind, "advantages", staticmethod(partial(faulty, estimate))


@_fault(
    "raw_returns",
    lambda trial, _: "" if is_atari(_env_id(trial)) else f"{_env_id(trial)} has no emulator that clips rewards",
)
def emulator_clips() -> Replacements:
    """Clip rewards in the emulator, before anybody has counted them (the default of AtariVectorEnv)."""
    clipping = {"reward_clipping": True}
    yield native, "gym", _Gymnasium(lambda id, **kwargs: gymnasium.make_vec(id, **(kwargs | clipping)))


def _env_id(trial: Trial) -> str:
    return str(getattr(trial.session.make_envs, "keywords", {}).get("id", ""))


def table() -> str:
    """Return all faults by name, what is wrong, and the check that finds each."""
    width = max(map(len, FAULTS))
    return "\n".join(f"{name:{width}}  {fault.about} Found by {fault.check}." for name, fault in FAULTS.items())
