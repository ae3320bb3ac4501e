"""Play a run's checkpoint and print the mean and standard deviation of its raw returns.

Example: ``python scripts/evaluate.py run=outputs/a3c_pong_synced/2026-11-22_12-00-00 episodes=10``
"""

import statistics
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from asynclab.config import CONF


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def main(cfg: DictConfig) -> float:
    """Evaluate one run and return the mean return."""
    from hydra.errors import CompactHydraException

    from asynclab.evaluation import evaluate

    if OmegaConf.is_missing(cfg, "run"):
        raise CompactHydraException("run is missing: set run=<output folder>, such as run=outputs/a3c_pong_synced/...")
    try:
        returns = evaluate(Path(cfg.run), cfg.episodes, cfg.deterministic, cfg.session, cfg.seed, str(cfg.checkpoint))
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
    mean = statistics.fmean(returns)
    print(f"return {mean:.2f} +- {statistics.pstdev(returns):.2f} over {len(returns)} episodes of {cfg.run}")
    return mean


if __name__ == "__main__":
    main()
