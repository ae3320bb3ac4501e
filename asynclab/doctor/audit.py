"""What a memory hands out, compared number by number with plain environments that are reset by hand.  B: environments.

A vector environment resets inside ``step``, and what it makes of an episode's end is where wrong transitions come from.
Here every one of its environments has a plain twin: same seed, same actions, but reset by us when its episode is over.
A transition that no twin made is bogus.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from asynclab import envs as environments
from asynclab.adapters import atari
from asynclab.adapters.actions import Actions
from asynclab.adapters.plain import observations
from asynclab.envs import Envs, is_atari
from asynclab.envs.make import has_own_vector
from asynclab.memory import Memory, Replay, ReplayBatch, Rollout, RolloutBatch

# What can be wrong with transitions, the causes before what follows from them
AUTORESET = "begin at an episode's last observation: the step that only resets became a transition"
LEAK = "go on after the end of their episode"
TERMINATED = "end in a truncation that is taken for a termination"
NOT_TERMINATED = "end in a termination that is not marked"
NEXT_EPISODE = "have the next episode's first observation as their successor"
NOT_ENDED = "end an episode, or go on, where the plain environment did not"
SUCCESSOR = "have a successor that the plain environment did not show"
REWARD = "have a reward that the plain environment did not give"
DISCOUNT = "discount what follows by another number of steps than they have"
UNKNOWN = "begin where no plain environment was, or act as it did not"
RETURN = "end an episode whose raw return or length is reported wrongly"
MISSING = "were never handed out"
KINDS = (
    AUTORESET, LEAK, TERMINATED, NOT_TERMINATED, NEXT_EPISODE, NOT_ENDED,
    SUCCESSOR, REWARD, DISCOUNT, UNKNOWN, RETURN, MISSING,
)  # fmt: skip


class Audit(NamedTuple):
    """What was found.

    Attributes:
        frames: Transitions that the plain environments made.
        terminated: Episodes that ended by termination.
        truncated: Episodes that were cut short.
        bogus: What is wrong with a transition -> how many there are.  Environments that have been stepped once too
            often have no episode in common with their twins from then on, so one mistake can count many times.
        reuses: Whether the environment's reset changes the last observation of the episode before, in place.
    """

    frames: int
    terminated: int
    truncated: int
    bogus: Counter[str]
    reuses: bool = False

    def __str__(self) -> str:
        seen = f"{self.frames:,} frames with {self.terminated} terminations and {self.truncated} truncations"
        if not self.bogus:
            return f"0 bogus transitions in {seen}" + ", although reset changes an array given before" * self.reuses
        kinds = "; ".join(f"{self.bogus[kind]:,} {kind}" for kind in KINDS if kind in self.bogus)
        cause = (
            "; the environment's reset changes the array of the last observation, which was not copied" * self.reuses
        )
        return f"of {seen}, {kinds}{cause}"


class Transition(NamedTuple):
    """One transition as a memory hands it out.

    ``ended`` is None where the memory does not tell truncations, ``discount`` where it leaves discounting to the agent.
    """

    obs: NDArray
    action: NDArray
    reward: float
    terminated: bool
    ended: bool | None
    next_obs: NDArray
    discount: float | None


class _Outcome(NamedTuple):
    """What a plain environment made of an action and of those that came after it, n steps in all or fewer."""

    reward: float  # discounted sum
    terminated: bool
    ended: bool
    successor: bytes
    steps: int = 1

    def then(self, other: "_Outcome", gamma: float) -> "_Outcome":
        """Return this one and one more step."""
        return other._replace(reward=self.reward + gamma**self.steps * other.reward, steps=self.steps + 1)


class Plain:
    """One environment that nobody resets but its owner; numbers are as ``Envs`` gives and takes them.

    Args:
        id: Gymnasium id.
        clip_reward: Whether training is on the reward's sign.
        wrappers: Put around the environment.
        vectorization_mode: Of those that it is compared with.
        kwargs: For the environment's own constructor.

    Attributes:
        reuses: Whether its reset has changed an observation that it had given.
    """

    def __init__(
        self,
        id: str,
        clip_reward: bool = False,
        wrappers: Any = (),
        vectorization_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._clip = clip_reward
        self._vector = is_atari(id) and has_own_vector(id, wrappers, vectorization_mode, kwargs)
        self._env: Any
        self._last: Any = None  # as the environment gave it
        self.reuses = False
        if self._vector:
            # In the emulator's other mode the last observation comes first and then, as a step of its own, the reset.
            forced = {"num_threads": 1, "reward_clipping": False, "autoreset_mode": AutoresetMode.NEXT_STEP}
            self._env = gym.make_vec(id, num_envs=1, **(kwargs | forced))
            space, actions = self._env.single_observation_space, self._env.single_action_space
        else:
            self._env = environments.plain(id, wrappers, **kwargs)
            space, actions = self._env.observation_space, self._env.action_space
        _, self._convert = observations(space)
        self._actions = Actions(actions)

    def reset(self, seed: int | None = None) -> NDArray:
        """Start an episode and return its first observation."""
        if not self._vector:
            before = copy.deepcopy(self._last)
            obs = self._env.reset(seed=seed)[0]
            self.reuses |= isinstance(before, np.ndarray) and not np.array_equal(before, self._last, equal_nan=False)
            return self._obs(obs)
        if seed is not None:
            return self._obs(self._env.reset(seed=np.array([seed]))[0][0])
        return self._obs(self._env.step(np.zeros(1, np.int64))[0][0])

    def step(self, action: NDArray) -> tuple[NDArray, float, float, bool, bool]:
        """Return observation, reward for training, raw reward, and whether the episode terminated or was truncated."""
        if self._vector:
            mapped = self._actions(np.asarray(action)[None])
            obs, raw, terminated, truncated = (x[0] for x in self._env.step(mapped)[:4])
        else:
            obs, raw, terminated, truncated, _ = self._env.step(self._actions.one(np.asarray(action)))
        reward = np.float32(np.sign(raw) if self._clip else raw)
        return self._obs(obs), float(reward), float(raw), bool(terminated), bool(truncated and not terminated)

    def close(self) -> None:
        """Free the emulator."""
        self._env.close()

    def _obs(self, obs: Any) -> NDArray:
        self._last = obs
        obs = np.array(obs if self._convert is None else self._convert(obs))
        return obs if obs.dtype == np.uint8 else obs.astype(np.float32)


def audit(make_envs: Callable[[], Envs], frames: int, make_memory: Callable[..., Memory], seed: int = 0) -> Audit:
    """Step with random actions and compare all that the memory hands out with what plain environments did.

    Args:
        make_envs: A partial of ``make_envs``.  Those of its options that change what is observed and paid (all but the
            clipping of rewards) are left out; what is for the environment's own constructor is not.
        frames: At least so many, up to the end of a batch.
        make_memory: (obs_space, action_space, num_envs, seed) -> Memory that hands out all transitions, such as
            ``hands_out_all`` makes of another.
        seed: Of environments and actions.

    Raises:
        ValueError: The environments are not made by ``make_envs``.
    """
    arguments = _arguments(make_envs)
    envs = environments.make_envs(**arguments)
    arguments.pop("num_envs")
    plain = [Plain(**arguments) for _ in range(envs.num_envs)]
    try:
        return _Auditor(envs, plain, seed).run(frames, make_memory)
    finally:
        envs.close()
        for twin in plain:
            twin.close()


def cut_short(make_envs: Callable[[], Envs], steps: int, **others: Any) -> Callable[[], Envs]:
    """Return ``make_envs`` with episodes that are truncated after so many steps.

    Args:
        make_envs: A partial of ``make_envs``.
        steps: At most, of an episode.
        others: Further settings to replace.
    """
    arguments = _arguments(make_envs) | others
    if is_atari(arguments["id"]):
        limit = {"max_num_frames_per_episode": steps * arguments.get("frameskip", atari.FRAMESKIP)}
    else:
        limit = {"max_episode_steps": steps}
    return partial(environments.make_envs, **(arguments | limit))


ODD = "asynclab/OddInfos-v0"


class OddInfos(gym.Wrapper):
    """Adds to infos what gymnasium's vectors cannot gather: what changes its type and size, and names of their own."""

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._steps = 0
        obs, info = self.env.reset(**settings)
        return obs, info | self._odd()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        self._steps += 1
        *rest, info = self.env.step(action)
        return *rest, info | self._odd()

    def _odd(self) -> dict[str, Any]:
        return {"episode": 3, "grows": np.zeros(self._steps), "changes": [None, 1, "two"][self._steps % 3]}


def odd_infos(make_envs: Callable[[], Envs]) -> Callable[[], Envs]:
    """Return ``make_envs`` with environments that have such infos.

    Raises:
        ValueError: It is no partial of ``make_envs``, or of environments that are stepped together by ale-py.
    """
    arguments = _arguments(make_envs)
    id = arguments["id"]
    if is_atari(id):
        raise ValueError("ale-py gathers the infos of its own games")
    gym.registry.pop(ODD, None)
    gym.register(ODD, lambda **kwargs: OddInfos(gym.make(id, **kwargs)), disable_env_checker=True)
    return partial(environments.make_envs, **(arguments | {"id": ODD}))


def hands_out_all(make_memory: Callable[..., Memory]) -> Callable[..., Memory]:
    """Return a memory of the same kind that hands out every transition as soon as it can.

    Args:
        make_memory: A partial of ``Rollout``, of ``Replay`` or of something derived from one of them.

    Raises:
        ValueError: It is of another kind.
    """
    kind = make_memory.func if isinstance(make_memory, partial) else make_memory
    if isinstance(kind, type) and issubclass(kind, Replay):
        # Combined replay: the last of each batch is the newest transition of each environment in turn.
        return partial(make_memory, capacity=1_024, batch_size=2, start=0, updates_per_frame=1.0, combined=True)
    if isinstance(kind, type) and issubclass(kind, Rollout):
        return make_memory
    raise ValueError(f"the audit knows rollouts and replays, not {kind}")


def transitions(batch: Any) -> Iterator[Transition]:
    """Yield a batch's transitions.

    Raises:
        ValueError: It is neither a rollout nor a sample of a replay.
    """
    if isinstance(batch, ReplayBatch):
        obs, next_obs, action = (x.numpy() for x in (batch.obs, batch.next_obs, batch.action))
        for i in range(len(obs)):
            reward, discount = float(batch.reward[i]), float(batch.discount[i])
            yield Transition(obs[i], action[i], reward, bool(batch.terminated[i]), None, next_obs[i], discount)
    elif isinstance(batch, RolloutBatch):
        rows, action, final = batch.obs.numpy(), batch.action.numpy(), batch.final_obs.numpy()
        place = {int(at): i for i, at in enumerate(batch.final_index)}
        horizon, num_envs = batch.reward.shape
        for t in range(horizon):
            for b in range(num_envs):
                at = t * num_envs + b
                next_obs = final[place[at]] if at in place else rows[t + 1, b]
                flags = bool(batch.terminated[t, b]), bool(batch.done[t, b])
                yield Transition(rows[t, b], action[t, b], float(batch.reward[t, b]), *flags, next_obs, None)
    else:
        raise ValueError(f"the audit knows rollouts and samples of a replay, not {type(batch).__name__}")


class _Auditor:
    """Environments, their plain twins, and what these did."""

    def __init__(self, envs: Envs, plain: list[Plain], seed: int) -> None:
        self.envs = envs
        self.plain = plain
        self.seed = seed
        self.outcomes: dict[bytes, set[_Outcome]] = {}  # of an observation and an action, n steps later
        # By environment, those that have not had n steps yet.
        self.open: list[list[tuple[bytes, _Outcome]]] = [[] for _ in plain]
        self.n_step, self.gamma = 1, 1.0
        self.firsts: set[bytes] = set()
        self.lasts: set[bytes] = set()
        self.waiting: set[tuple[bytes, _Outcome]] = set()  # what has not been handed out
        self.bogus: Counter[str] = Counter()
        self.ends = {True: 0, False: 0}  # terminated or not

    def run(self, frames: int, make_memory: Callable[..., Memory]) -> Audit:
        envs, num_envs = self.envs, self.envs.num_envs
        rng = np.random.default_rng(self.seed)
        seeds = [self.seed + b for b in range(num_envs)]
        memory = make_memory(envs.obs_space, envs.action_space, num_envs, self.seed)
        if isinstance(memory, Replay):
            self.n_step, self.gamma = memory.n_step, memory.gamma
        current = [twin.reset(seed) for twin, seed in zip(self.plain, seeds, strict=True)]
        self.firsts |= {_digest(obs) for obs in current}
        totals, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        memory.reset(envs.reset(seeds))
        stepped, complete = 0, False
        while not complete:
            action = random_actions(rng, envs)
            step = envs.step(action)
            memory.add(action, step)
            stepped += num_envs
            episodes = {}
            for b, twin in enumerate(self.plain):
                obs, reward, raw, terminated, truncated = twin.step(action[b])
                self._record(b, current[b], action[b], reward, terminated, truncated, obs)
                totals[b] += raw
                lengths[b] += 1
                if terminated or truncated:
                    episodes[b] = (totals[b], lengths[b])
                    obs = twin.reset()
                    self.firsts.add(_digest(obs))
                    totals[b] = lengths[b] = 0
                current[b] = obs
            self._compare_returns(episodes, {e.env: (e.ret, e.length) for e in step.episodes})
            complete = False
            for batch in memory.batches(10**12):
                complete = stepped >= frames
                for transition in transitions(batch):
                    self._judge(transition)
            if stepped > 2 * frames + 100_000:
                raise ValueError(f"{type(memory).__name__} hands out nothing, so there is nothing to compare")
        if not self.bogus and self.waiting:
            self.bogus[MISSING] = len(self.waiting)
        reuses = any(twin.reuses for twin in self.plain)
        return Audit(stepped, self.ends[True], self.ends[False], self.bogus, reuses)

    def _record(
        self, b: int, obs: NDArray, action: NDArray, reward: float, terminated: bool, truncated: bool, next_obs: NDArray
    ) -> None:
        key, successor = _digest(obs, action), _digest(next_obs)
        outcome = _Outcome(reward, terminated, terminated or truncated, successor)
        going_on = [*((begun, before.then(outcome, self.gamma)) for begun, before in self.open[b]), (key, outcome)]
        self.open[b] = []
        for begun, after in going_on:
            if after.ended or after.steps == self.n_step:
                self.outcomes.setdefault(begun, set()).add(after)
            else:
                self.open[b].append((begun, after))
        self.waiting.add((key, outcome))  # the newest transition is handed out at once, so with this one step
        if outcome.ended:
            self.lasts.add(successor)
            self.ends[terminated] += 1

    def _judge(self, transition: Transition) -> None:
        key = _digest(transition.obs, transition.action)
        outcomes = self.outcomes.get(key, set()) | {outcome for some in self.open for k, outcome in some if k == key}
        if not outcomes:
            self.bogus[AUTORESET if _digest(transition.obs) in self.lasts else UNKNOWN] += 1
            return
        differences = {outcome: self._difference(transition, outcome) for outcome in outcomes}
        genuine = {outcome for outcome, difference in differences.items() if difference is None}
        self.waiting -= {(key, outcome) for outcome in genuine}
        if not genuine:
            self.bogus[min(filter(None, differences.values()), key=KINDS.index)] += 1

    def _difference(self, transition: Transition, outcome: _Outcome) -> str | None:
        """Return what is wrong with a transition if this is what should have come of it."""
        discount = self.gamma ** (outcome.steps - 1)
        if outcome.ended and transition.discount and transition.discount < (1 - 1e-5) * discount:
            return LEAK  # more steps than there were
        if transition.terminated and not outcome.terminated:
            return TERMINATED if outcome.ended else NOT_ENDED
        if outcome.terminated and not transition.terminated:
            return NOT_TERMINATED
        if transition.ended not in (None, outcome.ended):
            return NOT_ENDED
        tolerance = 0.0 if self.n_step == 1 else 1e-5  # a sum is rounded
        if not np.isclose(transition.reward, outcome.reward, rtol=tolerance, atol=tolerance):
            return REWARD
        # what follows a terminal state is worth nothing and never looked at
        successor = _digest(transition.next_obs)
        if not outcome.terminated and successor != outcome.successor:
            return NEXT_EPISODE if outcome.ended and successor in self.firsts else SUCCESSOR
        if outcome.terminated:
            discount = 0.0
        if transition.discount is not None and not np.isclose(transition.discount, discount, rtol=1e-5):
            return DISCOUNT
        return None

    def _compare_returns(self, expected: dict[int, tuple[float, int]], reported: dict[int, tuple[float, int]]) -> None:
        for b in expected.keys() | reported.keys():
            (ret, length), (told, steps) = expected.get(b, (np.nan, 0)), reported.get(b, (np.nan, 0))
            if length != steps or not np.isclose(ret, told, rtol=1e-5, atol=1e-5):
                self.bogus[RETURN] += 1


def _arguments(make_envs: Callable[[], Envs]) -> dict[str, Any]:
    """Return a partial's arguments, without options that change what is observed or paid."""
    if not isinstance(make_envs, partial) or make_envs.func is not environments.make_envs:
        raise ValueError("the audit can compare only environments that asynclab.envs.make_envs makes")
    signature = inspect.signature(make_envs.func)
    given = signature.bind_partial(*make_envs.args, **make_envs.keywords).arguments
    kept = ("id", "num_envs", "clip_reward", "wrappers", "vectorization_mode")
    return {k: given[k] for k in kept if k in given} | given.get("kwargs", {})


def random_actions(rng: np.random.Generator, envs: Envs) -> NDArray:
    """Return random actions as an agent gives them."""
    space = envs.action_space
    if isinstance(space, Discrete):
        return rng.integers(int(space.n), size=envs.num_envs)
    if isinstance(space, MultiDiscrete):
        return rng.integers(space.nvec, size=(envs.num_envs, len(space.nvec)))
    return rng.uniform(-1.0, 1.0, (envs.num_envs, *space.shape)).astype(np.float32)


def _digest(*arrays: NDArray) -> bytes:
    content = blake2b(digest_size=16)
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    return content.digest()
