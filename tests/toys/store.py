"""A real S3 server, and a line to it that fails on demand."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

import pytest

BUCKET = "shards"


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of moto's S3 in a process of its own. Skips the test without moto and s3fs."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 60
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert server.poll() is None, "moto's server has ended"
                assert time.monotonic() < until, "moto's server does not answer"
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def use_store(patch: pytest.MonkeyPatch, port: int) -> Any:
    """Let everything in this process and its children find a store by the environment, as users
    do; its file system."""
    import s3fs

    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    forget_stores()
    return s3fs.S3FileSystem()


def forget_stores() -> None:
    """Drop clients of stores that the environment named before."""
    import s3fs

    import vlds.data.shards.download

    s3fs.S3FileSystem.clear_instance_cache()
    vlds.data.shards.download._object_store.cache_clear()


class Line(ThreadingHTTPServer):
    """Passes requests on to a store, except those that its rates say."""

    daemon_threads = True

    def __init__(self, port: int, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.store = port
        self.errors = 0.0
        """Share of the requests for files that are answered 503."""
        self.cuts = 0.0
        """Share whose body ends in its middle."""
        self.slow = 0.0
        """Share that waits for `delay` first."""
        self.delay = 0.0
        self.whole: Counter[str] = Counter()
        """Key -> times that all of it was sent."""
        self.ranges: Counter[str] = Counter()
        """Key -> times that a range of it was sent."""
        self.puts = 0
        """Files that were stored."""
        self.faults: Counter[str] = Counter()
        self._random, self._lock = Random(seed), threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def fate(self) -> str:
        """What becomes of the next request for a file."""
        with self._lock:
            drawn = self._random.random()
            for name, share in (("error", self.errors), ("cut", self.cuts), ("slow", self.slow)):
                if drawn < share:
                    self.faults[name] += 1
                    return name
                drawn -= share
            return ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients hang up."""


class Passing(BaseHTTPRequestHandler):
    """One request."""

    server: Line
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        line = self.server
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        key = self.path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        is_file = self.command == "GET" and re.search(r"\.\w+$", key) is not None
        fate = line.fate() if is_file else ""
        if fate == "error":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fate == "slow":
            time.sleep(line.delay)
        store = http.client.HTTPConnection("127.0.0.1", line.store)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        store.request(self.command, self.path, body, headers)
        answer = store.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        store.close()
        if self.command == "HEAD":
            return
        if fate == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        # Counted before the client has it: a test may read the counts at once.
        line.puts += self.command == "PUT" and answer.status == 200
        if is_file and answer.status == 200:
            line.whole[key] += 1
        elif is_file and answer.status == 206:
            line.ranges[key] += 1
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
