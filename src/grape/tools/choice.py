"""Which of many letters, held or waiting events are meant: by node, event, kind and key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

from msgspec import Struct


class Described(Protocol):
    """What a choice looks at."""

    @property
    def node(self) -> str: ...
    @property
    def event(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str | None: ...


T = TypeVar("T")


class Choice(Struct, frozen=True):
    """None: any. All that are given have to fit."""

    node: str | None = None
    event: str | None = None
    kind: str | None = None
    key: str | None = None

    @property
    def is_any(self) -> bool:
        return self == Choice()

    def fits(self, row: Described) -> bool:
        return (
            (self.node is None or row.node == self.node)
            and (self.event is None or row.event == self.event)
            and (self.kind is None or row.kind == self.kind)
            and (self.key is None or row.key == self.key)
        )


def limited(items: Iterable[T], limit: int | None) -> Iterator[T]:
    """At most ``limit``; None: all."""
    return islice(items, limit)
