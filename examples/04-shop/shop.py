"""Live traffic for the shop: calls at a server, the next version of an app in the middle, and the books at the end.

python shop.py http://127.0.0.1:8080 HOME [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grape

ITEMS = ("nails", "screws", "bolts", "nuts", "hooks")
CUSTOMERS = tuple(f"customer-{i}" for i in range(60))
STOCK, BALANCE, PRICE = 1_000, 500, 3
HERE = Path(__file__).parent
GRAPE = str(Path(sys.executable).parent / "grape")


class Traffic:
    """All calls, and how they ended. ``sold``: pieces, by item; ``paid``: money, by customer."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.sold: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.longest = 0.0
        self._random = random.Random(4)

    async def order(self, client: grape.AsyncClient) -> None:
        item, customer = self._random.choice(ITEMS), self._random.choice(CUSTOMERS)
        count = self._random.randint(1, 3)
        began = time.monotonic()
        answer = await client.call("orders@order", {"customer": customer, "count": count}, key=item)
        self.longest = max(self.longest, time.monotonic() - began)
        self.ended[answer["status"]] += 1
        if answer["status"] == "paid":
            self.sold[item] += count
            self.paid[customer] += PRICE * count

    async def run(self, url: str, seconds: float, in_the_middle: Any) -> None:
        until = time.monotonic() + seconds
        async with grape.AsyncClient(url) as client:

            async def calls() -> None:
                while time.monotonic() < until:
                    await self.order(client)

            callers = asyncio.gather(*(calls() for _ in range(16)))
            telling = asyncio.ensure_future(self._tell(until))
            await asyncio.sleep(seconds / 2)
            await in_the_middle()
            await callers
            await telling

    async def _tell(self, until: float) -> None:
        before = 0
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(2.0, left))
            now = self.ended.total()
            print(f"  {now:7,} calls answered ({(now - before) / 2:,.0f}/s): {dict(self.ended)}", flush=True)
            before = now


def states(home: Path, app: str, node: str) -> dict[str, Any]:
    data = home / "apps" / app / "data"
    command = [GRAPE, "state", "list", "--node", node, "--data", str(data)]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {row["key"]: row["state"] for row in map(json.loads, rows)}


def check(home: Path, traffic: Traffic) -> None:
    """What the callers were told is what the apps have stored; what goes back to the stock may still be on its way."""
    left = {item: STOCK - traffic.sold[item] for item in ITEMS}
    until = time.monotonic() + 10
    while (stock := stored_stock(home)) != left:
        assert time.monotonic() < until, (stock, left)
    for item in ITEMS:
        print(f"  {item:8} {left[item]:5,} left, {traffic.sold[item]:5,} sold")
    accounts = states(home, "payments", "Account")
    for customer in CUSTOMERS:
        balance = accounts.get(customer, {"balance": BALANCE})["balance"]
        assert balance == BALANCE - traffic.paid[customer], (customer, balance)
    told = sum((Counter(row["told"]) for row in states(home, "notices", "Tell").values()), Counter[str]())
    assert told == Counter({status: n for status, n in traffic.ended.items() if status != "sold out"}), told
    paid = f"{traffic.paid.total():,} paid by {len(CUSTOMERS)} customers"
    print(f"  {traffic.ended.total():,} calls, {paid}: all books agree")


def stored_stock(home: Path) -> dict[str, int]:
    """Of items that nobody has ordered since the upgrade in its older form."""
    shelves = {item: row["left"] for item, row in states(home, "orders", "Stock").items()}
    return {item: shelf if isinstance(shelf, int) else shelf["left"] for item, shelf in shelves.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("home", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    traffic = Traffic()

    async def upgrade() -> None:
        print("== the next version of orders, while calls go on", flush=True)
        command = [GRAPE, "app", "deploy", str(HERE / "orders-2"), "--home", str(options.home)]
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0

    asyncio.run(traffic.run(options.url, options.seconds, upgrade))
    print(f"== the books; no call was refused, the longest took {traffic.longest * 1e3:,.0f} ms", flush=True)
    check(options.home, traffic)


if __name__ == "__main__":
    main()
