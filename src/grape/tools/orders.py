"""Who carries out an order on a data directory: the engine that runs on it, else this process, which owns it then."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Final, Protocol, Self, TypeVar

import msgspec

from grape.client.connection import Connection, dial
from grape.errors import EngineError, GrapeError, UsageError
from grape.model.spots import Place, Spot
from grape.model.stored import AppRecord
from grape.protocol.door import Ask, FromClient
from grape.protocol.orders import (
    BURY_EVENTS,
    DELETE_STATE,
    DROP,
    DROP_EVENTS,
    RETRY,
    Changes,
    Events,
    Letters,
    States,
)
from grape.tools.backlog import BacklogRepair
from grape.tools.directory import Directory

T = TypeVar("T")
L = TypeVar("L", Place, Spot)

_PAGE: Final = 500
"""Ids of one question, all of one partition: its answer comes within seconds."""
_PATIENCE: Final = 60.0

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Changes).decode


class Hand(Protocol):
    """Changes a directory. Methods are those of `BacklogRepair`."""

    directory: Directory

    @property
    def is_running(self) -> bool:
        """An engine does it, and goes on with what has changed."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def retry(self, record: AppRecord, places: Iterable[Place], held: bool = False) -> Changes: ...
    def drop(self, record: AppRecord, places: Iterable[Place], held: bool = False) -> Changes: ...
    def take_out(self, record: AppRecord, spots: Iterable[Spot], bury: bool) -> Changes: ...
    def delete_state(self, record: AppRecord, node: str, keys: Iterable[str]) -> Changes: ...


def hand_on(path: str) -> Hand:
    """
    Raises:
        UsageError: as `Directory.open`; InUse (names the pid) if what runs on it is no engine that can be asked.
        Corrupt, StorageFailed: as `Directory.open`.
        NoAnswer: the engine has not begun in time.
    """
    try:
        connection = dial(os.fspath(path))
    except UsageError:  # none runs on it, or it is no directory, or not this user's: who opens it says so
        return BacklogRepair(path)
    try:
        return Asked(path, connection)
    except GrapeError:
        if not connection.is_over:
            raise
        return BacklogRepair(path)  # it was at its end when it was asked


class Asked:
    """The engine that runs on the directory, asked page by page.

    Args:
        connection: to it, not started yet; closed with this.
    """

    is_running = True

    def __init__(self, path: str, connection: Connection) -> None:
        self._connection = connection
        try:
            connection.start().let_in()
            self.directory = Directory.open(path)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()
        self.directory.reader.close()

    def retry(self, record: AppRecord, places: Iterable[Place], held: bool = False) -> Changes:
        return self._letters(RETRY, record, places, held)

    def drop(self, record: AppRecord, places: Iterable[Place], held: bool = False) -> Changes:
        return self._letters(DROP, record, places, held)

    def take_out(self, record: AppRecord, spots: Iterable[Spot], bury: bool) -> Changes:
        pages = _pages(sorted(set(spots)))
        arguments = [_encode(Events([spot.id for spot in page])) for page in pages]
        return self._order(record, BURY_EVENTS if bury else DROP_EVENTS, arguments)

    def delete_state(self, record: AppRecord, node: str, keys: Iterable[str]) -> Changes:
        for key in keys:
            self.directory.state_place(record, node, key)  # that there is the node
        packed = [key.encode("utf-8", "surrogateescape") for key in keys]
        return self._order(record, DELETE_STATE, [_encode(States(node, page)) for page in _split(packed)])

    def _letters(self, verb: str, record: AppRecord, places: Iterable[Place], held: bool) -> Changes:
        pages = _pages(sorted(set(places)))
        return self._order(record, verb, [_encode(Letters([place.id for place in page], held)) for page in pages])

    def _order(self, record: AppRecord, verb: str, arguments: list[bytes]) -> Changes:
        """
        Raises:
            UsageError: the engine is of another app.
            EngineError: it has ended meanwhile, or does not answer.
        """
        runs = self._connection.described.result().topology.name
        if runs != record.name:
            raise UsageError(f"the engine that runs on {self.directory.reader.directory} is of app {runs!r}")
        changes = Changes()
        for done, argument in enumerate(arguments):
            changes.add(self._ask(verb, argument, done, len(arguments)))
        return changes

    def _ask(self, verb: str, argument: bytes, done: int, of: int) -> Changes:
        def question(number: int) -> FromClient:
            return Ask(number, verb, msgspec.Raw(argument))

        far = f" (the first {done:,} of {of:,} parts of it are done)" if done else ""
        again = f"give the order again: what is done is left out{far}"
        try:
            answer: bytes = self._connection.ask(question).result(_PATIENCE)
        except GrapeError:
            if self._connection.is_over:
                raise EngineError(f"the engine has ended meanwhile; {again}") from None
            raise
        except TimeoutError:
            raise EngineError(f"the engine has not answered for {_PATIENCE:g} s; {again}") from None
        return _decode(answer)


def _pages(ids: Iterable[L]) -> Iterator[list[L]]:
    """Of one partition each."""
    for _, group in groupby(ids, lambda one: (one.log, one.partition)):
        yield from _split(group)


def _split(items: Iterable[T]) -> Iterator[list[T]]:
    items = iter(items)
    while page := list(islice(items, _PAGE)):
        yield page
