"""Trims: the part of the contract of `grape.abc.transport.Transport` that says how what nobody needs leaves a log."""

from __future__ import annotations

from contextlib import closing

from grape.abc.transport import Arrival, Send
from grape.testing.contracts.client import OTHER_POOL, Client, Contract, P, Subject


def _filled(client: Client, *logs: int, count: int = 10) -> None:
    """Each of these partitions has ``count`` batches "0", "1" ... in its own log."""
    client.claim(*(P[n] for n in logs))
    for n in logs:
        client.commit(P[n], sends=[Send(P[n], b"%d" % i, 1) for i in range(count)])


class TrimContract(Contract):
    """What a reader lets go of; when that happens is the backend's own affair."""

    def test_trims(self) -> None:
        """F11: nothing above the trim point is lost, and no position is used twice."""

        def test(client: Client, subject: Subject) -> None:
            _filled(client, 0, count=5)
            client.trim(P[0], 3)
            assert client.log(P[0]) == client.log(P[0], 2) == [b"3", b"4"]
            assert client.log(P[0], 4) == [b"4"]
            client.trim(P[0], 2)
            assert client.log(P[0]) == [b"3", b"4"]
            client.commit(P[0], sends=[Send(P[0], b"5", 1)])
            client.trim(P[0], 4)
            assert client.log(P[0]) == [b"4", b"5"]
            assert client.positions(P[0]) == [4, 5]
            assert client.transport.waiting(P[0], 0) == Arrival(P[0], 2, 2, 2)
            assert client.transport.waiting(P[0], 4, 5) == Arrival(P[0], 1, 1, 1)

        self._alone(test)

    def test_single_batches_go_or_stay(self) -> None:
        """Where `Features.drops` says so; else they stay until the log is trimmed, and nobody minds."""

        def test(client: Client, subject: Subject) -> None:
            has_drops = client.transport.features.drops
            _filled(client, 0)
            client.trim(P[0], 3, [5, 7])
            kept = [3, 4, 6, 8, 9] if has_drops else [3, 4, 5, 6, 7, 8, 9]
            assert client.positions(P[0]) == kept
            assert client.log(P[0]) == [b"%d" % at for at in kept]
            assert client.positions(P[0], 5) == kept[2:]
            assert client.transport.waiting(P[0], 5).batches == len(kept) - 2
            client.trim(P[0], 2, [5, 1])
            assert client.positions(P[0]) == kept
            client.trim(P[0], 6)
            assert client.positions(P[0]) == [at for at in kept if at >= 6]
            client.trim(P[0], 9)
            client.commit(P[0], sends=[Send(P[0], b"10", 1)])
            assert client.positions(P[0]) == [9, 10]
            assert client.transport.waiting(P[0], 0) == Arrival(P[0], 2, 2, 3)

        self._alone(test)

    def test_positions_go_on_when_the_log_was_emptied(self) -> None:
        """Also after a restart, by trimming, by dropping, and by both; a claim tells of the same tail."""

        def test(client: Client, subject: Subject) -> None:
            has_drops = client.transport.features.drops
            _filled(client, 0, 1, 2, 3, count=3)
            client.trim(P[0], 3)
            client.trim(P[1], 0, [2])
            client.trim(P[2], 2, [2])
            for again in range(2):
                client.close()
                client = Client(subject)
                client.claim(*P[:4])
                assert [client.claims[p].tail for p in P[:4]] == [3, 3, 3, 3]
                if not again:
                    client.trim(P[3], 0, [0, 1, 2])
            for p in P[:4]:
                client.commit(p, sends=[Send(p, b"next", 1)])
            assert client.positions(P[0]) == [3]
            assert client.positions(P[1]) == ([0, 1, 3] if has_drops else [0, 1, 2, 3])
            assert client.positions(P[2]) == ([3] if has_drops else [2, 3])
            assert client.positions(P[3]) == ([3] if has_drops else [0, 1, 2, 3])
            client.close()

        self._alone(test)

    def test_nothing_but_its_log_is_touched(self) -> None:
        """Neither heads and rows, nor the logs beside it; and nobody has to own it."""

        def test(client: Client, subject: Subject) -> None:
            _filled(client, 0, 1, 2, count=4)
            client.commit(P[1], head=b"kept", sends=[Send(OTHER_POOL, b"other", 1)], rows=[("state", [(b"k", b"v")])])
            client.drive(lambda: b"other" in client.log(OTHER_POOL))
            client.trim(P[1], 4)
            assert [client.positions(p) for p in P[:3]] == [[0, 1, 2, 3], [], [0, 1, 2, 3]]
            assert set(client.log(OTHER_POOL)) == {b"other"}
            assert client.row(P[1], "state", b"k") == b"v"
            client.trim(OTHER_POOL, 1)
            assert 0 not in client.positions(OTHER_POOL)
            claim = client.claim(P[1])
            assert (claim.number, claim.head, claim.tail) == (2, b"kept", 4)

        self._alone(test)

    def test_no_commit_waits_for_it_and_no_order_is_kept(self) -> None:
        """Whatever is let go of meanwhile, commits are as without it; in the end what was let go of is gone."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            for n in range(50):
                client.commit(P[0], head=b"%d" % n, sends=[Send(P[0], b"%d" % n, 1)])
                client.transport.trim(P[0], max(0, n - 2))
                left = client.positions(P[0])
                assert left[-3:] == list(range(max(0, n - 2), n + 1))
                assert left == sorted(set(left))
                assert client.log(P[0]) == [b"%d" % at for at in left]
            client.trim(P[0], 48)
            assert client.positions(P[0]) == [48, 49]
            assert client.claim(P[0]).head == b"49"

        self._alone(test)

    def test_what_was_told_again_and_again_does_nothing_more(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            _filled(client, 0)
            for n in range(2_000):
                client.transport.trim(P[0], n % 7, [7] if n % 2 else [])
            client.trim(P[0], 6, [7])
            assert client.positions(P[0]) == ([6, 8, 9] if client.transport.features.drops else [6, 7, 8, 9])

        self._alone(test)

    def test_arrivals_are_told_whole(self) -> None:
        """What has come is told once, whatever of it is gone by then."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            for n in range(20):
                client.commit(P[0], sends=[Send(P[0], b"%d" % n, 1)])
                client.transport.trim(P[0], n + 1)
            client.drive(lambda: client.arrived_in(P[0]) >= 20)
            assert client.arrived_in(P[0]) == 20
            assert client.early == []

        self._alone(test)

    def test_a_trim_that_may_be_lost_is_given_again(self) -> None:
        """By whoever comes next, from the head; the one who was told of it last may have died with it."""

        def test(client: Client, subject: Subject) -> None:
            _filled(client, 0)
            client.transport.trim(P[0], 5, [7])
            durable = client.transport.features.durable
            client.close()
            client.transport.trim(P[0], 9)  # without a word
            subject.restart()
            with closing(Client(subject)) as heir:
                heir.claim(P[0])
                if durable:
                    left = set(heir.positions(P[0]))
                    assert {5, 6, 8, 9} <= left <= set(range(10))
                    heir.trim(P[0], 5, [7])
                    assert heir.positions(P[0]) == ([5, 6, 8, 9] if heir.transport.features.drops else [5, 6, 7, 8, 9])
                    assert heir.claims[P[0]].tail == 10

        self._alone(test)
