"""Objects at the door: what clients want written. They read what is committed themselves, in the directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from grape.engine.clients import Clients, check_emit
from grape.engine.engine import Engine
from grape.errors import BadArgument, Full, GrapeError, ProtocolError, StorageFailed, Unsupported
from grape.host.house import Verb
from grape.host.streams import Say
from grape.model.bound import Bound
from grape.model.names import check_write
from grape.model.objects import Done, ObjectWrite, Wanted
from grape.protocol.door import Answer, Ask, Emit, Refused

WRITE_OBJECTS: Final = "write-objects"
"""[(`ObjectWrite`, `Wanted`)], each looked at and done as one step; the answer, once all are durable: [`Done`]. The
bytes of those that are too large for a row lie in the directory already."""
PUT_EMIT: Final = "put-emit"
"""`PutEmit`: an object is written and an event accepted, by one commit; nil once that is durable."""
STORAGES: Final = "storages"
"""nil; the answer: `Bound` of each namespace that is in another storage, by name."""
MOST: Final = 1_000
_LOST: Final = "the bytes of an object are not where they should be; write it again"
_decode = msgspec.msgpack.Decoder(list[tuple[ObjectWrite, Wanted]]).decode
_encode = msgspec.msgpack.Encoder().encode


class PutEmit(Struct, frozen=True, array_like=True):
    """An object, and the event that comes of it: ``data`` is msgpack."""

    write: ObjectWrite
    event: str
    key: str | None
    data: bytes
    id: str = ""


_decode_both: Final = msgspec.msgpack.Decoder(PutEmit).decode


def put_emit(engine: Engine, clients: Clients, now: Callable[[], int], bound: Mapping[str, Bound]) -> dict[str, Verb]:
    """``bound``: namespaces that are in other storages."""

    def put(ask: Ask, say: Say) -> None:
        try:
            both = _decode_both(ask.argument)
            check_write(both.write)
        except (msgspec.MsgspecError, TypeError, ValueError) as e:
            raise (e if isinstance(e, BadArgument) else ProtocolError(f"verb {ask.verb!r}: {e}")) from None
        its = bound.get(both.write.namespace)
        if its is not None and its.is_read_only:
            raise Unsupported(f"objects of {both.write.namespace!r} lie in {its.url}, which is bound to be read only")
        event = check_emit(Emit(ask.number, both.event, both.key, both.data, both.id), engine.app.limits.max_event)

        def held(is_there: bool) -> None:
            try:
                if not is_there:
                    raise StorageFailed(_LOST)
                clients.accept(event, now(), lambda: say(Answer(ask.number, msgspec.Raw(_encode(None)))), both.write)
            except GrapeError as e:
                say(Refused(ask.number, e.code, str(e)))

        engine.objects.holding(both.write, held)

    return {PUT_EMIT: put}


def objects(engine: Engine, bound: Mapping[str, Bound]) -> dict[str, Verb]:
    """``bound``: namespaces that are in other storages."""

    def write(ask: Ask, say: Say) -> None:
        try:
            writes = _decode(ask.argument)
            for each, _ in writes:
                check_write(each)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as e:
            raise (e if isinstance(e, BadArgument) else ProtocolError(f"verb {ask.verb!r}: {e}")) from None
        if len(writes) > MOST:
            raise BadArgument(f"{len(writes):,} objects at once; at most {MOST:,}")
        if engine.gate.is_full and any(each.size >= 0 for each, _ in writes):
            raise Full("the disk is full but for the reserve")

        def done(found: Sequence[Done] | None) -> None:
            if found is None:
                error = StorageFailed(_LOST)
                say(Refused(ask.number, error.code, str(error)))
            else:
                say(Answer(ask.number, msgspec.Raw(_encode([_brief(each) for each in found]))))

        engine.objects.write(writes, done)

    def storages(ask: Ask, say: Say) -> None:
        say(Answer(ask.number, msgspec.Raw(_encode(bound))))

    return {WRITE_OBJECTS: write, STORAGES: storages}


def _brief(done: Done) -> Done:
    """Without bytes."""
    now = done.now
    return done if now is None else Done(done.holds, done.was_there, msgspec.structs.replace(now, data=b""))
