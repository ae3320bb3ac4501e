"""Draw the learning curves of runs: sessions, trials, and groups of runs with a band over seeds.

Example: ``python scripts/plot.py runs=[outputs/sweeps/2026-11-22_12-00-00] group=algo.optimizer.lr out=curve``
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from asynclab.config.command import check_keys, configured, folders, texts, user_errors


@configured("plot")
def main(cfg: DictConfig) -> None:
    """Write the figures, and say what is not in them."""
    check_keys(cfg)
    from asynclab.analysis import plots

    with user_errors():
        files, notes = plots.plot(
            folders(cfg), Path(str(cfg.out)), cfg.kind, str(cfg.x), texts(cfg, "group"), texts(cfg, "labels")
        )
    for note in notes:
        print(note, file=sys.stderr)
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
