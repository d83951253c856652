"""What a server and its processes tell each other of drivers, over the server's control socket."""

from __future__ import annotations

from msgspec import Struct

from grape.model.bound import Bound


class Known(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for `Wanted`, once it is another one. ``revision``: of the one that is known; 0: none."""

    revision: int = 0


class Wanted(Struct, frozen=True):
    """What is to be driven. ``apps``: name and digest of each that is to run and has drivers. ``storages``: the
    namespaces that each has in other storages."""

    revision: int
    apps: tuple[tuple[str, str], ...]
    storages: dict[str, dict[str, Bound]] = {}


class DriverState(Struct, frozen=True):
    """How a driver is. ``last``: when it was fired, ``next``: when it will be; seconds of wall time. ``error``: what
    keeps it from doing so, or did when it was to fire last."""

    last: float | None = None
    next: float | None = None
    error: str = ""


class Told(Struct, frozen=True, forbid_unknown_fields=True):
    """How the drivers of an app are, by name."""

    name: str
    drivers: dict[str, DriverState]


class AskHook(Struct, frozen=True, forbid_unknown_fields=True):
    """``name``: of the app."""

    name: str
    hook: str


class Hook(Struct, frozen=True):
    """``digest``: of the package that has it. ``secrets``: what its calls are signed with."""

    digest: str
    secrets: tuple[str, ...]


class DriverInfo(Struct, frozen=True):
    """What is told of a driver; ``kind``, ``event``: as its manifest says; the rest as of `DriverState`."""

    name: str
    kind: str
    event: str
    last: float | None = None
    next: float | None = None
    error: str = ""
