"""``python -m grape.worker.adapter``: started by the engine, instead of the program that it stands before."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import socket
import sys
from typing import Final

import msgspec

from grape.errors import ProtocolError
from grape.model.topology import TopologySpec
from grape.protocol.framing import frame
from grape.protocol.messages import VERSION, Hello, Refusal
from grape.worker.adapter.lines import LinesSpeaker
from grape.worker.adapter.runtime import AdapterRuntime
from grape.worker.adapter.speaker import BaseSpeaker, Gone, name_of
from grape.worker.dispatcher import SetupFailed
from grape.worker.main import begin
from grape.worker.process import Connection, WorkerProcess
from grape.worker.runtime import ADAPTED

PASSED_ON: Final = frozenset(("timers", "calls", "peers", "objects", "logs"))
"""Capabilities that are the program's, even behind an adapter."""
OF_LINES: Final = [*ADAPTED, "timers", "peers", "objects", "logs"]
"""What programs of lines can, with their adapter."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="grape.worker.adapter", description="Started by the engine.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--config-fd", help="not used: the program has its own")
    program = parser.add_mutually_exclusive_group(required=True)
    program.add_argument("--command", help="a base speaker, as a JSON list")
    program.add_argument("--lines", help="a program that reads and writes lines, as a JSON list")
    options = parser.parse_args()
    sock = begin(options.fd, options.parent)
    argv = msgspec.json.decode(options.command or options.lines, type=list[str])
    gc.freeze()
    try:
        adapt(sock, argv, is_lines=options.lines is not None)
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)
    except (Gone, OSError) as e:
        refuse(sock, "start", str(e))
    except ProtocolError as e:
        refuse(sock, "start", f"{name_of(argv)} broke the protocol: {e}")


def adapt(sock: socket.socket, argv: list[str], *, is_lines: bool) -> None:
    """Start the program and serve the engine, until it says to stop."""
    connection = Connection(sock)
    worker = WorkerProcess(connection)
    if is_lines:
        speaker: LinesSpeaker | BaseSpeaker = LinesSpeaker(argv)
        hello = Hello(VERSION, os.getpid(), "lines", TopologySpec(""), OF_LINES)
    else:
        speaker = BaseSpeaker(argv)
        first = speaker.hello()
        if isinstance(first, Refusal):
            refuse(sock, first.kind, first.text)
        assert isinstance(first, Hello)
        own = [what for what in first.capabilities if what in PASSED_ON]
        hello = Hello(VERSION, os.getpid(), first.language, first.topology, [*ADAPTED, *own])
    connection.send(hello)
    try:
        worker.serve(AdapterRuntime(speaker, hello.topology, worker.ask, connection.send))
    except SetupFailed as e:
        raise e.error from None


def refuse(sock: socket.socket, kind: str, text: str) -> None:
    """Tell the engine why, and leave."""
    with contextlib.suppress(OSError):
        sock.sendall(frame(Refusal(kind, text)))
    sys.exit(1)


if __name__ == "__main__":
    main()
