"""LMDB: the environment under the embedded transport."""
