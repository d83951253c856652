"""The command ``grape``, before anything of it is loaded: Ctrl-C ends it in order from its first moment."""

from __future__ import annotations

import os
import signal
import sys

_INTERRUPTED = 130


def _leave(number: int, frame: object) -> None:
    os._exit(_INTERRUPTED)


def _open_streams() -> None:
    """Streams that were closed before it began are nowhere; else the first socket would take their place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(number, mode))


def main() -> None:
    """Entry point."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it to be ignored
        signal.signal(signal.SIGINT, _leave)  # nothing has been begun that would have to be ended
    _open_streams()
    from grape.cli.main import main as command

    command()
