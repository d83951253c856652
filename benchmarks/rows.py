"""Our rows. Each runs in a process of its own: ``python -m benchmarks.rows NAME SIZE DIR`` prints
{"seconds", "events"}; latency and memory print what they are about.

The clock starts when the source is asked for its first event and stops at the last commit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grape
from benchmarks import data
from grape.abc.source import Sink

WORKERS = 2


class Timed:
    """A source that notes when it was asked first."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read
        self.started = 0.0

    def __call__(self, position: Any) -> Any:
        if not self.started:
            self.started = time.perf_counter()
        return self._read(position)


def fed(
    app: str, event: str, source: Callable[[Any], Any], directory: Path, take: dict[str, Any] | None = None
) -> float:
    timed = Timed(source)
    grape.run(f"benchmarks.apps:{app}", feed={event: timed}, data=directory, workers=WORKERS, take=take)
    return time.perf_counter() - timed.started


def keyed(size: int, directory: Path, keys: int) -> tuple[float, int]:
    return fed("keyed", "word", data.KeyedEvents(size, keys), directory), size


def chain(app: str, size: int, directory: Path) -> tuple[float, int]:
    """Taken by a sink that throws away, so that the results are as durable as the input."""
    return fed(app, "s0", data.PlainEvents(size), directory, {"out": Discard("out=discard")}), size


class Discard(Sink):
    """Takes whole batches and forgets them."""

    form = "batches"

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        return length, tail

    def write(self, lines: list[bytes]) -> tuple[int, bytes]:
        return 0, b""


def wordcount(size: int, directory: Path) -> tuple[float, int]:
    text = data.text_file(Path("/tmp/grape-bench-text.txt"), size)
    summary = grape.run("benchmarks.apps:wordcount", feed={"line": text}, data=directory, workers=WORKERS)
    return summary.seconds, summary.slots["word>Count"]


def latency(app: str, count: int, directory: Path) -> dict[str, float]:
    """Milliseconds from ``emit`` until the output event is in the caller's hands. Nothing else is under way, but for
    what the app does by itself."""
    times: list[float] = []
    with grape.open(f"benchmarks.apps:{app}", data=directory, outputs=("out",), workers=WORKERS) as engine:
        outputs = engine.outputs("out", timeout=10)
        if app == "echo_beside":
            engine.emit("fill", 200_000)
            time.sleep(1)
        for i in range(count + 100):
            began = time.perf_counter()
            engine.emit("in", data.PAYLOAD, key=f"k{i % 50}")
            next(outputs)
            if i >= 100:
                times.append(time.perf_counter() - began)
            time.sleep(0.002)  # unloaded: the engine has come to rest
    return data.quantiles(times)


def memory(megabytes: int, directory: Path) -> dict[str, float]:
    """Peak private memory (MB) of every process of a wordcount by ``grape run``, with 10 words for each kilobyte that
    are distinct."""
    keys = megabytes * 10_000
    text = data.scattered_words(directory / "words.txt", megabytes, keys)
    command = [
        str(Path(sys.executable).parent / "grape"),
        "run",
        "benchmarks/apps.py:wordcount",
        "--workers",
        str(WORKERS),
    ]
    command += ["--feed", f"line={text}", "--data", str(directory / "data"), "--summary", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    peaks = {f"mb:{who}": mb for who, mb in summary["peak_private_mb"].items()}
    return {"seconds": summary["seconds"], "events": summary["slots"]["word>Count"], "keys": keys, **peaks}


def main() -> None:
    name, size, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    rows: dict[str, Callable[[], tuple[float, int]]] = {
        "keyed-1k": lambda: keyed(size, directory, 1_000),
        "keyed-1m": lambda: keyed(size, directory, size // 2),
        "keyed-20m": lambda: keyed(size, directory, size // 2),
        "chain-functions": lambda: chain("chain_functions", size, directory),
        "chain-nodes": lambda: chain("chain_nodes", size, directory),
        "wordcount": lambda: wordcount(size, directory),
    }
    if name in rows:
        seconds, events = rows[name]()
        found = {"seconds": seconds, "events": events}
    else:
        app = {"latency": "echo", "latency-eager": "echo_eager", "latency-beside": "echo_beside"}.get(name)
        found = latency(app, size, directory) if app else memory(size, directory)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
