"""A worker alone, without engine or socket: ``python -m benchmarks.worker [ROW...]`` prints CPU nanoseconds an event
from decoding to the encoded result: of every work the least of several rounds, of those the median.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import apps, data
from grape.authoring.topology import Topology
from grape.model.batch import RunMeta, encode_run
from grape.model.topology import Limits
from grape.protocol.framing import engine_frames, frame
from grape.protocol.messages import Ask, Assign, BatchItem, FromWorker, Result, Welcome, Work
from grape.worker.runtime import Runtime

WORKS: Final = 20
PARTITIONS: Final = 32
BATCHES: Final = 4
EACH: Final = 640
"""Events of a batch, about as many as the engine's batches have in the rows of the same name."""
ROUNDS: Final = 9


def worker(topology: Topology) -> Runtime:
    def ask(message: Ask) -> list[bytes | None]:
        return [None] * len(message.keys)

    def announce(message: FromWorker) -> None:
        raise AssertionError(message)

    runtime = Runtime(topology.handlers, topology.spec(), ask, announce)
    pool = topology.spec().pools[0].name if topology.spec().pools else "default"
    runtime.welcome(Welcome(1, pool, "w0", PARTITIONS, Limits(), frozenset(topology.spec().outputs)))
    runtime.setup()
    runtime.assign(Assign(0, 1))
    return runtime


def works(event: str, keys: int) -> list[bytes]:
    """Frames of works; ``keys`` 0: keyless texts, else keyed events; -1: lines of words."""
    text = [line.rstrip() for line in _lines()] if keys < 0 else []
    at = 0
    frames: list[bytes] = []
    for seq in range(WORKS):
        batches = []
        for position in range(BATCHES):
            rows = range(at, at + EACH)
            at += EACH
            if keys > 0:
                names: list[str | None] | None = [data.key_of(i, keys) for i in rows]
                values = [data.PAYLOAD] * EACH
            else:
                names = None
                values = [text[i % len(text)] for i in rows] if text else _plain(rows)
            body = encode_run(RunMeta([event]), EACH, names, values)
            number = seq * BATCHES + position
            batches.append(BatchItem(number, f"00000001-{number}:", 1, EACH, body))
        frames.append(frame(Work(0, 1, seq, batches)))
    return frames


def _plain(rows: range) -> list[str]:
    return [data.PAYLOAD[i % 10 :] + data.PAYLOAD[: i % 10] for i in rows]


def _lines() -> list[str]:
    with data.text_file(Path("/tmp/grape-bench-text.txt"), 50).open() as file:
        return [next(file) for _ in range(5_000)]


ROWS: Final = {
    "keyed": (apps.keyed, "word", 31),
    "distinct": (apps.keyed, "word", WORKS * BATCHES * EACH),
    "functions": (apps.chain_functions, "s0", 0),
    "nodes": (apps.chain_nodes, "s0", 0),
    "split": (apps.wordcount, "line", -1),
}


def measured(row: str) -> tuple[float, Counter[str]]:
    """Nanoseconds an event, and how many each slot has had."""
    make, event, keys = ROWS[row]
    frames = works(event, keys)
    best = [float("inf")] * len(frames)
    counts: Counter[str] = Counter()
    for _ in range(ROUNDS):
        runtime = worker(make())
        reader = engine_frames()
        counts = Counter()
        for at, packed in enumerate(frames):
            began = time.process_time_ns()
            for message in reader.feed(packed):
                assert isinstance(message, Work)
                for result in runtime.work(message):
                    assert isinstance(result, Result)
                    counts.update(result.counts)
                    frame(result)
            best[at] = min(best[at], time.process_time_ns() - began)
    return median(best) / (BATCHES * EACH), counts


def main() -> None:
    gc.freeze()
    gc.set_threshold(20_000)  # as in a worker
    for row in sys.argv[1:] or ROWS:
        nanoseconds, counts = measured(row)
        print(f"{row:10} {nanoseconds:8.0f} ns  {sum(counts.values()):,} events at {len(counts)} slots", flush=True)


if __name__ == "__main__":
    main()
