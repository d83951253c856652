"""``grape exec``: an event for each object of a storage."""

from __future__ import annotations

import time
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
import typer

from grape.cli.console import complain, say
from grape.cli.home import HomeOption, or_exit
from grape.cli.live import Data, connected
from grape.cli.live import split as split_event
from grape.cli.storage import run as run_async
from grape.cli.storage import split as split_place
from grape.client.connection import Connection, answered
from grape.client.faults import Told
from grape.client.feeding import Feeder
from grape.errors import GrapeError, UsageError
from grape.model.address import check_text
from grape.model.bound import Bound
from grape.model.names import check_tags
from grape.model.plural import counted
from grape.model.rate import rate_of
from grape.model.section import show_size
from grape.protocol.outcomes import Progress
from grape.storage.connect import opened
from grape.storage.objects import Objects
from grape.storage.source import ObjectsSource, Over, position_of

_POLL: Final = 0.2
_SAID: Final = 2.0
_AGAIN: Final = 1_000
_LONGEST_NAME: Final = 500


def execute(
    event: Annotated[str, typer.Argument(metavar="APP@EVENT", help="Of a slot of an app on a server.")],
    over: Annotated[str, typer.Option(metavar="NAMESPACE/[PREFIX]", help="The objects.")],
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Where they are; else the app's own.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="That they have. Repeatable.")] = None,
    rate: Annotated[str, typer.Option(metavar="N/s", help="At most so many a second.")] = "",
    parallel: Annotated[
        int, typer.Option(metavar="N", min=1, help="Wait while so many of the app's events wait.")
    ] = 100_000,
    name: Annotated[str, typer.Option(metavar="NAME", help="By which it goes on; else made of the rest.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Once more, although it was done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the objects only.")] = False,
    data: Data = None,
    home: HomeOption = None,
) -> None:
    """Hand in an event for each object, with its key: once, whatever dies; the same command goes on where it was.

    \b
    grape exec photos@thumbnail --over photos/2026/ --tag raw
    """
    app, slot = split_event(event)
    with connected(app, data, home) as engine:
        namespace, prefix = or_exit(lambda: split_place(over, is_prefix=True))
        bound = Bound(storage, namespace) if storage else or_exit(lambda: _bound(engine.connected(), namespace))
        url = bound.url
        wanted = Over(url, bound.namespace, prefix, or_exit(lambda: check_tags(tag or ())), namespace)
        count, size = run_async(lambda: _counted(wanted))
        say(f"{counted(count, 'object')} ({show_size(size)}) in {wanted}")
        if dry_run:
            return
        connection = engine.connected()
        topology = connection.described.result().topology
        if slot not in topology.events:
            complain(f"app {topology.name!r} has no slot {slot!r}; it has {', '.join(topology.events)}")
            raise typer.Exit(2)
        speed = or_exit(lambda: _rate(rate))
        title = or_exit(lambda: _title(name)) if name else f"exec:{slot}={wanted.identity}"
        or_exit(lambda: _feed(connection, slot, wanted, title, speed, parallel, count, again=again))


def _title(name: str) -> str:
    try:
        return check_text(name, "--name", _LONGEST_NAME)
    except ValueError as e:
        raise UsageError(f"{e}; it is {name!r:.60}") from None


def _rate(text: str) -> float:
    try:
        return rate_of(text) if text else 0.0
    except ValueError as e:
        raise UsageError(f"--rate: {e}") from None


def _bound(connection: Connection, namespace: str) -> Bound:
    """Where the app has it."""
    found = msgspec.msgpack.decode(
        answered(connection.ask_verb("storages", None), 60.0, "no answer"), type=dict[str, Bound]
    )
    own = f"embedded://{quote(connection.described.result().data)}"
    return found.get(namespace, Bound(own, namespace))


async def _counted(over: Over) -> tuple[int, int]:
    async with opened(over.storage) as storage:
        return await Objects(storage, over.namespace).count(over.prefix, tags=over.tags)


def _progress(connection: Connection) -> Progress:
    return msgspec.msgpack.decode(answered(connection.ask_verb("progress"), 60.0, "no answer"), type=Progress)


def _feed(
    connection: Connection, slot: str, over: Over, title: str, rate: float, parallel: int, count: int, *, again: bool
) -> None:
    """
    Raises:
        GrapeError: it ends before all is handed in.
    """
    failed: list[GrapeError] = []
    told = Told(say, failed.append)

    def may_go_on() -> bool:
        while _progress(connection).backlog >= parallel:
            if connection.is_ending:
                return False
            time.sleep(_POLL)
        return True

    dead = _progress(connection).dead
    for number in range(1, _AGAIN):
        source = ObjectsSource(slot, over, title if number == 1 else f"{title}#{number}", rate, parallel, may_go_on)
        feeder = _opened(connection, number, source, told)
        if not position_of(feeder.opened.result().position).is_over:
            break
        feeder.leave()
        if not again:
            raise UsageError(
                f"{over}: all of it was handed in before; --again does it once more, --name as another one"
            )
    else:
        raise UsageError(f"it was done {_AGAIN:,} times; take another --name")
    began, at = source.seen.count, time.monotonic()
    if began:
        say(f"going on after {counted(began, 'object')}")
    thread_began, shown = time.monotonic(), time.monotonic()
    while not feeder.is_closed and not failed and not connection.is_ending:
        time.sleep(_POLL)
        if time.monotonic() - shown > _SAID:
            shown = time.monotonic()
            done = source.seen.count
            speed = (done - began) / max(1e-9, shown - thread_began)
            left = f", {(count - done) / speed:,.0f} s left" if speed and count > done else ""
            say(f"{done:,} of {count:,} handed in, {speed:,.0f}/s{left}")
    if failed:
        raise failed[0]
    if not feeder.is_closed:
        raise UsageError("the engine ends; the same command goes on where it was")
    say(f"{counted(source.seen.count - began, 'event')} handed in, in {time.monotonic() - at:.1f} s")
    while (progress := _progress(connection)).backlog and not connection.is_ending:
        time.sleep(_POLL)
    letters = progress.dead - dead
    if letters > 0:
        say(f"{counted(letters, 'dead letter')} more than before: grape dead list")
        raise typer.Exit(1)


def _opened(connection: Connection, number: int, source: ObjectsSource, told: Told) -> Feeder:
    feeder = Feeder(number, source, connection, told)
    found = answered(feeder.opened, 60.0, "the stream was not opened")
    source.open(found.position)
    feeder.start(connection.described.result().topology, connection.opened.result())
    return feeder
