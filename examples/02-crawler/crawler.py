"""Crawl a directory of linked Markdown files: a cycle that ends, because every page knows that it was seen."""

import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from grape import Event, Node, State, Topology

CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(\s*<?([^)>\s]*)[^)\n]*\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


class Page(Node):
    """One event per link; the key is the page that the link leads to. The first one reads the page and follows its
    links, all of them check that the page and the anchor exist."""

    emits = ("page", "found", "broken")
    seen = State(bool, default=False)
    anchors = State(list[str])
    trouble = State(str, default="")

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def process(self, event: Event) -> None:
        path = str(event.key)
        if not self.seen:
            self.seen = True
            self.read(path)
        anchor = event.data["anchor"]
        why = self.trouble or (f"no anchor #{anchor}" if anchor and anchor not in self.anchors else "")
        if why:
            self.emit("broken", {"page": event.data["page"], "link": event.data["link"], "why": why})

    def read(self, path: str) -> None:
        try:
            file = (self.root / path).resolve()  # follows symbolic links: they may lead outside, too
            if not file.is_relative_to(self.root):
                self.trouble = "outside of the directory"
                return
            text = CODE.sub("", file.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError) as e:
            self.trouble = getattr(e, "strerror", None) or str(e)
            return
        links = [link for link in LINK.findall(text) if not is_external(link)] if path.endswith(".md") else []
        self.anchors = [slug(title) for title in HEADING.findall(text)]
        self.emit("found", {"words": len(text.split()), "links": len(links)})
        for link in links:
            follow(self, path, link)


class Start(Node):
    """A line of input is the path of a page."""

    emits = ("page",)

    def process(self, event: Event) -> None:
        follow(self, "", event.data)


def follow(node: Node, page: str, link: str) -> None:
    """Emit ``page`` for what ``link`` on ``page`` leads to."""
    parts = urlsplit(link)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    node.emit("page", {"page": page, "link": link, "anchor": unquote(parts.fragment)}, key=target)


def is_external(link: str) -> bool:
    try:
        parts = urlsplit(link)
    except ValueError:  # http://[
        return True
    return bool(parts.scheme or parts.netloc)


def slug(title: str) -> str:
    """The anchor of a heading, as the usual renderers make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def topology(config: dict[str, Any]) -> Topology:
    t = Topology("crawler")
    t.add_slot("start", Start())
    t.add_slot("page", Page(Path(config.get("root", Path(__file__).parent / "site"))))
    t.add_output("found")
    t.add_output("broken")
    return t
