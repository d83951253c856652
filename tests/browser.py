"""A real browser for tests: Debian's chromium, by Playwright, which waits by itself and tells what fails in a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or ""


@contextmanager
def browsing() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Browser, url: str, *, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Page]:
    """A page in a profile of its own. At its end nothing may have failed in it, nor come from elsewhere."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("request", lambda asked: None if asked.url.startswith(url) else wrong.append(f"asked: {asked.url}"))
    try:
        yield page
        assert wrong == []
    finally:
        context.close()


def shoot(page: Page, name: str, tmp_path: Path) -> None:
    """A picture for people, in $GRAPE_SCREENSHOTS if that is said."""
    folder = Path(os.environ.get("GRAPE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
