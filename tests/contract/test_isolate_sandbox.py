"""The level "sandbox" against the contract, and what is particular to it."""

from __future__ import annotations

from typing import Any

from grape.abc.isolate import Isolate
from grape.isolates.sandbox import SandboxConfig, SandboxIsolate
from grape.testing.contracts.isolate import IsolateContract


class TestSandbox(IsolateContract):
    def isolate(self, **fields: Any) -> Isolate:
        return SandboxIsolate("main", SandboxConfig(**fields))
