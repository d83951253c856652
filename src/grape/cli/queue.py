"""``grape tail``, ``pull``, ``push`` and ``pump``: outputs as queues, and many events at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from grape.cli.console import complain, put, say
from grape.cli.home import HomeOption, or_exit
from grape.cli.live import Data, connected, split
from grape.client.calls import decoded_reply
from grape.client.connection import answered
from grape.client.events import client_event
from grape.errors import GrapeError, UsageError
from grape.model.plural import counted
from grape.protocol import queues
from grape.protocol.queues import Delivery, Peek, Tail, Tailed, Tokens
from grape.running import ConnectedEngine

T = TypeVar("T")

Output = Annotated[str, typer.Argument(metavar="APP@OUTPUT", help="An output of an app on a server.")]
Consumer = Annotated[str, typer.Option(metavar="NAME", help="Who takes them; those of one name share.")]

EXIT_FAILED: Final = 1
_WAIT: Final = 10.0
_UNDER_WAY: Final = 1_000


def tail(output: Output, data: Data = None, home: HomeOption = None) -> None:
    """Print what comes into an output, as JSON lines, until Ctrl-C. Nobody else misses it.

    \b
    grape tail orders@accepted
    """
    app, event = split(output)
    with connected(app, data, home) as engine:
        places: list[int] | None = None
        while True:
            asked = Tail(event, places, wait=_WAIT if places else 0.0)
            found = or_exit(lambda asked=asked: _ask(engine, queues.TAIL, asked, Tailed))  # type: ignore[misc]
            places = found.places
            _show(found.events)


def pull(
    output: Output,
    data: Data = None,
    home: HomeOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, metavar="N", help="How many at most.")] = 1,
    consumer: Consumer = "default",
    seconds: Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="For the first one.")] = 0.0,
    keep: Annotated[bool, typer.Option("--keep", help="Look only, at 10,000 at most: all stay.")] = False,
) -> None:
    """Take events out of an output and print them as JSON lines. They are done with once they are printed.

    \b
    grape pull orders@accepted -n 100 > accepted.jsonl
    """
    app, event = split(output)
    with connected(app, data, home) as engine:
        while count > 0:
            peek = Peek(event, consumer, min(count, queues.MOST), wait=seconds, looks=keep)
            found = or_exit(lambda peek=peek: _ask(engine, queues.PEEK, peek, list[Delivery]))  # type: ignore[misc]
            if not found:
                return
            _show(found)
            if keep:
                return  # the next question would find the same
            tokens = Tokens(event, [delivery.token for delivery in found], consumer)
            or_exit(lambda tokens=tokens: _ask(engine, queues.ACK, tokens, dict[str, int]))  # type: ignore[misc]
            count -= len(found)
            seconds = 0.0


def push(
    event: Annotated[str, typer.Argument(metavar="APP@EVENT", help="Of a slot, or an output, of an app on a server.")],
    data: Data = None,
    home: HomeOption = None,
    key: Annotated[str | None, typer.Option(metavar="FIELD", help="The field of each object that is its key.")] = None,
) -> None:
    """Hand in events from standard input, one JSON value a line; all are durable when it ends with 0.

    \b
    zcat orders.jsonl.gz | grape push orders@order --key customer
    """
    app, name = split(event)
    done = 0
    with connected(app, data, home) as engine:
        under_way: list[Future[None]] = []

        def settle(most: int) -> None:
            nonlocal done
            while len(under_way) > most:
                answered(under_way[0], 60.0, "it is not known whether the event was accepted")
                under_way.pop(0)
                done += 1

        def hand_in() -> None:
            for number, line in enumerate(sys.stdin.buffer, 1):
                if line.strip():
                    value = _value(line, number)
                    own = None if key is None else _key(value, key, number)
                    checked = client_event(name, value, own, None, None, engine.limits.max_event)
                    under_way.append(engine.hand_in(checked))
                    settle(_UNDER_WAY)
            settle(0)

        try:
            hand_in()
        except GrapeError as e:
            complain(f"{e}\nthe first {counted(done, 'event')} of the input were accepted, later ones perhaps")
            raise typer.Exit(2) from None
    say(f"{counted(done, 'event')} accepted")


def pump(
    output: Output,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND..", help="Gets an event as JSON on its input.")],
    data: Data = None,
    home: HomeOption = None,
    consumer: Consumer = "default",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=1_000, metavar="N", help="At the same time.")] = 1,
    lease: Annotated[float, typer.Option(metavar="SECONDS", help="For one event; then it comes again.")] = 300.0,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left.")] = False,
) -> None:
    """Run a command for each event of an output. With 0 the event is done with, else it comes again.

    \b
    grape pump orders@accepted -j 4 -- ./send-mail
    """
    app, event = split(output)
    failed = 0
    if shutil.which(command[0]) is None:
        complain(f"{command[0]}: there is no such command, or it may not be run")
        raise typer.Exit(2)
    with connected(app, data, home) as engine, ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[int], str] = {}
        while True:
            wanted = jobs - len(running)
            peek = Peek(event, consumer, wanted or 1, lease, 0.0 if running or once else _WAIT)
            found = []
            if wanted:
                found = or_exit(lambda peek=peek: _ask(engine, queues.PEEK, peek, list[Delivery]))  # type: ignore[misc]
            for delivery in found:
                running[pool.submit(_run, command, delivery)] = delivery.token
            if not running and once:
                break
            ended, _ = wait(running, timeout=0.1 if wanted else None, return_when=FIRST_COMPLETED)
            for future in ended:
                code, token = future.result(), running.pop(future)
                failed += bool(code)
                verb = queues.NACK if code else queues.ACK
                tokens = Tokens(event, [token], consumer)
                or_exit(lambda verb=verb, tokens=tokens: _ask(engine, verb, tokens, dict[str, int]))  # type: ignore[misc]
    if failed:
        say(f"the command failed {counted(failed, 'time')}")
        raise typer.Exit(EXIT_FAILED)


def _run(command: list[str], delivery: Delivery) -> int:
    try:
        return subprocess.run(command, input=_json(delivery) + b"\n", check=False).returncode
    except OSError as e:  # the event comes again
        complain(f"{command[0]}: {e.strerror or e}")
        return -1


def _ask(engine: ConnectedEngine, verb: str, argument: Any, kind: type[T]) -> T:
    asked = engine.connected().ask_verb(verb, argument)
    return msgspec.msgpack.decode(answered(asked, 60.0, "no answer"), type=kind)


def _json(delivery: Delivery) -> bytes:
    found = {"event": delivery.event, "key": delivery.key, "data": decoded_reply(delivery.data), "id": delivery.id}
    return msgspec.json.encode(found, enc_hook=repr)


def _show(found: list[Delivery]) -> None:
    for delivery in found:
        put(_json(delivery).decode())
    sys.stdout.flush()


def _value(line: bytes, number: int) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError as e:
        raise UsageError(f"line {number} is no JSON: {e}") from None


def _key(value: Any, field: str, number: int) -> str:
    if type(value) is not dict or field not in value:
        raise UsageError(f"line {number} has no field {field!r}, which is to be its key")
    found = value[field]
    return found if type(found) is str else msgspec.json.encode(found).decode()
