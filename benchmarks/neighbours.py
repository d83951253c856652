"""Two pools, of which one does what it is told to, however bad: for tests and benchmarks of what the other notices."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from grape import Event, Node, State, Topology
from grape.protocol.framing import frame
from grape.protocol.messages import FromWorker, Result
from grape.worker.dispatcher import Dispatcher

Send = Callable[[FromWorker], None]


class Good(Node):
    seen = State(int, default=0)

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def process(self, event: Event) -> None:
        if self.pause:
            time.sleep(self.pause)
        self.seen += 1
        self.emit("out", [event.key, self.seen])


class Bad(Node):
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def process(self, event: Event) -> None:
        getattr(self, event.data)()
        if event.data != "nothing":
            self.emit("done", event.data)

    def nothing(self) -> None:
        pass

    def full_temp(self) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            for _ in range(4096):
                file.write(b"x" * (1 << 20))
                file.flush()

    def garbage(self) -> None:
        for fd in engine_sockets():
            os.write(fd, b"\xff\xff\xff\x00 this is no message")
        time.sleep(10)

    def twice(self) -> None:
        def both(send: Send, message: FromWorker) -> None:
            if isinstance(message, Result):  # in one write: the run may be over with the first one
                for fd in engine_sockets():
                    os.write(fd, frame(message) * 2)
            else:
                send(message)

        replace_send(both)

    def lost(self) -> None:
        """It answers for the partition in epochs that are not, or not any more."""

        def stale(send: Send, message: FromWorker) -> None:
            if isinstance(message, Result):  # before the true one, with which the run may be over
                send(Result(message.partition, message.epoch + 1, [], []))
                send(Result(message.partition, message.epoch - 1, message.ended, message.done))
            send(message)

        replace_send(stale)

    def stubborn(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)

    def fork_bomb(self) -> None:
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)

    def memory_bomb(self) -> None:
        blocks = []
        while True:
            blocks.append(b"x" * (8 << 20))

    def hidden_daemon(self) -> None:
        self.daemon({"PATH": "/usr/bin:/bin"})

    def daemon(self, env: dict[str, str] | None = None) -> None:
        leave = "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
        code = f"import os, time\n{leave}time.sleep(600)"
        subprocess.run([sys.executable, "-c", code, self.mark], check=True, env=env)


def replace_send(instead: Callable[[Send, FromWorker], None]) -> None:
    """What this worker says goes through ``instead``, which is given what really sends."""
    for dispatcher in gc.get_objects():
        if isinstance(dispatcher, Dispatcher):
            dispatcher.send = partial(instead, dispatcher.send)


def engine_sockets() -> Iterator[int]:
    for fd in range(3, 1000):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                yield fd
        except OSError:
            pass


def topology(config: dict[str, Any]) -> Topology:
    t = Topology("neighbours")
    t.add_output("out")
    t.add_output("done")
    t.add_slot("good", Good(config.get("pause", 0)))
    t.add_slot("bad", Bad(config.get("mark", "mark")), pool="other", retries=0, timeout=config.get("timeout", 3.0))
    return t
