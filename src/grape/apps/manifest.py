"""The manifest of an app: `grape.toml` in its directory. What is wrong in it is told with its line."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.apps.lines import Misfit, guarded, line_of, read_toml
from grape.authoring.loading import parse_target
from grape.drivers.spec import Driver, HookDriver, ObjectsDriver, read_driver
from grape.errors import TopologyError, UsageError
from grape.model.address import MAX_PARTITIONS
from grape.model.levels import Levels, check_level
from grape.model.names import check_namespace, own_namespace
from grape.model.near import did_you_mean
from grape.model.profile import read_profiles
from grape.model.retention import KEPT_SPANS, Keeping
from grape.model.secret import Secret
from grape.model.section import Duration, Size, read_section

NAME: Final = "grape.toml"
MAX_BYTES: Final = 1 << 20
APP: Final = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?")
_VERSION: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

TABLES: Final = ("env", "secrets", "pool", "config", "output", "namespaces", "driver", "log")
_EXAMPLES: Final = {"output": 'age = "7 d"', "driver": 'kind = "timer"'}


class Logging(Struct, frozen=True, kw_only=True):
    """``level``: of what handlers log. ``slots``: of those nodes that have another one."""

    level: str = ""
    slots: Levels = {}

    @property
    def levels(self) -> Levels:
        return {**({"": self.level} if self.level else {}), **self.slots}


class Manifest(Struct, frozen=True, kw_only=True, rename="kebab"):
    """An app, as its directory says.

    Args:
        name: of the app, as others write it in ``app@event``; small letters, digits, ``_``, ``-`` and ``.``.
        version: text that names this state of the code.
        app: what to run, relative to the directory: as the argument of ``grape run``.
        state_version: of the layout of its state; grows when what is stored has to be adapted.
        workers: of a pool whose profile does not say; 0: one a core.
        partitions: of a new app.
        max_size: how large its data may grow.
        config: reaches the topology as it is.
        env: variables of its workers. secrets: the same, by reference.
        pool: profiles, by pool.
        output: how much of it a server keeps, by output.
        namespaces: of objects that it may use beside its own: "read" or "write", by namespace.
        driver: what a server makes events of by itself, by name.
        log: how much its handlers log.
        trace: share of events from clients that are traced although nobody has said so; None: as the server's
            environment says ($OTEL_TRACES_SAMPLER), else none.
        trace_age, trace_size: how much is kept of what traced events did.
    """

    name: str
    app: str
    version: str = "0"
    state_version: int = 1
    workers: int = 0
    partitions: int | None = None
    max_size: Size | None = None
    config: dict[str, Any] = {}
    env: dict[str, str] = {}
    secrets: dict[str, Secret] = {}
    pool: dict[str, dict[str, Any]] = {}
    output: dict[str, Keeping] = {}
    namespaces: dict[str, str] = {}
    driver: dict[str, Driver] = {}
    log: Logging = Logging()
    trace: float | None = None
    trace_age: Duration = KEPT_SPANS.age
    trace_size: Size = KEPT_SPANS.size


def manifest_of(directory: str | os.PathLike[str]) -> Manifest:
    """What the ``grape.toml`` in ``directory`` says.

    Raises:
        UsageError: there is none, or something in it cannot be; the text names file, line and remedy.
    """
    path = Path(directory) / NAME
    return read_toml(path, _text_of(path), lambda found: _read(found, path.parent))


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: a manifest has at most {MAX_BYTES} bytes")
        return path.read_text()
    except FileNotFoundError:
        what = "there is no such directory" if not path.parent.exists() else f"there is no {NAME} in it"
        raise UsageError(f"{path.parent}: {what}; the directory of an app has one, with name= and app=") from None
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: it is not UTF-8 at byte {e.start}") from None


def _read(found: dict[str, Any], directory: Path) -> Manifest:
    """
    Raises:
        Misfit: something in it cannot be.
    """
    for key, example in (("name", "orders"), ("app", "orders.py")):
        if key not in found:
            raise Misfit((), f'{key} is missing; say it as in {key} = "{example}"')
    tables = {key: _table(found, key) for key in TABLES}
    for name, value in (*tables["env"].items(), *tables["secrets"].items()):
        table = "env" if name in tables["env"] else "secrets"
        if not _VARIABLE.fullmatch(name):
            raise Misfit((table, name), f"{name!r:.80} cannot be the name of an environment variable")
        if table == "env" and not isinstance(value, str):
            raise Misfit((table, name), f'the value of {name} is text, as in {name} = "{value}"')
        if name in tables["env"] and name in tables["secrets"]:
            raise Misfit(("secrets", name), f"{name} stands in [env] and in [secrets]; one of them says what it is")
    secrets = {name: _secret(name, value) for name, value in tables["secrets"].items()}
    for pool, keys in tables["pool"].items():
        guarded(("pool", pool), keys, partial(read_profiles, {pool: keys}, "grape.toml"))
    outputs = {
        name: guarded(("output", name), keys, partial(read_section, Keeping, _keys("output", name, keys), ""))
        for name, keys in tables["output"].items()
    }
    for name, right in tables["namespaces"].items():
        guarded(("namespaces", name), {}, partial(_check_namespace, name, right))
    drivers = {
        name: guarded(("driver", name), keys, partial(read_driver, name, _keys("driver", name, keys)))
        for name, keys in tables["driver"].items()
    }
    log = guarded(("log",), tables["log"], lambda: _logging(tables["log"]))
    rest = {key: value for key, value in found.items() if key not in tables}
    manifest = guarded((), rest, lambda: read_section(Manifest, rest, ""))
    _check(manifest)
    guarded(("app",), {}, lambda: target_of(manifest, directory))
    return msgspec.structs.replace(
        manifest,
        config=tables["config"],
        env=tables["env"],
        secrets=secrets,
        pool=tables["pool"],
        output=outputs,
        namespaces=tables["namespaces"],
        driver=drivers,
        log=log,
    )


def _keys(table: str, name: str, keys: Any) -> dict[str, Any]:
    """
    Raises:
        Misfit: it is no table.
    """
    if not isinstance(keys, dict):
        raise Misfit((table, name), f"{table}.{name} is a table, as in [{table}.{name}] {_EXAMPLES[table]}")
    return keys


def _table(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key, {})
    if not isinstance(value, dict):
        raise Misfit((key,), f"{key} is a table, [{key}], not {value!r:.60}")
    return value


def _check_namespace(name: str, right: Any) -> None:
    """
    Raises:
        ValueError: it cannot be one, or nobody can have such a right.
    """
    check_namespace(name)
    if right not in ("read", "write"):
        raise ValueError(f'{name} is "read" or "write", not {right!r:.60}')


def _logging(table: dict[str, Any]) -> Logging:
    """
    Raises:
        ValueError: something in it cannot be.
    """
    found = read_section(Logging, table, "log")
    if "level" in table:
        check_level(found.level, "log.level")
    for node, level in found.slots.items():
        check_level(level, f"log.slots.{node}")
    return found


def _secret(name: str, value: Any) -> Secret:
    way = ("secrets", name)
    if not isinstance(value, dict):
        raise Misfit(
            way,
            f'{name}: a secret is where its value is found: {{file = "..."}}, {{env = "..."}} or '
            f'{{credential = "..."}}; the value itself does not stand in a manifest',
        )
    secret = guarded(way, value, lambda: read_section(Secret, value, name))
    if len(value) != 1:
        raise Misfit(way, f'{name}: a secret is one of {{file = "..."}}, {{env = "..."}}, {{credential = "..."}}')
    return secret


def _check(manifest: Manifest) -> None:
    """
    Raises:
        Misfit: a value that fits its type and cannot be.
    """
    if not APP.fullmatch(manifest.name):
        raise Misfit(
            ("name",), f"name: {manifest.name!r:.80} cannot be one: small letters, digits, '-', '_' and '.', up to 64"
        )
    if not _VERSION.fullmatch(manifest.version):
        raise Misfit(
            ("version",),
            f"version: {manifest.version!r:.80} cannot be one: letters, digits, '.', '+', '-' and '_', up to 64",
        )
    if manifest.state_version < 1:
        raise Misfit(("state-version",), f"state-version: it counts from 1, not {manifest.state_version}")
    if not 0 <= manifest.workers <= 1000:
        raise Misfit(("workers",), f"workers: a number from 0 (one a core) to 1000, not {manifest.workers}")
    if manifest.trace is not None and not 0 <= manifest.trace <= 1:
        raise Misfit(("trace",), f"trace: a share from 0 to 1 (0.01: one event of a hundred), not {manifest.trace:g}")
    if manifest.partitions is not None and not 1 <= manifest.partitions <= MAX_PARTITIONS:
        raise Misfit(("partitions",), f"partitions: a number from 1 to {MAX_PARTITIONS}, not {manifest.partitions}")


def target_of(manifest: Manifest, directory: Path) -> str:
    """What to run, as `grape.authoring.loading.load` takes it, from wherever.

    Raises:
        ValueError: it is no file or module in the directory.
    """
    head = manifest.app.partition(":")[0]
    if os.path.isabs(head) or ".." in Path(head).parts:
        raise ValueError(f"app: {manifest.app!r:.200} leads out of the app's directory")
    is_file = head.endswith(".py") or "/" in head
    target = str(directory.absolute() / manifest.app) if is_file else manifest.app
    try:
        parse_target(target)
    except TopologyError as e:
        raise ValueError(f"app: {e}") from None
    return target


def secrets_of(manifest: Manifest, directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The values of its secrets, now.

    Raises:
        UsageError: one is not there; the text never holds a value.
    """
    return {name: _value_of(name, secret, directory, environment) for name, secret in manifest.secrets.items()}


def hook_secrets(hook: HookDriver, name: str, directory: Path, environment: Mapping[str, str]) -> list[str]:
    """Those that the calls of a hook may be signed with, now.

    Raises:
        UsageError: one is not there; the text never holds a value.
    """
    what = f"of driver {name}"
    found = [_value_of(what, secret, directory, environment) for secret in hook.secrets]
    if not all(found):
        raise UsageError(f"{directory / NAME}: secret {what}: it is empty, so anybody could sign with it")
    return found


def _value_of(name: str, secret: Secret, directory: Path, environment: Mapping[str, str]) -> str:
    """
    Raises:
        UsageError: it is not there.
    """
    if secret.env is not None:
        if secret.env not in environment:
            raise UsageError(f"{directory / NAME}: secret {name}: there is no variable {secret.env} here")
        return environment[secret.env]
    path = Path(secret.file or "")
    if secret.credential is not None:
        place = environment.get("CREDENTIALS_DIRECTORY")
        if place is None:
            raise UsageError(
                f"{directory / NAME}: secret {name} is a credential of systemd (LoadCredential=), which has not "
                f"started this: there is no $CREDENTIALS_DIRECTORY"
            )
        path = Path(place) / Path(secret.credential).name
    try:
        return (directory / path).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise UsageError(f"{directory / NAME}: secret {name}: {path}: {why}") from None


def check_fits(directory: Path, manifest: Manifest, events: Collection[str], outputs: Collection[str]) -> None:
    """Whether the app has what its drivers make and read, and the outputs that it keeps.

    Args:
        events: what it listens to.

    Raises:
        UsageError: it has not; the text names file and line.
    """

    def misfit(way: tuple[str, ...], text: str) -> UsageError:
        return UsageError(f"{directory / NAME}:{line_of(_text_of(directory / NAME), way)}: {text}")

    for name, driver in manifest.driver.items():
        if driver.event not in events:
            hint = did_you_mean(driver.event, events, f"it has {_listed(events)}")
            raise misfit(("driver", name, "event"), f"driver {name}: the app has no slot {driver.event!r:.100}; {hint}")
        own = own_namespace(manifest.name)
        if isinstance(driver, ObjectsDriver) and driver.namespace not in ("", own, *manifest.namespaces):
            raise misfit(
                ("driver", name, "namespace"),
                f"driver {name}: the app may not read the namespace {driver.namespace!r}; its own is {own!r}, others "
                f'stand in [namespaces], as in {driver.namespace} = "read"',
            )
    for name in manifest.output:
        if name not in outputs:
            hint = did_you_mean(name, outputs, f"it has {_listed(outputs)}")
            raise misfit(("output", name), f"the app has no output {name!r:.100}; {hint}")


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
