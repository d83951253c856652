"""A worker in a container: what the level ``sandbox`` does, by an OCI runtime, with a root file system of one's own.

The bundle (github.com/opencontainers/runtime-spec) is written here; ``runc`` or ``crun`` runs it, rootless, whoever the
engine is. That one of podman is found as well. No engine with a socket, no registry, no network: an image is a file.
Limits are those of a control group of Grape, not of the runtime, so that they are the same at every level.

In the container the worker is 0, without any capability: runtimes without setuid helpers can map but one user, and want
that to be 0 inside.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta, Struct

from grape.abc.isolate import Ability, Command
from grape.errors import Unsupported
from grape.isolates import landlock, seccomp
from grape.isolates.image import unpack
from grape.isolates.jail import Jail, JailConfig, JailProcess, landlock_options
from grape.isolates.launch import find_tool, new_tag, start
from grape.isolates.process import ProcessConfig
from grape.isolates.procs import TAG
from grape.isolates.view import ETC, GRAPE, HOSTNAME, PYTHON, TEMP, View, is_open_to, is_within, passwd, view

_INSTALL: Final = "apt-get install runc (or crun)"
_STEP: Final = "/.grape"
"""Where the last step is found, when the Python that takes it is one of the image."""

_INIT: Final = 'exec 4<&0; "$@" <&4 4<&- & exec 4<&- </dev/null; wait $!'
"""What is 1 in there: a worker that is 1 itself could not be asked to end (a signal without a handler does not reach
1), and orphans would stay. What a shell runs beside itself has no input, unless told so. The shell ends with the code
of the worker, or 128 and its signal."""

_RENUMBER: Final = """
import os, sys
os.dup2(int(sys.argv[-3]), 3)
os.closerange(4, 1 << 16)
os.execv(sys.argv[1], sys.argv[1:-4])
"""
"""Runtimes hand on descriptors from 3 without a gap. Takes away ``--fd N --parent PID`` from the end of the line."""

_ATTEMPTS: Final = 3
_NOWHERE: Final = "/nonexistent"
"""Where a runtime may look for programs: a newuidmap that it finds says of every worker that it does not know its user,
and nothing comes of it, since there is but one user to map."""
_BUSY: Final = "could not ensure we are a cloned binary: Device or resource busy"
"""runc before 1.2, once in thousands of starts: it seals a copy of itself in memory, and the kernel still has a page of
it in hand (F_ADD_SEALS in fcntl(2))."""

# runc's own default (runc spec).
_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
)
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_OWN: Final = ("/dev", "/proc", "/run", "/sys", "/tmp", _STEP)
"""What an image has there is not seen."""


class ContainerConfig(JailConfig, frozen=True, kw_only=True, rename="kebab"):
    """What can be set of a sandbox, and where the root file system is from: a directory, an image, or, by default, the
    host's /usr. All are read-only.

    rootfs: directory with a root file system
    image: file with an image, of `docker save` or an OCI layout as tar; unpacked at each start of the engine
    digest: the image has to have this digest, "sha256:..."
    python: path of the Python in the root file system, which has Grape installed; by default the engine's own Python
        and Grape are mounted, which needs a C library there that is not older than the host's
    runtime: crun or runc, name or path; by default the first that works here
    """

    rootfs: str = ""
    image: str = ""
    digest: str = ""
    python: Annotated[str, Meta(pattern="^(/.*)?$")] = ""
    runtime: str = ""


class Layout(Struct, frozen=True):
    """A root directory, ready to be mounted on. ``binds``: source and destination of what the image has."""

    root: str
    binds: tuple[tuple[str, str], ...]


class ContainerIsolate(Jail):
    """A bundle per worker, in which everything is taken away that the runtime can take away."""

    name: ClassVar[str] = "container"
    Config: ClassVar[type[ProcessConfig]] = ContainerConfig
    config: ContainerConfig

    def __init__(self, pool: str, config: ContainerConfig) -> None:
        super().__init__(pool, config)
        self._runtime: tuple[str, ...] = ()
        self._image = ""
        self._image_env: dict[str, str] = {}
        self._layouts: dict[tuple[str, ...], Layout] = {}

    # ------------------------------------------------------------------ prepare

    @classmethod
    def tools(cls) -> list[Ability]:
        found = _runtimes("")
        if not found:
            return [Ability("an OCI runtime", False, "none of crun, runc, podman is on this host", _INSTALL)]
        return [Ability("an OCI runtime", True, ", ".join(found))]

    def how(self) -> str:
        return f"{self._runtime[0]}, tried"

    def find_tools(self) -> None:
        config = self.config
        if config.rootfs and config.image:
            raise self.refusal("rootfs, image: one of them, not both")
        if config.digest and not config.image:
            raise self.refusal("digest: that of an image; there is none")
        if config.python and not (config.rootfs or config.image):
            raise self.refusal("python: one of a root file system of its own (rootfs or image); there is none")
        assert self._scratch is not None
        if config.image:
            self._image = self._scratch.make("image", -1, -1)
            os.chmod(self._image, 0o755)
            try:
                self._image_env = unpack(config.image, self._image, config.digest).env
            except OSError as e:
                raise self.refusal(f"image: {e}") from e
        elif config.rootfs:
            if not os.path.isdir(config.rootfs):
                raise self.refusal(f"rootfs: {config.rootfs} is no directory")
            self._image = os.path.realpath(config.rootfs)
            if self.uid != -1 and not is_open_to(self._image, self.uid, self.gid):
                raise self.refusal(
                    f"rootfs: the workers' user may not read or enter {self._image}; chmod it, and above"
                )
        if self._image and not config.python and os.path.realpath(sys.base_prefix) == "/usr":
            raise self.refusal(
                "python: the engine's own is in /usr and cannot be mounted over that of the root file system; write "
                "the path of a Python in there that has Grape installed"
            )

    def try_one(self) -> None:
        """The first runtime that works.

        Raises:
            Unsupported: none does; what each said.
        """
        found = _runtimes(self.config.runtime)
        if not found:
            what = f"there is no {self.config.runtime}" if self.config.runtime else "there is neither crun nor runc"
            raise self.refusal(f"runtime: {what} on this host; {_INSTALL}")
        said = []
        for path in found:
            self._runtime = (path, "--cgroup-manager=disabled") if _is_crun(path) else (path,)
            try:
                super().try_one()
            except Unsupported as e:
                said.append(f"{path}: {str(e).removeprefix(str(self.refusal('')))}")
            else:
                return
        raise self.refusal("no runtime works here: " + " | ".join(said))

    # ------------------------------------------------------------------ spawn

    def spawn(self, worker: str, command: Command) -> JailProcess:
        """
        Raises:
            OSError: it cannot be started now; PermissionError: nor may the user of the workers read what they need.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._spawn_once(worker, command)
            except OSError as e:
                if _BUSY not in str(e):
                    raise
        return self._spawn_once(worker, command)

    def _spawn_once(self, worker: str, command: Command) -> JailProcess:
        with self.user() as (uid, gid):
            return self._spawn(worker, command, uid, gid)

    def _spawn(self, worker: str, command: Command, uid: int, gid: int) -> JailProcess:
        assert self._scratch is not None, "prepare comes first"
        own = bool(self._image)
        seen = view(command, self.config.readable, runtime=not self.config.python, system=not own)
        layout = self._lay_out(seen)
        shown = (command.directory, *command.readable, *self.config.readable)
        before, sources = self.hand_over(seen, shown, uid, gid)
        tag = new_tag()
        bundle = self._scratch.make(worker, uid, gid)
        try:
            with self.leaf(worker) as leaf:
                config = self._bundle(command, seen, layout, sources, tag, (uid, gid))
                _write(os.path.join(bundle, "config.json"), msgspec.json.encode(config))
                user = ["--reuid", str(uid), "--regid", str(gid), "--clear-groups"] if uid != -1 else []
                pid_file = os.path.join(bundle, "pid")
                child = start(
                    [
                        *(leaf.enter if leaf is not None else ()),
                        *before,
                        *(PYTHON, "-I", "-S", "-c", _RENUMBER),
                        *(self.setpriv, *user, "--pdeathsig", "KILL"),
                        *self._runtime,
                        *("--root", os.path.join(bundle, "state"), "run", "--preserve-fds", "1"),
                        *("--bundle", bundle, "--pid-file", pid_file, f"grape-{tag}"),
                    ],
                    directory="/",
                    env={TAG: tag, "PATH": _NOWHERE, "GOMAXPROCS": "1"},
                    umask=self.config.umask,
                    parent=0,
                    given=command.input,
                )
                scratch = self._scratch

                def done() -> None:
                    scratch.remove(bundle)
                    self.give_back(uid)

                return JailProcess(
                    child,
                    leaf,
                    self.config,
                    find_init=lambda: _read_pid(pid_file),
                    done=done,
                )
        except BaseException:
            if os.path.exists(bundle):
                self._scratch.remove(bundle)
            raise

    def _lay_out(self, seen: View) -> Layout:
        """The root directory: mount points, and symbolic links. One for each set of paths, as nobody writes to it."""
        key = (*seen.paths, *(path for path, _ in seen.links))
        if key not in self._layouts:
            assert self._scratch is not None
            root = self._scratch.make("root", -1, -1)
            os.chmod(root, 0o755)
            points = {path: os.path.isdir(path) for path in seen.paths if not is_within(path, ("/tmp",))}
            points |= dict.fromkeys(("/dev", "/proc", "/tmp"), True)
            if self.config.python:
                points[f"{_STEP}/landlock.py"] = False
            binds = merge(root, self._image, points) if self._image else []
            for path, is_directory in points.items():
                _make(root + path, is_directory)
            if not self._image:
                for link, target in seen.links:
                    os.makedirs(os.path.dirname(root + link), exist_ok=True)
                    os.symlink(target, root + link)
                for name, text in {**ETC, **passwd(0)}.items():
                    Path(root, "etc", name).write_text(text)
            for where, directories, files in os.walk(root):
                for name in (*directories, *files):
                    if not os.path.islink(os.path.join(where, name)):
                        os.chmod(os.path.join(where, name), 0o755 if name in directories else 0o644)
            self._layouts[key] = Layout(root, tuple(binds))
        return self._layouts[key]

    def _bundle(
        self, command: Command, seen: View, layout: Layout, sources: dict[str, str], tag: str, user: tuple[int, int]
    ) -> dict[str, Any]:
        binds = [*layout.binds, *((sources[path], path) for path in seen.paths)]
        if self.config.python:
            binds.append((landlock.__file__, f"{_STEP}/landlock.py"))
        uid, gid = user if user[0] != -1 else (os.geteuid(), os.getegid())
        linux: dict[str, Any] = {
            "namespaces": [{"type": kind} for kind in ("user", "pid", "network", "ipc", "uts", "cgroup", "mount")],
            "uidMappings": [{"containerID": 0, "hostID": uid, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": gid, "size": 1}],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        }
        if "seccomp" in self.layers:
            linux["seccomp"] = seccomp.oci_profile(self.rules)
        return {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": 0, "gid": 0, "umask": self.config.umask},
                "args": self._argv(command, seen, [path for _, path in binds]),
                "env": [f"{name}={value}" for name, value in self._variables(command, tag).items()],
                "cwd": TEMP if self.config.working_directory == "own" else command.directory,
                "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
                "noNewPrivileges": True,
            },
            "root": {"path": layout.root, "readonly": True},
            "hostname": HOSTNAME,
            "mounts": self._mounts(binds),
            "linux": linux,
        }

    def _mounts(self, binds: list[tuple[str, str]]) -> list[dict[str, Any]]:
        size = (f"size={int(self.config.temp)}", f"nr_inodes={self.inodes}")
        return [
            _mount("proc", "/proc", "nosuid", "noexec", "nodev"),
            _mount("tmpfs", "/dev", "nosuid", "noexec", "mode=755", "size=64k", "ro"),
            _mount("tmpfs", "/dev/shm", "nosuid", "nodev", "mode=1777", *size),
            _mount("tmpfs", "/tmp", "nosuid", "nodev", "mode=1777", *size),
            _mount("tmpfs", TEMP, "nosuid", "nodev", "mode=700", *size),
            *(_mount("bind", path, "rbind", "ro", "nosuid", "nodev", source=source) for source, path in binds),
        ]

    def _argv(self, command: Command, seen: View, shown: list[str]) -> list[str]:
        config = self.config
        program = seen.program
        if config.python and command.argv[0] == sys.executable:
            program = config.python
        options = ["--die", *self.limit_options()]  # the runtime itself needs more than some workers may have
        if "landlock" in self.layers:
            more = ("/proc", "/dev") if self._image else ("/proc", "/dev", "/etc")
            options += landlock_options((*shown, *more), not config.python)
        where = _STEP if config.python else os.path.join(GRAPE, "isolates")
        return [
            *landlock.step(where, python=config.python or PYTHON, options=options),
            *("/bin/sh", "-c", _INIT, "grape", program, *command.argv[1:]),
            *("--fd", "3", "--parent", "0"),
        ]

    def _variables(self, command: Command, tag: str) -> dict[str, str]:
        """Of an image with a Python of its own, what it wants is kept, but for what is said here."""
        own = self.env(command, tag)
        if not self.config.python:
            return own
        kept = {name: value for name, value in own.items() if name not in ("PATH", "VIRTUAL_ENV")}
        return {"PATH": os.defpath, **self._image_env, **kept}


def merge(root: str, image: str, points: dict[str, bool]) -> list[tuple[str, str]]:
    """Make a root directory look like an image with mount points in it, without writing to the image or following
    what it holds: a directory of it that has a mount point below becomes one of ours, with what else is in there bound
    one by one.

    Args:
        points: paths that are mounted on; whether they are directories.

    Returns:
        Source and destination of what is to be bound.

    Raises:
        Unsupported: a mount point would be below what is no directory.
    """
    binds: list[tuple[str, str]] = []
    todo = [""]
    while todo:
        directory = todo.pop()
        for name in sorted(os.listdir(f"{image}{directory}/")):
            path = f"{directory}/{name}"
            if path in points or is_within(path, _OWN):
                continue
            mode = os.lstat(image + path).st_mode
            above = any(is_within(point, (path,)) for point in points)
            if above and not stat.S_ISDIR(mode):
                raise Unsupported(
                    f"{image}{path} is no directory, and something has to be mounted below it: "
                    f"{', '.join(point for point in points if is_within(point, (path,)))}"
                )
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(image + path), root + path)
            elif above:
                os.mkdir(root + path)
                todo.append(path)
            elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                _make(root + path, stat.S_ISDIR(mode))
                binds.append((image + path, path))
    return binds


def _make(path: str, is_directory: bool) -> None:
    """A mount point."""
    if is_directory:
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).touch()


def _mount(kind: str, path: str, *options: str, source: str = "") -> dict[str, Any]:
    return {"destination": path, "type": kind, "source": source or kind, "options": list(options)}


def _runtimes(wanted: str) -> list[str]:
    """Paths of the OCI runtimes of this host, in the order in which they are tried."""
    found = []
    for name in [wanted] if wanted else ["crun", "runc"]:
        with contextlib.suppress(Unsupported):
            found.append(find_tool(name, name))
    return found or ([] if wanted else _of_podman())


def _of_podman() -> list[str]:
    """The runtime that podman would use, which may be in a place of its own."""
    with contextlib.suppress(Unsupported, OSError, subprocess.SubprocessError):
        argv = [find_tool("podman", "podman"), "info", "--format", "{{.Host.OCIRuntime.Path}}"]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
        if os.access(said, os.X_OK):
            return [said]
    return []


def _is_crun(path: str) -> bool:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return said.startswith("crun")


def _write(path: str, data: bytes) -> None:
    """A new file that everybody may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(data)


def _read_pid(path: str) -> int | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            return int(file.read())
    except (OSError, ValueError):  # it is not there, or not complete
        return None
