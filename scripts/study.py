"""Turn a sweep into a table and a figure: interquartile means over seeds, with bootstrap intervals.

Example: ``python scripts/study.py sweep=outputs/study_cartpole threshold=475 out=docs/images/study``
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from asynclab.config.command import check_keys, configured, user_errors


@configured("study")
def main(cfg: DictConfig) -> None:
    """Write the files and print the table."""
    check_keys(cfg)
    from hydra.errors import CompactHydraException

    if OmegaConf.is_missing(cfg, "sweep"):
        raise CompactHydraException("sweep is missing: set sweep=<folder of a sweep>")
    with user_errors():
        from asynclab.analysis import study

        result = study.analyse(Path(str(cfg.sweep)), cfg.threshold, cfg.seconds, cfg.x, str(cfg.equal))
        print(study.table(result))
        files, notes = study.write(result, Path(str(cfg.out)))
    for note in notes:
        print(note, file=sys.stderr)
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
