"""Storm's way to run code of other languages, as a small reference: what we leave behind.

Its multilang protocol (storm.apache.org/releases/2.6.0/Multilang-protocol.html): a message is JSON on standard input
and output, with a line "end" behind it; every tuple is acknowledged by a message of its own, and a child writes a pid
file and answers heartbeats. Here each of two children keeps a count by key; nothing is durable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Final
from zlib import crc32

CHILDREN: Final = 2
PENDING: Final = 1_000
"""Tuples that may be unacknowledged: max.spout.pending."""
_BEAT_SECONDS: Final = 3.0


def send(pipe: IO[str], message: object) -> None:
    pipe.write(json.dumps(message) + "\nend\n")


def receive(pipe: IO[str]) -> object:
    lines: list[str] = []
    while (line := pipe.readline()) and line != "end\n":
        lines.append(line)
    if not line:
        raise EOFError
    return json.loads("".join(lines))


def child() -> None:
    """A bolt."""
    setup = receive(sys.stdin)
    assert isinstance(setup, dict)
    with open(os.path.join(setup["pidDir"], str(os.getpid())), "w"):
        pass
    send(sys.stdout, {"pid": os.getpid()})
    sys.stdout.flush()
    counts: dict[str, int] = {}
    while True:
        try:
            message = receive(sys.stdin)
        except EOFError:
            return
        assert isinstance(message, dict)
        if message["stream"] == "__heartbeat":
            send(sys.stdout, {"command": "sync"})
        else:
            word = message["tuple"][0]
            counts[word] = counts.get(word, 0) + 1
            send(sys.stdout, {"command": "emit", "anchors": [message["id"]], "tuple": [word, counts[word]]})
            send(sys.stdout, {"command": "ack", "id": message["id"]})
        sys.stdout.flush()


class Bolt:
    """A child, with a thread that reads what it says."""

    def __init__(self, pids: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.storm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self._output = self.process.stdin, self.process.stdout
        send(self.input, {"conf": {}, "context": {}, "pidDir": pids})
        self.input.flush()
        receive(self._output)
        self.free = threading.Semaphore(PENDING)
        self.acknowledged = 0
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        try:
            while True:
                message = receive(self._output)
                assert isinstance(message, dict)
                if message["command"] == "ack":
                    self.acknowledged += 1
                    self.free.release()
        except EOFError:
            return


def keyed(size: int, keys: int) -> float:
    """Seconds for ``size`` events."""
    with tempfile.TemporaryDirectory() as pids:
        bolts = [Bolt(pids) for _ in range(CHILDREN)]
        begun = beat = time.perf_counter()
        for i in range(size):
            word = f"key-{i * 7919 % keys}"
            bolt = bolts[crc32(word.encode()) % CHILDREN]
            if not bolt.free.acquire(blocking=False):
                bolt.input.flush()
                bolt.free.acquire()
            send(bolt.input, {"id": str(i), "comp": "1", "stream": "default", "task": 1, "tuple": [word]})
            if time.perf_counter() - beat > _BEAT_SECONDS:
                beat = time.perf_counter()
                for each in bolts:
                    send(each.input, {"id": "-1", "comp": "1", "stream": "__heartbeat", "task": -1, "tuple": []})
        for bolt in bolts:
            bolt.input.close()
        for bolt in bolts:
            bolt.reader.join()
            bolt.process.wait()
        assert sum(bolt.acknowledged for bolt in bolts) == size
        return time.perf_counter() - begun


if __name__ == "__main__":
    child()
