"""Dramatiq on Redis. It acknowledges a message after its actor has returned, and gives it to another worker if its own
has gone: at least once, so after a failure a count can be too high.

keyed: an actor that increments a field of a hash in the same Redis. latency: ``message.get_result(block=True)``, which
waits in Redis, not by looking again and again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import redis
from dramatiq import actor, set_broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.queues import measuring
from benchmarks.queues.servers import TOOLS, started

broker = RedisBroker(url=os.environ["PEER_AT"])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["PEER_AT"])))
set_broker(broker)
store = redis.Redis.from_url(os.environ["PEER_AT"])


@actor
def count(key: str) -> None:
    store.hincrby("counts", key, 1)


@actor(store_results=True)
def echo(text: str) -> str:
    return text


WORKERS = [str(TOOLS / "dramatiq"), "benchmarks.queues.dramatiq", "--processes", "2"]


def keyed(size: int, directory: Path) -> float:
    with started(directory, WORKERS):
        echo.send("").get_result(block=True, timeout=60_000)
        began = time.perf_counter()
        measuring.send_all(count.send, size)
        measuring.wait_for(size, lambda: sum(map(int, store.hvals("counts"))))
        took = time.perf_counter() - began
        measuring.check(size, {key.decode(): int(n) for key, n in store.hgetall("counts").items()})
        return took


def latency(size: int, directory: Path) -> dict[str, float]:
    with started(directory, WORKERS):
        return measuring.one_by_one(lambda text: echo.send(text).get_result(block=True, timeout=60_000), size)
