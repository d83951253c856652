"""DBOS on SQLite, in files of its own making, synced at every commit (SQLite's default). Workflows come to two
processes by a queue in the database; what a step has done is recorded, and a workflow whose process died goes on.

keyed: a workflow of one transaction, recorded together with what it writes: exactly once. latency:
``handle.get_result()``. Who waits looks again and again, here every 10 ms; by default it is every second.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, SQLAlchemyDatasource

from benchmarks.queues import measuring
from benchmarks.queues.servers import started, until

HOME = Path(os.environ["PEER_AT"])
SYSTEM = f"sqlite:///{HOME}/system.sqlite"
LOOK_SECONDS = 0.01
QUEUE = "events"

datasource = SQLAlchemyDatasource.create(f"sqlite:///{HOME}/counts.sqlite")


@datasource.transaction
def increment(key: str) -> None:
    datasource.sql_session().execute(
        sa.text("insert into counts values (:key, 1) on conflict (key) do update set n = n + 1"), {"key": key}
    )


@DBOS.workflow()
def count(key: str) -> None:
    increment(key)


@DBOS.step()
def repeat(text: str) -> str:
    return text


@DBOS.workflow()
def echo(text: str) -> str:
    return repeat(text)


def work(executor: str) -> None:
    DBOS(
        config={
            "name": "peer",
            "system_database_url": SYSTEM,
            "executor_id": executor,
            "application_version": "1",
            "log_level": "WARNING",
        }
    )
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=8, polling_interval_sec=LOOK_SECONDS)
    (HOME / f"ready-{executor}").touch()
    threading.Event().wait()


WORKER = [sys.executable, "-m", "benchmarks.queues.dbos"]


class Asking:
    """A program beside the workers."""

    def __init__(self) -> None:
        until("the workers", lambda: len(list(HOME.glob("ready-*"))) == 2)
        self.client = DBOSClient(system_database_url=SYSTEM)

    def count(self, key: str) -> None:
        self.client.enqueue({"workflow_name": "count", "queue_name": QUEUE}, key)

    def echo(self, text: str) -> str:
        handle = self.client.enqueue({"workflow_name": "echo", "queue_name": QUEUE}, text)
        result: str = handle.get_result(polling_interval_sec=LOOK_SECONDS)
        return result


def counts() -> dict[str, int]:
    with sqlite3.connect(HOME / "counts.sqlite", timeout=60) as reader:
        return dict(reader.execute("select key, n from counts"))


def keyed(size: int, directory: Path) -> float:
    with sqlite3.connect(HOME / "counts.sqlite") as store:
        assert store.execute("pragma synchronous").fetchone() == (2,)  # full
        store.execute("create table counts (key text primary key, n integer not null)")
    with started(directory, [*WORKER, "a"], [*WORKER, "b"]):
        asking = Asking()
        asking.echo("")
        began = time.perf_counter()
        measuring.send_all(asking.count, size, senders=1)  # writers of SQLite stand in a line
        measuring.wait_for(size, lambda: sum(counts().values()))
        took = time.perf_counter() - began
        measuring.check(size, counts())
        return took


def latency(size: int, directory: Path) -> dict[str, float]:
    with started(directory, [*WORKER, "a"], [*WORKER, "b"]):
        return measuring.one_by_one(Asking().echo, size)


if __name__ == "__main__":
    work(sys.argv[1])
