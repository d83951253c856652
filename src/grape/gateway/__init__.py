"""The HTTP face of a server: it knows doors of engines, and no engine."""
