"""The thread that listens to an engine: whatever listeners do, it neither stops without a word nor waits for a sink."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import grape
from grape import Topology
from grape.abc.source import Sink
from grape.client.connection import Connection
from grape.errors import EngineError
from grape.host.once import Once
from grape.protocol.door import Said
from grape.protocol.framing import frame

t = Topology("listening")
t.add_output("out")


@t.slot("line", emits="out")
def work(line: str) -> str:
    return line


class Ended(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("a closed file"), KeyError(3), Ended()])
def test_a_listener_that_raises_ends_it_with_the_reason(error: BaseException) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, lambda: "gone")

    def said(message: Said) -> None:
        raise error

    connection.said = said
    connection.start()
    with theirs:
        theirs.sendall(frame(Said([("main.0", "stdout", "", "text")])))
        found = connection.ended.exception(timeout=10)
    assert isinstance(found, EngineError)
    assert repr(error) in str(found)
    assert connection.ask_verb("numbers").exception(timeout=10) is not None
    connection.close()


class Hasty(Sink):
    """Says that it is quick, and fails at first."""

    form = "events"
    name = "out=hasty"

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.got: list[Any] = []

    def is_quick(self, lines: int) -> bool:
        return True

    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        return 0, b""

    def write(self, lines: list[Any]) -> tuple[int, bytes]:
        self.threads.append(threading.current_thread().name)
        if len(self.threads) == 1:
            raise OSError("once")
        self.got += [event.data for event in lines]
        return 0, b""


def test_a_quick_sink_that_fails_waits_for_its_next_attempt_on_a_thread_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb\n")
    sink = Hasty()
    grape.run(t, feed={"line": tmp_path / "in.txt"}, take={"out": sink}, inline=True, partitions=1)
    assert sink.got == ["a", "b"]
    assert sink.threads[:2] == ["grape-door", "grape-take"]


def test_what_is_asked_for_often_is_done_once_and_again_when_it_is_asked_for_then() -> None:
    scheduled: list[Any] = []
    done: list[int] = []
    once = Once(scheduled.append, lambda: done.append(len(done)))
    for _ in range(3):
        once()
    assert len(scheduled) == 1
    scheduled.pop()()
    assert done == [0]
    once()
    scheduled.pop()()
    assert done == [0, 1]
