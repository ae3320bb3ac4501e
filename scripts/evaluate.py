"""Play a run's checkpoint: raw returns as a sentence and as JSON, and videos if asked for.

Example: ``python scripts/evaluate.py run=outputs/a3c_pong_synced/2026-11-22_12-00-00 episodes=10 video=true``
"""

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from asynclab.config.command import check_keys, configured
from asynclab.storage.names import EVALUATIONS, VIDEOS


@configured("evaluate")
def main(cfg: DictConfig) -> float:
    """Evaluate one run and return the mean return."""
    check_keys(cfg)
    from hydra.errors import CompactHydraException

    from asynclab import check
    from asynclab.evaluation.play import evaluate
    from asynclab.storage.folder import is_agent, results

    if OmegaConf.is_missing(cfg, "run"):
        raise CompactHydraException("run is missing: set run=<output folder>, such as run=outputs/a3c_pong_synced/...")
    run = Path(str(cfg.run))
    out = results(run) if cfg.out is None else Path(str(cfg.out))
    if is_agent(out):
        raise CompactHydraException(f"out={out} is a zoo's agent, which stays as it is; set out to another folder")
    try:
        video, as_json = (check.flag(key, cfg[key]) for key in ("video", "json"))
        deterministic = None if cfg.deterministic is None else check.flag("deterministic", cfg.deterministic)
        if not (cfg.make is None or OmegaConf.is_dict(cfg.make)):
            raise ValueError(f"make={cfg.make} must be settings of the environment, such as +make.g=3.0")
        changes: Any = OmegaConf.to_container(cfg.make or OmegaConf.create(), resolve=True)
        changes |= {} if cfg.id is None else {"id": str(cfg.id)}
        played = evaluate(
            run, cfg.episodes, deterministic, check.whole("session", cfg.session), cfg.seed,
            str(cfg.checkpoint), out / EVALUATIONS, out / VIDEOS if video else None, cfg.max_episode_steps, changes,
        )  # fmt: skip
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is written but the videos of the episodes that had ended")
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
    except OSError as error:
        raise CompactHydraException(f"run={cfg.run} could not be played to the end: {error}") from error
    numbers = played.statistics()
    if as_json:
        print(json.dumps(played.as_json(), indent=2))
        return numbers["mean_return"]
    print(played.sentence())
    for path in (*played.videos, played.file):
        print(f"wrote {path}")
    return numbers["mean_return"]


if __name__ == "__main__":
    main()
