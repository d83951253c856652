"""The conformance app in Python. Workers in other languages have the same nodes; docs/conformance.md lists them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from grape import CallFailed, Event, NoAnswer, Node, State, Topology
from grape.authoring.objects import NodeStorage


class Echo(Node):
    def process(self, event: Event) -> None:
        self.emit("out", event.data)


class Count(Node):
    count = State(int, default=0)

    def process(self, event: Event) -> None:
        self.count += 1
        self.emit("out", self.count)


class Store(Node):
    value = State(Any)

    def process(self, event: Event) -> None:
        old = self.value
        if event.name == "erase":
            del self.value
        else:
            self.value = event.data
        self.emit("out", old)


class Fail(Node):
    def process(self, event: Event) -> None:
        raise ValueError(event.data)


class Odd(Node):
    count = State(int, default=0)

    def process(self, event: Event) -> None:
        self.count += 1
        self.emit("out", [event.data, self.count])
        if event.data % 2:
            raise ValueError("odd")


class Many(Node):
    def process(self, event: Event) -> None:
        for i in range(event.data):
            self.emit("out", i)


class Send(Node):
    def process(self, event: Event) -> None:
        key, data = event.data
        self.emit("echo", data, key=key)


class First(Node):
    count = State(int, default=0)

    def process(self, event: Event) -> None:
        key, data = event.data
        self.count += 1
        self.emit("second", data, key=key)
        if data < 0:
            raise ValueError("first")


class Who(Node):
    def process(self, event: Event) -> None:
        self.emit("out", [event.id, event.attempt])


class Answer(Node):
    def process(self, event: Event) -> None:
        self.reply(event.data)


class Later(Node):
    def process(self, event: Event) -> None:
        delay, data = event.data
        self.emit("out", data, delay=delay)


class Alarm(Node):
    def process(self, event: Event) -> None:
        if event.name == "calm":
            self.cancel_timer(event.data)
        else:
            name, delay, data = event.data
            self.emit("out", data, delay=delay, timer=name)


class Ask(Node):
    count = State(int, default=0)

    def process(self, event: Event) -> None:
        self.count += 1
        self.emit("out", "asks")
        self.emit("out", [self.asked(data) for data in event.data])

    def asked(self, data: Any) -> Any:
        try:
            return self.call("answer", data, timeout=5)
        except (CallFailed, NoAnswer) as e:
            return [e.code, getattr(e, "text", str(e))]


class Refer(Node):
    def process(self, event: Event) -> None:
        key, data = event.data
        self.emit("out", self.call("answer", data, key=key))


class Greedy(Node):
    def process(self, event: Event) -> None:
        try:
            self.call("answer", event.data)
        except BaseException:  # that is what it is for
            self.emit("out", "caught")


class Sleep(Node):
    def process(self, event: Event) -> None:
        time.sleep(event.data)
        self.emit("out", event.data)


class Unknown(Node):
    def process(self, event: Event) -> None:
        self.emit("nowhere", event.data)


class Say(Node):
    def process(self, event: Event) -> None:
        print(event.data)  # noqa: T201 - that is what it is for


class Note(Node):
    def process(self, event: Event) -> None:
        level, text, fields = event.data
        logging.getLogger(__name__).log(logging.getLevelName(level.upper()), text, extra=fields)


class Mutter(Note):
    pass


class Die(Node):
    def process(self, event: Event) -> None:
        os._exit(3)


class Export(Node):
    def process(self, event: Event) -> None:
        name, data = event.data
        self.emit(name, data)


class Consult(Node):
    def process(self, event: Event) -> None:
        name, data = event.data
        self.emit("out", self.call(name, data))


class Paced(Node):
    def process(self, event: Event) -> None:
        self.emit("out", event.data)


class Hurry(Node):
    def process(self, event: Event) -> None:
        self.emit("paced", event.data)


class Keep(Node):
    def process(self, event: Event) -> None:
        for what, namespace, *words in event.data:
            storage = self.storage if namespace is None else self.storage[namespace]
            getattr(self, f"_{what}")(storage, *words)

    def _put(self, storage: NodeStorage, key: Any, data: str, about: dict[str, Any] | None = None) -> None:
        storage.put(key, data, **(about or {}))

    def _large(self, storage: NodeStorage, key: str, text: str, count: int) -> None:
        storage.put(key, (text.encode() for _ in range(count)))

    def _broken(self, storage: NodeStorage, key: str) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(40):
                yield b"z" * 65_536
            raise ValueError("it breaks off")

        storage.put(key, chunks())

    def _get(self, storage: NodeStorage, key: Any, start: int = 0, end: int | None = None) -> None:
        data = storage.get(key, start, end)
        self.emit("out", None if data is None else data.decode())

    def _count(self, storage: NodeStorage, key: str, start: int = 0, end: int | None = None) -> None:
        found = storage.chunks(key, start, end)
        self.emit("out", None if found is None else sum(map(len, found)))

    def _stat(self, storage: NodeStorage, key: str) -> None:
        about = storage.stat(key)
        said = None
        if about is not None:
            said = [about.size, about.version, about.checksum, about.content_type, list(about.tags), about.user]
            said += [about.time > 0, about.expires > 0]
        self.emit("out", said)

    def _list(self, storage: NodeStorage, prefix: str, tags: Sequence[str] = ()) -> None:
        self.emit("out", [about.key for about in storage.list(prefix, tags=tags)])

    def _remove(self, storage: NodeStorage, key: str) -> None:
        storage.remove(key)

    def _pass(self, storage: NodeStorage, event: str, data: Any) -> None:
        self.emit(event, data)

    def _ask(self, storage: NodeStorage, event: str, data: Any) -> None:
        self.emit("out", self.call(event, data))

    def _fail(self, storage: NodeStorage, text: str) -> None:
        raise ValueError(text)


class Kept(Keep):
    pass


def topology() -> Topology:
    t = Topology("conformance")
    t.add_output("out")
    store, odd = Store(), Odd()
    t.add_slot("echo", Echo())
    t.add_slot("count", Count())
    t.add_slot("store", store)
    t.add_slot("erase", store)
    t.add_slot("fail", Fail())
    t.add_slot("odd", odd)
    t.add_slot("first", First(), emits=["second"])
    t.add_slot("second", odd)
    t.add_slot("many", Many())
    t.add_slot("send", Send())
    t.add_slot("who", Who())
    t.add_slot("answer", Answer())
    t.add_slot("later", Later())
    alarm = Alarm()
    t.add_slot("alarm", alarm)
    t.add_slot("calm", alarm)
    t.add_slot("ask", Ask())
    t.add_slot("refer", Refer())
    t.add_slot("greedy", Greedy())
    t.add_slot("export", Export())
    t.add_slot("consult", Consult())
    t.add_slot("paced", Paced(), rate="10/s", burst=3, timeout=1.0)
    t.add_slot("hurry", Hurry(), emits=["paced"])
    t.add_slot("keep", Keep(), emits=["kept"])
    t.add_slot("kept", Kept())
    t.add_slot("sleep", Sleep(), timeout=1.0)
    t.add_slot("unknown", Unknown())
    t.add_slot("say", Say())
    t.add_slot("note", Note())
    t.add_slot("mutter", Mutter())
    t.add_slot("die", Die())
    return t
