"""Where a namespace of objects lies, if it does not in its app's own store."""

from __future__ import annotations

from msgspec import Struct


class Bound(Struct, frozen=True):
    """In another storage. ``url``: of it. ``namespace``: its name there. ``is_read_only``: whoever runs the app lets it
    do no more, whatever the app says."""

    url: str
    namespace: str
    is_read_only: bool = False
