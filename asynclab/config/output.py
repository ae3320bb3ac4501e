"""The output folder, before Hydra writes into it: it is refused if it cannot be written or is in use."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from asynclab.config.registry import AUTO
from asynclab.storage import folder
from asynclab.storage.names import RUN
from asynclab.text import override


class CheckOutput(Callback):
    """Refuses an output folder that cannot be written or is in use, before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check ``hydra.run.dir``."""
        HydraConfig.instance().set_config(config)  # the folder's name is made of the choices
        if not str(config.hydra.run.dir).strip():
            sys.exit("hydra.run.dir is empty, and a run would be in the current folder. Set it, or leave it out.")
        run, resume = Path(config.hydra.run.dir), OmegaConf.select(config, "resume")
        if resume not in (None, AUTO):
            if run.resolve() != Path(resume).resolve():
                sys.exit(f"resume={resume} and hydra.run.dir={run} differ. Leave hydra.run.dir out.")
            if not (run / RUN).is_file():
                sys.exit(f"resume={resume} is not the output folder of a run: it has no run.json.")
        if folder.is_agent(run):
            sys.exit(f"{run} is a zoo's agent, which has no checkpoint to go on with. Resume the run that it is from.")
        check_writable(str(run), "hydra.run.dir")
        lock(run)
        if resume is None and folder.holds_run(run):
            sys.exit(
                f"The output folder hydra.run.dir={run} holds a run already. Set hydra.run.dir to another folder, or"
                f" {override('resume', run)} to go on with it."
            )


def lock(path: Path) -> None:
    """Lock the folder, or exit with status 1 and say why that is impossible."""
    try:
        folder.lock(path)
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"The output folder {path} cannot be locked: {error.strerror}")


def check_writable(path: str, key: str) -> None:
    """Make the folder, or exit with status 1 and say why that is impossible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path) / ".asynclab_write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        sys.exit(f"The output folder {key}={path} cannot be written: {error.strerror}. Set {key} to another folder.")
