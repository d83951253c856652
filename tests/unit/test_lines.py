"""Programs of lines: which answers are taken, and what becomes of a program that gets out of step. Real programs."""

from __future__ import annotations

import resource
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from grape.errors import ProtocolError
from grape.model.topology import Limits, NodeSpec, SlotSpec, StateSpec, TopologySpec
from grape.protocol.base import Ran, Run
from grape.protocol.messages import Assign, Fetch, Keep, Welcome
from grape.testing.conformance.objects import Shelf
from grape.worker.adapter.lines import LinesSpeaker
from grape.worker.adapter.objects import RunObjects
from grape.worker.adapter.speaker import Gone
from grape.worker.effects import Assigned
from grape.worker.objects import Access

TOPOLOGY = TopologySpec(
    "lines",
    (NodeSpec("N", states=(StateSpec("s"),)), NodeSpec("O", objects=True)),
    (SlotSpec("e", "N"), SlotSpec("o", "O")),
    ("out",),
)
NO_OBJECTS = RunObjects(None, "N", lambda: Assigned(Assign(0, 0)))
Speaks = Callable[..., LinesSpeaker]


@pytest.fixture
def speaks(tmp_path: Path) -> Iterator[Speaks]:
    """Makes speakers of the inside of a loop over events: ``event``, ``n`` (how many came before), ``say(line)``."""
    made: list[LinesSpeaker] = []

    def speaker(body: str, first: str = "", **limits: int) -> LinesSpeaker:
        program = tmp_path / f"program{len(made)}.py"
        inside = "\n".join(f"    {line}" for line in body.splitlines())
        program.write_text(
            f"#!{sys.executable} -S\nimport json, sys, time\n"
            "def say(line):\n"
            "    print(line if isinstance(line, str) else json.dumps(line), flush=True)\n"
            f"{first}\nfor n, text in enumerate(sys.stdin):\n    event = json.loads(text)\n{inside}\n"
        )
        program.chmod(0o755)
        found = LinesSpeaker([str(program)])
        made.append(found)
        found.welcome(
            Welcome(1, "p", "p.0", 4, structs.replace(Limits(), **limits), frozenset(("out",)), topology=TOPOLOGY)
        )
        found.setup()
        return found

    yield speaker
    for found in made:
        found.close()


def run(speaker: LinesSpeaker, *data: Any, first: int = 0) -> list[Ran]:
    keys: list[str | None] = [f"k{first + i}" for i in range(len(data))]
    run = Run("N", len(data), ["e"], keys, list(data), "1-", first, states={})
    return list(speaker.run(run, lambda done: None, NO_OBJECTS))


def emitted(answers: list[Ran]) -> list[tuple[int, Any]]:
    return [
        (origin, msgspec.msgpack.decode(data))
        for ran in answers
        for origin, data in zip(ran.emits.origins, ran.emits.data, strict=True)
    ]


def stored(answers: list[Ran]) -> dict[str, Any]:
    return {change.key: msgspec.msgpack.decode(change.values["s"]) for ran in answers for change in ran.states}


def test_a_line_that_is_no_answer_fails_its_event_and_shifts_no_other(speaks: Speaks) -> None:
    """A forgotten print: what it stands before is not taken for the answer to the next event."""
    speaker = speaks("if event['data'] == 2: say('debug!')\nsay({'emit': 'out', 'data': event['data']})")
    answers = run(speaker, 0, 1, 2, 3)
    assert emitted(answers) == [(0, 0), (1, 1)]
    failed = answers[-1].failed
    assert failed is not None
    assert (failed.index, failed.kind) == (2, "bad-line")
    assert "'debug!' is no answer" in failed.text
    assert "standard error" in failed.text
    assert emitted(run(speaker, 3, 4, first=3)) == [(0, 3), (1, 4)]


def test_what_a_program_says_before_its_first_event_answers_none(speaks: Speaks) -> None:
    speaker = speaks("say({'emit': 'out', 'data': event['data']})", first="say('ready to go')")
    (ran,) = run(speaker, 1, 2)
    assert ran.failed is not None
    assert (ran.events, ran.failed.index) == (1, 0)
    assert "'ready to go' is no answer" in ran.failed.text


@pytest.mark.parametrize("surplus", ["{}", "", '{"id": "1-0"}'])
def test_answers_that_name_their_events_cannot_shift(speaks: Speaks, surplus: str) -> None:
    """One line too many, that could be an answer; slow enough that much was handed in before."""
    body = (
        f"if n == 400: say({surplus!r})\ntime.sleep(0.004)\n"
        "say({'id': event['id'], 'state': {'s': event['data']}, 'emit': 'out', 'data': event['data']})"
    )
    answers = run(speaks(body), *range(600))
    assert len(answers) > 1
    assert emitted(answers) == [(i, i) for i in range(400)]
    assert stored(answers) == {f"k{i}": i for i in range(400)}
    failed = answers[-1].failed
    assert failed is not None
    assert failed.index == 400
    assert "'1-400' has to be answered" in failed.text


def test_a_program_that_has_gone_out_of_step_goes_on_as_a_new_one(speaks: Speaks) -> None:
    speaker = speaks("say('x' if event['data'] < 0 else {'emit': 'out', 'data': n})")
    assert emitted(run(speaker, 0, 0, 0)) == [(0, 0), (1, 1), (2, 2)]
    failed = run(speaker, -1)[-1].failed
    assert failed is not None
    assert emitted(run(speaker, 0, 0)) == [(0, 0), (1, 1)]  # n counts from 0 again


def test_an_answer_without_end_is_bounded(speaks: Speaks) -> None:
    speaker = speaks(
        "if event['data']:\n    while True: say({'more': True, 'emit': 'out', 'data': 'x' * 10000})\nsay('')",
        max_result=1 << 20,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (ran,) = run(speaker, 1)
    assert ran.failed is not None
    assert ran.failed.kind == "too-large"
    assert "max-result" in ran.failed.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert run(speaker, 0)[-1].failed is None


def test_lines_without_effects_are_not_kept(speaks: Speaks) -> None:
    speaker = speaks("for i in range(30000): say({'more': True})\nsay({'emit': 'out', 'data': 1})", max_result=10000)
    assert emitted(run(speaker, 0)) == [(0, 1)]


def test_a_script_without_its_interpreter_says_what_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter -x\n")
    script.chmod(0o755)
    with pytest.raises(FileNotFoundError, match="'/no/such/interpreter'"):
        LinesSpeaker([str(script)])


def test_a_program_that_ends_says_how(speaks: Speaks) -> None:
    speaker = speaks("sys.exit(3)")
    with pytest.raises(Gone, match="exited with code 3"):
        run(speaker, 1)


def test_a_line_behind_the_last_answer_is_not_taken_for_the_next_one(speaks: Speaks) -> None:
    speaker = speaks("say({'emit': 'out', 'data': n})\ntime.sleep(0.3)\nsay({})")
    assert emitted(run(speaker, 1)) == [(0, 0)]
    assert select.select([speaker._from], [], [], 10)[0]
    with pytest.raises(ProtocolError, match="answers nothing"):
        run(speaker, 1)


def test_timers_have_names(speaks: Speaks) -> None:
    speaker = speaks(
        'd = event["data"]\n'
        'say({"emit": "out", "data": d, "delay": 2, "timer": "t"} if n == 0 else {"cancel": ["t", "u"], "emit": "out"})'
    )
    (ran,) = run(speaker, 7, 8)
    assert ran.emits.names == ["out", "", "", "out"]
    assert ran.emits.origins == [0, 1, 1, 1]
    assert ran.emits.delays == [2_000_000, -1, -1, -1]
    assert ran.emits.timers == ["t", "t", "u", None]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"emit": "out", "timer": "t"}, "names an emit with a delay"),
        ({"emit": "out", "delay": 1, "timer": ""}, "the name of a timer has 1 to 255 bytes"),
        ({"cancel": "x" * 300}, "the name of a timer has 1 to 255 bytes"),
    ],
)
def test_a_timer_that_cannot_be_fails_its_event(speaks: Speaks, answer: dict[str, Any], why: str) -> None:
    (failed,) = [ran.failed for ran in run(speaks(f"say({answer!r})"), 1) if ran.failed is not None]
    assert why in failed.text


# ------------------------------------------------------------------ objects

ASK = "def ask(**question):\n    say(question)\n    return json.loads(sys.stdin.readline())\n"


class Room:
    """Objects for a run, of an engine as the conformance suite plays it."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.part = Assigned(Assign(0, 0))
        self.access = Access(self._send, lambda: None)
        self.access.namespaces = {"conformance": "write", "photos": "read"}

    def _send(self, message: Any) -> None:
        assert isinstance(message, Fetch | Keep)
        self.access.fetched(self.shelf.answer(message))

    def run(self, speaker: LinesSpeaker, *data: Any) -> tuple[list[Ran], list[Any]]:
        """What came of it, and what is written."""
        objects = RunObjects(self.access, "O", lambda: self.part)
        rans = []
        for ran in speaker.run(Run("O", len(data), ["o"], None, list(data), "1-"), lambda done: None, objects):
            if ran.failed is not None:
                objects.failed(ran.failed.index)
            rans.append(ran)
        objects.end()
        return rans, [written.write for _, written in objects.take(len(data))]


def test_objects_as_text_as_bytes_and_as_files(speaks: Speaks, tmp_path: Path) -> None:
    speaker = speaks(
        "ask(object='put', key='t', text='é', content_type='text/plain', tags=['x'])\n"
        "ask(object='put', key='b', base64='/wA=')\n"
        f"open({str(tmp_path / 'in')!r}, 'wb').write(b'f' * 3000000)\n"
        f"ask(object='put', key='f', file={str(tmp_path / 'in')!r})\n"
        f"size = ask(object='get', key='f', file={str(tmp_path / 'out')!r}, start=10)\n"
        "got = [ask(object='get', key='t'), ask(object='get', key='b', **{'as': 'base64'}), size]\n"
        "got += [ask(object='stat', key='t')['tags'], ask(object='get', key='none'), ask(object='remove', key='t')]\n"
        "got += [ask(object='get', key='t'), ask(object='list', prefix='')]\n"
        "say({'emit': 'out', 'data': got})",
        ASK,
    )
    answers, written = Room().run(speaker, 1)
    ((_, got),) = emitted(answers)
    assert got == [
        {"object": "get", "found": True, "text": "é"},
        {"object": "get", "found": True, "base64": "/wA="},
        {"object": "get", "found": True, "size": 2_999_990},
        ["x"],
        {"object": "get", "found": False},
        {"object": "remove"},
        {"object": "get", "found": False},
        {"object": "list", "objects": []},
    ]
    assert (tmp_path / "out").read_bytes() == b"f" * 2_999_990
    assert [(write.key, write.size) for write in written] == [("t", 2), ("b", 2), ("f", 3_000_000), ("t", -1)]


def test_what_cannot_be_done_fails_the_event_unless_it_was_only_tried(speaks: Speaks) -> None:
    speaker = speaks(
        "said = ask(object='put', key='first', text='x')\n"
        "said = ask(**event['data'])\n"
        "say({'emit': 'out', 'data': [said.get('error'), said.get('kind')]})",
        ASK,
    )
    room = Room()
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"object": "put", "key": "a//b", "text": "x"}, "bad-argument", "no empty part"),
        ({"object": "put", "key": 7, "text": "x"}, "bad-argument", "is text"),
        ({"object": "put", "key": "k", "text": "x", "ttl": -1}, "bad-argument", "ttl"),
        ({"object": "put", "key": "k", "text": "x", "tags": "x"}, "bad-argument", "tags are a list"),
        ({"object": "put", "key": "k"}, "bad-line", "one of text, base64 and file"),
        ({"object": "put", "key": "k", "file": "/nowhere"}, "FileNotFoundError", "/nowhere"),
        ({"object": "put", "key": "k", "text": "x", "namespace": "photos"}, "handler", "may only read"),
        ({"object": "get", "key": "k", "namespace": "films"}, "handler", "not granted"),
        ({"object": "get", "key": "k", "start": "x"}, "bad-argument", "range"),
        ({"object": "get"}, "bad-argument", "is text"),
    ]
    for question, kind, text in wrong:
        (ran, *_), written = room.run(speaker, question)
        assert ran.failed is not None
        assert (ran.failed.kind, text in ran.failed.text, written) == (kind, True, []), ran.failed
        (ran, *_), written = room.run(speaker, {**question, "try": True})
        ((_, said),) = emitted([ran])
        assert (said[1], text in said[0], [write.key for write in written]) == (kind, True, ["first"])


def test_objects_that_are_no_text_or_too_large_for_a_line(speaks: Speaks) -> None:
    speaker = speaks("ask(**event['data'])\nsay({})", ASK, max_event=1000)
    room = Room()
    for put, text in (({"base64": "/w=="}, "is no text"), ({"text": "x" * 1001}, "over max-event (1000 bytes)")):
        (ran, *_), written = room.run(speaker, {"object": "put", "key": "k", **put})
        assert ran.failed is None
        room.shelf.take(written)
        room.part.written.clear()
        (ran, *_), _ = room.run(speaker, {"object": "get", "key": "k"})
        assert ran.failed is not None
        assert text in ran.failed.text


def test_the_next_event_comes_behind_the_answer_to_the_last_one(speaks: Speaks) -> None:
    speaker = speaks(
        "got = ask(object='get', key='k')\nsay({'emit': 'out', 'data': [event['id'], got['object']]})", ASK
    )
    answers, _ = Room().run(speaker, *range(50))
    assert emitted(answers) == [(i, [f"1-{i}", "get"]) for i in range(50)]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"object": "get", "key": "k"}', "is not declared so"),
        ('{"object": "steal", "key": "k"}', "asks for no object"),
        ('{"object": "get", "kye": "k"}', "asks for no object"),
    ],
)
def test_who_asks_without_having_said_so(speaks: Speaks, line: str, text: str) -> None:
    (ran,) = run(speaks(f"say({line!r})"), 1)
    assert ran.failed is not None
    assert (ran.failed.kind, text in ran.failed.text) == ("bad-line", True), ran.failed


def test_data_may_speak_of_objects(speaks: Speaks) -> None:
    speaker = speaks("say({'reply': {'object': 'get'}})\n")
    (ran,) = run(speaker, 1)
    assert msgspec.msgpack.decode(ran.replies[0].data) == {"object": "get"}
