"""``grape app``: apps as directories with a manifest, and as what a server hosts."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import msgspec
import typer
from rich.table import Table

from grape.apps.manifest import check_fits, manifest_of
from grape.apps.package import pack as pack_app
from grape.apps.running import options_of
from grape.apps.signature import signature_of
from grape.cli.console import put, put_table, say, show_line
from grape.cli.home import HomeOption, home_of, or_exit, told
from grape.cli.run import fail
from grape.client.launching import fork_engine, launcher
from grape.client.session import Session
from grape.drivers.told import DriverInfo
from grape.errors import GrapeError, UsageError
from grape.model.levels import level_of
from grape.model.plural import counted
from grape.protocol.trial import Trial
from grape.remote.uploading import Deployer
from grape.server.home import Home, check_name
from grape.server.hosted import AppInfo
from grape.server.levels import LevelInfo
from grape.server.supervisor import Change, Level, Named, Remove, Upload, Uploaded

app = typer.Typer(
    help="Apps as directories with a grape.toml; and those that a server hosts.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

APP_HELP = """Check the app in DIR: what its grape.toml says, its secrets, its code as its workers load it, its pools.

\b
[grape.toml]
name = "orders"
version = "1.2.0"
app = "orders.py:topology"            # as the argument of `grape run`
config = { depth = 3 }                # reaches topology(config)
env = { REGION = "eu" }
secrets = { API_KEY = { file = "/run/secrets/api" } }   # or env =, credential =
[pool.main]                           # docs/pools.md
pool-limit = 4

Exit codes: 0 it can run; 2 it cannot, and why; 3 the engine had to stop."""

Name = Annotated[str, typer.Argument(metavar="APP", help="Its name.")]
Source = Annotated[str, typer.Argument(metavar="DIR|FILE", help="The app's directory, or a package made of it.")]
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="A server that is elsewhere: http://HOST:PORT. Else that of --home.")
]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN", envvar="GRAPE_TOKEN", help="For --server; others may see options, so rather: $GRAPE_TOKEN."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
Unread = Annotated[
    bool, typer.Option("--unread", help="Also if the version cannot read some of a sample of the state.")
]
DropSlot = Annotated[
    list[str] | None,
    typer.Option("--drop-slot", metavar="EVENT>NODE", help="Drop what waits for a slot that is no more. Repeatable."),
]


@app.command("check", help=APP_HELP)
def check(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory that has the grape.toml.")] = ".",
    profile: Annotated[
        str | None, typer.Option(metavar="FILE", help="How its pools are to be kept here: a TOML file.")
    ] = None,
) -> None:
    try:
        manifest, options = options_of(directory, os.environ, profile)
        topology = Session(options, [], [], show_line, launcher(options, fork_engine)).describe()
        check_fits(Path(directory), manifest, topology.events, topology.outputs)
    except GrapeError as e:
        fail(e)
        raise
    parts = [
        counted(len(topology.slots), "slot"),
        counted(len(topology.nodes), "node"),
        counted(len(topology.outputs), "output"),
        counted(len(topology.pools), "pool"),
        *([counted(len(manifest.driver), "driver")] if manifest.driver else []),
    ]
    put(f"{manifest.name} {manifest.version} can run: {', '.join(parts)}")


@app.command("pack")
def pack(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory that has the grape.toml.")] = ".",
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE", help="Else NAME-VERSION.tar.gz.")] = None,
) -> None:
    """Make a package of the app in DIR: one file that any server takes. The same app gives the same bytes."""

    def make() -> tuple[Path, str]:
        manifest = manifest_of(directory)
        target = Path(out or f"{manifest.name}-{manifest.version}.tar.gz")
        return target, pack_app(Path(directory), target)

    target, digest = or_exit(make)
    put(f"{target} {digest}")


@app.command("upload")
def upload(source: Source, home: HomeOption = None, server: Server = None, token: Token = None) -> None:
    """Give a server the package of an app; nothing that runs changes."""
    found = _uploaded(source, home) if server is None else _sent(source, server, token)
    put(f"{found.name} {found.version} {found.digest[:12]}{' (known already)' if found.is_known else ''}")


@app.command("sync")
def sync(home: HomeOption = None) -> None:
    """Look what the server's repository says of its apps, and do it. (It looks at its start, too.)"""
    changed = told(home, "sync", {}, list[str])
    say(f"changed: {', '.join(changed)}" if changed else "all is as the repository says")


@app.command("deploy")
def deploy(
    source: Source,
    home: HomeOption = None,
    server: Server = None,
    token: Token = None,
    drop_slot: DropSlot = None,
) -> None:
    """Upload an app and run it: the first time it starts, later it is upgraded. With --server that is done over
    HTTP, by a token for APP:admin.

    \b
    grape app deploy ./orders
    GRAPE_TOKEN=grape_... grape app deploy ./orders --server https://grape.example.org
    """
    if server is not None:
        put(_line(_deployed(source, server, token, tuple(drop_slot or ()))))
        return
    found = _uploaded(source, home)
    info = told(home, "app", Named(found.name), AppInfo)
    if info.digest != found.digest or drop_slot:
        info = _change(found.name, found.digest, drop_slot, home)
    if not info.serves:
        info = told(home, "start", Named(found.name), AppInfo)
    put(_line(info))


@app.command("list")
def list_apps(home: HomeOption = None, as_json: Json = False) -> None:
    """Show the apps of a server."""
    found = told(home, "apps", None, list[AppInfo])
    if as_json:
        put(msgspec.json.encode(found).decode())
        return
    if not found:
        say("no app yet; grape app deploy DIR brings one")
        return
    if not sys.stdout.isatty():
        for info in found:
            put("\t".join((info.name, info.state, info.version, info.digest[:12])))
        return
    table = Table("app", "state", "version", "since", "waits", "held", "dead", "events/s", box=None, pad_edge=False)
    for info in found:
        table.add_row(info.name, info.state, info.version, _ago(info.since), *_numbers(info))
    put_table(table)
    for info in found:
        if info.why:
            say(f"{info.name}: {info.why}")


@app.command("info")
def info(name: Name, home: HomeOption = None, as_json: Json = False) -> None:
    """Show all that is known of an app: versions, state, where its data and its log are, what is measured."""
    found = told(home, "app", Named(name), AppInfo)
    if as_json:
        put(msgspec.json.encode(found).decode())
        return
    put(_line(found))
    if found.paused:
        put(f"paused: its workers get nothing; grape app resume {name}")
    if found.why:
        put(f"why: {found.why}")
    put(f"data: {found.data}\nlog: {found.log}\ndeaths of its engine: {found.deaths}")
    for version in reversed(found.versions):
        what = "runs" if version.digest == found.digest else "before" if version.digest == found.previous else ""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(version.at))
        put(f"  {version.version:12} {version.digest[:12]} {at} {what}".rstrip())
    for driver in found.drivers:
        put(_driver_line(driver))
    if found.numbers is not None:
        put(msgspec.json.format(msgspec.json.encode(found.numbers)).decode())


@app.command("start")
def start(name: Name, home: HomeOption = None) -> None:
    """Run an app, now and after every start of the server."""
    put(_line(told(home, "start", Named(name), AppInfo)))


@app.command("stop")
def stop(name: Name, home: HomeOption = None) -> None:
    """Stop an app: what runs is committed, the rest waits. It stays stopped until it is started."""
    put(_line(told(home, "stop", Named(name), AppInfo)))


@app.command("restart")
def restart(name: Name, home: HomeOption = None) -> None:
    """Stop an app and start it: as after a change of its secrets or its profile."""
    put(_line(told(home, "restart", Named(name), AppInfo)))


@app.command("pause")
def pause(name: Name, home: HomeOption = None) -> None:
    """Give its workers nothing more, now and after every start: what they have is finished, and what comes waits,
    durable, until the limits of its pools (queue-limit). It can be upgraded meanwhile, and is not parked.

    \b
    grape app pause orders && grape dead list orders && grape app resume orders
    """
    put(_line(told(home, "pause", Named(name), AppInfo)))


@app.command("resume")
def resume(name: Name, home: HomeOption = None) -> None:
    """Let an app that is paused go on."""
    put(_line(told(home, "resume", Named(name), AppInfo)))


@app.command("level")
def level(
    name: Name,
    wanted: Annotated[
        str,
        typer.Argument(metavar="[LEVEL]", help="debug, info, warning, error, critical; default: as the app says."),
    ] = "",
    home: HomeOption = None,
    slot: Annotated[str, typer.Option("--slot", metavar="NODE", help="Of the handlers of this node alone.")] = "",
    as_json: Json = False,
) -> None:
    """Show how much the handlers of an app log, or change it: while it runs, and after every start and upgrade.

    \b
    grape app level orders debug --slot Stock
    grape app level orders default --slot Stock
    """
    if wanted:
        found = told(home, "level", Level(name, wanted, slot), LevelInfo)
    else:
        found = told(home, "levels", Named(name), LevelInfo)
    if as_json:
        put(msgspec.json.encode(found).decode())
        return
    for node in sorted({"", *found.levels} if not slot else {slot}):
        ordered = "" if node not in found.orders else " (ordered)"
        put(f"{node or name}: {level_of(found.levels, node)}{ordered}")


@app.command("upgrade")
def upgrade(
    name: Name,
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="Its name, or how its digest begins; else the newest.")
    ] = "",
    home: HomeOption = None,
    drop_slot: DropSlot = None,
    unread: Unread = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would change, and how a sample of the state is read.")
    ] = False,
) -> None:
    """Change to another version that is uploaded. It is loaded, reads a sample of the state, and its workers are
    started beside the one that runs, which then stops at a batch; if the new one cannot run the old one goes on."""
    if dry_run:
        trial = told(home, "trial", Change(name, version, tuple(drop_slot or ())), Trial)
        put("\n".join(_trial_lines(trial)))
        raise typer.Exit(1 if trial.problems else 0)
    put(_line(_change(name, version, drop_slot, home, unread=unread)))


@app.command("rollback")
def rollback(name: Name, home: HomeOption = None, drop_slot: DropSlot = None, unread: Unread = False) -> None:
    """Change back to the version that ran before."""
    put(_line(told(home, "rollback", Change(name, "", tuple(drop_slot or ()), unread), AppInfo)))


@app.command("remove")
def remove(
    name: Name,
    home: HomeOption = None,
    data: Annotated[bool, typer.Option("--data", help="Also all that it has stored, for ever.")] = False,
) -> None:
    """Take an app that is stopped off the server."""
    told(home, "remove", Remove(name, data), type(None))
    put(f"{name} is removed")


@app.command("logs")
def logs(
    name: Name,
    home: HomeOption = None,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="How many of the last.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more come.")] = False,
) -> None:
    """Show what an app printed, and what the server has to say of it."""

    def read() -> Path:
        check_name(name)
        path = Home(home_of(home)).log(name)
        if not path.exists():
            raise UsageError(f"{path}: there is no such log; grape app list shows the apps")
        return path

    path = or_exit(read)
    for line in _last(path, lines):
        put(line)
    if follow:
        sys.stdout.flush()
        for line in _followed(path):
            put(line)
            sys.stdout.flush()


# ------------------------------------------------------------------ common to them


def _uploaded(source: str, home: str | None) -> Uploaded:
    path = Path(source)
    if not path.is_dir():
        signature = or_exit(lambda: signature_of(path))
        return told(home, "upload", Upload(str(path.absolute()), signature=signature), Uploaded)
    with tempfile.TemporaryDirectory(prefix="grape-") as folder:
        file = Path(folder) / f"{path.absolute().name}.tar.gz"
        or_exit(lambda: pack_app(path, file))
        return told(home, "upload", Upload(str(file)), Uploaded)


def _sent(source: str, server: str, token: str | None) -> Uploaded:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a server that refuses the rest says why
    path = Path(source)
    if not path.is_dir():
        if not path.is_file():
            fail(UsageError(f"{source}: there is no such file or directory"))
        return or_exit(lambda: Deployer(server, token).upload(path))
    with tempfile.TemporaryDirectory(prefix="grape-") as folder:
        file = Path(folder) / "app.tar.gz"
        or_exit(lambda: pack_app(path, file))
        return or_exit(lambda: Deployer(server, token).upload(file))


def _deployed(source: str, server: str, token: str | None, drop_slots: tuple[str, ...]) -> AppInfo:
    """On a server that is elsewhere."""
    found = _sent(source, server, token)

    def run() -> AppInfo:
        with Deployer(server, token) as there:
            info = there.order("app", found.name)
            if info.digest != found.digest or drop_slots:
                info = there.order("upgrade", found.name, found.digest, drop_slots)
            return info if info.serves else there.order("start", found.name)

    return or_exit(run)


def _change(
    name: str, version: str, drop_slots: list[str] | None, home: str | None, *, unread: bool = False
) -> AppInfo:
    return told(home, "change", Change(name, version, tuple(drop_slots or ()), unread), AppInfo)


def _trial_lines(trial: Trial) -> list[str]:
    """What a trial has found, for people."""
    lines = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("slots that go", trial.slots_gone),
            ("new slots", trial.slots_new),
            ("nodes that go", trial.nodes_gone),
            ("new nodes", trial.nodes_new),
            ("nodes that move to another pool", trial.moved),
        )
        if names
    ]
    for node, count in trial.sampled.items():
        bad = [problem for problem in trial.problems if problem.node == node]
        outcome = f"{len(bad):,} cannot be read" if bad else "all can be read"
        lines.append(f"state of {node}: {count:,} records tried, {outcome}")
        lines += [f"  {problem.key}: {problem.text}" for problem in bad]
    return lines or ["nothing that is stored is touched"]


def _line(info: AppInfo) -> str:
    return f"{info.name} {info.version} {info.digest[:12]} {info.state}"


def _driver_line(driver: DriverInfo) -> str:
    parts = [f"driver {driver.name}: {driver.kind} of {driver.event}"]
    if driver.kind in ("cron", "timer"):
        parts.append(f"next {_at(driver.next)}")
    parts.append(f"last {_at(driver.last)}")
    return ", ".join(parts) + (f"\n  {driver.error}" if driver.error else "")


def _at(when: float | None) -> str:
    return "-" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _numbers(info: AppInfo) -> list[str]:
    numbers = info.numbers
    if numbers is None:
        return ["", "", "", ""]
    pools = numbers.pools.values()
    rate = sum(next(iter(pool.rate.values()), 0.0) for pool in pools)
    waits, held = sum(pool.queue_events for pool in pools), sum(pool.held for pool in pools)
    return [f"{waits:,}", f"{held:,}", f"{numbers.dead:,}", f"{rate:,.0f}"]


def _ago(since: float) -> str:
    seconds = max(0.0, time.time() - since)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _last(path: Path, count: int) -> list[str]:
    """Of the newest parts, as far as they are needed."""
    found: list[str] = []
    for part in (path, path.with_name(f"{path.name}.1")):
        if len(found) < count and part.exists():
            found = part.read_text(errors="replace").splitlines() + found
    return found[-count:] if count else []


def _followed(path: Path) -> Iterator[str]:
    """What comes from now on, also when the file is turned over."""
    is_first = True
    while True:
        with open(path, errors="replace") as file:
            file.seek(0, os.SEEK_END if is_first else os.SEEK_SET)
            is_first = False
            yield from _lines_of(file, path)


def _lines_of(file: IO[str], path: Path) -> Iterator[str]:
    """Until another file has its name."""
    rest = ""
    while True:
        text = file.readline()
        rest += text
        if rest.endswith("\n"):
            yield rest[:-1]
            rest = ""
        elif not text:
            time.sleep(0.2)
            if path.exists() and os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                return
