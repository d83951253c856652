"""Work that waits although nothing is in the way: the engine says so, and does it again."""

from __future__ import annotations

from grape.engine.standstill import STANDSTILL, Standstill
from grape.model.cursor import Progress
from grape.protocol.messages import Beat, Hello
from unit.lying import CAPABILITIES, EVENTS, TOPOLOGY, VERSION, Rig, result


def test_it_stands_after_ten_seconds_without_a_move() -> None:
    it = Standstill()
    assert not it.stands(0)
    assert not it.stands(STANDSTILL - 1)
    it.moves()
    assert not it.stands(STANDSTILL)
    assert it.stands(2 * STANDSTILL)
    assert not it.stands(2 * STANDSTILL + 1)  # it begins anew


def beats(rig: Rig, seconds: int, *, running: bool) -> None:
    for _ in range(seconds):
        rig.clock.advance(1)
        rig.say(Beat(running))


def test_a_worker_that_has_lost_its_work_is_replaced() -> None:
    rig = Rig()
    beats(rig, 10, running=False)
    assert not rig.worker.killed
    beats(rig, 1, running=False)
    assert rig.worker.killed
    (notice,) = rig.notices
    assert notice.startswith("worker main.0 has stood still for 10 s although work waits\n")
    assert "partition main/0: epoch 1, settled, 10 events wait" in notice
    assert "works ['1: 10 events of 1 batches, 0 held']" in notice
    rig.replace_worker()
    rig.say(result(rig, done=[(0, Progress(EVENTS))]))
    assert rig.app.backlog_events == 0


def test_a_handler_may_run_for_long() -> None:
    rig = Rig()
    beats(rig, 100, running=True)
    assert not rig.worker.killed
    assert rig.notices == []


def test_results_are_moves() -> None:
    rig = Rig()
    for index in range(1, 9):
        beats(rig, 8, running=False)
        rig.say(result(rig, ended=[], done=[(0, Progress(index))]))
    assert not rig.worker.killed


def test_an_idle_worker_without_work_is_left_alone() -> None:
    rig = Rig()
    rig.say(result(rig, done=[(0, Progress(EVENTS))]))
    beats(rig, 100, running=False)
    assert not rig.worker.killed
    assert rig.notices == []


def test_work_that_was_not_handed_out_is() -> None:
    rig = Rig(says_hello=False)
    rig.say(Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES))
    rig.worker.unread = 1 << 30  # it seems not to read
    rig.say(Beat())
    rig.worker.unread = 0
    worker = rig.engine.pools["main"].workers[0] if rig.engine else None
    assert worker is not None
    worker.queued.clear()  # as if it had been forgotten
    worker._is_queued.clear()
    beats(rig, 11, running=False)
    assert not rig.worker.killed
    assert "although work waits" in rig.notices[0]
    rig.say(result(rig, done=[(0, Progress(EVENTS))]))
    assert rig.app.backlog_events == 0
