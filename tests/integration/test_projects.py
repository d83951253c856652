"""Four things that a newcomer would build first, as he would write them; run by the command, as he would run them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

GRAPE = str(Path(sys.executable).parent / "grape")


def grape(folder: Path, *arguments: object, code: int = 0, timeout: float = 200) -> str:
    """Runs the command in ``folder``; returns all that it printed."""
    done = subprocess.run(
        [GRAPE, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def taken(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


# ------------------------------------------------------------------ the sessions of an access log

SESSIONS = '''
from datetime import datetime

from grape import Event, Node, State, Topology

GAP = 30 * 60

t = Topology("sessions")
t.add_output("session")

@t.slot("line", emits="hit", key="client")
def parse(line: str) -> dict:
    client, _, _, rest = line.split(" ", 3)
    stamp, rest = rest[1:].split("] ", 1)
    return {
        "client": client,
        "at": int(datetime.strptime(stamp, "%d/%b/%Y:%H:%M:%S %z").timestamp()),
        "bytes": int(rest.rsplit(" ", 1)[1]),
    }

class Session(Node):
    emits = ("session", "client")
    first = State(int)
    last = State(int)
    hits = State(int, default=0)
    sent = State(int, default=0)

    def process(self, event: Event) -> None:
        if event.name == "over":
            self.close(event.key)
            return
        hit = event.data
        if self.last is None:
            self.emit("client", event.key, key="everyone")
        elif hit["at"] - self.last > GAP:
            self.close(event.key)
        if not self.hits:
            self.first = hit["at"]
        self.last = hit["at"]
        self.hits += 1
        self.sent += hit["bytes"]

    def close(self, client: str) -> None:
        self.emit("session", {"client": client, "from": self.first, "to": self.last, "hits": self.hits,
                              "bytes": self.sent})
        self.hits = self.sent = 0

class Clients(Node):
    """All clients there are; at the end each is told that it is over."""
    known = State(list[str])

    def process(self, event: Event) -> None:
        if event.name == "client":
            self.known.append(event.data)
        else:
            for client in self.known:
                self.emit("over", key=client)

session = Session()
t.add_slot("hit", session)
t.add_slot("over", session)
clients = Clients()
t.add_slot("client", clients)
t.add_slot("close", clients)

@t.slot("end", emits="close", key=lambda _: "everyone")
def end(source: dict) -> dict:
    return source
'''


def access_log(file: Path, lines: int) -> list[dict[str, Any]]:
    """Writes the log; returns the sessions that a loop over its lines finds."""
    rng = random.Random(lines)
    clients = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(4_000)]
    at = 1_767_225_600.0
    found: list[dict[str, Any]] = []
    now: dict[str, dict[str, Any]] = {}
    with file.open("w") as out:
        for _ in range(lines):
            at += rng.expovariate(1)
            some = int(at // 300) * 13  # who is there now changes slowly
            client = clients[(some + int(rng.expovariate(1 / 40))) % len(clients)]
            size = rng.randrange(100_000)
            stamp = datetime.fromtimestamp(int(at), UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
            out.write(f'{client} - - [{stamp}] "GET /page/{size % 97} HTTP/1.1" 200 {size}\n')
            session = now.get(client)
            if session is None or int(at) - session["to"] > 30 * 60:
                session = now[client] = {"client": client, "from": int(at), "to": 0, "hits": 0, "bytes": 0}
                found.append(session)
            session["to"] = int(at)
            session["hits"] += 1
            session["bytes"] += size
    return found


@pytest.mark.parametrize("terms", [r"key=/^(\S+)/", pytest.param("order=source", marks=pytest.mark.slow)])
def test_sessions_of_an_access_log(tmp_path: Path, terms: str) -> None:
    (tmp_path / "app.py").write_text(SESSIONS)
    expected = access_log(tmp_path / "access.log", 200_000)
    assert len(expected) > 8_000
    feed = f"line=access.log,{terms},on_end=end"
    grape(tmp_path, "run", "app.py", "--feed", feed, "--take", "session=sessions.jsonl", "--data", "data")
    sessions = [event["data"] for event in taken(tmp_path / "sessions.jsonl")]
    order = lambda session: (session["client"], session["from"])  # noqa: E731
    assert sorted(sessions, key=order) == sorted(expected, key=order)


# ------------------------------------------------------------------ orders, and a bank that is not always there

ORDERS = """
import http.client, json, os
from decimal import Decimal

from pydantic import BaseModel, Field

from grape import Context, Event, State, Topology

class Line(BaseModel):
    article: str
    price: Decimal = Field(gt=0)
    count: int = 1

class Order(BaseModel):
    id: str
    customer: str
    lines: list[Line]

    @property
    def total(self) -> Decimal:
        return sum((line.price * line.count for line in self.lines), Decimal(0))

class Receipt(BaseModel):
    order: str
    amount: Decimal
    charge: str

t = Topology("orders")
t.add_output("receipt")
t.add_output("statement")

@t.slot("order", emits="accepted", key="customer", retries=0)
def accept(order: Order) -> Order:
    return order

@t.slot("accepted", emits="charged", retries=50, backoff=0.02, backoff_max=0.2, ordered=False, chain=False)
def charge(order: Order, event: Event) -> Receipt:
    bank = http.client.HTTPConnection(os.environ["BANK"], timeout=5)
    body = json.dumps({"order": order.id, "amount": str(order.total)})
    bank.request("POST", "/charges", body, {"Idempotency-Key": event.id})
    answer = bank.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise OSError(f"the bank says {answer.status}")
    return Receipt.model_validate_json(text)

@t.slot("charged", emits=("receipt", "statement"))
def book(
    receipt: Receipt, event: Event, context: Context, spent: State[Decimal] = State(Decimal, default=Decimal(0))
) -> None:
    spent.value += receipt.amount
    context.emit("receipt", receipt)
    context.emit("statement", {"customer": event.key, "spent": spent.value})
"""


class Bank(Quiet):
    """Books a charge once per Idempotency-Key. Fails by a plan: before it has booked, after it, or in the answer."""

    plan: ClassVar[random.Random]
    books: ClassVar[dict[str, dict[str, str]]]
    asked: ClassVar[Counter[str]]
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        with self.lock:
            self.asked[key] += 1
            fate = self.plan.choice(
                ["good", "good", "500", "503", "booked, 500", "booked, gone", "gone", "cut", "slow"]
            )
        if fate in ("500", "503"):
            self.send_error(int(fate))
            return
        if fate == "gone":
            return
        with self.lock:
            charge = self.books.setdefault(key, {**body, "charge": f"c{len(self.books)}"})
        if fate == "booked, 500":
            self.send_error(500)
        elif fate != "booked, gone":
            time.sleep(0.05 if fate == "slow" else 0)
            answer = json.dumps(charge).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # whoever asked has been killed
                self.wfile.write(answer[:10] if fate == "cut" else answer)


def test_every_order_is_charged_once(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ORDERS)
    rng = random.Random(7)
    orders = [
        {
            "id": f"o{n}",
            "customer": f"customer {n % 23}",
            "lines": [
                {"article": "grapes", "price": f"{rng.randrange(1, 999) / 100:.2f}", "count": rng.randrange(1, 5)}
                for _ in range(rng.randrange(1, 4))
            ],
        }
        for n in range(300)
    ]
    totals = {
        order["id"]: sum(round(float(line["price"]) * 100) * line["count"] for line in order["lines"])  # type: ignore[attr-defined]
        for order in orders
    }
    bad = [{"id": "bad1", "customer": "x", "lines": [{"article": "a", "price": "-1"}]}, {"id": "bad2", "lines": []}]
    (tmp_path / "orders.jsonl").write_text("".join(json.dumps(order) + "\n" for order in [*bad, *orders]))
    Bank.plan, Bank.books, Bank.asked = random.Random(11), {}, Counter()
    with serving(Bank) as address:
        takes = ["--take", "receipt=receipts.jsonl", "--take", "statement=statements.jsonl"]
        feed = ["--feed", "order=orders.jsonl,key=id", "--env", f"BANK={address}", "--workers", 2]
        run = subprocess.Popen(
            [GRAPE, "run", "app.py", *map(str, [*feed, *takes]), "--data", "data"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while len(Bank.books) < 100 and run.poll() is None:
            time.sleep(0.01)
        run.kill()  # in the middle of it, without a word
        run.wait()
        said = grape(tmp_path, "run", "app.py", *feed, *takes, "--data", "data", code=1)
    assert "2 dead letters" in said
    assert max(Bank.asked.values()) > 3
    charged = Counter(charge["order"] for charge in Bank.books.values())
    assert charged == Counter(dict.fromkeys(totals, 1))
    assert {c["order"]: round(float(c["amount"]) * 100) for c in Bank.books.values()} == totals
    receipts = [event["data"] for event in taken(tmp_path / "receipts.jsonl")]
    assert sorted(receipts, key=str) == sorted(Bank.books.values(), key=str)
    spent = {e["data"]["customer"]: e["data"]["spent"] for e in taken(tmp_path / "statements.jsonl")}
    customers = {order["id"]: order["customer"] for order in orders}
    expected: Counter[Any] = Counter()
    for order, total in totals.items():
        expected[customers[order]] += total
    assert {customer: round(float(amount) * 100) for customer, amount in spent.items()} == expected
    listed = grape(tmp_path, "dead", "list", "--data", "data")
    assert "lines.0.price: Input should be greater than 0, got '-1'" in listed
    assert "customer: Field required" in listed


# ------------------------------------------------------------------ a crawler

CRAWLER = '''
import asyncio, os, re
from urllib.parse import urljoin, urlsplit

from grape import Event, Node, State, Topology

async def fetch(url: str) -> tuple[int, str]:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(f"GET {place.path} HTTP/1.0\\r\\nHost: {place.netloc}\\r\\n\\r\\n".encode())
        answer = (await reader.read()).decode()
    finally:
        writer.close()
    head, _, body = answer.partition("\\r\\n\\r\\n")
    return int(head.split()[1]), body

class Page(Node):
    """One event for each link to it; the first one fetches it."""
    emits = ("page", "found")
    seen = State(bool, default=False)

    async def process(self, event: Event) -> None:
        if self.seen:
            return
        self.seen = True
        status, body = await fetch(event.key)
        links = re.findall('href="([^"]+)"', body)
        self.emit("found", {"status": status, "links": len(links)})
        for link in links:
            self.emit("page", key=urljoin(event.key, link))

t = Topology("crawler")
t.add_output("found")
t.add_slot("page", Page(), concurrency=50)

@t.slot("start", emits="page", key=lambda url: url)
def start(url: str) -> str:
    return url
'''


class Site(Quiet):
    links: ClassVar[dict[str, list[str]]]
    fetched: ClassVar[Counter[str]]
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_GET(self) -> None:
        with self.lock:
            self.fetched[self.path] += 1
        if self.path not in self.links:
            self.send_error(404)
            return
        body = "".join(f'<a href="{link}">x</a>' for link in self.links[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in load:
            process.kill()
            process.wait()


def crawl(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    pages = [f"/{n}" for n in range(300)]
    links = {page: rng.sample(pages, rng.randrange(8)) for page in pages}
    links["/0"] = ["/1", "2", "/missing", "/0"]
    reached, todo = {"/0"}, ["/0"]
    while todo:
        for link in links.get(todo.pop(), ()):
            path = link if link.startswith("/") else f"/{link}"
            if path not in reached:
                reached.add(path)
                todo.append(path)
    Site.links, Site.fetched = links, Counter()
    folder = tmp_path / str(seed)
    folder.mkdir()
    (folder / "app.py").write_text(CRAWLER)
    with serving(Site) as address:
        (folder / "start.txt").write_text(f"http://{address}/0\n")
        grape(folder, "run", "app.py", "--feed", "start=start.txt", "--take", "found=found.jsonl", timeout=100)
        found = taken(folder / "found.jsonl")
    assert Site.fetched == Counter(dict.fromkeys(reached, 1))
    assert sorted(event["key"] for event in found) == sorted(f"http://{address}{path}" for path in reached)


def test_a_crawler_fetches_every_page_once(tmp_path: Path) -> None:
    with busy(2):
        for seed in range(3):
            crawl(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_crawler_ends_two_hundred_times(tmp_path: Path) -> None:
    with busy(4):
        for seed in range(1000, 1200):
            crawl(tmp_path, seed)


# ------------------------------------------------------------------ a live pipe

PIPE = """
from grape import Event, Node, State, Topology

class Count(Node):
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("out", {"line": event.data, "seen": self.seen})

t = Topology("pipe")
t.add_output("out")
t.add_slot("line", Count())
"""


def live(folder: Path, seed: int) -> None:
    """A writer that writes on, whoever reads; readers that are interrupted at odd moments."""
    rng = random.Random(seed)
    folder.mkdir()
    (folder / "app.py").write_text(PIPE)
    read, write = os.pipe()
    lines = [f"{rng.randrange(10**6)} line {n} {'x' * rng.randrange(200)}" for n in range(400)]

    whole = threading.Lock()  # what is interrupted in the middle of a line has had its first half

    def writing() -> None:
        for line in lines:
            text = f"{line}\n".encode()
            cut = rng.randrange(len(text)) if rng.random() < 0.2 else 0
            with whole:
                os.write(write, text[:cut])
                if cut:
                    time.sleep(rng.random() * 0.02)
                os.write(write, text[cut:])
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.03)
        os.close(write)

    writer = threading.Thread(target=writing)
    writer.start()
    command = [GRAPE, "run", "app.py", "--feed", r"line=-,key=/^(\d+)/", "--take", "out=out.jsonl", "--data", "data"]
    said = []
    try:
        for _ in range(100):
            run = subprocess.Popen(
                command, cwd=folder, stdin=read, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if writer.is_alive():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    run.wait(0.3 + rng.random() * 1.5)
                with whole:
                    run.send_signal(signal.SIGINT)
                    run.wait(60)
            out, _ = run.communicate(timeout=60)
            said.append((run.returncode, out))
            if run.returncode == 0 and not writer.is_alive():
                break
    finally:
        os.close(read)
        writer.join()
    got = Counter(event["data"]["line"] for event in taken(folder / "out.jsonl"))
    expected = Counter(lines)
    assert got == expected, (expected - got, got - expected, said)


@pytest.mark.parametrize("seed", range(2))
def test_a_live_pipe(tmp_path: Path, seed: int) -> None:
    live(tmp_path / "d", seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_live_pipe_many_times(tmp_path: Path) -> None:
    for seed in range(100, 160):
        live(tmp_path / str(seed), seed)
