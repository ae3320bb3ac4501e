"""Make a timing for ``distributed=simulated`` of a real run's profile, so that a simulation can be laid beside it.

Example: ``python scripts/timing.py run=outputs/a3c_cartpole_synced/2026-11-22_12-00-00``
"""

import shlex
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from asynclab.config.command import check_keys, configured, user_errors


@configured("timing")
def main(cfg: DictConfig) -> None:
    """Write the timing of one run, and say how it is used."""
    check_keys(cfg)
    from hydra.errors import CompactHydraException

    from asynclab import check
    from asynclab.analysis.timing import measured
    from asynclab.text import command

    if OmegaConf.is_missing(cfg, "run"):
        raise CompactHydraException("run is missing: set run=<output folder>")
    with user_errors():
        timing = measured(Path(str(cfg.run))) | {"spread": check.positive("spread", cfg.spread)}
    out = Path(str(cfg.out))
    path = out / "distributed" / "timing" / "measured.yaml"
    text = f"# Measured by scripts/timing.py in {cfg.run}; the spread is none of it.\n"
    text += OmegaConf.to_yaml({"_target_": "asynclab.distributed.timing.Lognormal", **timing})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        if path.is_file():
            raise CompactHydraException(f"{path} exists; set out to another folder") from None
        raise CompactHydraException(f"out={out} cannot be written: {error.strerror}") from None
    print(path.read_text() + f"wrote {path}; to simulate with it, say besides algo=, env= and the like:")
    print(f"{command('train')} --config-dir {shlex.quote(str(out))} distributed=simulated distributed/timing=measured")


if __name__ == "__main__":
    main()
