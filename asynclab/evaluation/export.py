"""From a run to a folder that is worth keeping: its weights, its curve, what it is worth, how to make it again."""

import json
import math
import shlex
import shutil
from pathlib import Path

from asynclab import check
from asynclab.analysis import curves, runs
from asynclab.analysis.jobs import Job
from asynclab.evaluation import play
from asynclab.evaluation.play import Evaluation
from asynclab.storage import checkpoint, metrics, zoo
from asynclab.storage.folder import is_agent, require, whole_folder
from asynclab.storage.names import CHECKPOINTS, CONFIG, EVALUATION, METRICS, RUN, SUMMARY


def export(
    run: Path,
    out: Path,
    name: str = "latest",
    session: int = 0,
    episodes: int = 30,
    least: float | None = None,
    deterministic: bool | None = None,
) -> Evaluation:
    """Make a folder of a finished run that can be played, drawn and reported like it, and say what the agent is worth.

    Args:
        run: Output folder.
        out: The new folder, complete or not there.
        name: Of the checkpoint: ``latest``, ``best`` or a number.
        session: Whose network, where sessions have one each.
        episodes: That are played to find out what it is worth.
        least: What an episode must return wherever it is played; None: as much as the worst of these.
        deterministic: Play the best actions instead of sampling; None for the agent's own way.

    Raises:
        ValueError: The run is not there, not finished or damaged, ``out`` exists or cannot be written, or an argument
            makes no sense.  Nothing is left.
    """
    play.check_request(episodes, play.SEED)
    if least is not None:
        check.number("least", least)
    require(run)
    if is_agent(run):
        raise ValueError(f"run={run} is a zoo's agent already; with format=onnx it becomes a file for other programs")
    found, problems = runs.read(run)
    if problems:
        raise ValueError(f"run={run} cannot be exported: {', '.join(problems)}")
    latest = run / CHECKPOINTS / "latest"  # by its number: instead of a damaged one, no other will do
    kept = checkpoint.load(run, latest.resolve().name if name == "latest" and latest.is_dir() else name)
    weights = play.weights_of(kept, session)
    try:
        with whole_folder(out) as new:
            played = play.evaluate(run, episodes, deterministic, session=session, name=weights.checkpoint)
            played = played._replace(run=out)
            if not all(map(math.isfinite, played.returns)):
                raise ValueError(f"run={run} cannot be exported: its episodes have returns that are not finite")
            # commands as anybody can type them, without the paths of this machine
            again = ["python", "scripts/evaluate.py", f"run={out}", f"episodes={episodes}"]
            again += [] if deterministic is None else [f"deterministic={str(deterministic).lower()}"]
            worth = {"least": min(played.returns) if least is None else least} | played.as_json() | {"command": again}
            origin = found.made | {"command": shlex.split(Job(run.name, found, [], "finished").command)}
            origin["resumes"] = [{k: v for k, v in then.items() if k != "command"} for then in found.made["resumes"]]
            for file, content in ((EVALUATION, worth), (RUN, origin)):
                (new / file).write_text(json.dumps(content, indent=2) + "\n")
            for file in (CONFIG, SUMMARY):
                shutil.copyfile(run / file, new / file)
            (new / METRICS).write_text("".join(map(metrics.text, curves.thin(found.curves))))
            zoo.write(new, weights)
            zoo.seal(new, weights)
    except OSError as error:
        raise ValueError(
            f"out={out} cannot be written: {error.strerror or error}; set out to another folder"
        ) from error
    return played
