"""Whatever stands in a data directory: `grape doctor` names it, `grape repair` mends it, and a start works then."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.command import grape as run_grape

import grape
from grape.abc.transport import Callbacks, Commit, Send
from grape.errors import Corrupt, UsageError
from grape.model import batch as codec
from grape.model.address import CATALOG, PartitionId
from grape.model.stored import Head, decode_head, encode
from grape.store.mending import Mending
from grape.store.rows import BASE, sealed
from grape.tools.directory import Checkup, Directory
from grape.tools.mending import DirectoryRepair, start_over
from grape.transports.embedded import EmbeddedTransport

MONTH = 30 * 86_400
"""Of which a part that is chosen by chance passes before a retry."""
TABLES = ("head", "logs", "log", "changes", "state", "hold", "timer", "dead", "text", "expiry")


def topology() -> grape.Topology:
    t = grape.Topology("many")
    t.add_output("out")

    class Work(grape.Node):
        seen = grape.State(int, default=0, ttl=3600)

        def process(self, event: grape.Event) -> None:
            if event.data == 3:
                raise ValueError("three")
            if event.data == 5:
                raise KeyError("five")
            self.seen += 1
            self.emit("out", event.data)
            if event.data == 6:
                self.emit("late", 6, delay=3600)
            self.emit("next", event.data, key=f"{event.data}")

    def follow(data: int) -> None:
        pass

    t.add_slot("in", Work(), retries=1, backoff=MONTH, backoff_max=MONTH)
    t.add_slot("late", follow)
    t.add_slot("next", follow)
    t.add_slot("dies", dies, retries=0)
    return t


def dies(data: int) -> None:
    raise ValueError("dies")


def once(data: Path, feed: dict[str, Any] | None = None) -> grape.Summary:
    """One short run."""
    return grape.run(topology(), data=data, inline=True, wait=False, feed=feed or {}, partitions=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with rows in every table, and batches that wait."""
    data = tmp_path_factory.mktemp("made") / "data"
    source = data.parent / "in.jsonl"
    source.write_text("".join(f"{n}\n" for n in range(9)))
    with grape.open(topology(), data=data, inline=True, partitions=2, outputs=("out",)) as engine:
        for n in range(8):
            engine.emit("in", n, key=f"k{n % 4}", id=f"id-{n}")
        for n in range(4):
            engine.emit("dies", n, key=f"k{n}")
        assert list(engine.outputs("out", timeout=0.5))
    with Mending(data) as mending:
        mending.write(lambda changes: None)  # what has changed goes into its tree
    with grape.open(topology(), data=data, inline=True, partitions=2, outputs=("out",)) as engine:
        engine.emit("in", 8, key="k0", id="id-8")
        assert list(engine.outputs("out", timeout=0.5))
    once(data, {"next": str(source)})
    assert run_grape("dead", "retry", "main.1-0", "main.1-1", "--data", data).returncode == 0
    append(data, [codec.one("next", f"k{n}", n) for n in range(3)])
    with writing(data) as (txn, dbs):
        assert [name for name in TABLES if not list(txn.cursor(dbs[name]).iternext())] == []
    assert run_grape("doctor", "--data", data).stdout.splitlines()[-1].startswith("whole")
    return data


def append(data: Path, bodies: list[bytes]) -> PartitionId:
    """Put batches into the log of partition 1 as another partition of the app would, whatever is in them."""
    posted: list[Any] = []
    done: list[Any] = []
    claims: list[Any] = []
    callbacks = Callbacks(done.extend, lambda arrivals: None, lambda error: None, claims.extend)
    transport = EmbeddedTransport.open(data, callbacks, posted.append)
    try:
        record = Directory(transport.store).app(None)
        target = PartitionId(record.id, record.logs["main"], 1)
        origin = target._replace(number=0)
        transport.claim([origin])
        while not claims:
            while posted:
                posted.pop(0)()
        claim = claims[0][1]
        head = decode_head(claim.head) if claim.head else Head()
        sends = []
        for body in bodies:
            sequence = head.sent.get(target.packed(), 0)
            head.sent[target.packed()] = sequence + 1
            events = sum(run.count for run in codec.runs_of(body))
            sealed = codec.seal(body, events, origin, target, record.incarnation, sequence, 1)
            sends.append(Send(target, sealed, events))
        transport.commit(Commit(origin, claim.term, 1, encode(head), sends))
        while not done:
            while posted:
                posted.pop(0)()
    finally:
        transport.close()
    return target


@contextlib.contextmanager
def writing(data: Path) -> Iterator[tuple[Any, Any]]:
    """All databases of a directory, to write whatever one likes."""
    env = lmdb.open(str(data), max_dbs=16, map_size=1 << 28)
    try:
        dbs = {name: env.open_db(name.encode()) for name in ("meta", *TABLES)}
        with env.begin(write=True) as txn:
            yield txn, dbs
    finally:
        env.close()


def findings(data: Path) -> list[str]:
    with Checkup(data) as checkup:
        return checkup.run(None)


def mend(data: Path) -> list[str]:
    try:
        with DirectoryRepair(data) as repair:
            return repair.run(dry=False).lines
    except Corrupt:
        start_over(data)
        return ["all"]


def check_mended(data: Path) -> None:
    try:
        named = findings(data)
    except (Corrupt, UsageError):
        named = ["all"]
    lines = mend(data)
    assert bool(lines) == bool(named), (lines, named)
    if (data / "format").exists():
        assert findings(data) == []
        assert mend(data) == []
    once(data)
    once(data)
    assert findings(data) == []


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


BYTES = st.one_of(
    st.binary(max_size=40),
    st.recursive(st.none() | st.integers(-5, 1 << 63) | st.text(max_size=5), lambda s: st.lists(s, max_size=4)).map(
        msgspec.msgpack.encode
    ),
)


@given(
    table=st.sampled_from(TABLES),
    row=st.integers(0, 40),
    how=st.sampled_from(["raw", "sealed", "cut", "flip", "other key", "sealed cut"]),
    garbage=BYTES,
    at=st.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_garbage_in_any_table_is_named_and_mended(
    made: Path, tmp_path: Path, table: str, row: int, how: str, garbage: bytes, at: int
) -> None:
    data = tmp_path / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(made, data)
    with writing(data) as (txn, dbs):
        rows = list(txn.cursor(dbs[table]).iternext())
        assert rows, table
        key, value = rows[row % len(rows)]
        body = value[8:] if table == "log" else value[:-4]
        match how:
            case "raw":
                value = garbage
            case "cut":
                value = value[: at % len(value)]
            case "flip":
                place = at % len(value)
                value = value[:place] + bytes([value[place] ^ 1 + at % 255]) + value[place + 1 :]
            case "sealed" | "sealed cut":
                inner = garbage if how == "sealed" else body[: at % len(body)]
                inner = (body[:16] if table == "head" and how == "sealed" else b"") + inner
                value = value[:8] + inner if table == "log" else sealed(BASE[table], key, inner)
            case "other key":
                key = key[:6] + garbage[:100]
                value = sealed(BASE[table], key, body)
        txn.put(key, value, db=dbs[table])
    if how in ("raw", "cut", "flip"):
        with contextlib.suppress(Corrupt):
            assert findings(data)
    with contextlib.suppress(UsageError):  # what says that a newer Grape has written it
        check_mended(data)


@pytest.mark.parametrize("key", ["", "x" * 5000])
def test_a_key_that_no_worker_takes_becomes_a_dead_letter(data: Path, key: str) -> None:
    """Case n-badkey: older code let it in, and every worker broke over it."""
    before = once(data).dead
    body = codec.encode_run(codec.RunMeta(["next"]), 3, ["a", key, "b"], [1, 2, 3])
    append(data, [body])
    (found,) = findings(data)
    assert "a key has 1 to 4,096 bytes" in found
    done = run_grape("repair", "--data", data, "--dry-run")
    assert "become dead letters" in done.stdout
    assert findings(data) == [found]
    done = run_grape("repair", "--data", data)
    assert (done.returncode, "mended" in done.stdout) == (0, True), done.stderr
    letters = [
        json.loads(line) for line in run_grape("dead", "list", "--kind", "damaged", "--data", data).stdout.splitlines()
    ]
    assert [(letter["event"], letter["status"]) for letter in letters] == [("next", "dead")]
    summary = once(data)
    assert summary.slots == {"next>follow": 2}
    assert summary.dead == before + 1
    assert summary.backlog == once(data).backlog


def test_a_batch_that_is_lost_does_not_keep_others_waiting(data: Path) -> None:
    once(data)
    target = append(data, [codec.one("next", "a", n) for n in range(3)])
    with writing(data) as (txn, dbs):
        keys = [k for k, _ in txn.cursor(dbs["log"]).iternext() if k[:6] == target.packed()]
        txn.delete(keys[-2], db=dbs["log"])
    assert "waits for batch" in findings(data)[0]
    check_mended_counts(data, 2)
    append(data, [codec.one("next", "a", 4)])
    assert once(data).slots == {"next>follow": 1}


def check_mended_counts(data: Path, processed: int) -> None:
    assert mend(data)
    assert findings(data) == []
    assert once(data).slots == {"next>follow": processed}


def test_a_lost_head_is_made_from_what_the_others_know(data: Path) -> None:
    once(data)
    target = append(data, [codec.one("next", "a", n) for n in range(3)])
    with writing(data) as (txn, dbs):
        for number in (0, 1):
            txn.put(target._replace(number=number).packed(), b"garbage", db=dbs["head"])
    assert len(findings(data)) >= 2
    check_mended_counts(data, 3)
    append(data, [codec.one("next", "a", 4)])
    assert once(data).slots == {"next>follow": 1}


def test_a_lost_catalog_is_taken_from_its_copy(data: Path) -> None:
    with writing(data) as (txn, dbs):
        txn.put(CATALOG.packed(), b"garbage", db=dbs["head"])
    assert run_grape("doctor", "--data", data).returncode == 3
    assert "taken from its copy" in run_grape("repair", "--data", data).stdout
    assert findings(data) == []
    assert once(data).backlog


def test_a_catalog_that_is_lost_with_its_copy_begins_anew(data: Path) -> None:
    with writing(data) as (txn, dbs):
        txn.put(CATALOG.packed(), b"garbage", db=dbs["head"])
        txn.put(CATALOG.packed() + b"catalog", b"garbage", db=dbs["text"])
    done = run_grape("repair", "--data", data)
    assert (done.returncode, "put aside as a whole" in done.stdout) == (0, True)
    assert list((data / "damaged").glob("*/data.mdb"))
    assert once(data).backlog == 0


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"garbage" * 5000])
def test_a_data_file_that_is_none(data: Path, content: bytes) -> None:
    (data / "data.mdb").write_bytes(content)
    for command in (["doctor"], ["dead", "list"], ["state", "list"]):
        done = run_grape(*command, "--data", data)
        assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    with pytest.raises(Corrupt):
        once(data)
    assert run_grape("repair", "--data", data).returncode == 0
    assert once(data).backlog == 0


def test_a_data_file_that_is_cut_off(data: Path) -> None:
    os.truncate(data / "data.mdb", 5 * 4096)
    assert run_grape("doctor", "--data", data).returncode == 3
    assert run_grape("repair", "--data", data).returncode == 0
    assert run_grape("doctor", "--data", data).returncode in (0, 2)
    once(data)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe garbage"])
def test_the_file_format_is_written_anew(data: Path, content: bytes | None) -> None:
    (data / "format").unlink()
    if content is not None:
        (data / "format").write_bytes(content)
    (data / "lock").unlink()
    done = run_grape("repair", "--data", data)
    assert (done.returncode, "written anew" in done.stdout) == (0, True), done.stderr
    assert findings(data) == []
    assert once(data).backlog


def test_data_of_another_format_are_refused_with_the_remedy(data: Path) -> None:
    (data / "format").write_text("grape-data 7\n")
    for command in (["doctor"], ["repair"], ["dead", "list"]):
        done = run_grape(*command, "--data", data)
        assert (done.returncode, "use the version of Grape that wrote it" in done.stderr) == (2, True)
    (data / "format").write_text("grape-data 3\n")
    with writing(data) as (txn, dbs):
        txn.put(b"format", sealed(BASE["meta"], b"format", b"7"), db=dbs["meta"])
    done = run_grape("repair", "--data", data)
    assert (done.returncode, "use the version of Grape that wrote it" in done.stderr) == (2, True)


def test_a_directory_in_use_and_one_that_is_none(data: Path, tmp_path: Path) -> None:
    with grape.open(topology(), data=data, inline=True):
        done = run_grape("repair", "--data", data)
        assert (done.returncode, "in use by process" in done.stderr) == (2, True)
    assert run_grape("repair", "--data", tmp_path / "none").returncode == 2
    assert run_grape("repair", "--data", tmp_path).returncode == 2
    (data / "notes.txt").write_text("mine")
    assert "not of Grape, and left alone: notes.txt" in run_grape("doctor", "--data", data).stdout


def test_nothing_is_changed_in_a_directory_that_is_whole(data: Path) -> None:
    before = (data / "data.mdb").read_bytes()
    done = run_grape("repair", "--data", data)
    assert (done.returncode, done.stdout) == (0, "whole: there is nothing to mend\n")
    assert (data / "data.mdb").read_bytes() == before


def logged(data: Path, *options: object) -> list[dict[str, Any]]:
    done = run_grape("log", "list", "--data", data, *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def waiting(data: Path) -> Path:
    """Three batches of events that wait; the second one has an empty key."""
    once(data)
    bodies = [
        codec.encode_run(codec.RunMeta(["next"]), 3, ["a", "b", "a"], [1, 2, 3]),
        codec.encode_run(codec.RunMeta(["next"]), 2, ["", "b"], [4, 5]),
        codec.encode_run(codec.RunMeta(["next"]), 1, ["c"], [6]),
    ]
    append(data, bodies)
    return data


def test_what_waits_is_shown(waiting: Path) -> None:
    rows = logged(waiting)
    assert [(row["event"], row["key"], row["nodes"]) for row in rows][:2] == [("next", k, ["follow"]) for k in "ab"]
    assert [row["key"] for row in rows if "problem" in row] == [""]
    assert logged(waiting, "--damaged") == [rows[3]]
    assert logged(waiting, "--key", "b", "--limit", 1) == [rows[1]]
    (shown,) = [
        json.loads(line) for line in run_grape("log", "show", rows[2]["id"], "--data", waiting).stdout.splitlines()
    ]
    assert (shown["data"], shown["key"]) == (3, "a")
    assert run_grape("log", "show", "main.1:999999.0", "--data", waiting).returncode == 1
    assert "did you mean 'main'" in run_grape("log", "show", "mian.1:9.0", "--data", waiting).stderr
    assert "say which ones" in run_grape("log", "drop", "--data", waiting).stderr


@pytest.mark.parametrize("action", ["drop", "bury"])
def test_what_waits_is_taken_out(waiting: Path, action: str) -> None:
    rows = logged(waiting)
    before = len(run_grape("dead", "list", "--data", waiting).stdout.splitlines())
    done = run_grape("log", action, "--damaged", "--data", waiting)
    assert (done.returncode, done.stderr.startswith("1 event ")) == (0, True), done.stderr
    done = run_grape("log", action, rows[1]["id"], rows[5]["id"], "main.1:9999", "--data", waiting)
    assert (done.returncode, "2 events" in done.stderr, "1 refused" in done.stderr) == (1, True, True)
    assert [row["id"] for row in logged(waiting)] == [rows[i]["id"] for i in (0, 2, 4)]
    assert findings(waiting) == []
    letters = len(run_grape("dead", "list", "--data", waiting).stdout.splitlines()) - before
    assert letters == (3 if action == "bury" else 0)
    assert once(waiting).slots == {"next>follow": 3}
    append(waiting, [codec.one("next", "a", 4)])
    assert once(waiting).slots == {"next>follow": 1}
    if action == "bury":
        done = run_grape("dead", "retry", "--kind", "buried", "--data", waiting)
        assert "2 dead letters put back" in done.stderr
        assert once(waiting).slots == {"next>follow": 2}


def test_a_batch_of_older_code_is_dropped_as_a_whole(waiting: Path) -> None:
    rows = logged(waiting)
    batch = rows[3]["id"].rpartition(".")[0]
    done = run_grape("log", "drop", batch, "--data", waiting)
    assert (done.returncode, "2 events dropped" in done.stderr) == (0, True), done.stderr
    assert once(waiting).slots == {"next>follow": 4}
