"""The first and the last screen of a run: what will run, and what came of it.  They are in train.log, too."""

import json
import logging
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asynclab import machine
from asynclab.analysis.curves import WINDOW
from asynclab.console.handler import row
from asynclab.distributed import Cluster
from asynclab.run import resources, viewer
from asynclab.run.preflight import steps_in_processes
from asynclab.run.trial import Trial
from asynclab.storage.names import CHECKPOINTS, CURVE_IMAGE, REPORT, SESSIONS_IMAGE, SUMMARY
from asynclab.text import command, count, duration, installed, number, override, short

log = logging.getLogger(__name__)

STYLES = {"finished": "bold green", "interrupted": "bold yellow", "failed": "bold red"}
FILES = (SESSIONS_IMAGE, REPORT, SUMMARY, f"{CHECKPOINTS}/latest", f"{CHECKPOINTS}/best")


def first(trial: Trial, cfg: Any, choices: Mapping[str, str]) -> None:
    """Say what will run.

    Args:
        trial: What will run.
        cfg: Its config.
        choices: Of the config's groups; empty if they are not known.
    """
    algo = choices.get("algo") or cfg.algo.agent._target_.rpartition(".")[2]
    mode, session, stores = trial.mode, trial.session, trial.stores
    sessions, each = mode.max_session, " each" * (mode.max_session > 1)
    memories = [trial.probe.memory_bytes, sessions * trial.probe.memory_bytes, resources.available_memory()]
    log.info("%s on %s, distributed=%s", algo, cfg.env.id, mode.name, extra={"title": "bold"})
    _row(
        "sessions",
        f"{sessions} with {count(trial.probe.num_envs, 'environment')} and"
        f" {count(trial.probe.num_threads, 'thread')}{each}, on {', '.join(trial.probe.devices)}",
    )
    if isinstance(mode, Cluster):
        where = "Ray on this machine" if mode.address is None else f"the Ray cluster at {mode.address}"
        _row("nodes", f"{mode.nodes} with {count(mode.sessions, 'session')} each, in {where}")
    elif idle := _idle_cores(trial):
        _row("cores", idle)
    parameters = f"{len(stores[0].theta):,} parameters{' each' * (len(stores) > 1)}"
    _row("network", f"{parameters}, {trial.probe.precision}, seed {session.seed}")
    if trial.initial is not None:
        _row("weights", str(trial.initial))
    _row("memory", "{} per session, {} in all, {} available".format(*map(resources.size, memories)))
    per = " per session" if len(stores) > 1 else " in all" * (sessions > 1)
    left_out = "" if session.save_memory else "; without the memories"
    every = duration(trial.cfg.checkpoint_every)
    _row("frames", f"{stores[0].max_frame:,}{per}, a checkpoint every {every}{left_out}")
    if trial.checkpoint is not None:
        frames = f"{trial.checkpoint.manifest['frames']:,}"
        _row("resumed", f"from {short(trial.checkpoint.path)} at {frames} frames")
    if (spaces := choices.get("spaces", trial.spaces)) != trial.spaces:
        _row("defaults", f"for spaces={spaces}, but this environment has spaces={trial.spaces}, with others: add that")
    _row("output", short(trial.folder), whole=True)
    _row("TensorBoard", tensorboard(trial.folder), whole=True)
    _row("to stop", "Ctrl-C saves a checkpoint and ends")
    _warn_of_lost_memories(trial)


def _idle_cores(trial: Trial) -> str:
    """Return how many cores the sessions leave idle, and what would use them; empty if none."""
    mode, cores, threads = trial.mode, machine.cores(), trial.probe.num_threads
    used = f"{mode.max_session * threads} of {cores} in use"
    limit = resources.thread_limit()
    if mode.is_simulated or mode.max_session * threads >= cores or steps_in_processes(trial.session.make_envs):
        return ""
    if threads < resources.choose_threads(None, mode.max_session, len(trial.stores[0].theta)):
        return f"{used}; distributed.num_threads=null would use more"
    if limit and limit <= mode.max_session * threads:
        return f"{used}, as OMP_NUM_THREADS={limit} says"
    synced = "" if mode.one_store or mode.max_session > 1 else "distributed=synced "
    return f"{used}; {synced}distributed.max_session={cores} would use all"


def _warn_of_lost_memories(trial: Trial) -> None:
    """Say so if what the sessions remembered is lost, or will be, and must be collected anew."""
    sessions, found = trial.mode.max_session, trial.checkpoint
    if not trial.probe.refill:
        return
    if found is not None and found.manifest["frames"]:
        lost = [rank for rank in range(sessions) if f"session_{rank:02d}.npz" not in found.manifest["files"]]
        if lost:
            log.warning(
                "%s has no memory of %s: each first collects a tenth of what it held, or algo.memory.start if that is"
                " more, before it learns again", short(found.path), count(len(lost), "session"),
            )  # fmt: skip
    if trial.mode.is_cluster:
        log.warning(
            "checkpoints of a cluster lack the sessions' memories: a session of a resumed run, or one that is"
            " restarted, first collects up to %s transitions before it learns again",
            f"{trial.probe.refill:,}",
        )  # fmt: skip
    elif not trial.session.save_memory:
        memories, on_disk = sessions * trial.probe.memory_bytes, resources.size(trial.probe.memories_on_disk)
        log.warning(
            "checkpoints will lack the sessions' memories, %s in all: a session of a resumed run, or one that is"
            " restarted, first collects up to %s transitions before it learns again. checkpoint_memory=%s keeps them,"
            " in up to %s of disk",
            resources.size(memories), f"{trial.probe.refill:,}", math.ceil(memories / 1e9), on_disk,
        )  # fmt: skip


def last(run: Path, budget: int) -> None:
    """Say what came of a run and where it is; nothing if the run has not come as far as to write its summary.

    Args:
        run: Output folder.
        budget: ``env.max_frame``.
    """
    try:
        summary: dict[str, Any] = json.loads((run / SUMMARY).read_text())
    except (OSError, ValueError):
        return
    status, stale = summary["status"], summary["staleness"]
    mean, best = (number(summary[key]) for key in ("mean_return", "best_return"))
    result = f"mean return {mean} over the last {count(min(summary['episodes'], WINDOW), 'episode')}, best {best}"
    log.info(
        "%s: %s", status, result if summary["episodes"] else "no episode has ended", extra={"title": STYLES[status]}
    )
    not_applied = summary["dropped_updates"]
    dropped = f", {not_applied:,} more dropped, as they were not finite" if not_applied else ""
    _row(
        "frames",
        f"{summary['frames']:,} in {duration(summary['seconds'])}{_virtual(summary)}, {summary['fps']:,.0f} per second;"
        f" {count(summary['updates'], 'update')}{dropped}",
    )
    if stopped := summary.get("stopped_by"):
        _row("stopped", f"by {stopped}")
    if evaluation := summary.get("evaluation"):
        best = evaluation["best"] or evaluation
        _row(
            "evaluation",
            f"mean return {number(evaluation['mean_return'])} at {evaluation['frames']:,} frames,"
            f" best {number(best['mean_return'])} at {best['frames']:,}",
        )
    old = f", staleness {stale['mean']:.2f} on average, at most {stale['max']}" if stale else ""
    _row("sessions", f"{len(summary['session_frames'])}, {count(summary['restarts'], 'restart')}{old}")
    _row("output", short(run), whole=True)
    _row("", ", ".join(name for name in FILES if (run / name).exists()))
    if (run / CURVE_IMAGE).exists():
        _row("picture", short(run / CURVE_IMAGE), whole=True)
    _row("TensorBoard", tensorboard(run), whole=True)
    _row("", viewer.ADDRESS, whole=True)
    if (run / CHECKPOINTS / "latest").exists():
        evaluate = f"{command('evaluate')} {override('run', run)}"
        _row("to evaluate", evaluate, whole=True)
        _row("to watch it", f"{evaluate} episodes=1 video=true", whole=True)
        more = f" env.max_frame={2 * budget:_}" * (status == "finished")
        if stopped:
            more = f" {stopped.partition('=')[0]}=null"
        _row("to go on", f"{command('train')} {override('resume', run)}{more}", whole=True)


def _virtual(summary: Mapping[str, Any]) -> str:
    """Return what is to be said of the seconds of a simulation."""
    return f" of virtual time ({duration(summary['real_seconds'])} of real)" if "real_seconds" in summary else ""


def _row(label: str, text: str, whole: bool = False) -> None:
    message, extra = row(label, text, whole)
    log.info("%s", message, extra=extra)


def tensorboard(folder: Path) -> str:
    """Return the command that shows a folder in TensorBoard."""
    return f"{installed('tensorboard')} --logdir {shlex.quote(short(folder))}"
