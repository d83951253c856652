"""Nodes that come and go, routes that change, answers that are late, requests that are passed on."""

from __future__ import annotations

import asyncio
import time

import pytest

from elliptics.clusters import clustered, node_per_group, objects_of, opened, two_nodes, until
from elliptics.server import DIRECT, ITERATE, READ, ROUTE_LIST, WRITE, Backend, Cluster, Node, sha
from grape.errors import StorageFailed, UsageError
from grape.storage.elliptics import wire
from grape.storage.elliptics.client import Client, Settings
from grape.storage.elliptics.failures import Away, Refusal, Unknown
from grape.storage.elliptics.storage import EllipticsConfig, EllipticsStorage
from grape.storage.elliptics.wire import To, id_of


def nodes() -> list[list[Backend]]:
    return [[Backend(1, 1, ("A1-0", "A1-1"))], [Backend(0, 1, ("B1-0", "B1-1"))]]


def key_of(cluster: Cluster, node: Node, group: int = 1, namespace: str = "ns") -> str:
    """A key that this node has."""
    for i in range(1000):
        owner = cluster.owner(group, id_of(namespace, f"key{i}"))
        if owner is not None and owner[0] is node:
            return f"key{i}"
    raise AssertionError


def test_all_nodes_are_found_from_one_address() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster:
            first, second = cluster.nodes
            async with opened(cluster, seeds=f"127.0.0.1:{first.port}") as storage:
                objects = objects_of(storage)
                for node in (first, second):
                    key, before = key_of(cluster, node), node.seen[WRITE]
                    await objects.put(key, b"1")
                    assert node.seen[WRITE] == before + 1, "it went to who has it"
                assert storage.client.ring.groups == [1]

    asyncio.run(run())


def test_who_serves_nobody_says_so_when_it_is_opened() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster:
            with pytest.raises(UsageError, match="groups= names 7, the nodes have 1"):
                async with opened(cluster, groups="7"):
                    pass
            port = cluster.nodes[0].port
        with pytest.raises(UsageError, match="is it running"):
            async with opened(cluster, seeds=f"127.0.0.1:{port}"):
                pass
        async with clustered(nodes()) as cluster:
            cluster.nodes[0].version = b"\x02\0\0\0\x1a\0\0\0".ljust(64, b"\0")
            with pytest.raises(UsageError, match="of another version"):
                async with opened(cluster, seeds=f"127.0.0.1:{cluster.nodes[0].port}"):
                    pass
            async with opened(cluster, seeds=f"127.0.0.1:{cluster.nodes[0].port}", version="2.26") as storage:
                assert storage.client.ring.groups == [1]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seeds": ""}, "followed by addresses"),
        ({"seeds": "host:99999"}, "followed by addresses"),
        ({"seeds": "host:1/path"}, "followed by addresses"),
        ({"groups": ""}, "numbers with commas"),
        ({"groups": "one"}, "numbers with commas"),
        ({"groups": "1,1"}, "different numbers"),
        ({"groups": "0"}, "different numbers"),
        ({"decides": 3, "about": True}, "one of groups="),
        ({"decides": 1}, "needs about=true"),
        ({"cache": "on", "about": True}, "goes without about"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        EllipticsStorage(EllipticsConfig(**{"seeds": "host:1", "groups": "1,2", **options}))  # type: ignore[arg-type]


def test_settings_of_a_url() -> None:
    assert EllipticsStorage.settings_of("10.0.0.1:1025,10.0.0.2:1025/") == {"seeds": "10.0.0.1:1025,10.0.0.2:1025"}
    assert EllipticsStorage.settings_of("[::1]:1025,host") == {"seeds": "[::1]:1025,host"}
    with pytest.raises(UsageError, match="is followed by addresses"):
        EllipticsStorage.settings_of("")


def test_the_cookie_is_shown_and_a_wrong_one_is_an_error() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster:
            for node in cluster.nodes:
                node.cookie = b"qwerty"
            async with opened(cluster, cookie="qwerty") as storage:
                await objects_of(storage).put("key", b"1")
            with pytest.raises(UsageError, match="cookie"):
                async with opened(cluster, cookie="nope"):
                    pass

    asyncio.run(run())


def test_what_a_dead_node_has_is_not_said_to_be_missing() -> None:
    """Its neighbour serves its part of the ring, and has nothing of it: -2 for what is only away."""

    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster) as storage:
            first, second = cluster.nodes
            objects = objects_of(storage)
            key = key_of(cluster, second)
            other = key_of(cluster, first)
            await objects.put(key, b"there")
            await objects.put(other, b"here")
            await second.stop()
            await until(lambda: storage.client._nodes[wire.Address("127.0.0.1", second.port)].away_since is not None)
            began = time.monotonic()
            for doing in (objects.get(key), objects.put(key, b"lost"), objects.remove(key)):
                with pytest.raises(StorageFailed, match="is away"):
                    await doing
            assert time.monotonic() - began < 8, "it fails at once, but for the first second"
            found = await objects.get(other)
            assert found is not None
            await second.start()
            await until(lambda: storage.client._nodes[wire.Address("127.0.0.1", second.port)].away_since is None)
            found = await objects.get(key)
            assert found is not None
            assert found.data == b"there"
            assert cluster.backends(1)[0].disk.keys() == {id_of("ns", other)}, "nothing was written elsewhere"

    asyncio.run(run())


def test_what_has_been_away_for_long_is_its_neighbours() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster, forget=0.6, refresh=0.3) as storage:
            first, second = cluster.nodes
            objects = objects_of(storage)
            key = key_of(cluster, second)
            await second.stop()
            await until(lambda: len(storage.client._nodes) == 1)
            await objects.put(key, b"moved")
            assert id_of("ns", key) in first.backends[0].disk
            await second.start()  # it is found again, by the list of the others
            await until(lambda: len(storage.client.ring.backends(1)) == 2)
            await until(
                lambda: {owner.address.port for owner in storage.client.ring.backends(1)} == {first.port, second.port}
            )
            assert await objects.get(key) is None

    asyncio.run(run())


def test_a_request_that_was_cut_off_is_sent_again_if_it_may_be() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster) as storage:
            node = cluster.nodes[0]
            key = key_of(cluster, node)
            objects = objects_of(storage)
            await objects.put(key, b"1")
            node.backends[0].delay = 0.2
            reading = asyncio.ensure_future(objects.get(key))
            appending = asyncio.ensure_future(storage.client.write(1, id_of("ns", key), b"2", wire.Writing(mode=2)))
            await asyncio.sleep(0.1)
            for link in list(node.links):
                link.abort()
            found = await reading
            assert found is not None
            assert found.data == b"1"
            with pytest.raises(Unknown, match=r"connection to .* was lost"):
                await appending

    asyncio.run(run())


def test_routes_that_are_pushed_are_believed_at_once() -> None:
    async def run() -> None:
        backends = [[Backend(1, 1, ("A1-0",)), Backend(2, 1, ("A2-0",)), Backend(3, 2, ("A3-0",))]]
        async with clustered(backends) as cluster, opened(cluster) as storage:
            (node,) = cluster.nodes
            client = storage.client
            id = next(sha(bytes([i])) for i in range(100) if client.owner(1, sha(bytes([i]))).backend == 2)
            node.switch(2, True)
            await until(lambda: client.owner(1, id).is_gone)
            with pytest.raises(Away, match=r"backend 2 .* is switched off"):
                await client.read(1, id)
            node.switch(2, False)
            await until(lambda: not client.owner(1, id).is_gone)
            with pytest.raises(Refusal):
                await client.read(1, id)
            second = node.backend(2)
            assert second is not None
            second.ids = [sha(b"elsewhere")]
            cluster.rings.clear()
            node.push(second)
            await until(lambda: client.ring._ids[1] == sorted([sha(b"A1-0"), sha(b"elsewhere")]))

    asyncio.run(run())


def test_a_node_that_joins_gets_its_part() -> None:
    async def run() -> None:
        async with clustered(nodes()[:1]) as cluster, opened(cluster, refresh=0.2) as storage:
            objects = objects_of(storage)
            await asyncio.gather(*(objects.put(f"{i}", b"1") for i in range(20)))
            second = await cluster.add(nodes()[1])
            await until(lambda: len(storage.client.ring.backends(1)) == 2)
            key = key_of(cluster, second)
            await objects.put(key, b"2")
            assert id_of("ns", key) in second.backends[0].disk

    asyncio.run(run())


def test_one_connection_is_enough_if_others_pass_on() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster:
            first, second = cluster.nodes
            async with opened(cluster, seeds=f"127.0.0.1:{first.port}", forward=True) as storage:
                objects = objects_of(storage)
                key = key_of(cluster, second)
                await objects.put(key, b"1")
                assert id_of("ns", key) in second.backends[0].disk
                assert not second.links
                # What nobody may pass on is refused, by who has not got it.
                request = wire.read(To(1, id_of("ns", key), 0, 1 | DIRECT), 0, 0)
                (node,) = storage.client._nodes.values()
                assert node.links[0] is not None
                header, _ = await node.links[0].call(request)
                assert header.status == -95

    asyncio.run(run())


def test_what_was_passed_on_makes_the_routes_be_looked_at() -> None:
    async def run() -> None:
        async with clustered(nodes()[:1]) as cluster, opened(cluster, refresh=60.0) as storage:
            second = await cluster.add(nodes()[1])
            key = key_of(cluster, second)
            before = cluster.nodes[0].seen[ROUTE_LIST]
            await objects_of(storage).put(key, b"1")  # to the first, which knows better
            assert id_of("ns", key) in second.backends[0].disk
            await until(lambda: len(storage.client.ring.backends(1)) == 2)
            assert cluster.nodes[0].seen[ROUTE_LIST] > before

    asyncio.run(run())


def test_answers_come_in_any_order() -> None:
    async def run() -> None:
        backends = [[Backend(1, 1, ("A1-0",)), Backend(2, 2, ("A2-0",))]]
        async with clustered(backends) as cluster, opened(cluster, groups="1,2") as storage:
            client = storage.client
            id = sha(b"key")
            for group in (1, 2):
                await client.write(group, id, b"1", wire.Writing())
            cluster.nodes[0].backends[0].delay = 0.3
            order: list[int] = []

            async def read(group: int) -> None:
                await client.read(group, id)
                order.append(group)

            await asyncio.gather(read(1), read(2))
            assert order == [2, 1]

    asyncio.run(run())


def test_a_late_answer_is_nobodys() -> None:
    async def run() -> None:
        async with (
            clustered(nodes()) as cluster,
            opened(cluster, timeout=0.4, seeds=f"127.0.0.1:{cluster.nodes[0].port}") as storage,
        ):
            first = cluster.nodes[0]
            key = key_of(cluster, first)
            objects = objects_of(storage)
            await objects.put(key, b"1")
            link = storage.client._nodes[wire.Address("127.0.0.1", first.port)].links[0]
            assert link is not None
            first.backends[0].delay = 3.0
            began = time.monotonic()
            slow = asyncio.ensure_future(objects.get(key))
            while not slow.done():  # somebody is heard of on this connection, so it is not given up
                await link.call(wire.route_list())
                await asyncio.sleep(0.02)
            with pytest.raises(Unknown, match="no answer from"):
                await slow
            assert 0.35 < time.monotonic() - began < 2.5
            first.backends[0].delay = 0.0
            for _ in range(500):
                found = await objects.get(key)
                assert found is not None
                assert found.data == b"1"
                if link.dropped:
                    break
                await asyncio.sleep(0.02)
            assert link.dropped == 1
            assert not link.closed.done()

    asyncio.run(run())


def test_who_says_nothing_at_all_is_not_waited_for() -> None:
    """A connection on which nothing comes any more is given up, and another one made."""

    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster, timeout=0.3) as storage:
            first = cluster.nodes[0]
            key = key_of(cluster, first)
            objects = objects_of(storage)
            await objects.put(key, b"1")
            first.lie = lambda message: []
            with pytest.raises(StorageFailed):
                await objects.get(key)
            first.lie = None
            await until(lambda: storage.client._nodes[wire.Address("127.0.0.1", first.port)].away_since is None)
            assert await objects.get(key) is not None

    asyncio.run(run())


def test_what_is_given_up_leaves_nothing() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster) as storage:
            first = cluster.nodes[0]
            key = key_of(cluster, first)
            first.backends[0].delay = 0.1
            tasks = [asyncio.ensure_future(objects_of(storage).get(key)) for _ in range(20)]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for node in storage.client._nodes.values():
                for link in node.links:
                    assert link is not None
                    assert not link._open

    asyncio.run(run())


def test_so_many_are_under_way_and_more_wait() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster) as storage:
            first = cluster.nodes[0]
            key = key_of(cluster, first)
            objects = objects_of(storage)
            await objects.put(key, bytes(1000))
            link = storage.client._nodes[wire.Address("127.0.0.1", first.port)].links[0]
            assert link is not None
            reads = [asyncio.ensure_future(objects.get(key)) for _ in range(3000)]
            await asyncio.sleep(0)
            most = 0
            while not all(each.done() for each in reads):
                most = max(most, len(link._open))
                await asyncio.sleep(0)
            assert all(each.result() is not None for each in reads)
            assert 100 < most <= 1024

    asyncio.run(run())


def test_requests_for_one_key_keep_their_order_on_several_connections() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster, connections=4) as storage:
            await until(lambda: all(link for node in storage.client._nodes.values() for link in node.links))
            id = sha(b"key")
            for _ in range(50):
                await asyncio.gather(
                    *(storage.client.write(1, id, bytes([i]), wire.Writing(user_flags=i)) for i in range(8))
                )
                assert (await storage.client.read(1, id)).data == b"\x07"

    asyncio.run(run())


def test_an_iterator_has_a_connection_that_ends_with_it() -> None:
    async def run() -> None:
        async with clustered(nodes()) as cluster, opened(cluster, about=True) as storage:
            objects = objects_of(storage)
            await asyncio.gather(*(objects.put(f"{i}", b"1") for i in range(50)))
            assert len([about async for about in objects.list()]) == 50
            await until(lambda: all(len(node.links) == 1 for node in cluster.nodes))
            assert all(node.seen[ITERATE] for node in cluster.nodes)

    asyncio.run(run())


def test_a_client_alone_reads_what_it_is_asked() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster:
            client = Client(Settings(seeds=(("127.0.0.1", cluster.nodes[0].port),)))
            await client.open()
            id = id_of("", "k")
            with pytest.raises(Refusal, match="-2"):
                await client.read(1, id)
            with pytest.raises(Away, match="no node has group 5; there are the groups 1"):
                await client.read(5, id)
            await client.write(1, id, b"0123456789", wire.Writing())
            assert (await client.read(1, id, 3, 4)).data == b"3456"
            assert (await client.read(1, id, 8, 100)).data == b"89"
            with pytest.raises(Refusal, match="-7"):
                await client.read(1, id, 10)
            assert (await client.lookup(1, id, True)).checksum == sha(b"0123456789")
            assert await client.remove(1, id) is True
            assert await client.remove(1, id) is False
            assert cluster.nodes[0].seen[READ] == 4
            await client.close()
            await client.close()

    asyncio.run(run())


def test_two_nodes_of_two_groups_are_greeted_once_each() -> None:
    async def run() -> None:
        async with clustered(two_nodes()) as cluster, opened(cluster, groups="1,2") as storage:
            assert [node.seen[2] for node in cluster.nodes] == [1, 1]
            assert len(storage.client.ring.backends(1)) == 2

    asyncio.run(run())
