"""Claims: the part of the contract of `grape.abc.transport.Transport` that says who owns a partition."""

from __future__ import annotations

from contextlib import closing

from grape.abc.transport import Commit, Send
from grape.errors import InUse
from grape.testing.contracts.client import Client, Contract, P, Subject, refused


class ClaimContract(Contract):
    """Who owns a partition, and who does not any more."""

    def test_claim_of_a_new_partition(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            claim = client.claim(P[0])
            assert claim.term >= 1
            assert (claim.number, claim.head) == (0, b"")

        self._alone(test)

    def test_claim_again_gives_the_next_term_and_the_last_head(self) -> None:
        """F12: claiming over and over, as recoveries that are killed do, loses nothing."""

        def test(client: Client, subject: Subject) -> None:
            first = client.claim(P[0])
            client.commit(P[0], head=b"one")
            client.commit(P[0], head=b"two")
            second = client.claim(P[0])
            assert (second.term, second.number, second.head) == (first.term + 1, 2, b"two")
            for n in range(50):
                again = client.claim(P[0])
                assert (again.term, again.number, again.head) == (second.term + 1 + n, 0, b"two")
            client.commit(P[0], head=b"three")
            assert client.claim(P[0]).head == b"three"

        self._alone(test)

    def test_many_are_claimed_with_one_call(self) -> None:
        """Each answer comes once, after the call, and is as if the partition had been claimed alone."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(P[1])
            client.commit(P[1], head=b"one", sends=[Send(P[1], b"a", 1), Send(P[1], b"b", 1)])
            client.claimed.clear()
            client.transport.claim(P)
            assert client.claimed == []  # never from within the call
            client.drive(lambda: len(client.claimed) >= len(P))
            found = dict(client.claimed)
            assert len(client.claimed) == len(found) == len(P)
            assert (found[P[1]].number, found[P[1]].head, found[P[1]].tail) == (1, b"one", 2)
            assert all((found[p].number, found[p].head, found[p].tail) == (0, b"", 0) for p in P if p != P[1])
            for p in P:
                client.commit(p, head=b"next")

        self._alone(test)

    def test_claims_of_one_partition_are_answered_in_their_order(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            for _ in range(5):
                client.transport.claim([P[0], P[1]])
            client.drive(lambda: len(client.claimed) == 10)
            for p in P[:2]:
                terms = [claim.term for partition, claim in client.claimed if partition == p]
                assert terms == list(range(terms[0], terms[0] + 5))
            client.commit(P[0], head=b"by the last one")

        self._alone(test)

    def test_a_claim_is_answered_behind_the_outcomes_of_the_commits_before_it(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            for _ in range(20):
                client.claim(P[0])
                commit = client.build(P[0], head=b"x", sends=[Send(P[0], b"x", 1)])
                client.answers.clear()
                client.claimed.clear()
                client.transport.commit(commit)
                client.transport.claim([P[0]])
                client.drive(lambda: bool(client.claimed))
                ((known, outcome),) = client.answers
                assert known == commit
                if outcome != "unknown":
                    assert client.claims[P[0]].number == (1 if outcome == "committed" else 0)
                assert client.claims[P[0]].tail == len(client.log(P[0]))

        self._alone(test)

    def test_arrivals_go_on_from_where_the_claim_found_the_log(self) -> None:
        """What the log had is never told again, and what comes is told once, whenever it comes."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(*P[:2])
            for n in range(20):
                client.commit(P[1], sends=[Send(P[0], b"%d" % n, 1)])
                client.transport.commit(client.build(P[1], sends=[Send(P[0], b"%d and" % n, 1)]))
                before = len(client.claimed)
                client.transport.claim([P[0]])
                client.drive(lambda before=before: len(client.claimed) > before)  # type: ignore[misc]
                tail = client.claims[P[0]].tail
                assert client.transport.waiting(P[0], 0, tail).batches == tail
                client.arrivals.clear()
                client.claim(P[1])  # whatever has become of its commit: it is forwarded now
                client.commit(P[1], sends=[Send(P[0], b"%d last" % n, 1)])
                client.drive(lambda n=n: b"%d last" % n in client.log(P[0]))  # type: ignore[misc]
                client.drive(
                    lambda tail=tail: client.arrived_in(P[0]) >= client.transport.waiting(P[0], tail).batches  # type: ignore[misc]
                )
                assert client.arrived_in(P[0]) == client.transport.waiting(P[0], tail).batches

        self._alone(test)

    def test_a_lower_term_is_fenced_and_has_no_effect(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            old = client.claim(P[0])
            client.commit(P[0], head=b"old")
            client.claim(P[0])
            late = Commit(P[0], old.term, 2, b"late", [Send(P[0], b"late", 1)], [("state", [(b"k", b"late")])])
            assert client.settle(late) == "fenced"
            assert client.log(P[0]) == []
            assert client.row(P[0], "state", b"k") is None
            client.commit(P[0], head=b"new")
            assert client.claim(P[0]).head == b"new"

        self._alone(test)

    def test_two_engines_with_partitions_of_their_own(self) -> None:
        """They reach each other's logs, and neither fences the other."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(*P[:2])
            if not subject.competes:
                return
            with closing(Client(subject)) as rival:
                rival.claim(*P[2:4])
                sent = [b"%d" % n for n in range(10)]
                for batch in sent:
                    client.commit(P[0], sends=[Send(P[2], batch, 1)])
                    rival.commit(P[3], sends=[Send(P[1], batch, 1)])
                client.drive(lambda: set(client.log(P[2])) == set(sent))
                rival.drive(lambda: set(rival.log(P[1])) == set(sent))
                rival.drive(lambda: rival.arrived_in(P[2]) >= len(sent))
                client.drive(lambda: client.arrived_in(P[1]) >= len(sent))
                if client.transport.features.exact_forwarding:
                    assert client.log(P[1]) == rival.log(P[2]) == sent
                    assert client.arrived_in(P[1]) == rival.arrived_in(P[2]) == len(sent)
                client.commit(P[1], head=b"still mine")
                rival.commit(P[2], head=b"still mine")

        self._alone(test)

    def test_two_engines(self) -> None:
        """F28, F79: one of two engines owns a partition, or the second cannot even open."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            client.claim(P[1])
            client.commit(P[0], head=b"first")
            if not subject.competes:
                refused(InUse, lambda: Client(subject))
                client.commit(P[0], head=b"second")
                assert client.claim(P[0]).head == b"second"
                return
            with closing(Client(subject)) as rival:
                assert rival.claim(P[0]).head == b"first"
                fenced = client.build(P[0], head=b"mine", rows=[("state", [(b"k", b"mine")])])
                assert client.settle(fenced) == "fenced"
                rival.commit(P[0], head=b"rival", rows=[("state", [(b"k", b"rival")])])
                assert client.row(P[0], "state", b"k") == b"rival"
                client.commit(P[1], head=b"still mine")
                assert client.claim(P[0]).head == b"rival"
                assert rival.settle(rival.build(P[0])) == "fenced"

        self._alone(test)
