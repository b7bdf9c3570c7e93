"""A web server on loopback that counts requests and fails on demand."""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Web(ThreadingHTTPServer):
    """Serves the files below a folder; the tables of failures are keyed by file name."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.requests: Counter[str] = Counter()
        self.breaks: dict[str, int] = {}
        """How many times to drop the connection in the middle of the body."""
        self.wrong: dict[str, int] = {}
        """How many times to send zeros of the same length."""
        self.status: dict[str, int] = {}
        """Status to answer instead of the file."""
        self.held: dict[str, threading.Event] = {}
        """The second half of the body waits for this."""
        self.half_sent = threading.Event()
        self.lies: dict[str, Callable[[Handler], None]] = {}
        """Function that answers instead of the file."""
        self.login = ""
        """user:password that every request must have."""
        self.query = ""
        """Query that every request must have."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, folder: str) -> str:
        """URL of a folder."""
        return f"http://127.0.0.1:{self.server_address[1]}/{folder}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Web

    def do_GET(self) -> None:
        web = self.server
        path, _, query = self.path.partition("?")
        file = web.root / path.lstrip("/")
        name = file.name
        web.requests[name] += 1
        status = web.status.get(name, 200 if file.is_file() else 404)
        expected = "Basic " + base64.b64encode(web.login.encode()).decode()
        if web.login and self.headers.get("Authorization") != expected:
            status = 401
        if query != web.query:
            status = 403
        if status != 200:
            self.send_error(status)
            return
        if name in web.lies:
            web.lies[name](self)
            return
        data = file.read_bytes()
        if web.wrong.get(name, 0):
            web.wrong[name] -= 1
            data = bytes(len(data))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        self.wfile.write(data[:half])
        if web.breaks.get(name, 0):
            web.breaks[name] -= 1
            self.close_connection = True
            return
        if name in web.held:
            web.half_sent.set()
            web.held[name].wait(30)
        self.wfile.write(data[half:])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
