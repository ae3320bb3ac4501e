"""What Hydra knows of us: where the configs lie, their schema, our resolvers, and plugins that may be missing."""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from asynclab.config.schema import BenchmarkConfig, Config, DoctorConfig, Sb3Config
from asynclab.storage.names import HYDRA

AUTO = "auto"  # resume if there is something to resume
_HERE = Path(__file__).parents[1]
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


def subfolder(config: DictConfig) -> str:
    """Return ``hydra.sweep.subdir`` as it was written: it is another one for each job."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep)
    return str(sweep["subdir"])


def register() -> None:
    """Make the schema known to Hydra; the groups' YAML files are validated against it."""
    # A resumed run goes on in its folder, where Hydra must not overwrite what it wrote there first.
    OmegaConf.register_new_resolver(
        "output_folder", lambda resume, new: new if resume in (None, AUTO) else resume, replace=True
    )
    OmegaConf.register_new_resolver(
        "hydra_folder",
        lambda resume: HYDRA if resume is None else f"{HYDRA}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}",
        use_cache=True,
        replace=True,
    )
    OmegaConf.register_new_resolver(
        "share_of_budget", lambda share, *, _root_: max(1, round(share * _root_.env.max_frame)), replace=True
    )
    OmegaConf.register_new_resolver("over", lambda value, number, power: value / number**power, replace=True)
    OmegaConf.register_new_resolver("power", lambda value, number: value**number, replace=True)
    OmegaConf.register_new_resolver("job_number", lambda number, first: number + first, replace=True)
    # Hydra copies all that it is in, store and all, for every group that --help lists; what it loads, it copies anyway.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
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
