"""What a server is told: by options of `grape serve`, by the environment, by a file, in this order of precedence.

The file is `grape-server.toml` in the home, or the one that is named. Every setting stands in `ServerConfig`, and
nowhere else: its name there is the one of the file (``park-after``), of the option (``--park-after``) and of the
variable (``GRAPE_SERVER_PARK_AFTER``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, structs

from grape.apps.lines import Misfit, guarded, read_toml
from grape.apps.manifest import APP
from grape.errors import BadArgument, UsageError
from grape.logs.journald import SOCKET
from grape.logs.sinks import KINDS, Places
from grape.logs.syslog import DEFAULT, address_of
from grape.model.bound import Bound
from grape.model.names import check_namespace
from grape.model.near import did_you_mean
from grape.model.section import Duration, Size, read_section, show_size
from grape.model.urls import without_secrets
from grape.storage.connect import storage_of

FILE: Final = "grape-server.toml"
VARIABLE: Final = "GRAPE_SERVER_"
FILE_VARIABLE: Final = "GRAPE_SERVER_CONFIG"
"""Names the file."""
MAX_BYTES: Final = 1 << 20
PARK_AFTER: Final = 600.0
"""Seconds after which an app that has nothing to do needs no process."""
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")
_PATHS: Final = ("log-file", "tls-certificate", "tls-key")
_YES_NO: Final = {
    "true": True,
    "yes": True,
    "1": True,
    "on": True,
    "false": False,
    "no": False,
    "0": False,
    "off": False,
}
_LEAST_LOG: Final = 1 << 10

_FORMATS: Final = ("text", "json")


class Granted(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """A storage in which apps may have a namespace.

    Args:
        url: of it, as `grape storage --storage` takes it.
        apps: that may; "*": all.
        namespace: its name there, if that is another one.
        access: "write", or "read": they may do no more.
    """

    url: str
    apps: tuple[str, ...]
    namespace: str = ""
    access: Literal["read", "write"] = "write"


class ServerConfig(Struct, frozen=True, kw_only=True, rename="kebab"):
    """All settings of a server; those of one that is told nothing, unless they are given."""

    listen: Annotated[str, Meta(description="HOST:PORT at which HTTP is served; port 0: any that is free.")] = (
        "127.0.0.1:8080"
    )
    http: Annotated[bool, Meta(description="Whether it is.")] = True
    gateways: Annotated[int, Meta(ge=1, le=64, description="Processes that serve it.")] = 1
    origins: Annotated[tuple[str, ...], Meta(description="Of pages that may ask from browsers.")] = ()
    tls_certificate: Annotated[str, Meta(description="PEM file of a certificate chain: HTTPS is served.")] = ""
    tls_key: Annotated[str, Meta(description="PEM file of its key.")] = ""
    max_package: Annotated[Size, Meta(description="Largest package that is taken over HTTP.")] = Size(256 << 20)
    park_after: Annotated[
        Duration, Meta(description="An app with nothing to do for so long needs no process; 0: never.")
    ] = Duration(PARK_AFTER)
    app_users: Annotated[bool, Meta(description="As root: whether the workers of each app are a user of its own.")] = (
        True
    )
    log_format: Annotated[
        str,
        Meta(description="Of the logs of apps and of the server itself.", extra_json_schema={"enum": list(_FORMATS)}),
    ] = "text"
    log_to: Annotated[
        tuple[str, ...],
        Meta(
            description="Where logs go: file, console (standard error), syslog, journald, otlp.",
            extra_json_schema={"items": {"enum": list(KINDS)}},
        ),
    ] = Places().to
    log_syslog: Annotated[str, Meta(description="Of syslog: udp://HOST:514, tcp://HOST:514, unix:///dev/log.")] = (
        DEFAULT
    )
    log_journald: Annotated[str, Meta(description="The socket of systemd's journal.")] = SOCKET
    log_file: Annotated[str, Meta(description="Where the server's own log goes, instead of standard error.")] = ""
    log_size: Annotated[Size, Meta(description="At which a log is turned over.")] = Size(10 << 20)
    log_older: Annotated[int, Meta(ge=0, le=1000, description="Older parts of a log that are kept.")] = 5
    repository: Annotated[
        str, Meta(description="URL of a storage that has packages, profiles and the run-list; the home is its cache.")
    ] = ""
    run_list: Annotated[str, Meta(description="Which apps of the repository are this server's.")] = "main"
    signed_by: Annotated[
        tuple[str, ...], Meta(description="Files of public keys (minisign, cosign); a package is signed by one.")
    ] = ()
    remote_files: Annotated[
        tuple[str, ...],
        Meta(
            description="Directories whose files apps may name (secrets, watched) that come by a token for some apps."
        ),
    ] = ("/run/secrets", "/etc/grape/secrets")
    remote_variables: Annotated[
        tuple[str, ...], Meta(description="How the variables of the server's environment begin that they may name.")
    ] = ("GRAPE_SECRET_",)
    storages: Annotated[
        dict[str, Granted], Meta(description="Namespaces of objects that are in other storages: [storages.NAME].")
    ] = {}
    audit_size: Annotated[Size, Meta(description="At which the audit log is turned over.")] = Size(10 << 20)
    audit_older: Annotated[int, Meta(ge=0, le=10_000, description="Older parts of it that are kept.")] = 20


def bound_for(config: ServerConfig, app: str) -> dict[str, Bound]:
    """The namespaces that an app has in other storages."""
    return {
        name: Bound(granted.url, granted.namespace or name, granted.access == "read")
        for name, granted in config.storages.items()
        if app in granted.apps or "*" in granted.apps
    }


def variables_for(config: ServerConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """What the processes beside the engines have to know of the environment to reach other storages."""
    begins = tuple(begin for granted in config.storages.values() for begin in storage_of(granted.url).variables)
    return {name: value for name, value in environment.items() if begins and name.startswith(begins)}


def places_of(config: ServerConfig) -> Places:
    """Where its logs go."""
    return Places(config.log_to, config.log_format == "json", config.log_syslog, config.log_journald)


class Effective(Struct, frozen=True):
    """``config``: what counts. ``origins``: by key, where its value comes from: "option", "environment GRAPE_SERVER_X",
    "FILE", "default". ``file``: that was read; "": none. ``strangers``: what is said of variables that are none of
    ours."""

    config: ServerConfig
    origins: dict[str, str]
    file: str = ""
    strangers: tuple[str, ...] = ()


def keys() -> tuple[str, ...]:
    """Of all settings, as files have them."""
    return tuple(field.encode_name for field in structs.fields(ServerConfig))


def effective(home: Path, file: str | None, environment: Mapping[str, str], options: Mapping[str, Any]) -> Effective:
    """What counts for a server.

    Args:
        file: as it was named; None: that of the home, if there is one.
        options: by key; None: not said.

    Raises:
        UsageError: something of it cannot be; the text says which, where and what to do.
    """
    found: dict[str, Any] = {}
    origins = dict.fromkeys(keys(), "default")
    path = Path(file) if file is not None else home / FILE
    has_file = file is not None or path.exists()
    if has_file:
        values = read_file(path)
        found |= values
        origins |= dict.fromkeys(values, str(path))
    values, strangers = _of_environment(environment)
    found |= values
    origins |= {key: f"environment {variable_of(key)}" for key in values}
    values = {key: value for key, value in options.items() if value is not None}
    found |= values
    origins |= dict.fromkeys(values, "option")
    try:
        config = read_section(ServerConfig, found, "")
        _check(config)
    except Misfit as e:
        key = e.way[0]
        raise UsageError(f"{_said(key, origins)}: {str(e).removeprefix(f'{key}: ')}") from None
    except ValueError as e:
        raise UsageError(str(e).removeprefix(": ")) from None
    return Effective(config, origins, str(path) if has_file else "", strangers)


def _said(key: str, origins: Mapping[str, str]) -> str:
    """Where a value was said, for errors."""
    origin = origins[key]
    return f"--{key}" if origin == "option" else origin.removeprefix("environment ")


def read_file(path: Path) -> dict[str, Any]:
    """What a file says, as it is written there; paths in it are below its directory.

    Raises:
        UsageError: it cannot be read, or something in it cannot be; the text names file, line and remedy.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: such a file has at most {MAX_BYTES} bytes")
        text = path.read_text()
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: it is not UTF-8 at byte {e.start}") from None
    return read_toml(path, text, lambda found: _checked(found, path.parent))


def _checked(found: dict[str, Any], directory: Path) -> dict[str, Any]:
    """
    Raises:
        Misfit: something in it cannot be.
    """
    _check(guarded((), found, lambda: read_section(ServerConfig, found, "")))
    below: dict[str, Any] = {key: str(directory / found[key]) for key in _PATHS if found.get(key)}
    if "signed-by" in found:
        below["signed-by"] = [str(directory / path) for path in found["signed-by"]]
    return found | below


def _check(config: ServerConfig) -> None:
    """
    Raises:
        Misfit: a value that fits its type and cannot be.
    """
    _, colon, port = config.listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise Misfit(("listen",), f"listen: {config.listen!r:.100}: an address is HOST:PORT, as in 127.0.0.1:8080")
    if config.log_format not in _FORMATS:
        raise Misfit(("log-format",), f"log-format: text or json, not {config.log_format!r:.60}")
    for origin in config.origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise Misfit(("origins",), f"origins: {origin!r:.100}: a page's is SCHEME://HOST[:PORT], and nothing more")
    for path in config.remote_files:
        if not os.path.isabs(path):
            raise Misfit(("remote-files",), f"remote-files: {path!r:.200} is relative; say it from the root on")
    if "" in config.remote_variables:
        raise Misfit(("remote-variables",), "remote-variables: '' begins every name; say how those begin that may be")
    for kind in config.log_to:
        if kind not in KINDS:
            raise Misfit(("log-to",), f"log-to: {', '.join(KINDS)}, not {kind!r:.60}")
    try:
        address_of(config.log_syslog)
    except UsageError as e:
        raise Misfit(("log-syslog",), f"log-syslog: {e}") from None
    for key, size in (("log-size", config.log_size), ("audit-size", config.audit_size)):
        if size < _LEAST_LOG:
            raise Misfit((key,), f"{key}: at least {_LEAST_LOG} bytes, not {size}")
    if not config.max_package:
        raise Misfit(("max-package",), "max-package: at least one byte; without HTTP nothing comes: http = false")
    if config.repository:
        try:
            storage_of(config.repository)
        except UsageError as e:
            raise Misfit(("repository",), f"repository: {e}") from None
    if not APP.fullmatch(config.run_list):
        raise Misfit(("run-list",), f"run-list: {config.run_list!r:.100}: small letters, digits, '-', '_' and '.'")
    for name, granted in config.storages.items():
        _check_granted(name, granted)
    if config.tls_key and not config.tls_certificate:  # the other way round one file may have both
        raise Misfit(("tls-key",), "tls-key: it is the key of a certificate: say tls-certificate too")


def _check_granted(name: str, granted: Granted) -> None:
    """
    Raises:
        Misfit: it leads nowhere.
    """
    way = ("storages", name)
    for namespace in (name, granted.namespace or name):
        try:
            check_namespace(namespace)
        except BadArgument as e:
            raise Misfit(way, f"storages.{name}: {e}") from None
    try:
        storage_of(granted.url)
    except UsageError as e:
        raise Misfit((*way, "url"), f"storages.{name}: {e}") from None
    if not granted.apps:
        raise Misfit((*way, "apps"), f'storages.{name}: apps: those that may use it, or ["*"]')


# ---------------------------------------------------------------------- the environment


def variable_of(key: str) -> str:
    """The variable that says it."""
    return VARIABLE + key.upper().replace("-", "_")


def _of_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What it says, and what is to be said of variables that begin as ours and are none. Those are not refused: a
    Kubernetes service called "grape-server" makes GRAPE_SERVER_PORT in every container.

    Raises:
        UsageError: a value that cannot be.
    """
    known = {variable_of(field.encode_name): field for field in structs.fields(ServerConfig)}
    found: dict[str, Any] = {}
    strangers = []
    for name in sorted(environment):
        if not name.startswith(VARIABLE) or name == FILE_VARIABLE:
            continue
        field = known.get(name)
        if field is not None and field.default is msgspec.NODEFAULT:
            raise UsageError(f"{name}: [{field.encode_name}] is a table, and stands in {FILE} alone")
        if field is None:
            hint = did_you_mean(name, known, "grape config schema shows all settings", 0.8)
            strangers.append(f"{name} in the environment is no setting of a server; {hint}")
            continue
        key = field.encode_name
        try:
            value = _of_text(field.default, environment[name])
            _check_one(key, value)
        except ValueError as e:
            raise UsageError(f"{name}: {e}") from None
        found[key] = value
    return found, tuple(strangers)


def _of_text(default: Any, text: str) -> Any:
    """A value as TOML would have it.

    Raises:
        ValueError: it cannot be.
    """
    if isinstance(default, bool):
        if text.lower() not in _YES_NO:
            raise ValueError(f"{text!r:.60} is neither true nor false")
        return _YES_NO[text.lower()]
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if type(default) is int:
        if not text.strip().isdecimal():
            raise ValueError(f"{text!r:.60} is no number")
        return int(text)
    return text


def _check_one(key: str, value: Any) -> None:
    """
    Raises:
        ValueError: it does not fit its type.
    """
    try:
        read_section(ServerConfig, {key: value}, "")
    except ValueError as e:
        raise ValueError(str(e).removeprefix(": ").removeprefix(f"{key}: ")) from None


# ---------------------------------------------------------------------- its schema


def schema() -> dict[str, Any]:
    """JSON schema of the file, for editors."""

    def quantity(kind: type) -> dict[str, Any]:
        example = "512 MiB" if kind is Size else "30 s"
        return {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}], "examples": [example]}

    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for field in structs.fields(ServerConfig):
        default = {} if field.default is msgspec.NODEFAULT else field.default
        plain = float(default) if isinstance(default, Duration) else int(default) if type(default) is Size else default
        its = msgspec.json.schema(field.type, schema_hook=quantity)
        definitions |= its.pop("$defs", {})
        properties[field.encode_name] = {**its, "default": plain}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": FILE,
        "type": "object",
        "properties": properties,
        "$defs": definitions,
        "additionalProperties": False,
    }


def shown(value: Any) -> str:
    """A value as it would stand in the file."""
    if isinstance(value, Granted):
        keys = structs.fields(Granted)
        parts = [f"{key.encode_name} = {shown(getattr(value, key.name))}" for key in keys if getattr(value, key.name)]
        return f"{{ {', '.join(parts)} }}"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {shown(each)}' for key, each in value.items())} }}" if value else "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, str):
        value = without_secrets(value)
    if isinstance(value, bool | str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, Size) and value and not value % 1024:
        return f'"{show_size(value)}"'
    return f"{value:g}" if isinstance(value, float) else str(int(value))


def here(path: str) -> str:
    """A path that was said on the command line or in the environment."""
    return os.path.abspath(path) if path else ""
