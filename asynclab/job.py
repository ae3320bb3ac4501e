"""One run: settings -> trial -> trained.  ``asynclab.build`` shows how everything is wired."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from asynclab import config

config.register()


def run(
    cfg: DictConfig,
    listen: Callable[[dict[str, Any]], object] | None = None,
    command: Sequence[str] | None = None,
) -> float:
    """Run one trial in the output folder that Hydra has chosen.

    Args:
        cfg: As Hydra has composed it.
        listen: Told every line of ``metrics.jsonl`` as it is written.
        command: That does the same, if this process was not started by it.

    Returns:
        The final mean return.

    Raises:
        CompactHydraException: It cannot run, or failed; Hydra prints the message without a traceback.
        SystemExit: A signal ended it (``Trial.run``).
    """
    from asynclab.processes.server import start_server

    is_async = OmegaConf.select(cfg, "env.make.vectorization_mode") == "async"  # gymnasium would start one unprotected
    is_simulated = "placement" in cfg.distributed  # in this process, whatever the number of sessions
    if (cfg.distributed.get("max_session") != 1 and not is_simulated) or is_async:
        with suppress(OSError):  # it is started again where it is needed, and a reason why it cannot is said before
            start_server()  # so early that it imports torch while we do

    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException

    from asynclab import build, text
    from asynclab.analysis import plots, report
    from asynclab.processes.launch import SessionError
    from asynclab.run import resume, screens, viewer
    from asynclab.run.trial import TrialError
    from asynclab.storage import folder, provenance

    text.set_here(Path(HydraConfig.get().runtime.cwd))
    out = text.located(Path(HydraConfig.get().runtime.output_dir if cfg.resume in (None, config.AUTO) else cfg.resume))
    try:
        folder.lock(out)
        plan = resume.plan(cfg, out)
        trial = build.make_trial(plan.cfg, out, plan.checkpoint)
        if trial.is_complete() and folder.status(out) == "finished":
            return trial.report()
        provenance.write(out, plan.cfg, plan.overrides, trial.decided(), plan.resumed, command)
        # a run that goes on was made by other choices than those of this command
        choices = HydraConfig.get().runtime.choices if plan.cfg is cfg else {}
        screens.first(trial, plan.cfg, choices)
        try:
            with viewer.viewing(out) if plan.cfg.tensorboard else nullcontext():
                return trial.run(listen, is_guest=command is not None)
        finally:
            if plan.cfg.plot:
                plots.write_at_end(out)
                report.write_at_end(out)
            screens.last(out, plan.cfg.env.max_frame)
    except (ValueError, OSError, SessionError, TrialError) as error:
        raise CompactHydraException(str(error)) from error
    finally:
        folder.unlock(out)
        if machines := sys.modules.get("asynclab.cluster.machines"):
            machines.leave()  # the checks before a run have joined a cluster, whether it has begun or not
