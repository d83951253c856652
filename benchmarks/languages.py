"""A keyed count in every language: ``python -m benchmarks.languages NAME WHAT DIR``, NAME is rate or start.

Workers of other languages are installed by `scripts/sdks bench` into ``.cache/sdks``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grape
from benchmarks import data, rows, storm
from grape import External, Topology

ROOT: Final = Path(__file__).parents[1]
SDKS: Final = ROOT / ".cache" / "sdks"
SPEAKERS: Final = "benchmarks/speakers"
SIZES: Final = {
    "python": 3_000_000,
    "node": 3_000_000,
    "cpp": 3_000_000,
    "perl": 1_000_000,
    "lines": 300_000,
    "storm": 100_000,
}
RUNTIMES: Final = {
    "node": ("node", f"{SPEAKERS}/count.js"),
    "cpp": ("exec", ".cache/sdks/cpp/count"),
    "perl": ("perl", f"{SPEAKERS}/count.pl"),
    "lines": ("lines", f"{SPEAKERS}/count.sh"),
}
STARTS: Final = 10


def environment() -> dict[str, str]:
    """Where the runtimes find what was installed for them."""
    return {"NODE_PATH": str(SDKS / "node" / "node_modules"), "PERL5LIB": str(SDKS / "perl" / "lib" / "perl5")}


def topology(config: Mapping[str, Any]) -> Topology:
    t = Topology("languages")
    language = config["language"]
    if language == "python":
        t.add_slot("word", _python_count(), pool="counting")
        return t
    runtime, entry = RUNTIMES[language]
    t.add_pool("counting", runtime=runtime, entry=entry)  # type: ignore[arg-type]
    if language == "lines":
        t.add_slot("word", External("Count", states=["seen"]), pool="counting")
    return t


def _python_count() -> grape.Node:
    class Count(grape.Node):
        seen = grape.State(int, default=0)

        def process(self, event: grape.Event) -> None:
            self.seen += 1

    return Count()


def rate(language: str, directory: Path) -> dict[str, float]:
    size = SIZES[language]
    if language == "storm":
        return {"events": size, "seconds": storm.keyed(size, 1_000)}
    timed = rows.Timed(data.KeyedEvents(size, 1_000))
    grape.run(
        "benchmarks.languages:topology",
        config={"language": language},
        feed={"word": timed},
        data=directory,
        env=environment(),
        profile={"counting": {"pool-limit": rows.WORKERS, "idle-timeout": 0}},
    )
    return {"events": size, "seconds": time.perf_counter() - timed.started}


def start(language: str, directory: Path) -> dict[str, float]:
    """A pool that is at 0 gets an event; until its worker is ready."""
    took: list[float] = []
    profile = {"counting": {"pool-min": 0, "pool-limit": 1, "idle-timeout": "1 ms"}}
    config = {"language": language}
    with grape.open(
        "benchmarks.languages:topology", config=config, data=directory, env=environment(), profile=profile
    ) as engine:
        for _ in range(STARTS + 1):
            while (numbers := engine.numbers().pools["counting"]).state != "empty" or numbers.workers_leaving:
                time.sleep(0.001)
            spawned = numbers.workers_spawned
            begun = time.perf_counter()
            engine.emit("word", key="k")
            while (
                numbers := engine.numbers().pools["counting"]
            ).workers_spawned == spawned or numbers.workers_starting:
                time.sleep(0.0005)
            took.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(took[1:])}


def main() -> None:
    name, language, directory = sys.argv[1:4]
    os.chdir(ROOT)
    print(json.dumps({"rate": rate, "start": start}[name](language, Path(directory))))


if __name__ == "__main__":
    main()
