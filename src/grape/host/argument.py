"""What a verb is asked with."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from grape.errors import BadArgument, ProtocolError
from grape.protocol.door import Ask

T = TypeVar("T")


def argument_of(ask: Ask, kind: type[T]) -> T:
    """
    Raises:
        BadArgument: it is not what the verb is asked with.
        ProtocolError: it is no value at all.
    """
    try:
        return msgspec.msgpack.decode(ask.argument, type=kind)
    except msgspec.ValidationError as e:
        raise BadArgument(f"{ask.verb}: {e}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolError(f"verb {ask.verb!r}: {e}") from None
