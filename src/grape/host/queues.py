"""Outputs as queues at the door: who asks for events gets some, or waits for the first one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from grape.engine.clock import Clock
from grape.engine.outlet import DeadOutputs, Take
from grape.engine.queue import NAME, Queue
from grape.engine.retention import Retention
from grape.errors import BadArgument, Full, UsageError
from grape.host.argument import argument_of
from grape.host.attaching import Attaching, TakenBy
from grape.host.host import Host
from grape.host.house import Verb
from grape.host.once import Once
from grape.host.streams import Say
from grape.host.tails import Tails
from grape.model.near import no_such
from grape.model.retention import Keeping
from grape.model.stored import TAKER
from grape.model.topology import TopologySpec
from grape.protocol.door import Answer, Ask, Refused
from grape.protocol.queues import (
    ACK,
    CLEAR,
    CONSUMERS,
    FORGET,
    NACK,
    PEEK,
    POP,
    STATS,
    TAIL,
    Output,
    OutputNumbers,
    Peek,
    Tail,
    Tokens,
    Which,
)

_LAZY: Final = 0.01
"""Seconds in which what is done with is gathered for one commit, if nobody waits for it."""
_ANSWER: Final = 16 << 20
"""Bytes of one answer, about."""
_MOST_WAITING: Final = 1_000
_MOST_ATTEMPTS: Final = 20
_LOOK: Final = 1.0
"""Seconds between two looks at what is too old or too much."""
_encode: Final = msgspec.msgpack.Encoder().encode


class _Waiting(NamedTuple):
    """Somebody asked for events when there were none."""

    number: int
    peek: Peek
    pops: bool
    until: int
    say: Say


class _Consumer:
    """One queue as it is asked for, and what waits for it."""

    def __init__(self, queue: Queue, host: Host, clock: Clock) -> None:
        self.queue = queue
        self.wake = Once(host.soon, self._give)
        self._host = host
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._answers: list[Callable[[], None]] = []
        self._commit_soon = Once(partial(host.later, _LAZY), self.commit)
        self._timer = 0
        queue.take.changed = self.wake

    def ask(self, number: int, peek: Peek, pops: bool, say: Say) -> None:
        now = self._clock.now()
        waiting = _Waiting(number, peek, pops, now + int(peek.wait * 1e6), say)
        if not self._serve(waiting, now):
            if len(self._waiting) >= _MOST_WAITING:
                raise Full(f"{_MOST_WAITING:,} wait for events of this queue already")
            self._waiting.append(waiting)
            self._set_timer()

    def left(self, say: Say) -> None:
        """Who was answered by this is gone: nothing is lent to him, nor lost with him, any more."""
        self._waiting = [waiting for waiting in self._waiting if waiting.say != say]

    def dismiss(self) -> None:
        """Whoever waits gets nothing: the queue is forgotten."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.say(Answer(each.number, msgspec.Raw(_encode([]))))

    def _serve(self, asked: _Waiting, now: int) -> bool:
        peek = asked.peek
        if peek.looks and not asked.pops:
            found = self.queue.look(peek.count, _ANSWER, now)
        else:
            found = self.queue.lend(peek.count, _ANSWER, int(peek.lease * 1e6), now)
        if not found and now < asked.until:
            return False
        answer = partial(asked.say, Answer(asked.number, msgspec.Raw(_encode(found))))
        if asked.pops and found:
            self.queue.done([delivery.token for delivery in found])
            self.when_durable(answer)
        else:
            answer()
        if self.queue.take.is_settled:
            self._commit_soon()
        self._set_timer()
        return True

    def when_durable(self, answer: Callable[[], None]) -> None:
        """What is done with is committed, then ``answer`` is called."""
        self._answers.append(answer)
        self.commit()

    def commit(self) -> None:
        take = self.queue.take
        if take.is_busy:
            take.when_free(self.commit)
            return
        answers, self._answers = self._answers, []
        if not take.is_settled:
            for answer in answers:
                answer()
            return

        def committed() -> None:
            for answer in answers:
                answer()
            self.wake()
            if self._answers:
                self.commit()

        self.queue.commit(committed)

    def _give(self) -> None:
        now = self._clock.now()
        self._waiting = [waiting for waiting in self._waiting if not self._serve(waiting, now)]
        self._set_timer()

    def _set_timer(self) -> None:
        dues = [waiting.until for waiting in self._waiting]
        due = self.queue.due()
        if due is not None and self._waiting:
            dues.append(due)
        if dues and (not self._timer or min(dues) < self._timer):
            self._timer = min(dues)
            self._host.later(max(0.001, (self._timer - self._clock.now()) / 1e6), self._timed)

    def _timed(self) -> None:
        self._timer = 0
        self._give()


class Queues:
    """All that somebody has asked for."""

    def __init__(self, topology: TopologySpec, attaching: Attaching, tails: Tails, host: Host, clock: Clock) -> None:
        self._topology = topology
        self._tails = tails
        self._attaching = attaching
        self._host = host
        self._clock = clock
        self._consumers: dict[TakenBy, _Consumer] = {}
        self._retained: dict[str, Retention] = {}

    def verbs(self) -> dict[str, Verb]:
        """See `grape.protocol.queues`."""
        return {
            PEEK: partial(self._on_peek, pops=False),
            POP: partial(self._on_peek, pops=True),
            ACK: self._on_ack,
            NACK: self._on_nack,
            CLEAR: self._on_clear,
            STATS: self._on_stats,
            FORGET: self._on_forget,
            CONSUMERS: self._on_consumers,
            TAIL: self._on_tail,
        }

    def left(self, say: Say) -> None:
        """Who was answered by this is gone."""
        for consumer in self._consumers.values():
            consumer.left(say)

    def _on_peek(self, ask: Ask, say: Say, *, pops: bool) -> None:
        peek = argument_of(ask, Peek)
        self._with(peek.event, peek.consumer, ask, say, lambda found: found.ask(ask.number, peek, pops, say))

    def _on_ack(self, ask: Ask, say: Say) -> None:
        tokens = argument_of(ask, Tokens)

        def done(found: _Consumer) -> None:
            count = found.queue.done(tokens.tokens)
            found.when_durable(partial(_answer, ask, say, {"acked": count, "unknown": len(tokens.tokens) - count}))

        if self._has_lent(tokens):
            self._with(tokens.event, tokens.consumer, ask, say, done)
        else:
            _answer(ask, say, {"acked": 0, "unknown": len(tokens.tokens)})

    def _on_nack(self, ask: Ask, say: Say) -> None:
        tokens = argument_of(ask, Tokens)

        def back(found: _Consumer) -> None:
            count = found.queue.give_back(tokens.tokens)
            _answer(ask, say, {"returned": count, "unknown": len(tokens.tokens) - count})
            found.wake()

        if self._has_lent(tokens):
            self._with(tokens.event, tokens.consumer, ask, say, back)
        else:
            _answer(ask, say, {"returned": 0, "unknown": len(tokens.tokens)})

    def _has_lent(self, tokens: Tokens) -> bool:
        """There is such a consumer; who gives something back does not become one.

        Raises:
            UsageError: as `_with`.
        """
        self._check(tokens.event)
        return TakenBy(tokens.event, f"{NAME}{tokens.event}/{tokens.consumer}") in self._consumers

    def _on_clear(self, ask: Ask, say: Say) -> None:
        which = argument_of(ask, Which)

        def clear(found: _Consumer, cleared: int = 0) -> None:
            count = found.queue.clear()
            if count:
                self._host.soon(lambda: clear(found, cleared + count))
            else:
                found.when_durable(partial(_answer, ask, say, {"cleared": cleared}))

        self._with(which.event, which.consumer, ask, say, clear)

    def _on_stats(self, ask: Ask, say: Say) -> None:
        which = argument_of(ask, Which)
        self._with(which.event, which.consumer, ask, say, lambda found: _answer(ask, say, found.queue.numbers()))

    def _on_forget(self, ask: Ask, say: Say) -> None:
        which = argument_of(ask, Which)

        def forget(found: _Consumer) -> None:
            if found.queue.take.is_busy:
                found.queue.take.when_free(lambda: forget(found))
                return
            self._consumers.pop(TakenBy(which.event, f"{NAME}{which.event}/{which.consumer}"), None)
            found.dismiss()
            found.queue.forget(partial(_answer, ask, say, {"forgotten": which.consumer}))

        self._with(which.event, which.consumer, ask, say, forget)

    def _on_consumers(self, ask: Ask, say: Say) -> None:
        output = argument_of(ask, Output)
        self._check(output.event)
        consumers = [each.queue.numbers() for by, each in self._consumers.items() if by.event == output.event]
        retention = self._retained[output.event]
        _answer(ask, say, OutputNumbers(output.event, consumers, retention.size, retention.expired))

    # ------------------------------------------------------------------ what is kept

    def begin(self, keeps: dict[str, Keeping]) -> None:
        """Of every output as much is kept as is said, and for whoever has asked for some before."""
        for event in self._topology.outputs:
            self._retained[event] = self._attaching.keep(event, keeps.get(event, Keeping()))
        for log in tuple(self._attaching.logs):
            event, slash, consumer = log.removeprefix(TAKER + NAME).rpartition("/")
            if log.startswith(TAKER + NAME) and slash and event in self._topology.outputs:
                self._bring_back(event, consumer)
        self._look()

    def _bring_back(self, event: str, consumer: str) -> None:
        by = TakenBy(event, f"{NAME}{event}/{consumer}")

        def there(take: Take, dead: DeadOutputs) -> None:
            queue = Queue(take, dead, _MOST_ATTEMPTS)
            if queue.is_forgotten:
                take.leave()
            else:
                self._consumers[by] = _Consumer(queue, self._host, self._clock)

        self._attaching.take(by, there)

    def _look(self) -> None:
        now = self._clock.now()
        for event, retention in self._retained.items():
            self._attaching.let_go(event, retention.look(now))
        is_behind = any(retention.is_behind for retention in self._retained.values())
        self._host.later(0.01 if is_behind else _LOOK, self._look)

    def _with(self, event: str, consumer: str, ask: Ask, say: Say, then: Callable[[_Consumer], None]) -> None:
        """``then`` gets the consumer, now or when it has been claimed.

        Raises:
            UsageError: there is no such output.
            Full: the directory has had as many consumers as it can.
        """
        by = TakenBy(event, f"{NAME}{event}/{consumer}")
        self._check(event)

        def found() -> None:
            try:
                then(self._consumers[by])
            except Full as e:
                say(Refused(ask.number, e.code, str(e)))

        def there(take: Take, dead: DeadOutputs) -> None:
            if by not in self._consumers:
                take.come_back()
                self._consumers[by] = _Consumer(Queue(take, dead, _MOST_ATTEMPTS), self._host, self._clock)
            found()

        if by in self._consumers:
            found()
        else:
            self._attaching.take(by, there)

    def _check(self, event: str) -> None:
        """
        Raises:
            UsageError: there is no such output, or nothing of it is kept.
        """
        if event not in self._topology.outputs:
            raise UsageError(no_such("output", event, self._topology.outputs, self._topology.name))
        if event not in self._retained:
            raise UsageError(f"output {event!r} is no queue here: only a server keeps outputs (grape serve)")

    # ------------------------------------------------------------------ looking on

    def _on_tail(self, ask: Ask, say: Say) -> None:
        tail = argument_of(ask, Tail)
        self._check(tail.event)
        ends = self._retained[tail.event].ends
        if tail.places is not None and len(tail.places) != len(ends):
            raise BadArgument(f"tail: {len(tail.places)} places of {len(ends)} partitions")
        places = ends if tail.places is None else list(tail.places)
        self._tails.ask(ask.number, tail, places, say)


def _answer(ask: Ask, say: Say, value: Any) -> None:
    say(Answer(ask.number, msgspec.Raw(_encode(value))))
