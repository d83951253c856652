"""Plays the engine for one worker: starts its command, hands out works, looks at what comes back.

A step of a case is an object with one of these keys:

    work      events to hand out, [[event, key, data], ...], and under "gives" what has to come of them; beside it
              "partition", "careful", "named", "contexts" (one an event, -1 for none), "hops", "deadlines"
    begin     events to hand out, without waiting for what comes of them
    retry     a held event: {"hold", "node", "event": [event, key, data], "attempt", "rest"}; "gives"
    assign    {"partition", "epoch", "held", "empty"}
    revoke    a partition
    stale     as work, with "epoch": nothing may come back
    restart   the worker is killed and started anew; all partitions are assigned in the next epoch
    raw       bytes (hex) to send as they are; "close": the stream ends behind them
    drain     the worker has to end by itself
    ends      it has to end: an exit code, or true for any
    beats     so many signs of life have to come
    stuck     {"node"}: it has to report an overrun timeout, and end
    prints    {"node", "text"}: a line of output
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import structs

from grape.errors import ProtocolError
from grape.model import batch as codec
from grape.model.address import partition_of
from grape.model.cursor import Progress
from grape.model.stored import OUTPUT
from grape.model.topology import Limits, TopologySpec
from grape.protocol.framing import frame, worker_frames
from grape.protocol.messages import (
    VERSION,
    Announce,
    Ask,
    Assign,
    BatchItem,
    Beat,
    Drain,
    Emitted,
    FromWorker,
    Hello,
    Named,
    Refusal,
    Result,
    RetryItem,
    Revoke,
    Stuck,
    ToWorker,
    Values,
    Welcome,
    Work,
)
from grape.testing.conformance.app import topology
from grape.testing.conformance.cases import Case, same

PARTITIONS: Final = 4
_PATIENCE: Final = 20.0
_SILENCE: Final = 0.4
_POOL: Final = "main"
_OF_A_FAILURE: Final = ("node", "event", "key", "hold", "behind", "kind", "text", "trace", "final", "named")
_decode = msgspec.msgpack.Decoder().decode


class Failed(AssertionError):
    """The worker did something else."""


class Effects:
    """What works have done, put together."""

    def __init__(self) -> None:
        self.emits: defaultdict[str, list[list[Any]]] = defaultdict(list)
        self.states: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self.failures: list[dict[str, Any]] = []
        self.replies: list[list[Any]] = []
        self.timers: list[list[Any]] = []
        self.retried: list[int] = []
        self.announced: list[list[str]] = []
        self.counts: dict[str, int] = {}


class Driver:
    """One worker, started by ``command`` in ``directory``; with ``env``."""

    def __init__(self, command: Sequence[str], directory: str, env: dict[str, str], case: Case) -> None:
        self._command = command
        self._directory = directory
        self._env = env
        self._case = case
        self._limits = structs.replace(Limits(), **case.limits)
        self._epoch = 0
        self._seq = 0
        self._position = 0
        self._store: dict[tuple[str, int, bytes], bytes] = {}
        self._start()

    # ------------------------------------------------------------------ life

    def _start(self) -> None:
        self._sock, other = socket.socketpair()
        self._frames = worker_frames()
        self._inbox: list[FromWorker] = []
        self._output = b""
        self._is_mute = False
        with other:
            words = [*self._command, "--config", "{}", "--fd", str(other.fileno()), "--parent", str(os.getpid())]
            self._process = subprocess.Popen(
                words,
                cwd=self._directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )
        try:
            hello = self._next(Hello, Refusal)
        except Failed as e:
            raise Failed(f"{e}{self._said()}") from None
        if isinstance(hello, Refusal):
            raise Failed(f"it refuses: {hello.text}")
        assert isinstance(hello, Hello)
        self.hello = hello
        described = hello.topology if hello.topology.slots else topology().spec()  # lines cannot describe themselves
        whole = structs.replace(described, name="conformance", outputs=("out",))
        self.topology: TopologySpec = structs.replace(
            whole, nodes=tuple(structs.replace(node, pool=_POOL) for node in whole.nodes)
        )
        if self._case.welcome:
            self.welcome(VERSION)
            self._epoch += 1
            for number in range(PARTITIONS):
                self._send(Assign(number, self._epoch, [], not self._store))

    def welcome(self, version: int) -> None:
        now = time.time_ns() // 1000 - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        self._send(
            Welcome(
                version,
                _POOL,
                "main.0",
                PARTITIONS,
                self._limits,
                frozenset(("out",)),
                boot_offset=now,
                heartbeat_timeout=self._case.heartbeat,
                topology=self.topology,
            )
        )

    def close(self) -> None:
        """End it, with whatever it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._sock.close()

    # ------------------------------------------------------------------ messages

    def _send(self, message: ToWorker) -> None:
        self._sock.sendall(frame(message))

    def _read(self, until: float) -> bool:
        """Take what comes, until some time; whether anything did."""
        assert self._process.stdout is not None
        pipe, sock = self._process.stdout.fileno(), self._sock.fileno()
        ready, _, _ = select.select(
            [sock] if self._is_mute else [sock, pipe], [], [], max(0.0, until - time.monotonic())
        )
        if pipe in ready:
            text = os.read(pipe, 1 << 16)
            self._output += text
            self._is_mute = not text
        if sock in ready:
            try:
                data = self._sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            try:
                self._inbox += self._frames.feed(data)
                self._frames.check()
            except ProtocolError as e:
                raise Failed(f"what it sends is no message: {e}") from None
        return bool(ready)

    def _next(self, *kinds: type[FromWorker], patience: float = _PATIENCE) -> FromWorker:
        """The next message of one of these kinds. Signs of life are passed over, questions answered."""
        until = time.monotonic() + patience
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                if isinstance(message, kinds):
                    return message
                if isinstance(message, Ask):
                    found = [self._store.get((message.node, message.partition, key)) for key in message.keys]
                    self._send(Values(found[:2] or found))  # an answer may hold the first values only
                elif not isinstance(message, Beat):
                    raise Failed(f"it sends {message!r:.500}, instead of {' or '.join(k.__name__ for k in kinds)}")
            if time.monotonic() > until:
                raise Failed(f"no {' or '.join(k.__name__ for k in kinds)} came within {patience:g} s")
            try:
                self._read(until)
            except EOFError:
                if self._inbox:
                    continue
                code = self._process.wait(_PATIENCE)
                raise Failed(f"it ended ({code}), when {' or '.join(k.__name__ for k in kinds)} was expected") from None

    # ------------------------------------------------------------------ steps

    def run(self) -> None:
        """All steps of the case.

        Raises:
            Failed: the worker does something else than it should.
        """
        for number, step in enumerate(self._case.steps, 1):
            try:
                self._step(step)
            except Failed as e:
                raise Failed(f"step {number} ({next(iter(step))}): {e}{self._said()}") from None

    def _said(self) -> str:
        said = self._output.decode("utf-8", "replace").strip()
        return f"\n      it said: {said[-600:]}" if said else ""

    def _step(self, step: dict[str, Any]) -> None:
        match step:
            case {"work": events}:
                self._check(self._work(events, step), step.get("gives", {}))
            case {"begin": events}:
                self._seq += 1
                item = BatchItem(998, "998-", 0, len(events), _body(events, None, 0))
                self._send(Work(step.get("partition", 0), self._epoch, self._seq, [item]))
            case {"retry": held}:
                self._check(self._retry(held), step.get("gives", {}))
            case {"assign": assign}:
                held = [(node, key) for node, key in assign.get("held", [])]
                self._epoch = max(self._epoch, assign["epoch"])
                self._send(Assign(assign["partition"], assign["epoch"], held, assign.get("empty", True)))
            case {"revoke": number}:
                self._send(Revoke(number, self._epoch))
            case {"stale": events}:
                self._stale(events, step)
            case {"restart": _}:
                self.close()
                self._start()
            case {"raw": text}:
                self._sock.sendall(bytes.fromhex(text))
                if step.get("close"):
                    self._sock.shutdown(socket.SHUT_WR)
            case {"welcome": version}:
                self.welcome(version)
            case {"drain": _}:
                self._send(Drain())
                self._ends(0)
            case {"ends": code}:
                self._ends(code)
            case {"beats": count}:
                for _ in range(count):
                    self._beat()
            case {"stuck": what}:
                stuck = self._next(Stuck)
                assert isinstance(stuck, Stuck)
                if stuck.node != what["node"]:
                    raise Failed(f"it is stuck in {stuck.node}, not in {what['node']}")
                self._ends(True)
            case {"prints": what}:
                self._prints(what["node"], what["text"])
            case _:
                raise Failed(f"no such step: {step}")

    def _beat(self) -> None:
        until = time.monotonic() + self._case.heartbeat
        while True:
            for message in self._inbox:
                if isinstance(message, Beat):
                    self._inbox.remove(message)
                    return
            if time.monotonic() > until:
                raise Failed(f"no sign of life within the heartbeat-timeout of {self._case.heartbeat:g} s")
            self._read(until)

    def _ends(self, code: int | bool) -> None:
        until = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < until:
                self._read(until)
        except EOFError:
            pass
        try:
            ended = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed("it goes on, although it should end") from None
        if code is not True and ended != code:
            raise Failed(f"it ended with {ended}, not with {code}")

    def _prints(self, node: str, text: str) -> None:
        until = time.monotonic() + _PATIENCE
        wanted = re.compile(rf"\x1e[a-z]*\x1e{re.escape(node)}\x1e{re.escape(text)}\n".encode())
        while not wanted.search(self._output):
            if time.monotonic() > until:
                raise Failed(f"it has not printed {text!r} marked with {node!r}, but {self._output!r:.500}")
            self._read(until)

    # ------------------------------------------------------------------ works

    def _work(self, events: list[list[Any]], step: dict[str, Any]) -> Effects:
        """Hand out one batch, again and again until it is done."""
        number, effects = step.get("partition", 0), Effects()
        self._position += 1
        position, done = self._position, Progress()
        contexts = step.get("contexts")
        count = 0 if contexts is None else max(contexts) + 1
        body = _body(events, contexts, step.get("hops", 0))
        deadlines = {int(context): at for context, at in step.get("deadlines", {}).items()}
        while done.first < len(events):
            item = BatchItem(position, f"{position}-", 1_700_000_000_000_000, len(events), body, done, count)
            named = [
                Named(f"{position}-{n['index']}", n["node"], n["kind"], n["text"], n["death"])
                for n in step.get("named", [])
            ]
            self._seq += 1
            self._send(
                Work(number, self._epoch, self._seq, [item], [], step.get("careful", False), named, 0, deadlines)
            )
            while True:
                message = self._next(Result, Announce)
                if isinstance(message, Announce):
                    effects.announced.append([message.id.removeprefix(f"{position}-"), message.node])
                    continue
                assert isinstance(message, Result)
                for at, progress in message.done:
                    if at != position or progress.first < done.first:
                        raise Failed(f"progress {progress} of the batch {at}, after {done} of {position}")
                    done = progress
                self._take(message, number, effects)
                if self._seq in message.ended:
                    break
        return effects

    def _retry(self, held: dict[str, Any]) -> Effects:
        number, effects = held.get("partition", 0), Effects()
        name, key, data = held["event"]
        self._seq += 1
        item = RetryItem(
            held["hold"],
            held["node"],
            held.get("id", "held-1"),
            held.get("attempt", 2),
            0,
            1_700_000_000_000_000,
            codec.one(name, key, data),
            held.get("rest", False),
        )
        self._send(Work(number, self._epoch, self._seq, [], [item]))
        message = self._next(Result)
        assert isinstance(message, Result)
        self._take(message, number, effects)
        if self._seq not in message.ended:
            raise Failed("a work of one retry does not end with its result")
        return effects

    def _stale(self, events: list[list[Any]], step: dict[str, Any]) -> None:
        body = _body(events, None, 0)
        self._seq += 1
        item = BatchItem(999, "999-", 0, len(events), body)
        self._send(Work(step.get("partition", 0), step["epoch"], self._seq, [item]))
        until = time.monotonic() + _SILENCE
        while time.monotonic() < until:
            self._read(until)
            if any(not isinstance(message, Beat) for message in self._inbox):
                raise Failed(f"it answers what is not its own: {self._inbox!r:.500}")

    def _take(self, result: Result, number: int, effects: Effects) -> None:
        if (result.partition, result.epoch) != (number, self._epoch):
            raise Failed(f"a result of partition {result.partition} in epoch {result.epoch}")
        for emitted in result.emitted:
            for event, key, data in self._events(emitted, number):
                effects.emits[emitted.target].append([event, key, data])
        for timer in result.timers:
            for event, key, data in self._events(timer.emitted, number):
                effects.timers.append([timer.delay, event, key, data])
        for changes in result.states:
            for key_bytes, record in zip(changes.keys, changes.values, strict=True):
                if record is None:
                    self._store.pop((changes.node, number, key_bytes), None)
                else:
                    self._store[changes.node, number, key_bytes] = record
                effects.states[changes.node][key_bytes.decode()] = None if record is None else _decode(record)
        for failure in result.failures:
            effects.failures.append({name: getattr(failure, name) for name in _OF_A_FAILURE})
        effects.replies += [[reply.context, _decode(reply.data), reply.final] for reply in result.replies]
        effects.retried += result.retried
        for slot, count in result.counts.items():
            effects.counts[slot] = effects.counts.get(slot, 0) + count

    def _events(self, emitted: Emitted, number: int) -> list[tuple[str, str | None, Any]]:
        """The events of a body, which has to be what the engine takes."""
        try:
            codec.check_body(emitted.body, emitted.events, len(emitted.contexts))
        except ProtocolError as e:
            raise Failed(f"the body of an emit: {e}") from None
        found = []
        for run in codec.runs_of(emitted.body):
            names, keys, data = codec.names_of(run), codec.keys_of(run), codec.data_of(run)
            for i, name in enumerate(names):
                key = None if keys is None else keys[i]
                found.append((name, key, None if data is None else data[i]))
                place = number if key is None or emitted.target.startswith(OUTPUT) else partition_of(key, PARTITIONS)
                if emitted.partition != place:
                    raise Failed(f"an event with the key {key!r} for partition {emitted.partition}, not {place}")
        return found

    # ------------------------------------------------------------------ what should come of it

    def _check(self, effects: Effects, gives: dict[str, Any]) -> None:
        for target, wanted in gives.get("emits", {}).items():
            found = effects.emits.get(target, [])
            if not same(_by_key(found), _by_key(wanted)):
                raise Failed(f"to {target!r} it emits {found!r:.600}, not {wanted!r:.600}")
        if "emits" in gives and effects.emits.keys() - gives["emits"].keys():
            raise Failed(f"it emits to {sorted(effects.emits)}, not only to {sorted(gives['emits'])}")
        for what in ("states", "replies", "timers", "retried", "announced", "counts"):
            if what in gives and not same(_plain(getattr(effects, what)), gives[what]):
                raise Failed(f"{what}: {_plain(getattr(effects, what))!r:.600}, not {gives[what]!r:.600}")
        if len(effects.failures) != len(gives.get("failures", [])):
            raise Failed(f"failures: {effects.failures!r:.800}, not {gives.get('failures', [])}")
        for failure, fields in zip(effects.failures, gives.get("failures", []), strict=True):
            for name, value in fields.items():
                said = failure[name]
                if not (value in said if name in ("text", "trace") else same(said, value)):
                    raise Failed(f"a failure with {name}={said!r:.300}, not {value!r}: {failure!r:.600}")


def _body(events: list[list[Any]], contexts: list[int] | None, hops: int) -> bytes:
    """Consecutive events of one name are a run."""
    parts: list[bytes] = []
    start = 0
    while start < len(events):
        end = start
        while end < len(events) and events[end][0] == events[start][0]:
            end += 1
        run = events[start:end]
        meta = codec.RunMeta([run[0][0]], hops=hops, contexts=None if contexts is None else contexts[start:end])
        keys, data = [key for _, key, _ in run], [value for _, _, value in run]
        parts.append(
            codec.encode_run(
                meta, len(run), None if set(keys) == {None} else keys, None if all(v is None for v in data) else data
            )
        )
        start = end
    return b"".join(parts)


def _by_key(events: list[list[Any]]) -> dict[Any, list[Any]]:
    """What is emitted with one key has an order."""
    found: dict[Any, list[Any]] = {}
    for event, key, data in events:
        found.setdefault((event, key), []).append(data)
    return found


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, defaultdict) else value
