"""The level "cgroup" against the contract, on whatever control groups this host has, and what is its own."""

from __future__ import annotations

import os
from typing import Any

from grape.isolates.cgroup import CgroupConfig, CgroupIsolate
from grape.testing.contracts.isolate import ConfinedContract, python_for

NOBODY = 65534


class TestCgroup(ConfinedContract):
    python = python_for(NOBODY) if os.geteuid() == 0 else ""

    def isolate(self, **fields: Any) -> CgroupIsolate:
        return CgroupIsolate("main", CgroupConfig(**{"uid": NOBODY, **fields}))
