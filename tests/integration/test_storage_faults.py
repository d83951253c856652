"""Objects when processes die: no row without its bytes, no bytes without a row, nothing seen too early."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import grape as engine
from command import GRAPE
from grape.errors import GrapeError
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import until

APP = """
import time
from pathlib import Path
from grape import Node, State, Topology

HERE = Path(__file__).parent

class Large(Node):
    done: int = State(int, default=0)

    def process(self, event):
        def chunks():
            for i in range(event.data["chunks"]):
                if i == event.data["chunks"] // 2:
                    is_first = not (HERE / "half").exists()
                    (HERE / "half").touch()
                    if is_first and event.data.get("waits"):
                        time.sleep(30)
                yield bytes([i % 256]) * 100_000
        self.done += 1
        self.storage.put(event.key, chunks())
        self.emit("made", [event.key, self.done])

t = Topology("large")
t.add_slot("large", Large(), retries=5, backoff=0.01)
t.add_output("made")
"""


def blobs_in(data: Path) -> set[str]:
    return {path.name for path in (data / "blobs").rglob("*") if path.is_file()}


def rows_and_files(data: Path) -> tuple[set[str], set[str]]:
    """The digests of large objects, and the files that there are."""
    import asyncio

    async def digests() -> set[str]:
        async with opened(f"embedded://{data}") as one:
            found = [about async for about in Objects(one, "large").list()]
        return {about.checksum.removeprefix("sha256:") for about in found if about.size > 65_536}

    return asyncio.run(digests()), blobs_in(data)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path / "app.py"


def test_a_worker_that_is_killed_while_it_brings_a_large_object(app: Path) -> None:
    """F4, F5: the event is handled again, and what had come is gone."""
    data = app.parent / "data"
    with engine.open(str(app), data=str(data), workers=1) as run:
        run.emit("large", {"chunks": 40, "waits": True}, key="k")
        until((app.parent / "half").exists)
        (worker,) = workers_of(os.getpid())
        os.kill(worker, signal.SIGKILL)
        (made,) = take(run, 1)
        assert made == ["k", 1]
    with engine.open(str(app), data=str(data), workers=1):
        until(lambda: rows_and_files(data)[0] == rows_and_files(data)[1])
    rows, files = rows_and_files(data)
    assert len(rows) == 1
    assert rows == files


def test_an_engine_that_is_killed_at_random(app: Path) -> None:
    """F1, F6, F8, F11: at each step of large puts; afterwards every row has its bytes, and no bytes are nobody's."""
    data = app.parent / "data"
    command = [GRAPE, "run", str(app), "--feed", f"large={app.parent}/in.jsonl,key=k", "--data", str(data)]
    (app.parent / "in.jsonl").write_text("".join(f'{{"k": "k{i % 7}", "chunks": {3 + i % 5}}}\n' for i in range(60)))
    for i in range(6):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        killer = threading.Timer(0.5 + 0.13 * i, lambda p=process: os.killpg(p.pid, signal.SIGKILL))  # type: ignore[misc]
        killer.start()
        process.wait()
        killer.cancel()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with engine.open(str(app), data=str(data), workers=1):
        until(lambda: rows_and_files(data)[0] == rows_and_files(data)[1])
    rows, files = rows_and_files(data)
    assert rows == files
    verified = subprocess.run(
        [GRAPE, "storage", "verify", "large/", "--data", str(data)], capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stderr
    assert "7 objects" in verified.stderr
    doctor = subprocess.run([GRAPE, "doctor", "--data", str(data)], capture_output=True, text=True, check=False)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr


def test_a_put_that_is_killed_leaves_what_was(app: Path) -> None:
    """F1: `grape storage put` of much, killed in the middle."""
    data = app.parent / "data"
    with engine.open(str(app), data=str(data), workers=1):
        put = [GRAPE, "storage", "put", "large/x", "--data", str(data)]
        subprocess.run([*put], input=b"before", check=True, stdout=subprocess.DEVNULL)
        process = subprocess.Popen(put, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.write(b"y" * 3_000_000)
        process.stdin.flush()
        until(lambda: bool(blobs_in(data)))
        process.kill()
        process.wait()
        process.stdin.close()
        got = subprocess.run([GRAPE, "storage", "get", "large/x", "--data", str(data)], capture_output=True, check=True)
        assert got.stdout == b"before"
    with engine.open(str(app), data=str(data), workers=1):
        until(lambda: not blobs_in(data))


@pytest.mark.slow
def test_memory_stays_flat(app: Path) -> None:
    """8 GB go through processes that may have 256 MB each."""
    data = app.parent / "data"
    size = 8 << 30
    script = (
        "import sys\n"
        f"left = {size}\nblock = bytes(1 << 20)\n"
        "while left:\n    left -= sys.stdout.buffer.write(block[:min(left, len(block))])\n"
    )

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (256 << 20, 256 << 20))

    with engine.open(str(app), data=str(data), workers=1, max_size=1 << 30):
        source = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        put = [GRAPE, "storage", "put", "large/x", "--data", str(data)]
        subprocess.run(put, stdin=source.stdout, check=True, stdout=subprocess.DEVNULL, preexec_fn=bounded)
        source.wait()
        verify = [GRAPE, "storage", "verify", "large/", "--data", str(data)]
        subprocess.run(verify, check=True, preexec_fn=bounded)


def workers_of(pid: int) -> list[int]:
    """Of the engine that this process has started."""
    import psutil

    found = psutil.Process(pid).children(recursive=True)
    return [each.pid for each in found if "grape.worker" in " ".join(each.cmdline())]


def take(run: engine.Engine, count: int) -> list[list[object]]:
    found: list[list[object]] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        try:
            for event in run.outputs("made", timeout=5):
                found.append(event.data)
                if len(found) == count:
                    break
        except GrapeError:
            continue
    return found
