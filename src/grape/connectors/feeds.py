"""What a feed is: ``--feed EVENT=SOURCE,OPTIONS`` of the command line, and `grape.feed` in Python."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, structs

from grape.abc.source import Source, Terms
from grape.connectors.callables import CallableSource
from grape.connectors.files import JsonLinesFile, TextFile
from grape.connectors.follow import FollowedJsonLines, FollowedText
from grape.connectors.lines import MAX_EVENT
from grape.connectors.streams import Stream, stream_path
from grape.errors import UsageError
from grape.model.near import did_you_mean
from grape.model.values import shown

_EXAMPLE: Final = (
    "examples: --feed line=book.txt, --feed order=orders.jsonl,key=id, --feed line=access.log,key=/^(\\S+)/, "
    "--feed line=- (standard input), --feed order=-,jsonl"
)
_JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
_VALUED: Final = {
    "key": "key=FIELD, /expression/ or module:function",
    "id": "id=FIELD, /expression/ or module:function",
    "order": "order=source",
    "retries": "retries=N",
    "on_end": "on_end=EVENT",
}
_FLAGS: Final = ("jsonl", "text", "follow", "complete")
_KNOWN: Final = (*_VALUED.values(), *_FLAGS)
_LOOKS: Final = re.compile(r"[A-Za-z][A-Za-z_-]*(=.*)?", re.DOTALL)
MAX_RETRIES: Final = 1_000


class _Fed(Struct, frozen=True):
    source: str | os.PathLike[str] | Source | Callable[[Any], Any] | Any


class FeedSpec(_Fed, frozen=True, kw_only=True):
    """A source with options, for ``grape.run(feed={"line": grape.feed("access.log", key=r"/^(\\S+)/")})``.

    Args:
        source: a path, or a callable ``read(position) -> (events, position)``.
        key: what an event's key is taken from: a field of JSON, "/expression/" (its first group, or all it matches),
            "module:function", a compiled expression, or a function of the event's data.
        id: the same for the event's own id: an event with an id that was fed before is not fed again.
        order: "source": all of it goes to one partition, so that its order is that of everything it leads to.
        retries: reads after one that failed, with back-off.
        on_end: the event that is fed once when the source has ended.
        follow: go on reading as the file grows, also when it is rotated.
        complete: the file is complete: a last line without a line end is a line.
        kind: "text" or "jsonl", if the name of the file does not say it.
        name: of a callable: its position is stored under it; else its qualified name.

    What cannot be is said when it is used, as a UsageError.
    """

    key: str | re.Pattern[str] | Callable[[Any], Any] | None = None
    id: str | re.Pattern[str] | Callable[[Any], Any] | None = None
    order: str | None = None
    retries: int = 3
    on_end: str = ""
    follow: bool = False
    complete: bool = False
    kind: str | None = None
    name: str | None = None


feed = FeedSpec


def source_of(event: str, what: Any, max_event: int = MAX_EVENT) -> Source:
    """The source that a path, a callable, a `Source` or a `FeedSpec` means.

    Raises:
        UsageError: it is none of these, or cannot have such options.
    """
    if isinstance(what, str | os.PathLike):
        path = os.fsdecode(what)
        return parse_feed(f"{event}={path}", max_event)
    spec = what if isinstance(what, FeedSpec) else FeedSpec(source=what)
    try:
        return _made(event, spec, max_event)
    except UsageError as e:
        raise UsageError(f"feed[{event!r}]: {e}") from None


def _made(event: str, spec: FeedSpec, max_event: int) -> Source:
    """
    Raises:
        UsageError: see `source_of`.
    """
    terms = _terms(spec)
    if isinstance(spec.source, str | os.PathLike):
        source = _of_path(event, os.fsdecode(spec.source), spec, max_event)
    else:
        given = [name for name, value in (("follow", spec.follow), ("complete", spec.complete)) if value]
        if given:
            raise UsageError(f"{given[0]} is for files, not for {shown(spec.source)}")
        if isinstance(spec.source, Source):
            if spec.key is not None or spec.id is not None:
                raise UsageError("key= and id= are for files and callables; a Source gives its events their own")
            source = spec.source
            if spec == FeedSpec(source=spec.source):
                return source
        else:
            name = spec.name or _name_of(spec.source)
            source = CallableSource(event, spec.source, name, max_event, key=spec.key, id=spec.id)
    source.terms = terms
    if spec.complete or terms.on_end:
        source.is_final = True
    return source


def _name_of(source: Any) -> str:
    if callable(source):
        return str(getattr(source, "__qualname__", type(source).__name__))
    if hasattr(source, "read"):
        return str(getattr(source.read, "__qualname__", type(source).__name__))
    if hasattr(source, "__next__"):
        raise UsageError(
            f"a {type(source).__name__} cannot be read again from a position; give a function read(position) that "
            "returns (events, position)"
        )
    raise UsageError(f"a {type(source).__name__}: give a path, a Source or read(position)")


def _terms(spec: FeedSpec) -> Terms:
    if spec.order not in (None, "source"):
        raise UsageError(f"order={spec.order}: the only order is order=source; {_hint(spec.order, ['source'])}")
    if spec.order is not None and spec.key is not None:
        raise UsageError(
            "key= and order=source do not go together: a key says to which partition an event goes, and events of a "
            "key are in the file's order as it is. Leave one of them out"
        )
    if type(spec.retries) is not int or not 0 <= spec.retries <= MAX_RETRIES:
        raise UsageError(f"retries= is a number from 0 to {MAX_RETRIES:,}, not {shown(spec.retries)}")
    if type(spec.on_end) is not str:
        raise UsageError(f"on_end= is the name of an event, not {shown(spec.on_end)}")
    if spec.follow and (spec.on_end or spec.complete):
        raise UsageError("follow has no end: leave out on_end= and complete")
    if spec.kind not in (None, "text", "jsonl"):
        raise UsageError(f"the kind of a file is 'text' or 'jsonl', not {shown(spec.kind)}")
    return Terms(spec.order == "source", spec.retries, spec.on_end)


def _hint(name: object, known: list[str]) -> str:
    return did_you_mean(name, known, f"known are {', '.join(known)}", 0.5)


def _of_path(event: str, place: str, spec: FeedSpec, max_event: int) -> Source:
    stream = "-" if place == "-" else stream_path(place)
    kind = spec.kind
    if kind is None:
        is_json = place.lower().endswith(_JSON_SUFFIXES) or (stream == "-" and _is_field(spec.key))
        kind = "jsonl" if is_json else "text"
    for option, value in (("key", spec.key), ("id", spec.id)):
        if kind == "text" and _is_field(value):
            how = "asked for as text" if spec.kind == "text" else "read as text"
            raise UsageError(
                f"{place} is {how}, which has no field {value!r} for {'a key' if option == 'key' else 'an id'}; "
                f"of text: {option}=/expression/; if it holds JSON lines: --feed {event}={place},jsonl,{option}={value}"
            )
    if stream is not None:
        if spec.follow:
            raise UsageError(f"{place}: only a regular file can be followed; this is read to its end as it is")
        path = None if stream == "-" else stream
        return Stream(event, kind, max_event, key=spec.key, id=spec.id, path=path)
    if spec.follow:
        followed = FollowedText if kind == "text" else FollowedJsonLines
        return followed(event, place, max_event, key=spec.key, id=spec.id)
    file = TextFile if kind == "text" else JsonLinesFile
    return file(event, place, max_event, key=spec.key, id=spec.id)


def _is_field(value: object) -> bool:
    """Whether a key is a field: neither an expression nor a function."""
    if not isinstance(value, str) or not value:
        return False
    is_expression = value.startswith("/") and value.endswith("/") and len(value) > 1
    return not is_expression and (value.startswith("field:") or re.fullmatch(r"[\w.]+:[\w.]+", value) is None)


# ------------------------------------------------------------------ --feed


def parse_feed(text: str, max_event: int = MAX_EVENT) -> Source:
    """What ``--feed EVENT=SOURCE`` means: "-", or anything that can be read, as JSON lines (.jsonl, .ndjson, or
    ``,jsonl``) or text, and options behind it.

    Options follow the file's name, each behind a comma; where they begin is where everything that follows can be read
    as options. If a file of exactly the whole name exists, it is that file.

    Raises:
        UsageError: it cannot be understood.
    """
    event, equals, rest = text.partition("=")
    event = event.strip()
    if not equals or not event or not rest:
        raise UsageError(f"--feed {text!r}: must be EVENT=SOURCE; {_EXAMPLE}")
    try:
        place, options = _split(rest)
        return _made(event, _spec(place, options), max_event)
    except UsageError as e:
        raise UsageError(f"--feed {text!r}: {e}") from None


def _split(rest: str) -> tuple[str, list[tuple[str, str | None]]]:
    """The file's name, and the options behind it."""
    if "," not in rest or _exists(rest):
        return rest, []
    found = [(rest[:at], options) for at in _commas(rest) if (options := _options(rest[at + 1 :])) is not None]
    if found and not found[0][0]:
        raise UsageError(f"no file is named; {_EXAMPLE}")
    for place, options in found:
        if place == "-" or _exists(place):
            return place, options
    if found:
        return found[0]
    _complain(rest)
    return rest, []


def _exists(place: str) -> bool:
    try:
        return Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _commas(text: str) -> Iterator[int]:
    return (at for at, character in enumerate(text) if character == ",")


def _options(text: str) -> list[tuple[str, str | None]] | None:
    """All of ``text`` as options, or None if it cannot be that."""
    word = re.match(r"[a-z_]+", text)
    if word is None:
        return None
    name, behind = word[0], text[word.end() :]
    if name in _FLAGS and (not behind or behind[0] == ","):
        return _with((name, None), behind)
    if name not in _VALUED or not behind.startswith("="):
        return None
    value = behind[1:]
    if value.startswith("/") and name in ("key", "id"):
        for at, character in enumerate(value[1:], 1):
            if character == "/" and value[at + 1 : at + 2] in ("", ","):
                rest = _with((name, value[: at + 1]), value[at + 1 :])
                if rest is not None:
                    return rest
    end = value.find(",")
    return _with((name, value), "") if end < 0 else _with((name, value[:end]), value[end:])


def _with(option: tuple[str, str | None], behind: str) -> list[tuple[str, str | None]] | None:
    if not behind:
        return [option]
    rest = _options(behind[1:])
    return None if rest is None else [option, *rest]


def _complain(rest: str) -> None:
    """
    Raises:
        UsageError: what stands behind the last commas was surely meant to be options.
    """
    place, *parts = rest.split(",")
    for part in parts:
        name = part.partition("=")[0]
        is_option = _LOOKS.fullmatch(part) is not None and (
            "=" in part or place == "-" or _exists(place) or name in (*_VALUED, *_FLAGS)
        )
        if not is_option:
            place = f"{place},{part}"
            continue
        if name in _VALUED and "=" not in part:
            raise UsageError(f"{name} needs a value: {_VALUED[name]}; {_EXAMPLE}")
        if name not in _VALUED and name not in _FLAGS:
            hint = did_you_mean(name, [*_VALUED, *_FLAGS])
            known = f"known are {', '.join(_KNOWN)}"
            raise UsageError(f"unknown option {part!r}; {f'{hint} ' if hint else ''}{known}; {_EXAMPLE}")
        if name in _FLAGS and "=" in part:
            raise UsageError(f"{name} takes no value; {_EXAMPLE}")


def _spec(place: str, options: list[tuple[str, str | None]]) -> FeedSpec:
    spec = FeedSpec(source=place)
    seen: set[str] = set()
    for name, value in options:
        if name in seen:
            raise UsageError(f"{name}{'' if value is None else '='} stands there twice; {_EXAMPLE}")
        seen.add(name)
        if name in ("jsonl", "text"):
            if spec.kind is not None:
                raise UsageError(f"{name} and {spec.kind}, which is it? {_EXAMPLE}")
            spec = structs.replace(spec, kind=name)
        elif value is None:
            spec = structs.replace(spec, **{name: True})
        elif not value:
            raise UsageError(f"{name}= names no {'field' if name in ('key', 'id') else 'value'}; {_VALUED[name]}")
        elif name == "retries":
            if not value.isdecimal() or int(value) > MAX_RETRIES:
                raise UsageError(f"retries={value}: a number from 0 to {MAX_RETRIES:,}")
            spec = structs.replace(spec, retries=int(value))
        else:
            spec = structs.replace(spec, **{name: value})
    return spec
