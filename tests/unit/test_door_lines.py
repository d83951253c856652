"""Lines for people at the door: whoever reads them gets them all; whoever does not gets a count."""

from __future__ import annotations

import asyncio
import socket

import pytest

from grape.engine.clock import FakeClock
from grape.host import door
from grape.host.host import Host
from grape.host.house import House
from grape.processes.output import Line
from grape.protocol.door import Said
from grape.protocol.framing import door_frames


async def shown(count: int) -> list[tuple[str, str, str, str]]:
    """What its owner hears, who reads nothing while ``count`` lines are shown, and then one more."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    ours.setblocking(False)
    host = Host(lambda why: None)
    host.begin()
    entrance = door.Door(House(host, FakeClock(), "d", lambda text: None))
    await entrance.let_owner_in(theirs)
    for number in range(count):
        entrance.show("main.0", Line("stdout", "Count", f"line {number} {'x' * 100}"))
    loop, frames = asyncio.get_running_loop(), door_frames()
    heard: list[tuple[str, str, str, str]] = []
    asked_again = False
    while not (asked_again and heard[-1:] and heard[-1][3] == "the last"):
        for message in frames.filled(await loop.sock_recv_into(ours, frames.buffer())):
            assert isinstance(message, Said)
            heard += message.lines
        if not asked_again and (not entrance._owner or not entrance._owner._unread):
            asked_again = True
            entrance.show("main.0", Line("stdout", "Count", "the last"))
    ours.close()
    return heard


def test_lines_that_are_read_all_come() -> None:
    heard = asyncio.run(shown(50))
    assert [text.split()[1] for *_, text in heard[:-1]] == [str(number) for number in range(50)]
    assert heard[-1] == ("main.0", "stdout", "Count", "the last")


def test_lines_that_nobody_reads_are_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_MAX_LINES", 20_000)
    heard = asyncio.run(shown(10_000))
    *lines, cut, last = heard
    assert 100 < len(lines) < 1_000
    assert cut == ("engine", "stderr", "", f"({10_000 - len(lines):,} lines were cut: nobody read them in time)")
    assert last[3] == "the last"
