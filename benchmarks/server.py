"""A server of several apps: what goes between them, and what they do to one another.

    python -m benchmarks.server [--seconds 8]

*hop*: a call that another app answers, beside one that the same app answers over an unchained hop (two commits more,
and the bridge). *lines*: lines of JSON that an app hands on to another one, beside the same within one app. *quiet*:
calls of an app at 20 a second, alone, beside one that is flooded, and beside one that dies with every event; and at 50
a second while it is upgraded. *door*: a call through five hops at the app's door, without HTTP; each hop
durable, or chained.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grape
from benchmarks.about import interpreter
from grape.remote.load import Histogram, Load, Outcome, run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from serving import Server, until, write_app  # type: ignore[import-not-found]

RESULTS = Path(__file__).parent / "results-server.json"
FIRST = """
import os, signal
from grape import Event, Node, Topology

class Ask(Node):
    def process(self, event):
        self.emit(NEXT, event.data)

class End(Node):
    def process(self, event):
        self.reply(event.data)

class Die(Node):
    def process(self, event):
        os.kill(os.getpid(), signal.SIGKILL)

class Hop(Node):
    def __init__(self, kind, number):
        self.kind, self.number = kind, number

    def process(self, event):
        if self.number < 5:
            self.emit(f"{self.kind}{self.number + 1}", event.data)
        else:
            self.reply(event.data)

def topology(config):
    t = Topology("NAME")
    t.add_slot("ask", Ask())
    t.add_slot("end", End(), chain=False)
    t.add_slot("die", Die(), retries=0)
    for i in range(1, 6):
        for kind, chain in (("hop", False), ("step", True)):
            then = [f"{kind}{i + 1}"] if i < 5 else []  # what is not declared does not chain
            t.add_slot(f"{kind}{i}", Hop(kind, i), name=f"{kind}-{i}", emits=then, chain=chain)
    return t
"""
APPS = {"one": "'end'", "two": "'other@end'", "other": "'end'", "flooded": "'end'", "dying": "'end'"}


def code(name: str) -> str:
    return FIRST.replace("NAME", name).replace("NEXT", APPS[name])


def load(server: Server, path: str, **what: Any) -> Outcome:
    headers = (("content-type", "application/json"),)
    return asyncio.run(run(Load(server.url, path, b'{"n": {n}}', headers, **what)))


def ms(histogram: Histogram) -> dict[str, float]:
    return {"p50_ms": histogram.quantile(0.5) * 1e3, "p99_ms": histogram.quantile(0.99) * 1e3}


def calls(server: Server, app: str, seconds: float, event: str = "ask", rate: float = 0.0) -> dict[str, float]:
    path = f"/apps/{app}/events/{event}?key=k{{k}}&wait=30"
    outcome = load(server, path, connections=1 if not rate else 8, rate=rate, seconds=seconds)
    assert not outcome.errors, outcome.errors
    return {**ms(outcome.latencies), "rate": outcome.latencies.total / outcome.seconds}


class Beside:
    """Something that goes on in another thread."""

    def __init__(self, what: Any) -> None:
        self._is_over = False
        self._what = what
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over:
            self._what()


def lines(server: Server, app: str, count: int) -> float:
    """Events a second until the last one has ended where it ends."""
    target = "other" if app == "two" else app
    before = done(server, target)
    body = b"".join(b'{"k": "k%d", "n": %d}\n' % (i % 1000, i) for i in range(20_000))
    began = time.perf_counter()
    for _ in range(count // 20_000):
        answer = server.http.post(
            f"/apps/{app}/events/ask?key-field=k", content=body, headers={"content-type": "application/x-ndjson"}
        )
        answer.raise_for_status()
    until(lambda: done(server, target) >= before + count, 300)
    return count / (time.perf_counter() - began)


def done(server: Server, app: str) -> int:
    return int((server.info(app)["numbers"]["processed"]).get("end>End", 0))


def door_calls(server: Server, event: str, seconds: float) -> dict[str, float]:
    histogram = Histogram()
    with grape.connect(server.home / "apps" / "one" / "data") as engine:
        until_then = time.monotonic() + seconds
        while time.monotonic() < until_then:
            began = time.perf_counter()
            engine.call(event, 1, key="k")
            histogram.add(time.perf_counter() - began)
    return ms(histogram)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    seconds = parser.parse_args().seconds
    base = Path(tempfile.mkdtemp(prefix="grape-bench-", dir=Path(__file__).parents[1]))
    server = Server(base / "home")
    found: dict[str, Any] = {}
    try:
        for name in APPS:
            server.grape("app", "deploy", write_app(base / name, code(name), workers=1))
        for name in ("one", "two"):
            calls(server, name, 2)
        found["hop within"] = calls(server, "one", seconds)
        found["hop between"] = calls(server, "two", seconds)
        found["lines within"] = lines(server, "one", 200_000)
        found["lines between"] = lines(server, "two", 200_000)
        found["call at the door"] = door_calls(server, "hop1", seconds)
        found["chained call at the door"] = door_calls(server, "step1", seconds)
        found["quiet alone"] = calls(server, "one", seconds, rate=20)
        body = b"".join(b'{"k": "k%d"}\n' % (i % 1000) for i in range(5_000))

        def flood() -> None:
            server.http.post(
                "/apps/flooded/events/ask?key-field=k", content=body, headers={"content-type": "application/x-ndjson"}
            )

        with Beside(flood):
            found["quiet beside a flood"] = calls(server, "one", seconds, rate=20)

        def die() -> None:
            server.post("/apps/dying/events/die", 1)
            time.sleep(0.1)

        with Beside(die):
            found["quiet beside one that dies"] = calls(server, "one", seconds, rate=20)
        write_app(base / "one", code("one") + "\n# the next\n", workers=1, version="2")
        with Beside(lambda: time.sleep(0.1)):
            upgrade = threading.Timer(seconds / 2, lambda: server.grape("app", "deploy", base / "one"))
            upgrade.start()
            found["quiet while it is upgraded"] = calls(server, "one", seconds, rate=50)
            upgrade.join()
        assert server.info("one")["version"] == "2"
    finally:
        server.stop()
        shutil.rmtree(base, ignore_errors=True)
    print(interpreter())
    for name, value in found.items():
        shown = f"{value:,.0f}/s" if isinstance(value, float) else ", ".join(f"{k} {v:,.2f}" for k, v in value.items())
        print(f"{name:28} {shown}")
    within, between = found["lines within"], found["lines between"]
    print(f"lines between apps: {between / within:.2f} x within one")
    alone = found["quiet alone"]["p99_ms"]
    for name in ("quiet beside a flood", "quiet beside one that dies"):
        print(f"{name}: p99 {found[name]['p99_ms'] / alone:.2f} x alone (limit 2)")
    RESULTS.write_text(json.dumps({"interpreter": interpreter(), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
