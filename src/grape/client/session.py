"""A run as its owner sees it: an engine is started, sources and takers are attached, and it says how it ended."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final

from grape.abc.source import Source
from grape.client.advice import advice, guarantees
from grape.client.connection import Connection, decoded
from grape.client.faults import Told
from grape.client.feeding import Feeder, opened
from grape.client.launching import Launched
from grape.client.names import check_events
from grape.client.taking import Taker, Taking
from grape.errors import GrapeError
from grape.host.options import Options
from grape.model.topology import TopologySpec
from grape.processes.output import Line
from grape.protocol.door import About, Begin, Described, Open, Opened, Replies, Said, Stop, TakeReplies
from grape.protocol.outcomes import Outcomes, Progress

_PATIENT_STOPS: Final = 2
"""After so many an engine that does not stop is killed."""

Printed = Callable[[str, Line], None]

_UNKNOWN: Final = About()


def lines_of(said: Said) -> Iterator[tuple[str, Line]]:
    """What an engine tells people, and who says it."""
    for i, (worker, level, slot, text) in enumerate(said.lines):
        about = said.about.get(i, _UNKNOWN)
        yield worker, Line(level, slot, text, about.event, about.trace, about.fields)


class Session:
    """One run. ``run`` does it all; everything else may be called from any thread.

    Args:
        options: what to run. ``launch``: starts the engine.
        printed: called with what handlers print, and with what people should know.

    Attributes:
        more_takers: what is also taken, once the topology is known.
        takes_replies: gets batches of replies, if it is for calls.
        ready: set when it takes events, or has ended before.
        topology, opened: once it is ready.
    """

    def __init__(
        self,
        options: Options,
        sources: list[Source],
        takers: list[Taker],
        printed: Printed,
        launch: Callable[[Options], Launched],
    ) -> None:
        self.options = options
        self.sources = sources
        self.takers = takers
        self.more_takers: Callable[[TopologySpec], list[Taker]] = lambda topology: []
        self.takes_replies: Callable[[Replies], None] | None = None
        self.ready = threading.Event()
        self.has_begun = False
        self.topology: TopologySpec | None = None
        self.opened: Opened | None = None
        self.connection: Connection
        self._printed = printed
        self._launch = launch
        self._launched: Launched | None = None
        self._error: GrapeError | None = None
        self._stops = 0
        self._stopping = threading.Lock()

    def _said(self, said: Said) -> None:
        for worker, line in lines_of(said):
            self._printed(worker, line)

    def notice(self, text: str) -> None:
        """A line for people."""
        self._printed("engine", Line("stderr", "", text))

    def launch(self) -> None:
        """Start the engine. `run` does it, unless it has been done."""
        launched = self._launch(self.options)
        self.connection = Connection(launched.end, launched.how_it_ended)
        self.connection.said = self._said
        self.connection.start()
        with self._stopping:
            self._launched = launched
            self.connection.send(*[Stop()] * self._stops)

    def describe(self) -> TopologySpec:
        """What the app is; nothing of it runs.

        Raises:
            UserError: it cannot be loaded.
        """
        self.launch()
        try:
            return self.connection.described.result().topology
        finally:
            self.stop()
            with contextlib.suppress(GrapeError):
                self.connection.ended.result()
            self.connection.close()
            if self._launched is not None:
                self._launched.join()

    # ------------------------------------------------------------------ from other threads

    def stop(self) -> None:
        """Sources stop, what runs is committed, the rest stays. Called again: stop at once."""
        with self._stopping:
            self._stops += 1
            if self._launched is not None:
                self.connection.send(Stop())
                if self._stops > _PATIENT_STOPS:
                    self._launched.kill()

    def fail(self, error: GrapeError) -> None:
        """It cannot be gone on; the first reason counts."""
        if self._error is None:
            self._error = error
            self.connection.send(Stop())

    def progress(self) -> Future[Progress]:
        """How far it is."""
        return decoded(self.connection.ask_verb("progress"), Progress)

    # ------------------------------------------------------------------ from its beginning to its end

    def run(self) -> Outcomes:
        """
        Raises:
            UserError: wrong use or topology, workers that cannot start, a source or sink that failed.
            EngineError: the engine had to stop.
        """
        if self._launched is None:
            self.launch()
        try:
            try:
                self._begin()
            except GrapeError as e:
                self.fail(e)
                raise self._error or e from None
            self.has_begun = True
            self.ready.set()
            outcomes = self._ended()
            return outcomes
        finally:
            self._close()
            self.ready.set()
            self.connection.close()
            if self._launched is not None:
                self._launched.join()

    def _begin(self) -> None:
        """
        Raises:
            GrapeError: it cannot.
        """
        connection, options = self.connection, self.options
        described: Described = connection.described.result()
        topology = self.topology = described.topology
        self.takers += self.more_takers(topology)
        taken = [taker.event for taker in self.takers if taker.event is not None]
        check_events(options.events, self.sources, taken, topology)
        connection.send(Open())
        self.opened = connection.opened.result()
        if self.takes_replies is not None:
            connection.replies = self.takes_replies
            connection.send(TakeReplies())
        told = Told(self.notice, self.fail)
        takings = [Taking(number, taker, connection, told) for number, taker in enumerate(self.takers)]
        for source in self.sources:
            source.is_final = source.is_final or options.data is None  # no run will go on from here
        feeders = [Feeder(number, source, connection, told) for number, source in enumerate(self.sources)]
        for taking in takings:
            taking.start()
        for feeder in feeders:
            opened(feeder.source, feeder.opened.result().position)
        advised = self._advise(feeders, topology, self.opened)
        connection.send(Begin())
        connection.begun.result()
        for feeder in feeders:
            feeder.start(topology, self.opened, advised.get(feeder.source.name, ""))

    def _advise(self, feeders: Sequence[Feeder], topology: TopologySpec, opened: Opened) -> dict[str, str]:
        """Say what is known of sources before anything is read; returns what is to be said once more than one batch has
        come of one."""
        fresh = [feeder.source for feeder in feeders if not feeder.opened.result().position]
        if self.options.data is not None:
            for line in guarantees(fresh):
                self.notice(line)
        later: dict[str, str] = {}
        for name, line in advice(topology, fresh, opened.partitions).items():
            size = next(source for source in fresh if source.name == name).total()
            if size is None:
                later[name] = line
            elif size > opened.limits.batch_target:
                self.notice(line)
        return later

    def _ended(self) -> Outcomes:
        """
        Raises:
            GrapeError: it could not go on.
        """
        try:
            outcomes = self.connection.ended.result()
        except GrapeError as e:
            raise self._error or e from None
        if self._error is not None:
            if outcomes.kept and self.options.data is None:
                self.notice(f"the data directory was kept: {outcomes.data}")
            raise self._error
        return outcomes

    def _close(self) -> None:
        """Nothing is left of what it has opened."""
        with contextlib.suppress(GrapeError):
            if not self.connection.is_over and not self.has_begun:
                self.connection.ended.result()
        for source in self.sources:
            with contextlib.suppress(BaseException):
                source.close()
        for taker in self.takers:
            with contextlib.suppress(BaseException):
                taker.sink.close()
