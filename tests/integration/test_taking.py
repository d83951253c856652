"""What goes out: sinks that fail, whatever they raise, and outputs that cannot be read. Real processes and files."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

GRAPE = Path(sys.executable).parent / "grape"

APP = """
import asyncio, sys
import grape
from grape import Topology

t = Topology("taken")
t.add_output("out")

@t.slot("line", emits="out")
def work(line: str) -> int:
    return int(line)

class Custom(BaseException):
    pass

ERRORS = {"exit": SystemExit(3), "cancel": asyncio.CancelledError(), "key": KeyboardInterrupt(),
          "generator": GeneratorExit(), "custom": Custom("away"), "stop": StopIteration(), "error": ValueError("once")}
seen = []
failed = set()

def take(event):
    if event.data % 300 == 299 and event.data not in failed:
        failed.add(event.data)
        raise ERRORS[sys.argv[1]]
    seen.append(event.data)

if __name__ == "__main__":
    for _ in range(5):
        try:
            grape.run(t, feed={"line": "in.txt"}, take={"out": take}, data="d", workers=1, partitions=1)
        except grape.GrapeError as e:
            print(e)
    print(seen == list(range(1_000)), len(failed))
"""


@pytest.mark.parametrize("how", ["exit", "cancel", "key", "generator", "custom", "stop", "error"])
def test_whatever_a_sink_raises_every_event_is_taken_once(tmp_path: Path, how: str) -> None:
    """Three fail: an Exception is retried; anything else ends the run, and the next goes on with what failed."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "in.txt").write_text("".join(f"{n}\n" for n in range(1_000)))
    done = subprocess.run(
        [sys.executable, "app.py", how], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "True 3" in done.stdout
    said = done.stderr if how in ("stop", "error") else done.stdout
    assert said.count("taking 'out=@take' failed: ") == 3
    assert "app.py:" in said


POISON = """
import struct
import msgspec
from grape import Topology

t = Topology("poison")
t.add_output("out")

@t.slot("line", emits="out")
def work(line: str) -> str:
    return line
"""


def poisoned(runs: list[tuple[int, bytes, bytes]]) -> bytes:
    meta = msgspec.msgpack.encode({"names": ["out"]})
    return b"".join(struct.pack("<IIII", n, len(meta), len(k), len(d)) + meta + k + d for n, k, d in runs)


PLANT = """
import asyncio, sys
from grape.abc.transport import Callbacks, Commit, Send
from grape.model import batch as codec
from grape.model.address import CATALOG, PartitionId
from grape.model.stored import decode_catalog
from grape.transports.embedded import EmbeddedTransport

async def main():
    done, claims = asyncio.Event(), asyncio.Queue()
    loop = asyncio.get_running_loop()
    transport = EmbeddedTransport.open(
        "d",
        Callbacks(lambda outcomes: done.set(), print, print, claims.put_nowait),
        loop.call_soon_threadsafe,
        max_size=1 << 30,
    )

    async def claimed(partition):
        transport.claim([partition])
        return (await claims.get())[0][1]

    record = decode_catalog((await claimed(CATALOG)).head).apps["poison"]
    # as an older version would have taken it from a worker
    origin = PartitionId(record.id, record.logs["main"], 0)
    target = PartitionId(record.id, record.logs[">out"], 0)
    claim = await claimed(origin)
    from grape.model.stored import decode_head, encode
    head = decode_head(claim.head)
    sequence = head.sent.get(target.packed(), 0)
    sends = []
    for i in range(1, len(sys.argv), 2):
        body, events = bytes.fromhex(sys.argv[i]), int(sys.argv[i + 1])
        sealed = codec.seal(body, events, origin, target, record.incarnation, sequence, 0)
        sends.append(Send(target, sealed, events))
        sequence += 1
    head.sent[target.packed()] = sequence
    transport.commit(Commit(origin, claim.term, 1, encode(head), sends))
    await done.wait()
    transport.close()

asyncio.run(main())
"""


def test_what_is_stored_and_cannot_be_read_becomes_a_dead_letter_and_taking_goes_on(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(POISON)
    (tmp_path / "in.txt").write_text("one\n")
    (tmp_path / "plant.py").write_text(PLANT)
    run = [str(GRAPE), "run", "app.py", "--feed", "line=in.txt", "--data", "d", "--take", "out=o.jsonl"]
    subprocess.run([*run, "--partitions", "1"], cwd=tmp_path, check=True, capture_output=True)
    bodies = [
        (poisoned([(1, b"\x91\xc4\x01x", b"\x91\x01")]), 1),
        (poisoned([(2, b"\x92\xa1\xff\xa1k", b"\x92\x01\x02")]), 2),
        (poisoned([(20_000_000, b"", b"")]), 20_000_000),
        (poisoned([(1, b"", b"\x91\xc1")]), 1),
        (poisoned([(1, b"", b"\x91" + b"\x91" * 10_000 + b"\x01")]), 1),
    ]
    arguments = [part for body, events in bodies for part in (body.hex(), str(events))]
    subprocess.run([sys.executable, "plant.py", *arguments], cwd=tmp_path, check=True)
    with (tmp_path / "in.txt").open("a") as file:
        file.write("two\n")
    done = subprocess.run(run, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "are dead letters" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert sorted(str(line["data"]) for line in lines) == ["2", "one", "two"]
    listed = subprocess.run(
        [str(GRAPE), "dead", "list", "--data", "d"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    letters = [json.loads(line) for line in listed.splitlines()]
    assert [letter["kind"] for letter in letters] == ["unreadable-output"] * 5
    assert "output out, partition 0, event" in letters[0]["origin"]
    again = subprocess.run(run, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert "5 dead letters" in again.stderr
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
    drop = [str(GRAPE), "dead", "drop", "--all", "--data", "d"]
    subprocess.run(drop, cwd=tmp_path, capture_output=True, check=True)
