"""F60, F61: many workers at once, and very many one after the other."""

from __future__ import annotations

import os
import statistics
import threading
import time
from typing import Final

import psutil
import pytest

from grape.testing.contracts.isolate import processes
from tests.escape.table import LEVELS
from tests.escape.test_escape import refusal
from tests.escape.world import Level, World

SOAK: Final = float(os.environ.get("GRAPE_SOAK_SECONDS", "1800"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_a_hundred_workers_start_and_end_together(name: str) -> None:
    """F60: one after the other is started, all live at once, all end, nothing is left."""
    if refusal(name):
        pytest.skip(refusal(name))
    world = World()
    level = Level(name, "", world)
    try:
        before = psutil.Process().num_fds()
        begun = time.monotonic()
        workers = [level.start(*level.script('say("ready")\nwait()')) for _ in range(100)]
        assert [worker.line() for worker in workers] == ['"ready"'] * 100
        assert time.monotonic() - begun < 60
        for worker in workers:
            worker.process.terminate()
        assert {worker.reap().code for worker in workers} == {-15}
        assert not any(processes(worker.marker) for worker in workers)
        assert psutil.Process().num_fds() <= before + 4  # what the isolate itself holds
    finally:
        level.close()
        world.close()


@pytest.mark.slow
@pytest.mark.timeout(SOAK + 300)
def test_nothing_grows_with_the_number_of_workers() -> None:
    """F61: over half an hour (GRAPE_SOAK_SECONDS) the slope of memory, descriptors and threads is about 0."""
    me = psutil.Process()
    world = World()
    levels = [Level(name, "", world) for name in LEVELS if not refusal(name)]
    times: list[float] = []
    memory: list[float] = []
    fds: list[int] = []
    threads: list[int] = []
    started = 0
    deadline = time.monotonic() + SOAK
    try:
        while time.monotonic() < deadline:
            for level in levels:
                for ending in ("say(1)", "say(1)\nwait()"):
                    worker = level.start(*level.script(ending))
                    worker.line()
                    worker.process.kill()
                    worker.reap()
                    level.forget()
                    started += 1
            times.append(time.monotonic())
            memory.append(me.memory_info().rss / 1e6)
            fds.append(me.num_fds())
            threads.append(threading.active_count())
    finally:
        for level in levels:
            level.close()
        world.close()
    rest = slice(len(times) // 10, None)  # the first tenth warms up
    slope = statistics.linear_regression(times[rest], memory[rest]).slope
    print(f"{started} workers; {slope * 3600:.3f} MB/h, {memory[0]:.1f} -> {memory[-1]:.1f} MB, {fds[-1]} descriptors")
    assert slope * SOAK < 1, f"{slope * SOAK:.2f} MB in {SOAK:g} s, after {started} workers"
    assert max(fds[rest]) == min(fds[rest])
    assert max(threads[rest]) <= 2
