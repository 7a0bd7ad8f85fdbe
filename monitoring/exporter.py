"""Serves one process's metrics over HTTP: /metrics for Prometheus, /healthz for health checks, and pages of JSON.

On the loopback by default, without authentication: anyone who can reach the port can read these, but change nothing.
"""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

TEXT = "text/plain; charset=utf-8"
CLIENT_SECONDS = 5.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without HTTPServer's reverse name lookup, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing when a client disconnects."""


class Exporter:
    """``healthy`` returns an empty text, or why the daemon is unhealthy; /healthz then answers 503, also if the call
    fails. ``pages`` maps paths to functions that return JSON text.

    Adds the process's own metrics to ``registry``. Raises OSError, naming the address, if it cannot listen there.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str = "127.0.0.1",
        port: int = 0,
        healthy: Callable[[], str] = lambda: "",
        pages: Mapping[str, Callable[[], str]] = MappingProxyType({}),
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = CLIENT_SECONDS

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                if path == "/metrics":
                    self.answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif path == "/healthz":
                    reason = _reason(healthy)
                    self.answer(503 if reason else 200, (reason or "ok").encode("utf-8", "replace") + b"\n", TEXT)
                elif path in pages:
                    try:
                        page = pages[path]().encode()
                    except Exception as error:  # whoever asks is told; the daemon goes on
                        self.answer(500, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"), TEXT)
                    else:
                        self.answer(200, page, "application/json")
                else:
                    self.answer(404, f"try {', '.join(['/metrics', '/healthz', *pages])}\n".encode(), TEXT)

            def answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Do not log scrapes."""

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise OSError(
                error.errno, f"metrics cannot be served on {host}:{port} ({error.strerror}); 0 takes any free port"
            ) from error
        for collector in (ProcessCollector, PlatformCollector):
            with contextlib.suppress(ValueError):  # an earlier exporter registered it already
                collector(registry=registry)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="exporter", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Stop serving; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _reason(healthy: Callable[[], str]) -> str:
    try:
        return healthy()
    except Exception as error:  # a failing health check is itself an answer
        return f"the health check failed: {type(error).__name__}: {error}"
