"""Objects beside their limits, in the same run.

    python -m benchmarks.storage [--objects 20000] [--large 100]

*handlers*: events whose handler gets and puts an object of 1 KB under their key, beside raw LMDB that gets and puts the
same in one process, durable for each 1,000. *affinity*: handlers that get a small object under the key of their event,
which the worker that owns it has asked for before, beside the same by a name that no key tells. *large*: so many MB put
from a file (also by the command, which has to start), beside `cp` and fsync. *exec*: an event for each object, beside a
keyed count of as many events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lmdb

import grape
from benchmarks.about import interpreter
from grape.storage.connect import opened
from grape.storage.objects import Objects

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results-storage.json"
BIN = Path(sys.executable).parent
APP = """
from grape import Node, State, Topology

class Store(Node):
    def process(self, event):
        data = self.storage.get(event.key)
        self.storage.put(event.key, event.data if data is None else data[::-1])

class Own(Node):
    def process(self, event):
        self.storage.get(f"small/{event.key}")

class Foreign(Node):
    def process(self, event):
        self.storage.get(f"small/{event.data['k'][::-1]}")

class Count(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1

t = Topology("bench")
t.add_slot("store", Store())
t.add_slot("own", Own())
t.add_slot("foreign", Foreign())
t.add_slot("count", Count())
"""


def run(app: Path, slot: str, lines: Path, data: Path) -> float:
    """Seconds."""
    began = time.perf_counter()
    command = [BIN / "grape", "run", app, "--feed", f"{slot}={lines},key=k", "--data", data, "--workers", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def raw(directory: Path, keys: list[bytes]) -> float:
    """Seconds for the same in LMDB."""
    body = random.Random(1).randbytes(1024)
    env = lmdb.open(str(directory), map_size=4 << 30)
    began = time.perf_counter()
    for start in range(0, len(keys), 1_000):
        with env.begin(write=True) as txn:
            for key in keys[start : start + 1_000]:
                there = txn.get(key)
                txn.put(key, body if there is None else there[::-1])
    took = time.perf_counter() - began
    env.close()
    return took


def handlers(base: Path, app: Path, count: int) -> dict[str, float]:
    lines = base / "in.jsonl"
    body = "x" * 1024
    with open(lines, "w") as file:
        for i in range(count):
            file.write(json.dumps({"k": f"k{i % (count // 2)}", "b": body}) + "\n")
    (base / "plain.py").write_text(app.read_text().replace("event.data if", 'event.data["b"] if'))
    ours = count / run(base / "plain.py", "store", lines, base / "data1")
    limit = count / raw(base / "raw", [f"k{i % (count // 2)}".encode() for i in range(count)])
    return {"grape": ours, "lmdb": limit, "ratio": ours / limit}


def affinity(base: Path, app: Path, count: int) -> dict[str, float]:
    lines = base / "keys.jsonl"
    with open(lines, "w") as file:
        for i in range(count):
            file.write(json.dumps({"k": f"k{i % 5_000:04}"}) + "\n")
    own = count / run(app, "own", lines, base / "data4")
    foreign = count / run(app, "foreign", lines, base / "data5")
    return {"own": own, "foreign": foreign, "ratio": own / foreign}


def large(base: Path, app: Path, size: int) -> dict[str, float]:
    source, data = base / "large", base / "data6"
    with grape.open(str(app), data=str(data), workers=1):
        pass
    source.write_bytes(os.urandom(size << 20))
    ours, command, limit = [], [], []

    async def put(number: int) -> float:
        async with opened(f"embedded://{data}") as storage:
            began = time.perf_counter()
            await Objects(storage, "bench").put(f"large{number}", source)
            return time.perf_counter() - began

    for number in range(5):
        with open(source, "r+b") as file:  # other bytes: the same would be one object
            file.write(os.urandom(16))
        ours.append(asyncio.run(put(number)))
        began = time.perf_counter()
        subprocess.run(["cp", source, base / "copied"], check=True)
        fd = os.open(base / "copied", os.O_RDWR)
        os.fsync(fd)
        os.close(fd)
        limit.append(time.perf_counter() - began)
        os.unlink(base / "copied")
        began = time.perf_counter()
        cli = [BIN / "grape", "storage", "put", f"bench/by-command{number}", source, "--data", data]
        subprocess.run(cli, check=True, capture_output=True)
        command.append(time.perf_counter() - began)
    best, its, all_of_it = (size / min(each) for each in (ours, limit, command))
    return {"grape_mb_s": best, "command_mb_s": all_of_it, "cp_mb_s": its, "ratio": best / its}


def execute(base: Path, app: Path, count: int) -> dict[str, float]:
    data = base / "data2"
    with grape.open(str(app), data=str(data), workers=2):

        async def fill() -> None:
            async with opened(f"embedded://{data}") as storage:
                objects = Objects(storage, "bench")
                for start in range(0, count, 500):
                    await asyncio.gather(*(objects.put(f"o/{i:07}", b"x" * 100) for i in range(start, start + 500)))

        asyncio.run(fill())
        began = time.perf_counter()
        done = subprocess.run(
            [BIN / "grape", "exec", "count", "--over", "bench/o/", "--data", data], check=True, capture_output=True
        )
        ours = count / (time.perf_counter() - began)
        assert f"{count:,} events handed in".encode() in done.stderr, done.stderr
    lines = base / "count.jsonl"
    with open(lines, "w") as file:
        for i in range(count):
            file.write(json.dumps({"k": f"o/{i:07}", "size": 100, "version": i, "namespace": "bench"}) + "\n")
    limit = count / run(app, "count", lines, base / "data3")
    return {"exec": ours, "keyed": limit, "ratio": ours / limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--large", type=int, default=100, help="MB")
    parser.add_argument("--only", default="handlers,affinity,large,exec", help="rows, with commas")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="grape-storage-", dir=ROOT) as folder:
        base = Path(folder)
        app = base / "app.py"
        app.write_text(APP)
        rows = {
            "handlers": lambda: handlers(base, app, options.objects),
            "affinity": lambda: affinity(base, app, options.objects),
            "large": lambda: large(base, app, options.large),
            "exec": lambda: execute(base, app, options.objects),
        }
        found: dict[str, dict[str, float]] = {}
        for row in options.only.split(","):
            found[row] = rows[row]()
            print(row, ", ".join(f"{name} {value:,.2f}" for name, value in found[row].items()), flush=True)
    if set(found) == set(rows):
        RESULTS.write_text(json.dumps({"interpreter": interpreter(), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
