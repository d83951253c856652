"""The adapter: it stands between the engine and a worker that only runs handlers, and does all the rest for it."""
