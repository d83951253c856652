"""What confinement costs, and what a pool notices of its neighbours: ``python -m benchmarks.isolation NAME WHAT DIR``.

start LEVEL: seconds from asking for a worker until it has said hello. rate LEVEL: keyed count, events/s. death: seconds
from SIGKILL until the engine knows. neighbours WHAT: p99 of one pool while workers of another one do that.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil

import grape
from benchmarks import data, rows
from grape.running import RunningEngine
from grape.testing.contracts.isolate import python_for

LEVELS: Final = ("process", "cgroup", "sandbox", "container")
NOBODY: Final = 65534
STARTS: Final = 20
DEATHS: Final = 30
CALLS: Final = 400
MISBEHAVIOURS: Final = (
    "nothing",
    "fork_bomb",
    "memory_bomb",
    "full_temp",
    "garbage",
    "twice",
    "lost",
    "stubborn",
    "daemon",
)


def python() -> str:
    """An interpreter that the workers of every level may run: those of a control group cannot be root."""
    return python_for(NOBODY if os.geteuid() == 0 else None, "benchmarks.apps", environment())


def environment() -> dict[str, str]:
    packages = [path for path in sys.path if path.endswith("site-packages")]
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "src"), *packages])
    return {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "PYTHONPATH": path}


def isolate(level: str, **keys: Any) -> dict[str, Any]:
    """A table ``[pool.NAME.isolate]``."""
    own = {"uid": NOBODY} if level == "cgroup" and os.geteuid() == 0 else {}
    return {"type": level, **own, **keys}


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "grape.worker" in " ".join(p.cmdline())]


def until(engine: RunningEngine, pool: str, ready: int) -> None:
    while True:
        numbers = engine.numbers().pools[pool]
        if numbers.workers_idle + numbers.workers_active >= ready:
            return
        time.sleep(0.0005)


def start(level: str, directory: Path) -> dict[str, float]:
    """A pool that is at 0 gets an event; until its worker is ready."""
    took: list[float] = []
    profile = {
        "main": {"isolate": isolate("process"), "pool-limit": 1},
        "other": {"isolate": isolate(level), "pool-min": 0, "pool-limit": 1, "idle-timeout": "1 ms"},
    }
    with grape.open("benchmarks.neighbours:topology", data=directory, profile=profile) as engine:
        until(engine, "main", 1)
        for _ in range(STARTS + 1):
            while (numbers := engine.numbers().pools["other"]).state != "empty" or numbers.workers_leaving:
                time.sleep(0.001)
            spawned = numbers.workers_spawned
            begun = time.perf_counter()
            engine.emit("bad", "nothing")
            while engine.numbers().pools["other"].workers_spawned == spawned:
                pass
            until(engine, "other", 1)
            took.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(took[1:])}


def rate(level: str, directory: Path, size: int = 3_000_000) -> dict[str, float]:
    profile = {"main": {"isolate": isolate(level), "pool-limit": rows.WORKERS, "idle-timeout": 0}}
    timed = rows.Timed(data.KeyedEvents(size, 1_000))
    grape.run("benchmarks.apps:keyed", feed={"word": timed}, data=directory, profile=profile)
    return {"events": size, "seconds": time.perf_counter() - timed.started}


def death(_: str, directory: Path) -> dict[str, float]:
    took: list[float] = []
    profile = {"main": {"pool-limit": 1}, "other": {"pool-min": 0}}
    with grape.open("benchmarks.neighbours:topology", data=directory, profile=profile) as engine:
        for i in range(DEATHS):
            engine.emit("good", i, key=f"k{i % 100}")
            next(iter(engine.outputs("out")))
            until(engine, "main", 1)
            known = engine.numbers().worker_deaths
            victim = workers()[0]
            begun = time.perf_counter()
            victim.kill()
            while engine.numbers().worker_deaths == known:
                pass
            took.append(time.perf_counter() - begun)
    return {"p50_ms": 1e3 * statistics.median(took), "max_ms": 1e3 * max(took)}


def neighbours(what: str, directory: Path) -> dict[str, float]:
    """In the sandbox, where there is something to lose."""
    limits = {"memory": "200 MiB", "pids": 40, "cpus": 0.5}
    profile = {
        "main": {"isolate": isolate("sandbox"), "pool-limit": 1, "idle-timeout": 0},
        "other": {"isolate": isolate("sandbox", **limits), "pool-limit": 1},
    }
    times: list[float] = []
    with grape.open("benchmarks.neighbours:topology", data=directory, profile=profile) as engine:
        until(engine, "main", 1)
        until(engine, "other", 1)
        over = threading.Event()

        def misbehave() -> None:
            while not over.is_set():
                engine.emit("bad", what)
                over.wait(0.5)

        thread = threading.Thread(target=misbehave)
        outputs = engine.outputs("out", timeout=60)
        for i in range(CALLS + 50):
            if i == 50 and what != "nothing":
                thread.start()
            begun = time.perf_counter()
            engine.emit("good", i, key=f"k{i % 100}")
            next(outputs)
            if i >= 50:
                times.append(time.perf_counter() - begun)
            time.sleep(0.005)
        over.set()
        if what != "nothing":
            thread.join()
    return data.quantiles(times)


def main() -> None:
    name, argument, directory = sys.argv[1:4]
    call = {"start": start, "rate": rate, "death": death, "neighbours": neighbours}[name]
    print(json.dumps(call(argument, Path(directory))))


if __name__ == "__main__":
    main()
