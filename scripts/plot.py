"""Draw the learning curves of runs.

Example: ``python scripts/plot.py runs=[outputs/a3c_pong_synced/2026-11-22_12-00-00] out=curve.png``
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="../conf", config_name="plot")
def main(cfg: DictConfig) -> None:
    """Draw one figure."""
    from hydra.errors import CompactHydraException

    from asynclab.curves import plot

    if OmegaConf.is_missing(cfg, "runs"):
        raise CompactHydraException("runs is missing: set runs=[<output folder>,...]")
    runs = [Path(run) for run in ([cfg.runs] if isinstance(cfg.runs, str) else cfg.runs)]
    try:
        plot(runs, cfg.labels or [run.name for run in runs], cfg.x, Path(cfg.out))
    except ImportError:
        raise CompactHydraException("matplotlib is not installed: pip install 'asynclab[plot]'") from None
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
    print(f"wrote {cfg.out}")


if __name__ == "__main__":
    main()
