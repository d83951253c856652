"""Celery on Redis. ``task_acks_late`` and ``task_reject_on_worker_lost``: a task is acknowledged when it is done, and
done again if its worker was lost; at least once, so after a failure a count can be too high.

keyed: a task that increments a field of a hash in the same Redis. latency: ``delay(..).get()``, told by Redis.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import redis
from celery import Celery

from benchmarks.queues import measuring
from benchmarks.queues.servers import TOOLS, started

app = Celery("peer", broker=os.environ["PEER_AT"], backend=os.environ["PEER_AT"])
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
app.conf.worker_prefetch_multiplier = 64  # advised for many short tasks
store = redis.Redis.from_url(os.environ["PEER_AT"])


@app.task(name="count", ignore_result=True)
def count(key: str) -> None:
    store.hincrby("counts", key, 1)


@app.task(name="echo")
def echo(text: str) -> str:
    return text


WORKERS = [str(TOOLS / "celery"), "-A", "benchmarks.queues.celery", "worker", "--concurrency", "2"]
WORKERS += ["--without-gossip", "--without-mingle", "--loglevel", "warning"]


def keyed(size: int, directory: Path) -> float:
    with started(directory, WORKERS):
        echo.delay("").get(timeout=60)
        began = time.perf_counter()
        measuring.send_all(count.delay, size, 1)
        measuring.wait_for(size, lambda: sum(map(int, store.hvals("counts"))))
        took = time.perf_counter() - began
        measuring.check(size, {key.decode(): int(n) for key, n in store.hgetall("counts").items()})
        return took


def latency(size: int, directory: Path) -> dict[str, float]:
    with started(directory, WORKERS):
        return measuring.one_by_one(lambda text: echo.delay(text).get(timeout=60), size)
