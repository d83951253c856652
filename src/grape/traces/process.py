"""The exporter as a process of its own, beside the engines of a server, until the server asks it to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from importlib.metadata import version as package_version
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from grape.client.connection import Connection, dial_server
from grape.client.waiting import here
from grape.server.home import Home
from grape.server.neighbours import Running
from grape.server.telling import begin_logging
from grape.traces.exporter import Exporter
from grape.traces.settings import Settings, settings_of

T = TypeVar("T")


class ExporterOptions(Struct, frozen=True):
    home: str


def main() -> None:
    """What the process does: its options are its argument; where traces go says its environment, as there may be
    secrets in that."""
    options = msgspec.json.decode(sys.argv[1], type=ExporterOptions)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the server that is asked to stop
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # what is under way is sent again by the next one
    begin_logging()
    settings = settings_of(os.environ)
    if settings is not None:
        asyncio.run(_serve(options, settings, os.getppid()))


async def _serve(options: ExporterOptions, settings: Settings, server_pid: int) -> None:
    owner = os.pidfd_open(server_pid)
    asyncio.get_running_loop().add_reader(owner, os._exit, 71)  # nobody would restart it, nor end it
    server: Connection = await asyncio.to_thread(lambda: dial_server(options.home).start())

    async def ask(verb: str, argument: Any, kind: type[T]) -> T:
        return msgspec.msgpack.decode(await here(server.ask_verb(verb, argument)), type=kind)

    version, say = package_version("grape-engine"), logging.getLogger("grape").warning
    running = lambda known: ask("running", known.number, Running)  # noqa: E731
    await Exporter(Home(options.home), settings, version, running, say).run()


if __name__ == "__main__":
    main()
