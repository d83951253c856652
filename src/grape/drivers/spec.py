"""What a manifest says of drivers: ``[driver.NAME]``, by kind."""

from __future__ import annotations

import os
import re
from typing import Any, Final, Literal, TypeVar

from msgspec import UNSET, Struct
from msgspec.structs import fields

from grape.drivers.cron import Cron, Every
from grape.drivers.moments import CatchUp, Moments
from grape.drivers.signing import GITHUB_ID, Encoding, Hash
from grape.drivers.watching import Watching
from grape.model.address import check_key
from grape.model.names import check_namespace, check_prefix
from grape.model.near import did_you_mean
from grape.model.secret import Secret
from grape.model.section import Duration, Size, read_section

T = TypeVar("T")

STREAM: Final = "driver="
"""Before the name of a driver: its stream."""
NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?")
_HEADER: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
_SHORTEST: Final = 0.1
_LATE: Final = 1.0
_LATEST: Final = 3600.0
_EXAMPLES: Final = {"event": "order", "schedule": "0 6 * * MON-FRI", "every": "10 s", "path": "/srv/in"}
MAX_BODY: Final = 25 << 20
"""Of a call of a hook, as far as GitHub goes."""


class CronDriver(Struct, frozen=True, kw_only=True, rename="kebab", tag_field="kind", tag="cron"):
    """An event at the moments of a calendar.

    Args:
        event: of a slot. key: of each event. data: of each; else which moment it is.
        schedule: a cron expression. zone: in which it is meant.
        catch_up: what becomes of moments that were missed. grace: how late one may come and still is none of them.
    """

    event: str
    schedule: str
    zone: str = "UTC"
    key: str | None = None
    data: Any = UNSET
    catch_up: CatchUp = "last"
    grace: Duration = Duration(60)

    def moments(self) -> Moments:
        """
        Raises:
            ValueError: there are none.
        """
        return Moments(Cron(self.schedule, self.zone), self.catch_up, int(self.grace * 1000))

    def check(self) -> None:
        """
        Raises:
            ValueError: something in it cannot be.
        """
        self.moments()
        _check_grace(self.grace)


class TimerDriver(Struct, frozen=True, kw_only=True, rename="kebab", tag_field="kind", tag="timer"):
    """An event every so often. Fields as of `CronDriver`."""

    event: str
    every: Duration
    key: str | None = None
    data: Any = UNSET
    catch_up: CatchUp = "last"
    grace: Duration = Duration(60)

    def moments(self) -> Moments:
        """As of `CronDriver`."""
        return Moments(Every(int(self.every * 1000)), self.catch_up, int(self.grace * 1000))

    def check(self) -> None:
        """As of `CronDriver`."""
        if self.every < _SHORTEST:
            raise ValueError(f"every: {self.every:g} s is too often; {_SHORTEST:g} s at least")
        _check_grace(self.grace)


class WatchDriver(Struct, frozen=True, kw_only=True, rename="kebab", tag_field="kind", tag="watch"):
    """An event for each file that comes or changes.

    Args:
        path: of a directory, or of one file. pattern: of files in the directory; with ``**`` also below it.
        interval: between two looks. settle: seconds for which a file must not change before it is told of.
        key: of each event; else the file's path.
    """

    event: str
    path: str
    pattern: str = "*"
    interval: Duration = Duration(1)
    settle: Duration = Duration(1)
    key: str | None = None

    def watching(self) -> Watching:
        """What it has seen."""
        return Watching(os.path.join(self.path, self.pattern), self.settle)

    def check(self) -> None:
        """As of `CronDriver`."""
        if not os.path.isabs(self.path):
            raise ValueError(f"path: {self.path!r:.200} is relative, and a server is anywhere; say it from the root on")
        if not self.pattern or os.path.isabs(self.pattern) or ".." in self.pattern.split("/"):
            raise ValueError(f"pattern: {self.pattern!r:.200} is none of files below the path, such as '*.csv'")
        if self.interval < _SHORTEST:
            raise ValueError(f"interval: {self.interval:g} s is too often; {_SHORTEST:g} s at least")


class ObjectsDriver(Struct, frozen=True, kw_only=True, rename="kebab", tag_field="kind", tag="objects"):
    """An event for each object that is written, with its key: once for each version.

    Args:
        namespace: of the objects, wherever the app has it; its own by default. prefix: how their keys begin.
        existing: whether those that are there already count. removed: whether an object that goes is told of.
        interval: between two looks.
    """

    event: str
    namespace: str = ""
    prefix: str = ""
    existing: bool = False
    removed: bool = False
    interval: Duration = Duration(0.5)

    def check(self) -> None:
        """As of `CronDriver`."""
        if self.namespace:
            check_namespace(self.namespace)
        check_prefix(self.prefix)
        if self.interval < _SHORTEST:
            raise ValueError(f"interval: {self.interval:g} s is too often; {_SHORTEST:g} s at least")


class HookDriver(Struct, frozen=True, kw_only=True, rename="kebab", tag_field="kind", tag="webhook"):
    """An event for each call over HTTP, at ``/apps/APP/hooks/NAME``.

    Args:
        scheme: how a call is signed; None: it needs a token. secret: with what; several while one is exchanged.
        header, hash, encoding, prefix: of the scheme "hmac", where and how the signature is written.
        tolerance: of the scheme "stripe", how old a signature may be.
        id: a path in the body, id_header: a header: what tells a delivery from all others.
        key: a path in the body. headers: those that the event has. max_body: of a call.
    """

    event: str
    scheme: Literal["github", "stripe", "hmac"] | None = None
    secret: Secret | tuple[Secret, ...] = ()
    header: str = ""
    hash: Hash = "sha256"
    encoding: Encoding = "hex"
    prefix: str = ""
    tolerance: Duration = Duration(300)
    id: str = ""
    id_header: str = ""
    key: str = ""
    headers: tuple[str, ...] = ()
    max_body: Size = Size(MAX_BODY)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        return (self.secret,) if isinstance(self.secret, Secret) else self.secret

    @property
    def id_of(self) -> tuple[str, str]:
        """Header and path that have the delivery's id; "": neither."""
        if self.id or self.id_header or self.scheme is None:
            return self.id_header, self.id
        return {"github": (GITHUB_ID, ""), "stripe": ("", "id"), "hmac": ("", "")}[self.scheme]

    def check(self) -> None:
        """As of `CronDriver`."""
        if self.scheme is None and self.secrets:
            raise ValueError('secret: which scheme signs with it? scheme = "github", "stripe" or "hmac"')
        if self.scheme is not None and not self.secrets:
            raise ValueError(f'secret is missing: scheme "{self.scheme}" needs one, as in secret = {{file = "..."}}')
        if any((secret.file, secret.env, secret.credential).count(None) != 2 for secret in self.secrets):
            raise ValueError(
                'secret: each is one of {file = "..."}, {env = "..."}, {credential = "..."}; or several in an array'
            )
        if self.scheme == "hmac" and not self.header:
            raise ValueError('header is missing: which one has the signature? as in header = "X-Signature"')
        own = {"hmac": ("header", "hash", "encoding", "prefix"), "stripe": ("tolerance",)}
        for scheme, of_scheme in own.items():
            for field in of_scheme:
                if scheme != self.scheme and getattr(self, field) != getattr(_PLAIN, field):
                    raise ValueError(f'{field}: it is of scheme "{scheme}"; this one has {self.scheme or "none"}')
        if self.id and self.id_header:
            raise ValueError("id-header: either a header has the id, or id, a path in the body")
        for field, name in (
            ("header", self.header),
            ("id-header", self.id_header),
            *(("headers", name) for name in self.headers),
        ):
            if name and not _HEADER.fullmatch(name):
                raise ValueError(f"{field}: {name!r:.80} cannot be the name of a header")


_PLAIN: Final = HookDriver(event="-")

Driver = CronDriver | TimerDriver | WatchDriver | ObjectsDriver | HookDriver

KINDS: Final[dict[str, type[Driver]]] = {
    str(kind.__struct_config__.tag): kind for kind in (CronDriver, TimerDriver, WatchDriver, ObjectsDriver, HookDriver)
}


def _check_grace(grace: float) -> None:
    if not _LATE <= grace <= _LATEST:
        raise ValueError(f"grace: {grace:g} s cannot be: every moment comes a bit late; 1 s at least, 1 h at most")


def kind_of(driver: Driver) -> str:
    """As a manifest writes it."""
    return str(driver.__struct_config__.tag)


def read_driver(name: str, keys: dict[str, Any]) -> Driver:
    """
    Raises:
        ValueError: something in it cannot be; the text begins with the key that is meant, if it is one.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} cannot be the name of a driver: small letters, digits, '-', '_' and '.'")
    known = ", ".join(KINDS)
    kind = keys.get("kind")
    if kind is None:
        raise ValueError(f'driver {name}: kind is missing; say it as in kind = "cron"; there are {known}')
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS, f"there are {known}")
        raise ValueError(f"kind: there is no driver {kind!r:.60}; {hint}")
    rest = {key: value for key, value in keys.items() if key != "kind"}
    for field in fields(KINDS[kind]):
        if field.required and field.encode_name not in rest:
            example = _EXAMPLES[field.encode_name]
            raise ValueError(f'driver {name}: {field.encode_name} is missing; as in {field.encode_name} = "{example}"')
    if isinstance(rest.get("secret"), str):
        raise ValueError('secret: where it is found, as in {file = "..."}; the value does not stand in a manifest')
    if isinstance(rest.get("key"), str) and kind != "hook":  # of a hook it is where in a body
        try:
            check_key(rest["key"])
        except ValueError as e:
            raise ValueError(f"key: {e}") from None
    driver = read_section(KINDS[kind], rest, "")
    driver.check()
    return driver
