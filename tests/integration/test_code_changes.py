"""A data directory meets other code than the one that wrote it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.command import GRAPE, grape

LINES = 200

COUNT = """
from grape import Node, State, Topology

class {name}(Node):
    seen = State(int, default=0)
    def process(self, event):
        self.seen += 1

class Split(Node):
    def process(self, event):
        for word in event.data.split():
            self.emit("word", key=word)

t = Topology("app")
t.add_slot("line", Split())
t.add_slot("word", {name}(){options})
"""

SLOW = """
import time
from grape import Topology

t = Topology("app")
t.add_output("seen")

@t.slot("line", emits="seen")
def work(line: str) -> str:
    time.sleep(0.01)
    print("got", line)
    return line
"""


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write(tmp_path: Path, code: str, lines: int = LINES) -> tuple[Path, Path, Path]:
    """The app, its input and its data directory."""
    app = tmp_path / "app.py"
    app.write_text(code)
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"{i}\n" for i in range(lines)))
    return app, text, tmp_path / "data"


def interrupt(app: Path, feed: str, data: Path, *more: str) -> int:
    """Run until the first event is done, then Ctrl-C; returns how many events wait."""
    command = [
        GRAPE,
        "run",
        str(app),
        "--feed",
        feed,
        "--data",
        str(data),
        "--workers",
        "1",
        "--summary",
        "json",
        *more,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert run.stdout is not None
        for line in run.stderr:
            if "got" in line:
                run.send_signal(signal.SIGINT)
                break
        rest = run.stderr.read()
        summary = json.loads(run.stdout.read().splitlines()[-1])
    assert run.returncode == 130, rest
    assert summary["backlog"] > 0
    return int(summary["backlog"])


def states(data: Path, node: str) -> dict[str, int]:
    done = grape("state", "list", "--data", data, "--node", node)
    assert done.returncode == 0, done.stderr
    return {row["key"]: row["state"]["seen"] for row in rows(done.stdout)}


def test_a_slot_that_is_gone_is_refused_while_events_wait_for_it(tmp_path: Path) -> None:
    """F93, F92"""
    app, text, data = write(tmp_path, SLOW)
    waiting = interrupt(app, f"line={text}", data)
    app.write_text(SLOW.replace('t.slot("line"', 't.slot("other"'))
    run = ("run", app, "--data", data)
    refused = grape(*run)
    assert refused.returncode == 2
    assert f"slot 'line' -> work is gone from app 'app', and {waiting} events wait for it" in refused.stderr
    assert "--drop-slot line" in refused.stderr
    assert "Traceback" not in refused.stderr
    # Nothing has changed: the old code still finds all of it.
    wrong = grape(*run, "--drop-slot", "lime")
    assert wrong.returncode == 2
    assert "did you mean 'line'" in wrong.stderr
    assert grape(*run, "--drop-slot", "other").returncode == 2
    dropped = grape(*run, "--drop-slot", "line")
    assert dropped.returncode == 1, dropped.stderr
    letters = rows(grape("dead", "list", "--json", "--data", data).stdout)
    assert len(letters) == waiting
    assert {(row["event"], row["node"], row["kind"]) for row in letters} == {("line", "work", "slot-dropped")}
    shown = json.loads(grape("dead", "show", letters[-1]["id"], "--json", "--data", data).stdout)
    assert shown["data"] == str(LINES - 1)
    # The same command once more is no error, and drops nothing twice.
    assert grape(*run, "--drop-slot", "line").returncode == 1
    assert len(rows(grape("dead", "list", "--json", "--data", data).stdout)) == waiting
    # With the slot back, the letters can be put back.
    app.write_text(SLOW)
    assert grape(*run).returncode == 1
    assert grape("dead", "retry", "--all", "--data", data).returncode == 0
    out = tmp_path / "seen.jsonl"
    done = grape(*run, "--take", f"seen={out}")
    assert done.returncode == 0, done.stderr
    assert len(rows(out.read_text())) == waiting


@pytest.mark.slow
def test_one_of_two_listeners_is_gone(tmp_path: Path) -> None:
    """F93: the other one still gets what waits, once."""
    second = '\n@t.slot("line", emits="seen")\ndef second(line: str) -> str:\n    return "second " + line\n'
    app, text, data = write(tmp_path, SLOW + second)
    waiting = interrupt(app, f"line={text}", data)
    app.write_text(SLOW)
    refused = grape("run", app, "--data", data)
    assert refused.returncode == 2
    assert "slot 'line' -> second is gone" in refused.stderr
    out = tmp_path / "seen.jsonl"
    done = grape("run", app, "--data", data, "--drop-slot", "line>second", "--take", f"seen={out}", "--workers", "1")
    assert done.returncode == 1, done.stderr
    letters = rows(grape("dead", "list", "--json", "--data", data).stdout)
    assert len(letters) == waiting
    assert {row["node"] for row in letters} == {"second"}
    seen = [row["data"] for row in rows(out.read_text())]
    assert sorted(seen, key=int) == [str(i) for i in range(LINES - waiting, LINES)]


@pytest.mark.slow
def test_a_timer_of_which_one_listener_is_gone(tmp_path: Path) -> None:
    """F93: it stays for the other one, and is a dead letter once."""
    head = (
        "from grape import Node, Topology\n"
        "class Wait(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('later', event.data, delay=3600)\n"
        "t = Topology('app')\n"
        "t.add_slot('line', Wait())\n"
        "@t.slot('later')\ndef first(text: str) -> None:\n    pass\n"
    )
    app, text, data = write(tmp_path, head + "@t.slot('later')\ndef second(text: str) -> None:\n    pass\n", lines=3)
    run = ("run", app, "--data", data, "--no-wait")
    assert grape(*run, "--feed", f"line={text}").returncode == 0
    app.write_text(head)
    refused = grape(*run)
    assert refused.returncode == 2
    assert "slot 'later' -> second is gone from app 'app', and 3 events wait for it (3 as timers)" in refused.stderr
    for _ in range(2):
        done = grape(*run, "--drop-slot", "later>second")
        assert done.returncode == 1, done.stderr
        assert "3 events wait in" in done.stderr
        letters = rows(grape("dead", "list", "--json", "--data", data).stdout)
        assert [letter["node"] for letter in letters] == ["second"] * 3


@pytest.mark.slow
def test_a_node_that_is_gone_is_refused_while_it_has_state(tmp_path: Path) -> None:
    """F93"""
    app, text, data = write(tmp_path, COUNT.format(name="Count", options=""))
    run = ("run", app, "--data", data)
    assert grape(*run, "--feed", f"line={text}").returncode == 0
    assert len(states(data, "Count")) == LINES
    app.write_text(COUNT.format(name="Counter", options=""))
    refused = grape(*run)
    assert refused.returncode == 2
    assert f"node 'Count' is gone from app 'app', and it has state of {LINES} keys" in refused.stderr
    assert "--drop-node Count" in refused.stderr
    assert "name='Count' on 'Counter'" in refused.stderr
    assert grape(*run, "--drop-node", "Counter").returncode == 2
    assert len(states(data, "Count")) == LINES
    assert grape(*run, "--drop-node", "Count").returncode == 0
    assert grape("state", "list", "--data", data).stdout == ""
    app.write_text(COUNT.format(name="Counter", options=", name='Count'"))
    assert grape(*run).returncode == 0
    assert grape("state", "list", "--data", data).stdout == ""


@pytest.mark.slow
def test_a_node_takes_its_state_to_another_pool(tmp_path: Path) -> None:
    app, text, data = write(tmp_path, COUNT.format(name="Count", options=""), lines=3000)
    run = ("run", app, "--data", data, "--feed", f"line={text}")
    assert grape(*run).returncode == 0
    code = COUNT.format(name="Count", options=", pool='slow'")
    app.write_text(code)
    # Killed at any moment, it goes on with the next start.
    for delay in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5):
        with subprocess.Popen([GRAPE, *map(str, run)], stderr=subprocess.DEVNULL) as killed:
            time.sleep(delay)
            killed.kill()
    with text.open("a") as file:
        file.write("0\n" * 5)
    done = grape(*run)
    assert done.returncode == 0, done.stderr
    assert states(data, "Count") == {str(i): 6 if i == 0 else 1 for i in range(3000)}
    app.write_text(COUNT.format(name="Count", options=""))
    assert grape(*run).returncode == 0
    assert states(data, "Count") == {str(i): 6 if i == 0 else 1 for i in range(3000)}


def test_a_node_does_not_change_its_pool_while_events_wait(tmp_path: Path) -> None:
    app, text, data = write(tmp_path, SLOW)
    waiting = interrupt(app, f"line={text}", data)
    app.write_text(SLOW.replace('emits="seen"', 'emits="seen", pool="slow"'))
    refused = grape("run", app, "--data", data)
    assert refused.returncode == 2
    assert f"slot 'line' -> work has moved to pool 'slow', and {waiting} events wait for it" in refused.stderr


@pytest.mark.parametrize("how", [[], ["--inline"]])
def test_order_is_kept_when_a_pair_begins_to_chain(tmp_path: Path, how: list[str]) -> None:
    """What the older code emitted into the log, behind the lines that it had not got to, is done before what these
    lines chain now."""
    code = """
import time
from grape import Node, Topology

class First(Node):
    def process(self, event):
        time.sleep({pause})
        print("got", event.data)
        for i in range(20):
            self.emit("step", [int(event.data), i], key=str(i))

class Second(Node):
    def process(self, event):
        self.emit("seen", event.data, key=event.key)

t = Topology("app")
t.add_slot("line", First(){emits})
t.add_slot("step", Second())
t.add_output("seen")
"""
    app, text, data = write(tmp_path, code.format(pause=0.01, emits=""), lines=60)
    out = tmp_path / "seen.jsonl"
    take = ("--take", f"seen={out}", "--partitions", "1")
    interrupt(app, f"line={text}", data, *take)
    app.write_text(code.format(pause=0, emits=', emits="step"'))
    done = grape("run", app, "--data", data, "--feed", f"line={text}", *take, *how)
    assert done.returncode == 0, done.stderr
    seen: dict[str, list[int]] = {}
    for row in rows(out.read_text()):
        seen.setdefault(row["key"], []).append(row["data"][0])
    assert Counter(map(len, seen.values())) == {60: 20}
    assert all(lines == sorted(lines) for lines in seen.values())


def test_a_node_that_moves_has_had_its_copies_of_what_waits_there(tmp_path: Path) -> None:
    """Each pool that listens has a copy of an event; a node that comes must not get one for the second time."""
    code = """
import time
from grape import Node, State, Topology

class Slow(Node):
    def process(self, event):
        time.sleep(0.01)
        print("got", event.data)

class Quick(Node):
    seen = State(int, default=0)
    def process(self, event):
        self.seen += 1
        print("quick", event.data)

t = Topology("app")
t.add_slot("line", Slow(), pool="slow")
t.add_slot("line", Quick(), pool="{pool}")
"""
    app, text, data = write(tmp_path, code.format(pool="main"))
    text.write_text("".join(f'{{"k": "{i % 5}"}}\n' for i in range(LINES)))
    feed = tmp_path / "lines.jsonl"
    text.rename(feed)
    assert interrupt(app, f"line={feed},key=k", data)
    moved = code.format(pool="slow") + "# of another size: Python keeps what it compiled by second and size\n"
    app.write_text(moved)
    refused = grape("run", app, "--data", data)
    assert refused.returncode == 2
    assert re.search(r"node Quick moves to pool 'slow', where \d+ events 'line' wait for others", refused.stderr)
    app.write_text(code.format(pool="main").replace("time.sleep(0.01)", "pass"))
    assert grape("run", app, "--data", data, "--feed", f"line={feed},key=k").returncode == 0
    app.write_text(moved)
    assert grape("run", app, "--data", data).returncode == 0
    assert states(data, "Quick") == {str(i): LINES // 5 for i in range(5)}


TWO = """
from grape import Node, State, Topology

class Count(Node):
    seen = State(int, default=0)
    def process(self, event):
        self.seen += 1

t = Topology("app")
t.add_slot("line", Count(), name="one"{options})
t.add_slot("line", Count(), name="two"{options})
"""


@pytest.mark.slow
def test_two_nodes_that_move_to_the_same_new_pool_keep_their_state(tmp_path: Path) -> None:
    app, text, data = tmp_path / "app.py", tmp_path / "lines.jsonl", tmp_path / "d"
    text.write_text("".join(json.dumps({"k": f"k{i % 9}"}) + "\n" for i in range(90)))
    feed = ["run", app, "--feed", f"line={text},key=k", "--data", data]
    for count, options in enumerate(("", ', pool="slow"', ""), 1):
        app.write_text(TWO.format(options=options))
        done = grape(*feed)
        assert done.returncode == 0, done.stderr
        with open(text, "a") as file:
            file.write("".join(json.dumps({"k": f"k{i % 9}"}) + "\n" for i in range(90)))
        for node in ("one", "two"):
            found = rows(grape("state", "list", "--data", data, "--node", node).stdout)
            assert {row["key"]: row["state"]["seen"] for row in found} == {f"k{i}": 10 * count for i in range(9)}


LATER = """
from grape import Context, Topology

t = Topology("later")
{pool}

@t.slot("line"{options})
def early(line: str, ctx: Context) -> None:
    ctx.emit("rest", line, delay={delay})

@t.slot("rest", emits="out")
def late(line: str) -> str:
    return line

t.add_output("out")
"""


def test_what_a_pool_emitted_with_a_delay_comes_though_the_pool_is_gone(tmp_path: Path) -> None:
    """Also if a start that moved it was killed in the middle: it comes once."""
    app, text, data, out = tmp_path / "app.py", tmp_path / "lines.txt", tmp_path / "d", tmp_path / "o.jsonl"
    text.write_text("".join(f"{i}\n" for i in range(3_000)))
    run = ["run", app, "--feed", f"line={text}", "--take", f"out={out}", "--data", data]
    app.write_text(LATER.format(pool='t.add_pool("slow")', options=', pool="slow"', delay=5))
    done = grape(*run, "--no-wait")
    assert done.returncode == 0, done.stderr
    app.write_text(LATER.format(pool="", options="", delay=5))
    for wait in (0.3, 0.35, 0.4):
        engine = subprocess.Popen([GRAPE, *map(str, run)], start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(wait)  # wherever it is: before, in the middle, behind it
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
    done = grape(*run)
    assert done.returncode == 0, done.stderr
    assert sorted(int(row["data"]) for row in rows(out.read_text())) == list(range(3_000))
