"""Measure a configuration's throughput beside its parts' and, if asked for, stable-baselines3's.

Example: ``python benchmarks/throughput.py algo=sac env=humanoid distributed=shared sessions=[1,2]``
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from asynclab import config
from asynclab.config.command import configured

config.register()

ROOT = Path(__file__).resolve().parent.parent
OWN = ("sessions", "variants", "repeats", "seconds", "sb3", "out")  # settings that train.py does not have
MODES = re.compile(r"(distributed|distributed\.[a-z_.]+)=\S+")  # what a variant may set


def main() -> None:
    """Measure, until Ctrl-C."""
    try:
        benchmark()
    except KeyboardInterrupt:
        sys.exit(130)


@configured("throughput")
def benchmark(cfg: DictConfig) -> None:
    """Measure, print a table and write every measurement to a file."""
    import measure
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException

    from asynclab import build, machine
    from asynclab.storage import provenance

    cores, out, seconds = machine.cores(), Path(cfg.out), cfg.seconds
    try:
        repeats, plans, processes = _check(cfg, out, cores)
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
    config.check_writable(str(out.parent), "out")
    circumstances = provenance.circumstances()
    overrides = [o for o in HydraConfig.get().overrides.task if o.lstrip("+~").partition("=")[0] not in OWN]
    frameskip = OmegaConf.select(cfg, "env.make.frameskip", default=4)
    peers = sorted({1, cores}) if cfg.sb3 else []
    parts, runs = [], {name: [] for name in plans}  # type: ignore[var-annotated]
    sb3 = {str(n): [] for n in peers}  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory(prefix="asynclab_bench_") as folder:
        # most of `sessions` first: what cannot start is refused before anything is measured
        OmegaConf.update(cfg, "env.max_frame", measure.MAX_FRAME)
        for n in dict.fromkeys((max([processes, *cfg.sessions]), processes)):
            OmegaConf.update(cfg, "distributed.max_session", n)
            trial = build.make_trial(cfg, Path(folder))
        print(about := _about(circumstances["machine"], trial.probe.precision), flush=True)
        try:
            for repeat in range(repeats):
                print(f"{repeat + 1} of {repeats}: parts", end="", flush=True)
                parts.append(measure.measure_parts(trial, processes, min(seconds / 6, 5.0), frameskip))
                for name, (n, settings) in plans.items():
                    print(f", {name}{' session' * (not settings)}{'s' * (not settings and n > 1)}", end="", flush=True)
                    asked = _replaced(overrides, settings)
                    runs[name].append(measure.measure_run(ROOT / "train.py", asked, n, seconds))
                for n in peers:
                    print(f", stable-baselines3 with {n} thread{'s' * (n > 1)}", end="", flush=True)
                    sb3[str(n)].append(_sb3(cfg, trial.session.devices[0], n, seconds))
                print(flush=True)
        except RuntimeError as error:
            raise CompactHydraException(f"\n{error}") from error
    result = measure.summarise(processes, parts, runs, sb3)
    print(f"{about}\n\n{measure.table(result)}")
    samples = {
        "parts": [[p._asdict() for p in ps] for ps in parts],
        "runs": {name: [vars(r) for r in rs] for name, rs in runs.items()},
        "sb3": sb3,
    }
    _write(out, about, cfg, circumstances, result=result, samples=samples)


def _replaced(overrides: list[str], settings: list[str]) -> list[str]:
    """Return the overrides, of which those are replaced that ``settings`` has."""
    keys = [setting.partition("=")[0] for setting in settings]
    return [*(o for o in overrides if o.lstrip("+~").partition("=")[0] not in keys), *settings]


def _write(out: Path, about: str, cfg: DictConfig, circumstances: dict[str, Any], **content: Any) -> None:
    """Write every measurement, and its circumstances."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    out.write_text(json.dumps({"about": about, **content, "config": settings} | circumstances, indent=2) + "\n")
    print(f"wrote {out}")


def _about(machine: dict[str, Any], precision: str) -> str:
    """Return what figures of different machines must not be compared without."""
    return (
        f"{precision} on {machine['cores']} cores of {machine['processor']}, {machine['instructions']};"
        f" {machine['memory_gib']} GiB"
    )


def _check(cfg: DictConfig, out: Path, cores: int) -> tuple[int, dict[str, tuple[int, list[str]]], int]:
    """Return repeats, the runs to compare by name (sessions and settings), and how many sessions fill the cores.

    Raises:
        ValueError: A setting makes no sense.
    """
    from asynclab import check

    check.positive("seconds", cfg.seconds)
    repeats, sessions = check.count("repeats", cfg.repeats), [check.count("sessions", n) for n in cfg.sessions]
    if len(set(sessions)) < len(sessions):
        raise ValueError(f"sessions={sessions} names a number twice; give each once")
    asked = cfg.distributed.num_threads  # of those that fill the machine: unless it is said, one
    threads = 1 if asked is None else check.count("distributed.num_threads", asked)
    processes = max(1, cores // threads)
    plans: dict[str, tuple[int, list[str]]] = {str(n): (n, []) for n in sessions}
    for text in cfg.variants:
        words = str(text).split()
        if not words or not all(MODES.fullmatch(word) for word in words):
            raise ValueError(
                f"variants has {text!r}, which must be settings of distributed, such as"
                " 'distributed=off distributed.num_threads=1'"
            )
        settings = dict(word.split("=", 1) for word in words)
        number = settings.get("distributed.max_session", "1")
        if not number.isdecimal() and number != "null":
            raise ValueError(f"variants has {text!r}, where distributed.max_session={number} must be a number, or null")
        n = processes if number == "null" else int(number)
        plans[" ".join(words)] = (check.count("distributed.max_session", n), words)
    if not plans:
        raise ValueError("sessions=[] leaves nothing to measure; give numbers of sessions, or variants")
    if out.exists():
        raise ValueError(f"out={out} exists; set out to another file")
    if cfg.sb3 and find_spec("stable_baselines3") is None:
        raise ValueError("sb3=true needs stable-baselines3: pip install 'asynclab[bench]'")
    return repeats, plans, processes


def _sb3(cfg: DictConfig, device: str, threads: int, seconds: float) -> dict[str, float]:
    """Return frames and updates per second of stable-baselines3 with the same settings."""
    from measure import end_with_parent

    settings: dict[str, Any] = {
        "env": OmegaConf.to_container(cfg.env.make, resolve=True),
        "torso": OmegaConf.to_container(cfg.env.torso, resolve=True),
        "agent": OmegaConf.to_container(cfg.algo.agent, resolve=True),
        "memory": OmegaConf.to_container(cfg.algo.memory, resolve=True),
        "device": device,
        "threads": threads,
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
