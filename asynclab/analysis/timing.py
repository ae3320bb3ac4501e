"""How long what sessions do takes, from the profile of a real run."""

from pathlib import Path
from statistics import fmean

from asynclab.analysis.runs import read_json, read_settings
from asynclab.storage import folder
from asynclab.storage.names import RUN, SUMMARY

# what becomes of the phases of a profile; waiting is for a processor, which everything does alike
PHASES = {
    "act": ("act",),
    "step": ("env", "remember", "other"),
    "gradient": ("sample", "forward", "backward"),
    "push": ("push",),
    "pull": ("pull",),
}


def measured(run: Path) -> dict[str, float]:
    """Return the mean seconds of ``distributed.timing``'s durations in a run's sessions.

    Args:
        run: Output folder of a run with ``profile=true``.

    Raises:
        ValueError: It has no summary or no profile, was resumed, or has learned nothing.
    """
    folder.require(run)
    try:
        summary = read_json(run / SUMMARY)
        made = read_json(run / RUN)
        num_envs = read_settings(run, made)["env.num_envs"]
    except ValueError as error:
        raise ValueError(f"run={run} cannot be measured: {error}") from None
    if "profile" not in summary:
        raise ValueError(f"run={run} has no profile; run it with profile=true")
    if made.get("resumes"):
        raise ValueError(f"run={run} was resumed, and its profile is that of its last part; measure one in one piece")
    sessions = []
    for shares, seconds, frames, updates in zip(
        summary["profile"], summary["profile_seconds"], summary["session_frames"], summary["session_updates"],
        strict=True,
    ):  # fmt: skip
        if not updates or not shares:
            raise ValueError(f"run={run} has a session that has learned nothing")
        waited = 1 / max(1 - shares["waiting"], 1e-3)  # how many times longer all took than it ran
        times = {"act": frames / num_envs, "step": frames / num_envs}
        sessions.append(
            {
                name: waited * seconds * sum(shares[phase] for phase in phases) / times.get(name, updates)
                for name, phases in PHASES.items()
            }
        )
    return {name: float(f"{max(fmean(session[name] for session in sessions), 1e-9):.4g}") for name in PHASES}
