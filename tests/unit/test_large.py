"""Rows in files of their own: which, until when, for whom, and what of it may be damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from grape.abc.transport import Table
from grape.errors import Corrupt
from grape.model.address import PartitionId
from grape.store.keeping import keep
from grape.store.large import FOLDER, Place, place_of, place_row, read
from grape.store.mending import Changes, Mending
from grape.store.reader import Reader
from grape.store.rows import POSITION
from grape.store.store import Store
from unit.test_store import run_at_once, write

P = [PartitionId(1, 1, n) for n in range(2)]
LIMIT = 1000
LARGE = b"large" * 1000


GOES = """
import sys
from queue import Queue
from grape.model.address import PartitionId
from grape.store.store import Store
store, done = Store(sys.argv[1], lambda function: function()), Queue()
first = PartitionId(1, 1, 0)
store.submit(lambda w, _: (w.trim(first, 1), w.put(first, "hold", [(b"a", None)])), None, done.put)
done.get()
store.close()
"""


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """As by a snapshot, which is of another process."""
    fd = keep(directory)
    assert fd is not None
    try:
        yield
    finally:
        os.close(fd)


def opened(directory: Path) -> Store:
    return Store(directory, run_at_once, inline_limit=LIMIT)


def files(directory: Path) -> list[Path]:
    return [path for path in (directory / FOLDER).iterdir() if path.name != "lock"]


def put(store: Store, table: Table, *rows: tuple[bytes, bytes | None], partition: PartitionId = P[0]) -> None:
    write(store, lambda writing, _: writing.put(partition, table, rows), None)


def append(store: Store, *batches: bytes, log: PartitionId = P[0]) -> None:
    write(store, lambda writing, _: [writing.append(log, batch, 3) for batch in batches], None)


def test_what_is_over_the_limit_lies_in_a_file_as_long_as_its_row(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        put(store, "hold", (b"a", LARGE), (b"b", b"few"), (b"c", LARGE))
        append(store, LARGE, b"few", LARGE, LARGE)
        assert len(files(tmp_path)) == 5
        assert store.get(P[0], "hold", [b"a", b"b", b"x", b"c"]) == [LARGE, b"few", None, LARGE]
        assert store.scan(P[0], "hold", b"", 9) == [(b"a", LARGE), (b"b", b"few"), (b"c", LARGE)]
        assert [each.batch for each in store.read(P[0], 0, 1 << 30)] == [LARGE, b"few", LARGE, LARGE]
        assert [each.batch for each in store.read(P[0], 0, len(LARGE) + 3)] == [LARGE, b"few"]
        told = store.waiting(P[0], 0)
        assert (told.batches, told.events, told.size) == (4, 12, 3 * len(LARGE) + 3)
        assert list(store.verify()) == []

        put(store, "hold", (b"a", None), (b"c", LARGE[::-1]))  # one goes, the other is another one
        assert len(files(tmp_path)) == 4
        put(store, "hold", (b"c", b"few"))
        write(store, lambda writing, _: writing.drop(P[0], 2), None)
        write(store, lambda writing, _: writing.trim(P[0], 1), None)
        assert len(files(tmp_path)) == 1
        assert [(each.position, each.batch) for each in store.read(P[0], 0, 1 << 30)] == [(1, b"few"), (3, LARGE)]
        write(store, lambda writing, _: writing.trim(P[0], 4), None)
        assert files(tmp_path) == []


def test_only_logs_of_this_partition_are_trimmed(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        for log in P:
            append(store, LARGE, LARGE, log=log)
            put(store, "dead", (b"\0" * 8, LARGE), partition=log)
        write(store, lambda writing, _: writing.trim(P[0], 2), None)
        assert [len(store.read(log, 0, 1 << 30)) for log in P] == [0, 2]
        assert len(files(tmp_path)) == 4


def test_no_user_text_is_taken_for_a_place(tmp_path: Path) -> None:
    """Whatever is put in, in the form of what says where a row lies."""
    with closing(opened(tmp_path)) as store:
        append(store, LARGE)
        place = next(iter(store.large_rows()[0].values()))
        key = P[0].packed() + b"a"
        for forged in (place_row("text", key, place), place_row("text", key, place)[:-4]):
            put(store, "text", (b"a", forged))
            assert store.get(P[0], "text", [b"a"]) == [forged]
            assert store.scan(P[0], "text", b"", 9) == [(b"a", forged)]


def test_a_moment_keeps_its_files(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        append(store, LARGE)
        with kept(tmp_path):
            write(store, lambda writing, _: writing.trim(P[0], 1), None)
            assert len(files(tmp_path)) == 1
            append(store, LARGE)
            write(store, lambda writing, _: writing.trim(P[0], 2), None)
            assert len(files(tmp_path)) == 2
        put(store, "text", (b"a", b""))  # whatever is written next
        assert files(tmp_path) == []


def test_a_moment_that_was_kept_to_the_end_leaves_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    append(store, LARGE, LARGE)
    with kept(tmp_path):
        write(store, lambda writing, _: writing.trim(P[0], 1), None)
        store.close()
        assert len(files(tmp_path)) == 2
    with closing(opened(tmp_path)) as store:
        assert len(files(tmp_path)) == 1
        assert [each.batch for each in store.read(P[0], 0, 1 << 30)] == [LARGE]


def test_whoever_reads_beside_the_engine_misses_what_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is trimmed, and its file removed, between the look into the tree and the one at the file."""

    def late(directory: Path, place: Place) -> bytes:
        subprocess.run([sys.executable, "-c", GOES, tmp_path], check=True)
        return read(directory, place)

    monkeypatch.setattr("grape.store.large.read", late)
    looks: list[tuple[Callable[[Reader], Any], Any]] = [
        (lambda reader: [each.position for each in reader.read(P[0], 0, 1 << 30)], [1]),
        (lambda reader: reader.get(P[0], "hold", [b"a"]), [None]),
        (lambda reader: reader.scan(P[0], "hold", b"", 9), []),
        (lambda reader: list(reader.verify()), []),
    ]
    for look, found in looks:
        shutil.rmtree(tmp_path)
        with closing(opened(tmp_path)) as store:
            append(store, LARGE, LARGE)
            put(store, "hold", (b"a", LARGE))
        with closing(Reader(tmp_path)) as reader:
            assert look(reader) == found


def test_f23_what_is_damaged_in_a_file_is_never_served(tmp_path: Path) -> None:
    """F23: each kind of damage of it: flipped, cut off, gone; the repair takes the row out, and puts it aside."""
    for name, damage in (
        ("flipped", lambda path: path.write_bytes(path.read_bytes()[:100] + b"\0" + path.read_bytes()[101:])),
        ("cut", lambda path: path.write_bytes(path.read_bytes()[:100])),
        ("gone", lambda path: path.unlink()),
    ):
        directory = tmp_path / name
        with closing(opened(directory)) as store:
            put(store, "dead", (b"a", LARGE), (b"b", b"few"))
        (path,) = files(directory)
        damage(path)
        with closing(opened(directory)) as store:
            with pytest.raises(Corrupt, match=f"{path.name}.*grape doctor"):
                store.get(P[0], "dead", [b"a"])
            with pytest.raises(Corrupt, match=path.name):
                store.scan(P[0], "dead", b"", 9)
            (finding,) = store.verify()
            assert path.name in finding.problem
        with Mending(directory) as mending:
            row = next(mending.rows("dead"))
            mending.write(partial(Changes.remove, row=row))
        with closing(opened(directory)) as store:
            assert store.scan(P[0], "dead", b"", 9) == [(b"b", b"few")]
            assert files(directory) == []


def test_a_cut_batch_is_noticed(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        append(store, LARGE)
        (path,) = files(tmp_path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(Corrupt, match=path.name):
            store.read(P[0], 0, 1 << 30)


def test_a_repair_sees_rows_as_they_are_and_finds_their_files_again(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        append(store, LARGE)
        put(store, "dead", (b"a", LARGE))
    with Mending(tmp_path) as mending:
        assert [row.value[8:] for row in mending.rows("log")] == [LARGE]
        assert [row.value[:-4] for row in mending.rows("dead")] == [LARGE]
        with mending._env.begin(write=True) as txn:
            txn.drop(mending._dbs["large"], delete=False)
        mending.write(lambda changes: None)
    with closing(opened(tmp_path)) as store:
        assert len(files(tmp_path)) == 2
        assert store.get(P[0], "dead", [b"a"]) == [LARGE]


def test_an_entry_that_cannot_be_read_costs_no_file(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        append(store, LARGE, LARGE)
    with Mending(tmp_path) as mending, mending._env.begin(write=True) as txn:
        cursor = txn.cursor(mending._dbs["large"])
        cursor.first()
        cursor.put(cursor.key(), cursor.value()[:-1] + b"\0")
    with closing(opened(tmp_path)) as store:
        assert len(files(tmp_path)) == 2
        assert [each.batch for each in store.read(P[0], 0, 1 << 30)] == [LARGE, LARGE]
        assert [finding.database for finding in store.verify()] == ["large"]


def test_a_place_is_of_its_row_alone(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        append(store, LARGE)
        place = next(iter(store.large_rows()[0].values()))
    key, other = POSITION.pack(P[0].packed(), 0), POSITION.pack(P[0].packed(), 1)
    assert place_of("log", key, place_row("log", key, place)) == place
    assert place_of("log", other, place_row("log", key, place)) is None
    assert place_of("dead", key, place_row("log", key, place)) is None
