"""Ids that events bring with them."""

from __future__ import annotations

from zlib import crc32


def content_of(name: str, key: str | None, data: bytes) -> int:
    """Tells an event from others under the same id."""
    return crc32(data, crc32(repr((name, key)).encode()))
