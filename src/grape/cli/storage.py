"""``grape storage``: objects of an app, or of any other storage."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, Final, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote

import msgspec
import typer

from grape.abc.storage import Place as ObjectPlace
from grape.cli.console import complain, put, say
from grape.cli.home import HomeOption, home_of, or_exit
from grape.cli.live import connected
from grape.cli.live import split as split_event
from grape.cli.places import App, Data, Place, place_of
from grape.client.connection import answered, dial
from grape.errors import Conflict, Corrupt, UsageError
from grape.model.bound import Bound
from grape.model.names import check_key, check_namespace
from grape.model.objects import About
from grape.model.plural import counted
from grape.model.section import show_size
from grape.server.config import bound_for, effective
from grape.storage.connect import opened
from grape.storage.copying import are_same, copy, move
from grape.storage.objects import AT_ONCE, Objects
from grape.storage.source import told_of
from grape.storage.streams import chunks_of
from grape.tools.namespaces import namespaces_in

T = TypeVar("T")

EXIT_FAILED: Final = 1

app = typer.Typer(
    no_args_is_help=True,
    help="""Objects: those of an app (--app of a server, --data DIR), or of any storage (--storage URL).

OBJECT is NAMESPACE/KEY; an app's own namespace has its name.

\b
grape storage put photos/a.png a.png --tag raw --app photos
grape storage ls photos/ --app photos
grape storage cp photos/ file:///backup --app photos""",
)

Url = Annotated[
    str | None,
    typer.Option("--storage", metavar="URL", help="file:///DIR, s3://BUCKET/PREFIX, ...; else the app's own."),
]
Named = Annotated[str, typer.Argument(metavar="OBJECT", help="NAMESPACE/KEY")]
Prefix = Annotated[str, typer.Argument(metavar="NAMESPACE/[PREFIX]", help="All objects whose keys begin so.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="That have it. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines, with all that is known.")]


class Where(NamedTuple):
    """``url``: of a storage. ``bound``: the namespaces of its app that are in other ones."""

    url: str
    bound: Mapping[str, Bound] = {}


def where_of(storage: str | None, data: str | None, name: str | None, home: str | None) -> Where:
    """The storage that is meant."""
    if storage is not None:
        if data is not None or name is not None:
            complain("--storage is one storage, --app or --data another one: say which")
            raise typer.Exit(2)
        return Where(storage)
    place = place_of(data, name, home)
    query = f"?app={quote(place.app)}" if place.app else ""
    url = f"embedded://{quote(str(Path(place.data).absolute()))}{query}"
    return Where(url, or_exit(lambda: _bound(place)))


def _bound(place: Place) -> Mapping[str, Bound]:
    """As the server of an app says it, or the engine that runs on a directory."""
    if place.name:
        root = Path(home_of(place.home))
        return bound_for(effective(root, None, os.environ, {}).config, place.name)
    try:
        connection = dial(place.data).start()
    except UsageError:  # none runs there
        return {}
    try:
        asked: Future[msgspec.Raw] = connection.ask_verb("storages", None)
        return msgspec.msgpack.decode(answered(asked, 10.0, "no answer"), type=dict[str, Bound])
    finally:
        connection.close()


def split(text: str, *, is_prefix: bool = False) -> tuple[str, str]:
    """Namespace and key.

    Raises:
        UsageError: it is none.
    """
    namespace, slash, key = text.partition("/")
    if not slash or not (key or is_prefix):
        what = "NAMESPACE/ or NAMESPACE/PREFIX" if is_prefix else "NAMESPACE/KEY"
        raise UsageError(f"{text!r:.200}: which one? {what}")
    return check_namespace(namespace), key


def run(do: Callable[[], Awaitable[T]]) -> T:
    """Its outcome; an error of Grape ends the command."""

    async def inside() -> T:
        return await do()

    return or_exit(lambda: asyncio.run(inside()))


def _is_same(one: Where, namespace: str, other: Where, other_namespace: str) -> bool:
    return are_same(_place(one, namespace), _place(other, other_namespace))


def _place(where: Where, namespace: str) -> Bound:
    return where.bound.get(namespace, Bound(where.url, namespace))


@asynccontextmanager
async def _objects(where: Where, namespace: str) -> AsyncIterator[Objects]:
    bound = _place(where, namespace)
    async with opened(bound.url) as storage:
        yield Objects(storage, bound.namespace)


def _shown(namespace: str, about: About) -> str:
    return msgspec.json.encode({"namespace": namespace, **msgspec.to_builtins(about)}).decode()


@app.command("ls")
def list_(
    prefix: Prefix,
    storage: Url = None,
    data: Data = None,
    name: App = None,
    home: HomeOption = None,
    tag: Tags = None,
    as_json: AsJson = False,
) -> None:
    """List objects: size, time, key."""
    where = where_of(storage, data, name, home)

    async def do() -> None:
        namespace, begin = split(prefix, is_prefix=True)
        async with _objects(where, namespace) as objects:
            async for about in objects.list(begin, tags=tag or ()):
                put(_shown(namespace, about) if as_json else f"{about.size:>14,}  {_time(about.time)}  {about.key}")

    run(do)


@app.command()
def stat(object: Named, storage: Url = None, data: Data = None, name: App = None, home: HomeOption = None) -> None:
    """Show all that is known of an object, as JSON. Exit code 1: there is none."""
    where = where_of(storage, data, name, home)

    async def do() -> About | None:
        namespace, key = split(object)
        async with _objects(where, namespace) as objects:
            return await objects.stat(key)

    found = run(do)
    if found is None:
        _missing(object)
    put(_shown(split(object)[0], found))


@app.command()
def get(
    object: Named,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to; -: standard output.")] = "-",
    storage: Url = None,
    data: Data = None,
    name: App = None,
    home: HomeOption = None,
) -> None:
    """Write an object into a file, checked. Exit code 1: there is none."""
    where = where_of(storage, data, name, home)

    async def do() -> bool:
        namespace, key = split(object)
        async with _objects(where, namespace) as objects, objects.open(key) as found:
            if found is None:
                return False
            if file == "-":
                async for chunk in found.chunks:
                    sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
                return True
            try:
                with _written_whole(file) as out:
                    async for chunk in found.chunks:
                        out.write(chunk)
            except OSError as e:
                raise UsageError(f"{file}: {e.strerror}") from None
            return True

    if not run(do):
        _missing(object)


@app.command("put")
def put_(
    object: Named,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="What is in it; -: standard input.")] = "-",
    storage: Url = None,
    data: Data = None,
    name: App = None,
    home: HomeOption = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="That it gets. Repeatable.")] = None,
    user: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="To be known beside.")] = None,
    content_type: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Else as its name says.")] = None,
    ttl: Annotated[float | None, typer.Option(metavar="SECONDS", help="After which it is gone.")] = None,
    if_absent: Annotated[
        bool, typer.Option("--if-absent", help="Only if there is none. Exit code 1: there is.")
    ] = False,
    if_version: Annotated[str | None, typer.Option(metavar="VERSION", help="Only if this one is there.")] = None,
    emit: Annotated[
        str | None,
        typer.Option(metavar="[APP@]EVENT", help="With an event that tells of it: both, or neither."),
    ] = None,
) -> None:
    """Write a file, or what comes on standard input, as an object. It is durable when this ends with 0.

    \b
    grape storage put photos/a.png a.png --emit photos@photo
    """
    slot = ""
    if emit is not None:
        if storage is not None or if_absent or if_version:
            complain("--emit writes among the objects of an app, and without a condition")
            raise typer.Exit(2)
        app, slot = split_event(emit)
        if not slot or (app and name not in (None, app)):
            why = "names no event" if not slot else f"is of {app}, and --app says {name}"
            complain(f"--emit {emit!r:.100} {why}")
            raise typer.Exit(2)
        name = name if data is not None or not app else app
    where = where_of(storage, data, name, home)

    async def do() -> About:
        namespace, key = split(object)
        source: Any = sys.stdin.buffer if file == "-" else Path(file)
        if file != "-" and not Path(file).is_file():
            raise UsageError(f"{file}: there is no such file")
        kind = content_type or mimetypes.guess_type(key)[0] or "application/octet-stream"
        if slot:
            if data is None:
                await asyncio.to_thread(lambda: connected(name or "", None, home).close())  # it runs, or is woken
            async with opened(where.url) as one:
                put = Objects(one, namespace).described(kind, tag or (), _pairs(user), ttl=ttl)
                place = ObjectPlace(namespace, check_key(key))
                return await one.write_and_emit(
                    place, chunks_of(source), put, lambda about: told_of(slot, place, about)
                )
        async with _objects(where, namespace) as objects:
            return await objects.put(
                key,
                source,
                content_type=kind,
                tags=tag or (),
                user=_pairs(user),
                ttl=ttl,
                if_absent=if_absent,
                if_version=if_version,
            )

    async def unless_it_does_not_hold() -> About | Conflict:
        try:
            return await do()
        except Conflict as e:
            if if_absent or if_version:
                return e
            raise

    about = run(unless_it_does_not_hold)
    if isinstance(about, Conflict):
        complain(str(about))
        raise typer.Exit(EXIT_FAILED)
    put(_shown(split(object)[0], about))


@app.command()
def rm(
    object: Named,
    storage: Url = None,
    data: Data = None,
    name: App = None,
    home: HomeOption = None,
    recursive: Annotated[bool, typer.Option("-r", help="All whose keys begin so.")] = False,
) -> None:
    """Remove an object. Exit code 1: there was none."""
    where = where_of(storage, data, name, home)

    async def do() -> int:
        namespace, key = split(object, is_prefix=recursive)
        async with _objects(where, namespace) as objects:
            if not recursive:
                return int(await objects.remove(key))
            removed = 0
            async for about in objects.list(key):
                removed += await objects.remove(about.key)
            return removed

    removed = run(do)
    if recursive:
        say(f"{counted(removed, 'object')} removed")
    elif not removed:
        _missing(object)


@app.command()
def mv(
    object: Annotated[str, typer.Argument(metavar="OBJECT", help="NAMESPACE/KEY, or NAMESPACE/PREFIX/ of many.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The same of the new name.")],
    storage: Url = None,
    data: Data = None,
    name: App = None,
    home: HomeOption = None,
) -> None:
    """Give an object, or all below a prefix, another name in the same storage. (Into another one: cp --move.)

    Each is written anew with all that is known of it, and then removed; what somebody writes meanwhile is moved, too.
    The same command goes on where it was ended.
    """
    where = where_of(storage, data, name, home)

    async def do() -> int:
        is_many = object.endswith("/")
        if is_many != target.endswith("/"):
            raise UsageError("either both end with /, and all below is moved, or none of both")
        (namespace, key), (new_namespace, new_key) = split(object, is_prefix=is_many), split(target, is_prefix=is_many)
        if _is_same(where, namespace, where, new_namespace):
            if is_many and new_key.startswith(key):
                raise UsageError(f"{target} lies below {object}")
            if new_key == key:
                raise UsageError(f"{object} and {target} are one object")
        moved = 0
        async with _objects(where, namespace) as source, _objects(where, new_namespace) as into:
            keys = [about.key async for about in source.list(key)] if is_many else [key]
            for each in keys:
                new = new_key + each[len(key) :] if is_many else new_key
                moved += await move(source, into, check_key(each), check_key(new)) is not None
        return moved

    moved = run(do)
    if not moved and not object.endswith("/"):
        _missing(object)
    say(f"{counted(moved, 'object')} moved")


@app.command()
def cp(
    prefix: Prefix,
    target: Annotated[str, typer.Argument(metavar="URL", help="Of the other storage; namespace and keys stay.")],
    storage: Url = None,
    data: Data = None,
    name: App = None,
    home: HomeOption = None,
    tag: Tags = None,
    moves: Annotated[bool, typer.Option("--move", help="Remove what has been copied and verified.")] = False,
) -> None:
    """Copy objects into another storage, several at a time, each checked.

    What is there already and the same is passed over, so a copy that was ended goes on when it is started again.
    """
    where = where_of(storage, data, name, home)

    async def do() -> tuple[int, int, int]:
        namespace, begin = split(prefix, is_prefix=True)
        if _is_same(where, namespace, Where(target), namespace):
            raise UsageError(f"{target}: they lie there; name another storage (grape storage mv gives other names)")
        async with _objects(where, namespace) as source, _objects(Where(target), namespace) as into:
            limit = asyncio.Semaphore(AT_ONCE // 2)
            counts = [0, 0, 0]

            async def one(about: About) -> None:
                async with limit:
                    copied = await (move if moves else copy)(source, into, about.key)
                    if copied is not None:  # else it has gone meanwhile
                        counts[0 if copied.is_new else 1] += 1
                        counts[2] += copied.about.size if copied.is_new else 0

            position = ""
            while True:
                page = await source.page(begin, position, tags=tag or ())
                async with asyncio.TaskGroup() as group:
                    for about in page.items:
                        group.create_task(one(about))
                position = page.position
                if not position:
                    return counts[0], counts[1], counts[2]

    try:
        copied, same, size = run(do)
    except BaseExceptionGroup as e:
        first: BaseException = e
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        complain(f"{first}\nwhat was copied stays; the same command goes on where it was")
        raise typer.Exit(2) from None
    say(f"{counted(copied, 'object')} copied ({show_size(size)}), {same:,} were there already")


@app.command()
def verify(prefix: Prefix, storage: Url = None, data: Data = None, name: App = None, home: HomeOption = None) -> None:
    """Read objects, and say which are not what was written. Exit code 1: some are not."""
    where = where_of(storage, data, name, home)

    async def do() -> tuple[int, int]:
        namespace, begin = split(prefix, is_prefix=True)
        good = bad = 0
        async with _objects(where, namespace) as objects:
            async for about in objects.list(begin):
                try:
                    await objects.verify(about.key)
                    good += 1
                except Corrupt as e:
                    complain(str(e))
                    bad += 1
        return good, bad

    good, bad = run(do)
    said = f"{counted(good, 'object')} {'is as it was' if good == 1 else 'are as they were'} written"
    say(f"{said}, {bad:,} {'is' if bad == 1 else 'are'} not" if bad else said)
    if bad:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def du(prefix: Prefix, storage: Url = None, data: Data = None, name: App = None, home: HomeOption = None) -> None:
    """How many objects there are, and how large they are together."""
    where = where_of(storage, data, name, home)

    async def do() -> tuple[int, int]:
        namespace, begin = split(prefix, is_prefix=True)
        async with _objects(where, namespace) as objects:
            return await objects.count(begin)

    count, size = run(do)
    put(f"{counted(count, 'object')}, {size:,} bytes ({show_size(size)})")


@app.command()
def watch(prefix: Prefix, storage: Url = None, data: Data = None, name: App = None, home: HomeOption = None) -> None:
    """Print what is written and removed from now on, as JSON lines, until Ctrl-C."""
    where = where_of(storage, data, name, home)

    async def do() -> None:
        namespace, begin = split(prefix, is_prefix=True)
        async with _objects(where, namespace) as objects:
            one, there = objects.storage, objects.namespace
            position = (await one.changes(there, begin, None)).position
            say("watching; stop with Ctrl-C")
            while True:
                found = await one.changes(there, begin, position)
                position = found.position
                for change in found.items:
                    about = change.about
                    gone = msgspec.json.encode({"namespace": namespace, "key": change.key, "removed": True}).decode()
                    put(gone if about is None else _shown(namespace, about))
                sys.stdout.flush()
                if not found.items:
                    await asyncio.sleep(0.2)

    run(do)


@app.command()
def namespaces(data: Data = None, name: App = None, home: HomeOption = None) -> None:
    """The namespaces in which an app has objects."""
    place = place_of(data, name, home)

    for each in or_exit(lambda: namespaces_in(place.data, place.app)):
        put(each)


def _missing(object: str) -> NoReturn:
    complain(f"there is no object {object!r:.300}")
    raise typer.Exit(EXIT_FAILED)


def _time(us: int) -> str:
    try:
        return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # what a handler says of its objects may be anything
        return f"{us:>16} us"


@contextmanager
def _written_whole(file: str) -> Iterator[IO[bytes]]:
    """The file is there when the block is left, or what was there before."""
    place = Path(file)
    if place.exists() and not place.is_file():  # a pipe, a device
        with open(place, "wb") as out:
            yield out
        return
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name[:100]}.", delete=False) as out:
        try:
            yield out
            out.close()
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(out.name, 0o666 & ~mask)
            os.replace(out.name, place)
        except BaseException:
            os.unlink(out.name)
            raise


def _pairs(texts: list[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or ():
        name, there_is, value = text.partition("=")
        if not there_is:
            raise UsageError(f"--set is NAME=VALUE, not {text!r:.100}")
        found[name] = value
    return found
