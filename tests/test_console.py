import fcntl
import io
import json
import logging
import math
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser

import asynclab.console.handler as console
from asynclab import text
from asynclab.console.handler import ConsoleHandler, row
from asynclab.console.table import SessionStatus, Status, Table
from asynclab.run import screens

SMALL = ["algo=a3c", "env=cartpole", "algo.memory.horizon=16", "log_every=0.5", "plot=false"]
CODES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """Keeps what is written to it."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Return a terminal and its handler."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr(console, "_is_in_foreground", lambda stream: True)
    stream = Terminal()
    return stream, ConsoleHandler(stream)


def status(sessions=2, **states):
    """Return the status of a run whose sessions have 1,000 frames each."""
    rows = [SessionStatus(states.get(f"s{rank}", "running"), 20.0, 7, 0.5) for rank in range(sessions)]
    return Status(100_000, lambda: [1_000] * sessions, lambda: 42, rows, mean_return=20.0, best=21.0)


def lines(table, width, height, **options):
    """Return the lines of a table on a terminal of that size."""
    return [line.plain for line in table.lines(console._Console(io.StringIO(), width=width, height=height, **options))]


def say(handler, message, **extra):
    handler.handle(logging.makeLogRecord({"msg": message, "levelno": logging.INFO} | extra))


@pytest.mark.parametrize("sessions", [1, 2, 16, 300])
@pytest.mark.parametrize("width", [12, 40, 80, 140])
@pytest.mark.parametrize("height", [1, 2, 5, 9, 24, 60])
def test_the_table_fits_every_terminal(sessions, width, height):
    found = lines(Table(status(sessions)), width, height)
    assert 1 <= len(found) <= max(height - 1, 1)
    assert max(map(len, found)) <= width - 2


def test_columns_are_left_out_by_what_they_matter():
    heads = [lines(Table(status()), width, 24)[-3].split() for width in (140, 60, 40, 25)]
    assert heads == [
        ["session", "frames", "fps", "return", "episodes", "staleness", "restarts", "state"],
        ["session", "frames", "fps", "return", "restarts", "state"],
        ["session", "frames", "return", "state"],
        ["session", "state"],
    ]


def test_sessions_that_fail_are_shown_where_not_all_can_be():
    table = Table(status(16, s12="dead", s15="restarting"))
    *_, first, dead, restarting, rest = lines(table, 80, 9)
    assert [line.split()[-1] for line in (first, dead, restarting)] == ["running", "dead", "restarting"]
    assert [line.split()[0] for line in (first, dead, restarting)] == ["0", "12", "15"]
    assert rest == "+ 13 more: 13 running"
    assert lines(table, 80, 5)[-1] == "16 sessions: 14 running, 1 dead, 1 restarting"
    assert [line.split()[0] for line in lines(table, 80, 24)[-16:]] == [str(rank) for rank in range(16)]


def test_speed_and_time_left_are_those_of_the_last_seconds(monkeypatch):
    now, frames = [1000.0], [0, 0]
    monkeypatch.setattr("asynclab.console.table.time.monotonic", lambda: now[0])
    s = status()
    s.frames = lambda: list(frames)
    table = Table(s)
    assert " left ?" in lines(table, 80, 24)[1]
    for _ in range(60):
        now[0] += 1
        frames[0] += 1000 if now[0] < 1030 else 100
        found = lines(table, 80, 24)
    assert frames == [32_100, 0]
    assert found[1].startswith("frames 32,100/100,000 ")
    assert found[1].endswith("32.1%  left 0:11:19")  # 67,900 frames at 100 per second
    assert found[-2].split() == ["0", "32,100", "100", "20.00", "7", "0.50", "0", "running"]
    assert found[-1].split()[2] == "0"


def test_what_is_not_known_is_not_a_number():
    s = Status(100, lambda: [0], lambda: 0, [SessionStatus()])
    text = "\n".join(lines(Table(s), 80, 24))
    assert "return -  best -  fps 0" in text
    assert "checkpoint ? ago" in text
    assert "nan" not in text


def test_an_evaluation_and_what_is_about_to_happen_have_a_place():
    s = status()
    s.evaluation, s.note = "21.00 at 1,000 frames", "SIGINT: saving and ending"
    found = lines(Table(s), 80, 24)
    assert any("evaluation 21.00 at 1,000 frames" in line for line in found)
    assert "SIGINT: saving and ending" in found


def test_a_terminal_without_unicode_has_a_table_too():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console._Console(stream, width=80, height=24).print(Table(status()))  # raises if it cannot be encoded


def test_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    handler = ConsoleHandler(stream)
    with handler.live(status()):
        say(handler, "frames 5", live=True)
        say(handler, "3 of [bold]7[/bold]", levelno=logging.WARNING)
        say(handler, "not for the console", console=False)
        message, extra = row("output", "/a/b", whole=True)
        say(handler, message, **extra)
    assert stream.getvalue() == "frames 5\n3 of [bold]7[/bold]\n  output       /a/b\n"


@pytest.mark.parametrize("term", ["dumb", "unknown", None])
def test_a_terminal_that_knows_no_codes_gets_plain_lines(monkeypatch, term):
    monkeypatch.setenv("TERM", term) if term else monkeypatch.delenv("TERM", raising=False)
    assert ConsoleHandler(Terminal()).console is None


def test_what_is_logged_stays_above_the_table(terminal):
    stream, handler = terminal
    s = status()
    with handler.live(s):
        assert s.is_shown
        say(handler, "frames 5", live=True)
        say(handler, "session [0] was killed by 'SIGKILL' at 5", levelno=logging.WARNING)
    assert not s.is_shown
    say(handler, "frames 6", live=True)
    shown = screen(stream.getvalue(), 80)
    assert shown[0] == "session [0] was killed by 'SIGKILL' at 5"
    assert [line.startswith("session  ") for line in shown].count(True) == 1
    assert shown[-1] == "frames 6"
    assert "\x1b[33msession [0]" in stream.getvalue()


def test_in_the_background_there_are_lines_and_no_table(terminal, monkeypatch):
    stream, handler = terminal
    with handler.live(status()):
        monkeypatch.setattr(console, "_is_in_foreground", lambda stream: False)
        length = len(stream.getvalue())
        say(handler, "frames 5", live=True)
        assert stream.getvalue()[length:] == "frames 5\n"
        monkeypatch.setattr(console, "_is_in_foreground", lambda stream: True)
        length = len(stream.getvalue())
        say(handler, "back again")
        assert "\x1b[1A" not in stream.getvalue()[length:]  # nothing that the shell wrote is overwritten


def test_a_terminal_that_became_narrower_has_wrapped_the_table(terminal):
    stream, handler = terminal
    with handler.live(status()):
        before = stream.getvalue()
        handler.console.width = 40
        say(handler, "now it is narrow")
        after = stream.getvalue()[len(before) :]
    drawn = screen(before, 40)  # as the terminal shows it now
    assert after.count("\x1b[1A") == len(drawn) - 1
    assert screen(before + after, 40)[0] == "now it is narrow"


@pytest.mark.parametrize("closed", ["before", "while"])
def test_a_closed_terminal_is_written_to_no_more(monkeypatch, capfd, closed):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "REFRESH", 0.01)
    leader, follower = pty.openpty()
    with open(follower, "w") as stream:  # noqa: PTH123
        handler = ConsoleHandler(stream)
        if closed == "before":
            os.close(leader)
        with handler.live(status()):
            if closed == "while":
                os.close(leader)
            time.sleep(0.1)
            say(handler, "on we go")
        say(handler, "to the end")
    assert capfd.readouterr().err == ""


def test_a_mistake_in_the_table_does_not_end_a_run(terminal, monkeypatch):
    monkeypatch.setattr(console, "REFRESH", 0.01)
    failed = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: failed.set())
    _, handler = terminal
    s = status()
    with handler.live(s):
        frames, s.frames = s.frames, lambda: 1 // 0
        assert failed.wait(10)
        s.frames = frames


def test_rows_are_wrapped_between_words_and_commands_not_at_all(terminal):
    stream, handler = terminal
    handler.console.width = 40
    for args in (
        ("sessions", "2 with 8 environments each, on cpu"),
        ("TensorBoard", "tensorboard --logdir /a/b", True),
    ):
        message, extra = row(*args)
        say(handler, message, **extra)
    say(handler, "finished: mean return 1.0 over the last 100 episodes", title="bold")
    assert CODES.sub("", stream.getvalue()).splitlines() == [
        "  sessions     2 with 8 environments",
        "               each, on cpu",
        "  TensorBoard  tensorboard --logdir /a/b",
        "",
        "finished: mean return 1.0 over the last",
        "100 episodes",
    ]


@pytest.mark.parametrize(
    "name", ["run", "a b", "lr=0.1,seed=0", "it's", 'say "x"', "[x]{y}", "é", "2026-11-23", "a$HOME", "(1)"]
)
def test_commands_name_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder, expected in ((tmp_path / name, name), (Path("/elsewhere") / name, f"/elsewhere/{name}")):
        (word,) = shlex.split(text.override("run", folder))
        parsed = OverridesParser.create().parse_override(word)
        assert (parsed.key_or_group, parsed.value()) == ("run", expected)
        assert shlex.split(screens.tensorboard(folder))[-1] == expected


def test_programs_of_another_environment_than_the_shells_are_named_by_their_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / ".venv" / "bin" / "tensorboard"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    assert screens.tensorboard(tmp_path / "run") == ".venv/bin/tensorboard --logdir run"
    monkeypatch.setenv("PATH", str(program.parent))
    assert screens.tensorboard(tmp_path / "run") == "tensorboard --logdir run"


def test_a_run_without_a_summary_has_no_last_screen(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    screens.last(tmp_path, 2_000)
    (tmp_path / "summary.json").write_text('{"status": "fini')
    screens.last(tmp_path, 2_000)
    assert caplog.text == ""


def screen(text, width):
    """Return the lines that a terminal of that width, and any height, shows of what was written to it."""
    cells, y, x = [[]], 0, 0
    for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|.|[\r\n]", text):
        if part == "\n":
            y, x = y + 1, 0
        elif part == "\r":
            x = 0
        elif part == "\x1b[1A":
            y -= 1
        elif part == "\x1b[2K":
            cells[y].clear()
        elif not part.startswith("\x1b"):
            if x == width:
                y, x = y + 1, 0
            while len(cells) <= y:
                cells.append([])
            cells[y] += " " * (x + 1 - len(cells[y]))
            cells[y][x], x = part, x + 1
        else:
            assert re.fullmatch(r"\x1b\[([\d;]*m|\?25h)", part), part  # colours, and the cursor is there
        while len(cells) <= y:
            cells.append([])
    shown = ["".join(line).rstrip() for line in cells]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def on_a_terminal(folder, size, *overrides, ctrl_c_after=math.inf, **env):
    """Run the real command on a terminal.

    Args:
        folder: Output folder; the command runs in the one above.
        size: Columns and rows.
        overrides: Of the command.
        ctrl_c_after: How often the table is drawn before Ctrl-C is typed.
        env: Environment variables.

    Returns:
        Its exit code, and what it wrote.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    command = [sys.executable, ROOT / "train.py", *SMALL, *overrides, f"hydra.run.dir={folder}"]
    variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, cwd=folder.parent, start_new_session=True,
        env=variables | {"TERM": "xterm-256color"} | env,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(follower)
    written = b""
    try:
        while chunk := os.read(leader, 65536):
            written += chunk
            if written.count(b"running") >= ctrl_c_after:
                os.write(leader, b"\x03")
                ctrl_c_after = math.inf
    except OSError:  # nobody holds the other end any more
        pass
    finally:
        process.wait(60)
        os.close(leader)
    return process.returncode, written.decode()


@pytest.mark.medium
def test_ctrl_c_leaves_a_clean_terminal_with_the_last_table_and_what_to_do_next(tmp_path):
    folder = tmp_path / "run"
    code, written = on_a_terminal(
        folder, (80, 40), "distributed.max_session=2", "env.max_frame=100_000_000", ctrl_c_after=6
    )
    assert code == 130
    summary = json.loads((folder / "summary.json").read_text())
    shown = screen(written, 80)
    assert shown[1] == "a3c on CartPole-v1, distributed=synced"
    assert "  sessions     2 with 8 environments and 1 thread each, on cpu" in shown
    assert "  frames       100,000,000 in all, a checkpoint every 0:05:00" in shown
    assert "  output       run" in shown
    (head,) = (i for i, line in enumerate(shown) if line.startswith("session  "))  # one table, whole
    assert [line.split()[-1] for line in shown[head + 1 : head + 3]] == ["ended", "ended"]
    assert shown[head + 4].startswith("interrupted: mean return ")
    assert shown[head + 5].startswith(f"  frames       {summary['frames']:,} in 0:00:")
    assert [line for line in shown if "^C" in line] == []
    assert shown[-1].endswith(f"{ROOT}/train.py resume=run")
    assert written.endswith("\r\n")
    log = (folder / "train.log").read_text()
    assert re.search(r"\] frames [\d,]+/100,000,000 \(0\.\d%\)  per session ", log)
    assert "\x1b" not in log


@pytest.mark.slow
def test_a_narrow_and_low_terminal_without_colours(tmp_path):
    code, written = on_a_terminal(
        tmp_path / "run", (40, 9), "distributed.max_session=4", "env.max_frame=30_000", NO_COLOR="1"
    )
    assert code == 0
    assert not re.search(r"\x1b\[[\d;]*\b(3\d|4\d|9\d|10\d)[\d;]*m", written)
    found = [
        line for line in re.split(r"[\r\n]+|\x1b\[1A", written) if not re.search(r"logdir|scripts/|train\.py", line)
    ]
    assert max(len(CODES.sub("", line)) for line in found) <= 40
    shown = screen(written, 40)
    assert [line.startswith("session  ") for line in shown].count(True) == 1
    assert any(re.fullmatch(r"\+ \d more: \d ended", line) for line in shown)
    assert any(line.startswith("finished: mean return ") for line in shown)


@pytest.mark.medium
def test_without_a_terminal_the_screens_are_plain_and_their_commands_work(train, tmp_path):
    folder = tmp_path / "my runs" / "lr=0.1"
    folder.parent.mkdir()
    process = train(*SMALL, "distributed.max_session=1", "env.max_frame=4_000", folder=f"'{folder}'",
                    env={"TERM": "xterm", "FORCE_COLOR": "1"})  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "\x1b" not in process.stdout + process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == "a3c on CartPole-v1, distributed=synced"
    assert lines[1] == "  sessions     1 with 8 environments and 1 thread, on cpu"
    assert lines.count("  output       my runs/lr=0.1") == 2
    assert "               summary.json, checkpoints/latest, checkpoints/best" in lines
    evaluate, watch, go_on = (line[15:] for line in lines[-3:])
    assert [line[:15] for line in lines[-3:]] == ["  to evaluate  ", "  to watch it  ", "  to go on     "]
    assert watch == f"{evaluate} episodes=1 video=true"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    played = subprocess.run(
        ["bash", "-c", f"{evaluate} episodes=2 && {go_on}"], cwd=tmp_path, env=os.environ | {"PATH": path},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert re.search(r"return [\d.]+ \+- .* over 2 episodes", played.stdout), played.stderr
    assert re.search(r"^frames 8,000/8,000 ", played.stdout, re.MULTILINE), played.stderr
