"""What expires goes in the background: nobody waits for it, and it does not pile up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from grape import Context, Event, Node, State, Topology
from grape.model.topology import Limits
from grape.testing import Harness

GRAPE = str(Path(sys.executable).parent / "grape")


class Keep(Node):
    last = State(int, default=0, ttl=60)

    def process(self, event: Event) -> None:
        self.last = event.data


def keep() -> Topology:
    t = Topology("keep")
    t.add_slot("in", Keep())
    return t


def stored(run: Harness, table: str) -> int:
    return sum(1 for _ in run._rows(table))  # type: ignore[arg-type]


def test_expired_state_is_removed_in_the_background() -> None:
    with Harness(keep) as run:
        for i in range(700):
            run.feed("in", i + 1, key=f"k{i}")
        run.settle()
        assert (stored(run, "state"), stored(run, "expiry")) == (700, 700)
        run.advance(59)
        assert stored(run, "state") == 700
        run.advance(1.5)
        assert (stored(run, "state"), stored(run, "expiry")) == (0, 0)


def test_a_key_that_is_written_again_and_again_has_one_expiry() -> None:
    with Harness(keep) as run:
        for i in range(50):
            run.feed("in", i, key="k")
            run.settle()
            run.advance(10)
        assert stored(run, "expiry") == 1
        assert run.state("Keep", "k") == {"last": 49}
        run.advance(49)
        assert run.state("Keep", "k") == {"last": 49}
        run.advance(2)
        assert (stored(run, "state"), stored(run, "expiry")) == (0, 0)
        # Once more from the start, also in a worker that has seen it expire, and in one that has not.
        run.feed("in", 7, key="k")
        run.settle()
        run.restart()
        run.feed("in", 8, key="k")
        run.settle()
        assert stored(run, "expiry") == 1
        run.advance(61)
        assert (stored(run, "state"), stored(run, "expiry")) == (0, 0)


class Two(Node):
    brief = State(str, default="", ttl=60)
    kept = State(int, default=0)

    def process(self, event: Event) -> None:
        if event.data == "forget":
            del self.kept
        else:
            self.brief = event.data
        if event.data == "keep":
            self.kept = 1


def test_a_record_expires_also_if_what_kept_it_was_deleted_later() -> None:
    """The engine has looked once, and found that the record stays."""

    def topology() -> Topology:
        t = Topology("two")
        t.add_slot("in", Two())
        return t

    with Harness(topology) as run:
        run.feed("in", "set", key="k")  # it is due after 60 s
        run.settle()
        run.advance(30)
        run.feed("in", "keep", key="k")
        run.settle()
        run.advance(40)
        assert stored(run, "state") == 1
        run.feed("in", "forget", key="k")
        run.settle()
        run.advance(30)
        assert stored(run, "state") == 0


def test_assigning_the_same_value_prolongs_it() -> None:
    class Seen(Node):
        seen = State(bool, default=False, ttl=60)

        def process(self, event: Event) -> None:
            if event.data == "beat":
                self.seen = True

    t = Topology("beats")
    t.add_slot("in", Seen())

    @t.slot("in")
    def function(what: str, seen: State[bool] = State(bool, default=False, ttl=60)) -> None:
        if what == "beat":
            seen.value = True

    with Harness(t) as run:
        for _ in range(5):
            run.feed("in", "beat", key="k")
            run.settle()
            run.advance(50)
        for node in ("Seen", "function"):
            assert run.state(node, "k") == {"seen": True}
        run.feed("in", "look", key="k")
        run.settle()
        run.advance(11)
        for node in ("Seen", "function"):
            assert run.state(node, "k") == {}


def test_a_record_of_which_a_part_stays_is_not_removed() -> None:
    class Two(Node):
        short = State(int, default=0, ttl=60)
        long = State(int, default=0)

        def process(self, event: Event) -> None:
            if event.data:
                self.long = event.data
            else:
                del self.long
            self.short = 1

    t = Topology("two")
    t.add_slot("in", Two())
    with Harness(t) as run:
        run.feed("in", 5, key="k")
        run.settle()
        run.advance(120)
        assert run.state("Two", "k") == {"long": 5}
        run.feed("in", 0, key="k")
        run.settle()
        assert run.state("Two", "k") == {"short": 1}
        run.advance(61)
        assert stored(run, "state") == 0


def test_a_clients_id_is_forgotten_after_the_dedup_horizon() -> None:
    """F45"""
    with Harness(keep, partitions=1, limits=Limits(dedup_horizon=100)) as run:
        partition = run._machine.engine.partition("main", 0)
        partition.memory.remember("id-1", 42, run._clock.now())
        partition.flush()
        run.settle()
        assert run._machine.engine.remembered("main", 0, "id-1") == (42, False)
        run.advance(99)
        assert run._machine.engine.remembered("main", 0, "id-1") == (42, False)
        run.advance(2)
        assert run._machine.engine.remembered("main", 0, "id-1") is None
        assert stored(run, "expiry") == 0


def test_the_end_of_a_call_is_forgotten_after_the_reply_ttl() -> None:
    t = Topology("calls")

    @t.slot("in")
    def answer(text: str, context: Context) -> None:
        context.reply(text)
        context.reply("late")

    with Harness(t, limits=Limits(reply_ttl=100)) as run:
        for i in range(20):
            run.feed("in", str(i))
        run.settle()
        taker = run._machine.replies.take
        assert taker is not None
        rows = lambda table: len(run._machine.transport.scan(taker.id, table, b"", 1 << 62))  # noqa: E731
        assert (rows("text"), rows("expiry")) == (20, 20)
        run.advance(101)
        run.feed("in", "x")
        run.settle()
        assert (rows("text"), rows("expiry")) == (1, 1)
        assert all(len(answers) == 1 for answers in run.replies().values())


def test_a_run_does_not_wait_for_state_to_expire(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from grape import Node, State, Topology\n"
        "class Keep(Node):\n"
        "    last = State(str, default='', ttl=3600)\n"
        "    def process(self, event):\n"
        "        self.last = event.data['v']\n"
        "t = Topology('keep')\n"
        "t.add_slot('in', Keep())\n"
    )
    (tmp_path / "in.jsonl").write_text('{"k": "a", "v": "1"}\n{"k": "b", "v": "2"}\n')
    command = [GRAPE, "run", "app.py", "--feed", "in=in.jsonl,key=k", "--data", "d"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "wait in" not in done.stderr
    listed = subprocess.run(
        [GRAPE, "state", "list", "--data", "d"], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 2
