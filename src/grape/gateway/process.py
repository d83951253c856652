"""A gateway as a process of its own: it serves sockets that the server has opened, until the server asks it to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import msgspec
import uvicorn
import uvloop
from msgspec import Struct

from grape.gateway.access import FILE, Access
from grape.gateway.doors import Doors
from grape.gateway.http import Gateway
from grape.gateway.limits import BoundedProtocol, BoundedSocket, take_all_files
from grape.gateway.talks import MAX_MESSAGE
from grape.server.config import ServerConfig
from grape.server.home import Home
from grape.server.telling import begin_logging

GRACE: Final = 20
"""Seconds for what is under way when it is to end."""
_KEEP_ALIVE: Final = 75


class GatewayOptions(Struct, frozen=True):
    """``sockets``: descriptors. ``number``: among the gateways. ``is_open``, ``origins``: as of `Access`.
    ``certificate``, ``key``: PEM files, for TLS."""

    home: str
    sockets: tuple[int, ...]
    is_open: bool
    number: int = 0
    origins: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""
    max_package: int = int(ServerConfig().max_package)


def main() -> None:
    """What the process does: its options are its argument."""
    options = msgspec.json.decode(sys.argv[1], type=GatewayOptions)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the server that is asked to stop
    take_all_files()
    begin_logging(logging.ERROR)  # what anybody may cause fills no log
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(options, os.getppid()))


async def _serve(options: GatewayOptions, server_pid: int) -> None:
    loop = asyncio.get_running_loop()
    home = Home(options.home)
    doors = Doors(home, options.number)
    access = Access(home.path / FILE, is_open=options.is_open, origins=frozenset(options.origins))
    config = uvicorn.Config(
        Gateway(doors, access, options.max_package).app(options.origins),
        http=BoundedProtocol,
        ws=BoundedSocket,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,  # a small frame could swell without bounds
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=options.certificate or None,
        ssl_keyfile=options.key or None,
    )
    server = _Server(config)
    server.doors = doors
    owner = os.pidfd_open(server_pid)
    loop.add_reader(owner, os._exit, 71)  # nobody would restart it, nor end it
    loop.add_signal_handler(signal.SIGTERM, server.end)
    try:
        await server.serve([socket.socket(fileno=fd) for fd in options.sockets])
    finally:
        doors.close()


class _Server(uvicorn.Server):
    """It takes no signals into its own hands."""

    doors: Doors

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        """What is under way is answered, then it ends."""
        self.should_exit = True
        self.doors.ending.set()


if __name__ == "__main__":
    main()
