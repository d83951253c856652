"""Where the logs of a server go, as it is set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as package_version
from typing import Final

from msgspec import Struct

from grape.errors import UsageError
from grape.logs import journald, syslog
from grape.logs.sending import Sender, Sink
from grape.logs.wires import Collector, Console, Journal, Syslog
from grape.traces.posting import shown
from grape.traces.settings import LOGS, settings_of

FILE: Final = "file"
CONSOLE: Final = "console"
KINDS: Final = (FILE, CONSOLE, "syslog", "journald", "otlp")


class Places(Struct, frozen=True):
    """``to``: of `KINDS`. ``syslog``, ``journald``: the address of one, the socket of the other."""

    to: tuple[str, ...] = (FILE,)
    is_json: bool = False
    syslog: str = syslog.DEFAULT
    journald: str = journald.SOCKET


def sinks_of(places: Places, environment: Mapping[str, str], tell: Callable[[str, str], None]) -> list[Sink]:
    """All but files. ``tell``: a line for people, with its level.

    Raises:
        UsageError: one of them cannot be.
    """
    found: list[Sink] = []
    for kind in dict.fromkeys(places.to):
        match kind:
            case "console":
                found.append(Sender("standard error", Console(is_json=places.is_json), tell))
            case "syslog":
                address = syslog.address_of(places.syslog)
                found.append(Sender(f"syslog at {address}", Syslog(address), tell))
            case "journald":
                found.append(Sender(f"journald at {places.journald}", Journal(places.journald), tell))
            case "otlp":
                found += _collectors(environment, tell)
    return found


def _collectors(environment: Mapping[str, str], tell: Callable[[str, str], None]) -> Sequence[Sink]:
    settings = settings_of(environment, LOGS)
    if settings is not None:
        wire = Collector(settings, package_version("grape-engine"))
        return [Sender(f"the collector at {shown(settings)}", wire, tell)]
    if environment.get("OTEL_SDK_DISABLED") or environment.get(LOGS.exporter):
        return []
    raise UsageError(
        "log-to: otlp needs the address of a collector: $OTEL_EXPORTER_OTLP_ENDPOINT, or "
        "$OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"
    )
