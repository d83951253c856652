"""Load for a server: what is measured, against a server that stands still."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.remote.load import Histogram, Load, Outcome, due, run


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_known_to_a_percent(latencies: list[float], share: float) -> None:
    histogram = Histogram({})
    for latency in latencies:
        histogram.add(latency)
    exact = sorted(latencies)[math.ceil(share * len(latencies)) - 1]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.02)


def test_moments_of_a_rate() -> None:
    assert due(0.0, 10.0, 5) is None
    assert due(50.0, 10.0, 5) == pytest.approx(10.1)


class Server:
    """Answers at once, but for one pause."""

    def __init__(self, pause: float, status: str = "202 Accepted") -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self._pause = pause
        self._status = status

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                size = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length"))
                self.paths.append(lines[0].split(" ")[1])
                self.bodies.append(await reader.readexactly(size))
                if len(self.paths) == 20:
                    await asyncio.sleep(self._pause)
                writer.write(f"HTTP/1.1 {self._status}\r\ncontent-length: 2\r\n\r\nok".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def loaded(server: Server, **load: object) -> Outcome:
    async def go() -> Outcome:
        listening = await asyncio.start_server(server, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening:
            return await run(Load(f"http://127.0.0.1:{port}", "/a?key=k{k}", b'{"n": {n}}', **load))  # type: ignore[arg-type]

    return asyncio.run(go())


def test_a_pause_shows_in_all_requests_that_should_have_gone_out_in_it() -> None:
    outcome = loaded(Server(0.5), connections=1, rate=200.0, total=150, seconds=0)
    assert outcome.latencies.total == 150
    assert outcome.late > 50
    assert outcome.latencies.quantile(0.6) > 0.05  # in a closed loop one of them would have been slow
    closed = loaded(Server(0.5), connections=1, total=150, seconds=0)
    assert closed.latencies.quantile(0.9) < 0.25
    assert closed.late == 0


def test_numbers_are_filled_in_and_answers_counted() -> None:
    server = Server(0.0, "429 Too Many Requests")
    outcome = loaded(server, connections=2, total=7, seconds=0, keys=3, offset=1, step=2)
    assert sorted(server.bodies) == sorted(b'{"n": %d}' % n for n in range(1, 15, 2))
    assert set(server.paths) == {"/a?key=k0", "/a?key=k1", "/a?key=k2"}
    assert outcome.statuses == {"429": 7}


def test_whoever_is_not_there_is_told() -> None:
    outcome = asyncio.run(run(Load("http://127.0.0.1:9", "/", b"", connections=1, seconds=0.2)))
    assert outcome.latencies.total == 0
    assert outcome.errors
