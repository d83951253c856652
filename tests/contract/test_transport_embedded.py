"""The embedded transport against the contract."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grape.abc.transport import TABLES, Callbacks, Transport
from grape.testing.contracts.client import Subject
from grape.testing.contracts.transport import Operation, TransportContract, follow
from grape.transports.embedded import EmbeddedTransport


class EmbeddedSubject(Subject):
    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="grape-contract-"))
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def open(self, callbacks: Callbacks) -> EmbeddedTransport:
        return EmbeddedTransport.open(self.root / "data", callbacks, self.posted.put)

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
@given(operations)
def test_agrees_with_a_model(walk: list[Operation]) -> None:
    with closing(EmbeddedSubject()) as subject:
        follow(subject, walk)
