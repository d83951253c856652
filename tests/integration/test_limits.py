"""Whatever a handler does too much of: the limits hold, the error is that event's, memory stays bounded."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.command import grape


class Ran:
    def __init__(self, done: subprocess.CompletedProcess[str], data: Path) -> None:
        self.code = done.returncode
        self.stderr = done.stderr
        self.data = data
        lines = done.stdout.splitlines()
        self.summary: dict[str, Any] = json.loads(lines[-1]) if lines else {}

    @property
    def dead(self) -> list[dict[str, Any]]:
        listed = grape("dead", "list", "--json", "--data", self.data)
        assert listed.returncode == 0, listed.stderr
        return [json.loads(line) for line in listed.stdout.splitlines()]

    def peak(self, who: str) -> float:
        """MB of private memory."""
        return float(self.summary["peak_private_mb"][who])


def run(tmp_path: Path, code: str, lines: list[str], *more: object) -> Ran:
    (tmp_path / "app.py").write_text(code)
    (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in lines))
    data = tmp_path / "data"
    command = ("run", "app.py", "--feed", "line=lines.txt", "--data", data, "--workers", 1, "--summary", "json", *more)
    return Ran(grape(*command, cwd=tmp_path, timeout=200), data)


HEAD = "from grape import Node, State, Topology\nt = Topology('limits')\n"


def test_one_event_emits_a_million(tmp_path: Path) -> None:
    """F39: in one logical commit, in batches, with memory that does not grow with it."""
    code = HEAD + (
        "class Fan(Node):\n"
        "    def process(self, event):\n"
        "        for i in range(int(event.data)):\n"
        "            self.emit('leaf', i, key=f'k{i % 1000}')\n"
        "class Leaf(Node):\n"
        "    seen = State(int, default=0)\n"
        "    def process(self, event):\n"
        "        self.seen += 1\n"
        "t.add_slot('line', Fan())\n"
        "t.add_slot('leaf', Leaf())\n"
    )
    ran = run(tmp_path, code, ["1000000", "7"])
    assert ran.code == 0, ran.stderr
    assert ran.summary["slots"]["leaf>Leaf"] == 1_000_007
    assert ran.peak("main.0") < 400
    assert ran.peak("engine") < 400


def test_one_event_emits_more_than_a_result_may_hold(tmp_path: Path) -> None:
    """F39"""
    code = HEAD + (
        "class Fan(Node):\n"
        "    def process(self, event):\n"
        "        for _ in range(int(event.data)):\n"
        "            self.emit('leaf', 'x' * 1_000_000)\n"
        "t.add_slot('line', Fan(), retries=0)\n"
        "@t.slot('leaf')\n"
        "def leaf(text: str) -> None:\n"
        "    pass\n"
    )
    ran = run(tmp_path, code, ["1", "2", "100", "3", "4"])
    assert ran.code == 1, ran.stderr
    (letter,) = ran.dead
    assert letter["kind"] == "too-large"
    assert "max-result" in letter["text"]
    assert ran.summary["slots"]["leaf>leaf"] == 10
    assert "replaced" not in ran.stderr


def test_what_goes_to_several_pools_counts_for_each(tmp_path: Path) -> None:
    """Else the frame of the result would be too long, and the worker end over it again and again."""
    code = HEAD + (
        "class Fan(Node):\n"
        "    def process(self, event):\n"
        "        for _ in range(int(event.data)):\n"
        "            self.emit('leaf', 'x' * 1_000_000)\n"
        "t.add_slot('line', Fan(), retries=0)\n"
        "@t.slot('leaf', pool='one')\n"
        "def one(text: str) -> None:\n"
        "    pass\n"
        "@t.slot('leaf', pool='two')\n"
        "def two(text: str) -> None:\n"
        "    pass\n"
    )
    ran = run(tmp_path, code, ["1", "60", "2"])
    assert ran.code == 1, ran.stderr
    (letter,) = ran.dead
    assert letter["kind"] == "too-large"
    assert ran.summary["slots"]["leaf>one"] == ran.summary["slots"]["leaf>two"] == 3
    assert "replaced" not in ran.stderr


def test_many_events_emit_much_each(tmp_path: Path) -> None:
    """Chunks follow what is emitted in bytes, not only in events."""
    code = HEAD + (
        "class Fan(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('leaf', event.data * 4_000_000)\n"
        "t.add_slot('line', Fan())\n"
        "@t.slot('leaf')\n"
        "def leaf(text: str) -> None:\n"
        "    assert len(text) == 4_000_000\n"
    )
    ran = run(tmp_path, code, ["x"] * 150)
    assert ran.code == 0, ran.stderr
    assert ran.summary["slots"]["leaf>leaf"] == 150
    assert "replaced" not in ran.stderr
    assert ran.peak("main.0") < 500


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_chain_whose_effects_are_too_much_together(tmp_path: Path, kind: str) -> None:
    """No event of the chain is over the limit; the root fails, alone."""
    code = HEAD + (
        "class Fan(Node):\n"
        "    def process(self, event):\n"
        "        for i in range(int(event.data)):\n"
        "            self.emit('middle', i)\n"
        "class Middle(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('leaf', 'x' * 2_000_000)\n"
        "t.add_slot('line', Fan(), emits='middle', retries=0)\n"
        "t.add_slot('middle', Middle(), emits='leaf', retries=0)\n"
        "@t.slot('leaf', chain=False)\n"
        f"{kind} leaf(text: str) -> None:\n"
        "    pass\n"
    )
    ran = run(tmp_path, code, ["1", "2", "50", "3", "4"])
    assert "replaced" not in ran.stderr
    if kind == "def":
        assert ran.code == 1, ran.stderr
        (letter,) = ran.dead
        assert (letter["event"], letter["kind"]) == ("line", "too-large")
        assert "what chained from it" in letter["text"]
        assert ran.summary["slots"]["leaf>leaf"] == 10
    else:  # beside async events, whose effects stand, those of the chain fail that pass the limit
        assert {(letter["event"], letter["kind"]) for letter in ran.dead} == {("middle", "too-large")}
        assert ran.summary["slots"]["leaf>leaf"] + len(ran.dead) == 60


def test_a_state_value_that_grows_without_end(tmp_path: Path) -> None:
    """F47: it fails at max-event, for its key alone."""
    code = HEAD + (
        "class Keep(Node):\n"
        "    text = State(list[str])\n"
        "    def process(self, event):\n"
        "        self.text.append(event.data * 1_000_000 if event.key == 'a' else event.data)\n"
        "class Split(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('word', event.data, key=event.data)\n"
        "t.add_slot('line', Split())\n"
        "t.add_slot('word', Keep(), retries=0)\n"
    )
    ran = run(tmp_path, code, ["a", "b"] * 12)
    assert ran.code == 1, ran.stderr
    assert {(letter["key"], letter["kind"]) for letter in ran.dead} == {("a", "too-large")}
    assert "max-event" in ran.dead[0]["text"]
    assert len(ran.dead) == 12 - 8
    listed = grape("state", "get", "--data", ran.data, "--node", "Keep", "b")
    assert listed.returncode == 0, listed.stderr
    assert len(json.loads(listed.stdout)["state"]["text"]) == 12


def test_large_states_of_many_keys(tmp_path: Path) -> None:
    """What is written is bounded in bytes, not only in events."""
    code = HEAD + (
        "class Keep(Node):\n"
        "    text = State(str, default='')\n"
        "    def process(self, event):\n"
        "        self.text = 'y' * 3_000_000\n"
        "class Split(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('word', key=event.data)\n"
        "t.add_slot('line', Split())\n"
        "t.add_slot('word', Keep())\n"
    )
    ran = run(tmp_path, code, [f"k{i}" for i in range(100)], "--partitions", 2)
    assert ran.code == 0, ran.stderr
    assert "replaced" not in ran.stderr
    assert ran.peak("main.0") < 500


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 330 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=330m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_the_source_and_then_the_run(tmp_path: Path, small_disk: Path) -> None:
    """F17: what was accepted is worked off, nothing is lost, and with more room it goes on."""
    code = HEAD + (
        "class Keep(Node):\n"
        "    text = State(str, default='')\n"
        "    def process(self, event):\n"
        "        self.text = event.data\n"
        "class Split(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('word', event.data, key=event.data[:10])\n"
        "t.add_slot('line', Split())\n"
        "t.add_slot('word', Keep())\n"
    )
    (tmp_path / "app.py").write_text(code)
    lines = [f"{i:010d}" + "z" * 5_000 for i in range(20_000)]
    (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in lines))
    command = ("run", "app.py", "--feed", "line=lines.txt", "--data", small_disk / "data")
    full = grape(*command, timeout=200, cwd=tmp_path)
    assert full.returncode == 3, full.stderr
    assert "kept in reserve" in full.stderr
    assert "Traceback" not in full.stderr
    subprocess.run(["mount", "-o", "remount,size=900m", small_disk], check=True)
    done = grape(*command, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = grape("state", "list", "--data", small_disk / "data")
    assert len(listed.stdout.splitlines()) == 20_000


RUNAWAY = HEAD + (
    "import os\n"
    "class Amp(Node):\n"
    "    def process(self, event):\n"
    "        if not os.environ.get('MENDED'):\n"
    "            for i in range(3):\n"
    "                self.emit('amp', 'p' * 3000, key=f'{i}{event.hops}')\n"
    "class Other(Node):\n"
    "    def process(self, event): pass\n"
    "if not os.environ.get('GONE'):\n"
    "    t.add_slot('amp', Amp())\n"
    "t.add_slot('other', Other())\n"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_runaway_app_is_stopped_and_there_are_two_ways_back(tmp_path: Path, small_disk: Path) -> None:
    """F18: mended code works off what waits in what is left of the room; giving it up needs no room at all."""
    (tmp_path / "app.py").write_text(RUNAWAY)
    (tmp_path / "in.jsonl").write_text('"begin"\n')

    def run(data: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return grape("run", "app.py", "--data", data, "--workers", 1, *more, timeout=200, cwd=tmp_path)

    data = small_disk / "data"
    stopped = run(data, "--feed", "amp=in.jsonl")
    assert stopped.returncode == 3, stopped.stderr
    assert "app 'limits' eats the reserve of the disk" in stopped.stderr
    assert "Event 'amp' was emitted" in stopped.stderr
    assert "(by Amp)" in stopped.stderr
    refused = run(data, "--env", "GONE=1", "--drop-slot", "amp")
    assert refused.returncode == 2, refused.stderr
    assert "--discard-slot instead of --drop-slot" in refused.stderr
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", data, copy], check=True)
    mended = run(data, "--env", "MENDED=1")
    assert mended.returncode == 0, mended.stderr
    subprocess.run(["rm", "-r", data], check=True)
    subprocess.run(["cp", "-r", copy, data], check=True)
    given_up = run(data, "--env", "GONE=1", "--discard-slot", "amp")
    assert given_up.returncode == 0, given_up.stderr
    assert "events were given up without dead letters" in given_up.stderr


def test_what_is_nested_too_deep_is_one_events_error_at_every_door(tmp_path: Path) -> None:
    """Whoever reads a value is somewhere in a stack of his own: what is let in can be read everywhere."""
    code = HEAD + (
        "class Read(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('again', event.data)\n"
        "class Nest(Node):\n"
        "    last = State(list, default=[])\n"
        "    def process(self, event):\n"
        "        deep = event.data\n"
        "        for _ in range(300 if event.data == [7] else 1):\n"
        "            deep = [deep]\n"
        "        self.emit('out', deep)\n"
        "t.add_slot('json', Read(), retries=0)\n"
        "t.add_slot('again', Nest(), retries=0)\n"
        "t.add_output('out')\n"
    )
    (tmp_path / "app.py").write_text(code)
    deep = (1, 255, 256, 257, 700, 950, 970, 980, 986, 5_000)
    lines = ["[7]", *("[" * depth + "]" * depth for depth in deep), '{"b":2}']
    (tmp_path / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))
    command = ("run", "app.py", "--feed", "json=in.jsonl", "--take", "out=out.jsonl", "--data", tmp_path / "data")
    ran = Ran(grape(*command, "--summary", "json", cwd=tmp_path, timeout=200), tmp_path / "data")
    assert ran.code == 1, ran.stderr
    assert "replaced" not in ran.stderr
    found = sorted((one["node"], one["kind"]) for one in ran.dead)
    assert found == [("", "bad-json"), *[("", "bad-value")] * 6, ("Nest", "bad-value"), ("Nest", "bad-value")]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_what_a_worker_nests_too_deep_is_refused_before_another_reads_it(tmp_path: Path) -> None:
    """A program that speaks the protocol by itself may send anything."""
    code = HEAD + (
        "import sys\n"
        "from msgspec import Raw\n"
        "from grape.model import values\n"
        "class Hostile(Node):\n"
        "    def process(self, event):\n"
        "        import grape.worker.emits as emits\n"
        "        emits.to_value = lambda data, most: Raw(b'\\x91' * int(data) + b'\\xc0') if data != '0' else data\n"
        "        self.emit('again', event.data)\n"
        "class Read(Node):\n"
        "    def process(self, event):\n"
        "        self.emit('out', 1)\n"
        "t.add_pool('other')\n"
        "t.add_slot('line', Hostile(), retries=0)\n"
        "t.add_slot('again', Read(), pool='other', retries=0)\n"
        "t.add_output('out')\n"
    )
    ran = run(tmp_path, code, ["0", "500", "800", "930", "945", "950", "955", "960", "0"], "--take", "out=out.jsonl")
    assert ran.code == 1, ran.stderr
    assert {one["node"] for one in ran.dead} == {"Hostile"}
    assert "worker other" not in ran.stderr
