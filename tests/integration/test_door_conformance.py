"""The cases of the door, which are data: Grape's own engine passes them, and one that does something else does not."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest
from tests.command import grape

from grape.protocol import door as protocol
from grape.testing.conformance.door import attempt, door_cases

CASES: Final = list(door_cases())
CHAPTERS: Final = list(dict.fromkeys(case.chapter for case in CASES))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_engine_does_what_the_cases_say(chapter: str) -> None:
    asked = [case for case in CASES if case.chapter == chapter]
    with ThreadPoolExecutor(2) as threads:
        errors = dict(zip((case.name for case in asked), threads.map(attempt, asked), strict=True))
    assert {name: error for name, error in errors.items() if error} == {}


def test_the_cases_are_told_apart_and_say_all_that_a_client_can() -> None:
    titles = [case.title for case in CASES]
    assert len(set(titles)) == len(titles)
    said = {step["say"][0] for case in CASES for step in case.steps if "say" in step}
    said |= {step["opens"][0] for case in CASES for step in case.steps if "opens" in step}
    said |= {"Took" for case in CASES for step in case.steps if "took" in step}
    assert said == {kind.__name__ for kind in protocol.FromClient.__args__}  # type: ignore[attr-defined]


ENGINE: Final = """
import sys
from msgspec import structs
from grape.engine import feed
from grape.host import house, readers, streams
from grape.testing.conformance.engine import main

{change}
main(*sys.argv[1:])
"""
BROKEN: Final = {
    "of any version": (
        "other = house.Visitor._other\n"
        "def any_version(self, message):\n"
        "    if isinstance(message, house.Greeting):\n"
        "        message = structs.replace(message, version=house.VERSION)\n"
        "    other(self, message)\n"
        "house.Visitor._other = any_version",
        "greeting: another version is refused",
    ),
    "that is greeted again": (
        "other = house.Visitor._other\n"
        "def again(self, message):\n"
        "    if isinstance(message, house.Greeting):\n"
        "        self.is_greeted = False\n"
        "    other(self, message)\n"
        "house.Visitor._other = again",
        "greeting: it is said once",
    ),
    "that accepts twice": (
        "feed.Feed.is_known = lambda self, append: False",
        "streams: a number that was taken before has no effect",
    ),
    "that passes over gaps": (
        "known = feed.Feed.is_known\n"
        "feed.Feed.is_known = lambda self, a: a.number <= self._planned.number and known(self, a)",
        "streams: a number that is left out",
    ),
    "without credit": ("streams.WINDOW = 1 << 40", "streams: more than the credit under way"),
    "that accepts what is not durable": (
        "commit = streams.Stream._commit\n"
        "def early(self, **how):\n"
        "    for one in self._waiting:\n"
        "        self.say(streams.Accepted(self._number, one.head.number))\n"
        "streams.Stream._commit = early",
        "streams: an append is durable when it is accepted",
    ),
    "that believes every body": (
        "feed.codec.check_body = lambda *a, **k: []",
        "parts: hops are the engine's",
    ),
    "that promises to everybody": (
        "feed.Feed.lookup = lambda self, ids: ['new' for _ in ids]",
        "ids: new, promised, known, in conflict",
    ),
    "that loses what was not taken": (
        "readers.Reader.cut = lambda self: self.take.settle(self._given[0])",
        "readers: what was not taken is given again",
    ),
    "that forgets where a reader is": (
        "took = readers.Reader.took\n"
        "readers.Reader.took = lambda self, m: took(self, structs.replace(m, length=0, tail=b''))",
        "readers: also over the end of the engine",
    ),
    "that takes what was not given": (
        "took = readers.Reader.took\n"
        "readers.Reader.took = lambda self, m: took(self, structs.replace(m, number=self._batches))",
        "readers: a number that was not given",
    ),
    "that answers nobody": ("house.Visitor._ask = lambda self, message: None", "questions: numbers and progress"),
    "that gives replies to one": (
        "fan = readers.ReplyFan._give\n"
        "def one(self):\n"
        "    self.listeners[1:] = []\n"
        "    fan(self)\n"
        "readers.ReplyFan._give = one",
        "events: a reply comes under its request, to all who ask for replies",
    ),
}
"""An engine -> how it is made of Grape's, and a case that it does not pass."""


@pytest.mark.parametrize("what", BROKEN)
def test_an_engine_that_does_something_else_fails(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.testing.conformance.door.PATIENCE", 3.0)
    change, title = BROKEN[what]
    (case,) = [case for case in CASES if case.title == title]
    error = attempt(case, [sys.executable, "-c", ENGINE.format(change=change)])
    assert error is not None
    assert error.startswith("step ")  # it has begun


def test_an_engine_of_another_command_passes() -> None:
    (case,) = [case for case in CASES if case.title == "readers: also over the end of the engine"]
    assert attempt(case, [sys.executable, "-c", ENGINE.format(change="")]) is None


def test_the_command_says_which_hold() -> None:
    done = grape("conformance", "door", "--chapter", "questions")
    assert (done.returncode, done.stdout) == (0, "3 of 3 cases hold\n")
    assert "a verb that there is not" in done.stderr
    failed = grape("conformance", "door", "--chapter", "questions", "--", "false")
    assert (failed.returncode, failed.stdout) == (3, "0 of 3 cases hold\n")
    unknown = grape("conformance", "door", "--chapter", "nothing")
    assert unknown.returncode == 2
    assert "there are greeting, owner, streams" in unknown.stderr
