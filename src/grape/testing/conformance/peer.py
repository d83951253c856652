"""The other end of one worker: its process, its socket, and what it prints."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct, structs

from grape.errors import ProtocolError
from grape.isolates.launch import sealed
from grape.model.topology import Limits
from grape.protocol.base import ToSpeaker
from grape.protocol.framing import FrameReader, frame
from grape.protocol.messages import VERSION, Beat, Drain, Hello, Refusal, ToWorker, Welcome
from grape.testing.conformance.app import topology
from grape.testing.conformance.cases import Case

PARTITIONS: Final = 4
POOL: Final = "main"
PATIENCE: Final = 20.0
_TO_END: Final = 5.0
_RECORD: Final = re.compile(rb"^\x1e([a-z]+)\x1e([^\x1e\n]*)\x1e([^\n]*)\n", re.MULTILINE)
"""A line that has a level."""

M = TypeVar("M", bound=Struct)


class Failed(AssertionError):
    """The worker did something else."""


class Peer:
    """One worker, started by ``command`` in ``directory`` with ``env``.

    Steps that every peer understands:

        welcome   a version
        raw       bytes (hex) to send as they are; "close": the stream ends behind them
        drain     the worker has to end by itself
        ends      it has to end: an exit code, or true for any
        beats     so many signs of life have to come
        prints    {"node", "text"}: a line of output
        logs      all records that it has written since the last such step, as far as they are given: [{"node", "level",
                  "text", "event", "trace", "fields"}, ...]

    Raises:
        Failed: it does not begin as it should.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: str,
        env: dict[str, str],
        case: Case,
        new_frames: Callable[[], FrameReader[Any]],
    ) -> None:
        self._command = command
        self._directory = directory
        self._env = env
        self._case = case
        self._new_frames = new_frames
        self.limits = structs.replace(Limits(), **case.limits)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._frames = self._new_frames()
        self._inbox: list[Struct] = []
        self._output = b""
        self._logged = 0
        """So much of it is looked at."""
        self._is_mute = False
        self._sock, other = socket.socketpair()
        with other:
            config = sealed(b"{}")
            words = [*self._command, "--config-fd", "0", "--fd", str(other.fileno()), "--parent", str(os.getpid())]
            self._process = subprocess.Popen(
                words,
                cwd=self._directory,
                env=self._env,
                stdin=config,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )
            os.close(config)
        try:
            hello = self._next(Hello, Refusal)
        except Failed as e:
            raise Failed(f"{e}{self._said()}") from None
        if isinstance(hello, Refusal):
            raise Failed(f"it refuses: {hello.text}")
        assert isinstance(hello, Hello)
        self.hello = hello
        described = hello.topology if hello.topology.slots else topology().spec()  # programs of lines describe nothing
        nodes = tuple(structs.replace(node, pool=POOL) for node in described.nodes)
        self.topology = structs.replace(described, name="conformance", outputs=("out",), nodes=nodes)

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
            case {"welcome": version}:
                self._welcome(version)
            case {"raw": text}:
                self._sock.sendall(bytes.fromhex(text))
                if step.get("close"):
                    self._sock.shutdown(socket.SHUT_WR)
            case {"drain": _}:
                self._send(Drain())
                self._ends(0)
            case {"ends": code}:
                self._ends(code)
            case {"beats": count}:
                for _ in range(count):
                    self._beat()
            case {"prints": what}:
                self._prints(what["node"], what["text"])
            case {"logs": wanted}:
                self._logs(wanted)
            case _:
                raise Failed(f"no such step: {step}")

    # ------------------------------------------------------------------ messages

    def _welcome(self, version: int = VERSION) -> None:
        now = time.time_ns() // 1000 - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        self._send(
            Welcome(
                version,
                POOL,
                "main.0",
                PARTITIONS,
                self.limits,
                frozenset(("out",)),
                frozenset((node, target) for node, target in self._case.unchained),
                boot_offset=now,
                heartbeat_timeout=self._case.heartbeat,
                topology=self.topology,
                peers=self._case.peers,
                levels=self._case.levels,
            )
        )

    def _send(self, message: ToWorker | ToSpeaker, *, torn: bool = False) -> None:
        """``torn``: byte by byte."""
        data = frame(message)
        for i in range(0, len(data), 1 if torn else len(data)):
            self._sock.sendall(data[i : i + 1] if torn else data)

    def _read(self, until: float) -> bool:
        """Take what comes, until some time; whether anything did.

        Raises:
            EOFError: the stream has ended.
        """
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

    def _next(self, *kinds: type[M]) -> M:
        """The next message of one of these kinds."""
        wanted = " or ".join(kind.__name__ for kind in kinds)
        until = time.monotonic() + PATIENCE
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                if isinstance(message, kinds):
                    return message
                self._meanwhile(message, wanted)
            if time.monotonic() > until:
                raise Failed(f"no {wanted} came within {PATIENCE:g} s")
            try:
                self._read(until)
            except EOFError:
                if self._inbox:
                    continue
                raise Failed(f"it {self._how_it_left()}, when {wanted} was expected") from None

    def _how_it_left(self) -> str:
        try:
            return f"ended ({self._process.wait(_TO_END)})"
        except subprocess.TimeoutExpired:
            return "has closed its socket, but goes on"

    def _meanwhile(self, message: Struct, wanted: str) -> None:
        """What comes while something else is waited for: signs of life are passed over."""
        if not isinstance(message, Beat):
            raise Failed(f"it sends {message!r:.500}, instead of {wanted}")

    # ------------------------------------------------------------------ life

    def _beat(self) -> None:
        until = time.monotonic() + self._case.heartbeat
        while True:
            for message in self._inbox:
                if isinstance(message, Beat):
                    self._inbox.remove(message)
                    return
            if time.monotonic() > until:
                raise Failed(f"no sign of life within {self._case.heartbeat:g} s")
            try:
                self._read(until)
            except EOFError:
                raise Failed("it ended, when a sign of life was expected") from None

    def _ends(self, code: int | bool) -> None:
        until = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < until:
                self._read(until)
        except EOFError:
            pass
        try:
            ended = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed("it goes on, although it should end") from None
        if code is not True and ended != code:
            raise Failed(f"it ended with {ended}, not with {code}")

    def _prints(self, node: str, text: str) -> None:
        until = time.monotonic() + PATIENCE
        wanted = re.compile(rf"\x1e[a-z]*\x1e{re.escape(node)}(\x1f[^\x1e]*)?\x1e{re.escape(text)}\n".encode())
        while not wanted.search(self._output):
            if time.monotonic() > until:
                raise Failed(f"it has not printed {text!r} marked with {node!r}, but {self._output!r:.500}")
            self._read(until)

    def _logs(self, wanted: list[dict[str, Any]]) -> None:
        """The last one is to be one that is never left out."""
        until = time.monotonic() + PATIENCE
        while len(found := _RECORD.findall(self._output, self._logged)) < len(wanted):
            if time.monotonic() > until:
                raise Failed(f"{len(found)} records, not {len(wanted)}: {self._output[self._logged :]!r:.600}")
            self._read(until)
        marks = list(_RECORD.finditer(self._output, self._logged))
        self._logged = marks[-1].end()
        for mark, record in zip(marks, wanted, strict=False):
            said = _record_of(mark)
            if len(marks) != len(wanted) or any(said[name] != value for name, value in record.items()):
                raise Failed(f"it logs {[_record_of(each) for each in marks]!r:.900}, not {wanted!r:.600}")


def _record_of(mark: re.Match[bytes]) -> dict[str, Any]:
    node, event, trace, fields = [*mark[2].decode().split("\x1f", 3), "", "", ""][:4]
    beside = json.loads(fields) if fields else {}
    level, text = mark[1].decode(), mark[3].decode()
    return {"node": node, "level": level, "text": text, "event": event, "trace": trace, "fields": beside}


def in_order_of_key(events: list[list[Any]]) -> dict[Any, list[Any]]:
    """What is emitted with one key has an order; each event begins with name and key."""
    found: dict[Any, list[Any]] = {}
    for event, key, *rest in events:
        found.setdefault((event, key), []).append(rest)
    return found
