"""Rates of slots over all workers of an app, on real processes. What is asserted is a limit, never a speed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.command import grape as command

import grape

HEAD = """
import asyncio, os, time
from grape import Topology

t = Topology("rated")

def note(what):
    with open(NOTES, "a") as file:
        file.write(f"{what} {time.clock_gettime(time.CLOCK_MONOTONIC)} {os.getpid()}\\n")
"""
SYNC = """
@t.slot("line", rate="40/s", burst=5)
def slow(line: str) -> None:
    note("slow")

@t.slot("line")
def free(line: str) -> None:
    note("free")
"""
ASYNC = """
@t.slot("line", rate="40/s", burst=5, concurrency=50)
async def slow(line: str) -> None:
    note("slow")
    await asyncio.sleep(0.05)

@t.slot("line")
def free(line: str) -> None:
    note("free")
"""
CHAINED = """
@t.slot("line", emits=("next",))
def first(line: str) -> str:
    note("free")
    return line

@t.slot("next", rate="40/s", burst=5)
def slow(line: str) -> None:
    note("slow")
"""


def run(tmp_path: Path, code: str, *more: object, lines: int = 120) -> list[tuple[str, float, int]]:
    (tmp_path / "app.py").write_text(f"NOTES = {str(tmp_path / 'notes')!r}\n{HEAD}{code}")
    (tmp_path / "lines.txt").write_text("".join(f"{i}\n" for i in range(lines)))
    notes = tmp_path / "notes"
    feed = f"line={tmp_path / 'lines.txt'}"
    done = command("run", tmp_path / "app.py", "--feed", feed, *more)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in notes.read_text().splitlines()]
    return [(what, float(at), int(pid)) for what, at, pid in found]


@pytest.mark.parametrize("code", [SYNC, ASYNC, CHAINED], ids=["sync", "async", "chained"])
def test_no_second_has_more_than_its_rate_over_all_workers(tmp_path: Path, code: str) -> None:
    notes = run(tmp_path, code, "--workers", 2)
    times = sorted(at for what, at, _ in notes if what == "slow")
    assert len(times) == 120
    assert len([what for what, _, _ in notes if what == "free"]) == 120
    for i, at in enumerate(times):
        within = [other for other in times[i:] if other < at + 1.0]
        # A bucket of 5, 40 a second; a worker may write down late what it was given before.
        assert len(within) <= 40 + 5 + 8, (i, len(within))
    assert times[-1] - times[0] >= (120 - 1 - 5) / 40 - 0.5


def test_a_wait_is_no_overrun_of_the_slots_time(tmp_path: Path) -> None:
    code = SYNC.replace('rate="40/s", burst=5', 'rate="60/min", timeout=0.3')
    notes = run(tmp_path, code, lines=4)
    assert len([what for what, _, _ in notes if what == "slow"]) == 4


HOURLY = """
from grape import Topology

t = Topology("hourly")
t.add_output("done")

@t.slot("mail", emits="done", rate="1/h")
def send(number: int) -> int:
    return number
"""


def test_what_is_done_does_not_wait_for_the_next_ones_turn(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(HOURLY)
    with grape.open(tmp_path / "app.py", data=tmp_path / "d", outputs=("done",)) as engine:
        for number in (1, 2, 3):
            engine.emit("mail", number, key="k")
        assert next(engine.outputs("done", timeout=60)).data == 1
