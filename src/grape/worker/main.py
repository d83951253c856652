"""``python -m grape.worker``: what the engine starts for a pool in Python."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from typing import Any

import msgspec

from grape.authoring.loading import load
from grape.authoring.topology import Topology
from grape.protocol.framing import frame
from grape.protocol.messages import VERSION, Hello, Refusal
from grape.worker import children
from grape.worker.blame import refusal_of, user_traceback
from grape.worker.dispatcher import SetupFailed
from grape.worker.link import EXIT_LOST, EngineSocket
from grape.worker.mishaps import hook_threads
from grape.worker.output import Output
from grape.worker.process import Connection, WorkerProcess
from grape.worker.runtime import CAPABILITIES, Runtime
from grape.worker.speaking import Speaking

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the engine dies; leave if it has died already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(0)


def begin(fd: int, parent: int) -> EngineSocket:
    """Live as a worker of ``parent`` has to; returns the socket to it. ``parent`` 0: the jail sees to its end."""
    if parent:
        die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = EngineSocket(fileno=fd)
    sock.set_inheritable(False)
    children.watch(sock)
    return sock


def read_to_end(fd: int) -> bytes:
    """What a descriptor holds; it is empty for everybody after that."""
    with open(fd, "rb", closefd=False) as file:
        data = file.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, fd)
    os.close(null)
    return data


def run(sock: socket.socket, topology: Topology, output: Output) -> None:
    """Serve the engine with an app in Python."""
    connection = Connection(sock)
    worker = WorkerProcess(connection)
    spec = topology.spec()
    runtime = Runtime(topology.handlers, spec, worker.ask, connection.send)
    runtime.complain = output.complain
    speaking = Speaking(runtime)
    output.speak_for(speaking.who)
    runtime.leveled = output.level_by(speaking.node)
    children.at_fork(runtime.abandon)
    connection.send(Hello(VERSION, os.getpid(), "python", spec, CAPABILITIES))
    worker.serve(runtime)


def refuse(sock: socket.socket, error: BaseException) -> None:
    """Tell the engine why this app cannot be run."""
    with contextlib.suppress(OSError):
        sock.sendall(frame(Refusal(*refusal_of(error))))


def main() -> None:
    parser = argparse.ArgumentParser(prog="grape.worker", description="A worker of Grape; started by the engine.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--config", default="{}", help="the app's configuration, for whoever starts it by hand")
    parser.add_argument("--config-fd", type=int, help="where it is read from")
    options = parser.parse_args()
    sock = begin(options.fd, options.parent)
    config = msgspec.json.decode(options.config if options.config_fd is None else read_to_end(options.config_fd))
    output = Output()
    hook_threads(output.complain)
    code = _live(sock, options.target, config, output)
    output.flush()
    if sock.is_lost:
        os._exit(EXIT_LOST)  # whatever came of that
    sys.exit(code)


def _live(sock: EngineSocket, target: str, config: dict[str, Any], output: Output) -> int:
    """The life of a worker; returns its exit code."""
    try:
        topology = load(target, config)
        topology.spec()
        children.end_child()
    except BaseException as e:
        children.end_child(e)
        refuse(sock, e)
        return 2
    # What is loaded stays. The default of 700 would look for cycles several times in every stage.
    gc.freeze()
    gc.set_threshold(20_000)
    try:
        run(sock, topology, output)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except SetupFailed as e:
        refuse(sock, e.error)
        output.complain(user_traceback(e.error))
        return 1
    except SystemExit as e:
        children.end_child(e)
        return e.code if isinstance(e.code, int) else 0
    except BaseException as e:
        children.end_child(e)
        refuse(sock, e)
        output.complain(user_traceback(e))
        return 1
    return 0
