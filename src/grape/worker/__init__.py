"""The Python worker: runs slots. Imports nothing of the engine or the store."""
