"""Grape: a realtime pipeline processing engine. What a pipeline author imports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from grape.authoring.emitter import INHERIT, Context, Emitted, Node, Reply
from grape.authoring.external import External
from grape.authoring.state import State
from grape.authoring.topology import Topology
from grape.authoring.types import register
from grape.errors import (
    BadPayload,
    CallFailed,
    EventOver,
    GrapeError,
    HandlerError,
    NoAnswer,
    NoKey,
    Refused,
    TooLarge,
    TopologyError,
    UnknownEvent,
    UsageError,
    UserError,
)
from grape.model.event import Event
from grape.model.own import convert

__version__: str
"""Of the installed distribution. Resolved on first use: reading metadata doubles the time of an import."""

__all__ = [
    "INHERIT",
    "BadPayload",
    "CallFailed",
    "Context",
    "Emitted",
    "Event",
    "EventOver",
    "External",
    "GrapeError",
    "HandlerError",
    "NoAnswer",
    "NoKey",
    "Node",
    "Refused",
    "Reply",
    "State",
    "TooLarge",
    "Topology",
    "TopologyError",
    "UnknownEvent",
    "UsageError",
    "UserError",
    "__version__",
    "convert",
    "register",
]

_RUNNING = {
    "AsyncClient": "remote.async_client",
    "Client": "remote.client",
    "aopen": "aio",
    "connect": "running",
    "feed": "running",
    "open": "running",
    "run": "running",
}
"""Resolved on first use: they bring the engine along, which a worker must not import."""

if TYPE_CHECKING:
    from grape.aio import aopen as aopen
    from grape.connectors.feeds import feed as feed
    from grape.remote.async_client import AsyncClient as AsyncClient
    from grape.remote.client import Client as Client
    from grape.running import connect as connect
    from grape.running import open as open
    from grape.running import run as run
else:

    def __getattr__(name: str) -> Any:
        if name in _RUNNING:
            return getattr(import_module(f"grape.{_RUNNING[name]}"), name)
        if name == "__version__":
            return import_module("importlib.metadata").version("grape-engine")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_RUNNING, "__version__"})
