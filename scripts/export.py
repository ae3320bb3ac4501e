"""Keep an agent: as a folder such as those in zoo/ (weights, curve, worth, origin), or as a file for other programs.

Example: ``python scripts/export.py run=outputs/a3c_pong_synced/2026-11-22_12-00-00 out=zoo/a3c_pong``
or ``format=onnx out=a3c_pong.onnx``
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from asynclab.config.command import check_keys, configured, user_errors


@configured("export")
def main(cfg: DictConfig) -> None:
    """Export one run, and say what the agent is worth."""
    check_keys(cfg)
    from hydra.errors import CompactHydraException

    from asynclab import check
    from asynclab.evaluation import graph
    from asynclab.evaluation.export import export

    for key, example in (("run", "<output folder>"), ("out", "zoo/<name>")):
        if OmegaConf.is_missing(cfg, key):
            raise CompactHydraException(f"{key} is missing: set {key}={example}")
    out = Path(str(cfg.out))
    if cfg.format != "folder":
        with user_errors("onnx"):
            told = graph.export(
                Path(str(cfg.run)), out, str(cfg.format), str(cfg.checkpoint), check.whole("session", cfg.session)
            )
        print(f"wrote {out} ({out.stat().st_size / 1e6:.2f} MB): {told}")
        return
    try:
        with user_errors():
            played = export(
                Path(str(cfg.run)), out, str(cfg.checkpoint), check.whole("session", cfg.session), cfg.episodes,
                cfg.least, None if cfg.deterministic is None else check.flag("deterministic", cfg.deterministic),
            )  # fmt: skip
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is written")
    size = sum(path.stat().st_size for path in out.iterdir())
    print(played.sentence())
    print(f"wrote {out} ({size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
