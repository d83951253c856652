"""Killed between a commit and what it lets go of: tools see what the heads say, and the next start takes it out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command import grape as run_grape

from grape.model.address import PartitionId
from grape.store.reader import Reader
from grape.tools.directory import Checkup, Directory

ROOT = Path(__file__).parents[2]
APP = """
import grape

t = grape.Topology("letting")
t.add_output("out")


class Ask(grape.Node):
    def process(self, event):
        self.emit("out", [event.data, self.call("double", event.data, key=f"{event.data}")])


class Double(grape.Node):
    def process(self, event):
        self.reply(event.data * 2)


t.add_slot("in", Ask())
t.add_slot("double", Double())
"""
RUN = """
import os, signal, sys
import grape
from grape.transports.embedded import EmbeddedTransport
from app import t

left, trim = int(sys.argv[1]), EmbeddedTransport.trim


def counted(self, log, position, drops=()):
    # The commit that says so is durable, and nobody has heard what it lets go of.
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if left >= 0:
        return  # lost by the same crash
    trim(self, log, position, drops)


EmbeddedTransport.trim = counted
grape.run(
    t, feed={"in": "in.jsonl"}, take={"out": "out.jsonl"}, data="data", inline=True, partitions=2
)
"""
EVENTS = 200


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        (folder / "app.py").write_text(APP)
        (folder / "in.jsonl").write_text("".join(f"{json.dumps(n)}\n" for n in range(EVENTS)))

    def run(self, dies_at: int = -1) -> int:
        return subprocess.run([sys.executable, "-c", RUN, str(dies_at)], cwd=self.folder, check=False).returncode

    @property
    def taken(self) -> list[list[int]]:
        return sorted(json.loads(line)["data"] for line in (self.folder / "out.jsonl").read_text().splitlines())

    def lying(self) -> dict[str, int]:
        """How many batches lie in the logs, whatever the heads say."""
        reader = Reader(self.data)
        try:
            record = Directory(reader).app(None)
            logs = {
                name: sum(
                    reader.waiting(PartitionId(record.id, number, n), 0).batches for n in range(record.partitions)
                )
                for name, number in record.logs.items()
            }
        finally:
            reader.close()
        return {name: batches for name, batches in logs.items() if batches}

    def waiting(self) -> dict[str, int]:
        """As the doctor counts."""
        with Checkup(self.data) as checkup:
            assert checkup.run(None) == []
            return {report.title: report.events for report in checkup.logs if report.events or report.batches}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_orderly_end_leaves_empty_logs(place: Place) -> None:
    assert place.run() == 0
    assert place.taken == [[n, 2 * n] for n in range(EVENTS)]
    assert place.lying() == {}
    assert place.waiting() == {}


def test_a_kill_between_commit_and_trim_loses_nothing_and_leaves_nothing(place: Place) -> None:
    """F4, F11: at each of the first moments at which something is let go of."""
    died = 0
    for dies_at in (1, 2, 4, 8):
        shutil.rmtree(place.data, ignore_errors=True)
        (place.folder / "out.jsonl").unlink(missing_ok=True)
        killed = place.run(dies_at)
        assert killed in (0, -9)
        died += killed == -9
        if killed:
            assert place.lying() != {}
            doctor = run_grape("doctor", "--data", place.data)
            assert doctor.returncode == 0, doctor.stdout
        assert place.run() == 0
        assert place.taken == [[n, 2 * n] for n in range(EVENTS)]
        assert place.lying() == {}
    assert died >= 2


def test_what_a_head_is_past_does_not_wait_also_if_it_lies_there(place: Place) -> None:
    """All that the run let go of was lost: nothing waits of it, neither for the tools nor for the next start."""
    assert place.run(1 << 40) == 0
    lying = place.lying()
    assert {"main", "?main", ">out"} <= lying.keys()
    assert place.waiting() == {}
    assert run_grape("log", "list", "--data", place.data).stdout == ""
    doctor = run_grape("doctor", "--data", place.data)
    assert (doctor.returncode, "whole" in doctor.stdout) == (0, True)
    assert "0 events not taken in 0 batches" in doctor.stdout
    repaired = run_grape("repair", "--data", place.data)
    assert repaired.returncode == 0, repaired.stderr
    assert place.lying() == lying
    assert place.run() == 0  # nothing has come
    assert place.lying() == {}
    assert place.taken == [[n, 2 * n] for n in range(EVENTS)]
