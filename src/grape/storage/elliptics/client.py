"""The nodes of a cluster: found from one address, kept in touch with, asked.

Each node is connected to and greeted, for only so it tells what it has and when that changes. A request goes to whoever
has its part of the ring. Which groups are asked, and what follows from their answers, is not decided here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from msgspec import Struct

from grape.errors import StorageFailed
from grape.storage.elliptics import wire
from grape.storage.elliptics.connection import Connection
from grape.storage.elliptics.failures import Away, Nonsense, Refusal, Status, Unknown
from grape.storage.elliptics.ring import NO_ROUTES, Owner, Ring
from grape.storage.elliptics.wire import Address, Flag, Info, Item, Mode, Record, Request, Scan, To, Writing

_LOG: Final = logging.getLogger("grape.storage.elliptics")
_PAUSE: Final = (0.05, 5.0)
"""Seconds before a node is tried again: doubled from the first, up to the second, with jitter."""
_STEADY: Final = 5.0
"""Seconds after which a connection was a good one, so that the next pause is the first again."""
_SOON: Final = 0.5
"""Seconds between two route lists that were asked for because something has happened."""
_PATIENCE: Final = 1.0
"""Seconds that a node may be away before what is for it fails at once."""
_MANY: Final = 20
"""Time-outs that one request with many answers may take in all."""
_SUMMED: Final = 2e7
"""Bytes that a server reads and sums in a second, at least."""
_ACK: Final = int(Flag.ACK)
_UNLOCKED: Final = int(Flag.ACK | Flag.NO_LOCK)
_CHECKSUM: Final = int(Mode.CHECKSUM)

T = TypeVar("T")


class Settings(Struct, frozen=True, kw_only=True):
    """
    Args:
        seeds: host and port of nodes; one that answers is enough. connections: to each node.
        refresh: seconds between route lists. forget: seconds after which a node or backend that is gone is not waited
            for any more, and its part of the ring is its neighbour's.
        forward: connect to the seeds alone, which pass on what is not theirs.
        cookie: that servers ask for, if they do.
    """

    seeds: tuple[tuple[str, int], ...]
    timeout: float = 30.0
    connections: int = 1
    refresh: float = 30.0
    forget: float = 600.0
    forward: bool = False
    cookie: str = ""
    version: wire.Version = wire.VERSION


class _Node:
    """A node, and the connections to it."""

    def __init__(self, address: Address, target: tuple[str, int], connections: int, now: float) -> None:
        self.address = address
        self.target = target
        self.links: list[Connection | None] = [None] * connections
        self.keepers: list[asyncio.Task[None]] = []
        self.away_since: float | None = now
        self.why = "it was not connected to yet"
        self.is_tried = asyncio.Event()
        self.waiting: list[asyncio.Future[None]] = []

    def link(self, id: bytes) -> Connection | None:
        """One of its connections, the same for the same id: so that requests for it keep their order."""
        links = self.links
        found = links[id[-1] % len(links)] if len(links) > 1 else links[0]
        return found if found is not None else next((each for each in links if each is not None), None)

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class Client:
    """
    Args:
        wrap: for tests: what stands between this client and the address it connects to.

    Attributes:
        trace: stands in all requests, and in the logs of the servers.
    """

    def __init__(self, settings: Settings, wrap: Callable[[tuple[str, int]], tuple[str, int]] = lambda to: to) -> None:
        self.settings = settings
        self.trace = 0
        self._wrap = wrap
        self._nodes: dict[Address, _Node] = {}
        self._routes = NO_ROUTES
        self._ring: Ring | None = None
        self._index = 0
        self._refresher: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._is_closed = False

    # ------------------------------------------------------------------ open and close

    async def open(self) -> None:
        """Find all nodes; each has been tried once afterwards.

        Raises:
            StorageFailed: none of the seeds is there.
        """
        self._is_closed = False
        try:
            await self._bootstrap()
            await self._refresh()
            await asyncio.gather(*(node.is_tried.wait() for node in self._nodes.values()))
        except BaseException:
            await self.close()
            raise
        self._refresher = asyncio.create_task(self._refresh_for_ever())

    async def close(self) -> None:
        self._is_closed = True
        tasks = [task for node in self._nodes.values() for task in node.keepers]
        if self._refresher is not None:
            tasks.append(self._refresher)
            self._refresher = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in self._nodes.values():
            self._drop(node)
        self._nodes.clear()

    async def _bootstrap(self) -> None:
        """Whoever answers of the seeds becomes a node."""
        found = await asyncio.gather(*(self._greet(seed) for seed in self.settings.seeds), return_exceptions=True)
        reasons = []
        for seed, one in zip(self.settings.seeds, found, strict=True):
            if isinstance(one, StorageFailed):
                reasons.append(str(one))
            elif isinstance(one, BaseException):
                raise one
            else:
                link, welcome = one
                address, self._index = _own(welcome, link.peer)
                if address in self._nodes:
                    link.end("it is there twice")
                else:
                    self._add(address, seed, (link, welcome))
        if not self._nodes:
            raise StorageFailed(
                f"none of the addresses is a node that can be spoken to: {'; '.join(reasons)}: is it running, and the "
                f"address right?"
            )

    def _add(
        self, address: Address, target: tuple[str, int], first: tuple[Connection, wire.Welcome] | None = None
    ) -> None:
        node = _Node(address, target, self.settings.connections, self._now())
        self._nodes[address] = node
        if first is not None:
            self._greeted(node, 0, *first)
        for slot in range(self.settings.connections):
            given = first[0] if first is not None and slot == 0 else None
            node.keepers.append(asyncio.create_task(self._keep(node, slot, given)))

    def _drop(self, node: _Node) -> None:
        for keeper in node.keepers:
            keeper.cancel()
        for link in node.links:
            if link is not None:
                link.end("it was closed here")
        node.links = [None] * len(node.links)
        node.wake()

    # ------------------------------------------------------------------ nodes

    async def _greet(self, target: tuple[str, int]) -> tuple[Connection, wire.Welcome]:
        """Connect, and say hello.

        Raises:
            StorageFailed: it cannot be.
        """
        host, port = self._wrap(target)
        where = f"{target[0]}:{target[1]}"
        link: Connection | None = None
        try:
            async with asyncio.timeout(self.settings.timeout):
                loop = asyncio.get_running_loop()
                _, link = await loop.create_connection(lambda: Connection(where, self.settings.timeout), host, port)
                version = self.settings.version
                header, payload = await link.call(wire.hello(version))
                welcome = wire.welcome(header, payload or b"", version)
                if self.settings.cookie:
                    answer = await link.call(wire.auth(self.settings.cookie.encode()))
                    if answer.header.status:
                        raise Refusal(answer.header.status, "authentication", where)
                return link, welcome
        except BaseException as e:
            if link is not None:
                link.end("it could not be greeted")
            if isinstance(e, TimeoutError):
                raise Away(f"{where} has not answered within {self.settings.timeout:g} s") from None
            if isinstance(e, OSError):
                raise Away(f"{where}: {e.strerror or e}") from None
            if isinstance(e, Unknown) and not isinstance(e, Nonsense):
                raise Away(
                    f"{where} has closed the connection at the hello: it is no server of Elliptics, or one of another "
                    f"version than {version[0]}.{version[1]} (version=)"
                ) from None
            raise

    async def _keep(self, node: _Node, slot: int, link: Connection | None) -> None:
        """Keep a connection, whatever happens."""
        pause = _PAUSE[0]
        while True:
            began = self._now()
            if link is None:
                try:
                    link, welcome = await self._greet(node.target)
                except StorageFailed as e:
                    node.why = str(e)
                else:
                    self._greeted(node, slot, link, welcome)
            if link is not None:
                await asyncio.shield(link.closed)
                link = None
                if self._now() - began >= _STEADY:
                    pause = _PAUSE[0]
            if node.away_since is not None and node.address not in self._routes.away:
                self._routes, self._ring = self._routes.lost(node.address, self._now()), None
            node.is_tried.set()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _PAUSE[1])

    def _greeted(self, node: _Node, slot: int, link: Connection, welcome: wire.Welcome) -> None:
        node.links[slot] = link
        node.away_since = None
        if slot == 0 or node.address in self._routes.away:
            self._routes = self._routes.greeted(node.address, welcome.backends, self._now())
            self._ring = None
        if slot == 0:
            link.listen(lambda payload: self._told(node, link, payload))
        link.ended = lambda: self._ended(node, slot)
        node.is_tried.set()
        node.wake()
        if link.is_ended:
            self._ended(node, slot)

    def _told(self, node: _Node, link: Connection, payload: bytes) -> None:
        try:
            backends = wire.routes(payload)
        except Nonsense as e:
            link.end(str(e))
            return
        self._routes, self._ring = self._routes.updated(node.address, backends, self._now()), None

    def _ended(self, node: _Node, slot: int) -> None:
        node.links[slot] = None
        if any(link is not None for link in node.links):
            return
        node.away_since = self._now()
        node.why = "the connection was lost"
        self._routes, self._ring = self._routes.lost(node.address, self._now()), None
        self._wanted.set()

    # ------------------------------------------------------------------ routes

    @property
    def ring(self) -> Ring:
        if self._ring is None:
            self._ring = self._routes.ring()
        return self._ring

    async def _refresh_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self.settings.refresh):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self._refresh()
            except StorageFailed as e:
                _LOG.warning("the nodes of the cluster could not be listed: %s", e)
            await asyncio.sleep(_SOON)

    async def _refresh(self) -> None:
        """Ask who is there; forget who has not been for long."""
        now = self._now()
        self._routes = self._routes.forgotten(now, self.settings.forget)
        self._ring = None
        ready = [link for node in self._nodes.values() for link in node.links if link is not None]
        if not ready:
            return await self._bootstrap()
        listed = await self._listed(random.sample(ready, len(ready)))
        if not self.settings.forward:
            for address in sorted(listed - self._nodes.keys()):
                self._add(address, (address.host, address.port))
        for node in list(self._nodes.values()):
            since = node.away_since
            if since is not None and now - since >= self.settings.forget and node.address not in listed:
                del self._nodes[node.address]
                self._drop(node)

    async def _listed(self, links: Iterable[Connection]) -> set[Address]:
        """What the first that answers says of who is there."""
        why: StorageFailed | None = None
        for link in links:
            try:
                header, payload = await link.call(wire.route_list())
                if header.status:
                    raise Refusal(header.status, "route list", link.where)
                return {each[min(self._index, len(each) - 1)] for each in wire.nodes(payload or b"")}
            except Nonsense as e:
                link.end(str(e))
                why = e
            except StorageFailed as e:
                why = e
        raise why or Away("nobody is there who could list the nodes")

    # ------------------------------------------------------------------ ask

    def owner(self, group: int, id: bytes) -> Owner:
        """Who has it.

        Raises:
            Away: nobody, or one that is not there.
        """
        found = self.ring.owner(group, id)
        if found is None:
            served = ", ".join(map(str, self.ring.groups)) or "none"
            raise Away(f"no node has group {group}; there are the groups {served}")
        return found

    async def ask(self, group: int, id: bytes, make: Callable[[To], Request], parse: Callable[[bytes], T]) -> T:
        """What whoever has this part of the ring answers to what is made for it. What may be sent twice is, if nobody
        knows what has become of it.

        Raises:
            Refusal: it says no. Away: it was not sent. Unknown: nobody knows.
        """
        is_again = False
        while True:
            owner, link = await self._link(group, id)
            request = make(To(group, id, owner.backend, _ACK, self.trace))
            try:
                header, payload = await link.call(request)
            except (Away, Unknown) as e:
                if is_again or not (request.again or isinstance(e, Away)) or not link.closed.done():
                    raise
                is_again = True
                continue
            if header.status == Status.NOT_MINE and not is_again:  # it was never done
                is_again = True
                self._wanted.set()
                await asyncio.sleep(_PAUSE[0])
                continue
            if header.status:
                raise Refusal(header.status, request.name, f"{link.where}, group {group}")
            try:
                return parse(payload or b"")
            except Nonsense as e:
                link.end(str(e))
                raise Nonsense(f"{request.name}: {link.where}: {e}") from None

    async def _link(self, group: int, id: bytes) -> tuple[Owner, Connection]:
        """A connection to whoever has it. Waits a moment for one that has only just gone."""
        if self.settings.forward:
            return await self._any_link(group, id)
        owner = self.owner(group, id)
        node = self._nodes.get(owner.address)
        if node is not None and not (owner.is_gone and node.away_since is None):
            link = node.link(id)
            if link is not None:
                return owner, link
            link = await self._patient(node, id)
            if link is not None:
                return self.owner(group, id), link
            raise Away(f"node {owner.address}, which has this part of group {group}, is away: {node.why}")
        raise Away(f"backend {owner.backend} of {owner.address}, which has this part of group {group}, is switched off")

    async def _any_link(self, group: int, id: bytes) -> tuple[Owner, Connection]:
        nodes = sorted(self._nodes.values(), key=lambda node: node.address)
        for node in nodes[id[0] % max(1, len(nodes)) :] + nodes:
            link = node.link(id)
            if link is not None:
                return Owner(node.address, 0), link
        for node in nodes:
            link = await self._patient(node, id)
            if link is not None:
                return Owner(node.address, 0), link
        raise Away(f"no node that would pass it on to group {group} is there")

    async def _patient(self, node: _Node, id: bytes) -> Connection | None:
        while node.away_since is not None and not self._is_closed:
            left = node.away_since + min(_PATIENCE, self.settings.timeout) - self._now()
            if left <= 0:
                break
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            node.waiting.append(waiter)
            try:
                async with asyncio.timeout(left):
                    await waiter
            except TimeoutError:
                break
            finally:
                if waiter in node.waiting:
                    node.waiting.remove(waiter)
        return node.link(id)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # ------------------------------------------------------------------ commands

    async def read(self, group: int, id: bytes, offset: int = 0, size: int = 0, mode: int = 0) -> Record:
        """
        Raises:
            Refusal: there is none, it is rotten, there is nothing so far behind.
        """

        def parse(payload: bytes) -> Record:
            found = wire.record(payload, offset, size)
            if found.id != id:
                raise Nonsense("it is another record")
            return found

        found = await self.ask(group, id, lambda to: wire.read(to, offset, size, mode), parse)
        if mode & _CHECKSUM and hashlib.sha512(found.data).digest() != found.checksum:
            raise Refusal(Status.ROTTEN, "read: what came is not what was sent", f"of group {group}")
        return found

    async def lookup(self, group: int, id: bytes, checksum: bool = False, size: int = 0) -> Info:
        """
        Args:
            size: of a record that is looked at whole, if it is a large one: that takes its time.

        Raises:
            Refusal: as `read`.
        """
        extra = size / _SUMMED if checksum else 0.0
        flags = int(Flag.ACK | (Flag.CHECKSUM if checksum else 0))
        found = await self.ask(group, id, lambda to: wire.lookup(to._replace(flags=flags), extra), wire.info)
        self._served(group, id, found)
        return found

    async def write(self, group: int, id: bytes, data: bytes, how: Writing) -> Info:
        """
        Raises:
            Refusal: what ``how`` asks for is not so; the disk is full.
        """
        found = await self.ask(group, id, lambda to: wire.write(to, data, how), wire.info)
        self._served(group, id, found)
        return found

    async def remove(self, group: int, id: bytes) -> bool:
        """Whether it was there."""
        try:
            await self.ask(group, id, wire.remove, len)
        except Refusal as e:
            if e.status == Status.NOT_THERE:
                return False
            raise
        return True

    async def bulk_read(self, group: int, ids: Sequence[bytes], most: int) -> list[Record | int]:
        """Of each id, all of which one backend has, its record, or the status that was answered instead; `Status.DONE`:
        it is larger than ``most``."""
        found: list[Record | int] = []

        def each(header: wire.Header, payload: bytes | None) -> None:
            if len(found) == len(ids):
                raise Nonsense(f"a bulk read of {len(ids)} keys has more answers")
            if header.status:
                found.append(header.status)
                return
            one = int(Status.DONE) if payload is None else wire.record(payload)
            if header.id != ids[len(found)] or (isinstance(one, Record) and one.id != header.id):
                raise Nonsense("a bulk read answers with a record that is not the next one")
            found.append(one)

        owner, link = await self._link(group, ids[0])
        request = wire.bulk_read(To(group, ids[0], owner.backend, _ACK, self.trace), ids, most)
        header, _ = await link.call(request, each, self.settings.timeout * _MANY)
        if header.status:
            raise Refusal(header.status, request.name, f"{link.where}, group {group}")
        if len(found) != len(ids):
            raise Nonsense(f"a bulk read of {len(ids)} keys has {len(found)} answers")
        return found

    async def iterate(self, group: int, id: bytes, scan: Scan, most: int, each: Callable[[Item], None]) -> None:
        """All that the backend has which has this id; no record may have more than ``most`` bytes. On a connection of
        its own, which ends if nobody listens any more: the server goes on as long as it is there.

        Raises:
            StorageFailed: not all of it came.
        """
        owner, _ = await self._link(group, id)
        link, _ = await self._greet(self._nodes[owner.address].target)
        count = 0

        def take(_: wire.Header, payload: bytes | None) -> None:
            nonlocal count
            found = wire.item(payload or b"")
            if found.status == 1:  # it is alive, and looking
                return
            count += 1
            if found.total and count > found.total:
                raise Nonsense(f"an iterator over {found.total} keys has told {count}")
            each(found)

        try:
            request = wire.iterate(To(group, id, 0, _UNLOCKED, self.trace), scan, most)
            header, _ = await link.call(request, take, self.settings.timeout * _MANY)
            if header.status:
                raise Refusal(header.status, request.name, f"{link.where}, group {group}")
        finally:
            link.end("the iterator has ended")

    def _served(self, group: int, id: bytes, found: Info) -> None:
        owner = self.ring.owner(group, id)
        if owner is not None and owner.address != found.served_by and not self.settings.forward:
            self._wanted.set()  # it was passed on: what is known here of the ring is not what they know


def _own(welcome: wire.Welcome, peer: Address | None) -> tuple[Address, int]:
    """Which of a node's addresses is the one by which it is reached, and its index in all lists of addresses."""
    if peer in welcome.addresses:
        index = welcome.addresses.index(peer)
        return welcome.addresses[index], index
    return welcome.addresses[0], 0
