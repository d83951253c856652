"""Pools that manage themselves, with real worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from tests.command import grape as grape_cli

import grape
from grape.errors import Full
from grape.model.numbers import AppNumbers, PoolNumbers
from grape.running import RunningEngine


def app_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "app.py").write_text(text)
    return f"{tmp_path / 'app.py'}:t"


def until(engine: RunningEngine, holds: Callable[[PoolNumbers], bool], seconds: float = 30.0) -> PoolNumbers:
    """The numbers of pool "main", as soon as they are so."""
    deadline = time.monotonic() + seconds
    while True:
        numbers = engine.numbers().pools["main"]
        if holds(numbers):
            return numbers
        assert time.monotonic() < deadline, numbers
        time.sleep(0.02)


def collect(engine: RunningEngine, event: str, count: int) -> list[Any]:
    found = []
    for taken in engine.outputs(event, timeout=30.0):
        found.append(taken.data)
        if len(found) == count:
            break
    assert len(found) == count
    return found


PIDS = """
import os, time
from grape import Context, Node, State, Topology
t = Topology("pids")
t.add_output("out")

class Work(Node):
    seen = State(int, default=0)
    def process(self, event):
        time.sleep(event.data or 0)
        self.seen += 1
        self.emit("out", [os.getpid(), event.key, self.seen])

t.add_slot("job", Work())
t.add_slot("later", Work(), name="Later")
"""


def test_a_pool_grows_while_events_wait_and_shrinks_to_nothing_when_it_is_idle(tmp_path: Path) -> None:
    profile = {"main": {"pool-min": 0, "pool-limit": 4, "grow-threshold": "200 ms", "idle-timeout": "500 ms"}}
    with grape.open(app_file(tmp_path, PIDS), profile=profile) as engine:
        for i in range(80):
            engine.emit("job", 0.05, key=f"k{i}")
        pids = {pid for pid, _, _ in collect(engine, "out", 80)}
        numbers = until(engine, lambda n: n.state == "empty" and not n.workers_leaving)
        assert 2 <= len(pids) <= 4
        assert numbers.workers_spawned >= len(pids)
        assert numbers.workers_crashed == 0
        assert numbers.finished == 80
        assert not [p for p in psutil.Process().children(recursive=True) if p.pid in pids]
        engine.emit("job", 0, key="k1")  # the state is still there
        ((pid, key, seen),) = collect(engine, "out", 1)
        assert (key, seen) == ("k1", 2)
        assert pid not in pids


TIMER = """
from grape import Node, Topology
t = Topology("timer")
t.add_output("out")

class Wait(Node):
    def process(self, event):
        self.emit("due", delay=1.2)

class Out(Node):
    def process(self, event):
        self.emit("out", "late")

class Retry(Node):
    def process(self, event):
        if event.attempt == 1:
            raise ValueError("not yet")
        self.emit("out", "again")

t.add_slot("in", Wait())
t.add_slot("due", Out())
t.add_slot("fragile", Retry(), backoff=3.0, backoff_max=3.0)
"""


def test_what_becomes_due_starts_a_worker_in_an_empty_pool(tmp_path: Path) -> None:
    profile = {"main": {"pool-min": 0, "idle-timeout": "100 ms"}}
    with grape.open(app_file(tmp_path, TIMER), profile=profile) as engine:
        engine.emit("in")
        until(engine, lambda n: n.state == "empty" and n.finished == 1)
        assert collect(engine, "out", 1) == ["late"]
        engine.emit("fragile")
        assert collect(engine, "out", 1) == ["again"]


def test_workers_are_replaced_after_max_events_and_nothing_is_lost(tmp_path: Path) -> None:
    profile = {"main": {"pool-limit": 2, "max-events": 50}}
    with grape.open(app_file(tmp_path, PIDS), profile=profile) as engine:
        for i in range(400):
            engine.emit("job", 0, key=f"k{i % 7}")
        found = collect(engine, "out", 400)
        numbers = engine.numbers()
    assert len({pid for pid, _, _ in found}) >= 3
    assert max(seen for _, key, seen in found if key == "k0") == 58
    assert numbers.pools["main"].workers_crashed == 0
    assert numbers.worker_deaths == 0
    assert numbers.stale_frames == 0


CRASHING = """
import os, sys, threading, time
from pathlib import Path
from grape import Node, Topology
here = Path(__file__).parent
t = Topology("crashing")
t.add_output("out")

class Out(Node):
    def setup(self):
        with open(here / "starts", "a") as starts:
            starts.write(f"{time.time()}\\n")
        if (here / "broken").exists():
            for i in range(100):
                print("line", i)
            print("\\x1b[31mred", file=sys.stderr)
            sys.stderr.flush()
            os.abort()
    def process(self, event):
        self.emit("out", event.data)

t.add_slot("in", Out())
"""


def test_a_crash_loop_backs_off_is_degraded_and_recovers_by_itself(tmp_path: Path) -> None:
    """F59, F69 of the original: 0, 1, 2 s.. between the starts."""
    target = app_file(tmp_path, CRASHING)
    profile = {"main": {"pool-limit": 1, "crashlog-limit": 20}}
    data = tmp_path / "data"
    with grape.open(target, profile=profile, data=data) as engine:
        engine.emit("in", 1)
        assert collect(engine, "out", 1) == [1]
        (tmp_path / "broken").touch()
        victims = [p for p in psutil.Process().children(recursive=True) if "grape.worker" in " ".join(p.cmdline())]
        for process in victims:
            process.kill()
        numbers = until(engine, lambda n: n.workers_crashed >= 4)
        assert numbers.state == "degraded"
        assert "SIGABRT" in numbers.reason
        (tmp_path / "broken").unlink()
        engine.emit("in", 2)
        assert collect(engine, "out", 1) == [2]
        assert engine.numbers().pools["main"].state in ("running", "idle")
    starts = [float(line) for line in (tmp_path / "starts").read_text().split()]
    gaps = [after - before for before, after in pairwise(starts[1:])]
    for gap, least in zip(gaps, (1.0, 2.0), strict=False):
        assert gap >= least
    listed = grape_cli("crashes", "list", "--data", data)
    crashes = [json.loads(line) for line in listed.stdout.splitlines()]
    assert "SIGKILL" in crashes[0]["why"]
    assert [c["worker"] for c in crashes] == ["main.0"] * len(crashes)
    number = str(crashes[1]["number"])
    shown = grape_cli("crashes", "show", number, "--data", data)
    crash = json.loads(shown.stdout)
    assert "SIGABRT" in crash["why"]
    texts = [line["text"] for line in crash["lines"]]
    assert len(texts) == 20, "only the last ones are kept"
    assert "line 99" in texts
    assert {"level": "stderr", "slot": "", "text": "\x1b[31mred"} in crash["lines"]
    missing = grape_cli("crashes", "show", "99999", "--data", data)
    assert missing.returncode == 2
    assert "grape crashes list" in missing.stderr


LONG = """
import os, time
from grape import Event, Topology
t = Topology("long")
t.add_output("out")

@t.slot("film", emits="out", long=True)
def transcode(seconds: float, event: Event) -> list:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return [os.getpid(), event.attempt]

@t.slot("quick", emits="out")
def quick(value: int) -> int:
    return value

@t.slot("progress", emits="out", timeout=0.5, retries=0)
def moving(value: int, event: Event) -> int:
    for _ in range(4):
        time.sleep(0.3)
        event.progress()
    return value

@t.slot("stuck", timeout=0.3, retries=0)
def stuck(value: int) -> None:
    while True:
        pass
"""


def test_a_long_handler_is_never_run_twice_and_holds_nobody_up(tmp_path: Path) -> None:
    """It outlives heartbeat-timeout by far: what counts is that its watchdog speaks."""
    profile = {
        "main": {"pool-limit": 1},
        "transcode": {"pool-limit": 2, "heartbeat-timeout": "600 ms", "grow-threshold": 0},
    }
    with grape.open(app_file(tmp_path, LONG), profile=profile) as engine:
        engine.emit("film", 3.0)
        engine.emit("film", 3.0)
        engine.emit("quick", 7)
        started = time.monotonic()
        assert collect(engine, "out", 1) == [7]
        assert time.monotonic() - started < 2.5
        films = collect(engine, "out", 2)
        assert [attempt for _, attempt in films] == [1, 1]
        assert len({pid for pid, _ in films}) == 2, "each has a worker of its own"
        assert engine.numbers().worker_deaths == 0


def test_progress_resets_the_timeout_and_what_spins_past_it_is_ended_with_its_stack(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with grape.open(app_file(tmp_path, LONG), data=data, workers=1) as engine:
        engine.emit("progress", 5)
        assert collect(engine, "out", 1) == [5]
        engine.emit("stuck", 1)
        deadline = time.monotonic() + 20
        while engine.numbers().dead < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        numbers = engine.numbers()
        assert numbers.pools["main"].workers_crashed == 0, "a named death is no crash of the pool"
    dead = grape_cli("dead", "list", "--data", data).stdout
    number = json.loads(dead)["id"]
    dead = grape_cli("dead", "show", number, "--data", data).stdout
    assert "timeout" in dead
    assert "in stuck" in dead


STUBBORN = """
import os, signal, subprocess, sys, time
from grape import Node, Topology
t = Topology("stubborn")
t.add_output("out")

class Start(Node):
    def process(self, event):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import os, signal, time\\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nos.setsid()\\ntime.sleep(600)"])
        self.emit("out", [os.getpid(), child.pid])

class Hang(Node):
    def process(self, event):
        if event.data:
            time.sleep(600)

t.add_slot("in", Start())
t.add_slot("hang", Hang(), timeout=0)
"""


def test_at_the_end_nobody_is_left_not_even_who_ignores_sigterm(tmp_path: Path) -> None:
    """F49, F52: a worker that ignores SIGTERM and hangs, and a daemon with a session of its own."""
    with grape.open(app_file(tmp_path, STUBBORN), workers=1) as engine:
        engine.emit("in")
        ((worker, daemon),) = collect(engine, "out", 1)
        engine.emit("hang", True)
        assert psutil.pid_exists(daemon)
        until(engine, lambda n: n.workers_active == 1)
    for pid in (worker, daemon):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not psutil.pid_exists(worker)


LOUD = """
import logging, sys
from grape import Topology
t = Topology("loud")

@t.slot("in")
def loud(count: int) -> None:
    for i in range(count):
        print("x" * 999)
    print("tab\\tand \\x1b]0;title\\x07 bell")
    logging.getLogger("mine").warning("a warning %d", 7)
    logging.getLogger("mine").debug("not shown")
"""


def test_what_handlers_print_has_slot_worker_and_level_and_is_cut_over_a_megabyte_a_second(tmp_path: Path) -> None:
    app_file(tmp_path, LOUD)
    (tmp_path / "in.jsonl").write_text("3\n")
    command = ("run", "app.py", "--feed", "in=in.jsonl", "--workers", "1")
    done = grape_cli(*command, cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert lines.count("[loud main.0] " + "x" * 999) == 3
    assert "[loud main.0] tab\tand \\u001b]0;title\\u0007 bell" in lines
    assert "[loud main.0] WARNING a warning 7" in lines
    assert "not shown" not in done.stderr
    (tmp_path / "in.jsonl").write_text("5000\n")
    done = grape_cli(*command, cwd=tmp_path)
    shown = done.stderr.count("x" * 999)
    assert 900 <= shown <= 4_000
    cut = sum(int(line.split("(")[1].split()[0].replace(",", "")) for line in done.stderr.splitlines() if "cut" in line)
    assert shown + cut >= 5_000


DEADLINE = """
import time
from grape import Event, Node, Topology
t = Topology("deadline")
t.add_output("out")

class First(Node):
    def process(self, event):
        time.sleep(event.data)
        self.emit("second", event.data)

class Second(Node):
    def process(self, event):
        self.emit("out", event.data)

t.add_slot("first", First(), emits="second")
t.add_slot("second", Second())

@t.slot("async", emits="out")
async def waits(value: int) -> int:
    return value
"""


@pytest.mark.parametrize("slot", ["second", "async"])
def test_no_handler_starts_with_an_event_after_its_deadline(tmp_path: Path, slot: str) -> None:
    """Also with what was emitted for it."""
    data = tmp_path / "data"
    with grape.open(app_file(tmp_path, DEADLINE), data=data, workers=1) as engine:
        engine.emit(slot, 1, deadline=30.0)
        assert collect(engine, "out", 1) == [1]
        engine.emit("first", 0.3, deadline=0.1)
        engine.emit(slot, 2, deadline=0.0)
        engine.emit(slot, 3)
        assert collect(engine, "out", 1) == [3]
        deadline = time.monotonic() + 20
        while engine.numbers().dead < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    dead = grape_cli("dead", "list", "--data", data).stdout
    assert dead.count("deadline had passed") == 2


def test_the_numbers_of_a_pool_are_what_happened(tmp_path: Path) -> None:
    """J87-J89 of the original, with values under a known load."""
    profile = {"main": {"pool-limit": 2, "queue-limit": 500, "queue-bytes": "1 MiB"}}
    with grape.open(app_file(tmp_path, PIDS), profile=profile) as engine:
        until(engine, lambda n: n.state == "idle" and n.workers_idle == 2)
        for i in range(20):
            engine.emit("job", 0.02, key=f"k{i}")
        collect(engine, "out", 20)
        numbers: AppNumbers = engine.numbers()
        pool = until(engine, lambda n: n.workers_active == 0)
    assert numbers.fed == {"job": 20}
    assert numbers.processed == {"job>Work": 20}
    assert numbers.emitted == {"out": 20}
    assert pool.finished == 20
    assert (pool.queue_events, pool.queue_bytes, pool.held) == (0, 0, 0)
    assert (pool.queue_limit, pool.queue_limit_bytes) == (500, 1 << 20)
    assert (pool.workers_limit, pool.workers_spawned, pool.workers_crashed) == (2, 2, 0)
    assert 0.015 < pool.latency["0.5"] < 5.0
    assert pool.latency["0.5"] <= pool.latency["0.99"]
    assert pool.rate["1"] > 0


def test_intake_into_a_pool_stops_at_its_own_limit(tmp_path: Path) -> None:
    text = PIDS.replace('t.add_slot("later", Work(), name="Later")', 't.add_slot("vip", Work(), name="V", pool="vip")')
    profile = {"main": {"pool-limit": 1, "queue-limit": 5}, "vip": {"pool-limit": 1, "queue-limit": 50}}
    with grape.open(app_file(tmp_path, text), profile=profile) as engine:

        def flood() -> None:
            for i in range(50):
                engine.emit("job", 0.2, key=f"k{i}")

        with pytest.raises(Full, match=r"pool 'main' takes none over 5"):
            flood()
        engine.emit("vip", 0, key="k")  # another pool still takes some


def run_cli(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "in.jsonl").write_text("1\n")
    return grape_cli("run", "app.py", "--feed", "in=in.jsonl", *arguments, cwd=tmp_path)


def test_mistakes_in_a_profile_are_one_clear_line(tmp_path: Path) -> None:
    app_file(tmp_path, LOUD)
    for text, words in (
        ("[pool.mian]\npool-limit = 2\n", ["[pool.mian]", "did you mean 'main'"]),
        ("[pool.main]\nidel-timeout = 2\n", ["idel-timeout", "did you mean 'idle-timeout'"]),
        ('[pool.main.isolate]\ntype = "sandbx"\n', ["'sandbx'", "did you mean 'sandbox'"]),
        ('[pool.main.isolate]\ntype = "process"\nmemry = 3\n', ["memry", "did you mean 'memory'"]),
        ('[pool.main.isolate]\ntype = "process"\nmemory = "lots"\n', ["memory", "'lots' is no size"]),
    ):
        (tmp_path / "p.toml").write_text(text)
        done = run_cli(tmp_path, "--profile", "p.toml")
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for word in words:
            assert word in done.stderr


def test_a_worker_that_never_gets_ready_is_told_by_its_timeout(tmp_path: Path) -> None:
    """F60: an import that takes long."""
    app_file(tmp_path, "import time\ntime.sleep(60)\n" + LOUD)
    (tmp_path / "p.toml").write_text('[pool.main]\nstartup-timeout = "500 ms"\n')
    done = run_cli(tmp_path, "--profile", "p.toml")
    assert done.returncode == 2
    assert "did not load within 0.5 s (startup-timeout)" in done.stderr


def test_a_limit_of_the_isolate_is_named_in_the_failure(tmp_path: Path) -> None:
    """F48: CPU time."""
    app_file(tmp_path, LOUD.replace('    print("tab', '    while True: pass\n    print("tab'))
    (tmp_path / "p.toml").write_text('[pool.main.isolate]\ntype = "process"\ncpu = "1 s"\n')
    done = run_cli(tmp_path, "--profile", "p.toml", "--data", "data", "--workers", "1")
    assert done.returncode == 1, done.stderr
    assert "out of CPU time: it reached its limit of 1 s (isolate.cpu)" in done.stderr
    assert os.path.isdir(tmp_path / "data" / "crashes")


INLINE = """
import os
from grape import Topology
t = Topology("mixed")
t.add_output("out")

@t.slot("here", emits="out", pool="here")
def here(value: int) -> list:
    return ["here", os.getpid()]

@t.slot("there", emits="out")
def there(value: int) -> list:
    return ["there", os.getpid()]
"""


def test_a_pool_may_run_in_the_engines_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "path", sys.path[:]
    )  # the app's directory comes into it, and workers see what stands there
    profile = {"here": {"isolate": {"type": "inline"}}, "main": {"pool-limit": 1}}
    (tmp_path / "mixed_app.py").write_text(INLINE)  # it is imported here, so its name must be nobody else's
    with grape.open(f"{tmp_path / 'mixed_app.py'}:t", profile=profile) as engine:
        engine.emit("here", 1)
        engine.emit("there", 1)
        pids = dict(collect(engine, "out", 2))
    assert pids["here"] == os.getpid()
    assert pids["there"] != os.getpid()


def run_app(tmp_path: Path, text: str, lines: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    app_file(tmp_path, text)
    (tmp_path / "in.txt").write_text("".join(f"{i}\n" for i in range(1, lines + 1)))
    return grape_cli("run", "app.py", "--feed", "in=in.txt", *arguments, cwd=tmp_path)


ASYNC: Final = """
import asyncio, time
from grape import Topology
t = Topology("async")
t.add_output("out")

@t.slot("in", emits="out", timeout=0.5, retries=0)
async def waits(line: str) -> str:
    if line == "2":
        HANG
    return line
"""


@pytest.mark.parametrize(
    "hang",
    [
        "while True: time.sleep(0.1)",
        "while True:\n            try: await asyncio.sleep(99)\n            except asyncio.CancelledError: pass",
    ],
    ids=["spins", "swallows"],
)
def test_an_async_handler_that_cannot_be_cancelled_is_ended_with_its_worker(tmp_path: Path, hang: str) -> None:
    """F48: one that keeps the loop, and one that swallows the cancellation."""
    done = run_app(
        tmp_path, ASYNC.replace("HANG", hang), 3, "--workers", "1", "--data", "data", "--take", "out=o.jsonl"
    )
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "o.jsonl").read_text().count('"event":"out"') == 2
    (dead,) = map(json.loads, grape_cli("dead", "list", "--data", tmp_path / "data").stdout.splitlines())
    assert dead["kind"] == "timeout"


ORPHAN: Final = """
import os, subprocess
from grape import Topology
t = Topology("orphan")

@t.slot("in", retries=0)
def work(line: str) -> None:
    if line == "2":
        subprocess.Popen(["yes"])
        os._exit(1)
"""


def test_what_a_dead_worker_left_running_cannot_hold_the_engine_by_printing(tmp_path: Path) -> None:
    done = run_app(tmp_path, ORPHAN, 3, "--workers", "1")
    assert done.returncode == 1, done.stderr[-2000:]
    assert len(done.stderr) < 8_000_000


SETUP: Final = """
import time
from grape import Node, Topology
t = Topology("setup")

class Loads(Node):
    def setup(self):
        DOES
    def teardown(self):
        time.sleep(1.0)
        print("torn down")
    def process(self, event):
        pass

t.add_slot("in", Loads())
"""


def test_a_setup_that_fails_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    done = run_app(tmp_path, SETUP.replace("DOES", "raise OSError('no database')"), 1, "--workers", "1")
    assert done.returncode == 2
    assert "failed at its start 3 times in a row" in done.stderr
    assert done.stderr.rstrip().endswith("OSError: no database")
    assert "worker main.0: OSError: no database" in done.stderr
    assert "grape/worker" not in done.stderr


def test_a_long_setup_is_alive_and_a_teardown_has_its_time(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[pool.main]\nheartbeat-timeout = "600 ms"\ntermination-timeout = "5 s"\n')
    text = SETUP.replace("DOES", "time.sleep(1.5)")
    done = run_app(tmp_path, text, 1, "--workers", "1", "--profile", "p.toml")
    assert done.returncode == 0
    assert "replaced" not in done.stderr
    assert "torn down" in done.stderr


ONE: Final = """
import fcntl, time
from pathlib import Path
from grape import Node, Topology
t = Topology("one")

class Exclusive(Node):
    def setup(self):
        self.lock = open(Path(__file__).parent / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    def process(self, event):
        time.sleep(0.1)

t.add_slot("in", Exclusive())
"""


def test_a_worker_that_never_works_backs_off_also_beside_one_that_does(tmp_path: Path) -> None:
    done = run_app(tmp_path, ONE, 40, "--workers", "2", "--partitions", "4")
    assert done.returncode == 0, done.stderr
    assert 1 <= done.stderr.count("worker main.1: BlockingIOError") <= 6


HANGS: Final = """
import os, sys, time
from pathlib import Path
from grape import Topology
t = Topology("hangs")
t.add_output("out")
here = Path(__file__).parent
if "--target" in sys.argv:
    count = len(list(here.glob("loaded-*")))
    (here / f"loaded-{os.getpid()}").touch()
    if count:  # all but the first one, which is of pool "main"
        time.sleep(1000)

@t.slot("in", pool="bad")
def bad(line: str) -> None: ...

@t.slot("in", emits=["out"])
def good(line: str) -> str:
    return line
"""


def test_workers_that_do_not_come_do_not_keep_those_of_other_pools(tmp_path: Path) -> None:
    """Twenty of pool "bad" are on their way for ever; those of "main" come nevertheless."""
    profile = {"bad": {"pool-min": 20, "pool-limit": 20}, "main": {"pool-min": 1, "pool-limit": 1}}
    with grape.open(app_file(tmp_path, HANGS), profile=profile, partitions=20) as engine:
        engine.emit("in", "hello", key="k")
        assert collect(engine, "out", 1) == ["hello"]
        assert engine.numbers().pools["bad"].workers_starting


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start workers as another user")
def test_a_worker_that_could_never_be_started_says_so_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "profile.toml").write_text('[pool.main.isolate]\ntype = "process"\nuid = 65534\n')
    done = run_app(tmp_path, ONE, 1, "--profile", str(tmp_path / "profile.toml"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("may not read") == 1
    assert "is replaced" not in done.stderr


INTERRUPTED: Final = """
import signal, time
import grape
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have ignored it
t = grape.Topology("slow")

@t.slot("in")
def work(line: str) -> None:
    if line == "0":
        print("runs", flush=True)
    time.sleep(0.05)

if __name__ == "__main__":
    try:
        grape.run(t, feed={"in": "lines.txt"}, data="data")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_ctrl_c_in_a_program_that_runs_an_app_is_a_keyboard_interrupt_after_a_clean_end(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(INTERRUPTED)
    (tmp_path / "lines.txt").write_text("".join(f"{n}\n" for n in range(100_000)))
    argv = [sys.executable, str(tmp_path / "app.py")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as program:
        assert program.stdout is not None
        assert "runs" in program.stdout.readline()
        workers = psutil.Process(program.pid).children(recursive=True)
        assert workers
        program.send_signal(signal.SIGINT)
        try:
            out, err = program.communicate(timeout=30)
        finally:
            program.kill()
    assert program.returncode == 0, err
    assert out.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not [worker for worker in workers if worker.is_running()]


LONG_RETRIES: Final = """
import os, time
from pathlib import Path
from grape import Event, Topology
here = Path(__file__).parent
t = Topology("retries")

@t.slot("in", long=True, retries=2, backoff=0.01)
def work(line: str, event: Event) -> None:
    if event.attempt == 1:
        raise ValueError("not yet")
    with open(here / "log", "a") as log:
        log.write(f"{line}\\n")
    time.sleep(0.3)
    if line == "3" and not (here / "died").exists():
        (here / "died").touch()
        os._exit(1)
"""


def test_long_handlers_that_are_tried_again_are_handed_in_one_by_one(tmp_path: Path) -> None:
    """The death of a later one does not run the earlier ones once more."""
    done = run_app(tmp_path, LONG_RETRIES, 3, "--workers", "1", "--partitions", "1")
    assert done.returncode == 0, done.stderr
    runs = (tmp_path / "log").read_text().split()
    assert runs.count("1") == runs.count("2") == 1
    assert runs.count("3") == 2


def test_what_a_worker_pretends_to_be_does_not_act_on_the_terminal(tmp_path: Path) -> None:
    """Level and slot come from the worker too."""
    text = "import os\nfrom grape import Topology\nt = Topology('esc')\n@t.slot('in')\ndef f(line: str) -> None:\n"
    text += "    os.write(1, b'\\x1e\\x1b[31mlevel\\x1e\\x1b]0;title\\x07\\x1etext\\n')\n"
    done = run_app(tmp_path, text, 1, "--workers", "1")
    assert done.returncode == 0
    assert "text" in done.stderr
    assert "\x1b" not in done.stderr


FLOOD: Final = """
import subprocess
from grape import Topology
t = Topology("flood")
t.add_output("out")

@t.slot("in", emits="out")
def quick(value: int) -> int:
    return value

@t.slot("noise", pool="noise", timeout=30)
def noise(value: int) -> None:
    subprocess.run(["timeout", "4", "yes"])
"""


def test_a_worker_that_prints_without_end_keeps_no_other_pool_waiting(tmp_path: Path) -> None:
    """Not a figure (that is the benchmark), but far from standing still."""
    with grape.open(app_file(tmp_path, FLOOD), workers=1) as engine:
        engine.emit("noise", 1)
        begun = time.monotonic()
        for i in range(100):
            engine.emit("in", i)
        assert sorted(collect(engine, "out", 100)) == list(range(100))
        assert time.monotonic() - begun < 20


SLOW_SETUP = """
import os, time
from grape import Node, Topology
t = Topology("slow")
t.add_output("out")

class Work(Node):
    def setup(self):
        try:
            os.mkdir(os.path.join(os.path.dirname(__file__), "first"))
        except FileExistsError:
            while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
                time.sleep(0.01)
    def process(self, event):
        self.emit("out", os.getpid())

t.add_slot("job", Work())
"""


def test_a_worker_that_sets_itself_up_keeps_no_events_from_the_others(tmp_path: Path) -> None:
    profile = {"main": {"pool-min": 2, "pool-limit": 2}}
    with grape.open(app_file(tmp_path, SLOW_SETUP), profile=profile) as engine:
        until(engine, lambda n: n.workers_idle == 1 and n.workers_starting == 1)
        for i in range(40):
            engine.emit("job", i, key=f"k{i}")
        assert len(set(collect(engine, "out", 40))) == 1
        assert engine.numbers().pools["main"].workers_starting == 1
        (tmp_path / "go").touch()
        until(engine, lambda n: n.workers_starting == 0)


def test_a_setup_that_hangs_is_a_failed_start(tmp_path: Path) -> None:
    app = app_file(tmp_path, SLOW_SETUP)
    (tmp_path / "first").mkdir()
    (tmp_path / "in.txt").write_text("x\n")
    (tmp_path / "p.toml").write_text('[pool.main]\nstartup-timeout = "700 ms"\n')
    done = grape_cli("run", app, "--feed", f"job={tmp_path / 'in.txt'}", "--profile", tmp_path / "p.toml")
    assert done.returncode == 2, done.stderr
    assert "it was not ready within 0.7 s (startup-timeout)" in done.stderr
    assert "3 times in a row" in done.stderr
