"""Seeds that have found something; they always run."""

from __future__ import annotations

SEEDS: dict[int, str] = {
    1: "a taker took a batch twice that came twice",
    56: "accepted batches were worked on by position after a worker had died",
    71: "a partition was assigned as empty while its first state was being committed",
    245: "a retry unlocked its key although an event behind it was still on its way to the engine",
    269: "the end of a work gave back held events that another work had got meanwhile",
    469: "a root over which workers died was given up, although each of them had named another event of it",
    475: "an async worker that was ended in the middle of a held event handed in what it had done of it",
    1052: "an async worker that was ended in the middle of an event handed in what it had done of it",
    1404: "a node that listens to two names, each also heard by others, got their events out of order",
    5278: "a held event went out with its line while an earlier work still had it",
    7491: "a parked batch was forgotten when the worker died over the one that it waited for, which was finished",
}
"""seed -> what it found"""
CYCLES: dict[int, str] = {
    1457: "a batch that a start went on with, and that was finished by it, stayed in a log without drops",
}
"""The same, of the generator of async nodes in cycles."""

CHANGED: dict[int, str] = {
    1801: "a delayed emit of a pool that was gone in the next code never came, as it lay where nobody looked any more",
    306: "the states of two nodes that move to the same new pool were committed as if each were alone there",
    233: "a result without anything in it took back what an async worker had announced, and nobody was named",
}
"""The same, of the generator whose code changes."""
