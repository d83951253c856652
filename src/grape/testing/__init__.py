"""The public kit: run a topology in memory with a fake clock (`Harness`); the simulator; contract suites."""

from grape.testing.harness import Answer, Dead, Harness, Held
from grape.testing.machine import Crash

__all__ = ["Answer", "Crash", "Dead", "Harness", "Held"]
