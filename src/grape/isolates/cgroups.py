"""Control groups, version 2 or 1, behind one interface: a group for the workers of a pool, and in it a leaf for each.

They are made below the group that the engine itself is in, so that whatever limits the engine also limits its workers.
With version 2 (one tree for all controllers) a group has either processes or groups below it; so the engine moves
itself into a group ``grape-engine`` beside. With version 1 (a tree per controller) there is no such rule.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from grape.errors import Unsupported
from grape.isolates.guard import Guard
from grape.isolates.procs import engine_id, is_dead, stat

NEEDED: Final = ("memory", "pids")
_ENGINE: Final = "grape-engine"
_PREFIX: Final = "grape-"
_PERIOD: Final = 100_000
_PATIENCE: Final = 5.0
_ENTER: Final = 'until [ "$1" = -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'
_DELEGATE: Final = (
    "give grape a control group of its own: `systemd-run --user --scope -p Delegate=yes grape run ...` "
    "(as root: `systemd-run --scope -p Delegate=yes grape run ...`; in a unit: Delegate=yes)"
)


_ROOT: Final = (
    "run grape as root with a uid for its workers, or boot the host with control groups of version 2 "
    "(systemd.unified_cgroup_hierarchy=1), of which a part can be delegated to a user"
)


class Limits(Struct, frozen=True, kw_only=True):
    """Of a leaf. ``memory``: bytes, with swap. ``cpus``: in cores. ``read``, ``write``: bytes per second, each disk."""

    pids: int
    memory: int | None = None
    cpus: float | None = None
    read: int | None = None
    write: int | None = None


class Events(Struct, frozen=True):
    """What the kernel counted: processes that it ended for want of memory, forks that it refused."""

    oom: int
    pids: int


class Leaf(Protocol):
    """The control group of one worker. ``enter``: a command that runs the rest inside."""

    enter: tuple[str, ...]

    def processes(self) -> list[int]: ...

    def events(self) -> Events: ...

    def kill(self) -> None:
        """SIGKILL to all that is in it. Does not wait for their end."""

    def remove(self) -> None:
        """
        Raises:
            OSError: it is not empty.
        """


class Group(Protocol):
    """The control group of a pool. ``controllers``: those that its leaves have, in the words of version 2."""

    version: int
    controllers: frozenset[str]

    def create(self, name: str, limits: Limits) -> Leaf:
        """
        Raises:
            OSError: the kernel refuses.
        """

    def close(self) -> None:
        """Remove it, with whatever is in it."""


class Found(Struct, frozen=True):
    """Directories of the control groups that a process is in: of version 2, and of each controller of version 1."""

    unified: str | None
    split: dict[str, str]


def locate(cgroup: str, mountinfo: str) -> Found:
    """From what is in /proc/PID/cgroup and /proc/PID/mountinfo."""
    unified, split = "", {}
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            unified = path
        else:
            split.update(dict.fromkeys(controllers.split(","), path))
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = (_unescape(word) for word in before.split()[3:5])
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2" and unified:
            found.setdefault("", _inside(point, root, unified))
        elif kind == "cgroup":
            for controller in set(options.split(",")) & set(split):
                found.setdefault(controller, _inside(point, root, split[controller]))
    top = found.pop("", None)
    return Found(top, found)


def _unescape(word: str) -> str:
    """Spaces and such are octal numbers in mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _inside(point: str, root: str, path: str) -> str:
    """Where a group is below a mount point that shows the groups below ``root``."""
    if path == root or path.startswith(root.rstrip("/") + "/"):
        path = path[len(root.rstrip("/")) :]
    elif root != "/":  # a container that sees the host's names, but only its own groups
        path = "/"
    return os.path.normpath(point + "/" + path.lstrip("/"))


def open_group() -> Group:
    """A group for the leaves of a pool; leaves of engines that are gone are removed, with all that is in them.

    Raises:
        Unsupported: this host or this user cannot have one; the text says what lacks, and the remedy.
    """
    base = _find()
    group = Unified(base) if isinstance(base, str) else Split(base)
    try:
        group.protect()
    except OSError as e:
        group.close()
        raise Unsupported(f"control groups need a small process beside the engine, which cannot be started: {e}") from e
    return group


def check() -> tuple[int, frozenset[str]]:
    """Version and controllers that `open_group` would have, without effects that last.

    Raises:
        Unsupported: as there.
    """
    base = _find()
    return (2, Unified.check(base)) if isinstance(base, str) else (1, Split.check(base))


def _find() -> str | dict[str, str]:
    """The engine's group of version 2, else those of version 1, by controller."""
    found = locate(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    base = unified_base(found)
    if base is not None:
        return base
    lacking = [name for name in NEEDED if name not in found.split]
    if not lacking:
        return {name: path for name, path in found.split.items() if name in _SPLIT}
    if found.unified is None and not found.split:
        raise Unsupported(
            "control groups are not mounted on this host: mount -t cgroup2 none /sys/fs/cgroup; in a container, let "
            "it have them"
        )
    if found.unified is not None and not found.split:
        raise Unsupported(
            f"the control group {found.unified} has no controller {' and '.join(_lacking(found.unified))}; {_DELEGATE}"
        )
    raise Unsupported(
        f"no control groups with the controllers {' and '.join(lacking)} are mounted on this host; boot it with "
        "systemd.unified_cgroup_hierarchy=1, or mount them"
    )


def unified_base(found: Found) -> str | None:
    """Below which group of version 2 groups are made, if it has what is needed."""
    base = found.unified
    if base is not None and os.path.basename(base) == _ENGINE:
        base = os.path.dirname(base)
    return base if base is not None and not _lacking(base) else None


def _lacking(base: str) -> list[str]:
    there = _words(f"{base}/cgroup.controllers")
    return [name for name in NEEDED if name not in there]


def end(leaf: Leaf) -> list[int]:
    """Kill until it is empty. Blocking, for five seconds at most; returns what is alive then."""
    deadline = time.monotonic() + _PATIENCE
    while left := [pid for pid in leaf.processes() if (one := stat(pid)) is not None and one.state not in "ZX"]:
        if time.monotonic() > deadline:
            break
        leaf.kill()
        time.sleep(0.001)
    return left


# ---------------------------------------------------------------------- version 2


class Unified:
    """Version 2."""

    version = 2

    def __init__(self, base: str) -> None:
        self._guard: Guard | None = None
        self.check(base)
        try:
            self._leave(base)
            for name in _abandoned(base):
                self._end(name)
            self.controllers = _enable(base)
            self._path = f"{base}/{_PREFIX}{engine_id()}-{secrets.token_hex(4)}"
            os.mkdir(self._path)
            _enable(self._path)
        except OSError as e:
            raise _refusal(base, e, _DELEGATE) from e

    @staticmethod
    def check(base: str) -> frozenset[str]:
        """Whether it would work, as far as that can be found out without moving anything; returns the controllers.

        Raises:
            Unsupported: no.
        """
        try:
            trial = f"{base}/{_PREFIX}{engine_id()}-{secrets.token_hex(4)}"
            os.mkdir(trial)
            os.rmdir(trial)
            for name in ("cgroup.procs", "cgroup.subtree_control"):
                os.close(os.open(f"{base}/{name}", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as e:
            raise _refusal(base, e, _DELEGATE) from e
        kind = _words(f"{base}/cgroup.type")
        if kind not in ([], ["domain"]):
            raise Unsupported(f"the control group {base} is {' '.join(kind)}, not a domain; {_DELEGATE}")
        strangers = [pid for pid in _numbers(f"{base}/cgroup.procs") if not _is_below_us(pid)]
        if kind and strangers and not _is_delegated(base):
            raise Unsupported(
                f"the control group {base} has other processes than grape's in it (pid "
                f"{', '.join(map(str, strangers[:5]))}); {_DELEGATE}"
            )
        return _available(base)

    @staticmethod
    def _leave(base: str) -> None:
        """Take all processes out of the group that will have groups below it; the topmost one alone may have both."""
        if os.path.exists(f"{base}/cgroup.type"):
            engine = f"{base}/{_ENGINE}"
            deadline = time.monotonic() + _PATIENCE
            while (inside := _numbers(f"{base}/cgroup.procs")) and time.monotonic() < deadline:
                os.makedirs(engine, exist_ok=True)
                for pid in inside:
                    with contextlib.suppress(ProcessLookupError):
                        _write(f"{engine}/cgroup.procs", str(pid))

    def protect(self) -> None:
        """Let it end with this process, however that comes."""
        self._guard = Guard([self._path])

    def create(self, name: str, limits: Limits) -> UnifiedLeaf:
        path = f"{self._path}/{name}"
        os.mkdir(path)
        return _limited(UnifiedLeaf(path), limits)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the guard, or the next engine, will try again
            self._end(self._path)
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    @staticmethod
    def _end(path: str) -> None:
        _clear(UnifiedLeaf(leaf) for leaf in _below(path))
        _remove([path])


class UnifiedLeaf:
    def __init__(self, path: str) -> None:
        self._path = path
        self.enter: tuple[str, ...] = ("/bin/sh", "-c", _ENTER, "grape", f"{path}/cgroup.procs", "--")

    def limit(self, limits: Limits) -> None:
        self._set("pids.max", str(limits.pids))
        if limits.memory is not None:
            self._set("memory.max", str(limits.memory))
            self._set("memory.oom.group", "1")
            if os.path.exists(f"{self._path}/memory.swap.max"):
                self._set("memory.swap.max", "0")
        if limits.cpus is not None:
            self._set("cpu.max", f"{_quota(limits.cpus)} {_PERIOD}")
        rates = {"rbps": limits.read, "wbps": limits.write}
        words = " ".join(f"{name}={rate}" for name, rate in rates.items() if rate is not None)
        if words:
            for disk in disks():
                self._set("io.max", f"{disk} {words}")

    def _set(self, name: str, value: str) -> None:
        _write(f"{self._path}/{name}", value)

    def processes(self) -> list[int]:
        return _numbers(f"{self._path}/cgroup.procs")

    def events(self) -> Events:
        return Events(_count(f"{self._path}/memory.events", "oom_kill"), _count(f"{self._path}/pids.events", "max"))

    def kill(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.exists(f"{self._path}/cgroup.kill"):
                self._set("cgroup.kill", "1")
                return
            self._set("cgroup.freeze", "1")  # before Linux 5.14; what is frozen can be killed
            _kill(self.processes())

    def remove(self) -> None:
        _remove([self._path])


# ---------------------------------------------------------------------- version 1

_SPLIT: Final = {"memory": "memory", "pids": "pids", "cpu": "cpu", "blkio": "io", "freezer": "freezer"}
"""What is used of version 1, in the words of version 2."""


class Split:
    """Version 1. ``bases``: the directory of the engine's group, for each controller."""

    version = 1

    def __init__(self, bases: Mapping[str, str]) -> None:
        self._guard: Guard | None = None
        self.controllers = frozenset(_SPLIT[name] for name in bases)
        name = f"{_PREFIX}{engine_id()}-{secrets.token_hex(4)}"
        self._paths = {controller: f"{base}/{name}" for controller, base in bases.items()}
        try:
            for old in {os.path.basename(path) for base in bases.values() for path in _abandoned(base)}:
                self._end({controller: f"{base}/{old}" for controller, base in bases.items()})
            _make(self._paths.values())
        except OSError as e:
            raise _refusal(bases["memory"], e, _ROOT) from e

    @staticmethod
    def check(bases: Mapping[str, str]) -> frozenset[str]:
        """Whether it works; returns the controllers, in the words of version 2.

        Raises:
            Unsupported: no.
        """
        group = Split(bases)
        group.close()
        return group.controllers

    def protect(self) -> None:
        """Let it end with this process, however that comes."""
        self._guard = Guard(list(self._paths.values()))

    def create(self, name: str, limits: Limits) -> SplitLeaf:
        paths = {controller: f"{path}/{name}" for controller, path in self._paths.items()}
        _make(paths.values())
        return _limited(SplitLeaf(paths), limits)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the guard, or the next engine, will try again
            self._end(self._paths)
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    @staticmethod
    def _end(paths: Mapping[str, str]) -> None:
        for leaf in {os.path.basename(path) for group in paths.values() for path in _below(group)}:
            _clear([SplitLeaf({controller: f"{group}/{leaf}" for controller, group in paths.items()})])
        _remove(paths.values())


class SplitLeaf:
    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        files = [f"{path}/cgroup.procs" for path in dict.fromkeys(paths.values())]
        self.enter: tuple[str, ...] = ("/bin/sh", "-c", _ENTER, "grape", *files, "--")

    def limit(self, limits: Limits) -> None:
        self._set("pids", "pids.max", str(limits.pids))
        if limits.memory is not None:
            self._set("memory", "memory.limit_in_bytes", str(limits.memory))
            with_swap = "memory.memsw.limit_in_bytes"
            if os.path.exists(f"{self._paths['memory']}/{with_swap}"):
                self._set("memory", with_swap, str(limits.memory))
            else:  # swap is not counted on this host; the group does not use it
                self._set("memory", "memory.swappiness", "0")
        if limits.cpus is not None:
            self._set("cpu", "cpu.cfs_period_us", str(_PERIOD))
            self._set("cpu", "cpu.cfs_quota_us", str(_quota(limits.cpus)))
        for what, rate in (("read", limits.read), ("write", limits.write)):
            if rate is not None:
                for disk in disks():
                    self._set("blkio", f"blkio.throttle.{what}_bps_device", f"{disk} {rate}")

    def _set(self, controller: str, name: str, value: str) -> None:
        _write(f"{self._paths[controller]}/{name}", value)

    def processes(self) -> list[int]:
        return _numbers(f"{self._paths['pids']}/cgroup.procs")  # nobody is in one of them only

    def events(self) -> Events:
        return Events(
            _count(f"{self._paths['memory']}/memory.oom_control", "oom_kill"),
            _count(f"{self._paths['pids']}/pids.events", "max"),
        )

    def kill(self) -> None:
        """Nothing in it runs between the look at who there is and the signal, if there is a freezer."""
        frozen = os.path.exists(f"{self._paths.get('freezer')}/freezer.state")
        if frozen:
            self._set("freezer", "freezer.state", "FROZEN")
        _kill(self.processes())
        if frozen:
            self._set("freezer", "freezer.state", "THAWED")

    def remove(self) -> None:
        _remove(self._paths.values())


# ---------------------------------------------------------------------- both


def disks() -> list[str]:
    """Major and minor numbers of the block devices of this host that have a size; not those in memory or in a file."""
    found = []
    for name in sorted(os.listdir("/sys/block")) if os.path.isdir("/sys/block") else ():
        if not name.startswith(("loop", "ram", "zram")):
            with contextlib.suppress(OSError):
                block = Path("/sys/block", name)
                if int((block / "size").read_text()) > 0:
                    found.append((block / "dev").read_text().strip())
    return found


def _quota(cpus: float) -> int:
    """Microseconds per period; the kernel wants one millisecond at least."""
    return max(1000, round(cpus * _PERIOD))


def _abandoned(base: str) -> list[str]:
    """Groups of engines that are gone."""
    found = []
    for path in _below(base):
        name = os.path.basename(path)
        if name.startswith(_PREFIX) and is_dead(name.removeprefix(_PREFIX).rpartition("-")[0]):
            found.append(path)
    return found


_L = TypeVar("_L", UnifiedLeaf, SplitLeaf)


def _limited(leaf: _L, limits: Limits) -> _L:
    """The leaf with its limits; it is removed if it cannot have them."""
    try:
        leaf.limit(limits)
    except BaseException:
        leaf.remove()
        raise
    return leaf


def _clear(leaves: Iterable[Leaf]) -> None:
    for leaf in leaves:
        end(leaf)
        leaf.remove()


def _below(path: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _make(paths: Iterable[str]) -> None:
    """All or none; several controllers may have one directory."""
    made: list[str] = []
    try:
        for path in dict.fromkeys(paths):
            os.mkdir(path)
            made.append(path)
    except BaseException:
        _remove(made)
        raise


def _remove(paths: Iterable[str]) -> None:
    """The kernel takes its time until a process that has ended is no longer in its group."""
    deadline = time.monotonic() + _PATIENCE
    for path in dict.fromkeys(paths):
        while True:
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError as e:
                if e.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.001)


def _available(path: str) -> frozenset[str]:
    return frozenset(("memory", "pids", "cpu", "io")) & frozenset(_words(f"{path}/cgroup.controllers"))


def _enable(path: str) -> frozenset[str]:
    """Give a group's controllers to those below it; returns which."""
    wanted = _available(path)
    for name in wanted - set(_words(f"{path}/cgroup.subtree_control")):
        _write(f"{path}/cgroup.subtree_control", f"+{name}")
    return wanted


def _is_delegated(path: str) -> bool:
    """Whether systemd says that it does not care what is below, and who is in it."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _is_below_us(pid: int) -> bool:
    """This process, or one that stems from it."""
    while pid > 1:
        if pid == os.getpid():
            return True
        one = stat(pid)
        if one is None:
            return True  # it has ended
        pid = one.parent
    return False


def _refusal(base: str, error: OSError, remedy: str) -> Unsupported:
    what = f"the control group {base} cannot be used: {error.strerror} ({error.filename})"
    if error.errno == errno.EROFS:
        remedy = (
            "in a container, let it have control groups that it can write to (docker run --privileged, "
            "podman run --systemd=always)"
        )
    return Unsupported(f"{what}; {remedy}")


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _write(path: str, value: str) -> None:
    """One write; the error says which file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None
    finally:
        os.close(fd)


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []


def _numbers(path: str) -> list[int]:
    """Pids; 0 is one that is not seen from here."""
    return [number for number in map(int, _words(path)) if number]


def _count(path: str, name: str) -> int:
    words = _words(path)
    return int(words[words.index(name) + 1]) if name in words else 0
