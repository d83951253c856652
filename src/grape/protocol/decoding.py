"""Decoding of what is not known before to be asked for."""

from __future__ import annotations

import threading
from typing import Any, Final, TypeVar, cast

import msgspec

T = TypeVar("T")

_decoders: Final[dict[Any, msgspec.msgpack.Decoder[Any]]] = {}
_making: Final = threading.Lock()


def decode_as(kind: type[T], data: bytes | msgspec.Raw) -> T:
    """As `msgspec.msgpack.decode`, from any thread: what msgspec knows of a type it finds out at its first use, and two
    threads that do so at the same time have ended the process with a segmentation fault (0.21).

    Raises:
        MsgspecError: it is none.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _making:
            decoder = _decoders.setdefault(kind, msgspec.msgpack.Decoder(kind))
    return cast(T, decoder.decode(data))
