"""A client at the door that knows nothing but docs/door.md: a socket, frames, and one message after the other. For
tests of what an engine says and does; that of Grape is `grape.client`."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from grape.authoring.topology import Topology
from grape.client.launching import EngineThread, Launched, spawn_engine
from grape.host.options import Options, check_options
from grape.model import batch as codec
from grape.model.batch import RunMeta
from grape.protocol.door import (
    Accepted,
    Answer,
    Append,
    Ask,
    Batches,
    Begin,
    Begun,
    Described,
    Ended,
    Failed,
    FromClient,
    FromEngine,
    Greeting,
    Open,
    Opened,
    OpenReader,
    OpenStream,
    Part,
    ReaderOpened,
    Said,
    StartReader,
    Stop,
    StreamOpened,
    Took,
)
from grape.protocol.framing import door_frames, frame
from grape.protocol.outcomes import Outcomes, Progress

PATIENCE: Final = 30.0
T = TypeVar("T", bound=msgspec.Struct)


class Client:
    """``end``: of its socket."""

    opened: Opened

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(PATIENCE)
        self.end = end
        self._frames = door_frames()
        self._inbox: list[FromEngine] = []

    def send(self, data: bytes) -> None:
        self.end.sendall(data)

    def say(self, *messages: FromClient) -> None:
        self.send(b"".join(frame(message) for message in messages))

    def _more(self) -> bool:
        count = self.end.recv_into(self._frames.buffer())
        self._inbox += [message for message in self._frames.filled(count) if not isinstance(message, Said)]
        return bool(count)

    def hear(self, kind: type[T], **fields: Any) -> T:
        """The next message of this kind with these fields; what comes before stays."""
        while True:
            for i, message in enumerate(self._inbox):
                if isinstance(message, kind) and all(getattr(message, f) == v for f, v in fields.items()):
                    del self._inbox[i]
                    return message
                if isinstance(message, Failed):
                    raise AssertionError(f"{message} instead of {kind.__name__}")
            assert self._more(), f"the end instead of {kind.__name__}"

    def ask(self, *messages: FromClient, for_: type[T]) -> T:
        self.say(*messages)
        return self.hear(for_)

    def has_heard(self, kind: type[T]) -> bool:
        """By now: after an answer to a question that was asked after it."""
        self.ask(Ask(0, "numbers"), for_=Answer)
        return any(isinstance(message, kind) for message in self._inbox)

    def last_words(self) -> list[FromEngine]:
        """Until its socket ends."""
        with suppress(ConnectionResetError):
            while self._more():
                pass
        said, self._inbox = self._inbox, []
        return said

    def close(self) -> None:
        self.end.close()

    # ------------------------------------------------------------------ what most tests do

    def greeted(self) -> Client:
        self.say(Greeting(1))
        self.hear(Described)
        self.opened = self.hear(Opened)
        self.hear(Begun)
        return self

    def stream(self, name: str, number: int = 0, **terms: Any) -> StreamOpened:
        return self.ask(OpenStream(number, name, **terms), for_=StreamOpened)

    def append(self, number: int, position: bytes, *parts: Part, **fields: Any) -> None:
        """On stream 0; it is accepted."""
        self.say(Append(0, number, position, [*parts], **fields))
        self.hear(Accepted, number=number)

    def reader(self, event: str | None, name: str, number: int = 0) -> ReaderOpened:
        opened = self.ask(OpenReader(number, event, name), for_=ReaderOpened)
        self.say(StartReader(number, opened.length, opened.tail))
        return opened

    def take(self, count: int, length: int = 0, reader: int = 0) -> list[Any]:
        """The data of the next ``count`` events of an output."""
        found: list[Any] = []
        while len(found) < count:
            found += self.take_some(length, reader)
        assert len(found) == count, found
        return found

    def take_some(self, length: int = 0, reader: int = 0) -> list[Any]:
        """The data of what comes next."""
        given = self.hear(Batches, reader=reader)
        data = data_of(given)
        self.say(Took(reader, given.number, len(data), length, b""))
        return data

    def progress(self) -> Progress:
        return msgspec.msgpack.decode(self.ask(Ask(0, "progress"), for_=Answer).value, type=Progress)

    @property
    def engine_pid(self) -> int:
        return dict(self.progress().pids)["engine"]


def data_of(given: Batches) -> list[Any]:
    found: list[Any] = []
    for item in given.items:
        data: list[Any] = []
        for run in codec.runs_of(codec.body_of(item.batch, codec.header_of(item.batch))):
            data += codec.data_of(run) or [None] * run.count
        found += data[item.first :]
    return found


def part(name: str, *data: Any, partition: int = 0, **meta: Any) -> Part:
    """Of events without keys."""
    return Part(
        name, partition, len(data), memoryview(codec.encode_run(RunMeta([name], **meta), len(data), None, data))
    )


def path_of(directory: Path) -> Path:
    return directory / "door"


def come(directory: Path) -> Client:
    """To an engine that runs there, however long the path is."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        end.connect(f"/proc/self/fd/{fd}/door")
    finally:
        os.close(fd)
    return Client(end)


class Owner(Client):
    """With the engine that it has started, which stays open."""

    def __init__(self, launched: Launched) -> None:
        super().__init__(launched.end)
        self.launched = launched
        self.say(Greeting(1))
        self.described = self.hear(Described)

    def open(self) -> Owner:
        self.opened = self.ask(Open(), for_=Opened)
        return self

    def begin(self) -> Owner:
        self.ask(Begin(), for_=Begun)
        return self

    def begin_taking(self, *outputs: str) -> Owner:
        """With reader ``i`` for output ``i``."""
        self.open()
        for number, output in enumerate(outputs):
            self.reader(output, f"{output}=test", number)
        return self.begin()

    def end_run(self) -> Outcomes:
        return msgspec.msgpack.decode(self.ask(Stop(), for_=Ended).outcomes, type=Outcomes)

    def leave(self) -> None:
        self.close()
        self.launched.join()


@contextmanager
def engine(topology: Topology, data: Path, **options: Any) -> Iterator[Owner]:
    """As a thread of this process."""
    owner = Owner(EngineThread(options_of(topology, data, inline=True, **options)))
    try:
        yield owner
    finally:
        owner.leave()


def options_of(topology: Topology | str, data: Path, **options: Any) -> Options:
    target = topology if isinstance(topology, str) else "test:t"
    own = topology if isinstance(topology, Topology) else None
    return check_options(Options(target=target, data=str(data), keep_open=True, topology=own, **options))


def engine_process(app: Path, data: Path, **options: Any) -> Owner:
    return Owner(spawn_engine(options_of(f"{app}:t", data, workers=1, directory=str(app.parent), **options)))


def wait_for_end(pidfd: int) -> None:
    """Of the process."""
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
