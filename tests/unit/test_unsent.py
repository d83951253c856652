"""A signal may raise anywhere in a send: what has begun goes on, and nothing is sent twice."""

from __future__ import annotations

import random
import signal
import socket
import threading
from types import FrameType

from grape.client.unsent import Unsent
from grape.protocol.door import Ask, FromClient
from grape.protocol.framing import SEND_BUFFER, client_frames, frame


class Raised(BaseException):
    pass


def ring(number: int, at: FrameType | None) -> None:
    raise Raised


def test_a_signal_that_raises_leaves_no_frame_cut_off() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER >> 6)
    got: list[FromClient] = []
    wrong: list[BaseException] = []

    def read() -> None:
        frames = client_frames()
        try:
            while count := theirs.recv_into(frames.buffer()):
                got.extend(frames.filled(count))
                frames.check()
        except BaseException as e:
            wrong.append(e)

    reader = threading.Thread(target=read)
    reader.start()
    unsent, rng = Unsent(ours), random.Random(5)
    before = signal.signal(signal.SIGALRM, ring)
    interrupted = 0
    try:
        for number in range(1_500):
            size = rng.choice((1, 100, 5_000, 300_000, 1_000_000))
            packed = frame(Ask(number, "x" * size))
            pieces: list[bytes | bytearray | memoryview] = [packed[:7], memoryview(packed)[7:]]
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 4e-4))
                unsent.send(pieces)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Raised:
                interrupted += 1
    finally:
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except Raised:
                pass
        signal.signal(signal.SIGALRM, before)
    unsent.send([frame(Ask(1_500, "last"))])
    ours.close()
    reader.join(30)
    theirs.close()
    assert wrong == []
    assert interrupted > 100
    numbers = [message.number for message in got if isinstance(message, Ask)]
    assert numbers == sorted(
        set(numbers)
    )  # each at most once: one that was interrupted at its beginning may be missing
    assert numbers[-1] == 1_500
    assert len(numbers) > 1_500 - interrupted


def test_who_has_gone_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    unsent = Unsent(ours)
    unsent.send([b"x" * 10])
    unsent.send([b"x" * 10])
    ours.close()
