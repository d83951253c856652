"""What is said of failures while a run goes on."""

from __future__ import annotations

from grape.engine.first import AGAIN, AT_ONCE, Failed, FirstFailures
from grape.model.trace import last_place

TRACE = """Traceback (most recent call last):
  File "/work/app.py", line {line}, in work
    return json.loads(text)
  File "/usr/lib/python3.13/json/__init__.py", line 346, in loads
    return _default_decoder.decode(s)
ValueError: {text}
"""


def failed(number: int, line: int = 7, due: int = 0, stopped: bool = False) -> Failed:
    trace = TRACE.format(line=line, text=f"bad {number}")
    return Failed("work", "line", f"main.0-{number}", "ValueError", f"ValueError: bad {number}", trace, due, stopped)


def test_the_first_of_a_kind_is_told_whole_and_then_counted() -> None:
    first = FirstFailures()
    head, *trace = first.tell(failed(0, due=2_500_000), 1_000_000)
    assert head == "'line' failed at event main.0-0; next attempt in 1.5 s"
    assert trace[1] == '  File "/work/app.py", line 7, in work'
    assert trace[-1] == "ValueError: bad 0"
    assert [first.tell(failed(n), 1_000_000 + n) for n in range(1, 42)] == [[]] * 41
    assert first.rest() == ["... 41 more like this: ValueError in 'work' (/work/app.py:7)"]
    assert first.rest() == []


def test_more_of_a_kind_is_told_now_and_then() -> None:
    first = FirstFailures()
    assert first.tell(failed(0), 0)
    assert not first.tell(failed(1), AGAIN - 1)
    assert first.tell(failed(2), AGAIN) == ["... 2 more like this: ValueError in 'work' (/work/app.py:7)"]
    assert not first.tell(failed(3), AGAIN + 1)


def test_another_line_is_another_kind_and_the_rate_is_bounded() -> None:
    first = FirstFailures()
    told = [bool(first.tell(failed(line, line), 0)) for line in range(100)]
    assert told == [True] * AT_ONCE + [False] * (100 - AT_ONCE)
    assert first.tell(failed(1, 1000), 1_000_000)
    assert first.rest() == ["... 95 failures of more kinds: grape dead list shows those that were given up"]


def test_the_kinds_are_bounded() -> None:
    first = FirstFailures()
    assert sum(bool(first.tell(failed(line, line), line * 1_000_000)) for line in range(2000)) == 1000


def test_what_becomes_of_it() -> None:
    assert "no further attempt: a dead letter" in FirstFailures().tell(failed(0), 5)[0]
    assert 'it keeps its key (on_fail="stop")' in FirstFailures().tell(failed(0, due=9, stopped=True), 5)[0]
    without = FirstFailures().tell(Failed("work", "line", "main.0-0", "worker-died", "the worker died: why", ""), 0)
    assert without[1:] == ["the worker died: why"]
    long = FirstFailures().tell(failed(0)._replace(trace="x\n" * 5000), 0)
    assert len(long) < 40


def test_the_last_line_of_the_users() -> None:
    assert last_place(TRACE.format(line=7, text="")) == "/work/app.py:7"
    assert last_place("") == ""
    assert last_place('  File "<frozen os>", line 3, in x') == "<frozen os>:3"
