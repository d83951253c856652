"""The contract of `grape.abc.transport.Transport`, as tests.

A backend's test file is a constructor and little more::

    class TestMine(TransportContract):
        def subject(self) -> Subject:
            return MySubject()

The methods named ``test_...`` need nothing but an `assert` that raises; pytest finds them by their names. An ability
that the backend's `Features` (or `Subject.competes`) deny is not skipped: the refusal or the weaker behaviour is
asserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from random import Random
from typing import Literal

from msgspec import Struct

from grape.abc.transport import (
    TABLES,
    Arrival,
    Callbacks,
    Claim,
    Commit,
    Features,
    Outcome,
    Rows,
    Send,
    Table,
    Transport,
)
from grape.errors import TooLarge
from grape.model.address import PartitionId
from grape.testing.contracts.claims import ClaimContract
from grape.testing.contracts.client import MIB, OTHER_POOL, Client, P, Subject, refused
from grape.testing.contracts.trims import TrimContract


class Operation(Struct, frozen=True):
    """A step of a random walk: one commit, or the start of a new owner, or a look at everything."""

    what: Literal["commit", "claim", "reopen"]
    partition: int = 0
    sends: Sequence[tuple[int, bytes]] = ()
    rows: Sequence[tuple[Table, bytes, bytes | None]] = ()
    trim: int | None = None
    """Of the partition's own log: this many batches from where it begins."""
    drops: Sequence[int] = ()
    """Of the partition's own log: the index, modulo how many there are, of batches to drop."""


def random_operations(random: Random, length: int) -> list[Operation]:
    """A walk of ``length`` steps over the first three partitions of `P`."""
    operations: list[Operation] = []
    for _ in range(length):
        what: Literal["commit", "claim", "reopen"] = random.choices(("commit", "claim", "reopen"), weights=(20, 2, 1))[
            0
        ]
        keys = [random.choice([b"", b"a", b"b", b"c", b"k" * 480, b"k" * 600, b"k" * 599 + b"z"]) for _ in range(3)]
        operations.append(
            Operation(
                what,
                random.randrange(3),
                [
                    (random.randrange(3), random.randbytes(random.choice((0, 10, 5000))))
                    for _ in range(random.randrange(3))
                ],
                [(random.choice(TABLES), key, random.choice((None, b"", b"v", random.randbytes(30)))) for key in keys],
                random.choice((None, None, 0, 1, 2)),
                [random.randrange(5) for _ in range(random.randrange(2))],
            )
        )
    return operations


def follow(subject: Subject, operations: Sequence[Operation]) -> None:
    """Do ``operations`` on the subject and on plain dicts, and compare everything that can be read after each."""
    logs: dict[PartitionId, dict[int, bytes]] = {p: {} for p in P[:3]}
    tables: dict[tuple[PartitionId, Table], dict[bytes, bytes]] = {(p, t): {} for p in P[:3] for t in TABLES}
    heads: dict[PartitionId, bytes] = dict.fromkeys(P[:3], b"")
    highest: dict[PartitionId, int] = dict.fromkeys(P[:3], -1)
    let_go: dict[PartitionId, set[int]] = {p: set() for p in P[:3]}
    client = Client(subject)
    try:
        for p in P[:3]:
            client.claim(p)
        exact = client.transport.features.exact_forwarding
        has_drops = client.transport.features.drops
        for n, operation in enumerate(operations):
            p = P[operation.partition]
            if operation.what == "reopen" and not subject.competes:
                client.close()
                client = Client(subject)
                for q in P[:3]:
                    assert client.claim(q).head == heads[q]
            elif operation.what == "claim":
                number = client.numbers[p]
                claim = client.claim(p)
                assert (claim.number, claim.head) == (number, heads[p])
            elif operation.what == "commit":
                # Without exact forwarding a model cannot know where a forwarded batch lands.
                sends = [Send(P[to] if exact else p, batch, 1) for to, batch in operation.sends]
                known = sorted(logs[p])
                start = known[operation.trim] if operation.trim is not None and operation.trim < len(known) else 0
                drops = [known[i % len(known)] for i in operation.drops if known]
                rows: list[tuple[Table, Rows]] = [(table, [(key, value)]) for table, key, value in operation.rows]
                heads[p] = b"head %d" % n
                client.commit(p, head=heads[p], sends=sends, rows=rows)
                client.transport.trim(p, start, drops)
                let_go[p].update(at for at in known if at < start or (at in drops and has_drops))
                for send in sends:
                    position = client.positions(send.target, highest[send.target] + 1)[0]
                    assert position > highest[send.target]
                    logs[send.target][position] = send.batch
                    highest[send.target] = position
                for table, key, value in operation.rows:
                    if value is None:
                        tables[p, table].pop(key, None)
                    else:
                        tables[p, table][key] = value
            for q in P[:3]:
                stored = {s.position: s.batch for s in client.transport.read(q, 0, 1 << 40)}
                for position in let_go[q] - stored.keys():  # it may go at any moment, and does not come back
                    logs[q].pop(position, None)
                assert stored == logs[q], (n, operation, q)
                for table in TABLES:
                    expected = tables[q, table]
                    assert client.transport.scan(q, table, b"", 1000) == sorted(expected.items())
                    assert client.transport.get(q, table, list(expected)) == list(expected.values())
    finally:
        client.close()


class TransportContract(ClaimContract, TrimContract):
    """Inherit, say how to make a `Subject`, and let pytest run the methods."""

    # Commits

    def test_mistakes_of_the_caller_arerefused(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            transport = client.transport
            refused(ValueError, lambda: transport.commit(Commit(P[0], 1, 1, b"unclaimed")))
            term = client.claim(P[0]).term
            refused(ValueError, lambda: transport.commit(Commit(P[0], term + 1, 1, b"a term from the future")))
            refused(ValueError, lambda: transport.commit(Commit(P[0], term, 0, b"number 0")))
            refused(ValueError, lambda: transport.commit(Commit(P[0], term, 2, b"a gap")))
            client.commit(P[0], head=b"one")
            refused(ValueError, lambda: transport.commit(Commit(P[0], term, 1, b"another one")))
            refused(ValueError, lambda: transport.commit(Commit(P[0], term, 3, b"a gap")))
            client.commit(P[0], head=b"two")
            assert client.claim(P[0]).head == b"two"

        self._alone(test)

    def test_the_same_commit_again_is_committed_once(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            commit = client.build(P[0], sends=[Send(P[0], b"batch", 1)], rows=[("state", [(b"k", b"1")])])
            for _ in range(3):
                assert client.settle(commit) == "committed"
            client.commit(P[0], rows=[("state", [(b"k", b"2")])])
            assert client.log(P[0]) == [b"batch"]
            assert client.row(P[0], "state", b"k") == b"2"
            assert client.claim(P[0]).number == 2

        self._alone(test)

    def test_what_was_unknown_is_settled_by_a_claim_all_or_nothing(self) -> None:
        """F80: a claim tells whether the commit counts, and everything that can be read agrees with it."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            head, batches, rows = b"", [], {}
            for n in range(100):
                mark = b"%d" % n
                commit = client.build(
                    P[0],
                    head=mark,
                    sends=[Send(P[0], mark, 1)],
                    rows=[("state", [(b"k", mark)]), ("hold", [(mark, mark)])],
                )
                outcome = client.submit(commit)
                assert outcome != "fenced"
                if outcome == "unknown":
                    claim = client.claim(P[0])
                    assert claim.number in (commit.number - 1, commit.number)
                    counts = claim.number == commit.number
                    assert claim.head == (mark if counts else head)
                else:
                    counts = True
                if counts:
                    head = mark
                    batches.append(mark)
                    rows[mark] = mark
                assert client.log(P[0]) == batches
                assert dict(client.transport.scan(P[0], "hold", b"", 1000)) == rows
                assert client.row(P[0], "state", b"k") == (head or None)

        self._alone(test)

    def test_a_commit_is_seen_whole_or_not_at_all(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            client.commit(P[0], sends=[Send(P[0], b"old", 1)])
            all_rows: list[tuple[Table, Rows]] = [(table, [(b"k", table.encode())]) for table in TABLES]
            commit = client.build(P[0], head=b"new", sends=[Send(P[0], b"new", 1)], rows=all_rows)

            def look() -> list[object]:
                return [client.log(P[0]), *(client.row(P[0], table, b"k") for table in TABLES)]

            before: list[object] = [[b"old"], *(None for _ in TABLES)]
            after: list[object] = [[b"old", b"new"], *(table.encode() for table in TABLES)]
            client.transport.commit(commit)
            log_first = client.log(P[0])
            last_row = client.row(P[0], TABLES[-1], b"k")
            if log_first == [b"old", b"new"]:
                assert last_row is not None
            assert client.settle(commit) == "committed"
            assert look() == after != before
            assert client.claim(P[0]).head == b"new"

        self._alone(test)

    def test_outcomes_come_in_order_and_for_every_partition(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            for p in P:
                client.claim(p)
            for _ in range(20):
                commits = [client.build(p, sends=[Send(p, b"%d" % client.numbers[p], 1)]) for p in P]
                for commit in commits:
                    client.transport.commit(commit)
                client.drive(lambda commits=commits: all(c in [d for d, _ in client.answers] for c in commits))  # type: ignore[misc]
                outcomes = {c.partition: outcome for c, outcome in client.answers[-len(P) :]}
                for commit in commits:
                    if outcomes[commit.partition] == "unknown":
                        assert client.settle(commit) == "committed"
                    else:
                        assert outcomes[commit.partition] == "committed"
            for p in P:
                assert client.log(p) == [b"%d" % n for n in range(20)]
                assert client.claim(p).number == 20

        self._alone(test)

    def test_a_commit_from_within_done(self) -> None:
        with closing(self.subject()) as subject:
            answers: list[Outcome] = []
            holder: list[Transport] = []

            def done(results: list[tuple[Commit, Outcome]]) -> None:
                for commit, outcome in results:
                    assert outcome != "fenced"
                    answers.append(outcome)
                    again = outcome == "unknown"
                    number = commit.number if again else commit.number + 1
                    if number <= 10:
                        holder[0].commit(Commit(P[0], commit.term, number, b"%d" % number))

            claims: list[tuple[PartitionId, Claim]] = []
            transport = subject.open(Callbacks(done, lambda _: None, lambda e: None, claims.extend))
            holder.append(transport)
            transport.claim([P[0]])
            assert claims == []  # never from within the call
            subject.drive(transport, lambda: bool(claims))
            term = claims[0][1].term
            transport.commit(Commit(P[0], term, 1, b"1"))
            assert answers == []  # never from within the call
            subject.drive(transport, lambda: answers.count("committed") == 10)
            transport.claim([P[0]])
            subject.drive(transport, lambda: len(claims) == 2)
            assert claims[1] == (P[0], Claim(term + 1, 10, b"10"))
            transport.close()

    # Logs

    def test_read_in_order_and_by_size(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            batches = [bytes([n]) * 1000 for n in range(10)]
            for first in range(0, 10, 2):
                client.commit(P[0], sends=[Send(P[0], batch, 5) for batch in batches[first : first + 2]])
            read = client.transport.read
            whole = read(P[0], 0, 1 << 30)
            assert [s.batch for s in whole] == batches
            positions = [s.position for s in whole]
            assert positions == list(range(10))
            assert [s.batch for s in read(P[0], 0, 1)] == batches[:1]
            assert [s.batch for s in read(P[0], 0, 0)] == batches[:1]
            assert [s.batch for s in read(P[0], 0, 2999)] == batches[:2]
            assert [s.batch for s in read(P[0], 0, 3000)] == batches[:3]
            assert [s.batch for s in read(P[0], positions[7], 1 << 30)] == batches[7:]
            assert read(P[0], positions[-1] + 1, 1 << 30) == []
            assert read(P[0], 1 << 40, 1 << 30) == []
            assert read(P[1], 0, 1 << 30) == []
            waiting = client.transport.waiting(P[0], positions[4])
            assert waiting == Arrival(P[0], 6, 30, 6000)
            assert client.transport.waiting(P[0], positions[4], positions[6]) == Arrival(P[0], 2, 10, 2000)
            assert client.transport.waiting(P[1], 0) == Arrival(P[1], 0, 0, 0)

        self._alone(test)

    def test_arrivals_are_complete_and_never_before_done(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            for n in range(1, 21):
                client.commit(P[0], sends=[Send(P[0], b"x" * n, n), Send(P[0], b"y", 1)])
            client.drive(lambda: sum(a.batches for a in client.arrivals) >= 40)
            assert client.early == []
            assert {a.partition for a in client.arrivals} == {P[0]}
            assert sum(a.batches for a in client.arrivals) == 40
            assert sum(a.events for a in client.arrivals) == 210 + 20
            assert sum(a.size for a in client.arrivals) == 210 + 20
            assert sum(len(batch) for batch in client.log(P[0])) == 210 + 20

        self._alone(test)

    def test_forwarded_batches_arrive(self) -> None:
        """Exactly and in order where the backend says so; else at least once."""

        def test(client: Client, subject: Subject) -> None:
            for p in P[:3]:
                client.claim(p)
            targets = [P[1], P[2], P[7], OTHER_POOL]
            sent: dict[PartitionId, list[bytes]] = {p: [] for p in targets}
            exact = client.transport.features.exact_forwarding
            for n in range(30):
                sends = [Send(target, b"%d" % n, 1) for target in targets]
                client.commit(P[n % 3], sends=sends)
                for send in sends:
                    sent[send.target].append(send.batch)
                if exact:
                    assert {p: client.log(p) for p in targets} == sent

            client.drive(lambda: all(set(client.log(p)) == set(sent[p]) for p in targets))
            if exact:
                assert {p: client.log(p) for p in targets} == sent
            client.drive(lambda: all(client.arrived_in(p) >= 30 for p in targets))
            for p in targets:
                assert client.arrived_in(p) == len(client.log(p)) or not exact

        self._alone(test)

    def test_what_was_committed_but_not_forwarded_arrives_after_a_claim(self) -> None:
        """F8: the owner dies after its commit; whoever claims next delivers."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            commit = client.build(P[0], head=b"sent", sends=[Send(P[1], b"forwarded", 1)])
            client.settle(commit)
            client.close()
            with closing(Client(subject)) as heir:
                assert heir.claim(P[0]).head == b"sent"
                heir.drive(lambda: b"forwarded" in heir.log(P[1]))
                assert set(heir.log(P[1])) == {b"forwarded"}
                assert len(heir.log(P[1])) == 1 or not heir.transport.features.exact_forwarding

        self._alone(test)

    # Rows

    def test_rows_are_written_read_and_removed(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            client.claim(P[1])
            get, scan = client.transport.get, client.transport.scan
            assert get(P[0], "state", [b"a", b"b"]) == [None, None]
            assert get(P[0], "state", []) == []
            assert scan(P[0], "state", b"", 10) == []
            client.commit(P[0], rows=[("state", [(b"b", b"2"), (b"a", b"1"), (b"c", b"3")]), ("hold", [(b"a", b"h")])])
            client.commit(P[1], rows=[("state", [(b"a", b"other")])])
            assert get(P[0], "state", [b"c", b"x", b"a", b"c"]) == [b"3", None, b"1", b"3"]
            assert get(P[0], "hold", [b"a", b"b"]) == [b"h", None]
            assert get(P[1], "state", [b"a", b"b"]) == [b"other", None]
            assert scan(P[0], "state", b"", 10) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
            assert scan(P[0], "state", b"b", 10) == [(b"b", b"2"), (b"c", b"3")]
            assert scan(P[0], "state", b"a\0", 10) == [(b"b", b"2"), (b"c", b"3")]
            assert scan(P[0], "state", b"", 2) == [(b"a", b"1"), (b"b", b"2")]
            assert scan(P[0], "state", b"", 0) == []
            assert scan(P[0], "state", b"a", 10, b"c") == [(b"a", b"1"), (b"b", b"2")]
            assert scan(P[0], "state", b"", 10, b"") == []
            assert scan(P[0], "timer", b"", 10) == []
            client.commit(P[0], rows=[("state", [(b"a", None), (b"b", b"two"), (b"none", None)])])
            assert scan(P[0], "state", b"", 10) == [(b"b", b"two"), (b"c", b"3")]
            assert get(P[0], "hold", [b"a"]) == [b"h"]
            assert get(P[1], "state", [b"a"]) == [b"other"]

        self._alone(test)

    def test_the_last_write_of_a_key_counts(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            client.commit(
                P[0],
                rows=[
                    ("state", [(b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", None), (b"c", None), (b"c", b"3")]),
                    ("state", [(b"d", b"1")]),
                    ("state", [(b"d", None), (b"c", b"4")]),
                ],
            )
            assert client.transport.scan(P[0], "state", b"", 10) == [(b"a", b"2"), (b"c", b"4")]

        self._alone(test)

    def test_empty_values_keys_heads_and_batches(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            client.commit(P[0], head=b"", sends=[Send(P[0], b"", 0)], rows=[("state", [(b"", b""), (b"\0", b"")])])
            assert client.transport.get(P[0], "state", [b"", b"\0", b"\0\0"]) == [b"", b"", None]
            assert client.transport.scan(P[0], "state", b"", 10) == [(b"", b""), (b"\0", b"")]
            assert client.log(P[0]) == [b""]
            assert client.claim(P[0]) == Claim(client.claims[P[0]].term, 1, b"", 1)
            client.commit(P[0], rows=[("state", [(b"", None)])])
            assert client.transport.scan(P[0], "state", b"", 10) == [(b"\0", b"")]

        self._alone(test)

    def test_scans_stay_within_their_partition(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            edges = [
                PartitionId(1, 1, 255),
                PartitionId(1, 1, 256),
                PartitionId(1, 2, 0),
                PartitionId(65535, 65535, 4095),
            ]
            for p in edges:
                client.claim(p)
                client.commit(
                    p,
                    head=repr(p).encode(),
                    sends=[Send(p, repr(p).encode(), 1)],
                    rows=[("state", [(b"\xff" * 3, b"1"), (b"\xff" * 700, b"2"), (b"", b"0")])],
                )
            for p in edges:
                assert [k for k, _ in client.transport.scan(p, "state", b"", 10)] == [b"", b"\xff" * 3, b"\xff" * 700]
                assert client.log(p) == [repr(p).encode()]
                assert client.claim(p).head == repr(p).encode()

        self._alone(test)

    def test_long_keys(self) -> None:
        """Keys of any length up to a node's name and 4,096 bytes, in key order, also where only the end differs."""

        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            random = Random(1)
            shared = b"k" * 5000
            keys = [shared[:n] for n in (1, 480, 488, 489, 490, 504, 505, 506, 511, 512, 600, 4096, 4400)]
            keys += [shared[:n] + random.randbytes(5) for n in (480, 489, 600, 600, 600, 4096, 4096)]
            rows = {key: b"%d" % n for n, key in enumerate(keys)}
            client.commit(P[0], rows=[("state", list(rows.items()))])
            expected = sorted(rows.items())
            get, scan = client.transport.get, client.transport.scan
            assert get(P[0], "state", keys) == list(rows.values())
            assert get(P[0], "state", [shared[:700], shared[:481]]) == [None, None]
            assert scan(P[0], "state", b"", 100) == expected
            for limit in (1, 2, 5):
                pages: list[tuple[bytes, bytes]] = []
                after = b""
                while page := scan(P[0], "state", after, limit):
                    pages += page
                    after = page[-1][0] + b"\0"
                assert pages == expected
            for start, _ in expected:
                for end, _ in expected:
                    between = [(k, v) for k, v in expected if start <= k < end]
                    assert scan(P[0], "state", start, 100, end) == between
            client.commit(P[0], rows=[("state", [(key, None) for key in keys[::2]] + [(keys[1], b"new")])])
            left = {key: value for key, value in rows.items() if key not in keys[::2]} | {keys[1]: b"new"}
            assert scan(P[0], "state", b"", 100) == sorted(left.items())

        self._alone(test)

    # Sizes

    def test_the_largest_event_and_no_larger_batch_than_declared(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            features: Features = client.transport.features
            client.claim(P[0])
            event = Random(2).randbytes(8 * MIB)
            assert features.largest_batch >= features.largest_event >= 8 * MIB
            assert features.largest_commit >= features.largest_batch
            client.commit(P[0], sends=[Send(P[0], event, 1)], rows=[("state", [(b"large", event), (b"small", b"1")])])
            assert client.log(P[0]) == [event]
            assert client.row(P[0], "state", b"large") == event
            assert client.transport.scan(P[0], "state", b"", 10) == [(b"large", event), (b"small", b"1")]
            if features.largest_batch <= 64 * MIB:
                too_large = client.build(P[0], head=b"no", sends=[Send(P[0], bytes(features.largest_batch + 1), 1)])
                refused(TooLarge, lambda: client.transport.commit(too_large))
                client.numbers[P[0]] -= 1
            client.commit(P[0], head=b"yes", rows=[("state", [(b"large", None)])])
            assert client.row(P[0], "state", b"large") is None
            assert client.claim(P[0]).head == b"yes"

        self._alone(test)

    def test_there_is_room(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            assert client.transport.room() > 16 * MIB

        self._alone(test)

    # The end

    def test_close_is_idempotent_and_the_last_word(self) -> None:
        def test(client: Client, subject: Subject) -> None:
            client.claim(P[0])
            client.commit(P[0], head=b"before")
            answers = len(client.answers)
            commit = client.build(P[0], head=b"after", sends=[Send(P[0], b"after", 1)])
            client.transport.commit(commit)
            client.close()
            client.close()
            subject.drive(client.transport, lambda: True)
            assert len(client.answers) == answers
            with closing(Client(subject)) as heir:
                claim = heir.claim(P[0])
                heads: dict[int, tuple[bytes, list[bytes]]] = {1: (b"before", []), 2: (b"after", [b"after"])}
                assert (claim.head, heir.log(P[0])) == heads[claim.number]

        self._alone(test)

    def test_close_from_within_a_callback(self) -> None:
        with closing(self.subject()) as subject:
            seen: list[str] = []
            holder: list[Transport] = []

            def done(results: list[tuple[Commit, Outcome]]) -> None:
                seen.append("done")
                holder[0].close()

            def claimed(claims: list[tuple[PartitionId, Claim]]) -> None:
                for partition, claim in claims:
                    holder[0].commit(Commit(partition, claim.term, 1, b"1", [Send(P[0], b"x", 1)]))

            callbacks = Callbacks(done, lambda _: seen.append("arrived"), lambda _: seen.append("failed"), claimed)
            transport = subject.open(callbacks)
            holder.append(transport)
            transport.claim([P[0]])
            subject.drive(transport, lambda: bool(seen))
            assert seen == ["done"]

    def test_what_is_durable(self) -> None:
        """F3, F14 as far as a process can tell: after a restart all that was reported is there, or, where the backend
        says it is not durable, nothing."""

        def test(client: Client, subject: Subject) -> None:
            term = client.claim(P[0]).term
            client.commit(P[0], head=b"one", sends=[Send(P[0], b"batch", 3)], rows=[("state", [(b"k", b"v")])])
            client.commit(P[0], head=b"two")
            durable = client.transport.features.durable
            client.close()
            subject.restart()
            with closing(Client(subject)) as heir:
                claim = heir.claim(P[0])
                if durable:
                    assert claim == Claim(term + 1, 2, b"two", 1)
                    assert heir.log(P[0]) == [b"batch"]
                    assert heir.row(P[0], "state", b"k") == b"v"
                else:
                    assert (claim.number, claim.head) == (0, b"")
                    assert heir.log(P[0]) == []
                    assert heir.row(P[0], "state", b"k") is None

        self._alone(test)

    # All of it

    def test_random_walks_agree_with_a_model(self) -> None:
        for seed in range(10):
            with closing(self.subject()) as subject:
                follow(subject, random_operations(Random(seed), 60))
