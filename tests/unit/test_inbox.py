"""The inbox beside a plain model: of every origin exactly the next is taken, once, over restarts."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from grape.engine.inbox import Inbox, origin_key, own_origin
from grape.model.address import PartitionId
from grape.model.batch import Header
from grape.model.cursor import Progress
from grape.model.stored import Reading

TARGET = PartitionId(1, 1, 0)


def header(origin: int, sequence: int, events: int = 3, incarnation: int = 7) -> Header:
    return Header(PartitionId(1, 2, origin), TARGET, incarnation, sequence, 0, events, 0, 0)


ARRIVALS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=40)


@given(ARRIVALS, st.data())
def test_of_every_origin_exactly_the_next_is_taken_once(arrivals: list[tuple[int, int]], data: st.DataObject) -> None:
    """``arrivals``: (origin, number) in the order of the log, with gaps and doubles."""
    reading = Reading()
    inbox = Inbox(reading)
    log = [header(origin, sequence) for origin, sequence in arrivals]
    taken: list[Header] = []
    accepted: dict[int, Header] = {}
    duplicates = 0

    def read() -> None:
        nonlocal duplicates
        more = True
        while more:
            for position in range(inbox.read_to, len(log)):
                batch = inbox.offer(position, log[position], 10)
                if batch is not None and position not in accepted:
                    assert not batch.in_work
                    accepted[position] = log[position]
                    taken.append(log[position])
                inbox.passed(position)
            more = inbox.unpark()
        for position, events, size in inbox.dropped:
            assert (events, size) == (3, 10)
            assert inbox.cursor.is_finished(position)
            duplicates += 1
        inbox.dropped.clear()

    for _ in range(data.draw(st.integers(1, 6))):
        read()
        idle = inbox.idle()
        assert [accepted[p] for p in idle] == [h for h in taken if h in [accepted[p] for p in idle]]
        if idle and data.draw(st.booleans()):
            position = data.draw(st.sampled_from(idle))
            whole = data.draw(st.booleans())
            before = inbox.cursor.progress(position).finished()
            newly = inbox.progress(position, Progress(3 if whole else max(1, before)))
            assert newly == (3 if whole else max(1, before)) - before
            assert (position in inbox.open) is not whole
        if data.draw(st.booleans()):
            at, above = inbox.advance()
            unfinished = [p for p in range(len(log)) if not inbox.cursor.is_finished(p)]
            assert at == min(unfinished, default=len(log))
            assert sorted(above) == [p for p in range(at, len(log)) if inbox.cursor.is_finished(p)]
            assert all(inbox.cursor.is_finished(p) for p in range(at))
        if data.draw(st.booleans()):  # killed: what is not in the head is gone
            inbox.advance()
            reading = msgspec.msgpack.decode(msgspec.msgpack.encode(reading), type=Reading)
            inbox = Inbox(reading)
            assert inbox.read_to == reading.cursor.position
    read()
    for origin in range(3):
        own = [h.sequence for h in taken if h.origin.number == origin]
        sent = {sequence for o, sequence in arrivals if o == origin}
        assert own == list(range(len(own)))
        assert len(own) not in sent  # nothing that is next was left lying
    assert duplicates == len(arrivals) - len(taken) - len(
        [1 for p in range(len(log)) if p not in accepted and not inbox.cursor.is_finished(p)]
    )


def test_a_worker_that_has_gone_gives_its_batches_back() -> None:
    inbox = Inbox(Reading())
    for position in range(2):
        batch = inbox.offer(position, header(0, position), 5)
        assert batch is not None
        batch.in_work = True
    assert inbox.idle() == []
    inbox.give_back()
    assert inbox.idle() == [0, 1]


def test_what_went_to_another_taker_is_no_gap() -> None:
    inbox = Inbox(Reading())
    inbox.catch_up(header(0, 5))
    assert inbox.offer(0, header(0, 5), 1) is not None
    inbox.catch_up(header(0, 2))  # never back
    assert inbox.offer(1, header(0, 6), 1) is not None


def test_an_origin_is_known_by_its_incarnation_too() -> None:
    inbox = Inbox(Reading())
    assert inbox.offer(0, header(0, 0, incarnation=1), 1) is not None
    assert inbox.offer(1, header(0, 0, incarnation=2), 1) is not None
    one = header(0, 0, incarnation=1)
    assert origin_key(one) == own_origin(one.origin, 1) != own_origin(one.origin, 2)


def test_what_waits_for_one_before_it_is_taken_when_that_has_come() -> None:
    inbox = Inbox(Reading())
    assert inbox.offer(0, header(0, 1), 5) is None
    assert inbox.offer(0, header(0, 1), 5) is None  # it is known
    inbox.passed(0)
    assert inbox.unpark() is False
    assert inbox.advance() == (0, set())  # nothing behind it is forgotten
    assert inbox.offer(1, header(0, 0), 5) is not None
    inbox.passed(1)
    assert inbox.unpark() is True
    assert inbox.read_to == 0
    assert inbox.offer(0, header(0, 1), 5) is not None
    assert inbox.unpark() is False
    assert inbox.idle() == [1, 0]  # in the order of their numbers


def test_nothing_before_the_first_that_came_of_an_origin_is_waited_for_once_it_is_said_to_be_gone() -> None:
    inbox = Inbox(Reading())
    inbox.catch_up(header(0, 0))
    assert inbox.offer(0, header(0, 0), 1) is not None
    assert inbox.dropped == []


def test_an_origin_is_ten_bytes() -> None:
    """It stands in heads."""
    assert own_origin(PartitionId(1, 2, 3), 4) == b"\0\1\0\2\0\3\0\0\0\4"


def test_what_is_open_is_the_same_whenever_it_is_read() -> None:
    inbox = Inbox(Reading())
    batch = inbox.offer(0, header(0, 0), 5)
    assert batch is not None
    assert inbox.offer(0, header(0, 0), 5) is batch
    assert (batch.position, batch.size, batch.header.sequence) == (0, 5, 0)


def test_the_cursor_stands_at_the_first_that_is_not_finished() -> None:
    inbox = Inbox(Reading())
    for position in range(4):
        assert inbox.offer(position, header(0, position), 5) is not None
        inbox.passed(position)
    inbox.passed(1)  # never back
    assert inbox.read_to == 4
    assert inbox.progress(1, Progress(3)) == 3
    assert inbox.progress(2, Progress(1)) == 1
    assert inbox.progress(2, Progress(1, b"\1")) == 1
    assert inbox.cursor.progress(2) == Progress(1, b"\1")
    assert inbox.advance() == (0, {1})
    assert inbox.progress(0, Progress(3)) == 3
    assert inbox.advance() == (2, set())
    assert inbox.progress(2, Progress(3)) == 1
    assert inbox.progress(3, Progress(3)) == 3
    assert inbox.advance() == (4, set())


def test_after_a_restart_what_was_begun_is_to_be_read_again() -> None:
    reading = Reading()
    reading.cursor.partial[3] = Progress(1)
    reading.seen[origin_key(header(0, 0))] = 4
    inbox = Inbox(reading)
    assert inbox.idle() == [3]
    batch = inbox.offer(3, header(0, 3), 5)
    assert batch is not None
    assert inbox.dropped == []
    assert inbox.cursor.progress(3) == Progress(1)
    batch.in_work = True
    assert inbox.idle() == []
