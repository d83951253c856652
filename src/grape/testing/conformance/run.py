"""All cases against one worker command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from msgspec import Struct

from grape.testing.conformance.base import Adapter
from grape.testing.conformance.cases import CAPABILITY_OF, Case, all_cases
from grape.testing.conformance.driver import Driver
from grape.testing.conformance.peer import Failed
from grape.worker.adapter.__main__ import OF_LINES, PASSED_ON
from grape.worker.runtime import ADAPTED

_PROBE: Final = Case("life", "it says hello", [], welcome=False)
_BEHIND: Final = (sys.executable, "-m", "grape.worker.adapter")


class Subject(Struct, frozen=True):
    """A worker to be asked. ``command``: as the engine runs it, behind its adapter if it needs one. ``speaker``: the
    base speaker itself. ``capabilities``: of both together."""

    command: list[str]
    capabilities: frozenset[str]
    speaker: list[str] | None = None

    def is_asked(self, chapter: str) -> bool:
        """Whether a chapter is about something that it can do."""
        capability = CAPABILITY_OF.get(chapter)
        return capability is None or capability in self.capabilities

    def is_asked_case(self, case: Case) -> bool:
        """Whether it can do all that a case is about."""
        return self.is_asked(case.chapter) and self.capabilities.issuperset(case.needs)


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
    subject: Subject,
    directory: str = ".",
    env: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
    chapters: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Run every case that the worker is asked, each with a process of its own, some of them at once; in their order.

    Args:
        known: title of a case -> why it fails.
        chapters: only these; empty: all.
    """
    asked = [c for c in all_cases() if subject.is_asked_case(c) and (not chapters or c.chapter in chapters)]
    given = dict(os.environ if env is None else env)
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        errors = threads.map(lambda case: attempt(case, subject, directory, given), asked)
        for case, error in zip(asked, errors, strict=True):
            yield Outcome(case, error, (known or {}).get(case.title))
    finally:
        threads.shutdown(cancel_futures=True)  # whoever presses Ctrl-C does not want the others


def worker_subject(command: Sequence[str], directory: str = ".", env: Mapping[str, str] | None = None) -> Subject:
    """Ask a worker what it is. ``command`` runs it; ``--config-fd``, ``--fd`` and ``--parent`` are put behind.

    Raises:
        Failed: it does not say, or says something else.
    """
    probe = Driver(command, directory, dict(os.environ if env is None else env), _PROBE)
    probe.close()
    capabilities = frozenset(probe.hello.capabilities)
    if capabilities >= {"partition", "cache"}:
        return Subject(list(command), capabilities - {"base"})
    if "base" in capabilities:
        behind = [*_BEHIND, "--command", json.dumps([*command, "--config-fd", "0"])]
        return Subject(behind, frozenset(("base", *ADAPTED)) | capabilities & PASSED_ON, list(command))
    raise Failed(f"it has the capabilities {sorted(capabilities)}: neither base, nor partition and cache")


def lines_subject(command: Sequence[str]) -> Subject:
    """A program that reads and writes lines."""
    return Subject([*_BEHIND, "--lines", json.dumps(list(command))], frozenset(OF_LINES))


def attempt(case: Case, subject: Subject, directory: str, env: dict[str, str]) -> str | None:
    """Run one case; returns what the worker did instead of what it should."""
    peer: Driver | Adapter | None = None
    try:
        if case.chapter == "base":
            assert subject.speaker is not None
            peer = Adapter(subject.speaker, directory, env, case)
        else:
            peer = Driver(subject.command, directory, env, case)
        peer.run()
    except (Failed, EOFError, OSError) as e:
        return str(e) or f"the connection broke: {type(e).__name__}"
    finally:
        if peer is not None:
            peer.close()
    return None
