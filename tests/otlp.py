"""Collectors of traces and logs, for tests: one that is strict, and a real one if it can be built here."""

from __future__ import annotations

import gzip
import re
import shutil
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).parents[1]


class Strict:
    """Takes OTLP in JSON, if it is exactly what the definitions say. ``status``: it answers instead, if not 0."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.records: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.problems: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.asked = 0
        self.status = 0
        strict = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                strict.headers.append({name.lower(): value for name, value in self.headers.items()})
                strict.asked += 1
                status = strict.status or strict.take(self.path, self.headers["content-type"], body)
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, media: str, body: bytes) -> int:
        """As whatever collector: ids in JSON are hexadecimal there, base64 in all other protobuf."""
        try:
            assert media == "application/json"
            if path == "/v1/logs":
                self._take_logs(body.decode())
                return 200
            assert path == "/v1/traces"
            text = re.sub(r'"(traceId|spanId|parentSpanId)":"([0-9a-f]+)"', _in_base64, body.decode())
            found = json_format.Parse(text, ExportTraceServiceRequest())
            for resource in found.resource_spans:
                self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        assert (len(span.trace_id), len(span.span_id)) == (16, 8)
                        assert len(span.parent_span_id) in (0, 8)
                        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
                        assert span.name
                        self.spans.append(span)
        except (AssertionError, json_format.ParseError, UnicodeDecodeError) as e:
            self.problems.append(f"{e!r}: {body[:1000]!r}")
            return 400
        return 200

    def _take_logs(self, text: str) -> None:
        text = re.sub(r'"(traceId)":"([0-9a-f]+)"', _in_base64, text)
        for resource in json_format.Parse(text, ExportLogsServiceRequest()).resource_logs:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    assert len(record.trace_id) in (0, 16)
                    assert 0 < record.time_unix_nano == record.observed_time_unix_nano
                    assert 1 <= record.severity_number <= 24
                    self.records.append(record)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _in_base64(found: re.Match[str]) -> str:
    return f'"{found[1]}":"{b64encode(bytes.fromhex(found[2])).decode()}"'


@contextmanager
def strict() -> Iterator[Strict]:
    collector = Strict()
    try:
        yield collector
    finally:
        collector.close()


def build() -> Path | None:
    """The OpenTelemetry collector with what the tests need of it; None: it cannot be had here."""
    program, source = ROOT / ".cache" / "collector" / "otelcol", ROOT / "tests" / "collector"
    if shutil.which("go") is None:
        return None
    program.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "."], cwd=source, check=False, timeout=900
    )
    return program if done.returncode == 0 else None


@contextmanager
def collector(program: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """It runs: its address, and what it says of what it takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = place / "collector.yaml"
    config.write_text(
        f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{debug: {{verbosity: detailed}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}, logs: {{receivers: [otlp], exporters: [debug]}}}}
"""
    )
    said = place / "collector.said"
    with open(said, "wb") as file:
        process = subprocess.Popen([program, "--config", config], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while "Everything is ready" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", said
    finally:
        process.terminate()
        process.wait(30)
