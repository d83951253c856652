"""The LMDB store: lock, format, growth, damage, crashes. Where a fault is of a process, it is a real one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import Queue, SimpleQueue
from shutil import copytree, rmtree
from typing import Any

import pytest

from grape.abc.transport import Callbacks, Claim, Commit, Outcome, Send, Table
from grape.errors import Corrupt, InUse, StorageFailed, UsageError
from grape.model.address import PartitionId
from grape.store import reader as reading
from grape.store import rows as row_format
from grape.store import store as storing
from grape.store.files import Holder, holder, write_durably
from grape.store.pace import LIGHT_BYTES, Pace
from grape.store.reader import LogEnds, Reader
from grape.store.store import Store
from grape.store.writing import Writing
from grape.transports.embedded import EmbeddedTransport

P = [PartitionId(1, 1, n) for n in range(4)]
MIB = 1 << 20


def run_at_once(function: Callable[[], None]) -> None:
    """A ``post``: on the thread that writes."""
    function()


def write(store: Store, apply: Callable[[Writing, Any], Any], argument: Any) -> Any:
    """Durable when it returns; of a store that answers at once."""
    results: Queue[list[Any]] = Queue()
    store.submit(apply, argument, results.put)
    return results.get(timeout=30)[0]


class Engine:
    """An embedded transport with one owner of P[0], driven by hand."""

    def __init__(self, directory: Path, *, writes_itself: bool = False, **options: int) -> None:
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.outcomes: list[Outcome] = []
        self.failures: list[BaseException] = []
        soon = self.posted.put if writes_itself else None
        self.store = Store(directory, self.posted.put, soon=soon, **options)
        self.transport = EmbeddedTransport(
            self.store,
            Callbacks(
                lambda r: self.outcomes.extend(o for _, o in r), lambda a: None, self.failures.append, self._claimed
            ),
        )
        self.claims: list[Claim] = []
        self.claim()
        self.number = 0

    def write(self, apply: Callable[[Writing, Any], Any], argument: Any) -> None:
        results: list[Any] = []
        self.store.submit(apply, argument, results.extend)
        while not results:
            self.posted.get(timeout=30)()

    def _claimed(self, claims: list[tuple[PartitionId, Claim]]) -> None:
        self.claims += [claim for _, claim in claims]

    @property
    def claimed(self) -> Claim:
        return self.claims[-1]

    def claim(self, *partitions: PartitionId) -> None:
        wanted = len(self.claims) + len(partitions or P[:1])
        self.transport.claim(partitions or P[:1])
        while len(self.claims) < wanted:
            self.posted.get(timeout=30)()
            if self.failures:
                raise self.failures[0]

    def submit(self, **parts: object) -> None:
        self.number += 1
        head = parts.pop("head", b"%d" % self.number)
        self.transport.commit(Commit(P[0], self.claimed.term, self.number, head, **parts))  # type: ignore[arg-type]

    def commit(self, **parts: object) -> None:
        self.submit(**parts)
        self.wait(len(self.outcomes) + 1)

    def wait(self, outcomes: int) -> None:
        while len(self.outcomes) < outcomes and not self.failures:
            self.posted.get(timeout=30)()

    def settle(self) -> None:
        """As `settle`."""
        while self.store._known.late.is_due:
            self.write(lambda w, _: None, None)

    def close(self) -> None:
        self.transport.close()


def run(code: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A real process that runs ``code`` (`sys.argv` from 1 on: the arguments)."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )


def write_one(directory: Path) -> None:
    engine = Engine(directory, late_bytes=0)
    engine.commit(rows=[("state", [(b"key", b"value")])], sends=[Send(P[0], b"batch", 1)])
    engine.settle()
    engine.close()


def settle(store: Store) -> None:
    """All changes are in their tree, of a store without any room for them in memory."""
    while store._known.late.is_due:
        write(store, lambda w, _: None, None)


# The lock

HOLD = """
import sys
from grape.store.store import Store
store = Store(sys.argv[1], lambda f: None)
print("open", flush=True)
sys.stdin.readline()
"""


def test_f28_a_second_engine_is_refused_with_pid_and_host(tmp_path: Path) -> None:
    """F28: by another process; freed when that one is killed."""
    child = run(HOLD, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    with pytest.raises(InUse) as refused:
        Store(tmp_path, lambda f: None)
    assert str(child.pid) in str(refused.value)
    assert socket.gethostname() in str(refused.value)
    assert holder(tmp_path) == Holder(child.pid, socket.gethostname())
    Reader(tmp_path).close()
    child.kill()
    child.wait()
    assert holder(tmp_path) is None
    Store(tmp_path, lambda f: None).close()


def test_f28_a_second_engine_in_the_same_process_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, run_at_once)
    with pytest.raises(InUse, match=str(os.getpid())):
        Store(tmp_path, lambda f: None)
    store.close()
    store.close()
    assert holder(tmp_path) is None
    assert holder(tmp_path / "nowhere") is None


def test_asking_who_holds_the_lock_never_refuses_an_engine(tmp_path: Path) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            holder(tmp_path)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(50):
            Store(tmp_path, lambda f: None).close()
    finally:
        stop.set()
        for thread in asking:
            thread.join()


# The format


def test_an_unknown_format_is_refused_naming_both(tmp_path: Path) -> None:
    """F90, F91: before anything is written."""
    write_one(tmp_path)
    (tmp_path / "format").write_text("grape-data 7\n")
    before = (tmp_path / "data.mdb").read_bytes()
    for opening in (lambda: Store(tmp_path, lambda f: None), lambda: Reader(tmp_path)):
        with pytest.raises(UsageError, match=r"'grape-data 7'.*'grape-data 3'"):
            opening()
    assert (tmp_path / "data.mdb").read_bytes() == before
    assert holder(tmp_path) is None


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for opening in (lambda: Store(tmp_path, lambda f: None), lambda: Reader(tmp_path)):
        with pytest.raises(UsageError, match=r"thesis\.txt"):
            opening()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="no data"):
        Reader(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        Store(tmp_path / "file", lambda f: None)


def test_data_that_belongs_to_another_format_file_is_refused(tmp_path: Path) -> None:
    write_one(tmp_path)
    store = Store(tmp_path, run_at_once)
    write(store, lambda w, _: w._txn.delete(b"format", db=w._dbs["meta"]), None)
    store.close()
    with pytest.raises(UsageError, match="do not belong together"):
        Reader(tmp_path)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["lock"], "made"),
        (["lock", "data.mdb"], "made"),
        (["lock", "data.mdb", "lock.mdb", "format.new"], "made"),
        (["format"], "refused"),
    ],
)
def test_an_unfinished_directory_is_finished(tmp_path: Path, files: list[str], what: str) -> None:
    """F13, F27: what a kill while the directory is made can leave behind."""
    write_one(tmp_path / "whole")
    directory = tmp_path / "half"
    directory.mkdir()
    for name in files:
        (directory / name).write_bytes(b"")
    if what == "refused":
        (directory / "format").write_text("grape-data 1\n")
        with pytest.raises(Corrupt, match=r"data\.mdb is missing"):
            Store(directory, lambda f: None)
    else:
        write_one(directory)
        assert Reader(directory).get(P[0], "state", [b"key"]) == [b"value"]


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)])
def test_f14_a_directory_whose_first_pages_were_lost_with_the_power_is_finished(
    tmp_path: Path, lost: tuple[int, ...]
) -> None:
    """F14: they were written, and others behind them, and nothing was durable yet."""
    Store(tmp_path, lambda f: None).close()
    with open(tmp_path / "data.mdb", "r+b") as file:
        for page in lost:
            file.seek(page * 4096)
            file.write(bytes(4096))
    with pytest.raises(Corrupt):  # what was complete is damaged
        Store(tmp_path, lambda f: None)
    (tmp_path / "format").unlink()
    write_one(tmp_path)
    assert Reader(tmp_path).get(P[0], "state", [b"key"]) == [b"value"]


def test_data_survives_the_loss_of_the_format_file(tmp_path: Path) -> None:
    write_one(tmp_path)
    (tmp_path / "format").unlink()
    store = Store(tmp_path, run_at_once)
    assert store.get(P[0], "state", [b"key"]) == [b"value"]
    store.close()
    assert (tmp_path / "format").read_text() == "grape-data 3\n"


# Claims


def test_all_claims_of_one_call_are_one_transaction(tmp_path: Path) -> None:
    """And one fsync, however many there are."""
    engine = Engine(tmp_path)
    before = engine.store._env.info()["last_txnid"]
    engine.claim(*(PartitionId(1, pool, number) for pool in range(4) for number in range(32)))
    assert len(engine.claims) == 1 + 128
    assert engine.store._env.info()["last_txnid"] == before + 1
    engine.close()


def test_a_claim_that_finds_damage_fails_the_transport(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.write(lambda w, _: w._txn.put(P[1].packed(), b"no head at all, but bytes", db=w._dbs["head"]), None)
    with pytest.raises(Corrupt):
        engine.claim(P[0], P[1])
    assert len(engine.claims) == 1
    engine.close()


# Growth and room


def test_the_map_grows_by_itself(tmp_path: Path) -> None:
    """Also with a reader's transaction coming and going, and in the middle of a group."""
    engine = Engine(tmp_path, map_size=MIB)
    values = [os.urandom(100_000) for _ in range(100)]
    for n, value in enumerate(values):
        engine.submit(rows=[("state", [(b"%d" % n, value)])], sends=[Send(P[1], value, 1)])
        engine.transport.get(P[0], "state", [b"0"])
    engine.wait(100)
    assert engine.failures == []
    assert engine.transport.get(P[0], "state", [b"%d" % n for n in range(100)]) == values
    assert [s.batch for s in engine.transport.read(P[1], 0, 1 << 40)] == values
    assert list(engine.store.verify()) == []
    engine.close()
    assert (tmp_path / "data.mdb").stat().st_size > 20_000_000


def test_f17_a_full_store_stops_commits_and_nothing_else(tmp_path: Path) -> None:
    """F17: at the largest size: what was confirmed is there, reads go on, more room helps."""
    engine = Engine(tmp_path, map_size=MIB, max_size=4 * MIB)
    n = 0
    while not engine.failures:
        engine.commit(rows=[("state", [(b"%d" % n, b"x" * 100_000)])])
        n += 1
    engine.submit(rows=[("state", [(b"late", b"")])])
    assert isinstance(engine.failures[0], StorageFailed)
    assert "max-size" in str(engine.failures[0])
    confirmed = len(engine.outcomes)
    assert 10 < confirmed < 42
    assert engine.transport.get(P[0], "state", [b"%d" % (confirmed - 1), b"%d" % confirmed, b"late"]) == [
        b"x" * 100_000,
        None,
        None,
    ]
    engine.transport.claim([P[0]])
    engine.close()
    assert len(engine.claims) == 1
    assert len(engine.failures) == 1
    assert not (tmp_path / "verify").exists()
    engine = Engine(tmp_path, max_size=64 * MIB)
    assert engine.claimed.number == confirmed
    engine.commit(rows=[("state", [(b"more", b"x" * 1_000_000)])])
    engine.close()


@pytest.mark.parametrize("inline_limit", [MIB, 2 * MIB])
def test_room_counts_what_is_written_and_what_is_freed(tmp_path: Path, inline_limit: int) -> None:
    engine = Engine(tmp_path, max_size=64 * MIB, inline_limit=inline_limit)

    def room() -> int:
        engine.store._room = (0.0, 0, 0)  # measure again
        return engine.transport.room()

    empty = room()
    assert 60 * MIB < empty <= 64 * MIB
    for _ in range(20):
        engine.commit(sends=[Send(P[0], os.urandom(MIB), 1)])
    assert engine.transport.room() <= empty - 20 * MIB + 100_000  # also without measuring again
    full = room()
    assert 40 * MIB < full <= empty - 20 * MIB + 100_000
    engine.transport.trim(P[0], 20)
    engine.commit()
    engine.commit()
    assert full + 8 * MIB < room() <= empty
    if inline_limit == MIB:  # all of them lay in files
        assert room() > empty - 100_000
    engine.close()


def test_the_file_stays_flat_under_append_and_trim(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    sizes = []
    for n in range(1200):
        engine.commit(
            sends=[Send(P[0], bytes(40_000 + 997 * n % 100_000), 1)],
            rows=[("state", [(b"%d" % (n * 7919 % 1000), b"x" * 50)])],
        )
        engine.transport.trim(P[0], max(0, n - 5))
        if n % 400 == 399:
            sizes.append((tmp_path / "data.mdb").stat().st_size)
    engine.close()
    assert sizes[-1] <= sizes[0] * 1.5
    assert sizes[-1] < 16 * MIB


# The writer thread


def test_one_post_for_a_group_and_answers_in_order(tmp_path: Path) -> None:
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    store = Store(tmp_path, posted.put)
    answers: list[list[int]] = []
    entered, go = threading.Event(), threading.Event()

    def wait(writing: Writing, n: int) -> int:
        entered.set()
        go.wait()
        return n

    store.submit(wait, 0, answers.append)
    entered.wait()
    for n in range(1, 100):
        store.submit(lambda writing, n: n, n, answers.append)
    go.set()
    posted.get(timeout=30)()
    assert [n for group in answers for n in group] == list(range(100))
    assert len(answers) == 1
    assert posted.empty()
    store.close()


def test_a_group_ends_when_it_holds_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that lies alone costs a page, however small it is."""
    monkeypatch.setattr(storing, "GROUP_PAGES", 100)
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    store = Store(tmp_path, posted.put)

    def groups(table: Table, many: list[list[tuple[bytes, bytes]]]) -> list[int]:
        """How many of these writes, queued at once, each transaction takes."""
        answers: list[list[None]] = []
        entered, go = threading.Event(), threading.Event()

        def wait(writing: Writing, _: object) -> None:
            entered.set()
            go.wait()

        store.submit(wait, None, answers.append)
        entered.wait()
        for rows in many:
            store.submit(lambda writing, rows: writing.put(P[0], table, rows), rows, answers.append)
        go.set()
        while sum(map(len, answers)) <= len(many):
            posted.get(timeout=30)()
        return [len(group) for group in answers]

    few = [[(b"%d" % n, b"x" * 20) for n in range(10)]]
    assert groups("dead", few * 200) == [201]
    full = [(b"%06d" % n, b"x" * 100) for n in range(20_000)]
    assert len(groups("dead", [full])) == 1
    assert groups("dead", [full[i::2000] for i in range(40)]) == [11, 10, 10, 10]
    assert groups("state", few * 40) == [11, 10, 10, 10]  # they will be merged, perhaps into many pages
    store.close()


def test_what_is_large_is_written_beside_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_light", True)
    engine = Engine(tmp_path, writes_itself=True)
    writers: list[str] = []
    for size in (1, LIGHT_BYTES, LIGHT_BYTES + 1, 1):
        before = len(writers)
        engine.store.submit(lambda writing, _: threading.current_thread().name, None, writers.extend, size)
        while len(writers) == before:
            engine.posted.get(timeout=30)()
    engine.close()
    assert writers == ["MainThread", "MainThread", "grape-store", "MainThread"]


def test_what_one_thread_has_done_is_answered_before_the_other_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "is_light", True)
    engine = Engine(tmp_path, writes_itself=True)
    written: list[int] = []
    answered: list[int] = []

    def apply(writing: Writing, number: int) -> int:
        written.append(number)
        return number

    sizes = [1, LIGHT_BYTES + 1, 1, 1, LIGHT_BYTES + 1, 1]
    for number, size in enumerate(sizes):  # all in one turn of the engine
        engine.store.submit(apply, number, answered.extend, size)
    while len(answered) < len(sizes):
        engine.posted.get(timeout=30)()
    engine.close()
    assert written == answered == list(range(len(sizes)))


def test_nothing_is_written_once_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_light", True)
    engine = Engine(tmp_path, writes_itself=True)
    engine.store.submit(lambda writing, _: None, None, lambda results: None, 1)
    engine.close()
    engine.store.submit(lambda writing, _: None, None, lambda results: None, 1)
    while not engine.posted.empty():
        engine.posted.get()()
    assert engine.store.error is None
    assert not (tmp_path / "verify").exists()


def test_much_in_one_turn_is_written_beside_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_light", True)
    engine = Engine(tmp_path, writes_itself=True)
    writers: list[str] = []
    for _ in range(40):
        engine.store.submit(lambda writing, _: threading.current_thread().name, None, writers.extend, 2_000)
    while len(writers) < 40:
        engine.posted.get(timeout=30)()
    engine.close()
    assert set(writers) == {"grape-store"}


def test_a_closed_store_reads_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, run_at_once)
    store.close()
    with pytest.raises(StorageFailed):
        store.get(P[0], "state", [b"k"])


def test_a_mistake_in_a_write_stops_the_store(tmp_path: Path) -> None:
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    store = Store(tmp_path, posted.put)
    failures: list[BaseException] = []
    answers: list[list[None]] = []
    store.on_failed(failures.append)
    store.submit(lambda writing, _: writing.put(P[0], "state", [(b"k", b"v")]), None, answers.append)
    posted.get(timeout=30)()
    store.submit(lambda writing, _: writing.put(P[0], "nonsense", [(b"k", b"v")]), None, answers.append)  # type: ignore[arg-type]
    posted.get(timeout=30)()
    assert [type(e) for e in failures] == [KeyError]
    assert answers == [[None]]
    store.close()


# Readers in other processes

READ = """
import sys
from grape.model.address import PartitionId
from grape.store.reader import Reader
reader = Reader(sys.argv[1])
p = PartitionId(1, 1, 0)
seen = set()
checks = 0
while len(seen) < 150:
    a, b = reader.get(p, "state", [b"a", b"b"])
    assert a == b, (a, b)
    if a is not None:
        seen.add(a)
    rows = reader.scan(p, "state", b"", 100)
    assert rows[0][1] == rows[1][1]
    for stored in reader.read(p, 0, 1 << 20):
        assert stored.batch[:1] * 50_000 == stored.batch
    checks += 1
    if checks % 10 == 0:
        assert list(reader.verify()) == []
    if checks == 1:
        print("reading", flush=True)
print("done", flush=True)
"""


def test_another_process_reads_while_the_engine_writes(tmp_path: Path) -> None:
    """In slices, over the growth of the map, always one commit's state."""
    engine = Engine(tmp_path, map_size=MIB)
    engine.commit(rows=[("state", [(b"a", b"0"), (b"b", b"0")])])
    child = run(READ, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "reading\n"
    n = 0
    while child.poll() is None:
        n += 1
        value = b"%d" % n
        engine.commit(
            rows=[("state", [(b"a", value), (b"b", value), (b"pad%d" % (n % 500), bytes(10_000))])],
            sends=[Send(P[0], bytes([n % 256]) * 50_000, 1)],
        )
        engine.transport.trim(P[0], max(0, n - 10))
    assert child.returncode == 0
    assert engine.failures == []
    engine.close()


STUCK = """
import sys
from grape.store.reader import Reader
reader = Reader(sys.argv[1])
with reader._reading():
    print("reading", flush=True)
    sys.stdin.readline()
"""


def test_a_killed_reader_does_not_hold_pages_for_ever(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.commit()
    child = run(STUCK, tmp_path)
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    child.wait()
    engine.close()
    engine = Engine(tmp_path)
    for n in range(200):
        engine.commit(sends=[Send(P[0], bytes(100_000), 1)])
        engine.transport.trim(P[0], n)
    engine.close()
    assert (tmp_path / "data.mdb").stat().st_size < 4 * MIB


# Damage


def _damaged(whole: Path, tmp_path: Path, pattern: bytes) -> Iterator[tuple[int, Path]]:
    """Copies of the directory, each with one bit flipped in one byte of ``pattern``, wherever it is stored."""
    data = (whole / "data.mdb").read_bytes()
    places = [n for n in range(len(data)) if data.startswith(pattern, n)]
    assert places
    for offset in range(len(pattern)):
        copy = tmp_path / f"flipped-{offset}"
        copytree(whole, copy)
        flipped = bytearray(data)
        for place in places:
            flipped[place + offset] ^= 1 << (offset % 8)
        (copy / "data.mdb").write_bytes(flipped)
        yield offset, copy


@pytest.mark.parametrize("table", ["state", "hold", "timer", "dead", "text"])
def test_f23_a_flipped_bit_in_a_row_is_never_served(tmp_path: Path, table: Table) -> None:
    """F23: each byte of key, value and checksum; by get, scan and verify."""
    whole = tmp_path / "whole"
    store = Store(whole, run_at_once, late_bytes=0)
    rows = [(b"key%d" % n, b"value%d" % n) for n in range(9)]
    write(store, lambda w, _: w.put(P[1], table, rows), None)
    write(store, lambda w, _: w.put(P[0], table, rows[:1]), None)
    write(store, lambda w, _: w.put(P[2], table, rows[:1]), None)
    settle(store)
    store.close()
    key = P[1].packed() + b"key4"
    sealed = row_format.sealed(row_format.BASE[table], key, b"value4")
    for offset, copy in _damaged(whole, tmp_path, key + sealed):
        reader = Reader(copy)
        with pytest.raises(Corrupt, match="grape doctor"):
            reader.get(P[1], table, [b"key4"])
        for n in (0, 8):  # a neighbour may be out of reach when a search meets the damaged key, but never silently
            try:
                assert reader.get(P[1], table, [b"key%d" % n]) == [b"value%d" % n], offset
            except Corrupt:
                assert offset < len(key)
        with pytest.raises(Corrupt):
            reader.scan(P[1], table, b"", 100)
        assert len(list(reader.verify())) >= 1
        reader.close()


def test_f23_a_flipped_bit_in_a_long_row_is_never_served(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    store = Store(whole, run_at_once, late_bytes=0)
    name = b"k" * 700
    write(store, lambda w, _: w.put(P[1], "state", [(b"a", b"1"), (name, b"value"), (b"z", b"2")]), None)
    settle(store)
    store.close()
    key = row_format.long_key(P[1].packed(), name)
    value = row_format.sealed(row_format.BASE["state"], key, row_format.LENGTH.pack(700) + name + b"value")
    for offset, copy in _damaged(whole, tmp_path, key[-30:] + value[:20]):
        reader = Reader(copy)
        with pytest.raises(Corrupt):
            reader.get(P[1], "state", [name])
        with pytest.raises(Corrupt):
            reader.scan(P[1], "state", b"", 100)
        assert list(reader.verify()) != [], offset
        reader.close()


def test_f23_a_flipped_bit_in_a_log_row_is_noticed(tmp_path: Path) -> None:
    """F23, F26: key and seal by the store, the batch itself by its own checksum (here: equality)."""
    whole = tmp_path / "whole"
    engine = Engine(whole)
    batches = [b"batch number %d" % n for n in range(5)]
    engine.commit(sends=[Send(P[0], batch, 1) for batch in batches])
    engine.close()
    key = row_format.POSITION.pack(P[0].packed(), 2)
    seal = row_format.batch_seal(key, 1, len(batches[2]))

    def check(log: PartitionId, position: int, batch: bytes) -> str | None:
        return None if batch == batches[position] else "another batch"

    for offset, copy in _damaged(whole, tmp_path, key + seal + batches[2]):
        reader = Reader(copy)
        if offset < len(key + seal):
            for after in (0, 1, 2):
                with pytest.raises(Corrupt):
                    reader.read(P[0], after, 1 << 20)
            with pytest.raises(Corrupt):
                reader.waiting(P[0], 0)
            assert list(reader.verify()) != []
        assert list(reader.verify(check)) != []
        assert [s.batch for s in reader.read(P[0], 4, 1 << 20)] == batches[4:]
        reader.close()


def test_f24_a_flipped_bit_in_a_head_or_in_the_ends_of_a_log_refuses_to_start(tmp_path: Path) -> None:
    """F24: heads and log ends are checked whole at the open."""
    whole = tmp_path / "whole"
    engine = Engine(whole)
    engine.commit(sends=[Send(P[0], b"x", 1)], head=b"the head")
    engine.transport.trim(P[0], 1)
    engine.commit(head=b"the head")
    engine.close()
    packed = P[0].packed()
    head = packed + row_format.sealed(row_format.BASE["head"], packed, row_format.HEAD.pack(1, 2) + b"the head")
    ends = packed + row_format.sealed(row_format.BASE["logs"], packed, row_format.LOG.pack(1, 1))
    for name, row in (("head", head), ("logs", ends)):
        for _, copy in _damaged(whole, tmp_path / name, row):
            with pytest.raises(Corrupt):
                Store(copy, lambda f: None)
            reader = Reader(copy)
            assert list(reader.verify()) != []
            reader.close()
            assert holder(copy) is None


def test_f24_a_file_that_is_not_lmdb_refuses_to_start(tmp_path: Path) -> None:
    write_one(tmp_path)
    (tmp_path / "data.mdb").write_bytes(os.urandom(65536))
    for opening in (lambda: Store(tmp_path, lambda f: None), lambda: Reader(tmp_path)):
        with pytest.raises(Corrupt):
            opening()


def test_verify_works_in_slices_and_finds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SLICE_ROWS", 7)
    store = Store(tmp_path, run_at_once, late_bytes=0)
    for p in P:
        write(store, lambda w, p: w.put(p, "state", [(b"%d" % n, b"v") for n in range(100)]), p)
        write(store, lambda w, p: w.append(p, b"good", 1), p)
    settle(store)

    def damage(writing: Writing, n: int) -> None:
        writing._txn.put(P[2].packed() + b"%d" % n, b"nonsense", db=writing._dbs["state"])

    for n in range(0, 100, 10):
        write(store, damage, n)
    progress: list[int] = []
    findings = list(store.verify(lambda log, at, batch: "bad" if log == P[3] else None, progress.append))
    assert [f.key[6:] for f in findings if f.database == "state"] == sorted(b"%d" % n for n in range(0, 100, 10))
    assert [(f.partition, f.problem) for f in findings if f.database == "log"] == [(P[3], "bad")]
    assert progress[-1] == 1 + 4 + 400
    assert len(progress) > 400 / 7
    assert "state of partition 1/1/2, row 000100010002" in str(findings[1])
    store.close()


def test_logs_and_heads_can_be_listed(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.transport.trim(P[1], 1)
    engine.commit(sends=[Send(P[2], b"x", 1), Send(P[1], b"y", 2)])
    assert engine.store.logs() == [P[1], P[2]]
    assert engine.store.ends(P[1]) == LogEnds(1, 1)
    assert engine.store.ends(P[2]) == LogEnds(0, 1)
    assert {p: h.number for p, h in engine.store.heads().items()} == {P[0]: 1}
    assert engine.store.head(P[3]) is None
    engine.close()


# Crashes and disk errors, with a shim under LMDB

COMMITS = 4
WORK = """
import sys
from queue import SimpleQueue
from grape.abc.transport import Callbacks, Commit, Send
from grape.model.address import PartitionId
from grape.store.store import Store
from grape.transports.embedded import EmbeddedTransport
posted = SimpleQueue()
outcomes, failures, claims = [], [], []
callbacks = Callbacks(lambda r: outcomes.extend(o for _, o in r), lambda a: None, failures.append, claims.extend)
store = Store(sys.argv[1], posted.put, late_bytes=int(sys.argv[3]), inline_limit=int(sys.argv[4]))
transport = EmbeddedTransport(store, callbacks)
p = PartitionId(1, 1, 0)
transport.claim([p])
while not claims:
    posted.get()()
    if failures:
        raise failures[0]
claim = claims[0][1]
first = int(claim.head or b"0")
print("claimed", first, flush=True)
for number in range(1, int(sys.argv[2]) + 1):
    n = first + number
    transport.commit(Commit(
        p, claim.term, number, b"%d" % n, [Send(p, b"%d" % n * 4000, 1)],
        [("state", [(b"count", b"%d" % n), (b"%d" % n, b"x" * 3000)])],
    ))
    transport.trim(p, max(0, n - 3))
    while not outcomes and not failures:
        posted.get()()
    if failures:
        print("failed", type(failures[0]).__name__, failures[0], flush=True)
        transport.close()
        sys.exit(3)
    assert outcomes.pop() == "committed"
    print("committed", n, flush=True)
transport.close()
print("closed", flush=True)
"""


def assert_whole(directory: Path, confirmed: int, submitted: int) -> int:
    """The directory holds exactly what some number of commits, all confirmed ones among them, leave behind."""
    engine = Engine(directory)
    count = int(engine.claimed.head or b"0")
    assert confirmed <= count <= submitted
    state = dict(engine.transport.scan(P[0], "state", b"", 10_000))
    expected = {b"%d" % n: b"x" * 3000 for n in range(1, count + 1)}
    if count:
        expected[b"count"] = b"%d" % count
    assert state == expected
    log = {s.position: s.batch for s in engine.transport.read(P[0], 0, 1 << 40)}
    first = min(log, default=count) + 1
    assert first <= max(1, count - 2)
    assert log == {n - 1: b"%d" % n * 4000 for n in range(first, count + 1)}
    assert list(engine.store.verify()) == []
    rows, stale, are_whole = engine.store.large_rows()
    assert (stale, are_whole) == ([], True)
    assert {path.name for path in (directory / "large").iterdir()} == {"lock", *(p.name.hex() for p in rows.values())}
    engine.close()
    return count


def _confirmed(output: str) -> int:
    numbers = [int(line.split()[1]) for line in output.splitlines() if line.startswith(("committed", "claimed"))]
    return max(numbers, default=0)


def _with_fault(
    shim: Path, directory: Path, deed: str, at: int, seed: int = 1, late_bytes: int = 0, inline_limit: int = MIB
) -> tuple[int, str]:
    env = {"LD_PRELOAD": str(shim), "FAULTIO_DO": deed, "FAULTIO_AT": str(at), "FAULTIO_SEED": str(seed)}
    child = run(WORK, directory, COMMITS, late_bytes, inline_limit, env=env)
    output, _ = child.communicate(timeout=60)
    return child.returncode, output


@pytest.mark.parametrize(("late_bytes", "inline_limit"), [(0, MIB), (5000, MIB), (5000, 2000)])
@pytest.mark.parametrize("deed", ["kill", "torn", "powercut"])
def test_f7_killed_at_every_write_and_sync(
    tmp_path: Path, shim: Path, deed: str, late_bytes: int, inline_limit: int
) -> None:
    """F1, F2, F3, F7, F11, F14: from the making of the directory to the last commit, before each write and sync, in the
    middle of each write, and with unsynced pages lost: nothing confirmed is lost, nothing is half. Changes of state are
    merged right after their commit, or some commits later; batches lie in the log, or in files beside it."""
    at = 0
    found: set[int] = set()
    while True:
        at += 1
        directory = tmp_path / str(at)
        code, output = _with_fault(shim, directory, deed, at, at, late_bytes, inline_limit)
        found.add(assert_whole(directory, _confirmed(output), COMMITS))
        if code == 0:
            break
        assert code == -signal.SIGKILL, output
    assert at > 4 * COMMITS
    assert found == set(range(COMMITS + 1))


@pytest.mark.slow
def test_f12_killed_again_and_again(tmp_path: Path, shim: Path) -> None:
    """F12: 50 starts in a row on one directory, each killed somewhere."""
    confirmed = 0
    for n in range(50):
        code, output = _with_fault(shim, tmp_path, "powercut", 1 + n * 5 % 23, n, n * 1500 % 10_000)
        assert code in (0, -signal.SIGKILL), output
        confirmed = max(confirmed, _confirmed(output))
    assert assert_whole(tmp_path, confirmed, confirmed + 1) > 20


@pytest.mark.parametrize("inline_limit", [MIB, 2000])
@pytest.mark.parametrize(("deed", "verified"), [("eio", True), ("enospc", False)])
def test_f20_f17_an_error_of_the_disk_stops_everything(
    tmp_path: Path, shim: Path, deed: str, verified: bool, inline_limit: int
) -> None:
    """F20, F17: at any write or sync; nothing is confirmed after it; after an I/O error the next open verifies."""
    assert_whole(tmp_path / "0", 0, 0)
    for at in range(1, 100):
        directory = tmp_path / str(at)
        copytree(tmp_path / "0", directory)
        code, output = _with_fault(shim, directory, deed, at, inline_limit=inline_limit)
        if code == 0:
            break
        failed = [line for line in output.splitlines() if line.startswith("failed")]
        if "claimed" in output:
            assert code == 3, output
            assert failed[0].startswith("failed StorageFailed"), output
            assert output.splitlines()[-1] == failed[0]
            assert (directory / "verify").exists() == verified
        else:
            assert code == 1  # StorageFailed out of the open or the claim
        assert_whole(directory, _confirmed(output), COMMITS)
        assert not (directory / "verify").exists()
    assert 3 * COMMITS < at < 99


@pytest.mark.parametrize("inline_limit", [MIB, 2000])
@pytest.mark.parametrize("deed", ["short", "eintr"])
@pytest.mark.slow
def test_f21_short_and_interrupted_writes(tmp_path: Path, shim: Path, deed: str, inline_limit: int) -> None:
    """F21: completed, or failed as a whole."""
    assert_whole(tmp_path / "0", 0, 0)
    for at in range(1, 30):
        directory = tmp_path / str(at)
        copytree(tmp_path / "0", directory)
        _, output = _with_fault(shim, directory, deed, at, inline_limit=inline_limit)
        assert_whole(directory, _confirmed(output), COMMITS)


def test_f20_damage_found_after_an_io_error_refuses_to_start(tmp_path: Path) -> None:
    write_one(tmp_path)
    (tmp_path / "verify").write_text("Input/output error\n")
    Store(tmp_path, lambda f: None).close()
    assert not (tmp_path / "verify").exists()
    data = (tmp_path / "data.mdb").read_bytes()
    (tmp_path / "data.mdb").write_bytes(data.replace(b"keyvalue", b"keyvalve"))
    Store(tmp_path, lambda f: None).close()  # a plain open does not walk all rows
    (tmp_path / "verify").write_text("Input/output error\n")
    with pytest.raises(Corrupt, match="ended with an I/O error and left damage: state of partition 1/1/0"):
        Store(tmp_path, lambda f: None)
    assert (tmp_path / "verify").exists()
    assert holder(tmp_path) is None


def test_f4_kill_9_in_full_flight(tmp_path: Path) -> None:
    """F2, F3, F7: a process that commits as fast as it can, killed at moments it does not choose."""
    for after in (1, 5, 20, 80, 300):
        child = run(WORK, tmp_path, 100_000, 20_000, 2000 if after % 2 else MIB)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(after)]
        child.kill()
        lines += child.stdout.readlines()
        child.wait()
        confirmed = _confirmed("".join(line for line in lines if line.endswith("\n")))
        assert confirmed >= after - 1
        engine = Engine(tmp_path)
        assert int(engine.claimed.head or b"0") in (confirmed, confirmed + 1)
        assert list(engine.store.verify()) == []
        engine.close()


# F4
def test_a_file_is_whole_though_the_disk_takes_it_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    write_durably(tmp_path / "file", "as it was said")
    assert (tmp_path / "file").read_text() == "as it was said"


def test_f23_no_page_leaves_out_what_lies_beside_a_damaged_key(tmp_path: Path) -> None:
    """F23: a row whose key was changed looks as if it belonged elsewhere. Wherever one begins and ends, all that there
    is comes, or it is told that something is damaged."""
    whole = tmp_path / "whole"
    engine = Engine(whole)
    short = [b"m%d" % n for n in range(1, 6)] + [b"a", b"z"]
    long = [b"k" * 600 + b"%d" % n for n in range(5)]
    keys = sorted(short + long)
    engine.commit(rows=[("object", [(key, b"v" + key) for key in keys])])
    engine.close()
    raw = (whole / "data.mdb").read_bytes()
    packed = P[0].packed()
    expected = [(key, b"v" + key) for key in keys]
    told = 0
    for key in keys:
        is_long = len(key) > row_format.LONG
        stored = row_format.long_key(packed, key) if is_long else packed + key
        value = (row_format.LENGTH.pack(len(key)) + key if is_long else b"") + b"v" + key
        row = stored + row_format.sealed(row_format.BASE["object"], stored, value)
        assert row in raw
        for at, byte in (
            (6, b"\x01"),
            (6, b"l"),
            (6, b"~"),
            (len(stored) - 1, b"\xff"),
            (len(stored) - 1, b"\x00"),
            (4, b"\x7f"),
        ):
            damaged = tmp_path / "damaged"
            copytree(whole, damaged)
            (damaged / "data.mdb").write_bytes(raw.replace(row, row[:at] + byte + row[at + 1 :]))
            with closing(Reader(damaged)) as reader:
                for after in (b"", *(k + end for k in keys for end in (b"", b"\0"))):
                    for before in (None, *keys):
                        right = [r for r in expected if r[0] >= after and (before is None or r[0] < before)]
                        try:
                            found = reader.scan(P[0], "object", after, 1_000, before)
                        except Corrupt:
                            told += 1
                        else:
                            assert found == right, (key, at, byte, after, before)
                with pytest.raises(Corrupt):
                    reader.scan(P[0], "object", b"", 1_000)
            rmtree(damaged)
    assert told > 1_000
