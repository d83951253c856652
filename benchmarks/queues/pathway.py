"""Pathway with its default persistence on the file system: what came in is kept, and read again by a restart. A result
does not wait for that, so what this promises is that a later start counts what was kept. Two processes, by ``pathway
spawn``; a source in Python and a subscriber are in the first of them.

keyed: ``groupby(key).reduce(count())``, its own state; until ``pw.run`` returns, when all is kept. latency: an event
and a commit, until the subscriber is called.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pathway as pw

from benchmarks import data
from benchmarks.queues import measuring
from benchmarks.queues.servers import TOOLS, free_port


class Keyed(pw.Schema):
    key: str
    text: str


class Source(pw.io.python.ConnectorSubject):  # type: ignore[misc]
    deletions_enabled = False


class Events(Source):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.began = 0.0

    def run(self) -> None:
        self.began = time.perf_counter()
        for key in measuring.keys(self.size):
            self.next(key=key, text=data.PAYLOAD)


class OneByOne(Source):
    def __init__(self, count: int, results: queue.SimpleQueue[str]) -> None:
        super().__init__()
        self.count = count
        self.results = results
        self.found: dict[str, float] = {}

    def run(self) -> None:
        self.found = measuring.one_by_one(self.ask, self.count)

    def ask(self, text: str) -> str:
        self.next(key="k", text=text)
        self.commit()
        return self.results.get(timeout=60)


def run(directory: Path) -> None:
    kept = pw.persistence.Backend.filesystem(directory / "kept")
    pw.run(persistence_config=pw.persistence.Config(kept), monitoring_level=pw.MonitoringLevel.NONE)


def count(size: int, directory: Path) -> dict[str, Any] | None:
    """In each process; the one that has had the events says what was counted."""
    source, counts = Events(size), dict[str, int]()
    words = pw.io.python.read(source, schema=Keyed, name="events")

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        if is_addition:
            counts[row["key"]] = row["n"]

    pw.io.subscribe(words.groupby(words.key).reduce(words.key, n=pw.reducers.count()), on_change, name="counts")
    run(directory)
    took = time.perf_counter() - source.began
    return {"seconds": took, "counts": counts} if source.began else None


def echo(count: int, directory: Path) -> dict[str, Any] | None:
    results = queue.SimpleQueue[str]()
    source = OneByOne(count, results)
    texts = pw.io.python.read(source, schema=Keyed, name="events", autocommit_duration_ms=None)

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        results.put(row["text"])

    pw.io.subscribe(texts.select(text=pw.apply(str, texts.text)), on_change, name="results")
    run(directory)
    return source.found or None


def spawned(what: str, size: int, directory: Path) -> dict[str, Any]:
    command = [str(TOOLS / "pathway"), "spawn", "--processes", "2", "--first-port", str(free_port())]
    command += [sys.executable, "-m", "benchmarks.queues.pathway", what, str(size), str(directory)]
    with (directory / "pathway.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    found: dict[str, Any] = json.loads((directory / "found.json").read_text())
    return found


def keyed(size: int, directory: Path) -> float:
    found = spawned("count", size, directory)
    measuring.check(size, found["counts"])
    seconds: float = found["seconds"]
    return seconds


def latency(size: int, directory: Path) -> dict[str, float]:
    return spawned("echo", size, directory)


if __name__ == "__main__":
    what, size, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if found := (count if what == "count" else echo)(size, directory):
        (directory / "found.json").write_text(json.dumps(found))
