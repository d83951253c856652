"""`grape run` as a user runs it: real files, real processes, real signals."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.command import GRAPE, grape

ROOT = Path(__file__).parents[2]
WORDCOUNT = str(ROOT / "examples" / "01-wordcount" / "wordcount.py")


def rows(path: Path) -> list[dict[str, Any]]:
    return json_lines(path.read_text())


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of the grape text {i % 7}\n" for i in range(3000)))
    return path


def write_app(tmp_path: Path, body: str) -> Path:
    app = tmp_path / "app.py"
    app.write_text(body)
    return app


def test_wordcount_counts_every_word_once(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "total.jsonl"
    command = ["run", WORDCOUNT, "--feed", f"line={text}", "--data", tmp_path / "d", "--take", f"total={out}"]
    done = grape(*command, "--summary", "json")
    assert done.returncode == 0, done.stderr
    want = collections.Counter(text.read_text().split())
    summary = json.loads(done.stdout)
    assert summary["in"] == {"line": 3000}
    assert summary["slots"]["word>Count"] == sum(want.values())
    last = {row["key"]: row["data"]["count"] for row in rows(out)}
    assert last == want
    assert len({row["id"] for row in rows(out)}) == sum(want.values())
    again = grape(*command)
    assert again.returncode == 0
    assert "nothing new" in again.stderr
    assert len(rows(out)) == sum(want.values())


def test_a_grown_file_goes_on(tmp_path: Path, text: Path) -> None:
    command = ["run", WORDCOUNT, "--feed", f"line={text}", "--data", tmp_path / "d", "--summary", "json"]
    assert grape(*command).returncode == 0
    with text.open("a") as f:
        f.write("grape again\n")
    done = grape(*command)
    assert json.loads(done.stdout)["slots"] == {"line>Split": 1, "word>Count": 2}
    text.write_text("another text\n")
    refused = grape(*command)
    assert refused.returncode == 2
    assert str(text) in refused.stderr


def test_a_failing_event_fails_alone_and_becomes_a_dead_letter(tmp_path: Path) -> None:
    """F36"""
    app = write_app(
        tmp_path,
        """
from msgspec import Struct
from grape import Topology

t = Topology("orders")
t.add_output("accepted")

class Order(Struct):
    id: str
    amount: float

@t.slot("order", emits="accepted", retries=2, backoff=0.01)
def check(order: Order) -> dict | None:
    if order.amount < 0:
        raise ValueError("negative")
    return {"id": order.id} if order.amount < 1000 else None
""",
    )
    orders = tmp_path / "orders.jsonl"
    orders.write_text(
        '{"id": "a", "amount": 1}\n{"id": "b", "amount": -1}\n{"id": "c", "amount": "x"}\n{"id": "d"\n'
        '{"id": "e", "amount": 5000}\n{"id": "f", "amount": 2}\n'
    )
    done = grape(
        "run",
        app,
        "--feed",
        f"order={orders},key=id",
        "--take",
        "accepted",
        "--data",
        tmp_path / "d",
        "--summary",
        "json",
    )
    assert done.returncode == 1
    *accepted, summary = map(json.loads, done.stdout.splitlines())
    assert sorted(row["key"] for row in accepted) == ["a", "f"]
    assert summary["dead"] == 3
    assert summary["failures"] == {"order>check": 6}
    assert "grape dead list" in done.stderr


def test_later_events_of_a_failed_key_wait_and_keep_their_order(tmp_path: Path) -> None:
    app = write_app(
        tmp_path,
        """
from grape import Node, State, Topology

class Log(Node):
    seen = State(list[int])
    def process(self, event):
        if event.data["n"] == 1 and event.attempt < 3:
            raise RuntimeError("not yet")
        self.seen.append(event.data["n"])
        self.emit("out", list(self.seen))

t = Topology("order")
t.add_slot("in", Log(), backoff=0.02)
t.add_output("out")
""",
    )
    events = tmp_path / "in.jsonl"
    events.write_text("".join(f'{{"k": "{k}", "n": {n}}}\n' for n in range(5) for k in "ab"))
    done = grape("run", app, "--feed", f"in={events},key=k", "--take", "out")
    assert done.returncode == 0, done.stderr
    longest = {row["key"]: row["data"] for row in map(json.loads, done.stdout.splitlines())}
    assert longest == {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3, 4]}


def test_poison_that_kills_the_worker_is_named_and_dies(tmp_path: Path) -> None:
    """F37, F58: a death is pinned on its event, which becomes a dead letter after three; all others are processed."""
    app = write_app(
        tmp_path,
        """
import os, signal
from grape import Node, State, Topology

class Work(Node):
    n = State(int, default=0)
    def process(self, event):
        if event.data == "poison":
            os.kill(os.getpid(), signal.SIGSEGV)
        self.n += 1
        self.emit("out", event.data, key=None)

t = Topology("poison")
t.add_slot("line", lambda line: line, emits="work", name="enter")
t.add_slot("work", Work(), backoff=0.01, retries=0)
t.add_output("out")
""".replace(
            't.add_slot("line", lambda line: line, emits="work", name="enter")',
            """
class Enter(Node):
    def process(self, event):
        self.emit("work", event.data, key=event.data)
t.add_slot("line", Enter())""",
        ),
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("".join("poison\n" if i == 150 else f"l{i}\n" for i in range(300)))
    out = tmp_path / "out.jsonl"
    done = grape(
        "run", app, "--feed", f"line={lines}", "--take", f"out={out}", "--data", tmp_path / "d", "--summary", "json"
    )
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert summary["dead"] == 1
    assert sorted(row["data"] for row in rows(out)) == sorted(f"l{i}" for i in range(300) if i != 150)
    assert "SIGSEGV" in done.stderr
    assert not list(tmp_path.glob("core*"))


def test_a_handler_over_its_timeout_is_ended_and_dead(tmp_path: Path) -> None:
    """F48"""
    app = write_app(
        tmp_path,
        """
from grape import Topology

t = Topology("stuck")
t.add_output("out")

@t.slot("line", emits="out", timeout=0.3, retries=1, backoff=0.01)
def work(line: str) -> str:
    while line == "spin":
        pass
    return line
""",
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("a\nspin\nb\n")
    out = tmp_path / "out.jsonl"
    done = grape(
        "run", app, "--feed", f"line={lines}", "--take", f"out={out}", "--data", tmp_path / "d", "--summary", "json"
    )
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert summary["failures"] == {"line>work": 2}
    assert sorted(row["data"] for row in rows(out)) == ["a", "b"]
    assert "over its timeout of 0.3 s" in done.stderr
    (letter,) = json_lines(grape("dead", "list", "--json", "--data", tmp_path / "d").stdout)
    shown = json.loads(grape("dead", "show", letter["id"], "--json", "--data", tmp_path / "d").stdout)
    assert letter["text"].endswith("(timeout= on its slot)")
    assert f'File "{app}", line 9, in work' in shown["traceback"]
    assert "grape/worker" not in shown["traceback"]


def test_a_topology_that_cannot_be_loaded_is_the_users_line(tmp_path: Path) -> None:
    app = write_app(tmp_path, "from grape import Topology\nt = Topology('x')\n1 / 0\n")
    done = grape("run", app)
    assert done.returncode == 2
    assert f"{app}" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "grape/worker" not in done.stderr


def test_unknown_names_are_refused_with_the_near_miss(tmp_path: Path, text: Path) -> None:
    done = grape("run", WORDCOUNT, "--feed", f"lime={text}")
    assert done.returncode == 2
    assert "did you mean 'line'" in done.stderr
    done = grape("run", WORDCOUNT, "--feed", f"line={text}", "--take", "totale")
    assert done.returncode == 2
    assert "did you mean 'total'" in done.stderr


def test_another_number_of_partitions_is_refused(tmp_path: Path, text: Path) -> None:
    """F94"""
    command = ["run", WORDCOUNT, "--feed", f"line={text}", "--data", tmp_path / "d"]
    assert grape(*command, "--partitions", 4).returncode == 0
    done = grape(*command, "--partitions", 8)
    assert done.returncode == 2
    assert "4" in done.stderr
    assert "8" in done.stderr
    assert grape(*command).returncode == 0


def test_a_second_engine_is_refused_with_the_pid(tmp_path: Path) -> None:
    """F28"""
    app = write_app(
        tmp_path,
        "from grape import Topology\nt = Topology('w')\n"
        "@t.slot('line')\ndef work(line: str) -> None:\n    print('got', line)\n",
    )
    command = [GRAPE, "run", str(app), "--feed", "line=-", "--data", str(tmp_path / "d")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        assert first.stdin is not None
        assert first.stderr is not None
        first.stdin.write(b"x\n" * 10)  # it stays open: the first engine goes on waiting for more
        first.stdin.flush()
        for line in first.stderr:
            if b"got x" in line:
                break
        second = grape("run", app, "--data", tmp_path / "d")
        (engine,) = (child.pid for child in psutil.Process(first.pid).children())
        first.kill()
    assert second.returncode == 2
    assert f"in use by process {engine}" in second.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_while_the_app_is_being_loaded_ends_at_once(tmp_path: Path, number: int, code: int) -> None:
    started = tmp_path / "started"
    app = write_app(tmp_path, f"import time\nopen({str(started)!r}, 'w').close()\ntime.sleep(50)\n")
    (tmp_path / "lines.txt").write_text("1\n")
    command = [GRAPE, "run", str(app), "--feed", f"line={tmp_path / 'lines.txt'}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as engine:
        while not started.exists():
            assert engine.poll() is None
            time.sleep(0.01)
        engine.send_signal(number)
        _, said = engine.communicate(timeout=20)
    assert engine.returncode == code
    assert "stopped before the app was loaded" in said
    assert "Traceback" not in said


def test_ctrl_c_commits_what_runs_and_says_how_to_resume(tmp_path: Path) -> None:
    """F15"""
    app = write_app(
        tmp_path,
        """
import time
from grape import Node, State, Topology

class Slow(Node):
    n = State(int, default=0)
    def process(self, event):
        print("at", event.data)
        time.sleep(0.005)
        self.emit("out", event.data, key=None)

class Enter(Node):
    def process(self, event):
        self.emit("work", event.data, key=event.data)

t = Topology("slow")
t.add_slot("line", Enter())
t.add_slot("work", Slow())
t.add_output("out")
""",
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{i}\n" for i in range(1500)))
    out = tmp_path / "out.jsonl"
    command = [GRAPE, "run", str(app), "--feed", f"line={lines}", "--data", str(tmp_path / "d"), "--take", f"out={out}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if "at " in line:
                break
        workers = psutil.Process(first.pid).children()
        first.send_signal(signal.SIGINT)
        said = first.stderr.read()
    assert first.returncode == 130
    assert "Resume" in said
    assert not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers)
    done = grape(*command[1:])
    assert done.returncode == 0, done.stderr
    assert sorted(int(row["data"]) for row in rows(out)) == list(range(1500))


def test_workers_die_with_the_engine(tmp_path: Path) -> None:
    """F16"""
    app = write_app(
        tmp_path,
        "import time\nfrom grape import Topology\nt = Topology('w')\n"
        "@t.slot('line')\ndef work(line: str) -> None:\n    print('working', flush=True)\n    time.sleep(60)\n",
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("a\n")
    command = [GRAPE, "run", str(app), "--feed", f"line={lines}", "--data", str(tmp_path / "d")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as engine:
        assert engine.stderr is not None
        for line in engine.stderr:
            if "working" in line:
                break
        workers = psutil.Process(engine.pid).children()
        assert workers
        os.kill(engine.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_an_emit_loop_ends_at_max_hops(tmp_path: Path) -> None:
    """F38; they are 10,000, which is ten thousand commits."""
    app = write_app(
        tmp_path,
        "import grape\nfrom grape.model.topology import Limits\nt = grape.Topology('loop')\n"
        "@t.slot('ping', emits='pong')\ndef a(x: str) -> str:\n    return x\n"
        "@t.slot('pong', emits='ping')\ndef b(x: str) -> str:\n    return x\n"
        "if __name__ == '__main__':\n"
        "    limits = Limits(max_hops=300)\n"
        "    summary = grape.run(t, feed={'ping': 'lines.txt'}, data='d', limits=limits)\n"
        "    print(summary.dead, sum(summary.slots.values()))\n",
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("a\n")
    done = grape("run", app, "--feed", f"ping={lines}", "--data", tmp_path / "d", "--summary", "json", "--set", "x=1")
    assert done.returncode == 2  # a module-level topology takes no config
    done = subprocess.run([sys.executable, app], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 301\n"), done.stderr
    (letter,) = json_lines(grape("dead", "list", "--data", tmp_path / "d").stdout)
    assert "over 300 hops away from the outside (max-hops)" in letter["text"]


def test_inline_has_no_levels_of_workers(text: Path) -> None:
    done = grape("run", WORDCOUNT, "--feed", f"line={text}", "--inline", "--log-level", "debug")
    assert done.returncode == 2
    assert "--log-level is of workers, and --inline has none: leave one of them out" in done.stderr


def test_inline_gives_the_same(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "total.jsonl"
    done = grape("run", WORDCOUNT, "--feed", f"line={text}", "--inline", "--take", f"total={out}")
    assert done.returncode == 0, done.stderr
    assert {r["key"]: r["data"]["count"] for r in rows(out)} == collections.Counter(text.read_text().split())


def test_replies_are_correlated_with_the_input(tmp_path: Path) -> None:
    app = write_app(
        tmp_path,
        """
from grape import Node, Topology

class A(Node):
    def process(self, event):
        self.reply("part", final=False)
        self.emit("b", event.data, key=event.data)

class B(Node):
    def process(self, event):
        self.reply({"answer": event.data})
        self.reply("too late")

t = Topology("r")
t.add_slot("a", A())
t.add_slot("b", B())
""",
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("x\ny\nz\n")
    out = tmp_path / "replies.jsonl"
    done = grape("run", app, "--feed", f"a={lines}", "--replies", out)
    assert done.returncode == 0, done.stderr
    finals = {row["id"].partition("-")[2]: row["data"]["answer"] for row in rows(out) if row["final"]}
    assert finals == {f"a={lines}:{n}": answer for n, answer in enumerate("xyz", 1)}
    assert len([row for row in rows(out) if not row["final"]]) == 3


ASYNC = """
import asyncio
from grape import Context, Node, State, Topology

class Fetch(Node):
    seen = State(list[int])
    async def process(self, event):
        self.seen.append(event.data["n"])
        await asyncio.sleep(0.02)
        if event.data["n"] == 2 and event.attempt == 1:
            raise RuntimeError("once")
        self.emit("got", list(self.seen))

t = Topology("fetch")
t.add_slot("in", Fetch(), backoff=0.01, concurrency=50)

@t.slot("got", emits="out")
async def pass_on(value: list[int], ctx: Context, n: State[int] = State(int, default=0)) -> dict:
    n.value += 1
    return {"seen": value, "n": n.value}

t.add_output("out")
"""


@pytest.mark.parametrize("how", [[], ["--inline"]])
def test_async_slots_run_many_keys_at_once_and_each_key_in_order(tmp_path: Path, how: list[str]) -> None:
    app = write_app(tmp_path, ASYNC)
    events = tmp_path / "in.jsonl"
    events.write_text("".join(f'{{"k": "k{k}", "n": {n}}}\n' for n in range(5) for k in range(40)))
    out = tmp_path / "out.jsonl"
    done = grape("run", app, "--feed", f"in={events},key=k", "--take", f"out={out}", "--workers", 1, *how)
    assert done.returncode == 0, done.stderr
    got: dict[str, list[Any]] = {}
    for row in rows(out):
        got.setdefault(row["key"], []).append(row["data"])
    assert set(got) == {f"k{k}" for k in range(40)}
    for values in got.values():
        assert [v["seen"] for v in values] == [list(range(n + 1)) for n in range(5)]
        assert [v["n"] for v in values] == [1, 2, 3, 4, 5]


def test_an_async_event_may_stay_far_behind_the_others(tmp_path: Path) -> None:
    """What is finished behind it is committed while it runs, however much: more than an integer's 64 bits can mark."""
    app = write_app(
        tmp_path,
        "import asyncio\nfrom grape import Topology\n"
        "t = Topology('far')\nt.add_output('seen')\nothers = asyncio.Event()\nleft = 399\n"
        "@t.slot('line', emits='seen', concurrency=400)\n"
        "async def work(line: str) -> str:\n"
        "    global left\n"
        "    if line == '0':\n"
        "        await others.wait()\n"
        "        await asyncio.sleep(0.2)  # so that the others are handed in while this one runs\n"
        "    else:\n"
        "        left -= 1\n"
        "        if not left:\n"
        "            others.set()\n"
        "    return line\n",
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{i}\n" for i in range(400)))
    out = tmp_path / "seen.jsonl"
    done = grape("run", app, "--feed", f"line={lines}", "--take", f"seen={out}", "--partitions", 1, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "replaced" not in done.stderr
    assert sorted(int(row["data"]) for row in rows(out)) == list(range(400))
    assert rows(out)[-1]["data"] == "0"


def test_an_async_handler_over_its_timeout_is_cancelled(tmp_path: Path) -> None:
    app = write_app(
        tmp_path,
        """
import asyncio
from grape import Topology

t = Topology("slow")
t.add_output("out")

@t.slot("line", emits="out", timeout=0.2, retries=0)
async def work(line: str) -> str:
    if line == "hang":
        await asyncio.sleep(60)
    return line
""",
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("a\nhang\nb\n")
    out = tmp_path / "out.jsonl"
    done = grape("run", app, "--feed", f"line={lines}", "--take", f"out={out}", "--data", tmp_path / "d")
    assert done.returncode == 1, done.stderr
    assert sorted(row["data"] for row in rows(out)) == ["a", "b"]


@pytest.mark.slow
def test_reload_goes_on_with_the_new_code(tmp_path: Path) -> None:
    body = 'from grape import Topology\nt = Topology("edit")\nt.add_output("out")\n@t.slot("line", emits="out")\n'
    app = write_app(tmp_path, body + "def work(data: str) -> str:\n    return data + ' old'\n")
    lines, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    lines.write_text("one\n")
    command = [GRAPE, "run", str(app), "--feed", f"line={lines}", "--take", f"out={out}", "--reload"]
    process = subprocess.Popen([*command, "--data", str(tmp_path / "data")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None

    def said(text: str) -> None:
        assert any(text in line for line in iter(process.stderr.readline, "")), text  # type: ignore[union-attr]

    try:
        said("ended with exit code 0")
        app.write_text("def broken(:\n")
        said("invalid syntax")
        said("ended with exit code 2")
        with lines.open("a") as file:
            file.write("two\n")
        app.write_text(body + "def work(data: str) -> str:\n    return data + ' new'\n")
        said("ended with exit code 0")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert [row["data"] for row in rows(out)] == ["one old", "two new"]
