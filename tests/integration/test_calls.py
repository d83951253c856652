"""Call and wait, from Python, by threads and under asyncio; with slots in this process and in workers."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grape
from grape import CallFailed, Context, GrapeError, NoAnswer, Node, Reply, Topology, UnknownEvent
from grape.aio import AsyncEngine
from grape.authoring.places import HIDDEN
from grape.client.calls import MAX_CALLS, MAX_PART_BYTES, Call, Calls
from grape.errors import BadArgument, Full, TooLarge, UsageError
from grape.model.address import PartitionId
from grape.model.batch import one, seal
from grape.protocol.door import Replies
from grape.running import RunningEngine

t = Topology("answers")
t.add_output("out")
t.add_output("other")


class Answer(Node):
    def process(self, event: grape.Event) -> None:
        match event.data:
            case "silent":
                return
            case "fail":
                raise ValueError("as it was asked")
            case {"parts": count}:
                for number in range(count):
                    self.reply(number, final=False)
            case {"late": seconds}:
                self.emit("later", seconds, delay=seconds)
                return
            case {"out": name}:
                self.emit(name, 1)
            case {"chain": 0}:
                pass
            case {"chain": depth}:
                self.emit("ask", {"chain": depth - 1}, key=None)
                return
        self.reply(event.data)
        self.reply("too late")


t.add_slot("ask", Answer(), retries=0)


@t.slot("later")
def later(seconds: float, context: Context) -> None:
    context.reply(seconds)


@t.slot("text", emits="out", pool="far", retries=0)
def text(words: str, context: Context) -> None:
    context.reply(words)


@pytest.fixture(scope="module", params=["inline", "workers"])
def engine(request: pytest.FixtureRequest) -> Iterator[RunningEngine]:
    inline = request.param == "inline"
    target = t if inline else f"{__file__}:t"
    with grape.open(target, inline=inline, workers=None if inline else 1) as running:
        yield running


# ------------------------------------------------------------------ threads


def test_the_answer(engine: RunningEngine) -> None:
    assert engine.call("ask", {"a": [1]}) == {"a": [1]}
    assert engine.call("ask", None) is None
    assert engine.call("ask", "x", key="ann", deadline=30, timeout=None) == "x"
    assert engine.call("ask", {"chain": 5}) == {"chain": 0}
    assert engine.call("ask", "2026-01-02", type=date) == date(2026, 1, 2)
    with pytest.raises(grape.BadPayload, match="the answer does not fit int"):
        engine.call("ask", "x", type=int)
    assert len(engine.calls) == 0


def test_parts_and_the_final_one(engine: RunningEngine) -> None:
    replies = list(engine.call_stream("ask", {"parts": 3}))
    assert replies == [Reply(0, False), Reply(1, False), Reply(2, False), Reply({"parts": 3}, True)]
    assert engine.call("ask", {"parts": 3}) == {"parts": 3}
    with engine.call_stream("ask", {"parts": 3}) as some:
        assert next(some).data == 0
    with pytest.raises(StopIteration):
        next(some)
    engine.call_stream("ask", "silent")  # nobody keeps it
    assert len(engine.calls) == 0


def test_an_error_is_raised_with_what_it_says(engine: RunningEngine) -> None:
    with pytest.raises(CallFailed, match="node 'Answer' failed: ValueError: as it was asked") as caught:
        engine.call("ask", "fail")
    assert (caught.value.code, caught.value.node) == ("ValueError", "Answer")
    assert caught.value.text == "ValueError: as it was asked"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.code, again.text, again.node) == (caught.value.code, caught.value.text, "Answer")
    with pytest.raises(CallFailed, match="does not fit str") as caught:
        list(engine.call_stream("text", 5))
    assert caught.value.code == "bad-payload"


def test_nothing_comes_in_time(engine: RunningEngine) -> None:
    begin = time.monotonic()
    with pytest.raises(NoAnswer, match=r"no answer after 2 s; its event was accepted") as caught:
        engine.call("ask", "silent", timeout=2)
    assert isinstance(caught.value, TimeoutError)
    assert 2 <= time.monotonic() - begin < 20
    with pytest.raises(NoAnswer):
        engine.call("ask", {"late": 1}, timeout=0.3)
    assert engine.call("ask", {"late": 1}) == 1  # its own, not the one of before
    assert engine.call("ask", "x", timeout=timedelta(seconds=20)) == "x"  # type: ignore[arg-type]
    assert len(engine.calls) == 0


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, "1", b"", True, 1e300, [], 0.0, timedelta(-1)])
def test_timeouts_that_cannot_be(engine: RunningEngine, timeout: Any) -> None:
    for call in (engine.call, engine.call_stream):
        with pytest.raises(BadArgument, match="timeout"):
            call("ask", "x", timeout=timeout)
    assert len(engine.calls) == 0


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)


@given(name=anything | st.just("ask"), data=anything, key=anything, deadline=anything, timeout=anything)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_argument(engine: RunningEngine, name: Any, data: Any, key: Any, deadline: Any, timeout: Any) -> None:
    try:
        stream = engine.call_stream(name, data, key=key, deadline=deadline, timeout=timeout)
    except GrapeError:
        assert len(engine.calls) == 0
    else:
        stream.close()


def test_wrong_calls(engine: RunningEngine) -> None:
    with pytest.raises(UnknownEvent, match="no slot 'ak'"):
        engine.call("ak", 1)
    with pytest.raises(TooLarge):
        engine.call("ask", "x" * (9 << 20))
    assert len(engine.calls) == 0


def test_many_threads_get_each_their_own(engine: RunningEngine) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda n: engine.call("ask", n), range(400))) == list(range(400))


def test_thousands_wait_at_once(engine: RunningEngine) -> None:
    streams = [engine.call_stream("ask", n if n % 2 else "silent") for n in range(3_000)]
    assert [next(stream).data for stream in streams[1::2]] == list(range(1, 3_000, 2))
    assert len(engine.calls) == 1_500
    for stream in streams:
        stream.close()
    assert len(engine.calls) == 0


def test_an_engine_that_closes_leaves_nobody_waiting(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def wait(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as e:
            raised.append(e)

    with grape.open(t, inline=True, data=tmp_path / "d") as engine:
        stream = engine.call_stream("ask", "silent", timeout=None)
        calls = [lambda: engine.call("ask", "silent", timeout=None), lambda: next(stream)]
        threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        while len(engine.calls) < 2:
            time.sleep(0.01)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert [type(e) for e in raised] == [NoAnswer, NoAnswer]
    assert "the engine was closed" in str(raised[0])
    for late in (
        lambda: engine.call("ask", 1),
        lambda: engine.emit("ask", 1),
        lambda: engine.call_stream("ask", 1),
        engine.numbers,
    ):
        with pytest.raises(Full, match="the engine has ended"):
            late()


def test_answers_of_an_earlier_run_are_nobodys(tmp_path: Path) -> None:
    with grape.open(t, inline=True, data=tmp_path / "d") as engine:
        engine.call_stream("ask", {"late": 0.5}).close()
        stream = engine.call_stream("ask", {"late": 0.5})
    del stream
    with grape.open(t, inline=True, data=tmp_path / "d") as engine:
        deadline = time.monotonic() + 30
        while engine.numbers().replies < 4 and time.monotonic() < deadline:  # those of before have come, two each
            assert engine.call("ask", 7) == 7
        assert [engine.call("ask", n) for n in range(20)] == list(range(20))


def test_ctrl_c_while_a_call_waits(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import grape, threading, time\nfrom grape import *\nt = Topology('x')\n"
        "@t.slot('ask')\ndef ask(x: int) -> None:\n    print('asked', flush=True)\n"
        "if __name__ == '__main__':\n"
        "    def other(e):\n"
        "        try:\n            e.call('ask', 1, timeout=None)\n"
        "        except NoAnswer as x:\n            print('other:', x, flush=True)\n"
        "    with grape.open(t, inline=True) as e:\n"
        "        threading.Thread(target=other, args=(e,)).start()\n"
        "        e.call('ask', 1, timeout=None)\n"
    )
    app = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert app.stdout is not None
    assert [app.stdout.readline() for _ in range(2)] == ["asked\n", "asked\n"]  # both wait
    app.send_signal(signal.SIGINT)
    out, err = app.communicate(timeout=30)
    assert out.startswith("other: the engine was closed")
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_outputs_that_nobody_reads_hold_up_nobody(tmp_path: Path) -> None:
    """The engine's own thread waited for a reader once the queue of an output was full; and what stood behind the
    event at which somebody had stopped to read was lost."""
    with grape.open(t, inline=True) as engine:
        for _n in range(40):
            with ThreadPoolExecutor(20) as threads:
                list(threads.map(lambda _: engine.emit("ask", {"out": "out"}, timeout=20), range(20)))
        assert engine.call("ask", 7) == 7
        engine.emit("ask", {"out": "other"})
        assert next(engine.outputs("other", timeout=10)).data == 1
        taken = 0
        for _ in range(200):
            for _ in engine.outputs("out", timeout=10):
                taken += 1
                break
        assert taken + sum(1 for _ in engine.outputs("out", timeout=2)) == 800


# ------------------------------------------------------------------ bounds


def test_calls_that_wait_are_bounded() -> None:
    calls = Calls()
    waiting = [calls.open(False, lambda: None) for _ in range(MAX_CALLS)]
    with pytest.raises(Full, match="10,000 calls wait"):
        calls.open(False, lambda: None)
    waiting[0].close()
    calls.open(False, lambda: None)


def reply(call: Call, packed: bytes, name: str = "part") -> Replies:
    """As it comes from the engine."""
    home = PartitionId(1, 1, 0)
    return Replies([seal(one(name, call.request, msgspec.Raw(packed)), 1, home, home, 1, 0, 0)])


def test_parts_that_nobody_reads_are_bounded() -> None:
    calls = Calls()
    slow, quick = calls.open(True, lambda: None), calls.open(True, lambda: None)
    part = b"\xc6" + (1 << 20).to_bytes(4, "big") + bytes(1 << 20)
    for _ in range(100):
        calls.replied(reply(slow, part))
    assert sum(len(packed) for packed, _ in slow.replies) <= MAX_PART_BYTES
    calls.replied(reply(quick, b"\x01", "final"))
    assert quick.take() == Reply(1, True)
    while slow.replies:
        assert slow.take() is not None
    with pytest.raises(Full, match="were not read"):
        slow.take()
    calls.replied(reply(quick, part))
    third = calls.open(True, lambda: None)
    calls.replied(reply(third, part))
    assert third.take() is not None


# ------------------------------------------------------------------ asyncio


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    before = threading.active_count()
    yield request.param
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before, threading.enumerate()


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[AsyncEngine]:
    async with grape.aopen(t, inline=True, **options) as engine:
        yield engine


class TestAsyncio:
    def test_emit_call_and_outputs(self, run: Any) -> None:
        async def main() -> None:
            async with grape.aopen(f"{__file__}:t", workers=1) as engine:
                await engine.emit("ask", {"out": "out"}, key="a", id="one")
                await engine.emit("ask", {"out": "out"}, key="a", id="one")
                assert [e.data async for e in engine.outputs("out", timeout=1)] == [1]
                assert await engine.call("ask", "x") == "x"
                assert await engine.call("ask", {"a": [1]}, type=dict[str, tuple[int]]) == {"a": (1,)}
                assert [r.data async for r in engine.call_stream("ask", {"parts": 2})] == [0, 1, {"parts": 2}]
                assert await asyncio.gather(*(engine.call("ask", n) for n in range(1_000))) == list(range(1_000))
                with pytest.raises(CallFailed, match="as it was asked"):
                    await engine.call("ask", "fail")
                with pytest.raises(NoAnswer, match="was accepted"):
                    await engine.call("ask", "silent", timeout=0.3)
                with pytest.raises(BadArgument):
                    await engine.call("ask", "x", timeout=0)
                with pytest.raises(UnknownEvent):
                    await engine.emit("ak", "x")
                with pytest.raises(UsageError, match="no output"):
                    await anext(engine.outputs("ask"))
                assert (await engine.numbers()).pools

        run(main())

    def test_the_loop_of_the_caller_goes_on(self, run: Any) -> None:
        async def main() -> None:
            longest = 0.0

            async def watch() -> None:
                nonlocal longest
                while True:
                    begin = time.monotonic()
                    await asyncio.sleep(0.005)
                    longest = max(longest, time.monotonic() - begin)

            watching = asyncio.create_task(watch())
            async with opened() as engine:
                for _ in range(20):
                    await engine.call("ask", 1)
                with pytest.raises(NoAnswer):
                    await engine.call("ask", "silent", timeout=1)
            watching.cancel()
            assert longest < 0.9

        run(main())

    def test_a_call_that_is_cancelled_frees_its_place(self, run: Any) -> None:
        async def main() -> None:
            async with opened() as engine:
                calls = [asyncio.create_task(engine.call("ask", "silent", timeout=None)) for _ in range(100)]
                emits = [asyncio.create_task(engine.emit("ask", n)) for n in range(100)]
                await asyncio.sleep(0)
                for task in [*calls[::2], *emits[::2]]:
                    task.cancel()
                await asyncio.wait([*calls[::2], *emits])
                await engine.numbers()  # it has taken all that came before
                for task in calls[1::2]:
                    task.cancel()
                await asyncio.wait(calls)
                assert len(engine._engine.calls) == 0
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(engine.call("ask", "silent"), 0.2)
                assert await engine.call("ask", 5) == 5
                assert len(engine._engine.calls) == 0

        run(main())

    def test_an_exception_in_the_body_closes_it(self, run: Any, tmp_path: Path) -> None:
        async def main() -> None:
            tasks: list[asyncio.Task[Any]] = []

            async def body() -> None:
                async with opened(data=tmp_path / "d") as engine:
                    tasks.append(asyncio.create_task(engine.call("ask", "silent", timeout=None)))
                    tasks.append(asyncio.create_task(anext(engine.outputs("out"))))
                    await asyncio.sleep(0.1)
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await body()
            waiting, reading = tasks
            with pytest.raises(NoAnswer, match="closed"):
                await waiting
            with pytest.raises(StopAsyncIteration):
                await reading
            async with opened(data=tmp_path / "d") as engine:  # nobody holds the directory
                assert await engine.call("ask", 1) == 1
            with pytest.raises(Full):
                await engine.emit("ask", 1)
            with pytest.raises(UsageError, match="once"):
                await engine.__aenter__()

        run(main())

    @pytest.mark.parametrize("after", [0, 0.01, 0.1, 0.3])
    def test_it_is_cancelled_while_it_starts_or_ends(self, run: Any, tmp_path: Path, after: float) -> None:
        async def use() -> None:
            async with grape.aopen(f"{__file__}:t", workers=1, data=tmp_path / "d") as engine:
                await engine.call("ask", "silent", timeout=None)

        async def main() -> None:
            task = asyncio.create_task(use())
            await asyncio.sleep(after)
            task.cancel()
            await asyncio.sleep(after / 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with opened(data=tmp_path / "d") as engine:
                assert await engine.call("ask", 1) == 1

        run(main())

    def test_two_readers_of_an_output_share_it(self, run: Any) -> None:
        async def read(engine: AsyncEngine) -> int:
            return len([e async for e in engine.outputs("out", timeout=1.5)])

        async def main() -> None:
            async with opened() as engine:
                readers = [asyncio.create_task(read(engine)) for _ in range(3)]
                await asyncio.gather(*(engine.emit("ask", {"out": "out"}) for _ in range(300)))
                assert sum(await asyncio.gather(*readers)) == 300

        run(main())

    def test_options_are_checked_at_the_call(self) -> None:
        with pytest.raises(BadArgument, match="did you mean 'workers'"):
            grape.aopen(t, worker=1)  # type: ignore[call-arg]
        with pytest.raises(BadArgument, match="workers="):
            grape.aopen(t, workers=-1)
        with pytest.raises(BadArgument, match="no output 'ou'"):
            grape.aopen(t, outputs=("ou",))
        with pytest.raises(BadArgument, match="topology="):
            grape.aopen(5)  # type: ignore[arg-type]
        try:
            grape.aopen(t, partitions=0)
        except BadArgument as e:
            frames = e.__traceback__
            assert frames is not None
            assert frames.tb_next is not None
            assert frames.tb_next.tb_frame.f_code.co_filename == HIDDEN
            assert frames.tb_next.tb_next is None

    def test_a_start_that_fails(self, run: Any, tmp_path: Path) -> None:
        (tmp_path / "broken.py").write_text("raise ValueError('no app here')\n")

        async def main() -> None:
            with pytest.raises(GrapeError, match="no app here"):
                async with grape.aopen(tmp_path / "broken.py", workers=1):
                    raise AssertionError("it cannot be entered")

        run(main())


def test_a_program_that_leaves_without_closing_ends(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import asyncio, grape\nfrom grape import *\nt = Topology('x')\n"
        "@t.slot('ask')\ndef ask(x: int) -> None: ...\n"
        "async def main():\n"
        "    engine = await grape.aopen(t, inline=True).__aenter__()\n"
        "    asyncio.create_task(engine.call('ask', 1))\n"
        "    await asyncio.sleep(0.2)\n"
        "if __name__ == '__main__':\n    asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, env=dict(os.environ), timeout=30, check=False)
    assert done.returncode == 0
