"""A study of Optuna in the folder of its sweep: it goes on where it was, and compares only what can be compared."""

import json
import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write

from asynclab import check
from asynclab.config import DATABASE, subfolder
from asynclab.config.settings import CHANGEABLE, compare, in_words

log = logging.getLogger(__name__)

# trials can be compared although these differ
IRRELEVANT = CHANGEABLE - {"distributed.nodes", "env.max_frame", "patience", "stop_at"}


def _is_own(cfg: DictConfig) -> bool:
    """Return whether a sweep's study is in its folder, so that nobody else writes it."""
    return str(cfg.hydra.sweeper.get("storage")) == f"sqlite:///{cfg.hydra.sweep.dir}/{DATABASE}"


def go_on(cfg: DictConfig) -> None:
    """Let a sweep make what its study lacks: first the trials that were interrupted, then new ones.

    A study in a database elsewhere is left to its owner: other sweeps may be at work on it.

    Changes ``hydra.sweeper.n_trials``, the sampler's seed and ``hydra.sweep.subdir``, so that the number of a trial is
    the number of its job.  The caller has the lock on the sweep's folder, so no trial runs that is marked as running.

    Args:
        cfg: As composed for ``-m``.

    Raises:
        ValueError: The study cannot go on.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweeper = cfg.hydra.sweeper
    wanted = check.whole("hydra.sweeper.n_trials", sweeper.n_trials)
    check.count("hydra.sweeper.n_jobs", sweeper.n_jobs)
    if not _is_own(cfg):
        return
    try:
        study = _open(cfg)
        _compare_settings(study, cfg)
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == optuna.trial.TrialState.RUNNING:  # it is asked for again, with the settings that it has
                study._storage.set_trial_state(trial._trial_id, optuna.trial.TrialState.WAITING)
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise ValueError(
            f"the study in {sweeper.storage} cannot be read ({str(error).splitlines()[0]}); set hydra.sweep.dir to"
            " another folder"
        ) from None
    done = sum(trial.state.is_finished() for trial in trials)
    if trials:
        log.info("the study in %s has %d of %d trials", cfg.hydra.sweep.dir, done, max(done, wanted))
    subdir = subfolder(cfg).replace(
        "${hydra.job.num}", f"${{job_number:${{hydra.job.num}},{done}}}"
    )  # trials end in order
    with read_write(cfg.hydra):
        sweeper.n_trials = max(0, wanted - done)
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += len(trials)  # the same seed would draw again what it has drawn
        cfg.hydra.overrides.hydra.append(f"hydra.sweep.subdir='{subdir}'")  # each job's config is made of these


def best(cfg: DictConfig) -> str | None:
    """Return which trial of a study is the best so far, in words; None if none has finished."""
    from optuna.trial import TrialState

    study = _open(cfg)
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if not complete or len(study.directions) > 1:
        return None
    trial = study.best_trial
    chosen = " ".join(f"{key}={value}" for key, value in trial.params.items())
    return f"the best of {len(complete)} trials is {trial.number}, which returned {trial.value:.2f}: {chosen}"


def _open(cfg: DictConfig) -> Any:
    import optuna

    sweeper = cfg.hydra.sweeper
    given = sweeper.direction
    directions = [getattr(d, "name", d) for d in (given if OmegaConf.is_list(given) else [given])]
    if wrong := [d for d in directions if d not in ("maximize", "minimize")]:
        raise ValueError(f"hydra.sweeper.direction={wrong[0]} must be maximize or minimize")
    return optuna.create_study(
        study_name=sweeper.study_name, storage=sweeper.storage, directions=directions, load_if_exists=True
    )


def _compare_settings(study: Any, cfg: DictConfig) -> None:
    """Refuse trials that cannot be compared with those before; remember the settings of the first ones.

    What is searched has the value that it has without the search, always the same.
    """
    now = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    now = json.loads(json.dumps(now))
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", now)
        return
    if wrong := {key: change for key, change in compare(before, now).items() if key not in IRRELEVANT}:
        raise ValueError(
            f"the study in {cfg.hydra.sweep.dir} was made with other settings ({in_words(wrong)}), so its trials could"
            " not be compared with new ones; leave them as they were, or set hydra.sweep.dir to another folder"
        )
