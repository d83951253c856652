"""Slots of every shape, in workers: what is called, and with which key its results go on."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import grape
from tests.integration.test_faults import dead

APP = """
import functools
from grape import Node, State, Topology

t = Topology("slots")
t.add_output("out")

def passing(inner):
    @functools.wraps(inner)
    def wrapper(*arguments):
        return inner(*arguments)
    return wrapper

class Calls:
    def __init__(self, name): self.name = name
    def method(self, data: dict): return {"by": "method", **data}
    def __call__(self, data: dict): return {"by": "call", **data}

class Waits:
    async def __call__(self, data: dict): return {"by": "await", **data}

async def coroutine(data: dict): return {"by": "coroutine", **data}
def some(data: dict):
    yield {"by": "yield", **data}
def pair(by, data: dict): return {"by": by, **data}
def many(lines: list[dict]): return [{"by": "batch", **data} for data in lines]
class Returns(Node):
    def process(self, event): return {"by": "node", **event.data}
class Keeps(Node):
    n = State(int, default=0)
    def process(self, event):
        self.n += 1
        return {"by": "state", **event.data}

one = Calls("c")
t.add_slot("in", one.method, emits="got", key="customer")
t.add_slot("in", one, emits="got", key=lambda data: data["customer"])
t.add_slot("in", Waits(), emits="got", key="customer")
t.add_slot("in", passing(coroutine), emits="got", key="customer")
t.add_slot("in", passing(some), emits="got", key="customer")
t.add_slot("in", functools.partial(pair, "partial"), emits="got", key="customer")
t.add_slot("in", many, emits="got", key="customer", batch=10)
t.add_slot("in", Returns(), emits="got", key="customer")
t.add_slot("in", Keeps(), emits="got", key="customer")

class Count(Node):
    n = State(int, default=0)
    def process(self, event):
        self.n += 1
        if self.n == 18: self.emit("out", event.key)
t.add_slot("got", Count())
"""

WRONG = """
from grape import Topology
t = Topology("slots")
t.add_output("out")
@t.slot("in", emits="out", key="customer", retries=0)
def work(data: dict): return {k: v for k, v in data.items() if k != "id"}
"""


def run(tmp_path: Path, code: str, lines: list[dict[str, object]]) -> list[dict[str, object]]:
    (tmp_path / "app.py").write_text(code)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("run", "app.py", "--feed", "in=in.jsonl,key=id", "--take", "out=out.jsonl", "--data", "data")
    done = grape(*command, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    taken = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    return sorted(taken, key=lambda event: str(event["key"]))


def test_every_callable_is_called_and_its_results_have_their_own_keys(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"id": f"o{i}", "customer": "ann" if i % 2 else "bob"} for i in range(4)]
    taken = run(tmp_path, APP, lines)
    assert [(event["key"], event["data"]) for event in taken] == [("ann", "ann"), ("bob", "bob")]


def test_a_result_without_its_key_is_that_events_failure(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"id": "a", "customer": "ann"}, {"id": "b", "customer": None}, {"id": "c"}, {"id": "d", "customer": 5},
        {"id": "e", "customer": ""},
    ]  # fmt: skip
    taken = run(tmp_path, WRONG, lines)
    assert sorted((event["key"] for event in taken), key=str) == [None, "ann"]
    letters = {letter["key"]: letter["text"] for letter in dead(tmp_path)}
    assert set(letters) == {"c", "d", "e"}
    assert "key='customer' of 'work': the dict that it returned has no such field" in letters["c"]
    assert "a key is text, not int: 5" in letters["d"]
