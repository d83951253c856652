"""Huey on SQLite with ``fsync=True``. It takes a task out of its table before it runs it, and has no setting for
another way: at most once, what a worker had when it died is lost.

keyed: a task that increments a counter of Huey's storage, in the same file. latency: ``result(blocking=True)``. Both
sides look again and again, here every millisecond; by default that is 50 to 100 ms.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from huey import SqliteHuey

from benchmarks.queues import measuring
from benchmarks.queues.servers import TOOLS, started

FILE = Path(os.environ["PEER_AT"], "huey.db")
# a writer waits for the others instead of failing after 5 seconds
app = SqliteHuey("peer", filename=str(FILE), fsync=True, timeout=60)


@app.task()
def count(key: str) -> None:
    app.storage.incr(key)


@app.task()
def echo(text: str) -> str:
    return text


WORKERS = [str(TOOLS / "huey_consumer"), "benchmarks.queues.huey.app", "--workers", "2", "--worker-type", "process"]
WORKERS += ["--delay", "0.001", "--max-delay", "0.001", "--quiet"]


def counts() -> dict[str, int]:
    with sqlite3.connect(FILE, timeout=60) as reader:
        return dict(reader.execute("select key, value from counter"))


def keyed(size: int, directory: Path) -> float:
    assert app.storage.sql("pragma synchronous", results=True) == [(2,)]  # full
    with started(directory, WORKERS):
        echo("").get(blocking=True, timeout=60)
        began = time.perf_counter()
        measuring.send_all(count, size, senders=1)  # writers of SQLite stand in a line
        measuring.wait_for(size, lambda: sum(counts().values()))
        took = time.perf_counter() - began
        measuring.check(size, counts())
        return took


def latency(size: int, directory: Path) -> dict[str, float]:
    with started(directory, WORKERS):
        return measuring.one_by_one(lambda text: echo(text).get(blocking=True, timeout=60, max_delay=0.001), size)
