"""Plays the clients of one engine, by nothing but docs/door.md: says things at its door, looks at what comes.

A case begins with an engine of its own, on a directory of its own, which has begun: its owner has opened reader 0 of
the output "out", and takes nothing of it; or with one that was only started (``bare``). Clients have names; a step is
of the client that it names with "as", else of "a". One that is not there comes, and is greeted. A step is an object
with one of these keys:

    say       [message, {field: value}]: by the names of docs/door.md; what is left out has its default
    hear      [message, {field: value}]: the next message of this kind; these fields have to be so
    accepted  the appends of stream "stream" (0) up to this one, at once or one after the other
    opens     [OpenStream or OpenReader, fields], with "gives": fields of the answer. Said again while it is in use
    answers   a verb, with "gives": what has to stand in its answer, and "argument"
    batches   data that come next of reader "reader" (0), in as many `Batches` as it takes when "whole" is false
    took      fields of a `Took` of the last `Batches` of reader "reader" (0); "number" counts from theirs
    replies   [name, request, data] of each reply that comes next
    silent    kinds of which nothing has come by now: behind the answer to a question
    cut       it hears `Failed` with this code, and nothing more; "why": a part of the text, of Grape's own engine
    connect   it comes, without a word
    raw       bytes (hex) to send as they are
    leave     its socket is closed
    ends      its socket ends, behind `Ended` or `Failed` if that is named
    kill      the engine is killed, and another one started on the same directory; all clients are gone

In values {"$part": {"name", "data", "keys", "partition", "events", "body", and what stands in a run}} is a `Part`,
{"$msgpack": value} a packed value, {"$zeros": n} so many bytes; {"$bytes": hex} and the like are those
of `grape.testing.conformance.cases`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct

from grape.errors import GrapeError
from grape.model import batch as codec
from grape.model.batch import RunMeta
from grape.protocol import door
from grape.protocol.framing import door_frames, frame
from grape.testing.conformance.cases import same, value_of

OWN: Final = (sys.executable, "-m", "grape.testing.conformance.engine")
PATIENCE: Final = 20.0
_CLIENT: Final = {kind.__name__: kind for kind in get_args(door.FromClient)}
_QUESTION: Final = 1 << 30


class Wrong(AssertionError):
    """The engine did something else."""


class DoorCase(Struct, frozen=True):
    """``steps``: see the module. ``bare``: nobody has opened or begun."""

    chapter: str
    name: str
    steps: list[dict[str, Any]]
    bare: bool = False

    @property
    def title(self) -> str:
        return f"{self.chapter}: {self.name}"


def door_cases() -> Iterator[DoorCase]:
    """In the order of the chapters' names."""
    folder = files(__package__).joinpath("door_cases")
    for file in sorted(folder.iterdir(), key=lambda found: found.name):
        if file.name.endswith(".json"):
            chapter = file.name.removesuffix(".json").partition("-")[2]
            for fields in json.loads(file.read_text()):
                yield DoorCase(chapter=chapter, **fields)


def attempt(case: DoorCase, command: Sequence[str] = OWN) -> str | None:
    """Run one case against the engine that ``command`` starts; returns what it did instead of what it should."""
    directory = tempfile.mkdtemp(prefix="grape-door-")
    try:
        stage = Stage(case, command, Path(directory) / "data")
        try:
            stage.run()
        finally:
            stage.close()
    except (Wrong, OSError) as e:
        return str(e) or f"the connection broke: {type(e).__name__}"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return None


# ------------------------------------------------------------------ what is meant in a case


def meant(written: Any) -> Any:
    """As `value_of`, and what only the door has."""
    if isinstance(written, list):
        return [meant(item) for item in written]
    if isinstance(written, dict):
        match written:
            case {"$part": fields}:
                return _part(**{name: meant(value) for name, value in fields.items()})
            case {"$msgpack": value}:
                return msgspec.msgpack.encode(meant(value))
            case {"$zeros": size}:
                return bytes(size)
        if len(written) == 1 and next(iter(written)).startswith("$"):
            return value_of(written)
        return {key: meant(value) for key, value in written.items()}
    return written


def _part(
    name: str,
    data: list[Any],
    keys: list[str | None] | None = None,
    partition: int = 0,
    events: int | None = None,
    body: bytes | None = None,
    **meta: Any,
) -> list[Any]:
    if body is None:
        body = codec.encode_run(RunMeta(meta.pop("names", [name]), **meta), len(data), keys, data)
    return [name, partition, len(data) if events is None else events, body]


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=(bytes,))


# ------------------------------------------------------------------ one client


class Client:
    """``is_over``: it was cut, or has heard the end."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(PATIENCE)
        self._end = end
        self._frames = door_frames()
        self._inbox: list[Struct] = []
        self._given: dict[int, int] = {}
        self.is_over = False

    def send(self, data: bytes | bytearray) -> None:
        self._end.sendall(data)

    def say(self, name: str, fields: dict[str, Any]) -> None:
        self.send(frame(_CLIENT[name](**fields)))

    def close(self) -> None:
        self.is_over = True
        self._end.close()

    def _more(self) -> bool:
        try:
            data = self._end.recv(1 << 20)
            self._inbox += [one for one in self._frames.feed(data) if not isinstance(one, door.Said)]
        except TimeoutError:
            raise Wrong(f"nothing comes within {PATIENCE} s; before that came {self._inbox!r:.500}") from None
        except ConnectionResetError:
            return False
        except GrapeError as e:
            raise Wrong(f"what comes is no message: {e}") from None
        return bool(data)

    def hear(self, *names: str) -> Struct:
        """The next of these; what comes before stays."""
        while True:
            for i, message in enumerate(self._inbox):
                if type(message).__name__ in names:
                    return self._inbox.pop(i)
                if isinstance(message, door.Failed):
                    raise Wrong(f"{message} instead of {' or '.join(names)}")
            if not self._more():
                raise Wrong(f"the socket ends instead of {' or '.join(names)}; before that came {self._inbox!r:.500}")

    def check(self, message: Struct, fields: dict[str, Any]) -> None:
        for name, value in meant(fields).items():
            found = _plain(getattr(message, name))
            if not same(found, value):
                raise Wrong(f"{type(message).__name__} has {name}={found!r:.300}, not {value!r:.300}")

    def greeted(self) -> None:
        self.say("Greeting", {"version": door.VERSION})
        for name in ("Described", "Opened", "Begun"):
            self.hear(name)

    def accepted(self, stream: int, number: int) -> None:
        reached = -1
        while reached < number:
            message = self.hear("Accepted")
            assert isinstance(message, door.Accepted)
            if message.stream != stream or not reached <= message.number <= number:
                raise Wrong(f"{message} behind {reached}, not up to {number} of stream {stream}")
            reached = message.number

    def opens(self, name: str, fields: dict[str, Any], gives: dict[str, Any]) -> None:
        answer = f"{name.removeprefix('Open')}Opened"
        until = time.monotonic() + PATIENCE
        while True:
            self.say(name, fields)
            found = self.hear(answer, "Failed")
            if not isinstance(found, door.Failed):
                break
            if found.code != "in-use" or time.monotonic() > until:
                raise Wrong(f"{found} instead of {answer}")
        self.check(found, gives)

    def answers(self, verb: str, argument: Any, gives: dict[str, Any]) -> None:
        self.say("Ask", {"number": _QUESTION, "verb": verb, "argument": msgspec.Raw(msgspec.msgpack.encode(argument))})
        answer = self.hear("Answer", "Refused")
        assert isinstance(answer, door.Answer | door.Refused)
        if answer.number != _QUESTION or isinstance(answer, door.Refused):
            raise Wrong(f"{answer} instead of an answer to {verb!r}")
        value = msgspec.msgpack.decode(answer.value)
        for name, wanted in gives.items():
            if not same(value.get(name), wanted):
                raise Wrong(f"{verb}: {name} is {value.get(name)!r:.300}, not {wanted!r:.300}")

    def silent(self, names: list[str]) -> None:
        self.answers("numbers", None, {})
        for message in self._inbox:
            if type(message).__name__ in names:
                raise Wrong(f"it says {message!r:.500}")

    def batches(self, reader: int, data: list[Any], *, whole: bool) -> None:
        found: list[Any] = []
        while True:
            given = self.hear("Batches")
            assert isinstance(given, door.Batches)
            if given.reader != reader:
                raise Wrong(f"batches of reader {given.reader}, not of {reader}")
            if given.number <= self._given.get(reader, -1):
                raise Wrong(f"batches number {given.number} behind {self._given[reader]}")
            self._given[reader] = given.number
            here = data_of(given)
            found += here
            if whole or len(found) >= len(data):
                break
            self.took(reader, {"done": len(here)})
        if not same(found, data):
            raise Wrong(f"reader {reader} gets {found!r:.500}, not {data!r:.500}")

    def took(self, reader: int, fields: dict[str, Any]) -> None:
        number = self._given[reader] + fields.get("number", 0)
        said = {"length": 0, "tail": b"", **fields, "reader": reader, "number": number}
        self.say("Took", said)

    def replies(self, wanted: list[Any]) -> None:
        found: list[Any] = []
        while len(found) < len(wanted):
            given = self.hear("Replies")
            assert isinstance(given, door.Replies)
            for batch in given.batches:
                for run in codec.runs_of(codec.body_of(batch, codec.header_of(batch))):
                    columns = codec.names_of(run), codec.keys_of(run) or (), codec.data_of(run) or ()
                    found += map(list, zip(*columns, strict=True))
        if not same(found, wanted):
            raise Wrong(f"the replies are {found!r:.500}, not {wanted!r:.500}")

    def cut(self, code: str, why: str) -> None:
        """It hears why, and is not read any more."""
        failed = self.hear("Failed")
        assert isinstance(failed, door.Failed)
        if failed.code != code or why not in failed.text:
            raise Wrong(f"{failed}, not code {code!r} with {why!r}")
        self.say("Ask", {"number": _QUESTION, "verb": "numbers"})
        self._end.shutdown(socket.SHUT_WR)
        self.ends(None)

    def ends(self, last: str | None) -> None:
        if last is not None:
            self.hear(last)
        while self._more():
            pass
        self.is_over = True
        words = [message for message in self._inbox if isinstance(message, door.Failed | door.Ended | door.Answer)]
        if words:
            raise Wrong(f"behind the end it says {words!r:.500}")


def data_of(given: door.Batches) -> list[Any]:
    """Of the events that were not taken before."""
    found: list[Any] = []
    for item in given.items:
        data: list[Any] = []
        for run in codec.runs_of(codec.body_of(item.batch, codec.header_of(item.batch))):
            data += codec.data_of(run) or [None] * run.count
        if len(data) != item.events:
            raise Wrong(f"a batch of {len(data)} events says that it has {item.events}")
        found += data[item.first :]
    return found


# ------------------------------------------------------------------ one engine, and who comes to it


class Stage:
    """``command``: starts the engine, with the data directory and the descriptor of the owner's socket behind it."""

    def __init__(self, case: DoorCase, command: Sequence[str], data: Path) -> None:
        self._case = case
        self._command = list(command)
        self._is_own = list(command) == list(OWN)
        self._data = data
        self._clients: dict[str, Client] = {}
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(self._data), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        owner = self._clients["owner"] = Client(ours)
        if self._case.bare:
            return
        owner.say("Greeting", {"version": door.VERSION})
        owner.hear("Described")
        owner.say("Open", {})
        owner.hear("Opened")
        owner.opens("OpenReader", {"reader": 0, "event": "out", "name": "owner"}, {})
        owner.say("Begin", {})
        owner.hear("Begun")

    def _kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for client in self._clients.values():
            client.close()
        self._clients = {}

    def close(self) -> None:
        """Nothing is left of it."""
        self._kill()

    def run(self) -> None:
        """
        Raises:
            Wrong: the engine does something else than it should.
        """
        for number, step in enumerate(self._case.steps, 1):
            try:
                self._step(step)
            except (Wrong, OSError) as e:
                raise Wrong(f"step {number} ({next(iter(step))}): {e or type(e).__name__}") from None
        owner = self._clients["owner"]
        if not owner.is_over and not self._case.bare:  # whatever a client has done, it is its own affair
            for client in (owner, self._connected()):
                if client is not owner:
                    client.greeted()
                client.answers("numbers", None, {})

    def _connected(self) -> Client:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fd = os.open(self._data, os.O_PATH | os.O_DIRECTORY)
        try:
            end.connect(f"/proc/self/fd/{fd}/door")
        except OSError:
            end.close()
            raise
        finally:
            os.close(fd)
        return Client(end)

    def _client(self, name: str) -> Client:
        found = self._clients.get(name)
        if found is None:
            found = self._clients[name] = self._connected()
            found.greeted()
        return found

    def _step(self, step: dict[str, Any]) -> None:
        name = step.get("as", "a")
        match step:
            case {"kill": _}:
                self._kill()
                self._start()
            case {"connect": _}:
                self._clients[name] = self._connected()
            case {"leave": _}:
                self._clients.pop(name).close()
            case _:
                self._of(self._client(name), step)

    def _of(self, client: Client, step: dict[str, Any]) -> None:
        reader, gives = step.get("reader", 0), step.get("gives", {})
        match step:
            case {"say": [name, fields]}:
                client.say(name, meant(fields))
            case {"hear": [name, fields]}:
                client.check(client.hear(name), fields)
            case {"accepted": number}:
                client.accepted(step.get("stream", 0), number)
            case {"opens": [name, fields]}:
                client.opens(name, meant(fields), gives)
            case {"answers": verb}:
                client.answers(verb, step.get("argument"), gives)
            case {"batches": data}:
                client.batches(reader, meant(data), whole=step.get("whole", True))
            case {"took": fields}:
                client.took(reader, meant(fields))
            case {"replies": wanted}:
                client.replies(wanted)
            case {"silent": names}:
                client.silent(names)
            case {"cut": code}:
                client.cut(code, step.get("why", "") if self._is_own else "")
            case {"raw": data}:
                client.send(bytes.fromhex(data))
            case {"ends": last}:
                client.ends(last)
            case _:
                raise Wrong(f"no step of a case: {step}")
