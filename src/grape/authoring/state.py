"""Keyed state as an author declares it."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import timedelta
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Generic, Never, TypedDict, TypeVar, Unpack, overload

import msgspec
from msgspec import Struct

from grape.authoring.options import refuse_unknown
from grape.authoring.places import place_of_caller
from grape.errors import TopologyError
from grape.model import own
from grape.model.values import seconds

T = TypeVar("T")
N = TypeVar("N")
Collected = TypeVar("Collected", bound=list[Any] | dict[Any, Any] | set[Any])

WRITTEN: Final = "_grape_written"
"""Key in the ``__dict__`` of a node: the names of states that were assigned. Set by the runtime."""
LOADER: Final = "_grape_load"
"""Key in the ``__dict__`` of a node: ``(name) -> value``, which also stores the value there. Set by the runtime."""

_PLAIN: Final = frozenset({int, str, float, bool, bytes, NoneType})
_COLLECTIONS: Final[tuple[Callable[[], Any], ...]] = (list, dict, set)


MAX_VERSION: Final = 1 << 31


class Options(TypedDict, total=False):
    """What any `State` may have."""

    ttl: float | timedelta | None
    version: int
    upgrade: Callable[[Any, int], Any] | None


class _Missing(Enum):
    MISSING = "MISSING"


_MISSING: Final = _Missing.MISSING


class State(Generic[T]):
    """One named piece of durable state, one value per key.

    On a node class it reads and writes like an attribute, ``del self.seen`` deletes it::

        class Count(Node):
            seen = State(int, default=0)

    A function asks for it by an argument and uses ``seen.value``::

        def count(word: str, seen: State[int] = State(int, default=0)) -> None:
            seen.value += 1

    In a worker the function gets an object of the runtime with that ``value``. In a direct call it gets this one,
    whose ``value`` is kept in here; a test passes one of its own.

    A plain state is no data descriptor, so that a value in the ``__dict__`` of the node is read and written at the
    speed of an attribute. One that is decoded on first use (not ``is_plain``) is a data descriptor, so that it can be
    deleted without having been read; so is one with a ttl, which an assignment of the same value prolongs.

    Attributes:
        name: that of the attribute or argument.
        value_type: what stored values are decoded to; includes None if the default is None.
        ttl: seconds after the last write at which a value reads as the default again; None: kept until deleted.
        is_plain: the type is one of int, str, float, bool, bytes and None, or a union of these.
        is_bare: an assignment to it is that of an attribute, which nobody sees.
        version, upgrade: of the form of its values; how one of an older version becomes one of this.
    """

    if TYPE_CHECKING:

        def __set__(self, instance: object, value: T) -> None: ...
        def __delete__(self, instance: object) -> None: ...

    else:

        def __new__(cls, value_type: Any, /, **options: Any) -> State[Any]:
            is_seen = options.get("ttl") is not None or not _is_plain(value_type)
            return object.__new__(_SeenState if is_seen else cls)

    @overload
    def __init__(
        self: State[N | None], value_type: type[N], /, *, default: None, **options: Unpack[Options]
    ) -> None: ...
    @overload
    def __init__(self, value_type: type[T], /, *, default: T, **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(self: State[Collected], value_type: type[Collected], /, **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(self: State[N | None], value_type: type[N], /, **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(
        self: State[Any], value_type: UnionType, /, *, default: object = ..., **options: Unpack[Options]
    ) -> None: ...
    def __init__(
        self,
        value_type: Any,
        /,
        *,
        default: Any = _MISSING,
        ttl: float | timedelta | None = None,
        version: int = 1,
        upgrade: Callable[[Any, int], Any] | None = None,
        **unknown: Never,
    ) -> None:
        """Declare state of ``value_type``: anything msgspec encodes and decodes (builtins, collections of them,
        Structs, dataclasses, enums, ...).

        Args:
            value_type: the type of the values.
            default: what a key without a value reads. Left out, it is an empty collection for list, dict and set, and
                None for all else. A mutable default is copied for every key.
            ttl: seconds or a timedelta.
            version: of the form of the values; 1 is what was stored before there were versions.
            upgrade: ``(value, version)``, gets a value of an older version, as plain data, and that version; returns
                one of this version. It is called when an event reads it.

        Raises:
            TopologyError: the type cannot be stored, or default, ttl, version or upgrade do not fit.
        """
        refuse_unknown("State", unknown, ("default", "ttl", "version", "upgrade"))
        check_type(value_type, f"{place_of_caller()}: State")
        collection = typing.get_origin(value_type) or value_type
        if default is _MISSING:
            default = collection() if collection in _COLLECTIONS else None
        self.name = ""
        self.value_type: Any = value_type if default is not None else typing.Optional[value_type]  # noqa: UP045
        self.is_plain = _is_plain(value_type)
        self.ttl = _checked_ttl(ttl)
        self.is_bare = self.is_plain and self.ttl is None
        self.version = _checked_version(version, upgrade)
        self.upgrade = upgrade
        self._default: Any = default
        self._copy_default = default is not None and type(default) not in _PLAIN
        self._value: Any = _MISSING
        self._check_default()

    def make_default(self) -> T:
        """What a key without a value reads; a new copy on every call if it is mutable."""
        value: T = deepcopy(self._default) if self._copy_default else self._default
        return value

    @property
    def value(self) -> T:
        """The value of a direct call of a function (outside a worker); ``del`` deletes it."""
        if self._value is _MISSING:
            self._value = self.make_default()
        value: T = self._value
        return value

    @value.setter
    def value(self, value: T) -> None:
        self._value = value

    @value.deleter
    def value(self) -> None:
        self._value = _MISSING

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> State[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> State[T] | T:
        if instance is None:
            return self
        return self._load(instance.__dict__)

    def __repr__(self) -> str:
        default = "" if self._default is None else f", default={self._default!r}"
        ttl = "" if self.ttl is None else f", ttl={self.ttl:g}"
        return f"State({type_name(self.value_type)}{default}{ttl})"

    def _load(self, attributes: dict[str, Any]) -> T:
        loader: Callable[[str], T] | None = attributes.get(LOADER)
        if loader is not None:
            return loader(self.name)
        value = self.make_default()
        if self._copy_default:
            attributes[self.name] = value  # a change of it must stay
        return value

    def _check_default(self) -> None:
        if self._default is None:
            return
        try:
            own.decoder(self.value_type)(own.encode(self._default))
        except (TypeError, ValueError, OverflowError) as e:
            raise TopologyError(
                f"{place_of_caller()}: State: default={self._default!r:.60} is no {type_name(self.value_type)} ({e})"
            ) from None


class _SeenState(State[T]):
    """A state whose every access is seen."""

    if not TYPE_CHECKING:

        def __get__(self, instance: object | None, owner: type | None = None) -> Any:
            if instance is None:
                return self
            attributes = instance.__dict__
            return attributes[self.name] if self.name in attributes else self._load(attributes)

        def __set__(self, instance: object, value: Any) -> None:
            attributes = instance.__dict__
            attributes[self.name] = value
            if WRITTEN in attributes:
                attributes[WRITTEN].add(self.name)

        def __delete__(self, instance: object) -> None:
            attributes = instance.__dict__
            if self.name not in attributes and LOADER in attributes:
                attributes[LOADER](self.name)  # the runtime has to know that the name was touched
            attributes.pop(self.name, None)


def check_type(value_type: Any, what: str) -> None:
    """Check that values of ``value_type`` can be encoded and decoded. ``what`` begins the error.

    Raises:
        TopologyError: they cannot.
    """
    try:
        own.check_complete(value_type)
        own.decoder(value_type)
        refused = None if own.is_validated(value_type) else next(_foreign(_info(value_type), set()), None)
    except (TypeError, ValueError, NameError) as e:
        raise TopologyError(f"{what}: {type_name(value_type)} cannot be encoded and decoded ({e})") from None
    if refused is not None and own.is_model(refused):
        raise TopologyError(
            f"{what}: {type_name(refused)} is a dataclass of pydantic, which nobody would validate inside a type that "
            f"is none of pydantic's; make it a BaseModel"
        )
    if refused is not None:
        raise TopologyError(
            f"{what}: values of type {type_name(refused)} cannot be encoded and decoded. Builtins, collections of "
            f"them, msgspec.Struct, dataclasses, TypedDict, enums, datetime, Decimal, UUID and models of pydantic can; "
            f"for others say how before this line: grape.register({refused.__name__}, encode=..., decode=...)"
        )


_info = msgspec.inspect.type_info


def _foreign(info: Any, seen: set[int]) -> Iterator[Any]:
    """The types inside ``info`` that msgspec does not know."""
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        if info.cls is not object and not own.is_own(info.cls):
            yield info.cls
        return
    if isinstance(info, msgspec.inspect.DataclassType) and own.is_model(info.cls):
        yield info.cls
    if isinstance(info, tuple):
        for item in info:
            yield from _foreign(item, seen)
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field) and isinstance(info, Struct):
        for name in info.__struct_fields__:
            if name not in ("default", "default_factory", "cls"):
                yield from _foreign(getattr(info, name), seen)


def _is_plain(value_type: Any) -> bool:
    if typing.get_origin(value_type) in (typing.Union, UnionType):
        return all(_is_plain(member) for member in typing.get_args(value_type))
    try:
        return value_type is None or value_type in _PLAIN
    except TypeError:  # unhashable: check_type refuses it
        return False


def _checked_version(version: object, upgrade: object) -> int:
    if type(version) is not int or not 1 <= version <= MAX_VERSION:
        raise TopologyError(f"{place_of_caller()}: State: version= is a number from 1 on, not {version!r:.60}")
    if upgrade is not None and not callable(upgrade):
        raise TopologyError(f"{place_of_caller()}: State: upgrade= is a function (value, version), not {upgrade!r:.60}")
    if (upgrade is None) != (version == 1):
        raise TopologyError(
            f"{place_of_caller()}: State: version= and upgrade= belong together: a version above 1, and how a value of "
            f"an older one becomes one of it"
        )
    return version


def _checked_ttl(ttl: float | timedelta | None) -> float | None:
    if ttl is None:
        return None
    try:
        checked = seconds(ttl, "State: ttl")
    except (TypeError, ValueError) as e:
        raise TopologyError(f"{place_of_caller()}: {e}") from None
    if checked == 0:
        raise TopologyError(
            f"{place_of_caller()}: State: ttl must be above 0; leave it out to keep values until they are deleted"
        )
    return checked


def type_name(value_type: Any) -> str:
    """``value_type`` as its author wrote it, nearly."""
    return (
        value_type.__qualname__
        if isinstance(value_type, type) and not typing.get_args(value_type)
        else repr(value_type)
    )
