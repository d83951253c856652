"""The same work as dataflows of Bytewax 0.21."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from benchmarks import data

BATCH = 1_000


def note(directory: str) -> None:
    with open(Path(directory) / f"time-{os.getpid()}", "a") as f:
        f.write(f"{time.time()}\n")


class Part(StatefulSourcePartition[Any, int]):
    """Events ``start``, ``start + step``, ... in batches."""

    def __init__(self, make: Any, size: int, start: int, step: int, resume: int | None, directory: str) -> None:
        self.make = make
        self.size = size
        self.step = step
        self.at = resume if resume is not None else start
        self.directory = directory
        note(directory)

    def next_batch(self) -> list[Any]:
        if self.at >= self.size:
            raise StopIteration
        end = min(self.size, self.at + BATCH * self.step)
        out = [self.make(i) for i in range(self.at, end, self.step)]
        self.at = self.at + len(out) * self.step
        return out

    def snapshot(self) -> int:
        return self.at


class Events(FixedPartitionedSource[Any, int]):
    def __init__(self, make: Any, size: int, directory: str) -> None:
        self.make = make
        self.size = size
        self.directory = directory

    def list_parts(self) -> list[str]:
        return ["0", "1"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Part:
        return Part(self.make, self.size, int(for_part), 2, resume_state, self.directory)


class Lines(StatefulSourcePartition[str, int]):
    """Every second block of lines of a text file."""

    def __init__(self, path: Path, part: int, resume: int | None, directory: str) -> None:
        self.file = path.open()
        self.part = part
        self.block = 0
        self.resume = resume or 0
        note(directory)

    def next_batch(self) -> list[str]:
        while True:
            out = self.file.readlines(100_000)
            if not out:
                raise StopIteration
            self.block += 1
            if self.block % 2 == self.part and self.block > self.resume:
                return out

    def snapshot(self) -> int:
        return self.block


class TextBlocks(FixedPartitionedSource[str, int]):
    def __init__(self, path: Path, directory: str) -> None:
        self.path = path
        self.directory = directory

    def list_parts(self) -> list[str]:
        return ["0", "1"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Lines:
        return Lines(self.path, int(for_part), resume_state, self.directory)


class CountingSink(StatelessSinkPartition[Any]):
    def __init__(self, directory: str, worker: int) -> None:
        self.directory = directory
        self.worker = worker
        self.count = 0

    def write_batch(self, items: list[Any]) -> None:
        self.count += len(items)

    def close(self) -> None:
        note(self.directory)
        (Path(self.directory) / f"events-{os.getpid()}-{self.worker}").write_text(str(self.count))


class Sink(DynamicSink[Any]):
    def __init__(self, directory: str) -> None:
        self.directory = directory

    def build(self, step_id: str, worker_index: int, worker_count: int) -> CountingSink:
        return CountingSink(self.directory, worker_index)


def count(state: int | None, value: Any) -> tuple[int, int]:
    state = (state or 0) + 1
    return state, state


def _keyed(size: int, keys: int, directory: str) -> Dataflow:
    flow = Dataflow("keyed")
    events = op.input("in", flow, Events(lambda i: (data.key_of(i, keys), data.PAYLOAD), size, directory))
    counted = op.stateful_map("count", events, count)
    op.output("out", counted, Sink(directory))
    return flow


def keyed_1k(size: int, directory: str) -> Dataflow:
    return _keyed(size, 1_000, directory)


def keyed_1m(size: int, directory: str) -> Dataflow:
    return _keyed(size, size // 2, directory)


def rotate(text: str) -> str:
    return text[1:] + text[0]


def chain(size: int, directory: str) -> Dataflow:
    flow = Dataflow("chain")
    payload = data.PAYLOAD
    events = op.input("in", flow, Events(lambda i: payload[i % 10 :] + payload[: i % 10], size, directory))
    for n in range(5):
        events = op.map(f"rotate{n}", events, rotate)
    op.output("out", events, Sink(directory))
    return flow


def wordcount(size: int, directory: str) -> Dataflow:
    flow = Dataflow("wordcount")
    path = data.text_file(Path("/tmp/grape-bench-text.txt"), size)
    lines = op.input("in", flow, TextBlocks(path, directory))
    words = op.flat_map("split", lines, str.split)
    keyed = op.key_on("key", words, str)
    counted = op.stateful_map("count", keyed, count)
    op.output("out", counted, Sink(directory))
    return flow
