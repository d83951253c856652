"""What looks at a data directory, and repairs what waits in it, without an engine."""
