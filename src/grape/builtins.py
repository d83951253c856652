"""What can be plugged, by kind and name: the one list of what Grape brings along, and what installed packages add."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Final, cast

from grape.abc.elsewhere import OtherStorages
from grape.abc.isolate import Isolate
from grape.abc.storage import Storage
from grape.abc.transport import DirectoryTransport
from grape.errors import UsageError
from grape.model.near import did_you_mean

BUILTINS: Final[dict[str, dict[str, str]]] = {
    "isolate": {
        "process": "grape.isolates.process:ProcessIsolate",
        "cgroup": "grape.isolates.cgroup:CgroupIsolate",
        "sandbox": "grape.isolates.sandbox:SandboxIsolate",
        "container": "grape.isolates.container:ContainerIsolate",
    },
    "transport": {"embedded": "grape.transports.embedded:EmbeddedTransport"},
    "elsewhere": {"storages": "grape.storage.beside:StorageThread"},
    "storage": {
        "embedded": "grape.storage.embedded:EmbeddedStorage",
        "az": "grape.storage.buckets:AzureStorage",
        "elliptics": "grape.storage.elliptics.storage:EllipticsStorage",
        "file": "grape.storage.filesystem:FilesystemStorage",
        "gs": "grape.storage.buckets:GoogleStorage",
        "memory": "grape.storage.memory:MemoryStorage",
        "mongodb": "grape.storage.mongodb.storage:MongoStorage",
        "mongodb+srv": "grape.storage.mongodb.storage:MongoSrvStorage",
        "s3": "grape.storage.s3:S3Storage",
    },
}
"""Kind, name, "module:Class". Packages add to a kind with entry points of the group ``grape.KINDs``."""


DIRECTORY: Final = "embedded"
"""The transport of data directories."""


def isolate(name: str) -> type[Isolate]:
    """The level of confinement of this name.

    Raises:
        UsageError: there is none (with the near ones), or its package fails to import.
    """
    return cast(type[Isolate], _find("isolate", name))


def transport(name: str) -> type[DirectoryTransport]:
    """The transport of this name.

    Raises:
        UsageError: as `isolate`.
    """
    return cast(type[DirectoryTransport], _find("transport", name))


def storage(name: str) -> type[Storage]:
    """The storage of this name.

    Raises:
        UsageError: as `isolate`.
    """
    return cast(type[Storage], _find("storage", name))


def other_storages() -> type[OtherStorages]:
    """What an engine has beside it for namespaces that are in other storages."""
    return cast(type[OtherStorages], _find("elsewhere", "storages"))


def names(kind: str) -> list[str]:
    """What there is of a kind: Grape's own in their order, then what packages add."""
    own = list(BUILTINS[kind])
    return own + sorted({point.name for point in _entry_points(kind)} - set(own))


def _find(kind: str, name: str) -> object:
    """Grape's own come first: a package cannot take their place."""
    path = BUILTINS[kind].get(name)
    if path is not None:
        module, _, attribute = path.partition(":")
        return getattr(importlib.import_module(module), attribute)
    for point in _entry_points(kind):
        if point.name == name:
            try:
                return point.load()
            except Exception as e:
                package = point.dist.name if point.dist is not None else "(unknown)"
                raise UsageError(
                    f"{kind} {name!r}: the package {package} says it is {point.value}, which fails to import: "
                    f"{type(e).__name__}: {e}; repair or reinstall the package"
                ) from e
    known = names(kind)
    hint = did_you_mean(name, known, f"there are {', '.join(map(repr, known))}", 0.5)
    raise UsageError(f"there is no {kind} {name!r}; {hint}")


def _entry_points(kind: str) -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=f"grape.{kind}s"))
