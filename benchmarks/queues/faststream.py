"""FastStream on NATS JetStream: a stream in files, a durable consumer that both workers pull from, and an explicit ack
when a handler has returned. Every publish waits for JetStream's ack, 256 of them at once.

keyed: a handler that increments a counter of JetStream (of version 2.12), a subject for each key, in one round trip; a
bucket of keys and values would take two and a retry. Neither counter nor ack knows of the other: at least once, so
after a failure a count can be too high. latency: ``broker.request``, answered by the handler's result.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import JsClient
from nats.js.api import StorageType, StreamConfig

from benchmarks.queues import measuring
from benchmarks.queues.servers import TOOLS, started

AT_ONCE = 256
SUBJECTS = ["count", "echo"]

broker = NatsBroker(os.environ["PEER_AT"], log_level=logging.DEBUG)
app = FastStream(broker)
events = JStream("events", subjects=SUBJECTS, storage=StorageType.FILE)
pulled: dict[str, Any] = {"stream": events, "ack_policy": AckPolicy.NACK_ON_ERROR, "max_workers": AT_ONCE}


@broker.subscriber("count", durable="count", pull_sub=PullSub(batch_size=AT_ONCE), **pulled)
async def count(key: str, jetstream: JsClient) -> None:
    # not by the broker: the server refuses an increment with what that adds
    await jetstream.publish(f"counts.{key}", headers={"Nats-Incr": "+1"}, timeout=60)


@broker.subscriber("echo", durable="echo", pull_sub=PullSub(batch_size=AT_ONCE), **pulled)
async def echo(text: str) -> str:
    return text


WORKERS = [str(TOOLS / "faststream"), "run", "benchmarks.queues.faststream:app", "--workers", "2"]


async def ask(text: str) -> Any:
    reply = await broker.request(text, "echo", stream="events", timeout=60)
    return await reply.decode()


async def send_all(size: int) -> None:
    free = asyncio.Semaphore(AT_ONCE)

    async def send(key: str) -> None:
        async with free:
            await broker.publish(key, "count", stream="events", timeout=60)

    async with asyncio.TaskGroup() as group:
        for key in measuring.keys(size):
            group.create_task(send(key))


async def connected() -> Any:
    """The streams are there before the workers are."""
    stream = (await broker.connect()).jetstream()
    await stream.add_stream(StreamConfig("events", subjects=SUBJECTS, storage=StorageType.FILE))
    await stream.add_stream(
        StreamConfig("counts", subjects=["counts.*"], storage=StorageType.FILE, allow_msg_counter=True)
    )
    return stream


async def counts(stream: Any) -> dict[str, int]:
    """Every counter there is; the last message of a subject holds its value."""
    subjects = (await stream.stream_info("counts", subjects_filter=">")).state.subjects
    values = {subject: await stream.get_last_msg("counts", subject) for subject in subjects}
    return {subject.removeprefix("counts."): int(json.loads(last.data)["val"]) for subject, last in values.items()}


def keyed(size: int, directory: Path) -> float:
    with asyncio.Runner() as loop:
        run = loop.run
        stream = run(connected())

        async def counted() -> int:
            found: int = (await stream.stream_info("counts")).state.messages  # each is one increment
            return found

        with started(directory, WORKERS):
            run(ask(""))
            began = time.perf_counter()
            run(send_all(size))
            measuring.wait_for(size, lambda: run(counted()))
            took = time.perf_counter() - began
            measuring.check(size, run(counts(stream)))
            return took


def latency(size: int, directory: Path) -> dict[str, float]:
    with asyncio.Runner() as loop:
        loop.run(connected())
        with started(directory, WORKERS):
            return measuring.one_by_one(lambda text: loop.run(ask(text)), size)
