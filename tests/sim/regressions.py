"""Seeds that have found something; they always run."""

from __future__ import annotations

SEEDS: dict[int, str] = {}
"""seed -> what it found"""
