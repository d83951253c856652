"""Schemas that workers tell, as parts of one document: their definitions get names of their own in it.

What a worker says of its types is code of others: what is no schema is nothing, and a reference leads nowhere else.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from grape.model.topology import SlotSpec, TopologySpec

PLACE: Final = "#/components/schemas/"
_OWN: Final = "#/$defs/"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]+")

Schema = dict[str, Any]


class Shapes:
    """Those of one document.

    Attributes:
        schemas: the definitions by their names: "APP.TYPE", or with a number if two types are called so.
    """

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}

    def of_event(self, topology: TopologySpec, event: str) -> Schema:
        """What all that listen to it take; ``{}``: anything."""
        slots = [slot for slot in topology.slots if slot.event == event]
        return _joined("allOf", [self._of(topology.name, slot.takes) for slot in slots if slot.takes])

    def of_output(self, topology: TopologySpec, output: str) -> Schema:
        """What those give that are known to emit it; ``{}``: somebody does not say."""
        slots = [slot for slot in topology.slots if output in slot.emits]
        if not slots or not all(_is_all_it_gives(slot) for slot in slots):
            return {}
        return _joined("anyOf", [self._of(topology.name, slot.gives) for slot in slots])

    def _of(self, app: str, text: str) -> Schema:
        try:
            found = msgspec.json.decode(text)
            if not isinstance(found, dict):
                return {}
            definitions = found.pop("$defs", {})
            names = self._names(app, definitions) if isinstance(definitions, dict) else {}
            for own, name in names.items():
                self.schemas[name] = _moved(definitions[own], names)
            moved: Schema = _moved(found, names)
        except (msgspec.MsgspecError, RecursionError):
            return {}
        return moved

    def _names(self, app: str, definitions: Schema) -> dict[str, str]:
        """What each definition is called in the document; the same one of two slots is one."""
        names = {own: f"{app}.{_NOT_IN_NAMES.sub('_', own)}" for own in definitions}
        for own, name in names.items():
            number = 1
            while self._is_another(names[own], definitions[own], names):
                number += 1
                names[own] = f"{name}-{number}"
        return names

    def _is_another(self, name: str, definition: Any, names: dict[str, str]) -> bool:
        return name in self.schemas and self.schemas[name] != _moved(definition, names)


def _is_all_it_gives(slot: SlotSpec) -> bool:
    """What its handler returns is emitted under the one name that it declares."""
    return bool(slot.gives) and len(slot.emits) == 1


def _joined(how: str, schemas: list[Schema]) -> Schema:
    different = [schema for i, schema in enumerate(schemas) if schema and schema not in schemas[:i]]
    if len(different) == 1:
        return different[0]
    return {how: different} if different else {}


def _moved(schema: Any, names: dict[str, str]) -> Any:
    """A schema whose references lead to where its definitions are now."""
    if isinstance(schema, list):
        return [_moved(part, names) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found: Schema = {}
    for key, value in schema.items():
        if key in ("$ref", "$dynamicRef"):
            if isinstance(value, str) and (name := _name_of(value, names)) is not None:
                found[key] = PLACE + name
        elif key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
            mapping = {tag: _name_of(str(place), names) for tag, place in value["mapping"].items()}
            found[key] = {**value, "mapping": {tag: PLACE + name for tag, name in mapping.items() if name is not None}}
        elif key not in ("$id", "$schema", "$anchor", "$dynamicAnchor"):
            found[key] = _moved(value, names)
    return found


def _name_of(place: str, names: dict[str, str]) -> str | None:
    if not place.startswith(_OWN):
        return None
    return names.get(place.removeprefix(_OWN).replace("~1", "/").replace("~0", "~"))
