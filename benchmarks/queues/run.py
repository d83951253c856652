"""One run of a peer: ``python -m benchmarks.queues.run PEER keyed|latency SIZE DIR`` prints {"events", "seconds"} or
{"p50_ms", "p99_ms"}.

PEER is a module's name, for those on Redis also as in celery-everysec (how often that syncs its file).

A peer is a module of this package: an app, written as its documentation shows, then ``keyed`` and ``latency``. It
reads where its server is from PEER_AT, in this process and in its workers.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.queues.servers import server


def main() -> None:
    name, row, size, directory = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    peer, _, setting = name.partition("-")
    directory.mkdir(parents=True, exist_ok=True)
    with server(peer, setting, directory) as at:
        os.environ["PEER_AT"] = at
        app = importlib.import_module(f"benchmarks.queues.{peer}")
        if row == "keyed":
            found = {"events": size, "seconds": app.keyed(size, directory)}
        else:
            found = app.latency(size, directory)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
