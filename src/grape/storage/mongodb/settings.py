"""Which server, which collection, and who one is there: what a URL says, and the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import environ
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

from msgspec import Meta, field
from pymongo import AsyncMongoClient

from grape.abc.storage import StorageConfig
from grape.errors import UsageError

Document = dict[str, Any]

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_DATABASE: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
_CONNECTING: Final = 5.0


class MongoConfig(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    hosts: "host:port" of servers, with commas between; of mongodb+srv:// the one name
    srv: whether hosts is a name under which the servers are found (mongodb+srv://)
    database, collection: where the objects lie; GridFS has the same name as the collection
    user, password: as in the URL; without a user what the environment says
    variables: how the names of the environment's variables with user and password begin
    authSource, authMechanism, replicaSet, tls, tlsCAFile, tlsCertificateKeyFile, directConnection: as in any URL of
        MongoDB
    w, retryWrites: as well, for URLs that have them; nothing less is done
    connections: at the same time
    abandoned: seconds after which the bytes of a write that nobody ended are removed, and what says that an object is
        gone; 0: never
    """

    hosts: str
    database: str
    srv: bool = False
    collection: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")] = "objects"
    user: str = ""
    password: str = ""
    variables: Annotated[str, Meta(min_length=1)] = "MONGODB"
    auth_source: str = field(default="", name="authSource")
    auth_mechanism: str = field(default="", name="authMechanism")
    replica_set: str = field(default="", name="replicaSet")
    tls: bool | None = None
    ca_file: str = field(default="", name="tlsCAFile")
    key_file: str = field(default="", name="tlsCertificateKeyFile")
    is_direct: bool = field(default=False, name="directConnection")
    w: Literal["majority"] = "majority"
    retries: bool = field(default=True, name="retryWrites")
    connections: Annotated[int, Meta(ge=1, le=1000)] = 32
    abandoned: Annotated[float, Meta(ge=0)] = 86_400.0

    def __repr__(self) -> str:
        return f"MongoConfig({self.hosts!r}, {self.database!r})"  # no secret gets into a text


def settings_of(place: str, is_srv: bool) -> dict[str, Any]:
    """USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE as settings.

    Raises:
        UsageError: it says nothing that can be; its text has nothing of what was said, which may be a secret.
    """
    scheme = "mongodb+srv" if is_srv else "mongodb"
    where, _, database = place.partition("/")
    secret, at, hosts = where.rpartition("@")
    user, _, password = secret.partition(":")
    if at and (not user or "@" in secret):
        raise UsageError(f"{scheme}://USER:PASSWORD@...: '@', ':' and '/' in them are written as %40, %3A and %2F")
    if not all(_HOST.fullmatch(host) for host in hosts.split(",")) or (is_srv and not re.fullmatch(r"[\w.-]+", hosts)):
        raise UsageError(
            f"{scheme}:// is followed by {'NAME' if is_srv else 'HOST:PORT'}/DATABASE, as in {_like(is_srv)}"
        )
    if _DATABASE.fullmatch(database) is None:
        raise UsageError(
            f"{scheme}://{hosts}/ is followed by a database, letters, digits, '_' and '-': {_like(is_srv)}"
        )
    settings: dict[str, Any] = {"hosts": hosts, "database": database, "srv": is_srv}
    if user:
        settings |= {"user": unquote(user), "password": unquote(password)}
    return settings


def _like(is_srv: bool) -> str:
    return "mongodb+srv://cluster.example.net/grape" if is_srv else "mongodb://127.0.0.1:27017/grape"


def client_of(config: MongoConfig, environment: Mapping[str, str] = environ) -> AsyncMongoClient[Document]:
    """It connects to nobody yet.

    Raises:
        UsageError: user or password is missing, or a setting is none that the library takes.
    """
    milliseconds = int(config.timeout * 1000)
    options: dict[str, Any] = {
        "appname": "grape",
        "w": "majority",
        "journal": True,
        "wTimeoutMS": milliseconds,
        "socketTimeoutMS": milliseconds,
        "serverSelectionTimeoutMS": milliseconds,
        "connectTimeoutMS": int(min(_CONNECTING, config.timeout) * 1000),
        "maxPoolSize": config.connections,
        "tz_aware": True,
        **_who(config, environment),
    }
    for name, value in (
        ("authMechanism", config.auth_mechanism),
        ("replicaSet", config.replica_set),
        ("tlsCAFile", config.ca_file),
        ("tlsCertificateKeyFile", config.key_file),
        ("directConnection", config.is_direct),
    ):
        if value:
            options[name] = value
    if config.tls is not None:
        options["tls"] = config.tls
    try:
        return AsyncMongoClient(f"mongodb{'+srv' if config.srv else ''}://{config.hosts}/", **options)
    except Exception as e:  # of many kinds, and its text may tell a secret
        raise UsageError(
            f"mongodb://{config.hosts}/{config.database}: a setting cannot be so ({type(e).__name__}): look at "
            f"authMechanism, replicaSet, tls, tlsCAFile, tlsCertificateKeyFile, directConnection, and the name's DNS"
        ) from None


def _who(config: MongoConfig, environment: Mapping[str, str]) -> dict[str, Any]:
    user, password, source = config.user, config.password, config.auth_source
    if user:
        source = source or ("" if config.srv else config.database)  # as in any URL of MongoDB
    else:
        names = f"{config.variables}_USERNAME", f"{config.variables}_PASSWORD"
        user, password = (environment.get(name, "") for name in names)
        if bool(user) != bool(password):
            raise UsageError(f"{names[bool(user)]} is not set, and {names[not user]} is: set it as well")
    found = {"username": user, "password": password, "authSource": source}
    return {name: value for name, value in found.items() if value}
