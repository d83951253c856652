"""Handlers that misbehave, and load that is too much: rows of the fault catalogue at the level of a run."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.command import GRAPE
from tests.command import grape as command

import grape
from grape import Event


def run(tmp_path: Path, code: str, lines: list[str], *more: object) -> subprocess.CompletedProcess[str]:
    (tmp_path / "app.py").write_text(code)
    (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in lines))
    return command("run", "app.py", "--feed", "line=lines.txt", "--data", "data", *more, cwd=tmp_path)


def dead(tmp_path: Path) -> list[dict[str, Any]]:
    listed = command("dead", "list", "--json", "--data", "data", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    return [json.loads(line) for line in listed.stdout.splitlines()]


def outputs(path: Path) -> list[Any]:
    return [json.loads(line)["data"] for line in path.read_text().splitlines()]


def test_garbage_on_standard_output_is_a_log(tmp_path: Path) -> None:
    """F55"""
    code = (
        "import os\nfrom grape import Topology\nt = Topology('noise')\nt.add_output('out')\n"
        "@t.slot('line', emits='out')\n"
        "def work(line: str) -> str:\n"
        "    os.write(1, bytes(range(256)) * 300 + b'\\xff\\x1b[31m\\n')\n"
        "    os.write(2, b'\\x00' * 5000)\n"
        "    return line\n"
    )
    done = run(tmp_path, code, [str(i) for i in range(20)], "--take", "out=out.jsonl")
    assert done.returncode == 0, done.stderr
    assert sorted(outputs(tmp_path / "out.jsonl"), key=int) == [str(i) for i in range(20)]


def test_garbage_on_the_protocol_socket_is_the_death_of_that_event(tmp_path: Path) -> None:
    """F55, F56: the worker is replaced, the event found out and given up; all others are done, once."""
    code = (
        "import os, stat\nfrom grape import Topology\nt = Topology('noise')\nt.add_output('out')\n"
        "@t.slot('line', emits='out', backoff=0.01)\n"
        "def work(line: str) -> str:\n"
        "    if line == '7':\n"
        "        for fd in range(3, 1000):\n"
        "            try:\n"
        "                if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "                    os.write(fd, b'\\xff\\xff\\xff\\x00 this is no message')\n"
        "            except OSError:\n"
        "                pass\n"
        "    return line\n"
    )
    done = run(tmp_path, code, [str(i) for i in range(20)], "--take", "out=out.jsonl")
    assert done.returncode == 1, done.stderr
    assert "broke the protocol" in done.stderr
    (letter,) = dead(tmp_path)
    assert letter["kind"] == "worker-died"
    assert "broke the protocol" in letter["text"]
    assert sorted(outputs(tmp_path / "out.jsonl"), key=int) == [str(i) for i in range(20) if i != 7]


def test_an_emit_to_nowhere_is_that_events_failure(tmp_path: Path) -> None:
    """F57"""
    code = (
        "from grape import Node, Topology\nt = Topology('nowhere')\nt.add_output('out')\n"
        "class Work(Node):\n"
        "    def process(self, event):\n"
        "        self.emit({'3': 'outt', '4': 'other@out', '5': 7}.get(event.data, 'out'), event.data)\n"
        "t.add_slot('line', Work(), retries=0)\n"
    )
    done = run(tmp_path, code, [str(i) for i in range(10)], "--take", "out=out.jsonl")
    assert done.returncode == 1, done.stderr
    texts = " ".join(letter["text"] for letter in dead(tmp_path))
    assert "neither a slot nor an output of 'nowhere'; did you mean 'out'?" in texts
    assert "no-such-app" in texts
    assert "the name of an event is text" in texts
    assert sorted(outputs(tmp_path / "out.jsonl"), key=int) == [str(i) for i in range(10) if i not in (3, 4, 5)]


def test_too_many_dead_letters_stop_the_feeding(tmp_path: Path) -> None:
    """What was taken in is worked off, and the same command goes on where it was."""
    code = (
        "from grape import Topology\nt = Topology('bad')\nt.add_output('out')\n"
        "@t.slot('line', emits='out', retries=0)\n"
        "def work(line: str) -> str:\n"
        "    if line.startswith('bad'):\n"
        "        raise ValueError(line)\n"
        "    return line\n"
    )
    filler = "x" * 2000
    lines = [f"bad {filler}"] * 50 + [f"{i} {filler}" for i in range(30_000)]
    first = run(tmp_path, code, lines, "--take", "out=out.jsonl", "--max-dead", 20)
    assert first.returncode == 1, first.stderr
    assert "feeding stopped before the end of the input: more than 20 dead letters" in first.stderr
    assert "grape dead list --data data" in first.stderr
    taken = len(outputs(tmp_path / "out.jsonl"))
    assert taken < 30_000
    again = run(tmp_path, code, lines, "--take", "out=out.jsonl", "--max-dead", 20)
    assert again.returncode == 1
    assert len(outputs(tmp_path / "out.jsonl")) == taken
    done = run(tmp_path, code, lines, "--take", "out=out.jsonl", "--max-dead", 50)
    assert done.returncode == 1, done.stderr
    assert "feeding stopped" not in done.stderr
    assert len(outputs(tmp_path / "out.jsonl")) == 30_000
    assert len(dead(tmp_path)) == 50


def test_a_taker_that_raises_ends_the_run_with_its_line(tmp_path: Path) -> None:
    """And nothing is lost: the next run goes on with the event that it raised on."""
    app = tmp_path / "taken_app.py"
    app.write_text(
        "from grape import Topology\nt = Topology('taken')\nt.add_output('out')\n"
        "@t.slot('line', emits='out')\ndef work(line: str) -> str:\n    return line\n"
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("a\nb\n")
    seen: list[str] = []
    got: list[str] = []

    def take(event: Event) -> None:
        seen.append(event.data)
        if len(seen) <= 5 and event.data == "b":  # also when it is tried again
            raise ValueError("not today")
        got.append(event.data)

    def go() -> None:
        grape.run(f"{app}:t", feed={"line": lines}, take={"out": take}, data=tmp_path / "d", workers=1, partitions=1)

    with pytest.raises(grape.UserError, match=r"ValueError: not today at .*test_faults.py:\d+"):
        go()
    go()
    assert got == ["a", "b"]
    assert seen == ["a", *"bbbb", "b"]


def test_takers_come_and_go(tmp_path: Path) -> None:
    """Each gets what is emitted while it is there, several at once all of it."""
    code = (
        "from grape import Topology\nt = Topology('takers')\nt.add_output('out')\n"
        "@t.slot('line', emits='out')\ndef work(line: str) -> str:\n    return line\n"
    )
    want: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    for number, takers in enumerate(["a", "ab", "b", "", "abc", "c", "a"]):
        lines = [f"{number}.{i}" for i in range(200)]
        with (tmp_path / "all.txt").open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        (tmp_path / "app.py").write_text(code)
        command = [GRAPE, "run", "app.py", "--feed", "line=all.txt", "--data", "data", "--partitions", "4"]
        for name in takers:
            command += ["--take", f"out={name}.jsonl"]
            want[name] += lines
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for name, lines in want.items():
        assert sorted(outputs(tmp_path / f"{name}.jsonl")) == sorted(lines), name


def test_all_outputs_of_a_topology_named_by_text_are_open(tmp_path: Path) -> None:
    app = tmp_path / "open_app.py"
    app.write_text(
        "from grape import Topology\nt = Topology('opened')\nt.add_output('out')\n"
        "@t.slot('line', emits='out')\ndef work(line: str) -> str:\n    return line\n"
    )
    with grape.open(f"{app}:t", workers=1) as engine:
        engine.emit("line", "x")
        assert next(engine.outputs("out", timeout=10)).data == "x"
        with pytest.raises(grape.UsageError, match="no output 'oot'"):
            next(engine.outputs("oot"))


SLOW_APP = """
import time
from grape import Node, Topology

class Slow(Node):
    def process(self, event):
        while not open({gate!r}).read():
            time.sleep(0.01)
        self.emit("done", event.key, key=event.key)

class Fast(Node):
    def process(self, event):
        self.emit("quick", event.key, key=event.key)

t = Topology("slow")
t.add_slot("in", Slow(), pool="slow")
t.add_slot("in", Fast())
t.add_output("done")
t.add_output("quick")
"""


def test_a_slow_slot_holds_the_source_back_and_no_other_pool(tmp_path: Path) -> None:
    """F34: what waits is bounded, the source is not read ahead, and another pool is done with all it got."""
    gate = tmp_path / "gate"
    gate.write_text("")
    app = tmp_path / "slow_app.py"
    app.write_text(SLOW_APP.format(gate=str(gate)))
    events, per_read, size = 6_000, 50, 20_000
    limit = 500
    payload = "x" * size
    read, quick, done = 0, 0, 0
    ahead: list[int] = []
    changed = threading.Condition()

    def source(position: int | None) -> tuple[list[tuple[str, str]], int] | None:
        nonlocal read
        start = position or 0
        if start >= events:
            return None
        read = start + per_read
        return [(f"k{i}", payload) for i in range(start, start + per_read)], start + per_read

    def on_quick(event: Event) -> None:
        nonlocal quick
        with changed:
            quick += 1
            changed.notify()

    def on_done(event: Event) -> None:
        nonlocal done
        done += 1
        ahead.append(read - done)

    def open_when_stuck() -> None:
        """The fast pool has done all that came in, and nothing more comes in."""
        with changed:
            while quick < limit:
                changed.wait()
            while changed.wait(1.0):
                pass
        stuck.append(read)
        gate.write_text("open")

    stuck: list[int] = []
    opener = threading.Thread(target=open_when_stuck)
    opener.start()
    summary = grape.run(
        f"{app}:t",
        feed={"in": source},
        take={"quick": on_quick, "done": on_done},
        data=tmp_path / "data",
        workers=1,
        profile={"slow": {"queue-limit": limit}},
    )
    opener.join()
    assert (quick, done) == (events, events)
    # Up to the limit waits, and what the source may have sent meanwhile: 16 MiB.
    bound = limit + (16 << 20) // size + 3 * per_read
    assert stuck[0] <= bound
    assert max(ahead) <= 2 * bound
    assert summary.dead == 0
