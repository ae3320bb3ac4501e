"""Make one HTML page on runs: what ran, the ranking, curves, speed, what failed, and the commands to run it again.

Example: ``python scripts/report.py runs=[outputs/sweeps/2026-11-22_12-00-00] out=report.html``
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from asynclab.config import CONF


@hydra.main(version_base="1.3", config_path=CONF, config_name="report")
def main(cfg: DictConfig) -> None:
    """Write the page, and say what is not as it should be."""
    from hydra.errors import CompactHydraException

    from asynclab import report

    def texts(value: object) -> list[str]:
        return [str(v) for v in (value if OmegaConf.is_list(value) else [value])]  # type: ignore[attr-defined]

    if OmegaConf.is_missing(cfg, "runs"):
        raise CompactHydraException("runs is missing: set runs=[<output folder>,...]")
    try:
        folders = [Path(run) for run in texts(cfg.runs)]
        group = None if cfg.group is None else texts(cfg.group)
        notes = report.write(folders, Path(str(cfg.out)), group, str(cfg.metric))
    except ImportError as error:
        package = str(error.name).split(".")[0]
        raise CompactHydraException(f"{package} is not installed: pip install 'asynclab[plot]'") from None
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
    for note in notes:
        print(note, file=sys.stderr)
    print(f"wrote {cfg.out}")


if __name__ == "__main__":
    main()
