"""The embedded transport against the contract."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grape.abc.transport import TABLES, Callbacks, Transport
from grape.store.large import INLINE_LIMIT
from grape.store.late import LATE_BYTES
from grape.store.pace import Pace
from grape.store.store import Store
from grape.testing.contracts.client import Subject
from grape.testing.contracts.transport import Operation, TransportContract, follow
from grape.transports.embedded import EmbeddedTransport


class Moody:
    """A pace as it may be: sometimes writes are light."""

    def __init__(self) -> None:
        self._random = Random(7)

    def wrote(self, began: float, ended: float) -> None:
        """However long it took."""

    @property
    def is_light(self) -> bool:
        return self._random.random() < 0.7


class EmbeddedSubject(Subject):
    """``writes_itself``: now the engine's thread writes, and now the store's. The others: as of `Store`."""

    def __init__(
        self, *, writes_itself: bool = False, late_bytes: int = LATE_BYTES, inline_limit: int = INLINE_LIMIT
    ) -> None:
        self.inline_limit = inline_limit
        self.writes_itself = writes_itself
        self.late_bytes = late_bytes
        self.root = Path(tempfile.mkdtemp(prefix="grape-contract-"))
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def open(self, callbacks: Callbacks) -> EmbeddedTransport:
        soon = self.posted.put if self.writes_itself else None
        store = Store(
            self.root / "data",
            self.posted.put,
            soon=soon,
            late_bytes=self.late_bytes,
            inline_limit=self.inline_limit,
        )
        if self.writes_itself:
            store._pace = cast(Pace, Moody())
        return EmbeddedTransport(store, callbacks)

    def drive(self, transport: Transport, until: Callable[[], bool]) -> None:
        while not until():
            self.posted.get(timeout=30)()

    def restart(self) -> None:
        self.posted = SimpleQueue()

    def close(self) -> None:
        shutil.rmtree(self.root)


class TestEmbedded(TransportContract):
    def subject(self) -> Subject:
        return EmbeddedSubject()


class TestEmbeddedWhereTheEngineWrites(TransportContract):
    def subject(self) -> Subject:
        return EmbeddedSubject(writes_itself=True)


class TestEmbeddedWhereStateIsMergedAtOnce(TransportContract):
    def subject(self) -> Subject:
        return EmbeddedSubject(late_bytes=0)


class TestEmbeddedWhereRowsLieInFiles(TransportContract):
    def subject(self) -> Subject:
        return EmbeddedSubject(inline_limit=20)


keys = st.sampled_from([b"", b"a", b"b", b"k" * 489, b"k" * 490, b"k" * 600, b"k" * 599 + b"z"])
operations = st.lists(
    st.builds(
        Operation,
        st.sampled_from(["commit", "commit", "commit", "claim", "reopen"]),
        st.integers(0, 2),
        st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=20) | st.just(b"b" * 6000)), max_size=3),
        st.lists(st.tuples(st.sampled_from(TABLES), keys, st.none() | st.binary(max_size=20)), max_size=4),
        st.none() | st.integers(0, 4),
        st.lists(st.integers(0, 5), max_size=2),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(operations, st.booleans(), st.sampled_from([0, 500, LATE_BYTES]), st.sampled_from([15, INLINE_LIMIT]))
def test_agrees_with_a_model(walk: list[Operation], writes_itself: bool, late_bytes: int, inline_limit: int) -> None:
    with closing(
        EmbeddedSubject(writes_itself=writes_itself, late_bytes=late_bytes, inline_limit=inline_limit)
    ) as subject:
        follow(subject, walk)
