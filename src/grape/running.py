"""Run a topology from Python: ``grape.run(...)`` and ``with grape.open(...) as engine``.

The engine is a process of its own (with ``inline`` a thread of this one); nothing process-wide is touched (no signal
handlers, no event loop policy). Workers import the topology by module and name, so it must stand where they can find
it.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import FrameType, FunctionType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from msgspec import Struct

from grape.abc.source import Source
from grape.authoring.loading import imported_now
from grape.authoring.places import HIDDEN, caller, place_of_caller
from grape.authoring.topology import Topology
from grape.client.collecting import rarely_collected
from grape.client.connection import Connection, dial
from grape.client.launching import launcher, spawn_engine
from grape.client.programs import EngineClient
from grape.client.session import Session
from grape.client.taking import Taker
from grape.connectors.feeds import feed as feed
from grape.connectors.feeds import source_of
from grape.connectors.live import QueueSink
from grape.connectors.takes import sink_of
from grape.errors import BadArgument, Full, GrapeError, NoAnswer, Refused, TopologyError, UsageError, UserError
from grape.host.options import MAX_WORKERS, Options, check_names, check_options, mapping_of, names_of, path_of
from grape.model.event import Event
from grape.model.profile import Profile
from grape.model.topology import Limits, TopologySpec
from grape.model.values import shown as shown_value
from grape.processes.output import Line
from grape.processes.profile_file import load_profiles
from grape.protocol.door import Stop, TakeReplies
from grape.protocol.outcomes import Outcomes
from grape.store.store import MAX_SIZE
from grape.tools.terminal import shown

P = ParamSpec("P")
T = TypeVar("T")
Feed = Mapping[str, Any]
Take = Mapping[str, Any]
Profiles = str | os.PathLike[str] | Mapping[str, Mapping[str, Any]] | None


class Summary(Struct, frozen=True):
    """How a run ended. ``fed``, ``emitted``, ``taken``: events by name; ``slots``: processed by "event>node"."""

    seconds: float
    events: int
    fed: dict[str, int]
    emitted: dict[str, int]
    taken: dict[str, int]
    slots: dict[str, int]
    failures: dict[str, int]
    dead: int
    backlog: int
    data: str | None


def at_the_call(function: Callable[P, T]) -> Callable[P, T]:
    """What the user has done wrong is shown at his own line: the engine's frames below it tell him nothing."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        wrong: GrapeError
        try:
            return function(*args, **kwargs)
        except (UserError, Refused) as e:
            wrong = e
        raise wrong.with_traceback(None) from None

    code = cast(FunctionType, call)
    code.__code__ = code.__code__.replace(co_filename=HIDDEN)
    return call


@at_the_call
def run(
    topology: Topology | str | os.PathLike[str],
    *,
    feed: Feed | None = None,
    take: Take | None = None,
    data: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    partitions: int | None = None,
    config: dict[str, Any] | None = None,
    inline: bool = False,
    wait: bool = True,
    profile: Profiles = None,
    env: Mapping[str, str] | None = None,
    storages: Mapping[str, str] | None = None,
    log_level: str | Mapping[str, str] | None = None,
    limits: Limits | None = None,
    max_dead: int = 1000,
    max_size: int = MAX_SIZE,
    reserve: int | None = None,
) -> Summary:
    """Run until all input is processed and nothing is in flight.

    Args:
        topology: a `Topology` at the top of a module, or where to find one ("app.py:topology").
        feed: event -> a path (text or .jsonl), a `Source`, or a callable ``read(position) -> (events, position)``.
        take: event -> a path for JSON lines, or a callable that gets each `Event` of the output.
        data: the data directory; None: a temporary one.
        workers: processes of a pool whose profile does not say; None: one a core.
        profile: how pools are kept and confined: a TOML file, or pool -> its keys ({"main": {"pool-limit": 4}}).
        inline: run the slots in this process.
        env: environment variables for the workers, which get hardly any else.
        storages: where namespaces of objects lie, if not in ``data``: {"pictures": "s3://bucket"}.
        log_level: how much handlers log: "debug", or by node {"Count": "debug"}, of all others with "". Not with
            ``inline``, where that is the program's own business.
        wait: for timers that are due later; else they stay in ``data``, which must be given.
        max_dead: dead letters after which feeding stops.
        max_size: bytes that the data may grow to; ``reserve``: how much of it is kept for commits (a tenth).

    Raises:
        BadArgument: an argument cannot be; nothing has been made or started then. A UsageError.
        UserError: wrong use, a topology that cannot be built or imported, workers that cannot start.
        EngineError: the engine had to stop.
    """
    options, given = options_of(topology, profile, locals())
    options.events = tuple(given)
    engine = RunningEngine(options, _sources(given, options.limits), _takers(take))
    with rarely_collected():
        return engine.wait()


@at_the_call
def open(
    topology: Topology | str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    outputs: tuple[str, ...] | None = None,
    workers: int | None = None,
    partitions: int | None = None,
    config: dict[str, Any] | None = None,
    inline: bool = False,
    profile: Profiles = None,
    env: Mapping[str, str] | None = None,
    storages: Mapping[str, str] | None = None,
    log_level: str | Mapping[str, str] | None = None,
    limits: Limits | None = None,
    max_dead: int = 1000,
    max_size: int = MAX_SIZE,
    reserve: int | None = None,
) -> RunningEngine:
    """An engine to talk to: ``with grape.open(topology) as e: e.emit(...); for event in e.outputs("total"): ...``.

    ``outputs``: the ones that ``outputs()`` may be asked for; None: all of the topology. Other arguments and errors are
    those of `run`; leaving the block drains it, what is left waits in ``data``.
    """
    names = None if outputs is None else names_of(outputs, "outputs=")
    options, _ = options_of(topology, profile, locals())
    return unstarted(options, names).start()


def unstarted(options: Options, outputs: tuple[str, ...] | None) -> RunningEngine:
    """An engine that stays open, with these outputs to be asked for (None: all)."""
    options.keep_open = True
    engine = RunningEngine(options, [], [])
    engine.take(outputs)
    return engine


@at_the_call
def connect(data: str | os.PathLike[str]) -> ConnectedEngine:
    """The engine that runs on the directory ``data``, whoever has started it: ``with grape.connect("./d") as e:
    e.emit(...)``. Leaving the block leaves the engine as it is.

    Raises:
        BadArgument: that is no path.
        UsageError: no engine runs on it, or it belongs to somebody else.
        NoAnswer: the engine has not begun within 30 seconds.
    """
    return ConnectedEngine(path_of(data, "data="))


class ConnectedEngine(EngineClient):
    """What `connect` gives. Any thread may use it."""

    def __init__(self, data: str) -> None:
        super().__init__()
        self._connection = dial(data)
        self._connection.replies = self.calls.replied
        self._connection.start()
        try:
            self._opened = self._connection.let_in()
        except BaseException:
            self._connection.close()
            raise
        self._connection.ended.add_done_callback(lambda _: self.calls.end(self._gone, self._gone))
        self._connection.send(TakeReplies())

    @property
    def limits(self) -> Limits:
        """What events may be."""
        return self._opened.limits

    def connected(self) -> Connection:
        if self._connection.is_over:
            raise self._gone()
        return self._connection

    def _gone(self) -> GrapeError:
        error = self._connection.ended.exception() if self._connection.is_over else None
        return error if isinstance(error, GrapeError) else Full("the engine has ended")

    def stop(self) -> Outcomes:
        """Have the engine stop, as Ctrl-C does, and wait until it has: what runs is committed, the rest waits.

        Raises:
            GrapeError: it failed.
        """
        self.connected().send(Stop())
        return self._connection.ended.result()

    def close(self) -> None:
        """Leave. What waits for an answer has none."""
        self._connection.close()

    def __enter__(self) -> ConnectedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RunningEngine(EngineClient):
    """A run on a thread. Methods are for other threads, any of them."""

    def __init__(self, options: Options, sources: list[Source], takers: list[Taker]) -> None:
        super().__init__()
        self._queues: dict[str, QueueSink] = {}
        self._is_given_up = False
        self._session = Session(options, sources, takers, _print_line, launcher(options, spawn_engine))
        self._result: Future[Outcomes] = Future()
        self._thread = threading.Thread(target=self._main, name="grape-session", daemon=True)

    def _main(self) -> None:
        try:
            self._result.set_result(self._session.run())
        except BaseException as e:
            self._result.set_exception(e)

    def take(self, names: tuple[str, ...] | None) -> None:
        """Before the start: let ``outputs()`` be asked for these; None: for all of the topology."""

        def takers(topology: TopologySpec) -> list[Taker]:
            self._queues = {name: QueueSink(name) for name in (topology.outputs if names is None else names)}
            return [Taker(name, sink) for name, sink in self._queues.items()]

        self._session.more_takers = takers
        self._session.takes_replies = self.calls.replied

    def start(self) -> RunningEngine:
        """Start and wait until it takes events.

        Raises:
            GrapeError: it could not be started.
            KeyboardInterrupt: Ctrl-C; nothing runs any more.
        """
        self._result.add_done_callback(lambda _: self._tell_ended())
        self._thread.start()
        try:
            while not self._session.ready.wait(0.05):
                if self._result.done():
                    break
                if self._is_given_up:
                    self._session.stop()
                    self._result.exception()
        except KeyboardInterrupt:
            self._end_interrupted()
            raise
        if not self._session.has_begun:
            self._thread.join()
            self._result.result()
        return self

    def _end_interrupted(self) -> None:
        """Ctrl-C: what runs is committed; another one stops at once."""
        for _ in range(2):
            self._session.stop()
            try:
                self._result.exception()
                return
            except KeyboardInterrupt:
                continue

    def wait(self) -> Summary:
        """Wait until everything is done.

        Raises:
            GrapeError: it could not be gone on.
            KeyboardInterrupt: Ctrl-C; what was running is committed, the rest waits in the data directory.
        """
        if not self._thread.ident:
            self._thread.start()
        try:
            outcomes = self._result.result()
        except KeyboardInterrupt:
            self._end_interrupted()
            raise
        finally:
            if self._result.done():
                self._thread.join()  # it has nothing left to do
        counts = outcomes.counts
        return Summary(
            outcomes.seconds,
            counts.finished,
            counts.fed,
            counts.emitted,
            counts.taken,
            counts.processed,
            counts.failures,
            outcomes.dead_stored,
            outcomes.backlog,
            outcomes.data if outcomes.kept else None,
        )

    @property
    def limits(self) -> Limits:
        """What events may be."""
        opened = self._session.opened
        return self._session.options.limits if opened is None else opened.limits

    def connected(self) -> Connection:
        if not self._session.has_begun or self._result.done():
            raise self._ended()
        return self._session.connection

    def _tell_ended(self) -> None:
        """Whoever waits hears that it has ended."""
        self.calls.end(self._unanswered, self._ended)
        for sink in self._queues.values():
            sink.wake()

    def _ended(self) -> GrapeError:
        """What those get that come when it has ended."""
        error = self._result.exception() if self._result.done() else None
        return error if isinstance(error, GrapeError) else Full("the engine has ended")

    def _unanswered(self) -> GrapeError:
        """What those get that wait when it ends."""
        error = self._result.exception()
        if isinstance(error, GrapeError):
            return error
        return NoAnswer("the engine was closed before an answer came; what was not done waits in its data directory")

    def outputs(self, event: str, *, timeout: float | None = None) -> Iterator[Event]:
        """Committed events of an output, as they come. Ends when none came for ``timeout`` seconds (None: never).

        Raises:
            UsageError: it is no output of this topology.
        """
        sink = self.queue_of(event)
        while True:
            found = sink.get(timeout if timeout is not None else 0.2)
            if found is not None:
                yield found
            elif timeout is not None or self._result.done():
                return

    def queue_of(self, event: str) -> QueueSink:
        """
        Raises:
            UsageError: it is no output that is open.
        """
        sink = self._queues.get(event) if type(event) is str else None
        if sink is None:
            raise UsageError(f"no output {shown_value(event)} is open here; open are {sorted(self._queues)}")
        return sink

    @property
    def has_ended(self) -> bool:
        return self._result.done()

    def give_up(self) -> None:
        """While `start` waits on another thread: it is to return."""
        self._is_given_up = True

    def close(self) -> Summary:
        """Stop: what runs is committed, the rest waits in the data directory."""
        if not self._result.done():
            self._session.stop()
        return self.wait()

    def __enter__(self) -> RunningEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _print_line(worker: str, line: Line) -> None:
    out = sys.stdout if line.level == "stdout" else sys.stderr
    where, text = shown(worker, line)
    with suppress(OSError, ValueError):  # closed, or nobody reads it: that is no reason to end
        out.write(f"[{where}] {text}\n")


def _refuse_while_imported() -> None:
    """A worker imports the app, and so does a process that `multiprocessing` spawns: a run at the top of the module
    would begin again in each of them, without an end.

    Raises:
        TopologyError: see above.
    """
    target = imported_now()
    process = sys.modules.get("multiprocessing.process")
    if not target and process is not None and getattr(process.current_process(), "_inheriting", False):
        target = "the main module"
    if target:
        raise TopologyError(
            f"{place_of_caller()}: grape.run or grape.open is called while {target!r} is imported. Every worker "
            f"imports it, and would start a run of its own, without an end. Write the call below a line:  "
            f'if __name__ == "__main__":'
        )


def options_of(topology: object, profile: object, given: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """The arguments of `run` or `open`, checked, and what is fed. Nothing has been made or started yet.

    Raises:
        TopologyError: workers cannot find the topology; or it calls this while it is imported.
        BadArgument: see `check_options`.
    """
    _refuse_while_imported()
    inline = given["inline"]
    built = topology if isinstance(topology, Topology) else None
    if built is None and not isinstance(topology, str | os.PathLike):
        raise BadArgument(
            f"topology= is a Topology, or text that says where it is (app.py:t), not {shown_value(topology)}"
        )
    target = where_is(built, caller(), inline is True) if built is not None else path_of(topology, "topology=")
    feed = mapping_of(given.get("feed"), "feed=", '{"line": "book.txt"}')
    env = mapping_of(given["env"], "env=", '{"API_KEY": "..."}')
    storages = mapping_of(given["storages"], "storages=", '{"pictures": "s3://bucket"}')
    options = Options(
        target=target,
        config={} if given["config"] is None else given["config"],
        data=given["data"],
        workers=0 if given["workers"] is None else _some(given["workers"], "workers="),
        partitions=given["partitions"],
        inline=inline,
        wait=given.get("wait", True),
        limits=Limits() if given["limits"] is None else given["limits"],
        max_dead=given["max_dead"],
        max_size=given["max_size"],
        reserve=given["reserve"],
        directory=_working_directory(),
        topology=built if inline is True else None,
        env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env},
        storages=storages,
        levels=given["log_level"],
    )
    check_options(options)
    options.profiles = _profiles(profile, options.config)
    take = mapping_of(given.get("take"), "take=", '{"total": "totals.jsonl"}')
    if built is not None and not any(pool.describes_itself for pool in built.spec().pools):
        spec = built.spec()
        nodes = [node.name for node in spec.nodes]
        check_names("log_level=", [n for n in options.levels if n], nodes, f"app {spec.name!r} has no node")
        check_names("feed=", feed, spec.events, f"app {spec.name!r} has no slot")
        check_names("take=", take, spec.outputs, f"app {spec.name!r} has no output")
        check_names("outputs=", given.get("outputs") or (), spec.outputs, f"app {spec.name!r} has no output")
    if inline and options.levels:
        raise BadArgument(
            "log_level= is of workers; with inline=True the logging of this program says how much is logged"
        )
    return options, feed


def _some(value: object, what: str) -> Any:
    if value == 0:
        raise BadArgument(f"{what} is a whole number from 1 to {MAX_WORKERS}, or None for one a core, not {value!r}")
    return value


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as e:
        raise UsageError(f"the working directory cannot be used: {e.strerror}; change to another one") from None


def _profiles(profile: Any, config: dict[str, Any]) -> dict[str, Profile]:
    if isinstance(profile, Mapping):
        profile = mapping_of(profile, "profile=", '{"main": {"pool-limit": 4}}')
    elif profile is not None:
        profile = path_of(profile, "profile=")
    try:
        return load_profiles(profile, config)
    except (TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise BadArgument(f"profile=: {e}") from None


def where_is(topology: Topology, caller: FrameType | None, inline: bool = False) -> str:
    """ "path.py:NAME" or "module:NAME" by which a worker finds ``topology``.

    Raises:
        TopologyError: it is not at the top of a module.
    """
    candidates = [sys.modules["__main__"]] if "__main__" in sys.modules else []
    if caller is not None and caller.f_globals.get("__name__") in sys.modules:
        candidates.insert(0, sys.modules[caller.f_globals["__name__"]])
    candidates += [m for m in list(sys.modules.values()) if m not in candidates]
    for module in candidates:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is topology:
                path = getattr(module, "__file__", None)
                if module.__name__ == "__main__":
                    if path is None or not Path(path).exists():
                        break
                    return f"{Path(path).resolve()}:{name}"
                return f"{module.__name__}:{name}"
    if inline:
        return f"{Path.cwd() / topology.name}:here"  # nobody imports it
    raise TopologyError(
        f"workers are processes of their own and import the topology {topology.name!r}, but it is not at the top of a "
        f"module that they can import. Assign it to a global name in a file (t = Topology(...)), name a function that "
        f"builds it (grape.run('app.py:topology')), or run it here with inline=True"
    )


def _sources(feed: Feed, limits: Limits) -> list[Source]:
    out: list[Source] = []
    for event, what in feed.items():
        if isinstance(what, str | os.PathLike):
            what = path_of(what, f"feed[{event!r}]")
        out.append(source_of(event, what, limits.max_event))
    names = [source.name for source in out]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"feed= has two sources named {name!r}; give one a name: grape.feed(read, name=...)")
    return out


def _takers(take: Take | None) -> list[Taker]:
    out: list[Taker] = []
    for event, what in mapping_of(take, "take=", '{"total": "totals.jsonl"}').items():
        if isinstance(what, str | os.PathLike):
            what = path_of(what, f"take[{event!r}]")
        out.append(Taker(event, sink_of(event, what)))
    return out
