"""A small server that speaks S3 and misbehaves as it is told, in the event loop of the test."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Request:
    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def is_probe(self) -> bool:
        return ".grape-probe/" in self.key + self.query.get("prefix", "")

    @property
    def kind(self) -> str:
        """ "put", "part", "begin", "complete", "abort", "uploads", "list", "get", "head", "delete"."""
        if "uploads" in self.query:
            return "begin" if self.method == "POST" else "uploads"
        if "uploadId" in self.query:
            return {"PUT": "part", "POST": "complete", "DELETE": "abort"}[self.method]
        return self.method.lower() if self.key else "list"


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    """What it says its length is."""
    cut: int | None = None
    """Bytes of the body after which the connection breaks."""


HANG = Answer(-1)
"""Nothing is answered, ever."""
RESET = Answer(-2)
"""The connection breaks."""


def refusal(status: int, code: str, message: str = "", more: str = "", **headers: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{more}</Error>"
    return Answer(status, headers, body.encode())


class Faulty:
    """
    Attributes:
        faults: asked before a request is done; what it gives is answered instead.
        after: asked when it has been done. asked: all requests, but for probes.
        ignored: headers that it does not look at. closes: it closes connections after each answer, and does not say so.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes], str]] = {}
        self.faults: Callable[[Request], Answer | None] = lambda request: None
        self.after: Callable[[Request, Answer], Answer] = lambda request, answer: answer
        self.asked: list[Request] = []
        self.ignored: set[str] = set()
        self.closes = False
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._hangs = asyncio.Event()
        self._uploads = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kinds(self) -> list[str]:
        return [request.kind for request in self.asked]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Faulty]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self._hangs.set()
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        request = Request(method, key, query, headers, body)
        if not request.is_probe:
            self.asked.append(request)
        answer = None if request.is_probe else self.faults(request)
        if answer is None:
            refused = self._unmet(request)
            await self.between(request)
            answer = refused or self._done(request)
            if not request.is_probe:
                answer = self.after(request, answer)
        if answer is HANG:
            await self._hangs.wait()
            return False
        if answer is RESET:
            writer.transport.abort()
            return False
        length = len(answer.body) if answer.length is None else answer.length
        lines = [f"HTTP/1.1 {answer.status} Said", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        if method != "HEAD":
            writer.write(answer.body if answer.cut is None else answer.body[: answer.cut])
        await writer.drain()
        return not self.closes and answer.cut is None and (answer.length is None or method == "HEAD")

    async def between(self, request: Request) -> None:
        """Looking whether a condition holds, and doing it."""

    # ------------------------------------------------------------------ what it does when it behaves

    def _unmet(self, request: Request) -> Answer | None:
        there = self.objects.get(request.key)
        etag = "" if there is None else there[1]["etag"]
        conditions = {
            name: value for name in ("if-match", "if-none-match") if (value := self._condition(request, name))
        }
        if request.kind in ("put", "complete", "delete") and conditions:
            if "if-none-match" in conditions and there is not None:
                return refusal(412, "PreconditionFailed")
            if "if-match" in conditions and conditions["if-match"] != etag:
                return refusal(412, "PreconditionFailed")
        return None

    def _done(self, request: Request) -> Answer:
        kind = request.kind
        if kind == "put":
            return self._keep(request.key, request.body, request.headers)
        if kind == "delete":
            self.objects.pop(request.key, None)
            return Answer(204)
        if kind in ("get", "head"):
            return self._read(request)
        if kind == "list":
            return self._list(request)
        return self._multipart(request)

    def _condition(self, request: Request, name: str) -> str:
        if name in self.ignored or f"{request.method.lower()} {name}" in self.ignored:
            return ""
        return request.headers.get(name, "")

    def _keep(self, key: str, body: bytes, headers: dict[str, str]) -> Answer:
        kept = {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
        kept["content-type"] = headers.get("content-type", "")
        kept["etag"] = f'"{hashlib.md5(body).hexdigest()}"'
        kept["last-modified"] = formatdate(usegmt=True)
        self.objects[key] = body, kept
        return Answer(200, {"etag": kept["etag"]})

    def _read(self, request: Request) -> Answer:
        there = self.objects.get(request.key)
        if there is None:
            return refusal(404, "NoSuchKey")
        body, headers = there
        said = request.headers.get("range", "")
        if request.method == "HEAD":
            return Answer(200, headers, b"", len(body))
        if not said:
            return Answer(200, headers, body)
        first, _, last = said.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(body)) + 1, len(body)) if last else len(body)
        if start >= len(body):
            return refusal(416, "InvalidRange")
        return Answer(206, {**headers, "content-range": f"bytes {start}-{end - 1}/{len(body)}"}, body[start:end])

    def _list(self, request: Request) -> Answer:
        prefix, after = request.query.get("prefix", ""), request.query.get("start-after", "")
        most = int(request.query.get("max-keys", "1000"))
        keys = sorted((k for k in self.objects if k.startswith(prefix) and k > after), key=str.encode)
        some = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key][0])}</Size>"
            f"<ETag>{self.objects[key][1]['etag']}</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys[:most]
        )
        text = f"<ListBucketResult><IsTruncated>{str(len(keys) > most).lower()}</IsTruncated>{some}</ListBucketResult>"
        return Answer(200, {}, text.encode())

    def _multipart(self, request: Request) -> Answer:
        kind = request.kind
        if kind == "uploads":
            prefix = request.query.get("prefix", "")
            each = "".join(
                f"<Upload><Key>{escape(key)}</Key><UploadId>{upload}</UploadId><Initiated>{begun}</Initiated></Upload>"
                for upload, (key, _, _, begun) in self.uploads.items()
                if key.startswith(prefix)
            )
            return Answer(200, {}, f"<ListMultipartUploadsResult>{each}</ListMultipartUploadsResult>".encode())
        if kind == "begin":
            self._uploads += 1
            upload = f"upload{self._uploads}"
            self.uploads[upload] = request.key, request.headers, {}, "2026-01-01T00:00:00.000Z"
            return Answer(200, {}, f"<R><UploadId>{upload}</UploadId></R>".encode())
        upload = request.query["uploadId"]
        if upload not in self.uploads:
            return refusal(404, "NoSuchUpload")
        key, headers, parts, _ = self.uploads[upload]
        if kind == "part":
            parts[int(request.query["partNumber"])] = request.body
            return Answer(200, {"etag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        del self.uploads[upload]
        if kind == "abort":
            return Answer(204)
        etag = self._keep(key, b"".join(parts[n] for n in sorted(parts)), headers).headers["etag"]
        return Answer(200, {}, f"<R><ETag>{escape(etag)}</ETag></R>".encode())
