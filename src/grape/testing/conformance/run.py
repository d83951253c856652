"""All cases against one worker command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from grape.testing.conformance.cases import Case, all_cases
from grape.testing.conformance.driver import Driver, Failed

_PROBE: Final = Case("life", "it says hello", [], welcome=False)


class Outcome(Struct, frozen=True):
    """``error``: what the worker did instead, None if it did what it should. ``known``: why it may fail, None: it may
    not. A case that is known to fail has to."""

    case: Case
    error: str | None
    known: str | None = None

    @property
    def is_good(self) -> bool:
        return (self.error is None) == (self.known is None)


def conform(
    command: Sequence[str],
    directory: str = ".",
    env: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
    chapters: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Run every case, each with a worker of its own.

    Args:
        command: runs the worker; ``--config``, ``--fd`` and ``--parent`` are put behind it.
        known: title of a case -> why it fails.
        chapters: only these; empty: all.
    """
    for case in all_cases():
        if not chapters or case.chapter in chapters:
            error = attempt(case, command, directory, dict(os.environ if env is None else env))
            yield Outcome(case, error, (known or {}).get(case.title))


def worker_command(command: Sequence[str], directory: str = ".", env: Mapping[str, str] | None = None) -> list[str]:
    """How the engine runs this worker: as it is, or behind its adapter.

    Raises:
        Failed: it does not say what it is.
    """
    probe = Driver(command, directory, dict(os.environ if env is None else env), _PROBE)
    probe.close()
    capabilities = set(probe.hello.capabilities)
    if capabilities >= {"partition", "cache"}:
        return list(command)
    if "base" in capabilities:
        return [sys.executable, "-m", "grape.worker.adapter", "--command", json.dumps([*command, "--config", "{}"])]
    raise Failed(f"it has the capabilities {sorted(capabilities)}: neither base, nor partition and cache")


def lines_command(command: Sequence[str]) -> list[str]:
    """How the engine runs a program that reads and writes lines."""
    return [sys.executable, "-m", "grape.worker.adapter", "--lines", json.dumps(list(command))]


def attempt(case: Case, command: Sequence[str], directory: str, env: dict[str, str]) -> str | None:
    """Run one case; returns what the worker did instead of what it should."""
    driver: Driver | None = None
    try:
        driver = Driver(command, directory, env, case)
        driver.run()
    except (Failed, EOFError, OSError) as e:
        return str(e) or f"the connection broke: {type(e).__name__}"
    finally:
        if driver is not None:
            driver.close()
    return None
