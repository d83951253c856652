"""The dashboard in a real browser: pausing, traces as trees, drivers, and the page from which an app is tried; and what
it asks for over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from browser import CHROMIUM, browsing, page_of, shoot
from serving import Server, serving, until, write_app

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium; scripts/setup installs it")

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

SHOP = """
from grape import Node, State, Topology


class Order(Node):
    total: int = State(int, default=0)

    def process(self, event):
        self.total += 1
        if event.data == "bad" or "<img" in str(event.data):
            raise ValueError(event.data)
        self.emit("pack", event.data, key=event.key)
        self.emit("mail@send", event.data, key=event.key)
        self.reply({"total": self.total, "large": 12345678901234567890})


class Pack(Node):
    def process(self, event):
        if event.attempt == 1 and event.data == "twice":
            raise ConnectionError("the belt stands still")
        self.emit("packed", event.data, key=event.key)


def topology(config):
    t = Topology("shop")
    t.add_slot("order", Order(), retries=0, emits="pack")
    t.add_slot("pack", Pack(), backoff=0.01, backoff_max=0.01, emits="packed")
    t.add_slot("show", lambda data: data, name="Show", emits="packed")
    t.add_output("packed")
    return t
"""

MAIL = """
from grape import Node, Topology


class Send(Node):
    def process(self, event):
        pass


def topology(config):
    t = Topology("mail")
    t.add_slot("send", Send())
    return t
"""

OFFICE = """
from grape import Topology


def topology(config):
    t = Topology("office")
    t.add_output("done")
    t.add_slot("report", lambda data: data, emits="done", name="report")
    return t
"""

DRIVERS = f"""
[driver.report]
kind = "cron"
event = "report"
schedule = "0 6 * * MON-FRI"
zone = "Europe/Berlin"

[driver.pulse]
kind = "timer"
event = "report"
every = "200 ms"
data = {json.dumps(EVIL)}
key = {json.dumps(EVIL)}

[driver.inbox]
kind = "watch"
event = "report"
path = {json.dumps("/nowhere/" + EVIL.replace("/", ""))}
pattern = "*.csv"

[driver.code]
kind = "webhook"
event = "report"
scheme = "github"
secret = {{ env = "CODE_SECRET" }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("api")
    with serving(base / "home", env={"CODE_SECRET": "sesame"}) as server:
        write_app(base / "office", OFFICE)
        with open(base / "office" / "grape.toml", "a") as manifest:
            manifest.write(DRIVERS)
        write_app(base / "mail", MAIL)
        write_app(base / "shop", SHOP)
        for name in ("mail", "shop", "office"):
            server.grape("app", "deploy", base / name)
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with page_of(browser, server.url) as page:
        yield page


def traced(server: Server, data: Any, key: str = "ann", event: str = "order") -> str:
    """Hand in an event that is traced; the id of its trace."""
    trace = uuid.uuid4().hex
    headers = {"traceparent": f"00-{trace}-{'f' * 16}-01"}
    answer = server.post(f"/apps/shop/events/{event}", data, params={"key": key}, headers=headers)
    assert answer.status_code == 202, answer.text
    return trace


def why(server: Server, wanted: str, app: str = "shop", **options: Any) -> dict[str, Any]:
    answer = server.get(f"/apps/{app}/why", params={"id": wanted}, **options)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def nodes_of(found: dict[str, Any]) -> list[str]:
    return [f"{step['app']}:{step['node']}" for trace in found["traces"] for step in trace["steps"]]


WHOLE = {"shop:", "shop:Order", "shop:Pack", "mail:Send"}


# ---------------------------------------------------------------------- pausing


@needs_chromium
@pytest.mark.slow
def test_an_app_is_paused_and_goes_on(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(f"{server.url}/#/shop")
    expect(page.locator(".vertex.node")).to_have_count(3)
    try:
        page.get_by_role("button", name="Pause").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("what comes is taken in and waits")
        dialog.get_by_role("button", name="Cancel").click()
        assert server.info("shop")["state"] == "running"
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        dialog.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        expect(page.locator(".title .state")).to_have_text("paused")
        assert server.info("shop")["paused"]
        expect(page.locator(".notice.warn")).to_contain_text("its workers are given nothing")
        expect(page.locator(".rests")).to_be_visible()
        dashes = "getComputedStyle(document.querySelector('.vertex.node > rect')).strokeDasharray"
        assert page.evaluate(dashes) != "none"
        for _ in range(3):
            assert server.post("/apps/shop/events/show", "waits").status_code == 202
        expect(page.locator(".figures.strip")).to_contain_text("waiting3")
        expect(page.locator('[data-slot="show>Show"] .pill.waits text')).to_have_text("3")
        shoot(page, "paused", tmp_path)
        page.goto(f"{server.url}/#/")
        card = page.get_by_role("link", name="shop")
        expect(card).to_have_attribute("data-paused", "")
        expect(card).to_contain_text("paused")
        shoot(page, "apps-paused", tmp_path)
        card.click()
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(".title .state")).to_have_text("running")
        expect(page.locator(".notice.warn")).to_be_hidden()
        expect(page.locator(".rests")).to_be_hidden()
        until(lambda: server.info("shop")["numbers"]["processed"].get("show>Show", 0) >= 3)
    finally:
        server.grape("app", "resume", "shop")


# ---------------------------------------------------------------------- traces


def steps_of(page: Page) -> Locator:
    return page.locator(".step")


@needs_chromium
def test_an_id_that_is_typed_leads_to_its_tree(page: Page, server: Server, tmp_path: Path) -> None:
    trace = traced(server, "twice")
    until(lambda: set(nodes_of(why(server, trace))) == WHOLE)
    page.goto(f"{server.url}/#/shop/traces")
    expect(page.locator(".trace-row").first).to_contain_text("order")  # the newest ones
    shoot(page, "traces", tmp_path)
    page.get_by_label("Id", exact=True).fill(trace)
    page.keyboard.press("Enter")
    expect(steps_of(page)).to_have_count(4)
    expect(steps_of(page).first).to_contain_text("order came in by http")
    packed = page.locator(".step", has_text="pack → Pack")
    expect(packed).to_contain_text("2 attempts")
    expect(packed.locator(".run")).to_have_count(2)
    expect(page.locator(".trace-figures")).to_contain_text("failed attempts1")
    expect(page.locator(".trace-figures")).to_contain_text("shop, mail")
    packed.get_by_role("button").click()
    expect(packed).to_contain_text("attempt 1: failed")
    expect(packed).to_contain_text("ConnectionError: the belt stands still")
    expect(packed).to_contain_text("attempt 2: ok")
    order = page.locator(".step", has_text="order → Order")
    order.get_by_role("button").click()
    expect(order).to_contain_text("total (written)")
    expect(order).to_contain_text("version 1 (")
    expect(order).to_contain_text("main.0")
    shoot(page, "trace", tmp_path)
    page.evaluate("scrollTo(0, 0)")
    order.get_by_role("link", name="Its state now").click()
    expect(page.locator(".states")).to_contain_text('"total"')
    # of one event, not of all of it: it is marked
    step = next(step for step in why(server, trace)["traces"][0]["steps"] if step["node"] == "Pack")
    page.goto(f"{server.url}/#/shop/traces?id={step['id']}")
    expect(page.locator("[data-asked]")).to_contain_text("asked for")
    expect(page.locator("[data-asked]")).to_contain_text("Pack")


@needs_chromium
@pytest.mark.slow
def test_the_tree_works_by_keyboard(page: Page, server: Server) -> None:
    trace = traced(server, "good", "keys")
    until(lambda: set(nodes_of(why(server, trace))) == WHOLE)
    page.goto(f"{server.url}/#/shop/traces?id={trace}")
    heads = page.locator(".step-head")
    expect(heads).to_have_count(4)
    heads.first.focus()
    for key, number in (("ArrowDown", 1), ("End", 3), ("ArrowUp", 2), ("Home", 0)):
        page.keyboard.press(key)
        expect(heads.nth(number)).to_be_focused()
    page.keyboard.press("ArrowDown")
    for key, is_open in (("ArrowRight", "true"), ("ArrowLeft", "false"), ("Enter", "true"), ("Space", "false")):
        page.keyboard.press(key)
        expect(heads.nth(1)).to_have_attribute("aria-expanded", is_open)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Its state now")).to_be_focused()


@needs_chromium
@pytest.mark.slow
def test_a_dead_letter_leads_to_its_tree_and_back(page: Page, server: Server, tmp_path: Path) -> None:
    traced(server, "bad", "letter")
    until(lambda: server.get("/apps/shop/dead", params={"key": "letter"}).json()["letters"])
    page.goto(f"{server.url}/#/shop/dead?key=letter")
    page.locator(".letter-head").first.click()
    page.get_by_role("link", name="Why is it here?").click()
    asked = page.locator("[data-asked][data-outcome=error]")
    expect(asked).to_contain_text("ValueError: bad")
    shoot(page, "trace-dead", tmp_path)
    asked.get_by_role("link", name="now a dead letter").click()
    expect(page.locator(".letters > li")).to_have_count(1)
    expect(page.locator(".whole")).to_contain_text("Traceback")
    assert server.post("/apps/shop/dead/drop", {"key": "letter"}).json()["changed"] == 1


@needs_chromium
@pytest.mark.slow
def test_of_what_was_not_traced_is_told_what_is_known(page: Page, server: Server, tmp_path: Path) -> None:
    assert server.post("/apps/shop/events/order", "bad", params={"key": "plain"}).status_code == 202
    until(lambda: server.get("/apps/shop/dead", params={"key": "plain"}).json()["letters"])
    (letter,) = server.get("/apps/shop/dead", params={"key": "plain"}).json()["letters"]
    event_id = server.get("/apps/shop/dead/letter", params={"id": letter["id"]}).json()["event_id"]
    page.goto(f"{server.url}/#/shop/traces?id={event_id}")
    untraced = page.locator(".untraced")
    expect(untraced).to_contain_text("it is a dead letter")
    expect(untraced).to_contain_text("traceparent")
    shoot(page, "untraced", tmp_path)
    untraced.get_by_role("link", name="show it").click()
    expect(page.locator(".whole")).to_contain_text("Traceback")
    page.goto(f"{server.url}/#/shop/traces?id=nobody")
    expect(page.locator(".untraced")).to_contain_text("Nor does it wait or lie anywhere here")
    assert server.post("/apps/shop/dead/drop", {"key": "plain"}).json()["changed"] == 1


@needs_chromium
def test_what_comes_into_an_output_is_looked_on_and_leads_to_its_tree(
    page: Page, server: Server, tmp_path: Path
) -> None:
    page.goto(f"{server.url}/#/shop/api?output=packed")
    page.get_by_role("button", name="Look on from now").click()
    expect(page.locator(".api-body .state")).to_have_text("live")
    large = '{"n": 12345678901234567890, "text": "as it was"}'
    headers = {"content-type": "application/json"}
    server.http.post("/apps/shop/events/order", content=large, params={"key": "tailed"}, headers=headers)
    trace = traced(server, "good", "tailed")
    rows = page.locator(".tail > li")
    expect(rows).to_have_count(2)
    expect(rows.last).to_contain_text("12345678901234567890")  # JavaScript would have made it 12345678901234567000
    rows.last.locator("summary").click()
    expect(rows.last.locator("pre")).to_contain_text('"n": 12345678901234567890,')
    until(lambda: set(nodes_of(why(server, trace))) == WHOLE)
    shoot(page, "tail", tmp_path)
    rows.first.get_by_role("link", name=re.compile("Why is event")).click()
    asked = page.locator("[data-asked]")
    expect(asked).to_contain_text("packed went out")
    expect(steps_of(page)).to_have_count(5)
    # the same by the command
    own = why(server, trace)["traces"][0]["steps"]
    assert [step["node"] for step in own].count("") == 1
    event_id = re.search(r"id=([^&]+)", page.url)
    assert event_id is not None
    assert "packed went out key 'tailed'" in server.grape("why", event_id[1], "shop")
    # and with what is kept
    page.goto(f"{server.url}/#/shop/api?output=packed")
    page.get_by_role("button", name="With what is kept").click()
    until(lambda: page.locator(".tail > li").count() >= 2)


@needs_chromium
@pytest.mark.slow
def test_an_output_is_not_followed_while_nobody_looks(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/#/shop/api?output=packed")
    page.get_by_role("button", name="Look on from now").click()
    expect(page.locator(".api-body .state")).to_have_text("live")
    assert server.post("/apps/shop/events/show", "seen").status_code == 202
    expect(page.locator(".tail > li")).to_have_count(1)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hide = """(to) => { Object.defineProperty(document, "visibilityState", { value: to, configurable: true });
        document.dispatchEvent(new Event("visibilitychange")) }"""
    page.evaluate(hide, "hidden")
    page.wait_for_timeout(1_500)
    assert server.post("/apps/shop/events/show", "meanwhile").status_code == 202
    page.wait_for_timeout(1_500)
    assert not [url for url in asked if url.endswith("/tail")]
    expect(page.locator(".tail > li")).to_have_count(1)
    page.evaluate(hide, "visible")
    expect(page.locator(".tail > li")).to_have_count(2)  # nothing is missed
    page.get_by_role("button", name="Stop").click()
    assert server.post("/apps/shop/events/show", "not seen").status_code == 202
    page.wait_for_timeout(500)
    expect(page.locator(".tail > li")).to_have_count(2)


def test_why_takes_read_and_tells_nothing_of_other_apps(server: Server, tmp_path: Path) -> None:
    trace = traced(server, "good", "scopes")
    until(lambda: set(nodes_of(why(server, trace))) == WHOLE)
    assert why(server, trace)["hidden"] is False
    for query, status in (("", 400), ("?id=", 400), (f"?id={'x' * 5_000}", 400), ("?id=nobody", 200)):
        assert server.get(f"/apps/shop/why{query}").status_code == status, query
    assert server.get("/apps/nobody/why?id=x").status_code == 404
    assert server.get("/apps/shop/traces?limit=0").status_code == 400
    # a number of any length is none of ours
    assert why(server, f"00000000-{'1' * 900}.1-{'2' * 900}.3-4-5")["traced"] is False
    assert "data" not in json.dumps(why(server, trace)["traces"])


def test_a_token_sees_traces_of_its_apps_alone(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        for name, code in (("mail", MAIL), ("shop", SHOP)):
            server.grape("app", "deploy", write_app(tmp_path / name, code))
        trace = traced(server, "good")
        until(lambda: set(nodes_of(why(server, trace))) == WHOLE)
        tokens = {
            scope: server.grape(
                "token", "create", scope.replace(":", "-").replace("*", "all"), "--scope", scope
            ).strip()
            for scope in ("shop:read", "shop:emit", "mail:read", "*:read")
        }

        def asked(scope: str, path: str) -> Any:
            return server.get(path, headers={"authorization": f"Bearer {tokens[scope]}"})

        def told(scope: str, app: str = "shop") -> Any:
            return asked(scope, f"/apps/{app}/why?id={trace}").json()

        assert set(nodes_of(told("*:read"))) == WHOLE
        assert told("*:read")["hidden"] is False
        assert set(nodes_of(told("shop:read"))) == WHOLE - {"mail:Send"}
        assert told("shop:read")["hidden"] is True
        assert set(nodes_of(told("mail:read", "mail"))) == {"mail:Send"}
        for path in (f"why?id={trace}", "traces", "drivers"):
            assert asked("shop:emit", f"/apps/shop/{path}").status_code == 403, path
            assert asked("mail:read", f"/apps/shop/{path}").status_code == 403, path
            assert asked("shop:read", f"/apps/shop/{path}").status_code == 200, path
            assert server.get(f"/apps/shop/{path}").status_code == 401, path
        (mine,) = asked("shop:read", "/overview").json()["apps"]
        assert (mine["may_change"], mine["may_emit"]) == (False, False)


# ---------------------------------------------------------------------- drivers


def drivers(server: Server) -> dict[str, Any]:
    return {driver["name"]: driver for driver in server.get("/apps/office/drivers").json()["drivers"]}


def test_drivers_are_told_with_schedule_and_position(server: Server) -> None:
    until(lambda: (drivers(server)["pulse"]["events"] or 0) >= 3)
    found = drivers(server)
    assert list(found) == ["report", "pulse", "inbox", "code"]
    report, pulse, inbox, code = found.values()
    assert (report["kind"], report["schedule"], report["zone"]) == ("cron", "0 6 * * MON-FRI", "Europe/Berlin")
    assert report["events"] == 0
    assert len(report["coming"]) == 3
    assert all(" 06:00:00 CE" in each["clock"] for each in report["coming"])
    assert report["coming"][0]["at"] == pytest.approx(report["next"])
    assert (pulse["every"], pulse["catch_up"], pulse["grace"]) == (0.2, "last", 60)
    assert pulse["last"] <= pulse["done_up_to"]
    assert "No such file" in inbox["error"]
    assert (inbox["files"], inbox["settle"]) == (0, 1.0)
    assert (code["path"], code["scheme"], code["id"]) == (
        "/apps/office/hooks/code",
        "github",
        "header x-github-delivery",
    )
    assert code["events"] is None
    text = server.get("/apps/office/drivers").text
    assert "sesame" not in text
    assert "CODE_SECRET" not in text
    assert server.get("/apps/shop/drivers").json()["drivers"] == []
    assert server.get("/apps/nobody/drivers").status_code == 404
    server.grape("app", "stop", "office")
    try:
        stopped = drivers(server)["pulse"]
        assert (stopped["next"], stopped["coming"]) == (None, [])
        assert stopped["last"] is not None
    finally:
        server.grape("app", "start", "office")


@needs_chromium
def test_f110_drivers_are_listed_and_what_they_say_is_text(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(f"{server.url}/#/office/drivers")
    cards = page.locator(".driver")
    expect(cards).to_have_count(4)
    cron = page.locator("[data-kind=cron]")
    expect(cron).to_contain_text("0 6 * * MON-FRI")
    expect(cron).to_contain_text("Europe/Berlin")
    expect(cron).to_contain_text(re.compile("nextin "))
    pulse = page.locator("[data-kind=timer]")
    expect(pulse).to_contain_text(re.compile(r"events so far[1-9]"))
    expect(pulse).to_contain_text("<img src=x")
    expect(page.locator("[data-kind=watch]")).to_contain_text("No such file")
    expect(page.locator("[data-kind=webhook]")).to_contain_text(f"{server.url}/apps/office/hooks/code")
    expect(page.locator("[data-tab=drivers] .number")).to_have_text("1")  # the one that cannot do its work
    shoot(page, "drivers", tmp_path)
    assert page.locator("main img, main script").count() == 0
    expect(page).to_have_title("office · Grape")
    cron.get_by_role("link", name="report").click()
    expect(page.locator(".api-body h2")).to_have_text("report")
    page.goto(f"{server.url}/#/mail/drivers")
    expect(page.locator(".empty")).to_contain_text("No drivers")


# ---------------------------------------------------------------------- the API


@needs_chromium
def test_an_event_is_sent_and_called_from_the_page(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(f"{server.url}/#/shop/api")
    names = page.locator(".api-list .entry")
    expect(names).to_have_text(["order", "pack", "show", "packed"])
    expect(page.get_by_role("link", name="OpenAPI")).to_be_visible()
    page.route("**/asyncapi.json", lambda route: route.fulfill(json={}))
    page.reload()
    expect(page.get_by_role("link", name="AsyncAPI")).to_be_visible()
    page.get_by_role("link", name="POST order").click()
    expect(page.locator(".api-body .any").first).to_contain_text("any JSON value")
    data = page.get_by_label("Data")
    data.fill('{"n": ')
    expect(page.locator(".sending .why").first).to_contain_text("This is no JSON")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    data.fill('{"n": 1}')
    page.get_by_label("Key").fill("page")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".result .state")).to_have_text("202")
    expect(page.locator(".result pre")).to_have_text('{\n  "accepted": 1\n}')
    page.get_by_label("Call, and wait for the answer").check()
    page.get_by_label("Trace it").check()
    page.get_by_role("button", name="Call").click()
    expect(page.locator(".result .state")).to_have_text("200")
    expect(page.locator(".result pre")).to_contain_text('"total": 2,')
    expect(page.locator(".result pre")).to_contain_text("12345678901234567890")
    shoot(page, "api", tmp_path)
    page.get_by_role("link", name="See what it did").click()
    expect(steps_of(page)).to_have_count(4)
    page.go_back()
    # what fails is told
    data = page.get_by_label("Data")
    data.fill('"bad"')
    page.get_by_label("Key").fill("page")
    page.get_by_label("Call, and wait for the answer").check()
    page.get_by_role("button", name="Call").click()
    expect(page.locator(".result .state")).to_have_text("502")
    expect(page.locator(".result")).to_contain_text("ValueError")
    until(lambda: server.post("/apps/shop/dead/drop", {"all": True}).json()["changed"])


@needs_chromium
@pytest.mark.parametrize("key", ["ann", 'it\'s $(touch x) `y` "z" & \\ %0a'])
@pytest.mark.slow
def test_the_line_for_a_shell_does_the_same(page: Page, server: Server, tmp_path: Path, key: str) -> None:
    page.goto(f"{server.url}/#/shop/api?event=order")
    page.get_by_label("Data").fill('{\n  "say": "it\'s $(touch x)",\n  "n": 12345678901234567890 }')
    page.get_by_label("Key").fill(key)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Its own id").fill(f"own '{uuid.uuid4().hex}")
    page.get_by_label("Call, and wait for the answer").check()
    line = page.locator(".curl").first.text_content() or ""
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout).get("total", 0) >= 1, done.stdout
    assert list(tmp_path.iterdir()) == []
    rows = server.get("/apps/shop/state", params={"node": "Order", "key": key}).json()["rows"]
    assert rows, "it went in under this key"


SCHEMAS = {
    "Problem": {"type": "object"},
    "Line": {
        "type": "object",
        "required": ["sku", "count"],
        "properties": {
            "sku": {"type": "string", "minLength": 3, "maxLength": 12, "pattern": "^[A-Z]"},
            "count": {"type": "integer", "minimum": 2, "multipleOf": 2},
            "gift": {"anyOf": [{"$ref": "#/components/schemas/Gift"}, {"type": "null"}], "default": None},
        },
    },
    "Gift": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "inside": {"$ref": "#/components/schemas/Line"}},
    },
    "Order": {
        "title": "Order",
        "description": "What somebody buys.",
        "type": "object",
        "required": ["id", "lines", "kind"],
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "kind": {"enum": ["new", "again", EVIL]},
            "lines": {"type": "array", "items": {"$ref": "#/components/schemas/Line"}, "minItems": 1},
            "at": {"type": "string", "format": "date-time"},
            "price": {"type": ["number", "null"], "exclusiveMinimum": 0},
            "where": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
            "anything": {},
            "nothing": False,
            "gone": {"$ref": "#/components/schemas/constructor"},
            EVIL: {"type": "string", "default": EVIL, "description": EVIL},
            "__proto__": {"type": "boolean"},
        },
    },
    "Ring": {"$ref": "#/components/schemas/Ring"},
    "Tree": {
        "anyOf": [
            {"$ref": "#/components/schemas/Tree"},
            {"type": "array", "items": {"$ref": "#/components/schemas/Tree"}},
        ]
    },
}


def described(page: Page, schema: Any) -> None:
    """The page gets a document in which the event "order" takes that."""
    content = {"content": {"application/json": {"schema": schema}}}
    operation = {"summary": EVIL, "requestBody": content, "responses": {"200": content}}
    path = {"/apps/shop/events/order": {"post": operation}}
    document = {"openapi": "3.1.0", "paths": path, "components": {"schemas": SCHEMAS}}
    page.route("**/openapi.json", lambda route: route.fulfill(json=document))


@needs_chromium
def test_f110_a_schema_is_shown_as_text_and_a_payload_made_of_it(page: Page, server: Server, tmp_path: Path) -> None:
    described(page, {"$ref": "#/components/schemas/Order"})
    page.goto(f"{server.url}/#/shop/api?event=order")
    fields = page.locator(".api-columns .schema").first
    expect(fields).to_contain_text("What somebody buys.")
    for text in (
        "idstring (uuid)required",
        'kind"new" | "again"',
        "linesarray of Linerequiredat least 1 item",
        "pricenumber | null> 0",
        "where[number, number]",
        "tagsobject of string",
        "anythingany",
        "nothingnothing",
        "goneconstructor",
        "__proto__boolean",
    ):
        expect(fields).to_contain_text(text)
    lines = fields.locator("summary", has_text="lines")
    lines.focus()
    page.keyboard.press("Enter")
    expect(fields).to_contain_text("skustringrequired3 to 12 charactersas ^[A-Z]")
    expect(fields).to_contain_text("countintegerrequired≥ 2a multiple of 2")
    fields.locator("summary", has_text="gift").click()
    expect(fields).to_contain_text("Gift | null")
    shoot(page, "api-schema", tmp_path)
    sample = json.loads(page.get_by_label("Data").input_value())
    assert sample["lines"] == [{"sku": "text", "count": 2, "gift": None}]
    assert sample["kind"] == "new"
    assert sample["price"] == 1
    assert sample["where"] == [1, 1]
    assert sample["__proto__"] is True
    assert sample[EVIL] == EVIL
    assert uuid.UUID(sample["id"])
    expect(page.locator(".curl").first).to_contain_text("<img src=x")
    page.wait_for_timeout(300)
    assert page.locator("main img, main script").count() == 0
    expect(page).to_have_title("shop · Grape")


@needs_chromium
@pytest.mark.parametrize("name", ["Ring", "Tree", "Line", "nobody", "__proto__"])
@pytest.mark.slow
def test_any_schema_is_shown(page: Page, server: Server, name: str) -> None:
    described(page, {"$ref": f"#/components/schemas/{name}"})
    page.goto(f"{server.url}/#/shop/api?event=order")
    expect(page.locator(".schema").first).to_be_visible()
    json.loads(page.get_by_label("Data").input_value())


@needs_chromium
@pytest.mark.parametrize("schema", [True, False, {}, None, 3, [], "x", {"type": 3}, {"enum": []}, {"properties": []}])
@pytest.mark.slow
def test_what_is_no_schema_stops_nothing(page: Page, server: Server, schema: Any) -> None:
    described(page, schema)
    page.goto(f"{server.url}/#/shop/api?event=order")
    expect(page.locator(".schema").first).to_be_visible()
    json.loads(page.get_by_label("Data").input_value())


@needs_chromium
@pytest.mark.slow
def test_outputs_have_their_verbs(page: Page, server: Server, tmp_path: Path) -> None:
    assert server.post("/apps/shop/events/show", 1).status_code == 202
    page.goto(f"{server.url}/#/shop/api?output=packed")
    verbs = page.locator(".verbs > li")
    expect(verbs).to_have_count(8)
    page.locator(".verbs summary", has_text="/peek").click()
    expect(page.locator(".verbs details[open]")).to_contain_text("countinteger≥ 1≤ 10000")
    line = page.locator(".verbs details[open] .curl").text_content() or ""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "events" in json.loads(done.stdout)
    expect(page.locator(".api-body table")).to_contain_text("default", timeout=20_000)  # who has asked now
    shoot(page, "api-output", tmp_path)
    server.post("/apps/shop/outputs/packed/forget", {})


def test_a_tail_begins_where_it_is_said(server: Server) -> None:
    own = uuid.uuid4().hex
    assert server.post("/apps/shop/events/show", own).status_code == 202

    def kept() -> bool:
        found = []
        with server.http.stream("GET", "/apps/shop/outputs/packed/tail?from=start") as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    found.append(json.loads(line[6:])["data"])
                if own in found:
                    return True
        return False

    assert kept()
    assert server.get("/apps/shop/outputs/packed/tail?from=yesterday").status_code == 400


@needs_chromium
@pytest.mark.slow
def test_who_may_not_hand_in_sees_how_and_cannot(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        for name, code in (("mail", MAIL), ("shop", SHOP)):
            server.grape("app", "deploy", write_app(tmp_path / name, code))
        reader = server.grape("token", "create", "reader", "--scope", "shop:read").strip()
        writer = server.grape("token", "create", "writer", "--scope", "shop:read", "--scope", "shop:emit").strip()
        with page_of(browser, server.url) as page:
            page.goto(f"{server.url}/#/shop/api?event=order")
            page.get_by_label("Token").fill(reader)
            page.keyboard.press("Enter")
            expect(page.locator(".api .notice")).to_contain_text("shop:emit")
            expect(page.get_by_role("button", name="Send")).to_be_disabled()
            expect(page.get_by_label("Data")).to_be_disabled()
            assert page.get_by_role("button", name="Pause").count() == 0
            page.get_by_role("button", name="Forget token").click()
            page.get_by_label("Token").fill(writer)
            page.keyboard.press("Enter")
            page.get_by_label("Data").fill("1")
            page.get_by_label("Key").fill("k")
            page.get_by_role("button", name="Send").click()
            expect(page.locator(".result .state")).to_have_text("202")
            line = page.locator(".curl").first.text_content() or ""
            assert writer not in line
            assert "$GRAPE_TOKEN" in line
            with page.expect_download() as download:
                page.get_by_role("link", name="OpenAPI").click()
            assert "/apps/shop/events/order" in json.loads(download.value.path().read_text())["paths"]
        # what the form sends, a page of others cannot
        headers = {"authorization": f"Bearer {writer}", "origin": "http://evil.example"}
        assert server.post("/apps/shop/events/order", 1, headers=headers).status_code == 403
        headers = {"authorization": f"Bearer {reader}"}
        assert server.post("/apps/shop/events/order", 1, headers=headers).status_code == 403


# ---------------------------------------------------------------------- for everybody


@needs_chromium
def test_f110_what_events_bring_is_text_in_traces_tails_and_answers(page: Page, server: Server) -> None:
    trace = traced(server, EVIL, EVIL)
    until(lambda: "shop:Order" in nodes_of(why(server, trace)))
    page.goto(f"{server.url}/#/shop/traces?id={trace}")
    expect(page.locator(".step").last).to_contain_text("<img src=x")
    page.locator(".step-head").last.click()
    expect(page.locator(".attempts pre")).to_contain_text("<script>")
    page.goto(f"{server.url}/#/shop/traces?id={EVIL.replace('#', '')}")
    expect(page.locator(".untraced")).to_contain_text("<img src=x")
    page.goto(f"{server.url}/#/shop/traces")
    expect(page.locator(".trace-list")).to_contain_text("<img src=x")
    page.goto(f"{server.url}/#/shop/api?output=packed")
    page.get_by_role("button", name="Look on from now").click()
    expect(page.locator(".api-body .state")).to_have_text("live")
    traced(server, EVIL, EVIL, "show")
    row = page.locator(".tail > li").first
    expect(row).to_contain_text("<img src=x")
    row.locator("summary").click()
    expect(row.locator("pre")).to_contain_text("<script>")
    page.goto(f"{server.url}/#/shop/api?event=order")
    page.get_by_label("Data").fill(json.dumps(EVIL))
    page.get_by_label("Key").fill(EVIL)
    page.get_by_label("Call, and wait for the answer").check()
    page.get_by_role("button", name="Call").click()
    expect(page.locator(".result")).to_contain_text("<img src=x")
    page.wait_for_timeout(500)
    assert page.locator("main img, main script").count() == 0
    expect(page).to_have_title("shop · Grape")
    until(lambda: server.post("/apps/shop/dead/drop", {"all": True}).json()["changed"])


@needs_chromium
@pytest.mark.slow
def test_json_is_laid_out_and_taken_apart_as_it_is(page: Page, server: Server) -> None:
    page.goto(server.url)
    run = """async ([name, text]) => { const json = await import("/dashboard/json.js"); const found = json[name](text);
        return found instanceof Map ? [...found] : found }"""
    text = '{"a":[1,{"b":"}\\\\\\"{,:"},[],{}],"big":12345678901234567890,"__proto__":1.50}'
    laid = page.evaluate(run, ["indented", text])
    assert json.loads(laid) == json.loads(text)
    assert '"big": 12345678901234567890' in laid
    assert page.evaluate(run, ["compact", laid]) == text
    assert dict(page.evaluate(run, ["members", text])) == {
        "a": '[1,{"b":"}\\\\\\"{,:"},[],{}]',
        "big": "12345678901234567890",
        "__proto__": "1.50",
    }
    for other in ("", "null", '"x', "{", "]", "\x00", "[" * 5_000):
        page.evaluate(run, ["indented", other])
        page.evaluate(run, ["members", other])
    assert page.evaluate(run, ["harmless", "a\u202eb\x7f\u200b'"]) == "a\\u202eb\\u007f\\u200b'"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_nothing_new_is_wider_than_a_small_telephone(
    browser: Browser, server: Server, tmp_path: Path, scheme: Any
) -> None:
    trace = traced(server, "twice", "k" * 200)
    until(lambda: set(nodes_of(why(server, trace))) == WHOLE)
    with page_of(browser, server.url, width=360, height=740, color_scheme=scheme, has_touch=True) as page:
        described(page, {"$ref": "#/components/schemas/Order"})
        for name, path, shown in (
            ("api", "shop/api?event=order", ".api-body .schema"),
            ("output", "shop/api?output=packed", ".verbs"),
            ("traces", "shop/traces", ".trace-row"),
            ("trace", f"shop/traces?id={trace}", ".step"),
            ("untraced", f"shop/traces?id={'x' * 300}", ".untraced"),
            ("drivers", "office/drivers", ".driver"),
        ):
            page.goto(f"{server.url}/#/{path}")
            if name == "output":
                page.unroute("**/openapi.json")
                page.reload()
            expect(page.locator(shown).first).to_be_visible()
            if name == "trace":
                page.locator(".step-head").nth(2).click()
            if name == "output":
                page.get_by_role("button", name="With what is kept").click()
                page.locator(".verbs summary").first.click()
            page.wait_for_timeout(300)
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, name
            shoot(page, f"small-{scheme}-{name}", tmp_path)
    with page_of(browser, server.url, color_scheme=scheme) as page:
        for name, path, shown in (
            ("api", "shop/api?event=order", ".schema"),
            ("trace", f"shop/traces?id={trace}", ".step"),
            ("drivers", "office/drivers", ".driver"),
        ):
            page.goto(f"{server.url}/#/{path}")
            expect(page.locator(shown).first).to_be_visible()
            unnamed = """() => [...document.querySelectorAll("button, a, input, textarea, select, summary")]
                .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
            assert page.evaluate(unnamed) == []
            shoot(page, f"{scheme}-{name}", tmp_path)


# ---------------------------------------------------------------------- objects


@needs_chromium
def test_f110_objects_are_looked_at_saved_and_removed(page: Page, server: Server, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    for n in range(130):
        server.http.put(f"/apps/shop/objects/shop/pictures/{n:03}.txt", content=b"%d" % n)
    server.http.put(
        f"/apps/shop/objects/shop/{quote(evil, safe='')}",
        content=b"<script>alert(1)</script>",
        headers={"content-type": "text/html", "x-grape-tags": quote(evil)},
    )
    page.goto(f"{server.url}/#/shop/objects")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(100)
    expect(page.locator("[aria-pressed=true]")).to_have_text("shop")
    page.get_by_role("button", name="More").click()
    expect(rows).to_have_count(131)
    page.get_by_role("searchbox").fill("<img")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name=evil).click()
    about = page.locator(".about-object")
    expect(about).to_contain_text("text/html")
    expect(about).to_contain_text("25 bytes")
    shoot(page, "objects", tmp_path)
    with page.expect_download() as saved:
        about.get_by_role("button", name="Save").click()
    assert Path(saved.value.path()).read_bytes() == b"<script>alert(1)</script>"
    about.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator(".empty")).to_contain_text("Nothing begins so")
    assert server.get(f"/apps/shop/objects/shop/{quote(evil, safe='')}").status_code == 404
    assert page.locator("main img, main script").count() == 0
    page.goto(f"{server.url}/#/mail/objects")
    expect(page.locator(".empty")).to_contain_text("No objects")
