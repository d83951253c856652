"""Writes an object of mongodb, and is killed before the Nth command goes to the server: each N that is read is a
process of its own, whose exit code is printed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from pymongo import monitoring

from grape.storage.connect import opened
from grape.storage.mongodb import bodies
from grape.storage.objects import Objects


class Dies(monitoring.CommandListener):
    left = 1 << 30

    def started(self, event: Any) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


async def put(url: str, after: int, size: int) -> None:
    dies = Dies()
    monitoring.register(dies)
    async with opened(url) as storage:
        dies.left = after
        await Objects(storage, "photos").put("key", bytes([after]) * size)
        dies.left = 1 << 30


bodies.WHOLE, bodies.CHUNK = int(sys.argv[2]), int(sys.argv[3])
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        asyncio.run(put(sys.argv[1], int(line), int(sys.argv[4])))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
