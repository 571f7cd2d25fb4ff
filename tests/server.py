"""A real HTTP server on this machine that misbehaves on demand."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What one address serves. The faults are used up one after the other, one per request; then the page behaves.

    faults: "cut" (half of what was asked for, then the connection closes), "stall" (half, then silence), "busy" (503), "other range"
    (206 with a part nobody asked for), or an HTTP status as a string.
    """

    content: bytes
    faults: list[str] = field(default_factory=list)
    ranges: bool = True
    length: bool = True
    slow: float = 0.0  # seconds between pieces of a tenth


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (name given by the base class)
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Range"]))
        page = self.server.pages.get(self.path)
        if page is None:
            return self.send_error(404)
        fault = page.faults.pop(0) if page.faults else ""
        if fault.isdigit() or fault == "busy":
            return self.send_error(503 if fault == "busy" else int(fault))
        start = 0
        if page.ranges and self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(page.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(page.content)}")
                return self.end_headers()
            if fault == "other range":
                start = max(0, start - 5)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
        else:
            self.send_response(200)
        self._body(page, page.content[start:], fault)

    def _body(self, page: Page, body: bytes, fault: str) -> None:
        if page.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[: (len(body) + 1) // 2])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(1.5)
            return
        step = max(1, len(body) // 10) if page.slow else max(1, len(body))
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            self.wfile.flush()
            time.sleep(page.slow)


@contextmanager
def serve() -> Iterator[Server]:
    """Runs a server in a thread."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
