"""A worker in a sandbox of bubblewrap: for code that one does not trust.

Three layers, of which each alone stops most of what is tried, and which fail in different ways: namespaces (there is
nothing to reach: no host files, processes, network), a list of system calls (little of the kernel to attack), and
Landlock (what the namespaces let in by mistake cannot be written).

Mount points are made on bubblewrap's own tmpfs only, never below what is shown of the host: bubblewrap before 0.12
followed symbolic links there, onto the host (CVE-2026-87766).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from typing import ClassVar, Final

from grape.abc.isolate import Ability, Command
from grape.errors import Unsupported
from grape.isolates import landlock, seccomp
from grape.isolates.jail import Jail, JailConfig, JailProcess, landlock_options
from grape.isolates.launch import attempt, find_tool, new_tag, start
from grape.isolates.process import ProcessConfig
from grape.isolates.procs import TAG
from grape.isolates.view import (
    DEVICE_LINKS,
    DEVICES,
    ETC,
    GRAPE,
    HOSTNAME,
    PYTHON,
    TEMP,
    UID,
    View,
    passwd,
    view,
)

_TEMPORARY: Final = ("/tmp", "/dev/shm")
_MOUNT: Final = 'mount -t tmpfs -o "$1" grape "$2/0" && mount -t tmpfs -o "$1" grape "$2/1" && shift 2 && exec "$@"'
"""Makes file systems in memory with a limit on their files, as bubblewrap cannot, in namespaces of the jail alone."""

_INSTALL: Final = "apt-get install bubblewrap"


class SandboxConfig(JailConfig, frozen=True, kw_only=True, rename="kebab"):
    __doc__ = JailConfig.__doc__


class SandboxIsolate(Jail):
    """Bubblewrap, with everything that can be taken away taken away; see `view` for what is left to see."""

    name: ClassVar[str] = "sandbox"
    Config: ClassVar[type[ProcessConfig]] = SandboxConfig
    config: SandboxConfig

    def __init__(self, pool: str, config: SandboxConfig) -> None:
        super().__init__(pool, config)
        self._bwrap = ""
        self._filter = b""
        self._mount_point = ""

    # ------------------------------------------------------------------ prepare

    @classmethod
    def tools(cls) -> list[Ability]:
        rows = []
        try:
            bwrap = find_tool("bwrap", "bubblewrap")
            rows += [Ability("bubblewrap", True, bwrap), _about_links(bwrap)]
        except Unsupported as e:
            rows.append(Ability("bubblewrap", False, str(e), _INSTALL))
        try:
            seccomp.compile_bpf(seccomp.rules())
            rows.append(Ability("a list of system calls", True, f"libseccomp {seccomp.version()}"))
        except Unsupported as e:
            rows.append(Ability("a list of system calls", False, str(e), "apt-get install libseccomp2"))
        return rows

    def find_tools(self) -> None:
        self._bwrap = find_tool("bwrap", "bubblewrap")
        self._filter = seccomp.compile_bpf(self.rules)

    def how(self) -> str:
        return f"{self._bwrap}, tried"

    # ------------------------------------------------------------------ spawn

    def spawn(self, worker: str, command: Command) -> JailProcess:
        """
        Raises:
            OSError: it cannot be started now; PermissionError: nor may the user of the workers read what they need.
        """
        seen = view(command, self.config.readable)
        with self.user() as (uid, gid):
            return self._spawn(worker, command, seen, uid, gid)

    def _spawn(self, worker: str, command: Command, seen: View, uid: int, gid: int) -> JailProcess:
        shown = (command.directory, *command.readable, *self.config.readable)
        before, sources = self.hand_over(seen, shown, uid, gid)
        place = "" if self.counts else self._place()
        if uid != -1:
            before += [self.setpriv, "--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
        if place:
            before += self._mounting(place)
        tag = new_tag()
        with self.leaf(worker) as leaf, contextlib.ExitStack() as undo:
            status, writing = os.pipe()
            os.set_blocking(status, False)
            undo.callback(os.close, status)
            with contextlib.ExitStack() as given:
                given.callback(os.close, writing)
                inherit = [writing]

                def give(data: bytes) -> str:
                    """A descriptor to read it from."""
                    fd = os.memfd_create("grape-jail")
                    given.callback(os.close, fd)
                    inherit.append(fd)
                    os.write(fd, data)
                    os.lseek(fd, 0, os.SEEK_SET)
                    return str(fd)

                options = self._options(command, seen, sources, place, give)
                for name, value in self.env(command, tag).items():
                    options += ["--setenv", name, value]
                options += ["--json-status-fd", str(writing)]
                args = give(b"\0".join(map(os.fsencode, options)) + b"\0")
                child = start(
                    [
                        *(leaf.enter if leaf is not None else ()),
                        *before,
                        *(self._bwrap, "--args", args, "--"),
                        *self._step(seen),
                        *(seen.program, *command.argv[1:]),
                    ],
                    directory="/",
                    env={TAG: tag},
                    umask=self.config.umask,
                    parent=0,
                    given=command.input,
                    inherit=tuple(inherit),
                )
            undo.pop_all()  # bubblewrap may write to it as long as it runs

            def done() -> None:
                os.close(status)
                self.give_back(uid)

            return JailProcess(
                child,
                leaf,
                self.config,
                find_init=_reader(status),
                done=done,
                wake=status,
            )

    def _place(self) -> str:
        """Where file systems in memory are mounted, for each worker alone; it is empty to everybody else."""
        if not self._mount_point:
            assert self._scratch is not None
            self._mount_point = self._scratch.make("temporary", -1, -1)
            os.chmod(self._mount_point, 0o755)
            for number in range(len(_TEMPORARY)):
                os.mkdir(f"{self._mount_point}/{number}")
                os.chmod(f"{self._mount_point}/{number}", 0o755)
        return self._mount_point

    def _mounting(self, place: str) -> list[str]:
        unshare = find_tool("unshare", "util-linux")
        size = f"size={int(self.config.temp)},nr_inodes={self.inodes},mode=1777,nosuid,nodev"
        return [unshare, "--user", "--map-root-user", "--mount", "--", "/bin/sh", "-c", _MOUNT, "sh", size, place]

    def _options(
        self, command: Command, seen: View, sources: dict[str, str], place: str, give: Callable[[bytes], str]
    ) -> list[str]:
        options = ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
        if "namespaces" in self.layers:
            options += [f"--unshare-{kind}" for kind in ("user", "pid", "net", "ipc", "uts", "cgroup")]
            options += ["--disable-userns", "--hostname", HOSTNAME, "--uid", str(UID), "--gid", str(UID)]
            options += self._mounts(seen, sources, place, give)
        else:
            options += ["--dev-bind", "/", "/", "--perms", "1777", "--tmpfs", "/tmp", "--perms", "0700", "--dir", TEMP]
            for path in seen.paths:
                options += ["--ro-bind", sources[path], path]
        options += ["--chdir", TEMP if self.config.working_directory == "own" else command.directory]
        if "seccomp" in self.layers:
            options += ["--seccomp", give(self._filter)]
        return options

    def _temporary(self, number: int, place: str) -> list[str]:
        """A file system in memory at one of two places."""
        if place:
            return ["--bind", f"{place}/{number}", _TEMPORARY[number]]
        return ["--perms", "1777", "--size", str(int(self.config.temp)), "--tmpfs", _TEMPORARY[number]]

    def _mounts(self, seen: View, sources: dict[str, str], place: str, give: Callable[[bytes], str]) -> list[str]:
        options = [*self._temporary(0, place), "--perms", "0700", "--dir", TEMP]
        options += ["--perms", "0755", "--dir", "/etc", "--perms", "0755", "--dir", "/dev"]
        for path in seen.paths:
            options += ["--ro-bind", sources[path], path]
        for link, target in seen.links:
            options += ["--symlink", target, link]
        for name, text in {**ETC, **passwd(UID)}.items():
            options += ["--perms", "0444", "--file", give(text.encode()), f"/etc/{name}"]
        for name in DEVICES:
            options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        for name, target in DEVICE_LINKS.items():
            options += ["--symlink", target, f"/dev/{name}"]
        options += self._temporary(1, place)
        return [*options, "--proc", "/proc", "--remount-ro", "/proc", "--remount-ro", "/"]

    def _step(self, seen: View) -> list[str]:
        """What runs in the jail, up to the worker's own command line."""
        options = self.limit_options()
        if "landlock" in self.layers:
            options += landlock_options((*seen.paths, "/etc", "/proc", "/dev"))
        return landlock.step(os.path.join(GRAPE, "isolates"), python=PYTHON, options=options)


def _about_links(bwrap: str) -> Ability:
    """Whether mount points are made through links onto the host, by trying (CVE-2026-87766)."""
    name = "bubblewrap does not follow links"
    with tempfile.TemporaryDirectory(prefix="grape-links-") as place:
        for directory in ("shown", "host"):
            os.mkdir(f"{place}/{directory}")
        os.symlink(f"/oldroot{place}/host", f"{place}/shown/link")
        jail = ("--ro-bind", "/usr", "/usr", "--bind", f"{place}/shown", "/shown", "--dir", "/shown/link/made")
        attempt(name, [bwrap, "--unshare-user", *jail, "--", "/usr/bin/true"])
        if not os.path.exists(f"{place}/host/made"):
            return Ability(name, True, "tried")
    why = "it makes mount points through links (CVE-2026-87766); no sandbox of Grape has any where a link could be"
    return Ability(name, False, why, "bubblewrap 0.12, or the update of your distribution")


def _reader(status: int) -> Callable[[], int | None]:
    """Of what bubblewrap tells first, the pid of its init."""
    said = b""

    def find() -> int | None:
        nonlocal said
        with contextlib.suppress(BlockingIOError):
            said += os.read(status, 4096)
        return int(json.loads(said.partition(b"\n")[0])["child-pid"]) if b"\n" in said else None

    return find
