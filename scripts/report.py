"""Make one HTML page on runs: what ran, the ranking, curves, speed, what failed, and the commands to run it again.

Example: ``python scripts/report.py runs=[outputs/sweeps/2026-11-22_12-00-00] out=report.html``
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from asynclab.config.command import check_keys, configured, folders, texts, user_errors


@configured("report")
def main(cfg: DictConfig) -> None:
    """Write the page, and say what is not as it should be."""
    check_keys(cfg)
    from asynclab.analysis import report

    with user_errors():
        notes = report.write(folders(cfg), Path(str(cfg.out)), texts(cfg, "group"), str(cfg.metric))
    for note in notes:
        print(note, file=sys.stderr)
    print(f"wrote {cfg.out}")


if __name__ == "__main__":
    main()
