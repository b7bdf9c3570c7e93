"""Requests as curl and browsers send them."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple

from vlds.serve.server import Server

BOUNDARY = "=-=-boundary"
FORM = {"Content-Type": f'multipart/form-data; boundary="{BOUNDARY}"'}


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def told(self) -> dict[str, Any]:
        """Its JSON."""
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        told: dict[str, Any] = json.loads(self.text)
        return told


def form_of(*fields: tuple[str, bytes]) -> bytes:
    """A body of multipart/form-data."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in fields
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def ask(
    server: Server,
    body: bytes | None = None,
    method: str = "POST",
    path: str = "/answer",
    **headers: str,
) -> Reply:
    """One request; names of headers have _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, (FORM if body else {}) | named)
    response = connection.getresponse()
    reply = Reply(response.status, response.headers, response.read().decode())
    connection.close()
    return reply
