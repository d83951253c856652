"""Objects that handlers write, under kills: in the own store and in another one, once, in the order of commits."""

from __future__ import annotations

import os
from collections import defaultdict
from functools import partial
from random import Random

import pytest

from grape import Event, Node, State, Topology
from grape.errors import GrapeError, StorageFailed
from grape.testing.machine import Granted
from grape.testing.simulator import Chaos, Simulator
from grape.transports.memory import Weakness

KEYS = ("k0", "k1", "k2")
LARGE = b"l" * 70_000


class Notes(Node):
    """Writes behind what its key has, in both storages; some fail at first, some write much, some remove."""

    emits = ("next",)
    seen = State(list[int])

    def process(self, event: Event) -> None:
        number, fails, size, removes, rekey = event.data
        self.seen.append(number)
        for storage in (self.storage, self.storage["there"]):
            before = storage.get(f"by/{event.key}") or b""
            storage.put(f"by/{event.key}", before.removeprefix(LARGE) + b"%d;" % number)
            if size:
                storage.put(f"large/{event.key}", LARGE + b"%d" % number)
            if removes:
                storage.remove(f"large/{event.key}")
        if event.attempt <= fails:
            raise ValueError("not yet")
        if rekey is not None:
            self.emit("next", [number, 0, 0, False, None], key=rekey)


class AsyncNotes(Notes):
    async def process(self, event: Event) -> None:  # type: ignore[override]
        number, fails, size, removes, rekey = event.data
        self.seen.append(number)
        for storage in (self.storage.aio, self.storage["there"].aio):
            before = await storage.get(f"by/{event.key}") or b""
            await storage.put(f"by/{event.key}", before + b"%d;" % number)
            if size:
                await storage.put(f"large/{event.key}", LARGE + b"%d" % number)
            if removes:
                await storage.remove(f"large/{event.key}")
        if event.attempt <= fails:
            raise ValueError("not yet")
        if rekey is not None:
            self.emit("next", [number, 0, 0, False, None], key=rekey)


class Second(Notes):
    def process(self, event: Event) -> None:
        for storage in (self.storage, self.storage["there"]):
            before = storage.get(f"second/{event.key}") or b""
            storage.put(f"second/{event.key}", before + b"%d;" % event.data[0])


def topology(node: type[Node], pool: str) -> Topology:
    t = Topology("notes")
    t.add_slot("in", node(name="Notes"), retries=3)
    t.add_slot("next", Second(), pool=pool)
    return t


@pytest.mark.parametrize("seed", range(int(os.environ.get("GRAPE_SIM_OBJECTS", "60"))))
def test_what_is_written_is_there_once_in_its_order(seed: int) -> None:
    rng = Random(seed)
    node = rng.choice((Notes, AsyncNotes))
    kills = {"worker_kill": 0.01, "inner_kill": 0.02, "engine_kill": 0.01, "kills": 6}
    weakness = rng.choice((None, Weakness(0.05, 0.05, 0.1, 0.1)))
    chaos = Chaos(weakness, **kills, lag=rng.choice((0.0, 0.2)))
    granted = Granted({"there": "write"}, frozenset({"there"}))
    build = partial(topology, node, rng.choice(("main", "other")))
    run = Simulator(build, seed, chaos=chaos, granted=granted)
    flaky = rng.choice((0.0, 0.3))
    away = Random(seed)

    def refuses(key: str) -> GrapeError | None:
        return StorageFailed("it is away") if away.random() < flaky else None

    # Reads that fail would fail their events: only what is written may be away.
    elsewhere = run.machine.elsewhere
    elsewhere.ships_fail = refuses
    numbers: dict[str, list[int]] = defaultdict(list)
    second: dict[str, list[int]] = defaultdict(list)
    large: dict[str, int | None] = {}
    for number in range(rng.randint(3, 40)):
        key, rekey = rng.choice(KEYS), rng.choice((None, *KEYS))
        data = [number, rng.choice((0, 0, 1, 2)), rng.choice((0, 0, 1)), rng.random() < 0.1, rekey]
        run.machine.add("in", data, key)
        numbers[key].append(number)
        if rekey is not None:
            second[rekey].append(number)
        if data[3]:
            large.pop(key, None)
        elif data[2]:
            large[key] = number
    run.run()
    machine = run.machine
    own, there = stored(run), {key: data for (_, key), (_, data) in elsewhere.objects.items()}
    assert own == there
    for key, expected in numbers.items():
        assert own[f"by/{key}"] == b"".join(b"%d;" % number for number in expected)
        wanted = large.get(key)
        assert own.get(f"large/{key}") == (None if wanted is None else LARGE + b"%d" % wanted)
    for key, expected in second.items():  # of other partitions: in any order
        assert sorted(own[f"second/{key}"].decode().split(";")[:-1], key=int) == sorted(map(str, expected), key=int)
    assert machine.app.unshipped_objects == machine.app.unshipped_bytes == 0
    run.stop()


def stored(run: Simulator) -> dict[str, bytes]:
    machine = run.machine
    found: dict[str, bytes] = {}
    for place, _ in machine.transport.scan(machine.app.objects, "object", b"notes\0", 1000):
        one = machine.engine.objects.stored(place)
        if one is not None:
            key = place.partition(b"\0")[2].decode()
            found[key] = machine.blobs.blobs[one.checksum] if one.blob else one.data
    return found
