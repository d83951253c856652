"""An engine that runs is spoken to by its directory: by `grape.connect`, and by `grape status|emit|call|stop`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.command import GRAPE, grape

import grape as library
from grape import CallFailed, GrapeError, UnknownEvent, UsageError
from grape.errors import BadArgument, Conflict, Full

APP = """
from grape import Event, Node, State, Topology

t = Topology("lively")
t.add_output("total")

@t.slot("add", emits="total")
def add(n: int, event: Event, total: State[int] = State(int, default=0)) -> int:
    total.value += n
    return total.value

class Ask(Node):
    def process(self, event):
        if event.data == "fail":
            raise ValueError("as it was asked")
        self.reply("part", final=False)
        self.reply({"you said": event.data})

t.add_slot("ask", Ask())
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """The directory of a run whose input stays open."""
    (tmp_path / "app.py").write_text(APP)
    command = [
        GRAPE,
        "run",
        "app.py",
        "--feed",
        "add=-,jsonl",
        "--data",
        "d",
        "--take",
        "total=o.jsonl",
        "--workers",
        "1",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        while True:
            try:
                with library.connect(tmp_path / "d"):
                    break
            except UsageError:
                assert run.poll() is None
        yield tmp_path / "d"
        run.send_signal(signal.SIGINT)
        run.communicate()


def totals(data: Path) -> list[int]:
    path = data.parent / "o.jsonl"
    return [json.loads(line)["data"] for line in path.read_text().splitlines()] if path.exists() else []


def test_programs_emit_and_call(running: Path) -> None:
    with library.connect(running) as engine, library.connect(str(running)) as other:
        engine.emit("add", 5, key="a", id="one")
        other.emit("add", 5, key="a", id="one")  # it was accepted already
        other.emit("add", 7, key="a")
        with pytest.raises(Conflict):
            engine.emit("add", 6, key="a", id="one")
        with pytest.raises(UnknownEvent, match="did you mean 'add'"):
            engine.emit("ad", 6)
        with ThreadPoolExecutor(8) as pool:
            asked = [(q, pool.submit((engine, other)[q % 2].call, "ask", q)) for q in range(40)]
            assert all(answer.result() == {"you said": q} for q, answer in asked)
        assert [reply.data for reply in other.call_stream("ask", "x")] == ["part", {"you said": "x"}]
        assert engine.numbers().fed == {"add": 2, "ask": 41}
    with pytest.raises(GrapeError):
        engine.emit("add", 1)


def test_an_answer_that_is_an_error_is_raised(running: Path) -> None:
    with library.connect(running) as engine, pytest.raises(CallFailed, match="as it was asked"):
        engine.call("ask", "fail", timeout=60)


def test_the_end_of_the_engine_is_told(running: Path) -> None:
    with library.connect(running) as engine, library.connect(running) as other:
        waiting = ThreadPoolExecutor(1).submit(other.call, "ask", "x")
        assert waiting.result() == {"you said": "x"}
        assert engine.stop().app == "lively"
        with pytest.raises(Full):
            other.emit("add", 1)
    with pytest.raises(UsageError, match="no engine runs on it"):
        library.connect(running)


def test_who_connects_to_nothing_is_told_so(tmp_path: Path) -> None:
    for data, what in ((tmp_path / "nope", "no such directory"), (tmp_path, "no engine runs on it")):
        with pytest.raises(UsageError, match=what):
            library.connect(data)
    with pytest.raises(BadArgument, match="data= is a path"):
        library.connect(3)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
def test_the_door_is_for_its_user_alone(running: Path) -> None:
    assert (running / "door").stat().st_mode & 0o777 == 0o600
    running.chmod(0o755)
    for folder in running.parents:
        if folder.stat().st_mode & 0o005 != 0o005 and str(folder) != "/tmp":
            folder.chmod(0o755)
    code = (
        "import os, grape.running\n"
        "os.setuid(65534)\n"
        f"try: grape.running.connect({str(running)!r})\n"
        "except grape.UsageError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "for the user that has started the engine alone" in done.stdout, done.stderr


def test_commands(running: Path) -> None:
    emit = ("emit", "--data", running, "add")
    assert grape(*emit, "5", "--key", "a", "--id", "one").returncode == 0
    assert grape(*emit, "-", "--key", "a", stdin=b"7").returncode == 0
    assert grape(*emit, "5", "--key", "a", "--id", "one").returncode == 0
    conflict = grape(*emit, "6", "--key", "a", "--id", "one")
    assert (conflict.returncode, "used for another event" in conflict.stderr) == (2, True)
    unquoted = grape("call", "ask", "hello", "--data", running)
    assert (unquoted.returncode, "'\"hello\"'" in unquoted.stderr) == (2, True)
    called = grape("call", "ask", '"hello"', "--data", running)
    assert called.stdout.splitlines() == ['"part"', '{"you said":"hello"}']
    failed = grape("call", "ask", '"fail"', "--data", running)
    assert (failed.returncode, "as it was asked" in failed.stderr) == (1, True)
    told = json.loads(grape("status", "--data", running).stdout)
    assert told["fed"] == {"add": 2, "ask": 2}
    assert told["pools"]["main"]["workers_limit"] == 1
    stopped = grape("stop", "--data", running)
    assert (stopped.returncode, "lively has stopped" in stopped.stderr) == (0, True)
    assert totals(running) == [5, 12]
    again = grape("stop", "--data", running)
    assert (again.returncode, "no engine runs on it" in again.stderr) == (2, True)
