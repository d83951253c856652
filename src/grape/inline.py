"""A worker inside the engine's process: for debuggers, profilers and unit tests. No isolation at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from grape.authoring.topology import Topology
from grape.errors import ProtocolError
from grape.protocol.messages import (
    VERSION,
    Ask,
    Assign,
    Beat,
    Drain,
    FromWorker,
    Hello,
    Revoke,
    ToWorker,
    Values,
    Welcome,
    Work,
)
from grape.worker.concurrent import AsyncPool
from grape.worker.runtime import CAPABILITIES, Runtime


class Receiver(Protocol):
    def __call__(self, link: InlineLink, message: FromWorker, /) -> None: ...


class InlineLink:
    """Runs works one at a time when ``schedule`` says so, never from within ``send``.

    Args:
        topology: what to run.
        receive: takes what the worker says.
        answer: gives the state that an `Ask` asks for.
        schedule: runs a function soon, on this thread.
        gone: called after ``kill`` or the end.
        clock: monotonic seconds; ``wall``: microseconds of wall time.
    """

    pid = 0

    def __init__(
        self,
        topology: Topology,
        receive: Receiver,
        answer: Callable[[InlineLink, Ask], list[bytes | None]],
        schedule: Callable[[Callable[[], None]], object],
        gone: Callable[[InlineLink, str], None],
        clock: Callable[[], float],
        wall: Callable[[], int],
    ) -> None:
        self._receive = receive
        self._schedule = schedule
        self._gone = gone
        self._inbox: deque[ToWorker] = deque()
        self._ended = False
        self._scheduled = False
        self._async_pool: AsyncPool | None = None
        self.runtime = Runtime(
            topology.handlers,
            topology.spec(),
            lambda ask: answer(self, ask),
            lambda message: receive(self, message),
            clock,
            wall,
        )
        hello = Hello(VERSION, 0, "python", topology.spec(), CAPABILITIES)
        schedule(lambda: receive(self, hello))

    def send(self, message: ToWorker) -> None:
        self._inbox.append(message)
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self._step)

    def terminate(self) -> None:
        self.kill()

    def kill(self) -> None:
        if not self._ended:
            self._ended = True
            self._inbox.clear()
            self._schedule(lambda: self._gone(self, "it was ended"))

    def _step(self) -> None:
        """One message; more of them later, so that the engine can do something between."""
        self._scheduled = False
        if self._ended or not self._inbox:
            return
        message = self._inbox.popleft()
        runtime = self.runtime
        match message:
            case Work():
                if self._async_pool is not None:
                    self._async_pool.work(message)
                else:
                    for result in runtime.work(message):
                        self._receive(self, result)
            case Assign():
                runtime.assign(message)
            case Revoke():
                runtime.revoke(message)
            case Welcome():
                runtime.welcome(message)
                runtime.setup()
                if runtime.is_async:
                    self._async_pool = AsyncPool(runtime, lambda result: self._receive(self, result))
                self._receive(self, Beat())
            case Drain():
                runtime.teardown()
                self.kill()
            case Values():
                raise ProtocolError("an answer without a question")
        if self._inbox and not self._scheduled:
            self._scheduled = True
            self._schedule(self._step)
