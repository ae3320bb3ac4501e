"""Repeat a run that was recorded (``distributed.record=true``) to the bit, in this process, or up to an update of it.

Example: ``python scripts/replay.py run=outputs/a3c_cartpole_synced/2026-11-22_12-00-00 until=1000``
"""

import tempfile
from bdb import BdbQuit
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from asynclab import config
from asynclab.config.command import check_keys, configured, user_errors

config.register()


@configured("replay")
def main(cfg: DictConfig) -> None:
    """Replay one run, and say whether it has come to the same weights."""
    check_keys(cfg)
    from hydra.errors import CompactHydraException

    from asynclab import check

    if OmegaConf.is_missing(cfg, "run"):
        raise CompactHydraException("run is missing: set run=<output folder>")
    with user_errors(), suppress(BdbQuit):  # the debugger was left by q, or at the end of what is typed
        until = None if cfg.until is None else check.count("until", cfg.until)
        _replay(Path(str(cfg.run)), until)


def _replay(run: Path, until: int | None) -> None:
    from hashlib import sha256

    from asynclab import build
    from asynclab.config.settings import config_of
    from asynclab.simulation.replay import replay
    from asynclab.storage.names import RECORD

    settings, summary = _of(run)
    lines = (run / RECORD).read_text().splitlines(keepends=True)[1:]
    if until is not None and until > len(lines):
        raise ValueError(f"until={until}, but the run made {len(lines)} updates")
    with tempfile.TemporaryDirectory() as folder:
        trial = build.make_trial(config_of(settings), Path(folder))
        import torch

        torch.set_num_threads(trial.probe.num_threads)
        (store,) = trial.stores
        moment = replay(trial.session, store, lines, until)
        if moment is not None:
            print(f"before update {until}, of session {moment.line.rank}: see moment.actor.worker.loop, moment.store")
            breakpoint()
            return
    found, then = sha256(store.theta.numpy().tobytes()).hexdigest(), summary["theta"][0]
    if found != then or len(lines) != summary["updates"]:
        raise ValueError(
            f"the {len(lines)} updates of the record lead to other weights than the run's {summary['updates']}:"
            f" sha256 {found} instead of {then}"
        )
    print(f"{len(lines):,} updates of {trial.mode.max_session} sessions lead to the same weights: sha256 {found}")


def _of(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's settings by dotted key, and its summary.

    Raises:
        ValueError: It cannot be replayed.
    """
    from asynclab.analysis.runs import read_json, read_settings
    from asynclab.storage import folder
    from asynclab.storage.names import RECORD, RUN, SUMMARY
    from asynclab.storage.provenance import circumstances

    folder.require(run)
    if not (run / RECORD).is_file():
        raise ValueError(f"run={run} has no {RECORD}: only runs with distributed.record=true can be replayed")
    if not (run / SUMMARY).is_file():
        raise ValueError(f"run={run} has no {SUMMARY}: it still runs or was killed, so its record has no end")
    try:
        made, summary = read_json(run / RUN), read_json(run / SUMMARY)
    except ValueError as error:
        raise ValueError(f"run={run} cannot be replayed: {error}") from None
    wrong = {
        "was resumed, so its record is not whole": bool(made["resumes"]),
        f"had {summary['restarts']} restarts of sessions": summary["restarts"] > 0,
        f"dropped {summary['dropped_updates']} updates that were not finite": summary["dropped_updates"] > 0,
    }
    now = circumstances()["packages"]
    for name in ("asynclab", "torch"):
        wrong[f"was recorded with {name} {made['packages'][name]}, and this is {now[name]}"] = (
            made["packages"][name] != now[name]
        )
    for what, is_so in wrong.items():
        if is_so:
            raise ValueError(f"run={run} cannot be replayed: it {what}")
    return read_settings(run, made), summary


if __name__ == "__main__":
    main()
