"""What a run's sessions have returned, in numbers: no file, no terminal and no clock is known here."""

import math
import statistics
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from asynclab.analysis.curves import WINDOW
from asynclab.cluster.exchange import Exchanges
from asynclab.evaluation.evaluator import Evaluated
from asynclab.processes.launch import Failure
from asynclab.run import staleness
from asynclab.storage.metrics import finite
from asynclab.training.messages import Record


class Statistics:
    """Sums up records, failures and evaluations.  Times are seconds since the start of the run.

    "Mean return" is over the 100 episodes that *ended* last in any session: sessions report whole batches, and in order
    of arrival one session's batch would crowd out the others.

    Attributes:
        session_returns: By rank: of the last 100 episodes.
        session_episodes: By rank: how many ended.
        failures: What failed, as summary.json has it.
        evaluation: Mean return, frames and updates of the last evaluation, and the best one; None before the first.
        best: The highest mean return of 100 episodes; -inf before there were as many.
        best_frame: Frames of the trial when it was reached.

    Args:
        sessions: How many there are.
        state: What ``state_dict`` returned when the run that goes on was saved; None for a new one.
        frames: Of the trial, now.
        summary: Of the run that goes on, if it has ended with that state.
    """

    def __init__(
        self,
        sessions: int,
        state: Mapping[str, Any] | None = None,
        frames: int = 0,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        state = state or {}
        returns = state.get("session_returns", [[]] * sessions)
        self._recent = [(seconds, number(ret)) for seconds, ret in state.get("recent", [])]  # when each ended
        self.session_returns = [deque(map(number, saved), maxlen=WINDOW) for saved in returns]
        self.session_episodes: list[int] = list(state.get("session_episodes", [0] * sessions))
        self._episodes: int = state.get("episodes", 0)
        self._staleness = [Counter(dict(counts)) for counts in state.get("staleness", [[]] * sessions)]
        self._profile: list[dict[str, float]] = [{} for _ in range(sessions)]  # seconds by phase
        self._latest: list[Mapping[str, float]] = [{} for _ in range(sessions)]
        self._agreement: list[float] = list(state.get("agreement", [0.0, 0]))  # sum over the records, and how many
        self.failures: list[dict[str, Any]] = list(state.get("failures", []))
        evaluation = (summary or state).get("evaluation")
        self.evaluation: dict[str, Any] | None = evaluation and {
            **evaluation, "mean_return": number(evaluation["mean_return"])
        }  # fmt: skip
        self._exchanges = {saved[0]: _exchanges(*saved) for saved in state.get("exchanges", [])}  # by node
        self._new_exchanges: dict[int, Exchanges] = {}  # since they were asked for
        best = state.get("best")
        self.best = -math.inf if best is None else best
        self.best_frame: int = state.get("best_frame", frames)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that goes into a checkpoint, as JSON."""
        return {
            "episodes": self._episodes,
            "session_episodes": self.session_episodes,
            "best": finite(self.best),
            "best_frame": self.best_frame,
            "recent": finite([list(pair) for pair in self._recent]),
            "session_returns": finite([list(returns) for returns in self.session_returns]),
            "failures": self.failures,
            "evaluation": finite(self.evaluation),
            "staleness": [sorted(counts.items()) for counts in self._staleness],
            "agreement": self._agreement,
            "exchanges": [[*found[:4], sorted(found.staleness.items())] for found in self._exchanges.values()],
        }

    def take(self, record: Record, start: float, frames: int) -> dict[str, float]:
        """Take a session's report and return what follows from it, by tag.

        Args:
            record: Its episodes' times are on the machine's monotonic clock.
            start: Of the run, on that clock.
            frames: Of the trial, now.
        """
        rank, returns = record.rank, self.session_returns[record.rank]
        returns.extend(episode.ret for episode in record.episodes)
        ended = [(episode.seconds - start, episode.ret) for episode in record.episodes]
        self._recent = sorted(self._recent + ended, key=itemgetter(0))[-WINDOW:]  # many end in one virtual moment
        self.session_episodes[rank] += len(record.episodes)
        self._episodes += len(record.episodes)
        if self.window_is_full and self.mean_return > self.best:
            self.best, self.best_frame = self.mean_return, frames
        for phase, seconds in record.profile.items():
            self._profile[rank][phase] = self._profile[rank].get(phase, 0.0) + seconds
        self._staleness[rank].update(record.staleness)
        if math.isfinite(agreement := record.metrics.get("hogwild/agreement", math.nan)):
            self._agreement = [self._agreement[0] + agreement, self._agreement[1] + 1]
        profile = {f"profile/{phase}": share for phase, share in shares(record.profile).items()}
        self._latest[rank] = {**self._latest[rank], **record.metrics, **profile}
        scalars = {**record.metrics, **profile, **by_tag(record.staleness)}
        return scalars | ({"train/return_100": statistics.fmean(returns)} if returns else {})

    def fail(self, failure: Failure, frames: int) -> dict[str, Any]:
        """Take note of a session's failure at so many frames of all; return what is to be known of it."""
        what = {
            "rank": failure.rank,
            "total_frames": frames,
            "cause": failure.cause,
            "exitcode": failure.exitcode,
            "restarted": failure.delay is not None,
        }
        self.failures.append(what)
        return what

    def exchanged(self, found: Exchanges) -> None:
        """Take what a node's exchanges have cost."""
        for known in (self._exchanges, self._new_exchanges):
            known[found.node] = known.get(found.node, Exchanges(found.node)).plus(found)

    def exchanges(self, seconds: float) -> dict[str, float]:
        """Return by tag what exchanges since the last call have cost, in as many seconds; none if there were none."""
        new, self._new_exchanges = self._new_exchanges.values(), {}
        count, nbytes = sum(found.times for found in new), sum(found.nbytes for found in new)
        if not nbytes:
            return {}
        stale = staleness.summary(sum((Counter(found.staleness) for found in new), Counter())) or {}
        return {
            "cluster/exchanges_per_second": count / max(seconds, 1e-9),
            "cluster/mb_per_second": 1e-6 * nbytes / max(seconds, 1e-9),
            **({"cluster/exchange_ms": 1e3 * sum(found.seconds for found in new) / count} if count else {}),
            **{f"cluster/staleness_{name}": value for name, value in stale.items()},
        }

    def evaluated(self, result: Evaluated) -> dict[str, float]:
        """Take an evaluation; return its numbers by tag."""
        mean = statistics.fmean(result.returns)
        best = (self.evaluation or {}).get("best")
        this = {"mean_return": mean, "frames": result.frames}
        if math.isfinite(mean) and (best is None or mean > best["mean_return"]):
            best = this
        self.evaluation = this | {"updates": result.updates, "best": best}
        return {
            "eval/return": mean,
            "eval/return_min": min(result.returns),
            "eval/return_max": max(result.returns),
            "eval/length": statistics.fmean(result.lengths),
        }

    @property
    def window_is_full(self) -> bool:
        """Whether the mean return is one of 100 episodes."""
        return len(self._recent) == WINDOW

    @property
    def mean_return(self) -> float:
        """Mean raw return of the last 100 episodes of the run; nan before the first."""
        return mean_return([ret for _, ret in self._recent])

    @property
    def restarts(self) -> int:
        """Number of restarts of sessions since the run began."""
        return sum(failure["restarted"] for failure in self.failures)

    @property
    def staleness(self) -> Counter[int]:
        """How often each staleness occurred, in all sessions."""
        return sum(self._staleness, Counter())

    @property
    def memory(self) -> float:
        """Memory of the session that has most, in MiB."""
        return max((metrics.get("perf/memory_mib", 0.0) for metrics in self._latest), default=0.0)

    def scalars(self) -> dict[str, float]:
        """Return what the sessions reported last, in the mean, and what holds for all of them, by tag."""
        found = _mean(self._latest) | by_tag(self.staleness)
        return found | ({"train/return_100": self.mean_return} if self._recent else {})

    def summary(self) -> dict[str, Any]:
        """Return what summary.json has of it."""
        found = {
            "mean_return": self.mean_return,
            "best_return": self.best,
            "episodes": self._episodes,
            "restarts": self.restarts,
            "failures": self.failures,
            "evaluation": self.evaluation,
            "staleness": staleness.summary(self.staleness),
            "agreement": self._agreement[0] / self._agreement[1] if self._agreement[1] else None,
            "staleness_counts": sorted(self.staleness.items()),
            "session_staleness": [staleness.summary(counts) for counts in self._staleness],
            "session_mean_return": [statistics.fmean(r) if r else None for r in self.session_returns],
        }
        if self._exchanges:
            found["exchanges"] = [_told(of_node) for _, of_node in sorted(self._exchanges.items())]
        if any(self._profile):
            found["profile"] = [shares(seconds) for seconds in self._profile]
            found["profile_seconds"] = [round(sum(seconds.values()), 3) for seconds in self._profile]
        return found


def _exchanges(node: int, times: int, seconds: float, nbytes: int, stale: Sequence[Sequence[int]]) -> Exchanges:
    return Exchanges(node, times, seconds, nbytes, Counter(dict(stale)))  # type: ignore[arg-type]


def _told(found: Exchanges) -> dict[str, Any]:
    """Return what summary.json has of a node's exchanges."""
    return {
        "node": found.node,
        "count": found.times,
        "ms": round(1e3 * found.seconds / max(found.times, 1), 2),
        "bytes": found.nbytes,
        "staleness": staleness.summary(found.staleness),
    }


def mean_return(returns: Collection[float]) -> float:
    """Return the mean; nan of none."""
    return statistics.fmean(returns) if returns else math.nan


def number(value: float | None) -> float:
    """Return what JSON cannot say, and has as None, as nan."""
    return math.nan if value is None else value


def by_tag(counts: Mapping[int, int]) -> dict[str, float]:
    """Return the statistics of a staleness by tag; none if nothing was counted."""
    return {f"hogwild/staleness_{name}": value for name, value in (staleness.summary(counts) or {}).items()}


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each phase in the time of all."""
    total = max(sum(seconds.values()), 1e-9)
    return {phase: round(value / total, 4) for phase, value in seconds.items()}


def profile_table(profile: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a line per session and their mean: how many percent of its time went to each phase."""
    if not profile:
        return []
    mean = _mean(profile)
    rows = [(f"session {rank:02d}", shares) for rank, shares in enumerate(profile)] + [("mean", mean)]
    head = "time in %    " + "".join(f"{phase:>10}" for phase in mean)
    return [head] + [f"{name:<13}" + "".join(f"{100 * shares.get(p, 0):10.1f}" for p in mean) for name, shares in rows]


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over the sessions that report each metric."""
    names = dict.fromkeys(name for m in metrics for name in m)
    return {name: statistics.fmean(m[name] for m in metrics if name in m) for name in names}
