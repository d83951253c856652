"""Engine <-> worker, without I/O. Normative text: docs/protocol.md."""
