"""Where traces and logs go, as OpenTelemetry's variables say it for every program. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from grape.errors import UsageError

PREFIX: Final = "OTEL_"
NAME: Final = "grape"
_PROTOCOL: Final = "http/json"
_TIMEOUT: Final = 10.0
_BEGIN: Final = "OTEL_EXPORTER_OTLP_"


class Signal(Struct, frozen=True):
    """What is exported. ``name``: in variables. ``path``: below the address of a collector."""

    name: str
    path: str

    @property
    def exporter(self) -> str:
        """The variable that may say "none"."""
        return f"OTEL_{self.name}_EXPORTER"


TRACES: Final = Signal("TRACES", "/v1/traces")
LOGS: Final = Signal("LOGS", "/v1/logs")


class Settings(Struct, frozen=True):
    """``url``: where it goes. ``timeout``: seconds. ``packs``: what is sent is gzip. ``resource``: who sends it."""

    url: str
    headers: dict[str, str]
    resource: dict[str, str]
    timeout: float = _TIMEOUT
    packs: bool = False


def settings_of(environment: Mapping[str, str], signal: Signal = TRACES) -> Settings | None:
    """None: nothing is to be exported.

    Raises:
        UsageError: they say what cannot be; no value of a header stands in the text.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environment.get(signal.exporter, "otlp").strip() == "none":
        return None
    url = _url(environment, signal)
    if not url:
        return None
    protocol = _said(environment, signal, "PROTOCOL") or _PROTOCOL
    if protocol not in (_PROTOCOL, "http/protobuf"):
        raise UsageError(
            f"$OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r:.60}; Grape sends OTLP over HTTP, as JSON: {_PROTOCOL}, at "
            f"the collector's port for HTTP (4318)"
        )
    packing = _said(environment, signal, "COMPRESSION") or "none"
    if packing not in ("none", "gzip"):
        raise UsageError(f"$OTEL_EXPORTER_OTLP_COMPRESSION is none or gzip, not {packing!r:.60}")
    resource = _pairs(environment.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES")
    name = environment.get("OTEL_SERVICE_NAME", "").strip() or resource.get("service.name") or NAME
    headers = _pairs(environment.get(f"{_BEGIN}HEADERS", ""), f"{_BEGIN}HEADERS")
    own = _pairs(environment.get(f"{_BEGIN}{signal.name}_HEADERS", ""), f"{_BEGIN}{signal.name}_HEADERS")
    timeout = _timeout(_said(environment, signal, "TIMEOUT"))
    found = {key.lower(): value for key, value in {**headers, **own}.items()}
    return Settings(url, found, {**resource, "service.name": name}, timeout, packing == "gzip")


def _said(environment: Mapping[str, str], signal: Signal, what: str) -> str:
    """What is said of these, else of everything."""
    own = environment.get(f"{_BEGIN}{signal.name}_{what}", "").strip()
    return own or environment.get(_BEGIN + what, "").strip()


def _url(environment: Mapping[str, str], signal: Signal) -> str:
    """Their own is taken as it is, the one of everything is where their path begins."""
    own = environment.get(f"{_BEGIN}{signal.name}_ENDPOINT", "").strip()
    common = environment.get(f"{_BEGIN}ENDPOINT", "").strip()
    url = own or (common and common.rstrip("/") + signal.path)
    name = f"{_BEGIN}{f'{signal.name}_' if own else ''}ENDPOINT"
    if url:
        try:
            parts = urlsplit(url)
            is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_right = False
        if not is_right:
            raise UsageError(
                f"${name} is the address of a collector, http://127.0.0.1:4318, not {own or common!r:.200}"
            )
    return url


def _pairs(text: str, name: str) -> dict[str, str]:
    """``key=value,key=value``, with values as in a URL."""
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        key, is_said, value = pair.partition("=")
        if not is_said or not key.strip():
            raise UsageError(f"${name} is key=value, separated by commas; one of its parts has no '='")
        value = unquote(value.strip())
        if "\r" in value or "\n" in value:
            raise UsageError(f"${name}: the value of {key.strip()!r:.60} has a line end in it")
        found[unquote(key.strip())] = value
    return found


def _timeout(text: str) -> float:
    """Written in milliseconds."""
    if not text:
        return _TIMEOUT
    try:
        found = float(text) / 1e3
    except ValueError:
        found = -1.0
    if not 0 < found <= 600:
        raise UsageError(f"$OTEL_EXPORTER_OTLP_TIMEOUT is a number of milliseconds up to 600,000, not {text!r:.60}")
    return found
