"""Eager slots on real files: engines and workers are killed while events are neither accepted nor refused."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import grape
from grape.errors import GrapeError

APP = """
import asyncio
from grape import Node, State, Topology


class Count(Node):
    seen = State(int, default=0)

    def process(self, event):
        self.seen += 1
        self.reply(self.seen)


class Later(Count):
    async def process(self, event):
        await asyncio.sleep(0)
        Count.process(self, event)


t = Topology("eager", eager=True)
t.add_slot("add", Count())
t.add_slot("later", Later(), pool="later")
"""


def family(name: str) -> list[psutil.Process]:
    """Engines that this process has started, or their workers."""
    engines = [child for child in psutil.Process().children() if "grape.host.process" in " ".join(child.cmdline())]
    return engines if name == "engine" else [worker for engine in engines for worker in engine.children()]


@pytest.mark.parametrize("event", ["add", "later"])
def test_kills(tmp_path: Path, event: str) -> None:
    """Whoever is not told sends it again, by its id; the answers say how often each was counted."""
    app, data = tmp_path / "app.py", tmp_path / "d"
    app.write_text(APP)
    rng = random.Random(1)
    done = deaths = 0
    while done < 300 or deaths < 4:
        with contextlib.suppress(GrapeError), grape.open(app, data=data, workers=1) as engine:
            victims = ["worker", "engine", "worker", "engine"] if deaths < 4 else []
            with killing(victims, rng):
                while done < 300 or victims:  # until it dies
                    engine.emit(event, f"id{done}", key=f"k{done % 7}", id=f"id{done}")
                    done += 1
        deaths += bool(victims)
    assert deaths == 4
    with grape.open(app, data=data, workers=1) as engine:
        engine.emit(event, f"id{done}", key=f"k{done % 7}", id=f"id{done}")  # perhaps taken by the one that died last
        done += 1
        totals = [engine.call(event, "last", key=f"k{n}") for n in range(7)]
    assert totals == [len(range(n, done, 7)) + 1 for n in range(7)]


@contextlib.contextmanager
def killing(victims: list[str], rng: random.Random) -> Iterator[None]:
    """One after the other, at odd moments, until the last one or the end of the block."""
    is_over = threading.Event()

    def kill() -> None:
        for victim in victims:
            if is_over.wait(rng.uniform(0.05, 0.3)):
                return
            for process in family(victim)[:1]:
                os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        is_over.set()
        killer.join()
