"""A worker's socket and its loop: who reads when. Both ends are in this thread, so that what comes when is certain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec
import pytest

from grape import Event, Node, State, Topology
from grape.model import batch as codec
from grape.model.topology import Limits
from grape.protocol.framing import frame, worker_frames
from grape.protocol.messages import (
    VERSION,
    Ask,
    Assign,
    BatchItem,
    Drain,
    FromWorker,
    Result,
    ToWorker,
    Values,
    Welcome,
    Work,
)
from grape.worker.process import Connection, WorkerProcess
from grape.worker.runtime import Runtime


class Count(Node):
    seen = State(int, default=0)
    when_run: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def process(self, event: Event) -> None:
        self.seen += 1
        if event.key == "first" and Count.when_run is not None:
            Count.task = asyncio.ensure_future(Count.when_run())


def topology() -> Topology:
    t = Topology("both-ends")
    t.add_slot("x", Count(), concurrency=1)
    return t


class Wire(Connection):
    """``when_read``: called with what was just read; ``when_said``: with what the worker said."""

    def __init__(self, sock: socket.socket, peer: socket.socket) -> None:
        super().__init__(sock)
        self.peer = peer
        self.said: list[FromWorker] = []
        self.when_read: Callable[[ToWorker], None] = lambda message: None
        self.when_said: Callable[[FromWorker], None] = lambda message: None

    def tell(self, *messages: ToWorker) -> None:
        self.peer.sendall(b"".join(frame(message) for message in messages))

    def send(self, message: FromWorker) -> None:
        self.said += worker_frames().feed(bytes(frame(message)))
        self.when_said(message)

    def read(self, take: Callable[[ToWorker], None], *, wait: bool) -> bool:
        def taken(message: ToWorker) -> None:
            take(message)
            self.when_read(message)

        return super().read(taken, wait=wait)


@pytest.fixture
def wire() -> Iterator[Wire]:
    sock, peer = socket.socketpair()
    try:
        yield Wire(sock, peer)
    finally:
        sock.close()
        peer.close()


def run(wire: Wire) -> None:
    process = WorkerProcess(wire)
    t = topology()
    process.serve(Runtime(t.handlers, t.spec(), process.ask, wire.send))


def work(seq: int, partition: int, *keys: str) -> Work:
    body = codec.encode_run(codec.RunMeta(["x"]), len(keys), list(keys), None)
    return Work(partition, 1, seq, [BatchItem(seq, f"{seq}-", 0, len(keys), body)])


def welcome() -> Welcome:
    return Welcome(VERSION, "main", "main.0", 2, Limits(), frozenset())


def test_nothing_to_read_is_no_reason_to_wait(wire: Wire) -> None:
    assert wire.read(lambda message: None, wait=False)


def test_an_engine_that_is_gone_is_noticed(wire: Wire) -> None:
    wire.peer.close()
    assert not wire.read(lambda message: None, wait=False)
    assert not wire.read(lambda message: None, wait=True)


@pytest.mark.timeout(30)
def test_the_loops_word_may_be_stale(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every round something comes. The loop says so, but before its word is heard a task asks, and reads all there
    is. (The reader waited then, for ever.)"""
    keys = ["first", *(f"k{i}" for i in range(20))]

    async def pester() -> None:
        for epoch in range(200):
            wire.tell(Assign(1, epoch))
            await asyncio.sleep(0)
        over("pestering")

    def said(message: FromWorker) -> None:
        if isinstance(message, Ask):
            wire.tell(Values([None] * len(message.keys)))
        if isinstance(message, Result) and 1 in message.ended:
            over("work")

    def over(what: str) -> None:
        ended.add(what)
        if len(ended) == 2:
            wire.tell(Drain())

    ended: set[str] = set()
    monkeypatch.setattr(Count, "when_run", staticmethod(pester))
    wire.when_said = said
    wire.tell(welcome(), Assign(0, 1), work(1, 0, *keys))
    run(wire)
    assert ended == {"pestering", "work"}
    states = [s for result in wire.said if isinstance(result, Result) for s in result.states]
    assert sorted(key.decode() for s in states for key in s.keys) == sorted(keys)


@pytest.mark.timeout(30)
def test_what_comes_with_an_answer_is_done(wire: Wire) -> None:
    """Work that arrives in one piece with the answer to a task's question. (It lay there, for ever.)"""

    def said(message: FromWorker) -> None:
        if isinstance(message, Ask) and message.partition == 0:
            wire.tell(Values([None] * len(message.keys)), Assign(1, 1), work(2, 1, "b"))
        elif isinstance(message, Ask):
            wire.tell(Values([None] * len(message.keys)))
        if isinstance(message, Result) and 2 in message.ended:
            wire.tell(Drain())

    wire.when_said = said
    wire.tell(welcome(), Assign(0, 1), work(1, 0, "a"))
    run(wire)
    ended = [seq for result in wire.said if isinstance(result, Result) for seq in result.ended]
    assert sorted(ended) == [1, 2]
    states = [s for result in wire.said if isinstance(result, Result) for s in result.states]
    assert [msgspec.msgpack.decode(value or b"") for s in states for value in s.values] == [{"seen": 1}] * 2
