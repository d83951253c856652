#!/usr/bin/python3
"""The conformance app as a program that reads and writes lines; docs/conformance.md says what each node does."""

import json
import os
import sys
import time


def answer(event):
    name, data, state = event["event"], event["data"], event.get("state", {})
    if name == "echo":
        return {"emit": "out", "data": data}
    if name == "count":
        count = state.get("count", 0) + 1
        return {"emit": "out", "data": count, "state": {"count": count}}
    if name in ("store", "erase"):
        return {"emit": "out", "data": state.get("value"), "state": {"value": data if name == "store" else None}}
    if name == "fail":
        return {"error": data}
    if name in ("odd", "second"):
        if data % 2:
            return {"error": "odd"}
        count = state.get("count", 0) + 1
        return {"emit": "out", "data": [data, count], "state": {"count": count}}
    if name == "first":
        if data[1] < 0:
            return {"error": "first"}
        count = state.get("count", 0) + 1
        return {"emit": [{"event": "second", "key": data[0], "data": data[1]}], "state": {"count": count}}
    if name == "who":
        return {"emit": "out", "data": [event["id"], event.get("attempt", 1)]}
    if name == "many":
        for i in range(data):
            say({"emit": "out", "data": i, "more": True})
        return {}
    if name == "send":
        return {"emit": [{"event": "echo", "data": data[1], "key": data[0]}]}
    if name == "answer":
        return {"reply": data}
    if name == "later":
        return {"emit": "out", "data": data[1], "delay": data[0]}
    if name == "alarm":
        return {"emit": "out", "data": data[2], "delay": data[1], "timer": data[0]}
    if name == "calm":
        return {"cancel": data}
    if name == "export":
        return {"emit": data[0], "data": data[1]}
    if name == "paced":
        return {"emit": "out", "data": data}
    if name == "hurry":
        return {"emit": "paced", "data": data}
    if name in ("keep", "kept"):
        return keep(data)
    if name == "sleep":
        time.sleep(data)
        return {"emit": "out", "data": data}
    if name == "unknown":
        return {"emit": "nowhere"}
    if name == "say":
        return {"log": data}
    if name in ("note", "mutter"):
        return {"log": data[1], "level": data[0], "fields": data[2]}
    os._exit(3)


def ask(**what):
    say({name: value for name, value in what.items() if value is not None})
    return json.loads(sys.stdin.readline())


def keep(ops):
    """All that it does with objects; returns what it emits."""
    emits = []
    for what, namespace, key, *words in ops:
        if what == "put":
            ask(object="put", namespace=namespace, key=key, text=words[0], **(words[1] if words[1:] else {}))
        elif what == "large":
            with open("/tmp/large%d" % os.getpid(), "w") as file:
                file.write(words[0] * words[1])
            ask(object="put", namespace=namespace, key=key, file=file.name)
            os.unlink(file.name)
        elif what in ("get", "count"):
            start, end = (words + [None, None])[:2]
            got = ask(object="get", namespace=namespace, key=key, start=start, end=end)
            text = got.get("text")
            emits.append(text if what == "get" or text is None else len(text.encode()))
        elif what == "stat":
            got = ask(object="stat", namespace=namespace, key=key)
            names = ("size", "version", "checksum", "content_type", "tags", "user")
            said = [got[name] for name in names] + [got["time"] > 0, got["expires"] > 0] if got.get("found") else None
            emits.append(said)
        elif what == "list":
            got = ask(object="list", namespace=namespace, prefix=key, tags=words[0] if words else None)
            emits.append([about["key"] for about in got.get("objects", ())])
        elif what == "remove":
            ask(object="remove", namespace=namespace, key=key)
        elif what == "pass":
            say({"emit": key, "data": words[0], "more": True})
        else:
            return {"error": key}
    return {"emit": [{"event": "out", "data": data} for data in emits]}


def say(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


while text := sys.stdin.readline():
    say(answer(json.loads(text)))
