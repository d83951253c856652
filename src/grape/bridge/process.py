"""The bridge as a process of its own, beside the engines of a server, until the server asks it to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from grape.bridge.bridge import Bridge
from grape.client.connection import Connection, dial_server
from grape.client.waiting import here
from grape.errors import GrapeError
from grape.server.home import Home
from grape.server.neighbours import Running
from grape.server.telling import begin_logging

T = TypeVar("T")


class BridgeOptions(Struct, frozen=True):
    home: str


def main() -> None:
    """What the process does: its options are its argument."""
    options = msgspec.json.decode(sys.argv[1], type=BridgeOptions)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the server that is asked to stop
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # what is under way is done again by the next one
    begin_logging()
    asyncio.run(_serve(options, os.getppid()))


async def _serve(options: BridgeOptions, server_pid: int) -> None:
    owner = os.pidfd_open(server_pid)
    asyncio.get_running_loop().add_reader(owner, os._exit, 71)  # nobody would restart it, nor end it
    server: Connection = await asyncio.to_thread(lambda: dial_server(options.home).start())

    async def ask(verb: str, argument: Any, kind: type[T]) -> T:
        return msgspec.msgpack.decode(await here(server.ask_verb(verb, argument)), type=kind)

    async def wake(name: str) -> None:
        try:
            await ask("wake", {"name": name}, object)
        except GrapeError:
            if server.is_over:
                raise

    await Bridge(Home(options.home), lambda known: ask("running", known.number, Running), wake).run()


if __name__ == "__main__":
    main()
