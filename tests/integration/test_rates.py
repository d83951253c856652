"""Rates of slots over all workers of an app, on real processes. What is asserted is a limit, never a speed."""

from __future__ import annotations

import subprocess
import time
from itertools import islice
from pathlib import Path
from typing import Final

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


STOPPED = """
from grape import Node, Topology

class Send(Node):
    ASYNC def process(self, event):
        self.emit("done", event.data)

    def teardown(self):
        with open(NOTES, "a") as file:
            file.write("over\\n")

t = Topology("stopped")
t.add_output("done")
t.add_slot("mail", Send(), rate="1/h")
"""


@pytest.mark.parametrize("kind", ["", "async "], ids=["sync", "async"])
def test_a_run_that_stops_does_not_wait_for_turns(tmp_path: Path, kind: str) -> None:
    """The worker is not killed in the end, but ends in order, with a teardown; what waits is left for the next run."""
    notes = tmp_path / "notes"
    (tmp_path / "app.py").write_text(f"NOTES = {str(notes)!r}\n{STOPPED.replace('ASYNC ', kind)}")
    for run in (1, 2, 3):  # each has one event at once
        with grape.open(tmp_path / "app.py", data=tmp_path / "d", outputs=("done",), workers=1) as engine:
            if run == 1:
                for number in (1, 2, 3):
                    engine.emit("mail", number, key="k")
            assert next(engine.outputs("done", timeout=60)).data == run
        assert notes.read_text() == "over\n" * run


# ------------------------------------------------------------------ other languages

RATE, BURST, EVENTS = 40, 5, 100

POLYGLOT = """
from grape import External, Topology

t = Topology("polyglot")
t.add_output("done")
t.add_pool("p", runtime={runtime!r}, entry={entry!r})
{slot}
"""
NODE: Final = """
const {{ Worker }} = require("grape-worker");
const worker = new Worker();
const at = () => [process.pid, Number(process.hrtime.bigint()) / 1e9];
worker.slot("mail", {{ node: "Mail", rate: "40/s", burst: 5 }}, {async} (event) => event.emit("done", at()));
{more}
worker.run();
"""
SOURCES: Final = {
    "node": ("node", "mail.js", NODE.format(**{"async": "", "more": ""})),
    "node-async": ("node", "mail.js", NODE.format(**{"async": "async", "more": ""})),
    "node-beside-async": (
        "node",
        "mail.js",
        NODE.format(**{"async": "", "more": 'worker.slot("else", { node: "Else" }, async () => {});'}),
    ),
    "cpp": (
        "exec",
        "mail",
        """
#include <grape/worker.hpp>
#include <unistd.h>
int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("mail", grape::Slot("Mail").rate("40/s").burst(5), [](grape::Event& event) {
    const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
    event.emit("done", grape::list({static_cast<std::int64_t>(::getpid()), now.count()}));
  });
  return worker.run();
}
""",
    ),
    "perl": (
        "perl",
        "mail.pl",
        """
use strict; use warnings; use Grape::Worker; use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);
my $worker = Grape::Worker->new;
$worker->slot(mail => { node => 'Mail', rate => '40/s', burst => 5 }, sub {
    my ($event) = @_;
    $event->emit(done => [getppid(), clock_gettime(CLOCK_MONOTONIC)]);
});
exit $worker->run;
""",
    ),
    "lines": (
        "lines",
        "mail.py",
        """#!/usr/bin/env python3
import json, os, sys, time
for line in sys.stdin:
    print(json.dumps({"emit": "done", "data": [os.getppid(), time.monotonic()]}), flush=True)
""",
    ),
}


@pytest.mark.parametrize("language", SOURCES)
@pytest.mark.slow
def test_a_rate_is_kept_over_two_workers_of_every_language(
    tmp_path: Path, language: str, sdk_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, entry, source = SOURCES[language]
    slot = 't.add_slot("mail", External("Mail"), pool="p", rate="40/s", burst=5)' if runtime == "lines" else ""
    (tmp_path / "app.py").write_text(POLYGLOT.format(runtime=runtime, entry=entry, slot=slot))
    path = tmp_path / ("mail.cpp" if runtime == "exec" else entry)
    path.write_text(source)
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    if runtime == "exec":
        include = Path(__file__).parents[2] / "sdks" / "cpp" / "include"
        subprocess.run(["c++", "-std=c++17", f"-I{include}", path, "-o", entry, "-pthread"], check=True)
    with grape.open("app.py:t", env=sdk_env, data=tmp_path / "data", workers=2) as engine:
        while engine.numbers().pools["p"].workers_idle < 2:
            time.sleep(0.01)
        start = time.monotonic()
        for number in range(EVENTS):
            engine.emit("mail", number, key=f"k{number}")
        found = [event.data for event in islice(engine.outputs("done", timeout=60), EVENTS)]
    assert len({pid for pid, _ in found}) == 2
    times = sorted(at for _, at in found)
    for before, at in enumerate(times):
        # When the first one came there were BURST turns at most. (A clock of milliseconds, a time written as text.)
        assert at >= start + (before + 1 - BURST) / RATE - 0.002, (before, at - start)
