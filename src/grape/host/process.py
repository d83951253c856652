"""An engine as a process of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from typing import Final

import uvloop

from grape.host.options import Options
from grape.host.run import Run
from grape.isolates.parent import become_subreaper_and_undumpable

LENGTH: Final = struct.Struct("<I")
"""Before the packed `Options`, which come before everything else."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop of the fast kind."""
    return uvloop.new_event_loop()


def main(fd: int) -> None:
    """What a new interpreter does that is an engine: the options come by the socket first."""
    owner = socket.socket(fileno=fd)
    options: Options = pickle.loads(_exactly(owner, LENGTH.unpack(_exactly(owner, LENGTH.size))[0]))
    code = 1
    try:
        serve(options, owner)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)  # a thread that is stuck in a storage would be waited for


def _exactly(owner: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = owner.recv(size - len(data))
        if not got:
            raise SystemExit(0)  # whoever started it has gone
        data += got
    return data


def serve(options: Options, owner: socket.socket) -> None:
    """Be an engine, until it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is its owner who is asked to stop
    with suppress(OSError):
        os.setsid()
    become_subreaper_and_undumpable()
    # This process is the engine's alone: what is loaded stays, and batches are no garbage cycles.
    gc.freeze()
    gc.set_threshold(20_000)
    asyncio.Runner(loop_factory=new_event_loop).run(_serve(Run(options, owner), os.getppid()))


async def _serve(run: Run, owner: int) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, run.stop)
    watched = -1
    with suppress(OSError):  # it has gone already, which its socket will say
        watched = os.pidfd_open(owner)
        loop.add_reader(watched, os._exit, 71)
    try:
        await run.run()
    finally:
        if watched >= 0:
            loop.remove_reader(watched)
