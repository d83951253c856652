"""Programs that read events as lines of JSON on standard input, and write what they did on standard output.

An event is one line, its answer too, unless that says ``"more": true``; an empty line is the answer that nothing was
done. Lines are written ahead, so that a program is never waited for without need, but for events of one key: the next
one goes out when the last one was answered, with the state that this has left. A node that asks for objects gets one
event at a time, so that the line behind its question is the answer.

Which event a line answers follows from its place alone, unless the answers name their events. So once a line is none,
nothing can be said of those behind it: its event fails, and the program is started anew.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, to_builtins

from grape.authoring.objects import NodeStorage
from grape.errors import GrapeError, ProtocolError, TooLarge
from grape.model.address import check_key, check_timer_name
from grape.model.foreign import Peers
from grape.model.levels import DEFAULT, LEVELS, Levels, is_shown
from grape.model.topology import Limits
from grape.model.values import decode, encode, seconds, to_value
from grape.protocol.base import Answered, Emits, Failed, Ran, Run, StateChange
from grape.protocol.messages import Welcome
from grape.worker.adapter.objects import PAGE, RunObjects, kind_of
from grape.worker.adapter.speaker import Gone, Progressed, how_it_ended, start
from grape.worker.emits import Names
from grape.worker.logs import fields_text
from grape.worker.output import FIELD, MARK

_AHEAD: Final = 1024
_AHEAD_BYTES: Final = 256 << 10
"""Events, and bytes of them, that may be unanswered."""
_READ: Final = 256 << 10
_MAX_LINE: Final = 128 << 20
_HAND_IN_SECONDS: Final = 1.0
_HAND_IN_BYTES: Final = 4 << 20
_PATIENCE: Final = 5.0

_to_json = msgspec.json.Encoder().encode


class Emission(Struct, forbid_unknown_fields=True):
    """One event that is emitted. ``key`` null: none; left out: that of the event. ``delay`` in seconds; ``timer``: its
    name."""

    event: str
    data: Any = None
    key: str | UnsetType | None = UNSET
    delay: float | None = None
    timer: str | None = None


class Answer(Struct, forbid_unknown_fields=True):
    """A line of the program. ``id``: of the event that it answers, to be checked. ``emit`` is one name, with ``data``,
    ``key``, ``delay`` and ``timer`` beside it, or a list. ``cancel``: names of timers; before what is emitted.
    ``log``: text for the log, with ``level``, and ``fields`` beside it."""

    id: str | None = None
    emit: str | list[Emission] | None = None
    data: Any = None
    key: str | UnsetType | None = UNSET
    delay: float | None = None
    timer: str | None = None
    cancel: str | list[str] | None = None
    state: dict[str, Any] | None = None
    reply: Any = UNSET
    error: str | None = None
    kind: str = "error"
    trace: str = ""
    log: str | None = None
    level: str = "info"
    fields: dict[str, Any] | None = None
    more: bool = False

    @property
    def is_empty(self) -> bool:
        return (
            self.emit is None
            and self.cancel is None
            and self.state is None
            and self.reply is UNSET
            and self.error is None
        )

    def emissions(self) -> list[Emission]:
        if isinstance(self.emit, str):
            return [Emission(self.emit, self.data, self.key, self.delay, self.timer)]
        return self.emit or []

    def cancelled(self) -> list[str]:
        return [self.cancel] if isinstance(self.cancel, str) else self.cancel or []


class Question(Struct, forbid_unknown_fields=True, rename={"as_": "as", "is_tried": "try"}):
    """A line of the program that asks for objects, before its answer. ``text``, ``base64``, ``file``: what is put; a
    file is also where what is got goes. ``after``: where a list goes on. ``is_tried``: if it cannot be done the event
    need not fail."""

    object: Literal["put", "get", "stat", "list", "remove"]
    key: Any = UNSET
    prefix: Any = ""
    id: str | None = None
    namespace: Any = None
    text: str | None = None
    base64: bytes | None = None
    file: str | None = None
    as_: Literal["text", "base64"] = "text"
    start: Any = 0
    end: Any = None
    after: str = ""
    content_type: Any = UNSET
    tags: Any = UNSET
    user: Any = UNSET
    time: Any = UNSET
    ttl: Any = UNSET
    is_tried: bool = False

    def about(self) -> dict[str, Any]:
        """What is put beside the bytes."""
        names = ("content_type", "tags", "user", "time", "ttl")
        return {name: value for name in names if (value := getattr(self, name)) is not UNSET}


_NOTHING: Final = Answer()
_NIL: Final = Raw(b"\xc0")
_Emit = tuple[int, str, Raw, str | bool | None, int, str | None]
_answer = msgspec.json.Decoder(Answer).decode
_question = msgspec.json.Decoder(Question).decode
_plain_question = msgspec.json.Decoder(dict[str, Any]).decode


class LinesSpeaker:
    """See the module."""

    is_exact = True

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._name = os.path.basename(argv[0])
        self._launch()

    def _launch(self) -> None:
        self._program = start(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._to, self._from = self._program.stdin.fileno(), self._program.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._unsent = bytearray()
        self._rest = bytearray()
        self._names_events = False

    def _start_anew(self) -> None:
        """
        Raises:
            Gone: it cannot be started any more.
        """
        self._program.kill()
        self._program.wait()
        for pipe in (self._program.stdin, self._program.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._launch()
        except OSError as e:
            raise Gone(f"{self._name} cannot be started anew: {e}") from None

    def welcome(self, message: Welcome) -> None:
        topology = message.topology
        assert topology is not None
        self._names = Names(topology.name, [*topology.events, *topology.outputs], (), dict(message.peers))
        self._states = {node.name: frozenset(state.name for state in node.states) for node in topology.nodes}
        self._asks = {node.name for node in topology.nodes if node.objects}
        self._limits = message.limits
        self._levels = message.levels

    def setup(self) -> None:
        """It cannot say."""

    def change_peers(self, peers: Peers) -> None:
        self._names.change_peers(peers)

    def change_levels(self, levels: Levels) -> None:
        self._levels = levels

    def run(self, run: Run, progressed: Progressed, objects: RunObjects) -> Iterator[Ran]:
        pending = _Pending(run, 1 if run.node in self._asks else _AHEAD)
        effects = _Effects(run, self._names, self._states[run.node], self._limits)
        handed_in = time.monotonic()
        self._check_silent()
        while True:
            while not effects.has_failed and pending.may_send(len(self._unsent)):
                try:
                    self._unsent += pending.next_line(effects)
                except GrapeError as e:
                    if not pending.out:
                        effects.fail(pending.sent - 1, e)
                    else:
                        pending.take_back()  # when those before it have been answered
                    break
            if effects.has_failed and pending.out == 0:
                yield effects.take()
                return
            for line in self._lines():
                if not pending.out:
                    raise ProtocolError(f"a line that answers nothing: {line[:200]!r}")
                try:
                    question = self._question(line, run.node, pending.id)
                    if question is not None:
                        self._unsent += effects.ask(question, objects.storage, pending.answered)
                        continue
                    answer = self._answer(line, pending.id)
                    if answer.log is not None:
                        self._log(answer, run, pending.id)
                    if effects.add(pending.answered, answer, len(line)):
                        pending.pop()
                        if effects.failed is not None:
                            yield effects.take()
                except _Lost as e:
                    self._start_anew()
                    effects.fail(pending.answered, e)
                    yield effects.take()
                    return
            progressed(pending.answered)
            now = time.monotonic()
            if pending.is_over or now - handed_in > _HAND_IN_SECONDS or effects.size > _HAND_IN_BYTES:
                handed_in = now
                yield effects.take()
            if pending.is_over or (effects.has_failed and not pending.out):
                return

    def _question(self, line: bytes, node: str, event_id: str) -> Question | None:
        """None: it is none.

        Raises:
            _Lost: nothing can be answered to it.
        """
        if b'"object"' not in line or b'"emit"' in line:
            return None
        try:
            if "object" not in _plain_question(line):
                return None
            question = _question(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise _Lost("bad-line", f"{line[:500].decode('utf-8', 'replace')!r} asks for no object: {e}") from None
        if node not in self._asks:
            raise _Lost(
                "bad-line", f"node {node!r} asks for objects, and is not declared so: External(.., objects=True)"
            )
        if question.id not in (None, event_id):
            raise _Lost("bad-line", f"a question of the event {question.id!r:.100}, where {event_id!r} runs")
        return question

    def _answer(self, line: bytes, event_id: str) -> Answer:
        """
        Raises:
            _Lost: it is none, or that of another event.
        """
        try:
            answer = _answer(line) if line.strip() else _NOTHING
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            said = line[:500].decode("utf-8", "replace")
            to_people = "standard output is for answers alone, what is for people goes to standard error"
            raise _Lost("bad-line", f"{said!r} is no answer: {e} ({to_people})") from None
        self._names_events |= answer.id is not None
        if self._names_events and answer.id != event_id:
            said = "without an id" if answer.id is None else f"to the event {answer.id!r:.100}"
            raise _Lost(
                "bad-line", f"an answer {said}, where {event_id!r} has to be answered: is there a line too many?"
            )
        return answer

    def _log(self, answer: Answer, run: Run, event_id: str) -> None:
        assert answer.log is not None
        level = answer.level if answer.level in LEVELS else DEFAULT
        if is_shown(self._levels, run.node, level):
            who = FIELD.join((run.node, event_id if event_id.isprintable() else ascii(event_id), run.trace))
            fields = fields_text(answer.fields or {})
            sys.stderr.write(f"{MARK}{level}{MARK}{who}{FIELD}{fields}{MARK}{answer.log.replace(chr(10), ' ')}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Standard input ends; a program that goes on after that is ended."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        try:
            self._program.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()

    def _lines(self) -> list[bytes]:
        """What the program has written, as soon as it is a line at least or more may be sent."""
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if self._unsent:
            poll.register(self._to, select.POLLOUT)
        for fd, _ in poll.poll():
            if fd == self._to:
                self._write()
            else:
                return self._read()
        return []

    def _check_silent(self) -> None:
        """
        Raises:
            ProtocolError: the program has said something, although all events are answered.
        """
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if poll.poll(0):
            self._rest += b"".join(self._read())
        if self._rest:
            raise ProtocolError(f"a line that answers nothing: {bytes(self._rest[:200])!r}")

    def _write(self) -> None:
        try:
            sent = os.write(self._to, self._unsent)
        except BlockingIOError:
            return
        except BrokenPipeError:
            raise self._end() from None
        del self._unsent[:sent]

    def _read(self) -> list[bytes]:
        data = os.read(self._from, _READ)
        if not data:
            raise self._end()
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > _MAX_LINE:
                raise ProtocolError(f"a line of over {_MAX_LINE >> 20} MiB")
            return []
        whole, _, rest = self._rest.rpartition(b"\n")
        self._rest = rest
        return bytes(whole).split(b"\n")

    def _end(self) -> Gone:
        sys.stderr.flush()
        return how_it_ended(self._program, self._name)


class _Pending:
    """Which events of a run were sent, and which answered. ``out``: how many are not answered yet."""

    def __init__(self, run: Run, ahead: int) -> None:
        self._run = run
        self._ahead = ahead
        self._keys: set[str] = set()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.sent = 0
        self.answered = 0

    @property
    def out(self) -> int:
        return self.sent - self.answered

    @property
    def is_over(self) -> bool:
        return self.answered == self._run.events

    @property
    def id(self) -> str:
        """Of the event that has to be answered next."""
        return self._id(self.answered)

    def _id(self, index: int) -> str:
        run = self._run
        return run.ids[index] if run.ids is not None else f"{run.id_prefix}{run.id_first + index}"

    def _key(self, index: int) -> str | None:
        return None if self._run.keys is None else self._run.keys[index]

    def may_send(self, unsent: int) -> bool:
        if (
            self.sent == self._run.events
            or self.out >= self._ahead
            or self._bytes >= _AHEAD_BYTES
            or unsent > _AHEAD_BYTES
        ):
            return False
        return self._key(self.sent) not in self._keys

    def next_line(self, effects: _Effects) -> bytes:
        """The next event.

        Raises:
            HandlerError: its data cannot be written as JSON; it counts as sent.
        """
        run, index, key = self._run, self.sent, self._key(self.sent)
        self.sent += 1
        if key is not None:
            self._keys.add(key)
        self._sizes.append(0)
        event: dict[str, Any] = {"event": run.names[index] if len(run.names) > 1 else run.names[0], "node": run.node}
        if key is not None:
            event["key"] = key
        event["data"] = None if run.data is None else _plain(run.data[index])
        event["id"] = self._id(index)
        if run.attempt > 1:
            event["attempt"] = run.attempt
        if run.states is not None:
            event["state"] = effects.record(key)
        try:
            line = _to_json(event) + b"\n"
        except (TypeError, ValueError, OverflowError, RecursionError) as e:
            raise BadLine(f"the event cannot be written as JSON: {e}") from None
        self._sizes[-1] = len(line)
        self._bytes += len(line)
        return line

    def take_back(self) -> None:
        """The last one was not sent after all."""
        self.sent -= 1
        self._bytes -= self._sizes.pop()
        key = self._key(self.sent)
        if key is not None:
            self._keys.discard(key)

    def pop(self) -> None:
        """The oldest one was answered."""
        key = self._key(self.answered)
        if key is not None:
            self._keys.discard(key)
        self.answered += 1
        self._bytes -= self._sizes.popleft()


class BadLine(GrapeError):
    """What a program wrote is no answer, or what it should read is no JSON."""

    code = "bad-line"


class _Effects:
    """What the answered events of a run have done since it was last asked. An event's own effects count when its last
    line is there."""

    def __init__(self, run: Run, names: Names, states: frozenset[str], limits: Limits) -> None:
        self._run = run
        self._names = names
        self._states = states
        self._limits = limits
        self._records: dict[str, dict[str, Any]] = {}
        self._emits: list[_Emit] = []
        self._replies: list[Answered] = []
        self._changes: dict[str, tuple[dict[str, Raw], set[str]]] = {}
        self._lines: list[Answer] = []
        self._kept = 0
        self._refused: GrapeError | None = None
        self._events = 0
        self.size = 0
        self.failed: Failed | None = None
        self.has_failed = False

    def record(self, key: str | None) -> dict[str, Any]:
        """The state of a key, as it is now."""
        if key is None:
            return {}
        found = self._records.get(key)
        if found is None:
            stored = (self._run.states or {}).get(key, {})
            found = self._records[key] = {name: _plain(value) for name, value in stored.items()}
        return found

    def add(self, index: int, answer: Answer, size: int) -> bool:
        """Take a line of ``size`` bytes about the event ``index``; whether it was the last one.

        Raises:
            _Lost: its lines are too many.
        """
        if not answer.is_empty:
            self._lines.append(answer)
            self._kept += size
            if self._kept > self._limits.max_result:
                raise _Lost(
                    "too-large", f"the answer to one event has over {self._limits.max_result} bytes (max-result)"
                )
        if answer.more:
            return False
        lines, self._lines, self._kept = self._lines, [], 0
        refused, self._refused = self._refused, None
        try:
            self._apply(index, lines, refused)
        except GrapeError as e:
            self.fail(index, e)
        else:
            self._events += 1
        return True

    def fail(self, index: int, error: GrapeError) -> None:
        """The event has failed."""
        self._events += 1
        trace = error.trace if isinstance(error, _Said) else ""
        self.failed = Failed(index, error.code, str(error), trace)
        self.has_failed = True

    def ask(self, question: Question, storage: Callable[[int, str | None], NodeStorage], index: int) -> bytes:
        """What the program reads as the answer. What cannot be done is the failure of its event."""
        try:
            said = self._asked(question, storage(index, question.namespace))
        except ProtocolError:
            raise
        except (GrapeError, ValueError, TypeError, OSError) as e:
            said = {"error": str(e), "kind": kind_of(e)}
            if not question.is_tried:
                self._refused = self._refused or _Said(kind_of(e), str(e), "")
        return _to_json({"object": question.object, **said}) + b"\n"

    def _asked(self, question: Question, storage: NodeStorage) -> dict[str, Any]:
        key = None if question.key is UNSET else question.key
        match question.object:
            case "put":
                given = [what for what in (question.text, question.base64, question.file) if what is not None]
                if len(given) != 1:
                    raise BadLine("an object is put with one of text, base64 and file")
                data = Path(question.file) if question.file is not None else given[0]
                storage.put(key, data, **question.about())  # type: ignore[arg-type]
                return {}
            case "get":
                return self._got(question, storage, key)
            case "stat":
                about = storage.stat(key)  # type: ignore[arg-type]
                return {"found": about is not None} if about is None else {"found": True, **to_builtins(about)}
            case "list":
                tags = () if question.tags is UNSET else question.tags
                found = (a for a in storage.list(question.prefix, tags=tags) if a.key > question.after)
                items = list(islice(found, PAGE))
                more = {"after": items[-1].key} if len(items) == PAGE else {}
                return {"objects": to_builtins(items), **more}
            case "remove":
                storage.remove(key)  # type: ignore[arg-type]
                return {}

    def _got(self, question: Question, storage: NodeStorage, key: Any) -> dict[str, Any]:
        chunks = storage.chunks(key, question.start, question.end)
        if chunks is None:
            return {"found": False}
        if question.file is not None:
            with open(question.file, "wb") as file:
                return {"found": True, "size": sum(file.write(chunk) for chunk in chunks)}
        data = bytearray()
        for chunk in chunks:
            data += chunk
            if len(data) > self._limits.max_event:
                raise TooLarge(
                    f"object {key!r:.200} is over max-event ({self._limits.max_event} bytes): get it into a "
                    f'"file", or a part of it with "start" and "end"'
                )
        if question.as_ == "base64":
            return {"found": True, "base64": bytes(data)}
        try:
            return {"found": True, "text": data.decode()}
        except UnicodeDecodeError:
            raise BadLine(f'object {key!r:.200} is no text: get it "as": "base64", or into a "file"') from None

    def _apply(self, index: int, lines: list[Answer], refused: GrapeError | None) -> None:
        """
        Raises:
            GrapeError: the event has failed; nothing of it was taken.
        """
        emits: list[_Emit] = []
        replies: list[Answered] = []
        changes: dict[str, Any] = {}
        for line in lines:
            if line.error is not None:
                raise _Said(line.kind, line.error, line.trace)
            emits += [self._cancel(index, name) for name in line.cancelled()]
            emits += [self._emit(index, emission) for emission in line.emissions()]
            if line.reply is not UNSET:
                replies.append(Answered(index, self._packed(line.reply)))
            changes.update(line.state or {})
        if refused is not None:
            raise refused
        if changes:
            self._store(index, changes)
        self._emits += emits
        self._replies += replies

    def _timer(self, index: int, name: str) -> str:
        if self._run.keys is None or self._run.keys[index] is None:
            raise BadLine(f"an event without a key has no timers by name; its answer names {name!r:.300}")
        return check_timer_name(name)

    def _cancel(self, index: int, name: str) -> _Emit:
        try:
            return index, "", _NIL, None, -1, self._timer(index, name)
        except (TypeError, ValueError) as e:
            raise BadLine(str(e)) from None

    def _emit(self, index: int, emission: Emission) -> _Emit:
        if emission.event not in self._names.known:
            self._names.check(emission.event, self._run.node)
        key = None if emission.key is UNSET else False if emission.key is None else emission.key
        try:
            if isinstance(key, str):
                check_key(key)
            delay = -1 if emission.delay is None else int(seconds(emission.delay, "delay") * 1e6)
            timer = None if emission.timer is None else self._timer(index, emission.timer)
            if timer is not None and delay < 0:
                raise BadLine(f"timer {timer!r} names an emit with a delay, and this one has none")
        except (TypeError, ValueError) as e:
            raise BadLine(str(e)) from None
        return index, emission.event, self._packed(emission.data), key, delay, timer

    def _packed(self, value: Any) -> Raw:
        found = to_value(value, self._limits.max_event)
        packed = found if type(found) is Raw else Raw(encode(found))
        self.size += len(packed) + 64
        return packed

    def _store(self, index: int, changes: dict[str, Any]) -> None:
        key = None if self._run.keys is None else self._run.keys[index]
        if key is None:
            raise BadLine(f"an event without a key has no state; its answer stores {sorted(changes)}")
        unknown = changes.keys() - self._states
        if unknown:
            raise BadLine(
                f"{self._run.node!r} has no state {sorted(unknown)[0]!r}; declared are "
                f"{sorted(self._states) or 'none'} (External(..., states=))"
            )
        packed = {name: self._packed(value) for name, value in changes.items() if value is not None}
        record = self.record(key)
        values, deleted = self._changes.setdefault(key, ({}, set()))
        for name, value in changes.items():
            if value is None:
                record.pop(name, None)
                values.pop(name, None)
                deleted.add(name)
            else:
                record[name] = value
                values[name] = packed[name]
                deleted.discard(name)

    def take(self) -> Ran:
        """What has been done, and start anew."""
        emits = Emits()
        if self._emits:
            origins, names, data, keys, delays, timers = map(list, zip(*self._emits, strict=True))
            emits = Emits(
                origins,
                names[:1] if len(set(names)) == 1 else names,
                data,
                None if set(keys) == {None} else keys,
                None if max(delays) < 0 else delays,
                None if set(timers) == {None} else timers,
            )
        states = [StateChange(key, values, list(deleted)) for key, (values, deleted) in self._changes.items()]
        ran = Ran(self._events, emits, states, self._replies, self.failed)
        self._emits, self._replies, self._changes = [], [], {}
        self._events = self.size = 0
        self.failed = None
        return ran


class _Said(GrapeError):
    """What the program itself said of its failure."""

    def __init__(self, kind: str, text: str, trace: str) -> None:
        super().__init__(text)
        self.code = kind
        self.trace = trace


class _Lost(GrapeError):
    """From here on it cannot be said which event a line answers."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.code = kind


def _plain(value: Any) -> Any:
    return decode(value) if type(value) is Raw else value
