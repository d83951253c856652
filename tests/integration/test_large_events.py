"""Payloads of megabytes: beside the log while they wait, whole wherever they are, gone when nothing has them."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest

import grape
from command import grape as run_grape
from grape.errors import GrapeError
from integration.test_eager import killing
from serving import until

MIB = 1 << 20
APP = """
from grape import Node, State, Topology


class Take(Node):
    def process(self, event):
        self.emit("check", event.data, key=event.key)


class Check(Node):
    seen = State(list, default=[])

    def process(self, event):
        if event.data == "seen":
            self.reply(self.seen)
            return
        number, _, body = event.data.partition(" ")
        if body != number * (len(body) // len(number)):
            raise ValueError("it is not whole")
        if number == "13":
            raise ValueError("an unlucky one")
        self.seen = [*self.seen, int(number)]


class Echo(Node):
    def process(self, event):
        self.reply(event.data)


t = Topology("large")
t.add_slot("take", Take())
t.add_slot("check", Check(), pool="other")
t.add_slot("echo", Echo(), pool="other")
"""


def payload(number: int) -> str:
    return f"{number} {str(number) * (3 * MIB // len(str(number)))}"


def files(data: Path) -> list[Path]:
    return [path for path in (data / "large").iterdir() if path.name != "lock"]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(APP)
    return path


def test_a_call_with_megabytes_both_ways(app: Path, tmp_path: Path) -> None:
    data = tmp_path / "d"
    with grape.open(app, data=data, workers=1) as engine:
        assert engine.call("echo", payload(7)) == payload(7)
        until(lambda: not files(data))


def test_they_wait_beside_the_log_and_dead_letters_have_theirs(app: Path, tmp_path: Path) -> None:
    data = tmp_path / "d"
    with grape.open(app, data=data, workers=1) as engine:
        for number in range(10, 20):
            engine.emit("take", payload(number), key="k")
        until(lambda: engine.call("check", "seen", key="k") == [n for n in range(10, 20) if n != 13])
        until(lambda: len(files(data)) == 1)
    assert (data / "data.mdb").stat().st_size < 2 * MIB
    (letter,) = map(json.loads, run_grape("dead", "list", "--data", data).stdout.splitlines())
    shown = json.loads(run_grape("dead", "show", letter["id"], "--data", data).stdout)
    assert shown["data"] == payload(13)

    backup = tmp_path / "backup"
    assert run_grape("backup", backup, "--data", data).returncode == 0
    assert run_grape("restore", backup, "--data", tmp_path / "e").returncode == 0
    assert run_grape("doctor", "--data", tmp_path / "e").returncode == 0
    assert run_grape("dead", "drop", letter["id"], "--data", data).returncode == 0
    with grape.open(app, data=data, workers=1):
        until(lambda: not files(data))
    shown = json.loads(run_grape("dead", "show", letter["id"], "--data", tmp_path / "e").stdout)
    assert shown["data"] == payload(13)


def test_kills(app: Path, tmp_path: Path) -> None:
    """Engines and workers die; every payload is seen once, whole, and nothing is left."""
    data = tmp_path / "d"
    rng = random.Random(1)
    done = deaths = 0
    while done < 60 or deaths < 4:
        with contextlib.suppress(GrapeError), grape.open(app, data=data, workers=1) as engine:
            victims = ["worker", "engine", "worker", "engine"] if deaths < 4 else []
            with killing(victims, rng):
                while done < 60 or victims:  # until it dies
                    number = 100 + done
                    engine.emit("take", payload(number), key=f"k{done % 3}", id=f"id{number}")
                    done += 1
        deaths += bool(victims)
    with grape.open(app, data=data, workers=1) as engine:
        engine.emit("take", payload(100 + done), key=f"k{done % 3}", id=f"id{100 + done}")
        done += 1
        seen = [[100 + n for n in range(first, done, 3)] for first in range(3)]
        until(lambda: [engine.call("check", "seen", key=f"k{n}") for n in range(3)] == seen)
        until(lambda: not files(data))
