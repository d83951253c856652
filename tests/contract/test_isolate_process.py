"""The level "process" against the contract, and what is its own."""

from __future__ import annotations

from typing import Any

from grape.isolates.process import ProcessConfig, ProcessIsolate
from grape.testing.contracts.isolate import IsolateContract


class TestProcess(IsolateContract):
    def isolate(self, **fields: Any) -> ProcessIsolate:
        return ProcessIsolate("main", ProcessConfig(**fields))
