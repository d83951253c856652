"""Say to an engine, at its door, what it should not be told; see that it serves all others, and counts right.

    python -m tests.fuzz.door [SECONDS] [--seed N]

Frames of every message, with nearly right fields and with any; cut, flipped and glued; half of one and then silence,
a byte at a time, nothing read, hundreds of connections at once. Meanwhile a client that behaves feeds, calls, writes
objects and uses a queue, and knows what every answer has to be. At the end engine and gateway are the same processes
as at the beginning, and all that was accepted has been worked off.

What may be said but would be the end of the run (to stop it, to pause it) is not.
"""

from __future__ import annotations

import collections
import hashlib
import os
import random
import socket
import struct
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzz.command import fuzz

from door import Client, come  # type: ignore[import-not-found]
from grape.model import batch as codec
from grape.model.address import partition_of
from grape.model.batch import RunMeta
from grape.model.objects import Done, ObjectWrite, Wanted
from grape.model.topology import TopologySpec
from grape.protocol import orders, queues
from grape.protocol.door import (
    Answer,
    Append,
    Ask,
    Emit,
    Emitted,
    FromClient,
    FromEngine,
    Greeting,
    OpenReader,
    OpenStream,
    Part,
    Refused,
    Replies,
    StartReader,
    Stop,
    TakeReplies,
)
from grape.protocol.framing import client_frames, door_frames, frame
from serving import Server, until, write_app  # type: ignore[import-not-found]

THREADS: Final = 8
CROWD: Final = 300
"""Connections of a flood."""
MOST_MEMORY: Final = 1 << 30
"""Bytes of an engine."""
PATIENCE: Final = 30.0
PARTITIONS: Final = 4
KEY: Final = "of the one who behaves"
CODE: Final = """
from grape import Node, State, Topology

class Count(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.emit("out", event.data)
        if event.key is not None:
            self.n += 1
            self.reply(self.n)

def topology(config):
    t = Topology("count")
    t.add_slot("add", Count(), retries=0, emits="out")
    t.add_output("out")
    t.add_output("kept")
    return t
"""

NAMES: Final = [
    "", "add", "add", "add", "out", "ad", "count", "count@add", ">add", "@count", "&objects", "a", "b", "s1", "s2",
    "s3", "x=@unreadable", "reply=@api", "@spans", "n" * 300, "n" * 20_000, "Count", "main", "main.0-1", "main.1-h0",
    "main.0:99999999", "?", "k" * 1_025, "\x00", "\ud7ff", "kept!a", "brief!a",
    "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
]  # fmt: skip
NUMBERS: Final = [
    -(1 << 63), -1, 0, 0, 1, 1, 1, 2, 3, 5, 100, 1 << 16, 1 << 20, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1,
    (1 << 64) - 1,
]  # fmt: skip
ONE: Final = codec.one("add", None, 1)
BYTES: Final = [
    b"", b"\xc0", b"\x01", b"\xa1a", b"\xc1", b"\xff" * 10, b"\x91" * 2_000, ONE, ONE[:-1], codec.one("add", "a", "x"),
    codec.one("out", None, 1), codec.one("add", None, 1, hops=9), codec.one("add", None, 1, contexts=[0]),
    codec.one("add", None, 1, only=["Count"]), codec.encode_run(RunMeta(["add"]), 50, ["a"] * 50, [1] * 50),
    codec.packed_run(b"\x81\xa5names\x90", 1 << 30, b"", b""), hashlib.sha256(b"").digest(),
]  # fmt: skip
VERBS: Final[dict[str, Any]] = {
    "numbers": None, "progress": None, "answer": str, "none": str, "outgoing": list[str],
    "peers": dict[str, list[str] | None],
    "write-objects": list[tuple[ObjectWrite, Wanted]],
    queues.PEEK: queues.Peek, queues.POP: queues.Peek, queues.ACK: queues.Tokens, queues.NACK: queues.Tokens,
    queues.CLEAR: queues.Which, queues.STATS: queues.Which, queues.FORGET: queues.Which,
    queues.CONSUMERS: queues.Output, queues.TAIL: queues.Tail,
    orders.RETRY: orders.Letters, orders.DROP: orders.Letters, orders.DROP_EVENTS: orders.Events,
    orders.BURY_EVENTS: orders.Events, orders.DELETE_STATE: orders.States,
}  # fmt: skip
MESSAGES: Final = [kind for kind in typing.get_args(FromClient) if kind is not Stop]
LIES: Final = [kind for kind in typing.get_args(FromEngine) if TopologySpec not in typing.get_type_hints(kind).values()]


class Attacker:
    """What is said. All of it by chance."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def made(self, kind: Any) -> Any:
        """A value that a frame may hold where ``kind`` is declared: often nearly right."""
        rng = self.rng
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is int:
            return rng.choice(NUMBERS) if rng.random() < 0.5 else rng.randint(0, 8)
        if kind is float:
            return rng.choice((0.0, 0.1, 0.5, -1.0, 1e300, float("nan")))
        if kind is bool:
            return rng.random() < 0.3
        if kind is str:
            return rng.choice(NAMES)
        if kind in (bytes, memoryview):
            return rng.choice(BYTES) if rng.random() < 0.9 else rng.randbytes(rng.choice((1, 100, 70_000)))
        if kind is msgspec.Raw:
            return msgspec.Raw(rng.choice((b"\xc0", b"\x01", b"\x90", b"\x80", b"\xa1a", b"\x91" * 500 + b"\xc0")))
        if kind is type(None):
            return None
        if origin is typing.Annotated:
            return self.made(arguments[0])
        if origin is typing.Literal:
            return rng.choice(arguments)
        if origin in (typing.Union, types.UnionType):
            return self.made(rng.choice(arguments))
        if origin is list or (origin is tuple and arguments[-1] is ...):
            return [self.made(arguments[0]) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        if origin is tuple:
            return [self.made(argument) for argument in arguments]
        if origin is dict:
            return {self.made(arguments[0]): self.made(arguments[1]) for _ in range(rng.randint(0, 2))}
        fields = typing.get_type_hints(kind, include_extras=True)
        if issubclass(kind, msgspec.Struct):
            names = kind.__struct_fields__
            left = kind.__struct_defaults__
            first = len(names) - len(left)
            return kind(
                **{name: self.made(fields[name]) for i, name in enumerate(names) if i < first or rng.random() < 0.5}
            )
        return kind(*(self.made(hint) for hint in fields.values()))  # a named tuple

    def question(self) -> Ask:
        """By a verb that there is, mostly with an argument of its kind."""
        rng = self.rng
        verb = rng.choice(list(VERBS))
        kind = VERBS[verb] if rng.random() < 0.9 else rng.choice([dict[str, int], int, list[str], bytes])
        value = None if kind is None else self.made(kind)
        return Ask(rng.randint(0, 50), verb, msgspec.Raw(msgspec.msgpack.encode(value)))

    def write(self) -> Ask:
        """Of an object, as it should be."""
        rng = self.rng
        data = rng.randbytes(rng.choice((0, 1, 1_000, 60_000)))
        key = rng.choice(("a", "b", "deep/er"))
        if rng.random() < 0.3:
            one = ObjectWrite("count", key, -1)
        else:
            one = ObjectWrite("count", key, len(data), hashlib.sha256(data).digest(), data=data)
        wanted = Wanted() if rng.random() < 0.5 else self.made(Wanted)
        return Ask(rng.randint(0, 50), "write-objects", msgspec.Raw(msgspec.msgpack.encode([(one, wanted)])))

    def right(self, number: int) -> Any:
        """What a client of ours may say, or could have."""
        rng = self.rng
        body = memoryview(codec.encode_run(RunMeta(["add"]), 3, ["a", "a", "a"], [1, "x", None]))
        return rng.choice(
            (
                lambda: Emit(number, "add", rng.choice((None, "a", "b")), b"\x01"),
                lambda: Emit(number, "add", "a", b"\x01", rng.choice(("", "i1", "i2")), request="a"),
                lambda: Emit(number, "out", None, b"\xa1z"),
                lambda: OpenStream(rng.randint(0, 2), rng.choice(("s1", "s2", "s3")), rng.random() < 0.2),
                lambda: Append(0, rng.randint(0, 9), b"p", [Part("add", partition_of("a", PARTITIONS), 3, body)]),
                lambda: OpenReader(0, rng.choice(("out", None)), rng.choice(("r1", "r2"))),
                lambda: StartReader(0, 0, b""),
                TakeReplies,
                self.question,
                self.write,
            )
        )()

    def frames(self) -> bytes:
        """Some, whole or not."""
        rng = self.rng
        said = b"" if rng.random() < 0.05 else bytes(frame(Greeting(1 if rng.random() < 0.97 else self.made(int))))
        for number in range(rng.choice((0, 1, 2, 5, 30))):
            how = rng.random()
            if how < 0.5:
                said += frame(self.right(number))
            elif how < 0.65:
                said += frame(self.question())
            elif how < 0.9:
                said += self._any(MESSAGES)
            elif how < 0.95:
                said += self._any(LIES)
            else:
                size = rng.choice((0, 1, 5, 1_000, 1 << 20, 90 << 20, 97 << 20, (1 << 32) - 1))
                said += struct.pack("<I", size) + rng.choice((b"", b"\x9a", b"\xdc\xff", b"\xdd\xff\xff\xff\xff\x05"))
        return self._spoiled(said) if rng.random() < 0.2 else said

    def _any(self, kinds: list[Any]) -> bytes:
        kind = self.rng.choice(kinds)
        try:
            return bytes(frame(self.made(kind)))
        except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError, TypeError):
            return b""  # what cannot even be said

    def _spoiled(self, said: bytes) -> bytes:
        rng, found = self.rng, bytearray(said)
        for _ in range(rng.randint(1, 5)):
            if not found:
                break
            at = rng.randrange(len(found))
            match rng.randrange(4):
                case 0:
                    found[at] = rng.randrange(256)
                case 1:
                    del found[at : at + rng.randint(1, 40)]
                case 2:
                    found[at:at] = rng.randbytes(rng.randint(1, 10))
                case 3:
                    found[at:at] = found[: rng.randint(1, 200)]
        return bytes(found)


def said_by(attacker: Attacker) -> bytes:
    while True:
        said = attacker.frames()
        if b"pause" not in said and not _has_stop(said):
            return said


def _has_stop(said: bytes) -> bool:
    frames = client_frames()
    try:
        found = frames.feed(said)
    except Exception:
        return False  # nothing good stands before what is wrong
    return any(isinstance(message, Stop) for message in found)


class Behaving:
    """A client that knows what is right, over all its connections."""

    def __init__(self, directory: Path) -> None:
        self.counted = 0
        self.asked = 0
        self._directory = directory
        self._version = -1
        self._pushed = 0
        self._round = 0

    def round(self) -> str:
        """Everything once; returns what is wrong."""
        self._round += 1
        client = come(self._directory).greeted()
        client.end.settimeout(PATIENCE)
        try:
            return "".join(check(client) for check in (self._feed, self._call, self._write, self._queue))
        finally:
            client.close()

    def _feed(self, client: Client) -> str:
        opened = client.stream("well")
        if opened.fed != self.counted - self.asked:
            return f"its stream has fed {opened.fed} of {self.counted - self.asked}; "
        body = codec.encode_run(RunMeta(["add"]), 3, [KEY] * 3, [1, 2, 3])
        at = partition_of(KEY, client.opened.partitions)
        client.append(opened.number + 1, b"at %d" % self._round, Part("add", at, 3, memoryview(body)))
        self.counted += 3
        return ""

    def _call(self, client: Client) -> str:
        request = f"well {self._round}"
        client.say(TakeReplies())
        self._emit(client, Emit(1, "add", KEY, b"\x01", request=request))
        self.counted += 1
        self.asked += 1
        for key, value in replies(client):
            if key == request:
                return "" if value == self.counted else f"{value} instead of {self.counted}; "
        raise AssertionError("no reply")

    def _emit(self, client: Client, event: Emit) -> None:
        """Until it is taken: while much waits none is."""
        deadline = time.monotonic() + PATIENCE
        while True:
            client.say(event)
            answer = heard(client, (Emitted, Refused))
            if isinstance(answer, Emitted):
                return
            if answer.code != "full" or time.monotonic() > deadline:
                raise AssertionError(str(answer))
            time.sleep(0.05)

    def _write(self, client: Client) -> str:
        data = b"%d" % self._round
        one = ObjectWrite("count", "well", len(data), hashlib.sha256(data).digest(), data=data)
        asked = msgspec.msgpack.encode([(one, Wanted(number=self._version))])
        client.say(Ask(7, "write-objects", msgspec.Raw(asked)))
        (done,) = msgspec.msgpack.decode(client.hear(Answer, number=7).value, type=list[Done])
        if not done.holds or done.now is None or done.now.number <= self._version:
            return f"{done} of an object of version {self._version}; "
        self._version = done.now.number
        return ""

    def _queue(self, client: Client) -> str:
        for i in range(2):
            self._emit(client, Emit(10 + i, "kept", KEY, msgspec.msgpack.encode(self._pushed + i)))
        peek = {"event": "kept", "consumer": "well", "count": 10, "wait": 20.0}
        found: list[Any] = []
        while len(found) < 2:
            client.say(Ask(20, queues.POP, msgspec.Raw(msgspec.msgpack.encode(peek))))
            came = msgspec.msgpack.decode(client.hear(Answer, number=20).value, type=list[queues.Delivery])
            if not came:
                return f"the queue gave {found}; "
            found += [msgspec.msgpack.decode(each.data) for each in came]
        wanted = [self._pushed, self._pushed + 1]
        self._pushed += 2
        return "" if found == wanted else f"the queue gave {found} instead of {wanted}; "


def heard(client: Client, kinds: tuple[type, ...]) -> Any:
    while True:
        for i, message in enumerate(client._inbox):
            if isinstance(message, kinds):
                del client._inbox[i]
                return message
        if not client._more():
            raise AssertionError("the end")


def replies(client: Client) -> Iterator[tuple[str | None, Any]]:
    while True:
        for batch in client.hear(Replies).batches:
            for run in codec.runs_of(codec.body_of(batch, codec.header_of(batch))):
                yield from zip(codec.keys_of(run) or [], codec.data_of(run) or [], strict=True)


class Fuzz:
    """One server and those who come to the door of its app."""

    def __init__(self, base: Path, seed: int) -> None:
        self.heard: collections.Counter[str] = collections.Counter()
        self.found: list[str] = []
        self.rounds = 0
        self.slowest = 0.0
        self.memory = 0
        self._seed = seed
        self._server = Server(base / "home")
        self._server.grape("app", "deploy", write_app(base / "count", CODE, partitions=PARTITIONS))
        self.directory = self._server.home / "apps" / "count" / "data"
        self._behaving = Behaving(self.directory)
        self._end = 0.0

    def run(self, seconds: float) -> None:
        self._check("before", self._behaving.round)
        before = self._processes()
        self._end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._attack, args=(self._seed + i,)) for i in range(THREADS)]
        threads += [threading.Thread(target=each) for each in (self._flood, self._crawl)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self._check("the one who behaves", self._is_well)
            time.sleep(0.2)
        self._check("at the end", self._is_well)
        self._check("at the end", self._is_worked_off)
        if self._processes() != before:
            self.found.append(f"processes: {before}, then {self._processes()}")
        said = self._server.said.read_text() + Path(self._server.info("count")["log"]).read_text()
        if "Traceback" in said or "which is a bug" in said:
            self.found.append(said[-4_000:])
        if self._server.stop() != 0:
            self.found.append("it did not end in order")

    def _check(self, what: str, check: Callable[[], str]) -> None:
        try:
            wrong = check()
        except Exception as e:
            wrong = f"{type(e).__name__}: {e}"
        if wrong and len(self.found) < 20:
            self.found.append(f"{what}: {wrong}")
            print(self.found[-1], flush=True)

    def _is_well(self) -> str:
        began = time.monotonic()
        wrong = self._behaving.round()
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.rounds += 1
        size = int(Path(f"/proc/{self._server.engine('count')}/statm").read_text().split()[1])
        self.memory = max(self.memory, size * os.sysconf("SC_PAGE_SIZE"))
        if self.memory > MOST_MEMORY:
            wrong += f"the engine has {self.memory >> 20} MiB"
            self.memory = 0
        return wrong

    def _is_worked_off(self) -> str:
        def is_idle() -> bool:
            client = come(self.directory).greeted()
            try:
                return bool(client.progress().backlog == 0)
            finally:
                client.close()

        until(is_idle)
        answer = self._server.post("/apps/count/events/add", 1, params={"key": KEY, "wait": "20"})
        wanted = self._behaving.counted + 1
        return "" if answer.json() == wanted else f"{answer.text} over HTTP, not {wanted}"

    def _processes(self) -> tuple[int, ...]:
        gateway = next(p for p in self._server.pids() if "gateway.process" in Path(f"/proc/{p}/cmdline").read_text())
        return gateway, self._server.engine("count")

    # ------------------------------------------------------------------ those who do not behave

    def _attack(self, seed: int) -> None:
        attacker = Attacker(seed)
        while time.monotonic() < self._end:
            try:
                self._visit(attacker)
            except OSError:
                self.heard["cut off"] += 1

    def _visit(self, attacker: Attacker) -> None:
        rng, said = attacker.rng, said_by(attacker)
        end = come(self.directory).end
        with end:
            end.settimeout(5)
            if rng.random() < 0.3:  # in pieces
                at = rng.randrange(len(said) + 1)
                end.sendall(said[:at])
                time.sleep(rng.choice((0, 0.001, 0.02)))
                said = said[at:]
            if rng.random() < 0.1:
                return  # gone in the middle
            end.sendall(said)
            if rng.random() < 0.3:
                end.shutdown(socket.SHUT_WR)
            if rng.random() < 0.1:
                return  # nothing is read
            end.settimeout(rng.choice((0.01, 0.05, 0.3)))
            frames, until_then = door_frames(), time.monotonic() + 1  # who asked for replies hears those of all
            try:
                while time.monotonic() < until_then and (count := end.recv_into(frames.buffer())):
                    for message in frames.filled(count):
                        self.heard[type(message).__name__] += 1
            except TimeoutError:
                pass

    def _flood(self) -> None:
        """Many at once: some greet, some say half a frame, some nothing; and ask, and read nothing."""
        rng = random.Random(self._seed)
        greeting, questions = bytes(frame(Greeting(1))), bytes(frame(Ask(1, "progress"))) * 200
        while time.monotonic() < self._end:
            crowd: list[socket.socket] = []
            for _ in range(CROWD):
                try:
                    crowd.append(end := come(self.directory).end)
                    end.settimeout(0.5)
                    end.sendall(
                        rng.choice((b"", greeting, greeting[:3], b"\x00\x00\xa0\x05\x95", greeting + questions))
                    )
                except OSError:
                    self.heard["not let in"] += 1
            self.heard["of a crowd"] += len(crowd)
            time.sleep(rng.choice((0.1, 1.0)))
            for end in crowd:
                end.close()
            time.sleep(rng.choice((0.1, 3.0)))

    def _crawl(self) -> None:
        """A byte at a time."""
        attacker = Attacker(self._seed - 1)
        while time.monotonic() < self._end:
            said = said_by(attacker)
            try:
                with come(self.directory).end as end:
                    for byte in said[:500]:
                        end.sendall(bytes((byte,)))
                        time.sleep(0.002)
            except OSError:
                self.heard["cut off"] += 1

    def totals(self) -> str:
        return (
            f"{sum(self.heard.values()):,} heard: {dict(self.heard.most_common())}\n"
            f"{self.rounds:,} rounds of the one who behaves, the slowest {self.slowest:.1f} s; {self.memory >> 20} MiB"
        )


if __name__ == "__main__":
    fuzz(__doc__, Fuzz)
