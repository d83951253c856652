"""Authors get help from mypy: right topologies pass in strict mode, wrong ones are reported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = Path(__file__).parent.parent / "typing" / "authoring_ok.py"

WRONG = """
import asyncio
from datetime import timedelta
from fractions import Fraction

import grape
from grape import Context, Event, Node, State, Topology
from pydantic import BaseModel

class Order(BaseModel):
    id: str

class Annotated(Node):
    count: State[int] = State(int, default=0, ttl=60)
    name: State[str | None] = State(str)
    orders: State[list[Order]] = State(list[Order])
    last = State(Order)
    share = State(Fraction, default=Fraction(1))
    wrong: State[int] = State(str, default="")  # wrong

    def process(self, event: Event) -> None:
        self.count = 1
        self.count = "x"  # wrong
        self.count = None  # wrong
        self.name = None
        self.name = 5  # wrong
        self.orders = [Order(id="a")]
        self.orders = Order(id="a")  # wrong
        self.orders.append("a")  # wrong
        self.last = grape.convert(event.data, Order)
        self.last = grape.convert(event.data, Fraction)  # wrong
        self.last.id  # wrong
        self.share -= Fraction(1)
        self.share = 0.5  # wrong
        del self.count
        text: str = self.count  # wrong

def assigned(order: Order, seen: State[int] = State(int, default=0)) -> None:
    seen.value = 1
    seen.value = "x"  # wrong
    seen = 5  # wrong

def cents(value: Fraction) -> int:
    return int(value * 100)

grape.register(Fraction, encode=str, decode=Fraction)
grape.register(Order, encode=cents, decode=Fraction)  # wrong
grape.register(Fraction, encode=str)  # wrong

async def use(t: Topology) -> None:
    async with grape.aopen(t, workers=2, data=None) as engine:
        await engine.emit("x", 1, key="a")
        await engine.emit("x", 1, key=5)  # wrong
        engine.call("x").upper()  # wrong
        async for event in engine.outputs("y"):
            event.idd  # wrong
        async for reply in engine.call_stream("x"):
            reply.final.upper()  # wrong
    async with grape.AsyncClient("http://h", timeout=None) as remote:
        await remote.emit("a@x", 1, key="a", timeout=5)
        await remote.emit("a@x", 1, key=5)  # wrong
        async for reply in remote.call_stream("a@x"):
            reply.final.upper()  # wrong
        (await remote.app("a")).stat  # wrong
    with grape.Client() as client:
        client.emit("a@x", {"any": 1}, id="1")
        client.emit("a@x", timeout="1")  # wrong
        client.emit_many("a@x", [1, 2], key=str, timeout=None).upper()  # wrong
        for reply in client.call_stream("a@x", timeout=None):
            reply.dat  # wrong
    grape.Client(url=5)  # wrong
    grape.Client(tokn="x")  # wrong
    grape.aopen(t, worker=2)  # wrong
    grape.aopen(t, workers="2")  # wrong
    with grape.open(t) as running:
        running.call("x", timeout="1")  # wrong
        for reply in running.call_stream("x", timeout=None):
            reply.dat  # wrong

class Count(Node):
    seen = State(int, default=0)
    last = State(str)
    words = State(list[str])

    def process(self, event: Event) -> None:
        self.seen += "x"  # wrong
        self.last.upper()  # wrong
        self.words.append(1)  # wrong
        self.emit("total", key=5)  # wrong
        event.idd  # wrong
        self.seen = "x"  # wrong
        self.last = 5  # wrong
        self.words = [1]  # wrong
        self.last = None
        self.words = ["a"]

def count(word: str, context: Context, seen: State[int] = State(str, default="")) -> None:  # wrong
    seen.value += "x"  # wrong
    context.emit("x", delay="soon")  # wrong

t = Topology("orders")
t.add_slot("word", Count)
t.add_slot("word", Count(), retry=1)  # wrong
t.slot("word", on_fail="dead", retries="3")  # wrong
t.slot("word", on_fail="ignore")  # wrong
t.add_slot("word", 5)  # wrong
t.add_slot("word", Count(), emits="total", key=5)  # wrong
t.add_slot("word", Count(), emits="total", key="id")
State(int, defualt=0)  # wrong
Count(nmae="x")  # wrong
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def mypy(file: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cache), str(file)],
        capture_output=True,
        text=True,
        cwd=file.parent,
        env={**os.environ, "MYPY_FORCE_COLOR": "0"},
        check=False,
    )


def test_what_an_author_may_write_passes(cache: Path) -> None:
    done = mypy(RIGHT, cache)
    assert done.returncode == 0, done.stdout


def test_mistakes_are_reported_in_their_lines(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    reported = {int(line) for line in re.findall(r"wrong\.py:(\d+): error", mypy(file, cache).stdout)}
    assert reported == {number for number, line in enumerate(WRONG.split("\n"), 1) if line.endswith("# wrong")}
