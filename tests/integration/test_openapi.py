"""A gateway beside its own OpenAPI document, as schemathesis sees them: whatever the document allows is answered as it
says, and whatever it does not allow is nobody's fault but the client's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.serving import Server, serving, write_app

SECONDS: Final = 120
"""About."""
TYPED: Final = """
import datetime
from dataclasses import dataclass
from typing import Literal
from grape import Context, Topology
from msgspec import Struct

class Item(Struct):
    name: str
    count: int = 1
    size: Literal["s", "m"] = "s"

class Order(Struct):
    id: str
    items: list[Item]
    at: datetime.datetime | None = None

@dataclass
class Receipt:
    id: str
    items: int

t = Topology("typed")
t.add_output("receipts")

@t.slot("order", emits="receipts", retries=0)
def order(order: Order, ctx: Context) -> Receipt:
    ctx.reply({"id": order.id})
    return Receipt(order.id, len(order.items))

@t.slot("items", emits="receipts", batch=10, retries=0)
def items(items: list[Item]) -> list[Receipt]:
    return [Receipt(item.name, item.count) for item in items]

@t.slot("counted", retries=0)
async def counted(item: Item, ctx: Context) -> None:
    ctx.reply(item.count)
"""
FREE: Final = """
from grape import Context, Topology

t = Topology("free")
t.add_output("out")

@t.slot("any", emits="out", retries=0)
def anything(value, ctx: Context):
    ctx.reply(value)
    ctx.emit("out", value)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("openapi")
    with serving(base / "home") as server:
        for name, code in (("typed", TYPED), ("free", FREE)):
            server.grape("app", "deploy", write_app(base / name, code, workers=1))
        server.token = server.grape("token", "create", "all", "--scope", "*:*").strip()
        yield server


CONFIG: Final = f"""
hooks = "{Path(__file__).parents[1] / "openapi_hooks.py"}"
warnings = false
continue-on-failure = true
generation.deterministic = true
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 502, 504]
[checks.positive_data_acceptance]  # 422: numbers that no msgpack has
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 422, 502, 504]

# What an event has to look like its handler says, which answers for it: what does not fit is a dead letter.
[[operations]]
include-path-regex = "^/apps/typed/events/"
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx", 502, 504]
# What is pushed into an output nobody looks at but who takes it.
[[operations]]
include-path-regex = "^/apps/typed/events(/receipts)?$"
generation.mode = "positive"
# What is asked for has to be there, or to be as it was: no document says that.
[[operations]]
include-path-regex = "/objects/|/(dead|held)(/|$)|/state$|/(upgrade|rollback)$|^/packages$"
checks.positive_data_acceptance.enabled = false
"""


@pytest.mark.slow
def test_schemathesis(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"), "--config-file", config, "run", f"{server.url}/openapi.json",
            "--header", f"Authorization: Bearer {server.token}", "--max-time", str(SECONDS), "--request-timeout", "40",
            "--exclude-path-regex", "/stop$|/tail$", "--no-color",
        ],
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, timeout=SECONDS * 3,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
