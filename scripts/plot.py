"""Draw the learning curves of runs: sessions, trials, and groups of runs with a band over seeds.

Example: ``python scripts/plot.py runs=[outputs/sweeps/2026-11-22_12-00-00] group=algo.optimizer.lr out=curve``
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from asynclab.config import CONF


@hydra.main(version_base="1.3", config_path=CONF, config_name="plot")
def main(cfg: DictConfig) -> None:
    """Write the figures, and say what is not in them."""
    from hydra.errors import CompactHydraException

    from asynclab import plots

    def texts(value: object) -> list[str]:
        return [str(v) for v in (value if OmegaConf.is_list(value) else [value])]  # type: ignore[attr-defined]

    if OmegaConf.is_missing(cfg, "runs"):
        raise CompactHydraException("runs is missing: set runs=[<output folder>,...]")
    group, labels = (None if cfg[key] is None else texts(cfg[key]) for key in ("group", "labels"))
    try:
        folders = [Path(run) for run in texts(cfg.runs)]
        files, notes = plots.plot(folders, Path(str(cfg.out)), cfg.kind, str(cfg.x), group, labels)
    except ImportError as error:
        package = str(error.name).split(".")[0]
        raise CompactHydraException(f"{package} is not installed: pip install 'asynclab[plot]'") from None
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
    for note in notes:
        print(note, file=sys.stderr)
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
