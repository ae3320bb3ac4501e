"""Make a short film for a page, a GIF, of episodes that scripts/evaluate.py has recorded.

Example: ``python scripts/film.py videos=[outputs/zoo/a3c_cartpole/videos/....mp4] out=film.gif``
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from asynclab.config.command import check_keys, configured, texts, user_errors


@configured("film")
def main(cfg: DictConfig) -> None:
    """Write one film."""
    check_keys(cfg)
    from hydra.errors import CompactHydraException

    from asynclab.evaluation import film

    videos = None if OmegaConf.is_missing(cfg, "videos") else texts(cfg, "videos")
    if not videos:
        raise CompactHydraException("videos is missing: set videos=[<file>,...]")
    out = Path(str(cfg.out))
    with user_errors("video"):
        height = film.make(
            [Path(video) for video in videos], out, cfg.seconds, cfg.start, cfg.fps, cfg.height, cfg.megabytes
        )
    print(f"wrote {out} ({height} pixels high, {out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
