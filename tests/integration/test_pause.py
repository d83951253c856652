"""`grape app pause`: workers get nothing more, what comes waits, and all of it is done once when the app is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

import grape
from serving import COUNT, Server, count_app, serving, until, write_app

LATER = """
    from grape import Context

    def later(data, ctx: Context):
        ctx.emit("add", 1, key="t", delay=3.0)

    t.add_slot("later", later, emits="add")
    return t
"""


def test_a_paused_app_takes_events_in_and_runs_none_over_deaths_and_upgrades(tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    with serving(tmp_path / "home", "--park-after", "1") as server:
        server.grape("app", "deploy", app)
        assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
        assert server.grape("app", "pause", "count").split()[-1] == "paused"
        for _ in range(5):
            assert server.post("/apps/count/events/add?key=a").status_code == 202
        assert server.post("/apps/count/events/add?key=a&wait=0.5").status_code == 504
        count_app(app, "2")
        assert server.grape("app", "deploy", app).split()[::3] == ["count", "paused"]
        info = server.info("count")
        assert (info["version"], info["state"], info["paused"]) == ("2", "paused", True)
        assert info["numbers"]["pools"]["main"]["queue_events"] == 6
        assert info["numbers"]["pools"]["main"]["state"] == "paused"
        assert "grape app resume count" in server.grape("app", "info", "count")
        server.kill()
    with serving(tmp_path / "home", "--park-after", "1") as server:
        until(lambda: server.info("count")["state"] == "paused")
        assert server.post("/apps/count/events/add?key=a").status_code == 202
        assert server.get("/apps/count/readyz").status_code == 200
        assert 'grape_app_state{app="count",state="paused"} 1.0' in server.get("/metrics").text
        assert server.info("count")["numbers"]["pools"]["main"]["queue_events"] == 7
        assert server.post("/apps/count/resume").json()["state"] == "running"
        assert server.call("count", "add", params={"key": "a"}) == ["2", 9]
        until(lambda: server.info("count")["state"] == "parked")
        assert server.grape("app", "pause", "count")  # what comes has to go somewhere
        until(lambda: server.info("count")["state"] == "paused")
        with grape.Client(server.url) as client:
            assert client.pause("count").paused
        server.grape("app", "stop", "count")
        assert (server.info("count")["state"], server.info("count")["paused"]) == ("stopped", True)
        server.grape("app", "start", "count")
        assert server.info("count")["state"] == "paused"
        server.grape("app", "resume", "count")
        assert server.call("count", "add", params={"key": "a"}) == ["2", 10]


@pytest.fixture
def server(tmp_path: Path) -> object:
    with serving(tmp_path / "home") as server:
        yield server


def test_nothing_of_a_paused_app_runs_eagerly_or_by_a_timer_and_its_limits_hold(server: Server, tmp_path: Path) -> None:
    code = COUNT.replace("retries=0", "retries=0, eager=True").replace("    return t", LATER)
    app = write_app(tmp_path / "count", f"VERSION = '1'\n{code}")
    with open(app / "grape.toml", "a") as file:
        file.write("[pool.main]\nqueue-limit = 20\n")
    server.grape("app", "deploy", app)
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
    server.grape("emit", "count@later")
    until(lambda: server.info("count")["numbers"]["timers"] == 1)
    server.grape("app", "pause", "count")
    assert server.post("/apps/count/events/add?key=a").status_code == 202
    until(lambda: server.info("count")["numbers"]["pools"]["main"]["queue_events"] == 2)  # the timer's as well
    codes = [
        server.post("/apps/count/events/add?key=a", headers={"idempotency-key": f"i{i}"}).status_code for i in range(30)
    ]
    assert codes == [202] * codes.count(202) + [429] * codes.count(429)
    assert codes.count(202) == 18
    assert '"n":1' in server.grape_data("state", "get", "a", "--node", "Count", "count")
    server.grape("app", "resume", "count")
    assert server.call("count", "add", params={"key": "a"}) == ["1", 21]
    assert server.call("count", "add", params={"key": "t"}) == ["1", 2]
