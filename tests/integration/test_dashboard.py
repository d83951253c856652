"""The dashboard in a real browser, on real apps, and what it asks for over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from browser import CHROMIUM, browsing, page_of, shoot
from serving import Server, serving, until, write_app

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium; scripts/setup installs it")

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

SHOP = """
import os
from pathlib import Path
from grape import Node, State, Topology

class Check(Node):
    def process(self, event):
        if event.data == "die":
            print("these are", "the last words", flush=True)
            os._exit(7)
        if isinstance(event.data, str) and event.data.startswith("wait "):
            if not Path(event.data[5:]).exists():
                raise LookupError("not open yet")
        elif event.data != "good":
            raise ValueError(event.data)
        self.emit("accepted", event.data, key=event.key)

class Reserve(Node):
    emits = ("reserved", "missing")
    def process(self, event):
        self.emit("missing" if event.data == "rare" else "reserved", event.data, key=event.key)

class Reorder(Node):
    def process(self, event):
        self.emit("accepted", event.data, key=event.key)

class Pay(Node):
    paid: int = State(int, default=0)
    def process(self, event):
        self.paid += 1
        self.emit("mail", self.paid, key=event.key)

class Later(Node):
    def process(self, event):
        raise OSError("the bank is closed")

def topology(config):
    t = Topology("shop")
    t.add_pool("bank")
    t.add_slot("order", Check(), retries=0)
    t.add_slot("accepted", Reserve())
    t.add_slot("missing", Reorder())
    t.add_slot("reserved", Pay(), pool="bank")
    t.add_slot("later", Later(), retries=9, backoff=600, backoff_max=600)
    t.add_output("mail")
    return t
"""
NODES = ["Check", "Later", "Pay", "Reorder", "Reserve"]

LARGE = """
from grape import Context, Topology

STEPS = "parse clean enrich locate score rank group merge split store".split()

def topology(config):
    t = Topology("large")
    for lane in range(5):
        for i, step in enumerate(STEPS):
            emits = [f"{STEPS[i + 1]}-{lane}" if i < 9 else f"done-{lane}"]
            if step == "score" and lane < 4:
                emits.append(f"rank-{lane + 1}")
            if step == "merge":
                emits.append(f"clean-{lane}")
            t.slot(f"{step}-{lane}", emits=tuple(emits))(handler(f"{step.title()}{lane}", emits[0]))
        t.add_output(f"done-{lane}")
    return t

def handler(name, first):
    def handle(event, ctx: Context):
        ctx.emit(first, event)
    handle.__name__ = name
    return handle
"""


def shop(directory: Path, version: str = "1.0") -> Path:
    return write_app(directory, SHOP, version=version)


def order(server: Server, data: str, count: int = 1, key: str = "ann") -> None:
    events = [{"event": "order", "key": key, "data": data} for _ in range(count)]
    answer = server.post("/apps/shop/events", events)
    assert answer.status_code == 202, answer.text


def kinds(server: Server, what: str = "dead") -> dict[str, int]:
    found = server.get(f"/apps/shop/{what}/kinds").json()["kinds"]
    return {kind["kind"]: kind["count"] for kind in found}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("dashboard")
    with serving(base / "home") as server:
        for version in ("1.0", "1.1"):
            server.grape("app", "deploy", shop(base / "shop", version))
        yield server


@pytest.fixture
def empty_shop(server: Server) -> Server:
    """Without dead letters."""
    if kinds(server):
        assert server.post("/apps/shop/dead/drop", {"all": True}).status_code == 200
    return server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with page_of(browser, server.url) as page:
        yield page


# ---------------------------------------------------------------------- the graph


@needs_chromium
def test_all_apps_are_listed_and_lead_to_their_graphs(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(server.url)
    card = page.get_by_role("link", name="shop")
    expect(card).to_contain_text("running")
    expect(page.locator("#pulse")).to_have_text("live")
    shoot(page, "apps", tmp_path)
    card.click()
    expect(page.locator(".vertex.node")).to_have_count(len(NODES))
    expect(page).to_have_title("shop · Grape")


@needs_chromium
def test_the_graph_shows_the_real_nodes_and_its_counts_move(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(f"{server.url}/#/shop")
    expect(page.locator(".vertex.node")).to_have_count(len(NODES))
    assert sorted(found.get_attribute("data-node") or "" for found in page.locator(".vertex.node").all()) == NODES
    assert page.locator(".vertex.out").get_attribute("data-event") == "mail"
    assert page.locator(".vertex.in").first.get_attribute("data-event") in ("order", "later")
    expect(page.locator(".edge.slot")).to_have_count(5)
    expect(page.locator(".edge.back")).to_have_count(1)  # missing -> Reorder -> accepted
    expect(page.locator(".edge.seen")).to_have_count(3)  # which Check, Pay and Reorder do not declare

    stop = threading.Event()

    def feed() -> None:
        with httpx.Client(base_url=server.url) as http:
            while not stop.wait(0.05):
                http.post("/apps/shop/events", json=[{"event": "order", "key": "a", "data": "good"}] * 10)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        moving = re.compile(r"[1-9][\d.,k]*/s")
        for node in ("Check", "Pay"):
            expect(page.locator(f"[data-node={node}] .figure")).to_have_text(moving)
        expect(page.locator("[data-event=mail] .figure")).to_have_text(moving)
        expect(page.locator('[data-slot="reserved>Pay"] .flow')).to_have_attribute(
            "data-speed", re.compile("slow|even")
        )
        page.locator("[data-node=Pay]").click()
        panel = page.locator(".panel")
        expect(panel).to_contain_text("reserved")
        expect(panel).to_contain_text("bank")
        shoot(page, "graph", tmp_path)
        with page_of(page.context.browser, server.url, color_scheme="dark") as dark:  # type: ignore[arg-type]
            dark.goto(f"{server.url}/#/shop")
            expect(dark.locator("[data-node=Pay] .figure")).to_have_text(moving)
            shoot(dark, "graph-dark", tmp_path)
    finally:
        stop.set()
        thread.join()
    expect(page.locator("[data-node=Pay] .figure")).to_have_text("0/s", timeout=15_000)


@needs_chromium
@pytest.mark.slow
def test_an_app_of_fifty_slots_can_be_read(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "large", LARGE))
        with page_of(browser, server.url, width=1440) as page:
            page.goto(f"{server.url}/#/large")
            nodes = page.locator(".vertex.node")
            expect(nodes).to_have_count(50)
            shoot(page, "large", tmp_path)
            boxes = [box for one in page.locator(".vertex").all() if (box := one.locator("rect").first.bounding_box())]
            assert len(boxes) == 105
            touching = [
                (a, b)
                for i, a in enumerate(boxes)
                for b in boxes[:i]
                if a["x"] < b["x"] + b["width"]
                and b["x"] < a["x"] + a["width"]
                and a["y"] < b["y"] + b["height"]
                and b["y"] < a["y"] + a["height"]
            ]
            assert touching == []
            first = page.locator("[data-node=Parse0]")
            assert (first.locator(".name").bounding_box() or {})["height"] >= 8  # what can be read
            expect(page.locator(".edge.back")).to_have_count(5)  # each lane's merge -> clean, and nothing else

            page.get_by_role("button", name="Show all").click()
            frame = page.locator(".graph").bounding_box() or {}
            for name in ("Parse0", "Store4"):
                box = page.locator(f"[data-node={name}]").bounding_box() or {}
                assert frame["x"] <= box["x"] <= frame["x"] + frame["width"]
            before = (first.bounding_box() or {})["width"]
            page.get_by_role("button", name="Larger").click()
            assert (first.bounding_box() or {})["width"] > before * 1.2
            shoot(page, "large-zoomed", tmp_path)


# ---------------------------------------------------------------------- dead letters


@needs_chromium
def test_f110_what_an_event_brings_is_only_ever_text(page: Page, empty_shop: Server, tmp_path: Path) -> None:
    server = empty_shop
    order(server, EVIL, key=EVIL)
    order(server, "good", key=EVIL)
    until(lambda: kinds(server) == {"ValueError": 1})
    page.goto(f"{server.url}/#/shop/dead")
    letter = page.locator(".letters > li").first
    expect(letter).to_contain_text(EVIL)
    letter.locator("button").first.click()
    expect(letter.locator("pre").first).to_contain_text("<img src=x onerror=")
    shoot(page, "dead-letters", tmp_path)
    page.goto(f"{server.url}/#/shop/state?node=Pay")
    expect(page.locator(".states td").first).to_contain_text("<img src=x")
    page.goto(f"{server.url}/#/shop/log")
    expect(page.locator(".log")).to_contain_text("<img src=x")
    page.goto(f"{server.url}/#/shop")
    page.locator("[data-node=Check]").click()
    expect(page.locator(".panel-dead")).to_contain_text("<img src=x")
    page.wait_for_timeout(500)
    assert page.locator("main img, main script").count() == 0
    expect(page).to_have_title("shop · Grape")
    # were it written wrongly one day, the browser would not do it either
    forbidden = """() => { try { document.body.innerHTML = "<b>x</b>"; return false } catch (e) { return true } }"""
    assert page.evaluate(forbidden)


@needs_chromium
def test_a_letter_is_retried(page: Page, empty_shop: Server, tmp_path: Path) -> None:
    server, flag = empty_shop, tmp_path / "open"
    order(server, f"wait {flag}", 3)
    order(server, "bad", 2)
    until(lambda: kinds(server) == {"LookupError": 3, "ValueError": 2})
    page.goto(f"{server.url}/#/shop/dead?node=Check&event=order&kind=LookupError")
    letters = page.locator(".letters > li")
    expect(letters).to_have_count(3)
    letters.first.locator("button").first.click()
    retry = letters.first.get_by_role("button", name="Retry")
    expect(letters.first).to_contain_text("Traceback")
    flag.touch()
    retry.click()
    expect(page.locator(".toast")).to_have_text("1 dead letter put back")
    expect(letters).to_have_count(2)
    until(lambda: kinds(server) == {"LookupError": 2, "ValueError": 2})
    # all of a kind
    page.get_by_role("button", name="Retry all 2 dead letters of order").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("back into the log")
    dialog.get_by_role("button", name="Retry").click()
    until(lambda: kinds(server) == {"ValueError": 2})
    # and what is dropped is asked about
    page.goto(f"{server.url}/#/shop/dead")
    drop = page.get_by_role("button", name="Drop all 2 dead letters of order → Check with ValueError")
    drop.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert kinds(server) == {"ValueError": 2}
    drop.click()
    page.get_by_role("dialog").get_by_role("button", name="Drop").click()
    expect(page.locator(".letters")).to_contain_text("No dead letters")
    assert kinds(server) == {}


@needs_chromium
@pytest.mark.slow
def test_ten_thousand_letters_are_shown_page_by_page(page: Page, empty_shop: Server, tmp_path: Path) -> None:
    server = empty_shop
    for i in range(4):
        order(server, "bad", 2_500, key=f"k{i}")
    until(lambda: kinds(server) == {"ValueError": 10_000}, 120)
    ids: list[str] = []
    after = ""
    while True:
        found = server.get("/apps/shop/dead", params={"limit": 500, "after": after}).json()
        ids += [letter["id"] for letter in found["letters"]]
        after = found["next"]
        if not after:
            break
    assert len(ids) == len(set(ids)) == 10_000
    page.goto(f"{server.url}/#/shop/dead")
    letters = page.locator(".letters > li")
    expect(letters).to_have_count(50)
    first = letters.first.get_attribute("data-letter")
    page.get_by_role("button", name="Next").click()
    expect(page.locator(".pager")).to_contain_text("page 2")
    expect(page.locator(f'[data-letter="{first}"]')).to_have_count(0)
    shoot(page, "many-letters", tmp_path)
    page.get_by_role("button", name="Back").click()
    expect(letters.first).to_have_attribute("data-letter", first or "")
    answer = server.post("/apps/shop/dead/drop", {"kind": "ValueError"})
    assert answer.json() == {"changed": 10_000, "refused": {}, "refused_count": 0}


@needs_chromium
def test_what_is_held_is_tried_at_once(page: Page, server: Server) -> None:
    assert server.post("/apps/shop/events/later", 1, params={"key": "h"}).status_code == 202
    until(lambda: kinds(server, "held") == {"OSError": 1})
    page.goto(f"{server.url}/#/shop/held")
    letter = page.locator(".letters > li")
    expect(letter).to_contain_text("the bank is closed")
    letter.locator("button").first.click()
    letter.get_by_role("button", name="Try now").click()
    expect(page.locator(".toast")).to_have_text("1 held event due at once")
    found = "/apps/shop/held"
    until(lambda: server.get(found).json()["letters"][0]["attempts"] == 2)
    assert server.post("/apps/shop/held/drop", {"all": True}).json()["changed"] == 1


# ---------------------------------------------------------------------- everything else that is shown


@needs_chromium
def test_pools_state_crashes_and_log(page: Page, empty_shop: Server, tmp_path: Path) -> None:
    server = empty_shop
    order(server, "good", 3, key="bob")
    page.goto(f"{server.url}/#/shop/pools")
    expect(page.get_by_role("region", name="pool bank")).to_contain_text("isolate process")
    expect(page.locator("tbody")).to_contain_text("engine")
    expect(page.locator("tbody tr").last).to_contain_text("MiB")
    shoot(page, "pools", tmp_path)
    page.goto(f"{server.url}/#/shop/state?node=Pay&key=bob")
    expect(page.locator(".states")).to_contain_text('"paid": 3')
    page.get_by_label("Key").fill("nobody")
    page.get_by_role("button", name="Look up").click()
    expect(page.locator(".found")).to_contain_text("no state of this key")
    order(server, "die")
    until(lambda: server.get("/apps/shop/crashes").json()["crashes"])
    page.goto(f"{server.url}/#/shop/crashes")
    crash = page.locator(".letters > li").first
    crash.locator("button").click()
    expect(crash).to_contain_text("these are the last words")
    page.goto(f"{server.url}/#/shop/log")
    page.get_by_label("Only lines with this text").fill("shop 1.1 runs")
    expect(page.locator(".log p")).to_have_count(1)


@needs_chromium
@pytest.mark.slow
def test_a_version_is_rolled_back_and_changed_to(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(f"{server.url}/#/shop/versions")
    expect(page.locator("tr[data-chosen]")).to_contain_text("1.1")
    shoot(page, "versions", tmp_path)
    page.get_by_role("button", name="Roll back to 1.0").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert server.info("shop")["version"] == "1.1"
    page.get_by_role("button", name="Roll back to 1.0").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.locator("tr[data-chosen]")).to_contain_text("1.0")
    assert server.info("shop")["version"] == "1.0"
    page.get_by_role("button", name="Change to version 1.1").click()
    page.get_by_role("dialog").get_by_role("button", name="Change").click()
    expect(page.locator("tr[data-chosen]")).to_contain_text("1.1")
    assert server.info("shop")["version"] == "1.1"


# ---------------------------------------------------------------------- for everybody


@needs_chromium
def test_it_works_by_keyboard(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(f"{server.url}/#/shop")
    expect(page.locator(".vertex.node")).to_have_count(len(NODES))
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focused))
        if seen[-1].startswith("node Check"):
            break
    assert seen[0] == "To the content"
    assert {"Graph", "Versions"} <= set(seen)
    stroke = "getComputedStyle(document.activeElement.querySelector('rect')).strokeWidth"
    assert page.evaluate(stroke) == "2.4px"  # which one has the focus is seen
    page.keyboard.press("Enter")
    expect(page.locator(".panel h2")).to_have_text("Check")
    expect(page.locator("[data-node=Check]")).to_have_attribute("aria-pressed", "true")
    shoot(page, "keyboard", tmp_path)
    place = "document.querySelector('.graph > g').getAttribute('transform')"
    before = page.evaluate(place)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) != before
    page.keyboard.press("Escape")
    expect(page.locator(".panel")).to_be_hidden()
    unnamed = """() => [...document.querySelectorAll("button, a, input, select, [role=button], [role=meter]")]
        .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
    assert page.evaluate(unnamed) == []


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_nothing_is_wider_than_a_small_telephone(
    browser: Browser, empty_shop: Server, tmp_path: Path, scheme: Any
) -> None:
    server = empty_shop
    order(server, EVIL * 3, key=EVIL)
    order(server, "good", key="k" * 200)
    until(lambda: kinds(server) == {"ValueError": 1})
    with page_of(browser, server.url, width=360, height=740, color_scheme=scheme, has_touch=True) as page:
        for tab in ("", "/pools", "/dead", "/held", "/state", "/crashes", "/log", "/versions", None):
            page.goto(f"{server.url}/#/" + ("" if tab is None else f"shop{tab}"))
            expect(page.locator("#pulse")).to_have_text("live")
            page.wait_for_timeout(400)
            if tab == "/dead":
                page.locator(".letter-head").first.click()
                expect(page.locator(".whole pre").first).to_be_visible()
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, tab
            shoot(page, f"small-{scheme}-{(tab or '/graph')[1:] if tab is not None else 'apps'}", tmp_path)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert light > 200 if scheme == "light" else light < 50


@needs_chromium
@pytest.mark.slow
def test_contrast_is_enough(browser: Browser, server: Server) -> None:
    """4.5 to 1 for text, in both schemes (WCAG AA)."""
    ratio = """([one, other]) => {
        const light = (name) => {
            const probe = document.createElement("i");
            probe.style.color = getComputedStyle(document.documentElement).getPropertyValue(name);
            document.body.append(probe);
            const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((n) => n / 255);
            probe.remove();
            const [r, g, b] = parts.map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const [a, b] = [light(one), light(other)];
        return Math.max(a, b) / Math.min(a, b);
    }"""
    pairs = [
        *(("--text", ground) for ground in ("--ground", "--card", "--raised")),
        *(("--muted", ground) for ground in ("--ground", "--card", "--raised")),
        *((f"--{kind}", f"--{kind}-soft") for kind in ("good", "warn", "bad", "accent")),
        *(("--accent", ground) for ground in ("--ground", "--card")),
        ("--bad", "--card"),
    ]
    for scheme in ("light", "dark"):
        with page_of(browser, server.url, color_scheme=scheme) as page:
            page.goto(server.url)
            for pair in pairs:
                assert page.evaluate(ratio, pair) >= 4.5, (scheme, pair)


@needs_chromium
@pytest.mark.slow
def test_nothing_moves_for_those_who_do_not_want_it(browser: Browser, server: Server) -> None:
    name = """() => { const flow = document.querySelector(".flow"); flow.dataset.speed = "even";
        return getComputedStyle(flow).animationName }"""
    for wish, animation in (("reduce", "none"), ("no-preference", "flow")):
        with page_of(browser, server.url, reduced_motion=wish) as page:
            page.goto(f"{server.url}/#/shop")
            expect(page.locator(".vertex.node")).to_have_count(len(NODES))
            assert page.evaluate(name) == animation


@needs_chromium
@pytest.mark.slow
def test_nothing_is_asked_while_nobody_looks(page: Page, server: Server) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/#/shop")
    until(lambda: page.wait_for_timeout(200) or sum(url.endswith("/apps/shop") for url in asked) >= 3)
    hide = """(to) => { Object.defineProperty(document, "visibilityState", { value: to, configurable: true });
        document.dispatchEvent(new Event("visibilitychange")) }"""
    page.evaluate(hide, "hidden")
    page.wait_for_timeout(500)
    asked.clear()
    page.wait_for_timeout(3_500)
    assert asked == []
    page.evaluate(hide, "visible")
    page.wait_for_timeout(800)
    assert any(url.endswith("/apps/shop") for url in asked)


@needs_chromium
@pytest.mark.slow
def test_the_page_goes_on_when_the_server_was_away(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", shop(tmp_path / "shop"))
        with page_of(browser, server.url) as page:
            page.goto(f"{server.url}/#/shop")
            expect(page.locator(".vertex.node")).to_have_count(len(NODES))
            gateway = next(pid for pid in server.pids() if b"gateway" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(gateway, signal.SIGSTOP)
            page.wait_for_timeout(1_500)
            os.kill(gateway, signal.SIGKILL)
            expect(page.locator("#pulse")).to_have_text("live", timeout=20_000)
            server.grape("app", "stop", "shop")
            expect(page.locator(".title .state")).to_have_text("stopped")
            expect(page.locator(".vertex.node")).to_have_count(len(NODES))  # as it was
            server.grape("app", "start", "shop")
            expect(page.locator(".title .state")).to_have_text("running")


@needs_chromium
@pytest.mark.slow
def test_a_token_is_asked_for_and_says_what_may_be_changed(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", shop(tmp_path / "shop"))
        order(server, "bad")
        looker = server.grape("token", "create", "looker", "--scope", "shop:read").strip()
        operator = server.grape("token", "create", "operator", "--scope", "shop:*").strip()
        with page_of(browser, server.url) as page:
            page.goto(server.url)
            dialog = page.get_by_role("dialog")
            expect(dialog).to_contain_text("Who is asking?")
            shoot(page, "token", tmp_path)
            page.get_by_label("Token").fill("grape_wrong")
            page.keyboard.press("Enter")
            expect(dialog).to_contain_text("not known")
            page.get_by_label("Token").fill(looker)
            page.keyboard.press("Enter")
            page.get_by_role("link", name="shop").click()
            page.get_by_role("link", name="Dead letters").click()
            page.locator(".letter-head").first.click()
            expect(page.locator(".whole pre").first).to_be_visible()
            assert page.get_by_role("button", name=re.compile("Retry|Drop")).count() == 0
            assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
            page.get_by_role("button", name="Forget token").click()
            page.get_by_label("Token").fill(operator)
            page.keyboard.press("Enter")
            expect(page.get_by_role("button", name=re.compile("^Drop")).first).to_be_visible()
        for token, status in (("", 401), (looker, 403), (operator, 200)):
            headers = {"authorization": f"Bearer {token}"} if token else {}
            assert server.post("/apps/shop/dead/retry", {"all": True}, headers=headers).status_code == status
        for path in ("topology", "processes", "backlog", "state?node=Pay", "crashes", "log", "dead", "held/kinds"):
            assert server.get(f"/apps/shop/{path}").status_code == 401
            headers = {"authorization": f"Bearer {looker}"}
            assert server.get(f"/apps/shop/{path}", headers=headers).status_code == 200, path


# ---------------------------------------------------------------------- over HTTP


def test_what_changes_something_is_json_by_post_from_here(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"content-type": kind} if kind else {}
        answer = server.http.post("/apps/shop/dead/drop", content=b'{"all": true}', headers=headers)
        assert answer.status_code == 415, kind
    answer = server.post("/apps/shop/dead/drop", {"all": True}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert server.get("/apps/shop/dead/drop").status_code == 405
    for wrong in ({}, {"all": True, "node": "Check"}, {"ids": ["main.0-0"], "all": True}, {"idz": []}, [], {"ids": 3}):
        assert server.post("/apps/shop/dead/drop", wrong).status_code == 400, wrong
    assert server.post("/apps/shop/dead/drop", {"ids": ["x" * (2 << 20)]}).status_code == 413
    assert server.post("/apps/nobody/dead/drop", {"all": True}).status_code == 404


def test_who_asks_for_what_there_is_not_is_told(server: Server) -> None:
    for path, status in {
        "nobody/topology": 404,
        "shop/dead?limit=0": 400,
        "shop/dead?limit=x": 400,
        "shop/dead?after=what": 400,
        "shop/dead/letter?id=main.0-999999": 404,
        "shop/dead/letter?id=..%2f..": 400,
        "shop/state?node=Nobody": 400,
        "shop/crashes?number=999": 404,
        "shop/log?limit=999999": 400,
    }.items():
        answer = server.get(f"/apps/{path}")
        assert answer.status_code == status, f"{path}: {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_letter_that_is_gone_is_refused_by_its_id(server: Server) -> None:
    told = server.post("/apps/shop/dead/retry", {"ids": ["main.0-999999"]}).json()
    assert (told["changed"], told["refused_count"], list(told["refused"])) == (0, 1, ["main.0-999999"])


def test_the_page_comes_with_a_strict_policy(server: Server) -> None:
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:", policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert server.get("/", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    for path in ("/dashboard/..%2f..%2fhttp.py", "/dashboard/__init__.py", "/dashboard/nothing.js"):
        assert server.get(path).status_code == 404
    found = re.findall(r'(?:src|href)="(/[^"]+)"', answer.text)
    assert {"/dashboard/main.js", "/dashboard/style.css", "/dashboard/icon.svg"} <= set(found)
    for path in found:
        assert server.get(path).status_code == 200


@pytest.mark.slow
def test_what_waits_is_told_by_slot(tmp_path: Path) -> None:
    slow = """
import time
from grape import Topology

def slow(event):
    time.sleep(0.5)

def topology(config):
    t = Topology("slow")
    t.slot("tick")(slow)
    return t
"""
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "slow", slow))
        assert server.post("/apps/slow/events", [{"event": "tick", "data": i} for i in range(500)]).status_code == 202
        told = server.get("/apps/slow/backlog").json()
        assert 400 <= told["slots"]["tick>slow"] <= 500
        server.grape("app", "stop", "slow")
        assert server.get("/apps/slow/topology").json()["slots"][0]["event"] == "tick"
        until(lambda: 400 <= server.get("/apps/slow/backlog").json()["slots"]["tick>slow"] < 500)
        assert server.get("/apps/slow/processes").status_code == 503
        assert server.post("/apps/slow/dead/retry", {"all": True}).status_code == 503


@pytest.mark.slow
def test_reading_does_not_stand_in_the_way_of_the_engine(empty_shop: Server) -> None:
    """Many look, while it works: all is done, and nobody is refused."""
    server = empty_shop
    paths = ["dead", "dead/kinds", "held/kinds", "state?node=Pay", "backlog", "topology", "log"]
    wrong: list[str] = []
    stop = threading.Event()

    def look(path: str) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not stop.is_set():
                answer = http.get(f"/apps/shop/{path}")
                if answer.status_code != 200:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=look, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    before = server.info("shop")["numbers"]["processed"].get("reserved>Pay", 0)
    for _ in range(10):
        order(server, "good", 100, key="busy")
    done = before + 1_000
    until(lambda: server.info("shop")["numbers"]["processed"]["reserved>Pay"] == done)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---------------------------------------------------------------------- what is installed


def test_a_wheel_has_all_of_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    folder = root / "src/grape/gateway/dashboard"
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        check=False,
        cwd=root,
        env={**os.environ, "GRAPE_HOT": "no"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if "/dashboard/" in name}
    assert packed == {f"grape/gateway/dashboard/{file.name}" for file in folder.iterdir()}


def test_it_takes_nothing_from_elsewhere() -> None:
    folder = Path(__file__).parents[2] / "src/grape/gateway/dashboard"
    for file in folder.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), file
