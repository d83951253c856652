"""What waits for other apps of the server: how much of it, and for whom, which the bridge asks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from grape.abc.transport import Arrival, Transport
from grape.engine.app import App
from grape.engine.engine import Engine
from grape.engine.outlet import DeadOutputs, Take
from grape.errors import Full
from grape.host.argument import argument_of
from grape.host.attaching import Attaching, TakenBy
from grape.host.house import Verb
from grape.host.streams import Say
from grape.model.foreign import AT, Peers, logs_to
from grape.model.stored import OUTPUT, REPLIES
from grape.protocol.door import Answer, Ask

_MOST_WAITING: Final = 1_000
_encode = msgspec.msgpack.Encoder().encode


class _Waiting(NamedTuple):
    number: int
    known: frozenset[str]
    say: Say


class Outgoing:
    """Of one engine. Engine's thread only."""

    def __init__(self, app: App, engine: Engine, attaching: Attaching) -> None:
        self._app = app
        self._engine = engine
        self._transport: Transport = engine.transport
        self._attaching = attaching
        self._events: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._attached: set[str] = set()
        self._waiting: list[_Waiting] = []
        for log in app.record.logs:
            if log.startswith(OUTPUT + AT):
                self._watch(log.removeprefix(OUTPUT))

    def verbs(self) -> dict[str, Verb]:
        """ "outgoing": the outputs in which something waits, as soon as there is one that is not in the argument.
        "peers": the other apps are these from now on; answered when events may go there."""
        return {"outgoing": self._ask, "peers": self._peers}

    def left(self, say: Say) -> None:
        """Who was answered by this is gone."""
        self._waiting = [waiting for waiting in self._waiting if waiting.say != say]

    # ------------------------------------------------------------------ how much

    def _watch(self, output: str) -> None:
        self._events[output] = self._bytes[output] = 0
        logs = [self._app.log(OUTPUT + output, number) for number in range(self._app.partitions)]
        for log in logs:
            self._engine.on_arrival(log, partial(self._arrived, output))
        if any(self._transport.read(log, 0, 1) for log in logs):
            self._attach(output, [self._transport.waiting(log, 0) for log in logs])

    def _attach(self, output: str, lying: Sequence[Arrival] = ()) -> None:
        """Its reader's position says what has been taken of that which was ``lying`` there before any arrival was told
        of."""
        self._attached.add(output)

        def there(take: Take, _: DeadOutputs) -> None:
            take.took = partial(self._took, output)
            if not lying:
                return
            logs = [(self._app.log(OUTPUT + output, number), take.committed(number)) for number in take.logs]
            taken = [self._transport.waiting(log, 0, end) for log, end in logs]
            events = sum(each.events for each in lying) - sum(each.events for each in taken)
            size = sum(each.size for each in lying) - sum(each.size for each in taken)
            self._set(output, self._events[output] + events, self._bytes[output] + size)

        self._attaching.take(TakenBy(output, output), there)

    def _arrived(self, output: str, arrival: Arrival) -> None:
        if output not in self._attached:
            self._attach(output)
        self._set(output, self._events[output] + arrival.events, self._bytes[output] + arrival.size)

    def _took(self, output: str, events: int) -> None:
        """So many are durable elsewhere."""
        before = self._events[output]
        left = max(0, before - events)
        self._set(output, left, self._bytes[output] * left // max(1, before))

    def _set(self, output: str, events: int, size: int) -> None:
        if output.endswith(REPLIES):
            self._app.outgoing_replies += events - self._events[output]
        else:
            self._app.outgoing_events += events - self._events[output]
            self._app.outgoing_bytes += size - self._bytes[output]
        self._events[output], self._bytes[output] = events, size
        if events:
            self._tell()

    # ------------------------------------------------------------------ who asks

    def _ask(self, ask: Ask, say: Say) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            raise Full(f"{_MOST_WAITING:,} wait for what goes out of this app already")
        self._waiting.append(_Waiting(ask.number, frozenset(argument_of(ask, list[str])), say))
        self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            fresh = [output for output, events in self._events.items() if events and output not in one.known]
            if fresh:
                one.say(Answer(one.number, msgspec.Raw(_encode(fresh))))
            else:
                self._waiting.append(one)

    def _peers(self, ask: Ask, say: Say) -> None:
        peers: Peers = argument_of(ask, dict[str, list[str] | None])
        logs = [log for app in peers for log in logs_to(app)]

        def numbered() -> None:
            for log in logs:
                output = log.removeprefix(OUTPUT)
                if output not in self._events:
                    self._watch(output)
            self._engine.handshake.change_peers(peers)
            say(Answer(ask.number, msgspec.Raw(_encode(None))))

        self._attaching.number(logs, numbered)
