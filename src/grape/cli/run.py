"""``grape run``: one app on this machine, until its input is done."""

from __future__ import annotations

import copy
import os
import re
import select
import signal
import threading
import time
import tomllib
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from msgspec import structs

from grape.abc.source import Source
from grape.apps.running import is_app, options_of
from grape.authoring.loading import parse_target
from grape.cli.console import Meter, complain, flushed, put, say, show_line
from grape.cli.reload import reload as again_and_again
from grape.client.collecting import rarely_collected
from grape.client.launching import fork_engine, launcher
from grape.client.session import Session
from grape.client.taking import Taker
from grape.connectors.feeds import parse_feed
from grape.connectors.takes import parse_take, replies_to, taken_to
from grape.errors import BadArgument, Corrupt, EngineError, GrapeError, Interrupted, StorageFailed, UsageError
from grape.host.options import Options, check_options
from grape.model.bound import Bound
from grape.model.levels import read_levels
from grape.model.names import check_namespace
from grape.model.plural import counted
from grape.model.topology import Limits
from grape.model.urls import without_secrets
from grape.processes.profile_file import load_profiles
from grape.protocol.outcomes import Outcomes

EXIT_OK, EXIT_DEAD, EXIT_USE, EXIT_ENGINE, EXIT_INT, EXIT_TERM, EXIT_PIPE = 0, 1, 2, 3, 130, 143, 141
_LOOK: Final = 0.2


def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="APP",
            help="A module or file, and what in it: app.py, app.py:topology, pkg.app:t; or a folder with a grape.toml.",
        ),
    ],
    feed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EVENT=SOURCE[,OPTION]",
            help="Read events from a text file (one a line), from a .jsonl file, from whatever can be read, or from - "
            "(stdin). Options behind commas: key=FIELD, /expression/ or module:function; id= the same; order=source; "
            "follow; complete; on_end=EVENT; retries=N; jsonl; text. Repeatable.",
        ),
    ] = None,
    take: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EVENT[=FILE]",
            help="Append an output to FILE as JSON lines, exactly once; without FILE to stdout. Repeatable.",
        ),
    ] = None,
    replies: Annotated[str | None, typer.Option(metavar="FILE", help="Append replies to FILE as JSON lines.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep log and state in DIR, so that the run can be resumed. Without it they "
            "live in a temporary directory.",
        ),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="N|auto", help="Workers of a pool whose profile does not say; auto: one a core.")
    ] = "auto",
    inline: Annotated[
        bool, typer.Option("--inline", help="Run slots in the engine's process: for a debugger.")
    ] = False,
    partitions: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Partitions of a new app (32); fixed once it is created.")
    ] = None,
    drop_slot: Annotated[
        list[str] | None,
        typer.Option(metavar="EVENT", help="The slot is gone: move what waits for it to the dead letters. Repeatable."),
    ] = None,
    discard_slot: Annotated[
        list[str] | None,
        typer.Option(metavar="EVENT", help="As --drop-slot, but without dead letters: it needs no room. Repeatable."),
    ] = None,
    drop_node: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="The node is gone: remove its state. Repeatable.")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="TOML or JSON, given to topology(config).")] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="TOML: how each pool is kept and confined, in tables \\[pool.NAME]."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="One value of the config; a.b=1 nests. Repeatable.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=V]", help="An environment variable for the workers. Repeatable.")
    ] = None,
    storage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMESPACE=URL", help="Objects of a namespace lie there, not in DIR: s3://, file:// .. Repeatable."
        ),
    ] = None,
    log_level: Annotated[
        list[str] | None,
        typer.Option(metavar="[NODE=]LEVEL", help="How much handlers log: debug, info (the default) ... Repeatable."),
    ] = None,
    max_dead: Annotated[int, typer.Option(metavar="N", min=0, help="Dead letters after which feeding stops.")] = 1000,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="How large the data may grow: 500M, 64G (the default), bytes.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Leave timers that are due later in DIR.")] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: start again whenever a file of the app has changed.")
    ] = False,
    summary: Annotated[str | None, typer.Option(metavar="json", help="Print one JSON object at the end.")] = None,
) -> None:
    """Run APP until all input is processed and nothing is left in flight.

    \b
    grape run wordcount.py --feed line=book.txt --data ./words      # again: it resumes
    grape run orders.py --feed order=orders.jsonl,key=id --take accepted=accepted.jsonl
    grape run plugins.py --feed job=jobs.jsonl --profile strict.toml     # confined workers
    tail -f log | grape run watch.py --feed line=- --take alarm

    Exit codes: 0 done; 1 dead letters; 2 wrong use or topology; 3 the engine had to stop; 130, 143 interrupted.
    """
    if summary not in (None, "json"):
        fail(UsageError(f"--summary {summary}: only json is known"))
    try:
        limits = Limits()
        base, settings = _base(target, profile, lambda given: read_config(config, set_ or (), given))
        if reload:
            raise typer.Exit(again_and_again(base.target, data))
        options = structs.replace(
            base,
            config=settings,
            data=data,
            workers=parse_workers(workers) or base.workers,
            partitions=base.partitions if partitions is None else partitions,
            env={**base.env, **dict(parse_env(env or ()))},
            storages=dict(parse_storage(text) for text in storage or ()),
            max_dead=max_dead,
            levels={**base.levels, **_levels(log_level or [], inline)},
            wait=not no_wait,
            inline=inline,
            limits=limits,
            drop_slots=frozenset(drop_slot or ()),
            drop_nodes=frozenset(drop_node or ()),
            max_size=base.max_size if max_size is None else parse_size(max_size),
            discard_slots=frozenset(discard_slot or ()),
        )
        sources: list[Source] = [parse_feed(text, limits.max_event) for text in feed or ()]
        takers = [make_taker(text) for text in take or ()]
        refuse_twice("--feed", [source.name for source in sources])
        refuse_twice("--take", [taker.sink.name for taker in takers])
        if replies is not None:
            takers.append(Taker(None, replies_to(replies)))
        if no_wait and data is None:
            raise UsageError("--no-wait leaves timers in a data directory: say which one with --data DIR")
        options.events = tuple(text.partition("=")[0].strip() for text in feed or ())
        check_options(options)
    except GrapeError as e:
        fail(e)
    code = _run(options, sources, takers, summary == "json")
    raise typer.Exit(code if flushed() else EXIT_PIPE)


def _levels(texts: list[str], inline: bool) -> dict[str, str]:
    """
    Raises:
        UsageError: one is none, or of nobody.
    """
    if inline and texts:
        raise UsageError("--log-level is of workers, and --inline has none: leave one of them out")
    return read_levels(texts)


def _base(
    target: str, profile: str | None, configured: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[Options, dict[str, Any]]:
    """What is to run, as far as it says so itself, and its config.

    Raises:
        UserError: it is none.
    """
    if is_app(target):
        _, base = options_of(target, os.environ, profile)
        return base, configured(base.config)
    parse_target(target)
    settings = configured({})
    return Options(target=target, profiles=load_profiles(profile, settings)), settings


def fail(error: GrapeError) -> Any:
    """Say what is wrong and leave with the code for it."""
    text = str(error)
    if isinstance(error, BadArgument):  # it speaks of data=X, which is --data X here
        text = re.sub(r"^(\w+)=", lambda found: f"--{found[1].replace('_', '-')} ", text)
    complain(text)
    raise typer.Exit(EXIT_ENGINE if isinstance(error, EngineError) else EXIT_USE)


def refuse_twice(option: str, names: list[str]) -> None:
    """The same source or sink cannot serve twice in one run."""
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{option} {name} is given twice; once is enough")


def parse_workers(text: str) -> int:
    if text == "auto":
        return 0
    if text.isdecimal() and 1 <= int(text) <= 1000:
        return int(text)
    raise UsageError(f"--workers {text}: a number from 1 to 1000, or auto")


def parse_size(text: str) -> int:
    """ "500M", "64G" or a number of bytes."""
    found = re.fullmatch(r"(\d{1,18})\s*([kKMGT]?)(i?[bB])?", text.strip(), re.ASCII)
    if found is None:
        raise UsageError(f"--max-size {text}: a number of bytes, or one with K, M, G or T, such as 64G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()]


def parse_storage(text: str) -> tuple[str, Bound]:
    """ "pictures=s3://bucket"."""
    name, given, url = text.partition("=")
    if not given or "://" not in url:
        raise UsageError(
            f"--storage {without_secrets(text)}: it is --storage NAMESPACE=URL, such as pictures=file:///srv/pictures"
        )
    return check_namespace(name), Bound(url, name)


def parse_env(items: Iterable[str]) -> Iterable[tuple[str, str]]:
    for item in items:
        name, given, value = item.partition("=")
        if not given:
            if name not in os.environ:
                raise UsageError(f"--env {name}: there is no such variable to pass on; set it with --env {name}=VALUE")
            value = os.environ[name]
        yield name, value


def read_config(path: str | None, settings: Iterable[str], base: Mapping[str, Any]) -> dict[str, Any]:
    """The config section: what the app says itself, or a file in its place, and single values over it."""
    config: dict[str, Any] = copy.deepcopy(dict(base))
    if path is not None:
        try:
            text = Path(path).read_bytes()
            config = msgspec.json.decode(text) if path.endswith(".json") else tomllib.loads(text.decode())
        except OSError as e:
            raise UsageError(f"--config {path}: {e.strerror}") from None
        except ValueError as e:
            raise UsageError(f"--config {path}: {e}") from None
        if not isinstance(config, dict):
            raise UsageError(f"--config {path}: it holds a {type(config).__name__}, not a table of keys and values")
    for setting in settings:
        name, given, text_value = setting.partition("=")
        if not given or not name:
            raise UsageError(f"--set {setting}: it is --set KEY=VALUE, for example --set depth=3")
        try:
            value = msgspec.json.decode(text_value)
        except msgspec.DecodeError:
            value = text_value
        *tables, last = name.split(".")
        place = config
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {setting}: {table!r} is no table")
        place[last] = value
    return config


def make_taker(text: str) -> Taker:
    event, path = parse_take(text)
    return Taker(event, taken_to(event, path))


def _run(options: Options, sources: list[Source], takers: list[Taker], as_json: bool) -> int:
    session = Session(options, sources, takers, show_line, launcher(options, fork_engine))
    got: list[int] = []
    told: list[int] = []
    telling = threading.Lock()
    is_launched = False

    def stop() -> None:
        with telling:
            for number in got[len(told) :]:
                told.append(number)
                session.stop()
                if len(told) == 1:
                    say("stopping: what runs is finished and committed (again: stop at once, nothing is lost)")

    def on_signal(number: int, _: object) -> None:
        got.append(number)
        # In a handler nothing may wait for what this thread was just doing, nor write to where it was just writing.
        if is_launched:  # an engine is forked while no thread runs
            start_new_thread(stop, ())  # `threading` may be in the middle of starting one, with its lock

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    session.launch()
    is_launched = True
    if got:
        stop()
    with rarely_collected(), Meter(session, quiet=False) as meter:
        try:
            outcomes = _until_over(session, meter)
        except Interrupted as e:
            say(str(e))
            return EXIT_INT if got[:1] == [signal.SIGINT] else EXIT_TERM
        except GrapeError as e:
            if isinstance(e, StorageFailed) and _reader_is_gone():
                say("nobody reads standard output any more: what was not read is handed out by the next run")
                return EXIT_PIPE
            complain(str(e))
            _say_how_to_go_on(e, options)
            return EXIT_ENGINE if isinstance(e, EngineError) else EXIT_USE
    if any(source.restarted for source in sources):
        say("stdin cannot be read again: this run read the new stdin from its start")
    report(outcomes, meter, options, as_json)
    if got and (outcomes.stopped or outcomes.backlog):
        return EXIT_INT if got[0] == signal.SIGINT else EXIT_TERM
    return EXIT_DEAD if outcomes.dead_stored or outcomes.stopped_events or outcomes.stuck else EXIT_OK


def _until_over(session: Session, meter: Meter) -> Outcomes:
    """
    Raises:
        GrapeError: it could not go on.
    """
    ended: Future[Outcomes] = Future()
    over = threading.Event()

    def run() -> None:
        try:
            ended.set_result(session.run())
        except BaseException as e:
            ended.set_exception(e)
        over.set()

    threading.Thread(target=run, name="grape-session", daemon=True).start()
    while not over.wait(_LOOK):
        meter.update()
    meter.update()
    return ended.result()


def _reader_is_gone() -> bool:
    """Standard output is a pipe that nobody reads."""
    poll = select.poll()
    try:
        poll.register(1, select.POLLOUT)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except OSError:
        return False


def _say_how_to_go_on(error: GrapeError, options: Options) -> None:
    if isinstance(error, EngineError) and options.data:
        mend = f"; what is damaged is taken out by: grape repair --data {options.data}"
        say(
            f"nothing confirmed is lost. Check the directory with: grape doctor --data {options.data}"
            f"{mend if isinstance(error, Corrupt) else ''}"
        )


def summary_of(outcomes: Outcomes, meter: Meter) -> dict[str, Any]:
    """What ``--summary json`` prints."""
    counts = outcomes.counts
    return {
        "app": outcomes.app,
        "seconds": round(outcomes.seconds, 3),
        "events_per_second": round(counts.finished / outcomes.seconds) if outcomes.seconds else 0,
        "in": counts.fed,
        "out": counts.taken,
        "emitted": counts.emitted,
        "slots": counts.processed,
        "failures": counts.failures,
        "dropped_outputs": counts.dropped,
        "dead": outcomes.dead_stored,
        "backlog": outcomes.backlog,
        "unshipped": outcomes.unshipped,
        "stuck": outcomes.stuck,
        "commits": counts.commits,
        "worker_deaths": counts.worker_deaths,
        "stale_frames": counts.stale_frames,
        "pools": {} if outcomes.numbers is None else msgspec.to_builtins(outcomes.numbers.pools),
        "data": outcomes.data if outcomes.kept else None,
        "peak_private_mb": {name: round(mb, 1) for name, mb in meter.peak_private.items()},
        "peak_rss_mb": {name: round(mb, 1) for name, mb in meter.peak_rss.items()},
    }


def report(outcomes: Outcomes, meter: Meter, options: Options, as_json: bool) -> None:
    """The last words of a run."""
    found = summary_of(outcomes, meter)
    if as_json:
        put(msgspec.json.encode(found).decode())
    counts = outcomes.counts
    fed = ", ".join(f"{n:,} {name}" for name, n in counts.fed.items()) or "nothing new"
    say(
        f"{outcomes.app}: {fed} in; {counted(counts.finished, 'event')} processed in {outcomes.seconds:.2f} s "
        f"({found['events_per_second']:,} events/s)"
    )
    for name, count in found["dropped_outputs"].items():
        had = f"{counted(count, 'event')} had no taker and {'was' if count == 1 else 'were'}"
        say(f"output {name!r}: {had} dropped (--take {name}=FILE keeps them)")
    where = f"--data {outcomes.data}"
    if outcomes.kept and (outcomes.stopped or outcomes.backlog > outcomes.stopped_events):
        due = ""
        if outcomes.due is not None:
            due = f"; the next is due {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(outcomes.due))}"
        wait = f"{counted(outcomes.backlog, 'event')} {'waits' if outcomes.backlog == 1 else 'wait'}"
        say(f"{wait} in {outcomes.data}{due}. Resume with the same command and {where}")
    if outcomes.unshipped:
        what = "object waits" if outcomes.unshipped == 1 else "objects wait"
        say(
            f"{outcomes.unshipped:,} {what} for another storage in {outcomes.data}. "
            f"Resume with the same command and {where}"
        )
    if outcomes.stuck:
        what = "object is" if outcomes.stuck == 1 else "objects are"
        say(
            f"{outcomes.stuck:,} {what} refused by another storage, and kept in {outcomes.data}. "
            f"The next run with {where} tries again"
        )
    if outcomes.stopped_events:
        hold = "holds its key" if outcomes.stopped_events == 1 else "hold their keys"
        say(
            f'{counted(outcomes.stopped_events, "event")} failed for good and {hold} (on_fail="stop"); decide with: '
            f"grape dead list {where}"
        )
    if outcomes.feeding_stopped:
        say(
            "feeding stopped before the end of the input: "
            f"more than {counted(options.max_dead, 'dead letter')} (--max-dead). "
            f"Resume with the same command and {where}, when they are fewer or more are allowed"
        )
    if outcomes.dead_stored:
        what = "it" if outcomes.dead_stored == 1 else "them"
        say(f"{counted(outcomes.dead_stored, 'dead letter')}; look at {what} with: grape dead list {where}")
    if options.data is None and outcomes.kept:
        say(f"the data directory was kept: {outcomes.data}")
