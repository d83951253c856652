"""Objects at the door: what clients want written. They read what is committed themselves, in the directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from grape.engine.engine import Engine
from grape.errors import BadArgument, Full, ProtocolError, StorageFailed
from grape.host.house import Verb
from grape.host.streams import Say
from grape.model.bound import Bound
from grape.model.names import check_write
from grape.model.objects import Done, ObjectWrite, Wanted
from grape.protocol.door import Answer, Ask, Refused

WRITE_OBJECTS: Final = "write-objects"
"""[(`ObjectWrite`, `Wanted`)], each looked at and done as one step; the answer, once all are durable: [`Done`]. The
bytes of those that are too large for a row lie in the directory already."""
STORAGES: Final = "storages"
"""nil; the answer: `Bound` of each namespace that is in another storage, by name."""
MOST: Final = 1_000
_decode = msgspec.msgpack.Decoder(list[tuple[ObjectWrite, Wanted]]).decode
_encode = msgspec.msgpack.Encoder().encode


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
                error = StorageFailed("the bytes of an object are not where they should be; write it again")
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
