"""Telling systemd how a service is: sd_notify(3), which is one datagram."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Such as "READY=1", "STOPPING=1" or "WATCHDOG=1". Nothing happens where nobody listens."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(state.encode(), "\0" + place[1:] if place.startswith("@") else place)


def watchdog_seconds() -> float | None:
    """How often it wants to hear of us: half of what it waits."""
    micros = os.environ.get("WATCHDOG_USEC", "")
    return int(micros) / 2e6 if micros.isdecimal() and int(micros) else None
