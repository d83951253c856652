"""What all tests share.

They start a thousand interpreters. What all of those load is compiled once, before; what they load of a test's own is
never compiled code that an earlier version of the same file has left.
"""

from __future__ import annotations

import compileall
import os
import signal
import sysconfig
from pathlib import Path

import pytest

LONG = Path(__file__).with_name("long.txt")
"""Tests that take some seconds each, by their ids (`scripts/long-tests`)."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # one of several processes: it has been done
        for directory in (Path(__file__).parents[1] / "src", sysconfig.get_path("purelib")):
            compileall.compile_dir(directory, quiet=2)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # In the background of a shell Ctrl-C is ignored, and so it would be by everything that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long is left out by whoever leaves out what is slow, and has a name of its own."""
    long = set(LONG.read_text().splitlines())
    for item in items:
        if item.nodeid in long:
            item.add_marker("slow")
            item.add_marker("long")
