"""The public kit: run a topology in memory, a fake clock, the simulator, contract suites."""
