"""What an app's code needs beside it: a directory of packages, built once for what is asked for.

    requirements.txt, else the dependencies in pyproject.toml, else the wheels in wheels/     Python, by uv or pip
    package.json, with its package-lock.json                                                  JavaScript, by npm
    cpanfile, with vendor/cache of `carton bundle` where there is one                         Perl, by cpanm

Whoever keeps the server runs nothing of it: of Python only wheels are installed, of JavaScript no scripts are run.
Modules of Perl are built by their own code, so that is done in a jail which sees the network, and nothing of the
server.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.errors import UsageError

REQUIREMENTS: Final = "requirements.txt"
PROJECT: Final = "pyproject.toml"
WHEELS: Final = "wheels"
NODE: Final = "package.json"
_LOCK: Final = "package-lock.json"
PERL: Final = "cpanfile"
_VENDOR: Final = "vendor/cache"
_OURS: Final = ("msgspec",)
"""What the worker itself needs, which no app may change under it."""
_PATIENCE: Final = 900.0
_LAYOUT: Final = 2
"""Of an environment's directory."""
_NOBODY: Final = 65_534
_LAST_LINES: Final = 15


class Kind(Struct, frozen=True):
    """One language. ``wanted``: which file asks for something, if one does, and which lie beside it that count as well.
    ``build``: package, where to. ``variable`` is set to ``place`` in the environment."""

    wanted: Callable[[Path], tuple[str, Sequence[Path]] | None]
    build: Callable[[Path, Path], None]
    variable: str
    place: str


def key_of(package: Path) -> str | None:
    """What names the environment that the app wants; None: it wants none.

    Raises:
        UsageError: a file that says so cannot be read.
    """
    asked = [found for kind in KINDS if (found := kind.wanted(package)) is not None]
    if not asked:
        return None
    key = hashlib.sha256(f"{_LAYOUT} {sys.version_info[:2]} {sys.platform} {_constraints()}\n".encode())
    for name, beside in asked:
        for path in (package / name, *beside):
            with open(path, "rb") as file:
                told = hashlib.file_digest(file, "sha256").hexdigest()
            key.update(f"{path.relative_to(package)} {told}\n".encode())
    return key.hexdigest()


def asks(package: Path) -> list[str]:
    """The files by which it asks for something."""
    return [found[0] for kind in KINDS if (found := kind.wanted(package)) is not None]


def variables(environment: Path) -> dict[str, str]:
    """What makes a worker find what is in it."""
    places = {kind.variable: environment / kind.place for kind in KINDS}
    return {variable: str(place) for variable, place in places.items() if place.is_dir()}


def build(package: Path, target: Path) -> None:
    """Make the environment of an app, which is ``target`` then. Blocking, perhaps minutes.

    Raises:
        UsageError: it cannot be; the text ends with what the installer said.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        (new / "made").mkdir()
        for kind in KINDS:
            if kind.wanted(package) is not None:
                kind.build(package, new / "made")
        os.rename(new / "made", target)
    except OSError as e:
        if not target.is_dir():  # else somebody else has just made the same
            raise UsageError(f"{e.filename or target}: {e.strerror or e}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(what: str, argv: Sequence[str | Path], directory: Path, hint: str, env: dict[str, str] | None = None) -> None:
    """
    Raises:
        UsageError: it failed.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env=env,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"{what} was not installed within {_PATIENCE:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UsageError(f"{what} cannot be installed ({hint}):\n" + "\n".join(said[-_LAST_LINES:]))


def _tool(name: str, package: str, what: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{what} is installed by {name}, which is not here: apt-get install {package}")
    return found


# ---------------------------------------------------------------------- Python


def _python_wants(package: Path) -> tuple[str, Sequence[Path]] | None:
    wheels = sorted((package / WHEELS).glob("*.whl"))
    if (package / REQUIREMENTS).is_file():
        return REQUIREMENTS, wheels
    if (package / PROJECT).is_file() and _dependencies(package):
        return PROJECT, wheels
    return (f"{WHEELS}/{wheels[0].name}", wheels[1:]) if wheels else None


def _dependencies(package: Path) -> list[str]:
    """Those of its project; whatever else a pyproject.toml says is for tools.

    Raises:
        UsageError: they cannot be read.
    """
    try:
        project = tomllib.loads((package / PROJECT).read_text()).get("project", {})
    except (OSError, ValueError) as e:
        raise UsageError(f"{PROJECT}: {e}") from None
    found = project.get("dependencies", []) if isinstance(project, dict) else []
    if isinstance(project, dict) and "dependencies" in (project.get("dynamic") or ()):
        raise UsageError(f"{PROJECT}: its dependencies are dynamic; write them into it, or into {REQUIREMENTS}")
    if not isinstance(found, list) or not all(isinstance(one, str) and not one.startswith("-") for one in found):
        raise UsageError(f"{PROJECT}: project.dependencies is a list of requirements, as text")
    return found


def _constraints() -> str:
    return "\n".join(f"{name}=={version(name)}" for name in _OURS)


def _build_python(package: Path, made: Path) -> None:
    wanted = _python_wants(package)
    assert wanted is not None
    constraints = made.parent / "constraints.txt"
    constraints.write_text(_constraints() + "\n")
    wheels = package / WHEELS
    links = ["--find-links", str(wheels)] if wheels.is_dir() else []
    if wanted[0] == REQUIREMENTS:
        what, asked = REQUIREMENTS, ["-r", str(package / REQUIREMENTS)]
    elif wanted[0] == PROJECT:
        what, asked = PROJECT, _dependencies(package)
    else:
        what, asked = f"{WHEELS}/", ["--no-index", *map(str, sorted(wheels.glob("*.whl")))]
    options = ["--target", str(made / "python"), "--only-binary", ":all:", "-c", str(constraints)]
    _run(what, [*_installer(), *options, *links, *asked], package, "only wheels are")
    (made / "python").mkdir(exist_ok=True)


def _installer() -> list[str]:
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]


# ---------------------------------------------------------------------- JavaScript


def _node_wants(package: Path) -> tuple[str, Sequence[Path]] | None:
    if not (package / NODE).is_file():
        return None
    try:
        found: Any = msgspec.json.decode((package / NODE).read_bytes())
    except (msgspec.MsgspecError, OSError, RecursionError) as e:
        raise UsageError(f"{NODE}: {e}") from None
    if not isinstance(found, dict) or not found.get("dependencies"):
        return None
    lock = package / _LOCK
    return NODE, [*([lock] if lock.is_file() else []), *_tarballs(package, found["dependencies"])]


def _tarballs(package: Path, dependencies: Any) -> list[Path]:
    """Those of its dependencies that lie in the package itself."""
    named = [str(one) for one in dependencies.values()] if isinstance(dependencies, dict) else []
    paths = [package / one.removeprefix("file:") for one in named if one.startswith("file:")]
    return sorted(path for path in paths if path.is_file() and path.resolve().is_relative_to(package.resolve()))


def _build_node(package: Path, made: Path) -> None:
    place = made / "node"
    place.mkdir()
    wanted = _node_wants(package)
    assert wanted is not None
    for path in (package / NODE, *wanted[1]):
        (place / path.relative_to(package)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / path.relative_to(package))
    how = ["ci"] if (package / _LOCK).is_file() else ["install", "--no-package-lock"]
    options = ["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    _run(NODE, [_tool("npm", "npm", NODE), *how, *options], place, "without scripts")
    (place / "node_modules").mkdir(exist_ok=True)


# ---------------------------------------------------------------------- Perl


def _perl_wants(package: Path) -> tuple[str, Sequence[Path]] | None:
    if not (package / PERL).is_file():
        return None
    return PERL, sorted(path for path in (package / _VENDOR).rglob("*") if path.is_file())


def _build_perl(package: Path, made: Path) -> None:
    cpanm = _tool("cpanm", "cpanminus", PERL)
    work = Path(tempfile.mkdtemp(prefix="grape-perl-"))
    try:
        shutil.copyfile(package / PERL, work / PERL)
        mirror = []
        if (package / _VENDOR).is_dir():
            shutil.copytree(package / _VENDOR, work / _VENDOR)
            mirror = ["--from", f"file://{work / _VENDOR}"]
        argv = [cpanm, "--quiet", "--notest", *mirror, "-L", str(work / "local"), "--installdeps", str(work)]
        _run(PERL, _jailed(argv, work, made.parents[2]), work, "in a jail", _plain_env(work))
        _copy_files(work / "local" / "lib" / "perl5", made / "perl")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _jailed(argv: Sequence[str], work: Path, home: Path) -> list[str]:
    """A command that sees nothing of the server, and may write in ``work`` alone."""
    jail = [_tool("bwrap", "bubblewrap", PERL), "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    # Nobody, as whom root lets it run, may not look into the home anyway, nor put anything over it.
    for hidden in ("/root", "/home", "/run/credentials", *([] if os.geteuid() == 0 else [str(home)])):
        if os.path.isdir(hidden):
            jail += ["--tmpfs", hidden]
    jail += ["--bind", str(work), str(work), "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--new-session"]
    if os.geteuid() == 0:
        for path in (work, *work.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)
        user = ["--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups", "--no-new-privs"]
        jail = [_tool("setpriv", "util-linux", PERL), *user, *jail]
    return [*jail, *argv]


def _plain_env(work: Path) -> dict[str, str]:
    """Nothing of the server's own, in which there may be secrets."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work), "TMPDIR": str(work), "LANG": "C.UTF-8"}


def _copy_files(source: Path, target: Path) -> None:
    """Plain files alone: a link may lead anywhere."""
    target.mkdir()
    for folder, _, names in os.walk(source):
        into = target / os.path.relpath(folder, source)
        into.mkdir(exist_ok=True)
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink() and path.is_file():
                shutil.copyfile(path, into / name)


KINDS: Final = (
    Kind(_python_wants, _build_python, "PYTHONPATH", "python"),
    Kind(_node_wants, _build_node, "NODE_PATH", "node/node_modules"),
    Kind(_perl_wants, _build_perl, "PERL5LIB", "perl"),
)
