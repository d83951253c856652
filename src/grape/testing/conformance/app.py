"""The conformance app in Python. Workers in other languages have the same nodes; docs/conformance.md lists them."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from grape import CallFailed, Event, NoAnswer, Node, State, Topology


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
    t.add_slot("sleep", Sleep(), timeout=1.0)
    t.add_slot("unknown", Unknown())
    t.add_slot("say", Say())
    t.add_slot("note", Note())
    t.add_slot("mutter", Mutter())
    t.add_slot("die", Die())
    return t
