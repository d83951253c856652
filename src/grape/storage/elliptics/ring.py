"""Who has what: the ring of each group, made of what the nodes have said. Pure: the moment is an argument.

What a node or a backend that has gone had is not given to its neighbour on the ring at once. The servers do that, and
whoever believes it finds nothing where there is something, and writes where nobody will look for it once the node is
back. So its part stays its own for a while, and requests for it fail or go to other groups.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from grape.storage.elliptics.wire import Address, Backend


class Owner(NamedTuple):
    """Who serves a part of the ring. ``is_gone``: and is not there now."""

    address: Address
    backend: int
    is_gone: bool = False


class Ring:
    """The rings of all groups."""

    def __init__(self, claims: Mapping[int, Mapping[bytes, Owner]]) -> None:
        """``claims``: group, id, who has what begins there."""
        self._ids = {group: sorted(owners) for group, owners in claims.items()}
        self._owners = {group: [claims[group][id] for id in ids] for group, ids in self._ids.items()}

    @property
    def groups(self) -> list[int]:
        return sorted(self._ids)

    def owner(self, group: int, id: bytes) -> Owner | None:
        """Whoever has the greatest id that is not above this one; below the smallest, the last. None: there is none."""
        ids = self._ids.get(group)
        if not ids:
            return None
        return self._owners[group][bisect_right(ids, id) - 1]

    def first(self, group: int, owner: Owner) -> bytes:
        """An id that it has."""
        return self._ids[group][self._owners[group].index(owner)]

    def backends(self, group: int) -> list[Owner]:
        """All that have a part of it."""
        return sorted(set(self._owners.get(group, ())))


class Routes(Struct, frozen=True):
    """What is known of all nodes.

    Args:
        backends: of a node, by number; as it has said last that it had any.
        away: since when it cannot be reached. off: since when a backend has nothing of the ring.
    """

    backends: dict[Address, dict[int, Backend]] = {}
    away: dict[Address, float] = {}
    off: dict[tuple[Address, int], float] = {}

    def greeted(self, address: Address, backends: Iterable[Backend], now: float) -> Routes:
        """A node is there, and has said what it has: that is all."""
        told = {each.number: each for each in backends}
        missing = [
            Backend(number, each.group, True, ())
            for number, each in self.backends.get(address, {}).items()
            if number not in told
        ]
        away = {other: since for other, since in self.away.items() if other != address}
        known = {**self.backends, address: self.backends.get(address, {})}
        return Routes(known, away, self.off).updated(address, [*told.values(), *missing], now)

    def updated(self, address: Address, backends: Iterable[Backend], now: float) -> Routes:
        """A node has said what some of its backends have now."""
        own = dict(self.backends.get(address, {}))
        off = dict(self.off)
        for each in backends:
            where = address, each.number
            if each.ids and not each.is_going:
                own[each.number] = each
                off.pop(where, None)
            elif each.number in own:
                off.setdefault(where, now)
        return Routes({**self.backends, address: own}, self.away, off)

    def lost(self, address: Address, now: float) -> Routes:
        """It cannot be reached."""
        return Routes(self.backends, {address: now, **self.away}, self.off)

    def forgotten(self, now: float, after: float) -> Routes:
        """Without whoever has not been there for so many seconds: what they had is their neighbours'."""
        gone = {address for address, since in self.away.items() if now - since >= after}
        out = {where for where, since in self.off.items() if now - since >= after}
        if not gone and not out:
            return self
        return Routes(
            {
                address: {number: each for number, each in own.items() if (address, number) not in out}
                for address, own in self.backends.items()
                if address not in gone
            },
            {address: since for address, since in self.away.items() if address not in gone},
            {where: since for where, since in self.off.items() if where not in out and where[0] not in gone},
        )

    def ring(self) -> Ring:
        """Who is there goes before who has gone, if both have had the same."""
        claims: dict[int, dict[bytes, Owner]] = {}
        for address, own in self.backends.items():
            for number, each in own.items():
                owner = Owner(address, number, address in self.away or (address, number) in self.off)
                ids = claims.setdefault(each.group, {})
                for id in each.ids:
                    ids[id] = min(ids.get(id, owner), owner, key=_rank)
        return Ring(claims)


def _rank(owner: Owner) -> tuple[bool, Address, int]:
    return owner.is_gone, owner.address, owner.backend


NO_ROUTES: Final = Routes()
