"""The other side of the door: whatever brings events to an engine, takes its outputs, or asks it something."""
