"""Which namespaces of objects there are in a data directory."""

from __future__ import annotations

from grape.model.address import PartitionId
from grape.model.objects import OBJECTS, WAITING, split_place
from grape.tools.directory import Directory


def namespaces_in(data: str, app: str | None = None) -> list[str]:
    """Those of an app (None: the only one) in which there is something.

    Raises:
        UsageError: there is no such directory, or app.
    """
    found: list[str] = []
    with Directory.open(data) as directory:
        record = directory.app(app)
        number = record.logs.get(OBJECTS)
        after = bytes([ord(WAITING) + 1])  # behind what waits for other storages
        while number is not None:
            rows = directory.reader.scan(PartitionId(record.id, number, 0), "object", after, 1)
            if not rows:
                break
            found.append(split_place(rows[0][0])[0])
            after = found[-1].encode() + b"\x01"
    return found
