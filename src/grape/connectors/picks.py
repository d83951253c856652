"""What an event's key or id is taken from: a field, a regular expression, a function."""

from __future__ import annotations

import importlib
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, Final, Literal

from grape.authoring.places import is_engine_file
from grape.authoring.raised import line_of, trace_of
from grape.errors import UsageError
from grape.model.address import MAX_ID_BYTES, MAX_KEY_BYTES, check_key, check_text
from grape.model.near import did_you_mean
from grape.model.values import shown

What = Literal["key", "id"]

_FUNCTION: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_FIELD: Final = "field:"
_MOST: Final[dict[What, int]] = {"key": MAX_KEY_BYTES, "id": MAX_ID_BYTES}


class Unfit(Exception):
    """There is no key (or id) in a value; the text says why. ``kind``: "bad-key" or "bad-id"."""

    def __init__(self, what: What, text: str) -> None:
        super().__init__(text)
        self.kind = f"bad-{what}"
        self.text = text


class Pick(ABC):
    """Takes the key or the id out of values.

    Attributes:
        needs_plain: it looks into values, which have to be builtins.
    """

    needs_plain = True

    def __init__(self, what: What) -> None:
        self.what: What = what

    @abstractmethod
    def _all(self, values: list[Any]) -> list[Any] | None:
        """Quickly, for all; None: they have to be looked at one by one. May raise whatever it meets."""

    @abstractmethod
    def _one(self, value: Any) -> Any:
        """
        Raises:
            Unfit: there is none.
        """

    def column(self, values: list[Any]) -> list[str] | None:
        """Of all values, or None if one has none."""
        try:
            found = self._all(values)
            if found is None:
                return None
            kinds = set(map(type, found))
            if kinds == {int}:
                return list(map(str, found))
            if kinds != {str} or not are_short(found, _MOST[self.what]) or not are_unicode(found, 0):
                return None
        except Exception:  # code of others; `one` says which and what
            return None
        return found

    def one(self, value: Any) -> str:
        """
        Raises:
            Unfit: it has none.
        """
        found = self._one(value)
        if type(found) is int or type(found) is float:
            found = str(found)
        if type(found) is not str:
            raise Unfit(
                self.what, f"the {self.what}, {self.source}, is {_json_name(found)}; it must be text or a number"
            )
        try:
            return check_key(found) if self.what == "key" else check_id(found)
        except ValueError as e:
            raise Unfit(self.what, f"{self.source}: {e}") from None

    @property
    @abstractmethod
    def source(self) -> str:
        """Where it is taken from, in words."""


class FieldPick(Pick):
    """The field of an object."""

    def __init__(self, what: What, field: str) -> None:
        super().__init__(what)
        self.field = field

    @property
    def source(self) -> str:
        return f"field {self.field!r}"

    def _all(self, values: list[Any]) -> list[Any] | None:
        return list(map(itemgetter(self.field), values))

    def _one(self, value: Any) -> Any:
        if type(value) is not dict:
            raise Unfit(
                self.what,
                f"the {self.what} is the field {self.field!r} of an object, but this line is {_json_name(value)}",
            )
        if self.field not in value:
            near = did_you_mean(self.field, [name for name in value if type(name) is str])
            hint = f"; {near}" if near else ""
            raise Unfit(self.what, f"no field {self.field!r} to take the {self.what} from{hint}")
        return value[self.field]


class RegexPick(Pick):
    """The first group of a regular expression, or all that it matches."""

    def __init__(self, what: What, pattern: re.Pattern[str]) -> None:
        super().__init__(what)
        self._pattern = pattern
        self._search = pattern.search
        self._group = 1 if pattern.groups else 0

    @property
    def source(self) -> str:
        return f"what /{self._pattern.pattern}/ matches"

    def _all(self, values: list[Any]) -> list[Any] | None:
        group = self._group
        return [match[group] for match in map(self._search, values) if match is not None] if values else None

    def column(self, values: list[Any]) -> list[str] | None:
        found = super().column(values)
        return found if found is not None and len(found) == len(values) else None

    def _one(self, value: Any) -> Any:
        if type(value) is not str:
            raise Unfit(self.what, f"the {self.what} is {self.source}, but this is {_json_name(value)}, not text")
        match = self._search(value)
        if match is None or match[self._group] is None:
            raise Unfit(self.what, f"no {self.what}: /{self._pattern.pattern}/ does not match")
        return match[self._group]


class FunctionPick(Pick):
    """What a function returns for an event's data."""

    needs_plain = False

    def __init__(self, what: What, function: Callable[[Any], Any], name: str) -> None:
        super().__init__(what)
        self._function = function
        self._name = name

    @property
    def source(self) -> str:
        return f"what {self._name} returns"

    def _all(self, values: list[Any]) -> list[Any] | None:
        return list(map(self._function, values))

    def _one(self, value: Any) -> Any:
        try:
            return self._function(value)
        except Exception as e:
            raise Unfit(self.what, f"no {self.what}: {self._name} raised {line_of(e)}") from None


def pick_of(what: What, given: object, is_text: bool | None = None) -> Pick:
    """What ``key=`` or ``id=`` means.

    Args:
        given: a function, a compiled expression, or text: FIELD, "field:FIELD", "/expression/", "module:function".
        is_text: the data is text, which has no fields; None: not known.

    Raises:
        UsageError: it means nothing, or nothing that such data has.
    """
    if isinstance(given, re.Pattern):
        if not isinstance(given.pattern, str):
            raise UsageError(f"{what}=: an expression for text is needed, not one for bytes: {given.pattern!r:.60}")
        return RegexPick(what, given)
    if isinstance(given, str):
        return _of_text(what, given, is_text)
    if callable(given):
        return FunctionPick(what, given, str(getattr(given, "__qualname__", type(given).__name__)))
    raise UsageError(f"{what}= is a field, /expression/, module:function or a function, not {shown(given)}")


def _of_text(what: What, text: str, is_text: bool | None) -> Pick:
    if not text:
        raise UsageError(f"{what}= names no field, /expression/ or module:function")
    if text.startswith("/") and text.endswith("/") and len(text) > 1 and is_text is not False:
        if len(text) == 2:
            raise UsageError(f"{what}=//: there is no expression between the slashes")
        try:
            return RegexPick(what, re.compile(text[1:-1]))
        except re.error as e:
            raise UsageError(f"{what}={text}: no regular expression: {e}") from None
    if text.startswith(_FIELD) and len(text) > len(_FIELD):
        return FieldPick(what, text[len(_FIELD) :])
    if _FUNCTION.fullmatch(text):
        return FunctionPick(what, _function(what, text), text)
    if is_text is False and text.startswith("/"):
        raise UsageError(
            f"{what}={text}: an expression is for text; name a field of the JSON object ({what}=FIELD; one that "
            f"begins with a slash: {what}=field:{text})"
        )
    return FieldPick(what, text)


def _function(what: What, text: str) -> Callable[[Any], Any]:
    name, _, path = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name != name and not name.startswith(f"{e.name}."):
            raise UsageError(f"{what}={text}: importing {name!r} failed: {line_of(e)}") from None
        raise UsageError(
            f"{what}={text}: there is no module {e.name!r} in {os.getcwd()!r} or on sys.path; "
            f"if it is the field {text!r} of a JSON object: {what}={_FIELD}{text}"
        ) from None
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        trace = trace_of(e, is_engine_file)
        raise UsageError(f"{what}={text}: importing {name!r} failed: {line_of(e)}\n{trace}".rstrip()) from None
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, [n for n in dir(found) if not n.startswith("__")])
            raise UsageError(f"{what}={text}: {name!r} has no {part!r}; {hint or 'look at its functions'}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{what}={text}: it is {shown(found)}, not a function")
    return found  # type: ignore[no-any-return]


def check_id(text: str) -> str:
    """
    Raises:
        ValueError: it is empty, too long, or no Unicode text.
    """
    return check_text(text, "an id", MAX_ID_BYTES)


def are_short(texts: list[str], most: int = MAX_KEY_BYTES) -> bool:
    """Whether none is empty, and none surely over ``most`` bytes."""
    return all(texts) and max(map(len, texts)) * 4 <= most


def are_unicode(texts: list[str], limit: int) -> bool:
    """Whether all can be encoded and surely none has more than ``limit`` bytes (0: no limit). Looked at as one text,
    which costs a tenth of looking at each."""
    together = "".join(texts)
    width = 1
    if not together.isascii():
        width = 4
        try:
            together.encode()
        except UnicodeEncodeError:
            return False
    return not limit or len(together) * width <= limit or max(map(len, texts)) * width <= limit


_JSON_NAMES: Final = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}


def _json_name(value: object) -> str:
    kind = type(value)
    return "a number" if kind in (int, float) else _JSON_NAMES.get(kind, shown(value))


def near_names(name: str, names: Iterable[str]) -> str:
    """ "; did you mean ...?", or nothing."""
    hint = did_you_mean(name, names)
    return f"; {hint}" if hint else ""
