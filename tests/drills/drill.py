"""A real run that is watched and hurt from outside."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from conftest import ROOT

HERE = Path(__file__).parent
SMALL = ["algo=a3c", "env=cartpole", "algo.memory.horizon=16", "log_every=0.5", "distributed.max_session=2"]
LONG = [*SMALL, "env.max_frame=100_000_000"]


def env_id(name):
    """Return the overrides that choose an environment of drill_envs."""
    return ["env=gym", f"env.id=drill_envs:{name}-v0", "env.num_envs=4", "env.max_frame=20_000"]


class Run:
    """The real command, in an output folder of the drill.

    Args:
        folder: Output folder; given only if the command does not resume it.
        overrides: Of the command.
        prefix: What stands before it.
        terminal: What it takes a terminal for.
        options: Of Popen.
    """

    def __init__(self, folder, *overrides, prefix=(), terminal="dumb", **options):
        self.folder = folder
        self.output = folder.parent / f"{folder.name}.out"
        resumes = any(o.startswith("resume=") and o != "resume=auto" for o in overrides)
        command = [*prefix, sys.executable, ROOT / "train.py", *overrides, "plot=false"]
        env = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "TERM": terminal,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "DRILL_COUNT": str(folder.parent / f"{folder.name}.count"),
        }
        command = [*command] if resumes else [*command, f"hydra.run.dir={folder}"]
        with self.output.open("a") as out:
            streams = {"stdout": out, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            self.process = subprocess.Popen(command, env=env, cwd=folder.parent, **(streams | options))

    def text(self):
        """Return what it has printed."""
        return self.output.read_text()

    def lines(self, kind):
        """Return the whole lines of this kind of its metrics file."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        found = [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]
        return [line for line in found if line["kind"] == kind]

    def frames(self):
        """Return the frames of the trial as it has reported last."""
        with (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(-min(file.seek(0, os.SEEK_END), 100_000), os.SEEK_END)
            counts = re.findall(rb'"total_frames": (\d+), "(?:updates|seconds)"', file.read())
        return max(map(int, counts), default=0)

    def summary(self):
        return json.loads((self.folder / "summary.json").read_text())

    def until(self, condition, timeout=120):
        """Wait for something that the run will do."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)
        return self

    def until_running(self, sessions=2):
        """Wait until all sessions step, and return their processes by rank."""
        self.until(lambda: len({line["rank"] for line in self.lines("session")}) == sessions)
        return self.sessions()

    def pids(self):
        """Return the sessions' latest processes' numbers by rank."""
        return {line["rank"]: line["pid"] for line in self.lines("process")}

    def sessions(self):
        """Return the sessions' processes by rank."""
        return {rank: psutil.Process(pid) for rank, pid in self.pids().items()}

    def family(self):
        """Return all processes that the command has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, timeout=120):
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it did not end in {timeout} s\n{self.text()}") from None

    def steps_counted(self):
        """Return the steps that the environments themselves have counted."""
        return (self.folder.parent / f"{self.folder.name}.count").stat().st_size

    def theta(self, name="latest"):
        return torch.load(self.folder / "checkpoints" / name / "stores.pt", weights_only=True)[0]["theta"]


def all_gone(processes):
    """Return whether these processes end within a generous time; those that do not are killed."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    return not alive
