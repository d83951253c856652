"""The loop for plain functions of the payload."""

from __future__ import annotations

from typing import Any

from grape.hot import map_texts
from grape.model.values import to_value
from grape.worker import children
from grape.worker.emits import weight
from grape.worker.stage import Stage
from grape.worker.units.unit import Emissions, Unit, failure, stray_result


class FunctionUnit(Unit):
    """A plain function of the payload: its result is what it emits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._out: list[Any] = []
        self._data: list[Any] = []
        self._leads_to = {event: slot.emits[0] if len(slot.emits) == 1 else None for event, slot in self.slots.items()}
        self._size = -1
        """Bytes of all results, if they are valid text."""

    def position(self) -> int:
        return len(self._out)

    def _begin(self, stage: Stage, data: list[Any] | None) -> None:
        self._out = []
        self._data = data if data is not None else [None] * stage.count
        self._size = -1

    def _fast(self) -> None:
        # What a failing one has given stays in the list: `position` is the failed one.
        self._size = map_texts(self._call, self._data, self._out, self._limits.max_event)

    def _one(self, index: int) -> None:
        self._out.append(self._call(self._data[index]))

    def abandon(self) -> None:
        self._data.clear()

    def _undo(self) -> None:
        pass

    def _close(self, index: int) -> None:
        children.end_child()
        if len(self._out) == index:
            self._out.append(None)

    def _finish(self, stage: Stage) -> Emissions | None:
        out, names = self._out, stage.names
        emits = self._emits(names)
        if self._size >= 0 and all(emits):
            return Emissions(emits[0] if isinstance(names, str) else emits, None, out, None, None, self._size, {str})  # type: ignore[arg-type]
        if out.count(None) == len(out):
            return None
        self._settle(stage, out, emits)
        flat: list[int] | None = [i for i, value in enumerate(out) if value is not None]
        if not flat:
            return None
        if len(flat) == len(out):
            flat = None
        else:
            out = [out[i] for i in flat]
        size = sum(map(weight, out))
        if isinstance(names, str):
            return Emissions(emits[0] or "", None, out, None, flat, size)
        return Emissions([emits[i] for i in flat] if flat is not None else emits, None, out, None, flat, size)

    def _emits(self, names: str | list[str]) -> list[str | None]:
        """Where results go, per event (one entry if all have one name); None: nowhere."""
        to = self._leads_to
        return [to[names]] if isinstance(names, str) else [to[name] for name in names]

    def _settle(self, stage: Stage, out: list[Any], emits: list[str | None]) -> None:
        """Turn results into values in place. An event whose result cannot travel has failed; as a function has no other
        effect, later ones of its key can still be taken back to wait behind it."""
        locked = self._host.locked(self.node)
        uniform = len(emits) == 1
        failed = False
        for i, value in enumerate(out):
            if value is None:
                continue
            if failed and stage.key_of(i) in locked:
                out[i] = None
                self._host.behind(self, stage, i)
                continue
            try:
                if emits[0 if uniform else i] is None:
                    raise stray_result(self.node, self.slots[stage.name_of(i)].emits, value)
                if type(value) not in (bool, float):
                    out[i] = to_value(value, self._limits.max_event)
            except BaseException as e:
                out[i] = None
                failed = True
                self._host.fail(self, stage, i, failure(e))
