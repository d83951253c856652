"""Whatever a handler raises or does to its process is named as what it is, with its trace, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command import GRAPE, grape
from tests.integration.test_faults import dead, outputs, run

from grape.tools.directory import Directory

HEAD = """
import asyncio, os, signal, sys, threading
from grape import Context, Node, State, Topology
t = Topology("raised")
t.add_output("out")
"""

RAISES = (
    HEAD
    + """
class Panic(BaseException): pass
class NoText(ValueError):
    def __str__(self): raise KeyError("no text")
class OddText(ValueError):
    def __str__(self): return 7
class NoNotes(ValueError):
    @property
    def __notes__(self): raise RuntimeError("no notes")
class Meta(type):
    __name__ = property(lambda cls: 1 / 0)
class Named(Exception, metaclass=Meta): pass
def deep(n): return deep(n + 1)
def noted():
    error = ValueError("noted")
    error.add_note("caf\\udce9")
    return error

RAISED = {
    "panic": lambda: Panic("called unwrap on None"),
    "interrupt": lambda: KeyboardInterrupt(),
    "exit": lambda: GeneratorExit("gone"),
    "cancelled": lambda: asyncio.CancelledError("by itself"),
    "system": lambda: SystemExit(3),
    "surrogate": lambda: ValueError("bad file name " + os.fsdecode(b"caf\\xe9.txt")),
    "noted": noted,
    "no-text": lambda: NoText(),
    "odd-text": lambda: OddText(),
    "no-notes": lambda: NoNotes("the text"),
    "long": lambda: ValueError("x" * 20_000_000),
    "group": lambda: BaseExceptionGroup("several", [ValueError("one"), Panic("two")]),
    "class": lambda: type("Caf\\udce9", (Exception,), {})("text") if False else Named("text"),
    "memory": lambda: MemoryError(),
    "stop": lambda: StopIteration(5),
}
def bad(what):
    if what == "deep":
        deep(0)
    if what in RAISED:
        raise RAISED[what]()
    return what
"""
)

SHAPES = {
    "function": "@t.slot('line', emits='out', retries=0)\ndef work(line: str) -> str:\n    return bad(line)\n",
    "node": (
        "class Work(Node):\n    def process(self, event):\n        self.emit('out', bad(event.data))\n"
        "t.add_slot('line', Work(), retries=0)\n"
    ),
    "state": (
        "class Work(Node):\n    n = State(int, default=0)\n    def process(self, event):\n"
        "        self.n += 1\n        bad(event.data)\n        self.emit('out', event.data)\n"
        "t.add_slot('line', Work(), retries=0)\n"
    ),
    "generator": "@t.slot('line', emits='out', retries=0)\ndef work(line: str):\n    yield bad(line)\n",
    "async": (
        "@t.slot('line', emits='out', retries=0)\nasync def work(line: str) -> str:\n"
        "    await asyncio.sleep(0)\n    return bad(line)\n"
    ),
    "task": (
        "async def inner(line):\n    return bad(line)\n"
        "@t.slot('line', emits='out', retries=0)\nasync def work(line: str) -> str:\n"
        "    return await asyncio.create_task(inner(line))\n"
    ),
    "batch": (
        "@t.slot('line', emits='out', retries=0, batch=1000)\ndef work(lines: list[str]) -> list[object]:\n"
        "    out = []\n    for line in lines:\n        try:\n            out.append(bad(line))\n"
        "        except BaseException as e:\n            out.append(e)\n    return out\n"
    ),
}

KINDS = {
    "panic": "Panic",
    "interrupt": "KeyboardInterrupt",
    "exit": "GeneratorExit",
    "cancelled": "CancelledError",
    "system": "SystemExit",
    "surrogate": "ValueError",
    "noted": "ValueError",
    "no-text": "NoText",
    "odd-text": "OddText",
    "no-notes": "NoNotes",
    "long": "ValueError",
    "group": "BaseExceptionGroup",
    "class": "Named",
    "memory": "MemoryError",
    "deep": "RecursionError",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_all_that_a_handler_raises_is_that_events_failure(tmp_path: Path, shape: str) -> None:
    kinds = {**KINDS, "stop": "StopIteration"}
    if shape in ("generator", "async", "task"):
        kinds["stop"] = "RuntimeError"  # so Python has it
    keyed = [json.dumps({"k": f"k{i}", "line": line}) for i, line in enumerate(["a", *kinds, "b"])]
    (tmp_path / "in.jsonl").write_text("\n".join(keyed) + "\n")
    code = RAISES + SHAPES[shape].replace("event.data", "event.data['line']").replace("(line: str)", "(data: dict)")
    code = code.replace("bad(line)", "bad(data['line'])" if shape not in ("task", "batch") else "bad(line['line'])")
    code = code.replace("inner(line))", "inner(data))").replace("list[str]", "list[dict]")
    (tmp_path / "app.py").write_text(code)
    command = ("run", "app.py", "--feed", "line=in.jsonl,key=k", "--take", "out=out.jsonl", "--data", "data")
    done = grape(*command, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "is replaced" not in done.stderr
    letters = {letter["key"]: letter for letter in dead(tmp_path)}
    assert {letter["attempts"] for letter in letters.values()} == {1}
    assert [letters[f"k{i + 1}"]["kind"] for i in range(len(kinds))] == list(kinds.values())
    assert sorted(outputs(tmp_path / "out.jsonl")) == ["a", "b"]
    for shown in traces_of(tmp_path):
        assert len(shown) < 20_000
        assert "app.py" in shown or "StopIteration: raised by" in shown
        assert "grape/worker" not in shown


def traces_of(tmp_path: Path) -> list[str]:
    with Directory.open(str(tmp_path / "data")) as directory:
        return [directory.text(letter) for letter in directory.letters(directory.app(None))]


def test_retries_are_honoured_whatever_is_raised(tmp_path: Path) -> None:
    code = RAISES + (
        "@t.slot('line', emits='out', retries=2, backoff=0.01)\n"
        "def work(line: str, context: Context) -> None:\n    context.emit('out', 'undone')\n    bad(line)\n"
    )
    done = run(tmp_path, code, ["panic", "surrogate"])
    assert done.returncode == 1, done.stderr
    assert [letter["attempts"] for letter in dead(tmp_path)] == [3, 3]
    assert "is replaced" not in done.stderr


def test_a_stop_iteration_among_many_loses_nothing(tmp_path: Path) -> None:
    """`map` takes one for its end."""
    code = RAISES + "@t.slot('line', emits='out', retries=0)\ndef work(line: str) -> str:\n    return bad(line)\n"
    lines = [str(i) for i in range(5000)] + ["stop"] + [str(i) for i in range(5000, 5100)]
    done = run(tmp_path, code, lines, "--take", "out=out.jsonl")
    assert done.returncode == 1, done.stderr
    (letter,) = dead(tmp_path)
    assert letter["kind"] == "StopIteration"
    assert sorted(outputs(tmp_path / "out.jsonl"), key=int) == [str(i) for i in range(5100)]


@pytest.mark.parametrize("what", ["Panic('in setup')", "ValueError('caf\\udce9')", "SystemExit(0)"])
def test_setup_may_raise_anything(tmp_path: Path, what: str) -> None:
    code = RAISES + (
        f"class Work(Node):\n    def setup(self):\n        raise {what}\n    def process(self, event):\n        pass\n"
        "t.add_slot('line', Work())\n"
    )
    done = run(tmp_path, code, ["a"])
    assert done.returncode == 2, done.stderr
    assert what.partition("(")[0] in done.stderr
    assert "in setup" in done.stderr


def test_loading_may_raise_anything(tmp_path: Path) -> None:
    for number, what in enumerate(
        ["Panic('at load')", "GeneratorExit('caf\\udce9')", "KeyboardInterrupt()", "NoText()"]
    ):
        (tmp_path / str(number)).mkdir()
        done = run(tmp_path / str(number), RAISES + f"raise {what}\n", ["a"])
        assert done.returncode == 2, done.stderr
        assert what.partition("(")[0] in done.stderr
        assert "app.py" in done.stderr


def test_teardown_that_raises_is_said_and_keeps_no_other_from_its(tmp_path: Path) -> None:
    code = RAISES + (
        "class One(Node):\n    def process(self, event): pass\n    def teardown(self): raise Panic('at the end')\n"
        "class Two(Node):\n    def process(self, event): pass\n    def teardown(self): print('two is done')\n"
        "t.add_slot('line', One())\nt.add_slot('line', Two())\n"
    )
    done = run(tmp_path, code, ["a"], "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "Panic: at the end" in done.stderr
    assert "two is done" in done.stderr


def lines_of(done: subprocess.CompletedProcess[str], what: str) -> list[str]:
    return [line for line in done.stderr.splitlines() if what in line]


BESIDE = (
    HEAD
    + """
import concurrent.futures, gc, multiprocessing, subprocess
async def boom(error):
    await asyncio.sleep(0.01)
    raise error

class Bad:
    def __del__(self): raise ValueError("a finalizer fails")

def in_thread(): raise ValueError("a thread fails")

@t.slot("line", emits="out", retries=0)
async def work(line: str) -> str:
    loop = asyncio.get_running_loop()
    if line == "task": asyncio.create_task(boom(ValueError("a task fails")))
    if line == "exit": asyncio.create_task(boom(SystemExit(4)))
    if line == "future": loop.create_future().set_exception(ValueError("a future fails"))
    if line == "soon": loop.call_soon(boom_now)
    if line == "soon-exit": loop.call_soon(sys.exit, 5)
    if line == "thread": threading.Thread(target=in_thread, name="mine").start()
    if line == "finalizer": Bad()
    if line == "cancel-all":
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task(): task.cancel()
    print("starts", line)
    await asyncio.sleep(0.2)
    return line

def boom_now(): raise ValueError("a callback fails")
"""
)


def test_what_fails_beside_the_events_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    lines = ["task", "exit", "future", "soon", "soon-exit", "thread", "finalizer", "a", "b"]
    done = run(tmp_path, BESIDE, lines, "--take", "out=out.jsonl", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert sorted(outputs(tmp_path / "out.jsonl")) == sorted(lines)
    assert "is replaced" not in done.stderr
    for line in lines:
        assert len(lines_of(done, f"] starts {line}\n"[:-1])) >= 1
    for what in ("task", "future", "callback", "thread", "finalizer"):
        (said,) = lines_of(done, f"ValueError: a {what} fails")
        assert said.startswith("[work main.0] ERROR") or what == "thread"
    assert lines_of(done, "SystemExit: 4")
    assert lines_of(done, "SystemExit: 5")


def test_a_handler_may_cancel_every_task_that_it_finds(tmp_path: Path) -> None:
    done = run(tmp_path, BESIDE, ["a", "cancel-all", "b"], "--take", "out=out.jsonl", "--workers", 1)
    assert "is replaced" not in done.stderr
    letters = dead(tmp_path)
    assert {letter["kind"] for letter in letters} <= {"CancelledError"}
    taken = outputs(tmp_path / "out.jsonl")
    assert "cancel-all" in taken
    assert len(taken) + len(letters) == 3


FORKS = (
    HEAD
    + """
import multiprocessing, subprocess
FORK = multiprocessing.get_context("fork")

def child(): sys.exit(7)

def fork(line):
    if line == "plain" and os.fork() == 0:
        return "child"
    if line == "raises" and os.fork() == 0:
        raise ValueError("the child fails")
    if line == "exits" and os.fork() == 0:
        sys.exit(3)
    if line == "thread":
        thread = threading.Thread(target=os.fork)
        thread.start()
        thread.join()
    if line == "multi":
        process = FORK.Process(target=child)
        process.start()
        process.join()
        return f"multi {process.exitcode}"
    if line == "waits":
        pid = os.fork()
        if not pid:
            return "child"
        return f"waits {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"
    if line == "codes":
        pid = os.fork()
        if not pid:
            sys.exit(9)
        return f"codes {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"
    if line == "sub":
        echo = subprocess.run(["echo", "hello"], capture_output=True, text=True, preexec_fn=os.getpid)
        return "sub " + echo.stdout.strip()
    return line
"""
)

FORKED = ["1", "plain", "2", "raises", "exits", "thread", "multi", "waits", "codes", "sub", "3", "4"]
FORKED_OUT = sorted(
    ["1", "plain", "2", "raises", "exits", "thread", "multi 7", "waits 0", "codes 9", "sub hello", "3", "4"]
)


@pytest.mark.parametrize("shape", ["function", "node", "state", "generator", "async", "batch"])
def test_a_forked_child_does_not_speak_for_its_parent(tmp_path: Path, shape: str) -> None:
    code = FORKS + SHAPES[shape].replace("bad(event.data)", "fork(event.data)").replace("bad(line)", "fork(line)")
    code = code.replace("except BaseException as e:", "except ZeroDivisionError as e:")
    if shape == "state":
        keyed = "".join(json.dumps({"k": "k", "line": line}) + "\n" for line in FORKED)
        (tmp_path / "in.jsonl").write_text(keyed)
        code = code.replace("        fork(event.data)\n", "        got = fork(event.data['line'])\n").replace(
            "self.emit('out', event.data)", "self.emit('out', got)"
        )
        (tmp_path / "app.py").write_text(code)
        feed = ["--feed", "line=in.jsonl,key=k"]
    else:
        (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in FORKED))
        (tmp_path / "app.py").write_text(code)
        feed = ["--feed", "line=in.txt"]
    command = [GRAPE, "run", "app.py", *feed, "--take", "out=out.jsonl", "--data", "data", "--workers", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(outputs(tmp_path / "out.jsonl")) == FORKED_OUT
    assert "broke the protocol" not in done.stderr
    said = len(lines_of(done, "ValueError: the child fails"))
    assert said == 1 or (shape == "batch" and said)  # there the handler goes on to the next line in the child


def test_the_first_failure_of_a_kind_is_shown_at_once(tmp_path: Path) -> None:
    code = HEAD + (
        "@t.slot('line', emits='out', retries=1, backoff=0.01)\ndef work(line: str) -> str:\n"
        "    if line == 'other':\n        raise KeyError('\\x1b[31m')\n    raise ValueError('bad ' + line)\n"
    )
    done = run(tmp_path, code, [*map(str, range(20)), "other"], "--workers", 1)
    assert done.returncode == 1
    head = lines_of(done, "failed at event")[0]
    assert "next attempt in 0.0 s" in head
    assert head.startswith("[work main.0] ERROR 'line' failed at event ")
    assert len(lines_of(done, "ValueError: bad")) == 1
    assert lines_of(done, "more like this: ValueError in 'work' (")
    assert "\x1b" not in done.stderr
    assert "    raise ValueError('bad ' + line)" in done.stderr


def test_the_first_failure_is_shown_from_python_too(tmp_path: Path) -> None:
    code = HEAD + (
        "import grape\n@t.slot('line', retries=0)\ndef work(data: dict) -> None:\n"
        "    raise ValueError(os.environ['OF_MINE'])\ndef read(at):\n    return ([{}], 1) if not at else ([], at)\n"
        "if __name__ == '__main__':\n    grape.run(t, feed={'line': read}, workers=1)\n"
    )
    (tmp_path / "app.py").write_text(code)
    env = {**os.environ, "OF_MINE": "1"}
    command = [sys.executable, "app.py"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env)
    assert "[work main.0] ERROR KeyError: 'OF_MINE'" in done.stderr
    assert "pass it on with --env OF_MINE" in done.stderr
