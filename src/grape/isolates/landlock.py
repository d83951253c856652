"""Landlock, and the last step in a jail that applies it: a program that confines itself, then becomes the worker.

Landlock (docs.kernel.org/userspace-api/landlock.html) lets a process give up access to files, TCP, signals and sockets
for itself and all that it starts. In a jail it is a second layer: it holds whatever the mount namespace has let in.
It has to be applied inside, since a process under Landlock cannot mount, and just before the worker, whatever its
language.

As a program, which imports as little as possible, so that it takes 12 ms::

    python -I -S -c 'import sys; sys.path.append(DIRECTORY OF THIS FILE); import landlock; landlock.main()' OPTIONS ARGV
"""

from __future__ import annotations

import ctypes
import os
import sys

STEP = "import sys; sys.path.append(sys.argv.pop(1)); import landlock; landlock.main()"
"""What python runs, with the directory of this file as its first argument."""

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _WANT_VERSION = 1, 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _SIGKILL = 1, 38, 9
_RLIMITS = {"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "nproc": 6, "nofile": 7, "as": 9}

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_RIGHTS = ((1, (1 << 13) - 1), (2, 1 << 13), (3, _TRUNCATE), (5, _IOCTL_DEV))
"""By the ABI that brought them."""
_TCP = 3
_SCOPES = 3
"""Abstract sockets and signals."""


_LIBC = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def abi() -> int:
    """Which Landlock this kernel has; 0: none, or it is not switched on."""
    try:
        return _call(_CREATE_RULESET, None, 0, _WANT_VERSION)
    except OSError:
        return 0


def restrict(
    read: list[str],
    write: list[str],
    devices: list[str],
    names: list[str],
) -> None:
    """Give up everything but what is beneath these paths, for this process and all it starts.

    Nothing is left of TCP, of signals to processes that are not under this restriction, and of abstract sockets that
    such have bound, as far as this kernel's Landlock goes. ``no_new_privs`` has to be set.

    Args:
        read: files and directories to read and execute.
        write: directories to do everything in, except that no devices can be made.
        devices: files to read and write.
        names: directories to list, with all below.
    """
    have = abi()
    rights = 0
    for since, bits in _RIGHTS:
        rights |= bits if have >= since else 0
    ruleset = _Ruleset(rights, _TCP if have >= 4 else 0, _SCOPES if have >= 6 else 0)
    fd = _call(_CREATE_RULESET, ctypes.byref(ruleset), 8 if have < 4 else 16 if have < 6 else 24, 0)
    reading = _READ_FILE | _READ_DIR | _EXECUTE
    allowed = [(path, reading) for path in read]
    allowed += [(path, rights & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)) for path in write]
    allowed += [(path, _READ_DIR) for path in names]
    allowed += [(path, _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV) for path in devices]
    for path, bits in allowed:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        bits &= rights if os.path.isdir(path) else rights & _ON_FILES
        _call(_ADD_RULE, fd, _PATH_BENEATH, ctypes.byref(_Beneath(bits, parent)), 0)
        os.close(parent)
    _call(_RESTRICT_SELF, fd, 0)
    os.close(fd)


def step(directory: str, *, python: str, options: list[str]) -> list[str]:
    """The command line of the last step, up to the worker's own.

    Args:
        directory: where this file is, as seen in the jail.
        options: ``--read PATH``, ``--write PATH``, ``--device PATH``, ``--names PATH`` as in `restrict`, which is done
            with at least one of them; ``--limit NAME=SOFT:HARD``, as in ``nofile`` for RLIMIT_NOFILE (NPROC counts in
            the user namespace, so it has to be set in it); ``--die`` (when the parent dies). Descriptors but 0, 1, 2
            and the N of the worker's ``--fd N`` are closed.
    """
    return [python, "-I", "-S", "-c", STEP, directory, *options, "--"]


def main() -> None:
    """Confine this process and become what stands behind ``--``."""
    values: dict[str, list[str]] = {"--read": [], "--write": [], "--device": [], "--names": [], "--limit": []}
    rest = iter(sys.argv[1:])
    for option in rest:
        if option == "--":
            break
        if option == "--die":
            _call_libc("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        else:
            values[option].append(next(rest))
    argv = list(rest)
    socket = int(argv[-3]) if argv[-4:-3] == ["--fd"] else 2
    os.closerange(3, socket)
    os.closerange(socket + 1, 1 << 30)
    for limit in values["--limit"]:
        name, _, amounts = limit.partition("=")
        both = (ctypes.c_uint64 * 2)(*map(int, amounts.split(":")))
        _call_libc("prlimit", 0, _RLIMITS[name], ctypes.byref(both), None)
    rules = [values[name] for name in ("--read", "--write", "--device", "--names")]
    if any(rules):
        _call_libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        restrict(*rules)
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        print(f"{argv[0]}: {e.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(127)


def _call(number: int, *arguments: object) -> int:
    return _call_libc("syscall", ctypes.c_long(number), *arguments)


def _call_libc(name: str, *arguments: object) -> int:
    function = getattr(_LIBC, name)
    function.restype = ctypes.c_long
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(function(*given))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}{arguments[:1]}: {os.strerror(ctypes.get_errno())}")
    return result
