"""A worker inside the engine's process: for debuggers, profilers and unit tests. No isolation at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from grape.authoring.topology import Topology
from grape.protocol.messages import VERSION, FromWorker, Hello, ToWorker, Welcome
from grape.worker.dispatcher import Dispatcher
from grape.worker.runtime import CAPABILITIES, Runtime


class Receiver(Protocol):
    def __call__(self, link: InlineLink, message: FromWorker, /) -> None: ...


class InlineLink:
    """Does one message at a time when ``schedule`` says so, never from within ``send``.

    Args:
        topology: what to run.
        receive: takes what the worker says; a question is answered by ``send`` while it is asked.
        schedule: runs a function soon, on this thread.
        gone: called after ``kill`` or the end.
        clock: monotonic seconds; ``wall``: microseconds of wall time.
    """

    pid = 0
    unread = 0

    def __init__(
        self,
        topology: Topology,
        receive: Receiver,
        schedule: Callable[[Callable[[], None]], object],
        gone: Callable[[InlineLink, str], None],
        clock: Callable[[], float],
        wall: Callable[[], int],
    ) -> None:
        self._receive = receive
        self._schedule = schedule
        self._gone = gone
        self._has_ended = False
        self.dispatcher = Dispatcher(self._say, self._soon, self._wait, is_set_up=self._is_set_up)
        spec = topology.spec()
        self.runtime = Runtime(topology.handlers, spec, self.dispatcher.ask, self._say, clock, wall)
        self.dispatcher.serve(self.runtime)
        schedule(lambda: self._say(Hello(VERSION, 0, "python", spec, CAPABILITIES)))

    # What the worker calls

    def _say(self, message: FromWorker) -> None:
        self._receive(self, message)

    def _wait(self) -> None:
        """An answer is there as soon as the question has been asked."""
        raise AssertionError("the engine did not answer at once")

    def _is_set_up(self, message: Welcome) -> None:
        pass

    def _soon(self, step: Callable[[], None]) -> None:
        self._schedule(lambda: self._do(step))

    def _do(self, step: Callable[[], None]) -> None:
        if self._has_ended:
            return
        step()
        if self.dispatcher.has_ended:
            self.runtime.teardown()
            self.kill()

    # What the engine calls

    def send(self, message: ToWorker) -> None:
        if not self._has_ended:
            self.dispatcher.take(message)

    def terminate(self) -> None:
        self.kill()

    def kill(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._schedule(lambda: self._gone(self, "it was ended"))
