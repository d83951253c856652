"""What a run is asked to be, and the one place that looks at it before anything is made or started."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.authoring.loading import parse_target
from grape.authoring.topology import Topology
from grape.errors import BadArgument, GrapeError
from grape.model.address import MAX_PARTITIONS
from grape.model.bound import Bound
from grape.model.foreign import Peers
from grape.model.levels import Levels, check_level
from grape.model.names import check_namespace
from grape.model.near import did_you_mean
from grape.model.profile import Profile
from grape.model.retention import KEPT_SPANS, Keeping
from grape.model.topology import Limits
from grape.model.values import shown
from grape.store.store import MAX_SIZE

MAX_WORKERS: Final = 1000
MAX_DEAD: Final = (1 << 63) - 1
LEAST_SIZE: Final = 1 << 20
MOST_SIZE: Final = 1 << 46
_MAX_DEPTH: Final = 100
_LIMITS: Final = {
    # name: (least, most)
    "max_event": (1, 8 << 20),
    "batch_target": (1, 16 << 20),
    "batch_max": (1, 16 << 20),
    "max_result": (1, 256 << 20),
    "max_hops": (0, 1 << 31),
    "dispatch_events": (1, 1 << 20),
    "dispatch_bytes": (1, 1 << 30),
    "hold_events": (1, 1 << 31),
    "hold_bytes": (1, 1 << 40),
    "cache_bytes": (0, 1 << 40),
    "dedup_horizon": (0, 1e9),
    "reply_ttl": (0, 1e9),
    "named_deaths": (1, 1 << 31),
}


class Options(Struct, kw_only=True):
    """What to run and how. ``target``: see `grape.authoring.loading.load`. ``workers``: of a pool whose profile does
    not say, 0 = one per core. ``reserve`` and ``max_size``: bytes."""

    target: str
    config: dict[str, Any] = {}
    data: str | None = None
    workers: int = 0
    profiles: dict[str, Profile] = {}
    partitions: int | None = None
    env: dict[str, str] = {}
    max_dead: int = 1000
    wait: bool = True
    inline: bool = False
    drop_slots: frozenset[str] = frozenset()
    drop_nodes: frozenset[str] = frozenset()
    discard_slots: frozenset[str] = frozenset()
    keep_open: bool = False
    keeps: dict[str, Keeping] | None = None
    """How much of which output; of one that is not named as much as usual. None: outputs are not kept."""
    limits: Limits = Limits()
    max_size: int = MAX_SIZE
    reserve: int | None = None
    directory: str = "."
    topology: Topology | None = None
    """For ``inline``: what to run, if it is at hand already."""
    events: tuple[str, ...] = ()
    """What is fed, as far as that is known before."""
    peers: Peers = {}
    """The other apps of its server."""
    user: int | None = None
    """Of workers that would be this process's own user otherwise."""
    code: str = ""
    """Which version runs, for people."""
    namespaces: dict[str, str] = {}
    """Of objects, that the app may use beside its own: "read" or "write"."""
    storages: dict[str, Bound] = {}
    """Namespaces that are in other storages."""
    traced: float = 0.0
    """Share of events of clients that are traced although nobody has said so."""
    spans: Keeping = KEPT_SPANS
    """How much is kept of what traced events did."""
    is_paused: bool = False
    """Nothing is handed to workers until somebody says so at the door."""
    levels: Levels = {}
    """How much handlers log, as the app says."""
    level_orders: Levels = {}
    """The same as its operator says, who goes before; of nodes that there are not it counts for nothing."""


def check_options(options: Options) -> Options:
    """The options, checked and made plain: paths and mappings of any kind may be in them.

    Raises:
        BadArgument: one of them cannot be; the text names it as Python does, as `--workers` of the command line is
            ``workers=``.
    """
    if type(options.target) is not str or not options.target:
        raise BadArgument(
            f"topology= is a Topology, or text that says where it is (app.py:t), not {shown(options.target)}"
        )
    if options.topology is None:
        _try(lambda: parse_target(options.target))
    options.data = None if options.data is None else path_of(options.data, "data=")
    options.config = _config(options.config)
    options.env = _env(options.env)
    options.storages = _storages(options.storages)
    options.levels = _levels(options.levels)
    options.workers = _number(options.workers, "workers=", 0, MAX_WORKERS, "0: one a core")
    if options.partitions is not None:
        options.partitions = _number(options.partitions, "partitions=", 1, MAX_PARTITIONS)
    options.max_dead = _number(options.max_dead, "max_dead=", 0, MAX_DEAD)
    options.max_size = _number(options.max_size, "max_size=", LEAST_SIZE, MOST_SIZE, "bytes that the data may grow to")
    if options.reserve is not None:
        options.reserve = _number(options.reserve, "reserve=", 0, MOST_SIZE, "bytes")
        if options.reserve >= options.max_size:
            raise BadArgument(f"reserve= is a part of max_size={options.max_size}, not {options.reserve} bytes")
    for name in ("wait", "inline", "keep_open", "is_paused"):
        if type(getattr(options, name)) is not bool:
            raise BadArgument(f"{name}= is True or False, not {shown(getattr(options, name))}")
    for name in ("drop_slots", "drop_nodes", "discard_slots"):
        setattr(options, name, frozenset(names_of(getattr(options, name), f"{name}=")))
    _check_limits(options.limits)
    if not options.wait and options.data is None:
        raise BadArgument("wait=False leaves timers in a data directory: say which one with data=")
    if options.data is not None:
        check_directory(options.data)
    return options


def _storages(value: object) -> dict[str, Bound]:
    """Also as people write it: {"pictures": "s3://bucket"}."""
    if not isinstance(value, Mapping):
        raise BadArgument(f"storages= is a mapping of namespaces to URLs of storages, not {shown(value)}")
    found: dict[str, Bound] = {}
    for name, where in value.items():
        check_namespace(name)
        bound = where if isinstance(where, Bound) else Bound(where, name) if type(where) is str else None
        if bound is None or "://" not in bound.url:
            raise BadArgument(
                f"storages= says the URL of a storage for the namespace {name!r}, such as file:///srv/objects, not "
                f"{shown(where)}"
            )
        found[name] = bound
    return found


def _levels(value: object) -> Levels:
    """Also one for all: "debug"."""
    if isinstance(value, str):
        return {"": check_level(value, "log_level=")}
    found = mapping_of(value, "log_level=", '{"Count": "debug"}, or a level of all', "")
    return {node: check_level(level, "log_level=") for node, level in found.items()}


def path_of(value: object, what: str) -> str:
    """
    Raises:
        BadArgument: it is no path of a file or directory.
    """
    try:
        path = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    except Exception as e:
        raise BadArgument(f"{what} is a path; this {type(value).__name__} raises {type(e).__name__}") from None
    if type(path) is not str:
        raise BadArgument(f"{what} is a path, as text or pathlib.Path, not {shown(path)}")
    if not path or "\0" in path:
        raise BadArgument(f"{what} is a path, and {path!r:.60} cannot be one")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise BadArgument(f"{what} is a path, and {path!r:.60} cannot be encoded") from None
    return path


def check_directory(data: str) -> None:
    """Whether ``data`` is a directory that can be written, or can be made.

    Raises:
        BadArgument: it is not.
    """
    path = Path(data)
    try:
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise BadArgument(f"data={data}: that is no directory; name one, or a new one")
            there = path
        else:
            there = next(p for p in path.absolute().parents if p.exists())
            if not there.is_dir():
                raise BadArgument(f"data={data}: {there} is no directory, so it cannot be made there; name another one")
    except OSError as e:
        raise BadArgument(f"data={data!r:.200}: {e.strerror or e}; name another directory") from None
    if not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written" if there == path else f"cannot be made: {there} cannot be written"
        raise BadArgument(f"data={data}: it {what} by this user; change its rights, or name another directory")


def names_of(value: object, what: str) -> tuple[str, ...]:
    """
    Raises:
        BadArgument: it is no collection of names.
    """
    if isinstance(value, str | bytes) or not isinstance(value, tuple | list | set | frozenset):
        hint = f": write ({value!r:.60},)" if isinstance(value, str) else ""
        raise BadArgument(f"{what} is a tuple of names, not {shown(value)}{hint}")
    for name in value:
        if type(name) is not str:
            raise BadArgument(f"{what} is a tuple of names, and {shown(name)} is none")
    return tuple(value)


def check_names(what: str, names: Iterable[str], known: Collection[str], no_such: str) -> None:
    """
    Raises:
        BadArgument: one of ``names`` is not known.
    """
    for name in names:
        if name not in known:
            others = f"it has {', '.join(map(repr, known)) or 'none'}"
            raise BadArgument(f"{what}: {no_such} {name!r}; {did_you_mean(name, known, others)}")


def mapping_of(value: object, what: str, example: str, *others: str) -> dict[str, Any]:
    """``others``: that are names as well.

    Raises:
        BadArgument: it is no mapping from text.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadArgument(f"{what} is a dictionary, such as {example}, not {shown(value)}")
    for key in value:
        if type(key) is not str or not (key or key in others):
            raise BadArgument(f"{what} is a dictionary by names, such as {example}; {shown(key)} is no name")
    return dict(value)


def _number(value: object, what: str, least: int, most: int, note: str = "") -> int:
    if type(value) is not int or not least <= value <= most:
        raise BadArgument(
            f"{what} is a whole number from {least} to {most}{f' ({note})' if note else ''}, not {shown(value)}"
        )
    return value


def _config(value: object) -> dict[str, Any]:
    config = mapping_of(value, "config=", '{"depth": 3}')
    _check_json(config, "config", 0)
    try:
        msgspec.json.encode(config)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as e:
        raise BadArgument(f"config= goes to workers as JSON, which cannot hold it: {e}") from None
    return config


def _check_json(value: object, where: str, depth: int) -> None:
    """Whether JSON can hold it, naming the place that cannot."""
    if depth > _MAX_DEPTH:
        raise BadArgument(f"config= is nested more than {_MAX_DEPTH} deep, or holds itself")
    if isinstance(value, dict):
        for key, one in value.items():
            if type(key) is not str:
                raise BadArgument(f"config=: the keys of {where:.200} are text, not {shown(key)}")
            _check_json(one, f"{where}[{key!r:.60}]", depth + 1)
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            _check_json(one, f"{where}[{i}]", depth + 1)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadArgument(f"config=: {where:.200} is text that is not valid Unicode: {value!r:.60}") from None
    else:
        try:
            msgspec.json.encode(value)
        except Exception as e:
            raise BadArgument(f"config=: JSON cannot hold {where:.200}, {shown(value)}: {e}") from None


def _env(value: object) -> dict[str, str]:
    env = mapping_of(value, "env=", '{"API_KEY": "..."}')
    for name, text in env.items():
        if "=" in name or "\0" in name or not _can_be_passed(name):
            raise BadArgument(f"env=: {name!r:.60} cannot be the name of an environment variable")
        if type(text) is not str:
            raise BadArgument(
                f"env=: the value of {name} is text, not {shown(text)}; write {name!r}: {str(shown(text))!r}"
            )
        if "\0" in text or not _can_be_passed(text):
            raise BadArgument(f"env=: the value of {name} cannot be passed to a process: {text!r:.60}")
    return env


def _can_be_passed(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _check_limits(limits: object) -> None:
    if type(limits) is not Limits:
        raise BadArgument(f"limits= is a grape.Limits(...), not {shown(limits)}")
    for name, (least, most) in _LIMITS.items():
        value = getattr(limits, name)
        kinds: tuple[type, ...] = (int, float) if isinstance(most, float) else (int,)
        if type(value) not in kinds or not least <= value <= most:
            raise BadArgument(f"limits=: {name} is a number from {least} to {most:.0f}, not {shown(value)}")
    if limits.batch_target > limits.batch_max:
        raise BadArgument(f"limits=: batch_target ({limits.batch_target}) is at most batch_max ({limits.batch_max})")


def _try(call: Callable[[], object]) -> None:
    try:
        call()
    except GrapeError:
        raise
    except (TypeError, ValueError, OSError) as e:
        raise BadArgument(str(e)) from None
