"""The worker's runtime, with nodes that another program runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grape.authoring.handler import Handler
from grape.authoring.state import State
from grape.model.foreign import Peers
from grape.model.levels import Levels
from grape.model.topology import NodeSpec, SlotSpec, TopologySpec
from grape.protocol.messages import Ask, FromWorker, Welcome
from grape.worker.adapter.speaker import Speaker
from grape.worker.adapter.unit import ForeignUnit
from grape.worker.runtime import Runtime
from grape.worker.units.unit import Unit


class AdapterRuntime(Runtime):
    """See the module."""

    def __init__(
        self,
        speaker: Speaker,
        topology: TopologySpec,
        ask: Callable[[Ask], list[bytes | None]],
        announce: Callable[[FromWorker], None],
    ) -> None:
        super().__init__({}, topology, ask, announce)
        self._speaker = speaker
        self._is_told = False

    def welcome(self, message: Welcome) -> None:
        topology = message.topology or self.topology
        self._handlers = {node.name: _handler(node) for node in topology.nodes if node.pool == message.pool}
        super().welcome(message)
        self._speaker.welcome(message)
        self._is_told = True

    def make_unit(self, handler: Handler, slots: dict[str, SlotSpec]) -> Unit:
        return ForeignUnit(self._speaker, handler, slots, self.ground, self.names, self.partitions, self.limits)

    def change_peers(self, peers: Peers) -> None:
        super().change_peers(peers)
        self._speaker.change_peers(peers)

    def change_levels(self, levels: Levels) -> None:
        if self._is_told:  # else its welcome says so
            self._speaker.change_levels(levels)

    def setup(self) -> None:
        self._speaker.setup()

    def teardown(self) -> None:
        self._speaker.close()


def _handler(node: NodeSpec) -> Handler:
    states: dict[str, State[Any]] = {state.name: State(object, default=None, ttl=state.ttl) for state in node.states}
    return Handler(node.name, _never, "sync", (), Any, states, None, "")


def _never() -> None:
    raise AssertionError("the program runs it")
