"""The level "container" against the contract, and what is particular to it."""

from __future__ import annotations

from typing import Any

from grape.abc.isolate import Isolate
from grape.errors import Unsupported
from grape.isolates.cgroups import open_group
from grape.isolates.container import ContainerConfig, ContainerIsolate
from grape.testing.contracts.isolate import ConfinedContract, IsolateContract


def has_cgroups() -> bool:
    try:
        open_group().close()
    except Unsupported:
        return False
    return True


class TestContainer(ConfinedContract if has_cgroups() else IsolateContract):  # type: ignore[misc]
    def isolate(self, **fields: Any) -> Isolate:
        return ContainerIsolate("main", ContainerConfig(**fields))
