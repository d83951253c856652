"""Grape's own engine, as `grape conformance door` starts any: ``python -m grape.testing.conformance.engine DIR FD``."""

from __future__ import annotations

import socket
import sys

from grape.host.options import Options, check_options
from grape.host.process import serve
from grape.testing.conformance.app import topology

PARTITIONS = 4


def main(data: str, fd: str) -> None:
    """Be an engine of the conformance app, which stays open. ``fd``: of the owner's socket."""
    options = Options(
        target="grape.testing.conformance.app:topology",
        topology=topology(),
        data=data,
        inline=True,
        keep_open=True,
        partitions=PARTITIONS,
    )
    serve(check_options(options), socket.socket(fileno=int(fd)))


if __name__ == "__main__":
    main(*sys.argv[1:])
