"""Train: compose -> make the trial -> run it.  ``asynclab.build`` shows how everything is wired."""

import signal

if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends us without a traceback until there is something to save

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from asynclab import config, sweeps

config.register()


@hydra.main(version_base="1.3", config_path=config.CONF, config_name="config")
def train(cfg: DictConfig) -> float:
    """Run one trial and return its final mean return, for sweepers to maximise."""
    from asynclab.processes.server import start_server

    is_async = OmegaConf.select(cfg, "env.make.vectorization_mode") == "async"  # gymnasium would start one unprotected
    is_simulated = "placement" in cfg.distributed  # in this process, whatever the number of sessions
    if (cfg.distributed.get("max_session") != 1 and not is_simulated) or is_async:
        start_server()  # so early that it imports torch while we do

    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException

    from asynclab import build, text
    from asynclab.analysis import plots, report
    from asynclab.processes.launch import SessionError
    from asynclab.run import resume, screens
    from asynclab.run.trial import TrialError
    from asynclab.storage import folder, provenance

    text.set_here(Path(HydraConfig.get().runtime.cwd))
    run = text.located(Path(HydraConfig.get().runtime.output_dir if cfg.resume in (None, config.AUTO) else cfg.resume))
    try:
        folder.lock(run)
        plan = resume.plan(cfg, run)
        trial = build.make_trial(plan.cfg, run, plan.checkpoint)
        if trial.is_complete():
            return trial.report()
        provenance.write(run, plan.cfg, plan.overrides, trial.decided(), plan.resumed)
        # a run that goes on was made by other choices than those of this command
        choices = HydraConfig.get().runtime.choices if plan.cfg is cfg else {}
        screens.first(trial, plan.cfg, choices)
        try:
            return trial.run()
        finally:
            if plan.cfg.plot:
                plots.write_at_end(run)
                report.write_at_end(run)
            screens.last(run, plan.cfg.env.max_frame)
    except (ValueError, OSError, SessionError, TrialError) as error:
        raise CompactHydraException(str(error)) from error
    finally:
        folder.unlock(run)


def main() -> None:
    """Train; a sweep that is cut short says why, and how its jobs ended."""
    with sweeps.in_words():
        train()


if __name__ == "__main__":
    main()
