"""What comes in: order, keys, ids, ends, failures of sources, and the bound of --max-dead. Real processes and files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.command import GRAPE
from tests.command import grape as command

SESSIONS = """
from grape import Context, State, Topology

t = Topology("sessions")
t.add_output("session")

@t.slot("line", emits="hit")
def parse(line: str, c: Context) -> None:
    ip, second = line.split()
    c.emit("hit", int(second), key=ip)

@t.slot("hit", emits="session")
def sessions(second: int, last: State[int] = State(int, default=-1000)) -> dict | None:
    gap, last.value = second - last.value, second
    return {"from": second} if gap > 30 else None
"""


def grape(where: Path, *arguments: object, code: int | None = 0, stdin: bytes = b"") -> str:
    done = command(*arguments, cwd=where, stdin=stdin)
    assert code is None or done.returncode == code, done.stderr
    return done.stderr


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def access_log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int]]]:
    """A log of more than one batch, and its sessions as a sequential program finds them."""
    rng = random.Random(7)
    second = 0
    last: dict[str, int] = {}
    found = []
    lines = []
    for _ in range(40_000):
        second += rng.choice((0, 0, 1, 2))
        ip = f"10.0.{rng.randrange(20)}.{rng.randrange(50)}"
        lines.append(f"{ip} {second}\n")
        if second - last.get(ip, -1000) > 30:
            found.append((ip, second))
        last[ip] = second
    path = tmp_path_factory.mktemp("log") / "access.log"
    path.write_text("".join(lines))
    return path, sorted(found)


@pytest.mark.parametrize("options", [r",key=/^(\S+)/", ",order=source"])
def test_sessions_of_a_log_are_those_of_a_sequential_program(
    tmp_path: Path, access_log: tuple[Path, list[tuple[str, int]]], options: str
) -> None:
    path, wanted = access_log
    (tmp_path / "app.py").write_text(SESSIONS)
    said = grape(tmp_path, "run", "app.py", "--feed", f"line={path}{options}", "--take", "session=s.jsonl")
    assert sorted((line["key"], line["data"]["from"]) for line in lines_of(tmp_path / "s.jsonl")) == wanted
    assert "in no order" not in said


def test_the_first_keyed_node_behind_a_source_without_order_is_pointed_out_once(
    tmp_path: Path, access_log: tuple[Path, list[tuple[str, int]]]
) -> None:
    (tmp_path / "app.py").write_text(SESSIONS)
    said = grape(tmp_path, "run", "app.py", "--feed", f"line={access_log[0]}", "--data", "d")
    assert "reach node 'sessions', which keeps state by key, in no order" in said
    assert ",order=source" in said
    assert "in no order" not in grape(tmp_path, "run", "app.py", "--feed", f"line={access_log[0]}", "--data", "d")
    (tmp_path / "small.log").write_text("a 1\nb 2\n")  # one batch: it is in order
    assert "in no order" not in grape(tmp_path, "run", "app.py", "--feed", "line=small.log")


COUNT = """
from grape import State, Topology

t = Topology("count")
t.add_output("seen")

@t.slot("x", emits="seen")
def f(data: dict) -> dict:
    return data

@t.slot("done", emits="seen")
def ended(data: dict) -> dict:
    return {"end": data["events"]}
"""


def test_an_id_is_fed_once_from_whatever_file_and_other_content_is_a_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(COUNT)
    (tmp_path / "a.jsonl").write_text('{"i":1}\n{"i":2}\n{"i":1}\n')
    (tmp_path / "b.jsonl").write_text('{"i":2}\n{"i":3}\n{"i":3,"n":1}\n')
    run = ("run", "app.py", "--data", "d", "--take", "seen=o.jsonl")
    grape(tmp_path, *run, "--feed", "x=a.jsonl,id=i")
    grape(tmp_path, *run, "--feed", "x=a.jsonl,id=i")
    grape(tmp_path, *run, "--feed", "x=b.jsonl,id=i", code=1)
    out = lines_of(tmp_path / "o.jsonl")
    assert sorted(line["data"]["i"] for line in out) == [1, 2, 3]
    assert {line["id"].rpartition("-")[0] for line in out} != {""}
    letters = command("dead", "list", "--data", "d", cwd=tmp_path).stdout
    (letter,) = map(json.loads, letters.splitlines())
    assert letter["kind"] == "conflict"
    assert letter["origin"].endswith("b.jsonl:3")


def test_the_end_is_an_event_behind_everything_once(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(COUNT)
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"n":{n}}}\n' for n in range(5_000)))
    run = ("run", "app.py", "--data", "d", "--take", "seen=o.jsonl", "--feed", "x=a.jsonl,on_end=done")
    grape(tmp_path, *run)
    out = lines_of(tmp_path / "o.jsonl")
    assert len(out) == 5_001
    assert [line["data"] for line in out if "end" in line["data"]] == [{"end": 5_000}]
    grape(tmp_path, *run)
    assert len(lines_of(tmp_path / "o.jsonl")) == 5_001
    with source.open("a") as file:
        file.write('{"n":-1}\n')
    grape(tmp_path, *run)
    assert [line["data"] for line in lines_of(tmp_path / "o.jsonl")][5_001:] == [{"n": -1}, {"end": 5_001}]
    said = grape(tmp_path, "run", "app.py", "--feed", "x=a.jsonl,on_end=dome", code=2)
    assert "did you mean 'done'?" in said


JUNK = """
from grape import Topology

t = Topology("junk")

@t.slot("line", retries=0)
def parse(line: str) -> None:
    raise ValueError("no log line")
"""


def test_max_dead_bounds_what_dies(tmp_path: Path) -> None:
    """And the next run, which is allowed no more, gives up no more either."""
    (tmp_path / "app.py").write_text(JUNK)
    (tmp_path / "junk.txt").write_text("junk\n" * 200_000)
    run = ("run", "app.py", "--feed", "line=junk.txt", "--max-dead", 10, "--data", "d", "--workers", 1)
    said = grape(tmp_path, *run, code=1)
    assert "more than 10 dead letters (--max-dead)" in said
    letters = int(said.replace(",", "").partition(" dead letters; look")[0].rpartition("\n")[2])
    assert 10 < letters <= 10 + 3 * 8_192  # what was out at the worker
    said = grape(tmp_path, *run, code=1)
    assert int(said.replace(",", "").partition(" dead letters; look")[0].rpartition("\n")[2]) <= letters + 10


def test_max_dead_bounds_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(JUNK)
    (tmp_path / "junk.jsonl").write_text("{\n" * 100_000)
    said = grape(tmp_path, "run", "app.py", "--feed", "line=junk.jsonl", "--max-dead", 10, "--data", "d", code=1)
    assert "1,000 dead letters" in said


def test_a_half_line_waits_between_runs(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(COUNT)
    source = tmp_path / "h.jsonl"
    run = ("run", "app.py", "--data", "d", "--take", "seen=o.jsonl", "--feed", "x=h.jsonl")
    source.write_text('{"a":1}\n{"a":')
    assert "h.jsonl:2: the last line (5 bytes) has no line end yet" in grape(tmp_path, *run)
    with source.open("a") as file:
        file.write('2}\n{"a":3}\n')
    grape(tmp_path, *run)
    assert sorted(line["data"]["a"] for line in lines_of(tmp_path / "o.jsonl")) == [1, 2, 3]


def test_pipes_of_a_shell_are_sources(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(COUNT)
    command = f"""{GRAPE} run app.py --data d --take seen=o.jsonl --feed x=<(printf '{{"a":1}}\\n{{"a":2}}'),jsonl"""
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "cannot be read again" in done.stderr
    assert sorted(line["data"]["a"] for line in lines_of(tmp_path / "o.jsonl")) == [1, 2]
    grape(tmp_path, "run", "app.py", "--take", "seen=p.jsonl", "--feed", "x=/dev/stdin,jsonl", stdin=b'{"a":5}\n')
    assert [line["data"]["a"] for line in lines_of(tmp_path / "p.jsonl")] == [5]


SOURCES = """
import asyncio, sys
import grape
from grape import State, Topology

t = Topology("flaky")

@t.slot("in")
def count(data: int, n: State[int] = State(int, default=0)) -> None:
    n.value += 1

EVENTS = [(f"k{i % 5}", i) for i in range(1_000)]
asked = []

class Custom(BaseException):
    pass

def flaky(position):
    asked.append(position or 0)
    if len(asked) % 6 == 0:
        raise OSError("connection lost")
    at = position or 0
    return EVENTS[at : at + 100], min(at + 100, len(EVENTS))

def broken(position):
    if (position or 0) < 300:
        return flaky(position)
    raise {"exit": SystemExit(3), "cancel": asyncio.CancelledError(), "key": KeyboardInterrupt(),
           "generator": GeneratorExit(), "custom": Custom("away"), "stop": StopIteration(),
           "error": ValueError("always")}[sys.argv[1]]

if __name__ == "__main__":
    read = flaky if sys.argv[1] == "flaky" else broken
    try:
        summary = grape.run(t, feed={"in": grape.feed(read, retries=1, name="source")}, data="d", workers=1)
        print(summary.fed, asked[-1])
    except grape.GrapeError as e:
        print(e)
"""


def python(where: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "app.py", *arguments], cwd=where, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_source_that_fails_now_and_then_is_asked_again_and_gets_on(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SOURCES)
    said = python(tmp_path, "flaky")
    assert "{'in': 1000} 1000" in said
    assert "source 'source' failed: OSError: connection lost at " in said
    assert "retry 1 of 1 in " in said


@pytest.mark.parametrize("how", ["exit", "cancel", "key", "generator", "custom", "stop", "error"])
def test_whatever_a_source_raises_the_run_ends_with_its_line_and_what_was_read_is_in(tmp_path: Path, how: str) -> None:
    (tmp_path / "app.py").write_text(SOURCES)
    said = python(tmp_path, how)
    assert "source 'source'" in said
    assert "app.py:" in said
    assert "in broken" in said
    assert "src/grape" not in said
    states = command("doctor", "--data", "d", cwd=tmp_path)
    assert states.returncode == 0
    assert "whole: all" in states.stdout + states.stderr
    assert "300" in states.stdout + states.stderr


def test_a_file_is_followed_through_rotation_and_restarts(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from grape import Topology\nt = Topology('tail')\nt.add_output('out')\n"
        "@t.slot('line', emits='out')\ndef f(line: str) -> str:\n    return line\n"
    )
    log = tmp_path / "a.log"
    out = tmp_path / "o.jsonl"
    log.write_text("1\n2\n")

    def follow(lines: int, act: Any = None) -> None:
        """Until so many lines are out."""
        run = [str(GRAPE), "run", "app.py", "--feed", "line=a.log,follow", "--take", "out=o.jsonl", "--data", "d"]
        with subprocess.Popen(run, cwd=tmp_path, stderr=subprocess.PIPE) as running:
            if act is not None:
                act()
            while len(lines_of(out)) < lines:
                assert running.poll() is None
            running.terminate()
            running.wait(30)

    follow(2)
    with log.open("a") as file:
        file.write("3\n")
    log.rename(tmp_path / "a.log.1")
    log.write_text("4\n5\n")
    follow(5)  # renamed while nobody looked
    (tmp_path / "a.log.2").write_bytes(log.read_bytes() + b"6\n")
    log.write_text("7\n")
    follow(7)  # copied and emptied while nobody looked

    def rotate() -> None:
        while len(lines_of(out)) < 7:
            pass
        log.rename(tmp_path / "a.log.3")
        log.write_text("8\n")

    follow(8, rotate)
    assert sorted(int(line["data"]) for line in lines_of(out)) == list(range(1, 9))
