"""The contract of the config groups.  Hyperparameters are not repeated here: the targets' signatures hold them."""

import sys
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig, OmegaConf

from asynclab import folder
from asynclab.text import override

AUTO = "auto"  # resume if there is something to resume
_HERE = Path(__file__).parent
CONF = str(_HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf")  # the former in an installed wheel
DATABASE = "study.db"  # of Optuna, in the sweep's folder
PLUGINS = {  # of Hydra, that may be missing: choices and the extra of asynclab that installs them
    "hydra_plugins.hydra_optuna_sweeper": (["hydra/sweeper/optuna"], "sweep"),
    "hydra_plugins.hydra_joblib_launcher": (["hydra/launcher/joblib"], "joblib"),
    "hydra_plugins.hydra_submitit_launcher": (
        ["hydra/launcher/submitit_local", "hydra/launcher/submitit_slurm"],
        "slurm",
    ),
}


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
class EvalConfig:
    """Evaluation while the run trains."""

    every: int | None = None  # frames of all sessions from one to the next; null: none
    episodes: int = 10
    deterministic: bool | None = None  # take the best actions instead of sampling; null: the agent's own way
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
    resume: str | None = None  # output folder of a run to go on with, or auto
    plot: bool = True  # draw the curves and write the report at the end
    profile: bool = False  # measure where the sessions' time goes


@dataclass
class BenchmarkConfig(Config):
    """A run to be measured, and how."""

    sessions: list[int] = field(default_factory=lambda: [1, 2])  # numbers of sessions to compare
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


class CheckOutput(Callback):
    """Refuses an output folder that cannot be written or is in use, before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check ``hydra.run.dir``."""
        HydraConfig.instance().set_config(config)  # the folder's name is made of the choices
        run, resume = Path(config.hydra.run.dir), OmegaConf.select(config, "resume")
        if resume not in (None, AUTO):
            if not (run / "run.json").is_file():
                sys.exit(f"resume={resume} is not the output folder of a run: it has no run.json.")
            if run.resolve() != Path(resume).resolve():
                sys.exit(f"resume={resume} and hydra.run.dir={run} differ. Leave hydra.run.dir out.")
        if folder.is_agent(run):
            sys.exit(f"{run} is a zoo's agent, which has no checkpoint to go on with. Resume the run that it is from.")
        check_writable(str(run), "hydra.run.dir")
        lock(run)
        if resume is None and folder.holds_run(run):
            sys.exit(
                f"The output folder hydra.run.dir={run} holds a run already. Set hydra.run.dir to another folder, or"
                f" {override('resume', run)} to go on with it."
            )


def lock(path: Path) -> None:
    """Lock the folder, or exit with status 1 and say why that is impossible."""
    try:
        folder.lock(path)
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"The output folder {path} cannot be locked: {error.strerror}")


def subfolder(config: DictConfig) -> str:
    """Return ``hydra.sweep.subdir`` as it was written: it is another one for each job."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep)
    return str(sweep["subdir"])


def check_writable(path: str, key: str) -> None:
    """Make the folder, or exit with status 1 and say why that is impossible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path) / ".asynclab_write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        sys.exit(f"The output folder {key}={path} cannot be written: {error.strerror}. Set {key} to another folder.")


def register() -> None:
    """Make the schema known to Hydra; the groups' YAML files are validated against it."""
    # A resumed run goes on in its folder, where Hydra must not overwrite what it wrote there first.
    OmegaConf.register_new_resolver(
        "output_folder", lambda resume, new: new if resume in (None, AUTO) else resume, replace=True
    )
    OmegaConf.register_new_resolver(
        "hydra_folder",
        lambda resume: ".hydra" if resume is None else f".hydra/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}",
        use_cache=True,
        replace=True,
    )
    OmegaConf.register_new_resolver(
        "share_of_budget", lambda share, *, _root_: max(1, round(share * _root_.env.max_frame)), replace=True
    )
    OmegaConf.register_new_resolver("job_number", lambda number, first: number + first, replace=True)
    store = ConfigStore.instance()
    store.store(name="base_config", node=Config)
    store.store(name="base_benchmark", node=BenchmarkConfig)
    store.store(name="base_sb3", node=Sb3Config)
    store.store(name="base_doctor", node=DoctorConfig)
    _register_plugins(store)


def _register_plugins(store: ConfigStore) -> None:
    """Give Optuna the defaults that runs need, and let configs name plugins that are missing, which a sweep says."""
    Plugins.instance()  # imports the plugins, which make their configs known
    if is_installed("hydra_plugins.hydra_optuna_sweeper"):
        from hydra_plugins.hydra_optuna_sweeper.config import Direction, OptunaSweeperConf

        tuner = OptunaSweeperConf(
            direction=Direction.maximize,
            storage=f"sqlite:///${{hydra.sweep.dir}}/{DATABASE}",
            study_name="sweep",
            n_jobs=1,
            max_failure_rate=1.0,
        )
        store.store(group="hydra/sweeper", name="optuna", node=tuner)
    for package, (choices, _) in PLUGINS.items():
        for choice in choices if not is_installed(package) else []:
            group, _, name = choice.rpartition("/")
            store.store(group=group, name=name, node=OmegaConf.create({"_target_": package}, flags={"struct": False}))


def is_installed(package: str) -> bool:
    """Return whether there is such a package."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
