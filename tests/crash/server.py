"""Kill whatever a server is made of with SIGKILL at random moments, while calls are in flight; count at the end.

    python -m tests.crash.server [--kills 50] [--calls 3000] [--seed N]

Three apps emit to one another in a cycle, and a timer drives one of them. Every call has to be answered, once and
always the same; every count has to be exact; each event has to stand in its output's queue exactly once, though the
consumer dies with the engine, too; and each moment of the timer has to have come once, in its order.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import Server, until, write_app  # type: ignore[import-not-found]

KEYS = 40
ORDERS = """
from grape import Node, Topology


class Check(Node):
    def process(self, event):
        self.emit("stock@checked", event.data, key=event.key)


class Round(Node):
    # a cycle over all three, before the answer
    def process(self, event):
        number, left = event.data
        if left:
            self.emit("bills@rest", [number, left - 1])
        else:
            self.reply([number, event.key])


def topology(config):
    t = Topology("orders")
    t.add_slot("order", Check(), emits="stock@checked")
    t.add_slot("rest", Round(), emits="bills@rest")
    return t
"""
STOCK = """
from datetime import datetime

from grape import Node, State, Topology


class Count(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1
        self.emit("counted", [event.data, event.key, self.n])
        self.emit("bills@rest", [event.data, 3], key=event.key)


class Pulse(Node):
    first: float = State(float, default=0.0)
    last: float = State(float, default=0.0)
    n: int = State(int, default=0)
    wrong: int = State(int, default=0)

    def process(self, event):
        due = datetime.fromisoformat(event.data["due"]).timestamp()
        self.first = self.first or due
        self.wrong += bool(self.last) and round(1000 * (due - self.last)) != 100
        self.last = due
        self.n += 1


def topology(config):
    t = Topology("stock")
    t.add_slot("pulse", Pulse())
    t.add_output("counted")
    t.add_slot("checked", Count(), emits=("counted", "bills@rest"))
    return t
"""
PULSE = """
[driver.pulse]
kind = "timer"
event = "pulse"
every = "100 ms"
key = "one"
catch-up = "all"
"""
BILLS = """
from grape import Node, State, Topology


class Bill(Node):
    seen: int = State(int, default=0)

    def process(self, event):
        self.seen += 1
        self.emit("orders@rest", event.data)


def topology(config):
    t = Topology("bills")
    t.add_slot("rest", Bill())
    return t
"""
APPS = {"orders": ORDERS, "stock": STOCK, "bills": BILLS}
ROUNDS = 4
"""How often each call passes `bills`."""


class Calls:
    """All of them, each until it is answered."""

    def __init__(self, count: int) -> None:
        self.answers: dict[int, Any] = {}
        self.retries = 0
        self.url = ""
        self._numbers = iter(range(count))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(8)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def are_over(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            self.answers[number] = self.call(number)

    def call(self, number: int) -> Any:
        while True:
            try:
                answer = httpx.post(
                    f"{self.url}/apps/orders/events/order",
                    json=number,
                    params={"key": f"k{number % KEYS}", "wait": "5"},
                    headers={"idempotency-key": f"call-{number}"},
                    timeout=20,
                )
                if answer.status_code == 200:
                    return answer.json()
                if answer.status_code < 429:
                    raise SystemExit(f"call {number}: {answer.text}")
            except httpx.TransportError:
                pass
            self.retries += 1
            time.sleep(0.05)


class Consumer:
    """Takes the output event by event, and notes what it is done with before it says so."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: collections.Counter[int] = collections.Counter()
        self.confirmed: set[int] = set()
        self.again_after_confirmed = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.is_set():
            try:
                place = f"{self.url}/apps/stock/outputs/counted"
                answer = httpx.post(f"{place}/peek", json={"count": 50, "wait": 1, "lease": 5}, timeout=20)
                if answer.status_code != 200:
                    time.sleep(0.05)
                    continue
                events = answer.json()["events"]
                numbers = [event["data"][0] for event in events]
                self.seen.update(numbers)
                self.again_after_confirmed += len(self.confirmed.intersection(numbers))
                if not events:
                    continue
                tokens = [event["token"] for event in events]
                done = httpx.post(f"{place}/ack", json={"tokens": tokens}, timeout=20)
                if done.status_code == 200 and done.json()["unknown"] == 0:
                    self.confirmed.update(numbers)
            except httpx.TransportError:
                time.sleep(0.05)


BESIDE = ("gateway", "bridge", "drivers")


def victim(server: Server, rng: random.Random) -> tuple[str, int]:
    """What is killed next: its kind, and its pid."""
    engines = [server.engine(app) for app in APPS]
    beside = {kind: [pid for pid in server.pids() if f"grape.{kind}.process" in _command(pid)] for kind in BESIDE}
    known = {*engines, *(pid for pids in beside.values() for pid in pids)}
    workers = [pid for pid in server.pids() if pid not in known]
    kinds = {"engine": engines, "worker": workers, "server": [server.process.pid], **beside}
    kind = rng.choice([name for name, pids in kinds.items() if pids])
    return kind, rng.choice(kinds[kind])


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def run(base: Path, kills: int, calls: int, seed: int) -> dict[str, Any]:
    """
    Raises:
        AssertionError: something was lost, or done twice.
    """
    rng = random.Random(seed)
    home = base / "home"
    server = Server(home)
    for name, code in APPS.items():
        app = write_app(base / name, code, workers=1 + (name == "stock"))
        if name == "stock":
            with open(app / "grape.toml", "a") as manifest:
                manifest.write(PULSE)
        server.grape("app", "deploy", app)
    asked, consumer = Calls(calls), Consumer()
    asked.url = consumer.url = server.url
    httpx.post(f"{server.url}/apps/stock/outputs/counted/peek", json={}).raise_for_status()
    asked.start()
    consumer.start()
    killed: collections.Counter[str] = collections.Counter()
    while not asked.are_over or killed.total() < kills:
        time.sleep(rng.uniform(0.05, 1.0))
        if killed.total() < kills:
            try:
                kind, pid = victim(server, rng)
                os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError, IndexError):
                continue  # it is just being started
            killed[kind] += 1
            if kind == "server":
                server.process.wait()
                server = Server(home)
                asked.url = consumer.url = server.url
    until(lambda: len(consumer.seen) == calls, 120)
    over = time.time()
    until(lambda: pulse(server)["last"] > over, 120)  # who drives may be waiting, after so many deaths
    consumer.stop()
    check(server, asked, consumer, calls, rng)
    assert server.stop() == 0
    return {"killed": dict(killed), "calls": calls, "retries": asked.retries}


def pulse(server: Server) -> dict[str, Any]:
    """What the timer's node has seen."""
    (row,) = map(json.loads, server.grape_data("state", "list", "--node", "Pulse", "stock").splitlines())
    found: dict[str, Any] = row["state"]
    return found


def check(server: Server, asked: Calls, consumer: Consumer, calls: int, rng: random.Random) -> None:
    assert asked.answers == {number: [number, f"k{number % KEYS}"] for number in range(calls)}
    for number in rng.sample(range(calls), min(calls, 50)):  # whoever asks again gets the same
        assert asked.call(number) == asked.answers[number]
    counts = {f"k{i}": len(range(i, calls, KEYS)) for i in range(KEYS)}
    for app, node, field, times in (("stock", "Count", "n", 1), ("bills", "Bill", "seen", ROUNDS)):
        rows = map(json.loads, server.grape_data("state", "list", "--node", node, app).splitlines())
        found = {row["key"]: row["state"][field] for row in rows}
        assert found == {key: count * times for key, count in counts.items() if count}, app
    pulses = pulse(server)
    assert not pulses.get("wrong"), pulses
    assert pulses["n"] == round(10 * (pulses["last"] - pulses["first"])) + 1, pulses
    assert set(consumer.seen) == set(range(calls)), "an event is missing in the queue"
    assert consumer.again_after_confirmed == 0, "what was done with came again"
    for app in APPS:
        assert not server.grape_data("dead", "list", app).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--calls", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    base = Path(tempfile.mkdtemp(prefix="grape-crash-"))
    found = run(base, options.kills, options.calls, options.seed)
    print(f"{sum(found['killed'].values())} kills survived: {found}")
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
