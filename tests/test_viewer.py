"""tensorboard=true: an address on the loopback while the run trains, and nothing after it."""

import json
import re
import time
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

import asynclab
from asynclab.run import viewer

pytestmark = pytest.mark.medium


def test_it_is_there_while_the_run_trains_and_then_gone(tmp_path):
    seen, log = [], tmp_path / "run" / "train.log"

    def look(line):
        if not seen and (found := re.search(r"TensorBoard is at (http://127\.0\.0\.1:\d+/)", log.read_text())):
            with urlopen(f"{found[1]}data/environment") as answer:
                seen.append((found[1], json.load(answer)["data_location"]))
            raise LookupError

    with pytest.raises(LookupError):
        asynclab.train(
            ["env=cartpole", "env.max_frame=10_000_000", "distributed.max_session=2", "log_every=0.5", "plot=false",
             "tensorboard=true", f"hydra.run.dir={tmp_path / 'run'}"], look, quiet=True,
        )  # fmt: skip
    ((address, place),) = seen
    assert place == str(tmp_path / "run" / "tensorboard")
    with pytest.raises(URLError):
        urlopen(address)
    assert not [p for p in psutil.Process().children(recursive=True) if "tensorboard.main" in " ".join(p.cmdline())]
    assert f"               {viewer.ADDRESS}\n" in log.read_text()


def test_one_that_does_not_start_is_only_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(viewer.sys, "executable", "/nowhere/python")
    with viewer.viewing(tmp_path):
        pass
    assert "TensorBoard could not be started (No such file or directory); the run goes on without it" in caplog.text
    monkeypatch.setattr(viewer.sys, "executable", "/bin/false")
    with viewer.viewing(tmp_path):
        end = time.monotonic() + 10
        while "has ended" not in caplog.text and time.monotonic() < end:
            time.sleep(0.05)
    assert "TensorBoard has ended" in caplog.text
