"""The contract of the config groups.  Hyperparameters are not repeated here: the targets' signatures hold them."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

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
    wrappers: list[Any] = field(default_factory=list)  # (env) -> env, the first innermost
    torso: Any = MISSING  # (obs_space, action_dim) -> module


@dataclass
class EvalConfig:
    """Evaluation while the run trains."""

    every: int | None = None  # frames of all sessions from one to the next; null: none
    episodes: int = 10
    deterministic: bool | None = None  # take the best actions instead of sampling; null: the agent's own way
    max_episode_steps: int = 100_000  # after which an episode is cut
    id: str | None = None  # of another environment to evaluate in; null: env.id
    make: dict[str, Any] = field(default_factory=dict)  # settings in place of env.make's
    nice: int = 10  # by how much its process yields to others
    wait: float = 300.0  # seconds, at the end, for the evaluation of the final weights


@dataclass
class Config:
    """A whole run."""

    algo: AlgoConfig = field(default_factory=AlgoConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    distributed: Any = MISSING  # a Mode; open, because a mode may have settings of its own
    seed: int = 0
    device: str = "auto"  # of the sessions' networks: auto, cpu, cuda, cuda:N
    log_every: float = 10.0  # seconds between two progress lines
    checkpoint_every: float = 300.0  # seconds between two checkpoints
    checkpoint_keep: int = 3  # how many of the latest checkpoints are kept, besides the best
    checkpoint_memory: float | None = None  # GB; checkpoints have the sessions' memories if these are smaller together
    max_dropped: int = 100  # updates in a row whose gradient is not finite before the run ends
    eval: EvalConfig = field(default_factory=EvalConfig)
    init_from: str | None = None  # folder whose weights the run begins with
    init_networks: list[str] | None = None  # which of its networks; null: all
    stop_at: float | None = None  # mean return of the last 100 episodes that ends the run as finished
    patience: int | None = None  # frames without a better mean return that end it
    resume: str | None = None  # output folder of a run to go on with, or auto
    track: str | None = None  # wandb or mlflow beside TensorBoard
    tensorboard: bool = False  # start TensorBoard with the run
    plot: bool = True  # draw the curves and write the report at the end
    profile: bool = False  # measure where the sessions' time goes


@dataclass
class BenchmarkConfig(Config):
    """A run to be measured, and how."""

    sessions: list[int] = field(default_factory=lambda: [1, 2])  # numbers of sessions to compare
    variants: list[str] = field(default_factory=list)  # more to compare, each some settings of distributed
    repeats: int = 5  # of everything, in turn
    seconds: float = 20.0  # of each end-to-end measurement
    sb3: bool = False  # stable-baselines3 beside it
    out: str = MISSING  # every measurement, and its circumstances


@dataclass
class Sb3Config(Config):
    """A run of stable-baselines3's PPO with the same numbers."""

    out: str = MISSING  # its curve, and its circumstances


@dataclass
class DoctorConfig(Config):
    """A configuration to be checked, and how."""

    inject: str | None = None  # name of a fault to plant, or help
    frames: int = 2_000  # that the audit of transitions steps
    checks: list[str] | None = None  # names; null: all


def refuse_unknown_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Raise ValueError for keys that nothing reads, which ``+`` on the command line can add to the groups."""
    schema: Any = OmegaConf.get_type(cfg)
    known = [f.name for f in fields(schema)]
    for key in map(str, cfg):
        if key not in known:
            raise ValueError(f"{prefix}{key} is not a setting; use one of {', '.join(prefix + name for name in known)}")
        if is_dataclass(OmegaConf.get_type(cfg, key)):
            refuse_unknown_keys(cfg[key], f"{prefix}{key}.")
