"""The contract of the config groups.  Hyperparameters are not repeated here: the targets' signatures hold them."""

import sys
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class AlgoConfig:
    """Group ``algo``: targets that wait for what only a session knows."""

    agent: Any = MISSING  # (obs_space, action_space) -> Agent
    memory: Any = MISSING  # (obs_space, action_space, num_envs, seed) -> Memory
    optimizer: Any = MISSING  # (one parameter group per network) -> Optimizer
    lr_schedule: Any = MISSING  # (progress) -> factor on the learning rate
    max_grad_norm: float | None = None  # bound on each network's gradient norm
    precision: str = "auto"  # of the torsos' arithmetic: auto, fp32 or bf16


@dataclass
class EnvConfig:
    """Group ``env``."""

    id: str = MISSING  # gymnasium id
    num_envs: int = MISSING  # per session
    max_frame: int = MISSING  # over all sessions of a synced or shared trial; of each session in off
    make: Any = MISSING  # () -> Envs
    torso: Any = MISSING  # (obs_space, action_dim) -> module


@dataclass
class DistributedConfig:
    """Group ``distributed``: a Mode."""

    _target_: str = MISSING
    max_session: int | None = None  # processes; None: one per available core
    num_threads: int = 1  # torch threads of each session


@dataclass
class Config:
    """A whole run."""

    algo: AlgoConfig = field(default_factory=AlgoConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    seed: int = 0
    device: str = "auto"  # of the sessions' networks: auto, cpu, cuda, cuda:N
    log_every: float = 10.0  # seconds between two progress lines
    checkpoint_every: float = 300.0  # seconds between two checkpoints
    profile: bool = False  # measure where the sessions' time goes


@dataclass
class BenchmarkConfig(Config):
    """A run to be measured, and how."""

    sessions: list[int] = field(default_factory=lambda: [1, 2])  # numbers of sessions to compare
    repeats: int = 5  # of everything, in turn
    seconds: float = 20.0  # of each end-to-end measurement
    sb3: bool = False  # stable-baselines3 beside it
    out: str = MISSING  # every measurement, and its circumstances


def refuse_unknown_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Raise ValueError for keys that nothing reads, which ``+`` on the command line can add to the groups."""
    schema: Any = OmegaConf.get_type(cfg)
    known = [f.name for f in fields(schema)]
    for key in map(str, cfg):
        if key not in known:
            raise ValueError(f"{prefix}{key} is not a setting; use one of {', '.join(prefix + name for name in known)}")
        if is_dataclass(OmegaConf.get_type(cfg, key)):
            refuse_unknown_keys(cfg[key], f"{prefix}{key}.")


class CheckOutput(Callback):
    """Refuses an output folder that cannot be written or is in use, before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check ``hydra.run.dir``."""
        HydraConfig.instance().set_config(config)  # the folder's name is made of the choices
        folder = config.hydra.run.dir
        check_writable(folder, "hydra.run.dir")
        if (Path(folder) / "metrics.jsonl").exists():
            sys.exit(
                f"The output folder hydra.run.dir={folder} holds a run already. Set hydra.run.dir to another folder."
            )

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check ``hydra.sweep.dir``."""
        HydraConfig.instance().set_config(config)
        check_writable(config.hydra.sweep.dir, "hydra.sweep.dir")


def check_writable(folder: str, key: str) -> None:
    """Make the folder, or exit with status 1 and say why that is impossible."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe = Path(folder) / ".asynclab_write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        sys.exit(f"The output folder {key}={folder} cannot be written: {error.strerror}. Set {key} to another folder.")


def register() -> None:
    """Make the schema known to Hydra; the groups' YAML files are validated against it."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=Config)
    store.store(name="base_benchmark", node=BenchmarkConfig)
