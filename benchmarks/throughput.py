"""Measure a configuration's throughput beside its parts' and, if asked for, stable-baselines3's.

Example: ``python benchmarks/throughput.py algo=sac env=humanoid distributed=shared sessions=[1,2,16]``
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from asynclab import config

config.register()

ROOT = Path(__file__).resolve().parent.parent
OWN = ("sessions", "repeats", "seconds", "sb3", "out")  # settings that train.py does not have


def main() -> None:
    """Measure, until Ctrl-C."""
    try:
        benchmark()
    except KeyboardInterrupt:
        sys.exit(130)


@hydra.main(version_base="1.3", config_path=config.CONF, config_name="throughput")
def benchmark(cfg: DictConfig) -> None:
    """Measure, print a table and write every measurement to a file."""
    import measure
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException

    from asynclab import build, machine
    from asynclab.storage import provenance

    cores, out, seconds = machine.cores(), Path(cfg.out), cfg.seconds
    try:
        repeats, sessions, threads = _check(cfg, out)
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
    config.check_writable(str(out.parent), "out")
    processes = max(1, cores // threads)
    OmegaConf.update(cfg, "distributed.max_session", processes)
    circumstances = provenance.circumstances()
    overrides = [o for o in HydraConfig.get().overrides.task if o.lstrip("+~").partition("=")[0] not in OWN]
    parts, runs, sb3 = [], {n: [] for n in sessions}, []  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory(prefix="asynclab_bench_") as folder:
        trial = build.make_trial(cfg, Path(folder))
        try:
            for repeat in range(repeats):
                print(f"{repeat + 1} of {repeats}: parts", end="", flush=True)
                parts.append(measure.measure_parts(trial, processes, min(seconds / 6, 5.0)))
                for n in sessions:
                    print(f", {n} session{'s' * (n > 1)}", end="", flush=True)
                    runs[n].append(measure.measure_run(ROOT / "train.py", overrides, n, seconds))
                if cfg.sb3:
                    print(", stable-baselines3", end="", flush=True)
                    sb3.append(_sb3(cfg, trial.session.devices[0], cores, seconds))
                print(flush=True)
        except RuntimeError as error:
            raise CompactHydraException(f"\n{error}") from error
    result = measure.summarise(processes, parts, runs, sb3)
    print(measure.table(result))
    samples = {
        "parts": [[p._asdict() for p in ps] for ps in parts],
        "runs": {n: [vars(r) for r in rs] for n, rs in runs.items()},
    }
    content = {"result": result, "samples": samples | {"sb3": sb3}, "config": OmegaConf.to_container(cfg, resolve=True)}
    out.write_text(json.dumps(content | circumstances, indent=2) + "\n")
    print(f"wrote {out}")


def _check(cfg: DictConfig, out: Path) -> tuple[int, list[int], int]:
    """Return repeats, numbers of sessions and threads of each.

    Raises:
        ValueError: A setting makes no sense.
    """
    from asynclab import check

    check.positive("seconds", cfg.seconds)
    repeats, sessions = check.count("repeats", cfg.repeats), [check.count("sessions", n) for n in cfg.sessions]
    if len(set(sessions)) < len(sessions):
        raise ValueError(f"sessions={sessions} names a number twice; give each once")
    if out.exists():
        raise ValueError(f"out={out} exists; set out to another file")
    if cfg.sb3 and find_spec("stable_baselines3") is None:
        raise ValueError("sb3=true needs stable-baselines3: pip install 'asynclab[bench]'")
    threads = cfg.distributed.num_threads  # of those that fill the machine: unless it is said, one
    return repeats, sessions, 1 if threads is None else check.count("distributed.num_threads", threads)


def _sb3(cfg: DictConfig, device: str, cores: int, seconds: float) -> dict[str, float]:
    """Return frames and updates per second of stable-baselines3 with the same settings and all cores as threads."""
    from measure import end_with_parent

    settings: dict[str, Any] = {
        "env": OmegaConf.to_container(cfg.env.make, resolve=True),
        "torso": OmegaConf.to_container(cfg.env.torso, resolve=True),
        "memory": OmegaConf.to_container(cfg.algo.memory, resolve=True),
        "device": device,
        "threads": cores,
        "seconds": seconds,
        "seed": cfg.seed,
    }
    command = [sys.executable, str(ROOT / "benchmarks" / "sb3_baseline.py"), json.dumps(settings)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=end_with_parent)
    if process.returncode:
        raise RuntimeError(f"stable-baselines3 failed\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
