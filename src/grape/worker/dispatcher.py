"""What the engine says, message by message, to whoever does it. Without a socket, a loop or a thread.

The process, the debugger and the simulator run this same code; they differ in how a message gets here, in what
``schedule`` does, and in how somebody waits who has asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from grape.authoring.raised import line_of
from grape.errors import ProtocolError
from grape.protocol.messages import (
    VERSION,
    Ask,
    Assign,
    Beat,
    Drain,
    Fetched,
    FromWorker,
    Leased,
    LevelsChanged,
    PeersChanged,
    Result,
    Revoke,
    ToWorker,
    Try,
    Values,
    Welcome,
    Work,
)
from grape.worker import children
from grape.worker.concurrent import AsyncPool
from grape.worker.objects import Access
from grape.worker.pacing import GivenBack
from grape.worker.runtime import Runtime


class SetupFailed(Exception):
    """A node's `setup` has failed, with this error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(line_of(error))
        self.error = error


class Dispatcher:
    """Does the engine's messages in their order; answers to questions are handed out of turn.

    Invariant: a message that lies here and is not being done has a step scheduled, whoever brought it, and in the
    middle of whatever. (Messages that came along with an answer once waited for the next one to come: for ever.)

    Args:
        send: puts a message on its way to the engine.
        schedule: calls a function soon, never at once.
        wait: returns when something new may have been taken; for somebody who waits for an answer.
        welcomed: called with the welcome, before anything is done about it.
        is_set_up: called with it when the nodes are set up.
    """

    def __init__(
        self,
        send: Callable[[FromWorker], None],
        schedule: Callable[[Callable[[], None]], object],
        wait: Callable[[], None],
        welcomed: Callable[[Welcome], None] = lambda message: None,
        is_set_up: Callable[[Welcome], None] = lambda message: None,
    ) -> None:
        self.send = send
        self.schedule = schedule
        self.has_ended = False
        """The engine has said that this is the end; what had been started is handed in."""
        self.pool: AsyncPool | None = None
        """Runs the works, if the pool has async nodes."""
        self.runtime: Runtime
        self._wait = wait
        self._welcomed = welcomed
        self._is_set_up = is_set_up
        self._inbox: deque[ToWorker] = deque()
        self._answers: deque[list[bytes | None]] = deque()
        self._asking = False
        self._is_scheduled = False

    def serve(self, runtime: Runtime) -> None:
        """Do it with this one."""
        self.runtime = runtime
        runtime.objects = Access(self.send, self._wait)

    # ------------------------------------------------------------------ what comes

    def take(self, message: ToWorker) -> None:
        """A message has come.

        Raises:
            ProtocolError: nobody has asked for this answer.
        """
        if isinstance(message, Values):
            if not self._asking or self._answers:
                raise ProtocolError("an answer without a question")
            self._answers.append(message.values)
            return
        if isinstance(message, Leased):
            if self.runtime.pacer is None:
                raise ProtocolError("a lease that nobody has asked for")
            self.runtime.pacer.leased(message)
            return
        if isinstance(message, Fetched):
            if self.runtime.objects is None:
                raise ProtocolError("an object that nobody has asked for")
            self.runtime.objects.fetched(message)
            return
        self._inbox.append(message)
        self._schedule_step()

    def is_unwanted(self) -> bool:
        """Whether something has come by which the work that runs is not to be gone on with: the worker is to end, or
        its partition is no longer this worker's."""
        number, _ = self.runtime.place
        return any(
            isinstance(message, Drain) or (isinstance(message, Revoke) and message.partition == number)
            for message in self._inbox
        )

    def ask(self, question: Ask) -> list[bytes | None]:
        """Ask until all is answered: one answer may hold the first values only."""
        values = self._ask(question)
        while len(values) < len(question.keys):
            rest = question.keys[len(values) :]
            more = self._ask(Ask(question.partition, question.epoch, question.node, rest))
            if not more:
                raise ProtocolError("an answer of no values")
            values += more
        return values

    def _ask(self, question: Ask) -> list[bytes | None]:
        self._asking = True
        self.send(question)
        while not self._answers:
            self._wait()
        self._asking = False
        return self._answers.popleft()

    # ------------------------------------------------------------------ doing it

    @property
    def has_messages(self) -> bool:
        """`step` has something to do."""
        return bool(self._inbox)

    def _schedule_step(self) -> None:
        if self._inbox and not self._is_scheduled:
            self._is_scheduled = True
            self.schedule(self.step)

    def reschedule(self, schedule: Callable[[Callable[[], None]], object]) -> None:
        """From now on steps are called by this; what is here already, too."""
        self.schedule = schedule
        self._is_scheduled = False
        self._schedule_step()

    def step(self) -> None:
        """Do one message; more of them later, so that others get their turn between."""
        self._is_scheduled = False
        if self.has_ended or not self._inbox:
            return
        self._do(self._inbox.popleft())
        self._schedule_step()

    def _do(self, message: ToWorker) -> None:
        runtime, pool = self.runtime, self.pool
        match message:
            case Work():
                if pool is not None:
                    pool.work(message)
                else:
                    self._work(message)
            case Assign():
                runtime.assign(message)
            case Revoke():
                if pool is not None:
                    pool.revoke(message)
                else:
                    runtime.revoke(message)
            case Welcome():
                self._welcome(message)
            case Drain():
                if pool is not None:
                    pool.drain(lambda: self.schedule(self.end))
                else:
                    self.end()
            case Try():
                self.send(runtime.try_state(message))
            case PeersChanged():
                runtime.change_peers(message.peers)
            case LevelsChanged():
                runtime.change_levels(message.levels)
            case Values():
                raise AssertionError("answers do not lie here")

    def _work(self, message: Work) -> None:
        try:
            for result in self.runtime.work(message):
                self.send(result)
        except GivenBack:
            pass  # why lies in the inbox

    def _welcome(self, message: Welcome) -> None:
        if message.version != VERSION:
            raise ProtocolError(f"the engine speaks protocol {message.version}, this worker {VERSION}")
        self._welcomed(message)
        self.runtime.welcome(message)
        try:
            self.runtime.setup()
        except BaseException as e:
            children.end_child(e)
            raise SetupFailed(e) from None
        children.end_child()
        if self.runtime.is_async:
            self.pool = AsyncPool(self.runtime, self._send_result)
        self.send(Beat())
        self._is_set_up(message)

    def _send_result(self, result: Result) -> None:
        self.send(result)

    def end(self) -> None:
        """Hand in what is finished. What is still here is left to others."""
        self.has_ended = True
        self._inbox.clear()
        if self.pool is not None:
            self.pool.hand_in.flush()
