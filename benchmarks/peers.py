"""Peers and limits, each in a process of its own: ``python -m benchmarks.peers NAME SIZE DIR`` prints
{"seconds", "events"}.

Bytewax gets the same events from a source of one partition a worker, in batches; with recovery it writes its snapshots
to DIR. Plain Python in two processes is the limit: the same work in plain loops, nothing durable. So is LMDB without
anything above it: state that survives, no log.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lmdb

from benchmarks import data

BATCH = 1_000


def plain_keyed(size: int, keys: int) -> tuple[float, int]:
    began = time.perf_counter()
    counts: dict[str, int] = {}
    for i in range(size):
        key = data.key_of(i, keys)
        counts[key] = counts.get(key, 0) + 1
    return time.perf_counter() - began, size


def rotate(text: str) -> str:
    return text[1:] + text[0]


def plain_chain(size: int) -> tuple[float, int]:
    began = time.perf_counter()
    source = data.PlainEvents(size)
    position: int | None = None
    while (got := source(position)) is not None:
        events, position = got
        for text in events:
            rotate(rotate(rotate(rotate(rotate(text)))))
    return time.perf_counter() - began, size


def plain_wordcount(size: int) -> tuple[float, int]:
    text = data.text_file(Path("/tmp/grape-bench-text.txt"), size)
    began = time.perf_counter()
    counts: collections.Counter[str] = collections.Counter()
    with text.open() as f:
        for line in f:
            counts.update(line.split())
    return time.perf_counter() - began, counts.total()


def plain(row: str, size: int) -> tuple[float, int]:
    """In one process."""
    rows = {
        "keyed-1k": lambda: plain_keyed(size, 1_000),
        "keyed-1m": lambda: plain_keyed(size, size // 2),
        "chain": lambda: plain_chain(size),
        "wordcount": lambda: plain_wordcount(size),
    }
    return rows[row]()


def plain_twice(row: str, size: int) -> tuple[float, int]:
    """In two processes at once, each half of it: what two cores can do at all."""
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(time.sleep, (0.1, 0.1)))  # both are there
        halves = list(pool.map(plain, (row, row), (size // 2, size // 2)))
    return max(seconds for seconds, _ in halves), sum(events for _, events in halves)


def lmdb_keyed(size: int, keys: int, directory: Path) -> tuple[float, int]:
    """Counts that survive, in plain LMDB: a durable commit for what one read of the source gives, with its position."""
    environment = lmdb.open(str(directory / "limit"), map_size=1 << 33)
    began = time.perf_counter()
    source = data.KeyedEvents(size, keys)
    position: int | None = None
    while (got := source(position)) is not None:
        events, position = got
        counts = collections.Counter(key.encode() for key, _ in events)
        with environment.begin(write=True) as txn:
            for key, more in counts.items():
                before = txn.get(key)
                txn.put(key, (more + (int.from_bytes(before, "big") if before else 0)).to_bytes(8, "big"))
            txn.put(b"\0position", b"%d" % position)
    seconds = time.perf_counter() - began
    environment.close()
    return seconds, size


def lmdb_latency(commits: int, count: int, directory: Path) -> dict[str, float]:
    """Durable commits of one small row each. One event needs two: accepted, and processed."""
    environment = lmdb.open(str(directory / "limit"), map_size=1 << 28)
    times: list[float] = []
    for i in range(count):
        began = time.perf_counter()
        for part in range(commits):
            with environment.begin(write=True) as txn:
                txn.put(b"%d-%d" % (i, part), data.PAYLOAD.encode())
        times.append(time.perf_counter() - began)
        time.sleep(0.002)
    environment.close()
    return data.quantiles(times)


def bytewax(flow: str, size: int, directory: Path, processes: int, recovery: bool) -> tuple[float, int]:
    """Run a flow of `benchmarks.bytewax_flows`; its source and sink note the times."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bytewax.testing", f"benchmarks.bytewax_flows:{flow}({size}, '{directory}')"]
    command += ["-p", str(processes)]
    if recovery:
        store = directory / "recovery"
        store.mkdir()
        subprocess.run([sys.executable, "-m", "bytewax.recovery", str(store), "4"], check=True)
        command += ["-r", str(store), "-s", "1", "-b", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    times = [float(line) for path in directory.glob("time-*") for line in path.read_text().split()]
    events = sum(int(path.read_text()) for path in directory.glob("events-*"))
    return max(times) - min(times), events


def main() -> None:
    name, size, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    peer, _, row = name.partition(":")
    if peer == "lmdb" and row.isdecimal():
        print(json.dumps(lmdb_latency(int(row), size, directory)))
        return
    if peer == "plain":
        seconds, events = plain(row, size)
    elif peer == "lmdb":
        seconds, events = lmdb_keyed(size, {"keyed-1k": 1_000, "keyed-1m": size // 2}[row], directory)
    elif peer == "plain2":
        seconds, events = plain_twice(row, size)
    else:
        processes = 2 if "2" in peer else 1
        flow: Any = {"keyed-1k": "keyed_1k", "keyed-1m": "keyed_1m", "chain": "chain", "wordcount": "wordcount"}[row]
        seconds, events = bytewax(flow, size, directory, processes, "recovery" in peer)
    print(json.dumps({"seconds": seconds, "events": events}))


if __name__ == "__main__":
    main()
