"""Dead letters and stopped events: try them again, or drop them. Owns the directory meanwhile, as an engine does.

Every partition is changed by commits of its own, each of which moves a letter as a whole: out of the dead letters and
into the log, in one transaction. A crash leaves each letter where it was or where it should be, and nowhere twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from queue import SimpleQueue
from typing import Any, Final, Self

from grape.abc.transport import Arrival, Callbacks, Claim, Commit, Outcome, Rows, Send, Table
from grape.builtins import DIRECTORY, transport
from grape.engine.letters import NO_LETTER, again, due_now, refusal
from grape.engine.orders.order import Action
from grape.errors import Corrupt, StorageFailed
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.spots import Place
from grape.model.stored import SOURCE, AppRecord, DeadLetter, Head, decode_head, encode, row_key
from grape.protocol.orders import Changes
from grape.tools.directory import Directory, Letter, decoded, open_reader

_COMMIT_BYTES: Final = 32 << 20
_COMMIT_LETTERS: Final = 10_000


class _Draft:
    """The next commit of a partition."""

    def __init__(self, head: Head | None) -> None:
        self.head = head
        self.sends: list[Send] = []
        self.rows: dict[Table, list[tuple[bytes, bytes | None]]] = {}
        self.dead = self.stopped = self.held = self.size = 0

    @property
    def count(self) -> int:
        return self.dead + self.stopped + self.held


class Repair:
    """The data directory ``path``, locked.

    Raises:
        UsageError: as `Directory.open`; InUse (names the pid) if an engine is running on it.
        Corrupt, StorageFailed: as `Directory.open`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        open_reader(path).close()  # only what is there already: opening to write would make a directory
        self._posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._outcomes: list[Outcome] = []
        self._claims: list[Claim] = []
        self._error: BaseException | None = None
        callbacks = Callbacks(self._done, self._arrived, self._failed, self._claimed)
        self._transport = transport(DIRECTORY).open(path, callbacks, self._posted.put)
        try:
            self.directory = Directory(self._transport.at_rest)
        except BaseException:
            self._transport.close()
            raise

    is_running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.close()

    def retry(self, record: AppRecord, places: Iterable[Place], held: bool = False) -> Changes:
        """Dead letters go back into the log, for their node alone and under their old id; stopped events are due, and
        with ``held`` all events on hold may be among ``places``.

        Raises:
            Corrupt: something stored cannot be read; what was committed before stays.
            StorageFailed: the disk refused.
        """
        return self._change(record, places, "retry", held)

    def drop(self, record: AppRecord, places: Iterable[Place], held: bool = False) -> Changes:
        """Remove letters for good. What lined up behind a held event becomes due. ``held``, errors: as `retry`."""
        return self._change(record, places, "drop", held)

    def delete_state(self, record: AppRecord, node: str, keys: Iterable[str]) -> Changes:
        """Remove the state of these keys of ``node``.

        Raises:
            UsageError: there is no such node.
            Corrupt, StorageFailed: as `retry`.
        """
        changes = Changes()
        places: dict[PartitionId, list[bytes]] = {}
        for key in keys:
            home, place = self.directory.state_place(record, node, key)
            (value,) = self.directory.reader.get(home, "state", [place])
            if value is None:
                changes.missing.append(place[2:])
            else:
                places.setdefault(home, []).append(place)
        for home, rows in places.items():
            claim = self._claim(home)
            self._submit(Commit(home, claim.term, 1, claim.head, (), [("state", [(row, None) for row in rows])]))
            changes.states += len(rows)
        return changes

    # ------------------------------------------------------------------ one partition after the other

    def _change(self, record: AppRecord, places: Iterable[Place], action: Action, held: bool) -> Changes:
        changes = Changes()
        # In the order of their numbers, so that events of a key keep their order.
        for partition, group in groupby(sorted(set(places), key=_order), lambda place: place.partition):
            letters = self._allowed(record, list(group), action, changes, held)
            self._change_partition(record, partition, letters, action, changes)
        return changes

    def _change_partition(
        self, record: AppRecord, partition: PartitionId, letters: Iterator[Letter], action: Action, changes: Changes
    ) -> None:
        claim: Claim | None = None
        number = 0
        draft = _Draft(None)
        for letter in letters:
            if claim is None:
                claim = self._claim(partition)
                is_source = letter.place.log.startswith(SOURCE)
                draft = _Draft(None if is_source else _head(claim.head))
            self._put(record, letter, action, draft)
            if draft.size > _COMMIT_BYTES or draft.count >= _COMMIT_LETTERS:
                number += 1
                self._commit(partition, claim, number, draft, changes)
                draft = _Draft(draft.head)
        if claim is not None and draft.count:
            self._commit(partition, claim, number + 1, draft, changes)

    def _allowed(
        self, record: AppRecord, places: list[Place], action: Action, changes: Changes, held: bool
    ) -> Iterator[Letter]:
        for place in places:
            letter = self.directory.letter(place, held)
            if letter is None:
                why = NO_LETTER
            else:
                why = refusal(record, place.log, letter.row) if action == "retry" else ""
            if why or letter is None:
                changes.refused[place.id] = why
            else:
                yield letter

    def _put(self, record: AppRecord, letter: Letter, action: Action, draft: _Draft) -> None:
        place, row = letter.place, letter.row
        key = row_key(place.number)
        if isinstance(row, DeadLetter):
            draft.dead += 1
            draft.rows.setdefault("dead", []).append((key, None))
            if action == "retry":
                assert draft.head is not None
                send = _again(record, letter, draft.head)
                draft.sends.append(send)
                draft.size += len(send.batch)
        else:
            draft.stopped += row.stopped
            draft.held += not row.stopped
            value: bytes | None = None
            if action == "retry":
                value = encode(due_now(row))
                draft.size += len(value)
            draft.rows.setdefault("hold", []).append((key, value))

    def _commit(self, partition: PartitionId, claim: Claim, number: int, draft: _Draft, changes: Changes) -> None:
        head = claim.head if draft.head is None else encode(draft.head)
        rows: list[tuple[Table, Rows]] = list(draft.rows.items())
        self._submit(Commit(partition, claim.term, number, head, draft.sends, rows))
        changes.dead += draft.dead
        changes.stopped += draft.stopped
        changes.held += draft.held

    def _claim(self, partition: PartitionId) -> Claim:
        """
        Raises:
            Corrupt: something stored cannot be read.
            StorageFailed: the disk refused.
        """
        self._claims.clear()
        self._transport.claim([partition])
        self._wait(self._claims)
        return self._claims[0]

    def _wait(self, answers: list[Any]) -> None:
        """Until there is one."""
        while not answers and self._error is None:
            self._posted.get()()
        if self._error is not None:
            raise self._error if isinstance(self._error, StorageFailed | Corrupt) else StorageFailed(str(self._error))

    def _submit(self, commit: Commit) -> None:
        """Commit, and wait until it is durable."""
        self._transport.commit(commit)
        self._outcomes.clear()
        self._wait(self._outcomes)
        if self._outcomes != ["committed"]:
            raise StorageFailed(f"partition {commit.partition} was not changed: {self._outcomes[0]}")

    def let_go(self, log: PartitionId, position: int, drops: Sequence[int]) -> None:
        """What a commit has said to be finished, at the latest when this is closed."""
        self._transport.trim(log, position, drops)

    def _done(self, outcomes: list[tuple[Commit, Outcome]]) -> None:
        self._outcomes.extend(outcome for _, outcome in outcomes)

    def _arrived(self, arrivals: list[Arrival]) -> None:
        pass

    def _failed(self, error: BaseException) -> None:
        self._error = error

    def _claimed(self, claims: list[tuple[PartitionId, Claim]]) -> None:
        self._claims += [claim for _, claim in claims]


def _order(place: Place) -> tuple[PartitionId, bool, int]:
    return place.partition, place.stopped, place.number


def _head(packed: bytes) -> Head:
    return decoded(decode_head, packed, "head of a partition") if packed else Head()


def _again(record: AppRecord, letter: Letter, head: Head) -> Send:
    """The event as a batch for the log of its node, under the next number that its partition has for that log."""
    own = letter.place.partition
    event = again(record, letter.row, letter.place.id)
    target = PartitionId(own.app, record.logs[event.log], own.number)
    packed = target.packed()
    sequence = head.sent.get(packed, 0)
    head.sent[packed] = sequence + 1
    created, contexts = letter.row.created, event.contexts
    return Send(target, codec.seal(event.body, 1, own, target, record.incarnation, sequence, created, contexts), 1)
