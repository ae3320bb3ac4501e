"""Check a configuration in seconds, without training.  The exit status is 0 if nothing is wrong.

Example: ``python scripts/doctor.py algo=sac env=humanoid distributed=shared``.  ``--inject=help`` lists the known
errors, and ``--inject=NAME`` plants one, which must then be found.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from asynclab import config
from asynclab.config.command import configured

config.register()


def main() -> None:
    """Check what was typed; this command's own settings may have dashes in front of them."""
    sys.argv[1:] = [re.sub(r"^--(?=(inject|frames|checks)=)", "", argument) for argument in sys.argv[1:]]
    doctor()


@configured("doctor")
def doctor(cfg: DictConfig) -> None:
    """Print one line per check, and a summary."""
    from asynclab.processes.server import start_server

    if cfg.distributed.get("max_session") != 1 and cfg.inject != "help":
        with suppress(OSError):  # a reason why it cannot is said by the checks
            start_server()  # so early that it imports torch while we do

    from hydra.errors import CompactHydraException

    from asynclab import check
    from asynclab.doctor import checks, faults

    if cfg.inject == "help":
        print(faults.table())
        return
    if cfg.resume not in (None, config.AUTO):  # auto goes on with what the same command began
        raise CompactHydraException(
            f"resume={cfg.resume}: the doctor checks a command's settings, not a run; type those that the run had"
        )
    start, counts, skipped = time.monotonic(), Counter[str](), set[str]()
    try:
        frames = check.count("frames", cfg.frames)
        with tempfile.TemporaryDirectory(prefix="asynclab_doctor_") as folder:
            for finding in checks.examine(cfg, Path(folder), frames, cfg.inject, cfg.checks):
                print(f"{finding.status:8} {finding.name:17} {finding.text}", flush=True)
                counts[finding.status] += 1
                skipped |= {finding.name} if finding.status == checks.SKIPPED else set()
    except (ValueError, OSError) as error:
        raise CompactHydraException(str(error)) from error
    summary = ", ".join(f"{counts[status]} {status}" for status in (checks.OK, checks.FAILED, checks.SKIPPED))
    print(f"{summary} in {time.monotonic() - start:.1f} s" + f"; planted: {cfg.inject}" * (cfg.inject is not None))
    if counts[checks.FAILED]:
        sys.exit(1)
    if cfg.inject is not None:
        name = faults.FAULTS[cfg.inject].check
        why = f"{name}, which finds it, was skipped" if name in skipped else "a mistake in the doctor"
        raise CompactHydraException(f"inject={cfg.inject} was planted and not found: {why}")


if __name__ == "__main__":
    main()
